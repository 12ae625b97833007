"""Rotosolve: frequencies from circuits, exact minima, what it costs, and losses and weights that it must refuse."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes

from qiskit_torch_bridge import QuantumLayer, Rotosolve
from qiskit_torch_bridge.circuits import amplitude_encoding, strongly_entangling
from qiskit_torch_bridge.optimizers.frequencies import frequencies_of
from qiskit_torch_bridge.optimizers.trigonometric import rule_of

HAMILTONIAN = {"ZZI": 1.0, "IZZ": 0.7, "XII": 0.4, "IIX": -0.3}


def layer_of(build, num_weights=1, observables="Z", num_qubits=1, **options) -> QuantumLayer:
    w = ParameterVector("w", num_weights)
    circuit = QuantumCircuit(num_qubits)
    build(circuit, w)
    return QuantumLayer(circuit, weights=w, observables=observables, **{"seed": 2, **options}).double()


def rotations(circuit, w):
    circuit.rx(0.4, 0)
    circuit.ry(w[0], 0)


def two_frequencies(circuit, w):
    circuit.ry(0.3, 1)
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    circuit.rx(0.8, 0)
    circuit.ry(w[0] + 0.2, 1)


def controlled(circuit, w):
    circuit.h(0)
    circuit.crx(w[0], 0, 1)
    circuit.ry(0.5, 0)


def speeds_that_share_no_period(circuit, w):
    circuit.ry(w[0], 0)
    circuit.rx(0.4, 0)
    circuit.ry(math.sqrt(2) * w[0], 0)


CIRCUITS = {
    "rotation": (rotations, 1, {"observables": {"Z": 1.0, "X": 0.6}}, (1,)),
    "fast": (lambda circuit, w: circuit.ry(-3 * w[0], 0), 1, {}, (3,)),
    "two gates": (two_frequencies, 1, {"num_qubits": 2, "observables": {"ZX": 1.0, "IZ": 0.7}}, (1, 2)),
    "controlled": (controlled, 1, {"num_qubits": 2, "observables": {"YI": 1.0, "ZX": 0.4}}, (0.5, 1)),
    "no period": (
        speeds_that_share_no_period,
        1,
        {"observables": {"X": 1.0, "Z": -0.4}},
        (math.sqrt(2) - 1, 1, math.sqrt(2), math.sqrt(2) + 1),
    ),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_one_sweep_finds_the_minimum_of_one_weight(name):
    """Against a fine grid of the layer's own values, within the period; the frequencies are those of the gates."""
    build, num_weights, options, frequencies = CIRCUITS[name]
    layer = layer_of(build, num_weights, **options)
    assert frequencies_of(layer.program, 0, 0, most=4) == pytest.approx(frequencies)
    optimizer, start, calls = Rotosolve(layer), layer.weights.item(), []

    def closure():
        calls.append(layer.weights.item())
        return layer().sum()

    before = optimizer.step(closure)
    assert before == pytest.approx(layer_of(build, num_weights, **options)().item())
    assert len(calls) == optimizer.evaluations == 2 * len(frequencies) + 2
    width = rule_of(frequencies_of(layer.program, 0, 0, most=4)).half_width
    reached, place = layer().item(), layer.weights.item()
    values = []
    for point in np.linspace(start - width, start + width, 401):
        layer.weights.data.fill_(point)
        values.append(layer().item())
    assert min(values) - 2e-3 < reached <= min(values) + 1e-12
    assert optimizer.predicted == pytest.approx(reached, abs=1e-12)
    assert abs(place - start) <= width + 1e-9


def test_the_minimum_of_one_rotation_by_hand():
    """<Z> of RY(w) is cos(w), of RX(w) before RY... least at pi: the nearest such angle is taken."""
    layer = layer_of(lambda circuit, w: circuit.ry(w[0], 0), init=torch.tensor([-0.5]))
    Rotosolve(layer).step(lambda: layer().sum())
    assert layer.weights.item() == pytest.approx(-math.pi, abs=1e-7)
    Rotosolve(layer, maximize=True).step(lambda: layer().sum())
    assert math.cos(layer.weights.item()) == pytest.approx(1, abs=1e-12)


