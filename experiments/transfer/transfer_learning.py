"""The experiment ``transfer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, StepLR

from ..common.classifiers import cross_entropy, quantum_layers
from ..common.comparison import Curve, seeds_figure
from ..common.experiment import Experiment
from ..common.options import saved_settings
from ..common.plots import circuit_diagram, save_predictions
from ..common.rows import Examples, Rows
from ..common.runs import RunFolder
from ..common.training_costs import cost_of_training, words
from ..common.work import Work
from ..common.workplace import exact_options, simulated_options
from .backbones import Backbone, View, imagenet_backbone, load_backbone, new_network
from .cross_validation import Part, fold
from .efficientnet import SCALES, is_installed, weights_file
from .features import AugmentedFeatures, cached_features, one_of_the_crops
from .heads import new_head
from .images import Images, images_of
from .pretraining import draw_training, pretrained_file, pretrained_folder, settings_for
from .transfer_settings import TransferSettings, names_in, with_data_root

SCHEMES = ("CC", "CQ", "QC", "QQ")
_DEFAULT_CLASSES = {"digits": "8,9", "cifar10": "cat,dog"}
_ANTS_BEES = TransferSettings(dataset="ants-bees", classes="ants,bees", scheme="CQ", weights="imagenet")
_CIFAR10 = replace(_ANTS_BEES, dataset="cifar10", epochs=3, batch_size=8)
_PUBLISHED = {
    0.967: _ANTS_BEES,
    0.827: replace(_CIFAR10, classes="cat,dog", lr=0.001, depth=5, lr_gamma=1.0),
    0.9605: replace(_CIFAR10, classes="airplane,automobile", lr=0.0007, depth=4, lr_step=3),
}


def complete(settings: TransferSettings) -> TransferSettings:
    """Settles where data and weights come from; refuses what cannot be trained, before a network is pre-trained for it."""
    schemes = names_in(settings.scheme)
    if not set(schemes) <= set(SCHEMES) or len(set(schemes)) != len(schemes):
        raise ValueError(
            f"--scheme: got {settings.scheme!r}, expected one or more of {', '.join(SCHEMES)}, such as CQ,CC."
        )
    weights = settings.weights
    if weights == "auto":
        weights = "pretrain" if settings.dataset == "digits" else "imagenet"
    backbone = settings.backbone
    if backbone == "auto":
        backbone = "efficientnet-lite2" if weights == "imagenet" and is_installed("efficientnet-lite2") else "resnet18"
    classes = settings.classes or _DEFAULT_CLASSES.get(settings.dataset)
    settings = replace(settings, scheme=",".join(schemes), backbone=backbone, weights=weights, classes=classes)
    settings = with_data_root(settings)
    settings = replace(settings, classes=",".join(images_of(settings)[0].classes))
    for settings_of_scheme in variants(settings).values():
        _check(settings_of_scheme)
    return settings


def variants(settings: TransferSettings) -> Mapping[str, TransferSettings]:
    """A training for each scheme."""
    return {scheme: replace(settings, scheme=scheme) for scheme in names_in(settings.scheme)}


def train(settings: TransferSettings, work: Work) -> dict[str, Any]:
    """Trains the head of one scheme on the features; returns what it came to."""
    train_images, test_images = images_of(settings)
    if settings.augment:  # else they are all read before the training, or have been
        train_images.check()
    backbone = backbone_of(settings, work)
    known = sorted(set(backbone.trained_on) & set(train_images.classes))
    if known and work.is_first:
        print(f"Mind that the pre-trained network has seen {', '.join(known)} before: it was trained on them.")
    torch.manual_seed(settings.seed)
    head = new_head(settings, backbone.num_features, len(train_images.classes), **work.layer_options())
    train: Examples = AugmentedFeatures(train_images, backbone, work.fabric.device)
    with work.fabric.rank_zero_first():
        if not settings.augment:
            train = features_of(train_images, backbone, settings, work)
        if settings.folds is None:
            test: Examples = features_of(test_images, backbone, settings, work)
    if settings.folds is not None:
        rest, tested = fold(train_images.labels, settings.folds, settings.seed)
        train, test, test_images = Part(train, rest), Part(train, tested), train_images.part(tested)

    def schedule(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> LRScheduler:
        return StepLR(optimizer, step_size=settings.lr_step * steps, gamma=settings.lr_gamma)

    for batch in work.steps(head, cross_entropy, train, test, scheduler=schedule):
        scores = head(batch.inputs)
        batch.learn(cross_entropy(scores, batch.labels), scores)
    if work.is_first:
        shown = partial(test_images.seen, view=replace(backbone.view, crops=1))
        save_predictions(work.folder, shown, test_images.labels, work.test_scores)
    layers = quantum_layers(backbone.model)
    return {
        "dataset": train_images.source,
        "classes": list(train_images.classes),
        "scheme": settings.scheme,
        "pretrained": backbone.name,
        "head_parameters": sum(parameter.numel() for parameter in head.parameters()),
        "feature_circuits": sum(layer.total_circuits for layer in layers),
        "feature_shots": sum(layer.total_shots for layer in layers),
        "best_test_accuracy": max(row["test_accuracy"] for row in work.rows),
        **work.result(),
    }


def backbone_of(settings: TransferSettings, work: Work) -> Backbone:
    """The pre-trained network of a scheme; it is trained first where that is asked for and has not been done."""
    weights, size = settings.weights_of_network, settings.image_size
    if weights == "imagenet":
        with work.fabric.rank_zero_first():
            backbone = imagenet_backbone(settings.network)
    else:
        path = pretrained_file(settings, work) if weights == "pretrain" else Path(weights)
        backbone = _from_file(path, settings, work.layer_options())
    view = backbone.view if size is None else View(resize=round(size * 256 / 224), crop=size)
    return replace(backbone, view=replace(view, mirror=settings.mirror, crops=settings.crops))


def cost(settings: TransferSettings, options: Mapping[str, Any]) -> str:
    """What the training of the head costs, and what comes before it."""
    images, test_images = images_of(settings)
    train, test = len(images), len(test_images)
    if settings.folds is not None:
        train, test = map(len, fold(images.labels, settings.folds, settings.seed))
    lines = [f"Data: {images.source}: {', '.join(images.classes)}; {train} images to train on, {test} to test."]
    weights = settings.weights_of_network
    if weights == "pretrain":
        folder = pretrained_folder(settings)
        state = "kept in" if folder.file("backbone.pt").is_file() else "still to be trained, then kept in"
        weights = f"on {settings_for(settings).classes}; {state} {folder.path}"
    views = ", and mirror images" * settings.mirror + ", and five crops of each image" * (settings.crops > 1)
    lines.append(f"Pre-trained {settings.network}: {weights}{views}.")
    if settings.network == "quantum":
        again = settings.epochs if settings.augment else 1
        (layer,) = quantum_layers(new_network("quantum", 2, **_simple(options)))
        with torch.no_grad():
            quote = layer.quote(settings.crops * (again * train + test))
        lines.append(f"Features: {words(quote)}{'' if settings.augment else ' None if they are in the cache.'}")
    if not settings.has_quantum_head:
        return "\n".join([*lines, "No circuits in the head: it is classical."])
    head = new_head(settings, 1, 2, **options)  # circuits do not depend on how many features and classes there are
    # Each crop of a test image is a circuit.
    return "\n".join([*lines, cost_of_training(head, settings, train=train, test=settings.crops * test)])


def draw(folder: RunFolder, settings: TransferSettings) -> None:
    """The figures of a run."""
    draw_training(folder, f"{folder.read_result()['dataset']}, {settings.scheme}")
    for layer in quantum_layers(new_head(settings, 1, 2, **exact_options(settings))):
        folder.write_figure("circuit.png", circuit_diagram(layer))


def published(settings: TransferSettings) -> float | None:
    """The published test accuracy, for the published settings; of a file nobody knows whether its weights are ImageNet's.

    Which network with ImageNet weights it is does not matter, nor whether it sees mirror images.
    """
    comparable = replace(settings, cache="runs", download=False, quantum_weights="pretrain")
    comparable = replace(comparable, backbone="auto", mirror=False)
    return next((accuracy for accuracy, its in _PUBLISHED.items() if comparable.follows(its)), None)


def draw_all(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """Of several seeds: what they reached at their best epoch, as it was published, and at the last."""
    settings = saved_settings("transfer", TransferSettings, folder)
    if settings.seeds == 1:
        return
    curves: dict[str, list[Curve]] = {}
    levels: dict[str, float | None] = {}
    for scheme, its in variants(settings).items():
        results = [part.read_result() for part in parts.values()]
        for epoch, key in (("best", "best_test_accuracy"), ("last", "test_accuracy")):
            name = f"{scheme}, {epoch} epoch"
            curves[name] = [Curve((), result[key]) for result in results if result["scheme"] == scheme]
            levels[name] = published(its) if epoch == "best" else None
    folder.write_figure("best-and-last.png", seeds_figure(curves, levels))


def _check(settings: TransferSettings) -> None:
    """Refuses what one of the schemes cannot be, without a device, which a run opens only later."""
    weights, options = settings.weights_of_network, simulated_options(settings)
    if weights == "pretrain" and settings.network in SCALES:
        raise ValueError(
            f"--backbone: got {settings.network} with --weights pretrain, expected resnet18, which can be trained here; or "
            "take --weights imagenet."
        )
    if weights == "imagenet" and settings.network in SCALES:
        weights_file(settings.network)  # which is there, or it says so before anything is written
    if weights == "pretrain":
        settings_for(settings)
    elif weights != "imagenet":
        _from_file(Path(weights), settings, options)
    elif settings.network == "quantum":
        raise ValueError("--quantum-weights: got 'imagenet', expected pretrain, or a file of a quantum network.")
    if settings.network == "quantum":
        new_network("quantum", 2, **_simple(options))
    if settings.augment and settings.crops > 1:
        raise ValueError("--crops: got 5 with --augment, which takes crops at random; choose one of them.")
    new_head(settings, 1, 2, **options)
    if settings.folds is not None:
        fold(images_of(settings)[0].labels, settings.folds, settings.seed)


def _simple(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a layer that is not trained."""
    return {name: options[name] for name in ("backend", "shots")}


