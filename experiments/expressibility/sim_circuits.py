"""The nineteen circuits of Sim et al., Adv. Quantum Technol. 2, 1900070 (2019), arXiv:1905.10876, figure 2.

Qubits are counted from the top of that figure. Gates of two qubits are (control, target) in the order of the figure, which
begins at the bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from qiskit.circuit import Parameter, QuantumCircuit

Pairs = Sequence[tuple[int, int]]


class _Writer:
    """Writes gates to a circuit, with a new parameter for each angle."""

    def __init__(self, num_qubits: int) -> None:
        self.circuit = QuantumCircuit(num_qubits)
        self.count = 0
        above = range(num_qubits - 1)
        self.line: Pairs = [(qubit + 1, qubit) for qubit in reversed(above)]
        self.ring: Pairs = [(qubit, (qubit + 1) % num_qubits) for qubit in reversed(range(num_qubits))]
        self.ring_back: Pairs = [
            (qubit % num_qubits, (qubit - 1) % num_qubits) for qubit in range(num_qubits - 1, 2 * num_qubits - 1)
        ]
        self.even: Pairs = [(qubit + 1, qubit) for qubit in above[::2]]
        self.odd: Pairs = [(qubit + 1, qubit) for qubit in above[1::2]]
        every = range(num_qubits)[::-1]
        self.all_to_all: Pairs = [(control, target) for control in every for target in every if control != target]

    def rotate(self, names: str, qubits: Iterable[int] | None = None) -> None:
        """Rotations, separated by spaces, on each qubit."""
        qubits = list(range(self.circuit.num_qubits) if qubits is None else qubits)
        for name in names.split():
            for qubit in qubits:
                getattr(self.circuit, name)(self._angle(), qubit)

    def entangle(self, name: str, pairs: Pairs) -> None:
        """A gate on each pair, with an angle if it takes one."""
        for pair in pairs:
            getattr(self.circuit, name)(*([self._angle()] if name.startswith("cr") else []), *pair)

    def _angle(self) -> Parameter:
        self.count += 1
        return Parameter(f"a{self.count}")


def _rotations_only(writer: _Writer) -> None:
    writer.rotate("rx rz")


def _line(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("rx rz")
        writer.entangle(gate, writer.line)

    return layer


def _all_to_all(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("rx rz")
        writer.entangle(gate, writer.all_to_all)
        writer.rotate("rx rz")

    return layer


def _brick(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("rx rz")
        writer.entangle(gate, writer.even)
        writer.rotate("rx rz")
        writer.entangle(gate, writer.odd)

    return layer


def _hadamard(writer: _Writer) -> None:
    writer.circuit.h(range(writer.circuit.num_qubits))
    writer.entangle("cz", writer.line)
    writer.rotate("rx")


def _real_ring(writer: _Writer) -> None:
    if not writer.count:  # once, before all layers
        writer.rotate("ry")
    writer.entangle("cz", [(control, target) for target, control in writer.ring_back])
    writer.rotate("ry")


def _inner_brick(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("ry rz")
        writer.entangle(gate, writer.even)
        writer.rotate("ry rz", range(1, writer.circuit.num_qubits - 1))
        writer.entangle(gate, writer.odd)

    return layer


def _two_rings(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("ry")
        writer.entangle(gate, writer.ring)
        writer.rotate("ry")
        writer.entangle(gate, writer.ring_back)

    return layer


def _short_brick(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("rx rz")
        writer.entangle(gate, [*writer.even, *writer.odd])

    return layer


def _ring(gate: str) -> Callable[[_Writer], None]:
    def layer(writer: _Writer) -> None:
        writer.rotate("rx rz")
        writer.entangle(gate, writer.ring)

    return layer


_LAYERS: Mapping[int, Callable[[_Writer], None]] = {
    1: _rotations_only,
    2: _line("cx"),
    3: _line("crz"),
    4: _line("crx"),
    5: _all_to_all("crz"),
    6: _all_to_all("crx"),
    7: _brick("crz"),
    8: _brick("crx"),
    9: _hadamard,
    10: _real_ring,
    11: _inner_brick("cx"),
    12: _inner_brick("cz"),
    13: _two_rings("crz"),
    14: _two_rings("crx"),
    15: _two_rings("cx"),
    16: _short_brick("crz"),
    17: _short_brick("crx"),
    18: _ring("crz"),
    19: _ring("crx"),
}

EXACT_ENTANGLEMENT: Mapping[int, Fraction] = {
    1: Fraction(0),
    2: Fraction(159, 256),
    3: Fraction(11, 64),
    9: Fraction(1),
    10: Fraction(3, 8),
    11: Fraction(1101, 2048),
    12: Fraction(205, 512),
    16: Fraction(11, 64),
    18: Fraction(7, 32),
}
"""Entangling capabilities of one layer on four qubits, by number, for uniform angles.

The measure is the mean over the qubits of 1 - x**2 - y**2 - z**2, the parts of their Bloch vectors. A random rotation shares
the mean of the squares out between two axes. CNOT gates keep z of the control and x of the target, and multiply the other
parts by those, of qubits that are independent as far as these circuits go; CZ and CRZ keep z of both, and multiply the mean
square of the others by that of the other qubit's z, or by 3/4.
"""


def sim_circuit(number: int, layers: int, num_qubits: int = 4) -> QuantumCircuit:
    """A circuit of that figure, repeated; its parameters are all its angles.

    Args:
        number: From 1 to 19.
        layers: How often; of circuit 10 the first rotations come once.
        num_qubits: Qubits.
    """
    writer = _Writer(num_qubits)
    for _ in range(layers):
        _LAYERS[number](writer)
    return writer.circuit
