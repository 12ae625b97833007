"""What the errors of the rules come to: best steps, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qiskit_torch_bridge import FiniteDifference

from ..common.comparison import grouped
from ..common.panels import Mark, Table, columns, draw_points, finish, marks
from ..common.studies import Findings, Tables
from .method_settings import MethodSettings

SCHEMES = ("central", "forward")
_REACH = 3  # points on each side of the middle of a parabola


def optimum(
    steps: np.ndarray, values: np.ndarray, errors: np.ndarray, *, around: int | None = None
) -> tuple[float, float]:
    """Where a curve is least, by a parabola through logarithms of some points around; and the standard error of that.

    Args:
        steps: Shape (K,), ascending.
        values: Shape (K,), above zero.
        errors: Shape (K,), their standard errors.
        around: The middle of the points that are used; None: the smallest value. Name it to treat two curves alike.

    Raises:
        ValueError: If the parabola has no minimum.
    """
    middle = int(np.argmin(values)) if around is None else around
    window = slice(max(0, middle - _REACH), middle + _REACH + 1)
    x, y = np.log(steps[window] / steps[middle]), np.log(values[window])
    weights = values[window] / errors[window]
    (square, linear, _), covariance = np.polyfit(x, y, 2, w=weights, cov="unscaled")
    if square <= 0:
        raise ValueError(f"values: got {values[window].tolist()}, expected a minimum within; take other steps.")
    gradient = np.array([linear / (2 * square**2), -1 / (2 * square), 0.0])
    place = float(steps[middle]) * math.exp(-linear / (2 * square))
    return place, place * math.sqrt(gradient @ covariance @ gradient)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Squared errors of a gradient's components against the step, in the mean over components and points.

    Attributes:
        steps: Shape (K,), ascending, in radians.
        squared_bias: Shape (K,), of exact values.
        squared_error: Shape (K,), measured.
        standard_error: Shape (K,), that of the squared error.
        in_theory: Shape (K,), the squared bias and the variance that follows from exact values.
        default: The place of the rule's default step.
    """

    steps: np.ndarray
    squared_bias: np.ndarray
    squared_error: np.ndarray
    standard_error: np.ndarray
    in_theory: np.ndarray
    default: int


def find(settings: MethodSettings, tables: Tables) -> Findings:
    """Tables and figures of both parts."""
    groups = grouped(tables["step"], itemgetter("circuit", "scheme", "shots"))
    kinds = product(settings.step_circuits, SCHEMES, settings.step_shots)
    curves = {kind: _curve(groups[kind]) for kind in kinds}
    best = [_best_row(*key, curve) for key, curve in curves.items()]
    by_budget = grouped(tables["equal-shots"], itemgetter("circuit", "method", "budget"))
    spent = [_equal_shots_row(circuit, method, shots, rows) for (circuit, method, shots), rows in by_budget.items()]
    most = max(settings.budgets)
    numbers = {
        "largest_best_step_score": max(
            abs(row["best step"] - row["in theory"]) / row["its standard error"] for row in best
        ),
        "largest_loss_by_the_default_step": max(row["default's error over the least"] for row in best),
        "budget": most,
        "relative_errors": {
            f"{row['circuit']}, {row['method']}": row["relative error"] for row in spent if row["shots"] == most
        },
    }
    figures = {"step.png": _step_figure(settings, curves), "equal-shots.png": _equal_shots_figure(settings, spent)}
    return Findings(numbers, {"best-steps": best, "errors": spent}, figures)


def _curve(rows: Table) -> Curve:
    names = "mean_squared_bias", "variance_in_theory", "mean_squared_error", "its_standard_error"
    by_step = sorted(grouped(rows, itemgetter("step")).items())
    steps = np.array([step for step, _ in by_step])
    bias, variance, error, _ = np.transpose([columns(group, *names).mean(axis=1) for _, group in by_step])
    default = FiniteDifference(scheme=rows[0]["scheme"]).default_step(rows[0]["shots"])
    return Curve(
        steps=steps,
        squared_bias=bias,
        squared_error=error,
        standard_error=np.array([_pooled(group, "its_standard_error") for _, group in by_step]),
        in_theory=bias + variance,
        default=int(np.argmin(np.abs(steps - default))),
    )


def _pooled(group: Table, name: str) -> float:
    """The standard error of a mean of numbers with these standard errors."""
    return math.sqrt(sum(row[name] ** 2 for row in group)) / len(group)


