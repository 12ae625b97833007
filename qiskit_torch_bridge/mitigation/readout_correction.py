"""``ReadoutCorrection``: readout errors undone by what calibration circuits say of each measured bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..arguments import require_integer
from ..backends.base import Backend, Estimate
from ..program.compiled import Program
from ..program.readout import Readout, Samples
from ..shots.covariance import Covariance, variance_of_one_shot
from .confusion import Confusion, CorrectedGroup, corrected_group
from .methods import Calibration, Mitigation, MitigationPlan
from .readout_circuits import prepared, require_outcomes

__all__ = ["ReadoutCorrection"]

_LEAST_DETERMINANT = 0.1


@dataclass(frozen=True)
class ReadoutCorrection(Mitigation):
    r"""Undoes readout errors, for expectation values and probabilities alike.

    For each measurement group two more circuits are measured, once a calibration of the device: the same qubits prepared in
    0...0, and in 1...1. They say how often each bit is misread. Values are then computed from the measured bits with scores
    that undo that on average (:mod:`qiskit_torch_bridge.mitigation.confusion`): for a Pauli string the product over its bits
    of :math:`A_j^{-T} (1, -1)`, for probabilities :math:`\bigotimes_j A_j^{-1}` applied to the frequencies. That is linear
    in the frequencies, so values, and gradients by shift rules, have no bias where the model holds: bits that are misread
    independently of each other, and preparations without errors (those of the ``x`` gates count as readout errors).
    No array of all outcomes is made for expectation values, whatever their number of qubits.

    Probabilities are quasi-probabilities: they add up to 1, and small ones can come out negative. They are not cut off at 0,
    which would bias them and their gradients.

    **Cost**: two circuits of ``calibration_rows`` rows for each measurement group (for each filling, where inputs enter
    instructions that are only defined for numbers). :attr:`qiskit_torch_bridge.Quote.once` says how much that is; caps count
    it. Shot noise grows by :math:`\prod_j 1 / (1 - \epsilon_0 - \epsilon_1)` over the bits of a Pauli string.

    **Error bars** hold the calibration's own shots (by the delta method, with correlations between the bits as they were
    measured). This part is the same for all rows and all steps: the mean over rows, and the sum that is a weight's
    gradient, take it as independent, and averaging does not reduce it. An extrapolation takes it as independent between
    its factors, which makes this part of its error bars mostly too large. What is not in them: the bias of a model that
    does not hold.

    **Why not M3.** M3 (Nation, Kang, Sundaresan, Gambetta, PRX Quantum 2, 040326, 2021; the package ``mthree``) has the same
    calibration and the same model of independent bits. It solves for probabilities of the observed bit strings only, so that
    it takes no array of 2**k numbers. Expectation values need no probabilities: the mean of the scores above is the complete
    tensored inverse, and takes a product for each shot. Where all strings are observed both give the same numbers, which a
    test compares; elsewhere M3 leaves out what flows to strings that were not observed. So it would add a dependency, and
    no value that is not here.

    Args:
        calibration_rows: How often each calibration circuit is measured with the shots of one circuit.

    Raises:
        TypeError, ValueError: If it is no positive integer.
    """

    reads_outcomes: ClassVar[bool] = True

    calibration_rows: int = 8

    def __post_init__(self) -> None:
        rows = require_integer("calibration_rows", self.calibration_rows, least=1)
        object.__setattr__(self, "calibration_rows", rows)

    def plan(self, program: Program, backend: Backend) -> MitigationPlan:
        require_outcomes(self, program, backend)
        calibrations = [Calibration(prepared(program, bit), self.calibration_rows) for bit in (0, 1)]

        @lru_cache(maxsize=1)
        def groups_of(zeros: Estimate, ones: Estimate) -> list[CorrectedGroup]:
            return _corrected_groups(program.readout, zeros, ones)

        def combine(estimates: Sequence[Estimate], calibrated: Sequence[Estimate]) -> Estimate:
            return _corrected(estimates[0], program.readout, groups_of(*calibrated))

        return MitigationPlan((program,), combine, tuple(calibrations))


def _corrected_groups(readout: Readout, zeros: Estimate, ones: Estimate) -> list[CorrectedGroup]:
    """The measurement groups with the confusion that calibrations show.

    Raises:
        ValueError: If a bit says next to nothing.
    """
    assert zeros.measured is not None
    assert ones.measured is not None
    shots = zeros.shots // zeros.circuits if zeros.shots else None
    corrected = []
    for group, read_zeros, read_ones in zip(readout.groups, zeros.measured, ones.measured, strict=True):
        confusion = Confusion.of(read_zeros, read_ones, shots)
        worst = int(confusion.determinants.argmin())
        if confusion.determinants[worst] < _LEAST_DETERMINANT:
            first, second = confusion.rates[:, worst]
            raise ValueError(
                f"mitigation: the calibration of the circuit's qubit {group.qubits[worst]} (bit {worst} of its measurement) "
                f"reads 1 for 0 with probability {first:.3g} and 0 for 1 with {second:.3g}, expected less than "
                f"{1 - _LEAST_DETERMINANT:g} together: what it says cannot be corrected. Choose other qubits "
                "(initial_layout), or more shots, or a larger calibration_rows."
            )
        corrected.append(corrected_group(group, confusion))
    return corrected


def _corrected(raw: Estimate, readout: Readout, groups: Sequence[CorrectedGroup]) -> Estimate:
    """The estimate with other scores of the same bits."""
    if raw.measured is None:
        raise ValueError(
            "mitigation: the backend does not say what was measured with this many qubits and no shots; give a number of "
            "shots."
        )
    rows, measurements = len(raw.values), list(zip(groups, raw.measured, strict=True))
    values = np.broadcast_to(readout.constants, (rows, readout.num_outputs)).copy()
    variances = np.zeros_like(values)
    shots: np.ndarray | float = np.inf
    for group, measured in measurements:
        first, second = group.sample_moments(measured) if isinstance(measured, Samples) else group.moments(measured)
        values += first
        if raw.shots:
            taken = _taken(raw, measured)
            shots = np.broadcast_to(taken, rows)
            degrees = np.where(shots > 1, shots - 1.0, np.nan)[:, None]  # one shot says nothing about its variance
            variances += np.maximum(second - first**2, 0.0) / degrees + group.variances_of_calibration(measured)

    def of_one_shot(upstream: np.ndarray) -> np.ndarray:
        total = np.zeros(rows)
        for group, measured in measurements:
            total += variance_of_one_shot(group, measured, upstream, _taken(raw, measured) if raw.shots else None)
            if raw.shots:  # more shots a circuit are more shots of the calibration
                total += shots * group.variances_of_calibration(measured, upstream)
        return total

    covariance = Covariance(of_one_shot, shots, rows, weighted=True)
    return replace(raw, values=values, variances=variances, state=None, covariance=covariance)


def _taken(raw: Estimate, measured: np.ndarray | Samples) -> np.ndarray | int:
    """The shots of each row of a measurement."""
    return measured.shots if isinstance(measured, Samples) else raw.shots // raw.circuits
