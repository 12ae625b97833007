"""Both ends of the pipe to a process in which one system runs, and may be missing, crash or hang without harm to the rest.

The process is ``python -m experiments.benchmark.worker``; requests go in and replies come out, a line of JSON each. What
libraries print goes to the standard error, so that it cannot be taken for a reply.

Only the standard library is imported at the top: how long the rest takes is measured.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .gate_lists import Step

_CHECKOUT = Path(__file__).parents[2]
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("NPROC", "PJRT_NPROC"),  # JAX's on the CPU: the older and the newer name
)
_WARM_UP_STEPS = 3
_WARM_UP_SECONDS = 1.0
_PACKAGES = (
    *("torch", "numpy", "numba", "qiskit", "qiskit-aer", "qiskit-torch-bridge"),
    *("pennylane", "pennylane-lightning", "pennylane-qiskit", "qiskit-machine-learning"),
    *("tensorcircuit-ng", "jax", "pyqtorch", "quimb"),
)


class WorkerError(Exception):
    """A system has not done what it was asked.

    Attributes:
        kind: ``"absent"`` (not installed), ``"failed"`` (an exception, or the process has ended), ``"timeout"``,
            ``"wrong"`` (its answer), or ``"dropped"`` (not asked, because it has become too slow for a series).
    """

    def __init__(self, kind: Literal["absent", "failed", "timeout", "wrong", "dropped"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Process(AbstractContextManager["Process", None]):
    """A worker process; use it as a context manager, or :meth:`stop` it.

    What ``torch.compile`` makes for a circuit is forgotten with the process, so that it is part of every first call.

    Args:
        python: The interpreter; None for this one.
        threads: How many threads numerical libraries may use; None for their own defaults.
        timeout: How long an answer may take, in seconds.
        environment: More environment variables.
    """

    def __init__(self, python: str | None, threads: int | None, timeout: float, **environment: str) -> None:
        self.timeout = timeout
        # Processes of the compiler's own may outlive this one for a moment, and write there.
        self._compiled = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": self._compiled.name, **environment}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_CHECKOUT), variables.get("PYTHONPATH")]))
        if threads is not None:
            variables.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        command = [python or sys.executable, "-m", f"{__package__}.worker"]
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._complaints}
        try:
            self._process = subprocess.Popen(command, env=variables, text=True, **pipes)
        except OSError as error:
            self._complaints.close()
            self._compiled.cleanup()
            raise WorkerError("failed", f"{python} does not start ({error})") from error

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Has the worker do something.

        Args:
            what: A method of :class:`Worker`.
            arguments: Its arguments.

        Raises:
            WorkerError: If the worker cannot; if it does not answer in time, it is ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line, started = "", time.monotonic()
        alarm = threading.Timer(self.timeout, self._process.kill)
        alarm.start()
        try:
            with suppress(OSError):  # the process may have ended before it could read the request
                stdin.write(json.dumps({"do": what, **arguments}) + "\n")
                stdin.flush()
                line = stdout.readline()
        finally:
            alarm.cancel()
        if line.endswith("\n"):
            ((kind, reply),) = json.loads(line).items()
            if kind != "reply":
                raise WorkerError(kind, reply)
            return dict(reply)
        if time.monotonic() - started >= self.timeout:
            raise WorkerError("timeout", f"no answer to {what!r} within {self.timeout:g} s")
        status = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1]}" if lines else ""
        raise WorkerError("failed", f"the process ended with status {status} at {what!r}{said}")

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        with suppress(OSError), self._complaints, self._process:
            pass  # closes the pipes, in which there may be a request that nobody will read
        self._compiled.cleanup()


class Worker:
    """Holds one system on one problem at a time; every public method answers the request of its name."""

    _step: Step

    def prepare(
        self,
        adapter: str,
        circuit: str,
        sizes: Mapping[str, int],
        shots: int | None,
        seed: int,
        noise: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Imports the adapter of a :class:`.cases.System`, builds the step and does it once, each on the clock.

        The problem is made by a function of :mod:`.gate_lists`, of these sizes and the seed, which draws the shots too; the
        noise is the arguments of :class:`.gate_lists.Depolarising`. The reply has the values and gradients of that step,
        in double precision to the last bit.
        """
        started = time.perf_counter()
        build: Callable[..., Step] = pkgutil.resolve_name(adapter)
        imported = time.perf_counter()
        from . import exact_answers, gate_lists

        of_gates = None if noise is None else gate_lists.Depolarising(**noise)
        problem = replace(getattr(gate_lists, circuit)(**sizes, seed=seed), noise=of_gates)
        forgotten = _forget_peak_memory()
        memory_before = _peak_memory()
        before_building = time.perf_counter()
        self._step = build(problem, shots, seed)
        built = time.perf_counter()
        taken = self._step.take()
        done = time.perf_counter()
        memory_after = _peak_memory()
        torch = sys.modules.get("torch")
        answer = exact_answers.Answer.of(*taken)
        return {
            "answer": [None if part is None else part.tolist() for part in answer],
            "import_seconds": imported - started,
            "build_seconds": built - before_building,
            "first_step_seconds": done - built,
            "memory_bytes": None if memory_before is None or memory_after is None else memory_after - memory_before,
            "memory_is_lower_bound": not forgotten,
            "versions": _versions(),
            "threads": {
                "torch": torch and torch.get_num_threads(),
                **{key: os.environ[key] for key in _THREAD_VARIABLES if key in os.environ},
            },
        }

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
            take()
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
