"""Trainings as cells: side by side on Dask's workers, kept apart by locks, and as good as one after the other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest
from runs import CHECKOUT, QUICK, assert_same_run, experiment, heard, metrics, one_line, result, start
from toy_experiment import LOG, TOY, toy_process

from experiments.__main__ import main
from experiments.common.runner import run
from experiments.common.runs import RunFolder

pytestmark = pytest.mark.usefixtures("no_pictures")


class Step(NamedTuple):
    """A step of the toy experiment, and the process that did it."""

    seed: int
    process: int
    epoch: int
    step: int


class Log(NamedTuple):
    """What the toy's trainings have said, and what they are told."""

    folder: Path

    @property
    def steps(self) -> list[Step]:
        file = self.folder / "steps"
        lines = file.read_text().splitlines() if file.exists() else []
        return [Step(*map(int, line.split())) for line in lines]

    def of(self, seed: int) -> list[tuple[int, int]]:
        """The steps of a training: epoch and step."""
        return [(step.epoch, step.step) for step in self.steps if step.seed == seed]

    def tell(self, what: str) -> None:
        (self.folder / what).touch()

    def untell(self, what: str) -> None:
        (self.folder / what).unlink()


@pytest.fixture
def log(tmp_path, monkeypatch):
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv(LOG, str(folder))
    return Log(folder)


def eventually(happens: Callable[[], bool]) -> None:
    latest = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < latest, "it has not happened"
        time.sleep(0.01)


def toy(folder: Path, *options: str) -> int:
    return run(TOY, ["--run-dir", str(folder), *options])


def assert_same_parts(one: Path, other: Path, count: int) -> None:
    parts = sorted(path.parent.name for path in one.glob("*/checkpoint.pt"))
    assert len(parts) == count
    assert parts == sorted(path.parent.name for path in other.glob("*/checkpoint.pt"))
    for part in parts:
        assert_same_run(one / part, other / part)


