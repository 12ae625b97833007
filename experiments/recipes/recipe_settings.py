"""Settings of the recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common.data_settings import DigitSettings
from ..common.kinds import OpenUnitInterval, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(DigitSettings):
    """Questions about hybrid networks, each answered with several networks, several seeds and numbers.

    The questions are those of a thread in PennyLane's forum: where a quantum layer goes, whether classical pre-training
    gives a quick start, whether quantum layers in a row are data re-uploading, what dropout beside a quantum layer does.

    Attributes:
        question: Which question to answer.
        answer: One of the networks that answer the question, by name; or all.
        accuracy: Test accuracy, the epochs up to which are counted.
        pretrain_epochs: Classical epochs of a quick start, before --epochs.
        dropout_rate: The part of the numbers that is dropped.
        train: Training images.
        test: Test images.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 20
    lr: PositiveFloat = 0.02
    seeds: PositiveInt = 3
    question: Literal["position", "quick-start", "reuploading", "dropout", "all"] = "all"
    answer: str = "all"
    accuracy: OpenUnitInterval = 0.85
    pretrain_epochs: PositiveInt = 6
    dropout_rate: OpenUnitInterval = 0.2
    train: PositiveInt = 600
    test: PositiveInt = 400
