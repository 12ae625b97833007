"""A stand-in of IBM's Quantum Platform on 127.0.0.1, which the genuine ``QiskitRuntimeService`` client talks to.

``CloudServer`` starts it in a process of its own and controls it. Jobs are simulated once, from their content alone;
every job ever made and every request is kept, so that a test can prove what was submitted and how often. Faults are
ordered by kind (``KINDS``). Nothing outlives the process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ibm_cloud_records import INSTANCE, KINDS, TOKEN, Settings

__all__ = ["INSTANCE", "KINDS", "TOKEN", "CloudServer", "Watch"]


class CloudServer:
    """Starts the stand-in in a process of its own, controls it and stops it; a context manager.

    Within that it is ``addressed``, too.

    Args:
        **settings: Those of ``Settings``.

    Attributes:
        url: Where it listens.
        environment: What the environment of a client in another process must have besides its own; a plain
            ``QiskitRuntimeService()`` is then enough.
    """

    url: str
    environment: dict[str, str]

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)

    def __enter__(self) -> CloudServer:
        with ExitStack() as stack:
            stack.callback(self.stop)
            self.start()
            stack.enter_context(self.addressed())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Starts the process.

        Raises:
            RuntimeError: If it does not come up.
        """
        options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(self.settings).items()]
        # Jobs are small: threads of the linear algebra would only get in each other's way.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self._home = tempfile.TemporaryDirectory()
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the stand-in did not start: see its standard error")
        self._variables = {
            "QISKIT_IBM_URL": f"{self.url}/experimental",
            "QISKIT_IBM_CHANNEL": "ibm_quantum_platform",
            "QISKIT_IBM_TOKEN": TOKEN,
            "QISKIT_IBM_INSTANCE": INSTANCE,
            "IAM_URL": self.url,
            "GLOBAL_SEARCH_URL": self.url,
            "GLOBAL_CATALOG_URL": self.url,
            "NO_PROXY": "127.0.0.1",
            # Else the client reads the whole stack at each request, which takes 0.1 s under pytest.
            "USAGE_DATA_OPT_OUT": "True",
        }
        self.environment = self._variables | {"HOME": self._home.name}

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.communicate()
        self._home.cleanup()

    @contextmanager
    def addressed(self) -> Iterator[None]:
        """Within it, the variables of ``environment`` (``HOME`` apart) are set in this process."""
        import pytest
        from ibm_cloud_sdk_core.http_adapter import SSLHTTPAdapter
        from requests.adapters import HTTPAdapter

        with pytest.MonkeyPatch.context() as patch:
            # Else each client reads all authorities' certificates, twice, for an address that has none.
            patch.setattr(SSLHTTPAdapter, "init_poolmanager", HTTPAdapter.init_poolmanager)
            for name, value in self._variables.items():
                patch.setenv(name, value)
            yield

    def service(self, **kwargs: Any) -> Any:
        """A genuine ``QiskitRuntimeService`` of this process."""
        from qiskit_ibm_runtime import QiskitRuntimeService

        return QiskitRuntimeService(**kwargs)

    def inject(self, kind: str, count: int | None = 1, after: int = 0, **details: Any) -> None:
        """Orders a fault; the arguments are those of ``Fault``.

        Raises:
            ValueError: If there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"got fault {kind!r}, expected one of {sorted(KINDS)}")
        self._ask("POST", "faults", {"kind": kind, "count": count, "after": after} | details)

    def clear(self) -> None:
        """Takes back all faults, and hangs up on what is stalled. A device stays offline."""
        self._ask("POST", "clear")

    def release(self) -> None:
        """Hangs up on all requests that are stalled."""
        self._ask("POST", "release")

    def jobs(self, since: int = 0) -> list[dict[str, Any]]:
        """All jobs ever created but the first ``since``, oldest first: the keys of ``Job.record``."""
        return self._ask("GET", f"jobs?since={since}")

    def requests(self, method: str = "", path: str = ".*", since: int = 0) -> list[tuple[str, str, int]]:
        """(method, path, status) of all requests so far but the first ``since``; status 0: no answer.

        Args:
            method: Only those of this method.
            path: Only those whose whole path, without prefix and query, matches this regular expression.
            since: How many are left out.
        """
        found = [tuple(request) for request in self._ask("GET", f"requests?since={since}")]
        return [request for request in found if method in ("", request[0]) and re.fullmatch(path, request[1])]

    def counts(self) -> tuple[int, int]:
        """How many jobs and requests there were so far."""
        jobs, requests = self._ask("GET", "counts")
        return jobs, requests

    def set_up(self, **settings: Any) -> None:
        """Takes on other ``Settings``, as at the start: of the plan's time only ``used_seconds`` are used."""
        self._ask("POST", "settings", settings)

    def recalibrate(self, device: str) -> None:
        """Sets ``last_update_date`` of the properties to now."""
        self._ask("POST", f"devices/{device}", {"recalibrate": True})

    def set_device(self, device: str, state: str) -> None:
        """Makes a device ``online``, ``paused`` or ``offline``; jobs wait unless it is online."""
        self._ask("POST", f"devices/{device}", {"state": state})

    def close_session(self, session_id: str) -> None:
        """Closes a session or batch as the service would: it takes no more jobs."""
        self._ask("POST", f"sessions/{session_id}/close")

    def expire_session(self, session_id: str) -> None:
        """Lets the interactive time to live run out: the session is inactive until its next job."""
        self._ask("POST", f"sessions/{session_id}/expire")

    def _ask(self, method: str, what: str, data: dict[str, Any] | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"{self.url}/_control/{what}", method=method, data=body)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            return json.loads(response.read() or b"null")


class Watch:
    """What has happened at the server since the watch was made."""

    def __init__(self, cloud: CloudServer) -> None:
        self._cloud = cloud
        self._jobs, self._requests = cloud.counts()

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self._cloud.jobs(self._jobs)

    @property
    def requests(self) -> list[tuple[str, str, int]]:
        return self._cloud.requests(since=self._requests)

    @property
    def posts(self) -> int:
        return sum(request[:2] == ("POST", "/jobs") for request in self.requests)

    @property
    def counts(self) -> tuple[int, int]:
        """Jobs and submissions."""
        return len(self.jobs), self.posts


if __name__ == "__main__":
    from ibm_cloud_service import main

    main()
