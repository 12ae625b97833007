"""Circuits, points in their parameter space, and gradients there: exact ones, and repeated noisy ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit

from qiskit_torch_bridge import FiniteDifference, GradientRule, QuantumLayer
from qiskit_torch_bridge.circuits import dressed, ring_layers

_ROWS_AT_ONCE = 20_000  # shifted circuits, which bounds the memory


def _one_qubit() -> tuple[QuantumCircuit, list[Parameter]]:
    angle = Parameter("w")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    return circuit, [angle]


def _dressed() -> tuple[QuantumCircuit, list[Parameter]]:
    circuit, inputs, weights = dressed(4, 6)
    return circuit.assign_parameters({inputs: _features(inputs)}), list(weights)


def _layerwise(num_qubits: int) -> tuple[QuantumCircuit, list[Parameter]]:
    circuit, inputs, weights = ring_layers(num_qubits, num_qubits)
    return circuit.assign_parameters({inputs: _features(inputs)}), [
        angle for layer in weights.values() for angle in layer
    ]


def _features(inputs: ParameterVector) -> np.ndarray:
    """Different from each other and of no special value."""
    return np.linspace(0.1, 0.9, len(inputs))


CIRCUITS: dict[str, Callable[[], tuple[QuantumCircuit, list[Parameter]]]] = {
    "one qubit": _one_qubit,
    "dressed, 4 qubits": _dressed,
    **{f"layerwise, {num_qubits} qubits": partial(_layerwise, num_qubits) for num_qubits in (4, 6, 8)},
}
"""RY on a qubit; the dressed circuit with 6 layers; the ring of layerwise learning with as many layers as qubits."""


@dataclass(frozen=True)
class Problem:
    """A circuit at a point: <Z> of its last qubit as a function of all its weights.

    Attributes:
        circuit: The circuit.
        parameters: Its weights.
        point: Shape (A,), their values in radians.
        matter: The places of the W weights that change <Z> at the point.
        gradient: Shape (W,), the exact derivatives by these, by adjoint differentiation.
    """

    circuit: QuantumCircuit
    parameters: list[Parameter]
    _: KW_ONLY
    point: np.ndarray
    matter: np.ndarray
    gradient: np.ndarray

    @classmethod
    def at(cls, name: str, point: int) -> Problem:
        """A circuit of :data:`CIRCUITS` at one of its points, which are numbered: random ones.

        For one qubit they are a quarter turn apart. In the mean over two of them the squares of all derivatives of a
        sinusoid of unit amplitude are 1/2, and so is the variance of a shot; then
        :class:`~qiskit_torch_bridge.FiniteDifference` minimises the mean squared error by its default step, to leading
        order, for it weighs squared derivatives of 1 against variances of 1.
        """
        circuit, parameters = CIRCUITS[name]()
        values = np.random.default_rng(point).uniform(0, 2 * np.pi, size=len(parameters))
        if name == "one qubit":
            values = np.array([np.pi / 8 + point * np.pi / 2])
        problem = cls(circuit, parameters, point=values, matter=np.arange(len(values)), gradient=np.zeros(len(values)))
        (gradient,) = problem.estimates(None)
        matter = np.flatnonzero(np.abs(gradient) > 1e-9)
        return replace(problem, matter=matter, gradient=gradient[matter])

    def layer(self, **options: Any) -> QuantumLayer:
        """The circuit as a layer, all its weights inputs, so that each row of a batch is an experiment of its own."""
        observable = "Z" + "I" * (self.circuit.num_qubits - 1)
        return QuantumLayer(self.circuit, inputs=self.parameters, weights=[], observables=observable, **options)

    def estimates(
        self, rule: GradientRule | None, *, repeats: int = 1, shots: int | None = None, seed: int | list[int] = 0
    ) -> np.ndarray:
        """The gradient over and over again, with independent shots.

        Args:
            rule: None for adjoint differentiation.
            repeats: The number R of estimates.
            shots: Shots a circuit; None for exact values.
            seed: Of the shots, and of what the rule draws.

        Returns:
            Shape (R, W).
        """
        layer = self.layer(gradient=rule, shots=shots, seed=seed)
        at_once = max(1, _ROWS_AT_ONCE // self.circuits(rule))
        parts = []
        for first in range(0, repeats, at_once):
            rows = min(at_once, repeats - first)
            features = torch.from_numpy(np.tile(self.point, (rows, 1))).requires_grad_()
            layer(features).sum().backward()
            assert features.grad is not None
            parts.append(features.grad.numpy()[:, self.matter])
        return np.concatenate(parts)

    def circuits(self, rule: GradientRule | None) -> int:
        """Circuits for one gradient, the value not counted."""
        layer = self.layer(gradient=rule)
        both = layer.quote(1).circuits
        with torch.no_grad():
            return max(1, both - layer.quote(1).circuits)

    def predicted_variances(self, rule: FiniteDifference, shots: int) -> np.ndarray:
        """The variance of each component of a finite difference from that of <Z>, (1 - <Z>**2) / shots; shape (W,)."""
        assert rule.step is not None
        axes = np.eye(len(self.point))[self.matter]
        below, factor = (self.point - rule.step * axes, 4) if rule.scheme == "central" else (self.point[None], 1)
        up, down = (self._one_shot_variances(points) for points in (self.point + rule.step * axes, below))
        variances: np.ndarray = (up + down) / (factor * rule.step**2 * shots)
        return variances

    def _one_shot_variances(self, points: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            values: np.ndarray = self.layer()(torch.from_numpy(points)).numpy()[:, 0]
        return 1 - values**2
