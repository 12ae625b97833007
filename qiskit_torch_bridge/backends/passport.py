"""Where a result comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Passport"]


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
