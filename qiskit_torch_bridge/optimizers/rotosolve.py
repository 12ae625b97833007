"""``Rotosolve``: one weight after the other is set to where the loss is least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import explain_misfits, require_integer, require_number
from ..quote import Quote
from .frequencies import frequencies_of
from .quantum_optimizer import QuantumOptimizer, weights_by_name
from .trigonometric import TrigonometricRule, rule_of

__all__ = ["Rotosolve"]


@dataclass(frozen=True, eq=False)
class _Coordinate:
    """One weight.

    Attributes:
        name: The name of its group.
        weights: The tensor that it is an entry of.
        entry: Which.
        rule: How the loss depends on it.
        sign: 1.0 to minimise, -1.0 to maximise.
    """

    name: str
    weights: torch.Tensor
    entry: int
    rule: TrigonometricRule
    _: KW_ONLY
    sign: float


@explain_misfits
class Rotosolve(QuantumOptimizer):
    r"""Sequential minimisation: each weight in turn goes to the minimum of the loss along it, without gradients.

    As a function of one weight, an expectation value is a trigonometric polynomial whose R frequencies the circuit
    tells (:mod:`qiskit_torch_bridge.optimizers.frequencies`); so 2R + 1 values of the loss give it whole, and its
    minimum is computed: Ostaszewski, Grant and Benedetti, Quantum 5, 391 (2021); Nakanishi, Fujii and Todo, Phys. Rev.
    Research 2, 043158 (2020); several frequencies: Wierichs, Izaac, Wang and Lin, Quantum 6, 677 (2022).

        rotosolve = Rotosolve(layer)
        for _ in range(10):
            energy = rotosolve.step(lambda: layer().sum())  # a sweep over all weights; no backward()

    **The loss must be linear** in the quantum layer's outputs: an energy, a mean over rows, a fixed linear layer after
    it. Cross entropy and squared errors are not, nor is a second quantum layer behind the first, and extrapolation of
    noise by an exponential. Each of these has other frequencies, and the computed minimum is none. Where all layers are
    exact this is checked, at no further cost but one evaluation a sweep: the loss at each computed minimum against its
    prediction. With shots nobody can tell, and it is your promise. The closure must also use the same data throughout a
    sweep.

    With shots the minimum is that of noisy values. ``reuse=True`` takes the predicted value at the last minimum for the
    first value of the next weight: 2R evaluations in place of 2R + 1 (Nakanishi et al.), whose errors add up within a
    sweep.

    Each evaluation is a call of its own, and on hardware a job: :meth:`quote` says what a sweep comes to.

    Frozen weights stay; so do those that nothing depends on, at no cost. There is no learning rate.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within; other parameters stay.
        max_frequencies: How many frequencies a weight may have.
        reuse: Whether predicted values stand in for measured ones, as above; not where the prediction is checked.
        check: Whether predictions are checked where all layers are exact.
        maximize: Whether to climb.

    Attributes:
        predicted: The loss at the weights that the last sweep ended with: measured where it was checked, else
            predicted; None before.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If a weight has no finite set of frequencies (``x * w``, ``sin(w)``), or more than
            ``max_frequencies``, before anything is run; in :meth:`step` if the loss is no finite number, or not what was
            predicted.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_frequencies: int = 16,
        reuse: bool = False,
        check: bool = True,
        maximize: bool = False,
    ) -> None:
        self.max_frequencies = require_integer("max_frequencies", max_frequencies)
        self.reuse, self.check = bool(reuse), bool(check)
        super().__init__(model, maximize=bool(maximize))
        self.predicted: float | None = None
        self._rules: dict[tuple[int, int, int], TrigonometricRule | None] = {}
        self._coordinates()  # refused now rather than in the first step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A sweep: all weights once, in the order of ``parameters()``.

        Args:
            closure: Computes the loss and returns it, a single number; no ``backward()``, no gradients.

        Returns:
            The loss at the weights before.
        """
        if closure is None:
            raise TypeError("closure: got none, expected a function that computes the loss and returns it.")
        self._require_same_layers()
        coordinates, sweep = self._coordinates(), _Sweep(closure, self.check and self._is_exact)
        with torch.no_grad():
            before = value = sweep.loss()
            is_known = True
            for coordinate in coordinates:
                value = sweep.move(coordinate, value if is_known else sweep.loss())
                is_known = sweep.is_checked or self.reuse
        self.predicted = value
        return before

    @property
    def evaluations(self) -> int:
        """How often a sweep calls the closure (at most: where nothing moves, there is nothing to check)."""
        counts = [len(coordinate.rule.points) for coordinate in self._coordinates()]
        if not counts:
            return 1
        if self.check and self._is_exact:
            return 1 + sum(counts)
        return 1 + sum(counts) - len(counts) if self.reuse else sum(counts)

    def quote(self, batch_size: int = 1) -> Quote:
        """What a sweep costs, if the closure calls each quantum layer once, on a batch of so many rows."""
        with torch.no_grad():
            one = sum([layer.quote(batch_size) for layer in self.layers], Quote())
        return one * self.evaluations

    @property
    def _is_exact(self) -> bool:
        return all(layer.method().shots is None for layer in self.layers)

    def _rule(self, number: int, group: int, entry: int) -> TrigonometricRule | None:
        key = number, group, entry
        if key not in self._rules:
            try:
                frequencies = frequencies_of(self.layers[number].program, group, entry, self.max_frequencies)
                self._rules[key] = rule_of(frequencies) if frequencies else None
            except ValueError as error:
                raise ValueError(
                    f"{str(error).rstrip('.')}; freeze the weights that Rotosolve cannot set, and train them by a gradient "
                    "(or raise max_frequencies). Nothing was run."
                ) from None
        return self._rules[key]

    def _coordinates(self) -> list[_Coordinate]:
        """The weights that are trained, and matter."""
        coordinates = []
        for number, (layer, options) in enumerate(zip(self.layers, self.param_groups, strict=True)):
            sign = -1.0 if options["maximize"] else 1.0
            for group, (name, weights) in enumerate(weights_by_name(layer)):
                for entry in range(len(weights) if weights.requires_grad else 0):
                    rule = self._rule(number, group, entry)
                    if rule is not None:
                        coordinates.append(_Coordinate(name, weights, entry, rule, sign=sign))
        return coordinates

    def _own_state(self) -> dict[str, Any]:
        return {"predicted": self.predicted}

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self.predicted = state["predicted"]


class _Sweep:
    """The evaluations of one sweep.

    Args:
        closure: Gives the loss.
        is_checked: Whether the loss at each minimum is compared with its prediction.
    """

    def __init__(self, closure: Callable[[], Any], is_checked: bool) -> None:
        self.closure, self.is_checked = closure, is_checked
        self._epsilon = float(np.finfo(np.float64).eps)
        self._is_number = False

    def loss(self) -> float:
        """The loss at the present weights.

        Raises:
            TypeError, ValueError: If it is no finite number.
        """
        try:
            loss = self.closure()
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise RuntimeError("closure: it asks for gradients, expected one that returns the loss only.") from error
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            if loss.dtype.is_floating_point:
                self._epsilon = max(self._epsilon, torch.finfo(loss.dtype).eps)
            loss = loss.item()
        else:
            self._is_number = True
        value = require_number("closure", loss)
        if not math.isfinite(value):
            raise ValueError(
                f"closure: it returned {value}, expected a finite loss; the weight that was tried is set back."
            )
        return value

    def move(self, coordinate: _Coordinate, value: float) -> float:
        """Sets a weight to the minimum; returns the loss there, measured where it is checked, else predicted.

        Args:
            coordinate: The weight.
            value: The loss at the present one.
        """
        weights, entry, rule = coordinate.weights, coordinate.entry, coordinate.rule
        start = best = weights[entry].item()
        values = [value]
        try:
            for point in rule.points[1:]:
                weights[entry] = start + float(point)
                values.append(self.loss())
            coefficients = rule.coefficients(np.array(values))
            shift = rule.minimum(coordinate.sign * coefficients, self._epsilon)
            if shift:
                value = float(rule.value(coefficients, shift))
                weights[entry] = start + shift
                if self.is_checked:
                    value = self._confirmed(coordinate, value, float(np.abs(coefficients).sum()))
            best = start + shift
        finally:
            weights[entry] = best
        return value

    def _confirmed(self, coordinate: _Coordinate, predicted: float, scale: float) -> float:
        """The measured loss, if it is what was predicted."""
        value = self.loss()
        epsilon = max(self._epsilon, torch.finfo(coordinate.weights.dtype).eps)
        if self._is_number:  # as of ``.item()``, which does not say that it was computed in single precision
            epsilon = max(epsilon, torch.finfo(torch.float32).eps)
        if abs(value - predicted) > math.sqrt(epsilon) * scale + 100 * epsilon:
            raise ValueError(
                f"closure: the loss at the computed minimum along entry {coordinate.entry} of weights ({coordinate.name}) "
                f"is {value:.9g}, expected {predicted:.9g}: it is not linear in the layer's outputs (as cross entropy and "
                "squared errors are not), not the same function throughout (as with dropout), or computed in less precision "
                "than it has (as under autocast); take an optimizer by gradients, or check=False. The weight is set back."
            )
        return value
