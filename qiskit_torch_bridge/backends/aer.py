"""Qiskit Aer: exact values, shots, noise models and fake devices, on a simulator that the user configured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from qiskit import QuantumCircuit
from qiskit.transpiler import PassManager, Target
from qiskit_aer import AerSimulator
from qiskit_aer.library import SaveExpectationValue, SaveProbabilities
from qiskit_aer.noise import NoiseModel

from ..program.compiled import Program
from ..program.readout import MeasurementGroup, PauliGroup, Samples, bits_of, stitched_outcomes
from ..shots.covariance import Covariance, variance_of_one_shot
from .base import Estimate, Outcomes, check_shots, estimate_from_moments
from .results import BoundCircuit
from .selftest import require_same_answers
from .simulated import (
    check_method,
    circuits_on,
    cost_of_density_matrix,
    default_level,
    has_gate_errors,
    ignored_noise,
    noise_model_of,
    require_noise,
    slow_trajectories,
    touched_qubits,
    truncation,
)
from .transpiling import TranspilerOptions, TranspilingBackend, bind_by_column, varied

__all__ = ["AerBackend", "noisy_simulator"]

_MOST_EXPERIMENTS_A_CALL = 8192
_MOST_ENTRIES_A_CALL = 2**20
_MOST_AMPLITUDES_A_CALL = 2**24
_MOST_BOUND_INSTRUCTIONS_A_CALL = 2**18
_MOST_TABULATED_BITS = 8
_MOST_INTEGER_BITS = 62
_MOST_DENSE_QUBITS = 30
_MOST_SAVED_OUTCOME_QUBITS = 12
_MOST_NUMBERS_KEPT = 2**23

_OLDER_SIMULATORS = {"QasmSimulator": "automatic", "StatevectorSimulator": "statevector"}
_THREAD_OPTIONS = ("max_parallel_threads", "max_parallel_experiments", "max_parallel_shots")
_QUBITS_OF_ONE_THREAD = 14
_SHOTS_OF_ONE_THREAD = 2**15


@dataclass(frozen=True, eq=False)
class _Values:
    """Exact contributions to the outputs, shape (N, M), of groups with too many outcomes to list."""

    values: np.ndarray


_Measured: TypeAlias = "np.ndarray | Samples | _Values"
"""Of a measurement group: the relative frequencies of its outcomes or their probabilities, shape (N, 2**k); or the bit
strings; or values alone."""


@dataclass(frozen=True, eq=False)
class _Executable:
    """A group's circuit, measured; and with its measurements replaced by one that saves exact probabilities."""

    group: MeasurementGroup
    measured: BoundCircuit
    saving: QuantumCircuit
    touched: frozenset[int]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a program runs as, the noise that this was made for, and whether it is more than that of readout."""

    executables: list[_Executable]
    noise: _WrittenNoise | None
    is_noisy: bool
    circuits: Sequence[QuantumCircuit]

    def fits(self, source: NoiseModel | None) -> bool:
        """Whether the simulator's noise is still the one that the executables were made for."""
        return source is None if self.noise is None else self.noise.is_of(source)


