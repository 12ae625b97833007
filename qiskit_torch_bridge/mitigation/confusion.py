r"""Misread bits, and what is read from them without bias: scores of measured bits that undo the misreading on average.

Bit j is read as m where its qubit was in t with probability :math:`A_j[m, t]`, whatever the other bits are. With
:math:`\epsilon_0 = A_j[1, 0]` and :math:`\epsilon_1 = A_j[0, 1]`,

.. math:: A_j^{-1} = \frac{1}{1 - \epsilon_0 - \epsilon_1}
    \begin{pmatrix} 1 - \epsilon_1 & -\epsilon_1 \\ -\epsilon_0 & 1 - \epsilon_0 \end{pmatrix} .

Whatever is a mean of scores :math:`s(t)` of the true bits is the mean of :math:`\sum_t s(t) \prod_j A_j^{-1}[t_j, m_j]` over
the measured ones. So the correction is a :class:`~qiskit_torch_bridge.program.readout.MeasurementGroup` with other scores,
and its sample variance over the shots is right as it stands. (Bravyi, Sheldon, Kandala, McKay, Gambetta, *Mitigating
measurement errors in multiqubit experiments*, Phys. Rev. A 103, 042605, 2021: the tensor product model.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..program.readout import MeasurementGroup, OutcomeGroup, PauliGroup, Samples, bits_of, outcomes_of_rows

__all__ = ["Confusion", "CorrectedGroup", "corrected_group"]

_MOST_NUMBERS_AT_ONCE = 2**22
_MOST_SCORES = 2**30


@dataclass(frozen=True, eq=False)
class Confusion:
    """How measured bits are misread, each by itself.

    Attributes:
        rates: Shape (2, k): how often each bit is read as 1 where it was 0, and as 0 where it was 1.
        covariances: Shape (2, k, k): those of the estimates of these rates; zeros for exact ones.
    """

    rates: np.ndarray
    covariances: np.ndarray

    @classmethod
    def of(cls, zeros: np.ndarray | Samples, ones: np.ndarray | Samples, shots: int | None) -> Confusion:
        """From what was measured where all bits were 0, and where all were 1.

        Args:
            zeros: Relative frequencies or probabilities of shape (rows, 2**k), or bit strings.
            ones: Likewise.
            shots: The shots of each row of frequencies; None for probabilities.
        """
        (read_0, covariance_0), (read_1, covariance_1) = (_means(measured, shots) for measured in (zeros, ones))
        return cls(np.stack([read_0, 1.0 - read_1]), np.stack([covariance_0, covariance_1]))

    @cached_property
    def determinants(self) -> np.ndarray:
        """Shape (k,): 1 for a bit that is always read as it is, 0 for one that says nothing."""
        return 1.0 - self.rates.sum(axis=0)

    @cached_property
    def inverses(self) -> np.ndarray:
        """Shape (k, 2, 2): the inverse of each bit's confusion matrix, [true bit, measured bit]."""
        first, second = self.rates
        rows = np.array([[1.0 - second, -second], [-first, 1.0 - first]]) / self.determinants
        return np.moveaxis(rows, 2, 0)

    def variances(self, slopes: np.ndarray) -> np.ndarray:
        """What the rates' errors add to the variances of numbers with these derivatives, shape (..., 2, k); shape (...)."""
        return np.maximum(np.einsum("...si,sij,...sj->...", slopes, self.covariances, slopes, optimize=True), 0.0)


class CorrectedGroup(MeasurementGroup):
    """A measurement group with scores that undo how its bits are misread.

    Attributes:
        confusion: How that is.
    """

    confusion: Confusion

    @abstractmethod
    def slopes(self, measured: np.ndarray | Samples) -> np.ndarray:
        """Shape (N, M, 2, k): the derivatives of the values of N rows by the rates."""

    def variances_of_calibration(
        self, measured: np.ndarray | Samples, upstream: np.ndarray | None = None
    ) -> np.ndarray:
        """What the errors of the rates add to the variances of the values, shape (N, M).

        Args:
            measured: Relative frequencies of shape (N, 2**k), or bit strings.
            upstream: Shape (N, M): then of ``sum_m u_m f_m``, shape (N,).
        """
        parts = []
        for rows, part in _in_blocks(measured, 2 * len(self.qubits) * len(self.scales)):
            slopes = self.slopes(part)
            if upstream is not None:
                slopes = np.einsum("nm,nmsk->nsk", upstream[rows], slopes)
            parts.append(self.confusion.variances(slopes))
        return np.concatenate(parts)


