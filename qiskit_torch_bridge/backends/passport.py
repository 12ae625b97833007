"""Where a result comes from, and what the jobs behind it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ibm.ledger import Entry

__all__ = ["Passport", "costs_by_passports", "costs_of_jobs"]


@dataclass(frozen=True, kw_only=True)
class Passport:
    """All that one must know of a measurement to repeat it, or to doubt it.

    Attributes:
        backend: The device's name.
        calibrated: When it was last calibrated before the jobs were sent (ISO 8601, UTC), one entry a job; empty where it
            does not say.
        layouts: For each measured circuit, the device's qubit for each of the logical circuit's, in their order.
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

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Passport:
        """From :meth:`as_dict`, also after a way through JSON, which has no tuples."""
        layouts = tuple(tuple(layout) for layout in entries["layouts"])
        lists = {name: tuple(entries[name]) for name in ("calibrated", "job_ids", "sessions")}
        return cls(**{**entries, **lists, "layouts": layouts})


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
