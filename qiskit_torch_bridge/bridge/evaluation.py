"""What is to be measured: frozen requests (:class:`Evaluation`, :class:`Derivative`). What was measured: records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..backends.base import Backend, Estimate, Request
from ..gradients.rules import GradientRule
from ..gradients.stencil import Stencil
from ..program.angles import batch_size
from ..program.compiled import Program, Selection
from ..program.readout import Samples, stitched_outcomes
from ..shots.allocation import shots_by_sensitivity
from ..shots.covariance import Covariance
from ..shots.seeding import SeedStream
from ..shots.shadow import Deviation, Shadow
from .method import Method

__all__ = [
    "Derivative",
    "Evaluation",
    "GradientRecord",
    "LookAhead",
    "NonFiniteAnglesError",
    "Observer",
    "Record",
    "exact_estimate",
    "refuse_block_gradients",
    "require_finite",
]


class NonFiniteAnglesError(ValueError):
    """An angle is NaN or infinite."""


class Observer(Protocol):
    """Told what evaluations measure."""

    def observe(self, kind: str, estimate: Estimate) -> None:
        """Told after each backend call what it gave; ``kind`` is ``"values"`` or ``"gradient"``."""

    def note_shadow(self, shadow: Shadow) -> None:
        """Told before that what the backend's shadow shows, where it has one."""

    def note_gradient(self, record: GradientRecord) -> None:
        """Told by each backward what its gradient was made of, outside of torch.func transforms."""


@dataclass(frozen=True, eq=False)
class LookAhead:
    """The points of a gradient that are to be measured together with the values, as they should where calls wait in a queue.

    Attributes:
        columns: The angles whose gradient will be wanted, ascending.
        rows: The number of rows at this level: without the axes that a ``vmap`` will fold in.
        stencil: The shifts.
    """

    columns: tuple[int, ...]
    rows: int
    stencil: Stencil


class _Answer(NamedTuple):
    """The points of a gradient, which were measured together with the values.

    Attributes:
        angles: Shape (N * K, A).
        estimate: Of values of shape (N * K, M).
    """

    angles: np.ndarray
    estimate: Estimate


