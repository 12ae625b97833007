"""From any circuit to rotations and standard gates, by Qiskit's own transpiler passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from qiskit.circuit import Operation, Parameter, QuantumCircuit, Qubit
from qiskit.circuit.equivalence_library import SessionEquivalenceLibrary
from qiskit.circuit.library import Barrier, get_standard_gate_name_mapping
from qiskit.transpiler import PassManager
from qiskit.transpiler.passes import BasisTranslator, HighLevelSynthesis, UnrollCustomDefinitions

from .refusals import free_parameters, why_not
from .unrolling import is_defined, is_standard, spelled_out

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
_BASIS = sorted(ROTATIONS | _CONSTANT_GATES | _NOT_GATES | {"unitary"})
_BLOCK_LABEL = "qiskit_torch_bridge input block "


def to_rotations(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit in :data:`ROTATIONS` and standard gates without parameters; measurements and barriers stay.

    Raises:
        ValueError: If an instruction is no unitary gate, has no definition, or one that does not fit it.
    """
    plain = spelled_out(circuit)
    flat = _decomposed(plain)
    kept = []
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
        if not is_standard(operation):
            raise ValueError(why_not(operation))
        if not _only_orders(operation):
            fresh.difference_update(instruction.qubits)
        kept.append(instruction)
    if len(kept) == len(flat.data):
        return flat
    reduced = flat.copy_empty_like()
    for instruction in kept:
        reduced.append(instruction, copy=False)
    return reduced


def _decomposed(plain: QuantumCircuit) -> QuantumCircuit:
    """By Qiskit's passes, which are to be trusted once there is nothing of the user's own."""
    try:
        flat = _passes().run(plain)
    except Exception as error:  # whatever Qiskit raises for an instruction that it cannot decompose
        for instruction in plain.data:
            if not instruction.is_standard_gate() and _alone(instruction.operation) is None:
                raise ValueError(why_not(instruction.operation)) from error
        raise ValueError(
            "The circuit cannot be reduced to rotations and standard gates, though each of its instructions can; decompose "
            "the circuit (circuit.decompose()) before it is given to the layer."
        ) from error
    if hidden := set(flat.parameters) - set(plain.parameters):
        raise ValueError(
            f"Gates of the circuit are made of the parameter(s) {', '.join(sorted(p.name for p in hidden))}, which the "
            "circuit does not show; make them anew with the circuit's parameters, or decompose the circuit."
        )
    return flat


@cache
def _passes() -> PassManager:
    return PassManager(
        [
            HighLevelSynthesis(basis_gates=_BASIS, equivalence_library=SessionEquivalenceLibrary),
            UnrollCustomDefinitions(SessionEquivalenceLibrary, basis_gates=_BASIS),
            BasisTranslator(SessionEquivalenceLibrary, _BASIS),
        ]
    )


def _alone(operation: Operation) -> QuantumCircuit | None:
    """The instruction's decomposition, None if Qiskit has none."""
    circuit = QuantumCircuit(operation.num_qubits, operation.num_clbits)
    try:
        circuit.append(operation, circuit.qubits, circuit.clbits)
        return _passes().run(circuit)
    except Exception:  # as above
        return None


def _resets(operation: Operation) -> bool:
    if operation.name == "reset" or not is_defined(operation):
        return operation.name == "reset"
    definition = getattr(operation, "definition", None)
    return definition is not None and any(_resets(instruction.operation) for instruction in definition.data)


@dataclass(frozen=True, eq=False)
class InputBlock:
    """An instruction that is only defined once its parameters, all inputs, are numbers.

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
    """The circuit, without loops, with a labelled barrier for every input block, and the blocks."""
    settable = frozenset(inputs)
    blocks = {
        index: InputBlock(operation, tuple(sorted(parameters, key=lambda parameter: parameter.name)))
        for index, operation in enumerate(instruction.operation for instruction in circuit.data)
        if (parameters := free_parameters(operation)) and parameters <= settable and not is_defined(operation)
    }
    if not blocks:
        return circuit, ()
    rest, numbers = circuit.copy_empty_like(), dict(zip(blocks, range(len(blocks)), strict=True))
    for index, instruction in enumerate(circuit.data):
        if index in numbers:
            rest.append(Barrier(len(instruction.qubits), label=f"{_BLOCK_LABEL}{numbers[index]}"), instruction.qubits)
        else:
            rest.append(instruction, copy=False)
    return rest, tuple(blocks.values())


def block_of(operation: Operation) -> int | None:
    """Which input block the instruction keeps a place for, if it does."""
    label = getattr(operation, "label", None) or ""
    return int(label.removeprefix(_BLOCK_LABEL)) if label.startswith(_BLOCK_LABEL) else None


def _only_orders(operation: Operation) -> bool:
    """Whether it does nothing to its qubits: a barrier or a delay, but not what keeps the place of an input block."""
    return operation.name in ("barrier", "delay") and block_of(operation) is None


def fill_input_blocks(
    circuit: QuantumCircuit, blocks: Sequence[InputBlock], values: Mapping[Parameter, float]
) -> QuantumCircuit:
    """The circuit with its input blocks in place, their parameters bound.

    Raises:
        ValueError: If a block does not take the values.
    """
    filled = circuit.copy_empty_like()
    for instruction in circuit.data:
        if (number := block_of(instruction.operation)) is None:
            filled.append(instruction, copy=False)
            continue
        block = blocks[number]
        bound = QuantumCircuit(block.operation.num_qubits)
        bound.append(block.operation, bound.qubits)
        numbers = {parameter: values[parameter] for parameter in block.parameters}
        try:
            bound.assign_parameters(numbers, inplace=True)
            filled.compose(bound.decompose(), instruction.qubits, inplace=True)
        except Exception as error:  # whatever a user's own gate raises for these numbers
            inputs = {parameter.name: value for parameter, value in numbers.items()}
            raise ValueError(
                f"Instruction {block.operation.name!r} does not take the inputs {inputs}: {error}"
            ) from error
    return to_rotations(filled)


def without_final_measurements(circuit: QuantumCircuit) -> tuple[QuantumCircuit, dict[int, int]]:
    """The circuit without its final measurements, and which qubit each classical bit measures."""
    measured: set[Qubit] = set()
    qubit_of_bit: dict[int, int] = {}
    bare = QuantumCircuit(circuit.qubits, *circuit.qregs)
    for instruction in circuit.data:
        name = instruction.operation.name
        touched = [circuit.find_bit(qubit).index for qubit in instruction.qubits if qubit in measured]
        if _only_orders(instruction.operation) and touched:
            continue
        if touched:
            acting = f"instruction {name!r}" if block_of(instruction.operation) is None else "an amplitude encoding"
            raise ValueError(
                f"Mid-circuit measurement: qubit(s) {touched} are measured before {acting} acts on them. "
                "Measurements are only differentiable at the end; move them there or use a fresh qubit."
            )
        if name == "measure":
            qubit = instruction.qubits[0]
            clbit = circuit.find_bit(instruction.clbits[0]).index
            if clbit in qubit_of_bit:
                raise ValueError(
                    f"Classical bit {clbit} is measured into twice; expected at most one measurement a bit."
                )
            measured.add(qubit)
            qubit_of_bit[clbit] = circuit.find_bit(qubit).index
        else:
            bare.append(instruction.operation, instruction.qubits, copy=False)
    return bare, qubit_of_bit
