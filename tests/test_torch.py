"""A quantum layer is a good citizen of PyTorch.

The circuit has a closed form, written in torch (:func:`closed_form`), so that values and derivatives of any order are
compared with PyTorch's own.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.data import DataLoader, Dataset

from qiskit_torch_bridge import QuantumLayer, StatevectorBackend

X = ParameterVector("x", 2)
W = ParameterVector("w", 3)
EXACT_RULES = ["adjoint", "parameter_shift"]
RULES = [*EXACT_RULES, "finite_difference"]
RULE_ATOL = {"adjoint": 1e-10, "parameter_shift": 1e-10, "finite_difference": 1e-7}
every_rule = pytest.mark.parametrize("rule", RULES)
exact_rule = pytest.mark.parametrize("rule", EXACT_RULES)

BACKENDS: dict[str, Callable[[], Any]] = {
    "statevector": StatevectorBackend,
    "aer": AerSimulator,
    "StatevectorSampler": StatevectorSampler,
    "StatevectorEstimator": StatevectorEstimator,
    "Aer SamplerV2": AerSampler,
    "Aer EstimatorV2": AerEstimator,
}

# Forward mode loads torch's decompositions for jvp, which use torch.jit; PyTorch 2.9 and later deprecate it.
forward_mode = pytest.mark.filterwarnings(
    r"ignore:`torch\.jit\.:FutureWarning", r"ignore:`torch\.jit\.:DeprecationWarning"
)


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0] + 2 * X[1], 0)
    qc.ry(X[1] * W[0], 1)
    qc.cx(0, 1)
    qc.rx(W[1], 1)
    qc.ry(W[2], 0)
    return qc


def closed_form(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """<Z> of qubits 0 and 1."""
    a, b = x[..., 0] + 2 * x[..., 1], x[..., 1] * w[0]
    first = torch.cos(w[2]) * torch.cos(a) - torch.sin(w[2]) * torch.sin(a) * torch.sin(b)
    return torch.stack([first, torch.cos(a) * torch.cos(b) * torch.cos(w[1])], dim=-1)


def make_layer(**options: Any) -> QuantumLayer:
    settings = {"inputs": X, "weights": W, "observables": ["IZ", "ZI"], "seed": 3} | options
    return QuantumLayer(circuit(), **settings)


def double_layer(**options: Any) -> QuantumLayer:
    return make_layer(**options).double()


def features(*lead: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*lead, 2, generator=generator, dtype=torch.float64)


def call(layer: QuantumLayer) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The layer as a function of inputs and weights."""
    return lambda x, w: functional_call(layer, {"weights": w}, (x,))


def assert_close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3), (2, 3, 1, 2)], ids=str)
@every_rule
def test_leading_shapes(lead, rule):
    layer = double_layer(gradient=rule)
    x = features(*lead).requires_grad_()
    values = layer(x)
    assert values.shape == (*lead, 2)
    upstream = torch.randn_like(values)
    expected = closed_form(x, layer.weights)
    assert_close(values, expected)
    for got, want in zip(
        torch.autograd.grad(values, [x, layer.weights], upstream),
        torch.autograd.grad(expected, [x, layer.weights], upstream),
        strict=True,
    ):
        assert got.shape == want.shape
        assert_close(got, want, RULE_ATOL[rule])


def test_strided_and_expanded_features():
    layer = double_layer()
    base = features(3, 4)
    for x in (base.transpose(0, 1), base[::2, 1:], base[:1].expand(3, -1, -1), base.flip(-1)):
        assert_close(layer(x), closed_form(x, layer.weights))


def test_circuits_without_inputs_or_without_weights():
    theta = Parameter("theta")
    qc = QuantumCircuit(1)
    qc.ry(theta, 0)
    only_weights = QuantumLayer(qc, weights=[theta], init=torch.tensor([0.3]))
    assert only_weights().shape == (1,)
    assert only_weights().dtype == torch.float32
    assert only_weights(torch.zeros(4, 2, 0)).shape == (4, 2, 1)
    only_weights(torch.zeros(4, 0)).sum().backward()
    assert_close(only_weights.weights.grad, -4 * torch.sin(torch.tensor([0.3])), 1e-6)
    only_inputs = QuantumLayer(qc, inputs=[theta])
    assert only_inputs.weights is None
    assert list(only_inputs.state_dict()) == []
    assert only_inputs(torch.zeros(4, 1)).shape == (4, 1)


# ------------------------------------------------------------------------------------------------- empty batches


class Calls:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.count = 0
        method = getattr(owner, name)

        def counted(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0, 2), (0, 3, 2)], ids=str)
