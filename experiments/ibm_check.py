"""``qtb check`` under its earlier name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qiskit_torch_bridge.commands import perform


def main(arguments: Sequence[str]) -> int:
    """Forwards the command line; returns the exit status."""
    print("python -m experiments ibm-check is deprecated; it is now: qtb check", file=sys.stderr)
    return perform("check", arguments)
