"""What trained heads come to: McNemar's test of circuit and twin, accuracies under shots and noise, and their figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from scipy.stats import binomtest

from ..common.comparison import grouped
from ..common.panels import Table, draw_points, finish, marks, mean_and_error
from ..common.studies import Findings, Tables
from .head_settings import HeadSettings

_COLUMNS = 4
_KINDS = {"differ": "circuit and twin differ most", "wrong": "wrong by most heads", "right": "right by all heads"}


def find(settings: HeadSettings, tables: Tables) -> Findings:
    """Tests, means and figures of those of the study's tables that there are."""
    numbers: dict[str, Any] = {}
    summaries: dict[str, Table] = {}
    figures = {}
    if "twins" in tables:
        summaries["mcnemar"] = mcnemar_rows(tables["twins"])
        numbers |= dict(summaries["mcnemar"][-1]) | _always(tables["twins"])
    if "pictures" in tables:
        figures["pictures.png"] = _pictures_figure(tables["pictures"])
    if "devices" in tables:
        summaries["accuracies"] = accuracy_rows(tables["devices"])
        figures["devices.png"] = _devices_figure(summaries["accuracies"])
    if "price" in tables:
        summaries["prices"] = [{k: v for k, v in row.items() if k not in ("part", "run")} for row in tables["price"]]
    return Findings(numbers, summaries, figures)


def mcnemar_rows(decisions: Table) -> list[dict[str, Any]]:
    """McNemar's exact test for the heads of each seed, and for the majority of the seeds' decisions.

    Where there is no difference, an image that only one of the two has right is as likely to be the circuit's as the twin's:
    p is the two-sided binomial probability (McNemar, Psychometrika 12, 153, 1947).
    """
    rows = []
    votes: dict[int, np.ndarray] = {}
    by_seed = grouped(decisions, itemgetter("seed"))
    for seed, group in by_seed.items():
        right = np.array([[row[head] == row["label"] for head in ("circuit", "twin")] for row in group])
        rows.append({"heads": f"seed {seed}", **_mcnemar(right[:, 0], right[:, 1])})
        votes |= {
            row["image"]: votes.get(row["image"], np.zeros(2)) + both for row, both in zip(group, right, strict=True)
        }
    shares = np.array(list(votes.values())) / len(by_seed)
    decided = (shares != 0.5).all(axis=1)  # even numbers of seeds can tie
    return [*rows, {"heads": "majority of the seeds", **_mcnemar(*(shares[decided] > 0.5).T)}]


def _mcnemar(circuit: np.ndarray, twin: np.ndarray) -> dict[str, Any]:
    only_circuit, only_twin = int((circuit & ~twin).sum()), int((twin & ~circuit).sum())
    differing = only_circuit + only_twin
    return {
        "images": len(circuit),
        "both right": int((circuit & twin).sum()),
        "only the circuit right": only_circuit,
        "only the twin right": only_twin,
        "p": float(binomtest(only_circuit, differing).pvalue) if differing else 1.0,
    }


def _always(decisions: Table) -> dict[str, int]:
    """How many images one of them has right with every seed and the other wrong with every seed."""
    counts = {"always_right_by_the_circuit_alone": 0, "always_right_by_the_twin_alone": 0}
    for rows in grouped(decisions, itemgetter("image")).values():
        circuit, twin = ([row[head] == row["label"] for row in rows] for head in ("circuit", "twin"))
        counts["always_right_by_the_circuit_alone"] += all(circuit) and not any(twin)
        counts["always_right_by_the_twin_alone"] += all(twin) and not any(circuit)
    return counts


def accuracy_rows(measured: Table) -> list[dict[str, Any]]:
    """For each backend and number of shots: the mean over seeds and its standard error, and the scatter of the shots."""
    rows = []
    for (backend, shots), group in grouped(measured, itemgetter("backend", "shots")).items():
        by_seed = [[row["accuracy"] for row in of_seed] for of_seed in grouped(group, itemgetter("seed")).values()]
        scatter = np.sqrt(np.mean([np.var(values, ddof=1) for values in by_seed])) if len(by_seed[0]) > 1 else 0.0
        rows.append(
            {
                "backend": backend,
                "shots": shots or "exact",
                "seeds": len(by_seed),
                **mean_and_error("accuracy", [float(np.mean(values)) for values in by_seed]),
                "scatter of the shots": float(scatter),
                "decided as exactly": float(np.mean([row["as_exact"] for row in group])),
            }
        )
    return rows


def _devices_figure(rows: Table) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    groups = grouped(rows, itemgetter("backend"))
    for place, (backend, mark) in enumerate(marks(groups).items()):
        exact = [row for row in groups[backend] if row["shots"] == "exact"]
        shots = [row for row in groups[backend] if row["shots"] != "exact"]
        x = [row["shots"] * 1.06 ** (place - (len(groups) - 1) / 2) for row in shots]  # side by side
        errors = [row["accuracy, standard error"] or 0.0 for row in shots]
        draw_points(axes, mark, x, [row["accuracy"] for row in shots], errors, joined=True, label=backend)
        for row in exact:
            axes.axhline(row["accuracy"], color=mark.colour, linestyle=mark.line, linewidth=0.8, alpha=0.6)
    axes.margins(y=1)  # else differences far below that of one image fill the panel
    axes.set(xscale="log", xlabel="shots a circuit", ylabel="test accuracy")
    return finish(figure, title="level lines: without shots; bars: standard error over the seeds")


def _pictures_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A line of pictures for each kind; in how many seeds circuit and twin have them right."""
    kinds = grouped(rows, itemgetter("kind"))
    figure = Figure(figsize=(1.6 * _COLUMNS, 2.1 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), _COLUMNS, squeeze=False)
    for line, (kind, group) in zip(panels, kinds.items(), strict=True):
        line[0].text(-0.12, 0.5, _KINDS[kind], rotation=90, ha="center", va="center", transform=line[0].transAxes)
        for axes in line:
            axes.set_axis_off()
        for axes, row in zip(line, group, strict=False):
            axes.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(row["jpeg"])))))
            seeds = row["seeds"]
            title = f"{row['label']}\ncircuit {row['circuit_right']}/{seeds}, twin {row['twin_right']}/{seeds}"
            wrong = row["circuit_right"] + row["twin_right"] < seeds
            axes.set_title(title, fontsize=8, color="tab:red" if wrong else "black")
            if wrong:
                place = {"transform": axes.transAxes, "clip_on": False}
                axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, color="tab:red", linewidth=2, **place))
    figure.suptitle("in how many seeds circuit and twin have the image right", fontsize=10)
    return figure
