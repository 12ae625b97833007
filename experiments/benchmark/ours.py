"""Adapters of this project: the public ``QuantumLayer``, and the same with a stopwatch inside."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from qiskit_torch_bridge import Backend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend

from .gate_lists import Problem, Step, compiled, quantum_circuit, torch_step, z_labels


def build(problem: Problem, shots: int | None, seed: int, *, backend: Any = None, compile: bool = False) -> Step:
    """The layer as a user makes it: the adjoint rule for exact values, parameter shift with shots."""
    circuit, inputs, weights = quantum_circuit(problem)
    parameters = {"inputs": inputs, "weights": weights, "init": torch.tensor(problem.weights)}
    layer = QuantumLayer(circuit, **parameters, observables=z_labels(problem), backend=backend, shots=shots, seed=seed)
    assert not isinstance(layer.weights, torch.nn.ParameterDict)
    return torch_step(compiled(layer) if compile else layer, problem, layer.weights)


def build_with_stopwatch(problem: Problem, shots: int | None, seed: int) -> Step:
    """The same, with the time that the layer spends inside its backend counted."""
    backend, kernel_seconds = with_stopwatch(resolve_backend(None))
    return Step(build(problem, shots, seed, backend=backend).take, kernel_seconds=kernel_seconds)


build_on_aer = partial(build, backend="aer")
build_compiled = partial(build, compile=True)


def with_stopwatch(backend: Backend) -> tuple[Backend, Callable[[], float]]:
    """A backend that hands everything on to another one, and the seconds so far of all calls of its public methods.

    They tell the layer's own overhead from the time inside a backend, without knowing its insides. It is a copy of the
    other one whose public methods are counted, so that whoever asks for its class sees no difference, and whatever
    methods backends come to have, they are counted. What a backend calls on itself is counted once. Where a backend has
    an object do its exact steps (``step_of``), that object's methods are counted too.
    """
    seconds = 0.0

    def counted(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seconds
            started = time.perf_counter()
            try:
                return genuine(*arguments, **options)
            finally:
                seconds += time.perf_counter() - started

        return call

    def watched(genuine: Any) -> Any:
        made = copy.copy(genuine)
        for name in dir(type(genuine)):
            if not name.startswith("_") and callable(getattr(type(genuine), name)):
                setattr(made, name, counted(getattr(genuine, name)))
        return made

    made = watched(backend)
    if hasattr(backend, "step_of"):
        made.step_of = cache(lambda program: watched(backend.step_of(program)))
    return made, lambda: seconds
