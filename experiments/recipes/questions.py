"""The questions, each with the networks that answer it; from a forum thread on hybrid networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .blocks import QuickStart, Scale, dense, quantum, quantum_from_zero, scores
from .recipe_settings import RecipeSettings

Options = Mapping[str, Any]
Build = Callable[[int, Options, float], nn.Module]


@dataclass(frozen=True)
class Question:
    """A question and the networks that answer it.

    Attributes:
        text: As somebody would ask it.
        grid: Rows and columns that the images are averaged over; a network sees that many numbers.
        answers: By name, from the count of these numbers, the options of quantum layers, and the rate of dropout.
    """

    text: str
    grid: tuple[int, int]
    answers: Mapping[str, Build]


def _with_dropout(before: bool, after: bool, is_quantum: bool) -> Build:
    def build(features: int, options: Options, rate: float) -> nn.Module:
        dropped = [nn.Dropout(rate)]
        middle = quantum(options) if is_quantum else dense()
        return nn.Sequential(dense(features), *dropped * before, middle, *dropped * after, scores())

    return build


def _quick_start(middle: Callable[[Options], nn.Module]) -> Build:
    return lambda features, options, _: QuickStart(features, lambda: middle(options))


def _in_a_row(options: Options) -> list[nn.Module]:
    return [quantum(options, depth=1, place=place) for place in range(3)]


QUESTIONS = {
    "position": Question(
        text="Where does the quantum layer go: first, middle or last?",
        grid=(4, 2),
        answers={
            "first": lambda features, options, _: nn.Sequential(quantum(options), dense(), scores()),
            "middle": lambda features, options, _: nn.Sequential(dense(features), quantum(options), scores()),
            "last": lambda features, options, _: nn.Sequential(dense(features), dense(), quantum(options)),
            "last-scaled": lambda features, options, _: nn.Sequential(
                dense(features), dense(), quantum(options), Scale()
            ),
            "classical": lambda features, options, _: nn.Sequential(dense(features), dense(), scores()),
            "classical-bounded": lambda features, options, _: nn.Sequential(dense(features), dense(), dense()),
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
            "one-circuit": lambda features, options, _: nn.Sequential(quantum(options, uploads=3, depth=1), scores()),
            "in-a-row": lambda features, options, _: nn.Sequential(*_in_a_row(options), scores()),
            "embedded-once": lambda features, options, _: nn.Sequential(quantum(options), scores()),
            "classical": lambda features, options, _: nn.Sequential(dense(features), scores()),
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


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Attributes:
        name: Its name in the metrics.
        epochs: How long it takes.
        prepare: Makes the network ready for it.
    """

    name: str
    epochs: int
    prepare: Callable[[Any], None] = lambda model: None


def stages_of(settings: RecipeSettings) -> list[Stage]:
    """The stages of a training: one, or a classical one before it where the answer is a quick start."""
    if settings.question != "quick-start":
        return [Stage("training", settings.epochs)]
    start = settings.answer.removeprefix("dressed-")
    hybrid = Stage("hybrid", settings.epochs, lambda model: model.go_on(freeze=start == "frozen"))
    if start == "from-scratch":
        return [hybrid]
    return [Stage("classical", settings.pretrain_epochs, QuickStart.pretrain), hybrid]
