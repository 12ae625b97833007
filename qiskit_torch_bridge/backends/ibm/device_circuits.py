"""A program's circuits in a device's own gates, with all that is needed to measure them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import ParameterVectorElement
from qiskit.quantum_info import SparsePauliOp

from ...program.compiled import Program
from ...program.readout import Expectation
from ..base import circuit_on, measured_circuit
from ..results import BoundCircuit
from ..simulated import leaves_out_idle_qubits
from ..transpiling import TranspilerOptions, bind_by_column, gates_of_ibms_estimator, observables_on, transpiled
from .prices import USUAL_DURATION

__all__ = ["DeviceCircuit", "DeviceProgram", "circuits_for", "device_circuits", "from_qpy", "to_qpy"]


@dataclass(frozen=True, eq=False)
class DeviceCircuit:
    """A circuit that a program needs measured, in the device's gates.

    Attributes:
        bound: The circuit; for a Sampler with the measurements of one group.
        layout: The device's qubit for each of the logical circuit's.
        bases: How many measurement bases it is executed in for one parameter set.
        duration: Of one execution, in seconds; the usual one where the device does not say.
        observables: For an Estimator: the observables on the device's qubits.
        outputs: For an Estimator: the outputs that they give.
    """

    bound: BoundCircuit
    layout: tuple[int, ...]
    bases: int
    duration: float
    _: KW_ONLY
    observables: tuple[SparsePauliOp, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class DeviceProgram:
    """A program in a device's gates.

    Attributes:
        circuits: All that it needs measured.
        fingerprint: What tells the program from others, in every process.
        circumstances: All that a result depends on besides shots, angles and seed, the fingerprint included.
    """

    circuits: tuple[DeviceCircuit, ...]
    fingerprint: str
    circumstances: tuple[Any, ...]


def circuits_for(program: Program, device: Any, primitive: str, options: TranspilerOptions) -> list[QuantumCircuit]:
    """The circuits in the device's gates: one a measurement group for a Sampler, one in all for an Estimator."""
    compact = leaves_out_idle_qubits(device, options)
    if primitive == "sampler":
        circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
    else:
        circuits = [circuit_on(program, compact=compact)[0]]
    basis_gates = gates_of_ibms_estimator(device) if primitive == "estimator" else None
    return transpiled(circuits, program, device, options, basis_gates=basis_gates)


def device_circuits(
    circuits: Sequence[QuantumCircuit],
    program: Program,
    device: Any,
    options: TranspilerOptions,
    primitive: str,
) -> tuple[DeviceCircuit, ...]:
    """The circuits with all that is needed to measure them."""
    observables: tuple[SparsePauliOp, ...] = ()
    outputs: tuple[int, ...] = ()
    bases = 1
    if primitive == "estimator" and circuits:
        assert isinstance(program.readout, Expectation)
        place = list(range(program.circuit.num_qubits))
        if leaves_out_idle_qubits(device, options):
            place = list(program.active_qubits)
        observables, outputs = map(tuple, observables_on(circuits[0], program.readout, place))
        bases = len(program.readout.groups)
    return tuple(
        DeviceCircuit(
            bind_by_column(circuit, program),
            _layout_of(circuit),
            bases,
            _duration(circuit, device),
            observables=observables,
            outputs=outputs,
        )
        for circuit in circuits
    )


def to_qpy(circuits: Sequence[QuantumCircuit]) -> bytes:
    """Circuits as bytes, in Qiskit's format."""
    buffer = io.BytesIO()
    qpy.dump(list(circuits), buffer)
    return buffer.getvalue()


def from_qpy(data: bytes, program: Program) -> list[QuantumCircuit]:
    """Circuits from bytes, with the parameters of this process's program in place of those of the one that wrote them."""
    circuits = qpy.load(io.BytesIO(data))
    return [
        circuit.assign_parameters(
            {p: program.angles[p.index] for p in circuit.parameters if isinstance(p, ParameterVectorElement)}
        )
        for circuit in circuits
    ]


def _layout_of(circuit: QuantumCircuit) -> tuple[int, ...]:
    if circuit.layout is None:
        return tuple(range(circuit.num_qubits))
    return tuple(circuit.layout.initial_index_layout(filter_ancillas=True))


def _duration(circuit: QuantumCircuit, device: Any) -> float:
    """The time from the circuit's first gate to its last measurement, by the device's gate times; else the usual one."""
    target = getattr(device, "target", None)
    ends = np.zeros(circuit.num_qubits)
    for instruction in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        start = ends[qubits].max() if qubits else 0.0
        length = 0.0
        if instruction.operation.name != "barrier":
            try:
                known = target[instruction.operation.name][tuple(qubits)].duration  # type: ignore[index]
            except (KeyError, TypeError, AttributeError):
                known = None
            if known is None:
                return USUAL_DURATION
            length = known
        ends[qubits] = start + length
    return float(ends.max(initial=0.0))
