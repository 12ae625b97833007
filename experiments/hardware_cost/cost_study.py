"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from ..common.cells import Cell, Row
from ..common.studies import Study
from .cost_findings import find
from .cost_settings import PARTS, HardwareCostSettings, PartName
from .step_costs import measure_step, require_counted
from .steps import MODELS, SYSTEMS
from .ten_minutes import require_time, train


def cells(settings: HardwareCostSettings) -> list[Cell]:
    """A cell for each library and model, and one for each training."""
    pythons = settings.pythons
    seeds = range(settings.seed, settings.seed + settings.seeds + settings.tuning_seeds)
    shared = {name: getattr(settings, name) for name in ("qubits", "depth", "batch_size", "seconds")}
    made: dict[PartName, list[Cell]] = {
        "step": [
            {"model": model, "system": system, "python": pythons.get(system)}
            for model, system in product(MODELS, SYSTEMS)
            if system not in MODELS[model].too_long_for
        ],
        "training": [
            {"way": way, "shots": shots, "lr": lr, "seed": seed, **shared}
            for seed, way, shots, lr in product(seeds, settings.ways, settings.shots, settings.lrs)
        ],
    }
    return [{"part": part, **cell} for part in PARTS if part in settings.parts for cell in made[part]]


def require(settings: HardwareCostSettings) -> None:
    """Refuses a time that is too short for a step, and peers that were not counted before.

    Raises:
        ValueError, ImportError: If it is so; the message says what to do.
    """
    for cell in cells(settings):
        if cell["part"] == "step":
            require_counted(cell)
        elif cell["seed"] == settings.seed:
            require_time(cell)


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row of what a step submits and costs, or of what a training has come to."""
    return [measure_step(cell) if cell["part"] == "step" else train(cell, seed)]


STUDY = Study(
    name="hardware-cost", settings=HardwareCostSettings, make_cells=cells, measure=measure, find=find, require=require
)