@pytest.mark.parametrize("shots", [None, 10])
@pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS.keys())
def test_empty_batches_run_nothing(monkeypatch, make, shots, shape):
    """Aer would crash the process on an empty array of parameters."""
    layer = double_layer(backend=make(), shots=shots)
    backend = getattr(layer.backend, "primitive", None)
    runs = [Calls(monkeypatch, AerSimulator, "run")]
    runs += [Calls(monkeypatch, type(backend), "run")] if backend is not None else []
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    values = layer(x)
    assert values.shape == (*shape[:-1], 2)
    values.sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(layer.weights.grad, torch.zeros(3, dtype=torch.float64))
    assert [run.count for run in runs] == [0] * len(runs)
    assert layer.total_circuits == 0


@every_rule
def test_empty_batches_under_vmap_and_second_order(rule):
    layer = double_layer(gradient=rule)
    assert vmap(layer)(torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 2)
    assert vmap(layer)(torch.zeros(3, 0, 2, dtype=torch.float64)).shape == (3, 0, 2)
    x = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).sum(), layer.weights, create_graph=True)
    second = torch.autograd.grad(first.sum(), [layer.weights, x], allow_unused=True, materialize_grads=True)
    assert torch.equal(second[0], torch.zeros(3, dtype=torch.float64))
    assert second[1].shape == (0, 2)


# ------------------------------------------------------------------------------------------------- dtypes and devices

half_precision_on_purpose = pytest.mark.filterwarnings("ignore:Got features or weights of dtype")


@half_precision_on_purpose
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights_dtype", [torch.float64, torch.float32], ids=str)
def test_dtype_follows_the_input(dtype, weights_dtype):
    layer = make_layer().to(weights_dtype)
    x = features(4).to(dtype).requires_grad_()
    values = layer(x)
    assert values.dtype == dtype
    values.float().sum().backward()
    assert x.grad.dtype == dtype
    assert layer.weights.grad.dtype == weights_dtype
    exact_x = x.detach().double().requires_grad_()
    exact_w = layer.weights.detach().double().requires_grad_()
    expected = closed_form(exact_x, exact_w)
    expected.sum().backward()
    # The computation is in float32 at least; only inputs and outputs are rounded.
    eps = max(torch.finfo(dtype).eps, torch.finfo(weights_dtype).eps if weights_dtype != dtype else 0)
    assert_close(values.double(), expected, 4 * eps)
    assert_close(x.grad.double(), exact_x.grad, 16 * eps)
    assert_close(layer.weights.grad.double(), exact_w.grad, 32 * eps)


@half_precision_on_purpose
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_whole_layers_in_half_precision(dtype):
    layer = make_layer().to(dtype)
    x = features(4).to(dtype)
    values = layer(x)
    assert values.dtype == dtype
    assert_close(values.double(), closed_form(x.double(), layer.weights.double()), 4 * torch.finfo(dtype).eps)
    values.sum().backward()
    assert layer.weights.grad.dtype == dtype


@pytest.mark.parametrize("rule", ["adjoint", "parameter_shift"])
def test_autocast_does_not_touch_the_angles(rule):
    """bfloat16 has 8 bits: angles of several radians would be off by hundredths."""
    layer = make_layer(gradient=rule)
    x = (3 * features(8)).float().requires_grad_()
    plain = layer(x)
    plain_gradients = torch.autograd.grad(plain.sum(), [x, layer.weights])
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x)
        assert cast.dtype == torch.float32
        inside = torch.autograd.grad(cast.sum(), [x, layer.weights], retain_graph=True)
    outside = torch.autograd.grad(cast.sum(), [x, layer.weights])
    assert torch.equal(cast, plain)
    for gradients in (inside, outside):
        assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))


@half_precision_on_purpose
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_hybrid_net_under_autocast(dtype):
    """Linear hands on half precision; the layer takes it, and hands it back."""
    model = nn.Sequential(nn.Linear(5, 2), make_layer(), nn.Linear(2, 1))
    with torch.autocast("cpu", dtype):
        hidden = model[0](torch.randn(6, 5))
        assert hidden.dtype == model[1](hidden).dtype == dtype
        loss = model(torch.randn(6, 5)).float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_rule
def test_cuda_round_trip(rule):
    layer = double_layer(gradient=rule)
    host = features(3, 4).requires_grad_()
    expected = layer(host)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [host, layer.weights])
    moved = copy.deepcopy(layer).cuda()
    x = host.detach().cuda().requires_grad_()
    values = moved(x)
    assert values.device == x.device
    gradients = torch.autograd.grad(values.square().sum(), [x, moved.weights])
    assert_close(values.cpu(), expected)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert got.device == x.device
        assert_close(got.cpu(), want)
    back = moved.cpu()
    assert torch.equal(back(host), expected)
    mixed = layer(x)
    assert mixed.device == x.device, "weights on the CPU, inputs on the device"


