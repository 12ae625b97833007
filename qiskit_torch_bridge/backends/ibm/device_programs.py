"""Programs in a device's gates: transpiled once, kept for later processes, and tested before they cost anything."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit, qpy
from qiskit.circuit import ParameterVectorElement
from qiskit.circuit.library import HGate, SdgGate
from qiskit.quantum_info import SparsePauliOp

from ...program.channels import NoisyCircuit, from_bytes, to_bytes
from ...program.compiled import Program
from ...program.readout import Expectation, MeasurementGroup
from ..base import circuit_on, measured_circuit
from ..results import BoundCircuit, pubs_of
from ..selftest import require_same_answers
from ..simulated import has_noise_of_its_own, leaves_out_idle_qubits, noise_model_of, require_separate_gates
from ..transpiling import (
    TranspilerOptions,
    bind_for_device,
    bounded_gates,
    gates_of_ibms_estimator,
    observables_on,
    require_bounded_angles,
    transpiled,
    varied,
)
from .device import Device
from .errors import HardwareError
from .fingerprints import fingerprint, fingerprint_on_device
from .ledger import Ledger, digest
from .modelled_noise import ModelledNoise, SentCircuits, noise_of, simulator_of
from .prices import USUAL_DURATION

__all__ = ["DeviceCircuit", "DeviceProgram", "DevicePrograms", "circuits_for", "device_circuits", "from_qpy", "to_qpy"]

_log = logging.getLogger(__name__)
_CHANGE_NO_RESULT = ("environment", "max_execution_time")  # a job that may take longer, or logs more, measures the same


@dataclass(frozen=True, eq=False)
class DeviceCircuit:
    """A circuit that a program needs measured, in the device's gates.

    Attributes:
        bound: The circuit; for a Sampler with the measurements of one group.
        layout: The device's qubit for each of the logical circuit's.
        bases: How many measurement bases it is executed in for one parameter set.
        duration: Of one execution, in seconds; the usual one where the device does not say.
        observables: For an Estimator: the observables on the device's qubits.
        outputs: For an Estimator: the outputs that they give.
        places: For an Estimator: where each of the program's qubits is when the circuit has ended.
    """

    bound: BoundCircuit
    layout: tuple[int, ...]
    bases: int
    duration: float
    _: KW_ONLY
    observables: tuple[SparsePauliOp, ...] = ()
    outputs: tuple[int, ...] = ()
    places: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DeviceProgram:
    """A program in a device's gates.

    Attributes:
        circuits: All that it needs measured.
        fingerprint: What tells the program from others, in every process.
        circumstances: All that a result depends on besides shots, angles and seed, the fingerprint included.
        transpiled: The circuits before their parameters were numbered anew.
        model: Simulates the circuits with the device's noise, where that is modelled.
    """

    circuits: tuple[DeviceCircuit, ...]
    fingerprint: str
    circumstances: tuple[Any, ...]
    _: KW_ONLY
    transpiled: Sequence[QuantumCircuit]
    model: SentCircuits | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """What its transpiled circuits are kept by and, where noise is modelled, what those with noise are."""
        key = digest(*self.circumstances)
        return (key,) if self.model is None else (key, _key_of_model(self.circumstances, self.circuits))


@dataclass(eq=False)
class DevicePrograms:
    """Makes programs ready for a device.

    Attributes:
        name: The backend's, for logs.
        run: The name of the run.
        primitive: ``"sampler"`` or ``"estimator"``.
        options: The primitive's, as they were set.
        transpiler: How circuits are transpiled.
        most_two_qubit_gates: Of one circuit.
        modelled: How the device's noise is modelled; None: it is not.
        folds: Whether free angles may be in ``rzz`` that takes a range of angles only.
        tested: The programs that may be sent: they have been tested, and are in the ledger.
    """

    name: str
    run: str
    _: KW_ONLY
    primitive: str
    options: Mapping[str, Any]
    transpiler: TranspilerOptions
    most_two_qubit_gates: int
    modelled: ModelledNoise | None = None
    folds: bool = True

    def __post_init__(self) -> None:
        self._unkept: dict[str, bytes] = {}  # circuits, transpiled or with noise, that are not in the ledger yet
        self.forget()

    def forget(self) -> None:
        """Has everything made ready and tested anew."""
        self.tested: WeakKeyDictionary[Program, DeviceProgram] = WeakKeyDictionary()
        self._ready: WeakKeyDictionary[Program, DeviceProgram] = WeakKeyDictionary()
        self._outcomes: dict[str, str] = {}
        self._noted: set[str] = set()
        self.forget_noise()

    def forget_noise(self) -> None:
        """Has the noise of programs that are made ready from now on read from the device anew."""
        self._noise: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tested": None, "_ready": None, "_noise": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    def ready(self, program: Program, device: Device, ledger: Ledger | None) -> DeviceProgram:
        """The program in the device's gates.

        Args:
            program: The program.
            device: Where it is to be measured.
            ledger: What may have its circuits from an earlier process; None: there is none yet.

        Raises:
            ValueError: If the device cannot run it as it is to be measured, or its noise cannot be modelled.
            MemoryError: If the circuit is too wide for a model of the noise.
        """
        if program not in self._ready:
            name = fingerprint(program)
            circumstances = (self.run, *self._circumstances(device), name)
            transpiled: Sequence[QuantumCircuit]
            if program.base is not None:  # on the very qubits of the program that it is a variant of
                transpiled = varied(program, self.ready(program.base, device, ledger).transpiled, device.device)
                self._require_runnable(transpiled, device)
            else:
                transpiled = self._transpiled(program, device, ledger, key=digest(*circumstances))
            circuits = device_circuits(transpiled, program, device.device, self.transpiler, self.primitive)
            if self.transpiler.pass_manager is not None:  # which has no name of its own
                circumstances = (*circumstances, fingerprint_on_device(circuits))
            angles = np.zeros((1, len(program.angles)))
            if pubs := [pub for each in circuits for pub in pubs_of(each.bound, angles, each.observables)]:
                device.check_preparation(self.primitive, pubs, self.options)
            model = None
            if self.modelled is not None and program.base is None:  # no shadow is asked for variants
                noisy = self._with_noise(program, circuits, device, ledger, _key_of_model(circumstances, circuits))
                model = simulator_of(program, noisy, _measured(circuits, program))
            self._ready[program] = DeviceProgram(circuits, name, circumstances, transpiled=transpiled, model=model)
        return self._ready[program]

    def test(self, program: Program, ready: DeviceProgram, open_ledger: Callable[[], Ledger]) -> None:
        """Tests a program that is ready and writes it down for later processes, after which it may be sent.

        Where another process was first, its circuits are used, so that a run is the same in all of its processes: the
        program has to be made ready and tested anew.

        Raises:
            ValueError: If it does not give its answers in the device's gates; the ledger has not been opened then.
        """
        key, *_ = ready.keys
        if key not in self._outcomes:
            self._outcomes[key] = self.self_test(program, ready)
        ledger = open_ledger()
        unkept = {each: self._unkept.pop(each) for each in ready.keys if each in self._unkept}
        if unkept != {each: ledger.keep_circuits(each, circuits) for each, circuits in unkept.items()}:
            self.tested.clear()
            self._ready.clear()
            del self._outcomes[key]
            return
        if key not in self._noted:
            _log.info("%s: %s", self.name, self._outcomes[key])
            ledger.note(self.run, "self-test", self._outcomes[key], circuit=ready.fingerprint)
            self._noted.add(key)
        self.tested[program] = ready

    def self_test(self, program: Program, ready: DeviceProgram) -> str:
        """Whether the circuits in the device's gates give the program's answers, in words.

        Raises:
            ValueError: If they do not.
        """
        circuits = ready.circuits
        observables, outputs = (circuits[0].observables, circuits[0].outputs) if circuits else ((), ())
        remedy = "Check initial_layout; if there is none, this is a defect: report it."
        if self.transpiler.pass_manager is not None:
            remedy = "Check the pass manager: it may drop no gate, and has to set a layout if it moves qubits."
        remedy = f"Nothing was submitted. {remedy}"
        return require_same_answers(program, [each.bound for each in circuits], observables, outputs, remedy=remedy)

    def _transpiled(
        self, program: Program, device: Device, ledger: Ledger | None, *, key: str
    ) -> Sequence[QuantumCircuit]:
        """Circuits that an earlier process has left, while they fit the device: a run that goes on does not change."""
        if not program.readout.groups:
            return []
        kept = self._unkept.get(key)
        if kept is None and ledger is not None and self.transpiler.pass_manager is None:
            kept = ledger.circuits(key)
        if kept is not None:
            try:
                circuits = from_qpy(kept, program)
                device.check(circuits)
                if not self.folds:
                    require_bounded_angles(circuits, bounded_gates(device.device.target))
            except HardwareError:
                raise
            except Exception as error:  # damaged bytes, or those of a newer Qiskit, raise anything
                changed = isinstance(error, ValueError)
                why = "the device has changed" if changed else "the transpiled circuits in the ledger cannot be read"
                self._give_up(key, f"{why}: {error}", ledger)
            else:
                return circuits
        circuits = circuits_for(program, device.device, self.primitive, self.transpiler, folds=self.folds)
        self._require_runnable(circuits, device)
        if self.transpiler.pass_manager is not None:  # no key tells its circuits from another one's
            return circuits
        self._unkept[key] = to_qpy(circuits)
        return from_qpy(self._unkept[key], program)

    def _give_up(self, key: str, why: str, ledger: Ledger | None) -> None:
        _log.warning("Transpiling anew, because %s", why)
        self._unkept.pop(key, None)
        if ledger is not None:
            ledger.note(self.run, "transpiled-anew", why)
            ledger.forget_circuits(key)

    def _with_noise(
        self, program: Program, circuits: Sequence[DeviceCircuit], device: Device, ledger: Ledger | None, key: str
    ) -> tuple[NoisyCircuit, ...]:
        """The circuits with the device's noise as an earlier process has left them: a run that goes on does not change."""
        assert self.modelled is not None
        kept = self._unkept.get(key)
        if kept is None and ledger is not None:
            kept = ledger.circuits(key)
        if kept is not None:
            try:
                return from_bytes(kept)
            except Exception as error:  # damaged bytes raise anything
                _log.warning("Modelling the noise anew, because what the ledger has of it cannot be read: %s", error)
                self._unkept.pop(key, None)
                if ledger is not None:
                    ledger.forget_circuits(key)
        if not self._noise:
            self._noise = (noise_of(device.device),)
        noisy = self.modelled.circuits(_measured(circuits, program), *self._noise)
        self._unkept[key] = to_bytes(noisy)
        return noisy

    def _require_runnable(self, circuits: Sequence[QuantumCircuit], device: Device) -> None:
        device.check(circuits)
        most = max((circuit.num_nonlocal_gates() for circuit in circuits), default=0)
        if most > self.most_two_qubit_gates:
            raise ValueError(
                f"The transpiled circuit has {most:,} two-qubit gates, expected at most {self.most_two_qubit_gates:,}: "
                "the service takes no more."
            )

    def _circumstances(self, device: Device) -> tuple[Any, ...]:
        """All that a result depends on besides the evaluation itself."""
        options = {name: value for name, value in self.options.items() if name not in _CHANGE_NO_RESULT}
        choices = self.transpiler.level, self.transpiler.initial_layout, self.transpiler.seed_transpiler
        # Where there is nothing to fold, circuits have the names that they had before there were folds.
        unfolded = [] if self.folds or not bounded_gates(device.device.target) else ["unfolded"]
        return device.identity, self.primitive, *choices, options, *unfolded


