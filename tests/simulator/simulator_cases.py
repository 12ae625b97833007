"""Random circuits with what Qiskit's own matrices make of them, for the tests of the compiled simulator.

The oracle for values and gradients is a few lines of NumPy that multiply whole states by the matrices that Qiskit gives
for its gates, for all rows and all shifted angles at once; one test holds it against Qiskit's own ``Statevector``.
Derivatives are parameter-shift differences of it, so they are exact up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import UnitaryGate, get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp, random_unitary

from qiskit_torch_bridge import Program, StatevectorBackend
from qiskit_torch_bridge.simulator.engine import Simulator

VALUES = 1e-12
GRADIENTS = 1e-11
FAMILY = 1e-3
SEED = np.random.SeedSequence(7)

ROTATIONS = {"rx": 1, "ry": 1, "rz": 1, "p": 1, "rxx": 2, "ryy": 2, "rzz": 2, "rzx": 2, "cp": 2, "u": 1}
CONSTANTS = (
    *("h", "x", "y", "z", "s", "sdg", "t", "tdg", "sx", "sxdg", "id"),
    *("cx", "cz", "cy", "ch", "swap", "iswap", "dcx", "ecr", "csx", "cs", "csdg"),
    *("ccx", "ccz", "cswap", "rccx"),
)
GATES = get_standard_gate_name_mapping()


# ------------------------------------------------------------------------------------------------- circuits


def random_circuit(n: int, seed: int, size: int, free: int = 100) -> QuantumCircuit:
    """Gates of all kinds, each free angle a parameter of its own; no qubit begins in an eigenstate of anything."""
    rng = np.random.default_rng(seed)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.u(*rng.uniform(0.3, 2.8, 3), qubit)
    kinds = [*ROTATIONS, *CONSTANTS, *["unitary"] * 3, "barrier"]
    count = 0
    for number in range(size):
        # Every kind in turn, as long as there are enough qubits, then at random.
        name = kinds[(seed + number) % len(kinds)] if number < len(kinds) else str(rng.choice(kinds))
        if name == "barrier":
            circuit.barrier()
            continue
        width = int(rng.integers(1, min(n, 3) + 1)) if name == "unitary" else GATES[name].num_qubits
        if width > n:
            name, width = "u", 1
        qubits = rng.permutation(n)[:width].tolist()
        if name == "unitary":
            circuit.append(UnitaryGate(random_unitary(2**width, seed=int(rng.integers(2**31)))), qubits)
            continue
        arguments: list[Any] = rng.uniform(-4, 4, len(GATES[name].params)).tolist()
        for place in range(len(arguments)):
            if count < free and rng.random() < 0.7:
                arguments[place] = Parameter(f"x{count:03d}")
                count += 1
        circuit.append(GATES[name].base_class(*arguments), qubits)
    return circuit


def real_circuit(n: int, seed: int, size: int) -> QuantumCircuit:
    """Only gates that keep real amplitudes real, up to a phase."""
    rng = np.random.default_rng(seed)
    circuit = QuantumCircuit(n)
    names = ["ry", "ry", "h", "x", "y", "z", "cx", "cz", "ch", "swap", "dcx", "ccx", "ccz", "cswap", "unitary"]
    for number in range(size):
        name = "ry" if number < n else str(rng.choice(names))
        width = 2 if name == "unitary" else GATES[name].num_qubits
        if width > n:
            continue
        qubits = [number] if number < n else rng.permutation(n)[:width].tolist()
        if name == "ry":
            circuit.ry(Parameter(f"x{len(circuit.parameters):03d}"), qubits[0])
        elif name == "unitary":
            orthogonal, _ = np.linalg.qr(rng.normal(size=(4, 4)))
            circuit.append(UnitaryGate(orthogonal), qubits)
        else:
            circuit.append(GATES[name], qubits)
    return circuit


def parameters_of(circuit: QuantumCircuit) -> list[Parameter]:
    return sorted(circuit.parameters, key=lambda parameter: parameter.name)


def pauli(n: int, **letters: int | Sequence[int]) -> str:
    """``pauli(3, X=0, Z=[1])`` is ``"IZX"``."""
    label = ["I"] * n
    for letter, qubits in letters.items():
        for qubit in [qubits] if isinstance(qubits, int) else qubits:
            label[n - 1 - qubit] = letter
    return "".join(label)


def random_strings(n: int, count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("IXYZ"), n)) for _ in range(count)]


def some_observables(n: int, seed: int = 0) -> list[SparsePauliOp]:
    """One qubit; strings with odd and even numbers of Y; a sum with an identity; one that shares its strings."""
    rng = np.random.default_rng(seed)
    labels = [*random_strings(n, 5, seed), "I" * n, pauli(n, Y=0)]
    return [
        SparsePauliOp(pauli(n, Z=n - 1)),
        SparsePauliOp("".join(rng.choice(list("XYZ"), n))),
        SparsePauliOp(labels, rng.normal(size=len(labels))),
        SparsePauliOp(labels[1:4], rng.normal(size=3)),
        SparsePauliOp([pauli(n, X=0), pauli(n, Y=range(min(2, n))), pauli(n, Z=0)], [0.5, -1.5, 2.0]),
    ]


# ------------------------------------------------------------------------------------------------- oracle


def applied(states: np.ndarray, matrices: np.ndarray, qubits: Sequence[int]) -> np.ndarray:
    """States of shape (B, 2**n) times a matrix, or one for each of them; Qiskit's order of qubits."""
    rows, n, k = len(states), int(np.log2(states.shape[1])), len(qubits)
    tensor = states.reshape(rows, *[2] * n)
    axes = [n - qubit for qubit in reversed(qubits)]
    last = list(range(n + 1 - k, n + 1))
    moved = np.moveaxis(tensor, axes, last)
    product = moved.reshape(rows, -1, 2**k) @ np.swapaxes(matrices, -1, -2)
    return np.moveaxis(product.reshape(moved.shape), last, axes).reshape(rows, -1)