def test_grad_modes():
    layer = double_layer()
    x = features(3)
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        inferred = layer(x)
    assert inferred.is_inference()
    # What was cached in inference mode must serve training too.
    x.requires_grad_()
    values = layer(x)
    assert torch.equal(values, inferred)
    values.sum().backward()
    assert_close(x.grad, torch.autograd.grad(closed_form(x, layer.weights).sum(), x)[0])


# ------------------------------------------------------------------------------------------------- autograd


@exact_rule
@forward_mode
def test_gradcheck_and_gradgradcheck(rule):
    layer = double_layer(gradient=rule)
    x, w = features(3).requires_grad_(), layer.weights.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call(layer), (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call(layer), (x, w), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_gradcheck_on_aer():
    layer = double_layer(backend="aer")
    x, w = features(2).requires_grad_(), layer.weights.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(call(layer), (x, w))


@every_rule
def test_batched_upstream_gradients(rule):
    """``is_grads_batched`` and ``jacobian(vectorize=True)`` map over backward with PyTorch's older vmap."""
    layer = double_layer(gradient=rule)
    x = features(3).requires_grad_()
    upstream = torch.eye(6, dtype=torch.float64).reshape(6, 3, 2)
    (got,) = torch.autograd.grad(layer(x), x, upstream, is_grads_batched=True)
    (want,) = torch.autograd.grad(closed_form(x, layer.weights), x, upstream, is_grads_batched=True)
    assert_close(got, want, RULE_ATOL[rule])
    assert_close(torch.autograd.functional.jacobian(layer, x, vectorize=True).reshape_as(want), want, RULE_ATOL[rule])


@every_rule
def test_only_one_of_inputs_and_weights(rule):
    layer = double_layer(gradient=rule)
    x = features(3)
    expected = closed_form(x, layer.weights)
    (by_weights,) = torch.autograd.grad(expected.sum(), layer.weights)
    assert_close(torch.autograd.grad(layer(x).sum(), layer.weights)[0], by_weights, RULE_ATOL[rule])
    layer.weights.requires_grad_(False)
    x.requires_grad_()
    (by_inputs,) = torch.autograd.grad(closed_form(x, layer.weights).sum(), x)
    assert_close(torch.autograd.grad(layer(x).sum(), x)[0], by_inputs, RULE_ATOL[rule])
    assert not layer(x.detach()).requires_grad


@every_rule
def test_retain_graph_gives_the_same_answer_twice(rule):
    layer = double_layer(gradient=rule)
    x = features(3).requires_grad_()
    values = layer(x)
    upstream = torch.randn_like(values)
    first, second = (torch.autograd.grad(values, [x, layer.weights], upstream, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    halved = torch.autograd.grad(values, [x, layer.weights], 0.5 * upstream)
    assert all(torch.equal(a, 0.5 * b) for a, b in zip(halved, second, strict=True))


@every_rule
def test_backward_after_another_forward(rule):
    """What one call keeps for backward is not another's."""
    layer = double_layer(gradient=rule)
    first, second = features(3).requires_grad_(), (2 * features(3)).requires_grad_()
    values = layer(first), layer(second)
    for x, y in zip((first, second), values, strict=True):
        want = torch.autograd.grad(closed_form(x, layer.weights).sum(), x)[0]
        assert_close(torch.autograd.grad(y.sum(), x)[0], want, RULE_ATOL[rule])


@exact_rule
def test_gradients_accumulate_as_usual(rule):
    layer = double_layer(gradient=rule)
    x = features(3)
    layer(x).sum().backward()
    once = layer.weights.grad.clone()
    layer(x).sum().backward()
    assert_close(layer.weights.grad, 2 * once, 0.0)


def pure_torch_net(linear: nn.Linear, weights: torch.Tensor, out: nn.Linear, data: torch.Tensor) -> torch.Tensor:
    return out(closed_form(torch.tanh(linear(data)), weights))


@pytest.mark.parametrize("rule", [*EXACT_RULES, "finite_difference"])
def test_second_order_through_a_hybrid_net(rule):
    """Others give -0.039 where the truth is -0.770, without an error."""
    layer = double_layer(gradient=rule)
    linear, out = nn.Linear(3, 2).double(), nn.Linear(2, 1).double()
    data = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = [data, *linear.parameters(), layer.weights, *out.parameters()]

    def second_order(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(values.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    expected = second_order(pure_torch_net(linear, layer.weights, out, data))
    for got, want in zip(second_order(out(layer(torch.tanh(linear(data))))), expected, strict=True):
        assert_close(got, want, 1e-9 if rule != "finite_difference" else 1e-4)


@exact_rule
def test_third_order(rule):
    theta = Parameter("theta")
    qc = QuantumCircuit(1)
    qc.ry(theta, 0)
    layer = QuantumLayer(qc, inputs=[theta], gradient=rule)
    x = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    for expected in (-np.sin(0.7), -np.cos(0.7), np.sin(0.7)):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert y.item() == pytest.approx(expected, abs=1e-12)


def test_hooks_and_checkpointing():
    layer = double_layer(gradient="parameter_shift")
    x = features(3).requires_grad_()
    plain = torch.autograd.grad(layer(x).sum(), x)[0]
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], plain)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer.weights.register_hook(lambda g: seen.append(g.shape))
    layer(x).sum().backward()
    assert seen == [(3, 2), (3,)]


# ------------------------------------------------------------------------------------------------- torch.func


@every_rule
def test_vmap_over_inputs_is_one_call(rule, counting):
    layer = double_layer(gradient=rule, backend=counting())
    x = features(4, 3)
    assert_close(vmap(layer)(x), closed_form(x, layer.weights))
    assert_close(vmap(vmap(layer))(x), closed_form(x, layer.weights))
    assert_close(vmap(layer, in_dims=1, out_dims=1)(x), closed_form(x, layer.weights))
    assert layer.backend.calls == [(12, None)] * 3


@every_rule
def test_vmap_over_weights(rule, counting):
    """An ensemble: one circuit, many weights."""
    layer = double_layer(gradient=rule, backend=counting())
    x, w = features(3), torch.randn(4, 3, dtype=torch.float64)
    run, closed = call(layer), closed_form
    assert_close(vmap(run, in_dims=(None, 0))(x, w), vmap(closed, in_dims=(None, 0))(x, w))
    assert layer.backend.calls == [(12, None)]
    both = features(4, 3)
    assert_close(vmap(run)(both, w), vmap(closed)(both, w))

    def loss(f: Any) -> Any:
        return vmap(grad(lambda w, x: f(x, w).square().sum()), in_dims=(0, None))(w, x)

    assert_close(loss(run), loss(closed), RULE_ATOL[rule])


def test_ensembles_by_stacked_modules():
    layers = [double_layer(seed=s) for s in range(3)]
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0])
    x = features(5)
    values = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(parameters, buffers, x)
    assert_close(values, torch.stack([layer(x) for layer in layers]))
    values.square().sum().backward()
    for i, layer in enumerate(layers):
        layer(x).square().sum().backward()
        assert_close(parameters["weights"].grad[i], layer.weights.grad)


@every_rule
def test_functional_call_uses_the_weights_that_it_is_given(rule):
    """Others ignore them."""
    layer = double_layer(gradient=rule)
    x, other = features(3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    values = call(layer)(x, other)
    assert_close(values, closed_form(x, other))
    values.sum().backward()
    assert layer.weights.grad is None
    assert_close(other.grad, torch.autograd.grad(closed_form(x, other).sum(), other)[0], RULE_ATOL[rule])


@every_rule
def test_per_sample_gradients(rule, counting):
    layer = double_layer(gradient=rule, backend=counting())
    x, w = features(4), layer.weights.detach()

    def per_sample(f: Any) -> Any:
        return vmap(grad(lambda w, x: f(x, w).square().sum()), in_dims=(None, 0))(w, x)

    assert_close(per_sample(call(layer)), per_sample(closed_form), RULE_ATOL[rule])
    points = {"adjoint": 0, "parameter_shift": 6, "finite_difference": 6}[rule]
    assert layer.backend.calls == [(4, None)] + ([(4 * points, None)] if points else [])


@every_rule
@pytest.mark.parametrize("shots", [None, 1000])
def test_pruning_within_torch_func(rule, shots, counting):
    """There ``weights.requires_grad`` reads False; the gradient must be right all the same, and cost nothing more."""
    if rule == "adjoint" and shots is not None:
        pytest.skip("adjoint is exact only")
    layer = double_layer(gradient=rule, shots=shots, backend=counting())
    x, w = features(4), layer.weights.detach()
    got = grad(lambda w: vmap(lambda row: call(layer)(row, w))(x).sum())(w)
    want = grad(lambda w: vmap(lambda row: closed_form(row, w))(x).sum())(w)
    assert_close(got, want, RULE_ATOL[rule] if shots is None else 1.2)
    # Three weights: six circuits a row for the gradient; the input x0 + 2 x1 costs none.
    assert sum(rows for rows, _ in layer.backend.calls) == (4 if rule == "adjoint" else 4 + 4 * 6)


@every_rule
@forward_mode
@pytest.mark.parametrize(
    "transform",
    [jacrev, jacfwd, hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))],
    ids=["jacrev", "jacfwd", "hessian", "jacrev jacrev", "jacrev jacfwd"],
)
@pytest.mark.parametrize("batched", [False, True])
def test_jacobians(rule, transform, batched):
    layer = double_layer(gradient=rule)
    x, w = features(4), layer.weights.detach()
    atol = RULE_ATOL[rule] if transform in (jacrev, jacfwd) else {"finite_difference": 1e-4}.get(rule, 1e-9)
    run, closed = call(layer), closed_form
    if batched:
        assert_close(vmap(transform(lambda x: run(x, w)))(x), vmap(transform(lambda x: closed(x, w)))(x), atol)
        return
    x = x[0]
    assert_close(transform(lambda x: run(x, w))(x), transform(lambda x: closed(x, w))(x), atol)
    assert_close(transform(lambda w: run(x, w))(w), transform(lambda w: closed(x, w))(w), atol)


