"""``IBMBackend``: a layer's circuits on IBM's devices, one job a training step."""

from __future__ import annotations

import logging
import math
import os
import platform
import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import cached_property, lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...arguments import instance_of, number_from, one_of
from ...program.compiled import Program
from ...program.readout import Expectation
from ...shots.shadow import Shadow
from ..base import Backend, Charge, Estimate, ProgramCache, Request, check_shots
from ..passport import Passport
from ..statevector import StatevectorBackend
from ..transpiling import check_transpiler_options
from .archives import bytes_of
from .assembling import asked_by, estimate_from_arrays, parts_of, pubs_of
from .compiling import Unit, circuits_for, from_qpy, to_qpy, units_of
from .device import Device
from .errors import HardwareError
from .faults import ServiceFault
from .fingerprints import digest, fingerprint, seed_of
from .ledger import Caps, Entry, Job, Ledger, Spent
from .prices import Price, price_of
from .primitive_options import checked_options, finalized_options
from .selftest import test_layout
from .sending import Patience, Sender, Task, explained
from .service import is_real, open_device
from .work import Limits, Piece, Stretch, packed

__all__ = ["DEFAULT_LEDGER", "IBMBackend"]

_log = logging.getLogger(__name__)

DEFAULT_LEDGER = "qtb-jobs.sqlite"
_IN_MEMORY = ":memory:"
_PACKAGES = ("qiskit", "qiskit-ibm-runtime", "torch", "numpy")


