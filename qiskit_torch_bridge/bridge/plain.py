"""The short way for plain calls: exact values and adjoint gradients of ordinary tensors, one compiled call each way.

A call is plain where states are small, angles are affine in features and weights, tensors are ordinary ones on the CPU, and
nobody else looks on (no transform of ``torch.func``, no dispatch mode, no forward mode). Values and gradients are those of
:class:`qiskit_torch_bridge.bridge.function.QuantumFunction`, which takes all other calls, and of plain ones the gradients
that may be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..program.compiled import Program, Selection
from . import transforms
from .error_bars import Sources
from .evaluation import Evaluation, GradientRecord, Kept, Record
from .function import QuantumFunction
from .functional import Call
from .method import Method
from .names import Host
from .result import LayerResult

if TYPE_CHECKING:
    from ..simulator.step import Address, Passage, Step

__all__ = ["PlainCall", "compute_plainly", "fit", "joined", "measure_plainly", "pull_back_plainly"]

_NOWHERE: Address = (0, False)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_FLOATS = (torch.float32, torch.float64)


class _Noted(NamedTuple):
    """A gradient as the kernel gave it.

    Attributes:
        selection: The W angles that it is by.
        position: How far the stream of seeds was.
        gradients: Shape (N, A).
        upstream: Shape (N, M): the gradient by the values.
    """

    selection: Selection
    position: int
    gradients: np.ndarray
    upstream: np.ndarray


class PlainCall:
    """What a call has computed; made into a result only where somebody looks, because that takes as long as the call.

    Args:
        host: The layer.
        step: What has computed it.
        passage: What that is.
        method: How it was measured.
        trained: The sources whose gradient torch wants.
    """

    __slots__ = (
        "_noted", "_result", "_sources", "angles", "method", "program", "seeds", "step", "tally", "trained", "values",
    )  # fmt: skip

    def __init__(self, host: Host, step: Step, passage: Passage, *, method: Method, trained: Sequence[int]) -> None:
        # Neither the layer itself, which would hold itself then, nor the states.
        self.program, self.seeds, self.tally = host.program, host.seeds, host.tally
        self.angles, self.values = passage.angles, passage.values
        self.step, self.method, self.trained = step, method, trained
        self._noted: _Noted | None = None
        self._sources: Sources | None = None
        self._result: LayerResult | None = None

    def result(self) -> LayerResult:
        """What the call measured."""
        if self._result is None:
            self._result = LayerResult(
                self.values,
                np.zeros(self.values.shape),
                len(self.angles) * len(self.program.readout.groups),
                0,
                _grouped=self.tally.grouped,
                _sources=self._where_from(),
                _covariance=self.step.covariance(self.angles),
            )
        return self._result

    def note(self, noted: _Noted) -> None:
        """Told by each backward what it computed."""
        self._noted = noted
        if self._sources is not None:
            self._sources.record = self._record()

    def _where_from(self) -> Sources:
        if self._sources is None:
            widths = self.program.angle_map.source_widths
            trained = frozenset([source for source in self.trained if widths[source]])
            self._sources = Sources(self.program, trained, record=self._record())
        return self._sources

    def _record(self) -> GradientRecord | None:
        if self._noted is None:
            return None
        selection, position, gradients, upstream = self._noted
        return GradientRecord(
            self.program,
            self.method,
            seeds=self.seeds,
            position=position,
            selection=selection,
            upstream=upstream,
            angles=self.angles,
            gradient=gradients[:, selection.mask],
        )

    def gradients_to_differentiate(
        self, tensors: Sequence[torch.Tensor | None], states: Any, needed: Sequence[bool], upstream: torch.Tensor
    ) -> list[torch.Tensor | None]:
        """The gradients by features and weights, by the other way: they can be differentiated again, or mapped."""
        features, *weights = tensors
        exact = None if features is None else features.to(torch.float64)
        groups = self.program.angle_map(exact, [w.to(torch.float64) for w in weights if w is not None])
        kept = None if states is None else Kept(self.angles, self.step.state(states, len(self.angles)), groups, None)
        evaluation = Evaluation(
            self.program,
            self.method,
            seeds=self.seeds,
            observer=Call(self.tally, self._where_from()),
            record=Record(kept=kept),
        )
        selected = [any(needed[source] for source in group.sources) for group in self.program.angle_map.groups]
        context = Context(evaluation, groups, (False, *selected))
        by_group = QuantumFunction.backward(context, upstream.to(torch.float64))[1:]
        return [
            self._chained(source, by_group, tensor) if needed[source] and tensor is not None else None
            for source, tensor in enumerate(tensors)
        ]

    def _chained(self, source: int, by_group: Sequence[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
        """The gradient by one source, from those by the groups of angles."""
        total = torch.zeros(like.shape, dtype=torch.float64, device="cpu")
        for group, part in zip(self.program.angle_map.groups, by_group, strict=True):
            if part is not None and source in group.sources:
                share = part @ torch.from_numpy(group.slopes(source, {})[0])
                total = total + (share if source == 0 else share.sum(dim=0))
        return total.to(like.dtype)


class Context(NamedTuple):
    """What :meth:`QuantumFunction.backward` asks of its context."""

    evaluation: Evaluation
    saved_tensors: Sequence[torch.Tensor]
    needs_input_grad: Sequence[bool]


class _PlainFunction(torch.autograd.Function):
    """Hands out what a plain call has computed, and computes its gradient."""

    @staticmethod
    def forward(
        ctx: Any, call: PlainCall, states: np.ndarray | None, outputs: list[torch.Tensor], *tensors: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.call, ctx.states = call, states
        ctx.save_for_backward(*tensors)
        return outputs.pop()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call, states = ctx.call, ctx.states
        tensors = ctx.saved_tensors  # which torch refuses to hand out a second time
        needed = ctx.needs_input_grad[3:]
        may_be_differentiated = torch.is_grad_enabled() or transforms.somebody_looks()
        if may_be_differentiated or not _is_ordinary(upstream):
            return None, None, None, *call.gradients_to_differentiate(tensors, states, needed, upstream)
        if not transforms.keeps_graph():
            ctx.states = None  # as torch forgets saved tensors, even if an output lives on
        features, *weights = tensors
        return None, None, None, *pull_back_plainly(call, states, needed, upstream, features, weights)


def pull_back_plainly(
    call: PlainCall,
    states: np.ndarray | None,
    needed: tuple[bool, ...],
    upstream: torch.Tensor,
    features: torch.Tensor | None,
    weights: Sequence[torch.Tensor],
) -> list[torch.Tensor | None]:
    """The gradients by the features and by each weight group, as far as they are needed.

    Args:
        call: What has computed the values.
        states: The final states.
        needed: Whether the features' gradient is, and each weight group's.
        upstream: Shape (N, M), ordinary: the gradient by the values.
        features: A tensor of the shape and type of the features.
        weights: Those of the weights.
    """
    program, step = call.program, call.step
    selection = program.selections_by_source[needed]
    row, column = upstream.stride()
    at = (*_address(upstream), row, column)
    gradients, measured = step.backward(call.angles, states, selection.mask, at)
    by_features = by_weights = None
    if needed[0] and features is not None:
        by_features = torch.empty(features.shape, dtype=features.dtype, device="cpu")
    if True in needed[1:]:
        by_weights = torch.empty(sum(program.num_weights), dtype=weights[0].dtype, device="cpu")
    step.hand_out(gradients, _address(by_features), _address(by_weights))
    call.note(_Noted(selection, call.seeds.position, gradients, measured))
    if by_weights is None or len(weights) < 2:
        return [by_features, by_weights, *[None] * len(weights)][: 1 + len(weights)]
    parts = zip(by_weights.split(list(program.num_weights)), needed[1:], strict=True)
    return [by_features, *(part.clone() if is_needed else None for part, is_needed in parts)]


def compute_plainly(
    host: Host, features: torch.Tensor | None, weights: torch.Tensor | None, trained: Sequence[int]
) -> tuple[PlainCall, np.ndarray | None, torch.Tensor] | None:
    """Values of ordinary tensors that fit; None if an angle is not finite, or no step takes the program.

    Args:
        host: The layer.
        features: Shape (N, I), N > 0; None where the circuit has no inputs.
        weights: All weights, behind each other; None where there are none.
        trained: The sources whose gradient is wanted.

    Returns:
        The call, its final states, and the values, of shape (N, M) and the type of the features.
    """
    program, method = host.program, host.method()
    step = method.backend.step_of(program)
    like, rows = (features, features.shape[0]) if features is not None else (weights, 1)
    if step is None or like is None:
        return None
    outputs = torch.empty((rows, program.num_outputs), dtype=like.dtype, device="cpu")
    passage = step.forward(rows, _address(features), _address(weights), _address(outputs))
    if passage is None:
        return None
    call = PlainCall(host, step, passage, method=method, trained=trained)
    host.tally.circuits += rows * len(program.readout.groups)
    host.tally.last = call
    return call, passage.states, outputs


def measure_plainly(host: Host, features: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """What :func:`qiskit_torch_bridge.bridge.functional.measure` does for a plain call; None if it is not one.

    Args:
        host: The layer; its rule is one for exact values alone.
        features: Shape (N, I); None where the circuit has no inputs.
        weights: A tensor of shape (W_g,) a group; none where there are no weights.

    Returns:
        Shape (N, M), of the features' type, or the weights' where there are none. None also where anything does not fit:
        the other way says what.
    """
    if transforms.somebody_looks() or not fit(host.program, features, weights):
        return None
    trained: list[int] = []
    if torch.is_grad_enabled():
        if features is not None and features.requires_grad:
            trained.append(0)
        for source, weight in enumerate(weights, start=1):
            if weight.requires_grad:
                trained.append(source)
    plain = compute_plainly(host, features, joined(weights), trained)
    if plain is None:
        return None
    call, states, outputs = plain
    if not torch.is_grad_enabled():
        host.seeds.skip()  # as every call does that no gradient can follow
    if not trained:
        return outputs
    result: torch.Tensor = _PlainFunction.apply(call, states, [outputs], features, *weights)
    return result


def joined(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All weights behind each other; None where there are none."""
    if len(weights) < 2:
        return weights[0] if weights else None
    return torch.cat([weight.detach() for weight in weights])


def fit(program: Program, features: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> bool:
    """Whether all tensors are ordinary, and have the shapes that they should have."""
    if features is None:
        if program.num_inputs:
            return False
    elif not _is_ordinary(features) or not features.is_contiguous() or features.dim() != 2 or not features.shape[0]:
        return False
    if features is not None and features.shape[1] != program.num_inputs:
        return False
    if not weights:
        return features is not None and not sum(program.num_weights)
    for weight, width in zip(weights, program.num_weights, strict=True):
        if not _is_ordinary(weight) or weight.shape != (width,) or weight.dtype is not weights[0].dtype:
            return False
        if not weight.is_contiguous():
            return False
    return True


def _is_ordinary(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but numbers in memory."""
    if type(tensor) not in _ORDINARY:
        return False
    try:
        there = tensor.data_ptr() != 0 or not tensor.numel()
    except RuntimeError:  # tensors that stand for those of a transform have no memory
        return False
    return (
        there
        and tensor.dtype in _FLOATS
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_neg()
    )


def _address(tensor: torch.Tensor | None) -> Address:
    return _NOWHERE if tensor is None else (tensor.data_ptr(), tensor.dtype is torch.float32)
