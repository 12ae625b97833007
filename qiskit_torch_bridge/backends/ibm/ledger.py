"""The ledger: what was going to be sent, what was sent, and what came back, on disk before it can be lost.

A job is written down *before* it is submitted, with a tag that it will carry; its id as soon as the service has told it; its
result when it has arrived. So after a crash at any instant the ledger and the service together know of every job: one
that was submitted while nobody could write its id down is found by its tag. The file underneath is
:mod:`~qiskit_torch_bridge.backends.ibm.ledger_file`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil

from ...arguments import number_from
from ..results import Arrays, Asked, WrongResult, arrays_of, check_arrays
from .errors import BudgetExceeded, LedgerError
from .ledger_file import LIVE, closing_alone, discard_damaged, is_sound, open_tables, remedy_of, save

__all__ = ["TAG", "Caps", "Claim", "Entry", "Job", "Ledger", "ResultDamaged", "Role", "Spent", "digest", "said_by_jobs"]

TAG = "qtb-"
"""What the tags of jobs begin with."""

_SECONDS_OF_FOREIGN_CLAIM = 300.0  # after which a claim from another machine counts as abandoned
_SECONDS_OF_CLOCK = 60.0


@dataclass(frozen=True)
class Job:
    """A job that is to be done.

    Attributes:
        key: What it is, the same in every process.
        circuits: Bound circuits in it.
        shots: Shots on all of them.
        executions: Those, and what mitigation methods add.
        estimated_seconds: Estimated time on the quantum processor.
    """

    key: str
    circuits: int
    shots: int
    executions: int
    _: KW_ONLY
    estimated_seconds: float


@dataclass(frozen=True)
class Caps:
    """What the jobs of a run may come to, together; None: no limit."""

    max_qpu_seconds: float | None = None
    max_shots: int | None = None
    max_jobs: int | None = None

    def __post_init__(self) -> None:
        for name, cap in vars(self).items():
            if cap is not None:
                checked = number_from(name, cap, whole=name != "max_qpu_seconds", also=", or None for no cap")
                object.__setattr__(self, name, checked)


@dataclass(frozen=True)
class Spent:
    """What the jobs of a run have come to: billed seconds where they are known, else the estimate."""

    jobs: int
    shots: int
    qpu_seconds: float


class ResultDamaged(LedgerError):  # noqa: N818
    """The result of a job that is done is not as it was written."""


class Role(Enum):
    """What is to be done about a job."""

    SUBMIT = "nobody has sent it"
    RECOVER = "somebody was about to send it, and is no more"
    WAIT = "another process is sending it"
    AWAIT = "it has been sent"
    DONE = "its result is here"


_ROLES = {"intended": Role.WAIT, "done": Role.DONE}  # of a job in that state that another process sends, or has sent


@dataclass(frozen=True)
class Claim:
    """A job of the ledger, and what is to be done about it."""

    number: int
    tag: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A job as the ledger knows it; the names are those of its columns.

    The state of a row that does not fit its seal is ``"damaged"``; only its number and ``job_id`` are shown, if they can be.
    """

    number: int
    key: str
    tag: str
    run: str
    backend: str
    circuits: int
    shots: int
    executions: int
    estimated_seconds: float
    state: str
    intended_at: str
    submitted_at: str | None
    finished_at: str | None
    job_id: str | None
    session_id: str | None
    calibrated: str
    usage_seconds: float | None
    error: str | None


_COLUMNS = ", ".join(Entry.__dataclass_fields__)


def said_by_jobs(entries: Sequence[Entry]) -> dict[str, Any]:
    """What a passport says of its jobs, as the ledger knows them now."""
    usage = [entry.usage_seconds for entry in entries if entry.usage_seconds is not None]
    return {
        "calibrated": tuple(entry.calibrated for entry in entries),
        "job_ids": tuple(entry.job_id for entry in entries if entry.job_id),
        "sessions": tuple(dict.fromkeys(entry.session_id for entry in entries if entry.session_id)),
        "usage_seconds": sum(usage) if usage else None,
        "estimated_seconds": sum(entry.estimated_seconds for entry in entries),
    }