class Kept(NamedTuple):
    """What a forward call leaves for a gradient that the backend computes itself.

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


@dataclass(eq=False)
class Record:
    """What an evaluation has measured, as far as its gradient can use it again.

    Attributes:
        estimate: Of the points of a gradient.
        answer: Of the points of the gradient that were measured along.
        kept: What the backend has kept.
    """

    estimate: Estimate | None = None
    answer: _Answer | None = None
    kept: Kept | None = None


@dataclass(frozen=True, eq=False)
class GradientRecord:
    """What a gradient was made of.

    Attributes:
        program: The compiled circuit.
        method: How it was measured.
        seeds: Where the randomness came from.
        position: How far.
        selection: The W angles whose gradient was wanted.
        upstream: Shape (N, M), the gradient by the values.
        angles: Shape (N, A), the angles; None where ``estimate`` has values with shots.
        stencil: The shifts; None if the backend differentiated itself.
        estimate: Of the values at the shifted points, shape (N * K, M); None likewise.
        gradient: Shape (N, W), the gradient by the angles, if the backend differentiated itself.
    """

    program: Program
    method: Method
    _: KW_ONLY
    seeds: SeedStream
    position: int
    selection: Selection
    upstream: np.ndarray
    angles: np.ndarray | None = None
    stencil: Stencil | None = None
    estimate: Estimate | None = None
    gradient: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A request to measure a program: all that :class:`qiskit_torch_bridge.QuantumFunction` needs besides tensors.

    Attributes:
        program: The compiled circuit.
        method: How it is measured and differentiated.
        seeds: Where the randomness of each backend call comes from.
        training: Whether a gradient may follow, for which the backend should keep what it can use again.
        observer: Who is told what was measured.
        ahead: The points of a gradient that are measured too.
        kind: What is measured: ``"values"``, or the points of a ``"gradient"``.
        points_together: How many consecutive rows are shifted points of one row. A rule that draws its shifts must draw
            the same for all of them: the second order is a difference between them.
        shots_of_rows: Shape (N,): the shots of each row of this call, 0 for rows that need not be measured; None: the
            method's.
        answer: What an earlier evaluation has measured along, which may answer this one.
        record: What has been measured.
    """

    program: Program
    method: Method
    _: KW_ONLY
    seeds: SeedStream
    training: bool = True
    observer: Observer | None = None
    ahead: LookAhead | None = None
    kind: str = "values"
    points_together: int = 1
    shots_of_rows: np.ndarray | None = None
    answer: _Answer | None = None
    record: Record = field(default_factory=Record, repr=False)

    def measure(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """Shape (N, M): the values at the angles; one backend call (one a distinct filling where there are blocks)."""
        angles = self.angles_in(groups)
        if not len(angles):
            return torch.zeros((0, self.program.readout.num_outputs), dtype=torch.float64)
        if self.answer is not None and np.array_equal(angles, self.answer.angles):
            self.record.estimate = self.answer.estimate
            return torch.from_numpy(self.answer.estimate.values)
        position = self.seeds.position
        try:
            return torch.from_numpy(self._measured(groups, angles))
        except BaseException:
            self.seeds.position = position  # the same call again finds what hardware has measured of this one
            raise

    def _measured(self, groups: Sequence[torch.Tensor], angles: np.ndarray) -> np.ndarray:
        """Shape (N, M): the values at the angles; those at the points of a gradient, where they are sent along, are kept."""
        rows, stencil = len(angles), None
        if self.ahead is not None:
            stencil = self.ahead.stencil.tiled(rows // self.ahead.rows)
            points = self.angles_in(stencil.points(groups, self.program.angle_map.slices, rows))
            angles = np.concatenate([angles, points])
        estimate = self.estimate_at(angles)
        if self.method.backend.shadow is not None:
            self._compare(angles, estimate, stencil)
        if stencil is not None:
            gradient = _without_outcomes(estimate).of_rows(slice(rows, None))
            estimate = estimate.of_rows(slice(rows))
            self.record.answer = _Answer(angles[rows:], gradient)
        if estimate.state is not None:
            self.record.kept = Kept(angles, estimate.state, groups, _memory(groups))
        if self.kind == "gradient":
            estimate = _without_outcomes(estimate)
            self.record.estimate = estimate
        if self.observer is not None:
            self.observer.observe(self.kind, estimate)
            if stencil is not None:
                self.observer.observe("gradient", gradient)
        return estimate.values

    def estimate_at(self, angles: np.ndarray) -> Estimate:
        """The estimate of values at angles of shape (N, A), by the backend; nobody is told."""
        if self.shots_of_rows is None and not self.program.blocks:
            if self.training and self.method.rule.exact_only:
                return self.method.backend.evaluate_for_pullback(self.program, angles)
            return self.method.backend.evaluate(self.program, angles, shots=self.method.shots, seed=self.seeds.next())
        if self.shots_of_rows is None:
            return self._estimate_with_blocks(angles)
        places = [np.flatnonzero(self.shots_of_rows == shots) for shots in np.unique(self.shots_of_rows) if shots]
        parts = [
            replace(
                self, shots_of_rows=None, method=replace(self.method, shots=int(self.shots_of_rows[rows[0]]))
            ).estimate_at(angles[rows])
            for rows in places
        ]
        return _stitched(places, parts, (len(angles), self.program.num_outputs))

    def _estimate_with_blocks(self, angles: np.ndarray) -> Estimate:
        width, backend = len(self.program.angles), self.method.backend
        fillings = self.program.split(angles)
        if self.training and self.method.rule.exact_only:
            parts = [backend.evaluate_for_pullback(program, angles[rows, :width]) for program, rows in fillings]
        else:
            requests = [Request(program, angles[rows, :width], self.seeds.next()) for program, rows in fillings]
            parts = backend.evaluate_all(requests, shots=self.method.shots)
        return _stitched([rows for _, rows in fillings], parts, (len(angles), self.program.num_outputs))

    def _compare(self, angles: np.ndarray, estimate: Estimate, stencil: Stencil | None) -> None:
        """Tells what the same circuits give without noise, and by a model of the noise where there is one."""
        backend = self.method.backend
        numbers = {"measured": estimate.values}
        for name, simulator in {"exact": backend.shadow, "modelled": backend.modelled}.items():
            if simulator is not None:
                numbers[name] = exact_estimate(self.program, simulator, self.method.rule, angles).values
        rows = len(angles) if stencil is None else len(angles) // (1 + stencil.num_points)
        errors = np.sqrt(estimate.variances[:rows])
        values = Deviation(standard_errors=errors, **{name: each[:rows] for name, each in numbers.items()})
        gradients = None
        if stencil is not None:

            def derivatives(weighted: Stencil, each: np.ndarray) -> np.ndarray:
                return weighted.derivatives_of_numbers(each[rows:], rows)

            errors = np.sqrt(derivatives(stencil.for_variances(), estimate.variances))
            by_name = {name: derivatives(stencil, each) for name, each in numbers.items()}
            gradients = Deviation(standard_errors=errors, **by_name)
        deviations = Shadow(values, gradients)
        self.method.backend.note_shadow(deviations)
        if self.observer is not None:
            self.observer.note_shadow(deviations)

    def pull_back(self, upstream: np.ndarray, angles: np.ndarray, selection: Selection) -> np.ndarray:
        """Shape (N, W): the backend's own vector-Jacobian product, by the selected angles.

        Args:
            upstream: Shape (N, M), or (1, M) for all rows.
            angles: Shape (N, A), or (1, A) for all rows; from :meth:`angles_of`.
            selection: The angles.
        """
        kept, backend = self.record.kept, self.method.backend
        if len(upstream) > len(angles):
            angles = np.repeat(angles, len(upstream), axis=0)
        if not len(angles):
            return np.zeros((0, len(selection.columns)))
        if len(upstream) < len(angles):
            upstream = np.repeat(upstream, len(angles), axis=0)
        if self.program.blocks:
            width = len(self.program.angles)
            gradients = np.zeros_like(angles)
            for program, rows in self.program.split(angles):
                gradients[rows, :width] = backend.pullback(
                    program, angles[rows, :width], upstream[rows], None, selection.mask[:width]
                )
        else:
            same = kept is not None and (angles is kept.angles or np.array_equal(angles, kept.angles))
            state = kept.state if kept is not None and same else None
            gradients = backend.pullback(self.program, angles, upstream, state, selection.mask)
        if len(selection.columns) < gradients.shape[1]:
            gradients = gradients[:, selection.mask]
        return gradients

    def angles_of(self, groups: Sequence[torch.Tensor]) -> np.ndarray:
        """Shape (N, A), or (1, A): the groups' angles; those of the last call, if these are its groups."""
        kept = self.record.kept
        if kept is not None and kept.memory is not None and kept.memory == _memory(groups):
            return kept.angles
        return self.angles_in(groups)

    def angles_in(self, groups: Sequence[torch.Tensor]) -> np.ndarray:
        """Shape (N, A), or (1, A): the groups' angles side by side.

        Raises:
            NonFiniteAnglesError: If one is NaN or infinite.
        """
        angle_map = self.program.angle_map
        angles = np.empty((batch_size(groups), angle_map.num_columns))
        for group, columns in zip(groups, angle_map.slices, strict=True):
            angles[:, columns] = group.detach().resolve_neg().numpy()
        require_finite(self.program, angles)
        return angles


@dataclass(frozen=True, eq=False)
class Derivative:
    """A request for the derivative of an evaluation by some of its angles.

    Attributes:
        evaluation: What is differentiated.
        selection: The W angles.
        rows: The number N of rows.
    """

    evaluation: Evaluation
    selection: Selection
    rows: int

    @classmethod
    def by_groups(cls, evaluation: Evaluation, selected: Sequence[bool], rows: int) -> Derivative:
        """By all angles of the selected groups that the readout can see.

        Raises:
            ValueError: If inputs of an input block are among them.
        """
        selection = evaluation.program.selections[tuple(selected)]
        if selection.fixed:
            refuse_block_gradients(evaluation.program)
        return cls(evaluation, selection, rows)

    @cached_property
    def _ahead(self) -> LookAhead | None:
        """The points that were measured with the values, if these columns are among theirs."""
        ahead = self.evaluation.ahead
        if ahead is None or self.rows % ahead.rows or not set(self.selection.columns) <= set(ahead.columns):
            return None
        return ahead

    @cached_property
    def stencil(self) -> Stencil:
        """The shifts, drawn up when they are first needed."""
        evaluation, columns, ahead = self.evaluation, self.selection.columns, self._ahead
        if ahead is not None:
            stencil = ahead.stencil.for_rows([ahead.columns.index(column) for column in columns])
            return stencil.tiled(self.rows // ahead.rows)
        together = evaluation.points_together
        stencil = evaluation.method.rule.checked_stencil(
            evaluation.program,
            columns,
            rows=self.rows // together,
            shots=evaluation.method.shots,
            seeds=evaluation.seeds,
        )
        return stencil.repeated(together)

    def points(self, groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The groups' angles at the shifted points."""
        return self.stencil.points(groups, self.evaluation.program.angle_map.slices, self.rows)

    def at_points(self, upstream: np.ndarray | None = None) -> Evaluation:
        """The evaluation of the shifted points.

        Args:
            upstream: Shape (N, M): the gradient by the values, where each row is to be measured by it; None: all alike.
        """
        evaluation, points = self.evaluation, self.stencil.num_points
        shots_of_rows = evaluation.shots_of_rows
        if upstream is not None:
            assert evaluation.method.shots is not None
            scales = evaluation.program.readout.scales
            shots_of_rows = np.repeat(shots_by_sensitivity(upstream, scales, evaluation.method.shots), points)
        return Evaluation(
            evaluation.program,
            evaluation.method,
            seeds=evaluation.seeds,
            training=evaluation.training,
            observer=evaluation.observer,
            kind="gradient",
            points_together=evaluation.points_together * points,
            shots_of_rows=shots_of_rows,
            answer=None if self._ahead is None else evaluation.record.answer,
        )

    def collect(self, tangents: Sequence[torch.Tensor | None], groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The columns' tangents, shape (N, W)."""
        pairs = zip(groups, tangents, strict=True)
        moved = [(torch.zeros_like(g) if t is None else t).expand(self.rows, -1) for g, t in pairs]
        return torch.cat(moved, dim=1)[:, torch.as_tensor(self.selection.columns)]

    def hand_out(self, flat: torch.Tensor, groups: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Gradients of shape (N, W) for each selected group; those that the rows share get the sum over the rows."""
        parts: list[torch.Tensor | None] = []
        for group, (span, places, is_selected) in zip(groups, self.selection.groups, strict=True):
            if not is_selected:
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
        for group, (span, places, is_selected) in zip(groups, self.selection.groups, strict=True):
            part = flat[:, span]
            if not is_selected:
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

    def note(self, groups: Sequence[torch.Tensor], upstream: torch.Tensor, **measured: Any) -> None:
        """Tells the observer what the gradient was made of: fields of :class:`GradientRecord`.

        Args:
            groups: The angles.
            upstream: Shape (N, M): the gradient by the values.
            **measured: ``stencil`` and ``estimate``, or ``gradient``; ``angles`` where they are at hand.
        """
        evaluation = self.evaluation
        assert evaluation.observer is not None
        if evaluation.method.shots is None and "angles" not in measured:
            measured["angles"] = evaluation.angles_of(groups)
        evaluation.observer.note_gradient(
            GradientRecord(
                evaluation.program,
                evaluation.method,
                seeds=evaluation.seeds,
                position=evaluation.seeds.position,
                selection=self.selection,
                # Copied, because torch, or the user, may go on writing to the tensor.
                upstream=upstream.detach().resolve_neg().numpy().copy(),
                **measured,
            )
        )


def require_finite(program: Program, angles: np.ndarray) -> None:
    """Refuses angles, shape (N, A), that are NaN or infinite.

    Raises:
        NonFiniteAnglesError: If one is.
    """
    if not np.logical_and.reduce(np.isfinite(angles), axis=None):
        row, column = np.argwhere(~np.isfinite(angles))[0].tolist()
        if program.angle_map.encodes(column):
            raise NonFiniteAnglesError(
                f"The amplitudes of row {row} of the flattened batch are all 0, or not finite, which is no quantum state; "
                "expected finite amplitudes that are not all 0. Leave the row out. No circuit was run."
            )
        raise NonFiniteAnglesError(
            f"Angle {program.describe_angle(column)} is {angles[row, column]} in row {row}, expected a finite "
            "number of radians; check the inputs and weights. No circuit was run."
        )


def exact_estimate(program: Program, backend: Backend, rule: GradientRule, angles: np.ndarray) -> Estimate:
    """The values at angles of shape (N, A) without shots, for nothing but to be looked at."""
    method = Method(backend, rule, None)
    return Evaluation(program, method, seeds=SeedStream(0), training=False).estimate_at(angles)


def refuse_block_gradients(program: Program) -> None:
    """Says that the gradient by inputs of input blocks, which is wanted, cannot be had.

    Raises:
        ValueError: Always.
    """
    names = ", ".join(sorted({repr(block.operation.name) for block in program.blocks}))
    raise ValueError(
        f"The gradient by the inputs is wanted, but they enter instruction(s) {names} that are only defined for "
        "numbers; detach the inputs (weights can still be trained), or encode them in rotation angles, or as amplitudes "
        "with circuits.amplitude_encoding."
    )


def _memory(groups: Sequence[torch.Tensor]) -> tuple[Any, ...] | None:
    """Where the tensors are, and in which version; None where torch cannot say."""
    try:
        return tuple([(group.data_ptr(), group._version, group.shape, group.stride()) for group in groups])
    except RuntimeError:  # inference tensors have no version, and those of transforms no memory of their own
        return None


def _without_outcomes(estimate: Estimate) -> Estimate:
    """A gradient's estimate, of which nobody asks for more than values: bit strings take much memory."""
    return estimate if estimate.outcomes is None else replace(estimate, outcomes=None)


def _stitched(places: Sequence[slice | np.ndarray], parts: Sequence[Estimate], shape: tuple[int, int]) -> Estimate:
    """The estimates of several sets of rows as one of (N, M) values; zeros for rows in no set."""
    values, variances = np.zeros(shape), np.zeros(shape)
    for rows, part in zip(places, parts, strict=True):
        values[rows], variances[rows] = part.values, part.variances
    circuits, shots = sum(part.circuits for part in parts), sum(part.shots for part in parts)
    passport = parts[0].passport if parts else None
    covariance = Covariance.stitched(places, [part.covariance for part in parts], shape[0])
    bounds = None
    if any(part.truncation_bounds is not None for part in parts):
        bounds = np.zeros(shape)
        for rows, part in zip(places, parts, strict=True):
            bounds[rows] = 0.0 if part.truncation_bounds is None else part.truncation_bounds
    known = bool(parts) and all(part.outcomes is not None for part in parts)
    return Estimate(
        values,
        variances,
        circuits,
        shots,
        passport=passport,
        covariance=covariance,
        truncation_bounds=bounds,
        outcomes=partial(_stitched_outcomes, places, parts, shape[0]) if known else None,
    )


def _stitched_outcomes(
    places: Sequence[slice | np.ndarray], parts: Sequence[Estimate], rows: int
) -> tuple[np.ndarray | Samples, ...] | None:
    measured = [part.measured for part in parts]
    of_groups = list(zip(*[each for each in measured if each is not None], strict=True))
    if None in measured or any(len(set(map(type, of_group))) > 1 for of_group in of_groups):
        return None
    return tuple(stitched_outcomes(places, of_group, rows) for of_group in of_groups)
