"""Values and variances from measured outcomes, for every simulator of this package."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from ..program.readout import MeasurementGroup
from ..shots.covariance import variance_of_one_shot

__all__ = ["Measured", "Use", "values_of_shots", "variances_of_shots"]

_MOST_COUNTS_KEPT = 2**23


class _Measurement(Protocol):
    @property
    def group(self) -> MeasurementGroup:
        """What the program says of it."""
        ...


M = TypeVar("M", bound=_Measurement)
Measured = list[tuple[M, slice, np.ndarray]]
"""Of parts of a batch: a measurement, the part's rows, and the counts of its outcomes."""
Use = Callable[[M, slice, np.ndarray], None]
"""Takes the counts of a measurement's outcomes for some rows; or their probabilities."""


def values_of_shots(
    measure: Callable[[Use[M]], None],
    moments: Callable[[M, np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    constants: np.ndarray,
    rows: int,
    num_outcomes: int,
    shots: int,
) -> tuple[np.ndarray, np.ndarray, Measured[M] | None]:
    """Values and their squared standard errors, both of shape (N, M); and the counts, unless they take much memory.

    Args:
        measure: Hands on the counts of all measurements, each for parts of the batch.
        moments: First and second moments of a measurement's scores over the shots, shape (N, M), from its counts.
        constants: Shape (M,): what is added to the values.
        rows: The number N of rows.
        num_outcomes: How many outcomes the measurements have together.
        shots: Of each measurement.
    """
    narrow = np.min_scalar_type(shots)  # memory that is written for the first time costs more than the conversion
    kept: Measured[M] | None = [] if num_outcomes * rows <= _MOST_COUNTS_KEPT else None
    values = np.empty((rows, len(constants)))
    values[:] = constants
    variances = np.zeros(values.shape)
    degrees = shots - 1.0 if shots > 1 else math.nan  # one shot says nothing about the variance

    def use(measurement: M, part: slice, counts: np.ndarray) -> None:
        first, second = moments(measurement, counts)
        values[part] += first
        variances[part] += np.maximum(second - first**2, 0.0) / degrees
        if kept is not None:
            kept.append((measurement, part, counts.astype(narrow)))

    measure(use)
    return values, variances, kept


def variances_of_shots(
    measure: Callable[[Use[M]], None], kept: Measured[M] | None, upstream: np.ndarray, shots: int | None
) -> np.ndarray:
    """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements.

    Args:
        measure: As in :func:`values_of_shots`, with the same shots; called if no counts have been kept.
        kept: The counts, or None.
        upstream: Shape (N, M).
        shots: Of how many shots it is estimated; None: exactly, from probabilities.
    """
    variances = np.zeros(len(upstream))

    def use(measurement: M, part: slice, measured: np.ndarray) -> None:
        frequencies = measured if shots is None else measured / shots
        variances[part] += variance_of_one_shot(measurement.group, frequencies, upstream[part], shots)

    if kept is None:
        measure(use)
    else:
        for measured in kept:
            use(*measured)
    return variances
