"""Simulates wide circuits with noise by their light cones: values, gradients and shots of a batch.

Each measured Pauli string is taken back through the circuit, as far as it is known which letters it can have on each qubit.
An operation that leaves all strings of such letters as they are has no influence, and is left out. With what is left, on the
few qubits that it acts on, the string is simulated; strings together where that is less work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..program.channels import Channel, NoisyCircuit, NoisyOperation, Rotation
from ..program.letters import IDENTITY, before_map, before_rotation
from ..program.readout import MeasurementGroup, PauliGroup, Readout
from .assembly import Assembly, Part, variances_of_products
from .cone_plan import connected, merged, part_of_group, with_products
from .density_engine import DensitySimulator, most_qubits

__all__ = ["NoisyConeSimulator", "simulator_of"]

_LEAST_QUBITS = 8
_GAIN = 0.25  # a split is worth its calls where it has at most this share of the work
_MOST_QUBITS_OF_OUTCOMES = 8  # beyond, variances from products of strings are less work
_MEASURED = IDENTITY | 1 << 3  # Z or nothing


def simulator_of(
    circuits: Sequence[NoisyCircuit], readout: Readout, dtype: Any, *, joint_shots: bool = True
) -> DensitySimulator | NoisyConeSimulator:
    """The simulator that is the least work: of whole circuits, or of their light cones.

    Args:
        circuits: One for each measurement group of the readout.
        readout: What is read.
        dtype: Of the entries of states: float64 or float32.
        joint_shots: As for :class:`NoisyConeSimulator`.

    Raises:
        MemoryError: If neither fits into this machine's memory.
    """
    if max((circuit.num_qubits for circuit in circuits), default=0) >= _LEAST_QUBITS:
        fragments = [
            fragment
            for circuit, group in zip(circuits, readout.groups, strict=True)
            for fragment in _fragments(circuit, group, joint=False)
        ]
        whole = sum(_work(range(circuit.num_qubits), circuit.operations) for circuit in circuits)
        if sum(fragment.work for fragment in fragments) <= _GAIN * whole:
            return NoisyConeSimulator(circuits, readout, fragments, dtype, joint_shots=joint_shots)
    return DensitySimulator(circuits, readout, dtype)


def _work(qubits: Collection[int], operations: Collection[Any]) -> float:
    return (len(operations) + 2) * 4.0 ** min(len(qubits), 500)


# Light cones


@dataclass(frozen=True)
class _Cone:
    """The operations that something depends on, by number, and the qubits that those act on or that are measured."""

    operations: frozenset[int]
    qubits: frozenset[int]


def _cone(circuit: NoisyCircuit, bits: Collection[int]) -> _Cone:
    """What the joint outcomes of some measured bits depend on."""
    letters = {circuit.measured[bit]: _MEASURED for bit in bits}
    kept, qubits = set[int](), set(letters)
    for number in reversed(range(len(circuit.operations))):
        operation = circuit.operations[number]
        if letters.keys().isdisjoint(operation.qubits):
            continue
        now = tuple(letters.get(qubit, IDENTITY) for qubit in operation.qubits)
        before = _letters_before(operation, now)
        if before is not None:
            kept.add(number)
            qubits.update(operation.qubits)
            letters.update((q, one) for q, one in zip(operation.qubits, before, strict=True) if one != IDENTITY)
    return _Cone(frozenset(kept), frozenset(qubits))


def _letters_before(operation: NoisyOperation, behind: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which letters strings can have before an operation, on its qubits; None if it leaves them all as they are."""
    if isinstance(operation, Rotation):
        return before_rotation(["IXYZ".index(pauli) for pauli in operation.paulis], behind)
    return before_map(operation.ptm, behind)


# Fragments


