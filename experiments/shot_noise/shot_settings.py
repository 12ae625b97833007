"""Settings of the study of shot noise; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..common.data_settings import DigitStudySettings
from ..common.kinds import PositiveInt

PartName = Literal["scaling", "training", "noise"]
NoiseName = Literal[
    "none", "depolarising, 1 qubit", "depolarising, 2 qubits", "readout error", "fake Manila", "fake Nairobi"
]
ModelName = Literal["hybrid CNN", "layerwise", "dressed"]
NOISE_QUBITS = range(2, 6)
PARTS: tuple[PartName, ...] = get_args(PartName)
_SHOTS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class ShotNoiseSettings(DigitStudySettings):
    """Shot noise: how far it goes down with the shots, what it costs in training, and what more shots do not cure.

    Three parts. scaling: the standard error of a value and of its gradient by each rule against the shots, as it is seen in
    repetitions, as the library reports it and as theory has it. training: accuracy against the shots spent, with constant,
    growing and adaptive shots, shared out evenly or by sensitivity. noise: the error of a noisy simulator against the
    shots, which stops at the bias, for a small and a larger circuit.

    Attributes:
        parts: What to measure.
        shots: Shots a circuit of the part scaling.
        repeats: How often each number of shots is measured.
        noises: The simulators of the part noise.
        noise_qubits: Qubits of the circuits of the part noise, 2 to 5 (which the smallest of the devices has).
        noise_shots: Shots a circuit of the part noise.
        noise_repeats: How often each number of shots is measured in the part noise.
        models: What to train in the part training.
        steps: Training steps.
        seeds: Trainings of each model and strategy, of seeds from --seed on.
    """

    parts: tuple[PartName, ...] = PARTS
    shots: tuple[PositiveInt, ...] = _SHOTS
    repeats: PositiveInt = 4000
    noises: tuple[NoiseName, ...] = get_args(NoiseName)
    noise_qubits: tuple[PositiveInt, ...] = (2, 5)
    noise_shots: tuple[PositiveInt, ...] = _SHOTS
    noise_repeats: PositiveInt = 10_000
    models: tuple[ModelName, ...] = get_args(ModelName)
    steps: PositiveInt = 100
    seeds: PositiveInt = 6

    def __post_init__(self) -> None:
        if "noise" in self.parts and not set(self.noise_qubits) <= set(NOISE_QUBITS):
            raise ValueError(
                f"--noise-qubits: got {list(self.noise_qubits)}, expected numbers from {NOISE_QUBITS[0]} to "
                f"{NOISE_QUBITS[-1]}."
            )
        for part, prefix, shots, repeats in (
            ("scaling", "", self.shots, self.repeats),
            ("noise", "noise-", self.noise_shots, self.noise_repeats),
        ):
            if part in self.parts and (len(set(shots)) < 2 or min(shots) < 2):
                raise ValueError(
                    f"--{prefix}shots: got {list(shots)}, expected at least two different numbers, from 2 on (a single shot "
                    "has no standard error)."
                )
            if part in self.parts and repeats < 10:
                raise ValueError(
                    f"--{prefix}repeats: got {repeats}, expected at least 10, whose scatter says something."
                )
        if "training" in self.parts:
            self.require_data_root()