def corrected_group(group: MeasurementGroup, confusion: Confusion) -> CorrectedGroup:
    """The measurement group with scores that undo how its bits are misread.

    Raises:
        ValueError: If there are too many classes of too many outcomes.
    """
    if isinstance(group, PauliGroup):
        return _CorrectedPaulis(group.qubits, group.bases, group, confusion)
    assert isinstance(group, OutcomeGroup)
    corrected = _CorrectedOutcomes(group.qubits, group, confusion)
    if not corrected.is_one_to_one and group.num_outputs * len(group.outputs) > _MOST_SCORES:
        raise ValueError(
            f"interpret: got {group.num_outputs} classes of {len(group.outputs)} outcomes, whose corrected standard errors "
            "would take too long; name fewer qubits, map them to fewer classes, or leave interpret out."
        )
    return corrected


@dataclass(frozen=True, eq=False)
class _CorrectedPaulis(CorrectedGroup):
    """Of Pauli strings: the product of a factor for each bit in place of the parity."""

    qubits: tuple[int, ...]
    bases: str
    group: PauliGroup
    confusion: Confusion

    @property
    def scales(self) -> np.ndarray:
        """Those of the group."""
        return self.group.scales

    @cached_property
    def _factors(self) -> np.ndarray:
        """Shape (k, 2): what stands for +1 and -1."""
        inverses = self.confusion.inverses
        return inverses[:, 0] - inverses[:, 1]

    @cached_property
    def _relative_slopes(self) -> np.ndarray:
        """Shape (2, k, 2): the derivatives of each bit's factors by its rates, over the factors."""
        by_true = np.moveaxis(self.confusion.inverses, 1, 0) * np.array([2.0, -2.0])[:, None, None]
        return by_true / self.confusion.determinants[:, None] / self._factors

    def scores(self, bits: np.ndarray) -> np.ndarray:
        """As the base class says."""
        products = self._products(bits)
        return (products[:, None] @ self.group.coefficients)[:, 0]  # row by row, as in moments

    def slopes(self, measured: np.ndarray | Samples) -> np.ndarray:
        """As the base class says."""
        if isinstance(measured, Samples):
            num_rows, bits = measured.num_rows, measured.bits
        else:
            num_rows, bits = len(measured), bits_of(np.arange(measured.shape[1]), len(self.qubits))
        slopes = np.zeros((num_rows, len(self.scales), 2, len(self.qubits)))
        for support, coefficients, product in zip(
            self.group.supports, self.group.coefficients, self._products(bits).T, strict=True
        ):
            outputs, columns = np.flatnonzero(coefficients), np.flatnonzero(support)
            relative = self._relative_slopes[:, columns, bits[:, columns]]  # (2, E, columns)
            by_rate = np.moveaxis(relative * product[:, None], 1, 0).reshape(len(bits), -1)
            means = _sums(measured, by_rate).reshape(num_rows, 1, 2, len(columns))
            slopes[np.ix_(np.arange(num_rows), outputs, np.arange(2), columns)] += (
                coefficients[outputs, None, None] * means
            )
        return slopes

    def _products(self, bits: np.ndarray) -> np.ndarray:
        """Shape (E, T): what stands for the parity of each string."""
        factors = self._factors[np.arange(len(self.qubits)), bits]
        columns = [np.flatnonzero(support) for support in self.group.supports]
        return np.stack([factors[:, each].prod(axis=1) for each in columns], axis=1)


