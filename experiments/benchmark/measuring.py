"""Has the systems take turns: prepare, compare answers, warm up, then one timing each in every repetition."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import Any

from .benchmark_settings import BenchmarkSettings
from .cases import SYSTEMS, Case, System
from .exact_answers import Answer, compare, exact_answer
from .gate_lists import Depolarising, Problem
from .worker import Process, WorkerError

_REPETITIONS, _SMALL_REPETITIONS = 7, 3
_SHORTEST_TIMING = 0.02
_LONGEST_OF_ALL_REPETITIONS = {"case": 30.0, "series": 10.0}
_LONGEST_STEP_IN_SERIES = 3.0
_PAUSE = 0.05

_say = partial(print, flush=True)


@dataclass(kw_only=True)
class Outcome:
    """What became of one system in one case.

    Attributes:
        case: Which.
        system: Its name.
        cache: For the first call in a new process: ``"empty"``, or ``"filled"`` with compiled code of an earlier process.
        status: ``"timed"``, or why it was not: ``"absent"``, ``"failed"``, ``"timeout"``, ``"wrong"``, ``"dropped"``.
        reason: In words; empty for ``"timed"``.
        deviation: From the reference, as :func:`.exact_answers.compare` has it; None where there is no answer.
        repetitions: How many timings are wanted.
        steps: Training steps in each timing.
        seconds: Seconds a step, of each repetition; none where something went wrong, be it after some of them.
        kernel_seconds: Of these, inside the backend, where that is counted.
        preparation: What the worker said when it prepared, but for its answer.
    """

    case: Case
    system: str
    cache: str = ""
    status: str = "timed"
    reason: str = ""
    deviation: float | None = None
    repetitions: int = 0
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    kernel_seconds: list[float] = field(default_factory=list)
    preparation: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds a step, the median of the repetitions; NaN where it was not timed."""
        return statistics.median(self.seconds or [math.nan])

    @property
    def least(self) -> float:
        """Seconds a step in the fastest repetition; NaN where it was not timed."""
        return min(self.seconds, default=math.nan)

    @property
    def first_call(self) -> float:
        """Seconds for making the layer and its first step; NaN where that went wrong."""
        return sum(float(self.preparation.get(f"{part}_seconds", math.nan)) for part in ("build", "first_step"))

    @property
    def why(self) -> str:
        """Why it was not timed, in a line; :attr:`reason` may have more."""
        reason = self.reason.partition("\n")[0]
        return reason if self.status == "dropped" else f"{self.status}: {reason}"

    def attempt(self, step: Callable[[Outcome], None]) -> None:
        """Takes a step towards the times, unless one has failed; a system's failure becomes its outcome."""
        if self.status == "timed":
            try:
                step(self)
            except WorkerError as error:
                self.status, self.reason, self.seconds = error.kind, str(error), []


