"""Variances with their errors, and the exponential that fits them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..common.least_squares import least_squares


@dataclass(frozen=True)
class Spread:
    """The variance of numbers whose mean is known to be zero, from sums over samples.

    Attributes:
        samples: How many.
        variance: The mean of their squares.
        error: Its standard error, from the fourth moment.
    """

    samples: int
    variance: float
    error: float

    @classmethod
    def of(cls, samples: int, squares: float, fourths: float) -> Spread:
        """From the number of samples and the sums of their second and fourth powers."""
        variance = squares / samples
        return cls(samples, variance, math.sqrt(max(fourths / samples - variance**2, 0.0) / (samples - 1)))


@dataclass(frozen=True, kw_only=True)
class ExponentialFit:
    """A straight line through logarithms.

    Attributes:
        slope: Of the natural logarithm, a qubit.
        low: The lower end of the slope's 95 % confidence interval, from the errors by normal theory.
        high: Its upper end.
        intercept: The logarithm at zero qubits.
        chi_square: The weighted sum of squared residuals.
        freedom: Its degrees of freedom.
    """

    slope: float
    low: float
    high: float
    intercept: float
    chi_square: float
    freedom: int


def fit_exponential(sizes: Sequence[float], spreads: Sequence[Spread]) -> ExponentialFit:
    """Weighted least squares through the logarithms of variances, each with the relative error of its variance.

    Args:
        sizes: The numbers of qubits, at least two different ones.
        spreads: The variances, with errors above zero.

    Raises:
        ValueError: If no line is determined, or a variance or its error is zero.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes: got {list(sizes)}, expected at least two different ones.")
    if not all(spread.variance > 0 and spread.error > 0 for spread in spreads):
        raise ValueError("spreads: got a variance or an error of zero, expected both above it; take more samples.")
    x, y = np.asarray(sizes, dtype=float), np.log([spread.variance for spread in spreads])
    errors = np.array([spread.error / spread.variance for spread in spreads])
    (slope, intercept), covariance = least_squares(np.stack([x, np.ones_like(x)], axis=1), y, errors)
    reach = NormalDist().inv_cdf(0.975) * math.sqrt(covariance[0, 0])
    residuals = (y - slope * x - intercept) / errors
    return ExponentialFit(
        slope=float(slope),
        low=float(slope - reach),
        high=float(slope + reach),
        intercept=float(intercept),
        chi_square=float(residuals @ residuals),
        freedom=len(x) - 2,
    )
