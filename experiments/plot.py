"""Draws the figures of runs anew, from the files in their folders; nothing is trained or measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .catalogue import command_in
from .common.options import named_parser, saved_settings
from .common.runs import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Draws what the command line names; returns the exit status.

    Raises:
        ValueError: If something cannot be drawn, after the rest has been.
    """
    parser = named_parser("plot", __doc__)
    parser.add_argument("runs", nargs="+", type=str, help="Folders of runs.")
    refused = []
    for run in parser.parse_args(list(arguments)).runs:
        try:
            folder = RunFolder.existing(Path(run))
            command = command_in(folder)
            command.draw(saved_settings(command.name, command.settings, folder), folder)
            print(f"Figures are in {folder.path}")
        except (FileNotFoundError, ValueError) as error:
            refused.append(str(error))
    if refused:
        raise ValueError(" ".join(refused))
    return 0
