"""What the measured errors and trainings come to: fits, tables, and figures that are readable in grey."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import itemgetter
from statistics import fmean, geometric_mean, median
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import chi2

from ..common.comparison import grouped
from ..common.lines import MeanSquare, Plateau, fit_plateau, fit_power_law
from ..common.panels import Mark, Table, columns, draw_points, finish, marks, mean_and_error
from ..common.studies import Findings, Tables
from .noise import IDEAL, NOISES, QUANTITIES, closed_form, ideal, one_shot
from .scaling import EXPONENTS, VALUE
from .shot_settings import ShotNoiseSettings
from .strategies import ALLOCATIONS, STRATEGIES

NoiseKey: TypeAlias = "tuple[str, int, str]"
"""A noise by its name, a number of qubits, and a quantity."""

_SEED = itemgetter("seed")  # each training's rows are in the order of its steps
_NEARLY = 0.95
"""Of the best accuracy: what counts as having learnt."""
_MODEL_WORDS = {
    "hybrid CNN": "hybrid CNN on 0/1, $-p$(right class)",
    "layerwise": "layerwise on 3/6, cross entropy",
    "dressed": "dressed on 3/6, hinge loss",
}


def find(settings: ShotNoiseSettings, tables: Tables) -> Findings:
    """Fits and draws those of the study's tables that there are."""
    numbers: dict[str, Any] = {}
    summaries: dict[str, Table] = {}
    figures = {}
    if "scaling" in tables:
        groups = grouped(tables["scaling"], itemgetter("quantity"))
        slopes = [row for quantity, rows in groups.items() for row in _slope_rows(quantity, rows)]
        summaries["slopes"] = slopes
        figures["scaling.png"] = _scaling_figure(groups)
        numbers |= {"slopes": len(slopes), "largest_z_of_slopes": max(abs(row["z"]) for row in slopes)}
    if "noise" in tables:
        by_noise = grouped(tables["noise"], itemgetter("noise", "qubits", "quantity"))
        plateaus = {key: _plateau(rows) for key, rows in by_noise.items()}
        biases = [_plateau_row(key, plateaus[key], rows[0]["exact_bias"]) for key, rows in by_noise.items()]
        summaries["plateaus"] = biases
        figures["noise.png"] = _noise_figure(by_noise, plateaus)
        numbers |= {"plateaus": len(plateaus), "largest_z_of_plateaus": max(abs(row["z"]) for row in biases)}
    if "training" in tables:
        by_model = {
            model: grouped(rows, itemgetter("strategy"))
            for model, rows in grouped(tables["training"], itemgetter("model")).items()
        }
        for name, rows_of in (("strategies", _strategy_rows), ("allocations", _allocation_rows)):
            summaries[name] = [row for model, group in by_model.items() for row in rows_of(model, group)]
        figures["training.png"] = _training_figure(by_model)
        numbers["dataset"] = "digits" if tables["training"][0]["data_root"] is None else "mnist"
    return Findings(numbers, summaries, figures)


def _slope_rows(quantity: str, rows: Table) -> Iterator[dict[str, Any]]:
    shots, of_shots, of_directions = columns(rows, "shots", "theory_variance_of_shots", "theory_variance_of_directions")
    limit = EXPONENTS[quantity]
    for error, theory, at_last in (
        ("scatter", of_shots + of_directions, 0.0 if of_directions.any() else limit),
        ("reported", of_shots, limit),
    ):
        variances = list(map(MeanSquare, *columns(rows, f"{error}_variance", f"{error}_variance_error")))
        law = fit_power_law(shots.tolist(), variances, theory.tolist())
        yield {
            "of": quantity,
            "standard error": error,
            "slope": law.slope,
            **dict(zip(("95 % from", "to"), law.interval, strict=True)),
            "in theory": law.slope_of_theory,
            "z": law.z,
            "with many shots": at_last,
            "chi-square about theory": law.chi_square,
            "points": law.freedom,
            "p": float(chi2(law.freedom).sf(law.chi_square)),
        }


def _plateau(rows: Table) -> Plateau:
    shots, squares = columns(rows, "shots", "mean_squared_error").tolist()
    return fit_plateau(shots, squares, rows[0]["repeats"])


