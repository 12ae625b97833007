"""Names of programs that are the same in every process: hashes of circuits and readouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Parameter, ParameterExpression
from qiskit.circuit.library import get_standard_gate_name_mapping

from ...program.compiled import Program
from ...program.readout import Expectation, Readout
from .ledger import digest

__all__ = ["fingerprint", "fingerprint_on_device"]

_STANDARD = frozenset(get_standard_gate_name_mapping())


def fingerprint(program: Program) -> str:
    """A hash of all that a program's results depend on besides its angles.

    Constants count to 12 digits, so that it does not depend on the last bit of a sine. (Qiskit's own file format will
    not do: it names parameters by numbers that are new in every process.)
    """
    columns = {angle: column for column, angle in enumerate(program.angles)}
    # Programs without variants have the names that they had before there were any.
    variants = [list(map(repr, program.variants))] if program.variants else []
    return digest(_of_circuit(program.circuit, columns), _of_readout(program.readout), program.placed, *variants)


def fingerprint_on_device(circuits: Iterable[Any]) -> str:
    """A hash of all that is measured of each ``DeviceCircuit``, and of how its parameters follow from a program's angles."""
    return digest(*map(_on_device, circuits))


def _on_device(each: Any) -> list[Any]:
    circuit = each.bound.circuit
    bits = [[circuit.find_bit(bit).index for bit in instruction.clbits] for instruction in circuit.data]
    angles = [_argument(each.bound.slopes, {}), _argument(each.bound.offsets, {})]
    if (folds := each.bound.folds) is not None:
        angles += [_argument(part, {}) for part in (folds.columns, folds.turns, folds.flips, folds.signs)]
    return [_of_circuit(circuit, {}), bits, angles, each.layout, [sorted(o.to_list()) for o in each.observables]]


def _of_circuit(circuit: QuantumCircuit, columns: Mapping[Parameter, int]) -> list[Any]:
    instructions: list[Any] = [circuit.num_qubits]
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        arguments = [_argument(value, columns) for value in operation.params]
        inside = None
        if operation.name not in _STANDARD and getattr(operation, "definition", None) is not None:
            inside = _of_circuit(operation.definition, columns)
        state = getattr(operation, "ctrl_state", None)
        # A gate's label may have noise; without one, circuits have the hashes that they had before labels were looked at.
        label = [operation.label] if isinstance(operation, Gate) and operation.label else []
        instructions.append([operation.name, qubits, arguments, state, inside, *label])
    return instructions


def _argument(value: Any, columns: Mapping[Parameter, int]) -> Any:
    if isinstance(value, Parameter):
        return ["angle", columns[value]] if value in columns else ["parameter", value.name]
    if isinstance(value, ParameterExpression):
        return str(value)
    if isinstance(value, (complex, np.complexfloating, float, np.floating)):
        return _rounded(complex(value))
    if isinstance(value, np.ndarray):
        return [_rounded(entry) for entry in value.ravel().tolist()] + list(value.shape)
    return value if isinstance(value, (int, str, bool, type(None))) else repr(value)


def _rounded(number: complex) -> str:
    return f"{number.real:.12g},{number.imag:.12g}"


def _of_readout(readout: Readout) -> list[Any]:
    groups = [
        [
            list(group.qubits),
            group.bases,
            *(getattr(group, name, None) for name in ("supports", "coefficients", "outputs")),
        ]
        for group in readout.groups
    ]
    # An Estimator groups terms itself: it is given whole observables.
    operators = [sorted(o.to_list()) for o in readout.observables] if isinstance(readout, Expectation) else []
    return [readout.num_outputs, groups, readout.constants, operators]
