"""The benchmark: time for a training step, against other libraries; :mod:`.benchmark_settings` says how it measures.

Nothing is imported here: the workers pass through this package, and how long our import takes is one of the results.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit status."""
    from .campaign import run_benchmark

    return run_benchmark(arguments)
