"""The bridge itself: a ``torch.autograd.Function`` that runs a circuit forward, and at shifted angles backward.

PyTorch cannot see into a circuit that runs in a simulator or on hardware, so this Function stands for it in the graph.
Its design:

* It knows angles only. The map from inputs and weights to angles is ordinary torch
  (:mod:`~qiskit_torch_bridge.angles`), so chain rules for shared parameters and expressions are torch's business.
* Backward calls the *same* Function at all shifted points of the batch in one go. So it is itself differentiable, to
  any order, with shots too, and ``torch.func`` transforms pass through.
* Angles come in groups by what they depend on, each a tensor of its own; ``ctx.needs_input_grad`` then says which
  groups are worth circuits. (``Tensor.requires_grad`` would not do: it reads False inside
  ``torch.func.grad(torch.vmap(...))``.)
* ``vmap`` is written by hand: a mapped axis is folded into the batch, so that it costs one backend call, not one an
  element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .angles import batch_size
from .backends.base import Backend, Estimate
from .gradients import GradientRule
from .program import Program
from .seeding import SeedStream
from .stencil import Stencil

__all__ = ["Evaluation", "NonFiniteAnglesError", "QuantumFunction", "refuse_block_gradients"]


class NonFiniteAnglesError(ValueError):
    """An angle is NaN or infinite."""


@dataclass(eq=False)
class Evaluation:
    """All that :class:`QuantumFunction` needs besides tensors.

    Attributes:
        program: The compiled circuit.
        backend: Where it runs.
        rule: How it is differentiated.
        shots: Shots a circuit, of values and gradients alike; None for exact values.
        seeds: Where the randomness of each backend call comes from.
        observe: Called with the kind of call (``"values"`` or ``"gradient"``) and its estimate.
        kind: Which kind of call this is.
        points_together: How many rows in a run are shifted points of one row. A rule that draws its shifts must draw
            the same for all of them: the second order is a difference between them.
    """

    program: Program
    backend: Backend
    rule: GradientRule
    shots: int | None
    seeds: SeedStream
    observe: Callable[[str, Estimate], None] | None = None
    kind: str = "values"
    points_together: int = 1
    _kept: tuple[np.ndarray, Any] | None = field(default=None, repr=False)

    def run(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shape (N, M): the values at the angles; one backend call (one a distinct filling where there are blocks)."""
        angles = self._joined(groups)
        width = len(self.program.angles)
        if not len(angles):
            return torch.zeros((0, self.program.num_outputs), dtype=torch.float64)
        parts = [
            (rows, self.backend.evaluate(program, angles[rows, :width], shots=self.shots, seed=self.seeds.next()))
            for program, rows in self.program.split(angles)
        ]
        estimate = parts[0][1] if len(parts) == 1 else _stitched(parts, len(angles))
        if self.rule.exact_only and estimate.state is not None:
            self._kept = (angles, estimate.state)
        if self.observe is not None:
            self.observe(self.kind, estimate)
        return torch.from_numpy(estimate.values)

    def pull_back(self, upstream: torch.Tensor, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shape (N, A): the backend's own vector-Jacobian product."""
        angles = self._joined(groups)
        width = len(self.program.angles)
        if len(upstream) > len(angles):
            angles = np.repeat(angles, len(upstream), axis=0)
        if not len(angles):
            return torch.zeros((0, self.program.num_columns), dtype=torch.float64)
        state = self._kept[1] if self._kept is not None and np.array_equal(self._kept[0], angles) else None
        upstream_rows = upstream.expand(len(angles), -1).numpy()
        gradients = np.zeros_like(angles)
        for program, rows in self.program.split(angles):
            gradients[rows, :width] = self.backend.pullback(program, angles[rows, :width], upstream_rows[rows], state)
        return torch.from_numpy(gradients)

    def _joined(self, groups: Sequence[torch.Tensor]) -> np.ndarray:
        rows = batch_size(groups)
        angles = torch.cat([group.detach().expand(rows, -1) for group in groups], dim=1).numpy()
        finite = np.isfinite(angles)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise NonFiniteAnglesError(
                f"Angle {self.program.describe_angle(column)} is {angles[row, column]} in row {row}, expected a finite "
                "number of radians; check the inputs and weights. No circuit was run."
            )
        return angles


def _stitched(parts: Sequence[tuple[slice | np.ndarray, Estimate]], rows: int) -> Estimate:
    """The estimates of several sets of rows as one."""
    shape = (rows, parts[0][1].values.shape[1])
    values, variances = np.empty(shape), np.empty(shape)
    for where, part in parts:
        values[where], variances[where] = part.values, part.variances
    return Estimate(values, variances, sum(p.circuits for _, p in parts), sum(p.shots for _, p in parts))


class QuantumFunction(torch.autograd.Function):
    """Values of a circuit as a differentiable function of its angles.

    ``QuantumFunction.apply(evaluation, *groups)`` takes an :class:`Evaluation` and one float64 CPU tensor of shape (N,
    A_g) or (1, A_g) for each group of ``evaluation.program.angle_map`` and gives the values, a float64 tensor of shape
    (N, M). :func:`qiskit_torch_bridge.evaluate` wraps it for inputs and weights;
    :class:`~qiskit_torch_bridge.QuantumLayer` for modules.
    """

    @staticmethod
    def forward(evaluation: Evaluation, *groups: torch.Tensor) -> torch.Tensor:
        return evaluation.run(groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        evaluation, *groups = inputs
        ctx.evaluation = evaluation
        ctx.save_for_backward(*groups)
        ctx.save_for_forward(*groups)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        groups = ctx.saved_tensors
        table = _Table.of_groups(ctx.evaluation, ctx.needs_input_grad[1:], batch_size(groups))
        if not table.columns:
            return None, *(torch.zeros_like(group) for group in groups)
        # The vmap of ``is_grads_batched`` knows no custom Functions, but it does know sums.
        if ctx.evaluation.rule.exact_only and not torch._C._functorch.is_legacy_batchedtensor(upstream):
            flat = _Pullback.apply(ctx.evaluation, table.columns, upstream, *groups)
        else:
            flat = (table.jacobian(groups) @ upstream.unsqueeze(-1)).squeeze(-1)
        return None, *table.hand_out(flat, groups)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> torch.Tensor:
        _refuse_nested_forward_mode()
        groups = ctx.saved_tensors
        table = _Table.of_groups(ctx.evaluation, [t is not None for t in tangents], batch_size(groups))
        if not table.columns:
            return groups[0].new_zeros((batch_size(groups), ctx.evaluation.program.num_outputs))
        return (table.collect(tangents, groups).unsqueeze(1) @ table.jacobian(groups)).squeeze(1)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], evaluation: Evaluation, *groups: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        folded = _fold(info.batch_size, in_dims[1:], groups)
        return _unfold(QuantumFunction.apply(evaluation, *folded), info.batch_size), 0


class _Pullback(torch.autograd.Function):
    """The exact vector-Jacobian product ``v`` of the wanted columns, shape (N, W), differentiable in turn.

    ``v`` is linear in the upstream gradient, and as a function of the angles it obeys the same shift rules as the
    values do. So its derivatives are Jacobians, and sums of vector-Jacobian products at the shifted points: the second
    order costs 2 W sweeps rather than (2 W)**2 circuits.
    """

    @staticmethod
    def forward(
        evaluation: Evaluation, columns: tuple[int, ...], upstream: torch.Tensor, *groups: torch.Tensor
    ) -> torch.Tensor:
        return evaluation.pull_back(upstream, groups)[:, columns]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.evaluation, ctx.columns, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream, *groups = ctx.saved_tensors
        rows = batch_size(ctx.saved_tensors)
        by_upstream = None
        mine = _Table(ctx.evaluation, ctx.columns, rows)
        if ctx.needs_input_grad[2]:
            by_upstream = (grad.unsqueeze(1) @ mine.jacobian(groups)).squeeze(1)
        wanted = _Table.of_groups(ctx.evaluation, ctx.needs_input_grad[3:], rows)
        if not wanted.columns:
            return None, None, by_upstream, *(torch.zeros_like(group) for group in groups)
        # Mixed derivatives commute: shift along grad, pull the upstream gradient back to the other columns.
        flat = mine.pull_back_along(grad, wanted.columns, upstream, groups)
        return None, None, by_upstream, *wanted.hand_out(flat, groups)

    @staticmethod
    def jvp(
        ctx: Any, _: None, __: None, upstream_tangent: torch.Tensor | None, *tangents: torch.Tensor | None
    ) -> torch.Tensor:
        _refuse_nested_forward_mode()
        upstream, *groups = ctx.saved_tensors
        rows = batch_size(ctx.saved_tensors)
        moved = torch.zeros((rows, len(ctx.columns)), dtype=upstream.dtype)
        if upstream_tangent is not None:
            moved = moved + _Pullback.apply(ctx.evaluation, ctx.columns, upstream_tangent, *groups)
        shifted = _Table.of_groups(ctx.evaluation, [t is not None for t in tangents], rows)
        if shifted.columns:
            along = shifted.collect(tangents, groups)
            moved = moved + shifted.pull_back_along(along, ctx.columns, upstream, groups)
        return moved

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        evaluation: Evaluation,
        columns: tuple[int, ...],
        upstream: torch.Tensor,
        *groups: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        upstream, *folded = _fold(info.batch_size, in_dims[2:], (upstream, *groups))
        return _unfold(_Pullback.apply(evaluation, columns, upstream, *folded), info.batch_size), 0


@dataclass(frozen=True, eq=False)
class _Table:
    """Wanted columns, with the shift table for them, which is drawn up when it is first needed."""

    evaluation: Evaluation
    columns: tuple[int, ...]
    rows: int

    @classmethod
    def of_groups(cls, evaluation: Evaluation, wanted: Sequence[bool], rows: int) -> _Table:
        """For all angles of the wanted groups that the readout can see.

        Raises:
            ValueError: If inputs of an input block are among them.
        """
        program = evaluation.program
        refuse_block_gradients(
            program, any(w and g.fixed for w, g in zip(wanted, program.angle_map.groups, strict=True))
        )
        columns = (
            column
            for columns, want in zip(program.angle_map.slices, wanted, strict=True)
            if want
            for column in range(columns.start, columns.stop)
        )
        return cls(evaluation, tuple(column for column in columns if program.influential[column]), rows)

    @cached_property
    def stencil(self) -> Stencil:
        evaluation = self.evaluation
        together = evaluation.points_together
        stencil = evaluation.rule.stencil(
            evaluation.program,
            self.columns,
            rows=self.rows // together,
            shots=evaluation.shots,
            seeds=evaluation.seeds,
        )
        return stencil.repeated(together)

    def points(self, groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.stencil.points(groups, self.evaluation.program.angle_map.slices, self.rows)

    def jacobian(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shape (N, W, M); one backend call."""
        values = QuantumFunction.apply(self._at_points, *self.points(groups))
        return self.stencil.derivatives(values, self.rows)

    @property
    def _at_points(self) -> Evaluation:
        together = self.evaluation.points_together * self.stencil.num_points
        return replace(self.evaluation, kind="gradient", points_together=together, _kept=None)

    def pull_back_along(
        self, direction: torch.Tensor, columns: tuple[int, ...], upstream: torch.Tensor, groups: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The derivative of the vector-Jacobian product by ``columns`` along a direction of shape (N, W)."""
        weights = (direction.unsqueeze(1) @ torch.as_tensor(self.stencil.coefficients)).squeeze(1)
        spread = (weights.unsqueeze(-1) * upstream.unsqueeze(1)).reshape(-1, upstream.shape[-1])
        flat = _Pullback.apply(self._at_points, columns, spread, *self.points(groups))
        return flat.reshape(self.rows, self.stencil.num_points, len(columns)).sum(dim=1)

    def collect(self, tangents: Sequence[torch.Tensor | None], groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The columns' tangents, shape (N, W)."""
        pairs = zip(groups, tangents, strict=True)
        moved = [(torch.zeros_like(g) if t is None else t).expand(self.rows, -1) for g, t in pairs]
        return torch.cat(moved, dim=1)[:, torch.as_tensor(self.columns)]

    def hand_out(self, flat: torch.Tensor, groups: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of shape (N, W) for each group; those that the rows share get the sum over the rows."""
        parts = []
        position = 0
        for group, columns in zip(groups, self.evaluation.program.angle_map.slices, strict=True):
            mine = [c - columns.start for c in self.columns if columns.start <= c < columns.stop]
            part = flat[:, position : position + len(mine)]
            position += len(mine)
            if group.shape[0] != flat.shape[0]:
                part = part.sum(dim=0, keepdim=True)
            if len(mine) < group.shape[1]:
                part = torch.zeros_like(group).index_add(1, torch.as_tensor(mine, dtype=torch.long), part)
            parts.append(part)
        return parts


def refuse_block_gradients(program: Program, wanted: bool) -> None:
    """Refuses gradients by inputs of input blocks.

    Raises:
        ValueError: If they are wanted and there are any.
    """
    if wanted and program.blocks:
        names = ", ".join(sorted({repr(block.operation.name) for block in program.blocks}))
        raise ValueError(
            f"The gradient by the inputs is wanted, but they enter instruction(s) {names} that are only defined for "
            "numbers; detach the inputs (weights can still be trained), or encode them in rotation angles."
        )


def _unfold(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Takes the mapped axis out of the rows again: (B * N, C) becomes (B, N, C)."""
    return rows.reshape(size, len(rows) // size if size else 1, rows.shape[1])


def _refuse_nested_forward_mode() -> None:
    """Refuses ``jacfwd(jacfwd(f))``: torch gives zeros for the forward mode of what a custom Function's jvp computes.

    Raises:
        NotImplementedError: If two forward-mode transforms are active.
    """
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if sum(interpreter.key() == torch._C._functorch.TransformType.Jvp for interpreter in stack) > 1:
        raise NotImplementedError(
            "Forward mode within forward mode gives zeros in PyTorch; use torch.func.hessian, or jacrev(jacfwd(f))."
        )


def _fold(size: int, in_dims: Sequence[int | None], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Folds a mapped axis into the rows: (B, N, C) becomes (B * N, C); (1, C) that is not mapped stays as it is."""
    fronted = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=True)]
    rows = max(t.shape[-2] for t in fronted) if all(t.shape[-2] for t in fronted) else 0
    folded = []
    for tensor, dim in zip(fronted, in_dims, strict=True):
        if dim is None and tensor.shape[0] == 1:
            folded.append(tensor)
        else:
            folded.append(tensor.expand(size, rows, -1).reshape(size * rows, tensor.shape[-1]))
    return folded
