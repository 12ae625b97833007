r"""Amplitude encoding: features as the amplitudes of a state, by rotations whose angles are a torch function of them.

The state of :math:`n` qubits with real amplitudes :math:`x_0, ..., x_{2^n-1}` is made by a binary tree of rotations. A
node stands for an aligned block of 2, 4, 8 ... amplitudes; it turns one qubit by ``RY`` so that the two halves of the
block get their norms :math:`r`, and the halves of a block of two their amplitudes, signs included:

.. math:: \theta = 2 \operatorname{atan2}(r_{\text{right}}, r_{\text{left}}) .

The nodes of a level are one uniformly controlled rotation: single rotations between CNOT gates in the order of a Gray
code, by the Walsh-Hadamard transform of the level's angles (Möttönen et al., quant-ph/0407010). A complex amplitude is a
block of two features, its real and its imaginary part, and its angle is twice its phase; these are a diagonal gate, made
in the same way of ``RZ``. That takes :math:`2^n - 1` rotations and :math:`2^n - 2` CNOT gates, twice as many if complex.

So all rows share one circuit, and the angles are ordinary ones with shift rules. The scale of a row makes no difference.

**Derivatives.** They are exact also where single features are zero or change their sign, because a block of two has signed
amplitudes. A block that is zero altogether cannot be moved in all directions by its norm alone, and its own angles, those of
equal amplitudes, do nothing: it is taken as if its features moved together. Each of them gets the mean of their exact
derivatives, and everything else is exact. So it is with a block whose norm is less than 1e-8 of the row's, as rounding would
drown the derivatives by its angles: what is left out is what changes the block's direction, not its norm. With shots, the
standard error of a derivative by a feature grows as the norm of its block becomes small: a small block is turned by large
angles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nan, pi, sqrt
from typing import Any

import numpy as np
import torch
from qiskit.circuit import (
    AnnotatedOperation,
    CircuitError,
    CircuitInstruction,
    Gate,
    Instruction,
    InverseModifier,
    Operation,
    Parameter,
    ParameterExpression,
    ParameterVector,
    QuantumCircuit,
)
from torch.autograd.forward_ad import unpack_dual

from .refusals import is_parameterised
from .unrolling import is_defined

__all__ = ["AmplitudeEncoding", "Encoding", "angles_of", "derivatives_of", "encodings_spelled_out"]

_DEEPEST = 100
_SMALL = 1e-8
_MOST_LEVELS_AT_ONCE = 6


class AmplitudeEncoding(Gate):
    """Takes qubits in 0 to the state with the given amplitudes, up to their norm.

    Args:
        amplitudes: 2**n parameters, expressions or real numbers; amplitude j is that of basis state j, as in Qiskit.
        is_complex: Whether there are twice as many: the real part of each amplitude, followed by its imaginary part.

    Raises:
        ValueError: If they are not as many.
    """

    def __init__(self, amplitudes: Sequence[ParameterExpression | float], *, is_complex: bool = False) -> None:
        depth = (len(amplitudes) >> is_complex).bit_length() - 1
        if depth < 1 or len(amplitudes) != 1 << (depth + is_complex):
            expected = "4, 8, 16 ... real and imaginary parts" if is_complex else "2, 4, 8 ..."
            raise ValueError(f"amplitudes: got {len(amplitudes)} of them, expected {expected}; pad them with zeros.")
        super().__init__("amplitude_encoding", depth, list(amplitudes))

    def _define(self) -> None:
        if any(map(is_parameterised, self.params)):
            raise CircuitError("The rotations of an amplitude encoding are only known once its amplitudes are numbers.")
        angles = angles_of(torch.tensor([[float(amplitude) for amplitude in self.params]], dtype=torch.float64))
        if not bool(torch.isfinite(angles).all()):
            raise CircuitError(f"The amplitudes are {self.params}, expected finite numbers that are not all 0.")
        is_complex = len(self.params) > 1 << self.num_qubits
        self.definition = _rotations(self.num_qubits, angles[0].tolist(), is_complex=is_complex)

    def inverse(self, annotated: bool = False) -> AnnotatedOperation:
        """The inverse, which without its amplitudes cannot be written otherwise."""
        return AnnotatedOperation(self, InverseModifier())


@dataclass(frozen=True, eq=False)
class Encoding:
    """An amplitude encoding as rotations.

    Attributes:
        circuit: The rotations.
        angles: Parameters for the angles, in the order of :func:`angles_of`; of complex amplitudes one is a global phase.
        amplitudes: What the user's instruction takes.
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    amplitudes: tuple[ParameterExpression | float, ...]

    @classmethod
    def of(cls, operation: Operation, number: int) -> Encoding:
        """The encoding's rotations.

        Args:
            operation: An amplitude encoding.
            number: A number of its own for each within a circuit.
        """
        angles = tuple(ParameterVector(f"angle of amplitude encoding {number}", len(operation.params) - 1))
        circuit = QuantumCircuit(operation.num_qubits)
        if not isinstance(operation, AmplitudeEncoding):
            circuit.reset(circuit.qubits)  # as the other one does, so that qubits that are not in 0 are refused
        is_complex = len(operation.params) > 1 << operation.num_qubits
        circuit.compose(_rotations(operation.num_qubits, angles, is_complex=is_complex), inplace=True)
        return cls(circuit, angles, tuple(p if is_parameterised(p) else complex(p).real for p in operation.params))


