"""Quantum layers as PyTorch operators: a circuit is a node in graphs of ``torch.compile``, ``torch.export``, ``make_fx``.

A graph holds tensors, numbers and words. So a layer is in it by its name (:mod:`qiskit_torch_bridge.bridge.names`), and
what a forward operator leaves for its backward one hangs on a tensor without content, the *token*: it is forgotten with the
token's memory.

Two pairs of operators: ``plain_values`` and ``plain_gradients`` for plain calls
(:mod:`qiskit_torch_bridge.bridge.plain`), from features and weights; ``values`` and ``gradients`` for all others, from
angles, so that what leads from features and weights to angles is traced, compiled and differentiated by PyTorch. ``turn``
tells calls with shots apart: PyTorch would otherwise measure two calls with the same features once.

Numbers are those of the layer outside of a graph: forward draws the same seeds, and so does backward. What a graph cannot
be is differentiated twice, or in forward mode; outside of one both work.
"""

# Without postponed annotations: torch reads the operators' schemas from them.

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..program.angles import batch_size
from . import transforms
from .error_bars import Sources
from .evaluation import Evaluation, require_finite
from .function import QuantumFunction
from .functional import Call, look_ahead
from .names import Host, host_of
from .plain import Context, PlainCall, compute_plainly, fit, joined, pull_back_plainly

__all__ = ["measure_traced"]

_NAMESPACE = "qiskit_torch_bridge"
_PRECISIONS = (torch.float32, torch.float64)
_COUNTER = torch.zeros((), dtype=torch.int64, device="cpu")
_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


# What a forward operator leaves for its backward one


class _Plain(NamedTuple):
    """A plain call, and its final states."""

    call: PlainCall
    states: np.ndarray | None


class _General(NamedTuple):
    """Any other call, and the groups of its angles."""

    evaluation: Evaluation
    groups: tuple[torch.Tensor, ...]


_kept: dict[int, Any] = {}


def _token(record: Any) -> torch.Tensor:
    """A tensor whose memory the record goes by."""
    memory = np.zeros((), np.int64)
    token = torch.from_numpy(memory)
    place = token.data_ptr()
    _kept[place] = record
    weakref.finalize(memory, _kept.pop, place, None).atexit = False
    return token


def _fake_token() -> torch.Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


def _behind(token: torch.Tensor) -> Any:
    """The record that a token stands for.

    Raises:
        RuntimeError: If it stands for none.
    """
    try:
        return _kept[token.data_ptr()]
    except KeyError:
        raise RuntimeError(
            "The gradient of a quantum layer was asked for in another graph, or another process, than has computed its "
            "values; run forward and backward in one."
        ) from None


def _host(layer: str) -> Host:
    """The layer that values are wanted of.

    Raises:
        NotImplementedError: In forward mode, in which torch would take the values for constants.
    """
    if transforms.forward_level() >= 0:
        raise NotImplementedError(
            f"Forward mode does not go through graphs with quantum layers, and one with {layer} was called in it; call the "
            "model that the graph was made from."
        )
    return host_of(layer)


# Plain calls


