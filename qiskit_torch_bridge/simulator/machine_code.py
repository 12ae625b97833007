"""How the simulator's functions are compiled: without the interpreter's lock, all in one go, once on a machine."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Flag, auto
from typing import Any

from numba import njit, types
from numba.core import event, sigutils

__all__ = ["Use", "compile_for", "entry", "inner"]

_log = logging.getLogger(__name__)
_OPTIONS = {"nogil": True, "error_model": "numpy"}


class Use(Flag):
    """What layers need an entry: those of small states, of states of several blocks, with noise, or of Pauli propagation."""

    SMALL = auto()
    LARGE = auto()
    NOISY = auto()
    WIDE = auto()
    EXACT = SMALL | LARGE
    ALL = EXACT | NOISY


_entries: dict[Any, tuple[tuple[str, ...], Use]] = {}

# Wrappers for Python, which nobody would call, are a fifth of the time.
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)
"""Compiles a function that only compiled functions call.

numba compiles it once for every combination of types, and a literal is a type of its own at first: a variable of a loop
that begins as ``0`` or ``True`` makes it compile everything that is called with it twice, and throw one away.
"""


def entry(*signatures: str, use: Use = Use.EXACT) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function that Python calls, and keeps the machine code on disk for the next process.

    numba keeps it next to the source, or in the user's cache folder where that cannot be written (``NUMBA_CACHE_DIR``
    names another place). Where neither can, every process compiles anew. When one entry has to be compiled, so are all
    that the layer at hand can need: there is one wait and no other. No entry calls another: it would be compiled for both.

    Args:
        signatures: The types of the arguments, in numba's notation, for each way in which layers call the function;
            ``real`` stands for the type of a plane of the state.
        use: What needs it; nobody waits for what only other layers need.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            kernel = njit(cache=True, **_OPTIONS)(function)
        except RuntimeError as error:
            _log.warning(
                "The compiled simulator cannot be kept on disk (%s); every process compiles it anew. Set NUMBA_CACHE_DIR "
                "to a folder that can be written.",
                error,
            )
            kernel = njit(**_OPTIONS)(function)
        _entries[kernel] = signatures, use
        return kernel

    return compiled


_Types = tuple[types.Type, ...]


def _types(signature: str, real: types.Float) -> _Types:
    arguments, _ = sigutils.normalize_signature(f"({signature.replace('real', str(real))},)")
    return tuple(arguments)


def compile_for(use: Use, real: types.Float, *, but_for: tuple[Any, _Types] | None = None) -> None:
    """Compiles what layers of such a use need, or loads it from the disk.

    Args:
        use: One use.
        real: The type of a plane of the state.
        but_for: An entry and the types of its arguments that somebody else compiles.
    """
    with _seldom_collected():
        for kernel, (signatures, uses) in _entries.items():
            for signature in signatures if use in uses else ():
                arguments = _types(signature, real)
                if (kernel, arguments) != but_for:
                    kernel.compile(arguments)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Compiling makes millions of objects and frees few of them: looking for garbage would be an eighth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class _FirstUse(event.Listener):
    """Says once, before the wait, that compiling takes a while, and compiles the other entries too.

    Code that comes from the disk is not compiled, and nothing of this happens.
    """

    said = busy = False

    def on_start(self, happened: Any) -> None:
        kernel, arguments = happened.data["dispatcher"], happened.data["args"]
        if kernel not in _entries:
            return
        if not self.said:
            _FirstUse.said = True
            _log.warning(
                "Compiling the simulator for its first use: 10 to 25 seconds, for everything that layers need (values, "
                "gradients and shots, of observables and probabilities). The code is kept on disk for later processes."
            )
        if self.busy:
            return
        for real in (types.float64, types.float32):
            if any(_types(signature, real) == arguments for signature in _entries[kernel][0]):
                self._compile_all(real, (kernel, arguments))
                return

    def _compile_all(self, real: types.Float, started: tuple[Any, _Types]) -> None:
        """All entries for planes of a type, but for what has been started."""
        self.busy = True
        needed = next(use for use in (Use.SMALL, Use.LARGE, Use.NOISY, Use.WIDE) if use in _entries[started[0]][1])
        try:
            compile_for(needed, real, but_for=started)
        finally:
            self.busy = False

    def on_end(self, happened: Any) -> None:
        pass


event.register("numba:compile", _FirstUse())