def encodings_spelled_out(circuit: QuantumCircuit, number: int = 0) -> tuple[QuantumCircuit, list[Encoding]]:
    """The circuit, without loops, with its amplitude encodings as rotations, and these.

    Gates that are made of circuits with such encodings are spelled out too.

    Args:
        circuit: The user's.
        number: How many encodings there are before these.

    Raises:
        ValueError: If such a gate's definition does not fit it.
    """
    encodings: list[Encoding] = []
    if not any(map(_holds_encodings, circuit.data)):
        return circuit, encodings
    spelled = circuit.copy_empty_like()
    for instruction in circuit.data:
        if not _holds_encodings(instruction) or is_defined(instruction.operation):
            spelled.append(instruction, copy=False)
            continue
        part, of_part = _spelled_out(instruction.operation, number + len(encodings))
        spelled.compose(part, instruction.qubits, instruction.clbits, inplace=True)
        encodings += of_part
    return spelled, encodings


def _spelled_out(operation: Operation, number: int) -> tuple[QuantumCircuit, list[Encoding]]:
    if isinstance(operation, AnnotatedOperation):
        base, encodings = _spelled_out(operation.base_op, number)
        circuit = QuantumCircuit(operation.num_qubits)
        circuit.append(AnnotatedOperation(base.to_gate(), operation.modifiers), circuit.qubits)
        return circuit, encodings
    if _is_encoding(operation):
        encoding = Encoding.of(operation, number)
        return encoding.circuit, [encoding]
    return encodings_spelled_out(operation.definition, number)


def _holds_encodings(instruction: CircuitInstruction, depth: int = 0) -> bool:
    """Whether it is an amplitude encoding of parameters, or a gate that was made of a circuit with one."""
    if instruction.is_standard_gate():
        return False
    operation = instruction.operation
    while isinstance(operation, AnnotatedOperation):
        operation = operation.base_op
    if _is_encoding(operation) or depth > _DEEPEST:
        return True  # a gate that contains itself: is_defined will say so
    if getattr(operation, "base_class", None) not in (Gate, Instruction) or operation.definition is None:
        return False
    return any(_holds_encodings(inner, depth + 1) for inner in operation.definition.data)


def _is_encoding(operation: Operation) -> bool:
    """Of real numbers; also that of raw_feature_vector, which need not be installed."""
    kind = type(operation)
    is_peers = kind.__name__ == "ParameterizedInitialize" and kind.__module__.startswith("qiskit_machine_learning.")
    if not (is_peers or isinstance(operation, AmplitudeEncoding)):
        return False
    numbers = [complex(p) for p in operation.params if not is_parameterised(p)]
    return len(numbers) < len(operation.params) and all(number.imag == 0 for number in numbers)