def oracle_states(circuit: QuantumCircuit, parameters: Sequence[Parameter], points: np.ndarray) -> np.ndarray:
    """The states at points of shape (B, P), by the matrices of Qiskit's gates."""
    states = np.zeros((len(points), 2**circuit.num_qubits), complex)
    states[:, 0] = 1
    column = {parameter: points[:, i] for i, parameter in enumerate(parameters)}
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.name in ("barrier", "delay"):
            continue
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        if operation.params and any(isinstance(value, Parameter) for value in operation.params):
            values = [column[v] if isinstance(v, Parameter) else np.full(len(points), v) for v in operation.params]
            arguments = np.stack(values, axis=1)
            distinct, which = np.unique(arguments, axis=0, return_inverse=True)
            table = np.array([operation.base_class(*values).to_matrix() for values in distinct.tolist()])
            matrices = table[which.reshape(-1)]
        else:
            matrices = operation.to_matrix()
        states = applied(states, matrices, qubits)
    return states


def expectation(states: np.ndarray, operator: SparsePauliOp) -> np.ndarray:
    return np.sum(states.conj() * (operator.to_matrix(sparse=True) @ states.T).T, axis=1).real


def shifted(points: np.ndarray) -> np.ndarray:
    """Shape (P, 2, N, P): each row with each angle shifted by a quarter turn, forwards and backwards."""
    width = points.shape[1]
    steps = np.pi / 2 * np.stack([np.eye(width), -np.eye(width)], axis=1)
    return points + steps[:, :, None, :]


