"""Runs of one study side by side: their tables row by row, and how far their numbers differ in standard errors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from textwrap import fill, shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from .comparison import grouped, telling
from .panels import Mark, finish, marks

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of several runs.

    Attributes:
        rows: Those that belong together follow each other; ``run`` is the first column, and a column ``z of NAME`` says how
            far the number NAME is from that of the first run, empty where that cannot be said.
        words: The columns that say what a row is about.
        scored: The names of the numbers that have a z.
    """

    rows: Rows
    words: Sequence[str]
    scored: Collection[str]

    @property
    def lines(self) -> Mapping[tuple[Any, ...], Rows]:
        """The rows by what they are about."""
        return grouped(self.rows, lambda row: tuple(row.get(name) for name in self.words))

    @property
    def scores(self) -> list[float]:
        """All z."""
        values = (row.get(f"z of {name}", "") for row in self.rows for name in self.scored)
        return [value for value in values if value != ""]


def side_by_side(tables: Mapping[str, Rows]) -> Table:
    """The rows of a study's table in several runs, those that are about the same together.

    A row is about what its columns say up to the first number with an error. A number's error is in the columns after it:
    one whose name ends with ``standard error``, or two of a 95 % interval, ``95 % from`` and ``to``.

    Args:
        tables: The table of each run; all are compared with the first.
    """
    first = next(iter(tables))
    rows = [{"run": run, **row} for run, table in tables.items() for row in table]
    errors = {name: columns for table in tables.values() for name, columns in _errors(table).items()}
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "run"))
    words = list(takewhile(lambda name: name not in errors, columns))
    if not errors:
        words = [name for name in columns if all(isinstance(row.get(name, ""), str) for row in rows)]
    words = [name for name in words if name != "trainings"]  # which says how often something was measured, not what
    compared: list[Mapping[str, Any]] = []
    for group in Table(rows, words, errors).lines.values():
        base = next((row for row in group if row["run"] == first), {})
        compared += group if len(tables) == 1 else [_scored(row, {} if row is base else base, errors) for row in group]
    return Table(compared, words, errors)


def _errors(rows: Rows) -> dict[str, tuple[str, ...]]:
    """The columns of numbers with an error, and the columns in which it is."""
    columns, found = [*(rows[0] if rows else ())], dict[str, tuple[str, ...]]()
    for name, *beside in zip(columns, columns[1:], [*columns[2:], ""], strict=False):
        if not any(isinstance(row[name], (int, float)) for row in rows):
            continue
        if beside == ["95 % from", "to"]:
            found[name] = tuple(beside)
        elif beside[0].endswith("standard error"):
            found[name] = (beside[0],)
    return found


def _scored(row: Mapping[str, Any], base: Mapping[str, Any], errors: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The row with a z after each error."""
    names = {columns[-1]: name for name, columns in errors.items() if name in row}
    scored: dict[str, Any] = {}
    for column, value in row.items():
        scored[column] = value
        if (name := names.get(column)) is not None:
            scored[f"z of {name}"] = _z(*([each.get(key, "") for key in (name, *errors[name])] for each in (row, base)))
    return scored


def _z(number: Sequence[Any], first: Sequence[Any]) -> float | str:
    """The difference of two independent numbers in standard errors; empty where that cannot be said.

    Of an interval the side that faces the other number counts: a number that cannot be negative may have another error
    downwards than upwards.

    Args:
        number: With its standard error, or the two ends of its 95 % interval.
        first: The same of the first run.
    """
    if any(isinstance(each, str) for each in (*number, *first)):
        return ""
    difference: float = number[0] - first[0]
    lower, upper = sorted((number, first), key=lambda each: each[0])
    error = math.hypot(_error(lower, lower[-1]), _error(upper, upper[1]))
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def _error(number: Sequence[Any], beside: float) -> float:
    """A number's standard error: what stands beside it, or what follows from that end of its interval."""
    return beside if len(number) == 2 else abs(beside - number[0]) / float(norm.ppf(0.975))


def agreement(tables: Collection[Table]) -> str:
    """In a sentence, how many numbers differ by more than two standard errors."""
    scores = [abs(score) for table in tables for score in table.scores]
    if not scores:
        return "No number with a standard error is in the first run and in another one."
    above = sum(score > 2 for score in scores)
    return (
        f"{above} of {len(scores)} numbers differ from those of the first run by more than 2 standard errors (of runs that "
        f"agree: about {0.0455 * len(scores):.0f}); the largest |z| is {max(scores):.2g}"
    )


def scores_figure(tables: Mapping[str, Table], first: str) -> Figure:
    """The z of all numbers, a line for each row of the tables; the band is that of two standard errors.

    Args:
        tables: By name.
        first: The run that the others are compared with.
    """
    tables = {name: table for name, table in tables.items() if table.scores}
    others = list(dict.fromkeys(row["run"] for table in tables.values() for row in table.rows if row["run"] != first))
    heights = [2 + len(table.lines) for table in tables.values()] or [1]
    figure = Figure(figsize=(8, 0.8 + 0.2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    limit = 1.15 * max([3.0, *(abs(z) for table in tables.values() for z in table.scores if math.isfinite(z))])
    styles = marks(dict.fromkeys(name for table in tables.values() for name in table.scored))
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        _draw_scores(axes, table, styles, others, limit)
        axes.set_title(name, fontsize="small", loc="left")
    panels[-1].set_xlim(-limit, limit)
    panels[-1].set_xlabel(fill(f"difference from {first} in standard errors (z)", 90, break_on_hyphens=False))
    for name, mark in styles.items():
        panels[-1].plot([], [], mark.marker, color="k", label=name)
    for place, run in enumerate(others if len(others) > 1 else []):
        panels[-1].plot([], [], "s", label=run, **_colours(place))
    return finish(figure)


def _colours(place: int) -> dict[str, Any]:
    """Those of a run's marks: each second is open."""
    return {"color": f"C{place}", "markerfacecolor": "w" if place % 2 else f"C{place}"}


def _draw_scores(axes: Axes, table: Table, styles: Mapping[str, Mark], others: Sequence[str], limit: float) -> None:
    """The z of one table; those beyond the limit are on the edge."""
    axes.axvspan(-2, 2, color="0.92", zorder=0)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    for name in table.scored:
        for place, run in enumerate(others):
            points = [
                (max(-limit, min(limit, row[f"z of {name}"])), height + 0.3 * (place / len(others) - 0.5))
                for height, rows in enumerate(table.lines.values())
                for row in rows
                if row["run"] == run and row.get(f"z of {name}", "") != ""
            ]
            style = {"markersize": 5, "clip_on": False, **_colours(place)}
            axes.plot(*np.reshape(points, (-1, 2)).T, styles[name].marker, **style)
    words = telling([dict(zip(table.words, line, strict=True)) for line in table.lines])
    labels = [", ".join(v if isinstance(v, str) else f"{key} {v:,}" for key, v in each.items()) for each in words]
    labels = [shorten(label, 80, placeholder=" ...") for label in labels]
    axes.set_yticks(range(len(labels)), labels, fontsize="x-small")
    axes.set_ylim(len(labels) - 0.5, -0.5)
