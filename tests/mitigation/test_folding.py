"""Folded circuits: the same unitary, and as many more gates with as many more of the same errors as is said."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import CSXGate, RXGate, UnitaryGate
from qiskit.quantum_info import Operator
from qiskit_aer.noise import NoiseModel, depolarizing_error

from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer, ZeroNoiseExtrapolation
from qiskit_torch_bridge.backends.simulated import key_of_errors
from qiskit_torch_bridge.backends.transpiling import WITHOUT_NOISE
from qiskit_torch_bridge.mitigation.folding import Folding

FACTORS = (1, 1.3, 2, 3, 4.4, 5, 7)
FOLDS = ("local", "global")


def every_gate():
    """Of each kind that can be folded; angles, qubits and labels are arbitrary."""
    circuit = QuantumCircuit(3)
    for name in ("h", "x", "y", "z", "s", "sdg", "t", "tdg", "sx", "sxdg", "id"):
        getattr(circuit, name)(0)
    circuit.rx(0.3, 1)
    circuit.append(RXGate(0.7, label="pulse"), [2])
    circuit.u(0.1, 0.2, 0.3, 2)
    circuit.p(0.4, 0)
    circuit.barrier()
    for name in ("cx", "cz", "cy", "ch", "ecr", "swap", "iswap", "cs", "csdg"):
        getattr(circuit, name)(2, 0)
    for name in ("rzz", "rxx", "ryy", "rzx", "cp", "crx"):
        getattr(circuit, name)(0.9, 1, 2)
    circuit.ccx(0, 1, 2)
    circuit.append(UnitaryGate(Operator(CSXGate()).data), [1, 0])
    circuit.delay(10, 1)
    circuit.cu(0.1, 0.2, 0.3, 0.4, 0, 2)
    return circuit


def entangling(circuit):
    return sum(len(one.qubits) > 1 and one.operation.name != "barrier" for one in circuit.data)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("fold", FOLDS)
def test_a_folded_circuit_is_the_same_operator_with_as_many_more_gates(fold, factor):
    circuit, folding = every_gate(), Folding(factor, fold)
    folded = folding.apply(circuit)
    assert Operator(folded).equiv(Operator(circuit))
    assert entangling(folded) / entangling(circuit) == pytest.approx(folding.effective_factor(circuit))
    assert folding.effective_factor(circuit) == pytest.approx(factor, abs=1 / entangling(circuit) + 1e-12)
    if factor % 2 == 1:
        assert folding.effective_factor(circuit) == factor
    assert circuit == every_gate()  # the given one stays as it is


@pytest.mark.parametrize("fold", FOLDS)
def test_every_error_is_there_as_often_as_the_factor_says(fold):
    """By label or name; the half turns that mirror a gate have none, and each gate is mirrored on its own qubits."""

    def errors(circuit):
        counts = Counter()
        for one in circuit.data:
            counts[key_of_errors(one.operation), tuple(circuit.find_bit(q).index for q in one.qubits)] += 1
        return {key: count for key, count in counts.items() if key[0] not in ("barrier", WITHOUT_NOISE)}

    circuit = every_gate()
    before, after = errors(circuit), errors(Folding(5, fold).apply(circuit))
    is_folded = {key: fold == "global" or len(key[1]) > 1 for key in before}
    assert after == {key: count * (5 if is_folded[key] else 1) for key, count in before.items()}


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("gate", ["s", "sx", "t", "sdg"])
def test_noise_of_a_gate_whose_inverse_has_another_name_is_not_lost(gate, fold):
    circuit = QuantumCircuit(1)
    circuit.ry(0.8, 0)
    getattr(circuit, gate)(0)
    circuit.rx(0.4, 0)
    p = 0.1
    noise = NoiseModel(basis_gates=["ry", "rx", "rz", gate])
    noise.add_all_qubit_quantum_error(depolarizing_error(p, 1), [gate])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.5, 1), ["rz"])  # that of the half turns must not count
    layer = QuantumLayer(circuit, backend=DensityMatrixBackend(noise), observables="Z")
    ideal = QuantumLayer(circuit, observables="Z")().item()
    folding = Folding(5, fold)
    if fold == "local":
        with pytest.raises(ValueError, match=r"without gates that it could fold; give fold='global'"):
            folding.effective_factor(circuit)
        return
    program = layer.program.varied(folding)
    estimate = layer.backend.evaluate(program, np.zeros((1, 0)), shots=None, seed=np.random.SeedSequence(0))
    assert estimate.values.item() == pytest.approx((1 - p) ** 5 * ideal, abs=1e-6)


def test_local_folds_are_evenly_spread():
    circuit = QuantumCircuit(2)
    for _ in range(12):
        circuit.cx(0, 1)
    folded = Folding(1.5, "local").apply(circuit)
    names = [one.operation.name for one in folded.data]
    lengths = [len(list(group)) for name, group in itertools.groupby(names) if name == "cx"]
    # Every fourth gate is folded: its mirror image stands between barriers, then it comes again, before four others.
    assert names.count("cx") == 12 + 2 * 3
    assert lengths == [4, 1, 5, 1, 5, 1, 1]


def test_barriers_keep_gates_apart_that_would_cancel():
    circuit = QuantumCircuit(4, 2)
    circuit.rx(0.2, 2)
    circuit.cx(1, 2)
    circuit.measure([1, 2], [0, 1])
    for fold, qubits in (("local", [1, 2]), ("global", [1, 2])):
        folded = Folding(3, fold).apply(circuit)
        barriers = [one for one in folded.data if one.operation.name == "barrier"]
        assert [[folded.find_bit(q).index for q in one.qubits] for one in barriers] == [qubits, qubits]
        names = [one.operation.name for one in folded.data]
        assert [left for left, right in itertools.pairwise(names) if left == right == "cx"] == []
        assert names[-2:] == ["measure", "measure"]


def test_measurements_stay_where_they_are():
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 1)
    circuit.h(1)
    circuit.measure(1, 0)
    folded = Folding(3, "global").apply(circuit)
    bits = {folded.find_bit(i.qubits[0]).index: folded.find_bit(i.clbits[0]).index for i in folded.data if i.clbits}
    assert bits == {0: 1, 1: 0}
    assert folded.cregs == circuit.cregs


def test_free_angles_stay_affine():
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.rzz(2 * angle + 0.5, 0, 1)
    circuit.rx(angle - 1, 0)
    for fold in FOLDS:
        folded = Folding(3, fold).apply(circuit)
        bound = [each.assign_parameters({angle: 0.3}) for each in (circuit, folded)]
        assert Operator(bound[0]).equiv(Operator(bound[1]))


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2])
def test_gates_of_some_angles_only_are_mirrored_without_others(angle):
    circuit = QuantumCircuit(2)
    circuit.rzz(angle, 0, 1)
    folded = Folding(3, "local", bounded=("rzz",)).apply(circuit)
    assert Operator(folded).equiv(Operator(circuit))
    assert [one.operation.params for one in folded.data if one.operation.name == "rzz"] == [[angle]] * 3
    assert folded.count_ops()["x"] == 2
    negated = Folding(3, "local").apply(circuit)  # where any angle is taken
    assert [one.operation.params for one in negated.data if one.operation.name == "rzz"] == [[angle], [-angle], [angle]]


def no_inverse(name):
    circuit = QuantumCircuit(3)
    if name == "csx":
        circuit.append(CSXGate(), [0, 1])
    elif name == "dcx":
        circuit.dcx(0, 1)
    elif name == "block":
        inner = QuantumCircuit(2, name="block")
        inner.cx(0, 1)
        circuit.append(inner.to_gate(), [0, 1])
    elif name == "reset":
        circuit.cx(0, 1)
        circuit.reset(2)
    else:
        circuit.rxx(0.3, 0, 1)
    return circuit


@pytest.mark.parametrize(
    ("name", "fold", "bounded"),
    [("csx", "local", ()), ("block", "global", ()), ("reset", "global", ()), ("rxx", "local", ("rxx",))],
)
def test_gates_without_a_mirror_are_refused_by_name(name, fold, bounded):
    with pytest.raises(ValueError, match=f"'{name}', which has no inverse with the same errors"):
        Folding(3, fold, bounded).apply(no_inverse(name))


def test_gates_after_a_measurement_are_refused():
    circuit = QuantumCircuit(2, 1)
    circuit.cx(0, 1)
    circuit.measure(0, 0)
    circuit.x(0)
    with pytest.raises(ValueError, match="'x' after a measurement of the same qubit; give fold='local'"):
        Folding(3, "global").apply(circuit)


def test_circuits_of_single_qubits_are_folded_as_wholes_only():
    circuit = QuantumCircuit(1)
    circuit.rx(0.3, 0)
    circuit.rz(0.3, 0)
    assert Folding(2, "global").effective_factor(circuit) == 2
    assert Folding(2, "global").apply(circuit).count_ops() == {"rx": 1, "rz": 3, "barrier": 2}
    options = {"backend": DensityMatrixBackend(NoiseModel()), "mitigation": [ZeroNoiseExtrapolation()]}
    with pytest.raises(ValueError, match="give fold='global'"):
        QuantumLayer(circuit, **options)


def test_a_fold_that_forgets_to_mirror_is_another_operator():
    """The comparison above can fail."""

    class Repeated(Folding):
        def _inverse(self, operation):
            return [(operation, range(operation.num_qubits))]

    circuit = every_gate()
    assert not Operator(Repeated(3, "global").apply(circuit)).equiv(Operator(circuit))
    assert not Operator(Repeated(3, "local").apply(circuit)).equiv(Operator(circuit))
