r"""Shots that change during training.

Early in training a rough gradient will do; near a minimum it would only scatter. A schedule sets ``layer.shots`` of all
quantum layers of a model, in the manner of ``torch.optim.lr_scheduler``.

    schedule = GrowingShots(model, first=20, last=2000, steps=300)
    for features, labels in loader:
        optimizer.zero_grad()
        loss_function(model(features), labels).backward()
        optimizer.step()
        schedule.step()

The layers must measure with shots already: a schedule never turns an exact layer into one with shots.

**Bias**: none is added. The shots of a step are fixed before it begins, by its number or by what earlier steps measured, so
that every gradient estimate is what it would be with that constant number of shots: unbiased with parameter shift, for an
output that is linear in the measured values (Sweke et al., Quantum 4, 314 (2020)). Stopping *within* a step, as soon as a
gradient looks large enough, would be biased towards large gradients; nothing here does that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from .arguments import explain_misfits, require_integer, require_number
from .backends import check_shots
from .layer import QuantumLayer

__all__ = ["ConstantShots", "GrowingShots", "ShotSchedule", "TargetSNR"]


@explain_misfits
class ShotSchedule(ABC):
    """Sets the shots of a model's quantum layers, step by step.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within, all of which measure with shots.

    Attributes:
        model: The module.
        steps_taken: How often :meth:`step` has been called.

    Raises:
        TypeError: If it is no module.
        ValueError: If there are none, or one gives exact values; in :meth:`step` likewise.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a module with a QuantumLayer.")
        self.model = model
        if not self.layers:
            raise ValueError(
                f"model: got {type(model).__name__} without a QuantumLayer, expected one with at least one."
            )
        self._refuse_exact_layers()
        self.steps_taken = 0

    @property
    def layers(self) -> list[QuantumLayer]:
        """The model's quantum layers; others than before, where it has grown."""
        return [module for module in self.model.modules() if isinstance(module, QuantumLayer)]

    def step(self) -> None:
        """Called after each training step, before anything else is evaluated: sets the shots of the next."""
        self._refuse_exact_layers()
        self.steps_taken += 1
        self._set([self._next(layer) for layer in self.layers])

    @abstractmethod
    def _next(self, layer: QuantumLayer) -> int:
        """The layer's shots for step number :attr:`steps_taken`, counted from 0."""

    @property
    def shots(self) -> list[int | None]:
        """The layers' present shots."""
        return [layer.shots for layer in self.layers]

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on."""
        return {"steps_taken": self.steps_taken, "shots": self.shots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was called.

        Raises:
            TypeError, ValueError: If it is no such state, or of a model with another number of quantum layers; nothing has
                changed then.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("shots"), list) or "steps_taken" not in state:
            raise TypeError(
                f"state: got {state!r}, expected what state_dict() gives: {self.state_dict()}, for example."
            )
        shots = [check_shots(number) for number in state["shots"]]
        if len(shots) != len(self.layers):
            raise ValueError(
                f"state: got the shots of {len(shots)} quantum layers, expected {len(self.layers)}; load it into "
                "a schedule of the same model."
            )
        self.steps_taken = require_integer("state['steps_taken']", state["steps_taken"], least=0)
        self._set(shots)

    def _set(self, shots: list[Any]) -> None:
        for layer, number in zip(self.layers, shots, strict=True):
            layer.shots = number

    def _refuse_exact_layers(self) -> None:
        for layer in self.layers:
            if layer.backend.resolve_shots(layer.shots) is None:
                raise ValueError(
                    f"model: got a quantum layer that gives exact values (backend {layer.backend.name!r} with shots=None), "
                    "expected layers that measure with shots; set layer.shots before, or give the schedule a module of only "
                    "the layers that it is for."
                )


def _positive(name: str, shots: Any) -> int:
    checked = check_shots(shots)
    if checked is None:
        raise ValueError(f"{name}: got None, expected a positive integer.")
    return checked


@explain_misfits
class ConstantShots(ShotSchedule):
    """The same shots in every step: the baseline that the others are compared with.

    Args:
        model: As in :class:`ShotSchedule`.
        shots: Shots a circuit.
    """

    def __init__(self, model: nn.Module, shots: int) -> None:
        super().__init__(model)
        self._shots = _positive("shots", shots)
        self._set([self._shots] * len(self.layers))

    def _next(self, layer: QuantumLayer) -> int:
        return self._shots


@explain_misfits
class GrowingShots(ShotSchedule):
    r"""Shots that grow geometrically, from ``first`` to ``last`` within so many steps.

    .. math:: S_t = S_0 \, (S_T / S_0)^{t / T} .

    On strongly convex functions, a descent with noisy gradients keeps the linear rate that it would have with exact ones if
    the errors of the gradients shrink geometrically, and no slower (Friedlander and Schmidt, SIAM J. Sci. Comput. 34, A1380
    (2012); Byrd, Chin, Nocedal and Wu, Math. Program. 134, 127 (2012)). Here they stop shrinking at ``last``.

    Args:
        model: As in :class:`ShotSchedule`.
        first: Shots of the first step.
        last: Shots from step ``steps`` on; may be fewer, for shots that shrink.
        steps: How many steps it takes to get there.
    """

    def __init__(self, model: nn.Module, *, first: int, last: int, steps: int) -> None:
        super().__init__(model)
        self._first, self._last = _positive("first", first), _positive("last", last)
        self._steps = require_integer("steps", steps)
        self._set([self._first] * len(self.layers))

    def _next(self, layer: QuantumLayer) -> int:
        passed = min(1.0, self.steps_taken / self._steps)
        return round(self._first * (self._last / self._first) ** passed)


@explain_misfits
class TargetSNR(ShotSchedule):
    r"""As many shots as the gradient needs to stand out from its noise by a given ratio.

    After each step the counts tell the gradient by the weights, :math:`g`, and its standard errors :math:`\sigma_w` at the
    S shots that were taken. The square of g's length is larger than the true one by the noise, on average, so

    .. math:: \mathrm{SNR}^2 = \frac{\sum_w g_w^2 - \sum_w \sigma_w^2}{\sum_w \sigma_w^2},

    and the next step gets :math:`S \cdot (\mathrm{target} / \mathrm{SNR})^2` shots, at most twice and at least half as many
    as this one, within ``least`` and ``most``. It is the norm test of Byrd, Chin, Nocedal and Wu, Math. Program. 134, 127
    (2012), for shots; compare the adaptive shots of Kübler et al., Quantum 4, 263 (2020).

    In the long run it is the smallest gradients that cost the most: near a minimum the shots go to ``most``. Of a layer that
    is called several times in a step, the last call's gradient counts.

    Args:
        model: As in :class:`ShotSchedule`. Each quantum layer gets shots of its own, by the gradient of its own weights.
        target: The ratio of the gradient's length to that of its error; positive.
        first: Shots of the first step.
        least: The fewest shots of a step.
        most: The most.

    Raises:
        ValueError: If the numbers do not fit each other, or a layer has no weights; in :meth:`step`, if there was no
            gradient with shots to go by.
    """

    def __init__(
        self, model: nn.Module, target: float, *, first: int = 100, least: int = 10, most: int = 10_000
    ) -> None:
        super().__init__(model)
        self._target = require_number("target", target)
        if not 0 < self._target < math.inf:
            raise ValueError(f"target: got {target!r}, expected a positive number.")
        self._least, self._most = _positive("least", least), _positive("most", most)
        if not 2 <= self._least <= _positive("first", first) <= self._most:
            raise ValueError(
                f"first: got {first} with least={least} and most={most}, expected 2 <= least <= first <= most (a single "
                "shot has no standard error)."
            )
        if any(not sum(layer.program.num_weights) for layer in self.layers):
            raise ValueError("model: got a quantum layer without weights, whose gradient has no length to go by.")
        self._set([first] * len(self.layers))

    def _next(self, layer: QuantumLayer) -> int:
        result = layer.last_run
        if result is None or (values := result.gradients) is None or not result.shots or layer.shots is None:
            raise ValueError(
                "step: the quantum layer's last call has no gradient with shots; call step() after backward() and before "
                "any other evaluation, and train the layer's weights."
            )
        errors = result.gradient_standard_errors
        if isinstance(values, dict):
            values, errors = (np.concatenate([*parts.values()]) for parts in (values, errors))
        noise = float((errors**2).sum())
        signal = float((values**2).sum()) - noise
        if not result.gradient_circuits or (noise == 0 and not values.any()):
            return layer.shots  # no upstream gradient: a step that tells nothing
        taken = result.gradient_shots / result.gradient_circuits
        if noise == 0:
            return max(self._least, int(taken / 2))
        if not math.isfinite(noise):
            raise ValueError(
                f"step: the standard errors of the gradient are not known ({layer.backend.name!r} with {layer.shots} shots)."
            )
        needed = taken * self._target**2 * noise / signal if signal > 0 else math.inf
        return int(max(min(max(needed, taken / 2), 2 * taken, self._most), self._least))
