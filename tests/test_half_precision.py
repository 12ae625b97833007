"""Angles in half precision lose digits: each layer says so, once."""

import warnings
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter

from qiskit_torch_bridge import QuantumLayer


def make_layer(**options: Any) -> QuantumLayer:
    x, w = Parameter("x"), Parameter("w")
    qc = QuantumCircuit(1)
    qc.ry(x, 0)
    qc.rx(w, 0)
    return QuantumLayer(qc, inputs=[x], weights=[w], **({"seed": 1} | options))


def plain(layer: QuantumLayer, dtype: torch.dtype) -> torch.Tensor:
    return layer(torch.full((2, 1), 3.1, dtype=dtype))


def autocast(layer: QuantumLayer, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cpu", dtype):
        return torch.nn.Sequential(torch.nn.Linear(1, 1), layer)(torch.full((2, 1), 3.1))


def weights(layer: QuantumLayer, dtype: torch.dtype) -> torch.Tensor:
    return layer.to(dtype)(torch.full((2, 1), 3.1))


@pytest.mark.parametrize("call", [plain, autocast, weights])
@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, "3.09375"), (torch.float16, "3.09961")], ids=str)
def test_half_precision_is_said_once_a_layer(call, dtype, kept):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for layer in (make_layer(), make_layer()):
            for _ in range(3):
                call(layer, dtype)
    first, second = (str(warning.message) for warning in told)
    assert first == second
    assert f"dtype {dtype}" in first
    assert f"3.1 becomes {kept}" in first
    assert "enabled=False" in first
    assert call is autocast or told[0].filename == __file__


def test_the_remedy_for_half_precision_works():
    layer, before = make_layer(init=torch.zeros(1)), torch.nn.Linear(1, 1)
    features = torch.full((2, 1), 3.1)
    expected = layer(before(features))
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(layer(before(features)), expected)
