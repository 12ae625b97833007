"""What happens when a circuit is compiled: which circuits are taken, which are refused and how, and what they give."""

from importlib import import_module

import numpy as np
import pytest
import torch
from problems import (
    PROBLEMS,
    AmplitudeGate,
    Problem,
    features,
    generic_observables,
    mix,
    mixed,
    oracle,
    oracle_at,
    point,
    problem,
    z,
)
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Parameter, ParameterVector
from qiskit.circuit import library as lib
from qiskit.quantum_info import Operator, Pauli, SparseObservable, SparsePauliOp, Statevector

from qiskit_torch_bridge import Program, QuantumLayer, evaluate

TOLERANCE = 1e-7
T, X = Parameter("t"), Parameter("x")


def rotated(num_qubits: int = 1, num_clbits: int = 0) -> QuantumCircuit:
    """A circuit that has a weight on qubit 0."""
    circuit = QuantumCircuit(num_qubits, num_clbits)
    circuit.ry(T, 0)
    return circuit


def generic(num_qubits: int) -> QuantumCircuit:
    """A circuit without parameters that makes all outcomes likely, and no two equally so."""
    return mixed(num_qubits, lambda circuit: circuit.ry(0.4, 0))


def values_of(layer: QuantumLayer, inputs: torch.Tensor | None = None) -> np.ndarray:
    return layer(inputs).detach().double().numpy()


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_agree_with_qiskit(name):
    expected = oracle(name)
    layer = problem(name).layer(expected.weights)
    values = values_of(layer, features(expected)).reshape(expected.values.shape)
    np.testing.assert_allclose(values, expected.values, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["cosine", "textbook", "entangled_pair"])
def test_values_agree_with_the_formula(name):
    """Neither Qiskit's simulator nor ours is taken on trust."""
    expected = oracle(name)
    formula = [problem(name).closed_form(row, expected.weights) for row in expected.inputs]
    np.testing.assert_allclose(expected.values, formula, rtol=0, atol=1e-12)
    values = values_of(problem(name).layer(expected.weights), features(expected))
    np.testing.assert_allclose(values, formula, atol=1e-12)


@pytest.mark.parametrize("backend", [None, "aer"])
@pytest.mark.parametrize(
    "name", ["sin", "exp", "cos", "lambda", "pi", "I", "E", "a-b", "x[0]", "angle[0]", "θ", "bound"]
)
def test_a_parameter_may_have_any_name(name, backend):
    """Names are the user's: neither functions, nor SymPy's constants, nor our own parameters take them away."""
    odd, w = Parameter(name), Parameter("w")
    circuit = mixed(1, lambda c: (c.rx((odd * w).sin() + odd.exp() / 2, 0), c.rz(odd.cos(), 0)), lambda c: c.ry(w, 0))
    named = Problem(circuit, (z(1, 0),), inputs=(odd,), weights=(w,))
    expected = oracle_at(named, *point(named))
    layer = named.layer(expected.weights, backend=backend)
    np.testing.assert_allclose(values_of(layer, features(expected)), expected.values, rtol=0, atol=TOLERANCE)


def test_compiling_leaves_the_circuit_as_it_was():
    circuit = rotated(2)
    circuit.measure_all()
    before = circuit.copy()
    QuantumLayer(circuit, weights=[T])
    assert circuit == before


@pytest.mark.parametrize("weights", [(), {}])
def test_a_circuit_without_parameters_is_a_constant(weights):
    layer = QuantumLayer(generic(2), weights=weights, observables="XY")
    assert not list(layer.parameters())
    assert values_of(layer) == pytest.approx(Statevector(generic(2)).expectation_value(Pauli("XY")), abs=TOLERANCE)


def test_rows_without_columns_are_a_batch():
    """A circuit without inputs still takes a batch: of rows with no features in them."""
    layer = QuantumLayer(rotated(), weights=[T], init=torch.tensor([0.3], dtype=torch.float64))
    values = values_of(layer, torch.zeros(2, 3, 0, dtype=torch.float64))
    np.testing.assert_allclose(values, np.full((2, 3, 1), np.cos(0.3)), atol=1e-12)


# --- readout ----------------------------------------------------------------------------------------------------------


