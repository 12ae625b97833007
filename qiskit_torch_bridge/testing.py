r"""Extending the library with a rule or a backend of your own, and checking gradients that have shot noise.

The letters in shapes are numbers:

| letter | number of |
|---|---|
| N | rows of the batch |
| A | angles of the compiled circuit, ``program.num_columns`` (each rotation has one) |
| W | wanted angles: those whose gradient is asked for, ``len(columns)`` |
| K | points at which a rule has the circuit evaluated, for each row |
| M | outputs |

**A gradient rule** is a frozen value that returns a table of shifts and coefficients
(:class:`qiskit_torch_bridge.GradientRule`, :class:`qiskit_torch_bridge.Stencil`); all else, from one backend call to error
bars, follows from it. This one differentiates each row of a batch by a few angles only, drawn at random, and is right in
the mean. It evaluates the circuit at two points for each angle that it draws, so K is twice their number:

```python
from dataclasses import dataclass

import numpy as np

from qiskit_torch_bridge import GradientRule, Program, SeedStream, Stencil


@dataclass(frozen=True)
class RandomAngles(GradientRule):
    # Parameter shift by some of the wanted angles of each row, times W / angles.
    angles: int = 4
    name = "random_angles"

    def stencil(
        self,
        program: Program,
        columns: tuple[int, ...],
        *,
        rows: int,
        shots: int | None,
        seeds: SeedStream,
    ) -> Stencil:
        rng = np.random.default_rng(seeds.next())  # of the layer's seed: repeatable
        count = min(self.angles, len(columns))
        shifts = np.zeros((rows, 2 * count, program.num_columns))  # (N, K, A), radians
        coefficients = np.zeros((rows, len(columns), 2 * count))  # (N, W, K)
        for row in range(rows):
            for k, place in enumerate(rng.permutation(len(columns))[:count]):
                for point, sign in ((2 * k, 1), (2 * k + 1, -1)):
                    shifts[row, point, columns[place]] = sign * np.pi / 2
                    coefficients[row, place, point] = sign / 2 * len(columns) / count
        return Stencil(shifts, coefficients)
```

Use it as ``QuantumLayer(..., gradient=RandomAngles(2), shots=100)``.

**A backend** evaluates a compiled program at many angle vectors in one call (:class:`qiskit_torch_bridge.Backend`). This
one takes shots from Qiskit's own ``Statevector``; a readout group says which qubits to measure, and the counts give values,
variances and covariances:

```python
import numpy as np
from numpy.random import SeedSequence
from qiskit.quantum_info import Statevector

from qiskit_torch_bridge import Backend, Estimate, Program
from qiskit_torch_bridge.backends.base import check_shots, measured_circuit
from qiskit_torch_bridge.backends.results import estimate_from_samples
from qiskit_torch_bridge.program.readout import Samples, bits_of


class QuantumInfoBackend(Backend):
    name = "quantum_info"

    def resolve_shots(self, shots: int | None) -> int:
        return check_shots(shots) or 1000  # never exact

    def prepare(self, program: Program) -> None:
        if program.circuit.num_qubits > 12:
            raise ValueError(f"circuit: got {program.circuit.num_qubits} qubits, expected at most 12.")

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: SeedSequence
    ) -> Estimate:
        assert shots is not None  # as resolve_shots says
        rng, measured = np.random.default_rng(seed), []
        for group in program.readout.groups:
            circuit = measured_circuit(program, group, compact=False)
            circuit.remove_final_measurements()
            counts = []
            for row in angles:  # shape (A,), radians
                state = Statevector(circuit.assign_parameters(dict(zip(program.angles, row))))
                p = state.probabilities(list(group.qubits))
                counts.append(rng.multinomial(shots, p / p.sum()))
            rows, outcomes = np.nonzero(counts)
            bits = bits_of(outcomes, len(group.qubits))
            measured.append(Samples(rows, bits, np.array(counts)[rows, outcomes], len(angles)))
        return estimate_from_samples(program, measured, len(angles))
```

Use it as ``QuantumLayer(..., backend=QuantumInfoBackend(), shots=100)``.

**Checking them.** ``torch.autograd.gradcheck`` compares a gradient with small differences of the values. With shots that is
meaningless: the values scatter by far more than they differ. :func:`shot_gradcheck` takes the gradient many times instead,
and asks whether its mean could be the exact gradient, given how much it scatters:

```python
shot_gradcheck(layer, features)  # raises if not; also for a model that holds quantum layers
```

Each quantum layer is checked by itself, at the features that it sees when the model is given its inputs, by all of its
trainable weights and features. For a random upstream gradient u, drawn once, the vector-Jacobian product
:math:`g = u \cdot J` is measured R times, through the layer's own backend, rule and shots. With the exact one,
:math:`\gamma`, from exact simulation and adjoint differentiation, each derivative i gives

.. math:: t_i = \frac{\bar g_i - \gamma_i}{\sigma_i / \sqrt{R}},

where :math:`\sigma_i` is the standard deviation over the R repeats, or what theory predicts for so many shots if that
is larger (outcomes that are rare may not have come up at all). The check fails if any :math:`|t_i|` exceeds the
quantile of Student's distribution with R - 1 degrees of freedom at :math:`\alpha / (2 T)` (Bonferroni, T derivatives).
So a model without fault fails with a probability of at most :math:`\alpha` in all, however many weights it has, as far as
a mean over R gradients is normal.

A backend with noise gives biased gradients, whatever the rule, and fails. ``reference=`` names a backend that simulates the
same noise exactly, with which to compare instead, such as ``reference=DensityMatrixBackend(noise)``; ``bias=`` says how
large a bias is allowed.

The layers between quantum layers are PyTorch's, and are not checked. Neither is the map from angles to parameters,
which measured and exact gradient share; ``torch.autograd.gradcheck`` does that for a layer with exact simulation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.autograd.gradcheck import GradcheckError

from .backends import Backend, check_shots, resolve_backend
from .backends.statevector import StatevectorBackend
from .layer import QuantumLayer

__all__ = ["ShotGradcheck", "shot_gradcheck"]


@dataclass(frozen=True)
class ShotGradcheck:
    """What :func:`shot_gradcheck` found.

    Attributes:
        passed: Whether no derivative is further from the exact one than chance allows.
        largest: The largest deviation, in standard errors of the mean.
        threshold: What chance allows, likewise.
        alpha: The family-wise error: the probability that a model without fault fails.
        comparisons: How many derivatives were compared.
        repeats: How often each was measured.
        circuits: Circuits executed for it, on the models' own backends.
        shots: Shots spent on them.
        worst: The derivative that deviates most, in words.
        noisy_backend: The name of the backend that measured it, where noise of the device may be the reason: the reference
            is a simulation without noise, and the backend may not be one. Empty elsewhere.
    """

    passed: bool
    largest: float
    threshold: float
    alpha: float
    _: KW_ONLY
    comparisons: int
    repeats: int
    circuits: int
    shots: int
    worst: str
    noisy_backend: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict, advice = "The gradient is wrong", ""
        if self.passed:
            verdict = "The gradient agrees with the exact one"
        elif self.noisy_backend:
            verdict = "The gradient differs from the exact one without noise"
            advice = (
                f" If backend {self.noisy_backend!r} has noise, this may be the device's bias, which is no fault of the "
                "rule. Compare with an exact simulation of the same noise: reference=DensityMatrixBackend(...), with the "
                "noise model or the device. Or allow for the bias: bias=."
            )
        return (
            f"{verdict}: of {self.comparisons} derivatives, each measured {self.repeats} times, the one that deviates most "
            f"is {self.worst}; that is {self.largest:.1f} standard errors, where chance allows {self.threshold:.1f} "
            f"(family-wise error {self.alpha:g}).{advice}"
        )


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be measured of one call of a quantum layer, and what theory says of it; derivatives are flattened.

    Attributes:
        layer: The layer.
        features: What it is called with.
        shots: With how many shots; None: its own.
        parameters: What to derive by.
        upstream: The gradient by its outputs.
        names: What each derivative is by.
        exact: The derivatives, by exact simulation.
        expected: The standard error of one measurement of each, as predicted.
        noisy_backend: As in :class:`ShotGradcheck`.
    """

    layer: QuantumLayer
    features: torch.Tensor | None
    shots: int | None
    _: KW_ONLY
    parameters: dict[str, torch.Tensor]
    upstream: torch.Tensor
    names: list[str]
    exact: np.ndarray
    expected: np.ndarray
    noisy_backend: str

    def measured(self, repeats: int) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the derivatives over so many measurements, and its standard error."""
        arguments = () if self.features is None else (self.features,)
        with torch.enable_grad():
            gradients = np.stack(
                [
                    _gradient(self.layer.forward(*arguments, shots=self.shots), self.parameters, self.upstream)
                    for _ in range(repeats)
                ]
            )
        scatter = np.maximum(gradients.std(axis=0, ddof=1), self.expected)
        return gradients.mean(axis=0), scatter / math.sqrt(repeats)


@dataclass(frozen=True)
class _Criterion:
    """What the check is held against: arguments of :func:`shot_gradcheck`, and the quantile that follows from them."""

    repeats: int
    alpha: float
    bias: float
    threshold: float

    @classmethod
    def of(cls, repeats: int, alpha: float, bias: float, comparisons: int) -> _Criterion:
        return cls(repeats, alpha, bias, float(stats.t.isf(alpha / (2 * comparisons), repeats - 1)))

    def measured(self, plans: Sequence[_Plan]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The means and their standard errors, if the check can fail by them."""
        for plan in plans:  # before anything is spent
            self.require_power(plan.exact, plan.expected / math.sqrt(self.repeats))
        measured = [plan.measured(self.repeats) for plan in plans]
        for plan, (_, error) in zip(
            plans, measured, strict=True
        ):  # SPSA's directions scatter by more than theory knows
            self.require_power(plan.exact, error)
        return measured

    def require_power(self, exact: np.ndarray, error: np.ndarray) -> None:
        """Refuses a check that could hardly fail.

        A gradient of twice the size deviates by itself, less the bias that is allowed, and its error is twice as large too.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = np.maximum(np.abs(exact) - self.bias, 0.0) / (2 * error)
        strongest = float(np.nan_to_num(seen, nan=0.0).max(initial=0.0))
        if strongest >= self.threshold:
            return
        if strongest == 0.0:
            advice = "the exact gradient is zero, or no larger than the bias: give other weights or features"
        else:
            repeats = math.ceil(self.repeats * (1.5 * self.threshold / strongest) ** 2)
            advice = f"give about repeats={repeats}, or more shots"
        raise ValueError(f"repeats: with {self.repeats}, even a gradient of twice the size would pass; {advice}.")

    def report(
        self, plans: Sequence[_Plan], measured: Sequence[tuple[np.ndarray, np.ndarray]], circuits: int, shots: int
    ) -> ShotGradcheck:
        """What the means and their standard errors say."""
        names = [name for plan in plans for name in plan.names]
        noisy_backends = [plan.noisy_backend for plan in plans for _ in plan.names]
        exact = np.concatenate([plan.exact for plan in plans])
        mean, error = (np.concatenate(parts) for parts in zip(*measured, strict=True))
        # Rounding of single precision, where nothing scatters.
        rounding = 1e-5 * max(1.0, float(np.abs(exact).max(initial=0.0)))
        excess = np.maximum(np.abs(mean - exact) - self.bias, 0.0)
        deviations = np.where(excess <= rounding, 0.0, excess / np.maximum(error, rounding / self.threshold))
        worst = int(np.argmax(deviations))
        largest = float(deviations[worst])
        return ShotGradcheck(
            largest <= self.threshold,
            largest,
            self.threshold,
            self.alpha,
            comparisons=len(names),
            repeats=self.repeats,
            circuits=circuits,
            shots=shots,
            worst=f"the one {names[worst]}: {mean[worst]:.4g} +- {error[worst]:.2g}, expected {exact[worst]:.4g}",
            noisy_backend=noisy_backends[worst],
        )


def shot_gradcheck(
    model: nn.Module,
    *inputs: Any,
    repeats: int = 100,
    shots: int | None = None,
    alpha: float = 1e-3,
    bias: float = 0.0,
    reference: Any = None,
    seed: int = 0,
    raise_exception: bool = True,
) -> ShotGradcheck:
    """Checks the gradients that a model's quantum layers measure with shots against the exact ones; see above for how.

    There are many options because each number of the statistics can be chosen.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within, of which a copy can be made.
        *inputs: What the model is called with.
        repeats: How often each gradient is measured; each costs a training step on the layer's backend.
        shots: Shots a circuit; None: each layer's own.
        alpha: The family-wise error.
        bias: A systematic error that is allowed, in the units of the gradient: for finite differences and SPSA with large
            steps, whose mean is not the exact gradient.
        reference: A backend for the exact gradient; None: exact simulation without noise. For layers on a noisy backend,
            a :class:`qiskit_torch_bridge.DensityMatrixBackend` with the same noise (readout errors included) and device.
        seed: For the upstream gradient. The shots follow from the layers' own seeds.
        raise_exception: Whether to raise if the check fails, as ``torch.autograd.gradcheck`` does.

    Returns:
        What was found; true if passed.

    Raises:
        ValueError: If there is nothing to check, or so much noise that even a gradient of twice the size would pass, before
            anything is spent as far as theory can tell; the message says how many repeats would do.
        torch.autograd.gradcheck.GradcheckError: If the check fails.
    """
    _check_numbers(repeats, alpha, bias)
    exact_backend, rng, layers = resolve_backend(reference), np.random.default_rng(seed), _layers_in(model)
    before = [(layer.total_circuits, layer.total_shots) for layer in layers.values()]
    calls = [
        (layers[name], name, x, check_shots(own if shots is None else shots)) for name, x, own in _calls(model, inputs)
    ]
    plans = [_plan(*call, exact_backend, rng) for call in calls]
    criterion = _Criterion.of(repeats, alpha, bias, sum(len(plan.names) for plan in plans))
    measured = criterion.measured(plans)
    spent = np.array([(layer.total_circuits, layer.total_shots) for layer in layers.values()]) - before
    report = criterion.report(plans, measured, *(int(total) for total in spent.sum(axis=0)))
    if raise_exception and not report.passed:
        raise GradcheckError(str(report))
    return report


def _check_numbers(repeats: int, alpha: float, bias: float) -> None:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 10:
        raise ValueError(f"repeats: got {repeats!r}, expected an integer from 10.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: got {alpha!r}, expected a probability between 0 and 1.")
    if not 0 <= bias < math.inf:
        raise ValueError(f"bias: got {bias!r}, expected a number from 0.")


def _calls(model: nn.Module, inputs: Sequence[Any]) -> list[tuple[str, torch.Tensor | None, int | None]]:
    """What each quantum layer is called with (its name, features, shots), in order, with exact values throughout.

    The model is left alone: a copy of it is called.
    """
    calls: list[tuple[str, torch.Tensor | None, int | None]] = []

    def noting(name: str) -> Any:
        def note(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            features = arguments[0] if arguments else keywords.get("features")
            calls.append((name, None if features is None else features.detach().clone(), keywords.get("shots")))
            return arguments, {**keywords, "shots": None}

        return note

    twin = _exact_twin(model, resolve_backend(None))
    for name, layer in _layers_in(twin).items():
        layer.register_forward_pre_hook(noting(name), with_kwargs=True)
    with torch.no_grad(), torch.random.fork_rng():
        twin(*inputs)
    if not calls:
        raise ValueError("model: none of its quantum layers was called, so there is nothing to check.")
    for name, features, _ in calls:
        if features is not None and 0 in features.shape[:-1]:
            raise ValueError(
                f"inputs: quantum layer {name!r} gets features of shape {tuple(features.shape)}, expected some rows."
            )
    return calls


def _exact_twin(model: nn.Module, backend: Backend) -> Any:
    """A copy, with the model's own parameters, whose quantum layers give exact values and gradients."""
    known: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    # Stored outputs, and the weights of ``weight_norm``, have a history, with which PyTorch copies no tensor.
    for tensor in (value for module in model.modules() for value in vars(module).values()):
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf:
            known[id(tensor)] = tensor.detach().clone()
    twin = copy.deepcopy(model, known)
    for layer in _layers_in(twin).values():
        layer._rule, layer._shots, layer._allocation = None, None, "uniform"
        layer.backend = backend
    return twin


