"""The ledger: what was going to be sent, what was sent, and what came back, on disk before it can be lost.

A job is written down *before* it is submitted, with a tag that it will carry; its id as soon as the service has told it; its
result when it has arrived. So after a crash at any instant the ledger and the service together know of every job: one
that was submitted while nobody could write its id down is found by its tag.

Every row carries a seal, a hash of what is in it: what a failing disk has changed is found, and neither believed nor
mistaken for something that was never asked for. A ledger appears under its name only when it is whole, so an empty file
there is one that has lost everything, and is refused. (SQLite keeps the last writes in ``NAME-wal`` beside it while the
ledger is open: copy both, or close it first.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .errors import BudgetExceeded, LedgerError

__all__ = ["TAG", "Caps", "Claim", "Entry", "Job", "Ledger", "ResultDamaged", "Role", "Spent", "digest"]

TAG = "qtb-"
"""What the tags of jobs begin with."""

_log = logging.getLogger(__name__)

_VERSION = 2
_SECONDS_OF_FOREIGN_CLAIM = 300.0  # after which a claim from another machine counts as abandoned
_SECONDS_OF_CLOCK = 60.0
_SECONDS_OF_LOCK = 60.0
_SECONDS_OF_CLOSING = 5.0  # after which it is closed all the same
_SEALED = ("jobs", "circuits", "evaluations", "sessions", "events")
_LIVE = "('intended', 'submitted', 'done')"

_SCHEMA = f"""
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        key TEXT NOT NULL,              -- what was asked for, and by which evaluation of which run
        tag TEXT NOT NULL UNIQUE,       -- what the job carries at the service
        run TEXT NOT NULL,
        backend TEXT NOT NULL,
        circuits INTEGER NOT NULL,
        shots INTEGER NOT NULL,
        executions INTEGER NOT NULL,
        estimated_seconds REAL NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intended', 'submitted', 'done', 'failed', 'cancelled')),
        owner TEXT,                     -- the process that is submitting it
        claimed_at TEXT,
        intended_at TEXT NOT NULL,
        submitted_at TEXT,
        finished_at TEXT,
        job_id TEXT,
        session_id TEXT,
        calibrated TEXT NOT NULL DEFAULT '',
        usage_seconds REAL,
        error TEXT,
        result_seal TEXT,               -- the row's own seal leaves the result out
        result BLOB
    );
    CREATE UNIQUE INDEX one_live_job ON jobs (key) WHERE state IN {_LIVE};
    CREATE TABLE circuits (key TEXT PRIMARY KEY, circuits BLOB NOT NULL);
    CREATE TABLE evaluations (
        key TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        at TEXT NOT NULL,
        description TEXT NOT NULL,      -- JSON: which circuit, shots, seed, and which jobs hold the answers
        angles BLOB NOT NULL
    );
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        backend TEXT NOT NULL,
        mode TEXT NOT NULL,
        opened_at TEXT NOT NULL,
        closed_at TEXT
    );
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        run TEXT NOT NULL,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        data TEXT NOT NULL
    )
    """.split(";")
_SEALS = [f"ALTER TABLE {table} ADD COLUMN seal TEXT" for table in _SEALED]

# What SQLite says, and what can be done about it.
_REMEDIES = {
    "readonly": "It is write-protected: make the file and its folder writable, or copy it and name the copy.",
    "full": "The disk is full: make room, and run the same again. {kept}",
    "disk i/o": "The disk does not take it: make room if it is full (else it may fail), and run the same again. {kept}",
    "locked": "Another process has been writing to it for a minute: look for one that hangs, and run the same again. {kept}",
    "unable to open": "See whether you may read and write the file and its folder.",
    "not a database": "It is no ledger, or its beginning is lost: name another file, or put back a copy of it.",
}
_BROKEN = (
    "Its pages are damaged: put back a copy of it, or save what can be read with `sqlite3 {path} .recover | sqlite3 NEW`, "
    "and name NEW; its rows are checked one by one."
)
_KEPT = "What was submitted is still at the service, and is found by its tag."


@dataclass(frozen=True)
class Job:
    """A job that is wanted.

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
    estimated_seconds: float


