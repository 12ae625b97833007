"""Studies: the same measurement in many cells, side by side, kept as they finish, and figures and a table of them all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt

from qiskit_torch_bridge.commands.printing import in_columns

from .cells import Cell, Journal, Measure, Outcome, Record, key_of, measured
from .cluster import measured_by_dask
from .options import Seed, Settings, add_option, folder_path, parse, shared_parser
from .runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""The rows of each table of a study by its name, in the order of the cells."""


@dataclass(frozen=True)
class Findings:
    """What a study comes to.

    Attributes:
        numbers: The summary, for ``result.json``.
        tables: The rows of each table by its name; they are printed, and written to ``NAME.csv``.
        figures: By the names of their files.
    """

    numbers: Mapping[str, Any]
    tables: Tables
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Study:
    """What a study is made of; :func:`run_study` does the rest.

    Attributes:
        name: As on the command line.
        parser: Makes the parser of its options, from :func:`study_parser`.
        cells: From settings to the cells, all different; refuses settings that cannot be.
        measure: From a cell and its randomness to rows; see :data:`~experiments.common.cells.Measure`.
        find: From settings and tables to the findings. A table's rows are the cell's settings and what was measured; it is
            named after the cell's ``part``, ``measurements`` where there are no parts.
        extendable: The settings that may grow when a run is continued.
    """

    name: str
    parser: Callable[[], Any]
    cells: Callable[[Settings], Sequence[Cell]]
    measure: Measure
    _: KW_ONLY
    find: Callable[[Settings, Tables], Findings]
    extendable: Collection[str] = ()


def study_parser(name: str, description: str) -> Any:
    """A parser with the options that studies share."""
    parser = shared_parser(
        name,
        description,
        resume="Measure what the run in --run-dir lacks.",
        dry_run="List the cells that would be measured, and stop.",
    )
    add = partial(add_option, parser)
    scheduler = "Address of a running Dask scheduler, whose workers have this checkout; null: processes of our own."
    add("--scheduler", str | None, None, scheduler)
    workers = "Processes of our own; null: one for each core, 0: none, all is measured in this one."
    add("--workers", NonNegativeInt | None, None, workers)
    add("--seed", Seed, 0, "Makes every cell repeatable, wherever it is measured.")
    return parser


def run_study(study: Study, arguments: Sequence[str]) -> int:
    """Runs a study; returns the exit status: 0 done, 1 with cells that failed, 130 interrupted.

    Raises:
        ValueError, OSError: If settings or files are refused.
    """
    options, settings = parse(study.parser(), arguments, extendable=study.extendable)
    if options.scheduler is not None and options.workers is not None:
        raise ValueError(
            f"--workers: got {options.workers} with --scheduler, which has workers of its own; leave it out."
        )
    cells = study.cells(settings)
    by_key = _by_key(cells)
    path = folder_path(options)
    done = _journal(RunFolder.existing(path)).read() if options.resume else {}
    missing = [cell for key, cell in by_key.items() if key not in done]
    if options.dry_run:
        print(f"{len(cells)} cells, {len(missing)} to be measured:", *map(_words, missing), sep="\n  ")
        return 0
    folder = RunFolder.existing(path) if options.resume else RunFolder.fresh(path, study.name)
    again = f"python -m experiments {study.name} --resume --run-dir {folder.path}"
    try:
        folder.reopen()
        folder.write_settings(settings)
        failed = _measure(study, missing, folder, options, seed=settings["seed"], before=len(cells) - len(missing))
        if failed:
            print(f"{len(failed)} of {len(cells)} cells failed; try them again with: {again}")
            return 1
        _conclude(study, settings, folder, by_key)
    except (Exception, KeyboardInterrupt) as error:
        folder.discard_if_unused()
        if not isinstance(error, KeyboardInterrupt):
            raise
        print(f"\nInterrupted; {f'continue with: {again}' if folder.path.exists() else 'nothing was measured.'}")
        return 130
    print(f"Results and figures are in {folder.path}")
    return 0


def _words(cell: Cell) -> str:
    """A cell on one line."""
    return " ".join(f"{name}={value}" for name, value in cell.items())


def _journal(folder: RunFolder) -> Journal:
    return Journal(folder.file("cells.jsonl"))


def _by_key(cells: Sequence[Cell]) -> dict[str, Cell]:
    by_key = {key_of(cell): cell for cell in cells}
    if not cells or len(by_key) < len(cells):
        raise ValueError(f"got {len(cells)} cells, {len(by_key)} of them different, expected some, all different.")
    return by_key


def _measure(
    study: Study, cells: Sequence[Cell], folder: RunFolder, options: Any, *, seed: int, before: int
) -> list[Cell]:
    """Measures cells and keeps them; returns those that failed."""
    journal, failed = _journal(folder), []
    journal.mend()
    with closing(_outcomes(study.measure, cells, seed, options)) as outcomes:
        for number, outcome in enumerate(outcomes, start=before + 1):
            if outcome.line is not None:
                journal.append(outcome.line)
                print(f"[{number}/{before + len(cells)}] {_words(outcome.cell)}", flush=True)
            else:
                failed.append(outcome.cell)
                print(f"{study.name}: {_words(outcome.cell)} failed: {outcome.error}", file=sys.stderr, flush=True)
    return failed


def _outcomes(measure: Measure, cells: Sequence[Cell], seed: int, options: Any) -> Generator[Outcome, None, None]:
    if not cells or options.workers == 0:
        return (measured(measure, cell, seed) for cell in cells)
    return measured_by_dask(measure, cells, seed, scheduler=options.scheduler, workers=options.workers)


def _conclude(study: Study, settings: Settings, folder: RunFolder, cells: Mapping[str, Cell]) -> None:
    done = _journal(folder).read()
    tables = _tables(cells, done)
    for name, rows in tables.items():
        folder.write_rows(f"{name}.csv", rows)
    findings = study.find(settings, tables)
    for name, summary in findings.tables.items():
        folder.write_rows(f"{name}.csv", summary)
    for name, figure in findings.figures.items():
        folder.write_figure(name, figure)
    seconds = round(sum(done[key].seconds for key in cells), 3)
    folder.write_result({"experiment": study.name, "seconds": seconds, "cells": len(cells), **findings.numbers})
    print("\n\n".join(map(in_columns, findings.tables.values())))


def _tables(cells: Mapping[str, Cell], done: Mapping[str, Record]) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for key, cell in cells.items():
        tables.setdefault(cell.get("part", "measurements"), []).extend({**cell, **row} for row in done[key].rows)
    return tables
