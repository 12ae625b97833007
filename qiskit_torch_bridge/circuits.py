"""Circuits that experiments and users share: encodings and ansätze, with their parameters in column order."""

from __future__ import annotations

from typing import NamedTuple

from qiskit.circuit import ParameterVector, QuantumCircuit

__all__ = ["ParameterizedCircuit", "dressed", "textbook"]


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


def dressed(num_qubits: int = 4, depth: int = 6) -> ParameterizedCircuit:
    """The circuit of the dressed quantum network: H and RY by an input on each qubit, then variational layers.

    A layer entangles neighbours, first the pairs (0, 1), (2, 3), ..., then (1, 2), (3, 4), ..., with CNOT gates, and turns
    each qubit by a weight with RY; inputs and weights in radians, weights layer by layer. From Mari et al.,
    arXiv 1912.08278, equations 12 to 14.

    Raises:
        ValueError: If there are no qubits or no layers.
    """
    if num_qubits < 1 or depth < 1:
        raise ValueError(f"got num_qubits={num_qubits}, depth={depth}, expected at least 1 of each.")
    inputs, weights = ParameterVector("x", num_qubits), ParameterVector("w", num_qubits * depth)
    circuit = QuantumCircuit(num_qubits)
    circuit.h(range(num_qubits))
    for qubit in range(num_qubits):
        circuit.ry(inputs[qubit], qubit)
    for layer in range(depth):
        for first in (0, 1):
            for qubit in range(first, num_qubits - 1, 2):
                circuit.cx(qubit, qubit + 1)
        for qubit in range(num_qubits):
            circuit.ry(weights[layer * num_qubits + qubit], qubit)
    return ParameterizedCircuit(circuit, inputs, weights)
