"""What a failed request means, in true words and without secrets.

The same trouble arrives as a dozen exceptions of IBM's client and of what lies below it, and what they say may hold the
account's key: a server or proxy that echoes a request sends it back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn
from urllib.parse import quote

from .errors import HardwareError

__all__ = ["Fault", "ServiceFault", "fault_of", "masked", "meaning_of", "raise_alone", "secrets_of", "shortened"]

_MOST_CHARACTERS = 600
_SOME = 3


class Fault(Enum):
    """What a failed request means."""

    TRANSIENT = "try again"
    MISSING = "there is no such thing, or not yet"
    SESSION_CLOSED = "the session takes no more jobs"
    UNAUTHORIZED = "the account is not accepted"
    REFUSED = "the same request will fail again"


class ServiceFault(HardwareError):  # noqa: N818
    """A request failed; the message holds no token.

    Attributes:
        fault: What it means.
        certain: Whether it is certain that the request was not carried out.
        remedy: What helps, in whole sentences; empty where only time does.
        tries: How often the request is worth making in all; None: as its fault has it.
    """

    def __init__(
        self, fault: Fault, message: str, *, certain: bool = False, remedy: str = "", tries: float | None = None
    ) -> None:
        super().__init__(message)
        self.fault, self.certain, self.remedy = fault, certain, remedy
        lasting = fault not in (Fault.TRANSIENT, Fault.MISSING)
        self.tries = tries if tries is not None else 1.0 if lasting else float("inf")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fault, str(self)), vars(self)


@dataclass(frozen=True)
class Meaning:
    """What an exception means, what helps, and how often the request is worth making (None: as the fault has it)."""

    fault: Fault
    remedy: str = ""
    tries: float | None = None


_KEY = (
    "Make a new API key on https://quantum.cloud.ibm.com and save it with QiskitRuntimeService.save_account(..., "
    "overwrite=True), or set QISKIT_IBM_TOKEN."
)
_INSTANCE = (
    "The key is accepted, but not for this: see on https://quantum.cloud.ibm.com whether the account has access to the "
    "instance and the device, and whether its plan allows it."
)
_NOT_THE_KEY = (
    "The key is valid, so it is not that: see whether it may use this instance (instance=), and whether a proxy on the way "
    "refuses; what passes by itself is tried again when the same is run again."
)
_TIME = (
    "The key is accepted, but the time of its instance is used up: wait until the plan's time is renewed (the open plan "
    "counts 28 days back), or name another instance with instance=."
)
_PROXY = (
    "Between here and the service is a proxy that answers in its place: log in to it (HTTPS_PROXY=http://USER:PASSWORD@HOST "
    "or proxies= of the saved account), or take another network."
)
_CERTIFICATE = (
    "The server's certificate is not trusted: set the machine's clock; behind a proxy that reads along, name its "
    "certificate in REQUESTS_CA_BUNDLE."
)
_NETWORK = "See whether this machine is online, and whether a proxy must be named (HTTPS_PROXY)."
_SMALLER = "Send less in one job: a smaller batch, or a smaller IBMBackend(..., limits=Limits(megabytes=...))."
_LOCKED = "The account or instance is locked: https://quantum.cloud.ibm.com says why."
_STRANGE = "What answers is not the service, or speaks another version of its language: update qiskit-ibm-runtime."
_FULL = "The service takes only so many jobs at once: some must end first."
_NO_DEVICE = (
    "The service does not list the device: https://quantum.cloud.ibm.com says whether the instance still has it."
)
_GONE = "The service does not keep it any more."
_ASKED = "What was asked for does not suit the service: change the circuit, the options or the device as it says."

_STATUSES = {
    400: Meaning(Fault.REFUSED, _ASKED),
    403: Meaning(Fault.REFUSED, _INSTANCE),
    404: Meaning(Fault.MISSING),
    407: Meaning(Fault.REFUSED, _PROXY),
    408: Meaning(Fault.TRANSIENT),
    410: Meaning(Fault.MISSING, _GONE, 1),
    413: Meaning(Fault.REFUSED, _SMALLER),
    423: Meaning(Fault.REFUSED, _LOCKED),
    425: Meaning(Fault.TRANSIENT),
    429: Meaning(Fault.TRANSIENT),
}
# What IBM's service says where a status alone does not tell (old and new numbers of https://quantum.cloud.ibm.com/docs/errors).
_USED_UP = re.compile(r"usage limit|quota|no more time|time .{0,20}used up|credits|code\W{0,4}4317\b", re.IGNORECASE)
_QUEUE_IS_FULL = re.compile(
    r"maximum number .{0,20}(pending|concurrent)? ?jobs|code\W{0,4}(1012|3458)\b", re.IGNORECASE
)
_SESSION = re.compile(r"session.*(closed|not accepting)", re.IGNORECASE | re.DOTALL)
_WEB_PAGE = re.compile(r"<(!doctype|html|head|body)\b", re.IGNORECASE)

_SECRETS = (
    (re.compile(r"(?i)\b(bearer|apikey|basic|token)(\W{1,6})[\w.~+/=-]{16,}"), r"\1\2***"),
    (re.compile(r"\beyJ[\w-]{8,}(\.[\w-]+)+"), "***"),  # a JSON web token
    (re.compile(r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)"), "***"),  # USER:PASSWORD@ of a proxy
)


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, nor anything that has the form of one."""
    for secret in secrets:
        for form in (secret, quote(secret, safe="")):
            text = text.replace(form, "***")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def secrets_of(service: Any) -> list[str]:
    """What of a service must not be shown: its key, access tokens, and passwords of proxies."""
    account = getattr(service, "_account", None)
    proxies = getattr(account, "proxies", None)
    secrets = [
        os.environ.get("QISKIT_IBM_TOKEN"),
        getattr(account, "token", None),
        getattr(proxies, "password_ntlm", None),
    ]
    if service is None:  # it could not be made, and might have been any of these
        with suppress(Exception):
            from qiskit_ibm_runtime import QiskitRuntimeService

            secrets += [saved.get("token") for saved in QiskitRuntimeService.saved_accounts().values()]
    for client in getattr(service, "_api_clients", {}).values():
        auth = getattr(getattr(client, "_session", None), "auth", None)
        manager = getattr(auth, "manager", getattr(auth, "tm", None))
        secrets += [getattr(manager, "access_token", None), getattr(manager, "refresh_token", None)]
    return [secret for secret in secrets if isinstance(secret, str) and len(secret) > 3 and secret != "not_supported"]


