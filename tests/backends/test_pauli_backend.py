"""Layers on Pauli propagation: as on any exact backend, with the bounds of what was dropped, and with noise."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conformance import (
    EXACT_ATOL,
    EXPECTATION,
    FEATURES,
    PROBABILITIES,
    REFERENCES,
    WEIGHTS,
    X,
    assert_step,
    make_layer,
    model,
    small_model,
    step,
)
from noisy_evolution import MODELS, with_readout
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, ParameterVector
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer.noise import NoiseModel, depolarizing_error
from torch.autograd import gradcheck, gradgradcheck

from qiskit_torch_bridge import DensityMatrixBackend, PauliBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.simulator import cone_engine

EXACT = PauliBackend(tolerance=0)
COARSE = {"tolerance": 0.3}


def coarse_layer(**options) -> QuantumLayer:
    layer = make_layer(model(), backend=PauliBackend(**COARSE), **EXPECTATION, **options)
    with pytest.warns(UserWarning, match="Pauli propagation has dropped"):
        layer(FEATURES)
    return layer


@pytest.mark.parametrize("backend", ["pauli", EXACT], ids=["default", "nothing dropped"])
def test_values_and_gradients(backend):
    layer = make_layer(model(), backend=backend, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=EXACT_ATOL)
    assert layer.last_run.truncation_bounds.shape == layer.last_run.standard_errors.shape == (3, 3)
    assert not layer.last_run.truncation_bounds.any()
    by_shift = make_layer(model(), backend=backend, gradient="parameter_shift", **EXPECTATION)
    for got, wanted in zip(step(by_shift), step(layer), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_derivatives_of_first_and_second_order():
    layer = make_layer(small_model(), backend=EXACT, observables=["ZZ", "XI"])
    features, weights = FEATURES[:2].clone().requires_grad_(), WEIGHTS.clone().requires_grad_()

    def values(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weights": weights}, (features,))

    assert gradcheck(values, (features, weights))
    assert gradgradcheck(values, (features, weights))
    jacobians = torch.func.jacrev(values, argnums=1)(features, weights)
    assert torch.allclose(jacobians, torch.autograd.functional.jacobian(values, (features, weights))[1])


def test_an_upstream_gradient_for_each_row_of_one():
    """A circuit without inputs has one row, however many gradients are asked of it at once."""
    circuit, weights = QuantumCircuit(2), ParameterVector("w", 3)
    circuit.ry(weights[0], 0)
    circuit.cx(0, 1)
    circuit.u(weights[1], weights[2], 0.3, 1)
    values = QuantumLayer(circuit, weights=weights, backend=EXACT, init=WEIGHTS, seed=1)
    exact = QuantumLayer(circuit, weights=weights, init=WEIGHTS, seed=1)
    jacobians = [
        torch.autograd.grad(layer(), layer.weights, torch.eye(2, dtype=torch.float64), is_grads_batched=True)[0]
        for layer in (values, exact)
    ]
    torch.testing.assert_close(*jacobians, rtol=0, atol=1e-12)


def test_training_repeats_itself_from_a_state_or_a_pickle():
    def trained(layer: QuantumLayer, steps: int) -> torch.Tensor:
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            layer(FEATURES).square().sum().backward()
            optimizer.step()
        return layer.weights.detach().clone()

    layer = make_layer(model(), backend=PauliBackend(tolerance=1e-3), **EXPECTATION)
    trained(layer, 2)
    again = make_layer(model(), backend=PauliBackend(tolerance=1e-3), **EXPECTATION)
    again.load_state_dict(layer.state_dict())
    others = [again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = trained(layer, 2)
    assert all(torch.equal(trained(other, 2), expected) for other in others)


# ------------------------------------------------------------------------------------------------- truncation


def test_bounds_are_in_the_last_run_of_every_kind_of_call():
    layer = coarse_layer()
    exact = make_layer(model(), **EXPECTATION)
    errors = (layer(FEATURES) - exact(FEATURES)).abs().detach().numpy()
    bounds = layer.last_run.truncation_bounds
    assert errors.max() > 0.1
    assert (errors <= bounds + 1e-12).all()
    assert (bounds <= [2, 2, 3.5]).all()  # capped: no value is larger than its observable
    with torch.no_grad():
        layer(FEATURES)
    np.testing.assert_array_equal(layer.last_run.truncation_bounds, bounds)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer)).last_run.truncation_bounds, bounds)
    exact(FEATURES)
    assert exact.last_run.truncation_bounds is None


class OnlyForNumbers(Gate):
    """A gate that has a definition once its parameter is a number."""

    def __init__(self, number):
        super().__init__("only_for_numbers", 1, [number])

    def _define(self):
        angle = float(self.params[0]) ** 2
        self.definition = QuantumCircuit(1)
        self.definition.ry(angle, 0)


def test_bounds_of_circuits_with_input_blocks():
    """Each filling is a program of its own, so the bounds are put together."""
    circuit = QuantumCircuit(2)
    circuit.append(OnlyForNumbers(X[0]), [0])
    circuit.cx(0, 1)
    circuit.rx(0.2, 1)
    layer = QuantumLayer(circuit, inputs=[X[0]], observables=["ZI", "IX"], backend=PauliBackend(tolerance=0.3))
    with pytest.warns(UserWarning, match="Pauli propagation has dropped"):
        layer(torch.tensor([[0.2], [1.2]]))
    bounds = layer.last_run.truncation_bounds
    assert bounds.shape == (2, 2)
    assert (bounds[:, 0] > 0).all()


def test_the_warning_comes_once_for_a_circuit_and_says_what_helps():
    backend = PauliBackend(**COARSE)
    layers = [make_layer(model(), backend=backend, **EXPECTATION) for _ in "ab"]
    message = r"output \d \(row \d\) that its value may be off by up to .* lower tolerance \(0\.3\) or raise max_terms"
    for layer in layers:
        with pytest.warns(UserWarning, match=message) as record:
            values = layer(FEATURES)
        assert len(record) == 1
        values.sum().backward()
        layer(FEATURES)


def test_small_bounds_are_not_warned_of():
    layer = make_layer(model(), backend=PauliBackend(tolerance=1e-3), **EXPECTATION)
    layer(FEATURES)
    assert 0 <= layer.last_run.truncation_bounds.max() < 0.01


# ------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["depolarising", "translated", "Pauli", "Pauli-Lindblad", "phase damping", "coherent"])
def test_noise_as_in_density_matrices(name):
    """Bits that are misread, alike or not, and errors of measurements included."""
    for noise in (MODELS[name](), with_readout(MODELS[name]())):
        ours, theirs = (
            make_layer(model(), backend=backend, **EXPECTATION)
            for backend in (PauliBackend(noise=noise, tolerance=0), DensityMatrixBackend(noise))
        )
        for got, wanted, tolerance in zip(step(ours), step(theirs), (1e-12, 1e-11, 1e-11), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def test_noise_that_leaves_nothing():
    """Its factor is 0, by which nothing can be divided on the way back."""
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(1.0, 1), ["h"])
    noise.add_all_qubit_quantum_error(depolarizing_error(16 / 15, 2), ["rzz"])
    ours, theirs = (
        make_layer(model(), backend=backend, **EXPECTATION)
        for backend in (PauliBackend(noise=noise, tolerance=0), DensityMatrixBackend(noise))
    )
    for got, wanted in zip(step(ours), step(theirs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_noise_of_a_hundred_qubits():
    """On each qubit by itself, where the damping is known: (1 - 0.1)**3 of one, (1 - 0.1)**6 of a product of two."""
    n = 100
    circuit, weights = QuantumCircuit(n), ParameterVector("w", n)
    for qubit in range(n):
        for _ in range(3):
            circuit.rx(weights[qubit], qubit)
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), ["rx"])
    angles = torch.linspace(-1, 1, n, dtype=torch.float64)
    observables = [SparsePauliOp.from_sparse_list([("Z" * len(q), q, 1.0)], n) for q in ([70], [2, 99])]
    backend = PauliBackend(noise=noise, tolerance=0)
    layer = QuantumLayer(circuit, weights=weights, observables=observables, init=angles, backend=backend)
    layer()[1].backward()
    turned = 3 * angles
    damping = 0.9**3
    expected = [damping * turned[70].cos(), damping**2 * turned[2].cos() * turned[99].cos()]
    torch.testing.assert_close(layer().detach(), torch.stack(expected), rtol=0, atol=1e-12)
    gradient = torch.zeros(n, dtype=torch.float64)
    gradient[2] = -3 * damping**2 * turned[2].sin() * turned[99].cos()
    gradient[99] = -3 * damping**2 * turned[2].cos() * turned[99].sin()
    torch.testing.assert_close(layer.weights.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "gate"),
    [("amplitude damping", "ry"), ("thermal relaxation", "ry"), ("mixed unitaries", "ry"), ("reset", "ry")],
)
def test_other_noise_is_refused_by_name(name, gate):
    with pytest.raises(ValueError, match=rf"the error of '{gate}' on qubits \[\d\] is neither a gate nor a mixture"):
        make_layer(model(), backend=PauliBackend(noise=MODELS[name]()), **EXPECTATION)


def test_what_is_added_to_the_noise_later_has_no_influence():
    noise = MODELS["depolarising"]()
    backend = PauliBackend(noise=noise)
    noise.add_all_qubit_quantum_error(depolarizing_error(0.5, 1), "h")
    before = make_layer(model(), backend=PauliBackend(noise=MODELS["depolarising"]()), **EXPECTATION)
    after = make_layer(model(), backend=pickle.loads(pickle.dumps(backend)), **EXPECTATION)
    for one, other in zip(step(before), step(after), strict=True):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------- words and refusals


def test_it_says_what_it_does():
    layer = make_layer(model(), backend=PauliBackend(max_terms=500), observables=["ZII", "IXZ"])
    expected = (
        "2 sum(s) of Pauli strings back through 5 to 9 rotations and noise channels each; of each sum at most 500"
    )
    assert expected in layer.plan()


def test_its_word_and_its_name():
    assert isinstance(resolve_backend("pauli"), PauliBackend)
    assert repr(PauliBackend(max_terms=1000)) == "PauliBackend(max_terms=1000, tolerance=0.0001)"
    assert repr(PauliBackend(noise=MODELS["Pauli"]())) == "PauliBackend(max_terms=100000, tolerance=0.0001, with noise)"


def test_shots_and_probabilities_are_refused_with_a_remedy():
    with pytest.raises(
        ValueError, match=r"shots: got 100 for backend 'pauli'.*AerSimulator\(method='matrix_product_state'\)"
    ):
        make_layer(model(), backend="pauli", shots=100)
    with pytest.raises(
        ValueError, match="probabilities: backend 'pauli' has expectation values only; give observables"
    ):
        make_layer(model(), backend="pauli", **PROBABILITIES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_terms": 0}, "max_terms: got 0, expected a whole number from 1"),
        ({"max_terms": 2.5}, r"max_terms: got 2\.5, expected a whole number"),
        ({"tolerance": -1e-3}, r"tolerance: got -0\.001, expected a finite number from 0"),
        ({"tolerance": float("nan")}, "tolerance: got nan"),
        ({"tolerance": "small"}, "tolerance: got 'small'"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PauliBackend(**options)


def test_noise_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"noise: got 0\.1"):
        PauliBackend(noise=0.1)


def test_cones_that_are_too_wide_name_it(monkeypatch):
    """What is refused runs there."""
    monkeypatch.setattr(cone_engine, "_most_qubits", lambda dtype: 6)
    n = 12
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(X[0], qubit)
    for qubit in range(n - 1):
        circuit.cz(qubit, qubit + 1)
        circuit.rx(X[1], qubit + 1)
    options = {"inputs": X, "observables": ["Z" + "I" * (n - 1)], "seed": 1}
    with pytest.raises(MemoryError, match="backend='pauli'"):
        QuantumLayer(circuit, **options)
    QuantumLayer(circuit, **options, backend="pauli")(FEATURES)
