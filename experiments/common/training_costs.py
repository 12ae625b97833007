"""What a training costs on a backend, in words, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import islice, repeat
from typing import Any

import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer, Quote

from .classifiers import quantum_layers
from .settings import TrainingSettings
from .shot_schedules import shot_schedule


def cost_of_training(model: nn.Module, settings: TrainingSettings, *, train: int, test: int) -> str:
    """The cost of a step, of an epoch with its test, and of all epochs, where something before the layers is trained.

    Args:
        model: With quantum layers or without, and with the weights frozen that will be.
        settings: The run's.
        train: Training examples.
        test: Test examples.
    """
    layers = [(layer, True) for layer in quantum_layers(model)]
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
        f"An epoch with its test: {between(*first)}\n"
        f"The run of {settings.epochs} epochs: {between(*whole)}"
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
    """The least and the most that a stage of a training can cost; the same where its shots are known.

    An epoch is its steps, and a test with the shots of the next step. With allocation by sensitivity the least is not known,
    and nothing: rows without upstream gradient are not measured.

    Args:
        layers: The quantum layers, with the weights frozen that will be; and whether something before each is trained.
        settings: The run's.
        epochs: Of the stage.
        total_epochs: Of all stages.
        train: Training examples.
        test: Test examples.
        epochs_before: Of the stages before this one.

    Raises:
        ValueError: If the shots are to follow the gradient of a circuit that has no weights.
    """
    full, rest = divmod(train, settings.batch_size)
    batches = [settings.batch_size] * full + [rest] * (rest > 0)
    least = most = Quote()
    for layer, trained_before in layers:
        given, quote = layer.shots, cache(partial(_quote, layer, trained_before))
        path = islice(_path(layer, settings, len(batches) * total_epochs), len(batches) * epochs_before, None)
        shots = next(path)
        for _ in range(epochs):
            for rows, trains in [*((rows, True) for rows in batches), (test, False)]:
                least, most = (total + quote(n, rows, trains) for total, n in zip((least, most), shots, strict=True))
                shots = next(path) if trains else shots
        layer.shots = given
    return (Quote() if settings.allocation == "sensitivity" else least), most


def _path(layer: QuantumLayer, settings: TrainingSettings, steps: int) -> Iterator[tuple[Any, Any]]:
    """The fewest and the most shots of each step, without end; the layer's change."""
    schedule = shot_schedule(layer, settings, steps=steps)
    if schedule is None:
        yield from repeat((settings.shots, settings.shots))
    elif settings.shot_schedule == "growing":
        while True:
            yield schedule.shots[0], schedule.shots[0]
            schedule.step()
    least, most = settings.bounds
    low = high = settings.shots or 0
    while True:  # at most twice and at least half as many as in the step before
        yield low, high
        low, high = max(least, low // 2), min(most, 2 * high)


def _quote(layer: QuantumLayer, trained_before: bool, shots: int | None, rows: int, trains: bool) -> Quote:
    layer.shots = shots
    with torch.set_grad_enabled(trains):
        return layer.quote(rows, inputs_require_grad=trained_before)


def words(quote: Quote) -> str:
    """A quote as text."""
    hardware = f" {quote.jobs:,} jobs, {quote.qpu_seconds:,.0f} s of QPU time." if quote.jobs else ""
    return f"{quote.circuits:,} circuits, {quote.shots:,} shots, {quote.calls:,} backend calls.{hardware}"


def between(least: Quote, most: Quote) -> str:
    """The least that something can cost (nothing where it is not known) and the most as text."""
    if least == most:
        return words(most)
    return f"{f'at least {words(least)[:-1]}; ' if least.circuits else ''}at most {words(most)}"
