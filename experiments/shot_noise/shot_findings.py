"""What the measured errors and trainings come to: fits and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import chi2

from ..common.comparison import grouped
from ..common.lines import MeanSquare
from ..common.panels import mean_and_error
from ..common.studies import Findings, Tables
from .figures import noise_figure, scaling_figure, training_figure
from .noise import IDEAL, NOISES, QUANTITIES, closed_form, ideal, one_shot
from .power_laws import Plateau, fit_plateau, fit_power_law
from .scaling import EXPONENTS
from .shot_settings import ShotNoiseSettings
from .strategies import ALLOCATIONS

Rows = Sequence[Mapping[str, Any]]

_SEED = itemgetter("seed")  # each training's rows are in the order of its steps
_NEARLY = 0.95
"""Of the best accuracy: what counts as having learnt."""


def find(settings: ShotNoiseSettings, tables: Tables) -> Findings:
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
        biases = [
            _plateau_row(name, quantity, plateaus[name, quantity], rows[0]["exact_bias"])
            for (name, quantity), rows in by_noise.items()
        ]
        summaries["plateaus"] = biases
        figures["noise.png"] = noise_figure(by_noise, plateaus)
        numbers |= {"plateaus": len(plateaus), "largest_z_of_plateaus": max(abs(row["z"]) for row in biases)}
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


def _slope_rows(quantity: str, rows: Rows) -> Iterator[dict[str, Any]]:
    of_shots, of_directions = (
        np.array([row[f"theory_variance_of_{cause}"] for row in rows]) for cause in ("shots", "directions")
    )
    limit = EXPONENTS[quantity]
    for error, theory, at_last in (
        ("scatter", of_shots + of_directions, 0.0 if of_directions.any() else limit),
        ("reported", of_shots, limit),
    ):
        law = fit_power_law([row["shots"] for row in rows], _variances(rows, error), theory.tolist())
        yield {
            "of": quantity,
            "standard error": error,
            "slope": law.slope,
            "95 % from": law.low,
            "to": law.high,
            "in theory": law.slope_of_theory,
            "z": law.z,
            "with many shots": at_last,
            "chi-square about theory": law.chi_square,
            "points": law.freedom,
            "p": float(chi2(law.freedom).sf(law.chi_square)),
        }


def _variances(rows: Rows, name: str) -> list[MeanSquare]:
    return [MeanSquare(row[f"{name}_variance"], row[f"{name}_variance_error"]) for row in rows]


def _plateau(rows: Rows) -> Plateau:
    return fit_plateau(
        [row["shots"] for row in rows], [row["mean_squared_error"] for row in rows], repeats=rows[0]["repeats"]
    )


def _plateau_row(name: str, quantity: str, plateau: Plateau, exact: float) -> dict[str, Any]:
    place = QUANTITIES.index(quantity)
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


def _strategy_rows(model: str, by_strategy: Mapping[str, Rows]) -> Iterator[dict[str, Any]]:
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


def _allocation_rows(model: str, by_strategy: Mapping[str, Rows]) -> Iterator[dict[str, Any]]:
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
