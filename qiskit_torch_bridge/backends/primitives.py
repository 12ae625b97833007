"""Any V2 Sampler or Estimator: Qiskit's reference ones, Aer's, a backend's, or a vendor's."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

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
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import PauliList, SparsePauliOp

from ..covariance import Covariance
from ..program import Program
from ..readout import Expectation, Samples
from .base import Backend, Estimate, ProgramCache, check_shots, circuit_on, estimate_from_samples, measured_circuit
from .results import Arrays, Asked, WrongResult, arrays_from
from .transpiling import (
    BoundCircuit,
    bind_by_column,
    check_transpiler_options,
    gates_of_ibms_estimator,
    leaves_out_idle_qubits,
    transpiled,
)

__all__ = ["EstimatorBackend", "SamplerBackend", "bindings_of", "observables_on", "restricted_to", "samples_of"]


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
    origins = {cls.__module__.split(".")[0] for cls in type(primitive).__mro__}
    fresh = copy.copy(primitive)
    if isinstance(primitive, (StatevectorSampler, StatevectorEstimator)):
        fresh._seed = np.random.default_rng(seed)
    elif isinstance(primitive, (BackendSamplerV2, BackendEstimatorV2)):
        fresh._options = replace(primitive.options, seed_simulator=number)
    elif "qiskit_aer" in origins and isinstance(primitive, BaseSamplerV2):
        fresh._seed = number
    elif "qiskit_aer" in origins:
        run_options = {**(primitive.options.run_options or {}), "seed_simulator": number}
        fresh._options = replace(primitive.options, run_options=run_options)
    else:
        return primitive
    return fresh


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


class _PrimitiveBackend(Backend):
    """What Samplers and Estimators share.

    Args:
        primitive: The V2 primitive.
        device: The device to transpile for. None: the one that the primitive has, if any.
        optimization_level: The transpiler's, 0 to 3. None: 2.
        initial_layout: The device's qubits for the circuit's, in order; None: the transpiler's choice.
        seed_transpiler: Makes the transpiler's choices repeatable.
    """

    def __init__(
        self,
        primitive: Any,
        *,
        device: Any = None,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
    ) -> None:
        level, self.initial_layout, self.seed_transpiler = check_transpiler_options(
            optimization_level=optimization_level, initial_layout=initial_layout, seed_transpiler=seed_transpiler
        )
        self.primitive = primitive
        self.device = device if device is not None else _device_of(primitive)
        self.name = type(primitive).__name__
        self.optimization_level = 2 if level is None else level
        self._cache = ProgramCache()

    @property
    def _is_compact(self) -> bool:
        return self.device is None or leaves_out_idle_qubits(self.device, self.initial_layout)

    def _for_device(self, circuits: Sequence[Any], program: Program) -> list[Any]:
        if self.device is None:
            return list(circuits)
        return transpiled(
            circuits,
            program,
            self.device,
            optimization_level=self.optimization_level,
            initial_layout=self.initial_layout,
            seed_transpiler=self.seed_transpiler,
            basis_gates=self._basis_gates,
        )

    @property
    def _basis_gates(self) -> list[str] | None:
        ibm = any(cls.__module__.startswith("qiskit_ibm_runtime") for cls in type(self.primitive).__mro__)
        return gates_of_ibms_estimator(self.device) if ibm and isinstance(self.primitive, BaseEstimatorV2) else None

    def __repr__(self) -> str:
        device = "" if self.device is None else f", device={self.device.name!r}"
        return f"{type(self).__name__}({self.name}{device})"


class SamplerBackend(_PrimitiveBackend):
    """Measured bit strings from a V2 Sampler: one job, one PUB a measurement group, per forward or backward.

    A result with other circuits, rows, shots, registers or bits than were asked for ends in a ``RuntimeError``. (Only a
    Sampler with ``options.twirling`` may return more shots, because it rounds them up.)
    """

    def __init__(self, primitive: BaseSamplerV2, **options: Any) -> None:
        if not isinstance(primitive, BaseSamplerV2):
            raise TypeError(f"primitive: got {type(primitive).__name__}, expected a V2 Sampler.")
        super().__init__(primitive, **options)

    def resolve_shots(self, shots: int | None) -> int:
        shots = check_shots(shots)
        default = _option(self.primitive, "default_shots")
        if shots is None and default is None:
            raise ValueError(
                f"shots: got None, but {self.name} has no default; give a number of shots, for example shots=1000."
            )
        return int(default if shots is None else shots)

    def prepare(self, program: Program) -> None:
        self._circuits(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        shots = self.resolve_shots(shots)
        circuits = self._circuits(program)
        # Without parameters there is nothing to broadcast over: such a circuit is a PUB for every row.
        pubs = [
            [(b.circuit, bindings_of(b, angles))] if b.parameters else [(b.circuit,)] * len(angles) for b in circuits
        ]
        flat = list(chain.from_iterable(pubs))
        twirls = _rounds_shots_up(self.primitive)
        asked = [
            Asked((len(angles),) if len(pub) == 2 else (), shots=shots, bits=len(group.qubits), at_least=twirls)
            for mine, group in zip(pubs, program.readout.groups, strict=True)
            for pub in mine
        ]
        result = _reseeded(self.primitive, seed).run(flat, shots=shots).result() if flat else ()
        arrays = iter(_checked(self.name, result, asked))
        samples = [
            samples_of([bits for (bits,) in islice(arrays, len(mine))], len(angles), len(group.qubits))
            for mine, group in zip(pubs, program.readout.groups, strict=True)
        ]
        return estimate_from_samples(program, samples, len(angles))

    def _circuits(self, program: Program) -> list[BoundCircuit]:
        measured = getattr(getattr(getattr(self.primitive, "options", None), "execution", None), "meas_type", None)
        if measured in ("kerneled", "avg_kerneled"):
            raise ValueError(
                f"backend: got a {self.name} with the option execution.meas_type = {measured!r}, which gives points of a "
                "measured signal, expected 'classified': values are read from bits."
            )
        cached = self._cache.of(program)
        if "circuits" not in cached:
            compact = self._is_compact
            circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
            cached["circuits"] = [bind_by_column(circuit, program) for circuit in self._for_device(circuits, program)]
        circuits_of_groups: list[BoundCircuit] = cached["circuits"]
        return circuits_of_groups


class EstimatorBackend(_PrimitiveBackend):
    """Expectation values from a V2 Estimator: one job of one PUB per forward or backward.

    An Estimator gives each value with its own standard error and says nothing about their covariances; gradients' standard
    errors take the outputs as independent. Values of another shape than was asked for, or that are not finite, end in a
    ``RuntimeError``, and so do standard errors that are negative or not finite (after an extrapolation by IBM's Estimator
    they may be infinite).

    Shots become the precision that an Estimator takes, ``1 / sqrt(shots)``. What it makes of it is its own: Qiskit's
    and Aer's reference Estimators add Gaussian noise to exact values, which is not shot noise; use a Sampler to study
    that.
    """

    def __init__(self, primitive: BaseEstimatorV2, **options: Any) -> None:
        if not isinstance(primitive, BaseEstimatorV2):
            raise TypeError(f"primitive: got {type(primitive).__name__}, expected a V2 Estimator.")
        super().__init__(primitive, **options)

    def resolve_shots(self, shots: int | None) -> int | None:
        shots = check_shots(shots)
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

    def prepare(self, program: Program) -> None:
        if not isinstance(program.readout, Expectation):
            raise ValueError(
                f"backend: {self.name} is an Estimator, which gives expectation values only, but probabilities were asked "
                "for; use a Sampler, or observables."
            )
        self._circuit(program)

    def circuits_per_row(self, program: Program) -> int:
        """The Estimator groups the terms itself; the groups here are what it needs at least."""
        return len(program.readout.groups)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        readout = program.readout
        values = np.broadcast_to(readout.constants, (len(angles), readout.num_outputs)).copy()
        variances = np.zeros_like(values)
        circuits = len(angles) * len(readout.groups)
        if readout.groups:
            bound, observables, outputs = self._circuit(program)
            precision = 0.0 if shots is None else 1 / math.sqrt(shots)
            if bound.parameters:
                pubs: list[Any] = [(bound.circuit, [[o] for o in observables], bindings_of(bound, angles), precision)]
            else:
                # Without parameters there is nothing to broadcast over: a PUB for every row.
                pubs = [(bound.circuit, observables, None, precision)] * len(angles)
            whole = (len(outputs), len(angles)) if bound.parameters else (len(outputs),)
            asked = [Asked(whole, extrapolates=_extrapolates(self.primitive))] * len(pubs)
            data = _checked(self.name, _reseeded(self.primitive, seed).run(pubs).result(), asked)
            shape = (len(angles), len(outputs))
            values[:, outputs] += np.array([found.T for found, _ in data]).reshape(shape)
            variances[:, outputs] = np.array([errors.T for _, errors in data]).reshape(shape) ** 2
            if isinstance(self.primitive, StatevectorEstimator):
                variances[:, outputs] = precision**2  # it adds just this noise, and gives zeros for its standard errors
        covariance = Covariance.of_independent(variances, shots) if shots else None
        return Estimate(values, variances, circuits, circuits * (shots or 0), covariance=covariance)

    def _circuit(self, program: Program) -> tuple[BoundCircuit, list[Any], list[int]]:
        """The circuit for the device, the observables on its qubits, and the outputs that they give."""
        assert isinstance(program.readout, Expectation)
        cached = self._cache.of(program)
        if "circuit" not in cached:
            logical, place = circuit_on(program, compact=self._is_compact)
            (circuit,) = self._for_device([logical], program)
            observables, outputs = observables_on(circuit, program.readout, list(place))
            cached["circuit"] = bind_by_column(circuit, program), observables, outputs
        circuit_and_observables: tuple[BoundCircuit, list[Any], list[int]] = cached["circuit"]
        return circuit_and_observables


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


def bindings_of(bound: BoundCircuit, angles: np.ndarray) -> BindingsArray:
    """N parameter sets; by object, so that no order of names matters."""
    return BindingsArray({bound.parameters: bound.values(angles)})


def samples_of(arrays: Sequence[np.ndarray], rows: int, num_bits: int) -> Samples:
    """The measured bit strings of N parameter sets, from packed bits of shape (..., shots, bytes) in their order.

    Raises:
        WrongResult: If they are the bits of something else.
    """
    shapes = {array.shape[-2:] for array in arrays}
    found = sum(math.prod(array.shape[:-2]) for array in arrays)
    if found != rows or len(shapes) > 1 or any(size != math.ceil(num_bits / 8) for _, size in shapes):
        raise WrongResult(
            f"got {found} parameter set(s) with (shots, bytes) of {sorted(shapes)}, expected {rows} with the same shots and "
            f"the bytes of {num_bits} bit(s)."
        )
    packed = np.concatenate([array.reshape(-1, *array.shape[-2:]) for array in arrays])
    shots = packed.shape[1]
    bits = np.unpackbits(packed, axis=-1, bitorder="big")[..., ::-1][..., :num_bits].reshape(rows * shots, num_bits)
    return Samples(np.repeat(np.arange(rows), shots), bits, np.ones(rows * shots, dtype=np.int64), rows)
