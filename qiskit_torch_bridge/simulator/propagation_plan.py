r"""From circuits to what Pauli propagation carries out: rotations about Pauli strings, channels, and strings to begin with.

All Clifford gates are moved behind the other operations. With the Clifford gates C so far, a rotation about P becomes one
about :math:`C^\dagger P C` and a channel of a qubit is told what X and Z of it have become; behind all of them an
observable O is :math:`C^\dagger O C`. The initial state stays :math:`|0...0\rangle`.

A gate without parameters that is no Clifford gate is taken apart by Qiskit's transpiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Operation
from qiskit.circuit.library import RYGate, RZGate, UnitaryGate
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import PTM, Operator

from ..program.channels import Channel, NoisyCircuit, Rotation
from ..program.light_cones import AXES_OF_ROTATIONS, CircuitGates, Gate, PauliString, kind_of
from ..program.readout import Expectation, PauliGroup
from .cone_plan import strings_of
from .propagation_kernels import CHANNEL, ROTATION

__all__ = ["Propagation", "propagations_of", "propagations_with_noise"]

_X, _Y, _Z = 1, 2, 3
_LETTERS = {"X": _X, "Y": _Y, "Z": _Z}
_GATES_ABOUT = {_Y: RYGate, _Z: RZGate}
_LETTER_OF_BITS = (0, _X, _Z, _Y)  # which letter anticommutes with Z (first bit) and with X (second bit)
_BITS_OF_A_WORD = 64
_ROUNDING = 1e-12
_BASIS = ["rx", "ry", "rz", "cx"]

_Images: TypeAlias = Mapping[tuple[int, ...], tuple[int, tuple[int, ...]]]
"""Of each Pauli string on a Clifford gate's qubits behind it: the sign and the letters before it."""


class _Turn(NamedTuple):
    """A rotation about a Pauli string, by the sum of an offset and of angles (columns) times slopes."""

    letters: PauliString
    terms: tuple[tuple[int, float], ...]
    offset: float


class _Clifford(NamedTuple):
    qubits: tuple[int, ...]
    images: _Images


class _PauliChannel(NamedTuple):
    """It multiplies a string by a factor: entry ``sum(letter_j << 2 j)`` for letters (0 to 3: I, X, Y, Z) on its qubits."""

    qubits: tuple[int, ...]
    factors: np.ndarray


_Step: TypeAlias = "_Turn | _Clifford | _PauliChannel"


@dataclass(frozen=True, eq=False, kw_only=True)
class Propagation:
    """What one output, or a part of it, is made of; arrays are as in :func:`.propagation_kernels.propagate`.

    Attributes:
        output: Which output it counts towards.
        masks: Shape (K, 2 W).
        hashes_of_masks: Shape (K,).
        operations: Shape (P, 4).
        factors: Of channels.
        varies: Shape (R,).
        strings: Shape (S, 2 W).
        hashes: Shape (S,).
        coefficients: Shape (S,).
        offsets: Shape (R,): the rotations' angles where all the circuit's angles are 0; radians.
        turns: Shape (T,): which rotations depend on
        columns: Shape (T,): which of the circuit's angles,
        slopes: Shape (T,): by how much.
    """

    output: int
    masks: np.ndarray
    hashes_of_masks: np.ndarray
    operations: np.ndarray
    factors: np.ndarray
    varies: np.ndarray
    strings: np.ndarray
    hashes: np.ndarray
    coefficients: np.ndarray
    offsets: np.ndarray
    turns: np.ndarray
    columns: np.ndarray
    slopes: np.ndarray

    def angles_of_rotations(self, angles: np.ndarray) -> np.ndarray:
        """Shape (R,), from the circuit's, shape (A,); radians."""
        rotations = self.offsets.copy()
        np.add.at(rotations, self.turns, self.slopes * angles[self.columns])
        return rotations


# Circuits without noise


def propagations_of(gates: CircuitGates, readout: Expectation) -> list[Propagation]:
    """One for each output that depends on the circuit.

    Args:
        gates: Of the circuit.
        readout: What is read.
    """
    shares: dict[int, list[tuple[PauliString, float]]] = {}
    for string in strings_of(readout.groups):
        for output, coefficient in string.shares:
            shares.setdefault(output, []).append((string.letters, coefficient))
    propagations = []
    for output, strings in shares.items():
        cone = gates.cone([letters for letters, _ in strings])
        # Strings that gates outside of the cone turn into others may act on qubits that no gate of the cone does.
        qubits = sorted({*cone.qubits, *(qubit for _, letters in cone.strings for qubit in letters)})
        place = {qubit: i for i, qubit in enumerate(qubits)}
        steps = [step for gate in cone.gates for step in _steps_of_gate(gate, [place[qubit] for qubit in gate.qubits])]
        read = [
            ({place[qubit]: letter for qubit, letter in letters.items()}, sign * coefficient)
            for (sign, letters), (_, coefficient) in zip(cone.strings, strings, strict=True)
            if sign
        ]
        propagations.append(_planned(output, len(qubits), steps, read))
    return propagations


