"""Observables mean what they mean to Qiskit's primitives: every kind, against the same object in their hands.

``StatevectorEstimator`` of Qiskit 2.6 takes labels with projectors into its ``ObservablesArray`` but cannot evaluate them,
so the array's terms are evaluated as matrices too.
"""

import os
import subprocess
import sys
from functools import partial, reduce
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.quantum_info import Operator, Pauli, PauliList, SparseObservable, SparsePauliOp, Statevector
from qiskit.transpiler import CouplingMap

from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase, QuantumLayer
from qiskit_torch_bridge.circuits import random_rotations

LETTERS = "IXYZ01+-rl"
RNG = np.random.default_rng(5)


def circuit(num_qubits: int = 3) -> QuantumCircuit:
    """A state without symmetries: complex, entangled."""
    qc = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        qc.u(*np.random.default_rng(qubit).uniform(0.3, 2.8, 3), qubit)
    for qubit in range(num_qubits - 1):
        qc.crx(1.1, qubit, qubit + 1)
        qc.rz(0.7, qubit + 1)
    return qc


def label(letters: str = LETTERS, num_qubits: int = 3) -> str:
    return "".join(RNG.choice(list(letters), num_qubits))


def labels(count: int, letters: str = LETTERS) -> list[str]:
    return [label(letters) for _ in range(count)]


def mapping(count: int = 5, letters: str = LETTERS) -> dict[str, float]:
    return dict(zip(labels(count, letters), RNG.normal(size=count), strict=True))


def operator() -> SparsePauliOp:
    return SparsePauliOp(labels(4, "IXYZ"), RNG.normal(size=4))


def objects(*entries: Any) -> np.ndarray:
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    return array


KINDS: dict[str, Any] = {
    **{f"label {letter}": f"X{letter}Z" for letter in LETTERS},
    "label of projectors": "r-1",
    "label with a sign's letters": "-ZZ",
    "numpy string": np.str_("XYZ"),
    "Pauli": Pauli("XYZ"),
    "Pauli with a sign": Pauli("-XYZ"),
    "PauliList": PauliList(["XYZ", "-ZIX", "YYI"]),
    "SparsePauliOp": operator(),
    "SparseObservable": SparseObservable.from_list([(label(), c) for c in RNG.normal(size=6)]),
    "mapping": mapping(),
    "mapping with a repeated term": {"ZZI": 0.5, Pauli("ZZI"): 2.0, Pauli("-ZZI"): 0.25},
    "mapping of Paulis": {Pauli(label("XYZ")): c for c in RNG.normal(size=3)},
    "mapping to numpy numbers": {"ZII": np.float32(0.5), "IXI": np.int64(2), "IIY": 3, "Z0Z": 1 + 0j},
    "mapping with a zero": {"ZII": 0.0, "IXI": 1.5},
    "list of labels": labels(4),
    "list of mappings": [mapping(), mapping(1), {"III": 2.0}],
    "list of all kinds": [label(), Pauli("ZXY"), operator(), SparseObservable("0+Y"), mapping()],
    "nested list": [[label(), operator()], [mapping(), Pauli("YYX")], [label(), label()]],
    "nested three deep": [[labels(2), labels(2)]],
    "list of a PauliList": [PauliList(["XYZ", "ZZI"]), PauliList(["IIX", "ZYI"])],
    "ObservablesArray of one": ObservablesArray(mapping()),
    "ObservablesArray": ObservablesArray([mapping(), label(), operator()]),
    "ObservablesArray, nested": ObservablesArray([[mapping(), label()], [operator(), label()]]),
    "array of labels": np.array([["XYZ", "ZZZ"], ["IIX", "YIX"], ["ZIZ", "0+l"]]),
    "array of a label": np.array("XYZ"),
    "array of objects": objects(operator(), mapping(), "XXI"),
}


def letter_matrix(letter: str) -> np.ndarray:
    if letter in "IXYZ":
        return Pauli(letter).to_matrix()
    return np.outer(state := Statevector.from_label(letter).data, state.conj())


