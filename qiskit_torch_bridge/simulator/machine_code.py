"""How the simulator's functions are compiled: without the interpreter's lock, once on a machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

__all__ = ["entry", "inner"]

_log = logging.getLogger(__name__)
_entries: set[str] = set()

inner = njit(nogil=True, error_model="numpy")
"""Compiles a function that only compiled functions call."""


def entry(function: Callable[..., Any]) -> Any:
    """Compiles a function that Python calls, and keeps the machine code on disk for the next process.

    numba keeps it next to the source, or in the user's cache folder where that cannot be written (``NUMBA_CACHE_DIR``
    names another place). Where neither can, every process compiles anew.
    """
    _entries.add(function.__qualname__)
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError as error:
        _log.warning(
            "The compiled simulator cannot be kept on disk (%s); every process compiles it anew. Set NUMBA_CACHE_DIR to "
            "a folder that can be written.",
            error,
        )
        return njit(**options)(function)


class _Note(event.Listener):
    """Says once, before the wait, that compiling takes a while; code that comes from the disk compiles nothing."""

    said = False

    def on_start(self, happened: Any) -> None:
        function = happened.data["dispatcher"].py_func
        if not self.said and function.__module__.startswith(__package__) and function.__qualname__ in _entries:
            self.said = True
            _log.warning(
                "Compiling the simulator for its first use: some seconds each for values, gradients and shots. The code is "
                "kept on disk for later processes."
            )

    def on_end(self, happened: Any) -> None:
        pass


event.register("numba:compile", _Note())
