"""What a training costs on a backend, in words, before anything runs."""

from __future__ import annotations

import torch

from qiskit_torch_bridge import QuantumLayer, Quote

from .options import Settings


def cost_of_training(layer: QuantumLayer, settings: Settings, *, train: int, test: int) -> str:
    """The cost of a step, of an epoch with its test, and of all epochs, where something before the layer is trained.

    Args:
        layer: The quantum layer, with the weights frozen that will be.
        settings: The run's; ``epochs`` and ``batch_size`` are read here.
        train: Training examples.
        test: Test examples.
    """
    epochs, batch_size = settings["epochs"], settings["batch_size"]
    epoch = quote_of_epoch(layer, train=train, test=test, batch_size=batch_size)
    return (
        f"A step of {batch_size} example(s): {words(layer.quote(batch_size))}\n"
        f"An epoch with its test: {words(epoch)}\n"
        f"The run of {epochs} epochs: {words(epochs * epoch)}"
    )


def words(quote: Quote) -> str:
    """A quote as text."""
    hardware = f" {quote.jobs:,} jobs, {quote.qpu_seconds:,.0f} s of QPU time." if quote.jobs else ""
    return f"{quote.circuits:,} circuits, {quote.shots:,} shots, {quote.calls:,} backend calls.{hardware}"


def quote_of_epoch(
    layer: QuantumLayer, *, train: int, test: int, batch_size: int, inputs_require_grad: bool = True
) -> Quote:
    """An epoch with its test.

    Args:
        layer: The quantum layer, with the weights frozen that will be.
        train: Training examples.
        test: Test examples.
        batch_size: Training examples a step.
        inputs_require_grad: Whether there is something to train before the layer.
    """
    full, rest = divmod(train, batch_size)
    with torch.no_grad():
        testing = layer.quote(test)
    step = layer.quote(batch_size, inputs_require_grad=inputs_require_grad)
    return full * step + layer.quote(rest, inputs_require_grad=inputs_require_grad) + testing
