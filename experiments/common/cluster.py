"""Cells done in this process, or side by side by Dask's workers: processes on this machine, or those of any scheduler."""

from __future__ import annotations

import logging
import signal
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .cells import Outcome
from .options import Options
from .runs import brief

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_ANSWER = 20


def outcomes_of(
    do: Callable[[Any], Outcome], cells: Sequence[Any], options: Options, *, workers: int | None
) -> Generator[Outcome, None, None]:
    """Does the cells; yields each as it finishes.

    A worker that is lost costs the cell that it was at, which another one does again. A cell that has taken several workers
    with it fails (Dask's setting ``distributed.scheduler.allowed-failures``).

    Args:
        do: What to do with each cell; the workers import it by its name.
        cells: All different.
        options: Where: ``scheduler`` is the address of a running one, such as ``tcp://host:8786``; without it there is a
            cluster of processes on this machine, with one thread each, for as long as it takes.
        workers: How many processes, where the options do not say; None: as many as there are cores; 0: only this one.

    Raises:
        OSError: If the scheduler does not answer, or is lost.
    """
    count = workers if options.workers is None else options.workers
    if not cells or (options.scheduler is None and count == 0):
        yield from map(do, cells)
        return
    yield from _by_dask(do, cells, options.scheduler, count)


def _by_dask(
    do: Callable[[Any], Outcome], cells: Sequence[Any], scheduler: str | None, workers: int | None
) -> Generator[Outcome, None, None]:
    from distributed import as_completed  # with all of Dask, a second

    with _client(scheduler, workers) as client:
        name = uuid.uuid4().hex  # no other run on the same scheduler has tasks of these names
        futures = [client.submit(do, cell, key=f"cell-{name}-{place}") for place, cell in enumerate(cells)]
        cell_of = {future.key: cell for future, cell in zip(futures, cells, strict=True)}
        finished = as_completed(futures, with_results=True, raise_errors=False)
        del futures  # what has been yielded is not held on the workers any longer
        for future, result in finished:
            if future.status == "finished":
                yield result
            elif future.status == "error":
                error = result[1]
                yield Outcome(cell_of[future.key], None, f"{type(error).__name__}: {brief(error)}")
            else:
                raise OSError(
                    f"Dask's scheduler at {client.scheduler.address} has gone ({future.status}); what was measured is kept. "
                    "Continue with --resume."
                )
            del future, result


def dask_setup(worker: Any) -> None:
    """Called by Dask in each of our own workers as it starts: Ctrl-C reaches them too, but it is ours to act upon."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _client(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if scheduler is None:
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address=":0",
                    preload=[__name__],
                    silence_logs=logging.CRITICAL,
                )
            )
            yield stack.enter_context(Client(cluster))
            return
        try:
            client = stack.enter_context(Client(scheduler, timeout=_SECONDS_TO_ANSWER))
        except (OSError, ValueError, TimeoutError) as error:
            raise OSError(
                f"--scheduler: got {scheduler!r}, where no Dask scheduler answers ({brief(error)}); start one with "
                "`dask scheduler`, or leave the option out."
            ) from error
        if not client.scheduler_info()["workers"]:
            print(f"The scheduler has no workers yet; it waits for some: dask worker {scheduler}", flush=True)
        yield client
