r"""Final states as a differentiable function of a program's angles, of any order.

With a generator :math:`P` whose square is 1, the state behind :math:`e^{-i\theta P/2}` has the derivative
:math:`\partial\psi = \tfrac12\psi(\theta + \pi)`: another state, exactly. A phase on part of the amplitudes (``cp``) has
:math:`\tfrac i2(\psi(\theta) - \psi(\theta + \pi))`. Pauli strings of mixed states obey the two-term shift rule. So each is
a table of shifts (:class:`qiskit_torch_bridge.Stencil`), and the derivative of a state is made of states at shifted angles.

The first order takes one sweep back (:meth:`qiskit_torch_bridge.simulator.final_states.FinalStates.pullback`); the table
serves forward mode and all further orders.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from qiskit.circuit import Parameter

from ..bridge import transforms
from ..bridge.evaluation import refuse_block_gradients, require_finite
from ..gradients.stencil import Stencil
from ..program.angles import batch_size
from ..program.compiled import Program

if TYPE_CHECKING:
    from ..simulator.final_states import FinalStates

__all__ = ["StateFunction", "StateMap", "groups_of"]


def groups_of(
    program: Program, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """All angles, a tensor of shape (N, A_g) a group, float64, on the CPU; differentiable.

    Args:
        program: The compiled circuit.
        inputs: Shape (N, I); None where the circuit has no inputs (then N = 1).
        weights: A tensor of shape (W_g,) a weight group.

    Raises:
        ValueError: If a gradient by inputs that are only defined as numbers is wanted.
    """
    exact = None if inputs is None else inputs.to("cpu", torch.float64)
    groups = program.angle_map(exact, [weight.to("cpu", torch.float64) for weight in weights])
    if torch.is_grad_enabled() and any(
        group.fixed and transforms.needs_gradient(angles)
        for group, angles in zip(program.angle_map.groups, groups, strict=True)
    ):
        refuse_block_gradients(program)
    rows = batch_size(groups)
    return tuple(group.expand(rows, -1) for group in groups)


@dataclass(frozen=True, eq=False)
class StateMap:
    """From a program's angles to the D numbers of its states.

    Attributes:
        program: The compiled circuit.
        states_of: What simulates it, for a program without input blocks.
    """

    program: Program
    states_of: Callable[[Program], FinalStates]

    @cached_property
    def example(self) -> FinalStates:
        """What simulates the program, or one of its fillings."""
        return self.states_of(self.program.example())

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the states, in double precision."""
        return torch.complex128 if self.example.is_pure else torch.float64

    def values(self, angles: torch.Tensor) -> torch.Tensor:
        """Shape (N, D); at angles of shape (N, A)."""
        numbers = _numbers(angles)
        values = torch.empty((len(numbers), self.example.size), dtype=self.dtype)
        if len(numbers):
            require_finite(self.program, numbers)
            width = len(self.program.angles)
            for filled, rows in self.program.split(numbers):
                part = self.states_of(filled).values(np.ascontiguousarray(numbers[rows, :width]))
                values[rows] = torch.from_numpy(part).to(self.dtype)
        return values

    def pullback(self, angles: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
        """``Re <upstream | derivative of the state>`` by each angle, shape (N, A)."""
        numbers, cotangents = _numbers(angles), _numbers(upstream)
        gradients = torch.zeros(angles.shape, dtype=torch.float64)
        if len(numbers):
            width = len(self.program.angles)
            for filled, rows in self.program.split(numbers):
                here = np.ascontiguousarray(numbers[rows, :width]), np.ascontiguousarray(cotangents[rows])
                gradients[rows, :width] = torch.from_numpy(self.states_of(filled).pullback(*here))
        return gradients

    @cached_property
    def stencil(self) -> Stencil:
        """How the derivatives of a state are made of states at shifted angles; rows of zeros for what is no angle."""
        count, columns = len(self.program.angles), self.program.num_columns
        places = np.arange(count)
        if not self.example.is_pure:
            shifts, coefficients = np.zeros((2 * count, columns)), np.zeros((columns, 2 * count))
            for start, sign in ((0, 1.0), (count, -1.0)):
                shifts[start + places, places] = sign * math.pi / 2
                coefficients[places, start + places] = sign / 2
            return Stencil(shifts, coefficients)
        phases = self._are_phases
        shifts, coefficients = np.zeros((count + 1, columns)), np.zeros((columns, count + 1), complex)
        shifts[places, places] = math.pi
        coefficients[places, places] = np.where(phases, -0.5j, 0.5)
        coefficients[places, count] = np.where(phases, 0.5j, 0.0)
        return Stencil(shifts, coefficients) if phases.any() else Stencil(shifts[:-1], coefficients[:, :-1])

    @cached_property
    def _are_phases(self) -> np.ndarray:
        """Shape (A,), bool: which angles are phases of part of the amplitudes, not rotations."""
        column = {parameter: place for place, parameter in enumerate(self.program.angles)}
        phases = np.zeros(len(column), bool)
        for instruction in self.program.circuit.data:
            for value in instruction.operation.params if instruction.operation.name == "cp" else ():
                if isinstance(value, Parameter):
                    phases[column[value]] = True
        return phases

    def at_points(self, angles: torch.Tensor) -> torch.Tensor:
        """Shape (N, K, D): the states at the stencil's points; differentiable."""
        states = StateFunction.apply(self, self.points(angles))
        return states.reshape(len(angles), self.stencil.num_points, self.example.size)

    def points(self, angles: torch.Tensor) -> torch.Tensor:
        """Shape (N * K, A): the stencil's points."""
        (points,) = self.stencil.points((angles,), (slice(None),), len(angles))
        return points

    def weights_along(self, direction: torch.Tensor) -> torch.Tensor:
        """Shape (N, K): how the derivative along a direction of shape (N, A) is made of the states at the points."""
        coefficients = torch.as_tensor(self.stencil.coefficients)
        return direction.to(coefficients.dtype) @ coefficients

    def along(self, angles: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """Shape (N, D): the derivative of the states along a direction of shape (N, A); differentiable."""
        return (self.weights_along(direction).unsqueeze(1) @ self.at_points(angles)).squeeze(1)

    def derivatives(self, angles: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
        """Shape (N, W, D): the derivatives of the states by W of the angles; differentiable."""
        coefficients = self.stencil.coefficients[list(columns)]
        needed = np.flatnonzero(coefficients.any(axis=0))
        stencil = Stencil(self.stencil.shifts[needed], coefficients[:, needed])
        (points,) = stencil.points((angles,), (slice(None),), len(angles))
        states = StateFunction.apply(self, points)
        own = stencil.coefficients[:, : len(columns)]
        if np.count_nonzero(stencil.coefficients) == np.count_nonzero(np.diagonal(own)):  # as of rotations: no products
            weights = torch.as_tensor(np.diagonal(own).copy())
            return states.reshape(len(angles), len(columns), self.example.size) * weights.unsqueeze(-1)
        return stencil.derivatives(states, len(angles))


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    numbers: np.ndarray = tensor.detach().resolve_conj().resolve_neg().numpy()
    return numbers


class StateFunction(torch.autograd.Function):
    """``StateFunction.apply(state_map, angles)``: from angles, shape (N, A), float64, on the CPU, to states (N, D)."""

    @staticmethod
    def forward(state_map: StateMap, angles: torch.Tensor) -> torch.Tensor:
        return state_map.values(angles)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.state_map, angles = inputs
        ctx.save_for_backward(angles)
        ctx.save_for_forward(angles)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (angles,), state_map = ctx.saved_tensors, ctx.state_map
        if transforms.is_batched_gradient(upstream):  # whose vmap knows no custom Functions
            derivatives = state_map.derivatives(angles, range(angles.shape[1]))
            return None, (upstream.unsqueeze(1).conj() * derivatives).sum(dim=-1).real
        if torch.is_grad_enabled() or transforms.transforms_are_active() or transforms.forward_level() >= 0:
            return None, _Pullback.apply(state_map, upstream, angles)
        return None, state_map.pullback(angles, upstream)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: torch.Tensor) -> torch.Tensor:
        transforms.refuse_nested_forward_mode()
        (angles,) = ctx.saved_tensors
        moved: torch.Tensor = ctx.state_map.along(angles, tangent)
        return moved

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], state_map: StateMap, angles: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        folded = transforms.fold(info.batch_size, in_dims[1:], (angles,))
        return transforms.unfold(StateFunction.apply(state_map, *folded), info.batch_size), 0


class _Pullback(torch.autograd.Function):
    """``Re <upstream | derivative of the state>`` by each angle, shape (N, A), differentiable in turn.

    It is linear in the upstream gradient; and its derivative by the angles is a sum of the same at shifted angles, because
    derivatives commute.
    """

    @staticmethod
    def forward(state_map: StateMap, upstream: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        return state_map.pullback(angles, upstream)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.state_map, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (upstream, angles), state_map = ctx.saved_tensors, ctx.state_map
        by_upstream = state_map.along(angles, grad) if ctx.needs_input_grad[1] else None
        by_angles = _Pullback.along(state_map, grad, upstream, angles) if ctx.needs_input_grad[2] else None
        return None, by_upstream, by_angles

    @staticmethod
    def jvp(ctx: Any, _: None, upstream_tangent: torch.Tensor | None, tangent: torch.Tensor | None) -> torch.Tensor:
        transforms.refuse_nested_forward_mode()
        (upstream, angles), state_map = ctx.saved_tensors, ctx.state_map
        moved = torch.zeros_like(angles)
        if upstream_tangent is not None:
            moved = moved + _Pullback.apply(state_map, upstream_tangent, angles)
        if tangent is not None:
            moved = moved + _Pullback.along(state_map, tangent, upstream, angles)
        return moved

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], state_map: StateMap, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        folded = transforms.fold(info.batch_size, in_dims[1:], tensors)
        rows = batch_size(folded)  # what is not mapped may have been left with one
        flat = _Pullback.apply(state_map, *(tensor.expand(rows, -1) for tensor in folded))
        return transforms.unfold(flat, info.batch_size), 0

    @staticmethod
    def along(
        state_map: StateMap, direction: torch.Tensor, upstream: torch.Tensor, angles: torch.Tensor
    ) -> torch.Tensor:
        """The derivative of the product along a direction of shape (N, A)."""
        weights = state_map.weights_along(direction)
        spread = (weights.conj().unsqueeze(-1) * upstream.unsqueeze(1)).flatten(0, 1)
        flat = _Pullback.apply(state_map, spread, state_map.points(angles))
        return flat.reshape(len(angles), -1, angles.shape[1]).sum(dim=1)


# torch binds a Function's arguments by its signature, and would work that out anew at every call.
for _forward in (StateFunction.forward, _Pullback.forward):
    setattr(_forward, "__signature__", inspect.signature(_forward))  # noqa: B010
