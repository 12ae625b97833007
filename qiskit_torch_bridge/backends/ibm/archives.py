"""What primitives return, as bytes that can be kept, and read again only if nothing has happened to them."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from ..results import Arrays, Asked, WrongResult, check_arrays
from .errors import LedgerError
from .ledger import Ledger, ResultDamaged

__all__ = ["Arrays", "arrays_of", "asked_of_jobs", "bytes_of", "read_archive", "stored_result", "way_to_forget"]

_ENTRY_BYTES = 46  # of an archive's directory, at least: what is as long beside a name may be an entry that was lost
_MOST_EXPANDED = 1040  # times that compressed bytes can grow: what claims more has a forged size


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


def asked_of_jobs(ledger: Ledger) -> dict[str, list[Asked]]:
    """What each job was to bring back, by its key, as far as the evaluations that it is for say."""
    jobs: dict[str, dict[int, Asked]] = {}
    for description, _ in ledger.evaluations():
        for part, asked in zip(description["parts"], description.get("asked", ()), strict=False):
            for (key, place), (shape, *rest) in zip(part, asked, strict=True):
                jobs.setdefault(key, {})[place] = Asked(tuple(shape), *rest)
    return {key: [pubs[place] for place in range(len(pubs))] for key, pubs in jobs.items() if max(pubs) < len(pubs)}


def stored_result(ledger: Ledger, number: int, asked: Sequence[Asked] | None) -> Arrays:
    """The result of a job that is done, if it is what was asked for.

    Raises:
        LedgerError: If it is not, or damaged.
    """
    try:
        arrays = arrays_of(ledger.result(number))
        if asked is not None:
            check_arrays(arrays, asked)
    except ResultDamaged as error:
        raise LedgerError(f"{error} {way_to_forget(ledger, number)}") from None
    except (ValueError, WrongResult) as error:
        raise LedgerError(
            f"The result of job {number} in {ledger!r} is damaged, or not what was asked for: {error} All others remain. "
            f"{way_to_forget(ledger, number)}"
        ) from None
    return arrays


def way_to_forget(ledger: Ledger, number: int) -> str:
    """How a user gives up a job that was paid for."""
    command = f" (or `qtb jobs {ledger.path} --forget {number}`)" if ledger.path else ""
    return (
        f"IBMBackend.forget({number}){command} gives it up: then the same run sends it again, which is paid for again."
    )


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
