"""Single precision, and states too large for the machine."""

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp
from simulator_cases import GATES, GRADIENTS, VALUES, Case, parameters_of, pauli, random_circuit, some_observables

from qiskit_torch_bridge import QuantumLayer, StatevectorBackend


def test_single_precision():
    circuit = random_circuit(10, 5, 60, free=12)
    single = Case(circuit, some_observables(10), precision="single")
    double = Case(circuit, some_observables(10))
    points, upstream = double.points(3), double.upstream(3)
    assert single.simulator.dtype == np.float32
    values, gradients = single.values(points), single.pullback(points, upstream)
    assert values.dtype == gradients.dtype == np.float64
    np.testing.assert_allclose(values, double.values(points), atol=1e-5)
    np.testing.assert_allclose(gradients, double.pullback(points, upstream), atol=1e-4)
    assert np.abs(values - double.values(points)).max() > 1e-12, "it really is single"


@pytest.mark.parametrize("rows", [1, 2, 9, 40])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_single_precision_in_batches(n, rows):
    Case(random_circuit(n, 6, 40, free=6), some_observables(n), precision="single").check(rows, atol=(1e-5, 1e-4))


def test_single_precision_in_small_blocks_and_of_probabilities(small_blocks):
    small_blocks()
    for case in (
        Case(random_circuit(8, 6, 40, free=6), some_observables(8), precision="single"),
        Case(random_circuit(8, 6, 40, free=6), None, [7, 2], precision="single"),
    ):
        assert case.num_passes > 1
        case.check(2, atol=(1e-5, 1e-4))


def test_precision_is_kept_and_checked():
    assert pickle.loads(pickle.dumps(StatevectorBackend(precision="single"))).precision == "single"
    assert pickle.loads(pickle.dumps(StatevectorBackend())).precision == "double"
    circuit = random_circuit(2, 0, 5, free=2)
    backend = StatevectorBackend(precision="single")
    layer = QuantumLayer(circuit, inputs=parameters_of(circuit), observables=["ZZ"], backend=backend)
    again = pickle.loads(pickle.dumps(layer))
    x = torch.tensor([[0.3, 0.4]], dtype=torch.float64)
    assert again.backend.precision == "single"
    assert torch.equal(layer(x), again(x))
    for word in ("half", "", None, 32):
        with pytest.raises(ValueError, match=r"precision: got .*'double' or 'single'"):
            StatevectorBackend(precision=word)


# ------------------------------------------------------------------------------------------------- memory


GIB = 2**30


