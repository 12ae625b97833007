"""The compiled simulator, against Qiskit's gate matrices and operators, closed forms and exact distributions.

The oracle for values and gradients is a few lines of NumPy that multiply whole states by the matrices that Qiskit gives
for its gates, for all rows and all shifted angles at once; one test holds it against Qiskit's own ``Statevector``.
Derivatives are parameter-shift differences of it, so they are exact up to rounding.

Random checks have fixed seeds. ``FAMILY`` is the probability with which a test of correct code would fail if its seeds
were drawn afresh: each of its k comparisons fails with a probability of ``FAMILY / k``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import psutil
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import UnitaryGate, get_standard_gate_name_mapping
from qiskit.quantum_info import SparsePauliOp, Statevector, random_unitary
from torch.utils.data import DataLoader, Dataset

from qiskit_torch_bridge import Program, QuantumLayer, StatevectorBackend
from qiskit_torch_bridge.simulator import compiling, engine, plan, sampling, threads
from qiskit_torch_bridge.simulator.engine import Simulator

stats = pytest.importorskip("scipy.stats")

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
            arguments = np.stack(
                [column[v] if isinstance(v, Parameter) else np.full(len(points), v) for v in operation.params], axis=1
            )
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
        return Program.compile(
            self.circuit,
            inputs=self.parameters,
            observables=self.observables,
            probabilities=self.qubits,
            interpret=None if self.classes is None else self.classes.__getitem__,
        )

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

    def check(self, rows: int = 3, *, keep: bool = True) -> None:
        points, upstream = self.points(rows), self.upstream(rows)
        np.testing.assert_allclose(self.values(points), self.expected(points), atol=VALUES)
        np.testing.assert_allclose(
            self.pullback(points, upstream, keep=keep), self.expected_pullback(points, upstream), atol=GRADIENTS
        )


@pytest.fixture
def num_threads() -> Any:
    """Sets torch's number of threads, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes blocks and their runs small, so that few qubits are many passes."""
    chosen = Simulator._lanes

    def lanes(self: Simulator, rows: int) -> int:
        return chosen(self, rows) if self.plan.whole else 1  # states of several blocks lie one by one

    def set_sizes(block: int = 5, run: int = 3) -> None:
        monkeypatch.setattr(Simulator, "_lanes", lanes)
        monkeypatch.setattr(plan, "BLOCK_QUBITS", block)
        monkeypatch.setattr(plan, "_RUN_QUBITS", run)

    return set_sizes


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_oracle_is_qiskits(n):
    case = Case(random_circuit(n, n, 60), some_observables(n))
    points = case.points(2)
    for point, state, values in zip(
        points, oracle_states(case.circuit, case.parameters, points), case.expected(points), strict=True
    ):
        bound = dict(zip(case.parameters, point.tolist(), strict=True))
        truth = Statevector(case.circuit.assign_parameters(bound))
        np.testing.assert_allclose(state, truth.data, atol=1e-12)
        np.testing.assert_allclose(values, [truth.expectation_value(o).real for o in case.observables], atol=1e-12)


# ------------------------------------------------------------------------------------------------- all gates


ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 17, 40)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("seed", range(3))
def test_random_circuits_in_batches_of_all_sizes(n, seed):
    """Values and gradients of the first rows are those of the oracle, whatever comes after and beside them."""
    case = Case(random_circuit(n, 17 * seed, 45, free=12), some_observables(n, seed))
    assert len(case.parameters) >= 5
    points, upstream = case.points(max(ROWS)), case.upstream(max(ROWS))
    values, gradients = case.expected(points), case.expected_pullback(points, upstream)
    for rows in ROWS:
        np.testing.assert_allclose(case.values(points[:rows]), values[:rows], atol=VALUES)
        np.testing.assert_allclose(case.pullback(points[:rows], upstream[:rows]), gradients[:rows], atol=GRADIENTS)


@pytest.mark.parametrize("n", range(3, 10))
def test_rows_one_by_one_and_eight_side_by_side(monkeypatch, n):
    """Both layouts, whatever sizes each is chosen for."""
    case = Case(random_circuit(n, 3 * n, 45, free=6), some_observables(n))
    chosen = {case.simulator._lanes(rows) for rows in (1, 8, 1000)}
    assert chosen == {1, 8}
    for lanes in (1, 8):
        monkeypatch.setattr(Simulator, "_lanes", lambda self, rows, lanes=lanes: lanes)
        for rows in (1, 7, 8, 9):
            case.check(rows)


@pytest.mark.parametrize("n", [10, 11, 12, 13])
def test_random_circuits_as_large_as_a_block(n):
    case = Case(random_circuit(n, n, 45, free=4), some_observables(n))
    points, upstream = case.points(9), case.upstream(9)
    values, gradients = case.expected(points), case.expected_pullback(points, upstream)
    for rows in (1, 2, 3, 9):
        np.testing.assert_allclose(case.values(points[:rows]), values[:rows], atol=VALUES)
        np.testing.assert_allclose(case.pullback(points[:rows], upstream[:rows]), gradients[:rows], atol=GRADIENTS)


@pytest.mark.parametrize(("n", "seed"), [(14, 3), (15, 26)])
def test_random_circuits_larger_than_a_block(n, seed):
    case = Case(random_circuit(n, seed, 45, free=4), some_observables(n))
    assert case.num_passes > 2
    case.check(3)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("block", "run"), [(3, 3), (4, 3), (5, 3), (6, 4), (7, 3)])
@pytest.mark.parametrize("seed", [0, 11, 22])
def test_random_circuits_in_many_small_blocks(small_blocks, block, run, seed, keep):
    small_blocks(block, run)
    case = Case(random_circuit(8, seed, 60, free=8), some_observables(8, seed))
    assert case.num_passes > 3
    assert not case.simulator.plan.whole
    case.check(3, keep=keep)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_threads_share_the_blocks_of_several_rows(small_blocks, num_threads, monkeypatch, rows, count):
    """A thread may begin in the middle of a row, at blocks that are still zero."""
    small_blocks()
    monkeypatch.setattr(threads, "_LEAST_SECONDS", 1e-15)
    num_threads(count)
    Case(random_circuit(8, 4, 40, free=5), some_observables(8)).check(rows)
    constant = Case(fixed(8), [pauli(8, X=7, Z=0)])
    points = np.zeros((rows, 0))
    np.testing.assert_allclose(constant.values(points), constant.expected(points), atol=VALUES)


