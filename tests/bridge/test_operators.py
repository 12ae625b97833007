"""Quantum layers in graphs of torch.compile, torch.export and make_fx: the numbers of the layer outside of a graph."""

import copy
import functools
import gc
import io
import itertools
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_child
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from runs import forked
from torch import nn
from torch._inductor import config as inductor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch_layers import double_layer, forward_mode

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.bridge import operators
from qiskit_torch_bridge.circuits import dressed

X, A, B = ParameterVector("x", 2), ParameterVector("a", 2), ParameterVector("b", 1)
OPERATORS = torch.ops.qiskit_torch_bridge
UTILS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
pytestmark = pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="torch 2.4 traces less")


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    """Each test begins without compiled code, and leaves no record behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    if operators._kept:  # only then: to look through all that torch.compile has made takes a quarter of a second
        gc.collect()
    assert not operators._kept


def layer(**options: Any) -> QuantumLayer:
    """Weights in two groups, the second of which is frozen."""
    circuit = QuantumCircuit(2)
    for qubit in range(2):
        circuit.ry(X[qubit] + A[qubit] / 2, qubit)
    circuit.cx(0, 1)
    circuit.rx(B[0], 1)
    circuit.ry(A[0], 0)
    made = QuantumLayer(circuit, inputs=X, weights={"a": A, "b": B}, seed=1, **options)
    made.weights["b"].requires_grad_(False)
    return made


def hybrid(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), layer(**options), nn.Linear(layer(**options).num_outputs, 1))


def compiled(model: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(model, fullgraph=True, **{"backend": "aot_eager", **options})


def layers_of(model: nn.Module) -> list[QuantumLayer]:
    return [module for module in model.modules() if isinstance(module, QuantumLayer)]


def step(model: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    values = model(*tensors)
    if values.requires_grad:
        values.square().sum().backward()
    return values.detach()


def assert_same_model(got: nn.Module, want: nn.Module) -> None:
    """Gradients and all that layers say of their runs, to the last bit."""
    for one, other in zip(got.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
    for one, other in zip(layers_of(got), layers_of(want), strict=True):
        assert (one.total_circuits, one.total_shots) == (other.total_circuits, other.total_shots)
        assert one.get_rng_state() == other.get_rng_state()
        assert (one.last_run is None) == (other.last_run is None)
        for name in ("values", "standard_errors", "gradients", "gradient_standard_errors", "circuits", "shots"):
            if one.last_run is not None:
                np.testing.assert_equal(getattr(one.last_run, name), getattr(other.last_run, name))


def assert_compiles(model: nn.Module, *batches: torch.Tensor, **options: Any) -> None:
    twin = copy.deepcopy(model)
    faster = compiled(model, **options)
    for batch in batches:
        torch.testing.assert_close(step(faster, batch), step(twin, batch), rtol=0, atol=0)
        assert_same_model(model, twin)


# ------------------------------------------------------------------------------------------------- torch.compile

SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "shots": {"shots": 50},
    "parameter shift": {"gradient": "parameter_shift"},
    "finite differences": {"gradient": "finite_difference"},
    "spsa": {"gradient": "spsa", "shots": 50},
    "probabilities": {"probabilities": [1, 0]},
    "probabilities of shots": {"probabilities": [1], "shots": 50},
    "aer": {"backend": "aer"},
    "aer with shots": {"backend": "aer", "shots": 50},
    "sensitivity": {"shots": 50, "allocation": "sensitivity"},
}


OTHER_SETTINGS = frozenset(SETTINGS) - {"exact", "shots", "sensitivity"}
"""Those that go through a graph as one of the others does, or that other tests of graphs have."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHER_SETTINGS)) for name in SETTINGS]
)
def test_hybrid_models(name):
    """The graph of another number of rows, which is compiled anew, is looked at in those that are quick."""
    batches = [torch.randn(rows, 3) for rows in ((4,) if name in OTHER_SETTINGS else (4, 4, 7))]
    assert_compiles(hybrid(**SETTINGS[name]), *batches)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")),
    reason="needs a C++ compiler",
)
def test_inductor():
    """Its linear layers round in another order."""
    model = hybrid()
    twin = copy.deepcopy(model)
    with inductor.patch({"compile_threads": 1}):  # else it starts processes that compile side by side
        faster = compiled(model, backend="inductor")
        for _ in range(2):
            batch = torch.randn(4, 3)
            torch.testing.assert_close(step(faster, batch), step(twin, batch), rtol=0, atol=1e-5)
    assert model[1].total_circuits == twin[1].total_circuits
    assert model[1].get_rng_state() == twin[1].get_rng_state()


