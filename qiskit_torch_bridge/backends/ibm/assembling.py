"""From pieces of evaluations to PUBs, and from what primitives return to values and variances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ...program.compiled import Program
from ...shots.covariance import Covariance
from ..base import Estimate, Request, estimate_from_samples
from ..passport import Passport
from ..primitives import bindings_of, samples_of
from ..results import Asked
from .archives import Arrays
from .compiling import Unit
from .work import Piece

__all__ = ["asked_by", "estimate_from_arrays", "parts_of", "pubs_of"]

Name = TypeVar("Name")


def pubs_of(
    pieces: Sequence[Piece], requests: Sequence[Request], units: Sequence[Sequence[Unit]]
) -> Callable[[], list[Any]]:
    """What makes the PUBs of a job, in the order of its pieces."""

    def make() -> list[Any]:
        pubs: list[Any] = []
        for piece in pieces:
            unit = units[piece.request][piece.unit]
            angles = requests[piece.request].angles[piece.start : piece.stop]
            observables = [[o] for o in unit.observables]
            if unit.bound.parameters:
                bindings = bindings_of(unit.bound, angles)
                pubs.append(
                    (unit.bound.circuit, observables, bindings) if observables else (unit.bound.circuit, bindings)
                )
            else:  # without parameters there is nothing to broadcast over: a PUB for every row
                alone = (unit.bound.circuit, observables) if observables else (unit.bound.circuit,)
                pubs += [alone] * len(angles)
        return pubs

    return make


def asked_by(
    pieces: Sequence[Piece], units: Sequence[Sequence[Unit]], *, shots: int, extrapolates: bool
) -> list[Asked]:
    """What the PUBs of a job ask for, in the order of :func:`pubs_of`.

    Args:
        pieces: The pieces of the job.
        units: The circuits of each request.
        shots: Shots of each parameter set, as they come back from a Sampler.
        extrapolates: Whether an Estimator's standard errors come from a fit.
    """
    asked: list[Asked] = []
    for piece in pieces:
        unit = units[piece.request][piece.unit]
        rows = piece.stop - piece.start
        together = bool(unit.bound.parameters)
        if unit.observables:
            pub = Asked((len(unit.observables), rows if together else 1), extrapolates=extrapolates)
        else:
            pub = Asked((rows,) if together else (), shots=shots, bits=unit.bound.circuit.num_clbits)
        asked += [pub] * (1 if together else rows)
    return asked


def parts_of(
    request: int, jobs: Sequence[Sequence[Piece]], names: Sequence[Name], units: Sequence[Sequence[Unit]]
) -> list[list[tuple[Name, int]]]:
    """Where a request's results are: for each of its units the jobs, by name, and the PUBs in them, in order of rows."""
    parts: list[list[tuple[Name, int]]] = [[] for _ in units[request]]
    for name, pieces in zip(names, jobs, strict=True):
        place = 0
        for piece in pieces:
            pubs = 1 if units[piece.request][piece.unit].bound.parameters else piece.stop - piece.start
            if piece.request == request:
                parts[piece.unit] += [(name, place + i) for i in range(pubs)]
            place += pubs
    return parts


def estimate_from_arrays(
    program: Program,
    rows: int,
    pubs: Sequence[Arrays],
    outputs: Sequence[Sequence[int]],
    shots: int,
    passport: Passport | None,
) -> Estimate:
    """Values and variances from what a primitive returned.

    Args:
        program: The program.
        rows: The number of rows.
        pubs: For each of its circuits, the arrays of its PUBs in the order of the rows.
        outputs: For each, the outputs that an Estimator's values are; empty for a Sampler's bits.
        shots: Shots a circuit that were asked for.
        passport: Where the results come from.
    """
    readout = program.readout
    if not any(len(these) for these in outputs):
        samples = [
            samples_of([arrays[0] for arrays in results], rows, len(group.qubits))
            for results, group in zip(pubs, readout.groups, strict=True)
        ]
        return replace(estimate_from_samples(program, samples, rows), passport=passport)
    values = np.broadcast_to(readout.constants, (rows, readout.num_outputs)).copy()
    variances = np.zeros_like(values)
    for results, these in zip(pubs, outputs, strict=True):
        found, errors = (
            np.concatenate([arrays[part].reshape(len(these), -1) for arrays in results], axis=1).T for part in (0, 1)
        )
        values[:, list(these)] += found
        variances[:, list(these)] = errors**2
    circuits = rows * len(readout.groups)
    covariance = Covariance.of_independent(variances, shots)
    return Estimate(values, variances, circuits, circuits * shots, passport=passport, covariance=covariance)
