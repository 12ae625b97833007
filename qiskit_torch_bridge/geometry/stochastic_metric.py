r"""An estimate of the metric from four fidelities, whatever the number of weights: simultaneous perturbation.

The Fubini-Study metric is minus half the matrix of second derivatives of the fidelity :math:`F(\delta) =
|\langle\psi(w)|\psi(w + \delta)\rangle|^2` at 0. With two vectors of random signs :math:`\Delta, \Delta'` and a step
:math:`\epsilon`,

.. math:: \hat g = -\frac{1}{2}\,\frac{F(\epsilon\Delta + \epsilon\Delta') - F(\epsilon\Delta - \epsilon\Delta') -
    F(-\epsilon\Delta + \epsilon\Delta') + F(-\epsilon\Delta - \epsilon\Delta')}{4\epsilon^2}\,
    \frac{\Delta\Delta'^T + \Delta'\Delta^T}{2}

is :math:`g` on average, up to :math:`O(\epsilon^2)` (Gacon, Zoufal, Carleo and Woerner, Quantum 5, 567 (2021), whose
one-sided difference, at the points :math:`\Delta + \Delta', \Delta, -\Delta + \Delta', -\Delta`, takes as many
fidelities; the central one here has no error of first order, and a third of the variance by shots). Each row of a batch
draws its own signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..gradients.rules import FiniteDifference

__all__ = ["POINTS", "default_perturbation", "stochastic_metric"]

POINTS = 4
"""Fidelities of a sample."""
_SIGNS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
_EXACT_STEP = 0.01


def default_perturbation(shots: int | None, num_weights: int) -> float:
    r"""The step in radians where none is given.

    That of Gacon et al., 0.01, where fidelities are exact; else that of the gradient rule
    :class:`qiskit_torch_bridge.SPSA`, :math:`(9/S)^{1/6}/\sqrt{W}` for S shots and W weights: here too an error that
    grows with its square meets noise that grows with its inverse.
    """
    if shots is None:
        return _EXACT_STEP
    return FiniteDifference().default_step(shots) / math.sqrt(max(1, num_weights))


def stochastic_metric(
    fidelities: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int, int],
    *,
    perturbation: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The mean of all rows' and samples' estimates, shape (W, W); symmetric, not positive.

    Args:
        fidelities: From shifts of the weights, shape (N, K, W), to the fidelities of each row's states, shape (N, K).
        shape: The number N of rows, samples a row, weights W.
        perturbation: The step in radians.
        rng: Draws the signs.
    """
    rows, samples, width = shape
    first, second = rng.choice([-1.0, 1.0], size=(2, rows, samples, 1, width))
    shifts = perturbation * (_SIGNS[:, :1] * first + _SIGNS[:, 1:] * second)
    values = fidelities(shifts.reshape(rows, samples * POINTS, width)).reshape(rows, samples, POINTS)
    curvatures = values @ _SIGNS.prod(axis=1) / (4 * perturbation**2)
    products = np.einsum("ns,nsi,nsj->ij", curvatures, first[:, :, 0], second[:, :, 0]) / (rows * samples)
    return -(products + products.T) / 4
