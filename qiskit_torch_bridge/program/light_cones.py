r"""Light cones: which gates and qubits of a circuit can influence what is measured.

In the Heisenberg picture a Pauli string is taken back through the circuit, from its end. A gate has no influence, and is
left out, where it commutes with every gate behind it that has, and with the string. Where it commutes with those gates and
takes the string to another Pauli string (Clifford gates do that to each string, and many other gates to some), it is left
out too, and the string becomes that one. All other gates are in the cone, and widen it to their qubits. From the other end,
gates are left out that do nothing to qubits which are still in :math:`|0\rangle`.

A second way is tried where cones are wide: which letters the string can have on each qubit, gate by gate
(:mod:`qiskit_torch_bridge.program.letters`). It sees through the gates of a device, whose ladders of neighbours commute as a
whole and not gate by gate.

That two gates commute is seen where both are rotations about Pauli strings, or where on each common qubit both are diagonal
in the same Pauli basis. Gates that commute in another way are kept, which costs time and changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import product

import numpy as np
from qiskit.circuit import Operation, Parameter

from .canonical import ROTATIONS
from .compiled import Program
from .letters import EVERY, IDENTITY, before_map, before_rotation

__all__ = ["AXES_OF_ROTATIONS", "CircuitGates", "Cone", "Gate", "PauliString", "amplitudes", "kind_of", "work"]

_LEAST_QUBITS_LOOKED_INTO = 5  # with the other way to find light cones
_ROUNDING = 1e-12
_MOST_QUBITS_OF_A_MATRIX = 3  # of larger gates only the diagonal ones are looked into
_MOST_QUBITS_TOLD_APART = 1000  # wider ones are all the same: beyond every machine
_IDENTITY, _X, _Y, _Z = range(4)
_MATRICES = (
    np.eye(2, dtype=complex),
    np.array([[0, 1], [1, 0]], dtype=complex),
    np.array([[0, -1j], [1j, 0]]),
    np.diag([1.0 + 0j, -1.0]),
)
AXES_OF_ROTATIONS = {
    "rx": (_X,), "ry": (_Y,), "rz": (_Z,), "p": (_Z,),
    "rxx": (_X, _X), "ryy": (_Y, _Y), "rzz": (_Z, _Z), "rzx": (_Z, _X),
}  # fmt: skip

PauliString = Mapping[int, int]
"""For each qubit that a Pauli string acts on: 1, 2 or 3 for X, Y or Z."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Kind:
    """What a gate is, wherever it stands.

    Attributes:
        key: The same for two gates that do the same.
        letters: Of the Pauli string that it is a rotation about, or None.
        axes: For each of its qubits the letter that it commutes with there, alone and together; None where there is none.
        fixes_zero: Whether it leaves :math:`|0...0>` as it is, up to a phase.
        images: Pauli strings on its qubits, without identities, and what each becomes: a sign and a string.
        ptm: Its Pauli transfer matrix, the first qubit least significant; None where it has an angle, or is large.
    """

    key: Hashable
    letters: tuple[int, ...] | None
    axes: tuple[int | None, ...]
    fixes_zero: bool
    images: Mapping[tuple[int, ...], tuple[int, tuple[int, ...]]]
    ptm: np.ndarray | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Gate:
    """A gate of a circuit.

    Attributes:
        number: Its place in the circuit.
        operation: What it is.
        qubits: Positions in the circuit.
        angles: Of a rotation, in place of its parameters: a column (an integer) for each free one, and the others' values.
        kind: What it does.
    """

    number: int
    operation: Operation
    qubits: tuple[int, ...]
    angles: tuple[int | float, ...]
    kind: _Kind

    def commutes_with(self, other: Gate) -> bool:
        """Whether the two are known to commute."""
        common = [(i, other.qubits.index(qubit)) for i, qubit in enumerate(self.qubits) if qubit in other.qubits]
        letters, other_letters = self.kind.letters, other.kind.letters
        if letters is not None and other_letters is not None:
            return sum(letters[i] != other_letters[j] for i, j in common) % 2 == 0
        axes, other_axes = self.kind.axes, other.kind.axes
        return all(axes[i] is not None and axes[i] == other_axes[j] for i, j in common)

    def before(self, string: PauliString) -> tuple[int, PauliString] | None:
        """The Pauli string before the gate, with its sign, that is ``string`` behind it; None where it is no such string."""
        local = tuple(string.get(qubit, _IDENTITY) for qubit in self.qubits)
        if all(letter in (_IDENTITY, axis) for letter, axis in zip(local, self.kind.axes, strict=True)):
            return 1, string
        if self.kind.letters is not None:
            different = sum(a not in (_IDENTITY, b) for a, b in zip(local, self.kind.letters, strict=True))
            if different % 2 == 0:
                return 1, string
        if local not in self.kind.images:
            return None
        sign, letters = self.kind.images[local]
        rest = {qubit: letter for qubit, letter in string.items() if qubit not in self.qubits}
        return sign, rest | {q: letter for q, letter in zip(self.qubits, letters, strict=True) if letter}

    def letters_before(self, behind: tuple[int, ...]) -> tuple[int, ...] | None:
        """Which letters strings can have before the gate, on its qubits; None if it leaves them all as they are.

        Args:
            behind: Which letters they have behind it (:mod:`qiskit_torch_bridge.program.letters`).
        """
        if self.kind.ptm is not None:
            return before_map(self.kind.ptm, behind)
        if self.kind.letters is not None:
            return before_rotation(self.kind.letters, behind)
        if all(axis == _Z for axis in self.kind.axes):
            return before_rotation([_Z] * len(behind), behind)
        return (EVERY,) * len(behind)


