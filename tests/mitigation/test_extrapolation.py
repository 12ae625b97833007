"""Zero-noise extrapolation: against closed forms of depolarising noise, and error bars against repeated measurements."""

import math
import pickle

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from qiskit_aer.primitives import EstimatorV2

from qiskit_torch_bridge import (
    DensityMatrixBackend,
    GrowingShots,
    QuantumLayer,
    ReadoutCorrection,
    TargetSNR,
    TwirledReadout,
    ZeroNoiseExtrapolation,
    evaluate,
)
from qiskit_torch_bridge.mitigation.extrapolation import linear_weights, richardson_weights
from qiskit_torch_bridge.mitigation.folding import Folding

P = 0.03
GATES = 6
FACTORS = (1, 3, 5)
WEIGHTS = torch.tensor([0.4, -0.9, 0.7], dtype=torch.float64)
FEATURES = torch.tensor([[0.5, 1.1], [-0.8, 0.3]], dtype=torch.float64)


def depolarising(p=P, *, readout=False):
    """Noise of two-qubit gates: on two qubits, each multiplies every Pauli's expectation value by 1 - p."""
    noise = NoiseModel(basis_gates=["rx", "ry", "cx", "cz"])
    noise.add_all_qubit_quantum_error(depolarizing_error(p, 2), ["cx", "cz"])
    if readout:
        noise.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.06, 0.94]]))
    return noise


