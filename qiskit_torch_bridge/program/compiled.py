"""``Program``: a circuit compiled for differentiation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterExpression, ParameterVector, QuantumCircuit, QuantumRegister, Qubit
from qiskit.circuit.exceptions import CircuitError
from torch import nn

from ..arguments import refuse_unordered
from .angles import AngleMap, SourceColumn
from .canonical import (
    ROTATIONS,
    InputBlock,
    block_of,
    fill_input_blocks,
    set_input_blocks_aside,
    to_rotations,
    without_final_measurements,
)
from .readout import Expectation, ObservablesLike, Probabilities, Readout
from .refusals import is_parameterised
from .unrolling import names_and_labels, without_loops

__all__ = ["Program", "QubitsLike", "Selection", "flatten_parameters"]

QubitsLike: TypeAlias = Qubit | QuantumRegister | slice | Sequence[int | Qubit | QuantumRegister | slice | range]
"""Qubits as Qiskit's circuits name them, an index alone excepted."""

_PARAMETERS = (Parameter, ParameterVector)
_MOST_KEPT_FILLINGS = 1024
_SAME_NAME = " (Parameters are told apart by object: one of the same name that was made elsewhere is another.)"


def flatten_parameters(
    parameters: Parameter | ParameterVector | Iterable[Parameter | ParameterVector], name: str
) -> list[Parameter]:
    """The parameters in column order; vectors are spelled out.

    Raises:
        TypeError: If something else is among them.
        ValueError: If one is named twice.
    """
    if isinstance(parameters, _PARAMETERS):
        parameters = [parameters]
    refuse_unordered(name, parameters)
    if isinstance(parameters, Mapping) and parameters:
        raise TypeError(
            f"{name}: got a mapping, whose values would be lost, expected a list of Parameters; values come with a call's "
            "features (for inputs) or as init= (for weights), and circuit.assign_parameters binds constants."
        )
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"{name}: got {parameters!r}, expected a Parameter, a sequence of Parameters, or a ParameterVector."
        )
    flat: list[Parameter] = []
    for entry in parameters:
        if isinstance(entry, ParameterVector):
            flat += list(entry)
        elif isinstance(entry, Parameter):
            flat.append(entry)
        else:
            raise TypeError(
                f"{name}: got {entry!r} ({type(entry).__name__}), expected Parameters or a ParameterVector "
                "(the objects in the circuit, not their names or values)."
            )
    repeated = {p.name for p in flat if flat.count(p) > 1} if len(set(flat)) < len(flat) else set()
    if repeated:
        raise ValueError(f"{name}: {', '.join(sorted(repeated))} named more than once, expected each parameter once.")
    return flat


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
    def of(cls, angle_map: AngleMap, influential: np.ndarray, wanted: Sequence[bool]) -> Selection:
        """All angles of the wanted groups that the readout can see."""
        mask = np.zeros(angle_map.num_angles, dtype=bool)
        groups = []
        start = 0
        for span, want in zip(angle_map.slices, wanted, strict=True):
            mask[span] = influential[span] & want
            mine = np.flatnonzero(mask[span])
            with torch.inference_mode(False):
                places = None if len(mine) == span.stop - span.start else torch.as_tensor(mine)
            groups.append((slice(start, start + len(mine)), places, bool(want)))
            start += len(mine)
        fixed = any(want and group.fixed for want, group in zip(wanted, angle_map.groups, strict=True))
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
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    readout: Readout
    angle_map: AngleMap
    group_names: tuple[str, ...]
    placed: bool
    blocks: tuple[InputBlock, ...]
    instructions: Mapping[tuple[str, str | None], int]

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
        input_list = flatten_parameters(inputs, "inputs")
        if isinstance(weights, Mapping) and weights and not isinstance(next(iter(weights)), _PARAMETERS):
            weight_lists = {
                _group_name(n): flatten_parameters(group, f"weights[{n!r}]") for n, group in weights.items()
            }
        else:
            weight_lists = {"weights": flatten_parameters(weights, "weights")}
        unrolled = without_loops(circuit)  # older Qiskit counts a loop's own parameter among the circuit's
        columns = _columns(unrolled, input_list, weight_lists)

        rest, blocks = set_input_blocks_aside(unrolled, input_list)
        unitary, measured = without_final_measurements(to_rotations(rest))
        positions = _positions(circuit)
        readout = _readout(circuit, positions, measured, observables, probabilities, interpret)

        arguments = [
            (place, argument, expression)
            for place, instruction in enumerate(unitary.data)
            for argument, expression in enumerate(instruction.operation.params)
            if is_parameterised(expression)
        ]
        angle_map = AngleMap.from_expressions(
            [expression for _, _, expression in arguments],
            columns,
            [len(input_list), *(len(group) for group in weight_lists.values())],
            fixed=[parameter for block in blocks for parameter in block.parameters],
        )
        angles = tuple(ParameterVector("angle", len(arguments)))
        owner = {(place, argument): angles[angle_map.order[i]] for i, (place, argument, _) in enumerate(arguments)}
        canonical = unitary.copy_empty_like()
        canonical.global_phase = 0.0
        for place, instruction in enumerate(unitary.data):
            params = [
                owner[place, argument] if (place, argument) in owner else _number(value)
                for argument, value in enumerate(instruction.operation.params)
            ]
            operation = instruction.operation
            if params and instruction.operation.name in ROTATIONS:
                operation = operation.to_mutable()
                operation.params = params
            canonical.append(operation, instruction.qubits, copy=False)
        program = cls(
            canonical,
            angles,
            readout,
            angle_map,
            group_names=tuple(weight_lists),
            placed=circuit.layout is not None,
            blocks=blocks,
            instructions=names_and_labels(circuit),
        )
        program.example()
        return program

    @property
    def num_columns(self) -> int:
        """The number A of angles, and the inputs of input blocks after them."""
        return self.angle_map.num_angles

    @property
    def num_inputs(self) -> int:
        """The number of input columns."""
        return self.angle_map.source_widths[0]

    @property
    def num_weights(self) -> tuple[int, ...]:
        """The number of weights of each group."""
        return self.angle_map.source_widths[1:]

    @property
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

    def select(self, wanted: Sequence[bool]) -> Selection:
        """The angles whose gradient is wanted.

        Args:
            wanted: Whether each group's is (see :class:`qiskit_torch_bridge.program.angles.AngleMap`).
        """
        return self.selections[tuple(wanted)]

    @cached_property
    def selections(self) -> Mapping[tuple[bool, ...], Selection]:
        """:meth:`select`, as a mapping: each selection is made when it is first looked up."""
        return _Selections(self)

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

    def split(self, columns: np.ndarray) -> list[tuple[Program, slice | np.ndarray]]:
        """Programs without input blocks, and the rows that each is for.

        Args:
            columns: Shape (N, :attr:`num_columns`).
        """
        if not self.blocks:
            return [(self, slice(None))]
        distinct, which = np.unique(columns[:, len(self.angles) :], axis=0, return_inverse=True)
        return [
            (self.filled(tuple(values.tolist())), np.flatnonzero(which.reshape(-1) == number))
            for number, values in enumerate(distinct)
        ]

    @cached_property
    def _fillings(self) -> dict[tuple[float, ...], Program]:
        return {}

    def evaluate_angles(self, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All angles, a tensor a group (see :class:`qiskit_torch_bridge.program.angles.AngleMap`)."""
        return self.angle_map(inputs, weights)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_fillings", "selections")}

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


class _Selections(dict[tuple[bool, ...], Selection]):
    """A program's selections, by what is wanted."""

    def __init__(self, program: Program) -> None:
        self._angle_map, self._influential = program.angle_map, program.influential

    def __missing__(self, wanted: tuple[bool, ...]) -> Selection:
        return self.setdefault(wanted, Selection.of(self._angle_map, self._influential, wanted))


def _group_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"weights: got the group name {name!r} ({type(name).__name__}), expected a string.")
    if not name or "." in name or hasattr(nn.ParameterDict, name):
        raise ValueError(
            f"weights: got the group name {name!r}, expected a name for a parameter: not empty, without dots, and none that "
            "nn.ParameterDict needs itself."
        )
    return name


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, ParameterExpression) else value


