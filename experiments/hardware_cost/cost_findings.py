"""What the study comes to: two tables, and a figure of each that is readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu

from ..common.comparison import grouped
from ..common.panels import Table, finish, marks
from ..common.studies import Findings, Tables
from .cost_settings import HardwareCostSettings
from .steps import MODELS, SYSTEMS

TEN_MINUTES = 600.0
"""Seconds of the quantum processor that IBM's open plan has in 28 days."""
_COUNTS = ("system", "model", "jobs", "pubs", "circuits", "executions", "circuit_seconds")
_OF_ANSWER = ("executions_of_largest_job", "deviation", "versions")


def find(settings: HardwareCostSettings, tables: Tables) -> Findings:
    """What a step costs with each library, and what the device's time buys each way."""
    numbers: dict[str, Any] = {}
    found: dict[str, Table] = {}
    figures: dict[str, Figure] = {}
    if steps := tables.get("step"):
        numbers["counts"] = [{name: row[name] for name in (*_COUNTS, *_OF_ANSWER)} for row in steps]
        found["costs"] = [_cost_row(row) for row in steps]
        figures["costs.png"] = _figure_of_costs(steps)
    if trainings := tables.get("training"):
        chosen = _with_chosen_rates(settings, trainings)
        numbers["trainings"] = len(trainings)
        found["rates"] = _rates(settings, trainings)
        found["accuracies"] = [_accuracy_row(rows, chosen) for rows in chosen.values()]
        figures["accuracies.png"] = _figure_of_accuracies(chosen)
    return Findings(numbers, found, figures)


def _cost_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": MODELS[row["model"]].title,
        "library": SYSTEMS[row["system"]].title,
        **{name: row[name] for name in ("jobs", "circuits", "executions")},
        "executions of the largest job": row["executions_of_largest_job"],
        "QPU seconds": row["qpu_seconds"],
        "steps in ten minutes": int(TEN_MINUTES / row["qpu_seconds"]),
    }


def _figure_of_costs(steps: Table) -> Figure:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    names = [name for name in MODELS if any(row["model"] == name for row in steps)]
    for side, (system, mark) in zip((-0.18, 0.0, 0.18), marks(SYSTEMS).items(), strict=True):
        own = [row for row in steps if row["system"] == system]
        places = [names.index(row["model"]) + side for row in own]
        style: dict[str, Any] = {"color": mark.colour, "markersize": 8, "markerfacecolor": "w", "markeredgewidth": 1.6}
        axes.plot([row["qpu_seconds"] for row in own], places, mark.marker, label=SYSTEMS[system].title, **style)
    axes.axvline(TEN_MINUTES, color="k", linewidth=1, linestyle="--", label="the open plan's ten minutes")
    axes.set_yticks(range(len(names)), [MODELS[name].title for name in names])
    axes.invert_yaxis()
    axes.margins(y=0.1)
    axes.set(xscale="log", xlabel="seconds on the quantum processor for one training step (estimated)")
    return finish(figure, columns=2)


def _rates(settings: HardwareCostSettings, trainings: Table) -> list[dict[str, Any]]:
    """The mean accuracy of each way with each learning rate, over the seeds that choose."""
    return [
        {"way": way, "shots": shots, "lr": lr, "mean accuracy": fmean(row["accuracy"] for row in rows)}
        for (way, shots, lr), rows in grouped(_choosing(settings, trainings), itemgetter("way", "shots", "lr")).items()
    ]


def _choosing(settings: HardwareCostSettings, trainings: Table) -> list[Mapping[str, Any]]:
    """Those of the seeds that choose a learning rate; of all seeds if none are set apart."""
    first = settings.seed + settings.seeds if settings.tuning_seeds else settings.seed
    return [row for row in trainings if row["seed"] >= first]


def _with_chosen_rates(
    settings: HardwareCostSettings, trainings: Table
) -> dict[tuple[str, int], Sequence[Mapping[str, Any]]]:
    """By way and shots the trainings that are reported, with the learning rate that was best on the other seeds."""
    rates = grouped(_rates(settings, trainings), itemgetter("way", "shots"))
    best = {key: max(rows, key=itemgetter("mean accuracy"))["lr"] for key, rows in rates.items()}
    reported = [row for row in trainings if row["seed"] < settings.seed + settings.seeds]
    return {
        key: [row for row in rows if row["lr"] == best[key]]
        for key, rows in grouped(reported, itemgetter("way", "shots")).items()
    }


def _accuracy_row(rows: Table, chosen: Mapping[tuple[str, int], Table]) -> dict[str, Any]:
    """Beside the first way that was asked for, with the most shots: what somebody would do who thinks of nothing else."""
    first = rows[0]
    accuracies = [row["accuracy"] for row in rows]
    way = next(iter(chosen))[0]
    beside = chosen[way, max(shots for name, shots in chosen if name == way)]
    p = "" if rows is beside else float(mannwhitneyu(accuracies, [row["accuracy"] for row in beside]).pvalue)
    return {
        **{name: first[name] for name in ("way", "shots", "lr")},
        "seconds a step": first["seconds_of_step"],
        "steps": first["steps"],
        "accuracy": median(accuracies),
        "lowest": min(accuracies),
        "highest": max(accuracies),
        "of the weights without noise": median(row["accuracy_of_weights"] for row in rows),
        "p": p,
    }


def _figure_of_accuracies(chosen: Mapping[tuple[str, int], Table]) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    of_shots = marks(sorted({shots for _, shots in chosen}))
    for place, ((_, shots), rows) in enumerate(chosen.items()):
        accuracies = sorted(row["accuracy"] for row in rows)
        _draw_column(axes, place, accuracies, of_shots[shots], f"{shots:,} shots a circuit")
    ticks = [f"{way}\n{rows[0]['steps']} steps" for (way, _), rows in chosen.items()]
    axes.set_xticks(range(len(ticks)), ticks, fontsize="small")
    axes.set(ylabel="test accuracy on the noisy device")
    return finish(figure, columns=3)


def _draw_column(axes: Axes, place: int, values: Sequence[float], mark: Any, label: str) -> None:
    spread = place + 0.18 * (np.arange(len(values)) * 2 % 5 - 2) / 2
    axes.plot(spread, values, mark.marker, color=mark.colour, alpha=0.7, markersize=5, label=label)
    axes.hlines(median(values), place - 0.3, place + 0.3, color="k", linewidth=2, zorder=3, label="median")
