"""Least squares with known errors: lines through logarithms of variances, power laws, and plateaus on which laws end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

REACH = NormalDist().inv_cdf(0.975)
"""Of a 95 % confidence interval to either side, in standard errors."""

_ROUNDS = 20  # of reweighting; two or three would do


def standard_error(values: np.ndarray) -> float:
    """That of the mean of independent numbers, shape (N,), from their scatter."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


class MeanSquare(NamedTuple):
    """A mean square, which is a variance where the mean is known to be zero; and its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, squares: np.ndarray) -> MeanSquare:
        """That of independent squares, shape (N,)."""
        return cls(float(squares.mean()), standard_error(squares))

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
    def interval(self) -> tuple[float, float]:
        """The slope's 95 % confidence interval, by normal theory."""
        return self.slope - REACH * self.error, self.slope + REACH * self.error


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
    values, errors = np.transpose(variances)
    if not (values > 0).all() or not (errors > 0).all():
        raise ValueError(
            "got a variance or an error of zero, expected both above it; take more samples or more repeats."
        )
    x, y, weights = np.asarray(places, dtype=float), np.log(values), values / errors
    (slope, intercept), covariance = np.polyfit(x, y, 1, w=weights, cov="unscaled")
    residuals = weights * (y - slope * x - intercept)
    return Line(
        slope=float(slope),
        error=math.sqrt(covariance[0, 0]),
        intercept=float(intercept),
        chi_square=float(residuals @ residuals),
        freedom=len(x) - 2,
    )


@dataclass(frozen=True, kw_only=True)
class PowerLaw(Line):
    """A straight line through logarithms of standard errors against logarithms of shots.

    Attributes:
        slope_of_theory: The slope of the same fit, with the same weights, through the theory at the same shots.
        chi_square: Of the measured points about the theory itself.
        freedom: One a point, because nothing is fitted for it.
    """

    slope_of_theory: float

    @property
    def z(self) -> float:
        """How far the slope is from that of the theory, in standard errors."""
        return (self.slope - self.slope_of_theory) / self.error


def fit_power_law(shots: Sequence[float], variances: Sequence[MeanSquare], theory: Sequence[float]) -> PowerLaw:
    """Fits the exponent of standard errors, given as variances with the errors of those.

    Args:
        shots: At least two different numbers.
        variances: At each of them.
        theory: The variances that theory has there.

    Raises:
        ValueError: If there are too few different numbers of shots, or a variance or its error is zero.
    """
    places, expected = np.log(shots).tolist(), np.asarray(theory)
    measured = fit_line(places, variances)
    values, errors = np.transpose(variances)
    in_theory = fit_line(places, list(map(MeanSquare, expected, expected * errors / values)))
    return PowerLaw(  # of standard errors: half of what it is of variances
        slope=measured.slope / 2,
        error=measured.error / 2,
        intercept=measured.intercept / 2,
        slope_of_theory=in_theory.slope / 2,
        chi_square=float(((np.log(values / expected) * values / errors) ** 2).sum()),
        freedom=len(shots),
    )


@dataclass(frozen=True)
class Plateau:
    r"""A mean squared error :math:`a/S + b^2` of S shots.

    Attributes:
        one_shot: :math:`a`, the variance of a single shot.
        square: :math:`b^2`, the squared bias; may come out below zero where there is none.
        error: The standard error of :math:`b^2`.
    """

    one_shot: float
    square: float
    error: float

    @property
    def bias(self) -> float:
        """The size of the bias."""
        return math.sqrt(max(self.square, 0.0))

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % confidence interval."""
        low, high = (math.sqrt(max(self.square + side * self.error, 0.0)) for side in (-REACH, REACH))
        return low, high

    def z(self, bias: float) -> float:
        """How far its square is from that of a known bias, in standard errors."""
        return (self.square - bias**2) / self.error


def fit_plateau(shots: Sequence[float], mean_squares: Sequence[float], repeats: int) -> Plateau:
    r"""Fits mean squared errors, each over so many repeats.

    A squared error whose root is normal with mean b and variance :math:`v = a/S` has the variance :math:`2v^2 + 4b^2v`.
    These follow from the fit, which is repeated with them: errors that were taken from the same scatter as the points
    would favour points that are low by chance.

    Raises:
        ValueError: If there are too few different numbers of shots.
    """
    if len(set(shots)) < 2:
        raise ValueError(f"shots: got {list(shots)}, expected at least two different numbers, to tell noise from bias.")
    inverse, errors = 1 / np.asarray(shots, dtype=float), np.asarray(mean_squares)
    for _ in range(_ROUNDS):
        (one_shot, square), covariance = np.polyfit(inverse, mean_squares, 1, w=1 / errors, cov="unscaled")
        if one_shot <= 0:  # noise that is not seen beside the bias says nothing of the points' errors
            break
        variances = one_shot * inverse
        errors = np.sqrt((2 * variances**2 + 4 * max(square, 0.0) * variances) / repeats)
    return Plateau(float(one_shot), float(square), math.sqrt(covariance[1, 1]))
