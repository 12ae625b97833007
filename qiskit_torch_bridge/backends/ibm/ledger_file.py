"""The SQLite file under a ledger: made whole, brought up to date, sealed row by row, and looked through for damage.

Every row carries a seal, a hash of what is in it: what a failing disk has changed is found, and neither believed nor
mistaken for something that was never asked for. A ledger appears under its name only when it is whole, so an empty file
there is one that has lost everything, and is refused. (SQLite keeps the last writes in ``NAME-wal`` beside it while the
ledger is open: copy both, or close it first.)
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from .errors import LedgerError

__all__ = ["LIVE", "Seal", "closing_alone", "discard_damaged", "is_sound", "open_tables", "remedy_of", "save"]

Seal: TypeAlias = Callable[..., str]

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


def open_tables(path: Path | None, seal: Seal, *, place: str) -> tuple[sqlite3.Connection, dict[str, list[str]]]:
    """Opens a ledger, made or brought up to date where need be, every row of which is sealed when it is written.

    Args:
        path: The file; None: in memory.
        seal: What makes the seal of a row with these values.
        place: What messages call it.

    Returns:
        The connection, and the rows of each table that are not as they were written; transpiled circuits among them are let
        go of, and made anew.
    """
    if path is not None:
        _require_usable(path)
        if not path.exists():
            with _made_whole(path.resolve(), seal) as db:  # a link may name a file that is not there yet
                _bring_up_to_date(db, path)
    db = _connected_in_time(path, seal)
    try:
        _bring_up_to_date(db, path)
        _keep_sealed(db)
        return db, {} if path is None else _damage(db, place)
    except BaseException:
        db.close()
        raise


def save(db: sqlite3.Connection, path: Path, seal: Seal) -> None:
    """Writes what an open ledger holds into a file, unless there is one of that name."""
    with _made_whole(path, seal) as copy:
        db.backup(copy)


def remedy_of(error: Exception, path: Path | None) -> str:
    """What can be done about an error of SQLite's, or of the file system's."""
    said = str(error).lower()
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in said), _BROKEN)
    if isinstance(error, OSError):
        remedy = _REMEDIES["full" if "no space" in said else "unable to open"]
    return remedy.format(kept=_KEPT, path=path)


def discard_damaged(db: sqlite3.Connection) -> list[str]:
    """Removes all rows that are damaged; returns them as ``"TABLE ROW"``."""
    return [f"{name} {row}" for name in _SEALED for row in _discard(db, name)]


@contextmanager
def closing_alone(folder: Path) -> Iterator[None]:
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


def is_sound(db: sqlite3.Connection, name: str) -> str:
    """In SQL: whether a row of that table is as it was written."""
    return f"seal IS {_seal(db, name)}"


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
    file = path.resolve()
    wal = file.with_name(f"{file.name}-wal")
    if wal.exists() and not path.exists():  # in this order: another process may be making it
        raise LedgerError(
            f"ledger: {path} is gone, but {wal}, with its last writes, is still there. Put the ledger back if it held jobs, "
            f"or all of them are paid for again; for a new one, remove {wal} too."
        )


@contextmanager
def _made_whole(path: Path, seal: Seal) -> Iterator[sqlite3.Connection]:
    """A new file that has its name only once it is whole; of several processes that make it at once, one is first."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with closing(_connected(unfinished, seal, "rwc")) as db:
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


def _connected_in_time(path: Path | None, seal: Seal) -> sqlite3.Connection:
    deadline = time.monotonic() + _SECONDS_OF_LOCK
    while True:
        try:
            return _connected(path, seal)
        except sqlite3.OperationalError as error:  # SQLite does not wait for locks on its mode
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connected(path: Path | None, seal: Seal, mode: str = "rw") -> sqlite3.Connection:
    db = sqlite3.connect(
        ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={mode}",
        timeout=_SECONDS_OF_LOCK,
        isolation_level=None,
        check_same_thread=False,
        uri=path is not None,
    )
    try:
        db.create_function("qtb_seal", -1, seal, deterministic=True)
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


def _seal(db: sqlite3.Connection, name: str, row: str = "") -> str:
    """In SQL: the seal of a row's columns, as bytes because damaged text need not be text."""
    columns = [column for _, column, *_ in db.execute(f"PRAGMA table_info({name})")]
    sealed = [column for column in columns if column not in ("seal", "result", "result_seal")]
    return f"qtb_seal({', '.join(f'CAST({row}{column} AS BLOB)' for column in sealed)})"


def _damage(db: sqlite3.Connection, place: str) -> dict[str, list[str]]:
    answers = [str(answer) for (answer,) in db.execute("PRAGMA integrity_check(3)")]
    if answers != ["ok"]:
        raise sqlite3.DatabaseError("; ".join(answers))
    damaged = {name: list(map(str, _damaged(db, name))) for name in _SEALED}
    for row in _discard(db, "circuits") if damaged.pop("circuits") else []:
        _log.warning("%s is damaged in circuits %s; these circuits are transpiled anew", place, row)
    return damaged


def _damaged(db: sqlite3.Connection, name: str) -> list[int]:
    """The numbers of the rows of a table that are not as they were written."""
    return [row for (row,) in db.execute(f"SELECT rowid FROM {name} WHERE NOT ({is_sound(db, name)})")]


def _discard(db: sqlite3.Connection, name: str) -> list[int]:
    """Removes the damaged rows of a table; returns their numbers."""
    rows = _damaged(db, name)
    db.executemany(f"DELETE FROM {name} WHERE rowid = ?", [(row,) for row in rows])
    return rows
