"""Figures that the experiments share; readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from math import inf
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import softmax

from qiskit_torch_bridge import QuantumLayer

from .classifiers import decisions
from .panels import finish
from .runs import RunFolder

Rows = Sequence[Mapping[str, Any]]

_COLUMNS = 6  # of predictions.png


def circuit_diagram(layer: QuantumLayer) -> Figure:
    """The layer's circuit."""
    from matplotlib import pyplot

    figure: Figure = layer.draw("mpl")
    pyplot.close(figure)  # Qiskit draws through pyplot, which keeps every figure until it is closed.
    return figure


def learning_curves(rows: Rows, *, title: str, loss_label: str = "loss") -> Figure:
    """Loss and accuracy against the epoch, for training and test examples; dotted lines between stages."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    labels = {"loss": loss_label, "accuracy": "accuracy"}
    for axes, (quantity, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for part in ("train", "test"):
            _draw_column(axes, [rows], f"{part}_{quantity}")
        axes.set(xlabel="epoch", ylabel=label)
    return _with_epochs(figure, rows, title)


def phase_curves(runs: Sequence[Rows], *, title: str) -> Figure:
    """Loss and gradient magnitude against the epoch, with the phases' names and the boundaries between them.

    Args:
        runs: The metrics of each run, all of the same phases; of several runs their median too. Where the gradient is
            zero in the first epoch of a phase, the figure says so, and in how many runs.
        title: The figure's title.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_column(above, runs, "train_loss")
    _draw_column(above, runs, "test_loss")
    # Gradients that are zero have no place on a logarithmic axis; their number is written there.
    zero = _draw_column(below, runs, "gradient_rms", lowest=1e-7) <= 1e-7  # smaller ones are rounding
    above.set_ylabel("loss")
    below.set(xlabel="epoch", ylabel="root mean square of\nthe trained weights' gradient")
    below.set_yscale("linear" if zero.all() else "log")
    for name, phase in groupby(runs[0], key=itemgetter("stage")):
        epochs = [row["epoch"] for row in phase]
        options: dict[str, Any] = {"ha": "center", "fontsize": 8, "textcoords": "offset points"}
        options |= {"xytext": (0, 3), "xycoords": ("data", "axes fraction")}
        middle = (epochs[0] + epochs[-1]) / 2
        above.annotate(str(name).replace(" part", "\npart"), (middle, 1), va="bottom", **options)
        if still := int(zero[:, epochs[0] - runs[0][0]["epoch"]].sum()):
            below.annotate("zero" if len(runs) == 1 else f"zero in\n{still} of {len(runs)}", (middle, 0), **options)
    return _with_epochs(figure, runs[0], title)


_COLUMNS_OF_CURVES = {
    "train": ("training (mean over the epoch)", "o-", "0.5"),
    "test": ("test", "s--", "tab:blue"),
    "gradient": ("gradient", "D-", "k"),
}
"""What is said of a column of the metrics, and how it is drawn, by the beginning of its name."""


def _draw_column(axes: Axes, runs: Sequence[Rows], name: str, *, lowest: float = -inf) -> np.ndarray:
    """Draws what of a column is above the lowest, and the median of several runs; returns it, shape (runs, epochs)."""
    label, style, colour = _COLUMNS_OF_CURVES[name.split("_")[0]]
    epochs = [row["epoch"] for row in runs[0]]
    values = np.array([[row[name] for row in run] for run in runs], dtype=float)
    thin, thick = (np.where(each > lowest, each, np.nan) for each in (values, np.median(values, axis=0)))
    if len(runs) > 1:
        axes.plot(epochs, thin.T, style[1:], color=colour, linewidth=0.6, alpha=0.35)
    axes.plot(epochs, thick, style, color=colour, markersize=4, label=label)
    return values


def _with_epochs(figure: Figure, rows: Rows, title: str) -> Figure:
    """Finishes a figure that has epochs on its horizontal axes, with dotted lines between stages."""
    for axes in figure.axes:
        for row, after in pairwise(rows):
            if row["stage"] != after["stage"]:
                axes.axvline(row["epoch"] + 0.5, color="k", linewidth=0.8, linestyle=":")
        axes.locator_params("x", integer=True)
        axes.set_xlim(left=0.5)
    figure.suptitle(title)
    return finish(figure, columns=3)


