"""Training a classifier so that it can be interrupted at any step and continued to the last bit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from qiskit_torch_bridge import QuantumLayer

from .runs import RunFolder

__all__ = ["Interrupted", "Trainer"]

LabelledImages = tuple[torch.Tensor, torch.Tensor]


class Interrupted(Exception):  # noqa: N818 - an event, as KeyboardInterrupt
    """Ctrl-C was pressed; a checkpoint of the last finished step has been written."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it, torch computes in one thread.

    On small images threads mostly wait for each other: beside one busy core, two of them trained the classical twin of
    ``mnist01`` a hundred times slower than one. And the numbers do not depend on how many cores there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C only sets the event; the second one interrupts at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
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
    """Trains a model, an epoch a line of metrics, a checkpoint after each.

    Everything random comes from streams whose positions are in the checkpoint: torch's own generators (dropout), the
    quantum layers' shots, and the order of the images, which follows from the seed and the epoch alone.

    Args:
        model: The classifier; gives a row of class scores for each image.
        loss: From scores of shape (N, classes) and labels of shape (N,) to a number, their mean.
        settings: What defines the run; ``seed``, ``epochs``, ``batch_size``, ``lr`` and ``device`` are read here.
        folder: Where checkpoints and metrics go.

    Attributes:
        rows: The metrics of each finished epoch.
        test_scores: The scores of the test images after the last of them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        settings: Mapping[str, Any],
        folder: RunFolder,
    ) -> None:
        self.model = model.to(settings["device"])
        self.loss = loss
        self.settings = dict(settings)
        self.folder = folder
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings["lr"])
        self.layers = [module for module in model.modules() if isinstance(module, QuantumLayer)]
        self.rows: list[dict[str, Any]] = []
        self.test_scores = torch.empty(0)
        self.epoch = 0
        self.step = 0
        self._sums = {"loss": 0.0, "correct": 0, "seen": 0}
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def circuits(self) -> int:
        """Circuits executed so far."""
        return sum(layer.total_circuits for layer in self.layers)

    @property
    def shots(self) -> int:
        """Shots spent so far."""
        return sum(layer.total_shots for layer in self.layers)

    def fit(self, train: LabelledImages, test: LabelledImages) -> None:
        """Trains up to ``settings["epochs"]``.

        Raises:
            Interrupted: After Ctrl-C, with a checkpoint written.
        """
        device = self.settings["device"]
        images, labels = (part.to(device) for part in train)
        size = self.settings["batch_size"]
        steps = -(-len(images) // size)
        with _one_thread(), _deferred_interrupt() as interrupted:
            while self.epoch < self.settings["epochs"]:
                order = torch.randperm(len(images), generator=self._order_generator()).to(device)
                self.model.train()
                progress = tqdm(
                    range(self.step, steps),
                    desc=f"epoch {self.epoch + 1}/{self.settings['epochs']}",
                    initial=self.step,
                    total=steps,
                    leave=False,
                    disable=None,
                )
                for step in progress:
                    rows = order[step * size : (step + 1) * size]
                    self._learn(images[rows], labels[rows])
                    self.step = step + 1
                    progress.set_postfix(loss=f"{self._sums['loss'] / self._sums['seen']:.4f}", refresh=False)
                    if interrupted.is_set():
                        self.save()
                        raise Interrupted
                self._finish_epoch(test)

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, torch.Tensor]:
        """Mean loss, accuracy, and scores of shape (N, classes), without dropout and in one backend call."""
        self.model.eval()
        with torch.no_grad():
            scores = self.model(images.to(self.settings["device"]))
            labels = labels.to(scores.device)
            accuracy = (scores.argmax(dim=1) == labels).double().mean().item()
            return self.loss(scores, labels).item(), accuracy, scores.cpu()

    def save(self) -> None:
        """Writes the checkpoint and the metrics so far."""
        self.folder.write_checkpoint(self._state())
        self.folder.write_metrics(self.rows)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`save` wrote.

        Raises:
            ValueError: If the checkpoint is of another model or another kind of run; nothing has changed then.
        """
        differing = sorted(self._state().keys() - state.keys()) or _differing_weights(
            self.model.state_dict(), state["model"]
        )
        if not differing and len(state["quantum_rng"]) != len(self.layers):
            differing = ["its quantum layers"]
        if differing:
            raise ValueError(
                f"{self.folder.file('checkpoint.pt')} is a checkpoint of another model (it differs in "
                f"{', '.join(differing)}); continue with the settings it was made with, or start anew in another folder."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        recorded = zip(self.layers, state["quantum_rng"], state["circuits"], state["shots"], strict=True)
        for layer, rng, circuits, shots in recorded:
            layer.set_rng_state(rng)
            layer.total_circuits, layer.total_shots = circuits, shots
        self.rows, self.test_scores = [dict(row) for row in state["rows"]], state["test_scores"]
        self.epoch, self.step, self._sums = state["epoch"], state["step"], dict(state["sums"])
        self._seconds_before, self._started = state["seconds"], time.perf_counter()
        torch.set_rng_state(state["torch_rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _state(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums,
            "rows": self.rows,
            "test_scores": self.test_scores,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "quantum_rng": [layer.get_rng_state() for layer in self.layers],
            "circuits": [layer.total_circuits for layer in self.layers],
            "shots": [layer.total_shots for layer in self.layers],
            "seconds": self.seconds,
        }

    def _order_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch)

    def _learn(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        scores = self.model(images)
        loss = self.loss(scores, labels)
        loss.backward()
        self.optimizer.step()
        self._sums["loss"] += loss.item() * len(labels)
        self._sums["correct"] += int((scores.argmax(dim=1) == labels).sum())
        self._sums["seen"] += len(labels)

    def _finish_epoch(self, test: LabelledImages) -> None:
        test_loss, test_accuracy, self.test_scores = self.evaluate(*test)
        row = {
            "epoch": self.epoch + 1,
            "train_loss": self._sums["loss"] / self._sums["seen"],
            "train_accuracy": self._sums["correct"] / self._sums["seen"],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "circuits": self.circuits,
            "shots": self.shots,
            "seconds": round(self.seconds, 3),
        }
        self.rows.append(row)
        tqdm.write(
            f"epoch {row['epoch']:>3}: train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.3f}; "
            f"test loss {row['test_loss']:.4f}, accuracy {row['test_accuracy']:.3f}"
        )
        self.epoch, self.step, self._sums = self.epoch + 1, 0, {"loss": 0.0, "correct": 0, "seen": 0}
        self.save()


def _differing_weights(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    names = sorted(mine.keys() | theirs.keys())
    return [n for n in names if n not in mine or n not in theirs or mine[n].shape != theirs[n].shape]
