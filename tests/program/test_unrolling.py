"""Loops, boxes, matrices and gates of the user's own: they are computed as what they are made of, whatever their names."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import Problem, generic_observables, mixed, oracle_at, point
from qiskit import QuantumCircuit, qasm2
from qiskit.circuit import ClassicalRegister, Gate, Parameter, QuantumRegister, Qubit
from qiskit.circuit import library as lib
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Statevector
from qiskit.transpiler.passes.synthesis.plugin import HighLevelSynthesisPluginManager

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.program import Program

T, X = Parameter("t"), Parameter("x")


def same(circuit: QuantumCircuit, by_hand: QuantumCircuit, **options: object) -> None:
    """The layer's values and gradients are those that Qiskit finds for the circuit written out by hand."""
    weights = tuple(by_hand.parameters)
    problem = Problem(circuit, generic_observables(circuit.num_qubits), weights=weights, reference=by_hand)
    expected = oracle_at(problem, *point(problem))
    layer = problem.layer(expected.weights, **options)
    values = layer()
    np.testing.assert_allclose(values.detach(), expected.values[0], rtol=0, atol=1e-7)
    if weights:
        upstream = np.random.default_rng(1).normal(size=len(values))
        values.backward(torch.tensor(upstream))
        np.testing.assert_allclose(layer.weights.grad, expected.gradients(upstream[None])[1], rtol=0, atol=1e-6)


# --- loops and boxes --------------------------------------------------------------------------------------------------


def body(num_qubits: int, *angles: object) -> QuantumCircuit:
    """A circuit that treats each of its qubits differently."""
    circuit = QuantumCircuit(num_qubits)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
        circuit.rz(0.3 + qubit, qubit)
    for qubit in range(num_qubits - 1):
        circuit.crx(angles[0], qubit, qubit + 1)
    return circuit


def around(*middle: Callable[[QuantumCircuit], object]) -> QuantumCircuit:
    return mixed(3, *middle, lambda c: (c.ry(T, 0), c.cx(2, 1)))


@pytest.mark.parametrize("backend", [None, "aer"])
@pytest.mark.parametrize("values", [range(3), range(5, -2, -3), (4, 1, 1), range(0)], ids=str)
def test_loops_over_known_values_are_unrolled(values, backend):
    """The parameter takes each value, within gates too, and the body's qubits are those that the loop is given."""
    step, inner = Parameter("step"), Parameter("inner")
    gate = body(2, inner, T).to_gate({inner: step * T, T: T})

    def loop(circuit: QuantumCircuit) -> None:
        inside = QuantumCircuit(2)
        inside.rx(step + T, 1)
        inside.append(gate, [1, 0])
        circuit.for_loop(values, step, inside, [2, 0], [])

    def by_hand(circuit: QuantumCircuit) -> None:
        for value in values:
            circuit.rx(value + T, 0)
            circuit.compose(body(2, value * T, T), [0, 2], inplace=True)

    same(around(loop), around(by_hand), backend=backend)


def test_loops_and_boxes_within_each_other_are_unrolled():
    outer, inner = Parameter("outer"), Parameter("inner")

    def nested(circuit: QuantumCircuit) -> None:
        with circuit.for_loop(range(2), loop_parameter=outer), circuit.box(duration=100):
            circuit.ry(outer * T, 2)
            with circuit.for_loop((3, 1), loop_parameter=inner):
                circuit.rz(inner * X + outer, 0)
                with circuit.box(label="box"):
                    circuit.crx(inner * outer * T, 2, 1)

    def by_hand(circuit: QuantumCircuit) -> None:
        for i in range(2):
            circuit.ry(i * T, 2)
            for j in (3, 1):
                circuit.rz(j * X + i, 0)
                circuit.crx(j * i * T, 2, 1)

    same(around(nested), around(by_hand))


