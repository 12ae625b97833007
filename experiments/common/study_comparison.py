"""Runs of one study side by side: their tables row by row, and how far their numbers differ in standard errors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import shorten
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm

from .comparison import MARKERS, grouped, telling, wrapped

Rows = Sequence[Mapping[str, Any]]

_COUNTS = ("trainings",)
"""Columns that say how often something was measured, not what."""


class Estimate(NamedTuple):
    """A number with an error.

    Attributes:
        value: The number.
        below: Its standard error downwards; that of a number that cannot be negative may be another than upwards.
        above: Its standard error upwards.
    """

    value: float
    below: float
    above: float

    def score(self, first: Estimate) -> float:
        """The difference from another, independent one, in standard errors (z)."""
        difference = self.value - first.value
        lower, upper = (first, self) if difference > 0 else (self, first)
        error = math.hypot(lower.above, upper.below)
        if error:
            return difference / error
        return math.copysign(math.inf, difference) if difference else 0.0


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
    numbers = (place for place, name in enumerate(columns) if name in errors)
    words = [name for name in columns[: next(numbers, len(columns))] if name not in _COUNTS]
    if not errors:
        words = [name for name in columns if all(isinstance(row.get(name, ""), str) for row in rows)]
    compared = []
    for group in grouped(rows, lambda row: tuple(row.get(name) for name in words)).values():
        base = next((row for row in group if row["run"] == first), None)
        for row in group:
            compared.append(_scored(row, None if row is base else base, errors) if len(tables) > 1 else row)
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


def _scored(
    row: Mapping[str, Any], base: Mapping[str, Any] | None, errors: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The row with a z after each error."""
    after = {columns[-1]: name for name, columns in errors.items() if name in row}
    scored: dict[str, Any] = {}
    for column, value in row.items():
        scored[column] = value
        if (name := after.get(column)) is not None:
            here, there = (_estimate(each, name, errors[name]) for each in (row, base or {}))
            scored[f"z of {name}"] = "" if here is None or there is None else here.score(there)
    return scored


def _estimate(row: Mapping[str, Any], name: str, error: tuple[str, ...]) -> Estimate | None:
    value, *beside = (row.get(each, "") for each in (name, *error))
    if any(isinstance(each, str) for each in (value, *beside)):
        return None
    if len(beside) == 1:
        return Estimate(value, beside[0], beside[0])
    width = float(norm.ppf(0.975))
    return Estimate(value, (value - beside[0]) / width, (beside[1] - value) / width)


def scores_of(table: Table) -> list[float]:
    """All z of a table."""
    values = (row.get(f"z of {name}", "") for row in table.rows for name in table.scored)
    return [value for value in values if value != ""]


def agreement(tables: Collection[Table]) -> str:
    """In a sentence, how many numbers differ by more than two standard errors."""
    scores = [abs(score) for table in tables for score in scores_of(table)]
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
    tables = {name: table for name, table in tables.items() if scores_of(table)}
    others = list(dict.fromkeys(row["run"] for table in tables.values() for row in table.rows if row["run"] != first))
    heights = [2 + len(_lines(table)) for table in tables.values()] or [1]
    figure = Figure(figsize=(8, 0.8 + 0.2 * sum(heights) + 0.22 * len(others)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    finite = [abs(score) for table in tables.values() for score in scores_of(table) if math.isfinite(score)]
    limit = 1.15 * max([3.0, *finite])
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        _draw_scores(axes, table, others, limit)
        axes.set_title(name, fontsize="small", loc="left")
    panels[-1].set(xlabel=wrapped(f"difference from {first} in standard errors (z)", 90), xlim=(-limit, limit))
    if len(others) > 1:
        handles = [Line2D([], [], marker="o", linestyle="", **_colours(place)) for place in range(len(others))]
        labels = [wrapped(run, 90) for run in others]
        figure.legend(handles, labels, loc="outside lower center", fontsize="small")
    return figure


def _about(table: Table, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in table.words)


def _lines(table: Table) -> list[tuple[Any, ...]]:
    """What the rows are about, each once."""
    return list(dict.fromkeys(_about(table, row) for row in table.rows))


def _colours(place: int) -> dict[str, Any]:
    """Those of a run's marks: each second is open."""
    colour = f"C{place % 10}"
    return {"color": colour, "markerfacecolor": "w" if place % 2 else colour}


def _draw_scores(axes: Axes, table: Table, others: Sequence[str], limit: float) -> None:
    """The z of one table; those beyond the limit are on the edge."""
    axes.axvspan(-2, 2, color="0.92", zorder=0)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    lines = _lines(table)
    places = {line: place for place, line in enumerate(lines)}
    for marker, name in zip(cycle(MARKERS), table.scored, strict=False):
        for place, run in enumerate(others):
            rows = [row for row in table.rows if row["run"] == run and row.get(f"z of {name}", "") != ""]
            scores = [max(-limit, min(limit, row[f"z of {name}"])) for row in rows]
            height = [places[_about(table, row)] + 0.3 * (place / len(others) - 0.5) for row in rows]
            axes.plot(scores, height, marker, markersize=5, clip_on=False, **_colours(place))
        axes.plot([], [], marker, markersize=5, color="k", label=wrapped(name, 40))
    keys = telling([dict(zip(table.words, line, strict=True)) for line in lines]) or table.words
    named = [[(key, value) for key, value in zip(table.words, line, strict=True) if key in keys] for line in lines]
    labels = [", ".join(v if isinstance(v, str) else f"{key} {v:,}" for key, v in each) for each in named]
    axes.set_yticks(range(len(lines)), [shorten(label, 80, placeholder=" ...") for label in labels], fontsize="x-small")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="x-small", frameon=False, borderaxespad=0.2)
