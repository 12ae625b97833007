"""A study of squares for the tests of studies; by itself, because Dask's workers import it, and imports take their time."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.common.cells import Cell
from experiments.common.runner import run
from experiments.common.settings import StudySettings
from experiments.common.studies import Findings, Study, Tables

LOG = "STUDY_LOG"
"""Environment variable: the folder where cells of the toy study say that they have started, and look what to do."""


@dataclass(frozen=True, kw_only=True)
class ToySettings(StudySettings):
    """Squares.

    Attributes:
        numbers: What to square.
        draws: Random numbers for each.
    """

    numbers: tuple[int, ...] = (1, 2, 3)
    draws: int = 2


def cells(settings: ToySettings) -> list[Cell]:
    if settings.draws < 1:
        raise ValueError(f"--draws: got {settings.draws}, expected at least 1.")
    return [{"number": number, "draws": settings.draws} for number in settings.numbers]


def measure(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    folder, number = Path(os.environ[LOG]), cell["number"]
    with (folder / "started").open("a") as log:
        log.write(f"{number} {os.getpid()} {torch.get_num_threads()}\n")
    while (folder / f"wait-{number}").exists():
        time.sleep(0.01)
    if (folder / f"fail-{number}").exists():
        raise RuntimeError(f"no square\nof {number}")
    draws = np.random.default_rng(seed).standard_normal(cell["draws"])
    return [{"square": number**2, "draw": draw} for draw in draws.tolist()]


def find(settings: ToySettings, tables: Tables) -> Findings:
    rows = tables["measurements"]
    total = sum(row["square"] for row in rows)
    return Findings({"sum": total}, {"summary": [{"rows": len(rows)}]}, {"empty.png": Figure()})


STUDY = Study(name="toy", settings=ToySettings, make_cells=cells, measure=measure, find=find)


def toy_process(*arguments: str) -> None:
    """Runs the study as a program does."""
    raise SystemExit(run(STUDY, arguments))


def infinite(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    return [{"value": float("inf")}]
