"""The process in which one system runs: ``python -m experiments.benchmark.worker``, requests in, replies out.

A line of JSON each. What libraries print goes to the standard error, so that it cannot be taken for a reply.

Only the standard library is imported at the top: how long the rest takes is measured.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from .machine import forget_peak_memory, peak_memory

if TYPE_CHECKING:
    from .step import Step

_WARM_UP_STEPS = 3
_WARM_UP_SECONDS = 1.0
_PACKAGES = (
    *("torch", "numpy", "numba", "qiskit", "qiskit-aer", "qiskit-torch-bridge"),
    *("pennylane", "pennylane-lightning", "pennylane-qiskit", "qiskit-machine-learning"),
)


class Worker:
    """Holds one system on one problem at a time; every public method answers the request of its name."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._last: Any = None

    def prepare(
        self, adapter: str, problem: dict[str, Any], shots: int | None, seed: int, threads: int | None
    ) -> dict[str, Any]:
        """Imports the adapter (``module:function``), builds the step and does it once, each on the clock."""
        started = time.perf_counter()
        module, _, function = adapter.partition(":")
        build: Callable[..., Step] = getattr(importlib.import_module(module), function)
        imported = time.perf_counter()
        from .gate_lists import Problem

        if threads is not None and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        task = Problem.from_message(problem)
        forgotten = forget_peak_memory()
        memory_before = peak_memory()
        before_building = time.perf_counter()
        self._step = build(task, shots, seed)
        built = time.perf_counter()
        self._last = self._step.take()
        done = time.perf_counter()
        memory_after = peak_memory()
        grown = None if memory_before is None or memory_after is None else memory_after - memory_before
        return {
            "import_seconds": imported - started,
            "build_seconds": built - before_building,
            "first_step_seconds": done - built,
            "memory_bytes": grown,
            "memory_is_lower_bound": not forgotten,
            "versions": _versions(),
            "threads": _threads(),
        }

    def answer(self) -> dict[str, Any]:
        """Values and gradients of the last step."""
        from .exact_answers import Answer

        return Answer.from_parts(*self._last).to_message()

    def warm_up(self) -> dict[str, Any]:
        """Does a few steps and says how long the fastest took."""
        seconds: list[float] = []
        while len(seconds) < _WARM_UP_STEPS and sum(seconds) < _WARM_UP_SECONDS:
            seconds.append(self._timed(1))
        return {"seconds": min(seconds)}

    def measure(self, steps: int) -> dict[str, Any]:
        """Seconds a step, and of them those in the kernel where that is counted, over so many steps."""
        step = self._prepared()
        if steps > 1:
            self._timed(1)  # the caches are full of what the other systems have just done
        inside = 0.0 if step.kernel_seconds is None else step.kernel_seconds()
        seconds = self._timed(steps) / steps
        if step.kernel_seconds is None:
            return {"seconds": seconds, "kernel_seconds": None}
        return {"seconds": seconds, "kernel_seconds": (step.kernel_seconds() - inside) / steps}

    def _timed(self, steps: int) -> float:
        take = self._prepared().take
        started = time.perf_counter()
        for _ in range(steps):
            self._last = take()
        return time.perf_counter() - started

    def _prepared(self) -> Step:
        if self._step is None:
            raise RuntimeError("Got a request before any problem, expected 'prepare' first.")
        return self._step


def _threads() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    return {
        "torch": None if torch is None else torch.get_num_threads(),
        **{key: os.environ[key] for key in sorted(os.environ) if key.endswith("_NUM_THREADS")},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def main() -> None:
    """Answers requests until there are no more."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"reply": getattr(worker, request.pop("do"))(**request)}
        except ImportError as error:
            reply = {"absent": f"{type(error).__name__}: {error}"}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
