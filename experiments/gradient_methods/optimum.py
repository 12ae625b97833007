"""The step at which a measured curve of errors is least."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_REACH = 3  # points on each side


class Optimum(NamedTuple):
    """Where a curve is least.

    Attributes:
        step: There.
        error: Its standard error.
    """

    step: float
    error: float


def optimum(steps: np.ndarray, values: np.ndarray, errors: np.ndarray, *, around: int | None = None) -> Optimum:
    """The least value's place by a parabola through logarithms, of some points around the smallest.

    Args:
        steps: Shape (K,), ascending.
        values: Shape (K,), above zero.
        errors: Shape (K,), their standard errors.
        around: The middle of the points that are used; None: the smallest value. Name it to treat two curves alike.

    Raises:
        ValueError: If the parabola has no minimum.
    """
    middle = int(np.argmin(values)) if around is None else around
    window = slice(max(0, middle - _REACH), middle + _REACH + 1)
    x, y = np.log(steps[window] / steps[middle]), np.log(values[window])
    weights = values[window] / errors[window]
    design = np.stack([np.ones_like(x), x, x**2], axis=1) * weights[:, None]
    covariance = np.linalg.inv(design.T @ design)
    _, linear, square = covariance @ design.T @ (y * weights)
    if square <= 0:
        raise ValueError(f"values: got {values[window].tolist()}, expected a minimum within; take other steps.")
    gradient = np.array([0.0, -1 / (2 * square), linear / (2 * square**2)])
    place = float(steps[middle]) * math.exp(-linear / (2 * square))
    return Optimum(place, place * math.sqrt(gradient @ covariance @ gradient))
