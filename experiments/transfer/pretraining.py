"""The experiment ``pretrain``: a network for ``transfer``, trained on the classes that ``--exclude`` leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm

from ..common.experiment import Experiment
from ..common.hardware import simulated
from ..common.options import Settings, add_option, experiment_parser, saved_settings, settings_of
from ..common.plots import draw_predictions, learning_curves, save_predictions, softmax_of_largest
from ..common.rows import Rows
from ..common.runs import RunFolder, brief
from ..common.trainer import Interrupted, Trainer, cross_entropy, quantum_layers
from ..common.training_costs import cost_of_training
from ..common.workplace import Workplace, layer_options
from .backbones import NETWORKS, View, new_network, save_backbone
from .images import Images, add_image_options, images_of, names_in, with_data_root

_AS_IT_SUITS = {"resnet18": [], "quantum": ["--lr", "0.02", "--image-size", "8"]}


def parser() -> Any:
    """The experiment's options; the defaults suit a ResNet18 on scikit-learn's digits."""
    parser = experiment_parser("pretrain", __doc__ or "", epochs=12, batch_size=64, lr=0.002)
    add = partial(add_option, parser)
    add_image_options(parser, classes="The classes to train on (default: all).")
    add("--exclude", str | None, None, "Classes to leave out, such as cat,dog.")
    add("--network", NETWORKS, "resnet18", "What to train.")
    add("--image-size", PositiveInt, 32, "Pixels of a side that images are brought to.")
    changes = "Random shifts by up to an eighth of the image, and reflections (not for digits)."
    add("--augment", ["none", "shift", "shift-flip"], "shift", changes)
    return parser


def complete(settings: Settings) -> Settings:
    """Settles where the data come from and which classes are left; refuses what cannot be trained."""
    settings = with_data_root(settings)
    if settings["image_size"] < 8:
        raise ValueError(f"--image-size: got {settings['image_size']}, expected at least 8 pixels.")
    there, excluded = images_of(settings)[0].classes, names_in(settings["exclude"])
    if unknown := sorted(set(excluded) - set(there)):
        raise ValueError(f"--exclude: got {', '.join(unknown)}, expected some of {', '.join(there)}.")
    classes = [name for name in there if name not in excluded]
    if len(classes) < 2:
        raise ValueError(
            f"--exclude: got {settings['exclude']!r}, which leaves {', '.join(classes) or 'no class'} of "
            f"{settings['dataset']}; expected at least two classes to train on."
        )
    if settings["network"] == "quantum":
        _network(simulated(settings), len(classes))  # which refuses what its layer cannot be
    return {**settings, "classes": ",".join(classes)}


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains the network and writes ``backbone.pt``; returns what it came to."""
    train_images, test_images = images_of(settings)
    _require_full_batches(len(train_images), settings, work)
    torch.manual_seed(settings["seed"])
    model = _network(settings, len(train_images.classes)).to(memory_format=torch.channels_last)
    view = View(resize=settings["image_size"], crop=settings["image_size"])
    train, test = (_pixels(images, view) for images in (train_images, test_images))
    names, network = train_images.classes, settings["network"]
    augment = partial(shifted, flip=settings["augment"] == "shift-flip")
    trainer = Trainer(
        nn.Sequential(_ToUnit(), model),
        cross_entropy,
        settings,
        work,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.05) if network == "resnet18" else torch.optim.Adam,
        scheduler=_one_cycle,
        threads=None if network == "resnet18" else 1,
    )
    trainer.fit(
        Rows(train, train_images.labels, None if settings["augment"] == "none" else augment),
        Rows(test, test_images.labels),
    )
    if work.fabric.is_global_zero:
        work.folder.write("backbone.pt", save_backbone(model, network, view, names, train_images.source))
        save_predictions(work.folder, lambda rows: test[rows] / 255, test_images.labels, trainer.test_scores)
    return {"dataset": train_images.source, "classes": list(names), "network": network, **trainer.result()}


def settings_for(settings: Settings, network: str) -> Settings:
    """How a network is pre-trained for a transfer: on the other classes of its data set.

    Args:
        settings: Of the transfer.
        network: ``resnet18`` or ``quantum``.

    Raises:
        ValueError: If the data set has no two other classes.
    """
    pretraining = settings_of(parser().parse_args(["--network", network, *_AS_IT_SUITS[network]]))
    shared = {name: settings[name] for name in ("dataset", "data_root", "download")}
    try:
        return complete({**pretraining, **shared, "exclude": settings["classes"]})
    except ValueError as error:
        raise ValueError(
            f"--{'quantum-' if network == 'quantum' else ''}weights pretrain: there is too little beside the target "
            f"{settings['classes']} ({brief(error)}); choose a smaller target with --classes, or train on another data set "
            "with 'python -m experiments pretrain' and give its backbone.pt."
        ) from error


