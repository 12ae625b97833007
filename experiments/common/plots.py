"""Figures that the experiments share; readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.special import softmax

from qiskit_torch_bridge import QuantumLayer

from .classifiers import decisions
from .runs import RunFolder

_COLUMNS = 6  # of predictions.png
_LOWEST = 1e-7  # smaller gradients are rounding


def circuit_diagram(layer: QuantumLayer) -> Figure:
    """The layer's circuit."""
    from matplotlib import pyplot

    figure: Figure = layer.draw("mpl")
    pyplot.close(figure)  # Qiskit draws through pyplot, which keeps every figure until it is closed.
    return figure


def learning_curves(rows: Sequence[Mapping[str, Any]], *, title: str, loss_label: str = "loss") -> Figure:
    """Loss and accuracy against the epoch, for training and test examples; dotted lines between stages."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    boundaries = [row["epoch"] + 0.5 for row, after in pairwise(rows) if row["stage"] != after["stage"]]
    for axes, quantity, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (loss_label, "accuracy"), strict=True
    ):
        for part, style, colour, name in (
            ("train", "o-", "0.6", "training (mean over the epoch)"),
            ("test", "s--", "tab:blue", "test"),
        ):
            values = [row[f"{part}_{quantity}"] for row in rows]
            axes.plot(epochs, values, style, color=colour, markersize=4, label=name)
        for boundary in boundaries:
            axes.axvline(boundary, color="k", linewidth=0.8, linestyle=":")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(left=0.5)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


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


def confusion_matrix(labels: np.ndarray, guesses: np.ndarray, names: Sequence[str], *, title: str) -> Figure:
    """How many examples of each class (rows) were taken for each class (columns).

    Args:
        labels: Shape (N,), the classes.
        guesses: Shape (N,), what they were taken for.
        names: The classes' names.
        title: The figure's title.
    """
    from sklearn import metrics  # half a second

    counts = metrics.confusion_matrix(labels, guesses, labels=range(len(names)))
    figure = Figure(figsize=(1.6 + 0.9 * len(names), 1.4 + 0.8 * len(names)), layout="constrained")
    axes = figure.subplots()
    metrics.ConfusionMatrixDisplay(counts, display_labels=names).plot(
        cmap="Greys", colorbar=False, im_kw={"vmin": 0}, ax=axes
    )
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted class", ylabel="class", title=title)
    return figure


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
    folder.write_rows(
        "predictions.csv",
        [
            {"row": row, "label": label, "predicted": guess}
            | {f"score_{number}": value for number, value in enumerate(values)}
            for row, (label, guess, values) in enumerate(
                zip(labels.tolist(), guesses.tolist(), scores.tolist(), strict=True)
            )
        ],
    )
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
    axes.set(xticks=[], yticks=[])
    for label, name in enumerate(names):
        bottom = (label + 1) * line_height
        axes.text(
            -0.04, bottom - height / 2, f"images of {name}", rotation=90, ha="right", va="center", fontsize="medium"
        )
        of_label = [place for place, row in enumerate(shown["rows"]) if labels[row] == label]
        for column, place in enumerate(of_label):
            row = shown["rows"][place]
            text = f"{names[guesses[row]]} ({sure[row]:.2f})"
            corner = (column * column_width, bottom)
            _draw_image(axes, shown["images"][place], corner, text, wrong=bool(guesses[row] != label))
    axes.set(xlim=(0, width), ylim=(depth, 0))  # each image has set them to its own
    errors = int((guesses != labels).sum())
    axes.set_title(f"{title}: predicted class (its probability); {errors} of {len(labels)} wrong", pad=0)
    folder.write_figure("predictions.png", figure)
    folder.write_figure("confusion.png", confusion_matrix(labels, guesses, names, title=title))


def _draw_image(axes: Axes, image: np.ndarray, corner: tuple[float, float], text: str, *, wrong: bool) -> None:
    """An image of width 1, from its lower left corner, with a text above it; framed if it is wrong."""
    left, bottom = corner
    height = image.shape[1] / image.shape[2]
    top = bottom - height
    axes.imshow(
        image.transpose(1, 2, 0).squeeze(),
        cmap="gray_r" if len(image) == 1 else None,
        vmin=0,
        vmax=255,
        extent=(left, left + 1, bottom, top),
    )
    colour = "tab:red" if wrong else "black"
    axes.text(left + 0.5, top - 0.04, text, ha="center", color=colour, fontsize="medium")
    if wrong:
        axes.add_patch(Rectangle((left, top), 1, height, fill=False, color=colour, linewidth=2, clip_on=False))


def softmax_of_largest(scores: np.ndarray) -> np.ndarray:
    """The softmax probability of the largest score of each row; from shape (N, classes) to (N,)."""
    probabilities: np.ndarray = softmax(scores, axis=1).max(axis=1)
    return probabilities


def _shown(of_class: torch.Tensor, wrong: torch.Tensor) -> list[int]:
    """Some rows of a class: wrong ones first, then right ones, half of each where there are enough."""
    errors, right = (of_class & wrong).nonzero().flatten(), (of_class & ~wrong).nonzero().flatten()
    errors = _spread(errors, min(len(errors), max(_COLUMNS // 2, _COLUMNS - len(right))))
    return [*errors.tolist(), *_spread(right, min(len(right), _COLUMNS - len(errors))).tolist()]


def _spread(rows: torch.Tensor, count: int) -> torch.Tensor:
    """So many of the rows, evenly spread over them."""
    return rows[torch.linspace(0, len(rows) - 1, count).long()] if count else rows[:0]
