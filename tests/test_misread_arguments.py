"""Arguments that would be taken for something else, or are called otherwise elsewhere, are refused with the remedy."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import AncillaRegister, ClassicalRegister, Parameter, ParameterVector, QuantumRegister
from qiskit.quantum_info import Statevector

import qiskit_torch_bridge
from qiskit_torch_bridge import (
    DressedQuantumNet,
    GrowingShots,
    LayerwiseQuantumLayer,
    Phase,
    Program,
    QuantumLayer,
    Quote,
    SeedStream,
    complete_depth_schedule,
    evaluate,
    layerwise_schedule,
)
from qiskit_torch_bridge.circuits import random_rotations, ring_layers, rotation_layers, strongly_entangling, textbook

X, T = Parameter("x"), Parameter("theta")
W = ParameterVector("w", 2)
Q, A = QuantumRegister(2, "q"), AncillaRegister(1, "a")


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(Q, A)
    qc.ry(X, 0)
    qc.rx(T, 1)
    qc.cx(0, 2)
    return qc


PROGRAM = Program.compile(circuit(), inputs=[X], weights=[T])


def make_layer(**options: Any) -> QuantumLayer:
    return QuantumLayer(circuit(), **({"inputs": [X], "weights": [T], "seed": 1} | options))


def net(*args: Any, **options: Any) -> DressedQuantumNet:
    return DressedQuantumNet(*args, **({"num_qubits": 2, "depth": 1} | options))


def grown(**options: Any) -> LayerwiseQuantumLayer:
    defaults = {"make_circuit": lambda depth: random_rotations(2, depth, seed=0), "depth": 1}
    return LayerwiseQuantumLayer(**defaults | options)


# ------------------------------------------------------------------------------- mappings, sets, and other containers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": {X: 0.3}}, "inputs: got a mapping, whose values would be lost.*circuit.assign_parameters"),
        ({"inputs": {"x": [X]}}, "inputs: got a mapping"),
        ({"weights": {T: 0.3}}, "weights: got a mapping, whose values would be lost.*init="),
        ({"weights": {"a": {T: 0.3}}}, r"weights\['a'\]: got a mapping"),
        ({"weights": {"a": 0.3}}, r"weights\['a'\]: got 0\.3, expected a Parameter"),
        ({"weights": {0: [T]}}, "weights: got the group name 0"),
        ({"probabilities": {1: 0.3, 0: 0.7}}, "probabilities: got a mapping, whose values would be lost"),
        ({"inputs": {X}}, "inputs: got a set, which has no order, expected a sequence"),
        ({"inputs": frozenset([X])}, "inputs: got a frozenset, which has no order"),
        ({"weights": {T}}, "weights: got a set, which has no order"),
        ({"weights": {"a": {T}}}, r"weights\['a'\]: got a set, which has no order"),
        ({"probabilities": {0, 1}}, "probabilities: got a set, which has no order"),
        ({"inputs": "x"}, "inputs: got 'x'"),
        ({"inputs": [[X]]}, r"inputs: got \[.*\] \(list\), expected Parameters"),
        ({"inputs": [2 * X]}, "ParameterExpression"),
        ({"probabilities": "01"}, "probabilities: got '01', expected a list of qubits"),
        ({"probabilities": [[0], [1]]}, r"probabilities: got \[0\] \(list\), expected a qubit's index"),
        ({"probabilities": [True]}, r"probabilities: got True \(bool\)"),
        ({"probabilities": torch.tensor([0, 1])}, r"\(Tensor\), expected a qubit's index"),
        ({"probabilities": ClassicalRegister(2, "c")}, "probabilities: got ClassicalRegister.*QuantumRegister"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_values_or_no_order_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        make_layer(**options)


def test_containers_with_an_order_are_taken():
    order = ParameterVector("v", 12)
    qc = QuantumCircuit(1)
    for parameter in order:
        qc.rx(parameter, 0)
    whole = QuantumLayer(qc, weights=order, seed=1)
    containers = [list(order), tuple(order), np.array(order[:], dtype=object), (p for p in order), qc.parameters]
    for given in [*containers, dict.fromkeys(order).keys(), {"v": order}, {"v": (p for p in order)}]:
        layer = QuantumLayer(qc, weights=given, seed=1)
        assert layer().item() == whole().item()
    assert QuantumLayer(QuantumCircuit(1), weights={}, inputs={})().item() == 1.0


@pytest.mark.parametrize(
    ("given", "qubits"),
    [
        *((Q, [0, 1]), (A, [2]), (A[0], [2]), ([A, Q], [2, 0, 1]), ([A, 1], [2, 1]), (Q[::-1], [1, 0])),
        *((slice(None), [0, 1, 2]), ([slice(1, None), 0], [1, 2, 0]), (range(2, -1, -1), [2, 1, 0])),
        *(([range(2)], [0, 1]), (np.array([2, 0]), [2, 0]), ((q for q in (1, 2)), [1, 2])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_qubits_as_qiskit_names_them(given, qubits):
    layer = make_layer(probabilities=given, init=torch.tensor([0.7], dtype=torch.float64))
    state = Statevector(circuit().assign_parameters({X: 1.1, T: 0.7}))
    values = layer(torch.tensor([1.1], dtype=torch.float64)).detach()
    np.testing.assert_allclose(values, state.probabilities(qubits), atol=1e-12)


def test_registers_that_are_not_the_circuits(counting):
    for given in (QuantumRegister(2, "other"), [QuantumRegister(2, "other")[0]]):
        with pytest.raises(ValueError, match="which is no qubit of the circuit"):
            make_layer(probabilities=given)
    with pytest.raises(ValueError, match=r"\[0, 1, 0\], expected each qubit once"):
        make_layer(probabilities=[Q, 0])
    placed = transpile(circuit(), basis_gates=["cx", "rz", "sx", "x"], initial_layout=[2, 0, 1])
    for given in (Q, [Q[0]]):
        with pytest.raises(TypeError, match=r"expected a qubit's index \(the circuit has been transpiled\)"):
            make_layer_of(placed, given)
    assert make_layer_of(placed, slice(2)).num_outputs == 4


def make_layer_of(qc: QuantumCircuit, probabilities: Any) -> QuantumLayer:
    return QuantumLayer(qc, inputs=[X], weights=[T], probabilities=probabilities)


def test_true_of_numpy_is_true():
    measured = circuit()
    measured.measure_all()
    assert make_layer_of(measured, np.True_).num_outputs == 8
    assert make_layer_of(measured, np.False_).num_outputs == 3


def test_layers_of_rotations_may_come_one_by_one():
    """And are not used up when their lengths have been looked at."""
    assert len(rotation_layers(["ry"] * 2 for _ in range(3)).weights) == 3
    for wrong in ({("rx", "ry")}, [{"rx", "ry"}]):
        with pytest.raises(TypeError, match="got a set, which has no order"):
            rotation_layers(wrong)


# ------------------------------------------------------------------------------- names and numbers of arguments


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("input_params", "it is called inputs= here"),
        ("weight_params", "it is called weights= here"),
        ("num_qubits", "the circuit has its qubits"),
        ("sampler", "give it as backend="),
        ("estimator", "give it as backend="),
        ("pass_manager", "transpile the circuit with it"),
        ("diff_method", "it is called gradient= here"),
        ("wires", "probabilities="),
        ("device", r"layer\.to\(device\)"),
        ("observable", r"did you mean observables=\?"),
        ("Weights", r"did you mean weights=\?"),
        ("shot", r"did you mean shots=\?"),
        ("zzz", "expected some of circuit, inputs, weights, observables"),
    ],
)
def test_arguments_by_names_from_elsewhere(name, remedy):
    with pytest.raises(TypeError, match=rf"QuantumLayer: got an unknown argument {name}= \(.*{remedy}.*\)") as caught:
        make_layer(**{name: 1})
    assert caught.value.__context__ is None


def test_several_unknown_arguments_are_all_named():
    with pytest.raises(TypeError, match=r"input_params= .*inputs= here\); got an unknown argument sampler="):
        QuantumLayer(circuit(), input_params=[X], sampler=None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuantumLayer(circuit(), [X], [T]), r"got 3 positional.*1 \(circuit\).*inputs=, weights="),
        (lambda: QuantumLayer(), "QuantumLayer: missing a required argument: 'circuit'"),
        (lambda: QuantumLayer(circuit(), circuit=circuit()), "QuantumLayer: multiple values for argument 'circuit'"),
        (lambda: DressedQuantumNet(4, 2, 3), r"got 3 positional.*2 \(num_features, num_outputs\).*num_qubits=, depth="),
        (lambda: net(4, 2, n_qubits=3), r"DressedQuantumNet: .*n_qubits= \(did you mean num_qubits=\?\)"),
        (lambda: grown(input_params=[X]), "LayerwiseQuantumLayer: got an unknown argument input_params="),
        (lambda: GrowingShots(make_layer(shots=5), 10, 20, 5), "got 4 positional.*first=, last=, steps="),
        (lambda: type("Mine", (QuantumLayer,), {})(circuit(), [X]), "Mine: got 2 positional"),
    ],
)
def test_calls_that_do_not_fit_the_signature(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_help_and_signatures_show_every_option():
    for cls, options in ((QuantumLayer, 12), (DressedQuantumNet, 9), (GrowingShots, 3)):
        kinds = [parameter.kind for parameter in inspect.signature(cls).parameters.values()]
        assert kinds.count(inspect.Parameter.KEYWORD_ONLY) == options
        assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_errors_from_within_a_constructor_are_its_own():
    with pytest.raises(TypeError, match="circuit: got int, expected a QuantumCircuit"):
        QuantumLayer(3)


def test_dir_shows_the_names_that_are_imported_on_first_use():
    assert set(qiskit_torch_bridge.__all__) <= set(dir(qiskit_torch_bridge))
    assert "__version__" in dir(qiskit_torch_bridge)


# ------------------------------------------------------------------------------- numbers, tensors, states


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: QuantumLayer(QuantumCircuit(0)), ValueError, "without qubits, expected at least one"),
        (lambda: QuantumLayer(QuantumCircuit(0, 1), probabilities=True), ValueError, "without qubits"),
        (lambda: net("4", 2), TypeError, r"num_features: got '4' \(str\), expected an integer"),
        (lambda: net(4.0, 2), TypeError, "num_features: got 4.0"),
        (lambda: net(4, True), TypeError, "num_outputs: got True"),
        (lambda: net(4, 2, num_qubits="2"), TypeError, "num_qubits: got '2'"),
        (lambda: net(4, 2, depth=2.0), TypeError, "depth: got 2.0"),
        (lambda: net(4, 2, depth=0), ValueError, "depth: got 0, expected at least 1"),
        (lambda: net(4, 2, weight_spread="a"), TypeError, "weight_spread: got 'a'"),
        (lambda: net(4, 2, weight_spread=math.nan), ValueError, "weight_spread: got nan"),
        (lambda: net(4, 2).load_published("/nosuch"), TypeError, "weights: got str, expected a mapping.*read a file"),
        (lambda: Phase("a", 2, 0, 1), TypeError, "trainable: got 0"),
        (lambda: Phase("a", 2, {0, 1}, 1), TypeError, "trainable: got a set"),
        (lambda: Phase("a", 2, ([0],), 1), ValueError, "trainable: got layers"),
        (lambda: Phase("a", "2", (0,), 1), TypeError, "depth: got '2'"),
        (lambda: Phase("a", 2, (0,), 1.5), TypeError, "epochs: got 1.5"),
        (lambda: complete_depth_schedule(True, 1), TypeError, "depth: got True"),
        (lambda: layerwise_schedule(steps=2.0, layers_per_step=1, epochs=1), TypeError, "steps: got 2.0"),
        (lambda: layerwise_schedule(steps=2, layers_per_step=1, epochs=1, sweeps="1"), TypeError, "sweeps: got '1'"),
        (lambda: grown().enter(2), TypeError, r"phase: got 2 \(int\), expected a Phase"),
        (lambda: grown(depth="1"), TypeError, "depth: got '1'"),
        (lambda: grown(make_circuit=3), TypeError, "make_circuit: got 3, expected a function"),
        (lambda: grown(make_circuit=lambda depth: strongly_entangling(2, depth)), TypeError, "a mapping of each layer"),
        (lambda: grown(make_circuit=lambda depth: circuit()), TypeError, r"make_circuit\(1\): got .*QuantumCircuit"),
        (lambda: textbook("1"), TypeError, "num_qubits: got '1'"),
        (lambda: ring_layers(2, 1.0), TypeError, "depth: got 1.0"),
        (lambda: random_rotations(2, 1, seed=None), TypeError, "seed: got None"),
        (lambda: make_layer(init={T: 0.3, "a": 1}), ValueError, r"init: got groups \['a', 'theta'\]"),
        (lambda: make_layer(init=torch.ones(1).to_sparse()), TypeError, r"init.*torch\.sparse_coo.*to_dense"),
        (lambda: make_layer(init=torch.ones(1, device="meta")), TypeError, "init.*meta device"),
        (lambda: make_layer(init={"weights": torch.ones(1, device="meta")}), TypeError, "init.*meta device"),
        (lambda: setattr(make_layer(), "total_shots", "5"), TypeError, "total_shots: got '5'"),
        (lambda: setattr(make_layer(), "total_circuits", -1), ValueError, "total_circuits: got -1"),
        (lambda: evaluate(PROGRAM, torch.zeros(1, 1), {torch.zeros(1)}), TypeError, "weights: got set, expected a"),
        (lambda: evaluate(PROGRAM, torch.zeros(1, 1) * 1j, [torch.zeros(1)]), TypeError, "complex64, expected real"),
        (lambda: evaluate(PROGRAM, torch.zeros(1, 1), [torch.zeros(1) * 1j]), TypeError, "complex64, expected real"),
        (lambda: make_layer().to("meta")(torch.zeros(1)), TypeError, "weights: .*meta device"),
    ],
)
def test_what_is_no_number_qubit_or_tensor(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_numpy_integers_are_integers():
    model = net(np.int64(3), np.int32(2), num_qubits=np.int64(2), depth=np.int8(1), weight_spread=np.float32(0.01))
    assert model(torch.zeros(1, 3)).shape == (1, 2)
    assert model.quantum.quote(np.int64(4)) == model.quantum.quote(4)
    assert layerwise_schedule(steps=np.int64(2), layers_per_step=1, epochs=1)[1].depth == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(2, 1, dtype=torch.complex64), r"complex64.*view_as_real\(features\)\.flatten\(-2\)"),
        (lambda: torch.zeros(2, 1, dtype=torch.int64), r"int64.*call features\.float\(\)"),
        (lambda: torch.zeros(2, 1).to_sparse(), r"features: got a tensor that is torch\.sparse_coo.*to_dense\(\)"),
        (lambda: torch.zeros(2, 1).to_sparse_csr(), r"features: got a tensor that is torch\.sparse_csr"),
        (lambda: torch.zeros(2, 1, device="meta"), "features: got a tensor on the meta device"),
        (lambda: torch.nested.as_nested_tensor([torch.zeros(1, 1), torch.zeros(2, 1)]), "a tensor that is nested"),
    ],
    ids=["complex", "integer", "coo", "csr", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested tensors")
def test_features_without_plain_numbers(counting, make, message):
    layer = make_layer(backend=counting())
    features = make()
    with pytest.raises(TypeError, match=message) as caught:
        layer(features)
    assert caught.value.__cause__ is None
    assert layer.backend.calls == []


def test_complex_features_may_be_given_as_their_parts():
    """What the message advises: the real part first, of each."""
    given = torch.tensor([[0.3 + 1.1j]])
    qc = QuantumCircuit(2)
    qc.ry(W[0], 0)
    qc.ry(W[1], 1)
    layer = QuantumLayer(qc, inputs=W)
    np.testing.assert_allclose(layer(torch.view_as_real(given).flatten(-2)), np.cos([[0.3, 1.1]]), atol=1e-6)


def test_a_quote_of_a_circuit_without_inputs():
    layer = make_layer(inputs=(), weights=[X, T], shots=10)
    assert layer.quote() == layer.quote(1)
    layer().sum().backward()
    assert layer.quote() == Quote(2, layer.total_circuits, layer.total_shots, layer.total_shots)
    with pytest.raises(ValueError, match="batch_size: got None, expected an integer"):
        make_layer().quote()


RNG_STATES = [
    (3, TypeError),
    ({}, TypeError),
    ({"entropy": [1]}, TypeError),
    ({"position": 1}, TypeError),
    ({"entropy": "ab", "position": 1}, TypeError),
    ({"entropy": [], "position": 1}, ValueError),
    ({"entropy": [-1], "position": 1}, ValueError),
    ({"entropy": [1], "position": -1}, ValueError),
    ({"entropy": [1], "position": 1.5}, TypeError),
    (torch.zeros(8, dtype=torch.uint8), TypeError),  # as torch.get_rng_state() gives
]


@pytest.mark.parametrize(
    ("state", "error"), RNG_STATES, ids=lambda value: "" if isinstance(value, type) else repr(value)[:40]
)
def test_a_wrong_state_of_the_shots_changes_nothing(state, error):
    layer = make_layer()
    before = layer.get_rng_state()
    with pytest.raises(error, match=r"state.*: got"):
        layer.set_rng_state(state)
    assert layer.get_rng_state() == before
    stream = SeedStream(4)
    stream.next()
    layer.set_rng_state(stream.state())
    assert layer.get_rng_state() == {"entropy": [4], "position": 1}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"pre_net.bias": "text"}, TypeError, "pre_net.bias: got str, expected an array"),
        ({"pre_net.bias": [1.0, [2.0]]}, TypeError, "pre_net.bias: got list"),
        ({"q_params": np.ones(30) * 1j}, TypeError, "q_params: got dtype torch.complex128"),
        ({"q_params": np.full(30, np.nan)}, ValueError, "q_params: got numbers that are not finite"),
        ({"post_net.bias": torch.ones(2).to_sparse()}, TypeError, "post_net.bias: .*sparse"),
        ({"other.q_params": np.ones(30)}, ValueError, r"more than one of q_params \(q_params, other\.q_params\)"),
    ],
)
def test_published_weights_that_are_wrong_change_nothing(changed, error, message):
    model = net(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes = {
        "pre_net.weight": (2, 3),
        "pre_net.bias": 2,
        "post_net.weight": (2, 2),
        "post_net.bias": 2,
        "q_params": 30,
    }
    head = {name: np.ones(shape) for name, shape in shapes.items()}
    with pytest.raises(error, match=message):
        model.load_published(head | changed)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.load_published(head)
    assert torch.equal(model.quantum.weights, torch.ones(2))
