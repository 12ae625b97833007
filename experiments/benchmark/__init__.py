"""Speed against other libraries: one training step of the same circuits, each library in a process of its own.

A step is forward and backward. All systems get the same gate list, inputs, weights and upstream gradient, and their
values and gradients must agree with an independent reference before any of their times is reported. Ours and the peers
then take turns, so that whatever else the machine does hits all of them. Times are medians; speed is a ratio within one
run.

The peers are optional (``pip install -r requirements.txt -e '.[peers]'``); those that are absent are named as absent.

Nothing is imported here: the workers pass through this package, and how long our import takes is one of the results.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit status."""
    from .campaign import run_benchmark

    return run_benchmark(arguments, __doc__ or "")
