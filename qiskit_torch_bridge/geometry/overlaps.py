"""The overlap of two states as a circuit: the one, then the inverse of the other; it is the probability of zeros.

So fidelities are measured with shots on any backend (compute and uncompute).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

from ..bridge.error_bars import Sources
from ..bridge.evaluation import require_finite
from ..bridge.functional import Call, Tally, measure_groups
from ..bridge.method import Method
from ..program.compiled import Program
from ..quote import Quote, quote_step
from ..shots.seeding import SeedStream

__all__ = ["Overlaps"]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The fidelities of a program's states, as a program of its own.

    Attributes:
        base: The program of the states.
    """

    base: Program

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base}

    @cached_property
    def _filled_groups(self) -> tuple[int, ...]:
        """The base's groups of angles that are not empty."""
        return tuple(g for g, group in enumerate(self.base.angle_map.groups) if group.expressions)

    @cached_property
    def program(self) -> Program:
        """Its sources are the base's groups of angles, of the first state, then of the second; output 0 is the fidelity.

        Raises:
            ValueError: If inputs are only defined as numbers, or there are too many qubits.
        """
        base = self.base
        if base.blocks:
            names = ", ".join(sorted({repr(block.operation.name) for block in base.blocks}))
            raise ValueError(
                f"circuit: instruction(s) {names} are only defined for numbers, so that the circuit has no inverse for all "
                "rows; encode the inputs in rotation angles, or as amplitudes with circuits.amplitude_encoding."
            )
        others = tuple(ParameterVector("other", len(base.angles)))
        circuit = QuantumCircuit(base.circuit.num_qubits)
        circuit.compose(base.circuit, inplace=True)
        second = base.circuit.assign_parameters(dict(zip(base.angles, others, strict=True)))
        circuit.compose(second.inverse(), inplace=True)
        spans = [base.angle_map.slices[group] for group in self._filled_groups]
        weights = {f"{side}{g}": angles[span] for side, angles in (("first", base.angles), ("second", others))
                   for g, span in enumerate(spans)}  # fmt: skip
        touched = sorted({circuit.find_bit(qubit).index for one in circuit.data for qubit in one.qubits}) or [0]
        compiled = Program.compile(circuit, weights=weights, probabilities=touched, interpret=bool)
        return replace(compiled, placed=base.placed)

    def measure(
        self,
        method: Method,
        first: Sequence[torch.Tensor],
        second: Sequence[torch.Tensor],
        *,
        seeds: SeedStream,
        tally: Tally,
    ) -> torch.Tensor:
        """The fidelities of P pairs, shape (P,); one backend call, differentiable by angles that require grad.

        Args:
            method: How they are measured.
            first: The angles of the first states, a tensor of shape (P, A_g) for each of the base's groups.
            second: Those of the second.
            seeds: Where the randomness comes from.
            tally: Counts what is executed, and gets the result.
        """
        for groups in (first, second):
            require_finite(self.base, torch.cat([group.detach() for group in groups], dim=1).numpy())
        rows = first[0].shape[0]
        nothing = torch.zeros((rows, 0), dtype=torch.float64)
        tensors = [nothing, *(groups[g] for groups in (first, second) for g in self._filled_groups)]
        others = [group.evaluate(tensors) for group in self.program.angle_map.groups[1:]]
        call = Call(tally, Sources(self.program, frozenset()))
        return measure_groups(self.program, method, [nothing, *others], seeds=seeds, call=call)[:, 0]

    def quote(self, method: Method, pairs: int, trained: Sequence[int] = ()) -> Quote:
        """What the fidelities of so many pairs cost.

        Args:
            method: How they are measured.
            pairs: How many.
            trained: The base's sources (0: the inputs, 1 + g: weight group g) by which they are differentiated after that.
        """
        groups = [self.base.angle_map.groups[g] for g in self._filled_groups]
        needed = [1 + g for g, group in enumerate([*groups, *groups]) if not set(trained).isdisjoint(group.sources)]
        return quote_step(self.program, method, pairs, needed)
