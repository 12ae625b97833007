"""Qiskit Aer: exact values, shots, noise models and fake devices, on a simulator that the user configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit_aer import AerSimulator
from qiskit_aer.library import SaveProbabilities

from ..program import Program
from ..readout import Samples
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


@dataclass(frozen=True, eq=False)
class _Executable:
    """A group's circuit, measured; and with its measurements replaced by one that saves exact probabilities."""

    measured: BoundCircuit
    saving: QuantumCircuit


class AerBackend(Backend):
    """Runs on an ``AerSimulator``: one ``run`` with runtime parameter binding per forward or backward.

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
        if device is None:
            device = AerSimulator()
        self.simulator = device if isinstance(device, AerSimulator) else AerSimulator.from_backend(device)
        self.name = self.simulator.name
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
            probabilities = [np.array([entry.probabilities for entry in rows]) for rows in data]
            moments = [group.moments(weights) for group, weights in zip(groups, probabilities, strict=True)]
            return estimate_from_moments(program, moments, len(angles), None)
        samples = [_samples(rows, len(group.qubits)) for group, rows in zip(groups, data, strict=True)]
        return estimate_from_samples(program, samples, len(angles), shots)

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
        if noise is not None and "cp" in noise.noise_instructions and program.has_angles_in("cp"):
            raise ValueError(
                f"Gate 'cp' has a parameter here and noise in {self.name!r}, but Aer cannot bind parameters of "
                "controlled gates: it would run as three p and two cx. Decompose it in the circuit, and give those "
                "gates the noise."
            )
        # Noise and connections go by qubit number; elsewhere idle qubits are only a burden.
        compact = not self._placed and noise is None
        circuits = transpiled(
            [measured_circuit(program, group, compact=compact) for group in program.readout.groups],
            program,
            self.simulator,
            optimization_level=self.optimization_level,
            initial_layout=self.initial_layout,
            seed_transpiler=self.seed_transpiler,
        )
        bound = [bind_by_column(circuit, program) for circuit in circuits]
        return [_Executable(measured, _saving_probabilities(measured.circuit)) for measured in bound]

    def __repr__(self) -> str:
        return f"AerBackend({self.name!r}, optimization_level={self.optimization_level})"


def _saving_probabilities(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with its final measurements replaced by one instruction that saves the outcomes' probabilities."""
    qubits = {}
    saving = circuit.copy_empty_like()
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            qubits[circuit.find_bit(instruction.clbits[0]).index] = instruction.qubits[0]
        else:
            saving.append(instruction, copy=False)
    saving.append(SaveProbabilities(len(qubits)), [qubits[bit] for bit in sorted(qubits)])
    return saving


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
