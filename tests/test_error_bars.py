"""Standard errors of values and gradients: against Qiskit's operator algebra, and against how much results scatter."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import product
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from problems import Problem, features, only_defined_for_numbers, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp, Statevector
from scipy import stats

from qiskit_torch_bridge import (
    SPSA,
    FiniteDifference,
    GradientRule,
    ParameterShift,
    QuantumLayer,
    Run,
    SeedStream,
    StatevectorBackend,
)
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.program.readout import PauliGroup

SHOTS = 200
CIRCUITS = [
    "cosine",
    "entangled_pair",
    "only_weights",
    "only_inputs",
    "shared_parameters",
    "global_phases",
    "many_parameters",
    "columns_in_any_order",
    "weight_groups",
    "angles_outside_the_light_cone",
    "expression_input_times_weight_plus_bias",
    "gate_cu",
    "random_0",
    "random_1",
    "library_zz_feature_map",
]
RULES = {
    "parameter_shift": ParameterShift(),
    "another_shift": ParameterShift(shift=0.7),
    "central": FiniteDifference(),
    "forward": FiniteDifference(step=0.4, scheme="forward"),
    "spsa": SPSA(samples=2),
}


# --- theory -----------------------------------------------------------------------------------------------------------


def operators(layer: QuantumLayer) -> list[list[SparsePauliOp]]:
    """For each measurement the part of every observable that it measures, on all qubits."""
    program = layer.program
    parts = []
    for group in program.readout.groups:
        assert isinstance(group, PauliGroup)
        labels = []
        for support in group.supports:
            label = ["I"] * program.circuit.num_qubits
            for qubit, basis, acts in zip(group.qubits, group.bases, support, strict=True):
                label[-1 - qubit] = basis if acts else "I"
            labels.append("".join(label))
        parts.append([SparsePauliOp(labels, column) for column in group.coefficients.T])
    return parts


def one_shot_variances(layer: QuantumLayer, angles: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """By Qiskit: the variance of ``upstream @ outputs`` from shot to shot, summed over the measurements, for each row."""
    program, found = layer.program, []
    for row, u in zip(angles, upstream, strict=True):
        state = Statevector(program.circuit.assign_parameters(dict(zip(program.angles, row.tolist(), strict=True))))
        total = 0.0
        for measured in operators(layer):
            operator = sum((weight * part for weight, part in zip(u, measured, strict=True)), start=0 * measured[0])
            mean = state.expectation_value(operator).real
            total += state.expectation_value((operator @ operator).simplify()).real - mean**2
        found.append(total)
    return np.array(found)


def weights_of(layer: QuantumLayer) -> list[torch.Tensor]:
    if isinstance(layer.weights, torch.nn.ParameterDict):
        return [layer.weights[name].detach() for name in layer.program.group_names]
    return [torch.zeros(0, dtype=torch.float64) if layer.weights is None else layer.weights.detach()]


def angles_of(layer: QuantumLayer, inputs: torch.Tensor | None, weights: list[torch.Tensor]) -> torch.Tensor:
    groups = layer.program.evaluate_angles(inputs, weights)
    rows = max(len(group) for group in groups)
    return torch.cat([group.expand(rows, -1) for group in groups], dim=1)


def theory(
    layer: QuantumLayer, inputs: torch.Tensor | None, upstream: np.ndarray, stencil: Any
) -> tuple[np.ndarray | None, np.ndarray]:
    """Standard errors of the gradients by inputs and weights with ``SHOTS`` shots, from the formula, term by term."""
    weights = weights_of(layer)
    angles = angles_of(layer, inputs, weights).detach().numpy()
    by_weights = torch.autograd.functional.jacobian(lambda *w: angles_of(layer, inputs, list(w)), tuple(weights))
    slopes = np.concatenate([part.numpy() for part in by_weights], axis=-1)
    by_inputs = None if inputs is None else np.zeros(inputs.shape)
    total = np.zeros(slopes.shape[-1])
    columns = np.flatnonzero(layer.program.influential)
    for n in range(len(angles)):
        row = None if inputs is None else inputs[n : n + 1].detach()
        input_slopes = (
            None
            if row is None
            else torch.autograd.functional.jacobian(lambda x: angles_of(layer, x, weights), row).numpy()[0, :, 0]
        )
        shifts = stencil.shifts if stencil.shifts.ndim == 2 else stencil.shifts[n]
        coefficients = stencil.coefficients if stencil.coefficients.ndim == 2 else stencil.coefficients[n]
        for k, shift in enumerate(shifts):
            variance = one_shot_variances(layer, angles[n : n + 1] + shift, upstream[n : n + 1])[0] / SHOTS
            total += (coefficients[:, k] @ slopes[n][columns]) ** 2 * variance
            if by_inputs is not None:
                by_inputs[n] += (coefficients[:, k] @ input_slopes[columns]) ** 2 * variance
    return None if by_inputs is None else np.sqrt(by_inputs), np.sqrt(total)


def backward(
    layer: QuantumLayer, inputs: torch.Tensor | None, seed: int = 7, upstream: np.ndarray | None = None
) -> tuple[Run, np.ndarray]:
    values = layer() if inputs is None else layer(inputs)
    if upstream is None:
        upstream = np.random.default_rng(seed).normal(
            size=(max(1, values.numel() // layer.num_outputs), layer.num_outputs)
        )
    values.backward(torch.tensor(upstream, dtype=values.dtype).reshape(values.shape))
    assert layer.last_run is not None
    return layer.last_run, upstream


def flat(numbers: Any) -> np.ndarray:
    if isinstance(numbers, dict):
        return np.concatenate([*numbers.values()])
    return np.zeros(0) if numbers is None else numbers


def gradients(layer: QuantumLayer) -> np.ndarray:
    return np.concatenate([p.grad.numpy() for p in layer.parameters()] or [np.zeros(0)])


@pytest.mark.parametrize("name", CIRCUITS)
def test_predicted_errors_of_values_are_qiskits(name):
    checked, expected = problem(name), oracle(name)
    layer, inputs = checked.layer(expected.weights), features(expected)
    run, _ = backward(layer, inputs.requires_grad_() if inputs is not None else None)
    angles = angles_of(layer, inputs, weights_of(layer)).detach().numpy()
    units = np.eye(layer.num_outputs)
    variances = [one_shot_variances(layer, angles, np.tile(unit, (len(angles), 1))) for unit in units]
    np.testing.assert_allclose(
        run.predicted(SHOTS).standard_errors, np.sqrt(np.transpose(variances).clip(0) / SHOTS), atol=1e-7
    )


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
        np.testing.assert_allclose(
            predicted.standard_errors, np.sqrt(run.values * (1 - run.values) / SHOTS), atol=1e-12
        )
        measured = checked.layer(expected.weights, shots=20_000, seed=3, **options)
        scaled, _ = backward(measured, inputs, upstream=upstream)
        np.testing.assert_allclose(
            scaled.predicted(SHOTS).gradient_standard_errors, predicted.gradient_standard_errors, rtol=0.05
        )
        measured.backend, measured.shots = resolve_backend(StatevectorSampler()), 2000
        sampled, _ = backward(measured, inputs, upstream=upstream)  # from bit strings, not from a table of outcomes
        np.testing.assert_allclose(
            sampled.predicted(SHOTS).gradient_standard_errors, predicted.gradient_standard_errors, rtol=0.15
        )


# --- scatter ----------------------------------------------------------------------------------------------------------


def entangled(**options: Any) -> tuple[QuantumLayer, torch.Tensor, np.ndarray]:
    """Inputs, products of inputs and weights, a shared weight, three outputs in two measurements."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.ry(x[0], 0)
    circuit.ry(x[1] * w[2], 1)
    circuit.cx(0, 1)
    circuit.rx(w[0], 0)
    circuit.ry(2 * w[1] + w[0], 1)
    circuit.cx(1, 0)
    generator = np.random.default_rng(2)
    layer = QuantumLayer(
        circuit,
        inputs=x,
        weights=w,
        observables=["IZ", SparsePauliOp(["ZI", "XX"], [0.7, 0.5]), "ZZ"],
        init=torch.tensor(generator.uniform(0, 6, 3)),
        **options,
    )
    return layer, torch.tensor(generator.uniform(-1, 1, (3, 2))), generator.normal(size=(3, 3))


