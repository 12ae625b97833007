"""``qtb jobs`` and ``qtb record`` under their earlier name, with the account that a run's settings name."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from qiskit_torch_bridge.commands import jobs, record
from qiskit_torch_bridge.commands.parsers import parser_of

from .common.experiment import settings_of_run
from .common.hardware import LEDGER, is_hardware
from .common.runs import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Forwards the command line; returns the exit status."""
    print("python -m experiments jobs is deprecated; it is now: qtb jobs, and qtb record for --record", file=sys.stderr)
    earlier = ArgumentParser(add_help=False, allow_abbrev=False)
    earlier.add_argument("--record")
    earlier.add_argument("--run")
    recording, others = earlier.parse_known_args(arguments)
    options = parser_of("jobs").parse_args(others)
    if options.collect or options.cancel or options.forget:
        _name_account(options)
    status = jobs.main(options)
    if recording.record is not None:
        record.main(Namespace(ledger=options.ledger, file=recording.record, run=recording.run))
    return status


def _name_account(options: Namespace) -> None:
    """Names the account and the instance of the run whose ledger it is, unless the command line names them."""
    ledger = jobs.ledger_at(options.ledger)
    folder = RunFolder(ledger.parent)
    if ledger.name == LEDGER and folder.file("config.yaml").is_file():
        settings = settings_of_run(folder)
        if is_hardware(settings["backend"]):
            options.account = options.account or settings["ibm"]["account"]
            options.instance = options.instance or settings["ibm"]["instance"]
