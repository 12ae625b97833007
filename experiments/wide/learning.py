"""All qubits of a device learn the couplings and fields of a hidden kicked Ising model from its magnetisations.

A hidden model has a coupling for each pair of qubits that an IBM device couples, and a field for each qubit: 271 numbers on
127 qubits. It is known by what it does: from random product states, Z of each qubit after two kicks, estimated from 1000
shots. A layer with the same circuit and other weights learns to do the same. All of its qubits are needed: each coupling and
field shows in the outputs near it, and nowhere else. The test is on other states, against exact values.

The layer is trained exactly, on light cones of 7 qubits. The trained circuit is then simulated with the device's noise, and
the price of one step of the same training on the device is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from qiskit_torch_bridge import StatevectorBackend

from ..common.classifiers import Correct
from ..common.experiment import Experiment
from ..common.plots import learning_curves
from ..common.runs import RunFolder
from ..common.training_costs import cost_of_training, words
from ..common.work import Work
from .chips import Chip, chip_of
from .kicked_ising import hidden_weights, layer_of, product_states
from .on_device import noisy_magnetisations, quote_of_step
from .wide_settings import WideSettings

SHOTS_OF_QUOTE = 1000


@dataclass(frozen=True, eq=False)
class States:
    """Product states, and what the hidden model makes of them.

    Attributes:
        inputs: Shape (N, 2 qubits): angles.
        magnetisations: Shape (N, qubits): Z of each qubit.
    """

    inputs: torch.Tensor
    magnetisations: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~experiments.common.rows.Examples`."""
        return self.inputs[rows], self.magnetisations[rows]


def hidden_model(settings: WideSettings, chip: Chip) -> tuple[torch.Tensor, States, States]:
    """The weights to find, the states to train on and those to test on."""
    generator = torch.Generator().manual_seed(settings.seed)
    weights = hidden_weights(chip, generator)
    sets = [product_states(rows, chip, generator) for rows in (settings.train, settings.test)]
    # With shots, qubits whose light cones have others in common are drawn independently: together they are too many.
    backend = StatevectorBackend(joint_shots=False)
    layer = layer_of(chip, settings.layers, {"backend": backend, "seed": settings.seed, "init": weights})
    with torch.no_grad():
        test = States(sets[1], layer(sets[1]))
        layer.shots = settings.target_shots
        train = States(sets[0], layer(sets[0]))
    return weights, train, test


def squared_error(outputs: torch.Tensor, magnetisations: torch.Tensor) -> torch.Tensor:
    """The mean over the qubits, for each row."""
    return torch.nn.functional.mse_loss(outputs, magnetisations, reduction="none").mean(dim=1)


def share_within(distance: float) -> Correct:
    """The share of the outputs that are no further than this from what they should be, for each row."""
    return lambda outputs, magnetisations: ((outputs - magnetisations).abs() <= distance).double().mean(dim=1)


def train(settings: WideSettings, work: Work) -> dict[str, Any]:
    """Trains one model; returns what it came to."""
    chip = chip_of(settings.chip, settings.qubits)
    hidden, training, testing = hidden_model(settings, chip)
    coupled, is_right = settings.model == "coupled", share_within(settings.within)
    model = layer_of(chip, settings.layers, work.layer_options(), coupled=coupled)
    for batch in work.steps(model, squared_error, training, testing, correct=is_right):
        outputs = model(batch.inputs)
        batch.learn(squared_error(outputs, batch.labels), outputs)
    assert isinstance(model.weights, torch.nn.Parameter)
    found = model.weights.detach().cpu()
    arrays = {"hidden": hidden, "found": found, "expected": testing.magnetisations, "outputs": work.test_scores}
    result = {"chip": settings.chip, "model": settings.model, "qubits": chip.num_qubits, **work.result()}
    if coupled:
        split, off = len(chip.couplings), (found - hidden).square()
        result |= {"coupling_error": off[:split].mean().sqrt().item(), "field_error": off[split:].mean().sqrt().item()}
    if coupled and work.is_first:
        rows = settings.noisy_states
        if rows:
            arrays["noisy"] = noisy_magnetisations(
                chip, settings.layers, found, testing.inputs[:rows], most=settings.noisy_qubits
            )
            result["noisy_accuracy"] = is_right(arrays["noisy"], testing.magnetisations[:rows]).mean().item()
        quote = quote_of_step(chip, settings.layers, rows=settings.batch_size, shots=SHOTS_OF_QUOTE)
        result |= {"step_on_device": {"circuits": quote.circuits, "jobs": quote.jobs, "qpu_seconds": quote.qpu_seconds}}
    if work.is_first:
        work.folder.write_arrays("qubits.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    return result


def variants(settings: WideSettings) -> Mapping[str, WideSettings]:
    """The model that is asked for, or both."""
    both = [replace(settings, model="coupled"), replace(settings, model="uncoupled")]
    return {each.model: each for each in (both if settings.model == "both" else [settings])}


def complete(settings: WideSettings) -> WideSettings:
    """Refuses a device that there is not."""
    chip_of(settings.chip, settings.qubits)
    return settings


def cost(settings: WideSettings, options: Mapping[str, Any]) -> str:
    """What a step, an epoch and the whole run cost; and a step on the device."""
    chip = chip_of(settings.chip, settings.qubits)
    layer = layer_of(chip, settings.layers, options, coupled=settings.model == "coupled")
    here = cost_of_training(layer, settings, train=settings.train, test=settings.test)
    if settings.model != "coupled":
        return here
    quote = quote_of_step(chip, settings.layers, rows=settings.batch_size, shots=SHOTS_OF_QUOTE)
    there = f"A step on {chip.device.name} with {SHOTS_OF_QUOTE} shots a circuit: {words(quote)}"
    return f"{layer.plan()}\n{here}\n{there}"


def draw(folder: RunFolder, settings: WideSettings) -> None:
    """The figures of one training."""
    title = f"{settings.chip}, {settings.model}; accuracy: share of $\\langle Z \\rangle$ within {settings.within}"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="mean squared error"))
    folder.write_figure("map.png", _map(folder, chip_of(settings.chip, settings.qubits), settings))


