"""From a program's circuits to circuits that a device can run, and back to plain parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from dataclasses import dataclass, field, replace
from itertools import combinations
from types import MappingProxyType
from typing import Any

import dill  # type: ignore[import-untyped]
import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp, ParameterExpression, ParameterVector
from qiskit.circuit.library import CXGate, PhaseGate, get_standard_gate_name_mapping
from qiskit.quantum_info import PauliList, SparsePauliOp
from qiskit.transpiler import PassManager, generate_preset_pass_manager
from qiskit.transpiler.exceptions import TranspilerError
from qiskit.transpiler.passes import UnitarySynthesis

from ..program.angles import Affine, as_affine
from ..program.compiled import Program
from ..program.readout import Expectation
from .base import Backend, ProgramCache
from .fidelity import estimated_fidelity
from .fractional import folded
from .free_rzz import has_free_rzz, is_free, with_free_rzz
from .results import BoundCircuit

_STANDARD = frozenset(get_standard_gate_name_mapping())
WITHOUT_NOISE = "qiskit_torch_bridge: part of a gate"  # as a label
_NO_GATES = frozenset({"measure", "reset", "delay"})
_ENTANGLERS = ("cx", "cz", "ecr", "iswap", "rzz", "rxx", "ryy", "rzx")

__all__ = [
    "WITHOUT_NOISE",
    "TranspilerOptions",
    "TranspilingBackend",
    "bind_by_column",
    "bind_for_device",
    "bounded_gates",
    "folds_rzz",
    "gates_of_ibms_estimator",
    "is_from",
    "observables_on",
    "require_bounded_angles",
    "restricted_to",
    "transpiled",
    "varied",
]


@dataclass(frozen=True)
class TranspilerOptions:
    """How circuits become those of a device: by Qiskit's preset pass manager with some choices, or by the user's own.

    Attributes:
        optimization_level: From 0 to 3; None: the default, or what the pass manager does.
        initial_layout: The device's qubits for the circuit's, in order; None: left to the transpiler. Whether it fits a
            circuit and its device is only known when they are (see :func:`transpiled`).
        seed_transpiler: Makes the preset pass manager's choices repeatable; None: nothing does.
        pass_manager: What transpiles in place of the preset pass manager, alone: none of the other choices goes with it.
        default_level: The level where nobody has asked for one.

    Raises:
        TypeError, ValueError: If they are something else.
    """

    optimization_level: int | None = None
    initial_layout: Sequence[int] | None = None
    seed_transpiler: int | None = 0
    pass_manager: PassManager | None = None
    default_level: int = field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        level, seed = self.optimization_level, self.seed_transpiler
        if level is not None and not (_is_integer(level) and 0 <= level <= 3):
            raise ValueError(f"optimization_level: got {level!r}, expected 0, 1, 2, 3 or None.")
        layout = _checked_layout(self.initial_layout)
        if seed is not None and not _is_integer(seed):
            raise TypeError(
                f"seed_transpiler: got {seed!r} ({type(seed).__name__}), expected an integer that is not negative, or None."
            )
        if seed is not None and not 0 <= seed < 2**64:
            raise ValueError(f"seed_transpiler: got {seed}, expected an integer from 0 to 2**64 - 1, or None.")
        if self.pass_manager is not None:
            self._check_pass_manager()
            seed = None
        object.__setattr__(self, "optimization_level", None if level is None else int(level))
        object.__setattr__(self, "initial_layout", layout)
        object.__setattr__(self, "seed_transpiler", None if seed is None else int(seed))

    @property
    def level(self) -> int | None:
        """The optimisation level that circuits are transpiled at; None: the pass manager does as it likes."""
        if self.pass_manager is not None:
            return None
        return self.default_level if self.optimization_level is None else self.optimization_level

    def passes(self, target: Any, basis_gates: Sequence[str] | None = None) -> PassManager:
        """What transpiles for a target or, without connections, for the gates that are named."""
        if self.pass_manager is not None:
            return self.pass_manager
        return generate_preset_pass_manager(
            self.level,
            target=target if basis_gates is None else None,
            basis_gates=None if basis_gates is None else list(basis_gates),
            initial_layout=None if self.initial_layout is None else list(self.initial_layout),
            seed_transpiler=self.seed_transpiler,
        )

    def _check_pass_manager(self) -> None:
        if not isinstance(self.pass_manager, PassManager):
            raise TypeError(
                f"pass_manager: got {self.pass_manager!r} ({type(self.pass_manager).__name__}), expected a PassManager of "
                "Qiskit's (or a StagedPassManager), or None for the preset one."
            )
        unset = {"optimization_level": (None,), "initial_layout": (None,), "seed_transpiler": (0, None)}
        if given := [name for name, values in unset.items() if getattr(self, name) not in values]:
            raise ValueError(
                f"pass_manager: got one together with {' and '.join(given)}, which only the preset pass manager heeds; "
                "leave them out, or make your pass manager with them."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # By dill, as Qiskit itself sends pass managers: pickle knows no name for the functions in preset ones.
        return _unpickled, (dill.dumps(vars(self)),)


def _unpickled(choices: bytes) -> TranspilerOptions:
    return TranspilerOptions(**dill.loads(choices))


class TranspilingBackend(Backend):
    """A backend that transpiles circuits, and keeps what comes of it."""

    runs_variants = True

    def __init__(self, options: TranspilerOptions) -> None:
        self._transpiler = options
        self._cache = ProgramCache()

    @abstractmethod
    def circuits(self, program: Program) -> Sequence[QuantumCircuit]: ...

    @property
    def transpiler(self) -> TranspilerOptions:
        """How circuits are transpiled."""
        return replace(self._transpiler, default_level=self._default_level)

    @property
    def optimization_level(self) -> int | None:
        """The transpiler's; None: a pass manager's of the user's own."""
        return self.transpiler.level

    @property
    def initial_layout(self) -> Sequence[int] | None:
        """The device's qubits for the circuit's, in order; None: left to the transpiler."""
        return self._transpiler.initial_layout

    @property
    def seed_transpiler(self) -> int | None:
        """What makes the transpiler's choices repeatable, None if nothing does."""
        return self._transpiler.seed_transpiler

    @property
    def _default_level(self) -> int:
        """The optimisation level where nobody has asked for one."""
        return 2