def shortened(text: str) -> str:
    """What a client says, in one line; of a web page only that it is one."""
    page = _WEB_PAGE.search(text)
    text = " ".join(text.split()) if page is None else f"{' '.join(text[: page.start()].split())} (a web page)"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def raise_alone(error: BaseException) -> NoReturn:
    """Raises without a context: ``from None`` only hides it, and what the client says may hold a key."""
    try:
        raise error
    except BaseException:
        error.__context__ = None
        raise


def fault_of(
    error: Exception, service: Any, *, before: BaseException | None = None, certain: bool = True
) -> ServiceFault:
    """What the client raised, as a fault without tokens in it.

    Args:
        error: The exception.
        service: The client's object; None: it could not be made.
        before: What was being handled before the request, and has nothing to do with it.
        certain: Whether it is certain that the request was not carried out.
    """
    if type(error).__name__ == "QiskitBackendNotFoundError":
        error = _why_there_is_no_device(error, service)
    meaning, said = meaning_of(error, before=before), _said_by(error, before)
    if meaning.fault is Fault.UNAUTHORIZED and meaning.tries != 1:
        meaning, more = _meaning_of_401(error, before, service)
        said += more
    said = shortened(masked(said, secrets_of(service)))
    return ServiceFault(meaning.fault, said, certain=certain, remedy=meaning.remedy, tries=meaning.tries)


