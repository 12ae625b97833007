"""Several trainings side by side: numbers and figures; readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from operator import itemgetter
from statistics import fmean, median, quantiles, stdev
from textwrap import fill
from typing import Any, TypeVar

from matplotlib.figure import Figure

from .panels import draw_points, finish, marks

_AXES = {"total_shots": ("shots", "shots spent so far"), "circuits": ("circuits", "circuits so far")}
"""Column of the metrics and words of what curves are drawn against, where they are not the same."""

_KINDS = {"set": "", "spent": " (open: mean of the shots spent)", "exact": " (exact)"}
"""What a legend says of the shots of a curve's points."""

_OF_SHOTS = ("shots", "last_shots", "snr", "least_shots", "most_shots")
"""The settings in which the points of a curve against shots may differ."""

_Item = TypeVar("_Item")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        rows: Its metrics, an epoch a row.
        test_accuracy: What it came to.
    """

    rows: Sequence[Mapping[str, Any]]
    test_accuracy: float


@dataclass(frozen=True)
class Compared(Curve):
    """A training that is compared with others.

    Attributes:
        settings: By the names of the command line, ``experiment`` among them; without seeds and where it was computed.
        result: What it came to.
        seed: Its seed.
    """

    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    seed: int


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """The items of each key, in their order; keys in the order in which they first come."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def summarize(accuracies: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    lower, middle, upper = quantiles(accuracies, n=4, method="inclusive") if accuracies[1:] else [accuracies[0]] * 3
    quartiles = {"median": middle, "lower_quartile": lower, "upper_quartile": upper}
    return {"runs": len(accuracies), **quartiles, "min": min(accuracies), "max": max(accuracies)}


