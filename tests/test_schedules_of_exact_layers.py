"""Schedules of shots: they change shots, and bring none to layers that give exact values."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit.primitives import StatevectorSampler
from test_half_precision import make_layer

from qiskit_torch_bridge import ConstantShots, GrowingShots, ShotSchedule, TargetSNR

SCHEDULES: dict[str, Callable[[torch.nn.Module], ShotSchedule]] = {
    "constant": lambda model: ConstantShots(model, 20),
    "growing": lambda model: GrowingShots(model, first=20, last=40, steps=1),
    "target": lambda model: TargetSNR(model, 2.0, first=20),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_does_not_turn_exact_layers_into_ones_with_shots(make):
    exact = make_layer()
    for model in (exact, torch.nn.ModuleList([make_layer(shots=5), exact])):
        with pytest.raises(ValueError, match=r"exact values.*'statevector' with shots=None.*set layer\.shots before"):
            make(model)
    assert exact.shots is None
    measuring = make_layer(shots=5)
    schedule = make(measuring)
    assert measuring.shots == 20
    measuring.shots = None
    with pytest.raises(ValueError, match="exact values"):
        schedule.step()
    assert (measuring.shots, schedule.steps_taken) == (None, 0)


def test_a_backend_with_shots_of_its_own_needs_none_of_the_layers():
    layer = make_layer(backend=StatevectorSampler(default_shots=7))
    assert GrowingShots(layer, first=20, last=40, steps=1).shots == [20]


@pytest.mark.parametrize(
    "state", [3, {}, {"shots": [5]}, {"steps_taken": 1, "shots": 5}, {"steps_taken": 1, "shots": ["5"]}], ids=repr
)
def test_a_wrong_state_of_a_schedule_changes_nothing(state):
    schedule = ConstantShots(make_layer(shots=5), 20)
    with pytest.raises(TypeError, match=r"(state|shots): got"):
        schedule.load_state_dict(state)
    assert (schedule.steps_taken, schedule.shots) == (0, [20])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda layer: TargetSNR(layer, "2"), "target: got '2'"),
        (lambda layer: TargetSNR(layer, True), "target: got True"),
        (lambda layer: GrowingShots(layer, first=1, last=2, steps=1.5), "steps: got 1.5"),
        (lambda layer: ConstantShots(3, 5), "model: got int, expected a module"),
    ],
)
def test_numbers_of_a_schedule(make, message):
    with pytest.raises(TypeError, match=message):
        make(make_layer(shots=5))
    assert TargetSNR(make_layer(shots=5), np.float32(2.0)).shots == [100]
