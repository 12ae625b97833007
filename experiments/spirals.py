"""A dressed quantum circuit beside its classical twin on two interleaved spirals.

From Mari et al., "Transfer learning in hybrid classical-quantum neural networks" (arXiv 1912.08278): 2000 training and 200
test points, batches of 10, Adam with learning rate 0.07, 1000 steps.

``--circuit reuploading`` is an improvement on that: the circuit takes its inputs again in each of its layers, straight from
the linear layer. An output is then a trigonometric polynomial of a higher degree, and can follow the arm around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import reuploading

from .common.comparison import grouped
from .common.experiment import Experiment
from .common.options import saved_settings
from .common.plots import circuit_diagram, learning_curves
from .common.rows import Rows
from .common.runs import RunFolder
from .common.training_costs import cost_of_training
from .common.work import Work, cross_entropy, quantum_layers
from .common.workplace import exact_options
from .settings import SpiralsSettings

TURNS = {"easy": 1.52, "hard": 2.0}
PUBLISHED = {
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
    arms: dict[str, Any] = {"turns": TURNS[settings.spiral], "noise": settings.point_noise, "rng": rng}
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
    net = network(settings, work.layer_options())
    schedule = down_to_zero if settings.schedule == "cosine" else None
    for batch in work.steps(net, cross_entropy, training, testing, scheduler=schedule):
        scores = net(batch.inputs)
        batch.learn(cross_entropy(scores, batch.labels), scores)
    if work.is_first:
        save_regions(net, settings, testing, work.folder)
    return {"spiral": settings.spiral, "head": settings.head, **work.result()}


def down_to_zero(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> CosineAnnealingLR:
    """The learning rate goes down along a cosine, over all steps of all epochs."""
    return CosineAnnealingLR(optimizer, steps * epochs)


def variants(settings: SpiralsSettings) -> Mapping[str, SpiralsSettings]:
    """The spirals and heads that are asked for, each with each."""
    kinds: list[Literal["easy", "hard"]] = ["easy", "hard"] if settings.spiral == "both" else [settings.spiral]
    heads: list[Literal["quantum", "classical"]]
    heads = ["quantum", "classical"] if settings.head == "both" else [settings.head]
    return {f"{spiral}-{head}": replace(settings, spiral=spiral, head=head) for spiral, head in product(kinds, heads)}


def cost(settings: SpiralsSettings, options: Mapping[str, Any]) -> str:
    """What a step, an epoch and the whole run cost."""
    return cost_of_training(network(settings, options), settings, train=settings.train, test=settings.test)


def save_regions(net: nn.Module, settings: SpiralsSettings, testing: Rows, folder: RunFolder) -> None:
    """Writes what :func:`regions` draws: the probability of class 1 on a grid, and the test points."""
    edge = 1.1 * float(testing.inputs.abs().max())
    side = torch.linspace(-edge, edge, _GRID)
    y, x = torch.meshgrid(side, side, indexing="ij")
    twin = network(settings, exact_options(settings))  # drawing costs no circuits on a backend that counts them
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        scores = twin(torch.stack([x, y], dim=-1).reshape(-1, 2))
    probabilities = scores.softmax(dim=1)[:, 1].reshape(_GRID, _GRID)
    arrays = {"probabilities": probabilities, "side": side, "points": testing.inputs, "labels": testing.labels}
    folder.write_arrays("regions.npz", **{name: array.numpy() for name, array in arrays.items()})


def regions(parts: Mapping[tuple[int, int], RunFolder]) -> Figure:
    """The probability of class 1 over the plane, the border between the classes, and the test points.

    Args:
        parts: The trainings to draw by row and column; every row and column from 0 on has one.
    """
    rows, columns = (1 + max(place[axis] for place in parts) for axis in (0, 1))
    figure = Figure(figsize=(4.2 * columns, 4.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, part in parts.items():
        axes, arrays, result = panels[place], part.read_arrays("regions.npz"), part.read_result()
        side, labels = arrays["side"], arrays["labels"]
        axes.contourf(side, side, arrays["probabilities"], levels=10, cmap="gray", vmin=-0.6, vmax=1.3)
        if arrays["probabilities"].min() < 0.5 < arrays["probabilities"].max():
            axes.contour(side, side, arrays["probabilities"], levels=[0.5], colors="k", linewidths=1.2)
        for label, marker, colour in ((0, "o", "tab:blue"), (1, "^", "tab:orange")):
            x, y = arrays["points"][labels == label].T
            axes.plot(x, y, marker, color=colour, markeredgecolor="k", markeredgewidth=0.4, markersize=4.5)
        seed = saved_settings("spirals", SpiralsSettings, part).seed
        axes.set(
            title=f"{result['spiral']} spiral, {result['head']}: {result['test_accuracy']:.3f} (seed {seed})",
            xlabel="$x$ (standardised)",
            ylabel="$y$ (standardised)",
            aspect="equal",
        )
    figure.suptitle("Test accuracy; light: triangles are probable")
    return figure


def draw(folder: RunFolder, settings: SpiralsSettings) -> None:
    """The figures of one training."""
    title = f"{settings.spiral} spiral, {settings.head} head"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    folder.write_figure("regions.png", regions({(0, 0): folder}))
    if settings.head == "quantum":
        (layer,) = quantum_layers(network(settings, exact_options(settings)))
        folder.write_figure("circuit.png", circuit_diagram(layer))


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """``regions.png`` of all heads on all spirals; of several seeds, that of median accuracy."""
    groups = grouped(parts.values(), lambda part: itemgetter("spiral", "head")(part.read_result()))
    spirals_drawn, heads_drawn = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    middle = {
        (spirals_drawn.index(spiral), heads_drawn.index(head)): sorted(
            group, key=lambda part: part.read_result()["test_accuracy"]
        )[(len(group) - 1) // 2]
        for (spiral, head), group in groups.items()
    }
    folder.write_figure("regions.png", regions(middle))


def published(settings: SpiralsSettings) -> float | None:
    """The published test accuracy of a head, for the published settings."""
    protocol = SpiralsSettings(spiral=settings.spiral, head=settings.head, initial_spread=0.001)
    return PUBLISHED[settings.spiral, settings.head] if settings.follows(protocol) else None


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
