"""What a noisy circuit gives, by plain NumPy on its definition; and noise models of every kind."""

from collections.abc import Callable
from functools import cache

import numpy as np
from qiskit.quantum_info import Kraus, Operator, PauliList, SuperOp, pauli_basis
from qiskit_aer.noise import (
    NoiseModel,
    PauliLindbladError,
    QuantumError,
    ReadoutError,
    amplitude_damping_error,
    coherent_unitary_error,
    depolarizing_error,
    kraus_error,
    mixed_unitary_error,
    pauli_error,
    phase_amplitude_damping_error,
    phase_damping_error,
    reset_error,
    thermal_relaxation_error,
)

from qiskit_torch_bridge.program.channels import Channel, NoisyCircuit, Rotation
from qiskit_torch_bridge.program.compiled import Program


@cache
def _turn(paulis: str) -> tuple[np.ndarray, ...]:
    """The transfer matrices of 1, of P.P and of -i/2 [P, .], for the Pauli string with the first qubit first."""
    basis = np.array(pauli_basis(len(paulis)).to_matrix())
    pauli = PauliList([paulis[::-1]]).to_matrix()[0]
    maps = (basis, pauli @ basis @ pauli, -0.5j * (pauli @ basis - basis @ pauli))
    return tuple(np.einsum("iab,jba->ij", basis, image).real / 2 ** len(paulis) for image in maps)


def evolved(circuit: NoisyCircuit, angles: np.ndarray) -> np.ndarray:
    """Shape (N, 4, ..., 4): the state in the Pauli basis, the last qubit's axis first."""
    n, rows = circuit.num_qubits, len(angles)
    turns = circuit.rotation_angles(angles)
    state = np.zeros((rows, *[4] * n))
    state[(slice(None), *np.ix_(*[[0, 3]] * n))] = 1.0
    for operation in circuit.operations:
        k = len(operation.qubits)
        if isinstance(operation, Channel):
            matrices = np.broadcast_to(operation.ptm, (rows, 4**k, 4**k))
        else:
            assert isinstance(operation, Rotation)
            one, flipped, mixed = _turn(operation.paulis)
            angle = turns[:, operation.column, None, None]
            matrices = (1 + np.cos(angle)) / 2 * one + (1 - np.cos(angle)) / 2 * flipped + np.sin(angle) * mixed
        axes = [n - q for q in reversed(operation.qubits)]
        front = list(range(1, k + 1))
        moved = np.moveaxis(state, axes, front)
        changed = np.matmul(matrices, moved.reshape(rows, 4**k, -1)).reshape(moved.shape)
        state = np.moveaxis(changed, front, axes)
    return state


def outcome_probabilities(circuit: NoisyCircuit, angles: np.ndarray, *, misread: bool = True) -> np.ndarray:
    """Shape (N, 2**k): those of the measured bits, the first the least significant; with their readout errors or not."""
    state, n = evolved(circuit, angles), circuit.num_qubits
    for qubit in range(n):
        state = np.take(state, [0, 3] if qubit in circuit.measured else [0], n - qubit)
    kept = state.reshape(len(angles), *[2] * len(circuit.measured))
    order = sorted(circuit.measured, reverse=True)
    kept = kept.transpose(0, *(1 + order.index(qubit) for qubit in reversed(circuit.measured)))
    k = len(circuit.measured)
    for bit, error in enumerate(circuit.readout):
        matrix = np.array([[1, 1], [1, -1]]) / 2
        if misread and error is not None:
            matrix = error.T @ matrix
        kept = np.moveaxis(np.tensordot(matrix, kept, (1, k - bit)), 0, k - bit)
    return kept.reshape(len(angles), -1)


def values_of(program: Program, circuits: tuple[NoisyCircuit, ...], angles: np.ndarray) -> np.ndarray:
    """Shape (N, M)."""
    values = np.broadcast_to(program.readout.constants, (len(angles), program.num_outputs)).copy()
    for group, circuit in zip(program.readout.groups, circuits, strict=True):
        values += group.moments(outcome_probabilities(circuit, angles))[0]
    return values


