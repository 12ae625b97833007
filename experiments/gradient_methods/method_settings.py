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
        first, last = self.smallest_step, self.largest_step
        for flag, got, fits, expected in (
            ("step-circuits", self.step_circuits, set(self.step_circuits) <= set(CIRCUITS), f"some of {CIRCUITS}"),
            (
                "budget-circuits",
                self.budget_circuits,
                set(self.budget_circuits) <= set(CIRCUITS),
                f"some of {CIRCUITS}",
            ),
            ("steps", self.steps, self.steps >= 7, "at least 7"),
            ("step-repeats", self.step_repeats, self.step_repeats >= 2, "at least 2"),
            ("budget-repeats", self.budget_repeats, self.budget_repeats >= 2, "at least 2"),
            ("points", self.points, self.points % 2 == 0, "an even number; those of one qubit go in pairs"),
            ("smallest-step", first, first < last, f"less than --largest-step {last}"),
        ):
            if not fits:
                raise ValueError(f"--{flag}: got {got}, expected {expected}.")