def meaning_of(error: BaseException, *, before: BaseException | None = None, key_is_good: bool = False) -> Meaning:
    """What an exception of the client, or of what lies below it, means.

    Args:
        error: The exception.
        before: What was being handled before the request, and has nothing to do with it.
        key_is_good: Whether IBM's identity service has just said that the account's key is valid.
    """
    causes = list(_causes(error, before))
    names = {kind.__name__ for each in causes for kind in type(each).__mro__}
    said = " ".join(map(str, causes))
    status = next(filter(None, map(_status, causes)), 0)
    if "ApiException" in names and status in (400, 401):  # so says the identity service
        return Meaning(Fault.UNAUTHORIZED, _KEY)
    if status == 401 or "IBMNotAuthorizedError" in names:  # it may be right a moment later, or come from a proxy
        return Meaning(Fault.UNAUTHORIZED, _NOT_THE_KEY if key_is_good else _KEY, _SOME)
    if "RuntimeJobNotFound" in names:
        return Meaning(Fault.MISSING)
    answered = bool(status) or not names & {"RequestsApiError", "OSError"}
    # The service refuses, or the client without asking it.
    if _SESSION.search(str(error)) and answered and status < 500:
        return Meaning(Fault.SESSION_CLOSED)
    if 400 <= status < 500:
        return _meaning_of_refusal(status, said)
    return Meaning(Fault.TRANSIENT) if status >= 500 else _meaning_without_answer(causes, names, said)


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
        return meaning_of(refusal, before=error), f"; IBM's identity service: {_said_by(refusal, error)}"
    return meaning_of(error, before=before, key_is_good=True), "; IBM's identity service accepts the key"


def _meaning_without_answer(causes: Sequence[BaseException], names: set[str], said: str) -> Meaning:
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return Meaning(Fault.REFUSED, _CERTIFICATE)
    if "ProxyError" in names and "407" in said:
        return Meaning(Fault.REFUSED, _PROXY)
    if "JSONDecodeError" in names:
        is_page = any(_WEB_PAGE.search(str(getattr(each, "doc", ""))) for each in causes)
        return Meaning(Fault.TRANSIENT, _PROXY if is_page else _STRANGE, _SOME)
    if names & {"RequestsApiError", "OSError"}:
        return Meaning(Fault.TRANSIENT, _NETWORK)
    if "QiskitBackendNotFoundError" in names:
        return Meaning(Fault.TRANSIENT, _NO_DEVICE, _SOME)
    return Meaning(Fault.REFUSED)


def _said_by(error: BaseException, before: BaseException | None = None) -> str:
    """What an exception says; for one that hides another, what that says."""
    causes = list(_causes(error, before))
    hides = type(error).__name__ in ("InvalidAccountError", "QiskitBackendNotFoundError") and len(causes) > 1
    said = causes[1] if hides else error
    return f"{type(said).__name__}: {said}"


def _meaning_of_refusal(status: int, said: str) -> Meaning:
    if _QUEUE_IS_FULL.search(said):
        return Meaning(Fault.TRANSIENT, _FULL)
    if _USED_UP.search(said) and status != 429:
        return Meaning(Fault.REFUSED, _TIME)
    if _WEB_PAGE.search(said) and (status not in _STATUSES or status in (400, 403, 404)):  # the service answers in JSON
        return Meaning(Fault.TRANSIENT, _PROXY, _SOME)
    return _STATUSES.get(status, Meaning(Fault.REFUSED, _ASKED))


def _causes(error: BaseException, before: BaseException | None) -> Iterator[BaseException]:
    # The client hides what it wraps ("from None"), but Python keeps it; and also what was being handled before the request.
    seen: list[BaseException | None] = [None, before]
    each: BaseException | None = error
    while each not in seen:
        assert each is not None
        yield each
        seen.append(each)
        each = each.__cause__ or each.__context__


def _status(error: BaseException) -> int:
    """The HTTP status of an answer; 0 if there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status_code", None)
    return status if isinstance(status, int) and status > 0 else 0
