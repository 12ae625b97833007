"""Estimates that are made of several others, measured independently of each other, with their error bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backends.base import Estimate
from ..shots.covariance import Covariance

__all__ = ["combined"]


def combined(
    estimates: Sequence[Estimate], weights: Sequence[float | np.ndarray], values: np.ndarray | None = None
) -> Estimate:
    r"""The estimate of :math:`\sum_k w_k f_k`, from independent estimates of the same outputs.

    Its variances are :math:`\sum_k w_k^2 \, \mathrm{Var} f_k`, and so is its covariance, as a quadratic form. Circuits and
    shots are sums; the passport is the first one's, which names the jobs of all where they left in one call.

    Args:
        estimates: At least one, each of values of shape (N, M).
        weights: Of each, a number or shape (N, M).
        values: Shape (N, M): for a function of the estimates that is not linear, of which the weights are the derivatives;
            None: the weighted sum.
    """
    pairs = list(zip(weights, estimates, strict=True))
    first = estimates[0]
    if values is None:
        values = sum((w * each.values for w, each in pairs), np.zeros_like(first.values))
    variances = sum((np.square(w) * each.variances for w, each in pairs), np.zeros_like(first.variances))
    circuits, shots = sum(each.circuits for each in estimates), sum(each.shots for each in estimates)
    covariance = _covariance([(w, each.covariance) for w, each in pairs])
    return Estimate(values, variances, circuits, shots, passport=first.passport, covariance=covariance)


def _covariance(parts: Sequence[tuple[float | np.ndarray, Covariance | None]]) -> Covariance | None:
    """That of the sum, as if all had been measured with the shots of the first; None if one is not known."""
    known = [(weight, part) for weight, part in parts if part is not None]
    if len(known) < len(parts):
        return None
    first = known[0][1]

    def of_one_shot(upstream: np.ndarray) -> np.ndarray:
        variances = np.zeros(first.num_rows)
        for weight, part in known:
            # Exact values have infinitely many shots, all of them.
            equal = np.equal(first.shots, part.shots)
            ratio = np.where(equal, 1.0, np.divide(first.shots, part.shots, where=~equal, out=np.ones(np.shape(equal))))
            variances += part.of_one_shot(upstream * weight) * ratio
        return variances

    return Covariance(of_one_shot, first.shots, first.num_rows, weighted=True)
