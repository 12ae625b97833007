"""The hydrogen molecule on two qubits: its Hamiltonian from published coefficients, exact energies, and an ansatz."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

COEFFICIENTS: Mapping[str, float] = {
    "II": -1.052373245772859,
    "IZ": 0.39793742484318045,
    "ZI": -0.39793742484318045,
    "ZZ": -0.01128010425623538,
    "XX": 0.18093119978423156,
}
"""In hartree, by Pauli strings as Qiskit writes them: the electrons of H2 at 0.735 angstrom in the STO-3G basis, by the
parity mapping with two qubits taken off. These are the numbers of the tutorials and tests of Qiskit's VQE (package
``qiskit-algorithms``), which give the ground state's energy as -1.85728."""
DISTANCE = 0.735
"""Of the two nuclei, in angstrom."""
_BOHR = 0.529177210903  # angstrom, CODATA 2018

HAMILTONIAN = SparsePauliOp.from_list(list(COEFFICIENTS.items()))
"""The electrons' energy in hartree, without the repulsion of the nuclei."""


def ground_energy() -> float:
    """The least eigenvalue of :data:`HAMILTONIAN`, in hartree: what no state is below."""
    return float(np.linalg.eigvalsh(HAMILTONIAN.to_matrix())[0])


def repulsion() -> float:
    """Of the nuclei, in hartree: one over their distance in bohr."""
    return _BOHR / DISTANCE


def ansatz() -> tuple[QuantumCircuit, ParameterVector]:
    """A hardware-efficient circuit of eight weights: RY and RZ on both qubits, CNOT, RY and RZ on both again.

    Each weight sets the angle of one rotation, so that the energy is a sinusoid in each (which Rotosolve needs). Weights in
    the order of the gates, in radians.
    """
    weights = ParameterVector("w", 8)
    circuit = QuantumCircuit(2)
    for layer in range(2):
        if layer:
            circuit.cx(0, 1)
        for qubit in range(2):
            circuit.ry(weights[4 * layer + qubit], qubit)
        for qubit in range(2):
            circuit.rz(weights[4 * layer + 2 + qubit], qubit)
    return circuit, weights
