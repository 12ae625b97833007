"""Qiskit circuits as PyTorch layers, with exact gradients, real shots and one backend call a pass.

This makes a layer of a circuit, trains and measures it.

    import torch
    from qiskit.circuit import ParameterVector, QuantumCircuit
    from qiskit_torch_bridge import QuantumLayer

    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    for qubit in range(2):
        circuit.ry(x[qubit], qubit)
        circuit.rx(w[qubit], qubit)
    circuit.cx(0, 1)

    layer = QuantumLayer(circuit, inputs=x, weights=w, shots=1000)  # shots=None: exact
    values = layer(torch.rand(8, 2))  # shape (8, 2): <Z> of each qubit
    values.sum().backward()  # layer.weights.grad
    layer.last_run.standard_errors  # what the shots leave uncertain

**Guides**, a page each, also by ``help("qiskit_torch_bridge.PAGE")``:

| page | what it explains |
|---|---|
| :mod:`qiskit_torch_bridge.layer` | :class:`QuantumLayer`: all options, what comes out, which precision; typed code |
| :mod:`qiskit_torch_bridge.circuits` | circuits to begin with; :mod:`qiskit_torch_bridge.dressed`: one between two linear layers |
| :mod:`qiskit_torch_bridge.gradients` | the gradient rules, what each costs, which is taken |
| :mod:`qiskit_torch_bridge.shots` | error bars, seeds, how shots are shared out; :mod:`qiskit_torch_bridge.schedules`: shots that change in training |
| :mod:`qiskit_torch_bridge.backends` | where circuits run, and what a layer takes as a backend |
| :mod:`qiskit_torch_bridge.backends.ibm` | IBM hardware: jobs, costs, caps, the ledger, recordings; :mod:`qiskit_torch_bridge.commands`: the command ``qtb`` |
| :mod:`qiskit_torch_bridge.geometry` | states, entropies, the metric tensor, Fisher information, kernels |
| :mod:`qiskit_torch_bridge.descriptors` | what a circuit can do before it is trained: expressibility, entanglement, effective dimension |
| :mod:`qiskit_torch_bridge.optimizers` | natural gradient, Rotosolve, shots by what they are worth |
| :mod:`qiskit_torch_bridge.layerwise` | circuits that grow while they are trained |
| :mod:`qiskit_torch_bridge.simulator` | performance: the exact simulator, and what a step costs |
| :mod:`qiskit_torch_bridge.testing` | gradients that have shot noise, checked; a rule and a backend of your own |
| :mod:`qiskit_torch_bridge.program`, :mod:`qiskit_torch_bridge.bridge` | how it works inside: one free parameter a rotation; the autograd Function |

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
* What ``torch.compile`` and ``torch.export`` make cannot be differentiated twice, and an exported model needs its layers in
  the process that runs it (:mod:`qiskit_torch_bridge.bridge.operators`).
* ``is_grads_batched=True`` (the old ``vmap``) falls back to shifted circuits; use ``torch.func``.

Names are imported on first use: some need an optional package, and ``qtb --help`` needs none.
"""  # noqa: E501 - rows of a Markdown table

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from .backends.aer import AerBackend
    from .backends.base import Backend, Charge, Estimate, Request
    from .backends.density_matrix import DensityMatrixBackend
    from .backends.ibm.backend import IBMBackend
    from .backends.ibm.errors import BudgetExceeded, HardwareError, NotRecorded
    from .backends.ibm.ledger import Ledger
    from .backends.ibm.packing import Packing
    from .backends.ibm.recording import Replay
    from .backends.ibm.sending import Patience
    from .backends.ibm.workload import Limits
    from .backends.passport import Passport
    from .backends.pauli import PauliBackend
    from .backends.primitives import EstimatorBackend, SamplerBackend
    from .backends.statevector import StatevectorBackend
    from .bridge.evaluation import Evaluation
    from .bridge.function import QuantumFunction
    from .bridge.functional import evaluate
    from .bridge.method import Method
    from .bridge.result import LayerResult
    from .descriptors import (
        DescriptorResult,
        EffectiveDimensionResult,
        ExpressibilityResult,
        effective_dimension,
        effective_dimension_of,
        entangling_capability,
        expressibility,
        meyer_wallach,
    )
    from .dressed import DressedQuantumNet
    from .fidelity_kernel import FidelityKernel
    from .geometry.matrix_result import MatrixResult
    from .gradients.rules import SPSA, Adjoint, FiniteDifference, GradientRule, ParameterShift
    from .gradients.stencil import Stencil
    from .layer import QuantumLayer
    from .layerwise import LayerwiseQuantumLayer, Phase, complete_depth_schedule, layerwise_schedule
    from .mitigation.extrapolation import ZeroNoiseExtrapolation
    from .mitigation.methods import Calibration, Mitigation, MitigationPlan
    from .mitigation.mitigated import MitigatedBackend
    from .mitigation.readout_correction import ReadoutCorrection
    from .mitigation.twirled_readout import TwirledReadout
    from .optimizers.cans import CANS
    from .optimizers.natural_gradient import QuantumNaturalGradient
    from .optimizers.rotosolve import Rotosolve
    from .program.compiled import Program
    from .program.variants import Variant
    from .quote import Quote
    from .schedules import ConstantShots, GrowingShots, ShotSchedule, TargetSNR
    from .shots.seeding import SeedStream
    from .shots.shadow import Deviation, Shadow

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of the reference
    "QuantumLayer",
    "DressedQuantumNet",
    "LayerwiseQuantumLayer",
    "FidelityKernel",
    "Phase",
    "layerwise_schedule",
    "complete_depth_schedule",
    "expressibility",
    "entangling_capability",
    "effective_dimension",
    "effective_dimension_of",
    "meyer_wallach",
    "DescriptorResult",
    "ExpressibilityResult",
    "EffectiveDimensionResult",
    "GradientRule",
    "Adjoint",
    "ParameterShift",
    "FiniteDifference",
    "SPSA",
    "LayerResult",
    "MatrixResult",
    "Quote",
    "ShotSchedule",
    "ConstantShots",
    "GrowingShots",
    "TargetSNR",
    "QuantumNaturalGradient",
    "Rotosolve",
    "CANS",
    "StatevectorBackend",
    "DensityMatrixBackend",
    "PauliBackend",
    "AerBackend",
    "EstimatorBackend",
    "SamplerBackend",
    "IBMBackend",
    "Ledger",
    "Limits",
    "Packing",
    "Patience",
    "Replay",
    "Shadow",
    "Passport",
    "HardwareError",
    "BudgetExceeded",
    "NotRecorded",
    "Program",
    "Stencil",
    "Evaluation",
    "Method",
    "QuantumFunction",
    "evaluate",
    "Backend",
    "Request",
    "Estimate",
    "Charge",
    "ReadoutCorrection",
    "TwirledReadout",
    "ZeroNoiseExtrapolation",
    "Mitigation",
    "MitigationPlan",
    "Calibration",
    "MitigatedBackend",
    "Variant",
    "SeedStream",
    "Deviation",
]

