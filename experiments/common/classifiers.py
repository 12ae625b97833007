"""What is said of classifiers: their decisions, their losses, and the quantum layers in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import QuantumLayer

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From scores of shape (N, scores) and labels of shape (N,) to the loss of each row, shape (N,)."""

Correct = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From scores and labels, as :data:`Loss`, to the share of each row that is right, shape (N,): numbers, or yes and no."""


def decisions(scores: torch.Tensor) -> torch.Tensor:
    """The class of each row: the largest of several scores; of a single one (a logit), whether it is positive."""
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(dim=1)


def decided_rightly(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each row is given its class."""
    return decisions(scores) == labels


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, for each row."""
    return F.cross_entropy(scores, labels, reduction="none")


def quantum_layers(model: nn.Module) -> list[QuantumLayer]:
    """The quantum layers of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, QuantumLayer)]


def queues(model: nn.Module) -> bool:
    """Whether the steps of a model wait in a queue."""
    return any(layer.backend.queues for layer in quantum_layers(model))
