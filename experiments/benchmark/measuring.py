"""Has the systems take turns: prepare, compare answers, warm up, then one timing each in every repetition."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .benchmark_settings import BenchmarkSettings
from .cases import SYSTEMS, Case, System
from .exact_answers import Answer, compare, exact_answer
from .processes import Process, WorkerError

_REPETITIONS, _SMALL_REPETITIONS = 7, 3
_SHORTEST_TIMING = 0.02
_LONGEST_OF_ALL_REPETITIONS = {"case": 30.0, "series": 10.0}
_LONGEST_STEP_IN_SERIES = 3.0
_PAUSE = 0.05

_say = partial(print, flush=True)
_Ask = Callable[..., dict[str, Any]]


@dataclass(kw_only=True)
class SystemResult:
    """What became of one system in one case.

    Attributes:
        status: ``"timed"``, or why it was not: ``"absent"``, ``"failed"``, ``"timeout"``, ``"wrong"``, ``"dropped"``.
        reason: In words; empty for ``"timed"``.
        deviation: From the reference, as in :class:`.exact_answers.Verdict`; None where there is no answer.
        steps: Training steps in each timing.
        seconds: Seconds a step, of each repetition.
        kernel_seconds: Of these, inside the backend, where that is counted.
        preparation: What the worker said when it prepared.
    """

    status: str = "timed"
    reason: str = ""
    deviation: float | None = None
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    kernel_seconds: list[float] = field(default_factory=list)
    preparation: dict[str, Any] = field(default_factory=dict)

    @property
    def timings(self) -> list[float]:
        """Seconds a step, of each repetition; none where something went wrong, be it after some of them."""
        return self.seconds if self.status == "timed" else []

    @property
    def median(self) -> float:
        """Seconds a step, the median of the repetitions; NaN where it was not timed."""
        return statistics.median(self.timings or [math.nan])

    @property
    def least(self) -> float:
        """Seconds a step in the fastest repetition; NaN where it was not timed."""
        return min(self.timings, default=math.nan)

    @property
    def why(self) -> str:
        """Why it was not timed."""
        return self.reason if self.status == "dropped" else f"{self.status}: {self.reason}"


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes:
        case: Which.
        problem_size: Qubits, batch, weights and gates.
        systems: By name.
    """

    case: Case
    problem_size: Mapping[str, int]
    systems: Mapping[str, SystemResult]


@dataclass(frozen=True)
class FreshResult:
    """The first call of a system in a new process.

    Attributes:
        case: Of which problem.
        system: Its name.
        cache: ``"empty"`` or ``"filled"``: compiled code kept from an earlier process.
        outcome: Status, and what the worker said.
    """

    case: Case
    system: str
    cache: str
    outcome: SystemResult


def fewer_repetitions(step_seconds: float, repetitions: int, *, in_series: bool) -> int:
    """As many as asked for, unless they would take too long together."""
    longest = _LONGEST_OF_ALL_REPETITIONS["series" if in_series else "case"]
    return max(1, min(repetitions, int(longest / step_seconds)))


