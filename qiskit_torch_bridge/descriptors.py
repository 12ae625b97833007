r"""What a circuit can do before it is trained: expressibility, entangling capability, effective dimension.

    ansatz = real_amplitudes(4)
    print(expressibility(ansatz, seed=0))  # all parameters of a circuit are drawn; of a layer its trainable weights
    print(entangling_capability(ansatz, seed=0))
    layer = QuantumLayer(encoding.compose(ansatz), inputs=encoding.parameters, weights=ansatz.parameters,
                         probabilities=[0, 1, 2, 3])
    print(effective_dimension(layer, features, data=1000, seed=0).normalized)

All three are averages over random weights, and exact for each draw: states and Fisher information are the exact
simulator's. Weights are uniform in [0, 2 pi) unless ``draw`` says otherwise. A result has the standard error that the draws
leave, and the same seed gives the same draws.

**Expressibility** (Sim, Johnson and Aspuru-Guzik, Adv. Quantum Technol. 2, 1900070 (2019), arXiv:1905.10876) is the
Kullback-Leibler divergence of the fidelities between two random states of the circuit from those of Haar-random states,
:math:`P_\mathrm{Haar}(F) = (N-1)(1-F)^{N-2}` for :math:`N = 2^n`, in equal bins from 0 to 1:

.. math:: \mathrm{Expr} = \sum_b \hat p_b \log(\hat p_b / q_b), \qquad q_b = (1-F_b)^{N-1} - (1-F_{b+1})^{N-1} .

The smaller, the closer to Haar-random. A circuit with a single state has :math:`(N-1)\log B` for B bins, the most there is.

*Bias.* A finite sample makes the divergence too large, by about :math:`(K-1)/(2M)` for M fidelities in K of the bins. For
the published 75 bins and 5000 fidelities of one qubit, whose Haar-random fidelities are uniform, that is 0.0074: a perfect
circuit seems to have 0.0074. Values of that size are nothing but bias, and circuits are to be compared at the same M, or
by :attr:`ExpressibilityResult.corrected`. How many to take: with :math:`10\,K/D` fidelities the bias is a twentieth of a
divergence D; corrected, :math:`3\sqrt{K/2}/D` of them tell it from zero.

**Entangling capability** (the same paper) is the mean of the Meyer-Wallach measure
:math:`Q = 2\,(1 - \frac1n\sum_k \mathrm{tr}\,\rho_k^2)` of its states, with the density matrices of single qubits: 0 for
product states, 1 for a GHZ state, :math:`(N-2)/(N+1)` for Haar-random ones in the mean.

**Effective dimension** (Abbas et al., Nat. Comput. Sci. 1, 403 (2021), arXiv:2011.00027) counts the directions in the
space of W weights that n data can tell apart. With :math:`\kappa = \gamma n / (2\pi\log n)`,

.. math:: d(n) = \frac{2}{\log\kappa}\,\log\frac{1}{V}\int\sqrt{\det(1 + \kappa\hat F(\theta))}\,d\theta, \qquad
    \hat F(\theta) = W F(\theta) \Big/ \frac1V\int\mathrm{tr}\,F(\theta')\,d\theta' .

F is the mean over the features of :meth:`qiskit_torch_bridge.QuantumLayer.classical_fisher`, the Fisher information of the
outcomes; few features make its rank too small. The integrals are means over the draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from qiskit.circuit import QuantumCircuit
from scipy.special import logsumexp
from torch import nn

from .arguments import instance_of, require_integer
from .layer import QuantumLayer

__all__ = [
    "DescriptorResult",
    "EffectiveDimensionResult",
    "ExpressibilityResult",
    "effective_dimension",
    "effective_dimension_of",
    "entangling_capability",
    "expressibility",
    "meyer_wallach",
]

Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, int]], Any]
"""From a random generator and the shape (samples, number of weights) to weights of that shape."""

_AMPLITUDES_AT_ONCE = 2**21


@dataclass(frozen=True, eq=False)
class DescriptorResult:
    """A mean over random weights.

    Attributes:
        value: The mean.
        standard_error: Its standard error, from the scatter over the draws.
        samples: How many draws.
    """

    value: float
    standard_error: float
    samples: int


@dataclass(frozen=True, eq=False)
class ExpressibilityResult(DescriptorResult):
    """An expressibility, and what it was computed from.

    Attributes:
        value: The divergence in nats, as published: with the bias of a finite sample.
        standard_error: Its standard error: to first order from the scatter of ``log(p_b / q_b)``, plus that of the second
            order, which alone is left where the fidelities are those of Haar-random states.
        samples: How many fidelities, M.
        bias: How much too large the value is, to first order: ``(K - 1) / (2 * samples)``, K the bins that are not empty.
            A little is left where many bins have one or two fidelities.
        counts: Shape (bins,): how many fidelities there were in each bin.
    """

    _: KW_ONLY
    bias: float
    counts: np.ndarray

    @property
    def corrected(self) -> float:
        """The value less the bias, with the same standard error; it may be below zero. Samples are to be more than bins."""
        return self.value - self.bias


@dataclass(frozen=True, eq=False)
class EffectiveDimensionResult:
    """Effective dimensions for several numbers of data.

    Attributes:
        values: Shape (K,): the effective dimension for each number of data.
        standard_errors: Shape (K,): by the jackknife over the draws of weights, for the given features.
        data: The K numbers of data.
        fisher: Shape (S, W, W): the normalised Fisher information of each draw.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    _: KW_ONLY
    data: tuple[int, ...]
    fisher: np.ndarray

    @property
    def normalized(self) -> np.ndarray:
        """Shape (K,): the values divided by the number of weights."""
        fractions: np.ndarray = self.values / self.fisher.shape[1]
        return fractions