def cores_available() -> int:
    """The cores that this process may use; all of them where the system does not say, as on macOS and Windows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fewer_repetitions(step_seconds: float, repetitions: int, *, in_series: bool) -> int:
    """As many as asked for, unless they would take too long together."""
    longest = _LONGEST_OF_ALL_REPETITIONS["series" if in_series else "case"]
    return max(1, min(repetitions, int(longest / step_seconds)))


class Measurement(AbstractContextManager["Measurement", None]):
    """Measures cases, and says what it does; a context manager that ends its processes.

    Each system has a process, started when it is first needed and again after it failed; and a new one for each case that
    is not in a series, so that first calls are told apart.

    Args:
        settings: Repetitions, threads, timeout, seed and interpreters.
        systems: By name.
        environment: More environment variables for the processes.
    """

    def __init__(
        self, settings: BenchmarkSettings, systems: Mapping[str, System] = SYSTEMS, **environment: str
    ) -> None:
        self._settings = settings
        self._systems = systems
        self._environment = environment
        self._repetitions = settings.repetitions or (_SMALL_REPETITIONS if settings.small else _REPETITIONS)
        self._processes: dict[str, Process] = {}
        self._given_up: dict[tuple[str | None, str], WorkerError] = {}  # in a series, or (None) altogether

    def __exit__(self, *_: object) -> None:
        self._stop(*self._processes)

    def measure(self, case: Case) -> list[Outcome]:
        """Measures one case in all its systems, whatever becomes of some of them."""
        if case.series is None:
            self._stop(*self._processes)
        outcomes = [Outcome(case=case, system=name) for name in case.systems]
        _say(f"{case.name}: {case.title}")
        for step in (self._prepare, self._warm_up, *[self._time] * self._repetitions):
            for outcome in outcomes:
                outcome.attempt(step)
        for outcome in outcomes:
            self._drop_if_slow(outcome)
            _say(f"  {self._systems[outcome.system].title:<33} {_summary(outcome)}")
        return outcomes

    def measure_fresh(self, case: Case) -> list[Outcome]:
        """The first call of each of a case's systems, each in a new process; ours twice, first with an empty cache."""
        self._stop(*self._processes)
        outcomes = []
        with tempfile.TemporaryDirectory() as compiled:
            for name in case.systems:
                system = self._systems[name]
                variables = {"NUMBA_CACHE_DIR": compiled} if system.ours else {}
                for state in ("empty", "filled") if system.ours else ("filled",):
                    _say(f"{case.name}, {system.title}: a fresh process")
                    outcomes.append(Outcome(case=case, system=name, cache=state))
                    with Measurement(self._settings, self._systems, **variables) as fresh:
                        outcomes[-1].attempt(fresh._prepare)
        return outcomes

    def _prepare(self, outcome: Outcome) -> None:
        """Has the system do the problem once, and compares its answer with the reference."""
        case, name, seed = outcome.case, outcome.system, self._settings.seed
        for given_up in (None, name), (case.series, name):
            if given_up in self._given_up:
                raise self._given_up[given_up]
        system, circuit, sizes = self._systems[name], case.make.func, case.make.keywords
        noise = None if case.noise is None else asdict(case.noise)
        posed = {"circuit": circuit.__name__, "sizes": sizes, "noise": noise, "shots": case.shots, "seed": seed}
        outcome.preparation = self._ask(name, "prepare", adapter=system.adapter, **posed)
        answer = Answer.of(*outcome.preparation.pop("answer"))
        problem, expected = _solved(circuit, case.noise, **sizes, seed=seed)
        options: dict[str, Any] = {"tolerance": system.tolerance, "values_only": system.values_only}
        outcome.deviation, wrong = compare(answer, expected, problem, shots=case.shots, **options)
        if wrong:
            raise WorkerError("wrong", wrong)

    def _warm_up(self, outcome: Outcome) -> None:
        """Finds out how many steps and repetitions there is time for."""
        # Not from the first step's time, which may have compiled something.
        seconds = self._ask(outcome.system, "warm_up")["seconds"]
        outcome.steps = max(1, math.ceil(_SHORTEST_TIMING / seconds))
        in_series = outcome.case.series is not None
        outcome.repetitions = fewer_repetitions(seconds, self._repetitions, in_series=in_series)

    def _time(self, outcome: Outcome) -> None:
        if len(outcome.seconds) == outcome.repetitions:
            return
        # The threads of the system before go on spinning for a moment, in expectation of more work.
        time.sleep(_PAUSE)
        timing = self._ask(outcome.system, "measure", steps=outcome.steps)
        outcome.seconds.append(timing["seconds"])
        if timing["kernel_seconds"] is not None:
            outcome.kernel_seconds.append(timing["kernel_seconds"])

    def _drop_if_slow(self, outcome: Outcome) -> None:
        """From the rest of a series; also where it has failed."""
        series = outcome.case.series
        if series is None or outcome.status in ("dropped", "absent") or outcome.median <= _LONGEST_STEP_IN_SERIES:
            return
        why = f", where a step took {outcome.median:.1f} s" if outcome.seconds else f": {outcome.reason}"
        reason = f"dropped after {series} {outcome.case.place}{why}"
        self._given_up[series, outcome.system] = WorkerError("dropped", reason)

    def _ask(self, name: str, what: str, **arguments: Any) -> dict[str, Any]:
        settings = self._settings
        try:
            if name not in self._processes:
                python = settings.pythons.get(name)
                threads = settings.threads or cores_available()
                self._processes[name] = Process(python, threads, settings.timeout, **self._environment)
            return self._processes[name].ask(what, **arguments)
        except WorkerError as error:
            self._stop(name)
            if error.kind == "absent":
                self._given_up[None, name] = error
            raise

    def _stop(self, *names: str) -> None:
        for process in [self._processes.pop(name) for name in names if name in self._processes]:
            process.stop()


@cache
def _solved(circuit: Callable[..., Problem], noise: Depolarising | None, **sizes: int) -> tuple[Problem, Answer]:
    """A problem and its exact answer, which takes its time where there are many qubits."""
    problem = replace(circuit(**sizes), noise=noise)
    return problem, exact_answer(problem)


def _summary(outcome: Outcome) -> str:
    if not outcome.seconds:
        return outcome.why
    median, least, most = (f"{1e3 * x:.3f}" for x in (outcome.median, outcome.least, max(outcome.seconds)))
    timings = f"{len(outcome.seconds)} timings of {outcome.steps}"
    return f"{median:>10} ms ({least} to {most}, {timings}; deviation {outcome.deviation:.1g})"
