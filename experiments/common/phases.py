"""A figure of a training in several phases; readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_LOWEST = 1e-7  # smaller gradients are rounding


def phase_curves(runs: Sequence[Sequence[Mapping[str, Any]]], *, title: str) -> Figure:
    """Loss and gradient magnitude against the epoch, with the phases' names and the boundaries between them.

    Args:
        runs: The metrics of each run, all of the same phases; of several runs their median too. Where the gradient is
            zero in the first epoch of a phase, the figure says so, and in how many runs.
        title: The figure's title.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in runs[0]]
    for axes, column, label, style, colour in (
        (above, "train_loss", "training (mean over the epoch)", "o-", "0.4"),
        (above, "test_loss", "test", "s--", "tab:blue"),
        (below, "gradient_rms", "gradient", "o-", "k"),
    ):
        values = _column(runs, column)
        if len(runs) > 1:
            axes.plot(epochs, _drawn(values, column).T, style[1:], color=colour, linewidth=0.6, alpha=0.35)
        medians = _drawn(np.median(values, axis=0), column)
        axes.plot(epochs, medians, style, color=colour, markersize=4, linewidth=1.8, label=label)
    above.set_ylabel("loss")
    above.legend(loc="upper right")  # "best" searches among all lines
    below.set(xlabel="epoch", ylabel="root mean square of\nthe trained weights' gradient")
    zero = _column(runs, "gradient_rms") <= _LOWEST
    if not zero.all():
        below.set_yscale("log")
    below.set_xlim(left=epochs[0] - 0.5)
    below.xaxis.get_major_locator().set_params(integer=True)
    for name, rows in groupby(runs[0], key=lambda row: row["stage"]):
        span = [row["epoch"] for row in rows]
        for axes in (above, below):
            if span[0] > epochs[0]:
                axes.axvline(span[0] - 0.5, color="k", linewidth=0.8, linestyle=":")
        middle = (span[0] + span[-1]) / 2
        _annotate(above, str(name).replace(" part", "\npart"), (middle, 1), va="bottom")
        if still := int(zero[:, span[0] - epochs[0]].sum()):
            _annotate(below, "zero" if len(runs) == 1 else f"zero in\n{still} of {len(runs)}", (middle, 0))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def _annotate(axes: Axes, text: str, place: tuple[float, float], **options: Any) -> None:
    """Writes at an epoch and a height, which is a fraction of the axes'."""
    axes.annotate(
        *(text, place, (0, 3)),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        **options,
    )


def _column(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> np.ndarray:
    """Shape (runs, epochs)."""
    return np.array([[row[name] for row in run] for run in runs], dtype=float)


def _drawn(values: np.ndarray, name: str) -> np.ndarray:
    """Without gradients that are zero, which have no place on a logarithmic axis; their number is written there."""
    return np.where(values > _LOWEST, values, np.nan) if name == "gradient_rms" else values
