"""Accuracy against the shots spent: three models, trained with shots that a schedule sets and an allocation shares out.

* ``hybrid CNN``: the network of :mod:`experiments.mnist01` on 0/1 with the textbook's loss, minus the probability of the
  right class. Its upstream gradient has the same size in every row, so sensitivity has nothing to tell rows apart by.
* ``layerwise``: the circuit of :mod:`experiments.mnist36` in its improved form, on 3/6, which grows in four steps; binary
  cross entropy, whose upstream gradient becomes small, but never zero, for rows that are right.
* ``dressed``: a dressed quantum network of four qubits on the same nine numbers of 3/6, with the hinge loss, whose upstream
  gradient is zero for rows beyond the margin.

Accuracy is that of exact simulation, on images that are not trained on, so that what scatters is the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import (
    ConstantShots,
    DressedQuantumNet,
    GrowingShots,
    LayerwiseQuantumLayer,
    ShotSchedule,
    TargetSNR,
    layerwise_schedule,
)
from qiskit_torch_bridge.circuits import ring_layers

from .. import mnist01, mnist36
from ..common.cells import Cell
from ..common.classifiers import decisions, quantum_layers
from ..common.data import load_digits_of, load_first_of
from ..common.rows import Rows

_BATCH_SIZE = 16
_GROWTH_STEPS = 4
_MOST_EVALUATIONS = 12


class Strategy(NamedTuple):
    """How shots are spent.

    Attributes:
        schedule: From a model and the number of steps to its schedule.
        allocation: As in :class:`~qiskit_torch_bridge.QuantumLayer`.
    """

    schedule: Callable[[nn.Module, int], ShotSchedule]
    allocation: str = "uniform"


_NEEDS_WEIGHTS = "target SNR of 2"  # goes by the gradient of the circuit's own weights
STRATEGIES: Mapping[str, Strategy] = {
    "2 shots": Strategy(lambda model, steps: ConstantShots(model, 2)),
    "20 shots": Strategy(lambda model, steps: ConstantShots(model, 20)),
    "20 shots, by sensitivity": Strategy(lambda model, steps: ConstantShots(model, 20), "sensitivity"),
    "200 shots": Strategy(lambda model, steps: ConstantShots(model, 200)),
    "200 shots, by sensitivity": Strategy(lambda model, steps: ConstantShots(model, 200), "sensitivity"),
    "growing, 2 to 200": Strategy(lambda model, steps: GrowingShots(model, first=2, last=200, steps=steps)),
    _NEEDS_WEIGHTS: Strategy(lambda model, steps: TargetSNR(model, 2.0, first=20, least=2, most=1000)),
}
"""By their names in the study."""

ALLOCATIONS = {name: f"{name}, by sensitivity" for name in ("20 shots", "200 shots")}
"""Strategies that differ in the allocation alone."""


class Task(NamedTuple):
    """Something to train.

    Attributes:
        model: The model, without shots yet.
        training: What it is trained on.
        testing: What it is tested on.
        loss: From scores and labels to the loss of each row.
        lr: Adam's learning rate.
        phases: What to do before each part of the training; all parts have as many steps, up to one.
    """

    model: nn.Module
    training: Rows
    testing: Rows
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    lr: float
    phases: Sequence[Callable[[], None]] = (lambda: None,)


def hybrid(data_root: Path | None, seed: int) -> Task:
    """The textbook's network on 0/1."""
    tested = 75 if data_root is None else 200
    data = load_digits_of(mnist01.DIGITS, train_per_digit=100, test_per_digit=tested, data_root=data_root)
    head = mnist01.quantum_head(gradient="parameter_shift", seed=seed)
    return Task(mnist01.network(head), data.train, data.test, loss=mnist01.loss, lr=0.001)


def layerwise(data_root: Path | None, seed: int) -> Task:
    """A circuit of nine qubits on 3/6, which grows by a layer in each step; a layer is trained when it is new."""
    phases = layerwise_schedule(steps=_GROWTH_STEPS, layers_per_step=1, epochs=1)
    options: dict[str, Any] = {
        "init": "uniform",
        "observables": mnist36.readout("sum"),
        "gradient": "parameter_shift",
        "seed": seed,
    }
    circuit = LayerwiseQuantumLayer(lambda depth: ring_layers(mnist36.QUBITS, depth), 1, **options)
    model = mnist36.Classifier(circuit, scale_and_bias=True)
    enter = [lambda phase=phase: circuit.enter(phase) for phase in phases]
    return Task(model, *_nine_numbers(data_root), loss=mnist36.loss, lr=0.05, phases=enter)


