"""Random circuits of one size and depth, and the exact derivatives of what is measured on them."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from qiskit_torch_bridge import QuantumLayer

START = np.pi / 4
"""The angle of the RY gates that every circuit begins with, so that no axis is special (McClean et al.)."""

OBSERVABLES = ("Z0 Z1", "Z...Z", "projector")
"""What is measured: Z on the first two qubits (local), Z on all of them (global), the projector on all zeros (global)."""

Start = Literal["uniform", "zeros", "grown"]
"""The angles: uniform from 0 to 2 pi; zeros; uniform but for the last two layers, which are zeros and just added."""

_GROWN_LAYERS = 2
_ROWS_AT_ONCE = 64


def circuit_of_all_axes(num_qubits: int, layers: int) -> tuple[QuantumCircuit, ParameterVector]:
    """One circuit for all choices of axes: RX, RY and RZ in each place, of which two get the angle zero.

    Returns:
        The circuit, and its 3 * layers * num_qubits angles by layer, qubit and axis.
    """
    angles = ParameterVector("a", 3 * layers * num_qubits)
    places = iter(angles)
    circuit = QuantumCircuit(num_qubits)
    circuit.ry(START, range(num_qubits))
    for _ in range(layers):
        for qubit in range(num_qubits):
            for rotate in (circuit.rx, circuit.ry, circuit.rz):
                rotate(next(places), qubit)
        for qubit in range(num_qubits - 1):
            circuit.cz(qubit, qubit + 1)
    return circuit, angles


def angles_of_samples(
    samples: int, num_qubits: int, layers: int, start: Start, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws circuits.

    Returns:
        Angles of shape (samples, 3 * layers * num_qubits); and for each sample the column of the angle to differentiate
        by: that of the first qubit in the first layer, of ``"grown"`` circuits in the first of the new layers.
    """
    shape = (samples, layers, num_qubits)
    axes = rng.integers(3, size=shape)
    values = rng.uniform(0, 2 * np.pi, size=shape)
    first = 0
    if start == "zeros":
        values[:] = 0
    elif start == "grown":
        first = layers - _GROWN_LAYERS
        values[:, first:] = 0
    angles = np.zeros((*shape, 3))
    np.put_along_axis(angles, axes[..., None], values[..., None], axis=3)
    return angles.reshape(samples, -1), 3 * num_qubits * first + axes[:, first, 0]


def derivatives(angles: np.ndarray, columns: np.ndarray, num_qubits: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of each observable by one angle, exactly: by parameter shift, which is exact, of exact values.

    Adjoint differentiation gives the same numbers from a sweep an observable; two circuits serve them all here, because
    all observables are diagonal.

    Args:
        angles: Shape (N, A).
        columns: Shape (N,), the angle of each row.
        num_qubits: Qubits.
        layers: Layers.

    Returns:
        The derivatives, shape (N, 3), by :data:`OBSERVABLES`; and likewise the variance that they would have if each of
        the two circuits were measured with a single shot.
    """
    layer, diagonals = _layer(num_qubits, layers), _diagonals(num_qubits)
    shifts = np.zeros_like(angles)
    np.put_along_axis(shifts, columns[:, None], np.pi / 2, axis=1)
    parts, spreads = [], []
    with torch.no_grad():
        for first in range(0, len(angles), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            outcomes = [layer(torch.from_numpy(angles[rows] + sign * shifts[rows])).numpy() for sign in (1, -1)]
            up, down = (probabilities @ diagonals for probabilities in outcomes)
            parts.append((up - down) / 2)
            spreads.append((sum(outcomes) @ diagonals**2 - up**2 - down**2) / 4)
    return np.concatenate(parts), np.concatenate(spreads)


@lru_cache(maxsize=2)  # cells of one size come one after the other, and compiling a deep circuit takes a while
def _layer(num_qubits: int, layers: int) -> QuantumLayer:
    circuit, angles = circuit_of_all_axes(num_qubits, layers)
    return QuantumLayer(circuit, inputs=angles, weights=[], probabilities=list(range(num_qubits)))


def _diagonals(num_qubits: int) -> np.ndarray:
    """The observables' values in each outcome, shape (2**num_qubits, 3)."""
    outcomes = np.arange(2**num_qubits)
    signs = 1 - 2 * ((outcomes[:, None] >> np.arange(num_qubits)) & 1)
    return np.stack([signs[:, :2].prod(axis=1), signs.prod(axis=1), outcomes == 0], axis=1).astype(float)