def _rotations(num_qubits: int, angles: Sequence[Any], *, is_complex: bool) -> QuantumCircuit:
    """The rotations with these angles, which are numbered as the nodes of the tree are, level by level, from the root."""
    circuit = QuantumCircuit(num_qubits)
    for level in range(num_qubits):
        first = (1 << level) - 1
        target = num_qubits - 1 - level
        _multiplex(circuit, "ry", target, range(target + 1, num_qubits), angles[first : first + (1 << level)])
    if is_complex:
        first = (1 << num_qubits) - 1
        circuit.global_phase = angles[first] / 2
        for target in range(num_qubits):
            of_target = [-angle for angle in angles[first + (1 << target) : first + (2 << target)]]
            _multiplex(circuit, "rz", target, range(target), of_target)
    return circuit


def _multiplex(circuit: QuantumCircuit, rotation: str, target: int, controls: range, angles: Sequence[Any]) -> None:
    """A rotation whose angle depends on the controls, given the Walsh-Hadamard transform of its angles."""
    for step in range(len(angles)):
        getattr(circuit, rotation)(angles[step ^ (step >> 1)], target)
        if controls:
            changed = ((step + 1) & -(step + 1)).bit_length() - 1
            circuit.cx(controls[min(changed, len(controls) - 1)], target)


def angles_of(amplitudes: torch.Tensor) -> torch.Tensor:
    """The angles of an encoding, differentiable to any order.

    Args:
        amplitudes: Shape (N, F), float64, on the CPU; F is a power of 2.

    Returns:
        Shape (N, F - 1); NaN in rows that are zero or not finite.
    """
    if torch.compiler.is_compiling() or not _is_plain(amplitudes):
        return _by_torch(amplitudes)
    angles: torch.Tensor = _Angles.apply(amplitudes)
    return angles


def derivatives_of(amplitudes: np.ndarray) -> np.ndarray:
    """The derivatives of the angles by the amplitudes, shape (N, F - 1, F).

    Args:
        amplitudes: Shape (N, F).
    """
    rows, features = amplitudes.shape
    upstream = np.tile(np.eye(features - 1), (rows, 1))
    pulled = _pulled_back(_radii(np.repeat(amplitudes, features - 1, axis=0)), _transformed(upstream, np))
    return pulled.reshape(rows, features - 1, features)