@dataclass(frozen=True)
class Caps:
    """What the jobs of a run may come to, together; None: no limit."""

    max_qpu_seconds: float | None = None
    max_shots: int | None = None
    max_jobs: int | None = None


@dataclass(frozen=True)
class Spent:
    """What the jobs of a run have come to: billed seconds where they are known, else the estimate."""

    jobs: int
    shots: int
    qpu_seconds: float


class ResultDamaged(LedgerError):  # noqa: N818
    """The result of a job that is done is not as it was written."""


class Role(Enum):
    """What is to be done about a job that is wanted."""

    SUBMIT = "nobody has sent it"
    RECOVER = "somebody was about to send it, and is no more"
    WAIT = "another process is sending it"
    AWAIT = "it has been sent"
    DONE = "its result is here"


@dataclass(frozen=True)
class Claim:
    """A job of the ledger, and what is to be done about it."""

    number: int
    tag: str
    role: Role


@dataclass(frozen=True)
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
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = -1
        self._file: tuple[int, int] | None = None
        self._damaged: dict[str, list[str]] = {}  # the rows of each table that were damaged when the file was opened
        self._name = uuid.uuid4().hex
        self._known_owner = (-1, "")
        self._sending: set[int] = set()  # what callers of this object have claimed and not released
        with self._transaction():
            pass

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})" if self.path else "Ledger(None)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Ledger, (self.path,)

    # What is wanted, and what has become of it.

    def claim(self, jobs: Sequence[Job], *, run: str, backend: str, caps: Caps) -> list[Claim]:
        """Writes down the jobs that are not here yet, in one transaction, and says what is to be done about each.

        Raises:
            BudgetExceeded: If the new ones would pass a cap; nothing has been written down then.
        """
        me, now = self._owner(), _now()
        with self._transaction() as db:
            self._require_sound("jobs")
            found = {
                job.key: db.execute(
                    f"SELECT number, tag, state, owner, claimed_at FROM jobs WHERE key = ? AND state IN {_LIVE}",
                    (job.key,),
                ).fetchone()
                for job in jobs
            }
            new = [job for job in jobs if found[job.key] is None]
            if new:
                self._require_within(caps, self._spent(db, run), new)
            claims = []
            for job in jobs:
                row = found[job.key]
                if row is None:
                    tag = f"{TAG}{uuid.uuid4().hex}"
                    wanted = (job.circuits, job.shots, job.executions, job.estimated_seconds)
                    cursor = db.execute(
                        "INSERT INTO jobs (key, tag, run, backend, circuits, shots, executions, estimated_seconds, state, "
                        "owner, claimed_at, intended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'intended', ?, ?, ?)",
                        (job.key, tag, run, backend, *wanted, me, now, now),
                    )
                    claims.append(Claim(int(cursor.lastrowid or 0), tag, Role.SUBMIT))
                    self._sending.add(claims[-1].number)
                    continue
                number, tag, state, owner, claimed_at = row
                if state == "intended" and self._is_abandoned(number, owner, claimed_at):
                    db.execute("UPDATE jobs SET owner = ?, claimed_at = ? WHERE number = ?", (me, now, number))
                    self._sending.add(number)
                    claims.append(Claim(number, tag, Role.RECOVER))
                else:
                    role = {"intended": Role.WAIT, "submitted": Role.AWAIT, "done": Role.DONE}[state]
                    claims.append(Claim(number, tag, role))
        return claims

    def take_over(self, number: int) -> Role:
        """What is to be done about a job that another process was sending, taken over from it if it is no more."""
        with self._transaction() as db:
            state, owner, claimed_at = db.execute(
                "SELECT state, owner, claimed_at FROM jobs WHERE number = ?", (number,)
            ).fetchone()
            if state == "intended" and self._is_abandoned(number, owner, claimed_at):
                db.execute(
                    "UPDATE jobs SET owner = ?, claimed_at = ? WHERE number = ?", (self._owner(), _now(), number)
                )
                self._sending.add(number)
                return Role.RECOVER
        return {"intended": Role.WAIT, "submitted": Role.AWAIT, "done": Role.DONE}.get(state, Role.AWAIT)

    def release(self, numbers: Iterable[int]) -> None:
        """Lets another process (or a later call) take over jobs that this one was sending."""
        released = list(numbers)
        # Even if it cannot be written down: a later call must not wait for us.
        self._sending.difference_update(released)
        with self._transaction() as db:
            for number in released:
                row = (number, self._owner())
                db.execute("UPDATE jobs SET owner = NULL WHERE number = ? AND owner = ? AND state = 'intended'", row)

    def is_still_ours(self, number: int) -> bool:
        """Whether a job that this object has claimed may be sent now; if so, others wait for it anew."""
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE jobs SET claimed_at = ? WHERE number = ? AND owner = ? AND state = 'intended'",
                (_now(), number, self._owner()),
            )
        return cursor.rowcount == 1

    def submitted(self, number: int, job_id: str, *, session_id: str | None, calibrated: str) -> None:
        """The service has the job, and calls it so.

        Raises:
            LedgerError: If somebody else has given it up, or sent it, in the meantime.
        """
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE jobs SET state = 'submitted', owner = NULL, job_id = ?, session_id = ?, calibrated = ?, "
                "submitted_at = ? WHERE number = ? AND state = 'intended'",
                (job_id, session_id, calibrated, _now(), number),
            )
        if cursor.rowcount != 1:
            raise LedgerError(
                f"Job {job_id} was submitted, but {self!r} says that its submission (number {number}) was ended by another "
                "process; look at both with `python -m experiments jobs`."
            )

    def finished(self, number: int, result: bytes, usage_seconds: float | None) -> None:
        """The result is here."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = 'done', result = ?, usage_seconds = ?, finished_at = ? "
                "WHERE number = ? AND state = 'submitted'",  # else another process was first
                (result, usage_seconds, _now(), number),
            )

    def double(self, number: int, job_id: str) -> None:
        """The service has another job with the tag of this one, which was cancelled, but counts."""
        copied = "run, backend, circuits, shots, executions, estimated_seconds, session_id, intended_at, submitted_at"
        with self._transaction() as db:
            db.execute(
                f"INSERT INTO jobs (key, tag, state, job_id, finished_at, error, {copied}) "
                f"SELECT key, tag || '+' || ?, 'cancelled', ?, ?, ?, {copied} FROM jobs WHERE number = ? "
                "AND NOT EXISTS (SELECT 1 FROM jobs WHERE job_id = ?)",
                (job_id, job_id, _now(), f"it was sent a second time as job number {number}", number, job_id),
            )

    def failed(self, number: int, state: str, error: str, usage_seconds: float | None) -> None:
        """The job has ended without one; it may be sent anew. ``state`` is ``"failed"`` or ``"cancelled"``."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, owner = NULL, error = ?, usage_seconds = ?, finished_at = ? "
                "WHERE number = ? AND state IN ('intended', 'submitted')",  # a result is never given up
                (state, error, usage_seconds, _now(), number),
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
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE jobs SET state = 'failed', error = ? WHERE number = ? AND state IN ('submitted', 'done')",
                (message, number),
            )
        if cursor.rowcount != 1:
            raise LedgerError(
                f"Job {number} of {self!r} is {entry.state}, expected one that is submitted or done; a job that is intended "
                "can be cancelled, and one that has failed or was cancelled is sent anew by the same run."
            )
        self.note(entry.run, "forgotten", message, job=number)
        return message

    def mended(self, number: int, result: bytes) -> None:
        """The result of a job that is done was fetched once more, because what was here was damaged."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET result = ? WHERE number = ? AND state = 'done'", (result, number))

    def billed(self, number: int, usage_seconds: float) -> None:
        """What the service has billed for it, where it said so only later."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET usage_seconds = ? WHERE number = ?", (usage_seconds, number))

    # What is here.

    def entry(self, number: int) -> Entry:
        """One job.

        Raises:
            LedgerError: If there is none of that number, or it is damaged.
        """
        with self._transaction() as db:
            row = db.execute(f"SELECT {_sound(db, 'jobs')} FROM jobs WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise LedgerError(f"{self._place} has no job number {number}; `{self._command}` lists those it has.")
            if not row[0]:
                raise LedgerError(self._damage(f"jobs {number}"))
            return Entry(*db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone())

    def entries(self) -> list[Entry]:
        """All jobs, in the order in which they were written down."""
        with self._transaction() as db:
            sound = _sound(db, "jobs")
            found = [Entry(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {sound}")]
            for number, job_id in db.execute(f"SELECT number, CAST(job_id AS BLOB) FROM jobs WHERE NOT ({sound})"):
                said = None if job_id is None else job_id.decode(errors="replace")
                nothing = ("", "", "", "", 0, 0, 0, 0.0, "damaged", "", None, None, said, None, "", None, None)
                found.append(Entry(number, *nothing))
        return sorted(found, key=lambda entry: entry.number)

    def result(self, number: int) -> bytes:
        """The result of a job that is done.

        Raises:
            LedgerError: If it is damaged.
        """
        with self._transaction() as db:
            row = db.execute("SELECT result, result_seal FROM jobs WHERE number = ?", (number,)).fetchone()
            if row is None or not isinstance(row[0], bytes) or _seal(row[0]) != row[1]:
                raise ResultDamaged(
                    f"The result of job {number} in {self._place} is damaged: it is not what was written. All others can be "
                    "used."
                )
        return bytes(row[0])

    def discard_damaged(self) -> list[str]:
        """Gives up all rows that are damaged, and writes down which; returns them as ``"TABLE ROW"``.

        A job among them is not known any more: where it is asked for again, it is sent and paid for again, and what it has
        cost does not count against caps.
        """
        with self._transaction() as db:
            lost = [f"{table} {row}" for table in _SEALED for row in _discard(db, table)]
            self._damaged = {}
        for row in lost:
            self.note("", "discarded", f"{row} was damaged, and was given up")
        return lost

    def spent(self, run: str) -> Spent:
        """What a run's jobs have come to."""
        with self._transaction() as db:
            self._require_sound("jobs")
            return self._spent(db, run)

    # Circuits, evaluations, sessions, events.

    def keep_circuits(self, key: str, circuits: bytes) -> bytes:
        """Keeps transpiled circuits, unless there are some of that key already; returns those that are kept."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO circuits (key, circuits) VALUES (?, ?)", (key, circuits))
            (kept,) = db.execute("SELECT circuits FROM circuits WHERE key = ?", (key,)).fetchone()
        return bytes(kept)

    def circuits(self, key: str) -> bytes | None:
        """Transpiled circuits that were kept, or None."""
        with self._transaction() as db:
            row = db.execute("SELECT circuits FROM circuits WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def forget_circuits(self, key: str) -> None:
        """Forgets transpiled circuits that do not fit the device any more."""
        with self._transaction() as db:
            db.execute("DELETE FROM circuits WHERE key = ?", (key,))

    def note_evaluation(self, key: str, run: str, description: Mapping[str, Any], angles: bytes) -> None:
        """Writes down what an evaluation asked for, and which jobs hold the answers."""
        with self._transaction() as db:
            row = (key, run, _now(), json.dumps(description), angles)
            columns = "key, run, at, description, angles"
            db.execute(f"INSERT OR REPLACE INTO evaluations ({columns}) VALUES (?, ?, ?, ?, ?)", row)

    def evaluations(self) -> list[tuple[dict[str, Any], bytes]]:
        """All evaluations, in the order in which they were asked for: description and angles."""
        with self._transaction() as db:
            self._require_sound("evaluations")
            rows = db.execute("SELECT description, angles FROM evaluations ORDER BY rowid").fetchall()
        return [(json.loads(description), bytes(angles)) for description, angles in rows]

    def open_session(self, run: str, backend: str, mode: str) -> str | None:
        """The id of the last session that was opened and not closed, or None."""
        with self._transaction() as db:
            self._require_sound("sessions")
            row = db.execute(
                "SELECT id FROM sessions WHERE run = ? AND backend = ? AND mode = ? AND closed_at IS NULL "
                "ORDER BY opened_at DESC",
                (run, backend, mode),
            ).fetchone()
        return None if row is None else str(row[0])

    def session_opened(self, session_id: str, run: str, backend: str, mode: str) -> None:
        """A session was opened."""
        with self._transaction() as db:
            row = (session_id, run, backend, mode, _now())
            columns = "id, run, backend, mode, opened_at"
            db.execute(f"INSERT OR REPLACE INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?)", row)

    def session_closed(self, session_id: str) -> None:
        """A session was closed, by us or by the service."""
        with self._transaction() as db:
            db.execute("UPDATE sessions SET closed_at = ? WHERE id = ?", (_now(), session_id))

    def note(self, run: str, kind: str, message: str, **data: Any) -> None:
        """Writes down that something happened."""
        with self._transaction() as db:
            row = (_now(), run, kind, message, json.dumps(data))
            db.execute("INSERT INTO events (at, run, kind, message, data) VALUES (?, ?, ?, ?, ?)", row)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened: ``at``, ``run``, ``kind``, ``message`` and ``data`` of each event, or of each of a kind."""
        query = "SELECT at, run, kind, message, data FROM events WHERE kind = ? OR ? IS NULL ORDER BY number"
        with self._transaction() as db:
            self._require_sound("events")
            rows = db.execute(query, (kind, kind)).fetchall()
        return [
            dict(zip(("at", "run", "kind", "message"), row[:4], strict=True), data=json.loads(row[4])) for row in rows
        ]

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid() and self.path is not None:
                with _closing_alone(self.path.parent):
                    self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        # From 3.13 on Python complains of a connection that nobody closes; a forked process leaves its parent's alone.
        connection = getattr(self, "_connection", None)
        if connection is not None and self._process == os.getpid():
            connection.close()

    @staticmethod
    def _spent(db: sqlite3.Connection, run: str) -> Spent:
        jobs, shots, seconds = db.execute(
            "SELECT COUNT(*), COALESCE(SUM(shots), 0), COALESCE(SUM(COALESCE(usage_seconds, estimated_seconds)), 0) "
            "FROM jobs WHERE run = ? AND NOT (state = 'cancelled' AND job_id IS NULL)",  # those were never submitted
            (run,),
        ).fetchone()
        return Spent(jobs, shots, seconds)

    def _require_within(self, caps: Caps, spent: Spent, new: Sequence[Job]) -> None:
        wanted = {
            "max_qpu_seconds": (
                spent.qpu_seconds,
                sum(job.estimated_seconds for job in new),
                "s of QPU time (estimated)",
            ),
            "max_shots": (spent.shots, sum(job.shots for job in new), "shots"),
            "max_jobs": (spent.jobs, len(new), "job(s)"),
        }
        for name, (before, more, unit) in wanted.items():
            cap = getattr(caps, name)
            if cap is not None and before + more > cap:
                raise BudgetExceeded(
                    f"{name}: the next {len(new)} job(s) need {_rounded(more)} {unit}, but {_rounded(before)} of "
                    f"{_rounded(cap)} are spent according to {self._place}. Nothing was submitted; raise {name} to go on, "
                    "or ask for less (a smaller batch, fewer shots, frozen weights, gradient='spsa')."
                )

    @property
    def _place(self) -> str:
        return f"the ledger {self.path}" if self.path else "the ledger in memory"

    @property
    def _command(self) -> str:
        return f"python -m experiments jobs {self.path}"

    def _require_sound(self, table: str) -> None:
        if self._damaged.get(table):
            raise LedgerError(self._damage(", ".join(f"{table} {row}" for row in self._damaged[table])))

    def _damage(self, rows: str) -> str:
        return (
            f"{self._place[0].upper()}{self._place[1:]} is damaged in {rows}: what is there is not what was written. "
            "Nothing was sent, because it may be what is asked for; all other rows are sound. Put back a copy of the file, "
            f"or give the damaged rows up with `{self._command} --discard-damaged`: a job among them is sent and paid for "
            "again where it is asked for."
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

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Within it everything is written, or nothing."""
        with self._lock, self._explained():
            db = self._opened()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # after some errors SQLite has gone back by itself
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of SQLite's errors, and of the file system's, what can be done about them."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError) as error:  # SQLite quotes damaged names in its errors
            said = str(error).lower()
            remedy = next((remedy for words, remedy in _REMEDIES.items() if words in said), _BROKEN)
            if isinstance(error, OSError):
                remedy = _REMEDIES["full" if "no space" in said else "unable to open"]
            remedy = remedy.format(kept=_KEPT, path=self.path)
            raise LedgerError(f"{self._place[0].upper()}{self._place[1:]} cannot be used: {error}. {remedy}") from error

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked process.
        if self._connection is not None and self._process == os.getpid():
            self._require_same_file()
            return self._connection
        if self.path is not None:
            self._require_usable(self.path)
            if not self.path.exists():
                _require_no_remains(self.path)
                _make(self.path)
        deadline = time.monotonic() + _SECONDS_OF_LOCK
        while True:
            try:
                db = _connected(self.path)
                break
            except sqlite3.OperationalError as error:  # SQLite does not wait for locks on its mode
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        try:
            _bring_up_to_date(db, self.path)
            _keep_sealed(db)
            self._look_for_damage(db)
        except BaseException:
            db.close()
            raise
        self._connection, self._process = db, os.getpid()
        self._file = None if self.path is None else _identity(self.path)
        return self._connection

    def _require_usable(self, path: Path) -> None:
        if path.is_dir():
            raise LedgerError(
                f"ledger: got the folder {path}, expected a file; name one in it, {path / 'jobs.sqlite'}."
            )
        if path.exists() and not path.is_file():
            raise LedgerError(f"ledger: got {path}, which is a device, expected a file; name another (or ':memory:').")
        if not path.parent.is_dir():
            raise LedgerError(f"ledger: got {path}, expected a file in a folder that exists; make {path.parent} first.")
        if path.exists() and path.stat().st_size == 0:
            raise LedgerError(
                f"ledger: {path} is an empty file, and a ledger never is: what was in it is lost. If it held jobs, put back "
                "a copy of it, or all of them are paid for again; if it never held any, remove it."
            )

    def _require_same_file(self) -> None:
        """Notices a file that was removed or replaced while it was open, and saves what was in it."""
        open_still = self._connection
        if self.path is None or open_still is None or self._file == (found := _identity(self.path)):
            return
        saved = self.path if found is None else self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        self._connection = None
        with closing(open_still):
            _copy(open_still, saved)
        what, then = "removed, and was written anew", "run the same again to go on"
        if found is not None:
            what = f"replaced by another file, and what was in it saved as {saved}"
            then = "put back the one that is right, and run the same again"
        raise LedgerError(
            f"The ledger {self.path} was {what}, while this process was using it. Nothing was sent since; {then}."
        )

    def _look_for_damage(self, db: sqlite3.Connection) -> None:
        """Finds rows that are not as they were written; transpiled circuits among them are let go of, and made anew."""
        if self.path is None:
            return
        found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(3)")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(found))
        damaged = {
            table: [str(row) for (row,) in db.execute(f"SELECT rowid FROM {table} WHERE NOT ({_sound(db, table)})")]
            for table in _SEALED
        }
        for row in _discard(db, "circuits") if damaged.pop("circuits") else []:
            _log.warning("%s is damaged in circuits %s; these circuits are transpiled anew", self._place, row)
        self._damaged = damaged


@contextmanager
def _closing_alone(folder: Path) -> Iterator[None]:
    """Lets one connection close at a time, as far as the file system has locks on folders.

    The last one to close writes ``NAME-wal`` into the file and removes it; of two that close at once neither is the last.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # no such locks here
            import fcntl

            opened = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, opened)
            deadline = time.monotonic() + _SECONDS_OF_CLOSING
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.005)
        yield


def _require_no_remains(path: Path) -> None:
    """Whether nothing of an earlier ledger is there, which SQLite would write into a new one of that name."""
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and not path.exists():  # in this order: another process may be making it
        raise LedgerError(
            f"ledger: {path} is gone, but {wal}, with its last writes, is still there. Put the ledger back if it held jobs, "
            f"or all of them are paid for again; for a new one, remove {wal} too."
        )


def _make(path: Path) -> None:
    """Makes a ledger that has its name only once it is whole; of several processes that do so at once, one is first."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with closing(_connected(unfinished, "rwc")) as db:
            _bring_up_to_date(db, path)
        _name(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with closing(_connected(unfinished, "rwc")) as copy:
            db.backup(copy)
        _name(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _name(unfinished: Path, path: Path) -> None:
    """Gives a file its name, unless there is one of that name already."""
    with suppress(FileExistsError):
        try:
            path.hardlink_to(unfinished)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with path.open("xb") as file:
                file.write(unfinished.read_bytes())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _connected(path: Path | None, mode: str = "rw") -> sqlite3.Connection:
    db = sqlite3.connect(
        ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={mode}",
        timeout=_SECONDS_OF_LOCK,
        isolation_level=None,
        check_same_thread=False,
        uri=path is not None,
    )
    try:
        db.create_function("qtb_seal", -1, _seal, deterministic=True)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection, path: Path | None) -> None:
    """Makes the tables of a new ledger, and the seals of one that an earlier version has made."""
    db.execute("BEGIN IMMEDIATE")  # of several processes that start at once, one makes them
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    new = version == 0 and not tables
    if new:
        statements = [*_SCHEMA, *_SEALS]
    elif version == 1:
        statements = ["ALTER TABLE jobs ADD COLUMN result_seal TEXT", *_SEALS]
        statements.append("UPDATE jobs SET result_seal = qtb_seal(result) WHERE result IS NOT NULL")
    elif version == _VERSION:
        statements = []
    elif version > _VERSION:
        raise LedgerError(
            f"ledger: {path} is of version {version}, expected {_VERSION}; a newer release has made it: use that, or name "
            "another file."
        )
    else:
        raise LedgerError(f"ledger: {path} is no ledger, another program has made it; name another file.")
    for statement in statements:
        db.execute(statement)
    if version == 1:
        for table in _SEALED:
            db.execute(f"UPDATE {table} SET seal = {_expression(db, table)}")
    if statements:
        db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")


def _keep_sealed(db: sqlite3.Connection) -> None:
    """Seals every row that this connection writes; one that was damaged before stays so, whatever is written to it."""
    for table in _SEALED:
        seal = f"UPDATE {table} SET seal = {_expression(db, table, 'NEW.')} WHERE rowid = NEW.rowid"
        was_sound = f"OLD.seal IS {_expression(db, table, 'OLD.')}"
        db.execute(f"CREATE TEMP TRIGGER new_{table} AFTER INSERT ON {table} BEGIN {seal}; END")
        db.execute(f"CREATE TEMP TRIGGER changed_{table} AFTER UPDATE ON {table} WHEN {was_sound} BEGIN {seal}; END")
    seal = "UPDATE jobs SET result_seal = qtb_seal(NEW.result) WHERE number = NEW.number"
    db.execute(f"CREATE TEMP TRIGGER result_of_jobs AFTER UPDATE OF result ON jobs BEGIN {seal}; END")


def _expression(db: sqlite3.Connection, table: str, row: str = "") -> str:
    """In SQL: the seal of a row's columns, as bytes because damaged text need not be text."""
    names = [
        name
        for _, name, *_ in db.execute(f"PRAGMA table_info({table})")
        if name not in ("seal", "result", "result_seal")
    ]
    return f"qtb_seal({', '.join(f'CAST({row}{name} AS BLOB)' for name in names)})"


def _sound(db: sqlite3.Connection, table: str) -> str:
    """In SQL: whether a row is as it was written."""
    return f"seal IS {_expression(db, table)}"


def _discard(db: sqlite3.Connection, table: str) -> list[int]:
    """Removes the damaged rows of a table; returns their numbers."""
    rows = [row for (row,) in db.execute(f"SELECT rowid FROM {table} WHERE NOT ({_sound(db, table)})")]
    db.executemany(f"DELETE FROM {table} WHERE rowid = ?", [(row,) for row in rows])
    return rows


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


def _seal(*values: bytes | None) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for value in values:
        hashed.update(b"-" if value is None else b"%d:" % len(value))
        hashed.update(value or b"")
    return hashed.hexdigest()


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
