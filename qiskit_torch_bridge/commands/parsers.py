"""What ``qtb`` understands; apart from what it then does, so that help and typing errors do not wait for PyTorch."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import NamedTuple, NoReturn

__all__ = ["COMMANDS", "parser_of"]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in one line what is not understood; argparse would put the usage, which may be long, before it."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says what there is\n")


class _Command(NamedTuple):
    summary: str
    details: str
    add_arguments: Callable[[ArgumentParser], None]


def parser_of(command: str) -> ArgumentParser:
    """The parser of a command's options.

    Args:
        command: One of :data:`COMMANDS`.
    """
    summary, details, add_arguments = COMMANDS[command]
    description = f"{summary[0].upper()}{summary[1:]}. {details}"
    parser = _Parser(prog=f"qtb {command}", description=description, allow_abbrev=False)
    add_arguments(parser)
    return parser


def _add_account(parser: ArgumentParser) -> None:
    parser.add_argument("--account", metavar="NAME", help="the name that the account was saved under (default: IBM's)")
    parser.add_argument("--instance", metavar="NAME", help="the instance's name or CRN (default: the account's)")


def _add_ledger(parser: ArgumentParser) -> None:
    parser.add_argument(
        "ledger", metavar="LEDGER", help="a ledger's file (qtb-jobs.sqlite), or the folder that holds it"
    )


def _add_check(parser: ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", nargs="?", help="default: the one with the shortest queue")
    _add_account(parser)
    parser.add_argument("--submit", action="store_true", help="submit one small job, which is paid for")
    parser.add_argument("--ledger", metavar="FILE", help="that job's ledger (default: QTB_LEDGER, or qtb-jobs.sqlite)")


def _add_jobs(parser: ArgumentParser) -> None:
    _add_ledger(parser)
    _add_account(parser)
    parser.add_argument("--collect", action="store_true", help="fetch results and bills that are still at the service")
    parser.add_argument("--cancel", metavar="N", help="cancel the job of this number, or all")
    parser.add_argument(
        "--forget",
        metavar="N",
        help="give up the job of this number, whose result is of no use although it was paid for: the same program sends "
        "(and pays for) it again",
    )
    parser.add_argument(
        "--discard-damaged",
        action="store_true",
        help="give up what is damaged in the ledger: a job among it is sent and paid for again where it is asked for",
    )
    parser.add_argument(
        "--events",
        action="store_true",
        help="show what happened beside the jobs: recalibrations, renewed sessions, ...",
    )


def _add_record(parser: ArgumentParser) -> None:
    _add_ledger(parser)
    parser.add_argument("file", metavar="FILE", help="the file to write (.npz); it must not exist")
    parser.add_argument("--run", metavar="NAME", help="record only what was measured under this name")


def _add_replay(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recording (.npz)")


COMMANDS = {
    "check": _Command(
        "looks step by step whether IBM hardware can be used from here, and what a training step costs",
        "Nothing is submitted unless --submit is given. A simulated device (fake_manila) is checked without an account.",
        _add_check,
    ),
    "jobs": _Command(
        "lists the jobs of a ledger, which needs no account; collects, cancels or gives them up",
        "Without options nothing is changed, and nothing is asked over the network.",
        _add_jobs,
    ),
    "record": _Command(
        "writes what the jobs of a ledger measured into a file, to be measured again without an account",
        "The file holds neither account nor instance nor token.",
        _add_record,
    ),
    "replay": _Command(
        "shows what a recording holds, and how to measure it again", "The whole file is checked.", _add_replay
    ),
}
"""What there is, by name: a summary, what else is to be said, and what adds its arguments to a parser."""
