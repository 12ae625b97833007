"""The cells of the study, what is measured in each, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveFloat, PositiveInt

from ..common.cells import Cell, Row
from ..common.options import Settings, add_option, flag
from ..common.sweeps import Study, study_parser
from .descent import STRATEGIES, train
from .ensemble import OBSERVABLES, angles_of_samples, derivatives
from .plateau_findings import find

_SAMPLES_A_CELL = 128  # of deep circuits, so that no cell takes minutes


def parser() -> Any:
    """The study's options; their defaults are the full setting."""
    from . import __doc__ as description

    parser = study_parser("barren-plateau", description or "")
    add = partial(add_option, parser)
    add("--qubits", PositiveInt, [2, 4, 6, 8, 10, 12, 14], "Sizes of the circuits, even numbers.")
    add("--deep", PositiveInt, 10, "Layers of a deep circuit, for each qubit.")
    add("--shallow", PositiveInt, 4, "Layers of a shallow circuit of any size.")
    add("--profile-qubits", PositiveInt, [4, 8, 12], "Sizes for which the variance is measured against the layers.")
    add("--profile-layers", PositiveInt, [1, 2, 4, 8, 16, 32, 64, 128], "These layers.")
    add("--samples", PositiveInt, 512, "Random circuits of each size and depth.")
    add("--shallow-samples", PositiveInt, 4096, "The same of shallow ones, whose derivatives have heavier tails.")
    add(
        "--train-qubits",
        PositiveInt,
        [4, 6, 8],
        "Sizes of the circuits that are trained, with two layers for each qubit.",
    )
    add("--train-steps", PositiveInt, 48, "Steps of the optimiser in each training.")
    add("--train-shots", PositiveInt, 100, "Shots a circuit in training.")
    add("--train-repeats", PositiveInt, 8, "Trainings of each size and kind.")
    add("--lr", PositiveFloat, 0.1, "Adam's learning rate.")
    return parser


def cells(settings: Settings) -> list[Cell]:
    """The cells of both parts: variances, and trainings.

    Raises:
        ValueError: If a size or a number of steps does not serve.
    """
    for name in ("qubits", "profile_qubits", "train_qubits"):
        if min(settings[name]) < 2:
            raise ValueError(f"{flag(name)}: got {settings[name]}, expected at least 2 each.")
    if len({size for size in settings["qubits"] if size >= 4}) < 2:
        raise ValueError(
            f"--qubits: got {settings['qubits']}, expected two sizes from 4 at least, to fit a line through."
        )
    if settings["deep"] * min(settings["qubits"]) <= max(2, settings["shallow"]):
        raise ValueError(
            f"--deep: got {settings['deep']} layers a qubit, expected more layers than --shallow {settings['shallow']}, "
            f"and than 2, for {min(settings['qubits'])} qubits."
        )
    for size in settings["train_qubits"]:
        if settings["train_steps"] % size:
            raise ValueError(
                f"--train-steps: got {settings['train_steps']}, expected a multiple of {size}: circuits of {size} qubits "
                f"grow in {size} parts of equal length."
            )
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


def _ensembles(settings: Settings) -> Iterator[tuple[int, int, str]]:
    """Qubits, layers and start of what variances are measured of; some more than once."""
    for qubits in settings["qubits"]:
        yield qubits, settings["shallow"], "uniform"
        for start in ("uniform", "zeros", "grown"):
            yield qubits, settings["deep"] * qubits, start
    yield from product(settings["profile_qubits"], settings["profile_layers"], ["uniform"])


def _variance_cells(settings: Settings, ensembles: Sequence[tuple[int, int, str]] | Any) -> Iterator[Cell]:
    for qubits, layers, start in ensembles:
        if layers <= settings["shallow"]:
            parts = [settings["shallow_samples"]]
        elif start == "zeros":  # where only the first axis is random
            parts = [min(_SAMPLES_A_CELL, settings["samples"])]
        else:
            whole, rest = divmod(settings["samples"], _SAMPLES_A_CELL)
            parts = [_SAMPLES_A_CELL] * whole + [rest] * (rest > 0)
        for number, samples in enumerate(parts):
            ensemble = {"qubits": qubits, "layers": layers, "start": start}
            yield {"part": "variance", **ensemble, "samples": samples, "number": number}


def _training_cells(settings: Settings) -> Iterator[Cell]:
    options = {"steps": settings["train_steps"], "shots": settings["train_shots"], "lr": settings["lr"]}
    for qubits, strategy, repeat in product(settings["train_qubits"], STRATEGIES, range(settings["train_repeats"])):
        circuit = {"qubits": qubits, "layers": 2 * qubits}
        yield {"part": "training", **circuit, "strategy": strategy, **options, "repeat": repeat}


STUDY = Study("barren-plateau", parser, cells, measure, find=find)
