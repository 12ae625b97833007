"""Frozen feature extractors: a truncated ResNet18 or EfficientNet-Lite, or a truncated dressed quantum net."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import v2

from qiskit_torch_bridge import DressedQuantumNet

from ..common.classifiers import quantum_layers
from ..common.runs import brief
from .efficientnet import MEAN, SCALES, STD, EfficientNetLite, imagenet_state, weights_file

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights want them
_TO_TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
_CATEGORIES = tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
_WITH_FC = ("resnet18", "resnet18-dressed", *SCALES)
_LAST_LAYERS = {"quantum": ("net", "post"), **dict.fromkeys(_WITH_FC, ("network", "fc"))}
_EXPECTED = "expected torchvision's ResNet18, or the backbone.pt that 'python -m experiments pretrain' writes."


@dataclass(frozen=True)
class View:
    """How an image is brought to the size that a network was trained with.

    Attributes:
        resize: Pixels of the shorter side.
        crop: Pixels of the square cut from the centre.
        mirror: Whether its features are means over the image and its mirror image.
        crops: Squares that are cut from it: 1, or 5, which are those at the four corners and that from the centre.
    """

    resize: int
    crop: int
    mirror: bool = False
    crops: int = 1

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Shape (3, crop, crop), of several crops (crops, 3, crop, crop); float32 in [0, 1]."""
        resized = v2.Resize(self.resize, antialias=True)(image)
        to_tensor = v2.Compose(_TO_TENSOR)
        if self.crops > 1:
            return torch.stack([to_tensor(square) for square in v2.FiveCrop(self.crop)(resized)])
        return to_tensor(v2.CenterCrop(self.crop)(resized))

    def augmented(self, image: Image.Image) -> torch.Tensor:
        """The same with a random part of the image and a random flip, as in PyTorch's tutorial on transfer learning."""
        changes = [v2.RandomResizedCrop(self.crop, antialias=True), v2.RandomHorizontalFlip()]
        return v2.Compose([*changes, *_TO_TENSOR])(image)


class _GreyPixels(nn.Module):
    """The image as 8 x 8 grey pixels: from shape (N, 3, height, width) to (N, 64), in [-1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (2 * F.adaptive_avg_pool2d(images.mean(dim=1), 8) - 1).flatten(1)


def new_network(network: str, num_outputs: int, **options: Any) -> nn.Sequential:
    """A network to be trained, from images (N, 3, height, width) in [0, 1] to scores (N, num_outputs).

    Args:
        network: ``resnet18``; ``resnet18-dressed``, whose last layer is a dressed circuit of four qubits; one of
            :data:`~experiments.transfer.efficientnet.SCALES`; or ``quantum``, a dressed circuit of eight qubits that sees
            8 x 8 grey pixels.
        num_outputs: Scores of an image.
        options: Of the quantum layer, where there is one.
    """
    if network == "quantum":
        net = DressedQuantumNet(64, num_outputs, num_qubits=8, depth=4, weight_spread=0.1, **options)
        return nn.Sequential(OrderedDict(pixels=_GreyPixels(), net=net))
    if network in SCALES:
        efficientnet = EfficientNetLite(SCALES[network], num_outputs)
        return nn.Sequential(OrderedDict(normalize=v2.Normalize(MEAN, STD), network=efficientnet))
    resnet = resnet18(weights=None, num_classes=num_outputs)
    if network == "resnet18-dressed":
        resnet.fc = DressedQuantumNet(resnet.fc.in_features, num_outputs, **options)
    return nn.Sequential(OrderedDict(normalize=v2.Normalize(_MEAN, _STD), network=resnet))


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its last layer, frozen.

    Attributes:
        name: For people.
        network: ``resnet18``, ``efficientnet-lite0``, ``efficientnet-lite2`` or ``quantum``.
        view: How images are brought to it.
        num_features: Features of an image.
        model: From images (N, 3, height, width) in [0, 1] to features (N, num_features).
        digest: Changes with any change of the weights.
        trained_on: The classes that it was trained on.
    """

    name: str
    network: str
    view: View
    _: KW_ONLY
    num_features: int
    model: nn.Module
    digest: str
    trained_on: tuple[str, ...]

    @torch.no_grad()
    def features(self, images: torch.Tensor, device: torch.device, *, seed: Sequence[int]) -> torch.Tensor:
        """Features (..., num_features) on the CPU, of images (..., 3, height, width).

        Args:
            images: In [0, 1]; the dimensions before are the images', or the images' and their crops'.
            device: Where they are computed.
            seed: Of the shots of a quantum network; the same images and seed give the same features.
        """
        self.model.eval()
        for layer in quantum_layers(self.model):
            layer.set_rng_state({"entropy": list(seed), "position": 0})
        flat, model = images.to(device).flatten(0, -4), self.model.to(device)
        features: torch.Tensor = model(flat)
        if self.view.mirror:
            features = (features + model(flat.flip(3))) / 2
        return features.cpu().unflatten(0, images.shape[:-3])


