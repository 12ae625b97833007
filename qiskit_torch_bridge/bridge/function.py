"""The bridge itself: a ``torch.autograd.Function`` that runs a circuit forward, and at shifted angles backward.

PyTorch cannot see into a circuit that runs in a simulator or on hardware, so this Function stands for it in the graph.
Its design:

* It knows angles only. The map from inputs and weights to angles is ordinary torch
  (:mod:`qiskit_torch_bridge.program.angles`), so chain rules for shared parameters and expressions are torch's business.
* Backward calls the *same* Function at all shifted points of the batch in one go. So it is itself differentiable, to
  any order, with shots too, and ``torch.func`` transforms pass through.
* Angles come in groups by what they depend on, each a tensor of its own; ``ctx.needs_input_grad`` then says which
  groups are worth circuits. (``Tensor.requires_grad`` would not do: it reads False inside
  ``torch.func.grad(torch.vmap(...))``.)
* ``vmap`` is written by hand: a mapped axis is folded into the batch, so that it costs one backend call, not one an
  element.
* Where calls wait in a queue, the points of the gradient leave with the values (:meth:`Evaluation.look_ahead`), and
  backward finds them answered: a training step waits once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from ..backends.base import Backend, Estimate, Request
from ..gradients.rules import GradientRule
from ..gradients.stencil import Stencil
from ..program.angles import batch_size
from ..program.compiled import Program, Selection
from ..shots.allocation import shots_by_sensitivity
from ..shots.covariance import Covariance
from ..shots.seeding import SeedStream
from ..shots.shadow import Deviation, Shadow

__all__ = [
    "Evaluation",
    "GradientRecord",
    "NonFiniteAnglesError",
    "QuantumFunction",
    "exact_values",
    "needs_gradient",
    "refuse_block_gradients",
    "refuse_tracing",
]


_PROXY, _FAKE = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE


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
        keep: Whether a gradient may follow, for which the backend should keep what it can use again.
        points_together: How many rows in a run are shifted points of one row. A rule that draws its shifts must draw
            the same for all of them: the second order is a difference between them.
        note_shadow: Called with what the backend's shadow shows, where it has one.
        note_gradient: Called by backward with what it was made of, outside of torch.func transforms.
        by_sensitivity: Whether a gradient's shots go to the rows by their upstream gradient
            (:mod:`qiskit_torch_bridge.shots.allocation`), where nothing will differentiate it.
        shots_of_rows: Shape (N,): the shots of each row of this call, 0 for rows that need not be measured; None: ``shots``.
    """

    program: Program
    backend: Backend
    rule: GradientRule
    shots: int | None
    seeds: SeedStream
    observe: Callable[[str, Estimate], None] | None = None
    kind: str = "values"
    keep: bool = True
    points_together: int = 1
    note_shadow: Callable[[Shadow], None] | None = None
    note_gradient: Callable[[GradientRecord], None] | None = None
    by_sensitivity: bool = False
    shots_of_rows: np.ndarray | None = None
    estimate: Estimate | None = field(default=None, repr=False)
    _ahead: _Table | None = field(default=None, repr=False)
    _answered: _Answered | None = field(default=None, repr=False)
    _kept: _Kept | None = field(default=None, repr=False)

    def look_ahead(self, wanted: Sequence[bool], rows: int) -> None:
        """Has the next run measure the points of a gradient too.

        Args:
            wanted: Whether each group's gradient will be wanted.
            rows: The number of rows at this level: without the axes that a ``vmap`` will fold in.
        """
        table = _Table.of_groups(self, wanted, rows)
        self._ahead = table if table.columns and rows else None

    def run(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shape (N, M): the values at the angles; one backend call (one a distinct filling where there are blocks)."""
        angles = self._joined(groups)
        if not len(angles):
            return torch.zeros((0, self.program.num_outputs), dtype=torch.float64)
        if self._answered is not None and np.array_equal(angles, self._answered.angles):
            self.estimate = self._answered.estimate
            return torch.from_numpy(self._answered.estimate.values)
        position = self.seeds.position
        try:
            return torch.from_numpy(self._measured(groups, angles))
        except BaseException:
            self.seeds.position = position  # the same call again finds what hardware has measured of this one
            raise

    def _measured(self, groups: Sequence[torch.Tensor], angles: np.ndarray) -> np.ndarray:
        """Shape (N, M): the values at the angles; those at the points of a gradient, where they are sent along, are kept."""
        rows, stencil = len(angles), None
        if self._ahead is not None:
            stencil = self._ahead.stencil.tiled(rows // self._ahead.rows)
            points = self._joined(stencil.points(groups, self.program.angle_map.slices, rows))
            angles = np.concatenate([angles, points])
        estimate = self._evaluate(angles)
        if self.backend.shadow is not None:
            self._compare(self.backend.shadow, angles, estimate, rows, stencil)
        if stencil is not None:
            gradient = estimate.of_rows(slice(rows, None))
            estimate = estimate.of_rows(slice(rows))
            self._answered = _Answered(angles[rows:], gradient)
        if estimate.state is not None:
            self._kept = _Kept(angles, estimate.state, *_memory(groups))
        if self.kind == "gradient":
            self.estimate = estimate
        if self.observe is not None:
            self.observe(self.kind, estimate)
            if stencil is not None:
                self.observe("gradient", gradient)
        return estimate.values

    def _evaluate(self, angles: np.ndarray) -> Estimate:
        if self.shots_of_rows is None:
            return self._evaluate_with(angles, self.shots)
        where = [np.flatnonzero(self.shots_of_rows == shots) for shots in np.unique(self.shots_of_rows) if shots]
        parts = [self._evaluate_with(angles[rows], int(self.shots_of_rows[rows[0]])) for rows in where]
        return _stitched(where, parts, (len(angles), self.program.num_outputs))

    def _evaluate_with(self, angles: np.ndarray, shots: int | None) -> Estimate:
        if self.rule.exact_only and self.keep and not self.program.blocks:
            return self.backend.evaluate_for_pullback(self.program, angles)
        if not self.program.blocks:
            return self.backend.evaluate(self.program, angles, shots=shots, seed=self.seeds.next())
        width = len(self.program.angles)
        fillings = self.program.split(angles)
        if self.rule.exact_only and self.keep:
            parts = [self.backend.evaluate_for_pullback(program, angles[rows, :width]) for program, rows in fillings]
        else:
            requests = [Request(program, angles[rows, :width], self.seeds.next()) for program, rows in fillings]
            parts = self.backend.evaluate_all(requests, shots=shots)
        return _stitched([rows for _, rows in fillings], parts, (len(angles), self.program.num_outputs))

    def _compare(
        self, exact_backend: Backend, angles: np.ndarray, estimate: Estimate, rows: int, stencil: Stencil | None
    ) -> None:
        """Tells what the same circuits give without noise."""
        exact = exact_values(self.program, exact_backend, self.rule, angles)
        values = Deviation(estimate.values[:rows], exact.values[:rows], np.sqrt(estimate.variances[:rows]))
        gradients = None
        if stencil is not None:
            measured, simulated, variances = (
                table.derivatives(torch.from_numpy(numbers[rows:]), rows).numpy()
                for table, numbers in (
                    (stencil, estimate.values),
                    (stencil, exact.values),
                    (stencil.for_variances(), estimate.variances),
                )
            )
            gradients = Deviation(measured, simulated, np.sqrt(variances))
        shadow = Shadow(values, gradients)
        self.backend.note_shadow(shadow)
        if self.note_shadow is not None:
            self.note_shadow(shadow)

    def pull_back(self, rows_upstream: np.ndarray, angles: np.ndarray, selection: Selection) -> np.ndarray:
        """Shape (N, W): the backend's own vector-Jacobian product, for the wanted columns.

        Args:
            rows_upstream: Shape (N, M), or (1, M) for all rows.
            angles: Shape (N, A), or (1, A) for all rows; from :meth:`angles_of`.
            selection: The wanted angles.
        """
        kept = self._kept
        if len(rows_upstream) > len(angles):
            angles = np.repeat(angles, len(rows_upstream), axis=0)
        if not len(angles):
            return np.zeros((0, len(selection.columns)))
        if len(rows_upstream) < len(angles):
            rows_upstream = np.repeat(rows_upstream, len(angles), axis=0)
        if self.program.blocks:
            width = len(self.program.angles)
            gradients = np.zeros_like(angles)
            for program, rows in self.program.split(angles):
                gradients[rows, :width] = self.backend.pullback(
                    program, angles[rows, :width], rows_upstream[rows], None, selection.mask[:width]
                )
        else:
            same = kept is not None and (angles is kept.angles or np.array_equal(angles, kept.angles))
            state = kept.state if kept is not None and same else None
            gradients = self.backend.pullback(self.program, angles, rows_upstream, state, selection.mask)
        if len(selection.columns) < gradients.shape[1]:
            gradients = gradients[:, selection.mask]
        return gradients

    def angles_of(self, groups: Sequence[torch.Tensor]) -> np.ndarray:
        """Shape (N, A), or (1, A): the groups' angles; those of the last call, if these are its groups."""
        kept = self._kept
        if kept is not None and kept.memory is not None and kept.memory == _memory(groups)[1]:
            return kept.angles
        return self._joined(groups)

    def record(
        self,
        table: _Table,
        groups: Sequence[torch.Tensor],
        upstream: np.ndarray,
        gradient: np.ndarray | None,
        estimate: Estimate | None,
        angles: np.ndarray | None = None,
    ) -> None:
        """Notes what a gradient was made of; ``angles`` are the groups', where they are at hand."""
        assert self.note_gradient is not None
        self.note_gradient(
            GradientRecord(
                self.program,
                self.backend,
                self.rule,
                self.shots,
                self.by_sensitivity,
                self.seeds,
                self.seeds.position,
                table.selection,
                upstream.copy(),  # because torch, or the user, may go on writing to the tensor
                self.angles_of(groups) if self.shots is None and angles is None else angles,
                None if estimate is None else table.stencil,
                estimate,
                gradient,
            )
        )

    def share_out(self, upstream: np.ndarray, points: int) -> None:
        """Has this call, of so many points a row, measure each row by its upstream gradient of shape (N, M)."""
        assert self.shots is not None
        shots = shots_by_sensitivity(upstream, self.program.readout.scales, self.shots)
        self.shots_of_rows = np.repeat(shots, points)

    def forget(self) -> None:
        """Lets go of what was kept for a gradient; it would be computed anew."""
        self._kept = None

    def _joined(self, groups: Sequence[torch.Tensor]) -> np.ndarray:
        angle_map = self.program.angle_map
        angles = np.empty((batch_size(groups), angle_map.num_columns))
        for group, columns in zip(groups, angle_map.slices, strict=True):
            angles[:, columns] = group.detach().resolve_neg().numpy()
        if not np.logical_and.reduce(np.isfinite(angles), axis=None):
            row, column = np.argwhere(~np.isfinite(angles))[0].tolist()
            raise NonFiniteAnglesError(
                f"Angle {self.program.describe_angle(column)} is {angles[row, column]} in row {row}, expected a finite "
                "number of radians; check the inputs and weights. No circuit was run."
            )
        return angles


def refuse_tracing() -> None:
    """Refuses to run within a trace, where the values would become constants, whatever the features are later.

    Raises:
        RuntimeError: If PyTorch traces, by ``make_fx`` or ``torch.export``.
    """
    mode = torch._C._get_dispatch_mode
    if mode(_PROXY) is not None or mode(_FAKE) is not None:
        raise RuntimeError(
            "A quantum layer was called within a trace (make_fx, torch.export, fake tensors), which cannot follow it into "
            "the circuit; trace the classical parts of the model on both sides of it, or use torch.compile, which "
            "leaves it out."
        )


def exact_values(program: Program, backend: Backend, rule: GradientRule, angles: np.ndarray) -> Estimate:
    """The values at angles of shape (N, A) without shots, for nothing but to be looked at."""
    return Evaluation(program, backend, rule, None, SeedStream(0), keep=False)._evaluate(angles)


class _Kept(NamedTuple):
    """What a forward call leaves for its gradient.

    Attributes:
        angles: Shape (N, A).
        state: The backend's.
        groups: The tensors that the angles came from, held so that their memory cannot become another tensor's.
        memory: Where each of them is, in which version and of which shape; a call with the same has the same angles.
    """

    angles: np.ndarray
    state: Any
    groups: Sequence[torch.Tensor]
    memory: tuple[Any, ...] | None


def _memory(groups: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], tuple[Any, ...] | None]:
    """The tensors, and where and in which version they are; None where torch cannot say."""
    try:
        return groups, tuple([(group.data_ptr(), group._version, group.shape, group.stride()) for group in groups])
    except RuntimeError:  # inference tensors have no version, and those of transforms no memory of their own
        return groups, None


