"""IBM's devices through qiskit-ibm-runtime; the only module that imports it.

A :class:`Device` does single requests to the service and nothing more: it does not wait, retry or keep anything. What
goes wrong it says in terms of :class:`Fault`, because the same thing arrives as a dozen exceptions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timezone
from functools import cache, cached_property, partial, reduce
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit.library import RZZGate

from ...arguments import did_you_mean
from ..results import WrongResult
from ..transpiling import bounded_gates, require_bounded_angles
from .errors import HardwareError
from .faults import Fault, Meaning, ServiceFault, masked, meaning_of, raise_alone, said_by, shortened
from .ledger import TAG, digest

__all__ = [
    "CloudDevice",
    "Device",
    "Fault",
    "LocalDevice",
    "ServiceFault",
    "checked_options",
    "fake_device",
    "open_device",
]

_EXTRA = "needs qiskit-ibm-runtime, which is not installed; install the extra: pip install 'qiskit-torch-bridge[ibm]'."
_log = logging.getLogger(__name__)

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_POSTED = threading.local()  # ``job``: whether this thread has begun to send a job to the service
_LOGS_OF_CLIENT = ("qiskit_ibm_runtime.qiskit_runtime_service", "qiskit_ibm_runtime.api.client")


class Device(ABC):
    """Something that takes jobs.

    Attributes:
        name: Its name.
        device: The ``BackendV2``, with the target to transpile for.
        is_local: Whether jobs run in this process: they are free, done at once, and gone with it.
    """

    name: str
    device: Any
    is_local: bool

    @property
    def identity(self) -> str:
        """What tells the device from others, in every process: with fractional gates it measures other circuits."""
        fractional = getattr(self.device.options, "use_fractional_gates", False)
        return self.name if fractional is False else f"{self.name}, use_fractional_gates={fractional}"

    def refresh(self) -> None:  # noqa: B027 - simulated ones stay as they are
        """Reads the device's properties and target anew."""

    @property
    def rep_delay(self) -> float | None:
        """The default delay between repetitions in seconds, where the device says so."""
        return getattr(self.device, "default_rep_delay", None)

    def check(self, circuits: Sequence[QuantumCircuit]) -> None:
        """Checks that the device can run the circuits as they are, by IBM's own validators.

        Raises:
            ValueError: If not.
        """
        from qiskit_ibm_runtime.utils import validate_isa_circuits

        target = self.device.target
        bounded = bounded_gates(target)
        try:
            if self.is_local and "rzz" not in bounded:  # a simulator's rzz takes any angle, as IBM's client has it too
                circuits = [_with_rzz_of_zero(circuit) for circuit in circuits]
            validate_isa_circuits(list(circuits), target)
            require_bounded_angles(circuits, bounded)
            for circuit in circuits:
                if hasattr(self.device, "check_faulty"):
                    self.device.check_faulty(circuit)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def check_angles(self, primitive: str, pubs: Sequence[Any]) -> None:
        """Checks that the device can run the PUBs of a primitive with the angles that they have.

        Raises:
            ValueError: If not.
        """
        from qiskit.primitives.containers.estimator_pub import EstimatorPub
        from qiskit.primitives.containers.sampler_pub import SamplerPub
        from qiskit_ibm_runtime.utils import validate_rzz_pubs

        if self.is_local and "rzz" not in bounded_gates(self.device.target):
            return
        kind = SamplerPub if primitive == "sampler" else EstimatorPub
        try:
            # Where there are no parameters, one PUB stands for all rows.
            validate_rzz_pubs([kind.coerce(pub) for pub in {id(pub): pub for pub in pubs}.values()])
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def check_preparation(self, primitive: str, pubs: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Has IBM's client prepare a job of the PUBs, as far as it can without sending it (twirling, decoupling, boxes).

        Raises:
            ValueError: If it cannot.
        """
        if primitive == "sampler":
            from qiskit_ibm_runtime.executor_sampler.prepare import prepare
        else:
            from qiskit_ibm_runtime.executor_estimator.prepare import prepare
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the job itself will warn
                # One shot, which for an Estimator is the precision of one.
                prepare(pubs, checked_options(primitive, options), 1, self.is_local, self.device)
        except Exception as error:  # from whichever package it comes
            others = ", or a device without fractional gates (use_fractional_gates=False)"
            raise ValueError(
                f"{self.name}: IBM's {primitive.title()} cannot prepare the transpiled circuit with options={dict(options)} "
                f"({type(error).__name__}: {error}). Nothing was submitted; take other options"
                f"{others if 'fractional' in str(error) else ' or another device'}."
            ) from error

    def calibrated(self) -> str:
        """When the device was last calibrated (ISO 8601, UTC); empty where it does not say."""
        properties = getattr(self.device, "properties", None)
        found = None if properties is None else self._properties(properties)
        date = getattr(found, "last_update_date", None)
        return "" if date is None else date.astimezone(timezone.utc).isoformat(timespec="seconds")

    def _properties(self, properties: Any) -> Any:
        return properties()

    def submit(
        self, primitive: str, pubs: Sequence[Any], *, shots: int, options: Mapping[str, Any], tag: str, seed: int
    ) -> tuple[str, str | None]:
        """Sends a job; returns its id, and that of the session or batch.

        Args:
            primitive: ``"sampler"`` or ``"estimator"``.
            pubs: The PUBs.
            shots: Shots a circuit; an Estimator is given the precision ``1 / sqrt(shots)``.
            options: The primitive's.
            tag: What to find the job by.
            seed: For simulated devices.
        """
        runner = _primitive(primitive)(mode=self._mode(), options=checked_options(primitive, options))
        runner.options.environment.job_tags = [*runner.options.environment.job_tags, tag]
        if self.is_local:
            runner.options.simulator.seed_simulator = seed
            runner.options.simulator.angle_decimals = 12  # the default rounds finite differences away
        # An Estimator rounds 1 / precision**2 up, and must not round the last digit's error up.
        amount = {"shots": shots} if primitive == "sampler" else {"precision": (shots * (1 - 1e-9)) ** -0.5}
        self._sent(job := runner.run(pubs, **amount))
        return job.job_id(), self.session_id

    @abstractmethod
    def _mode(self) -> Any:
        """What primitives take as ``mode``."""

    @abstractmethod
    def _sent(self, job: Any) -> None:
        """A job was sent."""

    @property
    @abstractmethod
    def session_id(self) -> str | None:
        """The id of the session or batch that jobs go to, if there is one."""

    @abstractmethod
    def find(self, tag: str) -> list[str]:
        """The ids of the jobs with a tag, oldest first."""

    @abstractmethod
    def session_of(self, job_id: str) -> str | None:
        """The id of the session or batch that a job is part of, if it is part of one."""

    @abstractmethod
    def state(self, job_id: str) -> tuple[str, str]:
        """``"waiting"``, ``"done"``, ``"failed"`` or ``"cancelled"``; and what the service says of it."""

    @abstractmethod
    def result(self, job_id: str) -> Any:
        """The result of a job that is done, a ``PrimitiveResult``.

        Raises:
            WrongResult: If what has arrived is no result, or another job's.
        """

    @abstractmethod
    def usage(self, job_id: str) -> float | None:
        """The billed seconds on the quantum processor; None where the service has not settled them yet."""

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Cancels a job; one that has ended stays as it is."""

    @abstractmethod
    def renew_session(self) -> str | None:
        """Opens a session or batch in place of one that was closed; returns its id."""

    @abstractmethod
    def close(self) -> str | None:
        """Closes the session or batch if it is ours; returns the id of what was closed."""


class LocalDevice(Device):
    """A simulated device in this process: a fake IBM device, an ``AerSimulator``, any ``BackendV2``."""

    is_local = True
    session_id = None

    def __init__(self, device: Any) -> None:
        self.device, self.name = device, device.name
        self._jobs: dict[str, Any] = {}

    @cached_property
    def identity(self) -> str:
        """Its name, gates and noise: simulated devices of one name are often different ones."""
        target = self.device.target
        gates = [
            [name, list(qubits or ()), getattr(properties, "duration", None), getattr(properties, "error", None)]
            for name in sorted(target.operation_names)
            for qubits, properties in sorted((target[name] or {None: None}).items(), key=str)
        ]
        noise = getattr(getattr(self.device, "options", None), "noise_model", None)
        return digest(self.name, gates, None if noise is None else repr(noise.to_dict()))

    def _mode(self) -> Any:
        return self.device

    def _sent(self, job: Any) -> None:
        self._jobs[job.job_id()] = job

    def find(self, tag: str) -> list[str]:
        return []

    def session_of(self, job_id: str) -> str | None:
        return None

    def state(self, job_id: str) -> tuple[str, str]:
        return ("done", "") if job_id in self._jobs else ("failed", "it ran in a process that is no more")

    def result(self, job_id: str) -> Any:
        return self._jobs.pop(job_id).result()

    def usage(self, job_id: str) -> float | None:
        return None

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def renew_session(self) -> str | None:
        return None

    def close(self) -> str | None:
        return None


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
        self._kind = mode if isinstance(mode, str) else "theirs"
        self._max_time = max_time
        self._session = None if isinstance(mode, str) else mode
        self._left_open = session_id
        self._jobs: dict[str, Any] = {}
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

    def submit(
        self, primitive: str, pubs: Sequence[Any], *, shots: int, options: Mapping[str, Any], tag: str, seed: int
    ) -> tuple[str, str | None]:
        _POSTED.job = not _prepare(self.service)  # where it cannot be seen, it may be
        with self._request(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*currently has a status of.*")
            return super().submit(primitive, pubs, shots=shots, options=options, tag=tag, seed=seed)

    def _sent(self, job: Any) -> None:
        self._jobs[job.job_id()] = job

    def _properties(self, properties: Any) -> Any:
        with self._request():
            return properties(refresh=True)

    def refresh(self) -> None:
        with self._request():
            self.device.refresh()

    def find(self, tag: str) -> list[str]:
        with self._request():
            jobs = self.service.jobs(job_tags=[tag], limit=None, descending=False, instance=self._instance)
        for job in jobs:
            self._jobs[job.job_id()] = job
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
            body = job.result(decoder=_as_it_came())
        try:
            return _decoded(body, job.tags or (), partial(self._sent_as, job))
        except ServiceFault:
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
        if self._kind == "theirs":
            raise HardwareError(
                f"The session or batch {self.session_id} that was given takes no more jobs. What was submitted is kept; "
                "give a new one, or IBMBackend(name, mode='session'), which renews its own."
            )
        self._session = None
        return None if self._mode() is self.device else self.session_id

    def close(self) -> str | None:
        if self._session is None or self._kind == "theirs":
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
            raise_alone(_fault(error, self.service, before=before, certain=not getattr(_POSTED, "job", True)))

    def _without_token(self, text: str) -> str:
        return masked(text, _secrets(self.service))


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


def _fault(
    error: Exception, service: Any, *, before: BaseException | None = None, certain: bool = True
) -> ServiceFault:
    """What the client raised, as a fault without tokens in it."""
    if type(error).__name__ == "QiskitBackendNotFoundError":
        error = _why_there_is_no_device(error, service)
    meaning, said = meaning_of(error, before=before), said_by(error, before)
    if meaning.fault is Fault.UNAUTHORIZED and meaning.tries != 1:
        meaning, more = _meaning_of_401(error, before, service)
        said += more
    said = shortened(masked(said, _secrets(service)))
    return ServiceFault(meaning.fault, said, certain=certain, remedy=meaning.remedy, tries=meaning.tries)


def _why_there_is_no_device(error: Exception, service: Any) -> Exception:
    """Asks for the list of devices: the client says that there is none such whenever the list does not come."""
    for client in getattr(service, "_api_clients", {}).values():
        try:
            client.list_backends()
        except Exception as cause:
            return cause
    return error


def _meaning_of_401(error: Exception, before: BaseException | None, service: Any) -> tuple[Meaning, str]:
    """Asks IBM's identity service about the key: the service refuses too when that is out of order, and so may a proxy."""
    session = getattr(getattr(service, "_active_api_client", None), "_session", None)
    manager = getattr(getattr(session, "auth", None), "manager", None)
    if manager is None:
        return meaning_of(error, before=before), ""
    try:
        manager._save_token_info(manager.request_token())
    except Exception as refusal:
        return meaning_of(refusal, before=error), f"; IBM's identity service: {said_by(refusal, error)}"
    return meaning_of(error, before=before, key_is_good=True), "; IBM's identity service accepts the key"


def _secrets(service: Any) -> list[str]:
    """What of a service must not be shown: its key, access tokens, and passwords of proxies."""
    account = getattr(service, "_account", None)
    proxies = getattr(account, "proxies", None)
    found = [
        os.environ.get("QISKIT_IBM_TOKEN"),
        getattr(account, "token", None),
        getattr(proxies, "password_ntlm", None),
    ]
    if service is None:  # it could not be made, and might have been any of these
        with suppress(Exception):
            from qiskit_ibm_runtime import QiskitRuntimeService

            found += [saved.get("token") for saved in QiskitRuntimeService.saved_accounts().values()]
    for client in getattr(service, "_api_clients", {}).values():
        auth = getattr(getattr(client, "_session", None), "auth", None)
        manager = getattr(auth, "manager", getattr(auth, "tm", None))
        found += [getattr(manager, "access_token", None), getattr(manager, "refresh_token", None)]
    return [secret for secret in found if isinstance(secret, str) and len(secret) > 3 and secret != "not_supported"]


@contextmanager
def _masked_logs(service: Any) -> Iterator[None]:
    """Within it, what the client logs of an answer holds no token."""

    def mask(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (hidden := masked(said, _secrets(service))) != said:
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


def open_device(
    backend: Any, *, account: str | None, instance: str | None, mode: Any, max_time: int | None, session_id: str | None
) -> Device:
    """The device that a name or an object means.

    Args:
        backend: A name (``"ibm_fez"``, ``"fake_manila"``), a ``BackendV2``, a ``Session`` or a ``Batch``.
        account: The name that the account was saved under; None: the default one, or the environment's.
        instance: The instance's name or CRN; None: the account's.
        mode: ``"job"``, ``"session"`` or ``"batch"``.
        max_time: How long a session or batch may be open, in seconds.
        session_id: One that an earlier process has left open.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        TypeError, ValueError: If there is no such device.
        ServiceFault: If the account is not accepted, or the service cannot be reached.
    """
    try:
        from qiskit_ibm_runtime import Batch, IBMBackend, Session
    except ImportError as error:
        raise ImportError(f"An IBM backend {_EXTRA}") from error
    from qiskit.providers import BackendV2

    if isinstance(backend, (Session, Batch)):
        device = backend._backend
        if not isinstance(device, IBMBackend):
            return LocalDevice(device)
        return CloudDevice(device, mode=backend, max_time=None)
    if isinstance(backend, str):
        if backend.startswith("fake_"):
            return LocalDevice(fake_device(backend))
        backend = _real_device(backend, account, instance)
    if isinstance(backend, IBMBackend):
        return CloudDevice(backend, mode=mode, max_time=max_time, session_id=session_id)
    if isinstance(backend, BackendV2):
        return LocalDevice(backend)
    raise TypeError(
        f"backend: got {backend!r} ({type(backend).__name__}), expected a device's name, a BackendV2, a Session or a Batch."
    )


def is_real(backend: Any) -> bool:
    """Whether a device, session or batch is one of the service's."""
    from qiskit_ibm_runtime import IBMBackend

    return isinstance(getattr(backend, "_backend", backend), IBMBackend)


def _real_device(name: str, account: str | None, instance: str | None) -> Any:
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
                return service.backend(name)
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
    fault = _fault(error, service)
    if "IBMInputValueError" in names:
        return ValueError(f"instance: {fault}; name one of the account's, or leave it out.")
    if "AccountsError" in names and fault.fault is Fault.REFUSED and not fault.remedy:
        return ValueError(
            f"There is no account to use ({fault}); save one with QiskitRuntimeService.save_account(...), or set "
            "QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE."
        )
    return fault


def fake_device(name: str) -> Any:
    """The fake device of that name, a snapshot of a real one.

    Args:
        name: ``"manila"``, ``"fake_manila"`` and ``"FakeManilaV2"`` are the same.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        ValueError: If there is none of that name.
    """
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError as error:
        raise ImportError(f"backend 'fake:NAME' {_EXTRA}") from error
    devices = {
        name_of_device.removeprefix("fake_"): device
        for device in vars(fake_provider).values()
        if isinstance(device, type) and isinstance(name_of_device := getattr(device, "backend_name", None), str)
    }
    wanted = name.lower().removeprefix("fake").removeprefix("_").removesuffix("v2")
    if wanted not in devices:
        expected = "the name of a fake device"
        if not (guess := did_you_mean(wanted, devices)):
            expected, guess = f"one of {', '.join(sorted(devices))}", "."
        raise ValueError(f"backend: got 'fake:{name}', expected {expected} after the colon{guess}")
    return devices[wanted]()


_PLAIN = "; SamplerBackend and EstimatorBackend take IBM's primitives with it, without a ledger and caps"
_UNNAMED = "a ledger has no name for it"
_UNFIT: dict[str, tuple[tuple[Any, ...], str]] = {
    "execution.init_qubits": ((True,), "a shot would begin in the state that the one before has left behind"),
    "execution.meas_type": (("classified",), "values are read from bits, not from the points of a measured signal"),
    "environment.private": (
        (False,),
        f"the result of a private job can be read only once, so that a lost connection would lose it{_PLAIN}",
    ),
    "environment.max_execution_time": (
        (None,),
        "IBM's client does not heed it; give max_execution_time beside environment",
    ),
    "experimental": (({},), f"what it does to results and prices is not known{_PLAIN}"),
    "simulator.seed_simulator": ((None,), "the layer's seed is used; give QuantumLayer(..., seed=...)"),
    "simulator.angle_decimals": ((5,), "angles are simulated as they are, not rounded"),
    "simulator.layer_noise_model": ((None,), f"{_UNNAMED}; give a simulated device with noise"),
    "resilience.layer_noise_model": ((None,), f"{_UNNAMED}{_PLAIN}"),
    "resilience.pec_mitigation": (
        (False,),
        f"its cost is not known before it has run, so that no cap could be kept; use zne_mitigation{_PLAIN}",
    ),
    "resilience.zne.amplifier": (
        ("gate_folding", "gate_folding_front", "gate_folding_back"),
        f"it needs a layer_noise_model, and {_UNNAMED}{_PLAIN}",
    ),
}
"""The options with which results could not be read or prices not be known: the values that are taken, and why no others.

All others are taken: shots, precision, twirling, delays, mitigation and maximal times are in the price; decoupling, logs,
tags, images and timings change neither results' form nor executions. A test names each option of IBM's.
"""

_RANGES: dict[str, tuple[float, float]] = {
    "default_shots": (1, 2**31 - 1),
    "default_precision": (2**-15, 1.0),  # of one shot; below it are more shots than any job takes
    "max_execution_time": (1, math.inf),
    "execution.rep_delay": (0.0, 1.0),  # seconds: devices have some hundred microseconds
}


def checked_options(primitive: str, options: Any) -> Any:
    """The primitive's options as IBM's own object.

    Args:
        primitive: ``"sampler"`` or ``"estimator"``.
        options: A mapping, or an options object of IBM's for this primitive (of the deprecated primitives too).

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        TypeError: If they are neither, or the other primitive's.
        ValueError: If there is no such option, it does not take that value, or it is one that is not supported here.
    """
    try:
        from pydantic import ValidationError
        from qiskit_ibm_runtime.options_models import EstimatorOptions, SamplerOptions
    except ImportError as error:
        raise ImportError(f"An IBM backend {_EXTRA}") from error
    Options = SamplerOptions if primitive == "sampler" else EstimatorOptions  # noqa: N806
    given = _options_as_mapping(primitive, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is deprecated is refused below
            checked = Options(**given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        unknown = [str(each["loc"][-1]) for each in error.errors() if each["type"] == "extra_forbidden"]
        guess = did_you_mean(unknown[0], Options.model_fields) if unknown else ""
        raise ValueError(
            f"options: {wrong}; expected options of IBM's {primitive.title()}: {', '.join(Options.model_fields)}"
            f"{guess or '.'}"
        ) from None
    for path, (taken, why) in _UNFIT.items():
        value = _option(checked, path)
        if value is not _ABSENT and value not in taken:
            raise ValueError(f"options: got {path} = {value!r}, expected {' or '.join(map(repr, taken))}: {why}.")
    for path, (least, most) in _RANGES.items():
        value = _option(checked, path)
        if value not in (_ABSENT, None) and not least <= value <= most:
            raise ValueError(f"options: got {path} = {value!r}, expected a number from {least:g} to {most:g}.")
    return checked


_ABSENT = object()


def _option(options: Any, path: str) -> Any:
    """An option by its path, such as ``"execution.rep_delay"``; ``_ABSENT`` where this primitive has none of that name."""
    for name in path.split("."):
        options = getattr(options, name, _ABSENT)
    return options


def _options_as_mapping(primitive: str, options: Any) -> dict[str, Any]:
    """What has been set in options: in a mapping, in a model, or in a dataclass of the deprecated primitives."""
    kind = type(options).__name__
    if kind in ("SamplerOptions", "EstimatorOptions", "ExecutorOptions"):
        if kind != f"{primitive.title()}Options":
            raise TypeError(
                f"options: got {kind}, but primitive={primitive!r} takes {primitive.title()}Options; give those, or the "
                "other primitive."
            )
        return options.model_dump(exclude_unset=True) if hasattr(options, "model_dump") else _set_fields(options)
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(
            f"options: got {options!r} ({kind}), expected a mapping of IBM's names to values, such as "
            f'{{"twirling": {{"enable_gates": True}}}}, or IBM\'s {primitive.title()}Options.'
        )
    return dict(options)


def _set_fields(options: Any) -> dict[str, Any]:
    """What has been set in a dataclass of the deprecated primitives, whose fields are ``Unset`` or None otherwise."""
    found = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            value = _set_fields(value)
        if field.name.startswith("_") or value is None or value == {} or type(value).__name__ == "UnsetType":
            continue
        found[field.name] = value
    return found


def finalized_options(primitive: str, options: Mapping[str, Any]) -> Any:
    """The same, with what the resilience level and the primitive itself settle filled in."""
    if primitive == "sampler":
        from qiskit_ibm_runtime.executor_sampler.finalize_options import finalize_sampler_options

        return finalize_sampler_options(checked_options(primitive, options))
    from qiskit_ibm_runtime.executor_estimator.finalize_options import finalize_estimator_options

    return finalize_estimator_options(checked_options(primitive, options))


def _with_rzz_of_zero(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with all angles of ``rzz`` set to zero, which IBM's validator takes on every device."""
    if not any(instruction.operation.name == "rzz" for instruction in circuit.data):
        return circuit
    changed = circuit.copy_empty_like()
    for instruction in circuit.data:
        operation = RZZGate(0.0) if instruction.operation.name == "rzz" else instruction.operation
        changed.append(operation, instruction.qubits, instruction.clbits, copy=False)
    return changed


def _primitive(name: str) -> Any:
    if name == "sampler":
        from qiskit_ibm_runtime.executor_sampler import Sampler

        return Sampler
    from qiskit_ibm_runtime.executor_estimator import Estimator

    return Estimator


@cache
def _as_it_came() -> Any:
    """A decoder that leaves a result as it is."""
    from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    class AsItCame(ResultDecoder):
        @classmethod
        def decode(cls, data: Any) -> Any:
            return data

    return AsItCame


def _decoded(body: Any, tags: Iterable[str], sent_as: Callable[[], Any]) -> Any:
    """The ``PrimitiveResult`` in the body of an answer, as the client decodes it.

    Args:
        body: What came.
        tags: Of the job: the result says which it had.
        sent_as: The program that was sent, or None if it is not known.

    Raises:
        WrongResult: If it is the result of another job.
        Exception: Of many kinds, if it is no result.
    """
    from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS

    if not body:
        raise WrongResult("got an empty answer, expected a result.")
    of_program, *of_primitives = DEFAULT_DECODERS["executor"]
    result = of_program.decode(body)
    echoed = result.passthrough_data["post_processor"]
    options = echoed.get("options") or {}
    theirs = {tag for tag in (options.get("environment") or {}).get("job_tags") or () if tag.startswith(TAG)}
    ours = {tag for tag in tags if tag.startswith(TAG)}
    if theirs and ours and not theirs & ours:
        raise WrongResult(f"got the result of the job with the tag {min(theirs)}, expected {min(ours)}.")
    for number, item in enumerate(result):
        for name, array in item.items():
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise WrongResult(f"item {number}, {name}: got {array.dtype} other than 0 and 1, expected bits.")
    # An Estimator's values, and the bits of randomised circuits, are computed here by what the result brings along.
    if echoed.get("twirling", True) and (sent := sent_as()) is not None:
        _require_as_sent(result, sent)
    return reduce(lambda found, each: each.decode(found) if each.is_applicable(found) else found, of_primitives, result)


def _require_as_sent(result: Any, sent: Any) -> None:
    """Whether a raw result has the arrays that the program asks for, and the recipe is the one that was sent."""
    got, expected = (_recipe(each.passthrough_data) for each in (result, sent))
    if got != expected or result._semantic_role != sent._semantic_role:
        raise WrongResult("got a recipe (passthrough_data) for the values that is not the one which was sent.")
    if len(result) != len(sent.items):
        raise WrongResult(f"got {len(result)} item(s), expected {len(sent.items)}.")
    for number, (item, asked) in enumerate(zip(result, sent.items, strict=True)):
        shapes = {register.name: (*asked.shape, sent.shots, register.size) for register in asked.circuit.cregs}
        for spec in asked.samplex.outputs().specs if hasattr(asked, "samplex") else ():
            if spec.name != "parameter_values":
                shapes[spec.name] = (*asked.shape, *spec.shape[1:])
        for name, shape in shapes.items():
            found = item[name].shape if name in item else "nothing"
            if found != shape:
                raise WrongResult(f"item {number}, {name}: got {found}, expected {shape}.")


def _recipe(passthrough: Any) -> Any:
    """Data that are passed through, without the options, which change no value and may be written in many ways."""
    processor = {name: value for name, value in passthrough["post_processor"].items() if name != "options"}
    return _as_lists({**passthrough, "post_processor": processor})


def _as_lists(tree: Any) -> Any:
    """Nested data with lists for arrays, which the client decodes in results only."""
    from ibm_quantum_schemas.common import CompressedTensorModel  # type: ignore[import-untyped]

    if isinstance(tree, Mapping) and tree.keys() == {"data", "shape", "dtype"}:
        tree = CompressedTensorModel(**tree).to_numpy()
    if isinstance(tree, Mapping):
        return {name: _as_lists(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_as_lists(value) for value in tree]
    return tree.tolist() if isinstance(tree, np.ndarray) else tree
