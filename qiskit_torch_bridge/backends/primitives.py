"""Any V2 Sampler or Estimator: Qiskit's reference ones, Aer's, a backend's, or a vendor's."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, ClassVar

import numpy as np
from qiskit import QuantumCircuit
from qiskit.primitives import (
    BackendEstimatorV2,
    BackendSamplerV2,
    BaseEstimatorV2,
    BaseSamplerV2,
    StatevectorEstimator,
    StatevectorSampler,
)
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import PassManager

from ..program.compiled import Program
from ..program.readout import Expectation
from ..shots.covariance import Covariance
from .base import Estimate, check_shots, circuit_on, measured_circuit
from .results import Arrays, Asked, BoundCircuit, WrongResult, arrays_from, estimate_from_samples, pubs_of, samples_of
from .selftest import require_same_answers
from .simulated import (
    check_method,
    cost_of_density_matrix,
    gates_to_keep,
    has_gate_errors,
    has_noise_of_its_own,
    ignored_noise,
    is_from,
    leaves_out_idle_qubits,
    noise_model_of,
    require_noise,
    require_separate_gates,
    slow_trajectories,
    touched_qubits,
    truncation,
)
from .transpiling import (
    TranspilerOptions,
    TranspilingBackend,
    bind_for_device,
    gates_of_ibms_estimator,
    observables_on,
    transpiled,
    varied,
)

__all__ = ["EstimatorBackend", "SamplerBackend"]


def _device_of(primitive: Any) -> Any:
    """The device behind a primitive, if it has one to transpile for."""
    device = getattr(primitive, "backend", None)
    device = device() if callable(device) else device
    device = device if device is not None else getattr(primitive, "_backend", None)
    return device if getattr(device, "target", None) is not None else None


def _option(primitive: Any, *names: str) -> Any:
    """The first of the primitive's attributes or options that is set, or None."""
    for holder in (primitive, getattr(primitive, "options", None)):
        for name in names:
            value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value
    return None


def _reseeded(primitive: Any, seed: np.random.SeedSequence) -> Any:
    """The primitive with fresh randomness for one call, for those of Qiskit and Aer; others as they are.

    Given an integer seed, Qiskit's reference primitives and Aer's repeat the same noise at every call, or even for every
    parameter set; that is no shot noise.
    """
    number = int(seed.generate_state(1, np.uint32)[0] >> 1)
    fresh = copy.copy(primitive)
    if isinstance(primitive, (StatevectorSampler, StatevectorEstimator)):
        fresh._seed = np.random.default_rng(seed)
    elif isinstance(primitive, (BackendSamplerV2, BackendEstimatorV2)):
        fresh._options = replace(primitive.options, seed_simulator=number)
    elif is_from("qiskit_aer", primitive) and isinstance(primitive, BaseSamplerV2):
        fresh._seed = number
    elif is_from("qiskit_aer", primitive):
        run_options = {**(primitive.options.run_options or {}), "seed_simulator": number}
        if has_gate_errors(noise_model_of(primitive._backend, run_options)):
            # Left to itself, it may average over random runs, and not say their error.
            run_options["method"] = "density_matrix"
        fresh._options = replace(primitive.options, run_options=run_options)
    else:
        return primitive
    return fresh


def _run_options(primitive: Any) -> dict[str, Any]:
    """What the primitive of Qiskit's, Aer's or IBM's tells its simulator at every run."""
    options = getattr(primitive, "options", None)
    run_options = getattr(options, "run_options", None)
    noise = getattr(getattr(options, "simulator", None), "noise_model", None)
    told = {"noise_model": noise} if hasattr(noise, "noise_instructions") else {}
    return {**told, **run_options} if isinstance(run_options, dict) else told


def _is_aers_estimator(primitive: Any) -> bool:
    return isinstance(primitive, BaseEstimatorV2) and is_from("qiskit_aer", primitive)


def _rounds_shots_up(sampler: Any) -> bool:
    """Whether a Sampler spreads its shots over randomised circuits, the same number for each."""
    twirling = getattr(getattr(sampler, "options", None), "twirling", None)
    return any(getattr(twirling, name, False) is True for name in ("enable_gates", "enable_measure"))


def _extrapolates(estimator: Any) -> bool:
    """Whether an Estimator may fit its values, after which a standard error can be infinite."""
    return getattr(getattr(estimator, "options", None), "resilience", None) is not None


