"""What the measurements come to: rows, ratios against peers, and how times grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case, Target
from .measuring import CaseResult, FreshResult, SystemResult
from .systems import System

_FROM_BATCH = 256
_FEW_QUBITS = 12
_MANY_QUBITS = 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of our systems against a peer.

    Attributes:
        case: On which problem.
        ours: Name of our system.
        our_seconds: Seconds a step; NaN where it was not timed.
        peer: Name of the peer; None where no peer was timed.
        peer_seconds: Likewise.
        target: The ratio to reach; None where there is none.
        against_best: Whether the peer is the fastest of the run.
        least_ratio: How many times faster ours is when the fastest repetition of each counts. Where this is another
            number than :attr:`ratio`, something else has kept the machine busy.
    """

    case: Case
    ours: str
    our_seconds: float
    peer: str | None
    peer_seconds: float
    target: float | None
    against_best: bool
    least_ratio: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is; NaN where one of the two was not timed."""
        return self.peer_seconds / self.our_seconds


def comparisons(result: CaseResult, systems: Mapping[str, System]) -> list[Comparison]:
    """Each of our systems against the fastest peer, and against those that a target names."""
    case = result.case
    peers = {
        name: outcome
        for name, outcome in result.systems.items()
        if not systems[name].ours and not math.isnan(outcome.median)
    }
    best = min(peers, key=lambda name: peers[name].median, default=None)
    rows = []
    for name in (name for name in result.systems if systems[name].ours):
        targets = [target for target in case.targets if target.ours == name]
        if not any(target.peer is None for target in targets):
            targets = [Target(math.nan, ours=name), *targets]
        for target in targets:
            peer = best if target.peer is None else target.peer
            of_peer = SystemResult() if peer is None else peers.get(peer, SystemResult())
            ours = result.systems[name]
            rows.append(
                Comparison(
                    case=case,
                    ours=name,
                    our_seconds=ours.median,
                    peer=peer,
                    peer_seconds=of_peer.median,
                    target=None if math.isnan(target.ratio) else target.ratio,
                    against_best=target.peer is None,
                    least_ratio=of_peer.least / ours.least,
                )
            )
    return rows


def timing_rows(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """One row a timing; one, without a time, for each system that was not timed."""
    rows = []
    for result in results:
        case, size = result.case, result.problem_size
        for name, outcome in result.systems.items():
            timed = outcome.status == "timed"
            for repetition, seconds in enumerate(outcome.seconds) if timed else [("", "")]:
                kernel = outcome.kernel_seconds[int(repetition)] if timed and outcome.kernel_seconds else ""
                rows.append(
                    {
                        "case": case.name,
                        "series": "" if case.series is None else case.series.axis,
                        **size,
                        "shots": "" if case.shots is None else case.shots,
                        "system": name,
                        "status": outcome.status,
                        "repetition": repetition,
                        "steps": outcome.steps,
                        "seconds_per_step": seconds,
                        "kernel_seconds_per_step": kernel,
                    }
                )
    return rows


def series_points(results: Sequence[CaseResult], axis: str) -> dict[str, list[tuple[int, float]]]:
    """For each system the places on the axis where it was timed, and its seconds there."""
    points: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        if result.case.series is None or result.case.series.axis != axis:
            continue
        for name, outcome in result.systems.items():
            if not math.isnan(outcome.median):
                points.setdefault(name, []).append((result.case.series.x, outcome.median))
    return points


def growth(results: Sequence[CaseResult], system: str) -> dict[str, float]:
    """How a system's time grows, as far as it was measured.

    Returns:
        ``batch_exponent`` and ``weights_exponent``: of a power law through two points of the series, the last and the first
        from which on constant costs do not count (a batch of 256; half as many weights). Linear is 1.
        ``qubits_constant_ratio``: seconds for each gate and amplitude with 20 qubits, in units of those with 12.
    """
    rates = {}
    batch = [point for point in series_points(results, "batch").get(system, []) if point[0] >= _FROM_BATCH]
    weights = series_points(results, "weights").get(system, [])
    weights = [point for point in weights if 2 * point[0] >= weights[-1][0]]
    for name, points in (("batch_exponent", batch), ("weights_exponent", weights)):
        if len(points) > 1:
            (x0, t0), (x1, t1) = points[0], points[-1]
            rates[name] = math.log(t1 / t0) / math.log(x1 / x0)
    seconds = dict(series_points(results, "qubits").get(system, []))
    gates = {
        r.case.series.x: r.problem_size["gates"] for r in results if r.case.series and r.case.series.axis == "qubits"
    }
    if {_FEW_QUBITS, _MANY_QUBITS} <= seconds.keys():
        few, many = (seconds[n] / (gates[n] * 2**n) for n in (_FEW_QUBITS, _MANY_QUBITS))
        rates["qubits_constant_ratio"] = many / few
    return rates


def result_of(
    results: Sequence[CaseResult],
    fresh: Sequence[FreshResult],
    systems: Mapping[str, System],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it, as JSON can carry it: null stands for what was not measured."""
    environments: dict[str, Any] = {}
    for result in results:
        for name, outcome in result.systems.items():
            if outcome.preparation:
                environments[name] = {key: outcome.preparation[key] for key in ("versions", "threads")}
    return {
        "experiment": "benchmark",
        "machine": dict(machine),
        "environments": environments,
        "cases": {result.case.name: _case_of(result, systems) for result in results},
        "growth": {name: rates for name in systems if (rates := growth(results, name))},
        "fresh": [
            {
                "case": item.case.name,
                "system": item.system,
                "cache": item.cache,
                "status": item.outcome.status,
                "reason": item.outcome.reason,
                **{
                    key: item.outcome.preparation.get(key)
                    for key in ("import_seconds", "build_seconds", "first_step_seconds", "memory_bytes")
                },
                "memory_is_lower_bound": item.outcome.preparation.get("memory_is_lower_bound"),
            }
            for item in fresh
        ],
    }


def _case_of(result: CaseResult, systems: Mapping[str, System]) -> dict[str, Any]:
    return {
        "title": result.case.title,
        "shots": result.case.shots,
        **result.problem_size,
        "systems": {
            name: {
                "status": outcome.status,
                "reason": outcome.reason,
                "deviation": _number(outcome.deviation),
                "median_seconds": _number(outcome.median),
                "least_seconds": _number(outcome.least),
                "most_seconds": max(outcome.seconds, default=None) if outcome.status == "timed" else None,
                "repetitions": len(outcome.seconds) if outcome.status == "timed" else 0,
            }
            for name, outcome in result.systems.items()
        },
        "comparisons": [
            {
                "ours": row.ours,
                "peer": row.peer,
                "ratio": _number(row.ratio),
                "least_ratio": _number(row.least_ratio),
                "target": row.target,
                "against_best": row.against_best,
            }
            for row in comparisons(result, systems)
        ],
    }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
