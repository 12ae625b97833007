"""Parts of a batch side by side, in threads and in processes: the same bits, and an end when there has to be one."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import forks, in_child
from simulator_cases import SEED, VALUES, Case, parameters_of, random_circuit, some_observables
from torch.utils.data import DataLoader, Dataset

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.simulator import engine, threads


def everything(case: Case, rows: int) -> list[np.ndarray]:
    """Values, gradients, and values and variances with shots."""
    points = case.points(rows)
    sampled = case.backend.evaluate(case.program, case.angles(points), shots=100, seed=SEED)
    return [case.values(points), case.pullback(points, case.upstream(rows)), sampled.values, sampled.variances]


# The largest of all takes two seconds; each two of its three settings are in another case.
@pytest.mark.parametrize(
    ("rows", "readout", "block"),
    [
        each
        for each in product([3, 20, 100], ["observables", "probabilities"], [13, 5])
        if each != (100, "probabilities", 5)
    ],
)
def test_results_do_not_depend_on_threads_and_parts(
    small_blocks, num_threads, busy_threads, monkeypatch, rows, readout, block
):
    """To the last bit."""
    small_blocks(block, 3)
    n = 6 if block == 13 else 7
    circuit = random_circuit(n, 3, 40, free=5)
    observables, qubits = (some_observables(n), None) if readout == "observables" else (None, [4, 1, 5])
    case = Case(circuit, observables, qubits)
    num_threads(1)
    expected = everything(case, rows)
    assert busy_threads.tasks == 0
    for count in (1, 2, 4):
        num_threads(count)
        before = busy_threads.tasks
        for small, large in [(2**20, 2**28), (1, 2**28), (2**13, 2**28), (2**20, 2**14), (1, 1)]:
            monkeypatch.setattr(engine, "_BYTES_OF_A_SMALL_PART", small)
            monkeypatch.setattr(engine, "_BYTES_OF_A_LARGE_PART", large)
            for mine, theirs in zip(everything(case, rows), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs)
        assert (busy_threads.tasks > before) == (count > 1)


def test_threads_share_large_states_to_the_last_bit(num_threads):
    """With the thresholds as they are."""
    case = Case(random_circuit(15, 2, 40, free=4), some_observables(15))
    results = []
    for count in (1, 2, 4):
        num_threads(count)
        results.append(everything(case, 5))
    for other in results[1:]:
        for mine, theirs in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(results[0][0], case.expected(case.points(5)), atol=VALUES)


def test_python_threads_call_the_same_layer_and_others_at_once(num_threads, busy_threads):
    num_threads(2)
    circuits = [random_circuit(n, n, 30, free=5) for n in (2, 4, 6)]
    layers = [QuantumLayer(c, inputs=parameters_of(c), observables=some_observables(c.num_qubits)) for c in circuits]
    widths = {layer: len(layer.program.angles) for layer in layers}
    batches = [torch.randn(20, 5, dtype=torch.float64) for _ in range(8)]

    def run(number: int, layer: QuantumLayer) -> tuple[torch.Tensor, torch.Tensor]:
        x = batches[number][:, : widths[layer]].clone().requires_grad_()
        values = layer(x)
        return values.detach(), torch.autograd.grad(values.square().sum(), x)[0]

    jobs = [(number, layer) for _ in range(4) for number in range(8) for layer in layers]
    expected = [run(*job) for job in jobs]
    start = threading.Barrier(8)

    def of_thread(number: int) -> list[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        torch.set_num_threads(2)
        start.wait()
        return [(i, run(*jobs[i])) for i in range(number, len(jobs), 8)]

    with ThreadPoolExecutor(8) as callers:
        found = dict(pair for pairs in callers.map(of_thread, range(8)) for pair in pairs)
    assert busy_threads.tasks > len(jobs)
    for number, (values, gradients) in enumerate(expected):
        assert torch.equal(found[number][0], values)
        assert torch.equal(found[number][1], gradients)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_exception_of_a_part_reaches_the_caller_when_the_others_have_ended(num_threads, busy_threads, failing):
    num_threads(4)
    finished = []
    failed = threading.Event()

    def work(start: int, stop: int) -> None:
        if start == failing:
            failed.set()
            raise KeyError("broken")
        assert failed.wait(60)
        threading.Event().wait(0.05)  # long enough for a caller that would not wait
        finished.append(start)

    with pytest.raises(KeyError, match="broken"):
        threads.in_parallel(work, 4, 1.0)
    assert sorted(finished) == [part for part in range(4) if part != failing]


def test_too_little_work_stays_in_one_thread(num_threads, monkeypatch):
    monkeypatch.setattr(threads, "_pool", None)
    num_threads(4)
    parts = []
    threads.in_parallel(lambda start, stop: parts.append((start, stop)), 10, 1e-6)
    assert parts == [(0, 10)]
    assert threads._pool is None
    threads.in_parallel(lambda start, stop: parts.append((start, stop)), 3, 1.0)
    assert sorted(parts[1:]) == [(0, 1), (1, 2), (2, 3)]


# ------------------------------------------------------------------------------------------------- processes


def layer_with_threads() -> QuantumLayer:
    circuit = random_circuit(5, 3, 30, free=5)
    return QuantumLayer(circuit, inputs=parameters_of(circuit), observables=some_observables(5), seed=3)


def run_with_threads() -> list[list[float]]:
    """Values, gradients and values with shots of a layer, in two threads."""
    threads.LEAST_SECONDS = 1e-15
    torch.set_num_threads(2)
    layer = layer_with_threads()
    x = torch.linspace(-2, 2, 200, dtype=torch.float64).reshape(40, 5).requires_grad_()
    values = layer(x)
    (gradient,) = torch.autograd.grad(values.square().sum(), x)
    assert threads._pool is not None
    return [tensor.flatten().tolist() for tensor in (values, gradient, layer(x, shots=50))]


@forks
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_child_process_computes_the_same(num_threads, monkeypatch, method):
    monkeypatch.setattr(threads, "LEAST_SECONDS", 1e-15)
    monkeypatch.setattr(threads, "_pool", None)
    expected = run_with_threads()
    pool = threads._pool
    assert in_child(method, run_with_threads) == expected
    assert threads._pool is pool, "the parent keeps its own"
    assert run_with_threads() == expected


class Circuits(Dataset):
    """Each entry is a run of a layer."""

    def __init__(self, layer: QuantumLayer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(torch.full((5,), 0.1 * index, dtype=torch.float64))


@forks
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_data_loader_runs_circuits_in_its_workers(num_threads, busy_threads, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    num_threads(2)
    layer = layer_with_threads()
    rows = 0.1 * torch.arange(12, dtype=torch.float64)[:, None].expand(-1, 5)
    expected = layer(rows)
    assert busy_threads.tasks
    loader = DataLoader(
        Circuits(layer),
        batch_size=4,
        # To start one takes seconds, unless it is forked: then two are started anew for each pass.
        num_workers=1 if method == "spawn" else 2,
        multiprocessing_context=method,
        timeout=120,
        persistent_workers=method == "spawn",
    )
    for _ in range(2):
        torch.testing.assert_close(torch.cat([*loader]), expected, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------- interruptions


def test_an_interruption_stops_all_parts_soon(num_threads, monkeypatch):
    num_threads(2)
    monkeypatch.setattr(threads, "_SECONDS_BETWEEN_STOPS", 0.01)
    begun = threading.Event()
    calls: list[int] = []

    def work(start: int, stop: int) -> None:
        calls.append(start)
        if threading.current_thread() is threading.main_thread():
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()

    with pytest.raises(KeyboardInterrupt):
        threads.in_parallel(work, 1000, 10.0)
    assert len(calls) < 1000


def after_the_main_thread(connection: Connection, work: Callable[[], Any]) -> None:
    """Answers from a thread that begins when the main thread, and the pool with it, has ended."""

    def answer() -> None:
        threading.main_thread().join()
        with pytest.raises(RuntimeError, match="after interpreter shutdown"):
            ThreadPoolExecutor(1).submit(work)
        connection.send(work())

    threading.Thread(target=answer).start()


@forks
def test_a_thread_that_outlives_the_main_thread_still_computes(num_threads, monkeypatch):
    monkeypatch.setattr(threads, "LEAST_SECONDS", 1e-12)
    monkeypatch.setattr(threads, "_pool", None)
    num_threads(2)
    layer, rows = layer_with_threads(), torch.zeros(64, 5, dtype=torch.float64)
    expected = layer(rows).tolist()
    assert threads._pool is not None
    assert in_child("fork", lambda: layer(rows).tolist(), after_the_main_thread) == expected
