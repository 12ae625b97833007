"""Bad input gives one clear error, which names the cause and the remedy, and runs no circuit."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from torch.func import functional_call, grad, vmap

from qiskit_torch_bridge import Adjoint, Program, QuantumLayer, evaluate

X = ParameterVector("x", 2)
W = ParameterVector("w", 3)
NAN, INF = math.nan, math.inf


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(X[1] * W[0], 1)
    qc.rzz(W[1], 0, 1)
    qc.ry(W[2], 0)
    return qc


def make_layer(**options: Any) -> QuantumLayer:
    return QuantumLayer(circuit(), **{"inputs": X, "weights": W, "observables": ["ZZ"], "seed": 1} | options)


@pytest.fixture
def layer(counting):
    return make_layer(backend=counting())


def assert_refused(layer: QuantumLayer, error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    """One error, of our wording rather than of a library below, and no circuit."""
    before = layer.get_rng_state()
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.value.__cause__ is None, "one error, not a chain of them"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert layer.backend.calls == []
    assert layer.last_run is None
    assert (layer.total_circuits, layer.total_shots) == (0, 0)
    assert layer.get_rng_state() == before


# ------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("shape", "place", "row", "column"),
    [((2,), (1,), 0, 1), ((3, 2), (2, 0), 2, 0), ((2, 3, 2), (1, 1, 1), 4, 1)],
    ids=["one row", "a batch", "two leading dimensions"],
)
def test_non_finite_features(layer, value, shape, place, row, column):
    features = torch.zeros(shape)
    features[place] = value
    message = rf"features: column {column} is {value} in row {row}.*expected finite.*No circuit was run"
    assert_refused(layer, ValueError, message, lambda: layer(features))


def test_non_finite_features_are_counted_and_the_first_is_named(layer):
    features = torch.tensor([[0.0, 0.0], [NAN, INF], [0.0, NAN]])
    assert_refused(layer, ValueError, r"column 0 is nan in row 1.*3 are not", lambda: layer(features))


@pytest.mark.filterwarnings("ignore:Got features or weights of dtype")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_non_finite_features_of_any_dtype(layer, dtype):
    features = torch.zeros(3, 2, dtype=dtype)
    features[1, 1] = NAN
    assert_refused(layer, ValueError, "column 1 is nan in row 1", lambda: layer(features))


def test_non_finite_features_under_torch_func(layer):
    features = torch.tensor([[0.0, 0.1], [NAN, 0.2]])
    weights = layer.weights.detach()
    by_weights = grad(lambda w, x: functional_call(layer, {"weights": w}, (x,)).sum())
    for call in (
        lambda: vmap(layer)(features),
        lambda: grad(lambda x: layer(x).sum())(features),
        lambda: vmap(grad(lambda x: layer(x).sum()))(features),
        lambda: vmap(by_weights, (None, 0))(weights, features),
    ):
        with pytest.raises(ValueError, match=r"(nan|finite).*No circuit was run"):
            call()
    assert layer.backend.calls == []


def test_expressions_that_overflow_name_the_expression(counting):
    a, b = Parameter("a"), Parameter("b")
    qc = QuantumCircuit(1)
    qc.ry(a.exp(), 0)
    qc.ry(b.log(), 0)
    layer = QuantumLayer(qc, inputs=[a, b], backend=counting())
    for features, message in (([1000.0, 1.0], r"exp\(a\).*inf"), ([1.0, -1.0], r"log\(b\).*nan")):
        with pytest.raises(ValueError, match=message + r".*in row 0.*No circuit was run"):
            layer(torch.tensor(features))
    assert layer.backend.calls == []


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 1), (), (0,), (4, 0)], ids=str)
def test_wrong_width(layer, shape):
    message = rf"features: got shape {re.escape(str(shape))}, expected \(\.\.\., 2\)"
    assert_refused(layer, ValueError, message, lambda: layer(torch.zeros(shape)))


def test_non_finite_features_that_reach_no_gate(counting):
    """In the global phase alone they change no value; they are a mistake all the same."""
    qc = QuantumCircuit(1, global_phase=X[0])
    qc.ry(X[1], 0)
    layer = QuantumLayer(qc, inputs=X, backend=counting())
    assert_refused(layer, ValueError, "column 0 is nan in row 0", lambda: layer(torch.tensor([NAN, 0.0])))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_wrong_dtype(layer, dtype):
    features = torch.zeros(4, 2, dtype=dtype)
    assert_refused(layer, TypeError, rf"features: got dtype {dtype}, expected a floating", lambda: layer(features))


@pytest.mark.parametrize("features", [[0.1, 0.2], np.zeros((3, 2)), 0.5, "x", (torch.zeros(2),)], ids=repr)
def test_no_tensor(layer, features):
    name = type(features).__name__
    assert_refused(layer, TypeError, rf"features: got {name}, expected a torch\.Tensor", lambda: layer(features))


def test_missing_and_superfluous_features(layer, counting):
    assert_refused(layer, ValueError, r"features: got none, expected shape \(\.\.\., 2\)", layer)
    bound = circuit().assign_parameters({X[0]: 0.1, X[1]: 0.2})
    only_weights = QuantumLayer(bound, weights=W, backend=counting(), observables=["ZZ"])
    with pytest.raises(ValueError, match=r"features: got shape \(3, 2\), expected \(\.\.\., 0\)"):
        only_weights(torch.zeros(3, 2))
    assert only_weights.backend.calls == []


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [NAN, INF])
def test_non_finite_weights(layer, value):
    with torch.no_grad():
        layer.weights[1] = value
    message = rf"weights.*: entry 1 is {value}.*diverged.*No circuit was run"
    assert_refused(layer, ValueError, message, lambda: layer(torch.zeros(3, 2)))


def test_non_finite_weights_of_a_group(counting):
    layer = make_layer(weights={"first": [W[0], W[1]], "second": [W[2]]}, backend=counting())
    with torch.no_grad():
        layer.weights["second"][0] = NAN
    with pytest.raises(ValueError, match=r"weights.*second.*entry 0 is nan.*No circuit was run"):
        layer(torch.zeros(3, 2))
    assert layer.backend.calls == []


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (torch.zeros(4), r"init.*shape \(4,\).*expected.*\(3,\)"),
        (torch.zeros(3, 1), r"init.*shape \(3, 1\).*expected.*\(3,\)"),
        (torch.zeros(()), r"init.*shape \(\)"),
        (torch.zeros(3, dtype=torch.int64), r"init.*int64.*floating"),
        (torch.tensor([0.0, NAN, 0.0]), r"init.*finite"),
        ("xavier", r"init.*'xavier'.*'uniform', 'zeros', 'normal'"),
        (None, r"init.*None.*'uniform'"),
        ([0.1, 0.2, 0.3], r"init.*expected.*tensor"),
        (np.zeros(3), r"init.*expected.*tensor"),
        ({"first": "zeros"}, r"init: got groups \['first'\], expected some of \['weights'\]"),
        ({"weights": torch.zeros(2)}, r"init.*shape \(2,\).*expected.*\(3,\)"),
    ],
    ids=str,
)
def test_wrong_initial_weights(init, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_layer(init=init)


def test_initial_weights_where_there_are_none():
    qc = QuantumCircuit(1)
    qc.ry(X[0], 0)
    with pytest.raises(ValueError, match=r"init.*shape \(3,\).*\(0,\)"):
        QuantumLayer(qc, inputs=[X[0]], init=torch.zeros(3))


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)], ids=repr
)
def test_wrong_seed(seed, error):
    with pytest.raises(error, match=r"seed: got .*expected a non-negative integer or None"):
        make_layer(seed=seed)


# ------------------------------------------------------------------------------------------------- shots

SHOTS = [(0, ValueError), (-5, ValueError), (10.0, TypeError), (0.5, TypeError), (True, TypeError), ("10", TypeError)]
bad_shots = pytest.mark.parametrize(("shots", "error"), SHOTS, ids=repr)


@bad_shots
def test_wrong_shots(layer, shots, error):
    message = r"shots: got .*expected a positive integer"
    with pytest.raises(error, match=message):
        make_layer(shots=shots)

    def assign() -> None:
        layer.shots = shots

    assert_refused(layer, error, message, assign)
    assert layer.shots is None, "the setting before stays"
    assert_refused(layer, error, message, lambda: layer(torch.zeros(2), shots=shots))


@bad_shots
@pytest.mark.parametrize("make", [StatevectorSampler, StatevectorEstimator, AerSimulator], ids=["S", "E", "aer"])
def test_wrong_shots_on_other_backends(make, shots, error):
    with pytest.raises(error, match=r"shots: got .*expected a positive integer"):
        make_layer(backend=make(), shots=shots)


def test_shots_may_be_numpy_integers(layer):
    layer(torch.zeros(2), shots=np.int64(7))
    assert layer.backend.calls == [(1, 7)]


class NoDefault(StatevectorSampler):
    """A Sampler that does not say how many shots it takes."""

    @property
    def default_shots(self) -> Any:
        return None


def test_shots_where_they_are_needed():
    with pytest.raises(ValueError, match=r"shots: got None, but NoDefault has no default.*shots=1000"):
        make_layer(backend=NoDefault())
    layer = make_layer(backend=NoDefault(), shots=10)
    with pytest.raises(ValueError, match="no default"):
        layer.shots = None
    assert layer.shots == 10
    assert make_layer(backend=AerSampler(default_shots=5)).backend.resolve_shots(None) == 5


# ------------------------------------------------------------------------------------------------- gradients


def test_adjoint_needs_exact_simulation(layer, counting):
    message = r"gradient='adjoint' needs exact simulation.*parameter_shift"
    with pytest.raises(ValueError, match=message):
        make_layer(gradient="adjoint", shots=10)
    with pytest.raises(ValueError, match=message):
        make_layer(gradient=Adjoint(), backend="aer")
    adjoint = make_layer(gradient="adjoint", backend=counting())
    assert_refused(adjoint, ValueError, message, lambda: adjoint(torch.zeros(2), shots=10))
    with pytest.raises(ValueError, match=message):
        adjoint.shots = 10
    assert adjoint.shots is None
    # Without a rule of the user's, the best one follows the shots.
    assert layer.gradient.name == "adjoint"
    layer.shots = 10
    assert layer.gradient.name == "parameter_shift"


@pytest.mark.parametrize(
    ("gradient", "error"), [("backprop", ValueError), ("", ValueError), (3, TypeError), (StatevectorSampler, TypeError)]
)
def test_unknown_gradient(gradient, error):
    with pytest.raises(error, match=r"gradient: got .*(adjoint|ParameterShift).*parameter_shift"):
        make_layer(gradient=gradient)


@pytest.mark.parametrize("backend", ["arr", "aer:", "fake:", "statevector:2", ""])
def test_unknown_backend_word(backend):
    with pytest.raises(ValueError, match=r"backend: got .*'statevector', 'aer', 'pauli', 'noisy:NAME', 'fake:NAME'"):
        make_layer(backend=backend)


@pytest.mark.parametrize("backend", [3, object(), AerSimulator, StatevectorSampler, circuit()])
def test_no_backend(backend):
    with pytest.raises(TypeError, match=r"backend: got .*expected one of"):
        make_layer(backend=backend)


# ------------------------------------------------------------------------------------------------- readout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probabilities": ["0"]}, "expected a qubit's index"),
        ({"probabilities": 1}, "expected a list of qubits"),
        ({"probabilities": [0], "interpret": [0, 1]}, "__getitem__"),
    ],
    ids=str,
)
def test_wrong_readout(options, message):
    """Of other types; what is wrong with observables, qubits and classes is refused in program/test_circuits.py."""
    with pytest.raises(TypeError, match=message):
        make_layer(**options, observables=None)


def test_an_interpretation_that_fails_says_what_it_gets():
    with pytest.raises(ValueError, match=r"interpret: failed with AttributeError.*an outcome as an integer"):
        make_layer(observables=None, probabilities=[0], interpret=lambda outcome: outcome.count("1"))


# ------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("batch_size", [-1, 2.5, True, "3", None], ids=repr)
def test_wrong_batch_size_of_a_quote(batch_size):
    with pytest.raises((ValueError, TypeError), match=r"batch_size: got .*expected an integer"):
        make_layer().quote(batch_size)


def test_evaluate_checks_as_the_layer_does(counting):
    backend = counting()
    program = Program.compile(circuit(), inputs=X, weights=W, observables=["ZZ"])
    weights = [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"nan in row 1.*No circuit was run"):
        evaluate(program, torch.tensor([[0.0, 0.0], [NAN, 0.0]]), weights, backend=backend)
    with pytest.raises(ValueError, match="needs exact simulation"):
        evaluate(program, torch.zeros(1, 2), weights, backend=backend, gradient="adjoint", shots=5)
    with pytest.raises(ValueError, match="shots: got 0"):
        evaluate(program, torch.zeros(1, 2), weights, backend=backend, shots=0)
    assert backend.calls == []


def test_evaluate_needs_no_weights_where_there_are_none():
    qc = QuantumCircuit(1)
    qc.ry(X[0], 0)
    program = Program.compile(qc, inputs=[X[0]])
    assert evaluate(program, torch.zeros(2, 1)).tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="weights"):
        evaluate(program, torch.zeros(2, 1), [torch.zeros(3)])


def test_options_are_keyword_only_and_known():
    with pytest.raises(TypeError, match="positional"):
        QuantumLayer(circuit(), X, W)
    with pytest.raises(TypeError, match="input_gradients"):
        make_layer(input_gradients=True)
    with pytest.raises(TypeError, match="got str, expected a QuantumCircuit"):
        QuantumLayer("ry")


def test_a_layer_works_on_after_an_error(layer):
    values = layer(torch.ones(2))
    values.sum().backward()
    gradient = layer.weights.grad.clone()
    for wrong in (torch.tensor([NAN, 0.0]), torch.zeros(3), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises((ValueError, TypeError), match="features"):
            layer(wrong)
    assert torch.equal(layer.weights.grad, gradient)
    assert torch.equal(layer(torch.ones(2)), values)
