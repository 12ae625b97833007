r"""The metric from shots: second derivatives of the fidelity by parameter shift.

The Fubini-Study metric is minus half the matrix of second derivatives of :math:`F(\delta) =
|\langle\psi(\theta)|\psi(\theta + \delta)\rangle|^2` at 0, and between angles the two-term rule gives each exactly (Mari,
Bromley and Killoran, arXiv:2008.06517): with :math:`s = \pi/2`,

.. math:: g_{ab} = -\tfrac18\left[F(s e_a + s e_b) - F(s e_a - s e_b) - F(-s e_a + s e_b) + F(-s e_a - s e_b)\right],
    \qquad g_{aa} = \tfrac14\left[1 - F(\pi e_a)\right].

Of A angles that is a circuit a row for each, and four for each pair: A + 2 A (A - 1) for all entries, fewer for blocks, A
for the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..backends.base import Estimate
from ..bridge.functional import Tally
from ..bridge.method import Method
from ..shots.seeding import SeedStream
from .matrix_result import MatrixResult
from .metric import TrainedAngles
from .overlaps import Overlaps

__all__ = ["measured_metric", "num_points"]

_SIGNS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])


def _pairs(trained: TrainedAngles, approximation: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The places of the two angles of each pair that is not left out."""
    width = len(trained.columns)
    first, second = np.triu_indices(0 if approximation == "diag" else width, k=1)
    if approximation == "block-diag":
        kept = trained.same_layer[first, second]
        first, second = first[kept], second[kept]
    return first, second


def num_points(trained: TrainedAngles, approximation: str | None) -> int:
    """How many circuits a row takes."""
    return len(trained.columns) + 4 * len(_pairs(trained, approximation)[0])


def _shifts(trained: TrainedAngles, approximation: str | None) -> np.ndarray:
    """Shape (K, A): of the diagonal, then four of each pair."""
    columns = np.array(trained.columns, np.int64)
    first, second = (columns[places] for places in _pairs(trained, approximation))
    shifts = np.zeros((len(columns) + 4 * len(first), trained.program.num_columns))
    shifts[np.arange(len(columns)), columns] = math.pi
    rows = len(columns) + np.arange(4 * len(first)).reshape(-1, 4)
    shifts[rows, first[:, None]] += _SIGNS[:, 0] * math.pi / 2
    shifts[rows, second[:, None]] += _SIGNS[:, 1] * math.pi / 2
    return shifts


def measured_metric(
    overlaps: Overlaps,
    method: Method,
    groups: Sequence[torch.Tensor],
    trained: TrainedAngles,
    jacobian: torch.Tensor,
    *,
    approximation: str | None,
    seeds: SeedStream,
) -> MatrixResult:
    """The metric from measured fidelities; one backend call.

    Args:
        overlaps: The fidelities' circuit.
        method: How they are measured.
        groups: The angles, a tensor of shape (N, A_g) a group.
        trained: The A' angles that count.
        jacobian: Their derivatives by the weights, shape (N, A', W) or (1, A', W).
        approximation: Which entries between angles are left out.
        seeds: Where the randomness comes from.
    """
    rows, width = len(groups[0]), len(trained.columns)
    slopes = jacobian.detach().numpy()
    if not rows or not width:
        nothing = np.zeros((rows, trained.num_weights, trained.num_weights))
        return MatrixResult(nothing, nothing, 0, 0)
    shifts = torch.as_tensor(_shifts(trained, approximation))
    moved, still = [], []
    for group, span in zip(groups, trained.program.angle_map.slices, strict=True):
        points = group.detach().unsqueeze(1) + shifts[:, span]
        moved.append(points.flatten(0, 1))
        still.append(group.detach().unsqueeze(1).expand_as(points).flatten(0, 1))
    estimates: list[Estimate] = []
    with torch.no_grad():
        tally = Tally(observe=lambda _, estimate: estimates.append(estimate))
        overlaps.measure(method, still, moved, seeds=seeds, tally=tally)
    (estimate,) = estimates
    fidelities, variances = (numbers[:, 0].reshape(rows, -1) for numbers in (estimate.values, estimate.variances))
    metric, variance = (
        _between_angles(fidelities, trained, approximation),
        _variances(variances, trained, approximation),
    )
    return MatrixResult(
        np.swapaxes(slopes, 1, 2) @ metric @ slopes,
        np.sqrt(_variances_of_weights(variance, slopes)),
        estimate.circuits,
        estimate.shots,
        passport=estimate.passport,
    )


def _between_angles(fidelities: np.ndarray, trained: TrainedAngles, approximation: str | None) -> np.ndarray:
    """Shape (N, A', A')."""
    width, (first, second) = len(trained.columns), _pairs(trained, approximation)
    metric = np.zeros((len(fidelities), width, width))
    metric[:, range(width), range(width)] = (1.0 - fidelities[:, :width]) / 4
    signs = _SIGNS.prod(axis=1)
    entries = -(fidelities[:, width:].reshape(len(fidelities), -1, 4) @ signs) / 8
    metric[:, first, second] = metric[:, second, first] = entries
    return metric


def _variances(variances: np.ndarray, trained: TrainedAngles, approximation: str | None) -> np.ndarray:
    """Shape (N, A', A'): of the entries between angles."""
    width, (first, second) = len(trained.columns), _pairs(trained, approximation)
    squares = np.zeros((len(variances), width, width))
    squares[:, range(width), range(width)] = variances[:, :width] / 16
    entries = variances[:, width:].reshape(len(variances), -1, 4).sum(axis=2) / 64
    squares[:, first, second] = squares[:, second, first] = entries
    return squares


def _variances_of_weights(variances: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Shape (N, W, W): of ``sum_ab J_ai g_ab J_bj``, where g_ab and g_ba are one and the same measured number."""
    apart = variances * (1.0 - np.eye(variances.shape[1]))
    squares = slopes**2
    products = slopes[:, :, :, None] * slopes[:, :, None, :]  # J_ai J_aj
    crossed = np.einsum("nab,naij,nbij->nij", apart, products, products, optimize=True)
    return np.swapaxes(squares, 1, 2) @ variances @ squares + crossed