def _columns(
    circuit: QuantumCircuit, inputs: list[Parameter], weights: dict[str, list[Parameter]]
) -> dict[Parameter, SourceColumn]:
    """Which source and column holds each parameter's value."""
    columns: dict[Parameter, SourceColumn] = {}
    owners: dict[Parameter, str] = {}
    named = [("inputs", inputs)] + [
        (f"weights ({name})" if len(weights) > 1 else "weights", group) for name, group in weights.items()
    ]
    for source, (name, group) in enumerate(named):
        for column, parameter in enumerate(group):
            if parameter in owners:
                raise ValueError(
                    f"Parameter {parameter.name} is in both {owners[parameter]} and {name}; expected it in one. "
                    "Use two parameters, or leave it out of one list."
                )
            owners[parameter] = name
            columns[parameter] = (source, column)
    in_circuit = set(circuit.parameters)
    names = {parameter.name for parameter in owners}
    if forgotten := [p.name for p in circuit.parameters if p not in owners]:
        raise ValueError(
            f"Parameter(s) {', '.join(forgotten)} of the circuit are in neither inputs nor weights; name each in one of "
            f"them, or bind it with circuit.assign_parameters.{_SAME_NAME if names & set(forgotten) else ''}"
        )
    if strange := [f"{p.name} (in {owners[p]})" for p in owners if p not in in_circuit]:
        raise ValueError(
            f"Parameter(s) {', '.join(strange)} are not in the circuit, which has "
            f"{[p.name for p in circuit.parameters]}; leave them out."
        )
    return columns


