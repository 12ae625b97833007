"""The study of shot noise: its theory against closed forms, its fits, its repeatability, and what it writes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector
from runs import CONFIGS, assert_refused, result
from scipy import stats

from experiments.__main__ import main
from experiments.common.cells import measured, seed_of
from experiments.common.lines import MeanSquare, fit_plateau, fit_power_law
from experiments.common.noise_models import NoisyBackend
from experiments.common.runs import RunFolder
from experiments.shot_noise import noise, scaling, strategies
from experiments.shot_noise.shot_settings import NOISE_QUBITS, ShotNoiseSettings
from experiments.shot_noise.shot_study import cells, measure, require
from qiskit_torch_bridge import AerBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.circuits import dressed

pytestmark = pytest.mark.usefixtures("no_pictures")

ALPHA = 1e-4
PAIR = ("20 shots", strategies.ALLOCATIONS["20 shots"])
SMALL = CONFIGS / "shot-noise-small.yaml"
TINY = [
    *("--shots", "10", "1000", "--repeats", "20", "--noise-shots", "10", "100", "--noise-repeats", "10"),
    *("--noises", "none", "readout error", "--models", "hybrid CNN", "dressed", "--steps", "3", "--seeds", "1"),
    *("--workers", "0"),
]


def seed(number: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


def assert_standard(z: Any) -> None:
    """Numbers that should be standard normal: their mean, and their spread."""
    z = np.ravel(z)
    assert 2 * stats.norm.sf(abs(z.mean()) * len(z) ** 0.5) > ALPHA, f"mean {z.mean():.2f}"
    chi_square = stats.chi2(len(z))
    assert 2 * min(chi_square.cdf((z**2).sum()), chi_square.sf((z**2).sum())) > ALPHA, f"variance {(z**2).mean():.2f}"


# ------------------------------------------------------------------------------------------------- theory


def test_one_qubit_closed_form():
    """Z after RY(t): sqrt(1 - cos(t)**2) / sqrt(S); its gradient by parameter shift: |cos(t)| / sqrt(2 S)."""
    t = Parameter("t")
    circuit = QuantumCircuit(1)
    circuit.ry(t, 0)
    layer = QuantumLayer(circuit, inputs=[t])
    angles = torch.tensor([[0.3], [1.1], [2.5]], dtype=torch.float64, requires_grad=True)
    layer(angles).sum().backward()
    x = angles.detach().numpy()
    for shots in (10, 1000):
        run = layer.last_run.predicted(shots, gradient="parameter_shift")
        np.testing.assert_allclose(run.standard_errors, np.sqrt(1 - np.cos(x) ** 2) / shots**0.5)
        np.testing.assert_allclose(run.input_gradient_standard_errors, np.abs(np.cos(x)) / (2 * shots) ** 0.5)


def one_shot_variance(angles: np.ndarray) -> float:
    """Of the study's observable: ZZ + Z in the same shots, XX / 2 in shots of their own."""
    circuit, inputs, weights = dressed(3, 1)
    state = Statevector(circuit.assign_parameters(dict(zip([*inputs, *weights], angles.tolist(), strict=True))))
    variance = 0.0
    for part in (SparsePauliOp(["IZZ", "ZII"]), SparsePauliOp(["XXI"], [0.5])):
        variance += state.expectation_value(part @ part).real - state.expectation_value(part).real ** 2
    return variance


def test_theory_follows_from_the_states():
    angles, shots = scaling.ANGLES, 50
    assert scaling.theory(scaling.VALUE, shots)[0] == pytest.approx(one_shot_variance(angles) / shots)
    for name, step, factor in (("parameter shift", np.pi / 2, 2.0), ("finite difference, h = 0.3", 0.3, 0.6)):
        shifts = step * np.eye(len(angles))
        variances = [sum(one_shot_variance(angles + s) for s in (shift, -shift)) / factor**2 for shift in shifts]
        assert scaling.theory(name, shots) == pytest.approx((np.mean(variances) / shots, 0.0))


def test_directions_of_spsa_scatter_by_the_other_derivatives():
    """With many shots and a small step: the sum of the squares of the other derivatives, in the mean over the angles."""
    layer = scaling.measured_layer()
    angles = torch.from_numpy(scaling.ANGLES[None]).requires_grad_()
    layer(angles).sum().backward()
    squares = angles.grad.numpy()[0] ** 2
    expected = np.mean(squares.sum() - squares)
    assert scaling.theory("SPSA, default c", 10**9)[1] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("quantity", [scaling.VALUE, *scaling.RULES])
