"""Has the systems take turns: prepare, compare answers, warm up, then one timing each in every repetition."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from .cases import Case
from .exact_answers import Answer, exact_answer
from .processes import Process, WorkerError
from .systems import System
from .verdicts import compare

_Ask = Callable[..., dict[str, Any]]

_SHORTEST_TIMING = 0.02
_LONGEST_OF_ALL_REPETITIONS = {"case": 30.0, "series": 10.0}
_LONGEST_STEP_IN_SERIES = 3.0
_PAUSE = 0.05


@dataclass(kw_only=True)
class SystemResult:
    """What became of one system in one case.

    Attributes:
        status: ``"timed"``, or why it was not: ``"absent"``, ``"failed"``, ``"timeout"``, ``"wrong"``, ``"dropped"``.
        reason: In words; empty for ``"timed"``.
        deviation: From the reference, as in :class:`.verdicts.Verdict`; None where there is no answer.
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
    def median(self) -> float:
        """Seconds a step, the median of the repetitions; NaN where it was not timed."""
        return statistics.median(self.seconds) if self.status == "timed" and self.seconds else math.nan

    @property
    def least(self) -> float:
        """Seconds a step in the fastest repetition; NaN where it was not timed."""
        return min(self.seconds) if self.status == "timed" and self.seconds else math.nan


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes:
        case: Which.
        problem_size: Batch and so on, for the table of timings.
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


class Pool:
    """A process for each system, started when it is first needed and again after it failed.

    Args:
        start: Starts the process of the system of that name.
    """

    def __init__(self, start: Callable[[str], Process]) -> None:
        self._start = start
        self._processes: dict[str, Process] = {}
        self._absent: dict[str, WorkerError] = {}

    def ask(self, system: str, what: str, **arguments: Any) -> dict[str, Any]:
        """Has a system do something.

        Raises:
            WorkerError: If it cannot; its process is gone then.
        """
        if system in self._absent:
            raise self._absent[system]
        try:
            if system not in self._processes:
                self._processes[system] = self._start(system)
            return self._processes[system].ask(what, **arguments)
        except WorkerError as error:
            self.stop(system)
            if error.kind == "absent":
                self._absent[system] = error
            raise

    def stop(self, *systems: str) -> None:
        """Stops the processes of some systems, or of all."""
        for system in systems or tuple(self._processes):
            if system in self._processes:
                self._processes.pop(system).stop()


