"""Settings of the experiments that are one file each; the defaults are those that were published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .common.data_settings import DigitSettings
from .common.kinds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from .common.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class MNIST01Settings(DigitSettings):
    """A hybrid CNN that tells handwritten zeros from ones: the network of the Qiskit textbook.

    The defaults are the published settings. Published: 100 % of 100 test images after 20 epochs of 200 training images, with
    100 shots a circuit.

    Attributes:
        head: The circuit, or a sigmoid in its place, or the two side by side.
        train_per_digit: Training images of each digit.
        test_per_digit: Test images of each digit.
    """

    head: Literal["quantum", "classical", "both"] = "quantum"
    train_per_digit: PositiveInt = 100
    test_per_digit: PositiveInt = 50
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 1
    lr: PositiveFloat = 0.001
    backend: str = "aer"
    shots: PositiveInt | None = 100
    gradient: str | None = "parameter_shift"


@dataclass(frozen=True, kw_only=True)
class MNIST36Settings(DigitSettings):
    """Layerwise learning: a quantum circuit that tells handwritten threes from sixes grows while it is trained.

    The defaults are those of a published proof of concept (0.767 of 1968 test images, from one run without a seed): random
    rotations, CZ ladders, <Z> of the last qubit.

    Attributes:
        epochs: Of each step of Phase I; with --training complete those of the whole training.
        train_images: The first so many threes and sixes; null: 1000 of MNIST, 240 of the digits.
        qubits: One for each number that an image comes down to: 2 x 2, 2 x 3 or 3 x 3 pixels.
        circuit: Random rotations and CZ ladders; or RZ, RX and a ring of CZ.
        readout: <Z> of the last qubit, or the sum of <Z> over all.
        training: The circuit grows; or all of its layers are trained from the start.
        init: Weights to begin with; layers that are added later start at zero.
        scale_and_bias: Train a factor and an offset of the readout too.
        steps: Steps of Phase I.
        layers_per_step: Layers that each adds.
        freeze_after: For how many steps a layer is trained in Phase I; null: in all.
        partitions: Parts of the circuit that Phase II trains in turn.
        sweeps: How often Phase II goes through them; 0: no Phase II.
        partition_epochs: Epochs of each part in a sweep.
    """

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 0.01
    train_images: PositiveInt | None = None
    qubits: Literal[4, 6, 9] = 9
    circuit: Literal["random_rotations", "ring"] = "random_rotations"
    readout: Literal["last", "sum"] = "last"
    training: Literal["layerwise", "complete"] = "layerwise"
    init: Literal["zeros", "normal", "uniform"] = "zeros"
    scale_and_bias: bool = False
    steps: PositiveInt = 3
    layers_per_step: PositiveInt = 2
    freeze_after: PositiveInt | None = 1
    partitions: PositiveInt = 2
    sweeps: NonNegativeInt = 2
    partition_epochs: PositiveInt = 5


@dataclass(frozen=True, kw_only=True)
class SpiralsSettings(TrainingSettings):
    """A dressed quantum circuit beside its classical twin on two interleaved spirals (Mari et al., arXiv 1912.08278).

    Published test accuracies: 0.970 against 0.855 on the easy spiral, 0.625 against 0.540 on the hard one. The defaults are
    the published settings, except that PyTorch draws the first weights.

    Attributes:
        spiral: easy: 1.52 turns; hard: 2 turns; or the two.
        head: The circuit, or tanh units in its place, or the two side by side.
        circuit: The published one, or one that takes its inputs again in each layer.
        qubits: Qubits, or tanh units.
        depth: Layers of weights in the circuit.
        schedule: The learning rate: as it is, or down to zero over the run, along a cosine.
        initial_spread: Draw all weights from a normal distribution of this standard deviation; null: as PyTorch does.
        off_arm: How far points are off their arm at most.
        train: Training points, an even number.
        test: Test points, an even number.
    """

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 10
    lr: PositiveFloat = 0.07
    spiral: Literal["easy", "hard", "both"] = "both"
    head: Literal["quantum", "classical", "both"] = "both"
    circuit: Literal["dressed", "reuploading"] = "dressed"
    qubits: PositiveInt = 5
    depth: PositiveInt = 5
    schedule: Literal["constant", "cosine"] = "constant"
    initial_spread: NonNegativeFloat | None = None
    off_arm: NonNegativeFloat = 0.2
    train: PositiveInt = 2000
    test: PositiveInt = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "test"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"--{name}: got {getattr(self, name)}, expected an even number, half of them on each arm."
                )

    @classmethod
    def of_today(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """See :class:`~experiments.common.settings.Settings`: ``noise`` was the points', and is now the simulator's."""
        return {
            "off_arm" if name == "noise" and isinstance(value, float) else name: value for name, value in saved.items()
        }
