"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from qiskit_torch_bridge.backends import resolve_backend

from ..common.cells import Cell, Row
from ..common.data import load_first_of
from ..common.studies import Study
from ..mnist36 import DIGITS
from .noise import NOISES, measure_noise
from .scaling import RULES, VALUE, measure_scaling
from .shot_findings import find
from .shot_settings import PARTS, PartName, ShotNoiseSettings
from .strategies import folder_of, strategies_of, train


def cells(settings: ShotNoiseSettings) -> list[Cell]:
    """The cells of all parts that are asked for."""
    scaling = product((VALUE, *RULES), settings.shots)
    noise = product(settings.noises, settings.noise_qubits, settings.noise_shots)
    made: dict[PartName, list[Cell]] = {
        "scaling": [{"quantity": rule, "shots": shots, "repeats": settings.repeats} for rule, shots in scaling],
        "training": [
            {
                "model": model,
                "strategy": strategy,
                "steps": settings.steps,
                "seed": seed,
                "data_root": settings.mnist_root,
            }
            for model in settings.models
            for strategy, seed in product(strategies_of(model), range(settings.seed, settings.seed + settings.seeds))
        ],
        "noise": [
            {"noise": name, "qubits": qubits, "shots": shots, "repeats": settings.noise_repeats}
            for name, qubits, shots in noise
        ],
    }
    return [{"part": part, **cell} for part in PARTS if part in settings.parts for cell in made[part]]


def require(settings: ShotNoiseSettings) -> None:
    """Refuses a data root without MNIST, or with damaged files, and fake devices that are not installed.

    Raises:
        ValueError, OSError, ImportError: If it is so; the message says what to do.
    """
    if "training" in settings.parts:
        load_first_of(DIGITS, train=1, test=1, data_root=folder_of(settings.mnist_root))
    for name in settings.noises if "noise" in settings.parts else ():
        if NOISES[name].device is not None:
            resolve_backend(f"noisy:{NOISES[name].device}")


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row of variances, two of mean squared errors, or one for each evaluation of a training."""
    if cell["part"] == "scaling":
        return [measure_scaling(cell, seed)]
    return measure_noise(cell, seed) if cell["part"] == "noise" else train(cell, seed)


STUDY = Study(
    name="shot-noise", settings=ShotNoiseSettings, make_cells=cells, measure=measure, find=find, require=require
)