def fixed(n: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(0.2 + 0.3 * qubit, qubit)
        circuit.cx(qubit, (qubit + max(1, n // 2)) % n)
    return circuit


@pytest.mark.parametrize("width", [6, 7, 8])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_gate_wider_than_a_block(small_blocks, width, where):
    """Its pass takes larger blocks, up to the whole state."""
    small_blocks()
    wide = UnitaryGate(random_unitary(2**width, seed=width))
    circuit = QuantumCircuit(8)
    if where == "first":
        circuit.append(wide, range(8 - width, 8))
    circuit.compose(random_circuit(8, 1, 15, free=4), inplace=True)
    if where == "middle":
        circuit.append(wide, range(8 - width, 8))
        for qubit in range(8):
            circuit.ry(Parameter(f"y{qubit}"), qubit)
        circuit.cx(0, 7)
        circuit.rx(Parameter("z"), 7)
    if where == "last":
        circuit.append(wide, range(8 - width, 8))
    case = Case(circuit, some_observables(8))
    assert any(one.num_qubits >= width for one in case.simulator.plan.passes)
    case.check(2)


def test_a_unitary_on_ten_of_fourteen_qubits():
    """With the qubits of the runs its block is the whole state, in one pass of several."""
    circuit = fixed(14)
    circuit.rx(Parameter("a"), 9)
    circuit.append(UnitaryGate(random_unitary(2**10, seed=1)), range(4, 14))
    circuit.ry(Parameter("b"), 3)
    circuit.cx(3, 12)
    circuit.ry(Parameter("c"), 12)
    case = Case(circuit, [SparsePauliOp([pauli(14, Z=[0, 9, 12]), pauli(14, X=[12, 3])], [1.0, 2.0])])
    assert case.num_passes > 1
    assert any(len(one.runs) == 0 for one in case.simulator.plan.passes)
    case.check(1)


# ------------------------------------------------------------------------------------------------- fusion


def test_one_qubit_gates_that_follow_each_other_are_one_operation():
    circuit = QuantumCircuit(1)
    for number, name in enumerate(["h", "rx", "s", "ry", "t", "rz", "x", "p", "sdg", "rx", "sx", "rz", "y"]):
        if name in ROTATIONS:
            circuit.append(GATES[name].base_class(Parameter(f"x{number:02d}")), [0])
        else:
            circuit.append(GATES[name], [0])
    case = Case(circuit, ["X", "Y", "Z"])
    assert case.simulator.plan.passes[0].num_operations == 1
    for rows in (1, 2, 5, 9):
        case.check(rows)


def test_permutations_that_follow_each_other_are_one_operation():
    circuit = QuantumCircuit(5)
    for qubit in range(5):
        circuit.ry(Parameter(f"a{qubit}"), qubit)
    for pair in [(0, 1), (1, 2), (4, 3), (2, 0), (3, 1)]:
        circuit.cx(*pair)
    circuit.cz(0, 4)
    circuit.swap(1, 3)
    circuit.ccx(0, 2, 4)
    circuit.ccz(4, 1, 0)
    circuit.cswap(1, 0, 3)
    circuit.dcx(2, 4)
    for qubit in range(5):
        circuit.rx(Parameter(f"b{qubit}"), qubit)
    case = Case(circuit, some_observables(5))
    assert case.simulator.plan.passes[0].num_operations == 11
    for rows in (1, 3, 9):
        case.check(rows)


def test_diagonals_on_a_pair_are_one_operation_in_either_order_of_the_qubits():
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.u(0.4 + qubit, 0.9, 1.3, qubit)
    for number, (name, pair) in enumerate(
        [("cp", (0, 3)), ("rzz", (3, 0)), ("cp", (3, 0)), ("cs", (3, 0)), ("csdg", (0, 3)), ("rzz", (0, 3))]
    ):
        gate = GATES[name].base_class(Parameter(f"x{number}")) if name in ROTATIONS else GATES[name]
        circuit.append(gate, pair)
    diagonal = np.exp(1j * np.array([0.1, 0.7, -0.4, 1.9]))
    circuit.append(UnitaryGate(np.diag(diagonal)), (3, 0))
    circuit.append(UnitaryGate(np.diag(diagonal)), (0, 3))
    case = Case(circuit, ["XIIX", "YIIX", "XIIZ", "IIIY"])
    assert case.simulator.plan.passes[0].num_operations == 5
    for rows in (1, 2, 5, 9):
        case.check(rows)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_layers_whose_gates_wait_for_each_other(n):
    """Ladders of entangling gates, from below, from above and in two colours, between rotations."""
    circuit = QuantumCircuit(n)
    count = 0
    for layer in range(3):
        for qubit in range(n):
            circuit.append(
                GATES[["ry", "rx", "rz"][(layer + qubit) % 3]].base_class(Parameter(f"x{count:02d}")), [qubit]
            )
            count += 1
        ladder = [(q, q + 1) for q in range(n - 1)]
        order = [ladder, ladder[::-1], ladder[::2] + ladder[1::2]][layer]
        for pair in order:
            circuit.append(GATES[["cx", "cz", "iswap"][layer]], pair)
    Case(circuit, some_observables(n)).check(5)


# ------------------------------------------------------------------------------------------------- readout


def test_two_hundred_random_strings():
    strings = random_strings(6, 200, 1)
    rng = np.random.default_rng(2)
    observables = [SparsePauliOp(strings, rng.normal(size=200)), *[SparsePauliOp(s) for s in strings[:40]]]
    assert len({s.translate(str.maketrans("XYZI", "1100")) for s in strings}) > 30
    case = Case(random_circuit(6, 2, 30, free=6), observables)
    for rows in (1, 3, 9):
        case.check(rows)


LETTERS = ("Y", "YY", "YYY", "YYYY", "XY", "YZ", "XYZ", "ZZXX", "XYYZ")


@pytest.mark.parametrize(("n", "letters"), [(n, word) for n in (1, 2, 4, 5) for word in LETTERS if len(word) <= n])
def test_strings_of_every_kind(n, letters):
    labels = [letters.ljust(n, "I"), letters.rjust(n, "I"), letters[::-1].ljust(n, "Z")]
    for rows in (1, 2, 4, 9):
        Case(random_circuit(n, 3, 12, free=3), [SparsePauliOp(label) for label in labels]).check(rows)


@pytest.mark.parametrize("block", [3, 4, 5])
@pytest.mark.parametrize("rows", [1, 3])
def test_strings_across_blocks(small_blocks, block, rows):
    """Flips and signs on qubits within a block, on those that number the blocks, and on both."""
    small_blocks(block, 3)
    n = 8
    labels = [
        *(pauli(n, **{letter: qubit}) for letter in "XYZ" for qubit in range(n)),
        *(pauli(n, X=low, Y=high) for low, high in [(0, 7), (1, 6), (2, 5), (7, 0)]),
        *(pauli(n, Y=[low, high]) for low, high in [(0, 7), (6, 7), (0, 1)]),
        *(pauli(n, Z=[low, high], X=middle) for low, high, middle in [(0, 7, 6), (5, 7, 1), (5, 6, 7)]),
        *random_strings(n, 12, 7),
    ]
    case = Case(random_circuit(n, 6, 30, free=4), [SparsePauliOp(label) for label in labels])
    assert case.simulator.plan.observables.num_qubits == block
    case.check(rows)


def test_strings_across_blocks_of_a_large_state():
    n = 15
    labels = [pauli(n, X=14), pauli(n, Y=[13, 0]), pauli(n, Z=[14, 2], X=[13, 1]), pauli(n, Y=14), pauli(n, Z=[13, 14])]
    labels.append(pauli(n, Y=[14, 13, 12, 11], X=0))
    case = Case(
        random_circuit(n, 6, 10, free=2), [*map(SparsePauliOp, labels), SparsePauliOp(labels, np.arange(6) - 2)]
    )
    case.check(2)


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("qubits", [[0], [4, 2], [5, 0, 3], [6, 5, 4, 3, 2, 1, 0], list(range(7))])
@pytest.mark.parametrize("interpreted", [False, True])
def test_probabilities(small_blocks, block, qubits, interpreted):
    small_blocks(block, 3)
    n = 7
    classes = [(3 * outcome + 1) % 5 for outcome in range(2 ** len(qubits))] if interpreted else None
    case = Case(random_circuit(n, 8, 40, free=5), None, qubits, classes)
    assert case.simulator.plan.whole == (block == 13)
    for rows in (1, 2, 9):
        case.check(rows)


def test_probabilities_of_a_large_state():
    Case(random_circuit(14, 9, 30, free=3), None, [13, 0, 12, 5]).check(2)


@pytest.mark.parametrize(("n", "seed"), [*((n, seed) for n in (1, 2, 4, 6) for seed in range(3)), (14, 0)])
def test_real_circuits_use_one_plane_and_give_the_same_as_two(n, seed):
    circuit = real_circuit(n, seed, 40 if n < 14 else 30)
    strings = [pauli(n, Z=0), pauli(n, X=n - 1)]
    strings += [pauli(n, Y=[0, n - 1]), pauli(n, Y=[0, 1], X=n - 1 if n > 2 else [])] if n > 1 else []
    wider = QuantumCircuit(n + 1)
    wider.compose(circuit, range(n), inplace=True)
    wider.rz(Parameter("z"), n)
    real, same = Case(circuit, strings), Case(wider, ["I" + string for string in strings])
    assert (real.simulator.plan.planes, same.simulator.plan.planes) == (1, 2)
    for rows in (1, 3, 9) if n < 14 else (2,):
        points, upstream = same.points(rows), same.upstream(rows)
        np.testing.assert_allclose(real.values(points[:, :-1]), same.values(points), atol=VALUES)
        gradients = same.pullback(points, upstream)
        np.testing.assert_allclose(real.pullback(points[:, :-1], upstream), gradients[:, :-1], atol=GRADIENTS)
        np.testing.assert_allclose(gradients[:, -1], 0, atol=GRADIENTS)
    if n < 14:
        real.check(4)


def test_a_real_circuit_needs_two_planes_for_one_y():
    """Of a real state a single Y is 0; its derivative by a rotation about y is 0 too, and not what lies beside it."""
    circuit = real_circuit(4, 0, 30)
    even, odd = Case(circuit, ["YIIY", "XIIZ"]), Case(circuit, ["YIII", "IXYI", "YYYI", "ZIIZ"])
    assert (even.simulator.plan.planes, odd.simulator.plan.planes) == (1, 2)
    even.check(3)
    odd.check(3)
    np.testing.assert_allclose(odd.values(odd.points(3))[:, :3], 0, atol=VALUES)


@pytest.mark.parametrize("name", ["rx", "rz", "s", "sx", "rxx", "rzz", "cp", "cs", "iswap", "csx", "cy", "rccx"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_complex_gate_in_a_real_circuit(name, place):
    gate = GATES[name].base_class(*[Parameter("z")] * len(GATES[name].params))
    circuit = real_circuit(4, 2, 20)
    circuit.append(gate, [2, 0, 1][: gate.num_qubits])
    for qubit in range(4) if place == "first" else ():
        circuit.ry(Parameter(f"y{qubit}"), qubit)
    case = Case(circuit, ["XIIX", "YYII", "ZIXZ", "IYYI", "IIIZ"])
    assert case.simulator.plan.planes == 2
    case.check(2)


def test_half_turns_between_rotations_stay_real():
    circuit = QuantumCircuit(2)
    for number, name in enumerate(["ry", "h", "ry", "x", "ry", "z", "h", "ry", "y", "ry", "h"]):
        gate = GATES["ry"].base_class(Parameter(f"x{number:02d}")) if name == "ry" else GATES[name]
        circuit.append(gate, [0])
    circuit.ry(Parameter("y"), 1)
    circuit.cx(1, 0)
    case = Case(circuit, ["ZZ", "IX", "IZ", "XX", "YY"])
    assert case.simulator.plan.planes == 1
    for rows in (1, 2, 9):
        case.check(rows)


# ------------------------------------------------------------------------------------------------- corner cases


def test_an_angle_that_no_operation_uses():
    case = Case(random_circuit(3, 1, 20, free=4), some_observables(3))
    spare = ParameterVector("spare", 2)
    wider = replace(case.program, angles=(*case.program.angles, *spare))
    points, upstream = case.points(5), case.upstream(5)
    angles = np.concatenate([case.angles(points), np.full((5, 2), 1e6)], axis=1)
    estimate = case.backend.evaluate_for_pullback(wider, angles)
    np.testing.assert_array_equal(estimate.values, case.values(points))
    gradients = case.backend.pullback(wider, angles, upstream, estimate.state, np.ones(6, bool))
    np.testing.assert_array_equal(gradients[:, 4:], 0)
    np.testing.assert_allclose(np.abs(gradients[:, :4]).sum(), np.abs(case.pullback(points, upstream)).sum())


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 14])
def test_circuits_without_gates_or_parameters(n, rows):
    points = np.zeros((rows, 0))
    labels = [pauli(n, Z=0), pauli(n, X=n - 1), pauli(n, Y=0), "I" * n]
    bare = Case(QuantumCircuit(n), labels)
    np.testing.assert_allclose(bare.values(points), np.tile([1.0, 0.0, 0.0, 1.0], (rows, 1)), atol=1e-15)
    assert bare.pullback(points, bare.upstream(rows)).shape == (rows, 0)
    constant = Case(fixed(n) if n > 1 else random_circuit(1, 0, 0), labels)
    np.testing.assert_allclose(constant.values(points), constant.expected(points), atol=VALUES)
    bits = Case(QuantumCircuit(n), None, [n - 1])
    np.testing.assert_allclose(bits.values(points), np.tile([1.0, 0.0], (rows, 1)), atol=1e-15)


def test_nothing_is_measured():
    """Without a qubit that a gate touches or that is measured, there are no qubits at all."""
    for circuit in (QuantumCircuit(3), fixed(3)):
        layer = QuantumLayer(circuit, observables=["III", SparsePauliOp("III", 2.5)])
        assert layer().tolist() == [1.0, 2.5]
        layer = QuantumLayer(circuit, observables=["III", SparsePauliOp("III", 2.5)], shots=7)
        assert layer().tolist() == [1.0, 2.5]


def test_idle_qubits_are_left_out():
    circuit = QuantumCircuit(40)
    circuit.ry(Parameter("a"), 3)
    circuit.cx(3, 31)
    circuit.rx(Parameter("b"), 31)
    circuit.rzx(Parameter("c"), 31, 17)
    small = QuantumCircuit(4)
    small.ry(Parameter("a"), 0)
    small.cx(0, 2)
    small.rx(Parameter("b"), 2)
    small.rzx(Parameter("c"), 2, 1)
    wide = Case(circuit, [pauli(40, Z=31), pauli(40, Y=[17, 3]), pauli(40, X=31, Z=39)])
    case = Case(small, [pauli(4, Z=2), pauli(4, Y=[1, 0]), pauli(4, X=2, Z=3)])
    assert wide.simulator.plan.num_qubits == 4
    points, upstream = case.points(3), case.upstream(3)
    np.testing.assert_allclose(wide.values(points), case.expected(points), atol=VALUES)
    np.testing.assert_allclose(
        wide.pullback(points, upstream), case.expected_pullback(points, upstream), atol=GRADIENTS
    )


def test_large_angles_and_special_ones():
    case = Case(random_circuit(4, 5, 30, free=6), some_observables(4))
    special = [0.0, -0.0, np.pi, -np.pi, np.pi / 2, 2 * np.pi, 1e-300, 1e4, -123456.0, 4 * np.pi]
    points = np.random.default_rng(0).choice(special, (40, 6))
    np.testing.assert_allclose(case.values(points), case.expected(points), atol=1e-10)
    upstream = case.upstream(40)
    np.testing.assert_allclose(case.pullback(points, upstream), case.expected_pullback(points, upstream), atol=1e-10)


# ------------------------------------------------------------------------------------------------- gradients


def masks(width: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    single = [np.arange(width) == column for column in range(width)]
    return [*single, ~single[0], np.zeros(width, bool), *(rng.random(width) < 0.5 for _ in range(6))]


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_what_else_is_wanted_does_not_matter(small_blocks, block, rows, keep):
    small_blocks(block, 3)
    case = Case(random_circuit(8, 1, 60, free=10), some_observables(8))
    angles, upstream = case.angles(case.points(rows)), case.upstream(rows)
    states = case.simulator.values(angles, keep=keep)[1]
    full = case.simulator.pullback(angles, upstream, states, np.ones(10, bool))
    assert np.abs(full).max(axis=0).min() > 1e-3, "every column shows"
    for wanted in masks(10):
        part = case.simulator.pullback(angles, upstream, states, wanted)
        np.testing.assert_allclose(part[:, wanted], full[:, wanted], atol=1e-13)
        np.testing.assert_array_equal(part[:, ~wanted], 0)


@pytest.mark.parametrize("block", [13, 5])
def test_frozen_first_layers(small_blocks, block):
    """The sweep stops behind them."""
    small_blocks(block, 3)
    n = 7
    first, last = ParameterVector("first", n), ParameterVector("last", n)
    circuit = QuantumCircuit(n)
    for weights in (first, last):
        for qubit in range(n):
            circuit.rx(weights[qubit], qubit)
            circuit.rz(0.3 * qubit, qubit)
        for qubit in range(n):
            circuit.cx(qubit, (qubit + 1) % n)
    init = {name: torch.randn(n, dtype=torch.float64) for name in ("first", "last")}
    layer = QuantumLayer(circuit, weights={"first": first, "last": last}, observables=some_observables(n), init=init)
    upstream = torch.randn(5, dtype=torch.float64)
    both = torch.autograd.grad((layer() * upstream).sum(), [*layer.parameters()])
    case = Case(circuit, some_observables(n))
    weights = np.concatenate([p.detach().numpy().ravel() for p in layer.parameters()])[None]
    truth = case.expected_pullback(weights, upstream.numpy()[None])[0]
    np.testing.assert_allclose(torch.cat([*both]).numpy(), truth, atol=GRADIENTS)
    for name, gradient in zip(("first", "last"), both, strict=True):
        for other, parameter in layer.named_parameters():
            parameter.requires_grad_(other.endswith(name))
        (mine,) = torch.autograd.grad((layer() * upstream).sum(), [p for p in layer.parameters() if p.requires_grad])
        np.testing.assert_allclose(mine.numpy(), gradient.numpy(), atol=1e-13)


@pytest.mark.parametrize("block", [13, 8, 7, 5])
@pytest.mark.parametrize("readout", ["observables", "probabilities"])
def test_a_backward_leaves_the_kept_states_alone(small_blocks, block, readout):
    small_blocks(block, 3)
    circuit = random_circuit(8, 3, 50, free=6)
    case = Case(circuit, some_observables(8)) if readout == "observables" else Case(circuit, None, [3, 1])
    angles, upstream = case.angles(case.points(3)), case.upstream(3)
    states = case.simulator.values(angles, keep=True)[1]
    before = states.planes.copy()
    for wanted in (np.ones(6, bool), np.arange(6) == 5, np.ones(6, bool)):
        case.simulator.pullback(angles, upstream, states, wanted)
        np.testing.assert_array_equal(states.planes, before)


def test_one_pass_over_several_blocks_leaves_the_kept_states_alone(small_blocks):
    small_blocks(5, 3)
    circuit = QuantumCircuit(8)
    for qubit in range(8):
        circuit.h(qubit)
    circuit.barrier()
    circuit.ry(Parameter("a"), 0)
    circuit.rx(Parameter("b"), 1)
    case = Case(circuit, [pauli(8, Y=[0, 1]), pauli(8, X=0), pauli(8, Z=1, Y=7)])
    angles, upstream = case.angles(case.points(2)), case.upstream(2)
    states = case.simulator.values(angles, keep=True)[1]
    before = states.planes.copy()
    case.simulator.pullback(angles, upstream, states, np.ones(2, bool))
    np.testing.assert_array_equal(states.planes, before)
    case.check(2)


@pytest.mark.parametrize("block", [13, 5])
def test_a_second_backward_gives_the_same_bits(small_blocks, block):
    small_blocks(block, 3)
    circuit = random_circuit(8, 3, 50, free=6)
    layer = QuantumLayer(circuit, inputs=parameters_of(circuit), observables=some_observables(8))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    values = layer(x)
    upstream = torch.randn_like(values)
    first, second = (torch.autograd.grad(values, x, upstream, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("size", [1, 2**12, 2**15])
def test_gradients_without_kept_states(small_blocks, monkeypatch, block, size):
    small_blocks(block, 3)
    case = Case(random_circuit(8, 3, 50, free=6), some_observables(8))
    points, upstream = case.points(13), case.upstream(13)
    assert case.simulator.values(case.angles(points), keep=True)[1] is not None
    with_states = case.pullback(points, upstream)
    monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", size)
    assert case.simulator.values(case.angles(points), keep=True)[1] is None
    np.testing.assert_allclose(case.pullback(points, upstream), with_states, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_kept_states_of_one_row_are_not_used_for_several(n):
    """A batch of upstream gradients repeats the one row that a layer without inputs has."""
    circuit = random_circuit(n, 2, 20, free=4)
    layer = QuantumLayer(circuit, weights=parameters_of(circuit), observables=some_observables(n), seed=1)
    point = layer.weights.detach()
    case = Case(circuit, some_observables(n))
    jacobian = np.concatenate([case.expected_pullback(point.numpy()[None], upstream[None]) for upstream in np.eye(5)])
    by_rows = torch.func.jacrev(lambda w: torch.func.functional_call(layer, {"weights": w}, ()))(point)
    np.testing.assert_allclose(by_rows.numpy(), jacobian, atol=GRADIENTS)
    angles = case.angles(point.numpy()[None])
    states = case.simulator.values(angles, keep=True)[1]
    repeated = case.simulator.pullback(np.repeat(angles, 5, axis=0), np.eye(5), states, np.ones(4, bool))
    np.testing.assert_allclose(repeated, jacobian[:, case.order], atol=GRADIENTS)


# ------------------------------------------------------------------------------------------------- shared beginnings


@pytest.fixture
def one_row_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is a unit of its own, so that it can share its beginning with the row before."""
    monkeypatch.setattr(Simulator, "_lanes", lambda self, rows: 1)


def changes(pattern: str, width: int) -> list[tuple[int, ...]]:
    """Which columns each row changes from the one before."""
    rng = np.random.default_rng(3)
    patterns: dict[str, list[tuple[int, ...]]] = {
        "equal": [()] * 6,
        "forwards": [(column,) for column in range(width)],
        "backwards": [(column,) for column in reversed(range(width))],
        "first": [(0,)] * 6,
        "last": [(width - 1,)] * 6,
        "first_and_last": [(0,), (width - 1,), (), (0,), (), (width - 1,), (width - 1,), (0, width - 1)],
        "back_and_forth": [
            (5,),
            (2,),
            (7,),
            (7,),
            (),
            (3,),
            (8,),
            (1,),
            (9,),
            (),
            (),
            (4,),
            (4,),
            (2,),
            (6,),
            (0,),
            (9,),
        ],
        "anything": [tuple(rng.permutation(width)[: rng.integers(0, 3)].tolist()) for _ in range(80)],
    }
    return patterns[pattern]


def rows_that_change(start: np.ndarray, columns: Sequence[tuple[int, ...]]) -> np.ndarray:
    rng = np.random.default_rng(4)
    rows = [start]
    for changed in columns:
        row = rows[-1].copy()
        row[list(changed)] = rng.uniform(-3, 3, len(changed))
        rows.append(row)
    return np.array(rows)


PATTERNS = (
    *("equal", "forwards", "backwards", "first", "last"),
    *("first_and_last", "back_and_forth", "anything"),
)


def sequence_case() -> Case:
    """Ten angles in ten operations, one after the other."""
    circuit = QuantumCircuit(4)
    for number in range(10):
        qubit = number % 4
        circuit.append(GATES[("rx", "rz", "ry")[number % 3]].base_class(Parameter(f"x{number}")), [qubit])
        circuit.ch(qubit, (qubit + 1) % 4)
        circuit.ecr((qubit + 1) % 4, (qubit + 2) % 4)
    return Case(circuit, some_observables(4))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_that_share_a_beginning_give_what_each_gives_alone(one_row_a_unit, num_threads, pattern):
    num_threads(1)
    case = sequence_case()
    angles = rows_that_change(np.random.default_rng(0).uniform(-3, 3, 10), changes(pattern, 10))
    together = case.simulator.values(angles)[0]
    alone = np.concatenate([case.simulator.values(angles[i : i + 1])[0] for i in range(len(angles))])
    np.testing.assert_array_equal(together, alone)
    for order in (slice(None, None, -1), np.random.default_rng(1).permutation(len(angles))):
        np.testing.assert_array_equal(case.simulator.values(np.ascontiguousarray(angles[order]))[0], alone[order])


def test_a_beginning_one_operation_too_long_would_show(one_row_a_unit):
    """Each angle changes the values, so that a state from behind it, made for the row before, would be seen."""
    case = sequence_case()
    start = np.random.default_rng(0).uniform(-3, 3, 10)
    rows = rows_that_change(start, [(column,) for column in range(10)])
    values = case.simulator.values(rows)[0]
    assert np.abs(np.diff(values, axis=0)).max(axis=1).min() > 1e-2


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_shifted_points_in_units_of_several_rows(n):
    case = Case(random_circuit(n, 4, 40, free=10), some_observables(n))
    points = shifted(case.points(3)).transpose(2, 0, 1, 3).reshape(-1, len(case.parameters))
    np.testing.assert_allclose(case.values(points), case.expected(points), atol=VALUES)
    np.testing.assert_allclose(case.values(np.repeat(points, 9, axis=0))[::9], case.expected(points), atol=VALUES)


# ------------------------------------------------------------------------------------------------- parts and threads


class RecordingPool(ThreadPoolExecutor):
    """Counts what it is given to do."""

    tasks = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.tasks += 1
        return super().submit(*args, **kwargs)


@pytest.fixture
def busy_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Threads share any work, however small; the pool that does it."""
    monkeypatch.setattr(threads, "_LEAST_SECONDS", 1e-15)
    with RecordingPool(8) as pool:
        monkeypatch.setattr(threads, "_pool", pool)
        yield pool


def everything(case: Case, rows: int) -> list[np.ndarray]:
    """Values, gradients, and values and variances with shots."""
    points = case.points(rows)
    sampled = case.backend.evaluate(case.program, case.angles(points), shots=100, seed=SEED)
    return [case.values(points), case.pullback(points, case.upstream(rows)), sampled.values, sampled.variances]


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("readout", ["observables", "probabilities"])
@pytest.mark.parametrize("rows", [3, 20, 100])
def test_results_do_not_depend_on_threads_and_parts(
    small_blocks, num_threads, busy_threads, monkeypatch, block, readout, rows
):
    """To the last bit."""
    small_blocks(block, 3)
    n = 6 if block == 13 else 7
    circuit = random_circuit(n, 3, 40, free=5)
    observables, qubits = (some_observables(n), None) if readout == "observables" else (None, [4, 1, 5])
    case = Case(circuit, observables, qubits)
    num_threads(1)
    expected = everything(case, rows)
    assert busy_threads.tasks == 0
    for count in (1, 2, 4):
        num_threads(count)
        before = busy_threads.tasks
        for small, large in [(2**20, 2**28), (1, 2**28), (2**13, 2**28), (2**20, 2**14), (1, 1)]:
            monkeypatch.setattr(engine, "_BYTES_OF_A_SMALL_PART", small)
            monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", large)
            for mine, theirs in zip(everything(case, rows), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
        assert (busy_threads.tasks > before) == (count > 1)


def test_threads_share_large_states_to_the_last_bit(num_threads):
    """With the thresholds as they are."""
    case = Case(random_circuit(15, 2, 40, free=4), some_observables(15))
    results = []
    for count in (1, 2, 4):
        num_threads(count)
        results.append(everything(case, 5))
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(results[0][0], case.expected(case.points(5)), atol=VALUES)


def test_python_threads_call_the_same_layer_and_others_at_once(num_threads, busy_threads):
    num_threads(2)
    circuits = [random_circuit(n, n, 30, free=5) for n in (2, 4, 6)]
    layers = [QuantumLayer(c, inputs=parameters_of(c), observables=some_observables(c.num_qubits)) for c in circuits]
    widths = {layer: len(layer.program.angles) for layer in layers}
    batches = [torch.randn(20, 5, dtype=torch.float64) for _ in range(8)]

    def run(number: int, layer: QuantumLayer) -> tuple[torch.Tensor, torch.Tensor]:
        x = batches[number][:, : widths[layer]].clone().requires_grad_()
        values = layer(x)
        return values.detach(), torch.autograd.grad(values.square().sum(), x)[0]

    jobs = [(number, layer) for _ in range(4) for number in range(8) for layer in layers]
    expected = [run(*job) for job in jobs]
    start = threading.Barrier(8)

    def of_thread(number: int) -> list[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        torch.set_num_threads(2)
        start.wait()
        return [(i, run(*jobs[i])) for i in range(number, len(jobs), 8)]

    with ThreadPoolExecutor(8) as callers:
        found = dict(pair for pairs in callers.map(of_thread, range(8)) for pair in pairs)
    assert busy_threads.tasks > len(jobs)
    for number, (values, gradients) in enumerate(expected):
        assert torch.equal(found[number][0], values)
        assert torch.equal(found[number][1], gradients)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_exception_of_a_part_reaches_the_caller_when_the_others_have_ended(num_threads, busy_threads, failing):
    num_threads(4)
    finished = []
    failed = threading.Event()

    def work(start: int, stop: int) -> None:
        if start == failing:
            failed.set()
            raise KeyError("broken")
        assert failed.wait(60)
        threading.Event().wait(0.05)  # long enough for a caller that would not wait
        finished.append(start)

    with pytest.raises(KeyError, match="broken"):
        threads.in_parallel(work, 4, 1.0)
    assert sorted(finished) == [part for part in range(4) if part != failing]


def test_too_little_work_stays_in_one_thread(num_threads, monkeypatch):
    monkeypatch.setattr(threads, "_pool", None)
    num_threads(4)
    parts = []
    threads.in_parallel(lambda start, stop: parts.append((start, stop)), 10, 1e-6)
    assert parts == [(0, 10)]
    assert threads._pool is None
    threads.in_parallel(lambda start, stop: parts.append((start, stop)), 3, 1.0)
    assert sorted(parts[1:]) == [(0, 1), (1, 2), (2, 3)]


# ------------------------------------------------------------------------------------------------- processes

# Forking a process that has threads: newer Pythons warn of what is on trial here.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def layer_with_threads() -> QuantumLayer:
    circuit = random_circuit(5, 3, 30, free=5)
    return QuantumLayer(circuit, inputs=parameters_of(circuit), observables=some_observables(5), seed=3)


def run_with_threads() -> list[list[float]]:
    """Values, gradients and values with shots of a layer, in two threads."""
    threads._LEAST_SECONDS = 1e-15
    torch.set_num_threads(2)
    layer = layer_with_threads()
    x = torch.linspace(-2, 2, 200, dtype=torch.float64).reshape(40, 5).requires_grad_()
    values = layer(x)
    (gradient,) = torch.autograd.grad(values.square().sum(), x)
    assert threads._pool is not None
    return [tensor.flatten().tolist() for tensor in (values, gradient, layer(x, shots=50))]


def send(connection: Any, work: Callable[[], Any]) -> None:
    connection.send(work())


def in_child(method: str, work: Callable[[], Any]) -> Any:
    """What a child process that is started by ``method`` gives; one that hangs is killed."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(theirs, work))
    child.start()
    theirs.close()
    try:
        assert mine.poll(120), "the child gave nothing"
        result = mine.recv()
        child.join(60)
        assert child.exitcode == 0
        return result
    finally:
        if child.is_alive():
            child.kill()
        child.join()


@forks
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_computes_the_same(num_threads, monkeypatch, method):
    monkeypatch.setattr(threads, "_LEAST_SECONDS", 1e-15)
    monkeypatch.setattr(threads, "_pool", None)
    expected = run_with_threads()
    pool = threads._pool
    assert in_child(method, run_with_threads) == expected
    assert threads._pool is pool, "the parent keeps its own"
    assert run_with_threads() == expected


class Circuits(Dataset):
    """Each entry is a run of a layer."""

    def __init__(self, layer: QuantumLayer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(torch.full((5,), 0.1 * index, dtype=torch.float64))


@forks
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_data_loader_runs_circuits_in_its_workers(num_threads, busy_threads, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    num_threads(2)
    layer = layer_with_threads()
    rows = 0.1 * torch.arange(12, dtype=torch.float64)[:, None].expand(-1, 5)
    expected = layer(rows)
    assert busy_threads.tasks
    loader = DataLoader(
        Circuits(layer),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=method,
        timeout=120,
        persistent_workers=method == "spawn",  # to start one takes seconds; forked ones are started anew for each pass
    )
    for _ in range(2):
        torch.testing.assert_close(torch.cat([*loader]), expected, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------- machine code on disk

COMPILE_ALL = """
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit_torch_bridge import QuantumLayer
x = ParameterVector("x", 2)
circuit = QuantumCircuit(2)
circuit.ry(x[0], 0)
circuit.cx(0, 1)
circuit.rx(x[1], 1)
for options in ({"observables": ["ZZ", "XI"]}, {"probabilities": [1]}):
    layer = QuantumLayer(circuit, inputs=x, seed=1, **options)
    rows = torch.tensor([[0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    values = layer(rows)
    print(values.tolist(), torch.autograd.grad(values.sum(), rows)[0].tolist(), layer(rows, shots=10).tolist())
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )


COMPILE_LITTLE = """
import numpy as np
from qiskit_torch_bridge.simulator import sampling
for kind in (np.uint64, np.uint32):
    print(sampling.random_words(np.zeros(4, kind), np.zeros(2, kind)))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(capsys):
    """Of all that a layer calls; this process, and the tests before, have compiled what was not on disk."""
    exec(COMPILE_ALL, {})
    second = run_python(COMPILE_ALL)
    assert "Compiling" not in second.stderr
    assert second.stdout == capsys.readouterr().out


@pytest.mark.slow
def test_compiling_is_announced_once_and_kept_on_disk(tmp_path):
    """For the smallest function, because compiling all of them from nothing takes a minute."""
    first, second = (run_python(COMPILE_LITTLE, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr.count("Compiling the simulator") == 1
    assert "Compiling" not in second.stderr
    assert first.stdout == second.stdout
    assert any(tmp_path.rglob("*.nbc"))


def increment(number: int) -> int:
    return number + 1


def test_functions_work_where_nothing_can_be_written(monkeypatch, caplog):
    """Numba asks one place after the other, and gives up before it compiles."""

    def nowhere(cls: Any, function: Any, file: Any) -> None:
        return None

    from numba.core import caching

    for locator in caching.CacheImpl._locator_classes:
        monkeypatch.setattr(locator, "from_function", classmethod(nowhere))
    monkeypatch.setattr(compiling, "_entries", set(compiling._entries))
    with caplog.at_level(logging.WARNING):
        function = compiling.entry(increment)
    assert function(1) == 2
    assert "cannot be kept on disk" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_a_folder_that_cannot_be_written_is_passed_over(monkeypatch, tmp_path, caplog):
    """There is another; without a warning."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(compiling, "_entries", set(compiling._entries))
    with caplog.at_level(logging.WARNING):
        assert compiling.entry(increment)(1) == 2
    assert "cannot be kept" not in caplog.text


# ------------------------------------------------------------------------------------------------- random numbers


def assert_plausible(pvalues: Sequence[float]) -> None:
    """None of them is too small for as many as there are."""
    pvalues = np.ravel(pvalues)
    assert np.isfinite(pvalues).all()
    assert pvalues.min() > FAMILY / len(pvalues), f"p = {pvalues.min():.2g}, the least of {len(pvalues)}"


def normal_pvalue(z: Any) -> np.ndarray:
    return 2 * stats.norm.sf(np.abs(z))


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """The probability of counts as far from their expectations; rare outcomes count together."""
    seen, due = [0.0], [0.0]
    for outcome in np.argsort(expected).tolist():
        if due[-1] >= 5:
            seen.append(0.0)
            due.append(0.0)
        seen[-1] += observed[outcome]
        due[-1] += expected[outcome]
    seen, due = np.array(seen), np.array(due)
    if len(due) == 1:
        return 1.0 if seen[0] == pytest.approx(due[0]) else 0.0
    return float(stats.chi2.sf(np.sum((seen - due) ** 2 / due), len(due) - 1))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    """The known answers of Random123 for Philox4x32-10."""
    words = [np.array([int(word, 16) for word in text.split()], np.uint64) for text in (counter, key)]
    assert " ".join(f"{word:08x}" for word in sampling.random_words(*words)) == answer


def key_of(seed: int) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(2, np.uint32).astype(np.uint64)


DRAWS = 100_000
BINOMIALS = (
    *((1, 0.3), (1, 0.5), (1, 1e-3), (1, 0.999), (2, 0.5), (3, 0.7), (5, 0.9), (10, 0.5), (19, 0.5)),
    # The product of both is 10 where inversion gives way to rejection.
    *((20, 0.4999999), (20, 0.5), (20, 0.5000001), (21, 0.5), (25, 0.4), (25, 0.39), (25, 0.6), (25, 0.61)),
    *((99, 0.1), (100, 0.0999), (100, 0.1), (101, 0.1), (100, 0.9), (100, 0.901), (100, 0.5), (100, 0.03)),
    *((1000, 0.0099), (1000, 0.01), (1000, 0.0101), (1000, 0.99), (1000, 0.5), (1000, 0.3), (1000, 1e-4)),
    *((10**6, 1e-7), (10**6, 9.99e-6), (10**6, 1.001e-5), (10**6, 0.3), (10**6, 1 - 1e-5), (10**6, 0.75)),
    *((2**31 - 1, 1e-9), (2**31 - 1, 4e-9), (2**31 - 1, 5e-9), (2**31 - 1, 1e-7), (2**31 - 1, 1 - 1e-8)),
    *((2**31 - 1, 0.001), (2**31 - 1, 0.5), (2**31 - 1, 0.7)),
)


def ours(n: int, p: float, rng: np.random.Generator) -> np.ndarray:
    draws = np.empty(DRAWS, np.int64)
    sampling.binomials(n, p, key_of(int(rng.integers(2**31))), draws)
    return draws


def check_binomials(draw: Callable[[int, float, np.random.Generator], np.ndarray]) -> None:
    """Frequencies between quantiles, means and variances (where there is one to speak of) of all the distributions."""
    pvalues = []
    for number, (n, p) in enumerate(BINOMIALS):
        draws = draw(n, p, np.random.default_rng(number))
        assert draws.min() >= 0
        assert draws.max() <= n
        truth = stats.binom(n, p)
        edges = np.unique(truth.ppf(np.linspace(0, 1, 65)[1:-1]))
        probabilities = np.diff([0.0, *truth.cdf(edges), 1.0])
        observed = np.bincount(np.searchsorted(edges, draws), minlength=len(probabilities))
        pvalues.append(chi_square(observed, DRAWS * probabilities))
        mean, variance, kurtosis = (float(moment) for moment in truth.stats("mvk"))
        pvalues.append(float(normal_pvalue((draws.mean() - mean) / (variance / DRAWS) ** 0.5)))
        if variance > 1:
            spread = np.mean((draws - mean) ** 2)
            pvalues.append(float(normal_pvalue((spread / variance - 1) / ((kurtosis + 2) / DRAWS) ** 0.5)))
    assert_plausible(pvalues)


def test_binomial_draws():
    check_binomials(ours)


@pytest.mark.parametrize("n", [1, 10, 1000, 2**31 - 1])
def test_sure_binomial_draws(n):
    draws = np.empty(1000, np.int64)
    for p, expected in [(0.0, 0), (1.0, n), (1e-300, 0)]:
        sampling.binomials(n, p, key_of(0), draws)
        assert (draws == expected).all()


WRONG_BINOMIALS: dict[str, Callable[[int, float, np.random.Generator], np.ndarray]] = {
    "biased": lambda n, p, rng: rng.binomial(n, min(1.0, 1.01 * p), DRAWS),
    "one more": lambda n, p, rng: np.minimum(rng.binomial(n, p, DRAWS) + 1, n),
    "never zero": lambda n, p, rng: np.maximum(rng.binomial(n, p, DRAWS), 1),
    "normal": lambda n, p, rng: np.clip(np.rint(rng.normal(n * p, (n * p * (1 - p)) ** 0.5, DRAWS)), 0, n).astype(int),
    "overdispersed": lambda n, p, rng: rng.binomial(
        n, np.clip(rng.normal(p, 0.3 * (p * (1 - p) / n) ** 0.5, DRAWS), 0, 1)
    ),
    "mirrored": lambda n, p, rng: rng.binomial(n, min(p, 1 - p), DRAWS),
}


@pytest.mark.parametrize("wrong", WRONG_BINOMIALS.values(), ids=WRONG_BINOMIALS.keys())
def test_wrong_binomial_draws_fail_the_check(wrong):
    with pytest.raises(AssertionError):
        check_binomials(wrong)


def test_right_binomial_draws_of_another_library_pass_the_check():
    check_binomials(lambda n, p, rng: rng.binomial(n, p, DRAWS))


def drawn(probabilities: np.ndarray, shots: int, seed: int = 0, group: int = 0, first_row: int = 0) -> np.ndarray:
    counts = np.full(probabilities.shape, -1, np.int64)
    sampling.draw_counts(probabilities, shots, key_of(seed), group, first_row, counts, 0, len(counts))
    return counts


def our_counts(p: np.ndarray, shots: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    return drawn(np.tile(p, (rows, 1)), shots, int(rng.integers(2**31)))


MULTINOMIALS = [
    *((2, shots, 20_000) for shots in (1, 7, 1000)),
    *((4, shots, 20_000) for shots in (1, 3, 30, 10_000)),
    *((16, shots, 20_000) for shots in (2, 50, 100_000)),
    *((1024, shots, 2000) for shots in (10, 5000, 10**7)),
]
"""Numbers of outcomes, shots and rows."""


def check_multinomials(draw: Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]) -> None:
    """All rows together, Pearson's statistic of each of them, and the covariances of pairs of outcomes.

    The statistic of one row has the mean K - 1 and the variance 2 (K - 1) + (sum of 1/p - K^2 - 2 K + 2) / shots,
    exactly.
    """
    pvalues = []
    for number, (outcomes, shots, rows) in enumerate(MULTINOMIALS):
        rng = np.random.default_rng(number)
        p = rng.uniform(0.2, 1.8, outcomes)
        p /= p.sum()
        counts = draw(p, shots, rows, rng)
        assert (counts.sum(axis=1) == shots).all()
        assert counts.min() >= 0
        pvalues.append(chi_square(counts.sum(axis=0), rows * shots * p))
        deviations = counts - shots * p
        if shots > 1:
            statistic = np.sum(deviations**2 / (shots * p), axis=1)
            variance = 2 * (outcomes - 1) + (np.sum(1 / p) - outcomes**2 - 2 * outcomes + 2) / shots
            if variance > 1e-9:
                pvalues.append(float(normal_pvalue((statistic.mean() - outcomes + 1) / (variance / rows) ** 0.5)))
        pairs = [(0, 1), (0, outcomes - 1), (outcomes // 2 - 1, outcomes // 2), (outcomes - 2, outcomes - 1), (0, 0)]
        for i, j in pairs if shots > 1 else ():
            products = deviations[:, i] * deviations[:, j]
            covariance = shots * (p[i] * (i == j) - p[i] * p[j])
            pvalues.append(float(normal_pvalue((products.mean() - covariance) / max(products.std() / rows**0.5, 1e-9))))
    assert_plausible(pvalues)


def test_counts_are_multinomial():
    check_multinomials(our_counts)


def halves(p: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A little more for the first half of the outcomes."""
    biased = p * np.where(np.arange(len(p)) < len(p) // 2, 1 + strength, 1.0)
    return biased / biased.sum()


WRONG_COUNTS: dict[str, Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]] = {
    "biased": lambda p, shots, rows, rng: rng.multinomial(shots, halves(p, rng, 0.02), rows),
    "one shot astray": lambda p, shots, rows, rng: rng.multinomial(shots - 1, p, rows) + (np.arange(len(p)) == 0),
    "off by one": lambda p, shots, rows, rng: np.roll(rng.multinomial(shots, p, rows), 1, axis=1),
    "in pairs": lambda p, shots, rows, rng: (
        2 * rng.multinomial(shots // 2, p, rows) + (shots % 2) * rng.multinomial(1, p, rows)
    ),
    "rounded": lambda p, shots, rows, rng: np.tile(largest_remainders(p, shots), (rows, 1)),
    "too few": lambda p, shots, rows, rng: rng.multinomial(shots - 1, p, rows),
}


def largest_remainders(p: np.ndarray, shots: int) -> np.ndarray:
    counts = np.floor(shots * p).astype(int)
    counts[np.argsort(counts - shots * p)[: shots - counts.sum()]] += 1
    return counts


@pytest.mark.parametrize("wrong", WRONG_COUNTS.values(), ids=WRONG_COUNTS.keys())
def test_wrong_counts_fail_the_check(wrong):
    with pytest.raises(AssertionError):
        check_multinomials(wrong)


def test_right_counts_of_another_library_pass_the_check():
    check_multinomials(lambda p, shots, rows, rng: rng.multinomial(shots, p, rows))


@pytest.mark.parametrize("shots", [1, 5, 1000, 2**31 - 1])
@pytest.mark.parametrize("outcomes", [2, 4, 16, 1024])
def test_outcomes_of_probability_zero_never_occur(outcomes, shots):
    rng = np.random.default_rng(outcomes)
    p = rng.random((300, outcomes)) * (rng.random((300, outcomes)) < 0.4)
    p[np.arange(300), rng.integers(0, outcomes, 300)] += 0.1
    p[0] = np.arange(outcomes) == outcomes - 1
    p[1] = np.arange(outcomes) == 0
    p[2] = np.where(np.arange(outcomes) == 1, 1.0, 1e-310)
    p[3:] /= p[3:].sum(axis=1, keepdims=True) * (1 + 1e-13)
    counts = drawn(p, shots, 1)
    assert (counts.sum(axis=1) == shots).all()
    assert counts.min() >= 0
    assert (counts[p == 0] == 0).all()
    assert counts[2, 1] == shots


def test_rows_seeds_and_groups_are_independent():
    p = np.tile(np.random.default_rng(0).dirichlet(np.ones(8)), (20_000, 1))
    counts = drawn(p, 50)
    others = [
        drawn(p, 50, seed=1),
        drawn(p, 50, group=1),
        drawn(p, 50, group=2**15 - 1),
        drawn(p, 50, first_row=20_000),
    ]
    others += [np.roll(counts, by, axis=0) for by in (1, 2, 7)]
    pvalues = []
    for other in others:
        assert (counts != other).any(axis=1).mean() > 0.9
        for i in range(8):
            for j in range(8):
                r = np.corrcoef(counts[:, i], other[:, j])[0, 1]
                pvalues.append(float(normal_pvalue(r * len(counts) ** 0.5)))
    assert_plausible(pvalues)


def test_a_seed_repeats_its_counts_and_rows_do_not_see_each_other():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(16), 30)
    counts = drawn(p, 200)
    np.testing.assert_array_equal(counts, drawn(p, 200))
    alone = np.concatenate([drawn(p[row : row + 1], 200, first_row=row) for row in range(30)])
    np.testing.assert_array_equal(counts, alone)
    other = p.copy()
    other[::2] = rng.dirichlet(np.ones(16), 15)
    np.testing.assert_array_equal(counts[1::2], drawn(other, 200)[1::2])
    part = np.full((30, 16), -1, np.int64)
    sampling.draw_counts(p, 200, key_of(0), 0, 0, part, 10, 20)
    np.testing.assert_array_equal(part[10:20], counts[10:20])
    assert (part[:10] == -1).all()
    assert (part[20:] == -1).all()
    far = drawn(np.tile(p[:1], (2, 1)), 200, first_row=2**32)
    assert (far != drawn(np.tile(p[:1], (2, 1)), 200)).any(axis=1).all(), (
        "rows beyond 32 bits have streams of their own"
    )


# ------------------------------------------------------------------------------------------------- shots

SHOTS = 20_000


@pytest.mark.parametrize("block", [13, 5])
def test_shots_of_strings_in_every_basis(small_blocks, block):
    """Each output is one string: its shots are +1 or -1."""
    small_blocks(block, 3)
    n = 8
    strings = [pauli(n, X=0, Z=7), pauli(n, Y=[7, 1]), pauli(n, X=[7, 6, 5]), pauli(n, Y=6, X=0), pauli(n, Z=[0, 7])]
    case = Case(random_circuit(n, 8, 40, free=5), [*strings, pauli(n, X=7, Y=5, Z=2), "I" * n])
    points = case.points(40)
    truth = case.expected(points)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=SHOTS, seed=SEED)
    np.testing.assert_array_equal(estimate.values[:, -1], 1)
    z = (estimate.values - truth)[:, :-1] / ((1 - truth[:, :-1] ** 2) / SHOTS) ** 0.5
    assert_plausible(normal_pvalue(z))
    assert_plausible([stats.chi2.sf((z**2).sum(), z.size), stats.chi2.cdf((z**2).sum(), z.size)])
    np.testing.assert_allclose(estimate.variances[:, :-1], (1 - estimate.values[:, :-1] ** 2) / (SHOTS - 1), atol=1e-15)


def test_shots_of_more_qubits_than_are_tabulated():
    n = 14
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(Parameter(f"x{qubit:02d}"), qubit)
    case = Case(circuit, [pauli(n, Z=range(n)), pauli(n, Z=range(13)), pauli(n, Z=13)])
    assert len(case.program.readout.groups[0].qubits) > 12
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (30, n))
    truth = np.stack([np.cos(points).prod(axis=1), np.cos(points[:, :13]).prod(axis=1), np.cos(points[:, 13])], axis=1)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=1000, seed=SEED)
    z = (estimate.values - truth) / ((1 - truth**2) / 1000) ** 0.5
    assert_plausible(normal_pvalue(z))
    np.testing.assert_allclose(estimate.variances, (1 - estimate.values**2) / 999, atol=1e-15)


@pytest.mark.parametrize("basis", ["X", "Y", "Z"])
def test_counts_are_those_of_aer(basis):
    """Two samples of one distribution. All strings of a basis give the frequencies of its outcomes."""
    circuit = random_circuit(3, 2, 30, free=0)
    masks = range(1, 8)
    strings = [pauli(3, **{basis: [q for q in range(3) if mask >> q & 1]}) for mask in masks]
    signs = np.array([[(-1) ** (mask & outcome).bit_count() for mask in range(8)] for outcome in range(8)])
    counts = []
    for backend in (None, "aer"):
        layer = QuantumLayer(circuit, observables=strings, backend=backend, shots=SHOTS, seed=1)
        assert len(layer.program.readout.groups) == 1
        means = np.concatenate([[1.0], layer().numpy().astype(float).ravel()])
        frequencies = SHOTS * (signs @ means) / 8
        np.testing.assert_allclose(frequencies, np.rint(frequencies), atol=0.05)
        counts.append(np.rint(frequencies))
    seen = np.array(counts)
    due = seen.sum(axis=0) / 2
    assert due.min() > 10
    assert stats.chi2.sf(np.sum((seen - due) ** 2 / due), 7) > FAMILY
    state = circuit.copy()
    for qubit in range(3):
        if basis == "Y":
            state.sdg(qubit)
        if basis != "Z":
            state.h(qubit)
    truth = Statevector(state).probabilities()
    assert_plausible([chi_square(counts[0], SHOTS * truth), chi_square(counts[1], SHOTS * truth)])


def test_strings_in_several_bases_have_the_same_shots_as_aer():
    circuit = random_circuit(3, 2, 30, free=0)
    strings = ["ZZZ", "XXX", "YYY", "XYZ", "ZXY"]
    plus = []
    for backend in (None, "aer"):
        layer = QuantumLayer(circuit, observables=strings, backend=backend, shots=SHOTS, seed=2)
        assert len(layer.program.readout.groups) == 5
        plus.append(SHOTS * (1 + layer().numpy().astype(float).ravel()) / 2)
    share = (plus[0] + plus[1]) / (2 * SHOTS)
    assert_plausible(normal_pvalue((plus[0] - plus[1]) / (2 * SHOTS * share * (1 - share)) ** 0.5))


# ------------------------------------------------------------------------------------------------- single precision


def test_single_precision():
    circuit = random_circuit(10, 5, 60, free=12)
    single = Case(circuit, some_observables(10), precision="single")
    double = Case(circuit, some_observables(10))
    points, upstream = double.points(3), double.upstream(3)
    assert single.simulator.dtype == np.float32
    values, gradients = single.values(points), single.pullback(points, upstream)
    assert values.dtype == gradients.dtype == np.float64
    np.testing.assert_allclose(values, double.values(points), atol=1e-5)
    np.testing.assert_allclose(gradients, double.pullback(points, upstream), atol=1e-4)
    assert np.abs(values - double.values(points)).max() > 1e-12, "it really is single"


@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_single_precision_in_batches(n, rows):
    single = Case(random_circuit(n, 6, 40, free=6), some_observables(n), precision="single")
    points, upstream = single.points(rows), single.upstream(rows)
    np.testing.assert_allclose(single.values(points), single.expected(points), atol=1e-5)
    np.testing.assert_allclose(single.pullback(points, upstream), single.expected_pullback(points, upstream), atol=1e-4)


def test_single_precision_in_small_blocks_and_of_probabilities(small_blocks):
    small_blocks()
    for case in (
        Case(random_circuit(8, 6, 40, free=6), some_observables(8), precision="single"),
        Case(random_circuit(8, 6, 40, free=6), None, [7, 2], precision="single"),
    ):
        assert case.num_passes > 1
        points, upstream = case.points(2), case.upstream(2)
        np.testing.assert_allclose(case.values(points), case.expected(points), atol=1e-5)
        np.testing.assert_allclose(case.pullback(points, upstream), case.expected_pullback(points, upstream), atol=1e-4)


def test_shots_in_single_precision():
    case = Case(random_circuit(5, 5, 40, free=6), ["ZIIII", "IXIIZ", "YYIII"], precision="single")
    points = case.points(50)
    truth = case.expected(points)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=SHOTS, seed=SEED)
    assert_plausible(normal_pvalue((estimate.values - truth) / ((1 - truth**2) / SHOTS) ** 0.5))


def test_precision_is_kept_and_checked():
    assert pickle.loads(pickle.dumps(StatevectorBackend(precision="single"))).precision == "single"
    assert pickle.loads(pickle.dumps(StatevectorBackend())).precision == "double"
    circuit = random_circuit(2, 0, 5, free=2)
    backend = StatevectorBackend(precision="single")
    layer = QuantumLayer(circuit, inputs=parameters_of(circuit), observables=["ZZ"], backend=backend)
    again = pickle.loads(pickle.dumps(layer))
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    assert again.backend.precision == "single"
    assert torch.equal(layer(x), again(x))
    for word in ("half", "", None, 32):
        with pytest.raises(ValueError, match=r"precision: got .*'double' or 'single'"):
            StatevectorBackend(precision=word)


# ------------------------------------------------------------------------------------------------- memory


GIB = 2**30


def machine_with(monkeypatch: pytest.MonkeyPatch, *, total: float, available: float) -> None:
    memory = SimpleNamespace(total=int(total * GIB), available=int(available * GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def layer_of_rotations(n: int, gate: str = "rx", **options: Any) -> QuantumLayer:
    weights = ParameterVector("w", n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.append(GATES[gate].base_class(weights[qubit]), [qubit])
    return QuantumLayer(circuit, weights=weights, observables=[pauli(n, Z=0)], init="zeros", **options)


@pytest.mark.parametrize(
    ("gate", "precision", "gibibytes"),
    [("rx", "double", 2), ("ry", "double", 1), ("rx", "single", 1), ("ry", "single", 0.5)],
)
def test_a_state_larger_than_the_machine(monkeypatch, gate, precision, gibibytes):
    """Found before anything of that size is made."""
    backend = StatevectorBackend(precision=precision)
    machine_with(monkeypatch, total=0.4, available=0.4)
    with pytest.raises(MemoryError, match=rf"27 qubits needs {gibibytes:.1f} GiB .*0\.4 GiB altogether"):
        layer_of_rotations(27, gate, backend=backend)
    machine_with(monkeypatch, total=gibibytes, available=0)
    layer_of_rotations(27, gate, backend=backend)


def test_a_state_larger_than_what_is_free(monkeypatch):
    machine_with(monkeypatch, total=4, available=0.75)
    layer = layer_of_rotations(26)
    with pytest.raises(MemoryError, match=r"26 qubits needs 1\.0 GiB .*0\.8 GiB free"):
        layer()
    with torch.no_grad(), pytest.raises(MemoryError, match="GiB free"):
        layer(shots=10)


@pytest.mark.parametrize("letter", ["X", "Y", "Z"])
@pytest.mark.parametrize("n", [40, 62, 63, 64, 65, 80, 127])
def test_far_too_many_qubits(n, letter):
    """Also where the masks of qubits have no room in an integer."""
    circuit = QuantumCircuit(n)
    circuit.h(range(n))
    with pytest.raises(MemoryError, match=f"Exact simulation of {n} qubits"):
        QuantumLayer(circuit, observables=[pauli(n, **{letter: n - 1})])


@pytest.mark.slow
def test_twenty_four_qubits():
    """A product state, and permutations that turn Z's into products of Z's: the values are products of cosines."""
    n = 24
    if psutil.virtual_memory().available < 3 * GIB:
        pytest.skip("less than 3 GiB of memory are free")
    weights = ParameterVector("w", n)
    ring = QuantumCircuit(n)
    for qubit in range(n):
        ring.cx(qubit, (qubit + 1) % n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(weights[qubit], qubit)
    circuit.compose(ring, inplace=True)
    labels = [pauli(n, Z=qubit) for qubit in (0, 5, 23)] + [pauli(n, X=[0, 23]), pauli(n, X=20, Z=3)]
    point = np.random.default_rng(0).uniform(0.1, 0.6, n)
    init = torch.from_numpy(point)
    layer = QuantumLayer(circuit, weights=weights, observables=labels, init=init)
    values = layer()
    (gradient,) = torch.autograd.grad(values.sum(), [*layer.parameters()])
    expected, slopes = [], np.zeros(n)
    for label in labels:
        pulled = SparsePauliOp(label).paulis[0].evolve(ring, frame="h")
        sign = -1.0 if pulled.phase == 2 else 1.0
        factors, derivatives = np.ones(n), np.zeros(n)
        for qubit in range(n):
            x, z = bool(pulled.x[qubit]), bool(pulled.z[qubit])
            assert not (x and z), "no Y, whose value would be zero"
            if x or z:
                factors[qubit] = np.sin(point[qubit]) if x else np.cos(point[qubit])
                derivatives[qubit] = np.cos(point[qubit]) if x else -np.sin(point[qubit])
        expected.append(sign * factors.prod())
        slopes += sign * derivatives * factors.prod() / factors
    np.testing.assert_allclose(values.detach().numpy().ravel(), expected, atol=VALUES)
    np.testing.assert_allclose(gradient.numpy(), slopes, atol=GRADIENTS)


@pytest.mark.slow
def test_a_hundred_thousand_rows():
    case = Case(random_circuit(4, 3, 30, free=6), some_observables(4))
    points, upstream = case.points(100_000), case.upstream(100_000)
    values, gradients = case.values(points), case.pullback(points, upstream)
    some = np.random.default_rng(1).permutation(100_000)[:300]
    np.testing.assert_allclose(values[some], case.expected(points[some]), atol=VALUES)
    np.testing.assert_allclose(gradients[some], case.expected_pullback(points[some], upstream[some]), atol=GRADIENTS)
    for row in some[:30]:
        alone = slice(row, row + 1)
        np.testing.assert_allclose(case.values(points[alone]), values[alone], atol=1e-14)
        np.testing.assert_allclose(case.pullback(points[alone], upstream[alone]), gradients[alone], atol=1e-13)


# ------------------------------------------------------------------------------------------------- shots of real circuits


@pytest.mark.parametrize("n", [2, 5, 13, 14])
@pytest.mark.parametrize("letters", ["XX", "YY", "ZZ", "XY", "YZ", "ZYY"])
def test_shots_of_real_circuits_in_every_basis(n, letters):
    """A real circuit has one plane, and a measurement of Y needs a second."""
    if len(letters) > n:
        pytest.skip("more letters than qubits")
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(0.7 + 0.4 * qubit, qubit)
    for qubit in range(n - 1):
        circuit.cx(qubit, qubit + 1)
    label = "I" * (n - len(letters)) + letters
    shots = 20_000
    layer = QuantumLayer(circuit, observables=label, shots=shots, seed=3)
    expected = float(np.real(Statevector(circuit).expectation_value(SparsePauliOp(label))))
    for _ in range(2):
        assert abs(float(layer()) - expected) < 5 * np.sqrt(max(1 - expected**2, 1 / shots) / shots)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_end_the_draws(bad):
    counts = np.zeros((2, 4), np.int64)
    probabilities = np.full((2, 4), 0.25)
    probabilities[1, 2] = bad
    sampling.draw_counts(probabilities, 100, np.array([1, 2], np.uint64), 0, 0, counts, 0, 2)
    assert counts[0].sum() == 100
    assert (counts[1] == -1).all()


# ------------------------------------------------------------------------------------------------- interruptions


def test_an_interruption_stops_all_parts_soon(num_threads, monkeypatch):
    num_threads(2)
    monkeypatch.setattr(threads, "_SECONDS_BETWEEN_STOPS", 0.01)
    begun = threading.Event()
    calls: list[int] = []

    def work(start: int, stop: int) -> None:
        calls.append(start)
        if threading.current_thread() is threading.main_thread():
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()

    with pytest.raises(KeyboardInterrupt):
        threads.in_parallel(work, 1000, 10.0)
    assert len(calls) < 1000


def test_a_thread_that_outlives_the_main_thread_still_computes():
    code = """
import threading, time
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.simulator import threads

torch.set_num_threads(2)
threads._LEAST_SECONDS = 1e-12
x = ParameterVector("x", 2)
circuit = QuantumCircuit(2)
circuit.ry(x[0], 0)
circuit.ry(x[1], 1)
layer = QuantumLayer(circuit, inputs=x)

def train():
    threading.main_thread().join()
    time.sleep(0.2)
    print(layer(torch.zeros(64, 2)).sum().item(), flush=True)

threading.Thread(target=train).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "128.0", done.stderr
