"""What is measured, a training step as every library can build it: gates, the noise after them, and the numbers to put in.

What adapters need to make a :class:`Step` of it is here too; PyTorch and Qiskit are imported where that is asked for.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import count, repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector


class Gate(NamedTuple):
    """One gate: ``h``, ``cx`` (control first), ``cz``; or ``rx``, ``ry``, ``rz``, which take an angle.

    Attributes:
        name: Which.
        qubits: That it acts on.
        source: Where its angle is from: ``"input"`` or ``"weight"``, or ``"fixed"`` for one without gradients; empty for a
            gate without an angle.
        number: Which column of the inputs, which weight, or which fixed angle.
    """

    name: str
    qubits: tuple[int, ...]
    source: Literal["input", "weight", "fixed", ""] = ""
    number: int = 0


@dataclass(frozen=True)
class Depolarising:
    r"""Noise after each gate, on the gate's own k qubits: :math:`\rho \to (1-p)\rho + p\,\mathrm{tr}_k(\rho) \otimes I/2^k`.

    This is Aer's convention. Of the :math:`4^k` Pauli strings, each but the identity then acts with the probability
    :math:`p/4^k`.

    Attributes:
        one_qubit: p after gates on one qubit, at least 0 and below 1.
        two_qubit: p after gates on two qubits.

    Raises:
        ValueError: If a strength is out of range.
    """

    one_qubit: float
    two_qubit: float

    def __post_init__(self) -> None:
        for name, strength in vars(self).items():
            if not 0 <= strength < 1:
                raise ValueError(f"{name}: got {strength}, expected a strength of at least 0 and below 1.")

    def after(self, qubits: tuple[int, ...]) -> float:
        """The strength p after a gate on these qubits."""
        return self.one_qubit if len(qubits) == 1 else self.two_qubit

    def pauli_probabilities(self, qubits: tuple[int, ...]) -> np.ndarray:
        """Shape (4**k,): the probabilities of the Pauli strings on a gate's k qubits, the identity first."""
        number = 4 ** len(qubits)
        others = np.full(number - 1, self.after(qubits) / number)
        return np.array([1 - others.sum(), *others])


@dataclass(frozen=True, eq=False)
class Problem:
    """One training step, the same for all systems: values of Z on some qubits, and gradients of their weighted sum.

    Attributes:
        num_qubits: How many qubits there are.
        gates: In the order in which they act.
        measured: The qubits whose Z is an output, in the order of the outputs.
        inputs: Shape (batch, I), float64.
        weights: Shape (W,), float64.
        upstream: Shape (batch, outputs), float64: the gradient by the outputs that backward starts from.
        wants_input_gradients: Whether the inputs' gradients are part of the step.
        fixed: Angles without gradients, such as those of layers that are not trained.
        noise: What follows each gate; None: nothing.
    """

    num_qubits: int
    gates: tuple[Gate, ...]
    measured: tuple[int, ...]
    _: KW_ONLY
    inputs: np.ndarray
    weights: np.ndarray
    upstream: np.ndarray
    wants_input_gradients: bool
    fixed: tuple[float, ...] = ()
    noise: Depolarising | None = None

    @property
    def batch(self) -> int:
        """The number of rows of inputs."""
        return len(self.inputs)


@dataclass(frozen=True)
class Step:
    """A training step of one library on one problem, which can be repeated.

    Attributes:
        take: Does one step; gives values, the inputs' gradients and the weights', each an array or tensor, or None.
        kernel_seconds: The seconds spent so far inside the library's own kernel, where somebody counts them.
    """

    take: Callable[[], tuple[Any, Any, Any]]
    kernel_seconds: Callable[[], float] | None = None


def torch_step(
    function: Callable[[torch.Tensor], torch.Tensor], problem: Problem, weights: torch.Tensor | None
) -> Step:
    """A step through torch: forward, then backward from the problem's upstream gradient.

    Args:
        function: From inputs of shape (batch, I) to values of shape (batch, outputs).
        problem: Gives inputs and upstream gradient.
        weights: The leaf tensor that collects the weights' gradients; None where there are none.
    """
    import torch

    inputs = torch.tensor(problem.inputs, requires_grad=problem.wants_input_gradients)
    upstream = torch.tensor(problem.upstream)

    def take() -> tuple[Any, Any, Any]:
        inputs.grad = None
        if weights is not None:
            weights.grad = None
        values = function(inputs)
        values.backward(upstream.to(values.dtype))
        return values.detach(), inputs.grad, None if weights is None else weights.grad

    return Step(take)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function or layer as one graph of ``torch.compile``.

    Raises:
        ImportError: If there is no C++ compiler, which says that what it takes is absent.
    """
    import torch

    if not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl"))):
        raise ImportError("torch.compile needs a C++ compiler: install g++ or clang++, or name one in CXX.")
    return torch.compile(function, fullgraph=True)


def played(problem: Problem, inputs: Any, weights: Any) -> Iterator[tuple[str, tuple[int, ...], list[Any]]]:
    """Each gate's name, its qubits, and the angle that it takes, if any, in a list.

    Args:
        problem: Whose gates.
        inputs: What stands for the inputs in some library's terms, by column.
        weights: What stands for the weights.
    """
    numbers = {"input": inputs, "weight": weights, "fixed": problem.fixed}
    for gate in problem.gates:
        yield gate.name, gate.qubits, [numbers[gate.source][gate.number]] if gate.source else []


def quantum_circuit(problem: Problem) -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """The problem's circuit in Qiskit's terms, with its inputs and weights, for every system that is built on Qiskit."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    circuit = QuantumCircuit(problem.num_qubits)
    inputs, weights = ParameterVector("x", problem.inputs.shape[1]), ParameterVector("w", len(problem.weights))
    for name, qubits, angle in played(problem, inputs, weights):
        getattr(circuit, name)(*angle, *qubits)
    return circuit, inputs, weights


