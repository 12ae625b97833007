"""``python -m experiments NAME [options]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

EXPERIMENTS = {
    "mnist01": "hybrid CNN that tells handwritten 0 from 1, gradients by parameter shift (Qiskit textbook)",
    "benchmark": "time for a training step against other libraries, whose answers must agree first",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names, or lists what there is.

    Returns:
        The process's exit status: 0 done, 1 refused (one line says why), 2 no such experiment, 130 interrupted.
    """
    name, *options = [*(sys.argv[1:] if arguments is None else arguments), ""]
    options = options[:-1]
    if name not in EXPERIMENTS:
        asked_for_help = name in ("", "-h", "--help", "list")
        if not asked_for_help:
            print(f"No experiment {name!r}.", file=sys.stderr)
        print("Usage: python -m experiments NAME [options]; python -m experiments NAME --help\n")
        width = max(map(len, EXPERIMENTS))
        for known, summary in EXPERIMENTS.items():
            print(f"  {known:<{width}}  {summary}")
        return 0 if asked_for_help else 2
    try:
        return int(import_module(f"experiments.{name}").main(options))
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our lines (head, say) has seen enough; Python flushes once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
