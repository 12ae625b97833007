"""How a wide circuit is split: small circuits, one for each light cone, and many cones for which one circuit stands.

* **Terms.** Each Pauli string that is read has a light cone (:mod:`qiskit_torch_bridge.program.light_cones`). Strings are
  simulated together where the cone of both is less work than their own two.
* **Shapes.** In most circuits cones look alike but for where they stand. Cones with the same gates and the same strings on
  their own qubits are one circuit, whose batch has a row for each of them.
* **Shots.** Qubits that are measured together are drawn together where their light cones share a qubit, and by themselves
  where they do not: their outcomes are then independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..program.light_cones import CircuitGates, Cone, PauliString, work
from ..program.readout import MeasurementGroup, PauliGroup, Readout
from .lowering import LoweredCircuit, LoweredGate, Term, gates_of

__all__ = [
    "LEAST_QUBITS",
    "Fragment",
    "Shape",
    "String",
    "connected",
    "exact_fragments",
    "merged",
    "part_of_group",
    "pays",
    "products_of",
    "shapes_of",
    "shot_fragments",
    "strings_of",
    "with_products",
]

LEAST_QUBITS = 10
"""Smaller circuits are simulated as they are: their cones have little to win."""

_LETTERS = {"X": 1, "Y": 2, "Z": 3}
_GAIN = 0.5  # a split is worth its calls where it has at most this share of the work
_WORK_OF_A_SHAPE = 2.0**14  # its calls, in units of a gate on one amplitude


@dataclass(frozen=True, eq=False)
class String:
    """A Pauli string, and what outputs get of its expectation value.

    Attributes:
        letters: What it is, on the circuit's qubits.
        shares: Outputs and coefficients.
    """

    letters: PauliString
    shares: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        letters = [f"{'IXYZ'[self.letters[qubit]]}_{qubit}" for qubit in sorted(self.letters)]
        return " ".join(letters if len(letters) < 8 else [*letters[:3], "...", letters[-1]])


@dataclass(frozen=True, eq=False, kw_only=True)
class Fragment:
    """What is simulated together.

    Attributes:
        cone: What it depends on.
        qubits: What is simulated: the cone's qubits, and those that are measured; at least one.
        strings: What is read exactly, in the order of the cone's own strings; or nothing.
        group: What is measured with shots, or nothing.
        outputs: What its values count towards; of ``group`` all outputs that it has, in its order.
    """

    cone: Cone
    qubits: tuple[int, ...]
    strings: tuple[String, ...]
    group: MeasurementGroup | None
    outputs: tuple[int, ...]

    @classmethod
    def exact(cls, cone: Cone, strings: Sequence[String]) -> Fragment:
        """Of strings that are read exactly."""
        outputs = sorted({output for string in strings for output, _ in string.shares})
        qubits = cone.qubits or (0,)
        return cls(cone=cone, qubits=qubits, strings=tuple(strings), group=None, outputs=tuple(outputs))

    @property
    def work(self) -> float:
        """How long its simulation takes, in units of a gate on one amplitude."""
        return work(len(self.qubits), len(self.cone.gates))


def strings_of(groups: Iterable[MeasurementGroup]) -> list[String]:
    """The Pauli strings of expectation values."""
    strings = []
    for group in groups:
        assert isinstance(group, PauliGroup)
        for support, row in zip(group.supports, group.coefficients, strict=True):
            letters = {group.qubits[i]: _LETTERS[group.bases[i]] for i in np.flatnonzero(support).tolist()}
            shares = tuple((output, float(row[output])) for output in np.flatnonzero(row).tolist())
            strings.append(String(letters, shares))
    return strings


def pays(fragments: Iterable[Fragment], whole: float) -> bool:
    """Whether fragments are clearly less work than the whole circuit.

    Args:
        fragments: The fragments.
        whole: The work of the whole circuit.
    """
    shapes = {_key(fragment, _numbered(fragment)[0]) for fragment in fragments}
    return sum(fragment.work for fragment in fragments) + _WORK_OF_A_SHAPE * len(shapes) <= _GAIN * whole


def exact_fragments(
    gates: CircuitGates, strings: Sequence[String], whole: float, refuse: Callable[[String, Cone], None]
) -> list[Fragment] | None:
    """The strings, those together that are less work so; None where one of them needs most of the whole circuit.

    Args:
        gates: Of the circuit.
        strings: What is read.
        whole: The work of the whole circuit.
        refuse: Raises an error where a string's cone is too wide.
    """
    cones = []
    for string in strings:
        cone = gates.cone([string.letters])
        if cone.work > _GAIN * whole:
            return None
        refuse(string, cone)
        cones.append(cone)
    fragments = []
    for members in _together(cones):
        joint = gates.cone([strings[i].letters for i in members]) if len(members) > 1 else cones[members[0]]
        # What strings are turned into on the way can differ, so a joint cone may be wider than its parts: rarely.
        if len(members) > 1 and joint.work > sum(cones[i].work for i in members):
            fragments += [Fragment.exact(cones[i], [strings[i]]) for i in members]
        else:
            fragments.append(Fragment.exact(joint, [strings[i] for i in members]))
    return fragments


def _together(cones: Sequence[Cone]) -> list[list[int]]:
    numbers = [(cone.qubits, [gate.number for gate in cone.gates]) for cone in cones]
    return merged(numbers, lambda qubits, gates: work(len(qubits), len(gates)))


def merged(
    cones: Sequence[tuple[Collection[int], Collection[int]]],
    work_of: Callable[[Collection[int], Collection[int]], float],
) -> list[list[int]]:
    """Which cones are less work as one, as far as their qubits and gates tell.

    Args:
        cones: Qubits and numbers of gates.
        work_of: The work of a circuit of such qubits and gates.
    """
    joints: list[_Joint] = []
    on: dict[int, list[_Joint]] = {}
    for i in sorted(range(len(cones)), key=lambda i: (-len(cones[i][0]), sorted(cones[i][0]), i)):
        qubits, gates = map(set, cones[i])
        near = {id(joint): joint for qubit in qubits for joint in on.get(qubit, ())}
        best, least, alone = None, 0.0, work_of(qubits, gates)
        for joint in near.values():
            more = work_of(joint.qubits | qubits, joint.gates | gates) - work_of(joint.qubits, joint.gates) - alone
            if more < least:
                best, least = joint, more
        if best is None:
            best = _Joint([], set(), set())
            joints.append(best)
        for qubit in qubits - best.qubits:
            on.setdefault(qubit, []).append(best)
        best.members.append(i)
        best.qubits |= qubits
        best.gates |= gates
    return [joint.members for joint in joints]


@dataclass
class _Joint:
    """Cones that are simulated together: which, with their qubits and gates."""

    members: list[int]
    qubits: set[int]
    gates: set[int]


def connected(sets: Sequence[Collection[int]]) -> list[list[int]]:
    """Which sets of qubits belong together, so that no two of what results share a qubit."""
    leader: dict[int, int] = {}

    def leads(qubit: int) -> int:
        while leader.setdefault(qubit, qubit) != qubit:
            leader[qubit] = leader[leader[qubit]]
            qubit = leader[qubit]
        return qubit

    together: dict[int | None, list[int]] = {}
    firsts = [next(iter(qubits), None) for qubits in sets]
    for qubits, first in zip(sets, firsts, strict=True):
        for qubit in qubits:
            assert first is not None
            leader[leads(qubit)] = leads(first)
    for i, first in enumerate(firsts):
        together.setdefault(None if first is None else leads(first), []).append(i)
    return list(together.values())


# Shots


def products_of(gates: CircuitGates, group: PauliGroup) -> tuple[PauliGroup, np.ndarray]:
    """What the covariances of a group's strings are made of: see :func:`with_products`."""
    letters = [_bases(group, support) for support in group.supports]
    return with_products(group, [{*string, *gates.cone([string]).qubits} for string in letters])


