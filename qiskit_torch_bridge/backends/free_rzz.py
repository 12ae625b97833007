"""Free rotations of two qubits as ``rzz``, for devices where that is a gate of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, ParameterExpression, Qubit

__all__ = ["has_free_rzz", "is_free", "with_free_rzz"]

_AS_RZZ = frozenset({"rxx", "ryy", "rzx", "cp"})
_BETWEEN_CNOTS = {"rz": "rzz", "p": "rzz", "ry": "rzy"}


def is_free(value: object) -> bool:
    """Whether a gate's argument still has parameters."""
    return isinstance(value, ParameterExpression) and bool(value.parameters)


def has_free_rzz(circuit: QuantumCircuit) -> bool:
    """Whether there is an ``rzz`` with a free angle."""
    return any(i.operation.name == "rzz" and is_free(i.operation.params[0]) for i in circuit.data)


def with_free_rzz(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with its free rotations of two qubits as ``rzz`` and gates of one qubit; the same up to a phase.

    These are ``rxx``, ``ryy``, ``rzx``, ``cp``; and ``rz``, ``p`` or ``ry`` of a qubit between two equal ``cx`` to it, as in
    controlled rotations and Qiskit's feature maps. Gates with labels stay: their noise may go by labels.
    """
    sandwiches = _sandwiches(circuit)
    bread = {place for first, last in sandwiches.values() for place in (first, last)}
    rewritten = circuit.copy_empty_like()
    for place, instruction in enumerate(circuit.data):
        operation = instruction.operation
        if place in sandwiches:
            control_and_target = circuit.data[sandwiches[place][0]].qubits
            _append(rewritten, _BETWEEN_CNOTS[operation.name], operation.params[0], *control_and_target)
        elif operation.name in _AS_RZZ and is_free(operation.params[0]) and not operation.label:
            _append(rewritten, operation.name, operation.params[0], *instruction.qubits)
        elif place not in bread:
            rewritten.append(instruction, copy=False)
    return rewritten


def _append(circuit: QuantumCircuit, name: str, angle: ParameterExpression, first: Qubit, second: Qubit) -> None:
    """Appends a rotation of two qubits as ``rzz`` in changed bases."""
    if name == "cp":
        circuit.p(angle / 2, first)
        circuit.p(angle / 2, second)
        circuit.rzz(-angle / 2, first, second)
        return
    letters = list(zip(name.removeprefix("r"), (first, second), strict=True))
    for quarter in (math.pi / 2, -math.pi / 2):
        for letter, qubit in letters:
            if letter == "x":
                circuit.h(qubit)
            elif letter == "y":  # RX(-pi / 2) Z RX(pi / 2) = Y
                circuit.rx(quarter, qubit)
        if quarter > 0:
            circuit.rzz(angle, first, second)


def _sandwiches(circuit: QuantumCircuit) -> dict[int, tuple[int, int]]:
    """Places of free rotations, and of the two ``cx`` about each, with nothing else on their qubits in between.

    A ``cx`` is about one rotation only: of ``cx rz cx rz cx`` the last two stay.
    """
    wires: dict[Qubit, list[int]] = defaultdict(list)
    for place, instruction in enumerate(circuit.data):
        for qubit in instruction.qubits:
            wires[qubit].append(place)
    next_on = {(qubit, place): after for qubit, wire in wires.items() for place, after in pairwise(wire)}
    sandwiches: dict[int, tuple[int, int]] = {}
    closed: set[int] = set()
    for first, opening in enumerate(circuit.data):
        if first in closed or not _is_plain_cnot(opening):
            continue
        control, target = opening.qubits
        filling = next_on.get((target, first))
        last = next_on.get((target, filling)) if filling is not None else None
        if filling is None or last is None or next_on.get((control, first)) != last:
            continue
        inside, closing = circuit.data[filling].operation, circuit.data[last]
        fits = inside.name in _BETWEEN_CNOTS and not inside.label and is_free(inside.params[0])
        if fits and _is_plain_cnot(closing) and closing.qubits == opening.qubits:
            sandwiches[filling] = (first, last)
            closed.add(last)
    return sandwiches


def _is_plain_cnot(instruction: CircuitInstruction) -> bool:
    return bool(instruction.operation.name == "cx" and not instruction.operation.label)
