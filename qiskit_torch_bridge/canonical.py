"""From any circuit to rotations and standard gates, by Qiskit's own transpiler passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qiskit.circuit import (
    ControlFlowOp,
    Gate,
    Instruction,
    Operation,
    Parameter,
    QuantumCircuit,
    Qubit,
)
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
from qiskit.circuit.library import Barrier, UnitaryGate, get_standard_gate_name_mapping
from qiskit.exceptions import QiskitError
from qiskit.transpiler import PassManager
from qiskit.transpiler.passes import (
    BasisTranslator,
    HighLevelSynthesis,
    UnrollCustomDefinitions,
)

from .unrolling import free_parameters, is_parameterised, spelled_out

__all__ = [
    "ROTATIONS",
    "InputBlock",
    "block_of",
    "fill_input_blocks",
    "set_input_blocks_aside",
    "to_rotations",
    "without_final_measurements",
]

ROTATIONS = frozenset({"rx", "ry", "rz", "rxx", "ryy", "rzz", "rzx", "p", "cp", "u"})
"""Gates each argument of which is an angle with the two-term shift rule."""

_NOT_GATES = frozenset({"measure", "reset", "delay", "barrier", "global_phase"})
_CONSTANT_GATES = frozenset(
    name for name, gate in get_standard_gate_name_mapping().items() if not gate.params and name not in _NOT_GATES
)
_STANDARD_CLASSES = {name: gate.base_class for name, gate in get_standard_gate_name_mapping().items()} | {
    "barrier": Barrier,
    "unitary": UnitaryGate,
}
_BASIS = sorted(ROTATIONS | _CONSTANT_GATES | _NOT_GATES | {"unitary"})
_BLOCK_LABEL = "qiskit_torch_bridge input block "


def to_rotations(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit in :data:`ROTATIONS` and standard gates without parameters; measurements and barriers stay.

    Raises:
        ValueError: If an instruction is no unitary gate, or has no definition.
    """
    _refuse_control_flow(circuit)
    passes = PassManager(
        [
            HighLevelSynthesis(basis_gates=_BASIS, equivalence_library=SessionEquivalenceLibrary),
            UnrollCustomDefinitions(SessionEquivalenceLibrary, basis_gates=_BASIS),
            BasisTranslator(SessionEquivalenceLibrary, _BASIS),
        ]
    )
    try:
        flat = passes.run(spelled_out(circuit))
    except Exception as error:  # whatever a user's own gate raises when it is asked for its definition
        raise ValueError(_undefined(circuit, error)) from error
    reduced = flat.copy_empty_like()
    fresh = set(flat.qubits)
    for instruction in flat.data:
        operation = instruction.operation
        if operation.name == "global_phase" or (operation.name == "reset" and instruction.qubits[0] in fresh):
            continue
        if operation.name == "reset":
            sources = sorted({repr(i.operation.name) for i in circuit.data if _resets(i.operation)})
            raise ValueError(
                f"Instruction(s) {', '.join(sources)} reset a qubit in mid-circuit, which is not unitary and has no "
                "gradient; use a fresh qubit instead, or prepare_state in place of initialize."
            )
        if operation.name not in _NOT_GATES and not isinstance(operation, Gate):
            raise ValueError(
                f"Instruction {operation.name!r} is not a gate and has no gradient; remove it from the circuit."
            )
        if operation.name not in ("barrier", "delay"):
            fresh.difference_update(instruction.qubits)
        reduced.append(instruction, copy=False)
    return reduced


def _refuse_control_flow(circuit: QuantumCircuit) -> None:
    for instruction in circuit.data:
        operation = instruction.operation
        if isinstance(operation, ControlFlowOp) or getattr(operation, "condition", None) is not None:
            raise ValueError(
                f"Instruction {operation.name!r} is control flow, which has no gradient; use a circuit of gates "
                "(defer the measurement, and replace classical conditions by controlled gates)."
            )
        if operation.name == "delay" and any(map(is_parameterised, operation.params)):
            raise ValueError(
                "Instruction 'delay' has a parameter, and a duration has no gradient; bind it to a number."
            )


def _resets(operation: Operation) -> bool:
    if operation.name == "reset" or not _is_defined(operation):
        return operation.name == "reset"
    definition = getattr(operation, "definition", None)
    return definition is not None and any(_resets(instruction.operation) for instruction in definition.data)


