"""Standard errors of values and gradients: against Qiskit's operator algebra, and against how much results scatter."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from error_bar_theory import (
    CIRCUITS,
    RULES,
    SHOTS,
    angles_of,
    backward,
    entangled,
    flat,
    one_shot_variances,
    theory,
    weights_of,
)
from problems import features, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from scipy import stats

from qiskit_torch_bridge import FiniteDifference, QuantumLayer, SeedStream
from qiskit_torch_bridge.backends import resolve_backend


@pytest.mark.parametrize("name", CIRCUITS)
def test_predicted_errors_of_values_are_qiskits(name):
    checked, expected = problem(name), oracle(name)
    layer, inputs = checked.layer(expected.weights), features(expected)
    run, _ = backward(layer, inputs.requires_grad_() if inputs is not None else None)
    angles = angles_of(layer, inputs, weights_of(layer)).detach().numpy()
    units = np.eye(layer.num_outputs)
    variances = [one_shot_variances(layer, angles, np.tile(unit, (len(angles), 1))) for unit in units]
    errors = np.sqrt(np.transpose(variances).clip(0) / SHOTS)
    np.testing.assert_allclose(run.predicted(SHOTS).standard_errors, errors, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, "parameter_shift") for name in CIRCUITS),
        *product(["only_inputs", "shared_parameters", "weight_groups", "random_0"], list(RULES)[1:]),
    ],
)
def test_predicted_errors_of_gradients_are_the_formulas(name, rule):
    checked, expected = problem(name), oracle(name)
    layer, inputs = checked.layer(expected.weights, seed=5), features(expected, requires_grad=True)
    run, upstream = backward(layer, inputs)
    predicted = run.predicted(SHOTS, RULES[rule])
    columns = tuple(np.flatnonzero(layer.program.influential).tolist())
    seeds = SeedStream((5, layer.get_rng_state()["position"]))  # of the place where backward stood
    stencil = RULES[rule].stencil(layer.program, columns, rows=len(upstream), shots=SHOTS, seeds=seeds)
    by_inputs, by_weights = theory(layer, inputs, upstream, stencil)
    np.testing.assert_allclose(flat(predicted.gradient_standard_errors), by_weights, atol=1e-7)
    if by_inputs is not None and by_inputs.size:
        np.testing.assert_allclose(predicted.input_gradient_standard_errors, by_inputs, atol=1e-7)
    assert predicted.gradient_shots == SHOTS * predicted.gradient_circuits > 0


@pytest.mark.parametrize("rule", ["parameter_shift", "another_shift"])
@pytest.mark.parametrize("name", CIRCUITS)
def test_predicted_gradients_are_the_exact_ones(name, rule):
    checked, expected = problem(name), oracle(name)
    layer, inputs = checked.layer(expected.weights), features(expected, requires_grad=True)
    run, upstream = backward(layer, inputs)
    by_inputs, by_weights = expected.gradients(upstream)
    for found in (run, run.predicted(SHOTS, RULES[rule])):
        np.testing.assert_allclose(flat(found.gradients), by_weights, atol=1e-7)
        if by_inputs.size:
            np.testing.assert_allclose(found.input_gradients, by_inputs, atol=1e-7)


def test_a_finite_differences_bias_is_predicted():
    """Of a cosine: the central difference is sin(h) / h times the derivative."""
    checked, expected = problem("cosine"), oracle("cosine")
    layer, inputs = checked.layer(expected.weights), features(expected, requires_grad=True)
    run, _ = backward(layer, inputs)
    biased = run.predicted(SHOTS, FiniteDifference(step=0.8)).input_gradients
    np.testing.assert_allclose(biased, run.input_gradients * math.sin(0.8) / 0.8, atol=1e-12)


def test_closed_form_of_a_textbook_qubit():
    """<Z> = cos x after RY(x): its variance is sin(x)^2 / S, and that of its shift-rule gradient cos(x)^2 / 2 S."""
    x = ParameterVector("x", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0], 0)
    points = torch.linspace(0.1, 3.0, 7, dtype=torch.float64)[:, None].requires_grad_()
    layer = QuantumLayer(circuit, inputs=x)
    run, _ = backward(layer, points, upstream=np.ones((7, 1)))
    predicted = run.predicted(SHOTS)
    angle = points.detach().numpy()
    np.testing.assert_allclose(predicted.standard_errors, np.abs(np.sin(angle)) / math.sqrt(SHOTS), atol=1e-12)
    expected = np.abs(np.cos(angle)) / math.sqrt(2 * SHOTS)
    np.testing.assert_allclose(predicted.input_gradient_standard_errors, expected, atol=1e-12)
    np.testing.assert_allclose(predicted.signal_to_noise or 0.0, 0.0)


# --- covariances ------------------------------------------------------------------------------------------------------


def bell(**options: Any) -> QuantumLayer:
    """Two qubits that always agree, turned by a weight: Z0 and Z1 are the same bit."""
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    init = torch.tensor([0.9], dtype=torch.float64)
    return QuantumLayer(circuit, weights=w, observables=["IZ", "ZI"], init=init, **options)


BACKENDS = {
    "statevector": lambda: "statevector",
    "aer": lambda: "aer",
    "sampler": lambda: StatevectorSampler(),
    "rehearsal": lambda: "ibm:fake_manila",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_outputs_of_the_same_shots_are_correlated(backend, sign):
    if backend == "rehearsal":
        pytest.importorskip("qiskit_ibm_runtime")
    layer = bell(backend=BACKENDS[backend](), shots=1000, seed=1)
    run, _ = backward(layer, None, upstream=np.array([[1.0, sign]]))
    # By the two points of the rule, each of which measures (1 + sign) times one bit.
    points = [0.9 + math.pi / 2, 0.9 - math.pi / 2]
    truth = math.sqrt(sum((1 + sign) ** 2 * math.sin(p) ** 2 / 4 / 1000 for p in points))
    noise = 0.25 if backend == "rehearsal" else 1e-12  # of the device, which has the bits differ now and then
    if sign < 0:
        assert run.gradient_standard_errors[0] == pytest.approx(0.0, abs=0.03 if backend == "rehearsal" else 1e-12)
    else:
        assert run.gradient_standard_errors[0] == pytest.approx(truth, rel=max(noise, 0.1))


def test_without_covariances_the_error_would_be_wrong():
    """What an Estimator's standard errors alone give: the same for both signs; neither is right."""
    errors = []
    for sign in (1.0, -1.0):
        layer = bell(backend=StatevectorEstimator(), shots=1000, seed=1)
        run, _ = backward(layer, None, upstream=np.array([[1.0, sign]]))
        errors.append(run.gradient_standard_errors[0])
    # Two outputs at two points, each with the precision of 1 / sqrt(1000), all independent, times the rule's 1/2.
    assert errors == pytest.approx([math.sqrt(4 / 1000) / 2] * 2)
    right = bell(shots=1000, seed=1)
    run, _ = backward(right, None, upstream=np.array([[1.0, -1.0]]))
    assert run.gradient_standard_errors[0] == 0 < errors[1]


