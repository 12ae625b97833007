"""A hybrid CNN that tells handwritten zeros from ones: the network of the Qiskit textbook.

Two convolutions and two fully connected layers reduce an image to one number, which becomes the angle of a one-qubit
circuit (H, then RY); the probabilities of its two outcomes are the classes'. Published: 100 % of 100 test images after
20 epochs of 200 training images, with 100 shots a circuit. The textbook's gradient, the difference of two shifted runs,
lacks the factor 1/2 of the parameter-shift rule; here it is right.

The loss is the textbook's too: ``NLLLoss`` of probabilities rather than of their logarithms, so the mean of minus the
probability of the right class, between -1 and 0. It suits shots: it is linear in what is measured, so its gradient is
unbiased at any number of shots, where a logarithm would be infinite as soon as an outcome is never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import textbook

from .common.data import load_digits_of
from .common.data_settings import with_digits
from .common.experiment import Experiment
from .common.plots import circuit_diagram, draw_predictions, learning_curves, save_predictions
from .common.runs import RunFolder
from .common.training_costs import cost_of_training
from .common.work import Work
from .common.workplace import exact_options
from .experiment_settings import MNIST01Settings

DIGITS = (0, 1)


def network(head: nn.Module) -> nn.Sequential:
    """The textbook's network: from images (N, 1, 28, 28) to one number each, and from there the head's business."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, kernel_size=5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Dropout2d(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)),
        head,
    )


def quantum_head(**options: Any) -> QuantumLayer:
    """H, RY(input) and a measurement; outputs (P(1), 1 - P(1)) as published, so that digit 0 is outcome 1."""
    circuit, inputs, _ = textbook()
    return QuantumLayer(circuit, inputs=inputs, probabilities=True, interpret=lambda outcome: 1 - outcome, **options)


class ClassicalHead(nn.Module):
    """The classical twin: a sigmoid in place of the circuit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From shape (N, 1) to probabilities of shape (N, 2)."""
        p = torch.sigmoid(x)
        return torch.cat([p, 1 - p], dim=-1)


def head_of(settings: MNIST01Settings, options: Mapping[str, Any]) -> nn.Module:
    """The head that the settings name."""
    return quantum_head(**options) if settings.head == "quantum" else ClassicalHead()


def loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Minus the probability of the right class, for each row."""
    return F.nll_loss(probabilities, labels, reduction="none")


def train(settings: MNIST01Settings, work: Work) -> dict[str, Any]:
    """Trains the network; returns what it came to."""
    torch.manual_seed(settings.seed)
    model = network(head_of(settings, work.layer_options()))
    sizes = {"train_per_digit": settings.train_per_digit, "test_per_digit": settings.test_per_digit}
    with work.fabric.rank_zero_first():  # only one process downloads
        data = load_digits_of(DIGITS, **sizes, data_root=settings.data_folder, download=settings.download)
    for batch in work.steps(model, loss, data.train, data.test):
        probabilities = model(batch.inputs)
        batch.learn(loss(probabilities, batch.labels), probabilities)
    if work.is_first:
        save_predictions(work.folder, data.test.inputs.__getitem__, data.test.labels, work.test_scores)
        if settings.head == "quantum" and work.rows[-1]["test_accuracy"] < 0.8:
            print(
                "This run has not learnt. The circuit is periodic in its angle and nothing bounds that: with some seeds "
                "it runs away over many turns in the first steps. Try another --seed, or a lower --lr."
            )
    return {"dataset": data.source, "head": settings.head, **work.result()}


def variants(settings: MNIST01Settings) -> Mapping[str, MNIST01Settings]:
    """The head that is asked for, or both."""
    chosen = [replace(settings, head="quantum"), replace(settings, head="classical")]
    return {each.head: each for each in (chosen if settings.head == "both" else [settings])}


def cost(settings: MNIST01Settings, options: Mapping[str, Any]) -> str:
    """What a step, an epoch and the whole run cost."""
    sizes = {"train": 2 * settings.train_per_digit, "test": 2 * settings.test_per_digit}
    return f"Data: {settings.dataset}. {cost_of_training(head_of(settings, options), settings, **sizes)}"


def draw(folder: RunFolder, settings: MNIST01Settings) -> None:
    """The figures of a run."""
    title = f"{settings.dataset} 0/1, {settings.head} head"
    curves = learning_curves(folder.read_rows(), title=title, loss_label="mean of $-p$(right class)")
    folder.write_figure("loss.png", curves)
    draw_predictions(folder, ["0", "1"], lambda scores: scores.max(axis=1), title=f"{settings.head} head, test images")
    if settings.head == "quantum":
        folder.write_figure("circuit.png", circuit_diagram(quantum_head(**exact_options(settings))))


def published(settings: MNIST01Settings) -> float | None:
    """The published test accuracy, for the published settings."""
    return 1.0 if settings.follows(MNIST01Settings(dataset="mnist", download=settings.download)) else None


EXPERIMENT = Experiment(
    name="mnist01",
    settings=MNIST01Settings,
    train=train,
    figures=draw,
    cost=cost,
    complete=with_digits,
    variants=variants,
    published=published,
)
