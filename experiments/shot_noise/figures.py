"""The study's figures; readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.comparison import grouped
from ..common.panels import Mark, draw_points, finish, marks, mean_and_error
from .noise import IDEAL, NOISES, QUANTITIES
from .power_laws import Plateau
from .scaling import RULES, VALUE
from .strategies import ALLOCATIONS, STRATEGIES

Rows = Sequence[Mapping[str, Any]]

_MODEL_WORDS = {
    "hybrid CNN": "hybrid CNN on 0/1, $-p$(right class)",
    "layerwise": "layerwise on 3/6, cross entropy",
    "dressed": "dressed on 3/6, hinge loss",
}


def scaling_figure(groups: Mapping[str, Rows]) -> Figure:
    """Standard errors against shots, and the measured ones over the theory."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    errors, ratios = figure.subplots(1, 2, width_ratios=[1.15, 1])
    styles = marks([VALUE, *RULES])
    for number, (quantity, rows) in enumerate(groups.items()):
        mark = styles[quantity]
        shots = np.array([row["shots"] for row in rows])
        of_shots, of_directions, square, its_error, reported = (
            np.array([row[name] for row in rows])
            for name in (
                *("theory_variance_of_shots", "theory_variance_of_directions"),
                *("scatter_variance", "scatter_variance_error", "reported_variance"),
            )
        )
        total, scatter = np.sqrt(of_shots + of_directions), np.sqrt(square)
        bars = its_error / scatter  # two standard errors of the root
        errors.plot(shots, total, linestyle=mark.line, color=mark.colour, linewidth=1)
        if of_directions.any():
            errors.plot(shots, np.sqrt(of_shots), linestyle=mark.line, color=mark.colour, linewidth=0.6)
        errors.plot(shots, np.sqrt(reported), "+", color=mark.colour, markersize=7)
        label = quantity if quantity == VALUE else f"gradient, {quantity}"
        draw_points(errors, mark, shots, scatter, bars, markersize=6, label=label)
        places = shots * 1.13 ** (number - (len(groups) - 1) / 2)
        draw_points(ratios, mark, places, scatter / total, bars / total)
    errors.plot([], [], "k+", label="crosses: reported by the library,\nthe part that shots cause")
    ratios.axhline(1, color="k", linewidth=1)
    errors.set(xscale="log", yscale="log", xlabel="shots a circuit", ylabel="standard error (gradient: rad$^{-1}$)")
    ratios.set(xscale="log", xlabel="shots a circuit (moved apart)", ylabel="scatter / theory")
    errors.set_title("(a) scatter over repeats; lines: theory", loc="left", fontsize=10)
    ratios.set_title("(b) the same over the theory; bars: 2 standard errors", loc="left", fontsize=10)
    return finish(figure, columns=3)


def noise_figure(groups: Mapping[tuple[str, str], Rows], plateaus: Mapping[tuple[str, str], Plateau]) -> Figure:
    """Root mean squared errors of value and derivative against shots, with fits and exact biases."""
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    panels = dict(zip(QUANTITIES, figure.subplots(1, 2), strict=True))
    styles = marks(NOISES)
    for (name, quantity), rows in groups.items():
        axes, mark, plateau = panels[quantity], styles[name], plateaus[name, quantity]
        shots = np.array([row["shots"] for row in rows], dtype=float)
        errors = np.sqrt([row["mean_squared_error"] for row in rows])
        bars = np.array([row["mean_squared_error_error"] for row in rows]) / errors  # two standard errors of the root
        along = np.geomspace(shots.min(), shots.max(), 100)
        curve = np.sqrt(np.maximum(plateau.one_shot / along + max(plateau.square, 0.0), 0.0))
        label = f"{name} (the shots alone)" if name == IDEAL else name
        axes.plot(along, curve, linestyle=mark.line, color=mark.colour, linewidth=1)
        draw_points(axes, mark, shots, errors, bars, label=label, markersize=6)
        bias = abs(rows[0]["exact_bias"])
        if name != IDEAL:
            axes.plot([shots.max() * 1.25, shots.max() * 3], [bias, bias], color=mark.colour, linewidth=2.5)
            axes.plot(shots.max() * 3, bias, mark.marker, color=mark.colour, markersize=5)
    for quantity, axes in panels.items():
        in_units = "" if quantity == "value" else " (rad$^{-1}$)"
        axes.set(xscale="log", yscale="log", xlabel="shots a circuit")
        axes.set_ylabel(f"root mean squared error of the {quantity}{in_units}")
    panels["value"].set_title("(a) value; lines: fits; at the right: exact bias", loc="left", fontsize=10)
    panels["derivative"].set_title("(b) its derivative; error bars: 2 standard errors", loc="left", fontsize=10)
    return finish(figure, columns=3)


def training_figure(by_model: Mapping[str, Mapping[str, Rows]]) -> Figure:
    """Test accuracy against the shots spent, in the mean over seeds, with its standard error."""
    figure = Figure(figsize=(3.7 * max(2, len(by_model)), 4.7), layout="constrained")
    styles = marks([name for name in STRATEGIES if name not in ALLOCATIONS.values()])
    panels = figure.subplots(1, len(by_model), squeeze=False, sharey=True)[0]
    for axes, (model, by_strategy) in zip(panels, by_model.items(), strict=True):
        for strategy, rows in by_strategy.items():
            if strategy in styles:
                _draw_strategy(axes, rows, styles[strategy], strategy)
        for uniform, sensitive in ALLOCATIONS.items():
            mark = styles[uniform]
            _draw_strategy(axes, by_strategy[sensitive], mark, sensitive, markerfacecolor=mark.colour)
        axes.set(xscale="log", xlabel="shots spent in all")
        axes.set_title(_MODEL_WORDS[model], loc="left", fontsize=10)
    figure.axes[0].set_ylabel("test accuracy (mean over seeds, standard error)")
    return finish(figure, columns=4)


def _draw_strategy(axes: Axes, rows: Rows, mark: Mark, label: str, **options: Any) -> None:
    groups = grouped(rows, lambda row: row["step"])
    shots = [geometric_mean(row["total_shots"] for row in group) for group in groups.values()]
    means = [mean_and_error("mean", [row["test_accuracy"] for row in group]) for group in groups.values()]
    accuracies, errors = zip(*(each.values() for each in means), strict=True)
    bars = [error or 0.0 for error in errors]
    thin: dict[str, Any] = {"capsize": 0, "elinewidth": 0.7, "markersize": 4.5}
    draw_points(axes, mark, shots, accuracies, bars, joined=True, label=label, **thin, **options)
