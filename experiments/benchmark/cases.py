"""Which circuits are measured in which systems, and the ratios to reach."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

from .gate_lists import Problem, dressed, entangling, layerwise, textbook

_EXACT = ("ours", "pennylane-default", "pennylane-lightning", "qiskit-machine-learning")
_WITHOUT_QISKIT = _EXACT[:-1]
_SHOTS = 1000
_LAYERS = 4


@dataclass(frozen=True)
class Target:
    """A ratio to reach.

    Attributes:
        ratio: How many times faster; 1 means ahead.
        ours: Which of our systems.
        peer: Than which system; None: than the fastest peer of the run.
    """

    ratio: float
    ours: str = "ours"
    peer: str | None = None


@dataclass(frozen=True)
class Series:
    """A case's place on an axis of the figure.

    Attributes:
        axis: ``"qubits"``, ``"batch"`` or ``"weights"``.
        x: Where on it.
    """

    axis: str
    x: int


@dataclass(frozen=True)
class Case:
    """One problem in several systems.

    Attributes:
        name: How the command line calls it.
        title: How the table calls it.
        make: Makes the problem from a seed.
        systems: In the order in which they take turns.
        shots: Shots a circuit; None: exact.
        targets: The ratios to reach.
        series: Its place in a series, or None.
    """

    name: str
    title: str
    make: partial[Problem]
    systems: tuple[str, ...]
    _: KW_ONLY
    shots: int | None = None
    targets: tuple[Target, ...] = ()
    series: Series | None = None

    def only(self, systems: Container[str]) -> Case | None:
        """The case with only these systems, and targets that they can reach; None where none of its own is left."""
        kept = tuple(name for name in self.systems if name in systems)
        targets = tuple(t for t in self.targets if t.ours in kept and (t.peer is None or t.peer in kept))
        return replace(self, systems=kept, targets=targets) if kept else None

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for cases of the same problem."""
        return self.make.func, tuple(sorted(self.make.keywords.items()))


_DRESSED = "dressed, 4 qubits, depth 6"

_CASES = (
    Case("textbook", "textbook, 1 qubit, batch 1", partial(textbook, batch=1), _EXACT, targets=(Target(8),)),
    Case(
        "dressed-4",
        f"{_DRESSED}, batch 4",
        partial(dressed, depth=6, batch=4),
        _EXACT,
        targets=(Target(40), Target(1000, peer="qiskit-machine-learning")),
    ),
    Case(
        "dressed-64",
        f"{_DRESSED}, batch 64",
        partial(dressed, depth=6, batch=64),
        _WITHOUT_QISKIT,
        targets=(Target(30),),
    ),
    Case(
        "layerwise-128",
        "layerwise, 9 qubits, 6 layers, batch 128",
        partial(layerwise, num_qubits=9, layers=6, batch=128),
        _WITHOUT_QISKIT,
        targets=(Target(10),),
    ),
    *(
        Case(
            f"entangling-{qubits}",
            f"strongly entangling, {qubits} qubits, {_LAYERS} layers, batch {batch}",
            partial(entangling, num_qubits=qubits, layers=_LAYERS, batch=batch),
            _WITHOUT_QISKIT,
            targets=(Target(ratio),),
        )
        for qubits, batch, ratio in ((12, 16, 12), (16, 4, 10), (20, 1, 1))
    ),
    Case(
        "dressed-4-shots",
        f"{_DRESSED}, batch 4, {_SHOTS} shots",
        partial(dressed, depth=6, batch=4),
        (
            *("ours", "ours-aer", "pennylane-default", "pennylane-lightning"),
            *("pennylane-qiskit", "qiskit-machine-learning"),
        ),
        shots=_SHOTS,
        targets=(
            Target(15, ours="ours-aer", peer="qiskit-machine-learning"),
            Target(300, peer="qiskit-machine-learning"),
        ),
    ),
    Case(
        "layerwise-128-shots",
        f"layerwise, 9 qubits, 6 layers, batch 128, {_SHOTS} shots",
        partial(layerwise, num_qubits=9, layers=6, batch=128),
        ("ours", "ours-aer", "pennylane-default", "pennylane-lightning"),
        shots=_SHOTS,
        targets=(Target(15, peer="pennylane-default"),),
    ),
)

_OVERHEAD = tuple(Case(f"overhead-{case.name}", case.title, case.make, ("ours-stopwatch",)) for case in _CASES[:3])

FRESH = "fresh"
"""The part that starts a process of its own for each measurement: the first call, and memory."""

_FRESH_CASES = ("dressed-4", "entangling-16", "entangling-20")
_SMALL_CASES = ("textbook", "dressed-4", "dressed-64", "layerwise-128", "entangling-12", "dressed-4-shots")
_SMALL_FRESH = ("dressed-4",)

PARTS = (*(case.name for case in _CASES), "qubits", "batch", "weights", "overhead", FRESH)
"""What can be selected: cases, series and further measurements."""


def _qubits(x: int) -> Case:
    make = partial(entangling, num_qubits=x, layers=_LAYERS, batch=1)
    title = f"strongly entangling, {_LAYERS} layers, batch 1: {x} qubits"
    return Case(f"qubits-{x}", title, make, _EXACT, series=Series("qubits", x))


def _batch(x: int) -> Case:
    make = partial(dressed, depth=6, batch=x)
    return Case(f"batch-{x}", f"{_DRESSED}: batch {x}", make, _EXACT, series=Series("batch", x))


def _weights(depth: int) -> Case:
    make = partial(dressed, depth=depth, batch=16)
    title = f"dressed, 4 qubits, batch 16: depth {depth}"
    return Case(f"weights-{4 * depth}", title, make, _EXACT, series=Series("weights", 4 * depth))


def parts_of(selected: Sequence[str] | None) -> tuple[str, ...]:
    """The selected parts, all where there is no selection.

    Raises:
        ValueError: If there is no part of a name.
    """
    if strange := set(selected or ()) - set(PARTS):
        raise ValueError(f"--cases: got {', '.join(sorted(strange))}, expected some of {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if not selected or part in selected)


def plan(parts: Sequence[str], *, small: bool, largest_qubits: int) -> tuple[list[Case], list[Case]]:
    """The cases of the selected parts: those to time, and those to run in fresh processes.

    Args:
        parts: From :func:`parts_of`.
        small: Whether to take only what is done quickly.
        largest_qubits: Where the series by qubits ends.
    """
    cases = [case for case in _CASES if case.name in parts and (not small or case.name in _SMALL_CASES)]
    if "qubits" in parts:
        cases += [_qubits(x) for x in ((4, 8, 12) if small else range(4, largest_qubits + 1, 2))]
    if "batch" in parts:
        cases += [_batch(4**k) for k in ((0, 2, 4, 5) if small else range(7))]
    if "weights" in parts:
        cases += [_weights(depth) for depth in ((1, 6, 24) if small else (1, 3, 6, 12, 24, 48))]
    if "overhead" in parts:
        cases += _OVERHEAD
    fresh = (_SMALL_FRESH if small else _FRESH_CASES) if FRESH in parts else ()
    if small:
        cases = [replace(case, systems=tuple(s for s in case.systems if s not in _too_long(case))) for case in cases]
    return cases, [case for case in _CASES if case.name in fresh]


def _too_long(case: Case) -> tuple[str, ...]:
    """The systems that take seconds for a step of a case that others do at once."""
    return ("pennylane-qiskit",) if case.series is None else ("pennylane-qiskit", "qiskit-machine-learning")