_NAMES = {
    ".backends.aer": "AerBackend",
    ".backends.base": "Backend Charge Estimate Request",
    ".backends.density_matrix": "DensityMatrixBackend",
    ".backends.ibm.backend": "IBMBackend",
    ".backends.ibm.errors": "BudgetExceeded HardwareError NotRecorded",
    ".backends.ibm.ledger": "Ledger",
    ".backends.ibm.packing": "Packing",
    ".backends.ibm.recording": "Replay",
    ".backends.ibm.sending": "Patience",
    ".backends.ibm.workload": "Limits",
    ".backends.passport": "Passport",
    ".backends.pauli": "PauliBackend",
    ".backends.primitives": "EstimatorBackend SamplerBackend",
    ".backends.statevector": "StatevectorBackend",
    ".bridge.evaluation": "Evaluation",
    ".bridge.function": "QuantumFunction",
    ".bridge.functional": "evaluate",
    ".bridge.method": "Method",
    ".bridge.result": "LayerResult",
    ".descriptors": "DescriptorResult EffectiveDimensionResult ExpressibilityResult effective_dimension"
    " effective_dimension_of entangling_capability expressibility meyer_wallach",
    ".dressed": "DressedQuantumNet",
    ".fidelity_kernel": "FidelityKernel",
    ".geometry.matrix_result": "MatrixResult",
    ".gradients.rules": "SPSA Adjoint FiniteDifference GradientRule ParameterShift",
    ".gradients.stencil": "Stencil",
    ".layer": "QuantumLayer",
    ".layerwise": "LayerwiseQuantumLayer Phase complete_depth_schedule layerwise_schedule",
    ".mitigation.extrapolation": "ZeroNoiseExtrapolation",
    ".mitigation.mitigated": "MitigatedBackend",
    ".mitigation.methods": "Calibration Mitigation MitigationPlan",
    ".mitigation.readout_correction": "ReadoutCorrection",
    ".mitigation.twirled_readout": "TwirledReadout",
    ".optimizers.cans": "CANS",
    ".optimizers.natural_gradient": "QuantumNaturalGradient",
    ".optimizers.rotosolve": "Rotosolve",
    ".program.compiled": "Program",
    ".program.variants": "Variant",
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
