"""The process in which one system runs: ``python -m experiments.benchmark.worker``, requests in, replies out.

A line of JSON each. What libraries print goes to the standard error, so that it cannot be taken for a reply.

Only the standard library is imported at the top: how long the rest takes is measured.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gate_lists import Step

_WARM_UP_STEPS = 3
_WARM_UP_SECONDS = 1.0
_PACKAGES = (
    *("torch", "numpy", "numba", "qiskit", "qiskit-aer", "qiskit-torch-bridge"),
    *("pennylane", "pennylane-lightning", "pennylane-qiskit", "qiskit-machine-learning"),
)


class Worker:
    """Holds one system on one problem at a time; every public method answers the request of its name."""

    _step: Step
    _last: Any

    def prepare(
        self, adapter: str, circuit: str, sizes: Mapping[str, int], shots: int | None, seed: int
    ) -> dict[str, Any]:
        """Imports the adapter (``module:function``), builds the step and does it once, each on the clock.

        Args:
            adapter: As in :class:`.cases.System`.
            circuit: A function of :mod:`.gate_lists`.
            sizes: Its arguments, but for the seed.
            shots: Shots a circuit; None: exact.
            seed: Draws the problem's numbers and the shots.
        """
        started = time.perf_counter()
        build: Callable[..., Step] = pkgutil.resolve_name(adapter)
        imported = time.perf_counter()
        from . import gate_lists

        problem = getattr(gate_lists, circuit)(**sizes, seed=seed)
        forgotten = _forget_peak_memory()
        memory_before = _peak_memory()
        before_building = time.perf_counter()
        self._step = build(problem, shots, seed)
        built = time.perf_counter()
        self._last = self._step.take()
        done = time.perf_counter()
        memory_after = _peak_memory()
        torch = sys.modules.get("torch")
        return {
            "import_seconds": imported - started,
            "build_seconds": built - before_building,
            "first_step_seconds": done - built,
            "memory_bytes": None if memory_before is None or memory_after is None else memory_after - memory_before,
            "memory_is_lower_bound": not forgotten,
            "versions": _versions(),
            "threads": {
                "torch": torch and torch.get_num_threads(),
                **{key: os.environ[key] for key in sorted(os.environ) if key.endswith("_NUM_THREADS")},
            },
        }

    def answer(self) -> dict[str, Any]:
        """Values and gradients of the last step, in double precision to the last bit."""
        from .exact_answers import Answer

        return {"parts": [None if part is None else part.tolist() for part in Answer.of(*self._last)]}

    def warm_up(self) -> dict[str, Any]:
        """Does a few steps and says how long the fastest took."""
        seconds: list[float] = []
        while len(seconds) < _WARM_UP_STEPS and sum(seconds) < _WARM_UP_SECONDS:
            seconds.append(self._timed(1))
        return {"seconds": min(seconds)}

    def measure(self, steps: int) -> dict[str, Any]:
        """Seconds a step, and of them those in the kernel where that is counted, over so many steps."""
        kernel_seconds = self._step.kernel_seconds
        if steps > 1:
            self._timed(1)  # the caches are full of what the other systems have just done
        inside = kernel_seconds() if kernel_seconds else 0.0
        seconds = self._timed(steps) / steps
        return {"seconds": seconds, "kernel_seconds": (kernel_seconds() - inside) / steps if kernel_seconds else None}

    def _timed(self, steps: int) -> float:
        take = self._step.take
        started = time.perf_counter()
        for _ in range(steps):
            self._last = take()
        return time.perf_counter() - started


def _peak_memory() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not say."""
    # Linux hands a parent's ru_maxrss down to the processes it starts, so there the process's own record is read.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    with suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def _forget_peak_memory() -> bool:
    """Starts the record of the peak anew from what is held now; False where the system cannot."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


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
            reply = {"failed": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
