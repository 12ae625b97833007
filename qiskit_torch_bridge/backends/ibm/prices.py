r"""What circuits cost on an IBM device, before they are sent.

IBM bills the time for which the quantum processor is reserved for a job. Its documentation ("Workload usage") gives the
approximation that is used here,

.. math:: t = 2\,\mathrm{s} + \sum_\mathrm{executions} (t_\mathrm{delay} + t_\mathrm{circuit}) ,

with the delay between repetitions (250 microseconds on most devices), the duration of the circuit by the device's own gate
times (100 microseconds where it does not say), and the bound circuits times shots as executions. Copies of a circuit side
by side (``packing``) are one circuit here, which is executed once for all of them. Assumptions:

* Twirling spreads the shots over randomisations and rounds up, as the primitives document it.
* An Estimator measures groups of qubit-wise commuting terms; zero-noise extrapolation runs them once for each noise factor
  (circuits with folded gates are longer; that is left out), and measurement mitigation adds one calibration circuit a job.
* In a session the wall-clock time from its first job to its end is billed, classical steps included; no formula knows
  that. Batches and single jobs are billed as above.
* Failed jobs are counted as if they had run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from qiskit import QuantumCircuit

__all__ = ["USUAL_DURATION", "Price", "duration_of", "price_of"]

USUAL_DURATION = 100e-6
"""Of one execution of a circuit, in seconds, where the device does not say."""
_SECONDS_OF_JOB = 2.0
_USUAL_DELAY = 250e-6
_ZNE_FACTORS = (1, 3, 5)


@dataclass(frozen=True)
class Price:
    """What measurements cost.

    Attributes:
        executions: Of one bound circuit (one measurement basis of one parameter set).
        delay: Between repetitions, in seconds; each execution takes that and the circuit's duration.
        executions_of_job: Of what a job adds to calibrate.
        seconds_of_job: Seconds of a job besides its circuits.
    """

    executions: int
    delay: float
    executions_of_job: int
    seconds_of_job: float


def price_of(options: Any, shots: int, *, rep_delay: float | None) -> Price:
    """The price of a measurement.

    Args:
        options: IBM's finalised options of the primitive.
        shots: Shots a circuit.
        rep_delay: The device's default delay in seconds; None: unknown.

    Raises:
        ValueError: If the options take fewer shots than are asked for.
    """
    randomizations, each = _twirled(options.twirling, shots)
    executions = randomizations * each
    if executions < shots:
        raise ValueError(
            f"shots: got {shots}, but the option twirling takes {randomizations} randomizations of {each} shots, which are "
            f"{executions}; set one of num_randomizations and shots_per_randomization to 'auto', or take fewer shots."
        )
    calibration = 0
    resilience = getattr(options, "resilience", None)
    if resilience is not None:
        if resilience.measure_mitigation:
            learned = resilience.measure_noise_learning.num_randomizations
            calibration = (randomizations if learned == "auto" else learned) * each
        if resilience.zne_mitigation:
            factors = resilience.zne.noise_factors
            executions *= len(_ZNE_FACTORS if isinstance(factors, str) else factors)
    delay = options.execution.rep_delay
    if delay is None:
        delay = _USUAL_DELAY if rep_delay is None else rep_delay
    return Price(executions, delay, calibration, _SECONDS_OF_JOB + calibration * (delay + USUAL_DURATION))


def duration_of(circuit: QuantumCircuit, device: Any) -> float:
    """The time from the circuit's first gate to its last measurement, by the device's gate times; else the usual one."""
    target = getattr(device, "target", None)
    ends = np.zeros(circuit.num_qubits)
    for instruction in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        start = ends[qubits].max() if qubits else 0.0
        length = 0.0
        if instruction.operation.name != "barrier":
            try:
                known = target[instruction.operation.name][tuple(qubits)].duration  # type: ignore[index]
            except (KeyError, TypeError, AttributeError):
                known = None
            if known is None:
                return USUAL_DURATION
            length = known
        ends[qubits] = start + length
    return float(ends.max(initial=0.0))


def _twirled(twirling: Any, shots: int) -> tuple[int, int]:
    """How many randomisations there are, and the shots of each, where so many shots are asked for."""
    if not (twirling.enable_gates or twirling.enable_measure):
        return 1, shots
    randomizations, each = twirling.num_randomizations, twirling.shots_per_randomization
    if each == "auto":
        each = max(64, math.ceil(shots / 32)) if randomizations == "auto" else math.ceil(shots / randomizations)
    if randomizations == "auto":
        randomizations = math.ceil(shots / each)
    return int(randomizations), int(each)
