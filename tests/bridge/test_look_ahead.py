"""Where calls wait in a queue, a training step is one call; everything else is as it would be without."""

import numpy as np
import pytest
import torch
from gradient_checks import EXACT, RULES, SUBSET, check_gradients
from problems import PROBLEMS, AmplitudeGate, features, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qiskit_torch_bridge import QuantumLayer, Request, StatevectorBackend

SHIFT_RULES = [name for name in RULES if name != "adjoint"]


class Queue(StatevectorBackend):
    """An exact simulator behind a queue: it takes everything at once, and counts how often one waits."""

    queues = True
    differentiates = False

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[int] = []

    def evaluate_all(self, requests, *, shots):
        self.waits.append(sum(len(request.angles) for request in requests))
        return [StatevectorBackend.evaluate(self, r.program, r.angles, shots=shots, seed=r.seed) for r in requests]

    def evaluate(self, program, angles, *, shots, seed):
        return self.evaluate_all([Request(program, angles, seed)], shots=shots)[0]


def layer_of(name: str, **options) -> QuantumLayer:
    return problem(name).layer(oracle(name).weights, **options)


# Neighbours in the list of circuits are alike; and those of SUBSET are tried with every rule.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (place % 4 > 0)) for place, name in enumerate(PROBLEMS)]
)
def test_gradients_of_every_circuit(name):
    queue = Queue()
    check_gradients(problem(name), oracle(name), EXACT, backend=queue)
    assert len(queue.waits) <= 1


@pytest.mark.parametrize("rule", SHIFT_RULES)
@pytest.mark.parametrize("name", SUBSET)
def test_gradients_by_every_rule(name, rule):
    gradient, tolerance = RULES[rule]
    check_gradients(problem(name), oracle(name), tolerance, gradient=gradient, backend=Queue())


@pytest.mark.parametrize("gradient", ["parameter_shift", "finite_difference", "spsa"])
def test_a_step_is_one_call_and_costs_what_the_quote_says(gradient):
    queue = Queue()
    layer = layer_of("shared_parameters", backend=queue, gradient=gradient, shots=10, seed=1)
    inputs = features(oracle("shared_parameters"), requires_grad=True)
    quote = layer.quote(len(inputs))
    layer(inputs).sum().backward()
    assert queue.waits == [quote.circuits / len(layer.program.readout.groups)]
    assert (quote.calls, quote.circuits, quote.shots) == (1, layer.total_circuits, layer.total_shots)
    assert layer.last_run.circuits < layer.total_circuits  # the values alone


def test_without_a_gradient_nothing_is_sent_along():
    queue = Queue()
    layer = layer_of("shared_parameters", backend=queue)
    inputs = features(oracle("shared_parameters"))
    with torch.no_grad():
        layer(inputs)
        assert layer.quote(len(inputs)).circuits == layer.total_circuits
    layer.weights.requires_grad_(False)
    layer(inputs)
    assert queue.waits == [len(inputs)] * 2


def test_frozen_groups_and_plain_inputs_cost_nothing():
    queue = Queue()
    layer = layer_of("weight_groups", backend=queue)
    first = next(iter(layer.weights))
    layer.weights[first].requires_grad_(False)
    inputs = features(oracle("weight_groups"))
    layer(inputs).sum().backward()
    assert layer.weights[first].grad is None
    circuits = layer.quote(len(inputs), inputs_require_grad=False).circuits
    assert queue.waits == [circuits / len(layer.program.readout.groups)]