class Measurement(AbstractContextManager["Measurement", None]):
    """Measures cases, and says what it does; a context manager that ends its processes.

    Each system has a process, started when it is first needed and again after it failed.

    Args:
        settings: Repetitions, threads, timeout, seed and interpreters.
        systems: By name.
    """

    def __init__(self, settings: BenchmarkSettings, systems: Mapping[str, System] = SYSTEMS) -> None:
        self._settings = settings
        self._systems = systems
        self._repetitions = settings.repetitions or (_SMALL_REPETITIONS if settings.small else _REPETITIONS)
        self._processes: dict[str, Process] = {}
        self._expected: dict[str, Answer] = {}
        self._given_up: dict[tuple[str | None, str], WorkerError] = {}  # in a series, or (None) altogether

    def __exit__(self, *_: object) -> None:
        self._stop(*self._processes)

    def measure(self, case: Case) -> CaseResult:
        """Measures one case in all its systems, whatever becomes of some of them."""
        problem = case.make(seed=self._settings.seed)
        size = {"qubits": problem.num_qubits, "batch": problem.batch, "weights": len(problem.weights)}
        results = {name: SystemResult() for name in case.systems}
        turns: dict[str, int] = {}
        _say(f"{case.name}: {case.title}")
        for name, result in results.items():
            with _noting_failure(result):
                for given_up in (None, name), (case.series, name):
                    if given_up in self._given_up:
                        raise self._given_up[given_up]
                self._prepare_and_check(partial(self._ask, name), case, name, result)
        for name, result in results.items():
            if result.status == "timed":
                with _noting_failure(result):
                    # Not the first step's time, which may have compiled something.
                    seconds = self._ask(name, "warm_up")["seconds"]
                    result.steps = max(1, math.ceil(_SHORTEST_TIMING / seconds))
                    turns[name] = fewer_repetitions(seconds, self._repetitions, in_series=case.series is not None)
        for repetition in range(self._repetitions):
            for name, result in results.items():
                if result.status == "timed" and repetition < turns[name]:
                    with _noting_failure(result):
                        self._time(name, result)
        for name, result in results.items():
            if case.series is not None:
                self._drop_if_slow(case.series, size[case.series], name, result)
            _say(f"  {self._systems[name].title:<26} {_summary(result)}")
        return CaseResult(case, {**size, "gates": len(problem.gates)}, results)

    def measure_fresh(self, case: Case) -> list[FreshResult]:
        """The first call of each of a case's systems, each in a new process; ours twice, first with an empty cache."""
        self._stop(*self._processes)
        results = []
        with tempfile.TemporaryDirectory() as cache:
            for name in case.systems:
                system = self._systems[name]
                variables = {"NUMBA_CACHE_DIR": cache} if system.ours else {}
                for state in ("empty", "filled") if system.ours else ("filled",):
                    result = SystemResult()
                    _say(f"{case.name}, {system.title}: a fresh process")
                    with _noting_failure(result), self._start(name, **variables) as process:
                        self._prepare_and_check(process.ask, case, name, result)
                    results.append(FreshResult(case, name, state, result))
        return results

    def _ask(self, name: str, what: str, **arguments: Any) -> dict[str, Any]:
        try:
            if name not in self._processes:
                self._processes[name] = self._start(name)
            return self._processes[name].ask(what, **arguments)
        except WorkerError as error:
            self._stop(name)
            if error.kind == "absent":
                self._given_up[None, name] = error
            raise

    def _start(self, name: str, **environment: str) -> Process:
        settings = self._settings
        return Process(
            python=settings.pythons.get(name), threads=settings.threads, timeout=settings.timeout, **environment
        )

    def _stop(self, *names: str) -> None:
        for process in [self._processes.pop(name) for name in names if name in self._processes]:
            process.stop()

    def _prepare_and_check(self, ask: _Ask, case: Case, name: str, result: SystemResult) -> None:
        system, seed = self._systems[name], self._settings.seed
        result.preparation = ask(
            "prepare",
            adapter=system.adapter,
            circuit=case.make.func.__name__,
            sizes=case.make.keywords,
            shots=case.shots,
            seed=seed,
            threads=self._settings.threads,
        )
        answer = Answer.of(*ask("answer")["parts"])
        problem, key = case.make(seed=seed), str(case.make)
        expected = self._expected[key] = self._expected.get(key) or exact_answer(problem)
        verdict = compare(answer, expected, problem, shots=case.shots, tolerance=system.tolerance)
        result.deviation = verdict.deviation
        if verdict.problem is not None:
            result.status, result.reason = "wrong", verdict.problem

    def _time(self, name: str, result: SystemResult) -> None:
        # The threads of the system before go on spinning for a moment, in expectation of more work.
        time.sleep(_PAUSE)
        timing = self._ask(name, "measure", steps=result.steps)
        result.seconds.append(timing["seconds"])
        if timing["kernel_seconds"] is not None:
            result.kernel_seconds.append(timing["kernel_seconds"])

    def _drop_if_slow(self, series: str, x: int, name: str, result: SystemResult) -> None:
        after = f"dropped after {series} {x}"
        if result.median > _LONGEST_STEP_IN_SERIES:
            after += f", where a step took {result.median:.1f} s"
        elif result.status not in ("timed", "dropped", "absent"):
            after += f": {result.reason}"
        else:
            return
        self._given_up[series, name] = WorkerError("dropped", after)


@contextmanager
def _noting_failure(result: SystemResult) -> Iterator[None]:
    """Within it, a system's failure becomes its result."""
    try:
        yield
    except WorkerError as error:
        result.status, result.reason = error.kind, str(error)


def _summary(result: SystemResult) -> str:
    if not result.timings:
        return result.why
    low, high = min(result.seconds), max(result.seconds)
    return (
        f"{1e3 * result.median:10.3f} ms ({1e3 * low:.3f} to {1e3 * high:.3f}, {len(result.seconds)} timings of "
        f"{result.steps}; deviation {result.deviation:.1g})"
    )