def expectations(observables: Any) -> list[float]:
    """What Qiskit makes of them, evaluated as matrices, and by its Estimator where that is able to."""
    terms = ObservablesArray(observables).ravel().tolist()
    state = Statevector(circuit()).data
    values = []
    for term in terms:
        matrix = sum(c * reduce(np.kron, map(letter_matrix, letters)) for letters, c in term.items())
        values.append((state.conj() @ matrix @ state).real)
    if not set("".join("".join(term) for term in terms)) - set("IXYZ"):
        evaluated = StatevectorEstimator().run([(circuit(), observables)]).result()[0].data.evs
        np.testing.assert_allclose(np.ravel(evaluated), values, atol=1e-12)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_object_means_the_same(kind):
    expected = expectations(KINDS[kind])
    layer = QuantumLayer(circuit(), observables=KINDS[kind])
    assert layer.num_outputs == len(expected), "one output each"
    np.testing.assert_allclose(layer().double(), expected, rtol=0, atol=2e-6)  # the layer answers in float32


@pytest.mark.parametrize("backend", [None, "aer"])
def test_coefficients_are_in_values_and_gradients_and_their_shots(backend):
    x = ParameterVector("x", 3)
    qc = circuit()
    for qubit in range(3):
        qc.ry(x[qubit], qubit)
    terms = mapping(4, "IXYZ")
    same = [{"observables": given, "shots": 50, "seed": 3, "backend": backend} for given in (terms, _summed(terms))]
    features = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    values, gradients = [], []
    for options in same:
        values.append(QuantumLayer(qc, inputs=x, **options)(features))
        gradients.append(torch.autograd.grad(values[-1].sum(), features)[0])
    assert torch.equal(*values)
    assert torch.equal(*gradients)
    assert values[0].shape == (2, 1)


def _summed(terms: dict[str, float]) -> SparsePauliOp:
    return SparsePauliOp(list(terms), list(terms.values()))


def test_mappings_follow_the_layout():
    device = {"coupling_map": CouplingMap.from_line(5), "basis_gates": ["cx", "rz", "sx"]}
    placed = transpile(circuit(), initial_layout=[4, 0, 2], **device)
    terms = mapping()
    assert QuantumLayer(placed, observables=terms)().item() == pytest.approx(expectations(terms)[0], abs=2e-6)


def test_dictionaries_give_their_keys_in_order_and_generators_once():
    order = ["ZII", "IIX", "YII"]
    expected = QuantumLayer(circuit(), observables=order)()
    for given in (dict.fromkeys(order, 0.5).keys(), (entry for entry in order), tuple(order)):
        assert torch.equal(QuantumLayer(circuit(), observables=given)(), expected)


