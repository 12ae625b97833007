"""Data-parallel training under torchrun: the gradients, metrics and checkpoints of one process."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from runs import CHECKOUT, QUICK, assert_same_run, experiment, heard_in_a_session, one_line, start, without_time
from torch import nn
from toy_distributed import heard_by_rank, train_all

from experiments.__main__ import main
from experiments.common.runs import RunFolder

MNIST01 = ["mnist01", *QUICK, "--batch-size", "5"]
TORCHRUN = ["--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]

SCENARIOS = ("even", "uneven", "single", "few", "stages", "own")


def torchrun(*arguments: str) -> None:
    from torch.distributed.run import main as command

    os.chdir(CHECKOUT)
    command([*TORCHRUN, *arguments])


@contextmanager
def started_by_torchrun(said: Path, *arguments: str) -> Iterator[BaseProcess]:
    """Programs in a process group of their own, to which Ctrl-C can go as in a terminal; they are ended if they have not.

    torchrun ends the processes that it has started when it is asked to end, but not when it is killed.
    """
    variables = {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    process = start(*arguments, program=partial(heard_in_a_session, str(said), torchrun), variables=variables)
    try:
        yield process
    finally:
        if process.is_alive():
            process.terminate()
            process.join(60)
            process.kill()
        process.join()


def run_by_two(*arguments: str, program: Callable[..., None] = experiment) -> list[int | None]:
    """A program in two processes as torchrun starts them, without torchrun: its imports take longer than a small run.

    Returns:
        Their exit statuses.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "two"}
    processes = []
    for rank in "01":
        of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        processes.append(start(*arguments, program=program, variables={**place, **of_rank}))
    for process in processes:
        process.join(300)
        process.kill()  # if it has not ended
    return [process.exitcode for process in processes]


def files(folder: Path) -> set[str]:
    """What a run has written, apart from TensorBoard's files, which are named after the moment."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder)) for path in paths}


@pytest.fixture(scope="session")
def trained(made_once):
    """The toy's runs by one process, this one, and by two."""

    def make(folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).mkdir()
        train_all(str(folder / "one"))
        assert run_by_two(str(folder / "two"), program=train_all) == [0, 0]

    folder = made_once("distributed", make)
    return {1: folder / "one", 2: folder / "two"}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_same_gradients_as_one_process(trained, scenario):
    one, two = (RunFolder(trained[processes] / scenario) for processes in (1, 2))
    mine, theirs = one.read_checkpoint(), two.read_checkpoint()
    for name, weight in mine["model"].items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(theirs["model"][name], weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs["test_scores"], mine["test_scores"], rtol=0, atol=1e-12)
    rows = without_time(two.read_rows())
    assert len(rows) == len(mine["rows"])
    for row, expected in zip(rows, without_time(one.read_rows()), strict=True):
        for name in [
            name for name, value in expected.items() if isinstance(value, str)
        ]:  # the stage, and what is not known
            assert row.pop(name) == expected.pop(name)
        assert row == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_scores_are_those_of_the_saved_model(trained, processes):
    """With batch normalisation each process gathers statistics of its own; those of the first one are saved."""
    state = RunFolder(trained[processes] / "normalised").read_checkpoint()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    model.load_state_dict(state["model"])
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(model.eval()(inputs), state["test_scores"], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_processes_do_not_share_their_shot_noise(trained):
    first, second = (json.loads((trained[2] / f"noise{rank}.json").read_text()) for rank in (0, 1))
    assert first["value"] != second["value"]
    assert first == json.loads((trained[1] / "noise0.json").read_text())


@pytest.mark.slow
def test_processes_do_not_share_their_dropout(trained):
    """Nothing in this training has drawn from torch's generators, whose positions differ all the same."""
    own, other = RunFolder(trained[2] / "even").read_checkpoint()["processes"]
    assert not torch.equal(own["torch_rng"], other["torch_rng"])


@pytest.mark.slow
def test_experiment_from_end_to_end(tmp_path, capsys):
    """A run of two trainings by two processes beside that of one, and the same run interrupted and continued."""
    one, straight, broken = (tmp_path / name for name in ("one", "straight", "broken"))
    options = [*MNIST01, "--epochs", "4", "--head", "both"]
    assert main([*options, "--run-dir", str(one)]) == 0
    assert run_by_two(str(tmp_path), *options, "--run-dir", str(straight), program=heard_by_rank) == [0, 0]
    said = "".join((tmp_path / f"said{rank}").read_text() for rank in "01")
    for printed in (said, capsys.readouterr().out):
        assert printed.count("Results and figures are in") == 1
    assert "Traceback" not in said
    assert "Warning" not in said

    assert files(straight) == files(one)
    for part in ("", "quantum", "classical"):
        mine, theirs = RunFolder(one / part).read_result(), RunFolder(straight / part).read_result()
        assert (theirs["circuits"], theirs["shots"]) == (mine["circuits"], mine["shots"])
    assert len(RunFolder(straight / "quantum").read_rows("predictions.csv")) == 10
    assert one_line(capsys, "mnist01", "--resume", "--run-dir", str(straight / "quantum"), "--epochs", "5") == (
        "mnist01: --resume: got 1 process(es), expected the 2 that the run was started with: each continues its own random "
        "numbers."
    )

    with started_by_torchrun(tmp_path, "-m", "experiments", *options, "--run-dir", str(broken)) as process:
        latest = time.monotonic() + 300
        while not (broken / "quantum" / "checkpoint.pt").exists():
            assert process.is_alive()
            assert time.monotonic() < latest, "no checkpoint has been written"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        process.join(300)
        assert process.exitcode == 1
    assert (tmp_path / "out").read_text().count("continue with: ") == 1
    state = RunFolder(broken / "quantum").read_checkpoint()
    assert state["epoch"] < 4
    assert len(state["processes"]) == 2
    assert not torch.equal(*(process["torch_rng"] for process in state["processes"]))
    assert run_by_two("mnist01", "--resume", "--run-dir", str(broken)) == [0, 0]
    for part in ("quantum", "classical"):
        assert_same_run(straight / part, broken / part)
    assert (broken / "comparison.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--gradient", "guess"], "mnist01: "),
        (["--workers", "2"], "mnist01: --workers, --scheduler: got them for a run under torchrun"),
    ],
)
def test_refusal_ends_all_processes_and_leaves_nothing(tmp_path, folder, option, said):
    options = [*MNIST01, *option, "--run-dir", str(folder)]
    assert run_by_two(str(tmp_path), *options, program=heard_by_rank) == [1, 1]
    assert said in (tmp_path / "said0").read_text()
    assert not folder.exists()
