"""The short way of plain calls: the values, gradients and records of the general way, and its refusals."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from problems import PROBLEMS, features, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torch_layers import forward_mode

from qiskit_torch_bridge import QuantumLayer, StatevectorBackend
from qiskit_torch_bridge.bridge import transforms
from qiskit_torch_bridge.bridge.plain import PlainCall
from qiskit_torch_bridge.simulator import engine, threads

X, A, B = ParameterVector("x", 3), ParameterVector("a", 2), ParameterVector("b", 2)
FLOATS = (torch.float32, torch.float64)


def circuit() -> QuantumCircuit:
    """Angles of several terms and constants, of two groups, and two of the same parameter."""
    qc = QuantumCircuit(3)
    qc.ry(X[0] + 2 * A[0] - 0.3, 0)
    qc.rx(X[1] / 3 - X[2] + B[1] / 2, 1)
    qc.ry(X[0] * 0.7, 2)
    qc.cx(0, 1)
    qc.rzz(A[1] - 2 * B[0] + 1, 1, 2)
    qc.rx(A[0], 0)
    qc.cry(-B[1], 2, 0)
    return qc


def make(**options: Any) -> QuantumLayer:
    return QuantumLayer(circuit(), inputs=X, weights={"a": A, "b": B}, seed=1, **options).double()


def rows(count: int, dtype: torch.dtype = torch.float64, *, requires_grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)


def went_plainly(layer: QuantumLayer) -> bool:
    return isinstance(layer.tally.last, PlainCall)


@pytest.fixture
def generally(monkeypatch):
    """Takes a layer's copy through the same steps by the general way."""

    def run(step: Callable[[QuantumLayer], Any], layer: QuantumLayer) -> tuple[Any, QuantumLayer]:
        twin = copy.deepcopy(layer)
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "somebody_looks", lambda: True)
            result = step(twin)
        assert not went_plainly(twin)
        return result, twin

    return run


def gradients(layer: QuantumLayer, x: torch.Tensor | None, upstream: torch.Tensor | None = None, **options: Any) -> Any:
    """Values, and the gradients of all that needs one."""
    tensors = [t for t in (x, *layer.parameters()) if t is not None and t.requires_grad]
    values = layer() if x is None else layer(x)
    return values, *torch.autograd.grad(
        values, tensors, torch.ones_like(values) if upstream is None else upstream, **options
    )


