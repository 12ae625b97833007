"""``qtb jobs``, ``qtb record`` and ``qtb replay``: a ledger's jobs, and what becomes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("qiskit_ibm_runtime")
from ibm_training import ibm, layer_on, step
from test_fake_devices import textbook_layer

from experiments.record_lesson import RECORDING, losses_beside
from qiskit_torch_bridge import IBMBackend, Ledger
from qiskit_torch_bridge.backends.ibm import sending
from qiskit_torch_bridge.commands import main

X = torch.tensor([[0.3], [1.9]])
STEPS = 3


def measure(backend: Any) -> list[list[float]]:
    """What some evaluations come to; each is a job."""
    layer = textbook_layer(backend, shots=60)
    with torch.no_grad():
        return [layer(X + number).flatten().tolist() for number in range(STEPS)]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of some evaluations on a fake device."""
    path = tmp_path_factory.mktemp("rehearsed") / "monday.sqlite"
    with IBMBackend("fake_manila", ledger=path, run="monday", shadow=True) as backend:
        measure(backend)
    return path


def one_line(capsys: Any, *arguments: str) -> str:
    """The one line that says why the command failed."""
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qtb {arguments[0]}: ")
    return line


def states(path: Path) -> list[str]:
    ledger = Ledger(path)
    listed = [entry.state for entry in ledger.entries()]
    ledger.close()
    return listed


def test_jobs_are_listed_without_an_account(rehearsed, capsys):
    assert main(["jobs", str(rehearsed), "--events"]) == 0
    by_file = capsys.readouterr().out
    assert f"{STEPS} jobs, 12 circuits, 720 shots; " in by_file
    assert "self-test: " in by_file
    assert "shadow: beside the exact simulation (values rms " in by_file
    part = rehearsed.parent / "a part of it"
    part.mkdir(exist_ok=True)
    for folder in (rehearsed.parent, part):
        assert main(["jobs", str(folder), "--events"]) == 0
        assert capsys.readouterr().out == by_file


def test_what_was_billed_is_added_up(tmp_path, rehearsed, capsys):
    copied = shutil.copy(rehearsed, tmp_path / "billed.sqlite")
    ledger = Ledger(Path(copied))
    for number, seconds in enumerate((1.5, 2.0, 4.0), start=1):
        ledger.billed(number, seconds)
    ledger.close()
    assert main(["jobs", str(copied)]) == 0
    assert "7.5 s billed" in capsys.readouterr().out


def test_an_empty_ledger(tmp_path, capsys):
    Ledger(tmp_path / "empty.sqlite").close()
    assert main(["jobs", str(tmp_path), "--discard-damaged"]) == 0
    assert capsys.readouterr().out == "Given up: nothing, because nothing is damaged.\nThe ledger holds no jobs.\n"


def test_what_jobs_refuses(tmp_path, rehearsed, capsys):
    assert "there is no ledger" in one_line(capsys, "jobs", str(tmp_path))
    assert not any(tmp_path.iterdir())
    said = one_line(capsys, "jobs", str(rehearsed), "--cancel", "nine")
    assert "expected the number of a job, 1 to 3, or all" in said
    assert "this one is done" in one_line(capsys, "jobs", str(rehearsed), "--cancel", "1")
    other = tmp_path / "other.sqlite"
    other.write_text("not a ledger, but long enough to have been one")
    assert "cannot be used" in one_line(capsys, "jobs", str(other))
    shutil.copy(rehearsed, tmp_path / "jobs.sqlite")
    assert "got a folder with jobs.sqlite, other.sqlite" in one_line(capsys, "jobs", str(tmp_path))


def test_jobs_in_the_queue_are_collected_or_cancelled(tmp_path, monkeypatch, cloud, capsys):
    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "jobs.sqlite"
    for option, state in (("--collect", "done"), ("--cancel=all", "cancelled"), ("--cancel=3", "cancelled")):
        cloud.set_device("ibm_manila", "paused")
        with monkeypatch.context() as patch:
            patch.setattr(sending.time, "sleep", press)
            with ibm(path, run=option) as backend, pytest.raises(KeyboardInterrupt):
                step(layer_on(backend))
        assert states(path)[-1] == "submitted"
        if state == "done":
            cloud.set_device("ibm_manila", "online")
        assert main(["jobs", str(path), option]) == 0
        assert state in capsys.readouterr().out
        assert states(path)[-1] == state
    assert [job["state"] for job in cloud.jobs()[-2:]] == ["Cancelled"] * 2


def test_a_job_is_given_up(tmp_path, rehearsed, capsys):
    path = Path(shutil.copy(rehearsed, tmp_path / "jobs.sqlite"))
    assert main(["jobs", str(path), "--forget", "1"]) == 0
    assert states(path) == ["failed", "done", "done"]
    assert "is failed, expected one that is submitted or done" in one_line(capsys, "jobs", str(path), "--forget", "1")


# Recordings.


def test_what_is_recorded_is_measured_again(tmp_path, rehearsed, capsys):
    file = tmp_path / "run.npz"
    assert main(["record", str(rehearsed.parent), str(file), "--run", "monday"]) == 0
    assert f'backend="replay:{file}"' in capsys.readouterr().out
    with IBMBackend("fake_manila", ledger=rehearsed, run="monday") as backend:  # whose jobs are done
        assert measure(f"replay:{file}") == measure(backend)
    assert main(["replay", str(file)]) == 0
    device, *numbers = capsys.readouterr().out.splitlines()[2].split()
    ledger = Ledger(rehearsed)
    seconds = sum(entry.estimated_seconds for entry in ledger.entries())
    ledger.close()
    assert [device, *numbers[2:6]] == ["fake_manila", str(STEPS), "12", "720", str(STEPS)]
    assert float(numbers[6]) == pytest.approx(seconds, rel=1e-3)


def test_what_record_refuses(tmp_path, rehearsed, capsys):
    file = tmp_path / "there.npz"
    file.write_bytes(b"something else")
    assert "exists" in one_line(capsys, "record", str(rehearsed), str(file))
    assert file.read_bytes() == b"something else"
    said = one_line(capsys, "record", str(rehearsed), str(tmp_path / "new.npz"), "--run", "tuesday")
    assert "holds no evaluation of run 'tuesday' that is done" in said


def test_the_recording_of_the_checkout_is_shown(capsys):
    assert main(["replay", str(RECORDING)]) == 0
    names, _, row, versions, whole, use = capsys.readouterr().out.splitlines()
    assert names.startswith("device       calibrated           evaluations  circuits  shots   jobs  estimated s")
    steps = len(json.loads(losses_beside(RECORDING).read_text())["losses"])
    numbers = ["fake_manila", "2024-05-27", "18:27:23", str(steps + 1), "228", "45,600", str(steps + 1), "29.68"]
    assert row.split() == [*numbers, "not", "known"]
    assert "qiskit 2.6.1" in versions
    assert "whole" in whole
    assert f'backend="replay:{RECORDING}"' in use


def test_a_damaged_recording_is_not_shown(tmp_path, capsys):
    content = RECORDING.read_bytes()
    file = tmp_path / "damaged.npz"
    file.write_bytes(content[: len(content) // 2])
    assert "is no recording, or a damaged one" in one_line(capsys, "replay", str(file))
    assert "there is no such recording" in one_line(capsys, "replay", str(tmp_path / "nowhere.npz"))
