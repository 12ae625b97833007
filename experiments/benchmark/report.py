"""What the measurements come to: rows, ratios against peers, how times grow, and the text and the figure of them."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .cases import System, Target
from .measuring import CaseResult, FreshResult, SystemResult

_FROM_BATCH = 256
_FEW_QUBITS, _MANY_QUBITS = 12, 20
_AXES = {
    "qubits": ("qubits", "strongly entangling, 4 layers, batch 1"),
    "batch": ("batch (rows)", "dressed, depth 6"),
    "weights": ("weights", "dressed, batch 16"),
}
_GROWTH = {
    "batch_exponent": "time grows as batch to the power {:.2f} (large batches)",
    "weights_exponent": "as weights to the power {:.2f} (many weights)",
    "qubits_constant_ratio": "a gate on an amplitude takes {:.2f} times as long with 20 qubits as with 12",
}
_MARKS = ("o", "s", "^", "D", "v", "P", "X")

_Results = Sequence[CaseResult]
_Systems = Mapping[str, System]


@dataclass(frozen=True)
class Comparison:
    """One of our systems against a peer, on one case; NaN for what was not timed, or is not aimed at.

    Attributes:
        ours: Name of our system.
        peer: Name of the peer; None where no peer was timed.
        ratio: How many times faster ours is.
        least_ratio: The same when the fastest repetition of each counts. Where this is another number than
            :attr:`ratio`, something else has kept the machine busy.
        target: The ratio to reach.
        against_best: Whether the peer is the fastest of the run.
    """

    ours: str
    peer: str | None
    ratio: float
    least_ratio: float
    target: float
    against_best: bool


def comparisons(result: CaseResult, systems: _Systems) -> list[Comparison]:
    """Each of our systems against the fastest peer, and against those that a target names."""
    peers = {name: outcome for name, outcome in result.systems.items() if not systems[name].ours and outcome.timings}
    best = min(peers, key=lambda name: peers[name].median, default=None)
    rows = []
    for name, ours in result.systems.items():
        if systems[name].ours:
            targets = [target for target in result.case.targets if target.ours == name]
            if all(target.peer for target in targets):
                targets.insert(0, Target(math.nan, ours=name))
            for target in targets:
                peer = target.peer or best
                theirs = peers.get(peer or "", SystemResult())
                ratios = theirs.median / ours.median, theirs.least / ours.least
                rows.append(Comparison(name, peer, *ratios, target.ratio, against_best=target.peer is None))
    return rows


def timing_rows(results: _Results) -> list[dict[str, Any]]:
    """One row a timing; one, without a time, for each system that was not timed."""
    rows = []
    for result in results:
        for name, outcome in result.systems.items():
            timings: list[tuple[Any, Any]] = [*enumerate(outcome.timings)]
            for repetition, seconds in timings or [("", "")]:
                rows.append(
                    {
                        "case": result.case.name,
                        "series": result.case.series or "",
                        **result.problem_size,
                        "shots": result.case.shots or "",
                        "system": name,
                        "status": outcome.status,
                        "repetition": repetition,
                        "steps": outcome.steps,
                        "seconds_per_step": seconds,
                        "kernel_seconds_per_step": dict(enumerate(outcome.kernel_seconds)).get(repetition, ""),
                    }
                )
    return rows


def growth(results: _Results, system: str) -> dict[str, float]:
    """How a system's time grows, as far as it was measured.

    Returns:
        ``batch_exponent`` and ``weights_exponent``: of a power law through two points of the series, the last and the first
        from which on constant costs do not count (a batch of 256; half as many weights). Linear is 1.
        ``qubits_constant_ratio``: seconds for each gate and amplitude with 20 qubits, in units of those with 12.
    """
    rates = {}
    for axis in ("batch", "weights"):
        points = [(size[axis], seconds) for size, seconds in _points(results, axis, system)]
        first = _FROM_BATCH if axis == "batch" else max(points, default=(0, 0))[0] / 2
        points = [point for point in points if point[0] >= first]
        if len(points) > 1:
            (x0, t0), (x1, t1) = points[0], points[-1]
            rates[f"{axis}_exponent"] = math.log(t1 / t0) / math.log(x1 / x0)
    constants = {
        size["qubits"]: seconds / (size["gates"] * 2 ** size["qubits"])
        for size, seconds in _points(results, "qubits", system)
    }
    if {_FEW_QUBITS, _MANY_QUBITS} <= constants.keys():
        rates["qubits_constant_ratio"] = constants[_MANY_QUBITS] / constants[_FEW_QUBITS]
    return rates


def _points(results: _Results, axis: str, system: str) -> list[tuple[Mapping[str, int], float]]:
    """The sizes in a series at which a system was timed, and its seconds there."""
    return [
        (result.problem_size, result.systems[system].median)
        for result in results
        if result.case.series == axis and system in result.systems and result.systems[system].timings
    ]


def result_of(
    results: _Results, fresh: Sequence[FreshResult], systems: _Systems, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, as JSON can carry it: null stands for what was not measured."""
    said = ("import_seconds", "build_seconds", "first_step_seconds", "memory_bytes", "memory_is_lower_bound")
    return {
        "experiment": "benchmark",
        "machine": dict(machine),
        "environments": _environments(results),
        "cases": {
            result.case.name: {
                "title": result.case.title,
                "shots": result.case.shots,
                **result.problem_size,
                "systems": {name: _finite(_outcome(outcome)) for name, outcome in result.systems.items()},
                "comparisons": [_finite(vars(row)) for row in comparisons(result, systems)],
            }
            for result in results
        },
        "growth": {name: rates for name in systems if (rates := growth(results, name))},
        "fresh": [
            {
                "case": item.case.name,
                "system": item.system,
                "cache": item.cache,
                "status": item.outcome.status,
                "reason": item.outcome.reason,
                **{key: item.outcome.preparation.get(key) for key in said},
            }
            for item in fresh
        ],
    }


