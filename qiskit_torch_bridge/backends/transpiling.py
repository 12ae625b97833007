"""From a program's circuits to circuits that a device can run, and back to plain parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from types import MappingProxyType
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterExpression, ParameterVector
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.transpiler import PassManager, generate_preset_pass_manager
from qiskit.transpiler.exceptions import TranspilerError
from qiskit.transpiler.passes import UnitarySynthesis

from ..program.angles import Affine, as_affine
from ..program.compiled import Program
from .results import BoundCircuit
from .simulated import noise_model_of

_STANDARD = frozenset(get_standard_gate_name_mapping())
_ENTANGLERS = ("cx", "cz", "ecr", "iswap", "rzz", "rxx", "ryy", "rzx")

__all__ = [
    "bind_by_column",
    "bounded_gates",
    "check_transpiler_options",
    "gates_of_ibms_estimator",
    "leaves_out_idle_qubits",
    "require_bounded_angles",
    "transpiled",
]


def check_transpiler_options(
    *, optimization_level: Any, initial_layout: Any, seed_transpiler: Any
) -> tuple[int | None, tuple[int, ...] | None, int | None]:
    """The transpiler's choices as plain integers, in this order; None stands for the default of each.

    Whether a layout fits a circuit and its device is only known when they are (see :func:`transpiled`).

    Raises:
        TypeError, ValueError: If they are something else.
    """
    level, layout, seed = optimization_level, initial_layout, seed_transpiler
    if level is not None and not (_is_integer(level) and 0 <= level <= 3):
        raise ValueError(f"optimization_level: got {level!r}, expected 0, 1, 2, 3 or None.")
    if layout is not None:
        if isinstance(layout, (str, bytes, AnySet, Mapping)) or not isinstance(layout, Iterable):
            raise TypeError(
                f"initial_layout: got {layout!r} ({type(layout).__name__}), expected a list of the device's qubits, one "
                "for each qubit of the circuit, in order; or None."
            )
        layout = list(layout)
        if not all(_is_integer(qubit) and qubit >= 0 for qubit in layout) or len(set(layout)) != len(layout):
            raise ValueError(f"initial_layout: got {layout}, expected the numbers of different qubits of the device.")
    if seed is not None:
        if not _is_integer(seed):
            raise TypeError(
                f"seed_transpiler: got {seed!r} ({type(seed).__name__}), expected an integer that is not negative, or None."
            )
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed_transpiler: got {seed}, expected an integer from 0 to 2**64 - 1, or None.")
    return (
        None if level is None else int(level),
        None if layout is None else tuple(map(int, layout)),
        None if seed is None else int(seed),
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def transpiled(
    circuits: Sequence[QuantumCircuit],
    program: Program,
    device: Any,
    *,
    optimization_level: int,
    initial_layout: Sequence[int] | None,
    seed_transpiler: int | None,
    basis_gates: Sequence[str] | None = None,
    keep: Mapping[str, type] = MappingProxyType({}),
) -> list[QuantumCircuit]:
    """The circuits for a device; a circuit that came with a layout keeps its place.

    ``basis_gates`` narrows down the gates of a device without connections; None: all that it knows. ``keep``: further
    gates that a device without connections can run, names and classes. Where a gate takes some angles only (IBM's fractional
    ``rzz``), free angles go through gates that take any, so that no angle is refused and the device's noise does not depend
    on it; constant angles are folded by Qiskit's transpiler.

    Raises:
        ValueError: If they do not fit the device.
    """
    width = program.circuit.num_qubits
    if initial_layout is not None:
        _check_layout(initial_layout, program, device)
    elif program.placed and width == _num_qubits(device):
        initial_layout = range(width)
    # A simulator's number of qubits is a guess at what memory holds for the worst of circuits, and no limit.
    connected = getattr(device, "coupling_map", None) is not None
    target = device.target  # asked for once: Aer makes it anew each time
    bounded = bounded_gates(target)
    if bounded:
        circuits = [_without_free_entanglers(circuit) for circuit in circuits]
    if basis_gates is None and not connected and width > _num_qubits(device):
        basis_gates = sorted(_STANDARD & {*device.operation_names, *keep} - bounded)
    for name, gate in keep.items():
        target.add_instruction(gate, name=name)
    if not connected and "unitary" not in (target.operation_names if basis_gates is None else basis_gates):
        circuits = [_synthesized(circuit, target.operation_names) for circuit in circuits]
    passes = generate_preset_pass_manager(
        optimization_level,
        target=target if basis_gates is None else None,
        basis_gates=None if basis_gates is None else list(basis_gates),
        initial_layout=None if initial_layout is None else list(initial_layout),
        seed_transpiler=seed_transpiler,
    )
    try:
        done = [passes.run(circuit) for circuit in circuits]
    except TranspilerError as error:
        raise ValueError(
            f"The circuit, on {width} qubits, cannot be transpiled for {device.name!r} "
            f"({device.num_qubits} qubits): {error.message}"
        ) from error
    require_bounded_angles(done, bounded)
    _require_working_qubits(done, device)
    return done


def bounded_gates(target: Any) -> frozenset[str]:
    """The gates of a target that take some angles only, such as IBM's fractional ``rzz`` (from 0 to pi / 2)."""
    is_bounded = getattr(target, "gate_has_angle_bounds", None)  # from Qiskit 2.2 on
    return frozenset() if is_bounded is None else frozenset(filter(is_bounded, target.operation_names))


