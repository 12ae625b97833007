"""Gradients by weights and inputs, with standard errors (:mod:`qiskit_torch_bridge.shots`), from what backward has noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..backends.base import Estimate
from ..gradients.rules import GradientRule, ParameterShift
from ..gradients.stencil import Stencil
from ..program.compiled import Program
from ..shots.allocation import shots_by_sensitivity
from ..shots.covariance import Covariance
from .evaluation import GradientRecord, exact_estimate

__all__ = ["GradientEstimate", "Sources"]

_MOST_NUMBERS_AT_ONCE = 2**22

_Chain = Callable[[slice, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From rows and the angles' slopes there, shape (n, W, width), to gradients and variances of shape (n, width)."""


@dataclass(frozen=True, eq=False)
class GradientEstimate:
    """Gradients and their standard errors by each source (0: the inputs, 1 + g: weight group g) that has one.

    Attributes:
        by_source: For each source a pair of arrays of shape (W_g,), or (N, I) for the inputs.
        circuits: Circuits executed for them.
        shots: Shots spent on them.
    """

    by_source: dict[int, tuple[np.ndarray, np.ndarray]]
    circuits: int
    shots: int


@dataclass(eq=False)
class Sources:
    """Where a call's angles came from, and what the last backward through it was made of.

    Attributes:
        program: The compiled circuit.
        trained: The sources whose gradient torch wants.
        tensors: Each source's values, shape (N, width) or (1, width), where the angles' derivatives depend on them.
        record: What the last gradient was made of.
    """

    program: Program
    trained: frozenset[int]
    tensors: Mapping[int, torch.Tensor] = field(default_factory=dict)
    record: GradientRecord | None = None
    _measured: tuple[GradientRecord, GradientEstimate] | None = field(default=None, kw_only=True, repr=False)

    def measured(self) -> GradientEstimate | None:
        """The last gradient with its standard errors; None before there is one."""
        if self.record is None:
            return None
        if self._measured is None or self._measured[0] is not self.record:
            self._measured = self.record, self._of(self.record)
        return self._measured[1]

    def predicted(self, shots: int, rule: GradientRule | None) -> GradientEstimate | None:
        """The gradient, as a rule and so many shots would give it: its expectation, with the standard errors."""
        record = self.record
        if record is None:
            return None
        method = record.method
        if method.shots is not None or not record.selection.columns:
            return self._of(record, shots)
        if rule is None:
            rule = ParameterShift() if method.rule.exact_only else method.rule
        assert record.angles is not None
        rows = len(record.upstream)
        angles = np.broadcast_to(record.angles, (rows, record.angles.shape[1]))
        seeds = record.seeds.spawned(record.position)
        stencil = rule.stencil(self.program, record.selection.columns, rows=rows, shots=shots, seeds=seeds)
        (points,) = stencil.points([torch.from_numpy(np.array(angles))], [slice(None)], rows)
        estimate = exact_estimate(self.program, method.backend, rule, points.numpy())
        taken: np.ndarray | int = shots
        if method.by_sensitivity:
            shots_of_rows = shots_by_sensitivity(record.upstream, self.program.readout.scales, shots)
            taken = np.repeat(shots_of_rows, stencil.num_points)
        variances = _variances(estimate.covariance, record.upstream, stencil, np.maximum(taken, 1))
        of_each = estimate.circuits // len(estimate.values)
        circuits, total = (int(np.sum(np.broadcast_to(n, len(estimate.values)))) for n in (np.sign(taken), taken))
        chained = _contracted(record.upstream, stencil, estimate, variances)
        return GradientEstimate(self._summed(record, chained, stencil.num_points), of_each * circuits, of_each * total)

    def _of(self, record: GradientRecord, shots: int | None = None) -> GradientEstimate:
        estimate, stencil = record.estimate, record.stencil
        if stencil is None or estimate is None:
            assert record.gradient is not None
            gradient = record.gradient

            def chained(rows: slice, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                values = (gradient[rows, None] @ slopes)[:, 0]
                return values, np.zeros_like(values)

            return GradientEstimate(self._summed(record, chained, 1), 0, 0)
        total = estimate.shots
        if record.method.shots is None:
            variances = np.zeros(len(estimate.values))
        else:
            # Other shots would go to the rows in the same proportions.
            more = 1.0 if shots is None else shots / record.method.shots
            variances = _variances(estimate.covariance, record.upstream, stencil, None) / more
            total = round(estimate.shots * more)
        contracted = _contracted(record.upstream, stencil, estimate, variances)
        return GradientEstimate(self._summed(record, contracted, stencil.num_points), estimate.circuits, total)

    def _summed(self, record: GradientRecord, chained: _Chain, points: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Gradients and standard errors of each source, from those of each row and the angles' slopes."""
        program, count = self.program, len(record.upstream)
        by_source = {}
        for source in sorted(self.trained):
            width = program.angle_map.source_widths[source]
            numbers = (points + len(record.selection.columns)) * max(1, width)
            size = max(1, _MOST_NUMBERS_AT_ONCE // numbers)
            values, variances = np.zeros((2, count, width) if source == 0 else (2, width))
            for start in range(0, count, size):
                rows = slice(start, min(start + size, count))
                tensors = {s: t if len(t) == 1 else t[rows] for s, t in self.tensors.items()}
                slopes = program.angle_map.slopes(source, record.selection.columns, tensors)
                part, variances_of_part = chained(rows, slopes)
                if source == 0:
                    values[rows], variances[rows] = part, variances_of_part
                else:
                    values += part.sum(axis=0)
                    variances += variances_of_part.sum(axis=0)
            by_source[source] = values, np.sqrt(variances)
        return by_source


def _contracted(upstream: np.ndarray, stencil: Stencil, estimate: Estimate, variances: np.ndarray) -> _Chain:
    """The gradient from values at shifted points, and the variances along the upstream gradient there, (N * K,)."""
    count, points = len(upstream), stencil.num_points
    along = (estimate.values * np.repeat(upstream, points, axis=0)).sum(axis=1).reshape(count, points)
    variances = variances.reshape(count, points)

    def chained(rows: slice, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coefficients = stencil.coefficients if stencil.coefficients.ndim == 2 else stencil.coefficients[rows]
        # (n, K, width): what the value at each point adds to each parameter's gradient.
        shares = np.swapaxes(coefficients, -1, -2) @ slopes
        values = (along[rows, None] @ shares)[:, 0]
        return values, (variances[rows, None] @ shares**2)[:, 0]

    return chained


def _variances(
    covariance: Covariance | None, upstream: np.ndarray, stencil: Stencil, shots: np.ndarray | float | None
) -> np.ndarray:
    """Shape (N * K,): along the upstream gradient of shape (N, M), at the shifted points; NaN where nothing is known."""
    at_points = np.repeat(upstream, stencil.num_points, axis=0)
    return np.full(len(at_points), np.nan) if covariance is None else covariance.along(at_points, shots)
