"""A program's circuits in copies side by side: where they go, kept for later processes, and tested region by region."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from qiskit import QuantumCircuit

from ...program.compiled import Program
from ..selftest import require_same_answers
from .device import Device
from .packing import PackedCircuit, Packing
from .prices import duration_of
from .regions import Region, chosen_regions

if TYPE_CHECKING:
    from .device_programs import DeviceCircuit

__all__ = ["from_bytes", "regions_of", "require_same_answers_in_regions", "side_by_side", "to_bytes"]


def side_by_side(
    circuits: Sequence[DeviceCircuit],
    device: Device,
    packing: Packing,
    *,
    regions: Sequence[Sequence[Region]] | None = None,
    keeps_place: bool = False,
) -> tuple[DeviceCircuit, ...]:
    """The circuits in copies side by side.

    Args:
        circuits: In the device's gates.
        device: Where they are measured.
        packing: How.
        regions: For each circuit; None: they are chosen.
        keeps_place: Whether the first region is where the circuits are.

    Raises:
        ValueError: If the device cannot run them.
    """
    places = _chosen(circuits, device, packing, keeps_place=keeps_place) if regions is None else regions
    target = device.device.target
    packed = []
    for circuit, own in zip(circuits, places, strict=True):
        together = PackedCircuit.of(circuit, own, target)
        duration = duration_of(together.circuit, device.device)
        packed.append(replace(circuit, packed=together, layout=together.layouts[0], duration=duration))
    device.check([each.executed for each in packed])
    fewest = min(map(len, places))
    if packing.regions != "auto" and fewest < packing.regions:
        fit = f"{fewest} fit on {device.name} for this circuit and are used"
        warnings.warn(f"packing: got {packing.regions} regions, but {fit}.", stacklevel=2)
    return tuple(packed)


def regions_of(circuits: Sequence[DeviceCircuit]) -> list[tuple[Region, ...]]:
    """The regions of circuits that are in copies side by side."""
    return [each.packed.regions for each in circuits if each.packed is not None]


def to_bytes(regions: Sequence[Sequence[Region]]) -> bytes:
    """Regions as they are kept for later processes."""
    return json.dumps([[[list(one.places.items()), one.fidelity] for one in own] for own in regions]).encode()


def from_bytes(kept: bytes) -> list[list[Region]]:
    """Regions from :func:`to_bytes`."""
    return [[Region(dict(pairs), fidelity) for pairs, fidelity in own] for own in json.loads(kept)]


def require_same_answers_in_regions(program: Program, circuits: Sequence[DeviceCircuit], remedy: str) -> str:
    """Compares every copy of the circuits, cut out of what is executed, with their program.

    Copies that differ in nothing but their qubits are simulated once.

    Args:
        program: The program.
        circuits: In copies side by side.
        remedy: What to do where they do not agree.

    Returns:
        The answer in words: that they agree, or why they could not be compared.

    Raises:
        ValueError: If they do not agree.
    """
    copies = [[each.packed.copy_of(number) for number in range(len(each.layouts))] for each in circuits if each.packed]
    kinds: dict[tuple[Any, ...], int] = {}
    most = max(map(len, copies))
    for number in range(most):
        kind = tuple(_kind(each, number % len(each.layouts)) for each in circuits)
        kinds.setdefault(kind, number)
    answer = ""
    for number in kinds.values():
        own_copies = [own[number % len(own)] for own in copies]
        observables = circuits[0].packed.observables[number] if circuits[0].packed else ()
        answer = require_same_answers(program, own_copies, observables, circuits[0].outputs, remedy=remedy)
    return f"{answer}, in {most} region(s)"


def _chosen(
    circuits: Sequence[DeviceCircuit], device: Device, packing: Packing, *, keeps_place: bool
) -> list[list[Region]]:
    faulty = device.faulty()
    known: dict[Any, list[Region]] = {}
    places = []
    for circuit in circuits:
        measured = _acted_on(circuit)
        where = _interactions(circuit.bound.circuit, measured)
        if where not in known:  # circuits that differ in their last gates go to the same regions
            qubits, _ = where
            known[where] = chosen_regions(
                circuit.bound.circuit,
                device.device,
                measured=measured,
                most=packing.most,
                spacing=packing.spacing,
                loss=packing.largest_loss,
                first={qubit: qubit for qubit in qubits} if keeps_place else None,
                faulty=faulty,
            )
        if not known[where]:
            raise ValueError(f"packing: no region of {device.name} can run the circuit; leave packing out.")
        places.append(known[where])
    return _in_equal_shares(places) if packing.rotate == "shots" else places


def _in_equal_shares(regions: Sequence[list[Region]]) -> list[list[Region]]:
    """As many of each circuit's regions as divide one number of pieces, so that a row's pieces go to all of them alike.

    Of all such choices, that with the fewest executions.
    """
    sizes = [len(own) for own in regions]
    choices = [
        [max(count for count in range(1, size + 1) if pieces % count == 0) for size in sizes]
        for pieces in range(1, max(sizes, default=0) + 1)
    ]
    counts = min(choices, key=lambda choice: sum(1 / count for count in choice), default=[])
    return [own[:count] for own, count in zip(regions, counts, strict=True)]


def _acted_on(circuit: DeviceCircuit) -> frozenset[int]:
    """The qubits that an Estimator measures."""
    supports = [np.flatnonzero((o.paulis.x | o.paulis.z).any(axis=0)).tolist() for o in circuit.observables]
    return frozenset(qubit for support in supports for qubit in support)


def _interactions(circuit: QuantumCircuit, measured: frozenset[int]) -> tuple[frozenset[int], frozenset[Any]]:
    """The qubits that a circuit uses, and which of them have gates together."""
    together = {
        frozenset(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        for instruction in circuit.data
        if instruction.operation.name not in ("barrier", "delay")
    }
    return measured.union(*together), frozenset(qubits for qubits in together if len(qubits) > 1)


def _kind(circuit: DeviceCircuit, number: int) -> tuple[Any, ...]:
    """The same for copies that differ in nothing but their qubits."""
    assert circuit.packed is not None
    copy = circuit.packed.copy_of(number)
    order = [place for _, place in sorted(circuit.packed.regions[number].places.items())]
    role = {place: number for number, place in enumerate(order)}
    column = {parameter: index for index, parameter in enumerate(copy.parameters)}
    gates = tuple(
        (
            instruction.operation.name,
            tuple(role[copy.circuit.find_bit(qubit).index] for qubit in instruction.qubits),
            tuple(copy.circuit.find_bit(bit).index for bit in instruction.clbits),
            tuple(column.get(value, repr(value)) for value in instruction.operation.params),
        )
        for instruction in copy.circuit.data
    )
    observables = tuple(
        (o.paulis.x[:, order].tobytes(), o.paulis.z[:, order].tobytes(), int((o.paulis.x | o.paulis.z).sum()))
        for o in circuit.packed.observables[number]
    )
    return gates, observables