def _steps_of_gate(gate: Gate, qubits: Sequence[int]) -> Iterator[_Step]:
    if all(isinstance(angle, float) for angle in gate.angles):
        yield from _placed(_steps_of_constant(gate.operation), qubits)
    elif gate.operation.name == "u":
        theta, phi, lam = gate.angles
        for letter, angle in ((_Z, lam), (_Y, theta), (_Z, phi)):
            if isinstance(angle, int):
                yield _Turn({qubits[0]: letter}, ((angle, 1.0),), 0.0)
            else:
                yield from _placed(_steps_of_constant(_GATES_ABOUT[letter](angle)), qubits)
    elif gate.operation.name == "cp":
        column = int(gate.angles[0])
        for part, slope in ((qubits[:1], 0.5), (qubits[1:], 0.5), (qubits, -0.5)):
            yield _Turn(dict.fromkeys(part, _Z), ((column, slope),), 0.0)
    else:
        letters = AXES_OF_ROTATIONS[gate.operation.name]
        yield _Turn(dict(zip(qubits, letters, strict=True)), ((int(gate.angles[0]), 1.0),), 0.0)


def _placed(steps: Iterable[_Turn | _Clifford], qubits: Sequence[int]) -> Iterator[_Step]:
    """Steps on a gate's own qubits, on these."""
    for step in steps:
        if isinstance(step, _Turn):
            yield step._replace(letters={qubits[qubit]: letter for qubit, letter in step.letters.items()})
        else:
            yield step._replace(qubits=tuple(qubits[qubit] for qubit in step.qubits))


def _steps_of_constant(operation: Operation) -> list[_Turn | _Clifford]:
    """A gate without free parameters, on qubits 0, 1, ..."""
    num_qubits = operation.num_qubits
    images = kind_of(operation).images
    if len(images) == 4**num_qubits - 1:
        return [_Clifford(tuple(range(num_qubits)), images)]
    if operation.name in AXES_OF_ROTATIONS:
        return [_Turn(dict(enumerate(AXES_OF_ROTATIONS[operation.name])), (), float(operation.params[0]))]
    circuit = QuantumCircuit(num_qubits)
    circuit.append(operation, range(num_qubits))
    parts: list[_Turn | _Clifford] = []
    for instruction in transpile(circuit, basis_gates=_BASIS, optimization_level=1).data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        for step in _placed(_steps_of_constant(instruction.operation), qubits):
            assert not isinstance(step, _PauliChannel)
            parts.append(step)
    return parts


# Circuits with noise


def propagations_with_noise(circuits: Sequence[NoisyCircuit], readout: Expectation) -> list[Propagation]:
    """One for each output and measured circuit that it depends on.

    Args:
        circuits: One for each measurement group of the readout.
        readout: What is read.

    Raises:
        ValueError: If a channel is neither a gate nor a mixture of Pauli strings.
    """
    of_channels: dict[int, list[_Turn | _Clifford] | np.ndarray] = {}
    propagations = []
    for circuit, group in zip(circuits, readout.groups, strict=True):
        assert isinstance(group, PauliGroup)
        for output in np.flatnonzero(group.coefficients.any(axis=0)).tolist():
            strings = list(_strings_with_misreadings(circuit, group, output))
            operations, qubits = _past(circuit, {qubit for letters, _ in strings for qubit in letters})
            place = {qubit: i for i, qubit in enumerate(qubits)}
            steps = [
                step
                for operation in operations
                for step in _steps_of_operation(operation, circuit, [place[q] for q in operation.qubits], of_channels)
            ]
            read = [({place[q]: letter for q, letter in letters.items()}, share) for letters, share in strings]
            propagations.append(_planned(output, len(qubits), steps, read))
    return propagations


