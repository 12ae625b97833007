"""What errors and trainings come to: from how many executions on a method is worth them, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..common.comparison import grouped
from ..common.panels import Table, columns, draw_points, finish, marks, mean_and_error
from ..common.studies import Findings, Tables
from .mitigation_settings import MitigationSettings

_BUDGETS = (100, 1000, 10_000, 100_000)
_KINDS = ("value", "gradient")


def worth_from(plain: tuple[float, float], mitigated: tuple[float, float]) -> float:
    """From how many executions on the mitigated estimate has the smaller mean squared error.

    Args:
        plain: The squared bias, and the variance of one execution, without mitigation.
        mitigated: With it.

    Returns:
        0 where it is better from the first, infinity where it never is.
    """
    bias, variance = plain[0] - mitigated[0], mitigated[1] - plain[1]
    if bias <= 0:
        return 0.0 if bias == 0 and variance < 0 else math.inf
    return max(0.0, variance / bias)


def find(settings: MitigationSettings, tables: Tables) -> Findings:
    """Tables and figures of both parts."""
    kinds = grouped(tables["errors"], itemgetter("device", "circuit", "method"))
    plain = {key[:2]: rows for key, rows in kinds.items() if key[2] == "none"}
    errors = [
        {"device": device, "circuit": circuit, "method": method} | _errors(method, rows, plain[device, circuit])
        for (device, circuit, method), rows in kinds.items()
    ]
    trained = [
        {"device": device, "executions": executions, "method": method}
        | mean_and_error("accuracy", [row["accuracy"] for row in rows])
        | mean_and_error("loss", [row["loss"] for row in rows])
        | mean_and_error("accuracy without noise", [row["accuracy_without_noise"] for row in rows])
        for (device, executions, method), rows in grouped(
            tables["trainings"], itemgetter("device", "executions", "method")
        ).items()
    ]
    numbers = {
        "worth_from_executions": {
            f"{row['device']}, {row['circuit']}, {row['method']}": {
                kind: _finite(row[f"worth from, {kind}"]) for kind in _KINDS
            }
            for row in errors
            if row["method"] != "none"
        },
        "accuracies": {f"{row['device']}, {row['executions']}, {row['method']}": row["accuracy"] for row in trained},
    }
    return Findings(numbers, {"worth": errors, "accuracies": trained}, {"errors.png": _figure(settings, errors)})


def _finite(number: float | str) -> float | None:
    return None if isinstance(number, str) else number


def _errors(method: str, rows: Table, plain: Table) -> dict[str, Any]:
    row: dict[str, Any] = {"circuits": rows[0]["circuits"]}
    for kind in _KINDS:
        bias, variance = _means(rows, kind)
        row[f"bias of the {kind}"] = math.sqrt(bias)
        row[f"error of one execution, {kind}"] = math.sqrt(variance)
        for budget in _BUDGETS:
            row[f"{kind} at {budget:,}"] = math.sqrt(bias + variance / budget)
        least = worth_from(_means(plain, kind), (bias, variance))
        row[f"worth from, {kind}"] = "" if method == "none" else "never" if math.isinf(least) else round(least)
    return row


def _means(rows: Table, kind: str) -> tuple[float, float]:
    """Squared bias, and variance of one execution, in the mean over points; of gradients relative to their squares."""
    bias, variance, size = columns(rows, f"squared_bias_of_{kind}", f"variance_of_{kind}", "squared_gradient")
    scale = size.mean() if kind == "gradient" else 1.0
    return float(bias.mean() / scale), float(variance.mean() / scale)


def _figure(settings: MitigationSettings, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The relative error of gradients against the executions, for each device and circuit."""
    devices, circuits = settings.devices, settings.circuits
    figure = Figure(figsize=(3.1 * len(devices) + 0.6, 3.0 * len(circuits) + 0.6), layout="constrained")
    grid = figure.subplots(len(circuits), len(devices), sharex=True, sharey="row", squeeze=False)
    styles = marks(settings.methods)
    executions = np.geomspace(50, 200_000, 30)
    for row in rows:
        axes = grid[circuits.index(row["circuit"]), devices.index(row["device"])]
        bias, spread = row["bias of the gradient"], row["error of one execution, gradient"]
        mark = styles[row["method"]]
        axes.plot(
            executions, np.sqrt(bias**2 + spread**2 / executions), linestyle=mark.line, color=mark.colour, linewidth=1.2
        )
        budgets = np.array(_BUDGETS)
        errors = np.sqrt(bias**2 + spread**2 / budgets)
        draw_points(axes, mark, budgets, errors, None, label=row["method"], capsize=0)
        axes.set(xscale="log", yscale="log")
    for line, circuit in zip(grid, circuits, strict=True):
        line[0].set_ylabel(f"relative error of the gradient\n{circuit}")
    for axes, device in zip(grid[0], devices, strict=True):
        axes.set_title(device, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("executions of each circuit")
    return finish(figure, columns=3)
