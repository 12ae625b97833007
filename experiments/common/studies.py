"""Studies: the same measurement in many cells, kept as they finish, and figures and tables of them all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qiskit_torch_bridge.commands.printing import in_columns

from .cells import Cell, Journal, Measure, key_of, measured
from .cluster import outcomes_of
from .runner import Command, Site
from .runs import RunFolder
from .settings import StudySettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S = TypeVar("S", bound=StudySettings)

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


@dataclass(frozen=True, kw_only=True)
class Study(Command[S]):
    """What a study is made of; :func:`~experiments.common.runner.run` does the rest.

    Attributes:
        make_cells: From settings to the cells, all different; refuses settings that cannot be.
        require: Refuses settings of a new run that ask for what is not there, such as data; drawing needs none of it.
        measure: From a cell and its randomness to rows; see :data:`~experiments.common.cells.Measure`.
        find: From settings and tables to the findings. A table's rows are the cell's settings and what was measured; it is
            named after the cell's ``part``, ``measurements`` where there are no parts.
    """

    make_cells: Callable[[S], Sequence[Cell]]
    measure: Measure
    find: Callable[[S, Tables], Findings]
    require: Callable[[S], None] = lambda settings: None

    def completed(self, settings: S) -> S:
        """See :class:`~experiments.common.runner.Command`."""
        self.require(settings)
        return settings

    def cells(self, settings: S) -> dict[str, Cell]:
        """The cells by what identifies them.

        Raises:
            ValueError: If there are none, or some are the same.
        """
        cells = self.make_cells(settings)
        by_key = {key_of(cell): cell for cell in cells}
        if not cells or len(by_key) < len(cells):
            raise ValueError(f"got {len(cells)} cells, {len(by_key)} of them different, expected some, all different.")
        return by_key

    def missing(self, cells: Mapping[str, Cell], folder: RunFolder) -> list[str]:
        """Those that are not in the run's journal."""
        done = _journal(folder).read()
        return [key for key in cells if key not in done]

    def quote(self, settings: S, cells: Mapping[str, Cell], missing: Sequence[str]) -> str:
        """The cells that would be measured."""
        return "\n  ".join(
            [f"{len(cells)} cells, {len(missing)} to be measured:", *(_words(cells[key]) for key in missing)]
        )

    def perform(self, site: Site[S], cells: Mapping[str, Cell], missing: Sequence[str]) -> list[str]:
        """Measures cells and keeps them; returns those that failed."""
        journal, failed = _journal(site.folder), []
        site.folder.reopen()
        site.write_settings()
        journal.mend()
        measure = partial(measured, self.measure, seed=site.settings.seed)
        with closing(outcomes_of(measure, [cells[key] for key in missing], site.options, workers=None)) as outcomes:
            for number, outcome in enumerate(outcomes, start=len(cells) - len(missing) + 1):
                if not outcome.error:
                    journal.append(outcome.value)
                    print(f"[{number}/{len(cells)}] {_words(outcome.cell)}", flush=True)
                else:
                    failed.append(key_of(outcome.cell))
                    print(f"{self.name}: {_words(outcome.cell)} failed: {outcome.error}", file=sys.stderr, flush=True)
        return failed

    def conclude(self, site: Site[S], cells: Mapping[str, Cell]) -> None:
        """Writes tables, figures and the result, and prints the tables."""
        findings = self.draw(site.settings, site.folder)
        site.folder.write_result({"experiment": self.name, **findings.numbers})
        print("\n\n".join(map(in_columns, findings.tables.values())))

    def draw(self, settings: S, folder: RunFolder) -> Findings:
        """Writes tables and figures anew from what was measured.

        Raises:
            ValueError: If cells are missing.
        """
        findings = self.findings(settings, folder)
        for name, rows in {**_tables(self.cells(settings), folder), **findings.tables}.items():
            folder.write_rows(f"{name}.csv", rows)
        for name, figure in findings.figures.items():
            folder.write_figure(name, figure)
        return findings

    def findings(self, settings: S, folder: RunFolder) -> Findings:
        """What a run has come to, from what was measured; its numbers are those of ``result.json``.

        Raises:
            ValueError: If cells are missing.
        """
        cells = self.cells(settings)
        if missing := self.missing(cells, folder):
            raise ValueError(
                f"{folder.path} has not finished ({len(missing)} of {len(cells)} cells to come); finish it with --resume."
            )
        done = _journal(folder).read()
        seconds = round(sum(done[key].seconds for key in cells), 3)
        found = self.find(settings, _tables(cells, folder))
        return replace(found, numbers={"seconds": seconds, "cells": len(cells), **found.numbers})


def _words(cell: Cell) -> str:
    """A cell on one line."""
    return " ".join(f"{name}={value}" for name, value in cell.items())


def _journal(folder: RunFolder) -> Journal:
    return Journal(folder.file("cells.jsonl"))


def _tables(cells: Mapping[str, Cell], folder: RunFolder) -> dict[str, Sequence[Mapping[str, Any]]]:
    done = _journal(folder).read()
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for key, cell in cells.items():
        tables.setdefault(cell.get("part", "measurements"), []).extend({**cell, **row} for row in done[key].rows)
    return dict(tables)
