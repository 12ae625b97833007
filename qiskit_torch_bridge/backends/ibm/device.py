"""Devices: what takes jobs, and the simulated ones in this process.

A :class:`Device` does single requests and nothing more: it does not wait, retry or keep anything.
"""

from __future__ import annotations

import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import timezone
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit.library import RZZGate

from ...arguments import did_you_mean
from ..results import Arrays, arrays_from
from ..simulated import is_from
from ..transpiling import bounded_gates
from .errors import EXTRA_IS_MISSING
from .ledger import digest
from .packing import PackedPub, Part
from .part_of_device import PartOfDevice
from .primitive_options import checked_options

__all__ = ["Device", "LocalDevice", "fake_device"]


_QUBITS_OF_A_QUICK_MODEL = 32  # Aer makes a noise model of so many in a moment, for each job


class Device(ABC):
    """Something that takes jobs; sessions, tags and bills it has none of, unless a subclass says otherwise.

    Attributes:
        name: Its name.
        device: The ``BackendV2``, with the target to transpile for.
        is_local: Whether jobs run in this process: they are free, done at once, and gone with it.
    """

    name: str
    device: Any
    is_local: bool
    _jobs: dict[str, Any]  # the client's objects of jobs, by their ids

    @property
    def identity(self) -> str:
        """What tells the device from others, in every process: with fractional gates it measures other circuits."""
        fractional = getattr(self.device.options, "use_fractional_gates", False)
        return self.name if fractional is False else f"{self.name}, use_fractional_gates={fractional}"

    def refresh(self) -> None:  # noqa: B027 - simulated ones stay as they are
        """Reads the device's properties and target anew."""

    @cached_property
    def _bounded_gates(self) -> frozenset[str]:
        """The gates that take some angles only."""
        return bounded_gates(self.device.target)

    @property
    def _takes_any_rzz(self) -> bool:
        """Whether ``rzz`` takes any angle: a simulator's does, as IBM's client has it too."""
        return self.is_local and "rzz" not in self._bounded_gates

    @property
    def rep_delay(self) -> float | None:
        """The default delay between repetitions in seconds, where the device says so."""
        return getattr(self.device, "default_rep_delay", None)

    def check(self, circuits: Sequence[QuantumCircuit]) -> None:
        """Checks that the device can run the circuits as they are, by IBM's own validators.

        Raises:
            ValueError: If not.
        """
        from qiskit_ibm_runtime.utils import validate_isa_circuits

        try:
            if self._takes_any_rzz:
                circuits = [_with_rzz_of_zero(circuit) for circuit in circuits]
            validate_isa_circuits(list(circuits), self.device.target)
            for circuit in circuits:
                if hasattr(self.device, "check_faulty"):
                    self.device.check_faulty(circuit)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def check_angles(self, primitive: str, pubs: Sequence[Any]) -> None:
        """Checks that the device can run the PUBs of a primitive with the angles that they have.

        Raises:
            ValueError: If not.
        """
        from qiskit.primitives.containers.estimator_pub import EstimatorPub
        from qiskit.primitives.containers.sampler_pub import SamplerPub
        from qiskit_ibm_runtime.utils import validate_rzz_pubs

        if self._takes_any_rzz:
            return
        kind = SamplerPub if primitive == "sampler" else EstimatorPub
        try:
            # Where there are no parameters, one PUB stands for all rows.
            validate_rzz_pubs([kind.coerce(pub) for pub in {id(pub): pub for pub in pubs}.values()])
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def check_preparation(self, primitive: str, pubs: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Has IBM's client prepare a job of the PUBs, as far as it can without sending it (twirling, decoupling, boxes).

        Raises:
            ValueError: If it cannot.
        """
        if primitive == "sampler":
            from qiskit_ibm_runtime.executor_sampler.prepare import prepare
        else:
            from qiskit_ibm_runtime.executor_estimator.prepare import prepare
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the job itself will warn
                # One shot, which for an Estimator is the precision of one.
                prepare(pubs, checked_options(primitive, options), 1, self.is_local, self.device)
        except Exception as error:  # from whichever package it comes
            others = ", or a device without fractional gates (use_fractional_gates=False)"
            raise ValueError(
                f"{self.name}: IBM's {primitive.title()} cannot prepare the transpiled circuit with options={dict(options)} "
                f"({type(error).__name__}: {error}). Nothing was submitted; take other options"
                f"{others if 'fractional' in str(error) else ' or another device'}."
            ) from error

    def calibrated(self) -> str:
        """When the device was last calibrated (ISO 8601, UTC); empty where it does not say."""
        properties = getattr(self.device, "properties", None)
        date = None if properties is None else getattr(self._properties(properties), "last_update_date", None)
        return "" if date is None else date.astimezone(timezone.utc).isoformat(timespec="seconds")

    def faulty(self) -> frozenset[frozenset[int]]:
        """The qubits and couplers that are out of order, as far as the device says so beside its target."""
        properties = getattr(self.device, "properties", None)
        known = None if properties is None else self._properties(properties)
        if known is None or not hasattr(known, "faulty_qubits"):
            return frozenset()
        gates = (frozenset(gate.qubits) for gate in known.faulty_gates())
        return frozenset((*(frozenset((qubit,)) for qubit in known.faulty_qubits()), *gates))

    def _properties(self, properties: Any) -> Any:
        return properties()

    def submit(
        self, primitive: str, pubs: Sequence[Any], *, shots: int, options: Mapping[str, Any], tag: str, seed: int
    ) -> tuple[str, str | None]:
        """Sends a job; returns its id, and that of the session or batch.

        Args:
            primitive: ``"sampler"`` or ``"estimator"``.
            pubs: The PUBs.
            shots: Shots a circuit; an Estimator is given the precision ``1 / sqrt(shots)``.
            options: The primitive's, which have been checked.
            tag: What to find the job by.
            seed: For simulated devices.
        """
        job = self._run(self._mode(), primitive, pubs, shots=shots, options=options, tag=tag, seed=seed)
        self._sent(job)
        return job.job_id(), self.session_id

    def _run(
        self,
        mode: Any,
        primitive: str,
        pubs: Sequence[Any],
        *,
        shots: int,
        options: Mapping[str, Any],
        tag: str,
        seed: int,
    ) -> Any:
        """The client's job, which has been sent; many options, because they are those of :meth:`submit`, and the mode."""
        from qiskit_ibm_runtime.executor_estimator import Estimator
        from qiskit_ibm_runtime.executor_sampler import Sampler

        runner = (Sampler if primitive == "sampler" else Estimator)(mode=mode, options=dict(options))
        runner.options.environment.job_tags = [*runner.options.environment.job_tags, tag]
        if self.is_local:
            runner.options.simulator.seed_simulator = seed
            runner.options.simulator.angle_decimals = 12  # the default rounds finite differences away
        # An Estimator rounds 1 / precision**2 up, and must not round the last digit's error up.
        amount = {"shots": shots} if primitive == "sampler" else {"precision": (shots * (1 - 1e-9)) ** -0.5}
        return runner.run(pubs, **amount)

    @abstractmethod
    def _mode(self) -> Any:
        """What primitives take as ``mode``."""

    def _sent(self, job: Any) -> None:
        self._jobs[job.job_id()] = job

    @property
    def session_id(self) -> str | None:
        """The id of the session or batch that jobs go to, if there is one."""
        return None

    def find(self, tag: str) -> list[str]:
        """The ids of the jobs with a tag, oldest first."""
        return []

    def session_of(self, job_id: str) -> str | None:
        """The id of the session or batch that a job is part of, if it is part of one."""
        return None

    @abstractmethod
    def state(self, job_id: str) -> tuple[str, str]:
        """``"waiting"``, ``"done"``, ``"failed"`` or ``"cancelled"``; and what the service says of it."""

    @abstractmethod
    def result(self, job_id: str) -> Any:
        """The result of a job that is done, a ``PrimitiveResult``.

        Raises:
            WrongResult: If what has arrived is no result, or another job's.
        """

    def usage(self, job_id: str) -> float | None:
        """The billed seconds on the quantum processor; None where the service has not settled them yet."""
        return None

    @abstractmethod
    def cancel(self, job_id: str) -> None:
        """Cancels a job; one that has ended stays as it is."""

    def renew_session(self) -> str | None:
        """Opens a session or batch in place of one that was closed; returns its id."""
        return None

    def close(self) -> str | None:
        """Closes the session or batch if it is ours; returns the id of what was closed."""
        return None


class LocalDevice(Device):
    """A simulated device in this process: a fake IBM device, an ``AerSimulator``, any ``BackendV2``."""

    is_local = True

    def __init__(self, device: Any) -> None:
        self.device, self.name = device, device.name
        self._jobs = {}
        self._parts: dict[Any, Any] = {}
        self._simulator: Any = None

    @cached_property
    def identity(self) -> str:
        """Its name, gates and noise: simulated devices of one name are often different ones."""
        target = self.device.target
        gates = [
            [name, list(qubits or ()), getattr(properties, "duration", None), getattr(properties, "error", None)]
            for name in sorted(target.operation_names)
            for qubits, properties in sorted((target[name] or {None: None}).items(), key=str)
        ]
        noise = getattr(getattr(self.device, "options", None), "noise_model", None)
        return digest(self.name, gates, None if noise is None else repr(noise.to_dict()))

    def _mode(self) -> Any:
        return self.device

    def submit(
        self, primitive: str, pubs: Sequence[Any], *, shots: int, options: Mapping[str, Any], tag: str, seed: int
    ) -> tuple[str, str | None]:
        """As the base class says; PUBs, and copies side by side, are simulated one by one, each with its own randomness.

        IBM's client simulates each PUB of a job with the seed of the job. Equal circuits would then give equal counts, and
        similar ones (with folded gates, or in another basis) errors that go together.
        """
        settings: dict[str, Any] = {"shots": shots, "options": options, "tag": tag}
        if len(pubs) == 1 and not isinstance(pubs[0], PackedPub):
            job = self._run(self._whole(options), primitive, pubs, seed=seed, **settings)
            self._sent(job)
            return job.job_id(), None
        jobs = []
        alone: dict[int, Part] = {}  # rows without parameters are the same PUB
        for number, pub in enumerate(pubs):
            of_pub = []
            for region, (mode, own_pub) in enumerate(self._simulated_alone(pub, alone, options)):
                own_seed = int(np.random.SeedSequence((seed, number, region)).generate_state(1)[0]) >> 1
                of_pub.append(self._run(mode, primitive, [own_pub], seed=own_seed, **settings))
            jobs.append((pub, of_pub))
        together = _JobOfParts(jobs)
        self._sent(together)
        return together.job_id(), None

    def _simulated_alone(
        self, pub: tuple[Any, ...], alone: dict[int, Part], options: Mapping[str, Any]
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """What is simulated of a PUB, and by what: itself, or its copies one by one."""
        if isinstance(pub, PackedPub):
            yield from (self._simulator_of(part, options) for part in pub.parts())
        elif (self.device.num_qubits or 0) <= _QUBITS_OF_A_QUICK_MODEL:
            yield self._whole(options), pub
        else:
            if id(pub) not in alone:
                alone[id(pub)] = Part.of(pub)
            yield self._simulator_of(alone[id(pub)], options)

    def _whole(self, options: Mapping[str, Any]) -> Any:
        """What simulates a whole device; of its noise Aer would make a model for each job anew."""
        mode = self._mode()
        if mode is not self.device or _decouples(options):
            return mode
        if self._simulator is None:
            from ..aer import noisy_simulator  # on first use: most jobs do without

            self._simulator = mode if is_from("qiskit_aer", mode) else noisy_simulator(device=mode)
        return self._simulator

    def _simulator_of(self, part: Part, options: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """What simulates one copy, and the copy as it takes it."""
        if is_from("qiskit_aer", self.device):
            return self.device, part.pub
        # A noise model of a whole large device takes Aer seconds.
        circuit = part.compact[0]
        place = part.qubits, tuple(sorted(circuit.count_ops()))
        if place not in self._parts:
            from ..aer import noisy_simulator  # on first use: most jobs do without

            alone = PartOfDevice(self.device, *place)
            self._parts[place] = alone, noisy_simulator(device=alone)
        alone, simulator = self._parts[place]
        return alone if _decouples(options) else simulator, part.compact

    def state(self, job_id: str) -> tuple[str, str]:
        return ("done", "") if job_id in self._jobs else ("failed", "it ran in a process that is no more")

    def result(self, job_id: str) -> Any:
        return self._jobs.pop(job_id).result()

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)


def _decouples(options: Mapping[str, Any]) -> bool:
    """Whether delays are filled, for which the durations of gates have to be known, which a simulator does not tell."""
    return bool((options.get("dynamical_decoupling") or {}).get("enable"))


class _JobOfParts:
    """Jobs of single PUBs, or of the copies of circuits, as one of all of them.

    Args:
        jobs: Each PUB, and the job that it is, or those of its copies.
    """

    def __init__(self, jobs: Sequence[tuple[tuple[Any, ...], Sequence[Any]]]) -> None:
        self._jobs = jobs
        self._id = str(uuid.uuid4())

    def job_id(self) -> str:
        return self._id

    def result(self) -> Arrays:
        arrays = []
        for pub, jobs in self._jobs:
            parts = [arrays_from(job.result(), None)[0] for job in jobs]
            arrays.append(pub.merged(parts) if isinstance(pub, PackedPub) else parts[0])
        return arrays


def fake_device(name: str, word: str = "fake") -> Any:
    """The fake device of that name, a snapshot of a real one.

    Args:
        name: ``"manila"``, ``"fake_manila"`` and ``"FakeManilaV2"`` are the same.
        word: What stands before the colon where the user has named it.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        ValueError: If there is none of that name.
    """
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError as error:
        raise ImportError(f"backend '{word}:NAME' {EXTRA_IS_MISSING}") from error
    devices = {
        name_of_device.removeprefix("fake_"): device
        for device in vars(fake_provider).values()
        if isinstance(device, type) and isinstance(name_of_device := getattr(device, "backend_name", None), str)
    }
    short_name = name.lower().removeprefix("fake").removeprefix("_").removesuffix("v2")
    if short_name not in devices:
        expected = "the name of a fake device"
        if not (guess := did_you_mean(short_name, devices)):
            expected, guess = f"one of {', '.join(sorted(devices))}", "."
        raise ValueError(f"backend: got '{word}:{name}', expected {expected} after the colon{guess}")
    return devices[short_name]()


def _with_rzz_of_zero(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with all angles of ``rzz`` set to zero, which IBM's validator takes on every device."""
    if not any(instruction.operation.name == "rzz" for instruction in circuit.data):
        return circuit
    changed = circuit.copy_empty_like()
    for instruction in circuit.data:
        operation = RZZGate(0.0) if instruction.operation.name == "rzz" else instruction.operation
        changed.append(operation, instruction.qubits, instruction.clbits, copy=False)
    return changed