def expressibility(
    circuit: QuantumLayer | QuantumCircuit,
    features: torch.Tensor | Sequence[float] | None = None,
    *,
    samples: int = 5000,
    bins: int = 75,
    seed: int | None = None,
    draw: Draw | None = None,
) -> ExpressibilityResult:
    """How far a circuit's random states are from Haar-random ones: the divergence of their fidelities, in nats.

    Args:
        circuit: A layer, whose trainable weights are drawn (frozen ones stay as they are); or a circuit, all of whose
            parameters are. States are exact, on the layer's backend, which must show amplitudes.
        features: One row of features, shape (number of inputs,), for a layer that has inputs.
        samples: How many pairs of states, each drawn anew. The published number is the default.
        bins: Bins of equal width. The published number is the default; results with other numbers cannot be compared.
        seed: Makes the draws repeatable.
        draw: Draws weights, as ``lambda rng, shape: rng.normal(size=shape)``; None: uniform in [0, 2 pi).

    Raises:
        TypeError, ValueError: If anything does not fit.
    """
    require_integer("samples", samples)
    require_integer("bins", bins, least=2)
    states = _RandomStates.of(circuit, features, draw)
    counts = np.zeros(bins, np.int64)
    for part in states.parts(2 * samples, seed):
        overlaps = (part[0::2].conj() * part[1::2]).sum(dim=1).abs().square().clamp(max=1.0)
        counts += np.histogram(overlaps.numpy(), bins, range=(0.0, 1.0))[0]
    return _divergence(counts, _log_haar(bins, states.num_qubits))


def entangling_capability(
    circuit: QuantumLayer | QuantumCircuit,
    features: torch.Tensor | Sequence[float] | None = None,
    *,
    samples: int = 5000,
    seed: int | None = None,
    draw: Draw | None = None,
) -> DescriptorResult:
    """The mean entanglement of a circuit's random states, by the Meyer-Wallach measure: from 0 to 1.

    Args:
        circuit: A layer or a circuit, as :func:`expressibility` takes them.
        features: One row of features, shape (number of inputs,), for a layer that has inputs.
        samples: How many states.
        seed: Makes the draws repeatable.
        draw: Draws weights; None: uniform in [0, 2 pi).

    Raises:
        TypeError, ValueError: If anything does not fit.
    """
    require_integer("samples", samples, least=2)
    states = _RandomStates.of(circuit, features, draw)
    values = np.concatenate([meyer_wallach(part).numpy() for part in states.parts(samples, seed)])
    return DescriptorResult(float(values.mean()), float(values.std(ddof=1) / math.sqrt(samples)), samples)