NOISELESS = {name: make for name, make in BACKENDS.items() if name != "rehearsal"}


@pytest.mark.parametrize(
    ("backend", "rule"),
    [
        ("statevector", "parameter_shift"),
        ("statevector", "central"),
        ("statevector", "forward"),
        ("aer", "parameter_shift"),
        ("sampler", "parameter_shift"),
    ],
)
def test_gradients_scatter_as_their_standard_errors_say(backend, rule):
    """Chi-square of the scatter over repeats; and z-scores of the reported variances, whose mean must be the true one."""
    repeats = 400 if backend == "statevector" else 50
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
    assert (
        2 * stats.chi2.sf((repeats - 1) * np.var(2 * np.array(found), axis=0, ddof=1) / variances, repeats - 1)
    ).min() < (1e-3 / comparisons)


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


# --- what a run knows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [None, SHOTS])
@pytest.mark.parametrize(
    "name", ["weight_groups", "only_weights", "shared_parameters", "expression_input_times_weight_plus_bias"]
)
def test_gradients_are_torchs(name, shots):
    checked: Problem = problem(name)
    layer = checked.layer(oracle(name).weights, shots=shots, seed=2)
    inputs = features(oracle(name), requires_grad=True)
    run, _ = backward(layer, inputs)
    np.testing.assert_allclose(flat(run.gradients), gradients(layer), atol=1e-12)
    assert isinstance(run.gradients, dict) == isinstance(layer.weights, torch.nn.ParameterDict)
    if inputs is not None:
        np.testing.assert_allclose(run.input_gradients, inputs.grad, atol=1e-12)
    errors = flat(run.gradient_standard_errors)
    assert (errors == 0).all() if shots is None else (errors > 0).all()
    assert np.isinf(flat(run.signal_to_noise)).all() == (shots is None)