@every_rule
@forward_mode
def test_forward_over_forward_is_right_or_refused(rule):
    """PyTorch differentiates no Function's jvp in forward mode: it takes the second derivative to be zero, silently."""
    layer = double_layer(gradient=rule)
    x, w = features(), layer.weights.detach()
    try:
        got = jacfwd(jacfwd(lambda x: call(layer)(x, w)))(x)
    except (NotImplementedError, RuntimeError) as error:
        assert "jacrev" in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert_close(got, hessian(lambda x: closed_form(x, w))(x), 1e-4)


@every_rule
@forward_mode
def test_jvp_and_vjp(rule):
    layer = double_layer(gradient=rule)
    x, w = features(3), layer.weights.detach()
    dx, dw = features(3).flip(0), torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    for got, want in zip(jvp(call(layer), (x, w), (dx, dw)), jvp(closed_form, (x, w), (dx, dw)), strict=True):
        assert_close(got, want, RULE_ATOL[rule])
    upstream = features(3)
    values, pullback = vjp(call(layer), x, w)
    expected_values, expected_pullback = vjp(closed_form, x, w)
    assert_close(values, expected_values)
    for got, want in zip(pullback(upstream), expected_pullback(upstream), strict=True):
        assert_close(got, want, RULE_ATOL[rule])


