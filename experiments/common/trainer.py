"""Training a classifier so that it can be interrupted at any step and continued to the last bit, on the same machine."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from qiskit_torch_bridge import QuantumLayer

from .board import Board
from .hardware import Measured, word_of
from .rows import Examples
from .workplace import Workplace, gathered, threads, total

SECONDS_BETWEEN_CHECKPOINTS = 60.0  # within an epoch; one is also written at the end of each

_PARTS = {
    *("model", "optimizer", "scheduler", "stages", "stage", "epoch", "step"),
    *("rows", "test_scores", "processes", "seconds"),
}
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Interrupted(Exception):  # noqa: N818 - an event, as KeyboardInterrupt
    """Ctrl-C was pressed; a checkpoint of the last finished step has been written."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with an optimiser of its own.

    Attributes:
        name: Its name in the metrics.
        epochs: How long it takes.
        prepare: Makes the model ready for it (grows it, freezes parts of it). It must not matter whether the model has been
            through the stages before, because a run that is continued has not.
    """

    name: str
    epochs: int
    prepare: Callable[[nn.Module], None] = lambda model: None


def decisions(scores: torch.Tensor) -> torch.Tensor:
    """The class of each row: the largest of several scores; of a single one (a logit), whether it is positive."""
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(dim=1)


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, for each row."""
    return F.cross_entropy(scores, labels, reduction="none")


def quantum_layers(model: nn.Module) -> list[QuantumLayer]:
    """The quantum layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, QuantumLayer)]


@contextmanager
def _deferred_interrupt(*, at_once: bool) -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C only sets the event; the second one interrupts at once, or the first if so wanted."""
    pressed = threading.Event()
    if at_once or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    previous = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


