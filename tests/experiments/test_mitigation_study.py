"""The study of error mitigation: its numbers against closed forms, its settings, and a small run."""

import math

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp, Statevector
from runs import result

pytest.importorskip("qiskit_ibm_runtime", reason="fake devices need qiskit-ibm-runtime")

from experiments.__main__ import main
from experiments.common.cells import key_of, seed_of
from experiments.common.options import parse
from experiments.common.runs import RunFolder
from experiments.common.workplace import layer_options
from experiments.experiment_settings import SpiralsSettings
from experiments.gradient_methods.problems import CIRCUITS, Problem
from experiments.mitigation_study.mitigation_findings import worth_from
from experiments.mitigation_study.mitigation_settings import CIRCUITS as NAMES
from experiments.mitigation_study.mitigation_settings import METHODS as METHOD_NAMES
from experiments.mitigation_study.mitigation_settings import MitigationSettings
from experiments.mitigation_study.mitigation_study import METHODS, STUDY, cells, measure
from qiskit_torch_bridge import DensityMatrixBackend, ReadoutCorrection, TwirledReadout, ZeroNoiseExtrapolation
from qiskit_torch_bridge.backends.ibm.device import fake_device

TINY = [
    *("--devices", "lagos", "--circuits", "dressed, 4 qubits", "--methods", "none", "line 1, 3", "--repeats", "20"),
    *("--points", "1", "--trained-devices", "lagos", "--trained-methods", "none", "--steps", "2", "--seeds", "2"),
    *("--executions", "480", "--workers", "0"),
]


def test_options_know_circuits_and_methods_by_name():
    assert tuple(METHODS) == METHOD_NAMES
    assert set(NAMES) <= set(CIRCUITS)
    text = " ".join((MitigationSettings.__doc__ or "").split())
    assert all("; ".join(names) in text for names in (NAMES, METHOD_NAMES))
    every = cells(STUDY.settings())
    assert len({key_of(cell) for cell in every}) == len(every)


@pytest.mark.parametrize(
    "options",
    [
        ["--circuits", "mine"],
        ["--methods", "readout"],
        ["--methods", "none", "mine"],
        ["--trained-methods", "readout"],
        ["--repeats", "1"],
        ["--executions", "100"],
    ],
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=f"{options[0]}: got"):
        parse("mitigation", MitigationSettings, options)


@pytest.mark.parametrize(
    ("plain", "mitigated", "expected"),
    [
        ((0.04, 1.0), (0.0, 5.0), 100.0),  # 0.04 + 1 / n = 5 / n
        ((0.04, 1.0), (0.01, 4.0), 100.0),
        ((0.04, 1.0), (0.01, 0.5), 0.0),
        ((0.01, 1.0), (0.02, 3.0), math.inf),
        ((0.01, 1.0), (0.01, 3.0), math.inf),
    ],
)
def test_from_how_many_executions_on_it_is_worth_them(plain, mitigated, expected):
    assert worth_from(plain, mitigated) == pytest.approx(expected)
    if 0 < expected < math.inf:
        for factor, better in ((0.5, False), (2.0, True)):
            errors = [bias + variance / (factor * expected) for bias, variance in (plain, mitigated)]
            assert (errors[1] < errors[0]) is better


def test_errors_are_those_of_exact_simulation_and_of_one_shot():
    _, settings = parse("mitigation", MitigationSettings, [*TINY, "--repeats", "60", "--methods", "none"])
    cell = cells(settings)[0]
    (row,) = measure(cell, seed_of(0, cell))
    problem = Problem.at(cell["circuit"], cell["point"])
    circuit = problem.circuit.assign_parameters(dict(zip(problem.parameters, problem.point, strict=True)))
    ideal = Statevector(circuit).expectation_value(SparsePauliOp("ZIII")).real
    noisy = problem.layer(backend=DensityMatrixBackend(device=fake_device("lagos")))(
        torch.from_numpy(problem.point)
    ).item()
    assert row["squared_bias_of_value"] == pytest.approx((noisy - ideal) ** 2, abs=1e-9)
    # Of so many squared normal numbers, whose relative standard deviation is sqrt(2).
    assert row["variance_of_value"] == pytest.approx(1 - noisy**2, rel=4 * math.sqrt(2 / 60))
    weights = len(problem.gradient)
    assert 0.3 < row["variance_of_gradient"] / (weights / 2) < 1  # each (1 - v**2) / 4 at two points
    assert row["circuits"] == 1


@pytest.mark.slow
def test_study_from_the_command_line(folder):
    assert main(["mitigation", *TINY, "--run-dir", str(folder)]) == 0
    rows = RunFolder(folder).read_rows("worth.csv")
    assert [row["method"] for row in rows] == ["none", "line 1, 3"]
    assert rows[1]["bias of the gradient"] < 0.6 * rows[0]["bias of the gradient"]
    assert rows[1]["error of one execution, gradient"] > 1.5 * rows[0]["error of one execution, gradient"]
    assert len(RunFolder(folder).read_rows("accuracies.csv")) == 1
    worth = result(folder)["worth_from_executions"]["lagos, dressed, 4 qubits, line 1, 3"]
    assert np.isfinite(worth["gradient"])
    assert (folder / "errors.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (None, []),
        ("zne,readout", [ReadoutCorrection(), ZeroNoiseExtrapolation()]),  # in the order that they have to have
        ("zne , twirled_readout", [TwirledReadout(), ZeroNoiseExtrapolation()]),
    ],
)
def test_mitigation_on_the_command_line(word, expected):
    arguments = ["--backend", "noisy:manila", "--shots", "10", *(["--mitigation", word] if word else [])]
    _, settings = parse("spirals", SpiralsSettings, arguments)
    assert layer_options(settings)["mitigation"] == expected


@pytest.mark.parametrize("word", ["zme", "zne,zne", "", "readout;zne"])
def test_methods_that_there_are_not(word):
    with pytest.raises(ValueError, match="--mitigation: got"):
        parse("spirals", SpiralsSettings, ["--mitigation", word])
