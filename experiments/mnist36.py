"""Layerwise learning: a quantum circuit that tells handwritten threes from sixes grows while it is trained.

An image comes down to nine numbers, one a qubit; the logit of "6" is an expectation value of the circuit. Phase I adds
layers step by step and trains the newest, the earlier ones frozen; Phase II trains parts of the grown circuit in turn
(Skolik et al., arXiv 2006.14904). The defaults are those of a published proof of concept (0.767 of 1968 test images, from
one run without a seed): random rotations, CZ ladders, <Z> of the last qubit. --epochs are those of each step of Phase I;
with --training complete those of the whole training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from qiskit.quantum_info import SparsePauliOp
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase, Quote, complete_depth_schedule, layerwise_schedule
from qiskit_torch_bridge.circuits import LayeredCircuit, random_rotations, ring_layers
from qiskit_torch_bridge.commands.printing import in_columns

from .common.data import Digits, add_digit_options, data_folder, load_first_of, with_digits
from .common.experiment import Experiment
from .common.options import Settings, add_option, experiment_parser, flag
from .common.plots import circuit_diagram, draw_predictions, learning_curves, phase_curves, save_predictions
from .common.rows import Rows
from .common.runs import RunFolder
from .common.trainer import Stage, Trainer
from .common.training_costs import quote_of_epoch, words
from .common.workplace import Workplace, exactly, layer_options

DIGITS = (3, 6)
QUBITS = 9
TRAIN_IMAGES = {"mnist": 1000, "digits": 240}

PUBLISHED: dict[str, Any] = {
    "circuit": "random_rotations",
    "readout": "last",
    "scale_and_bias": False,
    "training": "layerwise",
    "steps": 3,
    "layers_per_step": 2,
    "freeze_after": 1,
    "epochs": 5,
    "partitions": 2,
    "sweeps": 2,
    "partition_epochs": 5,
    "init": "zeros",
    "batch_size": 128,
    "lr": 0.01,
}


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
        """From shape (N, 9) to logits of shape (N, 1)."""
        values: torch.Tensor = self.quantum(numbers)
        return values if self.scale is None or self.bias is None else self.scale * values + self.bias


def classifier(settings: Settings) -> Classifier:
    """The model before its first phase."""
    quantum = LayerwiseQuantumLayer(
        partial(_circuit, settings),
        phases(settings)[0].depth,
        init=settings["init"],
        observables=readout(settings["readout"]),
        **layer_options(settings),
    )
    return Classifier(quantum, scale_and_bias=settings["scale_and_bias"])


def _circuit(settings: Settings, depth: int) -> LayeredCircuit:
    if settings["circuit"] == "ring":
        return ring_layers(QUBITS, depth)
    return random_rotations(QUBITS, depth, seed=settings["seed"])


def readout(name: str) -> SparsePauliOp:
    """Z of the last qubit, or the sum of Z over all."""
    qubits = [QUBITS - 1] if name == "last" else range(QUBITS)
    return SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0) for qubit in qubits], num_qubits=QUBITS)


def phases(settings: Settings) -> tuple[Phase, ...]:
    """The schedule that the settings describe."""
    if settings["training"] == "complete":
        return complete_depth_schedule(settings["steps"] * settings["layers_per_step"], settings["epochs"])
    return layerwise_schedule(
        **{name: settings[name] for name in ("steps", "layers_per_step", "epochs", "freeze_after")},
        **{name: settings[name] for name in ("partitions", "sweeps", "partition_epochs")},
    )


def in_each_phase(settings: Settings) -> Iterator[tuple[Phase, Classifier]]:
    """An untrained model in each phase, one after the other."""
    model = classifier(settings)
    for phase in phases(settings):
        model.quantum.enter(phase)
        yield phase, model


def nine_numbers(images: torch.Tensor, source: str) -> torch.Tensor:
    """From images (N, 1, 28, 28) to shape (N, 9), in [0, 1]: the middle 18 x 18 pixels, resized to 3 x 3.

    scikit-learn's digits fill their image, so nothing is cut from those.
    """
    from torchvision.transforms.functional import center_crop, resize

    cropped = center_crop(images, [18, 18]) if source == "MNIST" else images
    resized: torch.Tensor = resize(cropped, [3, 3], antialias=True)
    return resized.flatten(1)


def rows_of(data: Digits) -> tuple[Rows, Rows]:
    """Training and test examples of nine numbers each."""
    training, testing = (Rows(nine_numbers(part.inputs, data.source), part.labels) for part in (data.train, data.test))
    return training, testing


def digits(settings: Settings) -> Digits:
    """The images that the settings ask for: the first for training, and all that there are for testing."""
    where = {"data_root": data_folder(settings), "download": settings["download"]}
    return load_first_of(DIGITS, train=settings["train_images"], **where)


def parser() -> Any:
    """The experiment's options, with the published settings as defaults."""
    shared = {name: PUBLISHED[name] for name in ("epochs", "batch_size", "lr")}
    parser = experiment_parser("mnist36", __doc__ or "", **shared)
    add = partial(add_option, parser)
    add_digit_options(parser)
    images = "The first so many threes and sixes; null: 1000 of MNIST, 240 of the digits."
    add("--train-images", PositiveInt | None, None, images)
    for name, kind, text in (
        ("circuit", ["random_rotations", "ring"], "Random rotations and CZ ladders; or RZ, RX and a ring of CZ."),
        ("readout", ["last", "sum"], "<Z> of the last qubit, or the sum of <Z> over all."),
        ("training", ["layerwise", "complete"], "The circuit grows; or all of its layers are trained from the start."),
        ("init", ["zeros", "normal", "uniform"], "Weights to begin with; layers that are added later start at zero."),
        ("scale_and_bias", bool, "Train a factor and an offset of the readout too."),
        ("steps", PositiveInt, "Steps of Phase I."),
        ("layers_per_step", PositiveInt, "Layers that each adds."),
        ("freeze_after", PositiveInt | None, "For how many steps a layer is trained in Phase I; null: in all."),
        ("partitions", PositiveInt, "Parts of the circuit that Phase II trains in turn."),
        ("sweeps", NonNegativeInt, "How often Phase II goes through them; 0: no Phase II."),
        ("partition_epochs", PositiveInt, "Epochs of each part in a sweep."),
    ):
        add(flag(name), kind, PUBLISHED[name], text)
    return parser