def _checked_layout(layout: Any) -> tuple[int, ...] | None:
    if layout is None:
        return None
    if isinstance(layout, (str, bytes, AnySet, Mapping)) or not isinstance(layout, Iterable):
        raise TypeError(
            f"initial_layout: got {layout!r} ({type(layout).__name__}), expected a list of the device's qubits, one "
            "for each qubit of the circuit, in order; or None."
        )
    layout = list(layout)
    if not all(_is_integer(qubit) and qubit >= 0 for qubit in layout) or len(set(layout)) != len(layout):
        raise ValueError(f"initial_layout: got {layout}, expected the numbers of different qubits of the device.")
    return tuple(map(int, layout))


def is_from(package: str, value: Any) -> bool:
    """Whether a package has defined the value's class, or one that it derives from."""
    return any(cls.__module__.startswith(package) for cls in type(value).__mro__)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def transpiled(
    circuits: Sequence[QuantumCircuit],
    program: Program,
    device: Any,
    options: TranspilerOptions,
    *,
    basis_gates: Sequence[str] | None = None,
    keep: Mapping[str, type] = MappingProxyType({}),
    folds: bool = False,
) -> list[QuantumCircuit]:
    """The circuits for a device, without variants; a circuit that came with a layout keeps its place.

    ``basis_gates`` narrows down the gates of a device without connections; None: all that it knows. ``keep``: further
    gates that a device without connections can run, names and classes. Where a gate takes some angles only (IBM's fractional
    ``rzz``), free angles go through others, and Qiskit folds constant ones. ``folds``: free angles may stay in ``rzz``, for
    :func:`bind_for_device` to fold, where that is likely to make fewer errors.

    Raises:
        ValueError: If they do not fit the device, or the user's pass manager did not do what a transpiler has to.
    """
    width = program.circuit.num_qubits
    options = _kept_in_place(options, program, device)
    target = device.target  # asked for once: Aer makes it anew each time, and again for whatever it is asked of it
    # A simulator's number of qubits is a guess at what memory holds for the worst of circuits, and no limit.
    connected = target.build_coupling_map() is not None
    bounded = bounded_gates(target)
    folds = folds and connected and folds_rzz(target)
    if bounded:
        circuits = list(map(with_free_rzz if folds else _without_free_entanglers, circuits))
    if basis_gates is None and not connected and width > _num_qubits(target):
        basis_gates = sorted(_STANDARD & {*target.operation_names, *keep} - bounded)
    for name, gate in keep.items():
        target.add_instruction(gate, name=name)
    known = set(target.operation_names if basis_gates is None else basis_gates)
    if not connected and "unitary" not in known:
        circuits = [_synthesized(circuit, target.operation_names) for circuit in circuits]
    passes = options.passes(target, basis_gates)
    chooses = folds and options.pass_manager is None
    try:
        done = [_likelier(one, passes, program, target) if chooses else passes.run(one) for one in circuits]
    except TranspilerError as error:
        place = f"for {device.name!r} ({device.num_qubits} qubits)"
        raise ValueError(f"The circuit, on {width} qubits, cannot be transpiled {place}: {error.message}") from error
    if options.pass_manager is not None:
        for before, after in zip(circuits, done, strict=True):
            _require_angles_and_measurements(before, after, program)
            _require_gates_and_connections(after, known | _NO_GATES, target if connected else None, device.name)
    require_bounded_angles(done, bounded - {"rzz"} if folds else bounded)
    _require_working_qubits(done, device)
    return done


