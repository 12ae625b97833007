"""The training loop: it can be stopped at any moment and continued to the last bit, whatever it trains."""

import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from runs import QUICK, assert_same_run, ctrl_c_at, metrics, one_line, start, without_time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from experiments.__main__ import main
from experiments.common.board import Board
from experiments.common.classifiers import Loss, cross_entropy, decisions
from experiments.common.gradient_noise import COLUMNS
from experiments.common.rows import Rows
from experiments.common.runner import Interrupted
from experiments.common.runs import RunFolder
from experiments.common.settings import TrainingSettings
from experiments.common.work import Batch, Work
from experiments.common.workplace import layer_seed, open_fabric
from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import textbook

pytestmark = pytest.mark.usefixtures("no_pictures")

SETTINGS = TrainingSettings(seed=2, epochs=3, batch_size=4, lr=0.05)


@dataclass(frozen=True)
class Recording(RunFolder):
    """Keeps every checkpoint that is written.

    Attributes:
        checkpoints: Their contents, in order.
    """

    checkpoints: list[bytes] = field(default_factory=list)

    def write_checkpoint(self, state: Any) -> None:
        super().write_checkpoint(state)
        self.checkpoints.append(self.file("checkpoint.pt").read_bytes())


def examples(count: int, seed: int) -> Rows:
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return Rows(inputs, (inputs.sum(dim=1) > 0).long())


def noisy_model() -> nn.Sequential:
    """Dropout, batch statistics and shots: everything that a checkpoint has to know of."""
    circuit, inputs, weights = textbook()
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, probabilities=True, shots=20, seed=layer_seed(5))
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1), layer)


def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(scores, labels, reduction="none")


class Stage(NamedTuple):
    """A part of a training, which prepares the model for itself."""

    name: str
    epochs: int
    prepare: Callable[[nn.Module], Any] = lambda model: None


def trained(
    folder: RunFolder,
    *,
    model: Callable[[], nn.Module] = noisy_model,
    loss: Loss = loss,
    stages: Sequence[Stage] | None = None,
    epochs: int = 3,
    lr: float = SETTINGS.lr,
    gradient_variances: bool = False,
    **options: Any,
) -> Work:
    """A training, from the folder's checkpoint on if it has one."""
    torch.manual_seed(1)
    network, train, test = model(), examples(10, 1), examples(6, 2)
    settings = replace(SETTINGS, epochs=epochs, lr=lr, gradient_variances=gradient_variances)
    with Work("toy", settings, folder, open_fabric("cpu"), progress=False) as work:
        for name, count, prepare in stages or [Stage("training", epochs)]:
            prepare(network)
            for batch in work.steps(network, loss, train, test, stage=name, epochs=count, **options):
                scores = network(batch.inputs)
                batch.learn(loss(scores, batch.labels), scores)
        work.result()
    return work


def assert_same(one: Work, other: Work) -> None:
    assert without_time(one.rows) == without_time(other.rows)
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(one.test_scores, other.test_scores)


def freeze_first(model: nn.Module) -> None:
    model.get_submodule("0").requires_grad_(False)


def thaw(model: nn.Module) -> None:
    model.requires_grad_(True)


def halving(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=steps, gamma=0.5)


def annealing(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps * epochs)


