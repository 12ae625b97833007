"""Runs plans: batches in parts, parts in threads, and states kept where a gradient will want them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import psutil

from ..program.compiled import Program
from ..program.readout import MOST_TABULATED_QUBITS, MeasurementGroup, OutcomeGroup, Samples, bits_of
from ..shots.covariance import variance_of_one_shot
from . import kernels, readout_kernels, sampling
from .plan import Pass, Plan, basis_change_passes, plan_of
from .sizes import in_gibibytes
from .threads import in_parallel, worth_sharing
from .vectors import WIDTH

__all__ = ["Simulator", "States"]

# Eight rows side by side fill vectors evenly; but a few rows fill fewer lanes, and larger states keep threads busier
# one by one. (Measured: two cores, AVX-512.)
_MOST_QUBITS_SIDE_BY_SIDE, _LEAST_ROWS_SIDE_BY_SIDE = 7, 4
_MOST_QUBITS_OF_LONG_BATCHES, _ROWS_OF_LONG_BATCHES = 11, 32
_BYTES_OF_A_SMALL_PART = 2**20  # stays in the cache between simulating and reading
_BYTES_OF_A_LARGE_PART = 2**28
_MOST_QUBITS_OF_A_MASK = 62
_SECONDS_PER_ELEMENT = 1.5e-10  # and operation; a rough guess that only decides about threads
_SECONDS_PER_DRAW = 5e-8

_Runner = Callable[[Callable[[int, int], None], int, float], None]


class States(NamedTuple):
    """The final states of a batch.

    Attributes:
        planes: Shape (units, planes, lanes * 2**n): element ``b * lanes + l`` is amplitude b of row ``unit * lanes + l``.
        rows: How many there are; the last unit may have room for more.
    """

    planes: np.ndarray
    rows: int


def _alone(work: Callable[[int, int], None], units: int, seconds: float) -> None:
    work(0, units)


class Simulator:
    """Simulates one program.

    Args:
        program: Without input blocks.
        dtype: Of the real and imaginary parts: float64 or float32.

    Raises:
        MemoryError: If one state is larger than this machine's memory.
    """

    def __init__(self, program: Program, dtype: Any = np.float64) -> None:
        self.dtype = np.dtype(dtype)
        self._num_qubits = len(program.active_qubits)
        memory = psutil.virtual_memory().total
        if self._num_qubits > _MOST_QUBITS_OF_A_MASK:
            self._require_memory(self.dtype.itemsize << self._num_qubits, memory, "altogether")
        self.plan: Plan = plan_of(program, self.dtype)
        self._require_memory(self._bytes_of_unit(1), memory, "altogether")
        self._groups = program.readout.groups
        self._num_outputs = program.num_outputs
        self._constants = program.readout.constants if program.readout.constants.any() else None
        # Copied, because unpickled arrays may be read-only, and kernels are compiled anew for those.
        self._output_of = next(
            (group.outputs.copy() for group in self._groups if isinstance(group, OutcomeGroup)), None
        )
        place = {qubit: i for i, qubit in enumerate(program.active_qubits)}
        self._measured = [np.array([place[qubit] for qubit in group.qubits], np.int64) for group in self._groups]
        self._changes = [
            basis_change_passes(qubits.tolist(), group.bases, self.plan.num_qubits, self.dtype)
            for qubits, group in zip(self._measured, self._groups, strict=True)
        ]

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, States | None]:
        """Exact values.

        Args:
            angles: Shape (N, A), float64, contiguous; N > 0; radians.
            keep: Whether the states will be wanted again; they come back if they take no more memory than one part.

        Returns:
            Values of shape (N, M), and the states or None.

        Raises:
            MemoryError: If a state does not fit into what memory is free.
        """
        rows = len(angles)
        lanes = self._lanes(rows)
        units = -(-rows // lanes)
        kept = None
        if keep and units * self._bytes_of_unit(lanes) <= _BYTES_OF_A_LARGE_PART:
            kept = States(self._room(units, lanes, copies=3), rows)
        values = np.zeros((rows, self._num_outputs))
        if self._constants is not None:
            values += self._constants

        def work(part: slice, run: _Runner) -> None:
            into = None if kept is None else kept.planes[_units(part, lanes)]
            self._read(self._simulate(angles[part], lanes, run, into), lanes, values[part], run)

        self._in_parts(rows, lanes, work, sweeps=1)
        return values, kept

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: States | None, wanted: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not wanted.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M), float64, contiguous: the gradient by the values.
            states: What :meth:`values` kept for the same angles, or None. They stay as they are; states of another
                number of rows (of one row that has since been repeated) are not used.
            wanted: Shape (A,), bool.
        """
        rows = len(angles)
        lanes = self._lanes(rows)
        if states is not None and states.rows != rows:
            states = None
        gradients = np.zeros((rows, angles.shape[1]))
        passes = list(self.plan.passes)
        while passes and not wanted[passes[0].columns].any():
            passes.pop(0)

        def work(part: slice, run: _Runner) -> None:
            mine = np.ascontiguousarray(angles[part])
            if states is None:
                planes = self._simulate(mine, lanes, run, None)
            else:
                planes = states.planes[_units(part, lanes)]
                planes = planes.copy() if len(passes) > 1 else planes
            duals = self._observe(planes, lanes, upstream[part], run)
            for number, one in reversed(list(enumerate(passes))):
                blocks = 1 << len(one.outer_bits)
                by_block = gradients[part, None] if blocks == 1 else np.zeros((len(mine), blocks, angles.shape[1]))
                fixed = (
                    *one.tables, one.runs, one.outer_bits, one.num_qubits, lanes, number == 0,
                    wanted, mine, planes, duals, by_block,
                )  # fmt: skip
                _share(run, kernels.sweep, fixed, len(planes) << len(one.outer_bits), 4 * one.num_operations, planes)
                if blocks > 1:
                    gradients[part] += by_block.sum(axis=1)

        if passes:
            self._in_parts(rows, lanes, work, sweeps=5)
        return gradients

    def sampled_moments(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """First and second moments of the scores over ``shots`` shots of each measurement: a pair of (N, M) a group."""
        shape = (len(angles), self._num_outputs)
        moments = [(np.empty(shape), np.empty(shape)) for _ in self._groups]

        def use(number: int, part: slice, counts: np.ndarray) -> None:
            for moment, mine in zip(moments[number], _moments(self._groups[number], counts, shots), strict=True):
                moment[part] = mine

        self._measure(angles, shots, seed, use)
        return moments

    def variances_of_one_shot(
        self, angles: np.ndarray, upstream: np.ndarray, shots: int | None, seed: np.random.SeedSequence | None
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M).
            shots: Of how many shots it is to be estimated, the same that :meth:`sampled_moments` draws; None: exactly.
            seed: The seed of those.
        """
        variances = np.zeros(len(angles))

        def use(number: int, part: slice, measured: np.ndarray) -> None:
            weights = measured if shots is None else measured / shots
            variances[part] += variance_of_one_shot(self._groups[number], weights, upstream[part], shots)

        self._measure(angles, shots, seed, use)
        return variances

    def _measure(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        use: Callable[[int, slice, np.ndarray], None],
    ) -> None:
        """Hands on the counts of each group's outcomes, (its number, rows, counts), or their probabilities."""
        lanes = self._lanes(len(angles))
        key = None if seed is None else seed.generate_state(2, np.uint32).astype(np.uint64)

        def work(part: slice, run: _Runner) -> None:
            states = self._simulate(angles[part], lanes, run, None)
            for number in range(len(self._groups)):
                changed = self._changed(states, number, angles[part], lanes, run)
                probabilities = self._probabilities(changed, lanes, number, part.stop - part.start, run)
                if shots is None:
                    use(number, part, probabilities)
                    continue
                counts = np.empty(probabilities.shape, np.int64)
                draw = partial(sampling.draw_counts, probabilities, shots, key, number, part.start, counts)
                run(draw, len(counts), counts.size * _SECONDS_PER_DRAW)
                if counts.min() < 0:
                    raise FloatingPointError(
                        "The probabilities of a circuit's outcomes are not finite; please report this."
                    )
                use(number, part, counts)

        draws = sum(2 ** len(group.qubits) for group in self._groups)
        self._in_parts(len(angles), lanes, work, sweeps=1, more=draws * len(angles) * _SECONDS_PER_DRAW)

    # Sharing the work out

    def _lanes(self, rows: int) -> int:
        """How many rows stand side by side: a matter of the sizes alone, so that results depend on nothing else."""
        n = self.plan.num_qubits
        if 1 << n < WIDTH or (n <= _MOST_QUBITS_SIDE_BY_SIDE and rows >= _LEAST_ROWS_SIDE_BY_SIDE):
            return WIDTH
        return WIDTH if n <= _MOST_QUBITS_OF_LONG_BATCHES and rows >= _ROWS_OF_LONG_BATCHES else 1

    def _bytes_of_unit(self, lanes: int) -> int:
        return self.plan.planes * self.dtype.itemsize * lanes << self.plan.num_qubits

    def _in_parts(
        self, rows: int, lanes: int, work: Callable[[slice, _Runner], None], *, sweeps: int, more: float = 0.0
    ) -> None:
        """Calls ``work`` for parts of the batch: small states' in threads, large ones' in turn, each with all threads."""
        if not self.plan.whole:
            size = max(1, _BYTES_OF_A_LARGE_PART // self._bytes_of_unit(1))
            for start in range(0, rows, size):
                work(slice(start, min(start + size, rows)), in_parallel)
            return
        units = -(-rows // lanes)
        size_of_unit = self._bytes_of_unit(lanes)
        size = max(1, _BYTES_OF_A_SMALL_PART // size_of_unit)
        elements = units * size_of_unit // self.dtype.itemsize
        seconds = sweeps * elements * (self.plan.passes[0].num_operations + 2) * _SECONDS_PER_ELEMENT + more
        if units <= size and not worth_sharing(seconds):
            work(slice(0, rows), _alone)
            return

        def of_thread(start: int, stop: int) -> None:
            for unit in range(start, stop, size):
                work(slice(unit * lanes, min(min(unit + size, stop) * lanes, rows)), _alone)

        in_parallel(of_thread, units, seconds)

    def _room(self, units: int, lanes: int, *, copies: int) -> np.ndarray:
        """Memory for states; zeros for large ones, whose first pass touches only what is not zero."""
        size = units * self._bytes_of_unit(lanes)
        if size >= _BYTES_OF_A_LARGE_PART // 2:
            self._require_memory(copies * size, psutil.virtual_memory().available, "free")
        make = np.empty if self.plan.whole else np.zeros
        return make((units, self.plan.planes, lanes << self.plan.num_qubits), self.dtype)

    def _require_memory(self, needed: int, there: int, what: str) -> None:
        if needed > there:
            half = "StatevectorBackend(precision='single'), which takes half of that, "
            half_fits = self.dtype == np.float64 and needed // 2 <= there
            raise MemoryError(
                f"Exact simulation of {self._num_qubits} qubits needs {in_gibibytes(needed)} of memory, and this machine "
                f"has {in_gibibytes(there)} {what}; use fewer qubits, {half if half_fits else ''}"
                "backend=AerSimulator(method='matrix_product_state'), which needs little where entanglement is low, or "
                "hardware."
            )

    # Steps

    def _simulate(self, angles: np.ndarray, lanes: int, run: _Runner, into: np.ndarray | None) -> np.ndarray:
        planes = self._room(-(-len(angles) // lanes), lanes, copies=1) if into is None else into
        for number, one in enumerate(self.plan.passes):
            self._forward(one, angles, planes, lanes, run, fresh=number == 0)
        return planes

    def _forward(
        self, one: Pass, angles: np.ndarray, planes: np.ndarray, lanes: int, run: _Runner, *, fresh: bool
    ) -> None:
        fixed = (*one.tables, one.runs, one.outer_bits, one.num_qubits, lanes, fresh, angles, planes)
        _share(run, kernels.forward, fixed, len(planes) << len(one.outer_bits), one.num_operations, planes)

    def _read(self, planes: np.ndarray, lanes: int, values: np.ndarray, run: _Runner) -> None:
        """Adds what is read from the states to the rows' values."""
        observables = self.plan.observables
        if observables is None:
            (group,) = self._groups
            values += group.moments(self._probabilities(planes, lanes, 0, len(values), run))[0]
            return
        blocks = 1 << (self.plan.num_qubits - observables.num_qubits)
        by_block = values[:, None] if blocks == 1 else np.zeros((len(values), blocks, self._num_outputs))
        fixed = (*observables.tables, observables.num_qubits, blocks, lanes, planes, by_block)
        _share(run, readout_kernels.expectations, fixed, len(planes) * blocks, 4 * observables.num_families, planes)
        if blocks > 1:
            values += by_block.sum(axis=1)

    def _observe(self, planes: np.ndarray, lanes: int, upstream: np.ndarray, run: _Runner) -> np.ndarray:
        """The effective observable applied to the states."""
        duals = self._room(len(planes), lanes, copies=1)
        observables = self.plan.observables
        if observables is None:
            fixed: tuple[Any, ...] = (self._measured[0], self._output_of, lanes, planes, upstream, duals)
            _share(run, readout_kernels.observe_outcomes, fixed, len(planes), 4, planes)
        else:
            blocks = 1 << (self.plan.num_qubits - observables.num_qubits)
            fixed = (*observables.tables, observables.num_qubits, blocks, lanes, planes, upstream, duals)
            _share(run, readout_kernels.observe, fixed, len(planes) * blocks, 4 * observables.num_families, planes)
        return duals

    def _changed(self, planes: np.ndarray, number: int, angles: np.ndarray, lanes: int, run: _Runner) -> np.ndarray:
        """The states with a group's bases turned to Z."""
        if not self._changes[number]:
            return planes
        if self.plan.planes == 1 and any(one.is_complex for one in self._changes[number]):
            changed = np.stack([planes[:, 0], np.zeros_like(planes[:, 0])], axis=1)
        else:
            changed = planes.copy()
        for one in self._changes[number]:
            self._forward(one, angles, changed, lanes, run, fresh=False)
        return changed

    def _probabilities(self, planes: np.ndarray, lanes: int, number: int, rows: int, run: _Runner) -> np.ndarray:
        probabilities = np.zeros((rows, 2 ** len(self._measured[number])))
        fixed = (self._measured[number], lanes, planes, probabilities)
        _share(run, readout_kernels.outcome_probabilities, fixed, len(planes), 4, planes)
        return probabilities


def _share(run: _Runner, kernel: Any, fixed: tuple[Any, ...], units: int, operations: int, planes: np.ndarray) -> None:
    """Runs a kernel, whose last two arguments are a range of units, over all units."""
    if run is _alone:
        kernel(*fixed, 0, units)
    else:
        run(partial(kernel, *fixed), units, operations * planes.size * _SECONDS_PER_ELEMENT)


def _units(part: slice, lanes: int) -> slice:
    return slice(part.start // lanes, -(-part.stop // lanes))


def _moments(group: MeasurementGroup, counts: np.ndarray, shots: int) -> tuple[np.ndarray, np.ndarray]:
    if len(group.qubits) <= MOST_TABULATED_QUBITS:
        return group.moments(counts / shots)
    rows, outcomes = np.nonzero(counts)
    return group.sample_moments(
        Samples(rows, bits_of(outcomes, len(group.qubits)), counts[rows, outcomes], len(counts))
    )
