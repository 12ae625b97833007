"""``qtb check``, ``qtb jobs`` and ``qtb record`` under their earlier names."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from qiskit_torch_bridge.commands import jobs as ledgers
from qiskit_torch_bridge.commands import perform, record
from qiskit_torch_bridge.commands.parsers import parser_of

from .catalogue import command_in
from .common.hardware import LEDGER
from .common.options import saved_settings
from .common.runs import RunFolder
from .common.settings import TrainingSettings


def ibm_check(arguments: Sequence[str]) -> int:
    """Forwards the command line to ``qtb check``; returns the exit status."""
    print("python -m experiments ibm-check is deprecated; it is now: qtb check", file=sys.stderr)
    return perform("check", arguments)


def jobs(arguments: Sequence[str]) -> int:
    """Forwards the command line, with the account that a run's settings name; returns the exit status."""
    print("python -m experiments jobs is deprecated; it is now: qtb jobs, and qtb record for --record", file=sys.stderr)
    earlier = ArgumentParser(add_help=False, allow_abbrev=False)
    earlier.add_argument("--record")
    earlier.add_argument("--run")
    recording, others = earlier.parse_known_args(arguments)
    options = parser_of("jobs").parse_args(others)
    if options.collect or options.cancel or options.forget:
        _name_account(options)
    status = ledgers.main(options)
    if recording.record is not None:
        record.main(Namespace(ledger=options.ledger, file=recording.record, run=recording.run))
    return status


def _name_account(options: Namespace) -> None:
    """Names the account and the instance of the run whose ledger it is, unless the command line names them."""
    ledger = ledgers.ledger_at(options.ledger)
    folder = RunFolder(ledger.parent)
    if ledger.name == LEDGER and folder.file("config.yaml").is_file():
        command = command_in(folder)
        settings = saved_settings(command.name, command.settings, folder)
        if isinstance(settings, TrainingSettings):
            options.account = options.account or settings.ibm.account
            options.instance = options.instance or settings.ibm.instance
