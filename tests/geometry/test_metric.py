"""The metric of states: closed forms, finite differences of the fidelity, and PennyLane's numbers."""

import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import Statevector

from qiskit_torch_bridge import QuantumLayer

STEP = 2e-3


def by_fidelities(state_at, weights):
    """Minus half the second derivatives of the fidelity with the state in the middle, extrapolated."""
    middle, axes = state_at(weights), np.eye(len(weights))

    def fidelity(shift):
        return abs(np.vdot(middle, state_at(weights + shift))) ** 2

    def differences(step):
        return np.array([
            [
                sum(s * t * fidelity(step * (s * one + t * other)) for s in (1, -1) for t in (1, -1)) / (-8 * step**2)
                for other in axes
            ]
            for one in axes
        ])  # fmt: skip

    return (4 * differences(STEP) - differences(2 * STEP)) / 3


def layer_with_expressions():
    """Shared weights, products, expressions that are not affine, two groups, and all kinds of gates."""
    x, w, v = ParameterVector("x", 2), ParameterVector("w", 3), ParameterVector("v", 2)
    circuit = QuantumCircuit(3)
    circuit.rx(x[0], 0)
    circuit.ry(w[0], 0)
    circuit.cp(w[1] * x[1], 0, 1)
    circuit.h([1, 2])
    circuit.rzz(w[2], 1, 2)
    circuit.rxx(2 * w[0] + v[0], 0, 2)
    circuit.u(v[0], v[1].sin(), w[1], 1)
    circuit.cry(v[1], 1, 0)
    layer = QuantumLayer(circuit, inputs=x, weights={"w": w, "v": v}, seed=4).double()
    return layer, circuit, (x, w, v)


FEATURES = torch.tensor([[0.4, -1.1], [2.0, 0.3]], dtype=torch.float64)


@pytest.mark.slow
def test_full_metric_is_the_curvature_of_the_fidelity():
    layer, circuit, (x, w, v) = layer_with_expressions()
    weights = torch.cat([*layer.weights.parameters()]).detach().numpy()
    metric = layer.metric_tensor(FEATURES)
    for row, ours in zip(FEATURES.numpy(), metric.detach().numpy(), strict=True):

        def state_at(weights, row=row):
            return Statevector(circuit.assign_parameters({x: row, w: weights[:3], v: weights[3:]})).data

        assert ours == pytest.approx(by_fidelities(state_at, weights), abs=1e-8)
    assert torch.equal(layer.quantum_fisher(FEATURES), 4 * metric)


def test_the_metric_is_differentiable():
    layer, _, _ = layer_with_expressions()
    names = [name for name, _ in layer.named_parameters()]
    given = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]

    class Metric(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, features):
            return self.layer.metric_tensor(features)

    def function(features, *weights):
        values = {f"layer.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(Metric(), values, features)

    assert torch.autograd.gradcheck(function, (FEATURES[:1].clone().requires_grad_(), *given))


def test_frozen_groups_are_left_out():
    layer, _, _ = layer_with_expressions()
    whole = layer.metric_tensor(FEATURES)
    layer.weights["w"].requires_grad_(False)
    assert torch.allclose(layer.metric_tensor(FEATURES), whole[:, 3:, 3:])
    layer.weights["v"].requires_grad_(False)
    assert layer.metric_tensor(FEATURES).shape == (2, 0, 0)


def test_closed_form_of_one_qubit():
    """RZ after RY: g = diag(1, sin(a)**2) / 4, the sphere's metric."""
    w = ParameterVector("w", 2)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0], 0)
    circuit.rz(w[1], 0)
    layer = QuantumLayer(circuit, weights=w, init=torch.tensor([0.7, 1.9], dtype=torch.float64))
    expected = np.diag([1, math.sin(0.7) ** 2]) / 4
    for approximation in (None, "block-diag", "diag"):
        metric = layer.metric_tensor(approximation=approximation)
        assert metric.dtype == torch.float64
        assert metric.detach().numpy() == pytest.approx(expected)


