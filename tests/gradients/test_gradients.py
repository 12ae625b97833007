"""Gradients of every rule on every kind of backend, against Qiskit's simulator; and what they cost."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gradient_checks import DIFFERENCES, EXACT, RULES, SUBSET, check_gradients
from problems import PROBLEMS, Problem, derivatives, features, oracle, point, problem, statevector_values, z
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer import AerSimulator

from qiskit_torch_bridge import SPSA, FiniteDifference, GradientRule, ParameterShift, QuantumLayer, SeedStream, Stencil


@cache
def noiseless_device():
    """A device of five qubits in a line, with a basis of its own, that makes no errors; nobody changes it."""
    line = [[0, 1], [1, 2], [2, 3], [3, 4]]
    device = GenericBackendV2(5, coupling_map=[*line, *(pair[::-1] for pair in line)], seed=1)
    return AerSimulator.from_backend(device, noise_model=None)


BACKENDS: dict[str, Callable[[], object]] = {
    "statevector": lambda: None,
    "aer": lambda: "aer",
    "estimator": lambda: StatevectorEstimator(default_precision=0.0),
    "device": noiseless_device,
}


# --- right answers ----------------------------------------------------------------------------------------------------


TABLES = [rule for rule in RULES if rule not in ("adjoint", "parameter_shift")]


def circuits_with_rules() -> Iterator[Any]:
    """Each circuit with all rules; two of those that are tables of other steps are quick, in turn, the rest is slow."""
    for place, name in enumerate(PROBLEMS):
        quick = [rule for number, rule in enumerate(TABLES) if (number + place) % len(TABLES) < 2]
        yield pytest.param(name, ["adjoint", "parameter_shift", *quick], id=f"{name}-quick")
        yield pytest.param(name, [rule for rule in TABLES if rule not in quick], marks=pytest.mark.slow, id=name)


@pytest.mark.parametrize(("name", "rules"), list(circuits_with_rules()))
def test_every_rule_on_every_circuit(name, rules):
    for rule in rules:
        gradient, tolerance = RULES[rule]
        check_gradients(problem(name), oracle(name), tolerance, gradient=gradient)


def on_backends() -> Iterator[Any]:
    """Each circuit with its backends; all but one of them slow, in turn, because neighbours in the list are alike."""
    for place, name in enumerate(PROBLEMS):
        # Qiskit's estimator takes seconds for each of the random circuits, and single gates are all the same to it.
        without = name.startswith(("random", "gate_")) and name not in ("random_3", "gate_cu")
        backends = ["aer", "device"] if without else ["aer", "device", "estimator"]
        for number, backend in enumerate(backends):
            in_turn = number == place % len(backends)
            # A random circuit is as good as the next. The estimator takes circuits as they are: of those that are alike it
            # meets every third.
            alike = ("random",) if backend != "estimator" else ("library_", "expression_")
            if in_turn or name == "random_3" or not name.startswith(alike):
                is_quick = in_turn and name not in ("random_4", "random_5", "random_6", "random_7")
                yield pytest.param(name, backend, marks=[] if is_quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "backend"), list(on_backends()))
def test_every_backend_on_every_circuit(name, backend):
    """By default: where a backend cannot differentiate itself that is parameter shift."""
    check_gradients(problem(name), oracle(name), EXACT, backend=BACKENDS[backend]())


# Each rule with each backend, on one circuit at least.
TRIPLES = [
    (name, rule, ("aer", "device", "estimator")[(i + j) % 3])
    for i, name in enumerate(SUBSET)
    for j, rule in enumerate(TABLES)
    if (i + j) % 2 == 0
]


@pytest.mark.parametrize(("name", "rule", "backend"), TRIPLES)
def test_every_rule_on_every_backend(name, rule, backend):
    gradient, tolerance = RULES[rule]
    check_gradients(problem(name), oracle(name), tolerance, gradient=gradient, backend=BACKENDS[backend]())


@pytest.mark.parametrize("name", ["dressed", "layerwise"])
@pytest.mark.parametrize("gradient", ["adjoint", "parameter_shift"])
def test_reference_numbers(reference, name, gradient):
    numbers = reference(name)
    x = ParameterVector("x", len(numbers["inputs"][0]))
    w = ParameterVector("w", len(numbers["weights"]))
    circuit = QuantumCircuit(numbers["n_qubits"])
    for gate, *operands in numbers["operations"]:
        if isinstance(operands[-1], list):
            *qubits, (vector, index) = operands
            getattr(circuit, gate)({"x": x, "w": w}[vector][index], *qubits)
        else:
            getattr(circuit, gate)(*operands)
    observables = tuple(z(circuit.num_qubits, q) for q in numbers["observables_z_on"])
    as_problem = Problem(circuit, observables, tuple(x), tuple(w))
    layer = as_problem.layer(np.array(numbers["weights"]), gradient=gradient)
    inputs = torch.tensor(numbers["inputs"], dtype=torch.float64, requires_grad=True)
    values = layer(inputs)
    values.backward(torch.tensor(numbers["upstream"], dtype=torch.float64))
    np.testing.assert_allclose(values.detach(), numbers["outputs"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(inputs.grad, numbers["grad_inputs"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(layer.weights.grad, numbers["grad_weights"], rtol=0, atol=1e-9)


# --- the check itself -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Altered(GradientRule):
    """Parameter shift, spoilt."""

    change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    name: ClassVar[str] = "altered"

    def stencil(self, program, columns, *, rows, shots, seeds):
        table = ParameterShift().stencil(program, columns, rows=rows, shots=shots, seeds=seeds)
        return Stencil(*self.change(table.shifts, table.coefficients))


WRONG = {
    "factor 1/2 missing": lambda shifts, coefficients: (shifts, 2 * coefficients),
    "wrong sign": lambda shifts, coefficients: (shifts, -coefficients),
    "columns permuted": lambda shifts, coefficients: (shifts, np.roll(coefficients, 1, axis=0)),
    "shifts permuted": lambda shifts, coefficients: (np.roll(shifts, 1, axis=1), coefficients),
    "another shift than the coefficients say": lambda shifts, coefficients: (0.9 * shifts, coefficients),
    "shifted to one side only": lambda shifts, coefficients: (np.abs(shifts), coefficients),
}


def test_a_table_of_the_wrong_shape_is_refused():
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(1)
    circuit.ry(x, 0)
    circuit.rx(w, 0)
    for change in (lambda s, c: (s[:, :1], c), lambda s, c: (s, c[:, 1:]), lambda s, c: (s[None], c[None])):
        layer = QuantumLayer(circuit, inputs=[x], weights=[w], gradient=Altered(change), shots=10)
        with pytest.raises(ValueError, match=r"stencil of Altered: got shifts of shape .*, expected \(K, A = 2\)"):
            layer(torch.rand(2, 1)).sum().backward()


@pytest.mark.parametrize("name", ["columns_in_any_order", "library_real_amplitudes", "only_inputs"])
@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_rules_are_caught(name, mistake):
    with pytest.raises(AssertionError):
        check_gradients(problem(name), oracle(name), DIFFERENCES, gradient=Altered(WRONG[mistake]))


def test_a_rule_of_ones_own_that_is_right_passes():
    unchanged = Altered(lambda shifts, coefficients: (shifts, coefficients))
    check_gradients(problem("columns_in_any_order"), oracle("columns_in_any_order"), EXACT, gradient=unchanged)


# --- SPSA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_spsa_is_the_derivative_along_its_direction(backend):
    """With one sample every component is the same derivative along the drawn signs, times the component's sign."""
    name = "columns_in_any_order"
    checked, expected = problem(name), oracle(name)
    layer = checked.layer(expected.weights, gradient=SPSA(step=1e-4), backend=BACKENDS[backend](), seed=3)
    inputs = features(expected)[:1].requires_grad_()
    layer(inputs)[0, 2].backward()
    estimate = np.concatenate([inputs.grad[0], layer.weights.grad])
    exact = np.concatenate([expected.by_inputs[0, 2], expected.by_weights[0, 2]])
    signs = np.sign(estimate)
    assert len(set(signs)) == 2
    np.testing.assert_allclose(estimate, signs * (signs @ exact), rtol=0, atol=1e-6)