class Trainer:
    """Trains a classifier: an epoch a line of metrics and a checkpoint.

    Under torchrun each process takes every n-th row of a batch, and the gradients are those of the whole batch: the loss is
    summed over the rows here and divided by the rows of all processes. Only batch normalisation sees the rows of its own
    process alone; what it has gathered in the first process counts.

    Everything random comes from streams whose positions are in the checkpoint: torch's own generators (dropout,
    augmentation), the quantum layers' shots, and the order of the examples, which follows from the seed and the epoch alone.

    The keyword arguments have defaults that suit most experiments, each of which needs one or two others.

    Where a quantum layer's steps wait in a queue, each is worth a checkpoint: one is written after every step. Ctrl-C then
    interrupts at once, because a step may take hours, and the ledger has its job.

    Args:
        model: Gives a row of scores for each example: one a class, or a single logit of class 1.
        loss: From scores of shape (N, scores) and labels of shape (N,) to the loss of each row, shape (N,).
        settings: What defines the run; ``seed``, ``epochs``, ``batch_size`` and ``lr`` are read here.
        work: Where checkpoints and metrics go, and where torch computes.
        stages: The parts of the training; default: one, of ``settings["epochs"]``.
        optimizer: From parameters and learning rate to an optimiser; default: Adam.
        scheduler: From an optimiser, the steps of an epoch and the epochs of the stage to a schedule, moved on at each step.
        threads: In how many threads torch computes; None: as many as it likes. On small models threads mostly wait for
            each other (beside one busy core, two of them trained the classical twin of ``mnist01`` a hundred times slower
            than one), and the numbers of one do not depend on how many cores there are.

    Attributes:
        rows: The metrics of each finished epoch.
        test_scores: The scores of the test examples after the last of them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: Mapping[str, Any],
        work: Workplace,
        *,
        stages: Sequence[Stage] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        scheduler: Callable[[torch.optim.Optimizer, int, int], LRScheduler] | None = None,
        threads: int | None = 1,
    ) -> None:
        self.model, self.loss = model, loss
        self.settings = {name: word_of(value) for name, value in settings.items()}
        self.folder, self.fabric, self._resume = work.folder, work.fabric, work.resume
        self.stages = tuple(stages) if stages is not None else (Stage("training", settings["epochs"]),)
        self._make_optimizer, self._make_scheduler, self._threads = optimizer, scheduler, threads
        self.rows: list[dict[str, Any]] = []
        self.test_scores = torch.empty(0)
        self.wrapped: Any = None
        self.epoch = 0
        self.step = 0
        self._stage = 0
        self._sums = _no_sums()
        self._earlier = {"circuits": 0, "shots": 0}
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._saved = time.perf_counter()
        self._measured = self._measured_by_all = Measured()
        if self.fabric.global_rank:  # dropout of its own; the weights are those of the first process
            torch.manual_seed(settings["seed"] * 1_000_003 + self.fabric.global_rank)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def spent(self) -> dict[str, int]:
        """``circuits`` executed and ``shots`` spent so far by this process."""
        layers, earlier = quantum_layers(self.model), self._earlier
        return {name: earlier[name] + sum(getattr(layer, f"total_{name}") for layer in layers) for name in earlier}

    def fit(self, train: Examples, test: Examples) -> None:
        """Trains through all stages, from the checkpoint where the run is to be continued and has one.

        Raises:
            Interrupted: After Ctrl-C, with a checkpoint written.
            ValueError: If the checkpoint is of another model or another kind of run; nothing has changed then.
        """
        steps = -(-len(train) // self.settings["batch_size"])
        with threads(self._threads), _deferred_interrupt(at_once=self._queues) as interrupted:
            state = self._checkpoint()
            resumed_in = 0 if state is None else state["stage"]
            last_epoch = sum(stage.epochs for stage in self.stages[:resumed_in])
            for number, stage in enumerate(self.stages[resumed_in:], start=resumed_in):
                self._stage = number
                last_epoch += stage.epochs
                self._enter(stage, steps)
                if state is not None:
                    self._restore(state)
                    state = None
                if number == resumed_in:
                    self._begin()
                while self.epoch < last_epoch:
                    self._train_epoch(stage, train, steps, interrupted)
                    self._finish_epoch(stage, test)
                    if any(self._anywhere(interrupted.is_set())):
                        raise Interrupted

    def evaluate(self, examples: Examples) -> tuple[float, float, torch.Tensor]:
        """Mean loss, accuracy, and scores of shape (N, scores), without dropout and in one backend call a process."""
        self.model.eval()
        rank, world = self.fabric.global_rank, self.fabric.world_size
        with torch.no_grad():
            if world > 1:
                for buffer in self.model.buffers():  # the last step has left each process statistics of its own
                    torch.distributed.broadcast(buffer, src=0)
            inputs, labels = examples.batch(torch.arange(rank, len(examples), world), training=False)
            own_scores = self.model(inputs.to(self.fabric.device))
            self._note_passports()
            scores = own_scores.new_zeros(len(examples), own_scores.shape[1])
            scores[rank::world] = own_scores
            all_labels = labels.new_zeros(len(examples), device=scores.device)
            all_labels[rank::world] = labels.to(scores.device)
            if world > 1:
                scores, all_labels = (total(self.fabric, part) for part in (scores, all_labels))
            accuracy = (decisions(scores) == all_labels).double().mean().item()
            return self.loss(scores, all_labels).mean().item(), accuracy, scores.cpu()

    def result(self) -> dict[str, Any]:
        """What the training has come to: the last epoch's metrics that a result wants, and its jobs on hardware."""
        names = ("test_accuracy", "train_accuracy", "test_loss", "seconds", "circuits", "shots")
        numbers = {"epochs": self.epoch} | {name: self.rows[-1][name] for name in names}
        for layer in quantum_layers(self.model)[:1]:
            numbers |= self._measured_by_all.result(layer.backend)
        return numbers

    def save(self) -> None:
        """Writes the checkpoint and the metrics so far."""
        state = self._state()
        if self.fabric.is_global_zero:
            self.folder.write_checkpoint(state)
            self.folder.write_rows("metrics.csv", self.rows)
        self._saved = time.perf_counter()

    @property
    def _queues(self) -> bool:
        return any(layer.backend.queues for layer in quantum_layers(self.model))

    def _note_passports(self) -> None:
        for layer in quantum_layers(self.model):
            if layer.last_run is not None and layer.last_run.passport is not None:
                self._measured.note(layer.last_run.passport)

    def _begin(self) -> None:
        """Writes what is known before the first step."""
        if not self.fabric.is_global_zero:
            return
        if self.epoch < sum(stage.epochs for stage in self.stages):
            self.folder.reopen()
        self.folder.write_settings(self.settings)
        if self.rows:  # a run that was killed between its checkpoint and its metrics has the checkpoint's only
            self.folder.write_rows("metrics.csv", self.rows)
        self._board = Board.fresh(self.folder.file("tensorboard"))
        for row in self.rows:
            self._board.add(row)

    def _enter(self, stage: Stage, steps: int) -> None:
        self.wrapped = None
        if self.fabric.world_size > 1:
            gc.collect()  # what wrapped the model before must be gone: its hooks would send all gradients once more
        self._earlier = self.spent
        stage.prepare(self.model)
        for layer in quantum_layers(self.model):
            layer.total_circuits = layer.total_shots = 0
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = self._make_optimizer(trained, lr=self.settings["lr"])
        self.wrapped, self.optimizer = self.fabric.setup(self.model, optimizer)
        self.scheduler = None
        if self._make_scheduler is not None:
            self.scheduler = self._make_scheduler(optimizer, steps, stage.epochs)
        self._trained = trained

    def _train_epoch(self, stage: Stage, train: Examples, steps: int, interrupted: threading.Event) -> None:
        size, epochs = self.settings["batch_size"], sum(stage.epochs for stage in self.stages)
        generator = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch)
        order = torch.randperm(len(train), generator=generator)
        progress = tqdm(
            range(self.step, steps),
            desc=f"{stage.name}, epoch {self.epoch + 1}/{epochs}",
            initial=self.step,
            total=steps,
            leave=False,
            disable=None if self.fabric.is_global_zero else True,
        )
        self.model.train()
        for step in progress:
            rows = order[step * size : (step + 1) * size]
            inputs, labels = train.batch(rows[self.fabric.global_rank :: self.fabric.world_size], training=True)
            self._learn(inputs.to(self.fabric.device), labels.to(self.fabric.device), len(rows))
            self.step = step + 1
            if self._sums["seen"]:
                progress.set_postfix(loss=f"{self._sums['loss'] / self._sums['seen']:.4f}", refresh=False)
            self._save_if_due(interrupted)

    def _learn(self, inputs: torch.Tensor, labels: torch.Tensor, rows_of_all: int) -> None:
        self.optimizer.zero_grad()
        scores = self.wrapped(inputs)
        self._note_passports()
        losses = self.loss(scores, labels)
        # Fabric averages gradients over processes.
        self.fabric.backward(losses.sum() * (self.fabric.world_size / rows_of_all))
        self._sums["squares"] += sum(p.grad.square().sum().item() for p in self._trained if p.grad is not None)
        self._sums["steps"] += 1
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self._sums["loss"] += losses.sum().item()
        self._sums["correct"] += int((decisions(scores) == labels).sum())
        self._sums["seen"] += len(labels)

    def _save_if_due(self, interrupted: threading.Event) -> None:
        overdue = self._queues or time.perf_counter() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        stop, overdue = self._anywhere(interrupted.is_set(), overdue)
        if stop or overdue:
            self.save()
        if stop:
            raise Interrupted

    def _anywhere(self, *flags: bool) -> tuple[bool, ...]:
        """Whether it is so in any process: all save and stop together, because gathering the state takes all of them."""
        if self.fabric.world_size == 1:
            return flags
        counts = total(self.fabric, torch.tensor(flags, device=self.fabric.device).int())
        return tuple((counts > 0).tolist())

    def _finish_epoch(self, stage: Stage, test: Examples) -> None:
        test_loss, test_accuracy, self.test_scores = self.evaluate(test)
        parts = gathered(self.fabric, {**self._sums, **self.spent})
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        self._measured_by_all = Measured.together(gathered(self.fabric, self._measured.state()))
        numbers = sum(parameter.numel() for parameter in self._trained)
        row = {
            "epoch": self.epoch + 1,
            "stage": stage.name,
            "train_loss": sums["loss"] / sums["seen"],
            "train_accuracy": sums["correct"] / sums["seen"],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "gradient_rms": (self._sums["squares"] / (self._sums["steps"] * max(numbers, 1))) ** 0.5,
            "trained_parameters": numbers,
            "circuits": sums["circuits"],
            "shots": sums["shots"],
            "seconds": round(self.seconds, 3),
        }
        self.rows.append(row)
        self.epoch, self.step, self._sums = self.epoch + 1, 0, _no_sums()
        self.save()
        if self.fabric.is_global_zero:
            self._board.add(row)
            tqdm.write(
                f"{stage.name}, epoch {row['epoch']:>3}: train loss {row['train_loss']:.4f}, "
                f"accuracy {row['train_accuracy']:.3f}; test loss {test_loss:.4f}, accuracy {test_accuracy:.3f}"
            )

    def _state(self) -> dict[str, Any]:
        of_process = {
            "sums": self._sums,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "quantum_rng": [layer.get_rng_state() for layer in quantum_layers(self.model)],
            **self.spent,
            "measured": self._measured.state(),
        }
        return {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "stages": [[stage.name, stage.epochs] for stage in self.stages],
            "stage": self._stage,
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "test_scores": self.test_scores,
            "processes": gathered(self.fabric, of_process),
            "seconds": self.seconds,
        }

    def _checkpoint(self) -> dict[str, Any] | None:
        if not (self._resume and self.folder.has_checkpoint):
            return None
        state = self.folder.read_checkpoint()
        missing = sorted(_PARTS - state.keys())
        if missing or not self._continues(state):
            raise ValueError(self._foreign(missing or ["its stages"]))
        if len(state["processes"]) != self.fabric.world_size:
            raise ValueError(
                f"--resume: got {self.fabric.world_size} process(es), expected the {len(state['processes'])} that the run "
                "was started with: each continues its own random numbers."
            )
        return state

    def _continues(self, state: Mapping[str, Any]) -> bool:
        """Whether the stages that a checkpoint has behind it are ours, and the one that it is in lasts as long at least."""
        behind = slice(state["stage"] + 1)
        *done, (last, epochs) = ((name, epochs) for name, epochs in state["stages"][behind])
        *expected, (expected_last, most) = ((stage.name, stage.epochs) for stage in self.stages[behind])
        return (done, last) == (expected, expected_last) and epochs <= most

    def _restore(self, state: Mapping[str, Any]) -> None:
        weights, saved = self.model.state_dict(), state["model"]
        differing = [
            name
            for name in sorted(weights.keys() | saved.keys())
            if name not in weights or name not in saved or weights[name].shape != saved[name].shape
        ]
        of_process, layers = state["processes"][self.fabric.global_rank], quantum_layers(self.model)
        if not differing and len(of_process["quantum_rng"]) != len(layers):
            differing = ["its quantum layers"]
        if differing:
            raise ValueError(self._foreign(differing))
        self.model.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for layer, rng in zip(layers, of_process["quantum_rng"], strict=True):
            layer.set_rng_state(rng)
        self._earlier = {"circuits": of_process["circuits"], "shots": of_process["shots"]}
        self._measured = Measured(of_process.get("measured"))  # a checkpoint from before there was hardware has none
        self._measured_by_all = Measured.together(gathered(self.fabric, self._measured.state()))
        self.rows, self.test_scores = [dict(row) for row in state["rows"]], state["test_scores"]
        self.epoch, self.step, self._sums = state["epoch"], state["step"], dict(of_process["sums"])
        self._seconds_before, self._started = state["seconds"], time.perf_counter()
        torch.set_rng_state(of_process["torch_rng"])
        if torch.cuda.is_available() and of_process["cuda_rng"]:
            torch.cuda.set_rng_state_all(of_process["cuda_rng"])

    def _foreign(self, differing: Sequence[str]) -> str:
        return (
            f"{self.folder.file('checkpoint.pt')} is a checkpoint of another model (it differs in "
            f"{', '.join(differing)}); continue with the settings it was made with, or start anew in another folder."
        )


def _no_sums() -> dict[str, Any]:
    return {"loss": 0.0, "correct": 0, "seen": 0, "squares": 0.0, "steps": 0}