def _checked(name: str, result: Any, asked: Sequence[Asked]) -> Arrays:
    """The arrays of what a primitive has returned.

    Raises:
        WrongResult: If that is not what was asked for.
    """
    try:
        return arrays_from(result, asked)
    except WrongResult as error:
        raise WrongResult(
            f"{name} did not return what it was asked for: {error} No value was made of it; call again, or use "
            "another primitive."
        ) from None


class _PrimitiveBackend(TranspilingBackend):
    """What Samplers and Estimators share.

    Args:
        primitive: The V2 primitive.
        device: The device to transpile for. None: the one that the primitive has, if any.
        optimization_level: The transpiler's, 0 to 3. None: 0 on an Aer simulator with a noise model that no device brought
            along, so that the gates stay as they are with their noise, else 2.
        initial_layout: The device's qubits for the circuit's, in order; None: the transpiler's choice.
        seed_transpiler: Makes the transpiler's choices repeatable.
        pass_manager: A ``PassManager`` of yours in place of the preset one and its three options above. What it makes is
            checked: gates, connections, noise, measurements and, for up to 20 qubits, the circuit's exact values.
    """

    _base: ClassVar[type]

    def __init__(
        self,
        primitive: Any,
        *,
        device: Any = None,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
        pass_manager: PassManager | None = None,
    ) -> None:
        if not isinstance(primitive, self._base):
            kind = self._base.__name__.removeprefix("Base").removesuffix("V2")
            raise TypeError(f"primitive: got {type(primitive).__name__}, expected a V2 {kind}.")
        super().__init__(TranspilerOptions(optimization_level, initial_layout, seed_transpiler, pass_manager))
        self.primitive = primitive
        # Where it runs, as far as it says; the device to transpile for may be another.
        self._runner = _device_of(primitive)
        check_method(self._runner)
        self.device = self._runner if device is None else device
        self.name = type(primitive).__name__
        if self.device is None and pass_manager is not None:
            raise ValueError(
                f"pass_manager: got one for {self.name}, which has no device to transpile for; name one by device=."
            )

    @property
    def _default_level(self) -> int:
        return 0 if has_noise_of_its_own(self._runner, self._noise) else 2

    @property
    def _noise(self) -> Any:
        """The noise model that the primitive's next run would have, None if there is none to speak of or none is known."""
        return noise_model_of(self._runner, _run_options(self.primitive))

    @property
    def _method(self) -> Any:
        """Of simulation, for a simulator of Aer's."""
        of_device = getattr(getattr(self._runner, "options", None), "method", None)
        return _run_options(self.primitive).get("method", of_device)

    @property
    def _is_compact(self) -> bool:
        if self.device is None:
            return True
        return leaves_out_idle_qubits(self.device, self.transpiler) and self._noise is None

    def prepare(self, program: Program) -> None:
        self._ready(program)

    def _ready(self, program: Program) -> Any:
        """What :meth:`_make_ready` has made of the program for the present noise."""
        cached = self._cache.of(program)
        noise = self._noise
        state = None if noise is None else (noise, frozenset(noise.noise_instructions))
        if "noise" not in cached or cached["noise"] != state:
            cached.clear()
            cached["noise"] = state
            self._warn_once("ignored noise", ignored_noise(noise))
        if "ready" not in cached:
            cached["ready"] = self._make_ready(program)
        return cached["ready"]

    @abstractmethod
    def _make_ready(self, program: Program) -> Any:
        """The program's circuits for the device, with all that is needed to run them."""

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        self._ready(program)
        circuits: Sequence[QuantumCircuit] = self._cache.of(program)["circuits"]
        return circuits

    def _for_device(self, circuits: Sequence[QuantumCircuit], program: Program) -> list[BoundCircuit]:
        """The program's circuits in the device's gates and with its variants, kept; and with parameters of their own."""
        if program.base is not None:
            circuits = varied(program, self.circuits(program.base), self.device)
        elif self.device is not None:
            keep = gates_to_keep(program, self.device, self._noise)
            basis_gates = self._basis_gates
            circuits = transpiled(
                circuits, program, self.device, self.transpiler, basis_gates=basis_gates, keep=keep, folds=True
            )
        self._cache.of(program)["circuits"] = circuits
        target = None if self.device is None else self.device.target
        bound = [bind_for_device(circuit, program, target) for circuit in circuits]
        if program.base is None and self.device is not None:
            self._require_noise(program, bound)
        return bound

    def _require_noise(self, program: Program, bound: Sequence[BoundCircuit]) -> None:
        noise, final = self._noise, [one.circuit for one in bound]
        # IBM's newer Estimator (0.50) merges gates even on a simulator.
        if is_from("qiskit_ibm_runtime.executor_estimator", self.primitive) and has_noise_of_its_own(
            self._runner, noise
        ):
            require_separate_gates(final, noise, self.name)
        require_noise(program, final, self._runner, noise, self.transpiler)

    @property
    def _basis_gates(self) -> list[str] | None:
        is_ibms = is_from("qiskit_ibm_runtime", self.primitive) and isinstance(self.primitive, BaseEstimatorV2)
        return gates_of_ibms_estimator(self.device) if is_ibms else None

    def __repr__(self) -> str:
        device = "" if self.device is None else f", device={self.device.name!r}"
        return f"{type(self).__name__}({self.name}{device})"


