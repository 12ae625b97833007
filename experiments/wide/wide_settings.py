"""The settings of the experiment ``wide``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common.kinds import NonNegativeInt, PositiveFloat, PositiveInt
from ..common.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class WideSettings(TrainingSettings):
    """All qubits of a device learn the couplings and fields of a hidden kicked Ising model from its magnetisations.

    Attributes:
        chip: The IBM device whose qubits and couplings are taken, by the name of its fake: sherbrooke, brisbane, fez, ...
        qubits: Take so many of them, from its first one on along the couplings; null: all.
        layers: Kicks, each a rotation about ZZ for every coupling and one about X for every qubit.
        model: coupled: the layer with the couplings; uncoupled: without, so that each qubit stands alone; or both.
        train: Random product states to train on.
        test: Others, to test on.
        target_shots: Shots from which each magnetisation of the training states was estimated; null: exact ones.
        within: A magnetisation counts as right if it is no further from the exact one.
        noisy_states: Test states for which the trained circuit is simulated with the device's noise.
        noisy_qubits: Qubits around each output that are simulated then.
    """

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 8
    lr: PositiveFloat = 0.05
    chip: str = "sherbrooke"
    qubits: PositiveInt | None = None
    layers: PositiveInt = 2
    model: Literal["coupled", "uncoupled", "both"] = "both"
    train: PositiveInt = 64
    test: PositiveInt = 64
    target_shots: PositiveInt | None = 1000
    within: PositiveFloat = 0.05
    noisy_states: NonNegativeInt = 4
    noisy_qubits: PositiveInt = 9
