"""The answers that every system must give, and whether it gives them: times of wrong answers mean nothing.

They come from a simulator that shares no code with any system: plain NumPy and slow, but short enough to be checked by
reading. The state of the whole batch is an array with one axis for each qubit, and the last for the batch; gradients come
from one sweep backwards. With noise it is a density matrix: its axes are those of the rows first, then of the columns.

Of a wide circuit, each output is a circuit of its own: the gates that are linked to it by qubits they share.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .gate_lists import Gate, Problem

LARGEST_Z_SCORE = 6.0
"""Of any one number. The standard errors are upper bounds, so that right answers stay far below."""

LARGEST_Z_SCORE_RMS = 2.0
"""Root mean square over a part of the answer; at most about 1 is expected. A gradient without its 1/2 exceeds it."""

_MOST_QUBITS = 16
"""Wider circuits are taken apart, where that makes them smaller."""

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


def exact_answer(problem: Problem, *, most_qubits: int = _MOST_QUBITS) -> Answer:
    """The problem's values and gradients, to rounding.

    Args:
        problem: Which.
        most_qubits: A wider circuit is taken apart, if all of its parts are smaller.
    """
    if problem.num_qubits > most_qubits:
        parts = [_part(problem, output) for output in range(len(problem.measured))]
        if all(part.num_qubits < problem.num_qubits for part in parts):
            values, by_input, by_weight = zip(*map(_answer_of_state, parts), strict=True)
            return Answer(
                np.concatenate(values, axis=1),
                None if by_input[0] is None else np.sum(by_input, axis=0),
                None if by_weight[0] is None else np.sum(by_weight, axis=0),
            )
    return _answer_of_state(problem)


def _part(problem: Problem, output: int) -> Problem:
    """What one output depends on; inputs and weights are those of the whole."""
    reached, kept = {problem.measured[output]}, []
    for gate in reversed(problem.gates):
        if not reached.isdisjoint(gate.qubits):
            reached.update(gate.qubits)
            kept.append(gate)
    place = {qubit: i for i, qubit in enumerate(sorted(reached))}
    return replace(
        problem,
        num_qubits=len(place),
        gates=tuple(gate._replace(qubits=tuple(place[q] for q in gate.qubits)) for gate in reversed(kept)),
        measured=(place[problem.measured[output]],),
        upstream=problem.upstream[:, [output]],
    )


def _answer_of_state(problem: Problem) -> Answer:
    n, noise = problem.num_qubits, problem.noise
    through = _apply if noise is None else _conjugate
    numbers = {"input": problem.inputs.T, "weight": problem.weights, "fixed": np.array(problem.fixed), "": np.zeros(1)}
    num_axes = n if noise is None else 2 * n
    state = np.zeros((*(2,) * num_axes, problem.batch), dtype=np.complex128)
    state[(0,) * num_axes] = 1
    for gate in problem.gates:
        through(gate, state, numbers[gate.source][gate.number])
        if noise is not None:
            _depolarise(state, gate.qubits, noise.after(gate.qubits))

    observables = [np.array([1.0, -1.0]).reshape(2, *(1,) * (n - qubit)) for qubit in problem.measured]
    probabilities = state.real**2 + state.imag**2 if noise is None else _diagonal(state).real
    values = np.stack([(z * probabilities).sum(axis=tuple(range(n))) for z in observables], axis=1)
    # The gradient of sum(upstream * values) is 2 Re <bra| d(state)>, with the observables folded into one bra; with noise,
    # it is the trace of d(state) with the observables, which are then in the place of the bra.
    observable = sum(z * upstream for z, upstream in zip(observables, problem.upstream.T, strict=True))
    if noise is None:
        bra = state * observable
    else:
        bra = np.zeros_like(state)
        _diagonal(bra)[...] = observable
    gradients = {source: np.zeros((len(angles), problem.batch)) for source, angles in numbers.items()}
    for gate in reversed(problem.gates):
        if noise is not None:
            strength = noise.after(gate.qubits)
            _depolarise(bra, gate.qubits, strength)
            _depolarise(state, gate.qubits, -strength / (1 - strength))  # the inverse: the trace is as it was
        if gate.source:
            # d(gate)/d(angle) is -i/2 times its Pauli matrix P, times the gate, which the state has been through. And
            # 2 Re <bra| -i/2 P |state> is Im <bra| P |state>; so is tr(bra -i/2 [P, state]) with matrices.
            bras, states = (np.moveaxis(array, gate.qubits[0], 0) for array in (bra, state))
            turned = _times(_PAULI[gate.name], states)
            gradients[gate.source][gate.number] += (bras.conj() * turned).sum(axis=tuple(range(num_axes))).imag
        for array in (state, bra):
            through(gate, array, -numbers[gate.source][gate.number])  # a gate without an angle is its own inverse
    by_input, by_weight = gradients["input"].T, gradients["weight"].sum(axis=1)
    return Answer(
        values, by_input if problem.wants_input_gradients else None, by_weight if len(problem.weights) else None
    )


def _apply(gate: Gate, state: np.ndarray, angle: np.ndarray) -> None:
    """Multiplies the state by the gate, in place; its angle is one for each row, shape (batch,), or for all, a scalar."""
    amplitudes = np.moveaxis(state, gate.qubits, range(len(gate.qubits)))
    if gate.name in _PAULI:
        rotation = np.multiply.outer(np.eye(2), np.cos(angle / 2))
        rotation = rotation - 1j * np.multiply.outer(_PAULI[gate.name], np.sin(angle / 2))
        amplitudes[...] = _times(rotation, amplitudes)
    elif gate.name == "h":
        amplitudes[...] = _times(_HADAMARD, amplitudes)
    elif gate.name == "cz":
        amplitudes[1, 1] *= -1
    elif gate.name == "cx":
        amplitudes[1] = amplitudes[1, ::-1]
    else:
        raise ValueError(f"gate: got {gate.name!r}, expected one of 'h', 'cx', 'cz', 'rx', 'ry', 'rz'.")


def _times(matrix: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """A matrix of shape (2, 2), or (2, 2, batch), times the amplitudes along their first axis."""
    (a, b), (c, d) = matrix
    zero, one = amplitudes
    return np.stack([a * zero + b * one, c * zero + d * one])


def _conjugate(gate: Gate, matrices: np.ndarray, angle: np.ndarray) -> None:
    """Turns Hermitian matrices A into U A U* with the gate U, in place: U A first, and U (U A)* of that."""
    rows_and_columns = matrices.reshape(2 ** (matrices.ndim // 2), -1, matrices.shape[-1])
    _apply(gate, matrices, angle)
    rows_and_columns[...] = rows_and_columns.swapaxes(0, 1).conj()
    _apply(gate, matrices, angle)


def _diagonal(matrices: np.ndarray) -> np.ndarray:
    """A view of the diagonals, with an axis for each qubit."""
    n = (matrices.ndim - 1) // 2
    view = np.einsum("iib->ib", matrices.reshape(2**n, 2**n, -1))
    return view.reshape(*(2,) * n, -1)


def _depolarise(matrices: np.ndarray, qubits: tuple[int, ...], strength: float) -> None:
    """Mixes matrices, in place, with what is left of them where these qubits' part is replaced by the identity / 2^k."""
    n = (matrices.ndim - 1) // 2
    both_sides = *qubits, *(n + qubit for qubit in qubits)
    blocks = np.moveaxis(matrices, both_sides, range(len(both_sides)))
    diagonal = [2 * outcome for outcome in product((0, 1), repeat=len(qubits))]
    mean = sum(blocks[each] for each in diagonal) / len(diagonal)
    blocks *= 1 - strength
    for each in diagonal:
        blocks[each] += strength * mean


