"""All that the bridge must ask PyTorch and that PyTorch does not document: who is looking at what it computes.

Each of the callables below is PyTorch's own where this version has it. Where it has not, a stand-in made of documented
functions (:data:`STAND_INS`) errs on the safe side: values and gradients stay right; they may take the longer way, or a
transform that cannot be told apart is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch

__all__ = [
    "STAND_INS",
    "count_modes",
    "fold",
    "forward_level",
    "is_batched_gradient",
    "is_jit_tracing",
    "is_tracing",
    "is_wrapped",
    "keeps_graph",
    "needs_gradient",
    "refuse_nested_forward_mode",
    "refuse_tracing",
    "somebody_looks",
    "transforms_are_active",
    "unfold",
]


def _has_no_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for those of a transform, which have numbers but no place where they are."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


def _is_making_fakes(_: Any) -> Any:
    """Something, where new tensors are none of PyTorch's ordinary ones; make_fx with real numbers does not show so."""
    return None if type(torch.empty(0)) is torch.Tensor else True


STAND_INS: dict[str, Callable[..., Any]] = {
    "count_modes": lambda: 1,
    "transforms_are_active": lambda: True,
    "is_wrapped": _has_no_memory,
    "is_batched_gradient": _has_no_memory,
    "is_jit_tracing": lambda: True,
    "keeps_graph": lambda: True,
    "forward_level": lambda: 0,
    "_dispatch_mode": _is_making_fakes,
    "_interpreters": lambda: None,
}


def _of_torch(name: str, path: str) -> Callable[..., Any]:
    """What is at a path in ``torch``, or the stand-in of that name."""
    try:
        member: Callable[..., Any] = attrgetter(path)(torch)
    except AttributeError:
        return STAND_INS[name]
    return member


# How many dispatch modes are at work; 0: certainly no trace.
count_modes = _of_torch("count_modes", "_C._len_torch_dispatch_stack")
# Whether a transform of torch.func is at work.
transforms_are_active = _of_torch("transforms_are_active", "_C._are_functorch_transforms_active")
# Whether a tensor stands for those of a transform of torch.func.
is_wrapped = _of_torch("is_wrapped", "_C._functorch.is_functorch_wrapped_tensor")
# Whether it stands for those of ``torch.autograd.grad(is_grads_batched=True)``, whose vmap is another.
is_batched_gradient = _of_torch("is_batched_gradient", "_C._functorch.is_legacy_batchedtensor")
# Whether ``torch.jit.trace`` notes operators.
is_jit_tracing = _of_torch("is_jit_tracing", "_C._is_tracing")
# Whether the backward that runs is one with ``retain_graph`` (2.4 cannot say).
keeps_graph = _of_torch("keeps_graph", "_C._autograd._get_current_graph_task_keep_graph")
# From 0 on within ``torch.autograd.forward_ad.dual_level()``.
forward_level: Callable[[], int] = (
    partial(attrgetter("_current_level"), torch.autograd.forward_ad)
    if hasattr(torch.autograd.forward_ad, "_current_level")
    else STAND_INS["forward_level"]
)
_dispatch_mode = _of_torch("_dispatch_mode", "_C._get_dispatch_mode")
_interpreters = _of_torch("_interpreters", "_C._functorch.get_interpreter_stack")


def somebody_looks() -> bool:
    """Whether anything but autograd may look at what is computed: a transform, a mode, forward mode, a trace."""
    return bool(count_modes() or transforms_are_active() or forward_level() >= 0 or is_jit_tracing())


def refuse_tracing() -> None:
    """Refuses to run within a trace, where the values would become constants, whatever the features are later.

    Raises:
        RuntimeError: If PyTorch traces, by ``make_fx`` or ``torch.export``.
    """
    if is_tracing():
        raise RuntimeError(
            "A circuit was evaluated within a trace (make_fx, torch.export, fake tensors), which cannot follow it; use a "
            "QuantumLayer, which is an operator there, outside of torch.func."
        )


def is_tracing() -> bool:
    """Whether PyTorch traces: by ``make_fx`` or ``torch.export``, or with fake tensors."""
    if not count_modes():
        return False
    keys = getattr(torch._C, "_TorchDispatchModeKey", None)
    return any(_dispatch_mode(getattr(keys, name, None)) is not None for name in ("PROXY", "FAKE"))


def refuse_nested_forward_mode() -> None:
    """Refuses ``jacfwd(jacfwd(f))``: torch gives zeros for the forward mode of what a custom Function's jvp computes.

    Raises:
        NotImplementedError: If two forward-mode transforms are active, or PyTorch does not say whether they are.
    """
    stack = _interpreters()
    levels = sum(interpreter.key() == torch._C._functorch.TransformType.Jvp for interpreter in stack or ())
    if levels > 1 or _interpreters is STAND_INS["_interpreters"]:
        raise NotImplementedError(
            "Forward mode within forward mode gives zeros in PyTorch; use torch.func.hessian, or jacrev(jacfwd(f))."
        )


def needs_gradient(tensor: torch.Tensor) -> bool:
    """Whether a gradient by the tensor may be asked for, as far as can be told before it is.

    ``Tensor.requires_grad`` reads False inside ``torch.func.grad(torch.vmap(...))``; the layers of transforms below say.
    """
    if is_wrapped is STAND_INS["is_wrapped"]:
        return tensor.requires_grad or is_wrapped(tensor)
    while is_wrapped(tensor):
        if torch._C._functorch.is_gradtrackingtensor(tensor) and tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def fold(size: int, in_dims: Sequence[int | None], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Folds a mapped axis into the rows: (B, N, C) becomes (B * N, C); (1, C) that is not mapped stays as it is."""
    fronted = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=True)]
    rows = max(t.shape[-2] for t in fronted) if all(t.shape[-2] for t in fronted) else 0
    folded = []
    for tensor, dim in zip(fronted, in_dims, strict=True):
        if dim is None and tensor.shape[0] == 1:
            folded.append(tensor)
        else:
            folded.append(tensor.expand(size, rows, -1).reshape(size * rows, tensor.shape[-1]))
    return folded


def unfold(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Takes the mapped axis out of the rows again: (B * N, C) becomes (B, N, C)."""
    return rows.reshape(size, len(rows) // size if size else 1, rows.shape[1])