def test_a_box_within_an_instruction_is_unrolled():
    inside = QuantumCircuit(2)
    with inside.box():
        inside.compose(body(2, T, X), [1, 0], inplace=True)
    instruction = body(2, T, X).to_instruction()
    instruction.definition = inside
    same(
        around(lambda c: c.append(instruction, [2, 1])),
        around(lambda c: c.compose(body(2, T, X), [1, 2], inplace=True)),
    )


def test_measurements_at_the_end_of_a_box_are_final_ones():
    circuit = QuantumCircuit(3, 4)
    circuit.compose(body(3, T, X, 0.2), inplace=True)
    expected = Statevector(circuit.assign_parameters([0.4, 0.9])).probabilities([2, 0])
    with circuit.box():
        circuit.measure([2, 0], [1, 3])
    init = torch.tensor([0.4, 0.9], dtype=torch.float64)
    layer = QuantumLayer(circuit, weights=[T, X], probabilities=True, init=init)
    np.testing.assert_allclose(layer().detach(), expected, atol=1e-9)
    circuit.x(2)
    with pytest.raises(ValueError, match="Mid-circuit measurement"):
        QuantumLayer(circuit, weights=[T, X])


def test_inputs_that_have_no_gradient_are_taken_in_boxes():
    circuit = QuantumCircuit(2)
    with circuit.box():
        circuit.append(lib.HamiltonianGate(np.array([[1, 0.3], [0.3, -1]]), X), [1])
        circuit.ry(T, 0)
    circuit.h(1)
    layer = QuantumLayer(circuit, inputs=[X], weights=[T], init=torch.tensor([0.4], dtype=torch.float64))
    spelt_out = QuantumCircuit(2)
    spelt_out.append(lib.HamiltonianGate(np.array([[1, 0.3], [0.3, -1]]), 0.7), [1])
    spelt_out.h(1)
    expected = [np.cos(0.4), 1 - 2 * Statevector(spelt_out).probabilities([1])[1]]
    np.testing.assert_allclose(layer(torch.tensor([[0.7]], dtype=torch.float64))[0].detach(), expected, atol=1e-9)


def test_names_and_labels_within_loops_are_known():
    circuit = QuantumCircuit(1)
    with circuit.for_loop(range(2)), circuit.box():
        circuit.append(lib.RXGate(T, label="slow"), [0])
    program = QuantumLayer(circuit, weights=[T]).program
    assert program.instructions["rx", "slow"] == 1
    assert [i.operation.label for i in program.circuit.data] == ["slow", "slow"]


# --- matrices ---------------------------------------------------------------------------------------------------------


class Matrix(Gate):
    """A gate that only has a matrix; two qubits, and not symmetric in them."""

    def __init__(self, angle: float, name: str = "matrix") -> None:
        super().__init__(name, 2, [angle])

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(lib.CRYGate(float(self.params[0])).to_matrix(), dtype=dtype)


class OnlyToMatrix(Gate):
    def __init__(self, angle: float) -> None:
        super().__init__("cry", 2, [angle])

    def to_matrix(self) -> np.ndarray:
        return lib.CRYGate(float(self.params[0])).to_matrix()


@pytest.mark.parametrize("backend", [None, "aer"])
@pytest.mark.parametrize("kind", [Matrix, OnlyToMatrix, lambda angle: Matrix(angle, "cp")])
def test_a_matrix_is_a_unitary_at_any_level(kind, backend):
    inner = QuantumCircuit(3, name="inner")
    inner.rx(T, 2)
    inner.append(kind(0.7), [2, 0])

    def plain(circuit: QuantumCircuit) -> None:
        circuit.append(kind(1.1), [1, 2])
        circuit.append(inner.to_gate(), [1, 2, 0])
        circuit.append(kind(0.4).inverse(annotated=True), [0, 1])
        circuit.append(kind(0.4).control(annotated=True), [2, 0, 1])

    def by_hand(circuit: QuantumCircuit) -> None:
        circuit.cry(1.1, 1, 2)
        circuit.rx(T, 0)
        circuit.cry(0.7, 0, 1)
        circuit.cry(-0.4, 0, 1)
        circuit.append(lib.CRYGate(0.4).control(), [2, 0, 1])

    same(around(plain), around(by_hand), backend=backend)


