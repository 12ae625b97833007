"""Data-parallel training under torchrun: the gradients, metrics and checkpoints of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.common.runs import RunFolder

CHECKOUT = Path(__file__).parent.parent
MNIST01 = [
    *("-m", "experiments", "mnist01", "--train-per-digit", "6", "--test-per-digit", "5", "--dataset", "digits"),
    *("--batch-size", "5", "--backend", "statevector", "--shots", "50"),
]
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
]

# Double precision and exact simulation: what is left between one process and two is the order of sums.
SCRIPT = """
import gc, json, sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from experiments.common.rows import Rows
from experiments.common.runs import RunFolder
from experiments.common.training import Stage, Trainer
from experiments.common.workplace import Workplace, layer_seed, open_fabric
from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import textbook

folder, fabric = Path(sys.argv[1]), open_fabric("cpu")


def examples(count, seed):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Rows(inputs, (inputs.sum(dim=1) > 0).long())


def trained(name, stages=None, model=None, **settings):
    torch.manual_seed(1)
    model = (model or DressedQuantumNet(3, 2)).double()
    trainer = Trainer(
        model,
        lambda scores, labels: F.cross_entropy(scores, labels, reduction="none"),
        {"seed": 2, "epochs": 2, "batch_size": 4, "lr": 0.05, **settings},
        Workplace(RunFolder(folder / name), fabric, False),
        stages=stages,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),  # linear in the gradients, as Adam is not
    )
    trainer.fit(examples(13, 1), examples(5, 2))


def freeze(model):
    model.requires_grad_(True)
    next(model.parameters()).requires_grad_(False)


def thaw(model):
    model.requires_grad_(True)
    wrappers.append(sum(type(found) is DistributedDataParallel for found in gc.get_objects()))


wrappers = []
trained("even")
trained("uneven", batch_size=5)  # 3 + 2 rows, and 2 + 1 at the end
trained("single", batch_size=1)  # the second process has none
trained("few", batch_size=13)
trained("stages", [Stage("one", 1), Stage("two", 1, freeze), Stage("three", 1, thaw), Stage("four", 1)])
assert wrappers == [0], wrappers  # hooks that stayed would send all gradients once more
trained("normalised", model=nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), batch_size=13)

circuit, inputs, weights = textbook()
layer = QuantumLayer(circuit, inputs=inputs, weights=weights, shots=1000, seed=layer_seed(3))
noise = layer(torch.full((1, 1), 0.3)).item()
cost = {"circuits": layer.total_circuits, "shots": layer.total_shots}
(folder / f"noise{fabric.global_rank}.json").write_text(json.dumps({"value": noise, **cost}))
"""
SCENARIOS = ("even", "uneven", "single", "few", "stages")


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, to which Ctrl-C can go as in a terminal; it is ended if it has not.

    torchrun ends the processes that it has started when it is asked to end, but not when it is killed.
    """
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    with started(*command) as process:
        printed, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The script's runs by one process and by two."""
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    folders = {1: folder / "one", 2: folder / "two"}
    for processes, launcher in ((1, [sys.executable]), (2, TORCHRUN)):
        folders[processes].mkdir()
        done = launched(*launcher, str(script), str(folders[processes]))
        assert done.returncode == 0, done.stderr
    return folders


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
        assert row.pop("stage") == expected.pop("stage")
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
def test_experiment_from_end_to_end(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, launcher in ((one, [sys.executable]), (two, TORCHRUN)):
        done = launched(*launcher, *MNIST01, "--epochs", "2", "--run-dir", str(folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Results and figures are in") == 1
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    mine, theirs = RunFolder(one).read_result(), RunFolder(two).read_result()
    assert (theirs["circuits"], theirs["shots"]) == (mine["circuits"], mine["shots"])
    assert len(RunFolder(two).read_rows("predictions.csv")) == 10
    refused = launched(sys.executable, *MNIST01[:3], "--resume", "--run-dir", str(two), "--epochs", "3")
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        "mnist01: --resume: got 1 process(es), expected the 2 that the run was started with: each continues its own random "
        "numbers."
    )


@pytest.mark.slow
def test_study_and_interrupted_run_resume_to_the_last_bit(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    options = [*MNIST01, "--epochs", "4", "--head", "both"]
    done = launched(*TORCHRUN, *options, "--run-dir", str(straight))
    assert done.returncode == 0, done.stderr
    with started(*TORCHRUN, *options, "--run-dir", str(broken)) as process:
        latest = time.monotonic() + 300
        while not (broken / "quantum" / "checkpoint.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < latest, "no checkpoint has been written"
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert printed.count("continue with: ") == 1
    state = RunFolder(broken / "quantum").read_checkpoint()
    assert state["epoch"] < 4
    assert len(state["processes"]) == 2
    assert not torch.equal(*(process["torch_rng"] for process in state["processes"]))
    done = launched(*TORCHRUN, *MNIST01[:3], "--resume", "--run-dir", str(broken))
    assert done.returncode == 0, done.stderr
    for part in ("quantum", "classical"):
        mine, theirs = RunFolder(straight / part), RunFolder(broken / part)
        assert without_time(mine.read_rows()) == without_time(theirs.read_rows())
        weights = theirs.read_checkpoint()["model"]
        assert all(torch.equal(weights[name], value) for name, value in mine.read_checkpoint()["model"].items())
    assert (broken / "comparison.png").exists()


@pytest.mark.slow
def test_refusal_ends_all_processes_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    done = launched(*TORCHRUN, *MNIST01, "--gradient", "guess", "--run-dir", str(folder))
    assert done.returncode == 1
    assert "mnist01: " in done.stderr
    assert not folder.exists()
