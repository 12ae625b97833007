"""The command line: what to measure, progress while it runs, and what it leaves in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from ..common.options import Settings, add_option, folder_path, settings_of
from ..common.runs import RunFolder
from .cases import PARTS, Case, parts_of, plan
from .machine import describe_machine
from .measuring import CaseResult, FreshResult, Measurement
from .report import markdown, scaling_figure
from .summary import result_of, timing_rows
from .systems import SYSTEMS, System

_BUSY = 0.5
_SMALL_REPETITIONS = 3
_REPETITIONS = 7


def run_benchmark(arguments: Sequence[str], description: str, systems: Mapping[str, System] = SYSTEMS) -> int:
    """Runs the benchmark; returns the exit status: 1 if one of our own systems failed or gave wrong answers.

    Args:
        arguments: The command line.
        description: What ``--help`` says.
        systems: What there is to measure.
    """
    options = _parser(description, systems).parse_args(list(arguments))
    settings = settings_of(options)
    pythons = _pythons(settings["peer_python"], systems)
    parts = parts_of(settings["cases"])
    cases, fresh = (
        [chosen for case in planned if (chosen := case.only(settings["systems"] or systems))]
        for planned in plan(parts, small=settings["small"], largest_qubits=settings["largest_qubits"])
    )
    if not cases and not fresh:
        raise ValueError("--cases, --systems: got nothing to measure, expected at least one case with one system.")
    if options.dry_run:
        print(_listing(cases, fresh, systems))
        return 0

    folder = RunFolder.fresh(folder_path(options), "benchmark")
    folder.write_settings(settings)
    machine = describe_machine()
    if machine["load_at_start"] is not None and machine["load_at_start"] > _BUSY:
        print(
            f"Other processes are busy (load {machine['load_at_start']:g}). Systems that compute in several threads may be "
            "many times slower for it: compare with --threads 1."
        )
    results: list[CaseResult] = []
    firsts: list[FreshResult] = []
    interrupted = False
    with _measurement(settings, systems, pythons) as measurement:
        try:
            for case in cases:
                results.append(measurement.measure(case))
            for case in fresh:
                firsts += measurement.measure_fresh(case)
        except KeyboardInterrupt:
            interrupted = True
    _write(folder, results, firsts, systems, machine)
    if interrupted:
        print(f"\nInterrupted; what was measured before is in {folder.path}")
        return 130
    return int(_ours_failed(results, firsts, systems))


def _measurement(settings: Settings, systems: Mapping[str, System], pythons: Mapping[str, str]) -> Measurement:
    return Measurement(
        systems,
        repetitions=settings["repetitions"] or (_SMALL_REPETITIONS if settings["small"] else _REPETITIONS),
        pythons=pythons,
        say=partial(print, flush=True),
        **{name: settings[name] for name in ("threads", "timeout", "seed")},
    )


def _parser(description: str, systems: Mapping[str, System]) -> Any:
    parser = ArgumentParser(prog="python -m experiments benchmark", description=description)
    add = partial(add_option, parser)
    parser.add_argument(
        "--config", action="config", help="YAML file with options, by their names below; options after it win."
    )
    add("--run-dir", str | None, None, "Folder of the run (default: a new one under runs/).")
    parser.add_argument("--dry-run", action="store_true", help="List what would be measured, and stop.")
    parser.add_argument(
        "--cases", nargs="+", type=str, default=None, help=f"What to measure (default: all): {', '.join(PARTS)}."
    )
    parser.add_argument(
        "--systems", nargs="+", type=str, choices=list(systems), default=None, help="Only these (default: all)."
    )
    add(
        "--repetitions",
        PositiveInt | None,
        None,
        f"Timings of each system in each case (default: {_REPETITIONS}; small: {_SMALL_REPETITIONS}); fewer where "
        "they would take over half a minute together.",
    )
    threads = "Threads of every system's numerical libraries (default: whatever each chooses)."
    add("--threads", PositiveInt | None, None, threads)
    parser.add_argument("--small", action="store_true", help="Only the quick cases, with fewer repetitions.")
    add("--largest-qubits", PositiveInt, 20, "Where the series by qubits ends, for example 24.")
    add("--timeout", PositiveFloat, 300.0, "Seconds that a system may take to answer.")
    parser.add_argument(
        "--peer-python",
        nargs="+",
        type=str,
        default=None,
        metavar="SYSTEM=PYTHON",
        help="Interpreters of other environments, for peers that do not fit into this one.",
    )
    add("--seed", NonNegativeInt, 0, "Draws inputs, weights, upstream gradients and shots.")
    return parser


def _pythons(pairs: Sequence[str] | None, systems: Mapping[str, System]) -> dict[str, str]:
    paths = {}
    for pair in pairs or ():
        name, equals, python = pair.partition("=")
        if not equals or not python or name not in systems:
            raise ValueError(
                f"--peer-python: got {pair!r}, expected SYSTEM=PYTHON, the system one of {', '.join(systems)}."
            )
        paths[name] = python
    return paths


def _listing(cases: Sequence[Case], fresh: Sequence[Case], systems: Mapping[str, System]) -> str:
    def line(name: str, case: Case) -> str:
        return f"  {name:<20} {case.title}: {', '.join(systems[system].title for system in case.systems)}"

    lines = ["Timings:", *(line(case.name, case) for case in cases)]
    if fresh:
        lines += ["First calls and memory, each in a fresh process:", *(line(case.name, case) for case in fresh)]
    return "\n".join(lines)


def _write(
    folder: RunFolder,
    results: Sequence[CaseResult],
    fresh: Sequence[FreshResult],
    systems: Mapping[str, System],
    machine: Mapping[str, Any],
) -> None:
    folder.write_rows("timings.csv", timing_rows(results))
    folder.write_result(result_of(results, fresh, systems, machine))
    figure = scaling_figure(results, systems)
    if figure is not None:
        folder.write_figure("scaling.png", figure)
    text = markdown(results, fresh, systems, machine)
    folder.write("table.md", text.encode())
    print(f"\n{text}\nTimings, figure and this text are in {folder.path}")


def _ours_failed(results: Sequence[CaseResult], fresh: Sequence[FreshResult], systems: Mapping[str, System]) -> bool:
    outcomes = [item for result in results for item in result.systems.items()]
    outcomes += [(item.system, item.outcome) for item in fresh]
    return any(systems[name].ours and outcome.status not in ("timed", "dropped") for name, outcome in outcomes)
