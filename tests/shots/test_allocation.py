"""Shots that go where the upstream gradient is: how many, that they are unbiased, and that they are worth it."""

import math

import numpy as np
import pytest
import torch
from problems import only_defined_for_numbers
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp

from qiskit_torch_bridge import QuantumLayer, evaluate
from qiskit_torch_bridge.shots.allocation import shots_by_sensitivity

ROWS = 8
UPSTREAM = torch.tensor(
    [[3.0, -1.0], [0.0, 0.0], [0.2, 0.1], [0.0, 0.0], [0.0, 0.0], [-0.5, 0.4], [0.01, 0.0], [1.0, 1.0]],
    dtype=torch.float64,
)
LIVE = int((UPSTREAM != 0).any(dim=1).sum())


def layer_and_rows(**options) -> tuple[QuantumLayer, torch.Tensor]:
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 1)
    circuit.cx(0, 1)
    circuit.rx(w[0], 0)
    circuit.ry(w[1], 1)
    generator = np.random.default_rng(1)
    options = {"shots": 30, "allocation": "sensitivity", "seed": 3, **options}
    observables = ["IZ", SparsePauliOp(["ZI", "XX"], [0.6, 0.8])]
    options = {"init": torch.tensor(generator.uniform(0, 6, 2)), **options}
    layer = QuantumLayer(circuit, inputs=x, weights=w, observables=observables, **options)
    return layer, torch.tensor(generator.uniform(-2, 2, (ROWS, 2)))


def gradient(layer: QuantumLayer, x: torch.Tensor, upstream: torch.Tensor = UPSTREAM) -> np.ndarray:
    x = x.clone().requires_grad_()
    parts = torch.autograd.grad(layer(x), [layer.weights, x], upstream)
    return np.concatenate([part.numpy().ravel() for part in parts])


# --- how many ---------------------------------------------------------------------------------------------------------


