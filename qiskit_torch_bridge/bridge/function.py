"""The two ``torch.autograd.Function`` of the bridge; :mod:`qiskit_torch_bridge.bridge` says how they work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..program.angles import batch_size
from ..program.compiled import Selection
from . import transforms
from .evaluation import Derivative, Evaluation

__all__ = ["QuantumFunction"]


class QuantumFunction(torch.autograd.Function):
    """Values of a circuit as a differentiable function of its angles.

    ``QuantumFunction.apply(evaluation, *groups)`` takes an :class:`Evaluation` and one float64 CPU tensor of shape (N,
    A_g) or (1, A_g) for each group of ``evaluation.program.angle_map`` and gives the values, a float64 tensor of shape
    (N, M). :func:`qiskit_torch_bridge.evaluate` wraps it for inputs and weights;
    :class:`qiskit_torch_bridge.QuantumLayer` for modules.
    """

    @staticmethod
    def forward(evaluation: Evaluation, *groups: torch.Tensor) -> torch.Tensor:
        return evaluation.measure(groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        evaluation, *groups = inputs
        ctx.evaluation = evaluation
        ctx.save_for_backward(*groups)
        ctx.save_for_forward(*groups)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        groups, evaluation = ctx.saved_tensors, ctx.evaluation
        derivative = Derivative.by_groups(evaluation, ctx.needs_input_grad[1:], batch_size(groups))
        is_batched = transforms.is_batched_gradient(upstream)
        is_plain = not (is_batched or transforms.is_wrapped(upstream))
        notes = is_plain and evaluation.observer is not None and evaluation.kind == "values"
        may_be_differentiated = (
            torch.is_grad_enabled() or transforms.transforms_are_active() or transforms.forward_level() >= 0
        )
        if not derivative.selection.columns:
            if notes:
                derivative.note(groups, upstream, gradient=np.zeros((derivative.rows, 0)))
            return None, *(torch.zeros_like(group) for group in groups)
        # The vmap of ``is_grads_batched`` knows no custom Functions, but it does know sums.
        if evaluation.method.rule.exact_only and not is_batched:
            if may_be_differentiated:
                flat = _Pullback.apply(evaluation, derivative.selection, upstream, *groups)
                if notes:
                    derivative.note(groups, upstream, gradient=flat.detach().numpy())
                return None, *derivative.hand_out(flat, groups)
            # Nothing will differentiate the gradient, and a Function costs as much as a small circuit.
            angles = evaluation.angles_of(groups)
            gradient = evaluation.pull_back(upstream.resolve_neg().numpy(), angles, derivative.selection)
            if notes:
                derivative.note(groups, upstream, gradient=gradient, angles=angles)
            if not transforms.keeps_graph():
                evaluation.record.kept = None  # as torch forgets saved tensors, even if an output lives on
            return None, *derivative.hand_out_numbers(gradient, groups)
        by_sensitivity = evaluation.method.by_sensitivity and evaluation.method.shots is not None and is_plain
        shares = by_sensitivity and not may_be_differentiated
        at_points = derivative.at_points(upstream.detach().resolve_neg().numpy() if shares else None)
        values = QuantumFunction.apply(at_points, *derivative.points(groups))
        if is_plain and not may_be_differentiated:
            numbers = derivative.stencil.derivatives_of_numbers(values.numpy(), derivative.rows)
            flat = torch.from_numpy((numbers @ upstream.resolve_neg().numpy()[..., None])[..., 0])
        else:
            flat = (derivative.stencil.derivatives(values, derivative.rows) @ upstream.unsqueeze(-1)).squeeze(-1)
        if notes and at_points.record.estimate is not None:
            derivative.note(groups, upstream, stencil=derivative.stencil, estimate=at_points.record.estimate)
        return None, *derivative.hand_out(flat, groups)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> torch.Tensor:
        transforms.refuse_nested_forward_mode()
        groups = ctx.saved_tensors
        derivative = Derivative.by_groups(ctx.evaluation, [t is not None for t in tangents], batch_size(groups))
        if not derivative.selection.columns:
            return groups[0].new_zeros((batch_size(groups), ctx.evaluation.program.num_outputs))
        along = derivative.collect(tangents, groups)
        return (along.unsqueeze(1) @ QuantumFunction.jacobian(derivative, groups)).squeeze(1)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], evaluation: Evaluation, *groups: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        folded = transforms.fold(info.batch_size, in_dims[1:], groups)
        return transforms.unfold(QuantumFunction.apply(evaluation, *folded), info.batch_size), 0

    @staticmethod
    def jacobian(derivative: Derivative, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The derivatives by each of the W angles, shape (N, W, M); one backend call."""
        values = QuantumFunction.apply(derivative.at_points(), *derivative.points(groups))
        return derivative.stencil.derivatives(values, derivative.rows)


