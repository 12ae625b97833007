"""The classical Fisher information: closed forms, differences, and that no measurement says more than the state."""

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorSampler
from qiskit.quantum_info import Statevector
from test_metric import FEATURES, layer_with_expressions

from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer


def reading(**readout):
    _, circuit, (x, w, v) = layer_with_expressions()
    return QuantumLayer(circuit, inputs=x, weights={"w": w, "v": v}, seed=4, **readout).double()


def by_differences(layer, row, step=1e-4):
    """From Qiskit's probabilities: sum (d_i p)(d_j p) / p over the classes."""
    weights = [(group, place) for group in layer.weights for place in range(len(layer.weights[group]))]

    def probabilities(shift):
        circuit = layer._circuit
        values = dict(zip(layer.program.parameters[0], row, strict=True))
        flat = torch.cat([*layer.weights.parameters()]).detach().numpy() + shift
        named = [parameter for group in layer.program.parameters[1:] for parameter in group]
        state = Statevector(circuit.assign_parameters(values | dict(zip(named, flat, strict=True))))
        (group,) = layer.program.readout.groups
        return np.bincount(group.outputs, weights=state.probabilities(list(group.qubits)))

    axes = step * np.eye(len(weights))
    slopes = np.array([(probabilities(axis) - probabilities(-axis)) / (2 * step) for axis in axes])
    middle = probabilities(0 * axes[0])
    return (slopes / middle) @ slopes.T


@pytest.mark.parametrize(
    "readout",
    [
        {"probabilities": [0, 1, 2]},
        {"probabilities": [2, 0]},
        {"probabilities": [0, 1, 2], "interpret": lambda outcome: outcome.bit_count() % 2},
    ],
    ids=["all qubits", "two qubits", "parity"],
)
@pytest.mark.parametrize("backend", [None, DensityMatrixBackend()], ids=["statevector", "density matrix"])
def test_it_is_that_of_the_probabilities_and_below_the_quantum_one(readout, backend):
    layer = reading(**readout)
    quantum = layer.quantum_fisher(FEATURES).detach()
    layer.backend, layer.shots = backend, 100
    fisher = layer.classical_fisher(FEATURES)
    for row, ours in zip(FEATURES.numpy(), fisher.detach().numpy(), strict=True):
        assert ours == pytest.approx(by_differences(layer, row), abs=1e-6)
    assert torch.linalg.eigvalsh(quantum - fisher).min() > -1e-10
    assert torch.linalg.eigvalsh(fisher).min() > -1e-10
    assert torch.linalg.eigvalsh(fisher).max() > 0.01


def one_qubit(*gates):
    w = ParameterVector("w", len(gates))
    circuit = QuantumCircuit(1)
    for name, parameter in zip(gates, w, strict=True):
        getattr(circuit, name)(parameter, 0)
    return circuit, w


def test_closed_form_and_its_gradient():
    """RY(a): p = sin(a/2)**2 has information 1 at any angle; a rotation by Z behind it says nothing."""
    circuit, w = one_qubit("ry", "rz")
    layer = QuantumLayer(circuit, weights=w, probabilities=[0], init=torch.tensor([0.7, 1.9], dtype=torch.float64))
    fisher = layer.classical_fisher()
    assert fisher.detach().numpy() == pytest.approx(np.diag([1.0, 0.0]))
    (slope,) = torch.autograd.grad(fisher.sum(), layer.weights)
    assert slope.tolist() == pytest.approx([0, 0], abs=1e-9)


def test_outcomes_that_never_come_have_no_term():
    circuit, w = one_qubit("ry")
    layer = QuantumLayer(circuit, weights=w, probabilities=[0], init=torch.zeros(1, dtype=torch.float64))
    assert layer.classical_fisher().tolist() == [[0.0]]
    close = QuantumLayer(circuit, weights=w, probabilities=[0], init=torch.tensor([1e-5], dtype=torch.float64))
    assert close.classical_fisher().item() == pytest.approx(1.0, abs=1e-4)


def test_frozen_weights_and_empty_batches():
    layer = reading(probabilities=[0, 1])
    whole = layer.classical_fisher(FEATURES)
    layer.weights["v"].requires_grad_(False)
    assert torch.allclose(layer.classical_fisher(FEATURES), whole[:, :3, :3])
    assert layer.classical_fisher(FEATURES[:0]).shape == (0, 3, 3)
    layer.weights["w"].requires_grad_(False)
    assert layer.classical_fisher(FEATURES).shape == (2, 0, 0)


def test_what_has_no_distribution_is_refused():
    layer, _, _ = layer_with_expressions()
    with pytest.raises(ValueError, match="reads observables"):
        layer.classical_fisher(FEATURES)
    layer = reading(probabilities=[0], backend=StatevectorSampler(), shots=10)
    with pytest.raises(ValueError, match="has no exact probabilities"):
        layer.classical_fisher(FEATURES)
