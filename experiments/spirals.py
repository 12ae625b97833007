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
from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from matplotlib.figure import Figure
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import reuploading

from .common.comparison import grouped
from .common.experiment import Experiment
from .common.options import Settings, add_option, experiment_parser, flag
from .common.plots import circuit_diagram, learning_curves
from .common.rows import Rows
from .common.runs import RunFolder
from .common.trainer import Trainer, cross_entropy, quantum_layers
from .common.training_costs import cost_of_training
from .common.workplace import Workplace, exactly, layer_options

TURNS = {"easy": 1.52, "hard": 2.0}
HEADS = ("quantum", "classical")
PUBLISHED = {
    ("easy", "quantum"): 0.970,
    ("easy", "classical"): 0.855,
    ("hard", "quantum"): 0.625,
    ("hard", "classical"): 0.540,
}
PROTOCOL: dict[str, Any] = {
    "circuit": "dressed",
    "qubits": 5,
    "depth": 5,
    "noise": 0.2,
    "train": 2000,
    "test": 200,
    "epochs": 5,
    "batch_size": 10,
    "lr": 0.07,
    "schedule": "constant",
    "initial_spread": 0.001,
    "shots": None,
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


def standardized_spirals(settings: Settings) -> tuple[Rows, Rows]:
    """Training and test points from the same arms, moved and scaled to mean 0 and standard deviation 1 in training."""
    rng = np.random.default_rng(settings["seed"])
    turns, noise = TURNS[settings["spiral"]], settings["noise"]
    sets = [spirals(settings[name], turns=turns, noise=noise, rng=rng) for name in ("train", "test")]
    mean, deviation = sets[0][0].mean(axis=0), sets[0][0].std(axis=0)
    training, testing = (
        Rows(torch.tensor((points - mean) / deviation, dtype=torch.float32), torch.tensor(labels))
        for points, labels in sets
    )
    return training, testing


def network(settings: Mapping[str, Any]) -> nn.Module:
    """The head that the settings name, from points of shape (N, 2) to scores of shape (N, 2)."""
    qubits, depth, options = settings["qubits"], settings["depth"], layer_options(settings)
    net: nn.Module
    if settings["head"] == "classical":
        net = nn.Sequential(nn.Linear(2, qubits), nn.Tanh(), nn.Linear(qubits, qubits), nn.Tanh(), nn.Linear(qubits, 2))
    elif settings["circuit"] == "dressed":
        net = DressedQuantumNet(2, 2, num_qubits=qubits, depth=depth, **options)
    else:
        circuit, inputs, weights = reuploading(qubits, depth)
        layer = QuantumLayer(circuit, inputs=inputs, weights=weights, **options)
        net = nn.Sequential(nn.Linear(2, qubits), layer, nn.Linear(qubits, 2))
    if settings["initial_spread"] is not None:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=settings["initial_spread"])
    return net


def parser() -> Any:
    """The experiment's options; the defaults are the published settings, except that PyTorch draws the first weights."""
    shared = {name: PROTOCOL[name] for name in ("epochs", "batch_size", "lr", "shots")}
    parser = experiment_parser("spirals", __doc__ or "", **shared)
    defaults = PROTOCOL | {"spiral": "both", "head": "both", "initial_spread": None}
    rate = "The learning rate: as it is, or down to zero over the run, along a cosine."
    spread = "Draw all weights from a normal distribution of this standard deviation; null: as PyTorch does."
    for name, kind, text in (
        ("spiral", [*TURNS, "both"], "easy: 1.52 turns; hard: 2 turns; or the two."),
        ("head", [*HEADS, "both"], "The circuit, or tanh units in its place, or the two side by side."),
        ("circuit", ["dressed", "reuploading"], "The published one, or one that takes its inputs again in each layer."),
        ("qubits", PositiveInt, "Qubits, or tanh units."),
        ("depth", PositiveInt, "Layers of weights in the circuit."),
        ("schedule", ["constant", "cosine"], rate),
        ("initial_spread", NonNegativeFloat | None, spread),
        ("noise", NonNegativeFloat, "How far points are off their arm at most."),
        ("train", PositiveInt, "Training points, an even number."),
        ("test", PositiveInt, "Test points, an even number."),
    ):
        add_option(parser, flag(name), kind, defaults[name], text)
    return parser


def complete(settings: Settings) -> Settings:
    """Refuses what cannot be, before anything is written.

    Raises:
        ValueError: If a number of points is odd.
    """
    for name in ("train", "test"):
        if settings[name] % 2:
            raise ValueError(f"--{name}: got {settings[name]}, expected an even number, half of them on each arm.")
    return settings


