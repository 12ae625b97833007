"""What other bridges between circuits and torch were measured to get wrong, one by one, and that it is right here.

Functional calls, second order, and being a module (3, 7 and 8 of the list) are in ``bridge/test_torch.py``,
``bridge/test_torch_func.py`` and ``test_layer.py``.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import Problem, features, mixed, oracle, oracle_at, point, problem
from qiskit import generate_preset_pass_manager
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.primitives.containers import BitArray, DataBin
from qiskit.quantum_info import SparseObservable, SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2, SamplerV2
from torch import nn

from qiskit_torch_bridge import AerBackend, FiniteDifference, QuantumLayer

TOLERANCE = 1e-7
WITH_SHOTS = ["parameter_shift", "finite_difference", FiniteDifference(scheme="forward"), "spsa"]


# --- 1: transpiled circuits -------------------------------------------------------------------------------------------


def outcomes(num_qubits: int) -> Problem:
    """A circuit no two outcomes or parameters of which are alike; the outputs are the outcomes' probabilities."""
    x, t = ParameterVector("x", 2), ParameterVector("t", 2)
    last = num_qubits - 1
    circuit = mixed(
        num_qubits, lambda c: (c.ry(x[0], 0), c.rx(x[1], last)), lambda c: (c.rx(t[0], 0), c.crx(t[1], 0, last))
    )
    projectors = [SparseObservable(f"{outcome:0{num_qubits}b}") for outcome in range(2**num_qubits)]
    return Problem(circuit, tuple(map(SparsePauliOp.from_sparse_observable, projectors)), tuple(x), tuple(t))


@pytest.fixture(scope="module")
def manila():
    """A fake device of five qubits in a line; its noise is switched off."""
    provider = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    return AerSimulator.from_backend(provider.FakeManilaV2(), noise_model=None)


@pytest.mark.parametrize("measured", ["before transpiling", "after transpiling", "by the layer"])
@pytest.mark.parametrize("layout", [[1, 0], [3, 4], [4, 3], [2, 0, 1], [0, 2, 4]])
def test_1_transpiled_circuits_keep_their_qubits_and_parameters(manila, layout, measured):
    """At the highest optimisation level, which cancels, fuses and moves gates, measurements and the final layout.

    Three qubits that all meet have to be swapped on the way.
    """
    untouched = outcomes(len(layout))
    expected = oracle_at(untouched, *point(untouched))
    circuit = untouched.circuit.copy()
    if measured == "before transpiling":
        circuit.measure_all()
    if measured != "by the layer":
        passes = generate_preset_pass_manager(3, backend=manila, initial_layout=layout, seed_transpiler=0)
        circuit = passes.run(circuit)
    backend = AerBackend(manila, optimization_level=3, initial_layout=layout if measured == "by the layer" else None)
    probabilities = True if measured == "before transpiling" else range(len(layout))
    options = {"probabilities": probabilities, "backend": backend, "init": torch.tensor(expected.weights)}
    layer = QuantumLayer(circuit, inputs=untouched.inputs, weights=untouched.weights, **options)
    inputs = features(expected, requires_grad=True)
    values = layer(inputs)
    upstream = np.random.default_rng(0).normal(size=expected.values.shape)
    values.backward(torch.tensor(upstream))
    by_inputs, by_weights = expected.gradients(upstream)
    np.testing.assert_allclose(values.detach(), expected.values, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(inputs.grad, by_inputs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(layer.weights.grad, by_weights, rtol=0, atol=TOLERANCE)


# --- 2: batches with shots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["statevector", "aer"])
@pytest.mark.parametrize("gradient", WITH_SHOTS)
def test_2_batches_with_shots_have_input_gradients(gradient, backend):
    """d/dx of <Z> = -sin x, for a batch. Of all the rules forward differences err most, by 0.15 in the mean square."""
    layer = problem("textbook").layer(np.zeros(0), backend=backend, gradient=gradient, shots=4000, seed=1)
    inputs = torch.linspace(-1.5, 1.5, 24, dtype=torch.float64)[:, None].requires_grad_()
    layer(inputs).sum().backward()
    errors = inputs.grad + torch.cos(inputs.detach())
    assert errors.pow(2).mean().sqrt() < 0.2


@pytest.mark.parametrize("gradient", WITH_SHOTS)
def test_2_a_cnn_in_front_of_a_circuit_with_shots_is_trained(gradient):
    layer = problem("entangled_pair").layer(np.array([0.3]), gradient=gradient, shots=100, seed=1)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1), layer.float(), nn.Linear(3, 1))
    net(torch.rand(5, 1, 4, 4)).pow(2).mean().backward()
    for parameter in net.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


# --- 4: shots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", WITH_SHOTS)
@pytest.mark.parametrize(
    "backend",
    [lambda: None, lambda: "aer", lambda: StatevectorSampler(), lambda: StatevectorEstimator(), SamplerV2, EstimatorV2],
    ids=["statevector", "aer", "StatevectorSampler", "StatevectorEstimator", "aer.SamplerV2", "aer.EstimatorV2"],
)
def test_4_gradients_use_the_shots_of_the_values(counting, backend, gradient):
    options = {"backend": counting(backend()), "gradient": gradient, "shots": 25}
    layer = problem("entangled_pair").layer(np.array([0.3]), seed=1, **options)
    inputs = torch.zeros(2, 1, dtype=torch.float64)
    layer(inputs).sum().backward()
    layer.shots = 36
    layer(inputs).sum().backward()
    layer(inputs, shots=49).sum().backward()
    assert [shots for _, shots in layer.backend.calls] == [25, 25, 36, 36, 49, 49]


# --- 5: jobs ----------------------------------------------------------------------------------------------------------