BASIS = ["id", "h", "sdg", "rx", "ry", "rz", "u", "p", "rzz", "rxx", "cx", "cz", "ecr", "unitary"]
ONE = ["h", "rx", "ry", "rz", "u", "p", "sx", "x"]
TWO = ["cx", "cz", "ecr", "rzz", "rxx"]
RELAXATION = thermal_relaxation_error(50e3, 60e3, 4000, 0.1)


def model(one: QuantumError | None, two: QuantumError | None = None, basis: list[str] | None = BASIS) -> NoiseModel:
    noise = NoiseModel(basis)
    if one is not None:
        noise.add_all_qubit_quantum_error(one, ONE)
    if two is not None:
        noise.add_all_qubit_quantum_error(two, TWO)
    return noise


def _local() -> NoiseModel:
    noise = model(depolarizing_error(0.02, 1), depolarizing_error(0.05, 2))
    for gate in ("rz", "u", "ry"):
        noise.add_quantum_error(amplitude_damping_error(0.1), gate, [0], warnings=False)
    asymmetric = depolarizing_error(0.1, 1).tensor(amplitude_damping_error(0.2))
    noise.add_quantum_error(asymmetric, "cx", [0, 1], warnings=False)
    noise.add_quantum_error(asymmetric.compose(coherent_unitary_error(_CZ_LIKE)), "cx", [1, 0], warnings=False)
    return noise


_CZ_LIKE = np.diag(np.exp(1j * np.array([0.0, 0.1, -0.2, 0.3])))
_TILT = np.array([[np.cos(0.1), -1j * np.sin(0.1)], [-1j * np.sin(0.1), np.cos(0.1)]])
_WEAK = 0.97**0.5 * np.eye(4), 0.03**0.5 * np.kron(np.diag([1, -1]), [[0, 1], [1, 0]])

MODELS: dict[str, Callable[[], NoiseModel]] = {
    "depolarising": lambda: model(depolarizing_error(0.01, 1), depolarizing_error(0.03, 2)),
    "translated": lambda: model(depolarizing_error(0.01, 1), depolarizing_error(0.03, 2), None),
    "Pauli": lambda: model(
        pauli_error([("X", 0.01), ("Z", 0.02), ("I", 0.97)]), pauli_error([("XY", 0.03), ("ZI", 0.01), ("II", 0.96)])
    ),
    "Pauli-Lindblad": lambda: model(
        PauliLindbladError(PauliList(["X", "Y"]), [0.01, 0.02]),
        PauliLindbladError(PauliList(["XZ", "IY"]), [0.01, 0.03]),
    ),
    "amplitude damping": lambda: model(amplitude_damping_error(0.05, 0.2)),
    "phase damping": lambda: model(phase_damping_error(0.08)),
    "both dampings": lambda: model(phase_amplitude_damping_error(0.05, 0.1, 0.3)),
    "thermal relaxation": lambda: model(RELAXATION, RELAXATION.tensor(thermal_relaxation_error(30e3, 20e3, 4000))),
    "reset": lambda: model(reset_error(0.03, 0.05)),
    "coherent": lambda: model(coherent_unitary_error(_TILT), coherent_unitary_error(_CZ_LIKE)),
    "mixed unitaries": lambda: model(mixed_unitary_error([(_TILT, 0.3), (np.eye(2), 0.7)])),
    "Kraus": lambda: model(kraus_error([0.9**0.5 * _TILT, 0.1**0.5 * np.diag([1, 1j])]), kraus_error(list(_WEAK))),
    "superoperator": lambda: model(
        QuantumError(SuperOp(RELAXATION).compose(SuperOp(Operator(_TILT)))), QuantumError(SuperOp(Kraus(list(_WEAK))))
    ),
    "named qubits": _local,
}


def with_readout(noise: NoiseModel) -> NoiseModel:
    """The model with bits that are misread, and preparation noise before their measurement."""
    noise.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.12, 0.88]]), warnings=False)
    noise.add_readout_error(ReadoutError([[0.8, 0.2], [0.05, 0.95]]), [0], warnings=False)
    noise.add_all_qubit_quantum_error(pauli_error([("X", 0.1), ("I", 0.9)]), "measure")
    return noise
