"""The dressed quantum circuit: a quantum layer between two classical ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .circuits import dressed
from .gradients import GradientRule
from .layer import QuantumLayer

__all__ = ["DressedQuantumNet"]


class DressedQuantumNet(nn.Module):
    """``Linear``, ``tanh``, times pi/2, a variational circuit, ``<Z>`` on each of its qubits, ``Linear``.

    The classical layers fit any number of features and classes to a circuit of few qubits. From Mari et al., "Transfer
    learning in hybrid classical-quantum neural networks" (arXiv 1912.08278), section 2.4. The circuit is
    :func:`qiskit_torch_bridge.circuits.dressed`.

    Args:
        num_features: Features of an example.
        num_outputs: Outputs, such as the classes' scores (logits).
        num_qubits: Qubits of the circuit.
        depth: Its variational layers.
        weight_spread: Standard deviation of the circuit's initial weights, in radians.
        backend: As in :class:`~qiskit_torch_bridge.QuantumLayer`.
        shots: As there.
        gradient: As there.
        seed: As there; the classical layers are initialised by PyTorch, from its global generator.

    Attributes:
        pre: ``nn.Linear(num_features, num_qubits)``.
        quantum: The :class:`~qiskit_torch_bridge.QuantumLayer`.
        post: ``nn.Linear(num_qubits, num_outputs)``.

    Raises:
        ValueError: If a size is not positive, or backend, shots and rule do not fit each other.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        *,
        num_qubits: int = 4,
        depth: int = 6,
        weight_spread: float = 0.01,
        backend: Any = None,
        shots: int | None = None,
        gradient: str | GradientRule | None = None,
        seed: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_features", num_features), ("num_outputs", num_outputs)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, expected at least 1.")
        circuit, inputs, weights = dressed(num_qubits, depth)
        self.pre = nn.Linear(num_features, num_qubits)
        self.quantum = QuantumLayer(
            circuit, inputs=inputs, weights=weights, backend=backend, shots=shots, gradient=gradient, seed=seed, init="normal"
        )
        self.post = nn.Linear(num_qubits, num_outputs)
        if isinstance(self.quantum.weights, nn.Parameter):
            with torch.no_grad():
                self.quantum.weights.mul_(weight_spread / 0.01)  # "normal" has a standard deviation of 0.01

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From features of shape (..., num_features) to outputs of shape (..., num_outputs)."""
        outputs: torch.Tensor = self.post(self.quantum_features(features))
        return outputs

    def quantum_features(self, features: torch.Tensor) -> torch.Tensor:
        """``<Z>`` on each qubit, shape (..., num_qubits): what a network that is truncated after the circuit gives."""
        values: torch.Tensor = self.quantum(torch.tanh(self.pre(features)) * (math.pi / 2))
        return values

    def load_published(self, weights: Mapping[str, Any]) -> None:
        """Takes over a head that was trained with the authors' code (or PennyLane's demonstration of it).

        Args:
            weights: Arrays or tensors by their names there: ``pre_net.weight``, ``pre_net.bias``, ``post_net.weight``,
                ``post_net.bias`` (with underscores or dots, and with or without a prefix such as ``fc.``), and
                ``q_params``: 15 rows of a weight a qubit, flattened or not, of which the first is not used and the next
                ``depth`` are the circuit's.

        Raises:
            ValueError: If an array is missing or has another shape; nothing has changed then.
        """
        found = {name.rpartition("fc.")[2].replace("net_", "net."): torch.as_tensor(value) for name, value in weights.items()}
        state = self.state_dict()
        names = {f"{part}.{kind}": f"{part}_net.{kind}" for part in ("pre", "post") for kind in ("weight", "bias")}
        missing = sorted({*names.values(), "q_params"} - found.keys())
        if missing:
            raise ValueError(
                f"weights: got {', '.join(sorted(weights)) or 'none'}; expected {', '.join(missing)} among them: the head of "
                "the authors' network."
            )
        loaded = {mine: found[theirs] for mine, theirs in names.items()}
        used = self.pre.out_features * (1 + state["quantum.weights"].numel() // self.pre.out_features)
        loaded["quantum.weights"] = found["q_params"].flatten()[self.pre.out_features : used]
        for name, tensor in loaded.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"{names.get(name, 'q_params')}: got shape {tuple(tensor.shape)}, expected {tuple(state[name].shape)}; "
                    "make the network with the features, outputs, qubits and depth of the published one."
                )
        self.load_state_dict(loaded, strict=False)
