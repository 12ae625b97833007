"""Circuits with free ``rzz`` for devices that take its angle from 0 to pi / 2 only: IBM's fractional gates.

A fold needs X before and after its ``rzz``, or not, depending on the angle (:mod:`qiskit_torch_bridge.backends.folds`).

**Flips that cost next to nothing.** ``rzz`` gates in a row commute, and a flipped qubit turns round the angle of each of
them. So a flip need not stand at each ``rzz``: a qubit is flipped once before a stretch of ``rzz`` and ``rz`` gates and once
after it, such that just one qubit of an ``rzz`` is flipped if its angle has to be turned round, and both or none otherwise.
That can be done where the gates of a stretch form no ring; where they would, a new stretch begins. From a stretch's ends a
flip goes on through ``rz``, which it turns round, into an ``rx``, ``sx`` or ``x``; it is an ``rx`` of its own where there is
none. One qubit of each tree of gates needs no flip: one where flips would be gates of their own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from qiskit.circuit import CircuitInstruction, Operation, Parameter
from qiskit.circuit.library import RXGate, RZGate, RZZGate

from .folds import Folds
from .free_rzz import has_free_rzz, is_free
from .results import BoundCircuit

__all__ = ["folded"]

_X_ROTATIONS = {"sx": math.pi / 2, "x": math.pi}  # up to a phase
_ROTATIONS = {"rx": RXGate, "rz": RZGate, "rzz": RZZGate}


@dataclass(eq=False)
class _Gate:
    """An instruction, or a rotation that is being changed.

    Attributes:
        instruction: What it was; None: a rotation that was not there.
        name: The rotation's; empty where it stays what it was.
        qubits: Where it acts.
        column: The parameter that its angle is; None: it is constant.
        constant: Its constant angle.
        fold: The number of the fold, of a free ``rzz``.
        turns: Which folds add pi by their k; bit f is fold f. The next two: as in :class:`Folds`.
        flips: Which by their c.
        signs: Which turn it round.
    """

    instruction: CircuitInstruction | None
    name: str
    qubits: tuple[int, ...]
    _: KW_ONLY
    column: int | None = None
    constant: float = 0.0
    fold: int | None = None
    turns: int = 0
    flips: int = 0
    signs: int = 0

    @property
    def is_changed(self) -> bool:
        """Whether its angle is not what it was."""
        return self.fold is not None or bool(self.turns | self.flips | self.signs)

    def sources(self, columns: Mapping[Any, int]) -> list[int | None]:
        """The earlier parameters that its free arguments are; None: none, it is free because it is changed."""
        if self.is_changed:
            return [self.column]
        assert self.instruction is not None
        return [columns[value] for value in self.instruction.operation.params if is_free(value)]

    def operation(self, parameters: Sequence[Parameter]) -> Operation:
        """The gate with these parameters as its free arguments."""
        if self.is_changed:
            return _ROTATIONS[self.name](*parameters)
        assert self.instruction is not None
        operation = self.instruction.operation
        if not parameters:
            return operation
        remaining = iter(parameters)
        operation = operation.to_mutable()
        operation.params = [next(remaining) if is_free(value) else value for value in operation.params]
        return operation


@dataclass(eq=False)
class _Stretch:
    """A qubit between two flips.

    Attributes:
        start: The flip before it.
        parent: Another of the same tree of gates; None: it is the root.
        relative: The folds whose c tell its flips from the parent's.
        end: The flip after it.
        inside: Its ``rz`` gates.
        turns: The folds of its gates.
    """

    start: _Gate
    _: KW_ONLY
    parent: _Stretch | None = None
    relative: int = 0
    end: _Gate | None = None
    inside: list[_Gate] = field(default_factory=list)
    turns: int = 0

    def root(self) -> tuple[_Stretch, int]:
        """The root of its tree, and the folds whose c tell its flips from the root's."""
        stretch, path = self, 0
        while stretch.parent is not None:
            path ^= stretch.relative
            stretch = stretch.parent
        return stretch, path


