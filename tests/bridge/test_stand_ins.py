"""What stands for undocumented parts of PyTorch gives the same values and gradients, or refuses by name."""

import pytest
import torch
from problems import features, oracle, problem
from torch.func import grad, jacrev, jvp, vmap
from torch_layers import forward_mode

from qiskit_torch_bridge.bridge import transforms

NAMES = [name for name in transforms.STAND_INS if not name.startswith("_")]


def results(options: dict[str, object]) -> list[torch.Tensor]:
    """Values, first and second derivatives by backward and by the transforms of torch.func."""
    layer = problem("entangled_pair").layer(oracle("entangled_pair").weights, **options)
    inputs = features(oracle("entangled_pair"))
    weights = layer.weights.detach()

    def loss(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weights": weights}, (rows,)).square().sum()

    values = layer(inputs)
    first = torch.autograd.grad(values.square().sum(), layer.weights, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), layer.weights)[0]
    batched = torch.autograd.grad(
        layer(inputs)[0], layer.weights, torch.eye(values.shape[1]).to(values), is_grads_batched=True
    )
    transformed = [vmap(grad(loss), in_dims=(None, 0))(weights, inputs), jacrev(jacrev(loss))(weights, inputs)]
    return [values.detach(), first.detach(), second, *batched, *transformed]


@pytest.mark.parametrize("lost", [*NAMES, "all"])
@pytest.mark.parametrize("options", [{}, {"gradient": "parameter_shift"}, {"shots": 50, "seed": 1}], ids=str)
def test_the_same_numbers_come_out(options, lost, monkeypatch):
    expected = results(options)
    for name in transforms.STAND_INS if lost == "all" else [lost]:
        monkeypatch.setattr(transforms, name, transforms.STAND_INS[name])
    torch.testing.assert_close(results(options), expected)


@forward_mode
def test_forward_mode_is_refused_where_its_levels_cannot_be_counted(monkeypatch):
    layer = problem("entangled_pair").layer(oracle("entangled_pair").weights)
    inputs = features(oracle("entangled_pair"))
    _, along = jvp(layer, (inputs,), (torch.ones_like(inputs),))
    assert along.abs().max() > 0.01
    monkeypatch.setattr(transforms, "_interpreters", transforms.STAND_INS["_interpreters"])
    with pytest.raises(NotImplementedError, match="Forward mode"):
        jvp(layer, (inputs,), (torch.ones_like(inputs),))


def test_a_missing_part_is_stood_in_for():
    assert transforms._of_torch("keeps_graph", "_C.nothing_of_the_kind") is transforms.STAND_INS["keeps_graph"]
    assert transforms._of_torch("keeps_graph", "is_grad_enabled") is torch.is_grad_enabled


@pytest.mark.parametrize("of_a_transform", [False, True])
def test_tensors_of_transforms_are_told_by_their_memory(of_a_transform):
    seen = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        seen.append((transforms.is_wrapped(tensor), transforms.STAND_INS["is_wrapped"](tensor)))
        return tensor

    (vmap(look) if of_a_transform else look)(torch.ones(2))
    assert seen == [(of_a_transform, of_a_transform)]
