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
    figure = Figure(figsize=(9, 3.6), layout="constrained")
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
            label="training (with dropout)",
        )
        axes.plot(
            epochs, [row[f"test_{quantity}"] for row in rows], "s--", color="tab:blue", markersize=4, label="test"
        )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    return figure


def predictions(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, names: Sequence[str], *, title: str
) -> Figure:
    """Test images with what the model makes of them; errors come first and are framed.

    Args:
        images: Shape (N, 1, height, width), in [0, 1].
        labels: Shape (N,).
        probabilities: Shape (N, classes).
        names: The classes' names.
        title: The figure's title.
    """
    wrong = probabilities.argmax(dim=1) != labels
    order = torch.cat([wrong.nonzero().flatten(), (~wrong).nonzero().flatten()])
    spread = (
        order
        if len(order) <= 12
        else torch.cat([order[wrong[order]], order[~wrong[order]][:: max(1, len(order) // 12)]])[:12]
    )
    figure = Figure(figsize=(9, 4), layout="constrained")
    grid = figure.subplots(2, 6, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, spread.tolist(), strict=False):
        axes.imshow(images[row, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        guess = int(probabilities[row].argmax())
        axes.set_title(f"{names[guess]} ({probabilities[row, guess]:.2f})", fontsize=11)
        if wrong[row]:
            axes.set_title(
                f"{names[guess]} ({probabilities[row, guess]:.2f}), is {names[int(labels[row])]}",
                fontsize=11,
                color="tab:red",
            )
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color="tab:red", linewidth=2)
    figure.suptitle(f"{title}: {int(wrong.sum())} of {len(labels)} wrong")
    return figure
