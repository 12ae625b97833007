"""Results of a ledger, read only if nothing has happened to them."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Arrays, Asked, WrongResult, arrays_of, check_arrays
from .errors import LedgerError
from .ledger import Ledger, ResultDamaged

__all__ = ["asked_of_jobs", "stored_result", "way_to_forget"]


def asked_of_jobs(ledger: Ledger) -> dict[str, list[Asked]]:
    """What each job was to bring back, by its key, as far as the evaluations that it is for say."""
    jobs: dict[str, dict[int, Asked]] = {}
    for description, _ in ledger.evaluations():
        for part, asked in zip(description["parts"], description.get("asked", ()), strict=False):
            for (key, place), (shape, *rest) in zip(part, asked, strict=True):
                others = dict(zip(("shots", "bits", "at_least", "extrapolates"), rest, strict=False))
                jobs.setdefault(key, {})[place] = Asked(tuple(shape), **others)
    return {key: [pubs[place] for place in range(len(pubs))] for key, pubs in jobs.items() if max(pubs) < len(pubs)}


def stored_result(ledger: Ledger, number: int, asked: Sequence[Asked] | None) -> Arrays:
    """The result of a job that is done, if it is what was asked for.

    Raises:
        LedgerError: If it is not, or damaged.
    """
    try:
        arrays = arrays_of(ledger.result(number))
        if asked is not None:
            check_arrays(arrays, asked)
    except ResultDamaged as error:
        raise LedgerError(f"{error} {way_to_forget(ledger, number)}") from None
    except (ValueError, WrongResult) as error:
        raise LedgerError(
            f"The result of job {number} in {ledger!r} is damaged, or not what was asked for: {error} All others remain. "
            f"{way_to_forget(ledger, number)}"
        ) from None
    return arrays


def way_to_forget(ledger: Ledger, number: int) -> str:
    """How a user gives up a job that was paid for."""
    command = f" (or `qtb jobs {ledger.path} --forget {number}`)" if ledger.path else ""
    return (
        f"IBMBackend.forget({number}){command} gives it up: then the same run sends it again, which is paid for again."
    )
