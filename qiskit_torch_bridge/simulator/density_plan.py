"""How circuits with noise are simulated: few operations on the few entries of a state that matter.

* **Fusion.** One-qubit rotations and channels that follow each other on a qubit become one run. Everything else that has no
  angle (gates and channels of two qubits, channels of one between those) becomes a sparse matrix on the whole state; two
  that follow each other become one wherever that has no more numbers than both. Of Clifford gates with Pauli noise, however
  many, it has one number a row.
* **Pruning.** Of the entries of a state those have no room that are zero whatever the angles are (half of them where all
  gates are real), and those that nothing which is read depends on (what lies outside its past light cone, and more).
  Operations work on what is left.
* **Room.** A map writes a state anew, so that each stretch of operations between two maps has room for its own entries only.
* **Readout.** What is measured is pulled back through the channels behind the last operation that all measurements share
  (noisy basis changes among them), so that one simulation serves all measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, pairwise
from typing import Any

import numpy as np
from scipy import sparse

from ..program.channels import Channel, NoisyCircuit, NoisyOperation, Rotation
from ..program.readout import MeasurementGroup
from . import density_kernels as kernels
from .vectors import WIDTH
from .whole_kernels import packed

__all__ = ["Branch", "DensityPlan", "End", "Part", "branches_of"]

_ROUNDING = 1e-14
_NEGLIGIBLE = 1e-13  # of what is left of a channel that has been divided by others
_MOST_CONDITION = 100.0
_AXES = {"X": 1, "Y": 2, "Z": 3}
_MAPS_TRIED = 3  # for fusion
_MOST_NUMBERS_A_ROW = 4  # of a fused map, on average; more of them take memory, and time when a plan is made
_MOST_QUBITS_FUSED_FREELY = 8  # beyond, only maps with one number a row are fused


@dataclass(frozen=True, eq=False)
class End:
    """A measurement at the end of a branch.

    Attributes:
        number: Which of the program's it is.
        group: What the program says of it.
        suffix: The channels that only this measurement has.
        circuit: Its circuit.
    """

    number: int
    group: MeasurementGroup
    suffix: tuple[Channel, ...]
    circuit: NoisyCircuit

    @property
    def misreadings(self) -> list[np.ndarray]:
        """For each bit, from the expectation values of I and Z to the probabilities of reading 0 and 1: shape (2, 2)."""
        ideal = 0.5 * np.array([[1.0, 1.0], [1.0, -1.0]])
        return [ideal if one is None else one.T @ ideal for one in self.circuit.readout]

    def probabilities(self, read: np.ndarray) -> np.ndarray:
        """Of the outcomes, shape (N, 2**k), from the expectation values of strings of I and Z, likewise."""
        read = along_bits(read, self.misreadings)
        return np.maximum(read, 0.0, out=read)

    def scores(self) -> np.ndarray:
        """Shape (2**k, M): what each string of I and Z contributes to the outputs."""
        ((_, scores),) = self.group.score_blocks()
        shares = along_bits(np.ascontiguousarray(scores.T), [one.T for one in self.misreadings]).T
        return np.where(np.abs(shares) < _ROUNDING * np.abs(shares).max(initial=0.0), 0.0, shares)

    def strings(self, num_qubits: int) -> sparse.csr_matrix:
        """Shape (2**k, 4**n): the entries before the suffix that each string of I and Z is a sum of."""
        strings = np.arange(2 ** len(self.circuit.measured))
        entries = sum((3 * ((strings >> bit) & 1) << 2 * q for bit, q in enumerate(self.circuit.measured)), 0 * strings)
        matrix = sparse.csr_matrix(
            (np.ones(len(strings)), entries, np.arange(len(strings) + 1)), shape=(len(strings), 4**num_qubits)
        )
        for channel in reversed(self.suffix):
            matrix = matrix @ _on_all(channel, num_qubits)
        return _without_zeros(matrix)


def along_bits(values: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Values of shape (N, 2**k), with a 2 x 2 matrix applied along each bit of their last index."""
    for bit, matrix in enumerate(matrices):
        pairs = values.reshape(len(values), -1, 2, 1 << bit)
        values = np.stack([row[0] * pairs[:, :, 0] + row[1] * pairs[:, :, 1] for row in matrix], axis=2)
    return values.reshape(len(values), 1 << len(matrices))


