"""The tables of this study's page, from the run that it is about: ``python -m experiments.optimizer_study.optimizer_page``.

``measured.csv`` is the ``budgets.csv`` of that run.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..common.comparison import grouped
from ..common.panels import Table
from ..common.runs import RunFolder
from .optimizer_findings import LEVEL

FOLDER = Path(__file__).parent


def measured() -> list[dict[str, Any]]:
    """The rows of all budgets of the run that the page is about."""
    return RunFolder(FOLDER).read_rows("measured.csv")


def winners_table(rows: Table) -> str:
    """The best at each budget, and those that cannot be told from it."""
    lines = ["| problem | budget | best | its median | not told apart from it |", "|---|---|---|---|---|"]
    for own in grouped(rows, itemgetter("problem", "axis", "budget")).values():
        best = next(row for row in own if row["p"] == "")
        alike = [row["method"] for row in own if row["p"] != "" and row["p"] >= LEVEL]
        words = "all others" if len(alike) == len(own) - 1 else ", ".join(alike) or "none"
        lines.append(f"| {best['problem']} | {_budget(best)} | {best['method']} | {_value(best, 'median')} | {words} |")
    return "\n".join(lines)


def cost_table(rows: Table) -> str:
    """What a step costs: executions and seconds in the mean over the largest budget of executions."""
    kept = [row for row in rows if row["axis"] == "executions"]
    last = max(row["budget"] for row in kept)
    by_method = grouped([row for row in kept if row["budget"] == last], itemgetter("method"))
    problems = list(dict.fromkeys(row["problem"] for row in kept))
    lines = [f"| optimizer | {' | '.join(problems)} |", "|---" * (1 + len(problems)) + "|"]
    for method, own in by_method.items():
        costs = {row["problem"]: f"{row['executions a step']:,.0f}, {row['seconds a step']:.1f} s" for row in own}
        lines.append(f"| {method} | {' | '.join(costs.get(problem, '') for problem in problems)} |")
    return "\n".join(lines)


def standing_table(rows: Table, problem: str) -> str:
    """All optimizers at the largest budget of each axis."""
    by_axis = grouped([row for row in rows if row["problem"] == problem], itemgetter("axis"))
    last = {axis: max(row["budget"] for row in own) for axis, own in by_axis.items()}
    kept = [[row for row in own if row["budget"] == last[axis]] for axis, own in by_axis.items()]
    heads = " | ".join(f"{_budget(own[0])} | lr, steps | score" for own in kept)
    lines = [f"| optimizer | {heads} |", "|---" * (1 + 3 * len(kept)) + "|"]
    for beside in zip(*kept, strict=True):
        lines.append(f"| {beside[0]['method']} | {' | '.join(map(_standing, beside))} |")
    return "\n".join(lines)


def _standing(row: Mapping[str, Any]) -> str:
    quartiles = f"{_value(row, 'lower quartile')} to {_value(row, 'upper quartile')}"
    rate = f"{row['lr']:g}, " if row["lr"] != "" else ""
    return f"{_value(row, 'median')} ({quartiles}) | {rate}{row['steps']:.0f} | {row['mean score']:.2f}"


def _budget(row: Mapping[str, Any]) -> str:
    return f"{row['budget']:,.0f} {'s' if row['axis'] == 'seconds' else 'executions'}"


def _value(row: Mapping[str, Any], name: str) -> str:
    """A loss; or an energy in thousandths of a hartree."""
    if row["problem"] == "hydrogen":
        return f"{1000 * row[name]:#.3g}".rstrip(".")
    return f"{row[name]:.3f}"


def tables(rows: Table) -> list[str]:
    """All of the page."""
    problems = dict.fromkeys(row["problem"] for row in rows)
    return [cost_table(rows), winners_table(rows), *(standing_table(rows, problem) for problem in problems)]


if __name__ == "__main__":
    print("\n\n".join(tables(measured())))
