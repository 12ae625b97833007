"""A training step of this library on an IBM device: the public ``QuantumLayer`` on ``IBMBackend``."""

from __future__ import annotations

from typing import Any

import torch

from qiskit_torch_bridge import IBMBackend, QuantumLayer

from ..benchmark.gate_lists import Problem, Step, quantum_circuit, torch_step, z_labels


def build(problem: Problem, shots: int, seed: int, device: Any) -> Step:
    """Parameter shift, which is what the layer takes by itself on a device; nothing is kept in a file."""
    circuit, inputs, weights = quantum_circuit(problem)
    layer = QuantumLayer(
        circuit,
        inputs=inputs,
        weights=weights,
        observables=z_labels(problem),
        backend=IBMBackend(device, ledger=":memory:"),
        shots=shots,
        init=torch.tensor(problem.weights),
        seed=seed,
    )
    assert not isinstance(layer.weights, torch.nn.ParameterDict)
    return torch_step(layer, problem, layer.weights)
