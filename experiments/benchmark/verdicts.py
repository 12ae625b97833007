"""Whether a system's answer is the right one; times of wrong answers mean nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exact_answers import Answer
from .gate_lists import Problem

LARGEST_Z_SCORE = 6.0
"""Of any one number. The standard errors are upper bounds, so that right answers stay far below."""

LARGEST_Z_SCORE_RMS = 2.0
"""Root mean square over a part of the answer; at most about 1 is expected. A gradient without its 1/2 exceeds it."""


@dataclass(frozen=True)
class Verdict:
    """What became of a comparison.

    Attributes:
        deviation: The largest deviation from the reference: in units of its largest number (or of 1) for exact answers,
            in standard errors for those with shots.
        problem: What is wrong with the answer; None if it is right.
    """

    deviation: float
    problem: str | None = None


def compare(answer: Answer, expected: Answer, problem: Problem, *, shots: int | None, tolerance: float) -> Verdict:
    """Compares values and gradients, each number, with those of the reference.

    Args:
        answer: The system's.
        expected: The exact one.
        problem: What was asked.
        shots: The shots a circuit that the answer is from; None if it must be exact.
        tolerance: For exact answers: how far a number may be off, in units of the part's largest (or of 1).
    """
    parts, references = answer.parts(), expected.parts()
    if missing := references.keys() - parts.keys():
        return Verdict(np.inf, f"gives no {' and no '.join(sorted(missing))}")
    largest = 0.0
    for name, reference in references.items():
        if parts[name].shape != reference.shape:
            return Verdict(np.inf, f"gives {name} of shape {parts[name].shape}, expected {reference.shape}")
        errors = np.abs(parts[name] - reference)
        if not np.isfinite(errors).all():
            return Verdict(np.inf, f"gives {name} that are not finite")
        if shots is None:
            deviation = float(errors.max() / max(1.0, np.abs(reference).max()))
            if deviation > tolerance:
                return Verdict(deviation, f"its {name} are off by {deviation:.1e}, expected at most {tolerance:.0e}")
        else:
            scores = errors / _standard_error_bounds(name, problem, shots)
            deviation, rms = float(scores.max()), float(np.sqrt(np.mean(scores**2)))
            if deviation > LARGEST_Z_SCORE or rms > LARGEST_Z_SCORE_RMS:
                return Verdict(
                    deviation,
                    f"its {name} are off by {deviation:.1f} standard errors at most and {rms:.1f} in the root mean "
                    f"square, expected up to {LARGEST_Z_SCORE:g} and {LARGEST_Z_SCORE_RMS:g}",
                )
        largest = max(largest, deviation)
    return Verdict(largest)


def _standard_error_bounds(name: str, problem: Problem, shots: int) -> np.ndarray:
    """The largest standard errors that parameter shift can have, broadcastable to the part's shape.

    A value is a mean of ``shots`` numbers that are 1 or -1, so its variance is at most ``1/shots``. A derivative by one
    rotation's angle is half the difference of two weighted sums of such values. The outputs may come from the same
    shots, and be correlated in any way: the standard deviation of a sum is at most the sum of theirs.
    """
    of_rows = np.abs(problem.upstream).sum(axis=1) ** 2 / (2 * shots)
    if name == "values":
        return np.array(shots**-0.5)
    rotations = {"input": np.zeros(problem.inputs.shape[1]), "weight": np.zeros(len(problem.weights))}
    for gate in problem.gates:
        if gate.angle is not None:
            rotations[gate.angle.source][gate.angle.number] += 1
    if name == "input gradients":
        return np.sqrt(np.outer(of_rows, rotations["input"]))
    return np.sqrt(of_rows.sum() * rotations["weight"])
