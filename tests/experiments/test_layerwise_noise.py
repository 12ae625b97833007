"""The study of layerwise learning under noise: what is trained, with which noise, and what is made of the errors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from runs import CONFIGS, assert_refused, result, said_by_parser

from experiments.__main__ import main
from experiments.common.options import parse
from experiments.common.rows import Rows
from experiments.common.runs import RunFolder
from experiments.layerwise_noise.layerwise_findings import TRAININGS, find
from experiments.layerwise_noise.layerwise_settings import LayerwiseNoiseSettings
from experiments.layerwise_noise.layerwise_study import (
    NOISES,
    backend_of,
    cells,
    error,
    measure,
    require,
    training,
    without_noise,
)
from experiments.mnist36 import classifier, phases
from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer, StatevectorBackend

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = CONFIGS / "layerwise-noise-small.yaml"
TINY = [
    *("--noises", "none", "depolarising 1 %", "--shots", "50", "--seeds", "2", "--qubits", "4", "--steps", "2"),
    *("--layers-per-step", "1", "--train-images", "4", "--test-images", "8", "--batch-size", "2", "--epochs", "1"),
    *("--sweeps", "1", "--partition-epochs", "1", "--complete-epochs", "2", "--dataset", "digits", "--workers", "0"),
]


def settings_of(*arguments: str) -> LayerwiseNoiseSettings:
    return parse("layerwise-noise", LayerwiseNoiseSettings, arguments)[1]


def circuits_an_image(cell: Mapping[str, Any]) -> int:
    """By parameter shift: one, and two for each trained weight."""
    return sum(phase.epochs * (1 + 2 * cell["qubits"] * len(phase.trainable)) for phase in phases(training(cell)))


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


@pytest.mark.parametrize("config", [[], ["--config", str(SMALL)]], ids=["full", "small"])
def test_both_trainings_cost_the_same_shots(config):
    made = cells(settings_of(*config, "--dataset", "digits"))
    costs = {name: {circuits_an_image(each) for each in made if each["training"] == name} for name in TRAININGS}
    (layerwise,), (complete,) = costs.values()
    assert complete == pytest.approx(layerwise, rel=0.02)


def test_full_setting():
    """Every noise and number of shots meets every seed, by both trainings."""
    made = cells(LayerwiseNoiseSettings(data_root=None))
    assert len(made) == 7 * 2 * 10 * 2
    assert {cell["noise"] for cell in made} == set(NOISES)
    assert {cell["seed"] for cell in made} == set(range(10))


def test_a_training_costs_what_its_schedule_says():
    for cell in cells(settings_of(*TINY))[:4]:  # of the first seed
        (row,) = measure(cell, seed())
        assert row["circuits"] == 4 * circuits_an_image(cell)
        assert row["shots_spent"] == 50 * row["circuits"]
        assert measure(cell, seed()) == [row]
        assert {0 <= row[name] <= 1 and row[name] * 8 % 1 == 0 for name in ("test_error", "error_of_weights")} == {True}


def test_starts_are_zeros_or_random_and_the_same_with_any_noise():
    made = cells(settings_of(*TINY))
    for name in TRAININGS:
        starts = []
        for cell in (each for each in made if each["training"] == name and each["seed"] == 1):
            torch.manual_seed(cell["seed"])
            starts.append(torch.cat([*classifier(training(cell), {"backend": None}).parameters()]))
        assert torch.equal(*starts)
        assert bool(starts[0].any()) == (name == "complete")


@pytest.mark.parametrize(("name", "probability"), [(f"depolarising {p} %", p / 100) for p in (0.3, 1, 3)])
def test_depolarising_noise_in_closed_form(name, probability):
    """Z of a qubit shrinks by the noise of each gate that acts on it."""
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cz(0, 1)
    layer = QuantumLayer(circuit, inputs=[angle], observables="IZ", backend=backend_of(name))
    value = layer(torch.tensor([[0.7]], dtype=torch.float64)).item()
    assert value == pytest.approx((1 - probability / 10) * (1 - probability) * math.cos(0.7), abs=1e-12)


@pytest.mark.slow
def test_devices_are_simulated_here():
    pytest.importorskip("qiskit_ibm_runtime")
    devices = {name: backend_of(name) for name in ("Guadalupe", "Montreal", "Brooklyn")}
    assert all(type(backend) is DensityMatrixBackend for backend in devices.values())
    assert {name: backend.simulator.target.num_qubits for name, backend in devices.items()} == {
        "Guadalupe": 16,
        "Montreal": 27,
        "Brooklyn": 65,
    }


def test_error_is_the_share_of_wrong_signs():
    test = Rows(torch.tensor([[1.0], [2.0], [-1.0], [-3.0]]), torch.tensor([1, 0, 0, 0]))
    assert error(torch.nn.Identity(), test) == 0.25


def test_without_noise_is_a_copy():
    made = cells(settings_of(*TINY))
    cell = next(each for each in made if (each["noise"], each["training"]) == ("depolarising 1 %", "complete"))
    model = classifier(training(cell), {"backend": backend_of(cell["noise"]), "shots": 50, "seed": 0})
    twin = without_noise(model)
    assert isinstance(twin.quantum.quantum.backend, StatevectorBackend)
    assert twin.quantum.quantum.shots is None
    assert isinstance(model.quantum.quantum.backend, DensityMatrixBackend)
    assert model.quantum.quantum.shots == 50
    numbers = torch.rand(3, 4)
    again = classifier(training(cell), {"backend": None})
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(numbers), again(numbers))


def test_table_of_known_errors():
    settings = LayerwiseNoiseSettings(noises=("none",), shots=(100,), seeds=4, data_root=None)
    errors = {"layerwise": (0.1, 0.2, 0.3, 0.12), "complete": (0.5, 0.4, 0.45, 0.35)}
    rows = [
        {"noise": "none", "shots": 100, "training": name, "seed": number, "test_error": value}
        | {"error_of_weights": value / 2, "shots_spent": 7}
        for name, values in errors.items()
        for number, value in enumerate(values)
    ]
    found = find(settings, {"measurements": rows})
    (row,) = found.tables["errors"]
    assert (row["layerwise"], row["layerwise, lowest"], row["layerwise, highest"]) == (pytest.approx(0.16), 0.1, 0.3)
    assert (row["complete"], row["complete, lowest"], row["complete, highest"]) == (pytest.approx(0.425), 0.35, 0.5)
    assert row["p"] == pytest.approx(2 / math.comb(8, 4))  # all of the one are below all of the other
    assert row["complete, of the weights"] == pytest.approx(0.2125)
    assert (found.numbers["layerwise_lower"], found.numbers["complete_lower"]) == (1, 0)
    (difference,) = found.tables["differences"]
    by_hand = np.subtract(*errors.values())
    assert difference["layerwise minus complete"] == pytest.approx(-0.245)
    assert difference["layerwise minus complete, standard error"] == pytest.approx(by_hand.std(ddof=1) / 2)
    assert found.numbers["shots_spent"] == {"layerwise": 28, "complete": 28}


@pytest.mark.figures
def test_run_writes_table_and_figure(folder, capsys):
    assert main(["layerwise-noise", *TINY, "--run-dir", str(folder)]) == 0
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert [row["noise"] for row in RunFolder(folder).read_rows("errors.csv")] == ["none", "depolarising 1 %"]
    assert (result(folder)["trainings"], result(folder)["dataset"]) == (8, "digits")
    assert main(["layerwise-noise", "--resume", "--run-dir", str(folder), "--seeds", "3", "--workers", "0"]) == 0
    assert result(folder)["trainings"] == 12
    assert "[9/12]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "1"], "--seeds: got 1, expected at least 2"),
        (["--dataset", "mnist", "--data-root", "null"], "--dataset mnist: got no data root"),
        (["--data-root", "nowhere"], "Got data root 'nowhere'"),
        (["--dataset", "digits", "--train-images", "364"], "expected at most 364 together"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, capsys, arguments, words):
    assert_refused(capsys, folder, words, "layerwise-noise", *arguments)


def test_too_few_layers_for_halves_are_refused():
    with pytest.raises(ValueError, match="partitions: got 2, expected at most the 1 layers"):
        require(settings_of(*TINY, "--steps", "1"))


def test_mistyped_words_are_refused(capsys):
    assert "qubits: got 5, expected one of 4, 6, 9" in said_by_parser(capsys, "layerwise-noise", "--qubits", "5")
    assert "Guadalupe" in said_by_parser(capsys, "layerwise-noise", "--noises", "Guadelupe")
