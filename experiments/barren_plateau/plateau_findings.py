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
from ..common.panels import Mark, Table, columns, draw_points, finish, marks, mean_and_error
from ..common.studies import Findings, Tables
from .descent import STRATEGIES
from .ensemble import OBSERVABLES, Start
from .plateau_settings import PlateauSettings
from .theory import SLOPES, deep_variance, variance_of_pauli

_SMALLEST_FITTED = 4  # qubits: below, a 2-design is not yet on its exponential by several per cent
_LARGEST_EXACT = 8  # qubits, up to which the theory at any depth is a moment's work
_REGIMES: Sequence[tuple[str, Start]] = (
    ("deep", "uniform"),
    ("shallow", "uniform"),
    ("deep", "grown"),
    ("deep", "zeros"),
)
_OBSERVABLE_WORDS = {
    "Z0 Z1": r"local: $\langle Z_1 Z_2\rangle$",
    "Z...Z": r"global: $\langle Z\cdots Z\rangle$",
    "projector": r"global: $|\langle 0\cdots 0|\psi\rangle|^2$",
}
_START_WORDS: dict[Start, str] = {
    "uniform": "all angles random, first layer",
    "grown": "2 new layers at zero on random ones, first new layer",
    "zeros": "all angles zero, first layer",
}


class Variance(NamedTuple):
    """Of the derivative over so many samples; and in the mean that of one shot in each of the rule's two circuits."""

    samples: int
    derivative: MeanSquare
    one_shot: float


Variances = Mapping[tuple[int, int, str, str], Variance]
"""By qubits, layers, start and observable."""


class Series(NamedTuple):
    """Variances in circuits of one kind against their qubits.

    Attributes:
        depth: ``deep`` or ``shallow``.
        start: The angles; see :data:`~experiments.barren_plateau.ensemble.Start`.
        observable: One of :data:`~experiments.barren_plateau.ensemble.OBSERVABLES`.
        layers: By the number of qubits.
        points: The variances, by the number of qubits.
    """

    depth: str
    start: Start
    observable: str
    layers: Mapping[int, int]
    points: Mapping[int, Variance]

    @property
    def fit(self) -> Line:
        """The line through the logarithms, of circuits that are large enough."""
        fitted = {size: each.derivative for size, each in self.points.items() if size >= _SMALLEST_FITTED}
        return fit_line([*fitted], [*fitted.values()])

    @property
    def exact_slope(self) -> float | None:
        """The slope of exact theory at these depths, over the sizes for which it is soon computed; None where it is not."""
        sizes = [size for size in self.layers if _SMALLEST_FITTED <= size <= _LARGEST_EXACT]
        if len(sizes) < 2 or self.start != "uniform" or self.observable == "projector":
            return None
        logarithms = [math.log(variance_of_pauli(_string(self.observable, n), self.layers[n])) for n in sizes]
        return float(np.polyfit(sizes, logarithms, 1)[0])


def find(settings: PlateauSettings, tables: Tables) -> Findings:
    """Fits and draws the study's tables."""
    variances = _variances(tables["variance"])
    layers = {
        "deep": {qubits: settings.deep * qubits for qubits in settings.qubits},
        "shallow": dict.fromkeys(settings.qubits, settings.shallow),
    }
    series = [
        Series(depth, start, name, layers[depth], {n: variances[n, m, start, name] for n, m in layers[depth].items()})
        for depth, start in _REGIMES
        for name in OBSERVABLES
    ]
    trained = _training_rows(tables["training"])
    deep = series[0].fit
    low, high = deep.interval
    numbers = {
        "samples": settings.samples,
        "slope": deep.slope,
        "slope_low": low,
        "slope_high": high,
        "slope_of_endless_depth": SLOPES["uniform", "Z0 Z1"],
    }
    figures = {
        "variance.png": _variance_figure(settings, series, variances),
        "training.png": _training_figure(settings, trained),
    }
    return Findings(numbers, {"summary": list(map(_summary_row, series)), "trained": trained}, figures)


def _variances(rows: Table) -> Variances:
    """Each ensemble's, from the sums of all its cells."""
    variances = {}
    for key, group in grouped(rows, itemgetter("qubits", "layers", "start", "observable")).items():
        names = "samples", "sum_of_squares", "sum_of_fourth_powers", "sum_of_one_shot_variances"
        samples, squares, fourths, shots = sum(columns(group, *names).T)  # cell by cell
        variances[key] = Variance(int(samples), MeanSquare.of_sums(int(samples), squares, fourths), shots / samples)
    return variances


def _string(observable: str, num_qubits: int) -> list[int]:
    return [3] * num_qubits if observable == "Z...Z" else [3, 3, *[0] * (num_qubits - 2)]


def _summary_row(series: Series) -> dict[str, Any]:
    fit, exact, largest = series.fit, series.exact_slope, max(series.points)
    samples, (variance, error), one_shot = series.points[largest]
    deep = series.depth == "deep"
    return {
        "circuits": series.depth,
        "start": series.start,
        "observable": series.observable,
        "slope a qubit": fit.slope,
        **dict(zip(("95 % from", "to"), fit.interval, strict=True)),
        "slope of endless depth": SLOPES[series.start, series.observable] if deep else "",
        f"exact slope, to {_LARGEST_EXACT} qubits": "" if exact is None else exact,
        "chi-square": f"{fit.chi_square:.1f}/{fit.freedom}",
        "samples": samples,
        f"variance at {largest} qubits": variance,
        "its standard error": error,
        "variance of endless depth": deep_variance(series.observable, largest, series.start) if deep else "",
        "shots for a signal-to-noise ratio of 1": 2 * math.ceil(one_shot / variance),
    }


