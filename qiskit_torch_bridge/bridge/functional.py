"""Compiled programs as differentiable functions of inputs and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ..backends.base import Estimate
from ..gradients.rules import GradientRule
from ..mitigation.methods import Mitigation
from ..program.angles import batch_size
from ..program.compiled import Program
from ..shots.seeding import SeedStream
from ..shots.shadow import Shadow
from . import transforms
from .error_bars import Sources
from .evaluation import Evaluation, GradientRecord, LookAhead, refuse_block_gradients
from .function import QuantumFunction
from .method import Method
from .result import MOST_SHOTS_COUNTED, LayerResult

__all__ = ["Call", "Pending", "Tally", "evaluate", "look_ahead", "measure", "measure_groups"]


class Pending(Protocol):
    """A call whose result is made when somebody looks."""

    def result(self) -> LayerResult:
        """What it measured."""


@dataclass(eq=False)
class Tally:
    """What has been executed so far, and what the last call measured.

    Attributes:
        grouped: Whether gradients are to be told apart by the names of weight groups.
        observe: Told of each backend call, too.
        circuits: Circuits executed, those of gradients included.
        shots: Shots spent on them.
        last: What the last call measured, or what can say so.
    """

    grouped: bool = False
    observe: Callable[[str, Estimate], None] | None = None
    circuits: int = field(default=0, kw_only=True)
    shots: int = field(default=0, kw_only=True)
    last: LayerResult | Pending | None = field(default=None, kw_only=True)

    @property
    def last_result(self) -> LayerResult | None:
        """What the last call measured."""
        return self.last if self.last is None or isinstance(self.last, LayerResult) else self.last.result()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": self.last_result}


@dataclass(eq=False)
class Call:
    """One call's :class:`qiskit_torch_bridge.bridge.evaluation.Observer`: from what it is told it makes the result."""

    tally: Tally
    sources: Sources
    shadow: Shadow | None = None

    def observe(self, kind: str, estimate: Estimate) -> None:
        """Counts it, and makes the result of values."""
        tally = self.tally
        tally.circuits += estimate.circuits
        tally.shots += estimate.shots
        if kind == "values":
            tally.last = LayerResult(
                # Copied, because the output may share the values' memory, and is the user's to change.
                estimate.values.copy(),
                np.sqrt(estimate.variances) if estimate.shots else estimate.variances,
                estimate.circuits,
                estimate.shots,
                passport=estimate.passport,
                shadow=self.shadow,
                truncation_bounds=estimate.truncation_bounds,
                _grouped=tally.grouped,
                _sources=self.sources,
                _covariance=estimate.covariance,
                _outcomes=estimate.outcomes if estimate.shots <= MOST_SHOTS_COUNTED else None,
            )
        if tally.observe is not None:
            tally.observe(kind, estimate)

    def note_shadow(self, shadow: Shadow) -> None:
        """Keeps it for the result."""
        self.shadow = shadow

    def note_gradient(self, record: GradientRecord) -> None:
        """Keeps it for whoever looks at the gradient."""
        self.sources.record = record


def evaluate(
    program: Program,
    inputs: torch.Tensor | None,
    weights: Sequence[torch.Tensor] = (),
    *,
    backend: Any = None,
    shots: int | None = None,
    gradient: str | GradientRule | None = None,
    seed: int | Sequence[int] | SeedStream | None = None,
    allocation: str = "uniform",
    mitigation: Sequence[Mitigation] = (),
    observe: Callable[[str, Estimate], None] | None = None,
) -> torch.Tensor:
    """Evaluates a compiled program as a differentiable function; what :class:`QuantumLayer` does, without the module.

    It has many options because there are many ways to measure; each has the layer's name and default.

    Args:
        program: From :meth:`qiskit_torch_bridge.Program.compile`.
        inputs: Shape (N, I), of any floating point dtype; None where the circuit has no inputs (then N = 1).
        weights: One tensor of shape (W_g,) a weight group.
        backend: As in :class:`QuantumLayer`.
        shots: As in :class:`QuantumLayer`.
        gradient: As in :class:`QuantumLayer`.
        seed: An integer, a stream, or None.
        allocation: As in :class:`QuantumLayer`.
        mitigation: As in :class:`QuantumLayer`.
        observe: Called with ``"values"`` or ``"gradient"`` and the estimate, after each backend call.

    Returns:
        Shape (N, M), float64, on the CPU.

    Raises:
        RuntimeError: If PyTorch traces the call: a circuit is no sequence of its operators.
        TypeError: If the tensors are complex, or the weights not listed.
        ValueError: If an angle is NaN or infinite, or shots and gradient rule do not fit the backend.
    """
    if not isinstance(weights, (list, tuple)):
        raise TypeError(f"weights: got {type(weights).__name__}, expected a list of tensors, one a weight group.")
    for tensor in weights if inputs is None else (inputs, *weights):
        if tensor.is_complex():
            raise TypeError(f"inputs and weights: got dtype {tensor.dtype}, expected real numbers, which angles are.")
    method = Method.of(backend, shots, gradient, allocation, mitigation)
    seeds = seed if isinstance(seed, SeedStream) else SeedStream(seed)
    return measure(program, method, inputs, weights, seeds=seeds, tally=Tally(observe=observe))