class SamplerBackend(_PrimitiveBackend):
    """Measured bit strings from a V2 Sampler: one job, one PUB a measurement group, per forward or backward.

    A result with other circuits, rows, shots, registers or bits than were asked for ends in a ``RuntimeError``. (Only a
    Sampler with ``options.twirling`` may return more shots, because it rounds them up.)
    """

    _base = BaseSamplerV2

    @property
    def twirls_readout(self) -> bool:
        return (
            getattr(getattr(getattr(self.primitive, "options", None), "twirling", None), "enable_measure", False)
            is True
        )

    def gives_outcomes(self, program: Program) -> bool:
        return True

    def resolve_shots(self, shots: int | None) -> int:
        shots = check_shots(shots)
        default = _option(self.primitive, "default_shots")
        if shots is None and default is None:
            raise ValueError(
                f"shots: got None, but {self.name} has no default; give a number of shots, for example shots=1000."
            )
        return int(default if shots is None else shots)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        shots = self.resolve_shots(shots)
        circuits: list[BoundCircuit] = self._ready(program)
        if circuits and has_gate_errors(self._noise):
            qubits = len(touched_qubits(bound.circuit for bound in circuits))
            self._warn_once("trajectories", slow_trajectories(self._method, qubits, shots))
        pubs = [pubs_of(bound, angles) for bound in circuits]
        flat = list(chain.from_iterable(pubs))
        twirls = _rounds_shots_up(self.primitive)
        asked = [
            Asked((len(angles),) if len(pub) == 2 else (), shots=shots, bits=len(group.qubits), at_least=twirls)
            for of_group, group in zip(pubs, program.readout.groups, strict=True)
            for pub in of_group
        ]
        result = _reseeded(self.primitive, seed).run(flat, shots=shots).result() if flat else ()
        arrays = iter(_checked(self.name, result, asked))
        samples = [
            samples_of([bits for (bits,) in islice(arrays, len(of_group))], len(angles), len(group.qubits))
            for of_group, group in zip(pubs, program.readout.groups, strict=True)
        ]
        return estimate_from_samples(program, samples, len(angles))

    def _ready(self, program: Program) -> Any:
        measured = getattr(getattr(getattr(self.primitive, "options", None), "execution", None), "meas_type", None)
        if measured in ("kerneled", "avg_kerneled"):
            raise ValueError(
                f"backend: got a {self.name} with the option execution.meas_type = {measured!r}, which gives points of a "
                "measured signal, expected 'classified': values are read from bits."
            )
        return super()._ready(program)

    def _make_ready(self, program: Program) -> list[BoundCircuit]:
        compact = self._is_compact
        circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
        ready = self._for_device(circuits, program)
        if self.transpiler.pass_manager is not None:
            require_same_answers(program, ready)
        return ready


