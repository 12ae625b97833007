"""Draws the figures of runs anew, from the files in their folders; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from .common.experiment import draw
from .common.runs import RunFolder


def main(arguments: Sequence[str]) -> int:
    """Draws what the command line names; returns the exit status."""
    parser = ArgumentParser(prog="python -m experiments plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=str, help="Folders of runs.")
    for run in parser.parse_args(list(arguments)).runs:
        folder = RunFolder.existing(Path(run))
        draw(folder)
        print(f"Figures are in {folder.path}")
    return 0
