"""Examples to train on, taken a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class Examples(Protocol):
    """Labelled examples; unlike torch's datasets they hand out whole batches, which is all that training asks for."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, rows: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (len(rows), ...) and labels (len(rows),); augmented, where that is wanted, if ``training``."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples in memory.

    Attributes:
        inputs: Shape (N, ...).
        labels: Shape (N,), int64.
        augment: Applied to the inputs of a batch in training; takes its randomness from torch's global generator.

    Raises:
        ValueError: If there is not one label for each row of the inputs.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.labels.shape != self.inputs.shape[:1]:
            raise ValueError(
                f"labels: got shape {tuple(self.labels.shape)}, expected {tuple(self.inputs.shape[:1])}, one for each row "
                "of the inputs."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Examples`."""
        inputs = self.inputs[rows]
        if training and self.augment is not None:
            inputs = self.augment(inputs)
        return inputs, self.labels[rows]