def machine_with(monkeypatch: pytest.MonkeyPatch, *, total: float, available: float) -> None:
    memory = SimpleNamespace(total=int(total * GIB), available=int(available * GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def layer_of_rotations(n: int, gate: str = "rx", **options: Any) -> QuantumLayer:
    weights = ParameterVector("w", n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.append(GATES[gate].base_class(weights[qubit]), [qubit])
    return QuantumLayer(circuit, weights=weights, observables=["Z" * n], init="zeros", **options)


@pytest.mark.parametrize(
    ("gate", "precision", "gibibytes"),
    [("rx", "double", 2), ("ry", "double", 1), ("rx", "single", 1), ("ry", "single", 0.5)],
)
def test_a_state_larger_than_the_machine(monkeypatch, gate, precision, gibibytes):
    """Found before anything of that size is made: by its qubits, and where those might fit, by its complex numbers."""
    backend = StatevectorBackend(precision=precision)
    machine_with(monkeypatch, total=0.4, available=0.4)
    least = 1 if precision == "double" else 0.5
    with pytest.raises(MemoryError, match=rf"27 of .* 27 qubits.* at least {least:.1f} GiB .*0\.4 GiB altogether"):
        layer_of_rotations(27, gate, backend=backend)
    machine_with(monkeypatch, total=0.99 * gibibytes, available=0.4)
    with pytest.raises(MemoryError, match=rf"27 .*{gibibytes:.1f} GiB .*{0.99 * gibibytes:.1f} GiB altogether"):
        layer_of_rotations(27, gate, backend=backend)
    machine_with(monkeypatch, total=gibibytes, available=0)
    layer_of_rotations(27, gate, backend=backend)


def test_a_state_larger_than_what_is_free(monkeypatch):
    machine_with(monkeypatch, total=4, available=0.75)
    layer = layer_of_rotations(26)
    with pytest.raises(MemoryError, match=r"26 qubits needs 1\.0 GiB .*0\.8 GiB free"):
        layer()
    with torch.no_grad(), pytest.raises(MemoryError, match="GiB free"):
        layer(shots=10)


@pytest.mark.parametrize("letter", ["X", "Y", "Z"])
@pytest.mark.parametrize("n", [40, 62, 63, 64, 65, 80, 127])
def test_far_too_many_qubits(n, letter):
    """Also where the masks of qubits have no room in an integer."""
    circuit = QuantumCircuit(n)
    circuit.u(0.3, 0.4, 0.5, range(n))
    with pytest.raises(MemoryError, match=rf"{letter}_0 .* has {n} of the circuit's {n} qubits"):
        QuantumLayer(circuit, observables=[letter * n])
    with pytest.raises(MemoryError, match=f"light cone of the probabilities has {n} of the circuit's {n} qubits"):
        QuantumLayer(everything_in_one(n), probabilities=[0])


def everything_in_one(n: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n)
    for qubit in range(n - 1):
        circuit.crx(0.3, n - 1 - qubit, n - 2 - qubit)
        circuit.u(0.3, 0.4, 0.5, n - 2 - qubit)
    return circuit


@pytest.mark.slow
def test_twenty_four_qubits():
    """A product state, and permutations that turn Z's into products of Z's: the values are products of cosines."""
    n = 24
    if psutil.virtual_memory().available < 3 * GIB:
        pytest.skip("less than 3 GiB of memory are free")
    weights = ParameterVector("w", n)
    ring = QuantumCircuit(n)
    for qubit in range(n):
        ring.cx(qubit, (qubit + 1) % n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(weights[qubit], qubit)
    circuit.compose(ring, inplace=True)
    labels = [pauli(n, Z=qubit) for qubit in (0, 5, 23)] + [pauli(n, X=[0, 23]), pauli(n, X=20, Z=3)]
    point = np.random.default_rng(0).uniform(0.1, 0.6, n)
    init = torch.from_numpy(point)
    layer = QuantumLayer(circuit, weights=weights, observables=labels, init=init)
    values = layer()
    (gradient,) = torch.autograd.grad(values.sum(), [*layer.parameters()])
    expected, slopes = [], np.zeros(n)
    for label in labels:
        pulled = SparsePauliOp(label).paulis[0].evolve(ring, frame="h")
        sign = -1.0 if pulled.phase == 2 else 1.0
        factors, derivatives = np.ones(n), np.zeros(n)
        for qubit in range(n):
            x, z = bool(pulled.x[qubit]), bool(pulled.z[qubit])
            assert not (x and z), "no Y, whose value would be zero"
            if x or z:
                factors[qubit] = np.sin(point[qubit]) if x else np.cos(point[qubit])
                derivatives[qubit] = np.cos(point[qubit]) if x else -np.sin(point[qubit])
        expected.append(sign * factors.prod())
        slopes += sign * derivatives * factors.prod() / factors
    np.testing.assert_allclose(values.detach().numpy().ravel(), expected, atol=VALUES)
    np.testing.assert_allclose(gradient.numpy(), slopes, atol=GRADIENTS)


@pytest.mark.slow
def test_a_hundred_thousand_rows():
    case = Case(random_circuit(4, 3, 30, free=6), some_observables(4))
    points, upstream = case.points(100_000), case.upstream(100_000)
    values, gradients = case.values(points), case.pullback(points, upstream)
    some = np.random.default_rng(1).permutation(100_000)[:300]
    np.testing.assert_allclose(values[some], case.expected(points[some]), atol=VALUES)
    np.testing.assert_allclose(gradients[some], case.expected_pullback(points[some], upstream[some]), atol=GRADIENTS)
    for row in some[:30]:
        alone = slice(row, row + 1)
        np.testing.assert_allclose(case.values(points[alone]), values[alone], atol=1e-14)
        np.testing.assert_allclose(case.pullback(points[alone], upstream[alone]), gradients[alone], atol=1e-13)