class _Answered(NamedTuple):
    """The points of a gradient, which were measured together with the values.

    Attributes:
        angles: Shape (N * K, A).
        estimate: Of values of shape (N * K, M).
    """

    angles: np.ndarray
    estimate: Estimate


def _stitched(where: Sequence[slice | np.ndarray], parts: Sequence[Estimate], shape: tuple[int, int]) -> Estimate:
    """The estimates of several sets of rows as one of (N, M) values; zeros for rows in no set."""
    values, variances = np.zeros(shape), np.zeros(shape)
    for its_rows, part in zip(where, parts, strict=True):
        values[its_rows], variances[its_rows] = part.values, part.variances
    circuits, shots = sum(part.circuits for part in parts), sum(part.shots for part in parts)
    passport = parts[0].passport if parts else None
    covariance = Covariance.stitched(where, [part.covariance for part in parts], shape[0])
    return Estimate(values, variances, circuits, shots, passport=passport, covariance=covariance)


@dataclass(eq=False)  # a frozen one takes six times as long to make, in every backward
class GradientRecord:
    """What a gradient was made of; not to be changed.

    Attributes:
        program: The compiled circuit.
        backend: Where the values came from.
        rule: How they were differentiated.
        shots: Shots a circuit (on average over the rows that were measured); None for exact values.
        by_sensitivity: Whether they go to the rows by their upstream gradient.
        seeds: Where the randomness came from.
        position: How far.
        selection: The W angles whose gradient was wanted.
        upstream: Shape (N, M), the gradient by the values.
        angles: Shape (N, A), the angles; None where ``estimate`` has values with shots.
        stencil: The shift table; None if the backend differentiated itself.
        estimate: Of the values at the table's points, shape (N * K, M); None likewise.
        gradient: Shape (N, W), the gradient by the angles, if the backend differentiated itself.
    """

    program: Program
    backend: Backend
    rule: GradientRule
    shots: int | None
    by_sensitivity: bool
    seeds: SeedStream
    position: int
    selection: Selection
    upstream: np.ndarray
    angles: np.ndarray | None
    stencil: Stencil | None
    estimate: Estimate | None
    gradient: np.ndarray | None


