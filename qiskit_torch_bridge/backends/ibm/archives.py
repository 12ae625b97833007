"""What primitives return, as bytes that can be kept."""

from __future__ import annotations

import io

import numpy as np

__all__ = ["Arrays", "arrays_of", "bytes_of"]

Arrays = list[list[np.ndarray]]
"""For each PUB, the arrays of its result: measured bits, packed, of shape (..., shots, bytes); or expectation values
and standard errors, each of shape (outputs, ...)."""


def bytes_of(arrays: Arrays) -> bytes:
    """Results as bytes: a compressed NumPy archive, without anything that could be executed."""
    buffer = io.BytesIO()
    named = {f"{pub}/{place}": array for pub, group in enumerate(arrays) for place, array in enumerate(group)}
    np.savez_compressed(buffer, **named)  # type: ignore[arg-type]
    return buffer.getvalue()


def arrays_of(data: bytes) -> Arrays:
    """Results from :func:`bytes_of`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        places = sorted(tuple(map(int, name.split("/"))) for name in archive.files)
        arrays: Arrays = [[] for _ in range(1 + max((pub for pub, _ in places), default=-1))]
        for pub, place in places:
            arrays[pub].append(archive[f"{pub}/{place}"])
    return arrays
