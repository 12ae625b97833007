"""Shot schedules from settings: what they refuse, the shots that they give, and what they are said to cost."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import nn

from experiments.common.settings import TrainingSettings
from experiments.common.shot_schedules import ShotSettings, shot_schedule
from experiments.common.training_costs import between, quote_of_stage, words
from qiskit_torch_bridge import GrowingShots, LayerwiseQuantumLayer, Phase, QuantumLayer, TargetSNR
from qiskit_torch_bridge.circuits import dressed, ring_layers, textbook

GROWING = ShotSettings(shots=4, shot_schedule="growing", last_shots=64)
TARGET = ShotSettings(shots=20, shot_schedule="target_snr", snr=2.0)
GROWING_TO_90: dict[str, Any] = {"shot_schedule": "growing", "last_shots": 90}
AT_SNR_1: dict[str, Any] = {"shot_schedule": "target_snr", "snr": 1.0}
TRAIN, TEST, BATCH, EPOCHS = 10, 7, 4, 3
STEPS = 3 * EPOCHS


def layer_of(settings: ShotSettings) -> QuantumLayer:
    circuit, inputs, weights = dressed(2, 1)
    options: dict[str, Any] = {
        "shots": settings.shots,
        "allocation": settings.allocation,
        "gradient": "parameter_shift",
    }
    return QuantumLayer(circuit, inputs=inputs, weights=weights, seed=0, **options)


def trained(model: nn.Module, schedule: Any, epochs: int = EPOCHS) -> list[Any]:
    """The shots of each step of a training with a test after each epoch; plain data go in."""
    taken = []
    layer = next(module for module in model.modules() if isinstance(module, QuantumLayer))
    for _ in range(epochs):
        for rows in (4, 4, 2):
            taken.append(layer.shots)
            model(torch.rand(rows, 2)).square().mean().backward()
            if schedule is not None:
                schedule.step()
        with torch.no_grad():
            model(torch.rand(TEST, 2))
    return taken


def quoted(layer: QuantumLayer, settings: ShotSettings, **options: Any) -> Any:
    sizes = {"epochs": EPOCHS, "total_epochs": EPOCHS, "train": TRAIN, "test": TEST, **options}
    return quote_of_stage([(layer, False)], TrainingSettings(**asdict(settings), batch_size=BATCH), **sizes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"allocation": "sensitivity"}, "--allocation: got sensitivity with exact values, expected --shots"),
        (GROWING_TO_90, "--shot-schedule: got growing with exact values, expected --shots"),
        (
            {"shots": 9, "last_shots": 90},
            "--last-shots: got 90 with --shot-schedule constant,.* --shot-schedule growing",
        ),
        ({"shots": 9, **GROWING_TO_90, "snr": 1.0}, "--snr: got 1.0 with .* growing"),
        ({"shots": 9, **AT_SNR_1, "last_shots": 9}, "--last-shots: got 9 with .* target_snr"),
        ({"shots": 9, "shot_schedule": "growing"}, "--last-shots: got none, expected one with --shot-schedule growing"),
        ({"shots": 9, "shot_schedule": "target_snr"}, "--snr: got none"),
        ({"shots": 91, **GROWING_TO_90}, r"--last-shots: got 90, expected at least --shots \(91\)"),
        ({"shots": 9, **AT_SNR_1, "most_shots": 8}, "--shots: got 9 .* --most-shots 8"),
        ({"shots": 1, **AT_SNR_1}, "--shots: got 1 with --least-shots 2"),
        ({"shots": 9, "least_shots": 5}, "--least-shots: got 5 .* target_snr"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        ShotSettings(**settings)


def test_constant_shots_need_no_schedule():
    for settings in (ShotSettings(), ShotSettings(shots=9)):
        assert shot_schedule(layer_of(settings), settings, steps=STEPS) is None
    assert shot_schedule(nn.Linear(2, 2), GROWING, steps=STEPS) is None  # a classical twin


def test_growing_shots_end_at_the_last():
    layer = layer_of(GROWING)
    schedule = shot_schedule(layer, GROWING, steps=STEPS)
    assert isinstance(schedule, GrowingShots)
    assert trained(layer, schedule) == [round(4 * 16 ** (step / 8)) for step in range(STEPS)]
    assert layer.shots == 64
    assert shot_schedule(layer, GROWING, steps=1).shots == [4]


def test_a_target_has_bounds_by_the_shots():
    layer = layer_of(TARGET)
    schedule = shot_schedule(layer, TARGET, steps=STEPS)
    assert isinstance(schedule, TargetSNR)
    shots = trained(layer, schedule, epochs=12)
    assert shots[0] == 20
    assert len(set(shots)) > 3
    assert 2 <= min(shots) <= max(shots) <= 2000


def test_a_circuit_without_weights_has_no_target():
    circuit, inputs, weights = textbook()
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, shots=20)
    with pytest.raises(ValueError, match="without weights"):
        quoted(layer, TARGET)


@pytest.mark.parametrize(
    "settings", [ShotSettings(shots=9), ShotSettings(), GROWING], ids=["constant", "exact", "growing"]
)
def test_known_shots_cost_what_is_said(settings):
    layer = layer_of(settings)
    least, most = quoted(layer, settings)
    assert layer.shots == settings.shots
    trained(layer, shot_schedule(layer, settings, steps=STEPS))
    assert least == most
    assert (most.circuits, most.shots) == (layer.total_circuits, layer.total_shots)
    assert between(least, most) == words(most)


@pytest.mark.parametrize("snr", [1e-3, 2.0, 1e3])
def test_a_target_costs_within_what_is_said(snr):
    settings = replace(TARGET, shots=400, snr=snr, least_shots=100, most_shots=1600)
    layer = layer_of(settings)
    least, most = quoted(layer, settings)
    trained(layer, shot_schedule(layer, settings, steps=STEPS))
    assert least.circuits == most.circuits == layer.total_circuits
    assert least.shots <= layer.total_shots <= most.shots
    if snr != 2.0:  # at a bound all the time
        assert layer.total_shots == (least if snr < 1 else most).shots
    assert f"at least {least.circuits:,} circuits, {least.shots:,} shots" in between(least, most)


@pytest.mark.parametrize("settings", [ShotSettings(shots=20), TARGET])
def test_by_sensitivity_the_most_is_known(settings):
    settings = replace(settings, allocation="sensitivity")
    layer = layer_of(settings)
    least, most = quoted(layer, settings)
    trained(layer, shot_schedule(layer, settings, steps=STEPS))
    assert layer.total_shots <= most.shots
    assert between(least, most) == f"at most {words(most)}"


def test_a_schedule_goes_on_where_a_circuit_has_grown_and_where_a_run_was_killed():
    def layerwise() -> LayerwiseQuantumLayer:
        return LayerwiseQuantumLayer(
            lambda depth: ring_layers(2, depth), 1, shots=GROWING.shots, gradient="parameter_shift", seed=0
        )

    second = Phase("second", 2, (1,), 2)
    model = layerwise()
    schedule = shot_schedule(model, GROWING, steps=STEPS)
    quote = quoted(model.quantum, GROWING, epochs=1)[1]
    first = trained(model, schedule, epochs=1)
    state = schedule.state_dict()
    model.enter(second)
    last = trained(model, schedule, epochs=2)
    assert first + last == [round(4 * 16 ** (step / 8)) for step in range(STEPS)]
    continued = layerwise()
    continued.enter(second)
    schedule = shot_schedule(continued, GROWING, steps=STEPS)
    quote += quoted(continued.quantum, GROWING, epochs=2, epochs_before=1)[1]
    schedule.load_state_dict(state)
    assert trained(continued, schedule, epochs=2) == last
    assert (quote.circuits, quote.shots) == (model.quantum.total_circuits, model.quantum.total_shots)
