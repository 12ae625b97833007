"""``qtb record``: what the jobs of a ledger measured, in one file."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing

from ..backends.ibm.ledger import Ledger
from ..backends.ibm.recording import write_recording
from .jobs import ledger_at

__all__ = ["main"]


def main(options: Namespace) -> int:
    """Writes the file that the options name; returns the exit status."""
    with closing(Ledger(ledger_at(options.ledger))) as ledger:
        count = write_recording(ledger, options.file, run=options.run)
    print(
        f'{count:,} evaluations are recorded in {options.file}; measure them again with backend="replay:{options.file}"'
    )
    return 0
