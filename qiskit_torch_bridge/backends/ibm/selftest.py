"""A test that costs nothing: whether the transpiled circuit still gives the logical circuit's answers.

A permuted layout of the right size raises no error anywhere; it is only wrong. So the circuit in the device's gates is
simulated without noise on this machine, its idle qubits left out, and compared with the program at random angles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import Barrier

from ...program.compiled import Program
from ...program.readout import MeasurementGroup, OutcomeGroup, PauliGroup
from ..primitives import restricted_to
from ..statevector import StatevectorBackend
from .device_circuits import DeviceCircuit

__all__ = ["MOST_QUBITS", "test_layout"]

MOST_QUBITS = 20
_ROWS = 2
_TOLERANCE = 1e-6


def test_layout(program: Program, circuits: Sequence[DeviceCircuit]) -> str:
    """Compares a device's circuits with their program.

    Returns:
        What was found, in words: that they agree, or why they could not be compared.

    Raises:
        ValueError: If they do not agree; nothing may be submitted then.
    """
    compact = [_without_idle_qubits(circuit) for circuit in circuits]
    width = max((circuit.num_qubits for circuit, _ in compact), default=0)
    if max(width, len(program.active_qubits)) > MOST_QUBITS:
        return f"layout not tested: {width} qubits are too many to simulate here (more than {MOST_QUBITS})"
    rng = np.random.default_rng(20_000)
    angles = rng.uniform(-np.pi, np.pi, (_ROWS, len(program.angles)))
    expected = _exact(program, angles)
    values = np.broadcast_to(program.readout.constants, expected.shape).copy()
    for number, (original, (circuit, place)) in enumerate(zip(circuits, compact, strict=True)):
        parameters = original.bound.parameters
        if original.observables:
            observables = [restricted_to(observable, list(place)) for observable in original.observables]
            simulated = Program.compile(circuit, inputs=parameters, observables=observables)
            values[:, list(original.outputs)] += _at(simulated, original.bound.values(angles))
        else:
            simulated = _as_measured(circuit, parameters, program.readout.groups[number])
            values += _at(simulated, original.bound.values(angles))
    difference = float(np.abs(values - expected).max(initial=0.0))
    if not difference < _TOLERANCE:
        raise ValueError(
            f"The transpiled circuit does not give the circuit's answers (they differ by {difference:.3g} at random angles, "
            "without noise). Nothing was submitted. Check initial_layout; if there is none, this is a defect: report it."
        )
    return f"layout tested: the transpiled circuit agrees with the logical one to {difference:.1g}"


test_layout.__test__ = False  # type: ignore[attr-defined]  # pytest takes every test_* for its own


def _as_measured(circuit: QuantumCircuit, parameters: Sequence[Parameter], group: MeasurementGroup) -> Program:
    """A program that gives what the group contributes, from the qubits that are really measured."""
    measured = {
        circuit.find_bit(instruction.clbits[0]).index: circuit.find_bit(instruction.qubits[0]).index
        for instruction in circuit.data
        if instruction.operation.name == "measure"
    }
    qubits = [measured[bit] for bit in sorted(measured)]
    if isinstance(group, PauliGroup):
        observables = [o.apply_layout(qubits, num_qubits=circuit.num_qubits) for o in group.operators]
        return Program.compile(circuit, inputs=parameters, observables=observables)
    assert isinstance(group, OutcomeGroup)
    return Program.compile(
        circuit,
        inputs=parameters,
        probabilities=qubits,
        interpret=lambda outcome: int(group.outputs[outcome]),
    )


def _at(program: Program, parameters: np.ndarray) -> np.ndarray:
    """Exact values at parameters of shape (N, P)."""
    groups = program.evaluate_angles(torch.from_numpy(parameters), [torch.empty(0, dtype=torch.float64)])
    angles = np.empty((len(parameters), len(program.angles)))
    for group, columns in zip(groups, program.angle_map.slices, strict=True):
        angles[:, columns] = group.numpy()
    return _exact(program, angles)


def _exact(program: Program, angles: np.ndarray) -> np.ndarray:
    return StatevectorBackend().evaluate(program, angles, shots=None, seed=np.random.SeedSequence(0)).values


def _without_idle_qubits(on_device: DeviceCircuit) -> tuple[QuantumCircuit, tuple[int, ...]]:
    """The circuit on the qubits that a gate, a measurement or an observable acts on, and which these are."""
    circuit = on_device.bound.circuit
    touched = {
        circuit.find_bit(qubit).index
        for instruction in circuit.data
        if instruction.operation.name not in ("barrier", "delay")
        for qubit in instruction.qubits
    }
    for observable in on_device.observables:
        touched.update(np.flatnonzero((observable.paulis.x | observable.paulis.z).any(axis=0)).tolist())
    used = tuple(sorted(touched))
    place = {qubit: i for i, qubit in enumerate(used)}
    compact = QuantumCircuit(len(used), circuit.num_clbits)
    for instruction in circuit.data:
        qubits = [place[q] for q in (circuit.find_bit(qubit).index for qubit in instruction.qubits) if q in place]
        clbits = [circuit.find_bit(bit).index for bit in instruction.clbits]
        if instruction.operation.name == "barrier":
            if qubits:
                compact.append(Barrier(len(qubits)), qubits)
        elif instruction.operation.name != "delay":
            compact.append(instruction.operation, qubits, clbits)
    return compact, used
