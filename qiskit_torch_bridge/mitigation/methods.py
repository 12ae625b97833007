"""What every method of error mitigation does: say what is measured in place of a program, and what is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, TypeVar

from ..arguments import instance_of
from ..backends.base import Backend, Estimate
from ..program.compiled import Program

__all__ = ["Calibration", "Combine", "Mitigation", "MitigationPlan", "plan_of"]

_Item = TypeVar("_Item")
Combine: TypeAlias = Callable[[Sequence[Estimate], Sequence[Estimate]], Estimate]
"""From the estimates of the programs, and those of the calibrations, to the estimate of the program."""


@dataclass(frozen=True)
class Calibration:
    """What is measured once a calibration of the device, at angles of 0.

    Attributes:
        program: A variant of the program.
        rows: How many rows of it, each with a circuit's shots.
    """

    program: Program
    rows: int = 1


@dataclass(frozen=True, eq=False)
class MitigationPlan:
    """What is measured in place of a program, and what its values are made of.

    Attributes:
        programs: What is measured at the program's angles: variants of it (:meth:`qiskit_torch_bridge.Program.varied`), or
            itself. All have its angles and its outputs.
        combine: Makes the program's estimate of theirs, and of those of the calibrations.
        calibrations: What is measured once a calibration of the device.
        spread: Over how many programs the shots of a circuit are spread: each is measured with ``shots / spread``, rounded
            up, and so is each row of a calibration.
    """

    programs: tuple[Program, ...]
    combine: Combine
    calibrations: tuple[Calibration, ...] = ()
    spread: int = 1


class Mitigation(ABC):
    """A method of error mitigation.

    Subclass it (a frozen dataclass serves well) to add one; pass instances as ``mitigation=[...]``. The first of the list is
    applied to what is measured, the next to what that gives, and so on. A method never runs circuits, and it knows no
    gradient: the points of a gradient rule are evaluated as all others are, each with its variances.
    """

    reads_outcomes: ClassVar[bool] = False
    """Whether the method needs what was measured (:attr:`~qiskit_torch_bridge.Estimate.measured`), not values alone, so that
    it has to be the first of the list."""

    @abstractmethod
    def plan(self, program: Program, backend: Backend) -> MitigationPlan:
        """What is to be measured in place of the program.

        Args:
            program: The program, without input blocks.
            backend: What measures. A method may ask it how a program is run there
                (:meth:`~qiskit_torch_bridge.Backend.circuits`), and runs nothing.

        Raises:
            ValueError: If the method cannot do anything for it there; the message says what to do.
        """


def plan_of(methods: Sequence[Mitigation], program: Program, backend: Backend) -> MitigationPlan:
    """The plan of several methods, the first of which is applied to what is measured."""
    if not methods:
        return MitigationPlan((program,), lambda estimates, _: estimates[0])
    *inner, outer = methods
    plan = _checked_plan(outer, program, backend)
    parts = [plan_of(inner, each, backend) for each in plan.programs]
    programs = _distinct([each for part in parts for each in part.programs])
    calibrations = _distinct([*plan.calibrations, *(each for part in parts for each in part.calibrations)])

    def combine(estimates: Sequence[Estimate], calibrated: Sequence[Estimate]) -> Estimate:
        of_program = dict(zip(programs, estimates, strict=True))
        of_calibration = dict(zip(calibrations, calibrated, strict=True))
        combined = [
            part.combine([of_program[p] for p in part.programs], [of_calibration[c] for c in part.calibrations])
            for part in parts
        ]
        return plan.combine(combined, [of_calibration[each] for each in plan.calibrations])

    return MitigationPlan(programs, combine, calibrations, plan.spread * parts[0].spread)


def _checked_plan(method: Mitigation, program: Program, backend: Backend) -> MitigationPlan:
    """The method's plan, which says so if the method gives something else."""
    plan: MitigationPlan = instance_of(
        f"{type(method).__name__}.plan", method.plan(program, backend), MitigationPlan, "a MitigationPlan; return one"
    )
    for other in plan.programs:
        if other.num_outputs != program.num_outputs or len(other.angles) != len(program.angles):
            raise ValueError(
                f"{method!r}: got a program with {other.num_outputs} output(s) and {len(other.angles)} angle(s), expected "
                f"{program.num_outputs} and {len(program.angles)}; plan variants of the program."
            )

    def combine(estimates: Sequence[Estimate], calibrated: Sequence[Estimate]) -> Estimate:
        made: Estimate = instance_of(repr(method), plan.combine(estimates, calibrated), Estimate, "an Estimate")
        expected = (len(estimates[0].values), program.num_outputs) if estimates else made.values.shape
        if not made.values.shape == made.variances.shape == expected:
            raise ValueError(
                f"{method!r}: got values of shape {made.values.shape} and variances of shape {made.variances.shape}, "
                f"expected {expected}."
            )
        return made

    return replace(plan, combine=combine)


def _distinct(items: Sequence[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(items))
