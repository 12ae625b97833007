"""Quantum layers as PyTorch operators, for ``torch.compile``, ``torch.export`` and ``make_fx``: a circuit is a node of the graph.

A graph holds tensors, numbers and words. So a layer is in it by its name (:mod:`qiskit_torch_bridge.bridge.names`), and what a
forward operator leaves for its backward one hangs on a tensor without content, the *token*: it is forgotten with the token's
memory.

Two pairs of operators: ``plain_values`` and ``plain_gradients`` for plain calls (:mod:`qiskit_torch_bridge.bridge.plain`), from
features and weights; ``values`` and ``gradients`` for all others, from angles, so that what leads from features and weights to
angles is traced, compiled and differentiated by PyTorch. ``turn`` tells calls with shots apart: PyTorch would otherwise
compute two calls with the same features once.

Numbers are those of the layer outside of a graph: forward draws the same seeds, and so does backward. What a graph cannot be is
differentiated twice, or in forward mode; outside of one both work.
"""

# Without postponed annotations: torch reads the operators' schemas from them.

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..program.angles import batch_size
from .error_bars import Sources
from .evaluation import Evaluation
from .function import QuantumFunction
from .functional import Call, look_ahead
from .names import host_of
from .plain import Context, PlainCall, compute_plainly, pull_back_plainly

__all__ = ["measure_traced"]

_NAMESPACE = "qiskit_torch_bridge"


# What a forward operator leaves for its backward one


class _Plain(NamedTuple):
    """A plain call, and the final states."""

    call: PlainCall
    states: np.ndarray


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


def _behind(token: torch.Tensor) -> Any:
    """The record that a token stands for.

    Raises:
        RuntimeError: If it stands for none.
    """
    try:
        return _kept[token.data_ptr()]
    except KeyError:
        raise RuntimeError(
            "The gradient of a quantum layer in a graph was asked for by another graph, or another process, than computed its "
            "values; run forward and backward in one."
        ) from None


# Plain calls


@torch.library.custom_op(f"{_NAMESPACE}::plain_values", mutates_args=())
def _plain_values(
    features: torch.Tensor, weights: torch.Tensor, layer: str, trained: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    host = host_of(layer)
    names = frozenset([source for source, is_trained in enumerate(trained) if is_trained])
    plain = compute_plainly(host, features.contiguous(), weights.contiguous(), names)
    if plain is None:
        exact = features.to(torch.float64), *weights.to(torch.float64).split(list(host.program.num_weights))
        groups = host.program.angle_map(exact[0], exact[1:])
        values, record = _evaluated(host, groups, None, trained, [])
        return values.to(features.dtype), _token(record)
    call, states, outputs = plain
    return outputs, _token(_Plain(call, states))


@_plain_values.register_fake
def _(features, weights, layer, trained):  # type: ignore[no-untyped-def]
    return features.new_empty((features.shape[0], host_of(layer).program.num_outputs)), _fake_token()


@torch.library.custom_op(f"{_NAMESPACE}::plain_gradients", mutates_args=())
def _plain_gradients(
    upstream: torch.Tensor, features: torch.Tensor, weights: torch.Tensor, token: torch.Tensor, needed: list[bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    record = _behind(token)
    by_features = by_weights = None
    if isinstance(record, _Plain):
        by_features, by_weights = pull_back_plainly(
            record.call, record.states, tuple(needed), upstream.resolve_neg(), features, weights
        )
    else:
        call = PlainCall.of(record.evaluation)
        parts = weights.split(list(record.evaluation.program.num_weights))
        tensors = (features, *parts)
        ...
    return features.new_zeros(0) if by_features is None else by_features, weights.new_zeros(0) if by_weights is None else by_weights
