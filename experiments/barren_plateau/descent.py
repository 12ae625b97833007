"""Training one of the circuits with shots, from a random start, from zeros, or layer by layer."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from qiskit.circuit import ParameterVector

from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase
from qiskit_torch_bridge.circuits import LayeredCircuit, rotation_layers
from qiskit_torch_bridge.layerwise import complete_depth_schedule, layerwise_schedule

from ..common.cells import Cell
from .ensemble import START

STRATEGIES = {"random start": "uniform", "zero start": "zeros", "layer by layer": "zeros"}
"""Ways to train, with the angles that they start from."""

_LAYERS_A_STEP = 2


def plateau_circuit(axes: np.ndarray) -> LayeredCircuit:
    """The circuit whose rotations are about the axes (0, 1, 2 for X, Y, Z) of shape (layers, qubits)."""
    layers = rotation_layers([[f"r{'xyz'[axis]}" for axis in layer] for layer in axes])
    circuit = layers.circuit.copy_empty_like()
    circuit.ry(START, circuit.qubits)
    circuit.compose(layers.circuit, inplace=True)
    encoded = dict.fromkeys(layers.inputs, 0.0)
    return LayeredCircuit(circuit.assign_parameters(encoded), ParameterVector("x", 0), layers.weights)


def train(cell: Cell, seed: np.random.SeedSequence) -> dict[str, Any]:
    """Minimises <Z0 Z1> on one circuit with Adam and parameter shift; returns what it came to.

    Args:
        cell: With ``qubits``, ``layers``, ``strategy``, ``steps`` (of the optimiser, in all), ``shots`` (a circuit), ``lr``.
        seed: Draws the circuit, the start and the shots.
    """
    for_axes, for_layer = seed.spawn(2)
    qubits, layers, strategy = cell["qubits"], cell["layers"], cell["strategy"]
    axes = np.random.default_rng(for_axes).integers(3, size=(layers, qubits))
    phases = _phases(strategy, layers, cell["steps"])
    noisy = LayerwiseQuantumLayer(
        lambda depth: plateau_circuit(axes[:depth]),
        phases[0].depth,
        init=STRATEGIES[strategy],
        observables="I" * (qubits - 2) + "ZZ",
        shots=cell["shots"],  # with which the gradient is that of parameter shift
        seed=for_layer.generate_state(4).tolist(),
    ).double()
    gradients = []
    for phase in phases:
        noisy.enter(phase)
        gradients.append(_exact(noisy)[1])
        trained = [weights for weights in noisy.parameters() if weights.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=cell["lr"])
        for _ in range(phase.epochs):
            optimizer.zero_grad()
            noisy().sum().backward()
            optimizer.step()
    return {
        "cost": _exact(noisy)[0],
        "first_gradient_rms": gradients[0],
        "mean_gradient_rms": float(np.mean(gradients)),
        "shots_spent": noisy.quantum.total_shots,
    }


def _phases(strategy: str, layers: int, steps: int) -> tuple[Phase, ...]:
    if strategy != "layer by layer":
        return complete_depth_schedule(layers, steps)
    number = layers // _LAYERS_A_STEP
    return layerwise_schedule(steps=number, layers_per_step=_LAYERS_A_STEP, epochs=max(1, steps // number))


def _exact(noisy: LayerwiseQuantumLayer) -> tuple[float, float]:
    """The exact cost, and the root mean square of its derivatives by the weights that are trained now."""
    twin = deepcopy(noisy)
    twin.zero_grad()
    twin.quantum.shots = None
    cost = twin().sum()
    cost.backward()
    gradient = torch.cat([weights.grad for weights in twin.parameters() if weights.grad is not None])
    return cost.item(), gradient.norm().item() / math.sqrt(len(gradient))
