"""Deprecated name of :mod:`qiskit_torch_bridge.program.readout`."""

import warnings
from typing import Any

from .program import readout as _readout

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    value = getattr(_readout, name)
    if not name.startswith("__"):
        message = "qiskit_torch_bridge.readout is now qiskit_torch_bridge.program.readout; import from there."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    return value
