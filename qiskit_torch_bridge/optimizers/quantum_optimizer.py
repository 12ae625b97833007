"""What the optimizers of this package share: whose weights they hold, which gradients count, and their checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..layer import QuantumLayer

__all__ = ["LayerGradient", "QuantumOptimizer"]

_OWN_STATE = "quantum"


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """The gradient by a quantum layer's trainable weights.

    Attributes:
        weights: Those that have one, in the order of ``parameters()``.
        vector: Shape (W,): their gradients one after the other, float64, on the CPU.
        kept: Shape (W,): their places among all trainable weights of the layer.
    """

    weights: tuple[torch.Tensor, ...]
    vector: torch.Tensor
    kept: torch.Tensor

    def move(self, direction: torch.Tensor, rate: float) -> None:
        """Adds ``rate`` times a direction of shape (W,) to the weights."""
        for weight, part in zip(self.weights, direction.split([len(w) for w in self.weights]), strict=True):
            weight.add_(part.to(weight.device, weight.dtype), alpha=rate)


class QuantumOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer of the weights of a model's quantum layers, with a parameter group for each layer.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within.
        defaults: Options of the parameter groups.

    Attributes:
        model: The module.
        layers: Its quantum layers that have weights, in the order of ``model.modules()``; a layer that is used in
            several places is there once.

    Raises:
        TypeError: If it is no module.
        ValueError: If no quantum layer has weights, or two share them.
    """

    def __init__(self, model: nn.Module, **defaults: Any) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a module with a QuantumLayer.")
        self.model, self.layers = model, _layers_of(model)
        if not self.layers:
            raise ValueError(
                f"model: got {type(model).__name__} without weights of a QuantumLayer, expected one with at least one "
                "trainable circuit."
            )
        held = [weight for layer in self.layers for weight in layer._weight_list()]
        if len({id(weight) for weight in held}) < len(held):
            raise ValueError(
                "model: got quantum layers that share weights, expected weights of their own; use one layer in both places."
            )
        self._is_made = False
        super().__init__([{"params": layer._weight_list()} for layer in self.layers], defaults)
        self._is_made = True

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes the weights once."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the groups are those of the model's quantum layers.

        Raises:
            ValueError: Always, once the optimizer is made.
        """
        if getattr(self, "_is_made", False):
            raise ValueError(
                f"{type(self).__name__} holds the weights of quantum layers only; make another optimizer for "
                "other parameters."
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on to the last bit (with the layers' ``get_rng_state()``)."""
        return {**super().state_dict(), _OWN_STATE: self._own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was called.

        Raises:
            TypeError, ValueError: If it is no such state, or of another model; nothing has changed then.
        """
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get(_OWN_STATE), Mapping):
            raise TypeError(f"state_dict: got no state of {type(self).__name__}, expected what its state_dict() gives.")
        own = state_dict[_OWN_STATE]
        if not set(self._own_state()) <= set(own):
            raise ValueError(
                f"state_dict: got a state with {sorted(own)}, expected one with {sorted(self._own_state())}; load it into "
                "the kind of optimizer that it came from."
            )
        try:
            self._check_own_state(own)
        except (AttributeError, KeyError) as error:
            raise ValueError(
                f"state_dict: its part {_OWN_STATE!r} is not what state_dict() gives ({error!r})."
            ) from error
        super().load_state_dict(dict(state_dict))
        self._load_own_state(own)

    def _own_state(self) -> dict[str, Any]:
        """What is to be saved beside the parameter groups: tensors, numbers and texts."""
        return {}

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        """Refuses what :meth:`_load_own_state` cannot take."""

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`_own_state` gave."""

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{type(self).__name__} belongs to a model and cannot be copied or pickled; save its state_dict() and load it "
            "into an optimizer of the other model."
        )

    def _require_same_layers(self) -> None:
        """Refuses a model whose quantum layers, or their weights, are others than when the optimizer was made."""
        layers = _layers_of(self.model)
        same = len(layers) == len(self.layers) and all(map(lambda one, other: one is other, layers, self.layers))
        if same:
            held = [weight for group in self.param_groups for weight in group["params"]]
            present = [weight for layer in layers for weight in layer._weight_list()]
            same = len(held) == len(present) and all(map(lambda one, other: one is other, held, present))
        if not same:
            raise ValueError(
                "model: its quantum layers or their weights are others than when the optimizer was made; make a new "
                "optimizer, as after a change of any model. Nothing was changed."
            )

    def _gradient_of(self, layer: QuantumLayer) -> LayerGradient | None:
        """The gradient by a layer's trainable weights; None if there is none.

        Raises:
            TypeError: If it is not dense.
            ValueError: If it is not finite.
        """
        weights, vectors, places, start = [], [], [], 0
        for name, weight in zip(layer.program.group_names, layer._weight_list(), strict=True):
            if not weight.requires_grad:
                continue
            size = len(weight)
            if weight.grad is not None:
                vectors.append(_checked(name, weight.grad))
                weights.append(weight)
                places.append(torch.arange(start, start + size))
            start += size
        if not weights:
            return None
        return LayerGradient(tuple(weights), torch.cat(vectors), torch.cat(places))

    def _gradients(self) -> list[tuple[int, LayerGradient]]:
        """Those of all layers that have one, with the layer's number; checked before anything is measured or changed."""
        self._require_same_layers()
        gradients = [(number, self._gradient_of(layer)) for number, layer in enumerate(self.layers)]
        return [(number, gradient) for number, gradient in gradients if gradient is not None]


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What a closure gives, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _layers_of(model: nn.Module) -> list[QuantumLayer]:
    """The quantum layers that have weights."""
    return [module for module in model.modules() if isinstance(module, QuantumLayer) and module._weight_list()]


def weights_by_name(layer: QuantumLayer) -> list[tuple[str, torch.Tensor]]:
    """A layer's weights by the names of their groups."""
    return list(zip(layer.program.group_names, layer._weight_list(), strict=True))


def parts_of(layer: QuantumLayer, by_weights: Any) -> dict[str, np.ndarray]:
    """What a :class:`qiskit_torch_bridge.LayerResult` says by the weights, an array or a dictionary, by groups' names."""
    return dict(by_weights) if isinstance(by_weights, dict) else {layer.program.group_names[0]: by_weights}


def _checked(name: str, gradient: torch.Tensor) -> torch.Tensor:
    if gradient.layout is not torch.strided:
        raise TypeError(f"weights ({name}): got a gradient that is {gradient.layout}, expected a dense one.")
    vector = gradient.detach().to("cpu", torch.float64)
    bad = ~torch.isfinite(vector)
    if bool(bad.any()):
        entry = int(bad.nonzero()[0])
        raise ValueError(
            f"weights ({name}): entry {entry} of the gradient is {vector[entry].item()}, expected finite numbers; look for "
            "what makes the loss not finite. Nothing was changed."
        )
    return vector
