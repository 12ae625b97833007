"""Qiskit Aer: exact values, shots, noise models and fake devices, on a simulator that the user configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit_aer import AerSimulator
from qiskit_aer.library import SaveExpectationValue, SaveProbabilities

from ..program import Program
from ..readout import MeasurementGroup, PauliGroup, Samples
from .base import (
    Backend,
    Estimate,
    ProgramCache,
    check_shots,
    estimate_from_moments,
    estimate_from_samples,
    measured_circuit,
)
from .transpiling import BoundCircuit, bind_by_column, transpiled

__all__ = ["AerBackend"]

_MOST_EXPERIMENTS_A_RUN = 8192
_MOST_INTEGER_BITS = 62
_MOST_SAVED_OUTCOME_QUBITS = 12


@dataclass(frozen=True, eq=False)
class _Executable:
    """A group's circuit, measured; and with its measurements replaced by one that saves exact probabilities."""

    measured: BoundCircuit
    saving: QuantumCircuit


class AerBackend(Backend):
    """Runs on an ``AerSimulator``: one ``run`` with runtime parameter binding per forward or backward.

    Shots are given to the layer; the simulator's own ``shots`` option is not used. Basis changes before a measurement are
    gates (``sdg``, ``h``), with whatever noise the simulator gives those.

    With ``shots=None`` the exact probabilities are read, by density matrix if there is a noise model. That leaves
    readout errors out, so that simulators (and fake devices) that have them need shots.

    Args:
        device: An ``AerSimulator`` with any method, noise model or coupling map; or a fake device, which is simulated
            with its noise, coupling map and basis gates. None: a plain ``AerSimulator()``.
        optimization_level: The transpiler's, 0 to 3. None: 0 where every qubit is connected to every other (the user's
            gates stay as they are), else 2.
        initial_layout: The device's qubits for the circuit's, in order. None: the transpiler's choice; circuits that
            have been transpiled keep their place.
        seed_transpiler: Makes the transpiler's choices repeatable.
    """

    def __init__(
        self,
        device: Any = None,
        *,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
    ) -> None:
        simulator = AerSimulator() if device is None else device
        self.simulator = simulator if isinstance(simulator, AerSimulator) else AerSimulator.from_backend(simulator)
        self.name = "aer" if device is None else self.simulator.name
        self._placed = self.simulator.coupling_map is not None
        if optimization_level not in (None, 0, 1, 2, 3):
            raise ValueError(f"optimization_level: got {optimization_level!r}, expected 0, 1, 2, 3 or None.")
        self.optimization_level = (2 if self._placed else 0) if optimization_level is None else optimization_level
        self.initial_layout = None if initial_layout is None else tuple(initial_layout)
        self.seed_transpiler = seed_transpiler
        self._cache = ProgramCache()

    def resolve_shots(self, shots: int | None) -> int | None:
        shots = check_shots(shots)
        if shots is None and self._noise is not None:
            if "measure" in self._noise.noise_instructions:
                raise ValueError(
                    f"shots: got None, but {self.name!r} has readout errors, which exact values would leave out; give a "
                    "number of shots, for example shots=1000."
                )
            method = self.simulator.options.method
            if method not in ("automatic", "density_matrix"):
                raise ValueError(
                    f"shots: got None, but {self.name!r} has noise, and its method {method!r} is exact only in the mean; "
                    "give a number of shots, or use method='density_matrix'."
                )
        return shots

    def prepare(self, program: Program) -> None:
        self._circuits(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        circuits = self._circuits(program)
        size = max(1, _MOST_EXPERIMENTS_A_RUN // max(1, len(circuits)))
        starts = range(0, len(angles), size)
        # Aer gives experiment i the seed s + 2113 i; 63 random bits keep the ranges of different calls apart.
        seeds = (seed.generate_state(len(starts), np.uint64) >> np.uint64(1)).tolist()
        runs = [
            self._run(circuits, angles[start : start + size], shots, seed)
            for start, seed in zip(starts if circuits else (), seeds, strict=False)
        ]
        # One list a group, of the data of every row.
        data = [list(chain.from_iterable(run[g] for run in runs)) for g in range(len(circuits))]
        groups = program.readout.groups
        if shots is None:
            moments = [_exact_moments(rows, group) for group, rows in zip(groups, data, strict=True)]
            return estimate_from_moments(program, moments, len(angles), None)
        samples = [_samples(rows, len(group.qubits)) for group, rows in zip(groups, data, strict=True)]
        return estimate_from_samples(program, samples, len(angles))

    def _run(
        self, circuits: Sequence[_Executable], angles: np.ndarray, shots: int | None, seed: int
    ) -> list[Sequence[Any]]:
        """The data of each row of ``angles``, a list a circuit, in one ``run``."""
        jobs: list[QuantumCircuit] = []
        binds: list[dict[Any, list[float]]] = []
        for executable in circuits:
            bound = executable.measured
            circuit = executable.saving if shots is None else bound.circuit
            if bound.parameters:
                jobs.append(circuit)
                binds.append(dict(zip(bound.parameters, bound.values(angles).T.tolist(), strict=True)))
            else:
                jobs += [circuit] * len(angles)
                binds += [{}] * len(angles)
        options: dict[str, Any] = {"seed_simulator": seed, "shots": shots or 1}
        if shots is None and self._noise is not None:
            options["method"] = "density_matrix"
        if any(binds):
            options.update(parameter_binds=binds, runtime_parameter_bind_enable=True)
        result = self.simulator.run(jobs, **options).result()
        if not result.success:
            failures = {str(experiment.status) for experiment in result.results if not experiment.success}
            raise RuntimeError(f"Aer ({self.name}) failed: {result.status}. {' '.join(sorted(failures))}")
        data = [experiment.data for experiment in result.results]
        return [data[start : start + len(angles)] for start in range(0, len(data), len(angles))]

    @property
    def _noise(self) -> Any:
        """The simulator's noise model at this moment, None if there is none to speak of."""
        noise = self.simulator.options.noise_model
        return None if noise is None or noise.is_ideal() else noise

    def _circuits(self, program: Program) -> list[_Executable]:
        cached = self._cache.of(program)
        noise = self._noise
        if "circuits" not in cached or cached["noise"] is not noise:
            cached["noise"], cached["circuits"] = noise, self._transpile(program, noise)
        circuits: list[_Executable] = cached["circuits"]
        return circuits

    def _transpile(self, program: Program, noise: Any) -> list[_Executable]:
        # Noise and connections go by qubit number; elsewhere idle qubits are only a burden.
        compact = not self._placed and noise is None and self.initial_layout is None
        circuits = transpiled(
            [measured_circuit(program, group, compact=compact) for group in program.readout.groups],
            program,
            self.simulator,
            optimization_level=self.optimization_level,
            initial_layout=self.initial_layout,
            seed_transpiler=self.seed_transpiler,
        )
        bound = [bind_by_column(circuit, program) for circuit in circuits]
        if noise is not None and self.optimization_level == 0:
            _require_noisy_gates(program, noise, bound)
        groups = program.readout.groups
        return [_Executable(m, _saving(m.circuit, group)) for m, group in zip(bound, groups, strict=True)]

    def __repr__(self) -> str:
        return f"AerBackend({self.name!r}, optimization_level={self.optimization_level})"


def _require_noisy_gates(program: Program, noise: Any, circuits: Sequence[BoundCircuit]) -> None:
    """Refuses circuits whose noisy gates have been spelled out, and would run without their noise.

    (A transpiler that optimises may replace any gate; who asks for that expects it.)
    """
    kept = {instruction.operation.name for bound in circuits for instruction in bound.circuit.data}
    if program.has_angles_in("cp"):
        kept.discard("cp")
    lost = sorted((program.gate_names & set(noise.noise_instructions)) - kept - {"measure", "reset"})
    if circuits and lost:
        raise ValueError(
            f"Gate(s) {', '.join(lost)} of the circuit have noise in the simulator, but are decomposed to be differentiated "
            "or bound, and would run without it. Decompose them in the circuit, and give noise to the gates that result."
        )


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
    if isinstance(group, PauliGroup) and len(measured) > _MOST_SAVED_OUTCOME_QUBITS:
        for output, operator in enumerate(group.operators):
            saving.append(SaveExpectationValue(operator, label=_label(output)), measured)
    else:
        saving.append(SaveProbabilities(len(measured)), measured)
    return saving


def _label(output: int) -> str:
    return f"output {output}"


def _exact_moments(data: Sequence[Any], group: MeasurementGroup) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(group, PauliGroup) and len(group.qubits) > _MOST_SAVED_OUTCOME_QUBITS:
        values = [[getattr(entry, _label(m)) for m in range(len(group.operators))] for entry in data]
        return np.array(values), np.square(values)
    return group.moments(np.array([entry.probabilities for entry in data]))


def _samples(data: Sequence[Any], num_bits: int) -> Samples:
    """Counts as they come from Aer, by experiment: building ``Counts`` objects would cost more than the run."""
    counts = [entry.counts for entry in data]
    rows = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
    keys = [int(key, 16) for count in counts for key in count]
    if num_bits <= _MOST_INTEGER_BITS:
        bits = (np.array(keys, dtype=np.int64)[:, None] >> np.arange(num_bits)) & 1
    else:
        bits = np.array([[(key >> bit) & 1 for bit in range(num_bits)] for key in keys])
    return Samples(rows, bits.astype(np.uint8), np.array([n for count in counts for n in count.values()]), len(counts))
