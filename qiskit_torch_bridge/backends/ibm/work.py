"""Cutting evaluations into jobs that a service takes, and putting the results together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...arguments import number_from

__all__ = ["Limits", "Piece", "Stretch", "packed"]


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


@dataclass(frozen=True)
class Stretch:
    """Rows of one circuit that are to be run.

    Attributes:
        request: The number of the evaluation that they belong to.
        unit: The number of the circuit among those of its program.
        rows: How many there are.
        executions: Of each row.
        seconds: On the quantum processor, of each row.
        bytes: Of each row's parameter values.
    """

    request: int
    unit: int
    rows: int
    executions: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Piece:
    """Part of a stretch, within one job: the rows from ``start`` to ``stop``."""

    request: int
    unit: int
    start: int
    stop: int


def packed(
    stretches: Sequence[Stretch], limits: Limits, *, executions_of_job: int, seconds_of_job: float
) -> list[list[Piece]]:
    """The pieces of each job, filling one job after the other, which takes as few as there can be for equal rows.

    Args:
        stretches: What is to be run.
        limits: What a job may hold.
        executions_of_job: What a job executes besides its rows (calibration circuits).
        seconds_of_job: What a job takes on the quantum processor besides its rows.

    Raises:
        ValueError: If a single row is more than a job may hold.
    """
    jobs: list[list[Piece]] = []
    executions, seconds, size = executions_of_job, seconds_of_job, 0.0
    for stretch in stretches:
        if (
            stretch.executions + executions_of_job > limits.executions
            or stretch.seconds + seconds_of_job > limits.qpu_seconds
        ):
            raise ValueError(
                f"shots: one circuit with its shots is {stretch.executions:,} executions and some {stretch.seconds:,.0f} s, "
                f"expected at most {limits.executions:,} and {limits.qpu_seconds:,.0f} s a job; take fewer shots and "
                "average several calls. Nothing was submitted."
            )
        start = 0
        while start < stretch.rows:
            room = min(
                (limits.executions - executions) // stretch.executions,
                int((limits.qpu_seconds - seconds) / stretch.seconds) if stretch.seconds else stretch.rows,
                int((limits.megabytes * 1e6 - size) / stretch.bytes) if stretch.bytes else stretch.rows,
            )
            if not jobs or (jobs[-1] and room < 1):
                jobs.append([])
                executions, seconds, size = executions_of_job, seconds_of_job, 0.0
                continue
            rows = min(max(room, 1), stretch.rows - start)
            jobs[-1].append(Piece(stretch.request, stretch.unit, start, start + rows))
            start += rows
            executions += rows * stretch.executions
            seconds += rows * stretch.seconds
            size += rows * stretch.bytes
    return jobs
