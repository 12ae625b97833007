"""``MitigatedBackend``: a backend with methods of error mitigation in front of it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from ..arguments import instance_of
from ..backends.base import Backend, Charge, Estimate, Request
from ..program.compiled import Program
from ..shots.shadow import Shadow
from .methods import Calibration, Mitigation, MitigationPlan, plan_of

__all__ = ["MitigatedBackend", "checked_methods"]

_MOST_KEPT_PLANS = 1024  # as many as a program keeps fillings of its input blocks

_Key = tuple[Calibration, "str | None", bool]
"""Of what is measured once a calibration: that, the device's calibration, and whether it is exact."""
_OF_CALIBRATIONS = 2**32 - 1  # where in a stream of seeds there is no call


class MitigatedBackend(Backend):
    """A backend whose values are those of another one after error mitigation.

    All that a method needs measured, for all rows and points of a gradient, leaves in one call (where there are jobs, in one
    job). Calibrations are measured along with the first call, and again when the device has been calibrated anew; on a
    device with a ledger, any later process with the same settings finds them there.

    Args:
        backend: What measures.
        methods: The methods; the first is applied to what is measured.

    Raises:
        TypeError, ValueError: If they are something else, or the backend has no errors to mitigate.
    """

    def __init__(self, backend: Backend, methods: Sequence[Mitigation]) -> None:
        self.backend = backend
        self.methods = checked_methods(methods)
        if not backend.runs_variants:
            raise ValueError(
                f"mitigation: got {list(self.methods)} for {backend.name!r}, which runs no transpiled circuits and has no "
                "errors to mitigate; leave it out, or use a device, a Sampler, or a simulator with noise."
            )
        _check_order(self.methods)
        if backend.modelled is not None:
            raise ValueError(
                f"mitigation: got {list(self.methods)} for {backend.name!r} with shadow='noisy', which models the errors of "
                "values that are not mitigated; give shadow=True, or leave one of the two out."
            )
        self.name = backend.name
        self._plans: dict[Program, MitigationPlan] = {}
        self._calibrations: dict[_Key, Estimate] = {}

    @property
    def queues(self) -> bool:  # type: ignore[override]
        return self.backend.queues

    @property
    def settings_may_change(self) -> bool:  # type: ignore[override]
        return self.backend.settings_may_change

    @property
    def shadow(self) -> Backend | None:  # type: ignore[override]
        return self.backend.shadow

    @property
    def calibration(self) -> str | None:
        return self.backend.calibration

    def plan(self, program: Program) -> MitigationPlan:
        """What is measured in place of a program without input blocks; the last plans are kept."""
        if program not in self._plans:
            if len(self._plans) >= _MOST_KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[program] = plan_of(self.methods, program, self.backend)
        return self._plans[program]

    def resolve_shots(self, shots: int | None) -> int | None:
        return self.backend.resolve_shots(shots)

    def prepare(self, program: Program) -> None:
        plan = self.plan(program)
        self.backend.prepare(program)
        for each in (*plan.programs, *(calibration.program for calibration in plan.calibrations)):
            if each is not program:
                self.backend.prepare(each)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        return self.evaluate_all([Request(program, angles, seed)], shots=shots)[0]

    def evaluate_all(self, requests: Sequence[Request], *, shots: int | None) -> list[Estimate]:
        plans = [self.plan(request.program) for request in requests]
        parts = [
            Request(program, request.angles, _child(request.seed, number))
            for request, plan in zip(requests, plans, strict=True)
            for number, program in enumerate(plan.programs)
        ]
        of_each, calibrated = _shots_of_each(plans, shots), self._calibrated(plans)
        missing = self._missing(plans, of_each, calibrated)
        calibrations = [self._request(each, requests[0].seed, calibrated, plans) for each in missing]
        estimates = self.backend.evaluate_all([*calibrations, *parts], shots=of_each)
        for calibration, estimate in zip(missing, estimates, strict=False):
            self._calibrations[calibration, calibrated, of_each is None] = estimate
        remaining = iter(estimates[len(missing) :])
        combined = []
        for plan in plans:
            measured = [next(remaining) for _ in plan.programs]
            kept = [self._calibrations[each, calibrated, of_each is None] for each in plan.calibrations]
            combined.append(plan.combine(measured, kept))
        return combined

    def circuits_per_row(self, program: Program) -> int:
        plan = self.plan(program.example())
        return sum(map(self.backend.circuits_per_row, plan.programs)) // plan.spread

    def shots_of_circuit(self, program: Program, shots: int | None) -> int:
        plan = self.plan(program.example())
        return plan.spread * (_shots_of_each([plan], shots) or 0)

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        plans = [self.plan(program) for program, _ in work]
        rows = [(each, rows) for plan, (_, rows) in zip(plans, work, strict=True) for each in plan.programs]
        return self.backend.charge(rows, shots=_shots_of_each(plans, shots))

    def charge_once(
        self, work: Sequence[tuple[Program, int]], *, shots: int | None
    ) -> Mapping[Hashable, tuple[int, int, Charge]]:
        plans = [self.plan(program) for program, _ in work]
        of_each, missing = _shots_of_each(plans, shots), _calibrations_of(plans)
        if any(calibration in missing for calibration, *_ in self._calibrations):  # else the device need not be asked
            missing = self._missing(plans, of_each, self._calibrated(plans))
        if not missing:
            return {}
        rows = [(each, rows) for plan, (_, rows) in zip(plans, work, strict=True) for each in plan.programs]
        more = [(calibration.program, calibration.rows) for calibration in missing]
        without, along = (self.backend.charge(parts, shots=of_each) for parts in (rows, [*more, *rows]))
        executed = sum(rows * self.backend.circuits_per_row(program) for program, rows in more)
        added = Charge(*(after - before for after, before in zip(astuple(along), astuple(without), strict=True)))
        return {(tuple(missing), of_each): (executed // plans[0].spread, executed * (of_each or 0), added)}

    def describe(self, program: Program) -> str:
        methods = ", then ".join(map(repr, self.methods))
        return f"{self.backend.describe(program)} Mitigated by {methods}."

    def note_shadow(self, shadow: Shadow) -> None:
        self.backend.note_shadow(shadow)

    def _calibrated(self, plans: Sequence[MitigationPlan]) -> str | None:
        """The device's calibration, where that matters."""
        return self.backend.calibration if any(plan.calibrations for plan in plans) else None

    def _missing(self, plans: Sequence[MitigationPlan], shots: int | None, calibrated: str | None) -> list[Calibration]:
        """The calibrations that have to be measured: none has fewer shots than what it corrects."""
        missing = []
        for each in _calibrations_of(plans):
            estimate = self._calibrations.get((each, calibrated, shots is None))
            needed = (shots or 0) * each.rows * self.backend.circuits_per_row(each.program)
            if estimate is None or estimate.shots < needed:
                missing.append(each)
        return missing

    def _request(
        self,
        calibration: Calibration,
        seed: np.random.SeedSequence,
        calibrated: str | None,
        plans: Sequence[MitigationPlan],
    ) -> Request:
        """On a device the same in all processes until it is calibrated anew, so that its ledger finds the calibration.

        Else the same for all calls of a layer, so that one that goes on in another process does not change.
        """
        number = next(p.calibrations.index(calibration) for p in plans if calibration in p.calibrations)
        entropy, place = seed.entropy, (_OF_CALIBRATIONS, number)
        if calibrated is not None:
            entropy, place = 0, (*hashlib.sha256(calibrated.encode()).digest(), number)
        angles = np.zeros((calibration.rows, len(calibration.program.angles)))
        return Request(calibration.program, angles, np.random.SeedSequence(entropy, spawn_key=place))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calibrations": {}, "_plans": {}}

    def __repr__(self) -> str:
        return f"MitigatedBackend({self.backend!r}, {list(self.methods)})"


def checked_methods(methods: Any) -> tuple[Mitigation, ...]:
    """The methods as a tuple.

    Raises:
        TypeError, ValueError: If they are something else, or one is there twice.
    """
    if isinstance(methods, Mitigation):
        methods = [methods]
    if not isinstance(methods, (list, tuple)):
        raise TypeError(
            f"mitigation: got {type(methods).__name__}, expected a list of methods, such as [ReadoutCorrection()]."
        )
    checked = tuple(
        instance_of("mitigation", each, Mitigation, "a method, such as ReadoutCorrection()") for each in methods
    )
    if twice := {type(each).__name__ for each in checked if [type(one) for one in checked].count(type(each)) > 1}:
        raise ValueError(f"mitigation: got {sorted(twice)} more than once; give each method once.")
    return checked


def _calibrations_of(plans: Sequence[MitigationPlan]) -> list[Calibration]:
    return list(dict.fromkeys(each for plan in plans for each in plan.calibrations))


def _shots_of_each(plans: Sequence[MitigationPlan], shots: int | None) -> int | None:
    """The shots of each circuit, where a plan spreads those of one over several: all plans of a call do so alike."""
    return None if shots is None else -(-shots // plans[0].spread)


def _check_order(methods: Sequence[Mitigation]) -> None:
    """Refuses methods that need bits where there are none any more.

    Raises:
        ValueError: If there are such.
    """
    readers = [type(method).__name__ for method in methods if method.reads_outcomes]
    if len(readers) > 1:
        raise ValueError(f"mitigation: got {' and '.join(readers)}, which correct the same errors; give one of them.")
    if readers and not methods[0].reads_outcomes:
        raise ValueError(
            f"mitigation: got {readers[0]} after {type(methods[0]).__name__}, but it needs the measured bits, not "
            f"values; put {readers[0]} first."
        )


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A seed of its own for each part of an evaluation, the same whenever the evaluation is the same."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))
