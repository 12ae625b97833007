"""``IBMBackend``: a layer's circuits on IBM's devices, one job a training step."""

from __future__ import annotations

import logging
import math
import os
import platform
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from qiskit import QuantumCircuit
from qiskit.transpiler import PassManager

from ...arguments import instance_of, one_of
from ...program.compiled import Program
from ...program.readout import Expectation
from ...shots.shadow import Shadow
from ..base import Charge, Estimate, Request, check_shots
from ..passport import Passport
from ..statevector import StatevectorBackend
from ..transpiling import TranspilerOptions, TranspilingBackend
from .device import Device
from .device_programs import DeviceProgram, DevicePrograms
from .errors import HardwareError
from .faults import ServiceFault
from .kept_evaluations import kept_evaluations
from .ledger import Caps, Ledger, Spent, said_by_jobs
from .modelled_noise import ModelledDevice, ModelledNoise, SentCircuits
from .packing import Packing, packing_from, pieces_of_rows
from .prices import Price, price_of
from .primitive_options import checked_options, finalized_options, why_no_free_rzz
from .sending import Patience, Sender
from .service import Destination
from .workload import Limits, Measurement, Workload

__all__ = ["IBMBackend"]

_log = logging.getLogger(__name__)

_PACKAGES = ("qiskit", "qiskit-ibm-runtime", "torch", "numpy")
_STAYS_HERE = ("_device", "_connected", "_finalized_options", "_circuits_in_use", "_settled")  # when it is pickled


