"""Folding: the same unitary with more gates, and so with more of the same errors (Giurgica-Tiron et al., 2005.10921)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Delay, Gate, Operation
from qiskit.circuit.library import RZGate, XGate

from ..backends.simulated import key_of_errors
from ..backends.transpiling import WITHOUT_NOISE
from ..program.refusals import is_parameterised
from ..program.variants import Variant

__all__ = ["Folding"]

_IDLE = frozenset({"barrier", "delay", "measure", "reset"})
_MIRRORED_BY_NAME = {"s": "sdg", "sdg": "s", "t": "tdg", "tdg": "t", "cs": "csdg", "csdg": "cs"}
_CONJUGATED_BY_Z = frozenset({"sx", "sxdg", "iswap"})


@dataclass(frozen=True)
class Folding(Variant):
    r"""Gates :math:`G` in a transpiled circuit become :math:`G (G^{-1} G)^k`.

    ``"local"`` folds each gate of two or more qubits by itself; ``"global"`` the whole circuit up to its measurements, as
    :math:`C (C^{-1} C)^k`. Between odd factors, a part is folded once more than the rest: some gates, evenly spread over the
    circuit; or globally its last part. So the factor is reached as far as whole gates allow: :meth:`effective_factor`.

    Inverses have the errors of their gates: a gate that is its own inverse, or has an inverse of its own name (a negated
    angle), keeps its name and label. ``sx`` is mirrored between two ``rz`` of pi, which devices do without a pulse, and
    which have no errors in a simulation; ``s`` and ``t`` by ``sdg`` and ``tdg`` with the errors of ``s`` and ``t`` in a
    simulation. A gate that takes some angles only (``rzz`` from 0 to pi / 2) is mirrored between two ``x``, whose errors are
    added. All others are refused by name.

    Barriers keep apart what a later pass could cancel or merge: locally on the gate's own qubits, which wait for each other
    anyway; globally across all, so that idle times, and what dynamical decoupling does in them, are other ones than in the
    circuit alone.

    Attributes:
        factor: How many times the errors are wanted, from 1.
        fold: ``"local"`` or ``"global"``.
        bounded: The names of gates that take some angles only where the circuit runs.
    """

    factor: float
    fold: str = "local"
    bounded: tuple[str, ...] = ()

    def apply(self, circuit: QuantumCircuit) -> QuantumCircuit:
        return self._locally(circuit) if self.fold == "local" else self._globally(circuit)

    def effective_factor(self, circuit: QuantumCircuit) -> float:
        """How many times the gates are there that count (of two or more qubits; globally, all if there are none).

        Args:
            circuit: The circuit that is to be folded.

        Raises:
            ValueError: If there is nothing to fold.
        """
        count = len(self._counted(circuit.data))
        if not count:
            remedy = "give fold='global'" if self.fold == "local" else "do without extrapolation"
            raise ValueError(f"fold: got {self.fold!r} for a circuit without gates that it could fold; {remedy}.")
        return 1 + 2 * self._extra(count) / count

    def _counted(self, data: Sequence[CircuitInstruction]) -> list[int]:
        """The places of the gates that count."""
        gates = [place for place, one in enumerate(data) if one.operation.name not in _IDLE]
        entangling = [place for place in gates if len(data[place].qubits) > 1]
        return gates if self.fold == "global" and not entangling else entangling

    def _extra(self, count: int) -> int:
        """How many pairs of gates are added, to so many that count."""
        return round(count * (self.factor - 1) / 2)

    def _locally(self, circuit: QuantumCircuit) -> QuantumCircuit:
        times = {}
        places = self._counted(circuit.data)
        for number, place in enumerate(places):
            extra, count = self._extra(len(places)), len(places)
            times[place] = (number + 1) * extra // count - number * extra // count
        folded = circuit.copy_empty_like()
        for place, instruction in enumerate(circuit.data):
            folded.append(instruction, copy=False)
            for _ in range(times.get(place, 0)):
                folded.barrier(instruction.qubits)
                self._append(folded, self._mirrored([instruction]))
                folded.barrier(instruction.qubits)
                folded.append(instruction, copy=False)
        return folded

    def _globally(self, circuit: QuantumCircuit) -> QuantumCircuit:
        unitary = [one for one in circuit.data if one.operation.name != "measure"]
        _require_final_measurements(circuit)
        places = self._counted(unitary)
        touched = [qubit for qubit in circuit.qubits if any(qubit in one.qubits for one in unitary)]
        folded = circuit.copy_empty_like()
        self._append(folded, unitary)
        whole, part = divmod(self._extra(len(places)), len(places)) if places else (0, 0)
        for part_of in [unitary] * whole + ([unitary[places[-part] :]] if part else []):
            folded.barrier(touched)
            self._append(folded, self._mirrored(part_of))
            folded.barrier(touched)
            self._append(folded, part_of)
        self._append(folded, [one for one in circuit.data if one.operation.name == "measure"])
        return folded

    def _mirrored(self, instructions: Sequence[CircuitInstruction]) -> Iterator[CircuitInstruction]:
        """The inverse of some instructions."""
        for one in reversed(instructions):
            for operation, places in self._inverse(one.operation):
                yield CircuitInstruction(operation, [one.qubits[place] for place in places])

    def _inverse(self, operation: Operation) -> list[tuple[Operation, Sequence[int]]]:
        """The gates of an operation's inverse, in their order, with the places of their qubits among the operation's."""
        name, label = operation.name, getattr(operation, "label", None)
        all_qubits = range(operation.num_qubits)
        if name == "barrier" or isinstance(operation, Delay):
            return [(operation, all_qubits)]
        if name in self.bounded and not any(map(is_parameterised, operation.params)):
            if name != "rzz":
                raise ValueError(_cannot_fold(name))
            return [(XGate(), [0]), (operation, all_qubits), (XGate(), [0])]
        if name in _CONJUGATED_BY_Z:
            half_turn = RZGate(math.pi, label=WITHOUT_NOISE)
            return [(half_turn, [0]), (operation, all_qubits), (half_turn, [0])]
        inverse = operation.inverse() if isinstance(operation, Gate) else operation
        if not isinstance(operation, Gate) or inverse.name not in (name, _MIRRORED_BY_NAME.get(name)):
            raise ValueError(_cannot_fold(name))
        if inverse.name != name:
            label = key_of_errors(operation)
        if label is not None:
            inverse = inverse.to_mutable()
            inverse.label = label
        return [(inverse, all_qubits)]

    @staticmethod
    def _append(circuit: QuantumCircuit, instructions: Iterable[CircuitInstruction]) -> None:
        for instruction in instructions:
            circuit.append(instruction, copy=False)


def _cannot_fold(name: str) -> str:
    return (
        f"fold: got a circuit with {name!r}, which has no inverse with the same errors; write the circuit in other gates "
        "(of one and two qubits, such as rx, rz, cx), or leave the extrapolation out."
    )


def _require_final_measurements(circuit: QuantumCircuit) -> None:
    """Checks that nothing follows a measurement on its qubit."""
    measured = set()
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            measured.update(instruction.qubits)
        elif instruction.operation.name != "barrier" and not measured.isdisjoint(instruction.qubits):
            raise ValueError(
                f"fold: got 'global' for a circuit with {instruction.operation.name!r} after a measurement of the same "
                "qubit; give fold='local'."
            )
