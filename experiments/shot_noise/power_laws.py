"""Least squares with known errors: power laws, and a square root law that ends on a plateau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.lines import REACH, Line, MeanSquare, fit_line

_ROUNDS = 20  # of reweighting; two or three would do


def mean_square(squares: np.ndarray) -> MeanSquare:
    """The mean of independent squares, shape (R,), with its standard error from their scatter."""
    return MeanSquare(float(squares.mean()), float(squares.std(ddof=1) / math.sqrt(len(squares))))


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


def fit_power_law(shots: Sequence[int], variances: Sequence[MeanSquare], theory: Sequence[float]) -> PowerLaw:
    """Fits the exponent of standard errors, given as variances with the errors of those.

    Args:
        shots: At least two different numbers.
        variances: At each of them.
        theory: The variances that theory has there.

    Raises:
        ValueError: If there are too few different numbers of shots, or a variance or its error is zero.
    """
    places = np.log(shots).tolist()
    measured = fit_line(places, variances)
    values, errors = np.array([(each.value, each.error) for each in variances]).T
    expected = np.asarray(theory)
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
    def low(self) -> float:
        """The lower end of its 95 % confidence interval."""
        return math.sqrt(max(self.square - REACH * self.error, 0.0))

    @property
    def high(self) -> float:
        """Its upper end."""
        return math.sqrt(max(self.square + REACH * self.error, 0.0))

    def z(self, bias: float) -> float:
        """How far its square is from that of a known bias, in standard errors."""
        return (self.square - bias**2) / self.error


def fit_plateau(shots: Sequence[int], mean_squares: Sequence[float], repeats: int) -> Plateau:
    r"""Fits mean squared errors, each over so many repeats.

    A squared error whose root is normal with mean b and variance :math:`v = a/S` has the variance :math:`2v^2 + 4b^2v`.
    These follow from the fit, which is repeated with them: errors that were taken from the same scatter as the points
    would favour points that are low by chance.

    Raises:
        ValueError: If there are too few different numbers of shots.
    """
    if len(set(shots)) < 2:
        raise ValueError(f"shots: got {list(shots)}, expected at least two different numbers, to tell noise from bias.")
    inverse, squares = 1 / np.asarray(shots, dtype=float), np.asarray(mean_squares)
    errors = squares
    for _ in range(_ROUNDS):
        (one_shot, square), covariance = np.polyfit(inverse, squares, 1, w=1 / errors, cov="unscaled")
        if one_shot <= 0:  # noise that is not seen beside the bias says nothing of the points' errors
            break
        variances = one_shot * inverse
        errors = np.sqrt((2 * variances**2 + 4 * max(square, 0.0) * variances) / repeats)
    return Plateau(float(one_shot), float(square), math.sqrt(covariance[1, 1]))
