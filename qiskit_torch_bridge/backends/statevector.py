r"""Exact simulation on this machine's cores, with adjoint differentiation and, on request, shots.

The state of a whole batch is one array of shape (N, 2**n); basis state b of the array is Qiskit's (qubit 0 is the least
significant bit). Qubits that no gate and no measurement touches are left out. Rotations are applied through their
generators:

* :math:`e^{-i\theta P/2}\psi = \cos(\theta/2)\,\psi - i\sin(\theta/2)\,P\psi`, where a Pauli string :math:`P` is a
  permutation of amplitudes times phases;
* ``p`` and ``cp`` multiply the amplitudes whose qubits are all 1 by :math:`e^{i\theta}`.

The vector-Jacobian product is one backward sweep (Jones and Gacon, arXiv:2009.02823): the gradient that comes in is
folded into one effective observable a row, :math:`O = \sum_m g_m O_m`, so its cost does not depend on the number of
outputs.

With shots, the probabilities of the measured qubits are computed exactly and multinomial counts drawn from them: the
same statistics as running each circuit ``shots`` times without noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from qiskit.circuit import Parameter

from ..program import Program
from ..readout import MeasurementGroup
from .base import Backend, Estimate, ProgramCache, check_shots, estimate_from_moments

__all__ = ["StatevectorBackend"]

_MOST_BYTES_OF_STATES = 2**28
_LARGEST_STATE_QUBITS = 30

_PAULI = {
    "rx": ("X",),
    "ry": ("Y",),
    "rz": ("Z",),
    "rxx": ("X", "X"),
    "ryy": ("Y", "Y"),
    "rzz": ("Z", "Z"),
    "rzx": ("Z", "X"),
}


@dataclass(frozen=True, eq=False)
class _PauliRotation:
    """``exp(-i angle P / 2)``: ``(P psi)[b] = phases[b] * psi[b ^ flip]``."""

    flip: int
    phases: np.ndarray
    angle: int | float

    def generator(self, states: np.ndarray) -> np.ndarray:
        moved = states[:, np.arange(states.shape[1]) ^ self.flip] if self.flip else states
        return 0.5 * self.phases * moved

    def apply(self, states: np.ndarray, theta: np.ndarray) -> np.ndarray:
        return np.cos(theta / 2) * states - 2j * np.sin(theta / 2) * self.generator(states)


@dataclass(frozen=True, eq=False)
class _PhaseRotation:
    """``exp(i angle)`` on the amplitudes whose ``mask`` bits are all set."""

    selected: np.ndarray
    angle: int | float

    def generator(self, states: np.ndarray) -> np.ndarray:
        return np.where(self.selected, -states, 0.0)

    def apply(self, states: np.ndarray, theta: np.ndarray) -> np.ndarray:
        return np.where(self.selected, np.exp(1j * theta), 1.0) * states


@dataclass(frozen=True, eq=False)
class _Constant:
    """A unitary matrix on some qubits (the first is the least significant)."""

    matrix: np.ndarray
    qubits: tuple[int, ...]

    def apply(self, states: np.ndarray, *, inverse: bool = False) -> np.ndarray:
        n = int(states.shape[1]).bit_length() - 1
        k = len(self.qubits)
        axes = [n - qubit for qubit in reversed(self.qubits)]
        tensor = np.moveaxis(states.reshape(-1, *(2,) * n), axes, range(1, k + 1))
        matrix = self.matrix.conj().T if inverse else self.matrix
        moved = np.matmul(matrix, tensor.reshape(tensor.shape[0], 2**k, -1)).reshape(tensor.shape)
        return np.moveaxis(moved, range(1, k + 1), axes).reshape(states.shape)


_Rotation = _PauliRotation | _PhaseRotation
_H = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
_BASIS_CHANGES = {"X": _H.astype(complex), "Y": _H @ np.diag([1, -1j])}


@dataclass(frozen=True, eq=False)
class _Measurement:
    """A group as the simulator sees it: basis changes, and the outcome that each basis state belongs to."""

    group: MeasurementGroup
    changes: tuple[_Constant, ...]
    outcome: np.ndarray

    def rotated(self, states: np.ndarray, *, inverse: bool = False) -> np.ndarray:
        return reduce(lambda psi, change: change.apply(psi, inverse=inverse), self.changes, states)

    def probabilities(self, states: np.ndarray) -> np.ndarray:
        """Shape (N, 2**k)."""
        weights = np.abs(self.rotated(states)) ** 2
        size = 2 ** len(self.group.qubits)
        flat = np.arange(len(states))[:, None] * size + self.outcome
        summed = np.bincount(flat.ravel(), weights=weights.ravel(), minlength=len(states) * size)
        return summed.reshape(len(states), size)

    def observed(self, states: np.ndarray, upstream: np.ndarray) -> np.ndarray:
        """The effective observable ``sum_m upstream[:, m] O_m`` applied to the states."""
        eigenvalues = self.group.eigenvalues(upstream)
        return self.rotated(eigenvalues[:, self.outcome] * self.rotated(states), inverse=True)


@dataclass(frozen=True, eq=False)
class _Plan:
    """A program as the simulator runs it."""

    num_qubits: int
    operations: tuple[_Rotation | _Constant, ...]
    measurements: tuple[_Measurement, ...]


def _plan(program: Program) -> _Plan:
    circuit = program.circuit
    index = {parameter: column for column, parameter in enumerate(program.angles)}
    gates = [
        (instruction.operation, [circuit.find_bit(qubit).index for qubit in instruction.qubits])
        for instruction in circuit.data
        if instruction.operation.name not in ("barrier", "delay")
    ]
    place = {qubit: i for i, qubit in enumerate(program.active_qubits)}
    n = len(place)
    if n > _LARGEST_STATE_QUBITS:
        raise ValueError(
            f"Exact simulation of {n} qubits would need {16 * 2**n / 2**30:,.0f} GiB for one state, and the limit is "
            f"{_LARGEST_STATE_QUBITS} qubits; use fewer, or an AerSimulator with method='matrix_product_state'."
        )
    operations: list[_Rotation | _Constant] = []
    for operation, on in gates:
        qubits = tuple(place[qubit] for qubit in on)
        values: list[int | float] = [
            index[value] if isinstance(value, Parameter) else value for value in operation.params
        ]
        if operation.name in _PAULI:
            operations.append(_pauli_rotation(n, _PAULI[operation.name], qubits, values[0]))
        elif operation.name in ("p", "cp"):
            operations.append(_PhaseRotation(_all_ones(n, qubits), values[0]))
        elif operation.name == "u":
            theta, phi, lam = values
            operations += [_pauli_rotation(n, (axis,), qubits, v) for axis, v in (("Z", lam), ("Y", theta), ("Z", phi))]
        elif qubits:
            operations.append(_Constant(np.asarray(operation.to_matrix(), dtype=complex), qubits))
    return _Plan(n, tuple(operations), tuple(_measurement(n, group, place) for group in program.readout.groups))


def _all_ones(n: int, qubits: Sequence[int]) -> np.ndarray:
    mask = sum(1 << qubit for qubit in qubits)
    return (np.arange(2**n) & mask) == mask


def _pauli_rotation(n: int, axes: Sequence[str], qubits: Sequence[int], angle: int | float) -> _PauliRotation:
    basis = np.arange(2**n)
    phases = np.ones(2**n, dtype=complex)
    flip = 0
    for axis, qubit in zip(axes, qubits, strict=True):
        sign = 1 - 2 * ((basis >> qubit) & 1)
        if axis in "XY":
            flip |= 1 << qubit
        if axis == "Y":
            phases *= -1j * sign
        elif axis == "Z":
            phases *= sign
    return _PauliRotation(flip, phases, angle)


def _measurement(n: int, group: MeasurementGroup, place: dict[int, int]) -> _Measurement:
    qubits = [place[qubit] for qubit in group.qubits]
    basis = np.arange(2**n)
    outcome = sum(
        (((basis >> qubit) & 1) << bit for bit, qubit in enumerate(qubits)), start=np.zeros(2**n, dtype=np.int64)
    )
    changes = tuple(
        _Constant(_BASIS_CHANGES[axis], (qubit,))
        for qubit, axis in zip(qubits, group.bases, strict=True)
        if axis != "Z"
    )
    return _Measurement(group, changes, outcome)


def _theta(angle: int | float, angles: np.ndarray) -> np.ndarray:
    """A column of the angles (N, 1), or a fixed angle: columns are named by integers."""
    return angles[:, angle, None] if isinstance(angle, int) else np.full((len(angles), 1), angle)


class StatevectorBackend(Backend):
    """Exact simulation, or shots drawn from exact probabilities; adjoint gradients.

    ``shots=None`` gives exact values. Memory is bounded by running the batch in chunks.
    """

    differentiates = True
    name = "statevector"

    def __init__(self) -> None:
        self._cache = ProgramCache()

    def resolve_shots(self, shots: int | None) -> int | None:
        return check_shots(shots)

    def prepare(self, program: Program) -> None:
        self._plan(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        plan = self._plan(program)
        generators = [np.random.default_rng(child) for child in seed.spawn(len(plan.measurements))] if shots else []
        moments: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in plan.measurements]
        states = None
        chunks = list(_chunks(plan, len(angles)))
        for chunk in chunks:
            states = _final_states(plan, angles[chunk])
            for i, measurement in enumerate(plan.measurements):
                weights = measurement.probabilities(states)
                if shots is not None:
                    weights = generators[i].multinomial(shots, weights / weights.sum(axis=1, keepdims=True)) / shots
                moments[i].append(measurement.group.moments(weights))
        joined = [(np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])) for parts in moments]
        return estimate_from_moments(
            program, joined, len(angles), shots, states if len(chunks) == 1 and shots is None else None
        )

    def pullback(self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any) -> np.ndarray:
        plan = self._plan(program)
        if state is not None:
            return _sweep(plan, angles, upstream, state)
        parts = [
            _sweep(plan, angles[c], upstream[c], _final_states(plan, angles[c])) for c in _chunks(plan, len(angles))
        ]
        return np.concatenate(parts)

    def _plan(self, program: Program) -> _Plan:
        cached = self._cache.of(program)
        if "plan" not in cached:
            cached["plan"] = _plan(program)
        plan: _Plan = cached["plan"]
        return plan

    def __repr__(self) -> str:
        return "StatevectorBackend()"


def _chunks(plan: _Plan, rows: int) -> Iterator[slice]:
    size = max(1, _MOST_BYTES_OF_STATES // (16 * 2**plan.num_qubits))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _final_states(plan: _Plan, angles: np.ndarray) -> np.ndarray:
    """Shape (N, 2**n)."""
    states = np.zeros((len(angles), 2**plan.num_qubits), dtype=complex)
    states[:, 0] = 1.0
    for operation in plan.operations:
        if isinstance(operation, _Constant):
            states = operation.apply(states)
        else:
            states = operation.apply(states, _theta(operation.angle, angles))
    return states


def _sweep(plan: _Plan, angles: np.ndarray, upstream: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The vector-Jacobian product, shape (N, A), from the final states."""
    gradients = np.zeros_like(angles)
    duals = sum((m.observed(states, upstream) for m in plan.measurements), start=np.zeros_like(states))
    for operation in reversed(plan.operations):
        if isinstance(operation, _Constant):
            states, duals = operation.apply(states, inverse=True), operation.apply(duals, inverse=True)
            continue
        if isinstance(operation.angle, int):
            overlaps = np.einsum("nb,nb->n", duals.conj(), operation.generator(states))
            gradients[:, operation.angle] += 2 * overlaps.imag
        theta = _theta(operation.angle, angles)
        states, duals = operation.apply(states, -theta), operation.apply(duals, -theta)
    return gradients
