"""An experiment that can be told to wait or to fail; by itself, because Dask's workers import it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.common.classifiers import cross_entropy
from experiments.common.experiment import Experiment
from experiments.common.rows import Rows
from experiments.common.runner import run
from experiments.common.settings import TrainingSettings
from experiments.common.work import Work

LOG = "TOY_LOG"
"""Environment variable: the folder where trainings say which steps they do, and look what to do in the second epoch."""


@dataclass(frozen=True, kw_only=True)
class ToySettings(TrainingSettings):
    """Two epochs of three steps."""

    epochs: int = 2
    batch_size: int = 4


def train(settings: ToySettings, work: Work) -> Mapping[str, Any]:
    folder, seed = Path(os.environ[LOG]), settings.seed
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 2))
    inputs = torch.randn(12, 3)
    data = Rows(inputs, (inputs.sum(dim=1) > 0).long())
    for batch in work.steps(model, cross_entropy, data, data):
        with (folder / "steps").open("a") as log:
            log.write(f"{seed} {os.getpid()} {work.epoch} {work.step}\n")
        while work.epoch == 1 and (folder / f"wait-{seed}").exists():
            time.sleep(0.01)
        if work.epoch == 1 and (folder / f"fail-{seed}").exists():
            raise RuntimeError(f"no training\nof {seed}")
        scores = model(batch.inputs)
        batch.learn(cross_entropy(scores, batch.labels), scores)
    return work.result()


TOY = Experiment(
    name="toy", settings=ToySettings, train=train, figures=lambda folder, settings: None, cost=lambda *_: "Nothing."
)


def toy_process(*arguments: str) -> None:
    """Runs the experiment as a program does."""
    raise SystemExit(run(TOY, arguments))
