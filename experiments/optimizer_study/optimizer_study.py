"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.cells import Cell, Row, seed_of
from ..common.data import load_first_of
from ..common.studies import Study
from ..mnist36 import DIGITS
from ..shot_noise.strategies import folder_of
from .budgeted_training import train
from .contestants import CONTESTANTS
from .metering import MeteredBackend
from .optimizer_findings import find
from .optimizer_settings import OptimizerSettings, ProblemName
from .trained_problems import KINDS


def cells(settings: OptimizerSettings) -> list[Cell]:
    """A cell for each training: reported ones with every learning rate, and those that choose one."""
    shared = {name: getattr(settings, name) for name in ("device", "shots", "batch_size")}
    shared |= {name: list(getattr(settings, name)) for name in ("executions", "seconds")}
    made: list[Cell] = []
    for problem in settings.problems:
        for method in settings.methods:
            contestant = CONTESTANTS[method]
            if contestant.needs_linear and not KINDS[problem].is_linear:
                continue
            seeds = settings.seeds + (settings.tuning_seeds if contestant.has_rate else 0)
            made += [
                {
                    "problem": problem,
                    "method": method,
                    "lr": lr,
                    "seed": seed,
                    "data_root": _data(settings, problem),
                    **shared,
                }
                for seed in range(settings.seed, settings.seed + seeds)
                for lr in (settings.lrs if contestant.has_rate else (None,))
            ]
    return made


def _data(settings: OptimizerSettings, problem: ProblemName) -> str | None:
    """Where the problem's images are; None where it has none, or scikit-learn's."""
    return settings.mnist_root if problem == "layerwise" else None


def require(settings: OptimizerSettings) -> None:
    """Refuses a device that there is not, or that is too small; and a data root without MNIST or with damaged files.

    Raises:
        ValueError, OSError, ImportError: If it is so; the message says what to do.
    """
    settings.require_data_root()
    for problem in settings.problems:
        KINDS[problem].model(backend=MeteredBackend(settings.device), shots=settings.shots)
    if "layerwise" in settings.problems:
        load_first_of(DIGITS, train=1, test=1, data_root=folder_of(settings.mnist_root))


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row for each budget of a training; its shots do not depend on where the images lie."""
    entropy: Any = seed.entropy  # of seed_of: the run's seed comes first
    return train(cell, seed_of(entropy[0], {**cell, "data_root": None}))


STUDY = Study(
    name="optimizers", settings=OptimizerSettings, make_cells=cells, measure=measure, find=find, require=require
)
