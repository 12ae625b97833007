"""What is said of instructions that are not taken: each kind by its name, its reason and its remedy."""

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Annotation, Gate, Instruction, Operation, Parameter, ParameterVector
from qiskit.circuit import library as lib
from qiskit.circuit.annotated_operation import AnnotatedOperation, InverseModifier
from qiskit.circuit.classical import expr
from qiskit.quantum_info import Kraus
from qiskit_aer import AerSimulator  # noqa: F401  # adds save_statevector and the like to circuits
from qiskit_aer.noise import depolarizing_error

from qiskit_torch_bridge import QuantumLayer

T, X = Parameter("t"), Parameter("x")


def _rotated() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 1)
    circuit.ry(T, 0)
    return circuit


def _calling(name: str, *arguments: object) -> QuantumCircuit:
    circuit = _rotated()
    getattr(circuit, name)(*arguments)
    return circuit


def _with(operation: Operation) -> QuantumCircuit:
    circuit = _rotated()
    circuit.append(operation, range(operation.num_qubits), range(operation.num_clbits))
    return circuit


def _within(operation: Operation) -> QuantumCircuit:
    circuit = QuantumCircuit(operation.num_qubits, operation.num_clbits, name="outer")
    circuit.append(operation, circuit.qubits, circuit.clbits)
    return _with(circuit.to_instruction())


def _measured() -> QuantumCircuit:
    circuit = _rotated()
    circuit.measure(0, 0)
    return circuit


def _while() -> QuantumCircuit:
    circuit = _measured()
    with circuit.while_loop((0, 1)):
        circuit.h(1)
    return circuit


def _if_in_a_box() -> QuantumCircuit:
    circuit = _measured()
    with circuit.box(), circuit.if_test((0, 1)):
        circuit.h(1)
    return circuit


def _switch() -> QuantumCircuit:
    circuit = _measured()
    with circuit.switch(circuit.clbits[0]) as case, case(0):
        circuit.h(1)
    return circuit


def _left_early() -> QuantumCircuit:
    circuit = _rotated()
    with circuit.for_loop(range(3)):
        circuit.continue_loop()
    return circuit


def _endless() -> QuantumCircuit:
    circuit = _rotated()
    with circuit.for_loop(range(10**9)):
        circuit.h(0)
    return circuit


def _endless_together() -> QuantumCircuit:
    circuit = _rotated()
    with circuit.for_loop(range(400)), circuit.for_loop(range(400)):
        circuit.h(0)
    return circuit


def _annotated_measurement() -> QuantumCircuit:
    circuit = QuantumCircuit(1, 1, name="measured")
    circuit.ry(T, 0)
    circuit.measure(0, 0)
    return _with(AnnotatedOperation(circuit.to_instruction(), InverseModifier()))


class _Twirled(Annotation):
    namespace = "test.twirled"


def _annotated_box() -> QuantumCircuit:
    circuit = _rotated()
    with circuit.box(annotations=[_Twirled()]):
        circuit.h(0)
    return circuit


def _classical() -> QuantumCircuit:
    circuit = _rotated()
    circuit.add_var("v", expr.lift(True))
    return circuit


def _stretched() -> QuantumCircuit:
    circuit = _rotated()
    circuit.delay(circuit.add_stretch("s"), 0)
    return circuit


def _annotated_within_annotated() -> QuantumCircuit:
    inner = QuantumCircuit(1, name="inner")
    inner.ry(T, 0)
    middle = QuantumCircuit(1, name="middle")
    middle.append(inner.to_gate().inverse(annotated=True), [0])
    outer = QuantumCircuit(1, name="outer")
    outer.append(middle.to_gate().power(2, annotated=True), [0])
    return _with(outer.to_gate().control(annotated=True))


class _Own(Gate):
    def __init__(self, definition, num_qubits=1, params=()):
        super().__init__("own", num_qubits, list(params))
        self.make = definition

    def _define(self):
        self.definition = self.make()


class _Matrix(Gate):
    def __init__(self, matrix, params=()):
        super().__init__("own", 1, list(params))
        self.matrix = matrix

    def to_matrix(self):
        return self.matrix(*self.params)


class _Endless(Gate):
    def __init__(self, *params):
        super().__init__("endless", 1, list(params))

    def _define(self):
        self.definition = QuantumCircuit(1)
        self.definition.append(_Endless(*self.params), [0])


class _Marker(Instruction):
    """A directive, as simulators have them."""

    _directive = True

    def __init__(self, name):
        super().__init__(name, 1, 0, [])


class _Strange(Operation):
    name, num_qubits, num_clbits = "strange", 1, 0


def _fails():
    raise RuntimeError("no such thing")


HAMILTONIAN = np.array([[1, 0.3], [0.3, -1]])
NOISE = Kraus([np.sqrt(0.9) * np.eye(2), np.sqrt(0.1) * np.array([[0, 1], [1, 0]])]).to_instruction()

