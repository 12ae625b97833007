"""What the measurements come to: rows, ratios against peers, how times grow, and the text and the figure of them."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .cases import Case, System, Target
from .measuring import Outcome, cores_available

_FROM_BATCH = 256
_FEW_QUBITS, _MANY_QUBITS = 12, 20
_FROM_NOISY_QUBITS = 8
_FROM_WIDE_QUBITS = 50
_AXES = {
    "qubits": ("qubits", "strongly entangling, 4 layers, batch 1"),
    "batch": ("batch (rows)", "dressed, depth 6"),
    "weights": ("weights", "dressed, batch 16"),
    "wide-qubits": ("qubits", "wide: brickwork, 2 layers, batch 4"),
    "noisy-qubits": ("qubits", "with noise: strongly entangling, 2 layers, batch 1"),
}
_GROWTH = {
    "batch_exponent": "time grows as batch to the power {:.2f} (large batches)",
    "weights_exponent": "as weights to the power {:.2f} (many weights)",
    "wide_qubits_exponent": "as qubits to the power {:.2f} at fixed depth (50 qubits and more)",
    "noisy_qubits_factor": "{:.2f} times as long for each qubit with noise (4: as a density matrix)",
    "qubits_constant_ratio": "a gate on an amplitude takes {:.2f} times as long with 20 qubits as with 12",
}
_MARKS = ("o", "s", "^", "D", "v", "P", "X")

_Outcomes = Sequence[Outcome]
_Systems = Mapping[str, System]


class Comparison(NamedTuple):
    """One of our systems against a peer, on one case; NaN for what was not timed, or is not aimed at.

    Attributes:
        ours: Name of our system.
        peer: Name of the peer; None where no PyTorch layer of theirs was timed.
        ratio: How many times faster ours is.
        least_ratio: The same when the fastest repetition of each counts. Where this is another number than
            :attr:`ratio`, something else has kept the machine busy.
        target: The ratio to reach.
        against_best: Whether the peer is the fastest PyTorch layer of the run.
        target_seconds: The longest that a step of ours may take.
    """

    ours: str
    peer: str | None
    ratio: float
    least_ratio: float
    target: float
    against_best: bool
    target_seconds: float = math.nan


def by_case(outcomes: _Outcomes) -> list[tuple[Case, dict[str, Outcome]]]:
    """Each case, with its systems' outcomes by their names."""
    cases = groupby(outcomes, key=lambda outcome: outcome.case)
    return [(case, {outcome.system: outcome for outcome in group}) for case, group in cases]


def comparisons(case: Case, found: Mapping[str, Outcome], systems: _Systems) -> list[Comparison]:
    """Each of our systems against the fastest PyTorch layer, and against the peers that a target names."""
    timed = {name: outcome for name, outcome in found.items() if outcome.seconds}
    layers = [name for name in timed if systems[name].layer and not systems[name].ours]
    best = min(layers, key=lambda name: timed[name].median, default=None)
    rows = []
    for name in filter(lambda name: systems[name].ours, found):
        targets = [target for target in case.targets if target.ours == name]
        if all(target.peer for target in targets):
            targets.insert(0, Target(math.nan, ours=name))
        for target in targets:
            peer = target.peer or best
            ratios = math.nan, math.nan
            if peer is not None and peer in timed:
                ratios = timed[peer].median / found[name].median, timed[peer].least / found[name].least
            rows.append(Comparison(name, peer, *ratios, target.ratio, target.peer is None, target.seconds))
    return rows


def timing_rows(outcomes: _Outcomes) -> list[dict[str, Any]]:
    """One row a timing; one, without a time, for each system that was not timed."""
    return [
        {
            "case": outcome.case.name,
            "series": outcome.case.series or "",
            **outcome.case.size,
            "shots": outcome.case.shots or "",
            "noise": outcome.case.noise is not None,
            "system": outcome.system,
            "status": outcome.status,
            "repetition": repetition,
            "steps": outcome.steps,
            "seconds_per_step": seconds,
            "kernel_seconds_per_step": kernel_seconds,
        }
        for outcome in outcomes
        for repetition, seconds, kernel_seconds in _timings(outcome) or [("", "", "")]
    ]


