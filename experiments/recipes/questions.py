"""The questions, each with the networks that answer it; from a forum thread on hybrid networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .blocks import QuickStart, block_at
from .recipe_settings import RecipeSettings


@dataclass(frozen=True)
class Question:
    """A question and the networks that answer it.

    Attributes:
        text: As somebody would ask it.
        grid: Rows and columns that the images are averaged over; a network sees that many numbers.
        answers: By name, the blocks that a network puts in a row (see :func:`.blocks.block_at`); of a quick start those
            before its scores.
        middle_first: Whether the first block's weights are drawn after those of the middle.
    """

    text: str
    grid: tuple[int, int]
    answers: Mapping[str, str]
    middle_first: bool = False


QUESTIONS = {
    "position": Question(
        text="Where does the quantum layer go: first, middle or last?",
        grid=(4, 2),
        answers={
            "first": "quantum dense scores",
            "middle": "dense quantum scores",
            "last": "dense dense quantum",
            "last-scaled": "dense dense quantum scale",
            "classical": "dense dense scores",
            "classical-bounded": "dense dense dense",
        },
    ),
    "quick-start": Question(
        text="Does classical pre-training give a quick start?",
        grid=(8, 8),
        answers={
            prefix + start: f"dense {circuit}"
            for prefix, circuit in (("", "quantum"), ("dressed-", "quantum-from-zero"))
            for start in ("from-scratch", "frozen", "fine-tuned")
        },
    ),
    "reuploading": Question(
        text="Quantum layers in a row, or one circuit that takes the data again?",
        grid=(4, 2),
        answers={
            "one-circuit": "quantum-reuploading scores",
            "in-a-row": "quantum-layer quantum-layer quantum-layer scores",
            "embedded-once": "quantum scores",
            "classical": "dense scores",
        },
    ),
    "dropout": Question(
        text="Does dropout beside a quantum layer help?",
        grid=(8, 8),
        answers={
            "quantum-none": "dense quantum scores",
            "quantum-before": "dense dropout quantum scores",
            "quantum-after": "dense quantum dropout scores",
            "classical-none": "dense dense scores",
            "classical-before": "dense dropout dense scores",
            "classical-after": "dense dense dropout scores",
        },
        middle_first=True,
    ),
}


def network(settings: RecipeSettings, options: Mapping[str, Any]) -> nn.Module:
    """The network that is the answer; from shape (N, rows times columns of the question's grid) to scores (N, 8)."""
    question = QUESTIONS[settings.question]
    names = question.answers[settings.answer].split()
    places = range(len(names))
    given: dict[str, Any] = {"features": math.prod(question.grid), "dropout_rate": settings.dropout_rate}
    drawn = [*places[1:-1], 0, places[-1]] if question.middle_first else places
    made = {place: block_at(place, names, **given, options=options) for place in drawn}
    blocks = [made[place] for place in places]
    if settings.question == "quick-start":
        return QuickStart(*blocks, freeze=settings.answer.endswith("frozen"))
    return nn.Sequential(*blocks)


def stages_of(settings: RecipeSettings) -> dict[str, int]:
    """The stages of a training, with the epochs of each; a quick start begins with a classical one."""
    if settings.question != "quick-start":
        return {"training": settings.epochs}
    before = {} if settings.answer.endswith("from-scratch") else {"classical": settings.pretrain_epochs}
    return before | {"hybrid": settings.epochs}


def enter(stage: str, model: nn.Module) -> None:
    """Makes the model ready for a stage."""
    if isinstance(model, QuickStart):
        model.enter(stage)
