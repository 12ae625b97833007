"""The questions, each with the networks that answer it; from a forum thread on hybrid networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..common.options import Settings
from ..common.trainer import Stage
from .blocks import QuickStart, Scale, dense, quantum, quantum_from_zero, scores

Build = Callable[[int, Mapping[str, Any]], nn.Module]


@dataclass(frozen=True)
class Question:
    """A question and the networks that answer it.

    Attributes:
        text: As somebody would ask it.
        grid: Rows and columns that the images are averaged over; a network sees that many numbers.
        answers: By name, from the count of these numbers and the run's settings to a network.
    """

    text: str
    grid: tuple[int, int]
    answers: Mapping[str, Build]


def _with_dropout(before: bool, after: bool, is_quantum: bool) -> Build:
    def build(features: int, settings: Mapping[str, Any]) -> nn.Module:
        dropped = [nn.Dropout(settings["dropout_rate"])]
        middle = quantum(settings) if is_quantum else dense()
        return nn.Sequential(dense(features), *dropped * before, middle, *dropped * after, scores())

    return build


def _quick_start(middle: Callable[[Mapping[str, Any]], nn.Module]) -> Build:
    return lambda features, settings: QuickStart(features, lambda: middle(settings))


def _in_a_row(settings: Mapping[str, Any]) -> list[nn.Module]:
    return [quantum(settings, depth=1, place=place) for place in range(3)]


QUESTIONS = {
    "position": Question(
        text="Where does the quantum layer go: first, middle or last?",
        grid=(4, 2),
        answers={
            "first": lambda features, settings: nn.Sequential(quantum(settings), dense(), scores()),
            "middle": lambda features, settings: nn.Sequential(dense(features), quantum(settings), scores()),
            "last": lambda features, settings: nn.Sequential(dense(features), dense(), quantum(settings)),
            "last-scaled": lambda features, settings: nn.Sequential(
                dense(features), dense(), quantum(settings), Scale()
            ),
            "classical": lambda features, settings: nn.Sequential(dense(features), dense(), scores()),
            "classical-bounded": lambda features, settings: nn.Sequential(dense(features), dense(), dense()),
        },
    ),
    "quick-start": Question(
        text="Does classical pre-training give a quick start?",
        grid=(8, 8),
        answers={
            prefix + start: _quick_start(middle)
            for prefix, middle in (("", quantum), ("dressed-", quantum_from_zero))
            for start in ("from-scratch", "frozen", "fine-tuned")
        },
    ),
    "reuploading": Question(
        text="Quantum layers in a row, or one circuit that takes the data again?",
        grid=(4, 2),
        answers={
            "one-circuit": lambda features, settings: nn.Sequential(quantum(settings, uploads=3, depth=1), scores()),
            "in-a-row": lambda features, settings: nn.Sequential(*_in_a_row(settings), scores()),
            "embedded-once": lambda features, settings: nn.Sequential(quantum(settings), scores()),
            "classical": lambda features, settings: nn.Sequential(dense(features), scores()),
        },
    ),
    "dropout": Question(
        text="Does dropout beside a quantum layer help?",
        grid=(8, 8),
        answers={
            f"{kind}-{where}": _with_dropout(where == "before", where == "after", kind == "quantum")
            for kind in ("quantum", "classical")
            for where in ("none", "before", "after")
        },
    ),
}


def stages_of(settings: Settings) -> list[Stage]:
    """The stages of a training: one, or a classical one before it where the answer is a quick start."""
    if settings["question"] != "quick-start":
        return [Stage("training", settings["epochs"])]
    start = settings["answer"].removeprefix("dressed-")

    def pretrain(model: nn.Module) -> None:
        assert isinstance(model, QuickStart)
        model.pretrain()

    def go_on(model: nn.Module) -> None:
        assert isinstance(model, QuickStart)
        model.go_on(freeze=start == "frozen")

    hybrid = Stage("hybrid", settings["epochs"], go_on)
    if start == "from-scratch":
        return [hybrid]
    return [Stage("classical", settings["pretrain_epochs"], pretrain), hybrid]
