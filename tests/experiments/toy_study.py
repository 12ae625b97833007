"""A study of squares for the tests of sweeps; by itself, because Dask's workers import it, and imports take their time."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.common.cells import Cell
from experiments.common.sweeps import Findings, Study, Tables, run_study, study_parser

LOG = "SWEEP_LOG"
"""Environment variable: the folder where cells of the toy study say that they have started, and look what to do."""


def parser() -> Any:
    parser = study_parser("toy", "Squares.")
    parser.add_argument("--numbers", nargs="+", type=int, default=[1, 2, 3], help="What to square.")
    parser.add_argument("--draws", type=int, default=2, help="Random numbers for each.")
    return parser


def cells(settings: dict[str, Any]) -> list[Cell]:
    if settings["draws"] < 1:
        raise ValueError(f"--draws: got {settings['draws']}, expected at least 1.")
    return [{"number": number, "draws": settings["draws"]} for number in settings["numbers"]]


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


def find(settings: dict[str, Any], tables: Tables) -> Findings:
    rows = tables["measurements"]
    total = sum(row["square"] for row in rows)
    return Findings({"sum": total}, {"summary": [{"rows": len(rows)}]}, {"empty.png": Figure()})


TOY = Study("toy", parser, cells, measure, find=find)


def toy_process(*arguments: str) -> None:
    """Runs the study as a program does."""
    raise SystemExit(run_study(TOY, arguments))


def infinite(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    return [{"value": float("inf")}]
