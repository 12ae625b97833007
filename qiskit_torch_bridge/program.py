r"""A circuit compiled for differentiation: one free parameter per rotation.

A :class:`Program` holds the *canonical* form of a user's circuit: gates without parameters, and gates each argument of
which is an angle of its own with the property that every expectation value is a sinusoid of it,

.. math:: f(\theta) = a + b \cos\theta + c \sin\theta .

That holds for ``rx ry rz rxx ryy rzz rzx`` (generators with eigenvalues :math:`\pm 1/2`), for ``p`` and ``cp``
(eigenvalues 0 and 1) and for each of the three arguments of ``u``, which is ``rz(phi) ry(theta) rz(lambda)`` up to a
phase. Every other parameterised gate (``crx``, ``cu``, ``PauliEvolutionGate``, composite and controlled gates ...) is
decomposed by Qiskit's own transpiler passes, which keep the user's parameter expressions. How the angles follow from
the user's inputs and weights is the business of :mod:`~qiskit_torch_bridge.angles`; what is measured, of
:mod:`~qiskit_torch_bridge.readout`.

``PauliEvolutionGate`` stands for the product formula that it defines (as on hardware), not for the exact exponential.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from qiskit.circuit import (
    ControlFlowOp,
    Gate,
    Operation,
    Parameter,
    ParameterExpression,
    ParameterVector,
    QuantumCircuit,
    Qubit,
)
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import PassManager
from qiskit.transpiler.exceptions import TranspilerError
from qiskit.transpiler.passes import (
    BasisTranslator,
    HighLevelSynthesis,
    RemoveResetInZeroState,
    UnrollCustomDefinitions,
)

from .angles import AngleMap, SourceColumn
from .readout import Expectation, ObservableLike, Probabilities, Readout

__all__ = ["ROTATIONS", "Program", "flatten_parameters"]

ROTATIONS = frozenset({"rx", "ry", "rz", "rxx", "ryy", "rzz", "rzx", "p", "cp", "u"})
"""Gates each argument of which is an angle with the two-term shift rule."""

_NOT_GATES = frozenset({"measure", "reset", "delay", "barrier", "global_phase"})
_CONSTANT_GATES = frozenset(
    name for name, gate in get_standard_gate_name_mapping().items() if not gate.params and name not in _NOT_GATES
)
_BASIS = sorted(ROTATIONS | _CONSTANT_GATES | _NOT_GATES | {"unitary"})


def flatten_parameters(
    parameters: Parameter | ParameterVector | Iterable[Parameter | ParameterVector], name: str
) -> list[Parameter]:
    """The parameters in column order; vectors are spelled out.

    Raises:
        TypeError: If something else is among them.
        ValueError: If one is named twice.
    """
    if isinstance(parameters, (Parameter, ParameterVector)):
        parameters = [parameters]
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Iterable):
        raise TypeError(f"{name}: got {parameters!r}, expected Parameters or a ParameterVector.")
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
    """

    circuit: QuantumCircuit
    angles: tuple[Parameter, ...]
    readout: Readout
    angle_map: AngleMap
    group_names: tuple[str, ...]
    placed: bool

    @classmethod
    def compile(
        cls,
        circuit: QuantumCircuit,
        *,
        inputs: Parameter | ParameterVector | Sequence[Parameter | ParameterVector] = (),
        weights: Any = (),
        observables: ObservableLike | Sequence[ObservableLike] | None = None,
        probabilities: bool | Sequence[int | Qubit] | None = None,
        interpret: Callable[[int], int] | None = None,
    ) -> Program:
        """Compiles a circuit; the arguments are those of :class:`~qiskit_torch_bridge.QuantumLayer`.

        Raises:
            TypeError: If an argument has a wrong type.
            ValueError: If the circuit cannot be differentiated, or the parameters or the readout do not fit it.
        """
        if not isinstance(circuit, QuantumCircuit):
            raise TypeError(f"circuit: got {type(circuit).__name__}, expected a QuantumCircuit.")
        input_list = flatten_parameters(inputs, "inputs")
        groups = weights if isinstance(weights, Mapping) else {"weights": weights}
        weight_lists = {
            name: flatten_parameters(group, f"weights[{name!r}]" if isinstance(weights, Mapping) else "weights")
            for name, group in groups.items()
        }
        columns = _columns(circuit, input_list, weight_lists)

        unitary, measured = _without_final_measurements(_to_basis(circuit))
        positions = _positions(circuit)
        readout = _readout(circuit, positions, measured, observables, probabilities, interpret)

        arguments = [
            (place, argument, expression)
            for place, instruction in enumerate(unitary.data)
            for argument, expression in enumerate(instruction.operation.params)
            if isinstance(expression, ParameterExpression) and expression.parameters
        ]
        angle_map = AngleMap.from_expressions(
            [expression for _, _, expression in arguments],
            columns,
            [len(input_list), *(len(group) for group in weight_lists.values())],
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
        return cls(canonical, angles, readout, angle_map, tuple(weight_lists), circuit.layout is not None)

    @property
    def num_angles(self) -> int:
        """The number A of angles."""
        return len(self.angles)

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
        inside = np.zeros(self.num_angles, dtype=bool)
        index = {parameter: column for column, parameter in enumerate(self.angles)}
        for instruction in reversed(self.circuit.data):
            if instruction.operation.name == "barrier" or cone.isdisjoint(instruction.qubits):
                continue
            cone.update(instruction.qubits)
            for value in instruction.operation.params:
                if isinstance(value, Parameter):
                    inside[index[value]] = True
        return inside

    def angles_of(self, gate: str) -> tuple[int, ...]:
        """The angles of all gates of that name."""
        index = {parameter: column for column, parameter in enumerate(self.angles)}
        named = [instruction.operation for instruction in self.circuit.data if instruction.operation.name == gate]
        return tuple(index[value] for operation in named for value in operation.params if isinstance(value, Parameter))

    def describe_angle(self, column: int) -> str:
        """An angle as the user knows it: its expression, gate and qubits."""
        for instruction in self.circuit.data:
            for value in instruction.operation.params:
                if isinstance(value, Parameter) and value == self.angles[column]:
                    qubits = [self.circuit.find_bit(qubit).index for qubit in instruction.qubits]
                    return f"{self.angle_map.expressions[column]} (in {instruction.operation.name} on qubits {qubits})"
        raise IndexError(f"column: got {column}, expected 0 to {self.num_angles - 1}.")

    def evaluate_angles(self, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All angles, a tensor a group (see :class:`~qiskit_torch_bridge.angles.AngleMap`)."""
        return self.angle_map(inputs, weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


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
    if forgotten := sorted(p.name for p in in_circuit - owners.keys()):
        raise ValueError(
            f"Parameter(s) {', '.join(forgotten)} of the circuit are in neither inputs nor weights; "
            "name each in one of them, or bind it with circuit.assign_parameters."
        )
    if strange := [f"{p.name} (in {owners[p]})" for p in owners if p not in in_circuit]:
        raise ValueError(
            f"Parameter(s) {', '.join(strange)} are not in the circuit, which has "
            f"{[p.name for p in circuit.parameters]}; leave them out. (Parameters are told apart by "
            "object: one of the same name made elsewhere is another.)"
        )
    return columns


def _walk(circuit: QuantumCircuit) -> Iterable[tuple[Operation, tuple[Qubit, ...]]]:
    for instruction in circuit.data:
        yield instruction.operation, tuple(instruction.qubits)


def _to_basis(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit in rotations and standard gates without parameters, by Qiskit's passes."""
    for operation, _ in _walk(circuit):
        if isinstance(operation, ControlFlowOp) or getattr(operation, "condition", None) is not None:
            raise ValueError(
                f"Instruction {operation.name!r} is control flow, which has no gradient; use a circuit of gates "
                "(defer the measurement, and replace classical conditions by controlled gates)."
            )
        if operation.name == "delay" and any(
            isinstance(p, ParameterExpression) and p.parameters for p in operation.params
        ):
            raise ValueError(
                "Instruction 'delay' has a parameter, and a duration has no gradient; bind it to a number."
            )
    passes = PassManager(
        [
            HighLevelSynthesis(basis_gates=_BASIS, equivalence_library=SessionEquivalenceLibrary),
            UnrollCustomDefinitions(SessionEquivalenceLibrary, basis_gates=_BASIS),
            BasisTranslator(SessionEquivalenceLibrary, _BASIS),
            RemoveResetInZeroState(),
        ]
    )
    try:
        flat = passes.run(circuit)
    except TranspilerError as error:
        raise ValueError(_opaque_message(circuit, error)) from error
    for operation, _ in _walk(flat):
        if operation.name == "reset":
            raise ValueError(
                "Instruction 'reset' in mid-circuit is not unitary and has no gradient; use a fresh qubit instead."
            )
        if operation.name in ("measure", "barrier", "delay"):
            continue
        if not isinstance(operation, Gate):
            raise ValueError(
                f"Instruction {operation.name!r} is not a gate and has no gradient; remove it from the circuit."
            )
    return flat


def _opaque_message(circuit: QuantumCircuit, error: Exception) -> str:
    opaque = [
        operation for operation, _ in _walk(circuit) if operation.name in str(error.args[0] if error.args else error)
    ]
    if not opaque:
        return f"The circuit cannot be reduced to rotations and standard gates: {error}"
    operation = opaque[0]
    names = sorted(
        {q.name for p in getattr(operation, "params", ()) if isinstance(p, ParameterExpression) for q in p.parameters}
    )
    depends = f" of the parameter(s) {', '.join(names)}" if names else ""
    return (
        f"Instruction {operation.name!r} is no known function{depends} in terms of rotations, so it cannot be "
        f"differentiated ({error}). Give the gate a definition with parameterised gates, or encode the data in "
        "rotation angles (amplitudes as parameters have no gradient rule)."
    )


def _without_final_measurements(circuit: QuantumCircuit) -> tuple[QuantumCircuit, dict[int, int]]:
    """The circuit without its final measurements, and which qubit each classical bit measures."""
    measured: dict[Qubit, int] = {}
    bits: dict[int, int] = {}
    stripped = circuit.copy_empty_like()
    for instruction in circuit.data:
        name = instruction.operation.name
        touched = [circuit.find_bit(qubit).index for qubit in instruction.qubits if qubit in measured]
        if name != "barrier" and touched:
            raise ValueError(
                f"Mid-circuit measurement: qubit(s) {touched} are measured before instruction {name!r} acts on them. "
                "Measurements are only differentiable at the end; move them there or use a fresh qubit."
            )
        if name == "measure":
            qubit = instruction.qubits[0]
            clbit = circuit.find_bit(instruction.clbits[0]).index
            if clbit in bits:
                raise ValueError(
                    f"Classical bit {clbit} is measured into twice; expected at most one measurement a bit."
                )
            measured[qubit] = clbit
            bits[clbit] = circuit.find_bit(qubit).index
        else:
            stripped.append(instruction.operation, instruction.qubits, copy=False)
    bare = QuantumCircuit(stripped.qubits, *stripped.qregs)
    for instruction in stripped.data:
        bare.append(instruction.operation, instruction.qubits, copy=False)
    return bare, bits


def _positions(circuit: QuantumCircuit) -> list[int]:
    """Where each qubit of the circuit that the user wrote sits at the end of the (possibly transpiled) circuit."""
    if circuit.layout is None:
        return list(range(circuit.num_qubits))
    return list(circuit.layout.final_index_layout(filter_ancillas=True))


def _readout(
    circuit: QuantumCircuit,
    positions: list[int],
    measured: dict[int, int],
    observables: ObservableLike | Sequence[ObservableLike] | None,
    probabilities: bool | Sequence[int | Qubit] | None,
    interpret: Callable[[int], int] | None,
) -> Readout:
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
                stacklevel=4,
            )
        listed = [observables] if isinstance(observables, ObservableLike) else list(observables)
        return Expectation.of(listed, num_qubits=len(positions), width=circuit.num_qubits, positions=positions)
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
    if isinstance(probabilities, (str, bytes)) or not isinstance(probabilities, Iterable):
        raise TypeError(
            f"probabilities: got {probabilities!r}, expected a list of qubits, or True for the measured ones."
        )
    qubits = [_qubit_index(circuit, qubit, len(positions)) for qubit in probabilities]
    if len(set(qubits)) < len(qubits):
        raise ValueError(f"probabilities: got {qubits}, expected each qubit once.")
    return Probabilities.of([positions[qubit] for qubit in qubits], interpret)


def _qubit_index(circuit: QuantumCircuit, qubit: int | Qubit, num_qubits: int) -> int:
    if isinstance(qubit, Qubit) and circuit.layout is None:
        return circuit.find_bit(qubit).index
    if isinstance(qubit, bool) or not isinstance(qubit, (int, np.integer)):
        raise TypeError(f"probabilities: got {qubit!r} ({type(qubit).__name__}), expected a qubit's index.")
    if not 0 <= qubit < num_qubits:
        raise ValueError(f"probabilities: got qubit {qubit}, expected 0 to {num_qubits - 1}.")
    return int(qubit)
