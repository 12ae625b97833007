"""Layerwise learning: a quantum circuit that tells handwritten threes from sixes grows while it is trained.

An image comes down to a few numbers, one a qubit (nine in what was published); the logit of "6" is an expectation value of
the circuit. Phase I adds layers step by step and trains the newest, the earlier ones frozen; Phase II trains parts of the
grown circuit in turn (Skolik et al., arXiv 2006.14904). The defaults are those of a published proof of concept (0.767 of
1968 test images, from one run without a seed): random rotations, CZ ladders, <Z> of the last qubit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase, Quote, complete_depth_schedule, layerwise_schedule
from qiskit_torch_bridge.circuits import LayeredCircuit, random_rotations, ring_layers
from qiskit_torch_bridge.commands.printing import in_columns

from .common.data import Digits, load_first_of
from .common.data_settings import with_digits
from .common.experiment import Experiment
from .common.plots import circuit_diagram, draw_predictions, learning_curves, phase_curves, save_predictions
from .common.rows import Rows
from .common.runs import RunFolder
from .common.training_costs import between, quote_of_stage
from .common.work import Work
from .common.workplace import exact_options
from .experiment_settings import MNIST36Settings

DIGITS = (3, 6)
QUBITS = 9
GRIDS = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns that an image comes down to, by the number of qubits."""
TRAIN_IMAGES = {"mnist": 1000, "digits": 240}
LEARNING: Mapping[str, Any] = {
    **{"circuit": "ring", "readout": "sum", "scale_and_bias": True, "init": "uniform"},
    **{"batch_size": 50, "lr": 0.02},
}
"""What ten of ten seeds learn with, of ``configs/mnist36-improved.yaml``."""


class Classifier(nn.Module):
    """The circuit's expectation value as the logit of the second digit; if wanted, times a scale, plus a bias.

    Attributes:
        quantum: The circuit.
        scale, bias: The only classical parameters, of shape (); None without them.
    """

    def __init__(self, quantum: LayerwiseQuantumLayer, *, scale_and_bias: bool) -> None:
        super().__init__()
        self.quantum = quantum
        self.scale = nn.Parameter(torch.tensor(1.0)) if scale_and_bias else None
        self.bias = nn.Parameter(torch.tensor(0.0)) if scale_and_bias else None

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """From shape (N, qubits) to logits of shape (N, 1)."""
        values: torch.Tensor = self.quantum(numbers)
        return values if self.scale is None or self.bias is None else self.scale * values + self.bias


def classifier(settings: MNIST36Settings, options: Mapping[str, Any]) -> Classifier:
    """The model before its first phase."""
    quantum = LayerwiseQuantumLayer(
        partial(_circuit, settings),
        phases(settings)[0].depth,
        init=settings.init,
        observables=readout(settings.readout, settings.qubits),
        **options,
    )
    return Classifier(quantum, scale_and_bias=settings.scale_and_bias)


def _circuit(settings: MNIST36Settings, depth: int) -> LayeredCircuit:
    if settings.circuit == "ring":
        return ring_layers(settings.qubits, depth)
    return random_rotations(settings.qubits, depth, seed=settings.seed)


def readout(name: str, qubits: int = QUBITS) -> SparsePauliOp:
    """Z of the last qubit, or the sum of Z over all."""
    chosen = [qubits - 1] if name == "last" else range(qubits)
    return SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0) for qubit in chosen], num_qubits=qubits)


def phases(settings: MNIST36Settings) -> tuple[Phase, ...]:
    """The schedule that the settings describe."""
    if settings.training == "complete":
        return complete_depth_schedule(settings.steps * settings.layers_per_step, settings.epochs)
    names = ("steps", "layers_per_step", "epochs", "freeze_after", "partitions", "sweeps", "partition_epochs")
    return layerwise_schedule(**{name: getattr(settings, name) for name in names})


def few_numbers(images: torch.Tensor, source: str, qubits: int = QUBITS) -> torch.Tensor:
    """From images (N, 1, 28, 28) to shape (N, qubits), in [0, 1]: the middle 18 x 18 pixels, resized to a few.

    scikit-learn's digits fill their image, so nothing is cut from those.
    """
    from torchvision.transforms.functional import center_crop, resize

    cropped = center_crop(images, [18, 18]) if source == "MNIST" else images
    resized: torch.Tensor = resize(cropped, list(GRIDS[qubits]), antialias=True)
    return resized.flatten(1)


def rows_of(data: Digits, qubits: int = QUBITS) -> tuple[Rows, Rows]:
    """Training and test examples of as many numbers each as there are qubits."""
    parts = data.train, data.test
    training, testing = (Rows(few_numbers(part.inputs, data.source, qubits), part.labels) for part in parts)
    return training, testing


def digits(settings: MNIST36Settings) -> Digits:
    """The images that the settings ask for: the first for training, and all that there are for testing."""
    count = settings.train_images or TRAIN_IMAGES[settings.dataset]
    return load_first_of(DIGITS, train=count, data_root=settings.data_folder, download=settings.download)


