r"""The shift table: every gradient that is a weighted sum of values at shifted angles.

A :class:`Stencil` says at which K points near an angle vector the circuit is to be evaluated, and how the values there
combine to derivatives,

.. math:: \frac{\partial f}{\partial \theta_w} \approx \sum_k C_{wk}\, f(\theta + S_k) .

Parameter shift, finite differences and SPSA are tables of this kind (:mod:`qiskit_torch_bridge.gradients`). Nothing
here runs a circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Stencil"]


@dataclass(frozen=True, eq=False)
class Stencil:
    """Shifts and coefficients.

    Attributes:
        shifts: Shape (K, A), or (N, K, A) when every row of a batch has shifts of its own; radians.
        coefficients: Shape (W, K), or (N, W, K): the derivative by each of W wanted columns; 1/radians.
    """

    shifts: np.ndarray
    coefficients: np.ndarray

    @property
    def num_points(self) -> int:
        """The number K of circuits that one row of the batch costs."""
        return self.shifts.shape[-2]

    def repeated(self, times: int) -> Stencil:
        """The stencil for rows that follow each other in runs of ``times``, each run with the same shifts."""
        if times == 1 or self.shifts.ndim == 2:
            return self
        return Stencil(np.repeat(self.shifts, times, axis=0), np.repeat(self.coefficients, times, axis=0))

    def tiled(self, times: int) -> Stencil:
        """The stencil for a batch that is there so many times, one after the other, each with the same shifts."""
        if times == 1 or self.shifts.ndim == 2:
            return self
        return Stencil(np.tile(self.shifts, (times, 1, 1)), np.tile(self.coefficients, (times, 1, 1)))

    def for_rows(self, rows: Sequence[int]) -> Stencil:
        """The stencil of some of the wanted columns, by their places, at the same points."""
        return Stencil(self.shifts, self.coefficients[..., list(rows), :])

    def for_variances(self) -> Stencil:
        """What makes the variances of derivatives of the variances of independent values: squared coefficients."""
        return Stencil(self.shifts, self.coefficients**2)

    def points(self, groups: Sequence[torch.Tensor], slices: Sequence[slice], rows: int) -> tuple[torch.Tensor, ...]:
        """The shifted angles, row by row.

        Args:
            groups: The angles, a tensor of shape (N, A_g) or (1, A_g) a group.
            slices: Each group's columns among all angles.
            rows: The number N of rows.

        Returns:
            A tensor of shape (N * K, A_g) a group; point k of row n is row ``n * K + k``.
        """
        shifted = []
        for group, columns in zip(groups, slices, strict=True):
            shifts = torch.as_tensor(self.shifts[..., columns], dtype=group.dtype, device=group.device)
            points = group.unsqueeze(1) + (shifts if shifts.dim() == 3 else shifts.unsqueeze(0))
            shifted.append(points.expand(rows, -1, -1).reshape(rows * self.num_points, group.shape[1]))
        return tuple(shifted)

    def derivatives(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Shape (N, W, M): the derivatives, from the values of shape (N * K, M) at the points."""
        coefficients = torch.as_tensor(self.coefficients, dtype=values.dtype, device=values.device)
        points = values.reshape(rows, self.num_points, values.shape[-1])
        if coefficients.dim() == 3:
            return coefficients @ points
        # One product for all rows: many small ones cost more in threads than in numbers.
        return torch.tensordot(coefficients, points, dims=([1], [1])).movedim(0, 1)

    def derivatives_of_numbers(self, values: np.ndarray, rows: int) -> np.ndarray:
        """:meth:`derivatives` of values that nothing differentiates.

        NumPy multiplies row by row, in this thread as long as a row is small; PyTorch would wake its threads for the
        product of all rows, which can take longer than the circuits.
        """
        products: np.ndarray = self.coefficients @ values.reshape(rows, self.num_points, values.shape[-1])
        return products