def circuits_for(
    program: Program, device: Any, primitive: str, options: TranspilerOptions, *, folds: bool = True
) -> list[QuantumCircuit]:
    """The circuits in the device's gates: one a measurement group for a Sampler, one in all for an Estimator."""
    compact = leaves_out_idle_qubits(device, options)
    if primitive == "sampler":
        circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
    else:
        circuits = [circuit_on(program, compact=compact)[0]]
    basis_gates = gates_of_ibms_estimator(device) if primitive == "estimator" else None
    done = transpiled(circuits, program, device, options, basis_gates=basis_gates, folds=folds)
    noise = noise_model_of(device)
    if primitive == "estimator" and has_noise_of_its_own(device, noise):
        require_separate_gates(done, noise, "IBM's Estimator")
    return done


def device_circuits(
    circuits: Sequence[QuantumCircuit], program: Program, device: Any, options: TranspilerOptions, primitive: str
) -> tuple[DeviceCircuit, ...]:
    """The circuits with all that is needed to measure them."""
    observables: tuple[SparsePauliOp, ...] = ()
    outputs: tuple[int, ...] = ()
    places: dict[int, int] = {}
    bases = 1
    if primitive == "estimator" and circuits:
        assert isinstance(program.readout, Expectation)
        place = list(range(program.circuit.num_qubits))
        if leaves_out_idle_qubits(device, options):
            place = list(program.active_qubits)
        observables, outputs = map(tuple, observables_on(circuits[0], program.readout, place))
        bases = len(program.readout.groups)
        layout = circuits[0].layout
        ends = range(len(place)) if layout is None else layout.final_index_layout(filter_ancillas=True)
        places = dict(zip(place, ends, strict=True))
    bound = [bind_for_device(circuit, program, device.target) for circuit in circuits]
    return tuple(
        DeviceCircuit(
            one,
            _layout_of(circuit),
            bases,
            _duration(one.circuit, device),
            observables=observables,
            outputs=outputs,
            places=places,
        )
        for one, circuit in zip(bound, circuits, strict=True)
    )