def compare(
    answer: Answer,
    expected: Answer,
    problem: Problem,
    *,
    shots: int | None,
    tolerance: float,
    values_only: bool = False,
) -> tuple[float, str]:
    """Compares values and gradients, each number, with those of the reference.

    Args:
        answer: The system's.
        expected: The exact one.
        problem: What was asked.
        shots: The shots a circuit that the answer is from; None if it must be exact.
        tolerance: For exact answers: how far a number may be off, in units of the part's largest (or of 1).
        values_only: Whether the system is not asked for gradients.

    Returns:
        The largest deviation from the reference: in units of its largest number (or of 1) for exact answers, in standard
        errors for those with shots. And what is wrong with the answer, empty if it is right.
    """
    parts, references = answer.parts(), {"values": expected.values} if values_only else expected.parts()
    if missing := references.keys() - parts.keys():
        return np.inf, f"gives no {' and no '.join(sorted(missing))}"
    largest = 0.0
    for name, reference in references.items():
        if parts[name].shape != reference.shape:
            return np.inf, f"gives {name} of shape {parts[name].shape}, expected {reference.shape}"
        errors = np.abs(parts[name] - reference)
        if not np.isfinite(errors).all():
            return np.inf, f"gives {name} that are not finite"
        if shots is None:
            deviation = float(errors.max() / max(1.0, np.abs(reference).max()))
            if deviation > tolerance:
                return deviation, f"its {name} are off by {deviation:.1e}, expected at most {tolerance:.0e}"
        else:
            scores = errors / _standard_error_bounds(name, problem, shots)
            deviation, rms = float(scores.max()), float(np.sqrt(np.mean(scores**2)))
            if deviation > LARGEST_Z_SCORE or rms > LARGEST_Z_SCORE_RMS:
                off = f"{deviation:.1f} standard errors at most and {rms:.1f} in the root mean square"
                limits = f"{LARGEST_Z_SCORE:g} and {LARGEST_Z_SCORE_RMS:g}"
                return deviation, f"its {name} are off by {off}, expected up to {limits}"
        largest = max(largest, deviation)
    return largest, ""


def _standard_error_bounds(name: str, problem: Problem, shots: int) -> np.ndarray:
    """The largest standard errors that parameter shift can have, broadcastable to the part's shape.

    A value is a mean of ``shots`` numbers that are 1 or -1, so its variance is at most ``1/shots``. A derivative by one
    rotation's angle is half the difference of two weighted sums of such values. The outputs may come from the same
    shots, and be correlated in any way: the standard deviation of a sum is at most the sum of theirs.
    """
    if name == "values":
        return np.array(shots**-0.5)
    of_rows = np.abs(problem.upstream).sum(axis=1) ** 2 / (2 * shots)
    source = "input" if name == "input gradients" else "weight"
    rotations = np.bincount([gate.number for gate in problem.gates if gate.source == source])
    return np.sqrt(np.outer(of_rows, rotations) if source == "input" else of_rows.sum() * rotations)