def digest(*parts: Any) -> str:
    """A key: a hash of numbers, words, arrays and nested lists and mappings of them, the same in every process."""
    return hashlib.sha256(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest()


class Ledger:
    """A ledger in an SQLite file, which any number of processes of a machine may share.

    Args:
        path: The file; made where there is none. None or ``":memory:"``: in memory, for rehearsals whose jobs cost
            nothing.

    Raises:
        LedgerError: If the file is no ledger, is empty, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None or path == ":memory:" else Path(path)
        self._name = uuid.uuid4().hex
        self._known_owner = (-1, "")
        self._sending: set[int] = set()  # what callers of this object have claimed and not released
        self._file = LedgerFile(self.path)

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})" if self.path else "Ledger(None)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (self.path,)

    # Jobs, and what has become of them.

    def claim(self, jobs: Sequence[Job], *, run: str, backend: str, caps: Caps) -> list[Claim]:
        """Writes down the jobs that are not here yet, in one transaction, and says what is to be done about each.

        Raises:
            BudgetExceeded: If the new ones would pass a cap; nothing has been written down then.
        """
        with self._file.transaction(of="jobs") as db:
            live = {
                job.key: db.execute(
                    f"SELECT number, tag, state, owner, claimed_at FROM jobs WHERE key = ? AND state IN {LIVE}",
                    (job.key,),
                ).fetchone()
                for job in jobs
            }
            if new := [job for job in jobs if live[job.key] is None]:
                self._require_within(caps, self._spent(db, run), new)
            claims = []
            for job in jobs:
                if live[job.key] is None:
                    claims.append(self._intend(db, job, run, backend))
                else:
                    number, tag, *sender = live[job.key]
                    claims.append(Claim(number, tag, self._role(db, number, *sender)))
        return claims

    def take_over(self, number: int) -> Role:
        """What is to be done about a job that another process was sending, taken over from it if it is no more."""
        with self._file.transaction() as db:
            sender = db.execute("SELECT state, owner, claimed_at FROM jobs WHERE number = ?", (number,)).fetchone()
            return self._role(db, number, *sender)

    def release(self, numbers: Iterable[int]) -> None:
        """Lets another process (or a later call) take over jobs that this one was sending."""
        released = list(numbers)
        # Even if it cannot be written down: a later call must not wait for us.
        self._sending.difference_update(released)
        with self._file.transaction() as db:
            for number in released:
                row = (number, self._owner())
                db.execute("UPDATE jobs SET owner = NULL WHERE number = ? AND owner = ? AND state = 'intended'", row)

    def is_still_ours(self, number: int) -> bool:
        """Whether a job that this object has claimed may be sent now; if so, others wait for it anew."""
        statement = "UPDATE jobs SET claimed_at = ? WHERE number = ? AND owner = ? AND state = 'intended'"
        return self._file.change(statement, _now(), number, self._owner()) == 1

    def submitted(self, number: int, job_id: str, *, session_id: str | None, calibrated: str) -> None:
        """The service has the job, and calls it so.

        Raises:
            LedgerError: If somebody else has given it up, or sent it, in the meantime.
        """
        changed = self._file.change(
            "UPDATE jobs SET state = 'submitted', owner = NULL, job_id = ?, session_id = ?, calibrated = ?, "
            "submitted_at = ? WHERE number = ? AND state = 'intended'",
            *(job_id, session_id, calibrated, _now(), number),
        )
        if changed != 1:
            raise LedgerError(
                f"Job {job_id} was submitted, but {self!r} says that its submission (number {number}) was ended by another "
                "process; look at both with `qtb jobs`."
            )

    def finished(self, number: int, result: bytes, usage_seconds: float | None) -> None:
        """The result is here."""
        self._file.change(
            "UPDATE jobs SET state = 'done', result = ?, usage_seconds = ?, finished_at = ? "
            "WHERE number = ? AND state = 'submitted'",  # else another process was first
            *(result, usage_seconds, _now(), number),
        )

    def double(self, number: int, job_id: str) -> None:
        """The service has another job with the tag of this one, which was cancelled, but counts."""
        copied = "run, backend, circuits, shots, executions, estimated_seconds, session_id, intended_at, submitted_at"
        self._file.change(
            f"INSERT INTO jobs (key, tag, state, job_id, finished_at, error, {copied}) "
            f"SELECT key, tag || '+' || ?, 'cancelled', ?, ?, ?, {copied} FROM jobs WHERE number = ? "
            "AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = ?)",
            *(job_id, job_id, _now(), f"it was sent a second time as job number {number}", number, job_id),
        )

    def failed(self, number: int, state: str, error: str, usage_seconds: float | None) -> None:
        """The job has ended without one; it may be sent anew. ``state`` is ``"failed"`` or ``"cancelled"``."""
        self._file.change(
            "UPDATE jobs SET state = ?, owner = NULL, error = ?, usage_seconds = ?, finished_at = ? "
            "WHERE number = ? AND state IN ('intended', 'submitted')",  # a result is never given up
            *(state, error, usage_seconds, _now(), number),
        )

    def forget(self, number: int) -> str:
        """Gives up a job that was paid for, whose result is of no use: the same run sends it anew, and pays again.

        Returns:
            A warning that says so.

        Raises:
            LedgerError: If it was not sent, or has ended without a result.
        """
        entry = self.entry(number)
        message = (
            f"Job {number} ({entry.job_id or entry.tag}) was given up by its user. What it has cost is spent, and the same "
            "run sends it again, which is paid for again."
        )
        statement = "UPDATE jobs SET state = 'failed', error = ? WHERE number = ? AND state IN ('submitted', 'done')"
        if self._file.change(statement, message, number) != 1:
            raise LedgerError(
                f"Job {number} of {self!r} is {entry.state}, expected one that is submitted or done; a job that is intended "
                "can be cancelled, and one that has failed or was cancelled is sent anew by the same run."
            )
        self.note(entry.run, "forgotten", message, job=number)
        return message

    def mended(self, number: int, result: bytes) -> None:
        """The result of a job that is done was fetched once more, because what was here was damaged."""
        self._file.change("UPDATE jobs SET result = ? WHERE number = ? AND state = 'done'", result, number)

    def billed(self, number: int, usage_seconds: float) -> None:
        """What the service has billed for it, where it said so only later."""
        self._file.change("UPDATE jobs SET usage_seconds = ? WHERE number = ?", usage_seconds, number)

    # What is here.

    def entry(self, number: int) -> Entry:
        """One job.

        Raises:
            LedgerError: If there is none of that number, or it is damaged.
        """
        with self._file.transaction() as db:
            row = db.execute(f"SELECT {self._file.is_sound} FROM jobs WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise LedgerError(
                    f"{self._file.place} has no job number {number}; `{self._file.command}` lists those it has."
                )
            if not row[0]:
                self._file.refuse(f"jobs {number}")
            return _entry(db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone())

    def entries(self) -> list[Entry]:
        """All jobs, in the order in which they were written down."""
        with self._file.transaction() as db:
            sound = self._file.is_sound
            entries = [_entry(row) for row in db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {sound}")]
            for number, job_id in db.execute(f"SELECT number, CAST(job_id AS BLOB) FROM jobs WHERE NOT ({sound})"):
                said = None if job_id is None else job_id.decode(errors="replace")
                nothing = ("", "", "", "", 0, 0, 0, 0.0, "damaged", "", None, None, said, None, "", None, None)
                entries.append(_entry((number, *nothing)))
        return sorted(entries, key=lambda entry: entry.number)

    def knows_any(self, keys: Iterable[str]) -> bool:
        """Whether one of these jobs is here and has not failed."""
        with self._file.transaction(of="jobs") as db:
            statement = f"SELECT 1 FROM jobs WHERE key = ? AND state IN {LIVE}"
            return any(db.execute(statement, (key,)).fetchone() is not None for key in keys)

    def result(self, number: int) -> bytes:
        """The result of a job that is done.

        Raises:
            LedgerError: If it is damaged.
        """
        rows = self._file.rows("SELECT result, result_seal FROM jobs WHERE number = ?", number)
        if not rows or not isinstance(rows[0][0], bytes) or seal_of(rows[0][0]) != rows[0][1]:
            raise ResultDamaged(
                f"The result of job {number} in {self._file.place} is damaged: it is not what was written. All others can "
                "be used."
            )
        return rows[0][0]

    def arrays(self, number: int, asked: Sequence[Asked] | None) -> Arrays:
        """The result of a job that is done, if it is what was asked for; None: that is not known.

        Raises:
            LedgerError: If it is not, or damaged.
        """
        try:
            arrays = arrays_of(self.result(number))
            if asked is not None:
                check_arrays(arrays, asked)
        except ResultDamaged as error:
            raise LedgerError(f"{error} {self.way_to_forget(number)}") from None
        except (ValueError, WrongResult) as error:
            raise LedgerError(
                f"The result of job {number} in {self!r} is damaged, or not what was asked for: {error} All others remain. "
                f"{self.way_to_forget(number)}"
            ) from None
        return arrays

    def way_to_forget(self, number: int) -> str:
        """How a user gives up a job that was paid for."""
        command = f" (or `{self._file.command} --forget {number}`)" if self.path else ""
        then = "then the same run sends it again, which is paid for again."
        return f"IBMBackend.forget({number}){command} gives it up: {then}"

    def discard_damaged(self) -> list[str]:
        """Gives up all rows that are damaged, and writes down which; returns them as ``"TABLE ROW"``.

        A job among them is not known any more: where it is asked for again, it is sent and paid for again, and what it has
        cost does not count against caps.
        """
        lost = self._file.discard_damaged()
        for row in lost:
            self.note("", "discarded", f"{row} was damaged, and was given up")
        return lost

    def spent(self, run: str) -> Spent:
        """What a run's jobs have come to."""
        with self._file.transaction(of="jobs") as db:
            return self._spent(db, run)

    # Circuits, evaluations, sessions, events.

    def keep_circuits(self, key: str, circuits: bytes) -> bytes:
        """Keeps transpiled circuits, unless there are some of that key already; returns those that are kept."""
        with self._file.transaction() as db:
            db.execute("INSERT OR IGNORE INTO circuits (key, circuits) VALUES (?, ?)", (key, circuits))
            (kept,) = db.execute("SELECT circuits FROM circuits WHERE key = ?", (key,)).fetchone()
        return bytes(kept)

    def circuits(self, key: str) -> bytes | None:
        """Transpiled circuits that were kept, or None."""
        rows = self._file.rows("SELECT circuits FROM circuits WHERE key = ?", key)
        return bytes(rows[0][0]) if rows else None

    def forget_circuits(self, key: str) -> None:
        """Forgets transpiled circuits that do not fit the device any more."""
        self._file.change("DELETE FROM circuits WHERE key = ?", key)

    def note_evaluation(self, key: str, run: str, description: Mapping[str, Any], angles: bytes) -> None:
        """Writes down what an evaluation asked for, and which jobs hold the answers."""
        columns = "key, run, at, description, angles"
        statement = f"INSERT OR REPLACE INTO evaluations ({columns}) VALUES (?, ?, ?, ?, ?)"
        self._file.change(statement, key, run, _now(), json.dumps(description), angles)

    def evaluation(self, key: str) -> dict[str, Any] | None:
        """The description of one evaluation, or None."""
        rows = self._file.rows("SELECT description FROM evaluations WHERE key = ?", key, of="evaluations")
        return json.loads(rows[0][0]) if rows else None

    def evaluations(self) -> list[tuple[dict[str, Any], bytes]]:
        """All evaluations, in the order in which they were asked for: description and angles."""
        rows = self._file.rows("SELECT description, angles FROM evaluations ORDER BY rowid", of="evaluations")
        return [(json.loads(description), bytes(angles)) for description, angles in rows]

    def asked_of_jobs(self) -> dict[str, list[Asked]]:
        """What each job was to bring back, by its key, as far as the evaluations that it is for say."""
        jobs: dict[str, dict[int, Asked]] = {}
        for description, _ in self.evaluations():
            for part, asked in zip(description["parts"], description.get("asked", ()), strict=False):
                for (key, place), (shape, *rest) in zip(part, asked, strict=True):
                    others = dict(zip(("shots", "bits", "at_least", "extrapolates"), rest, strict=False))
                    jobs.setdefault(key, {})[place] = Asked(tuple(shape), **others)
        return {key: [pubs[place] for place in range(len(pubs))] for key, pubs in jobs.items() if max(pubs) < len(pubs)}

    def open_session(self, run: str, backend: str, mode: str) -> str | None:
        """The id of the last session that was opened and not closed, or None."""
        rows = self._file.rows(
            "SELECT id FROM sessions WHERE run = ? AND backend = ? AND mode = ? AND closed_at IS NULL "
            "ORDER BY opened_at DESC",
            *(run, backend, mode),
            of="sessions",
        )
        return str(rows[0][0]) if rows else None

    def session_opened(self, session_id: str, run: str, backend: str, mode: str) -> None:
        """A session was opened."""
        columns = "id, run, backend, mode, opened_at"
        statement = f"INSERT OR REPLACE INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?)"
        self._file.change(statement, session_id, run, backend, mode, _now())

    def session_closed(self, session_id: str) -> None:
        """A session was closed, by us or by the service."""
        self._file.change("UPDATE sessions SET closed_at = ? WHERE id = ?", _now(), session_id)

    def note(self, run: str, kind: str, message: str, **data: Any) -> None:
        """Writes down that something happened."""
        statement = "INSERT INTO events (at, run, kind, message, data) VALUES (?, ?, ?, ?, ?)"
        self._file.change(statement, _now(), run, kind, message, json.dumps(data))

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened: ``at``, ``run``, ``kind``, ``message`` and ``data`` of each event, or of each of a kind."""
        query = "SELECT at, run, kind, message, data FROM events WHERE kind = ? OR ? IS NULL ORDER BY number"
        rows = self._file.rows(query, kind, kind, of="events")
        return [
            dict(zip(("at", "run", "kind", "message"), row[:4], strict=True), data=json.loads(row[4])) for row in rows
        ]

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        self._file.close()

    # Within a transaction.

    def _intend(self, db: sqlite3.Connection, job: Job, run: str, backend: str) -> Claim:
        """Writes down a job that this object is about to send."""
        tag, now = f"{TAG}{uuid.uuid4().hex}", _now()
        amounts = (job.circuits, job.shots, job.executions, job.estimated_seconds)
        cursor = db.execute(
            "INSERT INTO jobs (key, tag, run, backend, circuits, shots, executions, estimated_seconds, state, "
            "owner, claimed_at, intended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'intended', ?, ?, ?)",
            (job.key, tag, run, backend, *amounts, self._owner(), now, now),
        )
        number = int(cursor.lastrowid or 0)
        self._sending.add(number)
        return Claim(number, tag, Role.SUBMIT)

    def _role(self, db: sqlite3.Connection, number: int, state: str, owner: str | None, claimed_at: str | None) -> Role:
        """What is to be done about a job that is here; it is taken over if nobody is sending it any more."""
        if state == "intended" and self._is_abandoned(number, owner, claimed_at):
            row = (self._owner(), _now(), number)
            db.execute("UPDATE jobs SET owner = ?, claimed_at = ? WHERE number = ?", row)
            self._sending.add(number)
            return Role.RECOVER
        return _ROLES.get(state, Role.AWAIT)

    @staticmethod
    def _spent(db: sqlite3.Connection, run: str) -> Spent:
        jobs, shots, seconds = db.execute(
            "SELECT COUNT(*), COALESCE(SUM(shots), 0), COALESCE(SUM(COALESCE(usage_seconds, estimated_seconds)), 0) "
            "FROM jobs WHERE run = ? AND NOT (state = 'cancelled' AND job_id IS NULL)",  # those were never submitted
            (run,),
        ).fetchone()
        return Spent(jobs, shots, seconds)

    def _require_within(self, caps: Caps, spent: Spent, new: Sequence[Job]) -> None:
        seconds = sum(job.estimated_seconds for job in new)
        amounts = {
            "max_qpu_seconds": (spent.qpu_seconds, seconds, "s of QPU time (estimated)"),
            "max_shots": (spent.shots, sum(job.shots for job in new), "shots"),
            "max_jobs": (spent.jobs, len(new), "job(s)"),
        }
        for name, (before, more, what) in amounts.items():
            cap = getattr(caps, name)
            if cap is not None and before + more > cap:
                raise BudgetExceeded(
                    f"{name}: the next {len(new)} job(s) need {_rounded(more)} {what}, but {_rounded(before)} of "
                    f"{_rounded(cap)} are spent according to {self._file.place}. Nothing was submitted; raise {name} to go "
                    "on, or ask for less (a smaller batch, fewer shots, frozen weights, gradient='spsa')."
                )

    def _owner(self) -> str:
        """Who sends a job: this object in this process, told apart from later ones of the same number."""
        if self._known_owner[0] != os.getpid():
            process = psutil.Process()
            name = json.dumps([socket.gethostname(), process.pid, process.create_time(), self._name])
            self._known_owner = (process.pid, name)
        return self._known_owner[1]

    def _is_abandoned(self, number: int, owner: str | None, claimed_at: str | None) -> bool:
        """Whether nobody is sending a job any more."""
        return number not in self._sending if owner == self._owner() else _is_no_more(owner, claimed_at)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    return [value.real, value.imag] if isinstance(value, complex) else value


class LedgerFile:
    """The tables of a ledger, in a file or in memory.

    Args:
        path: The file; made where there is none. None: in memory.

    Attributes:
        place: What messages call it.
        command: What lists its jobs on the command line.
        is_sound: In SQL, whether a row of the jobs is as it was written.

    Raises:
        LedgerError: If the file is no ledger, is empty, or cannot be opened; also of every method.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.place = f"the ledger {path}" if path else "the ledger in memory"
        self.command = f"qtb jobs {path}"
        self._place_in_front = f"{self.place[0].upper()}{self.place[1:]}"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = -1
        self._identity: tuple[int, int] | None = None
        self._damaged: dict[str, list[str]] = {}  # the rows of each table that were damaged when the file was opened
        with self.transaction():
            pass

    @contextmanager
    def transaction(self, *, of: str = "") -> Iterator[sqlite3.Connection]:
        """Within it everything is written, or nothing; ``of`` names the table that must be free of damage for it."""
        with self._lock, self._explained():
            db = self._opened()
            db.execute("BEGIN IMMEDIATE")
            try:
                if damaged := self._damaged.get(of):
                    self.refuse(*(f"{of} {row}" for row in damaged))
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # after some errors SQLite has gone back by itself
                    db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any, of: str = "") -> list[Any]:
        """The rows of a query; ``of`` as in :meth:`transaction`."""
        with self.transaction(of=of) as db:
            return db.execute(query, values).fetchall()

    def change(self, statement: str, *values: Any) -> int:
        """Carries out one statement; returns how many rows it has changed."""
        with self.transaction() as db:
            return db.execute(statement, values).rowcount

    def refuse(self, *rows: str) -> NoReturn:
        """Says that rows, each named as ``"TABLE ROW"``, are damaged, and what can be done."""
        raise LedgerError(
            f"{self._place_in_front} is damaged in {', '.join(rows)}: what is there is not what was written. "
            "Nothing was sent, because it may be what is asked for; all other rows are sound. Put back a copy of the file, "
            f"or give the damaged rows up with `{self.command} --discard-damaged`: a job among them is sent and paid for "
            "again where it is asked for."
        )

    def discard_damaged(self) -> list[str]:
        """Removes all rows that are damaged; returns them as ``"TABLE ROW"``."""
        with self.transaction() as db:
            lost = discard_damaged(db)
            self._damaged = {}
        return lost

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid() and self.path is not None:
                with closing_alone(self.path.parent):
                    self._connection.close()
                self._connection = None

    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:  # when Python ends, there may be no os any more
        # From 3.13 on Python complains of a connection that nobody closes; a forked process leaves its parent's alone.
        connection = getattr(self, "_connection", None)
        if connection is not None and self._process == getpid():
            connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of SQLite's errors, and of the file system's, what can be done about them."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError) as error:  # SQLite quotes damaged names in its errors
            remedy = remedy_of(error, self.path)
            raise LedgerError(f"{self._place_in_front} cannot be used: {error}. {remedy}") from error

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked process.
        if self._connection is None or self._process != os.getpid():
            self._connection, self._damaged = open_tables(self.path, seal_of, place=self.place)
            self._process, self._identity = os.getpid(), self._identity_now()
            self.is_sound = is_sound(self._connection, "jobs")
        else:
            self._require_same_file(self._connection)
        return self._connection

    def _identity_now(self) -> tuple[int, int] | None:
        """What tells the file from another one of its name; None if there is none."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _require_same_file(self, open_still: sqlite3.Connection) -> None:
        """Notices a file that was removed or replaced while it was open, and saves what was in it."""
        if self.path is None or self._identity == (new := self._identity_now()):
            return
        saved = self.path if new is None else self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        self._connection = None
        with closing(open_still):
            save(open_still, saved, seal_of)
        what, then = "removed, and was written anew", "run the same again to go on"
        if new is not None:
            what = f"replaced by another file, and what was in it saved as {saved}"
            then = "put back the one that is right, and run the same again"
        raise LedgerError(
            f"The ledger {self.path} was {what}, while this process was using it. Nothing was sent since; {then}."
        )


def seal_of(*values: bytes | None) -> str:
    """The seal of a row with these values."""
    hashed = hashlib.blake2b(digest_size=16)
    for value in values:
        hashed.update(b"-" if value is None else b"%d:" % len(value))
        hashed.update(value or b"")
    return hashed.hexdigest()


def _entry(row: Sequence[Any]) -> Entry:
    return Entry(**dict(zip(Entry.__dataclass_fields__, row, strict=True)))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _is_no_more(owner: str | None, claimed_at: str | None) -> bool:
    """Whether the process that was sending a job is no more."""
    if owner is None or claimed_at is None:
        return True
    host, pid, created, _ = json.loads(owner)
    if host != socket.gethostname():
        age = datetime.now(timezone.utc) - datetime.fromisoformat(claimed_at)
        return age.total_seconds() > _SECONDS_OF_FOREIGN_CLAIM
    try:
        # A clock that is set in between moves the times of all processes.
        return abs(psutil.Process(pid).create_time() - created) > _SECONDS_OF_CLOCK
    except psutil.Error:
        return True


def _rounded(number: float) -> str:
    """Whole numbers as they are, others to a thousandth."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.3f}"
