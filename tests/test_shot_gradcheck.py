"""The statistical gradient check: what it catches, how often it errs, and what it leaves as it was."""

import re
import threading

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from scipy import stats
from torch.autograd.gradcheck import GradcheckError

from qiskit_torch_bridge import (
    SPSA,
    DensityMatrixBackend,
    DressedQuantumNet,
    FiniteDifference,
    ParameterShift,
    QuantumLayer,
    Stencil,
)
from qiskit_torch_bridge.testing import shot_gradcheck


def layer_of(**options) -> QuantumLayer:
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(x[1] * w[2], 1)
    circuit.cx(0, 1)
    circuit.rx(w[0], 0)
    circuit.ry(2 * w[1], 1)
    init = torch.tensor([0.5, 1.1, 2.0], dtype=torch.float64)
    return QuantumLayer(circuit, inputs=x, weights=w, init=init, **{"shots": 200, "seed": 3, **options})


ROWS = torch.tensor([[0.4, 1.3], [-0.7, 0.6], [2.0, -1.1]], dtype=torch.float64)


class Altered(ParameterShift):
    """Parameter shift with its coefficients changed."""

    def __init__(self, change) -> None:
        super().__init__()
        object.__setattr__(self, "change", change)

    def stencil(self, program, columns, *, rows, shots, seeds):
        right = super().stencil(program, columns, rows=rows, shots=shots, seeds=seeds)
        return Stencil(right.shifts, self.change(right.coefficients))


WRONG = {
    "a wrong sign": lambda c: -c,
    "one wrong sign": lambda c: np.concatenate([c[:-1], -c[-1:]]),
    "a permuted pair of weights": lambda c: c[[*range(len(c) - 2), len(c) - 1, len(c) - 2]],
    "a missing factor 1/2": lambda c: 2 * c,
    "half of it": lambda c: c / 2,
    "a missing term": lambda c: np.where(c > 0, c, 0.0),
}


@pytest.mark.parametrize(
    ("backend", "gradient", "options"),
    [
        ("statevector", "parameter_shift", {}),
        ("statevector", "spsa", {"bias": 0.05, "repeats": 200}),
        ("statevector", "finite_difference", {"bias": 0.2}),
        ("aer", "parameter_shift", {"repeats": 15, "shots": 700}),
        pytest.param(
            *("ibm:fake_manila", "parameter_shift", {"bias": 0.15, "repeats": 12}),  # of the device's errors
            marks=pytest.mark.slow,
        ),
    ],
)
def test_right_gradients_pass(backend, gradient, options):
    if backend.startswith("ibm:"):
        pytest.importorskip("qiskit_ibm_runtime")
    found = shot_gradcheck(layer_of(backend=backend, gradient=gradient), ROWS, **{"repeats": 50, **options})
    assert found
    assert found.comparisons == 3 + ROWS.numel()
    assert "agrees with the exact one" in str(found)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_gradients_are_caught(name):
    layer = layer_of(gradient=Altered(WRONG[name]))
    with pytest.raises(GradcheckError, match="The gradient is wrong: of 9 derivatives") as caught:
        shot_gradcheck(layer, ROWS)
    assert "expected" in str(caught.value)
    found = shot_gradcheck(layer, ROWS, raise_exception=False)
    assert not found
    assert found.largest > found.threshold


def test_the_worst_derivative_is_named():
    layer = layer_of(gradient=Altered(WRONG["one wrong sign"]))
    model = torch.nn.Sequential(torch.nn.Identity(), layer)
    worst = shot_gradcheck(model, ROWS, raise_exception=False).worst
    assert worst.startswith("the one by ")
    assert " of 1: " in worst


def test_biased_rules_fail_unless_their_bias_is_allowed():
    layer = layer_of(gradient=FiniteDifference(step=0.5))
    assert not shot_gradcheck(layer, ROWS, raise_exception=False)
    assert shot_gradcheck(layer, ROWS, bias=0.3)
    with pytest.raises(ValueError, match="no larger than the bias"):
        shot_gradcheck(layer, ROWS, bias=50.0)