def complete(settings: MNIST36Settings) -> MNIST36Settings:
    """Settles the data set and how many images are for training; refuses a schedule that cannot be."""
    phases(settings)
    settings = with_digits(settings)
    return replace(settings, train_images=settings.train_images or TRAIN_IMAGES[settings.dataset])


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The binary cross entropy of each row."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def train(settings: MNIST36Settings, work: Work) -> dict[str, Any]:
    """Trains the circuit through its phases; returns what it came to."""
    torch.manual_seed(settings.seed)
    model = classifier(settings, work.layer_options())
    with work.fabric.rank_zero_first():  # only one process downloads
        data = digits(settings)
    training, testing = rows_of(data, settings.qubits)
    passed, total = [], sum(phase.epochs for phase in phases(settings))
    for phase in phases(settings):
        model.quantum.enter(phase)
        passed.append({"name": phase.name, "depth": phase.depth, "epochs": phase.epochs, **_sizes(model)})
        of_phase: dict[str, Any] = {"stage": phase.name, "epochs": phase.epochs, "total_epochs": total}
        for batch in work.steps(model, loss, training, testing, **of_phase):
            logits = model(batch.inputs)
            batch.learn(loss(logits, batch.labels), logits)
    if work.is_first:
        seen = F.interpolate(testing.inputs.reshape(-1, 1, *GRIDS[settings.qubits]), size=data.test.inputs.shape[-2:])
        both = torch.cat([data.test.inputs, seen], dim=-1)
        save_predictions(work.folder, both.__getitem__, testing.labels, work.test_scores)
        if work.rows[-1]["test_accuracy"] < 0.6:
            print(f"This run has not learnt. {advice(settings)}")
    return {
        "dataset": data.source,
        "training": settings.training,
        **work.result(),
        "last_qubit": rotations_of_last_qubit(settings),
        "logistic_regression": logistic_regression(training, testing),
        "phases": passed,
    }


def advice(settings: MNIST36Settings) -> str:
    """What to try after a run that has not learnt: what others have learnt with and this one has not had."""
    better = {name: value for name, value in LEARNING.items() if getattr(settings, name) != value}
    if not better:
        more = "too noisy or too short: try more --shots," if settings.shots else "too short: try"
        return (
            "It had the circuit, the start and the learning rate of runs that have (mnist36-improved.yaml), so it may have "
            f"been {more} more --epochs, more --train-images, or another --seed."
        )
    options = [f"--{name.replace('_', '-')} {json.dumps(value)}".replace('"', "") for name, value in better.items()]
    return f"Most seeds of the published protocol do not; experiments/mnist36.md says why. Try {' '.join(options)}."


def rotations_of_last_qubit(settings: MNIST36Settings) -> str:
    """The axes about which the weights turn the qubit that is read, layer by layer, such as ``xzyyxz``.

    With the published settings they decide what a run can reach: only RX in every second layer lets another pixel in.
    """
    circuit = _circuit(settings, phases(settings)[-1].depth).circuit
    names = [gate.operation.name for gate in circuit.data if gate.qubits == (circuit.qubits[-1],)]
    return "".join(name[-1] for name in names[1:])  # the first gate is the encoding


def _sizes(model: Classifier) -> dict[str, int]:
    """How many parameters there are, and how many of them are trained."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"parameters": sum(map(torch.numel, parameters)), "trained_parameters": trained}


def logistic_regression(train: Rows, test: Rows) -> float:
    """The test accuracy of logistic regression on the same numbers, with scikit-learn's defaults."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(train.inputs.numpy(), train.labels.numpy())
    return float(model.score(test.inputs.numpy(), test.labels.numpy()))


def cost(settings: MNIST36Settings, options: Mapping[str, Any]) -> str:
    """What each phase and the whole run cost."""
    data, model = digits(settings), classifier(settings, options)
    total, before = sum(phase.epochs for phase in phases(settings)), 0
    rows: list[dict[str, Any]] = []
    training = everything = (Quote(), Quote())
    for phase in phases(settings):
        model.quantum.enter(phase)
        of_phase, with_tests = (
            quote_of_stage(
                [(model.quantum.quantum, False)],
                settings,
                epochs=phase.epochs,
                total_epochs=total,
                epochs_before=before,
                train=len(data.train),
                test=test,
            )
            for test in (0, len(data.test))
        )
        before += phase.epochs
        training, everything = (
            (least + other[0], most + other[1])
            for (least, most), other in ((training, of_phase), (everything, with_tests))
        )
        rows.append(
            {"phase": phase.name, "layers": phase.depth, "epochs": phase.epochs, **_sizes(model)}
            | {"circuits of training": of_phase[1].circuits, "its shots": of_phase[1].shots}
        )
    return (
        f"Data: {data.source}, {len(data.train)} training and {len(data.test)} test images.\n"
        f"{in_columns(rows)}\n"
        f"Training: {between(*training)}\n"
        f"The run, with a test after each epoch: {between(*everything)}"
    )


def draw(folder: RunFolder, settings: MNIST36Settings) -> None:
    """The figures of a run."""
    rows = folder.read_rows()
    title = f"{settings.dataset} 3/6, {settings.circuit}, {settings.training}"
    folder.write_figure("loss.png", learning_curves(rows, title=title))
    folder.write_figure("phases.png", phase_curves([rows], title=title))
    draw_predictions(folder, [str(digit) for digit in DIGITS], _confidence, title=title)
    model = classifier(settings, exact_options(settings))
    model.quantum.enter(phases(settings)[-1])
    folder.write_figure("circuit.png", circuit_diagram(model.quantum.quantum))


def _confidence(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = 1 / (1 + np.exp(-np.abs(logits[:, 0])))
    return probabilities


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """Loss and gradients of all seeds over the phases."""
    title = f"{len(parts)} seeds (thin) and their median"
    folder.write_figure("phases.png", phase_curves([part.read_rows() for part in parts.values()], title=title))


def published(settings: MNIST36Settings) -> float | None:
    """The published test accuracy, for the published settings."""
    protocol = MNIST36Settings(dataset="mnist", train_images=TRAIN_IMAGES["mnist"], download=settings.download)
    return 0.767 if settings.follows(protocol) else None


EXPERIMENT = Experiment(
    name="mnist36",
    settings=MNIST36Settings,
    train=train,
    figures=draw,
    cost=cost,
    complete=complete,
    draw_all=draw_all,
    extendable=(),
    published=published,
)
