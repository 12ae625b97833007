"""Expressibility, entangling capability and effective dimension, against closed forms and Qiskit's states."""

import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import Statevector, partial_trace, random_statevector

from qiskit_torch_bridge import (
    QuantumLayer,
    effective_dimension,
    effective_dimension_of,
    entangling_capability,
    expressibility,
    meyer_wallach,
)
from qiskit_torch_bridge.circuits import amplitude_encoding, strongly_entangling, textbook

BINS = 75
EDGES = np.linspace(0, 1, BINS + 1)


def z_score(result, expected):
    return (getattr(result, "corrected", result.value) - expected) / result.standard_error


def circuit_a():
    """H and RZ: states on the equator."""
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.rz(Parameter("a"), 0)
    return circuit


def circuit_b():
    """H, RZ and RX: states on the whole sphere, denser at the ends of the x axis."""
    circuit = circuit_a()
    circuit.rx(Parameter("b"), 0)
    return circuit


def shares_a():
    """The fidelity is cos(d / 2)**2 with d uniform."""
    return np.diff(2 / np.pi * np.arcsin(np.sqrt(EDGES)))


def shares_b():
    """(1 + cos s cos t + sin s sin t cos d) / 2 with uniform s, t and d; d is integrated by hand, s and t by midpoints."""
    angles = (np.arange(150) + 0.5) * np.pi / 150
    along, across = np.outer(np.cos(angles), np.cos(angles)), np.outer(np.sin(angles), np.sin(angles))
    cosines = (2 * EDGES[:, None, None] - 1 - along) / across
    return np.diff((1 - np.arccos(cosines.clip(-1, 1)) / np.pi).mean(axis=(1, 2)))


def divergence(shares):
    """Of one qubit, whose Haar-random fidelities are uniform."""
    return shares @ np.log(shares * BINS)


def chi_square_score(counts, shares):
    expected = counts.sum() * shares
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_a_circuit_with_one_state_is_as_far_from_random_as_can_be():
    for num_qubits, bins in ((1, 75), (3, 75), (4, 10)):
        result = expressibility(QuantumCircuit(num_qubits), samples=10, bins=bins)
        assert result.value == pytest.approx((2**num_qubits - 1) * math.log(bins))
        assert (result.standard_error, result.bias, result.counts[-1]) == (0, 0, 10)
    only_phases = QuantumCircuit(1)
    only_phases.rz(Parameter("a"), 0)
    assert expressibility(only_phases, samples=10).value == pytest.approx(math.log(75))


@pytest.mark.parametrize(("circuit", "shares"), [(circuit_a, shares_a), (circuit_b, shares_b)], ids=["A", "B"])
def test_circuits_of_one_qubit_in_closed_form(circuit, shares):
    shares = shares()
    results = [expressibility(circuit(), samples=20_000, seed=seed) for seed in range(4)]
    scores = [z_score(result, divergence(shares)) for result in results]
    assert np.abs(scores).max() < 3
    assert abs(np.sum(scores)) / 2 < 3
    counts = sum(result.counts for result in results)
    assert abs(chi_square_score(counts, shares)) < 3
    assert chi_square_score(counts, shares_b() if circuit is circuit_a else shares_a()) > 100
    assert chi_square_score(counts, np.full(BINS, 1 / BINS)) > 100


@pytest.mark.parametrize(("num_qubits", "bins"), [(1, 75), (2, 10), (3, 5)])
def test_haar_random_states_have_none_but_for_the_bias(num_qubits, bins):
    """Normally distributed amplitudes are Haar-random; 2 M times the value is a chi-square of bins - 1 degrees."""
    encoding = amplitude_encoding(num_qubits, is_complex=True)
    results = [
        expressibility(encoding, samples=4000, bins=bins, seed=seed, draw=lambda rng, shape: rng.normal(size=shape))
        for seed in range(6)
    ]
    values = np.array([result.value for result in results])
    freedom = bins - 1
    assert abs((2 * 4000 * values).sum() - 6 * freedom) / math.sqrt(12 * freedom) < 3
    assert results[0].bias == pytest.approx(freedom / 8000, rel=0.3)
    assert np.abs([z_score(result, 0.0) for result in results]).max() < 3
    real = amplitude_encoding(num_qubits)  # wrong on purpose: real amplitudes are not Haar-random
    result = expressibility(real, samples=4000, bins=bins, seed=0, draw=lambda rng, shape: rng.normal(size=shape))
    assert z_score(result, 0.0) > 5