def _strings_with_misreadings(
    circuit: NoisyCircuit, group: PauliGroup, output: int
) -> Iterator[tuple[PauliString, float]]:
    """What an output gets of the measured qubits: where bits are misread, Z is read as ``a + b Z``."""
    forms = []
    for readout in circuit.readout:
        zero, one = (1.0, -1.0) if readout is None else (readout[:, 0] - readout[:, 1]).tolist()
        forms.append(((zero + one) / 2, (zero - one) / 2))
    for support, coefficients in zip(group.supports, group.coefficients, strict=True):
        shares: list[tuple[PauliString, float]] = [({}, float(coefficients[output]))]
        for bit in np.flatnonzero(support).tolist():
            shift, scale = forms[bit]
            read = [({**letters, circuit.measured[bit]: _Z}, share * scale) for letters, share in shares]
            shares = read + ([(letters, share * shift) for letters, share in shares] if shift else [])
        yield from ((letters, share) for letters, share in shares if share)


def _past(circuit: NoisyCircuit, read: set[int]) -> tuple[list[Rotation | Channel], list[int]]:
    """The operations that some qubits at the end depend on, in order, and all the qubits of these."""
    qubits, kept = set(read), []
    for operation in reversed(circuit.operations):
        if not qubits.isdisjoint(operation.qubits):
            qubits.update(operation.qubits)
            kept.append(operation)
    return kept[::-1], sorted(qubits)


def _steps_of_operation(
    operation: Rotation | Channel,
    circuit: NoisyCircuit,
    qubits: Sequence[int],
    of_channels: dict[int, list[_Turn | _Clifford] | np.ndarray],
) -> Iterator[_Step]:
    if isinstance(operation, Rotation):
        slopes = circuit.slopes[:, operation.column]
        terms = tuple((column, float(slopes[column])) for column in np.flatnonzero(slopes).tolist())
        letters = {qubit: _LETTERS[pauli] for qubit, pauli in zip(qubits, operation.paulis, strict=True)}
        yield _Turn(letters, terms, float(circuit.offsets[operation.column]))
        return
    key = id(operation.ptm)
    if key not in of_channels:
        of_channels[key] = _steps_of_channel(operation)
    steps = of_channels[key]
    if isinstance(steps, np.ndarray):
        yield _PauliChannel(tuple(qubits), steps)
    else:
        yield from _placed(steps, qubits)


def _steps_of_channel(channel: Channel) -> list[_Turn | _Clifford] | np.ndarray:
    """The steps of a gate, or the factors of a mixture of Pauli strings."""
    ptm = channel.ptm
    if np.abs(ptm @ ptm.T - np.eye(len(ptm))).max() < len(ptm) * _ROUNDING:
        with suppress(QiskitError):  # it only looked like a gate
            return _steps_of_constant(UnitaryGate(Operator(PTM(ptm))))
    factors = np.diagonal(ptm).copy()
    if np.abs(ptm - np.diag(factors)).max() > _ROUNDING:
        raise ValueError(
            f"Pauli propagation: {channel.origin or 'a channel'} is neither a gate nor a mixture of Pauli strings "
            "(depolarising, bit and phase flips), which is all that propagation takes; use DensityMatrixBackend for few "
            "qubits, or Aer with a number of shots."
        )
    return factors


# Clifford gates to the end


class _Row(NamedTuple):
    """A Pauli string with a phase: ``i**quarter_turns X**x Z**z``, with bit masks x and z."""

    x: int
    z: int
    quarter_turns: int

    @classmethod
    def of(cls, letters: PauliString) -> _Row:
        x = sum(1 << qubit for qubit, letter in letters.items() if letter in (_X, _Y))
        z = sum(1 << qubit for qubit, letter in letters.items() if letter in (_Y, _Z))
        return cls(x, z, (x & z).bit_count())

    def times(self, other: _Row) -> _Row:
        turns = self.quarter_turns + other.quarter_turns + 2 * (self.z & other.x).bit_count()
        return _Row(self.x ^ other.x, self.z ^ other.z, turns)

    @property
    def sign(self) -> int:
        """Of the string of letters X, Y and Z."""
        return 1 - (self.quarter_turns - (self.x & self.z).bit_count()) % 4


