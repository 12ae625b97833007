"""The SQLite file under a ledger: made whole, brought up to date, sealed row by row, and looked through for damage.

Every row carries a seal, a hash of what is in it: what a failing disk has changed is found, and neither believed nor
mistaken for something that was never asked for. A ledger appears under its name only when it is whole, so an empty file
there is one that has lost everything, and is refused. (SQLite keeps the last writes in ``NAME-wal`` beside it while the
ledger is open: copy both, or close it first.)
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import LedgerError

__all__ = ["LIVE", "LedgerFile", "is_sound", "seal_of"]

_log = logging.getLogger(__name__)

LIVE = "('intended', 'submitted', 'done')"
"""In SQL: the states of a job that is not to be sent (again)."""

_VERSION = 2
_SECONDS_OF_LOCK = 60.0
_SECONDS_OF_CLOSING = 5.0  # after which it is closed all the same
_SEALED = ("jobs", "circuits", "evaluations", "sessions", "events")

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
    CREATE UNIQUE INDEX one_live_job ON jobs (key) WHERE state IN {LIVE};
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
_SEALS = [f"ALTER TABLE {name} ADD COLUMN seal TEXT" for name in _SEALED]

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


class LedgerFile:
    """The tables of a ledger, in a file or in memory.

    Args:
        path: The file; made where there is none. None: in memory.

    Attributes:
        place: What messages call it.
        command: What lists its jobs on the command line.

    Raises:
        LedgerError: If the file is no ledger, is empty, or cannot be opened; also of every method.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.place = f"the ledger {path}" if path else "the ledger in memory"
        self.command = f"qtb jobs {path}"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = -1
        self._identity: tuple[int, int] | None = None
        self._damaged: dict[str, list[str]] = {}  # the rows of each table that were damaged when the file was opened
        with self.transaction():
            pass

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
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

    def rows(self, query: str, *values: Any, of: str = "") -> list[Any]:
        """The rows of a query; ``of`` names the table that must be free of damage for it."""
        with self.transaction() as db:
            if of:
                self.require_sound(of)
            return db.execute(query, values).fetchall()

    def change(self, statement: str, *values: Any) -> int:
        """Carries out one statement; returns how many rows it has changed."""
        with self.transaction() as db:
            return db.execute(statement, values).rowcount

    def require_sound(self, name: str) -> None:
        """Refuses a table some of whose rows were damaged when the file was opened; to be asked in a transaction."""
        if self._damaged.get(name):
            self.refuse(*(f"{name} {row}" for row in self._damaged[name]))

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
            lost = [f"{name} {row}" for name in _SEALED for row in _discard(db, name)]
            self._damaged = {}
        return lost

    def close(self) -> None:
        """Closes the file; it is opened again when needed."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid() and self.path is not None:
                with _closing_alone(self.path.parent):
                    self._connection.close()
                self._connection = None

    def __del__(
        self, getpid: Callable[[], int] = os.getpid
    ) -> None:  # at the interpreter's end there is no os any more
        # From 3.13 on Python complains of a connection that nobody closes; a forked process leaves its parent's alone.
        connection = getattr(self, "_connection", None)
        if connection is not None and self._process == getpid():
            connection.close()

    @property
    def _place_in_front(self) -> str:
        return f"{self.place[0].upper()}{self.place[1:]}"

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
            raise LedgerError(f"{self._place_in_front} cannot be used: {error}. {remedy}") from error

    def _opened(self) -> sqlite3.Connection:
        # A connection must not be carried into a forked process.
        if self._connection is not None and self._process == os.getpid():
            self._require_same_file()
            return self._connection
        if self.path is not None:
            _require_usable(self.path)
            if not self.path.exists():
                with _made_whole(self.path) as db:
                    _bring_up_to_date(db, self.path)
        db = _connected_in_time(self.path)
        try:
            _bring_up_to_date(db, self.path)
            _keep_sealed(db)
            self._look_for_damage(db)
        except BaseException:
            db.close()
            raise
        self._connection, self._process = db, os.getpid()
        self._identity = None if self.path is None else _identity(self.path)
        return self._connection

    def _require_same_file(self) -> None:
        """Notices a file that was removed or replaced while it was open, and saves what was in it."""
        open_still = self._connection
        if self.path is None or open_still is None or self._identity == (new := _identity(self.path)):
            return
        saved = self.path if new is None else self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        self._connection = None
        with closing(open_still), _made_whole(saved) as copy:
            open_still.backup(copy)
        what, then = "removed, and was written anew", "run the same again to go on"
        if new is not None:
            what = f"replaced by another file, and what was in it saved as {saved}"
            then = "put back the one that is right, and run the same again"
        raise LedgerError(
            f"The ledger {self.path} was {what}, while this process was using it. Nothing was sent since; {then}."
        )

    def _look_for_damage(self, db: sqlite3.Connection) -> None:
        """Finds rows that are not as they were written; transpiled circuits among them are let go of, and made anew."""
        if self.path is None:
            return
        answers = [str(answer) for (answer,) in db.execute("PRAGMA integrity_check(3)")]
        if answers != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(answers))
        damaged = {name: list(map(str, _damaged(db, name))) for name in _SEALED}
        for row in _discard(db, "circuits") if damaged.pop("circuits") else []:
            _log.warning("%s is damaged in circuits %s; these circuits are transpiled anew", self.place, row)
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


def _require_usable(path: Path) -> None:
    """Whether there is a ledger, or room for a new one, which would take on what is left of an earlier one."""
    if path.is_dir():
        raise LedgerError(f"ledger: got the folder {path}, expected a file; name one in it, {path / 'jobs.sqlite'}.")
    if path.exists() and not path.is_file():
        raise LedgerError(f"ledger: got {path}, which is a device, expected a file; name another (or ':memory:').")
    if not path.parent.is_dir():
        raise LedgerError(f"ledger: got {path}, expected a file in a folder that exists; make {path.parent} first.")
    if path.exists() and path.stat().st_size == 0:
        raise LedgerError(
            f"ledger: {path} is an empty file, and a ledger never is: what was in it is lost. If it held jobs, put back "
            "a copy of it, or all of them are paid for again; if it never held any, remove it."
        )
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and not path.exists():  # in this order: another process may be making it
        raise LedgerError(
            f"ledger: {path} is gone, but {wal}, with its last writes, is still there. Put the ledger back if it held jobs, "
            f"or all of them are paid for again; for a new one, remove {wal} too."
        )


@contextmanager
def _made_whole(path: Path) -> Iterator[sqlite3.Connection]:
    """A new file that has its name only once it is whole; of several processes that make it at once, one is first."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with closing(_connected(unfinished, "rwc")) as db:
            yield db
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
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connected_in_time(path: Path | None) -> sqlite3.Connection:
    deadline = time.monotonic() + _SECONDS_OF_LOCK
    while True:
        try:
            return _connected(path)
        except sqlite3.OperationalError as error:  # SQLite does not wait for locks on its mode
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connected(path: Path | None, mode: str = "rw") -> sqlite3.Connection:
    db = sqlite3.connect(
        ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={mode}",
        timeout=_SECONDS_OF_LOCK,
        isolation_level=None,
        check_same_thread=False,
        uri=path is not None,
    )
    try:
        db.create_function("qtb_seal", -1, seal_of, deterministic=True)
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
        for name in _SEALED:
            db.execute(f"UPDATE {name} SET seal = {_seal(db, name)}")
    if statements:
        db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("COMMIT")


