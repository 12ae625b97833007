"""Fixtures that all tests share."""

import gc
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from ibm_cloud import CloudServer
from numba import types
from runs import figures_not_rendered, figures_rendered_once

from qiskit_torch_bridge import Backend, Estimate, Program
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.simulator.machine_code import Use, compile_for


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist share the cores, so each computes in one thread unless a test says otherwise.

    They are started after this, with these environment variables.
    """
    # A shell starts background jobs with Ctrl-C ignored, and so would be all that the tests start.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "figures: figures are rendered, in a module of ``no_pictures``")
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Neighbours share modules' fixtures, caches and compiled code, so each worker begins with its own half of them.
        if config.option.dist == "load":
            config.option.dist = "worksteal"
    # A full collection looks at a million objects of modules and tests, none of which it can free.
    gc.disable()


def pytest_collection_finish() -> None:
    """What the tests make is collected, but seldom; what was there before them is looked at no more.

    Some tests import large libraries, whose objects every full collection would look at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 50)
    gc.enable()


def pytest_unconfigure() -> None:
    """Else libraries that count their objects would say at Python's end that some have leaked."""
    gc.unfreeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture
def no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """For runs that are about other things than their figures; not for tests that carry ``@pytest.mark.figures``."""
    with nullcontext() if request.node.get_closest_marker("figures") else figures_not_rendered():
        yield


@pytest.fixture
def one_picture_of_each() -> Iterator[None]:
    """For runs of many trainings, which draw the same figures each."""
    with figures_rendered_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _simulator_compiled_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where its machine code is not on the disk yet, each worker of a long run compiles a part, and not all of it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or request.session.testscollected < 1000:
        return
    double, single = types.float64, types.float32
    parts = (
        [(Use.SMALL, double), (Use.LARGE, double), (Use.NOISY, double)],
        [(Use.SMALL, single), (Use.LARGE, single), (Use.WIDE, double)],
    )
    mine = int(worker.removeprefix("gw")) % 2
    for part in (mine, 1 - mine):
        with FileLock(tmp_path_factory.getbasetemp().parent / f"simulator-{part}.lock"):
            for use, real in parts[part]:
                compile_for(use, real)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder of that name once for all workers of pytest-xdist; tests leave it as it is."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(place / f"{name}.lock"):
            if not (place / name).exists():
                unfinished = tmp_path_factory.mktemp(name)
                make(unfinished)
                unfinished.rename(place / name)
        return place / name

    return folder


@pytest.fixture(scope="session")
def running_server() -> Iterator[CloudServer]:
    """A stand-in of IBM's service, in a process of its own that all tests share."""
    running = CloudServer()
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def server(running_server: CloudServer) -> Iterator[CloudServer]:
    """The stand-in, which clients of this process find."""
    with running_server.addressed():
        yield running_server


@pytest.fixture
def cloud(server: CloudServer) -> Iterator[CloudServer]:
    """The stand-in; afterwards without faults, and with its settings and devices as they were."""
    yield server
    server.clear()
    server.set_up()
    server.set_device("ibm_manila", "online")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of data sets that ``QTB_DATA`` names."""
    if not os.environ.get("QTB_DATA"):
        pytest.skip("QTB_DATA is not set: it names the folder of the data sets")
    folder = Path(os.environ["QTB_DATA"])
    if not folder.is_dir():
        pytest.skip(f"QTB_DATA is {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def reference(data_root: Path) -> Callable[[str], dict[str, Any]]:
    """Reads ``NAME.json`` or ``NAME.npz`` from the folder of reference numbers beside the data."""

    def read(name: str) -> dict[str, Any]:
        folder = data_root.parent / "reference"
        if (folder / f"{name}.npz").is_file():
            with np.load(folder / f"{name}.npz") as arrays:
                return dict(arrays)
        if not (folder / f"{name}.json").is_file():
            pytest.skip(f"{folder} has no {name}")
        contents: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        return contents

    return read


class CountingBackend(Backend):
    """Another backend, and a record of what is asked of it.

    Attributes:
        calls: (angle vectors, shots) of each call of ``evaluate`` or ``evaluate_for_pullback``.
    """

    def __init__(self, backend: Any = None) -> None:
        self.backend = resolve_backend(backend)
        self.name = self.backend.name
        self.differentiates = self.backend.differentiates
        self.calls: list[tuple[int, int | None]] = []

    def resolve_shots(self, shots: int | None) -> int | None:
        return self.backend.resolve_shots(shots)

    def prepare(self, program: Program) -> None:
        self.backend.prepare(program)

    def evaluate(self, program: Program, angles: np.ndarray, *, shots: int | None, seed: Any) -> Estimate:
        self.calls.append((len(angles), shots))
        return self.backend.evaluate(program, angles, shots=shots, seed=seed)

    def evaluate_for_pullback(self, program: Program, angles: np.ndarray) -> Estimate:
        self.calls.append((len(angles), None))
        return self.backend.evaluate_for_pullback(program, angles)

    def circuits_per_row(self, program: Program) -> int:
        return self.backend.circuits_per_row(program)

    def pullback(
        self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any, wanted: np.ndarray
    ) -> np.ndarray:
        return self.backend.pullback(program, angles, upstream, state, wanted)


@pytest.fixture
def counting() -> type[CountingBackend]:
    """The class of backends that count their calls; ``counting("aer")`` makes one."""
    return CountingBackend
