"""A quantum layer as a module: state, copies, weights, what it tells, and several processes."""

import copy
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import forked
from torch import nn
from torch.func import functional_call
from torch_layers import BACKENDS, RULE_ATOL, W, assert_close, closed_form, double_layer, features, make_layer

from qiskit_torch_bridge import QuantumLayer

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


def through_pickle(layer: QuantumLayer) -> QuantumLayer:
    copied: QuantumLayer = pickle.loads(pickle.dumps(layer))
    return copied


# Of ways to copy, what has run before, shots and backends each meets each of the others.
@pytest.mark.parametrize(
    ("make", "copier", "used", "shots"),
    [
        pytest.param(
            make,
            copier,
            used,
            (None, 50)[(place + used + (copier is through_pickle)) % 2],
            id=f"{name}-{used}-{copier.__name__}",
        )
        for place, (name, make) in enumerate(BACKENDS.items())
        for copier in (copy.deepcopy, through_pickle)
        for used in (False, True)
    ],
)
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
    front = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)]
    model = nn.Sequential(*front, make_layer(), nn.Linear(2, 10))
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
    assert_close(torch.load(tmp_path / "0.pt"), gradients_of(hybrid(), data_of(6)), 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_distributed_data_parallel_on_two_processes(tmp_path):
    forked()
    torch.multiprocessing.start_processes(
        distributed_worker, args=(2, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), gradients_of(hybrid(), data_of(6)), 1e-12)