def _best_row(circuit: str, scheme: str, shots: int, curve: Curve) -> dict[str, Any]:
    middle, relative = int(np.argmin(curve.in_theory)), curve.standard_error / curve.squared_error
    best, error = optimum(curve.steps, curve.squared_error, curve.standard_error, around=middle)
    in_theory, _ = optimum(curve.steps, curve.in_theory, curve.in_theory * relative, around=middle)
    at_default = curve.squared_error[curve.default]
    return {
        "circuit": circuit,
        "scheme": scheme,
        "shots a circuit": shots,
        "best step": best,
        "its standard error": error,
        "in theory": in_theory,
        "default step": float(curve.steps[curve.default]),
        "error at the default": math.sqrt(at_default),
        "default's error over the least": math.sqrt(at_default / curve.in_theory.min()),
    }


def _equal_shots_row(circuit: str, method: str, budget: int, group: Table) -> dict[str, Any]:
    names = "angles", "circuits", "squared_relative_error", "cosine"
    angles, circuits, square, cosine = columns(group, *names).mean(axis=1).tolist()
    relative = math.sqrt(square)
    return {
        "circuit": circuit,
        "angles": round(angles),
        "method": method,
        "shots": budget,
        "circuits": round(circuits),
        "relative error": relative,
        "its standard error": _pooled(group, "its_standard_error") / (2 * relative),
        "cosine": cosine,
        "cosine's standard error": _pooled(group, "cosine_standard_error"),
    }


def _step_figure(settings: MethodSettings, curves: Mapping[tuple[str, str, int], Curve]) -> Figure:
    circuits = settings.step_circuits
    figure = Figure(figsize=(3.5 * len(circuits), 6.4), layout="constrained")
    grid = figure.subplots(2, len(circuits), sharex=True, sharey="row", squeeze=False)
    for line, scheme in zip(grid, SCHEMES, strict=True):
        for axes, circuit in zip(line, circuits, strict=True):
            for shots, mark in marks(settings.step_shots).items():
                _draw_curve(axes, curves[circuit, scheme, shots], mark, f"{shots:,} shots a circuit")
            bias = curves[circuit, scheme, settings.step_shots[0]]
            axes.plot(bias.steps, np.sqrt(bias.squared_bias), "k:", linewidth=1.2, label="bias alone, exact values")
            axes.plot([], [], "k*", markersize=10, markerfacecolor="w", label="at the default step")
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{circuit}, {scheme}", fontsize=10)
        line[0].set_ylabel("RMS error of a derivative (rad$^{-1}$)")
        least = min(curve.squared_error.min() for (_, other, _), curve in curves.items() if other == scheme)
        line[0].set_ylim(bottom=0.4 * math.sqrt(least))  # the bias would fill the figure where it is nothing
    for axes in grid[-1]:
        axes.set_xlabel("step $h$ (rad); lines: theory")
    return finish(figure, columns=3)


def _draw_curve(axes: Axes, curve: Curve, mark: Mark, label: str) -> None:
    errors = np.sqrt(curve.squared_error)
    axes.plot(curve.steps, np.sqrt(curve.in_theory), "-", color=mark.colour, linewidth=1)
    draw_points(axes, mark, curve.steps, errors, curve.standard_error / (2 * errors), label=label, markersize=4)
    place = curve.steps[curve.default], errors[curve.default]
    axes.plot(*place, "*", color=mark.colour, markersize=12, markerfacecolor="w", zorder=3)


def _equal_shots_figure(settings: MethodSettings, rows: Table) -> Figure:
    circuits = settings.budget_circuits
    figure = Figure(figsize=(3.1 * len(circuits) + 0.6, 6.2), layout="constrained")
    grid = figure.subplots(2, len(circuits), sharex=True, sharey="row", squeeze=False)
    styles = marks(dict.fromkeys(row["method"] for row in rows))
    for (circuit, method), group in grouped(rows, itemgetter("circuit", "method")).items():
        column = circuits.index(circuit)
        names = (("relative error", "its standard error"), ("cosine", "cosine's standard error"))
        for axes, (name, error) in zip(grid[:, column], names, strict=True):
            draw_points(axes, styles[method], *columns(group, "shots", name, error), joined=True, label=method)
        grid[0, column].set_title(f"{circuit}, {group[0]['angles']} angles", fontsize=10)
        grid[0, column].set(xscale="log", yscale="log")
        grid[1, column].set_xlabel("shots of a whole gradient")
    grid[0, 0].set_ylabel("relative error of the gradient (RMS)")
    grid[1, 0].set_ylabel("cosine to the exact gradient (mean)")
    return finish(figure, columns=5)