def folded(bound: BoundCircuit) -> BoundCircuit:
    """The circuit with each free ``rzz`` in its range at all angles, which is the same up to a phase.

    Args:
        bound: A circuit each parameter of which is one gate's argument (``bind_by_column``).
    """
    if not has_free_rzz(bound.circuit):
        return bound
    sweep = _Sweep(bound)
    for instruction in bound.circuit.data:
        sweep.add(instruction)
    return _assembled(bound, sweep.finished(), sweep.num_folds)


class _Sweep:
    """Goes through a circuit, and places flips."""

    def __init__(self, bound: BoundCircuit) -> None:
        self._circuit = bound.circuit
        self._column = {parameter: column for column, parameter in enumerate(bound.parameters)}
        self._gates: list[_Gate] = []
        self._stretches: list[_Stretch] = []
        self._open: dict[int, _Stretch] = {}
        self.num_folds = 0

    def add(self, instruction: CircuitInstruction) -> None:
        """Takes the next instruction."""
        qubits = tuple(self._circuit.find_bit(qubit).index for qubit in instruction.qubits)
        gate = _gate_of(instruction, qubits, self._column)
        if gate.name == "rz" and qubits[0] in self._open:
            self._open[qubits[0]].inside.append(gate)
        elif gate.name == "rzz" and gate.column is not None:
            gate.fold = self.num_folds
            self.num_folds += 1
            self._connect(qubits[0], qubits[1], 1 << gate.fold)
            for qubit in qubits:
                self._open[qubit].turns ^= 1 << gate.fold
        elif gate.name == "rzz" and self._open.keys() >= {*qubits}:
            self._connect(qubits[0], qubits[1], 0)
        elif gate.name != "rz":
            for qubit in qubits:
                self._close(qubit)
        self._gates.append(gate)

    def _connect(self, first: int, second: int, relative: int) -> None:
        """Has the flips of two qubits differ by the c of a fold, in new stretches where that cannot be."""
        (root, path), (other, other_path) = self._stretch(first).root(), self._stretch(second).root()
        if root is other and path ^ other_path != relative:
            self._close(second)
            other, other_path = self._stretch(second).root()
        if root is not other:
            other.parent, other.relative = root, path ^ other_path ^ relative

    def _stretch(self, qubit: int) -> _Stretch:
        """The stretch that the qubit is in, which begins here unless it has."""
        if qubit not in self._open:
            self._gates.append(flip := _Gate(None, "rx", (qubit,)))
            self._open[qubit] = _Stretch(flip)
            self._stretches.append(self._open[qubit])
        return self._open[qubit]

    def _close(self, qubit: int) -> None:
        stretch = self._open.pop(qubit, None)
        if stretch is not None:
            if not stretch.inside:
                self._gates.append(turn := _Gate(None, "rz", (qubit,)))
                stretch.inside.append(turn)
            stretch.inside[0].turns ^= stretch.turns
            stretch.end = _Gate(None, "rx", (qubit,))
            self._gates.append(stretch.end)

    def finished(self) -> list[_Gate]:
        """The gates, with flips where they are needed."""
        for qubit in list(self._open):
            self._close(qubit)
        wires = _Wires(self._gates)
        trees: dict[_Stretch, list[_Stretch]] = defaultdict(list)
        for stretch in self._stretches:
            trees[stretch.root()[0]].append(stretch)
        for tree in trees.values():
            _, unflipped = max(tree, key=wires.cost).root()
            for stretch in tree:
                flips = stretch.root()[1] ^ unflipped
                assert stretch.end is not None
                stretch.start.flips = stretch.end.flips = flips
                for gate in stretch.inside:
                    gate.signs ^= flips
        for stretch in self._stretches:
            assert stretch.end is not None
            wires.merge(stretch.start, -1)
            wires.merge(stretch.end, 1)
        return [gate for gate in self._gates if gate.instruction is not None or gate.turns | gate.flips]