class QuantumFunction(torch.autograd.Function):
    """Values of a circuit as a differentiable function of its angles.

    ``QuantumFunction.apply(evaluation, *groups)`` takes an :class:`Evaluation` and one float64 CPU tensor of shape (N,
    A_g) or (1, A_g) for each group of ``evaluation.program.angle_map`` and gives the values, a float64 tensor of shape
    (N, M). :func:`qiskit_torch_bridge.evaluate` wraps it for inputs and weights;
    :class:`qiskit_torch_bridge.QuantumLayer` for modules.
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
        evaluation: Evaluation = ctx.evaluation
        table = _Table.of_groups(evaluation, ctx.needs_input_grad[1:], batch_size(groups))
        noting = evaluation.note_gradient is not None and _is_plain(upstream)
        if not table.columns:
            if noting:
                nothing = np.zeros((table.rows, 0))
                evaluation.record(table, groups, upstream.detach().resolve_neg().numpy(), nothing, None)
            return None, *(torch.zeros_like(group) for group in groups)
        # The vmap of ``is_grads_batched`` knows no custom Functions, but it does know sums.
        if evaluation.rule.exact_only and not torch._C._functorch.is_legacy_batchedtensor(upstream):
            if _may_be_differentiated():
                flat = _Pullback.apply(evaluation, table.selection, upstream, *groups)
                if noting:
                    numbers = upstream.detach().resolve_neg().numpy()
                    evaluation.record(table, groups, numbers, flat.detach().numpy(), None)
                return None, *table.hand_out(flat, groups)
            # Nothing will differentiate the gradient, and a Function costs as much as a small circuit.
            numbers, angles = upstream.resolve_neg().numpy(), evaluation.angles_of(groups)
            gradient = evaluation.pull_back(numbers, angles, table.selection)
            if noting:
                evaluation.record(table, groups, numbers, gradient, None, angles)
            if not _keeps_graph():
                evaluation.forget()  # as torch forgets saved tensors, even if an output lives on
            return None, *table.hand_out_numbers(gradient, groups)
        at_points = table.at_points
        shares_out = evaluation.by_sensitivity and evaluation.shots is not None and _is_plain(upstream)
        if shares_out and not _may_be_differentiated():
            at_points.share_out(upstream.detach().resolve_neg().numpy(), table.stencil.num_points)
        values = QuantumFunction.apply(at_points, *table.points(groups))
        flat = (table.stencil.derivatives(values, table.rows) @ upstream.unsqueeze(-1)).squeeze(-1)
        if noting and at_points.estimate is not None:
            evaluation.record(table, groups, upstream.detach().resolve_neg().numpy(), None, at_points.estimate)
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
        mine = _Table(ctx.evaluation, ctx.selection, rows)
        if ctx.needs_input_grad[2]:
            by_upstream = (grad.unsqueeze(1) @ mine.jacobian(groups)).squeeze(1)
        wanted = _Table.of_groups(ctx.evaluation, ctx.needs_input_grad[3:], rows)
        if not wanted.columns:
            return None, None, by_upstream, *(torch.zeros_like(group) for group in groups)
        # Mixed derivatives commute: shift along grad, pull the upstream gradient back to the other columns.
        flat = mine.pull_back_along(grad, wanted.selection, upstream, groups)
        return None, None, by_upstream, *wanted.hand_out(flat, groups)

    @staticmethod
    def jvp(
        ctx: Any, _: None, __: None, upstream_tangent: torch.Tensor | None, *tangents: torch.Tensor | None
    ) -> torch.Tensor:
        _refuse_nested_forward_mode()
        upstream, *groups = ctx.saved_tensors
        rows = batch_size(ctx.saved_tensors)
        moved = torch.zeros((rows, len(ctx.selection.columns)), dtype=upstream.dtype)
        if upstream_tangent is not None:
            moved = moved + _Pullback.apply(ctx.evaluation, ctx.selection, upstream_tangent, *groups)
        shifted = _Table.of_groups(ctx.evaluation, [t is not None for t in tangents], rows)
        if shifted.columns:
            along = shifted.collect(tangents, groups)
            moved = moved + shifted.pull_back_along(along, ctx.selection, upstream, groups)
        return moved

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        evaluation: Evaluation,
        selection: Selection,
        upstream: torch.Tensor,
        *groups: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        upstream, *folded = _fold(info.batch_size, in_dims[2:], (upstream, *groups))
        return _unfold(_Pullback.apply(evaluation, selection, upstream, *folded), info.batch_size), 0


# torch binds a Function's arguments by its signature, and would work that out anew at every call.
for _forward in (QuantumFunction.forward, _Pullback.forward):
    setattr(_forward, "__signature__", inspect.signature(_forward))  # noqa: B010


@dataclass(frozen=True, eq=False)
class _Table:
    """Wanted columns, with the shift table for them, which is drawn up when it is first needed."""

    evaluation: Evaluation
    selection: Selection
    rows: int

    @property
    def columns(self) -> tuple[int, ...]:
        return self.selection.columns

    @classmethod
    def of_groups(cls, evaluation: Evaluation, wanted: Sequence[bool], rows: int) -> _Table:
        """For all angles of the wanted groups that the readout can see.

        Raises:
            ValueError: If inputs of an input block are among them.
        """
        selection = evaluation.program.select(tuple(wanted))
        refuse_block_gradients(evaluation.program, selection.fixed)
        return cls(evaluation, selection, rows)

    @cached_property
    def _foreseen(self) -> _Table | None:
        """The table whose points were measured with the values, if these columns are among its own."""
        ahead = self.evaluation._ahead
        if ahead is None or ahead is self or self.rows % ahead.rows or not set(self.columns) <= set(ahead.columns):
            return None
        return ahead

    @cached_property
    def stencil(self) -> Stencil:
        evaluation = self.evaluation
        ahead = self._foreseen
        if ahead is not None:
            mine = ahead.stencil.for_rows([ahead.columns.index(column) for column in self.columns])
            return mine.tiled(self.rows // ahead.rows)
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
        values = QuantumFunction.apply(self.at_points, *self.points(groups))
        return self.stencil.derivatives(values, self.rows)

    @property
    def at_points(self) -> Evaluation:
        """The evaluation of the table's points."""
        together = self.evaluation.points_together * self.stencil.num_points
        answered = self.evaluation._answered if self._foreseen is not None else None
        return replace(
            self.evaluation,
            kind="gradient",
            points_together=together,
            note_gradient=None,
            estimate=None,
            _ahead=None,
            _answered=answered,
            _kept=None,
        )

    def pull_back_along(
        self, direction: torch.Tensor, selection: Selection, upstream: torch.Tensor, groups: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The derivative of the selection's vector-Jacobian product along a direction of shape (N, W)."""
        weights = (direction.unsqueeze(1) @ torch.as_tensor(self.stencil.coefficients)).squeeze(1)
        spread = (weights.unsqueeze(-1) * upstream.unsqueeze(1)).reshape(-1, upstream.shape[-1])
        flat = _Pullback.apply(self.at_points, selection, spread, *self.points(groups))
        return flat.reshape(self.rows, self.stencil.num_points, len(selection.columns)).sum(dim=1)

    def collect(self, tangents: Sequence[torch.Tensor | None], groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The columns' tangents, shape (N, W)."""
        pairs = zip(groups, tangents, strict=True)
        moved = [(torch.zeros_like(g) if t is None else t).expand(self.rows, -1) for g, t in pairs]
        return torch.cat(moved, dim=1)[:, torch.as_tensor(self.columns)]

    def hand_out(self, flat: torch.Tensor, groups: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Gradients of shape (N, W) for each wanted group; those that the rows share get the sum over the rows."""
        parts: list[torch.Tensor | None] = []
        for group, (span, places, wanted) in zip(groups, self.selection.groups, strict=True):
            if not wanted:
                parts.append(None)
                continue
            # A slice of all would be an alias, which the vmap of ``is_grads_batched`` does not know.
            part = flat if span == slice(0, flat.shape[1]) else flat[:, span]
            if group.shape[0] != flat.shape[0]:
                part = part.sum(dim=0, keepdim=True)
            parts.append(part if places is None else torch.zeros_like(group).index_add(1, places, part))
        return parts

    def hand_out_numbers(self, flat: np.ndarray, groups: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """What :meth:`hand_out` does, in a third of the time, for gradients that nothing differentiates."""
        parts: list[torch.Tensor | None] = []
        for group, (span, places, wanted) in zip(groups, self.selection.groups, strict=True):
            part = flat[:, span]
            if not wanted:
                parts.append(None)
                continue
            if group.shape[0] != len(flat):
                part = np.add.reduce(part, axis=0, keepdims=True)
            if places is not None:
                whole = np.zeros((len(part), group.shape[1]))
                whole[:, places.numpy()] = part
                part = whole
            parts.append(torch.from_numpy(part))
        return parts


def _keeps_graph() -> bool:
    """Whether the backward that runs is one with ``retain_graph``; if torch cannot say (2.4 cannot), what is kept stays."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is None or keeps()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it holds numbers, rather than standing for those of a transform."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not (wrapped or torch._C._functorch.is_legacy_batchedtensor(tensor))


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


def needs_gradient(tensor: torch.Tensor) -> bool:
    """Whether a gradient by the tensor may be asked for, as far as can be told before it is.

    ``Tensor.requires_grad`` reads False inside ``torch.func.grad(torch.vmap(...))``; the layers of transforms below say.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def _unfold(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Takes the mapped axis out of the rows again: (B * N, C) becomes (B, N, C)."""
    return rows.reshape(size, len(rows) // size if size else 1, rows.shape[1])


def _may_be_differentiated() -> bool:
    """Whether what backward computes now may itself be differentiated, in either mode."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


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
