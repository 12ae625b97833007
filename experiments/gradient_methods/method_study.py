"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt

from qiskit_torch_bridge import SPSA, FiniteDifference, GradientRule, ParameterShift

from ..common.cells import Cell, Row
from ..common.options import Settings, add_option, flag
from ..common.sweeps import Study, study_parser
from .method_findings import METHODS, find
from .problems import CIRCUITS, Problem

_SHOTS_OF_A_SAMPLE = 100  # a circuit, where SPSA spends its shots on many samples
_RULES: dict[str, Callable[[int], GradientRule]] = {
    "parameter shift": lambda budget: ParameterShift(),
    "central difference": lambda budget: FiniteDifference(),
    "forward difference": lambda budget: FiniteDifference(scheme="forward"),
    "SPSA, 1 sample": lambda budget: SPSA(),
    "SPSA, many samples": lambda budget: SPSA(samples=max(1, budget // (2 * _SHOTS_OF_A_SAMPLE))),
}
"""By the names of :data:`~.method_findings.METHODS`; from the shots of a whole gradient to a rule."""


def parser() -> Any:
    """The study's options; their defaults are the full setting."""
    from . import __doc__ as description

    parser = study_parser("gradient-methods", description or "")
    add = partial(add_option, parser)
    add("--step-circuits", str, list(CIRCUITS)[:3], f"Circuits for the step: {'; '.join(CIRCUITS)}.")
    add("--step-shots", PositiveInt, [100, 1000, 10_000], "Shots a circuit.")
    add("--steps", PositiveInt, 15, "Steps on a logarithmic scale.")
    add("--smallest-step", PositiveFloat, 0.04, "The first, in radians.")
    add("--largest-step", PositiveFloat, 2.0, "The last, in radians.")
    add("--step-repeats", PositiveInt, 400, "Gradients at each step and point.")
    add("--budget-circuits", str, list(CIRCUITS)[1:], "Circuits for equal shots.")
    add("--budgets", PositiveInt, [1000, 3000, 10_000, 30_000, 100_000, 300_000], "Shots of a whole gradient.")
    add("--budget-repeats", PositiveInt, 50, "Gradients of each method at each point.")
    add("--points", PositiveInt, 4, "Points of each circuit, an even number.")
    return parser


def cells(settings: Settings) -> list[Cell]:
    """The cells of both parts: the step, and equal shots.

    Raises:
        ValueError: If a circuit is unknown, or a number does not serve.
    """
    for name in ("step_circuits", "budget_circuits"):
        if strange := sorted(set(settings[name]) - CIRCUITS.keys()):
            raise ValueError(f"{flag(name)}: got {strange}, expected some of {list(CIRCUITS)}.")
    for name, least in (("steps", 7), ("step_repeats", 2), ("budget_repeats", 2)):
        if settings[name] < least:
            raise ValueError(f"{flag(name)}: got {settings[name]}, expected at least {least}.")
    if settings["points"] % 2:
        raise ValueError(
            f"--points: got {settings['points']}, expected an even number; those of one qubit go in pairs."
        )
    if settings["smallest_step"] >= settings["largest_step"]:
        raise ValueError(
            f"--smallest-step: got {settings['smallest_step']}, expected less than --largest-step "
            f"{settings['largest_step']}."
        )
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
        rule = _RULES[cell["method"]](budget)
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


def _points(settings: Settings) -> range:
    return range(settings["seed"], settings["seed"] + settings["points"])


def _step_cells(settings: Settings) -> Iterator[Cell]:
    kinds = (settings["step_circuits"], ("central", "forward"), settings["step_shots"], _points(settings))
    for circuit, scheme, shots, point in product(*kinds):
        yield {
            **{"part": "step", "circuit": circuit, "scheme": scheme, "shots": shots, "point": point},
            "repeats": settings["step_repeats"],
            **{name: settings[name] for name in ("steps", "smallest_step", "largest_step")},
        }


def _budget_cells(settings: Settings) -> Iterator[Cell]:
    for circuit, method, point in product(settings["budget_circuits"], METHODS, _points(settings)):
        yield {
            **{"part": "equal-shots", "circuit": circuit, "method": method, "point": point},
            "repeats": settings["budget_repeats"],
            "budgets": settings["budgets"],
        }


STUDY = Study("gradient-methods", parser, cells, measure, find=find, extendable=("points",))
