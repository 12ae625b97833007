"""Labels of gates: kept by those that survive compiling, known of all others, and without influence on exact results."""

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit import library as lib

from qiskit_torch_bridge import Program, QuantumLayer
from qiskit_torch_bridge.backends.ibm.fingerprints import fingerprint

T = Parameter("t")


def _named(*names: str) -> QuantumCircuit:
    """Gates that survive compiling, each with a label, and one that is decomposed."""
    labels = iter(names)
    circuit = QuantumCircuit(2)
    circuit.append(lib.RXGate(T, label=next(labels)), [0])
    circuit.append(lib.UGate(T, 0.2, 0.1, label=next(labels)), [1])
    circuit.append(lib.CXGate(label=next(labels)), [0, 1])
    circuit.append(lib.UnitaryGate(lib.YGate(), label=next(labels)), [0])
    circuit.append(lib.CRXGate(T, label=next(labels)), [1, 0])
    return circuit


LABELS = ("slow", "worn", "far", "flip", "weak")


def _within(circuit: QuantumCircuit, how: str) -> QuantumCircuit:
    outer = QuantumCircuit(2, 2)
    if how == "gates":
        middle = QuantumCircuit(2, name="rx")
        middle.append(circuit.to_gate(label="inner"), [0, 1])
        outer.append(middle.to_gate(label="middle"), [0, 1])
    elif how == "instruction":
        outer.append(circuit.to_instruction(label="block"), [0, 1])
    else:
        outer.compose(circuit, inplace=True)
    return outer


def _labels(program):
    return {label for _, label in program.instructions if label is not None}


@pytest.mark.parametrize(
    ("how", "further"), [("", []), ("gates", ["inner", "middle"]), ("instruction", ["block"])], ids=str
)
def test_labels_stay_on_gates_that_survive_and_all_are_known(how, further):
    program = Program.compile(_within(_named(*LABELS), how), weights=[T])
    kept = {i.operation.label: i.operation.name for i in program.circuit.data if i.operation.label is not None}
    assert kept == {"slow": "rx", "worn": "u", "far": "cx", "flip": "unitary"}
    assert _labels(program) == {*LABELS, *further}
    assert {"rx", "u", "cx", "unitary", "crx"} <= {name for name, _ in program.instructions}


def test_the_labels_of_annotated_gates_are_known():
    circuit = QuantumCircuit(2)
    circuit.append(_named(*LABELS).to_gate(label="block").inverse(annotated=True), [0, 1])
    assert _labels(Program.compile(circuit, weights=[T])) == {*LABELS, "block"}


@pytest.mark.parametrize("how", ["", "gates"])
def test_labels_change_no_value_and_no_seeded_shot(how):
    init = torch.tensor([0.7], dtype=torch.float64)
    plain, labelled = (
        QuantumLayer(_within(_named(*names), how), weights=[T], init=init, seed=3) for names in ([None] * 5, LABELS)
    )
    for shots in (None, 100):
        ours, theirs = plain(shots=shots), labelled(shots=shots)
        np.testing.assert_array_equal(ours.detach(), theirs.detach())
        ours.sum().backward()
        theirs.sum().backward()
    np.testing.assert_array_equal(plain.weights.grad, labelled.weights.grad)


def test_results_of_differently_labelled_gates_are_told_apart():
    """Their noise may differ; what has no label keeps the name that its results were stored under."""
    plain, worn, new = (fingerprint(Program.compile(_named(*n), weights=[T])) for n in ([None] * 5, LABELS, "abcde"))
    assert len({plain, worn, new}) == 3
    assert plain == fingerprint(Program.compile(_within(_named(*[None] * 5), "gates"), weights=[T]))
