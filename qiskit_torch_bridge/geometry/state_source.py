"""What a program's states say, on a backend that can show them: amplitudes, density matrices, entropies, fidelities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import psutil
import torch

from ..arguments import in_gibibytes
from ..backends.base import Backend
from ..program.compiled import Program
from .information import entropy_of, fidelity_of
from .state_function import StateFunction, StateMap

__all__ = ["StateSource"]

_PAULIS = torch.tensor(
    [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], dtype=torch.complex128, device="cpu"
)
_BYTES_OF_A_PART = 2**27
ENTROPIES = ("von_neumann", "renyi2")


@dataclass(frozen=True, eq=False)
class StateSource:
    """The states of a program on a backend; all from angles of shape (N, A), and differentiable.

    Attributes:
        program: The compiled circuit.
        backend: Where it runs.
    """

    program: Program
    backend: Backend

    def __getstate__(self) -> dict[str, Any]:
        return {"program": self.program, "backend": self.backend}  # what is derived of them is made again

    @property
    def num_qubits(self) -> int:
        """The qubits of the circuit that the user wrote."""
        return len(self.program.layout)

    @cached_property
    def is_pure(self) -> bool:
        """Whether the backend shows amplitudes.

        Raises:
            ValueError: If it shows no states at all.
        """
        example = self.program.example()
        if self.shows_amplitudes:
            return True
        if self.backend.mixed_states_of(example, (self.program.layout[0],)) is not None:
            return False
        raise ValueError(
            f"backend: got {self.backend.name!r}, which shows no states, expected one that simulates them; set "
            "layer.backend = 'statevector' (pure states), or 'noisy:NAME' or a DensityMatrixBackend (density matrices)."
        )

    @cached_property
    def shows_amplitudes(self) -> bool:
        """Whether the backend shows amplitudes."""
        return self.backend.pure_states_of(self.program.example()) is not None

    @cached_property
    def pure(self) -> StateMap:
        """The amplitudes.

        Raises:
            ValueError: If the backend has none.
        """
        if not self.is_pure:
            raise ValueError(
                f"backend: {self.backend.name!r} has noise, so that its states are mixed and have no amplitudes; ask for "
                "the density matrix, or set layer.backend = 'statevector'."
            )
        return StateMap(self.program, self.backend.pure_states_of)  # type: ignore[arg-type]

    @cached_property
    def _mixed(self) -> dict[tuple[int, ...], StateMap]:
        return {}

    def mixed(self, qubits: Sequence[int]) -> StateMap:
        """The expectation values of some qubits' Pauli strings."""
        places = tuple(self.program.layout[qubit] for qubit in qubits)
        if places not in self._mixed:
            states_of = partial(self.backend.mixed_states_of, qubits=places)
            self._mixed[places] = StateMap(self.program, states_of)  # type: ignore[arg-type]
        return self._mixed[places]

    def states(self, angles: torch.Tensor) -> torch.Tensor:
        """Shape (N, 2**n), complex128."""
        states: torch.Tensor = StateFunction.apply(self.pure, angles)
        return states

    def density_matrix(self, angles: torch.Tensor, qubits: Sequence[int]) -> torch.Tensor:
        """Shape (N, 2**k, 2**k), complex128: that of these qubits, the first of which is the least significant bit."""
        _require_memory(len(qubits), len(angles))
        if self.is_pure:
            return _reduced(self.states(angles), qubits, self.num_qubits)
        return _from_paulis(StateFunction.apply(self.mixed(qubits), angles), len(qubits))

    def _spectral(self, angles: torch.Tensor, qubits: Sequence[int]) -> torch.Tensor:
        """A density matrix with the eigenvalues of these qubits' (zeros apart): of a pure state, that of the other part."""
        if self.is_pure and 2 * len(qubits) > self.num_qubits:
            qubits = [qubit for qubit in range(self.num_qubits) if qubit not in set(qubits)]
        return self.density_matrix(angles, qubits)

    def purity(self, angles: torch.Tensor, qubits: Sequence[int]) -> torch.Tensor:
        """Shape (N,): the trace of the squared density matrix."""
        density = self._spectral(angles, qubits)
        return torch.view_as_real(density).square().sum(dim=(-3, -2, -1))

    def entropy(self, angles: torch.Tensor, qubits: Sequence[int], kind: str) -> torch.Tensor:
        """Shape (N,): an entropy of these qubits, in nats."""
        if kind == "renyi2":
            return -torch.log(self.purity(angles, qubits))
        return entropy_of(self._spectral(angles, qubits))

    def fidelity(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Shape (...): of states, shape (..., 2**n), or of density matrices, shape (..., 2**n, 2**n)."""
        if self.is_pure:
            overlap = torch.view_as_real((first.conj() * second).sum(dim=-1))
            return overlap.square().sum(dim=-1)
        return fidelity_of(*torch.broadcast_tensors(first, second))

    def fidelity_at(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Shape (P,): of the pure states at pairs of angles, shape (P, A) each; so many at once as memory should hold."""
        size = max(1, _BYTES_OF_A_PART >> self.num_qubits + 4)
        pairs = zip(first.split(size), second.split(size), strict=True)
        return torch.cat([self.fidelity(self.states(one), self.states(other)) for one, other in pairs])

    def whole(self, angles: torch.Tensor) -> torch.Tensor:
        """What :meth:`fidelity` takes: states, or density matrices of all qubits."""
        return self.states(angles) if self.is_pure else self.density_matrix(angles, range(self.num_qubits))


def _reduced(states: torch.Tensor, qubits: Sequence[int], num_qubits: int) -> torch.Tensor:
    """Shape (N, 2**k, 2**k): the density matrix of some qubits, from states of shape (N, 2**n)."""
    traced = [qubit for qubit in range(num_qubits) if qubit not in set(qubits)]
    order = [num_qubits - qubit for qubit in [*reversed(qubits), *traced]]
    split = states.reshape(len(states), *[2] * num_qubits).permute(0, *order)
    matrices = split.reshape(len(states), 1 << len(qubits), 1 << len(traced))
    return matrices @ matrices.mH


def _from_paulis(values: torch.Tensor, num_qubits: int) -> torch.Tensor:
    """Shape (N, 2**k, 2**k): density matrices, from the expectation values of their Pauli strings, shape (N, 4**k)."""
    rows = len(values)
    split = values.to(torch.complex128).reshape(rows, *[4] * num_qubits)  # the last qubit first
    for _ in range(num_qubits):
        split = torch.tensordot(split, 0.5 * _PAULIS, dims=([1], [0]))
    order = [*range(1, 2 * num_qubits, 2), *range(2, 2 * num_qubits + 1, 2)]
    return split.permute(0, *order).reshape(rows, 1 << num_qubits, 1 << num_qubits)


def _require_memory(num_qubits: int, rows: int) -> None:
    needed, there = rows * 16 << 2 * num_qubits, psutil.virtual_memory().available
    if needed > there:
        raise MemoryError(
            f"qubits: the density matrices of {num_qubits} qubits for {rows} rows need {in_gibibytes(needed)} of memory, "
            f"and this machine has {in_gibibytes(there)} free; name fewer qubits, or give fewer rows."
        )


def nats(base: float) -> float:
    """How many nats one unit of the logarithm to this base is.

    Raises:
        ValueError: If it is no base.
    """
    if isinstance(base, bool) or not isinstance(base, (int, float)) or not 1 < base < math.inf:
        raise ValueError(f"base: got {base!r}, expected a number above 1: 2 for bits, math.e for nats.")
    return math.log(base)
