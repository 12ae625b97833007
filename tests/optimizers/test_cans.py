"""CANS: the formula for shots by hand, bounds of Lipschitz constants, checkpoints, refusals."""

import io
import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes, zz_feature_map

from qiskit_torch_bridge import CANS, QuantumLayer
from qiskit_torch_bridge.optimizers.lipschitz import lipschitz_bound


def layer_of(**options) -> QuantumLayer:
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    circuit.ry(2 * w[1], 1)
    defaults = {"observables": {"ZI": 1.0, "IX": 0.5, "II": 7.0}, "shots": 100, "seed": 5}
    return QuantumLayer(circuit, weights=w, init=torch.tensor([0.4, 1.1]), **{**defaults, **options}).double()


def backward(layer):
    layer.zero_grad()
    layer().sum().backward()


def test_shots_by_hand():
    """Three steps beside the formulas of the paper, written down anew from the gradients and their error bars."""
    layer = layer_of()
    optimizer = CANS(layer, lr=0.45, lipschitz=4.0, smoothing=0.9, bias=0.1, least=5, most=10**6)
    assert layer.shots == 5
    chi, xi = np.zeros(2), np.zeros(2)
    for k in range(3):
        taken = layer.shots + 7 * k
        layer.zero_grad()
        layer(shots=taken).sum().backward()
        before = layer.weights.detach().clone()
        gradient, errors = layer.last_run.gradients, layer.last_run.gradient_standard_errors
        optimizer.step()
        assert torch.allclose(layer.weights.detach(), before - 0.45 * layer.weights.grad, rtol=1e-14)
        chi, xi = 0.9 * chi + 0.1 * gradient, 0.9 * xi + 0.1 * errors**2 * taken
        correction = 1 - 0.9 ** (k + 1)
        signal = ((chi / correction) ** 2).sum() + 0.1 * 0.9**k
        expected = math.ceil(2 * 4.0 * 0.45 / (2 - 4.0 * 0.45) * (xi / correction).sum() / signal)
        assert layer.shots == expected == optimizer.shots > 5
    assert optimizer.steps_taken == 3


def test_shots_without_averages_are_those_of_the_variances_in_theory():
    """One weight: the gradient of <Z> is -sin(w), its variance from one shot cos(w)^2 / 2."""
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    layer = QuantumLayer(circuit, weights=w, init=torch.tensor([0.3]), shots=10, seed=0)
    optimizer = CANS(layer, lr=0.5, smoothing=0.0, least=100_000, most=10**6)
    assert optimizer.lipschitz == 1.0
    optimizer.least = 2
    backward(layer)
    optimizer.step()
    theory = 2 * 0.5 / 1.5 * math.cos(0.3) ** 2 / 2 / math.sin(0.3) ** 2
    assert abs(layer.shots - math.ceil(theory)) <= 1


def test_limits_of_shots_and_steps_that_tell_nothing():
    layer = layer_of(allocation="sensitivity")
    optimizer = CANS(layer, lr=0.4, lipschitz=4.0, most=25)
    layer.weights.data = torch.zeros(2, dtype=torch.float64)  # noise and no gradient
    backward(layer)
    optimizer.step()
    assert layer.shots == 25
    layer.zero_grad()
    (0.0 * layer().sum()).backward()
    optimizer.step()
    assert layer.shots == 25
    assert optimizer.steps_taken == 2


def test_encodings_whose_angles_are_products_of_features():
    """The angles' derivatives are autograd's there, also within a step, which has gradients switched off."""
    encoding, ansatz = zz_feature_map(2), real_amplitudes(2, reps=1)
    circuit = encoding.compose(ansatz)
    layer = QuantumLayer(circuit, inputs=encoding.parameters, weights=ansatz.parameters, shots=50, seed=4)
    optimizer = CANS(layer, lipschitz=4.0, least=50)
    before = layer.weights.detach().clone()
    layer(torch.tensor([[0.3, 1.2], [-0.5, 0.8]])).sum().backward()
    with torch.inference_mode():
        assert np.abs(layer.last_run.gradients - layer.weights.grad.numpy()).max() < 1e-5
    optimizer.step()
    assert torch.allclose(layer.weights.detach(), before - 0.25 * layer.weights.grad)
    assert optimizer.steps_taken == 1


def test_the_ground_state_is_reached_with_growing_shots():
    ansatz = real_amplitudes(2, reps=1)
    hamiltonian = {"ZZ": 1.0, "XI": 0.5, "IX": 0.5}
    init = torch.tensor([0.5, -0.3, 1.0, 2.0])
    layer = QuantumLayer(ansatz, weights=ansatz.parameters, observables=hamiltonian, shots=10, seed=3, init=init)
    optimizer = CANS(layer, lr=0.3, lipschitz=4.0)
    shots = []

    def closure():
        optimizer.zero_grad()
        loss = layer().sum()
        loss.backward()
        return loss

    for _ in range(40):
        assert optimizer.step(closure).requires_grad
        shots.append(layer.shots)
    assert shots[-1] > 5 * shots[0]
    layer.shots = None
    assert layer().item() == pytest.approx(-math.sqrt(2), abs=0.1)


