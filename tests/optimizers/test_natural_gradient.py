"""Quantum natural gradient: closed forms, NumPy's solution of the same system, SPSA's statistics, checkpoints, refusals."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator

from qiskit_torch_bridge import (
    DensityMatrixBackend,
    DressedQuantumNet,
    FidelityKernel,
    QuantumLayer,
    QuantumNaturalGradient,
    Quote,
    TwirledReadout,
)


def pair(init=(0.7, 1.9, -0.4), **options) -> QuantumLayer:
    """RY on two qubits, CX, RZ on the second; the metric of these is diagonal and easily written down."""
    w = ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.ry(w[1], 1)
    circuit.cx(0, 1)
    circuit.rz(w[2], 1)
    weights = torch.tensor(init, dtype=torch.float64)
    return QuantumLayer(circuit, weights=w, observables=["XX", "ZI"], init=weights, **{"seed": 3, **options})


def with_features(**options) -> QuantumLayer:
    """Two groups of weights, a weight in two gates, and one times a feature."""
    x, w, v = ParameterVector("x", 2), ParameterVector("w", 2), ParameterVector("v", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.rx(w[0], 1)
    circuit.cx(0, 1)
    circuit.ry(v[0], 0)
    circuit.rz(w[1] * x[1], 1)
    circuit.rzz(w[0], 0, 1)
    circuit.ry(v[1], 1)
    return QuantumLayer(circuit, inputs=x, weights={"w": w, "v": v}, **{"seed": 5, **options}).double()


FEATURES = torch.tensor([[0.4, -1.1], [2.0, 0.3], [0.9, 0.8]], dtype=torch.float64)
UPSTREAM = torch.tensor([[0.3, -1.0], [0.5, 0.2], [-0.7, 0.6]], dtype=torch.float64)


def backward(layer, **options):
    layer.zero_grad()
    (layer(FEATURES, **options) * UPSTREAM).sum().backward()


def flat(layer, what=lambda weight: weight):
    return torch.cat([what(weight).detach() for weight in layer.parameters() if what(weight) is not None]).numpy()


# --- exact metrics ----------------------------------------------------------------------------------------------------


def test_a_step_of_one_qubit_by_hand():
    """RY(a), RZ(b): the metric is diag(1, sin(a)^2) / 4 and <X> = sin(a) cos(b)."""
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    circuit.rz(w[1], 0)
    a, b = 0.8, 2.3
    layer = QuantumLayer(circuit, weights=w, observables="X", init=torch.tensor([a, b], dtype=torch.float64))
    optimizer = QuantumNaturalGradient(layer, lr=0.1, regularization=0.0)
    layer().sum().backward()
    optimizer.step()
    expected = [a - 0.4 * math.cos(a) * math.cos(b), b + 0.4 * math.sin(b) / math.sin(a)]
    assert layer.weights.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("maximize", [False, True])
def test_a_step_of_two_qubits_by_hand(maximize):
    """The metric is diag(1, 1, 1 - cos(a)^2 cos(b)^2) / 4; ZI measures cos(a) cos(b), XX sin(a) cos(c)."""
    a, b, c = 0.7, 1.9, -0.4
    layer = pair()
    assert layer()[0].item() == pytest.approx(math.sin(a) * math.cos(c))
    by_a = math.cos(a) * math.cos(c) - math.sin(a) * math.cos(b)
    gradient = np.array([by_a, -math.cos(a) * math.sin(b), -math.sin(a) * math.sin(c)])
    diagonal = np.array([1, 1, 1 - (math.cos(a) * math.cos(b)) ** 2]) / 4
    optimizer = QuantumNaturalGradient(layer, lr=0.2, regularization=0.05, maximize=maximize)
    layer().sum().backward()
    optimizer.step()
    expected = np.array([a, b, c]) + (0.2 if maximize else -0.2) * gradient / (diagonal + 0.05)
    assert flat(layer) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("approximation", [None, "block-diag", "diag"])
def test_steps_solve_the_system_of_the_averaged_metric(approximation):
    layer = with_features()
    before, metric = flat(layer), layer.metric_tensor(FEATURES, approximation=approximation)
    optimizer = QuantumNaturalGradient(layer, lr=0.3, approximation=approximation)
    rows = FEATURES.clone()
    (layer(features=rows) * UPSTREAM).sum().backward()
    rows.zero_()  # whose numbers are remembered
    with torch.no_grad():
        layer(FEATURES[:1] + 1)  # an evaluation, which does not count
    optimizer.step()
    gradient = flat(layer, lambda weight: weight.grad)
    system = metric.detach().numpy().mean(axis=0) + 0.01 * np.eye(4)
    assert flat(layer) == pytest.approx(before - 0.3 * np.linalg.solve(system, gradient), rel=1e-9)
    assert abs(np.linalg.solve(4 * system, gradient) - np.linalg.solve(system, gradient)).max() > 0.1  # not Fisher's
    assert layer.total_circuits == 0 or layer.last_metric is None
    assert optimizer.quote(3) == Quote()


def test_frozen_weights_and_those_without_gradient_have_no_row():
    whole = with_features()
    metric = whole.metric_tensor(FEATURES).detach().numpy().mean(axis=0)
    for frozen in (True, False):
        layer = with_features()
        optimizer = QuantumNaturalGradient(layer, lr=1.0, regularization=0.1)
        before = flat(layer)
        layer.weights["w"].requires_grad_(not frozen)
        backward(layer)
        layer.weights["w"].grad = None
        optimizer.step()
        step = np.linalg.solve(metric[2:, 2:] + 0.1 * np.eye(2), layer.weights["v"].grad.numpy())
        assert flat(layer) == pytest.approx(before - np.concatenate([[0, 0], step]), rel=1e-9)


def test_single_precision_weights_step_by_a_metric_in_double():
    layer = with_features().float()
    optimizer = QuantumNaturalGradient(layer)
    rows = FEATURES.float()
    before, metric = flat(layer), layer.metric_tensor(rows.double()).detach().numpy().mean(axis=0)
    (layer(rows) * UPSTREAM).sum().backward()
    assert np.array_equal(optimizer._metric(0, layer, optimizer._memories[0].features).detach().numpy(), metric)
    optimizer.step()
    gradient = flat(layer, lambda weight: weight.grad).astype(np.float64)
    assert layer.weights["w"].dtype == torch.float32
    assert flat(layer) == pytest.approx(before - 0.01 * np.linalg.solve(metric + 0.01 * np.eye(4), gradient), abs=1e-6)


def test_a_hybrid_model_beside_an_ordinary_optimizer():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), with_features().float(), torch.nn.Linear(2, 1))
    natural = QuantumNaturalGradient(model, lr=0.05)
    quantum = {id(weight) for group in natural.param_groups for weight in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in quantum]
    assert (len(quantum), len(rest)) == (2, 4)
    adam, losses = torch.optim.Adam(rest, lr=0.05), []
    rows, labels = torch.randn(8, 2), torch.randn(8, 1)

    def closure():
        natural.zero_grad()
        loss = (model(rows) - labels).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(15):
        adam.zero_grad()
        assert natural.step(closure).item() == losses[-1]
        adam.step()
    assert losses[-1] < 0.7 * losses[0]


def test_layers_have_groups_of_their_own_and_idle_ones_stay():
    used, idle = pair(), pair()
    model = torch.nn.ModuleDict({"a": used, "again": used, "b": idle})
    optimizer = QuantumNaturalGradient(model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    before = flat(idle)
    (model["a"]() + model["again"]()).sum().backward()
    optimizer.step()
    assert np.array_equal(flat(idle), before)
    assert not np.array_equal(flat(used), before)


def test_schedulers_and_regularization_of_a_group():
    layer = pair()
    optimizer = QuantumNaturalGradient(layer, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    layer().sum().backward()
    moves = []
    for _ in range(2):
        before = flat(layer)
        optimizer.step()
        moves.append(flat(layer) - before)
        layer.weights.data.copy_(torch.from_numpy(before))
        schedule.step()
    assert moves[1] == pytest.approx(moves[0] / 2, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    optimizer.param_groups[0]["regularization"] = 1e9
    optimizer.step()
    assert flat(layer) == pytest.approx(before, abs=1e-9)


def test_gradients_of_zeros_and_empty_batches_cost_nothing():
    layer = with_features(shots=10)
    optimizer = QuantumNaturalGradient(layer)
    before = flat(layer)
    layer(FEATURES[:0]).sum().backward()
    optimizer.step()
    (0 * layer(FEATURES)).sum().backward()
    spent = layer.total_circuits
    optimizer.step()
    assert layer.total_circuits == spent
    assert np.array_equal(flat(layer), before)


# --- measured metrics -------------------------------------------------------------------------------------------------


def test_a_measured_metric_is_made_positive_and_costs_its_quote():
    """Near a state whose metric is nearly singular, so that noise makes an eigenvalue negative."""
    layer = with_features(shots=20, seed=0)
    for weight in layer.parameters():
        weight.data.fill_(0.1)
    optimizer = QuantumNaturalGradient(layer, lr=1.0, shots=3, regularization=1e-4)
    before, quote = flat(layer), optimizer.quote(3)
    (layer(0.1 * FEATURES, shots=2) * UPSTREAM).sum().backward()
    spent = layer.total_circuits, layer.total_shots
    optimizer.step()
    assert (layer.total_circuits - spent[0], layer.total_shots - spent[1]) == (quote.circuits, quote.shots)
    assert quote.shots == 3 * quote.circuits > 0
    values, vectors = np.linalg.eigh(layer.last_metric.values.mean(axis=0))
    assert values.min() < -1e-5
    gradient = flat(layer, lambda weight: weight.grad)
    expected = before - vectors @ (vectors.T @ gradient / (abs(values) + 1e-4))
    assert flat(layer) == pytest.approx(expected, rel=1e-6)
    assert layer.last_run.gradients["v"] is not None  # the metric leaves the record of the pass alone


def estimates(layer, count, **options):
    return np.array([
        layer._stochastic_metric(FEATURES[:1], samples=1, rng=np.random.default_rng(seed), **options)
        for seed in range(count)
    ])  # fmt: skip


def test_estimates_by_spsa_are_right_on_average():
    """By z-scores over 300 draws; of twice the metric they would be wrong."""
    layer = with_features()
    drawn = estimates(layer, 300, perturbation=None, shots=None)
    assert np.array_equal(drawn, drawn.swapaxes(1, 2))
    metric = layer.metric_tensor(FEATURES[:1]).detach().numpy()[0]
    errors = drawn.std(axis=0, ddof=1) / math.sqrt(len(drawn))
    assert np.abs((drawn.mean(axis=0) - metric) / errors).max() < 4.5
    assert np.abs((drawn.mean(axis=0) - 2 * metric) / errors).max() > 6


def test_measured_estimates_scatter_around_the_exact_ones():
    """At the same directions, so that what is left is shot noise; another backend gives the same without shots."""
    layer = with_features()
    exact = estimates(layer, 100, perturbation=0.2, shots=None)
    spent = layer.total_circuits
    measured = estimates(layer, 100, perturbation=0.2, shots=100)
    assert (layer.total_circuits - spent, layer.total_shots) == (400, 40_000)
    differences = measured - exact
    scores = differences.mean(axis=0) / (differences.std(axis=0, ddof=1) / 10)
    assert np.abs(scores).max() < 5
    assert differences.std() > 0
    layer.backend = DensityMatrixBackend()  # without noise
    assert estimates(layer, 3, perturbation=0.2, shots=None) == pytest.approx(exact[:3], abs=1e-10)


def test_spsa_keeps_a_running_average_that_begins_with_the_identity():
    layer = with_features()
    optimizer = QuantumNaturalGradient(layer, approximation="spsa", samples=2, seed=8, lr=0.1)
    average = np.eye(4)
    for count in (1, 2):
        rng = np.random.default_rng(np.random.SeedSequence(8, spawn_key=(count - 1,)))
        estimate = layer._stochastic_metric(FEATURES, samples=2, perturbation=None, shots=None, rng=rng)
        average = (count * average + estimate) / (count + 1)
        before = flat(layer)
        backward(layer)
        optimizer.step()
        values, vectors = np.linalg.eigh(average)
        step = vectors @ (vectors.T @ flat(layer, lambda weight: weight.grad) / (abs(values) + 0.01))
        assert flat(layer) == pytest.approx(before - 0.1 * step, rel=1e-9)
    layer.weights["w"].requires_grad_(False)
    backward(layer)
    optimizer.step()  # with fewer weights it begins anew
    [kept] = optimizer.state_dict()["quantum"]["averages"]
    assert (kept["count"], kept["trained"], kept["average"].shape) == (1, ["v"], (2, 2))


# --- checkpoints and copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"approximation": "spsa", "seed": 1}, {"approximation": "diag"}])
def test_a_run_goes_on_to_the_last_bit(options):
    def train(layer, optimizer, steps):
        for _ in range(steps):
            backward(layer)
            optimizer.step()
        return flat(layer)

    def made():
        layer = with_features(shots=50).float()
        return layer, QuantumNaturalGradient(layer, lr=0.1, **options)

    expected = train(*made(), 4)
    layer, optimizer = made()
    optimizer.param_groups[0]["lr"] = 0.1
    train(layer, optimizer, 2)
    file = io.BytesIO()
    torch.save([layer.state_dict(), layer.get_rng_state(), optimizer.state_dict()], file)
    again, resumed = made()
    resumed._seeds.next()
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again.load_state_dict(states[0])
    again.set_rng_state(states[1])
    resumed.load_state_dict(states[2])
    assert np.array_equal(train(again, resumed, 2), expected)


def test_layers_can_be_copied_and_pickled_beside_their_optimizer():
    layer = with_features()
    optimizer = QuantumNaturalGradient(layer)
    backward(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other(FEATURES[:1])
    assert len(optimizer._memories[0].features) == 3
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; save its state_dict\(\)"):
        copy.deepcopy(optimizer)
    del optimizer
    assert not layer._forward_hooks


@pytest.mark.slow
def test_compiled_models_are_remembered_too():
    layer = with_features()
    optimizer = QuantumNaturalGradient(layer)
    (torch.compile(layer, fullgraph=True, backend="eager")(FEATURES) * UPSTREAM).sum().backward()
    assert torch.equal(optimizer._memories[0].features, FEATURES)
    torch.export.export(layer, (FEATURES[:1],), strict=False)  # whose features are none
    assert torch.equal(optimizer._memories[0].features, FEATURES)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantumNaturalGradient(torch.nn.Linear(2, 2)), "without weights of a QuantumLayer"),
        (lambda: QuantumNaturalGradient(pair(), lr=-0.1), "lr: got -0.1"),
        (lambda: QuantumNaturalGradient(pair(), lr=math.nan), "lr: got nan"),
        (lambda: QuantumNaturalGradient(pair(), approximation="block"), "approximation: got 'block', expected None"),
        (lambda: QuantumNaturalGradient(pair(), regularization=-1), "regularization: got -1"),
        (lambda: QuantumNaturalGradient(pair(), perturbation=0.0), "perturbation: got 0.0"),
        (lambda: QuantumNaturalGradient(pair(), samples=0), "samples: got 0"),
        (lambda: QuantumNaturalGradient(pair(), shots=0), "shots: got 0"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_model_or_no_group_is_refused():
    with pytest.raises(TypeError, match="model: got list"):
        QuantumNaturalGradient([pair()])
    with pytest.raises(TypeError, match="unknown argument learning_rate="):
        QuantumNaturalGradient(pair(), learning_rate=0.1)
    first, second = pair(), pair()
    second.weights = first.weights
    with pytest.raises(ValueError, match="layers that share weights"):
        QuantumNaturalGradient(torch.nn.ModuleList([first, second]))
    with pytest.raises(ValueError, match="make another optimizer for other parameters"):
        QuantumNaturalGradient(first).add_param_group({"params": [torch.zeros(2)]})


def refused(layer, optimizer, message, kind=ValueError):
    before, spent = flat(layer), layer.total_circuits
    with pytest.raises(kind, match=message):
        optimizer.step()
    assert np.array_equal(flat(layer), before)
    assert layer.total_circuits == spent


def test_steps_that_cannot_be_taken_change_nothing():
    layer = with_features(shots=10)
    optimizer = QuantumNaturalGradient(layer)
    backward(layer)
    layer.weights["v"].grad[1] = math.inf
    refused(layer, optimizer, r"weights \(v\): entry 1 of the gradient is inf, expected finite numbers")
    layer.weights["v"].grad = torch.ones(2, dtype=torch.float64).to_sparse()
    refused(layer, optimizer, "expected a dense one", TypeError)
    backward(layer)
    refused(layer, QuantumNaturalGradient(layer), "no forward pass of quantum layer 0 is remembered")
    layer.weights["v"] = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    refused(layer, optimizer, "others than when the optimizer was made")


@pytest.mark.parametrize("approximation", [None, "spsa"])
@pytest.mark.parametrize(
    "options",
    [
        {"backend": StatevectorEstimator(), "shots": 50},
        {"backend": "pauli"},
        {"backend": "aer", "shots": 50, "mitigation": [TwirledReadout()]},
    ],
)
def test_layers_that_measure_no_fidelities_are_refused_before_a_gradient_is_paid_for(options, approximation):
    layer = pair(**options)
    with pytest.raises(ValueError, match="cannot measure the fidelities of a metric"):
        QuantumNaturalGradient(layer, approximation=approximation)
    for call in (layer.metric_tensor, layer.quote_metric_tensor):
        with pytest.raises(ValueError, match="cannot measure the fidelities of a metric"):
            call()
    assert layer.total_circuits == 0
    exact = pair()
    optimizer = QuantumNaturalGradient(exact, approximation=approximation)
    exact().sum().backward()
    exact.backend = StatevectorEstimator()
    before = flat(exact)
    with pytest.raises(ValueError, match="cannot measure the fidelities of a metric"):
        optimizer.step()
    assert np.array_equal(flat(exact), before)


def test_a_failed_step_can_be_taken_again():
    """A failure in the second of two layers: directions and averages are where they were, and so are the shots."""

    class Failing(DensityMatrixBackend):
        fails = False

        def evaluate(self, *args, **kwargs):
            if self.fails:
                raise ConnectionError
            return super().evaluate(*args, **kwargs)

    backend = Failing()
    layers = [with_features(), with_features(backend=backend, shots=10)]
    optimizer = QuantumNaturalGradient(torch.nn.ModuleList(layers), approximation="spsa", seed=1)
    assert optimizer.quote(2).circuits == 2 * 4
    for layer in layers:
        backward(layer)
    before, state = [flat(layer) for layer in layers], layers[1].get_rng_state()
    backend.fails = True
    with pytest.raises(ConnectionError):
        optimizer.step()
    assert all(np.array_equal(flat(layer), old) for layer, old in zip(layers, before, strict=True))
    own = optimizer.state_dict()["quantum"]
    assert own == {"averages": [None, None], "seeds": {"entropy": [1], "position": 0}}
    assert layers[1].get_rng_state() == state
    backend.fails = False
    optimizer.step()
    assert not np.array_equal(flat(layers[1]), before[1])
    for weight in layers[1].parameters():
        weight.requires_grad_(False)
    assert optimizer.quote(2) == Quote()


def test_a_singular_metric_is_refused():
    layer = pair(init=(0.7, 0.0, 0.0))
    optimizer = QuantumNaturalGradient(layer, regularization=0.0)
    layer.weights.data[0] = 0  # RZ does nothing to |0>
    layer().sum().backward()
    refused(layer, optimizer, r"regularization: got 0.0, with which the metric of quantum layer 0 is singular")


def test_kernels_have_no_pass_of_their_layer():
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0], 0)
    circuit.rx(w[0], 0)
    circuit.ry(x[0], 0)
    kernel = FidelityKernel(circuit, inputs=x, weights=w)
    optimizer = QuantumNaturalGradient(kernel)
    kernel(torch.rand(3, 1)).sum().backward()
    with pytest.raises(ValueError, match=r"call layer\(features\), which runs hooks"):
        optimizer.step()


def test_states_of_others_are_refused():
    layer = pair()
    optimizer = QuantumNaturalGradient(layer, approximation="spsa")
    with pytest.raises(TypeError, match="no state of QuantumNaturalGradient"):
        optimizer.load_state_dict(torch.optim.SGD(layer.parameters()).state_dict())
    two = QuantumNaturalGradient(torch.nn.Sequential(DressedQuantumNet(2, 2), DressedQuantumNet(2, 2)))
    with pytest.raises(ValueError, match="metrics of 2 quantum layers, expected 1"):
        optimizer.load_state_dict(two.state_dict())
    state = optimizer.state_dict()
    state["quantum"]["averages"] = [{"trained": ["weights"], "count": 1, "average": torch.eye(2)}]
    with pytest.raises(ValueError, match=r"of shape \(2, 2\), for quantum layer 0"):
        optimizer.load_state_dict(state)
    state["quantum"]["averages"] = [{"trained": ["weights"], "count": 1}]
    with pytest.raises(ValueError, match=r"is not what state_dict\(\) gives \(KeyError\('average'\)\)"):
        optimizer.load_state_dict(state)
    del state["quantum"]["seeds"]
    with pytest.raises(ValueError, match="expected one with"):
        optimizer.load_state_dict(state)
