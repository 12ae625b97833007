"""What the trainings come to: a table, and a figure that is readable in grey."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from statistics import fmean, median
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu

from ..common.comparison import grouped
from ..common.panels import Table, finish, marks, mean_and_error
from ..common.studies import Findings, Tables
from .layerwise_settings import LayerwiseNoiseSettings, TrainingName

TRAININGS: tuple[TrainingName, ...] = get_args(TrainingName)


def find(settings: LayerwiseNoiseSettings, tables: Tables) -> Findings:
    """The errors of each noise, their differences over all noises, and a figure."""
    trainings = grouped(tables["measurements"], itemgetter("shots", "noise"))
    errors = [
        _row(shots, noise, trainings[shots, noise]) for shots in sorted(settings.shots) for noise in settings.noises
    ]
    spent = {
        name: sum(row["shots_spent"] for row in tables["measurements"] if row["training"] == name) for name in TRAININGS
    }
    numbers = {
        "dataset": "digits" if settings.mnist_root is None else "mnist",
        "trainings": len(tables["measurements"]),
        "shots_spent": spent,
        "least_p": min(row["p"] for row in errors),
        "layerwise_lower": sum(row["layerwise"] < row["complete"] for row in errors),
        "complete_lower": sum(row["layerwise"] > row["complete"] for row in errors),
    }
    differences = [_difference_row(*each) for each in grouped(tables["measurements"], itemgetter("shots")).items()]
    return Findings(
        numbers, {"errors": errors, "differences": differences}, {"errors.png": _figure(settings, errors, trainings)}
    )


def _row(shots: int, noise: str, rows: Table) -> dict[str, Any]:
    errors = _errors(rows, "test_error")
    row: dict[str, Any] = {"shots a circuit": shots, "noise": noise, "seeds": len(errors["layerwise"])}
    for name in TRAININGS:
        row |= {name: median(errors[name]), f"{name}, lowest": min(errors[name]), f"{name}, highest": max(errors[name])}
    row["p"] = float(mannwhitneyu(errors["layerwise"], errors["complete"]).pvalue)
    weights = _errors(rows, "error_of_weights")
    return row | {f"{name}, of the weights": median(weights[name]) for name in TRAININGS}


def _difference_row(shots: int, rows: Table) -> dict[str, Any]:
    """The difference of the test errors, for each seed in the mean over all noises; and its mean over the seeds."""
    by_seed = [_errors(of_seed, "test_error") for of_seed in grouped(rows, itemgetter("seed")).values()]
    differences = [fmean(errors["layerwise"]) - fmean(errors["complete"]) for errors in by_seed]
    return {"shots a circuit": shots, **mean_and_error("layerwise minus complete", differences)}


def _errors(rows: Table, column: str) -> dict[str, list[float]]:
    groups = grouped(rows, itemgetter("training"))
    return {name: [row[column] for row in groups[name]] for name in TRAININGS}


def _figure(settings: LayerwiseNoiseSettings, errors: Table, trainings: Mapping[tuple[int, str], Table]) -> Figure:
    figure = Figure(figsize=(9, 3.4 * len(settings.shots)), layout="constrained")
    panels = figure.subplots(len(settings.shots), 1, sharey=True, squeeze=False)[:, 0]
    for axes, shots in zip(panels, sorted(settings.shots), strict=True):
        for place, noise in enumerate(settings.noises):
            _draw_column(axes, place, _errors(trainings[shots, noise], "test_error"))
        ticks = [_tick(row) for row in errors if row["shots a circuit"] == shots]
        axes.set_xticks(range(len(ticks)), ticks, fontsize="small")
        axes.set(ylabel="test error")
        axes.set_title(f"{shots:,} shots a circuit", fontsize=10)
    return finish(figure, columns=3)


def _tick(row: Mapping[str, Any]) -> str:
    return "\n".join([*row["noise"].split(" ", 1), f"p = {row['p']:.2g}"])


def _draw_column(axes: Axes, place: int, errors: dict[str, list[float]]) -> None:
    for side, (name, mark) in zip((-0.2, 0.2), marks(TRAININGS).items(), strict=True):
        values = sorted(errors[name])
        spread = place + side + 0.12 * (np.arange(len(values)) * 2 % 5 - 2) / 2
        axes.plot(spread, values, mark.marker, color=mark.colour, alpha=0.7, markersize=4, label=name)
        axes.hlines(
            median(values), place + side - 0.17, place + side + 0.17, color="k", linewidth=2, zorder=3, label="median"
        )