def test_order_is_little_endian():
    """As in Qiskit: the last character of a label is qubit 0, and the first named qubit is the least significant."""
    circuit = QuantumCircuit(3)
    circuit.x(0)
    assert values_of(QuantumLayer(circuit, observables=["IIZ", "IZI", "ZII"])).tolist() == [-1, 1, 1]
    assert values_of(QuantumLayer(circuit)).tolist() == [-1, 1, 1]
    assert values_of(QuantumLayer(circuit, probabilities=[0, 1, 2])).argmax() == 0b001
    assert values_of(QuantumLayer(circuit, probabilities=[2, 1, 0])).argmax() == 0b100


@pytest.mark.parametrize(
    ("observable", "same"),
    [
        ("ZX", SparsePauliOp("ZX")),
        (Pauli("-ZX"), SparsePauliOp("ZX", -1)),
        (SparseObservable("0+"), SparsePauliOp(["II", "ZI", "IX", "ZX"], [0.25] * 4)),
        (SparsePauliOp(["ZX", "XZ", "ZX"], [1, 2, 3]), SparsePauliOp(["ZX", "XZ"], [4, 2])),
    ],
)
def test_kinds_of_observables(observable, same):
    expected = Statevector(generic(2)).expectation_value(same).real
    assert values_of(QuantumLayer(generic(2), observables=observable)) == pytest.approx(expected, abs=TOLERANCE)
    assert values_of(QuantumLayer(generic(2), observables=[observable]))[0] == pytest.approx(expected, abs=TOLERANCE)


def test_identity_and_zero_terms_are_constants_without_circuits():
    constants = ["II", SparsePauliOp(["II", "ZZ"], [2.5, 0.0]), SparsePauliOp(["XX", "XX"], [1.0, -1.0])]
    layer = QuantumLayer(rotated(2), weights=[T], observables=constants)
    values = layer()
    assert values.tolist() == [1.0, 2.5, 0.0]
    values.sum().backward()
    assert layer.weights.grad.tolist() == [0.0]
    assert layer.total_circuits == 0
    assert values_of(QuantumLayer(QuantumCircuit(1), observables=SparsePauliOp(["I", "Z"], [0.5, 2]))).tolist() == [2.5]


@pytest.mark.parametrize(
    ("observables", "groups"),
    [
        (["ZII", "IZI", "IIZ", "ZZZ"], 1),
        (["XII", "IZI", "IIY", "XIY"], 1),
        (["ZZI", "XXI"], 2),
        (["ZII", "XII", "YII"], 3),
        ([SparsePauliOp(["ZZI", "XIX", "III"], [1, 2, 3]), SparsePauliOp(["IZI", "XIX"], [4, 5])], 2),
    ],
)
def test_qubitwise_commuting_terms_are_measured_together(observables, groups):
    layer = QuantumLayer(generic(3), observables=observables)
    expected = [Statevector(generic(3)).expectation_value(SparsePauliOp(o)).real for o in observables]
    np.testing.assert_allclose(values_of(layer), expected, rtol=0, atol=TOLERANCE)
    assert layer.last_run.circuits == groups


@pytest.mark.parametrize("backend", [None, "aer"])
def test_final_measurements_are_dropped_for_observables(backend):
    circuit = generic(2)
    expected = Statevector(circuit).expectation_value(Pauli("XY")).real
    circuit.barrier()
    circuit.measure_all()
    assert values_of(QuantumLayer(circuit, observables="XY", backend=backend)) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("backend", [None, "aer"])
