"""How a circuit is simulated: passes over blocks of amplitudes, and in each pass few operations.

* **Passes.** A state that is larger than a block (:data:`BLOCK_QUBITS`) is worked on in blocks that fit the
  processor's cache. A pass takes as many gates as act on the qubits of one block, in any order that the gates' own
  dependencies allow; gates that need other qubits wait for the next pass. So a layer of gates on twenty qubits reads
  the state two or three times, not twenty.
* **Fusion.** Within a pass, one-qubit gates that follow each other on a qubit become one operation, whatever number of
  angles they have; signed permutations (CNOT, CZ, SWAP ...) that follow each other become one; so do diagonal
  gates on the same two qubits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, reduce

import numpy as np

from ..program.readout import MeasurementGroup, OutcomeGroup
from . import kernels, pauli_kernels, whole_kernels
from .lowering import (
    DenseGate,
    DiagonalGate,
    Factor,
    LoweredCircuit,
    LoweredGate,
    MonomialGate,
    OneQubitGate,
    Term,
    basis_change,
)

__all__ = ["BLOCK_QUBITS", "Measurement", "Observables", "Pass", "Plan", "plan_of"]

BLOCK_QUBITS = 13
_SEGMENT_QUBITS = 4  # a block's amplitudes lie in segments of at least 2**4, whole cache lines of memory
_FACTORS = tuple[Factor, ...]


_NO_NUMBERS = np.zeros(0)
_NO_OBSERVABLES = (*(np.zeros(0, np.int64) for _ in range(6)), _NO_NUMBERS)
NO_MAP = (_NO_NUMBERS,) * 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """Operations on the qubits of a block, as :func:`kernels.forward` takes them.

    Attributes:
        arrays: Its first seven arguments.
        segments: Where a block's segments of amplitudes are; empty where states are small.
        outer_bits: The qubits that number the blocks.
        num_qubits: The number of qubits of a block.
        columns: The angles' columns that the operations use, ascending.
    """

    arrays: tuple[np.ndarray, ...]
    segments: np.ndarray
    outer_bits: np.ndarray
    num_qubits: int
    columns: np.ndarray

    @cached_property
    def is_complex(self) -> bool:
        """Whether real amplitudes may become complex ones."""
        operations, *_, dense = self.arrays
        kinds = operations[:, kernels.KIND]
        if np.isin(kinds, (kernels.COMPLEX, kernels.DIAGONAL)).any():
            return True
        at = 0
        for width in operations[kinds == kernels.DENSE, kernels.WIDTH_OF_DENSE].tolist():
            size = 4**width
            if dense[at + size : at + 2 * size].any():
                return True
            at += 2 * size
        return False

    @cached_property
    def num_operations(self) -> int:
        """The number of operations."""
        return len(self.arrays[0])

    @cached_property
    def static(self) -> np.ndarray:
        """What :func:`whole_kernels.forward` takes to apply the operations and read nothing."""
        return whole_kernels.packed([*self.arrays, *_NO_OBSERVABLES, _NO_NUMBERS, *NO_MAP])


@dataclass(frozen=True, eq=False)
class Observables:
    """Observables as :func:`pauli_kernels.expectations` takes them.

    Attributes:
        arrays: Its first seven arguments.
        num_qubits: The number of qubits of a block.
        is_complex: Whether a value depends on phases between amplitudes that a real state has not.
    """

    arrays: tuple[np.ndarray, ...]
    num_qubits: int
    is_complex: bool


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement of some of a state's qubits.

    Attributes:
        group: What the program says of it.
        qubits: Shape (k,): where its qubits are in the state.
        basis_changes: What turns its bases to Z.
        output_of: Shape (2**k,): the output that each outcome counts towards; None where each contributes to several.
    """

    group: MeasurementGroup
    qubits: np.ndarray
    basis_changes: tuple[Pass, ...]
    output_of: np.ndarray | None

    @cached_property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores of all outcomes, shape (2**k, M), and their squares, where they come as one block."""
        ((_, scores),) = self.group.score_blocks()
        return scores, scores**2


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A circuit as it is simulated.

    Attributes:
        num_qubits: The number n of qubits of a state.
        whole: Whether a state fits into a block.
        planes: 1 where all amplitudes are real, else 2.
        passes: What takes all qubits in 0 to the final state.
        observables: What is read from it; None for probabilities.
        measurements: What takes shots of it.
    """

    num_qubits: int
    whole: bool
    planes: int
    passes: tuple[Pass, ...]
    observables: Observables | None
    measurements: tuple[Measurement, ...]

    def static(self, constants: np.ndarray, angle_map: Sequence[np.ndarray] = NO_MAP) -> np.ndarray:
        """What :func:`whole_kernels.forward` and the others take, where :attr:`whole`; the arrays must outlive it.

        Args:
            constants: Shape (M,): what the outputs begin with.
            angle_map: How the angles follow from features and weights.
        """
        if self.observables is None:
            return whole_kernels.packed([*self.passes[0].arrays, *_NO_OBSERVABLES, _NO_NUMBERS, *angle_map])
        return whole_kernels.packed([*self.passes[0].arrays, *self.observables.arrays, constants, *angle_map])


