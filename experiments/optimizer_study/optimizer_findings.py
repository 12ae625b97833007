"""What the trainings come to: at each budget every optimizer with its best learning rate, and which is ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import rankdata

from ..common.comparison import grouped, summarize
from ..common.panels import Table, draw_points, finish, marks
from ..common.studies import Findings, Tables
from .optimizer_settings import OptimizerSettings

LEVEL = 0.05
"""Of significance."""
_LEAST = 1e-12
"""Of a value whose logarithm is taken: rounding."""
AXES = {"executions": "circuits executed", "seconds": "seconds on the quantum processor (estimated)"}
"""What a budget is of, and its words."""
_VALUES = {
    "layerwise": "test loss, layerwise 3/6",
    "dressed": "test loss, dressed 8/9",
    "hydrogen": "energy above the ground state of H$_2$ (hartree)",
}


def signed_rank(differences: Sequence[float]) -> float:
    """Wilcoxon's signed-rank test of paired differences: the two-sided p, exact, with ties too; zeros are left out."""
    values = np.array([each for each in differences if each])
    ranks = np.rint(2 * rankdata(np.abs(values))).astype(int)  # doubled, because those of ties are halves
    ways = np.ones(1)
    for rank in ranks:
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
    above = int(ranks[values > 0].sum())
    least = min(above, int(ranks.sum()) - above)
    return min(1.0, 2 * float(ways[: least + 1].sum() / ways.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for so many tests, in the order of the values given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def find(settings: OptimizerSettings, tables: Tables) -> Findings:
    """The table of all budgets, the winners, the rates that were tried, and a figure of each axis."""
    trainings = tables["measurements"]
    rates = _rates(settings, trainings)
    best = {
        key: min(rows, key=itemgetter("median")) for key, rows in grouped(rates, itemgetter(*_KEY, "method")).items()
    }
    reported = [
        row
        for row in trainings
        if row["seed"] < settings.seed + settings.seeds
        and (row["lr"] is None or row["lr"] == best[itemgetter(*_KEY, "method")(row)]["lr"])
    ]
    budgets = [row for _, rows in grouped(_in_order(reported), itemgetter(*_KEY)).items() for row in _standing(rows)]
    winners = [_winner(rows) for rows in grouped(budgets, itemgetter(*_KEY)).values()]
    numbers = {
        "trainings": len({tuple(row[name] for name in ("problem", "method", "lr", "seed")) for row in trainings}),
        "device": settings.device,
        "winners": {f"{row['problem']}, {row['budget']:,.0f} {row['axis']}": row["best"] for row in winners},
    }
    figures = {f"{axis}.png": _figure(settings, axis, budgets) for axis in AXES}
    return Findings(numbers, {"budgets": budgets, "winners": winners, "rates": rates}, figures)


_KEY = ("problem", "axis", "budget")


def _in_order(rows: Table) -> list[Mapping[str, Any]]:
    """By problem, axis and budget; the methods stay as they are."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    axes = list(AXES)
    return sorted(rows, key=lambda row: (problems.index(row["problem"]), axes.index(row["axis"]), row["budget"]))


def _rates(settings: OptimizerSettings, trainings: Table) -> list[dict[str, Any]]:
    """The median value of each learning rate over the seeds that choose, at each budget."""
    choosing = [row for row in trainings if row["lr"] is not None and row["seed"] >= settings.seed + settings.seeds]
    return [
        {**dict(zip((*_KEY, "method", "lr"), key, strict=True)), "median": median(row["value"] for row in rows)}
        for key, rows in grouped(_in_order(choosing), itemgetter(*_KEY, "method", "lr")).items()
    ]


def _standing(rows: Table) -> list[dict[str, Any]]:
    """The methods at one budget, each with the p of its difference from the one with the least median."""
    by_method = grouped(rows, itemgetter("method"))
    standing = [_summary(method, each) for method, each in by_method.items()]
    first = min(standing, key=itemgetter("median"))["method"]
    others = [name for name in by_method if name != first]
    adjusted = dict(zip(others, holm([_p(by_method[name], by_method[first]) for name in others]), strict=True))
    return [{**row, "p": adjusted.get(row["method"], "")} for row in standing]


def _summary(method: str, rows: Table) -> dict[str, Any]:
    values = summarize([row["value"] for row in rows])
    return {
        **{name: rows[0][name] for name in _KEY},
        "method": method,
        "lr": "" if rows[0]["lr"] is None else rows[0]["lr"],
        "steps": median(row["steps"] for row in rows),
        **{f"{name} a step": _a_step(name, rows) for name in ("jobs", "executions", "seconds")},
        "median": values["median"],
        "lower quartile": values["lower_quartile"],
        "upper quartile": values["upper_quartile"],
        "mean score": fmean(row["score"] for row in rows),
    }


def _a_step(name: str, rows: Table) -> float | str:
    """What a step has cost in the mean; empty where there was none."""
    steps = sum(row["steps"] for row in rows)
    return sum(row[f"spent_{name}"] for row in rows) / steps if steps else ""


def _p(rows: Table, beside: Table) -> float:
    """Of the logarithms' differences, seed by seed."""
    ours, theirs = ({row["seed"]: np.log(max(row["value"], _LEAST)) for row in each} for each in (rows, beside))
    return signed_rank([ours[seed] - theirs[seed] for seed in ours])


def _winner(rows: Table) -> dict[str, Any]:
    """The one with the least median, and those that cannot be told from it."""
    first = next(row for row in rows if row["p"] == "")
    alike = [row["method"] for row in rows if row["p"] != "" and row["p"] >= LEVEL]
    return {
        **{name: first[name] for name in _KEY},
        "best": first["method"],
        "median": first["median"],
        "not told apart from it": ", ".join(alike) or "none",
    }


def _figure(settings: OptimizerSettings, axis: str, budgets: Table) -> Figure:
    """Medians and quartiles against the budgets of one axis, a panel a problem."""
    figure = Figure(figsize=(3.6 * max(2, len(settings.problems)), 4.4), layout="constrained")
    panels = figure.subplots(1, len(settings.problems), squeeze=False)[0]
    styles = marks(settings.methods)
    for axes, problem in zip(panels, settings.problems, strict=True):
        own = [row for row in budgets if row["problem"] == problem and row["axis"] == axis]
        for place, (method, rows) in enumerate(grouped(own, itemgetter("method")).items()):
            _draw_method(axes, styles[method], rows, shift=1.05 ** (place - 3.5))
        axes.set(xscale="log", yscale="log" if problem == "hydrogen" else "linear", xlabel=AXES[axis])
        ticks = sorted({row["budget"] for row in own})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize="small")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(_VALUES[problem], loc="left", fontsize=9)
    return finish(figure, columns=4, title="medians and quartiles (moved apart)")


def _draw_method(axes: Axes, mark: Any, rows: Table, *, shift: float) -> None:
    middle, low, high = (
        np.array([row[name] for row in rows]) for name in ("median", "lower quartile", "upper quartile")
    )
    places = np.array([row["budget"] for row in rows]) * shift
    draw_points(axes, mark, places, middle, [middle - low, high - middle], joined=True, label=rows[0]["method"])