def with_products(group: PauliGroup, qubits: Sequence[Collection[int]]) -> tuple[PauliGroup, np.ndarray]:
    """A group's strings and the products of those that are not independent of each other, each as an output of its own.

    Args:
        group: T Pauli strings that are measured together.
        qubits: For each of them, what it depends on: strings that have no qubit in common are independent.

    Returns:
        A group of T strings and P products, and an array of shape (P, 2): which strings those are the products of; a string
        with itself, and each two of them at most once.
    """
    on: dict[int, list[int]] = {}
    for i, own in enumerate(qubits):
        for qubit in own:
            on.setdefault(qubit, []).append(i)
    near = [sorted({j for qubit in own for j in on[qubit]}) for own in qubits]
    pairs = np.array([(i, j) for i, others in enumerate(near) for j in others if j >= i], np.int64).reshape(-1, 2)
    supports = np.concatenate([group.supports, group.supports[pairs[:, 0]] ^ group.supports[pairs[:, 1]]])
    return PauliGroup(group.qubits, group.bases, supports, np.eye(len(supports))), pairs


def shot_fragments(gates: CircuitGates, readout: Readout, *, joint: bool) -> list[Fragment]:
    """The measurements in parts, each with the outputs' share of it.

    Args:
        gates: Of the circuit.
        readout: What is measured.
        joint: Whether qubits whose light cones share a qubit are drawn together; else only those that are less work so.
    """
    fragments = []
    for group in readout.groups:
        if not isinstance(group, PauliGroup):
            fragments.append(_measured(gates, group, range(len(group.scales))))
            continue
        cones = [gates.cone_of_measurement(_bases(group, support)) for support in group.supports]
        if joint:
            members = connected(
                [{*_bases(group, own), *cone.qubits} for own, cone in zip(group.supports, cones, strict=True)]
            )
        else:
            members = _together(cones)
        fragments += [_measured(gates, *part_of_group(group, sorted(terms))) for terms in members]
    return fragments


