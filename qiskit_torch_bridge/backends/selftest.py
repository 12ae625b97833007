"""A test that costs nothing: whether the transpiled circuit still gives the logical circuit's answers.

A permuted layout of the right size raises no error anywhere; it is only wrong. So the circuit in the device's gates is
simulated without noise on this machine, its idle qubits left out, and compared with the program at random angles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import Barrier
from qiskit.quantum_info import SparsePauliOp

from ..program.compiled import Program
from ..program.readout import MeasurementGroup, OutcomeGroup, PauliGroup
from .results import BoundCircuit
from .statevector import StatevectorBackend
from .transpiling import restricted_to

__all__ = ["require_same_answers"]

_MOST_QUBITS = 20
_ROWS = 2
_TOLERANCE = 1e-6


def require_same_answers(
    program: Program,
    circuits: Sequence[BoundCircuit],
    observables: Sequence[SparsePauliOp] = (),
    outputs: Sequence[int] = (),
    *,
    remedy: str = "Check the pass manager: it may drop no gate, and has to set a layout if it moves qubits.",
) -> str:
    """Compares circuits in a device's gates with their program.

    Args:
        program: The program.
        circuits: One a measurement group, measured; or a single one without measurements, and what is read of it:
        observables: On the device's qubits.
        outputs: Those that the observables give.
        remedy: What to do where they do not agree.

    Returns:
        The answer in words: that they agree, or why they could not be compared.

    Raises:
        ValueError: If they do not agree.
    """
    if not program.keeps_values:
        return "layout not tested: the circuits calibrate the device, and have no values"
    simulated = list(_without_noise(program, circuits, observables))
    backend = StatevectorBackend()
    size = max(backend.num_amplitudes(one) for one in (program, *simulated))
    if size > 2**_MOST_QUBITS:
        return (
            f"layout not tested: {size:.1g} amplitudes are too many to simulate here (more than those of {_MOST_QUBITS} "
            "qubits)"
        )
    rng = np.random.default_rng(20_000)
    angles = rng.uniform(-np.pi, np.pi, (_ROWS, len(program.angles)))
    expected = _exact(program, angles)
    values = np.broadcast_to(program.readout.constants, expected.shape).copy()
    for one, own in zip(circuits, simulated, strict=True):
        values[:, list(outputs) if observables else slice(None)] += _at(own, one.values(angles))
    difference = float(np.abs(values - expected).max(initial=0.0))
    if not difference < _TOLERANCE:
        raise ValueError(
            f"The transpiled circuit does not give the circuit's answers (they differ by {difference:.3g} at random angles, "
            f"without noise). {remedy}"
        )
    return f"layout tested: the transpiled circuit agrees with the logical one to {difference:.1g}"


def _without_noise(
    program: Program, circuits: Sequence[BoundCircuit], observables: Sequence[SparsePauliOp]
) -> Iterator[Program]:
    """Programs that give what the circuits would without noise."""
    for number, one in enumerate(circuits):
        circuit, place = _without_idle_qubits(one.circuit, observables)
        if observables:
            restricted = [restricted_to(observable, list(place)) for observable in observables]
            yield Program.compile(circuit, inputs=one.parameters, observables=restricted)
        else:
            yield _as_measured(circuit, one.parameters, program.readout.groups[number])


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
        circuit, inputs=parameters, probabilities=qubits, interpret=lambda outcome: int(group.outputs[outcome])
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


def _without_idle_qubits(
    circuit: QuantumCircuit, observables: Sequence[SparsePauliOp]
) -> tuple[QuantumCircuit, tuple[int, ...]]:
    """The circuit on the qubits that a gate, a measurement or an observable acts on, and which these are."""
    touched = {
        circuit.find_bit(qubit).index
        for instruction in circuit.data
        if instruction.operation.name not in ("barrier", "delay")
        for qubit in instruction.qubits
    }
    for observable in observables:
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