REFUSED = {
    "save": (lambda: _calling("save_statevector"), "'save_statevector' saves a simulator's state.*leave it out"),
    "saved value": (lambda: _calling("save_probabilities"), "'save_probabilities' saves .* observables or prob"),
    "snapshot": (lambda: _with(_Marker("snapshot")), "'snapshot' saves .*leave it out"),
    "set": (lambda: _calling("set_statevector", [0, 1, 0, 0]), "'set_statevector' sets .*prepare the state by gates"),
    "marker": (lambda: _with(_Marker("marker")), "'marker' is no gate that is known.*remove it"),
    "Kraus": (lambda: _with(NOISE), "'kraus' is a noise channel.*noise_model"),
    "Kraus within": (lambda: _within(NOISE), r"'kraus' \(within 'outer'\) is a noise channel"),
    "error of Aer": (lambda: _with(depolarizing_error(0.1, 1).to_instruction()), "noise channel.*noise_model"),
    "Hamiltonian": (lambda: _with(lib.HamiltonianGate(HAMILTONIAN, T)), r"parameter\(s\) t for its time.*PauliEvol"),
    "Hamiltonian within": (lambda: _within(lib.HamiltonianGate(HAMILTONIAN, T)), "'hamiltonian'.*PauliEvolutionGate"),
    "while": (_while, "'while_loop' is control flow .*use a for_loop with a fixed number"),
    "if": (_if_in_a_box, r"'if_else' \(within 'box'\) is control flow .*controlled by the measured qubit"),
    "switch": (_switch, "'switch_case' is control flow .*controlled by the measured qubit"),
    "continue": (_left_early, "'continue_loop'.* is control flow that ends a loop early"),
    "endless": (_endless, "'for_loop' is control flow over .*too many; use a for_loop over a range"),
    "endless together": (_endless_together, "'for_loop'.* is control flow over .*too many"),
    "annotated measurement": (_annotated_measurement, "annotated 'measured'.*annotated=False"),
    "annotated box": (_annotated_box, "'box' is control flow with annotations.*leave out the annotations"),
    "classical": (_classical, "'store' computes with classical values.*leave it out"),
    "delay": (lambda: _calling("delay", X, 0), "'delay' has a duration that is not a number.*bind it"),
    "stretch": (_stretched, "'delay' has a duration that is not a number"),
    "opaque": (lambda: _within(Gate("opaque", 1, [])), r"'opaque' \(within 'outer'\).* a definition .*nor a matrix"),
    "opaque with a parameter": (lambda: _with(Gate("opaque", 1, [T])), r"'opaque' is no known .* of .* t .*rotation"),
    "opaque with bits": (lambda: _with(Instruction("opaque", 1, 1, [])), "'opaque' is no gate that is known"),
    "no instruction": (lambda: _with(_Strange()), "'strange' is not a gate.*remove it"),
    "matrix of a parameter": (
        lambda: _with(_Matrix(lambda t: lib.RXGate(t).to_matrix(), params=[T])),
        r"'own' is a matrix of the parameter\(s\) t.*Give the gate a definition",
    ),
    "not unitary": (lambda: _with(_Matrix(lambda: np.ones((2, 2)))), "'own'.*its matrix cannot be had .*unitary"),
    "not unitary, unchecked": (
        lambda: _with(lib.UnitaryGate(np.ones((2, 2)), check_input=False)),
        "'unitary' has a matrix that is not unitary",
    ),
    "too large a matrix": (lambda: _with(_Matrix(lambda: np.eye(4))), "'own' acts on 1 qubits, its matrix on 2"),
    "too small a definition": (lambda: _with(_Own(lambda: QuantumCircuit(1), 2)), "'own' acts on 2 .* definition on 1"),
    "a definition that fails": (lambda: _with(_Own(_fails)), r"own' has a definition .*\(RuntimeError: no such thing"),
    "a definition that is a list": (lambda: _with(_Own(list)), "'own' .* neither a definition of gates"),
    "a gate that contains itself": (lambda: _with(_Endless()), "'endless' is made of gates .*contains itself"),
    "the same, by a parameter": (lambda: _with(_Endless(T)), "'endless' is made of gates within gates"),
    "annotations within annotations": (_annotated_within_annotated, "annotated 'outer'.*annotated=False"),
    "NaN": (lambda: _calling("rx", float("nan"), 0), "'rx' has the argument nan, expected a finite number"),
    "NaN in a gate that is decomposed": (lambda: _calling("crx", float("inf"), 0, 1), "'crx' has the argument inf"),
    "NaN and a parameter": (
        lambda: _calling("rx", X + T, 0).assign_parameters({X: float("nan")}, strict=False),
        "not finite, expected a finite angle",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_kind_is_refused_with_its_own_remedy(case):
    make, words = REFUSED[case]
    circuit = make()
    with pytest.raises(ValueError, match=words) as refusal:
        QuantumLayer(circuit, weights=list(circuit.parameters))
    message = str(refusal.value)
    assert "Cannot unroll" not in message
    assert "HighLevelSynthesis" not in message
    assert "uuid" not in message


@pytest.mark.parametrize("kind", [_Endless, lambda x: _Own(_fails, params=[x])], ids=["endless", "failing"])
def test_inputs_of_gates_that_no_number_defines_are_refused(kind):
    circuit = QuantumCircuit(1)
    circuit.append(kind(X), [0])
    with pytest.raises(ValueError, match=r"'(endless|own)'"):
        QuantumLayer(circuit, inputs=[X])


class TestInputBlocks:
    """An instruction whose inputs are only known with the features acts on its qubits, though a barrier keeps its place."""

    X = ParameterVector("x", 2)

    def _layer(self, qc: QuantumCircuit) -> QuantumLayer:
        return QuantumLayer(qc, inputs=self.X)

    @pytest.mark.parametrize("measured", [[0], [0, 1]], ids=str)
    def test_after_a_measurement(self, measured):
        qc = QuantumCircuit(2, 2)
        qc.measure(measured, measured)
        qc.append(lib.RVGate(*self.X, 0.2).control(1, annotated=True), [0, 1])
        with pytest.raises(ValueError, match=r"Mid-circuit measurement.*before an amplitude encoding acts on them"):
            self._layer(qc)

    def test_before_a_reset(self):
        qc = QuantumCircuit(1)
        qc.append(lib.RVGate(*self.X, 0.2), [0])
        qc.reset(0)
        with pytest.raises(ValueError, match="'reset' reset a qubit in mid-circuit"):
            self._layer(qc)