def test_a_hamiltonian_with_a_time_is_a_unitary():
    gate = lib.HamiltonianGate(np.array([[1, 0.3], [0.3, -1]]), 0.7)
    same(around(lambda c: c.append(gate, [1])), around(lambda c: c.unitary(gate.to_matrix(), [1])))


def test_rules_of_the_equivalence_library_are_known_but_not_by_the_names_of_others():
    ours = Gate("ours of the test", 1, [X])
    rule = QuantumCircuit(1)
    rule.ry(2 * X, 0)
    SessionEquivalenceLibrary.add_equivalence(ours, rule)
    same(around(lambda c: c.append(Gate("ours of the test", 1, [T]), [1])), around(lambda c: c.ry(2 * T, 1)))
    with pytest.raises(ValueError, match=r"'cry' is no known function of the parameter\(s\) t"):
        QuantumLayer(around(lambda c: c.append(Gate("cry", 2, [T]), [0, 1])), weights=[T])


# --- names ------------------------------------------------------------------------------------------------------------

NAMES = sorted(
    {*get_standard_gate_name_mapping(), *HighLevelSynthesisPluginManager().plugins_by_op, "unitary", "barrier", "pauli"}
    | {"save_statevector", "kraus", "initialize", "for_loop", "box", "snapshot", "circuit", "mcphase", "annotated"}
)
"""Of standard gates, of those that Qiskit synthesises, and of what Aer and the passes look for."""


