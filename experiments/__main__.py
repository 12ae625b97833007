"""``python -m experiments NAME [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from qiskit_torch_bridge.commands import exit_status

from .catalogue import COMMANDS, TOOLS, command_of, own_names, settings_of
from .common.options import did_you_mean, parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names, or lists what there is.

    Returns:
        The process's exit status: 0 done, 1 refused or failed (one line says why), 2 no such experiment, 130 interrupted.
    """
    name, *options = (sys.argv[1:] if arguments is None else arguments) or [""]
    return exit_status(name, partial(_perform, name, options))


def _perform(name: str, options: Sequence[str]) -> int:
    if name in ("", "-h", "--help", "list"):
        summaries = {known: entry.summary for known, entry in COMMANDS.items()} | TOOLS
        print("Usage: python -m experiments NAME [options]; python -m experiments NAME --help\n")
        width = max(map(len, summaries))
        for known, summary in summaries.items():
            print(f"  {known:<{width}}  {summary}")
        print("\nand each experiments/NAME.py of your own that has an EXPERIMENT or a STUDY.")
        return 0
    if name in ("ibm-check", "jobs"):  # commands of the library now
        return int(getattr(import_module("experiments.earlier_names"), name.replace("-", "_"))(options))
    if name in TOOLS:
        return int(import_module(f"experiments.{name.replace('-', '_')}").main(options))
    if (settings := settings_of(name)) is not None:
        parser_of(name, settings).parse_args(options)  # help and typing errors do not wait for PyTorch
    command = command_of(name)
    if command is None:
        meant = did_you_mean(name, [*COMMANDS, *TOOLS, *own_names()])
        print(f"No experiment {name!r}{meant or '; python -m experiments lists what there is'}", file=sys.stderr)
        return 2
    from .common.runner import run

    return run(command, options)


def _end_process_group(status: int) -> None:
    """Ends the group of processes that torchrun started, while all of them are there.

    Left to the interpreter's end, in a process that is done before the others, its threads sometimes abort the process.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if status == 0:
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    status = main()
    _end_process_group(status)
    sys.exit(status)