def test_polynomials_are_known_from_their_values():
    generator = np.random.default_rng(0)
    for frequencies in ((1.0,), (1.0, 2.0, 3.0), (1.0, 4.0), (0.5, 1.0), (1.0, math.sqrt(2))):
        rule = rule_of(frequencies)
        coefficients = generator.normal(size=2 * len(frequencies) + 1)
        again = rule.coefficients(rule.value(coefficients, rule.points))
        assert again == pytest.approx(coefficients, abs=1e-12)
        least = rule.minimum(coefficients)
        grid = np.linspace(-rule.half_width, rule.half_width, 2001)
        assert rule.value(coefficients, least) <= rule.value(coefficients, grid).min() + 1e-12
    with pytest.raises(ValueError, match="too close to be told apart"):
        rule_of((1.0, 1.00001))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweeps_only_descend_to_the_ground_state(dtype):
    ansatz = real_amplitudes(3, reps=1)
    init = torch.tensor([0.5, -0.3, 1.0, 2.0, -1.2, 0.8])
    layer = QuantumLayer(ansatz, weights=ansatz.parameters, observables=HAMILTONIAN, init=init).to(dtype)
    optimizer = Rotosolve(layer)
    losses = [optimizer.step(lambda: layer().sum()) for _ in range(12)]
    assert all(later < earlier + 1e-6 for earlier, later in pairwise(losses))
    lowest = np.linalg.eigvalsh(layer.program.readout.observables[0].to_matrix())[0]
    assert lowest - 1e-6 <= losses[-1] < 0.95 * lowest
    assert layer.weights.grad is None


def test_a_mean_over_rows_through_a_linear_layer():
    """With features in the circuit, other parameters beside it, a frozen weight and one that nothing depends on."""
    x, w, v = ParameterVector("x", 1), ParameterVector("w", 2), ParameterVector("v", 1)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.ry(w[0] + 2 * x[0], 0)
    circuit.rz(v[0], 0)
    circuit.rx(0.7, 0)
    circuit.rz(w[1], 1)
    layer = QuantumLayer(circuit, inputs=x, weights={"w": w, "v": v}, observables=["IZ", "IX"], seed=4).double()
    model = torch.nn.Sequential(layer, torch.nn.Linear(2, 1).double())
    optimizer = Rotosolve(model)
    assert optimizer.evaluations == 1 + 3 + 3
    layer.weights["v"].requires_grad_(False)
    assert optimizer.evaluations == 1 + 3
    rows, before = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None], [p.clone() for p in model.parameters()]
    optimizer.step(lambda: model(rows).mean())
    changed = [bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, False, False]
    assert layer.weights["w"][1] == before[0][1]
    layer.weights["w"].grad = None
    model(rows).mean().backward()
    assert abs(layer.weights["w"].grad[0].item()) < 1e-7  # at the minimum of this weight


@pytest.mark.parametrize(("reuse", "evaluations"), [(False, 18), (True, 13)])
def test_with_shots_a_sweep_costs_its_quote_and_predictions_may_be_reused(reuse, evaluations):
    ansatz = real_amplitudes(3, reps=1)
    layer = QuantumLayer(ansatz, weights=ansatz.parameters, observables=HAMILTONIAN, shots=200, seed=1)
    optimizer = Rotosolve(layer, reuse=reuse)
    quote = optimizer.quote()
    optimizer.step(lambda: layer().sum())
    assert optimizer.evaluations == evaluations == quote.calls
    assert (layer.total_circuits, layer.total_shots) == (quote.circuits, quote.shots)
    other = Rotosolve(layer)
    other.load_state_dict(optimizer.state_dict())
    assert other.predicted == optimizer.predicted < 0


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [(lambda y: y.square().sum(), "is not linear"), (lambda y: torch.nn.functional.softplus(y).sum(), "expected -?0")],
)
def test_losses_that_are_not_linear_are_found_out_and_the_weight_set_back(loss, said):
    layer = layer_of(rotations, observables={"Z": 1.0, "X": 0.6})
    start = layer.weights.item()
    optimizer = Rotosolve(layer)
    with pytest.raises(ValueError, match=said):
        optimizer.step(lambda: loss(layer()))
    assert layer.weights.item() == start
    Rotosolve(layer, check=False).step(lambda: loss(layer()))
    assert layer.weights.item() != start