def _map(folder: RunFolder, chip: Chip, settings: WideSettings) -> Figure:
    """Over the device's qubits: what is off after training, and what its noise adds."""
    arrays = folder.read_arrays("qubits.npz")
    trained = np.sqrt(np.square(arrays["outputs"] - arrays["expected"]).mean(axis=0))
    off = np.abs(arrays["found"] - arrays["hidden"])[: len(chip.couplings)] if settings.model == "coupled" else None
    panels = [(f"after training: root mean square over {len(arrays['outputs'])} test states", trained, off)]
    if "noisy" in arrays:
        rows = len(arrays["noisy"])
        noisy = np.sqrt(np.square(arrays["noisy"] - arrays["expected"][:rows]).mean(axis=0))
        panels.append((f"with the device's noise: root mean square over {rows} test states", noisy, None))
    width = 1 + max(x for x, _ in chip.positions) - min(x for x, _ in chip.positions)
    height = 1 + max(y for _, y in chip.positions)
    figure = Figure(figsize=(3.5 + 0.42 * width, (1.2 + 0.34 * height) * len(panels)), layout="constrained")
    for axes, (title, errors, off) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _draw_qubits(axes, chip, errors, off)
        axes.set_title(title)
    figure.suptitle(rf"{settings.chip}: how far $\langle Z \rangle$ is from the hidden model's")
    return figure


def _draw_qubits(axes: Axes, chip: Chip, errors: np.ndarray, off: np.ndarray | None) -> None:
    """Qubits in the colour of their error; couplings, if there are any, in that of theirs."""
    places = np.array(chip.positions, dtype=float)
    colours: dict[str, Any] = {"colors": "0.8"} if off is None else {"array": off, "cmap": "Oranges"}
    lines = LineCollection([places[list(pair)] for pair in chip.couplings], linewidths=5, zorder=1, **colours)
    axes.add_collection(lines)
    nodes = axes.scatter(
        places[:, 0], places[:, 1], c=errors, s=110, cmap="Blues", vmin=0, edgecolors="k", linewidths=0.6, zorder=2
    )
    for (x, y), number, error in zip(places, chip.physical, errors, strict=True):
        colour = "w" if error > 0.6 * errors.max() else "k"
        axes.text(x, y, str(number), ha="center", va="center", fontsize=5.5, color=colour)
    axes.set(aspect="equal")
    axes.invert_yaxis()
    axes.axis("off")
    figure = axes.get_figure()
    assert figure is not None
    options: dict[str, Any] = {"ax": axes, "shrink": 0.9, "aspect": 30, "pad": 0.015}
    figure.colorbar(nodes, label=r"qubit: error of $\langle Z \rangle$", **options)
    if off is not None:
        figure.colorbar(lines, label="line: error of $J$ (radians)", **options)


EXPERIMENT = Experiment(
    name="wide", settings=WideSettings, train=train, figures=draw, cost=cost, complete=complete, variants=variants
)