# Of features, weights and shots each meets each of the others.
# Each type and both ways of shots are quick.
TYPES = [
    pytest.param(dtype, weights, (None, 20)[(i + j) % 2], marks=[] if j == i // 2 else [pytest.mark.slow])
    for i, dtype in enumerate([torch.float16, torch.bfloat16, torch.float32, torch.float64])
    for j, weights in enumerate([torch.float32, torch.float64])
]


@pytest.mark.filterwarnings("ignore:Got features or weights of dtype")
@pytest.mark.parametrize(("dtype", "weights", "shots"), TYPES, ids=str)
def test_types(dtype, weights, shots):
    model = layer(shots=shots).to(weights)
    twin = copy.deepcopy(model)
    batches = [torch.randn(4, 2).to(dtype).requires_grad_()]
    batches.append(batches[0].detach().clone().requires_grad_())
    values = [step(one, batch) for one, batch in zip((compiled(model), twin), batches, strict=True)]
    assert values[0].dtype == dtype
    torch.testing.assert_close(*values, rtol=0, atol=0)
    torch.testing.assert_close(batches[0].grad, batches[1].grad, rtol=0, atol=0)
    assert_same_model(model, twin)


def shapes() -> Iterator[Any]:
    """Each shape with shots and without; one of both is slow, in turn."""
    for place, lead in enumerate([(), (1,), (2, 3), (0,), (2, 0)]):
        for number, shots in enumerate((None, 20)):
            marks = [] if (place + number) % 2 == 0 else [pytest.mark.slow]
            yield pytest.param(lead, shots, marks=marks, id=f"{shots}-{lead}")


@pytest.mark.parametrize(("lead", "shots"), list(shapes()))
def test_shapes(lead, shots):
    assert_compiles(layer(shots=shots), torch.randn(*lead, 2))


@pytest.mark.parametrize("shots", [None, 20])
def test_circuits_that_lack_something(shots):
    """Where there are no features they are left out or have no columns, in turn."""
    circuit, bare = QuantumCircuit(1), QuantumCircuit(1)
    circuit.ry(A[0], 0)
    circuit.rx(A[1], 0)
    bare.h(0)
    only_weights = QuantumLayer(circuit, weights=A, seed=1, shots=shots)
    nothing = QuantumLayer(bare, seed=1, shots=shots)
    no_columns = (torch.zeros(3, 0),)
    for model, *tensors in (
        (only_weights, *(() if shots else no_columns)),
        (QuantumLayer(circuit, inputs=A, seed=1, shots=shots), torch.rand(3, 2)),
        (nothing, *(no_columns if shots else ())),
    ):
        model.zero_grad()
        twin = copy.deepcopy(model)
        torch.testing.assert_close(step(compiled(model), *tensors), step(twin, *tensors), rtol=0, atol=0)
        assert_same_model(model, twin)


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"shots": 20}, {"gradient": "parameter_shift"}], ids=str
)
def test_expressions(options):
    assert_compiles(
        double_layer(**options), torch.rand(4, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("frozen", "shots"),
    [
        (False, None),
        (True, 20),
        *(pytest.param(frozen, shots, marks=pytest.mark.slow) for frozen, shots in ((False, 20), (True, None))),
    ],
)
def test_evaluation(shots, frozen):
    model = layer(shots=shots).requires_grad_(not frozen)
    twin = copy.deepcopy(model)
    faster = compiled(model)
    with torch.set_grad_enabled(frozen):
        for _ in range(2):
            torch.testing.assert_close(faster(torch.ones(3, 2)), twin(torch.ones(3, 2)), rtol=0, atol=0)
    assert_same_model(model, twin)


def test_settings_that_change():
    model = layer()
    faster, x = compiled(model), torch.rand(4, 2)
    exact = step(faster, x)
    model.shots = 10
    assert not torch.equal(step(faster, x), exact)
    assert model.last_run.shots == 4 * 10
    model.shots = None
    model.backend = "aer"
    torch.testing.assert_close(step(faster, x), exact)
    assert model.last_run.circuits == 4
    model.backend = None
    model.requires_grad_(False)
    assert not faster(x).requires_grad
    model.requires_grad_(True)
    model.zero_grad()
    step(faster, x)
    assert model.weights["b"].grad is not None


def test_calls_with_the_same_features_are_measurements_of_their_own():
    """Of one layer twice, and of another."""
    one, other = layer(shots=1000), layer(shots=1000)
    other.load_state_dict(one.state_dict())
    other.set_rng_state({"entropy": [2], "position": 0})
    values = compiled(lambda x: [one(x), one(x), other(x)])(torch.rand(8, 2))
    assert (one.total_circuits, other.total_circuits) == (2 * 8, 8)
    for first, second in itertools.combinations(values, 2):
        difference = (first - second).flatten()
        assert bool((difference != 0).any())
        assert difference.abs().max() < 10 / np.sqrt(1000)


@pytest.mark.parametrize(
    "through", [pytest.param(copy.deepcopy, marks=pytest.mark.slow), lambda one: pickle.loads(pickle.dumps(one))]
)
def test_copies_are_layers_of_their_own(through):
    model = layer(shots=20)
    step(compiled(model), torch.rand(4, 2))
    assert_compiles(through(model), torch.rand(4, 2))
    assert model.total_circuits == through(model).total_circuits


@pytest.mark.parametrize("shots", [None, 20])
def test_graphs_that_are_kept(shots):
    model = layer(shots=shots)
    twin = copy.deepcopy(model)
    for one in (compiled(model), twin):
        loss = one(torch.ones(4, 2)).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same_model(model, twin)
    del loss, one


@pytest.mark.parametrize("shots", [None, 20])
def test_checkpoints(shots):
    model = nn.Sequential(nn.Linear(3, 2), layer(shots=shots))
    twin, x = copy.deepcopy(model), torch.rand(4, 3)
    for one in (model, twin):
        call = lambda x, one=one: checkpoint(one, x, use_reentrant=False)  # noqa: E731
        step(compiled(call) if one is model else call, x)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
    assert model[1].total_circuits == twin[1].total_circuits
    assert model[1].get_rng_state() == twin[1].get_rng_state()


def test_what_is_not_finite_is_refused_and_the_model_goes_on():
    for options in ({}, {"shots": 20}):
        model = layer(**options)
        faster = compiled(model)
        with pytest.raises(ValueError, match="is nan in row 1"):
            faster(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
        assert (model.total_circuits, model.get_rng_state()["position"]) == (0, 0)
        faster(torch.zeros(2, 2))


def test_what_cannot_be_in_a_graph():
    x = torch.rand(4, 2, requires_grad=True)
    (first,) = torch.autograd.grad(compiled(layer())(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(first.sum(), x)
    del first


@forward_mode
@pytest.mark.slow
@pytest.mark.parametrize("transform", ["vmap", "jacrev"])
def test_transforms_within_torch_compile(transform):
    """They leave the graph, as they do with all that torch.compile cannot look into."""
    model = layer().double()
    function = {"vmap": torch.vmap(model), "jacrev": torch.vmap(torch.func.jacrev(model))}[transform]
    x = torch.rand(3, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.compile(function, backend="aot_eager")(x)
    torch.testing.assert_close(got, function(x))


# ------------------------------------------------------------------------------------------------- torch.export, make_fx


def exported(model: nn.Module, *, strict: bool = False) -> Any:
    rows = torch.export.Dim("rows", min=2, max=100)
    x = torch.rand(4, 3 if isinstance(model, nn.Sequential) else 2)
    return torch.export.export(model, (x,), dynamic_shapes=({0: rows},), strict=strict)


def saved(program: Any) -> bytes:
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def loaded(contents: bytes) -> nn.Module:
    return torch.export.load(io.BytesIO(contents)).module()


@pytest.mark.parametrize(
    ("strict", "options"),
    [
        *((False, options) for options in ({}, {"shots": 50}, {"probabilities": [0]}, {"backend": "aer"})),
        *((True, options) for options in ({}, {"shots": 50})),
    ],
    ids=str,
)
def test_export(options, strict):
    model = hybrid(**options)
    program = exported(model, strict=strict)
    for graph in (program.module(), loaded(saved(program))):
        start = copy.deepcopy(model[1].get_rng_state())
        for rows in (2, 7):
            x = torch.rand(rows, 3)
            model[1].set_rng_state(start)
            got = step(graph, x)
            gradients = {name: p.grad for name, p in graph.named_parameters()}
            model[1].set_rng_state(start)
            model.zero_grad()
            torch.testing.assert_close(step(model, x), got, rtol=0, atol=0)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=0)
            graph.zero_grad()


@pytest.mark.parametrize("shots", [None, 100_000])
def test_what_is_trained_may_differ_from_when_the_graph_was_made(shots):
    model = layer(shots=shots)
    with torch.no_grad():
        graph = exported(model).module()
    x = torch.rand(4, 2, requires_grad=True)
    graph.requires_grad_(True)
    graph(x).sum().backward()
    expected = layer().requires_grad_(True)
    expected.load_state_dict(model.state_dict())
    (by_x, *by_weights) = torch.autograd.grad(expected(x).sum(), [x, *expected.parameters()])
    got = dict(graph.named_parameters())
    for one, other in zip([x, got["weights.a"], got["weights.b"]], [by_x, *by_weights], strict=True):
        torch.testing.assert_close(one.grad, other, rtol=0, atol=1e-6 if shots is None else 0.05)


def test_a_graph_that_is_older_than_the_settings_says_so():
    model = layer()
    graph = exported(model).module()
    model.shots = 10
    with pytest.raises(RuntimeError, match="make the graph again"):
        graph(torch.rand(4, 2))
    model.shots = None
    graph(torch.rand(4, 2))


@forward_mode
@pytest.mark.parametrize("options", [{}, {"shots": 10}], ids=str)
def test_forward_mode_through_a_graph_is_refused(options):
    graph = exported(layer(**options).requires_grad_(False)).module()
    x = torch.rand(4, 2)
    with pytest.raises(NotImplementedError, match="call the model that the graph was made from"):
        torch.func.jvp(graph, (x,), (x,))


def first_in_a_process() -> tuple[bytes, np.ndarray]:
    torch.manual_seed(0)
    model = hybrid()
    return saved(exported(model)), model(torch.ones(2, 3)).detach().numpy()


def before_and_after_the_same_model(contents: bytes) -> tuple[str, np.ndarray]:
    with pytest.raises(RuntimeError) as refused:
        loaded(contents)(torch.ones(2, 3))
    model = hybrid()
    values: np.ndarray = loaded(contents)(torch.ones(2, 3)).detach().numpy()
    assert model[1].total_circuits == 2
    return str(refused.value), values


@pytest.mark.slow
def test_other_processes():
    forked()
    contents, values = in_child("forkserver", first_in_a_process)
    refused, again = in_child("forkserver", functools.partial(before_and_after_the_same_model, contents))
    assert "make the same model first" in refused
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("options", [{}, {"shots": 50}], ids=str)
def test_make_fx(options, mode):
    model = layer(**options)

    def gradient(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = torch.func.functional_call(model, {"weights.a": a, "weights.b": b}, (x,))
        return values, *torch.autograd.grad(values.sum(), [x, a])

    tensors = [torch.rand(4, 2), *(p.detach().clone() for p in model.parameters())]
    tensors = [t.requires_grad_() for t in tensors]
    graph = make_fx(gradient, tracing_mode=mode, _allow_non_fake_inputs=True)(*tensors)
    doubled = [2 * t.detach().clone().requires_grad_() for t in tensors]
    for part in doubled:
        part.retain_grad()
    start = copy.deepcopy(model.get_rng_state())
    got = graph(*doubled)
    model.set_rng_state(start)
    torch.testing.assert_close(got, gradient(*doubled), rtol=0, atol=0)
    del got, graph


# ------------------------------------------------------------------------------------------------- operators


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("options", [{}, {"probabilities": [0]}, {"gradient": "parameter_shift"}], ids=str)
def test_opcheck(options, monkeypatch):
    made = layer(**options)
    features = torch.rand(4, 2)
    weights = [p.detach().clone() for p in made.parameters()]
    trained = [True, True, False]
    if options:
        groups = list(made.program.angle_map(features.double(), [weight.double() for weight in weights]))
        inputs, others = groups, ([], torch.zeros((), dtype=torch.int64), made._name, None, True, trained)
        forward, backward, needed = OPERATORS.values.default, OPERATORS.gradients.default, [True] * len(groups)
        arguments: tuple[Any, ...] = (groups,)
        torch.library.opcheck(OPERATORS.turn.default, (torch.zeros((), dtype=torch.int64),))
    else:
        inputs, others = [features, *weights], (made._name, True, trained)
        forward, backward, needed = OPERATORS.plain_values.default, OPERATORS.plain_gradients.default, trained
        arguments = features, weights
    values, token = forward(*arguments, *others)
    records = [operators._behind(token)]
    with monkeypatch.context() as patch:  # copies of tokens, which opcheck makes, stand for nothing
        patch.setattr(operators, "_behind", lambda _: records[0])
        torch.library.opcheck(backward, (torch.ones_like(values), *arguments, token, needed), test_utils=UTILS)
        for tensor in inputs:
            tensor.requires_grad_()
        torch.library.opcheck(forward, (*arguments, *others), test_utils=UTILS)
    records.clear()


def test_a_token_from_elsewhere():
    made = layer()
    weights, needed, x = [p.detach() for p in made.parameters()], [True, True, False], torch.rand(4, 2)
    values, token = OPERATORS.plain_values(x, weights, made._name, True, needed)
    with pytest.raises(RuntimeError, match="run forward and backward in one"):
        OPERATORS.plain_gradients(torch.ones_like(values), x, weights, token.clone(), needed)
    with pytest.raises(RuntimeError, match="which this process does not have"):
        OPERATORS.plain_values(x, weights, "layer of nobody", True, needed)
    del token


def test_names_tell_circuits_apart():
    """Another process may make other layers first: of the same shape, but not of the same name."""
    circuit, inputs, weights = dressed(3, 2)
    other = circuit.copy()
    other.data[-1] = other.data[-1].replace(qubits=[circuit.qubits[0]])
    layers = [
        QuantumLayer(one, inputs=inputs, weights=weights, backend=backend)
        for one, backend in ((circuit, None), (circuit, "aer"), (other, None))
    ]
    prints = [made._name.split(" ", 2)[2] for made in layers]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("options", [{}, {"shots": 20}], ids=str)
def test_tokens_go_with_their_tensors(options):
    faster = compiled(layer(**options))
    losses = [faster(torch.rand(4, 2)).sum() for _ in range(3)]
    assert len(operators._kept) == 3
    losses.pop().backward()
    losses.clear()
    gc.collect()
    assert not operators._kept


def test_hardware_makes_one_job_a_step(monkeypatch):
    pytest.importorskip("qiskit_ibm_runtime")
    from qiskit_torch_bridge.backends.ibm.device import LocalDevice

    jobs, submit = [], LocalDevice.submit
    monkeypatch.setattr(LocalDevice, "submit", lambda *args, **kwargs: (jobs.append(1), submit(*args, **kwargs))[1])
    circuit, inputs, weights = dressed(2, 1)
    model = QuantumLayer(circuit, inputs=inputs, weights=weights, backend="ibm:fake_manila", shots=20, seed=1)
    twin = copy.deepcopy(model)
    step(compiled(model), torch.ones(2, 2))
    assert len(jobs) == 1
    step(twin, torch.ones(2, 2))
    assert_same_model(model, twin)
