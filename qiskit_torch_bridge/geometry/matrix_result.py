"""A matrix for each row of a batch, or for all of them, as it was measured."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np

from ..backends.passport import Passport

__all__ = ["MatrixResult"]


@dataclass(frozen=True, eq=False)
class MatrixResult:
    """What a kernel's call, or a metric tensor by shots, measured.

    Attributes:
        values: Of a kernel shape (N, M); of a metric tensor shape (N, W, W), N the flattened batch.
        standard_errors: Of the same shape: from the shots; zero for exact values, and for what is not measured because it
            is known (the diagonal of a symmetric kernel).
        circuits: How many circuits were executed; of an exact kernel how many states were simulated.
        shots: How many shots were spent on all of them; 0 for exact values.
        passport: Where and how they were measured, for backends that say so.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    circuits: int
    shots: int
    _: KW_ONLY
    passport: Passport | None = None
