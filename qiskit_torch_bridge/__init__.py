"""Qiskit circuits as PyTorch layers, with exact gradients, real shots and one backend call a pass.

See :class:`QuantumLayer`. Names that need an optional package are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from .backends.base import Backend, Charge, Estimate, Request
from .backends.ibm.errors import BudgetExceeded, HardwareError, NotRecorded
from .backends.passport import Passport
from .backends.statevector import StatevectorBackend
from .bridge.evaluation import Evaluation
from .bridge.function import QuantumFunction
from .bridge.functional import evaluate
from .bridge.method import Method
from .bridge.result import LayerResult
from .dressed import DressedQuantumNet
from .gradients.rules import SPSA, Adjoint, FiniteDifference, GradientRule, ParameterShift
from .gradients.stencil import Stencil
from .layer import QuantumLayer
from .layerwise import LayerwiseQuantumLayer, Phase, complete_depth_schedule, layerwise_schedule
from .program.compiled import Program
from .quote import Quote
from .schedules import ConstantShots, GrowingShots, ShotSchedule, TargetSNR
from .shots.seeding import SeedStream
from .shots.shadow import Deviation, Shadow

if TYPE_CHECKING:
    from .backends.aer import AerBackend
    from .backends.ibm.backend import IBMBackend
    from .backends.ibm.ledger import Ledger
    from .backends.ibm.recording import Replay
    from .backends.ibm.sending import Patience
    from .backends.ibm.work import Limits
    from .backends.primitives import EstimatorBackend, SamplerBackend

__version__ = "0.1.0"

__all__ = [
    "SPSA",
    "Adjoint",
    "AerBackend",
    "Backend",
    "BudgetExceeded",
    "Charge",
    "ConstantShots",
    "Deviation",
    "DressedQuantumNet",
    "Estimate",
    "EstimatorBackend",
    "Evaluation",
    "FiniteDifference",
    "GradientRule",
    "GrowingShots",
    "HardwareError",
    "IBMBackend",
    "LayerResult",
    "LayerwiseQuantumLayer",
    "Ledger",
    "Limits",
    "Method",
    "NotRecorded",
    "ParameterShift",
    "Passport",
    "Patience",
    "Phase",
    "Program",
    "QuantumFunction",
    "QuantumLayer",
    "Quote",
    "Replay",
    "Request",
    "SamplerBackend",
    "SeedStream",
    "Shadow",
    "ShotSchedule",
    "StatevectorBackend",
    "Stencil",
    "TargetSNR",
    "complete_depth_schedule",
    "evaluate",
    "layerwise_schedule",
]

_LAZY = {
    "AerBackend": ".backends.aer",
    "IBMBackend": ".backends.ibm.backend",
    "Ledger": ".backends.ibm.ledger",
    "Limits": ".backends.ibm.work",
    "Patience": ".backends.ibm.sending",
    "Replay": ".backends.ibm.recording",
    "EstimatorBackend": ".backends.primitives",
    "SamplerBackend": ".backends.primitives",
}


def __getattr__(name: str) -> Any:
    if name == "Run":
        warn("qiskit_torch_bridge.Run is now qiskit_torch_bridge.LayerResult.", DeprecationWarning, stacklevel=2)
        return LayerResult
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
