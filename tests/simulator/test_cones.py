"""Circuits that are simulated by their light cones: the same numbers, where both can be had."""

import copy
import math
import pickle

import numpy as np
import psutil
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp
from scipy import stats
from simulator_cases import Case, pauli, random_circuit, real_circuit, some_observables

from qiskit_torch_bridge import QuantumLayer, StatevectorBackend
from qiskit_torch_bridge.program import light_cones
from qiskit_torch_bridge.simulator import cone_engine, cone_plan, engine
from qiskit_torch_bridge.simulator.cone_engine import ConeSimulator
from qiskit_torch_bridge.simulator.engine import Simulator

SHOTS = 4000


@pytest.fixture
def by_cones(monkeypatch):
    """Every circuit, whatever it costs."""
    monkeypatch.setattr(cone_engine, "LEAST_QUBITS", 1)
    monkeypatch.setattr(cone_plan, "_GAIN", math.inf)


def brickwork(n: int, layers: int) -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """RY(input), then layers of RY, RZ and CNOTs between neighbours: pairs, and the pairs between those."""
    inputs, weights = ParameterVector("x", n), ParameterVector("w", 2 * n * layers)
    circuit, free = QuantumCircuit(n), iter(weights)
    for qubit in range(n):
        circuit.ry(inputs[qubit], qubit)
    for _ in range(layers):
        for qubit in range(n):
            circuit.ry(next(free), qubit)
            circuit.rz(next(free), qubit)
        for first in (0, 1):
            for qubit in range(first, n - 1, 2):
                circuit.cx(qubit, qubit + 1)
    return circuit, inputs, weights


def features(rows: int, n: int) -> torch.Tensor:
    return 0.3 + 2.5 * torch.rand(rows, n, dtype=torch.float64)


def layer_of(n: int, layers: int = 2, **options) -> QuantumLayer:
    circuit, inputs, weights = brickwork(n, layers)
    return QuantumLayer(circuit, inputs=inputs, weights=weights, **{"seed": 1, **options}).to(torch.float64)


def simulator_of(layer: QuantumLayer) -> ConeSimulator:
    simulator = layer.backend._simulator(layer.program)
    assert isinstance(simulator, ConeSimulator)
    return simulator


# ------------------------------------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("seed", range(12))
def test_random_circuits(by_cones, seed):
    n = 1 + seed % 6
    case = Case(random_circuit(n, seed, 3 + 3 * seed, free=12), some_observables(n, seed))
    assert isinstance(case.simulator, ConeSimulator)
    case.check(1, 9)
    case.check(3, keep=False)


@pytest.mark.parametrize("seed", range(12))
def test_random_circuits_by_letters_alone(by_cones, seed, monkeypatch):
    monkeypatch.setattr(light_cones.CircuitGates, "cone", light_cones.CircuitGates._cone_by_letters)
    n = 2 + seed % 5
    case = Case(random_circuit(n, seed, 3 + 3 * seed, free=12), some_observables(n, seed))
    assert isinstance(case.simulator, ConeSimulator)
    case.check(2)


def test_letters_that_are_lost_are_noticed(by_cones, monkeypatch):
    monkeypatch.setattr(light_cones.CircuitGates, "cone", light_cones.CircuitGates._cone_by_letters)
    monkeypatch.setattr(light_cones, "before_map", lambda ptm, behind: None)
    with pytest.raises(AssertionError):
        check_several()


@pytest.mark.parametrize("seed", range(4))
def test_random_circuits_of_real_gates(by_cones, seed):
    Case(real_circuit(5, seed, 15), some_observables(5, seed)).check(2)


@pytest.mark.parametrize("seed", range(4))
def test_probabilities(by_cones, seed):
    case = Case(random_circuit(5, seed, 12, free=8), None, [4, 1])
    assert isinstance(case.simulator, ConeSimulator)
    case.check(1, 5)
    Case(random_circuit(5, seed, 12, free=8), None, [0, 3, 2], [0, 1, 1, 2, 0, 0, 1, 2]).check(2)


