"""A dressed quantum circuit beside its classical twin on two interleaved spirals.

Two linear layers around a circuit of five qubits tell the points of two spiral arms apart; the classical twin has five tanh
units in place of the circuit. From Mari et al., "Transfer learning in hybrid classical-quantum neural networks" (arXiv
1912.08278): 2000 training and 200 test points, batches of 10, Adam with learning rate 0.07, 1000 steps. Published test
accuracies: 0.970 against 0.855 on the easy spiral (1.52 turns), 0.625 against 0.540 on the hard one (2 turns).

``--circuit reuploading`` is an improvement on that: the circuit takes its inputs again in each of its layers, straight from
the linear layer. An output is then a trigonometric polynomial of a higher degree, and can follow the arm around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import reuploading

from .common.classifiers import cross_entropy, quantum_layers
from .common.comparison import grouped
from .common.experiment import Experiment
from .common.options import saved_settings
from .common.plots import circuit_diagram, learning_curves
from .common.rows import Rows
from .common.runs import RunFolder
from .common.training_costs import cost_of_training
from .common.work import Work
from .common.workplace import exact_options
from .experiment_settings import SpiralsSettings

TURNS = {"easy": 1.52, "hard": 2.0}
PUBLISHED: Mapping[tuple[Literal["easy", "hard"], Literal["quantum", "classical"]], float] = {
    ("easy", "quantum"): 0.970,
    ("easy", "classical"): 0.855,
    ("hard", "quantum"): 0.625,
    ("hard", "classical"): 0.540,
}
_GRID = 120  # points a side at which the regions are drawn


def spirals(count: int, *, turns: float, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points on two interleaved spiral arms, the second of which is the first turned by half a circle.

    A point of the first arm is ``(-n cos(n) + noise u', n sin(n) + noise u'')`` with ``n = sqrt(u) * turns * 2 pi`` and
    ``u``, ``u'``, ``u''`` uniform in [0, 1), so that points lie as densely outside as inside.

    Args:
        count: How many points; an even number, half of them on each arm.
        turns: How often an arm goes round.
        noise: How far a point may be off its arm, in each coordinate.
        rng: Draws the points.

    Returns:
        Points of shape (count, 2) and labels of shape (count,), 0 for the first arm.

    Raises:
        ValueError: If ``count`` is not a positive even number.
    """
    if count < 2 or count % 2:
        raise ValueError(f"count: got {count} points, expected a positive even number, half of them on each arm.")
    half = count // 2
    n = np.sqrt(rng.random(half)) * turns * 2 * np.pi
    arm = np.stack([-n * np.cos(n), n * np.sin(n)], axis=1) + noise * rng.random((half, 2))
    return np.concatenate([arm, -arm]), np.repeat([0, 1], half)


def standardized_spirals(settings: SpiralsSettings) -> tuple[Rows, Rows]:
    """Training and test points from the same arms, moved and scaled to mean 0 and standard deviation 1 in training."""
    rng = np.random.default_rng(settings.seed)
    arms: dict[str, Any] = {"turns": TURNS[settings.spiral], "noise": settings.off_arm, "rng": rng}
    sets = [spirals(count, **arms) for count in (settings.train, settings.test)]
    mean, deviation = sets[0][0].mean(axis=0), sets[0][0].std(axis=0)
    training, testing = (
        Rows(torch.tensor((points - mean) / deviation, dtype=torch.float32), torch.tensor(labels))
        for points, labels in sets
    )
    return training, testing


def network(settings: SpiralsSettings, options: Mapping[str, Any]) -> nn.Module:
    """The head that the settings name, from points of shape (N, 2) to scores of shape (N, 2)."""
    qubits, depth = settings.qubits, settings.depth
    net: nn.Module
    if settings.head == "classical":
        net = nn.Sequential(nn.Linear(2, qubits), nn.Tanh(), nn.Linear(qubits, qubits), nn.Tanh(), nn.Linear(qubits, 2))
    elif settings.circuit == "dressed":
        net = DressedQuantumNet(2, 2, num_qubits=qubits, depth=depth, **options)
    else:
        circuit, inputs, weights = reuploading(qubits, depth)
        layer = QuantumLayer(circuit, inputs=inputs, weights=weights, **options)
        net = nn.Sequential(nn.Linear(2, qubits), layer, nn.Linear(qubits, 2))
    if settings.initial_spread is not None:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=settings.initial_spread)
    return net


def train(settings: SpiralsSettings, work: Work) -> dict[str, Any]:
    """Trains one head on one spiral; returns what it came to."""
    torch.manual_seed(settings.seed)
    training, testing = standardized_spirals(settings)
    model = network(settings, work.layer_options())
    scheduler = _cosine if settings.schedule == "cosine" else None
    for batch in work.steps(model, cross_entropy, training, testing, scheduler=scheduler):
        scores = model(batch.inputs)
        batch.learn(cross_entropy(scores, batch.labels), scores)
    if work.is_first:
        _save_regions(model, settings, testing, work.folder)
    return {"spiral": settings.spiral, "head": settings.head, **work.result()}


