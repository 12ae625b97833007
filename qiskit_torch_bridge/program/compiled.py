"""``Program``: a circuit compiled for differentiation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterExpression, ParameterVector, QuantumCircuit

from .amplitudes import encodings_spelled_out
from .angles import AngleMap
from .canonical import (
    ROTATIONS,
    InputBlock,
    block_of,
    fill_input_blocks,
    set_input_blocks_aside,
    to_rotations,
    without_final_measurements,
)
from .observables import ObservablesLike
from .outcomes import QubitsLike, qubit_indices
from .parameters import flatten_parameters, source_columns, weight_groups
from .readout import Expectation, Probabilities, Readout
from .refusals import is_parameterised
from .unrolling import names_and_labels, without_loops
from .variants import Variant

__all__ = ["Program", "Selection"]

_MOST_KEPT_FILLINGS = 1024
_NOT_PICKLED = ("_fillings", "_varied", "selections", "selections_by_source")


@dataclass(frozen=True, eq=False)
class Selection:
    """Angles that a gradient is wanted for.

    Attributes:
        columns: The W columns, ascending.
        mask: Shape (number of columns,), bool: the same.
        groups: For each group of angles its part of the W columns; its own columns there, or None for all of them; and
            whether its gradient is wanted.
        fixed: Whether inputs of input blocks, which have no gradient, are wanted.
    """

    columns: tuple[int, ...]
    mask: np.ndarray
    groups: tuple[tuple[slice, torch.Tensor | None, bool], ...]
    fixed: bool

    @classmethod
    def of(cls, angle_map: AngleMap, influential: np.ndarray, needs_grad: Sequence[bool]) -> Selection:
        """All angles of the groups that need a gradient, as far as the readout can see them."""
        mask = np.zeros(angle_map.num_columns, dtype=bool)
        groups = []
        start = 0
        for span, needed in zip(angle_map.slices, needs_grad, strict=True):
            mask[span] = influential[span] & needed
            columns = np.flatnonzero(mask[span])
            with torch.inference_mode(False):
                part = None if len(columns) == span.stop - span.start else torch.as_tensor(columns)
            groups.append((slice(start, start + len(columns)), part, bool(needed)))
            start += len(columns)
        fixed = any(needed and group.fixed for needed, group in zip(needs_grad, angle_map.groups, strict=True))
        return cls(tuple(np.flatnonzero(mask).tolist()), mask, tuple(groups), fixed)


@dataclass(frozen=True, eq=False)
class Program:
    """A circuit with one angle per rotation argument, what is read from it, and where its angles come from.

    Make one with :meth:`compile`. Programs are immutable and may be shared.

    Attributes:
        circuit: The canonical circuit, without measurements; on all qubits that the user's circuit has.
        angles: Its A free parameters, in column order.
        readout: What is read.
        angle_map: From inputs and weights to the angles.
        group_names: The names of the weight groups, in the order of the sources 1, 2, ...
        placed: Whether the circuit came with a layout (already transpiled for a device), so that its qubits are the
            device's.
        blocks: Input blocks; their inputs follow the angles as further columns.
        instructions: How often the user wrote an instruction of a name and a label, those within composite gates included.
        parameters: The user's parameters by source: the inputs, then the weights of each group.
        layout: Where each qubit of the circuit that the user wrote is in the (possibly transpiled) circuit, at its end.
        variants: Changes to the circuits that are made after they have been transpiled, in their order.
        base: The program without the last of them; None if there are none.
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    readout: Readout
    angle_map: AngleMap
    _: KW_ONLY
    group_names: tuple[str, ...]
    placed: bool
    blocks: tuple[InputBlock, ...]
    instructions: Mapping[tuple[str, str | None], int]
    parameters: tuple[tuple[Parameter, ...], ...]
    layout: tuple[int, ...]
    variants: tuple[Variant, ...] = ()
    base: Program | None = None

    @classmethod
    def compile(
        cls,
        circuit: QuantumCircuit,
        *,
        inputs: Parameter | ParameterVector | Sequence[Parameter | ParameterVector] = (),
        weights: Any = (),
        observables: ObservablesLike | None = None,
        probabilities: bool | QubitsLike | None = None,
        interpret: Callable[[int], int] | None = None,
    ) -> Program:
        """Compiles a circuit; the arguments are those of :class:`qiskit_torch_bridge.QuantumLayer`.

        Raises:
            TypeError: If an argument has a wrong type.
            ValueError: If the circuit cannot be differentiated, or the parameters or the readout do not fit it.
        """
        if not isinstance(circuit, QuantumCircuit):
            raise TypeError(f"circuit: got {type(circuit).__name__}, expected a QuantumCircuit.")
        if not circuit.num_qubits:
            raise ValueError("circuit: got a QuantumCircuit without qubits, expected at least one.")
        input_list, groups = flatten_parameters(inputs, "inputs"), weight_groups(weights)
        unrolled = without_loops(circuit)  # older Qiskit counts a loop's own parameter among the circuit's
        columns = source_columns(unrolled, input_list, groups)
        spelled, encodings = encodings_spelled_out(unrolled)
        rest, blocks = set_input_blocks_aside(spelled, input_list)
        unitary, measured = without_final_measurements(to_rotations(rest))
        readout = _readout(circuit, measured, observables=observables, probabilities=probabilities, interpret=interpret)
        arguments = [argument for instruction in unitary.data for argument in instruction.operation.params]
        angle_map = AngleMap.from_expressions(
            [argument for argument in arguments if is_parameterised(argument)],
            columns,
            [len(input_list), *(len(group) for group in groups.values())],
            encodings=encodings,
            fixed=[parameter for block in blocks for parameter in block.parameters],
        )
        angles = tuple(ParameterVector("angle", len(angle_map.order)))
        program = cls(
            _with_angles(unitary, [angles[column] for column in angle_map.order]),
            angles,
            readout,
            angle_map,
            group_names=tuple(groups),
            placed=circuit.layout is not None,
            blocks=blocks,
            instructions=names_and_labels(circuit),
            parameters=(tuple(input_list), *map(tuple, groups.values())),
            layout=tuple(_layout_of(circuit)),
        )
        program.example()
        return program

    @cached_property
    def num_columns(self) -> int:
        """The number A of angles, and the inputs of input blocks after them."""
        return self.angle_map.num_columns

    @cached_property
    def num_inputs(self) -> int:
        """The number of input columns."""
        return self.angle_map.source_widths[0]

    @cached_property
    def num_weights(self) -> tuple[int, ...]:
        """The number of weights of each group."""
        return self.angle_map.source_widths[1:]

    @cached_property
    def num_outputs(self) -> int:
        """The number M of outputs."""
        return self.readout.num_outputs

    @cached_property
    def active_qubits(self) -> tuple[int, ...]:
        """The qubits that a gate acts on or that are measured, ascending."""
        touched = {
            self.circuit.find_bit(qubit).index
            for instruction in self.circuit.data
            if instruction.operation.name not in ("barrier", "delay")
            for qubit in instruction.qubits
        }
        return tuple(sorted(touched | set(self.readout.qubits)))

    @cached_property
    def influential(self) -> np.ndarray:
        """Shape (A,), bool: False for angles outside the readout's past light cone: their derivative is zero."""
        cone = {self.circuit.qubits[qubit] for qubit in self.readout.qubits}
        inside = np.zeros(self.num_columns, dtype=bool)
        index = {parameter: column for column, parameter in enumerate(self.angles)}
        for instruction in reversed(self.circuit.data):
            ordering_only = instruction.operation.name == "barrier" and block_of(instruction.operation) is None
            if ordering_only or cone.isdisjoint(instruction.qubits):
                continue
            cone.update(instruction.qubits)
            for value in instruction.operation.params:
                if isinstance(value, Parameter):
                    inside[index[value]] = True
        return inside

    def select(self, needs_grad: Sequence[bool]) -> Selection:
        """The angles whose gradient is needed.

        Args:
            needs_grad: Whether each group's is (see :class:`qiskit_torch_bridge.program.angles.AngleMap`).
        """
        return self.selections[tuple(needs_grad)]

    @cached_property
    def selections(self) -> Mapping[tuple[bool, ...], Selection]:
        """:meth:`select`, as a mapping: each selection is made when it is first looked up."""
        return _Selections(self)

    @cached_property
    def selections_by_source(self) -> Mapping[tuple[bool, ...], Selection]:
        """:attr:`selections`, by whether each source (the inputs, then each weight group) needs a gradient."""
        return _SelectionsBySource(self)

    def describe_angle(self, column: int) -> str:
        """An angle as the user knows it: its expression, gate and qubits."""
        for instruction in self.circuit.data:
            for value in instruction.operation.params:
                if isinstance(value, Parameter) and value == self.angles[column]:
                    qubits = [self.circuit.find_bit(qubit).index for qubit in instruction.qubits]
                    return f"{self.angle_map.expressions[column]} (in {instruction.operation.name} on qubits {qubits})"
        return f"{self.angle_map.expressions[column]} (in an input block)"

    def example(self) -> Program:
        """A program without input blocks that stands for all fillings of this one: itself if it has none.

        Raises:
            ValueError: If the blocks cannot stand where they do.
        """
        values = [len(block.parameters) ** -0.5 for block in self.blocks for _ in block.parameters]
        return self.filled(tuple(values)) if self.blocks else self

    def filled(self, values: tuple[float, ...]) -> Program:
        """The program with its input blocks filled; the last fillings are kept.

        Args:
            values: The blocks' inputs, block by block.

        Raises:
            ValueError: If a block does not take them.
        """
        if values not in self._fillings:
            if len(self._fillings) >= _MOST_KEPT_FILLINGS:
                self._fillings.pop(next(iter(self._fillings)))
            parameters = [parameter for block in self.blocks for parameter in block.parameters]
            circuit = fill_input_blocks(self.circuit, self.blocks, dict(zip(parameters, values, strict=True)))
            self._fillings[values] = replace(self, circuit=circuit, blocks=())
        return self._fillings[values]

    def varied(self, variant: Variant) -> Program:
        """The program with one more change to its transpiled circuits; the same program for the same variant."""
        if variant not in self._varied:
            self._varied[variant] = replace(self, variants=(*self.variants, variant), base=self)
        return self._varied[variant]

    @property
    def keeps_values(self) -> bool:
        """Whether all variants do: else the circuits calibrate something, and the program's values mean nothing."""
        return all(variant.keeps_values for variant in self.variants)

    def split(self, angles: np.ndarray) -> list[tuple[Program, slice | np.ndarray]]:
        """Programs without input blocks, and the rows that each is for.

        Args:
            angles: Shape (N, :attr:`num_columns`).
        """
        if not self.blocks:
            return [(self, slice(None))]
        distinct, which = np.unique(angles[:, len(self.angles) :], axis=0, return_inverse=True)
        return [
            (self.filled(tuple(values.tolist())), np.flatnonzero(which.reshape(-1) == number))
            for number, values in enumerate(distinct)
        ]

    @cached_property
    def _varied(self) -> dict[Variant, Program]:
        return {}

    @cached_property
    def _fillings(self) -> dict[tuple[float, ...], Program]:
        return {}

    def evaluate_angles(self, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All angles, a tensor a group (see :class:`qiskit_torch_bridge.program.angles.AngleMap`).

        Raises:
            TypeError: If a tensor is not float64 on the CPU.
            ValueError: If a shape does not fit.
        """
        for t in weights if inputs is None else (inputs, *weights):
            if t.dtype != torch.float64 or t.device.type != "cpu":
                name = "inputs" if t is inputs else "weights"
                raise TypeError(f"{name}: got a tensor of {t.dtype} on {t.device}, expected float64 on the CPU.")
        return self.angle_map(inputs, weights)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


class _Selections(dict[tuple[bool, ...], Selection]):
    """A program's selections, by whether each group needs a gradient."""

    def __init__(self, program: Program) -> None:
        self._angle_map, self._influential = program.angle_map, program.influential

    def __missing__(self, needs_grad: tuple[bool, ...]) -> Selection:
        return self.setdefault(needs_grad, Selection.of(self._angle_map, self._influential, needs_grad))


class _SelectionsBySource(dict[tuple[bool, ...], Selection]):
    """A program's selections, by whether each source needs a gradient."""

    def __init__(self, program: Program) -> None:
        self._groups, self._selections = program.angle_map.groups, program.selections

    def __missing__(self, needed: tuple[bool, ...]) -> Selection:
        by_group = tuple([any(needed[source] for source in group.sources) for group in self._groups])
        return self.setdefault(needed, self._selections[by_group])


def _with_angles(circuit: QuantumCircuit, angles: Sequence[Parameter]) -> QuantumCircuit:
    """The circuit with angles in place of its expressions, in their order, and without its global phase."""
    remaining = iter(angles)
    canonical = circuit.copy_empty_like()
    canonical.global_phase = 0.0
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.params and operation.name in ROTATIONS:
            operation = operation.to_mutable()
            operation.params = [
                next(remaining) if is_parameterised(v) else float(v) if isinstance(v, ParameterExpression) else v
                for v in operation.params
            ]
        canonical.append(operation, instruction.qubits, copy=False)
    return canonical


def _layout_of(circuit: QuantumCircuit) -> list[int]:
    """Where each qubit of the circuit that the user wrote is in the (possibly transpiled) circuit, at its end."""
    if circuit.layout is None:
        return list(range(circuit.num_qubits))
    return list(circuit.layout.final_index_layout(filter_ancillas=True))


def _readout(
    circuit: QuantumCircuit,
    measured: dict[int, int],
    *,
    observables: ObservablesLike | None,
    probabilities: bool | QubitsLike | None,
    interpret: Callable[[int], int] | None,
) -> Readout:
    """What the user asks for, read from the circuit, whose classical bits measure some of its qubits."""
    layout = _layout_of(circuit)
    if isinstance(probabilities, np.bool_):
        probabilities = bool(probabilities)
    if probabilities is None or probabilities is False:
        if interpret is not None:
            raise ValueError(
                "interpret: only probabilities have outcomes to interpret; give probabilities=[qubits] with it."
            )
        if observables is None:
            observables = ["I" * (len(layout) - 1 - q) + "Z" + "I" * q for q in range(len(layout))]
        elif circuit.num_qubits == len(layout) and layout != sorted(layout):
            warnings.warn(
                "The circuit has been transpiled, its qubits are permuted, and it is as wide as before: the observables are "
                "taken to name the qubits of the circuit before transpiling. If you have applied the layout to them, give "
                "the circuit as it was before transpiling instead (the layer transpiles it by itself).",
                stacklevel=5,
            )
        return Expectation.of(observables, layout, circuit.num_qubits)
    if observables is not None:
        raise ValueError(
            "Got both observables and probabilities, expected one of them; make two layers of one circuit."
        )
    if probabilities is True:
        if not measured:
            raise ValueError(
                "probabilities=True reads the circuit's final measurements, but it has none; measure it, or name qubits."
            )
        return Probabilities.of([measured[bit] for bit in sorted(measured)], interpret)
    qubits = qubit_indices(circuit, probabilities, len(layout))
    return Probabilities.of([layout[qubit] for qubit in qubits], interpret)
