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
from functools import partial
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import textbook

from .common.data import add_digit_options, data_folder, load_digits_of, with_digits
from .common.experiment import Experiment
from .common.options import Settings, add_option, experiment_parser
from .common.plots import circuit_diagram, draw_predictions, learning_curves, save_predictions
from .common.runs import RunFolder
from .common.trainer import Trainer
from .common.training_costs import cost_of_training
from .common.workplace import Workplace, exactly, layer_options

DIGITS = (0, 1)

PUBLISHED: dict[str, Any] = {
    "dataset": "mnist",
    "head": "quantum",
    "train_per_digit": 100,
    "test_per_digit": 50,
    "epochs": 20,
    "batch_size": 1,
    "lr": 0.001,
    "backend": "aer",
    "shots": 100,
    "gradient": "parameter_shift",
}


def network(head: nn.Module) -> nn.Sequential:
    """The textbook's network: from images (N, 1, 28, 28) to one number each, and from there the head's business."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 1),
        head,
    )


def quantum_head(settings: Mapping[str, Any]) -> QuantumLayer:
    """H, RY(input) and a measurement; outputs (P(1), 1 - P(1)) as published, so that digit 0 is outcome 1."""
    circuit, inputs, weights = textbook()
    return QuantumLayer(
        circuit,
        inputs=inputs,
        weights=weights,
        probabilities=True,
        interpret=lambda outcome: 1 - outcome,
        **layer_options(settings),
    )


class ClassicalHead(nn.Module):
    """The classical twin: a sigmoid in place of the circuit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From shape (N, 1) to probabilities of shape (N, 2)."""
        p = torch.sigmoid(x)
        return torch.cat([p, 1 - p], dim=-1)


def parser() -> Any:
    """The experiment's options, with the published settings as defaults."""
    shared = {name: PUBLISHED[name] for name in ("epochs", "batch_size", "lr", "shots", "backend", "gradient")}
    parser = experiment_parser("mnist01", __doc__ or "", **shared)
    add = partial(add_option, parser)
    heads = ["quantum", "classical", "both"]
    add("--head", heads, "quantum", "The circuit, or a sigmoid in its place, or the two side by side.")
    add_digit_options(parser)
    add("--train-per-digit", PositiveInt, PUBLISHED["train_per_digit"], "Training images of each digit.")
    add("--test-per-digit", PositiveInt, PUBLISHED["test_per_digit"], "Test images of each digit.")
    return parser


def variants(settings: Settings) -> Mapping[str, Settings]:
    """The head that is asked for, or both."""
    heads = ["quantum", "classical"] if settings["head"] == "both" else [settings["head"]]
    return {head: {**settings, "head": head} for head in heads}


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains the network; returns what it came to."""
    torch.manual_seed(settings["seed"])
    head = quantum_head(settings) if settings["head"] == "quantum" else ClassicalHead()
    with work.fabric.rank_zero_first():  # only one process downloads
        sizes = {name: settings[name] for name in ("train_per_digit", "test_per_digit", "download")}
        data = load_digits_of(DIGITS, **sizes, data_root=data_folder(settings))
    trainer = Trainer(network(head), loss, settings, work)
    trainer.fit(data.train, data.test)
    if work.fabric.is_global_zero:
        save_predictions(work.folder, data.test.inputs.__getitem__, data.test.labels, trainer.test_scores)
        if isinstance(head, QuantumLayer) and trainer.rows[-1]["test_accuracy"] < 0.8:
            print(
                "This run has not learnt. The circuit is periodic in its angle and nothing bounds that: with some seeds "
                "it runs away over many turns in the first steps. Try another --seed, or a lower --lr."
            )
    return {"dataset": data.source, "head": settings["head"], **trainer.result()}


def loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Minus the probability of the right class, for each row."""
    return F.nll_loss(probabilities, labels, reduction="none")


def cost(settings: Settings) -> str:
    """What a step, an epoch and the whole run cost."""
    if settings["head"] == "classical":
        return "No circuits: the head is classical."
    head = quantum_head(settings)
    sizes = {part: len(DIGITS) * settings[f"{part}_per_digit"] for part in ("train", "test")}
    return f"Data: {settings['dataset']}. {head}\n{cost_of_training(head, settings, **sizes)}"


def draw(folder: RunFolder) -> None:
    """The figures of a run."""
    settings, rows = folder.read_settings(), folder.read_rows()
    title = f"{settings['dataset']} 0/1, {settings['head']} head"
    folder.write_figure("loss.png", learning_curves(rows, title=title, loss_label="mean of $-p$(right class)"))
    title = f"{settings['head']} head, test images"
    draw_predictions(folder, [str(digit) for digit in DIGITS], lambda scores: scores.max(axis=1), title=title)
    if settings["head"] == "quantum":
        folder.write_figure("circuit.png", circuit_diagram(quantum_head(exactly(settings))))


def published(settings: Settings) -> float | None:
    """The published test accuracy, for the published settings."""
    return 1.0 if PUBLISHED.items() <= settings.items() else None


EXPERIMENT = Experiment(
    "mnist01", parser, train, draw, cost=cost, complete=with_digits, variants=variants, published=published
)
