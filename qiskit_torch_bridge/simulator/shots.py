"""Measured outcomes, and the variances that follow from them, for every simulator of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from ..program.readout import MOST_TABULATED_QUBITS, MeasurementGroup, Samples, bits_of, stitched_outcomes
from ..shots.covariance import variance_of_one_shot

__all__ = ["Measured", "MeasurementT", "Use", "outcomes_of_shots", "variances_of_shots"]


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


def outcomes_of_shots(
    measure: Callable[[Use[MeasurementT]], None],
    kept: Measured[MeasurementT] | None,
    groups: Sequence[MeasurementGroup],
    *,
    rows: int,
    shots: int | None,
) -> tuple[np.ndarray | Samples, ...]:
    """For each measurement group the relative frequencies of the outcomes, shape (N, 2**k), or the bit strings.

    Args:
        measure: As in :func:`variances_of_shots`.
        kept: Likewise.
        groups: The program's, in their order.
        rows: The number N of rows.
        shots: What the counts come from; None: they are probabilities.
    """
    parts: dict[MeasurementGroup, list[tuple[slice, np.ndarray | Samples]]] = {group: [] for group in groups}

    def use(measurement: MeasurementT, part: slice, measured: np.ndarray) -> None:
        parts[measurement.group].append((part, _outcomes(len(measurement.group.qubits), measured, shots)))

    if kept is None:
        measure(use)
    else:
        for measured in kept:
            use(*measured)
    pairs = [tuple(zip(*parts[group], strict=True)) for group in groups]
    return tuple(stitched_outcomes(places, outcomes, rows) for places, outcomes in pairs)


def _outcomes(num_bits: int, measured: np.ndarray, shots: int | None) -> np.ndarray | Samples:
    if shots is None:
        return measured.copy()
    if num_bits <= MOST_TABULATED_QUBITS:
        return measured / shots
    rows, outcomes = np.nonzero(measured)
    return Samples(rows, bits_of(outcomes, num_bits), measured[rows, outcomes].astype(np.int64), len(measured))