def test_numbers_of_single_precision_are_not_taken_for_exact_ones():
    """Features in single precision make outputs in it, and ``.item()`` hides that, whatever the weights are in."""
    circuit, inputs, weights = strongly_entangling(2, 1)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, seed=1).double()
    features = torch.tensor([[0.3, 1.1], [-0.4, 0.2]])
    optimizer = Rotosolve(layer)
    losses = [optimizer.step(lambda: layer(features).sum().item()) for _ in range(3)]
    assert all(later < before + 1e-6 for before, later in pairwise(losses))
    with pytest.raises(ValueError, match="computed in less precision"):
        Rotosolve(layer).step(lambda: layer(features).sum().half().double())


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (math.nan, ValueError, "returned nan, expected a finite loss"),
        (None, TypeError, "closure: got None"),
        (torch.zeros(2), TypeError, "closure: got tensor"),
    ],
)
def test_losses_that_are_no_number_are_refused(value, kind, said):
    layer = layer_of(rotations)
    start, values = layer.weights.item(), iter([0.5, 0.2, value])
    with pytest.raises(kind, match=said):
        Rotosolve(layer).step(lambda: next(values))
    assert layer.weights.item() == start


def test_closures_are_needed_and_have_no_backward():
    layer = layer_of(rotations)
    with pytest.raises(TypeError, match="closure: got none"):
        Rotosolve(layer).step()
    with pytest.raises(RuntimeError, match="it asks for gradients"):
        Rotosolve(layer).step(lambda: layer().sum().backward())


def many_speeds(circuit, w):
    for speed in (1, 1.1, 1.3, 1.7):
        circuit.ry(speed * w[0], 0)
        circuit.rx(w[1], 0)


def encoded(circuit, w):
    circuit.compose(amplitude_encoding(1), inplace=True)
    circuit.assign_parameters(dict(zip(list(circuit.parameters), [w[0], w[1]], strict=True)), inplace=True)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda circuit, w: circuit.ry(w[0].sin() + w[1], 0), r"entry 0, 'w\[0\]', sets the angle sin\(w\[0\]\)"),
        (lambda circuit, w: circuit.ry(w[0] * w[1], 0), "no constant multiple"),
        (many_speeds, "sets 4 angles and has more than 9 frequencies"),
        (encoded, "no constant multiple"),
    ],
)
def test_weights_without_finitely_many_frequencies_are_refused_before_anything_runs(build, said):
    layer = layer_of(build, num_weights=2, shots=10)
    with pytest.raises(ValueError, match=said) as caught:
        Rotosolve(layer, max_frequencies=9)
    assert "Nothing was run" in str(caught.value)
    assert layer.total_circuits == 0


def test_a_feature_times_a_weight_is_refused_unless_it_is_frozen():
    x, w = ParameterVector("x", 1), ParameterVector("w", 2)
    circuit = QuantumCircuit(1)
    circuit.ry(x[0] * w[0], 0)
    circuit.rx(w[1], 0)
    layer = QuantumLayer(circuit, inputs=x, weights={"times": w[:1], "plus": w[1:]})
    with pytest.raises(ValueError, match="freeze the weights that Rotosolve cannot set"):
        Rotosolve(layer)
    layer.weights["times"].requires_grad_(False)
    optimizer = Rotosolve(layer)
    layer.weights["times"].requires_grad_(True)
    with pytest.raises(ValueError, match="no constant multiple"):
        optimizer.step(lambda: layer(torch.zeros(1, 1)).sum())
    with pytest.raises(ValueError, match="max_frequencies: got 0"):
        Rotosolve(layer, max_frequencies=0)
