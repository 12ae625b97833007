"""What the stand-in of IBM's service keeps: its settings, faults, devices, sessions and jobs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ibm_cloud_jobs import ExecutorJob, Outcome

TOKEN = "secret-api-key-that-must-never-be-seen"
INSTANCE = "crn:v1:bluemix:public:quantum-computing:us-east:a/account:instance::"
PLANS = {"open": "free", "premium": "paid", "pay-as-you-go": "paygo"}  # name: pricing
OPEN_PLAN_SECONDS = 600
INTERACTIVE_SECONDS = 60
DEVICES = {  # name in the cloud: class of the fake backend, state
    "ibm_manila": ("FakeManilaV2", "online"),
    "ibm_lagos": ("FakeLagosV2", "online"),
    "ibm_nairobi": ("FakeNairobiV2", "online"),
    "ibm_algiers": ("FakeAlgiers", "online"),
    "ibm_torino": ("FakeTorino", "online"),
    "ibm_lima": ("FakeLimaV2", "paused"),
}
STATUS = {"online": (True, "active"), "paused": (True, "internal"), "offline": (False, "maintenance")}
FINAL = ("Completed", "Failed", "Cancelled")
SECONDS = ("quantum_seconds", "seconds", "qpu_charge_time_seconds")  # of the device, by several names


@dataclass(frozen=True)
class Kind:
    """A kind of fault: which requests it strikes, and how.

    Attributes:
        method: HTTP method; empty for any.
        path: Regular expression that the path, without its prefix, must match as a whole.
        action: ``error``: an answer with ``status``; ``echo``: one that repeats the request, with its headers; ``page``: a
            web page with ``status``. ``drop``: the connection closes without an answer. ``stall``: it
            stays open without one. ``delay``: the answer comes later. ``cut``: half of the body, then the connection
            closes. ``garble``: half of the body as if it were all. The others change what becomes of the job:
            ``fail``, ``over_time``, ``cancel``, ``queue``, ``close_session``, ``offline``, ``hide``.
        late: Whether it strikes after the request has had its effect.
        status: Status of an ``error``, unless the fault names another.
    """

    method: str
    path: str
    action: str
    late: bool = False
    status: int = 0


JOB = "/jobs/[^/]+"
API = "/(jobs|sessions|backends|instances).*"
KINDS = {
    "post_5xx": Kind("POST", "/jobs", "error", status=500),
    "post_5xx_after": Kind("POST", "/jobs", "error", late=True, status=500),
    "post_429": Kind("POST", "/jobs", "error", status=429),
    "post_drop": Kind("POST", "/jobs", "drop"),
    "post_drop_after": Kind("POST", "/jobs", "drop", late=True),
    "post_stall_after": Kind("POST", "/jobs", "stall", late=True),
    "get_5xx": Kind("GET", "/jobs.*", "error", status=500),
    "get_429": Kind("GET", "/jobs.*", "error", status=429),
    "get_drop": Kind("GET", "/jobs.*", "drop"),
    "get_stall": Kind("GET", "/jobs.*", "stall"),
    "job_404": Kind("GET", JOB, "error", status=404),
    "list_lag": Kind("GET", "/jobs", "hide"),
    "results_5xx": Kind("GET", f"{JOB}/results", "error", status=500),
    "results_cut": Kind("GET", f"{JOB}/results", "cut", late=True),
    "results_garbled": Kind("GET", f"{JOB}/results", "garble", late=True),
    "unauthorized": Kind("", API, "error", status=401),
    "echo": Kind("", API, "echo", status=500),
    "page": Kind("", API, "page", status=200),
    "page_after": Kind("", API, "page", late=True, status=200),
    "slow": Kind("", API, "delay"),
    "iam_outage": Kind("POST", "/identity/token", "error", status=503),
    "job_failed": Kind("POST", "/jobs", "fail"),
    "job_over_time": Kind("POST", "/jobs", "over_time"),
    "job_cancelled": Kind("POST", "/jobs", "cancel"),
    "slow_queue": Kind("POST", "/jobs", "queue"),
    "session_closed": Kind("POST", "/jobs", "close_session"),
    "offline": Kind("POST", "/jobs", "offline"),
}


@dataclass
class Fault:
    """One ordered fault.

    Attributes:
        kind: A key of ``KINDS``.
        count: How many requests it strikes; ``None`` for all until ``clear``.
        after: How many matching requests it lets through first.
        path: Regular expression that replaces the kind's.
        status: Status that replaces the kind's.
        retry_after: Value of the header ``Retry-After`` in seconds; ``None`` leaves it out.
        says: What the answer says; empty: that it is a fault.
        seconds: Of a stall, until the connection closes; of ``slow``, of delay; of ``slow_queue``, in the queue.
    """

    kind: str
    count: int | None = 1
    after: int = 0
    path: str = ""
    status: int = 0
    retry_after: int | None = None
    says: str = ""
    seconds: float = 60.0

    def strikes(self, method: str, path: str, late: bool) -> bool:
        """Whether it strikes this request, which then counts."""
        kind = KINDS[self.kind]
        if self.count == 0 or late != kind.late or kind.method not in ("", method):
            return False
        if not re.fullmatch(self.path or kind.path, path):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.count is not None:
            self.count -= 1
        return True


class Refused(Exception):  # noqa: N818
    """The service answers with an error.

    Args:
        status: HTTP status.
        code: IBM's number of the error.
        message: Its text.
        retry_after: Value of the header ``Retry-After``, in seconds.
    """

    def __init__(self, status: int, code: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body: Any = {"errors": [{"code": code, "message": message, "solution": "", "more_info": ""}]}


class NoAnswer(Exception):  # noqa: N818
    """The connection ends without an answer."""


@dataclass
class Device:
    """A fake backend under its name in the cloud."""

    name: str
    fake: str
    state: str

    @cached_property
    def backend(self) -> Any:
        from qiskit_ibm_runtime import fake_provider

        return getattr(fake_provider, self.fake)()

    @cached_property
    def configuration(self) -> dict[str, Any]:
        return self._read(self.backend.conf_filename)

    @cached_property
    def properties(self) -> dict[str, Any]:
        return self._read(self.backend.props_filename)

    def _read(self, filename: str) -> dict[str, Any]:
        return json.loads((Path(self.backend.dirname) / filename).read_text()) | {"backend_name": self.name}


@dataclass
class Session:
    """A session (mode ``dedicated``) or batch."""

    id: str
    mode: str
    backend: str
    max_ttl: float
    opened: float = field(default_factory=time.time)
    activated: float | None = None
    closed: float | None = None
    idle: bool = False  # its interactive time to live has run out; the next job wakes it

    def accepts(self) -> bool:
        """Whether it takes jobs: neither closed nor past its time to live."""
        if self.closed is None and self.activated is not None and time.time() > self.activated + self.max_ttl:
            self.closed = self.activated + self.max_ttl
        return self.closed is None

    def answer(self) -> dict[str, Any]:
        """What ``GET /sessions/ID`` answers."""
        accepts = self.accepts()
        state = "closed" if not accepts else "inactive" if self.idle else "active" if self.activated else "open"
        begun = self.activated or self.opened
        return {
            "id": self.id,
            "backend_name": self.backend,
            "mode": self.mode,
            "state": state,
            "accepting_jobs": accepts,
            "interactive_ttl": INTERACTIVE_SECONDS,
            "max_ttl": self.max_ttl,
            "active_ttl": self.max_ttl,
            "started_at": stamp(begun),
            "closed_at": None if self.closed is None else stamp(self.closed),
            "elapsed_time": (self.closed or time.time()) - begun if self.activated else 0,
        }


@dataclass
class Job:
    """A job, whose result is known from the start; only time stands between it and the client."""

    id: str
    request: dict[str, Any]
    job: ExecutorJob
    outcome: Outcome
    created: float  # seconds since the epoch, as the next two
    ready: float  # out of the queue
    done: float
    held: bool = False  # the device takes no jobs out of its queue
    cancelled: bool = False
    deleted: bool = False

    @property
    def status(self) -> str:
        if self.cancelled:
            return "Cancelled"
        if self.held or time.time() < self.ready:
            return "Queued"
        if time.time() < self.done:
            return "Running"
        if self.outcome.reason_code == 1305:
            return "Cancelled"
        return "Failed" if self.outcome.reason else "Completed"

    @property
    def seconds(self) -> int:
        """Billed time of the device."""
        return self.job.seconds if self.status == "Completed" else 0

    def answer(self, *, with_params: bool) -> dict[str, Any]:
        """What ``GET /jobs/ID`` answers."""
        request = self.request
        state: dict[str, Any] = {"status": self.status}
        if state["status"] in ("Failed", "Cancelled") and self.outcome.reason:
            state |= {"reason": self.outcome.reason, "reason_code": self.outcome.reason_code}
        answer = {
            "id": self.id,
            "backend": request["backend"],
            "program": {"id": request["program_id"]},
            "created": stamp(self.created),
            "tags": request.get("tags", []),
            "session_id": request.get("session_id"),
            "private": request.get("private", False),
            "state": state,
            "status": state["status"],
            "cost": request.get("cost", 0),
            "estimated_running_time_seconds": self.job.seconds,
        }
        return answer | ({"params": request["params"]} if with_params else {})

    def metrics(self) -> dict[str, Any]:
        """What ``GET /jobs/ID/metrics`` answers."""
        final = self.status in FINAL
        return {
            "timestamps": {
                "created": stamp(self.created),
                "running": stamp(self.ready) if self.status not in ("Queued", "Cancelled") else None,
                "finished": stamp(max(self.done, self.created)) if final else None,
            },
            "usage": {"status": "final" if final else "pending"} | dict.fromkeys(SECONDS, self.seconds),
            "bss": {"seconds": self.seconds},
            "executions": self.job.parameter_sets * self.job.shots,
        }

    def record(self) -> dict[str, Any]:
        """What a test is told of the job."""
        request = self.request
        return {
            "id": self.id,
            "tags": request.get("tags", []),
            "backend": request["backend"],
            "session_id": request.get("session_id"),
            "state": self.status,
            "program": self.job.program._semantic_role,
            "circuits": len(self.job.program.items),
            "parameter_sets": self.job.parameter_sets,
            "shots": self.job.shots,
            "seconds": self.seconds,
            "created": self.created,
        }


@dataclass(frozen=True)
class Settings:
    """How the stand-in behaves.

    Attributes:
        plan: A key of ``PLANS``; the open one has no sessions and 600 s.
        noise: ``none``, or ``device`` for the noise of the fake backends.
        queue_seconds: A job is queued that long.
        run_seconds: And then runs that long.
        token_seconds: Life of an access token; the client asks for a new one with each request if it is 10 or less.
        used_seconds: What the plan's time was used for before.
        lifetime: Seconds after which the server ends, whatever happens.
    """

    plan: str = "premium"
    noise: str = "none"
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    token_seconds: int = 3600
    used_seconds: int = 0
    lifetime: float = 4 * 3600.0


def stamp(seconds: float) -> str:
    """Seconds since the epoch, as the service writes them."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
