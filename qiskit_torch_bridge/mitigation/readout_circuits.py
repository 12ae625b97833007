"""The circuits by which readout errors are measured and symmetrised, and what measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from qiskit import QuantumCircuit

from ..backends.base import Backend
from ..program.compiled import Program
from ..program.readout import bits_of
from ..program.variants import Variant
from .methods import Mitigation

__all__ = ["Flipped", "Prepared", "prepared", "require_outcomes"]


@dataclass(frozen=True)
class Prepared(Variant):
    """In place of the circuit: its measured qubits all in 0, or all in 1, measured as it measures them.

    Attributes:
        bit: 0 or 1.
    """

    keeps_values: ClassVar[bool] = False

    bit: int

    def apply(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """As the base class says."""
        measurements = [instruction for instruction in circuit.data if instruction.operation.name == "measure"]
        prepared = circuit.copy_empty_like()
        if self.bit:
            qubits = [instruction.qubits[0] for instruction in measurements]
            prepared.x(qubits)
            prepared.barrier(qubits)  # all are measured at the same time
        for instruction in measurements:
            prepared.append(instruction, copy=False)
        return prepared


def prepared(program: Program, bit: int) -> Program:
    """The circuits that prepare the measured qubits of a program: the same for all its variants, which measure the same."""
    while program.base is not None:
        program = program.base
    return program.varied(Prepared(bit))


@dataclass(frozen=True)
class Flipped(Variant):
    r"""The circuit with some of its measured qubits flipped just before the measurement.

    Bit j is flipped in randomization r if :math:`r_0 + \sum_{i > 0} r_i j_{i - 1}` is odd, with the binary digits of r, and
    of j modulo half the randomizations: columns of a Hadamard matrix. So an odd number of bits is flipped an odd number of
    times in half of the randomizations, whichever bits these are; and so are two bits whose numbers differ, modulo half the
    randomizations.

    Attributes:
        number: r.
        randomizations: How many there are: a power of 2, from 2.
    """

    keeps_values: ClassVar[bool] = False  # until the measured bits are flipped back

    number: int
    randomizations: int

    def flips(self, num_bits: int) -> np.ndarray:
        """Shape (k,), 0 or 1: whether each of the k measured bits is flipped."""
        common = (np.arange(num_bits) % (self.randomizations // 2)) & (self.number >> 1)
        return bits_of(common, self.randomizations.bit_length()).sum(axis=1) % 2 ^ (self.number & 1)

    def apply(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """As the base class says."""
        flips = self.flips(circuit.num_clbits)
        flipped = circuit.copy_empty_like()
        flipped.global_phase = circuit.global_phase
        for instruction in circuit.data:
            if instruction.operation.name == "measure" and flips[circuit.find_bit(instruction.clbits[0]).index]:
                flipped.x(instruction.qubits[0])
            flipped.append(instruction, copy=False)
        return flipped


def require_outcomes(method: Mitigation, program: Program, backend: Backend) -> None:
    """Refuses backends that do not say which bits they have measured.

    Raises:
        ValueError: If the backend is one, for this program.
    """
    if not backend.gives_outcomes(program):
        raise ValueError(
            f"mitigation: got {method} for {backend.name!r}, which does not say what bits it measures with this circuit; "
            "use a Sampler or an AerSimulator. (An Estimator gives values only: IBM's corrects the readout itself, by its "
            "options resilience_level=1 or resilience.measure_mitigation. DensityMatrixBackend draws the bits of wide "
            "circuits in parts, by light cones.)"
        )