def test_spsa_of_one_angle_is_a_central_difference():
    expected = oracle("cosine")
    layer = problem("cosine").layer(expected.weights, gradient=SPSA(step=0.3, samples=3))
    inputs = features(expected, requires_grad=True)
    layer(inputs).sum().backward()
    np.testing.assert_allclose(inputs.grad, -np.sin(expected.inputs) * math.sin(0.3) / 0.3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("name", ["only_inputs", "library_pauli_feature_map"])
def test_spsa_is_right_in_the_mean(name, samples):
    """Every row draws its own signs, so a batch of equal rows is a sample of estimates.

    The variance of a component is the sum of the other directions' derivatives squared, over the samples.
    """
    draws = 4000
    checked, expected = problem(name), oracle(name)
    layer = checked.layer(expected.weights, gradient=SPSA(step=1e-4, samples=samples), seed=1)
    inputs = features(expected)[:1].repeat(draws, 1).requires_grad_()
    layer.requires_grad_(False)
    layer(inputs)[:, 2].sum().backward()
    estimates, exact = inputs.grad.numpy(), expected.by_inputs[0, 2]
    z_scores = (estimates.mean(axis=0) - exact) / (estimates.std(axis=0) / math.sqrt(draws))
    assert np.abs(z_scores).max() < 4
    if name == "only_inputs":
        variances = ((exact**2).sum() - exact**2) / samples
        np.testing.assert_allclose(estimates.var(axis=0), variances, rtol=0.15)


def test_spsa_draws_anew_at_every_call_and_repeats_with_its_seed():
    def gradients() -> list[list[float]]:
        layer = problem("only_weights").layer(oracle("only_weights").weights, gradient="spsa", seed=5)
        found = []
        for _ in range(6):
            layer.zero_grad()
            layer().sum().backward()
            found.append(layer.weights.grad.tolist())
        return found

    first = gradients()
    assert len({tuple(gradient) for gradient in first}) > 1
    assert gradients() == first


# --- second order -----------------------------------------------------------------------------------------------------

PRODUCT = "expression_input_times_weight_plus_bias"
SECOND_ORDER = ["entangled_pair", "shared_parameters", PRODUCT, "weight_groups", "gate_u"]


def as_function(checked: Problem, **options) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The layer as a function of inputs of shape (N, I) and of all weights, of shape (W,)."""
    layer = checked.layer(np.zeros(len(checked.flat_weights)), **options)
    sizes = [len(group) for group in checked.groups.values()]
    alone = isinstance(layer.weights, torch.nn.Parameter)
    names = ["weights"] if alone else [f"weights.{name}" for name in checked.groups]

    def function(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, weights.split(sizes), strict=True))
        return torch.func.functional_call(layer, parameters, (inputs,))

    return function


@pytest.mark.parametrize("gradient", ["adjoint", "parameter_shift"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_gradcheck_to_second_order(name, gradient):
    inputs, weights = (torch.tensor(array, requires_grad=True) for array in point(problem(name)))
    function = as_function(problem(name), gradient=gradient)
    assert torch.autograd.gradcheck(function, (inputs, weights))
    assert torch.autograd.gradgradcheck(function, (inputs, weights))


@cache
def hessian_by_qiskit(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A point (P,), weights of the outputs (M,), and the second derivatives (P, P) of the weighted sum at the point."""
    checked = problem(name)
    inputs, weights = point(checked, rows=1)
    upstream = np.random.default_rng(2).normal(size=len(checked.observables))
    joined, split = np.concatenate([inputs[0], weights]), len(checked.inputs)

    def by_qiskit(at: np.ndarray) -> np.ndarray:
        return statevector_values(checked, at[None, :split], at[split:])[0] @ upstream

    # Coarse steps: what the inner differences leave of rounding, the outer ones divide by their step.
    return joined, upstream, derivatives(lambda at: derivatives(by_qiskit, at, step=5e-3), joined, step=5e-3)


@pytest.mark.parametrize("gradient", ["adjoint", "parameter_shift", ParameterShift(0.4)])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_hessian_agrees_with_qiskit(name, gradient):
    checked = problem(name)
    joined, upstream, expected = hessian_by_qiskit(name)
    split = len(checked.inputs)
    function = as_function(checked, gradient=gradient)
    hessian = torch.autograd.functional.hessian(
        lambda at: function(at[None, :split], at[split:])[0] @ torch.tensor(upstream), torch.tensor(joined)
    )
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("gradient", ["adjoint", "parameter_shift"])
def test_higher_orders(gradient):
    """d^n/dx^n cos x, to the fourth."""
    layer = problem("cosine").layer(np.zeros(0), gradient=gradient)
    x = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    value = layer(x).sum()
    for expected in (-math.sin(0.7), -math.cos(0.7), math.sin(0.7), math.cos(0.7)):
        (derivative,) = torch.autograd.grad(value, x, create_graph=True)
        assert derivative.item() == pytest.approx(expected, abs=1e-10)
        value = derivative.sum()


# --- cost -------------------------------------------------------------------------------------------------------------

COSTS = {
    # Circuits a row for the gradients of one input and one weight, a gate each: both, inputs alone, weights alone.
    "adjoint": ("adjoint", (0, 0, 0)),
    "parameter_shift": ("parameter_shift", (4, 2, 2)),
    "central": ("finite_difference", (4, 2, 2)),
    "forward": (FiniteDifference(scheme="forward"), (3, 2, 2)),
    "spsa": ("spsa", (2, 2, 2)),
    "spsa_samples": (SPSA(samples=3), (6, 6, 6)),
}
ASKED = {"both": (True, True, 0), "inputs": (True, False, 1), "weights": (False, True, 2), "none": (False, False, None)}


def trained(layer: QuantumLayer, inputs: torch.Tensor) -> None:
    """A training step, if there is something to train."""
    values = layer(inputs)
    if values.requires_grad:
        values.sum().backward()


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("rule", COSTS)
def test_only_what_is_asked_for_is_computed(counting, rule, asked):
    gradient, circuits = COSTS[rule]
    want_inputs, want_weights, which = ASKED[asked]
    backend, expected = counting(), oracle("entangled_pair")
    layer = problem("entangled_pair").layer(expected.weights, gradient=gradient, backend=backend)
    layer.requires_grad_(want_weights)
    inputs = torch.zeros(5, 1, dtype=torch.float64, requires_grad=want_inputs)
    quote = layer.quote(5, inputs_require_grad=want_inputs)
    trained(layer, inputs)
    backward = 0 if which is None else 5 * circuits[which]
    assert [rows for rows, _ in backend.calls] == ([5, backward] if backward else [5])
    assert layer.total_circuits == 5 + backward
    assert (quote.calls, quote.circuits, quote.shots) == (len(backend.calls), layer.total_circuits, 0)
    assert (inputs.grad is not None, layer.weights.grad is not None) == (want_inputs, want_weights)


def test_nothing_is_differentiated_without_grad(counting):
    layer = problem("entangled_pair").layer(oracle("entangled_pair").weights, backend=counting("aer"))
    with torch.no_grad():
        layer(torch.zeros(5, 1, dtype=torch.float64, requires_grad=True))
    layer(torch.zeros(5, 1, dtype=torch.float64))
    assert layer.total_circuits == 10
    assert layer.backend.calls == [(5, None), (5, None)]


@pytest.mark.parametrize(
    ("frozen", "want_inputs", "angles"),
    [
        # The angles are x0; a0 + x1; twice a1 * b0 (a controlled rotation is two); b1; b2 * x0.
        ((), True, 6),
        ((), False, 5),
        (("first",), False, 4),
        (("second",), False, 3),
        (("first", "second"), True, 3),
        (("first", "second"), False, 0),
    ],
)
def test_frozen_groups_cost_nothing(counting, frozen, want_inputs, angles):
    expected = oracle("weight_groups")
    layer = problem("weight_groups").layer(expected.weights, gradient="parameter_shift", backend=counting())
    for name in frozen:
        layer.weights[name].requires_grad_(False)
    inputs = features(expected, requires_grad=want_inputs)
    rows = len(expected.inputs)
    quote = layer.quote(rows, inputs_require_grad=want_inputs)
    trained(layer, inputs)
    assert [called for called, _ in layer.backend.calls] == ([rows, rows * 2 * angles] if angles else [rows])
    assert quote.circuits == layer.total_circuits == layer.last_run.circuits * (1 + 2 * angles)
    by_weights = dict(zip(("second", "first"), np.split(expected.by_weights.sum(axis=(0, 1)), [3]), strict=True))
    for name, weights in layer.weights.items():
        if name in frozen:
            assert weights.grad is None
        else:
            np.testing.assert_allclose(weights.grad, by_weights[name], rtol=0, atol=EXACT)


SAMPLER_TOO = {**BACKENDS, "sampler": lambda: StatevectorSampler(default_shots=20)}
# Of backends, rules and shots each meets each of the others.
CALLED = [
    pytest.param(backend, gradient, (None, 50)[(i + j) % 2], id=f"{name}-{gradient}")
    for i, (name, backend) in enumerate(SAMPLER_TOO.items())
    for j, gradient in enumerate(["parameter_shift", "finite_difference", "spsa"])
]


@pytest.mark.parametrize(("backend", "gradient", "shots"), CALLED)
def test_one_call_forward_and_one_backward_as_quoted(counting, backend, gradient, shots):
    """Whatever the batch, the observables and the number of weights; with the same shots."""
    expected = oracle("shared_parameters")
    options = {"gradient": gradient, "shots": shots}
    layer = problem("shared_parameters").layer(expected.weights, backend=counting(backend()), **options)
    inputs = torch.zeros(1, 2, 1, dtype=torch.float64, requires_grad=True)
    quote = layer.quote(2)
    layer(inputs).sum().backward()
    assert quote.calls == len(layer.backend.calls) == 2
    assert quote.circuits == layer.total_circuits
    assert quote.shots == layer.total_shots == layer.total_circuits * (layer.backend.resolve_shots(shots) or 0)
    assert len({used for _, used in layer.backend.calls}) == 1


def test_angles_of_one_weight_move_together_in_finite_differences():
    """Ten gates of one weight, at several speeds, cost two circuits; parameter shift needs two a gate."""
    t = Parameter("t")
    circuit = QuantumCircuit(2)
    for angle in (t, 2 * t, -t, t + 1, t / 2):
        circuit.ry(angle, 0)
        circuit.rx(angle, 1)
        circuit.cx(0, 1)
    tied = Problem(circuit, (z(2, 0), z(2, 0, 1)), weights=(t,))
    exact = derivatives(lambda weights: statevector_values(tied, np.zeros((1, 0)), weights)[0], np.array([0.4]))
    for rule, points in (("finite_difference", 2), (FiniteDifference(scheme="forward"), 2), ("parameter_shift", 20)):
        layer = tied.layer(np.array([0.4]), gradient=rule)
        layer()[1].backward()
        assert layer.total_circuits == 1 + points
        assert layer.weights.grad.item() == pytest.approx(exact[1, 0], abs=DIFFERENCES)


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [100, 1000, 100_000])
@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        # Truncation of a sinusoid squared, and variance of the two values over the step squared.
        ("central", lambda h, shots: h**4 / 36 + 1 / (2 * shots * h**2)),
        ("forward", lambda h, shots: h**2 / 4 + 2 / (shots * h**2)),
    ],
)
def test_default_step_with_shots_has_the_least_error(scheme, error, shots):
    steps = np.geomspace(0.01, 1.5, 20_001)
    best = steps[np.argmin(error(steps, shots))]
    assert FiniteDifference(scheme=scheme).default_step(shots) == pytest.approx(best, rel=1e-3)


