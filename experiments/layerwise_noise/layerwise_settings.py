"""Settings of the study of layerwise learning under noise; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..common.data_settings import DigitStudySettings
from ..common.kinds import NonNegativeInt, PositiveFloat, PositiveInt

NoiseName = Literal[
    "none", "depolarising 0.3 %", "depolarising 1 %", "depolarising 3 %", "Guadalupe", "Montreal", "Brooklyn"
]
TrainingName = Literal["layerwise", "complete"]


@dataclass(frozen=True, kw_only=True)
class LayerwiseNoiseSettings(DigitStudySettings):
    """Layerwise learning under noise: does growing the circuit of mnist36 help, at equal shots?

    Each circuit of random rotations is trained twice, with noise and shots: it grows step by step, and then its halves are
    trained in turn; or all of its layers are trained from the start, from random angles. Depolarising noise comes with
    the given probability after each gate of two qubits, and with a tenth of it after each gate of one. Guadalupe, Montreal
    and Brooklyn are fake devices.

    Attributes:
        noises: What is wrong with the simulated machines.
        shots: Shots a circuit.
        seeds: Circuits and starts, of seeds from --seed on; each is trained with all noises.
        qubits: One for each number that an image comes down to: 2 x 2, 2 x 3 or 3 x 3 pixels.
        steps: Steps of Phase I.
        layers_per_step: Layers that each adds.
        train_images: The first so many threes and sixes.
        test_images: The first so many of the test set; null: all.
        epochs: Of each step of Phase I.
        sweeps: How often Phase II goes through the halves; 0: no Phase II.
        partition_epochs: Epochs of each half in a sweep.
        complete_epochs: Epochs of the complete circuit; the others cost as many shots if this is right.
        batch_size: Examples a step.
        lr: Adam's learning rate.
    """

    noises: tuple[NoiseName, ...] = get_args(NoiseName)
    shots: tuple[PositiveInt, ...] = (100, 1000)
    seeds: PositiveInt = 10
    qubits: Literal[4, 6, 9] = 6
    steps: PositiveInt = 4
    layers_per_step: PositiveInt = 2
    train_images: PositiveInt = 60
    test_images: PositiveInt | None = None
    epochs: PositiveInt = 2
    sweeps: NonNegativeInt = 2
    partition_epochs: PositiveInt = 2
    complete_epochs: PositiveInt = 6
    batch_size: PositiveInt = 6
    lr: PositiveFloat = 0.05

    def __post_init__(self) -> None:
        self.require_data_root()
        if self.seeds < 2:
            raise ValueError(f"--seeds: got {self.seeds}, expected at least 2, whose spread says something.")
