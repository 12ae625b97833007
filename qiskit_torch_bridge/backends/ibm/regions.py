r"""Where else on a device a circuit can run: regions of its kind, chosen by the device's calibration.

A circuit in a device's gates uses some qubits and couplers. Other qubits with couplers in the same places can run it as
well. :func:`chosen_regions` searches for them, estimates how well each would run the circuit,

.. math:: F = \prod_\mathrm{gates} (1 - \epsilon) \prod_\mathrm{measurements} (1 - \epsilon)
    \prod_\mathrm{qubits} \Big(\tfrac12 + \tfrac16 e^{-t/T_1} + \tfrac13 e^{-t/T_2}\Big) ,

with the errors of the device's target and the time t that a qubit waits (the last factor is the average fidelity of
relaxation), and takes one after the other, the best first, each as far from the others as is asked for. The idea is that of
Nation and Treinish, "Suppressing quantum circuit errors due to system variability" (PRX Quantum 4, 010327).

The search is a walk from each of the device's qubits along couplers, the better ones first, of which each start may take a
bounded number of steps: so that it reaches every part of a large device in a bounded time. (A general search for subgraphs,
ended early, has only seen one corner.) It has no randomness.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qiskit import QuantumCircuit

__all__ = ["Region", "chosen_regions"]

_MOST_STEPS = 2000  # of the walks from one qubit
_MOST_FROM_ONE = 40  # regions that start at one qubit
_NO_GATES = ("barrier", "delay")

Places = Mapping[int, int]
"""The device's qubit for each qubit that the circuit uses, which are qubits of the device too."""


@dataclass(frozen=True)
class Region:
    """A place for a circuit.

    Attributes:
        places: The device's qubit for each that the circuit uses.
        fidelity: The estimate of how well it runs there.
    """

    places: Places
    fidelity: float


def chosen_regions(
    circuit: QuantumCircuit,
    device: Any,
    *,
    measured: Collection[int] = (),
    most: float = math.inf,
    spacing: int = 1,
    loss: float = math.inf,
    first: Places | None = None,
    faulty: Collection[frozenset[int]] = (),
) -> list[Region]:
    """Regions for a circuit in a device's gates, the best first; many options, because each is a condition on them.

    Args:
        circuit: On the device's qubits.
        device: The ``BackendV2``.
        measured: Qubits that are measured although the circuit does not say so.
        most: How many regions there may be.
        spacing: How many qubits are idle between two regions at least.
        loss: How much less the fidelity of a region may be than that of the best.
        first: A region that is taken before all others, whatever its fidelity.
        faulty: Qubits and couplers that are out of order, beside those whose error is 1 by the target.

    Raises:
        ValueError: If the device has no couplings, or the circuit gates of more than two qubits.
    """
    calibration = _Calibration(device, faulty)
    pattern = _Pattern.of(circuit, measured, device.target)
    parts = [(part, _candidates(pattern, part, calibration)) for part in pattern.parts]
    regions: list[Region] = []
    blocked: set[int] = set()
    if first is not None:
        regions.append(Region(dict(first), math.exp(-_cost(pattern, first, calibration))))
        blocked |= calibration.around(first.values(), spacing)
    while len(regions) < most:
        parts = [(part, [each for each in free if blocked.isdisjoint(each.qubits)]) for part, free in parts]
        taken = list(_disjoint(parts))
        if len(taken) < len(parts) or not parts:
            break
        places = {qubit: place for part, each in zip(parts, taken, strict=True) for qubit, place in each.along(part[0])}
        fidelity = math.exp(-sum(each.cost for each in taken))
        if any(fidelity < region.fidelity - loss for region in regions):
            break
        regions.append(Region(places, fidelity))
        blocked |= calibration.around(places.values(), spacing)
    return regions


@dataclass(frozen=True)
class _Candidate:
    """Qubits of the device for a connected part of the circuit, in the part's order, and minus the logarithm of F."""

    order: tuple[int, ...]
    cost: float

    @cached_property
    def qubits(self) -> frozenset[int]:
        return frozenset(self.order)

    def along(self, part: Sequence[int]) -> Iterator[tuple[int, int]]:
        return zip(part, self.order, strict=True)


