"""``qtb replay``: what a recording holds, and how to measure it again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..backends.ibm.recording import Recording
from ..backends.passport import costs_by_passports
from .printing import in_columns

__all__ = ["main"]


def main(options: Namespace) -> int:
    """Shows the file that the options name, a row for each device; returns the exit status."""
    evaluations = Recording.from_file(options.file).evaluations
    devices: dict[str, list[Any]] = {}
    for evaluation in evaluations:
        devices.setdefault(evaluation.passport.backend, []).append(evaluation)
    versions = dict.fromkeys(chain(*(evaluation.passport.versions.items() for evaluation in evaluations)))
    print(in_columns([_row(device, measured) for device, measured in devices.items()]))
    print(f"Measured with {', '.join(f'{package} {version}' for package, version in versions)}.")
    print("The file is whole: all that it lists is there, and has the form of what was asked for.")
    print(
        f'To measure it again without an account: the same model, data and seeds, with backend="replay:{options.file}"'
    )
    return 0


def _row(device: str, evaluations: Sequence[Any]) -> dict[str, Any]:
    passports = [evaluation.passport for evaluation in evaluations]
    circuits = [len(evaluation.angles) * len(evaluation.pubs) for evaluation in evaluations]
    times = sorted({time[:19].replace("T", " ") for passport in passports for time in passport.calibrated} - {""})
    costs = costs_by_passports({p.job_ids: (p.usage_seconds, p.estimated_seconds) for p in passports})
    return {
        "device": device,
        "calibrated": " to ".join(dict.fromkeys(times[:1] + times[-1:])),
        "evaluations": len(evaluations),
        "circuits": sum(circuits),
        "shots": sum(count * evaluation.shots for count, evaluation in zip(circuits, evaluations, strict=True)),
        "jobs": costs["jobs"],
        "estimated s": _known(costs["qpu_seconds_estimated"]),
        "billed s": _known(costs["qpu_seconds"]),
    }


def _known(seconds: float | None) -> float | str:
    return "not known" if seconds is None else seconds