def meyer_wallach(states: torch.Tensor) -> torch.Tensor:
    r"""The Meyer-Wallach measure of pure states, :math:`2\,(1 - \frac1n\sum_k \mathrm{tr}\,\rho_k^2)`; differentiable.

    From Meyer and Wallach, J. Math. Phys. 43, 4273 (2002), in the form of Brennen, arXiv:quant-ph/0305094.

    Args:
        states: Shape (..., 2**n), complex, such as those of ``layer.state``: of norm 1, n at least 1.

    Returns:
        Shape (...), real: from 0 (product states) to 1.

    Raises:
        TypeError: If they are no complex tensor.
        ValueError: If the length is not a power of two.
    """
    instance_of("states", states, torch.Tensor, "a tensor; give torch.as_tensor(states)")
    size = states.shape[-1] if states.dim() else 0
    num_qubits = size.bit_length() - 1
    if size < 2 or size != 1 << num_qubits:
        raise ValueError(f"states: got shape {tuple(states.shape)}, expected (..., 2**n) for n qubits.")
    if not states.is_complex():
        raise TypeError(f"states: got {states.dtype}, expected complex numbers; give states.to(torch.complex128).")
    purities = torch.zeros(states.shape[:-1], dtype=torch.view_as_real(states).dtype, device=states.device)
    for qubit in range(num_qubits):
        pairs = states.reshape(*states.shape[:-1], -1, 2, 1 << qubit).movedim(-2, 0).flatten(-2)
        zero, one = torch.view_as_real(pairs).square().sum(dim=(-2, -1))
        coherence = torch.view_as_real((pairs[0] * pairs[1].conj()).sum(dim=-1)).square().sum(dim=-1)
        purities = purities + zero.square() + one.square() + 2.0 * coherence
    return 2.0 * (1.0 - purities / num_qubits)


def effective_dimension(
    layer: QuantumLayer,
    features: torch.Tensor | Sequence[Any] | None = None,
    *,
    data: int | Sequence[int],
    samples: int = 100,
    gamma: float = 1.0,
    seed: int | None = None,
    draw: Draw | None = None,
) -> EffectiveDimensionResult:
    """The effective dimension of a layer that reads probabilities, from its classical Fisher information.

    Args:
        layer: A layer with ``probabilities=``, on a backend with exact values; its trainable weights are drawn.
        features: Shape (..., number of inputs), a sample of what the model will be given; None where there are no inputs.
        data: The number of data n, or several of them, each large enough that ``gamma * n / (2 pi log n)`` is above 1.
        samples: How many draws of weights, S.
        gamma: The constant of the definition, above 0 and at most 1.
        seed: Makes the draws repeatable.
        draw: Draws weights, shape (S, W), in the order of ``layer.parameters()``; None: uniform in [0, 2 pi).

    Raises:
        TypeError, ValueError: If anything does not fit, or the outcomes do not depend on the weights.
    """
    instance_of("layer", layer, QuantumLayer, "a QuantumLayer; make one of a circuit with probabilities=[qubits]")
    require_integer("samples", samples, least=2)
    _kappas(data, gamma)
    trained = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
    if not trained:
        raise ValueError(
            "layer: got one without trainable weights, expected some, whose Fisher information is computed."
        )
    drawn = _drawn(draw, seed, (samples, sum(weight.numel() for weight in trained.values())))
    rows = None if features is None else torch.as_tensor(features).detach().double()
    if rows is not None and not rows.numel():
        raise ValueError(f"features: got shape {tuple(rows.shape)}, expected at least one row.")
    model, matrices = _FisherOf(layer), []
    for weights in torch.from_numpy(drawn):
        parts = weights.split([weight.numel() for weight in trained.values()])
        named = {f"layer.{name}": part.clone().requires_grad_() for name, part in zip(trained, parts, strict=True)}
        with torch.no_grad():
            fisher = torch.func.functional_call(model, named, (rows,))
        matrices.append(fisher.double().cpu().reshape(-1, *fisher.shape[-2:]).mean(dim=0).numpy())
    return effective_dimension_of(np.stack(matrices), data=data, gamma=gamma)


