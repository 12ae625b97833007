"""Trainings with the noise of a fake device, for as many steps as there is time on the device for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from qiskit_torch_bridge import (
    Backend,
    DensityMatrixBackend,
    DressedQuantumNet,
    IBMBackend,
    Mitigation,
    Quote,
    ReadoutCorrection,
    ZeroNoiseExtrapolation,
)

from ..common.cells import Cell, Row
from ..common.classifiers import decisions
from ..common.rows import Rows
from .cost_settings import WayName
from .counting import fake_device
from .side_by_side import Regions
from .steps import DEVICE

CLASSES = (8, 9)
_TRAIN_IMAGES = 200
_HIDDEN = 32


class Way(NamedTuple):
    """How the time on the device is spent.

    Attributes:
        gradient: The gradient rule.
        packed: Whether rows are executed side by side on several regions of the device.
        mitigation: Methods of error mitigation.
    """

    gradient: str
    packed: bool = False
    mitigation: tuple[Mitigation, ...] = ()


WAY: Mapping[WayName, Way] = {
    "plain": Way("parameter_shift"),
    "SPSA": Way("spsa"),
    "packed": Way("parameter_shift", packed=True),
    "packed, extrapolated": Way("parameter_shift", packed=True, mitigation=(ZeroNoiseExtrapolation(),)),
    "mitigated": Way("parameter_shift", mitigation=(ReadoutCorrection(), ZeroNoiseExtrapolation())),
}
"""By their names in the study."""
Layouts = tuple[tuple[int, ...] | None, ...]
"""For each region the device's qubit for each of the circuit's."""
_OF_STEP = ("way", "shots", "qubits", "depth", "batch_size")


@cache
def examples() -> tuple[Rows, Rows]:
    """Features of the digits 8 and 9 to train on and to test: of a small network that has learnt 0 to 7, without its end."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    images, known = images / 16, labels < min(CLASSES)
    network = MLPClassifier((_HIDDEN,), solver="lbfgs", alpha=1.0, max_iter=1000, random_state=0)
    network.fit(images[known], labels[known])
    hidden = np.maximum(images @ network.coefs_[0] + network.intercepts_[0], 0)
    features = torch.tensor(hidden / hidden[known].std(), dtype=torch.float32)[~known]
    targets = torch.tensor(labels[~known] == CLASSES[1]).long()
    parts = slice(_TRAIN_IMAGES), slice(_TRAIN_IMAGES, None)
    train, test = (Rows(features[part], targets[part]) for part in parts)
    return train, test


def network(cell: Cell, **options: Any) -> DressedQuantumNet:
    """The cell's model, with PyTorch's weights to begin with; exact unless the options say otherwise."""
    return DressedQuantumNet(_HIDDEN, len(CLASSES), num_qubits=cell["qubits"], depth=cell["depth"], **options)


def _on(backend: Backend, way: WayName, shots: int, qubits: int, depth: int) -> DressedQuantumNet:
    """The model of one way on a backend."""
    cell = {"qubits": qubits, "depth": depth}
    model = network(cell, backend=backend, shots=shots, gradient=WAY[way].gradient)
    model.quantum.mitigation = WAY[way].mitigation
    return model


