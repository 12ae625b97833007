"""Work in a child process: what it gives comes back, and one that hangs is killed."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

# Forking a process that has threads: newer Pythons warn of what is on trial in these tests.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def _answer(connection: Connection, work: Callable[[], Any]) -> None:
    connection.send(work())


def in_child(method: str, work: Callable[..., Any], answer: Callable[..., None] = _answer) -> Any:
    """What ``answer(connection, work)`` sends from a child process that is started by ``method``."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=answer, args=(theirs, work))
    child.start()
    theirs.close()
    try:
        assert mine.poll(120), "the child gave nothing"
        result = mine.recv()
        child.join(60)
        assert child.exitcode == 0
        return result
    finally:
        if child.is_alive():
            child.kill()
        child.join()
