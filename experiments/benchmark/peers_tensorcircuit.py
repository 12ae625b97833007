"""Adapters of TensorCircuit-NG: a whole step compiled by JAX, and its torch interface; both in double precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import tensorcircuit as tc
import torch

from .gate_lists import Problem, Step, played, torch_step

tc.set_backend("jax")
tc.set_dtype("complex128")
jax.config.update("jax_enable_x64", True)


def _values_of_row(problem: Problem, **options: Any) -> Callable[[Any, Any], Any]:
    """From the inputs of one row, shape (I,), and all weights to the outputs, in JAX; options are those of expectations."""

    def values(inputs: Any, weights: Any) -> Any:
        circuit = (tc.Circuit if problem.noise is None else tc.DMCircuit)(problem.num_qubits)
        for name, qubits, angle in played(problem, inputs, weights):
            getattr(circuit, name)(*qubits, **dict(zip(("theta",), angle, strict=False)))
            if problem.noise is not None:
                _, each, *_ = problem.noise.pauli_probabilities(qubits)
                circuit.general_kraus(tc.channels.generaldepolarizingchannel(each, len(qubits)), *qubits)
        return jax.numpy.stack([circuit.expectation_ps(z=[qubit], **options).real for qubit in problem.measured])

    return values


def build_on_jax(problem: Problem, shots: int | None, seed: int, **options: Any) -> Step:
    """No torch at all: values and gradients of the whole batch in one compiled call, inputs and outputs JAX's own."""
    values_of_row = _values_of_row(problem, **options)
    wanted = tuple(
        number for number, is_wanted in enumerate((problem.wants_input_gradients, len(problem.weights))) if is_wanted
    )

    def weighted_sum(inputs: Any, weights: Any, upstream: Any) -> tuple[Any, Any]:
        values = values_of_row(inputs, weights)
        return (values * upstream).sum(), values

    of_batch = jax.vmap(jax.value_and_grad(weighted_sum, argnums=wanted, has_aux=True), in_axes=(0, None, 0))

    @jax.jit
    def step(inputs: Any, weights: Any, upstream: Any) -> tuple[Any, Any, Any]:
        (_, values), found = of_batch(inputs, weights, upstream)
        gradients = dict(zip(wanted, found, strict=True))
        return values, gradients.get(0), gradients[1].sum(axis=0) if 1 in gradients else None

    numbers = [jax.numpy.asarray(each) for each in (problem.inputs, problem.weights, problem.upstream)]
    return Step(lambda: jax.block_until_ready(step(*numbers)))


build_cones_on_jax = partial(build_on_jax, enable_lightcone=True)


def build_on_torch(problem: Problem, shots: int | None, seed: int) -> Step:
    """Its ``torch_interface``: forward, and forward with backward, are each one compiled call of JAX."""
    of_batch = jax.vmap(_values_of_row(problem), in_axes=(0, None))
    function = tc.interfaces.torch_interface(of_batch, jit=True, enable_dlpack=True)
    weights = torch.tensor(problem.weights, requires_grad=True)
    return torch_step(lambda inputs: function(inputs, weights), problem, weights if len(weights) else None)
