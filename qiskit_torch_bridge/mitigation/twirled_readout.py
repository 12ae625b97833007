"""``TwirledReadout``: readout errors made symmetric by random flips, which leaves one factor for each Pauli string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..arguments import require_integer
from ..backends.base import Backend, Estimate
from ..program.compiled import Program
from ..program.readout import Expectation, MeasurementGroup, PauliGroup, Samples, bits_of
from ..shots.covariance import Covariance, variance_of_one_shot
from .methods import Calibration, Mitigation, MitigationPlan
from .readout_circuits import Flipped, prepared, require_outcomes

__all__ = ["TwirledReadout"]

_LEAST_FACTOR = 0.05
_MOST_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class TwirledReadout(Mitigation):
    r"""Twirled readout error extinction (TREX), for expectation values.

    The shots of a circuit are spread over ``randomizations`` of it, each with other measured qubits flipped just before the
    measurement, and the measured bits flipped back. On average over the flips a readout error of any kind, crosstalk
    between qubits included, multiplies the value of each Pauli string P by a factor :math:`\lambda_P`. The ground state,
    measured with the same flips once a calibration of the device, gives the factors, by which values are divided:

    .. math:: \langle P \rangle = \frac{\langle P \rangle_\mathrm{twirled}}{\lambda_P} , \qquad
        \lambda_P = \langle P \rangle_\mathrm{twirled, ground\ state} .

    (van den Berg, Minev, Temme, *Model-free readout-error mitigation for quantum expectation values*, Phys. Rev. A 105,
    032620, 2022.) The flips are not drawn, but balanced: what errors that are not the same for 0 and 1 leave behind cancels
    for strings of up to three bits whose numbers in the measurement differ modulo half the randomizations. Of
    longer strings there remain products of four bits' asymmetries.

    **Cost**: as many shots as without, rounded up to a multiple of the randomizations, but more circuits to load; for each
    measurement group ``calibration_rows`` times a circuit's shots, once a calibration
    (:attr:`qiskit_torch_bridge.Quote.once`). Randomizations of a circuit count as one circuit in ``last_run``. A flip is an
    ``x`` gate, whose errors are not corrected. Shot noise grows by :math:`1 / \lambda_P`.

    **Error bars** hold the calibration's own shots, as those of :class:`qiskit_torch_bridge.ReadoutCorrection` do: a part
    that is the same for all rows and steps.

    IBM's primitives flip bits themselves with the option ``twirling.enable_measure``; with both, the backend is refused.

    Args:
        randomizations: Over how many the shots are spread: a power of 2.
        calibration_rows: How often the calibration is measured with the shots of one circuit.

    Raises:
        TypeError, ValueError: If they are no such integers.
    """

    reads_outcomes: ClassVar[bool] = True

    randomizations: int = 16
    calibration_rows: int = 8

    def __post_init__(self) -> None:
        for name, least in {"randomizations": 2, "calibration_rows": 1}.items():
            object.__setattr__(self, name, require_integer(name, getattr(self, name), least=least))
        if self.randomizations.bit_count() > 1:
            raise ValueError(f"randomizations: got {self.randomizations}, expected a power of 2, such as 16.")

    def plan(self, program: Program, backend: Backend) -> MitigationPlan:
        if not isinstance(program.readout, Expectation):
            raise ValueError(
                "mitigation: got TwirledReadout with probabilities, expected observables, whose Pauli strings it corrects; "
                "use ReadoutCorrection."
            )
        require_outcomes(self, program, backend)
        if backend.twirls_readout:
            raise ValueError(
                f"mitigation: got TwirledReadout for {backend.name!r}, whose option twirling.enable_measure flips bits "
                "already; switch that off, or use ReadoutCorrection, whose calibration is flipped in the same way then."
            )
        draws = [Flipped(number, self.randomizations) for number in range(self.randomizations)]
        ground = prepared(program, 0)
        groups = [group for group in program.readout.groups if isinstance(group, PauliGroup)]

        @lru_cache(maxsize=1)
        def twirled_groups_of(*calibrated: Estimate) -> list[_TwirledGroup]:
            return [_twirled_group(group, draws, calibrated, number) for number, group in enumerate(groups)]

        def combine(estimates: Sequence[Estimate], calibrated: Sequence[Estimate]) -> Estimate:
            return _divided(estimates, program.readout.constants, twirled_groups_of(*calibrated))

        return MitigationPlan(
            tuple(map(program.varied, draws)),
            combine,
            tuple(Calibration(ground.varied(each), self.calibration_rows) for each in draws),
            spread=self.randomizations,
        )


@dataclass(frozen=True, eq=False)
class _TwirledGroup:
    """A measurement group in all its randomizations.

    Attributes:
        flipped: For each, the group whose scores are those of its outputs, flipped back and divided by their factors.
        strings: Likewise, with the T Pauli strings in place of the outputs.
        coefficients: Shape (T, M): of the strings in the outputs.
        covariance: Shape (T, T): that of the factors, relative to them.
    """

    flipped: tuple[MeasurementGroup, ...]
    strings: tuple[MeasurementGroup, ...]
    coefficients: np.ndarray
    covariance: np.ndarray

    def variances_of_calibration(
        self, measured: Sequence[np.ndarray | Samples], upstream: np.ndarray | None = None
    ) -> np.ndarray:
        """What the errors of the factors add to the variances, shape (N, M); or to that of ``sum_m u_m f_m``, shape (N,)."""
        pairs = zip(self.strings, measured, strict=True)
        means = np.mean([_moments(group, each)[0] for group, each in pairs], axis=0)
        if upstream is not None:
            along = means * (upstream @ self.coefficients.T)
            return np.maximum(np.einsum("nt,ts,ns->n", along, self.covariance, along, optimize=True), 0.0)
        size = max(1, _MOST_NUMBERS_AT_ONCE // self.coefficients.size)
        parts = []
        for start in range(0, len(means), size):
            along = means[start : start + size, None] * self.coefficients.T
            parts.append(np.einsum("nmt,ts,nms->nm", along, self.covariance, along, optimize=True))
        return np.maximum(np.concatenate(parts), 0.0)


def _twirled_group(
    group: PauliGroup, draws: Sequence[Flipped], calibrated: Sequence[Estimate], number: int
) -> _TwirledGroup:
    """The measurement group of that number, with the factors that the calibrations show.

    Raises:
        ValueError: If nothing is left of a string.
    """
    signs = np.stack([1.0 - 2.0 * (group.supports @ draw.flips(len(group.qubits)) % 2) for draw in draws])
    means, covariances = [], []
    for sign, estimate in zip(signs, calibrated, strict=True):
        assert estimate.measured is not None
        shots = estimate.shots // estimate.circuits if estimate.shots else None
        mean, covariance = _parities(group, estimate.measured[number], shots)
        means.append(sign * mean)
        covariances.append(covariance * np.outer(sign, sign))
    factors, errors = np.mean(means, axis=0), np.sum(covariances, axis=0) / len(draws) ** 2
    worst = int(factors.argmin())
    if factors[worst] < _LEAST_FACTOR:
        qubits = [group.qubits[bit] for bit in np.flatnonzero(group.supports[worst])]
        raise ValueError(
            f"mitigation: the calibration of the Pauli string on qubits {qubits} of the circuit gives {factors[worst]:.3g}, "
            f"expected at least {_LEAST_FACTOR:g}: nothing that could be corrected is left of it. Choose other qubits "
            "(initial_layout), observables of fewer qubits, more shots, or a larger calibration_rows."
        )

    def with_coefficients(coefficients: np.ndarray) -> tuple[MeasurementGroup, ...]:
        return tuple(
            PauliGroup(group.qubits, group.bases, group.supports, coefficients * (sign / factors)[:, None])
            for sign in signs
        )

    return _TwirledGroup(
        with_coefficients(group.coefficients),
        with_coefficients(np.eye(len(factors))),
        group.coefficients,
        errors / np.outer(factors, factors),
    )


def _divided(estimates: Sequence[Estimate], constants: np.ndarray, groups: Sequence[_TwirledGroup]) -> Estimate:
    """One estimate of all randomizations."""
    spread, rows, shots = len(estimates), len(estimates[0].values), sum(each.shots for each in estimates)
    circuits = sum(each.circuits for each in estimates) // spread
    of_groups = [[each.measured[g] for each in estimates if each.measured is not None] for g in range(len(groups))]
    measurements = list(zip(groups, of_groups, strict=True))
    taken: np.ndarray | float = np.inf
    values = np.broadcast_to(constants, (rows, len(constants))).copy()
    variances = np.zeros_like(values)
    for group, measured in measurements:
        for flipped, outcomes in zip(group.flipped, measured, strict=True):
            first, second = _moments(flipped, outcomes)
            values += first / spread
            if shots:
                of_each = np.broadcast_to(_taken(estimates[0], outcomes), rows)
                taken = spread * of_each
                degrees = np.where(of_each > 1, of_each - 1.0, np.nan)[
                    :, None
                ]  # one shot says nothing about its variance
                variances += np.maximum(second - first**2, 0.0) / degrees / spread**2
        if shots:
            variances += group.variances_of_calibration(measured)

    def of_one_shot(upstream: np.ndarray) -> np.ndarray:
        total = np.zeros(rows)
        for group, measured in measurements:
            for flipped, outcomes in zip(group.flipped, measured, strict=True):
                of_each = _taken(estimates[0], outcomes) if shots else None
                total += variance_of_one_shot(flipped, outcomes, upstream, of_each) / spread
            if shots:  # more shots a circuit are more shots of the calibration
                total += taken * group.variances_of_calibration(measured, upstream)
        return total

    covariance = Covariance(of_one_shot, taken, rows)
    return Estimate(values, variances, circuits, shots, passport=estimates[0].passport, covariance=covariance)


def _moments(group: MeasurementGroup, measured: np.ndarray | Samples) -> tuple[np.ndarray, np.ndarray]:
    return group.sample_moments(measured) if isinstance(measured, Samples) else group.moments(measured)


def _taken(estimate: Estimate, measured: np.ndarray | Samples) -> np.ndarray | int:
    """The shots of each row of a measurement."""
    return measured.shots if isinstance(measured, Samples) else estimate.shots // estimate.circuits


def _parities(group: PauliGroup, measured: np.ndarray | Samples, shots: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The means of the strings over all rows, shape (T,), and the covariance of these means, shape (T, T)."""
    if isinstance(measured, Samples):
        bits, counts = measured.bits, measured.counts
        weights, total = counts / counts.sum(), float(counts.sum())
    else:
        weights = measured.mean(axis=0)
        bits = bits_of(np.arange(len(weights)), len(group.qubits))
        total = np.inf if shots is None else float(shots * len(measured))
    parities = 1.0 - 2.0 * (bits.astype(np.float64) @ group.supports.T.astype(np.float64) % 2)
    means = weights @ parities
    products = parities.T @ (weights[:, None] * parities)
    return means, (products - np.outer(means, means)) / (total - 1.0 if total > 1 else np.nan)
