"""Schedules of shots: their numbers, that no bias comes in, and that a run can go on."""

import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from scipy import stats

from qiskit_torch_bridge import (
    ConstantShots,
    DressedQuantumNet,
    GrowingShots,
    LayerwiseQuantumLayer,
    QuantumLayer,
    ShotSchedule,
    TargetSNR,
    layerwise_schedule,
)
from qiskit_torch_bridge.circuits import random_rotations


def layer_of(angles: list[float], **options) -> QuantumLayer:
    """<Z> of each of several qubits after RY(w)."""
    w = ParameterVector("w", len(angles))
    circuit = QuantumCircuit(len(angles))
    for qubit, weight in enumerate(w):
        circuit.ry(weight, qubit)
    init = torch.tensor(angles, dtype=torch.float64)
    return QuantumLayer(circuit, weights=w, init=init, **{"shots": 100, "seed": 5, **options})


def backward(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.grad = None
    layer().sum().backward()


def shots_of(schedule: ShotSchedule, steps: int) -> list[int]:
    found = []
    for _ in range(steps):
        found.append(schedule.layers[0].shots)
        schedule.step()
    return found


def test_constant():
    layer = layer_of([0.3])
    assert shots_of(ConstantShots(layer, 77), 4) == [77] * 4


def test_growing_geometrically_to_the_last():
    assert shots_of(GrowingShots(layer_of([0.3]), first=10, last=160, steps=4), 7) == [10, 20, 40, 80, 160, 160, 160]
    assert shots_of(GrowingShots(layer_of([0.3]), first=100, last=1, steps=2), 4) == [100, 10, 1, 1]


def test_the_backend_gets_what_the_schedule_says(counting):
    backend = counting("statevector")
    layer = layer_of([0.3], backend=backend)
    schedule = GrowingShots(layer, first=10, last=40, steps=2)
    for _ in range(3):
        backward(layer)
        schedule.step()
    assert [shots for _, shots in backend.calls] == [10, 10, 20, 20, 40, 40]


def test_all_quantum_layers_of_a_model():
    model = torch.nn.Sequential(DressedQuantumNet(3, 4, shots=5), DressedQuantumNet(4, 2, shots=7))
    schedule = ConstantShots(model, 20)
    assert schedule.shots == [20, 20]
    assert [net.quantum.shots for net in model] == [20, 20]


# --- a target signal-to-noise ratio -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "weights", "target"), [(0.4, 1, 5.0), (0.1, 12, 1.0)])
def test_target_finds_the_shots_that_theory_asks_for(angle, weights, target):
    """Of <Z> the gradient is -sin, its variance cos^2 / 2 S by the shift rule, and all weights' add up.

    Each other output, which is measured in the same circuits, adds sin^2 / 2 S to the variance.

    At a target of 1, the noise in the measured gradient is as long as the gradient: unless it is taken away, the target
    seems to be reached by any number of shots.
    """
    layer = layer_of([angle] * weights)
    schedule = TargetSNR(layer, target, first=100, most=10**6)
    found = []
    for _ in range(100):
        backward(layer)
        schedule.step()
        found.append(layer.shots)
    variance = (math.cos(angle) ** 2 + (weights - 1) * math.sin(angle) ** 2) / 2
    expected = target**2 * variance / math.sin(angle) ** 2
    assert np.median(found[20:]) == pytest.approx(expected, rel=0.25)


def test_target_changes_at_most_twofold_and_keeps_its_limits():
    layer = layer_of([1e-4])  # hardly any gradient
    schedule = TargetSNR(layer, 10.0, first=50, least=20, most=500)
    seen = [layer.shots]
    for _ in range(6):
        backward(layer)
        schedule.step()
        seen.append(layer.shots)
    assert seen == [50, 100, 200, 400, 500, 500, 500]
    layer.weights.data.fill_(math.pi / 2)  # all gradient and no noise
    for _ in range(6):
        backward(layer)
        schedule.step()
        seen.append(layer.shots)
    assert seen[-6:] == [250, 125, 62, 31, 20, 20]


def test_target_goes_by_the_shots_that_the_gradient_had():
    layer = layer_of([0.4])
    schedule = TargetSNR(layer, 3.0, first=1000, most=10**6)
    layer(shots=50).sum().backward()
    schedule.step()
    assert layer.shots <= 100


def test_target_of_groups_counts_what_is_trained():
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.ry(w[1], 1)
    layer = QuantumLayer(circuit, weights={"a": w[:1], "b": w[1:]}, shots=100, seed=1)
    layer.weights["a"].requires_grad_(False)
    schedule = TargetSNR(layer, 3.0)
    backward(layer)
    schedule.step()
    assert layer.shots >= 50


def test_adaptive_shots_add_no_bias():
    """At fixed weights: the mean over adaptive steps is the exact gradient; stopping early would not be."""
    angle = 1.2
    layer = layer_of([angle])
    schedule = TargetSNR(layer, 2.0, first=20, least=5, most=200)
    found = []
    for _ in range(1500):
        backward(layer)
        found.append(layer.weights.grad.item())
        schedule.step()
    # Not weighted by shots: which would favour the steps that follow small gradients.
    score = (np.mean(found) + math.sin(angle)) / (np.std(found, ddof=1) / math.sqrt(len(found)))
    assert abs(score) < 4

    # Wrong on purpose: shots are added within a step until the gradient stands out.
    generator = np.random.default_rng(0)
    up, down = (np.cos(angle + s * math.pi / 2) for s in (1, -1))
    stopped = []
    for _ in range(1500):
        gradients, errors = [], []
        while not gradients or (abs(gradients[-1]) < 2 * errors[-1] and len(gradients) < 40):
            shots = 5 * (len(gradients) + 1)
            values = [2 * generator.binomial(shots, (1 + v) / 2) / shots - 1 for v in (up, down)]
            gradients.append((values[0] - values[1]) / 2)
            errors.append(math.sqrt(sum(1 - v * v for v in values) / (4 * shots)) + 0.2)
        stopped.append(gradients[-1])
    score = (np.mean(stopped) + math.sin(angle)) / (np.std(stopped, ddof=1) / math.sqrt(len(stopped)))
    assert stats.norm.sf(abs(score)) < 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda layer: ConstantShots(layer, 30),
        lambda layer: GrowingShots(layer, first=10, last=1000, steps=7),
        lambda layer: TargetSNR(layer, 4.0),
    ],
)
def test_a_run_goes_on_where_it_stopped(make):
    def train(layer: QuantumLayer, schedule: ShotSchedule, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            backward(layer)
            found += [layer.shots, *layer.weights.grad.tolist()]
            schedule.step()
        return found

    whole = layer_of([0.3, 1.0])
    expected = train(whole, make(whole), 8)
    first = layer_of([0.3, 1.0])
    schedule = make(first)
    found = train(first, schedule, 3)
    again = layer_of([0.3, 1.0])
    resumed = make(again)
    again.set_rng_state(first.get_rng_state())
    resumed.load_state_dict(schedule.state_dict())
    assert found + train(again, resumed, 5) == expected


def test_a_batch_without_upstream_gradient_changes_nothing():
    """Behind a hinge loss, say; with allocation by sensitivity nothing is measured then."""
    for allocation in ("uniform", "sensitivity"):
        layer = layer_of([0.3], allocation=allocation)
        schedule = TargetSNR(layer, 2.0)
        (0.0 * layer().sum()).backward()
        schedule.step()
        assert layer.shots == 100


def test_a_model_that_grows_keeps_its_schedule():
    phases = layerwise_schedule(steps=2, layers_per_step=1, epochs=1)
    options = {"shots": 20, "seed": 1, "init": "uniform", "allocation": "sensitivity"}
    grown = LayerwiseQuantumLayer(lambda depth: random_rotations(2, depth, seed=0), 1, **options)
    schedule = GrowingShots(grown, first=10, last=80, steps=3)
    seen = []
    for phase in (phases[0], phases[1]):
        grown.enter(phase)
        for _ in range(2):
            grown(torch.rand(3, 2)).sum().backward()
            seen.append(grown.quantum.last_run.shots // 3)
            schedule.step()
    assert [shots // (seen[0] // 10) for shots in seen] == [10, 20, 40, 80]
    assert grown.quantum.allocation == "sensitivity"


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantShots(torch.nn.Linear(2, 2), 10), "without a QuantumLayer"),
        (lambda: ConstantShots(layer_of([0.1]), 0), "shots: got 0"),
        (lambda: ConstantShots(layer_of([0.1]), None), "shots: got None"),
        (lambda: GrowingShots(layer_of([0.1]), first=10, last=20, steps=0), "steps: got 0"),
        (lambda: TargetSNR(layer_of([0.1]), -1.0), "target: got -1.0"),
        (lambda: TargetSNR(layer_of([0.1]), math.nan), "target: got nan"),
        (lambda: TargetSNR(layer_of([0.1]), 2.0, first=1, least=1), "expected 2 <= least <= first <= most"),
        (lambda: TargetSNR(layer_of([0.1]), 2.0, first=100, most=50), "expected 2 <= least <= first <= most"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_without_a_gradient_is_refused():
    layer = layer_of([0.1])
    schedule = TargetSNR(layer, 2.0)
    with pytest.raises(ValueError, match="no gradient with shots"):
        schedule.step()
    layer()
    with pytest.raises(ValueError, match=r"call step\(\) after backward"):
        schedule.step()


def test_a_state_of_another_model_is_refused():
    state = ConstantShots(torch.nn.ModuleList([layer_of([0.1]), layer_of([0.2])]), 10).state_dict()
    with pytest.raises(ValueError, match="shots of 2 quantum layers, expected 1"):
        ConstantShots(layer_of([0.1]), 10).load_state_dict(state)
