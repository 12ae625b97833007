"""Adapters of PennyLane: ``default.qubit``, ``default.mixed``, ``lightning.qubit``, and Aer through PennyLane-Qiskit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pennylane as qml
import torch

from .gate_lists import Depolarising, Problem, Step, played, torch_step

GATES = {"h": qml.Hadamard, "cx": qml.CNOT, "cz": qml.CZ, "rx": qml.RX, "ry": qml.RY, "rz": qml.RZ}
_PAULIS = [np.eye(2), *(qml.matrix(pauli(0)) for pauli in (qml.X, qml.Y, qml.Z))]


def _circuit(problem: Problem) -> Callable[[Any, Any], list[Any]]:
    """From inputs, of which the last axis is that of the columns, and weights to a value for each output."""

    def circuit(inputs: Any, weights: Any) -> list[Any]:
        for name, qubits, angle in played(problem, inputs.T if inputs.ndim == 2 else inputs, weights):
            GATES[name](*angle, wires=qubits)
            if problem.noise is not None:
                _depolarise(problem.noise, qubits)
        return [qml.expval(qml.Z(qubit)) for qubit in problem.measured]

    return circuit


def _build(problem: Problem, shots: int | None, device: Any, exact_rule: str) -> Step:
    rule = exact_rule if shots is None else "parameter-shift"
    node = qml.QNode(_circuit(problem), device, interface="torch", diff_method=rule)
    if shots is not None:
        node = qml.set_shots(node, shots)
    weights = torch.tensor(problem.weights, requires_grad=True)
    # With shots, a broadcast batch whose inputs need gradients raises NotImplementedError (PennyLane issue 4462). A
    # batch of one is faster without broadcasting.
    row_by_row = problem.batch == 1 or (shots is not None and problem.wants_input_gradients)

    def values(inputs: torch.Tensor) -> torch.Tensor:
        if row_by_row:
            return torch.stack([torch.stack(node(row, weights)) for row in inputs])
        return torch.stack(node(inputs, weights), dim=-1)

    return torch_step(values, problem, weights)


def _depolarise(noise: Depolarising, qubits: tuple[int, ...]) -> None:
    """Their own channel where there is one: each Pauli matrix with a third of its argument."""
    probabilities = noise.pauli_probabilities(qubits)
    if len(qubits) == 1:
        qml.DepolarizingChannel(1 - probabilities[0], wires=qubits)
        return
    pairs = product(_PAULIS, repeat=2)
    kraus = [np.sqrt(p) * np.kron(*pair) for p, pair in zip(probabilities, pairs, strict=True)]
    qml.QubitChannel(kraus, wires=qubits)


def build_default(problem: Problem, shots: int | None, seed: int) -> Step:
    """``default.qubit``: backpropagation through the simulator, its fastest exact rule with torch."""
    return _build(problem, shots, qml.device("default.qubit", wires=problem.num_qubits, seed=seed), "backprop")


def build_mixed(problem: Problem, shots: int | None, seed: int) -> Step:
    """``default.mixed``: density matrices, for noise; backpropagation through the simulator."""
    return _build(problem, shots, qml.device("default.mixed", wires=problem.num_qubits, seed=seed), "backprop")


def build_lightning(problem: Problem, shots: int | None, seed: int) -> Step:
    """``lightning.qubit``: its compiled adjoint rule; with a batch, PennyLane expands it into a list of circuits."""
    return _build(problem, shots, qml.device("lightning.qubit", wires=problem.num_qubits, seed=seed), "adjoint")


def build_tensor_values(problem: Problem, shots: int | None, seed: int) -> Step:
    """``default.tensor``: matrix product states, forward alone."""
    node = qml.QNode(_circuit(problem), qml.device("default.tensor", wires=problem.num_qubits, method="mps"))
    return Step(lambda: (np.array([node(row, problem.weights) for row in problem.inputs]), None, None))


def build_on_aer(problem: Problem, shots: int | None, seed: int) -> Step:
    """``qiskit.aer`` of PennyLane-Qiskit, which has no exact gradients of its own: parameter shift."""
    # PennyLane finds the plug-in by its entry point, and hides why it does not import.
    importlib.import_module("pennylane_qiskit")
    device = qml.device("qiskit.aer", wires=problem.num_qubits, seed_simulator=seed)
    return _build(problem, shots, device, "parameter-shift")
