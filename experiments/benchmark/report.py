"""The benchmark's results for people: a Markdown text and a figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .measuring import CaseResult, FreshResult
from .summary import Comparison, comparisons, growth, series_points
from .systems import System

_AXES = {
    "qubits": ("qubits", "strongly entangling, 4 layers, batch 1"),
    "batch": ("batch (rows)", "dressed, depth 6"),
    "weights": ("weights", "dressed, batch 16"),
}
_MARKS = ("o", "s", "^", "D", "v", "P", "X")


def markdown(
    results: Sequence[CaseResult],
    fresh: Sequence[FreshResult],
    systems: Mapping[str, System],
    machine: Mapping[str, Any],
) -> str:
    """What was measured, as Markdown."""
    parts = [_machine_text(results, machine)]
    if rows := [row for result in results if result.case.targets for row in comparisons(result, systems)]:
        parts.append(
            "Milliseconds for one training step (forward and backward), medians. Where the fastest "
            "timings of all give another ratio, other processes have kept the machine busy:\n\n" + _speed(rows, systems)
        )
    if lines := _growth_lines(results, systems):
        parts.append("\n".join(lines))
    if overhead := [result for result in results if "ours-stopwatch" in result.systems]:
        parts.append("The layer's own share of a step:\n\n" + _overhead(overhead))
    if fresh:
        parts.append("First call in a new process, and the memory that it adds:\n\n" + _fresh(fresh, systems))
    if absences := _not_timed(results, systems):
        parts.append("Not timed:\n\n" + "\n".join(f"- {line}" for line in absences))
    measured = {name for result in results for name in result.systems}
    notes = [f"- {system.title}: {system.note}" for name, system in systems.items() if name in measured and system.note]
    parts.append("The systems:\n\n" + "\n".join(notes))
    return "\n\n".join(parts) + "\n"


def scaling_figure(results: Sequence[CaseResult], systems: Mapping[str, System]) -> Figure | None:
    """Time against qubits, batch and weights; None where no series was measured."""
    series = {axis: series_points(results, axis) for axis in _AXES}
    series = {axis: points for axis, points in series.items() if points}
    if not series:
        return None
    figure = Figure(figsize=(1.2 + 3.9 * len(series), 4.2), layout="constrained")
    handles = {}
    for axes, (axis, points) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        for position, (name, system) in enumerate(systems.items()):
            if name in points:
                x, seconds = zip(*points[name], strict=True)
                (handles[system.title],) = axes.plot(
                    x,
                    seconds,
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


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _speed(rows: Sequence[Comparison], systems: Mapping[str, System]) -> str:
    def peer(row: Comparison) -> str:
        if row.peer is None or math.isnan(row.peer_seconds):
            return f"{systems[row.peer].title} (not timed)" if row.peer else "none timed"
        kind = "fastest" if row.against_best else "named"
        return f"{systems[row.peer].title} ({kind}), {_milliseconds(row.peer_seconds)}"

    return _markdown_table(
        ["circuit", "ours", "ms", "peer, ms", "times faster", "(fastest timings)", "target"],
        [
            [
                row.case.title,
                systems[row.ours].title,
                _milliseconds(row.our_seconds),
                peer(row),
                _digits(row.ratio),
                _digits(row.least_ratio),
                "" if row.target is None else "ahead" if row.target == 1 else f"{row.target:g}",
            ]
            for row in rows
        ],
    )


def _growth_lines(results: Sequence[CaseResult], systems: Mapping[str, System]) -> list[str]:
    texts = {
        "batch_exponent": "time grows as batch to the power {:.2f} (large batches)",
        "weights_exponent": "as weights to the power {:.2f} (many weights)",
        "qubits_constant_ratio": "a gate on an amplitude takes {:.2f} times as long with 20 qubits as with 12",
    }
    lines = []
    for name, system in systems.items():
        if rates := growth(results, name):
            lines.append(f"- {system.title}: " + "; ".join(texts[key].format(value) for key, value in rates.items()))
    return ["Growth:", "", *lines] if lines else []


def _overhead(results: Sequence[CaseResult]) -> str:
    rows = []
    for result in results:
        outcome = result.systems["ours-stopwatch"]
        if outcome.status != "timed":
            rows.append([result.case.title, outcome.status, "", "", ""])
            continue
        step, kernel = outcome.median, statistics.median(outcome.kernel_seconds)
        rows.append(
            [
                result.case.title,
                _milliseconds(step),
                _milliseconds(kernel),
                _milliseconds(step - kernel),
                f"{(step - kernel) / step:.0%}",
            ]
        )
    return _markdown_table(["circuit", "step, ms", "inside the backend, ms", "the layer's own, ms", "share"], rows)


def _fresh(fresh: Sequence[FreshResult], systems: Mapping[str, System]) -> str:
    rows = []
    for item in fresh:
        start = [item.case.title, systems[item.system].title, item.cache if systems[item.system].ours else ""]
        if item.outcome.status != "timed":
            rows.append([*start, item.outcome.status, "", "", ""])
            continue
        said = item.outcome.preparation
        memory = "" if said["memory_bytes"] is None else f"{said['memory_bytes'] / 2**20:.0f}"
        times = (said[f"{what}_seconds"] for what in ("import", "build", "first_step"))
        bound = "at least " if memory and said["memory_is_lower_bound"] else ""
        rows.append([*start, *(f"{seconds:.2f}" for seconds in times), bound + memory])
    return _markdown_table(
        [
            "circuit",
            "system",
            "cache of compiled code",
            "import, s",
            "making the layer, s",
            "first step, s",
            "memory, MiB",
        ],
        rows,
    )


def _not_timed(results: Sequence[CaseResult], systems: Mapping[str, System]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, outcome in result.systems.items():
            if outcome.status != "timed":
                reason = outcome.reason if outcome.status == "dropped" else f"{outcome.status}: {outcome.reason}"
                reasons.setdefault((systems[name].title, reason), []).append(result.case.name)
    return [f"{title}, {reason} ({', '.join(names)})" for (title, reason), names in reasons.items()]


def _machine_text(results: Sequence[CaseResult], machine: Mapping[str, Any]) -> str:
    versions: dict[str, set[str]] = {}
    threads = {}
    for result in results:
        for outcome in result.systems.values():
            for package, version in outcome.preparation.get("versions", {}).items():
                versions.setdefault(package, set()).add(version)
            for key, value in outcome.preparation.get("threads", {}).items():
                if value is not None:
                    threads[key] = value
    listed = ", ".join(f"{package} {' and '.join(sorted(numbers))}" for package, numbers in sorted(versions.items()))
    settings = ", ".join(f"{key} {value}" for key, value in threads.items())
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']:g} GiB"
    load = "" if machine["load_at_start"] is None else f" Load before the start: {machine['load_at_start']:g}."
    return (
        f"Measured on: {machine['cpu']}, {machine['cores_available']} of {machine['cores']} cores{memory}; "
        f"{machine['system']}, Python {machine['python']}; {listed}. Threads: {settings}.{load}"
    )


def _milliseconds(seconds: float) -> str:
    return _digits(1e3 * seconds)


def _digits(value: float) -> str:
    """Three digits; a dash for what was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
