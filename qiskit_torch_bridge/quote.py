"""What training steps cost, before they are taken."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .bridge.method import Method
from .program.compiled import Program

__all__ = ["Quote", "quote_step"]


@dataclass(frozen=True)
class Quote:
    """What one training step costs; quotes can be added, and multiplied by a number of steps.

    Numbers are totals. Calibrations of error mitigation, which are measured once, are in those of one step as in those of
    all steps: ``quote * steps`` multiplies the rest, and ``first + second`` counts calibrations that both need once.
    :attr:`once` says how much that is.

    Attributes:
        calls: Backend calls: one forward and, where a gradient needs circuits, one backward; where there is a queue,
            one for both; with an instruction that is only defined for numbers on a simulator, as many for each distinct row
            of inputs.
        circuits: Circuits measured, of the values and of the gradients together, however many of them are executed at once.
        shots: Shots spent on all of them; 0 for exact values.
        executions: How often a circuit is executed in all: the shots, and what mitigation methods add to them; fewer where
            an executed circuit has copies for several rows side by side (``packing`` of IBM's devices).
        jobs: Jobs that wait in a queue; 0 for simulators.
        qpu_seconds: The estimated time on the quantum processor, which is what IBM bills; 0 for simulators. See
            :mod:`qiskit_torch_bridge.backends.ibm.prices` for the formula and what it leaves out.
    """

    calls: int = 0
    circuits: int = 0
    shots: int = 0
    executions: int = 0
    jobs: int = field(default=0, kw_only=True)
    qpu_seconds: float = field(default=0.0, kw_only=True)
    _calibrations: tuple[tuple[Hashable, Quote], ...] = field(default=(), kw_only=True, repr=False)

    @property
    def once(self) -> Quote:
        """What is measured once a calibration of the device, and has not been measured yet by this process.

        One that a ledger already has from another process is not paid again.
        """
        return _total([quote for _, quote in self._calibrations])

    def __add__(self, other: Quote) -> Quote:
        calibrations = dict((*self._calibrations, *other._calibrations))
        once = _total([self._of_steps, other._of_steps, *calibrations.values()])
        return replace(once, _calibrations=tuple(calibrations.items()))

    def __mul__(self, times: int) -> Quote:
        if not times:
            return Quote()
        steps = Quote(**{name: number * times for name, number in self._of_steps._numbers.items()})
        return replace(_total([steps, self.once]), _calibrations=self._calibrations)

    __rmul__ = __mul__

    @property
    def _numbers(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name != "_calibrations"}

    @property
    def _of_steps(self) -> Quote:
        """The part that each step costs anew."""
        if not self._calibrations:
            return self
        once = self.once._numbers
        return Quote(**{name: number - once[name] for name, number in self._numbers.items()})


def _total(quotes: Sequence[Quote]) -> Quote:
    """The sum of their numbers."""
    names = Quote()._numbers
    return Quote(**{name: sum((getattr(quote, name) for quote in quotes), start) for name, start in names.items()})


def quote_step(program: Program, method: Method, rows: int, trained: Collection[int]) -> Quote:
    """What a forward call costs, and the backward that follows it if anything is trained.

    Args:
        program: The compiled circuit.
        method: How it is measured.
        rows: The number of rows.
        trained: The sources whose gradient is needed: 0 for the inputs, 1 + g for weight group g.
    """
    columns = program.select(
        [any(source in trained for source in group.sources) for group in program.angle_map.groups]
    ).columns
    points = method.rule.num_points(program, columns) if columns else 0
    backend, shots = method.backend, method.shots
    circuits = rows * backend.circuits_per_row(program) * (1 + points)
    if not circuits:
        return Quote()
    example = program.example()
    parts = [1] * rows if program.blocks else [rows]
    if backend.queues:
        calls = [[(example, part * (1 + points)) for part in parts]]
    else:
        calls = [[(example, part * times)] for part in parts for times in (1, points) if times]
    charges = [backend.charge(call, shots=shots) for call in calls]
    step = Quote(
        len(calls),
        circuits,
        circuits * backend.shots_of_circuit(program, shots),
        sum(charge.executions for charge in charges),
        jobs=sum(charge.jobs for charge in charges),
        qpu_seconds=sum(charge.qpu_seconds for charge in charges),
    )
    calibrations = tuple(
        (key, Quote(0, circuits, asked, charge.executions, jobs=charge.jobs, qpu_seconds=charge.qpu_seconds))
        for key, (circuits, asked, charge) in backend.charge_once(calls[0], shots=shots).items()
    )
    return replace(_total([step, *(quote for _, quote in calibrations)]), _calibrations=calibrations)
