"""Straight lines through logarithms of variances, each with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

REACH = NormalDist().inv_cdf(0.975)
"""Of a 95 % confidence interval to either side, in standard errors."""


@dataclass(frozen=True)
class MeanSquare:
    """A mean square, which is a variance where the mean is known to be zero; and its standard error."""

    value: float
    error: float

    @classmethod
    def of_sums(cls, count: int, squares: float, fourths: float) -> MeanSquare:
        """From the sums of second and fourth powers of so many numbers."""
        value = squares / count
        return cls(value, math.sqrt(max(fourths / count - value**2, 0.0) / (count - 1)))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A straight line with the standard error of its slope.

    Attributes:
        slope: Of natural logarithms.
        error: Its standard error, from those of the variances alone.
        intercept: The logarithm at zero.
        chi_square: The weighted sum of squared residuals.
        freedom: Its degrees of freedom.
    """

    slope: float
    error: float
    intercept: float
    chi_square: float
    freedom: int

    @property
    def low(self) -> float:
        """The lower end of the slope's 95 % confidence interval, by normal theory."""
        return self.slope - REACH * self.error

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.slope + REACH * self.error


def fit_line(places: Sequence[float], variances: Sequence[MeanSquare]) -> Line:
    """Weighted least squares through the logarithms of variances, each with its relative error.

    Args:
        places: At least two different numbers.
        variances: At each of them.

    Raises:
        ValueError: If no line is determined, or a variance or its error is zero.
    """
    if (different := len(set(places))) < 2:
        raise ValueError(f"got {different} place to fit a line through, expected at least two different numbers.")
    if not all(each.value > 0 and each.error > 0 for each in variances):
        raise ValueError(
            "got a variance or an error of zero, expected both above it; take more samples or more repeats."
        )
    x, y = np.asarray(places, dtype=float), np.log([each.value for each in variances])
    weights = np.array([each.value / each.error for each in variances])
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=weights, cov="unscaled")
    residuals = weights * (y - slope * x - intercept)
    return Line(
        slope=float(slope),
        error=math.sqrt(covariance[0, 0]),
        intercept=float(intercept),
        chi_square=float(residuals @ residuals),
        freedom=len(x) - 2,
    )