def test_single_precision(by_cones):
    case = Case(random_circuit(5, 3, 20, free=8), some_observables(5), precision="single")
    case.check(3, atol=(1e-5, 1e-4))


@pytest.mark.parametrize(
    "break_it",
    [lambda gate, other: True, lambda gate, other: gate.kind.axes[0] == other.kind.axes[0] is not None],
    ids=["all gates commute", "gates commute if their first qubits' axes agree"],
)
def test_cones_that_are_too_small_are_noticed(by_cones, monkeypatch, break_it):
    monkeypatch.setattr(light_cones.Gate, "commutes_with", break_it)
    with pytest.raises(AssertionError):
        check_several()


def check_several() -> None:
    for seed in range(12):
        n = 2 + seed % 5
        Case(random_circuit(n, seed, 3 + 3 * seed, free=12), some_observables(n, seed)).check(2)


def test_fourteen_qubits_beside_the_whole_state():
    n = 14
    layer = layer_of(n, observables=[pauli(n, Z=q) for q in range(n)] + [pauli(n, X=2, Y=3), pauli(n, Z=[0, 13])])
    simulator_of(layer)
    whole = Simulator(cone_engine.lowered(layer.program))
    angles = np.random.default_rng(0).normal(size=(5, layer.program.num_columns))
    upstream = np.random.default_rng(1).normal(size=(5, n + 2))
    values, states = whole.values(angles, keep=True)
    ours, kept = simulator_of(layer).values(angles, keep=True)
    np.testing.assert_allclose(ours, values, atol=1e-13)
    selected = np.random.default_rng(2).random(layer.program.num_columns) < 0.6
    expected = whole.pullback(angles, upstream, states, selected)
    np.testing.assert_allclose(simulator_of(layer).pullback(angles, upstream, kept, selected), expected, atol=1e-12)
    assert not expected[:, ~selected].any()


def test_what_is_known_of_a_hundred_qubits():
    """A product of rotations, tied in pairs by CNOTs: each value is a product of cosines, and so is its slope."""
    n = 100
    angles = ParameterVector("a", n)
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(angles[qubit], qubit)
    for qubit in range(0, n, 2):
        circuit.cx(qubit, qubit + 1)
    point = torch.linspace(0.1, 3.0, n, dtype=torch.float64, requires_grad=True)
    layer = QuantumLayer(circuit, inputs=angles)
    cosines = torch.cos(point)
    known = torch.stack([cosines[q] if q % 2 == 0 else cosines[q - 1] * cosines[q] for q in range(n)])
    values = layer(point)
    torch.testing.assert_close(values, known, atol=1e-12, rtol=0)
    upstream = torch.randn(n, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(one, point, upstream)[0] for one in (values, known))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_second_order_and_transforms():
    layer, x = layer_of(11, 1), features(1, 11)[0]
    simulator_of(layer)
    weights = dict(layer.named_parameters())

    def of(features):
        return torch.func.functional_call(layer, weights, (features,)).sum()

    hessian = torch.func.jacrev(torch.func.grad(of))(x)
    step = 1e-4
    for column in (0, 5):
        shift = step * torch.eye(11, dtype=torch.float64)[column]
        slope = (torch.func.grad(of)(x + shift) - torch.func.grad(of)(x - shift)) / (2 * step)
        torch.testing.assert_close(hessian[column], slope, atol=1e-6, rtol=0)


def test_alike_cones_are_rows_of_one_circuit():
    """So a chain of any length has as many circuits as its shortest one, and they are no wider."""
    short, long = (simulator_of(layer_of(n)) for n in (12, 60))
    assert len(long._exact.parts) == len(short._exact.parts) <= 4
    assert max(part.simulator.plan.num_qubits for part in long._exact.parts) == 6


