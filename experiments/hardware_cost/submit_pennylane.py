"""A training step with PennyLane and PennyLane-Qiskit: a ``TorchLayer`` on the device ``qiskit.remote``."""

from __future__ import annotations

from typing import Any

import pennylane as qml
import torch

from ..benchmark.gate_lists import Problem, Step, played, torch_step
from ..benchmark.peers_pennylane import GATES


def build(problem: Problem, shots: int, seed: int, device: Any) -> Step:
    """Parameter shift. Rows whose inputs need gradients go one by one, as in PennyLane's demonstration of transfer learning.

    PennyLane has no gradient by the inputs of a batch with shots (its issue 4462).
    """
    remote = qml.device("qiskit.remote", wires=problem.num_qubits, backend=device, seed_transpiler=seed)

    @qml.set_shots(shots)
    @qml.qnode(remote, interface="torch", diff_method="parameter-shift")
    def circuit(inputs: Any, weights: Any) -> Any:
        for name, qubits, angle in played(problem, inputs.T, weights):
            GATES[name](*angle, wires=qubits)
        return [qml.expval(qml.Z(qubit)) for qubit in problem.measured]

    layer = qml.qnn.TorchLayer(circuit, {"weights": len(problem.weights)})
    with torch.no_grad():
        layer.weights.copy_(torch.tensor(problem.weights))

    def values(features: torch.Tensor) -> torch.Tensor:
        if problem.wants_input_gradients:
            return torch.stack([layer(row) for row in features])
        return layer(features)

    return torch_step(values, problem, layer.weights if len(problem.weights) else None)