@dataclass(frozen=True, eq=False)
class Branch:
    """Measurements whose circuits have all angles in common.

    Attributes:
        circuit: One of their circuits: what it says of qubits and angles is true of all.
        operations: What they have in common.
        ends: The measurements.
    """

    circuit: NoisyCircuit
    operations: tuple[NoisyOperation, ...]
    ends: tuple[End, ...]

    def exact_plan(self, dtype: np.dtype) -> DensityPlan:
        """A plan that reads the outputs, this branch's part of them."""
        n = self.circuit.num_qubits
        reads = [sparse.csr_matrix(end.scores().T) @ end.strings(n) for end in self.ends]
        return DensityPlan(self.operations, n, sparse.csr_matrix(sum(reads[1:], reads[0])), dtype)

    def sampling_plan(self, dtype: np.dtype) -> DensityPlan:
        """A plan that reads the strings of I and Z of each measurement, one after the other."""
        n = self.circuit.num_qubits
        reads = sparse.vstack([end.strings(n) for end in self.ends], format="csr")
        return DensityPlan(self.operations, n, reads, dtype)


def branches_of(circuits: Sequence[NoisyCircuit], groups: Sequence[MeasurementGroup]) -> list[Branch]:
    """The measurements, those together that one simulation serves.

    Args:
        circuits: Each measurement's circuit.
        groups: What the program says of them.
    """
    together: list[list[int]] = []
    for number, circuit in enumerate(circuits):
        home = next((one for one in together if _share_their_angles(circuits[one[0]], circuit)), None)
        if home is None:
            together.append([number])
        else:
            home.append(number)
    branches = []
    for numbers in together:
        length = min(_common(circuits[numbers[0]], circuits[number]) for number in numbers)
        ends = [End(i, groups[i], _channels(circuits[i].operations[length:]), circuits[i]) for i in numbers]
        first = circuits[numbers[0]]
        branches.append(Branch(first, first.operations[:length], tuple(ends)))
    return branches


def _common(a: NoisyCircuit, b: NoisyCircuit) -> int:
    """How many operations two circuits begin with alike."""
    pairs = zip(a.operations, b.operations, strict=False)
    different = (i for i, (one, other) in enumerate(pairs) if one is not other and one != other)
    return next(different, min(len(a.operations), len(b.operations)))


def _share_their_angles(a: NoisyCircuit, b: NoisyCircuit) -> bool:
    if a.num_qubits != b.num_qubits or a.slopes.shape != b.slopes.shape:
        return False
    if not (np.array_equal(a.slopes, b.slopes) and np.array_equal(a.offsets, b.offsets)):
        return False
    rest = a.operations[_common(a, b) :] + b.operations[_common(a, b) :]
    return not any(isinstance(operation, Rotation) for operation in rest)


def _channels(operations: Iterable[NoisyOperation]) -> tuple[Channel, ...]:
    return tuple(operation for operation in operations if isinstance(operation, Channel))


# Operations in the making


