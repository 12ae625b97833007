"""Carries plans out: batches in parts, parts in threads, and states kept where a gradient will want them."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import psutil

from ..arguments import in_gibibytes
from ..program.readout import MOST_TABULATED_QUBITS, Samples, bits_of
from . import kernels, outcome_kernels, pauli_kernels, threads, whole_kernels
from .lowering import LoweredCircuit
from .plan import NO_MAP, Measurement, Pass, Plan, plan_of
from .shots import Measured, MeasurementT, Use, outcomes_of_shots, variances_of_shots
from .vectors import WIDTH

__all__ = ["HALF_PRECISION", "Simulator", "States", "values_of_shots"]

# Eight rows side by side fill vectors evenly; but a few rows fill fewer lanes, and larger states keep threads busier
# one by one. (Measured: two cores, AVX-512.)
_MOST_QUBITS_SIDE_BY_SIDE, _LEAST_ROWS_SIDE_BY_SIDE = 7, 4
_MOST_QUBITS_OF_LONG_BATCHES, _ROWS_OF_LONG_BATCHES = 11, 32
_BYTES_OF_A_SMALL_PART = 2**20  # stays in the cache between simulating and reading
_BYTES_OF_A_LARGE_PART = 2**28
_MOST_COUNTS_KEPT = 2**23
_SECONDS_PER_ELEMENT = 1.5e-10  # and operation; a rough guess that only decides about threads
_SECONDS_PER_DRAW = 5e-8

_Work = Callable[[slice, slice, bool], None]
"""On a part of a batch: its rows, its slabs, and whether its kernels are to be spread over the threads."""

HALF_PRECISION = "StatevectorBackend(precision='single'), which takes half of that, "
"""A way out of too little memory."""

_NOWHERE, _NOT_GIVEN = (0, False), (0, False, 0, 0)
_NO_VALUES = np.zeros((0, 0))


class States(NamedTuple):
    """The final states of a batch.

    Attributes:
        planes: Shape (slabs, planes, lanes * 2**n): element ``b * lanes + l`` is amplitude b of row ``slab * lanes + l``.
        rows: How many there are; the last slab may have room for more.
    """

    planes: np.ndarray
    rows: int


class Simulator:
    """Simulates one circuit.

    Args:
        circuit: What is simulated.
        dtype: Of the real and imaginary parts: float64 or float32.

    Raises:
        MemoryError: If one state is larger than this machine's memory.
    """

    measures_jointly = True

    def __init__(self, circuit: LoweredCircuit, dtype: Any = np.float64) -> None:
        self.dtype = np.dtype(dtype)
        self._num_qubits = circuit.num_qubits
        memory = psutil.virtual_memory().total
        self.plan: Plan = plan_of(circuit, self.dtype)
        self._bytes_of_row = self.plan.planes * self.dtype.itemsize << self._num_qubits
        self._require_memory(self._bytes_of_row, memory, "altogether")
        self.num_outputs = len(circuit.constants)
        self._constants = np.ascontiguousarray(circuit.constants, np.float64)
        self._static = self.static() if self.plan.whole else None
        self._num_outcomes = sum(2 ** len(measurement.qubits) for measurement in self.plan.measurements)

    @property
    def description(self) -> str:
        """What is simulated, in words."""
        amplitudes = "real" if self.plan.planes == 1 else "complex"
        return f"One state of {self._num_qubits} qubits, {1 << self._num_qubits} {amplitudes} amplitudes for each row."

    def static(self, table: Sequence[np.ndarray] = NO_MAP) -> np.ndarray:
        """What the kernels of whole states take; the table must outlive it, as must this simulator."""
        return self.plan.static(self._constants, table)

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
        lanes = self.lanes(rows)
        kept = States(self.room(-(-rows // lanes), lanes, copies=3), rows) if keep and self.keeps(rows) else None
        values = np.empty((rows, self.num_outputs))
        values[:] = self._constants

        def work(part: slice, slabs: slice, spread: bool) -> None:
            into = None if kept is None else kept.planes[slabs]
            self._evaluate(angles[part], lanes, values[part], spread, into)

        self.in_parts(rows, lanes, work, sweeps=1)
        return values, kept

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: States | None, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected.

        Args:
            angles: As in :meth:`values`.
            upstream: Shape (N, M), float64, contiguous: the gradient by the values.
            states: What :meth:`values` kept for the same angles, or None. They stay as they are; states of another
                number of rows (of one row that has since been repeated) are not used.
            selected: Shape (A,), bool.
        """
        rows = len(angles)
        lanes = self.lanes(rows)
        if states is not None and states.rows != rows:
            states = None
        gradients = np.zeros(angles.shape)
        passes = list(self.plan.passes)
        while passes and not np.count_nonzero(selected[passes[0].columns]):
            passes.pop(0)

        def work(part: slice, slabs: slice, spread: bool) -> None:
            if states is None:
                planes = self._simulate(angles[part], lanes, spread)
            else:
                planes = states.planes[slabs]
                planes = planes.copy() if len(passes) > 1 else planes
            duals = self._observe(planes, lanes, upstream[part], spread)
            if self.plan.whole:
                whole_kernels.backward(
                    self._static, self._num_qubits, lanes, selected, _NOT_GIVEN, upstream[part], angles[part], planes,
                    duals, gradients[part], 0, len(planes),
                )  # fmt: skip
                return
            for number, one in reversed(list(enumerate(passes))):
                blocks = 1 << len(one.outer_bits)
                by_block = np.zeros((part.stop - part.start, blocks, angles.shape[1]))
                arguments = (
                    *one.arrays, one.segments, one.outer_bits, one.num_qubits, number == 0,
                    selected, angles[part], planes, duals, by_block,
                )  # fmt: skip
                seconds = 4 * one.num_operations * planes.size * _SECONDS_PER_ELEMENT
                _compute(kernels.sweep, arguments, len(planes) * blocks, seconds, spread)
                gradients[part] += by_block.sum(axis=1)

        if passes:
            self.in_parts(rows, lanes, work, sweeps=5)
        return gradients

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, Measured[Measurement] | None]:
        """Values from ``shots`` shots of each measurement, and their squared standard errors, both of shape (N, M).

        And the counts, unless they take much memory.
        """
        return values_of_shots(
            lambda use: self._measure(angles, shots, seed, use),
            lambda measurement, counts: self._moments(measurement, counts, shots),
            constants=self._constants,
            rows=len(angles),
            num_outcomes=self._num_outcomes,
            shots=shots,
        )

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Measured[Measurement] | None,
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
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Measured[Measurement] | None,
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
            [each.group for each in self.plan.measurements],
            rows=len(angles),
            shots=shots,
        )

    def _measure(
        self, angles: np.ndarray, shots: int | None, seed: np.random.SeedSequence | None, use: Use[Measurement]
    ) -> None:
        """Hands on the counts of each measurement's outcomes, with its rows; or their probabilities."""
        lanes = self.lanes(len(angles))
        key = None if seed is None else seed.generate_state(2, np.uint32).astype(np.uint64)

        def work(part: slice, slabs: slice, spread: bool) -> None:
            planes = self._simulate(angles[part], lanes, spread)
            for number, measurement in enumerate(self.plan.measurements):
                turned = planes
                if measurement.basis_changes:
                    turned = self._with_bases_changed(planes, measurement.basis_changes, angles[part], lanes, spread)
                probabilities = _probabilities(turned, lanes, measurement, part.stop - part.start, spread)
                if shots is None:
                    use(measurement, part, probabilities)
                    continue
                counts = np.empty(probabilities.shape, np.int64)
                arguments = (probabilities, shots, key, number, part.start, counts)
                _compute(outcome_kernels.draw_counts, arguments, len(counts), counts.size * _SECONDS_PER_DRAW, spread)
                if counts.min() < 0:
                    raise FloatingPointError(
                        "The probabilities of a circuit's outcomes are not finite; please report this."
                    )
                use(measurement, part, counts)

        self.in_parts(len(angles), lanes, work, sweeps=1, more=self._num_outcomes * len(angles) * _SECONDS_PER_DRAW)

    # Sharing the work out

    def lanes(self, rows: int) -> int:
        """How many rows stand side by side: a matter of the sizes alone, so that results depend on nothing else."""
        n = self._num_qubits
        if 1 << n < WIDTH or (n <= _MOST_QUBITS_SIDE_BY_SIDE and rows >= _LEAST_ROWS_SIDE_BY_SIDE):
            return WIDTH
        return WIDTH if n <= _MOST_QUBITS_OF_LONG_BATCHES and rows >= _ROWS_OF_LONG_BATCHES else 1

    def keeps(self, rows: int) -> bool:
        """Whether the states of so many rows are few enough to be kept for a gradient."""
        lanes = self.lanes(rows)
        return -(-rows // lanes) * lanes * self._bytes_of_row <= _BYTES_OF_A_LARGE_PART

    def seconds(self, slabs: int, lanes: int, sweeps: int) -> float:
        """Roughly how long it takes to go so many times through small states."""
        elements = slabs * lanes * self._bytes_of_row // self.dtype.itemsize
        return sweeps * elements * (self.plan.passes[0].num_operations + 2) * _SECONDS_PER_ELEMENT

    def in_parts(self, rows: int, lanes: int, work: _Work, *, sweeps: int, more: float = 0.0) -> None:
        """Calls ``work`` for parts of the batch: small states' in threads, large ones' in turn, each with all threads."""
        if not self.plan.whole:
            size = max(1, _BYTES_OF_A_LARGE_PART // self._bytes_of_row)
            for start in range(0, rows, size):
                part = slice(start, min(start + size, rows))  # of slabs too: large states lie one by one
                work(part, part, True)
            return
        slabs = -(-rows // lanes)
        size = max(1, _BYTES_OF_A_SMALL_PART // (lanes * self._bytes_of_row))
        seconds = self.seconds(slabs, lanes, sweeps) + more
        if slabs <= size and seconds < 2 * threads.LEAST_SECONDS:
            work(slice(0, rows), slice(0, slabs), False)
            return

        def of_thread(start: int, stop: int) -> None:
            for first in range(start, stop, size):
                last = min(first + size, stop)
                work(slice(first * lanes, min(last * lanes, rows)), slice(first, last), False)

        threads.in_parallel(of_thread, slabs, seconds)

    def room(self, slabs: int, lanes: int, *, copies: int) -> np.ndarray:
        """Memory for states; zeros for large ones, whose first pass touches only what is not zero."""
        size = slabs * lanes * self._bytes_of_row
        if size >= _BYTES_OF_A_LARGE_PART // 2:
            self._require_memory(copies * size, psutil.virtual_memory().available, "free")
        make = np.empty if self.plan.whole else np.zeros
        return make((slabs, self.plan.planes, lanes << self._num_qubits), self.dtype)

    def _require_memory(self, needed: int, there: int, what: str) -> None:
        if needed > there:
            half_fits = self.dtype == np.float64 and needed // 2 <= there
            raise MemoryError(
                f"Exact simulation of {self._num_qubits} qubits needs {in_gibibytes(needed)} of memory, and this machine "
                f"has {in_gibibytes(there)} {what}; use fewer qubits, {HALF_PRECISION if half_fits else ''}"
                "backend=AerSimulator(method='matrix_product_state'), which needs little where entanglement is low, or "
                "hardware."
            )

    # Steps

    def _evaluate(
        self, angles: np.ndarray, lanes: int, values: np.ndarray, spread: bool, into: np.ndarray | None
    ) -> None:
        """Fills in the rows' values, and ``into`` their states."""
        observables = self.plan.observables
        if self.plan.whole and observables is not None:
            planes = self.room(-(-len(angles) // lanes), lanes, copies=1) if into is None else into
            _through(self._static, self._num_qubits, lanes, angles, planes, values)
            return
        planes = self._simulate(angles, lanes, spread, into)
        if observables is None:
            (measurement,) = self.plan.measurements
            probabilities = _probabilities(planes, lanes, measurement, len(values), spread)
            outcome_kernels.add_by_output(measurement.output_of, probabilities, 1, values)
            return
        blocks = 1 << (self._num_qubits - observables.num_qubits)
        by_block = np.zeros((len(values), blocks, self.num_outputs))
        arguments = (*observables.arrays, observables.num_qubits, blocks, planes, by_block)
        seconds = 4 * len(observables.arrays[0]) * planes.size * _SECONDS_PER_ELEMENT
        _compute(pauli_kernels.expectations, arguments, len(planes) * blocks, seconds, spread)
        values += by_block.sum(axis=1)

    def _simulate(self, angles: np.ndarray, lanes: int, spread: bool, into: np.ndarray | None = None) -> np.ndarray:
        planes = self.room(-(-len(angles) // lanes), lanes, copies=1) if into is None else into
        _apply(self.plan.passes, angles, planes, lanes, spread, fresh=True)
        return planes

    def _observe(self, planes: np.ndarray, lanes: int, upstream: np.ndarray, spread: bool) -> np.ndarray:
        """The effective observable applied to the states; nothing where the kernel does that by itself."""
        observables = self.plan.observables
        if self.plan.whole and observables is not None:
            return planes[:0]
        duals = self.room(len(planes), lanes, copies=1)
        seconds = 4 * planes.size * _SECONDS_PER_ELEMENT
        if observables is None:
            (measurement,) = self.plan.measurements
            of_outcomes = (measurement.qubits, measurement.output_of, lanes, planes, upstream, duals)
            _compute(outcome_kernels.observe, of_outcomes, len(planes), seconds, spread)
        else:
            blocks = 1 << (self._num_qubits - observables.num_qubits)
            arguments = (*observables.arrays, observables.num_qubits, blocks, planes, upstream, duals)
            seconds *= len(observables.arrays[0])
            _compute(pauli_kernels.observe, arguments, len(planes) * blocks, seconds, spread)
        return duals

    def _with_bases_changed(
        self, planes: np.ndarray, changes: tuple[Pass, ...], angles: np.ndarray, lanes: int, spread: bool
    ) -> np.ndarray:
        """The states as they are to be measured in Z."""
        if self.plan.planes == 1 and any(one.is_complex for one in changes):
            changed = np.stack([planes[:, 0], np.zeros_like(planes[:, 0])], axis=1)
        else:
            changed = planes.copy()
        _apply(changes, angles, changed, lanes, spread, fresh=False)
        return changed

    def _moments(self, measurement: Measurement, counts: np.ndarray, shots: int) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of the scores over the shots, shape (N, M)."""
        group, output_of = measurement.group, measurement.output_of
        if output_of is not None:  # an indicator is its own square
            first = np.zeros((len(counts), self.num_outputs))
            outcome_kernels.add_by_output(output_of, counts, shots, first)
            return first, first
        if len(measurement.qubits) > MOST_TABULATED_QUBITS:
            rows, outcomes = np.nonzero(counts)
            bits = bits_of(outcomes, len(measurement.qubits))
            return group.sample_moments(Samples(rows, bits, counts[rows, outcomes], len(counts)))
        scores, squares = measurement.scores
        # One row at a time, to the same bits for a row whatever others there are (BLAS adds in another order for more).
        frequencies = (counts / shots)[:, None]
        return (frequencies @ scores)[:, 0], (frequencies @ squares)[:, 0]


def values_of_shots(
    measure: Callable[[Use[MeasurementT]], None],
    moments: Callable[[MeasurementT, np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    constants: np.ndarray,
    rows: int,
    num_outcomes: int,
    shots: int,
) -> tuple[np.ndarray, np.ndarray, Measured[MeasurementT] | None]:
    """Values and their squared standard errors, both of shape (N, M); and the counts, unless they take much memory.

    Args:
        measure: Hands on the counts of all measurements, each for parts of the batch.
        moments: First and second moments of a measurement's scores over the shots, shape (N, M), from its counts.
        constants: Shape (M,): what is added to the values.
        rows: The number N of rows.
        num_outcomes: How many outcomes the measurements have together.
        shots: Of each measurement.
    """
    narrow = np.min_scalar_type(shots)  # memory that is written for the first time costs more than the conversion
    kept: Measured[MeasurementT] | None = [] if num_outcomes * rows <= _MOST_COUNTS_KEPT else None
    values = np.empty((rows, len(constants)))
    values[:] = constants
    variances = np.zeros(values.shape)
    degrees = shots - 1.0 if shots > 1 else math.nan  # one shot says nothing about the variance

    def use(measurement: MeasurementT, part: slice, counts: np.ndarray) -> None:
        first, second = moments(measurement, counts)
        values[part] += first
        variances[part] += np.maximum(second - first**2, 0.0) / degrees
        if kept is not None:
            kept.append((measurement, part, counts.astype(narrow)))

    measure(use)
    return values, variances, kept


def _apply(
    passes: Iterable[Pass], angles: np.ndarray, planes: np.ndarray, lanes: int, spread: bool, *, fresh: bool
) -> None:
    """Takes the states through the passes; ``fresh``: from all qubits in 0, whatever the memory holds."""
    for number, one in enumerate(passes):
        begin = fresh and number == 0
        if not len(one.segments):
            _through(one.static, one.num_qubits, lanes, angles, planes, fresh=begin)
            continue
        arguments = (*one.arrays, one.segments, one.outer_bits, one.num_qubits, begin, angles, planes)
        seconds = one.num_operations * planes.size * _SECONDS_PER_ELEMENT
        _compute(kernels.forward, arguments, len(planes) << len(one.outer_bits), seconds, spread)


def _through(
    static: np.ndarray | None,
    num_qubits: int,
    lanes: int,
    angles: np.ndarray,
    planes: np.ndarray,
    values: np.ndarray = _NO_VALUES,
    *,
    fresh: bool = True,
) -> None:
    """Takes small states through their operations, and fills in the values where ``static`` has observables."""
    whole_kernels.forward(
        static, num_qubits, lanes, fresh, False, 0, _NOWHERE, _NOWHERE, angles, planes, values, _NOWHERE, 0, len(planes)
    )


def _probabilities(planes: np.ndarray, lanes: int, measurement: Measurement, rows: int, spread: bool) -> np.ndarray:
    probabilities = np.zeros((rows, 1 << len(measurement.qubits)))
    arguments = (measurement.qubits, lanes, planes, probabilities)
    seconds = 4 * planes.size * _SECONDS_PER_ELEMENT
    _compute(outcome_kernels.add_probabilities, arguments, len(planes), seconds, spread)
    return probabilities


def _compute(kernel: Any, arguments: tuple[Any, ...], size: int, seconds: float, spread: bool) -> None:
    """Calls a kernel, whose last two arguments are a range of blocks, for all of them; ``spread``: over the threads."""
    if spread:
        threads.in_parallel(partial(kernel, *arguments), size, seconds)
    else:
        kernel(*arguments, 0, size)
