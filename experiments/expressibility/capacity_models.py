"""Models whose effective dimension is computed: those of Abbas et al., and two of this library's circuits.

All have 4 inputs, 40 weights and 2 outputs. The quantum ones read the parity of all qubits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from qiskit.circuit import QuantumCircuit
from qiskit.circuit.library import real_amplitudes, z_feature_map, zz_feature_map
from torch import nn

from qiskit_torch_bridge import EffectiveDimensionResult, QuantumLayer, effective_dimension, effective_dimension_of
from qiskit_torch_bridge.circuits import dressed, ring_layers

_QUBITS, _WEIGHTS = 4, 40
RANGES: Mapping[str, float] = {"0 to 1": 1.0, "0 to 2 pi": 2 * np.pi}
"""Where weights are drawn: the published draws, and all angles."""


def _after(encoding: QuantumCircuit) -> QuantumLayer:
    """The ansatz of Abbas et al. behind an encoding."""
    ansatz = real_amplitudes(_QUBITS, reps=_WEIGHTS // _QUBITS - 1, entanglement="full")
    return _parity(encoding.compose(ansatz), inputs=encoding.parameters, weights=ansatz.parameters)


def _dressed() -> QuantumLayer:
    circuit, inputs, weights = dressed(_QUBITS, _WEIGHTS // _QUBITS)
    return _parity(circuit, inputs=inputs, weights=weights)


def _ring() -> QuantumLayer:
    circuit, inputs, weights = ring_layers(_QUBITS, _WEIGHTS // (2 * _QUBITS))
    return _parity(circuit, inputs=inputs, weights=[weight for layer in weights.values() for weight in layer])


def _parity(circuit: QuantumCircuit, **parameters: object) -> QuantumLayer:
    options: dict[str, object] = {"interpret": lambda outcome: outcome.bit_count() % 2, "seed": 0}
    return QuantumLayer(circuit, **parameters, probabilities=list(range(_QUBITS)), **options)  # type: ignore[arg-type]


QUANTUM_MODELS: Mapping[str, Callable[[], QuantumLayer]] = {
    "quantum": lambda: _after(zz_feature_map(_QUBITS, reps=2, entanglement="full")),
    "easy quantum": lambda: _after(z_feature_map(_QUBITS, reps=1)),
    "dressed": _dressed,
    "ring": _ring,
}
"""The first two are those of Abbas et al."""

CLASSICAL = "classical"


def dimension(
    model: str, *, data: list[int], highest: float, weight_samples: int, input_samples: int, seed: int
) -> EffectiveDimensionResult:
    """The effective dimension of a model, from the draws that the authors' code makes of this seed (0 in the paper).

    Args:
        model: One of :data:`QUANTUM_MODELS`, or :data:`CLASSICAL`.
        data: Numbers of data.
        highest: Weights are uniform from 0 to this.
        weight_samples: Draws of weights.
        input_samples: Inputs, from the standard normal distribution.
        seed: Of the draws.
    """
    generator = np.random.RandomState(seed)  # the generator of the published draws
    weights = generator.uniform(0, highest, size=(weight_samples, _WEIGHTS))
    inputs = torch.from_numpy(generator.normal(0, 1, size=(input_samples, _QUBITS)))
    if model == CLASSICAL:
        first = 1 + seed * weight_samples
        fishers = [_fisher_of_network(first + number, inputs, highest) for number in range(weight_samples)]
        return effective_dimension_of(torch.stack(fishers), data=data)
    layer = QUANTUM_MODELS[model]()
    return effective_dimension(layer, inputs, data=data, samples=weight_samples, draw=lambda rng, shape: weights)


def _fisher_of_network(seed: int, inputs: torch.Tensor, highest: float) -> torch.Tensor:
    """Shape (40, 40): of the classical network, the mean over the inputs, at weights of this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = ((4, 4), (4, 4), (4, 2))
        layers = [nn.Linear(*size, bias=False, dtype=torch.float32).double() for size in sizes]
        for layer in layers:
            nn.init.uniform_(layer.weight, 0.0, highest)
    weights = [layer.weight.detach() for layer in layers]

    def probabilities(row: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        for matrix in matrices[:-1]:
            row = nn.functional.leaky_relu(matrix @ row)
        return torch.softmax(torch.tanh(matrices[-1] @ row), dim=-1)

    slopes_of = torch.func.vmap(torch.func.jacrev(probabilities, argnums=(1, 2, 3)), in_dims=(0, None, None, None))
    slopes = torch.cat([slope.flatten(2) for slope in slopes_of(inputs, *weights)], dim=2)
    outputs = torch.func.vmap(probabilities, in_dims=(0, None, None, None))(inputs, *weights)
    scores = slopes / outputs.sqrt().unsqueeze(2)
    return (scores.mT @ scores).mean(dim=0)
