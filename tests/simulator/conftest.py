"""Fixtures that the tests of the simulator share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from qiskit_torch_bridge.simulator import plan, threads
from qiskit_torch_bridge.simulator.engine import Simulator


@pytest.fixture
def num_threads() -> Any:
    """Sets torch's number of threads, for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes blocks and their runs small, so that few qubits are many passes."""
    chosen = Simulator.lanes

    def lanes(self: Simulator, rows: int) -> int:
        return chosen(self, rows) if self.plan.whole else 1  # states of several blocks lie one by one

    def set_sizes(block: int = 5, run: int = 3) -> None:
        monkeypatch.setattr(Simulator, "lanes", lanes)
        monkeypatch.setattr(plan, "BLOCK_QUBITS", block)
        monkeypatch.setattr(plan, "_SEGMENT_QUBITS", run)

    return set_sizes


class RecordingPool(ThreadPoolExecutor):
    """Counts what it is given to do."""

    tasks = 0

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self.tasks += 1
        return super().submit(*args, **kwargs)


@pytest.fixture
def busy_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Threads share any work, however small; the pool that does it."""
    monkeypatch.setattr(threads, "LEAST_SECONDS", 1e-15)
    with RecordingPool(8) as pool:
        monkeypatch.setattr(threads, "_pool", pool)
        yield pool