def test_a_generator_of_observables_lasts_while_the_circuit_grows():
    make = partial(random_rotations, 2, seed=0)
    grown = LayerwiseQuantumLayer(make, 1, observables=(given for given in ("ZZ", "XI")))
    grown.enter(Phase("deeper", 2, (0, 1), 1))
    assert grown(torch.zeros(1, 2)).shape == (1, 2)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "set": ({"ZZZ", "XXX"}, TypeError, "observables: got a set, which has no order"),
    "frozenset": (frozenset({"ZZZ"}), TypeError, "observables: got a frozenset, which has no order"),
    "set in a list": ([{"ZZZ", "XXX"}], TypeError, r"observables\[0\]: got a set"),
    "set of keys": (dict.fromkeys(["ZZZ"]).keys() & {"ZZZ"}, TypeError, "got a set"),
    "matrix": (np.eye(8), TypeError, r"observables: got ndarray.*SparsePauliOp\.from_operator"),
    "tensor": (torch.eye(8), TypeError, r"observables: got Tensor.*SparsePauliOp\.from_operator"),
    "operator": (Operator(np.eye(8)), TypeError, r"observables: got Operator.*SparsePauliOp\.from_operator"),
    "operator in a list": ([Operator(np.eye(8))], TypeError, r"observables\[0\]: got Operator"),
    "bytes": (b"ZZZ", TypeError, "observables: got bytes"),
    "number": (3, TypeError, "observables: got int"),
    "pairs": ([["ZZZ", 0.5], ["XXX", 2.0]], TypeError, r"observables\[0\]\[1\]: got float.*a mapping such as"),
    "ragged": ([["ZZZ", "XXX"], ["YYY"]], ValueError, r"shapes \[\(1,\), \(2,\)\], expected all alike"),
    "ragged, one level": (["ZZZ", ["XXX", "YYY"]], ValueError, "expected all alike"),
    "empty": ([], ValueError, "empty list"),
    "empty, nested": ([[], []], ValueError, "empty list"),
    "empty mapping": ({}, ValueError, "empty mapping, expected at least one Pauli"),
    "empty label": ("", ValueError, "acts on 0 qubits, expected 3"),
    "signed label": ("-ZZZ", ValueError, r"acts on 4 qubits, expected 3.*\{'ZZ': -1\.0\}; \+ and - are states"),
    "factor of i": ("iZZZ", ValueError, "'iZZZ' is no label of a Hermitian operator"),
    "lower case": ("zzz", ValueError, "'zzz' is no label"),
    "short terms": ({"ZZZ": 1.0, "ZZ": 1.0}, ValueError, r"terms on \[2, 3\] qubits in one mapping"),
    "wide mapping": ({"ZZZZ": 1.0}, ValueError, "acts on 4 qubits, expected 3"),
    "wrong key": ({0: 0.5}, TypeError, r"got 0: 0\.5 in a mapping"),
    "operator as key": ({("Z", 0): 0.5}, TypeError, "in a mapping, expected labels or Paulis"),
    "wrong label as key": ({"ZQZ": 0.5}, ValueError, r"observables\[0\]\['ZQZ'\]: 'ZQZ' is no label"),
    "coefficient as text": ({"ZZZ": "0.5"}, TypeError, "'ZZZ': '0.5' in a mapping"),
    "coefficient as tensor": ({"ZZZ": torch.tensor(0.5)}, TypeError, "multiply an output by a weight"),
    "coefficient as parameter": ({"ZZZ": Parameter("a")}, TypeError, "multiply an output by a weight"),
    "complex coefficient": ({"ZZZ": 1j}, ValueError, "complex coefficients"),
    "infinite coefficient": ({"ZZZ": np.inf}, ValueError, "expected finite numbers"),
    "coefficient that is no number": ({"ZZZ": np.nan}, ValueError, "expected finite numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_else_there_is_is_refused_with_the_remedy(kind):
    given, error, message = REFUSED[kind]
    with pytest.raises(error, match=message) as caught:
        QuantumLayer(circuit(), observables=given)
    assert caught.value.__cause__ is None


def test_projectors_that_are_too_many_terms_are_refused():
    with pytest.raises(ValueError, match=r"32768 Pauli terms.*use probabilities=\[qubits\]"):
        QuantumLayer(QuantumCircuit(15), observables="0" * 15)


@pytest.mark.slow
def test_outputs_do_not_depend_on_the_hash_seed(capsys):
    """Sets are refused in every process; and what is accepted gives the same outputs, shots and weights in each."""
    program = """
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit_torch_bridge import QuantumLayer
a, b, qc = ParameterVector("a", 3), ParameterVector("b", 3), QuantumCircuit(3)
for q in range(3):
    qc.rx(a[q], q)
    qc.ry(b[q] * a[q], q)
labels = ["ZII", "IXY", "0+l", "YYX", "IIZ"]
for wrong in ({"observables": set(labels)}, {"weights": {"a": set(a), "b": b}}, {"probabilities": {0, 1}}):
    try:
        QuantumLayer(qc, **{"weights": {"a": a, "b": b}} | wrong)
    except TypeError as error:
        print(error)
torch.manual_seed(0)
layer = QuantumLayer(qc, weights={"b": b, "a": a}, seed=1, shots=100,
                     observables=[dict.fromkeys(labels, 0.7), *dict.fromkeys(labels)])
print(layer.state_dict(), layer().tolist())
"""
    another = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": another}
    there = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    exec(program, {})
    here = capsys.readouterr().out
    assert here == there
    assert here.count("got a set, which has no order") == 3
