r"""The classical Fisher information of what is measured: :math:`F_{ij} = \sum_m \partial_i p_m\,\partial_j p_m / p_m`.

An outcome of probability 0 has derivative 0 and no term. It is no larger than the quantum Fisher information, in the sense
of matrices: no measurement says more about the weights than the state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..bridge.evaluation import Derivative, Evaluation
from ..bridge.function import QuantumFunction
from ..bridge.method import Method
from ..program.angles import batch_size
from ..program.compiled import Program
from ..shots.seeding import SeedStream
from .metric import TrainedAngles

__all__ = ["classical_fisher_of"]

_LEAST = {"double": 1e-20, "single": 1e-10}
"""Of a probability: below, it is nothing but rounding."""


def classical_fisher_of(
    program: Program, method: Method, groups: Sequence[torch.Tensor], trained: TrainedAngles, jacobian: torch.Tensor
) -> torch.Tensor:
    """Shape (N, W, W), from exact values; differentiable where no probability is 0.

    Args:
        program: The compiled circuit, which reads probabilities.
        method: How they are computed, without shots.
        groups: The angles, a tensor of shape (N, A_g) or (1, A_g) a group.
        trained: The A' angles that count.
        jacobian: Their derivatives by the weights, shape (N, A', W) or (1, A', W).
    """
    rows = batch_size(groups)
    evaluation = Evaluation(program, method, seeds=SeedStream(0))
    sources = {1 + group for group in trained.groups}
    selected = [not sources.isdisjoint(group.sources) for group in program.angle_map.groups]
    derivative = Derivative.by_groups(evaluation, selected, rows)
    if not rows or not derivative.selection.columns:
        return torch.zeros((rows, trained.num_weights, trained.num_weights), dtype=torch.float64)
    probabilities = QuantumFunction.apply(evaluation, *groups).expand(rows, -1)
    by_angles = QuantumFunction.jacobian(derivative, groups)
    places = [trained.columns.index(column) for column in derivative.selection.columns]
    by_weights = jacobian[:, places].mT @ by_angles
    possible = probabilities > _LEAST[getattr(method.backend, "precision", "double")]
    roots = torch.where(possible, probabilities, 1.0).sqrt()
    scores = torch.where(possible.unsqueeze(1), by_weights / roots.unsqueeze(1), 0.0)
    return scores @ scores.mT