def _measured(circuits: Sequence[DeviceCircuit], program: Program) -> list[BoundCircuit]:
    """The circuits as they are measured, one a measurement group.

    An Estimator's get basis changes with labels, by which errors go, so that they have none.
    """
    groups = program.readout.groups
    if not circuits or not circuits[0].observables:
        return [each.bound for each in circuits]
    return [_measured_by_estimator(circuits[0], group) for group in groups]


def _measured_by_estimator(estimated: DeviceCircuit, group: MeasurementGroup) -> BoundCircuit:
    circuit = estimated.bound.circuit.copy()
    circuit.add_register(register := ClassicalRegister(len(group.qubits), "outcome"))
    for bit, (qubit, basis) in enumerate(zip(group.qubits, group.bases, strict=True)):
        place = estimated.places[qubit]
        if basis == "Y":
            circuit.append(SdgGate(label="basis change"), [place])
        if basis != "Z":
            circuit.append(HGate(label="basis change"), [place])
        circuit.measure(place, register[bit])
    return replace(estimated.bound, circuit=circuit)


def _key_of_model(circumstances: Sequence[Any], circuits: Sequence[DeviceCircuit]) -> str:
    return digest("with noise", *circumstances, fingerprint_on_device(circuits))


def to_qpy(circuits: Sequence[QuantumCircuit]) -> bytes:
    """Circuits as bytes, in Qiskit's format."""
    buffer = io.BytesIO()
    qpy.dump(list(circuits), buffer)
    return buffer.getvalue()