def own(name: str, num_qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(num_qubits, name=name)
    circuit.ry(T, 0)
    if num_qubits == 2:
        circuit.crx(0.4 * T, 1, 0)
    circuit.sx(num_qubits - 1)
    circuit.rz(0.3, 0)
    return circuit


def _values(circuit: QuantumCircuit, backend: str | None = None) -> np.ndarray:
    options = {"observables": list(generic_observables(3)), "init": torch.tensor([0.7], dtype=torch.float64)}
    layer = QuantumLayer(circuit, weights=[T], backend=backend, **options)
    return layer().detach().numpy()


@pytest.mark.parametrize(("num_qubits", "backend"), [(2, None), pytest.param(1, "aer", marks=pytest.mark.slow)])
def test_no_name_of_the_users_own_is_taken_for_another_gate(num_qubits, backend):
    qubits = [2, 0][:num_qubits]

    def every_way(name: str) -> QuantumCircuit:
        gate = own(name, num_qubits).to_gate()
        wrapper = QuantumCircuit(num_qubits, name="wrapper")
        wrapper.append(gate, wrapper.qubits)
        circuit = mixed(3, lambda c: c.append(gate, qubits), lambda c: c.append(wrapper.to_gate(), qubits))
        circuit.append(gate.inverse(), qubits[::-1])
        circuit.append(gate.inverse(annotated=True), qubits)
        circuit.append(gate.control(annotated=True), [1, *qubits])
        circuit.append(own(name, num_qubits).to_instruction(), qubits)
        return circuit

    by_hand = every_way("by hand").decompose(reps=4)
    bound = Statevector(by_hand.assign_parameters([0.7]))
    expected = [bound.expectation_value(observable).real for observable in generic_observables(3)]
    for name in NAMES:
        np.testing.assert_allclose(_values(every_way(name), backend), expected, rtol=0, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("make", [lambda gate: gate.control(), lambda gate: lib.MCMTGate(gate, 1, 1)])
@pytest.mark.parametrize("name", ["z", "sx", "h", "swap"])
def test_a_control_that_qiskit_makes_by_the_name_is_refused(name, make):
    """``control`` looks at the name too, before the layer sees the gate."""
    inner = own(name, 1).to_gate()
    if name == "swap":  # which is found only within another gate
        wrapper = QuantumCircuit(1, name="wrapper")
        wrapper.append(inner, [0])
        inner = wrapper.to_gate()
    circuit = QuantumCircuit(2)
    circuit.append(make(inner), [0, 1])
    with pytest.raises(ValueError, match=rf"control of a gate of your own that is named '{name}'.*another name"):
        QuantumLayer(circuit, weights=[T])


class Own(lib.RXGate):
    """A subclass of a standard gate with another definition, which the name and Qiskit's simulator do not know."""

    def _define(self) -> None:
        self.definition = own("rx", 1).assign_parameters({T: self.params[0]})


class Marked(lib.RXGate):
    """A subclass of a standard gate that is one."""


def test_subclasses_of_standard_gates_are_what_they_define():
    same(around(lambda c: c.append(Own(T), [1])), around(lambda c: c.compose(own("", 1), [1], inplace=True)))
    same(around(lambda c: c.append(Marked(T), [1])), around(lambda c: c.rx(T, 1)))


def test_gates_of_openqasm_are_what_they_define():
    """Without the standard library's file a program may define its own ``h``."""
    circuit = qasm2.loads(
        "OPENQASM 2.0; gate h q { U(1, 2, 3) q; } gate rx(a) q { U(a, 0, a) q; } qreg q[1]; h q[0]; rx(0.3) q[0];"
    )
    by_hand = QuantumCircuit(1)
    by_hand.u(1, 2, 3, 0)
    by_hand.u(0.3, 0, 0.3, 0)
    same(circuit, by_hand)


# --- odd circuits -----------------------------------------------------------------------------------------------------


def _shared_bits() -> QuantumCircuit:
    bits = [Qubit() for _ in range(3)]
    circuit = QuantumCircuit(bits, ClassicalRegister(1))
    circuit.add_register(QuantumRegister(bits=[bits[2], bits[0]], name="r"))
    circuit.ry(T, circuit.qregs[0][0])
    circuit.cx(bits[2], bits[1])
    return circuit


def _zero_qubit_gates() -> QuantumCircuit:
    circuit = around()
    circuit.append(QuantumCircuit(0, name="z", global_phase=T).to_gate(), [])
    circuit.append(lib.UnitaryGate([[1j]]), [])
    return circuit


ODD = {
    "shared bits": _shared_bits,
    "gates on no qubits": _zero_qubit_gates,
    "an empty gate": lambda: around(lambda c: c.append(QuantumCircuit(2, name="e").to_gate(), [0, 1])),
    "a phase alone": lambda: QuantumCircuit(2, global_phase=T),
    "no gates": lambda: QuantumCircuit(2),
    "delays": lambda: around(lambda c: (c.delay(1e-7, 0, "s"), c.delay(3, 1))),
    "a bound delay": lambda: around(lambda c: c.delay(X, 0)).assign_parameters({X: 10}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_circuits_are_taken(name):
    circuit = ODD[name]()
    same(circuit, ODD[name]())


def test_only_measurements():
    circuit = QuantumCircuit(2)
    circuit.measure_all()
    assert QuantumLayer(circuit, probabilities=True)().tolist() == [1, 0, 0, 0]


def test_work_does_not_grow_with_the_depth_of_nesting(monkeypatch):
    """The gates within composite gates are put into a circuit as often as gates that are not in any."""

    def appended(depth: int) -> int:
        circuit = body(2, *(Parameter(f"t{i}") for i in range(2)))
        for _ in range(depth):
            outside = QuantumCircuit(2)
            outside.append(circuit.to_gate(), [0, 1])
            circuit = outside
        calls = []
        append = QuantumCircuit.append
        with monkeypatch.context() as patched:
            patched.setattr(QuantumCircuit, "append", lambda *a, **k: (calls.append(1), append(*a, **k))[1])
            Program.compile(circuit, weights=circuit.parameters)
        return len(calls)

    assert appended(1) == appended(10) <= 3 * appended(0)
