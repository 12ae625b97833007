"""What is to be measured in one call: cut into jobs that a service takes, priced, named for the ledger, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, astuple, dataclass, replace
from functools import cached_property
from itertools import chain, count, islice, repeat
from typing import Any, TypeVar

import numpy as np

from ...arguments import number_from
from ...program.compiled import Program
from ...shots.covariance import Covariance
from ..base import Charge, Estimate, Request
from ..passport import PackedRows, Passport
from ..results import Arrays, Asked, bytes_of, estimate_from_samples, pubs_of, samples_of
from .device_programs import DeviceCircuit, DeviceProgram
from .ledger import Entry, Job, digest, said_by_jobs
from .packing import rows_apart
from .prices import Price
from .sending import Task

__all__ = ["Limits", "Measurement", "Rows", "Workload", "apart", "estimate_from_arrays", "packed", "seed_of"]

_OfPub = TypeVar("_OfPub")


@dataclass(frozen=True)
class Limits:
    """What one job may hold. The defaults are IBM's.

    Attributes:
        executions: Bound circuits times shots.
        two_qubit_gates: Of one circuit.
        qpu_seconds: Time on the quantum processor.
        megabytes: Of parameter values.
    """

    executions: int = 10_000_000
    two_qubit_gates: int = 5_000_000
    qpu_seconds: float = 3 * 3600.0
    megabytes: float = 200.0  # the service takes 300 in all

    def __post_init__(self) -> None:
        for name, least in {"executions": 1, "two_qubit_gates": 0}.items():
            whole = number_from(f"limits: {name}", getattr(self, name), least=least, whole=True)
            object.__setattr__(self, name, whole)
        for name in ("qpu_seconds", "megabytes"):
            if not number_from(f"limits: {name}", getattr(self, name)):
                raise ValueError(f"limits: {name}: got 0, with which no job could be sent; expected more.")


@dataclass(frozen=True, eq=False)
class Measurement:
    """A request with shots a circuit, and its program in the device's gates.

    Attributes:
        request: The request.
        program: Its program.
        shots: Of each row.
        pieces: Where circuits are executed in copies side by side: in how many pieces a row's shots are taken.
        turned_by: The seed by which the region is chosen that the first row begins at; None: the request's.
    """

    request: Request
    program: DeviceProgram
    shots: int
    _: KW_ONLY
    pieces: int | None = None
    turned_by: np.random.SeedSequence | None = None

    @property
    def circuits(self) -> Sequence[DeviceCircuit]:
        """The circuits that it takes."""
        return self.program.circuits

    @cached_property
    def key(self) -> str:
        """What tells it from others, in every process."""
        pieces = () if self.pieces is None else (self.pieces,)
        return digest(*self.program.circumstances, self.shots, self.request.angles, seed_of(self.request), *pieces)

    def num_executed(self, number: int) -> int:
        """How many sets of angles the circuit of that number is executed for."""
        return self.packed_rows[number].num_sets if self.packed_rows else len(self.request.angles)

    @cached_property
    def packed_rows(self) -> tuple[PackedRows, ...]:
        """For each circuit, which row runs where, if it is executed in copies side by side."""
        if self.pieces is None:
            return ()
        # Not the seed itself, which decides about the shots; a number of its own, so that training and evaluating in turns
        # do not keep rows in step with regions.
        seed = self.request.seed if self.turned_by is None else self.turned_by
        turn = int(seed.generate_state(2)[1]) if self.program.rotates else 0
        return tuple(
            PackedRows(
                rows=len(self.request.angles),
                pieces=self.pieces,
                shots=-(-self.shots // self.pieces),
                bits=0 if circuit.observables else circuit.bound.circuit.num_clbits,
                first=turn % len(circuit.layouts),
                layouts=circuit.layouts,
            )
            for circuit in self.circuits
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one circuit of a measurement, from ``start`` to ``stop``, and what each of them takes.

    Where the circuit is executed in copies side by side, a row here is a set of copies, which are several rows' of the
    request.

    Attributes:
        measurement: What they are part of.
        number: The circuit's, among those of the measurement.
        start: The first row.
        stop: The row after the last.
        executions: Of each row.
        seconds: On the quantum processor, of each execution.
        bytes: Of each row's parameter values.
    """

    measurement: Measurement
    number: int
    start: int
    stop: int
    _: KW_ONLY
    executions: int
    seconds: float
    bytes: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def circuit(self) -> DeviceCircuit:
        """The circuit."""
        return self.measurement.circuits[self.number]

    @property
    def num_pubs(self) -> int:
        """How many PUBs they are: without parameters there is nothing to broadcast over, and each row is one."""
        return 1 if self.circuit.bound.parameters else len(self)

    @property
    def packed(self) -> PackedRows | None:
        """Which row of the request runs where, if the circuit is executed in copies side by side."""
        return self.measurement.packed_rows[self.number] if self.measurement.packed_rows else None

    @property
    def num_begun(self) -> int:
        """How many rows of the request begin here: each begins somewhere, once."""
        if (packed := self.packed) is None:
            return len(self)
        return int(((packed.starts >= self.start) & (packed.starts < self.stop)).sum())

    def pubs(self) -> list[tuple[Any, ...]]:
        """The PUBs."""
        angles = self.measurement.request.angles
        if (packed := self.packed) is not None:
            assert self.circuit.packed is not None
            return [*self.circuit.packed.pubs(angles, packed, self.start, self.stop)]
        return pubs_of(self.circuit.bound, angles[self.start : self.stop], self.circuit.observables)

    def asked(self, *, shots: int, extrapolates: bool) -> list[Asked]:
        """What the PUBs ask for, with so many shots of each parameter set, as they come back from a Sampler."""
        circuit, sets = self.circuit, len(self) // self.num_pubs
        copies = len(circuit.layouts)
        if circuit.observables:
            pub = Asked((copies * len(circuit.observables), sets), extrapolates=extrapolates)
        else:
            shape = (sets,) if circuit.bound.parameters else ()
            pub = Asked(shape, shots=shots, bits=copies * circuit.bound.circuit.num_clbits)
        return [pub] * self.num_pubs