def z_labels(problem: Problem) -> list[str]:
    """Z on each measured qubit, as Pauli labels: qubit 0 is the last letter."""
    identity = "I" * problem.num_qubits
    return [identity[q + 1 :] + "Z" + identity[:q] for q in problem.measured]


def textbook(*, batch: int, seed: int) -> Problem:
    """One qubit, H and RY of the input; the inputs' gradient. The Qiskit textbook's hybrid network."""
    gates = [Gate("h", (0,)), Gate("ry", (0,), "input")]
    return _problem(1, gates, (0,), batch, seed, input_gradients=True)


def dressed(*, depth: int, batch: int, seed: int) -> Problem:
    """Four qubits: H and RY(input), then layers of CNOT 0-1, 2-3, 1-2 and RY(weight); all gradients.

    The circuit of Mari et al., arXiv:1912.08278, with depth 6.
    """
    qubits = range(4)
    gates = [Gate("h", (q,)) for q in qubits] + [Gate("ry", (q,), "input") for q in qubits]
    for _ in range(depth):
        gates += [Gate("cx", pair) for pair in ((0, 1), (2, 3), (1, 2))]
        gates += [Gate("ry", (q,), "weight") for q in qubits]
    return _problem(4, gates, tuple(qubits), batch, seed, input_gradients=True)


def layerwise(
    *, num_qubits: int, layers: int, batch: int, seed: int, outputs: int = 1, trained: int | None = None
) -> Problem:
    """RX(input), then layers of a random rotation on each qubit and a ladder of CZ; Z of the last; weights' gradients.

    The circuit of Skolik et al., arXiv:2006.14904. The seed draws the rotations too.

    Args:
        num_qubits: Qubits.
        layers: Layers.
        batch: Rows of inputs.
        seed: Draws rotations and numbers.
        outputs: Of how many qubits Z is measured, the last ones.
        trained: How many layers are trained, the first ones; the others have fixed angles. None: all.
    """
    rng = np.random.default_rng(seed)
    gates = [Gate("rx", (q,), "input") for q in range(num_qubits)]
    for layer in range(layers):
        source: Literal["weight", "fixed"] = "weight" if trained is None or layer < trained else "fixed"
        gates += [Gate(("rx", "ry", "rz")[rng.integers(3)], (q,), source) for q in range(num_qubits)]
        gates += [Gate("cz", (q, q + 1)) for q in range(num_qubits - 1)]
    return _problem(num_qubits, gates, tuple(range(num_qubits))[-outputs:], batch, seed)


def entangling(*, num_qubits: int, layers: int, batch: int, seed: int) -> Problem:
    """RX(input), then layers of RZ RY RZ on each qubit and a ring of CNOT; Z of each; weights' gradients.

    Raises:
        ValueError: If there are fewer than two qubits, on which there is no ring.
    """
    if num_qubits < 2:
        raise ValueError(f"num_qubits: got {num_qubits}, expected at least 2, for a ring of CNOT.")
    gates = [Gate("rx", (q,), "input") for q in range(num_qubits)]
    for _ in range(layers):
        gates += [Gate(name, (q,), "weight") for q in range(num_qubits) for name in ("rz", "ry", "rz")]
        gates += [Gate("cx", (q, (q + 1) % num_qubits)) for q in range(num_qubits)]
    return _problem(num_qubits, gates, tuple(range(num_qubits)), batch, seed)


def brickwork(*, num_qubits: int, layers: int, batch: int, seed: int) -> Problem:
    """RY(input), then layers of RY and RZ on each qubit, CNOT of pairs and of those between; Z of each; weights' gradients.

    After L layers an output depends on 4 L qubits at most, however many there are.
    """
    qubits = range(num_qubits)
    gates = [Gate("ry", (q,), "input") for q in qubits]
    for _ in range(layers):
        gates += [Gate(name, (q,), "weight") for name in ("ry", "rz") for q in qubits]
        gates += [Gate("cx", (q, q + 1)) for first in (0, 1) for q in qubits[first:-1:2]]
    return _problem(num_qubits, gates, tuple(qubits), batch, seed)


def _problem(
    num_qubits: int, gates: list[Gate], measured: tuple[int, ...], batch: int, seed: int, input_gradients: bool = False
) -> Problem:
    """With angles numbered in the order of the gates, and inputs, weights and upstream gradient drawn from the seed."""
    rng = np.random.default_rng([seed, 1])
    numbers = {"input": count(), "weight": count(), "fixed": count(), "": repeat(0)}
    columns = Counter(gate.source for gate in gates)
    return Problem(
        num_qubits,
        tuple(gate._replace(number=next(numbers[gate.source])) for gate in gates),
        measured,
        inputs=rng.uniform(-np.pi / 2, np.pi / 2, (batch, columns["input"])),
        weights=rng.uniform(0, 2 * np.pi, columns["weight"]),
        upstream=rng.standard_normal((batch, len(measured))),
        wants_input_gradients=input_gradients,
        fixed=tuple(rng.uniform(0, 2 * np.pi, columns["fixed"]).tolist()),
    )
