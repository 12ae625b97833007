"""Carries Pauli propagation out: values, bounds of their bias, and gradients of a batch, in threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from ..arguments import in_gibibytes
from . import threads
from .propagation_kernels import BOUND, FITS, VALUE, propagate
from .propagation_plan import Propagation

__all__ = ["PropagationSimulator", "Truncated"]

_MOST_BYTES_OF_JACOBIANS = 2**28
_SHARE_OF_MEMORY = 0.5
_SECONDS_OF_AN_OPERATION = 1e-5  # a guess that only decides about threads
_NOTHING = np.zeros(0)


@dataclass(frozen=True, eq=False)
class Truncated:
    """Values of a batch.

    Attributes:
        values: Shape (N, M).
        bounds: Shape (N, M): how far from exact they are, at most.
        jacobians: For a gradient at the same angles: the derivatives of each propagation's value by the angles of its
            rotations, shape (N, R) each; or None.
    """

    values: np.ndarray
    bounds: np.ndarray
    jacobians: list[np.ndarray] | None


class PropagationSimulator:
    """Propagates the outputs of one program.

    Args:
        propagations: What the outputs are made of.
        constants: Shape (M,): what they begin with.
        tolerance: Strings of a smaller weight are dropped.
        max_terms: Beyond so many strings, those of the smallest weights are dropped.
    """

    measures_jointly = False

    def __init__(
        self, propagations: Sequence[Propagation], constants: np.ndarray, *, tolerance: float, max_terms: int
    ) -> None:
        self._propagations, self._constants = propagations, constants
        self._tolerance, self._max_terms = tolerance, max_terms
        self.sizes = np.abs(constants)
        """Shape (M,): the largest values that the outputs can have."""
        for one in propagations:
            self.sizes[one.output] += np.abs(one.coefficients).sum()

    @property
    def description(self) -> str:
        """What is propagated, in words."""
        counts = [len(one.operations) for one in self._propagations] or [0]
        between = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        return (
            f"Pauli propagation, for each row: {len(self._propagations)} sum(s) of Pauli strings back through {between} "
            f"rotations and noise channels each; of each sum at most {self._max_terms} strings, none below "
            f"{self._tolerance:g}."
        )

    def values(self, angles: np.ndarray, *, keep: bool = False) -> Truncated:
        """Values, as far as strings are kept.

        Args:
            angles: Shape (N, A), float64, contiguous; N > 0; radians.
            keep: Whether a gradient may be wanted: then it is computed along, unless that takes much memory.
        """
        rotations = sum(len(one.offsets) for one in self._propagations)
        keep = keep and 8 * len(angles) * rotations <= _MOST_BYTES_OF_JACOBIANS
        shape = (len(angles), len(self._propagations))
        results, jacobians = self._propagated(angles, np.ones(shape, bool), with_gradients=keep)
        values, bounds = np.empty((2, len(angles), len(self._constants)))
        values[:], bounds[:] = self._constants, 0.0
        outputs = [one.output for one in self._propagations]
        np.add.at(values.T, outputs, results[:, :, VALUE].T)
        np.add.at(bounds.T, outputs, results[:, :, BOUND].T)
        # No exact value is larger than the output's size.
        return Truncated(values, np.minimum(bounds, self.sizes + np.abs(values)), jacobians)

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: list[np.ndarray] | None, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product of the values as they are computed: what is dropped is dropped at all angles nearby.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M).
            states: The Jacobians that :meth:`values` gave for the same angles, or None; those of another number of rows
                are not used.
            selected: Shape (A,), bool.

        Returns:
            Shape (N, A); zero for angles that are not selected.

        Raises:
            MemoryError: If what has to be remembered of a propagation does not fit into this machine's memory.
        """
        along = upstream[:, [one.output for one in self._propagations]]
        if states is None or len(states[0] if states else angles) != len(angles):
            touched = np.array([bool(selected[one.columns].any()) for one in self._propagations], bool)
            _, states = self._propagated(angles, (along != 0) & touched, with_gradients=True)
        assert states is not None
        gradients = np.zeros(angles.shape)
        for number, (one, by_rotations) in enumerate(zip(self._propagations, states, strict=True)):
            by_terms = along[:, number, None] * one.slopes * by_rotations[:, one.turns]
            np.add.at(gradients.T, one.columns, by_terms.T)
        gradients[:, ~selected] = 0.0
        return gradients

    def _propagated(
        self, angles: np.ndarray, needed: np.ndarray, *, with_gradients: bool
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """What the kernel gives for each row and propagation, shape (N, P, 4); zeros where it is not needed."""
        results = np.zeros((*needed.shape, 4))
        results[:, :, FITS] = 1.0
        jacobians = None
        if with_gradients:
            jacobians = [np.zeros((len(angles), len(one.offsets))) for one in self._propagations]
        jobs = np.argwhere(needed)
        most_bytes = int(_SHARE_OF_MEMORY * psutil.virtual_memory().available / torch.get_num_threads())

        def work(start: int, stop: int) -> None:
            for row, number in jobs[start:stop].tolist():
                one = self._propagations[number]
                propagate(
                    one.masks, one.hashes_of_masks, one.operations, one.factors, one.varies,
                    one.strings, one.hashes, one.coefficients,
                    one.angles_of_rotations(angles[row]), self._tolerance, self._max_terms, most_bytes,
                    results[row, number], _NOTHING if jacobians is None else jacobians[number][row],
                )  # fmt: skip

        operations = sum(len(one.operations) for one in self._propagations)
        threads.in_parallel(work, len(jobs), len(angles) * max(1, operations) * _SECONDS_OF_AN_OPERATION)
        if not results[:, :, FITS].all():
            raise MemoryError(
                f"The gradient needs more than {in_gibibytes(most_bytes)} of memory in each of {torch.get_num_threads()} "
                f"threads, with max_terms={self._max_terms} and tolerance={self._tolerance:g}; lower max_terms, raise "
                "tolerance, or use gradient='parameter_shift', which takes longer and remembers nothing."
            )
        return results, jacobians