def _plateau_row(key: NoiseKey, plateau: Plateau, exact: float) -> dict[str, Any]:
    name, qubits, quantity = key
    place = QUANTITIES.index(quantity)
    closed = closed_form(NOISES[name], qubits)
    return {
        "noise": name,
        "qubits": qubits,
        "quantity": quantity,
        "plateau": plateau.bias,
        **dict(zip(("95 % from", "to"), plateau.interval, strict=True)),
        "exact bias": abs(exact),
        "closed form": "" if closed is None else abs(float(closed[place] - ideal()[place])),
        "z": plateau.z(exact),
        "shots whose noise is as large": "" if name == IDEAL else math.ceil(one_shot()[place] / exact**2),
    }


def _strategy_rows(model: str, by_strategy: Mapping[str, Table]) -> Iterator[dict[str, Any]]:
    trainings = {strategy: grouped(rows, _SEED).values() for strategy, rows in by_strategy.items()}
    aim = _NEARLY * max(fmean(rows[-1]["test_accuracy"] for rows in each) for each in trainings.values())
    for strategy, each in trainings.items():
        curves = ((row["total_shots"] for row in rows if row["test_accuracy"] >= aim) for rows in each)
        reached = [shots for curve in curves if (shots := next(curve, None)) is not None]
        yield {
            "model": model,
            "shots a circuit": strategy,
            "trainings": len(each),
            **mean_and_error("test accuracy", [rows[-1]["test_accuracy"] for rows in each]),
            "shots spent": round(fmean(rows[-1]["total_shots"] for rows in each)),
            "accuracy to reach": aim,
            "reached by": len(reached),
            "shots until then (median of these)": round(median(reached)) if reached else "",
        }


def _allocation_rows(model: str, by_strategy: Mapping[str, Table]) -> Iterator[dict[str, Any]]:
    """Uniform allocation against that by sensitivity, seed by seed."""
    for uniform, sensitive in ALLOCATIONS.items():
        before, after = (grouped(by_strategy[name], _SEED) for name in (uniform, sensitive))
        pairs = [(before[seed][-1], after[seed][-1]) for seed in before]
        yield {
            "model": model,
            "shots a circuit": uniform,
            "trainings": len(pairs),
            **mean_and_error("shots saved", [1 - b["total_shots"] / a["total_shots"] for a, b in pairs]),
            **mean_and_error("accuracy gained", [b["test_accuracy"] - a["test_accuracy"] for a, b in pairs]),
        }


