"""Adapters of PyTorch itself: a simulator written by hand, eager and compiled, and floors for the textbook's circuit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .gate_lists import Problem, Step, compiled, played, torch_step

_AXIS = 3  # of a qubit that has an axis of its own


def build(problem: Problem, shots: int | None, seed: int, *, compile: bool = False) -> Step:
    """A statevector simulator of public operators: a few for each gate, on the states of the whole batch."""
    weights = torch.tensor(problem.weights, requires_grad=True)
    run = compiled(_simulator(problem)) if compile else _simulator(problem)
    return torch_step(lambda inputs: run(inputs, weights), problem, weights if len(weights) else None)


def build_compiled(problem: Problem, shots: int | None, seed: int) -> Step:
    """The same as one graph of ``torch.compile``."""
    return build(problem, shots, seed, compile=True)


def _simulator(problem: Problem) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """From inputs, shape (batch, I), and weights to values, shape (batch, outputs).

    States have shape (2, batch, 2^n), real parts before imaginary ones, since ``torch.compile`` makes no code of its own
    for complex numbers.
    """
    n = problem.num_qubits
    index = torch.arange(2**n)
    signs = torch.stack([1.0 - 2.0 * (index >> (n - 1 - qubit) & 1) for qubit in problem.measured], dim=1).double()

    def values(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        batch = len(inputs)
        state = torch.zeros(2, batch, 2**n, dtype=torch.float64)
        state[0, :, 0] = 1
        by_row = inputs.T[:, :, None, None] / 2
        angles = (
            [*zip(by_row.cos(), by_row.sin(), strict=True)],
            [*zip((weights / 2).cos(), (weights / 2).sin(), strict=True)],
        )
        for name, qubits, angle in played(problem, *angles):
            if len(qubits) == 2:
                state = _controlled(state.reshape(2, batch, *(2,) * n), name, *qubits).reshape(2, batch, -1)
            else:
                parts = state.reshape(2, batch, 2 ** qubits[0], 2, -1).unbind(_AXIS)
                state = torch.stack(_turned(name, *parts, *angle), dim=_AXIS).reshape(2, batch, -1)
        return state.square().sum(dim=0) @ signs

    return values


def _turned(name: str, zero: torch.Tensor, one: torch.Tensor, angle: Any = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """The amplitudes with the qubit at 0 and at 1, after the gate; the angle is given as cosine and sine of its half."""
    if name == "h":
        return (zero + one) * math.sqrt(0.5), (zero - one) * math.sqrt(0.5)
    cosine, sine = angle
    if name == "ry":
        return cosine * zero - sine * one, sine * zero + cosine * one
    if name == "rx":
        return cosine * zero + sine * _times_minus_i(one), cosine * one + sine * _times_minus_i(zero)
    return cosine * zero + sine * _times_minus_i(zero), cosine * one - sine * _times_minus_i(one)


def _times_minus_i(amplitudes: torch.Tensor) -> torch.Tensor:
    real, imaginary = amplitudes
    return torch.stack((imaginary, -real))


def _controlled(state: torch.Tensor, name: str, control: int, target: int) -> torch.Tensor:
    """The state after CNOT or CZ; each qubit has an axis, behind those of parts and batch."""
    off, on = state.unbind(2 + control)
    axis = 2 + target - (target > control)
    if name == "cx":
        on = on.flip(axis)
    else:
        zero, one = on.unbind(axis)
        on = torch.stack((zero, -one), dim=axis)
    return torch.stack((off, on), dim=2 + control)


class _Cosine(torch.autograd.Function):
    """The cosine of the textbook's circuit, by NumPy: the least that a layer costs whose numbers are not by PyTorch."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        return torch.from_numpy(np.cos(inputs.numpy() + math.pi / 2))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
        (inputs,) = ctx.saved_tensors
        return torch.from_numpy(-np.sin(inputs.numpy() + math.pi / 2) * upstream[0].numpy())


def build_function(problem: Problem, shots: int | None, seed: int) -> Step:
    """The textbook's circuit as a trivial ``torch.autograd.Function``."""
    return torch_step(_Cosine.apply, problem, None)


def build_cosine(problem: Problem, shots: int | None, seed: int) -> Step:
    """The textbook's circuit as ``torch.cos``."""
    return torch_step(lambda inputs: (inputs + math.pi / 2).cos(), problem, None)