def _bases(group: MeasurementGroup, support: np.ndarray | None = None) -> dict[int, int]:
    """The letters in which qubits are measured; ``support`` says which."""
    there = range(len(group.qubits)) if support is None else np.flatnonzero(support).tolist()
    return {group.qubits[i]: _LETTERS[group.bases[i]] for i in there}


def _measured(gates: CircuitGates, group: MeasurementGroup, outputs: Iterable[int]) -> Fragment:
    cone = gates.cone_of_measurement(_bases(group))
    qubits = tuple(sorted({*cone.qubits, *group.qubits}))
    return Fragment(cone=cone, qubits=qubits, strings=(), group=group, outputs=tuple(outputs))


def part_of_group(group: PauliGroup, terms: list[int]) -> tuple[PauliGroup, list[int]]:
    """Some terms of a group, on the qubits and outputs that they have; and which outputs those are."""
    supports, coefficients = group.supports[terms], group.coefficients[terms]
    qubits, outputs = np.flatnonzero(supports.any(axis=0)), np.flatnonzero(coefficients.any(axis=0))
    part = PauliGroup(
        tuple(group.qubits[i] for i in qubits),
        "".join(group.bases[i] for i in qubits),
        np.ascontiguousarray(supports[:, qubits]),
        np.ascontiguousarray(coefficients[:, outputs]),
    )
    return part, outputs.tolist()


# Shapes


@dataclass(frozen=True, eq=False)
class Shape:
    """A circuit that stands for K fragments.

    Attributes:
        circuit: With its own A' angles and M' outputs.
        columns: Shape (K, A'): which of the program's angles those are, for each fragment.
        outputs: Shape (K, M'): which of its outputs.
    """

    circuit: LoweredCircuit
    columns: np.ndarray
    outputs: np.ndarray


