"""Names for what was asked for, the same in every process: hashes of circuits, readouts and angles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Parameter, ParameterExpression
from qiskit.circuit.library import get_standard_gate_name_mapping

from ...program.compiled import Program
from ...program.readout import Expectation, Readout
from ..base import Request

__all__ = ["digest", "fingerprint", "seed_of"]

_STANDARD = frozenset(get_standard_gate_name_mapping())


def digest(*parts: Any) -> str:
    """A hash of numbers, words, arrays and nested lists and mappings of them."""
    return hashlib.sha256(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest()


def fingerprint(program: Program) -> str:
    """A hash of all that a program's results depend on besides its angles.

    Constants count to 12 digits, so that it does not depend on the last bit of a sine. (Qiskit's own file format will
    not do: it names parameters by numbers that are new in every process.)
    """
    columns = {angle: column for column, angle in enumerate(program.angles)}
    return digest(_of_circuit(program.circuit, columns), _of_readout(program.readout), program.placed)


def seed_of(request: Request) -> list[list[int]]:
    """The seed of an evaluation as numbers: its entropy, and its place in the stream."""
    entropy = request.seed.entropy
    parts = list(entropy) if isinstance(entropy, Sequence) else [0 if entropy is None else entropy]
    return [[int(part) for part in parts], [int(part) for part in request.seed.spawn_key]]


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


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    return [value.real, value.imag] if isinstance(value, complex) else value
