"""Options of experiments on handwritten digits: MNIST, or scikit-learn's, which come with a dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .data import data_root_from_environment
from .options import Settings


def add_digit_options(parser: Any) -> None:
    """``--dataset`` and ``--download``."""
    add_dataset_option(parser)
    parser.add_argument(
        "--download", action="store_true", help="Fetch MNIST into --data-root (default: data/) if it is missing."
    )


def add_dataset_option(parser: Any) -> None:
    """``--dataset``."""
    parser.add_argument(
        "--dataset",
        choices=["auto", "digits", "mnist"],
        default="auto",
        help="digits: scikit-learn's; mnist: from --data-root; auto: mnist where there is a data root, else digits.",
    )


def with_digits(settings: Settings) -> Settings:
    """Settles where a new run's data come from, so that its settings say so.

    Raises:
        ValueError: If MNIST is asked for and there is no data root.
    """
    root = settings["data_root"] or data_root_from_environment()
    if root is None and settings["download"]:
        root = Path("data")
    dataset = settings["dataset"]
    if dataset == "auto":
        dataset = "digits" if root is None else "mnist"
    if dataset == "mnist" and root is None:
        raise ValueError("--dataset mnist: got no data root, expected --data-root, QTB_DATA or --download.")
    return {**settings, "dataset": dataset, "data_root": None if dataset == "digits" else str(root)}


def data_folder(settings: Settings) -> Path | None:
    """Where MNIST is; None for scikit-learn's digits."""
    return Path(settings["data_root"]) if settings["dataset"] == "mnist" else None