def test_default_steps():
    central, forward = FiniteDifference(), FiniteDifference(scheme="forward")
    assert central.default_step(100) == pytest.approx((9 / 100) ** (1 / 6))
    assert forward.default_step(100) == pytest.approx((8 / 100) ** (1 / 4))
    assert central.default_step(1) == forward.default_step(1) == 1.0
    epsilon = np.finfo(float).eps
    assert central.default_step(None) == pytest.approx(10 * epsilon ** (1 / 3))
    assert forward.default_step(None) == pytest.approx(10 * epsilon ** (1 / 2))


@pytest.mark.parametrize(
    ("gradient", "step"),
    [
        (FiniteDifference(), (9 / 100) ** (1 / 6)),
        (FiniteDifference(scheme="forward"), (8 / 100) ** (1 / 4)),
        (SPSA(), (9 / 100) ** (1 / 6) / math.sqrt(2)),
        (FiniteDifference(step=0.1), 0.1),
        (SPSA(step=0.1), 0.1),
    ],
)
def test_the_step_of_a_layer_follows_from_its_shots(gradient, step):
    layer = problem("entangled_pair").layer(np.array([0.0]), gradient=gradient, seed=1)
    table = layer.gradient.stencil(layer.program, (0, 1), rows=1, shots=100, seeds=SeedStream(0))
    assert np.abs(table.shifts).max() == pytest.approx(step)


