"""From a program and a simulator with noise to circuits of rotations and channels, as Aer would run them.

What Aer does, and so what is done here (measured against its density matrices in the tests):

- A circuit is transpiled for the simulator, and errors go by what then stands there: by an instruction's label where it has
  one, else by its name. An error for these very qubits, in this order, takes the place of one for all qubits.
- It acts after its instruction, on the first of its qubits where it is for fewer; before a measurement.
- ``id`` and ``delay`` do nothing else. Barriers have no errors.
- Relaxation during delays (of a device that is scheduled) is added by the noise model's own pass, where there is a delay.
- A measured bit is misread by the readout error of its one qubit; those that qubits share are not applied.

What cannot be written that way is refused, never approximated. In one thing Aer itself is not exact: of an error it leaves
out the terms with probabilities below 1e-10, and with them some trace (a few 1e-9 of a value, on some devices). Here all
terms count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Operation, Parameter, ParameterExpression
from qiskit.exceptions import QiskitError
from qiskit.quantum_info import PTM, Operator, Pauli, SuperOp

from ..program.angles import Affine, as_affine
from ..program.channels import Channel, NoisyCircuit, NoisyOperation, Rotation
from ..program.compiled import Program
from ..program.unrolling import is_parameterised
from .results import BoundCircuit
from .selftest import require_same_answers
from .simulated import circuits_on, key_of_errors, noise_model_of, require_noise
from .transpiling import TranspilerOptions, bind_by_column

__all__ = [
    "NotChannelsError",
    "channels_of",
    "circuits_without_loss",
    "noisy_circuits",
    "parameters_with_folds",
    "with_noise",
]

_ROTATIONS = {"rx": "X", "ry": "Y", "rz": "Z", "p": "Z", "u1": "Z", "rxx": "XX", "ryy": "YY", "rzz": "ZZ", "rzx": "ZX"}
_MOST_QUBITS_OF_A_GATE = 3  # of more, its definition is taken: a matrix of 4**k by 4**k would take longer
_MOST_QUBITS_OF_AN_ERROR = 5
_ROUNDING = 1e-14


class NotChannelsError(ValueError):
    """Some noise cannot be written as channels.

    Attributes:
        reason: Which, and why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"Noise as channels: {reason}; run the circuit on the same simulator with AerBackend.")
        self.reason = reason


def noisy_circuits(program: Program, simulator: Any, options: TranspilerOptions) -> tuple[NoisyCircuit, ...]:
    """The program's measured circuits with the simulator's noise, one a measurement group.

    Args:
        program: The program, without input blocks.
        simulator: An ``AerSimulator``, which may have a noise model and be one of a device.
        options: How the circuits are transpiled for it.

    Raises:
        ValueError: If some noise would be lost on the way, or cannot be written as channels.
    """
    noise = noise_model_of(simulator)
    _require_known_passes(noise)
    return channels_of(circuits_without_loss(program, simulator, options), program, noise)


def circuits_without_loss(program: Program, simulator: Any, options: TranspilerOptions) -> list[QuantumCircuit]:
    """The program's measured circuits in the simulator's gates, one a measurement group, which have lost no noise.

    Args:
        program: The program, without input blocks and variants.
        simulator: As for :func:`noisy_circuits`.
        options: Likewise.

    Raises:
        ValueError: If some noise would be lost on the way.
    """
    noise = noise_model_of(simulator)
    circuits = circuits_on(program, simulator, noise, options)
    require_noise(program, circuits, simulator, noise, options, controls_are_kept=True)
    if options.pass_manager is not None:
        require_same_answers(program, [bind_by_column(circuit, program) for circuit in circuits])
    return circuits


def channels_of(circuits: Iterable[QuantumCircuit], program: Program, noise: Any) -> tuple[NoisyCircuit, ...]:
    """A program's circuits, as they would run, with the noise of what stands in them.

    Raises:
        NotChannelsError: If the noise cannot be written as channels.
    """
    _require_known_passes(noise)
    channels = _Channels(noise)
    return tuple(_noisy(circuit, program.angles, channels) for circuit in circuits)


def with_noise(circuits: Sequence[BoundCircuit], noise: Any) -> tuple[NoisyCircuit, ...]:
    """Measured circuits, in the gates in which they run, with the noise of what stands in them.

    Args:
        circuits: The circuits, whose parameters follow from a program's angles.
        noise: A ``NoiseModel``, or None.

    Returns:
        Circuits of the program's angles; where some angles are folded, of what :func:`parameters_with_folds` makes of them.

    Raises:
        NotChannelsError: If the noise cannot be written as channels.
    """
    _require_known_passes(noise)
    channels = _Channels(noise)
    noisy = [(bound, _noisy(bound.circuit, bound.parameters, channels)) for bound in circuits]
    if any(bound.folds is not None for bound in circuits):
        starts, size = {}, 0
        for bound in _distinct(circuits):
            starts[id(bound.slopes)], size = size, size + len(bound.parameters)
        return tuple(
            replace(one, slopes=np.pad(one.slopes, ((start, size - start - len(one.slopes)), (0, 0))))
            for start, one in ((starts[id(bound.slopes)], one) for bound, one in noisy)
        )
    return tuple(
        replace(one, slopes=bound.slopes @ one.slopes, offsets=bound.offsets @ one.slopes + one.offsets)
        for bound, one in noisy
    )


