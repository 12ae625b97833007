"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    variances = dict.fromkeys(_ensembles(settings))
    return [*_variance_cells(settings, variances), *_training_cells(settings)]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row for each observable, with sums over samples; or one of a training."""
    if cell["part"] == "training":
        return [train(cell, seed)]
    qubits, layers, samples = cell["qubits"], cell["layers"], cell["samples"]
    rng = np.random.default_rng(seed)
    angles, columns = angles_of_samples(samples, qubits, layers, cell["start"], rng)
    slopes, one_shot = derivatives(angles, columns, qubits, layers)
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


def _ensembles(settings: PlateauSettings) -> Iterator[tuple[int, int, str]]:
    """Qubits, layers and start of what variances are measured of; some more than once."""
    for qubits in settings.qubits:
        yield qubits, settings.shallow, "uniform"
        for start in ("uniform", "zeros", "grown"):
            yield qubits, settings.deep * qubits, start
    yield from product(settings.profile_qubits, settings.profile_layers, ["uniform"])


def _variance_cells(settings: PlateauSettings, ensembles: Iterable[tuple[int, int, str]]) -> Iterator[Cell]:
    for qubits, layers, start in ensembles:
        if layers <= settings.shallow:
            parts = [settings.shallow_samples]
        elif start == "zeros":  # where only the first axis is random
            parts = [min(_SAMPLES_A_CELL, settings.samples)]
        else:
            whole, rest = divmod(settings.samples, _SAMPLES_A_CELL)
            parts = [_SAMPLES_A_CELL] * whole + [rest] * (rest > 0)
        for number, samples in enumerate(parts):
            ensemble = {"qubits": qubits, "layers": layers, "start": start}
            yield {"part": "variance", **ensemble, "samples": samples, "number": number}


def _training_cells(settings: PlateauSettings) -> Iterator[Cell]:
    options = {"steps": settings.train_steps, "shots": settings.train_shots, "lr": settings.lr}
    for qubits, strategy, repeat in product(settings.train_qubits, STRATEGIES, range(settings.train_repeats)):
        circuit = {"qubits": qubits, "layers": 2 * qubits}
        yield {"part": "training", **circuit, "strategy": strategy, **options, "repeat": repeat}


STUDY = Study(name="barren-plateau", settings=PlateauSettings, make_cells=cells, measure=measure, find=find)
