"""Settings of the experiments that are one file each; the defaults are those that were published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .common.data_settings import DigitSettings
from .common.kinds import PositiveFloat, PositiveInt


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
