"""Figures that the experiments share; readable in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from qiskit_torch_bridge import QuantumLayer

__all__ = ["circuit_diagram", "learning_curves", "predictions"]


def circuit_diagram(layer: QuantumLayer) -> Figure:
    """The layer's circuit."""
    from matplotlib import pyplot

    figure: Figure = layer.draw("mpl")
    pyplot.close(figure)  # Qiskit draws through pyplot, which keeps every figure until it is closed.
    return figure


def learning_curves(rows: Sequence[Mapping[str, Any]], *, title: str, loss_label: str) -> Figure:
    """Loss and accuracy against the epoch, for training and test images."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, quantity, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (loss_label, "accuracy"), strict=True
    ):
        axes.plot(
            epochs,
            [row[f"train_{quantity}"] for row in rows],
            "o-",
            color="0.6",
            markersize=4,
            label="training (mean over the epoch, with dropout)",
        )
        axes.plot(
            epochs, [row[f"test_{quantity}"] for row in rows], "s--", color="tab:blue", markersize=4, label="test"
        )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(left=0.5)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


def predictions(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, names: Sequence[str], *, title: str
) -> Figure:
    """Test images with what the model makes of them, a line a class; errors come first and are framed.

    Args:
        images: Shape (N, 1, height, width), in [0, 1].
        labels: Shape (N,).
        probabilities: Shape (N, classes).
        names: The classes' names.
        title: The figure's title.
    """
    wrong = probabilities.argmax(dim=1) != labels
    columns = 6
    figure = Figure(figsize=(1.5 * columns, 2.0 * len(names)), layout="constrained")
    for label, line in enumerate(figure.subplots(len(names), columns, squeeze=False)):
        for axes, row in zip(line, _shown((labels == label), wrong, columns), strict=False):
            axes.imshow(images[row, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            guess = int(probabilities[row].argmax())
            axes.set_title(
                f"{names[guess]} ({probabilities[row, guess]:.2f})", color="tab:red" if wrong[row] else "black"
            )
            for spine in axes.spines.values():
                spine.set(color="tab:red", linewidth=2, visible=bool(wrong[row]))
        for axes in line:
            axes.set(xticks=[], yticks=[])
            if not axes.images:
                axes.axis("off")
        line[0].set_ylabel(f"images of {names[label]}")
    figure.suptitle(f"{title}: predicted digit (its probability); {int(wrong.sum())} of {len(labels)} wrong")
    return figure


def _shown(mine: torch.Tensor, wrong: torch.Tensor, count: int) -> list[int]:
    """Some rows of a class: the wrong ones first, then right ones spread over the rest."""
    errors = (mine & wrong).nonzero().flatten()[:count]
    right = (mine & ~wrong).nonzero().flatten()
    wanted = min(count - len(errors), len(right))
    spread = right[torch.linspace(0, len(right) - 1, wanted).long()] if wanted else right[:0]
    return [*errors.tolist(), *spread.tolist()]
