"""The way to IBM's service: what the user named, the devices there, sessions, time limits and secrets.

What goes wrong it says in terms of :class:`~.faults.Fault`, because the same thing arrives as a dozen exceptions.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qiskit.providers import BackendV2

from ...arguments import did_you_mean, instance_of, number_from
from ..results import WrongResult
from ..transpiling import folds_rzz
from .decoding import as_it_came, decoded, require_known_decoders
from .device import Device, LocalDevice, fake_device
from .errors import EXTRA_IS_MISSING, HardwareError
from .faults import Fault, ServiceFault, fault_of, masked, meaning_of, raise_alone, secrets_of, shortened
from .ledger import Ledger
from .sending import explained

__all__ = ["CloudDevice", "Destination"]

_DEFAULT_LEDGER = "qtb-jobs.sqlite"
_IN_MEMORY = ":memory:"

_log = logging.getLogger(__name__)

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_POSTED = threading.local()  # ``job``: whether this thread has begun to send a job to the service
_LOGS_OF_CLIENT = ("qiskit_ibm_runtime.qiskit_runtime_service", "qiskit_ibm_runtime.api.client")


class CloudDevice(Device):
    """A device of IBM's, through the service that the device object belongs to.

    Requests of that service get time limits and no retries of the client's own, also for other uses of it.

    Args:
        device: From ``QiskitRuntimeService.backend(name)``.
        mode: ``"job"``, ``"session"``, ``"batch"``, or the user's own ``Session`` or ``Batch``.
        max_time: For sessions and batches of ours: how long they may be open, in seconds.
        session_id: A session or batch of ours that an earlier process has left open.

    Raises:
        ValueError: If the account's plan has no sessions, but one is asked for.
    """

    is_local = False

    def __init__(self, device: Any, *, mode: Any, max_time: int | None, session_id: str | None = None) -> None:
        self.device, self.name, self.service = device, device.name, device.service
        self._kind = mode if isinstance(mode, str) else "given"
        self._max_time = max_time
        self._session = None if isinstance(mode, str) else mode
        self._left_open = session_id
        self._jobs = {}
        with self._request():
            _prepare(self.service)
            self.plan = self._plan()
            _ = device.target  # else the client asks for the device's properties wherever they are needed first
        if mode == "session" and self.plan == "open":
            raise ValueError(
                f"mode: got 'session', but the plan of this account ({self.plan}) has no sessions; use mode='job' (each "
                "step waits in the queue) or mode='batch'."
            )

    @property
    def session_id(self) -> str | None:
        return None if self._session is None else self._session.session_id

    def _mode(self) -> Any:
        with self._request():
            if self._kind in ("session", "batch") and self._session is None:
                self._session = self._opened()
        return self.device if self._session is None else self._session

    def _opened(self) -> Any:
        from qiskit_ibm_runtime import Batch, Session

        kind = Session if self._kind == "session" else Batch
        if self._left_open is not None:
            try:
                session = kind.from_id(self._left_open, self.service)
                if (session.details() or {}).get("accepting_jobs"):
                    return session
            except Exception as error:  # whatever is wrong with the old one, a new one can be opened
                if meaning_of(error).fault in (Fault.TRANSIENT, Fault.UNAUTHORIZED):
                    raise  # it may still be open, and billed
            self._left_open = None
        return kind(backend=self.device, max_time=self._max_time)

    def check_preparation(self, primitive: str, pubs: Sequence[Any], options: Mapping[str, Any]) -> None:
        require_known_decoders()
        super().check_preparation(primitive, pubs, options)

    def submit(
        self, primitive: str, pubs: Sequence[Any], *, shots: int, options: Mapping[str, Any], tag: str, seed: int
    ) -> tuple[str, str | None]:
        _POSTED.job = not _prepare(self.service)  # where it cannot be seen, it may be
        with self._request(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*currently has a status of.*")
            return super().submit(primitive, pubs, shots=shots, options=options, tag=tag, seed=seed)

    def _properties(self, properties: Any) -> Any:
        with self._request():
            return properties(refresh=True)

    def refresh(self) -> None:
        with self._request():
            self.device.refresh()
        vars(self).pop("_bounded_gates", None)

    def find(self, tag: str) -> list[str]:
        with self._request():
            jobs = self.service.jobs(job_tags=[tag], limit=None, descending=False, instance=self._instance)
        for job in jobs:
            self._sent(job)
        return [job.job_id() for job in jobs]

    def session_of(self, job_id: str) -> str | None:
        with self._request():
            session_id = self._job(job_id).session_id
        return str(session_id) if session_id else None

    def state(self, job_id: str) -> tuple[str, str]:
        with self._request():
            job = self._job(job_id)
            status = str(job.status())
            said = job.error_message() if status == "ERROR" else None
        states = {"DONE": "done", "ERROR": "failed", "CANCELLED": "cancelled"}
        return states.get(status, "waiting"), "" if said is None else self._without_token(str(said))

    def result(self, job_id: str) -> Any:
        with self._request():
            job = self._job(job_id)
            body = job.result(decoder=as_it_came())
        try:
            return decoded(body, job.tags or (), partial(self._sent_as, job))
        except HardwareError:
            raise
        except Exception as error:  # whatever the client's decoders make of a body that is none
            said = str(error)
            if not isinstance(error, WrongResult):
                said = f"what arrived cannot be decoded ({type(error).__name__}: {error})."
        raise WrongResult(shortened(self._without_token(said)))  # not chained: what came may hold a token

    def _sent_as(self, job: Any) -> Any:
        """The job's program as the service has it, or None where it does not tell (it does not for private jobs)."""
        try:
            with self._request():
                return job.inputs["quantum_program"]
        except ServiceFault as fault:
            if fault.fault in (Fault.TRANSIENT, Fault.UNAUTHORIZED):
                raise
            return None

    def usage(self, job_id: str) -> float | None:
        with self._request():
            usage = self._job(job_id).metrics().get("usage") or {}
        seconds = usage.get("qpu_charge_time_seconds", usage.get("quantum_seconds"))
        return None if seconds is None or usage.get("status", "pending") == "pending" else float(seconds)

    def cancel(self, job_id: str) -> None:
        from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError

        with self._request():
            try:
                self._job(job_id).cancel()
            except RuntimeInvalidStateError:  # it has ended already
                return

    def renew_session(self) -> str | None:
        if self._kind == "given":
            raise HardwareError(
                f"The session or batch {self.session_id} that was given takes no more jobs. What was submitted is kept; "
                "give a new one, or IBMBackend(name, mode='session'), which renews its own."
            )
        self._session = None
        return None if self._mode() is self.device else self.session_id

    def close(self) -> str | None:
        if self._session is None or self._kind == "given":
            return None
        session, self._session = self._session, None
        with self._request():
            session.close()
        return str(session.session_id)

    def account_usage(self) -> dict[str, Any]:
        """What the service says of the account's time, in seconds."""
        with self._request():
            return dict(self.service.usage())

    @property
    def _instance(self) -> str | None:
        return getattr(self.device, "_instance", None)

    def _plan(self) -> str | None:
        plans = [entry for entry in self.service.instances() if entry.get("crn") == self._instance]
        return str(plans[0].get("plan")) if plans and plans[0].get("plan") else None

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._jobs[job_id] = self.service.job(job_id)
        return self._jobs[job_id]

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Turns whatever a request raises into a :class:`ServiceFault` without a token in it."""
        before = sys.exc_info()[1]
        try:
            with _masked_logs(self.service):
                yield
        except (HardwareError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise_alone(fault_of(error, self.service, before=before, certain=not getattr(_POSTED, "job", True)))

    def _without_token(self, text: str) -> str:
        return masked(text, secrets_of(self.service))


def _prepare(service: Any) -> bool:
    """Has requests end, and faults show at once; returns whether it is seen when a job is sent.

    The client waits for an answer without end; and after a server error it sends a job once more by itself, without
    asking whether the first one was taken, which makes two where it was. Without an access token it sends the account's key
    in its place, after a minute's wait if it has failed to get one before. (The names are private ones: a client that
    has others keeps its ways.)
    """
    from requests import Session

    clients = getattr(service, "_api_clients", {}).values()
    sessions: list[Any] = [getattr(client, "_session", None) for client in clients]
    for session in sessions:
        if isinstance(session, Session) and not hasattr(session.get_adapter("https://"), "sees_jobs"):
            for scheme in ("https://", "http://"):
                session.mount(scheme, _adapter())
        if hasattr(getattr(session, "auth", None), "tm"):
            session.auth = _authorization(session.auth)
    return bool(sessions) and all(isinstance(session, Session) for session in sessions)


def _adapter() -> Any:
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    class Bounded(HTTPAdapter):
        sees_jobs = True

        def send(self, request: Any, **arguments: Any) -> Any:  # type: ignore[override]
            if request.method == "POST" and request.path_url.partition("?")[0].endswith("/jobs"):
                _POSTED.job = True
            return super().send(request, **{**arguments, "timeout": (_CONNECT_SECONDS, _READ_SECONDS)})

    return Bounded(max_retries=Retry(total=0, raise_on_status=False))


def _authorization(given: Any) -> Any:
    from requests.auth import AuthBase

    class WithToken(AuthBase):
        """An access token, or a fault of the service that gives them: never the account's key itself."""

        def __init__(self) -> None:
            self.manager = given.tm
            self.manager.request_time = 0  # an attempt of before need not be waited for

        def __call__(self, request: Any) -> Any:
            try:
                token = self.manager.get_token()
            except Exception:
                if not self.manager.access_token or self.manager._is_token_expired():
                    raise
                token = self.manager.access_token  # it was to be renewed ahead of time
            finally:
                self.manager.request_time = 0  # else the next attempt waits for a minute
            request.headers.update({"Service-CRN": given.crn, "Authorization": f"Bearer {token}"})
            return request

        def __deepcopy__(self, memo: Any) -> Any:
            return given.__deepcopy__(memo)

    return WithToken()


