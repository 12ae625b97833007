r"""How the shots of a gradient are shared among the rows of a batch.

The gradient behind a layer is :math:`\sum_n u_n \cdot \partial f_n`, with the upstream gradient :math:`u_n` of row n. A row
with :math:`u_n = 0` (an example beyond the margin of a hinge loss, a padded one, one that a mask takes out) adds nothing,
whatever is measured of it, so it need not be measured. For the others, the variance of the sum at a given total of shots
is least if each gets shots in proportion to its weight times its standard deviation from shot to shot (Neyman, J. R. Stat.
Soc. 97, 558 (1934)). The weight is known when backward begins. The standard deviation is not, and is taken to be the same
for all rows: that of observables in a random state, with outputs that are not correlated:

.. math:: S_n \propto \sqrt{\textstyle\sum_m (u_{nm} c_m)^2},

with the root of the sum of squared coefficients :math:`c_m` of output m (1 for probabilities). Shots are shared among rows,
not among outputs or angles, whose circuits are the same.

**Bias**: none. How many shots a row gets follows from the upstream gradient, which was there before any of them was taken,
and a mean over shots is unbiased for any number of them. What is saved or gained is variance. (The upstream gradient itself
comes from measured values; that, and what it does to the gradient of a loss that is not linear, is the same with and
without allocation.)
"""

from __future__ import annotations

import numpy as np

__all__ = ["ALLOCATIONS", "shots_by_sensitivity"]

ALLOCATIONS = ("uniform", "sensitivity")
_MOST = 2**31 - 1  # as for any number of shots


def shots_by_sensitivity(upstream: np.ndarray, scales: np.ndarray, shots: int) -> np.ndarray:
    """Shots of each row, shape (N,): none without upstream gradient, ``shots`` on average over the others, rounded down.

    Sensitivities are rounded to half octaves, so that a backend has few different numbers of shots to run. Every row that
    matters gets at least 2 shots (which a standard error needs), as far as ``shots`` allows.

    Args:
        upstream: Shape (N, M).
        scales: Shape (M,): :math:`c_m`.
        shots: Positive.

    Raises:
        ValueError: If an upstream gradient is NaN or infinite; nothing was run for it.
    """
    if not np.isfinite(upstream).all():
        row = int(np.flatnonzero(~np.isfinite(upstream).all(axis=1))[0])
        raise ValueError(
            f"The upstream gradient of row {row} is {upstream[row]}, expected finite numbers; the loss may have diverged. "
            "No circuit of the gradient was run."
        )
    active = (upstream != 0).any(axis=1)
    # A row whose outputs are all constants has none; its values are exact with any number of shots.
    sensitivities = np.sqrt(((_of_order_one(upstream[active]) * _of_order_one(scales)) ** 2).sum(axis=1))
    positive = sensitivities > 0
    sensitivities[positive] = 2.0 ** (np.round(2 * np.log2(sensitivities[positive])) / 2)
    least = min(2, shots)
    total = sensitivities.sum()
    shares = np.floor((shots - least) * len(sensitivities) * sensitivities / total) if total > 0 else 0.0
    allotted = np.zeros(len(upstream), dtype=np.int64)
    allotted[active] = np.minimum(least + shares, _MOST).astype(np.int64)
    return allotted


def _of_order_one(numbers: np.ndarray) -> np.ndarray:
    """The numbers times a power of two, which rounds nothing, so that no square of them overflows; proportions stay."""
    return np.ldexp(numbers, -np.frexp(np.abs(numbers).max(initial=0.0))[1])