def begun(cell: Cell, seed: np.random.SeedSequence) -> DressedQuantumNet:
    """The cell's model on the noisy device, with classical weights by the cell's seed; ``seed`` draws all else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        start = network(cell, seed=seed.generate_state(4).tolist())
    model = _on_noisy_device(*(cell[name] for name in _OF_STEP))
    model.load_state_dict(start.state_dict())
    model.quantum.set_rng_state(start.quantum.get_rng_state())
    return model


@cache
def _on_noisy_device(way: WayName, shots: int, qubits: int, depth: int, batch_size: int) -> DressedQuantumNet:
    """Made once in a process: to transpile its circuit takes as long as a training."""
    layouts = _layouts(qubits, depth) if WAY[way].packed else (None,)
    return _on(_noise_on(layouts), way, shots, qubits, depth)


@cache
def _noise_on(layouts: Layouts) -> Backend:
    """The device's noise on these qubits (None: the transpiler's choice), simulated exactly; shots are drawn from that."""
    from qiskit_aer.noise import NoiseModel  # which takes a moment

    device = fake_device()
    noise = NoiseModel.from_backend(device)  # once, because that takes seconds
    anywhere = DensityMatrixBackend(noise, device, optimization_level=2)
    return anywhere if layouts == (None,) else Regions([anywhere.on_qubits(layout) for layout in layouts if layout])


@cache
def _layouts(qubits: int, depth: int) -> Layouts:
    """The device's qubits of the regions on which copies of the circuit run: what a rehearsal of one shot says."""
    cell, backend = {"qubits": qubits, "depth": depth}, IBMBackend(DEVICE, packing="auto", ledger=":memory:")
    model = network(cell, backend=backend, shots=1, seed=0)
    with torch.no_grad():
        model(examples()[1].inputs[:1])
    run = model.quantum.last_run
    assert run is not None
    assert run.passport is not None
    (packed,) = run.passport.packing
    return packed.layouts


def quote_of(cell: Cell) -> Quote:
    """What one step costs on the device; nothing is sent anywhere."""
    return _quote(*(cell[name] for name in _OF_STEP))


@cache
def _quote(way: WayName, shots: int, qubits: int, depth: int, batch_size: int) -> Quote:
    backend = IBMBackend(DEVICE, packing="auto" if WAY[way].packed else None, ledger=":memory:")
    return _on(backend, way, shots, qubits, depth).quantum.quote(batch_size)


def seconds_of_step(cell: Cell) -> float:
    """Of the quantum processor, for a step after the first, with which methods of mitigation are calibrated."""
    quote = quote_of(cell)
    return (2 * quote).qpu_seconds - quote.qpu_seconds


def steps_of(cell: Cell) -> int:
    """For how many steps there is time."""
    return max(0, int(1 + (cell["seconds"] - quote_of(cell).qpu_seconds) / seconds_of_step(cell)))


def require_time(cell: Cell) -> None:
    """Refuses a cell without time for a single step.

    Raises:
        ValueError: If it is one.
    """
    if not steps_of(cell):
        least = quote_of(cell).qpu_seconds
        raise ValueError(
            f"--seconds: got {cell['seconds']:g}, expected at least {least:.1f}, for one step ({cell['way']}, "
            f"{cell['shots']} shots)."
        )


def train(cell: Cell, seed: np.random.SeedSequence) -> Row:
    """Trains the cell's model; the errors on the test images that it ends with.

    Args:
        cell: Cells of one seed start from the same classical weights and see the same batches, whatever the way. The
            circuit's first weights, with a standard deviation of 0.01, are drawn with the shots.
        seed: Draws the shots.
    """
    steps = steps_of(cell)
    model = begun(cell, seed)
    train, test = examples()
    batches = torch.Generator().manual_seed(cell["seed"])
    optimizer = torch.optim.Adam(model.parameters(), lr=cell["lr"])
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < cell["batch_size"]:
            order = torch.randperm(len(train), generator=batches)
        rows, order = order[: cell["batch_size"]], order[cell["batch_size"] :]
        inputs, labels = train.batch(rows, training=True)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return {
        "steps": steps,
        "seconds_of_step": seconds_of_step(cell),
        "accuracy": accuracy(model, test),
        "accuracy_of_weights": accuracy(without_noise(model, cell), test),
    }


def accuracy(model: torch.nn.Module, test: Rows) -> float:
    """The share of the test images that are taken for what they are."""
    with torch.no_grad():
        return float((decisions(model(test.inputs)) == test.labels).double().mean())


def without_noise(model: DressedQuantumNet, cell: Cell) -> DressedQuantumNet:
    """The same weights, with exact values and without noise."""
    twin = network(cell)
    twin.load_state_dict(model.state_dict())
    return twin