@dataclass(frozen=True, eq=False)
class Case:
    """A circuit with a readout, what the package makes of it, and what the oracle says.

    Attributes:
        circuit: Each parameter in one gate.
        observables: What is read; None for probabilities.
        qubits: Whose probabilities are read.
        classes: The class of each outcome (``interpret``), or None.
        precision: The backend's.
    """

    circuit: QuantumCircuit
    observables: Sequence[Any] | None = None
    qubits: Sequence[int] | None = None
    classes: Sequence[int] | None = None
    precision: str = "double"

    @cached_property
    def parameters(self) -> list[Parameter]:
        return parameters_of(self.circuit)

    @cached_property
    def program(self) -> Program:
        interpret = None if self.classes is None else self.classes.__getitem__
        readout = {"observables": self.observables, "probabilities": self.qubits, "interpret": interpret}
        return Program.compile(self.circuit, inputs=self.parameters, **readout)

    @cached_property
    def backend(self) -> StatevectorBackend:
        return StatevectorBackend(precision=self.precision)

    @property
    def simulator(self) -> Simulator:
        return self.backend._simulator(self.program)

    @property
    def num_passes(self) -> int:
        return len(self.simulator.plan.passes)

    def points(self, rows: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).uniform(-4, 4, (rows, len(self.parameters)))

    def angles(self, points: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(points[:, self.order])

    @cached_property
    def order(self) -> np.ndarray:
        """Shape (A,): which parameter each angle is."""
        numbers = torch.arange(len(self.parameters), dtype=torch.float64)[None]
        groups = self.program.evaluate_angles(numbers, [torch.zeros(0, dtype=torch.float64)])
        return np.rint(torch.cat(list(groups), dim=1)[0].numpy()).astype(int)

    def values(self, points: np.ndarray) -> np.ndarray:
        return self.backend.evaluate(self.program, self.angles(points), shots=None, seed=SEED).values

    def upstream(self, rows: int) -> np.ndarray:
        return np.random.default_rng(5).normal(size=(rows, self.program.num_outputs))

    def pullback(self, points: np.ndarray, upstream: np.ndarray, *, keep: bool = True) -> np.ndarray:
        """By the parameters, shape (N, P)."""
        angles = self.angles(points)
        state = self.backend.evaluate_for_pullback(self.program, angles).state if keep else None
        by_angle = self.backend.pullback(self.program, angles, upstream, state, np.ones(len(self.order), bool))
        gradients = np.zeros(points.shape)
        gradients[:, self.order] = by_angle
        return gradients

    def expected(self, points: np.ndarray) -> np.ndarray:
        """The oracle's values, shape (N, M)."""
        states = oracle_states(self.circuit, self.parameters, points)
        if self.observables is not None:
            return np.stack([expectation(states, SparsePauliOp(o)) for o in self.observables], axis=1)
        qubits = list(self.qubits)
        outcome = np.zeros(states.shape[1], int)
        for bit, qubit in enumerate(qubits):
            outcome |= ((np.arange(states.shape[1]) >> qubit) & 1) << bit
        classes = np.arange(2 ** len(qubits)) if self.classes is None else np.array(self.classes)
        values = np.zeros((len(points), classes.max() + 1))
        np.add.at(values, (slice(None), classes[outcome]), np.abs(states) ** 2)
        return values

    def expected_pullback(self, points: np.ndarray, upstream: np.ndarray) -> np.ndarray:
        """By the parameter-shift rule on the oracle's values."""
        width = points.shape[1]
        if not width:
            return np.zeros(points.shape)
        values = self.expected(shifted(points).reshape(-1, width)).reshape(width, 2, len(points), -1)
        return np.einsum("pnm,nm->np", (values[:, 0] - values[:, 1]) / 2, upstream)

    def check(self, *batches: int, keep: bool = True, atol: tuple[float, float] = (VALUES, GRADIENTS)) -> None:
        """Compares values and gradients with the oracle's, in batches of so many rows."""
        for rows in batches:
            points, upstream = self.points(rows), self.upstream(rows)
            np.testing.assert_allclose(self.values(points), self.expected(points), atol=atol[0])
            gradients = self.pullback(points, upstream, keep=keep)
            np.testing.assert_allclose(gradients, self.expected_pullback(points, upstream), atol=atol[1])