def test_frozen_groups_and_plain_data_have_none():
    layer = problem("weight_groups").layer(oracle("weight_groups").weights, shots=50, seed=1)
    first, *others = layer.program.group_names
    layer.weights[first].requires_grad_(False)
    run, _ = backward(layer, features(oracle("weight_groups")))
    assert set(run.gradients) == set(others)
    assert run.input_gradients is None
    single, x, _ = entangled(shots=50, seed=1)
    single.weights.requires_grad_(False)
    run, _ = backward(single, x.requires_grad_())
    assert run.gradients is None
    assert run.gradient_standard_errors is None
    assert run.signal_to_noise is None
    assert run.input_gradients.shape == x.shape


def test_a_gradient_by_some_is_one_by_all():
    """PyTorch asks a Function for all gradients that it may need, whatever ``torch.autograd.grad`` was asked for."""
    layer, x, _ = entangled(shots=50, seed=1)
    values = layer(x.requires_grad_())
    (by_x,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
    np.testing.assert_allclose(layer.last_run.input_gradients, by_x, atol=1e-12)
    assert layer.last_run.gradients.shape == layer.weights.shape
    assert (layer.last_run.gradient_standard_errors > 0).all()


def test_what_cannot_be_seen_has_a_gradient_of_zero():
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    for shots in (None, 20):
        layer = QuantumLayer(circuit, weights=w, observables=["ZI"], shots=shots, seed=1)
        run, _ = backward(layer, None, upstream=np.ones((1, 1)))
        assert run.gradients.tolist() == layer.weights.grad.tolist() == [0.0]
        assert run.gradient_standard_errors.tolist() == [0.0]
        assert run.predicted(50).gradient_standard_errors.tolist() == [0.0]


def test_what_the_user_does_with_the_upstream_gradient_changes_nothing():
    for shots in (None, 50):
        layer, x, upstream = entangled(shots=shots, seed=1)
        given = torch.tensor(upstream)
        layer(x).backward(given)
        given.zero_()
        np.testing.assert_allclose(layer.last_run.gradients, layer.weights.grad, atol=1e-12)


@pytest.mark.parametrize("rule", ["parameter_shift", "spsa"])
def test_large_batches_are_added_up_in_parts(monkeypatch, rule):
    layer, x, upstream = entangled(shots=50, seed=1, gradient=RULES[rule])
    run, _ = backward(layer, x.requires_grad_(), upstream=upstream)
    whole = [run.gradients, run.gradient_standard_errors, run.input_gradients, run.input_gradient_standard_errors]
    monkeypatch.setattr("qiskit_torch_bridge.bridge.result._MOST_NUMBERS_AT_ONCE", 1)
    layer, x, upstream = entangled(shots=50, seed=1, gradient=RULES[rule])
    run, _ = backward(layer, x.requires_grad_(), upstream=upstream)
    parts = [run.gradients, run.gradient_standard_errors, run.input_gradients, run.input_gradient_standard_errors]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_threads_do_not_mix_their_runs():
    layer, x, upstream = entangled(shots=20, seed=1)
    seen = []

    def step() -> None:
        for _ in range(10):
            values = layer(x)
            values.backward(torch.tensor(upstream))
            seen.append(layer.last_run)

    threads = [Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 30
    assert all(run._call is not None for run in seen)


def test_shapes_follow_the_flattened_batch_and_single_precision_is_fine():
    layer, x, _ = entangled(shots=50, seed=1)
    layer.float()
    batch = x.float().reshape(1, 3, 2).requires_grad_()
    layer(batch).sum().backward()
    run = layer.last_run
    assert run.input_gradients.shape == (3, 2)
    np.testing.assert_allclose(run.gradients, layer.weights.grad, rtol=1e-5)
    np.testing.assert_allclose(run.input_gradients, batch.grad[0], rtol=1e-5, atol=1e-6)


def test_none_before_a_backward_and_after_one_the_last():
    layer, x, upstream = entangled(shots=50, seed=1)
    values = layer(x)
    run = layer.last_run
    assert run.gradients is None
    assert run.gradient_circuits == run.gradient_shots == 0
    values.backward(torch.tensor(upstream), retain_graph=True)
    first = run.gradients
    assert layer.last_run is run
    assert run.gradient_shots == 50 * run.gradient_circuits > 0
    values.backward(2 * torch.tensor(upstream))
    assert not np.array_equal(run.gradients, first)
    np.testing.assert_allclose(first + run.gradients, layer.weights.grad, atol=1e-12)


def test_each_call_keeps_its_own_gradient():
    layer, x, _ = entangled(shots=50, seed=1)
    first = layer(x)
    first_run = layer.last_run
    second = layer(2 * x)
    second_run = layer.last_run
    (first.sum() + second.sum()).backward()
    np.testing.assert_allclose(first_run.gradients + second_run.gradients, layer.weights.grad, atol=1e-12)


def test_transforms_leave_no_gradient_behind():
    layer, x, _ = entangled(shots=50, seed=1)

    def loss(weights: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weights": weights}, (row,)).sum()

    torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(layer.weights.detach(), x)
    assert layer.last_run.gradients is None
    assert layer.last_run.values.shape == (3, 3)


def test_a_differentiable_gradient_is_told_too():
    layer, x, upstream = entangled(shots=50, seed=1)
    values = layer(x)
    (by_weights,) = torch.autograd.grad(values, layer.weights, torch.tensor(upstream), create_graph=True)
    np.testing.assert_allclose(layer.last_run.gradients, by_weights.detach(), atol=1e-12)
    by_weights.sum().backward()
    assert (layer.last_run.gradient_standard_errors > 0).all()


def test_an_optimizers_step_does_not_change_what_was_measured():
    """Products of inputs and weights have slopes that depend on both."""
    layer, x, upstream = entangled(shots=50, seed=1)
    values = layer(x)
    values.backward(torch.tensor(upstream))
    expected = layer.weights.grad.clone()
    with torch.no_grad():
        layer.weights.add_(1.0)
        x.mul_(3.0)
    np.testing.assert_allclose(layer.last_run.gradients, expected, atol=1e-12)
    exact, x, upstream = entangled()
    run, _ = backward(exact, x, upstream=upstream)
    before = run.predicted(100).gradient_standard_errors
    with torch.no_grad():
        exact.weights.add_(1.0)
        x.mul_(3.0)
    np.testing.assert_array_equal(run.predicted(100).gradient_standard_errors, before)


def test_nothing_runs_until_it_is_looked_at(counting):
    backend = counting("statevector")
    layer, x, upstream = entangled(backend=backend)
    run, _ = backward(layer, x, upstream=upstream)
    calls = len(backend.calls)
    assert run.gradients is not None
    assert run.gradient_standard_errors is not None
    assert len(backend.calls) == calls
    circuits = layer.total_circuits
    run.predicted(100)
    assert len(backend.calls) == calls + 1
    assert layer.total_circuits == circuits, "what is predicted is not counted as spent"


@pytest.mark.parametrize("name", ["entangled", "many qubits"])
def test_what_is_too_much_to_keep_is_measured_again(monkeypatch, name):
    def run_of() -> Run:
        if name == "entangled":
            layer, x, upstream = entangled(backend="aer", shots=64, seed=4)
            return backward(layer, x, upstream=upstream)[0]
        w = ParameterVector("w", 10)
        circuit = QuantumCircuit(10)
        for qubit, weight in enumerate(w):
            circuit.ry(weight, qubit)
        layer = QuantumLayer(circuit, weights=w, backend="aer", shots=64, seed=4, init=torch.linspace(0.3, 2.5, 10))
        return backward(layer, None)[0]

    kept = flat(run_of().gradient_standard_errors)
    monkeypatch.setattr("qiskit_torch_bridge.backends.aer._MOST_NUMBERS_KEPT", 0)
    np.testing.assert_array_equal(flat(run_of().gradient_standard_errors), kept)


def test_several_runs_of_aer_are_one(monkeypatch):
    layer, x, upstream = entangled(backend="aer", shots=64, seed=4)
    together = backward(layer, x, upstream=upstream)[0].gradient_standard_errors
    monkeypatch.setattr("qiskit_torch_bridge.backends.aer._MOST_EXPERIMENTS_A_RUN", 4)
    apart, x, upstream = entangled(backend="aer", shots=64, seed=4)
    errors = backward(apart, x, upstream=upstream)[0].gradient_standard_errors
    np.testing.assert_allclose(errors, together, rtol=0.3)  # of other shots


@pytest.mark.parametrize("backend", ["statevector", "aer"])
def test_exact_simulation_predicts_wherever_it_runs(backend):
    layer, x, upstream = entangled(backend=backend)
    expected, _, _ = entangled()
    run, reference = (backward(one, x.clone().requires_grad_(), upstream=upstream)[0] for one in (layer, expected))
    found, wanted = run.predicted(SHOTS), reference.predicted(SHOTS)
    np.testing.assert_allclose(found.standard_errors, wanted.standard_errors, atol=1e-9)
    np.testing.assert_allclose(found.gradient_standard_errors, wanted.gradient_standard_errors, atol=1e-9)


def test_noise_models_are_predicted_by_density_matrix():
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel, depolarizing_error

    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.05, 2), ["cx"])
    simulator = AerSimulator(noise_model=noise, method="density_matrix")
    exact, x, upstream = entangled(backend=simulator)
    planned = backward(exact, x, upstream=upstream)[0].predicted(20_000)
    measured, _, _ = entangled(backend=simulator, shots=20_000, seed=1)
    run, _ = backward(measured, x, upstream=upstream)
    np.testing.assert_allclose(run.gradient_standard_errors, planned.gradient_standard_errors, rtol=0.03)
    assert (np.abs(run.gradients - planned.gradients) < 5 * planned.gradient_standard_errors).all()


def test_values_alone_can_be_predicted():
    layer, x, _ = entangled()
    with torch.no_grad():
        layer(x)
    predicted = layer.last_run.predicted(400)
    np.testing.assert_allclose(predicted.standard_errors, layer.last_run.predicted(100).standard_errors / 2)
    assert predicted.shots == 400 * predicted.circuits
    assert predicted.gradients is None


def test_counts_tell_what_more_shots_would_give():
    layer, x, upstream = entangled(shots=100, seed=1)
    run, _ = backward(layer, x, upstream=upstream)
    more = run.predicted(400)
    np.testing.assert_allclose(more.gradient_standard_errors, run.gradient_standard_errors / 2, rtol=1e-12)
    np.testing.assert_allclose(more.signal_to_noise, run.signal_to_noise * 2, rtol=1e-12)
    np.testing.assert_allclose(more.standard_errors, run.standard_errors / 2, rtol=1e-12)
    assert (more.shots, more.gradient_shots) == (4 * run.shots, 4 * run.gradient_shots)
    with pytest.raises(ValueError, match="predict from the run that it was made of"):
        more.predicted(100)


def test_one_shot_says_nothing_about_its_error():
    layer, x, upstream = entangled(shots=1, seed=1)
    run, _ = backward(layer, x, upstream=upstream)
    assert np.isnan(run.gradient_standard_errors).all()
    assert np.isfinite(run.gradients).all()


def test_copies_and_pickles_keep_the_numbers():
    layer, x, upstream = entangled(shots=100, seed=1)
    run, _ = backward(layer, x, upstream=upstream)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(copied.last_run.gradients, run.gradients)
        np.testing.assert_array_equal(copied.last_run.gradient_standard_errors, run.gradient_standard_errors)
    with pytest.raises(ValueError, match="does not know how its outputs vary"):
        pickle.loads(pickle.dumps(run)).predicted(100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 0}, "shots: got 0, expected a positive integer"),
        ({"shots": True}, "expected a positive integer"),
        ({"shots": 10, "gradient": "adjoint"}, "takes no shots"),
        ({"shots": 10, "gradient": "guess"}, "expected one of"),
    ],
)
def test_predictions_that_make_no_sense(arguments, message):
    layer, x, upstream = entangled()
    run, _ = backward(layer, x, upstream=upstream)
    with pytest.raises(ValueError, match=message):
        run.predicted(**arguments)