def _layers_in(model: nn.Module) -> dict[str, QuantumLayer]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantumLayer)}
    if not layers:
        raise ValueError(f"model: got {type(model).__name__} without a QuantumLayer, expected one with at least one.")
    return layers


def _plan(
    layer: QuantumLayer,
    name: str,
    features: torch.Tensor | None,
    shots: int | None,
    exact_backend: Backend,
    rng: np.random.Generator,
) -> _Plan:
    method = layer.method(shots)
    if method.shots is None:
        raise ValueError(
            f"shots: quantum layer {name!r} is exact; give a number of shots, or use torch.autograd.gradcheck, which is for "
            "exact gradients."
        )
    parameters: dict[str, torch.Tensor] = {n: w for n, w in layer.named_parameters() if w.requires_grad and w.numel()}
    if features is not None and features.shape[-1] and not layer.program.blocks:
        features = features.requires_grad_()
        parameters["features"] = features
    if not parameters:
        raise ValueError(f"model: quantum layer {name!r} has neither inputs nor trainable weights to derive by.")
    twin = _exact_twin(layer, exact_backend)  # called as it is, for a subclass, or a parametrisation, may do more
    with torch.enable_grad():
        values = twin.forward() if features is None else twin.forward(features)
        upstream = torch.from_numpy(rng.normal(size=tuple(values.shape))).to(values)
        exact = _gradient(values, parameters, upstream)
    assert twin.last_run is not None
    predicted = twin.last_run.predicted(method.shots, method.rule)
    by_weights = predicted.gradient_standard_errors
    theory = [*by_weights.values()] if isinstance(by_weights, dict) else [by_weights]
    theory = [part for part in (*theory, predicted.input_gradient_standard_errors) if part is not None]
    suffix = f" of {name}" if name else ""
    return _Plan(
        layer,
        features,
        shots,
        parameters=parameters,
        upstream=upstream,
        names=[
            f"by {p}{list(index)}{suffix}" for p, tensor in parameters.items() for index in np.ndindex(tensor.shape)
        ],
        exact=exact,
        expected=np.concatenate([np.ravel(part) for part in theory]),
        noisy_backend=_noisy_backend(method.backend, exact_backend),
    )


def _noisy_backend(backend: Backend, reference: Backend) -> str:
    noise_may_differ = isinstance(reference, StatevectorBackend) and not isinstance(backend, StatevectorBackend)
    return backend.name if noise_may_differ else ""


def _gradient(values: torch.Tensor, parameters: dict[str, torch.Tensor], upstream: torch.Tensor) -> np.ndarray:
    parts = torch.autograd.grad(values, list(parameters.values()), upstream)
    return np.concatenate([part.detach().cpu().double().numpy().ravel() for part in parts])
