"""Deprecated name of :mod:`qiskit_torch_bridge.program.readout` and :mod:`qiskit_torch_bridge.program.observables`."""

import warnings
from typing import Any

from .program import observables as _observables
from .program import readout as _readout

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    module = _observables if name in _observables.__all__ else _readout
    value = getattr(module, name)
    if not name.startswith("__"):
        message = f"qiskit_torch_bridge.readout is now {module.__name__}; import {name} from there."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    return value