def parameters_with_folds(circuits: Sequence[BoundCircuit], angles: np.ndarray) -> np.ndarray:
    """What :func:`with_noise` makes the circuits' angles of, at the program's angles of shape (N, A).

    These angles themselves; if some are folded, the parameters of all circuits, one circuit's after the other's.
    """
    if all(bound.folds is None for bound in circuits):
        return angles
    return np.concatenate([bound.values(angles) for bound in _distinct(circuits)], axis=1)


def _distinct(circuits: Sequence[BoundCircuit]) -> list[BoundCircuit]:
    """Circuits that get the same parameters only once."""
    return list({id(bound.slopes): bound for bound in circuits}.values())


@dataclass(frozen=True)
class _Turn:
    """A rotation whose angle is still an expression."""

    qubits: tuple[int, ...]
    paulis: str
    angle: ParameterExpression


@dataclass(frozen=True, eq=False)
class _Channels:
    """The channels of gates and of a noise model's errors, each made once."""

    noise: Any
    _of_gates: dict[bytes, np.ndarray] = field(default_factory=dict)
    _of_errors: dict[str, np.ndarray] = field(default_factory=dict)
    _placed: dict[tuple[int, tuple[int, ...]], Channel] = field(default_factory=dict)

    def gate(self, matrix: np.ndarray, qubits: tuple[int, ...]) -> Channel:
        """That of a unitary matrix."""
        key = matrix.tobytes()
        if key not in self._of_gates:
            self._of_gates[key] = _transfer_matrix(Operator(matrix))
        return self.placed(self._of_gates[key], qubits)

    def error_of(self, key: str, qubits: tuple[int, ...]) -> Iterator[Channel]:
        """That of the error that an instruction of this name or label has on these qubits, if it has one."""
        if self.noise is not None:
            locally = self.noise._local_quantum_errors.get(key, {})
            error = locally.get(qubits, self.noise._default_quantum_errors.get(key))
            if error is not None:
                yield self.error(error, qubits, f"the error of {key!r} on qubits {list(qubits)}")

    def error(self, error: Any, qubits: tuple[int, ...], name: str) -> Channel:
        """That of an error on the first of these qubits."""
        width = error.num_qubits
        if width > min(len(qubits), _MOST_QUBITS_OF_AN_ERROR):
            most = f"{len(qubits)}, as its instruction" if width > len(qubits) else f"{_MOST_QUBITS_OF_AN_ERROR}"
            _refuse(f"{name} is one of {width} qubits, expected at most {most}")
        if error.id not in self._of_errors:
            channel = SuperOp(error)
            if not channel.is_cptp():
                _refuse(f"{name} is no physical channel (it is not completely positive, or does not keep the trace)")
            self._of_errors[error.id] = _transfer_matrix(channel)
        return self.placed(self._of_errors[error.id], qubits[:width], name)

    def readout_of(self, qubit: int) -> np.ndarray | None:
        """How a measured qubit is misread: the probabilities of [true, read]."""
        if self.noise is None:
            return None
        error = self.noise._local_readout_errors.get((qubit,), self.noise._default_readout_error)
        return None if error is None else np.array(error.probabilities, dtype=float)

    def placed(self, ptm: np.ndarray, qubits: tuple[int, ...], origin: str = "") -> Channel:
        """The one channel with this very matrix on these qubits."""
        return self._placed.setdefault((id(ptm), qubits), Channel(qubits, ptm, origin))


def _noisy(circuit: QuantumCircuit, angles: Sequence[Parameter], channels: _Channels) -> NoisyCircuit:
    """A transpiled and measured circuit with the noise of what stands in it; its parameters are among the angles."""
    circuit = _with_relaxation(circuit, channels.noise)
    steps: list[_Turn | Channel] = []
    qubit_of_bit: dict[int, int] = {}
    for instruction in circuit.data:
        operation = instruction.operation
        qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        if operation.name == "barrier":
            continue
        if not set(qubit_of_bit.values()).isdisjoint(qubits):
            if len(qubits) > 1 or operation.name == "measure":
                _refuse(f"{operation.name!r} acts on qubits {list(qubits)}, of which some have been measured before")
            continue  # what only a measured qubit goes through has no influence on any bit
        if operation.name == "measure":
            qubit_of_bit[circuit.find_bit(instruction.clbits[0]).index] = qubits[0]
        elif operation.name == "quantum_channel":
            steps.append(channels.error(operation._quantum_error, qubits, "a relaxation"))
            continue
        elif operation.name not in ("id", "delay"):
            steps += _spelled_out(operation, qubits, channels)
        steps += channels.error_of(key_of_errors(operation), qubits)
    measured = [qubit_of_bit[bit] for bit in sorted(qubit_of_bit)]
    return _numbered(steps, measured, angles, channels)


