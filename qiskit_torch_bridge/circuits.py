"""Circuits that experiments and users share: encodings and ansätze, with their parameters in column order."""

from __future__ import annotations

from typing import NamedTuple

from qiskit.circuit import ParameterVector, QuantumCircuit

__all__ = ["ParameterizedCircuit", "textbook"]


class ParameterizedCircuit(NamedTuple):
    """A circuit with the parameters that :class:`~qiskit_torch_bridge.QuantumLayer` wants told apart."""

    circuit: QuantumCircuit
    inputs: ParameterVector
    weights: ParameterVector


def textbook(num_qubits: int = 1) -> ParameterizedCircuit:
    """The circuit of the Qiskit textbook's hybrid network: H, RY by an input and a measurement on each qubit; no weights.

    For one qubit the probability of outcome 1 is ``(1 + sin(input)) / 2``, the input in radians.

    Raises:
        ValueError: If there are no qubits.
    """
    if num_qubits < 1:
        raise ValueError(f"num_qubits: got {num_qubits}, expected at least 1.")
    inputs = ParameterVector("x", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        circuit.h(qubit)
        circuit.ry(inputs[qubit], qubit)
    circuit.measure_all()
    return ParameterizedCircuit(circuit, inputs, ParameterVector("w", 0))