def require_bounded_angles(circuits: Sequence[QuantumCircuit], bounded: frozenset[str]) -> None:
    """Checks that no gate that takes some angles only has a free one: shifted, it would leave them.

    Raises:
        ValueError: If one has.
    """
    for circuit in circuits:
        for instruction in circuit.data:
            if instruction.operation.name in bounded and _is_free(instruction.operation):
                raise ValueError(
                    f"The transpiled circuit has the free angle {instruction.operation.params[0]} in {instruction.name!r}, "
                    "of which the device takes some angles only; use a device without this gate (for IBM's: "
                    "use_fractional_gates=False)."
                )


def _require_working_qubits(circuits: Sequence[QuantumCircuit], device: Any) -> None:
    """IBM's devices say where they are out of order, which their targets may still show."""
    if not hasattr(device, "check_faulty"):
        return
    try:
        for circuit in circuits:
            device.check_faulty(circuit)
    except ValueError as error:
        raise ValueError(
            f"{device.name!r} is out of order where the transpiled circuit would run; choose other qubits by "
            f"initial_layout, or another device. ({error})"
        ) from error


def _is_free(operation: Any) -> bool:
    return any(isinstance(value, ParameterExpression) and value.parameters for value in operation.params)


def _without_free_entanglers(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with its free rotations of several qubits in gates that take any angle (``cx`` and ``rz``)."""
    plain = circuit.copy_empty_like()
    for instruction in circuit.data:
        if len(instruction.qubits) > 1 and _is_free(instruction.operation):
            spelled_out = _without_free_entanglers(instruction.operation.definition)
            plain.compose(spelled_out, instruction.qubits, inplace=True)
        else:
            plain.append(instruction, copy=False)
    return plain


def _synthesized(circuit: QuantumCircuit, gates: Collection[str]) -> QuantumCircuit:
    """The circuit with its matrices as gates; where Qiskit has a choice of entangling gates, it takes either at random."""
    entanglers = [name for name in _ENTANGLERS if name in gates]
    matrices = any(i.operation.name == "unitary" and len(i.qubits) > 1 for i in circuit.data)
    if not matrices or len(entanglers) < 2:
        return circuit
    basis = sorted({*gates} - {*entanglers[1:]})
    ready: QuantumCircuit = PassManager([UnitarySynthesis(basis)]).run(circuit)
    return ready


def _num_qubits(device: Any) -> float:
    """Infinity where the device says none: it has no limit."""
    return math.inf if device.num_qubits is None else int(device.num_qubits)


def _is_ideal_simulator(device: Any) -> bool:
    """Whether qubit numbers mean nothing to the device: every qubit reaches every other, and none has noise."""
    return getattr(device, "coupling_map", None) is None and noise_model_of(device) is None


def leaves_out_idle_qubits(device: Any, initial_layout: Sequence[int] | None) -> bool:
    """Whether circuits may lose qubits that nothing touches, because nothing depends on where they run."""
    return initial_layout is None and _is_ideal_simulator(device)


def gates_of_ibms_estimator(device: Any) -> list[str] | None:
    """IBM's Estimator takes circuits of its devices' gates only, also on a simulator that knows more; None: the device's."""
    return ["cz", "rz", "sx", "x"] if getattr(device, "coupling_map", None) is None else None


def _check_layout(layout: Sequence[int], program: Program, device: Any) -> None:
    if program.placed:
        raise ValueError(
            f"initial_layout: got {list(layout)} for a circuit that has been transpiled and keeps its place; leave the "
            "layout out, or give the circuit as it was before transpiling."
        )
    width = program.circuit.num_qubits
    if len(layout) != width or any(qubit >= _num_qubits(device) for qubit in layout):
        most = "" if device.num_qubits is None else f", from 0 to {device.num_qubits - 1}"
        raise ValueError(
            f"initial_layout: got {list(layout)}, expected {width} different qubits of {device.name!r}{most}: one for each "
            "qubit of the circuit."
        )


def bind_by_column(circuit: QuantumCircuit, program: Program) -> BoundCircuit:
    """Gives every parameterised gate argument of a transpiled circuit a parameter of its own.

    Simulators evaluate expressions such as ``angle[3] + pi`` one by one in Python; a matrix product does them all.
    Controlled gates with parameters are spelled out first, because Aer (0.18) does not bind them:
    https://github.com/Qiskit/qiskit-aer/issues/2403.
    """
    circuit = _without_parameterised_controls(circuit)
    columns = {angle: (0, column) for column, angle in enumerate(program.angles)}
    forms: list[Affine] = []
    places = {}
    for place, instruction in enumerate(circuit.data):
        for argument, value in enumerate(instruction.operation.params):
            if isinstance(value, ParameterExpression) and value.parameters:
                form = as_affine(value, columns)
                if form is None:
                    raise ValueError(
                        f"Transpiling made the angle {value}, which is not affine; lower the optimisation level."
                    )
                places[place, argument] = len(forms)
                forms.append(form)
    parameters = tuple(ParameterVector("bound", len(forms)))
    bound = circuit.copy_empty_like()
    bound.global_phase = 0.0
    for place, instruction in enumerate(circuit.data):
        operation = instruction.operation
        params = list(operation.params)
        if any((place, argument) in places for argument in range(len(params))):
            operation = operation.to_mutable()
            operation.params = [
                parameters[places[place, argument]] if (place, argument) in places else value
                for argument, value in enumerate(params)
            ]
        bound.append(operation, instruction.qubits, instruction.clbits, copy=False)
    slopes = np.zeros((len(program.angles), len(forms)))
    for row, form in enumerate(forms):
        for (_, column), slope in form.terms:
            slopes[column, row] = slope
    return BoundCircuit(bound, parameters, slopes, np.array([form.constant for form in forms]))


def _without_parameterised_controls(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with every parameterised ``cp``, the one rotation with a control, as three ``p`` and two ``cx``."""
    if not any(instruction.operation.name == "cp" for instruction in circuit.data):
        return circuit
    plain = circuit.copy_empty_like()
    for instruction in circuit.data:
        angle = instruction.operation.params[0] if instruction.operation.name == "cp" else None
        if isinstance(angle, ParameterExpression) and angle.parameters:
            control, target = instruction.qubits
            plain.p(angle / 2, control)
            plain.cx(control, target)
            plain.p(-angle / 2, target)
            plain.cx(control, target)
            plain.p(angle / 2, target)
        else:
            plain.append(instruction, copy=False)
    return plain