def test_all_layers_of_a_model_share_the_shots():
    first, second = layer_of(), layer_of(seed=9)
    second.weights.requires_grad_(False)
    model = torch.nn.ModuleList([first, second])
    optimizer = CANS(model, 0.1, lipschitz=19.9, maximize=True)
    before = first.weights.detach().clone()
    (first() + second()).sum().backward()
    optimizer.step()
    assert torch.allclose(first.weights, before + 0.1 * first.weights.grad)
    assert first.shots == second.shots > 10
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert schedule.get_last_lr() == [0.0, 0.0]
    (first() + second()).sum().backward()


def test_a_run_goes_on_to_the_last_bit():
    def train(layer, optimizer, steps):
        for _ in range(steps):
            backward(layer)
            optimizer.step()
        return [*layer.weights.tolist(), layer.shots, layer.total_shots]

    whole = layer_of().float()
    expected = train(whole, CANS(whole, lr=0.05), 5)
    layer = layer_of().float()
    optimizer = CANS(layer, lr=0.05)
    train(layer, optimizer, 2)
    file = io.BytesIO()
    torch.save([layer.state_dict(), layer.get_rng_state(), optimizer.state_dict(), layer.total_shots], file)
    weights, seeds, state, spent = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = layer_of().float()
    resumed = CANS(again, lr=0.04)
    again.load_state_dict(weights)
    again.set_rng_state(seeds)
    again.total_shots = spent
    resumed.load_state_dict(state)
    assert train(again, resumed, 3) == expected
    with pytest.raises(ValueError, match=r"averages of 2 weights \(weights\) of quantum layer 0"):
        CANS(layer_of_one_weight(), lr=0.1).load_state_dict(state)


def layer_of_one_weight(**options):
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    return QuantumLayer(circuit, weights=w, **{"shots": 10, **options})


def test_the_lipschitz_bound_holds_and_counts_speeds():
    """Of what is measured: one ZI, half an IX; of what moves: one angle, and one at twice the speed."""
    layer = layer_of()
    assert lipschitz_bound(layer) == pytest.approx(1.5 * (1 + 4))
    layer.shots = None
    for weights in torch.rand(10, 2, dtype=torch.float64) * 6:
        loss = lambda w: torch.func.functional_call(layer, {"weights": w}, ()).sum()  # noqa: E731
        hessian = torch.autograd.functional.hessian(loss, weights)
        assert torch.linalg.eigvalsh(hessian).abs().max() <= 7.5
    parity = layer_of(observables=None, probabilities=[0, 1], interpret=lambda outcome: 0)
    assert lipschitz_bound(parity) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CANS(layer_of(shots=None)), "gives exact values"),
        (lambda: CANS(layer_of(gradient="spsa")), "not that of its random directions"),
        (lambda: CANS(layer_of(), lr=0.3), r"lr: got 0.3, expected a number from 0 to below 2 / lipschitz = 0.266667"),
        (lambda: CANS(layer_of(), lr=math.nan), "lr: got nan"),
        (lambda: CANS(layer_of(), lipschitz=0.0), "lipschitz: got 0.0"),
        (lambda: CANS(layer_of(observables=["ZZ", "XX"])), "lipschitz: got none, and the layer has 2 outputs"),
        (lambda: CANS(torch.nn.Sequential(layer_of())), "lipschitz: got none, and nothing says how the loss"),
        (lambda: CANS(layer_of(observables="II")), "depends on no weight"),
        (lambda: CANS(layer_of(), smoothing=1.0), "smoothing: got 1.0"),
        (lambda: CANS(layer_of(), bias=0.0), "bias: got 0.0"),
        (lambda: CANS(layer_of(), least=1), "least: got 1"),
        (lambda: CANS(layer_of(), least=50, most=20), "most: got 20, expected at least 50"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_that_cannot_be_taken_change_nothing():
    layer = layer_of()
    optimizer = CANS(layer)

    def refused(message):
        before = layer.weights.tolist(), layer.shots, optimizer.steps_taken
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert (layer.weights.tolist(), layer.shots, optimizer.steps_taken) == before

    backward(layer)
    with torch.no_grad():
        layer()
    refused(r"has no gradient with shots; call step\(\) after backward")
    backward(layer)
    layer().sum().backward()
    refused("is not the one that the last call of quantum layer 0 measured")
    backward(layer)
    optimizer.param_groups[0]["lr"] = 1.0
    refused("lr: got 1.0, expected a number from 0 to below")
    optimizer.param_groups[0]["lr"] = 0.1
    layer.weights.grad[0] = math.nan
    refused("entry 0 of the gradient is nan")
    layer.shots = None
    backward(layer)
    refused("gives exact values")
    layer.shots = 1
    backward(layer)
    refused("standard errors of the gradient of weights .* are not known")