class IBMBackend(Backend):
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

    **Fractional gates** (a device from ``service.backend(name, use_fractional_gates=True)``): ``rx`` is used for any angle,
    ``rzz``, which takes 0 to pi / 2, for constant ones only. Free angles of two qubits go through the device's other gates,
    because no gradient's shifts would stay in that range.

    A real device has never been used in the making of this: it was tested against IBM's own client with a server that
    imitates the service, and on fake devices.

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
        max_qpu_seconds: Cap for the time on the quantum processor, billed where that is known, else estimated.
        max_shots: Cap for the shots that are asked for (twirling rounds them up: see ``executions`` of a quote).
        max_jobs: Cap for the jobs.
        ledger: The file, or ``":memory:"``; None: ``qtb-jobs.sqlite`` in the working directory or what the environment
            variable QTB_LEDGER says, and memory for rehearsals. It is made when the first job is about to leave.
        run: A name that tells runs with the same ledger and seed apart.
        shadow: Whether to simulate everything without noise as well, and log what shots and what the device contribute to
            the difference (``layer.last_run.shadow``).
        patience: How long to wait for what.
        limits: What the service takes in one job.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        TypeError, ValueError: If an argument does not fit; nothing was submitted.
        NotAuthorized, ServiceUnavailable: If there is no way to the service.
    """

    queues = True

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
        optimization_level: int | None = 2,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
        max_qpu_seconds: float | None = None,
        max_shots: int | None = None,
        max_jobs: int | None = None,
        ledger: str | os.PathLike[str] | None = None,
        run: str = "",
        shadow: bool = False,
        patience: Patience | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.mode = one_of("mode", mode, ("job", "batch", "session"))
        self.primitive = one_of("primitive", primitive, ("sampler", "estimator"))
        self.run = instance_of("run", run, str, "a name, such as 'monday'")
        for name, text in {"account": account, "instance": instance}.items():
            instance_of(name, text, (str, type(None)), "a name, or None for the default")
        if max_time is not None:
            max_time = number_from(
                "max_time", max_time, least=1, whole=True, also=" (seconds), or None for the service's"
            )
        level, self.initial_layout, self.seed_transpiler = check_transpiler_options(
            optimization_level=optimization_level, initial_layout=initial_layout, seed_transpiler=seed_transpiler
        )
        self.optimization_level = 2 if level is None else level
        self.caps = Caps(
            _cap("max_qpu_seconds", max_qpu_seconds),
            _cap("max_shots", max_shots, whole=True),
            _cap("max_jobs", max_jobs, whole=True),
        )
        self._ledger_path = _ledger_path(ledger)
        self.shadow = StatevectorBackend() if instance_of("shadow", shadow, bool, "True or False") else None
        self.patience = Patience() if patience is None else instance_of("patience", patience, Patience, "a Patience")
        self.limits = Limits() if limits is None else instance_of("limits", limits, Limits, "Limits")
        self._given = _Given(backend, account, instance, max_time)
        self.name = f"ibm:{self._given.name}"
        given = checked_options(self.primitive, {} if options is None else options)
        self.options = given.model_dump(exclude_unset=True)
        if given.max_execution_time is not None:  # a job that would take longer would be cut off, and paid for
            self.limits = replace(self.limits, qpu_seconds=min(self.limits.qpu_seconds, given.max_execution_time))
        self._cache = ProgramCache()
        self._connection: Device | None = None
        self._connected: Sender | None = None
        self._tested: set[str] = set()
        self._unkept: dict[str, bytes] = {}  # transpiled circuits that are not in the ledger yet
        self._units_in_use: list[Unit] = []

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
        self._units(program)
        if self.shadow is not None:
            self.shadow.prepare(program)

    def circuits_per_row(self, program: Program) -> int:
        return len(program.readout.groups)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        return self.evaluate_all([Request(program, angles, seed)], shots=shots)[0]

    def evaluate_all(self, requests: Sequence[Request], *, shots: int | None) -> list[Estimate]:
        shots = self.resolve_shots(shots)
        price = self._price(shots)
        for request in requests:
            self._test(request.program)
        units = [self._units(request.program) for request in requests]
        self.connection.check([unit.bound.circuit for its_units in units for unit in its_units])
        keys = [self._key_of(request, shots) for request in requests]
        jobs = self._pack([(its_units, len(r.angles)) for its_units, r in zip(units, requests, strict=True)], price)
        tasks = [self._task(pieces, requests, units, keys, shots, price) for pieces in jobs]
        for task in tasks:
            self.connection.check_angles(self.primitive, task.pubs())
        for number, (request, key) in enumerate(zip(requests, keys, strict=True)):
            parts = parts_of(number, jobs, tasks, units)
            self._note_evaluation(request, key, shots, parts)
        self._units_in_use = [unit for its_units in units for unit in its_units]
        results, numbers = self._sender.results(tasks) if tasks else ([], [])
        entries = [self.ledger.entry(number) for number in numbers]
        estimates = []
        for number, (request, its_units) in enumerate(zip(requests, units, strict=True)):
            where = parts_of(number, jobs, range(len(jobs)), units)
            pubs = [[results[job][place] for job, place in part] for part in where]
            outputs = [unit.outputs for unit in its_units]
            passport = self._passport(its_units, shots, entries)
            estimates.append(estimate_from_arrays(request.program, len(request.angles), pubs, outputs, shots, passport))
        return estimates

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        price = self._price(self.resolve_shots(shots))
        wanted = [(self._units(program), rows) for program, rows in work]
        jobs = self._pack(wanted, price)
        costs = [self._cost_of(pieces, [units for units, _ in wanted], price) for pieces in jobs]
        return Charge(len(jobs), sum(executions for executions, _ in costs), sum(seconds for _, seconds in costs))

    def note_shadow(self, shadow: Shadow) -> None:
        summary = shadow.summary()
        for what, numbers in summary.items():
            _log.info(
                "%s of %s: differ from the exact ones by %.3g (rms); shot noise %.3g, device bias %.3g",
                *(what, self.name, numbers["rms"], numbers["shot_noise"], numbers["device_bias"]),
            )
        details = {
            name: {"measured": part.measured.tolist(), "exact": part.exact.tolist()}
            for name, part in {"values": shadow.values, "gradients": shadow.gradients}.items()
            if part is not None
        }
        self.ledger.note(self.run, "shadow", "beside the exact simulation", summary=summary, **details)

    def self_test(self, program: Program) -> str:
        """Simulates the transpiled circuits here, and compares them with the logical ones; costs nothing.

        Returns:
            What was found, in words.

        Raises:
            ValueError: If they do not agree.
        """
        return test_layout(program, self._units(program))

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
        return f"IBMBackend({self._given.name!r}, mode={self.mode!r}, primitive={self.primitive!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A device object knows the service, and the service a token: only names leave this process.
        state = {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_connection", "_connected", "_finalized_options")
        }
        mode = self._given.kind_of_session or self.mode
        kept = {"_given": self._given.without_objects(), "mode": mode}
        return {
            **state,
            **kept,
            "_connection": None,
            "_connected": None,
            "_tested": set(),
            "_units_in_use": [],
        }

    @property
    def connection(self) -> Device:
        """The device's side of the connection, made on first use."""
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    @property
    def _sender(self) -> Sender:
        if self._connected is None:
            self._connected = Sender(
                self.connection,  # before the ledger: without a device there is nothing to write down
                Ledger(self._path),
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
    def _path(self) -> Path | None:
        """The ledger's file; None for memory."""
        if self._ledger_path is None and not self._given.is_rehearsal:
            return _ledger_path(os.environ.get("QTB_LEDGER", DEFAULT_LEDGER), "QTB_LEDGER")
        return None if self._ledger_path == _IN_MEMORY else self._ledger_path

    @property
    def _has_ledger(self) -> bool:
        """Whether there is a ledger to look into; its file is made when there is something to write down."""
        return self._connected is not None or ((path := self._path) is not None and path.exists())

    def _connect(self) -> Device:
        given = self._given
        left_open = None
        if self._has_ledger:
            ledger = Ledger(self._path)
            left_open = ledger.open_session(self.run, given.name, self.mode)
            ledger.close()
        try:
            device = open_device(
                given.backend,
                account=given.account,
                instance=given.instance,
                mode=self.mode,
                max_time=given.max_time,
                session_id=left_open,
            )
        except ServiceFault as fault:
            raise explained(fault, f"connect with {given.name}", f"Ledger({str(self._path)!r})") from None
        self._require_delay_of(device)
        return device

    def _require_delay_of(self, device: Device) -> None:
        delay = self._finalized_options.execution.rep_delay
        least, most = getattr(device.device, "rep_delay_range", None) or (0.0, math.inf)
        if delay is not None and not least <= delay <= most:
            raise ValueError(
                f"options: got execution.rep_delay = {delay:g} s, but {device.name} takes {least:g} to {most:g} s."
            )

    def _fit_circuits_again(self) -> None:
        """After a calibration: whether the circuits still fit the device.

        Raises:
            HardwareError: If they do not; from now on they are transpiled anew.
        """
        self.connection.refresh()
        try:
            self.connection.check([unit.bound.circuit for unit in self._units_in_use])
        except ValueError as error:
            self._cache, self._tested = ProgramCache(), set()
            raise HardwareError(
                f"{self.name} was calibrated anew, and does not take the circuits any more ({error}). Nothing was "
                "submitted, and everything before is kept; run the same again: they are transpiled anew."
            ) from None

    def _units(self, program: Program) -> list[Unit]:
        cached = self._cache.of(program)
        if "units" not in cached:
            circuits = self._transpiled(program)
            its_units = units_of(circuits, program, self.device, self.initial_layout, self.primitive)
            self._check_preparation(program, its_units)
            cached["units"] = its_units
        units: list[Unit] = cached["units"]
        return units

    def _check_preparation(self, program: Program, units: Sequence[Unit]) -> None:
        once = Request(program, np.zeros((1, len(program.angles))), np.random.SeedSequence(0))
        pieces = [Piece(0, number, 0, 1) for number in range(len(units))]
        if pieces:
            self.connection.check_preparation(self.primitive, pubs_of(pieces, [once], [units])(), self.options)

    def _transpiled(self, program: Program) -> list[Any]:
        """Circuits that an earlier process has left, while they fit the device: a run that goes on does not change."""
        if not program.readout.groups:
            return []
        key = self._key_of_circuits(program)
        kept = self._unkept.get(key)
        if kept is None and self._has_ledger:
            kept = self.ledger.circuits(key)
        if kept is not None:
            try:
                circuits = from_qpy(kept, program)
                self.connection.check(circuits)
            except HardwareError:
                raise
            except Exception as error:  # damaged bytes, or those of a newer Qiskit, raise anything
                changed = isinstance(error, ValueError)
                why = "the device has changed" if changed else "the transpiled circuits in the ledger cannot be read"
                _log.warning("Transpiling anew, because %s: %s", why, error)
                self.ledger.note(self.run, "transpiled-anew", f"{why}: {error}")
                self.ledger.forget_circuits(key)
                self._unkept.pop(key, None)
            else:
                return circuits
        circuits = circuits_for(
            program,
            self.device,
            self.primitive,
            optimization_level=self.optimization_level,
            initial_layout=self.initial_layout,
            seed_transpiler=self.seed_transpiler,
        )
        self.connection.check(circuits)
        self._require_within_gates(circuits)
        self._unkept[key] = to_qpy(circuits)
        return from_qpy(self._unkept[key], program)

    def _key_of_circuits(self, program: Program) -> str:
        return digest(self.run, *self._circumstances, self._fingerprint(program))

    def _keep_circuits(self, program: Program) -> bool:
        """Writes transpiled circuits down for later processes; returns whether another process's were there before.

        Those are used then, so that a run is the same in all of its processes.
        """
        key = self._key_of_circuits(program)
        mine = self._unkept.pop(key, None)
        if mine is None or self.ledger.keep_circuits(key, mine) == mine:
            return False
        self._cache = ProgramCache()
        return True

    def _require_within_gates(self, circuits: Sequence[Any]) -> None:
        most = max((circuit.num_nonlocal_gates() for circuit in circuits), default=0)
        if most > self.limits.two_qubit_gates:
            raise ValueError(
                f"The transpiled circuit has {most:,} two-qubit gates, expected at most {self.limits.two_qubit_gates:,}: "
                "the service takes no more."
            )

    @property
    def _circumstances(self) -> tuple[Any, ...]:
        """All that a result depends on besides the evaluation itself."""
        # A job that may take longer, or logs more, measures the same.
        without = ("environment", "max_execution_time")
        options = {name: value for name, value in self.options.items() if name not in without}
        transpiling = (self.optimization_level, self.initial_layout, self.seed_transpiler)
        return self.connection.identity, self.primitive, *transpiling, options

    def _fingerprint(self, program: Program) -> str:
        cached = self._cache.of(program)
        if "fingerprint" not in cached:
            cached["fingerprint"] = fingerprint(program)
        name: str = cached["fingerprint"]
        return name

    def _test(self, program: Program) -> None:
        name = self._fingerprint(program)
        if name in self._tested:
            return
        found = test_layout(program, self._units(program))
        if self._keep_circuits(program):
            self._test(program)
            return
        _log.info("%s: %s", self.name, found)
        self.ledger.note(self.run, "self-test", found, circuit=name)
        self._tested.add(name)

    def _key_of(self, request: Request, shots: int) -> str:
        asked = (self._fingerprint(request.program), shots, request.angles, seed_of(request))
        return digest(self.run, *self._circumstances, *asked)

    def _price(self, shots: int) -> Price:
        return price_of(self._finalized_options, shots, rep_delay=self.connection.rep_delay)

    @cached_property
    def _finalized_options(self) -> Any:
        return finalized_options(self.primitive, self.options)

    def _pack(self, work: Sequence[tuple[Sequence[Unit], int]], price: Price) -> list[list[Piece]]:
        stretches = [
            Stretch(
                number,
                place,
                rows,
                unit.bases * price.executions,
                price.seconds(unit.bases * price.executions, unit.duration),
                8 * len(unit.bound.parameters),
            )
            for number, (units, rows) in enumerate(work)
            for place, unit in enumerate(units)
        ]
        return packed(
            stretches,
            self.limits,
            executions_of_job=price.executions_of_job,
            seconds_of_job=price.seconds_of_job,
        )

    def _cost_of(self, pieces: Sequence[Piece], units: Sequence[Sequence[Unit]], price: Price) -> tuple[int, float]:
        """Executions, and seconds on the quantum processor, of a job."""
        executions, seconds = price.executions_of_job, price.seconds_of_job
        for piece in pieces:
            unit = units[piece.request][piece.unit]
            its_executions = (piece.stop - piece.start) * unit.bases * price.executions
            executions += its_executions
            seconds += price.seconds(its_executions, unit.duration)
        return executions, seconds

    def _task(
        self,
        pieces: Sequence[Piece],
        requests: Sequence[Request],
        units: Sequence[Sequence[Unit]],
        keys: Sequence[str],
        shots: int,
        price: Price,
    ) -> Task:
        content = [(keys[piece.request], piece.unit, piece.start, piece.stop) for piece in pieces]
        key = digest(content)
        circuits = sum((piece.stop - piece.start) * units[piece.request][piece.unit].bases for piece in pieces)
        executions, seconds = self._cost_of(pieces, units, price)
        job = Job(key, circuits, circuits * shots, executions, estimated_seconds=seconds)
        resilience = getattr(self._finalized_options, "resilience", None)
        asked = asked_by(
            pieces, units, shots=price.executions, extrapolates=resilience is not None and resilience.zne_mitigation
        )
        return Task(job, pubs_of(pieces, requests, units), shots, seed=int(key[:8], 16) >> 1, asked=asked)

    def _note_evaluation(
        self, request: Request, key: str, shots: int, parts: Sequence[Sequence[tuple[Task, int]]]
    ) -> None:
        description = {
            "fingerprint": self._fingerprint(request.program),
            "run": self.run,
            "primitive": self.primitive,
            "shots": shots,
            "seed": seed_of(request),
            "parts": [[(task.job.key, place) for task, place in part] for part in parts],
            "asked": [[astuple(task.asked[place]) for task, place in part if task.asked] for part in parts],
            "outputs": [unit.outputs for unit in self._units(request.program)],
            "passport": self._passport(self._units(request.program), shots, []).as_dict(),
        }
        self.ledger.note_evaluation(key, self.run, description, bytes_of([[request.angles]]))

    def _passport(self, units: Sequence[Unit], shots: int, entries: Sequence[Entry]) -> Passport:
        usage = [entry.usage_seconds for entry in entries if entry.usage_seconds is not None]
        return Passport(
            backend=self.connection.name,
            calibrated=tuple(entry.calibrated for entry in entries),
            layouts=tuple(unit.layout for unit in units),
            optimization_level=self.optimization_level,
            seed_transpiler=self.seed_transpiler,
            primitive=self.primitive,
            options=self.options,
            shots=shots,
            job_ids=tuple(entry.job_id for entry in entries if entry.job_id),
            sessions=tuple(dict.fromkeys(entry.session_id for entry in entries if entry.session_id)),
            usage_seconds=sum(usage) if usage else None,
            estimated_seconds=sum(entry.estimated_seconds for entry in entries),
            versions=_versions(),
        )


class _Given:
    """What the user named, and what of it can leave the process."""

    def __init__(self, backend: Any, account: str | None, instance: str | None, max_time: int | None) -> None:
        self.backend, self.account, self.instance, self.max_time = backend, account, instance, max_time
        if isinstance(backend, str):
            kind, _, meant = backend.rpartition(":")
            if kind or not meant:  # a word for backend=, not a device's name
                guess = f"; did you mean {'fake_' * (kind == 'fake') + meant!r}?" if meant else "."
                raise ValueError(f"backend: got {backend!r}, expected a device's name, such as 'ibm_fez'{guess}")
            self.name = backend
        else:
            device = getattr(backend, "_backend", None) if not hasattr(backend, "target") else backend
            name = getattr(device, "name", None)
            if not isinstance(name, str):
                raise TypeError(
                    f"backend: got {backend!r} ({type(backend).__name__}), expected a device's name, a BackendV2, a Session "
                    "or a Batch."
                )
            self.name = name

    @property
    def is_rehearsal(self) -> bool:
        """Whether the device is a simulated one, in this process."""
        if isinstance(self.backend, str):
            return self.backend.startswith("fake_")
        return not is_real(self.backend)

    @property
    def kind_of_session(self) -> str | None:
        """``"session"`` or ``"batch"``, where the user gave one."""
        name = type(self.backend).__name__.lower()
        return name if name in ("session", "batch") else None

    def without_objects(self) -> _Given:
        if isinstance(self.backend, str) or self.is_rehearsal:
            return self
        return _Given(self.name, self.account, self.instance, self.max_time)


def _cap(name: str, cap: Any, *, whole: bool = False) -> Any:
    return None if cap is None else number_from(name, cap, whole=whole, also=", or None for no cap")


def _ledger_path(ledger: Any, name: str = "ledger") -> Any:
    """The ledger's file as a path; None and the word for memory as they are.

    Raises:
        TypeError, ValueError: If there can be no such file.
    """
    if ledger is None or ledger == _IN_MEMORY:
        return ledger
    path = Path(instance_of(name, ledger, (str, os.PathLike), f"a file's path, {_IN_MEMORY!r}, or None"))
    if path.is_dir():
        raise ValueError(
            f"{name}: got {str(ledger)!r}, which is a folder; give a file in it, such as {DEFAULT_LEDGER!r}."
        )
    if not path.parent.is_dir():
        raise ValueError(f"{name}: got {str(ledger)!r}, expected a file in a folder that exists; make it first.")
    return path


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


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    # A checkout that is only on the path has no metadata; and to import the version here would be a cycle.
    bridge = import_module(__name__.partition(".")[0]).__version__
    packages = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **packages, "qiskit-torch-bridge": bridge}
