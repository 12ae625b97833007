"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from qiskit_torch_bridge import SPSA, FiniteDifference, GradientRule, ParameterShift

from ..common.cells import Cell, Row
from ..common.lines import MeanSquare, standard_error
from ..common.studies import Study
from .method_findings import SCHEMES, find
from .method_settings import MethodSettings
from .problems import Problem

_SHOTS_OF_A_SAMPLE = 100  # a circuit, where SPSA spends its shots on many samples
METHODS: dict[str, Callable[[int], GradientRule]] = {
    "parameter shift": lambda budget: ParameterShift(),
    "central difference": lambda budget: FiniteDifference(),
    "forward difference": lambda budget: FiniteDifference(scheme="forward"),
    "SPSA, 1 sample": lambda budget: SPSA(),
    "SPSA, many samples": lambda budget: SPSA(samples=max(1, budget // (2 * _SHOTS_OF_A_SAMPLE))),
}
"""What is compared at equal shots: from the shots of a whole gradient to a rule."""


def cells(settings: MethodSettings) -> list[Cell]:
    """The cells of both parts: the step, and equal shots."""
    points = range(settings.seed, settings.seed + settings.points)
    grid = {"steps": settings.steps, "smallest_step": settings.smallest_step, "largest_step": settings.largest_step}
    steps = [
        {"circuit": circuit, "scheme": scheme, "shots": shots, "point": point, "repeats": settings.step_repeats, **grid}
        for circuit, scheme, shots, point in product(settings.step_circuits, SCHEMES, settings.step_shots, points)
    ]
    budgets = {"repeats": settings.budget_repeats, "budgets": list(settings.budgets)}
    equal = [
        {"circuit": circuit, "method": method, "point": point, **budgets}
        for circuit, method, point in product(settings.budget_circuits, METHODS, points)
    ]
    return [{"part": part, **cell} for part, made in (("step", steps), ("equal-shots", equal)) for cell in made]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """Rows for all steps of a scheme, its default among them; or for all budgets of a method."""
    problem = Problem.at(cell["circuit"], cell["point"])
    rows = _step_rows if cell["part"] == "step" else _budget_rows
    return list(rows(cell, problem, seed))


def _step_rows(cell: Cell, problem: Problem, seed: np.random.SeedSequence) -> Iterator[Row]:
    shots, grid = cell["shots"], np.geomspace(cell["smallest_step"], cell["largest_step"], cell["steps"]).tolist()
    steps = sorted([*grid, FiniteDifference(scheme=cell["scheme"]).default_step(shots)])
    for step, child in zip(steps, seed.spawn(len(steps)), strict=True):
        rule = FiniteDifference(step=step, scheme=cell["scheme"])
        (without_shots,) = problem.estimates(rule)
        bias = without_shots - problem.gradient
        estimates = problem.estimates(rule, repeats=cell["repeats"], shots=shots, seed=child.generate_state(4).tolist())
        error = MeanSquare.of(((estimates - problem.gradient) ** 2).mean(axis=1))
        yield {
            "step": step,
            "mean_squared_bias": float((bias**2).mean()),
            "variance": float(estimates.var(axis=0, ddof=1).mean()),
            "variance_in_theory": float(problem.predicted_variances(rule, shots).mean()),
            "mean_squared_error": error.value,
            "its_standard_error": error.error,
        }


def _budget_rows(cell: Cell, problem: Problem, seed: np.random.SeedSequence) -> Iterator[Row]:
    size = np.linalg.norm(problem.gradient)
    for budget, child in zip(cell["budgets"], seed.spawn(len(cell["budgets"])), strict=True):
        rule = METHODS[cell["method"]](budget)
        circuits = problem.circuits(rule)
        if circuits > budget:
            continue
        shots = budget // circuits
        estimates = problem.estimates(rule, repeats=cell["repeats"], shots=shots, seed=child.generate_state(4).tolist())
        error = MeanSquare.of(((estimates - problem.gradient) ** 2).sum(axis=1) / size**2)
        lengths = np.linalg.norm(estimates, axis=1)
        cosines = estimates @ problem.gradient / (np.where(lengths > 0, lengths, 1) * size)
        yield {
            "budget": budget,
            "circuits": circuits,
            "shots_a_circuit": shots,
            "angles": len(problem.gradient),
            "gradient_norm": float(size),
            "squared_relative_error": error.value,
            "its_standard_error": error.error,
            "cosine": float(cosines.mean()),
            "cosine_standard_error": standard_error(cosines),
        }


STUDY = Study(
    name="gradient-methods",
    settings=MethodSettings,
    make_cells=cells,
    measure=measure,
    find=find,
    extendable=("points",),
)