def _from_file(path: Path, settings: TransferSettings, options: Mapping[str, Any]) -> Backbone:
    backbone = load_backbone(path, **_simple(options))
    if backbone.network != settings.network:
        raise ValueError(
            f"{settings.weights_option}: {path} holds a network {backbone.network}, expected {settings.network} for scheme "
            f"{settings.scheme}."
        )
    return backbone


def features_of(images: Images, backbone: Backbone, settings: TransferSettings, work: Work) -> Rows:
    """The features of all images of a scheme, with their labels; from the cache where they are in it.

    Where several crops are taken of an image, their features are a row each of its features, and training takes one of them.
    """
    cache = RunFolder(Path(settings.cache) / "features")
    circuit: dict[str, Any] = {"backend": settings.backend, "shots": settings.shots, "seed": settings.seed}
    if settings.noise is not None:
        circuit |= {"noise": asdict(settings.noise)}
    features = cached_features(images, backbone, cache, work.fabric.device, circuit=circuit)
    return Rows(features, images.labels, augment=one_of_the_crops if settings.crops > 1 else None)


EXPERIMENT = Experiment(
    name="transfer",
    settings=TransferSettings,
    train=train,
    figures=draw,
    draw_all=draw_all,
    cost=cost,
    complete=complete,
    variants=variants,
    published=published,
)
