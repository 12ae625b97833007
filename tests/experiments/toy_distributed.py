"""Small trainings for one process or several; by itself, because :func:`runs.start` imports it."""

import json
import os
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from experiments.__main__ import main
from experiments.common.classifiers import cross_entropy
from experiments.common.rows import Rows
from experiments.common.runs import RunFolder
from experiments.common.settings import TrainingSettings
from experiments.common.work import Work
from experiments.common.workplace import layer_seed, open_fabric
from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import textbook


def examples(count, seed):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Rows(inputs, (inputs.sum(dim=1) > 0).long())


def train_all(place: str) -> None:
    """Trains in folders of these names.

    In double precision and by exact simulation: what is left between one process and two is the order of sums.
    """
    folder, fabric = Path(place), open_fabric("cpu")

    def trained(name, stages=(("training", 2, True),), model=None, batch_size=4, seed=1):
        torch.manual_seed(seed)
        model = (model or DressedQuantumNet(3, 2)).double()
        settings = TrainingSettings(seed=2, epochs=2, batch_size=batch_size, lr=0.05)
        # Linear in the gradients, as Adam is not.
        options = {"optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)}
        with Work("toy", settings, RunFolder(folder / name), fabric, progress=False) as work:
            for stage, epochs, first_learns in stages:
                next(model.parameters()).requires_grad_(first_learns)
                sets = examples(13, 1), examples(5, 2)
                for batch in work.steps(model, cross_entropy, *sets, stage=stage, epochs=epochs, **options):
                    scores = model(batch.inputs)
                    batch.learn(cross_entropy(scores, batch.labels), scores)

    trained("even")
    trained("uneven", batch_size=5)  # 3 + 2 rows, and 2 + 1 at the end
    trained("single", batch_size=1)  # the second process has none
    trained("few", batch_size=13)
    trained("stages", [("one", 1, True), ("two", 1, False), ("three", 1, True), ("four", 1, True)])
    trained("own", seed=1 + fabric.global_rank)  # the weights of the first process count
    trained("normalised", model=nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), batch_size=13)

    circuit, inputs, weights = textbook()
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, shots=1000, seed=layer_seed(3))
    noise = layer(torch.full((1, 1), 0.3)).item()
    cost = {"circuits": layer.total_circuits, "shots": layer.total_shots}
    (folder / f"noise{fabric.global_rank}.json").write_text(json.dumps({"value": noise, **cost}))


def heard_by_rank(place: str, *arguments: str) -> None:
    """The command; what each process prints, its warnings included, is in a file of its rank."""
    file = (Path(place) / f"said{os.environ['RANK']}").open("w")
    with file as said, redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("default")
        raise SystemExit(main(arguments))
