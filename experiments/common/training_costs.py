"""What a training costs on a backend, in words, before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer, Quote

from .settings import TrainingSettings


def cost_of_training(model: nn.Module, settings: TrainingSettings, *, train: int, test: int) -> str:
    """The cost of a step, of an epoch with its test, and of all epochs, where something before the layers is trained.

    Args:
        model: With quantum layers or without, and with the weights frozen that will be.
        settings: The run's.
        train: Training examples.
        test: Test examples.
    """
    layers = [module for module in model.modules() if isinstance(module, QuantumLayer)]
    if not layers:
        return "No circuits: the network is classical."
    sizes: dict[str, Any] = {"train": train, "test": test, "batch_size": settings.batch_size}
    epoch = sum((quote_of_epoch(layer, **sizes) for layer in layers), Quote())
    step = sum((layer.quote(settings.batch_size) for layer in layers), Quote())
    return (
        f"{'; '.join(map(str, layers))}\n"
        f"A step of {settings.batch_size} example(s): {words(step)}\n"
        f"An epoch with its test: {words(epoch)}\n"
        f"The run of {settings.epochs} epochs: {words(settings.epochs * epoch)}"
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
