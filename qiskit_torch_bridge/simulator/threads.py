"""Sharing compiled work among Python threads, which works wherever users call from.

numba's own parallel loops abort the process when two Python threads enter them at once (its ``workqueue`` layer) or in
a forked child (``omp``); a DataLoader does both. The kernels release the interpreter's lock, so ordinary threads do.
As many work as PyTorch would use: ``torch.get_num_threads()``, which is 1 in DataLoader workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from threading import Event

import torch

__all__ = ["LEAST_SECONDS", "in_parallel"]

LEAST_SECONDS = 1e-4  # below this, waking a thread costs more than it saves
_SECONDS_BETWEEN_STOPS = 0.1  # compiled code cannot be interrupted
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """In a forked child there is the pool's object, but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def in_parallel(work: Callable[[int, int], None], size: int, seconds: float) -> None:
    """Calls ``work(start, stop)`` for parts that together make up ``range(size)``.

    Args:
        work: Releases the interpreter's lock while it computes; writes nowhere where another part does.
        size: Of the whole range.
        seconds: Roughly how long all of it takes in one thread.
    """
    parts = max(1, min(torch.get_num_threads(), size, int(seconds / LEAST_SECONDS)))
    if parts == 1 and seconds < _SECONDS_BETWEEN_STOPS:
        work(0, size)
        return
    step = max(1, int(size * _SECONDS_BETWEEN_STOPS / seconds))
    stopped = Event()

    def share(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            if stopped.is_set():
                return
            work(first, min(first + step, stop))

    edges = [size * part // parts for part in range(parts + 1)]
    futures: list[Future[None]] = []
    alone = edges[1]
    try:
        for start, stop in pairwise(edges[1:]):
            if (future := _submitted(share, start, stop)) is None:
                break
            futures.append(future)
            alone = stop
        share(0, edges[1])
        # What no thread could be had for.
        share(alone, size)
    except BaseException:
        stopped.set()
        raise
    finally:
        # The arrays that the others write into must outlive them.
        for future in futures:
            future.exception()
    for future in futures:
        future.result()


def _submitted(share: Callable[[int, int], None], start: int, stop: int) -> Future[None] | None:
    """The part on its way in another thread; None where there cannot be one (the interpreter is ending)."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="qiskit_torch_bridge")
    try:
        return _pool.submit(share, start, stop)
    except RuntimeError:
        return None
