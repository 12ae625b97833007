"""From a program's circuit to the few kinds of gates that the simulator knows, and what is read behind them.

Global phases are dropped throughout: no expectation value or probability depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from qiskit.circuit import Operation, Parameter, Qubit

from ..program.compiled import Program
from ..program.readout import Expectation, MeasurementGroup

__all__ = [
    "DenseGate",
    "DiagonalGate",
    "Factor",
    "LoweredCircuit",
    "LoweredGate",
    "MonomialGate",
    "OneQubitGate",
    "Term",
    "basis_change",
    "gates_of",
    "lowered",
]

_ROUNDING = 1e-14
_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_AXES = {"rx": _X, "ry": _Y, "rz": _Z, "p": _Z}
_ROOT = 0.5**0.5
_HADAMARD = (0.0, _ROOT, 0.0, _ROOT)
_X_HALF, _X_MINUS_HALF = (_ROOT, _ROOT, 0.0, 0.0), (_ROOT, -_ROOT, 0.0, 0.0)
_S_DAGGER = (_ROOT, 0.0, 0.0, -_ROOT)
# Z becomes the other Pauli between these two (first, last).
_AROUND_Z = {"X": (_HADAMARD, _HADAMARD), "Y": (_X_HALF, _X_MINUS_HALF)}
_TWO_QUBIT_PAULIS = {"rxx": "XX", "ryy": "YY", "rzz": "ZZ", "rzx": "ZX"}
_RZZ_PHASES = (-0.5, 0.5, 0.5, -0.5)
_CP_PHASES = (0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Factor:
    """A gate within a run.

    Attributes:
        column: Its angle's column; -1 for a constant.
        numbers: In a one-qubit run the axis ``(0, x, y, z)`` of a rotation, or a constant's unit quaternion; in a
            diagonal the four phases at an angle of 1, or a constant's phases; radians.
    """

    column: int
    numbers: tuple[float, float, float, float]


@dataclass(frozen=True)
class OneQubitGate:
    """A rotation of the Bloch sphere."""

    qubits: tuple[int]
    factor: Factor


@dataclass(frozen=True)
class DiagonalGate:
    """Phases on two qubits; entry ``a + 2 b`` where the first is in a and the second in b."""

    qubits: tuple[int, int]
    factor: Factor


@dataclass(frozen=True, eq=False)
class MonomialGate:
    """A signed permutation, without parameters: outcome ``b`` gets ``signs[b]`` times what ``permutation[b]`` had."""

    qubits: tuple[int, ...]
    permutation: np.ndarray
    signs: np.ndarray


@dataclass(frozen=True, eq=False)
class DenseGate:
    """Any other matrix without parameters; the first qubit is the least significant."""

    qubits: tuple[int, ...]
    matrix: np.ndarray


LoweredGate = OneQubitGate | DiagonalGate | MonomialGate | DenseGate


@dataclass(frozen=True)
class Term:
    """A Pauli string's share in an output.

    Attributes:
        flip: Bit i is set where the letter of qubit i is X or Y.
        phase: Bit i is set where it is Z or Y.
        output: Which output it counts towards.
        coefficient: How much.
    """

    flip: int
    phase: int
    output: int
    coefficient: float


@dataclass(frozen=True, eq=False, kw_only=True)
class LoweredCircuit:
    """A circuit as it is simulated.

    Attributes:
        num_qubits: The number n of qubits.
        gates: On the qubits 0 to n - 1.
        terms: What the outputs are made of; None for probabilities, which are read from the only measurement.
        measurements: What takes shots: groups, and where their qubits are among the n.
        constants: Shape (M,): what the outputs begin with.
    """

    num_qubits: int
    gates: Sequence[LoweredGate]
    terms: Sequence[Term] | None
    measurements: Sequence[tuple[MeasurementGroup, Sequence[int]]]
    constants: np.ndarray


def lowered(program: Program) -> LoweredCircuit:
    """The whole program, on its active qubits."""
    circuit, active, readout = program.circuit, list(program.active_qubits), program.readout
    columns = {parameter: column for column, parameter in enumerate(program.angles)}
    at = {qubit: i for i, qubit in enumerate(active)}
    place: dict[Qubit, int] = {circuit.qubits[qubit]: i for qubit, i in at.items()}
    gates: list[LoweredGate] = []
    for instruction in circuit.data:
        if instruction.operation.name not in ("barrier", "delay") and instruction.qubits:
            qubits = tuple(place[qubit] for qubit in instruction.qubits)
            gates += gates_of(
                instruction.operation,
                qubits,
                [columns[value] if isinstance(value, Parameter) else value for value in instruction.operation.params],
            )
    return LoweredCircuit(
        num_qubits=len(active),
        gates=gates,
        terms=list(_terms(readout, active)) if isinstance(readout, Expectation) else None,
        measurements=[(group, [at[qubit] for qubit in group.qubits]) for group in readout.groups],
        constants=readout.constants,
    )


def _terms(readout: Expectation, active: Sequence[int]) -> Iterator[Term]:
    for output, operator in enumerate(readout.observables):
        paulis, coefficients = operator.paulis, operator.coeffs.real.tolist()
        for x, z, coefficient in zip(paulis.x[:, active], paulis.z[:, active], coefficients, strict=True):
            if coefficient != 0:
                flip, phase = (sum(1 << i for i in np.flatnonzero(bits).tolist()) for bits in (x, z))
                yield Term(flip, phase, output, coefficient)


def gates_of(operation: Operation, qubits: tuple[int, ...], angles: Sequence[int | float]) -> Iterable[LoweredGate]:
    """What an operation is made of.

    Args:
        operation: Of a canonical circuit.
        qubits: What it acts on.
        angles: In place of its parameters: a column (an integer) for each free one, and the others' values.
    """
    if operation.name in _AXES:
        return [_rotation(qubits[0], _AXES[operation.name], angles[0])]
    if operation.name == "u":
        theta, phi, lam = angles
        return [_rotation(qubits[0], axis, angle) for axis, angle in ((_Z, lam), (_Y, theta), (_Z, phi))]
    if operation.name == "cp":
        return [_diagonal((qubits[0], qubits[1]), _CP_PHASES, angles[0])]
    if operation.name in _TWO_QUBIT_PAULIS:
        return _pauli_rotation(_TWO_QUBIT_PAULIS[operation.name], (qubits[0], qubits[1]), angles[0])
    return [_constant(np.asarray(operation.to_matrix(), dtype=complex), qubits)]


def basis_change(qubit: int, basis: str) -> Iterator[OneQubitGate]:
    """What turns a measurement in the basis X or Y into one in Z; nothing where it is one."""
    if basis == "Y":
        yield OneQubitGate((qubit,), Factor(-1, _S_DAGGER))
    if basis != "Z":
        yield OneQubitGate((qubit,), Factor(-1, _HADAMARD))


def _rotation(qubit: int, axis: tuple[float, float, float], angle: int | float) -> OneQubitGate:
    """Columns are named by integers; a fixed angle is a float."""
    if isinstance(angle, int):
        return OneQubitGate((qubit,), Factor(angle, (0.0, *axis)))
    x, y, z = (np.sin(angle / 2) * component for component in axis)
    return OneQubitGate((qubit,), Factor(-1, (float(np.cos(angle / 2)), float(x), float(y), float(z))))


def _diagonal(qubits: tuple[int, int], phases: Sequence[float], angle: int | float) -> DiagonalGate:
    a, b, c, d = phases if isinstance(angle, int) else (angle * phase for phase in phases)
    return DiagonalGate(qubits, Factor(angle if isinstance(angle, int) else -1, (a, b, c, d)))


def _pauli_rotation(paulis: str, qubits: tuple[int, int], angle: int | float) -> list[LoweredGate]:
    around = [(qubit, _AROUND_Z[pauli]) for qubit, pauli in zip(qubits, paulis, strict=True) if pauli != "Z"]
    return [
        *(OneQubitGate((qubit,), Factor(-1, first)) for qubit, (first, _) in around),
        _diagonal(qubits, _RZZ_PHASES, angle),
        *(OneQubitGate((qubit,), Factor(-1, last)) for qubit, (_, last) in around),
    ]


def _constant(matrix: np.ndarray, qubits: tuple[int, ...]) -> LoweredGate:
    if len(qubits) == 1:
        return OneQubitGate((qubits[0],), Factor(-1, _quaternion(matrix)))
    support = np.abs(matrix) > _ROUNDING
    if bool((support.sum(axis=1) == 1).all()):
        permutation = support.argmax(axis=1)
        entries = matrix[np.arange(len(matrix)), permutation]
        if np.abs(entries - np.round(entries.real)).max() < _ROUNDING:
            return MonomialGate(qubits, permutation, np.round(entries.real))
        if len(qubits) == 2 and bool((permutation == np.arange(4)).all()):
            a, b, c, d = np.angle(entries).tolist()
            return DiagonalGate((qubits[0], qubits[1]), Factor(-1, (a, b, c, d)))
    return DenseGate(qubits, matrix)


def _quaternion(matrix: np.ndarray) -> tuple[float, float, float, float]:
    special = matrix / np.sqrt(np.linalg.det(matrix))
    a, b = complex(special[0, 0]), complex(special[1, 0])
    w, x, y, z = (0.0 if abs(part) < _ROUNDING else part for part in (a.real, -b.imag, b.real, -a.imag))
    return w, x, y, z