@pytest.mark.parametrize("bad", [0.0, math.pi, -2 * math.pi, math.nan, math.inf])
def test_a_shift_without_a_rule_is_refused(bad):
    with pytest.raises(ValueError, match=r"shift: got .*multiple of pi"):
        ParameterShift(bad)


@pytest.mark.parametrize("rule", [FiniteDifference, SPSA])
@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf])
def test_a_step_that_is_no_step_is_refused(rule, bad):
    with pytest.raises(ValueError, match=r"step: got .*positive"):
        rule(step=bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_samples_that_are_no_number_are_refused(bad):
    with pytest.raises(ValueError, match=r"samples: got .*positive integer"):
        SPSA(samples=bad)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="scheme: got 'backward', expected 'central' or 'forward'"):
        FiniteDifference(scheme="backward")


@pytest.mark.parametrize(("shots", "step"), [(None, 1e-3), (10_000, 0.3)])
def test_second_order_by_spsa_is_right_in_the_mean(shots, step):
    """All shifted points of a row must move along the same signs, or their differences are noise of size 1 / step."""
    chosen = problem("only_weights")
    expected = oracle("only_weights")
    exact = chosen.layer(expected.weights, gradient="adjoint")
    noisy = chosen.layer(expected.weights, gradient=SPSA(samples=4, step=step), shots=shots, seed=5)

    def hessian(layer: QuantumLayer) -> np.ndarray:
        first = torch.autograd.grad(layer().sum(), layer.weights, create_graph=True)[0]
        return np.stack([torch.autograd.grad(g, layer.weights, retain_graph=True)[0].numpy() for g in first])

    draws = np.stack([hessian(noisy) for _ in range(100)])
    errors = draws.std(axis=0, ddof=1) / math.sqrt(len(draws))
    bias = step**2  # the step's, of second order, times derivatives of order one
    assert np.all(np.abs(draws.mean(axis=0) - hessian(exact)) < 5 * errors + 4 * bias)
    assert draws.std(axis=0).max() < 10