class _Angles(torch.autograd.Function):
    """:func:`angles_of` of ordinary tensors, in a fraction of the time that PyTorch's own operators take."""

    @staticmethod
    def forward(ctx: Any, amplitudes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(amplitudes)
        ctx.radii = radii = _radii(amplitudes.detach().resolve_neg().numpy())
        angles = 2.0 * np.arctan2(radii[:, 2::2], radii[:, 1::2])
        inner, norms = radii[:, : angles.shape[1]], radii[:, 0]
        if not inner.all():
            angles[inner == 0] = pi / 2
        states = (norms > 0) & (norms < inf)
        if not states.all():
            angles[~states] = nan
        return torch.from_numpy(_transformed(angles, np))

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        (amplitudes,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not _is_plain(upstream):
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(_by_torch(amplitudes), amplitudes, upstream, create_graph=True)
            return gradient
        return torch.from_numpy(_pulled_back(ctx.radii, _transformed(upstream.resolve_neg().numpy(), np)))


# How many dispatch modes are at work: traces, for one. Where PyTorch does not say so, there may be one.
_count_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is nothing but numbers in memory: no transform or trace of PyTorch looks at what is done with it."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    is_ordinary = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not _count_modes()
    return is_ordinary and unpack_dual(tensor).tangent is None


def _radii(amplitudes: np.ndarray) -> np.ndarray:
    """Shape (N, 2 F - 1): the norm of each block from the whole to the pairs, then the amplitudes."""
    levels = [amplitudes]
    while levels[-1].shape[1] > 1:
        levels.append(np.hypot(levels[-1][:, ::2], levels[-1][:, 1::2]))
    return np.concatenate(levels[::-1], axis=1)


def _pulled_back(radii: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """From the gradient by the angles of the nodes, shape (N, F - 1), to the gradient by the amplitudes, (N, F)."""
    nodes = upstream.shape[1]
    inner, left, right = radii[:, :nodes], radii[:, 1::2], radii[:, 2::2]
    small = inner <= _SMALL * radii[:, :1]
    if small.any():
        zero = inner == 0
        cosines, sines = (np.where(zero, sqrt(0.5), half / np.where(zero, 1.0, inner)) for half in (left, right))
        turned = 2.0 * upstream / np.where(small, inf, inner)
    else:
        cosines, sines, turned = left / inner, right / inner, 2.0 * upstream / inner
    gradients = np.zeros(radii.shape)
    start, stop = 0, 1
    while stop <= nodes:
        level = slice(start, stop)
        grown, cosine, sine, turn = gradients[:, level], cosines[:, level], sines[:, level], turned[:, level]
        gradients[:, 2 * start + 1 : 2 * stop + 1 : 2] = grown * cosine - turn * sine
        gradients[:, 2 * start + 2 : 2 * stop + 2 : 2] = grown * sine + turn * cosine
        start, stop = stop, 2 * stop + 1
    return gradients[:, nodes:]


def _by_torch(amplitudes: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's operators, which are differentiable to any order, and known to all its transforms."""
    whole = amplitudes.detach()
    while whole.shape[1] > 1:
        whole = torch.hypot(whole[:, ::2], whole[:, 1::2])
    norms = amplitudes / whole  # a constant, as scale makes no difference; NaN where it is 0 or infinite
    levels: list[torch.Tensor] = []
    while norms.shape[1] > 1:
        left, right = norms[:, ::2], norms[:, 1::2]
        radius = torch.hypot(left, right).detach()
        small, zero = radius <= _SMALL, radius == 0
        cosine, sine = (
            torch.where(zero, sqrt(0.5), half.detach() / torch.where(zero, 1.0, radius)) for half in (left, right)
        )
        # What is not taken must have finite derivatives too, or NaN comes back from it.
        some_left, some_right = torch.where(small, cosine, left), torch.where(small, sine, right)
        levels.insert(0, 2.0 * torch.atan2(some_right, some_left))
        norms = torch.where(small, cosine * left + sine * right, torch.hypot(some_left, some_right))
    return _transformed(torch.cat(levels, dim=1), torch)


def _transformed(angles: Any, of: Any) -> Any:
    """The Walsh-Hadamard transform of each level, shape (N, F - 1); it is its own transpose.

    Args:
        angles: Of the nodes.
        of: The library that they are an array of: ``numpy`` or ``torch``.
    """
    levels = (angles.shape[1] + 1).bit_length() - 1
    if levels <= _MOST_LEVELS_AT_ONCE:
        return angles @ of.asarray(_walsh(levels))
    # Below the top levels, the transform of the low bits of a node's place, and that of the high ones.
    top = levels // 2
    size, rows = 1 << top, len(angles)
    low = of.asarray(_walsh(top + 1)[-size:, -size:])
    high = of.asarray(_walsh(levels - top))
    below = high @ (angles[:, size - 1 :].reshape(rows, len(high), size) @ low)
    above = angles[:, : size - 1] @ of.asarray(_walsh(top))
    return of.concatenate([above, below.reshape(rows, size * len(high))], axis=1)


def _walsh(levels: int) -> np.ndarray:
    """The transforms of some levels, each divided by its size, along the diagonal of one matrix."""
    if levels < len(_MATRICES):
        return _MATRICES[levels]
    matrix = np.zeros(((1 << levels) - 1,) * 2)
    block: np.ndarray = np.ones((1, 1))
    for level in range(levels):
        first = (1 << level) - 1
        matrix[first : 2 * first + 1, first : 2 * first + 1] = block
        block = np.kron([[0.5, 0.5], [0.5, -0.5]], block)
    return matrix


# All that up to 17 qubits need, made here: torch.compile warns of functions that keep what they return.
_MATRICES: list[np.ndarray] = []
for _levels in range(10):
    _MATRICES.append(_walsh(_levels))