class _Frame:
    """What each Pauli string behind some Clifford gates was before them."""

    def __init__(self, num_qubits: int) -> None:
        self.of_x = [_Row(1 << qubit, 0, 0) for qubit in range(num_qubits)]
        self.of_z = [_Row(0, 1 << qubit, 0) for qubit in range(num_qubits)]

    def before(self, letters: Iterable[tuple[int, int]]) -> _Row:
        """What a string, given as qubits and letters, was."""
        row = _Row(0, 0, 0)
        for qubit, letter in letters:
            if letter in (_X, _Y):
                row = row.times(self.of_x[qubit])
            if letter in (_Y, _Z):
                row = row.times(self.of_z[qubit])
            if letter == _Y:
                row = _Row(row.x, row.z, row.quarter_turns + 1)
        return row

    def append(self, gate: _Clifford) -> None:
        """One more gate behind the others."""
        new = []
        for i in range(len(gate.qubits)):
            for letter in (_X, _Z):
                sign, letters = gate.images[tuple(letter if i == j else 0 for j in range(len(gate.qubits)))]
                row = self.before(zip(gate.qubits, letters, strict=True))
                new.append(_Row(row.x, row.z, row.quarter_turns + 1 - sign))
        for i, qubit in enumerate(gate.qubits):
            self.of_x[qubit], self.of_z[qubit] = new[2 * i : 2 * i + 2]


def _planned(
    output: int, num_qubits: int, steps: Iterable[_Step], read: Iterable[tuple[PauliString, float]]
) -> Propagation:
    frame, masks = _Frame(num_qubits), list[_Row]()
    operations, factors, offsets = list[tuple[int, int, int, int]](), list[float](), list[float]()
    terms: list[tuple[int, int, float]] = []
    for step in steps:
        if isinstance(step, _Clifford):
            frame.append(step)
        elif isinstance(step, _Turn):
            row = frame.before(step.letters.items())
            operations.append((ROTATION, len(masks), 0, len(offsets)))
            terms += [(len(offsets), column, row.sign * slope) for column, slope in step.terms]
            offsets.append(row.sign * step.offset)
            masks.append(row)
        else:
            operations.append((CHANNEL, len(masks), len(step.qubits), len(factors)))
            factors += step.factors[_in_order_of_masks(len(step.qubits))].tolist()
            masks += [row for qubit in step.qubits for row in (frame.of_z[qubit], frame.of_x[qubit])]

    coefficients: dict[tuple[int, int], float] = {}
    for letters, coefficient in read:
        row = frame.before(letters.items())
        coefficients[row.x, row.z] = coefficients.get((row.x, row.z), 0.0) + row.sign * coefficient
    words = _words([(row.x, row.z) for row in masks], num_qubits)
    strings = _words(list(coefficients), num_qubits)
    turns = np.array([turn for turn, _, _ in terms], np.int64)
    varies = np.zeros(len(offsets), bool)
    varies[turns] = True
    return Propagation(
        output=output,
        masks=words,
        hashes_of_masks=_hashes(words),
        operations=np.array(operations, np.int64).reshape(-1, 4),
        factors=np.array(factors),
        varies=varies,
        strings=strings,
        hashes=_hashes(strings),
        coefficients=np.array(list(coefficients.values())),
        offsets=np.array(offsets),
        turns=turns,
        columns=np.array([column for _, column, _ in terms], np.int64),
        slopes=np.array([slope for _, _, slope in terms]),
    )


@lru_cache
def _in_order_of_masks(num_qubits: int) -> np.ndarray:
    """For each pattern of anticommutation with Z and X of each qubit: the letters there, as digits of base 4."""
    patterns = np.arange(4**num_qubits)
    letters = np.array(_LETTER_OF_BITS)
    return sum((letters[patterns >> 2 * i & 3] << 2 * i for i in range(num_qubits)), np.zeros(len(patterns), np.int64))


def _words(masks: Sequence[tuple[int, int]], num_qubits: int) -> np.ndarray:
    """Pairs of masks x and z, each in words: shape (len(masks), 2 W)."""
    width = max(1, -(-num_qubits // _BITS_OF_A_WORD))
    raw = b"".join(mask.to_bytes(8 * width, "little") for pair in masks for mask in pair)
    return np.frombuffer(raw, "<u8").astype(np.uint64).reshape(len(masks), 2 * width)


def _hashes(words: np.ndarray) -> np.ndarray:
    """A linear hash of each row: the exclusive or of a random number for each bit that is set."""
    keys = np.random.default_rng(20).integers(2**64, size=64 * words.shape[1], dtype=np.uint64)
    hashes = np.zeros(len(words), np.uint64)
    for bit, key in enumerate(keys):
        is_set = words[:, bit // 64] >> np.uint64(bit % 64) & np.uint64(1)
        hashes ^= is_set * key
    return hashes