STAGES = (Stage("head", 2, freeze_first), Stage("all", 1, thaw), Stage("again", 1, freeze_first))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": STAGES},
        {"scheduler": halving},
        {"stages": STAGES, "scheduler": annealing, "optimizer": torch.optim.AdamW},
    ],
    ids=["plain", "stages", "scheduler", "both"],
)
def test_resumes_to_the_last_bit_from_every_step(tmp_path, monkeypatch, options):
    """From the checkpoint of each step and of each end of an epoch, those at the ends of stages among them."""
    straight = trained(RunFolder(tmp_path / "plain"), **options)
    monkeypatch.setattr("experiments.common.work.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    folder = Recording(tmp_path / "straight")
    assert_same(straight, trained(folder, **options))
    epochs = len(straight.rows)
    assert len(folder.checkpoints) == epochs * (3 + 1)
    monkeypatch.undo()
    for number, checkpoint in enumerate(folder.checkpoints):
        killed = RunFolder(tmp_path / f"killed{number}")
        killed.write("checkpoint.pt", checkpoint)
        resumed = trained(killed, **options)
        assert_same(straight, resumed)
        assert without_time(killed.read_rows()) == without_time(straight.rows)


def test_checkpoint_of_a_stage_before_is_not_mistaken(tmp_path):
    """A longer first stage is another training, which the checkpoint of the second does not continue."""
    folder = RunFolder(tmp_path)
    trained(folder, stages=STAGES[:2])
    before = folder.file("checkpoint.pt").read_bytes()
    longer = (Stage("head", 3, freeze_first), STAGES[1])
    with pytest.raises(ValueError, match="differs in its stages"):
        trained(folder, stages=longer)
    with pytest.raises(ValueError, match="differs in its stages"):
        trained(folder, stages=STAGES[:1])
    assert folder.file("checkpoint.pt").read_bytes() == before


def test_goes_on_from_a_checkpoint_without_the_noise_of_gradients(tmp_path):
    folder = RunFolder(tmp_path)
    straight = trained(folder, epochs=3)
    state = folder.read_checkpoint()
    folder.write_checkpoint(state | {"rows": [{k: row[k] for k in row if k not in COLUMNS} for row in state["rows"]]})
    trained(folder, epochs=4)
    names, (*earlier, latest) = [*straight.rows[0]], folder.read_rows()
    assert sorted(latest) == sorted(names)
    assert [row[name] for row in earlier for name in COLUMNS] == [""] * 9
    assert all(latest[name] for name in COLUMNS)


def test_killed_between_a_checkpoint_and_its_tables(tmp_path):
    """Those of the epoch that the checkpoint has are written as the run goes on, if nothing else is left to do."""
    folder = RunFolder(tmp_path)
    trained(folder, gradient_variances=True)
    tables = [folder.file(name) for name in ("metrics.csv", "gradient_variances.csv")]
    whole = [path.read_bytes() for path in tables]
    for path in tables:
        path.unlink()
    trained(folder, gradient_variances=True)
    assert [path.read_bytes() for path in tables] == whole


def test_settings_that_were_changed_by_hand_are_refused(tmp_path):
    folder = RunFolder(tmp_path)
    trained(folder)
    with pytest.raises(ValueError, match=r"other settings than the checkpoint .*lr: got 0.1, expected 0.05"):
        trained(folder, lr=0.1)


def test_last_stage_may_grow(tmp_path):
    longer = (STAGES[0], Stage("all", 3, thaw))
    straight = trained(RunFolder(tmp_path / "straight"), stages=longer)
    trained(RunFolder(tmp_path / "extended"), stages=STAGES[:2])
    assert_same(straight, trained(RunFolder(tmp_path / "extended"), stages=longer))


def test_frozen_parameters_stay_and_cost_no_circuits(tmp_path):
    torch.manual_seed(1)
    before = noisy_model()[0].weight.detach().clone()
    work = trained(RunFolder(tmp_path), stages=STAGES[:1])
    assert torch.equal(work.model.get_submodule("0").weight, before)
    frozen = sum(parameter.numel() for parameter in work.model.get_submodule("0").parameters())
    everything = sum(parameter.numel() for parameter in work.model.parameters())
    assert work.rows[-1]["trained_parameters"] == everything - frozen

    def freeze_all_before_the_circuit(model: nn.Module) -> None:
        model.requires_grad_(False)
        model.append(nn.Linear(2, 2))

    free = trained(RunFolder(tmp_path / "free"), stages=[Stage("after", 2, freeze_all_before_the_circuit)])
    assert free.rows[-1]["circuits"] == 2 * (10 + 6)  # each example forward once, and no gradients


def test_losses_and_gradients_are_means_over_rows(tmp_path):
    """Of an uneven last batch too; with a learning rate of almost nothing the model stands still."""
    torch.manual_seed(1)
    model, train, test = nn.Linear(3, 2), examples(10, 1), examples(6, 2)
    (row,) = trained(RunFolder(tmp_path), model=lambda: model, loss=cross_entropy, epochs=1, lr=1e-30).rows
    scores = model(train.inputs)
    assert row["train_loss"] == pytest.approx(F.cross_entropy(scores, train.labels).item())
    assert row["train_accuracy"] == pytest.approx((scores.argmax(dim=1) == train.labels).double().mean().item())
    assert row["test_loss"] == pytest.approx(F.cross_entropy(model(test.inputs), test.labels).item())
    order = torch.randperm(10, generator=torch.Generator().manual_seed(SETTINGS.seed * 1_000_003))
    squares = 0.0
    for rows in order.split(4):
        model.zero_grad()
        F.cross_entropy(model(train.inputs[rows]), train.labels[rows]).backward()
        squares += sum(p.grad.square().sum().item() for p in model.parameters())
    assert row["gradient_rms"] == pytest.approx((squares / (3 * 8)) ** 0.5)


def test_scores_of_the_test_are_without_dropout(tmp_path):
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

    work = trained(RunFolder(tmp_path), model=model, loss=cross_entropy)
    torch.testing.assert_close(work.test_scores, work.model.eval()(examples(6, 2).inputs))


def test_what_circuits_did_before_the_training_is_not_its_cost(tmp_path):
    def used() -> nn.Module:
        model = noisy_model()
        model(examples(10, 1).inputs)
        return model

    fresh, after = trained(RunFolder(tmp_path / "fresh")), trained(RunFolder(tmp_path / "after"), model=used)
    for name in ("circuits", "shots"):
        assert [row[name] for row in fresh.rows] == [row[name] for row in after.rows]


def test_order_of_the_examples_follows_from_seed_and_epoch(tmp_path):
    data, model, seen = Rows(torch.arange(10.0)[:, None], torch.zeros(10).long()), nn.Linear(1, 2), []
    with Work("toy", replace(SETTINGS, epochs=2), RunFolder(tmp_path), open_fabric("cpu"), progress=False) as work:
        for batch in work.steps(model, cross_entropy, data, data):
            seen.append(batch.inputs[:, 0])
            batch.learn(cross_entropy(model(batch.inputs), batch.labels), model(batch.inputs))
    generators = (torch.Generator().manual_seed(2 * 1_000_003 + epoch) for epoch in (0, 1))
    orders = [torch.randperm(10, generator=generator) for generator in generators]
    assert torch.cat(seen).tolist() == torch.cat(orders).tolist()
    assert [len(rows) for rows in seen] == [4, 4, 2] * 2


def per_row(batch: Batch) -> torch.Tensor:
    return batch.inputs.sum(dim=1)


@pytest.mark.parametrize(
    ("misuse", "error", "says"),
    [
        (lambda batch: None, RuntimeError, r"not learnt from, expected batch\.learn\(losses, scores\) in each step"),
        (lambda batch: [batch.learn(per_row(batch), batch.inputs) for _ in "12"], RuntimeError, "got a second call"),
        (
            lambda batch: batch.learn(per_row(batch).mean(), batch.inputs),
            ValueError,
            r"losses: got shape \(\), expected a loss for each row, \(4,\)",
        ),
        (lambda batch: batch.learn(batch.inputs, batch.inputs), ValueError, r"losses: got shape \(4, 3\)"),
    ],
    ids=["not at all", "twice", "mean", "matrix"],
)
def test_each_batch_is_learnt_from_once_with_a_loss_for_each_row(tmp_path, misuse, error, says):
    def train() -> None:
        data, model = examples(10, 1), nn.Linear(3, 3)
        with Work("toy", SETTINGS, RunFolder(tmp_path), open_fabric("cpu"), progress=False) as work:
            for batch in work.steps(model, cross_entropy, data, data):
                batch.inputs.requires_grad_()
                misuse(batch)

    with pytest.raises(error, match=says):
        train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_decisions_of_logits_and_of_scores():
    assert decisions(torch.tensor([[-0.1], [0.0], [0.1]])).tolist() == [0, 0, 1]
    assert decisions(torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])).tolist() == [0, 2]


