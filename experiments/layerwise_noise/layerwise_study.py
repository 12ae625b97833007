"""The cells of the study, and what is measured in each: one training, and the errors that it ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from qiskit_torch_bridge import Backend
from qiskit_torch_bridge.backends import resolve_backend

from .. import mnist36
from ..common.cells import Cell, Row
from ..common.classifiers import decisions
from ..common.data import load_first_of
from ..common.noise_settings import OWN_SIMULATION, NoiseSettings
from ..common.rows import Rows
from ..common.studies import Study
from ..common.workplace import layer_options
from ..experiment_settings import MNIST36Settings
from .layerwise_findings import find
from .layerwise_settings import LayerwiseNoiseSettings, NoiseName, TrainingName


def depolarizing(probability: float) -> dict[str, Any]:
    """Options of a training: the channel with this probability after gates of two qubits, a tenth of it after others."""
    noise = NoiseSettings(depolarizing={"1q": probability / 10, "2q": probability})
    return {"backend": OWN_SIMULATION, "noise": noise}


NOISES: Mapping[NoiseName, Mapping[str, Any]] = {
    "none": {"backend": "statevector"},
    "depolarising 0.3 %": depolarizing(0.003),
    "depolarising 1 %": depolarizing(0.01),
    "depolarising 3 %": depolarizing(0.03),
    "Guadalupe": {"backend": f"{OWN_SIMULATION}:guadalupe"},
    "Montreal": {"backend": f"{OWN_SIMULATION}:montreal"},
    "Brooklyn": {"backend": f"{OWN_SIMULATION}:brooklyn"},
}
"""By their names in the study: options of a training."""


def cells(settings: LayerwiseNoiseSettings) -> list[Cell]:
    """A cell for each training."""
    seeds = range(settings.seed, settings.seed + settings.seeds)
    names = ("qubits", "steps", "layers_per_step", "train_images", "test_images", "batch_size", "lr")
    shared = {name: getattr(settings, name) for name in names} | {"data_root": settings.mnist_root}
    of_growth = ("epochs", "sweeps", "partition_epochs")
    trainings: dict[TrainingName, dict[str, int]] = {
        "layerwise": {name: getattr(settings, name) for name in of_growth},
        "complete": {"epochs": settings.complete_epochs},
    }
    return [
        {"noise": noise, "shots": shots, "training": training, "seed": seed, **trainings[training], **shared}
        for seed, noise, shots, training in product(seeds, settings.noises, settings.shots, get_args(TrainingName))
    ]


def require(settings: LayerwiseNoiseSettings) -> None:
    """Refuses a data root without MNIST, too few images, and fake devices that are not installed.

    Raises:
        ValueError, OSError, ImportError: If it is so; the message says what to do.
    """
    made = cells(settings)
    examples(made[0])
    for noise in settings.noises:
        backend_of(noise)
    for cell in {cell["training"]: cell for cell in made}.values():
        mnist36.phases(training(cell))


def training(cell: Cell) -> MNIST36Settings:
    """The cell's training, as the experiment ``mnist36`` has it."""
    known = {field.name for field in fields(MNIST36Settings)} - {"noise", "data_root"}
    return MNIST36Settings(
        **{name: value for name, value in cell.items() if name in known},
        **NOISES[cell["noise"]],
        init="zeros" if cell["training"] == "layerwise" else "uniform",
        readout="sum",
        gradient="parameter_shift",
    )


def examples(cell: Cell) -> tuple[Rows, Rows]:
    """What the cell trains on and is tested on."""
    return _examples(*(cell[name] for name in ("data_root", "train_images", "test_images", "qubits")))


@cache
def _examples(data_root: str | None, train: int, test: int | None, qubits: int) -> tuple[Rows, Rows]:
    root = None if data_root is None else Path(data_root)
    return mnist36.rows_of(load_first_of(mnist36.DIGITS, train=train, test=test, data_root=root), qubits)


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """Trains the cell's circuit; a row of the test errors that it ends with.

    Args:
        cell: From :func:`cells`. Cells of one seed have the same circuit; those of one training start from the same weights
            and see the same batches, whatever the noise.
        seed: Draws the shots.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell["seed"])
        settings = training(cell)
        options = {"backend": backend_of(cell["noise"]), "seed": seed.generate_state(4).tolist()}
        model = mnist36.classifier(settings, layer_options(settings) | options)
    train, test = examples(cell)
    batches = torch.Generator().manual_seed(cell["seed"])
    for phase in mnist36.phases(settings):
        model.quantum.enter(phase)
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=cell["lr"])
        for _ in range(phase.epochs):
            for rows in torch.randperm(len(train), generator=batches).split(cell["batch_size"]):
                inputs, labels = train.batch(rows, training=True)
                optimizer.zero_grad()
                mnist36.loss(model(inputs), labels).mean().backward()
                optimizer.step()
    layer = model.quantum.quantum
    spent = {"circuits": layer.total_circuits, "shots_spent": layer.total_shots}
    return [{"test_error": error(model, test), "error_of_weights": error(without_noise(model), test), **spent}]


@cache
def backend_of(noise: NoiseName) -> Backend:
    """The noise's simulator, made once in a process: reading a device's noise takes as long as a short training."""
    return resolve_backend(layer_options(MNIST36Settings(**NOISES[noise]))["backend"])


def error(model: mnist36.Classifier, test: Rows) -> float:
    """The share of the test images that are taken for the other digit."""
    with torch.no_grad():
        return float((decisions(model(test.inputs)) != test.labels).double().mean())


def without_noise(model: mnist36.Classifier) -> mnist36.Classifier:
    """The same weights, with exact values and without noise."""
    twin = deepcopy(model)
    twin.quantum.quantum.shots = None
    twin.quantum.quantum.backend = None
    return twin


STUDY = Study(
    name="layerwise-noise",
    settings=LayerwiseNoiseSettings,
    make_cells=cells,
    measure=measure,
    find=find,
    require=require,
    extendable=("seeds",),
)
