"""Evaluations that a ledger has already, measured in another job than the one that would measure them now.

A calibration leaves in one job with the first circuits that need it. A later process, with other circuits, finds it here. So
do circuits whose calibration has to be measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

from ..base import Estimate
from ..results import Arrays, WrongResult, check_arrays
from .errors import LedgerError
from .ledger import Entry, Ledger
from .workload import Measurement, Workload

__all__ = ["kept_evaluations"]


def kept_evaluations(workload: Workload, ledger: Ledger) -> dict[Measurement, Estimate]:
    """What need not be measured: the estimates of evaluations whose jobs are done.

    It is to be asked where there is a calibration among them: else jobs are the same in any process, and the ledger knows
    them by themselves. None where one of the jobs has been written down: then it is that job that goes on.
    """
    if ledger.knows_any([task.job.key for task in workload.tasks]):
        return {}
    descriptions = {each: ledger.evaluation(each.key) for each in workload.measurements}
    if not any(descriptions.values()):
        return {}
    done = {entry.key: entry for entry in ledger.entries() if entry.state == "done"}
    estimates = {
        each: _estimate(replace(workload, measurements=[each]), [*chain(*description["parts"])], done, ledger)
        for each, description in descriptions.items()
        if description is not None
    }
    return {each: estimate for each, estimate in estimates.items() if estimate is not None}


def _estimate(
    alone: Workload, places: Sequence[tuple[str, int]], done: Mapping[str, Entry], ledger: Ledger
) -> Estimate | None:
    """That of a single measurement, whose PUBs are at these places of these jobs; None where they cannot be used."""
    keys = list(dict.fromkeys(key for key, _ in places))
    if not done.keys() >= set(keys):
        return None
    try:
        results = {key: ledger.arrays(done[key].number, None) for key in keys}
        remaining = iter([results[key][place] for key, place in places])
        jobs: list[Arrays] = [list(islice(remaining, sum(rows.num_pubs for rows in job))) for job in alone.jobs]
        for arrays, task in zip(jobs, alone.tasks, strict=True):
            check_arrays(arrays, task.asked or ())
    except (LedgerError, WrongResult, IndexError):  # damaged, or cut into other PUBs: it is measured anew
        return None
    return alone.estimates(jobs, [done[key] for key in keys])[0]
