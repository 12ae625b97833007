"""What was asked of a primitive, and whether that is what came back.

A value of too few shots or of a bit that is not there looks like any other. So whatever a primitive, a service, a ledger or
a recording hands over is compared with what was asked for before a number is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from qiskit.primitives import BitArray

__all__ = ["Arrays", "Asked", "WrongResult", "arrays_from", "check_arrays"]

Arrays = list[list[np.ndarray]]
"""For each PUB, the arrays of its result: measured bits, packed, of shape (..., shots, bytes); or expectation values
and standard errors, each of shape (outputs, ...)."""


class WrongResult(RuntimeError):  # noqa: N818 - not an error of whoever sees it
    """What came back is not what was asked for; nothing was made of it."""


@dataclass(frozen=True)
class Asked:
    """What one PUB asks for.

    Attributes:
        shape: The shape of a Sampler's parameter sets, or of an Estimator's values.
        shots: Shots of each parameter set, as they come back (twirling rounds them up); None: an Estimator's PUB.
        bits: Bits of each shot, in the one register ``outcome``.
        at_least: Whether there may be more shots than that.
        extrapolates: Whether standard errors may be infinite: a fit of few points cannot always tell.
    """

    shape: tuple[int, ...]
    shots: int | None = None
    bits: int = 0
    at_least: bool = False
    extrapolates: bool = False


def arrays_from(result: Any, asked: Sequence[Asked] | None) -> Arrays:
    """The arrays of a primitive's result, if it is what was asked for.

    Args:
        result: A ``PrimitiveResult``, or its arrays.
        asked: What each PUB asked for; None where that is not known any more: whoever reads the arrays checks them then.

    Raises:
        WrongResult: If it is something else.
    """
    if not isinstance(result, Iterable):
        raise WrongResult(f"got {type(result).__name__}, expected the results of PUBs.")
    pubs = list(result)
    if asked is None:
        return [_arrays_of_pub(f"PUB {number}", pub) for number, pub in enumerate(pubs)]
    _require_equal("the result", "PUB(s)", len(pubs), len(asked))
    for number, (pub, each) in enumerate(zip(pubs, asked, strict=True)):
        bits = pub.data["outcome"] if _registers(pub) == ["outcome"] else None
        if isinstance(bits, BitArray) and each.shots is not None:
            _require_equal(f"PUB {number}", "bit(s) a shot", bits.num_bits, each.bits)
    arrays = [
        [_with_axes(array, each) for array in _arrays_of_pub(f"PUB {number}", pub)]
        for number, (pub, each) in enumerate(zip(pubs, asked, strict=True))
    ]
    check_arrays(arrays, asked)
    return arrays


def check_arrays(arrays: Arrays, asked: Sequence[Asked]) -> None:
    """Whether arrays are what was asked for.

    Raises:
        WrongResult: If not; it says what was got and expected.
    """
    _require_equal("the result", "PUB(s)", len(arrays), len(asked))
    for number, (group, each) in enumerate(zip(arrays, asked, strict=True)):
        _require_equal(f"PUB {number}", "array(s)", len(group), 2 if each.shots is None else 1)
        if each.shots is None:
            _check_values(f"PUB {number}", group[0], group[1], each)
        else:
            _check_bits(f"PUB {number}", group[0], each)


def _registers(pub: Any) -> list[str] | None:
    """The names of what a PUB returned, if there are names."""
    data: Any = getattr(pub, "data", None)
    return sorted(data) if hasattr(data, "keys") else None


def _arrays_of_pub(where: str, pub: Any) -> list[np.ndarray]:
    if isinstance(pub, list):
        return pub
    names = _registers(pub)
    if names == ["outcome"] and isinstance(pub.data["outcome"], BitArray):
        return [np.asarray(pub.data["outcome"].array)]
    if names is None or not {"evs", "stds"} <= set(names):
        raise WrongResult(
            f"{where}: got {names or type(pub).__name__}, expected the measured bits of the register 'outcome' alone, or "
            "expectation values 'evs' and standard errors 'stds'."
        )
    return [np.asarray(pub.data[name]) for name in ("evs", "stds")]


def _with_axes(array: np.ndarray, asked: Asked) -> np.ndarray:
    """An array with its axes of length one where they belong: some primitives leave them out."""
    of_shots = 0 if asked.shots is None else 2
    leading, rest = array.shape[: array.ndim - of_shots], array.shape[array.ndim - of_shots :]
    if [size for size in leading if size != 1] == [size for size in asked.shape if size != 1]:
        return array.reshape(*asked.shape, *rest)
    return array


def _check_bits(where: str, packed: np.ndarray, asked: Asked) -> None:
    assert asked.shots is not None
    enough = asked.at_least and packed.ndim > 1 and packed.shape[-2] > asked.shots
    shots = packed.shape[-2] if enough else asked.shots
    _require_shape(where, packed, (*asked.shape, shots, math.ceil(asked.bits / 8)), "parameter sets, shots, bytes")
    if packed.dtype != np.uint8:
        raise WrongResult(f"{where}: got bits of type {packed.dtype}, expected uint8.")
    if asked.bits % 8 and np.any(packed[..., 0] >> (asked.bits % 8)):
        raise WrongResult(f"{where}: got more than the {asked.bits} bit(s) a shot that were expected.")


def _check_values(where: str, values: np.ndarray, errors: np.ndarray, asked: Asked) -> None:
    for name, array in {"values": values, "standard errors": errors}.items():
        _require_shape(where, array, asked.shape, name)
        if array.dtype.kind not in "fiu":
            raise WrongResult(f"{where}: got {name} of type {array.dtype}, expected real numbers.")
    if not np.isfinite(values).all():
        raise WrongResult(f"{where}: got {_first(values, ~np.isfinite(values))}, expected finite values.")
    wrong = ~(errors >= 0) if asked.extrapolates else ~((errors >= 0) & np.isfinite(errors))
    if wrong.any():
        raise WrongResult(f"{where}: got {_first(errors, wrong)}, expected standard errors that are finite and from 0.")


def _require_equal(where: str, what: str, got: int, expected: int) -> None:
    if got != expected:
        raise WrongResult(f"{where}: got {got} {what}, expected {expected}.")


def _require_shape(where: str, array: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if array.shape != shape:
        raise WrongResult(f"{where}: got shape {array.shape} ({what}), expected {shape}.")


def _first(array: np.ndarray, wrong: np.ndarray) -> str:
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    return f"{array[place]} at {place}"
