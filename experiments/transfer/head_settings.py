"""Settings of ``transfer-heads``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..common.kinds import PositiveInt
from ..common.settings import StudySettings

PartName = Literal["twins", "pictures", "devices", "price"]
PARTS: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True, kw_only=True)
class HeadSettings(StudySettings):
    """The trained heads of a run of transfer: circuit and twin image by image, and the circuit under shots and noise.

    Four parts. twins: the decisions of circuit (CQ) and twin (CC) on each test image, and McNemar's test. pictures: the test
    images on which they differ most, and some others. devices: the accuracy of the circuit with shots, and with the noise
    of devices. price: what IBM's device would take for the test images, and for an epoch of training.

    Attributes:
        run: The folder of a finished run of transfer, of one or several seeds.
        parts: What to measure.
        backends: Simulators of the part devices.
        shots: Shots a circuit of the part devices; without any, exactly, comes first.
        repeats: How often each number of shots is measured with each head.
        priced: The device of the part price: ibm:NAME.
        priced_shots: Shots a circuit there.
    """

    run: str = "runs/transfer-1"
    parts: tuple[PartName, ...] = PARTS
    backends: tuple[str, ...] = ("statevector", "noisy:manila", "noisy:guadalupe")
    shots: tuple[PositiveInt, ...] = (100, 1000, 10_000)
    repeats: PositiveInt = 20
    priced: str = "ibm:fake_fez"
    priced_shots: PositiveInt = 1000
