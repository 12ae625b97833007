"""Writes the features of ants and bees that come with the repository, so that a head can be trained without any images.

    python -m experiments.transfer.stored_features --data-root FOLDER

``experiments/recordings/ants-bees-lite0.npz`` was made so; ``ants-bees-lite0.md`` beside it says what it holds, and its
licences.
"""

from __future__ import annotations

import io
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

from .backbones import imagenet_backbone
from .images import load_images

STORED = Path(__file__).parents[1] / "recordings" / "ants-bees-lite0.npz"
_NAMES = ("train_features", "train_labels", "test_features", "test_labels")


def stored_features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training features (244, 1280) and labels, test features (153, 1280) and labels; 0 is an ant, 1 is a bee."""
    with np.load(STORED, allow_pickle=False) as arrays:
        train, train_labels, test, test_labels = (torch.from_numpy(arrays[name]) for name in _NAMES)
    return train.float(), train_labels.long(), test.float(), test_labels.long()


def features_as_stored(data_root: Path) -> bytes:
    """The content of the file: EfficientNet-Lite0's features in half precision, labels, and the classes' names.

    Raises:
        FileNotFoundError: If the images are not there.
        OSError: If the package with the network's weights is not installed.
    """
    backbone, device = imagenet_backbone("efficientnet-lite0"), torch.device("cpu")
    arrays: dict[str, np.ndarray] = {}
    for part, images in zip(("train", "test"), load_images("ants-bees", data_root=data_root), strict=True):
        features = [
            backbone.features(images.seen(rows, backbone.view), device, seed=(0,))
            for rows in torch.arange(len(images)).split(8)
        ]
        arrays[f"{part}_features"] = torch.cat(features).half().numpy()
        arrays[f"{part}_labels"] = images.labels.to(torch.uint8).numpy()
        arrays["classes"] = np.array(images.classes)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def main() -> None:
    """Writes the file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with hymenoptera_data")
    parser.add_argument("--out", type=Path, default=STORED, help="the file to write")
    options = parser.parse_args()
    content = features_as_stored(options.data_root)
    options.out.write_bytes(content)
    print(f"{options.out}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
