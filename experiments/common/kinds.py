"""Kinds of numbers that options take: to a type checker plain numbers, to the command line numbers within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

SEEDS = 2**32  # torch takes their product with a million

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    Seed = int
    PositiveFloat = float
    NonNegativeFloat = float
    OpenUnitInterval = float
else:
    from jsonargparse.typing import extend_base_type

    def _kind(name: str, base: type[int] | type[float], words: str, fits: Callable[[float], bool]) -> Any:
        """A kind of numbers, whose refusals are in these words."""

        def require(kind: object, value: Any) -> None:
            try:
                number = base(value)
                exact = isinstance(value, str) or number == value  # int takes 2.5 for 2
                accepted = exact and fits(number) and not isinstance(value, bool)
            except (TypeError, ValueError, OverflowError):
                accepted = False
            if not accepted:
                raise ValueError(f"got {value}, expected {words}")

        return extend_base_type(name, base, require)

    PositiveInt = _kind("PositiveInteger", int, "a positive integer", lambda n: n > 0)
    NonNegativeInt = _kind("NonNegativeInteger", int, "an integer of at least 0", lambda n: n >= 0)
    Seed = _kind("Seed", int, f"an integer from 0 to {SEEDS - 1}", lambda n: 0 <= n < SEEDS)
    PositiveFloat = _kind("PositiveNumber", float, "a positive, finite number", lambda x: 0 < x < math.inf)
    NonNegativeFloat = _kind("NonNegativeNumber", float, "a finite number of at least 0", lambda x: 0 <= x < math.inf)
    OpenUnitInterval = _kind("BetweenZeroAndOne", float, "a number between 0 and 1", lambda x: 0 < x < 1)

__all__ = ["SEEDS", "NonNegativeFloat", "NonNegativeInt", "OpenUnitInterval", "PositiveFloat", "PositiveInt", "Seed"]