def packed(
    circuits: Sequence[Rows], limits: Limits, *, executions_of_job: int, seconds_of_job: float
) -> list[list[Rows]]:
    """The rows of each job, filling one job after the other, which takes as few as there can be for equal rows.

    Args:
        circuits: All rows of each circuit.
        limits: What a job may hold.
        executions_of_job: What a job executes besides its rows (calibration circuits).
        seconds_of_job: What a job takes on the quantum processor besides its rows.

    Raises:
        ValueError: If a single row is more than a job may hold.
    """
    jobs: list[list[Rows]] = []
    executions, seconds, size = executions_of_job, seconds_of_job, 0.0
    for rows in circuits:
        seconds_of_row = rows.executions * rows.seconds
        if (
            rows.executions + executions_of_job > limits.executions
            or seconds_of_row + seconds_of_job > limits.qpu_seconds
        ):
            raise ValueError(
                f"shots: one circuit with its shots is {rows.executions:,} executions and some {seconds_of_row:,.0f} s, "
                f"expected at most {limits.executions:,} and {limits.qpu_seconds:,.0f} s a job; take fewer shots and "
                "average several calls. Nothing was submitted."
            )
        start = rows.start
        while start < rows.stop:
            room = min(
                (limits.executions - executions) // rows.executions,
                int((limits.qpu_seconds - seconds) / seconds_of_row) if seconds_of_row else len(rows),
                int((limits.megabytes * 1e6 - size) / rows.bytes) if rows.bytes else len(rows),
            )
            if not jobs or (jobs[-1] and room < 1):
                jobs.append([])
                executions, seconds, size = executions_of_job, seconds_of_job, 0.0
                continue
            stop = start + min(max(room, 1), rows.stop - start)
            jobs[-1].append(replace(rows, start=start, stop=stop))
            executions += (stop - start) * rows.executions
            seconds += (stop - start) * seconds_of_row
            size += (stop - start) * rows.bytes
            start = stop
    return jobs