@dataclass
class Measurement:
    """Measures cases.

    Attributes:
        systems: By name.
        repetitions: Timings of each system in each case.
        threads: As in :class:`.processes.Process`.
        timeout: Seconds that a single request may take.
        seed: Draws the problems' numbers and the shots.
        pythons: Other interpreters, by system.
        say: Called with lines of progress.
    """

    systems: Mapping[str, System]
    _: KW_ONLY
    repetitions: int
    threads: int | None
    timeout: float
    seed: int
    pythons: Mapping[str, str]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._pool = Pool(self._start)
        self._expected: dict[tuple[Any, ...], Answer] = {}
        self._dropped: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Measurement:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()

    def measure(self, case: Case) -> CaseResult:
        """Measures one case in all its systems, whatever becomes of some of them."""
        problem = case.make(seed=self.seed)
        results = {name: SystemResult() for name in case.systems}
        self.say(f"{case.name}: {case.title}")
        for name, result in results.items():
            with _noting_failure(result):
                self._refuse_dropped(case, name)
                self._prepare_and_check(partial(self._pool.ask, name), case, name, result)
        steps = {name: self._warmed_up(name, result) for name, result in results.items() if result.status == "timed"}
        in_series = case.series is not None
        turns = {name: fewer_repetitions(steps[name], self.repetitions, in_series=in_series) for name in steps}
        for repetition in range(self.repetitions):
            for name, result in results.items():
                if result.status == "timed" and repetition < turns[name]:
                    with _noting_failure(result):
                        self._time(name, result)
        for name, result in results.items():
            self._drop_if_slow(case, name, result)
            self.say(f"  {self.systems[name].title:<26} {_summary(result)}")
        size = {"qubits": problem.num_qubits, "batch": problem.batch, "weights": len(problem.weights)}
        size["gates"] = len(problem.gates)
        return CaseResult(case, size, results)

    def measure_fresh(self, case: Case) -> list[FreshResult]:
        """The first call of each of a case's systems, each in a new process; ours twice, first with an empty cache."""
        self._pool.stop()
        results = []
        with tempfile.TemporaryDirectory() as cache:
            for name in case.systems:
                for state in ("empty", "filled") if self.systems[name].ours else ("filled",):
                    result = SystemResult()
                    self.say(f"{case.name}, {self.systems[name].title}: a fresh process")
                    with _noting_failure(result):
                        ours = {"NUMBA_CACHE_DIR": cache} if self.systems[name].ours else {}
                        with self._start(name, ours) as process:
                            self._prepare_and_check(process.ask, case, name, result)
                    results.append(FreshResult(case, name, state, result))
        return results

    def _start(self, name: str, environment: Mapping[str, str] | None = None) -> Process:
        return Process(
            python=self.pythons.get(name), threads=self.threads, environment=environment, timeout=self.timeout
        )

    def _prepare_and_check(self, ask: _Ask, case: Case, name: str, result: SystemResult) -> None:
        problem = case.make(seed=self.seed)
        result.preparation = ask(
            "prepare",
            adapter=self.systems[name].adapter,
            problem=problem.to_message(),
            shots=case.shots,
            seed=self.seed,
            threads=self.threads,
        )
        answer = Answer.from_parts(**ask("answer"))
        if case.key not in self._expected:
            self._expected[case.key] = exact_answer(problem)
        tolerance = self.systems[name].tolerance
        verdict = compare(answer, self._expected[case.key], problem, shots=case.shots, tolerance=tolerance)
        result.deviation = verdict.deviation
        if verdict.problem is not None:
            result.status, result.reason = "wrong", verdict.problem

    def _warmed_up(self, name: str, result: SystemResult) -> float:
        """Seconds a step: not the first one's, which may have compiled something."""
        seconds = math.inf
        with _noting_failure(result):
            seconds = self._pool.ask(name, "warm_up")["seconds"]
            result.steps = max(1, math.ceil(_SHORTEST_TIMING / seconds))
        return seconds

    def _time(self, name: str, result: SystemResult) -> None:
        # The threads of the system before go on spinning for a moment, in expectation of more work.
        time.sleep(_PAUSE)
        timing = self._pool.ask(name, "measure", steps=result.steps)
        result.seconds.append(timing["seconds"])
        if timing["kernel_seconds"] is not None:
            result.kernel_seconds.append(timing["kernel_seconds"])

    def _refuse_dropped(self, case: Case, name: str) -> None:
        if case.series is not None and (case.series.axis, name) in self._dropped:
            raise WorkerError("dropped", self._dropped[case.series.axis, name])

    def _drop_if_slow(self, case: Case, name: str, result: SystemResult) -> None:
        if case.series is None or result.status in ("dropped", "absent"):
            return
        where = f"{case.series.axis} {case.series.x}"
        if result.status != "timed":
            self._dropped[case.series.axis, name] = f"dropped after {where}: {result.reason}"
        elif result.median > _LONGEST_STEP_IN_SERIES:
            self._dropped[case.series.axis, name] = f"dropped after {where}, where a step took {result.median:.1f} s"


@contextmanager
def _noting_failure(result: SystemResult) -> Iterator[None]:
    """Within it, a system's failure becomes its result."""
    try:
        yield
    except WorkerError as error:
        result.status, result.reason = error.kind, str(error)


def _summary(result: SystemResult) -> str:
    if result.status == "dropped":
        return result.reason
    if result.status != "timed":
        return f"{result.status}: {result.reason}"
    low, high = min(result.seconds), max(result.seconds)
    return (
        f"{1e3 * result.median:10.3f} ms ({1e3 * low:.3f} to {1e3 * high:.3f}, {len(result.seconds)} timings of "
        f"{result.steps}; deviation {result.deviation:.1g})"
    )