def test_every_layer_must_be_able_to_fail():
    """A strong one does not speak for a weak one."""
    model = torch.nn.Sequential(layer_of(), torch.nn.Linear(2, 2).double(), layer_of(shots=2))
    with pytest.raises(ValueError, match="even a gradient of twice the size would pass"):
        shot_gradcheck(model, ROWS, repeats=10)


@pytest.mark.slow
def test_the_family_wise_error_is_what_it_says():
    """Of 120 checks of a right model at alpha = 0.2, as many fail as Bonferroni and a t-distribution allow."""
    options = {"repeats": 25, "alpha": 0.2, "raise_exception": False}
    failed = sum(not shot_gradcheck(layer_of(seed=s, shots=100), ROWS, seed=s, **options) for s in range(120))
    assert stats.binom.sf(failed - 1, 120, 0.2) > 1e-3
    assert stats.binom.cdf(failed, 120, 0.05) > 1e-3, "it hardly ever fails: the errors are too large"


def test_a_whole_model_by_its_quantum_layers():
    net = DressedQuantumNet(2, 2, depth=1, num_qubits=2, shots=300, seed=1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), layer_of(), torch.nn.Tanh(), net).double()
    torch.nn.init.normal_(model[3].quantum.weights)
    report = shot_gradcheck(model, torch.rand(4, 3, dtype=torch.float64))
    assert report
    assert report.comparisons == (3 + 8) + (2 + 8)
    wrong = Altered(WRONG["a missing factor 1/2"])
    model[3] = DressedQuantumNet(2, 2, depth=1, num_qubits=2, shots=300, seed=1, gradient=wrong).double()
    torch.nn.init.normal_(model[3].quantum.weights)
    assert "of 3.quantum" in shot_gradcheck(model, torch.rand(4, 3).double(), raise_exception=False).worst


def test_a_layer_that_is_called_twice_is_checked_twice():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantum = layer_of()

        def forward(self, x):
            return self.quantum(features=self.quantum(x))

    assert shot_gradcheck(Twice(), ROWS).comparisons == 2 * (3 + 6)


def test_circuits_without_inputs_and_groups_of_weights():
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.ry(w[1], 1)
    layer = QuantumLayer(circuit, weights={"a": w[:1], "b": w[1:]}, shots=100, seed=1)
    assert shot_gradcheck(layer).comparisons == 2
    layer.weights["a"].requires_grad_(False)
    assert shot_gradcheck(layer).comparisons == 1


def test_outcomes_too_rare_to_be_seen_are_no_fault():
    """Near zero one shot in a million shows anything: no scatter at all, and a tiny difference."""
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.ry(w[1], 1)
    layer = QuantumLayer(circuit, weights=w, observables=["IZ", "ZI"], shots=50, seed=1)
    with torch.no_grad():
        layer.weights.copy_(torch.tensor([torch.pi / 2 + 2e-3, 1.0]))
    assert shot_gradcheck(layer)


@pytest.mark.parametrize("place", ["here", pytest.param("aer", marks=pytest.mark.slow)])
def test_noise_needs_its_own_reference(place):
    """On either simulator; readout errors, which Aer's exact values leave out, are in the reference."""
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.15, 2), ["cx"])
    noise.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.08, 0.92]]))
    reference = DensityMatrixBackend(noise)
    backend = reference if place == "here" else AerSimulator(noise_model=noise, method="density_matrix")
    layer = layer_of(backend=backend, shots=4000)
    biased = shot_gradcheck(layer, ROWS, repeats=10, raise_exception=False)
    assert not biased
    words = r"differs from .* without noise: .* the device's bias, .* reference=DensityMatrixBackend\("
    assert re.search(words, str(biased))
    assert shot_gradcheck(layer, ROWS, repeats=10, reference=reference)
    layer = layer_of(backend=backend, shots=4000, gradient=Altered(WRONG["a wrong sign"]))
    wrong = shot_gradcheck(layer, ROWS, repeats=10, reference=reference, raise_exception=False)
    assert str(wrong).startswith("The gradient is wrong")


