"""What a call measured: gradients, error bars and predictions, kept, copied and asked for late."""

import copy
import math
import pickle
from threading import Thread

import numpy as np
import pytest
import torch
from error_bar_theory import RULES, SHOTS, backward, entangled, flat, gradients
from problems import Problem, features, only_defined_for_numbers, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qiskit_torch_bridge import GradientRule, LayerResult, ParameterShift, QuantumLayer, StatevectorBackend


def measured(**options) -> tuple[LayerResult, QuantumLayer]:
    """What a step of the entangled circuit has measured, and the layer."""
    layer, x, upstream = entangled(**options)
    return backward(layer, x, upstream=upstream)[0], layer


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
    monkeypatch.setattr("qiskit_torch_bridge.bridge.error_bars._MOST_NUMBERS_AT_ONCE", 1)
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
    assert all(run._sources is not None for run in seen)


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
    run, layer = measured(backend=backend)
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
    def run_of() -> LayerResult:
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


def test_shots_of_simulated_states_are_drawn_again_only_where_they_are_too_much_to_keep(monkeypatch):
    def run_of() -> LayerResult:
        layer, x, upstream = entangled(shots=64, seed=4)
        return backward(layer, x, upstream=upstream)[0]

    engine = "qiskit_torch_bridge.simulator.engine"
    run = run_of()
    with monkeypatch.context() as patch:
        patch.setattr(f"{engine}.Simulator._measure", None)
        kept = flat(run.gradient_standard_errors)
    monkeypatch.setattr(f"{engine}._MOST_COUNTS_KEPT", 0)
    np.testing.assert_array_equal(flat(run_of().gradient_standard_errors), kept)


def test_several_runs_of_aer_are_one(monkeypatch):
    layer, x, upstream = entangled(backend="aer", shots=64, seed=4)
    together = backward(layer, x, upstream=upstream)[0].gradient_standard_errors
    monkeypatch.setattr("qiskit_torch_bridge.backends.aer._MOST_EXPERIMENTS_A_CALL", 4)
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
    run, _ = measured(shots=100, seed=1)
    more = run.predicted(400)
    np.testing.assert_allclose(more.gradient_standard_errors, run.gradient_standard_errors / 2, rtol=1e-12)
    np.testing.assert_allclose(more.signal_to_noise, run.signal_to_noise * 2, rtol=1e-12)
    np.testing.assert_allclose(more.standard_errors, run.standard_errors / 2, rtol=1e-12)
    assert (more.shots, more.gradient_shots) == (4 * run.shots, 4 * run.gradient_shots)
    with pytest.raises(ValueError, match="predict from the run that it was made of"):
        more.predicted(100)


def test_one_shot_says_nothing_about_its_error():
    run, _ = measured(shots=1, seed=1)
    assert np.isnan(run.gradient_standard_errors).all()
    assert np.isfinite(run.gradients).all()


def test_copies_and_pickles_keep_the_numbers():
    run, layer = measured(shots=100, seed=1)
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
    run, _ = measured()
    with pytest.raises(ValueError, match=message):
        run.predicted(**arguments)


def test_a_rule_for_counts_that_are_there_is_refused():
    run, _ = measured(shots=10, seed=1)
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

    run, _ = measured()
    twice, once = run.predicted(100, Fourfold()), run.predicted(100)
    np.testing.assert_allclose(twice.gradient_standard_errors * math.sqrt(2), once.gradient_standard_errors)
    assert twice.gradient_circuits == 2 * once.gradient_circuits


def test_backends_that_say_nothing_are_unknown_not_zero():
    class Silent(StatevectorBackend):
        """Gives variances, but not how outputs vary together."""

        def evaluate(self, program, angles, *, shots, seed):
            found = super().evaluate(program, angles, shots=shots, seed=seed)
            return type(found)(found.values, found.variances, found.circuits, found.shots)

    run, layer = measured(backend=Silent(), shots=100, seed=1)
    assert np.isnan(run.gradient_standard_errors).all()
    np.testing.assert_allclose(run.gradients, layer.weights.grad)
