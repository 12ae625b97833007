"""Light cones: small enough to be useful, and never too small."""

from itertools import product

import numpy as np
import pytest
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import Operator, Pauli, random_unitary

from qiskit_torch_bridge import Program
from qiskit_torch_bridge.program.light_cones import CircuitGates, Cone, Gate

X, Y, Z = 1, 2, 3


def gates_of(circuit: QuantumCircuit) -> CircuitGates:
    return CircuitGates(Program.compile(circuit, weights=list(circuit.parameters)))


def cone(circuit: QuantumCircuit, *strings: dict[int, int]) -> Cone:
    return gates_of(circuit).cone(strings)


def names(found: Cone) -> list[str]:
    return [gate.operation.name for gate in found.gates]


def rotated(n: int, *gates: tuple) -> QuantumCircuit:
    """A gate with a parameter on each qubit, then gates (a name and its qubits), and such gates again."""
    angles = ParameterVector("a", 2 * n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.u(angles[qubit], 0.3, 0.4, qubit)
    for gate, *qubits in gates:
        getattr(circuit, gate)(*qubits)
    for qubit in range(n):
        circuit.u(angles[n + qubit], 0.3, 0.4, qubit)
    return circuit


def test_a_ladder_of_cz_reaches_one_neighbour_on_each_side():
    ladder = rotated(6, *(("cz", q, q + 1) for q in range(5)))
    assert cone(ladder, {3: Z}).qubits == (2, 3, 4)
    assert cone(ladder, {0: Z}).qubits == (0, 1)
    reverse = rotated(6, *(("cz", q, q + 1) for q in reversed(range(5))))
    assert cone(reverse, {3: Z}).qubits == (2, 3, 4)


def test_a_ladder_in_the_gates_of_a_device():
    """CZ as ECR between gates of one qubit: these do not commute one by one, and the ladder as a whole does."""
    n, angles = 12, ParameterVector("a", 24)
    ladder = QuantumCircuit(n)
    for first in (0, n):
        for qubit in range(n):
            ladder.rx(angles[first + qubit], qubit)
        for qubit in range(n - 1 if first == 0 else 0):
            ladder.cz(qubit, qubit + 1)
    native = transpile(ladder, basis_gates=["ecr", "rz", "sx", "x"], optimization_level=1)
    assert native.count_ops()["ecr"] == n - 1
    gates = gates_of(native)
    assert set(gates.cone([{6: Z}]).qubits) <= {4, 5, 6, 7, 8}
    assert gates._cone([{6: Z}], lambda gate, string: gate.before(string)).qubits == (0, 1, 2, 3, 4, 5, 6, 7)
    assert set(gates.cone_of_measurement({6: Z}).qubits) <= {4, 5, 6, 7, 8}


def test_controls_and_targets():
    """Behind the last rotations of qubit 2 alone is the target of qubit 1: X commutes with it there, Z does not."""
    circuit = QuantumCircuit(3)
    angles = ParameterVector("a", 3)
    for qubit in range(3):
        circuit.u(angles[qubit], 0.3, 0.4, qubit)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    assert cone(circuit, {1: Z}).qubits == (0, 1)
    assert cone(circuit, {0: Z}).qubits == (0,)
    assert cone(circuit, {2: X}).qubits == (2,)
    assert cone(circuit, {2: Z}).qubits == (0, 1, 2)


def test_clifford_gates_at_the_end_turn_strings_and_are_gone():
    circuit = rotated(3)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.swap(1, 2)
    found = cone(circuit, {2: Z})
    assert set(names(found)) == {"u"}
    assert found.strings == ((1, {0: X, 1: Z}),)
    circuit.x(0)
    assert cone(circuit, {0: Z}).strings == ((-1, {0: X}),)


def test_two_strings_keep_what_one_of_them_needs():
    circuit = rotated(5, ("cz", 0, 1), ("cz", 2, 3))
    assert cone(circuit, {0: Z}, {4: X}).qubits == (0, 1, 4)
    assert cone(circuit, {0: Z}, {3: X}).qubits == (0, 1, 2, 3)
    assert cone(circuit, {0: Z, 2: Z}).qubits == (0, 1, 2, 3)


def test_gates_that_do_nothing_to_zero_are_left_out():
    circuit = QuantumCircuit(3)
    circuit.rz(Parameter("a"), 0)
    circuit.cx(0, 1)
    circuit.rzz(Parameter("b"), 1, 2)
    circuit.rx(Parameter("c"), 0)
    circuit.rxx(Parameter("d"), 0, 1)
    assert names(cone(circuit, {0: Z})) == ["rx", "rxx"]
    nothing = cone(circuit, {2: Z})
    assert (nothing.gates, nothing.qubits, nothing.strings) == ((), (), ((1, {}),))
    assert cone(circuit, {2: X}).strings == ((0, {}),)
    assert cone(circuit, {2: Y}).strings == ((0, {}),)


def test_rotations_about_strings_that_commute():
    circuit = QuantumCircuit(2)
    circuit.u(0.3, 0.4, 0.5, [0, 1])
    circuit.rzz(Parameter("a"), 0, 1)
    circuit.rxx(Parameter("b"), 0, 1)
    assert names(cone(circuit, {0: Z, 1: Z})) == ["u", "u"]
    assert names(cone(circuit, {0: X, 1: X})) == ["u", "u"]
    assert names(cone(circuit, {0: Z})) == ["u", "u", "rxx"], "rzz commutes with rxx and with Z"
    assert names(cone(circuit, {0: Y})) == ["u", "u", "rzz", "rxx"]


def test_measurements_keep_all_that_their_joint_outcomes_depend_on():
    """A CNOT turns Z on its target into another string; as a measurement of that qubit it cannot be left out."""
    circuit = rotated(2)
    circuit.cx(0, 1)
    gates = gates_of(circuit)
    assert [gate.operation.name for gate in gates.cone([{1: Z}]).gates] == ["u"] * 4
    measured = gates.cone_of_measurement({1: Z})
    assert [gate.operation.name for gate in measured.gates] == ["u", "u", "u", "u", "cx"]
    assert gates.cone_of_measurement({0: Z}).qubits == (0,)
    assert gates.cone_of_measurement({1: X}).qubits == (1,)


def test_wide_gates():
    circuit = rotated(4)
    circuit.append(UnitaryGate(np.diag(np.exp(1j * np.arange(16)))), range(4))
    assert cone(circuit, {2: Z}).qubits == (2,)
    assert cone(circuit, {2: X}).qubits == (0, 1, 2, 3)
    circuit.append(UnitaryGate(random_unitary(16, seed=0)), range(4))
    assert cone(circuit, {2: Z}).qubits == (0, 1, 2, 3)


WIDTHS = {
    **dict.fromkeys(["h", "s", "t", "sx", "x", "y", "rz", "rx"], 1),
    **dict.fromkeys(["cx", "cz", "cy", "ch", "swap", "iswap", "ecr", "csx", "dcx", "rzz", "rxx", "cp"], 2),
    **dict.fromkeys(["ccx", "cswap", "ccz"], 3),
}
ANGLES = {"rz": [0.7], "rx": [0.7], "rzz": [0.7], "rxx": [0.7], "cp": [0.7]}


@pytest.mark.parametrize("name", WIDTHS)
def test_images_of_strings_are_those_of_the_matrices(name):
    """Each string that a gate is said to turn into another; and no string is missed."""
    width = WIDTHS[name]
    circuit = QuantumCircuit(width)
    getattr(circuit, name)(*ANGLES.get(name, []), *range(width))
    (gate,) = gates_of(circuit).gates
    matrix = Operator(circuit).data
    strings = {letters: label_matrix(dict(enumerate(letters)), width) for letters in product(range(4), repeat=width)}
    for letters, behind in strings.items():
        before = matrix.conj().T @ behind @ matrix
        image = gate.before({qubit: letter for qubit, letter in enumerate(letters) if letter})
        if image is None:
            assert max(abs(np.trace(before @ other)) for other in strings.values()) < 2**width - 1e-6
        else:
            np.testing.assert_allclose(image[0] * label_matrix(image[1], width), before, atol=1e-12)


def label_matrix(string: dict[int, int], width: int) -> np.ndarray:
    return Pauli("".join("IXYZ"[string.get(qubit, 0)] for qubit in reversed(range(width)))).to_matrix()


@pytest.mark.parametrize("one", WIDTHS)
def test_gates_that_are_said_to_commute_do(one):
    """With all other gates, in several orders of the qubits that they share."""
    circuit = QuantumCircuit(4)
    getattr(circuit, one)(*ANGLES.get(one, []), *range(WIDTHS[one]))
    for other, width in WIDTHS.items():
        for places in ([0, 1, 2], [1, 0, 2], [2, 3, 0]):
            getattr(circuit, other)(*ANGLES.get(other, []), *places[:width])
    first, *others = gates_of(circuit).gates
    matrix = embedded(first)
    found = 0
    for gate in others:
        if first.commutes_with(gate):
            np.testing.assert_allclose(matrix @ embedded(gate), embedded(gate) @ matrix, atol=1e-12)
            found += 1
    assert found > 2


def embedded(gate: Gate) -> np.ndarray:
    return Operator(np.eye(16)).compose(Operator(gate.operation), qargs=gate.qubits).data
