"""From features and weights to values in one call of compiled code, and back in another, where states are small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from ..shots.covariance import Covariance
from . import threads, whole_kernels
from .engine import Simulator, States
from .vectors import WIDTH

__all__ = ["NOWHERE", "Address", "Step"]

Address = tuple[int, bool]
"""Where a contiguous array of float64 is in memory, or of float32 (True)."""
NOWHERE: Address = (0, False)


class Passage(NamedTuple):
    """What a call forward has computed.

    Attributes:
        angles: Shape (N, A); radians.
        values: Shape (N, M).
        states: The final states; None where they are too large to keep.
    """

    angles: np.ndarray
    values: np.ndarray
    states: np.ndarray | None


class Step:
    """A program whose angles are affine in features and weights, on a simulator of small states.

    Args:
        simulator: Of the program; its states fit into a block, and it reads expectation values.
        table: The program's :attr:`qiskit_torch_bridge.program.angles.AngleMap.table`.
        widths: The number of features and of weights, all groups together.
    """

    def __init__(self, simulator: Simulator, table: tuple[np.ndarray, ...], widths: tuple[int, int]) -> None:
        self._simulator, self._table, self._widths = simulator, table, widths
        self._static = simulator.static(table)
        self._num_qubits = simulator.plan.num_qubits
        self._num_angles, self._num_outputs = len(table[0]) - 1, simulator.num_outputs

    def forward(self, rows: int, features: Address, weights: Address, outputs: Address) -> Passage | None:
        """The values, which are written to ``outputs`` too; None where an angle is not finite.

        Args:
            rows: The number N > 0 of rows.
            features: An array of shape (N, I).
            weights: An array of all weights.
            outputs: An array of shape (N, M).
        """
        angles, values = np.empty((rows, self._num_angles)), np.empty((rows, self._num_outputs))
        lanes = self._simulator.lanes(rows)
        if self._simulator.keeps(rows):
            states = self._computed((features, weights, outputs), angles, values, lanes)
            return None if states is None else Passage(angles, values, states)
        for part in self._parts(rows):
            moved = _moved(features, part.start * self._widths[0]), _moved(outputs, part.start * self._num_outputs)
            if self._computed((moved[0], weights, moved[1]), angles[part], values[part], lanes) is None:
                return None
        return Passage(angles, values, None)

    def _computed(
        self, sources: tuple[Address, Address, Address] | None, angles: np.ndarray, values: np.ndarray, lanes: int
    ) -> np.ndarray | None:
        """Fills in values, and angles where there are sources, and gives the states; None if an angle is not finite."""
        features, weights, outputs = sources or (NOWHERE, NOWHERE, NOWHERE)
        simulator = self._simulator
        states = simulator.room(-(-len(angles) // lanes), lanes, copies=1)
        ends: list[float] = []

        def work(start: int, stop: int) -> None:
            end = whole_kernels.forward(
                self._static, self._num_qubits, lanes, True, sources is not None, self._widths[0], features, weights,
                angles, states, values, outputs, start, stop,
            )  # fmt: skip
            ends.append(end)

        _spread(work, len(states), simulator.seconds(len(states), lanes, sweeps=1))
        return None if any(end != end for end in ends) else states

    def _parts(self, rows: int) -> Iterator[slice]:
        """The rows in parts whose states can be kept; as many in each as lie side by side."""
        size = WIDTH
        while self._simulator.keeps(2 * size):
            size *= 2
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows))

    def backward(
        self, angles: np.ndarray, states: np.ndarray | None, selected: np.ndarray, upstream: tuple[int, bool, int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The gradient by the angles, shape (N, A), and the upstream gradient that it belongs to, shape (N, M).

        Args:
            angles: What :meth:`forward` gave.
            states: Likewise; they stay as they are.
            selected: Shape (A,), bool: the angles whose gradient is wanted; others have 0.
            upstream: The gradient by the values: where it is, its type, and how far apart its rows and its columns are.
        """
        rows, lanes = len(angles), self._simulator.lanes(len(angles))
        gradients, measured = np.empty(angles.shape), np.empty((rows, self._num_outputs))
        if states is not None:
            self._taken_back(angles, states, lanes, selected, upstream, measured, gradients)
            return gradients, measured
        address, is_single, row, column = upstream
        for part in self._parts(rows):
            again = self._computed(None, angles[part], measured[part], lanes)
            assert again is not None
            at = (*_moved((address, is_single), part.start * row), row, column)
            self._taken_back(angles[part], again, lanes, selected, at, measured[part], gradients[part])
        return gradients, measured

    def _taken_back(
        self,
        angles: np.ndarray,
        states: np.ndarray,
        lanes: int,
        selected: np.ndarray,
        upstream: tuple[int, bool, int, int],
        measured: np.ndarray,
        gradients: np.ndarray,
    ) -> None:
        """Fills in the gradients, and the upstream gradient as ``measured``."""
        simulator = self._simulator

        def work(start: int, stop: int) -> None:
            whole_kernels.backward(
                self._static, self._num_qubits, lanes, selected, upstream, measured, angles, states, states[:0],
                gradients, start, stop,
            )  # fmt: skip

        _spread(work, len(states), simulator.seconds(len(states), lanes, sweeps=5))

    def hand_out(self, gradients: np.ndarray, features: Address, weights: Address) -> None:
        """Writes the gradients by the features (shape (N, I)) and by all weights, where they are wanted."""
        whole_kernels.hand_out(self._static, self._widths[0], gradients, features, weights, self._widths[1])

    def state(self, states: np.ndarray | None, rows: int) -> States | None:
        """The states of a passage of so many rows as the simulator's other methods take them."""
        return None if states is None else States(states, rows)

    def covariance(self, angles: np.ndarray) -> Covariance:
        """How the outputs vary together from shot to shot, at angles of shape (N, A)."""
        of_one_shot = partial(self._simulator.variances_of_one_shot, angles, None, None, None)
        return Covariance(of_one_shot, math.inf, len(angles))


def _spread(work: Callable[[int, int], None], slabs: int, seconds: float) -> None:
    """Does the work here, or in threads where there is enough of it."""
    if seconds < 2 * threads.LEAST_SECONDS:
        work(0, slabs)
    else:
        threads.in_parallel(work, slabs, seconds)


def _moved(array: Address, by: int) -> Address:
    """The address of the number that is ``by`` behind an array's first one."""
    address, is_single = array
    return address + by * (4 if is_single else 8), is_single