@dataclass(frozen=True, eq=False)
class _CorrectedOutcomes(CorrectedGroup):
    """Of outcomes: quasi-probabilities, which are the inverse matrices applied to the frequencies."""

    qubits: tuple[int, ...]
    group: OutcomeGroup
    confusion: Confusion

    @property
    def bases(self) -> str:  # type: ignore[override]
        """Z for each measured qubit."""
        return self.group.bases

    @property
    def scales(self) -> np.ndarray:
        """Those of the group."""
        return self.group.scales

    @cached_property
    def is_one_to_one(self) -> bool:
        """Whether each outcome is an output of its own."""
        return len(np.unique(self.group.outputs)) == len(self.group.outputs) == self.group.num_outputs

    def scores(self, bits: np.ndarray) -> np.ndarray:
        """As the base class says."""
        outcomes = self._outcomes(bits)
        return np.concatenate([scores[:, outcomes] for _, scores in self._scores_of_outputs()]).T

    def moments(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        first, _ = self.group.moments(_along_bits(frequencies, self.confusion.inverses))
        if self.is_one_to_one:
            second, _ = self.group.moments(_along_bits(frequencies, self.confusion.inverses**2))
            return first, second
        second = np.empty_like(first)
        for outputs, scores in self._scores_of_outputs():
            second[:, outputs] = frequencies @ (scores**2).T
        return first, second

    def sample_moments(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        moments = [self.moments(self._table(part)) for _, part in _in_blocks(samples, len(self.group.outputs))]
        first, second = (np.concatenate(parts) for parts in zip(*moments, strict=True))
        return first, second

    def moments_along(self, frequencies: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        along = self._along_outcomes(upstream)
        return (frequencies * along).sum(axis=1), (frequencies * along**2).sum(axis=1)

    def slopes(self, measured: np.ndarray | Samples) -> np.ndarray:
        """As the base class says."""
        quasi = _along_bits(self._table(measured), self.confusion.inverses)
        slopes = np.empty((len(quasi), self.group.num_outputs, 2, len(self.qubits)))
        for bit, determinant in enumerate(self.confusion.determinants):
            pairs = quasi.reshape(len(quasi), -1, 2, 1 << bit) / determinant
            for true, sign in ((0, 1.0), (1, -1.0)):
                lost = sign * pairs[:, :, true]  # what moves from the bit's outcome 1 to its outcome 0
                moved = np.stack([lost, -lost], axis=2).reshape(quasi.shape)
                slopes[:, :, true, bit] = self.group.moments(moved)[0]
        return slopes

    def _along(self, samples: Samples, upstream: np.ndarray) -> np.ndarray:
        outcomes, along = self._outcomes(samples.bits), np.empty(len(samples.rows))
        size = max(1, _MOST_NUMBERS_AT_ONCE // len(self.group.outputs))
        for start in range(0, samples.num_rows, size):
            entries = (samples.rows >= start) & (samples.rows < start + size)
            dense = self._along_outcomes(upstream[start : start + size])
            along[entries] = dense[samples.rows[entries] - start, outcomes[entries]]
        return along

    def _along_outcomes(self, upstream: np.ndarray) -> np.ndarray:
        """Shape (N, 2**k): ``sum_m u_m score_m`` of each outcome."""
        return _along_bits(upstream[:, self.group.outputs], np.swapaxes(self.confusion.inverses, 1, 2))

    def _scores_of_outputs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The scores of all outcomes, in blocks of outputs: (outputs, scores of shape (block, 2**k))."""
        size = max(1, _MOST_NUMBERS_AT_ONCE // len(self.group.outputs))
        for start in range(0, self.group.num_outputs, size):
            outputs = slice(start, min(start + size, self.group.num_outputs))
            indicators = np.arange(start, outputs.stop)[:, None] == self.group.outputs
            yield outputs, _along_bits(indicators.astype(np.float64), np.swapaxes(self.confusion.inverses, 1, 2))

    def _outcomes(self, bits: np.ndarray) -> np.ndarray:
        return bits.astype(np.int64) @ (1 << np.arange(len(self.qubits), dtype=np.int64))

    def _table(self, measured: np.ndarray | Samples) -> np.ndarray:
        """Shape (N, 2**k): the relative frequencies of all outcomes."""
        if not isinstance(measured, Samples):
            return measured
        rows, width = measured.num_rows, len(self.group.outputs)
        places = measured.rows * width + self._outcomes(measured.bits)
        return np.bincount(places, measured.frequencies, rows * width).reshape(rows, width)


def _means(measured: np.ndarray | Samples, shots: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Of all rows together: how often each bit is 1, shape (k,), and the covariance of these means, shape (k, k)."""
    if isinstance(measured, Samples):
        bits, counts = measured.bits.astype(np.float64), measured.counts
        weights, total = counts / counts.sum(), float(counts.sum())
    else:
        weights = measured.mean(axis=0)
        bits = bits_of(np.arange(len(weights)), len(weights).bit_length() - 1).astype(np.float64)
        total = np.inf if shots is None else float(shots * len(measured))
    means = weights @ bits
    products = bits.T @ (weights[:, None] * bits)
    return means, (products - np.outer(means, means)) / (total - 1.0 if total > 1 else np.nan)


def _sums(measured: np.ndarray | Samples, numbers: np.ndarray) -> np.ndarray:
    """Shape (N, C): the means over each row's shots of numbers of its outcomes (or entries), of shape (E, C)."""
    if not isinstance(measured, Samples):
        return measured @ numbers
    weighted = measured.frequencies[:, None] * numbers
    return np.stack([np.bincount(measured.rows, column, measured.num_rows) for column in weighted.T], axis=1)


def _along_bits(values: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Values of shape (N, 2**k), with a 2 x 2 matrix applied along each bit of their last index."""
    shape = values.shape
    for bit, matrix in enumerate(matrices):
        values = matrix @ values.reshape(len(values), -1, 2, 1 << bit)
    return values.reshape(shape)


def _in_blocks(measured: np.ndarray | Samples, numbers_of_row: int) -> Iterator[tuple[slice, np.ndarray | Samples]]:
    """The rows in blocks that bound the memory."""
    num_rows = measured.num_rows if isinstance(measured, Samples) else len(measured)
    size = max(1, _MOST_NUMBERS_AT_ONCE // max(1, numbers_of_row))
    if size >= num_rows:
        return iter([(slice(0, num_rows), measured)])
    parts = (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
    return ((part, outcomes_of_rows(measured, part)) for part in parts)
