r"""Angles of IBM's fractional ``rzz``, which takes 0 to pi / 2 only: any angle is folded into that range, row by row.

With :math:`k = \mathrm{round}(t / \pi)` and :math:`r = t - k \pi`, up to a phase,

.. math:: R_{ZZ}(t) = (Z \otimes Z)^k \, (X \otimes 1)^c \, R_{ZZ}(|r|) \, (X \otimes 1)^c , \qquad c = [r < 0] ,

because :math:`R_{ZZ}(\pi) = -i Z \otimes Z`, and X on one of the qubits turns the angle round. The powers of Z and X are
rotations by 0 or pi (``rz``, ``rx``). None of these numbers is an affine function of t: what :class:`Folds` computes is
the difference between a circuit's parameters and affine functions of its angles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Folds", "fold"]


def fold(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles of ``rzz`` (radians) as ``|r|`` from 0 to pi / 2, and as whole numbers 0 or 1: the parity of k, and c.

    Each has the shape of ``angles``.
    """
    turns = np.rint(angles / np.pi)
    rest = angles - turns * np.pi
    return np.minimum(np.abs(rest), np.pi / 2), np.remainder(turns, 2).astype(np.int64), (rest < 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Folds:
    """How parameters of a circuit follow from affine functions of its angles, where some are of ``rzz`` and folded.

    Of each fold the circuit holds other parameters that make up for it: of ``rz`` and ``rx``, by pi more or less, and of
    ``rz`` between two flips of a qubit, whose angle is turned round.

    Attributes:
        columns: Shape (F,): the parameters that are folded.
        turns: Shape (F, P), 0 or 1: pi is added to a parameter where k of an odd number of these folds is odd.
        flips: The same, of c.
        signs: Shape (F, P), 0 or 1: a parameter, with what was added, changes its sign where an odd number of these c is 1.
    """

    columns: np.ndarray
    turns: np.ndarray
    flips: np.ndarray
    signs: np.ndarray

    def values(self, unfolded: np.ndarray) -> np.ndarray:
        """Shape (N, P): the parameters, from affine functions of shape (N, P)."""
        sizes, turned, flipped = fold(unfolded[:, self.columns])
        added = (turned @ self.turns & 1) + (flipped @ self.flips & 1)
        values = unfolded + np.pi * added
        np.negative(values, out=values, where=(flipped @ self.signs & 1).astype(bool))
        values[:, self.columns] = sizes
        return values