def _training_rows(rows: Table) -> list[dict[str, Any]]:
    groups = grouped(rows, itemgetter("qubits", "layers", "strategy"))
    return [
        {"qubits": qubits, "layers": layers, "training": strategy, "trainings": len(group)}
        | mean_and_error("cost reached", [row["cost"] for row in group])
        | mean_and_error("gradient at the start", [row["first_gradient_rms"] for row in group])
        | {"shots spent": group[0]["shots_spent"]}
        for (qubits, layers, strategy), group in groups.items()
    ]


def _variance_figure(settings: PlateauSettings, series: Sequence[Series], variances: Variances) -> Figure:
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    deep, shallow, starts, profile = figure.subplots(2, 2).flat
    styles = marks([*OBSERVABLES, "grown", "zeros"])
    for each in series:
        if each.start == "uniform":
            axes = deep if each.depth == "deep" else shallow
            _draw_series(axes, each, styles[each.observable], _OBSERVABLE_WORDS[each.observable])
        if each.depth == "deep" and each.observable == "Z0 Z1":
            _draw_series(starts, each, styles.get(each.start, styles["Z0 Z1"]), _START_WORDS[each.start])
    _draw_profile(profile, settings, variances)
    for axes, title in {
        deep: f"(a) deep: {settings.deep} layers a qubit; lines: theory (2-design)",
        shallow: f"(b) shallow: {settings.shallow} layers; lines: fits",
        starts: r"(c) deep, $\langle Z_1 Z_2\rangle$, by start; lines: theory",
        profile: r"(d) $\langle Z_1 Z_2\rangle$ against depth",
    }.items():
        axes.set_title(title, loc="left", fontsize=10)
        axes.set(yscale="log", ylabel="variance of the derivative (rad$^{-2}$)")
        if axes is not profile:
            axes.set(xlabel="qubits", xticks=sorted(settings.qubits))
            lowest, highest = axes.get_ylim()
            axes.set_ylim(lowest * (lowest / highest) ** 0.55, highest)  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5, loc="lower left")
    return figure


def _draw_series(axes: Axes, series: Series, mark: Mark, words: str) -> None:
    """Points with errors; and the line of theory for deep circuits, that of the fit over its sizes for others."""
    fit, sizes = series.fit, np.array([*series.points])
    slope = "slope {:.3f} ({:.3f} to {:.3f})".format(fit.slope, *fit.interval)
    if series.depth == "deep":
        slope += f", theory {SLOPES[series.start, series.observable]:.3f}"
        line = np.array([deep_variance(series.observable, size, series.start) for size in sizes])
    else:
        sizes = sizes[sizes >= _SMALLEST_FITTED]
        line = np.exp(fit.intercept + fit.slope * sizes)
    axes.plot(sizes, line, linestyle=mark.line, color=mark.colour, linewidth=1.2)
    _draw_variances(axes, series.points, mark, f"{words}\n{slope}")


def _draw_variances(axes: Axes, points: Mapping[int, Variance], mark: Mark, label: str) -> None:
    values, errors = np.transpose([each.derivative for each in points.values()])
    draw_points(axes, mark, [*points], values, errors, label=label, capsize=3)


def _draw_profile(axes: Axes, settings: PlateauSettings, variances: Variances) -> None:
    layers = sorted(settings.profile_layers)
    for qubits, mark in marks(settings.profile_qubits).items():
        points = {each: variances[qubits, each, "uniform", "Z0 Z1"] for each in layers}
        _draw_variances(axes, points, mark, f"{qubits} qubits")
        if qubits <= _LARGEST_EXACT:
            exact = [variance_of_pauli(_string("Z0 Z1", qubits), each) for each in layers]
            axes.plot(layers, exact, "-", color=mark.colour, linewidth=1, label=f"{qubits} qubits, exact theory")
        axes.axhline(deep_variance("Z0 Z1", qubits), color=mark.colour, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="layers (dotted: 2-design)")
    axes.set_xticks(layers, [str(each) for each in layers])
    axes.minorticks_off()


def _training_figure(settings: PlateauSettings, rows: Table) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    cost, gradient = figure.subplots(1, 2)
    for strategy, mark in marks(STRATEGIES).items():
        trained = [row for row in rows if row["training"] == strategy]
        label = f"{strategy}: {trained[-1]['shots spent']:,} shots for {trained[-1]['qubits']} qubits"
        for axes, name in ((cost, "cost reached"), (gradient, "gradient at the start")):
            numbers = columns(trained, "qubits", name, f"{name}, standard error")
            draw_points(axes, mark, *numbers, joined=True, label=label, capsize=3)
            axes.set(xlabel="qubits", xticks=sorted(settings.train_qubits))
    noise = 1 / math.sqrt(2 * settings.train_shots)
    gradient.axhline(noise, color="k", linewidth=0.8, linestyle=":")
    at_the_right = {"transform": gradient.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    gradient.text(0.99, noise, "most noise of a component", fontsize=8, **at_the_right)
    cost.set(
        ylabel=r"exact $\langle Z_1 Z_2\rangle$ reached (least: $-1$)",
        title=f"{settings.train_steps} steps of Adam, {settings.train_shots} shots a circuit",
    )
    gradient.set(ylabel="root mean square derivative\nat the start (rad$^{-1}$)", yscale="log")
    return finish(figure, columns=3)