@dataclass(frozen=True)
class _Pattern:
    """What a circuit needs of a device.

    Attributes:
        gates: How many of each gate each qubit has alone, measurements included.
        couplers: How many of each gate each pair of qubits has; the smaller one comes first.
        idle: How long each qubit waits, in seconds.
    """

    gates: Mapping[int, Counter[str]]
    couplers: Mapping[tuple[int, int], Counter[str]]
    idle: Mapping[int, float]

    @classmethod
    def of(cls, circuit: QuantumCircuit, measured: Collection[int], target: Any) -> _Pattern:
        gates: dict[int, Counter[str]] = {qubit: Counter(measure=1) for qubit in sorted(measured)}
        couplers: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        ends, busy = defaultdict[int, float](float), defaultdict[int, float](float)
        for instruction in circuit.data:
            name = instruction.operation.name
            qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
            if name in _NO_GATES:
                continue
            if len(qubits) > 2:
                raise ValueError(f"packing: got a circuit with {name!r} on {len(qubits)} qubits, expected one or two.")
            for qubit in qubits:
                gates.setdefault(qubit, Counter())
            if len(qubits) == 1:
                gates[qubits[0]][name] += 1
            else:
                couplers[min(qubits), max(qubits)][name] += 1
            length = _duration(target, name, qubits)
            end = max(ends[qubit] for qubit in qubits) + length
            for qubit in qubits:
                busy[qubit] += length
                ends[qubit] = end
        last = max(ends.values(), default=0.0)
        # A qubit is in its ground state until its first gate; what it waits then is left in, so that F is rather too small.
        return cls(gates, couplers, {qubit: last - busy[qubit] for qubit in gates})

    @cached_property
    def neighbours(self) -> dict[int, list[int]]:
        pairs = [*self.couplers, *(pair[::-1] for pair in self.couplers)]
        return {qubit: sorted(other for one, other in pairs if one == qubit) for qubit in self.gates}

    @cached_property
    def parts(self) -> list[tuple[int, ...]]:
        """The connected parts, the largest first; in each every qubit but the first is next to an earlier one."""
        parts: list[tuple[int, ...]] = []
        for start in sorted(self.gates, key=lambda qubit: -len(self.neighbours[qubit])):
            if not any(start in part for part in parts):
                order = [start]
                for qubit in order:  # which grows
                    order += [other for other in self.neighbours[qubit] if other not in order]
                parts.append(tuple(order))
        return sorted(parts, key=len, reverse=True)


class _Calibration:
    """What a device's target says of its qubits and couplers, as costs: minus the logarithms of fidelities."""

    def __init__(self, device: Any, faulty: Collection[frozenset[int]]) -> None:
        coupling, target = device.coupling_map, device.target
        if coupling is None:
            raise ValueError(
                "packing: got a simulator without connections between its qubits, expected a device, whose regions are "
                "far from each other; leave packing out, or rehearse on a fake device, such as 'fake_fez'."
            )
        self._target, self._faulty = target, frozenset(faulty)
        self.neighbours: dict[int, set[int]] = {qubit: set() for qubit in coupling.physical_qubits}
        for one, other in coupling.get_edges():
            self.neighbours[one].add(other)
            self.neighbours[other].add(one)
        self._known: dict[tuple[str, tuple[int, ...]], float] = {}

    def around(self, qubits: Collection[int], distance: int) -> set[int]:
        """The qubits, and all others that are no farther from them than that."""
        reached = set(qubits)
        for _ in range(distance):
            reached |= {other for qubit in reached for other in self.neighbours[qubit]}
        return reached

    def of_gates(self, counts: Mapping[str, int], idle: float, qubit: int) -> float:
        cost = sum(count * self._of(name, (qubit,)) for name, count in counts.items())
        properties = self._target.qubit_properties
        if idle and properties is not None and properties[qubit] is not None:
            t1, t2 = (getattr(properties[qubit], name, None) for name in ("t1", "t2"))
            if t1 and t2:
                cost -= math.log(0.5 + math.exp(-idle / t1) / 6 + math.exp(-idle / t2) / 3)
        return cost

    def of_coupler(self, counts: Mapping[str, int], one: int, other: int) -> float:
        """Infinite where there is none, or it is out of order."""
        if other not in self.neighbours[one]:  # a simulator says that its gates go everywhere, whatever its connections
            return math.inf
        # A gate in the other direction needs gates of single qubits besides, whose errors are far smaller.
        pairs = (one, other), (other, one)
        return sum(count * min(self._of(name, pair) for pair in pairs) for name, count in counts.items())

    def _of(self, name: str, qubits: tuple[int, ...]) -> float:
        key = name, qubits
        if key not in self._known:
            in_order = self._faulty.isdisjoint({frozenset(qubits), *(frozenset((qubit,)) for qubit in qubits)})
            error = 1.0
            if in_order and self._target.instruction_supported(name, qubits):
                error = getattr(_properties(self._target, name, qubits), "error", None) or 0.0
            self._known[key] = -math.log1p(-error) if error < 1 else math.inf
        return self._known[key]


