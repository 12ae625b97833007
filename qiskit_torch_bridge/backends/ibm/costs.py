"""What jobs came to: how many they were, and their seconds on the quantum processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .ledger import Entry

__all__ = ["costs_by_passports", "costs_of_jobs"]


def costs_of_jobs(entries: Sequence[Entry]) -> dict[str, Any]:
    """Of jobs of a ledger: how many, billed seconds (None while some are not known), estimated seconds."""
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