def _with_relaxation(circuit: QuantumCircuit, noise: Any) -> QuantumCircuit:
    """The circuit with what the noise model's passes add to it; as in Aer, only where it has delays."""
    passes = None if noise is None or not circuit.count_ops().get("delay") else noise._pass_manager()
    if passes is None:
        return circuit
    try:
        return passes.run(circuit)
    except QiskitError as error:
        raise ValueError(
            f"The noise model's relaxation during delays cannot be computed: {error.message}; give the delays in seconds, "
            "or make the model with the device's dt."
        ) from error


def _spelled_out(operation: Operation, qubits: tuple[int, ...], channels: _Channels) -> Iterator[_Turn | Channel]:
    """A gate as rotations by its free angles, and channels."""
    params = operation.params if isinstance(operation, Gate) else None
    if params is None:
        _refuse(f"{operation.name!r} on qubits {list(qubits)} is no gate")
    if not any(map(is_parameterised, params)) and len(qubits) <= _MOST_QUBITS_OF_A_GATE:
        yield channels.gate(np.asarray(operation.to_matrix(), dtype=complex), qubits)
    elif operation.name in _ROTATIONS:
        yield _Turn(qubits, _ROTATIONS[operation.name], params[0])
    elif operation.name in ("u", "u3"):
        theta, phi, lam = params
        for pauli, angle in (("Z", lam), ("Y", theta), ("Z", phi)):
            if is_parameterised(angle):
                yield _Turn(qubits, pauli, angle)
            else:
                half = float(angle) / 2
                matrix = np.cos(half) * np.eye(2) - 1j * np.sin(half) * Pauli(pauli).to_matrix()
                yield channels.gate(matrix, qubits)
    elif operation.name in ("cp", "cu1"):
        half = params[0] / 2
        yield from (_Turn(qubits[:1], "Z", half), _Turn(qubits[1:], "Z", half), _Turn(qubits, "ZZ", -half))
    elif operation.definition is None:
        _refuse(f"{operation.name!r} on qubits {list(qubits)} has no definition")
    else:
        inner = operation.definition
        for part in inner.data:
            places = tuple(qubits[inner.find_bit(qubit).index] for qubit in part.qubits)
            yield from _spelled_out(part.operation, places, channels)


def _numbered(
    steps: Sequence[_Turn | Channel], measured: Sequence[int], angles: Sequence[Parameter], channels: _Channels
) -> NoisyCircuit:
    """The steps that a measured bit depends on, their qubits and angles numbered anew.

    What acts on other qubits only, later, keeps the trace; so nothing that is measured depends on it.
    """
    cone = set(measured)
    kept: list[_Turn | Channel] = []
    for step in reversed(steps):
        if not cone.isdisjoint(step.qubits):
            cone.update(step.qubits)
            kept.append(step)
    place = {qubit: number for number, qubit in enumerate(sorted(cone))}
    columns = {angle: (0, column) for column, angle in enumerate(angles)}
    operations: list[NoisyOperation] = []
    forms: list[Affine] = []
    for step in reversed(kept):
        qubits = tuple(place[qubit] for qubit in step.qubits)
        if isinstance(step, Channel):
            operations.append(channels.placed(step.ptm, qubits, step.origin))
            continue
        form = as_affine(step.angle, columns)
        if form is None:
            _refuse(f"the transpiled circuit has the angle {step.angle}, which is not affine")
        operations.append(Rotation(qubits, step.paulis, len(forms)))
        forms.append(form)
    slopes = np.zeros((len(angles), len(forms)))
    for number, form in enumerate(forms):
        for (_, column), slope in form.terms:
            slopes[column, number] = slope
    return NoisyCircuit(
        len(place),
        tuple(operations),
        slopes,
        np.array([form.constant for form in forms]),
        measured=tuple(place[qubit] for qubit in measured),
        readout=tuple(map(channels.readout_of, measured)),
    )


def _transfer_matrix(channel: SuperOp | Operator) -> np.ndarray:
    """The Pauli transfer matrix, in which the whole numbers of Clifford gates are whole."""
    ptm = np.ascontiguousarray(PTM(channel).data.real)
    whole = np.round(ptm)
    ptm = np.where(np.abs(ptm - whole) < _ROUNDING, whole, ptm) + 0.0  # no -0.0
    ptm.flags.writeable = False
    return ptm


def _require_known_passes(noise: Any) -> None:
    """Only Aer's own relaxation is known to depend on nothing but qubits and durations."""
    for one in () if noise is None else noise._custom_noise_passes:
        if type(one).__name__ != "RelaxationNoisePass" or not type(one).__module__.startswith("qiskit_aer."):
            _refuse(f"the noise model has the pass {type(one).__name__}, of which nothing is known")


def _refuse(reason: str) -> NoReturn:
    raise NotChannelsError(reason)
