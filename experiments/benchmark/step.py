"""What an adapter hands to the worker: a training step that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .gate_lists import Problem


@dataclass(frozen=True)
class Step:
    """A training step of one library on one problem.

    Attributes:
        take: Does one step; gives values, the inputs' gradients and the weights', each an array or tensor, or None.
        kernel_seconds: The seconds spent so far inside the library's own kernel, where somebody counts them.
    """

    take: Callable[[], tuple[Any, Any, Any]]
    kernel_seconds: Callable[[], float] | None = None


def torch_step(
    function: Callable[[torch.Tensor], torch.Tensor], problem: Problem, weights: torch.Tensor | None
) -> Step:
    """A step through torch: forward, then backward from the problem's upstream gradient.

    Args:
        function: From inputs of shape (batch, I) to values of shape (batch, outputs).
        problem: Gives inputs and upstream gradient.
        weights: The leaf tensor that collects the weights' gradients; None where there are no weights.
    """
    import torch

    inputs = torch.tensor(problem.inputs, requires_grad=problem.wants_input_gradients)
    upstream = torch.tensor(problem.upstream)

    def take() -> tuple[Any, Any, Any]:
        inputs.grad = None
        if weights is not None:
            weights.grad = None
        values = function(inputs)
        values.backward(upstream.to(values.dtype))
        return values.detach(), inputs.grad, None if weights is None else weights.grad

    return Step(take)