class AerBackend(TranspilingBackend):
    """Runs on an ``AerSimulator``: one ``run`` per forward or backward, or a few where one would not fit into memory.

    Shots are given to the layer; the simulator's own ``shots`` option is not used. Basis changes before a measurement are
    gates (``sdg``, ``h``), with whatever noise the simulator gives those.

    Aer's threads share the rows of a batch, noisy trajectories, or the amplitudes of large states. In other cases they
    would share the shots of one small circuit after the other, and wait for each other every time, which takes many times
    longer as soon as another process wants a core: with density matrices (of up to 7 qubits), and where there is one row,
    or no parameter (up to 14 qubits). There each circuit gets one thread instead, by the options ``max_parallel_threads``
    and ``max_parallel_experiments``, and its parameters before the run rather than in it. Your own settings go first: as
    soon as the simulator has a ``max_parallel_threads``, ``max_parallel_experiments`` or ``max_parallel_shots``, or a
    ``device`` other than the CPU, all is left as you set it.

    With ``shots=None`` the exact probabilities are read, by density matrix if there is a noise model. That leaves
    readout errors out, so that simulators (and fake devices) that have them need shots.

    Noise belongs to an instruction's label, or to its name if it has none. With a noise model of your own, circuits run as
    they are written (no gate is merged or removed), but gates that are not among the model's ``basis_gates`` are translated
    into those, as by ``transpile(circuit, simulator, optimization_level=0)``. What would lose its noise on the way is
    refused. On a simulated device the transpiler optimises as for hardware, and merges gates that cancel; only instructions
    that are written for their noise (``id``, ``delay``, labelled gates) may not get lost.

    Args:
        device: An ``AerSimulator`` with any method that measures, noise model or coupling map; one of Aer's older
            simulators (``Aer.get_backend("qasm_simulator")``); or a fake device, which is simulated with its noise,
            coupling map and basis gates. None: a plain ``AerSimulator()``.
        optimization_level: The transpiler's, 0 to 3. None: 2 for simulated devices and for coupling maps without noise,
            else 0. A level that you ask for may remove gates and their noise.
        initial_layout: The device's qubits for the circuit's, in order. None: the transpiler's choice; circuits that
            have been transpiled keep their place.
        seed_transpiler: Makes the transpiler's choices repeatable.
        pass_manager: A ``PassManager`` of yours in place of the preset one and its three options above. What it makes is
            checked: gates, connections, noise, measurements and, for up to 20 qubits, the circuit's exact values.
    """

    def __init__(
        self,
        device: Any = None,
        *,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
        pass_manager: PassManager | None = None,
    ) -> None:
        check_method(device)
        self.simulator = _simulator_of(device)
        self.name = "aer" if device is None else self.simulator.name
        super().__init__(TranspilerOptions(optimization_level, initial_layout, seed_transpiler, pass_manager))

    @property
    def _default_level(self) -> int:
        return default_level(self.simulator)

    def resolve_shots(self, shots: int | None) -> int | None:
        shots = check_shots(shots)
        method = self.simulator.options.method
        if shots is None and method == "extended_stabilizer":
            raise ValueError(
                f"shots: got None, but Aer's method {method!r} has no exact values; use another one, for example "
                "method='automatic', or (for circuits that this one can run) a number of shots."
            )
        self._warn_once("truncation", truncation(self.simulator.options))
        if shots is None and self._noise is not None:
            if "measure" in self._noise.noise_instructions:
                raise ValueError(
                    f"shots: got None, but {self.name!r} has readout errors, which exact values would leave out; give a "
                    "number of shots, for example shots=1000."
                )
            if method not in ("automatic", "density_matrix"):
                raise ValueError(
                    f"shots: got None, but {self.name!r} has noise, and its method {method!r} is exact only in the mean; "
                    "give a number of shots, or use method='density_matrix'."
                )
        return shots

    def prepare(self, program: Program) -> None:
        self._prepared(program)

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        return self._prepared(program).circuits

    def gives_outcomes(self, program: Program) -> bool:
        return True

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        prepared = self._prepared(program)
        self._check_costs(prepared, len(angles), shots)
        apart = self._chooses_threads() and self._are_small(prepared, len(angles), shots)
        size = self._rows_a_call(prepared, shots, apart)
        starts = range(0, len(angles), size) if prepared.executables else ()
        # Aer gives experiment i the seed s + 2113 i; 63 random bits keep the ranges of different calls apart.
        seeds = (seed.generate_state(max(1, len(starts)), np.uint64) >> np.uint64(1)).tolist()
        parts = [(slice(start, start + size), seed) for start, seed in zip(starts, seeds, strict=False)]

        def measurements() -> Iterator[tuple[slice, list[_Measured]]]:
            for part, seed in parts:
                yield part, self._measured(prepared, angles[part], shots, seed, apart)

        groups = program.readout.groups
        moments = []
        kept: list[tuple[slice, list[_Measured]]] = []
        numbers = 0
        # Each call's result is read before the next call: Aer's results take far more memory than what is read from them.
        for part, measured in measurements():
            moments.append([_moments(group, outcomes) for group, outcomes in zip(groups, measured, strict=True)])
            numbers += sum(map(_size, measured))
            if numbers <= _MOST_NUMBERS_KEPT:
                kept.append((part, measured))
        covariance = outcomes = None
        if shots is not None or not any(map(_saves_values, groups)):
            # Where it would be too much to keep, the same shots are taken once more, if anyone asks.
            again = measurements if numbers > _MOST_NUMBERS_KEPT else lambda: kept
            covariance = _covariance(groups, again, len(angles), shots)
            outcomes = partial(_outcomes, again, len(angles))
        of_groups = [zip(*of_parts, strict=True) for of_parts in zip(*moments, strict=True)]
        whole = [(np.concatenate(first), np.concatenate(second)) for first, second in of_groups]
        return estimate_from_moments(program, whole, len(angles), shots, covariance, outcomes)

    def _measured(
        self, prepared: _Prepared, angles: np.ndarray, shots: int | None, seed: int, apart: bool
    ) -> list[_Measured]:
        """What each group gives at each row of ``angles``, in one ``AerSimulator.run``.

        Where they are to run ``apart``, each row is an experiment of its own, with one thread.
        """
        circuits: list[QuantumCircuit] = []
        binds: list[dict[Any, list[float]]] = []
        for executable in prepared.executables:
            bound = executable.measured
            times = 1 if bound.parameters else len(angles)
            circuits += [executable.saving if shots is None else bound.circuit] * times
            binds += [dict(zip(bound.parameters, bound.values(angles).T.tolist(), strict=True))] * times
        options: dict[str, Any] = {"seed_simulator": seed, "shots": shots or 1}
        if prepared.noise is not None:
            options["noise_model"] = prepared.noise
            if shots is None:
                options["method"] = "density_matrix"
        if apart:
            experiments = len(angles) * len(prepared.executables)
            options.update(max_parallel_threads=experiments, max_parallel_experiments=experiments)
        if any(binds):
            # What is bound at runtime is a single experiment to Aer, which it would then give to a single thread.
            options.update(parameter_binds=binds, runtime_parameter_bind_enable=not apart)
        result = self.simulator.run(circuits, **options).result()
        if not result.success:
            raise self._failure(result)
        data = iter([experiment.data for experiment in result.results])
        return [_read(list(islice(data, len(angles))), one.group, shots) for one in prepared.executables]

    def _failure(self, result: Any) -> Exception:
        """What Aer's text about a failed run means."""
        failures = {str(experiment.status) for experiment in result.results if not experiment.success}
        text = f"{result.status} {' '.join(sorted(failures))}"
        method = self.simulator.options.method
        if "memory" in text:
            return MemoryError(
                f"Aer ({self.name}, method {method!r}) has too little memory for the circuit; use fewer qubits or gates, or "
                "method='matrix_product_state' with shots."
            )
        if method in ("stabilizer", "extended_stabilizer") and "invalid parameters" in text:
            return ValueError(
                f"Aer's method {method!r} rotates by multiples of pi/2 only, but the circuit has rotations by other angles; "
                "use another method, for example method='automatic'."
            )
        return RuntimeError(f"Aer ({self.name}, method {method!r}) failed: {text}")

    def _check_costs(self, prepared: _Prepared, rows: int, shots: int | None) -> None:
        """Refuses what cannot fit into memory, and says what is needlessly slow."""
        if prepared.noise is None or not prepared.executables:
            return
        options = self.simulator.options
        qubits = max(len(executable.touched) for executable in prepared.executables)
        if shots is None:
            instructions = rows * sum(executable.saving.size() for executable in prepared.executables)
            remedy = "give a number of shots, for example shots=1000."
            self._warn_once("density matrix", cost_of_density_matrix(qubits, instructions, options, remedy))
        elif options.method == "density_matrix":
            cost_of_density_matrix(qubits, 0, options, "use the simulator's method='automatic'.")
        elif prepared.is_noisy:
            self._warn_once("trajectories", slow_trajectories(options.method, qubits, shots))

    def _chooses_threads(self) -> bool:
        """Whether the user has left the threads to us."""
        options = self.simulator.options
        return options.device == "CPU" and all(getattr(options, name, None) is None for name in _THREAD_OPTIONS)

    def _are_small(self, prepared: _Prepared, rows: int, shots: int | None) -> bool:
        """Whether Aer would share one circuit's shots among its threads at a time, and there is too little to share."""
        if shots is None or shots > _SHOTS_OF_ONE_THREAD:
            return False
        for executable in prepared.executables:
            qubits = len(executable.touched)
            is_mixed = self._is_density_matrix(qubits, shots, prepared.is_noisy)
            # Trajectories, and the rows of other parameterised circuits, Aer shares among its threads as wholes.
            are_shared = not is_mixed and (prepared.is_noisy or (rows > 1 and bool(executable.measured.parameters)))
            if are_shared or (2 * qubits if is_mixed else qubits) > _QUBITS_OF_ONE_THREAD:
                return False
        return True

    def _rows_a_call(self, prepared: _Prepared, shots: int | None, apart: bool) -> int:
        """How many rows one ``run`` takes, such that what Aer makes and returns of them fits into memory."""
        executables = prepared.executables
        costs = [
            (_MOST_EXPERIMENTS_A_CALL, len(executables)),
            (_MOST_ENTRIES_A_CALL, sum(_entries_a_row(executable.group, shots) for executable in executables)),
        ]
        if apart:
            # Bound before the run, every row is a circuit of its own, and has its noise written into it.
            instructions = sum(executable.measured.circuit.size() for executable in executables)
            costs.append((_MOST_BOUND_INSTRUCTIONS_A_CALL, instructions))
        else:
            # Bound at runtime, the states of all rows are there at once, of one circuit after the other.
            amplitudes = [self._amplitudes(len(e.touched), shots, prepared.is_noisy) for e in executables]
            costs.append((_MOST_AMPLITUDES_A_CALL, max(amplitudes, default=0)))
        return max(1, min(most // max(1, cost) for most, cost in costs))

    def _amplitudes(self, qubits: int, shots: int | None, is_noisy: bool) -> int:
        """The amplitudes of a state, 0 where it is not written out."""
        if self._is_density_matrix(qubits, shots, is_noisy):
            return 4**qubits
        is_written_out = self.simulator.options.method in ("automatic", "statevector") and qubits <= _MOST_DENSE_QUBITS
        return 2**qubits if is_written_out else 0

    def _is_density_matrix(self, qubits: int, shots: int | None, is_noisy: bool) -> bool:
        """Whether the state would be a density matrix, by Aer's own rule where the method is left to it."""
        method = self.simulator.options.method
        if method == "automatic":
            return is_noisy and (shots is None or shots > 2**qubits)
        return method == "density_matrix"

    @property
    def _noise(self) -> NoiseModel | None:
        """The simulator's noise model at this moment, None if there is none to speak of."""
        return noise_model_of(self.simulator)

    def _prepared(self, program: Program) -> _Prepared:
        cached = self._cache.of(program)
        prepared: _Prepared | None = cached.get("prepared")
        source = self._noise
        if prepared is None or not prepared.fits(source):
            circuits = self._transpile(program, source)
            executables = self._executables(circuits, program, source)
            measured = [executable.measured.circuit for executable in executables]
            noise = None if source is None else _WrittenNoise(source, measured)
            self._warn_once("ignored noise", ignored_noise(source))
            is_noisy = has_gate_errors(source, measured)
            prepared = cached["prepared"] = _Prepared(executables, noise, is_noisy, circuits)
        return prepared

    def _transpile(self, program: Program, noise: NoiseModel | None) -> Sequence[QuantumCircuit]:
        if program.base is not None:
            return varied(program, self.circuits(program.base), self.simulator)
        circuits = circuits_on(program, self.simulator, noise, self.transpiler)
        require_noise(program, circuits, self.simulator, noise, self.transpiler, controls_are_kept=True)
        return circuits

    def _executables(
        self, circuits: Sequence[QuantumCircuit], program: Program, noise: NoiseModel | None
    ) -> list[_Executable]:
        bound = [bind_by_column(circuit, program, keeps_noise=noise is not None) for circuit in circuits]
        if self.transpiler.pass_manager is not None:
            require_same_answers(program, bound)
        return [
            _Executable(group, m, _saving(m.circuit, group), touched_qubits([m.circuit]))
            for m, group in zip(bound, program.readout.groups, strict=True)
        ]

    def __repr__(self) -> str:
        return f"AerBackend({self.name!r}, optimization_level={self.optimization_level})"


def _simulator_of(device: Any) -> AerSimulator:
    """The simulator itself, one like Aer's older simulators, or one of a device."""
    if device is None or isinstance(device, AerSimulator):
        return AerSimulator() if device is None else device
    if type(device).__name__ not in _OLDER_SIMULATORS:
        return AerSimulator.from_backend(device)
    known = vars(AerSimulator._default_options())
    options = {name: value for name, value in vars(device.options).items() if name in known and value is not None}
    return AerSimulator(**{"method": _OLDER_SIMULATORS[type(device).__name__], **options})


def noisy_simulator(noise: Any = None, device: Any = None) -> AerSimulator:
    """A simulator with noise from what users hold.

    Args:
        noise: A ``NoiseModel``; or what one is made from: a device with a target, its ``target``, or its ``properties()``.
            None: the noise of ``device``, if it has some.
        device: What circuits are transpiled for, as in :class:`AerBackend`. None: they run as they are written.

    Raises:
        TypeError: If ``noise`` is something else.
    """
    if noise is None:
        return _simulator_of(device)
    model = _noise_model_from(noise)
    if device is None:
        return AerSimulator(noise_model=model)
    if not isinstance(device, AerSimulator):
        return AerSimulator.from_backend(device, noise_model=model)
    simulator = deepcopy(device)  # the user's own keeps its noise
    simulator.set_options(noise_model=model)
    return simulator


def _noise_model_from(source: Any) -> NoiseModel:
    if isinstance(source, NoiseModel):
        return source
    if isinstance(source, Target):
        source = _TargetAlone(source, list(source.operation_names), source.dt)
    if isinstance(getattr(source, "target", None), Target) and not isinstance(source, AerSimulator):
        return NoiseModel.from_backend(source)
    if all(hasattr(source, name) for name in ("gates", "qubits", "t1", "t2", "frequency")):
        return NoiseModel.from_backend_properties(source)
    raise TypeError(
        f"noise: got {source!r} ({type(source).__name__}), expected a NoiseModel of Aer's, a device, its target or its "
        "properties(), or None for the noise of device=."
    )


@dataclass(frozen=True)
class _TargetAlone:
    """As much of a device as Aer makes a noise model from."""

    target: Target
    operation_names: list[str]
    dt: float | None
    version: int = 2


class _WrittenNoise(NoiseModel):
    """A noise model, written out once, and no more of it than concerns some circuits.

    Aer writes a noise model out and reads all of it back at every run. For a device of 127 qubits that takes longer than
    a simulation of the few that a circuit uses.
    """

    def __init__(self, source: NoiseModel, circuits: Sequence[QuantumCircuit]) -> None:
        super().__init__()
        self.__dict__.update(vars(source))
        self._source = source
        self._seen = _snapshot(vars(source))
        self._written = _concerning(circuits, source.to_dict(serializable=True))

    def is_of(self, source: NoiseModel | None) -> bool:
        """Whether it is this noise model that was written out, and nothing has been added to it since."""
        # Quick, because containers compare their elements by identity first.
        return source is self._source and vars(source) == self._seen

    def to_dict(self, serializable: bool = False) -> dict[str, Any]:
        """What Aer reads at a run."""
        return self._written if serializable else super().to_dict()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseModel:
        # Aer adds errors to a copy where a circuit brings its own, or has delays; those have to be written out too.
        return deepcopy(self._source, memo)


def _snapshot(value: Any) -> Any:
    """A copy of nested containers that shares their elements."""
    if isinstance(value, dict):
        return {key: _snapshot(element) for key, element in value.items()}
    return type(value)(value) if isinstance(value, (list, set)) else value


def _concerning(circuits: Sequence[QuantumCircuit], noise: dict[str, Any]) -> dict[str, Any]:
    """The noise without the errors of instructions and qubits that none of the circuits has.

    Errors go by an instruction's label where it has one, else by its name.
    """
    operations = [instruction.operation for circuit in circuits for instruction in circuit.data]
    names = {operation.name for operation in operations} | {operation.label for operation in operations}
    qubits = touched_qubits(circuits)

    def concerns(error: dict[str, Any]) -> bool:
        is_of_names = "operations" not in error or not names.isdisjoint(error["operations"])
        return is_of_names and ("gate_qubits" not in error or any(qubits.issuperset(q) for q in error["gate_qubits"]))

    return {**noise, "errors": [error for error in noise["errors"] if concerns(error)]}


def _saving(circuit: QuantumCircuit, group: MeasurementGroup) -> QuantumCircuit:
    """The circuit with exact results saved in place of its final measurements.

    These are the probabilities of all outcomes or, where those would be too many, the group's expectation values.
    """
    qubits = {}
    saving = circuit.copy_empty_like()
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            qubits[circuit.find_bit(instruction.clbits[0]).index] = instruction.qubits[0]
        else:
            saving.append(instruction, copy=False)
    measured = [qubits[bit] for bit in sorted(qubits)]
    if _saves_values(group):
        for output, operator in enumerate(group.operators):
            saving.append(SaveExpectationValue(operator, label=_label(output)), measured)
    else:
        saving.append(SaveProbabilities(len(measured)), measured)
    return saving


def _label(output: int) -> str:
    return f"output {output}"


def _entries_a_row(group: MeasurementGroup, shots: int | None) -> int:
    """The numbers that Aer returns of one circuit, at most."""
    if shots is None and _saves_values(group):
        return len(group.operators)
    return min(2 ** len(group.qubits), shots or 2 ** len(group.qubits))


def _saves_values(group: MeasurementGroup) -> TypeGuard[PauliGroup]:
    return isinstance(group, PauliGroup) and len(group.qubits) > _MOST_SAVED_OUTCOME_QUBITS


def _moments(group: MeasurementGroup, measured: _Measured) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of the scores; the second mean nothing for exact values."""
    if isinstance(measured, _Values):
        return measured.values, np.square(measured.values)
    return group.sample_moments(measured) if isinstance(measured, Samples) else group.moments(measured)


def _size(measured: _Measured) -> int:
    """How many numbers it holds."""
    if isinstance(measured, Samples):
        return measured.rows.size + measured.counts.size + measured.bits.size // 8
    return measured.values.size if isinstance(measured, _Values) else measured.size


def _covariance(
    groups: Sequence[MeasurementGroup],
    measurements: Callable[[], Iterable[tuple[slice, Sequence[_Measured]]]],
    rows: int,
    shots: int | None,
) -> Covariance:
    def of_one_shot(upstream: np.ndarray) -> np.ndarray:
        variances = np.zeros(rows)
        for part, measured in measurements():
            for group, outcomes in zip(groups, measured, strict=True):
                assert not isinstance(outcomes, _Values)
                variances[part] += variance_of_one_shot(group, outcomes, upstream[part], shots)
        return variances

    return Covariance(of_one_shot, np.inf if shots is None else shots, rows)


def _outcomes(measurements: Callable[[], Iterable[tuple[slice, Sequence[_Measured]]]], rows: int) -> Outcomes:
    pairs = list(measurements())
    if not pairs:
        return ()
    places, parts = zip(*pairs, strict=True)
    return tuple(stitched_outcomes(places, of_group, rows) for of_group in zip(*parts, strict=True))


def _read(data: Sequence[Any], group: MeasurementGroup, shots: int | None) -> _Measured:
    """What Aer's data of N rows say of a group."""
    if shots is not None:
        return _sampled([entry.counts for entry in data], len(group.qubits), shots)
    if _saves_values(group):
        return _Values(np.array([[getattr(entry, _label(m)) for m in range(len(group.operators))] for entry in data]))
    return np.array([entry.probabilities for entry in data])


def _sampled(tallies: Sequence[dict[str, int]], num_bits: int, shots: int) -> _Measured:
    """The counts as they come from Aer: building ``Counts`` objects would cost more than the simulation."""
    num_rows = len(tallies)
    rows = np.repeat(np.arange(num_rows), [len(tally) for tally in tallies])
    counts = np.fromiter(chain.from_iterable(tally.values() for tally in tallies), np.int64, len(rows))
    taken = np.bincount(rows, counts, num_rows)
    if (taken != shots).any():
        raise RuntimeError(
            f"Aer returned counts of {int(taken[taken != shots][0])} shots of a circuit, expected {shots}; use the "
            "simulator's options for shots and jobs as they are by default."
        )
    outcome_of = cache(lambda key: int(key, 16))  # few of the many hexadecimal keys differ
    outcomes = list(map(outcome_of, chain.from_iterable(tallies)))
    if num_bits <= _MOST_TABULATED_BITS:
        cells = (rows << num_bits) + np.array(outcomes)
        return np.bincount(cells, counts, num_rows << num_bits).reshape(num_rows, -1) / shots
    return Samples(rows, _bits(outcomes, num_bits), counts, num_rows)


def _bits(outcomes: Sequence[int], num_bits: int) -> np.ndarray:
    """Shape (E, k): bit j of each outcome."""
    if num_bits <= _MOST_INTEGER_BITS:
        return bits_of(np.array(outcomes, dtype=np.int64), num_bits)
    return np.array([[(outcome >> bit) & 1 for bit in range(num_bits)] for outcome in outcomes], dtype=np.uint8)
