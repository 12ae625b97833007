"""The ledger: what was going to be sent, what was sent, and what came back, on disk before it can be lost.

A job is written down *before* it is submitted, with a tag that it will carry; its id as soon as the service has told it; its
result when it has arrived. So after a crash at any instant the ledger and the service together know of every job: one
that was submitted while nobody could write its id down is found by its tag.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import psutil

from .errors import BudgetExceeded, LedgerError

__all__ = ["Caps", "Claim", "Entry", "Job", "Ledger", "Role", "Spent"]

_VERSION = 1
_SECONDS_OF_FOREIGN_CLAIM = 300.0  # after which a claim from another machine counts as abandoned
_SECONDS_OF_CLOCK = 60.0
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
    """A job as the ledger knows it; the names are those of its columns."""

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


class Ledger:
    """A ledger in an SQLite file, which any number of processes of a machine may share.

    Args:
        path: The file; made where there is none. None or ``":memory:"``: in memory, for rehearsals whose jobs cost
            nothing.

    Raises:
        LedgerError: If the file is no ledger, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None or path == ":memory:" else Path(path)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = -1
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
                    tag = f"qtb-{uuid.uuid4().hex}"
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

    def failed(self, number: int, state: str, error: str, usage_seconds: float | None) -> None:
        """The job has ended without one; it may be sent anew. ``state`` is ``"failed"`` or ``"cancelled"``."""
        with self._transaction() as db:
            db.execute(
                "UPDATE jobs SET state = ?, owner = NULL, error = ?, usage_seconds = ?, finished_at = ? "
                "WHERE number = ? AND state IN ('intended', 'submitted')",  # a result is never given up
                (state, error, usage_seconds, _now(), number),
            )

    def billed(self, number: int, usage_seconds: float) -> None:
        """What the service has billed for it, where it said so only later."""
        with self._transaction() as db:
            db.execute("UPDATE jobs SET usage_seconds = ? WHERE number = ?", (usage_seconds, number))

    # What is here.

    def entry(self, number: int) -> Entry:
        """One job."""
        with self._transaction() as db:
            return Entry(*db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE number = ?", (number,)).fetchone())

    def entries(self) -> list[Entry]:
        """All jobs, in the order in which they were written down."""
        with self._transaction() as db:
            return [Entry(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY number")]

    def result(self, number: int) -> bytes:
        """The result of a job that is done."""
        with self._transaction() as db:
            (result,) = db.execute("SELECT result FROM jobs WHERE number = ?", (number,)).fetchone()
        return bytes(result)

    def spent(self, run: str) -> Spent:
        """What a run's jobs have come to."""
        with self._transaction() as db:
            return self._spent(db, run)

    # Circuits, evaluations, sessions, events.

    def keep_circuits(self, key: str, circuits: bytes) -> bytes:
        """Keeps transpiled circuits, unless there are some of that key already; returns those that are kept."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO circuits VALUES (?, ?)", (key, circuits))
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
            db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)", row)

    def evaluations(self) -> list[tuple[dict[str, Any], bytes]]:
        """All evaluations, in the order in which they were asked for: description and angles."""
        with self._transaction() as db:
            rows = db.execute("SELECT description, angles FROM evaluations ORDER BY rowid").fetchall()
        return [(json.loads(description), bytes(angles)) for description, angles in rows]

    def open_session(self, run: str, backend: str, mode: str) -> str | None:
        """The id of the last session that was opened and not closed, or None."""
        with self._transaction() as db:
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
            db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, NULL)", row)

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
            rows = db.execute(query, (kind, kind)).fetchall()
        return [
            dict(zip(("at", "run", "kind", "message"), row[:4], strict=True), data=json.loads(row[4])) for row in rows
        ]

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid() and self.path is not None:
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
        with self._lock:
            try:
                db = self._opened()
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:  # after some errors SQLite has gone back by itself
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(
                    f"The ledger {self.path} cannot be used: {error}. Submitted jobs are still at the service, "
                    "and the ledger finds them by their tags; make room (or put the file right), and run the same again."
                ) from error

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked process.
        if self._connection is None or self._process != os.getpid():
            if self.path is not None and not self.path.parent.is_dir():
                raise LedgerError(f"ledger: got {self.path}, expected a file in a folder that exists.")
            db = sqlite3.connect(
                ":memory:" if self.path is None else self.path,
                timeout=60,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                self._make_tables(db)
            except BaseException:
                db.close()
                raise
            self._connection, self._process = db, os.getpid()
        return self._connection

    def _make_tables(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")  # of several processes that start at once, one makes them
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if version == 0 and not tables:
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise LedgerError(f"ledger: {self.path} is no ledger of version {_VERSION}; give another file.")
        db.execute("COMMIT")


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
