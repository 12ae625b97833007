"""A layer whose circuit has a closed form, written in torch: derivatives of any order are compared with PyTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from torch.func import functional_call

from qiskit_torch_bridge import QuantumLayer, StatevectorBackend

X = ParameterVector("x", 2)
W = ParameterVector("w", 3)
EXACT_RULES = ["adjoint", "parameter_shift"]
RULES = [*EXACT_RULES, "finite_difference"]
RULE_ATOL = {"adjoint": 1e-10, "parameter_shift": 1e-10, "finite_difference": 1e-7}
every_rule = pytest.mark.parametrize("rule", RULES)
exact_rule = pytest.mark.parametrize("rule", EXACT_RULES)

BACKENDS: dict[str, Callable[[], Any]] = {
    "statevector": StatevectorBackend,
    "aer": AerSimulator,
    "StatevectorSampler": StatevectorSampler,
    "StatevectorEstimator": StatevectorEstimator,
    "Aer SamplerV2": AerSampler,
    "Aer EstimatorV2": AerEstimator,
}

# Forward mode loads torch's decompositions for jvp, which use torch.jit; PyTorch 2.9 and later deprecate it.
forward_mode = pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.:FutureWarning", r"ignore:`torch\.jit\.:DeprecationWarning"
)


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0] + 2 * X[1], 0)
    qc.ry(X[1] * W[0], 1)
    qc.cx(0, 1)
    qc.rx(W[1], 1)
    qc.ry(W[2], 0)
    return qc


def closed_form(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """<Z> of qubits 0 and 1."""
    a, b = x[..., 0] + 2 * x[..., 1], x[..., 1] * w[0]
    first = torch.cos(w[2]) * torch.cos(a) - torch.sin(w[2]) * torch.sin(a) * torch.sin(b)
    return torch.stack([first, torch.cos(a) * torch.cos(b) * torch.cos(w[1])], dim=-1)


def make_layer(**options: Any) -> QuantumLayer:
    settings = {"inputs": X, "weights": W, "observables": ["IZ", "ZI"], "seed": 3} | options
    return QuantumLayer(circuit(), **settings)


def double_layer(**options: Any) -> QuantumLayer:
    return make_layer(**options).double()


def features(*lead: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*lead, 2, generator=generator, dtype=torch.float64)


def call(layer: QuantumLayer) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The layer as a function of inputs and weights."""
    return lambda x, w: functional_call(layer, {"weights": w}, (x,))


def assert_close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=atol)
