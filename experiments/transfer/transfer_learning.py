"""The experiment ``transfer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, StepLR

from qiskit_torch_bridge import DressedQuantumNet

from .. import transfer
from ..common.experiment import Experiment
from ..common.hardware import simulated, word_of
from ..common.options import Settings, add_option, experiment_parser
from ..common.plots import circuit_diagram, draw_predictions, learning_curves, save_predictions, softmax_of_largest
from ..common.rows import Examples, Rows
from ..common.runs import RunFolder
from ..common.trainer import Trainer, cross_entropy, quantum_layers
from ..common.training_costs import cost_of_training
from ..common.workplace import Workplace, exactly, layer_options
from .backbones import Backbone, View, imagenet_backbone, load_backbone, new_network
from .features import AugmentedFeatures, cached_features
from .images import Images, add_image_options, images_of, names_in, with_data_root
from .pretraining import pretrained_file, pretrained_folder, settings_for

SCHEMES = ("CC", "CQ", "QC", "QQ")
_DEFAULT_CLASSES = {"digits": "8,9", "cifar10": "cat,dog"}
_PROTOCOL = {
    **{"scheme": "CQ", "weights": "imagenet", "image_size": None, "augment": False},
    **{"num_qubits": 4, "weight_spread": 0.01, "shots": None},
}
_ANTS_BEES = {"epochs": 30, "batch_size": 4, "lr": 0.0004, "depth": 6, "lr_gamma": 0.1, "lr_step": 10}
_DOGS_CATS = {"epochs": 3, "batch_size": 8, "lr": 0.001, "depth": 5, "lr_gamma": 1.0}
_PLANES_CARS = {"epochs": 3, "batch_size": 8, "lr": 0.0007, "depth": 4, "lr_gamma": 0.1, "lr_step": 3}
_PUBLISHED = {
    0.967: {"dataset": "ants-bees", "classes": "ants,bees", **_ANTS_BEES},
    0.827: {"dataset": "cifar10", "classes": "cat,dog", **_DOGS_CATS},
    0.9605: {"dataset": "cifar10", "classes": "airplane,automobile", **_PLANES_CARS},
}
_WEIGHTS_HELP = (
    "Of the ResNet18: imagenet (torchvision downloads it), pretrain (trained here on the data set's other classes and kept "
    "in --cache), or a file: torchvision's ResNet18 or the backbone.pt of a run of pretrain. auto: pretrain for digits, "
    "else imagenet."
)
_QUANTUM_WEIGHTS_HELP = (
    "Of the pre-trained quantum network (schemes QC, QQ): pretrain, or a file of such a run of pretrain."
)


def parser() -> Any:
    """The experiment's options, with the settings published for ants and bees as defaults."""
    parser = experiment_parser("transfer", transfer.__doc__ or "", epochs=30, batch_size=4, lr=0.0004)
    classes = "The classes to tell apart (default: 8,9 of digits, cat,dog of cifar10, else all)."
    add_image_options(parser, classes=classes)
    add = partial(add_option, parser)
    schemes = "CC, CQ, QC, QQ, or several of them: classical or quantum pre-trained network, then head."
    add("--scheme", str, "CQ,CC", schemes)
    add("--weights", str, "auto", _WEIGHTS_HELP)
    add("--quantum-weights", str, "pretrain", _QUANTUM_WEIGHTS_HELP)
    size = "Pixels of the square that is cut from an image (default: as the network was trained)."
    add("--image-size", PositiveInt | None, None, size)
    parser.add_argument("--augment", action="store_true", help="Random crops and flips; features are computed anew.")
    add("--num-qubits", PositiveInt, 4, "Qubits of the head's circuit.")
    add("--depth", PositiveInt, 6, "Variational layers of the head's circuit.")
    add("--weight-spread", NonNegativeFloat, 0.01, "Spread of the circuit's initial weights, radians.")
    add("--lr-gamma", PositiveFloat, 0.1, "Factor on the learning rate ...")
    add("--lr-step", PositiveInt, 10, "... every so many epochs.")
    add("--cache", str, "runs", "Folder for features and for networks that are pre-trained here.")
    return parser


