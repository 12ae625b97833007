"""What is measured: circuits as lists of gates that every library can build, with the numbers to put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

_ARRAYS = ("inputs", "weights", "upstream")


class Angle(NamedTuple):
    """Where a rotation takes its angle from.

    Attributes:
        source: ``"input"`` or ``"weight"``.
        number: Which column of the inputs, or which weight.
    """

    source: Literal["input", "weight"]
    number: int


class Gate(NamedTuple):
    """One gate: ``h``, ``cx`` (control first), ``cz``, or ``rx``, ``ry``, ``rz`` with an angle."""

    name: str
    qubits: tuple[int, ...]
    angle: Angle | None = None


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
    """

    num_qubits: int
    gates: tuple[Gate, ...]
    measured: tuple[int, ...]
    _: KW_ONLY
    inputs: np.ndarray
    weights: np.ndarray
    upstream: np.ndarray
    wants_input_gradients: bool

    @property
    def batch(self) -> int:
        """The number of rows of inputs."""
        return len(self.inputs)

    def to_message(self) -> dict[str, Any]:
        """As JSON can carry it, every number to the last bit."""
        return vars(self) | {name: getattr(self, name).tolist() for name in _ARRAYS}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Problem:
        """What :meth:`to_message` gave."""
        gates = tuple(
            Gate(name, tuple(qubits), None if angle is None else Angle(*angle))
            for name, qubits, angle in message["gates"]
        )
        arrays = {key: np.array(message[key], dtype=np.float64) for key in _ARRAYS}
        return cls(
            message["num_qubits"],
            gates,
            tuple(message["measured"]),
            wants_input_gradients=message["wants_input_gradients"],
            **arrays,
        )


def play(
    problem: Problem, make: dict[str, Callable[..., T]], inputs: Callable[[int], Any], weights: Callable[[int], Any]
) -> Iterator[T]:
    """Builds the problem's gates in some library's terms.

    Args:
        problem: Whose gates.
        make: For each gate's name, a function of the qubits, or of the angle and the qubits.
        inputs: Gives what stands for the input of that number.
        weights: Likewise for the weights.
    """
    for name, qubits, angle in problem.gates:
        if angle is None:
            yield make[name](*qubits)
        else:
            yield make[name]((inputs if angle.source == "input" else weights)(angle.number), *qubits)


def textbook(*, batch: int, seed: int) -> Problem:
    """One qubit, H and RY of the input; the inputs' gradient. The Qiskit textbook's hybrid network."""
    gates = [Gate("h", (0,)), Gate("ry", (0,), Angle("input", 0))]
    return _problem(1, gates, (0,), batch, seed, wants_input_gradients=True)


def dressed(*, depth: int, batch: int, seed: int) -> Problem:
    """Four qubits: H and RY(input), then layers of CNOT 0-1, 2-3, 1-2 and RY(weight); all gradients.

    The circuit of Mari et al., arXiv:1912.08278, with depth 6.
    """
    qubits = range(4)
    gates = [Gate("h", (q,)) for q in qubits] + [Gate("ry", (q,), Angle("input", q)) for q in qubits]
    for layer in range(depth):
        gates += [Gate("cx", pair) for pair in ((0, 1), (2, 3), (1, 2))]
        gates += [Gate("ry", (q,), Angle("weight", 4 * layer + q)) for q in qubits]
    return _problem(4, gates, tuple(qubits), batch, seed, wants_input_gradients=True)


def layerwise(*, num_qubits: int, layers: int, batch: int, seed: int) -> Problem:
    """RX(input), then layers of a random rotation on each qubit and a ladder of CZ; Z of the last; weights' gradients.

    The circuit of Skolik et al., arXiv:2006.14904. The seed draws the rotations too.
    """
    rng = np.random.default_rng(seed)
    gates = [Gate("rx", (q,), Angle("input", q)) for q in range(num_qubits)]
    for layer in range(layers):
        for qubit in range(num_qubits):
            gates.append(
                Gate(("rx", "ry", "rz")[rng.integers(3)], (qubit,), Angle("weight", num_qubits * layer + qubit))
            )
        gates += [Gate("cz", (q, q + 1)) for q in range(num_qubits - 1)]
    return _problem(num_qubits, gates, (num_qubits - 1,), batch, seed)


def entangling(*, num_qubits: int, layers: int, batch: int, seed: int) -> Problem:
    """RX(input), then layers of RZ RY RZ on each qubit and a ring of CNOT; Z of each; weights' gradients.

    Raises:
        ValueError: If there are fewer than two qubits, on which there is no ring.
    """
    if num_qubits < 2:
        raise ValueError(f"num_qubits: got {num_qubits}, expected at least 2, for a ring of CNOT.")
    gates = [Gate("rx", (q,), Angle("input", q)) for q in range(num_qubits)]
    weight = 0
    for _ in range(layers):
        for qubit in range(num_qubits):
            for name in ("rz", "ry", "rz"):
                gates.append(Gate(name, (qubit,), Angle("weight", weight)))
                weight += 1
        gates += [Gate("cx", (q, (q + 1) % num_qubits)) for q in range(num_qubits)]
    return _problem(num_qubits, gates, tuple(range(num_qubits)), batch, seed)


def _problem(
    num_qubits: int,
    gates: list[Gate],
    measured: tuple[int, ...],
    batch: int,
    seed: int,
    *,
    wants_input_gradients: bool = False,
) -> Problem:
    """With inputs, weights and upstream gradient drawn from the seed."""
    rng = np.random.default_rng([seed, 1])
    angles = {gate.angle for gate in gates if gate.angle is not None}
    columns = {source: sum(angle.source == source for angle in angles) for source in ("input", "weight")}
    return Problem(
        num_qubits,
        tuple(gates),
        measured,
        inputs=rng.uniform(-np.pi / 2, np.pi / 2, (batch, columns["input"])),
        weights=rng.uniform(0, 2 * np.pi, columns["weight"]),
        upstream=rng.standard_normal((batch, len(measured))),
        wants_input_gradients=wants_input_gradients,
    )