def effective_dimension_of(
    fisher: np.ndarray | torch.Tensor, *, data: int | Sequence[int], gamma: float = 1.0
) -> EffectiveDimensionResult:
    """The effective dimension of any model, from its Fisher information at random weights.

    Args:
        fisher: Shape (S, W, W), S at least 2: at each draw of weights the mean over the inputs; it is normalised here.
        data: The number of data n, or several of them.
        gamma: The constant of the definition, above 0 and at most 1.

    Raises:
        ValueError: If the shape does not fit, anything is not finite, or all of it is zero.
    """
    matrices = np.asarray(torch.as_tensor(fisher).detach().cpu(), np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or len(matrices) < 2 or not matrices.shape[1]:
        raise ValueError(f"fisher: got shape {matrices.shape}, expected (S, W, W) for S draws, at least two.")
    if not np.isfinite(matrices).all():
        raise ValueError("fisher: got values that are not finite, expected finite ones.")
    sizes, kappas = _kappas(data, gamma)
    draws, width = matrices.shape[:2]
    traces = np.trace(matrices, axis1=1, axis2=2)
    if not traces.mean() > 0:
        raise ValueError("fisher: got zero for all draws, expected outcomes that depend on the weights.")
    spectra = np.linalg.eigvalsh(matrices).clip(min=0.0)  # rounding makes zeros negative
    values = _dimensions(spectra, traces.mean(), kappas)
    others = ~np.eye(draws, dtype=bool)
    left_out = np.array([_dimensions(spectra[keep], traces[keep].mean(), kappas) for keep in others])
    errors = np.sqrt((draws - 1) * left_out.var(axis=0))
    return EffectiveDimensionResult(values, errors, data=sizes, fisher=width * matrices / traces.mean())


def _dimensions(spectra: np.ndarray, trace: float, kappas: np.ndarray) -> np.ndarray:
    """Shape (K,): from the eigenvalues of Fisher information, shape (S, W), and its mean trace."""
    draws, width = spectra.shape
    halves = 0.5 * np.log1p(kappas[:, None, None] * (width / trace) * spectra).sum(axis=2)  # of log det
    dimensions: np.ndarray = 2.0 * (logsumexp(halves, axis=1) - math.log(draws)) / np.log(kappas)
    return dimensions


def _kappas(data: int | Sequence[int], gamma: float) -> tuple[tuple[int, ...], np.ndarray]:
    """The numbers of data, and kappa for each of them."""
    several: Any = data if isinstance(data, (Sequence, np.ndarray)) else [data]
    sizes = tuple(require_integer("data", size, least=2) for size in several)
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma <= 1:
        raise ValueError(f"gamma: got {gamma!r}, expected a number above 0 and at most 1.")
    kappas = np.array([gamma * size / (2.0 * math.pi * math.log(size)) for size in sizes])
    if not sizes or kappas.min() <= 1:
        raise ValueError(
            f"data: got {data} with gamma {gamma}, expected numbers with gamma * n / (2 pi log n) above 1: 19 or more for "
            "gamma 1, where the effective dimension begins to be defined."
        )
    return sizes, kappas


class _FisherOf(nn.Module):
    """A module whose output is the classical Fisher information of a layer, for ``functional_call``."""

    def __init__(self, layer: QuantumLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor | None) -> torch.Tensor:
        return self.layer.classical_fisher(features)


@dataclass(frozen=True, eq=False)
class _RandomStates:
    """The states of a circuit at random weights.

    Attributes:
        layer: The circuit with what is drawn, and what is fixed, as its inputs; None of them: no inputs.
        columns: Which of its inputs are drawn.
        fixed: Shape (number of inputs,): the values of the others.
        draw: Draws weights.
    """

    layer: QuantumLayer
    columns: np.ndarray
    _: KW_ONLY
    fixed: np.ndarray
    draw: Draw | None

    @classmethod
    def of(
        cls, circuit: QuantumLayer | QuantumCircuit, features: torch.Tensor | Sequence[float] | None, draw: Draw | None
    ) -> _RandomStates:
        instance_of("circuit", circuit, (QuantumLayer, QuantumCircuit), "a QuantumLayer or a QuantumCircuit")
        if isinstance(circuit, QuantumCircuit):
            if features is not None:
                raise ValueError(
                    "features: got some with a circuit, all of whose parameters are drawn; make a QuantumLayer of it, which "
                    "says what its inputs are."
                )
            names = list(circuit.parameters)
            layer = QuantumLayer(circuit, inputs=names, weights=[])
            return cls(layer, np.arange(len(names)), fixed=np.zeros(len(names)), draw=draw)
        return cls._of_layer(circuit, features, draw)

    @classmethod
    def _of_layer(
        cls, layer: QuantumLayer, features: torch.Tensor | Sequence[float] | None, draw: Draw | None
    ) -> _RandomStates:
        if not layer._source.is_pure:
            raise ValueError(
                f"backend: got {layer.backend.name!r} with noise, whose states are mixed, expected one that shows "
                "amplitudes; set layer.backend = 'statevector'."
            )
        inputs, *groups = layer.program.parameters
        row = np.zeros(0) if features is None else torch.as_tensor(features).detach().double().cpu().numpy()
        if row.shape != (len(inputs),) or not np.isfinite(row).all():
            raise ValueError(
                f"features: got {'none' if features is None else f'shape {row.shape}'}, expected one row of "
                f"{len(inputs)} finite numbers, shape ({len(inputs)},)."
            )
        weights = layer._weight_list()
        fixed = [row, *(weight.detach().double().cpu().numpy() for weight in weights)]
        free = [np.zeros(len(row), bool), *(np.full(weight.numel(), weight.requires_grad) for weight in weights)]
        names = [*inputs, *(name for group in groups for name in group)]
        every = QuantumLayer(layer._circuit, inputs=names, weights=[], backend=layer.backend)
        return cls(every, np.flatnonzero(np.concatenate(free)), fixed=np.concatenate(fixed), draw=draw)

    @property
    def num_qubits(self) -> int:
        return len(self.layer.program.layout)

    def parts(self, samples: int, seed: int | None) -> Iterator[torch.Tensor]:
        """So many states, in parts of an even number, shape (R, 2**n) each, complex128."""
        drawn = _drawn(self.draw, seed, (samples, len(self.columns)))
        rows = 2 * max(1, _AMPLITUDES_AT_ONCE >> self.num_qubits + 1)
        for first in range(0, samples, rows):
            part = drawn[first : first + rows]
            if not len(self.fixed):
                yield self.layer.state().detach().to(torch.complex128).expand(len(part), -1)
                continue
            values = np.tile(self.fixed, (len(part), 1))
            values[:, self.columns] = part
            with torch.no_grad():
                yield self.layer.state(torch.from_numpy(values)).cpu()


def _drawn(draw: Draw | None, seed: int | None, shape: tuple[int, int]) -> np.ndarray:
    """Random weights of this shape."""
    generator = np.random.default_rng(seed)
    if draw is None:
        return generator.uniform(0.0, 2.0 * math.pi, size=shape)
    drawn = np.asarray(draw(generator, shape), np.float64)
    if drawn.shape != shape or not np.isfinite(drawn).all():
        raise ValueError(f"draw: got shape {drawn.shape}, expected {shape}, finite numbers only.")
    return drawn


def _log_haar(bins: int, num_qubits: int) -> np.ndarray:
    """Shape (bins,): the logarithm of the probability that the fidelity of two Haar-random states is in each bin.

    By logarithms, because the last bins of many qubits are beyond the range of numbers.
    """
    power = 2.0**num_qubits - 1.0
    below, above = 1.0 - np.arange(bins) / bins, 1.0 - np.arange(1, bins + 1) / bins
    return power * np.log(below) + np.log1p(-((above / below) ** power))


def _divergence(counts: np.ndarray, log_haar: np.ndarray) -> ExpressibilityResult:
    """The divergence of a histogram from what Haar-random states have.

    The bias is estimated as Miller and Madow do it for entropies: (K - 1) / (2 M) for M fidelities in K bins, right to first
    order. The scatter in second order has the variance (K - 1) / (2 M**2), that of a chi-square; the plug-in estimate of the
    first order's variance has twice of it in excess.
    """
    samples, there = int(counts.sum()), counts > 0
    shares = counts[there] / samples
    ratios = np.log(shares) - log_haar[there]
    value = float(shares @ ratios)
    bias = (len(shares) - 1) / (2.0 * samples)
    second_order = bias / samples
    first_order = float(shares @ (ratios - value) ** 2) / samples - 2.0 * second_order
    error = math.sqrt(max(first_order, 0.0) + second_order)
    return ExpressibilityResult(value, error, samples, bias=bias, counts=counts)
