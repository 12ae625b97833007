"""A quantum layer is a good citizen of PyTorch: shapes, dtypes and autograd."""

import copy

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from torch import nn
from torch.autograd import forward_ad
from torch.func import vmap
from torch_layers import (
    EXACT_RULES,
    RULE_ATOL,
    assert_close,
    call,
    closed_form,
    double_layer,
    every_rule,
    exact_rule,
    features,
    forward_mode,
    make_layer,
)

from qiskit_torch_bridge import QuantumLayer

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
    got, want = (torch.autograd.grad(y, [x, layer.weights], upstream) for y in (values, expected))
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


@pytest.mark.parametrize("rule", [*EXACT_RULES, "finite_difference", "aer"])
def test_second_order_through_a_hybrid_net(rule):
    """Others give -0.039 where the truth is -0.770, without an error."""
    layer = double_layer(**({"backend": "aer"} if rule == "aer" else {"gradient": rule}))
    linear, out = nn.Linear(3, 2).double(), nn.Linear(2, 1).double()
    data = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = [data, *linear.parameters(), layer.weights, *out.parameters()]

    def second_order(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(values.square().sum(), parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)

    expected = second_order(pure_torch_net(linear, layer.weights, out, data))
    assert_close(
        second_order(out(layer(torch.tanh(linear(data))))), expected, 1e-4 if rule == "finite_difference" else 1e-9
    )


def test_hooks_and_checkpointing():
    layer = double_layer(gradient="parameter_shift")
    x = features(3).requires_grad_()
    plain = torch.autograd.grad(layer(x).sum(), x)[0]
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], plain)
    drawn = layer.get_rng_state()["position"]
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    # Values, values again, points: the error by which torch ends a recomputation does not give its seed away twice.
    assert layer.get_rng_state()["position"] == drawn + 3
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layer.weights.register_hook(lambda g: seen.append(g.shape))
    layer(x).sum().backward()
    assert seen == [(3, 2), (3,)]


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


@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="torch 2.4 does not say which backward is the last")
def test_a_backward_lets_go_of_the_states():
    layer = _two_qubit_layer()
    features = torch.rand(4, 2, dtype=torch.float64)
    output = layer(features)
    context = output.grad_fn
    assert context.states is not None
    output.sum().backward(retain_graph=True)
    assert context.states is not None
    output.sum().backward()
    assert context.states is None


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