def _timings(outcome: Outcome) -> list[tuple[Any, Any, Any]]:
    seconds = outcome.seconds
    return [*zip_longest(range(len(seconds)), seconds, outcome.kernel_seconds[: len(seconds)], fillvalue="")]


def growth(outcomes: _Outcomes, system: str) -> dict[str, float]:
    """How a system's time grows, as far as it was measured.

    Returns:
        ``batch_exponent`` and ``weights_exponent``: of a power law through two points of the series, the last and the first
        from which on constant costs do not count (a batch of 256; half as many weights). Linear is 1.
        ``qubits_constant_ratio``: seconds for each gate and amplitude with 20 qubits, in units of those with 12.
        ``wide_qubits_exponent``: the same for qubits at fixed depth, from 50 on.
        ``noisy_qubits_factor``: how many times as long a step takes for each qubit more, from 8 qubits with noise on.
    """
    rates = {}
    for axis in ("batch", "weights"):
        points = _points(outcomes, axis, system)
        first = _FROM_BATCH if axis == "batch" else max(points, default=0) / 2
        if len(large := [x for x in points if x >= first]) > 1:
            ratio = points[large[-1]] / points[large[0]]
            rates[f"{axis}_exponent"] = math.log(ratio) / math.log(large[-1] / large[0])
    wide = _points(outcomes, "wide-qubits", system)
    if len(large := [x for x in wide if x >= _FROM_WIDE_QUBITS]) > 1:
        ratio = wide[large[-1]] / wide[large[0]]
        rates["wide_qubits_exponent"] = math.log(ratio) / math.log(large[-1] / large[0])
    noisy = _points(outcomes, "noisy-qubits", system)
    if len(large := [x for x in noisy if x >= _FROM_NOISY_QUBITS]) > 1:
        rates["noisy_qubits_factor"] = (noisy[large[-1]] / noisy[large[0]]) ** (1 / (large[-1] - large[0]))
    gates = {
        outcome.case.size["qubits"]: outcome.case.size["gates"]
        for outcome in outcomes
        if outcome.case.series == "qubits"
    }
    constants = {x: seconds / (gates[x] * 2**x) for x, seconds in _points(outcomes, "qubits", system).items()}
    if {_FEW_QUBITS, _MANY_QUBITS} <= constants.keys():
        rates["qubits_constant_ratio"] = constants[_MANY_QUBITS] / constants[_FEW_QUBITS]
    return rates


def _points(outcomes: _Outcomes, axis: str, system: str) -> dict[int, float]:
    """A system's seconds in a series, by the sizes at which it was timed."""
    return {
        outcome.case.place: outcome.median
        for outcome in outcomes
        if outcome.case.series == axis and outcome.system == system and outcome.seconds
    }


