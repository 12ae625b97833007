"""The command line: what to measure, progress while it runs, and what it leaves in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..common.options import parse, yaml_of
from ..common.runs import RunFolder
from .benchmark_settings import BenchmarkSettings
from .cases import SYSTEMS, System, plan
from .measuring import Measurement, Outcome
from .report import describe_machine, markdown, result_of, scaling_figure, timing_rows

_BUSY = 0.5


def run_benchmark(arguments: Sequence[str], systems: Mapping[str, System] = SYSTEMS) -> int:
    """Runs the benchmark.

    Args:
        arguments: The command line.
        systems: What there is to measure.

    Returns:
        The exit status: 1 if one of our own systems failed or gave wrong answers, 130 if it was interrupted.
    """
    options, settings = parse("benchmark", BenchmarkSettings, arguments)
    cases, fresh = plan(settings, systems)
    if options.dry_run:
        for heading, listed in ("Timings:", cases), ("First calls and memory, each in a fresh process:", fresh):
            if listed:
                print(heading)
            for case in listed:
                print(f"  {case.name:<20} {case.title}: {', '.join(systems[name].title for name in case.systems)}")
        return 0
    folder = RunFolder.fresh(options.path, "benchmark")
    folder.write_settings(yaml_of("benchmark", settings))
    machine = describe_machine()
    if machine["load_at_start"] > _BUSY:
        print(
            f"Other processes are busy (load {machine['load_at_start']:g}). Systems that compute in several threads may be "
            "many times slower for it: compare with --threads 1."
        )
    outcomes: list[Outcome] = []
    firsts: list[Outcome] = []
    interrupted = False
    with Measurement(settings, systems) as measurement:
        try:
            for case in cases:
                outcomes += measurement.measure(case)
            for case in fresh:
                firsts += measurement.measure_fresh(case)
        except KeyboardInterrupt:
            interrupted = True

    folder.write_rows("timings.csv", timing_rows(outcomes))
    folder.write_result(result_of(outcomes, firsts, systems, machine))
    if (figure := scaling_figure(outcomes, systems)) is not None:
        folder.write_figure("scaling.png", figure)
    text = markdown(outcomes, firsts, systems, machine)
    folder.write("table.md", text.encode())
    print(f"\n{text}\nTimings, figure and this text are in {folder.path}")
    if interrupted:
        print(f"\nInterrupted; what was measured before is in {folder.path}")
        return 130
    ours = [outcome for outcome in (*outcomes, *firsts) if systems[outcome.system].ours]
    return int(any(outcome.status not in ("timed", "dropped") for outcome in ours))
