"""Free ``rzz`` in the range of IBM's fractional gate: the same circuits at every angle, with as few gates as can be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import CZGate, Measure, RXGate, RZGate, RZZGate, XGate, zz_feature_map
from qiskit.quantum_info import Operator
from qiskit.transpiler import InstructionProperties, QubitProperties, Target

from qiskit_torch_bridge.backends.fidelity import estimated_fidelity
from qiskit_torch_bridge.backends.folds import fold
from qiskit_torch_bridge.backends.fractional import folded
from qiskit_torch_bridge.backends.free_rzz import has_free_rzz, with_free_rzz
from qiskit_torch_bridge.backends.results import BoundCircuit

QUARTERS = np.arange(-16, 17) * (math.pi / 2)
ANGLES = np.concatenate(
    [
        QUARTERS,
        np.nextafter(QUARTERS, np.inf),
        np.nextafter(QUARTERS, -np.inf),
        [0.0, -0.0, 5e-324, -5e-324, 1e-18, -1e-18, -1e-9, 1e3, -1e3],
        np.linspace(-13, 13, 2001),
    ]
)


def assert_equal_up_to_a_phase(one: np.ndarray, other: np.ndarray, atol: float = 1e-12) -> None:
    overlap = np.trace(one.conj().T @ other) / len(one)
    assert abs(abs(overlap) - 1) < atol


def test_folds_give_the_same_gate_at_every_angle():
    sizes, turned, flipped = fold(ANGLES)
    assert sizes.min() >= 0.0
    assert sizes.max() <= math.pi / 2
    zz = np.array([1, -1, -1, 1])
    expected = np.exp(-0.5j * ANGLES[:, None] * zz)
    made = np.exp(-0.5j * sizes[:, None] * zz * (1 - 2 * flipped[:, None])) * np.where(turned[:, None], zz, 1)
    overlaps = np.abs((expected.conj() * made).mean(axis=1))
    np.testing.assert_allclose(overlaps, 1, atol=1e-12)


@pytest.mark.parametrize("angle", ANGLES[: 3 * len(QUARTERS) + 9 : 5])
def test_folds_are_qiskits_gates(angle):
    size, turned, flipped = (part.item() for part in fold(np.array(angle)))
    circuit = QuantumCircuit(2)
    for gate, qubits, needed in (
        (RZGate(math.pi), [0], turned),
        (RZGate(math.pi), [1], turned),
        (XGate(), [0], flipped),
        (RZZGate(size), [0, 1], True),
        (XGate(), [0], flipped),
    ):
        if needed:
            circuit.append(gate, qubits)
    assert_equal_up_to_a_phase(Operator(RZZGate(angle)).data, Operator(circuit).data)


def drawn(seed: int, width: int, num_parameters: int) -> BoundCircuit:
    """A circuit of a device's gates and of others, whose parameters follow from five angles."""
    rng = np.random.default_rng(seed)
    p, used = ParameterVector("p", num_parameters), 0
    circuit = QuantumCircuit(width)
    while used < num_parameters:
        first, second = rng.permutation(width)[:2].tolist()
        kind = rng.integers(11)
        if kind < 4:
            circuit.rzz(p[used], first, second)
        elif kind < 7:
            getattr(circuit, ("rx", "rz", "ry")[kind - 4])(p[used], first)
        elif kind == 7:
            getattr(circuit, ("rx", "rz")[rng.integers(2)])(rng.uniform(-4, 4), first)
        elif kind == 8:
            getattr(circuit, ("sx", "x", "barrier")[rng.integers(3)])(first)
        elif kind == 9:
            circuit.rzz(rng.uniform(0, math.pi / 2), first, second)
        else:
            circuit.cz(first, second)
        used += kind < 7
    slopes = rng.normal(size=(5, num_parameters)) * (rng.random((5, num_parameters)) < 0.4)
    return BoundCircuit(circuit, tuple(p), slopes, rng.uniform(-7, 7, num_parameters))


def operators(bound: BoundCircuit, angles: np.ndarray) -> list[np.ndarray]:
    return [
        Operator(bound.circuit.assign_parameters(dict(zip(bound.parameters, row, strict=True)))).data
        for row in bound.values(angles)
    ]


