"""Adapters of this project: the public ``QuantumLayer``, and the same with a stopwatch inside."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend

from .gate_lists import Problem
from .qiskit_circuits import quantum_circuit, z_labels
from .step import Step, torch_step
from .stopwatch import Stopwatch, with_stopwatch


def build(problem: Problem, shots: int | None, seed: int, *, backend: Any = None) -> Step:
    """The layer as a user makes it: the adjoint rule for exact values, parameter shift with shots."""
    circuit, inputs, weights = quantum_circuit(problem)
    layer = QuantumLayer(
        circuit,
        inputs=inputs,
        weights=weights,
        observables=z_labels(problem),
        backend=backend,
        shots=shots,
        seed=seed,
        init=torch.tensor(problem.weights),
    )
    parameters = layer.weights
    assert not isinstance(parameters, torch.nn.ParameterDict)
    return torch_step(layer, problem, parameters)


def build_with_stopwatch(problem: Problem, shots: int | None, seed: int) -> Step:
    """The same, with the time that the layer spends inside its backend counted."""
    watch = Stopwatch()
    step = build(problem, shots, seed, backend=with_stopwatch(resolve_backend(None), watch))
    return Step(step.take, kernel_seconds=lambda: watch.seconds)


build_on_aer = partial(build, backend="aer")