def test_gradients_by_some_of_the_leaves():
    queue = Queue()
    layer, plain = (layer_of("shared_parameters", backend=b) for b in (queue, None))
    inputs = features(oracle("shared_parameters"), requires_grad=True)
    for wanted in (lambda model: [inputs], lambda model: [model.weights], lambda model: [inputs, model.weights]):
        found, expected = (torch.autograd.grad(m(inputs).sin().sum(), wanted(m)) for m in (layer, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(queue.waits) == 3


def test_a_second_backward_gives_the_same_and_sends_nothing():
    queue = Queue()
    layer = layer_of("shared_parameters", backend=queue, shots=100, seed=3)
    output = layer(features(oracle("shared_parameters"))).sum()
    first = torch.autograd.grad(output, layer.weights, retain_graph=True)[0]
    second = torch.autograd.grad(output, layer.weights)[0]
    assert torch.equal(first, second)
    assert len(queue.waits) == 1


def test_weights_that_change_in_between_are_refused_as_ever():
    layer = layer_of("cosine", backend=Queue())
    output = layer(features(oracle("cosine"), requires_grad=True)).sum()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(1.0)
    if list(layer.parameters()):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()


def test_second_order():
    layer, plain = (layer_of("shared_parameters", backend=b, gradient="parameter_shift") for b in (Queue(), None))
    inputs = features(oracle("shared_parameters"))
    hessians = []
    for model in (layer, plain):
        (gradient,) = torch.autograd.grad(model(inputs).sin().sum(), model.weights, create_graph=True)
        hessians.append(torch.autograd.grad(gradient.square().sum(), model.weights)[0])
    torch.testing.assert_close(*hessians, rtol=0, atol=1e-9)


TRANSFORMS = {
    "grad": lambda f, w, x: torch.func.grad(lambda w: f(w, x).sum())(w),
    "vmap of grad": lambda f, w, x: torch.func.vmap(torch.func.grad(lambda w, x: f(w, x).sum()), (None, 0))(w, x),
    "grad of vmap": lambda f, w, x: torch.func.grad(lambda w: torch.func.vmap(f, (None, 0))(w, x).sin().sum())(w),
    "jacrev": lambda f, w, x: torch.func.jacrev(lambda w: f(w, x))(w),
    "jacrev by inputs": lambda f, w, x: torch.func.vmap(torch.func.jacrev(f, argnums=1), (None, 0))(w, x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("gradient", ["parameter_shift", "finite_difference"])
def test_transforms(transform, gradient):
    queue = Queue()
    results = []
    for backend in (queue, None):
        layer = layer_of("shared_parameters", backend=backend, gradient=gradient)

        def function(weights, x, layer=layer):
            return torch.func.functional_call(layer, {"weights": weights}, (x,))

        inputs = features(oracle("shared_parameters"))
        results.append(TRANSFORMS[transform](function, layer.weights.detach(), inputs))
    torch.testing.assert_close(*results, rtol=0, atol=1e-8)
    assert len(queue.waits) == 1


@pytest.mark.parametrize("transform", ["grad", "vmap of grad", "grad of vmap"])
def test_spsa_under_transforms(transform):
    """Its signs are drawn before the call; what was measured belongs to them, or the mean would be zero."""
    layer = layer_of("shared_parameters", backend=Queue(), gradient="spsa", seed=5)
    exact = layer_of("shared_parameters")
    inputs = features(oracle("shared_parameters"))

    def function(model):
        return lambda weights, x: torch.func.functional_call(model, {"weights": weights}, (x,))

    weights = layer.weights.detach() - 1  # where all gradients are large beside their scatter
    expected = TRANSFORMS[transform](function(exact), weights, inputs)
    draws = torch.stack([TRANSFORMS[transform](function(layer), weights, inputs) for _ in range(200)])
    errors = draws.std(dim=0) / len(draws) ** 0.5 + 1e-6
    assert ((draws.mean(dim=0) - expected) / errors).abs().max() < 5
    assert (expected / errors).abs().max() > 10, "a mean of zero would pass"
    assert draws.std(dim=0).max() > 0.05


def test_amplitude_encodings_go_in_one_call_too():
    x, w = ParameterVector("x", 2), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.append(AmplitudeGate(*x), [0])
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    circuit.ry(w[1], 1)
    rows = torch.rand(3, 2, dtype=torch.float64) + 0.1
    queue = Queue()
    options = {"gradient": "parameter_shift", "init": torch.tensor([0.3, 0.7])}
    found, expected = (QuantumLayer(circuit, inputs=x, weights=w, backend=b, **options) for b in (queue, None))
    for layer in (found, expected):
        layer(rows).sin().sum().backward()
    torch.testing.assert_close(found.weights.grad, expected.weights.grad)
    quote = found.quote(3, inputs_require_grad=False)
    assert (quote.calls, quote.circuits) == (1, found.total_circuits)
    assert queue.waits == [found.total_circuits]


def test_shots_of_values_and_gradients_have_the_right_statistics():
    """In one call each row still draws for itself: the gradient's shots are not those of the values."""
    layer = layer_of("cosine", backend=Queue(), shots=50, seed=2)
    inputs = torch.full((400, len(problem("cosine").inputs)), 0.9, dtype=torch.float64, requires_grad=True)
    values = layer(inputs)
    values.sum().backward()
    value, slope = values.detach()[:, 0].numpy(), inputs.grad[:, 0].numpy()
    exact = layer_of("cosine")
    one = inputs.detach()[:1].requires_grad_()
    exact(one)[0, 0].backward()
    for found, expected in ((value, exact(one)[0, 0].item()), (slope, one.grad[0, 0].item())):
        z = (found.mean() - expected) / (found.std(ddof=1) / np.sqrt(len(found)))
        assert abs(z) < 4
    assert abs(np.corrcoef(value, slope)[0, 1]) < 4 / np.sqrt(len(value))
