"""Settings of the study of error mitigation; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.kinds import PositiveInt
from ..common.settings import StudySettings

CIRCUITS = ("dressed, 4 qubits", "layerwise, 4 qubits")
METHODS = (
    "none",
    "readout",
    "twirled readout",
    "line 1, 3",
    "line 1, 3, 5",
    "richardson 1, 3, 5",
    "readout, line 1, 3",
    "readout, line 1, 3, 5",
    "readout, richardson 1, 3, 5",
)


@dataclass(frozen=True, kw_only=True)
class MitigationSettings(StudySettings):
    """Error mitigation at equal executions: bias and variance of values and gradients, and the accuracy after training.

    Fake devices are simulated exactly. Circuits: dressed, 4 qubits; layerwise, 4 qubits. Methods: none; readout; twirled
    readout; line 1, 3; line 1, 3, 5; richardson 1, 3, 5; readout, line 1, 3; readout, line 1, 3, 5; readout, richardson
    1, 3, 5.

    Attributes:
        devices: Fake devices by their names.
        circuits: Circuits.
        methods: Methods, none among them.
        executions: Of each circuit of a gradient, at which noise is measured.
        repeats: Values and gradients, each with a calibration of its own.
        points: Points of each circuit.
        trained_devices: Devices on which a classifier is trained.
        trained_methods: Methods that it is trained with.
        trained_executions: Of each circuit.
        steps: Steps of a training.
        seeds: Trainings of each kind.
    """

    devices: tuple[str, ...] = ("lagos", "kolkata", "sherbrooke", "fez")
    circuits: tuple[str, ...] = CIRCUITS
    methods: tuple[str, ...] = METHODS
    executions: PositiveInt = 3840
    repeats: PositiveInt = 40
    points: PositiveInt = 2
    trained_devices: tuple[str, ...] = ("lagos", "kolkata", "sherbrooke", "fez")
    trained_methods: tuple[str, ...] = ("none", "readout", "line 1, 3", "readout, line 1, 3")
    trained_executions: tuple[PositiveInt, ...] = (240,)
    steps: PositiveInt = 40
    seeds: PositiveInt = 3

    def __post_init__(self) -> None:
        chosen = {"methods": self.methods, "trained-methods": self.trained_methods}
        for flag, got, fits, expected in (
            ("circuits", self.circuits, set(self.circuits) <= set(CIRCUITS), f"some of {CIRCUITS}"),
            *((flag, got, set(got) <= set(METHODS), f"some of {METHODS}") for flag, got in chosen.items()),
            *((flag, got, "none" in got, "'none' among them, to compare with") for flag, got in chosen.items()),
            ("repeats", self.repeats, self.repeats >= 2, "at least 2"),
            ("executions", self.executions, self.executions % 48 == 0, "a multiple of 48, which all methods can share"),
        ):
            if not fits:
                raise ValueError(f"--{flag}: got {got}, expected {expected}.")