def test_the_model_stays_as_it_was():
    layer = layer_of()
    layer(ROWS).sum().backward()
    run, gradient = layer.last_run, layer.weights.grad.clone()
    backend, shots = layer.backend, layer.shots
    features = ROWS.clone()
    found = shot_gradcheck(layer, features, repeats=20)
    assert (layer.backend, layer.shots, layer.gradient.name) == (backend, shots, "parameter_shift")
    assert torch.equal(layer.weights.grad, gradient)
    assert not features.requires_grad
    assert layer.total_circuits == run.circuits + run.gradient_circuits + found.circuits
    assert layer.total_shots == run.shots + run.gradient_shots + found.shots
    assert found.shots == 200 * found.circuits


def test_running_statistics_and_random_numbers_stay_as_they_were():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5), layer_of()).double()
    before = torch.get_rng_state()
    assert shot_gradcheck(model, ROWS, repeats=30)
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].num_batches_tracked == 0
    assert (model[0].running_mean == 0).all()


def test_shots_within_a_model_are_those_of_the_check():
    class Sampled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantum = layer_of(shots=None)

        def forward(self, x):
            return self.quantum(x, shots=100)

    found = shot_gradcheck(Sampled(), ROWS, repeats=50)
    assert found.shots == 100 * found.circuits


def test_a_check_that_could_not_fail_costs_nothing(counting):
    backend = counting("statevector")
    layer = layer_of(backend=backend, shots=2)
    with pytest.raises(ValueError, match="even a gradient of twice the size would pass"):
        shot_gradcheck(layer, ROWS, repeats=10)
    assert not backend.calls
    assert layer.total_circuits == 0


def test_nothing_to_check_is_said():
    with pytest.raises(ValueError, match=r"features of shape \(0, 2\), expected some rows"):
        shot_gradcheck(layer_of(), ROWS[:0])
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    with pytest.raises(ValueError, match="the exact gradient is zero"):
        shot_gradcheck(QuantumLayer(circuit, weights=w, observables=["I"], shots=10))


def test_repeatable():
    first, second = (shot_gradcheck(layer_of(), ROWS, repeats=20) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), {}, "without a QuantumLayer"),
        (layer_of, {"repeats": 1}, "repeats: got 1"),
        (layer_of, {"alpha": 0.0}, "alpha: got 0.0"),
        (layer_of, {"bias": -1.0}, "bias: got -1.0"),
        (lambda: layer_of(shots=None), {}, "is exact; give a number of shots"),
        (lambda: layer_of(shots=2), {"repeats": 10}, "a gradient of twice the size would pass; give about repeats="),
    ],
)
def test_checks_that_could_not_fail_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        shot_gradcheck(make(), ROWS.to(torch.float32) if "Linear" in str(make) else ROWS, **options)


def test_shots_can_be_given_for_the_check():
    found = shot_gradcheck(layer_of(shots=None), ROWS, shots=100, repeats=30)
    assert found.shots == 100 * found.circuits
    assert shot_gradcheck(layer_of(gradient=SPSA(samples=4)), ROWS, shots=500, bias=0.05, repeats=200)


def test_nobody_sees_that_a_layer_is_being_checked():
    """Another thread goes on measuring with shots meanwhile, on the same layer."""
    model = layer_of(shots=50)
    rows = torch.rand(3, 2, dtype=torch.float64)
    kinds: set[bool] = set()
    done = threading.Event()

    def measure() -> None:
        while not done.is_set():
            with torch.no_grad():
                model(rows)
            kinds.add(model.last_run.shots == 150)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        reports = [shot_gradcheck(model, ROWS, repeats=40, seed=seed) for seed in range(3)]
    finally:
        done.set()
        thread.join()
    assert all(reports)
    assert kinds == {True}


class Doubled(QuantumLayer):
    def forward(self, features=None, *, shots=None):
        return 2 * super().forward(features, shots=shots)


class Halved(torch.nn.Module):
    def forward(self, weights):
        return weights / 2


def test_layers_that_do_more_are_checked_as_they_are():
    layer = layer_of()
    layer.__class__ = Doubled
    assert shot_gradcheck(layer, ROWS)
    layer = layer_of()
    torch.nn.utils.parametrize.register_parametrization(layer, "weights", Halved())
    assert shot_gradcheck(layer, ROWS)


def test_models_that_keep_their_outputs_can_be_checked():
    class Keeping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantum = layer_of()

        def forward(self, x):
            self.output = self.quantum(x)
            return self.output

    model = Keeping()
    model(ROWS)
    assert shot_gradcheck(model, ROWS)
