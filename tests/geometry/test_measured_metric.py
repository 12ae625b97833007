"""The metric from shots, on several backends: unbiased, with right error bars, at the quoted price."""

import copy
import pickle

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.transpiler import CouplingMap
from test_metric import FEATURES, layer_with_expressions

from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer, Quote
from qiskit_torch_bridge.geometry import measured_metric

APPROXIMATIONS = [None, "block-diag", "diag"]


def exact_metric(layer, approximation=None):
    other = copy.deepcopy(layer)
    other.shots, other.backend = None, None
    return other.metric_tensor(FEATURES, approximation=approximation).detach().numpy()


@pytest.mark.parametrize(
    ("backend", "approximation"),
    [*((DensityMatrixBackend(), approximation) for approximation in APPROXIMATIONS), ("aer", "block-diag")],
)
def test_shifted_fidelities_give_the_exact_metric(backend, approximation):
    layer, _, _ = layer_with_expressions()
    layer.backend = backend
    metric = layer.metric_tensor(FEATURES, approximation=approximation)
    assert metric.detach().numpy() == pytest.approx(exact_metric(layer, approximation), abs=1e-10)
    assert not metric.requires_grad
    assert layer.last_metric.shots == 0


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_measured_metrics_are_unbiased_with_right_error_bars(approximation):
    layer, _, _ = layer_with_expressions()
    repeats = 200
    expected = exact_metric(layer, approximation)[:1]
    layer.shots = 400
    measured = layer.metric_tensor(FEATURES[:1].repeat(repeats, 1), approximation=approximation)
    result = layer.last_metric
    assert np.array_equal(measured.numpy(), result.values)
    varies = result.standard_errors.min(axis=0) > 0
    assert varies.sum() >= 5
    # Each entry has its own mean and spread over the repeats; entries share fidelities, so none is averaged over.
    deviations = (result.values - expected)[:, varies]
    errors = result.standard_errors[:, varies]
    means = deviations.mean(axis=0) / np.sqrt((errors**2).mean(axis=0) / repeats)
    assert np.abs(means).max() < 5
    ratios = deviations.var(axis=0) / (errors**2).mean(axis=0)
    assert np.abs(ratios - 1).max() < 6 * (2 / repeats) ** 0.5


def test_forgotten_correlations_would_be_noticed(monkeypatch):
    """Error bars that count g_ab and g_ba as two measurements are too small."""
    layer, _, _ = layer_with_expressions()
    layer.shots = 400

    def independent(variances, slopes):
        return np.swapaxes(slopes**2, 1, 2) @ variances @ slopes**2

    layer.metric_tensor(FEATURES)
    errors = layer.last_metric.standard_errors
    monkeypatch.setattr(measured_metric, "_variances_of_weights", independent)
    layer.metric_tensor(FEATURES)
    assert layer.last_metric.standard_errors.max() < 0.9 * errors.max()


@pytest.mark.parametrize(("approximation", "of_a_row"), [(None, 9 + 2 * 9 * 8), ("diag", 9)])
def test_the_quote_is_what_is_spent(approximation, of_a_row):
    layer, _, _ = layer_with_expressions()
    assert layer.quote_metric_tensor(2, approximation=approximation) == Quote()
    quote = layer.quote_metric_tensor(2, approximation=approximation, shots=50)
    layer.metric_tensor(FEATURES, approximation=approximation, shots=50)
    assert (layer.last_metric.circuits, layer.last_metric.shots) == (quote.circuits, quote.shots)
    assert (layer.total_circuits, layer.total_shots) == (quote.circuits, quote.shots)
    assert (quote.calls, quote.circuits) == (1, 2 * of_a_row)


def test_a_seed_repeats_it_and_calls_differ():
    layers = [layer_with_expressions()[0] for _ in range(2)]
    first, second = (layer.metric_tensor(FEATURES, shots=100) for layer in layers)
    assert torch.equal(first, second)
    assert not torch.equal(first, layers[0].metric_tensor(FEATURES, shots=100))
    assert np.array_equal(pickle.loads(pickle.dumps(layers[0])).last_metric.values, layers[0].last_metric.values)


def test_transpiled_circuits_are_measured_where_they_are():
    w = ParameterVector("w", 3)
    plain = QuantumCircuit(3)
    for qubit in range(3):
        plain.ry(w[qubit], qubit)
    plain.cx(0, 2)
    plain.rz(w[0], 2)
    moved = transpile(plain, coupling_map=CouplingMap.from_line(5), initial_layout=[3, 0, 2], seed_transpiler=1)
    init = torch.tensor([0.4, 1.1, 2.0], dtype=torch.float64)
    expected = QuantumLayer(plain, weights=w, init=init).metric_tensor()
    metric = QuantumLayer(moved, weights=w, init=init, backend="aer").metric_tensor()
    assert torch.allclose(metric, expected.detach())


def test_nothing_to_measure_measures_nothing():
    layer, _, _ = layer_with_expressions()
    layer.shots = 10
    assert layer.metric_tensor(FEATURES[:0]).shape == (0, 5, 5)
    layer.weights.requires_grad_(False)
    assert layer.metric_tensor(FEATURES).shape == (2, 0, 0)
    assert layer.total_circuits == 0


def test_bad_numbers_cost_nothing():
    layer, _, _ = layer_with_expressions()
    layer.shots = 10
    with pytest.raises(ValueError, match="column 1 is inf in row 0"):
        layer.metric_tensor(torch.tensor([[0.0, torch.inf]]))
    with pytest.raises(ValueError, match="batch_size: got -1"):
        layer.quote_metric_tensor(-1)
    with pytest.raises(ValueError, match="approximation: got 'full'"):
        layer.quote_metric_tensor(1, approximation="full")
    assert layer.total_circuits == 0
