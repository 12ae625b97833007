"""Shots that change during a training, from settings: their check, and the schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .kinds import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn

    from qiskit_torch_bridge import ShotSchedule

_SCHEDULE_OF = {"last_shots": "growing", "snr": "target_snr", "least_shots": "target_snr", "most_shots": "target_snr"}
"""The schedule that reads a setting."""


@dataclass(frozen=True, kw_only=True)
class ShotSettings:
    """What of a training's settings is about shots.

    Attributes:
        shots: Shots a circuit, in the first step if they change; null for exact values.
        allocation: How a gradient's shots are shared among the rows of a batch: uniform, or by sensitivity, none for rows
            that add nothing to it.
        shot_schedule: How shots change from step to step: constant; growing geometrically to --last-shots; or target_snr, as
            many as the gradient needs to stand out from its noise by --snr.
        last_shots: growing: shots a circuit in the last step.
        snr: target_snr: the ratio of the gradient's length to that of its error.
        least_shots: target_snr: the fewest shots a circuit; null: a tenth of --shots.
        most_shots: target_snr: the most shots a circuit; null: a hundred times --shots.

    Raises:
        ValueError: If they do not fit each other.
    """

    shots: PositiveInt | None = None
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    shot_schedule: Literal["constant", "growing", "target_snr"] = "constant"
    last_shots: PositiveInt | None = None
    snr: PositiveFloat | None = None
    least_shots: PositiveInt | None = None
    most_shots: PositiveInt | None = None

    def __post_init__(self) -> None:
        schedule, shots = self.shot_schedule, self.shots
        if shots is None and self.allocation != "uniform":
            raise ValueError(f"--allocation: got {self.allocation} with exact values, expected --shots to share out.")
        if shots is None and schedule != "constant":
            raise ValueError(
                f"--shot-schedule: got {schedule} with exact values, expected --shots, those of the first step."
            )
        for name, reader in _SCHEDULE_OF.items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if value is not None and reader != schedule:
                raise ValueError(
                    f"{flag}: got {value} with --shot-schedule {schedule}, which does not read it; leave it out, or give "
                    f"--shot-schedule {reader}."
                )
            if value is None and reader == schedule and name in ("last_shots", "snr"):
                raise ValueError(f"{flag}: got none, expected one with --shot-schedule {schedule}.")
        if shots is None or schedule == "constant":
            return
        if self.last_shots is not None and self.last_shots < shots:
            raise ValueError(f"--last-shots: got {self.last_shots}, expected at least --shots ({shots}).")
        least, most = self.bounds
        if schedule == "target_snr" and not 2 <= least <= shots <= most:
            raise ValueError(
                f"--shots: got {shots} with --least-shots {least} and --most-shots {most}, expected 2 <= least <= shots <= "
                "most (a single shot has no standard error)."
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most shots of a step, where shots follow the gradient."""
        shots, least, most = self.shots or 0, self.least_shots, self.most_shots
        return max(2, shots // 10) if least is None else least, 100 * shots if most is None else most


def shot_schedule(model: nn.Module, settings: ShotSettings, *, steps: int) -> ShotSchedule | None:
    """The schedule of a model's quantum layers; None where shots stay as they are, or there are no such layers.

    It is made once, for all stages of a training: it finds the layers of a model that has grown. A run that is continued
    makes it anew and gives it what its ``state_dict()`` was.

    Args:
        model: The model, with the shots of the settings.
        settings: The run's.
        steps: The steps of the whole training; the last of them has ``last_shots``.

    Raises:
        ValueError: If the shots are to follow the gradient of a circuit that has no weights.
    """
    if settings.shot_schedule == "constant":
        return None
    from qiskit_torch_bridge import GrowingShots, QuantumLayer, TargetSNR

    if not any(isinstance(module, QuantumLayer) for module in model.modules()):
        return None
    assert settings.shots is not None
    if settings.shot_schedule == "growing":
        assert settings.last_shots is not None
        return GrowingShots(model, first=settings.shots, last=settings.last_shots, steps=max(1, steps - 1))
    assert settings.snr is not None
    least, most = settings.bounds
    return TargetSNR(model, settings.snr, first=settings.shots, least=least, most=most)
