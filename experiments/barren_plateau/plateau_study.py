"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from ..common.cells import Cell, Row
from ..common.studies import Study
from .descent import STRATEGIES, train
from .ensemble import OBSERVABLES, angles_of_samples, derivatives
from .plateau_findings import find
from .plateau_settings import PlateauSettings

_SAMPLES_A_CELL = 128  # of deep circuits, so that no cell takes minutes


def cells(settings: PlateauSettings) -> list[Cell]:
    """The cells of both parts: variances, and trainings."""
    return [*_variance_cells(settings), *_training_cells(settings)]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row for each observable, with sums over samples; or one of a training."""
    if cell["part"] == "training":
        return [train(cell, seed)]
    qubits, layers, samples = cell["qubits"], cell["layers"], cell["samples"]
    drawn = angles_of_samples(samples, qubits, layers, cell["start"], np.random.default_rng(seed))
    slopes, one_shot = derivatives(*drawn, qubits, layers)
    return [
        {
            "observable": name,
            "sum": float(slopes[:, place].sum()),
            "sum_of_squares": float((slopes[:, place] ** 2).sum()),
            "sum_of_fourth_powers": float((slopes[:, place] ** 4).sum()),
            "sum_of_one_shot_variances": float(one_shot[:, place].sum()),
        }
        for place, name in enumerate(OBSERVABLES)
    ]


def _variance_cells(settings: PlateauSettings) -> Iterator[Cell]:
    ensembles: list[tuple[int, int, str]] = []
    for qubits in settings.qubits:
        deep = product([qubits], [settings.deep * qubits], ["uniform", "zeros", "grown"])
        ensembles += [(qubits, settings.shallow, "uniform"), *deep]
    ensembles += product(settings.profile_qubits, settings.profile_layers, ["uniform"])
    for qubits, layers, start in dict.fromkeys(ensembles):  # some come more than once
        whole, rest = divmod(settings.samples, _SAMPLES_A_CELL)
        parts = [_SAMPLES_A_CELL] * whole + [rest] * (rest > 0)
        if layers <= settings.shallow:
            parts = [settings.shallow_samples]
        elif start == "zeros":  # where only the first axis is random
            parts = parts[:1]
        for number, samples in enumerate(parts):
            ensemble = {"qubits": qubits, "layers": layers, "start": start}
            yield {"part": "variance", **ensemble, "samples": samples, "number": number}


def _training_cells(settings: PlateauSettings) -> Iterator[Cell]:
    options = {"steps": settings.train_steps, "shots": settings.train_shots, "lr": settings.lr}
    for qubits, strategy, repeat in product(settings.train_qubits, STRATEGIES, range(settings.train_repeats)):
        circuit = {"qubits": qubits, "layers": 2 * qubits}
        yield {"part": "training", **circuit, "strategy": strategy, **options, "repeat": repeat}


STUDY = Study(name="barren-plateau", settings=PlateauSettings, make_cells=cells, measure=measure, find=find)
