"""Qiskit circuits as PyTorch layers, with exact gradients, real shots and one backend call a pass.

See :class:`QuantumLayer`. Names that need an optional package are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .autograd import Evaluation, QuantumFunction
from .backends.base import Backend, Estimate
from .backends.statevector import StatevectorBackend
from .dressed import DressedQuantumNet
from .gradients import SPSA, Adjoint, FiniteDifference, GradientRule, ParameterShift
from .layer import QuantumLayer, Quote, Run, evaluate
from .layerwise import LayerwiseQuantumLayer, Phase, complete_depth_schedule, layerwise_schedule
from .program import Program
from .seeding import SeedStream
from .stencil import Stencil

if TYPE_CHECKING:
    from .backends.aer import AerBackend
    from .backends.primitives import EstimatorBackend, SamplerBackend

__version__ = "0.1.0"

__all__ = [
    "SPSA",
    "Adjoint",
    "AerBackend",
    "Backend",
    "DressedQuantumNet",
    "Estimate",
    "EstimatorBackend",
    "Evaluation",
    "FiniteDifference",
    "GradientRule",
    "LayerwiseQuantumLayer",
    "ParameterShift",
    "Phase",
    "Program",
    "QuantumFunction",
    "QuantumLayer",
    "Quote",
    "Run",
    "SamplerBackend",
    "SeedStream",
    "StatevectorBackend",
    "Stencil",
    "complete_depth_schedule",
    "evaluate",
    "layerwise_schedule",
]

_LAZY = {
    "AerBackend": ".backends.aer",
    "EstimatorBackend": ".backends.primitives",
    "SamplerBackend": ".backends.primitives",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