def test_the_plan_says_what_is_simulated():
    assert layer_of(60).plan().splitlines() == [
        "28 light cones in place of one state of 60 qubits; those that are alike are one circuit:",
        "  1 x 6 qubits, 23 angles: outputs 0, 1, 2, 3, 4",
        "  26 x 6 qubits, 20 angles: outputs 5, 6, 7, 8, 9, 10, ..., 56",
        "  1 x 6 qubits, 21 angles: outputs 57, 58, 59",
    ]
    assert layer_of(3).plan() == "One state of 3 qubits, 8 complex amplitudes for each row."
    assert layer_of(3, backend="aer").plan() == "1 circuit for each row of the batch, on aer."


def test_strings_of_one_cone_are_simulated_once():
    """X on a qubit lies within the cone of Z on it and its neighbour."""
    n = 20
    strings = [pauli(n, Z=[q, q + 1]) for q in range(n - 1)] + [pauli(n, X=q) for q in range(n)]
    energy = SparsePauliOp(strings, np.linspace(-1, 1, len(strings)))
    assert len(simulator_of(layer_of(n, 1, observables=energy)).fragments) < len(strings) - n // 2


def test_entangled_circuits_stay_whole():
    n = 12
    circuit, inputs, weights = brickwork(n, 6)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights)
    assert isinstance(layer.backend._simulator(layer.program), Simulator)
    assert isinstance(layer_of(8, 1).backend._simulator(layer_of(8, 1).program), Simulator), "too small to gain by it"


def test_layers_are_copied_and_pickled():
    layer, x = layer_of(14), features(2, 14)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), layer(x))
    backend = StatevectorBackend(joint_shots=False)
    assert pickle.loads(pickle.dumps(backend)).joint_shots is False
    assert repr(backend) == "StatevectorBackend(joint_shots=False)"
    with pytest.raises(TypeError, match=r"joint_shots: got 1 .*expected True or False"):
        StatevectorBackend(joint_shots=1)


# ------------------------------------------------------------------------------------------------- shots


def z_scores(layer: QuantumLayer, x: torch.Tensor, exact: torch.Tensor) -> np.ndarray:
    """Of outputs that are one string each, by the standard errors that follow from exact values."""
    with torch.no_grad():
        values = layer(x)
    errors = np.sqrt((1 - exact.numpy() ** 2) / SHOTS)
    np.testing.assert_allclose(layer.last_run.standard_errors, errors, atol=6 / SHOTS)
    there = np.abs(exact.numpy()) < 0.99
    assert there.mean() > 0.5
    return ((values - exact).numpy() / errors)[there]


def assert_plausible(z: np.ndarray) -> None:
    assert 1e-3 < stats.chi2.cdf((z**2).sum(), z.size) < 1 - 1e-3


@pytest.mark.parametrize("joint", [True, False])
def test_shots_are_right(joint):
    n = 12
    labels = [pauli(n, Z=q) for q in range(n)] + [pauli(n, X=3), pauli(n, X=[4, 5]), pauli(n, Z=[0, 11])]
    options = {"observables": labels}
    layer = layer_of(n, backend=StatevectorBackend(joint_shots=joint), shots=SHOTS, **options)
    x = features(40, n)
    exact = layer_of(n, **options)
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad():
        z = z_scores(layer, x, exact(x))
    assert_plausible(z)
    first = layer.last_run.values
    with torch.no_grad():
        assert not np.array_equal(layer(x).numpy(), first), "each call draws anew"
    repeated = layer_of(n, backend=StatevectorBackend(joint_shots=joint), shots=SHOTS, **options)
    repeated.load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert np.array_equal(repeated(x).numpy(), first), "the same seed draws the same"


def variances(layer: QuantumLayer, x: torch.Tensor, upstream: np.ndarray, shots: int | None) -> np.ndarray:
    with torch.no_grad():
        layer(x, shots=shots) if shots else layer(x)
    return layer.last_run._covariance.of_one_shot(upstream)