@forward_mode
def test_forward_mode_by_dual_tensors():
    layer = double_layer()
    x, tangent = features(3), features(3).flip(0)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        got = torch.autograd.forward_ad.unpack_dual(dual).tangent
    weights = layer.weights.detach()
    assert_close(got, jvp(lambda x: closed_form(x, weights), (x,), (tangent,))[1])


def test_torch_func_with_shots(counting):
    layer = double_layer(shots=4000, backend=counting("statevector"))
    x, w = features(5), layer.weights.detach()
    got = vmap(grad(lambda w, x: call(layer)(x, w).sum()), in_dims=(None, 0))(w, x)
    want = vmap(grad(lambda w, x: closed_form(x, w).sum()), in_dims=(None, 0))(w, x)
    assert_close(got, want, 0.4)
    assert layer.backend.calls == [(5, 4000), (5 * 6, 4000)]


# ------------------------------------------------------------------------------------------------- modules


def test_state_dict_has_one_key():
    layer = make_layer()
    assert list(layer.state_dict()) == ["weights"]
    assert [name for name, _ in layer.named_parameters()] == ["weights"]
    assert list(layer.buffers()) == []
    other = make_layer(seed=9)
    assert not torch.equal(other.weights, layer.weights)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weights, layer.weights)
    x = features(3)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict({"weights": torch.zeros(4)})


def test_torch_save_and_load(tmp_path):
    layer = make_layer()
    torch.save(layer.state_dict(), tmp_path / "weights.pt")
    other = make_layer(seed=9)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other.weights, layer.weights)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    x = features(3)
    assert torch.equal(whole(x), layer(x))


@pytest.mark.parametrize("shots", [None, 50])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS.keys())
def test_copies_train_apart(make, copier, used, shots):
    layer = double_layer(backend=make(), shots=shots)
    x = features(3)
    if used:
        layer(x.clone().requires_grad_()).sum().backward()
    other = copier(layer)
    assert other.weights is not layer.weights
    assert torch.equal(other(x), layer(x)), "a copy continues where the original stands, shots included"
    before = layer.weights.detach().clone()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    other(x).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weights, before)
    assert not torch.equal(other.weights, before)
    assert other.total_circuits > layer.total_circuits


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=0.05),
        lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=10),
    ],
    ids=["SGD", "Adam", "AdamW", "RMSprop", "LBFGS"],
)
def test_optimizers(optimizer):
    layer = make_layer(init=torch.tensor([1.0, 1.0, 1.0]))
    stepper = optimizer(layer.parameters())
    x = features(6).float()
    target = closed_form(x, torch.tensor([0.4, 0.3, 0.2]))

    def closure() -> torch.Tensor:
        stepper.zero_grad()
        loss = nn.functional.mse_loss(layer(x), target)
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(30):
        stepper.step(closure)
    assert closure().item() < 0.1 * start


