r"""How the outputs of a circuit vary together from shot to shot.

Outputs that are measured in the same shots are correlated: the probabilities of two outcomes, or ``Z`` on two entangled
qubits. The error of whatever is made of them, such as a gradient behind the layers that follow, needs their covariance, of
which only a quadratic form is ever wanted: the variance of :math:`\sum_m u_m f_m` for given :math:`u`. With the score
:math:`s_m(b)` that a measured bit string b contributes to output m, and :math:`S` shots in a measurement,

.. math:: \mathrm{Var}\Big[\sum_m u_m f_m\Big] = \sum_\mathrm{measurements} \frac{\sigma^2}{S}, \qquad
    \sigma^2 = \mathrm{Var}_b\Big[\sum_m u_m s_m(b)\Big] ,

so no M x M matrix is ever made. :math:`\sigma^2` is estimated without bias by the sample variance over the shots, or known
exactly from the probabilities; other numbers of shots then follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..program.readout import MeasurementGroup, Samples

__all__ = ["Covariance", "variance_of_one_shot"]


@dataclass(frozen=True, eq=False)
class Covariance:
    r"""The covariance of the outputs of each of N rows, as a quadratic form.

    Attributes:
        of_one_shot: From ``u`` of shape (N, M) to :math:`\sigma^2`, summed over the measurements, shape (N,).
        shots: How often each measurement of a row was taken, one number or shape (N,); infinite for exact values.
        num_rows: The number N.
        weighted: Whether the outputs are weighted sums of measurements, or the like, so that probabilities among them do not
            vary as those of a single measurement.
    """

    of_one_shot: Callable[[np.ndarray], np.ndarray]
    shots: np.ndarray | float
    num_rows: int
    weighted: bool = field(default=False, kw_only=True)

    @classmethod
    def of_independent(cls, variances: np.ndarray, shots: np.ndarray | float) -> Covariance:
        """Of outputs that are independent, or alone, or about which nothing but their variances is known.

        Args:
            variances: Shape (N, M): the squared standard errors.
            shots: What they come from, one number or shape (N,).
        """
        return cls(lambda u: (u**2 * variances).sum(axis=1) * shots, shots, len(variances))

    def along(self, upstream: np.ndarray, shots: np.ndarray | float | None = None) -> np.ndarray:
        """The variance of ``sum_m u_m f_m``, shape (N,).

        Args:
            upstream: Shape (N, M): ``u``.
            shots: What it would be with so many shots a measurement, one number or shape (N,); None: with those taken.
        """
        return self.of_one_shot(upstream) / (self.shots if shots is None else shots)

    def of_outputs(self, num_outputs: int, shots: int) -> np.ndarray:
        """The variance that each output would have with so many shots, shape (N, M)."""
        shape = (self.num_rows, num_outputs)
        return np.stack([self.along(np.broadcast_to(one, shape), shots) for one in np.eye(num_outputs)], axis=1)

    def of_rows(self, rows: slice) -> Covariance:
        """That of some of the rows."""

        def of_one_shot(upstream: np.ndarray) -> np.ndarray:
            padded = np.zeros((self.num_rows, upstream.shape[1]))
            padded[rows] = upstream
            return self.of_one_shot(padded)[rows]

        shots = np.broadcast_to(self.shots, self.num_rows)[rows]
        return Covariance(of_one_shot, shots, len(shots), weighted=self.weighted)

    @staticmethod
    def stitched(
        rows: Sequence[slice | np.ndarray], parts: Sequence[Covariance | None], num_rows: int
    ) -> Covariance | None:
        """That of several sets of rows as one; None if one of them is unknown. Rows in no set have no variance."""
        pairs = [(indices, part) for indices, part in zip(rows, parts, strict=True) if part is not None]
        if len(pairs) < len(parts):
            return None
        shots = np.full(num_rows, np.inf)
        for indices, part in pairs:
            shots[indices] = part.shots

        def of_one_shot(upstream: np.ndarray) -> np.ndarray:
            variances = np.zeros(num_rows)
            for indices, part in pairs:
                variances[indices] = part.of_one_shot(upstream[indices])
            return variances

        return Covariance(of_one_shot, shots, num_rows, weighted=any(part.weighted for _, part in pairs))


def variance_of_one_shot(
    group: MeasurementGroup, measured: np.ndarray | Samples, upstream: np.ndarray, shots: np.ndarray | int | None
) -> np.ndarray:
    r"""One measurement's :math:`\sigma^2` of each row, shape (N,).

    Args:
        group: The measurement.
        measured: The relative frequencies (or probabilities) of the outcomes, shape (N, 2**k); or the bit strings.
        upstream: Shape (N, M).
        shots: How many shots the frequencies come from; None for probabilities.
    """
    if isinstance(measured, Samples):
        first, second = group.sample_moments_along(measured, upstream)
    else:
        first, second = group.moments_along(measured, upstream)
    variance = np.maximum(second - first**2, 0.0)
    if shots is None:
        return variance
    # Unbiased; one shot says nothing about it.
    taken = np.asarray(shots, dtype=np.float64)
    return variance * np.where(taken > 1, taken / np.where(taken > 1, taken - 1, 1), np.nan)
