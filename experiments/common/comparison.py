"""Several trainings side by side: numbers and figures; readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan, sqrt
from statistics import fmean, median, quantiles, stdev
from textwrap import fill
from typing import Any, TypeVar

from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"

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
class Compared:
    """A training that is compared with others.

    Attributes:
        settings: By the names of the command line, ``experiment`` among them; without seeds and where it was computed.
        curve: How it went.
        result: What it came to.
    """

    settings: Mapping[str, Any]
    curve: Curve
    result: Mapping[str, Any]


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """The items of each key, in their order; keys in the order in which they first come."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def summarize(accuracies: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    lower, _, upper = quantiles(accuracies, n=4, method="inclusive") if len(accuracies) > 1 else [accuracies[0]] * 3
    return {
        "runs": len(accuracies),
        "median": median(accuracies),
        "lower_quartile": lower,
        "upper_quartile": upper,
        "min": min(accuracies),
        "max": max(accuracies),
    }


def wrapped(text: str, width: int) -> str:
    """The text in lines of so many characters at most."""
    return fill(text, width, break_on_hyphens=False)


def comparison_figure(curves: Mapping[str, Sequence[Curve]], *, against: str = "epoch") -> Figure:
    """Test loss and accuracy of each group of trainings: the training of median accuracy, and the range of all.

    Args:
        curves: The trainings of each group (one each, or one for each seed).
        against: What is on the horizontal axis: epoch, seconds, circuits, total_shots.
    """
    labels = {name: f"{name}, {_seeds(group)}" if len(group) > 1 else name for name, group in curves.items()}
    column, words = _AXES.get(against, (against, against))
    figure, columns = _with_legend(9, 3.6, list(labels.values()))
    panels = figure.subplots(1, 2)
    for number, (name, group) in enumerate(curves.items()):
        middle = sorted(group, key=lambda curve: curve.test_accuracy)[(len(group) - 1) // 2]
        for axes, quantity in zip(panels, ("test_loss", "test_accuracy"), strict=True):
            colour = f"C{number}"
            for curve in group:
                if curve is not middle:
                    axes.plot(*_points(curve, column, quantity), color=colour, alpha=0.25, linewidth=0.7)
            style = _style(number) | {"markevery": max(1, len(middle.rows) // 8), "markersize": 4, "linewidth": 2}
            axes.plot(*_points(middle, column, quantity), label=wrapped(labels[name], _WIDTH[columns]), **style)
    for axes, quantity in zip(panels, ("test loss", "test accuracy"), strict=True):
        axes.set(xlabel=words, ylabel=quantity)
        axes.grid(alpha=0.3)
    title = "thick: the seed of median accuracy" if any(len(group) > 1 for group in curves.values()) else None
    figure.legend(*panels[0].get_legend_handles_labels(), **_BENEATH, ncols=columns, title=title)
    return figure


def _points(curve: Curve, against: str, quantity: str) -> tuple[list[Any], list[Any]]:
    return [row[against] for row in curve.rows], [row[quantity] for row in curve.rows]


_WIDTH = {1: 100, 2: 52}
"""Characters to a line of a legend beneath a figure, by the number of its columns."""


_BENEATH: dict[str, Any] = {"loc": "outside lower center", "fontsize": "small", "title_fontsize": "small"}


def _with_legend(width: float, height: float, labels: Sequence[str]) -> tuple[Figure, int]:
    """A figure with room for a legend beneath it, and the number of the legend's columns."""
    columns = 2 if all(len(label) <= _WIDTH[2] for label in labels) else 1
    lines = sum(1 + len(label) // _WIDTH[columns] for label in labels) / columns
    return Figure(figsize=(width, height + 0.22 * lines), layout="constrained"), columns


def _style(number: int) -> dict[str, Any]:
    """Line, mark and colour of a curve; twelve differ in grey too."""
    line, marker = (each[number % len(each)] for each in (STYLES, MARKERS))
    return {"linestyle": line, "marker": marker, "color": f"C{number % 10}"}


def against_shots(trainings: Iterable[Compared]) -> list[dict[str, Any]]:
    """Test accuracy against the shots a circuit.

    Trainings that differ in nothing but shots and seed are one curve, those of them with the same shots a point.

    Returns:
        A row for each point: curve, shots a circuit (empty for exact values), ``shots are`` (set; spent, the mean of a
        schedule; exact), seeds, test accuracy (mean), its standard error (empty of a single seed).
    """
    curves = grouped(trainings, lambda each: _words({k: v for k, v in each.settings.items() if k not in _OF_SHOTS}))
    keys = telling([dict(words) for words in curves]) or ["experiment"]
    rows = []
    for words, curve in curves.items():
        named = [(key, value) for key, value in words if key in keys]
        name = ", ".join(value if key == "experiment" else f"{key} {value}" for key, value in named)
        points = grouped(curve, lambda each: None if _is_exact(each) else _of_shots(each)).values()
        rows += sorted((_shots_row(name, point) for point in points), key=lambda row: row["shots a circuit"] or inf)
    return rows


def _words(settings: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in settings.items())


def telling(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the columns of different rows a few that tell them apart, the earlier ones rather than the later."""
    chosen = list(dict.fromkeys(key for row in rows for key in row))
    for key in reversed(chosen):
        others = [each for each in chosen if each != key]
        if len({tuple(str(row.get(each)) for each in others) for row in rows}) == len(rows):
            chosen = others
    return chosen


def _of_shots(each: Compared) -> tuple[Any, ...]:
    return tuple(each.settings.get(key) for key in _OF_SHOTS)


def _is_exact(each: Compared) -> bool:
    """Whether there is no noise of shots; nor is there without circuits."""
    return each.settings.get("shots") is None or not each.result["circuits"]


def _shots_row(name: str, point: Sequence[Compared]) -> dict[str, Any]:
    shots, kind = point[0].settings.get("shots"), "set"
    if _is_exact(point[0]):
        shots, kind = "", "exact"
    elif point[0].settings.get("shot_schedule", "constant") != "constant":
        shots, kind = fmean(each.result["shots"] / each.result["circuits"] for each in point), "spent"
    accuracies = [each.curve.test_accuracy for each in point]
    return {
        "curve": name,
        "shots a circuit": shots,
        "shots are": kind,
        "seeds": len(point),
        "test accuracy": fmean(accuracies),
        "standard error": stdev(accuracies) / sqrt(len(accuracies)) if len(accuracies) > 1 else "",
    }


def shots_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws what :func:`against_shots` gave: points with error bars, and level lines of exact values."""
    labels = [name + _KINDS[kind] for name, kind in grouped(rows, lambda row: (row["curve"], row["shots are"]))]
    figure, columns = _with_legend(9, 3.6, labels)
    axes = figure.subplots()
    for number, (name, curve) in enumerate(grouped(rows, lambda row: row["curve"]).items()):
        style = _style(number)
        for kind, points in grouped(curve, lambda row: row["shots are"]).items():
            label = wrapped(f"{name}{_KINDS[kind]}", _WIDTH[columns])
            if kind == "exact":
                axes.axhline(points[0]["test accuracy"], **style | {"marker": ""}, label=label)
                continue
            shots, accuracies = ([row[key] for row in points] for key in ("shots a circuit", "test accuracy"))
            errors = [nan if row["standard error"] == "" else row["standard error"] for row in points]
            face = "w" if kind == "spent" else style["color"]
            axes.errorbar(shots, accuracies, errors, **style, markerfacecolor=face, capsize=3, label=label)
    axes.set(xscale="log", xlabel="shots a circuit", ylabel="test accuracy (mean, standard error)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(**_BENEATH, ncols=columns)
    return figure


def seeds_figure(curves: Mapping[str, Sequence[Curve]], published: Mapping[str, float | None]) -> Figure:
    """The test accuracy of every seed, a column a group, with medians and published values."""
    figure = Figure(figsize=(max(4.0, 0.8 + 1.6 * len(curves)), 3.8), layout="constrained")
    axes = figure.subplots()
    for place, (name, group) in enumerate(curves.items()):
        accuracies = sorted(curve.test_accuracy for curve in group)
        spread = [place + 0.25 * (2 * i % 5 - 2) / 2 for i in range(len(accuracies))] if len(group) > 1 else [place]
        axes.plot(spread, accuracies, MARKERS[place % len(MARKERS)], color=f"C{place % 10}", alpha=0.7, markersize=5)
        axes.plot([place - 0.35, place + 0.35], [median(accuracies)] * 2, "k-", linewidth=2, zorder=3)
        value = published.get(name)
        if value is not None:
            axes.plot([place - 0.35, place + 0.35], [value] * 2, "r--", linewidth=1.5, zorder=3)
            text = f"published\n{value:g}", (place + 0.35, value), (3, 0)
            axes.annotate(*text, textcoords="offset points", color="r", va="center", fontsize="small")
    labels = [f"{wrapped(name, 22)}\n{_seeds(group)}" for name, group in curves.items()]
    axes.set_xticks(range(len(curves)), labels, fontsize="small")
    axes.set(ylabel="test accuracy (bar: median)", xlim=(-0.6, len(curves) - 0.1))
    axes.grid(alpha=0.3, axis="y")
    return figure


def _seeds(group: Sequence[Curve]) -> str:
    return f"{len(group)} seeds" if len(group) > 1 else "1 seed"
