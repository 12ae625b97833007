"""The answers that every system must give, from a simulator that shares no code with any of them.

Plain NumPy and slow, but short enough to be checked by reading. The state of the whole batch is an array with one axis
for the batch and one for each qubit; gradients come from one sweep backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .gate_lists import Gate, Problem


@dataclass(frozen=True, eq=False)
class Answer:
    """What one training step gives.

    Attributes:
        values: Shape (batch, outputs).
        input_gradients: Shape (batch, I), or None where they are not asked for.
        weight_gradients: Shape (W,), or None where there are no weights.
    """

    values: np.ndarray
    input_gradients: np.ndarray | None
    weight_gradients: np.ndarray | None

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        named = {
            "values": self.values,
            "input gradients": self.input_gradients,
            "weight gradients": self.weight_gradients,
        }
        return {name: array for name, array in named.items() if array is not None}

    def to_message(self) -> dict[str, Any]:
        """As JSON can carry it, every number to the last bit; the arguments of :meth:`from_parts`."""
        return {key: None if value is None else value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_parts(cls, values: Any, input_gradients: Any, weight_gradients: Any) -> Answer:
        """Of copies in double precision of anything that NumPy takes for arrays; None stays None."""
        parts = (values, input_gradients, weight_gradients)
        copies: list[Any] = [None if part is None else np.asarray(part).astype(np.float64) for part in parts]
        return cls(*copies)


def exact_answer(problem: Problem) -> Answer:
    """The problem's values and gradients, to rounding."""
    n, batch = problem.num_qubits, problem.batch
    state = np.zeros((batch, *(2,) * n), dtype=np.complex128)
    state.reshape(batch, -1)[:, 0] = 1
    for gate in problem.gates:
        _apply(gate, state, _theta(gate, problem))

    signs = np.stack([_signs(qubit, n) for qubit in problem.measured])
    flat = state.reshape(batch, -1)
    values = (flat.real**2 + flat.imag**2) @ signs.T
    # The gradient of sum(upstream * values) is 2 Re <bra| d(state)>, with the observables folded into one bra.
    bra = ((problem.upstream @ signs) * flat).reshape(state.shape)
    by_input, by_weight = np.zeros_like(problem.inputs), np.zeros_like(problem.weights)
    for gate in reversed(problem.gates):
        theta = _theta(gate, problem)
        if gate.angle is not None:
            # d(gate)/d(angle) is -i/2 times its Pauli matrix, times the gate, which the state has been through.
            gradient = _pauli_overlap(gate, bra, state)
            if gate.angle.source == "input":
                by_input[:, gate.angle.number] += gradient
            else:
                by_weight[gate.angle.number] += gradient.sum()
        for array in (state, bra):
            _apply(gate, array, None if theta is None else -theta)  # every gate without an angle is its own inverse
    return Answer(
        values, by_input if problem.wants_input_gradients else None, by_weight if len(problem.weights) else None
    )


def _theta(gate: Gate, problem: Problem) -> np.ndarray | None:
    """Shape (batch,): the angle of each row; None for a gate without any."""
    if gate.angle is None:
        return None
    if gate.angle.source == "input":
        column: np.ndarray = problem.inputs[:, gate.angle.number]
        return column
    return np.full(problem.batch, problem.weights[gate.angle.number])


def _halves(array: np.ndarray, qubit: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the amplitudes where the qubit is 0, and where it is 1."""
    before = (slice(None),) * (1 + qubit)
    return array[(*before, slice(0, 1))], array[(*before, slice(1, 2))]


def _apply(gate: Gate, state: np.ndarray, theta: np.ndarray | None) -> None:
    """Multiplies the state by the gate, in place."""
    zero, one = _halves(state, gate.qubits[0])
    if theta is not None:
        half = (theta / 2).reshape(-1, *(1,) * (state.ndim - 1))
        cos, sin = np.cos(half), np.sin(half)
        if gate.name == "rz":
            zero *= cos - 1j * sin
            one *= cos + 1j * sin
            return
        up, down = {"rx": (-1j * sin, -1j * sin), "ry": (-sin, sin)}[gate.name]
        zero[...], one[...] = cos * zero + up * one, cos * one + down * zero
    elif gate.name == "h":
        zero[...], one[...] = (zero + one) / np.sqrt(2), (zero - one) / np.sqrt(2)
    elif gate.name == "cz":
        _halves(one, gate.qubits[1])[1][...] *= -1
    elif gate.name == "cx":
        target_zero, target_one = _halves(one, gate.qubits[1])
        target_zero[...], target_one[...] = target_one.copy(), target_zero.copy()
    else:
        raise ValueError(f"gate: got {gate.name!r}, expected one of 'h', 'cx', 'cz', 'rx', 'ry', 'rz'.")


def _pauli_overlap(gate: Gate, bra: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Shape (batch,): 2 Re <bra| -i/2 P |state> = Im <bra| P |state> of the gate's Pauli matrix P."""
    (bra_zero, bra_one), (zero, one) = _halves(bra, gate.qubits[0]), _halves(state, gate.qubits[0])
    pairs = {
        "rx": ((bra_zero, one, 1), (bra_one, zero, 1)),
        "ry": ((bra_zero, one, -1j), (bra_one, zero, 1j)),
        "rz": ((bra_zero, zero, 1), (bra_one, one, -1)),
    }[gate.name]
    rows = len(state)
    total = np.zeros(rows, dtype=np.complex128)
    for left, right, factor in pairs:
        total += factor * np.einsum("na,na->n", left.reshape(rows, -1).conj(), right.reshape(rows, -1))
    return total.imag


@cache
def _signs(qubit: int, num_qubits: int) -> np.ndarray:
    """Shape (2**n,): the eigenvalues of Z on the qubit, in the order of the flattened state."""
    shape = [1] * num_qubits
    shape[qubit] = 2
    return np.broadcast_to(np.array([1.0, -1.0]).reshape(shape), (2,) * num_qubits).reshape(-1)
