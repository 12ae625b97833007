"""Gates whose parameters were replaced after they were made: the right values, or a refusal that names the gate.

Qiskit's ``assign_parameters`` changes what a gate shows and, where it finds it, its definition; ``inverse``, ``control``
and the setter of ``params`` do not always keep the two together, and then Qiskit's own simulation of the bound circuit
fails or follows the definition. So truth here is what the user wrote down: matrices of the innermost gates, put together
by NumPy the way the circuit was put together.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from problems import Problem, derivatives, generic_observables, oracle_at, point
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import CircuitInstruction, Gate, Parameter, ParameterExpression
from qiskit.circuit import library as lib
from qiskit.quantum_info import Operator, Pauli, SparsePauliOp, Statevector
from qiskit.synthesis import LieTrotter

from qiskit_torch_bridge import QuantumLayer

A, B, C = (Parameter(name) for name in "abc")
POOL = (A, B, C, *(Parameter(f"d{i}") for i in range(9)))
Values = Mapping[Parameter, float]


# --- any nesting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Block:
    """A gate as Qiskit has it, and its matrix as the user means it."""

    gate: Gate
    matrix: Callable[[Values], np.ndarray]

    @property
    def free(self) -> list[Parameter]:
        shown = set().union(*(value.parameters for value in self.gate.params if isinstance(value, ParameterExpression)))
        return sorted(shown, key=POOL.index)


def _value(expression: ParameterExpression | float, values: Values) -> float:
    if not isinstance(expression, ParameterExpression):
        return expression
    return float(expression.bind({p: values[p] for p in expression.parameters}))


def _leaf(rng: np.random.Generator) -> Block:
    n = 1 if rng.random() < 0.7 else 2
    circuit = QuantumCircuit(n, name="leaf")
    circuit.ry(rng.choice([A, B]) * 2, 0)
    circuit.rx(rng.choice([A, B, C]) + 0.3, n - 1)
    if n == 2:
        circuit.crz(C, 0, 1)
    circuit.sx(0)

    def matrix(values: Values) -> np.ndarray:
        return Operator(circuit.assign_parameters({p: values[p] for p in circuit.parameters})).data

    return Block(circuit.to_gate(), matrix)


def _assigned(block: Block, rng: np.random.Generator) -> Block:
    """Some parameters become numbers or functions of new ones, while the gate is within a circuit.

    (Not of old ones: where these come back, nothing shows that a definition was left behind.)
    """
    circuit = QuantumCircuit(block.gate.num_qubits)
    circuit.append(block.gate, circuit.qubits)
    fresh = POOL[POOL.index(max([C, *block.free], key=POOL.index)) + 1 :][:2]
    if len(fresh) < 2:
        return block
    choices = [0.4, *fresh, 2 * fresh[0] - 0.1, fresh[0] * fresh[1]]
    new = {p: choices[rng.integers(len(choices))] for p in circuit.parameters if rng.integers(2)}

    def matrix(values: Values) -> np.ndarray:
        return block.matrix({**values, **{p: _value(e, values) for p, e in new.items()}})

    return Block(circuit.assign_parameters(new).data[0].operation, matrix)


def _controlled(block: Block, rng: np.random.Generator) -> Block:
    state = int(rng.integers(2))
    n = block.gate.num_qubits

    def matrix(values: Values) -> np.ndarray:
        # The control is the least significant qubit.
        selected = np.diag([1 - state, state])
        return np.kron(block.matrix(values), selected) + np.kron(np.eye(2**n), np.eye(2) - selected)

    return Block(block.gate.control(1, ctrl_state=state, annotated=rng.random() < 0.2), matrix)


def _inverted(block: Block, rng: np.random.Generator) -> Block:
    gate = block.gate.inverse(annotated=rng.random() < 0.2)
    return Block(gate, lambda values: block.matrix(values).conj().T)


def _to_the_power(block: Block, rng: np.random.Generator) -> Block:
    power = int(rng.integers(2, 4))
    return Block(
        block.gate.power(power, annotated=True), lambda values: np.linalg.matrix_power(block.matrix(values), power)
    )


def _wrapped(block: Block, rng: np.random.Generator) -> Block:
    n = block.gate.num_qubits
    circuit = QuantumCircuit(n, name="wrapper")
    order = rng.permutation(n).tolist()
    angle = block.free[0] if block.free else 0.3
    circuit.rx(angle, 0)
    circuit.append(block.gate, order)

    def matrix(values: Values) -> np.ndarray:
        first = Operator(np.eye(2**n)).compose(lib.RXGate(_value(angle, values)), qargs=[0])
        return first.compose(Operator(block.matrix(values)), qargs=order).data

    return Block(circuit.to_gate(), matrix)


STEPS = [_assigned, _assigned, _assigned, _controlled, _controlled, _inverted, _inverted, _to_the_power, _wrapped]


def _nested(seed: int) -> Block | None:
    """A random nesting, None if Qiskit cannot make it."""
    rng = np.random.default_rng(seed)
    block = _leaf(rng)
    for step in rng.choice(np.array(STEPS, dtype=object), size=int(rng.integers(3, 8))):
        if step is _controlled and block.gate.num_qubits > 2:
            continue
        try:
            block = step(block, rng)
        except Exception:  # Qiskit controls no annotated gates, and inverts no gate that has lost its parameters
            return None
    return block


def _around(block: Block) -> tuple[QuantumCircuit, Callable[[np.ndarray], np.ndarray]]:
    """A circuit with the gate, and its outputs as a function of its parameters (in Qiskit's order)."""
    n = block.gate.num_qubits
    before, after = QuantumCircuit(n), QuantumCircuit(n)
    for qubit in range(n):
        before.h(qubit)
        before.rz(0.5 + 0.3 * qubit, qubit)
        after.rx(0.7, qubit)
        after.ry(A - 0.2 * qubit, qubit)
    circuit = before.compose(after)
    circuit.data.insert(2 * n, CircuitInstruction(block.gate, circuit.qubits))
    parameters = list(circuit.parameters)

    def values(point: np.ndarray) -> np.ndarray:
        bound = dict(zip(parameters, point.tolist(), strict=True))
        state = Statevector(before).evolve(Operator(block.matrix(bound))).evolve(after.assign_parameters({A: bound[A]}))
        return np.array([state.expectation_value(observable).real for observable in generic_observables(n)])

    return circuit, values


@pytest.mark.slow
def test_any_nesting_is_computed_as_it_was_meant_or_refused():
    taken, refused = 0, 0
    for seed in range(120):
        if (block := _nested(seed)) is None:
            continue
        circuit, meant = _around(block)
        rng = np.random.default_rng(seed)
        point = rng.uniform(-2, 2, circuit.num_parameters)
        observables = list(generic_observables(circuit.num_qubits))
        try:
            options = {"observables": observables, "init": torch.tensor(point)}
            layer = QuantumLayer(circuit, weights=list(circuit.parameters), **options)
        except ValueError as error:
            if re.search("but its definition has|annotated", str(error)) is None:
                raise
            refused += 1
            continue
        values = layer()
        np.testing.assert_allclose(values.detach(), meant(point), rtol=0, atol=1e-9, err_msg=str(seed))
        upstream = rng.normal(size=len(values))
        values.backward(torch.tensor(upstream))
        expected = upstream @ derivatives(meant, point)
        np.testing.assert_allclose(layer.weights.grad, expected, rtol=0, atol=1e-7, err_msg=str(seed))
        taken += 1
    assert taken > 60
    assert refused > 0


# --- one by one -------------------------------------------------------------------------------------------------------


def _block(angle: ParameterExpression | float = A) -> QuantumCircuit:
    circuit = QuantumCircuit(1, name="block")
    circuit.ry(angle, 0)
    circuit.rx(2 * angle, 0)
    return circuit


def _with(gate: Gate, *further: Parameter) -> QuantumCircuit:
    """A circuit with the gate and, at its end, a rotation by each further parameter."""
    circuit = QuantumCircuit(max(gate.num_qubits, 1))
    circuit.h(0)
    circuit.append(gate, range(gate.num_qubits))
    for parameter in further:
        circuit.rx(parameter, 0)
    circuit.ry(0.3, circuit.qubits)
    return circuit


def _reassigned(gate: Gate, new: ParameterExpression | float = B) -> Gate:
    return _with(gate).assign_parameters({A: new}).data[1].operation


def _set_to(gate: Gate, *params: Any) -> Gate:
    gate.params = list(params)
    return gate


class Keeper(Gate):
    """Its definition is made of attributes, which ``assign_parameters`` does not know."""

    def __init__(self, angle: Any, shows: bool = True) -> None:
        super().__init__("keeper", 1, [angle] if shows else [])
        self.angle = angle

    def _define(self) -> None:
        self.definition = _block(self.angle)


class Proper(Gate):
    def __init__(self, angle: Any, ignored: Any = None) -> None:
        super().__init__("proper", 1, [angle] if ignored is None else [angle, ignored])

    def _define(self) -> None:
        self.definition = _block(self.params[0])


def _looked_at(gate: Gate) -> Gate:
    assert gate.definition is not None
    return gate


def _after_qpy(circuit: QuantumCircuit) -> QuantumCircuit:
    file = io.BytesIO()
    qpy.dump(circuit, file)
    file.seek(0)
    return qpy.load(file)[0]


def _within(gate: Gate, levels: int = 2) -> Gate:
    for level in range(levels):
        circuit = QuantumCircuit(gate.num_qubits, name=f"level {level}")
        circuit.append(gate, circuit.qubits)
        gate = circuit.to_gate()
    return gate


STALE = {
    "inverse of an assigned control": lambda: _with(_reassigned(_block().to_gate().control()).inverse()),
    "bound to a number": lambda: _with(_reassigned(_block().to_gate().control(), 0.4).inverse(), A),
    "open control": lambda: _with(_reassigned(_block().to_gate().control(ctrl_state=0)).inverse(), A),
    "base gate": lambda: _with(_reassigned(_block().to_gate().control()).base_gate, A),
    "within gates": lambda: _with(_within(_reassigned(_block().to_gate().control()).inverse()), A),
    "within a control": lambda: _with(
        _within(_reassigned(_block().to_gate().control()).inverse()).control(annotated=True), A
    ),
    "params of an instruction": lambda: _with(_set_to(_block().to_instruction(), B)),
    "params to a number": lambda: _with(_set_to(_block().to_gate(), 0.5), A),
    "params back to a parameter": lambda: _with(_set_to(_block(0.4).to_gate(), A), A),
    "params of a control": lambda: _with(_set_to(_block().to_gate().control(), B), A),
    "params of a repetition": lambda: _with(_set_to(_block().to_gate().repeat(3), B), A),
    "params of a library's gate": lambda: _with(_set_to(_looked_at(lib.MCPhaseGate(A, 2)), B), A),
    "a control by the library": lambda: _with(lib.MCMTGate(_set_to(_block().to_gate(), B), 1, 1), A),
    "only the definition": lambda: _with(_block_with_assigned_definition(), A),
    "an attribute that is not shown": lambda: _with(Keeper(A, shows=False), A),
    "an attribute after assigning": lambda: _with(_reassigned(Keeper(A)), A),
    "an attribute after assigning a number": lambda: _with(_reassigned(Keeper(A), 0.4), A),
    "an attribute after assigning a function of itself": lambda: _with(_reassigned(Keeper(A), 2 * A), A),
    "a library's gate that shows nothing": lambda: _with(lib.LinearPauliRotationsGate(1, slope=A), A),
    "a definition that was looked at": lambda: _with(_set_to(_looked_at(Proper(A)), B), A),
    "a parameter that is ignored": lambda: _with(Proper(A, B)),
    "a phase": lambda: _with(_set_to(QuantumCircuit(1, name="block", global_phase=A).to_gate(), B).control(), A),
    "after QPY": lambda: _after_qpy(_with(_set_to(_block().to_gate(), B), A)),
}


def _block_with_assigned_definition() -> Gate:
    gate = _block().to_gate()
    gate.definition.assign_parameters({A: B}, inplace=True)
    return gate


@pytest.mark.parametrize("case", STALE)
def test_a_stale_definition_is_refused_by_the_gates_name(case):
    circuit = STALE[case]()
    with pytest.raises(ValueError, match=r"shows the free parameter\(s\) .*, but its definition has .*") as refusal:
        QuantumLayer(circuit, weights=list(circuit.parameters))
    assert refusal.match("'(block|cblock|keeper|proper|block.3|mcphase|LinPauliRot|cblock_dg|cblock_dg_o0)'")
    assert refusal.match("Make the gate anew")


def test_the_gates_around_a_stale_one_are_named():
    circuit = STALE["within gates"]()
    with pytest.raises(ValueError, match=r"cblock_dg' \(within 'level 1' / 'level 0'\) .* b, but its definition has a"):
        QuantumLayer(circuit, weights=list(circuit.parameters))


class _HiddenAngle(LieTrotter):
    def synthesize(self, evolution: lib.PauliEvolutionGate) -> QuantumCircuit:
        return _block(B)


def test_parameters_that_only_appear_in_qiskits_decomposition_are_refused():
    circuit = _with(lib.PauliEvolutionGate(SparsePauliOp("X"), time=A, synthesis=_HiddenAngle()))
    with pytest.raises(ValueError, match=r"made of the parameter\(s\) b, which the circuit does not show"):
        QuantumLayer(circuit, weights=[A])


FRESH = {
    "attribute that was never assigned": lambda: _with(Keeper(A), A),
    "expression as an attribute": lambda: _with(Keeper(2 * A), A),
    "assigned before it was looked at": lambda: _with(_reassigned(Proper(A), 2 * B), A),
    "assigned after it was looked at": lambda: _with(_reassigned(_looked_at(Proper(A)), 2 * B), A),
    "assigned control": lambda: _with(_reassigned(_block().to_gate().control(), 2 * B), A),
    "assigned within gates": lambda: _with(_reassigned(_within(_block().to_gate()), A * B), A),
    "assigned repetition": lambda: _with(_reassigned(_block().to_gate().repeat(3), B), A),
    "annotated": lambda: _with(_reassigned(_block().to_gate().control(annotated=True), B).inverse(), A),
    "inverse, then assigned": lambda: _with(_reassigned(_block().to_gate().control().inverse(), B), A),
    "mutable copy": lambda: _with(_reassigned(_block().to_gate(), B).to_mutable(), A),
    "a product with zero": lambda: _with(_within(_block(A * B).to_gate()), A).assign_parameters({B: 0.0}),
    "after QPY": lambda: _after_qpy(_with(_reassigned(_within(_block().to_gate()), 2 * B), A)),
}


@pytest.mark.parametrize("case", FRESH)
def test_definitions_that_follow_are_computed(case):
    circuit = FRESH[case]()
    weights = tuple(circuit.parameters)
    spelt_out = circuit.decompose(reps=5)
    kept = Problem(circuit, generic_observables(circuit.num_qubits), weights=weights, reference=spelt_out)
    expected = oracle_at(kept, *point(kept))
    layer = kept.layer(expected.weights)
    values = layer()
    np.testing.assert_allclose(values.detach(), expected.values[0], rtol=0, atol=1e-9)
    upstream = np.random.default_rng(1).normal(size=len(values))
    values.backward(torch.tensor(upstream))
    np.testing.assert_allclose(layer.weights.grad, expected.gradients(upstream[None])[1], rtol=0, atol=1e-7)


def test_where_nothing_shows_it_the_definition_counts_as_in_qiskit():
    """``2 * a`` for ``a``, then ``inverse``: the names agree, and Qiskit simulates the definition, which has ``a``."""
    circuit = _with(_reassigned(_block().to_gate().control(), 2 * A).inverse(), A)
    value = QuantumLayer(circuit, weights=[A], observables="ZX", init=torch.tensor([0.7], dtype=torch.float64))()
    meant = _with(_block().to_gate().control().inverse(), A)
    truth = Statevector(meant.assign_parameters([0.7])).expectation_value(Pauli("ZX")).real
    assert value.item() == pytest.approx(truth)
