"""``CANS``: gradient descent whose shots follow from what the gradient was worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import explain_misfits, require_integer, require_number
from ..backends import check_shots
from ..layer import QuantumLayer
from .lipschitz import lipschitz_bound
from .quantum_optimizer import LayerGradient, QuantumOptimizer, loss_of, parts_of, weights_by_name

__all__ = ["CANS"]


@explain_misfits
class CANS(QuantumOptimizer):
    r"""Coupled adaptive number of shots: gradient descent that buys as many shots as promise the most progress for each.

    A step of length :math:`\alpha` along a gradient from S shots lowers a function with Lipschitz constant L of its
    gradient by at least :math:`(\alpha - L\alpha^2/2)\,|g|^2 - L\alpha^2 \sum_w \sigma_w^2 / 2S` on average, where
    :math:`\sigma_w^2` is the variance of the gradient by weight w from a single shot. Per shot that is most at

    .. math:: S = \left\lceil \frac{2 L \alpha}{2 - L \alpha}\,\frac{\sum_w \xi_w}{\sum_w \chi_w^2 + b\,\mu^k} \right\rceil,

    with running averages :math:`\chi` of the gradient and :math:`\xi` of :math:`\sigma^2` (``smoothing`` :math:`\mu`,
    corrected for their start), and :math:`b\,\mu^k` against division by noise in step k (Kübler, Arrasmith, Cincio and
    Coles, Quantum 4, 263 (2020)).

        optimizer = CANS(layer, lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            layer().sum().backward()
            optimizer.step()  # moves the weights, and sets layer.shots for the next step

    **Why not iCANS.** iCANS of the same paper gives each weight shots of its own, as does Rosalin. A layer measures all
    shifted circuits in one backend call with the same number of shots, so that there is one number to choose, which is
    that paper's coupled rule. The variances are those of ``layer.last_run.gradient_standard_errors``, mitigation
    included.

    All layers get the same shots. Each is called once between ``zero_grad()`` and ``step()``, and nothing is evaluated
    nor its gradient changed (clipped, accumulated) after ``backward()``.

    There are many options because the rule has constants, for each of which the paper gives a value.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within, all of which measure with
            shots.
        lr: The step :math:`\alpha`, below ``2 / lipschitz``; in the parameter groups, so that PyTorch's schedulers
            change it. None: ``1 / lipschitz``.
        lipschitz: L, of the loss as a function of the quantum weights. None: the bound of
            :mod:`qiskit_torch_bridge.optimizers.lipschitz`, for a model that is a layer with one output, and a loss
            that is this output or its mean over rows; else it must be given. That bound holds in every direction. The
            sum of the observable's coefficients, which the paper takes, holds along each weight alone (of one angle),
            and is as many times smaller as there are weights. A larger number makes shorter steps of fewer shots.
        smoothing: :math:`\mu`, from 0 to below 1.
        bias: b, positive.
        least: The fewest shots of a step; those of the first.
        most: The most.
        maximize: Whether to climb.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If numbers do not fit each other, a layer gives exact values, or has ``gradient="spsa"``; in
            :meth:`step`, before anything is changed, if there is no gradient with shots and error bars to go by.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | None = None,
        *,
        lipschitz: float | None = None,
        smoothing: float = 0.99,
        bias: float = 1e-6,
        least: int = 10,
        most: int = 100_000,
        maximize: bool = False,
    ) -> None:
        self.smoothing, self.bias = require_number("smoothing", smoothing), require_number("bias", bias)
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: got {smoothing!r}, expected a number from 0 to below 1.")
        if not 0 < self.bias < math.inf:
            raise ValueError(f"bias: got {bias!r}, expected a positive number.")
        self.least, self.most = require_integer("least", least, least=2), require_integer("most", most)
        if self.most < self.least:
            raise ValueError(f"most: got {most}, expected at least {least}, which least= says.")
        self.lipschitz = _lipschitz(model, lipschitz)
        rate = 1 / self.lipschitz if lr is None else require_number("lr", lr)
        self._require_rate(rate)
        super().__init__(model, lr=rate, maximize=bool(maximize))
        self._require_error_bars()
        self.steps_taken = 0
        self._averages: dict[tuple[int, str], dict[str, Any]] = {}
        self._set_shots(self.least)

    @property
    def shots(self) -> int | None:
        """The layers' present shots."""
        return self.layers[0].shots

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step against the gradient, and the shots of the next.

        Args:
            closure: Clears the gradients, computes the loss, calls its ``backward()``, and returns it; None if that has
                been done.

        Returns:
            What the closure gave.
        """
        loss = loss_of(closure)
        with torch.no_grad():
            gradients = self._gradients()
            self._require_error_bars()
            for group in self.param_groups:
                self._require_rate(float(group["lr"]))
            measured = [(number, self._variances(number, gradient)) for number, gradient in gradients]
            for number, gradient in gradients:
                group = self.param_groups[number]
                gradient.move(gradient.vector, float(group["lr"]) * (1.0 if group["maximize"] else -1.0))
            self._set_shots(self._next(measured))
            self.steps_taken += 1
        return loss

    def _variances(self, number: int, gradient: LayerGradient) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The gradient by each group of weights, and its variances from a single shot; none where nothing was measured."""
        layer = self.layers[number]
        run = layer.last_run
        if run is None or run.gradients is None or not run.shots:
            raise ValueError(
                f"step: the last call of quantum layer {number} has no gradient with shots; call step() after backward() "
                "and before any other evaluation. Nothing was changed."
            )
        values, errors = parts_of(layer, run.gradients), parts_of(layer, run.gradient_standard_errors)
        names = [name for name, weight in weights_by_name(layer) if any(weight is held for held in gradient.weights)]
        vectors = gradient.vector.split([len(weight) for weight in gradient.weights])
        parts = {}
        for name, weight, vector in zip(names, gradient.weights, vectors, strict=True):
            close = 100 * torch.finfo(weight.dtype).eps * float(vector.abs().max())
            if name not in values or not np.allclose(values[name], vector.numpy(), rtol=0, atol=close):
                raise ValueError(
                    f"step: the gradient of weights ({name}) is not the one that the last call of quantum layer {number} "
                    "measured, so that its error bars are unknown; call the layer once between zero_grad() and step(), and "
                    "do not change the gradient. Nothing was changed."
                )
            if run.gradient_circuits:
                taken = run.gradient_shots / run.gradient_circuits
                parts[name] = vector.numpy().copy(), errors[name] ** 2 * taken
                if not np.isfinite(parts[name][1]).all():
                    raise ValueError(
                        f"step: the standard errors of the gradient of weights ({name}) are not known "
                        f"({layer.backend.name!r} with {layer.shots} shots). Nothing was changed."
                    )
        return parts

    def _next(self, measured: list[tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]]) -> int:
        """The shots of the next step."""
        noise, signal, rate = 0.0, self.bias * self.smoothing**self.steps_taken, 0.0
        for number, parts in measured:
            for name, (gradient, variances) in parts.items():
                kept = self._averages.setdefault(
                    (number, name),
                    {"count": 0, "gradient": np.zeros(len(gradient)), "variance": np.zeros(len(gradient))},
                )
                kept["count"] += 1
                correction = 1 - self.smoothing ** kept["count"]
                for key, new in (("gradient", gradient), ("variance", variances)):
                    kept[key] = self.smoothing * kept[key] + (1 - self.smoothing) * new
                noise += float(kept["variance"].sum()) / correction
                signal += float(np.square(kept["gradient"]).sum()) / correction**2
                rate = max(rate, float(self.param_groups[number]["lr"]))
        if not noise:
            return self.least if rate else int(self.shots or self.least)
        factor = 2 * self.lipschitz * rate / (2 - self.lipschitz * rate)
        return int(
            min(max(math.ceil(min(factor * noise / signal, self.most)) if signal else self.most, self.least), self.most)
        )

    def _require_rate(self, rate: float) -> None:
        if not 0 <= rate < 2 / self.lipschitz:
            raise ValueError(
                f"lr: got {rate}, expected a number from 0 to below 2 / lipschitz = {2 / self.lipschitz:.6g}, from which on "
                "a step need not lower the loss, however many shots it has."
            )

    def _require_error_bars(self) -> None:
        for number, layer in enumerate(self.layers):
            if layer.method().shots is None:
                raise ValueError(
                    f"model: got quantum layer {number} that gives exact values (backend {layer.backend.name!r} with "
                    "shots=None), expected layers that measure with shots; set layer.shots before."
                )
            if layer.method().rule.name == "spsa":
                raise ValueError(
                    f"model: got quantum layer {number} with gradient='spsa', whose error bars hold the noise of its "
                    "shots and not that of its random directions, expected a rule such as 'parameter_shift'."
                )

    def _set_shots(self, shots: int) -> None:
        for layer in self.layers:
            layer.shots = shots

    def _own_state(self) -> dict[str, Any]:
        averages = [
            {"layer": number, "weights": name, "count": kept["count"],
             **{key: torch.from_numpy(kept[key].copy()) for key in ("gradient", "variance")}}
            for (number, name), kept in self._averages.items()
        ]  # fmt: skip
        return {"steps_taken": self.steps_taken, "shots": self.shots, "adaptive_averages": averages}

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        require_integer("state_dict['quantum']['steps_taken']", state["steps_taken"], least=0)
        check_shots(state["shots"])
        sizes = {
            (number, name): len(weight)
            for number, layer in enumerate(self.layers)
            for name, weight in weights_by_name(layer)
        }
        for kept in state["adaptive_averages"]:
            if sizes.get((kept["layer"], kept["weights"])) != len(kept["gradient"]):
                raise ValueError(
                    f"state_dict: got averages of {len(kept['gradient'])} weights ({kept['weights']}) of quantum layer "
                    f"{kept['layer']}, expected those of {sizes}; load it into an optimizer of the same model."
                )

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.steps_taken = state["steps_taken"]
        self._averages = {
            (kept["layer"], kept["weights"]): {
                "count": kept["count"],
                **{key: kept[key].cpu().double().numpy().copy() for key in ("gradient", "variance")},
            }
            for kept in state["adaptive_averages"]
        }
        self._set_shots(state["shots"])


def _lipschitz(model: nn.Module, given: float | None) -> float:
    if given is None:
        reason = "nothing says how the loss depends on the quantum layers of a larger model"
        if isinstance(model, QuantumLayer):
            try:
                if bound := lipschitz_bound(model):
                    return bound
                reason = "the output depends on no weight"
            except ValueError as error:
                reason = str(error)
        raise ValueError(
            f"lipschitz: got none, and {reason}; expected a positive number, an upper bound of the second derivatives of "
            "the loss along any direction of the quantum weights."
        )
    number = require_number("lipschitz", given)
    if not 0 < number < math.inf:
        raise ValueError(f"lipschitz: got {given!r}, expected a positive number.")
    return number