@torch.library.custom_op(f"{_NAMESPACE}::plain_values", mutates_args=())
def _plain_values(
    features: torch.Tensor, weights: list[torch.Tensor], layer: str, training: bool, trained: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    host = _host(layer)
    features, weights = features.contiguous(), [weight.contiguous() for weight in weights]
    if not features.shape[0]:
        return features.new_empty((0, host.program.num_outputs)), _token(None)
    plain = None
    if host.method().rule.exact_only and fit(host.program, features, weights):
        plain = compute_plainly(host, features, joined(weights), _true(trained))
    if plain is None:
        exact = features.to(torch.float64), [weight.to(torch.float64) for weight in weights]
        require_finite(host.program, _side_by_side(host.program.angle_map(*exact)))
        raise RuntimeError(
            f"Quantum {layer} has another backend, or other shots, than the graph was made for; make the graph again."
        )
    call, states, outputs = plain
    if not training:
        host.seeds.skip()  # as every call does that no gradient can follow
    return outputs, _token(_Plain(call, states))


@_plain_values.register_fake
def _(features, weights, layer, training, trained):  # type: ignore[no-untyped-def]
    return features.new_empty((features.shape[0], host_of(layer).program.num_outputs)), _fake_token()


@torch.library.custom_op(f"{_NAMESPACE}::plain_gradients", mutates_args=())
def _plain_gradients(
    upstream: torch.Tensor, features: torch.Tensor, weights: list[torch.Tensor], token: torch.Tensor, needed: list[bool]
) -> list[torch.Tensor]:
    plain, tensors = _behind(token), [features, *weights]
    if plain is None:
        return [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
    call, states = plain
    gradients = pull_back_plainly(call, states, tuple(needed), upstream.resolve_neg(), features, weights)
    return [t.new_empty(0) if gradient is None else gradient for t, gradient in zip(tensors, gradients, strict=True)]


@_plain_gradients.register_fake
def _(upstream, features, weights, token, needed):  # type: ignore[no-untyped-def]
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if is_needed else tensor.new_empty(0)
        for tensor, is_needed in zip([features, *weights], needed, strict=True)
    ]


def _keep_plain(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, weights, *_ = inputs
    ctx.save_for_backward(features, *weights, output[1])


def _differentiate_plain(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[Any, ...]:
    by_features, by_weights, *_ = ctx.needs_input_grad
    needed = [by_features, *by_weights]
    features, *weights, token = ctx.saved_tensors
    gradients = _plain_gradients(upstream, features, weights, token, needed)
    first, *others = (gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True))
    return first, others, None, None, None


_plain_values.register_autograd(_differentiate_plain, setup_context=_keep_plain)


# All others


@torch.library.custom_op(f"{_NAMESPACE}::turn", mutates_args=("counter",))
def _turn(counter: torch.Tensor) -> torch.Tensor:
    counter += 1
    return counter.clone()


@_turn.register_fake
def _(counter):  # type: ignore[no-untyped-def]
    return torch.empty_like(counter)


@torch.library.custom_op(f"{_NAMESPACE}::values", mutates_args=())
def _values(
    groups: list[torch.Tensor],
    sources: list[torch.Tensor],
    turn: Optional[torch.Tensor],  # noqa: UP045 - as torch 2.4 reads it
    layer: str,
    shots: Optional[int],  # noqa: UP045
    training: bool,
    trained: list[bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    host = _host(layer)
    program, method = host.program, host.method(shots)
    call = Call(host.tally, Sources(program, frozenset(_true(trained)), dict(enumerate(sources))))
    position, ahead = host.seeds.position, None
    if method.backend.queues and training:
        selected = [any(trained[source] for source in group.sources) for group in program.angle_map.groups]
        ahead = look_ahead(program, method, batch_size(groups), selected, host.seeds)
    evaluation = Evaluation(program, method, seeds=host.seeds, training=training, observer=call, ahead=ahead)
    try:
        values = evaluation.measure(groups)
    except BaseException:
        host.seeds.position = position  # the same call again finds what hardware has measured of this one
        raise
    return _apart(values), _token(_General(evaluation, tuple(groups)))


@_values.register_fake
def _(groups, sources, turn, layer, shots, training, trained):  # type: ignore[no-untyped-def]
    rows = groups[0].shape[0]
    return groups[0].new_empty((rows, host_of(layer).program.num_outputs)), _fake_token()


@torch.library.custom_op(f"{_NAMESPACE}::gradients", mutates_args=())
def _gradients(
    upstream: torch.Tensor, groups: list[torch.Tensor], token: torch.Tensor, needed: list[bool]
) -> list[torch.Tensor]:
    evaluation, kept = _behind(token)
    by_group = QuantumFunction.backward(Context(evaluation, kept, (False, *needed)), upstream)[1:]
    gradients = [torch.zeros_like(group) if g is None else g for group, g in zip(kept, by_group, strict=True)]
    return [_apart(gradient) for gradient in gradients]


@_gradients.register_fake
def _(upstream, groups, token, needed):  # type: ignore[no-untyped-def]
    return [torch.empty_like(group, memory_format=torch.contiguous_format) for group in groups]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.num_sources = len(inputs[1])
    ctx.save_for_backward(*inputs[0], output[1])


def _differentiate(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[Any, ...]:
    *groups, token = ctx.saved_tensors
    needed = ctx.needs_input_grad[0]
    gradients = _gradients(upstream, groups, token, needed)
    by_groups = [gradient if is_needed else None for gradient, is_needed in zip(gradients, needed, strict=True)]
    return by_groups, [None] * ctx.num_sources, None, None, None, None, None


_values.register_autograd(_differentiate, setup_context=_keep)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, because compiled code writes where an operator's outputs were, and expects them row by row."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _true(trained: Sequence[bool]) -> list[int]:
    return [source for source, is_trained in enumerate(trained) if is_trained]


def _side_by_side(groups: Sequence[torch.Tensor]) -> np.ndarray:
    rows = batch_size(groups)
    return torch.cat([group.expand(rows, -1) for group in groups], dim=1).numpy()


def measure_traced(
    host: Host,
    layer: str,
    features: torch.Tensor | None,
    weights: Sequence[torch.Tensor],
    *,
    shots: int | None,
    plain: bool,
) -> torch.Tensor:
    """What a layer measures, as operators in the graph that PyTorch is about to make.

    Args:
        host: The layer.
        layer: Its name.
        features: Shape (N, I), floating point; None where the circuit has no inputs.
        weights: A tensor of shape (W_g,) a group; none where there are no weights.
        shots: Shots a circuit; None: the layer's.
        plain: Whether plain calls take the short way.

    Returns:
        Shape (N, M); on the CPU, of the features' precision in the short way, else double.
    """
    program = host.program
    training, tensors = torch.is_grad_enabled(), (features, *weights)
    trained = [training and t is not None and t.requires_grad and t.shape[-1] > 0 for t in tensors]
    if plain:
        return _plain_traced(layer, features, weights, training, trained)
    exact = None if features is None else features.to(**_EXACT)
    parts = [weight.to(**_EXACT) for weight in weights]
    groups = list(program.angle_map(exact, parts))
    sources: list[torch.Tensor] = []
    if not program.angle_map.is_affine:
        first = torch.zeros((1, 0), **_EXACT) if exact is None else exact.detach()
        sources = [first, *(part.detach().unsqueeze(0) for part in parts)]
    turn = _turn(_COUNTER)
    values, _ = _values(groups, sources, turn, layer, shots, training, trained)
    return values


def _plain_traced(
    layer: str, features: torch.Tensor | None, weights: Sequence[torch.Tensor], training: bool, trained: list[bool]
) -> torch.Tensor:
    like = features if features is not None else weights[0] if weights else torch.empty(0)
    precise = like.dtype if like.dtype in _PRECISIONS else torch.float64
    rows = like.new_zeros((1, 0), dtype=precise, device="cpu") if features is None else features.to("cpu", precise)
    dtypes = {weight.dtype for weight in weights}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_PRECISIONS) else torch.float64
    values, _ = _plain_values(rows, [weight.to("cpu", dtype) for weight in weights], layer, training, trained)
    return values
