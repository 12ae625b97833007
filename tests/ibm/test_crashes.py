"""Trainings on the stand-in of IBM's service that are killed, that meet, and whose disk is full."""

import functools
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import Nursery, full_disk, ibm, layer_on, step, trained

from qiskit_torch_bridge import Ledger
from qiskit_torch_bridge.backends.ibm.errors import LedgerError
from qiskit_torch_bridge.backends.ibm.service import CloudDevice

STEPS = 15
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def nursery(server):
    with Nursery(server.environment) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> Callable[[int], torch.Tensor]:
    """The weights after so many steps, if nothing happens."""

    @functools.cache
    def after(steps: int, packing: Any = None) -> torch.Tensor:
        folder = tmp_path_factory.mktemp("undisturbed")
        assert nursery.end_of(nursery.start(folder, steps, packing=packing)) == 0
        return trained(folder)

    return after


def assert_nothing_was_paid_twice(jobs: list[dict[str, Any]], folder: Path, steps: int) -> None:
    """The jobs at the server are those of the ledger, one a step."""
    entries = Ledger(folder / "ledger.sqlite").entries()
    assert [(e.state, e.job_id, e.tag) for e in entries] == [("done", job["id"], job["tags"][0]) for job in jobs]
    assert len(jobs) == len({job["tags"][0] for job in jobs}) == len({entry.key for entry in entries}) == steps
    assert_intact(folder / "ledger.sqlite")


def assert_intact(ledger: Path) -> None:
    with sqlite3.connect(ledger) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


@pytest.mark.slow
def test_a_training_that_is_killed_eight_times_ends_the_same(cloud, nursery, undisturbed, tmp_path):
    expected, before = undisturbed(STEPS), len(cloud.jobs())
    moments = random.Random(20)
    cloud.inject("slow", count=None, seconds=0.02)  # so that processes die in the midst of requests
    for _ in range(8):
        # A request that is on its way when its process dies becomes a job only after a while.
        process = nursery.start(tmp_path, STEPS, ready=True, settle_seconds=0.5)
        time.sleep(moments.uniform(0, 0.2))  # about a step
        os.kill(process, signal.SIGKILL)
        assert nursery.end_of(process) == KILLED
    cloud.clear()
    assert nursery.end_of(nursery.start(tmp_path, STEPS, settle_seconds=0.5)) == 0
    assert torch.equal(trained(tmp_path), expected)
    assert_nothing_was_paid_twice(cloud.jobs()[before:], tmp_path, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, "auto"])
def test_a_training_may_be_killed_between_any_two_deeds(cloud, nursery, undisturbed, tmp_path, packing):
    expected, recovered = undisturbed(1, packing), []
    for moment in range(1, 100):
        folder = tmp_path / str(moment)
        folder.mkdir()
        before = len(cloud.jobs())
        code = nursery.end_of(nursery.start(folder, 1, die_at=moment, packing=packing))
        if code == 0:
            break
        assert code == KILLED
        assert nursery.end_of(nursery.start(folder, 1, packing=packing)) == 0
        assert torch.equal(trained(folder), expected)
        assert_nothing_was_paid_twice(cloud.jobs()[before:], folder, 1)
        recovered += [moment] if Ledger(folder / "ledger.sqlite").events("recovered") else []
    assert 10 < moment < 99
    assert len(recovered) >= 1  # once the service has been asked and before the answer is written down


@pytest.mark.slow
@pytest.mark.parametrize("packing", [None, "auto"])
def test_two_processes_with_one_ledger_send_each_job_once(cloud, nursery, undisturbed, tmp_path, packing):
    expected, before, folders = undisturbed(8, packing), len(cloud.jobs()), [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    # One file for both; what else they write is their own.
    (folders[1] / "ledger.sqlite").symlink_to(folders[0] / "ledger.sqlite")
    cloud.inject("slow", count=None, seconds=0.02)
    processes = [nursery.start(folder, 8, packing=packing) for folder in folders]
    assert [nursery.end_of(process) for process in processes] == [0, 0]
    cloud.clear()
    assert torch.equal(trained(folders[0]), expected)
    assert torch.equal(trained(folders[1]), expected)
    assert_nothing_was_paid_twice(cloud.jobs()[before:], folders[0], 8)


@pytest.mark.parametrize("when", ["submit", "result"])
def test_a_disk_that_fills_up_loses_nothing(cloud, tmp_path, ledger, monkeypatch, when):
    """After the service has taken the job, or with its result in hand."""
    genuine = getattr(CloudDevice, when)
    disk = ExitStack()

    def filling_up(*arguments: Any, **options: Any) -> Any:
        answer = genuine(*arguments, **options)
        disk.enter_context(full_disk(tmp_path / "ledger.sqlite-wal"))
        return answer

    with disk, ibm(ledger) as backend:
        layer = layer_on(backend)
        expected = step(layer)
        before = len(cloud.jobs())
        with monkeypatch.context() as patch:
            patch.setattr(CloudDevice, when, filling_up)
            with pytest.raises(LedgerError, match="make room") as caught:
                step(layer)
        assert str(ledger) in str(caught.value)
        assert len(cloud.jobs()) == before + 1
        with pytest.raises(LedgerError, match="make room"):
            step(layer)
        disk.close()
        assert torch.equal(step(layer), expected)  # the stand-in gives equal jobs equal results
        assert len(cloud.jobs()) == before + 1
        assert [entry.state for entry in backend.ledger.entries()] == ["done", "done"]
    assert_intact(ledger)


@pytest.mark.slow
def test_a_full_disk_stops_before_the_submission(cloud, tmp_path, ledger):
    with ibm(ledger) as backend:
        layer, _ = layer_on(backend), backend.ledger  # which makes the file
        before, requests = len(cloud.jobs()), len(cloud.requests("POST", "/jobs"))
        with full_disk(tmp_path / "ledger.sqlite-wal"), pytest.raises(LedgerError, match="make room"):
            step(layer)
        assert len(cloud.jobs()) == before
        assert len(cloud.requests("POST", "/jobs")) == requests
        step(layer)
        assert len(cloud.jobs()) == before + 1
    assert_intact(ledger)
