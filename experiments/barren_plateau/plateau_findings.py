"""What the measured variances and trainings come to: fits, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.comparison import grouped
from ..common.lines import Line, MeanSquare, fit_line
from ..common.options import Settings
from ..common.sweeps import Findings, Tables
from .descent import STRATEGIES
from .ensemble import OBSERVABLES, Start
from .theory import SLOPES, deep_variance, variance_of_pauli

_SMALLEST_FITTED = 4  # qubits: below, a 2-design is not yet on its exponential by several per cent
_LARGEST_EXACT = 8  # qubits, up to which the theory at any depth is a moment's work
_MARKS = {"Z0 Z1": ("o", "-", "C0"), "Z...Z": ("s", "--", "C1"), "projector": ("D", ":", "C2")}
_OBSERVABLE_WORDS = {
    "Z0 Z1": r"local: $\langle Z_1 Z_2\rangle$",
    "Z...Z": r"global: $\langle Z\cdots Z\rangle$",
    "projector": r"global: $|\langle 0\cdots 0|\psi\rangle|^2$",
}
_START_MARKS: dict[Start, tuple[str, str, str]] = {
    "uniform": ("o", "-", "C0"),
    "grown": ("^", "-.", "C3"),
    "zeros": ("v", "--", "C4"),
}
_START_WORDS: dict[Start, str] = {
    "uniform": "all angles random, first layer",
    "grown": "2 new layers at zero on random ones, first new layer",
    "zeros": "all angles zero, first layer",
}
_STRATEGY_MARKS = {
    "random start": ("o", "-", "C0"),
    "zero start": ("v", "--", "C4"),
    "layer by layer": ("s", "-.", "C5"),
}
Ensemble = tuple[int, int, str, str]
"""Circuits of one kind: qubits, layers, start, observable."""

_HOLLOW: dict[str, Any] = {"markersize": 5, "markerfacecolor": "w", "capsize": 3}


class Variance(NamedTuple):
    """Of the derivative over so many samples; and in the mean that of one shot in each of the rule's two circuits."""

    samples: int
    derivative: MeanSquare
    one_shot: float


def find(settings: Settings, tables: Tables) -> Findings:
    """Fits and draws the study's tables."""
    variances = _variances(tables["variance"])
    deep_sizes = [(qubits, settings["deep"] * qubits) for qubits in settings["qubits"]]
    regimes: dict[tuple[str, Start], list[tuple[int, int]]] = {
        ("deep", "uniform"): deep_sizes,
        ("shallow", "uniform"): [(qubits, settings["shallow"]) for qubits in settings["qubits"]],
        ("deep", "grown"): deep_sizes,
        ("deep", "zeros"): deep_sizes,
    }
    series = {
        (depth, start, observable): {qubits: variances[qubits, layers, start, observable] for qubits, layers in sizes}
        for (depth, start), sizes in regimes.items()
        for observable in OBSERVABLES
    }
    fits = {
        key: fit_line(*zip(*((q, v.derivative) for q, v in points.items() if q >= _SMALLEST_FITTED), strict=True))
        for key, points in series.items()
    }
    exact = {
        (depth, "uniform", observable): _exact_slope(observable, dict(regimes[depth, "uniform"]))
        for depth in ("deep", "shallow")
        for observable in ("Z0 Z1", "Z...Z")
    }
    summary = [_summary_row(key, points, fits[key], exact.get(key)) for key, points in series.items()]
    trained = _training_rows(tables["training"])
    deep = fits["deep", "uniform", "Z0 Z1"]
    numbers = {
        "samples": settings["samples"],
        "slope": deep.slope,
        "slope_low": deep.low,
        "slope_high": deep.high,
        "slope_of_endless_depth": SLOPES["uniform", "Z0 Z1"],
    }
    figures = {
        "variance.png": _variance_figure(settings, series, fits, variances),
        "training.png": _training_figure(trained, settings),
    }
    return Findings(numbers, {"summary": summary, "trained": trained}, figures)


