"""What SQLite keeps beside a ledger: nothing after the last one has closed it, and nothing of it in another ledger."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from qiskit_torch_bridge import Ledger
from qiskit_torch_bridge.backends.ibm import ledger_file
from qiskit_torch_bridge.backends.ibm.errors import LedgerError
from qiskit_torch_bridge.backends.ibm.ledger import Caps, Job


def fill(ledger: Ledger, jobs: int, size: int) -> None:
    for _ in range(jobs):
        key = f"key-{len(ledger.entries())}"
        (claim,) = ledger.claim([Job(key, 1, 1, 1, estimated_seconds=1.0)], run="", backend="device", caps=Caps())
        ledger.submitted(claim.number, f"id of {key}", session_id=None, calibrated="")
        ledger.finished(claim.number, os.urandom(size), 1.0)


def _fill_and_die(path: Path, jobs: int, size: int) -> None:
    ledger = Ledger(path)
    fill(ledger, jobs, size)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("jobs", "size"), [(3, 100), (40, 150_000)], ids=["all of it beside", "a part beside"])
def test_a_new_ledger_does_not_take_on_what_a_lost_one_has_left(tmp_path, jobs, size):
    """SQLite would write it into the new file: the old jobs come back, or its pages are damaged."""
    path, beside = tmp_path / "jobs.sqlite", tmp_path / "jobs.sqlite-wal"
    dying = get_context("fork").Process(target=_fill_and_die, args=(path, jobs, size))
    dying.start()
    dying.join()
    kept = path.rename(tmp_path / "elsewhere")
    left = beside.read_bytes()
    with pytest.raises(LedgerError, match=rf"{path} is gone, but {beside}, .*Put the ledger back.*remove {beside} too"):
        Ledger(path)
    assert (path.exists(), beside.read_bytes()) == (False, left)

    kept.rename(path)  # the first piece of advice
    with closing(Ledger(path)) as ledger:
        assert [entry.state for entry in ledger.entries()] == ["done"] * jobs
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    path.unlink()
    beside.write_bytes(left)
    beside.unlink()  # the second
    with closing(Ledger(path)) as ledger:
        assert ledger.entries() == []


@pytest.mark.slow
def test_a_process_that_ends_with_an_open_ledger_does_so_quietly(tmp_path: Path) -> None:
    program = "import sys; from qiskit_torch_bridge import Ledger; ledger = Ledger(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", program, tmp_path / "jobs.sqlite"], capture_output=True, check=True)
    assert ended.stderr == b""
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.sqlite"]


class Slow(sqlite3.Connection):
    """A connection whose closing can be seen."""

    closing = 0
    most = 0
    lock = threading.Lock()

    def close(self) -> None:
        with Slow.lock:
            Slow.closing += 1
            Slow.most = max(Slow.most, Slow.closing)
        threading.Event().wait(0.05)
        super().close()
        with Slow.lock:
            Slow.closing -= 1


@contextmanager
def _seen() -> Iterator[None]:
    genuine = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return genuine(*arguments, factory=Slow, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_file.sqlite3, "connect", connect)
        yield


def test_of_those_that_close_at_once_one_is_the_last(tmp_path):
    """Two that close at the same instant hold each other up, and SQLite leaves the last writes beside the file."""
    path = tmp_path / "jobs.sqlite"
    Ledger(path).close()
    with _seen():
        ledgers = [Ledger(path) for _ in range(4)]
        fill(ledgers[0], 2, 100)
        threads = [threading.Thread(target=ledger.close) for ledger in ledgers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (Slow.most, Slow.closing) == (1, 0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_somebody_else_has_locked_holds_nobody_up(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(ledger_file, "_SECONDS_OF_CLOSING", 0.02)
    ledger = Ledger(tmp_path / "jobs.sqlite")
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    ledger.close()
    os.close(folder)
    assert [file.name for file in tmp_path.iterdir()] == ["jobs.sqlite"]
