"""Settings of ``transfer`` and ``pretrain``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..common.data_settings import data_root_from_environment
from ..common.kinds import NonNegativeFloat, PositiveFloat, PositiveInt
from ..common.settings import TrainingSettings

S = TypeVar("S", bound="ImageSettings")


@dataclass(frozen=True, kw_only=True)
class ImageSettings(TrainingSettings):
    """What defines a training on images.

    Attributes:
        dataset: digits (scikit-learn's), ants-bees, cifar10, or a folder with train/CLASS and test/CLASS or val/CLASS.
        classes: The classes (default: all).
        download: Fetch CIFAR-10 into --data-root (default: data/) if it is missing.
    """

    dataset: str = "digits"
    classes: str | None = None
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(ImageSettings):
    """A network for ``transfer``, trained on the classes that --exclude leaves; the defaults suit a ResNet18 on digits.

    Attributes:
        classes: The classes to train on (default: all).
        exclude: Classes to leave out, such as cat,dog.
        network: What to train: a ResNet18, one whose last layer is a dressed circuit of four qubits, or a dressed circuit.
        image_size: Pixels of a side that images are brought to.
        augment: Random shifts by up to an eighth of the image, and reflections (not for digits).
    """

    exclude: str | None = None
    network: Literal["resnet18", "resnet18-dressed", "quantum"] = "resnet18"
    image_size: PositiveInt = 32
    augment: Literal["none", "shift", "shift-flip"] = "shift"
    epochs: PositiveInt = 12
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 0.002


@dataclass(frozen=True, kw_only=True)
class TransferSettings(ImageSettings):
    """Quantum transfer learning: a pre-trained network without its last layer, frozen, and a new head on top of it.

    Mari et al., "Transfer learning in hybrid classical-quantum neural networks" (arXiv 1912.08278). Which of the two is
    classical (C) and which quantum (Q) makes the schemes CC, CQ, QC and QQ: the first letter is the pre-trained network (a
    ResNet18 or an EfficientNet-Lite, or a dressed quantum net on 8 x 8 pixels), the second the head (a dressed quantum
    circuit, or its classical twin). Features of the frozen network are computed once and kept on disk. The defaults are
    the settings published for ants and bees.

    Attributes:
        classes: The classes to tell apart (default: 8,9 of digits, cat,dog of cifar10, else all).
        scheme: CC, CQ, QC, QQ, or several of them: classical or quantum pre-trained network, then head.
        backbone: The pre-trained classical network. auto: efficientnet-lite2 where ImageNet weights are asked for and its
            package is installed (the extra "imagenet"), else resnet18.
        weights: Of that network: imagenet (torchvision downloads those of a ResNet18), pretrain (a ResNet18 trained here on
            the data set's other classes and kept in --cache), or a file: torchvision's ResNet18 or the backbone.pt of a run
            of pretrain. auto: pretrain for digits, else imagenet.
        quantum_weights: Of the pre-trained quantum network (schemes QC, QQ): pretrain, or a file of such a run of pretrain.
        image_size: Pixels of the square that is cut from an image (default: as the network was trained).
        mirror: Features are means over the image and its mirror image.
        crops: Squares cut from an image: 1, or 5 (from the centre and the four corners). Training takes one of the five at
            random at each step; in a test, the classes' probabilities are means over the five.
        augment: Random crops and flips; features are computed anew.
        num_qubits: Qubits of the head's circuit.
        depth: Variational layers of the head's circuit.
        reupload: The head's circuit takes its inputs before each variational layer, not before the first only.
        weight_spread: Spread of the circuit's initial weights, radians.
        lr_gamma: Factor on the learning rate ...
        lr_step: ... every so many epochs.
        folds: Cross-validation: the training images are shared out among so many parts, and the part of the seed's number
            (modulo the parts) takes the place of the test images, which are not looked at. null: no cross-validation.
        cache: Folder for features and for networks that are pre-trained here.
    """

    scheme: str = "CQ,CC"
    backbone: Literal["auto", "resnet18", "efficientnet-lite0", "efficientnet-lite2"] = "auto"
    weights: str = "auto"
    quantum_weights: str = "pretrain"
    image_size: PositiveInt | None = None
    mirror: bool = False
    crops: Literal[1, 5] = 1
    augment: bool = False
    num_qubits: PositiveInt = 4
    depth: PositiveInt = 6
    reupload: bool = False
    weight_spread: NonNegativeFloat = 0.01
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 4
    lr: PositiveFloat = 0.0004
    lr_gamma: PositiveFloat = 0.1
    lr_step: PositiveInt = 10
    folds: PositiveInt | None = None
    cache: str = "runs"

    @classmethod
    def of_today(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """See :class:`~experiments.common.settings.Settings`: a run that names no backbone had a ResNet18.

        A run names all its settings; a file of options that names few leaves the choice open.
        """
        is_a_run = {"device", "cache"} <= saved.keys()
        return {"backbone": "resnet18", **saved} if is_a_run else saved

    @property
    def network(self) -> str:
        """The pre-trained network of a scheme."""
        return "quantum" if self.scheme[0] == "Q" else self.backbone

    @property
    def weights_of_network(self) -> str:
        """Where its weights come from: ``imagenet``, ``pretrain``, or a file."""
        return self.quantum_weights if self.network == "quantum" else self.weights

    @property
    def weights_option(self) -> str:
        """The option that says so."""
        return "--quantum-weights" if self.network == "quantum" else "--weights"

    @property
    def has_quantum_head(self) -> bool:
        """Whether the head of a scheme is a circuit."""
        return self.scheme[1] == "Q"


def names_in(names: str | None) -> list[str]:
    """The names in such a list as ``cat,dog``."""
    return [] if names is None else [name.strip() for name in names.split(",")]


def with_data_root(settings: S) -> S:
    """Settles where a new run's data come from, so that its settings say so.

    Raises:
        ValueError: If a folder is named that would not be looked at.
    """
    if settings.dataset == "digits":
        if settings.data_root is not None:
            raise ValueError(
                f"--data-root: got {settings.data_root!r}, but the digits come with scikit-learn; say what to take from "
                "there with --dataset ants-bees or --dataset cifar10, or give a folder of your own images to --dataset."
            )
        return settings
    root = settings.data_root or data_root_from_environment() or (Path("data") if settings.download else None)
    return replace(settings, data_root=None if root is None else str(root))