def test_scatter_and_reported_errors_are_on_theory(quantity):
    z = []
    for shots in (10, 300):
        cell = {"part": "scaling", "quantity": quantity, "shots": shots, "repeats": 300}
        row = scaling.measure_scaling(cell, seed_of(1, cell))
        total = row["theory_variance_of_shots"] + row["theory_variance_of_directions"]
        z.append((row["scatter_variance"] - total) / row["scatter_variance_error"])
        z.append((row["reported_variance"] - row["theory_variance_of_shots"]) / row["reported_variance_error"])
        assert row["scatter_variance_error"] < 0.2 * total, "too few repeats to see anything"
    assert max(map(abs, z)) < 4


# ------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("qubits", [2, 4])
@pytest.mark.parametrize("name", [name for name, each in noise.NOISES.items() if each.device is None])
def test_closed_form_is_the_density_matrix(name, qubits):
    closed, exact = noise.closed_form(noise.NOISES[name], qubits), noise.expectation(name, qubits)
    np.testing.assert_allclose(exact, closed, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "qubits"), [("readout error", 2), ("fake Nairobi", 5)])
def test_expectations_are_those_of_aer(name, qubits):
    """In the mean over many of its shots, readout errors included; a device's circuit is on the study's qubits."""
    told = noise.NOISES[name]
    if told.device is None:
        backend = NoisyBackend(told, method="density_matrix")
    else:
        simulator = resolve_backend(f"fake:{told.device}").simulator
        simulator.set_options(method="density_matrix")
        backend = AerBackend(simulator, initial_layout=told.line[:qubits])
    layer = noise.layer_of(qubits, backend, shots=500_000, seed=1)
    angle = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    value = layer(angle)
    value.sum().backward()
    run = layer.last_run
    z = [(value.item() - np.array([noise.expectation(name, qubits)[0], noise.ideal()[0]])) / run.standard_errors.item()]
    errors = run.input_gradient_standard_errors.item()
    z.append((angle.grad.item() - np.array([noise.expectation(name, qubits)[1], noise.ideal()[1]])) / errors)
    assert np.abs(z)[:, 0].max() < 4
    assert np.abs(z)[:, 1].min() > 10, "the noise is not seen"


def test_closed_forms_by_hand():
    value = np.cos(0.7) * np.cos(0.5)
    told = noise.Noise(depolarizing={"ry": 0.1, "cx": 0.2})
    for qubits in (2, 4):  # every CX of the chain acts on what becomes of Z
        np.testing.assert_allclose(noise.closed_form(told, qubits), 0.9**2 * 0.8 ** (qubits - 1) * noise.ideal())
    # P(0) of (1 + z) / 2 becomes 0.9 P(0) + 0.3 P(1).
    read = noise.closed_form(noise.Noise(zero_as_one=0.1, one_as_zero=0.3), 2)
    assert read[0] == pytest.approx(2 * (0.9 * (1 + value) / 2 + 0.3 * (1 - value) / 2) - 1)
    assert read[1] == pytest.approx(0.6 * noise.ideal()[1])


@pytest.mark.parametrize(
    ("name", "qubits"),
    [
        (noise.IDEAL, 2),
        ("depolarising, 2 qubits", 5),
        ("readout error", 2),
        pytest.param("fake Manila", 5, marks=pytest.mark.slow),
        pytest.param("fake Nairobi", 2, marks=pytest.mark.slow),
    ],
)
def test_simulators_scatter_about_their_expectation(name, qubits):
    """The mean squared error of the value is (1 - z**2) / S + bias**2, with the noisy z."""
    z = []
    for shots in (30, 1000):
        cell = {"part": "noise", "noise": name, "qubits": qubits, "shots": shots, "repeats": 2000}
        value, derivative = noise.measure_noise(cell, seed_of(2, cell))
        assert (value["quantity"], derivative["quantity"]) == noise.QUANTITIES
        expected = (1 - noise.expectation(name, qubits)[0] ** 2) / shots + value["exact_bias"] ** 2
        z.append((value["mean_squared_error"] - expected) / value["mean_squared_error_error"])
        assert value["mean_squared_error_error"] < 0.1 * expected
        if name == noise.IDEAL:
            expected = noise.one_shot()[1] / shots
            z.append((derivative["mean_squared_error"] - expected) / derivative["mean_squared_error_error"])
    assert max(map(abs, z)) < 4


# ------------------------------------------------------------------------------------------------- fits


def power_laws(slope: float, count: int) -> list[Any]:
    """Fits to scatters over 200 normal numbers each, by a power law."""
    rng, shots = np.random.default_rng(3), np.array([10, 100, 1000, 10_000])
    fits = []
    for _ in range(count):
        draws = rng.standard_normal((200, len(shots))) * 2.0 * shots**slope
        fits.append(fit_power_law(shots, [MeanSquare.of(column**2) for column in draws.T], 4.0 / shots))
    return fits


def test_intervals_of_slopes_cover_the_truth():
    fits = power_laws(-0.5, 1500)
    assert all(fit.slope_of_theory == pytest.approx(-0.5) for fit in fits)
    covered = sum(fit.interval[0] <= -0.5 <= fit.interval[1] for fit in fits)
    # The error of a variance is itself estimated, which costs a little of the 95 %.
    assert stats.binomtest(covered, len(fits), 0.945).pvalue > ALPHA
    assert 0.9 < np.std([fit.z for fit in fits]) < 1.1


def test_a_wrong_slope_is_seen():
    fits = power_laws(-0.4, 20)
    assert all(fit.z > 4 for fit in fits)
    assert all(stats.chi2(fit.freedom).sf(fit.chi_square) < ALPHA for fit in fits)


@pytest.mark.parametrize("bias", [0.0, 0.03])
def test_plateaus_are_found(bias):
    rng, shots, repeats = np.random.default_rng(4), np.array([10, 100, 1000, 10_000]), 100
    fits = []
    for _ in range(400):
        draws = bias + rng.standard_normal((repeats, len(shots))) * np.sqrt(0.5 / shots)
        fits.append(fit_plateau(shots, (draws**2).mean(axis=0), repeats))
    assert_standard([fit.z(bias) for fit in fits])
    covered = sum(fit.interval[0] <= bias <= fit.interval[1] for fit in fits)
    assert covered > 0.9 * len(fits)
    assert np.mean([fit.one_shot for fit in fits]) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("squares", [[0.1, 0.1, 0.1], [0.10, 0.11, 0.12]])
def test_noise_that_is_not_seen_beside_the_bias(squares):
    fit = fit_plateau([10, 100, 1000], squares, 20)
    assert fit.interval[0] < fit.bias < fit.interval[1]
    assert fit.bias == pytest.approx(0.33, abs=0.02)


def test_fits_refuse_what_determines_no_line():
    point = MeanSquare(1.0, 0.1)
    with pytest.raises(ValueError, match="two different numbers"):
        fit_power_law([10, 10], [point, point], [1.0, 1.0])
    with pytest.raises(ValueError, match="more repeats"):
        fit_power_law([10, 20], [point, MeanSquare(0.0, 0.0)], [1.0, 1.0])
    with pytest.raises(ValueError, match="tell noise from bias"):
        fit_plateau([10], [1.0], 10)


# ------------------------------------------------------------------------------------------------- training


def trained(model: str, strategy: str, steps: int, number: int = 0) -> Sequence[Any]:
    cell = {"part": "training", "model": model, "strategy": strategy, "steps": steps, "seed": number, "data_root": None}
    return strategies.train(cell, seed_of(0, cell))


def test_shots_of_a_growing_circuit_are_counted():
    """Four phases of two steps: 16 images, a circuit for the value and two for each of the newest layer's 18 weights."""
    rows = trained("layerwise", "20 shots", 8)
    assert [row["total_shots"] for row in rows] == [row["step"] * 16 * 37 * 20 for row in rows]
    assert rows[-1]["step"] == 8


def test_schedules_go_on_when_the_circuit_grows():
    shots = [row["shots_a_circuit"] for row in trained("layerwise", "growing, 2 to 200", 4)]
    assert shots == [round(2 * 100 ** (step / 4)) for step in range(4)]
    adaptive = [row["shots_a_circuit"] for row in trained("layerwise", "target SNR of 2", 4)]
    assert adaptive[0] == 20
    assert all(before / 2 <= after <= 2 * before for before, after in pairwise(adaptive))


def test_sensitivity_saves_shots_behind_a_hinge_and_none_where_all_rows_count_alike():
    """As training goes on, ever more rows are beyond the margin."""
    runs = [trained("dressed", strategy, 60) for strategy in PAIR]
    uniform, sensitive = (rows[-1]["total_shots"] - rows[-3]["total_shots"] for rows in runs)
    assert uniform == (60 - runs[0][-3]["step"]) * 16 * 25 * 20
    assert sensitive < 0.8 * uniform
    uniform, sensitive = (trained("hybrid CNN", strategy, 2)[-1] for strategy in PAIR)
    assert sensitive["total_shots"] == uniform["total_shots"] == 2 * 16 * 3 * 20


