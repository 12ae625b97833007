"""Checks of settings where they are given: each error says what was got, what was expected, and what was perhaps meant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

__all__ = ["did_you_mean", "instance_of", "number_from", "one_of"]

_MOST_GUESSES = 3


def did_you_mean(word: str, known: Iterable[str], written: Mapping[str, str] | None = None) -> str:
    """The known words nearest to a misspelt one, as the end of a sentence; empty where none is near.

    Args:
        word: What was given.
        known: What there is.
        written: How known words are written in the sentence; None: as they are.
    """
    near = get_close_matches(word.lower(), list(known), n=_MOST_GUESSES)
    return f"; did you mean {' or '.join(repr((written or {}).get(each, each)) for each in near)}?" if near else ""


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """The value, if it is one of the allowed words.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, str) and value in allowed:
        return value
    guess = did_you_mean(value, allowed) if isinstance(value, str) else ""
    raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, allowed))}{guess or '.'}")


def instance_of(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
    """The value, if it is of a kind.

    Raises:
        TypeError: If it is not.
    """
    if isinstance(value, kind):
        return value
    raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected {expected}.")


def number_from(name: str, value: Any, *, least: float = 0, whole: bool = False, also: str = "") -> Any:
    """The value, if it is a finite number that is large enough; a whole one as an integer.

    Args:
        name: The setting's.
        value: What was given.
        least: The smallest number that it takes.
        whole: Whether fractions are refused.
        also: What else the setting takes, for the message.

    Raises:
        ValueError: If it is not.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_finite = is_number and (isinstance(value, Integral) or math.isfinite(value))
    if is_finite and value >= least and not (whole and value != int(value)):
        return int(value) if whole else value
    kind = "a whole number" if whole else "a finite number"
    raise ValueError(f"{name}: got {value!r}, expected {kind} from {least:g}{also}.")