def test_convolutions_before_and_linear_after():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2), make_layer(), nn.Linear(2, 10)
    )
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([1, 4, 0, 9, 3])
    nn.functional.cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    pixels = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    maps = pixels(images).permute(0, 2, 3, 1)
    assert make_layer()(maps).shape == (5, 6, 6, 2), "channels last: one circuit a pixel"


def test_train_eval_and_apply():
    layer = make_layer()
    x = features(3)
    assert torch.equal(layer.eval()(x), layer.train()(x))
    layer.apply(lambda module: None)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert nn.utils.parameters_to_vector(layer.parameters()).shape == (3,)
    layer.requires_grad_(True)
    layer(x).sum().backward()
    layer.zero_grad()
    assert layer.weights.grad is None


def test_weights_can_be_parametrized_and_clipped():
    layer = double_layer()
    nn.utils.parametrize.register_parametrization(layer, "weights", nn.Tanh())
    x = features(3)
    assert_close(layer(x), closed_form(x, torch.tanh(layer.parametrizations.weights.original)))
    layer(x).sum().backward()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 0.1) > 0


# ------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("init", "check"),
    [
        ("uniform", lambda w: bool(((w >= 0) & (w < 2 * torch.pi)).all()) and len(set(w.tolist())) == 3),
        ("zeros", lambda w: torch.equal(w, torch.zeros(3))),
        ("normal", lambda w: bool((w.abs() < 0.06).all()) and len(set(w.tolist())) == 3),
        (torch.tensor([1.0, 2.0, 3.0]), lambda w: torch.equal(w, torch.tensor([1.0, 2.0, 3.0]))),
    ],
    ids=["uniform", "zeros", "normal", "tensor"],
)
def test_initial_weights(init, check):
    layer = make_layer(init=init)
    assert isinstance(layer.weights, nn.Parameter)
    assert layer.weights.dtype == torch.float32
    assert check(layer.weights.detach())
    assert torch.equal(layer.weights, make_layer(init=init).weights), "the seed repeats them"


def test_initial_weights_follow_seed_dtype_and_tensor():
    assert not torch.equal(make_layer(seed=1).weights, make_layer(seed=2).weights)
    given = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    layer = make_layer(init=given)
    assert layer.weights.dtype == torch.float64
    with torch.no_grad():
        layer.weights.add_(1.0)
    assert torch.equal(given, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), "a copy"
    torch.manual_seed(4)
    first = make_layer(seed=None).weights
    torch.manual_seed(4)
    assert torch.equal(make_layer(seed=None).weights, first)
    assert not torch.equal(make_layer(seed=None).weights, first)


def test_initial_weights_have_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert make_layer().weights.dtype == torch.float64
        assert make_layer(init="zeros").weights.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def grouped_layer(**options: Any) -> QuantumLayer:
    return make_layer(weights={"first": [W[1], W[0]], "second": [W[2]]}, **options)


def test_weight_groups():
    layer = grouped_layer(init={"first": torch.tensor([0.2, 0.1]), "second": torch.tensor([0.3])})
    assert list(layer.state_dict()) == ["weights.first", "weights.second"]
    x = features(3).float()
    expected = closed_form(x, torch.tensor([0.1, 0.2, 0.3]))
    assert_close(layer(x), expected, 1e-6)
    copied = pickle.loads(pickle.dumps(layer))
    assert_close(copied(x), expected, 1e-6)
    given = {"weights.second": torch.tensor([0.5])}
    assert_close(functional_call(layer, given, (x,)), closed_form(x, torch.tensor([0.1, 0.2, 0.5])), 1e-6)
    mixed = grouped_layer(init={"second": "zeros"})
    assert mixed.weights["second"].item() == 0.0
    assert mixed.weights["first"].abs().min() > 0.0
    uniform = grouped_layer(init="uniform")
    assert len({*uniform.weights["first"].tolist(), *uniform.weights["second"].tolist()}) == 3


