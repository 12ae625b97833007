r"""Zero-noise extrapolation: values with more noise than there is tell those with none.

(Temme, Bravyi and Gambetta, Phys. Rev. Lett. 119, 180509 (2017); Li and Benjamin, Phys. Rev. X 7, 021050 (2017); by folded
gates: Giurgica-Tiron et al., arXiv 2005.10921.)

The same value :math:`f` is measured with the errors of its gates multiplied by :math:`\lambda_1 < \dots < \lambda_n`, and a
fit of :math:`f(\lambda)` is read at zero. Two of the fits are weighted sums with constant weights,
:math:`\hat f = \sum_k w_k f(\lambda_k)`:

- ``"linear"``, a straight line by least squares:
  :math:`w_k = \frac{1}{n} - \frac{\bar\lambda \, (\lambda_k - \bar\lambda)}{\sum_j (\lambda_j - \bar\lambda)^2}`;
- ``"richardson"``, the polynomial of degree :math:`n - 1` through all points:
  :math:`w_k = \prod_{j \ne k} \frac{\lambda_j}{\lambda_j - \lambda_k}`.

Their variances are :math:`\sum_k w_k^2 \, \mathrm{Var} f(\lambda_k)`, exactly. ``"exponential"`` is
:math:`a + s\,e^{-b\lambda}` with a known asymptote :math:`a`, by least squares of the logarithm, with the weights of the
straight line: :math:`\hat f = a \pm \exp \sum_k w_k \log|f(\lambda_k) - a|`. It is not linear, so its standard errors are to
first order (:math:`\partial \hat f / \partial f(\lambda_k) = w_k (\hat f - a) / (f(\lambda_k) - a)`), and it has a bias of
second order in the errors of what was measured.

**Gradients** need nothing of their own: a gradient rule evaluates extrapolated values at its shifted points. That
estimates the derivative of the value without noise. As long as errors do not depend on the angles, and no folded gate has
the angle, each :math:`f(\lambda_k)` is a trigonometric polynomial in an angle as :math:`f` is, so that a shift rule
differentiates it exactly; a weighted sum of them with constant weights is one too, and its derivative is the extrapolated
derivative. An angle in a folded gate (any gate by ``fold="global"``, a free ``rzz`` by ``"local"``) is there several times
with errors in between: what a shift rule then gives differs from the derivative of the extrapolated values by less than
the errors change them (0.0001 where they change values by 0.02). By the exponential fit the value at each shifted point
estimates the noise-free value there, to which the rule applies; what is wrong with the fit at a point is wrong with the
derivative too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np

from ..arguments import one_of, require_number
from ..backends.base import Backend, Estimate
from ..backends.transpiling import bounded_gates
from ..program.compiled import Program
from ..program.readout import OutcomeGroup, Probabilities
from .combining import combined
from .folding import Folding
from .methods import Mitigation, MitigationPlan

__all__ = ["ZeroNoiseExtrapolation", "linear_weights", "richardson_weights"]

_STANDARD_ERRORS_APART = 2.0
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ZeroNoiseExtrapolation(Mitigation):
    """Measures with folded gates too, and extrapolates to no noise (:mod:`qiskit_torch_bridge.mitigation.extrapolation`).

    Each factor is one more execution of everything, values and gradients: three factors cost three times as much, which
    quotes, caps and schedules count. Error bars grow as well, at equal shots a circuit (linear 1, 3, 5: by 1.2; Richardson:
    by 2.3); they know the shots, and not what the fit leaves of the bias. Readout errors are not multiplied by folded gates:
    correct them first (``mitigation=[ReadoutCorrection(), ZeroNoiseExtrapolation()]``).

    Attributes:
        factors: By how much the errors are multiplied: at least two different ones, each from 1. A factor between odd
            integers is reached as far as whole gates allow; the fit takes the one that is reached.
        fold: ``"local"``: each gate of two or more qubits; ``"global"``: the whole circuit
            (:class:`qiskit_torch_bridge.mitigation.folding.Folding`).
        fit: ``"linear"``, ``"richardson"`` or ``"exponential"``.
        asymptote: Of the exponential fit, for all outputs; None: what a completely mixed state gives, 0 for Pauli
            observables without identity. A value has no exponential fit if it does not lie on the same side of the asymptote
            at all factors, or at one of them is nearer to it than two standard errors. It is then extrapolated by a straight
            line, with the standard error of that, and a ``UserWarning`` says so: such a mixture is biased.

    Raises:
        TypeError, ValueError: If an argument is something else.
    """

    factors: Sequence[float] = (1, 3, 5)
    _: KW_ONLY
    fold: str = "local"
    fit: str = "linear"
    asymptote: float | None = None

    def __post_init__(self) -> None:
        one_of("fold", self.fold, ("local", "global"))
        one_of("fit", self.fit, ("linear", "richardson", "exponential"))
        object.__setattr__(self, "factors", _checked_factors(self.factors))
        if self.asymptote is not None:
            asymptote = require_number("asymptote", self.asymptote)
            if self.fit != "exponential" or not math.isfinite(asymptote):
                raise ValueError(
                    f"asymptote: got {self.asymptote} with fit={self.fit!r}, expected a finite number with "
                    "fit='exponential', or None."
                )

    def plan(self, program: Program, backend: Backend) -> MitigationPlan:
        if backend.extrapolates:
            raise ValueError(
                f"mitigation: got {self} for {backend.name!r}, whose Estimator extrapolates to no noise itself (its option "
                "resilience.zne_mitigation); leave one of the two out."
            )
        circuits = backend.circuits(program)
        if not circuits:
            return MitigationPlan((program,), lambda estimates, _: estimates[0])
        target = getattr(getattr(backend, "device", None), "target", None)
        bounded = () if target is None else tuple(sorted(bounded_gates(target)))
        foldings = [Folding(factor, self.fold, bounded) for factor in self.factors]
        # Measurement groups are transpiled each by itself, mostly to the same gates.
        effective = [float(np.mean([one.effective_factor(c) for c in circuits])) for one in foldings]
        if len(set(effective)) < len(effective):
            raise ValueError(
                f"factors: got {list(self.factors)}, which are {effective} for this circuit: it has too few gates to be "
                "folded in part; give factors that lie farther apart, such as 1, 3, 5."
            )
        programs = [
            program if factor == 1 else program.varied(folding)
            for factor, folding in zip(effective, foldings, strict=True)
        ]
        weights = richardson_weights(effective) if self.fit == "richardson" else linear_weights(effective)
        if self.fit != "exponential":
            return MitigationPlan(tuple(programs), lambda estimates, _: combined(estimates, weights))
        asymptotes = _mixed_values(program) if self.asymptote is None else np.array(float(self.asymptote))
        fit = partial(_exponential, weights=weights, asymptotes=asymptotes)
        return MitigationPlan(tuple(programs), lambda estimates, _: fit(estimates))


def linear_weights(factors: Sequence[float]) -> list[float]:
    """What the values at some factors add to that of their regression line at zero."""
    mean = sum(factors) / len(factors)
    spread = sum((factor - mean) ** 2 for factor in factors)
    return [1 / len(factors) - mean * (factor - mean) / spread for factor in factors]


def richardson_weights(factors: Sequence[float]) -> list[float]:
    """What the values at some factors add to that of the polynomial through all of them at zero."""
    return [math.prod(other / (other - one) for other in factors if other != one) for one in factors]


def _exponential(estimates: Sequence[Estimate], *, weights: Sequence[float], asymptotes: np.ndarray) -> Estimate:
    shape = (len(estimates), *estimates[0].values.shape)
    distances = np.stack([each.values for each in estimates]) - asymptotes
    errors = np.sqrt(np.stack([each.variances for each in estimates]))
    exists = (np.abs(distances) > np.maximum(_STANDARD_ERRORS_APART * errors, _ROUNDING)).all(axis=0)
    exists &= (np.sign(distances) == np.sign(distances[0])).all(axis=0)
    if not (exists | (np.abs(distances) <= _ROUNDING).all(axis=0)).all():
        warnings.warn(
            "Some values have no exponential fit, because they change their side of the asymptote with the noise, or are "
            "within two standard errors of it; these are extrapolated by a straight line. More shots help, or "
            "fit='linear' for all.",
            stacklevel=2,
        )
    of_line = np.array(weights).reshape(-1, 1, 1)
    safe = np.where(exists, distances, 1.0)
    logarithms = (of_line * np.log(np.abs(safe))).sum(axis=0)
    extrapolated = np.sign(safe[0]) * np.exp(logarithms)
    slopes = np.where(exists, of_line * extrapolated / safe, np.broadcast_to(of_line, shape))
    values = np.where(exists, extrapolated, (of_line * distances).sum(axis=0)) + asymptotes
    return combined(estimates, list(slopes), values)


def _mixed_values(program: Program) -> np.ndarray:
    """Shape (M,): the outputs of a completely mixed state."""
    readout = program.readout
    if not isinstance(readout, Probabilities):
        return readout.constants
    (group,) = readout.groups
    assert isinstance(group, OutcomeGroup)
    return np.bincount(group.outputs, minlength=readout.num_outputs) / len(group.outputs)


def _checked_factors(factors: object) -> tuple[float, ...]:
    if not isinstance(factors, (list, tuple)):
        raise TypeError(f"factors: got {factors!r} ({type(factors).__name__}), expected a tuple such as (1, 3, 5).")
    checked = tuple(require_number("factors", factor) for factor in factors)
    if len(set(checked)) < 2 or len(set(checked)) < len(checked) or not all(1 <= f < math.inf for f in checked):
        raise ValueError(
            f"factors: got {list(checked)}, expected at least two different numbers from 1, such as 1, 3, 5."
        )
    return tuple(sorted(checked))
