r"""A trigonometric polynomial from its values at a few points, and where it is least.

A function :math:`f(x) = a_0 + \sum_k a_k\cos\omega_k x + b_k\sin\omega_k x` with R known frequencies is known from its
values at 2R + 1 points (Wierichs, Izaac, Wang and Lin, Quantum 6, 677 (2022)). For frequencies
:math:`\Omega, 2\Omega, \dots, R\Omega` points at equal distances over the period have the least noise; for others,
points at equal distances whose linear system is best conditioned are searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.optimize import brentq

__all__ = ["TrigonometricRule", "rule_of"]

_MOST_CONDITION = 1e3
_GOOD_CONDITION = 1.5
_CANDIDATES = 400
_MOST_MULTIPLE = 64
_POINTS_A_WAVE = 32


@dataclass(frozen=True, eq=False)
class TrigonometricRule:
    """Where functions of R frequencies are to be evaluated, and what follows from the values.

    Attributes:
        frequencies: Positive, ascending; in radians per radian.
        points: Shape (2 R + 1,): the first is 0.
    """

    frequencies: tuple[float, ...]
    points: np.ndarray

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(_table(self.frequencies, self.points))

    def coefficients(self, values: np.ndarray) -> np.ndarray:
        """Shape (2 R + 1,): the constant, R factors of cosines, R of sines; from the values at the points."""
        return self._inverse @ values

    def value(self, coefficients: np.ndarray, x: np.ndarray | float) -> np.ndarray:
        """The function at x."""
        return _table(self.frequencies, np.asarray(x)) @ coefficients

    @cached_property
    def half_width(self) -> float:
        """Half of the interval around 0 that is searched: half the period; without one, half the longest wave."""
        slowest = self.frequencies[0]
        for parts in range(1, _MOST_MULTIPLE + 1):
            multiples = np.array(self.frequencies) * parts / slowest
            if np.abs(multiples - multiples.round()).max() < 1e-6:
                return math.pi * parts / slowest
        return math.pi / slowest

    def minimum(self, coefficients: np.ndarray, precision: float = float(np.finfo(np.float64).eps)) -> float:
        """Where the function is least within :attr:`half_width` of 0; 0 where it is nowhere less than there.

        Args:
            coefficients: As :meth:`coefficients` gives them.
            precision: That of the values; a gain that rounding may feign is none.
        """
        negligible = 16 * precision * (1 + np.abs(coefficients).sum())
        waves = np.array(self.frequencies)
        cosines, sines = np.split(coefficients[1:], 2)
        if len(waves) == 1:
            turned = math.atan2(-sines[0], -cosines[0]) / waves[0]
            return turned if np.hypot(cosines[0], sines[0]) + cosines[0] > negligible else 0.0
        size = math.ceil(self.half_width * waves[-1] / math.pi) * _POINTS_A_WAVE
        grid = np.linspace(-self.half_width, self.half_width, size + 1)
        values = self.value(coefficients, grid)
        best = float(grid[values.argmin()])

        def slope(x: float) -> float:
            return float((waves * (sines * np.cos(waves * x) - cosines * np.sin(waves * x))).sum())

        step = float(grid[1] - grid[0])
        if slope(best - step) < 0 < slope(best + step):
            best = float(brentq(slope, best - step, best + step, xtol=1e-14))
        gain = self.value(coefficients, 0.0) - self.value(coefficients, best)
        return best if gain > negligible else 0.0


@lru_cache(maxsize=256)
def rule_of(frequencies: tuple[float, ...]) -> TrigonometricRule:
    """The rule for such frequencies.

    Raises:
        ValueError: If they are too close to each other to be told apart.
    """
    count, gaps = len(frequencies), np.diff([0.0, *frequencies])
    longest = 2 * math.pi / min(frequencies[0], gaps.min())
    distances = [longest / (2 * count + 1), *np.linspace(longest / _CANDIDATES, longest, _CANDIDATES)]
    order = np.array([0, *(sign * place for place in range(1, count + 1) for sign in (1, -1))], np.float64)
    conditions = []
    for distance in distances:
        conditions.append(float(np.linalg.cond(_table(frequencies, distance * order))))
        if conditions[-1] < _GOOD_CONDITION:
            break
    best = int(np.argmin(conditions))
    if not conditions[best] < _MOST_CONDITION:
        raise ValueError(
            f"frequencies: got {frequencies}, which are too close to be told apart by {2 * count + 1} values."
        )
    return TrigonometricRule(frequencies, distances[best] * order)


def _table(frequencies: tuple[float, ...], points: np.ndarray) -> np.ndarray:
    """Shape (..., 2 R + 1): the functions at points of shape (...)."""
    waves = points[..., None] * np.array(frequencies)
    return np.concatenate([np.ones((*points.shape, 1)), np.cos(waves), np.sin(waves)], axis=-1)
