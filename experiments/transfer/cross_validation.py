"""Cross-validation: a part of the training images takes the place of the test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.rows import Examples

_SEED = 1912_08278
"""Of the division, which is the same for all trainings: what they differ in are their settings."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the examples.

    Attributes:
        examples: All of them.
        rows: The numbers of those that belong to the part, shape (n,).
    """

    examples: Examples
    rows: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`~experiments.common.rows.Examples`."""
        return self.examples.batch(self.rows[rows], training=training)


def fold(labels: torch.Tensor, folds: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows to train on and the rows to test on: one of several equal parts, with the same share of each class.

    Args:
        labels: Shape (N,).
        folds: How many parts there are.
        number: Which one is tested on, modulo the parts.

    Raises:
        ValueError: If a class has too few examples to be in all of them.
    """
    if folds < 2 or labels.bincount().min() < folds:
        raise ValueError(
            f"--folds: got {folds}, expected from 2 to {int(labels.bincount().min())}, the images of the smallest class."
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SEED))
    order = order[labels[order].argsort(stable=True)]  # class by class, so that every part has its share of each
    tested = torch.zeros(len(labels), dtype=torch.bool)
    tested[order[number % folds :: folds]] = True
    return (~tested).nonzero().flatten(), tested.nonzero().flatten()
