"""What goes on top of the frozen features: a dressed quantum circuit, or its classical twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qiskit_torch_bridge import DressedQuantumNet

from ..common.workplace import layer_options


def new_head(quantum: bool, num_features: int, num_classes: int, settings: Mapping[str, Any]) -> nn.Module:
    """A head from features (N, num_features) to the classes' scores (N, num_classes).

    The classical twin has a layer of as many tanh units in place of the circuit of ``num_qubits`` qubits: with the published
    settings for ants and bees 2082 parameters, where the dressed circuit has 2086.
    """
    qubits = settings["num_qubits"]
    if quantum:
        return DressedQuantumNet(
            num_features,
            num_classes,
            num_qubits=qubits,
            depth=settings["depth"],
            weight_spread=settings["weight_spread"],
            **layer_options(settings),
        )
    return nn.Sequential(
        nn.Linear(num_features, qubits),
        nn.Tanh(),
        nn.Linear(qubits, qubits),
        nn.Tanh(),
        nn.Linear(qubits, num_classes),
    )