@pytest.mark.parametrize("rule", ["parameter_shift", "finite_difference", "adjoint"])
@pytest.mark.parametrize(("frozen", "trained", "points"), [("first", "second", 2), ("second", "first", 4)])
def test_groups_are_frozen_and_trained_apart(rule, frozen, trained, points, counting):
    layer = grouped_layer(gradient=rule, backend=counting()).double()
    layer.weights[frozen].requires_grad_(False)
    x = features(3)
    before = {name: weight.detach().clone() for name, weight in layer.weights.items()}
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.1)
    layer(x).sum().backward()
    assert layer.weights[frozen].grad is None
    whole = torch.cat([before["first"].flip(0), before["second"]]).requires_grad_()
    (expected,) = torch.autograd.grad(closed_form(x, whole).sum(), whole)
    wanted = {"first": expected[:2].flip(0), "second": expected[2:]}[trained]
    assert_close(layer.weights[trained].grad, wanted, RULE_ATOL[rule])
    # Frozen weights and inputs that need no gradient cost no circuit.
    circuits = [rows for rows, _ in layer.backend.calls]
    assert circuits == ([3] if rule == "adjoint" else [3, 3 * points])
    optimizer.step()
    assert torch.equal(layer.weights[frozen], before[frozen])
    assert not torch.equal(layer.weights[trained], before[trained])


# ------------------------------------------------------------------------------------------------- what a layer tells


def test_extra_repr_and_draw():
    layer = make_layer(shots=100, gradient="parameter_shift")
    text = repr(layer)
    for part in ("inputs=2", "weights=3", "outputs=2", "qubits=2", "'statevector'", "shots=100", "'parameter_shift'"):
        assert part in text
    assert "first=2, second=1" in repr(grouped_layer())
    drawing = str(layer.draw())
    for name in ("x[0]", "x[1]", "w[0]", "w[1]", "w[2]", "Ry", "Rx"):
        assert name in drawing
    assert str(layer.draw(fold=20)) != drawing, "options reach Qiskit"


def test_draw_with_matplotlib():
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    pytest.importorskip("pylatexenc", reason="draws with matplotlib and pylatexenc")
    figure = make_layer().draw("mpl")
    assert figure.axes


def test_last_run_and_totals():
    layer = make_layer(shots=100)
    assert layer.last_run is None
    assert (layer.total_circuits, layer.total_shots) == (0, 0)
    x = features(2, 3)
    values = layer(x)
    run = layer.last_run
    assert run.values.shape == run.standard_errors.shape == (6, 2)
    np.testing.assert_array_equal(run.values.reshape(2, 3, 2), values.detach().numpy())
    assert (run.circuits, run.shots) == (6, 600)
    values.sum().backward()
    assert layer.last_run is run, "a backward leaves the last forward's"
    assert (layer.total_circuits, layer.total_shots) == (6 + 6 * 6, 100 * (6 + 6 * 6))
    quote = layer.quote(6, inputs_require_grad=False)
    assert (quote.calls, quote.circuits, quote.shots) == (2, layer.total_circuits, layer.total_shots)
    exact_layer = make_layer()
    exact_layer(x)
    assert np.all(exact_layer.last_run.standard_errors == 0.0)
    assert exact_layer.last_run.shots == 0


def test_num_outputs():
    assert make_layer().num_outputs == 2
    assert make_layer(observables=None, probabilities=[0, 1]).num_outputs == 4
    assert make_layer(observables=None, probabilities=[0, 1], interpret=int.bit_count).num_outputs == 3


def test_interpret_may_be_a_lambda_and_the_layer_still_pickles():
    layer = make_layer(observables=None, probabilities=[0, 1], interpret=lambda outcome: outcome % 2)
    x = features(3)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


# ------------------------------------------------------------------------------------------------- several processes


class SimulatedData(Dataset):
    """A data set whose items a layer computes, in the loader's workers."""

    def __init__(self) -> None:
        self.layer = double_layer().requires_grad_(False)
        self.x = features(8)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.layer(self.x[index])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_data_loader_workers(context):
    if context == "fork" and sys.platform == "win32":
        pytest.skip("Windows cannot fork")
    data = SimulatedData()
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context=context)
    values = torch.cat(list(loader))
    assert_close(values, closed_form(data.x, data.layer.weights))


def hybrid() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 2), make_layer(gradient="parameter_shift"), nn.Linear(2, 1)).double()


