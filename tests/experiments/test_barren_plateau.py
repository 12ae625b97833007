"""The barren plateau study: derivatives against Qiskit, variances against theory, fits against known lines."""

import math

import numpy as np
import pytest
from qiskit.quantum_info import SparsePauliOp, Statevector
from runs import result

from experiments.__main__ import main
from experiments.barren_plateau.descent import STRATEGIES, plateau_circuit, train
from experiments.barren_plateau.ensemble import OBSERVABLES, angles_of_samples, circuit_of_all_axes, derivatives
from experiments.barren_plateau.theory import SLOPES, deep_variance, variance_of_pauli
from experiments.common.cells import seed_of
from experiments.common.lines import MeanSquare, fit_line
from experiments.common.runs import RunFolder

TINY = [
    *("--qubits", "2", "4", "6", "--deep", "3", "--shallow", "2", "--samples", "150", "--shallow-samples", "100"),
    *("--profile-qubits", "4", "--profile-layers", "1", "8"),
    *("--train-qubits", "2", "--train-steps", "4", "--train-repeats", "2", "--workers", "0"),
]


def expectations(circuit, num_qubits):
    state = Statevector(circuit)
    paulis = ["I" * (num_qubits - 2) + "ZZ", "Z" * num_qubits]
    values = [state.expectation_value(SparsePauliOp(pauli)).real for pauli in paulis]
    return np.array([*values, abs(state.data[0]) ** 2])


def spreads(found):
    return [MeanSquare.of_sums(len(found), (found[:, m] ** 2).sum(), (found[:, m] ** 4).sum()) for m in range(3)]


@pytest.mark.parametrize("start", ["uniform", "zeros", "grown"])
def test_derivatives_are_those_of_qiskit(start, rng):
    qubits, layers, step = 3, 4, 1e-4
    circuit, parameters = circuit_of_all_axes(qubits, layers)
    angles, columns = angles_of_samples(5, qubits, layers, start, rng)
    found, _ = derivatives(angles, columns, qubits, layers)
    for row, column, mine in zip(angles, columns, found, strict=True):
        shift = step * (np.arange(len(row)) == column)
        bound = [circuit.assign_parameters(dict(zip(parameters, row + s, strict=True))) for s in (shift, -shift)]
        up, down = (expectations(each, qubits) for each in bound)
        assert mine == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_derivatives_and_their_shot_noise_in_closed_form():
    """One layer of RY: <Z Z> is a product of cosines, which the CZ gate behind it does not change."""
    first, second = np.array([0.3, 2.0, 4.4]), np.array([1.1, 5.0, 0.2])
    angles = np.zeros((3, 6))
    angles[:, 1], angles[:, 4] = first, second
    found, one_shot = derivatives(angles, np.full(3, 1), 2, 1)
    expected = -np.sin(np.pi / 4 + first) * np.cos(np.pi / 4 + second)
    assert found[:, 0] == pytest.approx(expected)
    assert found[:, 1] == pytest.approx(expected)  # on two qubits the global Pauli is the local one
    assert found[:, 2] == pytest.approx(-np.sin(np.pi / 4 + first) / 2 * np.cos((np.pi / 4 + second) / 2) ** 2)
    # At first +- pi/2 the values are -+ sin cos, so that both circuits have the same variance, 1 - derivative**2.
    assert one_shot[:, 0] == pytest.approx((1 - expected**2) / 2)


def test_samples_are_different_circuits(rng):
    angles, columns = angles_of_samples(200, 3, 5, "uniform", rng)
    rotations = angles.reshape(200, 5, 3, 3)
    assert (np.count_nonzero(rotations, axis=3) == 1).all()
    assert set(columns) == {0, 1, 2}
    assert len(np.unique(rotations != 0, axis=0)) == 200
    grown, columns = angles_of_samples(200, 3, 5, "grown", rng)
    assert not grown.reshape(200, 5, 9)[:, 3:].any()
    assert set(columns) == {27, 28, 29}


def test_zero_start_in_closed_form(rng):
    """Only a rotation about Y in the first place changes <Z> there; an even number of layers at zero is the identity."""
    for qubits in (2, 4, 6):
        angles, columns = angles_of_samples(30, qubits, 4, "zeros", rng)
        found, _ = derivatives(angles, columns, qubits, 4)
        about_y = columns == 1
        assert about_y.any()
        assert not about_y.all()
        assert found[~about_y] == pytest.approx(0)
        assert found[about_y, 0] == pytest.approx(-1 / 2)
        assert found[about_y, 1] == pytest.approx(-(2 ** (-qubits / 2)))


@pytest.mark.parametrize(("qubits", "layers"), [(2, 1), (2, 3), (3, 2), (4, 3), (5, 6)])
def test_exact_theory_of_paulis_is_what_is_measured(qubits, layers, rng):
    found, _ = derivatives(*angles_of_samples(4000, qubits, layers, "uniform", rng), qubits, layers)
    local, everywhere, _ = spreads(found)
    strings = [[3, 3, *[0] * (qubits - 2)], [3] * qubits]
    for spread, string in zip((local, everywhere), strings, strict=True):
        assert abs(spread.value - variance_of_pauli(string, layers)) < 4 * spread.error
    assert np.all(np.abs(found.mean(axis=0)) < 4 * found.std(axis=0) / math.sqrt(4000))


