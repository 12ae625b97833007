"""Amounts of memory, for people to read."""

import math

__all__ = ["in_gibibytes"]

_MOST_WRITTEN_OUT = 10**6


def in_gibibytes(size: int) -> str:
    """A number of bytes; of enormous ones only the power of ten is of interest."""
    whole = size >> 30
    if whole >= _MOST_WRITTEN_OUT:
        return f"some 10**{math.floor(math.log10(whole))} GiB"
    return f"{size / 2**30:,.1f} GiB"
