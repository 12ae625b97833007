"""Qiskit Aer: exact values, shots, noise models and fake devices, on a simulator that the user configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.result import Result
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
        if shots is None and self._is_noisy:
            if any(error["type"] == "roerror" for error in self.simulator.options.noise_model.to_dict()["errors"]):
                raise ValueError(
                    f"shots: got None, but {self.name!r} has readout errors, which exact values would leave out; give a "
                    "number of shots, for example shots=1000."
                )
            if self.simulator.options.method not in ("automatic", "density_matrix"):
                raise ValueError(
                    f"shots: got None, but {self.name!r} has noise, and its method {self.simulator.options.method!r} is "
                    "exact only in the mean; give a number of shots, or use method='density_matrix'."
                )
        return shots

    def prepare(self, program: Program) -> None:
        self._circuits(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        circuits = self._circuits(program)
        rows = len(angles)
        if not circuits:
            return estimate_from_moments(program, [], rows, shots)
        size = max(1, _MOST_EXPERIMENTS_A_RUN // len(circuits))
        chunks = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
        # Aer gives experiment i the seed s + 2113 i; 63 random bits keep the ranges of different calls apart.
        seeds = (seed.generate_state(len(chunks), np.uint64) >> np.uint64(1)).tolist()
        parts = [self._run(circuits, angles[c], shots, s) for c, s in zip(chunks, seeds, strict=True)]
        if shots is None:
            moments = []
            for g, group in enumerate(program.readout.groups):
                moments.append(
                    group.moments(
                        np.concatenate([_probabilities(part, g, c) for part, c in zip(parts, chunks, strict=True)])
                    )
                )
            return estimate_from_moments(program, moments, rows, None)
        samples = [
            _samples(
                [
                    part[g * (c.stop - c.start) + i]
                    for part, c in zip(parts, chunks, strict=True)
                    for i in range(c.stop - c.start)
                ],
                len(group.qubits),
            )
            for g, group in enumerate(program.readout.groups)
        ]
        return estimate_from_samples(program, samples, rows, shots)

    def _run(self, circuits: Sequence[BoundCircuit], angles: np.ndarray, shots: int | None, seed: int) -> list[Any]:
        """The data of each experiment, all rows of the first circuit first."""
        jobs: list[QuantumCircuit] = []
        binds: list[dict[Any, list[float]]] = []
        for bound in circuits:
            circuit = bound.circuit if shots is not None else _saving_probabilities(bound.circuit)
            if bound.parameters:
                columns = bound.values(angles).T.tolist()
                jobs.append(circuit)
                binds.append(dict(zip(bound.parameters, columns, strict=True)))
            else:
                jobs += [circuit] * len(angles)
                binds += [{} for _ in range(len(angles))]
        options: dict[str, Any] = {"seed_simulator": seed, "shots": shots or 1}
        if shots is None and self._is_noisy:
            options["method"] = "density_matrix"
        if any(binds):
            options.update(parameter_binds=binds, runtime_parameter_bind_enable=True)
        result = self.simulator.run(jobs, **options).result()
        _require_success(result, self.name)
        return [experiment.data for experiment in result.results]

    @property
    def _is_noisy(self) -> bool:
        noise = self.simulator.options.noise_model
        return noise is not None and not noise.is_ideal()

    def _circuits(self, program: Program) -> list[BoundCircuit]:
        cached = self._cache.of(program)
        if "circuits" not in cached:
            compact = not self._placed and not self._is_noisy
            circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
            if (
                self._is_noisy
                and "cp" in self.simulator.options.noise_model.noise_instructions
                and program.angles_of("cp")
            ):
                raise ValueError(
                    f"Gate 'cp' has a parameter here and noise in {self.name!r}, but Aer cannot bind parameters of "
                    "controlled gates: it would run as three p and two cx. Decompose it in the circuit, and give those "
                    "gates the noise."
                )
            device = transpiled(
                circuits,
                program,
                self.simulator,
                optimization_level=self.optimization_level,
                initial_layout=self.initial_layout,
                seed_transpiler=self.seed_transpiler,
            )
            cached["circuits"] = [bind_by_column(circuit, program) for circuit in device]
        circuits_of_groups: list[BoundCircuit] = cached["circuits"]
        return circuits_of_groups

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


def _require_success(result: Result, name: str) -> None:
    if not result.success:
        failures = {experiment.status for experiment in result.results if not experiment.success}
        raise RuntimeError(f"Aer ({name}) failed: {result.status}. {' '.join(sorted(map(str, failures)))}")


def _probabilities(data: Sequence[Any], group: int, chunk: slice) -> np.ndarray:
    """Shape (rows of the chunk, 2**k)."""
    rows = chunk.stop - chunk.start
    return np.array([entry.probabilities for entry in data[group * rows : (group + 1) * rows]])


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