@pytest.mark.parametrize("qubits", [2, 3, 5])
def test_exact_theory_meets_the_plateau(qubits):
    deep = variance_of_pauli([3, 3, *[0] * (qubits - 2)], 200)
    assert deep == pytest.approx(deep_variance("Z0 Z1", qubits), rel=1e-6)
    assert variance_of_pauli([3] * qubits, 200) == pytest.approx(deep, rel=1e-6)


def test_theory_has_its_slopes():
    for (start, name), slope in SLOPES.items():
        ratio = deep_variance(name, 21, start) / deep_variance(name, 20, start)
        assert math.log(ratio) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("start", ["uniform", "grown", "zeros"])
def test_deep_circuits_are_where_theory_puts_them(start, rng):
    qubits, layers = 4, 40
    found, _ = derivatives(*angles_of_samples(4000, qubits, layers, start, rng), qubits, layers)
    for name, spread in zip(OBSERVABLES, spreads(found), strict=True):
        assert abs(spread.value - deep_variance(name, qubits, start)) < 4 * spread.error
        assert spread.error < 0.1 * spread.value


def test_spread_and_its_error(rng):
    numbers = rng.standard_normal((300, 500))
    found = [MeanSquare.of_sums(500, (row**2).sum(), (row**4).sum()) for row in numbers]
    scores = np.array([(spread.value - 1) / spread.error for spread in found])
    assert abs(scores.mean()) < 0.3
    assert scores.std() == pytest.approx(1, abs=0.2)


def test_fit_of_a_line_is_exact():
    sizes = [2, 4, 7]
    fit = fit_line(sizes, [MeanSquare(math.exp(1.5 - 0.7 * n), 0.01 * n) for n in sizes])
    assert (fit.slope, fit.intercept) == pytest.approx((-0.7, 1.5))
    assert fit.chi_square == pytest.approx(0, abs=1e-12)
    assert fit.interval[0] < -0.7 < fit.interval[1]


def test_fit_weighs_points_by_their_errors():
    sure, unsure = MeanSquare(1.0, 1e-3), MeanSquare(9.0, 5.0)
    fit = fit_line([1, 2, 3], [sure, sure, unsure])
    assert abs(fit.slope) < 0.01


def test_confidence_interval_covers_as_often_as_it_says(rng):
    sizes, slope, samples, times = np.array([4, 6, 8, 10, 12]), -0.69, 400, 1000
    covered = 0
    for _ in range(times):
        scales = np.exp(slope * sizes / 2)
        numbers = scales[:, None] * rng.standard_normal((len(sizes), samples))
        fit = fit_line(sizes, [MeanSquare.of_sums(samples, (row**2).sum(), (row**4).sum()) for row in numbers])
        covered += fit.interval[0] < slope < fit.interval[1]
    assert abs(covered / times - 0.95) < 4 * math.sqrt(0.95 * 0.05 / times)


def test_fit_refuses_what_has_no_line():
    with pytest.raises(ValueError, match="two different"):
        fit_line([4, 4], [MeanSquare(1.0, 0.1)] * 2)
    with pytest.raises(ValueError, match="take more samples"):
        fit_line([4, 6], [MeanSquare(0.0, 0.0)] * 2)


def test_trained_circuit_is_one_of_the_ensemble(rng):
    qubits, layers = 3, 4
    axes, values = rng.integers(3, size=(layers, qubits)), rng.uniform(0, 6, size=(layers, qubits))
    circuit, inputs, weights = plateau_circuit(axes)
    assert len(inputs) == 0
    bound = circuit.assign_parameters(dict(zip(weights.values(), values, strict=True)))
    whole, parameters = circuit_of_all_axes(qubits, layers)
    angles = np.zeros((layers, qubits, 3))
    np.put_along_axis(angles, axes[..., None], values[..., None], axis=2)
    other = whole.assign_parameters({parameters: angles.ravel()})
    assert Statevector(bound).equiv(Statevector(other))


def test_training_layer_by_layer_spends_fewer_shots():
    def trained(strategy):
        cell = {"part": "training", "qubits": 4, "layers": 8, "strategy": strategy, "steps": 8, "shots": 50, "lr": 0.1}
        return train(cell, seed_of(0, cell))

    found = {strategy: trained(strategy) for strategy in STRATEGIES}
    assert trained("layer by layer") == found["layer by layer"]
    assert found["random start"]["shots_spent"] == found["zero start"]["shots_spent"]
    # Half of the layers in the mean, and of these only the newest trained; some weights change nothing, and cost nothing.
    assert 8 * 50 * 55 < found["zero start"]["shots_spent"] <= 8 * 50 * (1 + 2 * 32)
    assert found["layer by layer"]["shots_spent"] <= 8 * 50 * (1 + 2 * 8)
    assert all(-1 <= each["cost"] <= 1 and each["first_gradient_rms"] > 0 for each in found.values())
    assert found["zero start"]["cost"] < 0.5  # where it starts


@pytest.mark.slow
def test_study_from_the_command_line(folder):
    assert main(["barren-plateau", *TINY, "--run-dir", str(folder)]) == 0
    rows = RunFolder(folder).read_rows("variance.csv")
    deep = [row for row in rows if row["qubits"] == 6 and row["layers"] == 18 and row["start"] == "uniform"]
    assert sorted({(row["number"], row["samples"]) for row in deep}) == [(0, 128), (1, 22)]
    found = result(folder)
    assert found["slope_low"] < found["slope"] < found["slope_high"] < 0
    assert len(RunFolder(folder).read_rows("summary.csv")) == 12
    assert len(RunFolder(folder).read_rows("trained.csv")) == 3
    assert all((folder / name).stat().st_size > 10_000 for name in ("variance.png", "training.png"))