@dataclass(frozen=True, eq=False, kw_only=True)
class _Fragment:
    """A part of a measurement, and what it depends on.

    Attributes:
        circuit: Of the whole measurement.
        cone: What of it matters.
        bits: Which of its measured bits are read.
        group: What they contribute to outputs.
        outputs: Which outputs those are.
    """

    circuit: NoisyCircuit
    cone: _Cone
    bits: tuple[int, ...]
    group: MeasurementGroup
    outputs: tuple[int, ...]

    @property
    def work(self) -> float:
        """How long its simulation takes, in units of an operation on one entry of a state."""
        return _work(self.cone.qubits, self.cone.operations)

    def alone(self) -> tuple[NoisyCircuit, np.ndarray]:
        """A circuit of its own, and which of the program's angles that has, shape (A',)."""
        place = {qubit: i for i, qubit in enumerate(sorted(self.cone.qubits))}
        columns: dict[int, int] = {}
        operations: list[NoisyOperation] = []
        for number in sorted(self.cone.operations):
            operation = self.circuit.operations[number]
            qubits = tuple(place[qubit] for qubit in operation.qubits)
            if isinstance(operation, Rotation):
                column = columns.setdefault(operation.column, len(columns))
                operations.append(Rotation(qubits, operation.paulis, column))
            else:
                operations.append(Channel(qubits, operation.ptm))
        slopes = self.circuit.slopes[:, list(columns)]
        # In the order of the rotations, so that fragments which are alike are found to be.
        angles = np.array(list(dict.fromkeys(np.nonzero(slopes.T)[1].tolist())), np.int64)
        small = NoisyCircuit(
            len(place),
            tuple(operations),
            np.ascontiguousarray(slopes[angles]),
            self.circuit.offsets[list(columns)],
            measured=tuple(place[self.circuit.measured[bit]] for bit in self.bits),
            readout=tuple(self.circuit.readout[bit] for bit in self.bits),
        )
        return small, angles


def _fragments(circuit: NoisyCircuit, group: MeasurementGroup, *, joint: bool) -> list[_Fragment]:
    """A measurement in parts.

    Args:
        circuit: Of the measurement.
        group: What it contributes to outputs.
        joint: Whether bits whose light cones share a qubit stay together; else only those that are less work so.
    """
    if not isinstance(group, PauliGroup):
        bits = tuple(range(len(circuit.measured)))
        outputs = tuple(range(len(group.scales)))
        return [_Fragment(circuit=circuit, cone=_cone(circuit, bits), bits=bits, group=group, outputs=outputs)]
    cones = [_cone(circuit, np.flatnonzero(support).tolist()) for support in group.supports]
    if joint:
        members = connected([one.qubits for one in cones])
    else:
        members = merged([(one.qubits, one.operations) for one in cones], _work)
    fragments = []
    for terms in members:
        bits = tuple(np.flatnonzero(group.supports[sorted(terms)].any(axis=0)).tolist())
        part, of = part_of_group(group, sorted(terms))
        fragments.append(
            _Fragment(circuit=circuit, cone=_cone(circuit, bits), bits=bits, group=part, outputs=tuple(of))
        )
    return fragments


def _assembled(fragments: Iterable[_Fragment], constants: np.ndarray, dtype: Any) -> Assembly:
    alike: dict[Hashable, list[tuple[_Fragment, NoisyCircuit, np.ndarray]]] = {}
    for fragment in fragments:
        circuit, columns = fragment.alone()
        alike.setdefault(_key(fragment, circuit), []).append((fragment, circuit, columns))
    parts = []
    for members in alike.values():
        fragment, circuit, _ = members[0]
        own = Readout(len(fragment.outputs), (fragment.group,), np.zeros(len(fragment.outputs)))
        parts.append(
            Part(
                np.array([columns for _, _, columns in members], np.int64).reshape(len(members), -1),
                np.array([one.outputs for one, _, _ in members], np.int64).reshape(len(members), -1),
                DensitySimulator([circuit], own, dtype),
            )
        )
    return Assembly(parts, constants)


def _key(fragment: _Fragment, circuit: NoisyCircuit) -> Hashable:
    """The same for fragments that one circuit can stand for."""
    operations = tuple(
        (one.qubits, (one.paulis, one.column) if isinstance(one, Rotation) else id(one.ptm))
        for one in circuit.operations
    )
    readout = tuple(None if one is None else one.tobytes() for one in circuit.readout)
    group: Hashable = id(fragment.group)
    if isinstance(fragment.group, PauliGroup):
        group = fragment.group.supports.tobytes(), fragment.group.coefficients.tobytes()
    return operations, circuit.slopes.tobytes(), circuit.offsets.tobytes(), circuit.measured, readout, group


