"""A problem in Qiskit's terms, for every system that is built on Qiskit."""

from __future__ import annotations

from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from .gate_lists import Problem, play


def quantum_circuit(problem: Problem) -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """The problem's circuit in Qiskit's terms, with its inputs and weights."""
    circuit = QuantumCircuit(problem.num_qubits)
    inputs = ParameterVector("x", problem.inputs.shape[1])
    weights = ParameterVector("w", len(problem.weights))
    make = {name: getattr(circuit, name) for name in ("h", "cx", "cz", "rx", "ry", "rz")}
    for _ in play(problem, make, inputs.__getitem__, weights.__getitem__):
        pass
    return circuit, inputs, weights


def z_labels(problem: Problem) -> list[str]:
    """Z on each measured qubit, as Pauli labels: qubit 0 is the last letter."""
    identity = "I" * problem.num_qubits
    return [identity[q + 1 :] + "Z" + identity[:q] for q in problem.measured]