class EstimatorBackend(_PrimitiveBackend):
    """Expectation values from a V2 Estimator: one job of one PUB per forward or backward.

    An Estimator gives each value with its own standard error and says nothing about their covariances; gradients' standard
    errors take the outputs as independent. Values of another shape than was asked for, or that are not finite, end in a
    ``RuntimeError``, and so do standard errors that are negative or not finite (after an extrapolation by IBM's Estimator
    they may be infinite).

    Shots become the precision that an Estimator takes, ``1 / sqrt(shots)``. What it makes of it is its own: Qiskit's
    and Aer's reference Estimators add Gaussian noise to exact values, which is not shot noise; use a Sampler to study
    that. With a noise model, Aer's computes them by density matrices here, because an average over random runs would have
    an error that it does not say; readout errors are not in them.
    """

    _base = BaseEstimatorV2

    @property
    def extrapolates(self) -> bool:
        options = getattr(self.primitive, "options", None)
        asked = getattr(getattr(options, "resilience", None), "zne_mitigation", None)
        return asked if isinstance(asked, bool) else getattr(options, "resilience_level", None) == 2

    def resolve_shots(self, shots: int | None) -> int | None:
        shots = check_shots(shots)
        if _is_aers_estimator(self.primitive):
            self._check_aers_values()
        if shots is not None:
            return shots
        default_shots = _option(self.primitive, "default_shots")
        precision = _option(self.primitive, "default_precision")
        if default_shots is None and precision is None:
            raise ValueError(
                f"shots: got None, but {self.name} has no default; give a number of shots, for example shots=1000."
            )
        if default_shots is not None:
            return int(default_shots)
        # A precision of 1 / sqrt(shots) must give these shots back, whatever its last digit.
        return math.ceil(1 / precision**2 * (1 - 1e-9)) if precision else None

    def _check_aers_values(self) -> None:
        """Refuses Aer's Estimator where its values have errors that it does not know, and says what they leave out."""
        method = self._method
        if method == "extended_stabilizer":
            raise ValueError(
                f"backend: got {self.name} with the method {method!r}, which has no expectation values; use another method, "
                "for example 'automatic'."
            )
        self._warn_once("truncation", truncation(self._runner.options))
        noise = self._noise
        if noise is None:
            return
        if has_gate_errors(noise) and method not in ("automatic", "density_matrix"):
            raise ValueError(
                f"backend: got {self.name} with noise and the method {method!r}, whose values are averages over random "
                "runs, with an error that it does not say. Make it exact with options={'backend_options': {'noise_model': "
                "..., 'method': 'density_matrix'}}, or give the AerSimulator itself, or a Sampler, with a number of shots."
            )
        if "measure" in noise.noise_instructions:
            self._warn_once(
                "readout errors",
                f"{self.name} computes values without measuring, and leaves out the noise model's readout errors; a "
                "Sampler, or the AerSimulator itself with a number of shots, has them.",
            )

    def prepare(self, program: Program) -> None:
        if not isinstance(program.readout, Expectation):
            raise ValueError(
                f"backend: {self.name} is an Estimator, which gives expectation values only, but probabilities were asked "
                "for; use a Sampler, or observables."
            )
        super().prepare(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        readout = program.readout
        values = np.broadcast_to(readout.constants, (len(angles), readout.num_outputs)).copy()
        variances = np.zeros_like(values)
        circuits = len(angles) * len(readout.groups)
        if readout.groups:
            bound, observables, outputs = self._ready(program)
            self._check_costs(bound.circuit, observables, len(angles))
            precision = 0.0 if shots is None else 1 / math.sqrt(shots)
            pubs = pubs_of(bound, angles, observables)
            shape = len(outputs), len(angles) if bound.parameters else 1
            asked = [Asked(shape, extrapolates=_extrapolates(self.primitive))] * len(pubs)
            result = _reseeded(self.primitive, seed).run(pubs, precision=precision).result()
            data = _checked(self.name, result, asked)
            values[:, outputs] += np.concatenate([means.T for means, _ in data])
            variances[:, outputs] = np.concatenate([errors.T for _, errors in data]) ** 2
            if isinstance(self.primitive, StatevectorEstimator):
                variances[:, outputs] = precision**2  # it adds just this noise, and gives zeros for its standard errors
        covariance = Covariance.of_independent(variances, shots) if shots else None
        return Estimate(values, variances, circuits, circuits * (shots or 0), covariance=covariance)

    def _check_costs(self, circuit: QuantumCircuit, observables: Sequence[SparsePauliOp], rows: int) -> None:
        """Refuses density matrices of Aer's Estimator that cannot fit into memory, and says what takes long."""
        if not _is_aers_estimator(self.primitive) or not has_gate_errors(self._noise):
            return
        remedy = "give the AerSimulator itself, or a Sampler, with a number of shots, for example shots=1000."
        # A simulator with connections is as wide as its memory lets it guess, and so is a circuit that is laid out on it.
        measured = {q for o in observables for q in np.flatnonzero((o.paulis.x | o.paulis.z).any(axis=0)).tolist()}
        qubits = len(touched_qubits([circuit]) | measured)
        cost = cost_of_density_matrix(qubits, rows * circuit.size(), self._runner.options, remedy)
        self._warn_once("density matrix", cost)

    def _make_ready(self, program: Program) -> tuple[BoundCircuit, list[SparsePauliOp], list[int]]:
        """The circuit for the device, the observables on its qubits, and the outputs that they give."""
        assert isinstance(program.readout, Expectation)
        logical, place = circuit_on(program, compact=self._is_compact)
        (bound,) = self._for_device([logical], program)
        observables, outputs = observables_on(bound.circuit, program.readout, list(place))
        if self.transpiler.pass_manager is not None:
            require_same_answers(program, [bound], observables, outputs)
        return bound, observables, outputs
