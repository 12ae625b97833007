"""Settings of the study of what hardware costs; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..common.kinds import NonNegativeInt, PositiveFloat, PositiveInt
from ..common.settings import StudySettings
from .steps import PEERS

PartName = Literal["step", "training"]
WayName = Literal["plain", "SPSA", "packed", "packed, extrapolated", "mitigated"]
PARTS: tuple[PartName, ...] = get_args(PartName)
WAYS: tuple[WayName, ...] = ("plain", "SPSA", "packed", "mitigated")
_ALL_PEERS = "peers"


@dataclass(frozen=True, kw_only=True)
class HardwareCostSettings(StudySettings):
    """What a training step costs on an IBM device, and what ten minutes of the device buy.

    The part step counts the jobs, circuits and executions that one training step submits with this library, Qiskit Machine
    Learning and PennyLane-Qiskit. The part training trains a dressed circuit with the noise of a fake device, for as many
    steps as the device's time is enough for.

    Attributes:
        parts: What to do.
        peer_python: SYSTEM=PYTHON ...: interpreters of environments with the other libraries (qiskit-machine-learning,
            pennylane-qiskit), which then count anew; peers=PYTHON is for both. Without: what was counted before.
        ways: How the time is spent: besides those of the default, also packed, extrapolated.
        shots: Shots a circuit.
        seconds: Of the quantum processor's time, for each training.
        lrs: Adam's learning rates, of which each way and number of shots has the one that is best on other seeds.
        seeds: Trainings that are reported for each, of seeds from --seed on.
        tuning_seeds: Trainings, of the seeds after those, by which the learning rate is chosen.
        qubits: Of the circuit.
        depth: Its layers.
        batch_size: Images a step.
    """

    parts: tuple[PartName, ...] = PARTS
    peer_python: tuple[str, ...] = ()
    ways: tuple[WayName, ...] = WAYS
    shots: tuple[PositiveInt, ...] = (100, 1000)
    seconds: PositiveFloat = 600.0
    lrs: tuple[PositiveFloat, ...] = (0.003, 0.01)
    seeds: PositiveInt = 10
    tuning_seeds: NonNegativeInt = 5
    qubits: PositiveInt = 4
    depth: PositiveInt = 6
    batch_size: PositiveInt = 4

    def __post_init__(self) -> None:
        for pair in self.peer_python:
            name, _, python = pair.partition("=")
            if not python or name not in (_ALL_PEERS, *PEERS):
                raise ValueError(
                    f"--peer-python: got {pair!r}, expected SYSTEM=PYTHON, the system {_ALL_PEERS} or one of "
                    f"{', '.join(PEERS)}."
                )

    @property
    def pythons(self) -> dict[str, str]:
        """The interpreters of the peers that are to be counted anew."""
        named = dict(pair.split("=", 1) for pair in self.peer_python)
        of_all = named.pop(_ALL_PEERS, None)
        return {**({} if of_all is None else dict.fromkeys(PEERS, of_all)), **named}
