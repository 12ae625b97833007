"""Several small simulations as one: of parts of a wide circuit, each with some of its angles and of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..program.readout import PauliGroup

__all__ = ["Assembly", "Part", "variances_of_products"]

_MOST_LISTED = 8


@dataclass(frozen=True, eq=False)
class Part:
    """A simulator that stands for K fragments, which are rows of its batch.

    Attributes:
        columns: Shape (K, A'): which of the program's angles are its A' angles, for each fragment.
        outputs: Shape (K, M'): which of the program's outputs its M' outputs count towards.
        simulator: Of states or of density matrices.
    """

    columns: np.ndarray
    outputs: np.ndarray
    simulator: Any


class Assembly:
    """Parts as one map from angles to values.

    Args:
        parts: What is simulated.
        constants: Shape (M,): what the outputs begin with.
    """

    def __init__(self, parts: Sequence[Part], constants: np.ndarray) -> None:
        self.parts, self.constants = parts, constants

    def describe(self, title: str, num_qubits: Callable[[Any], int]) -> str:
        """What is simulated, in words.

        Args:
            title: The first line.
            num_qubits: How many qubits a simulator has.
        """
        lines = [f"{title}; those that are alike are one circuit:"]
        for part in sorted(self.parts, key=lambda part: -num_qubits(part.simulator)):
            size = f"{len(part.columns)} x {num_qubits(part.simulator)} qubits"
            lines.append(f"  {size}, {part.columns.shape[1]} angles: outputs {_listed(part.outputs)}")
        return "\n".join(lines)

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, list[Any]]:
        """Exact values, shape (N, M), and the states of each part that are kept for a gradient.

        Args:
            angles: Shape (N, A), float64; radians.
            keep: Whether they will be wanted.
        """
        values = np.empty((len(angles), len(self.constants)))
        values[:] = self.constants
        kept = []
        for part in self.parts:
            own, states = part.simulator.values(_of_fragments(angles, part.columns), keep=keep)
            _add(values, part.outputs, own)
            kept.append(states)
        return values, kept

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: Sequence[Any] | None, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M): the gradient by the values.
            states: What :meth:`values` kept, or None.
            selected: Shape (A,), bool.
        """
        gradients = np.zeros(angles.shape)
        for part, kept in zip(self.parts, states or [None] * len(self.parts), strict=True):
            selected_here = selected[part.columns]
            if selected_here.any():
                own = _of_fragments(angles, part.columns), _of_fragments(upstream, part.outputs)
                _add(gradients, part.columns, part.simulator.pullback(*own, kept, selected_here.any(axis=0)))
        gradients[:, ~selected] = 0.0
        return gradients

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Values from shots of each part, their squared standard errors, both of shape (N, M), and each part's counts."""
        values = np.empty((len(angles), len(self.constants)))
        values[:] = self.constants
        variances, counts = np.zeros(values.shape), []
        for number, part in enumerate(self.parts):
            own = _of_fragments(angles, part.columns)
            first, squares, kept = part.simulator.sampled(own, shots, _seed_of(seed, number))
            _add(values, part.outputs, first)
            _add(variances, part.outputs, squares)
            counts.append(kept)
        return values, variances, counts

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Sequence[Any] | None,
        upstream: np.ndarray,
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the parts.

        Args:
            angles: As in :meth:`values`.
            shots: Of how many shots it is to be estimated, the same that :meth:`sampled` draws; None: exactly.
            seed: The seed of those.
            kept: Their counts; None: they are drawn once more.
            upstream: Shape (N, M).
        """
        variances = np.zeros(len(angles))
        for number, part in enumerate(self.parts):
            own = part.simulator.variances_of_one_shot(
                _of_fragments(angles, part.columns),
                shots,
                None if seed is None else _seed_of(seed, number),
                None if kept is None else kept[number],
                _of_fragments(upstream, part.outputs),
            )
            variances += own.reshape(len(angles), -1).sum(axis=1)
        return variances


def variances_of_products(
    products: Assembly, pairs: np.ndarray, group: PauliGroup, angles: np.ndarray, upstream: np.ndarray
) -> np.ndarray:
    """The variance from shot to shot of a group's scores along ``upstream``, shape (N,), from exact expectation values.

    Args:
        products: Gives the expectation values of the group's strings, and then those of their products.
        pairs: Shape (P, 2): which strings the products are of; a string with itself, and each two of them at most once.
        group: The strings.
        angles: Shape (N, A); radians.
        upstream: Shape (N, M).
    """
    means, _ = products.values(angles)
    first, second = pairs.T
    along = upstream @ group.coefficients.T
    covariances = means[:, along.shape[1] :] - means[:, first] * means[:, second]
    weights = np.where(first == second, 1.0, 2.0)
    return np.maximum((along[:, first] * along[:, second] * covariances) @ weights, 0.0)


def _listed(numbers: np.ndarray) -> str:
    """The distinct numbers, most of a long list left out."""
    words = [str(number) for number in np.unique(numbers).tolist()]
    return ", ".join(words if len(words) <= _MOST_LISTED else [*words[: _MOST_LISTED - 2], "...", words[-1]])


def _seed_of(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A seed for each part; ``seed`` stays as it is."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))


def _of_fragments(array: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The columns of K fragments, shape (N * K, C), from an array of shape (N, *)."""
    return np.ascontiguousarray(array[:, columns]).reshape(len(array) * len(columns), columns.shape[1])


def _add(totals: np.ndarray, columns: np.ndarray, parts: np.ndarray) -> None:
    """Adds the columns of K fragments, shape (N * K, C), to an array of shape (N, *); several may have the same one."""
    by_column = parts.reshape(len(totals), columns.size).T
    np.add.at(totals.T, columns.ravel(), by_column)
