"""``MitigatedBackend``: a backend with methods of error mitigation in front of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arguments import instance_of
from ..backends.base import Backend, Charge, Estimate, Request
from ..program.compiled import Program
from ..shots.shadow import Shadow
from .methods import Mitigation, MitigationPlan, plan_of

__all__ = ["MitigatedBackend", "checked_methods"]

_MOST_KEPT_PLANS = 1024  # as many as a program keeps fillings of its input blocks

_Key = tuple[Program, "str | None", bool]
"""Of a calibration: its program, the device's calibration, and whether it is exact."""


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
        for each in (*plan.programs, *plan.calibrations):
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
        missing = self._missing(plans, shots)
        calibrations = [
            Request(program, np.zeros((1, len(program.angles))), self._seed_of_calibration(requests[0].seed, number))
            for number, program in enumerate(missing.values())
        ]
        estimates = self.backend.evaluate_all([*calibrations, *parts], shots=shots)
        self._calibrations.update(zip(missing, estimates, strict=False))
        remaining = iter(estimates[len(missing) :])
        combined = []
        for plan in plans:
            measured = [next(remaining) for _ in plan.programs]
            calibrated = [self._calibrations[self._key(program, shots)] for program in plan.calibrations]
            combined.append(plan.combine(measured, calibrated))
        return combined

    def circuits_per_row(self, program: Program) -> int:
        return sum(map(self.backend.circuits_per_row, self.plan(program.example()).programs))

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        plans = [self.plan(program) for program, _ in work]
        rows = [(each, rows) for plan, (_, rows) in zip(plans, work, strict=True) for each in plan.programs]
        return self.backend.charge(rows, shots=shots)

    def describe(self, program: Program) -> str:
        methods = ", then ".join(map(repr, self.methods))
        return f"{self.backend.describe(program)} Mitigated by {methods}."

    def note_shadow(self, shadow: Shadow) -> None:
        self.backend.note_shadow(shadow)

    def _missing(self, plans: Sequence[MitigationPlan], shots: int | None) -> dict[_Key, Program]:
        """The calibrations that have to be measured, by their keys: none has fewer shots than what it corrects."""
        programs = dict.fromkeys(program for plan in plans for program in plan.calibrations)
        keys = {self._key(program, shots): program for program in programs}
        return {
            key: program
            for key, program in keys.items()
            if key not in self._calibrations
            or self._calibrations[key].shots < (shots or 0) * self.backend.circuits_per_row(program)
        }

    def _key(self, program: Program, shots: int | None) -> _Key:
        return program, self.backend.calibration, shots is None

    def _seed_of_calibration(self, seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
        """On a device the same in all processes until it is calibrated anew, so that its ledger finds the calibration."""
        calibration = self.backend.calibration
        if calibration is None:
            return _child(seed, -1 - number)
        return np.random.SeedSequence(0, spawn_key=tuple(hashlib.sha256(calibration.encode()).digest()))

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


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A seed of its own for each part of an evaluation, the same whenever the evaluation is the same."""
    place = 2 * number if number >= 0 else -2 * number - 1
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, place))