def save_predictions(
    folder: RunFolder, images: Callable[[torch.Tensor], torch.Tensor], labels: torch.Tensor, scores: torch.Tensor
) -> None:
    """Writes what :func:`draw_predictions` draws: ``predictions.csv``, all rows, and ``shown.npz``, the images shown.

    Args:
        folder: The run's.
        images: From row numbers (n,) to these test images, shape (n, channels, height, width), in [0, 1].
        labels: Shape (N,): the classes of all test images.
        scores: Shape (N, classes): the model's scores; or (N, 1), logits of class 1.
    """
    guesses = decisions(scores)
    names = ["row", "label", "predicted", *(f"score_{number}" for number in range(scores.shape[1]))]
    columns = [range(len(labels)), labels.tolist(), guesses.tolist(), *scores.T.tolist()]
    rows = zip(*columns, strict=True)
    folder.write_rows("predictions.csv", [dict(zip(names, row, strict=True)) for row in rows])
    wrong = guesses != labels
    shown = [row for label in labels.unique() for row in _shown(labels == label, wrong)]
    pixels = (images(torch.tensor(shown)).clamp(0, 1) * 255).round().to(torch.uint8)
    folder.write_arrays("shown.npz", rows=np.array(shown), images=pixels.numpy())


def draw_predictions(
    folder: RunFolder, names: Sequence[str], confidence: Callable[[np.ndarray], np.ndarray], *, title: str
) -> None:
    """Draws what :func:`save_predictions` wrote.

    ``predictions.png`` shows test images with what the model makes of them, errors first and framed; ``confusion.png``
    counts them all.

    Args:
        folder: The run's.
        names: The classes' names.
        confidence: From scores (N, classes) to the probability of the predicted class, (N,).
        title: Goes before what the figures say of themselves.
    """
    rows, shown = folder.read_rows("predictions.csv"), folder.read_arrays("shown.npz")
    labels, guesses = (np.array([row[key] for row in rows]) for key in ("label", "predicted"))
    scores = np.array([[value for key, value in row.items() if key.startswith("score_")] for row in rows])
    sure = confidence(scores)
    height = shown["images"].shape[2] / shown["images"].shape[3]  # all lengths are in widths of an image
    column_width, line_height = 1.05, height + 0.22
    width, depth = column_width * _COLUMNS, line_height * len(names)
    figure = Figure(figsize=(1.6 * width, 1.6 * depth))
    # Axes of their own for each image would take most of a small run's time.
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)
    for label, name in enumerate(names):
        bottom = (label + 1) * line_height
        axes.text(-0.04, bottom - height / 2, f"images of {name}", rotation=90, ha="right", va="center")
        of_label = labels[shown["rows"]] == label
        for column, (row, image) in enumerate(zip(shown["rows"][of_label], shown["images"][of_label], strict=True)):
            left, top, wrong = column * column_width, bottom - height, guesses[row] != label
            colour, colours = "tab:red" if wrong else "black", "gray_r" if len(image) == 1 else None
            place = (left, left + 1, bottom, top)
            axes.imshow(image.transpose(1, 2, 0).squeeze(), colours, vmin=0, vmax=255, extent=place)
            axes.text(left + 0.5, top - 0.04, f"{names[guesses[row]]} ({sure[row]:.2f})", ha="center", color=colour)
            if wrong:
                axes.add_patch(Rectangle((left, top), 1, height, fill=False, color=colour, linewidth=2, clip_on=False))
    axes.set(xlim=(0, width), ylim=(depth, 0), xticks=[], yticks=[])  # each image has set limits of its own
    errors = int((guesses != labels).sum())
    axes.set_title(f"{title}: predicted class (its probability); {errors} of {len(labels)} wrong", pad=0)
    folder.write_figure("predictions.png", figure)
    folder.write_figure("confusion.png", _confusion_matrix(labels, guesses, names, title))


def _confusion_matrix(labels: np.ndarray, guesses: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """How many examples of each class (rows) were taken for each class (columns)."""
    from sklearn.metrics import ConfusionMatrixDisplay  # half a second

    figure = Figure(figsize=(1.6 + 0.9 * len(names), 1.4 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    options = {"display_labels": names, "cmap": "Greys", "colorbar": False, "im_kw": {"vmin": 0}, "ax": axes}
    ConfusionMatrixDisplay.from_predictions(labels, guesses, labels=range(len(names)), **options)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted class", ylabel="class", title=title)
    return figure


def softmax_of_largest(scores: np.ndarray) -> np.ndarray:
    """The softmax probability of the largest score of each row; from shape (N, classes) to (N,)."""
    return np.asarray(softmax(scores, axis=1).max(axis=1))


def _shown(of_class: torch.Tensor, wrong: torch.Tensor) -> list[int]:
    """Some rows of a class, evenly spread: wrong ones first, then right ones, half of each where there are enough."""
    errors, right = (of_class & wrong).nonzero().flatten(), (of_class & ~wrong).nonzero().flatten()
    count = min(len(errors), max(_COLUMNS // 2, _COLUMNS - len(right)))
    spread = ((errors, count), (right, min(len(right), _COLUMNS - count)))
    return [row for rows, n in spread for row in rows[torch.linspace(0, len(rows) - 1, n).long()].tolist()]