def _undefined(circuit: QuantumCircuit, error: Exception) -> str:
    undefined = [i.operation for i in circuit.data if not _is_defined(i.operation)]
    if not undefined:
        return f"The circuit cannot be reduced to rotations and standard gates: {error}"
    names = sorted({p.name for p in free_parameters(undefined[0])})
    depends = f" of the parameter(s) {', '.join(names)}" if names else ""
    return (
        f"Instruction {undefined[0].name!r} is no known function{depends} in terms of rotations, so it cannot be "
        f"differentiated ({error}). Give the gate a definition with parameterised gates, or encode the data in "
        "rotation angles (amplitudes as parameters have no gradient rule)."
    )


@dataclass(frozen=True, eq=False)
class InputBlock:
    """An instruction that is only defined once its parameters, all inputs, are numbers: an amplitude encoding, say.

    It has no gradient by its inputs. In the circuit a labelled barrier keeps its place.

    Attributes:
        operation: The instruction.
        parameters: Its parameters.
    """

    operation: Operation
    parameters: tuple[Parameter, ...]


def set_input_blocks_aside(
    circuit: QuantumCircuit, inputs: Collection[Parameter]
) -> tuple[QuantumCircuit, tuple[InputBlock, ...]]:
    """The circuit with a labelled barrier for every input block, and the blocks."""
    blocks: list[InputBlock] = []
    rest = circuit.copy_empty_like()
    for instruction in circuit.data:
        operation = instruction.operation
        parameters = free_parameters(operation)
        if parameters and parameters <= set(inputs) and not _is_defined(operation):
            placeholder = Barrier(operation.num_qubits, label=f"{_BLOCK_LABEL}{len(blocks)}")
            rest.append(placeholder, instruction.qubits)
            blocks.append(InputBlock(operation, tuple(sorted(parameters, key=lambda parameter: parameter.name))))
        else:
            rest.append(instruction, copy=False)
    return (rest, tuple(blocks)) if blocks else (circuit, ())


def _is_defined(operation: Operation) -> bool:
    if not isinstance(operation, Instruction) or isinstance(operation, ControlFlowOp):
        return True
    if operation.name in _BASIS and operation.base_class is _STANDARD_CLASSES[operation.name]:
        return True
    try:
        definition = operation.definition
        return definition is not None and all(_is_defined(instruction.operation) for instruction in definition.data)
    except Exception:  # a user's own gate may fail in any way on parameters that are no numbers
        return False


def block_of(operation: Operation) -> int | None:
    """Which input block the instruction keeps a place for, if it does."""
    label = getattr(operation, "label", None) or ""
    return int(label.removeprefix(_BLOCK_LABEL)) if label.startswith(_BLOCK_LABEL) else None


def fill_input_blocks(
    circuit: QuantumCircuit, blocks: Sequence[InputBlock], values: Mapping[Parameter, float]
) -> QuantumCircuit:
    """The circuit with its input blocks in place, their parameters bound.

    Raises:
        ValueError: If a block does not take the values.
    """
    filled = circuit.copy_empty_like()
    for instruction in circuit.data:
        number = block_of(instruction.operation)
        if number is None:
            filled.append(instruction, copy=False)
            continue
        block = blocks[number]
        bound = QuantumCircuit(block.operation.num_qubits)
        bound.append(block.operation, bound.qubits)
        mine = {parameter: values[parameter] for parameter in block.parameters}
        try:
            bound.assign_parameters(mine, inplace=True)
            filled.compose(bound.decompose(), instruction.qubits, inplace=True)
        except (QiskitError, TypeError, ValueError) as error:
            named = {parameter.name: value for parameter, value in mine.items()}
            raise ValueError(
                f"Instruction {block.operation.name!r} does not take the inputs {named}: {error}"
            ) from error
    return to_rotations(filled)


def without_final_measurements(circuit: QuantumCircuit) -> tuple[QuantumCircuit, dict[int, int]]:
    """The circuit without its final measurements, and which qubit each classical bit measures."""
    measured: dict[Qubit, int] = {}
    bits: dict[int, int] = {}
    bare = QuantumCircuit(circuit.qubits, *circuit.qregs)
    for instruction in circuit.data:
        name = instruction.operation.name
        touched = [circuit.find_bit(qubit).index for qubit in instruction.qubits if qubit in measured]
        if name in ("barrier", "delay") and touched:
            continue
        if touched:
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
            bare.append(instruction.operation, instruction.qubits, copy=False)
    return bare, bits