@dataclass(frozen=True, eq=False, kw_only=True)
class Workload:
    """What is to be measured in one call.

    Attributes:
        measurements: Of the requests, in their order.
        shots: Shots a circuit.
        price: What they cost, or what pieces of them cost.
        pieces: As in :class:`Measurement`.
        limits: What one job may hold.
        extrapolates: Whether an Estimator's standard errors come from a fit.
        run: The name of the run.
        passport: Where and how all is measured, without layouts and jobs.
    """

    measurements: Sequence[Measurement]
    shots: int
    price: Price
    limits: Limits
    extrapolates: bool
    run: str
    passport: Passport
    pieces: int | None = None

    @cached_property
    def jobs(self) -> list[list[Rows]]:
        """What each job measures.

        Raises:
            ValueError: If a single row is more than a job may hold.
        """
        rows = [
            Rows(
                measurement,
                number,
                0,
                measurement.num_executed(number),
                executions=circuit.bases * self.price.executions,
                seconds=self.price.delay + circuit.duration,
                bytes=8 * len(circuit.bound.parameters) * len(circuit.layouts),
            )
            for measurement in self.measurements
            for number, circuit in enumerate(measurement.circuits)
        ]
        price = self.price
        return packed(rows, self.limits, executions_of_job=price.executions_of_job, seconds_of_job=price.seconds_of_job)

    @cached_property
    def tasks(self) -> list[Task]:
        """The jobs as they are sent."""
        return list(map(self._task, self.jobs))

    def charge(self) -> Charge:
        """What all jobs cost together."""
        costs = [self._cost_of(job) for job in self.jobs]
        return Charge(len(costs), sum(executions for executions, _ in costs), sum(seconds for _, seconds in costs))

    def evaluations(self) -> list[tuple[str, str, dict[str, Any], bytes]]:
        """Each measurement as the ledger notes it: key, run, description and angles."""
        asked = self._of_circuits(task.asked or () for task in self.tasks)
        places = self._of_circuits(zip(repeat(task.job.key), count()) for task in self.tasks)
        return [
            (
                measurement.key,
                self.run,
                {
                    "fingerprint": measurement.program.fingerprint,
                    "run": self.run,
                    "primitive": self.passport.primitive,
                    "shots": self.shots,
                    "seed": seed_of(measurement.request),
                    "parts": places[measurement],
                    "asked": [[astuple(pub) for pub in pubs] for pubs in asked[measurement]],
                    "outputs": [circuit.outputs for circuit in measurement.circuits],
                    "passport": asdict(self._passport_of(measurement, [])),
                },
                bytes_of([[measurement.request.angles]]),
            )
            for measurement in self.measurements
        ]

    def estimates(self, results: Sequence[Arrays], entries: Sequence[Entry]) -> list[Estimate]:
        """The values of each measurement.

        Args:
            results: What each job has brought back.
            entries: The jobs as the ledger knows them.
        """
        arrays = self._of_circuits(results)
        return [
            estimate_from_arrays(
                measurement.request.program,
                len(measurement.request.angles),
                apart(arrays[measurement], measurement.packed_rows, self.shots),
                [circuit.outputs for circuit in measurement.circuits],
                self.shots,
                self._passport_of(measurement, entries),
            )
            for measurement in self.measurements
        ]

    def _task(self, job: Sequence[Rows]) -> Task:
        key = digest([(rows.measurement.key, rows.number, rows.start, rows.stop) for rows in job])
        circuits = sum(rows.num_begun * rows.circuit.bases for rows in job)
        executions, seconds = self._cost_of(job)
        asked = [rows.asked(shots=self.price.executions, extrapolates=self.extrapolates) for rows in job]
        return Task(
            Job(key, circuits, circuits * self.shots, executions, estimated_seconds=seconds),
            lambda: [pub for rows in job for pub in rows.pubs()],
            self.shots if self.pieces is None else -(-self.shots // self.pieces),
            seed=int(key[:8], 16) >> 1,
            asked=list(chain.from_iterable(asked)),
        )

    def _cost_of(self, job: Sequence[Rows]) -> tuple[int, float]:
        """Executions, and seconds on the quantum processor, of a job."""
        executions, seconds = self.price.executions_of_job, self.price.seconds_of_job
        for rows in job:
            executions += len(rows) * rows.executions
            seconds += len(rows) * rows.executions * rows.seconds
        return executions, seconds

    def _of_circuits(self, jobs: Iterable[Iterable[_OfPub]]) -> dict[Measurement, list[list[_OfPub]]]:
        """What belongs to each PUB of each job, as lists of each circuit of each measurement, in the order of the rows."""
        by_circuit: dict[Measurement, list[list[_OfPub]]] = {m: [[] for _ in m.circuits] for m in self.measurements}
        for job, of_pubs in zip(self.jobs, jobs, strict=True):
            remaining = iter(of_pubs)
            for rows in job:
                by_circuit[rows.measurement][rows.number] += islice(remaining, rows.num_pubs)
        return by_circuit

    def _passport_of(self, measurement: Measurement, entries: Sequence[Entry]) -> Passport:
        layouts = tuple(circuit.layout for circuit in measurement.circuits)
        said = said_by_jobs(entries)
        return replace(self.passport, layouts=layouts, packing=measurement.packed_rows, **said)


def apart(pubs: list[Arrays], packed_rows: Sequence[PackedRows], shots: int) -> list[Arrays]:
    """The arrays of each circuit, as if its rows had not been executed side by side.

    Args:
        pubs: For each circuit, the arrays of its PUBs in the order of the rows, or of their sets.
        packed_rows: For each circuit, which row ran where; empty: each by itself.
        shots: That were asked for of each row.

    Raises:
        WrongResult: If they are those of other rows.
    """
    if not packed_rows:
        return pubs
    return [rows_apart(arrays, rows, shots) for arrays, rows in zip(pubs, packed_rows, strict=True)]


def seed_of(request: Request) -> list[list[int]]:
    """The seed of an evaluation as numbers: its entropy, and its place in the stream."""
    entropy = request.seed.entropy
    parts = list(entropy) if isinstance(entropy, Sequence) else [0 if entropy is None else entropy]
    return [[int(part) for part in parts], [int(part) for part in request.seed.spawn_key]]


def estimate_from_arrays(
    program: Program,
    rows: int,
    pubs: Sequence[Arrays],
    outputs: Sequence[Sequence[int]],
    shots: int,
    passport: Passport | None,
) -> Estimate:
    """Values and variances from what a primitive returned.

    Args:
        program: The program.
        rows: The number of rows.
        pubs: For each of its circuits, the arrays of its PUBs in the order of the rows.
        outputs: For each, the outputs that an Estimator's values are; empty for a Sampler's bits.
        shots: Shots a circuit that were asked for.
        passport: Where the results come from.
    """
    readout = program.readout
    if not any(map(len, outputs)):
        samples = [
            samples_of([arrays[0] for arrays in results], rows, len(group.qubits))
            for results, group in zip(pubs, readout.groups, strict=True)
        ]
        return replace(estimate_from_samples(program, samples, rows), passport=passport)
    values = np.broadcast_to(readout.constants, (rows, readout.num_outputs)).copy()
    variances = np.zeros_like(values)
    for results, columns in zip(pubs, map(list, outputs), strict=True):
        expectations, errors = (
            np.concatenate([arrays[part].reshape(len(columns), -1) for arrays in results], axis=1).T for part in (0, 1)
        )
        values[:, columns] += expectations
        variances[:, columns] = errors**2
    circuits = rows * len(readout.groups)
    covariance = Covariance.of_independent(variances, shots)
    return Estimate(values, variances, circuits, circuits * shots, passport=passport, covariance=covariance)
