"""Settings of data: which, and where they are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from .settings import StudySettings, TrainingSettings

S = TypeVar("S", bound="DigitSettings")


def data_root_from_environment() -> Path | None:
    """The folder that the environment variable ``QTB_DATA`` names, or None."""
    value = os.environ.get("QTB_DATA")
    return Path(value) if value else None


@dataclass(frozen=True, kw_only=True)
class DigitSettings(TrainingSettings):
    """What defines a training on images of handwritten digits.

    Attributes:
        dataset: digits: scikit-learn's; mnist: from --data-root; auto: mnist where there is a data root, else digits.
        download: Fetch MNIST into --data-root (default: data/) if it is missing.
    """

    dataset: Literal["auto", "digits", "mnist"] = "auto"
    download: bool = False

    @property
    def data_folder(self) -> Path | None:
        """Where MNIST is; None for scikit-learn's digits."""
        return Path(self.data_root) if self.data_root is not None and self.dataset == "mnist" else None


def _mnist_from_environment() -> str | None:
    root = data_root_from_environment()
    return None if root is None else str(root)


@dataclass(frozen=True, kw_only=True)
class DigitStudySettings(StudySettings):
    """What defines a study with trainings on images of handwritten digits.

    Attributes:
        data_root: Folder of MNIST, on every worker (default: QTB_DATA).
        dataset: digits: scikit-learn's; mnist: from --data-root; auto: mnist where there is a data root, else digits.
    """

    data_root: str | None = field(default_factory=_mnist_from_environment)
    dataset: Literal["auto", "digits", "mnist"] = "auto"

    def require_data_root(self) -> None:
        """Refuses MNIST without a place.

        Raises:
            ValueError: If it comes to that.
        """
        if self.dataset == "mnist" and self.data_root is None:
            raise ValueError("--dataset mnist: got no data root, expected --data-root or QTB_DATA.")

    @property
    def mnist_root(self) -> str | None:
        """Where MNIST is; None for scikit-learn's digits."""
        return None if self.dataset == "digits" else self.data_root


def with_digits(settings: S) -> S:
    """Settles where a new run's data come from, so that its settings say so.

    Raises:
        ValueError: If MNIST is asked for and there is no data root.
    """
    root = settings.data_root or data_root_from_environment()
    if root is None and settings.download:
        root = Path("data")
    dataset = settings.dataset
    if dataset == "auto":
        dataset = "digits" if root is None else "mnist"
    if dataset == "mnist" and root is None:
        raise ValueError("--dataset mnist: got no data root, expected --data-root, QTB_DATA or --download.")
    return replace(settings, dataset=dataset, data_root=None if dataset == "digits" else str(root))
