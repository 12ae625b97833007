"""Lists the jobs of a run on IBM hardware from its ledger, which needs no account and no network.

With an option it also fetches what is still at the service, cancels jobs, or records the run for replaying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from qiskit_torch_bridge import HardwareError, Ledger

from .common.comparison import table
from .common.experiment import settings_of_run
from .common.hardware import LEDGER, connected, costs_of_jobs, is_hardware, ledger_of
from .common.runs import RunFolder

if TYPE_CHECKING:
    from qiskit_torch_bridge import IBMBackend
    from qiskit_torch_bridge.backends.ibm.ledger import Entry

_OPEN = ("intended", "submitted")


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status."""
    parser = ArgumentParser(prog="python -m experiments jobs", description=__doc__)
    parser.add_argument("path", type=str, help=f"Folder of a run, or a ledger ({LEDGER}, qtb-jobs.sqlite).")
    parser.add_argument(
        "--collect", action="store_true", help="Fetch the results and bills that are still at the service."
    )
    parser.add_argument("--cancel", type=str | None, default=None, help="Cancel the job of this number, or all.")
    parser.add_argument(
        "--forget",
        type=str | None,
        default=None,
        help="Give up the job of this number, whose result is of no use although it was paid for: the same run sends (and "
        "pays for) it again.",
    )
    parser.add_argument(
        "--discard-damaged",
        action="store_true",
        help="Give up what is damaged in the ledger: a job among it is sent and paid for again where it is asked for.",
    )
    parser.add_argument("--record", type=str | None, default=None, help="Write the run to this file (.npz), to replay.")
    parser.add_argument("--run", type=str | None, default=None, help="Record only what was measured under this name.")
    parser.add_argument(
        "--events",
        action="store_true",
        help="Show what happened beside the jobs: recalibrations, renewed sessions, ...",
    )
    parser.add_argument("--account", type=str | None, default=None, help="For a ledger by itself: name of the account.")
    parser.add_argument("--instance", type=str | None, default=None, help="For a ledger by itself: the instance.")
    options = parser.parse_args(list(arguments))

    path = _ledger_at(Path(options.path))
    ledger = Ledger(path)
    try:
        every = True
        if options.discard_damaged:
            _discard_damaged(ledger)
        if options.cancel is not None:
            every &= _at_the_service(_wanted(ledger, options.cancel), path, options, _cancel)
        if options.forget is not None:
            every &= _forget(ledger, options.forget, path, options)
        if options.collect:
            unsettled = [
                e for e in ledger.entries() if e.state in _OPEN or (e.state == "done" and e.usage_seconds is None)
            ]
            every &= _at_the_service(unsettled, path, options, _collect)
        _list(ledger)
        if options.events:
            for event in ledger.events():
                print(f"{event['at']}  {event['kind']}: {event['message']}{_details(event['data'])}")
        if options.record is not None:
            _record(ledger, options.record, options.run)
    finally:
        ledger.close()
    return 0 if every else 1


def _ledger_at(path: Path) -> Path:
    """The ledger that a path names.

    Raises:
        FileNotFoundError: If there is none.
    """
    ledger = ledger_of(RunFolder(path)) if path.is_dir() else path
    if not ledger.is_file():
        raise FileNotFoundError(
            f"{path}: there is no ledger; name the folder of a run with --backend ibm:NAME, or a ledger's file."
        )
    return ledger


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
    print(table([_row(entry) for entry in entries]))
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
    """The numbers of a comparison with the exact simulation; the messages of other events say it all."""
    parts = [
        f"{what} rms {numbers['rms']:.3g}, shot noise {numbers['shot_noise']:.3g}, bias {numbers['device_bias']:.3g}"
        for what, numbers in data.get("summary", {}).items()
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _wanted(ledger: Ledger, which: str) -> list[Entry]:
    """The jobs to be cancelled.

    Raises:
        ValueError: If there is no such job, or it has ended.
    """
    if which == "all":
        return [entry for entry in ledger.entries() if entry.state in _OPEN]
    entry = _entry(ledger, "--cancel", which, ", or all")
    if entry.state not in _OPEN:
        raise ValueError(
            f"--cancel: got {which}, expected a job that has not ended; this one is {entry.state}. (--forget {which} gives "
            "up one whose result is of no use.)"
        )
    return [entry]


def _entry(ledger: Ledger, option: str, which: str, or_what: str = "") -> Entry:
    """The job of that number.

    Raises:
        ValueError: If there is none.
    """
    entries = ledger.entries()
    for entry in entries:
        if str(entry.number) == which:
            return entry
    raise ValueError(f"{option}: got {which!r}, expected the number of a job, 1 to {len(entries)}{or_what}.")


def _forget(ledger: Ledger, which: str, path: Path, options: Any) -> bool:
    """Gives up a job; one whose result is in the ledger needs no account for it. Returns whether that went well."""
    entry = _entry(ledger, "--forget", which)
    if entry.state == "submitted":
        return _at_the_service([entry], path, options, lambda device, job: device.forget(job.number))
    print(ledger.forget(entry.number))
    return True


def _cancel(device: IBMBackend, entry: Entry) -> None:
    device.cancel(entry.number)


def _collect(device: IBMBackend, entry: Entry) -> None:
    if entry.state in _OPEN:
        device.collect(entry.number)


def _at_the_service(
    entries: Sequence[Entry], ledger: Path, options: Any, act: Callable[[IBMBackend, Entry], None]
) -> bool:
    """Does something about each job where it is, and asks for bills; returns whether all went well."""
    every = True
    for name in dict.fromkeys(entry.backend for entry in entries):
        with connected(name, _connection(ledger, name, options), ledger) as device:
            for entry in entries:
                if entry.backend != name:
                    continue
                try:
                    act(device, entry)
                except HardwareError as error:
                    print(f"Job {entry.number}: {' '.join(str(error).split())}")
                    every = False
            device.settle_bills()
    return every


def _connection(ledger: Path, name: str, options: Any) -> dict[str, Any]:
    """How to reach a device: as its run did, or as the command line says."""
    folder = RunFolder(ledger.parent)
    if ledger.name == LEDGER and folder.file("config.yaml").is_file():
        settings = settings_of_run(folder)
        if settings["backend"] == f"ibm:{name}" and is_hardware(settings["backend"]):
            return dict(settings["ibm"])
    return {"account": options.account, "instance": options.instance}


def _record(ledger: Ledger, path: str, run: str | None) -> None:
    from qiskit_torch_bridge.backends.ibm.recording import write_recording

    count = write_recording(ledger, path, run=run)
    print(f"{count:,} evaluations are recorded in {path}; replay them with --backend replay:{path}")