def test_strategies_of_a_circuit_without_weights():
    assert set(strategies.STRATEGIES) - set(strategies.strategies_of("hybrid CNN")) == {"target SNR of 2"}
    assert strategies.strategies_of("dressed") == list(strategies.STRATEGIES)


def test_tests_are_exact_and_leave_no_trace():
    task = strategies.dressed(None, 0)
    layer = task.model.quantum
    layer.shots = 20
    before = layer.get_rng_state()
    scores = [strategies.exact_scores(task.model, task.testing.inputs[:5]) for _ in range(2)]
    assert torch.equal(*scores)
    assert (layer.shots, layer.get_rng_state(), layer.total_shots, layer.total_circuits) == (20, before, 0, 0)
    assert task.model.training


# ------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "cell",
    [
        {"part": "scaling", "quantity": "SPSA, default c", "shots": 10, "repeats": 10},
        {"part": "noise", "noise": "depolarising, 1 qubit", "qubits": 3, "shots": 10, "repeats": 10},
        {"part": "training", "model": "dressed", "strategy": "2 shots", "steps": 3, "seed": 1, "data_root": None},
    ],
    ids=lambda cell: cell["part"],
)
def test_a_cell_follows_from_its_seed(cell):
    def rows(number: int) -> Any:
        return measure(cell, seed_of(number, cell))

    state = torch.random.get_rng_state()
    first = rows(5)
    torch.manual_seed(77)
    assert rows(5) == first
    torch.random.set_rng_state(state)
    assert rows(6) != first
    assert torch.equal(torch.random.get_rng_state(), state), "torch's generator is not the cell's to move"
    outcome = measured(measure, cell, 5)
    assert outcome.value is not None, outcome.error


def test_options_know_noises_and_models_by_name():
    assert ShotNoiseSettings().noises == tuple(noise.NOISES)
    assert ShotNoiseSettings().models == tuple(strategies.MODELS)
    lines = [each.line for each in noise.NOISES.values() if each.device is not None]
    assert max(NOISE_QUBITS) == min(map(len, lines))


def test_what_was_measured_elsewhere_is_drawn_without_its_data():
    settings = ShotNoiseSettings(parts=("training",), data_root="nowhere")
    assert {cell["data_root"] for cell in cells(settings)} == {"nowhere"}
    with pytest.raises(FileNotFoundError, match="Got data root 'nowhere'"):
        require(settings)


def test_dry_run_lists_the_cells_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["shot-noise", "--config", str(SMALL), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("part=scaling quantity=value shots=10", "noise=fake Manila qubits=2", "strategy=target SNR of 2"):
        assert words in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.figures
@pytest.mark.slow
def test_small_run_writes_tables_and_figures(folder, capsys):
    assert main(["shot-noise", "--config", str(SMALL), "--run-dir", str(folder), *TINY]) == 0
    names = {path.name for path in folder.iterdir()}
    tables = {"scaling", "slopes", "noise", "plateaus", "training", "strategies", "allocations"}
    assert names >= {f"{name}.csv" for name in tables}
    for name in ("scaling.png", "noise.png", "training.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    found = result(folder)
    assert (found["slopes"], found["plateaus"], found["dataset"]) == (12, 4, "digits")
    slopes = {(row["of"], row["standard error"]): row for row in RunFolder(folder).read_rows("slopes.csv")}
    for row in slopes.values():
        assert row["95 % from"] < row["slope"] < row["to"]
    assert slopes["parameter shift", "reported"]["slope"] == pytest.approx(-0.5, abs=0.05)
    assert "95 % from" in capsys.readouterr().out


def test_parts_can_be_left_out(folder):
    arguments = ["--parts", "scaling", "--shots", "10", "100", "--repeats", "10", "--workers", "0"]
    assert main(["shot-noise", "--run-dir", str(folder), *arguments]) == 0
    assert not (folder / "noise.csv").exists()
    assert "plateaus" not in result(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shots", "100"], "--shots: got [100], expected at least two different numbers"),
        (["--noise-shots", "1", "100"], "--noise-shots: got [1, 100]"),
        (["--noise-qubits", "2", "6"], "--noise-qubits: got [2, 6], expected numbers from 2 to 5"),
        (["--repeats", "5"], "--repeats: got 5, expected at least 10"),
        (["--dataset", "mnist", "--data-root", "null"], "--dataset mnist: got no data root"),
        (["--data-root", "nowhere"], "Got data root 'nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, tmp_path / "run", words, "shot-noise", *arguments)
    assert not list(tmp_path.iterdir())