def measure(
    program: Program,
    method: Method,
    inputs: torch.Tensor | None,
    weights: Sequence[torch.Tensor],
    *,
    seeds: SeedStream,
    tally: Tally,
) -> torch.Tensor:
    """:func:`evaluate` with everything found out: one backend call, and where a gradient is wanted a node of its graph.

    Args:
        program: The compiled circuit.
        method: How it is measured.
        inputs: Shape (N, I), real; or None.
        weights: A tensor of shape (W_g,) a group, real.
        seeds: Where the randomness comes from.
        tally: Counts what is executed, and gets the result.
    """
    if transforms.count_modes():
        transforms.refuse_tracing()
    training = torch.is_grad_enabled()
    if program.blocks and training and inputs is not None and inputs.requires_grad:
        refuse_block_gradients(program)
    # In double precision from here on: shifts must not drown in rounding, and autocast leaves it alone.
    exact = None if inputs is None else inputs.to("cpu", torch.float64)
    groups = program.angle_map(exact, [weight.to("cpu", torch.float64) for weight in weights])
    return measure_groups(program, method, groups, seeds=seeds, call=Call(tally, _sources(program, inputs, weights)))


def measure_groups(
    program: Program, method: Method, groups: Sequence[torch.Tensor], *, seeds: SeedStream, call: Call
) -> torch.Tensor:
    """:func:`measure` at given angles.

    Args:
        program: The compiled circuit.
        method: How it is measured.
        groups: A tensor of shape (N, A_g) or (1, A_g) for each group of the program's angles, float64, on the CPU.
        seeds: Where the randomness comes from.
        call: Is told what is measured.
    """
    training = torch.is_grad_enabled()
    position = seeds.position
    ahead = None
    if method.backend.queues and training:
        selected = [transforms.needs_gradient(group) for group in groups]
        ahead = look_ahead(program, method, batch_size(groups), selected, seeds)
    drawn = seeds.position
    evaluation = Evaluation(program, method, seeds=seeds, training=training, observer=call, ahead=ahead)
    try:
        values: torch.Tensor = QuantumFunction.apply(evaluation, *groups)
    except BaseException:
        if seeds.position == drawn:  # else all is measured, and torch's checkpoint ends a recomputation by this error
            seeds.position = position  # the same call again finds what hardware has measured of this one
        raise
    return values


def look_ahead(
    program: Program, method: Method, rows: int, selected: Sequence[bool], seeds: SeedStream
) -> LookAhead | None:
    """The points of the gradient that will be wanted, as far as can be told.

    Args:
        program: The compiled circuit.
        method: How it is measured.
        rows: The number of rows of angles.
        selected: Whether the gradient by each group of angles is.
        seeds: Where the randomness of the shifts comes from.
    """
    selection = program.selections[tuple(selected)]
    if selection.fixed:
        refuse_block_gradients(program)
    if method.rule.exact_only or not selection.columns or not rows:
        return None
    stencil = method.rule.checked_stencil(program, selection.columns, rows=rows, shots=method.shots, seeds=seeds)
    return LookAhead(selection.columns, rows, stencil)


def _sources(program: Program, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> Sources:
    """A call's inputs and weights, copied as far as its gradients' standard errors will need them."""
    if not torch.is_grad_enabled() or transforms.transforms_are_active():
        return Sources(program, frozenset())
    tensors = {1 + g: weight for g, weight in enumerate(weights)}
    if inputs is not None:
        tensors[0] = inputs
    trained = frozenset([source for source, tensor in tensors.items() if tensor.requires_grad and tensor.shape[-1]])
    if program.angle_map.is_affine:
        return Sources(program, trained)
    copies = {source: t.detach().to("cpu", torch.float64, copy=True) for source, t in tensors.items()}
    return Sources(program, trained, {s: t if s == 0 else t.unsqueeze(0) for s, t in copies.items()})