def gradients_of(model: nn.Module, data: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(data).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def data_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def distributed_gradients(rank: int, world: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        model = nn.parallel.DistributedDataParallel(hybrid())
        share = data_of(6)[rank::world]
        torch.save(gradients_of(model, share), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def distributed_worker(rank: int, world: int, folder: str) -> None:
    distributed_gradients(rank, world, folder)
    # Now and then gloo's threads abort a process that ends in the usual way, with plain PyTorch models too.
    os._exit(0)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_distributed_data_parallel_alone(tmp_path):
    distributed_gradients(0, 1, str(tmp_path))
    for got, want in zip(torch.load(tmp_path / "0.pt"), gradients_of(hybrid(), data_of(6)), strict=True):
        assert_close(got, want, 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_distributed_data_parallel_on_two_processes(tmp_path):
    torch.multiprocessing.spawn(distributed_worker, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        for got, want in zip(torch.load(tmp_path / f"{rank}.pt"), gradients_of(hybrid(), data_of(6)), strict=True):
            assert_close(got, want, 1e-12)


# ------------------------------------------------------------------------------------------------- torch.compile


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


# Dynamo itself reads .grad of the intermediate tensors that it hands over at any graph break inside a module.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("shots", [None, 100])
def test_torch_compile(shots):
    """The circuit is a clean break in the graph; what surrounds it is compiled."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), make_layer(shots=shots), nn.Linear(2, 1))
    twin = copy.deepcopy(model)
    compiled = torch.compile(model)
    for rows in (4, 4, 7):
        data = torch.randn(rows, 3)
        values, expected = compiled(data), twin(data)
        assert_close(values, expected, 1e-5)
        values.square().sum().backward()
        expected.square().sum().backward()
        for got, want in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(got.grad, want.grad, 1e-4)
    assert model[2].total_circuits == twin[2].total_circuits


# ------------------------------------------------------------------------------------------------- what is kept


def _two_qubit_layer(**options):
    theta, x = ParameterVector("t", 2), ParameterVector("x", 2)
    qc = QuantumCircuit(2)
    for qubit in range(2):
        qc.ry(x[qubit] + theta[qubit], qubit)
    qc.cx(0, 1)
    qc.rx(theta[0], 1)
    return QuantumLayer(qc, inputs=x, weights=theta, seed=1, **options).double()


@forward_mode
def test_forward_mode_over_backward_gives_the_hessian_vector_product():
    layer = _two_qubit_layer()
    point, tangent = torch.rand(3, 2, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(point.clone().requires_grad_(), tangent)
        (gradient,) = torch.autograd.grad(layer(dual).sum(), dual)
        product = forward_ad.unpack_dual(gradient).tangent
    _, expected = torch.func.jvp(torch.func.grad(lambda x: layer(x).sum()), (point,), (tangent,))
    torch.testing.assert_close(product, expected)


@forward_mode
@pytest.mark.parametrize("batch", [1, 3])
def test_jacobian_by_weights_behind_features_without_columns(batch):
    theta = ParameterVector("t", 3)
    qc = QuantumCircuit(2)
    qc.ry(theta[0], 0)
    qc.rx(theta[1], 1)
    qc.cx(0, 1)
    qc.ry(theta[2], 1)
    layer = QuantumLayer(qc, weights=theta, observables=["ZI", "IZ"], seed=1).double()
    features = torch.zeros(batch, 0, dtype=torch.float64)

    def outputs(weights):
        return torch.func.functional_call(layer, {"weights": weights}, (features,))

    weights = layer.weights.detach()
    expected = torch.func.jacfwd(outputs)(weights)
    torch.testing.assert_close(torch.func.jacrev(outputs)(weights), expected)
    assert expected.abs().max() > 0.01


def test_features_and_upstream_gradients_with_a_pending_sign():
    """``conj().imag`` is a view whose numbers are only negated when they are read."""
    layer = _two_qubit_layer()
    numbers = torch.randn(3, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(numbers.conj().imag), layer(-numbers.imag))
    (got,) = torch.autograd.grad(layer(numbers.real), layer.weights, numbers.conj().imag)
    (expected,) = torch.autograd.grad(layer(numbers.real), layer.weights, -numbers.imag)
    torch.testing.assert_close(got, expected)


@pytest.mark.skipif(
    torch.__version__.startswith("2.4."), reason="torch 2.4 does not say whether a backward is the last"
)
def test_a_backward_lets_go_of_the_states():
    layer = _two_qubit_layer()
    features = torch.rand(4, 2, dtype=torch.float64)
    output = layer(features)
    evaluation = output.grad_fn.evaluation
    assert evaluation._kept is not None
    output.sum().backward(retain_graph=True)
    assert evaluation._kept is not None
    output.sum().backward()
    assert evaluation._kept is None


def test_the_record_of_a_run_is_not_the_output_itself():
    layer = _two_qubit_layer()
    output = layer(torch.rand(4, 2, dtype=torch.float64))
    before = layer.last_run.values.copy()
    output.detach().zero_()
    np.testing.assert_array_equal(layer.last_run.values, before)


def test_infinite_features_of_both_signs_are_named():
    with pytest.raises(ValueError, match="column 0 is inf"):
        _two_qubit_layer()(torch.tensor([[float("inf"), float("-inf")]], dtype=torch.float64))


def test_angles_near_the_largest_number_are_angles():
    layer = _two_qubit_layer()
    assert bool(torch.isfinite(layer(torch.full((4, 2), 1.7e308, dtype=torch.float64))).all())