@pytest.mark.slow
def test_an_estimators_noise_is_in_its_error_bars():
    """Qiskit's reference Estimator gives zeros for its standard errors, whatever noise it adds."""
    layer, x, upstream = entangled(backend=StatevectorEstimator(), shots=400, seed=1)
    found, values = [], []
    for _ in range(60):
        run, _ = backward(layer, x, upstream=upstream)
        found.append(run.gradients)
        values.append(run.values)
    assert run.standard_errors == pytest.approx(np.full((3, 3), 0.05))
    for scatter, error in ((values, run.standard_errors), (found, run.gradient_standard_errors)):
        statistic = 59 * np.var(scatter, axis=0, ddof=1) / error**2
        assert (np.minimum(stats.chi2.cdf(statistic, 59), stats.chi2.sf(statistic, 59)) > 1e-4).all()


def test_probabilities_and_classes():
    """Of a multinomial: u' (diag(p) - p p') u / S, for outcomes and for the classes that they fall into."""
    checked, expected = problem("random_0"), oracle("random_0")
    n = checked.circuit.num_qubits
    for interpret, classes in ((None, 2**n), (lambda outcome: outcome.bit_count() % 3, 3)):
        options = {"observables": None, "probabilities": list(range(n)), "interpret": interpret}
        layer = checked.layer(expected.weights, **options)
        inputs = features(expected)
        run, upstream = backward(layer, inputs)
        assert run.values.shape[1] == classes
        predicted = run.predicted(SHOTS)
        np.testing.assert_allclose(predicted.standard_errors, np.sqrt((run.values - run.values**2) / SHOTS), atol=1e-12)
        measured = checked.layer(expected.weights, shots=20_000, seed=3, **options)
        scaled, _ = backward(measured, inputs, upstream=upstream)
        errors = scaled.predicted(SHOTS).gradient_standard_errors
        np.testing.assert_allclose(errors, predicted.gradient_standard_errors, rtol=0.05)
        measured.backend, measured.shots = resolve_backend(StatevectorSampler()), 2000
        sampled, _ = backward(measured, inputs, upstream=upstream)  # from bit strings, not from a table of outcomes
        errors = sampled.predicted(SHOTS).gradient_standard_errors
        np.testing.assert_allclose(errors, predicted.gradient_standard_errors, rtol=0.15)


