"""Carries plans of circuits with noise out: values, gradients and shots of a batch, in threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from threading import local
from typing import Any

import numpy as np
import psutil

from ..arguments import in_gibibytes
from ..program.channels import NoisyCircuit
from ..program.readout import Readout, Samples
from . import density_kernels, outcome_kernels, threads
from .density_plan import Branch, DensityPlan, End, Part, branches_of
from .engine import values_of_shots
from .shots import Measured, Use, outcomes_of_shots, variances_of_shots
from .vectors import WIDTH

__all__ = ["DensitySimulator", "most_qubits"]

_BYTES_OF_KEPT_STATES = 2**24  # of a thread; beyond, states are computed once more from checkpoints
_BYTES_OF_SHARED_STATES = 2**28
_MOST_BYTES_OF_SCRATCH = 2**28
_CACHE_LINE = 64
_BYTES_OF_AN_ENTRY = 200  # of a plan and of states, for each of eight rows; roughly, measured at 9 to 11 qubits
_NUMBERS_OF_A_PART = 2**22
_SECONDS_OF_WORK = 2e-9  # of a slab's entry that an operation reads; a rough guess
_SECONDS_WORTH_SHARING = 0.005
_SECONDS_PER_DRAW = 5e-8

_kept = local()


class DensitySimulator:
    """Simulates the measured circuits of one program, with their noise.

    Args:
        circuits: One for each measurement group of the readout.
        readout: What is read.
        dtype: Of the entries of states: float64 or float32.

    Raises:
        MemoryError: If one state is larger than this machine's memory.
    """

    measures_jointly = True

    def __init__(self, circuits: Sequence[NoisyCircuit], readout: Readout, dtype: Any = np.float64) -> None:
        self._dtype = np.dtype(dtype)
        self.num_qubits = max((circuit.num_qubits for circuit in circuits), default=0)
        _require_memory(self.num_qubits)
        self._readout = readout
        self._branches = branches_of(circuits, readout.groups)
        self._num_outcomes = sum(2 ** len(group.qubits) for group in readout.groups)

    @property
    def description(self) -> str:
        """What is simulated, in words."""
        circuits = "1 circuit" if len(self._branches) == 1 else f"{len(self._branches)} circuits"
        return f"{circuits} with noise, {self.num_qubits} qubits: up to {4**self.num_qubits} numbers for each row."

    @cached_property
    def _exact(self) -> list[tuple[Branch, DensityPlan]]:
        return [(branch, branch.exact_plan(self._dtype)) for branch in self._branches]

    @cached_property
    def _sampling(self) -> list[tuple[Branch, DensityPlan]]:
        return [(branch, branch.sampling_plan(self._dtype)) for branch in self._branches]

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, None]:
        """Exact values, shape (N, M); and None, for no state is kept for a gradient.

        Args:
            angles: Shape (N, A), float64; N > 0; radians.
            keep: Makes no difference.
        """
        values = np.empty((len(angles), self._readout.num_outputs))
        values[:] = self._readout.constants
        for branch, plan in self._exact:
            values += _read(plan, branch.circuit.rotation_angles(angles))
        return values, None

    def pullback(self, angles: np.ndarray, upstream: np.ndarray, states: None, selected: np.ndarray) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M), float64, contiguous: the gradient by the values.
            states: Nothing.
            selected: Shape (A,), bool.
        """
        gradients = np.zeros(angles.shape)
        for branch, plan in self._exact:
            slopes = branch.circuit.slopes
            selected_turns = slopes[selected].any(axis=0)
            if any(selected_turns[columns].any() for columns in plan.columns_of):
                rotations = branch.circuit.rotation_angles(angles)
                by_rotations = _pulled_back(plan, rotations, upstream, selected_turns)
                gradients += (by_rotations[:, None] @ slopes.T)[:, 0]
        gradients[:, ~selected] = 0.0
        return gradients

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, Measured[End] | None]:
        """Values from ``shots`` shots of each measurement, and their squared standard errors, both of shape (N, M).

        And the counts, unless they take much memory.
        """
        return values_of_shots(
            lambda use: self._measure(angles, shots, seed, use),
            lambda end, counts: end.group.moments(counts / shots),
            constants=self._readout.constants,
            rows=len(angles),
            num_outcomes=self._num_outcomes,
            shots=shots,
        )

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Measured[End] | None,
        upstream: np.ndarray,
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements.

        Args:
            angles: As in :meth:`values`.
            shots: Of how many shots it is to be estimated, the same that :meth:`sampled` draws; None: exactly.
            seed: The seed of those.
            kept: Their counts; None: they are drawn once more.
            upstream: Shape (N, M).
        """
        return variances_of_shots(lambda use: self._measure(angles, shots, seed, use), kept, upstream, shots)

    def outcomes(
        self, angles: np.ndarray, shots: int | None, seed: np.random.SeedSequence | None, kept: Measured[End] | None
    ) -> tuple[np.ndarray | Samples, ...]:
        """What each measurement group has measured: relative frequencies, shape (N, 2**k), or bit strings.

        Args:
            angles: As in :meth:`values`.
            shots: What :meth:`sampled` has drawn; None: the exact probabilities.
            seed: The seed of those.
            kept: Their counts; None: they are drawn once more.
        """
        return outcomes_of_shots(
            lambda use: self._measure(angles, shots, seed, use),
            kept,
            self._readout.groups,
            rows=len(angles),
            shots=shots,
        )

    def _measure(
        self, angles: np.ndarray, shots: int | None, seed: np.random.SeedSequence | None, use: Use[End]
    ) -> None:
        """Hands on the counts of each measurement's outcomes, with its rows; or their probabilities."""
        key = None if seed is None else seed.generate_state(2, np.uint32).astype(np.uint64)
        for branch, plan in self._sampling:
            size = max(1, _NUMBERS_OF_A_PART // plan.num_reads // WIDTH) * WIDTH
            for start in range(0, len(angles), size):
                part = slice(start, min(start + size, len(angles)))
                read = _read(plan, branch.circuit.rotation_angles(angles[part]))
                first = 0
                for end in branch.ends:
                    stop = first + 2 ** len(end.circuit.measured)
                    probabilities = end.probabilities(np.ascontiguousarray(read[:, first:stop]))
                    measured = probabilities if shots is None else _drawn(probabilities, shots, key, end, start)
                    use(end, part, measured)
                    first = stop


def _read(plan: DensityPlan, angles: np.ndarray) -> np.ndarray:
    """What the plan reads, shape (N, K), at the rotations' angles.

    The beginning of a circuit that rows have in common (a row's shifted circuits do) is simulated once.
    """
    rows = len(angles)
    reads, begin, start = np.empty((rows, plan.num_reads)), np.zeros((0, 0), plan.dtype), 0
    state_of = np.zeros(rows, np.int64)  # that each row begins with
    for number, (stop, kinds) in enumerate(_stages(plan, angles)):
        part = plan.part(start, stop)
        _, first = np.unique(kinds, return_index=True)
        order = _side_by_side(state_of[first])
        first = first[order]
        end = _room((_slabs(len(first)) if part.end else 0, WIDTH * part.end), plan.dtype, f"states {number % 2}")
        into = np.empty((len(first), part.num_reads))
        arguments = (angles[first], begin, state_of[first], end, into)
        _spread(density_kernels.forward, arguments, part, len(first), density_kernels.BLOCKS_FORWARD, sweeps=1)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        begin, state_of, start = end, place[kinds], stop
        if stop == plan.num_operations:
            reads[first] = into
    return reads


def _side_by_side(states: np.ndarray) -> np.ndarray:
    """An order of rows in which those that begin with states beside each other are beside each other, most often.

    That of the first row of each state, then of the second row of each, and so on.

    Args:
        states: Shape (N,): the state that each row begins with.
    """
    by_state = np.argsort(states, kind="stable")
    _, first, number = np.unique(states[by_state], return_index=True, return_inverse=True)
    rank = np.empty(len(states), np.int64)
    rank[by_state] = np.arange(len(states)) - first[number.reshape(-1)]
    return np.lexsort((states, rank))


def _stages(plan: DensityPlan, angles: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Up to which operations rows that have had the same angles so far are to be simulated as one.

    Returns:
        The stages, the last of which ends behind the last operation; each with the kind of each row: rows of one kind are
        the same up to there.
    """
    rows = len(angles)
    possible = [(plan.num_operations, np.arange(rows), rows)]
    if _slabs(rows) * plan.work(0, plan.num_operations) * _SECONDS_OF_WORK >= _SECONDS_WORTH_SHARING:
        possible = [*_beginnings(plan, angles), *possible]
    return _cheapest(plan, possible)


def _beginnings(plan: DensityPlan, angles: np.ndarray) -> list[tuple[int, np.ndarray, int]]:
    """Operations, the kinds of rows before them, and how many those are, where angles tell more rows apart."""
    kinds, number = np.zeros(len(angles), np.int64), 1
    tells_apart = (angles != angles[:1]).any(axis=0)
    room = _BYTES_OF_SHARED_STATES // plan.dtype.itemsize
    beginnings = []
    for operation, columns in enumerate(plan.columns_of):
        more = kinds
        for column in columns:
            if tells_apart[column]:
                values, by_value = np.unique(angles[:, column], return_inverse=True)
                _, more = np.unique(more * len(values) + by_value.reshape(-1), return_inverse=True)
        count = int(more.max()) + 1
        if operation and count > number and number * plan.entries[operation] <= room:
            beginnings.append((operation, kinds, number))
        kinds, number = more.reshape(-1), count
        if 2 * number > len(angles):
            break
    return beginnings


def _cheapest(plan: DensityPlan, possible: list[tuple[int, np.ndarray, int]]) -> list[tuple[int, np.ndarray]]:
    """Those of the possible stages (an end, kinds of rows and how many of them) that are the least work together."""
    best: list[tuple[int, list[int]]] = []
    for i, (stop, _, number) in enumerate(possible):
        best.append((_slabs(number) * plan.work(0, stop), [i]))
        for j, (start, _, _) in enumerate(possible[:i]):
            best[i] = min(best[i], (best[j][0] + _slabs(number) * plan.work(start, stop), [*best[j][1], i]))
    return [possible[i][:2] for i in best[-1][1]]


def _slabs(rows: int) -> int:
    return -(-rows // WIDTH)


def _pulled_back(plan: DensityPlan, angles: np.ndarray, upstream: np.ndarray, selected_turns: np.ndarray) -> np.ndarray:
    """The gradient by the rotations' selected_turns angles, shape (N, R); zero for the others."""
    part, gradients = plan.whole, np.zeros(angles.shape)
    operations = np.array([bool(selected_turns[columns].any()) for columns in part.columns_of])
    segment = max(1, part.num_operations)
    if density_kernels.blocks_backward(operations, segment) * part.bytes_of_slab > _BYTES_OF_KEPT_STATES:
        segment = int(np.ceil(segment**0.5))
    blocks = density_kernels.blocks_backward(operations, segment)
    arguments = (angles, upstream, selected_turns, operations, segment, gradients)
    _spread(density_kernels.backward, arguments, part, len(angles), blocks, sweeps=5)
    return gradients


def _spread(kernel: Any, arguments: tuple[Any, ...], part: Part, rows: int, blocks: int, *, sweeps: int) -> None:
    """Calls a kernel for all slabs, here or in threads where there is enough to do.

    Args:
        kernel: What is called.
        arguments: Its own arguments.
        part: Of the plan.
        rows: How many there are.
        blocks: How many states it has in memory at a time.
        sweeps: How often it goes through the operations, roughly.
    """
    coefficients = density_kernels.room_of_coefficients(len(part.arrays[1]), arguments[0].shape[1])
    size = blocks * part.bytes_of_slab // part.dtype.itemsize + coefficients

    def work(first: int, stop: int) -> None:
        kernel(part.static, part.size, *arguments, _scratch(size, part.dtype), first, stop)

    seconds = sweeps * _slabs(rows) * (part.work + 2 * part.size) * _SECONDS_OF_WORK
    threads.in_parallel(work, _slabs(rows), seconds)


def _scratch(size: int, dtype: np.dtype) -> np.ndarray:
    """Memory of a thread's own for a kernel, from where a cache line begins; its contents are anything."""
    return _room((size,), dtype, "scratch")


def _room(shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """Memory of a thread's own, from where a cache line begins; its contents are anything.

    It is kept for the next call that asks for it by the same name: memory from the system costs more time than many a
    simulation.
    """
    size = math.prod(shape) * dtype.itemsize
    memory: np.ndarray | None = getattr(_kept, name, None)
    if memory is None or memory.nbytes < size + _CACHE_LINE:
        memory = np.empty(size + _CACHE_LINE, np.uint8)
        if memory.nbytes <= _MOST_BYTES_OF_SCRATCH:
            setattr(_kept, name, memory)
    skip = -memory.ctypes.data % _CACHE_LINE
    return memory[skip : skip + size].view(dtype).reshape(shape)


def _drawn(probabilities: np.ndarray, shots: int, key: np.ndarray | None, end: End, first_row: int) -> np.ndarray:
    counts = np.empty(probabilities.shape, np.int64)
    work = partial(outcome_kernels.draw_counts, probabilities, shots, key, end.number, first_row, counts)
    threads.in_parallel(work, len(counts), counts.size * _SECONDS_PER_DRAW)
    if counts.min() < 0:
        raise FloatingPointError("The probabilities of a circuit's outcomes are not finite; please report this.")
    return counts


def most_qubits() -> int:
    """How many qubits fit into this machine's memory."""
    return int(math.log(psutil.virtual_memory().total / (_BYTES_OF_AN_ENTRY * WIDTH), 4))


def _require_memory(num_qubits: int) -> None:
    needed, there = _BYTES_OF_AN_ENTRY * WIDTH * 4**num_qubits, psutil.virtual_memory().total
    if needed > there:
        size = in_gibibytes(needed).removeprefix("some ")
        raise MemoryError(
            f"Simulation of {num_qubits} qubits with noise needs some {size} of memory, and this machine has "
            f"{in_gibibytes(there)}; use fewer qubits; or Aer with a number of shots: "
            "backend=AerSimulator(noise_model=...), shots=1000; or, for expectation values with noise of Pauli strings, "
            "backend=PauliBackend(noise=...) (the word 'pauli')."
        )