class _Wires:
    """The gates of each qubit in their order, and where flips can go."""

    def __init__(self, gates: Sequence[_Gate]) -> None:
        self._wires: dict[int, list[_Gate]] = defaultdict(list)
        self._places: dict[_Gate, int] = {}
        for gate in gates:
            for qubit in gate.qubits:
                self._places[gate] = len(
                    self._wires[qubit]
                )  # right for gates of one qubit, which no others are asked for
                self._wires[qubit].append(gate)

    def _beside(self, flip: _Gate, step: int) -> tuple[_Gate | None, list[_Gate]]:
        """The rotation about X before (-1) or after (1) a flip that it can become part of, and the ``rz`` on the way."""
        wire, place = self._wires[flip.qubits[0]], self._places[flip] + step
        passed = []
        while 0 <= place < len(wire) and wire[place].name == "rz":
            passed.append(wire[place])
            place += step
        is_there = 0 <= place < len(wire) and wire[place].name == "rx"
        return wire[place] if is_there else None, passed

    def cost(self, stretch: _Stretch) -> int:
        """How many gates of their own a stretch's flips would be."""
        assert stretch.end is not None
        return sum(self._beside(flip, step)[0] is None for flip, step in ((stretch.start, -1), (stretch.end, 1)))

    def merge(self, flip: _Gate, step: int) -> None:
        """Has a flip be part of the rotation beside it, if there is one."""
        rotation, passed = self._beside(flip, step)
        if rotation is not None:
            for gate in passed:
                gate.signs ^= flip.flips
            rotation.flips ^= flip.flips
            flip.flips = 0


def _gate_of(instruction: CircuitInstruction, qubits: tuple[int, ...], column: dict[object, int]) -> _Gate:
    operation = instruction.operation
    if getattr(operation, "label", None):  # which may say what must happen to it
        return _Gate(instruction, "", qubits)
    if operation.name in _X_ROTATIONS:
        return _Gate(instruction, "rx", qubits, constant=_X_ROTATIONS[operation.name])
    if operation.name not in _ROTATIONS:
        return _Gate(instruction, "", qubits)
    (angle,) = operation.params
    if is_free(angle):
        return _Gate(instruction, operation.name, qubits, column=column[angle])
    return _Gate(instruction, operation.name, qubits, constant=float(angle))


def _assembled(bound: BoundCircuit, gates: Sequence[_Gate], num_folds: int) -> BoundCircuit:
    """The circuit of the gates, with a new parameter for each argument that is not constant."""
    columns = {parameter: column for column, parameter in enumerate(bound.parameters)}
    parameters = tuple(map(_parameter, range(sum(len(gate.sources(columns)) for gate in gates))))
    circuit = bound.circuit.copy_empty_like()
    owners: list[_Gate] = []  # of each new parameter
    sources: list[int | None] = []  # the earlier parameter that each was
    for gate in gates:
        gate_sources = gate.sources(columns)
        operation = gate.operation(parameters[len(owners) : len(owners) + len(gate_sources)])
        clbits = () if gate.instruction is None else gate.instruction.clbits
        circuit.append(operation, [circuit.qubits[qubit] for qubit in gate.qubits], clbits, copy=False)
        owners += [gate] * len(gate_sources)
        sources += gate_sources
    slopes, offsets = np.zeros((len(bound.slopes), len(sources))), np.array([gate.constant for gate in owners])
    for column, source in enumerate(sources):
        if source is not None:
            slopes[:, column], offsets[column] = bound.slopes[:, source], bound.offsets[source]
    folds = Folds(
        np.array([column for column, gate in enumerate(owners) if gate.fold is not None], dtype=np.int64),
        _as_bits([gate.turns for gate in owners], num_folds),
        _as_bits([gate.flips for gate in owners], num_folds),
        _as_bits([gate.signs for gate in owners], num_folds),
    )
    return BoundCircuit(circuit, parameters, slopes, offsets, folds=folds)


@cache
def _parameter(number: int) -> Parameter:
    """The same one in all circuits.

    IBM's client (samplomatic 0.21) keeps the boxes that it makes of gates of two qubits, and takes no more than 13 that
    differ in nothing but the identity of a parameter: of so many layers alike, one after the other, the next was refused.
    """
    return Parameter(f"bound_{number:05}")  # in this order by name too


def _as_bits(masks: Sequence[int], num_folds: int) -> np.ndarray:
    """Shape (F, P), 0 or 1: bit f of each of P whole numbers."""
    return np.array([[mask >> fold & 1 for mask in masks] for fold in range(num_folds)], dtype=np.int64)
