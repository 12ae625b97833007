"""From the user's own composite gates, loops and boxes to the gates within them.

Qiskit's transpiler passes go by names, and trust that a gate's definition has the parameters that the gate shows. Neither
holds for gates of the user's own: what they are named is the user's business, and a gate whose parameters have been
replaced may keep the old ones in its definition. So everything of the user's own is first replaced by its definition,
down to gates of Qiskit's library, which keep their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qiskit.circuit import (
    AnnotatedOperation,
    ControlFlowOp,
    ControlledGate,
    Gate,
    Instruction,
    Operation,
    Parameter,
    ParameterExpression,
    QuantumCircuit,
)
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
from qiskit.circuit.library import UnitaryGate, get_standard_gate_name_mapping

__all__ = [
    "definition_of",
    "free_parameters",
    "is_parameterised",
    "is_users_own",
    "matrix_of",
    "names_and_labels",
    "spelled_out",
]

_STANDARD_CLASSES = {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()}
_LIBRARY = ("qiskit.circuit.", "qiskit.quantum_info.")


def is_parameterised(value: object) -> bool:
    """Whether a gate's argument has free parameters."""
    return isinstance(value, ParameterExpression) and bool(value.parameters)


def free_parameters(operation: Operation) -> set[Parameter]:
    """The free parameters that the instruction shows."""
    return {p for value in getattr(operation, "params", ()) if is_parameterised(value) for p in value.parameters}


def is_users_own(operation: Operation) -> bool:
    """Whether it is a composite gate or of a class that Qiskit does not have."""
    if not isinstance(operation, Instruction) or isinstance(operation, ControlFlowOp):
        return False
    kind = operation.base_class
    if kind.__module__.startswith(_LIBRARY):
        return kind in (Gate, Instruction, ControlledGate)
    standard = _STANDARD_CLASSES.get(operation.name)
    return standard is None or not issubclass(kind, standard) or kind._define is not standard._define


def names_and_labels(circuit: QuantumCircuit) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the instructions in the circuit and within the user's own gates; and their labels."""
    names: set[str] = set()
    labels: set[str] = set()
    _collect(circuit, names, labels)
    return frozenset(names), frozenset(labels)


def _collect(circuit: QuantumCircuit, names: set[str], labels: set[str]) -> None:
    for instruction in circuit.data:
        operation = instruction.operation
        while isinstance(operation, AnnotatedOperation):
            operation = operation.base_op
        names.add(operation.name)
        if label := getattr(operation, "label", None):
            labels.add(label)
        if is_users_own(operation) and (definition := definition_of(operation)) is not None:
            _collect(definition, names, labels)


def definition_of(operation: Instruction) -> QuantumCircuit | None:
    """What a gate of the user's own stands for; None if that is not known (for its present parameters)."""
    try:
        definition = operation.definition
    except Exception:  # a user's own gate may fail in any way on parameters that are no numbers
        return None
    return definition if isinstance(definition, QuantumCircuit) else None


def matrix_of(operation: Operation) -> np.ndarray | None:
    """The matrix of a gate without free parameters that says it itself."""
    if not hasattr(operation, "__array__") or free_parameters(operation):
        return None
    return np.asarray(operation.__array__(dtype=complex))


def spelled_out(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with every gate of the user's own replaced by its definition, or its matrix; labels stay.

    What has neither stays as it is.
    """
    flat = circuit.copy_empty_like()
    _spell_out(circuit, None, flat)
    return flat


def _spell_out(source: QuantumCircuit, bits: Mapping[Any, Any] | None, flat: QuantumCircuit) -> None:
    for instruction in source.data:
        if bits is not None:
            instruction = instruction.replace(
                qubits=[bits[bit] for bit in instruction.qubits], clbits=[bits[bit] for bit in instruction.clbits]
            )
        operation = instruction.operation
        if isinstance(operation, AnnotatedOperation):
            instruction = instruction.replace(operation=_with_base_spelled_out(operation))
        elif is_users_own(operation):
            definition = definition_of(operation)
            if definition is not None:
                inside = (*definition.qubits, *definition.clbits)
                outside = (*instruction.qubits, *instruction.clbits)
                flat.global_phase += definition.global_phase
                _spell_out(definition, dict(zip(inside, outside, strict=True)), flat)
                continue
            if (gate := _as_unitary(operation)) is not None:
                instruction = instruction.replace(operation=gate)
        flat.append(instruction, copy=False)


def _with_base_spelled_out(operation: AnnotatedOperation) -> AnnotatedOperation:
    base = operation.base_op
    if isinstance(base, AnnotatedOperation):
        base = _with_base_spelled_out(base)
    elif is_users_own(base):
        definition = definition_of(base)
        if definition is None:
            base = _as_unitary(base) or base
        else:
            base = Gate(f"{base.name} (user's)", base.num_qubits, list(base.params))
            base.definition = spelled_out(definition)
    return AnnotatedOperation(base, operation.modifiers)


def _as_unitary(operation: Operation) -> UnitaryGate | None:
    if SessionEquivalenceLibrary.has_entry(operation) or (matrix := matrix_of(operation)) is None:
        return None
    return UnitaryGate(matrix, label=operation.label)