def _properties(target: Any, name: str, qubits: tuple[int, ...]) -> Any:
    return (target[name] or {}).get(qubits)


def _duration(target: Any, name: str, qubits: tuple[int, ...]) -> float:
    if name not in target.operation_names:
        return 0.0
    return getattr(_properties(target, name, qubits), "duration", None) or 0.0


def _cost(pattern: _Pattern, places: Places, device: _Calibration) -> float:
    alone = sum(device.of_gates(counts, pattern.idle[q], places[q]) for q, counts in pattern.gates.items())
    return alone + sum(device.of_coupler(counts, places[a], places[b]) for (a, b), counts in pattern.couplers.items())


def _candidates(pattern: _Pattern, part: Sequence[int], device: _Calibration) -> list[_Candidate]:
    """Places for a connected part of the circuit, the best first; of several for the same qubits only the best."""
    best: dict[frozenset[int], _Candidate] = {}
    for start in device.neighbours:
        for each in _Walk(pattern, part, device).from_qubit(start):
            if each.qubits not in best or each.cost < best[each.qubits].cost:
                best[each.qubits] = each
    return sorted(best.values(), key=lambda each: (each.cost, each.order))


class _Walk:
    """Takes the qubits of a part one after the other to the device, each beside where an earlier neighbour has gone."""

    def __init__(self, pattern: _Pattern, part: Sequence[int], device: _Calibration) -> None:
        self._pattern, self._part, self._device = pattern, part, device
        self._steps, self._arrived = 0, 0

    def from_qubit(self, start: int) -> Iterator[_Candidate]:
        cost = self._device.of_gates(self._pattern.gates[self._part[0]], self._pattern.idle[self._part[0]], start)
        if cost < math.inf:
            yield from self._onwards({self._part[0]: start}, cost)

    def _onwards(self, places: dict[int, int], cost: float) -> Iterator[_Candidate]:
        if len(places) == len(self._part):
            self._arrived += 1
            yield _Candidate(tuple(places.values()), cost)
            return
        qubit = self._part[len(places)]
        for further, place in self._next_places(qubit, places):
            self._steps += 1
            if self._steps > _MOST_STEPS or self._arrived >= _MOST_FROM_ONE:
                return
            yield from self._onwards({**places, qubit: place}, cost + further)

    def _next_places(self, qubit: int, places: Places) -> list[tuple[float, int]]:
        """Where the next qubit can go, and what that costs; the best first."""
        earlier = [other for other in self._pattern.neighbours[qubit] if other in places]
        next_places = []
        for place in self._device.neighbours[places[earlier[0]]] - set(places.values()):
            cost = self._device.of_gates(self._pattern.gates[qubit], self._pattern.idle[qubit], place)
            for other in earlier:
                counts = self._pattern.couplers[min(qubit, other), max(qubit, other)]
                cost += self._device.of_coupler(counts, places[other], place)
            if cost < math.inf:
                next_places.append((cost, place))
        return sorted(next_places)


def _disjoint(parts: Sequence[tuple[Sequence[int], Sequence[_Candidate]]]) -> Iterator[_Candidate]:
    """For each part the best candidate that shares no qubit with those of the parts before."""
    used: frozenset[int] = frozenset()
    for _, candidates in parts:
        for each in candidates:
            if used.isdisjoint(each.qubits):
                used |= each.qubits
                yield each
                break