NOISELESS = {name: make for name, make in BACKENDS.items() if name != "rehearsal"}


@pytest.mark.parametrize(
    ("backend", "rule"),
    [
        *(("statevector", rule) for rule in ("parameter_shift", "central", "forward")),
        ("aer", "parameter_shift"),
        pytest.param("sampler", "parameter_shift", marks=pytest.mark.slow),
    ],
)
def test_gradients_scatter_as_their_standard_errors_say(backend, rule):
    """Chi-square of the scatter over repeats; and z-scores of the reported variances, whose mean must be the true one."""
    repeats = 200 if backend == "statevector" else 40
    layer, x, upstream = entangled(backend=NOISELESS[backend](), shots=SHOTS, gradient=RULES[rule], seed=11)
    exact, _, _ = entangled()
    planned, _ = backward(exact, x.clone().requires_grad_(), upstream=upstream)
    planned = planned.predicted(SHOTS, RULES[rule])
    found, reported = [], []
    for _ in range(repeats):
        run, _ = backward(layer, x.clone().requires_grad_(), upstream=upstream)
        found.append(np.concatenate([run.gradients, run.input_gradients.ravel()]))
        errors = [run.gradient_standard_errors, run.input_gradient_standard_errors.ravel()]
        reported.append(np.concatenate(errors) ** 2)
    variances = np.concatenate([planned.gradient_standard_errors, planned.input_gradient_standard_errors.ravel()]) ** 2
    comparisons = 5 * len(variances)
    statistic = (repeats - 1) * np.var(found, axis=0, ddof=1) / variances
    tails = 2 * np.minimum(stats.chi2.cdf(statistic, repeats - 1), stats.chi2.sf(statistic, repeats - 1))
    assert tails.min() > 1e-3 / comparisons
    scores = (np.mean(reported, axis=0) - variances) / (np.std(reported, axis=0, ddof=1) / math.sqrt(repeats))
    assert np.abs(scores).max() < 5
    # Wrong on purpose: without the factor 1/2 of the rule, or with shots of values and points mixed up.
    statistics = (repeats - 1) * np.var(2 * np.array(found), axis=0, ddof=1) / variances
    assert (2 * stats.chi2.sf(statistics, repeats - 1)).min() < 1e-3 / comparisons


def test_noise_is_in_the_error_bars():
    """On a simulated device the counts are the device's, and so are their errors."""
    pytest.importorskip("qiskit_ibm_runtime")
    layer, x, upstream = entangled(backend="fake:manila", shots=100, seed=11)
    found, reported = [], []
    for _ in range(40):
        run, _ = backward(layer, x, upstream=upstream)
        found.append(run.gradients)
        reported.append(run.gradient_standard_errors**2)
    statistic = 39 * np.var(found, axis=0, ddof=1) / np.mean(reported, axis=0)
    assert (stats.chi2.cdf(statistic, 39) > 1e-4).all()
    assert (stats.chi2.sf(statistic, 39) > 1e-4).all()