def from_qpy(data: bytes, program: Program) -> list[QuantumCircuit]:
    """Circuits from bytes, with the parameters of this process's program in place of those of the one that wrote them."""
    circuits = qpy.load(io.BytesIO(data))
    return [
        circuit.assign_parameters(
            {p: program.angles[p.index] for p in circuit.parameters if isinstance(p, ParameterVectorElement)}
        )
        for circuit in circuits
    ]


def _layout_of(circuit: QuantumCircuit) -> tuple[int, ...]:
    if circuit.layout is None:
        return tuple(range(circuit.num_qubits))
    return tuple(circuit.layout.initial_index_layout(filter_ancillas=True))


def _duration(circuit: QuantumCircuit, device: Any) -> float:
    """The time from the circuit's first gate to its last measurement, by the device's gate times; else the usual one."""
    target = getattr(device, "target", None)
    ends = np.zeros(circuit.num_qubits)
    for instruction in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        start = ends[qubits].max() if qubits else 0.0
        length = 0.0
        if instruction.operation.name != "barrier":
            try:
                known = target[instruction.operation.name][tuple(qubits)].duration  # type: ignore[index]
            except (KeyError, TypeError, AttributeError):
                known = None
            if known is None:
                return USUAL_DURATION
            length = known
        ends[qubits] = start + length
    return float(ends.max(initial=0.0))
