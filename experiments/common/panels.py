"""What figures share: marks that are told apart in grey, points with error bars, one legend for all panels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .lines import standard_error

Table = Sequence[Mapping[str, Any]]
"""The rows of a table, by the names of its columns."""

K = TypeVar("K", bound=Hashable)

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (7, 3)))
_WIDTH = 104  # characters to a line of a legend


class Mark(NamedTuple):
    """How one of several series is drawn."""

    marker: str
    line: Any
    colour: str


def marks(names: Iterable[K]) -> dict[K, Mark]:
    """A mark for each name; those of seven are different in all respects, and those of 56 in grey too."""
    styles = zip(names, cycle("osD^vPX*"), cycle(_LINES), strict=False)
    return {name: Mark(marker, line, f"C{number}") for number, (name, marker, line) in enumerate(styles)}


def draw_points(axes: Axes, mark: Mark, x: Any, y: Any, errors: Any, *, joined: bool = False, **options: Any) -> None:
    """Points with error bars, hollow unless the options say otherwise; if ``joined``, with the mark's line between them."""
    style: dict[str, Any] = {"markerfacecolor": "w", "markersize": 5, "capsize": 2, "linewidth": 1.2}
    line = mark.line if joined else "none"
    axes.errorbar(x, y, errors, marker=mark.marker, linestyle=line, color=mark.colour, **style | options)


def finish(figure: Figure, *, columns: int = 0, title: str | None = None) -> Figure:
    """Adds a grid to each panel, and below them one legend of all that is labelled in any of them.

    Args:
        figure: With its panels.
        columns: The legend's. 0: as many as fit, two at most, with long labels in several lines; the figure grows for them.
        title: The legend's.
    """
    labelled: dict[str, Any] = {}
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = list(labelled)
    if not columns:
        columns = 2 if max(map(len, labels), default=0) <= _WIDTH / 2 else 1
        labels = [fill(label, _WIDTH // columns, break_on_hyphens=False) for label in labels]
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.22 * sum(1 + label.count("\n") for label in labels) / columns)
    options: dict[str, Any] = {"ncols": columns, "fontsize": 9, "title": title, "title_fontsize": 9}
    figure.legend(labelled.values(), labels, loc="outside lower center", **options)
    return figure


def columns(rows: Table, *names: str) -> np.ndarray:
    """Numbers of a table, shape (names, rows); where it is empty, zero."""
    return np.array([[row[name] or 0.0 for row in rows] for name in names], dtype=float)


def mean_and_error(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Columns of a table: the mean, and its standard error, which is left empty where there is a single value."""
    error = standard_error(np.array(values)) if len(values) > 1 else ""
    return {name: float(np.mean(values)), f"{name}, standard error": error}
