"""Several trainings side by side: numbers and figures; readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median, quantiles
from typing import Any, TypeVar

from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vP"

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


def comparison_figure(curves: Mapping[str, Sequence[Curve]], *, against: str = "epoch") -> Figure:
    """Test loss and accuracy of each group of trainings: the training of median accuracy, and the range of all.

    Args:
        curves: The trainings of each group (one each, or one for each seed).
        against: The column of the metrics on the horizontal axis: epoch, seconds, circuits, shots.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (name, group, style) in enumerate(zip(curves, curves.values(), cycle(STYLES), strict=False)):
        middle = sorted(group, key=lambda curve: curve.test_accuracy)[(len(group) - 1) // 2]
        for axes, quantity in zip(panels, ("test_loss", "test_accuracy"), strict=True):
            colour = f"C{number}"
            for curve in group:
                if curve is not middle:
                    axes.plot(*_points(curve, against, quantity), color=colour, alpha=0.25, linewidth=0.7)
            label = name if len(group) == 1 else f"{name} (median of {len(group)}, others thin)"
            axes.plot(*_points(middle, against, quantity), style, color=colour, label=label, linewidth=2)
    for axes, quantity in zip(panels, ("test loss", "test accuracy"), strict=True):
        axes.set(xlabel=against, ylabel=quantity)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _points(curve: Curve, against: str, quantity: str) -> tuple[list[Any], list[Any]]:
    return [row[against] for row in curve.rows], [row[quantity] for row in curve.rows]


def seeds_figure(curves: Mapping[str, Sequence[Curve]], published: Mapping[str, float | None]) -> Figure:
    """The test accuracy of every seed, a column a group, with medians and published values."""
    figure = Figure(figsize=(max(4.0, 2.2 * len(curves)), 3.8), layout="constrained")
    axes = figure.subplots()
    for place, (name, group) in enumerate(curves.items()):
        accuracies = sorted(curve.test_accuracy for curve in group)
        spread = [place + 0.25 * (2 * i % 5 - 2) / 2 for i in range(len(accuracies))]
        axes.plot(spread, accuracies, MARKERS[place % len(MARKERS)], color=f"C{place}", alpha=0.7, markersize=5)
        axes.plot([place - 0.35, place + 0.35], [median(accuracies)] * 2, "k-", linewidth=2, zorder=3)
        value = published.get(name)
        if value is not None:
            axes.plot([place - 0.35, place + 0.35], [value] * 2, "r--", linewidth=1.5, zorder=3)
            text = f"published\n{value:g}", (place + 0.35, value), (3, 0)
            axes.annotate(*text, textcoords="offset points", color="r", va="center", fontsize="small")
    axes.set_xticks(range(len(curves)), [f"{name}\n{len(group)} seeds" for name, group in curves.items()])
    axes.set(ylabel="test accuracy (bar: median)", xlim=(-0.6, len(curves) - 0.1))
    axes.grid(alpha=0.3, axis="y")
    return figure
