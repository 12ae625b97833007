"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

from qiskit_torch_bridge import SPSA, FiniteDifference, GradientRule, ParameterShift

from ..common.cells import Cell, Row
from ..common.studies import Study
from .method_findings import find
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
    return [*_step_cells(settings), *_budget_cells(settings)]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """Rows for all steps of a scheme, its default among them; or for all budgets of a method."""
    problem = Problem.at(cell["circuit"], cell["point"])
    rows = _step_rows if cell["part"] == "step" else _budget_rows
    return list(rows(cell, problem, seed))


def _step_rows(cell: Cell, problem: Problem, seed: np.random.SeedSequence) -> Iterator[Row]:
    grid = np.geomspace(cell["smallest_step"], cell["largest_step"], cell["steps"]).tolist()
    steps = sorted([*grid, FiniteDifference(scheme=cell["scheme"]).default_step(cell["shots"])])
    for step, child in zip(steps, seed.spawn(len(steps)), strict=True):
        rule = FiniteDifference(step=step, scheme=cell["scheme"])
        (without_shots,) = problem.estimates(rule, repeats=1, shots=None, seed=0)
        bias = without_shots - problem.gradient
        estimates = problem.estimates(
            rule, repeats=cell["repeats"], shots=cell["shots"], seed=child.generate_state(4).tolist()
        )
        errors = ((estimates - problem.gradient) ** 2).mean(axis=1)
        yield {
            "step": step,
            "mean_squared_bias": float((bias**2).mean()),
            "variance": float(estimates.var(axis=0, ddof=1).mean()),
            "variance_in_theory": float(problem.predicted_variances(rule, cell["shots"]).mean()),
            "mean_squared_error": float(errors.mean()),
            "its_standard_error": float(errors.std(ddof=1) / np.sqrt(len(errors))),
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
        squares = ((estimates - problem.gradient) ** 2).sum(axis=1) / size**2
        lengths = np.linalg.norm(estimates, axis=1)
        cosines = estimates @ problem.gradient / (np.where(lengths > 0, lengths, 1) * size)
        yield {
            "budget": budget,
            "circuits": circuits,
            "shots_a_circuit": shots,
            "angles": len(problem.gradient),
            "gradient_norm": float(size),
            "squared_relative_error": float(squares.mean()),
            "its_standard_error": float(squares.std(ddof=1) / np.sqrt(len(squares))),
            "cosine": float(cosines.mean()),
            "cosine_standard_error": float(cosines.std(ddof=1) / np.sqrt(len(cosines))),
        }


def _step_cells(settings: MethodSettings) -> Iterator[Cell]:
    kinds = (settings.step_circuits, ("central", "forward"), settings.step_shots, settings.numbered_points)
    for circuit, scheme, shots, point in product(*kinds):
        yield {
            **{"part": "step", "circuit": circuit, "scheme": scheme, "shots": shots, "point": point},
            "repeats": settings.step_repeats,
            "steps": settings.steps,
            "smallest_step": settings.smallest_step,
            "largest_step": settings.largest_step,
        }


def _budget_cells(settings: MethodSettings) -> Iterator[Cell]:
    for circuit, method, point in product(settings.budget_circuits, METHODS, settings.numbered_points):
        yield {
            **{"part": "equal-shots", "circuit": circuit, "method": method, "point": point},
            "repeats": settings.budget_repeats,
            "budgets": list(settings.budgets),
        }


STUDY = Study(
    name="gradient-methods",
    settings=MethodSettings,
    make_cells=cells,
    measure=measure,
    find=find,
    extendable=("points",),
)
