"""Kinds of numbers that options take: to a type checker plain numbers, to the command line numbers within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Seed = int
    PositiveFloat = float
    NonNegativeFloat = float
    OpenUnitInterval = float
else:
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        OpenUnitInterval,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what torch takes, times a million

__all__ = ["NonNegativeFloat", "NonNegativeInt", "OpenUnitInterval", "PositiveFloat", "PositiveInt", "Seed"]
