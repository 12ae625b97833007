"""``qtb jobs``: the jobs of a ledger, and what can be done about them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.ibm.errors import HardwareError
from ..backends.ibm.ledger import Entry, Ledger
from ..backends.passport import costs_of_jobs
from .printing import in_columns

if TYPE_CHECKING:
    from ..backends.ibm.backend import IBMBackend

__all__ = ["ledger_at", "main"]

_OPEN = ("intended", "submitted")


def main(options: Namespace) -> int:
    """Does what the options say, then lists the jobs; returns the exit status."""
    with closing(Ledger(ledger_at(options.ledger))) as ledger:
        if options.discard_damaged:
            _discard_damaged(ledger)
        all_well = True
        if options.cancel is not None:
            all_well &= _at_the_service(_to_cancel(ledger, options.cancel), ledger, options, _cancel)
        if options.forget is not None:
            all_well &= _forget(ledger, options)
        if options.collect:
            all_well &= _at_the_service(_unsettled(ledger), ledger, options, _collect)
        _list(ledger)
        if options.events:
            for event in ledger.events():
                print(f"{event['at']}  {event['kind']}: {event['message']}{_details(event['data'])}")
    return 0 if all_well else 1


def ledger_at(path: str) -> Path:
    """The ledger that a path names: a file, or the only one in a folder, else in the folder which that is in.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several.
    """
    given = Path(path)
    if not given.is_dir():
        ledgers = [given] if given.is_file() else []
    else:  # a part of a training has a folder of its own within the training's, which has the ledger
        places = (
            [file for file in folder.glob("*.sqlite") if file.is_file()] for folder in (given, given.resolve().parent)
        )
        ledgers = next(filter(None, places), [])
    if not ledgers:
        raise FileNotFoundError(
            f"{path}: there is no ledger; name its file (such as qtb-jobs.sqlite), or a folder with it."
        )
    if len(ledgers) > 1:
        raise ValueError(
            f"{path}: got a folder with {', '.join(sorted(file.name for file in ledgers))}, expected one ledger; name its "
            "file."
        )
    return ledgers[0]


def _discard_damaged(ledger: Ledger) -> None:
    job_ids = [entry.job_id or "unknown" for entry in ledger.entries() if entry.state == "damaged"]
    lost = ledger.discard_damaged()
    print(f"Given up: {', '.join(lost) or 'nothing, because nothing is damaged'}.")
    if job_ids:
        print(f"Jobs that may have been paid for, and are not known any more: {', '.join(job_ids)}.")


def _list(ledger: Ledger) -> None:
    entries = ledger.entries()
    if not entries:
        print("The ledger holds no jobs.")
        return
    print(in_columns([_row(entry) for entry in entries]))
    costs = costs_of_jobs(entries)
    billed = sum(entry.usage_seconds or 0 for entry in entries)
    print(
        f"{costs['jobs']:,} jobs, {sum(entry.circuits for entry in entries):,} circuits, "
        f"{sum(entry.shots for entry in entries):,} shots; {costs['qpu_seconds_estimated']:,.1f} s of QPU time estimated, "
        f"{billed:,.1f} s billed{'' if costs['qpu_seconds'] is not None else ' so far'}"
    )
    for entry in entries:
        if entry.error is not None:
            print(f"Job {entry.number}: {' '.join(entry.error.split())}")


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "state": entry.state,
        "job id": entry.job_id or "",
        "backend": entry.backend,
        "circuits": entry.circuits,
        "shots": entry.shots,
        "estimated s": entry.estimated_seconds,
        "billed s": "" if entry.usage_seconds is None else entry.usage_seconds,
        "when": (entry.finished_at or entry.submitted_at or entry.intended_at)[:19].replace("T", " "),
    }


def _details(data: dict[str, Any]) -> str:
    """The numbers of a comparison with simulations; the messages of other events say it all."""
    parts = [
        f"{what} rms {numbers['rms']:.3g}, shot noise {numbers['shot_noise']:.3g}, bias {numbers['device_bias']:.3g}"
        + (
            f", of which modelled noise {numbers['modelled_noise']:.3g} and the rest {numbers['rest']:.3g} "
            f"(z = {numbers['rest_z']:.1f})"
            if "rest" in numbers
            else ""
        )
        for what, numbers in data.get("summary", {}).items()
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _to_cancel(ledger: Ledger, number: str) -> list[Entry]:
    """The jobs to be cancelled.

    Raises:
        ValueError: If there is no such job, or it has ended.
    """
    if number == "all":
        return [entry for entry in ledger.entries() if entry.state in _OPEN]
    entry = _entry(ledger, "--cancel", number, ", or all")
    if entry.state not in _OPEN:
        raise ValueError(
            f"--cancel: got {number}, expected a job that has not ended; this one is {entry.state}. (--forget {number} "
            "gives up one whose result is of no use.)"
        )
    return [entry]


def _unsettled(ledger: Ledger) -> list[Entry]:
    """The jobs whose results or bills are still at the service."""
    entries = ledger.entries()
    return [e for e in entries if e.state in _OPEN or (e.state == "done" and e.usage_seconds is None)]


def _entry(ledger: Ledger, option: str, number: str, or_what: str = "") -> Entry:
    """The job of that number.

    Raises:
        ValueError: If there is none.
    """
    entries = ledger.entries()
    for entry in entries:
        if str(entry.number) == number:
            return entry
    raise ValueError(f"{option}: got {number!r}, expected the number of a job, 1 to {len(entries)}{or_what}.")


def _forget(ledger: Ledger, options: Namespace) -> bool:
    """Gives up a job; one whose result is in the ledger needs no account for it. Returns whether that went well."""
    entry = _entry(ledger, "--forget", options.forget)
    if entry.state == "submitted":
        return _at_the_service([entry], ledger, options, lambda device, job: device.forget(job.number))
    print(ledger.forget(entry.number))
    return True


def _cancel(device: IBMBackend, entry: Entry) -> None:
    device.cancel(entry.number)


def _collect(device: IBMBackend, entry: Entry) -> None:
    if entry.state in _OPEN:
        device.collect(entry.number)


def _at_the_service(
    entries: Sequence[Entry], ledger: Ledger, options: Namespace, act: Callable[[IBMBackend, Entry], None]
) -> bool:
    """Does something about each job where it is, and asks for bills; returns whether all went well."""
    from ..backends.ibm.backend import IBMBackend  # which needs packages that a look at the ledger does not

    all_well = True
    for name in dict.fromkeys(entry.backend for entry in entries):
        with IBMBackend(name, ledger=ledger.path, account=options.account, instance=options.instance) as device:
            for entry in entries:
                if entry.backend != name:
                    continue
                try:
                    act(device, entry)
                except HardwareError as error:
                    print(f"Job {entry.number}: {' '.join(str(error).split())}")
                    all_well = False
            device.settle_bills()
    return all_well