@pytest.mark.parametrize("qubits", [[0], [2, 0], [1, 2, 0]])
def test_probabilities_of_named_qubits(qubits, backend):
    expected = Statevector(generic(3)).probabilities(qubits)
    by_index = QuantumLayer(generic(3), probabilities=qubits, backend=backend)
    by_bit = QuantumLayer(circuit := generic(3), probabilities=[circuit.qubits[q] for q in qubits], backend=backend)
    np.testing.assert_allclose(values_of(by_index), expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(values_of(by_bit), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("backend", [None, "aer"])
@pytest.mark.parametrize("qubits", [[3, 1, 0], [0, 3, 1], [1, 0, 3], [0, 1, 3]])
def test_final_measurements_are_read_in_the_order_of_their_classical_bits(qubits, backend):
    circuit = generic(4)
    expected = Statevector(circuit).probabilities(qubits)
    circuit.add_bits(QuantumCircuit(0, 5).clbits)
    for qubit in (1, 0, 3):
        circuit.measure(qubit, (0, 2, 4)[qubits.index(qubit)])
    layer = QuantumLayer(circuit, probabilities=True, backend=backend)
    np.testing.assert_allclose(values_of(layer), expected, rtol=0, atol=TOLERANCE)


def test_interpret_adds_up_the_outcomes_of_a_class():
    probabilities = Statevector(generic(3)).probabilities()
    parity = QuantumLayer(generic(3), probabilities=[0, 1, 2], interpret=lambda outcome: outcome.bit_count() % 2)
    odd = sum(p for outcome, p in enumerate(probabilities) if outcome.bit_count() % 2)
    np.testing.assert_allclose(values_of(parity), [1 - odd, odd], rtol=0, atol=TOLERANCE)
    gap = QuantumLayer(generic(3), probabilities=[0], interpret=lambda outcome: 2 * outcome)
    np.testing.assert_allclose(values_of(gap)[1], 0, atol=TOLERANCE)
    assert gap.num_outputs == 3


def test_probabilities_have_the_gradients_of_projectors():
    x, t = Parameter("x"), Parameter("t")
    circuit = mixed(2, lambda c: (c.ry(x, 0), c.crx(t, 0, 1)))
    projectors = [SparseObservable(label) for label in ("00", "01", "10", "11")]
    as_problem = Problem(circuit, tuple(map(SparsePauliOp.from_sparse_observable, projectors)), (x,), (t,))
    expected = oracle_at(as_problem, *point(as_problem))
    upstream = np.random.default_rng(1).normal(size=expected.values.shape)
    by_inputs, by_weights = expected.gradients(upstream)
    for options in ({"probabilities": [0, 1], "observables": None}, {"observables": projectors}):
        layer = as_problem.layer(expected.weights, **options)
        inputs = features(expected, requires_grad=True)
        layer(inputs).backward(torch.tensor(upstream))
        np.testing.assert_allclose(inputs.grad, by_inputs, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(layer.weights.grad, by_weights, rtol=0, atol=TOLERANCE)


def test_angles_outside_the_light_cone_cost_no_circuits():
    """Two of five angles can reach the measured qubit; the others' derivative is zero without being measured."""
    name = "angles_outside_the_light_cone"
    expected = oracle(name)
    layer = problem(name).layer(expected.weights, gradient="parameter_shift")
    inputs = features(expected, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.total_circuits == len(expected.inputs) * (1 + 2 * 2)
    assert inputs.grad[:, 1].tolist() == [0, 0]
    assert layer.weights.grad[1:].tolist() == [0, 0]
    assert abs(layer.weights.grad[0]) > 0.01


# --- inputs that have no gradient -------------------------------------------------------------------------------------


def _within_a_gate(gate):
    inner = QuantumCircuit(1, name="outer")
    inner.append(gate, [0])
    return inner.to_gate()


UNDIFFERENTIABLE = {
    "amplitudes": lambda x, y: AmplitudeGate(2 * x, y),
    "rv": lambda x, y: lib.RVGate(x, y, 0.2),
    "outer": lambda x, y: _within_a_gate(AmplitudeGate(x, y)),
}


def _encoding(name: str) -> Problem:
    """Two inputs in a gate that is only defined for numbers, one in a rotation, and weights after them."""
    x, t = ParameterVector("x", 3), ParameterVector("t", 2)
    circuit = mixed(
        2,
        lambda c: (c.append(UNDIFFERENTIABLE[name](x[2], x[0]), [1]), c.ry(x[1], 0)),
        lambda c: (c.rx(t[0], 0), c.crz(t[1], 1, 0)),
    )
    return Problem(circuit, generic_observables(2), tuple(x), tuple(t))


@pytest.mark.parametrize("options", [{}, {"gradient": "parameter_shift"}, {"backend": "aer"}])
@pytest.mark.parametrize("name", UNDIFFERENTIABLE)
def test_weights_are_trained_behind_inputs_that_have_no_gradient(name, options):
    encoding = _encoding(name)
    inputs, weights = point(encoding, rows=3)
    expected = oracle_at(encoding, inputs[[0, 1, 0, 2]], weights)
    layer = encoding.layer(weights, **options)
    values = layer(features(expected))
    upstream = np.random.default_rng(1).normal(size=expected.values.shape)
    values.backward(torch.tensor(upstream))
    np.testing.assert_allclose(values.detach(), expected.values, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(layer.weights.grad, expected.gradients(upstream)[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", UNDIFFERENTIABLE)
def test_gradients_by_inputs_that_have_none_are_refused_before_anything_runs(counting, name):
    encoding = _encoding(name)
    inputs, weights = point(encoding)
    layer = encoding.layer(weights, backend=counting())
    with pytest.raises(ValueError, match=rf"gradient by the inputs .*'{name}'.* detach"):
        layer(torch.tensor(inputs, requires_grad=True))
    assert layer.backend.calls == []
    with torch.no_grad():
        layer(torch.tensor(inputs, requires_grad=True))


# --- refusals ---------------------------------------------------------------------------------------------------------


def _then(change, num_qubits=1, num_clbits=0):
    circuit = rotated(num_qubits, num_clbits)
    change(circuit)
    return circuit


def _measured_within_an_instruction():
    inner = rotated(2, 1)
    inner.measure(0, 0)
    inner.sx(0)
    circuit = QuantumCircuit(2, 1)
    circuit.append(inner.to_instruction(), [0, 1], [0])
    return circuit


def _conditioned():
    circuit = rotated(2, 1)
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)):
        circuit.x(1)
    return circuit


def _looped():
    circuit = rotated(1)
    with circuit.for_loop(range(3)):
        circuit.ry(0.1, 0)
        circuit.break_loop()
    return circuit


def _with(gate, num_qubits=1):
    return _then(lambda c: c.append(gate, range(num_qubits)), num_qubits)


AMPLITUDES = ["'amplitudes'", "t, x", "rotation angles"]
FIRST = r"observables\[0\]"
REFUSED_CIRCUITS = {
    "mid-circuit measurement": (
        lambda: _then(lambda c: (c.measure(0, 0), c.rx(0.1, 0)), 2, 1),
        {},
        ["Mid-circuit measurement", r"\[0\]", "'rx'", "move"],
    ),
    "nested measurement": (_measured_within_an_instruction, {}, ["Mid-circuit measurement", "'sx'"]),
    "if_test": (_conditioned, {}, ["'if_else'", "control flow", "use"]),
    "for_loop that ends early": (_looped, {}, ["'break_loop'.* for_loop", "control flow", "use"]),
    "mid-circuit reset": (lambda: _then(lambda c: (c.reset(0), c.h(0))), {}, ["'reset'", "use"]),
    "late initialize": (lambda: _then(lambda c: c.initialize([0.6, 0.8], 0)), {}, ["'initialize'", "use"]),
    "two measurements into one bit": (
        lambda: _then(lambda c: c.measure([0, 1], [0, 0]), 2, 1),
        {},
        ["[Cc]lassical bit 0", "twice"],
    ),
    "amplitudes as weights": (lambda: _with(AmplitudeGate(X, T)), {"weights": [X, T]}, AMPLITUDES),
    "weights and inputs in one such gate": (lambda: _with(AmplitudeGate(X, T)), {"inputs": [X]}, AMPLITUDES),
    "rotation without a known decomposition": (
        lambda: _with(lib.RVGate(T, 0.1, 0.2)),
        {},
        ["'rv'", r"\bt\b", "definition"],
    ),
    "opaque gate whose name holds another's": (lambda: _with(Gate("mystery", 1, [])), {}, ["Instruction 'mystery'"]),
    "opaque gate within another": (
        lambda: _with(_within_a_gate(Gate("opaque", 1, [T]))),
        {},
        ["'(opaque|outer)'", r"\bt\b", "definition"],
    ),
    "a delay for a parameter": (lambda: _then(lambda c: c.delay(X, 0)), {"inputs": [X]}, ["'delay'", "bind it"]),
    "parameter in neither list": (lambda: _with(lib.RXGate(X)), {}, [r"\bx\b", "neither inputs nor weights", "bind"]),
    "parameter in both lists": (rotated, {"inputs": [T]}, [r"\bt\b", "both inputs and weights"]),
    "parameter in two groups": (rotated, {"weights": {"a": [T], "b": [T]}}, [r"\bt\b", r"\(a\)", r"\(b\)"]),
    "group name with a dot": (rotated, {"weights": {"a.b": [T]}}, ["weights", r"'a\.b'"]),
    "group name that a torch module has": (rotated, {"weights": {"keys": [T]}}, ["weights", "'keys'"]),
    "empty group name": (rotated, {"weights": {"": [T]}}, ["weights", "''"]),
    "parameter named twice": (rotated, {"weights": [T, T]}, ["weights", r"\bt\b", "once"]),
    "parameter that is not in the circuit": (rotated, {"inputs": [X]}, [r"x \(in inputs\)", "not in the circuit"]),
    "no observables": (rotated, {"observables": []}, ["observables", "empty"]),
    "observable on too many qubits": (rotated, {"observables": ["Z", "ZZ"]}, [r"observables\[1\]", "2 qubits.* 1"]),
    "observable on too few qubits": (lambda: rotated(2), {"observables": "Z"}, [FIRST, "expected 2"]),
    "non-Hermitian observable": (rotated, {"observables": SparsePauliOp("Z", 1j)}, [FIRST, "Hermitian"]),
    "phase of i": (rotated, {"observables": Pauli("iZ")}, [FIRST, "Hermitian"]),
    "coefficient that is no number": (rotated, {"observables": SparsePauliOp("Z", np.nan)}, [FIRST, "finite"]),
    "coefficient with a parameter": (
        rotated,
        {"observables": SparsePauliOp("Z", np.array([X]))},
        [FIRST, "parameters", "weights"],
    ),
    "no Pauli label": (rotated, {"observables": "Q"}, [FIRST, "'Q'"]),
    "qubit named twice": (lambda: rotated(2), {"probabilities": [1, 1]}, ["probabilities", r"\[1, 1\]", "once"]),
    "qubit that does not exist": (lambda: rotated(2), {"probabilities": [2]}, ["probabilities", "2", "0 to 1"]),
    "negative qubit": (lambda: rotated(2), {"probabilities": [-1]}, ["probabilities", "-1", "0 to 1"]),
    "no qubits": (rotated, {"probabilities": []}, ["probabilities", "0 qubits"]),
    "too many qubits": (lambda: rotated(21), {"probabilities": range(21)}, ["probabilities", "21 qubits.*observables"]),
    "nothing measured": (rotated, {"probabilities": True}, ["probabilities=True", "measure"]),
    "interpret alone": (rotated, {"interpret": lambda outcome: 0}, ["interpret", r"probabilities=\["]),
    "both readouts": (rotated, {"observables": "Z", "probabilities": [0]}, ["observables and probabilities"]),
    "negative class": (rotated, {"probabilities": [0], "interpret": lambda outcome: -1}, [r"interpret\(0\)", "-1"]),
    "class that is no integer": (rotated, {"probabilities": [0], "interpret": lambda bits: 0.5}, [r"interpret\(0\)"]),
}


@pytest.mark.parametrize("case", REFUSED_CIRCUITS)
def test_refusals_name_the_cause_and_the_remedy(case):
    make, options, words = REFUSED_CIRCUITS[case]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        QuantumLayer(make(), **{"weights": [T], **options})
    for word in words:
        assert refusal.match(word)


@pytest.mark.parametrize("circuit", [None, "circuit", rotated, rotated().to_gate(), Operator(np.eye(2))])
def test_only_circuits_are_taken(circuit):
    with pytest.raises(TypeError, match=r"circuit: got .*, expected a QuantumCircuit"):
        QuantumLayer(circuit, weights=[T])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": ["t"]}, "weights: got 't'"),
        ({"weights": "t"}, "weights: got 't'"),
        ({"weights": {"a": [0.3]}}, r"weights\['a'\]: got 0.3"),
        ({"inputs": 3}, "inputs: got 3"),
        ({"observables": [3]}, r"observables\[0\]: got int"),
        ({"observables": 3}, "observables.*got int"),
        ({"observables": Operator(np.eye(2))}, "observables.*got Operator"),
        ({"probabilities": [0.0]}, "probabilities: got 0.0"),
    ],
)
def test_wrong_types_are_named(options, words):
    with pytest.raises(TypeError, match=words):
        QuantumLayer(rotated(), **{"weights": [T], **options})


def test_programs_are_refused_like_layers():
    with pytest.raises(ValueError, match="neither inputs nor weights"):
        Program.compile(rotated())


@pytest.mark.parametrize("barrier", [False, True])
@pytest.mark.parametrize(
    "instruction", [lambda c: c.reset(0), lambda c: c.initialize("+", 0)], ids=["reset", "initialize"]
)
def test_resets_of_fresh_qubits_are_taken(instruction, barrier):
    """On a fresh qubit they do nothing, even where other qubits have moved on."""
    circuit = QuantumCircuit(2)
    circuit.ry(T, 1)
    if barrier:
        circuit.barrier()
    instruction(circuit)
    circuit.rzx(T, 0, 1)
    mix(circuit, 1)
    fresh = Problem(circuit, (SparsePauliOp("ZX"),), weights=(T,))
    expected = oracle_at(fresh, *point(fresh))
    assert values_of(fresh.layer(expected.weights)) == pytest.approx(expected.values[0], abs=TOLERANCE)


# --- gates of the user's own ------------------------------------------------------------------------------------------


def _named_like_a_standard_gate(name: str, nested: bool) -> QuantumCircuit:
    inner = QuantumCircuit(2 if name == "cp" else 1, name=name)
    inner.ry(T, 0)
    inner.x(inner.num_qubits - 1)
    inner.rz(2 * T, 0)
    outer = QuantumCircuit(2)
    outer.h([0, 1])
    if nested:
        wrapper = QuantumCircuit(2, name="wrapper")
        wrapper.append(inner.to_gate(), range(inner.num_qubits))
        outer.append(wrapper.to_gate(), [0, 1])
    else:
        outer.append(inner.to_gate(), range(inner.num_qubits))
    mix(outer, 3)
    return outer


@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
@pytest.mark.parametrize("name", ["rx", "p", "cp", "u", "h", "x", "unitary", "barrier", "measure"])
def test_a_users_gate_may_bear_a_standard_gates_name(name, nested):
    """The transpiler's passes go by name, and would take it for the standard gate."""
    circuit = _named_like_a_standard_gate(name, nested)
    impostor = Problem(circuit, generic_observables(2), weights=(T,))
    spelt_out = Problem(circuit.decompose(reps=2), generic_observables(2), weights=(T,))
    expected = oracle_at(spelt_out, *point(spelt_out))
    np.testing.assert_allclose(values_of(impostor.layer(expected.weights)), expected.values[0], rtol=0, atol=TOLERANCE)


def test_a_complex_angle_is_refused():
    circuit = QuantumCircuit(1)
    circuit.rx(1j * T, 0)
    with pytest.raises(ValueError, match=r"complex, expected a real angle"):
        QuantumLayer(circuit, weights=[T])


def test_drawing_shows_the_circuit_that_runs():
    circuit = rotated()
    layer = QuantumLayer(circuit, weights=[T])
    before = str(layer.draw())
    circuit.x(0)
    assert str(layer.draw()) == before


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        (torch.zeros(3, 2), [torch.zeros(1)], r"inputs: got shape \(3, 2\), expected \(N, 1\)"),
        (None, [torch.zeros(1)], r"inputs: got shape None, expected \(N, 1\)"),
        (torch.zeros(3, 1), [torch.zeros(5)], r"weights: got shapes \[\(5,\)\], expected \[\(1,\)\]"),
        (torch.zeros(3, 1), [], r"weights: got shapes \[\], expected \[\(1,\)\]"),
    ],
)
def test_tensors_of_a_wrong_width_are_refused(inputs, weights, message):
    circuit = rotated()
    circuit.rx(X, 0)
    program = Program.compile(circuit, inputs=[X], weights=[T])
    with pytest.raises(ValueError, match=message):
        evaluate(program, inputs, weights)


def test_angles_are_computed_in_double_precision_only():
    program = Program.compile(rotated(), weights=[T])
    with pytest.raises(TypeError, match=r"weights: got a tensor of torch\.float32 on cpu, expected float64 on the CPU"):
        program.evaluate_angles(None, [torch.zeros(1)])


@pytest.mark.parametrize(("name", "room"), [("Samples", "readout"), ("ObservableLike", "observables")])
def test_the_old_name_of_readouts_says_where_they_are(name, room):
    with pytest.warns(DeprecationWarning, match=rf"is now qiskit_torch_bridge\.program\.{room}; import {name}"):
        old = getattr(import_module("qiskit_torch_bridge.readout"), name)
    assert old is getattr(import_module(f"qiskit_torch_bridge.program.{room}"), name)


def test_probabilities_of_many_qubits_agree_with_qiskit():
    """Sixteen qubits: nothing of size 4**16 may be made on the way."""
    circuit = QuantumCircuit(16)
    for qubit in range(16):
        circuit.ry(T * (qubit + 1), qubit)
    layer = QuantumLayer(circuit, weights=[T], probabilities=range(16), init=torch.tensor([0.1], dtype=torch.float64))
    expected = Statevector(circuit.assign_parameters([0.1])).probabilities()
    np.testing.assert_allclose(values_of(layer), expected, rtol=0, atol=1e-12)
    layer().square().sum().backward()
    assert layer(shots=100).sum().item() == pytest.approx(1.0)
