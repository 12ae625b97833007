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
        backend: As in :class:`qiskit_torch_bridge.QuantumLayer`.
        shots: As there.
        gradient: As there.
        seed: As there; the classical layers are initialised by PyTorch, from its global generator.
        allocation: As there.

    Attributes:
        pre: ``nn.Linear(num_features, num_qubits)``.
        quantum: The :class:`qiskit_torch_bridge.QuantumLayer`.
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
        allocation: str = "uniform",
    ) -> None:
        super().__init__()
        for name, size in (("num_features", num_features), ("num_outputs", num_outputs)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, expected at least 1.")
        if not 0 <= weight_spread < math.inf:
            raise ValueError(f"weight_spread: got {weight_spread}, expected a number from 0, in radians.")
        circuit, inputs, weights = dressed(num_qubits, depth)
        self.pre = nn.Linear(num_features, num_qubits)
        self.quantum = QuantumLayer(
            circuit,
            inputs=inputs,
            weights=weights,
            backend=backend,
            shots=shots,
            gradient=gradient,
            seed=seed,
            allocation=allocation,
            init="normal",
        )
        self.post = nn.Linear(num_qubits, num_outputs)
        with torch.no_grad():
            self.quantum.get_parameter("weights").mul_(weight_spread / 0.01)  # "normal": a standard deviation of 0.01

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
                ``post_net.bias`` (with underscores or dots, and with or without a prefix such as ``fc.``: the whole
                network's state will do), and ``q_params``: 15 rows of a weight a qubit, flattened or not, of which the
                first is not used and the next ``depth`` are the circuit's.

        Raises:
            ValueError: If an array is missing or has another shape; nothing has changed then.
        """
        wanted = {f"{part}.{kind}": f"{part}_net.{kind}" for part in ("pre", "post") for kind in ("weight", "bias")}
        wanted["quantum.weights"] = "q_params"
        found = {mine: _named(theirs, weights) for mine, theirs in wanted.items()}
        missing = sorted(wanted[mine] for mine, array in found.items() if array is None)
        if missing:
            raise ValueError(
                f"weights: got {', '.join(map(str, weights)) or 'none'}; expected {', '.join(missing)} among them: the head "
                "of the authors' network."
            )
        state = self.state_dict()
        loaded = {mine: torch.as_tensor(array) for mine, array in found.items()}
        num_qubits, num_weights = self.pre.out_features, state["quantum.weights"].numel()
        loaded["quantum.weights"] = loaded["quantum.weights"].flatten()[num_qubits : num_qubits + num_weights]
        for mine, tensor in loaded.items():
            if tensor.shape != state[mine].shape:
                raise ValueError(
                    f"{wanted[mine]}: got shape {tuple(tensor.shape)}, expected {tuple(state[mine].shape)}; make the "
                    "network with the features, outputs, qubits and depth of the published one."
                )
        self.load_state_dict(loaded, strict=False)


def _named(name: str, weights: Mapping[str, Any]) -> Any:
    """The array of that name, dots or underscores in it, with or without a prefix; None if there is none."""
    for given, array in weights.items():
        if f".{given}".replace("_net_", "_net.").endswith(f".{name}"):
            return array
    return None
