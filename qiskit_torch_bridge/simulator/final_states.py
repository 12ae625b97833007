"""Final states as functions of the angles, with the way back: of pure states amplitudes, of mixed ones Pauli strings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
from scipy import sparse

from ..arguments import in_gibibytes
from ..program.channels import NoisyCircuit
from ..program.compiled import Program
from .density_engine import pulled_back, read, require_memory
from .density_plan import DensityPlan
from .engine import Simulator
from .lowering import lowered

__all__ = ["FinalStates", "MixedStates", "PureStates"]

_MOST_BYTES_WITHOUT_A_LOOK = 2**27  # at how much memory is free, which takes longer than a small state


class FinalStates(ABC):
    """States as a map from angles to D numbers.

    Attributes:
        size: The number D.
        is_pure: Whether they are amplitudes; else expectation values of Pauli strings.
    """

    size: int
    is_pure: bool

    @abstractmethod
    def values(self, angles: np.ndarray) -> np.ndarray:
        """Shape (N, D).

        Args:
            angles: Shape (N, A), float64, contiguous; N > 0; radians.
        """

    @abstractmethod
    def pullback(self, angles: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """``Re <cotangent | derivative of the state>`` by each angle, shape (N, A).

        Args:
            angles: As in :meth:`values`.
            cotangents: Shape (N, D): the gradient of a real function by the values, by PyTorch's convention for complex
                ones: its real part by their real part, its imaginary part by their imaginary part.
        """


class PureStates(FinalStates):
    """The final states of a program without noise, up to a global phase.

    Amplitude b is that of outcome b of the qubits of the circuit that the user wrote, before transpiling; qubit q is bit q.

    Args:
        program: Without input blocks.
        dtype: Of the real and imaginary parts: float64 or float32.

    Raises:
        MemoryError: If a state does not fit into this machine's memory.
    """

    is_pure = True

    def __init__(self, program: Program, dtype: Any = np.float64) -> None:
        num_qubits = len(program.layout)
        self.size = 1 << num_qubits
        self._dtype = np.dtype(dtype)
        self._complex = np.result_type(self._dtype, np.complex64)
        _require_memory(num_qubits, self._complex.itemsize << num_qubits, psutil.virtual_memory().total, "altogether")
        circuit = lowered(program)
        nothing = replace(circuit, terms=None, measurements=(), constants=np.zeros(0))
        self._simulator = Simulator(nothing, self._dtype)
        self._local, self._places = _places(program.active_qubits, program.layout)
        self._is_whole = len(self._local) == self.size and np.array_equal(self._local, self._places)
        self._has_ancillas = len(self._local) < 1 << circuit.num_qubits

    def values(self, angles: np.ndarray) -> np.ndarray:
        rows, simulator = len(angles), self._simulator
        needed = rows * self.size * self._complex.itemsize
        if needed >= _MOST_BYTES_WITHOUT_A_LOOK:
            _require_memory(
                self.size.bit_length() - 1, needed, psutil.virtual_memory().available, f"free, for {rows} rows"
            )
        lanes = simulator.lanes(rows)
        states = (
            np.empty((rows, self.size), self._complex) if self._is_whole else np.zeros((rows, self.size), self._complex)
        )

        def work(part: slice, slabs: slice, spread: bool) -> None:
            self._write(simulator.simulated(angles[part], lanes, spread), lanes, states[part])

        simulator.in_parts(rows, lanes, work, sweeps=2)
        return states

    def pullback(self, angles: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        rows, simulator = len(angles), self._simulator
        lanes, gradients = simulator.lanes(rows), np.zeros(angles.shape)
        selected, upstream = np.ones(angles.shape[1], bool), np.zeros((rows, 0))

        def work(part: slice, slabs: slice, spread: bool) -> None:
            planes = simulator.simulated(angles[part], lanes, spread)
            # With |dual> = |cotangent> / 2 the sweep's formula is the one that is asked for.
            duals = self._planes(cotangents[part], planes)
            simulator.take_back((planes, duals), angles[part], upstream[part], selected, gradients[part], spread=spread)

        simulator.in_parts(rows, lanes, work, sweeps=6)
        return gradients

    def _write(self, planes: np.ndarray, lanes: int, states: np.ndarray) -> None:
        """From the simulator's order of amplitudes (:class:`qiskit_torch_bridge.simulator.engine.States`)."""
        slabs, parts, _ = planes.shape
        split = planes.reshape(slabs, parts, -1, lanes).transpose(1, 0, 3, 2).reshape(parts, slabs * lanes, -1)
        split = split[:, : len(states)]
        if not self._is_whole:
            if self._has_ancillas:
                self._require_free_ancillas(split)
            split = split[:, :, self._local]
        for part, into in zip(split, (states.real, states.imag), strict=False):
            if self._is_whole:
                into[:] = part
            else:
                into[:, self._places] = part
        if self._is_whole and parts == 1:
            states.imag[:] = 0.0

    def _planes(self, cotangents: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Half the cotangents in the simulator's order; of real states only what they see."""
        slabs, parts, stride = like.shape
        duals = np.zeros((parts, slabs * self._lanes_of(like), stride // self._lanes_of(like)), self._dtype)
        for part, numbers in zip(duals, (cotangents.real, cotangents.imag), strict=False):
            part[: len(cotangents), self._local] = 0.5 * numbers[:, self._places]
        lanes = self._lanes_of(like)
        return np.ascontiguousarray(duals.reshape(parts, slabs, lanes, -1).transpose(1, 0, 3, 2)).reshape(like.shape)

    def _lanes_of(self, planes: np.ndarray) -> int:
        return planes.shape[2] >> self._simulator.plan.num_qubits

    def _require_free_ancillas(self, split: np.ndarray) -> None:
        """Refuses a state that the transpiler's ancillas are entangled with.

        Raises:
            ValueError: If one of them does not end in 0.
        """
        weights = (split.astype(np.float64) ** 2).sum(axis=0)
        if abs(weights[:, self._local].sum(axis=1) - weights.sum(axis=1)).max() > 1e-5:
            raise ValueError(
                "circuit: a qubit that the transpiler has added does not end in 0, so that the others have no state of "
                "their own; give the circuit as it was before transpiling."
            )


def _places(active: Sequence[int], layout: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Which outcomes of the active qubits have every other qubit than the user's in 0, and which of the user's they are."""
    local = np.arange(1 << len(active))
    outcomes, free = np.zeros_like(local), np.ones(len(local), bool)
    user_qubit = {place: qubit for qubit, place in enumerate(layout)}
    for bit, place in enumerate(active):
        is_set = (local >> bit) & 1
        if place in user_qubit:
            outcomes |= is_set << user_qubit[place]
        else:
            free &= is_set == 0
    return local[free], outcomes[free]


class MixedStates(FinalStates):
    """The states of some qubits after a circuit with noise, as expectation values of their 4**k Pauli strings.

    String i has on the j-th of the qubits the letter ``(i >> 2 * j) & 3``, where 0, 1, 2, 3 are I, X, Y, Z. They are the
    states that a measurement would meet: its basis changes and misreadings have no part in them.

    Args:
        circuit: A circuit that measures these qubits in Z.
        dtype: Of a state's entries: float64 or float32.
    """

    is_pure = False

    def __init__(self, circuit: NoisyCircuit, dtype: Any = np.float64) -> None:
        require_memory(circuit.num_qubits)
        self._circuit = circuit
        strings = np.arange(4 ** len(circuit.measured))
        self.size = len(strings)
        entries = sum((((strings >> 2 * j) & 3) << 2 * q for j, q in enumerate(circuit.measured)), 0 * strings)
        shape = len(strings), 4**circuit.num_qubits
        reads = sparse.csr_matrix((np.ones(len(strings)), (strings, entries)), shape=shape)
        self._plan = DensityPlan(circuit.operations, circuit.num_qubits, reads, np.dtype(dtype))

    def values(self, angles: np.ndarray) -> np.ndarray:
        return read(self._plan, self._circuit.rotation_angles(angles))

    def pullback(self, angles: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        slopes = self._circuit.slopes
        rotations = self._circuit.rotation_angles(angles)
        by_rotations = pulled_back(self._plan, rotations, cotangents, np.ones(slopes.shape[1], bool))
        return (by_rotations[:, None] @ slopes.T)[:, 0]


def _require_memory(num_qubits: int, needed: int, there: int, what: str) -> None:
    if needed > there:
        raise MemoryError(
            f"The state of {num_qubits} qubits as a vector needs {in_gibibytes(needed)} of memory, and this machine has "
            f"{in_gibibytes(there)} {what}; use fewer qubits or rows, or ask for expectation values, which need no vector."
        )
