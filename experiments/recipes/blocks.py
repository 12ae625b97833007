"""Blocks of eight numbers in, eight numbers out, that a network puts in a row: dense or quantum, and as many weights.

Every block takes numbers between -1 and 1 and gives such numbers, so that each can stand in the place of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import ParameterizedCircuit, dressed, reuploading

WIDTH = 8  # numbers in and out, qubits, and classes; three layers of 3 weights a qubit are as many as a dense block has


class Angles(nn.Module):
    """From numbers between -1 and 1 to angles between -pi/2 and pi/2, where no two numbers mean the same angle."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From any shape to the same."""
        return x * (math.pi / 2)


class Scale(nn.Module):
    """One trained number to multiply scores by: between -1 and 1, as a circuit's outputs lie, they are never sure."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From any shape to the same."""
        return self.factor * x


CIRCUITS: Mapping[str, Callable[[], ParameterizedCircuit]] = {
    "quantum": partial(reuploading, WIDTH, 1, depth=3),
    "quantum-layer": partial(reuploading, WIDTH, 1, depth=1),
    "quantum-reuploading": partial(reuploading, WIDTH, 3, depth=1),
    "quantum-from-zero": partial(dressed, WIDTH, 9),
}
"""Quantum blocks by name. The weights of all but one start anywhere: cosines, which do not tell a number from its negative.

``quantum-from-zero`` is the dressed circuit with as many weights, near zero: it hands on the sines of its inputs at first.
"""


def block_at(
    place: int, names: Sequence[str], *, features: int, dropout_rate: float, options: Mapping[str, Any]
) -> nn.Module:
    """A block of a network.

    Args:
        place: Which; the first is 0.
        names: Those of all of them: ``dense`` (a linear layer and tanh), those of :data:`CIRCUITS`, ``dropout``, and what a
            network ends with: ``scores`` (a linear layer) or ``scale``.
        features: The numbers that the first of them is given.
        dropout_rate: The part of the numbers that is dropped.
        options: Of the quantum layers: backend, shots, gradient and seed. Each has shot noise of its own.
    """
    name = names[place]
    if name in CIRCUITS:
        circuit, inputs, weights = CIRCUITS[name]()
        seed = options["seed"] if isinstance(options["seed"], tuple) else (options["seed"],)
        own = {**options, "seed": (sum(before in CIRCUITS for before in names[:place]), *seed)}
        init = "normal" if name == "quantum-from-zero" else "uniform"
        return nn.Sequential(Angles(), QuantumLayer(circuit, inputs=inputs, weights=weights, init=init, **own))
    if name == "dense":
        return nn.Sequential(nn.Linear(WIDTH if place else features, WIDTH), nn.Tanh())
    return nn.Dropout(dropout_rate) if name == "dropout" else {"scores": scores, "scale": Scale}[name]()


def scores() -> nn.Linear:
    """The last layer of a network that ends classically."""
    return nn.Linear(WIDTH, WIDTH)


class QuickStart(nn.Module):
    """A dense block before a quantum one, which learns with classical scores first, if it is to.

    Args:
        first: The dense block.
        quantum: The quantum block.
        freeze: Whether the dense block is left alone while the circuit is trained.

    Attributes:
        classical: Whether the dense block's outputs go to classical scores, past the circuit.
    """

    def __init__(self, first: nn.Module, quantum: nn.Module, *, freeze: bool) -> None:
        super().__init__()
        self.first = first
        self.quantum = quantum
        self.hybrid_scores = scores()
        self.classical_scores = scores()
        self.classical = False
        self._freeze = freeze

    def enter(self, stage: str) -> None:
        """Trains the dense block with classical scores, while the circuit waits; or ``hybrid``, what follows that."""
        self.classical = stage == "classical"
        hybrid = [self.quantum, self.hybrid_scores] if self._freeze else [self.first, self.quantum, self.hybrid_scores]
        self.requires_grad_(False)
        for part in [self.first, self.classical_scores] if self.classical else hybrid:
            part.requires_grad_(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From shape (N, features) to scores of shape (N, 8)."""
        features = self.first(x)
        outputs: torch.Tensor = (
            self.classical_scores(features) if self.classical else self.hybrid_scores(self.quantum(features))
        )
        return outputs


def quantum_layers_with_gradients(model: nn.Module) -> Iterator[tuple[QuantumLayer, bool]]:
    """The quantum layers of a network of blocks in a row, and for each whether something before it is trained."""
    trained_before = False
    for module in model.modules():
        if isinstance(module, QuantumLayer):
            yield module, trained_before
        trained_before |= any(parameter.requires_grad for parameter in module.parameters(recurse=False))
