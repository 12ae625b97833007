"""The study of gradient rules: errors against closed forms, the best step against theory, equal shots."""

import math

import numpy as np
import pytest
from qiskit.quantum_info import SparsePauliOp, Statevector
from runs import result

from experiments.__main__ import main
from experiments.common.cells import seed_of
from experiments.common.options import parse
from experiments.common.runs import RunFolder
from experiments.gradient_methods.method_findings import optimum
from experiments.gradient_methods.method_settings import CIRCUITS as NAMES
from experiments.gradient_methods.method_settings import MethodSettings
from experiments.gradient_methods.method_study import METHODS, cells, measure
from experiments.gradient_methods.problems import CIRCUITS, Problem
from qiskit_torch_bridge import SPSA, FiniteDifference, ParameterShift

TINY = [
    *("--step-circuits", "one qubit", "--step-shots", "100", "--steps", "9", "--step-repeats", "30"),
    *("--budget-circuits", "dressed, 4 qubits", "--budgets", "20", "3000", "--budget-repeats", "5", "--points", "2"),
    *("--workers", "0"),
]


def measured(*arguments, part):
    """The rows of one part of a run with these options, measured here."""
    _, settings = parse("gradient-methods", MethodSettings, arguments)
    chosen = [cell for cell in cells(settings) if cell["part"] == part]
    return [{**cell, **row} for cell in chosen for row in measure(cell, seed_of(settings.seed, cell))]


def test_options_know_the_circuits_by_name():
    assert tuple(CIRCUITS) == NAMES
    assert "; ".join(NAMES) in MethodSettings.__doc__


@pytest.mark.parametrize("name", [name for name in CIRCUITS if "8" not in name])
def test_exact_gradient_is_that_of_qiskit(name):
    problem, step = Problem.at(name, 1), 1e-4
    observable = SparsePauliOp("Z" + "I" * (problem.circuit.num_qubits - 1))

    def value(point):
        circuit = problem.circuit.assign_parameters(dict(zip(problem.parameters, point, strict=True)))
        return Statevector(circuit).expectation_value(observable).real

    units = step * np.eye(len(problem.point))
    slopes = [(value(problem.point + unit) - value(problem.point - unit)) / (2 * step) for unit in units]
    assert problem.gradient == pytest.approx(np.array(slopes)[problem.matter], abs=1e-7)
    assert np.delete(slopes, problem.matter) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_bias_and_variance_in_closed_form(scheme):
    point, step, shots = np.pi / 8, 0.5, 200
    problem, rule = Problem.at("one qubit", 0), FiniteDifference(step=step, scheme=scheme)
    (found,) = problem.estimates(rule)
    (predicted,) = problem.predicted_variances(rule, shots)
    if scheme == "central":
        assert found == pytest.approx([-math.sin(point) * math.sin(step) / step])
        spread = (math.sin(point + step) ** 2 + math.sin(point - step) ** 2) / (4 * step**2 * shots)
    else:
        assert found == pytest.approx([(math.cos(point + step) - math.cos(point)) / step])
        spread = (math.sin(point + step) ** 2 + math.sin(point) ** 2) / (step**2 * shots)
    assert predicted == pytest.approx(spread)


@pytest.mark.parametrize("rule", [ParameterShift(), FiniteDifference(step=0.3), SPSA(step=0.3, samples=3)])
def test_repeats_are_independent(rule):
    problem, repeats = Problem.at("dressed, 4 qubits", 0), 300
    found = problem.estimates(rule, repeats=repeats, shots=50, seed=1)
    assert found.shape == (repeats, len(problem.gradient))
    neighbours = np.mean((found[1:] - found.mean(axis=0)) * (found[:-1] - found.mean(axis=0)), axis=0)
    assert np.all(np.abs(neighbours) < 4.5 * found.var(axis=0) / math.sqrt(repeats))
    assert np.array_equal(found, problem.estimates(rule, repeats=repeats, shots=50, seed=1))
    assert not np.array_equal(found, problem.estimates(rule, repeats=repeats, shots=50, seed=2))


