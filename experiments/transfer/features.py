"""Features of images, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from tqdm import tqdm

from ..common.runs import RunFolder, brief
from .backbones import Backbone
from .images import Images

_BATCH, _BATCH_ON_CPU = 64, 8  # what a convolution of 64 images needs does not fit into the caches of a CPU


def cached_features(
    images: Images, backbone: Backbone, folder: RunFolder, device: torch.device, *, circuit: Mapping[str, Any]
) -> torch.Tensor:
    """The features of all images, from the cache where they are in it.

    The name of a file in the cache is a digest of everything that its content depends on (weights, the images' content and
    order, their size, versions), so that features of other weights or of images that have changed are never taken; a file
    that does not hold what its name says, or is damaged, is computed anew.

    Args:
        images: N images.
        backbone: Turns them into features.
        folder: The cache.
        device: Where the backbone computes.
        circuit: What else they depend on, if the backbone is quantum: backend, shots, seed.

    Returns:
        Shape (N, backbone.num_features), of several crops (N, crops, backbone.num_features); float32.

    Raises:
        ValueError: If an image is damaged.
        OSError: If the cache cannot be written.
    """
    key = {
        "images": images.fingerprint(),
        "weights": backbone.digest,
        "view": asdict(backbone.view),
        "circuit": dict(circuit) if backbone.network == "quantum" else {},
        "device": device.type,
        "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
    }
    text = json.dumps(key, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    crops = () if backbone.view.crops == 1 else (backbone.view.crops,)
    cached = _read(folder, f"{digest}.npz", text, (len(images), *crops, backbone.num_features))
    if cached is not None:
        return cached
    features = _compute(images, backbone, device, seed=int(digest, 16))
    folder.write_arrays(f"{digest}.npz", key=np.array(text), features=features.numpy())
    return features


def one_of_the_crops(features: torch.Tensor) -> torch.Tensor:
    """Features of one crop of each image, drawn at random: from (N, crops, num_features) to (N, num_features)."""
    images, crops, _ = features.shape
    return features[torch.arange(images), torch.randint(crops, (images,))]


def _read(folder: RunFolder, name: str, key: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    path = folder.file(name)
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:  # a zip file, with checksums
            features, saved_key = arrays["features"], str(arrays["key"])
    except Exception as error:  # damaged zip files raise whatever comes to the mind of what reads them
        print(f"The cached features in {path} are damaged ({brief(error)}); they are computed anew.")
        return None
    if saved_key != key or features.shape != shape or features.dtype != np.float32:
        print(f"The cached features in {path} belong to other images or weights; they are computed anew.")
        return None
    return torch.from_numpy(features)


def _compute(images: Images, backbone: Backbone, device: torch.device, *, seed: int) -> torch.Tensor:
    size = _BATCH_ON_CPU if device.type == "cpu" and backbone.network != "quantum" else _BATCH
    batches = tqdm(
        torch.arange(len(images)).split(size),
        desc=f"features of {images.source}",
        leave=False,
        disable=None,
        unit="batch",
    )
    return torch.cat(
        [backbone.features(images.seen(rows, backbone.view), device, seed=(seed, int(rows[0]))) for rows in batches]
    )


@dataclass(frozen=True, eq=False)
class AugmentedFeatures:
    """Examples whose images are changed at random and whose features are computed anew whenever they are asked for.

    Attributes:
        images: The images.
        backbone: Turns them into features.
        device: Where it computes.
    """

    images: Images
    backbone: Backbone
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (len(rows), num_features) and labels; of the images as they are, if not for training."""
        view = self.backbone.view.augmented if training else self.backbone.view
        if not len(rows):
            return torch.empty(0, self.backbone.num_features), self.images.labels[rows]
        pictures = self.images.seen(rows, view)
        seed = int(torch.randint(2**62, ()))  # from the generator whose state checkpoints hold
        return self.backbone.features(pictures, self.device, seed=(seed,)), self.images.labels[rows]
