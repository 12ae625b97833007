"""Heads on top of features: dressed circuits and their classical twins."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import dressed

from .transfer_settings import TransferSettings


def new_head(settings: TransferSettings, num_features: int, num_classes: int, **options: Any) -> nn.Module:
    """A head from features (N, num_features) to the classes' scores (N, num_classes).

    The classical twin has a layer of as many tanh units in place of the circuit of ``num_qubits`` qubits: with the published
    settings for ants and bees 2082 parameters, where the dressed circuit has 2086. With several crops of an image, a head
    also takes features (N, crops, num_features), and its scores are the logarithms of mean probabilities.

    Args:
        settings: Of one scheme.
        num_features: Features of an image.
        num_classes: Classes.
        options: Of the quantum layer, where there is one.
    """
    qubits, several = settings.num_qubits, settings.crops > 1
    if not settings.has_quantum_head:
        layers = (nn.Linear(num_features, qubits), nn.Tanh(), nn.Linear(qubits, qubits), nn.Tanh())
        return (_TwinOfCrops if several else nn.Sequential)(*layers, nn.Linear(qubits, num_classes))
    sizes: dict[str, Any] = {"num_qubits": qubits, "depth": settings.depth, "weight_spread": settings.weight_spread}
    net = (_CircuitOfCrops if several else DressedQuantumNet)(num_features, num_classes, **sizes, **options)
    if settings.reupload:
        circuit, inputs, weights = dressed(qubits, settings.depth, reupload=True)
        layer = QuantumLayer(circuit, inputs=inputs, weights=weights, **options)
        layer.load_state_dict(net.quantum.state_dict())
        net.quantum = layer
    return net


class _OfCrops(nn.Module):
    """Scores of features (N, num_features), or of several crops (N, crops, num_features): log of mean probabilities."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = super().forward(features)
        if features.ndim == 2:
            return scores
        return scores.log_softmax(dim=-1).logsumexp(dim=-2) - math.log(features.shape[-2])


class _CircuitOfCrops(_OfCrops, DressedQuantumNet):
    """With the names of a ``DressedQuantumNet``'s weights."""


class _TwinOfCrops(_OfCrops, nn.Sequential):
    """With the names of the plain twin's weights."""
