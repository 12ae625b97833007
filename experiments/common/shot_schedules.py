"""Shots that change during a training, from settings: their check, the schedule, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

from .kinds import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn

    from qiskit_torch_bridge import QuantumLayer, Quote, ShotSchedule

READ: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "growing": ("last_shots",),
    "target_snr": ("snr", "least_shots", "most_shots"),
}
"""The settings that each schedule reads, apart from ``shots``."""


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
        check_shot_settings(self)


def check_shot_settings(settings: ShotSettings) -> None:
    """Refuses settings of shots that do not fit each other.

    Raises:
        ValueError: If that is so.
    """
    schedule, shots = settings.shot_schedule, settings.shots
    if shots is None and settings.allocation != "uniform":
        raise ValueError(f"--allocation: got {settings.allocation} with exact values, expected --shots to share out.")
    if shots is None and schedule != "constant":
        raise ValueError(
            f"--shot-schedule: got {schedule} with exact values, expected --shots, those of the first step."
        )
    for other, names in READ.items():
        for name in names:
            if name not in READ[schedule] and getattr(settings, name) is not None:
                raise ValueError(
                    f"{_flag(name)}: got {getattr(settings, name)} with --shot-schedule {schedule}, which does not read it; "
                    f"leave it out, or give --shot-schedule {other}."
                )
    if schedule != "constant" and getattr(settings, needed := READ[schedule][0]) is None:
        raise ValueError(f"{_flag(needed)}: got none, expected one with --shot-schedule {schedule}.")
    if shots is None:
        return
    if settings.last_shots is not None and settings.last_shots < shots:
        raise ValueError(f"--last-shots: got {settings.last_shots}, expected at least --shots ({shots}).")
    if schedule == "target_snr":
        least, most = _bounds(settings)
        if not 2 <= least <= shots <= most:
            raise ValueError(
                f"--shots: got {shots} with --least-shots {least} and --most-shots {most}, expected 2 <= least <= shots <= "
                "most (a single shot has no standard error)."
            )


def shot_schedule(model: nn.Module, settings: ShotSettings, *, steps: int) -> ShotSchedule | None:
    """The schedule of a model's quantum layers; None where shots stay as they are, or there are no such layers.

    It is made once, for all stages of a training: it finds the layers of a model that has grown. A run that is continued
    makes it anew and gives it what its ``state_dict()`` was.

    Args:
        model: The model, with the shots of the settings.
        settings: That :func:`check_shot_settings` has accepted.
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
    least, most = _bounds(settings)
    return TargetSNR(model, settings.snr, first=settings.shots, least=least, most=most)


def quotes(
    layer: QuantumLayer,
    settings: ShotSettings,
    *,
    epochs: int,
    train: int,
    test: int,
    batch_size: int,
    steps: int,
    before: int = 0,
    inputs_require_grad: bool = True,
) -> tuple[Quote, Quote]:
    """The least and the most that a stage of a training can cost; the same where its shots are known.

    An epoch is its steps, and a test with the shots of the next step. With allocation by sensitivity the least is not known,
    and nothing: rows without upstream gradient are not measured.

    Args:
        layer: The quantum layer, with the weights frozen that will be.
        settings: That :func:`check_shot_settings` has accepted.
        epochs: Of the stage.
        train: Training examples.
        test: Test examples.
        batch_size: Training examples a step.
        steps: The steps of the whole training.
        before: Those of the stages before this one.
        inputs_require_grad: Whether there is something to train before the layer.

    Raises:
        ValueError: As :func:`shot_schedule`.
    """
    import torch

    from qiskit_torch_bridge import Quote

    given = layer.shots

    @cache
    def quote(shots: int | None, rows: int, trains: bool) -> Quote:
        layer.shots = shots
        with torch.set_grad_enabled(trains):
            return layer.quote(rows, inputs_require_grad=inputs_require_grad)

    full, rest = divmod(train, batch_size)
    batches = [batch_size] * full + [rest] * (rest > 0)
    path = _path(layer, settings, steps)
    for _ in range(before):
        next(path)
    least = most = Quote()
    shots = next(path)
    for _ in range(epochs):
        for rows, trains in [*((rows, True) for rows in batches), (test, False)]:
            least, most = (total + quote(n, rows, trains) for total, n in zip((least, most), shots, strict=True))
            shots = next(path) if trains else shots
    layer.shots = given
    return (Quote() if settings.allocation == "sensitivity" else least), most


def between(least: Quote, most: Quote, words: Callable[[Quote], str]) -> str:
    """Two quotes as text.

    Args:
        least: The least that something can cost; nothing where it is not known.
        most: The most.
        words: The text of a single one.
    """
    if least == most:
        return words(most)
    return f"{f'at least {words(least)[:-1]}; ' if least.circuits else ''}at most {words(most)}"


def _path(layer: QuantumLayer, settings: ShotSettings, steps: int) -> Iterator[tuple[Any, Any]]:
    """The fewest and the most shots of each step, without end."""
    schedule = shot_schedule(layer, settings, steps=steps)
    if schedule is None:
        yield from repeat((settings.shots, settings.shots))
    elif settings.shot_schedule == "growing":
        while True:
            yield schedule.shots[0], schedule.shots[0]
            schedule.step()
    least, most = _bounds(settings)
    low = high = settings.shots or 0
    while True:  # at most twice and at least half as many as in the step before
        yield low, high
        low, high = max(least, low // 2), min(most, 2 * high)


def _bounds(settings: ShotSettings) -> tuple[int, int]:
    """The fewest and the most shots of a step, where shots follow the gradient."""
    shots, least, most = settings.shots, settings.least_shots, settings.most_shots
    assert shots is not None
    return max(2, shots // 10) if least is None else least, 100 * shots if most is None else most


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
