"""Methods of error mitigation by the words of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qiskit_torch_bridge import Mitigation

MITIGATIONS = ("readout", "twirled_readout", "zne")
"""The words, in the order in which the methods are applied, whatever the order in which they are given."""


def mitigation_words(given: str | None) -> tuple[str, ...]:
    """The words of ``--mitigation``, in the order of :data:`MITIGATIONS`.

    Raises:
        ValueError: If one is none of them.
    """
    words = [] if given is None else [word.strip() for word in given.split(",")]
    if given is not None and (not set(words) <= set(MITIGATIONS) or len(set(words)) < len(words)):
        raise ValueError(f"--mitigation: got {given}, expected some of {', '.join(MITIGATIONS)}, separated by commas.")
    return tuple(word for word in MITIGATIONS if word in words)


def mitigation_of(given: str | None) -> list[Mitigation]:
    """The methods that ``--mitigation`` names, with their own defaults."""
    if given is None:
        return []
    from qiskit_torch_bridge import ReadoutCorrection, TwirledReadout, ZeroNoiseExtrapolation

    methods = {"readout": ReadoutCorrection, "twirled_readout": TwirledReadout, "zne": ZeroNoiseExtrapolation}
    return [methods[word]() for word in mitigation_words(given)]