def test_a_rule_for_counts_that_are_there_is_refused():
    layer, x, upstream = entangled(shots=10, seed=1)
    run, _ = backward(layer, x, upstream=upstream)
    with pytest.raises(ValueError, match="predict from exact simulation"):
        run.predicted(100, "spsa")


def test_inputs_that_are_only_defined_for_numbers():
    """Each row is a circuit of its own then; the weights' errors add up over them."""
    circuit, x, w = only_defined_for_numbers()
    rows = torch.rand(3, 2, dtype=torch.float64)
    squares = []
    for part in (rows, rows[:1], rows[1:2], rows[2:]):
        layer = QuantumLayer(circuit, inputs=x, weights=w, init="zeros")
        run, _ = backward(layer, part, upstream=np.ones((len(part), 1)))
        squares.append(run.predicted(100).gradient_standard_errors ** 2)
    np.testing.assert_allclose(squares[0], sum(squares[1:]))
    layer = QuantumLayer(circuit, inputs=x, weights=w, init="zeros", shots=20_000, seed=1)
    run, _ = backward(layer, rows, upstream=np.ones((3, 1)))
    np.testing.assert_allclose(run.predicted(100).gradient_standard_errors, np.sqrt(squares[0]), rtol=0.05)


def test_a_rule_of_ones_own_has_error_bars():
    class Fourfold(GradientRule):
        """Parameter shift, each point measured twice and averaged."""

        name = "fourfold"

        def stencil(self, program, columns, *, rows, shots, seeds):
            once = ParameterShift().stencil(program, columns, rows=rows, shots=shots, seeds=seeds)
            return type(once)(np.concatenate([once.shifts] * 2), np.concatenate([once.coefficients / 2] * 2, axis=1))

    layer, x, upstream = entangled()
    run, _ = backward(layer, x, upstream=upstream)
    twice, once = run.predicted(100, Fourfold()), run.predicted(100)
    np.testing.assert_allclose(twice.gradient_standard_errors * math.sqrt(2), once.gradient_standard_errors)
    assert twice.gradient_circuits == 2 * once.gradient_circuits


def test_backends_that_say_nothing_are_unknown_not_zero():
    class Silent(StatevectorBackend):
        """Gives variances, but not how outputs vary together."""

        def evaluate(self, program, angles, *, shots, seed):
            found = super().evaluate(program, angles, shots=shots, seed=seed)
            return type(found)(found.values, found.variances, found.circuits, found.shots)

    layer, x, upstream = entangled(backend=Silent(), shots=100, seed=1)
    run, _ = backward(layer, x, upstream=upstream)
    assert np.isnan(run.gradient_standard_errors).all()
    np.testing.assert_allclose(run.gradients, layer.weights.grad)