def dressed(data_root: Path | None, seed: int) -> Task:
    """A dressed quantum network on 3/6, with the hinge loss."""
    model = DressedQuantumNet(
        mnist36.QUBITS, 2, num_qubits=4, depth=2, weight_spread=0.5, gradient="parameter_shift", seed=seed
    )
    return Task(model, *_nine_numbers(data_root), loss=hinge, lr=0.02)


MODELS: Mapping[str, Callable[[Path | None, int], Task]] = {
    "hybrid CNN": hybrid,
    "layerwise": layerwise,
    "dressed": dressed,
}
"""By their names in the study: from the data root (None: scikit-learn's digits) and a seed to the task."""


def hinge(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far the right class's score is from leading by one, for each row."""
    return 2 * F.multi_margin_loss(scores, labels, reduction="none")


def strategies_of(model: str) -> list[str]:
    """The strategies that a model can be trained with: the hybrid CNN's circuit has no weights."""
    return [name for name in STRATEGIES if name != _NEEDS_WEIGHTS or model != "hybrid CNN"]


def train(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    """Trains a model; returns a row for each of some steps, ever further apart.

    Args:
        cell: With ``model``, ``strategy``, ``steps``, ``seed`` and ``data_root``. Cells of one seed start from the same
            weights and see the same batches, whatever the strategy.
        seed: Draws the shots.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        return [*_rows(MODELS[cell["model"]](folder_of(cell["data_root"]), cell["seed"]), cell, seed)]


def _rows(task: Task, cell: Cell, seed: np.random.SeedSequence) -> Iterator[dict[str, Any]]:
    strategy, steps = STRATEGIES[cell["strategy"]], cell["steps"]
    batches = torch.Generator().manual_seed(cell["seed"])
    stops = {round(stop) for stop in np.geomspace(1, steps, min(_MOST_EVALUATIONS, steps))}
    starts = {round(part * steps / len(task.phases)): enter for part, enter in enumerate(task.phases)}
    for layer in quantum_layers(task.model):
        layer.set_rng_state({"entropy": seed.generate_state(4).tolist(), "position": 0})
        layer.allocation = strategy.allocation
        layer.shots = 1  # which the schedule changes at once
    schedule = strategy.schedule(task.model, steps)
    for step in range(steps):
        if step in starts:
            starts[step]()
            trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.Adam(trained, lr=task.lr)
        rows = torch.randint(len(task.training), (_BATCH_SIZE,), generator=batches)
        inputs, labels = task.training.batch(rows, training=True)
        optimizer.zero_grad()
        task.loss(task.model(inputs), labels).mean().backward()
        optimizer.step()
        shots_taken = schedule.shots[0]
        schedule.step()  # before an evaluation, whose run has no gradient to go by
        if step + 1 in stops:
            scores, labels = exact_scores(task.model, task.testing.inputs), task.testing.labels
            yield {
                "step": step + 1,
                "total_shots": sum(layer.total_shots for layer in schedule.layers),
                "shots_a_circuit": shots_taken,
                "test_accuracy": float((decisions(scores) == labels).double().mean()),
                "test_loss": float(task.loss(scores, labels).double().mean()),
            }


def exact_scores(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a model says without shots; a twin says it, so that nothing is counted and the stream of shots stays put."""
    twin = deepcopy(model).eval()
    for layer in quantum_layers(twin):
        layer.shots = None
    with torch.no_grad():
        scores: torch.Tensor = twin(inputs)
    return scores


def _nine_numbers(data_root: Path | None) -> tuple[Rows, Rows]:
    """Threes and sixes as nine numbers each."""
    dataset, test = ("digits", None) if data_root is None else ("mnist", 500)
    train = mnist36.TRAIN_IMAGES[dataset]
    return mnist36.rows_of(load_first_of(mnist36.DIGITS, train=train, test=test, data_root=data_root))


def folder_of(data_root: str | None) -> Path | None:
    """Where MNIST is; None for scikit-learn's digits."""
    return None if data_root is None else Path(data_root)
