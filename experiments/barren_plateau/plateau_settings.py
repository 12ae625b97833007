"""Settings of the study of barren plateaus; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.kinds import PositiveFloat, PositiveInt
from ..common.settings import StudySettings


@dataclass(frozen=True, kw_only=True)
class PlateauSettings(StudySettings):
    """Barren plateaus: how fast gradients vanish as circuits grow, and what their start and their depth change.

    The circuits of McClean et al., Nat. Commun. 9, 4812 (2018): RY(pi/4) on each qubit, then layers of a rotation on each
    qubit about an axis drawn from X, Y and Z, and CZ gates between neighbours. What is measured is the variance of the
    derivative by the first angle, over circuits; each sample is another circuit with other angles.

    Attributes:
        qubits: Sizes of the circuits, even numbers.
        deep: Layers of a deep circuit, for each qubit.
        shallow: Layers of a shallow circuit of any size.
        profile_qubits: Sizes for which the variance is measured against the layers.
        profile_layers: These layers.
        samples: Random circuits of each size and depth.
        shallow_samples: The same of shallow ones, whose derivatives have heavier tails.
        train_qubits: Sizes of the circuits that are trained, with two layers for each qubit.
        train_steps: Steps of the optimiser in each training.
        train_shots: Shots a circuit in training.
        train_repeats: Trainings of each size and kind.
        lr: Adam's learning rate.
    """

    qubits: tuple[PositiveInt, ...] = (2, 4, 6, 8, 10, 12, 14)
    deep: PositiveInt = 10
    shallow: PositiveInt = 4
    profile_qubits: tuple[PositiveInt, ...] = (4, 8, 12)
    profile_layers: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    samples: PositiveInt = 512
    shallow_samples: PositiveInt = 4096
    train_qubits: tuple[PositiveInt, ...] = (4, 6, 8)
    train_steps: PositiveInt = 48
    train_shots: PositiveInt = 100
    train_repeats: PositiveInt = 8
    lr: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        for flag, sizes in (
            ("--qubits", self.qubits),
            ("--profile-qubits", self.profile_qubits),
            ("--train-qubits", self.train_qubits),
        ):
            if min(sizes) < 2:
                raise ValueError(f"{flag}: got {list(sizes)}, expected at least 2 each.")
        if len({size for size in self.qubits if size >= 4}) < 2:
            raise ValueError(
                f"--qubits: got {list(self.qubits)}, expected two sizes from 4 at least, to fit a line through."
            )
        if self.deep * min(self.qubits) <= max(2, self.shallow):
            raise ValueError(
                f"--deep: got {self.deep} layers a qubit, expected more layers than --shallow {self.shallow}, and than 2, "
                f"for {min(self.qubits)} qubits."
            )
        for size in self.train_qubits:
            if self.train_steps % size:
                raise ValueError(
                    f"--train-steps: got {self.train_steps}, expected a multiple of {size}: circuits of {size} qubits grow "
                    f"in {size} parts of equal length."
                )
