"""The study's figures; readable in grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


class _Mark(NamedTuple):
    marker: str
    line: Any
    colour: str


def _marks(names: Sequence[str]) -> dict[str, _Mark]:
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 3)))
    return {
        name: _Mark(marker, style, f"C{number}")
        for number, (name, marker, style) in enumerate(zip(names, "osD^vPX", styles, strict=False))
    }


def scaling_figure(groups: Mapping[str, Rows]) -> Figure:
    """Standard errors against shots, and the measured ones over the theory."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    errors, ratios = figure.subplots(1, 2, width_ratios=[1.15, 1])
    marks = _marks([VALUE, *RULES])
    for number, (quantity, rows) in enumerate(groups.items()):
        mark = marks[quantity]
        shots = np.array([row["shots"] for row in rows])
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0] if name.endswith(_VARIANCES)}
        total = columns["theory_variance_of_shots"] + columns["theory_variance_of_directions"]
        scatter = np.sqrt(columns["scatter_variance"])
        scatter_error = columns["scatter_variance_error"] / (2 * scatter)
        errors.plot(shots, np.sqrt(total), linestyle=mark.line, color=mark.colour, linewidth=1)
        of_shots = np.sqrt(columns["theory_variance_of_shots"])
        if not np.array_equal(of_shots, np.sqrt(total)):
            errors.plot(shots, of_shots, linestyle=mark.line, color=mark.colour, linewidth=0.6)
        errors.plot(shots, np.sqrt(columns["reported_variance"]), "+", color=mark.colour, markersize=7)
        hollow: dict[str, Any] = {"fmt": mark.marker, "color": mark.colour, "markerfacecolor": "w", "capsize": 2}
        label = quantity if quantity == VALUE else f"gradient, {quantity}"
        errors.errorbar(shots, scatter, 2 * scatter_error, markersize=6, label=label, **hollow)
        places = shots * 1.13 ** (number - (len(groups) - 1) / 2)
        ratios.errorbar(places, scatter / np.sqrt(total), 2 * scatter_error / np.sqrt(total), markersize=5, **hollow)
    errors.plot([], [], "k+", label="crosses: reported by the library,\nthe part that shots cause")
    ratios.axhline(1, color="k", linewidth=1)
    errors.set(xscale="log", yscale="log", xlabel="shots a circuit", ylabel="standard error (gradient: rad$^{-1}$)")
    ratios.set(xscale="log", xlabel="shots a circuit (moved apart)", ylabel="scatter / theory")
    errors.set_title("(a) scatter over repeats; lines: theory", loc="left", fontsize=10)
    ratios.set_title("(b) the same over the theory; bars: 2 standard errors", loc="left", fontsize=10)
    for axes in (errors, ratios):
        axes.grid(alpha=0.3)
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


_VARIANCES = ("_variance", "_variance_error", "_of_shots", "_of_directions")


def noise_figure(groups: Mapping[tuple[str, str], Rows], plateaus: Mapping[tuple[str, str], Plateau]) -> Figure:
    """Root mean squared errors of value and derivative against shots, with fits and exact biases."""
    figure = Figure(figsize=(10, 4.9), layout="constrained")
    panels = dict(zip(QUANTITIES, figure.subplots(1, 2), strict=True))
    marks = _marks(list(NOISES))
    for (name, quantity), rows in groups.items():
        axes, mark, plateau = panels[quantity], marks[name], plateaus[name, quantity]
        shots = np.array([row["shots"] for row in rows], dtype=float)
        errors = np.sqrt([row["mean_squared_error"] for row in rows])
        bars = np.array([row["mean_squared_error_error"] for row in rows]) / errors  # two standard errors of the root
        along = np.geomspace(shots.min(), shots.max(), 100)
        curve = np.sqrt(np.maximum(plateau.one_shot / along + max(plateau.square, 0.0), 0.0))
        label = f"{name} (the shots alone)" if name == IDEAL else name
        axes.plot(along, curve, linestyle=mark.line, color=mark.colour, linewidth=1)
        axes.errorbar(
            shots, errors, bars, fmt=mark.marker, color=mark.colour, markerfacecolor="w", capsize=2, label=label
        )
        bias = abs(rows[0]["exact_bias"])
        if name != IDEAL:
            axes.plot([shots.max() * 1.25, shots.max() * 3], [bias, bias], color=mark.colour, linewidth=2.5)
            axes.plot(shots.max() * 3, bias, mark.marker, color=mark.colour, markersize=5)
    for quantity, axes in panels.items():
        in_units = "" if quantity == "value" else " (rad$^{-1}$)"
        axes.set(xscale="log", yscale="log", xlabel="shots a circuit")
        axes.set_ylabel(f"root mean squared error of the {quantity}{in_units}")
        axes.grid(alpha=0.3)
    panels["value"].set_title("(a) value; lines: fits; at the right: exact bias", loc="left", fontsize=10)
    panels["derivative"].set_title("(b) its derivative; error bars: 2 standard errors", loc="left", fontsize=10)
    figure.legend(*panels["value"].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def training_figure(by_model: Mapping[str, Mapping[str, Rows]]) -> Figure:
    """Test accuracy against the shots spent, in the mean over seeds, with its standard error."""
    figure = Figure(figsize=(3.7 * max(2, len(by_model)), 4.7), layout="constrained")
    marks = _marks([name for name in STRATEGIES if name not in ALLOCATIONS.values()])
    marks |= {sensitive: marks[uniform] for uniform, sensitive in ALLOCATIONS.items()}
    labelled: dict[str, Any] = {}
    panels = figure.subplots(1, len(by_model), squeeze=False, sharey=True)[0]
    for axes, (model, by_strategy) in zip(panels, by_model.items(), strict=True):
        for strategy, rows in by_strategy.items():
            filled = strategy in ALLOCATIONS.values()
            labelled[strategy] = _draw_strategy(axes, rows, marks[strategy], strategy, filled=filled)
        axes.set(xscale="log", xlabel="shots spent in all")
        axes.set_title(_MODEL_WORDS[model], loc="left", fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy (mean over seeds, standard error)")
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_strategy(axes: Axes, rows: Rows, mark: _Mark, label: str, *, filled: bool) -> Any:
    steps = sorted({row["step"] for row in rows})
    groups = [[row for row in rows if row["step"] == step] for step in steps]
    accuracies = [[row["test_accuracy"] for row in group] for group in groups]
    return axes.errorbar(
        [geometric_mean(row["total_shots"] for row in group) for group in groups],
        [fmean(each) for each in accuracies],
        [stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0 for each in accuracies],
        fmt=mark.marker,
        linestyle=mark.line,
        color=mark.colour,
        markerfacecolor=mark.colour if filled else "w",
        markersize=4.5,
        linewidth=1.2,
        elinewidth=0.7,
        label=label,
    )
