"""Settings of the study of gradient methods; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.kinds import PositiveFloat, PositiveInt
from ..common.settings import StudySettings

CIRCUITS = ("one qubit", "dressed, 4 qubits", "layerwise, 4 qubits", "layerwise, 6 qubits", "layerwise, 8 qubits")


@dataclass(frozen=True, kw_only=True)
class MethodSettings(StudySettings):
    """Gradient rules side by side on circuits with shots: what each gets wrong, and what its shots buy.

    Finite differences, over the step: the bias of exact values, the spread from shots, their sum; the step that is best, and
    the rule's default. Then parameter shift, finite differences and SPSA at equal total shots: the error of the whole
    gradient, and the angle between it and the exact one.

    Circuits: one qubit; dressed, 4 qubits; layerwise, 4 qubits; layerwise, 6 qubits; layerwise, 8 qubits.

    Attributes:
        step_circuits: Circuits for the step.
        step_shots: Shots a circuit.
        steps: Steps on a logarithmic scale.
        smallest_step: The first, in radians.
        largest_step: The last, in radians.
        step_repeats: Gradients at each step and point.
        budget_circuits: Circuits for equal shots.
        budgets: Shots of a whole gradient.
        budget_repeats: Gradients of each method at each point.
        points: Points of each circuit, an even number.
    """

    step_circuits: tuple[str, ...] = CIRCUITS[:3]
    step_shots: tuple[PositiveInt, ...] = (100, 1000, 10_000)
    steps: PositiveInt = 15
    smallest_step: PositiveFloat = 0.04
    largest_step: PositiveFloat = 2.0
    step_repeats: PositiveInt = 400
    budget_circuits: tuple[str, ...] = CIRCUITS[1:]
    budgets: tuple[PositiveInt, ...] = (1000, 3000, 10_000, 30_000, 100_000, 300_000)
    budget_repeats: PositiveInt = 50
    points: PositiveInt = 4

    def __post_init__(self) -> None:
        for flag, circuits in (("--step-circuits", self.step_circuits), ("--budget-circuits", self.budget_circuits)):
            if strange := sorted(set(circuits).difference(CIRCUITS)):
                raise ValueError(f"{flag}: got {strange}, expected some of {list(CIRCUITS)}.")
        for flag, number, least in (
            ("--steps", self.steps, 7),
            ("--step-repeats", self.step_repeats, 2),
            ("--budget-repeats", self.budget_repeats, 2),
        ):
            if number < least:
                raise ValueError(f"{flag}: got {number}, expected at least {least}.")
        if self.points % 2:
            raise ValueError(f"--points: got {self.points}, expected an even number; those of one qubit go in pairs.")
        if self.smallest_step >= self.largest_step:
            raise ValueError(
                f"--smallest-step: got {self.smallest_step}, expected less than --largest-step {self.largest_step}."
            )

    @property
    def numbered_points(self) -> range:
        """The points of each circuit."""
        return range(self.seed, self.seed + self.points)