def result_of(outcomes: _Outcomes, fresh: _Outcomes, systems: _Systems, machine: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, as JSON can carry it: null stands for what was not measured."""
    said = ("import_seconds", "build_seconds", "first_step_seconds", "memory_bytes", "memory_is_lower_bound")
    return {
        "experiment": "benchmark",
        "machine": dict(machine),
        "environments": _environments(outcomes),
        "cases": {
            case.name: {
                "title": case.title,
                "shots": case.shots,
                **case.size,
                "systems": {name: _numbers(outcome) for name, outcome in found.items()},
                "comparisons": [_finite(row._asdict()) for row in comparisons(case, found, systems)],
            }
            for case, found in by_case(outcomes)
        },
        "growth": {name: rates for name in systems if (rates := growth(outcomes, name))},
        "fresh": [
            {
                "case": first.case.name,
                **{name: getattr(first, name) for name in ("system", "cache", "status", "reason")},
                **{key: first.preparation.get(key) for key in said},
            }
            for first in fresh
        ],
    }


def _numbers(outcome: Outcome) -> dict[str, Any]:
    seconds = outcome.seconds
    times = {
        "median_seconds": outcome.median,
        "first_call_seconds": outcome.first_call,
        "least_seconds": outcome.least,
        "most_seconds": max(seconds, default=None),
    }
    said = {name: getattr(outcome, name) for name in ("status", "reason", "deviation")}
    return _finite({**said, **times, "repetitions": len(seconds)})


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}


def _environments(outcomes: _Outcomes) -> dict[str, dict[str, Any]]:
    """The versions and threads of each system."""
    prepared = {outcome.system: outcome.preparation for outcome in outcomes if outcome.preparation}
    return {name: {key: said[key] for key in ("versions", "threads")} for name, said in prepared.items()}


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, operating system and Python; nothing that tells whose machine it is."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "cores_available": cores_available(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_at_start": round(psutil.getloadavg()[0], 2),
    }


def scaling_figure(outcomes: _Outcomes, systems: _Systems) -> Figure | None:
    """Time against qubits, batch and weights; None where no series was measured."""
    axes_measured = [axis for axis in _AXES if any(_points(outcomes, axis, name) for name in systems)]
    if not axes_measured:
        return None
    figure = Figure(figsize=(1.2 + 3.9 * len(axes_measured), 4.2), layout="constrained")
    handles = {}
    for axes, axis in zip(figure.subplots(1, len(axes_measured), squeeze=False)[0], axes_measured, strict=True):
        for position, (name, system) in enumerate(systems.items()):
            if points := _points(outcomes, axis, name):
                grey, mark = str(0.25 + 0.12 * (position % 4)), _MARKS[position % len(_MARKS)]
                line = {"ls": "-", "color": "black", "lw": 2} if system.ours else {"ls": "--", "color": grey, "lw": 1.2}
                (handles[system.title],) = axes.plot([*points], [*points.values()], marker=mark, markersize=5, **line)
        label, circuit = _AXES[axis]
        axes.set(xlabel=label, ylabel="time for one training step (s)", yscale="log")
        if label == "qubits":  # the time itself is exponential in them
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.set_xscale("log")
        axes.set_title(circuit, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def markdown(outcomes: _Outcomes, fresh: _Outcomes, systems: _Systems, machine: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    measured = {outcome.system for outcome in outcomes}
    sections = {
        "Milliseconds for one training step (forward and backward), medians. Where the fastest timings of all give another "
        "ratio, other processes have kept the machine busy:": _speed(outcomes, systems),
        "Every system: milliseconds a step; in brackets the seconds of its first call in a new process (making the layer, "
        "and the first step with all that a peer compiles for the circuit):": _first_calls(outcomes, systems),
        "Growth:": [
            f"- {system.title}: " + "; ".join(_GROWTH[key].format(value) for key, value in rates.items())
            for name, system in systems.items()
            if (rates := growth(outcomes, name))
        ],
        "The layer's own share of a step:": _overhead(outcomes),
        "First call in a new process, and the memory that it adds:": _fresh(fresh, systems),
        "Not timed:": _not_timed(outcomes, systems),
        "The systems:": [
            f"- {each.title}: {each.note}" for name, each in systems.items() if name in measured and each.note
        ],
    }
    parts = [f"{title}\n\n" + "\n".join(lines) for title, lines in sections.items() if lines]
    return "\n\n".join([_machine_text(outcomes, machine), *parts]) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown, none where there are no rows; rows that end early are filled up."""
    filled = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *filled) if rows]


