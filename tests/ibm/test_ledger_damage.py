"""A ledger on a disk that fails, or in the hands of others: the right numbers, or one error that says what to do."""

import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from qiskit_torch_bridge import HardwareError, Ledger
from qiskit_torch_bridge.backends.ibm.errors import LedgerError
from qiskit_torch_bridge.backends.ibm.ledger import Caps, Job, ResultDamaged, Role

JOBS, ROUNDS = 4, 8
KEYS = [f"key-{number}" for number in range(JOBS)]
RESULTS = [random.Random(number).randbytes(3000) for number in range(JOBS)]


def claim(ledger: Ledger, key: str, **caps: Any) -> Any:
    return ledger.claim([Job(key, 1, 3, 3, estimated_seconds=2.0)], run="run", backend="device", caps=Caps(**caps))[0]


def filled(path: Path) -> Path:
    """A ledger of four jobs: three done, one submitted; with circuits, an evaluation, a session and an event."""
    ledger = Ledger(path)
    for number, key in enumerate(KEYS):
        job = claim(ledger, key).number
        ledger.submitted(job, f"job-{number}", session_id=None, calibrated="today")
        if number < JOBS - 1:
            ledger.finished(job, RESULTS[number], 1.5)
    ledger.keep_circuits("circuits", b"qpy" * 50)
    ledger.note_evaluation("evaluation", "run", {"parts": [["key-0", 0]]}, b"angles" * 20)
    ledger.session_opened("session", "run", "device", "batch")
    ledger.note("run", "kind", "message", number=1)
    ledger.close()
    return path


@pytest.fixture
def path(tmp_path):
    return filled(tmp_path / "jobs.sqlite")


