"""From the user's own composite gates, loops and boxes to the gates within them.

Qiskit's transpiler passes go by names, and trust that a gate's definition has the parameters that the gate shows. Neither
holds for gates of the user's own: what they are named is the user's business, and a gate whose parameters have been
replaced may keep the old ones in its definition. So everything of the user's own is first replaced by its definition,
down to gates of Qiskit's library, which keep their labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from math import isfinite
from typing import Any

import numpy as np
from qiskit.circuit import (
    AnnotatedOperation,
    BoxOp,
    ControlFlowOp,
    ControlledGate,
    Delay,
    ForLoopOp,
    Gate,
    Instruction,
    Operation,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
)
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary, StandardEquivalenceLibrary
from qiskit.circuit.library import Barrier, Initialize, MCMTGate, UnitaryGate, get_standard_gate_name_mapping
from qiskit.quantum_info.operators.predicates import is_unitary_matrix
from qiskit.transpiler.passes.synthesis.plugin import HighLevelSynthesisPluginManager

from .refusals import free_parameters, has_matrix, is_parameterised, named, why_misnamed, why_not, why_stale

__all__ = ["is_defined", "is_parameterised", "is_standard", "names_and_labels", "spelled_out", "without_loops"]

_STANDARD_CLASSES = {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()} | {
    "barrier": Barrier,
    "unitary": UnitaryGate,
}
_CONTROLLED_BY_NAME = ("p", "u", "x", "z", "y", "h", "sx", "sxdg", "rx", "ry", "rz", "cx", "cz")
_LIBRARY = ("qiskit.circuit.", "qiskit.quantum_info.")
_MOST_UNROLLED = 100_000
_DEEPEST = 100


def is_standard(operation: Operation) -> bool:
    """Whether it is what its name says: one of Qiskit's standard instructions, or a user's subclass that does the same."""
    kind = operation.base_class if isinstance(operation, Instruction) else None
    standard = _STANDARD_CLASSES.get(operation.name)
    if kind is None or standard is None or not issubclass(kind, standard):
        return False
    return kind is standard or (standard is not UnitaryGate and kind._define is standard._define)


def _is_users_own(operation: Operation) -> bool:
    """Whether it is a composite gate or of a class that Qiskit does not have."""
    if not isinstance(operation, Instruction) or is_standard(operation):
        return False
    kind = operation.base_class
    return kind in (Gate, Instruction, ControlledGate) or not kind.__module__.startswith(_LIBRARY)


def _has_users_rule(operation: Operation) -> bool:
    """Whether the user has told Qiskit's equivalence library what the gate stands for, and it is no other gate's name."""
    known = StandardEquivalenceLibrary.has_entry(operation) or operation.name in _STANDARD_CLASSES
    return bool(SessionEquivalenceLibrary.has_entry(operation)) and not known


def names_and_labels(circuit: QuantumCircuit) -> Counter[tuple[str, str | None]]:
    """How often the circuit, the user's own gates within it included, has an instruction of a name and a label.

    Bodies of loops count once; the resets that ``Initialize`` begins with count as well.
    """
    counts: Counter[tuple[str, str | None]] = Counter()
    _count(circuit, counts)
    return counts


def _count(circuit: QuantumCircuit, counts: Counter[tuple[str, str | None]]) -> None:
    for instruction in circuit.data:
        operation = instruction.operation
        while isinstance(operation, AnnotatedOperation):
            operation = operation.base_op
        counts[operation.name, getattr(operation, "label", None) or None] += 1
        if isinstance(operation, ControlFlowOp):
            for body in operation.blocks:
                _count(body, counts)
        elif isinstance(operation, Initialize):
            counts["reset", None] += operation.num_qubits
        elif _is_users_own(operation) and (definition := _definition(operation)) is not None:
            _count(definition, counts)


def is_defined(operation: Operation, within: tuple[str, ...] = ()) -> bool:
    """Whether it is known what the instruction, within some gates, does at its present parameters."""
    while isinstance(operation, AnnotatedOperation):
        operation = operation.base_op
    if not isinstance(operation, Instruction) or isinstance(operation, ControlFlowOp) or is_standard(operation):
        return True
    if (definition := _definition(operation, within)) is not None:
        return all(is_defined(instruction.operation, (*within, operation.name)) for instruction in definition.data)
    return _is_users_own(operation) and (_has_users_rule(operation) or _matrix(operation) is not None)


def without_loops(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with loops and boxes unrolled; gates stay as they are, and the durations of boxes are lost.

    Raises:
        ValueError: If there is other control flow.
    """
    if not any(instruction.is_control_flow() for instruction in circuit.data):
        return circuit
    flat = circuit.copy_empty_like()
    _append(flat, circuit, loops_only=True)
    return flat