class PubCounter(BaseEstimatorV2):
    """An Estimator that remembers how many PUBs each of its jobs had."""

    default_precision = 0.0

    def __init__(self):
        self.estimator = StatevectorEstimator()
        self.jobs = []

    def run(self, pubs, *, precision=None):
        pubs = list(pubs)
        self.jobs.append(len(pubs))
        return self.estimator.run(pubs, precision=precision)


def test_5_a_step_is_two_jobs_of_one_pub_and_frozen_columns_are_free():
    x, t = ParameterVector("x", 3), ParameterVector("t", 4)
    circuit = mixed(3, lambda c: [c.ry(x[q], q) for q in range(3)], lambda c: [c.rx(t[q], q % 3) for q in range(4)])

    def step(want_inputs, want_weights):
        estimator = PubCounter()
        options = {"backend": estimator, "gradient": "parameter_shift"}
        layer = QuantumLayer(circuit, inputs=x, weights=t, observables=["ZZI", "IZZ"], **options)
        layer.requires_grad_(want_weights)
        values = layer(torch.zeros(5, 3, requires_grad=want_inputs))
        if values.requires_grad:
            values.sum().backward()
        return estimator.jobs, layer.total_circuits

    assert step(True, True) == ([1, 1], 5 * (1 + 2 * 7))
    assert step(False, True) == ([1, 1], 5 * (1 + 2 * 4))
    assert step(True, False) == ([1, 1], 5 * (1 + 2 * 3))
    assert step(False, False) == ([1], 5)


# --- 6: steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [100, 1000])
@pytest.mark.parametrize(
    ("gradient", "scheme", "error"),
    [
        ("finite_difference", "central", lambda h, shots: h**4 / 36 + 1 / (2 * shots * h**2)),
        (FiniteDifference(scheme="forward"), "forward", lambda h, shots: h**2 / 4 + 2 / (shots * h**2)),
        ("spsa", "central", lambda h, shots: h**4 / 36 + 1 / (2 * shots * h**2)),
    ],
    ids=["central", "forward", "spsa"],
)
def test_6_default_steps_suit_the_shots(gradient, scheme, error, shots):
    """The mean squared error is at most the one that the step was chosen to minimise; not 1e3 to 1e5, squared."""
    layer = problem("cosine").layer(np.zeros(0), gradient=gradient, shots=shots, seed=1)
    inputs = torch.full((400, 1), 1.0, dtype=torch.float64, requires_grad=True)
    layer(inputs).sum().backward()
    errors = inputs.grad + math.sin(1.0)
    assert errors.pow(2).mean() < 1.2 * error(FiniteDifference(scheme=scheme).default_step(shots), shots)


# --- 9: edges of the batch --------------------------------------------------------------------------------------------


EMPTY = [(0, 2), (3, 0, 2), (0, 3, 2)]
BACKENDS = {
    "statevector": lambda: None,
    "aer": lambda: "aer",
    "StatevectorEstimator": StatevectorEstimator,
    "StatevectorSampler": StatevectorSampler,
    "aer.SamplerV2": SamplerV2,
    "aer.EstimatorV2": EstimatorV2,
}


@pytest.mark.parametrize(
    ("backend", "gradient", "shape"),
    [
        pytest.param(backend, gradient, EMPTY[(place + number) % 3], id=f"{name}-{gradient}")
        for place, (name, backend) in enumerate(BACKENDS.items())
        for number, gradient in enumerate([None, *WITH_SHOTS])
    ],
)
def test_9_an_empty_batch_is_an_empty_answer_and_runs_nothing(counting, backend, gradient, shape):
    """Aer would crash the process on an empty array of parameters. Each shape meets each backend and each rule."""
    options = {"backend": counting(backend()), "gradient": gradient, "shots": 10 if gradient else None}
    layer = problem("weight_groups").layer(oracle("weight_groups").weights, **options)
    inputs = torch.zeros(shape, requires_grad=True)
    values = layer(inputs)
    assert values.shape == (*shape[:-1], 3)
    values.sum().backward()
    assert inputs.grad.shape == shape
    for weights in layer.weights.values():
        assert torch.equal(weights.grad, torch.zeros_like(weights))
    assert layer.backend.calls == []
    assert layer.quote(0).circuits == 0


class ScalarSampler(BaseSamplerV2):
    """A Sampler that gives a single parameter set's bits without a batch axis, as some vendors' do."""

    def run(self, pubs, *, shots=None):
        results = StatevectorSampler(seed=np.random.default_rng(0)).run(pubs, shots=shots).result()
        scalars = []
        for result in results:
            bits = result.data["outcome"]
            assert bits.shape == (1,)
            scalars.append(SimpleNamespace(data=DataBin(outcome=BitArray(bits.array[0], bits.num_bits), shape=())))
        return SimpleNamespace(result=lambda: scalars)


@pytest.mark.parametrize("sampler", [StatevectorSampler, SamplerV2, ScalarSampler])
def test_9_a_single_parameter_set_has_all_its_shots(sampler):
    t = Parameter("t")
    circuit = mixed(2, lambda c: c.ry(t, 0))
    layer = QuantumLayer(circuit, weights=[t], probabilities=[0, 1], backend=sampler(), shots=1000, seed=1)
    exact = QuantumLayer(circuit, weights=[t], probabilities=[0, 1], init=layer.weights.detach())().detach().numpy()
    counts = layer().detach().numpy() * 1000
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    np.testing.assert_allclose(counts.sum(), 1000, atol=1e-3)
    np.testing.assert_allclose(counts / 1000, exact, atol=5 * math.sqrt(0.25 / 1000))
    assert layer.last_run.shots == 1000
    np.testing.assert_allclose(layer.last_run.standard_errors[0], np.sqrt(exact * (1 - exact) / 1000), rtol=0.2)
