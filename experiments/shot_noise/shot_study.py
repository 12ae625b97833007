"""The cells of the study, what is measured in each, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveInt

from qiskit_torch_bridge.backends import resolve_backend

from ..common.cells import Cell, Row
from ..common.data import add_dataset_option, data_root_from_environment
from ..common.options import Settings, add_option, flag
from ..common.sweeps import Study, study_parser
from .noise import NOISES, measure_noise
from .scaling import RULES, VALUE, measure_scaling
from .shot_findings import find
from .strategies import MODELS, require_data, strategies_of, train

PARTS = ("scaling", "training", "noise")


def parser() -> Any:
    """The study's options; their defaults are the full setting."""
    from . import __doc__ as description

    parser = study_parser("shot-noise", description or "")
    add = partial(add_option, parser)
    add("--parts", PARTS, list(PARTS), "What to measure.")
    shots = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000]
    add("--shots", PositiveInt, shots, "Shots a circuit of the part scaling.")
    add("--repeats", PositiveInt, 4000, "How often each number of shots is measured.")
    add("--noises", list(NOISES), list(NOISES), "The simulators of the part noise.")
    add("--noise-shots", PositiveInt, shots[:-1], "Shots a circuit of the part noise.")
    add("--noise-repeats", PositiveInt, 100, "The same for the part noise.")
    add("--models", list(MODELS), list(MODELS), "What to train in the part training.")
    add("--steps", PositiveInt, 100, "Training steps.")
    add("--seeds", PositiveInt, 6, "Trainings of each model and strategy, of seeds from --seed on.")
    root = data_root_from_environment()
    add("--data-root", str | None, root and str(root), "Folder of MNIST, on every worker (default: QTB_DATA).")
    add_dataset_option(parser)
    return parser


def cells(settings: Settings) -> list[Cell]:
    """The cells of all parts that are asked for.

    Raises:
        ValueError, OSError, ImportError: If a number does not serve, or what a part needs is not there.
    """
    made = {"scaling": _scaling_cells, "training": _training_cells, "noise": _noise_cells}
    return [cell for part in PARTS if part in settings["parts"] for cell in made[part](settings)]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row of variances, two of mean squared errors, or one for each evaluation of a training."""
    if cell["part"] == "scaling":
        return [measure_scaling(cell, seed)]
    return measure_noise(cell, seed) if cell["part"] == "noise" else train(cell, seed)


def _scaling_cells(settings: Settings) -> Iterator[Cell]:
    _require_sweep(settings, "shots", "repeats")
    for quantity in (VALUE, *RULES):
        for shots in settings["shots"]:
            yield {"part": "scaling", "quantity": quantity, "shots": shots, "repeats": settings["repeats"]}


def _noise_cells(settings: Settings) -> Iterator[Cell]:
    _require_sweep(settings, "noise_shots", "noise_repeats")
    for name in settings["noises"]:
        if NOISES[name].device is not None:
            resolve_backend(f"fake:{NOISES[name].device}")  # which says how to install what it needs
        for shots in settings["noise_shots"]:
            yield {"part": "noise", "noise": name, "shots": shots, "repeats": settings["noise_repeats"]}


def _training_cells(settings: Settings) -> Iterator[Cell]:
    root = None if settings["dataset"] == "digits" else settings["data_root"]
    if root is None and settings["dataset"] == "mnist":
        raise ValueError("--dataset mnist: got no data root, expected --data-root or QTB_DATA.")
    require_data(None if root is None else Path(root))
    for model in settings["models"]:
        for strategy in strategies_of(model):
            for seed in range(settings["seed"], settings["seed"] + settings["seeds"]):
                task = {"model": model, "strategy": strategy, "steps": settings["steps"], "seed": seed}
                yield {"part": "training", **task, "data_root": root}


def _require_sweep(settings: Settings, shots: str, repeats: str) -> None:
    """Refuses what no line can be fitted through, or has no scatter."""
    numbers = settings[shots]
    if len(set(numbers)) < 2 or min(numbers) < 2:
        raise ValueError(
            f"{flag(shots)}: got {numbers}, expected at least two different numbers, from 2 on (a single shot has no "
            "standard error)."
        )
    if settings[repeats] < 10:
        raise ValueError(
            f"{flag(repeats)}: got {settings[repeats]}, expected at least 10, whose scatter says something."
        )


STUDY = Study("shot-noise", parser, cells, measure, find=find)
