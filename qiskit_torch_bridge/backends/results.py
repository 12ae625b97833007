"""What a primitive is asked, whether that is what came back, and what is made of it: bytes that can be kept, and values.

A value of too few shots or of a bit that is not there looks like any other. So whatever a primitive, a service, a ledger or
a recording hands over is compared with what was asked for before a number is made of it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, BinaryIO

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import BitArray
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import SparsePauliOp

from ..program.compiled import Program
from ..program.readout import Samples
from ..shots.covariance import Covariance, variance_of_one_shot
from .base import Estimate
from .folds import Folds

__all__ = [
    "Arrays",
    "Asked",
    "BoundCircuit",
    "WrongResult",
    "arrays_from",
    "arrays_of",
    "bindings_of",
    "bytes_of",
    "check_arrays",
    "estimate_from_samples",
    "pubs_of",
    "read_archive",
    "samples_of",
]

_ENTRY_BYTES = 46  # of an archive's directory, at least: what is as long beside a name may be an entry that was lost
_MOST_EXPANDED = 1040  # times that compressed bytes can grow: what claims more has a forged size

Arrays = list[list[np.ndarray]]
"""For each PUB, the arrays of its result: measured bits, packed, of shape (..., shots, bytes); or expectation values
and standard errors, each of shape (outputs, ...)."""


class WrongResult(RuntimeError):  # noqa: N818 - not an error of whoever sees it
    """What came back is not what was asked for; nothing was made of it."""


@dataclass(frozen=True, eq=False)
class BoundCircuit:
    """A circuit each parameter of which is an affine function of the program's angles: ``angles @ slopes + offsets``.

    Attributes:
        circuit: The circuit.
        parameters: Its P parameters.
        slopes: Shape (A, P).
        offsets: Shape (P,); radians.
        folds: What is made of these numbers, where some are of gates that take a range of angles only. (Without it they
            are right too, but out of the range, so that IBM's validators refuse them.)
    """

    circuit: QuantumCircuit
    parameters: tuple[Parameter, ...]
    slopes: np.ndarray
    offsets: np.ndarray
    folds: Folds | None = field(default=None, kw_only=True)

    def values(self, angles: np.ndarray) -> np.ndarray:
        """Shape (N, P): the parameters' values."""
        values: np.ndarray = angles @ self.slopes + self.offsets
        return values if self.folds is None else self.folds.values(values)


def bindings_of(bound: BoundCircuit, angles: np.ndarray) -> BindingsArray:
    """N parameter sets; by object, so that no order of names matters."""
    return BindingsArray({bound.parameters: bound.values(angles)})


def pubs_of(
    bound: BoundCircuit, angles: np.ndarray, observables: Sequence[SparsePauliOp] = ()
) -> list[tuple[Any, ...]]:
    """The PUBs of a circuit at N rows of angles: one with N parameter sets or, where there are no parameters, N PUBs.

    ``observables``: for an Estimator, what is to be estimated of each row.
    """
    pub: tuple[Any, ...] = (bound.circuit, [[o] for o in observables]) if observables else (bound.circuit,)
    if not bound.parameters:  # there is nothing to broadcast over
        return [pub] * len(angles)
    return [(*pub, bindings_of(bound, angles))]


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
    _: KW_ONLY
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


def bytes_of(arrays: Arrays) -> bytes:
    """Results as bytes: a compressed NumPy archive, without anything that could be executed."""
    buffer = io.BytesIO()
    named = {f"{pub}/{place}": array for pub, group in enumerate(arrays) for place, array in enumerate(group)}
    np.savez_compressed(buffer, **named)  # type: ignore[arg-type]
    return buffer.getvalue()


def arrays_of(data: bytes) -> Arrays:
    """Results from :func:`bytes_of`.

    Raises:
        ValueError: If the bytes are damaged, however that may be.
    """
    named = read_archive(io.BytesIO(data))
    groups: dict[int, int] = {}
    for name in named:
        pub = name.split("/")[0]
        if pub.isdecimal():
            groups[int(pub)] = groups.get(int(pub), 0) + 1
    expected = [[f"{pub}/{place}" for place in range(groups.get(pub, 0))] for pub in range(len(groups))]
    if set(named) != {name for group in expected for name in group}:
        raise ValueError(f"got arrays named {sorted(named)}, expected PUB/PLACE without gaps")
    return [[named[name] for name in group] for group in expected]


def read_archive(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive (``.npz``), whose sizes are checked before they are believed.

    Raises:
        ValueError: If it is damaged, however that may be.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it holds an array twice")
            if any(len(member.comment) + len(member.extra) >= _ENTRY_BYTES for member in members):
                raise ValueError("its directory is damaged")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except Exception as error:  # for damaged bytes zipfile, zlib and NumPy raise a dozen kinds of errors
        raise ValueError(f"{type(error).__name__}: {error}") from error


def samples_of(arrays: Sequence[np.ndarray], rows: int, num_bits: int) -> Samples:
    """The measured bit strings of N parameter sets, from packed bits of shape (..., shots, bytes) in their order.

    Raises:
        WrongResult: If they are the bits of something else.
    """
    shapes = {array.shape[-2:] for array in arrays}
    sets = sum(math.prod(array.shape[:-2]) for array in arrays)
    if sets != rows or len(shapes) > 1 or any(size != math.ceil(num_bits / 8) for _, size in shapes):
        raise WrongResult(
            f"got {sets} parameter set(s) with (shots, bytes) of {sorted(shapes)}, expected {rows} with the same shots and "
            f"the bytes of {num_bits} bit(s)."
        )
    packed = np.concatenate([array.reshape(-1, *array.shape[-2:]) for array in arrays])
    shots = packed.shape[1]
    bits = np.unpackbits(packed, axis=-1, bitorder="big")[..., ::-1][..., :num_bits].reshape(rows * shots, num_bits)
    return Samples(np.repeat(np.arange(rows), shots), bits, np.ones(rows * shots, dtype=np.int64), rows)


def estimate_from_samples(program: Program, samples: Sequence[Samples], rows: int) -> Estimate:
    """Values and variances from measured bit strings, one :class:`Samples` a group, by the shots that were taken."""
    readout = program.readout
    values = np.broadcast_to(readout.constants, (rows, readout.num_outputs)).copy()
    variances = np.zeros_like(values)
    for group, outcomes in zip(readout.groups, samples, strict=True):
        first, second = group.sample_moments(outcomes)
        values += first
        degrees = np.where(outcomes.shots > 1, outcomes.shots - 1.0, np.nan)  # one shot says nothing about its variance
        variances += np.maximum(second - first**2, 0.0) / degrees[:, None]
    shots = sum(int(outcomes.shots.sum()) for outcomes in samples)
    if readout.num_outputs == 1 and samples:  # the same, and quicker
        covariance = Covariance.of_independent(variances, samples[0].shots)
    else:
        covariance = _covariance_from_samples(program, samples, rows)
    measured = tuple(samples)
    return Estimate(values, variances, rows * len(samples), shots, covariance=covariance, outcomes=lambda: measured)


def _covariance_from_samples(program: Program, samples: Sequence[Samples], rows: int) -> Covariance:
    groups = program.readout.groups

    def of_one_shot(upstream: np.ndarray) -> np.ndarray:
        variances = np.zeros(rows)
        for group, outcomes in zip(groups, samples, strict=True):
            variances += variance_of_one_shot(group, outcomes, upstream, outcomes.shots)
        return variances

    # One number of shots for all measurements of a call.
    return Covariance(of_one_shot, samples[0].shots if samples else np.inf, rows)


def _registers(pub: Any) -> list[str] | None:
    """The names of what a PUB returned, if there are names."""
    data: Any = getattr(pub, "data", None)
    return sorted(data) if hasattr(data, "keys") else None


def _arrays_of_pub(where: str, pub: Any) -> list[np.ndarray]:
    if isinstance(pub, list):
        return [np.asarray(array) for array in pub]
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


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, in_fortran_order, dtype = readers[np.lib.format.read_magic(file)](file)
        size = member.file_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{member.filename} has {size} bytes, but is said to have shape {shape} of {dtype}")
        if member.file_size > _MOST_EXPANDED * (member.compress_size + 1):
            raise ValueError(f"{member.filename} is said to have {member.file_size} bytes, more than it can have")
        data = file.read()
    return np.ndarray(shape, dtype, buffer=data, order="F" if in_fortran_order else "C").copy(order="K")