def pretrained_folder(settings: Settings, network: str) -> RunFolder:
    """Where :func:`pretrained_file` keeps such a network."""
    dataset = Path(settings["dataset"]).resolve().name
    name = "-".join([network, dataset, "without", *names_in(settings["classes"])])
    return RunFolder(Path(settings["cache"]) / "pretrained" / name)


def pretrained_file(settings: Settings, network: str, work: Workplace) -> Path:
    """The file of a network trained on the target data set's other classes; trained now if it is not there.

    Args:
        settings: Of the transfer.
        network: ``resnet18`` or ``quantum``.
        work: Of the transfer; networks are kept in the folder that its settings name, and used again.

    Raises:
        ValueError: If the data set has no two other classes, one of its images is damaged (the target's too), or the folder
            holds a network that was trained otherwise.
        Interrupted: After Ctrl-C; it goes on where it was when it is called again.
    """
    pretraining, folder = settings_for(settings, network), pretrained_folder(settings, network)
    if folder.file("config.yaml").is_file() and _what(saved_settings(parser(), folder)) != _what(pretraining):
        raise ValueError(
            f"{folder.path} holds a network that was trained with other settings; move it away, or use it with "
            f"--{'quantum-' if network == 'quantum' else ''}weights {folder.file('backbone.pt')}."
        )
    if not (folder.is_finished and folder.file("backbone.pt").is_file()):
        for images in images_of(settings):
            images.check()  # what the network is trained for, before time is spent on it
        first = work.fabric.is_global_zero
        if first:
            print(f"-- pre-training {network} on {pretraining['classes']}; it is kept in {folder.path}")
        try:
            result = train(pretraining, Workplace(folder, work.fabric, resume=True))
        except Interrupted:
            if first:
                print("\nThe pre-training goes on where it is now when the command is given again.")
            raise
        if first:
            folder.write_result({"experiment": "pretrain", **result})
            draw(folder)
        work.fabric.barrier()
    return folder.file("backbone.pt")


def shifted(pixels: torch.Tensor, *, flip: bool) -> torch.Tensor:
    """Each image moved by up to an eighth of its size either way (what comes in is its reflection), and perhaps mirrored.

    Args:
        pixels: Shape (N, channels, size, size).
        flip: Whether half of the images are mirrored left to right.
    """
    count, _, size, _ = pixels.shape
    most = max(1, size // 8)
    padded = F.pad(pixels.float(), [most] * 4, mode="reflect")
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1))
    rows, columns = down + torch.arange(size), right + torch.arange(size)
    if flip:
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _ToUnit(nn.Module):
    """From bytes to [0, 1], channels last in memory: convolutions on CPUs are up to twice as fast so."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def _what(settings: Settings) -> Settings:
    """Without what only says where the data lie and where torch computes."""
    return {name: value for name, value in settings.items() if name not in ("data_root", "download", "device")}


def _require_full_batches(count: int, settings: Settings, work: Workplace) -> None:
    """Batch normalisation has no statistics of a single image once that is one pixel."""
    last = count % settings["batch_size"] or settings["batch_size"]
    if settings["network"] == "resnet18" and last // work.fabric.world_size < 2:
        raise ValueError(
            f"--batch-size: got {settings['batch_size']}, which leaves a last batch of {last} of the {count} images, for "
            f"{work.fabric.world_size} process(es); expected at least two for each: take another batch size."
        )


def _network(settings: Settings, num_classes: int) -> nn.Module:
    if settings["network"] == "resnet18":
        return new_network("resnet18", num_classes)
    return new_network("quantum", num_classes, **layer_options(settings))


def _pixels(images: Images, view: View) -> torch.Tensor:
    """All images as bytes: shape (N, 3, size, size)."""
    progress = tqdm(range(len(images)), desc=f"reading {images.source}", leave=False, disable=None)
    return torch.stack([(view(images.decode(row)) * 255).round().to(torch.uint8) for row in progress])


def _one_cycle(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps * epochs)


def cost(settings: Settings) -> str:
    """What the training costs in circuits."""
    if settings["network"] == "resnet18":
        return "No circuits: the network is classical."
    layer = quantum_layers(_network(settings, 2))[0]
    train_images, test_images = images_of(settings)
    total = cost_of_training(layer, settings, train=len(train_images), test=len(test_images))
    return f"Data: {train_images.source}. {layer}\n{total}"


def draw(folder: RunFolder) -> None:
    """The figures of a run."""
    settings, result = folder.read_settings(), folder.read_result()
    title = f"{settings['network']} on {result['dataset']}"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    draw_predictions(folder, result["classes"], softmax_of_largest, title=title)


EXPERIMENT = Experiment("pretrain", parser, train, draw, cost=cost, complete=complete, extendable=())