@dataclass(frozen=True, eq=False)
class Cone:
    """What some Pauli strings depend on.

    Attributes:
        gates: In the order in which they run.
        qubits: What those act on, ascending.
        strings: Each string as it is read behind those gates, on those qubits, with its sign. A sign of 0 says that its
            value is 0; no letters that it is the sign.
    """

    gates: tuple[Gate, ...]
    qubits: tuple[int, ...]
    strings: tuple[tuple[int, PauliString], ...]

    @cached_property
    def work(self) -> float:
        """How long its simulation takes, in units of a gate on one amplitude."""
        return work(len(self.qubits), len(self.gates))


def work(num_qubits: int, num_gates: int) -> float:
    """How long a simulation takes, in units of a gate on one amplitude."""
    return (num_gates + 2) * amplitudes(num_qubits)


def amplitudes(num_qubits: int) -> float:
    """How many amplitudes a state has."""
    return 2.0 ** min(num_qubits, _MOST_QUBITS_TOLD_APART)


class CircuitGates:
    """The gates of a program, as the search for light cones reads them.

    Args:
        program: Without input blocks.
    """

    def __init__(self, program: Program) -> None:
        circuit = program.circuit
        columns = {parameter: column for column, parameter in enumerate(program.angles)}
        position = {qubit: i for i, qubit in enumerate(circuit.qubits)}
        self.gates: list[Gate] = []
        self._before: list[tuple[int, ...]] = []  # for each gate: the gates right before it on its qubits
        last = [-1] * circuit.num_qubits
        for instruction in circuit.data:
            operation = instruction.operation
            if operation.name in ("barrier", "delay") or not instruction.qubits:
                continue
            qubits = tuple(position[qubit] for qubit in instruction.qubits)
            values = operation.params if operation.name in ROTATIONS else ()
            angles = tuple(columns[value] if isinstance(value, Parameter) else value for value in values)
            number = len(self.gates)
            kind = kind_of(operation)
            gate = Gate(number=number, operation=operation, qubits=qubits, angles=angles, kind=kind)
            self.gates.append(gate)
            self._before.append(tuple(last[qubit] for qubit in qubits))
            for qubit in qubits:
                last[qubit] = number
        self._last = last

    def cone(self, strings: Sequence[PauliString]) -> Cone:
        """The light cone of Pauli strings that are measured at the circuit's end."""
        cone = self._cone(strings, lambda gate, string: gate.before(string))
        if len(cone.qubits) < _LEAST_QUBITS_LOOKED_INTO:
            return cone
        return min(cone, self._cone_by_letters(strings), key=lambda one: one.work)

    def cone_of_measurement(self, bases: Mapping[int, int]) -> Cone:
        """The light cone of measurements: all that the joint distribution of their outcomes depends on.

        Args:
            bases: For each measured qubit 1, 2 or 3 for X, Y or Z.
        """

        def unchanged(gate: Gate, string: PauliString) -> tuple[int, PauliString] | None:
            image = gate.before(string)
            return image if image is not None and image[1] is string else None

        strings = [{qubit: letter} for qubit, letter in bases.items()]
        cone = self._cone(strings, unchanged)
        if len(cone.qubits) < _LEAST_QUBITS_LOOKED_INTO:
            return cone
        return min(cone, self._cone_by_letters(strings), key=lambda one: one.work)

    def _cone(
        self, strings: Sequence[PauliString], taken_back: Callable[[Gate, PauliString], tuple[int, PauliString] | None]
    ) -> Cone:
        signs, now = [1] * len(strings), list(strings)
        kept: list[Gate] = []
        kept_on: dict[int, list[Gate]] = {}
        reached: set[int] = set()  # qubits that a string or a gate of the cone acts on
        waiting: list[int] = []  # a heap of the gates to look at, the last one first
        seen: set[int] = set()

        def look_at(number: int) -> None:
            if number >= 0 and number not in seen:
                seen.add(number)
                heappush(waiting, -number)

        for qubit in {qubit for string in strings for qubit in string}:
            reached.add(qubit)
            look_at(self._last[qubit])
        while waiting:
            number = -heappop(waiting)
            gate = self.gates[number]
            behind = {id(one): one for qubit in gate.qubits for one in kept_on.get(qubit, ())}
            images = None
            if all(gate.commutes_with(one) for one in behind.values()):
                images = [taken_back(gate, string) for string in now]
            if images is None or any(image is None for image in images):
                kept.append(gate)
                for qubit in gate.qubits:
                    kept_on.setdefault(qubit, []).append(gate)
                reached.update(gate.qubits)
            else:
                for i, image in enumerate(images):
                    assert image is not None
                    signs[i], now[i] = signs[i] * image[0], image[1]
                    reached.update(qubit for qubit in gate.qubits if qubit in image[1])
            for qubit, before in zip(gate.qubits, self._before[number], strict=True):
                if qubit in reached:
                    look_at(before)
        return _cone_of(kept, signs, now)

    def _cone_by_letters(self, strings: Sequence[PauliString]) -> Cone:
        """The cone of strings, and of all their products, by the letters that they can have."""
        letters: dict[int, int] = {}
        for string in strings:
            for qubit, letter in string.items():
                letters[qubit] = letters.get(qubit, IDENTITY) | 1 << letter
        kept = []
        for gate in reversed(self.gates):
            if letters.keys().isdisjoint(gate.qubits):
                continue
            before = gate.letters_before(tuple(letters.get(qubit, IDENTITY) for qubit in gate.qubits))
            if before is not None:
                kept.append(gate)
                letters.update((q, one) for q, one in zip(gate.qubits, before, strict=True) if one != IDENTITY)
        return _cone_of(kept, [1] * len(strings), strings)


