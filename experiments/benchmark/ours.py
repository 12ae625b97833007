"""Adapters of this project: the public ``QuantumLayer``, exact, noisy or on Aer, and the same with a stopwatch inside."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from qiskit_torch_bridge import Backend, DensityMatrixBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend

from .gate_lists import Depolarising, Problem, Step, compiled, quantum_circuit, torch_step, z_labels

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel


def build(problem: Problem, shots: int | None, seed: int, *, backend: Any = None, compile: bool = False) -> Step:
    """The layer as a user makes it: the adjoint rule for exact values, parameter shift with shots.

    A problem with noise runs on ``DensityMatrixBackend``, unless a backend is given.
    """
    if backend is None and problem.noise is not None:
        backend = DensityMatrixBackend(noise_model(problem.noise))
    circuit, inputs, weights = quantum_circuit(problem)
    parameters = {"inputs": inputs, "weights": weights, "init": torch.tensor(problem.weights)}
    layer = QuantumLayer(circuit, **parameters, observables=z_labels(problem), backend=backend, shots=shots, seed=seed)
    assert not isinstance(layer.weights, torch.nn.ParameterDict)
    return torch_step(compiled(layer) if compile else layer, problem, layer.weights)


def build_with_stopwatch(problem: Problem, shots: int | None, seed: int) -> Step:
    """The same, with the time that the layer spends inside its backend counted."""
    backend, kernel_seconds = with_stopwatch(resolve_backend(None))
    return Step(build(problem, shots, seed, backend=backend).take, kernel_seconds=kernel_seconds)


build_compiled = partial(build, compile=True)


def build_values(problem: Problem, shots: int | None, seed: int, *, backend: Any = None) -> Step:
    """Forward alone."""
    circuit, inputs, weights = quantum_circuit(problem)
    parameters = {"inputs": inputs, "weights": weights, "init": torch.tensor(problem.weights)}
    layer = QuantumLayer(circuit, **parameters, observables=z_labels(problem), backend=backend, shots=shots, seed=seed)
    features = torch.tensor(problem.inputs)

    def take() -> tuple[Any, Any, Any]:
        with torch.no_grad():
            return layer(features), None, None

    return Step(take)


def build_values_on_mps(problem: Problem, shots: int | None, seed: int) -> Step:
    """Forward alone, by Aer's matrix product states."""
    from qiskit_aer import AerSimulator

    return build_values(problem, shots, seed, backend=AerSimulator(method="matrix_product_state"))


def build_on_aer(problem: Problem, shots: int | None, seed: int) -> Step:
    """The same on Aer: a plain simulator, or one with the problem's noise model."""
    if problem.noise is None:
        return build(problem, shots, seed, backend="aer")
    from qiskit_aer import AerSimulator

    return build(problem, shots, seed, backend=AerSimulator(noise_model=noise_model(problem.noise)))


def noise_model(noise: Depolarising) -> NoiseModel:
    """The noise in Aer's terms; all gates of the gate lists are basis gates of the model, and none is translated."""
    from qiskit_aer.noise import NoiseModel, depolarizing_error

    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(noise.one_qubit, 1), ["h", "rx", "ry", "rz"])
    model.add_all_qubit_quantum_error(depolarizing_error(noise.two_qubit, 2), ["cx", "cz"])
    return model


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
