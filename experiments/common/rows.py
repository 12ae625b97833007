"""Examples to train on, taken a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
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
        TypeError: If inputs or labels are no tensors, or the labels no integers of 64 bits.
        ValueError: If there is not one label for each row of the inputs.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("inputs", torch.float32), ("labels", torch.int64)):
            if not isinstance(values := getattr(self, name), torch.Tensor):
                raise TypeError(
                    f"{name}: got {type(values).__name__}, expected a tensor; make one: torch.tensor({name}, dtype={dtype})."
                )
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels: got {self.labels.dtype}, expected torch.int64; convert them: labels.long().")
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


def require_examples(name: str, examples: object, model: nn.Module) -> None:
    """Refuses what a model cannot be trained or tested on, before the first step.

    Args:
        name: What the examples are for.
        examples: Only :class:`Rows` are looked at: others may draw random numbers when they are asked for a batch.
        model: Takes inputs of the type of its weights, or bytes, which it converts; any if it has no weights or embeds.

    Raises:
        TypeError: If these are no examples, or inputs of another type.
    """
    if not isinstance(examples, Examples):
        raise TypeError(f"{name}: got {type(examples).__name__}, expected examples; make them: Rows(inputs, labels).")
    if not isinstance(examples, Rows) or any(isinstance(module, nn.Embedding) for module in model.modules()):
        return
    got, weights = examples.inputs.dtype, {parameter.dtype for parameter in model.parameters()}
    if weights and got not in {*weights, torch.uint8}:
        wanted = " or ".join(sorted(map(str, weights)))
        raise TypeError(
            f"{name}: got inputs of {got}, expected {wanted} as the model's weights; convert them: inputs.to({wanted})."
        )