def plan_of(circuit: LoweredCircuit, dtype: np.dtype) -> Plan:
    """Plans a circuit; ``dtype`` is that of a plane of the state."""
    n = circuit.num_qubits
    observables = None if circuit.terms is None else _observables(circuit.terms, n)
    passes = _passes(circuit.gates, n, dtype) or (_compiled(_block(n), [], n, dtype),)
    is_complex = any(one.is_complex for one in passes) or (observables is not None and observables.is_complex)
    return Plan(
        num_qubits=n,
        whole=n <= BLOCK_QUBITS,
        planes=2 if is_complex else 1,
        passes=passes,
        observables=observables,
        measurements=tuple(_measurement(group, qubits, n, dtype) for group, qubits in circuit.measurements),
    )


def _measurement(group: MeasurementGroup, qubits: Sequence[int], n: int, dtype: np.dtype) -> Measurement:
    gates = [gate for qubit, basis in zip(qubits, group.bases, strict=True) for gate in basis_change(qubit, basis)]
    # Copied, because unpickled arrays may be read-only, and kernels are compiled anew for those.
    output_of = group.outputs.copy() if isinstance(group, OutcomeGroup) else None
    return Measurement(group, np.array(qubits, np.int64), _passes(gates, n, dtype), output_of)


def _passes(gates: Iterable[LoweredGate], n: int, dtype: np.dtype) -> tuple[Pass, ...]:
    return tuple(_compiled(block, part, n, dtype) for block, part in _schedule(gates, n))


def _block(n: int) -> list[int]:
    return list(range(min(n, BLOCK_QUBITS)))


def _schedule(gates: Iterable[LoweredGate], n: int) -> list[tuple[list[int], list[LoweredGate]]]:
    """Gates in the passes that they run in, with the qubits of each pass's blocks, ascending."""
    waiting = list(gates)
    if n <= BLOCK_QUBITS:
        return [(_block(n), waiting)] if waiting else []
    passes = []
    while waiting:
        inside, blocked = set(range(_SEGMENT_QUBITS)), set[int]()
        now: list[LoweredGate] = []
        later: list[LoweredGate] = []
        for gate in waiting:
            fits = not now or len(inside.union(gate.qubits)) <= BLOCK_QUBITS
            if fits and blocked.isdisjoint(gate.qubits):
                inside.update(gate.qubits)
                now.append(gate)
            else:
                blocked.update(gate.qubits)
                later.append(gate)
        spare = (qubit for qubit in range(n) if qubit not in inside)
        while len(inside) < BLOCK_QUBITS:
            inside.add(next(spare))
        passes.append((sorted(inside), now))
        waiting = later
    return passes


# Fusion


@dataclass
class _Fused:
    """An operation in the making.

    ``depth`` orders operations: each is deeper than those before it on its qubits.
    """

    depth: int
    gates: list[LoweredGate] = field(default_factory=list)


def _fuse(gates: Sequence[LoweredGate]) -> list[_Fused]:
    last: dict[int, _Fused] = {}
    operations: list[_Fused] = []
    for gate in gates:
        before = {id(last[qubit]): last[qubit] for qubit in gate.qubits if qubit in last}
        depth = max((operation.depth for operation in before.values()), default=0)
        target = _to_join(gate, [o for o in before.values() if o.depth == depth], depth, operations)
        if target is None:
            target = _Fused(depth + 1)
            operations.append(target)
        target.gates.append(gate)
        for qubit in gate.qubits:
            last[qubit] = target
    return sorted(operations, key=lambda operation: operation.depth)