@pytest.mark.parametrize("seed", range(25))
def test_folded_circuits_are_the_same_circuits(seed):
    bound = drawn(seed, 2 + seed % 3, 12)
    found, angles = folded(bound), np.random.default_rng(100 + seed).uniform(-9, 9, (3, 5))
    values = found.values(angles)
    column = {parameter: values[:, number] for number, parameter in enumerate(found.parameters)}
    for instruction in found.circuit.data:
        if instruction.operation.name == "rzz":
            angle = instruction.operation.params[0]
            assert np.all((column.get(angle, angle) >= 0) & (column.get(angle, angle) <= math.pi / 2))
    for expected, made in zip(operators(bound, angles), operators(found, angles), strict=True):
        assert_equal_up_to_a_phase(expected, made)


@pytest.mark.parametrize("part", ["turns", "flips", "signs"])
def test_every_part_of_a_fold_is_needed(part):
    circuit, p = QuantumCircuit(3), ParameterVector("p", 5)
    circuit.rx(p[0], range(3))
    circuit.rzz(p[1], 0, 1)
    circuit.rz(p[2], 1)
    circuit.rzz(p[3], 1, 2)
    circuit.rx(p[4], range(3))
    bound = BoundCircuit(circuit, tuple(p), np.eye(5), np.zeros(5))
    found, angles = folded(bound), np.array([[0.3, -2.1, 0.7, 2.0, 0.4], [0.3, 2.1, 0.7, -1.0, 0.4]])
    wrong = replace(found, folds=replace(found.folds, **{part: np.zeros_like(getattr(found.folds, part))}))
    overlaps = [
        abs(np.trace(a.conj().T @ b)) / 8
        for a, b in zip(operators(bound, angles), operators(wrong, angles), strict=True)
    ]
    assert min(overlaps) < 0.99


def test_without_folds_angles_are_right_and_out_of_range():
    """Whoever drops them gets circuits that IBM's validators refuse, and no wrong values."""
    bound = drawn(3, 3, 12)
    found, angles = folded(bound), np.random.default_rng(1).uniform(-9, 9, (4, 5))
    dropped = replace(found, folds=None)
    assert dropped.values(angles)[:, found.folds.columns].min() < 0
    for expected, made in zip(operators(bound, angles), operators(dropped, angles), strict=True):
        assert_equal_up_to_a_phase(expected, made)


def test_a_circuit_without_free_rzz_stays():
    circuit, p = QuantumCircuit(2), ParameterVector("p", 1)
    circuit.rx(p[0], 0)
    circuit.rzz(0.3, 0, 1)
    bound = BoundCircuit(circuit, tuple(p), np.eye(1), np.zeros(1))
    assert folded(bound) is bound


def ising(width: int, layers: int, pairs: list[tuple[int, int]]) -> BoundCircuit:
    p = ParameterVector("p", layers * (len(pairs) + width) + width)
    free = iter(p)
    circuit = QuantumCircuit(width)
    for qubit in range(width):
        circuit.rx(next(free), qubit)
    for _ in range(layers):
        for pair in pairs:
            circuit.rzz(next(free), *pair)
        for qubit in range(width):
            circuit.rz(0.2, qubit)
            circuit.rx(next(free), qubit)
    return BoundCircuit(circuit, tuple(p), np.eye(len(p)), np.zeros(len(p)))


@pytest.mark.parametrize(
    ("pairs", "more"), [([(0, 1), (2, 3), (1, 2)], 0), ([(0, 1), (1, 2), (2, 0), (2, 3)], 3), ([(0, 1), (0, 1)], 3)]
)
def test_flips_become_part_of_the_rotations_beside_them(pairs, more):
    """On trees of couplings no gate is added but ``rz``; a ring takes one flip, in each of three layers."""
    bound = ising(4, 3, pairs)
    before, after = bound.circuit.count_ops(), folded(bound).circuit.count_ops()
    assert after["rzz"] == before["rzz"]
    assert after["rx"] == before["rx"] + more


TWO_QUBIT_ROTATIONS = {
    "rzz": lambda c, t: c.rzz(t, 0, 1),
    "rxx": lambda c, t: c.rxx(t, 1, 0),
    "ryy": lambda c, t: c.ryy(2 * t, 0, 1),
    "rzx": lambda c, t: c.rzx(t + 0.2, 1, 0),
    "cp": lambda c, t: c.cp(t, 0, 1),
    "crz": lambda c, t: c.compose(_controlled("rz", t), inplace=True),
    "cry": lambda c, t: c.compose(_controlled("ry", t), inplace=True),
    "cx p cx": lambda c, t: (c.cx(1, 0), c.p(t, 0), c.cx(1, 0)),
}