def varied(program: Program, circuits: Sequence[QuantumCircuit], device: Any = None) -> list[QuantumCircuit]:
    """The circuits of a variant, from those of the program that it is a variant of.

    Args:
        program: The variant.
        circuits: :meth:`TranspilingBackend.circuits` of its base.
        device: Whose gates may be used, besides those that are there; None: all.

    Raises:
        ValueError: If the variant does not keep measurements or angles, or the device does not have its gates.
    """
    variant = program.variants[-1]
    done = [variant.apply(circuit) for circuit in circuits]
    known = None if device is None or is_from("qiskit_aer", device) else {*device.operation_names, "barrier"}
    for before, after in zip(circuits, done, strict=True):
        _require_angles_and_measurements(before, after, program, maker=repr(variant))
        added = {i.operation.name for i in after.data} - {i.operation.name for i in before.data}
        if known is not None and (missing := added - known):
            raise ValueError(
                f"{variant!r} made a circuit with {', '.join(sorted(missing))}, which {device.name!r} cannot run; use "
                "another method, or another device."
            )
    return done


def _require_angles_and_measurements(
    before: QuantumCircuit, after: QuantumCircuit, program: Program, maker: str = "The pass manager"
) -> None:
    """Checks that what made a circuit has kept what values are computed from: measured bits, and affine angles."""
    if _measured_bits(after) != _measured_bits(before):
        raise ValueError(
            f"{maker} made a circuit with the registers and measured bits {_measured_bits(after)}, expected "
            f"{_measured_bits(before)}; use one that keeps measurements."
        )
    columns = {angle: (0, column) for column, angle in enumerate(program.angles)}
    for value in (v for i in after.data for v in i.operation.params if isinstance(v, ParameterExpression)):
        if not value.parameters <= columns.keys() or as_affine(value, columns) is None:
            raise ValueError(
                f"{maker} made the angle {value}, expected an affine function of the circuit's own angles; use one "
                "that makes no other."
            )


def _measured_bits(circuit: QuantumCircuit) -> tuple[list[tuple[str, int]], list[int]]:
    bits = [circuit.find_bit(i.clbits[0]).index for i in circuit.data if i.operation.name == "measure"]
    return [(register.name, register.size) for register in circuit.cregs], sorted(bits)


def _require_gates_and_connections(circuit: QuantumCircuit, names: Collection[str], target: Any, device: str) -> None:
    """Checks that a pass manager has used what the device has; ``target`` is None where there are no connections."""
    coupling = None if target is None else target.build_coupling_map()
    links = [] if coupling is None else [set(edge) for edge in coupling.get_edges()]
    for instruction in circuit.data:
        name = instruction.operation.name
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        problem = f"The pass manager made a circuit with {name!r} on qubits {list(qubits)}, "
        if name == "barrier":
            continue
        if name not in names or isinstance(instruction.operation, ControlFlowOp):
            raise ValueError(f"{problem}which {device!r} cannot run; have it translated into the device's gates.")
        if target is None:
            continue
        # An AerSimulator says of each of its gates that it goes everywhere, whatever the connections.
        goes_everywhere = None in (target[name] or [None])
        are_linked = not goes_everywhere or all({*pair} in links for pair in combinations(qubits, 2))
        if not are_linked or not target.instruction_supported(name, qubits):
            raise ValueError(
                f"{problem}where {device!r} does not have it; have the circuit laid out and routed for the device."
            )


def bounded_gates(target: Any) -> frozenset[str]:
    """The gates of a target that take some angles only, such as IBM's fractional ``rzz`` (from 0 to pi / 2)."""
    is_bounded = getattr(target, "gate_has_angle_bounds", None)  # from Qiskit 2.2 on
    return frozenset() if is_bounded is None else frozenset(filter(is_bounded, target.operation_names))


def folds_rzz(target: Any) -> bool:
    """Whether free angles of ``rzz`` can be folded into the range that a target takes (IBM's, from 0 to pi / 2)."""
    if bounded_gates(target) != {"rzz"} or not target.operation_names >= {"rx", "rz"}:
        return False
    return all(target.supported_angle_bound("rzz", [angle]) for angle in (0.0, math.pi / 2))


def _likelier(circuit: QuantumCircuit, passes: PassManager, program: Program, target: Any) -> QuantumCircuit:
    """The transpiled circuit with its free ``rzz``, or without if its estimated fidelity is higher so."""
    done: QuantumCircuit = passes.run(circuit)
    if not has_free_rzz(done):
        return done
    without: QuantumCircuit = passes.run(_without_free_entanglers(circuit))
    fidelity = estimated_fidelity(bind_for_device(done, program, target).circuit, target)  # with the flips of folds
    return without if estimated_fidelity(without, target) > fidelity else done


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
    return any(map(is_free, operation.params))


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
    """A device's, or its target's; infinity where it says none: it has no limit."""
    number = device.num_qubits
    return math.inf if number is None else int(number)


def gates_of_ibms_estimator(device: Any) -> list[str] | None:
    """IBM's Estimator takes circuits of its devices' gates only, also on a simulator that knows more; None: the device's."""
    if getattr(device, "coupling_map", None) is not None:
        return None
    has_noise = getattr(getattr(device, "options", None), "noise_model", None) is not None
    entanglers = ["cz", "cx", "ecr"] if has_noise else ["cz"]  # those that have noise stay
    # A simulator with a noise model may know few gates.
    return [name for name in (*entanglers, "rz", "sx", "x") if name in device.operation_names]


def _kept_in_place(options: TranspilerOptions, program: Program, device: Any) -> TranspilerOptions:
    """The options with the layout that a circuit came with, unless they have one, which is checked."""
    layout, width = options.initial_layout, program.circuit.num_qubits
    if layout is None:
        stays = options.pass_manager is None and program.placed and width == _num_qubits(device)
        return replace(options, initial_layout=range(width)) if stays else options
    if program.placed:
        raise ValueError(
            f"initial_layout: got {list(layout)} for a circuit that has been transpiled and keeps its place; leave the "
            "layout out, or give the circuit as it was before transpiling."
        )
    if len(layout) != width or any(qubit >= _num_qubits(device) for qubit in layout):
        most = "" if device.num_qubits is None else f", from 0 to {device.num_qubits - 1}"
        raise ValueError(
            f"initial_layout: got {list(layout)}, expected {width} different qubits of {device.name!r}{most}: one for each "
            "qubit of the circuit."
        )
    return options


def observables_on(
    circuit: QuantumCircuit, readout: Expectation, qubits: list[int]
) -> tuple[list[SparsePauliOp], list[int]]:
    """The observables on a transpiled circuit's qubits, and the outputs that they give (constants need no circuit).

    Args:
        circuit: The transpiled circuit.
        readout: What is read.
        qubits: Which of the program's qubits were transpiled, in order.
    """
    outputs = [m for m, observable in enumerate(readout.observables) if observable.coeffs.any()]
    observables = [restricted_to(readout.observables[m], qubits) for m in outputs]
    if circuit.layout is not None:
        observables = [observable.apply_layout(circuit.layout) for observable in observables]
    return observables, outputs


def restricted_to(observable: SparsePauliOp, qubits: list[int]) -> SparsePauliOp:
    """The observable on these qubits, the others left out (it acts on none of them)."""
    paulis = PauliList.from_symplectic(observable.paulis.z[:, qubits], observable.paulis.x[:, qubits])
    return SparsePauliOp(paulis, observable.coeffs)


def bind_for_device(circuit: QuantumCircuit, program: Program, target: Any) -> BoundCircuit:
    """As :func:`bind_by_column`; free angles of ``rzz`` are folded into the range that a target takes, if there is one."""
    bound = bind_by_column(circuit, program)
    return folded(bound) if target is not None and folds_rzz(target) else bound


def bind_by_column(circuit: QuantumCircuit, program: Program, *, keeps_noise: bool = False) -> BoundCircuit:
    """Gives every parameterised gate argument of a transpiled circuit a parameter of its own.

    Simulators evaluate expressions such as ``angle[3] + pi`` one by one in Python; a matrix product does them all.
    Controlled gates with parameters are spelled out first, because Aer (0.18) does not bind them:
    https://github.com/Qiskit/qiskit-aer/issues/2403. ``keeps_noise``: what they are spelled out in has their noise, on a
    simulator where errors go by labels, and no other.
    """
    circuit = _without_parameterised_controls(circuit, keeps_noise=keeps_noise)
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


def _without_parameterised_controls(circuit: QuantumCircuit, *, keeps_noise: bool) -> QuantumCircuit:
    """The circuit with every parameterised ``cp``, the one rotation with a control, as three ``p`` and two ``cx``.

    To keep its noise, the last of these has its label, or its name for one; the others have a label without noise.
    """
    if not any(instruction.operation.name == "cp" for instruction in circuit.data):
        return circuit
    plain = circuit.copy_empty_like()
    for instruction in circuit.data:
        operation = instruction.operation
        angle = operation.params[0] if operation.name == "cp" else None
        if isinstance(angle, ParameterExpression) and angle.parameters:
            control, target = instruction.qubits
            quiet = WITHOUT_NOISE if keeps_noise else None
            plain.append(PhaseGate(angle / 2, label=quiet), [control])
            plain.append(PhaseGate(angle / 2, label=quiet), [target])
            plain.append(CXGate(label=quiet), [control, target])
            plain.append(PhaseGate(-angle / 2, label=quiet), [target])
            plain.append(CXGate(label=operation.label or operation.name if keeps_noise else None), [control, target])
        else:
            plain.append(instruction, copy=False)
    return plain
