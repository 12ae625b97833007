"""What others have published, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PUBLISHED_SAMPLES = 5000
PUBLISHED_BINS = 75


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


EXPRESSIBILITIES: Mapping[int, Sequence[float]] = {
    1: _numbers(
        "0.2999 0.2860 0.2396 0.1343 0.0602 0.0061 0.0977 0.0858 0.6773 0.2286 "
        "0.1312 0.1984 0.0516 0.0144 0.1892 0.2602 0.1359 0.2340 0.0809"
    ),
    3: _numbers(
        "0.2079 0.0084 0.0403 0.0107 0.0030 0.0039 0.0162 0.0122 0.0322 0.1297 "
        "0.0038 0.0089 0.0049 0.0035 0.1152 0.0375 0.0180 0.0221 0.0040"
    ),
}
"""By layers, of circuits 1 to 19 of Sim et al., Adv. Quantum Technol. 2, 1900070 (2019), on four qubits.

As listed in the tests of QML Essentials (github.com/cirKITers/qml-essentials, tests/test_expressiblity.py), which names that
paper as the source, with 5000 fidelities in 75 bins; in the paper they are points of a figure.
"""

DATA = (1000, 2000, 8000, 10000, 40000, 60000, 100000, 150000, 200000, 500000, 1000000)
EFFECTIVE_DIMENSIONS: Mapping[str, Sequence[float]] = {
    "quantum": _numbers(
        "0.821058017 0.831025863 0.858095254 0.862384518 0.885964674 0.891770912 "
        "0.898424832 0.903223477 0.906390986 0.915326376 0.921091388"
    ),
    "easy quantum": _numbers(
        "0.674369801 0.683299289 0.712921660 0.718242193 0.751142002 0.760327127 "
        "0.771454140 0.779898188 0.785671479 0.802835325 0.814603902"
    ),
    "classical": _numbers(
        "0.514302936 0.519375546 0.538260882 0.541831117 0.564777878 0.571356733 "
        "0.579359734 0.585439207 0.589595997 0.601981829 0.610555262"
    ),
}
"""Divided by the 40 weights, by :data:`DATA`: Abbas et al., Nat. Comput. Sci. 1, 403 (2021), figure 3a.

From the paper's own source data (github.com/amyami187/effective_dimension, Effective_dimension_plots/plot_fig/source_data),
to nine digits.
"""
