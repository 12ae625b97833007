"""What the measured errors and trainings come to: fits and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from statistics import fmean, median, stdev
from typing import Any

from scipy.stats import chi2

from ..common.comparison import grouped
from ..common.lines import MeanSquare
from ..common.options import Settings
from ..common.sweeps import Findings, Tables
from .figures import noise_figure, scaling_figure, training_figure
from .noise import IDEAL, NOISES, QUANTITIES, closed_form, ideal, one_shot
from .power_laws import Plateau, PowerLaw, fit_plateau, fit_power_law
from .scaling import EXPONENTS
from .strategies import ALLOCATIONS

Rows = Sequence[Mapping[str, Any]]

_SEED = itemgetter("seed")  # each training's rows are in the order of its steps
_NEARLY = 0.95
"""Of the best accuracy: what counts as having learnt."""


def find(settings: Settings, tables: Tables) -> Findings:
    """Fits and draws those of the study's tables that there are."""
    numbers: dict[str, Any] = {}
    summaries: dict[str, Rows] = {}
    figures = {}
    if "scaling" in tables:
        groups = grouped(tables["scaling"], itemgetter("quantity"))
        slopes = [row for quantity, rows in groups.items() for row in _slope_rows(quantity, rows)]
        summaries["slopes"] = slopes
        figures["scaling.png"] = scaling_figure(groups)
        numbers |= {"slopes": len(slopes), "largest_z_of_slopes": max(abs(row["z"]) for row in slopes)}
    if "noise" in tables:
        by_noise = grouped(tables["noise"], itemgetter("noise", "quantity"))
        plateaus = {key: _plateau(rows) for key, rows in by_noise.items()}
        summaries["plateaus"] = [
            _plateau_row(name, quantity, plateaus[name, quantity], rows) for (name, quantity), rows in by_noise.items()
        ]
        figures["noise.png"] = noise_figure(by_noise, plateaus)
        numbers |= {
            "plateaus": len(plateaus),
            "largest_z_of_plateaus": max(abs(row["z"]) for row in summaries["plateaus"]),
        }
    if "training" in tables:
        by_model = {
            model: grouped(rows, itemgetter("strategy"))
            for model, rows in grouped(tables["training"], itemgetter("model")).items()
        }
        summaries["strategies"] = [row for model, group in by_model.items() for row in _strategy_rows(model, group)]
        summaries["allocations"] = [row for model, group in by_model.items() for row in _allocation_rows(model, group)]
        figures["training.png"] = training_figure(by_model)
        numbers |= {"dataset": "digits" if tables["training"][0]["data_root"] is None else "mnist"}
    return Findings(numbers, summaries, figures)


def _slope_rows(quantity: str, rows: Rows) -> list[dict[str, Any]]:
    shots = [row["shots"] for row in rows]
    of_shots = [row["theory_variance_of_shots"] for row in rows]
    total = [row["theory_variance_of_shots"] + row["theory_variance_of_directions"] for row in rows]
    floor = any(row["theory_variance_of_directions"] for row in rows)
    laws = {
        "scatter": (fit_power_law(shots, _variances(rows, "scatter"), total), 0.0 if floor else EXPONENTS[quantity]),
        "reported": (fit_power_law(shots, _variances(rows, "reported"), of_shots), EXPONENTS[quantity]),
    }
    return [_slope_row(quantity, error, law, limit) for error, (law, limit) in laws.items()]


def _variances(rows: Rows, name: str) -> list[MeanSquare]:
    return [MeanSquare(row[f"{name}_variance"], row[f"{name}_variance_error"]) for row in rows]


def _slope_row(quantity: str, error: str, law: PowerLaw, limit: float) -> dict[str, Any]:
    return {
        "of": quantity,
        "standard error": error,
        "slope": law.slope,
        "95 % from": law.low,
        "to": law.high,
        "in theory": law.slope_of_theory,
        "z": law.z,
        "with many shots": limit,
        "chi-square about theory": law.chi_square,
        "points": law.freedom,
        "p": float(chi2(law.freedom).sf(law.chi_square)),
    }


def _plateau(rows: Rows) -> Plateau:
    return fit_plateau(
        [row["shots"] for row in rows], [row["mean_squared_error"] for row in rows], repeats=rows[0]["repeats"]
    )


def _plateau_row(name: str, quantity: str, plateau: Plateau, rows: Rows) -> dict[str, Any]:
    place = QUANTITIES.index(quantity)
    exact = rows[0]["exact_bias"]
    closed = closed_form(NOISES[name])
    return {
        "noise": name,
        "quantity": quantity,
        "plateau": plateau.bias,
        "95 % from": plateau.low,
        "to": plateau.high,
        "exact bias": abs(exact),
        "closed form": "" if closed is None else abs(float(closed[place] - ideal()[place])),
        "z": plateau.z(exact),
        "shots whose noise is as large": "" if name == IDEAL else math.ceil(one_shot()[place] / exact**2),
    }


def _strategy_rows(model: str, by_strategy: Mapping[str, Rows]) -> list[dict[str, Any]]:
    last = {strategy: [rows[-1] for rows in grouped(rows, _SEED).values()] for strategy, rows in by_strategy.items()}
    best = max(fmean(row["test_accuracy"] for row in rows) for rows in last.values())
    summary = []
    for strategy, rows in by_strategy.items():
        reached = [
            first
            for each in grouped(rows, _SEED).values()
            if (first := next((row["total_shots"] for row in each if row["test_accuracy"] >= _NEARLY * best), None))
        ]
        accuracies = [row["test_accuracy"] for row in last[strategy]]
        summary.append(
            {"model": model, "shots a circuit": strategy, "trainings": len(accuracies)}
            | _mean_and_error("test accuracy", accuracies)
            | {"shots spent": round(fmean(row["total_shots"] for row in last[strategy]))}
            | {"accuracy to reach": _NEARLY * best, "reached by": len(reached)}
            | {"shots until then (median of these)": round(median(reached)) if reached else ""}
        )
    return summary


def _allocation_rows(model: str, by_strategy: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """Uniform allocation against that by sensitivity, seed by seed."""
    summary = []
    for uniform, sensitive in ALLOCATIONS.items():
        pairs = [
            (rows[-1], grouped(by_strategy[sensitive], _SEED)[seed][-1])
            for seed, rows in grouped(by_strategy[uniform], _SEED).items()
        ]
        summary.append(
            {"model": model, "shots a circuit": uniform, "trainings": len(pairs)}
            | _mean_and_error("shots saved", [1 - b["total_shots"] / a["total_shots"] for a, b in pairs])
            | _mean_and_error("accuracy gained", [b["test_accuracy"] - a["test_accuracy"] for a, b in pairs])
        )
    return summary


def _mean_and_error(name: str, values: Sequence[float]) -> dict[str, Any]:
    """With an empty error where there is a single value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else ""
    return {name: fmean(values), f"{name}, standard error": error}