ONE_EPOCH = [(0, 0), (0, 1), (0, 2)]
BOTH_EPOCHS = [*ONE_EPOCH, (1, 0), (1, 1), (1, 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_workers_train_to_the_same_bits(tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    options = ["mnist01", *QUICK, "--seeds", "2", "--head", "both", "--epochs", "2"]
    assert main([*options, "--workers", "0", "--run-dir", str(here)]) == 0
    capsys.readouterr()
    assert main([*options, "--workers", "2", "--run-dir", str(there)]) == 0
    printed = capsys.readouterr()
    assert "classical-seed1: test accuracy" in printed.out
    assert not printed.err
    assert_same_parts(here, there, 4)
    names = [{path.relative_to(folder) for path in folder.rglob("*.*")} for folder in (here, there)]
    assert {name for name in names[0] ^ names[1] if "tensorboard" not in name.parts} == set()
    assert result(here)["variants"] == result(there)["variants"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_killed_worker_costs_only_the_steps_since_its_checkpoint(tmp_path, log):
    log.tell("wait-1")

    def kill() -> None:
        eventually(lambda: (1, 0) in log.of(1) and (tmp_path / "run" / "seed0" / "result.json").exists())
        os.kill(log.steps[[(step.seed, step.epoch) for step in log.steps].index((1, 1))].process, signal.SIGKILL)
        eventually(lambda: log.of(1).count((1, 0)) == 2)
        log.untell("wait-1")

    killer = Thread(target=kill)
    killer.start()
    assert toy(tmp_path / "run", "--workers", "2", "--seeds", "3") == 0
    killer.join()
    assert log.of(1) == [*ONE_EPOCH, (1, 0), *BOTH_EPOCHS[3:]]
    assert len({step.process for step in log.steps if step.seed == 1}) == 2
    assert log.of(0) == log.of(2) == BOTH_EPOCHS
    assert toy(tmp_path / "whole", "--seeds", "3") == 0
    assert_same_parts(tmp_path / "run", tmp_path / "whole", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_training_that_fails_costs_no_other(tmp_path, folder, log, capsys):
    log.tell("fail-1")
    assert toy(folder, "--workers", "2", "--seeds", "3") == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("toy: seed1 failed: RuntimeError: no training of 1 (toy_experiment.py, line ")
    assert printed.out.splitlines()[-1] == (
        f"1 of 3 cells failed; try them again with: python -m experiments toy --resume --run-dir {folder}"
    )
    assert not (folder / "result.json").exists()
    log.untell("fail-1")
    assert toy(folder, "--resume") == 0
    assert log.of(1) == [*ONE_EPOCH, (1, 0), *BOTH_EPOCHS[3:]]
    assert log.of(0) == log.of(2) == BOTH_EPOCHS
    assert toy(tmp_path / "whole", "--seeds", "3") == 0
    assert_same_parts(folder, tmp_path / "whole", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_options_that_no_worker_can_use_leave_nothing(folder, capsys):
    options = ["mnist01", *QUICK, "--seeds", "2", "--gradient", "guess", "--workers", "1", "--run-dir", str(folder)]
    assert main(options) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "2 of 2 cells failed; nothing was written."
    assert len(printed.err.splitlines()) == 2
    assert not folder.exists()


def test_in_one_process_an_error_is_not_swallowed(folder, log):
    log.tell("fail-0")
    with pytest.raises(RuntimeError, match="no training"):
        toy(folder, "--seeds", "2")
    assert log.of(1) == []


def test_a_locked_run_is_refused(folder, log):
    assert toy(folder, "--epochs", "1", "--seeds", "2") == 0
    with RunFolder(folder).locked():
        assert_left_alone(folder, "", "--epochs", "2")
        assert toy(folder / "seed1", "--resume") == 0  # which nobody is at
    with RunFolder(folder / "seed1").locked():
        assert_left_alone(folder / "seed1")
        with pytest.raises(BlockingIOError, match="seed1: another process"):
            toy(folder, "--resume", "--epochs", "2")
    assert toy(folder, "--resume", "--epochs", "2") == 0
    assert log.of(0) == log.of(1) == BOTH_EPOCHS


@contextmanager
def at_work(folder: Path, log: Log, *options: str, seed: int = 0) -> Iterator[BaseProcess]:
    """Within it, a process trains there: it is halfway in the training of that seed."""
    log.tell(f"wait-{seed}")
    process = start("--run-dir", str(folder), *options, program=toy_process)
    try:
        eventually(lambda: (1, 0) in log.of(seed))
        yield process
    finally:
        log.untell(f"wait-{seed}")
        process.kill()
        process.join()


def assert_left_alone(folder: Path, part: str = "", *options: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(BlockingIOError, match="another process is at work in this run"):
        toy(folder / part, "--resume", *options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_belongs_to_one_process(tmp_path, folder, log):
    """A killed one gives it free."""
    with at_work(folder, log) as process:
        assert_left_alone(folder)
        assert_left_alone(folder, "", "--epochs", "3")
        assert toy(folder, "--resume", "--dry-run") == 0
        assert log.of(0) == [*ONE_EPOCH, (1, 0)]
        process.kill()
        process.join()
        log.untell("wait-0")
        assert toy(folder, "--resume") == 0
        log.tell("wait-0")
    assert toy(tmp_path / "whole") == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_so_does_a_training_of_several(folder, log):
    with at_work(folder, log, "--seeds", "2", seed=1):
        assert_left_alone(folder)
        assert_left_alone(folder, "seed1")
        assert toy(folder / "seed0", "--resume") == 0  # which nobody is at
    assert toy(folder, "--resume") == 0
    assert log.of(0) == BOTH_EPOCHS


@pytest.mark.slow
def test_a_second_process_is_refused_in_one_line(folder, capsys):
    process = start("mnist01", *QUICK, "--epochs", "1000", "--run-dir", str(folder))
    try:
        eventually((folder / "checkpoint.pt").exists)
        os.kill(process.pid, signal.SIGSTOP)
        line = one_line(capsys, "mnist01", "--resume", "--run-dir", str(folder))
        assert line == (
            f"mnist01: {folder}: another process is at work in this run; wait for its end, or interrupt it first."
        )
    finally:
        process.kill()
        process.join()


def test_a_lock_alone_does_not_use_a_folder(folder, log):
    """A process may be killed before it has written anything else."""
    folder.mkdir()
    (folder / ".lock").touch()
    assert toy(folder, "--epochs", "1") == 0


@pytest.mark.slow
def test_ctrl_c_stops_workers_too(tmp_path, folder, log):
    """As a terminal does it: to the process and to all that it has started."""
    log.tell("wait-1")
    program = "import sys, toy_experiment; toy_experiment.toy_process(*sys.argv[1:])"
    options = ["--run-dir", str(folder), "--workers", "1", "--seeds", "2"]
    command = [sys.executable, "-W", "error", "-c", program, *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            eventually(lambda: (1, 0) in log.of(1) and (folder / "seed0" / "result.json").exists())
            os.killpg(process.pid, signal.SIGINT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        printed, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert not errors
    command_to_go_on = f"python -m experiments toy --resume --run-dir {folder}"
    assert printed.splitlines()[-1] == f"Interrupted; continue with: {command_to_go_on}"
    log.untell("wait-1")
    assert toy(folder, "--resume") == 0
    assert log.of(1) == [*ONE_EPOCH, (1, 0), *BOTH_EPOCHS[3:]]
    assert log.of(0) == BOTH_EPOCHS


@pytest.mark.slow
def test_ctrl_c_reaches_a_training_whose_shell_ignores_it(tmp_path, folder):
    """A script's shell starts what it puts in the background so."""
    options = ["mnist01", *QUICK, "--epochs", "1000", "--head", "classical", "--run-dir", str(folder)]
    process = start(*options, program=partial(heard, str(tmp_path), experiment), ignored=[signal.SIGINT])
    try:
        eventually((folder / "checkpoint.pt").exists)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == 130
    said = (tmp_path / "out").read_text()
    assert f"Interrupted; continue with: python -m experiments mnist01 --resume --run-dir {folder}" in said
    epochs = RunFolder(folder).read_checkpoint()["epoch"]
    assert len(metrics(folder)) == epochs < 1000