def poke(path: Path, statement: str, *values: Any) -> None:
    """Changes a row behind the ledger's back, as a failing disk does."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(statement, values).rowcount == 1
        db.commit()


def as_of_version_1(path: Path) -> None:
    """Makes of the file what the first version would have written."""
    with closing(sqlite3.connect(path)) as db:
        for table in ("jobs", "circuits", "evaluations", "sessions", "events"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN seal")
        db.execute("ALTER TABLE jobs DROP COLUMN result_seal")
        db.execute("PRAGMA user_version = 1")
        db.commit()


def assert_as_written_or_refused(path: Path) -> bool:
    """Asks for all that is in it, as a run that goes on does; returns whether it was as it was written.

    No job that is in it may be sent again, and nothing else may come back than what was written.
    """
    try:
        with closing(Ledger(path)) as ledger:
            for number, key in enumerate(KEYS):
                found = claim(ledger, key)
                assert found.role is (Role.DONE if number < JOBS - 1 else Role.AWAIT)
                entry = ledger.entry(found.number)
                assert (entry.key, entry.job_id, entry.shots) == (key, f"job-{number}", 3)
                if found.role is Role.DONE:
                    assert ledger.result(found.number) == RESULTS[number]
            assert ledger.spent("run").qpu_seconds == 3 * 1.5 + 2.0
            assert ledger.circuits("circuits") in (b"qpy" * 50, None)  # those can be made anew
            assert ledger.evaluations() == [({"parts": [["key-0", 0]]}, b"angles" * 20)]
            assert ledger.open_session("run", "device", "batch") == "session"
            assert [(event["kind"], event["data"]) for event in ledger.events()] == [("kind", {"number": 1})]
    except LedgerError as error:
        said = str(error)
    else:
        return True
    assert str(path) in said
    return False


def test_any_byte_of_the_file(path, tmp_path):
    """A few hundred draws: what was written, or a LedgerError."""
    whole, draws = path.read_bytes(), random.Random(14)
    damaged = tmp_path / "damaged.sqlite"
    refused = 0
    for _ in range(300):
        place, length = draws.randrange(len(whole)), draws.choice([1, 40])
        wrong = bytes(byte ^ draws.randrange(1, 256) for byte in whole[place : place + length])
        damaged.write_bytes(whole[:place] + wrong + whole[place + length :])
        refused += not assert_as_written_or_refused(damaged)
        for beside in tmp_path.glob("damaged.sqlite-*"):
            beside.unlink()
    assert 30 < refused < 270


CELLS = [
    ("jobs", "key", "key-9"),
    ("jobs", "tag", "another"),
    ("jobs", "shots", 4),
    ("jobs", "state", "failed"),
    ("jobs", "job_id", "job-9"),
    ("jobs", "usage_seconds", 0.0),
    ("jobs", "estimated_seconds", "text"),
    ("evaluations", "angles", b"others"),
    ("evaluations", "description", "{"),
    ("sessions", "id", "another"),
    ("events", "data", "]"),
]


@pytest.mark.parametrize(("table", "column", "value"), CELLS, ids=[f"{table}-{column}" for table, column, _ in CELLS])
def test_a_row_that_was_changed_is_named_and_can_be_given_up(path, table, column, value):
    poke(path, f"UPDATE {table} SET {column} = ? WHERE rowid = 1", value)
    assert not assert_as_written_or_refused(path)
    with closing(Ledger(path)) as ledger:
        asks = {"jobs": lambda: claim(ledger, "new"), "evaluations": ledger.evaluations, "events": ledger.events}
        ask = asks.get(table, lambda: ledger.open_session("run", "device", "batch"))
        with pytest.raises(LedgerError, match=rf"damaged in {table} 1: .*jobs {path} --discard-damaged`") as caught:
            ask()
        assert "all other rows are sound" in str(caught.value)
        states = [entry.state for entry in ledger.entries()]
        assert states == [*(["damaged"] if table == "jobs" else ["done"]), "done", "done", "submitted"]
        assert ledger.result(2) == RESULTS[1]

        assert ledger.discard_damaged() == [f"{table} 1"]
        assert [e["message"] for e in ledger.events("discarded")] == [f"{table} 1 was damaged, and was given up"]
        assert claim(ledger, KEYS[1]).role is Role.DONE
        assert claim(ledger, KEYS[0]).role is (Role.SUBMIT if table == "jobs" else Role.DONE)
    with closing(Ledger(path)) as ledger:
        assert ledger.discard_damaged() == []


def test_a_damaged_row_does_not_become_sound_when_it_is_written_to(path):
    poke(path, "UPDATE jobs SET key = 'another' WHERE number = 4")
    with closing(Ledger(path)) as ledger:
        ledger.finished(4, b"result", 1.0)
        assert ledger.entries()[3].state == "damaged"
        with pytest.raises(LedgerError, match="damaged in jobs 4"):
            ledger.entry(4)


def test_a_damaged_result_is_its_own_matter(path):
    poke(path, "UPDATE jobs SET result = ? WHERE number = 1", RESULTS[1])  # whole, but another's
    with closing(Ledger(path)) as ledger:
        assert claim(ledger, KEYS[0]).role is Role.DONE
        with pytest.raises(ResultDamaged, match=rf"job 1 in the ledger {path} is damaged.*All others can be used"):
            ledger.result(1)
        assert ledger.result(2) == RESULTS[1]


def test_damaged_circuits_are_let_go_of(path, caplog):
    """They are made anew, under the same key; no job depends on their bytes."""
    poke(path, "UPDATE circuits SET circuits = ?", b"qpx" * 50)
    with closing(Ledger(path)) as ledger:
        assert ledger.circuits("circuits") is None
        assert "transpiled anew" in caplog.text
        assert ledger.keep_circuits("circuits", b"new") == b"new"
    with closing(Ledger(path)) as ledger:
        assert ledger.circuits("circuits") == b"new"


def test_a_ledger_of_the_first_version_is_taken_on(path):
    as_of_version_1(path)
    assert assert_as_written_or_refused(path)
    poke(path, "UPDATE jobs SET key = 'another' WHERE number = 1")
    assert not assert_as_written_or_refused(path)


# --- files that are no ledgers, or not any more ------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [False, True])
def test_an_empty_file_is_not_taken_for_a_new_ledger(path, beside):
    """Or everything would be paid for again."""
    path.write_bytes(b"")
    if beside:
        path.with_name(f"{path.name}-wal").write_bytes(b"what SQLite had not moved to the file yet")
    with pytest.raises(LedgerError, match=rf"{path} is an empty file.*put back a copy.*never held any, remove it"):
        Ledger(path)
    assert path.read_bytes() == b""
    assert path.with_name(f"{path.name}-wal").exists() == beside  # SQLite itself would have removed it
    path.unlink()
    path.with_name(f"{path.name}-wal").unlink(missing_ok=True)
    Ledger(path).close()


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_file_that_was_cut_off(path, part):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(LedgerError, match=rf"sqlite3 {path} .recover"):
        Ledger(path)


def test_a_folder(tmp_path):
    with pytest.raises(LedgerError, match=rf"got the folder {tmp_path}, expected a file; name one in it"):
        Ledger(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(LedgerError, match="got /dev/null, which is a device, expected a file"):
        Ledger("/dev/null")


def test_a_newer_version(path):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(LedgerError, match="is of version 9, expected 2; a newer release has made it"):
        Ledger(path)


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("attempt to write a readonly database", "make the file and its folder writable"),
        ("database or disk is full", "make room"),
        ("disk I/O error", "make room if it is full"),
        ("database is locked", "look for one that hangs"),
        ("unable to open database file", "whether you may read and write"),
        ("file is not a database", "name another file"),
        ("database disk image is malformed", r"sqlite3 {path} .recover"),
    ],
)
def test_the_remedy_is_the_one_for_the_case(path, says, remedy):
    ledger = Ledger(path)
    expected = f"{path} cannot be used: {says}.*{remedy.format(path=path)}"
    with pytest.raises(LedgerError, match=expected), ledger._file.transaction():
        raise sqlite3.OperationalError(says)
    ledger.close()


def test_a_ledger_that_is_removed_while_it_is_open_is_written_anew(path):
    ledger = Ledger(path)
    claim(ledger, "new")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    with pytest.raises(LedgerError, match=r"removed, and was written anew.*run the same again"):
        claim(ledger, "newer")
    assert [entry.key for entry in ledger.entries()] == [*KEYS, "new"]
    assert claim(ledger, KEYS[0]).role is Role.DONE
    ledger.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_ledger_that_is_replaced_while_it_is_open_is_saved(path, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.sqlite")
    ledger = Ledger(path)
    claim(ledger, "new")
    Path(copy).replace(path)
    with pytest.raises(LedgerError, match="replaced by another file, and what was in it saved as") as caught:
        claim(ledger, "newer")
    ledger.close()
    (saved,) = [file for file in tmp_path.glob("jobs.sqlite.*") if "-" not in file.name]
    assert str(saved) in str(caught.value)
    with closing(Ledger(saved)) as kept:
        assert [entry.key for entry in kept.entries()] == [*KEYS, "new"]


# --- many that open it at once -----------------------------------------------------------------------------------------


def _open_when_all_are_there(path: Path, barrier: Any, found: Any) -> None:
    try:
        for number in range(ROUNDS):
            barrier.wait()
            with closing(Ledger(path / f"{number}.sqlite")) as ledger:
                found.put(claim(ledger, "key").role.name)
    except (HardwareError, OSError) as error:
        found.put(f"{type(error).__name__}: {error}")


def _roles(found: Any, count: int) -> Iterator[str]:
    for _ in range(count):
        yield found.get(timeout=60)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_eight_open_a_new_ledger_at_the_same_instant(tmp_path, kind):
    context = get_context("fork" if kind == "processes" else None)
    if kind == "threads":
        import queue

        barrier, found, start = threading.Barrier(8), queue.Queue(), threading.Thread
    else:
        barrier, found, start = context.Barrier(8), context.Queue(), context.Process
    workers = [start(target=_open_when_all_are_there, args=(tmp_path, barrier, found)) for _ in range(8)]
    for worker in workers:
        worker.start()
    roles = sorted(_roles(found, 8 * ROUNDS))
    for worker in workers:
        worker.join()
    # One of the eight sends it; the others wait for that one, or find that it is no more.
    assert set(roles) <= {"SUBMIT", "WAIT", "RECOVER"}, set(roles)
    assert roles.count("SUBMIT") == ROUNDS
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{number}.sqlite" for number in range(ROUNDS)]


def test_a_lock_on_the_mode_of_the_file_is_waited_for(path):
    """SQLite itself does not wait for it: two processes that opened a new ledger at once collided there."""
    holder = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    assert holder.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    holder.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.3, holder.execute, ["ROLLBACK"])
    release.start()
    Ledger(path).close()
    release.join()
    holder.close()
