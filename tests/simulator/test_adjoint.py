"""Gradients of the compiled simulator, with and without kept states."""

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from simulator_cases import GRADIENTS, Case, parameters_of, pauli, random_circuit, some_observables

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.simulator import engine


def masks(width: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    single = [np.arange(width) == column for column in range(width)]
    return [*single, ~single[0], np.zeros(width, bool), *(rng.random(width) < 0.5 for _ in range(6))]


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("keep", [True, False])
def test_what_else_is_wanted_does_not_matter(small_blocks, block, rows, keep):
    small_blocks(block, 3)
    case = Case(random_circuit(8, 1, 60, free=10), some_observables(8))
    angles, upstream = case.angles(case.points(rows)), case.upstream(rows)
    states = case.simulator.values(angles, keep=keep)[1]
    full = case.simulator.pullback(angles, upstream, states, np.ones(10, bool))
    assert np.abs(full).max(axis=0).min() > 1e-3, "every column shows"
    for wanted in masks(10):
        part = case.simulator.pullback(angles, upstream, states, wanted)
        np.testing.assert_allclose(part[:, wanted], full[:, wanted], atol=1e-13)
        np.testing.assert_array_equal(part[:, ~wanted], 0)


@pytest.mark.parametrize("block", [13, 5])
def test_frozen_first_layers(small_blocks, block):
    """The sweep stops behind them."""
    small_blocks(block, 3)
    n = 7
    first, last = ParameterVector("first", n), ParameterVector("last", n)
    circuit = QuantumCircuit(n)
    for weights in (first, last):
        for qubit in range(n):
            circuit.rx(weights[qubit], qubit)
            circuit.rz(0.3 * qubit, qubit)
        for qubit in range(n):
            circuit.cx(qubit, (qubit + 1) % n)
    init = {name: torch.randn(n, dtype=torch.float64) for name in ("first", "last")}
    layer = QuantumLayer(circuit, weights={"first": first, "last": last}, observables=some_observables(n), init=init)
    upstream = torch.randn(5, dtype=torch.float64)
    both = torch.autograd.grad((layer() * upstream).sum(), [*layer.parameters()])
    case = Case(circuit, some_observables(n))
    weights = np.concatenate([p.detach().numpy().ravel() for p in layer.parameters()])[None]
    truth = case.expected_pullback(weights, upstream.numpy()[None])[0]
    np.testing.assert_allclose(torch.cat([*both]).numpy(), truth, atol=GRADIENTS)
    for name, gradient in zip(("first", "last"), both, strict=True):
        for other, parameter in layer.named_parameters():
            parameter.requires_grad_(other.endswith(name))
        (mine,) = torch.autograd.grad((layer() * upstream).sum(), [p for p in layer.parameters() if p.requires_grad])
        np.testing.assert_allclose(mine.numpy(), gradient.numpy(), atol=1e-13)


@pytest.mark.parametrize("block", [13, 8, 7, 5])
@pytest.mark.parametrize("readout", ["observables", "probabilities"])
def test_a_backward_leaves_the_kept_states_alone(small_blocks, block, readout):
    small_blocks(block, 3)
    circuit = random_circuit(8, 3, 50, free=6)
    case = Case(circuit, some_observables(8)) if readout == "observables" else Case(circuit, None, [3, 1])
    angles, upstream = case.angles(case.points(3)), case.upstream(3)
    states = case.simulator.values(angles, keep=True)[1]
    before = states.planes.copy()
    for wanted in (np.ones(6, bool), np.arange(6) == 5, np.ones(6, bool)):
        case.simulator.pullback(angles, upstream, states, wanted)
        np.testing.assert_array_equal(states.planes, before)


def test_one_pass_over_several_blocks_leaves_the_kept_states_alone(small_blocks):
    small_blocks(5, 3)
    circuit = QuantumCircuit(8)
    for qubit in range(8):
        circuit.h(qubit)
    circuit.barrier()
    circuit.ry(Parameter("a"), 0)
    circuit.rx(Parameter("b"), 1)
    case = Case(circuit, [pauli(8, Y=[0, 1]), pauli(8, X=0), pauli(8, Z=1, Y=7)])
    angles, upstream = case.angles(case.points(2)), case.upstream(2)
    states = case.simulator.values(angles, keep=True)[1]
    before = states.planes.copy()
    case.simulator.pullback(angles, upstream, states, np.ones(2, bool))
    np.testing.assert_array_equal(states.planes, before)
    case.check(2)


@pytest.mark.parametrize("block", [13, 5])
def test_a_second_backward_gives_the_same_bits(small_blocks, block):
    small_blocks(block, 3)
    circuit = random_circuit(8, 3, 50, free=6)
    layer = QuantumLayer(circuit, inputs=parameters_of(circuit), observables=some_observables(8))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    values = layer(x)
    upstream = torch.randn_like(values)
    first, second = (torch.autograd.grad(values, x, upstream, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("size", [1, 2**12, 2**15])
def test_gradients_without_kept_states(small_blocks, monkeypatch, block, size):
    small_blocks(block, 3)
    case = Case(random_circuit(8, 3, 50, free=6), some_observables(8))
    points, upstream = case.points(13), case.upstream(13)
    assert case.simulator.values(case.angles(points), keep=True)[1] is not None
    with_states = case.pullback(points, upstream)
    monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", size)
    assert case.simulator.values(case.angles(points), keep=True)[1] is None
    np.testing.assert_allclose(case.pullback(points, upstream), with_states, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_kept_states_of_one_row_are_not_used_for_several(n):
    """A batch of upstream gradients repeats the one row that a layer without inputs has."""
    circuit = random_circuit(n, 2, 20, free=4)
    layer = QuantumLayer(circuit, weights=parameters_of(circuit), observables=some_observables(n), seed=1).double()
    point = layer.weights.detach()
    case = Case(circuit, some_observables(n))
    jacobian = np.concatenate([case.expected_pullback(point.numpy()[None], upstream[None]) for upstream in np.eye(5)])
    by_rows = torch.func.jacrev(lambda w: torch.func.functional_call(layer, {"weights": w}, ()))(point)
    np.testing.assert_allclose(by_rows.numpy(), jacobian, atol=GRADIENTS)
    angles = case.angles(point.numpy()[None])
    states = case.simulator.values(angles, keep=True)[1]
    repeated = case.simulator.pullback(np.repeat(angles, 5, axis=0), np.eye(5), states, np.ones(4, bool))
    np.testing.assert_allclose(repeated, jacobian[:, case.order], atol=GRADIENTS)