class _Pullback(torch.autograd.Function):
    """The exact vector-Jacobian product ``v`` of the selected columns, shape (N, W), differentiable in turn.

    ``v`` is linear in the upstream gradient, and as a function of the angles it obeys the same shift rules as the
    values do. So its derivatives are Jacobians, and sums of vector-Jacobian products at the shifted points: the second
    order costs 2 W sweeps rather than (2 W)**2 circuits.
    """

    @staticmethod
    def forward(
        evaluation: Evaluation, selection: Selection, upstream: torch.Tensor, *groups: torch.Tensor
    ) -> torch.Tensor:
        numbers = upstream.resolve_neg().numpy()
        return torch.from_numpy(evaluation.pull_back(numbers, evaluation.angles_of(groups), selection))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.evaluation, ctx.selection, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream, *groups = ctx.saved_tensors
        rows = batch_size(ctx.saved_tensors)
        by_upstream = None
        derivative = Derivative(ctx.evaluation, ctx.selection, rows)
        if ctx.needs_input_grad[2]:
            by_upstream = (grad.unsqueeze(1) @ QuantumFunction.jacobian(derivative, groups)).squeeze(1)
        by_angles = Derivative.by_groups(ctx.evaluation, ctx.needs_input_grad[3:], rows)
        if not by_angles.selection.columns:
            return None, None, by_upstream, *(torch.zeros_like(group) for group in groups)
        # Mixed derivatives commute: shift along grad, pull the upstream gradient back to the other columns.
        flat = _Pullback.along(grad, derivative, by_angles.selection, (upstream, *groups))
        return None, None, by_upstream, *by_angles.hand_out(flat, groups)

    @staticmethod
    def jvp(
        ctx: Any, _: None, __: None, upstream_tangent: torch.Tensor | None, *tangents: torch.Tensor | None
    ) -> torch.Tensor:
        transforms.refuse_nested_forward_mode()
        upstream, *groups = ctx.saved_tensors
        rows = batch_size(ctx.saved_tensors)
        moved = torch.zeros((rows, len(ctx.selection.columns)), dtype=upstream.dtype)
        if upstream_tangent is not None:
            moved = moved + _Pullback.apply(ctx.evaluation, ctx.selection, upstream_tangent, *groups)
        by_angles = Derivative.by_groups(ctx.evaluation, [t is not None for t in tangents], rows)
        if by_angles.selection.columns:
            direction = by_angles.collect(tangents, groups)
            moved = moved + _Pullback.along(direction, by_angles, ctx.selection, (upstream, *groups))
        return moved

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], evaluation: Evaluation, selection: Selection, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        folded = transforms.fold(info.batch_size, in_dims[2:], tensors)
        return transforms.unfold(_Pullback.apply(evaluation, selection, *folded), info.batch_size), 0

    @staticmethod
    def along(
        direction: torch.Tensor, derivative: Derivative, selection: Selection, tensors: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The derivative of the selection's vector-Jacobian product along a direction of shape (N, W).

        Args:
            direction: In the angles of ``derivative``.
            derivative: The angles that are moved.
            selection: The columns of the product.
            tensors: The upstream gradient, and the groups of angles.
        """
        upstream, *groups = tensors
        stencil = derivative.stencil
        weights = (direction.unsqueeze(1) @ torch.as_tensor(stencil.coefficients)).squeeze(1)
        spread = (weights.unsqueeze(-1) * upstream.unsqueeze(1)).reshape(-1, upstream.shape[-1])
        flat = _Pullback.apply(derivative.at_points(), selection, spread, *derivative.points(groups))
        return flat.reshape(derivative.rows, stencil.num_points, len(selection.columns)).sum(dim=1)


# torch binds a Function's arguments by its signature, and would work that out anew at every call.
for _forward in (QuantumFunction.forward, _Pullback.forward):
    setattr(_forward, "__signature__", inspect.signature(_forward))  # noqa: B010
