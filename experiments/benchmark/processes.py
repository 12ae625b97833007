"""The other end of :mod:`.worker`: one process a system, which may be missing, crash or hang without harm to the rest."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

_CHECKOUT = Path(__file__).parents[2]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class WorkerError(Exception):
    """A system has not done what it was asked.

    Attributes:
        kind: ``"absent"`` (not installed), ``"failed"`` (an exception, or the process has ended), ``"timeout"``, or
            ``"dropped"`` (not asked, because it has become too slow for a series).
    """

    def __init__(self, kind: Literal["absent", "failed", "timeout", "dropped"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Process:
    """A worker process; use it as a context manager, or :meth:`stop` it.

    Args:
        python: The interpreter; None for this one.
        threads: How many threads numerical libraries may use; None for their own defaults.
        environment: More environment variables.
        timeout: How long an answer may take, in seconds.
    """

    def __init__(
        self,
        *,
        python: str | None = None,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float,
    ) -> None:
        self.timeout = timeout
        variables = {**os.environ, **(environment or {})}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_CHECKOUT), variables.get("PYTHONPATH")]))
        if threads is not None:
            variables.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", f"{__package__}.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=variables,
                text=True,
            )
        except OSError as error:
            self._complaints.close()
            raise WorkerError("failed", f"{python} does not start ({error})") from error
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_read, args=(self._process.stdout, self._replies), daemon=True)
        self._reader.start()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Has the worker do something.

        Args:
            what: A method of :class:`.worker.Worker`.
            arguments: Its arguments.

        Raises:
            WorkerError: If the worker cannot or does not answer in time; it may have to be stopped then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended(what) from None
        try:
            line = self._replies.get(timeout=self.timeout)
        except queue.Empty:
            raise WorkerError("timeout", f"no answer to {what!r} within {self.timeout:g} s") from None
        if line is None:
            raise self._ended(what)
        reply = json.loads(line)
        if "reply" in reply:
            answer: dict[str, Any] = reply["reply"]
            return answer
        if "absent" in reply:
            raise WorkerError("absent", reply["absent"])
        raise WorkerError("failed", reply["error"])

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            assert stream is not None
            try:
                stream.close()
            except OSError:  # a request that nobody will read was still in the pipe
                continue

    def _ended(self, what: str) -> WorkerError:
        status = self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        said = f"; its last words: {lines[-1]}" if lines else ""
        return WorkerError("failed", f"the process ended with status {status} at {what!r}{said}")


def _read(stream: IO[str], replies: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        replies.put(line)
    replies.put(None)
