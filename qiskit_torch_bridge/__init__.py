"""Qiskit circuits as PyTorch layers, with exact gradients, real shots and one backend call a pass.

See :class:`QuantumLayer`. Names are imported on first use: some need an optional package, and ``qtb --help`` needs none.

**Known limits** (those of IBM hardware: :mod:`qiskit_torch_bridge.backends.ibm`)

* Error bars: gradients under the transforms of ``torch.func`` have none (``last_run.gradients`` is None); an empty batch
  leaves ``last_run`` as it was.
* Allocation by sensitivity is not for hardware, where the gradient leaves together with the values.
* Aer 0.18 does not bind parameters of controlled gates (https://github.com/Qiskit/qiskit-aer/issues/2403); parameterised
  ``cp`` therefore runs as ``p`` and ``cx`` there.
* Layers that were pickled whole by an earlier version do not load; their ``state_dict`` does.
* Memory is checked against what the machine has free; a container's lower limit is not seen.
* PyTorch gives zeros for forward mode within forward mode (``jacfwd(jacfwd(f))``) of custom functions; the layer refuses it.
  Use ``hessian``, or ``jacrev(jacfwd(f))``.
* ``torch.compile`` breaks the graph around the layer, and ``is_grads_batched=True`` (the old ``vmap``) falls back to shifted
  circuits; use ``torch.func``.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from .backends.aer import AerBackend
    from .backends.base import Backend, Charge, Estimate, Request
    from .backends.ibm.backend import IBMBackend
    from .backends.ibm.errors import BudgetExceeded, HardwareError, NotRecorded
    from .backends.ibm.ledger import Ledger
    from .backends.ibm.recording import Replay
    from .backends.ibm.sending import Patience
    from .backends.ibm.workload import Limits
    from .backends.passport import Passport
    from .backends.primitives import EstimatorBackend, SamplerBackend
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

_NAMES = {
    ".backends.aer": "AerBackend",
    ".backends.base": "Backend Charge Estimate Request",
    ".backends.ibm.backend": "IBMBackend",
    ".backends.ibm.errors": "BudgetExceeded HardwareError NotRecorded",
    ".backends.ibm.ledger": "Ledger",
    ".backends.ibm.recording": "Replay",
    ".backends.ibm.sending": "Patience",
    ".backends.ibm.workload": "Limits",
    ".backends.passport": "Passport",
    ".backends.primitives": "EstimatorBackend SamplerBackend",
    ".backends.statevector": "StatevectorBackend",
    ".bridge.evaluation": "Evaluation",
    ".bridge.function": "QuantumFunction",
    ".bridge.functional": "evaluate",
    ".bridge.method": "Method",
    ".bridge.result": "LayerResult",
    ".dressed": "DressedQuantumNet",
    ".gradients.rules": "SPSA Adjoint FiniteDifference GradientRule ParameterShift",
    ".gradients.stencil": "Stencil",
    ".layer": "QuantumLayer",
    ".layerwise": "LayerwiseQuantumLayer Phase complete_depth_schedule layerwise_schedule",
    ".program.compiled": "Program",
    ".quote": "Quote",
    ".schedules": "ConstantShots GrowingShots ShotSchedule TargetSNR",
    ".shots.seeding": "SeedStream",
    ".shots.shadow": "Deviation Shadow",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "Run":
        warn("qiskit_torch_bridge.Run is now qiskit_torch_bridge.LayerResult.", DeprecationWarning, stacklevel=2)
        return __getattr__("LayerResult")
    if name in _MODULE_OF:
        value = globals()[name] = getattr(import_module(_MODULE_OF[name], __name__), name)
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
