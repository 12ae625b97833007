"""Which images: the options that ``transfer`` and ``pretrain`` share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common.data import data_root_from_environment
from ..common.options import Settings
from .images import Images, load_images


def add_image_options(parser: Any, *, classes: str) -> None:
    """``--dataset``, ``--classes`` (whose help is given) and ``--download``."""
    parser.add_argument(
        "--dataset",
        type=str,
        default="digits",
        help="digits (scikit-learn's), ants-bees, cifar10, or a folder with train/CLASS and test/CLASS or val/CLASS.",
    )
    parser.add_argument("--classes", type=str | None, default=None, help=classes)
    parser.add_argument(
        "--download", action="store_true", help="Fetch CIFAR-10 into --data-root (default: data/) if it is missing."
    )


def with_data_root(settings: Settings) -> Settings:
    """Settles where a new run's data come from, so that its settings say so.

    Raises:
        ValueError: If a folder is named that would not be looked at.
    """
    if settings["data_root"] is not None and settings["dataset"] == "digits":
        raise ValueError(
            f"--data-root: got {settings['data_root']!r}, but the digits come with scikit-learn; say what to take from "
            "there with --dataset ants-bees or --dataset cifar10, or give a folder of your own images to --dataset."
        )
    root = settings["data_root"] or data_root_from_environment() or (Path("data") if settings["download"] else None)
    return {**settings, "data_root": None if root is None or settings["dataset"] == "digits" else str(root)}


def images_of(settings: Settings) -> tuple[Images, Images]:
    """Training and test images."""
    return load_images(
        settings["dataset"],
        data_root=None if settings["data_root"] is None else Path(settings["data_root"]),
        classes=names_in(settings["classes"]) or None,
        download=settings["download"],
    )


def names_in(classes: str | None) -> list[str]:
    """The names in such a list as ``cat,dog``."""
    return [] if classes is None else [name.strip() for name in classes.split(",")]
