"""Shot noise is exactly right: its mean, its variance, its independence, and what is reported of it.

Every random check has a fixed seed, so it gives the same verdict at every run. ``ALPHA`` is the probability with which a
check would fail for correct code if its seed were drawn afresh; the tests at the end show that wrong code fails.
"""

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import BackendSamplerV2, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from scipy import stats

from qiskit_torch_bridge import SPSA, Estimate, FiniteDifference, Program, QuantumLayer, StatevectorBackend, evaluate

ALPHA = 1e-4
SHOTS = 500

X = ParameterVector("x", 3)
# Each output as the parts that are measured apart: one qubit-wise commuting group in Z, one in X.
OUTPUTS = [["ZI"], ["IZ"], [SparsePauliOp(["ZI", "IZ"])], [SparsePauliOp(["ZI", "IZ"], [1, -1])], ["XX"], ["ZZ", "XI"]]
OBSERVABLES = [sum((SparsePauliOp(part) for part in parts[1:]), SparsePauliOp(parts[0])) for parts in OUTPUTS]

# Aer's threads wait for each other on circuits this small when the machine is busy.
ONE_THREAD = {"max_parallel_threads": 1}
BACKENDS: dict[str, Callable[[], Any]] = {
    "statevector": StatevectorBackend,
    "aer": lambda: AerSimulator(**ONE_THREAD),
    "StatevectorSampler": StatevectorSampler,
    "StatevectorSampler(seed)": lambda: StatevectorSampler(seed=5),
    "Aer SamplerV2": lambda: AerSampler(options={"backend_options": ONE_THREAD}),
    "Aer SamplerV2(seed)": lambda: AerSampler(seed=5, options={"backend_options": ONE_THREAD}),
    "BackendSamplerV2(seed)": lambda: BackendSamplerV2(
        backend=AerSimulator(**ONE_THREAD), options={"seed_simulator": 5}
    ),
}
every_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS.keys())
# Where a primitive's own seed makes no difference to what is tested, only those that have one are tried; one of them
# each time, since primitives draw for themselves.
QUICK = ("statevector", "aer", "StatevectorSampler(seed)")


def kinds(*names: str, quick: Sequence[str] = QUICK) -> pytest.MarkDecorator:
    cases = [pytest.param(BACKENDS[name], id=name, marks=[pytest.mark.slow] * (name not in quick)) for name in names]
    return pytest.mark.parametrize("make", cases)


every_kind = kinds(*(name for name in BACKENDS if f"{name}(seed)" not in BACKENDS))
# Gradients and errors are computed from a sampler's values by the same code for every sampler.
with_one_sampler = kinds(*QUICK, quick=QUICK[:2])


@every_kind
def test_variances_have_no_bias(make):
    """Of two shots of a fair coin: divided by two in place of one, they would be half as large."""
    x = Parameter("x")
    coin = QuantumCircuit(1)
    coin.ry(x, 0)
    layer = QuantumLayer(coin, inputs=[x], backend=make(), shots=2, seed=3)
    layer(torch.full((400, 1), torch.pi / 2, dtype=torch.float64))
    variances = layer.last_run.standard_errors**2
    assert set(variances.round(9).ravel()) == {0.0, 1.0}
    assert abs(variances.mean() - 0.5) < stats.norm.isf(ALPHA / 2) * 0.5 / 20


def circuit() -> QuantumCircuit:
    """Each parameter in one gate, so that each gradient is one difference of two values."""
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(X[1], 1)
    qc.cx(0, 1)
    qc.ry(0.4, 0)
    qc.rzz(X[2], 0, 1)
    qc.ry(0.9, 1)
    return qc


def points(rows: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-np.pi, np.pi, (rows, 3))


