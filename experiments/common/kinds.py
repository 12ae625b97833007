"""Kinds of numbers that options take: to a type checker plain numbers, to the command line numbers within bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

SEEDS = 2**32  # torch takes their product with a million

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Seed = int
    PositiveFloat = float
    NonNegativeFloat = float
    OpenUnitInterval = float
else:
    from jsonargparse.typing import NonNegativeInt, OpenUnitInterval, PositiveInt, restricted_number_type

    _FINITE = ("<", math.inf)
    NonNegativeFloat = restricted_number_type("NonNegativeNumber", float, [(">=", 0), _FINITE])
    PositiveFloat = restricted_number_type("PositiveNumber", float, [(">", 0), _FINITE])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", SEEDS)])

__all__ = ["SEEDS", "NonNegativeFloat", "NonNegativeInt", "OpenUnitInterval", "PositiveFloat", "PositiveInt", "Seed"]
