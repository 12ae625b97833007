"""The experiment ``pretrain``: a network for ``transfer``, trained on the classes that ``--exclude`` leaves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from tqdm import tqdm

from ..common.classifiers import cross_entropy
from ..common.experiment import Experiment
from ..common.options import saved_settings
from ..common.plots import draw_predictions, learning_curves, save_predictions, softmax_of_largest
from ..common.rows import Rows
from ..common.runner import Interrupted
from ..common.runs import RunFolder, brief
from ..common.training_costs import cost_of_training
from ..common.work import Work
from ..common.workplace import simulated_options
from .backbones import View, new_network, save_backbone
from .images import Images, images_of
from .transfer_settings import PretrainSettings, TransferSettings, names_in, with_data_root

_AS_IT_SUITS = {"resnet18": PretrainSettings(), "quantum": PretrainSettings(network="quantum", lr=0.02, image_size=8)}


def complete(settings: PretrainSettings) -> PretrainSettings:
    """Settles where the data come from and which classes are left; refuses what cannot be trained."""
    settings = with_data_root(settings)
    if settings.image_size < 8:
        raise ValueError(f"--image-size: got {settings.image_size}, expected at least 8 pixels.")
    there, excluded = images_of(settings)[0].classes, names_in(settings.exclude)
    if unknown := sorted(set(excluded) - set(there)):
        raise ValueError(f"--exclude: got {', '.join(unknown)}, expected some of {', '.join(there)}.")
    classes = [name for name in there if name not in excluded]
    if len(classes) < 2:
        raise ValueError(
            f"--exclude: got {settings.exclude!r}, which leaves {', '.join(classes) or 'no class'} of {settings.dataset}; "
            "expected at least two classes to train on."
        )
    if settings.network != "resnet18":
        new_network(settings.network, 2, **simulated_options(settings))  # which refuses what its layer cannot be
    return replace(settings, classes=",".join(classes))


def train(settings: PretrainSettings, work: Work) -> dict[str, Any]:
    """Trains the network and writes ``backbone.pt``; returns what it came to."""
    train_images, test_images = images_of(settings)
    _require_full_batches(len(train_images), settings, work)
    torch.manual_seed(settings.seed)
    names, convolutional = train_images.classes, settings.network != "quantum"
    network = new_network(settings.network, len(names), **work.layer_options()).to(memory_format=torch.channels_last)
    model = nn.Sequential(_ToUnit(), network)
    view = View(resize=settings.image_size, crop=settings.image_size)
    augment = None if settings.augment == "none" else partial(shifted, flip=settings.augment == "shift-flip")
    train = Rows(_pixels(train_images, view), train_images.labels, augment)
    test = Rows(_pixels(test_images, view), test_images.labels)
    for batch in work.steps(
        *(model, cross_entropy, train, test),
        optimizer=partial(torch.optim.AdamW, weight_decay=0.05) if convolutional else torch.optim.Adam,
        scheduler=_one_cycle,
        threads=None if convolutional else 1,
    ):
        scores = model(batch.inputs)
        batch.learn(cross_entropy(scores, batch.labels), scores)
    if work.is_first:
        work.folder.write("backbone.pt", save_backbone(network, settings.network, view, names, train_images.source))
        save_predictions(work.folder, lambda rows: test.inputs[rows] / 255, test.labels, work.test_scores)
    return {"dataset": train_images.source, "classes": list(names), "network": settings.network, **work.result()}


def settings_for(settings: TransferSettings) -> PretrainSettings:
    """How the network of a transfer is pre-trained: on the other classes of its data set.

    Raises:
        ValueError: If the data set has no two other classes.
    """
    others = replace(_AS_IT_SUITS[settings.network], dataset=settings.dataset, exclude=settings.classes)
    try:
        return complete(replace(others, data_root=settings.data_root, download=settings.download))
    except ValueError as error:
        raise ValueError(
            f"{settings.weights_option} pretrain: there is too little beside the target {settings.classes} "
            f"({brief(error)}); choose a smaller target with --classes, or train on another data set with "
            "'python -m experiments pretrain' and give its backbone.pt."
        ) from error


def pretrained_folder(settings: TransferSettings) -> RunFolder:
    """Where :func:`pretrained_file` keeps such a network."""
    dataset = Path(settings.dataset).resolve().name
    name = "-".join([settings.network, dataset, "without", *names_in(settings.classes)])
    return RunFolder(Path(settings.cache) / "pretrained" / name)


def pretrained_file(settings: TransferSettings, work: Work) -> Path:
    """The file of a network trained on the target data set's other classes; trained now if it is not there.

    Networks are kept in the folder that the settings name, and used again. Of several runs that need the same one at the
    same time, one trains it, and the others wait.

    Raises:
        ValueError: If the data set has no two other classes, one of its images is damaged (the target's too), or the folder
            holds a network that was trained otherwise.
        Interrupted: After Ctrl-C; it goes on where it was when it is called again.
    """
    folder, pretraining = pretrained_folder(settings), settings_for(settings)

    def is_kept() -> bool:
        return work.fabric.broadcast(_is_kept(folder, settings, pretraining))  # all processes go the same way

    if is_kept():
        return folder.file("backbone.pt")
    for images in images_of(settings):
        images.check()  # what the network is trained for, before time is spent on it
    with ExitStack() as lock:
        if work.is_first:
            lock.enter_context(folder.locked(wait=True))
        if not is_kept():
            _pretrain(folder, pretraining, work)
        work.fabric.barrier()
    return folder.file("backbone.pt")


def _is_kept(folder: RunFolder, settings: TransferSettings, pretraining: PretrainSettings) -> bool:
    if not folder.file("config.yaml").is_file():
        return False
    kept = saved_settings("pretrain", PretrainSettings, folder)
    # Where the data lie and where torch computes may have changed.
    kept = replace(kept, data_root=pretraining.data_root, download=pretraining.download, device=pretraining.device)
    if kept != pretraining:
        raise ValueError(
            f"{folder.path} holds a network that was trained with other settings; move it away, or use it with "
            f"{settings.weights_option} {folder.file('backbone.pt')}."
        )
    return folder.is_finished and folder.file("backbone.pt").is_file()


def _pretrain(folder: RunFolder, settings: PretrainSettings, work: Work) -> None:
    if work.is_first:
        print(f"-- pre-training {settings.network} on {settings.classes}; it is kept in {folder.path}")
    try:
        with work.elsewhere("pretrain", settings, folder) as own:
            result = train(settings, own)
    except Interrupted:
        if work.is_first:
            print("\nThe pre-training goes on where it is now when the command is given again.")
        raise
    if work.is_first:
        folder.write_result({"experiment": "pretrain", **result})
        draw(folder, settings)


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


def _require_full_batches(count: int, settings: PretrainSettings, work: Work) -> None:
    """Batch normalisation has no statistics of a single image once that is one pixel."""
    last = count % settings.batch_size or settings.batch_size
    if settings.network != "quantum" and last // work.fabric.world_size < 2:
        raise ValueError(
            f"--batch-size: got {settings.batch_size}, which leaves a last batch of {last} of the {count} images, for "
            f"{work.fabric.world_size} process(es); expected at least two for each: take another batch size."
        )


def _pixels(images: Images, view: View) -> torch.Tensor:
    """All images as bytes: shape (N, 3, size, size)."""
    rows = tqdm(range(len(images)), desc=f"reading {images.source}", leave=False, disable=None)
    return torch.stack([(view(images.decode(row)) * 255).round().to(torch.uint8) for row in rows])


def _one_cycle(optimizer: torch.optim.Optimizer, steps: int, epochs: int) -> LRScheduler:
    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps * epochs)


def cost(settings: PretrainSettings, options: Mapping[str, Any]) -> str:
    """What the training costs in circuits."""
    train, test = images_of(settings)
    network = new_network(settings.network, len(train.classes), **options)
    return f"Data: {train.source}. {cost_of_training(network, settings, train=len(train), test=len(test))}"


def draw(folder: RunFolder, settings: PretrainSettings) -> None:
    """The figures of a run."""
    draw_training(folder, f"{settings.network} on {folder.read_result()['dataset']}")


def draw_training(folder: RunFolder, title: str) -> None:
    """The figures of any training on images."""
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))
    draw_predictions(folder, folder.read_result()["classes"], softmax_of_largest, title=title)


EXPERIMENT = Experiment(
    name="pretrain", settings=PretrainSettings, train=train, figures=draw, cost=cost, complete=complete, extendable=()
)
