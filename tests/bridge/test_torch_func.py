"""A quantum layer within ``torch.func``."""

import copy
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch_layers import RULE_ATOL, assert_close, call, closed_form, double_layer, every_rule, features, forward_mode


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
    assert_close(jvp(call(layer), (x, w), (dx, dw)), jvp(closed_form, (x, w), (dx, dw)), RULE_ATOL[rule])
    upstream = features(3)
    values, pullback = vjp(call(layer), x, w)
    expected_values, expected_pullback = vjp(closed_form, x, w)
    assert_close(values, expected_values)
    assert_close(pullback(upstream), expected_pullback(upstream), RULE_ATOL[rule])


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