class NoisyConeSimulator:
    """Simulates one program with noise by the light cones of what it reads.

    Its methods are those of :class:`qiskit_torch_bridge.simulator.density_engine.DensitySimulator`.

    Args:
        circuits: One for each measurement group of the readout.
        readout: What is read.
        fragments: What exact values come from.
        dtype: Of the entries of states: float64 or float32.
        joint_shots: Whether shots of bits whose light cones share a qubit are drawn together. Otherwise each part of a
            measurement is drawn by itself: values and standard errors of each Pauli string are right, and there is no
            covariance between parts.

    Raises:
        MemoryError: If a light cone is too wide for this machine's memory.
    """

    measures_jointly = False

    def __init__(
        self,
        circuits: Sequence[NoisyCircuit],
        readout: Readout,
        fragments: Sequence[_Fragment],
        dtype: Any,
        *,
        joint_shots: bool,
    ) -> None:
        self._circuits, self._readout, self._dtype, self._joint_shots = circuits, readout, dtype, joint_shots
        self._exact = _assembled(fragments, readout.constants, dtype)

    @property
    def description(self) -> str:
        """What is simulated, in words."""
        widest = max(circuit.num_qubits for circuit in self._circuits)
        return self._exact.describe(
            f"Noisy light cones in place of a density matrix of {widest} qubits", lambda simulator: simulator.num_qubits
        )

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, list[Any]]:
        """Exact values, shape (N, M)."""
        return self._exact.values(angles, keep=keep)

    def pullback(self, angles: np.ndarray, upstream: np.ndarray, states: Any, selected: np.ndarray) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected."""
        return self._exact.pullback(angles, upstream, states, selected)

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Values from ``shots`` shots of each measurement, their squared standard errors, and counts.

        Raises:
            MemoryError: If what must be drawn together does not fit into this machine's memory.
        """
        return self._drawn.sampled(angles, shots, seed)

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Sequence[Any] | None,
        upstream: np.ndarray,
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements."""
        if shots is None and self._by_products:
            parts = [variances_of_products(*one, angles, upstream) for one in self._products]
            return np.sum(parts, axis=0)
        return self._drawn.variances_of_one_shot(angles, shots, seed, kept, upstream)

    def _parts(self, split: Callable[[NoisyCircuit, MeasurementGroup], list[_Fragment]]) -> list[_Fragment]:
        pairs = zip(self._circuits, self._readout.groups, strict=True)
        return [fragment for circuit, group in pairs for fragment in split(circuit, group)]

    @cached_property
    def _shot_fragments(self) -> list[_Fragment]:
        return self._parts(lambda circuit, group: _fragments(circuit, group, joint=self._joint_shots))

    @property
    def _widest(self) -> int:
        return max((len(fragment.cone.qubits) for fragment in self._shot_fragments), default=0)

    @cached_property
    def _drawn(self) -> Assembly:
        if self._widest > most_qubits():
            raise MemoryError(
                "Shots of outputs whose light cones share qubits are drawn together, which takes a state of "
                f"{self._widest} qubits with noise, and this machine's memory holds {most_qubits()}; use "
                "DensityMatrixBackend(joint_shots=False), whose draws are right for each Pauli string and have no "
                "covariance between strings of different cones, or AerBackend, or shots=None."
            )
        return _assembled(self._shot_fragments, self._readout.constants, self._dtype)

    @cached_property
    def _by_products(self) -> bool:
        expectation = all(isinstance(group, PauliGroup) for group in self._readout.groups)
        return expectation and self._joint_shots and self._widest > _MOST_QUBITS_OF_OUTCOMES

    @cached_property
    def _products(self) -> list[tuple[Assembly, np.ndarray, PauliGroup]]:
        assemblies = []
        for circuit, group in zip(self._circuits, self._readout.groups, strict=True):
            assert isinstance(group, PauliGroup)
            cones = [_cone(circuit, np.flatnonzero(support).tolist()) for support in group.supports]
            products, pairs = with_products(group, [one.qubits for one in cones])
            fragments = _fragments(circuit, products, joint=False)
            assemblies.append((_assembled(fragments, np.zeros(len(products.supports)), self._dtype), pairs, group))
        return assemblies