def variants(settings: Settings) -> Mapping[str, Settings]:
    """The spirals and heads that are asked for, each with each."""
    chosen = [
        names if settings[option] == "both" else [settings[option]]
        for option, names in (("spiral", list(TURNS)), ("head", list(HEADS)))
    ]
    return {f"{spiral}-{head}": {**settings, "spiral": spiral, "head": head} for spiral, head in product(*chosen)}


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains one head on one spiral; returns what it came to."""
    torch.manual_seed(settings["seed"])
    training, testing = standardized_spirals(settings)
    net = network(settings)
    cosine = None
    if settings["schedule"] == "cosine":
        cosine = lambda optimizer, steps, epochs: CosineAnnealingLR(optimizer, steps * epochs)  # noqa: E731
    trainer = Trainer(net, cross_entropy, settings, work, scheduler=cosine)
    trainer.fit(training, testing)
    if work.fabric.is_global_zero:
        _save_regions(net, settings, testing, work.folder)
    return {"spiral": settings["spiral"], "head": settings["head"], **trainer.result()}


def cost(settings: Settings) -> str:
    """What a step, an epoch and the whole run cost."""
    layers = quantum_layers(network(settings))
    if not layers:
        return "No circuits: the head is classical."
    return f"{layers[0]}\n" + cost_of_training(layers[0], settings, train=settings["train"], test=settings["test"])


def _save_regions(net: nn.Module, settings: Settings, testing: Rows, folder: RunFolder) -> None:
    """Writes what :func:`regions` draws: the probability of class 1 on a grid, and the test points."""
    edge = 1.1 * float(testing.inputs.abs().max())
    side = torch.linspace(-edge, edge, _GRID)
    y, x = torch.meshgrid(side, side, indexing="ij")
    twin = network(exactly(settings))  # drawing costs no circuits on a backend that counts them
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
        axes, arrays, settings = panels[place], part.read_arrays("regions.npz"), part.read_settings()
        side, labels = arrays["side"], arrays["labels"]
        axes.contourf(side, side, arrays["probabilities"], levels=10, cmap="gray", vmin=-0.6, vmax=1.3)
        if arrays["probabilities"].min() < 0.5 < arrays["probabilities"].max():
            axes.contour(side, side, arrays["probabilities"], levels=[0.5], colors="k", linewidths=1.2)
        for label, marker, colour in ((0, "o", "tab:blue"), (1, "^", "tab:orange")):
            x, y = arrays["points"][labels == label].T
            axes.plot(x, y, marker, color=colour, markeredgecolor="k", markeredgewidth=0.4, markersize=4.5)
        accuracy = part.read_result()["test_accuracy"]
        axes.set(
            title=f"{settings['spiral']} spiral, {settings['head']}: {accuracy:.3f} (seed {settings['seed']})",
            xlabel="$x$ (standardised)",
            ylabel="$y$ (standardised)",
            aspect="equal",
        )
    figure.suptitle("Test accuracy; light: triangles are probable")
    return figure


def draw(folder: RunFolder) -> None:
    """The figures of one training."""
    settings = folder.read_settings()
    title = f"{settings['spiral']} spiral, {settings['head']} head"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    folder.write_figure("regions.png", regions({(0, 0): folder}))
    if settings["head"] == "quantum":
        layer = quantum_layers(network(exactly(settings)))[0]
        folder.write_figure("circuit.png", circuit_diagram(layer))


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """``regions.png`` of all heads on all spirals; of several seeds, that of median accuracy."""
    groups = grouped(parts.values(), lambda part: itemgetter("spiral", "head")(part.read_settings()))
    spirals_drawn, heads_drawn = (list(dict.fromkeys(key[axis] for key in groups)) for axis in (0, 1))
    middle = {
        (spirals_drawn.index(spiral), heads_drawn.index(head)): sorted(
            group, key=lambda part: part.read_result()["test_accuracy"]
        )[(len(group) - 1) // 2]
        for (spiral, head), group in groups.items()
    }
    folder.write_figure("regions.png", regions(middle))


def published(settings: Settings) -> float | None:
    """The published test accuracy of a head, for the published settings."""
    return PUBLISHED[settings["spiral"], settings["head"]] if PROTOCOL.items() <= settings.items() else None


EXPERIMENT = Experiment(
    "spirals",
    parser,
    train,
    draw,
    cost=cost,
    complete=complete,
    variants=variants,
    draw_all=draw_all,
    # A schedule goes down to zero at the end that the run was started with.
    extendable=(),
    published=published,
)
