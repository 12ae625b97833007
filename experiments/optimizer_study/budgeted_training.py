"""A training until its budgets are spent, and how far it had come with each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..common.cells import Cell
from .contestants import CONTESTANTS
from .metering import MeteredBackend
from .trained_problems import Task

AXES = ("executions", "seconds")
"""What a budget is of."""


def train(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    """Trains the cell's problem; returns a row for each budget.

    A budget's row is about the weights after the last step that was paid from it in full; where there was no money for a
    single step, about those to begin with.

    Args:
        cell: Cells of one problem and seed start from the same weights and see the same batches, whatever the optimizer.
        seed: Draws the shots, and the directions of stochastic methods.
    """
    contestant, meter = CONTESTANTS[cell["method"]], MeteredBackend(cell["device"])
    shot_seed, torch_seed = seed.spawn(2)
    options = {"backend": meter, "shots": cell["shots"], "gradient": contestant.gradient}
    task = Task.of(cell, seed=shot_seed.generate_state(4).tolist(), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch_seed.generate_state(1)[0]))
        return [*_rows(cell, task, meter)]


def _rows(cell: Cell, task: Task, meter: MeteredBackend) -> Iterator[dict[str, Any]]:
    step = CONTESTANTS[cell["method"]].begin(task, cell["lr"])
    budgets = {(axis, budget) for axis in AXES for budget in cell[axis]}
    batches = _batches(cell, task)
    steps, before = 0, _spent(meter)
    while budgets:
        state = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        rows = next(batches)
        step(lambda rows=rows: task.loss(rows))  # type: ignore[misc]
        after = _spent(meter)
        if after == before:
            raise RuntimeError(f"{cell['method']}: got a step that has measured nothing, expected one that has.")
        if passed := sorted((axis, budget) for axis, budget in budgets if after[axis] > budget):
            verdict = task.judged(state)
            yield from (
                {"axis": axis, "budget": budget, "steps": steps, **_of_row(before), **verdict}
                for axis, budget in passed
            )
            budgets -= set(passed)
        steps, before = steps + 1, after


def _spent(meter: MeteredBackend) -> dict[str, float]:
    return {"executions": meter.executions, "seconds": meter.qpu_seconds, "jobs": meter.jobs}


def _of_row(spent: dict[str, float]) -> dict[str, float]:
    return {f"spent_{name}": number for name, number in spent.items()}


def _batches(cell: Cell, task: Task) -> Iterator[torch.Tensor]:
    """The rows of each step's batch: all examples in a random order, then in another, and so on."""
    generator = torch.Generator().manual_seed(cell["seed"])
    order = torch.empty(0, dtype=torch.int64)
    while True:
        if task.examples is not None and len(order) < cell["batch_size"]:
            order = torch.randperm(len(task.examples[0]), generator=generator)
        yield order[: cell["batch_size"]]
        order = order[cell["batch_size"] :]