def complete(settings: Settings) -> Settings:
    """Settles the data set and how many images are for training; refuses a schedule that cannot be."""
    phases(settings)
    settings = with_digits(settings)
    return {**settings, "train_images": settings["train_images"] or TRAIN_IMAGES[settings["dataset"]]}


def published(settings: Settings) -> float | None:
    """The published test accuracy, for the published settings."""
    protocol = PUBLISHED | {"dataset": "mnist", "train_images": TRAIN_IMAGES["mnist"], "shots": None}
    return 0.767 if all(settings[name] == value for name, value in protocol.items()) else None


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains the circuit through its phases; returns what it came to."""
    torch.manual_seed(settings["seed"])
    model = classifier(settings)
    with work.fabric.rank_zero_first():  # only one process downloads
        data = digits(settings)
    training, testing = rows_of(data)
    stages = [Stage(phase.name, phase.epochs, partial(_enter, phase)) for phase in phases(settings)]
    trainer = Trainer(model, loss, settings, work, stages=stages)
    trainer.fit(training, testing)
    if work.fabric.is_global_zero:
        seen = F.interpolate(testing.inputs.reshape(-1, 1, 3, 3), size=data.test.inputs.shape[-2:])
        both = torch.cat([data.test.inputs, seen], dim=-1)
        save_predictions(work.folder, both.__getitem__, testing.labels, trainer.test_scores)
        if trainer.rows[-1]["test_accuracy"] < 0.6:
            print(
                "This run has not learnt, as most seeds of the published protocol do not; experiments/README.md says why. "
                "Try --circuit ring --readout sum --scale-and-bias true --init uniform, or --training complete "
                "--init uniform."
            )
    return {
        "dataset": data.source,
        "training": settings["training"],
        **trainer.result(),
        "last_qubit": rotations_of_last_qubit(settings),
        "logistic_regression": logistic_regression(training, testing),
        "phases": [
            {"name": phase.name, "depth": phase.depth, "epochs": phase.epochs, **_sizes(phased)}
            for phase, phased in in_each_phase(settings)
        ],
    }


def rotations_of_last_qubit(settings: Settings) -> str:
    """The axes about which the weights turn the qubit that is read, layer by layer, such as ``xzyyxz``.

    With the published settings they decide what a run can reach: only RX in every second layer lets another pixel in.
    """
    circuit = _circuit(settings, phases(settings)[-1].depth).circuit
    names = [gate.operation.name for gate in circuit.data if gate.qubits == (circuit.qubits[-1],)]
    return "".join(name[-1] for name in names[1:])  # the first gate is the encoding


def _enter(phase: Phase, model: nn.Module) -> None:
    assert isinstance(model, Classifier)
    model.quantum.enter(phase)


def _sizes(model: Classifier) -> dict[str, int]:
    """How many parameters there are, and how many of them are trained."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"parameters": sum(map(torch.numel, parameters)), "trained_parameters": trained}


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The binary cross entropy of each row."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def logistic_regression(train: Rows, test: Rows) -> float:
    """The test accuracy of logistic regression on the same numbers, with scikit-learn's defaults."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(train.inputs.numpy(), train.labels.numpy())
    return float(model.score(test.inputs.numpy(), test.labels.numpy()))


def cost(settings: Settings) -> str:
    """What each phase and the whole run cost."""
    data = digits(settings)
    sizes = {"train": len(data.train), "batch_size": settings["batch_size"]}
    rows, training, everything = [], [], []
    for phase, model in in_each_phase(settings):
        quote = partial(quote_of_epoch, model.quantum.quantum, **sizes, inputs_require_grad=False)
        training.append(phase.epochs * quote(test=0))
        everything.append(phase.epochs * quote(test=len(data.test)))
        rows.append(
            {"phase": phase.name, "layers": phase.depth, "epochs": phase.epochs, **_sizes(model)}
            | {"circuits of training": training[-1].circuits, "its shots": training[-1].shots}
        )
    return (
        f"Data: {data.source}, {len(data.train)} training and {len(data.test)} test images.\n"
        f"{in_columns(rows)}\n"
        f"Training: {words(sum(training, Quote()))}\n"
        f"The run, with a test after each epoch: {words(sum(everything, Quote()))}"
    )


def draw(folder: RunFolder) -> None:
    """The figures of a run."""
    settings, rows = folder.read_settings(), folder.read_rows()
    title = f"{settings['dataset']} 3/6, {settings['circuit']}, {settings['training']}"
    folder.write_figure("loss.png", learning_curves(rows, title=title))
    folder.write_figure("phases.png", phase_curves([rows], title=title))
    draw_predictions(folder, [str(digit) for digit in DIGITS], _confidence, title=title)
    *_, (_, model) = in_each_phase(exactly(settings))
    folder.write_figure("circuit.png", circuit_diagram(model.quantum.quantum))


def _confidence(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = 1 / (1 + np.exp(-np.abs(logits[:, 0])))
    return probabilities


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """Loss and gradients of all seeds over the phases."""
    title = f"{len(parts)} seeds (thin) and their median"
    folder.write_figure("phases.png", phase_curves([part.read_rows() for part in parts.values()], title=title))


EXPERIMENT = Experiment(
    "mnist36", parser, train, draw, cost=cost, complete=complete, draw_all=draw_all, extendable=(), published=published
)
