"""Blocks of eight numbers in, eight numbers out, that a network puts in a row: dense or quantum, and as many weights.

Every block takes numbers between -1 and 1 and gives such numbers, so that each can stand in the place of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
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


def dense(features: int = WIDTH) -> nn.Sequential:
    """A linear layer and tanh."""
    return nn.Sequential(nn.Linear(features, WIDTH), nn.Tanh())


def scores() -> nn.Linear:
    """The last layer of a network that ends classically."""
    return nn.Linear(WIDTH, WIDTH)


def quantum(options: Mapping[str, Any], *, uploads: int = 1, depth: int = 3, place: int = 0) -> nn.Sequential:
    """Angle embedding, strongly entangling layers, ``<Z>`` on each qubit.

    Args:
        options: Of the quantum layer.
        uploads: How often the circuit embeds its inputs.
        depth: Layers after each embedding.
        place: Which of the network's circuits this is: each has shot noise of its own.
    """
    return _block(reuploading(WIDTH, uploads, depth=depth), options, place=place, init="uniform")


def quantum_from_zero(options: Mapping[str, Any]) -> nn.Sequential:
    """The dressed circuit, with as many weights, which start near zero: it hands on the sines of its inputs at first.

    The circuit of :func:`quantum` starts anywhere, and its cosines do not tell a number from its negative.
    """
    return _block(dressed(WIDTH, 9), options, place=0, init="normal")


def _block(made: ParameterizedCircuit, options: Mapping[str, Any], *, place: int, init: str) -> nn.Sequential:
    seed = options["seed"]
    own = {**options, "init": init, "seed": (place, seed) if isinstance(seed, int) else (place, *seed)}
    layer = QuantumLayer(made.circuit, inputs=made.inputs, weights=made.weights, **own)
    return nn.Sequential(Angles(), layer)


class QuickStart(nn.Module):
    """A dense block before a quantum one, which learns with classical scores first, if it is to.

    Args:
        features: Numbers in.
        middle: Makes the quantum block.

    Attributes:
        classical: Whether the dense block's outputs go to classical scores, past the circuit.
    """

    def __init__(self, features: int, middle: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = dense(features)
        self.quantum = middle()
        self.hybrid_scores = scores()
        self.classical_scores = scores()
        self.classical = False

    def pretrain(self) -> None:
        """Trains the dense block with classical scores; the circuit waits."""
        self._train_only(self.first, self.classical_scores)
        self.classical = True

    def go_on(self, *, freeze: bool) -> None:
        """Trains the circuit and its scores, and the dense block too unless it is frozen."""
        parts = [self.quantum, self.hybrid_scores]
        self._train_only(*(parts if freeze else [self.first, *parts]))
        self.classical = False

    def _train_only(self, *parts: nn.Module) -> None:
        self.requires_grad_(False)
        for part in parts:
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