def _without_zeros(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix.data[np.abs(matrix.data) < _ROUNDING] = 0.0
    matrix.eliminate_zeros()
    return matrix


def _cleaned(ptm: np.ndarray) -> np.ndarray:
    return np.where(np.abs(ptm) < _ROUNDING, 0.0, ptm)


def _offsets(qubits: Sequence[int]) -> np.ndarray:
    """Shape (4**k,): where the entries of some qubits are among all entries, the others' letters being I."""
    local = np.arange(4 ** len(qubits))
    return sum(((local >> 2 * i & 3) << 2 * qubit for i, qubit in enumerate(qubits)), 0 * local)


def _bases(qubits: Sequence[int], num_qubits: int) -> np.ndarray:
    """Shape (4**(n - k),): all entries with the letter I on the qubits."""
    return _offsets([qubit for qubit in range(num_qubits) if qubit not in qubits])


def _on_all(channel: Channel, num_qubits: int) -> sparse.csr_matrix:
    """A channel as a matrix on all entries."""
    ptm = _cleaned(channel.ptm)
    rows, columns = np.nonzero(ptm)
    offsets, bases = _offsets(channel.qubits), _bases(channel.qubits, num_qubits)
    shape = 4**num_qubits, 4**num_qubits
    if not np.array_equal(rows, np.arange(len(ptm))):
        places = (offsets[rows][:, None] + bases).ravel(), (offsets[columns][:, None] + bases).ravel()
        return sparse.csr_matrix((np.repeat(ptm[rows, columns], len(bases)), places), shape=shape)
    sources, weights = np.empty(shape[0], np.int32), np.empty(shape[0])
    for row, column in zip(rows, columns, strict=True):
        sources[offsets[row] + bases], weights[offsets[row] + bases] = offsets[column] + bases, ptm[row, column]
    return _monomial(sources, weights)


def _monomial(sources: np.ndarray, weights: np.ndarray) -> sparse.csr_matrix:
    """The matrix with one number a row."""
    size = len(sources)
    return sparse.csr_matrix((weights, sources, np.arange(size + 1, dtype=np.int32)), shape=(size, size))


def _is_monomial(matrix: sparse.csr_matrix) -> bool:
    return bool(matrix.nnz == matrix.shape[0] and (np.diff(matrix.indptr) == 1).all())


def _after(matrix: sparse.csr_matrix, before: sparse.csr_matrix) -> sparse.csr_matrix:
    """The product of two maps."""
    if _is_monomial(matrix) and _is_monomial(before):
        return _monomial(before.indices[matrix.indices], matrix.data * before.data[matrix.indices])
    return _without_zeros(sparse.csr_matrix(matrix @ before))


@dataclass
class _Run:
    """Rotations (column, axis) and constants of shape (4, 4) on a qubit."""

    qubits: tuple[int]
    factors: list[tuple[int, int] | np.ndarray] = field(default_factory=list)
    depth: int = 0

    @property
    def columns(self) -> list[int]:
        return [factor[0] for factor in self.factors if isinstance(factor, tuple)]

    def add(self, factor: tuple[int, int] | np.ndarray) -> None:
        if self.factors and isinstance(factor, np.ndarray) and isinstance(self.factors[-1], np.ndarray):
            self.factors[-1] = _cleaned(factor @ self.factors[-1])
        else:
            self.factors.append(factor)

    @property
    def constant(self) -> Channel | None:
        """The run as a channel, if it has no angle."""
        only = self.factors[0]
        return Channel(self.qubits, only) if len(self.factors) == 1 and isinstance(only, np.ndarray) else None

    @property
    def pattern(self) -> np.ndarray:
        """Shape (4, 4), bool: where the product of the factors can be other than 0."""
        product = np.eye(4, dtype=np.int64)
        for factor in self.factors:
            one = np.eye(4, dtype=np.int64) if isinstance(factor, tuple) else (factor != 0).astype(np.int64)
            if isinstance(factor, tuple):
                mixed = [letter for letter in (1, 2, 3) if letter != factor[1]]
                one[np.ix_(mixed, mixed)] = 1
            product = np.minimum(one @ product, 1)
        return product.astype(bool)

    def needs(self, needed: np.ndarray) -> np.ndarray:
        grouped, pattern = needed.reshape(-1, 4, 4 ** self.qubits[0]), self.pattern
        return np.stack([grouped[:, pattern[:, j]].any(axis=1) for j in range(4)], axis=1).ravel()

    def _active(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Which groups of entries it works on, by the letters on higher and on lower qubits."""
        shape = -1, 4, 4 ** self.qubits[0]
        return np.logical_and(needed.reshape(shape)[:, 1:].any(axis=1), filled.reshape(shape).any(axis=1))

    def is_idle(self, needed: np.ndarray, filled: np.ndarray) -> bool:
        return not bool(self._active(needed, filled).any())

    def acts(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        low = 4 ** self.qubits[0]
        higher, lower = np.nonzero(self._active(needed, filled))
        return (higher * 4 * low + lower)[:, None] + np.arange(4) * low

    def fills(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        there, pattern = filled.reshape(-1, 4, 4 ** self.qubits[0]), self.pattern
        reached = np.stack([there[:, pattern[i]].any(axis=1) for i in range(4)], axis=1)
        return (there | (reached & self._active(needed, filled)[:, None])).ravel()


@dataclass
class _Pairing:
    """The rotation by a Pauli string of several qubits."""

    rotation: Rotation
    num_qubits: int
    depth: int = 0

    @property
    def qubits(self) -> tuple[int, ...]:
        return self.rotation.qubits

    @property
    def columns(self) -> list[int]:
        return [self.rotation.column]

    def is_idle(self, needed: np.ndarray, filled: np.ndarray) -> bool:
        return not len(self.acts(needed, filled))

    def pairs(self) -> np.ndarray:
        """Shape (P, 2): what is mixed: u becomes ``cos u - sin v``, v becomes ``sin u + cos v``."""
        axes = [_AXES[letter] for letter in self.rotation.paulis]
        local = []
        for string in range(4 ** len(axes)):
            other, phase = 0, 0
            for i, axis in enumerate(axes):
                letter = string >> 2 * i & 3
                other |= (letter ^ axis) << 2 * i
                if letter not in (0, axis):
                    phase += 1 if (letter - axis) % 3 == 1 else -1
            if phase % 4 == 1:  # the string anticommutes with P, and -i P times it is a string with the sign +
                local.append((string, other))
        offsets, bases = _offsets(self.qubits), _bases(self.qubits, self.num_qubits)
        pairs: np.ndarray = offsets[np.array(local)][:, None, :] + bases[None, :, None]
        return pairs.reshape(-1, 2)

    def needs(self, needed: np.ndarray) -> np.ndarray:
        pairs, before = self.pairs(), needed.copy()
        before[pairs] = needed[pairs].any(axis=1, keepdims=True)
        return before

    def acts(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        pairs = self.pairs()
        return pairs[needed[pairs].any(axis=1) & filled[pairs].any(axis=1)]

    def fills(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        behind = filled.copy()
        behind[self.acts(needed, filled)] = True
        return behind


@dataclass
class _Map:
    """Everything without angles."""

    qubits: tuple[int, ...]
    matrix: sparse.csr_matrix
    depth: int = 0
    columns: tuple[int, ...] = ()

    def is_idle(self, needed: np.ndarray, filled: np.ndarray) -> bool:
        part, kept = self.acts(needed, filled), np.flatnonzero(needed & filled)
        ones = np.array_equal(part.indices, kept) and bool((part.data == 1.0).all())
        return ones and np.array_equal(np.flatnonzero(np.diff(part.indptr)), kept)

    def needs(self, needed: np.ndarray) -> np.ndarray:
        before = np.zeros_like(needed)
        before[self.matrix[needed].indices] = True
        return before

    def acts(self, needed: np.ndarray, filled: np.ndarray) -> sparse.csr_matrix:
        kept = filled[self.matrix.indices] & np.repeat(needed, np.diff(self.matrix.indptr))
        ends = np.append(0, np.cumsum(kept))[self.matrix.indptr]
        return sparse.csr_matrix((self.matrix.data[kept], self.matrix.indices[kept], ends), shape=self.matrix.shape)

    def fills(self, needed: np.ndarray, filled: np.ndarray) -> np.ndarray:
        return np.diff(self.acts(needed, filled).indptr) > 0


_Step = _Run | _Pairing | _Map


def _items(operations: Iterable[NoisyOperation], num_qubits: int) -> list[_Run | _Pairing | Channel]:
    """The operations with runs of one qubit in one, and channels of the same qubits."""
    items: list[_Run | _Pairing | Channel] = []
    last: dict[int, int] = {}
    for operation in chain.from_iterable(map(_factored, operations)):
        qubits = operation.qubits
        places = {last.get(qubit, -1) for qubit in qubits}
        place = max(places)
        before = items[place] if len(places) == 1 and place >= 0 and set(items[place].qubits) == set(qubits) else None
        if isinstance(before, _Run):
            before.add(_factor(operation))
        elif isinstance(before, Channel) and isinstance(operation, Channel):
            items[place] = _product(operation, before)
        else:
            if len(qubits) == 1:
                items.append(_Run((qubits[0],), [_factor(operation)]))
            else:
                items.append(_Pairing(operation, num_qubits) if isinstance(operation, Rotation) else operation)
            last.update(dict.fromkeys(qubits, len(items) - 1))
    return items


def _factored(operation: NoisyOperation) -> tuple[NoisyOperation, ...]:
    """A channel of two qubits as one with one number a row and a channel of each qubit behind it, where that is possible.

    Depolarisation and relaxation of two qubits are, which is what devices' noise models have behind their gates.
    """
    if isinstance(operation, Rotation) or len(operation.qubits) != 2 or _has_one_a_row(operation.ptm):
        return (operation,)
    ptm = operation.ptm.reshape(4, 4, 4, 4)  # the second qubit's letter comes first
    first, second = ptm[0, :, 0, :], ptm[:, 0, :, 0]
    if max(np.linalg.cond(first), np.linalg.cond(second)) > _MOST_CONDITION:
        return (operation,)
    rest = np.kron(np.linalg.inv(second), np.linalg.inv(first)) @ operation.ptm
    rest[np.abs(rest) < _NEGLIGIBLE] = 0.0
    if not _has_one_a_row(rest):
        return (operation,)
    a, b = operation.qubits
    return Channel((a, b), rest), Channel((a,), first), Channel((b,), second)


def _has_one_a_row(ptm: np.ndarray) -> bool:
    return bool(((_cleaned(ptm) != 0).sum(axis=1) == 1).all())


def _factor(operation: NoisyOperation) -> tuple[int, int] | np.ndarray:
    if isinstance(operation, Rotation):
        return operation.column, _AXES[operation.paulis]
    return _cleaned(operation.ptm)


def _product(channel: Channel, before: Channel) -> Channel:
    """Two channels of the same qubits as one."""
    order = [channel.qubits.index(qubit) for qubit in before.qubits]
    places = _offsets(order)  # entry i of the one before is entry places[i] of the other
    return Channel(before.qubits, channel.ptm[np.ix_(places, places)] @ before.ptm)


def _fused(operations: Iterable[NoisyOperation], num_qubits: int) -> list[_Step]:
    """Few steps for many operations, in the order in which they act."""
    steps: list[_Step] = []
    last: dict[int, _Step] = {}
    for item in _items(operations, num_qubits):
        channel = item.constant if isinstance(item, _Run) else item if isinstance(item, Channel) else None
        if isinstance(item, _Run) and channel is not None and num_qubits > _MOST_QUBITS_FUSED_FREELY:
            channel = channel if _has_one_a_row(channel.ptm) else None
        matrix = None if channel is None else _on_all(channel, num_qubits)
        step: _Step | None = None if matrix is None else _joined_by(item.qubits, matrix, steps, last)
        if step is None:
            # A channel of one qubit would give the rows of a map of its own more numbers than it has itself.
            if isinstance(item, Channel) or (matrix is not None and _is_monomial(matrix)):
                step = _Map(item.qubits, matrix)
            else:
                step = item
            step.depth = 1 + max((last[qubit].depth for qubit in item.qubits if qubit in last), default=0)
            steps.append(step)
        last.update(dict.fromkeys(item.qubits, step))
    return sorted(steps, key=lambda step: step.depth)


def _joined_by(
    qubits: Sequence[int], matrix: sparse.csr_matrix, steps: list[_Step], last: dict[int, _Step]
) -> _Map | None:
    """The map that a channel has become a part of, if it has no more numbers for it than both together."""
    before = [last[qubit] for qubit in qubits if qubit in last]
    maps = [step for step in steps if isinstance(step, _Map)]
    possible = [one for one in maps if all(step is one or step.depth < one.depth for step in before)]
    for step in sorted(possible, key=lambda step: step.depth)[:_MAPS_TRIED]:
        size = len(matrix.indptr) - 1
        most = _MOST_NUMBERS_A_ROW if size <= 4**_MOST_QUBITS_FUSED_FREELY else 1
        if matrix.nnz * step.matrix.nnz > most * size**2:
            continue
        product = _after(matrix, step.matrix)
        if product.nnz <= matrix.nnz + step.matrix.nnz:
            step.matrix = product
            return step
    return None


# Plans


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Some of a plan's operations, on the entries that matter for them.

    Attributes:
        arrays: What :func:`density_kernels.forward` takes, as arrays.
        static: Their addresses.
        size: The number of entries of the largest state.
        begin, end: How many numbers hand a state on from the part before, and to the one behind.
        num_reads: How many numbers are read.
        columns_of: For each operation, the columns of its angles.
        work: How many entries the operations read.
        dtype: Of the entries.
    """

    arrays: tuple[np.ndarray, ...]
    static: np.ndarray
    size: int
    begin: int
    end: int
    num_reads: int
    columns_of: tuple[np.ndarray, ...]
    work: int
    dtype: np.dtype

    @property
    def bytes_of_slab(self) -> int:
        """How much memory eight states take."""
        return (self.size + 1) * WIDTH * self.dtype.itemsize

    @property
    def num_operations(self) -> int:
        """The number of operations."""
        return len(self.arrays[0])


class DensityPlan:
    """Operations on the entries that matter, and what is read; whole, or in parts.

    Args:
        operations: What is to be done.
        num_qubits: The number n of qubits.
        reads: Shape (K, 4**n): what is read.
        dtype: Of the entries.

    Attributes:
        columns_of: For each operation, the columns of its angles.
        entries: Shape (operations + 1,): how many entries of the state matter before each, and in the end.
    """

    def __init__(
        self, operations: Iterable[NoisyOperation], num_qubits: int, reads: sparse.csr_matrix, dtype: np.dtype
    ) -> None:
        self.dtype, self._reads = np.dtype(dtype), _without_zeros(reads)
        steps = _fused(operations, num_qubits)
        needed = np.zeros(4**num_qubits, bool)
        needed[reads.indices] = True
        needs = []  # as bits: there is one for each operation
        for step in reversed(steps):
            needs.append(np.packbits(needed))
            needed = step.needs(needed)
        filled = np.zeros(4**num_qubits, bool)
        filled[_beginning(num_qubits)] = True
        filled &= needed
        self._steps: list[_Step] = []
        self._needs, self._fills, entries = [np.packbits(needed)], [np.packbits(filled)], [filled.sum()]
        for step, bits in zip(steps, reversed(needs), strict=True):
            needed = self._bits(bits)
            if step.is_idle(needed, filled):
                continue
            filled = step.fills(needed, filled)
            self._steps.append(step)
            self._needs.append(bits)
            self._fills.append(np.packbits(filled))
            entries.append((filled & needed).sum())
        self.columns_of = [step.columns for step in self._steps]
        self.entries = np.array(entries)
        self.num_operations, self.num_reads = len(self._steps), reads.shape[0]
        self._parts: dict[tuple[int, int], Part] = {}

    def work(self, start: int, stop: int) -> int:
        """Roughly how many entries the operations from one to before another read, and to hand the state on to the first."""
        return 2 * int(self.entries[start : stop + 1].sum() + self.entries[start])

    @property
    def whole(self) -> Part:
        """All operations."""
        return self.part(0, self.num_operations)

    def part(self, start: int, stop: int) -> Part:
        """The operations from one to before another, and what is read if they are the last; made once."""
        if (start, stop) not in self._parts:
            self._parts[start, stop] = self._made(start, stop)
        return self._parts[start, stop]

    def _made(self, start: int, stop: int) -> Part:
        filled = self._matters(start)
        arrays, begin = _Arrays(self.dtype, len(filled)), np.zeros(0, np.uint32)
        maps = [k for k in range(start, stop) if isinstance(self._steps[k], _Map)]
        for number, (first, last) in enumerate(pairwise([start, *maps, stop])):
            room, behind = np.zeros_like(filled) if number else filled, filled
            for k in range(first, last):
                behind = self._steps[k].fills(self._bits(self._needs[k + 1]), behind)
                room = room | behind
            arrays.make_room(np.flatnonzero(room))
            if number == 0:
                begin = arrays.number[filled]
            for k in range(first, last):
                needed = self._bits(self._needs[k + 1])
                arrays.add(self._steps[k], self._steps[k].acts(needed, filled))
                filled = self._steps[k].fills(needed, filled)
        is_last = stop == self.num_operations
        end = begin[:0] if is_last else arrays.number[self._matters(stop)]
        return arrays.part(begin, end, (self._reads if is_last else self._reads[:0])[:, arrays.entries])

    def _bits(self, packed_bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(packed_bits, count=self._reads.shape[1]).astype(bool)

    def _matters(self, k: int) -> np.ndarray:
        return self._bits(self._needs[k] & self._fills[k])


def _beginning(num_qubits: int) -> np.ndarray:
    """The entries of all qubits in 0 that are 1."""
    strings = np.arange(2**num_qubits)
    return sum((3 * (strings >> qubit & 1) << 2 * qubit for qubit in range(num_qubits)), 0 * strings)


class _Arrays:
    """The arrays of a plan, as operations are added to it.

    Args:
        dtype: Of the entries.
        num_entries: How many there are, 4**n.

    Attributes:
        entries: Those that have room now, in their order.
        number: Shape (4**n,): where each entry has its room; behind all rooms if it has none.
    """

    def __init__(self, dtype: np.dtype, num_entries: int) -> None:
        self._dtype, self.size = dtype, 0
        self.entries, self.number = np.zeros(0, np.int64), np.zeros(num_entries, np.uint32)
        self._before = self.entries, self.number
        self._rows: list[dict[int, int]] = []
        self._factors: list[tuple[int, int]] = []
        self._constants: list[np.ndarray] = []
        self._kept: dict[str, list[np.ndarray]] = {"indices": [], "numbers": []}
        self._places: dict[tuple[str, bytes], int] = {}
        self._lengths = {"indices": 0, "numbers": 0}

    def make_room(self, entries: np.ndarray) -> None:
        """Gives these entries room, in this order, and takes it from all others; what is added next may be a map."""
        self._before = self.entries, self.number
        self.entries, self.number = entries, np.full(len(self.number), len(entries), np.uint32)
        self.number[entries] = np.arange(len(entries), dtype=np.uint32)
        self.size = max(self.size, len(entries))

    def add(self, step: _Step, acts: Any) -> None:
        """Adds a step, and what it acts on: numbers of entries, or for a map its matrix."""
        self._rows.append(self._row_of_map(acts) if isinstance(step, _Map) else self._row_of_rotations(step, acts))

    def _row_of_map(self, matrix: sparse.csr_matrix) -> dict[int, int]:
        """The row of a map from the entries that had room before to those that have it now."""
        entries, number = self._before
        rows = np.repeat(self.number, np.diff(matrix.indptr))
        columns, numbers = number[matrix.indices], matrix.data
        index, starts, weights = self._sparse(rows, columns, numbers, len(self.entries), len(entries))
        index_back, starts_back, weights_back = self._sparse(columns, rows, numbers, len(entries), len(self.entries))
        return {
            kernels.KIND: kernels.MAP, kernels.INDEX: index, kernels.STARTS: starts, kernels.WEIGHTS: weights,
            kernels.INDEX_BACK: index_back, kernels.STARTS_BACK: starts_back, kernels.WEIGHTS_BACK: weights_back,
            kernels.COUNT: len(self.entries), kernels.BEFORE: len(entries), kernels.AFTER: len(self.entries),
        }  # fmt: skip

    def _row_of_rotations(self, step: _Run | _Pairing, acts: np.ndarray) -> dict[int, int]:
        """The row of a step that leaves entries where they are."""
        first = len(self._factors)
        for factor in step.factors if isinstance(step, _Run) else [(step.rotation.column, 0)]:
            if isinstance(factor, tuple):
                self._factors.append(factor)
            else:
                self._factors.append((-1, 12 * len(self._constants)))
                self._constants.append(factor[1:].ravel())
        return {
            kernels.KIND: kernels.RUN if isinstance(step, _Run) else kernels.PAIRING,
            kernels.FACTORS: first, kernels.FACTORS_END: len(self._factors),
            kernels.INDEX: self._place("indices", self.number[acts].ravel()), kernels.COUNT: len(acts),
            kernels.BEFORE: len(self.entries), kernels.AFTER: len(self.entries),
        }  # fmt: skip

    def _sparse(
        self, rows: np.ndarray, columns: np.ndarray, numbers: np.ndarray, num_rows: int, num_columns: int
    ) -> tuple[int, int, int]:
        """Where a matrix's columns, its rows' beginnings and its numbers are."""
        per_row = np.bincount(rows, minlength=num_rows)
        if per_row.max(initial=0) <= 1:
            sources, weights = np.full(num_rows, num_columns), np.zeros(num_rows)
            sources[rows], weights[rows] = columns, numbers
            return self._place("indices", sources), kernels.ONE_A_ROW, self._place("numbers", weights)
        order = np.argsort(rows, kind="stable")
        starts = self._place("indices", np.append(0, np.cumsum(per_row)))
        return self._place("indices", columns[order]), starts, self._place("numbers", numbers[order])

    def _place(self, kind: str, values: np.ndarray) -> int:
        """Where the values are; once, if they have come before."""
        values = values.astype(np.uint32 if kind == "indices" else self._dtype)
        key = kind, blake2b(values.tobytes(), digest_size=16).digest()
        if key not in self._places:
            self._places[key] = self._lengths[kind]
            self._lengths[kind] += len(values)
            self._kept[kind].append(values)
        return self._places[key]

    def part(self, begin: np.ndarray, end: np.ndarray, reads: sparse.csr_matrix) -> Part:
        ops = np.zeros((len(self._rows), kernels.NUM_FIELDS), np.int64)
        for k, row in enumerate(self._rows):
            for name, value in row.items():
                ops[k, name] = value
        factors = np.array(self._factors, np.int64).reshape(-1, kernels.FACTOR_FIELDS)
        back = reads.T.tocsr()
        read_entries = np.flatnonzero(np.diff(back.indptr))
        arrays = (
            ops,
            factors,
            _joined(self._constants, self._dtype),
            _joined(self._kept["indices"], np.dtype(np.uint32)),
            _joined(self._kept["numbers"], self._dtype),
            begin.astype(np.uint32),
            end.astype(np.uint32),
            reads.indptr.astype(np.int64),
            reads.indices.astype(np.uint32),
            reads.data.astype(self._dtype),
            np.append(back.indptr[read_entries], back.indptr[-1]).astype(np.int64),
            np.concatenate([read_entries, back.indices]).astype(np.uint32),
            back.data.astype(self._dtype),
        )
        counts = ops[:, kernels.COUNT] * np.array([4, 2, 2])[ops[:, kernels.KIND]]
        columns_of = [factors[row[kernels.FACTORS] : row[kernels.FACTORS_END], kernels.COLUMN] for row in ops]
        return Part(
            arrays=arrays,
            static=packed(arrays),
            size=self.size,
            begin=len(begin),
            end=len(end),
            num_reads=reads.shape[0],
            columns_of=tuple(columns[columns >= 0] for columns in columns_of),
            work=int(counts.sum()),
            dtype=self._dtype,
        )


def _joined(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
