"""Linear least squares with known errors."""

from __future__ import annotations

import numpy as np


def least_squares(design: np.ndarray, values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits ``values = design @ coefficients``, each value weighted by its error.

    Args:
        design: Shape (N, P).
        values: Shape (N,).
        errors: Shape (N,): their standard errors, positive.

    Returns:
        The coefficients, shape (P,), and their covariance, shape (P, P), from the errors alone.
    """
    weighted = design / errors[:, None]
    covariance = np.linalg.inv(weighted.T @ weighted)
    coefficients: np.ndarray = covariance @ weighted.T @ (values / errors)
    return coefficients, covariance
