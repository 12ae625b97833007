"""The command ``qtb``, also ``python -m qiskit_torch_bridge``: accounts, jobs and recordings of IBM hardware at a shell.

| command | what it does | needs an account |
|---|---|---|
| ``qtb check [DEVICE]`` | looks step by step whether the hardware can be used from here, and quotes a training step | yes; not for ``fake_manila`` |
| ``qtb jobs LEDGER`` | lists a ledger's jobs; collects, cancels, gives up | only to collect and cancel |
| ``qtb record LEDGER FILE`` | writes what the jobs measured into a file | no |
| ``qtb replay FILE`` | shows what such a file holds, and how to measure it again | no |

Each explains its options with ``--help``. The exit status is 0 if all is well, 1 if something was refused or failed (one
line says why), 2 if the command line is not understood, 130 after Ctrl-C.
"""  # noqa: E501 - rows of a Markdown table

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from ..arguments import one_of
from .parsers import COMMANDS, parser_of

__all__ = ["exit_status", "main", "perform"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says.

    Args:
        arguments: The words after ``qtb``; None: those of this process.

    Returns:
        The exit status.
    """
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    return exit_status(f"qtb {command}", partial(perform, command, options))


def exit_status(name: str, action: Callable[[], int]) -> int:
    """The exit status of a program that does this; what it refuses or fails at is said in one line on standard error.

    Args:
        name: What the line begins with.
        action: Returns the status where nothing is raised.
    """
    try:
        try:
            return action()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our lines (head, say) has seen enough; Python flushes once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError)):
            from ..backends.ibm.errors import HardwareError  # here, because it comes with PyTorch

            if not isinstance(error, HardwareError):
                raise
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def perform(command: str, options: Sequence[str]) -> int:
    """Does what a command says; returns the exit status, and raises what :func:`main` says in one line."""
    if command in ("-h", "--help"):
        print("Usage: qtb COMMAND [options]; qtb COMMAND --help\n")
        width = max(map(len, COMMANDS))
        for known, (summary, *_) in COMMANDS.items():
            print(f"  {known:<{width}}  {summary}")
        return 0
    try:
        one_of("qtb", command, tuple(COMMANDS))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    parsed = parser_of(command).parse_args(options)
    return int(import_module(f".{command}", __name__).main(parsed))
