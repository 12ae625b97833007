"""Measured outcomes, and the variances that follow from them, for every simulator of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from ..program.readout import MeasurementGroup
from ..shots.covariance import variance_of_one_shot

__all__ = ["Measured", "MeasurementT", "Use", "variances_of_shots"]


class _Measurement(Protocol):
    @property
    def group(self) -> MeasurementGroup:
        """What the program says of it."""
        ...


MeasurementT = TypeVar("MeasurementT", bound=_Measurement)
Measured = list[tuple[MeasurementT, slice, np.ndarray]]
"""Of parts of a batch: a measurement, the part's rows, and the counts of its outcomes."""
Use = Callable[[MeasurementT, slice, np.ndarray], None]
"""Takes the counts of a measurement's outcomes for some rows; or their probabilities."""


def variances_of_shots(
    measure: Callable[[Use[MeasurementT]], None],
    kept: Measured[MeasurementT] | None,
    upstream: np.ndarray,
    shots: int | None,
) -> np.ndarray:
    """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements.

    Args:
        measure: Hands on the counts of all measurements, each for parts of the batch; called if none have been kept.
        kept: The counts, or None.
        upstream: Shape (N, M).
        shots: Of how many shots it is estimated; None: exactly, from probabilities.
    """
    variances = np.zeros(len(upstream))

    def use(measurement: MeasurementT, part: slice, measured: np.ndarray) -> None:
        frequencies = measured if shots is None else measured / shots
        variances[part] += variance_of_one_shot(measurement.group, frequencies, upstream[part], shots)

    if kept is None:
        measure(use)
    else:
        for measured in kept:
            use(*measured)
    return variances
