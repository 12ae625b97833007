"""Streams of random seeds: one number makes a run repeatable, and no two calls share their noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch

from ..arguments import require_integer

__all__ = ["SeedStream"]


class SeedStream:
    """A repeatable sequence of independent :class:`numpy.random.SeedSequence` children.

    A simulator given the same seed at every call repeats the same shot noise at every call, so that averages over calls
    never improve. Each call to :meth:`next` therefore hands out a fresh child, and the pair ``(entropy, position)`` is
    all that has to be saved to continue a run to the last bit (of what that asks, see :mod:`qiskit_torch_bridge.shots`).

    Args:
        seed: A non-negative integer, or a sequence of them; or None to draw the entropy from PyTorch's global generator,
            so that ``torch.manual_seed`` makes the whole program repeatable. Processes that share a seed share their
            noise: give each its own, such as ``(seed, rank)``.

    Raises:
        TypeError: If ``seed`` is none of these.
        ValueError: If it is negative, or empty.
    """

    def __init__(self, seed: int | Sequence[int] | None = None) -> None:
        if seed is None:
            seed = int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))
        self.entropy = _entropy("seed", seed)
        self.position = 0
        self._lock = Lock()

    def next(self) -> np.random.SeedSequence:
        """The next child of the stream."""
        with self._lock:
            position = self.position
            self.position += 1
        return np.random.SeedSequence(self.entropy, spawn_key=(position,))

    def skip(self) -> None:
        """Leaves out the next child."""
        with self._lock:
            self.position += 1

    def spawned(self, position: int) -> SeedStream:
        """A stream of its own, named after a place in this one."""
        return SeedStream((*self.entropy, position))

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to continue from here."""
        return {"entropy": list(self.entropy), "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where ``state`` (from :meth:`state`) was taken.

        Raises:
            TypeError, ValueError: If it is no such state; nothing has changed then.
        """
        if not isinstance(state, Mapping) or not {"entropy", "position"} <= set(state):
            raise TypeError(f"state: got {state!r}, expected what get_rng_state() gives: {self.state()}, for example.")
        position = require_integer("state['position']", state["position"], least=0)
        self.entropy, self.position = _entropy("state['entropy']", state["entropy"]), position

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __repr__(self) -> str:
        return f"SeedStream(entropy={self.entropy}, position={self.position})"


def _entropy(name: str, seed: Any) -> tuple[int, ...]:
    parts = (seed,) if isinstance(seed, (int, np.integer)) else seed
    if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence):
        raise TypeError(f"{name}: got {seed!r} ({type(seed).__name__}), expected a non-negative integer or None.")
    if not all(isinstance(part, (int, np.integer)) and not isinstance(part, bool) for part in parts):
        raise TypeError(f"{name}: got {seed!r}, expected a non-negative integer or None.")
    if not parts or min(parts) < 0:
        raise ValueError(f"{name}: got {seed}, expected a non-negative integer or None.")
    return tuple(int(part) for part in parts)