def exact(parts: Sequence[Any], x: np.ndarray) -> tuple[float, float]:
    """The mean of one output, and the variance of one shot of it: parts that are measured apart are independent."""
    state = Statevector(circuit().assign_parameters(dict(zip(X, x.tolist(), strict=True))))
    operators = [SparsePauliOp(part) for part in parts]
    means = [state.expectation_value(o).real for o in operators]
    squares = [state.expectation_value(o @ o).real for o in operators]
    return sum(means), sum(s - m**2 for m, s in zip(means, squares, strict=True))


@cache
def exact_values(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of shape (N, 3), and their means and variances of one shot, shape (N, M)."""
    x = points(rows)
    moments = np.array([[exact(parts, row) for parts in OUTPUTS] for row in x])
    return x, moments[..., 0], np.maximum(moments[..., 1], 0.0)


def exact_gradients(x: np.ndarray, parts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Parameter-shift gradients of one output, and their variances for one shot a circuit, shape (N, 3)."""
    shifts = np.pi / 2 * np.eye(3)
    pairs = np.array([[[exact(parts, row + s), exact(parts, row - s)] for s in shifts] for row in x])
    return (pairs[:, :, 0, 0] - pairs[:, :, 1, 0]) / 2, pairs[..., 1].sum(axis=2) / 4


@cache
def exact_gradients_at_points(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Those of ``GRADIENT_PARTS``."""
    return exact_gradients(points(rows), GRADIENT_PARTS)


def tail(statistic: float, distribution: Any) -> float:
    """The two-sided probability of something as extreme."""
    return 2 * min(distribution.cdf(statistic), distribution.sf(statistic))


def assert_standard_moments(z: np.ndarray) -> None:
    z = np.ravel(z)
    assert len(z) >= 300, "too few to see anything"
    assert tail(z.mean() * len(z) ** 0.5, stats.norm) > ALPHA, f"mean {z.mean():.3f}"
    assert tail((z**2).sum(), stats.chi2(len(z))) > ALPHA, f"variance {z.var():.3f}"


def assert_standard_normal(z: np.ndarray) -> None:
    """The shape too; that needs values from several circuits, because those of one lie on a grid."""
    assert_standard_moments(z)
    assert stats.kstest(np.ravel(z), "norm").pvalue > ALPHA, "not normal"


def assert_uncorrelated(a: np.ndarray, b: np.ndarray) -> None:
    a, b = np.ravel(a), np.ravel(b)
    r = np.corrcoef(a, b)[0, 1]
    assert tail(r * len(a) ** 0.5, stats.norm) > ALPHA, f"correlation {r:.3f}"


PROGRAM = Program.compile(circuit(), inputs=X, observables=OBSERVABLES)
GRADIENT_PARTS = [SparsePauliOp(["ZI", "IZ"], [1.0, 0.5]), "XX"]
GRADIENT_PROGRAM = Program.compile(circuit(), inputs=X, observables=[SparsePauliOp(["ZI", "IZ", "XX"], [1, 0.5, 1])])


def values_over_seeds(backend: Any, x: np.ndarray, seeds: int, shots: int = SHOTS) -> np.ndarray:
    """Shape (seeds, N, M)."""
    rows = torch.from_numpy(x)
    return np.stack([evaluate(PROGRAM, rows, backend=backend, shots=shots, seed=s).numpy() for s in range(seeds)])


def gradients_over_seeds(backend: Any, x: np.ndarray, seeds: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values of shape (seeds, N), and gradients of shape (seeds, N, 3)."""
    values, gradients = [], []
    for s in range(seeds):
        rows = torch.from_numpy(x).requires_grad_()
        outputs = evaluate(GRADIENT_PROGRAM, rows, backend=backend, seed=s, **{"shots": SHOTS} | options)
        gradients.append(torch.autograd.grad(outputs.sum(), rows)[0].numpy())
        values.append(outputs.detach().numpy()[:, 0])
    return np.stack(values), np.stack(gradients)


# ------------------------------------------------------------------------------------------------- z-scores


@every_kind
def test_values_are_standard_normal(make):
    """About the exact value, with the variance of the terms that are measured together, covariances included."""
    x, means, variances = exact_values(30)
    z = (values_over_seeds(make(), x, seeds=10) - means) / np.sqrt(variances / SHOTS)
    # Outputs that share their shots are correlated; the checks are for independent numbers, so one output at a time.
    for m in range(len(OUTPUTS)):
        assert_standard_normal(z[..., m])


@with_one_sampler
def test_gradients_are_standard_normal(make):
    x = points(10)
    means, variances = exact_gradients_at_points(10)
    values, gradients = gradients_over_seeds(make(), x, seeds=10)
    assert_standard_normal((gradients - means) / np.sqrt(variances / SHOTS))
    # Values and gradients come from shots of their own.
    expected = np.array([exact(GRADIENT_PARTS, row) for row in x])
    errors = np.broadcast_to((values - expected[:, 0])[..., None], gradients.shape)
    assert_uncorrelated(errors[..., 0], (gradients - means)[..., 0])


@pytest.mark.parametrize("name", ["statevector", "aer"])
def test_variance_of_one_pauli_is_one_minus_its_square(name):
    """Z after ry(t) has the mean cos t and the variance sin(t)**2 / shots; its gradient has cos(t)**2 / (2 shots)."""
    t = Parameter("t")
    qc = QuantumCircuit(1)
    qc.ry(t, 0)
    angle, rows = 0.7, 4000 if name == "statevector" else 1000
    layer = QuantumLayer(qc, inputs=[t], backend=BACKENDS[name](), shots=200, gradient="parameter_shift", seed=3)
    features = torch.full((rows, 1), angle, dtype=torch.float64, requires_grad=True)
    values = layer(features)
    (gradient,) = torch.autograd.grad(values.sum(), features)
    assert_standard_moments((values.detach().numpy() - np.cos(angle)) / (np.sin(angle) / 200**0.5))
    assert_standard_moments((gradient.numpy() + np.sin(angle)) / (np.cos(angle) / (2 * 200) ** 0.5))


# ------------------------------------------------------------------------------------------------- covariances


def bell_layer(make: Callable[[], Any], rotation: float = 0.0, **options: Any) -> QuantumLayer:
    qc = QuantumCircuit(2)
    qc.h(0)
    qc.cx(0, 1)
    qc.ry(rotation, 0)
    observables = [SparsePauliOp(["ZI", "IZ"]), SparsePauliOp(["ZI", "IZ"], [1, -1]), "ZI"]
    return QuantumLayer(qc, observables=observables, backend=make(), **{"shots": 100, "seed": 2} | options)


@every_kind
def test_terms_measured_together_are_correlated(make):
    """On a Bell state both qubits agree in every shot: ZI + IZ has the variance 4 / shots, not 2; ZI - IZ has none."""
    layer = bell_layer(make)
    values = layer(torch.zeros(300, 0, dtype=torch.float64)).detach().numpy()
    errors = layer.last_run.standard_errors
    np.testing.assert_allclose(errors[:, 0], 2 * errors[:, 2], rtol=1e-6)
    assert np.all(errors[:, 1] == 0.0)
    assert np.array_equal(values[:, 0], 2 * values[:, 2])
    assert np.all(values[:, 1] == 0.0)
    assert tail((values[:, 0] ** 2).sum() / (4 / 100), stats.chi2(300)) > ALPHA


@every_kind
def test_covariance_of_nearly_equal_bits(make):
    """After ry(r) on one qubit of a Bell state <ZZ> = cos r: Var(ZI +- IZ) = (2 +- 2 cos r) / shots."""
    layer = bell_layer(make, rotation=0.5)
    values = layer(torch.zeros(300, 0, dtype=torch.float64)).detach().numpy()
    for output, sign in ((0, 1), (1, -1)):
        variance = (2 + sign * 2 * np.cos(0.5)) / 100
        assert tail((values[:, output] ** 2).sum() / variance, stats.chi2(300)) > ALPHA


# ------------------------------------------------------------------------------------------------- standard errors


@with_one_sampler
def test_reported_standard_errors_are_the_spread(make):
    x, means, variances = exact_values(40)
    layer = QuantumLayer(circuit(), inputs=X, observables=OBSERVABLES, backend=make(), shots=SHOTS, seed=4)
    reported, z = [], []
    for _ in range(10):
        values = layer(torch.from_numpy(x)).numpy()
        run = layer.last_run
        assert np.array_equal(run.values, values)
        reported.append(run.standard_errors**2)
        z.append(np.where(run.standard_errors > 0.01, (values - means) / np.maximum(run.standard_errors, 0.01), np.nan))
    # Unbiased; a single one is as precise as 10 x 500 shots make it (near an eigenstate that is not much).
    np.testing.assert_allclose(np.mean(reported, axis=0), variances / SHOTS, rtol=0.35, atol=1e-5)
    np.testing.assert_allclose(np.mean(reported, axis=(0, 1)), variances.mean(axis=0) / SHOTS, rtol=0.02)
    for m in range(len(OUTPUTS)):
        mine = np.array(z)[..., m]
        assert_standard_normal(mine[~np.isnan(mine)])


@every_backend
def test_one_shot_says_nothing_about_its_error(make):
    layer = QuantumLayer(circuit(), inputs=X, observables=["ZI"], backend=make(), shots=1, seed=4)
    values = layer(torch.from_numpy(points(5)))
    assert set(values.abs().flatten().tolist()) == {1.0}
    assert np.isnan(layer.last_run.standard_errors).all()


# ------------------------------------------------------------------------------------------------- multinomial counts


@cache
def counts_of(make: Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the four outcomes in 500 shots, from ten seeds and thirty equal rows each, and their probabilities."""
    x = np.array([0.9, 1.9, 0.5])
    program = Program.compile(circuit(), inputs=X, probabilities=[0, 1])
    rows = torch.from_numpy(np.tile(x, (30, 1)))
    backend = make()
    shares = np.concatenate([evaluate(program, rows, backend=backend, shots=500, seed=s).numpy() for s in range(10)])
    np.testing.assert_allclose(500 * shares, np.round(500 * shares), atol=1e-9)
    state = Statevector(circuit().assign_parameters(dict(zip(X, x.tolist(), strict=True))))
    return np.round(500 * shares), state.probabilities([0, 1])


@every_kind
def test_counts_are_multinomial(make):
    """Pearson's statistic of each row's counts against the exact probabilities follows chi-square with 3 degrees."""
    counts, probabilities = counts_of(make)
    assert 500 * probabilities.min() > 20, "chi-square needs many counts"
    assert np.all(counts.sum(axis=1) == 500)
    pearson = ((counts - 500 * probabilities) ** 2 / (500 * probabilities)).sum(axis=1)
    assert stats.kstest(pearson, stats.chi2(3).cdf).pvalue > ALPHA
    assert tail(pearson.sum(), stats.chi2(3 * 300)) > ALPHA


@pytest.mark.parametrize("name", ["statevector", *(name for name in BACKENDS if "(seed)" in name)])
def test_counts_agree_with_aers(name):
    """A two-sample test that needs no exact probability."""
    mine, _ = counts_of(BACKENDS[name])
    aers, _ = counts_of(BACKENDS["aer"])
    assert stats.chi2_contingency(np.stack([mine.sum(axis=0), aers.sum(axis=0)])).pvalue > ALPHA
    for outcome in range(4):
        assert stats.ks_2samp(mine[:, outcome], aers[:, outcome]).pvalue > ALPHA


# ------------------------------------------------------------------------------------------------- independence


@every_backend
def test_successive_calls_draw_fresh_shots(make):
    x, means, _ = exact_values(150)
    layer = QuantumLayer(circuit(), inputs=X, observables=OBSERVABLES, backend=make(), shots=100, seed=6)
    first, second = (layer(torch.from_numpy(x)).numpy() - means for _ in range(2))
    for m in range(len(OUTPUTS)):
        assert_uncorrelated(first[:, m], second[:, m])


@every_kind
def test_identical_rows_draw_their_own_shots(make):
    x, means, variances = exact_values(1)
    x = np.repeat(x, 200, axis=0)
    errors = (values_over_seeds(make(), x, seeds=3, shots=100) - means) / np.sqrt(variances / 100)
    for m in (0, 1, 4):
        assert_standard_moments(errors[..., m])
        assert_uncorrelated(errors[:, 1:, m], errors[:, :-1, m])


@every_backend
def test_rows_of_a_circuit_without_inputs_draw_their_own_shots(make):
    """Nothing is bound, so nothing tells the rows apart."""
    layer = QuantumLayer(QuantumCircuit(1), observables=["X"], backend=make(), shots=100, seed=2)
    values = layer(torch.zeros(400, 0, dtype=torch.float64)).numpy()
    assert_standard_moments(values * 10)


@every_backend
def test_neighbouring_seeds_share_nothing(make):
    x, means, _ = exact_values(150)
    program, rows, backend = Program.compile(circuit(), inputs=X, observables=["ZI"]), torch.from_numpy(x), make()
    first, second = (evaluate(program, rows, backend=backend, shots=100, seed=s).numpy()[:, 0] for s in range(2))
    assert_uncorrelated(first - means[:, 0], second - means[:, 0])


# ------------------------------------------------------------------------------------------------- repeatable


def training_run(layer: QuantumLayer, steps: int = 2) -> list[torch.Tensor]:
    """Values, gradients and weights of a few steps of training with shots."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    record = []
    for _ in range(steps):
        optimizer.zero_grad()
        values = layer()
        values.square().sum().backward()
        record += [values.detach().clone(), layer.weights.grad.clone()]
        optimizer.step()
        record.append(layer.weights.detach().clone())
    return record


def trained_layer(make: Callable[[], Any], **options: Any) -> QuantumLayer:
    options = {"shots": 50, "seed": 11} | options
    return QuantumLayer(circuit(), weights=X, observables=OBSERVABLES, backend=make(), **options)


def assert_equal(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def with_rules(*rules: str) -> pytest.MarkDecorator:
    """Every backend with the first rule, and two of them with the others; all else is slow: seeds know no rules."""
    cases = [
        pytest.param(
            make,
            rule,
            id=f"{name}-{rule}",
            marks=[pytest.mark.slow] * (number > 0 and name not in ("statevector", "aer")),
        )
        for name, make in BACKENDS.items()
        for number, rule in enumerate(rules)
    ]
    return pytest.mark.parametrize(("make", "gradient"), cases)


@with_rules("parameter_shift", "finite_difference", "spsa")
def test_one_seed_repeats_a_training_run(make, gradient):
    first = training_run(trained_layer(make, gradient=gradient))
    assert_equal(first, training_run(trained_layer(make, gradient=gradient)))
    other = training_run(trained_layer(make, gradient=gradient, seed=12, init=first[2]))
    assert not torch.equal(first[0], other[0])


def test_torchs_seed_repeats_a_run_without_a_seed():
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(training_run(trained_layer(StatevectorBackend, seed=None)))
    assert_equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0], runs[2][0])


@with_rules("parameter_shift", "spsa")
def test_a_saved_state_continues_to_the_last_bit(make, gradient):
    straight = training_run(trained_layer(make, gradient=gradient))
    layer = trained_layer(make, gradient=gradient)
    training_run(layer)
    state, weights = layer.get_rng_state(), copy.deepcopy(layer.state_dict())
    expected = training_run(layer)
    resumed = trained_layer(make, gradient=gradient, seed=99)
    resumed.load_state_dict(weights)
    resumed.set_rng_state(pickle.loads(pickle.dumps(state)))
    assert_equal(expected, training_run(resumed))
    assert_equal(straight, training_run(trained_layer(make, gradient=gradient)))


def test_exact_evaluations_do_not_depend_on_the_stream():
    first, second = (trained_layer(StatevectorBackend, shots=None, seed=s, init="zeros")() for s in (1, 2))
    assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------------- accounting


@every_backend
def test_values_and_gradients_spend_the_same_shots_a_circuit(make):
    layer = trained_layer(make, shots=77)
    layer().sum().backward()
    groups = len(layer.program.readout.groups)
    assert groups == 2
    assert layer.total_circuits == groups * (1 + 2 * 3)
    assert layer.total_shots == 77 * layer.total_circuits
    assert (layer.last_run.circuits, layer.last_run.shots) == (groups, 77 * groups)
    assert layer.quote(1).shots == layer.total_shots


def test_shots_for_one_call_hold_for_its_gradient(counting):
    layer = trained_layer(counting, shots=50)
    layer(shots=7).sum().backward()
    layer().sum().backward()
    assert [shots for _, shots in layer.backend.calls] == [7, 7, 50, 50]
    assert layer.shots == 50
    assert layer.last_run.shots == 2 * 50


def test_shots_can_be_changed_between_calls(counting):
    layer = trained_layer(counting, shots=50)
    before = layer()
    layer.shots = 9
    after = layer()
    layer.shots = None
    exact_values = layer()
    (before.sum() + after.sum() + exact_values.sum()).backward()
    # Each backward spends what its forward did; without shots there are no gradient circuits (adjoint).
    assert sorted(layer.backend.calls, key=str) == sorted([(1, 50), (1, 9), (1, None), (6, 50), (6, 9)], key=str)
    assert layer.gradient.name == "adjoint"


def test_shots_change_the_spread():
    x, _, variances = exact_values(1)
    x = np.repeat(x, 2000, axis=0)
    layer = QuantumLayer(circuit(), inputs=X, observables=["ZI"], shots=10, seed=1)
    for shots in (10, 40, 640):
        spread = layer(torch.from_numpy(x), shots=shots).var().item()
        assert tail(spread * 1999 / (variances[0, 0] / shots), stats.chi2(1999)) > ALPHA


# ------------------------------------------------------------------------------------------------- biased gradient rules


def cosine_layer(rule: Any, shots: int | None, repeats: int = 1) -> QuantumLayer:
    """f(x) = cos(repeats * x)."""
    x = Parameter("x")
    qc = QuantumCircuit(1)
    for _ in range(repeats):
        qc.ry(x, 0)
    return QuantumLayer(qc, inputs=[x], shots=shots, gradient=rule, seed=5)


def gradients_of(layer: QuantumLayer, x: np.ndarray) -> np.ndarray:
    rows = torch.from_numpy(x[:, None]).requires_grad_()
    return torch.autograd.grad(layer(rows).sum(), rows)[0].numpy()[:, 0]


@pytest.mark.parametrize("shots", [100, 1000, 10_000])
@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_bias_and_variance_of_finite_differences(scheme, shots):
    """For f = cos: exactly as the step says, and within the bounds that the docstring minimises."""
    rule = FiniteDifference(scheme=scheme)
    h = rule.default_step(shots)
    x = np.random.default_rng(2).uniform(-np.pi, np.pi, 4000)
    lower = -h if scheme == "central" else 0.0
    width = h - lower
    means = (np.cos(x + h) - np.cos(x + lower)) / width
    variances = (np.sin(x + h) ** 2 + np.sin(x + lower) ** 2) / width**2 / shots
    assert_standard_normal((gradients_of(cosine_layer(rule, shots), x) - means) / np.sqrt(variances))
    bias = np.abs(means + np.sin(x)).max()
    if scheme == "central":
        assert bias <= h**2 / 6
        assert variances.max() <= 1 / (2 * shots * h**2) * (1 + 1e-9)
    else:
        assert bias <= h / 2
        assert variances.max() <= 2 / (shots * h**2) * (1 + 1e-9)


GRID = (0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.2, 3.0)


@pytest.mark.parametrize("shots", [100, 1000, 10_000])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_default_step_is_near_the_optimum(scheme, repeats, shots):
    """The mean squared error over angles and shots is within 20 % of the best step's on a grid."""
    default = FiniteDifference(scheme=scheme).default_step(shots) / repeats
    x = np.random.default_rng(2).uniform(-np.pi, np.pi, 5000)
    errors = {}
    for factor in GRID:
        rule = FiniteDifference(scheme=scheme, step=factor * default)
        error = gradients_of(cosine_layer(rule, shots, repeats), x) + repeats * np.sin(repeats * x)
        errors[factor] = np.mean(error**2)
    assert errors[1.0] <= 1.2 * min(errors.values())
    assert errors[0.25] > 2 * errors[1.0]
    assert errors[3.0] > 2 * errors[1.0], "the grid reaches past the optimum on both sides"
    by_default = gradients_of(cosine_layer(FiniteDifference(scheme=scheme), shots, repeats), x)
    error = np.mean((by_default + repeats * np.sin(repeats * x)) ** 2)
    assert error == pytest.approx(errors[1.0], rel=0.1), "angles of one parameter share the step"


@pytest.mark.parametrize("shots", [100, 1000])
@pytest.mark.parametrize("rule", ["parameter_shift", "finite_difference", FiniteDifference(scheme="forward"), "spsa"])
def test_gradients_with_shots_stay_of_order_one(rule, shots):
    """Steps made for exact values (1e-6) give errors of 1e3 to 1e5 here."""
    x = points(50)
    _, gradients = gradients_over_seeds(StatevectorBackend(), x, seeds=2, gradient=rule, shots=shots)
    means, _ = exact_gradients_at_points(50)
    assert np.abs(gradients).max() < 12
    assert np.sqrt(np.mean((gradients - means) ** 2)) < (0.6 if rule != "spsa" else 2.5)


def spsa_moments(x: np.ndarray, step: float, shots: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of one SPSA sample at one point, by summing over all signs."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    means, spreads = [], []
    for delta in signs:
        (up, up_variance), (down, down_variance) = (exact(GRADIENT_PARTS, x + s * step * delta) for s in (1, -1))
        means.append((up - down) / (2 * step) * delta)
        spreads.append((up_variance + down_variance) / shots / (4 * step**2) * np.outer(delta, delta))
    return np.mean(means, axis=0), np.cov(np.array(means).T, bias=True) + np.mean(spreads, axis=0)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("shots", [100, 1000])
def test_bias_and_variance_of_spsa(samples, shots):
    step = (9 / shots) ** (1 / 6) / 3**0.5
    x = points(1)
    mean, covariance = spsa_moments(x[0], step, shots)
    rows = np.repeat(x, 4000, axis=0)
    options = {"gradient": SPSA(samples=samples), "shots": shots}
    _, gradients = gradients_over_seeds(StatevectorBackend(), rows, seeds=1, **options)
    errors = gradients[0] - mean
    assert np.all(np.abs(errors.mean(axis=0)) < 4 * np.sqrt(np.diag(covariance) / samples / 4000)), "bias"
    squares = errors[:, :, None] * errors[:, None, :]
    spread = squares.std(axis=0) / 4000**0.5
    assert np.all(np.abs(squares.mean(axis=0) - covariance / samples) < 4.5 * spread), "covariance"
    # Unbiased up to the step: the truth is near the mean.
    truth, _ = exact_gradients(x, GRADIENT_PARTS)
    assert np.abs(mean - truth[0]).max() < 3 * step**2


@pytest.mark.parametrize("shots", [100, 1000])
@pytest.mark.parametrize("directions", [1, 3, 8])
def test_spsa_default_step_is_near_the_optimum(directions, shots):
    """For f = cos of the sum of all angles, which bends most along the signs: within twice the error of the best step.

    The error is that of the derivative along the signs. (The gradient's own also has the other components as noise,
    whatever the step.)
    """
    theta = ParameterVector("theta", directions)
    qc = QuantumCircuit(1)
    for parameter in theta:
        qc.ry(parameter, 0)
    x = np.random.default_rng(2).uniform(-np.pi, np.pi, (4000, directions))

    def error(rule: SPSA) -> float:
        layer = QuantumLayer(qc, inputs=theta, shots=shots, gradient=rule, seed=5)
        rows = torch.from_numpy(x).requires_grad_()
        gradient = torch.autograd.grad(layer(rows).sum(), rows)[0].numpy()
        estimate = np.abs(gradient[:, :1])
        signs = gradient / np.where(estimate > 0, estimate, 1.0)
        truth = -np.sin(x.sum(axis=1)) * signs.sum(axis=1)
        return float(np.mean((estimate[:, 0] - truth)[estimate[:, 0] > 0] ** 2))

    default = (9 / shots) ** (1 / 6) / directions**0.5
    errors = {factor: error(SPSA(step=factor * default)) for factor in GRID}
    assert error(SPSA()) == pytest.approx(errors[1.0])
    assert errors[1.0] <= 2 * min(errors.values())
    assert errors[3.0] > 3 * errors[1.0]
    assert errors[0.25] > 2 * errors[1.0], "the grid reaches past the optimum on both sides"


# ------------------------------------------------------------------------------------------------- power


class WrongVariance(StatevectorBackend):
    """Half the variance that the shots should give."""

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        return super().evaluate(program, angles, shots=2 * shots, seed=seed)


class ReusedSeed(StatevectorBackend):
    """The same noise at every call."""

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        return super().evaluate(program, angles, shots=shots, seed=np.random.SeedSequence(7))


class SharedNoise(StatevectorBackend):
    """The same noise for every row."""

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        same, measure = np.random.SeedSequence(seed.generate_state(4)), super().evaluate
        rows = [measure(program, row[None], shots=shots, seed=same) for row in angles]
        values, variances = (np.concatenate([getattr(r, name) for r in rows]) for name in ("values", "variances"))
        return Estimate(values, variances, len(angles), shots * len(angles))


class Biased(StatevectorBackend):
    """A readout error of one percent."""

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        right = super().evaluate(program, angles, shots=shots, seed=seed)
        return Estimate(right.values * 0.97, right.variances, right.circuits, right.shots)


class GaussianNoise(StatevectorBackend):
    """What an Estimator's precision gives: the same variance whatever the state."""

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        right = super().evaluate(program, angles, shots=None, seed=seed)
        noise = np.random.default_rng(seed).normal(0, shots**-0.5, right.values.shape)
        return Estimate(right.values + noise, noise**2, right.circuits, right.circuits * shots)


SEEN_BY = {
    test_values_are_standard_normal: [WrongVariance, ReusedSeed, Biased, GaussianNoise],
    test_gradients_are_standard_normal: [WrongVariance, ReusedSeed, GaussianNoise],
    test_successive_calls_draw_fresh_shots: [ReusedSeed],
    test_identical_rows_draw_their_own_shots: [SharedNoise],
    test_reported_standard_errors_are_the_spread: [WrongVariance, GaussianNoise],
    test_counts_are_multinomial: [WrongVariance],
}


@pytest.mark.parametrize(("check", "wrong"), [(check, wrong) for check, kinds in SEEN_BY.items() for wrong in kinds])
def test_wrong_shots_fail_the_checks(check, wrong):
    with pytest.raises(AssertionError):
        check(wrong)


@pytest.mark.parametrize("scale", [0.9, 1.12])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_normal_check_sees_ten_percent(scale, shift):
    z = np.random.default_rng(0).normal(size=4000)
    assert_standard_normal(z)
    with pytest.raises(AssertionError):
        assert_standard_normal(scale * z + shift)
