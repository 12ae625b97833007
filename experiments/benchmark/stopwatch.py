"""Counts the time inside a backend without knowing its insides, to tell the layer's own overhead from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qiskit_torch_bridge import Backend


@dataclass
class Stopwatch:
    """Seconds counted so far.

    Attributes:
        seconds: Of all calls together.
    """

    seconds: float = 0.0


def with_stopwatch(backend: Backend, watch: Stopwatch) -> Backend:
    """A backend that hands everything on to another one, and counts the time of every public method's calls.

    It is an instance of a class derived from the wrapped backend's, so that whoever asks for its class sees no
    difference, and whatever methods backends come to have, they are counted. What the wrapped backend calls on itself is
    counted once.
    """

    def counted(name: str) -> Callable[..., Any]:
        genuine = getattr(backend, name)

        def call(_: Any, *arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return genuine(*arguments, **options)
            finally:
                watch.seconds += time.perf_counter() - started

        return call

    methods = [name for name in dir(type(backend)) if not name.startswith("_") and callable(getattr(backend, name))]
    members: dict[str, Any] = {name: counted(name) for name in methods}
    members["__getattr__"] = lambda _, name: getattr(backend, name)
    wrapper = type(f"Timed{type(backend).__name__}", (type(backend),), members)
    made: Backend = object.__new__(wrapper)  # the attributes are the wrapped backend's
    return made