def _variances(rows: Sequence[Mapping[str, Any]]) -> dict[Ensemble, Variance]:
    """Each ensemble's, from the sums of all its cells."""
    names = ("samples", "sum_of_squares", "sum_of_fourth_powers", "sum_of_one_shot_variances")
    variances: dict[Ensemble, Variance] = {}
    for key, group in grouped(rows, itemgetter("qubits", "layers", "start", "observable")).items():
        samples, squares, fourths, shots = sum((np.array([row[name] for name in names]) for row in group), np.zeros(4))
        derivative = MeanSquare.of_sums(int(samples), squares, fourths)
        variances[key] = Variance(int(samples), derivative, shots / samples)
    return variances


def _exact_slope(observable: str, layers: Mapping[int, int]) -> float | None:
    """The slope of exact theory at these depths, over the sizes for which it is soon computed; None of fewer than two."""
    sizes = [size for size in layers if _SMALLEST_FITTED <= size <= _LARGEST_EXACT]
    if len(sizes) < 2:
        return None
    logarithms = [math.log(variance_of_pauli(_string(observable, size), layers[size])) for size in sizes]
    return float(np.polyfit(sizes, logarithms, 1)[0])


def _string(observable: str, num_qubits: int) -> list[int]:
    return [3] * num_qubits if observable == "Z...Z" else [3, 3, *[0] * (num_qubits - 2)]


def _summary_row(
    key: tuple[str, Start, str], points: Mapping[int, Variance], fit: Line, exact: float | None
) -> dict[str, Any]:
    depth, start, observable = key
    largest = max(points)
    variance = points[largest].derivative
    in_theory = depth == "deep"
    return {
        "circuits": depth,
        "start": start,
        "observable": observable,
        "slope a qubit": fit.slope,
        "95 % from": fit.low,
        "to": fit.high,
        "slope of endless depth": SLOPES[start, observable] if in_theory else "",
        f"exact slope, to {_LARGEST_EXACT} qubits": "" if exact is None else exact,
        "chi-square": f"{fit.chi_square:.1f}/{fit.freedom}",
        "samples": points[largest].samples,
        f"variance at {largest} qubits": variance.value,
        "its standard error": variance.error,
        "variance of endless depth": deep_variance(observable, largest, start) if in_theory else "",
        "shots for a signal-to-noise ratio of 1": 2 * math.ceil(points[largest].one_shot / variance.value),
    }


def _training_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups = grouped(rows, itemgetter("qubits", "layers", "strategy"))
    return [
        {"qubits": qubits, "layers": layers, "training": strategy, "trainings": len(group)}
        | _mean_and_error("cost reached", [row["cost"] for row in group])
        | _mean_and_error("gradient at the start", [row["first_gradient_rms"] for row in group])
        | {"shots spent": group[0]["shots_spent"]}
        for (qubits, layers, strategy), group in groups.items()
    ]


def _mean_and_error(name: str, values: Sequence[float]) -> dict[str, float]:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {name: float(np.mean(values)), f"{name}, standard error": float(error)}


