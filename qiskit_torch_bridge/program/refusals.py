"""What is said of instructions that a layer cannot take: each kind has its reason, and its remedy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qiskit.circuit import (
    AnnotatedOperation,
    BoxOp,
    BreakLoopOp,
    ContinueLoopOp,
    ControlFlowOp,
    Gate,
    Instruction,
    Operation,
    Parameter,
    ParameterExpression,
    Store,
    WhileLoopOp,
)
from qiskit.circuit.library import HamiltonianGate, Initialize, Isometry, StatePreparation

__all__ = ["free_parameters", "has_matrix", "is_parameterised", "named", "why_misnamed", "why_not", "why_stale"]

_CHANNELS = frozenset({"kraus", "superop", "quantum_channel", "choi", "ptm", "chi", "stinespring", "roerror"})
_ANOTHER_WAY = "Give the gate a definition with parameterised gates, or encode the data in rotation angles"


def is_parameterised(value: object) -> bool:
    """Whether a gate's argument has free parameters."""
    return isinstance(value, Parameter) or (isinstance(value, ParameterExpression) and bool(value.parameters))


def free_parameters(operation: Operation) -> set[Parameter]:
    """The free parameters that the instruction shows."""
    free: set[Parameter] = set()
    for value in getattr(operation, "params", ()):
        if isinstance(value, Parameter):  # most are, and need not make a set of themselves first
            free.add(value)
        elif isinstance(value, ParameterExpression):
            free |= value.parameters
    return free


def has_matrix(operation: Operation) -> bool:
    """Whether the gate says itself what its matrix is."""
    if not isinstance(operation, Gate):
        return False
    return hasattr(operation, "__array__") or type(operation).to_matrix is not Gate.to_matrix


def named(operation: Operation, within: Sequence[str] = ()) -> str:
    """The instruction in words, and the gates that it is within, from the outermost to the innermost."""
    return f"Instruction {operation.name!r}" + (f" (within {' / '.join(map(repr, within))})" if within else "")


def why_stale(operation: Operation, inside: Collection[Parameter], within: Sequence[str] = ()) -> str:
    """What is said of a gate that shows other free parameters than its definition has."""
    shown, has = (", ".join(sorted(p.name for p in ps)) or "none" for ps in (free_parameters(operation), inside))
    return (
        f"{named(operation, within)} shows the free parameter(s) {shown}, but its definition has {has}; expected the same. "
        "Its parameters were replaced after it was made and the definition did not follow, or it keeps parameters elsewhere "
        "than in params. Make the gate anew from a circuit with the parameters that it is to have (assign them before "
        "to_gate, control and inverse), or use compose in place of a gate."
    )


def why_misnamed(operation: Operation, inner: str, within: Sequence[str] = ()) -> str:
    """What is said of a controlled gate that Qiskit has made for the name of another."""
    return (
        f"{named(operation, within)} is the control of a gate of your own that is named {inner!r}, for which Qiskit takes "
        "its own gate of that name. Give your gate another name before control, or use control(annotated=True)."
    )


def why_not(operation: Operation, within: Sequence[str] = ()) -> str:
    """Why the instruction is not taken, and what to do."""
    it = named(operation, within)
    if isinstance(operation, (ControlFlowOp, BreakLoopOp, ContinueLoopOp)):
        return f"{it} is control flow{_control_flow(operation)}"
    if isinstance(operation, AnnotatedOperation):
        base = operation.base_op.name.removesuffix(" (user's)")
        return (
            f"{it} is an annotated {base!r} that Qiskit cannot spell out; make it without annotations (control, inverse or "
            "power with annotated=False), also within the gates that it is made of."
        )
    if isinstance(operation, Store):
        return f"{it} computes with classical values, which has no gradient; leave it out of the circuit."
    name = operation.name
    if name.startswith("save_") or name == "snapshot":
        return (
            f"{it} saves a simulator's state, which a layer does not return; leave it out of the circuit, and read "
            "observables or probabilities."
        )
    if name.startswith("set_"):
        return f"{it} sets a simulator's state, which no gate does; leave it out, and prepare the state by gates."
    if name in _CHANNELS:
        return (
            f"{it} is a noise channel, not a gate; leave it out of the circuit, and give the noise to the backend "
            "(AerSimulator(noise_model=...))."
        )
    if name == "delay":
        return f"{it} has a duration that is not a number, by which there is no gradient; bind it to a number."
    return f"{it} {_gate(operation)}"


def _control_flow(operation: Operation) -> str:
    if isinstance(operation, BoxOp):
        return " with annotations, which a layer does not carry out; leave out the annotations, or use the gates alone."
    if isinstance(operation, (BreakLoopOp, ContinueLoopOp)):
        return " that ends a loop early; use a for_loop over just the values that are wanted."
    if operation.name == "for_loop":
        return (
            " over values that are not known beforehand, or over too many; use a for_loop over a range or a tuple of "
            "integers, with up to 100,000 gates in all."
        )
    unknown = " that depends on classical values, which has no gradient; "
    if isinstance(operation, WhileLoopOp):
        return unknown + "use a for_loop with a fixed number of repetitions."
    return unknown + (
        "where it waits for a measurement, use gates that are controlled by the measured qubit instead, and measure at the "
        "end (the same, if nothing else acts on that qubit after its measurement); where the branch is known beforehand, "
        "use its gates alone."
    )


def _gate(operation: Operation) -> str:
    names = ", ".join(sorted(parameter.name for parameter in free_parameters(operation)))
    if not names:
        if not isinstance(operation, Instruction):
            return "is not a gate and has no gradient; remove it from the circuit."
        try:
            _ = operation.definition
        except Exception as error:  # whatever a gate raises for the arguments that it was given
            said = "" if type(operation).__module__.startswith("qiskit.") else f": {error}"
            return (
                f"has a definition that cannot be had for its arguments ({type(error).__name__}{said}); mend the gate."
            )
        return (
            "is no gate that is known here, and has neither a definition of gates nor a matrix; give it one "
            "(gate.definition = QuantumCircuit(...)), or remove it from the circuit."
        )
    if isinstance(operation, HamiltonianGate):
        return (
            f"has the parameter(s) {names} for its time, by which its matrix has no gradient rule; use "
            "PauliEvolutionGate(SparsePauliOp.from_operator(matrix), time=...), which is made of rotations, or bind it."
        )
    if isinstance(operation, (Initialize, StatePreparation, Isometry)):
        return (
            f"has the parameter(s) {names} as amplitudes, which have no gradient rule; use "
            "qiskit_torch_bridge.circuits.amplitude_encoding, or encode the data in rotation angles."
        )
    if has_matrix(operation) and not type(operation).__module__.startswith("qiskit."):
        return f"is a matrix of the parameter(s) {names}, which no gradient rule differentiates. {_ANOTHER_WAY}."
    return (
        f"is no known function of the parameter(s) {names} in terms of rotations, so it cannot be differentiated. "
        f"{_ANOTHER_WAY} (amplitudes: with qiskit_torch_bridge.circuits.amplitude_encoding)."
    )