def test_in_proportion_to_the_upstream_gradient():
    upstream = np.array([[4.0], [0.0], [1.0], [2.0], [-1.0]])
    shots = shots_by_sensitivity(upstream, np.array([1.0]), 1000)
    assert shots.tolist() == [2 + 998 * 4 // 2, 0, 2 + 998 // 2, 2 + 998, 2 + 998 // 2]


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_only_proportions_count(size):
    upstream = np.array([[1.0, -2.0], [0.25, 0.0], [0.0, 0.0], [-0.5, 3.0]])
    expected = shots_by_sensitivity(upstream, np.array([1.0, 0.5]), 500)
    with np.errstate(all="raise"):
        assert (shots_by_sensitivity(size * upstream, np.array([1.0, 0.5]), 500) == expected).all()
        assert (shots_by_sensitivity(upstream, size * np.array([1.0, 0.5]), 500) == expected).all()


def test_by_outputs_and_their_observables():
    upstream = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    equal = shots_by_sensitivity(upstream, np.array([1.0, 1.0]), 500)
    assert equal.tolist() == [500, 500, 500]
    first, second, _ = shots_by_sensitivity(upstream, np.array([1.0, 4.0]), 500)
    assert (second - 2) / (first - 2) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("shots", [1, 2, 3, 50, 12345])
def test_never_more_than_uniform_and_hardly_less(shots):
    generator = np.random.default_rng(shots)
    upstream = generator.normal(size=(60, 3)) * 10.0 ** generator.uniform(-12, 3, (60, 1))
    upstream[generator.random(60) < 0.4] = 0.0
    live = (upstream != 0).any(axis=1)
    found = shots_by_sensitivity(upstream, np.ones(3), shots)
    assert (found[~live] == 0).all()
    assert (found[live] >= min(2, shots)).all()
    assert shots * live.sum() - live.sum() <= found.sum() <= shots * live.sum()
    assert len(np.unique(found)) < 25


def test_rows_of_constants_and_batches_without_gradient():
    assert shots_by_sensitivity(np.ones((3, 1)), np.zeros(1), 10).tolist() == [2, 2, 2]
    assert shots_by_sensitivity(np.zeros((3, 2)), np.ones(2), 10).tolist() == [0, 0, 0]


def test_the_backend_is_asked_for_just_those(counting):
    backend = counting("statevector")
    layer, x = layer_and_rows(backend=backend)
    gradient(layer, x)
    forward, *points = backend.calls
    assert forward == (ROWS, 30)
    expected = shots_by_sensitivity(UPSTREAM.numpy(), layer.program.readout.scales, 30)
    by_shots = {int(shots): int((expected == shots).sum()) for shots in np.unique(expected) if shots}
    columns = int(layer.program.influential.sum())
    assert {shots: rows for rows, shots in points} == {s: 2 * columns * rows for s, rows in by_shots.items()}
    run = layer.last_run
    assert run.gradient_shots == 2 * 2 * columns * expected.sum()  # two measurements of each point
    assert run.gradient_circuits == 2 * 2 * columns * LIVE


def test_nothing_is_measured_for_nothing(counting):
    backend = counting("statevector")
    layer, x = layer_and_rows(backend=backend)
    found = gradient(layer, x, torch.zeros_like(UPSTREAM))
    assert (found == 0).all()
    assert len(backend.calls) == 1
    assert layer.last_run.gradient_shots == 0


def test_scales_are_those_of_the_observables():
    circuit = QuantumCircuit(2)
    layer = QuantumLayer(circuit, observables=[SparsePauliOp(["ZI", "XX", "II"], [3.0, 4.0, 9.0]), "IZ", "II"])
    np.testing.assert_allclose(layer.program.readout.scales, [5.0, 1.0, 0.0])
    np.testing.assert_allclose(QuantumLayer(circuit, probabilities=[0]).program.readout.scales, [1.0, 1.0])


def test_no_row_gets_more_than_a_circuit_can_have():
    upstream = np.ones((12, 1))
    upstream[1:] = 1e-9
    assert shots_by_sensitivity(upstream, np.ones(1), 2**30).max() < 2**31


# --- unbiased, and worth it -------------------------------------------------------------------------------------------


def exact() -> np.ndarray:
    layer, x = layer_and_rows(shots=None, allocation="uniform")
    return gradient(layer, x)


def scores(found: list[np.ndarray]) -> np.ndarray:
    """Of the mean over repeats, against the exact gradient; infinite where nothing scatters and they differ."""
    deviation = np.mean(found, axis=0) - exact()
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    return np.where(error > 0, deviation / np.where(error > 0, error, 1), np.where(abs(deviation) < 1e-12, 0, np.inf))


@pytest.mark.parametrize(("backend", "repeats"), [("statevector", 800), ("aer", 40)])
def test_unbiased(backend, repeats):
    layer, x = layer_and_rows(backend=backend)
    found = [gradient(layer, x) for _ in range(repeats)]
    assert np.abs(scores(found)).max() < 4.5


def test_dropping_live_rows_would_be_seen():
    """Wrong on purpose: rows with small upstream gradients left out."""
    layer, x = layer_and_rows()
    cut = torch.where(UPSTREAM.abs().sum(dim=1, keepdim=True) > 1.0, UPSTREAM, 0.0)
    found = [gradient(layer, x, cut)[:2] for _ in range(600)]
    deviation = np.mean(found, axis=0) - exact()[:2]
    assert np.abs(deviation / (np.std(found, axis=0, ddof=1) / math.sqrt(600))).max() > 6


def test_less_noise_for_fewer_shots():
    errors, spent = {}, {}
    for allocation in ("uniform", "sensitivity"):
        layer, x = layer_and_rows(allocation=allocation, shots=400)
        gradient(layer, x)
        errors[allocation] = layer.last_run.gradient_standard_errors
        spent[allocation] = layer.last_run.gradient_shots
    assert (errors["sensitivity"] < 0.8 * errors["uniform"]).all()
    assert spent["sensitivity"] <= LIVE / ROWS * spent["uniform"]


def test_standard_errors_are_the_scatter():
    layer, x = layer_and_rows(shots=60)
    found, reported = [], []
    for _ in range(300):
        found.append(gradient(layer, x)[:2])
        reported.append(layer.last_run.gradient_standard_errors**2)
    ratio = np.var(found, axis=0, ddof=1) / np.mean(reported, axis=0)
    assert np.abs((ratio - 1) / math.sqrt(2 / 299)).max() < 4


def test_predictions_share_out_shots_in_the_same_way():
    layer, x = layer_and_rows(shots=400)
    gradient(layer, x)
    run = layer.last_run
    np.testing.assert_allclose(run.predicted(400).gradient_standard_errors, run.gradient_standard_errors)
    np.testing.assert_allclose(run.predicted(100).gradient_standard_errors, 2 * run.gradient_standard_errors)
    exact, x = layer_and_rows(shots=None)
    gradient(exact, x)
    planned = exact.last_run.predicted(400)
    np.testing.assert_allclose(planned.gradient_standard_errors, run.gradient_standard_errors, rtol=0.2)
    assert planned.gradient_shots == run.gradient_shots
    assert planned.gradient_circuits == run.gradient_circuits


# --- what it does not touch -------------------------------------------------------------------------------------------


def test_repeatable():
    first, second = (gradient(*layer_and_rows()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_gradient_that_will_be_differentiated_has_all_rows():
    """Rows without upstream gradient have a second derivative all the same."""
    layer, x = layer_and_rows()
    upstream = UPSTREAM.clone().requires_grad_()
    (by_weights,) = torch.autograd.grad(layer(x), layer.weights, upstream, create_graph=True)
    (by_upstream,) = torch.autograd.grad(by_weights.sum(), upstream)
    assert (by_upstream[1] != 0).any()


def test_batched_gradients_have_all_rows():
    layer, x = layer_and_rows()
    several = torch.stack([UPSTREAM, 2 * UPSTREAM])
    (found,) = torch.autograd.grad(layer(x), layer.weights, several, is_grads_batched=True)
    assert found.shape == (2, 2)


def test_exact_values_have_nothing_to_share():
    layer, x = layer_and_rows(shots=None)
    np.testing.assert_allclose(gradient(layer, x), exact(), atol=1e-12)


def test_rows_that_are_circuits_of_their_own():
    circuit, x, w = only_defined_for_numbers()
    rows = torch.rand(4, 2, dtype=torch.float64)
    upstream = torch.tensor([[0.0], [1.0], [0.0], [5.0]], dtype=torch.float64)
    found = []
    for shots, allocation in ((None, "uniform"), (40_000, "sensitivity")):
        layer = QuantumLayer(circuit, inputs=x, weights=w, init="zeros", shots=shots, seed=1, allocation=allocation)
        layer(rows).backward(upstream)
        found.append(layer.weights.grad.item())
    assert abs(found[1] - found[0]) < 5 * layer.last_run.gradient_standard_errors[0]
    assert layer.last_run.gradient_circuits == 2 * 2


# --- refused ----------------------------------------------------------------------------------------------------------


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="allocation: got 'fair', expected one of 'uniform', 'sensitivity'"):
        layer_and_rows(allocation="fair")
    layer, x = layer_and_rows()
    with pytest.raises(ValueError, match="allocation: got 'fair'"):
        evaluate(layer.program, x, [layer.weights], shots=10, allocation="fair")


def test_a_queue_has_no_upstream_gradient_yet():
    pytest.importorskip("qiskit_ibm_runtime")
    with pytest.raises(ValueError, match="before there is an upstream gradient; use 'uniform'"):
        layer_and_rows(backend="ibm:fake_manila")


def test_a_diverged_loss_costs_no_shots(counting):
    backend = counting("statevector")
    layer, x = layer_and_rows(backend=backend)
    upstream = UPSTREAM.clone()
    upstream[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"upstream gradient of row 2 is .*expected finite numbers"):
        gradient(layer, x, upstream)
    assert len(backend.calls) == 1
