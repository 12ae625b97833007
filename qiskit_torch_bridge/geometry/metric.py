r"""The metric of a circuit's states in the space of its weights, exactly.

The Fubini-Study metric :math:`g_{ij} = \mathrm{Re}(\langle\partial_i\psi|\partial_j\psi\rangle -
\langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle)` is a quarter of the quantum Fisher information. It is
computed between the angles, from one simulation for each (:mod:`qiskit_torch_bridge.geometry.state_function`), and then
taken to the weights by the derivatives of the angles: shared weights and expressions come in there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter

from ..program.compiled import Program
from .state_function import StateFunction, StateMap

__all__ = ["APPROXIMATIONS", "TrainedAngles", "metric_of"]

APPROXIMATIONS = (None, "block-diag", "diag")
_BYTES_OF_A_PART = 2**28


@dataclass(frozen=True, eq=False)
class TrainedAngles:
    """The angles that some weight groups set.

    Attributes:
        program: The compiled circuit.
        groups: The numbers of those weight groups, ascending.
    """

    program: Program
    groups: tuple[int, ...]

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The A' columns of the angles."""
        sources = {1 + group for group in self.groups}
        angle_map = self.program.angle_map
        return tuple(
            column
            for group, span in zip(angle_map.groups, angle_map.slices, strict=True)
            if not sources.isdisjoint(group.sources)
            for column in range(span.start, span.stop)
        )

    @property
    def num_weights(self) -> int:
        """The number W of the groups' weights."""
        return sum(self.program.num_weights[group] for group in self.groups)

    @cached_property
    def layers(self) -> np.ndarray:
        """Shape (A',): the layer of each angle; a gate that follows another of a layer begins the next, with all its angles.

        As in Stokes et al., arXiv:1909.02108, and PennyLane, where the layers are the blocks of the metric.
        """
        program, places = self.program, {column: place for place, column in enumerate(self.columns)}
        column_of = {parameter: column for column, parameter in enumerate(program.angles)}
        layers, current, behind = np.zeros(len(places), np.int64), 0, set[Any]()
        for instruction in program.circuit.data:
            if not instruction.qubits or instruction.operation.name == "barrier":
                continue
            params = instruction.operation.params if instruction.operation.name != "unitary" else ()
            trained = [
                places[column_of[value]]
                for value in params
                if isinstance(value, Parameter) and column_of[value] in places
            ]
            follows = not behind.isdisjoint(instruction.qubits)
            if trained and follows:
                current, behind, follows = current + 1, set(), False
            if trained or follows:
                behind.update(instruction.qubits)
            layers[trained] = current
        return layers

    @cached_property
    def same_layer(self) -> np.ndarray:
        """Shape (A', A'), bool."""
        return self.layers[:, None] == self.layers[None, :]

    def jacobian(self, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor], rows: int) -> torch.Tensor:
        """The derivatives of the angles by the weights, shape (N, A', W), or (1, A', W); differentiable.

        Args:
            inputs: Shape (N, I), float64; or None.
            weights: A tensor of shape (W_g,) a weight group, float64.
            rows: The number N.
        """
        if not self.columns:
            return torch.zeros((1, 0, self.num_weights), dtype=torch.float64)
        angle_map = self.program.angle_map
        if angle_map.is_affine:
            slopes = [angle_map.slopes(1 + group, self.columns, {}) for group in self.groups]
            return torch.from_numpy(np.concatenate(slopes, axis=2))

        def angles_of(*trained: torch.Tensor) -> torch.Tensor:
            tensors: list[Any] = [inputs, *(weight.unsqueeze(0) for weight in weights)]
            for group, values in zip(self.groups, trained, strict=True):
                tensors[1 + group] = values
            parts = [group.evaluate(tensors).expand(rows, -1) for group in angle_map.groups if group.expressions]
            return torch.cat(parts, dim=1)[:, list(self.columns)]

        given = [weights[group].unsqueeze(0).expand(rows, -1) for group in self.groups]
        angles, pulled_back, *_ = torch.func.vjp(angles_of, *given)
        directions = torch.eye(angles.shape[1], dtype=angles.dtype).unsqueeze(1).expand(-1, rows, -1)
        return torch.stack([torch.cat(pulled_back(one.contiguous()), dim=1) for one in directions], dim=1)


def metric_of(
    states: StateMap, angles: torch.Tensor, trained: TrainedAngles, jacobian: torch.Tensor, approximation: str | None
) -> torch.Tensor:
    """The metric, shape (N, W, W); differentiable.

    Args:
        states: The states.
        angles: Shape (N, A).
        trained: The angles that count.
        jacobian: From :meth:`TrainedAngles.jacobian`.
        approximation: Of :data:`APPROXIMATIONS`: which entries between angles are left out.
    """
    width = len(trained.columns)
    size = max(1, _BYTES_OF_A_PART // (states.example.size * 16 * (width + 1)))
    parts = [_between_angles(states, part, trained, approximation) for part in angles.split(size)] if width else []
    if not parts:
        return torch.zeros((len(angles), trained.num_weights, trained.num_weights), dtype=torch.float64)
    return jacobian.mT @ torch.cat(parts) @ jacobian


def _between_angles(
    states: StateMap, angles: torch.Tensor, trained: TrainedAngles, approximation: str | None
) -> torch.Tensor:
    """Shape (N, A', A')."""
    derivatives = states.derivatives(angles, trained.columns)
    overlaps = torch.view_as_real((derivatives @ StateFunction.apply(states, angles).conj().unsqueeze(-1)).squeeze(-1))
    split = torch.view_as_real(derivatives).flatten(-2)
    if approximation == "diag":
        return torch.diag_embed(split.square().sum(dim=-1) - overlaps.square().sum(dim=-1))
    metric = split @ split.mT - overlaps @ overlaps.mT
    return metric * torch.from_numpy(trained.same_layer) if approximation == "block-diag" else metric