def shapes_of(fragments: Iterable[Fragment]) -> list[Shape]:
    """Units, those together that differ only in which angles and outputs they have."""
    alike: dict[Hashable, list[tuple[Fragment, list[int]]]] = {}
    for fragment in fragments:
        angles, columns = _numbered(fragment)
        alike.setdefault(_key(fragment, angles), []).append((fragment, columns))
    return [
        Shape(
            _circuit(members[0][0]),
            np.array([columns for _, columns in members], np.int64).reshape(len(members), -1),
            np.array([fragment.outputs for fragment, _ in members], np.int64).reshape(len(members), -1),
        )
        for members in alike.values()
    ]


def _numbered(fragment: Fragment) -> tuple[list[tuple[int | float, ...]], list[int]]:
    """Each gate's angles by numbers of the fragment's own, and which columns those stand for."""
    numbers: dict[int, int] = {}
    angles = [
        tuple(numbers.setdefault(angle, len(numbers)) if isinstance(angle, int) else angle for angle in gate.angles)
        for gate in fragment.cone.gates
    ]
    return angles, list(numbers)


def _key(fragment: Fragment, angles: list[tuple[int | float, ...]]) -> Hashable:
    """The same for fragments that one circuit can stand for."""
    place = _places(fragment)
    gates = tuple(
        (gate.kind.key, tuple(place[qubit] for qubit in gate.qubits), own)
        for gate, own in zip(fragment.cone.gates, angles, strict=True)
    )
    measured: Hashable = None
    if isinstance(fragment.group, PauliGroup):
        numbers = fragment.group.supports.tobytes(), fragment.group.coefficients.tobytes()
        measured = tuple(place[qubit] for qubit in fragment.group.qubits), fragment.group.bases, numbers
    elif fragment.group is not None:
        measured = id(fragment.group)
    return len(fragment.qubits), gates, tuple(_terms(fragment)), _constants(fragment).tobytes(), measured


def _places(fragment: Fragment) -> dict[int, int]:
    return {qubit: i for i, qubit in enumerate(fragment.qubits)}


def _terms(fragment: Fragment) -> Iterator[Term]:
    place, output_of = _places(fragment), {output: i for i, output in enumerate(fragment.outputs)}
    for string, (sign, letters) in zip(fragment.strings, fragment.cone.strings, strict=False):
        if sign and letters:
            flip = sum(1 << place[qubit] for qubit, letter in letters.items() if letter != _LETTERS["Z"])
            phase = sum(1 << place[qubit] for qubit, letter in letters.items() if letter != _LETTERS["X"])
            for output, coefficient in string.shares:
                yield Term(flip, phase, output_of[output], sign * coefficient)


def _constants(fragment: Fragment) -> np.ndarray:
    """What strings without letters give to each of the fragment's outputs."""
    constants, output_of = np.zeros(len(fragment.outputs)), {output: i for i, output in enumerate(fragment.outputs)}
    for string, (sign, letters) in zip(fragment.strings, fragment.cone.strings, strict=False):
        if not letters:
            for output, coefficient in string.shares:
                constants[output_of[output]] += sign * coefficient
    return constants


def _circuit(fragment: Fragment) -> LoweredCircuit:
    place, gates = _places(fragment), list[LoweredGate]()
    for gate, angles in zip(fragment.cone.gates, _numbered(fragment)[0], strict=True):
        gates += gates_of(gate.operation, tuple(place[qubit] for qubit in gate.qubits), angles)
    return LoweredCircuit(
        num_qubits=len(fragment.qubits),
        gates=gates,
        terms=None if fragment.group is not None else list(_terms(fragment)),
        measurements=[]
        if fragment.group is None
        else [(fragment.group, [place[qubit] for qubit in fragment.group.qubits])],
        constants=_constants(fragment),
    )