def comparison_figure(curves: Mapping[str, Sequence[Curve]], *, against: str = "epoch") -> Figure:
    """Test loss and accuracy of each group of trainings: the training of median accuracy, and the range of all.

    Args:
        curves: The trainings of each group (one each, or one for each seed).
        against: What is on the horizontal axis: epoch, seconds, circuits, total_shots.
    """
    column, words = _AXES.get(against, (against, against))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for mark, (name, group) in zip(marks(curves).values(), curves.items(), strict=True):
        middle = sorted(group, key=lambda curve: curve.test_accuracy)[(len(group) - 1) // 2]
        thick = {"linestyle": mark.line, "marker": mark.marker, "markersize": 4, "linewidth": 2, "zorder": 3}
        thick |= {"markevery": max(1, len(middle.rows) // 8), "label": ", ".join([name, *_seeds(group)])}
        for axes, quantity in zip(panels, ("test_loss", "test_accuracy"), strict=True):
            for curve in group:
                style = thick if curve is middle else {"alpha": 0.25, "linewidth": 0.7}
                axes.plot(*_columns(curve.rows, column, quantity), color=mark.colour, **style)
            axes.set(xlabel=words, ylabel=quantity.replace("_", " "))
    if against == "epoch":
        for axes in panels:
            axes.xaxis.get_major_locator().set_params(integer=True)
    return finish(figure, title="thick: the seed of median accuracy" if any(map(_seeds, curves.values())) else None)


def _seeds(group: Sequence[Curve]) -> list[str]:
    """How many seeds there are, if several."""
    return [f"{len(group)} seeds"] if len(group) > 1 else []


def _columns(rows: Iterable[Mapping[str, Any]], *names: str) -> list[list[Any]]:
    return [[nan if row[name] == "" else row[name] for row in rows] for name in names]


def against_shots(trainings: Iterable[Compared]) -> list[dict[str, Any]]:
    """Test accuracy against the shots a circuit.

    Trainings that differ in nothing but shots and seed are one curve, those of them with the same shots a point. Of those
    with the same seed too (a run and its copy, classical twins, for which shots mean nothing) the mean counts as one.

    Returns:
        A row for each point: curve, shots a circuit (empty for exact values), ``shots are`` (set; spent, the mean of a
        schedule; exact), seeds, mean test accuracy, its standard error (empty of a single seed).
    """
    curves = grouped(trainings, lambda each: tuple((k, str(v)) for k, v in each.settings.items() if k not in _OF_SHOTS))
    rows = []
    for curve, words in zip(curves.values(), telling([dict(words) for words in curves]), strict=True):
        name = ", ".join(value if key == "experiment" else f"{key} {value}" for key, value in words.items())
        points = [_shots_row(name, point) for point in grouped(curve, _shots_of).values()]
        rows += sorted(points, key=lambda row: row["shots a circuit"] or inf)
    return rows


def telling(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the columns of different rows a few that tell them apart, the earlier ones rather than the later; one at least."""
    chosen = list(dict.fromkeys(key for row in rows for key in row))
    for key in reversed(chosen):
        others = [each for each in chosen if each != key]
        if others and len({tuple(str(row.get(each)) for each in others) for row in rows}) == len(rows):
            chosen = others
    return [{key: row[key] for key in chosen if key in row} for row in rows]


def _shots_of(each: Compared) -> tuple[Any, ...] | None:
    """What a training was told of its shots; None without their noise: with exact values, and without circuits."""
    if each.settings.get("shots") is None or not each.result["circuits"]:
        return None
    return tuple(each.settings.get(key) for key in _OF_SHOTS)


def _shots_row(name: str, point: Sequence[Compared]) -> dict[str, Any]:
    settings, seeds = point[0].settings, grouped(point, lambda each: each.seed).values()
    shots, kind = settings.get("shots"), "set"
    if _shots_of(point[0]) is None:
        shots, kind = "", "exact"
    elif settings.get("shot_schedule", "constant") != "constant":
        means = (fmean(each.result["shots"] / each.result["circuits"] for each in same) for same in seeds)
        shots, kind = fmean(means), "spent"
    accuracies = [fmean(each.test_accuracy for each in same) for same in seeds]
    error = stdev(accuracies) / sqrt(len(accuracies)) if len(accuracies) > 1 else ""
    row = {"curve": name, "shots a circuit": shots, "shots are": kind, "seeds": len(accuracies)}
    return row | {"mean test accuracy": fmean(accuracies), "standard error": error}


def shots_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws what :func:`against_shots` gave: points with error bars, and level lines of exact values."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = marks(dict.fromkeys(row["curve"] for row in rows))
    for (name, kind), points in grouped(rows, itemgetter("curve", "shots are")).items():
        mark, label = styles[name], name + _KINDS[kind]
        if kind == "exact":
            axes.axhline(points[0]["mean test accuracy"], color=mark.colour, linestyle=mark.line, label=label)
            continue
        face = "w" if kind == "spent" else mark.colour
        values = _columns(points, "shots a circuit", "mean test accuracy", "standard error")
        draw_points(axes, mark, *values, joined=True, label=label, markerfacecolor=face)
    axes.set(xscale="log", xlabel="shots a circuit", ylabel="test accuracy (mean, standard error)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return finish(figure)


def seeds_figure(curves: Mapping[str, Sequence[Curve]], published: Mapping[str, float | None]) -> Figure:
    """The test accuracy of every seed, a column a group, with medians and published values."""
    figure = Figure(figsize=(max(4.0, 0.8 + 1.6 * len(curves)), 3.8), layout="constrained")
    axes = figure.subplots()
    for place, (mark, (name, group)) in enumerate(zip(marks(curves).values(), curves.items(), strict=True)):
        ends = place - 0.35, place + 0.35
        accuracies = sorted(curve.test_accuracy for curve in group)
        spread = [place + 0.25 * (2 * i % 5 - 2) / 2 for i in range(len(accuracies))] if len(group) > 1 else [place]
        axes.plot(spread, accuracies, mark.marker, color=mark.colour, alpha=0.7, markersize=5)
        axes.hlines(median(accuracies), *ends, color="k", linewidth=2, zorder=3)
        if (value := published.get(name)) is not None:
            axes.hlines(value, *ends, color="r", linestyle="--", zorder=3)
            text = f"published\n{value:g}", (ends[1], value), (3, 0)
            axes.annotate(*text, textcoords="offset points", color="r", va="center", fontsize="small")
    labels = [
        "\n".join([fill(name, 22, break_on_hyphens=False), *(_seeds(group) or ["1 seed"])])
        for name, group in curves.items()
    ]
    axes.set_xticks(range(len(curves)), labels, fontsize="small")
    axes.set(ylabel="test accuracy (bar: median)", xlim=(-0.6, len(curves) - 0.1))
    axes.grid(alpha=0.3, axis="y")
    return figure
