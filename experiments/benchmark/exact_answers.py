"""The answers that every system must give, and whether it gives them: times of wrong answers mean nothing.

They come from a simulator that shares no code with any system: plain NumPy and slow, but short enough to be checked by
reading. The state of the whole batch is an array with one axis for the batch and one for each qubit; gradients come from
one sweep backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .gate_lists import Gate, Problem

LARGEST_Z_SCORE = 6.0
"""Of any one number. The standard errors are upper bounds, so that right answers stay far below."""

LARGEST_Z_SCORE_RMS = 2.0
"""Root mean square over a part of the answer; at most about 1 is expected. A gradient without its 1/2 exceeds it."""

_PAULI = {"rx": np.array([[0, 1], [1, 0]]), "ry": np.array([[0, -1j], [1j, 0]]), "rz": np.array([[1, 0], [0, -1]])}
_HADAMARD = np.array([[1, 1], [1, -1]]) / np.sqrt(2)


class Answer(NamedTuple):
    """What one training step gives.

    Attributes:
        values: Shape (batch, outputs).
        input_gradients: Shape (batch, I), or None where they are not asked for.
        weight_gradients: Shape (W,), or None where there are no weights.
    """

    values: np.ndarray
    input_gradients: np.ndarray | None
    weight_gradients: np.ndarray | None

    @classmethod
    def of(cls, *parts: Any) -> Answer:
        """Of copies in double precision of anything that NumPy takes for arrays; None stays None."""
        copies: list[Any] = [None if part is None else np.asarray(part).astype(np.float64) for part in parts]
        return cls(*copies)

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        return {name.replace("_", " "): part for name, part in self._asdict().items() if part is not None}


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
            # d(gate)/d(angle) is -i/2 times its Pauli matrix P, times the gate, which the state has been through. And
            # 2 Re <bra| -i/2 P |state> is Im <bra| P |state>.
            turned = _multiplied(_PAULI[gate.name], gate.qubits[0], state)
            gradient = np.einsum("na,na->n", bra.reshape(batch, -1).conj(), turned.reshape(batch, -1)).imag
            if gate.angle.source == "input":
                by_input[:, gate.angle.number] += gradient
            else:
                by_weight[gate.angle.number] += gradient.sum()
        for array in (state, bra):
            _apply(gate, array, -theta)  # every gate without an angle is its own inverse
    return Answer(
        values, by_input if problem.wants_input_gradients else None, by_weight if len(problem.weights) else None
    )


def _theta(gate: Gate, problem: Problem) -> np.ndarray:
    """The angle of each row, shape (batch,), or of all, a scalar; NaN for a gate without any."""
    if gate.angle is None:
        return np.array(np.nan)
    angles = problem.inputs if gate.angle.source == "input" else problem.weights
    return np.array(angles[..., gate.angle.number])


def _apply(gate: Gate, state: np.ndarray, theta: np.ndarray) -> None:
    """Multiplies the state by the gate, in place."""
    qubit = gate.qubits[0]
    if gate.name in _PAULI:
        half = (theta / 2).reshape(-1, *(1,) * (state.ndim - 1))
        state[...] = np.cos(half) * state - 1j * np.sin(half) * _multiplied(_PAULI[gate.name], qubit, state)
    elif gate.name == "h":
        state[...] = _multiplied(_HADAMARD, qubit, state)
    elif gate.name == "cz":
        _where_one(_where_one(state, qubit), gate.qubits[1])[...] *= -1
    elif gate.name == "cx":
        controlled = _where_one(state, qubit)
        controlled[...] = np.flip(controlled, 1 + gate.qubits[1])
    else:
        raise ValueError(f"gate: got {gate.name!r}, expected one of 'h', 'cx', 'cz', 'rx', 'ry', 'rz'.")


def _multiplied(matrix: np.ndarray, qubit: int, state: np.ndarray) -> np.ndarray:
    """The state with a matrix of shape (2, 2) applied to a qubit."""
    return np.moveaxis(np.tensordot(matrix, state, axes=(1, 1 + qubit)), 0, 1 + qubit)


def _where_one(state: np.ndarray, qubit: int) -> np.ndarray:
    """A view of the amplitudes where the qubit is 1, with as many axes."""
    return state[(*(slice(None),) * (1 + qubit), slice(1, 2))]


def _signs(qubit: int, num_qubits: int) -> np.ndarray:
    """Shape (2**n,): the eigenvalues of Z on the qubit, in the order of the flattened state."""
    return np.tile(np.repeat([1.0, -1.0], 2 ** (num_qubits - 1 - qubit)), 2**qubit)


@dataclass(frozen=True)
class Verdict:
    """What became of a comparison.

    Attributes:
        deviation: The largest deviation from the reference: in units of its largest number (or of 1) for exact answers,
            in standard errors for those with shots.
        problem: What is wrong with the answer; None if it is right.
    """

    deviation: float
    problem: str | None = None


def compare(answer: Answer, expected: Answer, problem: Problem, *, shots: int | None, tolerance: float) -> Verdict:
    """Compares values and gradients, each number, with those of the reference.

    Args:
        answer: The system's.
        expected: The exact one.
        problem: What was asked.
        shots: The shots a circuit that the answer is from; None if it must be exact.
        tolerance: For exact answers: how far a number may be off, in units of the part's largest (or of 1).
    """
    parts, references = answer.parts(), expected.parts()
    if missing := references.keys() - parts.keys():
        return Verdict(np.inf, f"gives no {' and no '.join(sorted(missing))}")
    largest = 0.0
    for name, reference in references.items():
        if parts[name].shape != reference.shape:
            return Verdict(np.inf, f"gives {name} of shape {parts[name].shape}, expected {reference.shape}")
        errors = np.abs(parts[name] - reference)
        if not np.isfinite(errors).all():
            return Verdict(np.inf, f"gives {name} that are not finite")
        if shots is None:
            deviation = float(errors.max() / max(1.0, np.abs(reference).max()))
            if deviation > tolerance:
                return Verdict(deviation, f"its {name} are off by {deviation:.1e}, expected at most {tolerance:.0e}")
        else:
            scores = errors / _standard_error_bounds(name, problem, shots)
            deviation, rms = float(scores.max()), float(np.sqrt(np.mean(scores**2)))
            if deviation > LARGEST_Z_SCORE or rms > LARGEST_Z_SCORE_RMS:
                return Verdict(
                    deviation,
                    f"its {name} are off by {deviation:.1f} standard errors at most and {rms:.1f} in the root mean "
                    f"square, expected up to {LARGEST_Z_SCORE:g} and {LARGEST_Z_SCORE_RMS:g}",
                )
        largest = max(largest, deviation)
    return Verdict(largest)


def _standard_error_bounds(name: str, problem: Problem, shots: int) -> np.ndarray:
    """The largest standard errors that parameter shift can have, broadcastable to the part's shape.

    A value is a mean of ``shots`` numbers that are 1 or -1, so its variance is at most ``1/shots``. A derivative by one
    rotation's angle is half the difference of two weighted sums of such values. The outputs may come from the same
    shots, and be correlated in any way: the standard deviation of a sum is at most the sum of theirs.
    """
    of_rows = np.abs(problem.upstream).sum(axis=1) ** 2 / (2 * shots)
    if name == "values":
        return np.array(shots**-0.5)
    rotations = {"input": np.zeros(problem.inputs.shape[1]), "weight": np.zeros(len(problem.weights))}
    for gate in problem.gates:
        if gate.angle is not None:
            rotations[gate.angle.source][gate.angle.number] += 1
    if name == "input gradients":
        return np.sqrt(np.outer(of_rows, rotations["input"]))
    return np.sqrt(of_rows.sum() * rotations["weight"])
