"""The dressed quantum circuit: a quantum layer between two classical ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .arguments import explain_misfits, require_dense, require_integer, require_number
from .circuits import dressed
from .gradients.rules import GradientRule
from .layer import QuantumLayer
from .mitigation.methods import Mitigation

__all__ = ["DressedQuantumNet"]


@explain_misfits
class DressedQuantumNet(nn.Module):
    """``Linear``, ``tanh``, times pi/2, a variational circuit, ``<Z>`` on each of its qubits, ``Linear``.

    The classical layers fit any number of features and classes to a circuit of few qubits. From Mari et al., "Transfer
    learning in hybrid classical-quantum neural networks" (arXiv 1912.08278), section 2.4. The circuit is
    :func:`qiskit_torch_bridge.circuits.dressed`. There are many options because those from ``backend`` on are handed on
    to the quantum layer.

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
        mitigation: As there.

    Attributes:
        pre: ``nn.Linear(num_features, num_qubits)``.
        quantum: The :class:`qiskit_torch_bridge.QuantumLayer`.
        post: ``nn.Linear(num_qubits, num_outputs)``.

    Raises:
        TypeError: If a size is no integer.
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
        mitigation: Sequence[Mitigation] = (),
    ) -> None:
        super().__init__()
        num_features = require_integer("num_features", num_features)
        num_outputs = require_integer("num_outputs", num_outputs)
        num_qubits, depth = require_integer("num_qubits", num_qubits), require_integer("depth", depth)
        if not 0 <= require_number("weight_spread", weight_spread) < math.inf:
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
            mitigation=mitigation,
            init="normal",
        )
        self.post = nn.Linear(num_qubits, num_outputs)
        with torch.no_grad():
            self.quantum.get_parameter("weights").mul_(weight_spread / 0.01)  # "normal": a standard deviation of 0.01

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From features of shape (..., num_features) to outputs of shape (..., num_outputs)."""
        return self.post(self.quantum_features(features))

    def quantum_features(self, features: torch.Tensor) -> torch.Tensor:
        """``<Z>`` on each qubit, shape (..., num_qubits): what a network that is truncated after the circuit gives."""
        return self.quantum(torch.tanh(self.pre(features)) * (math.pi / 2))

    def load_published(self, weights: Mapping[str, Any]) -> None:
        """Takes over a head that was trained with the authors' code (or PennyLane's demonstration of it).

        Args:
            weights: Arrays or tensors by their names there: ``pre_net.weight``, ``pre_net.bias``, ``post_net.weight``,
                ``post_net.bias`` (with underscores or dots, and with or without a prefix such as ``fc.``: the whole
                network's state will do), and ``q_params``: 15 rows of a weight a qubit, flattened or not, of which the
                first is not used and the next ``depth`` are the circuit's.

        Raises:
            TypeError: If this is no mapping, or an entry of it no array of real numbers.
            ValueError: If an array is missing, has another shape or is not finite; nothing has changed then.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"weights: got {type(weights).__name__}, expected a mapping of names to arrays; read a file first, with "
                "torch.load(path) or numpy.load(path)."
            )
        published = {f"{part}.{kind}": f"{part}_net.{kind}" for part in ("pre", "post") for kind in ("weight", "bias")}
        published["quantum.weights"] = "q_params"
        given = {key: _spellings(name, weights) for key, name in published.items()}
        if several := [f"{published[key]} ({', '.join(names)})" for key, names in given.items() if len(names) > 1]:
            raise ValueError(f"weights: got more than one of {'; '.join(several)}; expected a single head.")
        if missing := sorted(published[key] for key, names in given.items() if not names):
            raise ValueError(
                f"weights: got {', '.join(map(str, weights)) or 'none'}; expected {', '.join(missing)} among them: the head "
                "of the authors' network."
            )
        state = self.state_dict()
        loaded = {key: _numbers(published[key], weights[name]) for key, [name] in given.items()}
        num_qubits, num_weights = self.pre.out_features, state["quantum.weights"].numel()
        loaded["quantum.weights"] = loaded["quantum.weights"].flatten()[num_qubits : num_qubits + num_weights]
        for key, tensor in loaded.items():
            if tensor.shape != state[key].shape:
                raise ValueError(
                    f"{published[key]}: got shape {tuple(tensor.shape)}, expected {tuple(state[key].shape)}; make the "
                    "network with the features, outputs, qubits and depth of the published one."
                )
        self.load_state_dict(loaded, strict=False)


def _numbers(name: str, array: Any) -> torch.Tensor:
    try:
        numbers = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: got {type(array).__name__}, expected an array of numbers.") from None
    require_dense(name, numbers)
    if numbers.is_complex():
        raise TypeError(f"{name}: got dtype {numbers.dtype}, expected real numbers.")
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"{name}: got numbers that are not finite.")
    return numbers


def _spellings(name: str, weights: Mapping[str, Any]) -> list[str]:
    """The names that end in this one, dots or underscores in them."""
    return [given for given in weights if f".{given}".replace("_net_", "_net.").endswith(f".{name}")]