def test_ctrl_c_twice_interrupts_at_once(tmp_path):
    presses = []

    def impatient(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        presses.append(None)
        os.kill(os.getpid(), signal.SIGINT)
        return loss(scores, labels)

    with pytest.raises(Interrupted):  # the first one waits for the end of the step
        trained(RunFolder(tmp_path), loss=impatient)
    assert len(presses) == 1

    def hasty(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return loss(scores, labels)

    with pytest.raises(KeyboardInterrupt):
        trained(RunFolder(tmp_path), loss=hasty)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_as_before_after_the_training(tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trained(RunFolder(tmp_path), epochs=1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


class TestTensorBoard:
    @staticmethod
    def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    @classmethod
    def assert_as_in_the_metrics(cls, folder: RunFolder) -> None:
        rows, logged = folder.read_rows(), cls.logged(folder.path)
        assert {"train_loss", "test_accuracy", "circuits", "shots"} <= logged.keys()
        for tag, points in logged.items():
            known = [row for row in rows if row[tag] != ""]  # the noise of a gradient is not known in every epoch
            assert [step for step, _ in points] == [row["epoch"] for row in known]
            assert [value for _, value in points] == pytest.approx([row[tag] for row in known], rel=1e-6)

    def test_same_numbers_as_in_the_metrics(self, tmp_path):
        trained(RunFolder(tmp_path), stages=STAGES)
        self.assert_as_in_the_metrics(RunFolder(tmp_path))

    def test_each_epoch_is_there_at_once(self, tmp_path):
        """A killed process loses nothing."""
        Board.fresh(tmp_path / "tensorboard").add({"epoch": 1, "stage": "a", "x": 0.5})
        assert self.logged(tmp_path) == {"x": [(1, 0.5)]}

    def test_after_a_kill_no_step_is_doubled_or_lost(self, tmp_path):
        """What was logged after the checkpoint is dropped, and what was lost before it is there again."""
        folder = Recording(tmp_path)
        trained(folder)
        folder.write("checkpoint.pt", folder.checkpoints[1])
        for path in (tmp_path / "tensorboard").iterdir():
            path.write_bytes(path.read_bytes()[:-7])  # killed in the middle of writing
        trained(RunFolder(tmp_path))
        self.assert_as_in_the_metrics(RunFolder(tmp_path))
        shutil.rmtree(tmp_path / "tensorboard")
        trained(RunFolder(tmp_path), epochs=4)
        self.assert_as_in_the_metrics(RunFolder(tmp_path))
        assert len(RunFolder(tmp_path).read_rows()) == 4


@contextmanager
def files_no_larger_than(count: int) -> Iterator[None]:
    """Within it, the system refuses to make a file longer, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestFaults:
    def test_full_disk_while_the_checkpoint_is_written(self, tmp_path, capsys):
        straight, full = tmp_path / "straight", tmp_path / "full"
        for folder, epochs in ((straight, "3"), (full, "1")):
            assert main(["mnist01", *QUICK, "--epochs", epochs, "--run-dir", str(folder)]) == 0
        before = (full / "checkpoint.pt").read_bytes()
        resume = ["mnist01", "--resume", "--run-dir", str(full), "--epochs", "3"]
        with files_no_larger_than(len(before) // 2):
            said = one_line(capsys, *resume)
        assert "File too large while" in said
        assert "checkpoint.pt" in said
        assert (full / "checkpoint.pt").read_bytes() == before
        assert not list(full.glob(".*.partial"))
        assert main(resume) == 0
        assert_same_run(straight, full)

    def test_full_disk_before_the_first_checkpoint_leaves_a_run_that_starts_anew(self, tmp_path, capsys):
        folder = RunFolder(tmp_path)
        with files_no_larger_than(2000), pytest.raises(OSError, match=r"File too large while .*checkpoint\.pt"):
            trained(folder)
        assert not folder.has_checkpoint
        assert_same(trained(folder), trained(RunFolder(tmp_path / "other")))

    def test_metrics_that_cannot_be_written(self, tmp_path):
        """They are behind the checkpoint then, and are written again when the run is continued, finished or not."""
        folder = RunFolder(tmp_path)
        folder.file("metrics.csv").mkdir()
        with pytest.raises(OSError, match=r"while .*metrics\.csv were written"):
            trained(folder, epochs=1)
        assert folder.read_checkpoint()["epoch"] == 1
        folder.file("metrics.csv").rmdir()
        resumed = trained(folder, epochs=1)
        assert without_time(folder.read_rows()) == without_time(resumed.rows)

    def test_full_disk_while_an_event_is_written(self, tmp_path):
        board, row = Board.fresh(tmp_path), {"epoch": 1} | {f"number{i}": 0.5 for i in range(100)}
        with files_no_larger_than(1000), pytest.raises(OSError, match="TensorBoard's") as full:
            board.add(row)
        assert full.value.errno == errno.EFBIG

    def test_event_that_cannot_be_written_loses_no_epoch(self, tmp_path, monkeypatch):
        def full(board: Board, row: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Board, "add", full)
        with pytest.raises(OSError, match="No space"):
            trained(RunFolder(tmp_path))
        monkeypatch.undo()
        assert RunFolder(tmp_path).read_checkpoint()["epoch"] == 1
        resumed = trained(RunFolder(tmp_path))
        assert_same(resumed, trained(RunFolder(tmp_path / "straight")))
        TestTensorBoard.assert_as_in_the_metrics(RunFolder(tmp_path))

    def test_half_written_files_are_cleared_away(self, tmp_path):
        (tmp_path / ".checkpoint.pt.123.partial").write_bytes(b"half")
        trained(RunFolder(tmp_path), epochs=1)
        assert not list(tmp_path.glob(".*"))


def state_of(folder: Path) -> dict[str, Any]:
    """What a run of several trainings came to, without times."""
    state = {}
    for part in sorted(path.parent for path in folder.glob("*/checkpoint.pt")):
        model = {name: value.tolist() for name, value in RunFolder(part).read_checkpoint()["model"].items()}
        state[part.name] = without_time(RunFolder(part).read_rows()), model
    return state


class TestStudies:
    """Runs of several seeds and variants."""

    OPTIONS = (*QUICK, "--seeds", "2", "--head", "both", "--epochs", "2")

    @pytest.mark.slow
    def test_interrupted_in_the_middle(self, tmp_path):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        assert main(["mnist01", *self.OPTIONS, "--run-dir", str(straight)]) == 0
        assert len(state_of(straight)) == 4
        # Two epochs of three steps and a test in each; the third training is halfway.
        with ctrl_c_at(8 + 8 + 6, "nll_loss"):
            assert main(["mnist01", *self.OPTIONS, "--run-dir", str(broken)]) == 130
        finished = {path: path.stat().st_mtime_ns for path in broken.glob("*seed0/*") if path.is_file()}
        assert len({path.parent for path in finished}) == 2
        assert main(["mnist01", "--resume", "--run-dir", str(broken)]) == 0
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        assert state_of(broken) == state_of(straight)
        summary = [{**row, "seconds": 0} for row in RunFolder(straight).read_rows("summary.csv")]
        assert [{**row, "seconds": 0} for row in RunFolder(broken).read_rows("summary.csv")] == summary

    @pytest.mark.slow
    def test_interrupted_while_it_is_extended(self, tmp_path):
        """The old results are no longer those of the run, however it goes on."""
        straight, extended = tmp_path / "straight", tmp_path / "extended"
        options = [*QUICK, "--seeds", "2", "--head", "classical"]
        assert main(["mnist01", *options, "--epochs", "3", "--run-dir", str(straight)]) == 0
        assert main(["mnist01", *options, "--epochs", "2", "--run-dir", str(extended)]) == 0
        resume = ["mnist01", "--resume", "--run-dir", str(extended)]
        with ctrl_c_at(2, "nll_loss"):
            assert main([*resume, "--epochs", "3"]) == 130
        assert not (extended / "result.json").exists()
        assert not (extended / "classical-seed0" / "result.json").exists()
        assert main([*resume, "--epochs", "3"]) == 0
        assert state_of(extended) == state_of(straight)

    def test_a_part_that_was_continued_by_itself(self, tmp_path, capsys):
        folder, resume = tmp_path / "run", ["mnist01", "--resume", "--run-dir"]
        options = [*QUICK, "--seeds", "2", "--head", "classical"]
        assert main(["mnist01", *options, "--epochs", "1", "--run-dir", str(folder)]) == 0
        before = (folder / "result.json").read_bytes()
        assert main([*resume, str(folder / "classical-seed1"), "--epochs", "2"]) == 0
        capsys.readouterr()
        assert main([*resume, str(folder)]) == 1
        assert "--epochs: got 1, expected at least 2" in capsys.readouterr().err
        assert (folder / "result.json").read_bytes() == before
        assert main([*resume, str(folder), "--epochs", "2"]) == 0
        assert {len(RunFolder(folder / f"classical-seed{seed}").read_rows()) for seed in (0, 1)} == {2}

    def test_a_part_is_a_run(self, tmp_path):
        whole, alone = tmp_path / "whole", tmp_path / "alone"
        options = [*QUICK, "--seeds", "2", "--head", "both", "--epochs", "1"]
        assert main(["mnist01", *options, "--run-dir", str(whole)]) == 0
        settings = yaml.safe_load((whole / "quantum-seed1" / "config.yaml").read_text())
        assert (settings["seed"], settings["seeds"], settings["head"]) == (1, 1, "quantum")
        config = str(whole / "quantum-seed1" / "config.yaml")
        assert main(["mnist01", "--config", config, "--run-dir", str(alone)]) == 0
        assert metrics(alone) == metrics(whole / "quantum-seed1")


def kill_after(process: BaseProcess, begun: Callable[[], bool], seconds: float) -> None:
    """Kills a process some time after something has come true, unless it has finished."""
    while not begun() and process.is_alive():
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.join()


def more_events_than_now(folder: Path) -> Callable[[], bool]:
    """Whether a run that is continued has begun to train: it has opened a new file for TensorBoard."""
    events = folder / "tensorboard"
    now = len(list(events.iterdir()))
    return lambda: len(list(events.iterdir())) > now


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """The first time as soon as there is a checkpoint."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = [*QUICK, "--epochs", "60"]
    assert main(["mnist01", *options, "--run-dir", str(straight)]) == 0
    moments, epochs = random.Random(0), []
    kill_after(start("mnist01", *options, "--run-dir", str(killed)), (killed / "checkpoint.pt").exists, 0.0)
    for _ in range(4):
        epochs.append(RunFolder(killed).read_checkpoint()["epoch"])
        resumed = start("mnist01", "--resume", "--run-dir", str(killed))
        kill_after(resumed, more_events_than_now(killed), moments.uniform(0, 0.5))
    assert 0 < epochs[0] < 60
    assert main(["mnist01", "--resume", "--run-dir", str(killed)]) == 0
    assert_same_run(straight, killed)
    TestTensorBoard.assert_as_in_the_metrics(RunFolder(killed))


@pytest.mark.slow
def test_killed_in_the_middle_of_a_study(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = [*QUICK, "--seeds", "3", "--head", "both", "--epochs", "2"]
    assert main(["mnist01", *options, "--run-dir", str(straight)]) == 0
    process = start("mnist01", *options, "--run-dir", str(killed))
    kill_after(process, (killed / "classical-seed1" / "checkpoint.pt").exists, 0.0)
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("*seed0/*") if path.is_file()}
    assert len({path.parent for path in finished}) == 2
    assert not (killed / "quantum-seed2" / "result.json").exists()
    assert main(["mnist01", "--resume", "--run-dir", str(killed)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert state_of(killed) == state_of(straight)
