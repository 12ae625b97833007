"""Cells of a study: what identifies each, where its randomness comes from, and the file that its rows land in."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .runs import brief
from .workplace import threads

Cell = Mapping[str, Any]
"""The settings of one measurement: what JSON knows, by name."""

Row = Mapping[str, Any]
"""Numbers and words by name, a line of a table."""

Measure = Callable[[Cell, np.random.SeedSequence], Sequence[Row]]
"""What a study does with each cell: a function at the top of a module, whose rows follow from its arguments alone."""


class Outcome(NamedTuple):
    """What has become of a cell.

    Attributes:
        cell: The cell.
        value: What it came to: of a measurement the line for :class:`Journal`, of a training its result; None if it failed.
        error: Why it failed, on one line; empty if it did not.
    """

    cell: Any
    value: Any
    error: str = ""


class Record(NamedTuple):
    """A measured cell: its rows, and the seconds that they took."""

    rows: list[dict[str, Any]]
    seconds: float


def key_of(cell: Cell) -> str:
    """What identifies a cell: its content, whatever its place in a study and the order of its settings.

    Raises:
        TypeError, ValueError: If it holds what JSON does not know.
    """
    return json.dumps(cell, sort_keys=True, allow_nan=False)


def seed_of(seed: int, cell: Cell) -> np.random.SeedSequence:
    """The randomness of a cell: from the run's seed and the cell's content alone, so that it is the same on any worker."""
    digest = hashlib.sha256(key_of(cell).encode()).digest()
    return np.random.SeedSequence([seed, *np.frombuffer(digest, dtype="<u4").tolist()])


def measured(measure: Measure, cell: Cell, seed: int) -> Outcome:
    """Measures a cell, in one thread of torch; an error becomes part of the outcome.

    Args:
        measure: What to do.
        cell: With what.
        seed: The run's.
    """
    try:
        with threads(1):  # cells run side by side, one a core
            started = time.perf_counter()
            rows = [dict(row) for row in measure(cell, seed_of(seed, cell))]
            seconds = round(time.perf_counter() - started, 3)
        return Outcome(cell, json.dumps({"cell": dict(cell), "seconds": seconds, "rows": rows}, allow_nan=False))
    except Exception as error:
        return Outcome(cell, None, failure(error))


@dataclass(frozen=True)
class Journal:
    """The file of a study: a line of JSON for each measured cell, on the disk before the next is written.

    A process that is killed leaves whole lines and at most one torn one, the last, which does not count.

    Attributes:
        path: The file.
    """

    path: Path

    def read(self) -> dict[str, Record]:
        """The measured cells by :func:`key_of`.

        Raises:
            ValueError: If a whole line is not what :func:`measured` wrote.
        """
        *whole, _ = self._content().split(b"\n")
        return dict(self._record(number, line) for number, line in enumerate(whole, start=1))

    def mend(self) -> None:
        """Takes a torn last line away, so that the next one starts at its beginning."""
        content = self._content()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def append(self, line: str) -> None:
        """Writes a line of :func:`measured`; it is on the disk afterwards.

        Raises:
            OSError: If it cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while {self.path} was written; the cells before are kept. Free some space and continue "
                "with --resume.",
            ) from error

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _record(self, number: int, line: bytes) -> tuple[str, Record]:
        try:
            entry = json.loads(line)
            return key_of(entry["cell"]), Record(list(map(dict, entry["rows"])), float(entry["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is damaged (line {number}: {brief(error)}); take that line out, and its cell is measured "
                "again with --resume."
            ) from error


def failure(error: BaseException) -> str:
    """Why a cell failed, on one line, with the file and line that raised."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"
    return f"{type(error).__name__}: {brief(error)} ({place})"
