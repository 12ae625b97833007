"""The other end of :mod:`.worker`: one process a system, which may be missing, crash or hang without harm to the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal

_CHECKOUT = Path(__file__).parents[2]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


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

    Args:
        python: The interpreter; None for this one.
        threads: How many threads numerical libraries may use; None for their own defaults.
        timeout: How long an answer may take, in seconds.
        environment: More environment variables.
    """

    def __init__(self, python: str | None, threads: int | None, timeout: float, **environment: str) -> None:
        self.timeout = timeout
        variables = {**os.environ, **environment}
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
            raise WorkerError("failed", f"{python} does not start ({error})") from error

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Has the worker do something.

        Args:
            what: A method of :class:`.worker.Worker`.
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