def _scaling_figure(groups: Mapping[str, Table]) -> Figure:
    """Standard errors against shots, and the measured ones over the theory."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    errors, ratios = figure.subplots(1, 2, width_ratios=[1.15, 1])
    styles = marks(EXPONENTS)
    names = "theory_variance_of_shots", "theory_variance_of_directions", "scatter_variance", "reported_variance"
    for number, (quantity, rows) in enumerate(groups.items()):
        mark = styles[quantity]
        shots, bars = columns(rows, "shots", "scatter_variance_error")
        of_shots, of_directions, square, reported = columns(rows, *names)
        total, scatter = np.sqrt(of_shots + of_directions), np.sqrt(square)
        bars /= scatter  # two standard errors of the root
        errors.plot(shots, total, linestyle=mark.line, color=mark.colour, linewidth=1)
        if of_directions.any():
            errors.plot(shots, np.sqrt(of_shots), linestyle=mark.line, color=mark.colour, linewidth=0.6)
        errors.plot(shots, np.sqrt(reported), "+", color=mark.colour, markersize=7)
        label = quantity if quantity == VALUE else f"gradient, {quantity}"
        draw_points(errors, mark, shots, scatter, bars, markersize=6, label=label)
        places = shots * 1.13 ** (number - (len(groups) - 1) / 2)
        draw_points(ratios, mark, places, scatter / total, bars / total)
    errors.plot([], [], "k+", label="crosses: reported by the library,\nthe part that shots cause")
    ratios.axhline(1, color="k", linewidth=1)
    errors.set(xscale="log", yscale="log", xlabel="shots a circuit", ylabel="standard error (gradient: rad$^{-1}$)")
    ratios.set(xscale="log", xlabel="shots a circuit (moved apart)", ylabel="scatter / theory")
    errors.set_title("(a) scatter over repeats; lines: theory", loc="left", fontsize=10)
    ratios.set_title("(b) the same over the theory; bars: 2 standard errors", loc="left", fontsize=10)
    return finish(figure, columns=3)


def _noise_figure(groups: Mapping[NoiseKey, Table], plateaus: Mapping[NoiseKey, Plateau]) -> Figure:
    """Root mean squared errors of value and derivative against shots, with fits and exact biases; a row for each size."""
    sizes = sorted({qubits for _, qubits, _ in groups})
    figure = Figure(figsize=(10, 0.7 + 4.2 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(QUANTITIES), squeeze=False, sharex=True, sharey="col")
    styles = marks(NOISES)
    for (name, qubits, quantity), rows in groups.items():
        axes = panels[sizes.index(qubits), QUANTITIES.index(quantity)]
        mark, plateau = styles[name], plateaus[name, qubits, quantity]
        shots, squares, bars = columns(rows, "shots", "mean_squared_error", "mean_squared_error_error")
        along = np.geomspace(shots.min(), shots.max(), 100)
        curve = np.sqrt(np.maximum(plateau.one_shot / along + max(plateau.square, 0.0), 0.0))
        label = f"{name} (the shots alone)" if name == IDEAL else name
        axes.plot(along, curve, linestyle=mark.line, color=mark.colour, linewidth=1)
        errors = np.sqrt(squares)
        draw_points(axes, mark, shots, errors, bars / errors, label=label, markersize=6)  # two standard errors
        if name != IDEAL:
            bias, ends = abs(rows[0]["exact_bias"]), shots.max() * np.array([1.25, 3])
            axes.plot(ends, [bias, bias], color=mark.colour, linewidth=2.5)
            axes.plot(ends[1], bias, mark.marker, color=mark.colour, markersize=5)
    for number, axes in enumerate(panels.flat):
        size, place = divmod(number, len(QUANTITIES))
        axes.set(xscale="log", yscale="log")
        axes.set_ylabel(f"root mean squared error of the {('value', 'derivative (rad$^{-1}$)')[place]}")
        axes.set_title(f"({chr(ord('a') + number)}) {QUANTITIES[place]}, {sizes[size]} qubits", loc="left", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("shots a circuit")
    title = "points: measured (bars: 2 standard errors); lines: fits; at the right: exact bias"
    return finish(figure, columns=3, title=title)


def _training_figure(by_model: Mapping[str, Mapping[str, Table]]) -> Figure:
    """Test accuracy against the shots spent, in the mean over seeds, with its standard error."""
    figure = Figure(figsize=(3.7 * max(2, len(by_model)), 4.7), layout="constrained")
    styles = marks([name for name in STRATEGIES if name not in ALLOCATIONS.values()])
    panels = figure.subplots(1, len(by_model), squeeze=False, sharey=True)[0]
    for axes, (model, by_strategy) in zip(panels, by_model.items(), strict=True):
        for strategy, mark in styles.items():
            if strategy in by_strategy:
                _draw_strategy(axes, by_strategy[strategy], mark, strategy)
        for uniform, sensitive in ALLOCATIONS.items():
            mark = styles[uniform]
            _draw_strategy(axes, by_strategy[sensitive], mark, sensitive, markerfacecolor=mark.colour)
        axes.set(xscale="log", xlabel="shots spent in all")
        axes.set_title(_MODEL_WORDS[model], loc="left", fontsize=10)
    figure.axes[0].set_ylabel("test accuracy (mean over seeds, standard error)")
    return finish(figure, columns=4)


def _draw_strategy(axes: Axes, rows: Table, mark: Mark, label: str, **options: Any) -> None:
    groups = grouped(rows, itemgetter("step")).values()
    shots = [geometric_mean(row["total_shots"] for row in group) for group in groups]
    means = [mean_and_error("accuracy", [row["test_accuracy"] for row in group]) for group in groups]
    accuracies, bars = columns(means, "accuracy", "accuracy, standard error")
    thin = {"capsize": 0, "elinewidth": 0.7, "markersize": 4.5}
    draw_points(axes, mark, shots, accuracies, bars, joined=True, label=label, **thin, **options)