def _to_join(gate: LoweredGate, last: list[_Fused], depth: int, operations: list[_Fused]) -> _Fused | None:
    """The operation that the gate can become a part of. ``last``: those right before it, all of the given depth."""
    alone = last[0] if len(last) == 1 else None
    if isinstance(gate, MonomialGate):
        if alone is not None and isinstance(alone.gates[0], MonomialGate):
            return alone
        return next((o for o in operations if o.depth > depth and isinstance(o.gates[0], MonomialGate)), None)
    if alone is None or type(alone.gates[0]) is not type(gate) or isinstance(gate, DenseGate):
        return None
    return alone if set(alone.gates[0].qubits) == set(gate.qubits) else None


# Arrays


def _compiled(block: list[int], gates: Sequence[LoweredGate], n: int, dtype: np.dtype) -> Pass:
    place = {qubit: i for i, qubit in enumerate(block)}
    operations = _Operations(len(block), dtype)
    for fused in _fuse(gates):
        operations.add(fused.gates, place)
    outer = [qubit for qubit in range(n) if qubit not in place]
    segments = np.zeros(int(n > BLOCK_QUBITS), np.int64)  # a wide gate's block may be all of a large state: one segment
    if outer:
        length = next(i for i, qubit in enumerate([*block, -1]) if i != qubit)
        segments = _deposited(np.arange(2 ** (len(block) - length)), block[length:])
    arrays = operations.arrays()
    return Pass(
        arrays=arrays,
        segments=segments,
        outer_bits=np.array(outer, dtype=np.int64),
        num_qubits=len(block),
        columns=np.unique(arrays[1][arrays[1] >= 0]),
    )


