"""The optimizers that are compared: how each trains the circuit. Classical parameters have Adam at one rate for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from qiskit_torch_bridge import CANS, QuantumNaturalGradient, Rotosolve

from .optimizer_settings import MethodName
from .trained_problems import Task

CLASSICAL_RATE = 0.02
"""Adam's learning rate for what is not in the circuit, whatever trains the circuit."""
MOST_SHOTS = 1000
"""Of a circuit, where they are adapted."""

Loss = Callable[[], torch.Tensor]
"""Measures the loss of the step's batch."""
Step = Callable[[Loss], None]
"""Takes a training step."""


class Contestant(NamedTuple):
    """A way to train.

    Attributes:
        begin: From a task and a learning rate to its steps.
        gradient: The gradient rule.
        has_rate: Whether there is a learning rate to choose.
        needs_linear: Whether the loss has to be an expectation value.
    """

    begin: Callable[[Task, float], Step]
    gradient: str = "parameter_shift"
    has_rate: bool = True
    needs_linear: bool = False


def _downhill(make: Callable[[Task, float], torch.optim.Optimizer]) -> Callable[[Task, float], Step]:
    """Steps of an optimizer that wants a gradient and nothing else."""

    def begin(task: Task, rate: float) -> Step:
        optimizers = [make(task, rate)]
        if task.classical:
            optimizers.append(torch.optim.Adam(task.classical, lr=CLASSICAL_RATE))

        def step(loss: Loss) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss().backward()
            for optimizer in optimizers:
                optimizer.step()

        return step

    return begin


def _adam(task: Task, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(task.layer.parameters(), lr=rate)


def _sgd(task: Task, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(task.layer.parameters(), lr=rate)


def _natural(approximation: str | None) -> Callable[[Task, float], Step]:
    return _downhill(lambda task, rate: QuantumNaturalGradient(task.layer, rate, approximation=approximation))


def _shot_adaptive(task: Task, rate: float) -> torch.optim.Optimizer:
    """Its rule is derived for a learning rate of one over the Lipschitz constant, so that one follows from the other."""
    return CANS(task.layer, rate, lipschitz=1 / rate, most=MOST_SHOTS)


def _rotosolve(task: Task, rate: float) -> Step:
    optimizer = Rotosolve(task.layer)

    def sweep(loss: Loss) -> None:
        optimizer.step(loss)

    return sweep


CONTESTANTS: Mapping[MethodName, Contestant] = {
    "Adam": Contestant(_downhill(_adam)),
    "SGD": Contestant(_downhill(_sgd)),
    "SPSA": Contestant(_downhill(_sgd), gradient="spsa"),
    "natural": Contestant(_natural(None)),
    "natural diagonal": Contestant(_natural("diag")),
    "natural SPSA": Contestant(_natural("spsa"), gradient="spsa"),
    "Rotosolve": Contestant(_rotosolve, has_rate=False, needs_linear=True),
    "shot-adaptive": Contestant(_downhill(_shot_adaptive)),
}
"""By their names in the study."""