def assert_same(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def assert_same_run(layer: QuantumLayer, twin: QuantumLayer) -> None:
    """All that a user can see of a run, to the last bit; of gradients, which are summed in another order, but for that."""
    run, other = layer.last_run, twin.last_run
    assert repr(run) == repr(other)
    assert (run.circuits, run.shots, run.gradient_circuits) == (other.circuits, other.shots, other.gradient_circuits)
    assert (layer.total_circuits, layer.total_shots) == (twin.total_circuits, twin.total_shots)
    assert layer.get_rng_state() == twin.get_rng_state()
    np.testing.assert_array_equal(run.values, other.values)
    for name in ("gradients", "gradient_standard_errors", "input_gradients", "input_gradient_standard_errors"):
        got, want = ([d[k] for k in d] if isinstance(d := getattr(one, name), dict) else [d] for one in (run, other))
        assert [type(g) for g in got] == [type(w) for w in want]
        for one, another in zip(got, want, strict=True):
            if one is not None:
                np.testing.assert_allclose(one, another, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize(
    "name",
    [
        # Single gates are all the same to calls; tests/gradients has every one of them by the short way too.
        pytest.param(name, marks=[pytest.mark.slow] * (name.startswith("gate_") and place % 3 > 0))
        for place, name in enumerate(PROBLEMS)
    ],
)
def test_every_circuit(name, generally):
    """Qiskit's own word on them, at the default settings, is in tests/gradients."""
    layer = problem(name).layer(oracle(name).weights)
    x = features(oracle(name), requires_grad=True)
    upstream = torch.randn(1 if x is None else len(x), layer.num_outputs, dtype=torch.float64)
    upstream = upstream[0] if x is None else upstream
    got = gradients(layer, x, upstream)
    assert went_plainly(layer) == layer.program.angle_map.is_affine
    want, _ = generally(lambda twin: gradients(twin, x, upstream), layer)
    assert_same(got[0], want[0])
    torch.testing.assert_close(got[1:], want[1:], rtol=0, atol=1e-13)
    if went_plainly(layer):
        assert_close_to_oracle(got, oracle(name), upstream)


def assert_close_to_oracle(got: Any, expected: Any, upstream: torch.Tensor) -> None:
    np.testing.assert_allclose(got[0].detach().numpy().reshape(expected.values.shape), expected.values, atol=1e-9)
    by_inputs, by_weights = expected.gradients(upstream.numpy().reshape(expected.values.shape))
    flat = torch.cat([g.flatten() for g in got[1:]]).numpy()
    np.testing.assert_allclose(flat, np.concatenate([by_inputs.ravel(), by_weights]), atol=1e-7)


@pytest.mark.parametrize("of_features", FLOATS, ids=str)
@pytest.mark.parametrize("of_weights", FLOATS, ids=str)
@pytest.mark.parametrize(
    "trained", [(True, True, True), (False, True, False), (True, False, False), (True, False, True)]
)
def test_types_and_what_is_trained(of_features, of_weights, trained, generally):
    layer, x = make().to(of_weights), rows(5, of_features, requires_grad=trained[0])
    for group, wanted in zip("ab", trained[1:], strict=True):
        layer.weights[group].requires_grad_(wanted)
    upstream = torch.randn(5, 3, dtype=of_features)
    want, twin = generally(lambda twin: gradients(twin, x, upstream), layer)
    got = gradients(layer, x, upstream)
    assert went_plainly(layer)
    assert [t.dtype for t in got] == [t.dtype for t in want]
    assert_same(got[0], want[0])
    torch.testing.assert_close(
        got[1:], want[1:], rtol=1e-6 if torch.float32 in (of_features, of_weights) else 0, atol=1e-13
    )
    assert_same_run(layer, twin)


@pytest.mark.parametrize("count", [1, 3, 8, 64, 1000])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_batches(count, precision, generally):
    layer, x = make(backend=StatevectorBackend(precision=precision)), rows(count, requires_grad=True)
    upstream = torch.randn(count, 3, dtype=torch.float64)
    want, twin = generally(lambda twin: gradients(twin, x, upstream), layer)
    got = gradients(layer, x, upstream)
    assert went_plainly(layer)
    assert_same(got[0], want[0])
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-12, atol=1e-12)
    assert_same_run(layer, twin)


def test_threads_share_rows(monkeypatch):
    layer, x = make(), rows(1000, requires_grad=True)
    upstream = torch.randn(1000, 3, dtype=torch.float64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = gradients(layer, x, upstream)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(threads, "LEAST_SECONDS", 1e-9)
    assert_same(gradients(layer, x, upstream), alone)
    with pytest.raises(ValueError, match="column 1 is nan in row 999"):
        layer(torch.cat([x.detach()[:-1], torch.tensor([[0.0, torch.nan, 0.0]])]))


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_states_that_are_too_many_to_keep(count, monkeypatch):
    layer, x = make(), rows(count, requires_grad=True)
    upstream = torch.randn(count, 3, dtype=torch.float64)
    want = gradients(layer, x, upstream)
    monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", 2**11)
    values = layer(x)
    assert values.grad_fn.states is None
    got = values, *torch.autograd.grad(values, [x, *layer.parameters()], upstream)
    assert_same(got[:2], want[:2])
    torch.testing.assert_close(got[2:], want[2:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "upstream",
    [
        lambda: torch.tensor(2.0, dtype=torch.float64).expand(4, 3),
        lambda: torch.randn(3, 4, dtype=torch.float64).T,
        lambda: torch.randn(8, 6, dtype=torch.float64)[::2, ::2],
        lambda: torch.randn(4, 1, dtype=torch.float64).expand(4, 3),
        lambda: torch.randn(4, 3, dtype=torch.complex128).conj().imag,
        lambda: torch.zeros(4, 3, dtype=torch.float64),
    ],
    ids=["expanded", "transposed", "strided", "rows", "negative bit", "zero"],
)
def test_upstream_gradients(upstream, generally):
    layer, x, given = make(), rows(4, requires_grad=True), upstream()
    got = gradients(layer, x, given)
    want, _ = generally(lambda twin: gradients(twin, x, given), layer)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_circuits_without_inputs_or_weights(generally):
    qc = QuantumCircuit(2)
    qc.ry(A[0], 0)
    qc.cx(0, 1)
    qc.rx(A[1] - A[0], 1)
    only_weights, only_inputs = QuantumLayer(qc, weights=A, seed=1), QuantumLayer(qc, inputs=A)
    for layer, x in (
        (only_weights, None),
        (only_weights, torch.zeros(3, 0)),
        (only_inputs, torch.rand(4, 2, requires_grad=True)),
    ):
        got = gradients(layer, x)
        assert went_plainly(layer)
        torch.testing.assert_close(got, generally(lambda twin, x=x: gradients(twin, x), layer)[0], rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------------- autograd


def test_second_order(generally):
    layer, x = make(), rows(3, requires_grad=True)

    def second(layer: QuantumLayer) -> tuple[torch.Tensor, ...]:
        tensors = [x, *layer.parameters()]
        first = torch.autograd.grad(layer(x).square().sum(), tensors, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    assert_same_but_for_rounding(second(layer), generally(second, layer)[0])
    groups = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def call(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, {"weights.a": a, "weights.b": b}, (x,))

    assert torch.autograd.gradcheck(call, (x, *groups))
    assert torch.autograd.gradgradcheck(call, (x, *groups))
    assert went_plainly(layer)


def assert_same_but_for_rounding(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@forward_mode
def test_who_looks_is_served(generally):
    """Transforms, forward mode, batched upstream gradients and modes, before or after plain calls."""
    layer, x = make(), rows(3, requires_grad=True)
    plainly = gradients(layer, x)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, weights, (row,)).sum()

    by_rows = vmap(grad(loss, argnums=(0, 1)), (None, 0))(weights, x.detach())
    assert_same_but_for_rounding((by_rows[1], by_rows[0]["weights.a"].sum(0)), (plainly[1], plainly[2]))
    assert_same_but_for_rounding(jacrev(layer)(x.detach()[0]), jacfwd(layer)(x.detach()[0]))
    once = torch.autograd.functional.hessian(lambda row: layer(row).sum(), x.detach()[:1])
    assert_same_but_for_rounding(hessian(lambda row: layer(row).sum())(x.detach()[:1]), once)
    values = layer(x)
    assert went_plainly(layer)
    eye = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    (batched,) = torch.autograd.grad(values, x, eye, is_grads_batched=True, retain_graph=True)
    one_by_one = torch.stack([torch.autograd.grad(values, x, one, retain_graph=True)[0] for one in eye])
    assert_same_but_for_rounding(batched, one_by_one)
    with forward_ad.dual_level():
        (dual,) = torch.autograd.grad(values.sum(), x)  # a backward in it, of a forward outside
    assert_same_but_for_rounding(dual, plainly[1])


def test_graphs_that_are_kept_and_those_that_are_not():
    layer, x = make(), rows(4, requires_grad=True)
    values = layer(x)
    first, second = (torch.autograd.grad(values.sum(), [x, *layer.parameters()], retain_graph=True) for _ in range(2))
    assert_same(first, second)
    values.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        values.sum().backward()


@pytest.mark.parametrize("name", ["x", "a"])
def test_what_has_been_changed_is_refused(name):
    layer, x = make(), rows(4)
    values = layer(x)
    with torch.no_grad():
        (x if name == "x" else layer.weights[name]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


@pytest.mark.parametrize(
    "around",
    [
        lambda: torch.device("meta"),
        lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
        torch.autograd.graph.save_on_cpu,
        torch.autograd.detect_anomaly,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["meta", "hooks", "save_on_cpu", "anomaly", "autocast"],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_contexts(around):
    layer, x = make(), rows(4, requires_grad=True)
    want = gradients(layer, x)
    upstream = torch.ones(4, 3, dtype=torch.float64)
    with around():
        assert_same(gradients(layer, x, upstream), want)
        assert_same_but_for_rounding(gradients(layer, x, upstream, create_graph=True), want)
        values = layer(x)
    assert_same(torch.autograd.grad(values.sum(), [x, *layer.parameters()]), want[1:])


def test_modes():
    layer, x = make(), rows(4, requires_grad=True)
    want = gradients(layer, x)
    with FlopCounterMode(display=False):
        layer(x).sum().backward()
    assert_same_but_for_rounding((x.grad, layer.weights["a"].grad), want[1:3])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant):
    layer, x = make(), rows(4, requires_grad=True)
    want = gradients(layer, x)
    values = checkpoint(layer, x, use_reentrant=use_reentrant)
    values.sum().backward()
    assert_same((x.grad, layer.weights["a"].grad), want[1:3])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_torch_jit_computes_anew():
    layer = make()
    with torch.no_grad():
        traced = torch.jit.trace(layer, (rows(4),))
        assert_same(traced(2 * rows(4)), layer(2 * rows(4)))


# ------------------------------------------------------------------------------------------------- what is not plain


class Named(torch.Tensor):
    """A class of a user's own."""


@pytest.mark.parametrize(
    "features",
    [
        lambda x: x.as_subclass(Named),
        lambda x: x.T.contiguous().T,
        lambda x: torch.complex(x, -x).conj().imag,
        lambda x: x.reshape(2, 2, 3),
        lambda x: x.expand(4, 3),
        lambda x: x[:0],
        torch.nn.Parameter,
        torch.nn.Buffer,
    ],
    ids=["subclass", "transposed", "negative bit", "more axes", "expanded", "no rows", "parameter", "buffer"],
)
def test_other_tensors(features, generally):
    layer, x = make(), features(rows(4))
    got, (want, _) = gradients(layer, x), generally(lambda twin: gradients(twin, x), layer)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: x.to_sparse(), "expected a dense one"),
        (lambda x: x.to_sparse_csr(), "expected a dense one"),
        (lambda x: torch.nested.nested_tensor([x]), "expected a dense one"),
        (lambda x: x.to("meta"), "expected a dense one|meta"),
        (lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8), "expected a floating point dtype"),
        (lambda x: x.long(), "expected a floating point dtype"),
        (lambda x: x[:, :2], r"got shape \(4, 2\)"),
        (lambda x: x.numpy(), "expected a torch.Tensor"),
        (lambda x: None, "the circuit has 3 inputs"),
        (lambda x: x.index_fill(0, torch.tensor([2]), float("nan")), "column 0 is nan in row 2"),
        (lambda x: x / 0, "column 0 is -?inf in row 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:.*[qQ]uantiz")
def test_what_does_not_fit_is_refused_as_ever(features, message):
    layer = make()
    with pytest.raises((TypeError, ValueError), match=message):
        layer(features(rows(4)))
    assert layer.last_run is None
    assert layer.total_circuits == 0


def test_weights_that_are_not_finite_or_do_not_fit():
    layer = make()
    with torch.no_grad():
        layer.weights["b"][1] = torch.nan
    with pytest.raises(ValueError, match=r"weights \(b\): entry 1 is nan"):
        layer(rows(4))
    for strange in (torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError)):
            functional_call(layer, {"weights.b": strange}, (rows(4),))
    mixed = {"weights.a": torch.zeros(2, dtype=torch.float32), "weights.b": torch.zeros(4, dtype=torch.float64)[::2]}
    assert_same(functional_call(layer, mixed, (rows(4),)), make(init="zeros")(rows(4)).detach())


def test_a_backend_of_ones_own_is_asked():
    class Own(StatevectorBackend):
        def evaluate_for_pullback(self, program: Any, angles: np.ndarray) -> Any:
            asked.append(len(angles))
            return super().evaluate_for_pullback(program, angles)

    asked: list[int] = []
    make(backend=Own())(rows(4)).sum().backward()
    assert asked == [4]


# ------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("look_before", [False, True])
@pytest.mark.parametrize(
    "through", [lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_the_record_of_a_run(look_before, through, generally):
    x = rows(4, requires_grad=True)

    def step(layer: QuantumLayer) -> None:
        values = layer(x)
        assert layer.last_run.gradients is None if look_before else True
        values.square().sum().backward()
        values.detach().zero_()

    layer = make()
    step(layer)
    (_, twin) = generally(step, make())
    predicted = [one.last_run.predicted(1000) for one in (layer, twin)]
    np.testing.assert_equal(predicted[0].standard_errors, predicted[1].standard_errors)
    for name in ("gradient_standard_errors", "input_gradient_standard_errors"):
        np.testing.assert_equal(*(getattr(one, name) for one in predicted))
    layer, twin = through(layer), through(twin)
    assert_same_run(layer, twin)


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_stream_of_seeds_stands_where_it_would(context, frozen, generally):
    def step(layer: QuantumLayer) -> dict[str, Any]:
        with context():
            layer(rows(4))
        return layer.get_rng_state()

    layer = make().requires_grad_(not frozen)
    state = step(layer)
    assert went_plainly(layer)
    assert state == generally(step, make().requires_grad_(not frozen))[0]


def test_states_are_forgotten():
    layer, x = make(), rows(4)
    values = layer(x)
    states = weakref.ref(values.grad_fn.states)
    values.sum().backward()
    assert states() is None
    values = layer(x)
    states = weakref.ref(values.grad_fn.states)
    del values
    gc.collect()
    assert states() is None
    assert layer.last_run is not None
    with torch.no_grad():
        layer(x)
    assert not any(isinstance(kept, np.ndarray) and kept.ndim == 3 for kept in gc.get_referents(layer.tally.last))