def test_covariances_of_one_shot():
    """Exact ones from products of strings, exact ones from outcomes, and those estimated from shots."""
    n = 16
    layer, x = layer_of(n), features(3, n)
    upstream = np.random.default_rng(3).normal(size=(3, n))
    simulator = simulator_of(layer)
    assert simulator._by_products
    exact = variances(layer, x, upstream, None)
    simulator.__dict__["_by_products"] = False
    np.testing.assert_allclose(variances(layer, x, upstream, None), exact, rtol=1e-10)
    estimated = variances(layer, x, upstream, 20_000)
    np.testing.assert_allclose(estimated, exact, rtol=0.05)
    independent = layer_of(n, backend=StatevectorBackend(joint_shots=False))
    assert (np.abs(variances(independent, x, upstream, None) / exact - 1) > 1e-3).any(), "no covariance between cones"


def test_independent_parts_are_drawn_by_themselves():
    """Two chains that nothing connects: no state of all their qubits, and the same statistics."""
    n, half = 60, 10
    circuit = QuantumCircuit(n)
    angles = ParameterVector("a", n)
    for qubit in range(n):
        circuit.ry(angles[qubit], qubit)
    for start in range(0, n, half):
        for qubit in range(start, start + half - 1):
            circuit.cz(qubit, qubit + 1)
        circuit.ry(0.4, range(start, start + half))
    layer = QuantumLayer(circuit, inputs=angles, shots=SHOTS, seed=0)
    exact = QuantumLayer(circuit, inputs=angles)
    x = features(10, n)
    with torch.no_grad():
        z = z_scores(layer, x, exact(x))
    assert_plausible(z)


def test_shots_that_must_be_drawn_together_and_do_not_fit():
    layer = layer_of(60)
    x = features(2, 60)
    with pytest.raises(
        MemoryError, match=r"drawn together.* of 60 of .*joint_shots=False.*matrix_product_state.*shots=None"
    ):
        layer(x, shots=100)
    exact = layer(x)
    assert np.isfinite(layer.last_run.predicted(1000).standard_errors).all()
    independent = layer_of(60, backend=StatevectorBackend(joint_shots=False), shots=SHOTS)
    independent.load_state_dict(layer.state_dict())
    z = z_scores(independent, x, exact.detach())
    assert_plausible(z)


def test_shots_that_do_not_fit_into_what_is_free_name_the_remedy(monkeypatch):
    layer = layer_of(16, shots=SHOTS)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2**18))
    monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", 2**19)
    with pytest.raises(MemoryError, match=r"drawn together.* of 16 qubits.*joint_shots=False.*free"):
        layer(features(1, 16))
    assert layer_of(16, shots=SHOTS, backend=StatevectorBackend(joint_shots=False))(features(1, 16)).shape == (1, 16)


def test_probabilities_with_shots():
    options = {"observables": None, "probabilities": [14, 15, 16]}
    layer, exactly = layer_of(30, 2, shots=SHOTS, **options), layer_of(30, 2, **options)
    x = features(8, 30)
    with torch.no_grad():
        exact, counts = exactly(x).numpy(), layer(x).numpy() * SHOTS
    assert exact.min() * SHOTS > 2
    chi_square = ((counts - SHOTS * exact) ** 2 / (SHOTS * exact)).sum()
    assert 1e-3 < stats.chi2.cdf(chi_square, 8 * 7) < 1 - 1e-3


def test_gradients_with_shots():
    layer = layer_of(12, 1, shots=2000, gradient="parameter_shift")
    x = features(4, 12)
    layer(x).sum().backward()
    measured, errors = layer.last_run.gradients, layer.last_run.gradient_standard_errors
    exact = layer_of(12, 1)
    exact.load_state_dict(layer.state_dict())
    exact(x).sum().backward()
    z = (measured - exact.weights.grad.numpy()) / np.where(errors > 0, errors, np.inf)
    assert np.abs(z).max() < 5
    assert (np.abs(z) > 0.1).any()