def _speed(outcomes: _Outcomes, systems: _Systems) -> list[str]:
    rows = []
    for case, found in by_case(outcomes):
        for row in comparisons(case, found, systems) if case.targets else []:
            peer = "none timed"
            if row.peer is not None:
                kind, theirs = "fastest PyTorch layer" if row.against_best else "named", found[row.peer]
                said = f"({kind}), {_digits(1e3 * theirs.median)}" if theirs.seconds else "(not timed)"
                peer = f"{systems[row.peer].title} {said}"
            target = "" if math.isnan(row.target) else "ahead" if row.target == 1 else f"{row.target:g}"
            if not math.isnan(row.target_seconds):
                target = ", ".join(filter(None, [target, f"below {1e3 * row.target_seconds:g} ms"]))
            ratios = [_digits(row.ratio), _digits(row.least_ratio)]
            ours = [systems[row.ours].title, _digits(1e3 * found[row.ours].median)]
            rows.append([case.title, *ours, peer, *ratios, target])
    return _table(["circuit", "ours", "ms", "peer, ms", "times faster", "(fastest timings)", "target"], rows)


def _first_calls(outcomes: _Outcomes, systems: _Systems) -> list[str]:
    """A line for each system and a column for each case, empty where the system is not one of the case's."""
    cases = [
        (case, found) for case, found in by_case(outcomes) if case.series is None and "ours-stopwatch" not in found
    ]

    def cell(outcome: Outcome | None) -> str:
        if outcome is None or not outcome.seconds:
            return "" if outcome is None else outcome.status
        return f"{_digits(1e3 * outcome.median)} ({_digits(outcome.first_call)})"

    named = {name: None for _, found in cases for name in found}
    rows = [[systems[name].title, *(cell(found.get(name)) for _, found in cases)] for name in systems if name in named]
    return _table(["system", *(case.name for case, _ in cases)], rows)


def _overhead(outcomes: _Outcomes) -> list[str]:
    rows = []
    for outcome in (outcome for outcome in outcomes if outcome.system == "ours-stopwatch"):
        cells = [outcome.status]
        if outcome.seconds:
            step, kernel = outcome.median, statistics.median(outcome.kernel_seconds)
            times = (_digits(1e3 * seconds) for seconds in (step, kernel, step - kernel))
            cells = [*times, f"{(step - kernel) / step:.0%}"]
        rows.append([outcome.case.title, *cells])
    return _table(["circuit", "step, ms", "inside the backend, ms", "the layer's own, ms", "share"], rows)


def _fresh(fresh: _Outcomes, systems: _Systems) -> list[str]:
    rows = []
    for outcome in fresh:
        system, said = systems[outcome.system], outcome.preparation
        cells = [outcome.status]
        if outcome.status == "timed":
            memory = "" if said["memory_bytes"] is None else f"{said['memory_bytes'] / 2**20:.0f}"
            bound = "at least " if memory and said["memory_is_lower_bound"] else ""
            times = (said[f"{what}_seconds"] for what in ("import", "build", "first_step"))
            cells = [*(f"{seconds:.2f}" for seconds in times), bound + memory]
        rows.append([outcome.case.title, system.title, outcome.cache if system.ours else "", *cells])
    header = ["circuit", "system", "cache of compiled code", "import, s", "making the layer, s", "first step, s"]
    return _table([*header, "memory, MiB"], rows)


def _not_timed(outcomes: _Outcomes, systems: _Systems) -> list[str]:
    cases: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status != "timed":
            cases.setdefault(f"- {systems[outcome.system].title}, {outcome.why}", []).append(outcome.case.name)
    return [f"{line} ({', '.join(names)})" for line, names in cases.items()]


def _machine_text(outcomes: _Outcomes, machine: Mapping[str, Any]) -> str:
    environments = _environments(outcomes).values()
    versions = {item for said in environments for item in said["versions"].items()}
    packages = groupby(sorted(versions), key=lambda item: item[0])
    listed = ", ".join(f"{package} {' and '.join(version for _, version in each)}" for package, each in packages)
    threads = {key: value for said in environments for key, value in said["threads"].items() if value is not None}
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