def two_qubits():
    """Six entangling gates on two qubits, two inputs, three weights."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    for qubit in range(2):
        circuit.ry(x[qubit], qubit)
    for number in range(3):
        circuit.cx(0, 1)
        circuit.rx(w[number], number % 2)
        circuit.cz(0, 1)
        circuit.ry(0.4, 1)
    return circuit, x, w


def layer_with(backend=None, mitigation=(), **options):
    circuit, x, w = two_qubits()
    options = {"observables": ["ZI", "XX", "ZZ"], "init": WEIGHTS, "seed": 3} | options
    return QuantumLayer(circuit, inputs=x, weights=w, backend=backend, mitigation=mitigation, **options).double()


def values_and_gradients(layer, features=FEATURES):
    features = features.clone().requires_grad_()
    values = layer(features)
    upstream = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).reshape(values.shape)
    values.backward(upstream)
    return values.detach().numpy(), np.concatenate([layer.weights.grad.numpy(), features.grad.numpy().ravel()])


def survival(effective):
    """What is left of an expectation value at each factor."""
    return (1 - P) ** (GATES * np.array(effective))


# --- weights ----------------------------------------------------------------------------------------------------------


def test_richardson_is_exact_for_polynomials_through_all_points():
    rng = np.random.default_rng(1)
    for factors in ([1, 3], [1, 3, 5], [1, 1.5, 2.25, 4], [1, 2, 3, 5, 7]):
        polynomial = np.polynomial.Polynomial(rng.normal(size=len(factors)))
        weights = richardson_weights(factors)
        assert np.dot(weights, polynomial(np.array(factors))) == pytest.approx(polynomial(0))
        beyond = polynomial + np.polynomial.Polynomial([0] * len(factors) + [1])
        assert abs(np.dot(weights, beyond(np.array(factors))) - beyond(0)) > 0.1
    assert richardson_weights([1, 3, 5]) == pytest.approx([15 / 8, -5 / 4, 3 / 8])


def test_the_line_is_that_of_least_squares():
    rng = np.random.default_rng(2)
    for factors in ([1, 3], [1, 3, 5], [1, 1.2, 4, 9]):
        values = rng.normal(size=len(factors))
        assert np.dot(linear_weights(factors), values) == pytest.approx(np.polyfit(factors, values, 1)[1])
        assert sum(linear_weights(factors)) == pytest.approx(1)
    assert linear_weights([1, 3]) == pytest.approx(richardson_weights([1, 3]))


# --- values and gradients without shots -------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", ["local", "global"])
@pytest.mark.parametrize(
    ("factors", "effective"), [((1, 3, 5), (1, 3, 5)), ((1, 1.5, 2.2), (1, 1 + 4 / 6, 1 + 8 / 6)), ((1, 2), (1, 2))]
)
def test_depolarising_noise_by_its_closed_form(fold, factors, effective):
    """By the factors that are reached: six gates cannot be folded by a half."""
    ideal, slopes = values_and_gradients(layer_with())
    layer = layer_with(DensityMatrixBackend(depolarising()))
    plain, _ = values_and_gradients(layer)
    left_by = {
        "linear": np.polyfit(effective, survival(effective), 1)[1],
        "richardson": np.polynomial.polynomial.polyfit(effective, survival(effective), len(effective) - 1)[0],
        "exponential": 1.0,
    }
    for fit, left in left_by.items():
        layer.zero_grad()
        layer.mitigation = [ZeroNoiseExtrapolation(factors, fold=fold, fit=fit)]
        values, gradients = values_and_gradients(layer)
        assert values == pytest.approx(left * ideal, abs=1e-7), fit
        assert gradients == pytest.approx(left * slopes, abs=1e-7), fit
        assert np.abs(plain - ideal).max() > 1.8 * np.abs(values - ideal).max(), fit
    if factors != effective:
        wrong = np.polyfit(factors, survival(effective), 1)[1]
        assert abs(wrong - left_by["linear"]) > 1e-3


@pytest.mark.parametrize("interpret", [None, lambda outcome: outcome.bit_count() % 2])
def test_exponential_fit_of_probabilities_goes_to_those_of_a_mixed_state(interpret):
    options = {"observables": None, "probabilities": [0, 1], "interpret": interpret}
    ideal, _ = values_and_gradients(layer_with(**options))
    method = ZeroNoiseExtrapolation(fit="exponential")
    values, _ = values_and_gradients(layer_with(DensityMatrixBackend(depolarising()), [method], **options))
    assert values == pytest.approx(ideal, abs=1e-7)
    astray = layer_with(
        DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation(fit="exponential", asymptote=0.9)], **options
    )
    assert np.abs(astray(FEATURES).detach().numpy() - ideal).max() > 1e-3


def test_constants_stay_as_they_are():
    options = {"observables": [{"II": 2.0, "ZZ": 1.0}, {"II": 3.0}]}
    ideal, _ = values_and_gradients(layer_with(**options))
    for fit in ("linear", "exponential"):
        layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation(fit=fit)], **options)
        values, _ = values_and_gradients(layer)
        assert values[:, 1] == pytest.approx(3)
        assert fit == "linear" or values == pytest.approx(ideal, abs=1e-7)
    layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation()], observables=[{"II": 3.0}])
    assert layer(FEATURES).tolist() == [[3.0], [3.0]]


def test_higher_derivatives():
    def hessian(layer):
        def loss(weights):
            return torch.func.functional_call(layer, {"weights": weights}, (FEATURES,))[:, 1].sum()

        return torch.autograd.functional.hessian(loss, WEIGHTS)

    layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation((1, 3))])
    left = np.dot([1.5, -0.5], survival([1, 3]))
    torch.testing.assert_close(hessian(layer), left * hessian(layer_with()), atol=1e-6, rtol=0)


# --- error bars -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["linear", "richardson", "exponential"])
def test_error_bars_of_values_and_gradients(fit):
    """Their z-scores over 400 equal rows: mean 0, standard deviation 1."""
    rows, shots, factors = 400, 4000, (1, 2, 3)
    # Here, and at the shifted points, the value of ZZ is far from the asymptote; a logarithm has little bias there.
    features = torch.tensor([[-0.3, -0.42]], dtype=torch.float64)
    options = {"observables": ["ZZ"]} if fit == "exponential" else {}
    method = ZeroNoiseExtrapolation(factors, fit=fit)
    exact = layer_with(DensityMatrixBackend(depolarising()), [method], **options)
    expected = exact(features).detach().numpy()
    layer = layer_with(DensityMatrixBackend(depolarising()), [method], shots=shots, **options)

    for one in (exact, layer):
        one.weights.requires_grad_(False)
    repeated = features.repeat(rows, 1).requires_grad_()
    upstream = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)[:, : layer.num_outputs]
    values = layer(repeated)
    values.backward(upstream.expand(rows, -1))
    once = features.clone().requires_grad_()
    exact(once).backward(upstream)
    run = layer.last_run
    for measured, true, errors in (
        (values.detach().numpy(), expected, run.standard_errors),
        (repeated.grad.numpy(), once.grad.numpy(), run.input_gradient_standard_errors),
    ):
        scores = (measured - true) / errors
        assert np.abs(scores.mean(axis=0)).max() < 4 / math.sqrt(rows)
        # Of a standard deviation of so many draws, the relative error is 1 / sqrt(2 rows).
        assert np.abs(scores.std(axis=0) - 1).max() < 4 / math.sqrt(2 * rows)
    weights = richardson_weights(factors) if fit == "richardson" else linear_weights(factors)
    if fit != "exponential":
        plain = layer_with(DensityMatrixBackend(depolarising()), shots=shots)
        plain(features)
        assert run.standard_errors.mean() > 0.9 * np.linalg.norm(weights) * plain.last_run.standard_errors.mean()


@pytest.mark.parametrize("fit", ["linear", "exponential"])
def test_the_whole_covariance_is_combined(fit):
    """ZZ, ZI and IZ are measured in the same shots; a sum of independent variances would be another number."""
    options = {"observables": ["ZI", "IZ", "ZZ"]}
    method = ZeroNoiseExtrapolation((1, 3), fit=fit)
    layer = layer_with(DensityMatrixBackend(depolarising()), [method], shots=4000, **options)
    features = torch.tensor([[0.5, 1.1]], dtype=torch.float64).repeat(1500, 1)
    estimates = []
    evaluate(
        layer.program,
        features,
        [WEIGHTS],
        backend=layer.backend,
        mitigation=[method],
        shots=4000,
        seed=5,
        observe=lambda kind, estimate: estimates.append(estimate),
    )
    (estimate,) = estimates
    direction = np.array([1.0, 1.0, -1.0])
    along = estimate.covariance.along(np.broadcast_to(direction, estimate.values.shape))
    true = (estimate.values @ direction).var()
    assert along.mean() == pytest.approx(true, rel=4 * math.sqrt(2 / 1500))
    independent = (estimate.variances @ direction**2).mean()
    assert abs(independent - true) > 0.2 * true
    some = estimate.of_rows(slice(3, 9))
    part = some.covariance.along(np.broadcast_to(direction, some.values.shape))
    assert part == pytest.approx(along[3:9])


def test_a_single_shot_has_no_error_bar():
    layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation()], shots=1)
    layer(FEATURES)
    assert np.isnan(layer.last_run.standard_errors).all()


@pytest.mark.parametrize("options", [{}, {"observables": None, "probabilities": [0, 1]}])
def test_predictions_are_those_of_the_weighted_sum(options):
    method = ZeroNoiseExtrapolation()
    layer = layer_with(DensityMatrixBackend(depolarising()), [method], **options)
    layer(FEATURES).sum().backward()
    predicted = layer.last_run.predicted(shots=500)
    exact = [layer_with(DensityMatrixBackend(depolarising()), **options) for _ in FACTORS]
    variances = 0
    for weight, factor, plain in zip(linear_weights(FACTORS), FACTORS, exact, strict=True):
        values = _at_factor(plain, factor)
        one_shot = values * (1 - values) if options else 1 - values**2
        variances = variances + weight**2 * one_shot / 500
    assert predicted.standard_errors == pytest.approx(np.sqrt(variances), rel=1e-6)
    assert (predicted.circuits, predicted.shots) == (layer.last_run.circuits, 500 * layer.last_run.circuits)


def _at_factor(layer, factor):
    program = layer.program if factor == 1 else layer.program.varied(Folding(float(factor), "local"))
    groups = layer.program.evaluate_angles(FEATURES, [WEIGHTS])
    angles = np.empty((len(FEATURES), layer.program.num_columns))
    for columns, group in zip(layer.program.angle_map.slices, groups, strict=True):
        angles[:, columns] = group.numpy()
    return layer.backend.evaluate(program, angles, shots=None, seed=np.random.SeedSequence(0)).values


# --- where there is no exponential ------------------------------------------------------------------------------------


def test_values_without_an_exponential_fit_are_those_of_the_line_and_a_warning_says_so():
    """At so few shots, some values cannot be told from the asymptote; the same shots for both fits."""
    features = torch.rand(60, 2, dtype=torch.float64)
    runs = {}
    for fit in ("linear", "exponential"):
        layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation(fit=fit)], shots=100)
        if fit == "exponential":
            with pytest.warns(UserWarning, match="these are extrapolated by a straight line"):
                layer(features)
        else:
            layer(features)
        runs[fit] = layer.last_run
    same = np.isclose(runs["linear"].values, runs["exponential"].values, rtol=0, atol=1e-12)
    assert 0.2 < same.mean() < 1
    errors = [runs[fit].standard_errors[same] for fit in runs]
    assert errors[0] == pytest.approx(errors[1])
    assert np.isfinite(runs["exponential"].standard_errors).all()


# --- backends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "aer",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("sampler", "estimator")),
        "exact aer",
        "exact estimator",
    ],
)
def test_on_simulators_and_primitives_of_others(kind):
    simulator = AerSimulator(noise_model=depolarising(), method="density_matrix")
    backend = {"sampler": BackendSamplerV2, "estimator": BackendEstimatorV2}.get(
        kind.split()[-1], lambda backend: backend
    )(backend=simulator)
    if kind == "exact estimator":
        options = {"backend_options": {"noise_model": depolarising(), "method": "density_matrix"}}
        backend = EstimatorV2(options=options)
    shots = None if "exact" in kind else 20_000
    method = ZeroNoiseExtrapolation(fit="linear", fold="global")
    layer = layer_with(backend, [method], shots=shots)
    left = np.polyfit(FACTORS, survival(FACTORS), 1)[1]
    ideal, slopes = (left * each for each in values_and_gradients(layer_with()))
    values, gradients = values_and_gradients(layer)
    if shots is None:
        assert values == pytest.approx(ideal, abs=1e-6)
        assert gradients == pytest.approx(slopes, abs=1e-6)
        return
    run = layer.last_run
    errors = np.concatenate([run.gradient_standard_errors, run.input_gradient_standard_errors.ravel()])
    assert np.abs((values - ideal) / run.standard_errors).max() < 4
    assert np.abs((gradients - slopes) / errors).max() < 4


def test_readout_errors_are_not_multiplied():
    """The value without noise of gates, but with that of readout, is what comes of it."""
    options = {"observables": ["ZI"]}
    layer = layer_with(DensityMatrixBackend(depolarising(readout=True)), [ZeroNoiseExtrapolation()], **options)
    readout_alone = NoiseModel(basis_gates=["rx", "ry", "cx", "cz"])
    readout_alone.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.06, 0.94]]))
    target = layer_with(DensityMatrixBackend(readout_alone), **options)(FEATURES).detach().numpy()
    ideal = layer_with(**options)(FEATURES).detach().numpy()
    values = layer(FEATURES).detach().numpy()
    left = np.polyfit(FACTORS, survival(FACTORS), 1)[1]
    mixed = 0.03  # of a mixed state: (0.97 - 0.03 + 0.06 - 0.94) / 2
    assert values == pytest.approx(left * (target - mixed) + mixed, abs=1e-6)
    assert np.abs(target - ideal).max() > 0.02


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_quotes_and_counts_grow_by_the_factors():
    plain = layer_with(DensityMatrixBackend(depolarising()), shots=100)
    layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation((1, 1.5, 2, 4))], shots=100)
    for one in (plain, layer):
        values_and_gradients(one)
    quotes = [one.quote(2) for one in (plain, layer)]
    assert (quotes[1].circuits, quotes[1].shots, quotes[1].executions) == (
        4 * quotes[0].circuits,
        4 * quotes[0].shots,
        4 * quotes[0].executions,
    )
    assert (layer.total_circuits, layer.total_shots) == (quotes[1].circuits, quotes[1].shots)
    assert layer.last_run.circuits == 4 * plain.last_run.circuits


def test_schedules_count_shots_of_a_circuit():
    """TargetSNR asks for shots in proportion to the square of the error: by the extrapolated gradient's, not a part's."""
    layer = layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation()], shots=1)
    schedule = TargetSNR(layer, target=3, first=1000, least=10, most=10_000)
    values_and_gradients(layer)
    run = layer.last_run
    schedule.step()
    noise = (run.gradient_standard_errors**2).sum()
    expected = 1000 * 9 * noise / ((run.gradients**2).sum() - noise)
    assert layer.shots == int(np.clip(expected, 500, 2000))
    GrowingShots(layer, first=20, last=200, steps=5)
    layer(FEATURES)
    assert layer.last_run.shots == 20 * layer.last_run.circuits


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factors": (1,)}, ValueError, r"factors: got \[1.0\], expected at least two different numbers from 1"),
        ({"factors": (1, 1)}, ValueError, "at least two different numbers"),
        ({"factors": (1, 3, 3)}, ValueError, "at least two different numbers"),
        ({"factors": (0.5, 3)}, ValueError, "from 1"),
        ({"factors": (1, math.inf)}, ValueError, "from 1"),
        ({"factors": (1, math.nan)}, ValueError, "from 1"),
        ({"factors": 3}, TypeError, r"factors: got 3 \(int\)"),
        ({"factors": (1, "3")}, TypeError, "factors: got '3'"),
        ({"fold": "both"}, ValueError, "fold: got 'both'"),
        ({"fit": "linaer"}, ValueError, "fit: got 'linaer'.*did you mean"),
        ({"asymptote": 0.2}, ValueError, "asymptote: got 0.2 with fit='linear'"),
        ({"fit": "exponential", "asymptote": math.nan}, ValueError, "finite"),
        ({"fit": "exponential", "asymptote": "0"}, TypeError, "asymptote"),
    ],
)
def test_what_is_no_extrapolation(options, error, message):
    with pytest.raises(error, match=message):
        ZeroNoiseExtrapolation(**options)


def test_factors_that_are_the_same_for_so_few_gates_are_refused():
    with pytest.raises(ValueError, match=r"factors: got \[1.0, 1.1\], which are \[1.0, 1.0\] for this circuit"):
        layer_with(DensityMatrixBackend(depolarising()), [ZeroNoiseExtrapolation((1, 1.1))])


def test_data_that_can_be_compared_and_pickled():
    method = ZeroNoiseExtrapolation([5, 1, 3])
    assert method == ZeroNoiseExtrapolation((1, 3, 5)) == pickle.loads(pickle.dumps(method))
    assert hash(method) == hash(ZeroNoiseExtrapolation())
    assert method != ZeroNoiseExtrapolation(fit="richardson")


# --- with the correction of readout errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reader", [ReadoutCorrection(), TwirledReadout(randomizations=4)], ids=["corrected", "twirled"]
)
def test_corrected_readout_first_then_extrapolated(reader):
    """The readout's errors are taken out at each factor, and what is left is that of the gates."""
    methods = [reader, ZeroNoiseExtrapolation(fit="exponential")]
    ideal, slopes = values_and_gradients(layer_with())
    values, gradients = values_and_gradients(layer_with(DensityMatrixBackend(depolarising(readout=True)), methods))
    assert values == pytest.approx(ideal, abs=1e-6)
    assert gradients == pytest.approx(slopes, abs=1e-6)
    with pytest.raises(ValueError, match=f"put {type(reader).__name__} first"):
        layer_with(DensityMatrixBackend(depolarising(readout=True)), methods[::-1])


@pytest.mark.parametrize(
    "reader", [ReadoutCorrection(), TwirledReadout(randomizations=4)], ids=["corrected", "twirled"]
)
def test_both_with_shots(reader):
    left = np.polyfit(FACTORS, survival(FACTORS), 1)[1]
    ideal, slopes = (left * each for each in values_and_gradients(layer_with()))
    layer = layer_with(
        DensityMatrixBackend(depolarising(readout=True)), [reader, ZeroNoiseExtrapolation()], shots=20_000
    )
    values, gradients = values_and_gradients(layer)
    run = layer.last_run
    errors = np.concatenate([run.gradient_standard_errors, run.input_gradient_standard_errors.ravel()])
    assert np.abs((values - ideal) / run.standard_errors).max() < 4
    assert np.abs((gradients - slopes) / errors).max() < 4