def _keep_sealed(db: sqlite3.Connection) -> None:
    """Seals every row that this connection writes; one that was damaged before stays so, whatever is written to it."""
    for name in _SEALED:
        seal = f"UPDATE {name} SET seal = {_seal(db, name, 'NEW.')} WHERE rowid = NEW.rowid"
        was_sound = f"OLD.seal IS {_seal(db, name, 'OLD.')}"
        db.execute(f"CREATE TEMP TRIGGER new_{name} AFTER INSERT ON {name} BEGIN {seal}; END")
        db.execute(f"CREATE TEMP TRIGGER changed_{name} AFTER UPDATE ON {name} WHEN {was_sound} BEGIN {seal}; END")
    seal = "UPDATE jobs SET result_seal = qtb_seal(NEW.result) WHERE number = NEW.number"
    db.execute(f"CREATE TEMP TRIGGER result_of_jobs AFTER UPDATE OF result ON jobs BEGIN {seal}; END")


def is_sound(db: sqlite3.Connection, name: str) -> str:
    """In SQL: whether a row of that table is as it was written."""
    return f"seal IS {_seal(db, name)}"


def seal_of(*values: bytes | None) -> str:
    """The seal of a row with these values."""
    hashed = hashlib.blake2b(digest_size=16)
    for value in values:
        hashed.update(b"-" if value is None else b"%d:" % len(value))
        hashed.update(value or b"")
    return hashed.hexdigest()


def _seal(db: sqlite3.Connection, name: str, row: str = "") -> str:
    """In SQL: the seal of a row's columns, as bytes because damaged text need not be text."""
    columns = [column for _, column, *_ in db.execute(f"PRAGMA table_info({name})")]
    sealed = [column for column in columns if column not in ("seal", "result", "result_seal")]
    return f"qtb_seal({', '.join(f'CAST({row}{column} AS BLOB)' for column in sealed)})"


def _damaged(db: sqlite3.Connection, name: str) -> list[int]:
    """The numbers of the rows of a table that are not as they were written."""
    return [row for (row,) in db.execute(f"SELECT rowid FROM {name} WHERE NOT ({is_sound(db, name)})")]


def _discard(db: sqlite3.Connection, name: str) -> list[int]:
    """Removes the damaged rows of a table; returns their numbers."""
    rows = _damaged(db, name)
    db.executemany(f"DELETE FROM {name} WHERE rowid = ?", [(row,) for row in rows])
    return rows