def imagenet_backbone(network: str) -> Backbone:
    """A network with ImageNet weights: torchvision's for a ResNet18, which it downloads once; else those of a package.

    Args:
        network: ``resnet18``, or one of :data:`~experiments.transfer.efficientnet.SCALES`.

    Raises:
        OSError: If they cannot be had.
        ValueError: If the file of the package holds something else.
    """
    if network in SCALES:
        return _from_package(network)
    try:
        state = ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"--weights imagenet: torchvision could not download them ({brief(error)}); give the file with --weights PATH, "
            "take --backbone efficientnet-lite2, whose weights are in a package; or train a network with "
            "'python -m experiments pretrain' and give its backbone.pt."
        ) from error
    return _from_torchvision("ResNet18 (ImageNet)", state, "torchvision's IMAGENET1K_V1")


def _from_package(network: str) -> Backbone:
    path, size = weights_file(network), SCALES[network].size
    model = new_network(network, len(_CATEGORIES))
    _load(model.get_submodule("network"), imagenet_state(path), str(path))
    model = model.to(memory_format=torch.channels_last)  # twice as fast on CPUs
    # As in TensorFlow's evaluation of these networks, 32 pixels of the shorter side are left out.
    return _backbone(f"{network} (ImageNet)", network, View(size + 32, size), model, _CATEGORIES)


def save_backbone(model: nn.Module, network: str, view: View, trained_on: tuple[str, ...], source: str) -> bytes:
    """A trained network from :func:`new_network` as the content of a file for :func:`load_backbone`."""
    buffer = io.BytesIO()
    facts = {"network": network, "view": asdict(view), "trained_on": list(trained_on), "source": source}
    torch.save({**facts, "model": model.state_dict()}, buffer)
    return buffer.getvalue()


def load_backbone(path: Path, **options: Any) -> Backbone:
    """Reads a file of :func:`save_backbone`, or torchvision's own weights of a ResNet18.

    Args:
        path: The file.
        options: Options of the quantum layer, where the network has one.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--weights: got {str(path)!r}, expected a file of weights, 'imagenet' or 'pretrain'.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"--weights: {path} is no file of weights that can be read ({brief(error)}); {_EXPECTED}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"--weights: {path} holds a {type(content).__name__}; {_EXPECTED}")
    if "network" not in content:
        return _from_torchvision(path.name, content, str(path))
    try:
        network, view, source = content["network"], View(**content["view"]), content["source"]
        trained_on, state = tuple(content["trained_on"]), dict(content["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--weights: {path} lacks what belongs to the weights ({brief(error)}); {_EXPECTED}"
        ) from error
    if str(network) not in _LAST_LAYERS:
        raise ValueError(f"--weights: {path} holds a network {network!r}, expected one of {', '.join(_LAST_LAYERS)}.")
    model = new_network(network, len(trained_on), **options)
    _load(model, state, str(path))
    return _backbone(f"{network} trained on {source} ({', '.join(trained_on)})", network, view, model, trained_on)


def _from_torchvision(name: str, state: Mapping[str, Any], where: str) -> Backbone:
    bias = state.get("fc.bias")
    classes = bias.numel() if isinstance(bias, torch.Tensor) else 1000
    model = new_network("resnet18", classes)
    _load(model.get_submodule("network"), state, where)
    trained_on = _CATEGORIES if classes == len(_CATEGORIES) else ()
    return _backbone(name, "resnet18", View(resize=256, crop=224), model, trained_on)


def _load(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    try:
        model.load_state_dict(dict(state))
    except Exception as error:  # which one depends on what the file holds
        why = shorten(brief(error), 200, placeholder=" ...")
        raise ValueError(f"--weights: {where} holds other weights ({why}); {_EXPECTED}") from error
    if strange := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"--weights: {where} holds numbers that are not finite, such as in {strange[0]}; {_EXPECTED}")


def _backbone(name: str, network: str, view: View, model: nn.Module, trained_on: tuple[str, ...]) -> Backbone:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    body, last = _LAST_LAYERS[network]
    layer = model.get_submodule(f"{body}.{last}")
    first = layer.pre if isinstance(layer, DressedQuantumNet) else layer
    assert isinstance(first, nn.Linear)
    setattr(model.get_submodule(body), last, nn.Identity())
    return Backbone(
        *(name, network, view),
        num_features=first.in_features,
        model=model.requires_grad_(False),
        digest=digest.hexdigest(),
        trained_on=trained_on,
    )