@contextmanager
def _masked_logs(service: Any) -> Iterator[None]:
    """Within it, what the client logs of an answer holds no token."""

    def mask(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (hidden := masked(said, secrets_of(service))) != said:
            record.msg, record.args = hidden, None
        return True

    loggers = [logging.getLogger(name) for name in _LOGS_OF_CLIENT]
    for logger in loggers:
        logger.addFilter(mask)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(mask)


@dataclass(frozen=True, eq=False)
class Destination:
    """A device and a ledger, neither of which has been opened.

    Attributes:
        backend: A device's name, the device itself, a ``Session`` or a ``Batch``.
        account: The name of the account; None: the default.
        instance: The instance's; None: the account's.
        max_time: Of a session or batch of ours, in seconds; None: the service's.
        ledger: The ledger's file, or the word for memory; None: the default.
        fractional_gates: True: the device has to have them, and is opened with them.

    Raises:
        TypeError, ValueError: If there can be no such account or file; :attr:`name` says so of a device.
    """

    backend: Any
    _: KW_ONLY
    account: str | None
    instance: str | None
    max_time: int | None
    ledger: Any
    fractional_gates: bool | None = None

    def __post_init__(self) -> None:
        for name in ("account", "instance"):
            instance_of(name, getattr(self, name), (str, type(None)), "a name, or None for the default")
        if self.max_time is not None:
            also = " (seconds), or None for the service's"
            object.__setattr__(self, "max_time", number_from("max_time", self.max_time, least=1, whole=True, also=also))
        object.__setattr__(self, "ledger", _file("ledger", self.ledger))

    @property
    def name(self) -> str:
        """The device's name."""
        if isinstance(self.backend, str):
            kind, _, meant = self.backend.rpartition(":")
            if kind or not meant:  # a word for backend=, not a device's name
                guess = f"; did you mean {'fake_' * (kind == 'fake') + meant!r}?" if meant else "."
                raise ValueError(f"backend: got {self.backend!r}, expected a device's name, such as 'ibm_fez'{guess}")
            return self.backend
        device = self.backend if isinstance(self.backend, BackendV2) else getattr(self.backend, "_backend", None)
        name = getattr(device, "name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"backend: got {self.backend!r} ({type(self.backend).__name__}), expected a device's name, a BackendV2, a "
                "Session or a Batch."
            )
        return name

    @property
    def is_rehearsal(self) -> bool:
        """Whether the device is a simulated one, in this process."""
        if isinstance(self.backend, str):
            return self.backend.startswith("fake_")
        from qiskit_ibm_runtime import IBMBackend

        return not isinstance(getattr(self.backend, "_backend", self.backend), IBMBackend)

    @property
    def kind_of_session(self) -> str | None:
        """``"session"`` or ``"batch"``, where the user gave one."""
        kind = type(self.backend).__name__.lower()
        return kind if kind in ("session", "batch") else None

    @property
    def path(self) -> Path | None:
        """The ledger's file; None for memory."""
        if self.ledger is None and not self.is_rehearsal:
            return _file("QTB_LEDGER", os.environ.get("QTB_LEDGER", _DEFAULT_LEDGER))
        return None if self.ledger == _IN_MEMORY else self.ledger

    def without_objects(self) -> Destination:
        """The same by names: a device object knows the service, and the service a token."""
        if isinstance(self.backend, str) or self.is_rehearsal:
            return self
        named = copy(self)
        object.__setattr__(named, "backend", self.name)
        device = getattr(self.backend, "_backend", self.backend)
        if getattr(device.options, "use_fractional_gates", False):
            object.__setattr__(named, "fractional_gates", True)
        return named

    def open(self, *, mode: str, run: str) -> Device:
        """Connects with the device; a session of the run that an earlier process has left open goes on.

        Raises:
            ImportError: If qiskit-ibm-runtime is not installed.
            ValueError: If there is no such device.
            NotAuthorized, ServiceUnavailable: If there is no way to the service.
        """
        path, left_open = self.path, None
        if path is not None and path.exists():
            ledger = Ledger(path)
            left_open = ledger.open_session(run, self.name, mode)
            ledger.close()
        try:
            return self._opened(mode, left_open)
        except ServiceFault as fault:
            raise explained(fault, f"connect with {self.name}", f"Ledger({str(path)!r})") from None

    def _opened(self, mode: str, session_id: str | None) -> Device:
        try:
            from qiskit_ibm_runtime import Batch, Session
        except ImportError as error:
            raise ImportError(f"An IBM backend {EXTRA_IS_MISSING}") from error
        device = self.backend
        if isinstance(device, str):
            device = (
                fake_device(device)
                if self.is_rehearsal
                else _real_device(device, self.account, self.instance, fractional_gates=bool(self.fractional_gates))
            )
        if self.fractional_gates and not folds_rzz(getattr(device, "_backend", device).target):
            raise ValueError(
                f"fractional_gates: got True, but {self.name!r} has no rx and rzz; take another device, or (for an object) "
                "open it by service.backend(name, use_fractional_gates=True)."
            )
        is_session = isinstance(device, (Session, Batch))
        if self.is_rehearsal:
            return LocalDevice(device._backend if is_session else device)
        if is_session:
            return CloudDevice(device._backend, mode=device, max_time=None)
        return CloudDevice(device, mode=mode, max_time=self.max_time, session_id=session_id)


def _file(name: str, ledger: Any) -> Any:
    """The ledger's file as a path; None and the word for memory as they are.

    Raises:
        TypeError, ValueError: If there can be no such file.
    """
    if ledger is None or ledger == _IN_MEMORY:
        return ledger
    path = Path(instance_of(name, ledger, (str, os.PathLike), f"a file's path, {_IN_MEMORY!r}, or None"))
    if path.is_dir():
        raise ValueError(
            f"{name}: got {str(ledger)!r}, which is a folder; give a file in it, such as {_DEFAULT_LEDGER!r}."
        )
    if not path.parent.is_dir():
        raise ValueError(f"{name}: got {str(ledger)!r}, expected a file in a folder that exists; make it first.")
    return path


def _real_device(name: str, account: str | None, instance: str | None, *, fractional_gates: bool) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError
    from qiskit_ibm_runtime import QiskitRuntimeService

    _log.info("Connecting with IBM's service; without an answer its client tries again by itself for a minute at most")
    service = None
    known: list[str] = []
    try:
        with _masked_logs(None), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unable to retrieve IBM Cloud access token")
            service = QiskitRuntimeService(name=account, instance=instance)
            _prepare(service)
            listed = [
                (client, {entry["name"] for entry in client.list_backends()})
                for client in getattr(service, "_api_clients", {}).values()
            ]
            known = sorted(set().union(*(names for _, names in listed)))
            try:
                return service.backend(name, use_fractional_gates=fractional_gates)
            except QiskitBackendNotFoundError:
                for client, names in listed:
                    if name in names:  # then its description does not come, which the client does not say
                        client.backend_configuration(name, refresh=True)
                raise
    except Exception as error:
        raise_alone(_why_not_connected(error, name, known, service))


def _why_not_connected(error: Exception, name: str, known: list[str], service: Any) -> Exception:
    """What to tell about a device that could not be opened."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "QiskitBackendNotFoundError" in names:
        if name in known:
            return HardwareError(
                f"The service has {name!r}, but its client cannot read the description of it; update qiskit-ibm-runtime, or "
                "take another device. Nothing was submitted."
            )
        return ValueError(
            f"backend: got {name!r}, but the devices of this account and instance are: {', '.join(known) or 'none'}"
            f"{did_you_mean(name, known) or '.'}"
        )
    fault = fault_of(error, service)
    if "IBMInputValueError" in names and "fractional gates" in str(error):
        return ValueError(f"fractional_gates: got True, but {name!r} has none; leave it out, or take another device.")
    if "IBMInputValueError" in names:
        return ValueError(f"instance: {fault}; name one of the account's, or leave it out.")
    if "AccountsError" in names and fault.fault is Fault.REFUSED and not fault.remedy:
        return ValueError(
            f"There is no account to use ({fault}); save one with QiskitRuntimeService.save_account(...), or set "
            "QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE."
        )
    return fault