def complete(settings: Settings) -> Settings:
    """Settles where data and weights come from; refuses what cannot be trained, before a network is pre-trained for it."""
    schemes = names_in(settings["scheme"])
    if not set(schemes) <= set(SCHEMES) or len(set(schemes)) != len(schemes):
        raise ValueError(
            f"--scheme: got {settings['scheme']!r}, expected one or more of {', '.join(SCHEMES)}, such as CQ,CC."
        )
    dataset, weights = settings["dataset"], settings["weights"]
    settings = with_data_root({**settings, "classes": settings["classes"] or _DEFAULT_CLASSES.get(dataset)})
    settings["scheme"] = ",".join(schemes)
    settings["classes"] = ",".join(images_of(settings)[0].classes)
    if weights == "auto":
        settings["weights"] = "pretrain" if dataset == "digits" else "imagenet"
    for settings_of_scheme in variants(settings).values():
        _check(settings_of_scheme)
    return settings


def variants(settings: Settings) -> Mapping[str, Settings]:
    """A training for each scheme."""
    return {scheme: {**settings, "scheme": scheme} for scheme in names_in(settings["scheme"])}


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains the head of one scheme on the features; returns what it came to."""
    train_images, test_images = images_of(settings)
    if settings["augment"]:  # else they are all read before the training, or have been
        train_images.check()
    backbone = backbone_of(settings, work)
    known = sorted(set(backbone.trained_on) & set(train_images.classes))
    if known and work.fabric.is_global_zero:
        print(f"Mind that the pre-trained network has seen {', '.join(known)} before: it was trained on them.")
    torch.manual_seed(settings["seed"])
    head = new_head(settings["scheme"][1] == "Q", backbone.num_features, len(train_images.classes), settings)
    with work.fabric.rank_zero_first():
        test = _features(test_images, backbone, settings, work)
        train: Examples = (
            AugmentedFeatures(train_images, backbone, work.fabric.device)
            if settings["augment"]
            else _features(train_images, backbone, settings, work)
        )

    def schedule(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> LRScheduler:
        return StepLR(optimizer, step_size=settings["lr_step"] * steps, gamma=settings["lr_gamma"])

    trainer = Trainer(head, cross_entropy, settings, work, scheduler=schedule)
    trainer.fit(train, test)
    if work.fabric.is_global_zero:
        save_predictions(
            work.folder,
            lambda rows: torch.stack([backbone.view(test_images.decode(row)) for row in rows.tolist()]),
            test_images.labels,
            trainer.test_scores,
        )
    return {
        "dataset": train_images.source,
        "classes": list(train_images.classes),
        "scheme": settings["scheme"],
        "pretrained": backbone.name,
        "head_parameters": sum(parameter.numel() for parameter in head.parameters()),
        "feature_circuits": sum(layer.total_circuits for layer in quantum_layers(backbone.model)),
        "feature_shots": sum(layer.total_shots for layer in quantum_layers(backbone.model)),
        "best_test_accuracy": max(row["test_accuracy"] for row in trainer.rows),
        **trainer.result(),
    }


def new_head(quantum: bool, num_features: int, num_classes: int, settings: Mapping[str, Any]) -> nn.Module:
    """A head from features (N, num_features) to the classes' scores (N, num_classes).

    The classical twin has a layer of as many tanh units in place of the circuit of ``num_qubits`` qubits: with the published
    settings for ants and bees 2082 parameters, where the dressed circuit has 2086.
    """
    qubits = settings["num_qubits"]
    if quantum:
        return DressedQuantumNet(
            num_features,
            num_classes,
            num_qubits=qubits,
            depth=settings["depth"],
            weight_spread=settings["weight_spread"],
            **layer_options(settings),
        )
    return nn.Sequential(
        nn.Linear(num_features, qubits), nn.Tanh(), nn.Linear(qubits, qubits), nn.Tanh(), nn.Linear(qubits, num_classes)
    )


def backbone_of(settings: Settings, work: Workplace) -> Backbone:
    """The pre-trained network of a scheme; it is trained first where that is asked for and has not been done."""
    network, weights = _pretrained(settings)
    if weights == "imagenet":
        with work.fabric.rank_zero_first():
            backbone = imagenet_backbone()
    else:
        path = pretrained_file(settings, network, work) if weights == "pretrain" else Path(weights)
        backbone = _from_file(path, settings)
    size = settings["image_size"]
    return backbone if size is None else replace(backbone, view=View(resize=round(size * 256 / 224), crop=size))


def cost(settings: Settings) -> str:
    """What the training of the head costs, and what comes before it."""
    train_images, test_images = images_of(settings)
    train, test = len(train_images), len(test_images)
    lines = [
        f"Data: {train_images.source}: {', '.join(train_images.classes)}; {train} images to train on, {test} to test."
    ]
    network, weights = _pretrained(settings)
    if weights != "pretrain":
        lines.append(f"Pre-trained {network}: {weights}.")
    else:
        folder = pretrained_folder(settings, network)
        state = "kept in" if folder.file("backbone.pt").is_file() else "still to be trained, then kept in"
        lines.append(f"Pre-trained {network}: on {settings_for(settings, network)['classes']}; {state} {folder.path}.")
    if network == "quantum":
        again = settings["epochs"] if settings["augment"] else 1
        (layer,) = quantum_layers(_quantum_network(settings))
        with torch.no_grad():
            quote = layer.quote(again * train + test)
        kept = "" if settings["augment"] else "; none if they are in the cache"
        lines.append(f"Features: {quote.circuits:,} circuits, {quote.shots:,} shots{kept}.")
    if settings["scheme"][1] == "C":
        return "\n".join([*lines, "No circuits in the head: it is classical."])
    layer = _quantum_head(settings).quantum
    return "\n".join([*lines, str(layer), cost_of_training(layer, settings, train=train, test=test)])


def draw(folder: RunFolder) -> None:
    """The figures of a run."""
    settings, result = folder.read_settings(), folder.read_result()
    title = f"{result['dataset']}, {settings['scheme']}"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    draw_predictions(folder, result["classes"], softmax_of_largest, title=title)
    if settings["scheme"][1] == "Q":
        head = _quantum_head(exactly(settings))
        folder.write_figure("circuit.png", circuit_diagram(head.quantum))


def _check(settings: Settings) -> None:
    """Refuses what one of the schemes cannot be, without a device, which a run opens only later."""
    settings = simulated(settings)
    network, weights = _pretrained(settings)
    if weights == "pretrain":
        settings_for(settings, network)
    elif weights != "imagenet":
        _from_file(Path(weights), settings)
    if network == "quantum":
        _quantum_network(settings)
    if settings["scheme"][1] == "Q":
        _quantum_head(settings)


def _pretrained(settings: Settings) -> tuple[str, str]:
    """Which network a scheme begins with, and where its weights come from: ``imagenet``, ``pretrain``, or a file."""
    if settings["scheme"][0] == "C":
        return "resnet18", settings["weights"]
    if settings["quantum_weights"] == "imagenet":
        raise ValueError("--quantum-weights: got 'imagenet', expected pretrain, or a file of a quantum network.")
    return "quantum", settings["quantum_weights"]


def _from_file(path: Path, settings: Settings) -> Backbone:
    expected = _pretrained(settings)[0]
    backbone = load_backbone(path, backend=settings["backend"], shots=settings["shots"])
    if backbone.network != expected:
        raise ValueError(
            f"--{'quantum-' if expected == 'quantum' else ''}weights: {path} holds a network {backbone.network}, expected "
            f"{expected} for scheme {settings['scheme']}."
        )
    return backbone


def _quantum_head(settings: Settings) -> DressedQuantumNet:
    """The circuit does not depend on how many features and classes there are."""
    head = new_head(True, 1, 2, settings)
    assert isinstance(head, DressedQuantumNet)
    return head


def _quantum_network(settings: Settings) -> nn.Module:
    return new_network("quantum", 2, backend=settings["backend"], shots=settings["shots"])


def _features(images: Images, backbone: Backbone, settings: Settings, work: Workplace) -> Rows:
    cache = RunFolder(Path(settings["cache"]) / "features")
    circuit = {name: settings[name] for name in ("shots", "seed")} | {"backend": word_of(settings["backend"])}
    features = cached_features(images, backbone, cache, work.fabric.device, circuit=circuit)
    return Rows(features, images.labels)


def _published(settings: Settings) -> float | None:
    """The published test accuracy, for the published settings; of a file nobody knows whether its weights are ImageNet's."""
    for accuracy, protocol in _PUBLISHED.items():
        if (_PROTOCOL | protocol).items() <= settings.items():
            return accuracy
    return None


EXPERIMENT = Experiment(
    "transfer", parser, train, draw, cost=cost, complete=complete, variants=variants, published=_published
)
