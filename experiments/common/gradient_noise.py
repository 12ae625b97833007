r"""How much of a gradient is noise: what the quantum layers' last runs say after each backward, over an epoch.

A look costs as much as a small circuit or, where a simulator's counts are too many to keep, as a whole step. So only one
step in so many is looked at, by its number in the epoch, from the first on.

At a step t that is looked at, weight w has the gradient :math:`g_{tw}` of the step's loss and its standard error
:math:`\sigma_{tw}` from the shots. Of several processes it is their sum, the gradient that trains the model.
An epoch then has

- ``gradient_standard_error``: the root of the mean of :math:`\sigma_{tw}^2` over weights and steps;
- each weight's signal-to-noise ratio: the median of :math:`|g_{tw}| / \sigma_{tw}` over the steps;
- ``gradient_snr_median`` and ``gradient_snr_least``: the median and the least of the weights' ratios.

Steps whose error is not known (a single shot has none) are left out, and for the ratios those without noise (a row of equal
outcomes, a loss without gradient). What no step tells is an empty string, as all is with exact circuits.

Only trained weights count. Where a layer has none, the gradients by its inputs stand in, each input as a weight and each
row of a batch as a step. Of a layer that is called several times in a step, the last call's share counts; gradients by
``torch.func`` leave no trace. SPSA's errors are those of its shots, without the scatter of its directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer

STEPS_A_LOOK = 16
COLUMNS = ("gradient_standard_error", "gradient_snr_median", "gradient_snr_least")

_INPUTS = "inputs of "
_PARTS = ("steps", "gradients", "variances")

State = Mapping[str, Mapping[str, torch.Tensor]]
"""What :meth:`GradientNoise.state` gives."""


class GradientNoise:
    """What a model's quantum layers say of their gradients' noise in an epoch of one process.

    Args:
        model: With the layers that it has in this stage of its training.
        every: How many steps there are to a look; where steps wait in a queue, each is looked at.
    """

    def __init__(self, model: nn.Module, *, every: int = STEPS_A_LOOK) -> None:
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantumLayer)}
        self._every = 1 if any(layer.backend.queues for layer in self._layers.values()) else every
        self._seen: dict[str, list[Mapping[str, torch.Tensor]]] = {}

    def look(self, step: int) -> None:
        """Notes a step's gradients, if it is one to look at; after its backward, before anything else is evaluated.

        Args:
            step: Its number in the epoch, from 0.
        """
        if step % self._every:
            return
        for name, layer in self._layers.items():
            for source, gradients, errors in _gradients(name, layer):
                values = np.full(len(gradients), step), gradients, errors**2
                seen = dict(zip(_PARTS, map(torch.from_numpy, values), strict=True))
                self._seen.setdefault(source, []).append(seen)

    def clear(self) -> None:
        """Forgets all steps: an epoch begins."""
        self._seen = {}

    def state(self) -> State:
        """The epoch so far, for a checkpoint, and for :func:`columns` and :func:`variances`.

        Returns:
            By layer and weight group: the looks' ``steps`` of shape (T,), their ``gradients`` and ``variances`` of (T, W).
        """
        return {
            name: {part: torch.cat([each[part] for each in seen]) for part in seen[0]}
            for name, seen in self._seen.items()
        }

    def restore(self, state: State) -> None:
        """Goes on where :meth:`state` was called."""
        self._seen = {name: [seen] for name, seen in state.items()}


def columns(states: Sequence[State]) -> dict[str, float | str]:
    """The epoch's numbers for ``metrics.csv``.

    Args:
        states: The :meth:`GradientNoise.state` of each process.
    """
    squares, ratios = list[float](), list[float]()
    for _, gradients, variances in _together(states):
        squares += variances[np.isfinite(variances)].tolist()
        known = np.isfinite(variances) & (variances > 0)
        ratio = np.abs(gradients) / np.sqrt(np.where(known, variances, np.nan))
        ratios += np.nanmedian(ratio[:, known.any(axis=0)], axis=0).tolist()
    error = float(np.sqrt(np.mean(squares))) if squares else ""
    found = (error, float(np.median(ratios)), min(ratios)) if ratios else (error, "", "")
    return dict(zip(COLUMNS, found, strict=True))


def variances(states: Sequence[State]) -> list[dict[str, Any]]:
    """A row for each weight: its ``layer`` (with the group), ``weight`` (from 0), ``variance`` and ``steps``.

    The variance is the mean of the gradient's variance from the shots over the steps that know it, and an empty string
    where none does.

    Args:
        states: As for :func:`columns`.
    """
    rows = []
    for name, _, squares in _together(states):
        for weight, square in enumerate(squares.T):
            known = square[np.isfinite(square)]
            variance = float(known.mean()) if known.size else ""
            rows.append({"layer": name, "weight": weight, "variance": variance, "steps": len(known)})
    return rows


def _gradients(name: str, layer: QuantumLayer) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """What a layer's last run has: of what, and gradients and standard errors of shape (1, W), or (rows, inputs)."""
    run = layer.last_run
    if run is None or not run.shots:
        return
    by_weights, errors = run.gradients, run.gradient_standard_errors
    if not isinstance(by_weights, dict):
        group = layer.program.group_names[0]
        by_weights, errors = ({} if values is None else {group: values} for values in (by_weights, errors))
    groups = [(group, values) for group, values in by_weights.items() if values.size]
    for group, values in groups:
        yield f"{name}.{group}".lstrip("."), values[None], errors[group][None]
    by_inputs, errors_by_inputs = run.input_gradients, run.input_gradient_standard_errors
    if not groups and by_inputs is not None and errors_by_inputs is not None:
        yield f"{_INPUTS}{name or 'the layer'}", by_inputs, errors_by_inputs


def _together(states: Sequence[State]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The gradients and variances of all processes, each of shape (T, W), by layer and weight group."""
    for name in dict.fromkeys(name for state in states for name in state):
        seen = [state[name] for state in states if name in state]
        steps, gradients, squares = (np.concatenate([each[part] for each in seen]) for part in _PARTS)
        if not name.startswith(_INPUTS):  # rows are each process's own, but weights are everyone's
            _, places = np.unique(steps, return_inverse=True)
            gradients, squares = (_summed(places, values) for values in (gradients, squares))
        yield name, gradients, squares


def _summed(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    sums = np.zeros((int(places.max()) + 1, values.shape[1]))
    np.add.at(sums, places, values)
    return sums