def _outcome(outcome: SystemResult) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "deviation": outcome.deviation,
        "median_seconds": outcome.median,
        "least_seconds": outcome.least,
        "most_seconds": max(outcome.timings, default=None),
        "repetitions": len(outcome.timings),
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}


def _environments(results: _Results) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """The versions and threads of each system."""
    return {
        name: {key: outcome.preparation[key] for key in ("versions", "threads")}
        for result in results
        for name, outcome in result.systems.items()
        if outcome.preparation
    }


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, operating system and Python; nothing that tells whose machine it is."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    # Neither macOS nor Windows says which cores a process may use.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "cores_available": available,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(psutil.getloadavg()[0], 2),
    }


def scaling_figure(results: _Results, systems: _Systems) -> Figure | None:
    """Time against qubits, batch and weights; None where no series was measured."""
    axes_measured = [axis for axis in _AXES if any(_points(results, axis, name) for name in systems)]
    if not axes_measured:
        return None
    figure = Figure(figsize=(1.2 + 3.9 * len(axes_measured), 4.2), layout="constrained")
    handles = {}
    for axes, axis in zip(figure.subplots(1, len(axes_measured), squeeze=False)[0], axes_measured, strict=True):
        for position, (name, system) in enumerate(systems.items()):
            if points := _points(results, axis, name):
                (handles[system.title],) = axes.plot(
                    [size[axis] for size, _ in points],
                    [seconds for _, seconds in points],
                    linestyle="-" if system.ours else "--",
                    color="black" if system.ours else str(0.25 + 0.12 * (position % 4)),
                    marker=_MARKS[position % len(_MARKS)],
                    markersize=5,
                    linewidth=2 if system.ours else 1.2,
                )
        label, circuit = _AXES[axis]
        axes.set_yscale("log")
        if axis == "qubits":  # the time itself is exponential in them
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("time for one training step (s)")
        axes.set_title(circuit, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def markdown(results: _Results, fresh: Sequence[FreshResult], systems: _Systems, machine: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    measured = {name for result in results for name in result.systems}
    sections = {
        "Milliseconds for one training step (forward and backward), medians. Where the fastest timings of all give another "
        "ratio, other processes have kept the machine busy:": _speed(results, systems),
        "Growth:": [
            f"- {system.title}: " + "; ".join(_GROWTH[key].format(value) for key, value in rates.items())
            for name, system in systems.items()
            if (rates := growth(results, name))
        ],
        "The layer's own share of a step:": _overhead(results),
        "First call in a new process, and the memory that it adds:": _fresh(fresh, systems),
        "Not timed:": _not_timed(results, systems),
        "The systems:": [
            f"- {each.title}: {each.note}" for name, each in systems.items() if name in measured and each.note
        ],
    }
    parts = [f"{title}\n\n" + "\n".join(lines) for title, lines in sections.items() if lines]
    return "\n\n".join([_machine_text(results, machine), *parts]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown, none where there are no rows; rows that end early are filled up."""
    filled = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *filled) if rows]


def _speed(results: _Results, systems: _Systems) -> list[str]:
    def peer(row: Comparison, result: CaseResult) -> str:
        if row.peer is None:
            return "none timed"
        title, outcome = systems[row.peer].title, result.systems[row.peer]
        kind = "fastest" if row.against_best else "named"
        return f"{title} ({kind}), {_digits(1e3 * outcome.median)}" if outcome.timings else f"{title} (not timed)"

    rows = [
        [
            result.case.title,
            systems[row.ours].title,
            _digits(1e3 * result.systems[row.ours].median),
            peer(row, result),
            _digits(row.ratio),
            _digits(row.least_ratio),
            "" if math.isnan(row.target) else "ahead" if row.target == 1 else f"{row.target:g}",
        ]
        for result in results
        if result.case.targets
        for row in comparisons(result, systems)
    ]
    return _table(["circuit", "ours", "ms", "peer, ms", "times faster", "(fastest timings)", "target"], rows)


def _overhead(results: _Results) -> list[str]:
    rows = []
    for result in results:
        if outcome := result.systems.get("ours-stopwatch"):
            cells = [outcome.status]
            if outcome.timings:
                step, kernel = outcome.median, statistics.median(outcome.kernel_seconds)
                times = (_digits(1e3 * seconds) for seconds in (step, kernel, step - kernel))
                cells = [*times, f"{(step - kernel) / step:.0%}"]
            rows.append([result.case.title, *cells])
    return _table(["circuit", "step, ms", "inside the backend, ms", "the layer's own, ms", "share"], rows)


def _fresh(fresh: Sequence[FreshResult], systems: _Systems) -> list[str]:
    rows = []
    for item in fresh:
        system, said = systems[item.system], item.outcome.preparation
        cells = [item.outcome.status]
        if item.outcome.status == "timed":
            memory = "" if said["memory_bytes"] is None else f"{said['memory_bytes'] / 2**20:.0f}"
            bound = "at least " if memory and said["memory_is_lower_bound"] else ""
            times = (said[f"{what}_seconds"] for what in ("import", "build", "first_step"))
            cells = [*(f"{seconds:.2f}" for seconds in times), bound + memory]
        rows.append([item.case.title, system.title, item.cache if system.ours else "", *cells])
    header = ["circuit", "system", "cache of compiled code", "import, s", "making the layer, s", "first step, s"]
    return _table([*header, "memory, MiB"], rows)


def _not_timed(results: _Results, systems: _Systems) -> list[str]:
    cases: dict[str, list[str]] = {}
    for result in results:
        for name, outcome in result.systems.items():
            if outcome.status != "timed":
                cases.setdefault(f"- {systems[name].title}, {outcome.why}", []).append(result.case.name)
    return [f"{line} ({', '.join(names)})" for line, names in cases.items()]


def _machine_text(results: _Results, machine: Mapping[str, Any]) -> str:
    versions: dict[str, set[str]] = {}
    threads: dict[str, Any] = {}
    for said in _environments(results).values():
        for package, version in said["versions"].items():
            versions.setdefault(package, set()).add(version)
        threads |= {key: value for key, value in said["threads"].items() if value is not None}
    listed = ", ".join(f"{package} {' and '.join(sorted(numbers))}" for package, numbers in sorted(versions.items()))
    return (
        f"Measured on: {machine['cpu']}, {machine['cores_available']} of {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB; {machine['system']}, Python {machine['python']}; {listed}. "
        f"Threads: {', '.join(f'{key} {value}' for key, value in threads.items())}. "
        f"Load before the start: {machine['load_at_start']:g}."
    )


def _digits(value: float) -> str:
    """Three digits; a dash for what was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