def spelled_out(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with every gate of the user's own as its definition, or as its matrix if it has none; labels stay.

    Loops and boxes are unrolled.

    Raises:
        ValueError: If it is not known what an instruction does, or if a definition does not fit its gate.
    """
    if all(_replacement(instruction.operation, ()) is instruction.operation for instruction in circuit.data):
        return circuit
    flat = circuit.copy_empty_like()
    _append(flat, circuit)
    return flat


def _append(
    flat: QuantumCircuit,
    circuit: QuantumCircuit,
    bits: Mapping[Any, Any] | None = None,
    within: tuple[str, ...] = (),
    *,
    loops_only: bool = False,
) -> None:
    """Appends a circuit, spelled out, whose bits are others there, and which stands within some gates."""
    for instruction in circuit.data:
        if bits is not None:
            instruction = instruction.replace(
                qubits=[bits[bit] for bit in instruction.qubits], clbits=[bits[bit] for bit in instruction.clbits]
            )
        operation = instruction.operation
        if loops_only and not instruction.is_control_flow():
            parts: Operation | Iterable[QuantumCircuit] = operation
        else:
            parts = _replacement(operation, within)
        if isinstance(parts, Operation):
            flat.append(instruction if parts is operation else instruction.replace(operation=parts), copy=False)
            continue
        outside = (*instruction.qubits, *instruction.clbits)
        for part in parts:
            if isinstance(operation, ForLoopOp) and len(flat.data) > _MOST_UNROLLED:
                raise ValueError(why_not(operation, within))
            inside = dict(zip((*part.qubits, *part.clbits), outside, strict=True))
            flat.global_phase += part.global_phase
            _append(flat, part, inside, (*within, operation.name), loops_only=loops_only)


def _replacement(operation: Operation, within: tuple[str, ...]) -> Operation | Iterable[QuantumCircuit]:
    """Circuits to put in the instruction's place, one after the other, or another instruction."""
    _check_numbers(operation, within)
    if is_standard(operation):
        return operation
    if isinstance(operation, ControlFlowOp):
        return _bodies(operation, within)
    if isinstance(operation, AnnotatedOperation):
        return _with_base_spelled_out(operation, within)
    if not _is_users_own(operation):
        _check_library_gate(operation, within)
        return operation
    if (definition := _definition(operation, within)) is not None:
        return [definition]
    if _has_users_rule(operation):
        return operation
    if (gate := _matrix(operation, within)) is None:
        raise ValueError(why_not(operation, within))
    return gate


def _check_library_gate(operation: Operation, within: tuple[str, ...]) -> None:
    """Refuses gates of the library that do not do what they show, because of what the user has put into them."""
    if isinstance(operation, MCMTGate) and _is_users_own(operation.base_gate):
        if (inner := _misnamed(operation.base_gate)) is not None:
            raise ValueError(why_misnamed(operation, inner, within))
        _definition(operation.base_gate, (*within, operation.name))
    elif isinstance(operation, Instruction) and operation.name not in _synthesized():
        _definition(operation, within)


def _check_numbers(operation: Operation, within: tuple[str, ...]) -> None:
    """Refuses arguments that Qiskit lets pass, and that would make every result NaN, or none at all."""
    for value in getattr(operation, "params", ()):
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(
                f"{named(operation, within)} has the argument {value}, expected a finite number; mend the circuit."
            )
    if isinstance(operation, UnitaryGate) and not is_unitary_matrix(operation.params[0]):
        raise ValueError(
            f"{named(operation, within)} has a matrix that is not unitary, expected a unitary one; mend the circuit."
        )
    if isinstance(operation, Delay):
        length = operation.duration
        if not isinstance(length, (int, float, ParameterExpression)) or is_parameterised(length):
            raise ValueError(why_not(operation, within))


@cache
def _synthesized() -> frozenset[str]:
    """Names of the library's gates that are synthesised anew from what they show, whatever their definition says."""
    return frozenset(HighLevelSynthesisPluginManager().plugins_by_op)


def _bodies(operation: ControlFlowOp, within: tuple[str, ...]) -> Iterable[QuantumCircuit]:
    if isinstance(operation, BoxOp) and not getattr(operation, "annotations", ()):
        return operation.blocks
    if isinstance(operation, ForLoopOp):
        values, parameter, body = operation.params
        if isinstance(values, (range, tuple)) and len(values) * max(1, body.size()) <= _MOST_UNROLLED:
            if isinstance(parameter, Parameter) and parameter in body.parameters:
                return (body.assign_parameters({parameter: value}) for value in values)
            return [body] * len(values)
    raise ValueError(why_not(operation, within))


def _with_base_spelled_out(operation: AnnotatedOperation, within: tuple[str, ...]) -> AnnotatedOperation:
    base = operation.base_op
    parts = _replacement(base, within)
    if isinstance(parts, Operation):
        return AnnotatedOperation(parts, operation.modifiers)
    if base.num_clbits:
        raise ValueError(why_not(operation, within))
    inside = QuantumCircuit(base.num_qubits)
    for part in parts:
        inside.global_phase += part.global_phase
        _append(inside, part, dict(zip(part.qubits, inside.qubits, strict=True)), (*within, base.name))
    gate = Gate(f"{base.name} (user's)", base.num_qubits, list(base.params))
    gate.definition = inside
    return AnnotatedOperation(gate, operation.modifiers)


def _definition(operation: Instruction, within: tuple[str, ...] = ()) -> QuantumCircuit | None:
    """What a gate stands for; None if that is not known (for its present parameters).

    Raises:
        ValueError: If the definition has other free parameters than the gate shows, or another width.
    """
    if (definition := _definition_or_none(operation)) is None:
        return None
    if isinstance(operation, ControlledGate) and (inner := _misnamed(operation.base_gate)) is not None:
        raise ValueError(why_misnamed(operation, inner, within))
    if len(within) > _DEEPEST:
        raise ValueError(
            f"Instruction {within[0]!r} is made of gates within gates, more than {_DEEPEST} deep, or contains itself; "
            "decompose it first."
        )
    inside = set(definition.parameters)
    if free_parameters(operation) != inside or (inside and _keeps_others(operation)):
        raise ValueError(why_stale(operation, inside, within))
    if (definition.num_qubits, definition.num_clbits) != (operation.num_qubits, operation.num_clbits):
        raise ValueError(
            f"{named(operation, within)} acts on {operation.num_qubits} qubits and {operation.num_clbits} classical bits, "
            f"its definition on {definition.num_qubits} and {definition.num_clbits}; expected the same. Mend its definition."
        )
    return definition


def _keeps_others(operation: Instruction) -> bool:
    """Whether params show expressions that the definition is not made of, because a user's class keeps others elsewhere."""
    kind = operation.base_class
    if not _is_users_own(operation) or issubclass(kind, ControlledGate) or kind._define is Instruction._define:
        return False
    kept = [value for value in vars(operation).values() if isinstance(value, ParameterExpression)]
    shown = [value for value in operation.params if is_parameterised(value)]
    if all(isinstance(value, Parameter) or value in kept for value in shown):
        return False
    probe = operation.copy()
    probe.definition = None
    probe.params = [
        Parameter(f"p{i}") if is_parameterised(value) else value for i, value in enumerate(operation.params)
    ]
    definition = _definition_or_none(probe)
    return definition is not None and set(definition.parameters) != free_parameters(probe)


def _misnamed(operation: Operation, names: Collection[str] = _CONTROLLED_BY_NAME) -> str | None:
    """The name of a gate of the user's own, itself or within, for which ``control`` has taken another one."""
    if not _is_users_own(operation) or (definition := _definition_or_none(operation)) is None:
        return None
    if operation.name in names:
        return str(operation.name)
    return next(filter(None, (_misnamed(i.operation, _STANDARD_CLASSES) for i in definition.data)), None)


def _definition_or_none(operation: Instruction) -> QuantumCircuit | None:
    try:
        definition = operation.definition
    except Exception:  # a user's own gate may fail in any way on parameters that are no numbers
        return None
    return definition if isinstance(definition, QuantumCircuit) else None


def _matrix(operation: Operation, within: tuple[str, ...] = ()) -> UnitaryGate | None:
    """A gate that says what its matrix is, and has no free parameters, as that matrix.

    Raises:
        ValueError: If that is no matrix of a gate on as many qubits.
    """
    if not has_matrix(operation) or free_parameters(operation):
        return None
    try:
        gate = UnitaryGate(np.asarray(operation.to_matrix(), dtype=complex), label=operation.label)
    except Exception as error:  # whatever a user's own gate raises when it is asked for its matrix
        raise ValueError(
            f"{named(operation, within)} has no definition, and its matrix cannot be had ({error}); mend the gate."
        ) from error
    if gate.num_qubits != operation.num_qubits:
        raise ValueError(
            f"{named(operation, within)} acts on {operation.num_qubits} qubits, its matrix on {gate.num_qubits}; expected "
            "the same. Mend its matrix."
        )
    return gate
