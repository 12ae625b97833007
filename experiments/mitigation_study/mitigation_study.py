"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

from qiskit_torch_bridge import (
    DensityMatrixBackend,
    DressedQuantumNet,
    Mitigation,
    ParameterShift,
    QuantumLayer,
    ReadoutCorrection,
    TwirledReadout,
    ZeroNoiseExtrapolation,
)
from qiskit_torch_bridge.backends.ibm.device import fake_device

from ..common.cells import Cell, Row
from ..common.studies import Study
from ..gradient_methods.problems import Problem
from .mitigation_findings import find
from .mitigation_settings import MitigationSettings

_LINE, _TWO, _RICHARDSON = (
    ZeroNoiseExtrapolation(),
    ZeroNoiseExtrapolation((1, 3)),
    ZeroNoiseExtrapolation(fit="richardson"),
)
METHODS: dict[str, list[Mitigation]] = {
    "none": [],
    "readout": [ReadoutCorrection()],
    "twirled readout": [TwirledReadout()],
    "line 1, 3": [_TWO],
    "line 1, 3, 5": [_LINE],
    "richardson 1, 3, 5": [_RICHARDSON],
    "readout, line 1, 3": [ReadoutCorrection(), _TWO],
    "readout, line 1, 3, 5": [ReadoutCorrection(), _LINE],
    "readout, richardson 1, 3, 5": [ReadoutCorrection(), _RICHARDSON],
}
"""The mitigation of each method's name."""

_POINTS_OF_CLASSES, _BATCH, _TEST = 64, 16, 200


def cells(settings: MitigationSettings) -> list[Cell]:
    """The cells of both parts: errors, and trainings."""
    points = range(settings.seed, settings.seed + settings.points)
    numbers = {"executions": settings.executions, "repeats": settings.repeats}
    errors = [
        {"device": device, "circuit": circuit, "methods": list(settings.methods), "point": point, **numbers}
        for device, circuit, point in product(settings.devices, settings.circuits, points)
    ]
    trainings = [
        {"device": device, "method": method, "executions": executions, "steps": settings.steps, "seed": seed}
        for device, method, executions, seed in product(
            settings.trained_devices,
            settings.trained_methods,
            settings.trained_executions,
            range(settings.seed, settings.seed + settings.seeds),
        )
    ]
    return [{"part": part, **cell} for part, made in (("errors", errors), ("trainings", trainings)) for cell in made]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """Rows for all methods at a point; or the row of a training."""
    if cell["part"] == "trainings":
        return [_training(cell)]
    return list(_errors(cell, seed))


@lru_cache(maxsize=4)
def _backend(device: str) -> DensityMatrixBackend:
    return DensityMatrixBackend(device=fake_device(device))


def _errors(cell: Cell, seed: np.random.SeedSequence) -> Iterator[Row]:
    problem = Problem.at(cell["circuit"], cell["point"])
    ideal, _ = _estimates(problem, problem.layer())
    layer = problem.layer(
        backend=_backend(cell["device"]), gradient=ParameterShift(), seed=seed.generate_state(4).tolist()
    )
    plain = layer.method().backend.circuits_per_row(layer.program)
    for name in cell["methods"]:
        layer.shots, layer.mitigation = None, METHODS[name]
        circuits = layer.method().backend.circuits_per_row(layer.program) // plain
        exact = _estimates(problem, layer)
        layer.shots = cell["executions"] // circuits
        squares = []
        for _ in range(cell["repeats"]):
            layer.mitigation = METHODS[name]  # which has no calibration yet
            measured = _estimates(problem, layer)
            squares.append([float(((one - true) ** 2).sum()) for one, true in zip(measured, exact, strict=True)])
        of_value, of_gradient = np.mean(squares, axis=0) * circuits * layer.shots
        yield {
            "method": name,
            "circuits": circuits,
            "squared_bias_of_value": float((exact[0] - ideal) ** 2),
            "squared_bias_of_gradient": float(((exact[1] - problem.gradient) ** 2).sum()),
            "variance_of_value": float(of_value),
            "variance_of_gradient": float(of_gradient),
            "squared_gradient": float((problem.gradient**2).sum()),
        }


def _estimates(problem: Problem, layer: QuantumLayer) -> tuple[np.ndarray, np.ndarray]:
    """The value of the problem, and its gradient of shape (W,)."""
    features = torch.from_numpy(problem.point.copy()).requires_grad_()
    value = layer(features)
    value.backward()
    assert features.grad is not None
    return value.detach().numpy()[0], features.grad.numpy()[problem.matter]


def _training(cell: Cell) -> Row:
    """Two interleaved moons by a dressed circuit: trained and tested with the noise, and the mitigation."""
    generator = torch.Generator().manual_seed(cell["seed"])
    examples, labels = _moons(_POINTS_OF_CLASSES, generator)
    unseen, answers = _moons(_TEST, generator)
    torch.manual_seed(cell["seed"])
    methods = METHODS[cell["method"]]
    model = DressedQuantumNet(
        2, 2, num_qubits=4, depth=2, weight_spread=0.3, backend=_backend(cell["device"]), shots=1, seed=cell["seed"]
    )
    layer = model.quantum
    layer.mitigation = methods
    plain = layer.backend.circuits_per_row(layer.program)
    layer.shots = cell["executions"] * plain // layer.method().backend.circuits_per_row(layer.program)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(cell["steps"]):
        rows = torch.randint(len(examples), (_BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(examples[rows]), labels[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        scores = model(unseen)
        layer.mitigation, layer.shots = [], None
        layer.backend = "statevector"
        without_noise = model(unseen)
    accuracy, without = ((each.argmax(1) == answers).double().mean() for each in (scores, without_noise))
    return {
        "accuracy": float(accuracy),
        "loss": float(F.cross_entropy(scores, answers)),
        "accuracy_without_noise": float(without),
    }


def _moons(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Half circles that reach into each other, with a spread of 0.15."""
    angles = torch.rand(count, generator=generator) * torch.pi
    labels = torch.arange(count) % 2
    first = torch.stack([angles.cos(), angles.sin()], dim=1)
    second = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], dim=1)
    points = torch.where(labels[:, None] == 0, first, second)
    return points + 0.15 * torch.randn(points.shape, generator=generator), labels


STUDY = Study(
    name="mitigation",
    settings=MitigationSettings,
    make_cells=cells,
    measure=measure,
    find=find,
    extendable=("points", "seeds"),
)
