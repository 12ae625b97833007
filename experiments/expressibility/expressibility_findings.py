"""What the measured circuits come to beside what is published: tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.sparse.csgraph import connected_components

from ..common.comparison import grouped
from ..common.panels import Table, columns, draw_points, finish, marks
from ..common.studies import Findings, Tables
from .expressibility_settings import ExpressibilitySettings
from .published_values import DATA, EFFECTIVE_DIMENSIONS, EXPRESSIBILITIES
from .sim_circuits import EXACT_ENTANGLEMENT

_QUBITS = 4
_HAAR_ENTANGLEMENT = (2**_QUBITS - 2) / (2**_QUBITS + 1)
_LEAST_SHOWN = 2e-4  # of a logarithmic axis


def find(settings: ExpressibilitySettings, tables: Tables) -> Findings:
    """Compares and draws the study's tables."""
    sim = [_circuit_row(row) for row in tables["sim"]]
    library = [_circuit_row(row) for row in tables["library"]]
    capacity = [_capacity_row(row, settings) for row in tables["capacity"]]
    scores = [row["z of the published"] for row in sim if row["z of the published"] != ""]
    exact = [row["z of the exact"] for row in sim if row["z of the exact"] != ""]
    apart = grouped([row for row in capacity if row["difference"] != ""], itemgetter("model"))
    numbers = {
        "published_expressibilities": len(scores),
        "chi_square_of_them": float(np.square(scores).sum()),
        "largest_z_of_exact_entanglement": max(map(abs, exact), default=0.0),
        "largest_difference_of_dimensions": {
            model: max(abs(row["difference"]) for row in rows) for model, rows in apart.items()
        },
    }
    figures = {"circuits.png": _circuits_figure(sim, library), "dimensions.png": _dimensions_figure(capacity)}
    return Findings(numbers, {"circuits": [*sim, *library], "dimensions": capacity}, figures)


def _circuit_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table: expressibility and entangling capability beside what is published or exact."""
    number, layers = row["circuit"], row["layers"]
    is_published = row["part"] == "sim" and layers in EXPRESSIBILITIES
    published: Any = EXPRESSIBILITIES[layers][number - 1] if is_published else ""
    exact: Any = float(EXACT_ENTANGLEMENT[number]) if layers == 1 and number in EXACT_ENTANGLEMENT else ""
    error = row["its_error"]
    return {
        "circuit": number,
        "layers": layers,
        "weights": row["weights"],
        "expressibility": row["expressibility"],
        "its standard error": row["its_standard_error"],
        "with the bias of 5000": row["of_published_samples"],
        "scatter of 5000": row["scatter_of_published_samples"],
        "published": published,
        "z of the published": "" if published == "" else _score(published, row),
        "entangling capability": row["entangling_capability"],
        "its error": error,
        "exact": exact,
        "z of the exact": (row["entangling_capability"] - exact) / error if exact != "" and error > 1e-9 else "",
    }


def _score(published: float, row: Mapping[str, Any]) -> float:
    error = math.hypot(row["scatter_of_published_samples"], row["its_standard_error"])
    return float((published - row["of_published_samples"]) / error)


def _capacity_row(row: Mapping[str, Any], settings: ExpressibilitySettings) -> dict[str, Any]:
    """A line of the table; what is published is beside the published draws alone."""
    as_published = (settings.seed, settings.weight_samples, settings.input_samples) == (0, 100, 100)
    model, size = row["model"], row["data"]
    is_published = as_published and row["weights"] == "0 to 1" and model in EFFECTIVE_DIMENSIONS and size in DATA
    published: Any = EFFECTIVE_DIMENSIONS[model][DATA.index(size)] if is_published else ""
    return {
        "model": model,
        "weights": row["weights"],
        "data": size,
        "normalised effective dimension": row["dimension"],
        "its standard error": row["its_standard_error"],
        "published": published,
        "difference": row["dimension"] - published if is_published else "",
    }


def _circuits_figure(sim: Table, library: Table) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    layers = sorted({row["layers"] for row in sim})
    panels: Sequence[Axes] = figure.subplots(1, len(layers), sharex=True, sharey=True, squeeze=False)[0].tolist()
    labels = {"sim": "Sim et al., by their numbers", **{row["circuit"]: row["circuit"] for row in library}}
    every = marks(labels)
    for axes, repeated in zip(panels, layers, strict=True):
        for name, label in labels.items():
            rows = sim if name == "sim" else [row for row in library if row["circuit"] == name]
            shown = [row for row in rows if row["layers"] == repeated]
            x, y, errors = columns(shown, "entangling capability", "expressibility", "its standard error")
            errors = np.where(y < _LEAST_SHOWN, 0.0, errors)
            y = np.maximum(y, _LEAST_SHOWN)
            draw_points(axes, every[name], x, y, errors, label=label)
            if name == "sim":
                _name_points(axes, [row["circuit"] for row in shown], x, y)
        axes.axvline(_HAAR_ENTANGLEMENT, color="k", linewidth=0.8, linestyle=":", label="Haar-random states")
        axes.set(yscale="log", xlabel="entangling capability", title=f"{repeated} layer{'s' * (repeated > 1)}")
    panels[0].set_ylabel("expressibility (nats; below: more expressive)")
    return finish(figure, columns=3)


def _name_points(axes: Axes, numbers: Sequence[int], x: np.ndarray, y: np.ndarray) -> None:
    """Writes numbers beside points, those of points that lie on each other in one place."""
    near = (np.abs(x[:, None] - x) < 0.05) & (np.abs(np.log(y[:, None] / y)) < 0.65)
    number_of_groups, groups = connected_components(near)
    for group in range(number_of_groups):
        together = np.flatnonzero(groups == group)
        at = (x[together].max(), y[together].max())
        axes.annotate(
            ", ".join(str(numbers[k]) for k in together.tolist()), at, (4, 3), textcoords="offset points", fontsize=8
        )


def _dimensions_figure(rows: Table) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    groups = grouped(rows, lambda row: (row["model"], row["weights"]))
    every = marks(dict.fromkeys(row["model"] for row in rows))
    ranges = list(dict.fromkeys(weights for _, weights in groups))
    panels: Sequence[Axes] = figure.subplots(1, len(ranges), sharey=True, squeeze=False)[0].tolist()
    for (model, weights), group in groups.items():
        axes = panels[ranges.index(weights)]
        numbers = columns(group, "data", "normalised effective dimension", "its standard error")
        draw_points(axes, every[model], *numbers, joined=True, label=model)
        if published := [row for row in group if row["published"] != ""]:
            axes.plot(*columns(published, "data", "published"), "k+", markersize=9, label="published")
    for axes, weights in zip(panels, ranges, strict=True):
        axes.set(xscale="log", xlabel="data", title=f"weights from {weights}")
    panels[0].set_ylabel("effective dimension / 40 weights")
    return finish(figure, columns=3)
