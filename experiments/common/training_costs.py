"""What a training costs on a backend, in words, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from qiskit_torch_bridge import QuantumLayer, Quote

from .settings import TrainingSettings
from .shot_schedules import between, quotes


def cost_of_training(model: nn.Module, settings: TrainingSettings, *, train: int, test: int) -> str:
    """The cost of a step, of an epoch with its test, and of all epochs, where something before the layers is trained.

    Args:
        model: With quantum layers or without, and with the weights frozen that will be.
        settings: The run's.
        train: Training examples.
        test: Test examples.
    """
    layers = [(module, True) for module in model.modules() if isinstance(module, QuantumLayer)]
    if not layers:
        return "No circuits: the network is classical."
    step = sum((layer.quote(settings.batch_size) for layer, _ in layers), Quote())
    first, whole = (
        quote_of_stage(layers, settings, epochs=epochs, total_epochs=settings.epochs, train=train, test=test)
        for epochs in (1, settings.epochs)
    )
    return (
        f"{'; '.join(str(layer) for layer, _ in layers)}\n"
        f"A step of {settings.batch_size} example(s): {words(step)}\n"
        f"An epoch with its test: {between(*first, words)}\n"
        f"The run of {settings.epochs} epochs: {between(*whole, words)}"
    )


def quote_of_stage(
    layers: Iterable[tuple[QuantumLayer, bool]],
    settings: TrainingSettings,
    *,
    epochs: int,
    total_epochs: int,
    train: int,
    test: int,
    epochs_before: int = 0,
) -> tuple[Quote, Quote]:
    """The least and the most that a stage of a training can cost; see :func:`~experiments.common.shot_schedules.quotes`.

    Args:
        layers: The quantum layers, with the weights frozen that will be; and whether something before each is trained.
        settings: The run's.
        epochs: Of the stage.
        total_epochs: Of all stages.
        train: Training examples.
        test: Test examples.
        epochs_before: Of the stages before this one.
    """
    steps = -(-train // settings.batch_size)
    least = most = Quote()
    for layer, trained_before in layers:
        of_layer = quotes(
            layer,
            settings,
            epochs=epochs,
            train=train,
            test=test,
            batch_size=settings.batch_size,
            steps=steps * total_epochs,
            before=steps * epochs_before,
            inputs_require_grad=trained_before,
        )
        least, most = least + of_layer[0], most + of_layer[1]
    return least, most


def words(quote: Quote) -> str:
    """A quote as text."""
    hardware = f" {quote.jobs:,} jobs, {quote.qpu_seconds:,.0f} s of QPU time." if quote.jobs else ""
    return f"{quote.circuits:,} circuits, {quote.shots:,} shots, {quote.calls:,} backend calls.{hardware}"
