r"""Functions of density matrices: entropies and Uhlmann's fidelity, with gradients that are finite where they have a limit.

The von Neumann entropy :math:`-\mathrm{tr}\,\rho\log\rho` has the gradient :math:`-\log\rho - 1`, which takes no
derivatives of eigenvectors: degenerate spectra make no trouble. Where an eigenvalue is 0, as in a pure state, it has no
limit. But an eigenvalue that depends smoothly on parameters and is never negative has derivative 0 there, and so has the
entropy. The logarithm is therefore bounded (at the rounding of numbers of order 1), and what it multiplies is zero.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ..bridge.transforms import refuse_nested_forward_mode

__all__ = ["entropy_of", "fidelity_of"]

_LEAST = torch.finfo(torch.float64).eps


def entropy_of(density: torch.Tensor) -> torch.Tensor:
    r"""The von Neumann entropy :math:`-\mathrm{tr}\,\rho\log\rho` in nats, shape (...); twice differentiable.

    Args:
        density: Shape (..., d, d); Hermitian.
    """
    entropy: torch.Tensor = _Entropy.apply(density)
    return entropy


def fidelity_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    r"""Uhlmann's fidelity :math:`(\mathrm{tr}\sqrt{\sqrt\rho\sigma\sqrt\rho})^2`, shape (...); once differentiable.

    Args:
        first: Shape (..., d, d); Hermitian.
        second: Of the same shape.
    """
    root: torch.Tensor = _RootFidelity.apply(first, second)
    return root**2


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The real scalar product of matrices, shape (...)."""
    return (first.conj() * second).real.sum(dim=(-2, -1))


def _composed(vectors: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The matrices with these eigenvectors and eigenvalues."""
    return (vectors * values.unsqueeze(-2)) @ vectors.mH


class _Entropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(density: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigvalsh(density).clamp(min=0.0)
        return 0.0 - torch.special.xlogy(values, values).sum(dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        slope: torch.Tensor = _Slope.apply(*ctx.saved_tensors)
        return upstream[..., None, None] * slope

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        refuse_nested_forward_mode()
        return _product(_Slope.apply(*ctx.saved_tensors), tangent)


class _Slope(torch.autograd.Function):
    """The matrix ``-log(density) - 1``; its derivative by divided differences (Daleckii and Krein)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(density: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(density)
        return _composed(vectors, -values.clamp(min=_LEAST).log() - 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> torch.Tensor:
        (density,) = ctx.saved_tensors
        return _last_order(_Slope._along(density, upstream), density, upstream)

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        refuse_nested_forward_mode()
        (density,) = ctx.saved_tensors
        return _last_order(_Slope._along(density, tangent), density, tangent)

    @staticmethod
    def _along(density: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(density)
        values = values.clamp(min=_LEAST)
        one, other = values.unsqueeze(-1), values.unsqueeze(-2)
        difference = one - other
        same = difference == 0
        apart = torch.where(same, 1.0, difference)
        slopes = torch.where(same, 1.0 / other, torch.log1p(difference / other) / apart)
        return -vectors @ (slopes * (vectors.mH @ direction @ vectors)) @ vectors.mH


class _LastOrder(torch.autograd.Function):
    """Hands a derivative on that cannot be differentiated by what it depends on.

    (torch's ``once_differentiable`` does not notice what was saved, and ``torch.autograd.grad`` would leave it out.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        return derivative.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> None:
        _refuse()

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> None:
        _refuse()


def _last_order(derivative: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
    refusing: torch.Tensor = _LastOrder.apply(derivative.detach(), *sources)
    return refusing


def _refuse() -> NoReturn:
    raise NotImplementedError(
        "A von Neumann entropy is differentiable twice, and a fidelity of mixed states once; for higher orders use "
        "kind='renyi2' or purities, or pure states."
    )


class _RootFidelity(torch.autograd.Function):
    r"""``tr sqrt(sqrt(a) b sqrt(a))``; its gradient by ``b`` is ``sqrt(a) (sqrt(a) b sqrt(a))**-1/2 sqrt(a) / 2``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        root = _power(first, 0.5)
        values = torch.linalg.eigvalsh(root @ second @ root)
        return torch.where(_is_rounding(values), 0.0, values).sqrt().sum(dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = ctx.saved_tensors
        scale = upstream[..., None, None]
        slopes = scale * _RootFidelity._slope(second, first), scale * _RootFidelity._slope(first, second)
        return tuple(_last_order(slope, first, second, upstream) for slope in slopes)

    @staticmethod
    def jvp(ctx: Any, by_first: torch.Tensor, by_second: torch.Tensor) -> torch.Tensor:
        refuse_nested_forward_mode()
        first, second = ctx.saved_tensors
        moved = _product(_RootFidelity._slope(second, first), by_first)
        moved = moved + _product(_RootFidelity._slope(first, second), by_second)
        return _last_order(moved, first, second, by_first, by_second)

    @staticmethod
    def _slope(fixed: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        root = _power(fixed, 0.5)
        return 0.5 * root @ _power(root @ moved @ root, -0.5) @ root


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """Of a matrix without negative eigenvalues; those that are rounding count as 0, and have power 0."""
    values, vectors = torch.linalg.eigh(matrix)
    is_zero = _is_rounding(values)
    return _composed(vectors, torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, values) ** exponent))


def _is_rounding(values: torch.Tensor) -> torch.Tensor:
    """Which eigenvalues of a matrix are nothing but rounding, whose roots would not be small."""
    return values <= 4 * _LEAST * values.shape[-1]
