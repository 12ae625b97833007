"""A circuit with noise as data: rotations by angles, channels without parameters, and errors of the readout.

States are meant as real vectors in the Pauli basis: entry ``i`` of a state of n qubits is the expectation value of a Pauli
string, whose letter on qubit q is the base-4 digit ``(i >> 2 * q) & 3``, where 0, 1, 2, 3 are I, X, Y, Z. Global phases do
not exist there.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Channel", "NoisyCircuit", "NoisyOperation", "Rotation", "from_bytes", "to_bytes"]


@dataclass(frozen=True)
class Rotation:
    """``exp(-i angle P / 2)``, with a Pauli string P.

    Attributes:
        qubits: Where P acts; k different ones.
        paulis: X, Y or Z for each of these qubits.
        column: Which of the circuit's rotation angles (see :meth:`NoisyCircuit.rotation_angles`) it turns by.
    """

    qubits: tuple[int, ...]
    paulis: str
    column: int


@dataclass(frozen=True, eq=False)
class Channel:
    """A map of states without parameters that keeps the trace: noise, or a gate without parameters.

    Attributes:
        qubits: Where it acts; k different ones.
        ptm: Shape (4**k, 4**k): its real Pauli transfer matrix, ``ptm[i, j] = trace(P_i E(P_j)) / 2**k``. In both indices
            the first qubit has the least significant base-4 digit. Its first row is 1, 0, 0, ...; read-only.
        origin: Of noise, what it is an error of, for messages.
    """

    qubits: tuple[int, ...]
    ptm: np.ndarray
    origin: str = ""


NoisyOperation: TypeAlias = "Rotation | Channel"


@dataclass(frozen=True, eq=False)
class NoisyCircuit:
    """One measured circuit with its noise. It starts with all its qubits in 0.

    Operations that no measured bit depends on are left out; so are the qubits that only those touch.

    Attributes:
        num_qubits: The number n of qubits that are left.
        operations: In the order in which they act, basis changes of the measurement included. Channels that are the same
            are the same object, in all circuits that were made together.
        slopes: Shape (A, R): how the angles of the R rotations follow from the program's A angles.
        offsets: Shape (R,); radians.
        measured: The measured qubits: bit j of an outcome is the j-th of them, read in Z.
        readout: For each measured bit, how it is misread: shape (2, 2), ``readout[j][true, read]`` is the probability to
            read a bit as ``read`` that is ``true``; or None where it is read as it is.
    """

    num_qubits: int
    operations: tuple[NoisyOperation, ...]
    slopes: np.ndarray
    offsets: np.ndarray
    _: KW_ONLY
    measured: tuple[int, ...]
    readout: tuple[np.ndarray | None, ...]

    def rotation_angles(self, angles: np.ndarray) -> np.ndarray:
        """Shape (N, R): the rotations' angles at the program's angles, of shape (N, A); radians."""
        # Each row a product of its own: BLAS adds in another order for more rows.
        return (angles[:, None] @ self.slopes)[:, 0] + self.offsets


def to_bytes(circuits: Sequence[NoisyCircuit]) -> bytes:
    """Circuits as bytes: compressed JSON, which keeps every bit of its numbers."""
    places: dict[int, int] = {}
    ptms: list[Any] = []
    entries = []
    for circuit in circuits:
        operations: list[list[Any]] = []
        for operation in circuit.operations:
            if isinstance(operation, Rotation):
                operations.append([operation.qubits, operation.paulis, operation.column])
                continue
            if id(operation.ptm) not in places:
                places[id(operation.ptm)] = len(ptms)
                ptms.append(operation.ptm.tolist())
            operations.append([operation.qubits, places[id(operation.ptm)]])
        entries.append(
            {
                "num_qubits": circuit.num_qubits,
                "operations": operations,
                "shape": circuit.slopes.shape,
                "slopes": circuit.slopes.tolist(),
                "offsets": circuit.offsets.tolist(),
                "measured": circuit.measured,
                "readout": [None if one is None else one.tolist() for one in circuit.readout],
            }
        )
    return zlib.compress(json.dumps({"ptms": ptms, "circuits": entries}).encode())


def from_bytes(data: bytes) -> tuple[NoisyCircuit, ...]:
    """Circuits from :func:`to_bytes`; damaged bytes raise anything."""
    read = json.loads(zlib.decompress(data))
    ptms = [np.array(ptm) for ptm in read["ptms"]]
    for ptm in ptms:
        ptm.flags.writeable = False
    channels: dict[tuple[int, tuple[int, ...]], Channel] = {}

    def operation(qubits: list[int], which: Any, column: int | None = None) -> NoisyOperation:
        if column is not None:
            return Rotation(tuple(qubits), which, column)
        return channels.setdefault((which, tuple(qubits)), Channel(tuple(qubits), ptms[which]))

    return tuple(
        NoisyCircuit(
            each["num_qubits"],
            tuple(operation(*parts) for parts in each["operations"]),
            np.array(each["slopes"], dtype=float).reshape(each["shape"]),
            np.array(each["offsets"], dtype=float),
            measured=tuple(each["measured"]),
            readout=tuple(None if one is None else np.array(one) for one in each["readout"]),
        )
        for each in read["circuits"]
    )
