"""Adapter of pyqtorch, a simulator of differentiable torch operators, in double precision."""

from __future__ import annotations

import pyqtorch as pyq
import torch

from .gate_lists import Problem, Step, played, torch_step

_GATES = {"h": pyq.H, "cx": pyq.CNOT, "cz": pyq.CZ, "rx": pyq.RX, "ry": pyq.RY, "rz": pyq.RZ}
_DTYPE = torch.complex128


def build(problem: Problem, shots: int | None, seed: int) -> Step:
    """Backpropagation, which is faster than its adjoint rule here: that one takes one observable at a time."""
    names = {
        "inputs": [f"x{number}" for number in range(problem.inputs.shape[1])],
        "weights": [f"w{number}" for number in range(len(problem.weights))],
    }
    gates = [_GATES[name](*qubits, *angle) for name, qubits, angle in played(problem, **names)]
    circuit = pyq.QuantumCircuit(problem.num_qubits, gates).to(dtype=_DTYPE)
    observables = [pyq.Observable([pyq.Z(qubit)]).to(dtype=_DTYPE) for qubit in problem.measured]
    start = pyq.zero_state(problem.num_qubits, batch_size=problem.batch, dtype=_DTYPE)
    weights = torch.tensor(problem.weights, requires_grad=True)

    def function(inputs: torch.Tensor) -> torch.Tensor:
        angles = dict(zip((*names["inputs"], *names["weights"]), (*inputs.unbind(1), *weights.unbind()), strict=True))
        state = circuit.run(state=start, values=angles)
        return torch.stack([observable.expectation(state, angles) for observable in observables], dim=1)

    return torch_step(function, problem, weights if len(weights) else None)