def _cosine(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, steps * epochs)


def variants(settings: SpiralsSettings) -> Mapping[str, SpiralsSettings]:
    """The spirals and heads that are asked for, each with each."""
    each = [replace(settings, spiral=spiral, head=head) for spiral, head in PUBLISHED]
    chosen = [one for one in each if settings.spiral in ("both", one.spiral) and settings.head in ("both", one.head)]
    return {f"{one.spiral}-{one.head}": one for one in chosen}


def cost(settings: SpiralsSettings, options: Mapping[str, Any]) -> str:
    """What a step, an epoch and the whole run cost."""
    return cost_of_training(network(settings, options), settings, train=settings.train, test=settings.test)


def _save_regions(net: nn.Module, settings: SpiralsSettings, testing: Rows, folder: RunFolder) -> None:
    """Writes what :func:`regions` draws: the probability of class 1 on a grid, and the test points."""
    edge = 1.1 * float(testing.inputs.abs().max())
    side = torch.linspace(-edge, edge, _GRID)
    y, x = torch.meshgrid(side, side, indexing="ij")
    twin = network(settings, exact_options(settings))  # drawing costs no circuits on a backend that counts them
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        scores = twin(torch.stack([x, y], dim=-1).reshape(-1, 2))
    probabilities = scores.softmax(dim=1)[:, 1].reshape(_GRID, _GRID)
    folder.write_arrays(
        "regions.npz",
        probabilities=probabilities.numpy(),
        side=side.numpy(),
        points=testing.inputs.numpy(),
        labels=testing.labels.numpy(),
    )


def regions(parts: Mapping[tuple[int, int], RunFolder]) -> Figure:
    """The probability of class 1 over the plane, the border between the classes, and the test points.

    Args:
        parts: The trainings to draw by row and column; every row and column from 0 on has one.
    """
    rows, columns = (1 + max(place[axis] for place in parts) for axis in (0, 1))
    figure = Figure(figsize=(4.2 * columns, 4.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, part in parts.items():
        axes, arrays, settings = panels[place], part.read_arrays("regions.npz"), _settings_of(part)
        side, labels = arrays["side"], arrays["labels"]
        axes.contourf(side, side, arrays["probabilities"], levels=10, cmap="gray", vmin=-0.6, vmax=1.3)
        if arrays["probabilities"].min() < 0.5 < arrays["probabilities"].max():
            axes.contour(side, side, arrays["probabilities"], levels=[0.5], colors="k", linewidths=1.2)
        for label, marker, colour in ((0, "o", "tab:blue"), (1, "^", "tab:orange")):
            x, y = arrays["points"][labels == label].T
            axes.plot(x, y, marker, color=colour, markeredgecolor="k", markeredgewidth=0.4, markersize=4.5)
        accuracy = part.read_result()["test_accuracy"]
        axes.set(
            title=f"{settings.spiral} spiral, {settings.head}: {accuracy:.3f} (seed {settings.seed})",
            xlabel="$x$ (standardised)",
            ylabel="$y$ (standardised)",
            aspect="equal",
        )
    figure.suptitle("Test accuracy; light: triangles are probable")
    return figure


def _settings_of(folder: RunFolder) -> SpiralsSettings:
    return saved_settings("spirals", SpiralsSettings, folder)


def draw(folder: RunFolder, settings: SpiralsSettings) -> None:
    """The figures of one training."""
    title = f"{settings.spiral} spiral, {settings.head} head"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    folder.write_figure("regions.png", regions({(0, 0): folder}))
    for layer in quantum_layers(network(settings, exact_options(settings))):
        folder.write_figure("circuit.png", circuit_diagram(layer))


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """``regions.png`` of all heads on all spirals; of several seeds, that of median accuracy."""
    settings = {name: _settings_of(part) for name, part in parts.items()}
    groups = grouped(parts, lambda name: (settings[name].spiral, settings[name].head))
    spirals_drawn, heads_drawn = (list(dict.fromkeys(key[axis] for key in groups)) for axis in (0, 1))
    middle = {
        (spirals_drawn.index(spiral), heads_drawn.index(head)): sorted(
            (parts[name] for name in group), key=lambda part: part.read_result()["test_accuracy"]
        )[(len(group) - 1) // 2]
        for (spiral, head), group in groups.items()
    }
    folder.write_figure("regions.png", regions(middle))


def published(settings: SpiralsSettings) -> float | None:
    """The published test accuracy of a head, for the published settings."""
    for (spiral, head), accuracy in PUBLISHED.items():
        if settings.follows(SpiralsSettings(spiral=spiral, head=head, initial_spread=0.001)):
            return accuracy
    return None


EXPERIMENT = Experiment(
    name="spirals",
    settings=SpiralsSettings,
    train=train,
    figures=draw,
    cost=cost,
    variants=variants,
    draw_all=draw_all,
    extendable=(),  # a schedule goes down to zero at the end that the run was started with
    published=published,
)