def stokes():
    """The circuit of PennyLane's demonstration of the quantum natural gradient (after Stokes et al.)."""
    w = ParameterVector("w", 4)
    circuit = QuantumCircuit(3)
    for qubit, angle in enumerate((math.pi / 4, math.pi / 3, math.pi / 7)):
        circuit.ry(angle, qubit)
    circuit.rz(w[0], 0)
    circuit.rz(w[1], 1)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    circuit.ry(w[2], 1)
    circuit.rx(w[3], 2)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    weights = torch.tensor([0.432, -0.123, 0.543, 0.233], dtype=torch.float64)
    return QuantumLayer(circuit, weights=w, init=weights)


# By PennyLane 0.45: qml.metric_tensor(circuit, approx=None)(weights).
PENNYLANE = np.array([
    [0.125, 0, -5.7626667308e-03, 0],
    [0, 0.1875, 4.0748207231e-03, 0],
    [-5.7626667308e-03, 4.0748207231e-03, 2.4973433338e-01, -1.5247010413e-02],
    [0, 0, -1.5247010413e-02, 2.0293622523e-01],
])  # fmt: skip
BLOCKS = np.kron(np.eye(2), np.ones((2, 2)))


@pytest.mark.parametrize(("approximation", "mask"), [(None, 1), ("block-diag", BLOCKS), ("diag", np.eye(4))])
def test_metrics_are_pennylanes(approximation, mask):
    metric = stokes().metric_tensor(approximation=approximation).detach().numpy()
    assert metric == pytest.approx(PENNYLANE * mask, abs=1e-10)


def test_approximations_are_between_angles():
    """A weight of two layers has a block with itself; what its two angles share is left out."""
    ansatz = real_amplitudes(3, reps=2)
    w = ParameterVector("w", 3)
    tied = ansatz.assign_parameters({parameter: w[i % 3] for i, parameter in enumerate(ansatz.parameters)})
    free = QuantumLayer(ansatz, weights=ansatz.parameters, init=torch.tensor([0.3, 1.2, -0.8] * 3)).double()
    layer = QuantumLayer(tied, weights=w, init=torch.tensor([0.3, 1.2, -0.8])).double()
    jacobian = torch.eye(3, dtype=torch.float64).repeat(3, 1)
    whole = free.metric_tensor()
    same_layer = torch.block_diag(*[torch.ones(3, 3)] * 3).bool()
    for approximation, mask in ((None, 1), ("block-diag", same_layer), ("diag", torch.eye(9))):
        expected = jacobian.T @ (whole * mask) @ jacobian
        assert torch.allclose(layer.metric_tensor(approximation=approximation), expected)


def test_metrics_are_positive_and_no_larger_than_generators_allow():
    ansatz = real_amplitudes(4, reps=3)
    layer = QuantumLayer(ansatz, weights=ansatz.parameters, seed=2).double()
    values = torch.linalg.eigvalsh(layer.metric_tensor().detach())
    assert values.min() > -1e-12
    assert torch.diagonal(layer.metric_tensor()).max() <= 0.25 + 1e-12


def test_parts_of_a_batch_make_no_difference(monkeypatch):
    layer, _, _ = layer_with_expressions()
    whole = layer.metric_tensor(FEATURES)
    monkeypatch.setattr("qiskit_torch_bridge.geometry.metric._BYTES_OF_A_PART", 1)
    assert torch.allclose(layer.metric_tensor(FEATURES), whole)


def test_circuits_without_weights_have_an_empty_metric():
    x = ParameterVector("x", 1)
    circuit = QuantumCircuit(1)
    circuit.rx(x[0], 0)
    layer = QuantumLayer(circuit, inputs=x)
    assert layer.metric_tensor(torch.zeros(4, 1)).shape == (4, 0, 0)