def _cone_of(kept: Sequence[Gate], signs: Sequence[int], strings: Sequence[PauliString]) -> Cone:
    """From gates, the last one first, and strings with signs before all gates that are left out."""
    gates = _with_an_effect(reversed(kept))
    qubits = tuple(sorted({qubit for gate in gates for qubit in gate.qubits}))
    return Cone(gates, qubits, tuple(map(_read_at_zero(set(qubits)), signs, strings)))


def _with_an_effect(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates without those at the beginning that leave qubits in 0."""
    moved: set[int] = set()
    effective = []
    for gate in gates:
        if not (gate.kind.fixes_zero and moved.isdisjoint(gate.qubits)):
            moved.update(gate.qubits)
            effective.append(gate)
    return tuple(effective)


def _read_at_zero(moved: set[int]) -> Callable[[int, PauliString], tuple[int, PauliString]]:
    """What is left of a string where the other qubits are in 0: there Z is 1, and X and Y have the value 0."""

    def read(sign: int, string: PauliString) -> tuple[int, PauliString]:
        if any(letter != _Z for qubit, letter in string.items() if qubit not in moved):
            return 0, {}
        return sign, {qubit: letter for qubit, letter in string.items() if qubit in moved}

    return read


def kind_of(operation: Operation) -> _Kind:
    """What an operation of a canonical circuit does."""
    letters = AXES_OF_ROTATIONS.get(operation.name)
    if any(isinstance(value, Parameter) for value in operation.params):
        axes = letters or ((_Z, _Z) if operation.name == "cp" else (None,))
        return _Kind(
            key=operation.name, letters=letters, axes=axes, fixes_zero=all(axis == _Z for axis in axes), images={}
        )
    matrix = np.asarray(operation.to_matrix(), dtype=complex)
    if operation.num_qubits <= _MOST_QUBITS_OF_A_MATRIX:
        return _kind_of_matrix(matrix.tobytes(), operation.num_qubits, letters)
    is_diagonal = np.abs(matrix - np.diag(np.diagonal(matrix))).max() < _ROUNDING
    axes = (_Z if is_diagonal else None,) * operation.num_qubits
    key = blake2b(matrix.tobytes()).digest()
    return _Kind(key=key, letters=None, axes=axes, fixes_zero=_fixes_zero(matrix), images={})


@lru_cache(maxsize=4096)
def _kind_of_matrix(numbers: bytes, num_qubits: int, letters: tuple[int, ...] | None) -> _Kind:
    matrix = np.frombuffer(numbers, dtype=complex).reshape(2**num_qubits, -1)
    strings = [letters[::-1] for letters in product(range(4), repeat=num_qubits)]  # the first letter changes fastest
    paulis = np.stack([_on_qubits(string) for string in strings])
    axes = tuple(
        next((letter for letter in (_Z, _X, _Y) if _commute(matrix, _on_qubits(_alone(i, letter, num_qubits)))), None)
        for i in range(num_qubits)
    )
    before = matrix.conj().T @ paulis @ matrix
    # Entry (a, b): how much of string b there is before the gate in what is string a behind it.
    shares = (before.reshape(len(strings), -1) @ paulis.reshape(len(strings), -1).conj().T).real / len(matrix)
    # What else there is of a string is what counts: its own share is 1 up to the square of that.
    others = np.where(np.abs(shares) > 0.9, 0.0, np.abs(shares)).sum(axis=1, keepdims=True)
    whole = np.argwhere((np.abs(shares) > 0.9) & (others < len(strings) * _ROUNDING))
    images = {strings[a]: (round(shares[a, b]), strings[b]) for a, b in whole.tolist() if a}
    return _Kind(key=numbers, letters=letters, axes=axes, fixes_zero=_fixes_zero(matrix), images=images, ptm=shares)


def _on_qubits(string: Sequence[int]) -> np.ndarray:
    """The matrix of a Pauli string, the first letter of which acts on the least significant qubit."""
    return reduce(np.kron, [_MATRICES[letter] for letter in reversed(string)])


def _alone(i: int, letter: int, num_qubits: int) -> tuple[int, ...]:
    return tuple(letter if i == j else _IDENTITY for j in range(num_qubits))


def _commute(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a @ b - b @ a).max() < _ROUNDING)


def _fixes_zero(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix[1:, 0]).max() < _ROUNDING)