def _controlled(rotation: str, angle: Parameter) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    for half in (angle / 2, -angle / 2):
        getattr(circuit, rotation)(half, 1)
        circuit.cx(0, 1)
    return circuit


@pytest.mark.parametrize("append", TWO_QUBIT_ROTATIONS.values(), ids=TWO_QUBIT_ROTATIONS)
def test_free_rotations_become_one_rzz(append):
    t = Parameter("t")
    circuit = QuantumCircuit(2)
    circuit.h([0, 1])
    append(circuit, t)
    rewritten = with_free_rzz(circuit)
    assert rewritten.num_nonlocal_gates() == 1
    assert has_free_rzz(rewritten)
    for angle in (-2.3, 0.4, 5.0):
        assert_equal_up_to_a_phase(
            Operator(circuit.assign_parameters({t: angle})).data, Operator(rewritten.assign_parameters({t: angle})).data
        )


def test_a_feature_map_has_one_rzz_for_each_pair():
    circuit = zz_feature_map(3, reps=2)
    rewritten = with_free_rzz(circuit)
    assert rewritten.count_ops()["rzz"] == 6
    assert "cx" not in rewritten.count_ops()


@pytest.mark.parametrize(("rotations", "rewritten_ones"), [(2, 1), (3, 2), (4, 2)])
def test_a_cx_between_two_rotations_belongs_to_one_of_them(rotations, rewritten_ones):
    angles = ParameterVector("t", rotations)
    circuit = QuantumCircuit(2)
    circuit.cx(0, 1)
    for number, angle in enumerate(angles):
        (circuit.ry if number % 2 else circuit.rz)(angle, 1)
        circuit.cx(0, 1)
    rewritten = with_free_rzz(circuit)
    assert rewritten.count_ops()["rzz"] == rewritten_ones
    values = {angle: 0.3 + number for number, angle in enumerate(angles)}
    assert_equal_up_to_a_phase(
        Operator(circuit.assign_parameters(values)).data, Operator(rewritten.assign_parameters(values)).data
    )


def test_what_is_no_rotation_of_two_qubits_stays():
    t = Parameter("t")
    circuit = QuantumCircuit(3)
    circuit.cx(0, 1)
    circuit.rz(0.3, 1)  # constant: the transpiler's
    circuit.cx(0, 1)
    circuit.rz(t, 1)
    circuit.cx(0, 2)  # in between
    circuit.cx(0, 1)
    circuit.rz(t, 1)
    circuit.cx(2, 1)  # another one
    circuit.cx(0, 1)
    circuit.rx(t, 1)
    circuit.cx(0, 1)
    circuit.append(RZZGate(t, label="noisy").to_mutable(), [0, 1])
    rewritten = with_free_rzz(circuit)
    assert rewritten.count_ops() == circuit.count_ops()


def test_the_fidelity_is_that_of_its_formula():
    target = Target(qubit_properties=[QubitProperties(t1=1e-4, t2=8e-5), QubitProperties(t1=2e-4, t2=1e-4)])
    theta = Parameter("t")
    target.add_instruction(RXGate(theta), {(q,): InstructionProperties(2e-8, 1e-3) for q in range(2)})
    target.add_instruction(CZGate(), {(0, 1): InstructionProperties(1e-7, 5e-3)})
    target.add_instruction(Measure(), {(q,): InstructionProperties(1e-6, 0.02) for q in range(2)})
    circuit = QuantumCircuit(2, 1)
    circuit.rx(theta, 0)
    circuit.rx(theta, 1)
    circuit.rx(theta, 1)
    circuit.cz(0, 1)
    circuit.measure(1, 0)
    waits = {0: (1.14e-6 - 1.2e-7, 1e-4, 8e-5), 1: (0.0, 2e-4, 1e-4)}
    kept = [(3 + math.exp(-t / t1) + 2 * math.exp(-t / t2)) / 6 for t, t1, t2 in waits.values()]
    assert estimated_fidelity(circuit, target) == pytest.approx(0.999**3 * 0.995 * 0.98 * math.prod(kept), rel=1e-12)
    circuit.cz(1, 0)  # there is none in this direction
    assert estimated_fidelity(circuit, target) == 0