def test_standard_errors_are_the_scatter():
    from qiskit_torch_bridge.descriptors import _divergence, _log_haar

    rng, log_haar = np.random.default_rng(3), _log_haar(BINS, 1)
    for shares in (np.exp(log_haar), shares_a()):
        results = [_divergence(rng.multinomial(5000, shares / shares.sum()), log_haar) for _ in range(400)]
        values = np.array([result.value for result in results])
        errors = math.sqrt(np.mean([result.standard_error**2 for result in results]))
        assert values.std() / errors == pytest.approx(1, abs=0.11)  # three times 1 / sqrt(2 * 400)
        mean = np.mean([result.corrected for result in results])
        assert abs(mean - divergence(shares)) < 3 * values.std() / 20


def test_bins_of_many_qubits_do_not_vanish():
    from qiskit_torch_bridge.descriptors import _log_haar

    assert np.exp(_log_haar(75, 4)).sum() == pytest.approx(1)
    assert _log_haar(75, 20)[-1] == pytest.approx(-(2**20 - 1) * math.log(75))


def ghz(num_qubits):
    circuit = QuantumCircuit(num_qubits)
    circuit.h(0)
    for qubit in range(1, num_qubits):
        circuit.cx(0, qubit)
    return circuit


def test_meyer_wallach_of_known_states(rng):
    w_state = np.zeros(8, complex)
    w_state[[1, 2, 4]] = 1 / math.sqrt(3)
    for state, expected in (
        (Statevector(ghz(3)), 1),
        (Statevector.from_label("0+r"), 0),
        (Statevector(w_state), 8 / 9),
        (Statevector(ghz(2)).tensor(Statevector.from_label("01")), 1 / 2),
        (Statevector.from_label("1"), 0),
    ):
        assert meyer_wallach(torch.from_numpy(state.data)).item() == pytest.approx(expected, abs=1e-12)
    state = random_statevector(16, seed=rng)
    rests = [[other for other in range(4) if other != qubit] for qubit in range(4)]
    expected = 2 - 2 * np.mean([partial_trace(state, rest).purity().real for rest in rests])
    given = torch.from_numpy(state.data).expand(2, 3, 16).clone().requires_grad_()
    assert meyer_wallach(given).detach().numpy() == pytest.approx(np.full((2, 3), expected))
    assert torch.autograd.gradcheck(meyer_wallach, given[0, :1])
    for wrong in (torch.zeros(3), torch.zeros(1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="states: got shape"):
            meyer_wallach(wrong)


def test_entangling_capability_in_closed_form():
    """RX and RZ, then CRZ in a chain of four qubits: 11/64; all angles uniform."""
    angles = ParameterVector("a", 11)
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.rx(angles[2 * qubit], qubit)
        circuit.rz(angles[2 * qubit + 1], qubit)
    for qubit in range(3):
        circuit.crz(angles[8 + qubit], qubit + 1, qubit)
    result = entangling_capability(circuit, samples=4000, seed=1)
    assert abs(z_score(result, 11 / 64)) < 3
    assert abs(z_score(result, 2 * 11 / 64)) > 5
    assert entangling_capability(ghz(3), samples=5).value == pytest.approx(1)
    assert entangling_capability(textbook(2).circuit, samples=5).value == pytest.approx(0, abs=1e-12)
    haar = amplitude_encoding(3, is_complex=True)
    result = entangling_capability(haar, samples=2000, seed=1, draw=lambda rng, shape: rng.normal(size=shape))
    assert abs(z_score(result, 6 / 9)) < 3


def test_of_a_layer_the_trainable_weights_are_drawn():
    """Each state is the layer's own at those weights; frozen weights and features stay."""
    circuit, inputs, weights = strongly_entangling(2, 2)
    layer = QuantumLayer(circuit, inputs=inputs, weights={"one": weights[:6], "other": weights[6:]}, seed=2).double()
    layer.weights["one"].requires_grad_(False)
    row, rows = torch.tensor([0.3, -1.2]), []

    def draw(rng, shape):
        rows.append(rng.uniform(0, 1, size=shape))
        return rows[-1]

    result = entangling_capability(layer, row, samples=3, seed=5, draw=draw)
    shares = expressibility(layer, row.tolist(), samples=2, bins=10, seed=5, draw=draw).counts
    expected, fidelities = [], []
    for drawn in [*rows[0], *rows[1]]:
        with torch.no_grad():
            layer.weights["other"].copy_(torch.from_numpy(drawn))
        state = Statevector(layer.bind(row))
        expected.append(2 - 2 * partial_trace(state, [0]).purity().real)
        fidelities.append(state.data)
    assert rows[0].shape == (3, 6)
    assert result.value == pytest.approx(np.mean(expected[:3]))
    assert result.standard_error == pytest.approx(np.std(expected[:3], ddof=1) / math.sqrt(3))
    overlaps = [abs(np.vdot(fidelities[3 + k], fidelities[4 + k])) ** 2 for k in (0, 2)]
    assert shares.tolist() == np.histogram(overlaps, 10, range=(0, 1))[0].tolist()


def test_parts_and_seeds(monkeypatch):
    whole = expressibility(circuit_b(), samples=50, seed=4)
    assert expressibility(circuit_b(), samples=50, seed=4).value == whole.value
    assert expressibility(circuit_b(), samples=50, seed=5).value != whole.value
    monkeypatch.setattr("qiskit_torch_bridge.descriptors._AMPLITUDES_AT_ONCE", 14)
    assert expressibility(circuit_b(), samples=50, seed=4).counts.tolist() == whole.counts.tolist()


def independent_outcomes(num_qubits=3):
    """RY on each qubit: the Fisher information of the outcomes is the identity, whatever the weights are."""
    weights = ParameterVector("w", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        circuit.ry(weights[qubit], qubit)
    return QuantumLayer(circuit, weights=weights, probabilities=list(range(num_qubits)), seed=1).double()


def kappa(data):
    return data / (2 * math.pi * math.log(data))


def test_effective_dimension_of_a_constant_fisher_matrix():
    layer, data = independent_outcomes(), [20, 1000, 10**6]
    before = layer.weights.detach().clone()
    result = effective_dimension(layer, data=data, samples=3, seed=0)
    expected = [3 * math.log(1 + kappa(n)) / math.log(kappa(n)) for n in data]
    assert result.values == pytest.approx(expected)
    assert result.normalized == pytest.approx(np.array(expected) / 3)
    assert result.standard_errors == pytest.approx(0, abs=1e-9)
    assert result.fisher == pytest.approx(np.tile(np.eye(3), (3, 1, 1)), abs=1e-9)
    assert torch.equal(layer.weights, before)
    spectrum = np.array([2.0, 1.0, 0.0])  # of mean 1: normalised already
    by_hand = 2 * math.log(math.sqrt((1 + 2 * kappa(500)) * (1 + kappa(500)))) / math.log(kappa(500))
    given = np.tile(np.diag(7 * spectrum), (2, 1, 1))
    assert effective_dimension_of(given, data=500).values == pytest.approx([by_hand])
    half = effective_dimension_of(torch.from_numpy(given), data=500, gamma=0.5)
    again = math.log((1 + kappa(500)) * (1 + kappa(500) / 2)) / math.log(kappa(500) / 2)
    assert half.values == pytest.approx([again])


def test_effective_dimension_is_the_mean_of_square_roots_not_of_logarithms():
    """Of two different matrices; and its error is the jackknife's."""
    given, k = np.array([np.diag([3.0, 1.0]), np.diag([0.5, 0.5]), np.diag([1.0, 0.0])]), kappa(100)

    def by_hand(matrices):
        normalised = 2 * matrices / np.trace(matrices.mean(axis=0))
        roots = [math.sqrt(np.linalg.det(np.eye(2) + k * each)) for each in normalised]
        return 2 * math.log(np.mean(roots)) / math.log(k), np.mean(np.log(roots))

    result = effective_dimension_of(given, data=100)
    value, wrong = by_hand(given)
    assert result.values == pytest.approx([value])
    assert abs(2 * wrong / math.log(k) - value) > 0.1
    left_out = [by_hand(np.delete(given, number, axis=0))[0] for number in range(3)]
    assert result.standard_errors[0] == pytest.approx(math.sqrt(2 * np.var(left_out)))


def test_effective_dimension_of_a_layer_is_that_of_its_fisher_information():
    circuit, inputs, weights = strongly_entangling(2, 1)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, probabilities=[0, 1], seed=2)
    features, drawn = torch.tensor([[0.3, 1.1], [-0.4, 0.2]]), []

    def draw(rng, shape):
        drawn.append(rng.uniform(-1, 1, size=shape))
        return drawn[0]

    result = effective_dimension(layer, features, data=50, samples=4, draw=draw, seed=3)
    expected = []
    for row in drawn[0]:
        other = QuantumLayer(circuit, inputs=inputs, weights=weights, probabilities=[0, 1], init=torch.from_numpy(row))
        expected.append(other.double().classical_fisher(features.double()).mean(dim=0).detach().numpy())
    direct = effective_dimension_of(np.array(expected), data=50)
    assert result.values == pytest.approx(direct.values)
    assert result.fisher == pytest.approx(direct.fisher, abs=1e-9)
    listed = effective_dimension(layer, features.tolist(), data=50, samples=4, draw=lambda *_: drawn[0])
    assert listed.values == pytest.approx(result.values, rel=1e-6)
    scale = np.trace(np.mean(expected, axis=0)) / 6
    assert result.fisher * scale == pytest.approx(np.array(expected), abs=1e-9)


def test_what_does_not_fit_is_refused():
    circuit, inputs, weights = strongly_entangling(1, 1)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights)
    for message, call in (
        ("circuit: got", lambda: expressibility("rx")),
        ("features: got none, expected one row of 1", lambda: expressibility(layer)),
        ("features: got shape", lambda: entangling_capability(layer, torch.zeros(2, 1))),
        ("features: got some with a circuit", lambda: expressibility(circuit, [0.1])),
        ("draw: got shape", lambda: expressibility(circuit, draw=lambda rng, shape: np.zeros(3))),
        ("samples: got 0", lambda: expressibility(circuit, samples=0)),
        ("bins: got 1", lambda: expressibility(circuit, bins=1)),
        ("samples: got 1", lambda: entangling_capability(circuit, samples=1)),
        ("reads observables", lambda: effective_dimension(layer, torch.zeros(1, 1), data=100)),
        ("layer: got", lambda: effective_dimension(circuit, data=100)),
        ("features: got shape", lambda: effective_dimension(independent_outcomes(1), np.zeros((0, 1)), data=100)),
        ("states: got array", lambda: meyer_wallach(np.array([1.0, 0.0]))),
        ("states: got torch.float32, expected complex", lambda: meyer_wallach(torch.tensor([1.0, 0.0]))),
        ("19 or more", lambda: effective_dimension(layer, data=18)),
        ("gamma: got 2", lambda: effective_dimension_of(np.ones((2, 1, 1)), data=100, gamma=2)),
        ("data: got", lambda: effective_dimension_of(np.ones((2, 1, 1)), data=[])),
        ("fisher: got shape", lambda: effective_dimension_of(np.ones((1, 2, 2)), data=100)),
        ("fisher: got zero", lambda: effective_dimension_of(np.zeros((2, 2, 2)), data=100)),
        ("not finite", lambda: effective_dimension_of(np.full((2, 2, 2), np.nan), data=100)),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    for options, message in (
        ({"backend": "pauli"}, "shows no states"),
        ({"backend": "fake:manila", "shots": 10}, "shows no states"),
        ({"backend": "noisy:manila"}, "states are mixed"),
    ):
        with pytest.raises(ValueError, match=message):
            expressibility(QuantumLayer(circuit, inputs=inputs, weights=weights, **options), [0.1])
    frozen = independent_outcomes(1)
    frozen.weights.requires_grad_(False)
    with pytest.raises(ValueError, match="without trainable weights"):
        effective_dimension(frozen, data=100)
