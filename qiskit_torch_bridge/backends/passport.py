"""Where a result comes from, and what the jobs behind it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .ibm.ledger import Entry

__all__ = ["PackedRows", "Passport", "costs_by_passports", "costs_of_jobs"]


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """Where the rows of a circuit ran whose copies were executed side by side.

    The pieces of all rows, those of a row after each other, are given to the regions in turn, from the region ``first`` on;
    as many pieces as there are regions make a set, which is executed at once.

    Attributes:
        rows: How many there were.
        pieces: In how many pieces each row's shots were taken.
        shots: Of each piece.
        bits: That were measured of each row and shot; 0 where an Estimator gave values.
        first: The region of the first piece, among the layouts.
        layouts: For each region, the device's qubit for each of the logical circuit's, in their order; -1 for those that
            the circuit does not use.
    """

    rows: int
    pieces: int
    shots: int
    bits: int
    first: int
    layouts: tuple[tuple[int, ...], ...]

    @property
    def num_sets(self) -> int:
        """How many sets are executed."""
        return -(-self.rows * self.pieces // len(self.layouts))

    @property
    def starts(self) -> np.ndarray:
        """Shape (rows,): the set in which each row begins."""
        return np.arange(self.rows) * self.pieces // len(self.layouts)

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The set and the region of each piece, each of shape (rows, pieces)."""
        sets, turns = np.divmod(np.arange(self.rows * self.pieces), len(self.layouts))
        regions = (turns + self.first) % len(self.layouts)
        return sets.reshape(self.rows, -1), regions.reshape(self.rows, -1)

    def rows_of_sets(self) -> np.ndarray:
        """Shape (sets, regions): which row each region measures; -1: none, its result is not used."""
        table = np.full((self.num_sets, len(self.layouts)), -1)
        table[self.places()] = np.arange(self.rows)[:, None]
        return table

    def layouts_of(self, row: int) -> tuple[tuple[int, ...], ...]:
        """Where the pieces of a row ran, in their order."""
        _, regions = self.places()
        return tuple(self.layouts[region] for region in regions[row])


@dataclass(frozen=True, kw_only=True)
class Passport:
    """All that one must know of a measurement to repeat it, or to doubt it.

    Attributes:
        backend: The device's name.
        calibrated: When it was last calibrated before the jobs were sent (ISO 8601, UTC), one entry a job; empty where it
            does not say.
        layouts: For each measured circuit, the device's qubit for each of the logical circuit's, in their order; where
            it was executed in copies side by side, those of the best region.
        packing: For each measured circuit, which row ran where, if it was executed in copies side by side.
        optimization_level: The transpiler's; None: it was a pass manager of the user's own.
        seed_transpiler: The transpiler's seed.
        primitive: ``"sampler"`` or ``"estimator"``.
        options: The primitive's options that differ from its defaults.
        shots: Shots a circuit that were asked for; None for the primitive's default.
        job_ids: The jobs.
        sessions: The sessions or batches that they were part of.
        usage_seconds: Billed seconds on the quantum processor, in all jobs, as far as the service has said.
        estimated_seconds: What they were estimated to be.
        versions: Of the packages that had a part in it.
    """

    backend: str
    calibrated: tuple[str, ...]
    layouts: tuple[tuple[int, ...], ...]
    optimization_level: int | None
    seed_transpiler: int | None
    primitive: str
    options: Mapping[str, Any]
    shots: int | None
    job_ids: tuple[str, ...]
    sessions: tuple[str, ...]
    usage_seconds: float | None
    estimated_seconds: float
    versions: Mapping[str, str]
    packing: tuple[PackedRows, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Passport:
        """From :meth:`as_dict`, also after a way through JSON, which has no tuples."""
        lists: dict[str, Any] = {name: tuple(entries[name]) for name in ("calibrated", "job_ids", "sessions")}
        lists["layouts"] = _tuples(entries["layouts"])
        packing = entries.get("packing", ())  # earlier versions knew none
        lists["packing"] = tuple(PackedRows(**{**each, "layouts": _tuples(each["layouts"])}) for each in packing)
        return cls(**{**entries, **lists})


def _tuples(layouts: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, layouts))


def costs_of_jobs(entries: Sequence[Entry]) -> dict[str, Any]:
    """What jobs of a ledger came to: how many, billed seconds (None while some are not known), estimated seconds."""
    billed = [entry.usage_seconds for entry in entries if entry.state == "done" or entry.usage_seconds is not None]
    return {
        "jobs": len(entries),
        "qpu_seconds": None if None in billed else round(sum(filter(None, billed)), 3),
        "qpu_seconds_estimated": round(sum(e.estimated_seconds for e in entries if e.state != "cancelled"), 3),
    }


def costs_by_passports(seconds: Mapping[tuple[str, ...], tuple[float | None, float]]) -> dict[str, Any]:
    """The same by passports alone, which cannot tell whose seconds are whose where they share some jobs but not all.

    Args:
        seconds: Billed (None if not known) and estimated seconds of the jobs of each passport, by their ids.
    """
    jobs = {job_id for ids in seconds for job_id in ids}
    apart = sum(map(len, seconds)) == len(jobs)
    billed, estimated = zip(*seconds.values(), strict=True)
    return {
        "jobs": len(jobs),
        "qpu_seconds": round(sum(billed), 3) if apart and None not in billed else None,
        "qpu_seconds_estimated": round(sum(estimated), 3) if apart else None,
    }