class IBMBackend(TranspilingBackend):
    """An IBM device, real or fake, through qiskit-ibm-runtime.

    **One job a step.** The circuits of a training step, those of its gradient included, leave together; so whatever needs no
    gradient belongs under ``torch.no_grad()``, or its gradient is paid for. What is more than
    the service takes in a job is cut into as few jobs as can be, which are all submitted before the first is waited for.

    **Nothing is lost.** Every job is in the ledger (an SQLite file) before it is submitted, its id as soon as there is one,
    its result when it has arrived. The seed of the layer and its position name an evaluation: run the same program with
    the same seed again, after whatever has stopped it, and jobs that are done are read from the ledger, jobs that are
    waiting are waited for, and a job whose submission was cut off is found by its tag. (The same to the last bit: the same
    data, weights and versions, on the same machine.) The other side of it: a new run is to be given a new ``seed``,
    ``run`` or ``ledger``, or it gets the old one's results; and without a ``seed`` nothing is found again.

    **Nothing is believed unseen.** A result is kept once it is what was asked for: as many circuits, rows, shots and bits
    (or finite values), of this very job. Else the error is ``JobFailed``, the next run fetches it once more, and
    :meth:`forget` gives the job up.

    **Nothing is paid for unseen.** ``layer.quote`` says what a step costs; ``max_qpu_seconds``, ``max_shots`` and
    ``max_jobs`` stop before the submission that would pass them. They count all jobs of that ``run`` in that ledger,
    whatever device, seed and process: a new count wants a new ``run`` or ``ledger``. A bill may exceed the estimate, and a
    session bills wall-clock time: what a cap then stops is the next job. Before the first job the transpiled circuit is
    simulated here, and must give the logical circuit's answers; IBM's own validators see every job with its angles, in
    rehearsals too.

    **Fractional gates**, ``rx`` and ``rzz``, are used where the device has them (``fractional_gates``). ``rzz`` takes 0 to
    pi / 2: each row's angles are folded into that range. See :mod:`qiskit_torch_bridge.backends.ibm`.

    A real device has never been used in the making of this: it was tested against IBM's own client with a server that
    imitates the service, and on fake devices.

    There are many options, all by name, because each is a decision of its own and most runs take two or three of them: where
    circuits go, how they are transpiled and measured, what they may cost, and where all is written down.

    Args:
        backend: A device's name (``"ibm_fez"``; ``"fake_manila"`` for a rehearsal that costs nothing), the device as an
            object, or a ``Session`` or ``Batch`` of yours.
        account: The name that the account was saved under; None: the default account, or the environment's.
        instance: The instance's name or CRN; None: the account's.
        mode: ``"job"``; ``"batch"``; or ``"session"``, which bills the time between jobs too and which the open plan does
            not have. Sessions and batches that the service closes are opened anew.
        max_time: How long a session or batch may be open, in seconds; None: as the service has it.
        primitive: ``"sampler"``, whose counts give values with their standard errors, probabilities too; or
            ``"estimator"``, which can mitigate errors.
        options: The primitive's options by IBM's names, checked here: ``{"dynamical_decoupling": {"enable": True},
            "twirling": {"enable_gates": True}}``; for an Estimator also ``resilience_level`` (IBM's default is 1, which
            mitigates measurement errors) and ``resilience``; or IBM's own ``SamplerOptions`` or ``EstimatorOptions``.
            Refused are those with which results could not be read or prices not be known: ``execution.init_qubits=False``,
            a ``meas_type`` other than ``"classified"``, private jobs, ``experimental``, PEA, PEC and layer noise models, and
            ``simulator`` options that are set here. No job is made longer than ``max_execution_time``.
        optimization_level: The transpiler's, 0 to 3; None: 2.
        initial_layout: The device's qubits for the circuit's, in order; None: the transpiler's choice.
        seed_transpiler: Makes the transpiler's choices repeatable.
        fractional_gates: True: a device by name is opened with its fractional gates. None: it is not; a device as an object
            is as you have opened it. Where there are some, free rotations of two qubits become ``rzz`` if the estimated
            fidelity is higher then (:mod:`qiskit_torch_bridge.backends.fidelity`) and the options take it. False: they do
            not, whatever the device has.
        pass_manager: A ``PassManager`` of yours in place of the preset one and its three options above. It has no name in
            a ledger; the circuits that it makes have. So a later process finds results again if it makes the same ones.
        max_qpu_seconds: Cap for the time on the quantum processor, billed where that is known, else estimated.
        max_shots: Cap for the shots that are asked for (twirling rounds them up: see ``executions`` of a quote).
        max_jobs: Cap for the jobs.
        ledger: The file, or ``":memory:"``; None: ``qtb-jobs.sqlite`` in the working directory or what the environment
            variable QTB_LEDGER says, and memory for rehearsals. It is made when the first job is about to leave.
        run: A name that tells runs with the same ledger and seed apart.
        shadow: Whether to simulate everything without noise as well, and log what shots and what the device contribute to
            the difference (``layer.last_run.shadow``). ``"noisy"``: and by the device's noise model, as it was when the
            circuits were transpiled, on the qubits that they are sent to; the difference is then split into shot noise,
            modelled noise, and the rest. For circuits of up to some ten qubits of the device
            (:mod:`qiskit_torch_bridge.backends.ibm.modelled_noise` says what the model knows and what it leaves out).
        patience: How long to wait for what.
        limits: What the service takes in one job.
        packing: Whether rows are executed side by side on disjoint regions of the device: ``"auto"`` for as many regions as
            are nearly as good as the best, a number for at most so many, or a :class:`qiskit_torch_bridge.Packing` for the
            details. See :mod:`qiskit_torch_bridge.backends.ibm`.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        TypeError, ValueError: If an argument does not fit; nothing was submitted.
        NotAuthorized, ServiceUnavailable: If there is no way to the service.
    """

    queues = True
    settings_may_change = False
    # Until there is a connection, in each process.
    _device: Device | None = None
    _connected: Sender | None = None
    _circuits_in_use: Sequence[QuantumCircuit] = ()

    def __init__(
        self,
        backend: Any,
        *,
        account: str | None = None,
        instance: str | None = None,
        mode: Literal["job", "batch", "session"] = "job",
        max_time: int | None = None,
        primitive: Literal["sampler", "estimator"] = "sampler",
        options: Any = None,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
        fractional_gates: bool | None = None,
        pass_manager: PassManager | None = None,
        max_qpu_seconds: float | None = None,
        max_shots: int | None = None,
        max_jobs: int | None = None,
        ledger: str | os.PathLike[str] | None = None,
        run: str = "",
        shadow: bool | Literal["noisy"] = False,
        patience: Patience | None = None,
        limits: Limits | None = None,
        packing: int | Literal["auto"] | Packing | None = None,
    ) -> None:
        super().__init__(TranspilerOptions(optimization_level, initial_layout, seed_transpiler, pass_manager))
        self.mode = one_of("mode", mode, ("job", "batch", "session"))
        self.primitive = one_of("primitive", primitive, ("sampler", "estimator"))
        self.run = instance_of("run", run, str, "a name, such as 'monday'")
        self.caps = Caps(max_qpu_seconds, max_shots, max_jobs)
        self.shadow = StatevectorBackend() if _wants_shadow(shadow) else None
        self.patience = Patience() if patience is None else instance_of("patience", patience, Patience, "a Patience")
        named: dict[str, Any] = {"account": account, "instance": instance, "max_time": max_time, "ledger": ledger}
        self._destination = Destination(backend, fractional_gates=fractional_gates, **named)
        self.name = f"ibm:{self._destination.name}"
        checked = checked_options(self.primitive, {} if options is None else options)
        self.options = checked.model_dump(exclude_unset=True)
        self.limits = _limits(limits, checked.max_execution_time)
        self.packing = _packing(packing, self.primitive, shadow)
        self._programs = DevicePrograms(
            self.name,
            self.run,
            primitive=self.primitive,
            options=self.options,
            transpiler=self.transpiler,
            most_two_qubit_gates=self.limits.two_qubit_gates,
            modelled=ModelledNoise.with_options(self._finalized_options) if shadow == "noisy" else None,
            packing=self.packing,
            folds=_folds(fractional_gates, self._finalized_options),
        )

    @property
    def modelled(self) -> ModelledDevice | None:
        return None if self._programs.modelled is None else ModelledDevice(self._model_of)

    @property
    def calibration(self) -> str:
        return self._sender.check_calibration()

    @property
    def ledger(self) -> Ledger:
        """The ledger, whose file is made when it is asked for here, or when the first job is about to leave."""
        return self._sender.ledger

    @property
    def device(self) -> Any:
        """The ``BackendV2`` that circuits are transpiled for."""
        return self.connection.device

    @property
    def spent(self) -> Spent:
        """What the run has come to so far, by the ledger."""
        return self.ledger.spent(self.run) if self._has_ledger else Spent(0, 0, 0.0)

    def resolve_shots(self, shots: int | None) -> int:
        shots = check_shots(shots)
        if shots is not None:
            return shots
        options = self._finalized_options
        if options.default_shots is not None:
            return int(options.default_shots)
        if self.primitive == "sampler":
            raise ValueError("shots: got None, and the option default_shots is None too; give one of them a number.")
        return round(options.default_precision**-2)

    def prepare(self, program: Program) -> None:
        if self.primitive == "estimator" and not isinstance(program.readout, Expectation):
            raise ValueError(
                "primitive: got 'estimator', which gives expectation values only, but probabilities were asked for; use "
                "primitive='sampler', or observables."
            )
        self._ready(program)
        if self.shadow is not None:
            self.shadow.prepare(program)

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        return self._ready(program).transpiled

    @property
    def extrapolates(self) -> bool:
        resilience = getattr(self._finalized_options, "resilience", None)
        return resilience is not None and bool(resilience.zne_mitigation)

    @property
    def twirls_readout(self) -> bool:
        return self._finalized_options.twirling.enable_measure is True

    def gives_outcomes(self, program: Program) -> bool:
        return self.primitive == "sampler"

    def circuits_per_row(self, program: Program) -> int:
        return len(program.readout.groups)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        return self.evaluate_all([Request(program, angles, seed)], shots=shots)[0]

    def evaluate_all(self, requests: Sequence[Request], *, shots: int | None) -> list[Estimate]:
        whole = self._workload(requests, self.resolve_shots(None) if shots is None else shots, self._tested)
        workload, kept = whole, {}
        if any(measurement.program.calibrates for measurement in whole.measurements):
            kept = kept_evaluations(whole, self.ledger)
            workload = replace(whole, measurements=[each for each in whole.measurements if each not in kept])
        self._circuits_in_use = [each.executed for m in workload.measurements for each in m.circuits]
        self.connection.check(self._circuits_in_use)
        for task in workload.tasks:
            self.connection.check_angles(self.primitive, task.pubs())
        for evaluation in workload.evaluations():
            self.ledger.note_evaluation(*evaluation)
        results, numbers = self._sender.results(workload.tasks) if workload.tasks else ([], [])
        estimates = workload.estimates(results, [self.ledger.entry(number) for number in numbers])
        measured = {**kept, **dict(zip(workload.measurements, estimates, strict=True))}
        return [measured[each] for each in whole.measurements]

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        seed = np.random.SeedSequence(0)
        requests = [Request(program, np.broadcast_to(0.0, (rows, len(program.angles))), seed) for program, rows in work]
        return self._workload(requests, self.resolve_shots(shots), self._ready).charge()

    def note_shadow(self, shadow: Shadow) -> None:
        summary = shadow.summary()
        for what, numbers in summary.items():
            _log.info(
                "%s of %s: differ from the exact ones by %.3g (rms); %s",
                *(what, self.name, numbers["rms"]),
                ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items() if name != "rms"),
            )
        details: dict[str, Any] = {name: part.numbers() for name, part in shadow.parts.items()}
        message = "beside the exact simulation"
        if (modelled := self._programs.modelled) is not None:
            message += " and the noise model"
            details["left_out"] = modelled.left_out
        self.ledger.note(self.run, "shadow", message, summary=summary, **details)

    def self_test(self, program: Program) -> str:
        """Simulates the transpiled circuits here, and compares them with the logical ones; costs nothing.

        Returns:
            What was found, in words.

        Raises:
            ValueError: If they do not agree.
        """
        return self._programs.self_test(program, self._ready(program))

    def collect(self, number: int) -> None:
        """Fetches the result of a job of the ledger into it, waiting for it if need be."""
        self._sender.collect(number)

    def cancel(self, number: int) -> None:
        """Cancels a job of the ledger that has not ended; one that has is given up by :meth:`forget`."""
        self._sender.cancel(number)

    def forget(self, number: int) -> None:
        """Gives up a job of the ledger whose result is of no use, although it was paid for: a warning is logged.

        For a job whose result the service does not hand over whole, or that is damaged in the ledger. The same run then
        sends it anew, and pays for it again; caps count both.

        Raises:
            HardwareError: If it has not ended (cancel it then), or has ended without a result (it is sent anew anyway).
        """
        self._sender.forget(number)

    def settle_bills(self) -> None:
        """Asks the service for the usage of jobs that it had not settled when their results were fetched."""
        if self._has_ledger:
            self._sender.settle_bills()

    def close(self) -> None:
        """Closes a session or batch of ours, whose time is billed while it is open, and the ledger's file."""
        if self._connected is not None:
            _close(self._connected, self.mode)

    def __enter__(self) -> IBMBackend:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"IBMBackend({self._destination.name!r}, mode={self.mode!r}, primitive={self.primitive!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in self.__dict__.items() if name not in _STAYS_HERE},
            "_destination": self._destination.without_objects(),
            "mode": self._destination.kind_of_session or self.mode,
        }

    @property
    def connection(self) -> Device:
        """The device's side of the connection, made on first use."""
        if self._device is None:
            device = self._destination.open(mode=self.mode, run=self.run)
            delay = self._finalized_options.execution.rep_delay
            least, most = getattr(device.device, "rep_delay_range", None) or (0.0, math.inf)
            if delay is not None and not least <= delay <= most:
                raise ValueError(
                    f"options: got execution.rep_delay = {delay:g} s, but {device.name} takes {least:g} to {most:g} s."
                )
            self._device = device
        return self._device

    @property
    def _sender(self) -> Sender:
        if self._connected is None:
            self._connected = Sender(
                self.connection,  # before the ledger: without a device there is nothing to write down
                Ledger(self._destination.path),
                primitive=self.primitive,
                options=self.options,
                run=self.run,
                mode=self.mode,
                caps=self.caps,
                patience=self.patience,
                recalibrated=_weakly(self._fit_circuits_again),
            )
            weakref.finalize(self, _close, self._connected, self.mode)
        return self._connected

    @property
    def _has_ledger(self) -> bool:
        """Whether there is a ledger to look into; its file is made when there is something to write down."""
        return self._connected is not None or ((path := self._destination.path) is not None and path.exists())

    def _fit_circuits_again(self) -> None:
        """After a calibration: whether the circuits still fit the device.

        Raises:
            HardwareError: If they do not; from now on they are transpiled anew.
        """
        self.connection.refresh()
        self._programs.forget_noise()
        try:
            self.connection.check(self._circuits_in_use)
        except ValueError as error:
            self._programs.forget()
            raise HardwareError(
                f"{self.name} was calibrated anew, and does not take the circuits any more ({error}). Nothing was "
                "submitted, and everything before is kept; run the same again: they are transpiled anew."
            ) from None

    def _ready(self, program: Program) -> DeviceProgram:
        """The program in the device's gates; nothing is written down."""
        return self._programs.ready(program, self.connection, self.ledger if self._has_ledger else None)

    def _model_of(self, program: Program) -> SentCircuits:
        model = self._ready(program).model
        assert model is not None
        return model

    def _tested(self, program: Program) -> DeviceProgram:
        """The same, tested and in the ledger; so is what it is a variant of, whose qubits it keeps in any process."""
        if program.base is not None:
            self._tested(program.base)
        while (tested := self._programs.tested.get(program)) is None:
            self._programs.test(program, self._ready(program), lambda: self.ledger)
        return tested

    def _workload(
        self, requests: Sequence[Request], shots: int, prepared: Callable[[Program], DeviceProgram]
    ) -> Workload:
        measurements = [Measurement(request, prepared(request.program), shots) for request in requests]
        settled = self._settled_for(shots)
        if self.packing is None:
            return replace(settled, measurements=measurements)
        pieces = self._pieces(measurements, shots)
        # Variants of a program at the same angles: each row has all of them in one region, whose bias they share.
        seeds: dict[int, np.random.SeedSequence] = {}
        turned_by = [seeds.setdefault(id(request.angles), request.seed) for request in requests]
        measurements = [
            replace(measurement, pieces=pieces, turned_by=seed)
            for measurement, seed in zip(measurements, turned_by, strict=True)
        ]
        return replace(settled, measurements=measurements, price=self._price(-(-shots // pieces)), pieces=pieces)

    def _pieces(self, measurements: Sequence[Measurement], shots: int) -> int:
        """In how many pieces each row's shots are taken; an Estimator's mitigation and errors are those of whole rows."""
        if self.primitive == "estimator" or self.packing is None:
            return 1
        circuits = [
            (len(measurement.request.angles), len(circuit.layouts), circuit.bases)
            for measurement in measurements
            for circuit in measurement.circuits
        ]
        return pieces_of_rows(circuits, shots, lambda shots: self._price(shots).executions, rotate=self.packing.rotate)

    def _price(self, shots: int) -> Price:
        return price_of(self._finalized_options, shots, rep_delay=self.connection.rep_delay)

    def _settled_for(self, shots: int) -> Workload:
        """A workload of nothing, whose settings are those of all others with so many shots."""
        if shots not in self._settled:
            self._settled[shots] = Workload(
                measurements=(),
                shots=shots,
                price=self._price(shots),
                limits=self.limits,
                extrapolates=self.extrapolates,
                run=self.run,
                passport=Passport(
                    backend=self.connection.name,
                    layouts=(),
                    optimization_level=self.optimization_level,
                    seed_transpiler=self.seed_transpiler,
                    primitive=self.primitive,
                    options=self.options,
                    shots=shots,
                    versions=_versions(),
                    **said_by_jobs(()),
                ),
            )
        return self._settled[shots]

    @cached_property
    def _settled(self) -> dict[int, Workload]:
        """For each number of shots a workload of nothing, whose settings are those of all others."""
        return {}

    @cached_property
    def _finalized_options(self) -> Any:
        return finalized_options(self.primitive, self.options)


def _wants_shadow(shadow: Any) -> bool:
    if not isinstance(shadow, bool) and shadow != "noisy":
        raise ValueError(f"shadow: got {shadow!r}, expected True, False or 'noisy'.")
    return bool(shadow)


def _packing(packing: Any, primitive: str, shadow: Any) -> Packing | None:
    checked = packing_from(packing)
    if checked is not None and shadow == "noisy":
        raise ValueError(
            "packing: got one together with shadow='noisy', whose model is that of a single region; leave one of them out, "
            "or use shadow=True."
        )
    if checked is not None and checked.rotate == "shots" and primitive == "estimator":
        raise ValueError(
            "packing: got rotate='shots' with primitive='estimator', which mitigates and estimates errors row by row; use "
            "rotate='steps', or a sampler."
        )
    return checked


def _folds(fractional_gates: Any, options: Any) -> bool:
    """Whether free rotations of two qubits may become ``rzz``, with a primitive's finalized options."""
    instance_of("fractional_gates", fractional_gates, (bool, type(None)), "True, False or None")
    if (reason := why_no_free_rzz(options)) is None:
        return fractional_gates is not False
    if fractional_gates:
        raise ValueError(f"fractional_gates: got True, but {reason}; change the option, or leave fractional_gates out.")
    return False


def _limits(limits: Any, max_execution_time: int | None) -> Limits:
    checked: Limits = Limits() if limits is None else instance_of("limits", limits, Limits, "Limits")
    if max_execution_time is None:
        return checked
    # A job that would take longer would be cut off, and paid for.
    return replace(checked, qpu_seconds=min(checked.qpu_seconds, max_execution_time))


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    # A checkout that is only on the path has no metadata; and to import the version here would be a cycle.
    bridge = import_module(__name__.partition(".")[0]).__version__
    packages = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **packages, "qiskit-torch-bridge": bridge}


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """The method, without keeping its object alive: a backend that is let go of closes its session."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


def _close(sender: Sender, mode: str) -> None:
    try:
        closed = sender.device.close()
    except ServiceFault as fault:
        _log.warning("The %s could not be closed (%s); it ends by itself when it idles.", mode, fault)
    else:
        if closed is not None:
            sender.ledger.session_closed(closed)
    sender.ledger.close()