def _positions(circuit: QuantumCircuit) -> list[int]:
    """Where each qubit of the circuit that the user wrote sits at the end of the (possibly transpiled) circuit."""
    if circuit.layout is None:
        return list(range(circuit.num_qubits))
    return list(circuit.layout.final_index_layout(filter_ancillas=True))


def _readout(
    circuit: QuantumCircuit,
    positions: list[int],
    measured: dict[int, int],
    observables: ObservablesLike | None,
    probabilities: bool | QubitsLike | None,
    interpret: Callable[[int], int] | None,
) -> Readout:
    if isinstance(probabilities, np.bool_):
        probabilities = bool(probabilities)
    if probabilities is None or probabilities is False:
        if interpret is not None:
            raise ValueError(
                "interpret: only probabilities have outcomes to interpret; give probabilities=[qubits] with it."
            )
        if observables is None:
            observables = ["I" * (len(positions) - 1 - q) + "Z" + "I" * q for q in range(len(positions))]
        elif circuit.num_qubits == len(positions) and positions != sorted(positions):
            warnings.warn(
                "The circuit has been transpiled, its qubits are permuted, and it is as wide as before: the observables are "
                "taken to name the qubits of the circuit before transpiling. If you have applied the layout to them, give "
                "the circuit as it was before transpiling instead (the layer transpiles it by itself).",
                stacklevel=5,
            )
        return Expectation.of(observables, num_qubits=len(positions), width=circuit.num_qubits, positions=positions)
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
    qubits = _qubit_indices(circuit, probabilities, len(positions))
    if len(set(qubits)) < len(qubits):
        raise ValueError(f"probabilities: got {qubits}, expected each qubit once.")
    return Probabilities.of([positions[qubit] for qubit in qubits], interpret)


def _qubit_indices(circuit: QuantumCircuit, given: Any, num_qubits: int) -> list[int]:
    refuse_unordered("probabilities", given)
    if isinstance(given, (Qubit, QuantumRegister, slice)):
        given = [given]
    if isinstance(given, Mapping):
        raise TypeError(
            "probabilities: got a mapping, whose values would be lost, expected a list of qubits; multiply the outputs by "
            "numbers instead."
        )
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(
            f"probabilities: got {given!r}, expected a list of qubits, a QuantumRegister, or True for the measured qubits."
        )
    indices: list[int] = []
    for entry in given:
        if isinstance(entry, slice):
            indices += range(*entry.indices(num_qubits))
        elif isinstance(entry, (QuantumRegister, range)):
            indices += [_qubit_index(circuit, qubit, num_qubits) for qubit in entry]
        else:
            indices.append(_qubit_index(circuit, entry, num_qubits))
    return indices


def _qubit_index(circuit: QuantumCircuit, qubit: Any, num_qubits: int) -> int:
    if isinstance(qubit, Qubit) and circuit.layout is None:
        try:
            return circuit.find_bit(qubit).index
        except CircuitError:
            raise ValueError(f"probabilities: got {qubit!r}, which is no qubit of the circuit.") from None
    if isinstance(qubit, bool) or not isinstance(qubit, (int, np.integer)):
        transpiled = " (the circuit has been transpiled)" if isinstance(qubit, Qubit) else ""
        raise TypeError(f"probabilities: got {qubit!r} ({type(qubit).__name__}), expected a qubit's index{transpiled}.")
    if not 0 <= qubit < num_qubits:
        raise ValueError(f"probabilities: got qubit {qubit}, expected 0 to {num_qubits - 1}.")
    return int(qubit)