def _deposited(numbers: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Numbers with bit i moved to ``bits[i]``."""
    return sum((((numbers >> i) & 1) << bit for i, bit in enumerate(bits)), start=np.zeros_like(numbers))


def _extracted(numbers: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """The given bits of numbers, ``bits[i]`` as bit i."""
    return sum((((numbers >> bit) & 1) << i for i, bit in enumerate(bits)), start=np.zeros_like(numbers))


class _Operations:
    """The operations of a pass, as they are added to it."""

    def __init__(self, num_qubits: int, dtype: np.dtype) -> None:
        self.num_qubits = num_qubits
        self.dtype = dtype
        self.rows: list[dict[int, int]] = []
        self.factors: list[Factor] = []
        self.monomials: dict[bytes, int] = {}
        self.permutations: list[np.ndarray] = []
        self.signs: list[np.ndarray] = []
        self.dense_qubits: list[int] = []
        self.dense: list[np.ndarray] = []

    def add(self, gates: Sequence[LoweredGate], place: dict[int, int]) -> None:
        row: dict[int, int] = {}
        first = gates[0]
        qubits = [place[qubit] for qubit in first.qubits]
        if isinstance(first, OneQubitGate | DiagonalGate):
            factors = tuple(
                gate.factor if gate.qubits == first.qubits else _exchanged(gate.factor)
                for gate in gates
                if isinstance(gate, OneQubitGate | DiagonalGate)
            )
            row[kernels.FACTORS] = len(self.factors)
            self.factors += factors
            row[kernels.FACTORS_END] = len(self.factors)
            row[kernels.FIRST] = qubits[0]
            if isinstance(first, DiagonalGate):
                row |= {kernels.KIND: kernels.DIAGONAL, kernels.SECOND: qubits[1]}
            else:
                flips = _real_type(factors)
                row[kernels.KIND] = kernels.COMPLEX if flips is None else kernels.REAL
                row[kernels.FLAGS] = kernels.ODD if flips else 0
        elif isinstance(first, MonomialGate):
            row |= {kernels.KIND: kernels.MONOMIAL} | self._monomial(gates, place)
        else:
            row[kernels.KIND] = kernels.DENSE
            row[kernels.FIRST], row[kernels.WIDTH_OF_DENSE] = len(self.dense_qubits), len(qubits)
            row[kernels.OFFSET] = sum(map(len, self.dense))
            self.dense_qubits += qubits
            self.dense.append(np.stack([first.matrix.real, first.matrix.imag]).ravel())
        self.rows.append(row)

    def _monomial(self, gates: Sequence[LoweredGate], place: dict[int, int]) -> dict[int, int]:
        basis = np.arange(2**self.num_qubits)
        permutation, signs = basis, np.ones(len(basis))
        for gate in gates:
            assert isinstance(gate, MonomialGate)
            qubits = [place[qubit] for qubit in gate.qubits]
            outcome = _extracted(basis, qubits)
            mask = sum(1 << qubit for qubit in qubits)
            source = (basis & ~mask) | _deposited(gate.permutation[outcome], qubits)
            permutation, signs = permutation[source], signs[source] * gate.signs[outcome]
        permuted, signed = bool((permutation != basis).any()), bool((signs != 1).any())
        key = permutation.tobytes() + signs.tobytes()
        if key not in self.monomials:
            self.monomials[key] = sum(map(len, self.permutations))
            self.permutations.append(permutation)
            self.signs.append(signs)
        flags = kernels.HAS_PERMUTATION * permuted | kernels.HAS_SIGNS * signed
        return {kernels.OFFSET: self.monomials[key], kernels.FLAGS: flags}

    def arrays(self) -> tuple[np.ndarray, ...]:
        operations = np.zeros((len(self.rows), kernels.NUM_FIELDS), np.int64)
        for k, row in enumerate(self.rows):
            for name, value in row.items():
                operations[k, name] = value
        return (
            operations,
            np.array([factor.column for factor in self.factors], np.int64),
            np.array([factor.numbers for factor in self.factors], np.float64).reshape(-1, 4),
            np.concatenate([np.zeros(0, np.int64), *self.permutations]).astype(np.uint32),
            np.concatenate([np.zeros(0), *self.signs]).astype(self.dtype),
            np.array(self.dense_qubits, np.int64),
            np.concatenate([np.zeros(0), *self.dense]),
        )


def _exchanged(factor: Factor) -> Factor:
    """A diagonal's factor with its two qubits exchanged."""
    a, b, c, d = factor.numbers
    return Factor(factor.column, (a, c, b, d))


def _real_type(factors: _FACTORS) -> bool | None:
    """None unless the product is real up to a phase; then whether that phase is an i."""
    odd = False
    for factor in factors:
        w, x, y, z = factor.numbers
        if x == 0 and z == 0:  # rotations about y, and their constants
            continue
        if factor.column < 0 and w == 0 and y == 0:  # half turns about an axis in the plane of x and z
            odd = not odd
        else:
            return None
    return odd


# Observables


def _observables(terms: Iterable[Term], n: int) -> Observables:
    families = _families(terms)
    m = min(n, BLOCK_QUBITS)
    local = 2**m - 1
    rows: list[list[int]] = []
    outcomes: list[np.ndarray] = []
    local_masks: list[int] = []
    block_masks: list[int] = []
    entries = [0]
    outputs: list[int] = []
    coefficients: list[float] = []
    for (flip, odd), phases in families.items():
        seen = reduce(int.__or__, phases, 0) & local
        bits = [bit for bit in range(m) if (seen >> bit) & 1]
        row = {
            pauli_kernels.FLIP: flip,
            pauli_kernels.ODD: int(odd),
            pauli_kernels.BITS: len(bits),
            pauli_kernels.OUTCOMES: len(outcomes) << m,
            pauli_kernels.TERMS: len(local_masks),
            pauli_kernels.TERMS_END: len(local_masks) + len(phases),
        }
        rows.append([row[name] for name in range(pauli_kernels.FAMILY_FIELDS)])
        outcomes.append(_outcomes(m, tuple(bits)))
        for z, shares in phases.items():
            local_masks.append(sum(((z >> bit) & 1) << i for i, bit in enumerate(bits)))
            block_masks.append(z >> m)
            outputs += shares.keys()
            coefficients += shares.values()
            entries.append(len(outputs))
    arrays = (
        np.array(rows, np.int64).reshape(-1, pauli_kernels.FAMILY_FIELDS),
        np.concatenate([np.zeros(0, np.int32), *outcomes]),
        np.array(local_masks, np.int64),
        np.array(block_masks, np.int64),
        np.array(entries, np.int64),
        np.array(outputs, np.int64),
        np.array(coefficients, np.float64),
    )
    return Observables(arrays, m, any(odd for _, odd in families))


@lru_cache(maxsize=64)
def _outcomes(m: int, bits: tuple[int, ...]) -> np.ndarray:
    return _extracted(np.arange(2**m, dtype=np.int32), bits)


def _families(terms: Iterable[Term]) -> dict[tuple[int, bool], dict[int, dict[int, float]]]:
    """By (flip mask, whether the number of Y's is odd): by z mask: each output's coefficient, signs of Y included."""
    families: dict[tuple[int, bool], dict[int, dict[int, float]]] = {}
    for term in terms:
        num_y = (term.flip & term.phase).bit_count()
        shares = families.setdefault((term.flip, bool(num_y % 2)), {}).setdefault(term.phase, {})
        shares[term.output] = shares.get(term.output, 0.0) + term.coefficient * (-1) ** (num_y // 2)
    return families
