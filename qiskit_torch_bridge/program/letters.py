"""Which letters Pauli strings can have on each qubit, from behind a gate or a channel to before it.

A set of letters is four bits: bit 0, 1, 2, 3 for I, X, Y, Z. Sets on several qubits stand for all strings of such letters:
more than there may be, so that what is found to have no influence on them has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

__all__ = ["EVERY", "IDENTITY", "before_map", "before_rotation"]

IDENTITY = 1
"""Only I."""
EVERY = 15
"""Any letter."""

_ROUNDING = 1e-14


def before_rotation(letters: Sequence[int], behind: tuple[int, ...]) -> tuple[int, ...] | None:
    """The sets before a rotation about a Pauli string; None if it commutes with all strings.

    Args:
        letters: Of the string, 1, 2 or 3 for X, Y or Z, for each of its qubits.
        behind: The sets behind it.
    """
    if all(one & ~(IDENTITY | 1 << letter) == 0 for one, letter in zip(behind, letters, strict=True)):
        return None
    # The product of two letters has the exclusive or of their numbers, up to a phase.
    products = (
        sum(1 << (own ^ letter) for own in range(4) if one >> own & 1)
        for one, letter in zip(behind, letters, strict=True)
    )
    return tuple(one | other for one, other in zip(behind, products, strict=True))


def before_map(ptm: np.ndarray, behind: tuple[int, ...]) -> tuple[int, ...] | None:
    """The sets before a gate or a channel without parameters; None if it leaves all strings as they are.

    Args:
        ptm: Shape (4**k, 4**k): its Pauli transfer matrix, the first qubit least significant; it must not change.
        behind: The sets behind it.
    """
    return _before(_Matrix(ptm), behind)


class _Matrix:
    """A transfer matrix, by identity: the same for channels that are the same."""

    def __init__(self, ptm: np.ndarray) -> None:
        self.ptm = ptm

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Matrix) and self.ptm is other.ptm

    def __hash__(self) -> int:
        return id(self.ptm)


@lru_cache(maxsize=2**14)
def _before(matrix: _Matrix, behind: tuple[int, ...]) -> tuple[int, ...] | None:
    rows = [
        sum(letter << 2 * i for i, letter in enumerate(letters))
        for letters in product(*([letter for letter in range(4) if one >> letter & 1] for one in behind))
    ]
    read = matrix.ptm[rows]
    if np.abs(read - np.eye(len(matrix.ptm))[rows]).max() < _ROUNDING:
        return None
    columns = np.flatnonzero((np.abs(read) > _ROUNDING).any(axis=0))
    return tuple(IDENTITY | int(np.bitwise_or.reduce(1 << (columns >> 2 * i & 3))) for i in range(len(behind)))