@pytest.mark.slow
def test_measured_errors_are_those_of_theory():
    options = ("--step-circuits", "dressed, 4 qubits", "--step-shots", "300", "--steps", "8", "--step-repeats", "150")
    scores = [
        (row["mean_squared_error"] - row["mean_squared_bias"] - row["variance_in_theory"]) / row["its_standard_error"]
        for row in measured(*options, "--points", "2", part="step")
    ]
    assert np.max(np.abs(scores)) < 4.5
    assert np.std(scores) == pytest.approx(1, abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("shots", [1000, 10_000])
def test_least_error_is_at_the_default_step_on_a_sinusoid(shots):
    """The measured curve against the formula that the default step minimises, in the mean over a sinusoid's phases."""
    options = ("--step-circuits", "one qubit", "--step-shots", str(shots), "--step-repeats", "2000", "--points", "2")
    measured_rows = measured(*options, "--smallest-step", "0.08", "--largest-step", "0.8", part="step")
    for scheme in ("central", "forward"):
        rows = [row for row in measured_rows if row["scheme"] == scheme]
        steps = np.unique([row["step"] for row in rows])

        def mean(name, power=1, rows=rows, steps=steps):
            return np.array([np.mean([row[name] ** power for row in rows if row["step"] == step]) for step in steps])

        errors = np.sqrt(mean("its_standard_error", 2) / 2)
        found, error = optimum(steps, mean("mean_squared_error"), errors)
        default = FiniteDifference(scheme=scheme).default_step(shots)
        # The default's formula is the leading order in the step, which moves the minimum by some per cent of the step.
        assert abs(found - default) < 4 * error + 0.06 * default
        assert error < 0.1 * default


def test_optimum_of_a_known_curve():
    steps = np.geomspace(0.1, 2, 15)
    curve = np.exp((np.log(steps) - math.log(0.5)) ** 2)
    assert optimum(steps, curve, 0.01 * curve)[0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="expected a minimum"):
        optimum(steps, 1 / curve, 0.01 / curve, around=7)


def test_optimums_error_is_its_spread(rng):
    steps = np.geomspace(0.1, 2, 15)
    curve = np.exp((np.log(steps) - math.log(0.5)) ** 2)
    found = [optimum(steps, curve * (1 + 0.02 * rng.standard_normal(15)), 0.02 * curve, around=8) for _ in range(500)]
    scores = [(place - 0.5) / error for place, error in found]
    assert np.std(scores) == pytest.approx(1, abs=0.15)
    assert abs(np.mean(scores)) < 0.3


def test_equal_shots_are_equal():
    rows = measured(*TINY, part="equal-shots")
    assert {row["method"] for row in rows} == set(METHODS)
    for row in rows:
        assert row["circuits"] * row["shots_a_circuit"] <= row["budget"]
        assert row["circuits"] * (row["shots_a_circuit"] + 1) > row["budget"]
        assert -1 <= row["cosine"] <= 1
    circuits = {row["method"]: row["circuits"] for row in rows if row["budget"] == 3000}
    assert circuits["SPSA, 1 sample"] == 2
    assert circuits["SPSA, many samples"] == 30
    assert circuits["parameter shift"] == circuits["central difference"] == 2 * (circuits["forward difference"] - 1)
    assert "parameter shift" not in {row["method"] for row in rows if row["budget"] == 20}


def test_parameter_shift_is_as_good_as_its_shots():
    """Its squared error is the sum of the variances of its components, which follow from exact values."""
    budget = 10_000
    for row in measured(*TINY, "--budgets", str(budget), "--budget-repeats", "300", part="equal-shots"):
        if row["method"] == "parameter shift":
            problem = Problem.at(row["circuit"], row["point"])
            quarter = FiniteDifference(step=math.pi / 2)  # the same two circuits, divided by pi instead of 2
            spread = problem.predicted_variances(quarter, row["shots_a_circuit"]).sum() * (math.pi / 2) ** 2
            expected = spread / (problem.gradient @ problem.gradient)
            assert abs(row["squared_relative_error"] - expected) < 4 * row["its_standard_error"]


@pytest.mark.slow
def test_study_from_the_command_line(folder):
    assert main(["gradient-methods", *TINY, "--run-dir", str(folder)]) == 0
    best = RunFolder(folder).read_rows("best-steps.csv")
    assert [row["scheme"] for row in best] == ["central", "forward"]
    assert best[0]["default step"] == pytest.approx(FiniteDifference().default_step(100))
    assert len(RunFolder(folder).read_rows("errors.csv")) == 8  # two budgets; 20 shots are too few for 38 circuits
    assert result(folder)["budget"] == 3000
    assert all((folder / name).stat().st_size > 10_000 for name in ("step.png", "equal-shots.png"))
