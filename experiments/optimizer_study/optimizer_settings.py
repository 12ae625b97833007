"""Settings of the study of optimizers; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..common.data_settings import DigitStudySettings
from ..common.kinds import PositiveFloat, PositiveInt

ProblemName = Literal["layerwise", "dressed", "hydrogen"]
MethodName = Literal["Adam", "SGD", "SPSA", "natural", "natural diagonal", "natural SPSA", "Rotosolve", "shot-adaptive"]
PROBLEMS: tuple[ProblemName, ...] = get_args(ProblemName)
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(DigitStudySettings):
    """Optimizers at equal executions of circuits, and at equal seconds of a quantum processor.

    Each trains three circuits from the same weights and on the same batches, with shots, until both budgets are spent. What
    it has spent is what a fake device would ask for all that it has run: values, gradients, metrics and line searches.

    Attributes:
        problems: layerwise: handwritten 3 and 6; dressed: handwritten 8 and 9; hydrogen: the molecule's ground state.
        methods: Optimizers; Rotosolve is for hydrogen alone, whose loss is an expectation value.
        device: The fake device whose prices are paid.
        shots: Shots a circuit (shot-adaptive begins with them).
        executions: Budgets of executed circuits.
        seconds: Budgets of the quantum processor's time.
        lrs: Learning rates, of which each method has the best at each budget on seeds that are not reported.
        seeds: Trainings that are reported of each method, of seeds from --seed on.
        tuning_seeds: Trainings, of the seeds after those, by which the learning rate is chosen.
        batch_size: Images a step.
    """

    problems: tuple[ProblemName, ...] = PROBLEMS
    methods: tuple[MethodName, ...] = METHODS
    device: str = "fake_fez"
    shots: PositiveInt = 100
    executions: tuple[PositiveInt, ...] = (30_000, 100_000, 300_000, 1_000_000)
    seconds: tuple[PositiveFloat, ...] = (20.0, 60.0, 200.0, 600.0)
    lrs: tuple[PositiveFloat, ...] = (0.006, 0.02, 0.06, 0.2, 0.6, 2.0)
    seeds: PositiveInt = 10
    tuning_seeds: PositiveInt = 5
    batch_size: PositiveInt = 4

    def __post_init__(self) -> None:
        for flag, got, fits, expected in (
            ("methods", self.methods, "Adam" in self.methods, "Adam among them, to compare with"),
            ("executions", self.executions, bool(self.executions), "at least one budget"),
            ("seconds", self.seconds, bool(self.seconds), "at least one budget"),
            ("lrs", self.lrs, bool(self.lrs), "at least one learning rate"),
        ):
            if not fits:
                raise ValueError(f"--{flag}: got {got}, expected {expected}.")