def _variance_figure(
    settings: Settings,
    series: Mapping[tuple[str, Start, str], Mapping[int, Variance]],
    fits: Mapping[tuple[str, Start, str], Line],
    variances: Mapping[Ensemble, Variance],
) -> Figure:
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    deep, shallow, starts, profile = figure.subplots(2, 2).flat
    sizes = sorted(settings["qubits"])
    for observable in OBSERVABLES:
        words = _OBSERVABLE_WORDS[observable]
        for axes, depth, theory in ((deep, "deep", True), (shallow, "shallow", False)):
            key: tuple[str, Start, str] = (depth, "uniform", observable)
            _draw_series(axes, series[key], fits[key], _MARKS[observable], words, key if theory else None)
    for start, words in _START_WORDS.items():
        key = ("deep", start, "Z0 Z1")
        _draw_series(starts, series[key], fits[key], _START_MARKS[start], words, key)
    _draw_profile(profile, settings, variances)
    deep.set_title(f"(a) deep: {settings['deep']} layers a qubit; lines: theory (2-design)", loc="left", fontsize=10)
    shallow.set_title(f"(b) shallow: {settings['shallow']} layers; lines: fits", loc="left", fontsize=10)
    starts.set_title(r"(c) deep, $\langle Z_1 Z_2\rangle$, by start; lines: theory", loc="left", fontsize=10)
    profile.set_title(r"(d) $\langle Z_1 Z_2\rangle$ against depth", loc="left", fontsize=10)
    for axes in (deep, shallow, starts):
        axes.set(xlabel="qubits", xticks=sizes)
    for axes in (deep, shallow, starts, profile):
        axes.set_yscale("log")
    for axes in (deep, shallow, starts):  # room for the legend
        lowest, highest = axes.get_ylim()
        axes.set_ylim(lowest * (lowest / highest) ** 0.55, highest)
    for axes in (deep, shallow, starts, profile):
        axes.set(ylabel="variance of the derivative (rad$^{-2}$)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5, loc="lower left")
    return figure


def _draw_series(
    axes: Axes,
    points: Mapping[int, Variance],
    fit: Line,
    style: tuple[str, str, str],
    words: str,
    in_theory: tuple[str, Start, str] | None,
) -> None:
    """Points with errors, and the line of theory; or that of the fit, over the sizes that were fitted."""
    mark, line, colour = style
    slope = f"slope {fit.slope:.3f} ({fit.low:.3f} to {fit.high:.3f})"
    if in_theory is None:
        sizes = np.array([size for size in points if size >= _SMALLEST_FITTED])
        axes.plot(sizes, np.exp(fit.intercept + fit.slope * sizes), line, color=colour, linewidth=1)
    else:
        _, start, observable = in_theory
        slope += f", theory {SLOPES[start, observable]:.3f}"
        axes.plot(list(points), [deep_variance(observable, size, start) for size in points], line, color=colour)
    _points(axes, points, mark, colour, f"{words}\n{slope}")


def _points(axes: Axes, points: Mapping[int, Variance], mark: str, colour: str, label: str) -> None:
    values, errors = zip(*((each.derivative.value, each.derivative.error) for each in points.values()), strict=True)
    axes.errorbar(list(points), values, errors, fmt=mark, color=colour, label=label, **_HOLLOW)


def _draw_profile(axes: Axes, settings: Settings, variances: Mapping[Ensemble, Variance]) -> None:
    layers = sorted(settings["profile_layers"])
    for number, (qubits, mark) in enumerate(zip(settings["profile_qubits"], "osD^vP" * 9, strict=False)):
        colour = f"C{number}"
        points = {each: variances[qubits, each, "uniform", "Z0 Z1"] for each in layers}
        _points(axes, points, mark, colour, f"{qubits} qubits")
        if qubits <= _LARGEST_EXACT:
            exact = [variance_of_pauli(_string("Z0 Z1", qubits), each) for each in layers]
            axes.plot(layers, exact, "-", color=colour, linewidth=1, label=f"{qubits} qubits, exact theory")
        axes.axhline(deep_variance("Z0 Z1", qubits), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="layers (dotted: 2-design)")
    axes.set_xticks(layers, [str(each) for each in layers])
    axes.minorticks_off()


def _training_figure(rows: Sequence[Mapping[str, Any]], settings: Settings) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    cost, gradient = figure.subplots(1, 2)
    for strategy in STRATEGIES:
        mark, line, colour = _STRATEGY_MARKS[strategy]
        trained = [row for row in rows if row["training"] == strategy]
        label = f"{strategy}: {trained[-1]['shots spent']:,} shots for {trained[-1]['qubits']} qubits"
        for axes, name in ((cost, "cost reached"), (gradient, "gradient at the start")):
            columns = ([row[column] for row in trained] for column in ("qubits", name, f"{name}, standard error"))
            axes.errorbar(*columns, fmt=mark + line, color=colour, label=label, **_HOLLOW)
    noise = 1 / math.sqrt(2 * settings["train_shots"])
    gradient.axhline(noise, color="k", linewidth=0.8, linestyle=":")
    gradient.annotate(
        *("most noise of a component", (1, noise), (-2, 3)),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    cost.set(
        xlabel="qubits",
        ylabel=r"exact $\langle Z_1 Z_2\rangle$ reached (least: $-1$)",
        title=f"{settings['train_steps']} steps of Adam, {settings['train_shots']} shots a circuit",
    )
    gradient.set(xlabel="qubits", ylabel="root mean square derivative\nat the start (rad$^{-1}$)", yscale="log")
    for axes in (cost, gradient):
        axes.set_xticks(sorted(settings["train_qubits"]))
        axes.grid(alpha=0.3)
    figure.legend(*cost.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure
