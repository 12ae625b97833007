"""What the stand-in of IBM's service does with one executor job: decodes it, checks it, simulates it, answers.

Circuits of few active qubits without mid-circuit operations go through a small exact simulator, vectorised over the
parameter sets, because a test waits for every job; all else goes through the fake backends' own executor on Aer.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import (
    ChunkPart,
    ChunkSpan,
    ItemMetadataModel,
    MetadataModel,
    QuantumProgramResultItemModel,
    QuantumProgramResultModel,
)
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Parameter
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample
from qiskit_ibm_runtime.fake_provider.executor.run_quantum_program import run_quantum_program
from qiskit_ibm_runtime.options_models.simulator import SimulatorOptions
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS
from samplomatic.quantum_program import CircuitItem

SCHEMA = "v2.0"
EXACT_QUBITS = 14
AMPLITUDES = 2**22  # at most so many at a time: 64 MiB
NOT_GATES = ("barrier", "delay", "measure")

# The price of a job: what it takes to load it, and an execution at a repetition rate of 4 kHz.
SECONDS_PER_JOB = 2.0
SECONDS_PER_EXECUTION = 250e-6


class BadJobError(ValueError):
    """The service refuses this job: it is no executor job of schema v2.0."""


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Attributes:
        result: The body of the answer to ``/jobs/ID/results``; empty if the job failed.
        reason: Why it failed; empty if it did not.
        reason_code: IBM's number of that reason.
    """

    result: str = ""
    reason: str = ""
    reason_code: int = 0


class ExecutorJob:
    """A decoded executor job.

    Args:
        params: What the client posts as ``params``.

    Raises:
        BadJobError: If it cannot be decoded.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        if params.get("schema_version") != SCHEMA:
            raise BadJobError(f"got schema version {params.get('schema_version')}, expected {SCHEMA}")
        converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[SCHEMA]
        try:
            self._model = converter.model.model_validate(params)
            self.program, _ = converter.decoder(self._model)
        except (ValueError, TypeError, KeyError) as error:
            raise BadJobError(f"the job cannot be decoded: {error}") from error

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of the parameter sets (and randomizations) of each item."""
        items = self.program.items
        return [i.circuit_arguments.shape[:-1] if isinstance(i, CircuitItem) else i.shape for i in items]

    @property
    def parameter_sets(self) -> int:
        """Bound circuits of the whole job."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def shots(self) -> int:
        """Shots of each bound circuit."""
        return self.program.shots

    @property
    def seconds(self) -> int:
        """What the job is billed for: whole seconds of the device."""
        return math.ceil(SECONDS_PER_JOB + self.parameter_sets * self.shots * SECONDS_PER_EXECUTION)

    def run(self, device: Any, *, noise: bool) -> Outcome:
        """Simulates the job on ``device``, a fake backend, with its noise or without any."""
        for item in self.program.items:
            for name, qubits in _operations_off_target(item.circuit, device.target):
                reason = f"The instruction {name} on qubits {qubits} is not supported by the target system."
                return Outcome(reason=reason, reason_code=1517)
        seed = self._seed()
        arrays = None if noise else self._exact(np.random.default_rng(seed))
        return Outcome(result=self._encode(arrays if arrays is not None else self._on_aer(device, seed, noise=noise)))

    def _seed(self) -> int:
        """A seed that the content alone decides, so that the same job has the same counts in every process.

        Names of parameters and circuits are left out, as are the bytes in which circuits were sent: neither need be
        the same when a program makes the same circuit a second time.
        """
        digest = hashlib.sha256(repr((self.shots, self.shapes)).encode())
        for item in self.program.items:
            for instruction in item.circuit.data:
                digest.update(repr((instruction.operation.name, _places(item.circuit, instruction))).encode())
            arguments = {"": item.circuit_arguments} if isinstance(item, CircuitItem) else item.samplex_arguments
            for name in sorted(arguments):
                value = arguments[name]
                digest.update(name.encode())
                digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return int.from_bytes(digest.digest()[:8], "little") >> 2

    def _exact(self, rng: np.random.Generator) -> list[dict[str, np.ndarray]] | None:
        """The arrays of each item from exact simulation, or ``None`` where a circuit is beyond it."""
        circuits = [ExactCircuit(item.circuit) for item in self.program.items]
        if not all(circuit.supported for circuit in circuits):
            return None
        arrays = []
        for item, circuit, shape in zip(self.program.items, circuits, self.shapes, strict=True):
            if isinstance(item, CircuitItem):
                extras, values = {}, item.circuit_arguments
            else:
                item.samplex.finalize()
                extras = broadcast_sample(item.samplex, item.samplex_arguments, shape, rng)
                values = extras.pop("parameter_values")
            rows = values.reshape(math.prod(shape), -1)
            bits = circuit.sample(rows, self.shots, rng)
            arrays.append(extras | {name: array.reshape(*shape, *array.shape[1:]) for name, array in bits.items()})
        return arrays

    def _on_aer(self, device: Any, seed: int, *, noise: bool) -> list[dict[str, np.ndarray]]:
        for item in self.program.items:
            if not isinstance(item, CircuitItem):
                item.samplex.finalize()
        simulator = _simulator(device if noise else None)
        options = SimulatorOptions(seed_simulator=seed % 2**31, angle_decimals=12)
        return [dict(item) for item in run_quantum_program(simulator, self.program, options)]

    def _encode(self, arrays: list[dict[str, np.ndarray]]) -> str:
        now = datetime.now(timezone.utc)
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [
            ChunkPart(idx_item=index, size=size, permutation=list(range(len(shape))), element_range=(0, size, 1))
            for index, (size, shape) in enumerate(zip(sizes, self.shapes, strict=True))
        ]
        results = [{name: CompressedTensorModel.from_numpy(array) for name, array in item.items()} for item in arrays]
        return QuantumProgramResultModel(
            data=[QuantumProgramResultItemModel(results=each, metadata=ItemMetadataModel()) for each in results],
            metadata=MetadataModel(chunk_timing=[ChunkSpan(start=now, stop=now, parts=parts)]),
            passthrough_data=self._model.quantum_program.passthrough_data,
            semantic_role=self._model.quantum_program.semantic_role,
        ).model_dump_json()


class ExactCircuit:
    """Exact simulation of one circuit for many parameter sets.

    Args:
        circuit: A circuit whose measurements, if any, come last on their qubits.
    """

    def __init__(self, circuit: QuantumCircuit) -> None:
        self.circuit = circuit
        self.gates: list[tuple[CircuitInstruction, list[int]]] = []
        self.measured: dict[int, int] = {}  # clbit: qubit
        self.supported = True
        groups: dict[int, set[int]] = {}  # qubits that gates connect, under each of them
        for instruction in circuit.data:
            qubits, clbits = _places(circuit, instruction)
            name = instruction.operation.name
            if name in ("barrier", "delay"):
                continue
            group = set(qubits).union(*(groups.get(qubit, ()) for qubit in qubits))
            groups.update(dict.fromkeys(group, group))
            if name == "measure":
                self.supported &= clbits[0] not in self.measured and qubits[0] not in self.measured.values()
                self.measured[clbits[0]] = qubits[0]
            else:
                self.supported &= hasattr(instruction.operation, "to_matrix") and not clbits
                self.supported &= not set(qubits) & set(self.measured.values())
                self.gates.append((instruction, qubits))
        # The Estimator's circuits act on the whole device; what is not entangled is simulated apart.
        self.groups = [sorted(group) for qubit, group in sorted(groups.items()) if qubit == min(group)]
        self.supported &= all(len(group) <= EXACT_QUBITS for group in self.groups)

    def sample(self, rows: np.ndarray, shots: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Measured bits of each classical register.

        Args:
            rows: Values of ``circuit.parameters``, of shape (rows, parameters).
            shots: Shots of each row.
            rng: Where the outcomes are drawn.

        Returns:
            Boolean arrays by name of the register, of shape (rows, shots, bits); bit 0 comes first.
        """
        bits = np.zeros((len(rows), shots, self.circuit.num_clbits), dtype=bool)
        for group in self.groups:
            outcomes = self._outcomes(group, rows, shots, rng)
            for clbit, qubit in self.measured.items():
                if qubit in group:
                    bits[..., clbit] = (outcomes >> group.index(qubit)) & 1
        index = {bit: place for place, bit in enumerate(self.circuit.clbits)}
        return {register.name: bits[..., [index[bit] for bit in register]] for register in self.circuit.cregs}

    def _outcomes(self, group: list[int], rows: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
        """Basis states of the qubits of ``group``, of shape (rows, shots)."""
        outcomes = np.empty((len(rows), shots), dtype=np.int64)
        size = max(1, AMPLITUDES >> len(group))
        for start in range(0, len(rows), size):
            cumulative = np.cumsum(self._probabilities(group, rows[start : start + size]), axis=1)
            for row, edges in enumerate(cumulative, start):
                drawn = np.searchsorted(edges, rng.random(shots) * edges[-1], side="right")
                outcomes[row] = np.minimum(drawn, len(edges) - 1)
        return outcomes

    def _probabilities(self, group: list[int], rows: np.ndarray) -> np.ndarray:
        width = len(group)
        position = {qubit: index for index, qubit in enumerate(group)}
        state = np.zeros((len(rows), 2**width), dtype=complex)
        state[:, 0] = 1
        state = state.reshape(-1, *(2,) * width)
        for gate, qubits in self.gates:
            if qubits[0] not in position:
                continue
            axes = [width - position[qubit] for qubit in reversed(qubits)]
            front = range(1, 1 + len(qubits))
            moved = np.moveaxis(state, axes, front)
            product = self._matrix(gate.operation, rows) @ moved.reshape(len(rows), 2 ** len(qubits), -1)
            state = np.moveaxis(product.reshape(moved.shape), front, axes)
        return np.abs(state.reshape(len(rows), -1)) ** 2

    def _matrix(self, operation: Any, rows: np.ndarray) -> np.ndarray:
        """Of shape (d, d) where the parameters leave the gate alone, else (rows, d, d)."""
        angles = [self._angle(value, rows) for value in operation.params]
        if all(np.ndim(angle) == 0 for angle in angles):
            return _bound_matrix(operation, [float(angle) for angle in angles])
        if operation.name == "rz":
            half = np.exp(-0.5j * angles[0])
            return np.stack([half, half.conj()], axis=1)[:, :, None] * np.eye(2)
        columns = np.broadcast_arrays(*(np.broadcast_to(angle, len(rows)) for angle in angles))
        return np.stack([_bound_matrix(operation, list(values)) for values in zip(*columns, strict=True)])

    def _angle(self, value: Any, rows: np.ndarray) -> Any:
        if isinstance(value, Parameter):
            return rows[:, self._columns[value]]
        if getattr(value, "parameters", None):
            taken = [(parameter, self._columns[parameter]) for parameter in value.parameters]
            return np.array([float(value.bind_all({name: row[column] for name, column in taken})) for row in rows])
        return value

    @cached_property
    def _columns(self) -> dict[Parameter, int]:
        return {parameter: column for column, parameter in enumerate(self.circuit.parameters)}


@lru_cache
def _simulator(device: Any) -> AerSimulator:
    """Aer with the noise of ``device``, or with none."""
    simulator = AerSimulator() if device is None else AerSimulator.from_backend(device)
    simulator.set_options(max_parallel_threads=1)
    return simulator


def _bound_matrix(operation: Any, angles: list[float]) -> np.ndarray:
    if not angles:
        return operation.to_matrix()
    bound = operation.to_mutable()
    bound.params = angles
    return bound.to_matrix()


def _places(circuit: QuantumCircuit, instruction: CircuitInstruction) -> tuple[list[int], list[int]]:
    """The indices of the qubits and of the classical bits of an instruction."""
    qubits = [circuit.find_bit(bit).index for bit in instruction.qubits]
    return qubits, [circuit.find_bit(bit).index for bit in instruction.clbits]


def _operations_off_target(circuit: QuantumCircuit, target: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    known: set[tuple[str, tuple[int, ...]]] = set()
    for instruction in circuit.data:
        place = (instruction.operation.name, tuple(circuit.find_bit(bit).index for bit in instruction.qubits))
        if place in known or place[0] in NOT_GATES:
            continue
        known.add(place)
        if not target.instruction_supported(*place):
            yield place
