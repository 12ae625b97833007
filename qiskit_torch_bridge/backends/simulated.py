"""What a simulator's options mean for the values: the noise that it has, and what it would leave out.

An error belongs to an instruction's label where it has one, else to its name. Whatever changes a circuit on its way
(gates decomposed to be differentiated, gates optimised away or translated for the device) can lose it; nothing in the
values would say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import psutil
from qiskit import QuantumCircuit
from qiskit.circuit import Operation
from qiskit.quantum_info import DensityMatrix

from ..arguments import in_gibibytes
from ..program.compiled import Program
from ..program.unrolling import is_parameterised
from .base import measured_circuit
from .transpiling import TranspilerOptions, is_from, transpiled

__all__ = [
    "check_method",
    "circuits_on",
    "cost_of_density_matrix",
    "default_level",
    "gates_to_keep",
    "has_gate_errors",
    "has_noise_of_its_own",
    "ignored_noise",
    "is_from",
    "key_of_errors",
    "leaves_out_idle_qubits",
    "noise_model_of",
    "require_noise",
    "require_separate_gates",
    "slow_trajectories",
    "touched_qubits",
    "truncation",
]

_WRITTEN_FOR_THEIR_NOISE = frozenset({"id", "delay"})
_NEVER_LOST = frozenset({"measure", "barrier"})
_BASIS_CHANGES = {"X": ("h",), "Y": ("sdg", "h"), "Z": ()}
_TRAJECTORIES = ("statevector", "matrix_product_state")
_MANY_TRAJECTORIES = 1000  # at least, and 8 times 2**qubits; measured from 3 to 8 qubits, two cores
_SECONDS_PER_ENTRY = 2e-8  # of a density matrix, and instruction; measured at 10 and 12 qubits, two cores
_NEGLIGIBLE = 1e-12


def check_method(device: Any) -> None:
    """Refuses simulators of matrices.

    Raises:
        ValueError: If the device is one.
    """
    method = getattr(getattr(device, "options", None), "method", None)
    if method in ("unitary", "superop") or type(device).__name__ == "UnitarySimulator":
        raise ValueError(
            f"backend: got {device.name!r}, which computes the matrix of a circuit and measures nothing; use AerSimulator() "
            "or another of its methods, for example method='density_matrix'."
        )


def noise_model_of(device: Any, run_options: Mapping[str, Any] | None = None) -> Any:
    """The noise model that a run would have, None if there is none to speak of, or none is known."""
    noise = getattr(getattr(device, "options", None), "noise_model", None)
    noise = (run_options or {}).get("noise_model", noise)
    return None if not hasattr(noise, "noise_instructions") or noise.is_ideal() else noise


def has_noise_of_its_own(device: Any, noise: Any) -> bool:
    """Whether the noise is the user's, on a simulator that stands for no device: circuits are run as they are written."""
    return noise is not None and is_from("qiskit_aer", device) and not getattr(device, "_from_backend", False)


def key_of_errors(operation: Operation) -> str:
    """What an instruction's noise goes by."""
    return getattr(operation, "label", None) or operation.name


def default_level(device: Any) -> int:
    """The transpiler's optimisation level where nobody has asked for one."""
    return 2 if device.coupling_map is not None and not has_noise_of_its_own(device, noise_model_of(device)) else 0


def circuits_on(program: Program, simulator: Any, noise: Any, options: TranspilerOptions) -> list[QuantumCircuit]:
    """The program's circuits, measured and transpiled for a simulator with this noise, one a measurement group."""
    compact = leaves_out_idle_qubits(simulator, options)
    circuits = [measured_circuit(program, group, compact=compact) for group in program.readout.groups]
    return transpiled(circuits, program, simulator, options, keep=gates_to_keep(program, simulator, noise))


def has_gate_errors(noise: Any, circuits: Iterable[QuantumCircuit] | None = None) -> bool:
    """Whether a noise model has errors, other than those of readout, for circuits; None: for any without measurements."""
    if noise is None or noise._custom_noise_passes:
        return noise is not None
    noisy = {*noise._default_quantum_errors, *noise._local_quantum_errors}
    if circuits is None:
        return bool(noisy - {"measure"})
    return any(key_of_errors(instruction.operation) in noisy for circuit in circuits for instruction in circuit.data)


def gates_to_keep(program: Program, device: Any, noise: Any) -> dict[str, type]:
    """Noisy gates that the simulator can run, but that its noise model does not name among its basis gates."""
    if noise is None or not is_from("qiskit_aer", device) or device.coupling_map is not None:
        return {}
    operations = [i.operation for i in program.circuit.data if key_of_errors(i.operation) in noise.noise_instructions]
    known = set(device.operation_names)
    missing = {o.name: o.base_class for o in operations if o.name not in known and o.name not in _NEVER_LOST}
    if missing:
        bare = deepcopy(device)
        bare.set_options(noise_model=None)
        known = set(bare.operation_names)
    return {name: kind for name, kind in missing.items() if name in known}


def leaves_out_idle_qubits(device: Any, options: TranspilerOptions) -> bool:
    """Whether circuits may lose qubits that nothing touches, because nothing depends on where they run.

    So it is where every qubit reaches every other, none has noise, and the user has chosen no places.
    """
    chosen = options.initial_layout is not None or options.pass_manager is not None
    return not chosen and noise_model_of(device) is None and getattr(device, "coupling_map", None) is None


def require_noise(
    program: Program,
    circuits: Iterable[QuantumCircuit],
    device: Any,
    noise: Any,
    options: TranspilerOptions,
    *,
    controls_are_kept: bool = False,
) -> None:
    """Refuses circuits that have lost noise on the way from what the user wrote.

    An optimising transpiler may remove or merge any gate, as it does for hardware. Who asks for its level expects that; who
    does not is told of instructions that are only written for their noise (``id``, ``delay``, labelled ones). A pass manager
    of the user's own has to keep what the default level keeps.

    Args:
        program: The program.
        circuits: Its circuits as they are going to run.
        device: Where.
        noise: The noise model, or None.
        options: How they were transpiled.
        controls_are_kept: Whether parameterised controlled phases run as they are, rather than spelled out.

    Raises:
        ValueError: If some noise is lost.
    """
    noisy = _noisy_instructions(device, noise)
    circuits = list(circuits)
    if not noisy or not circuits:
        return
    is_own = has_noise_of_its_own(device, noise)
    kept = [i.operation for i in program.circuit.data if controls_are_kept or not _is_spelled_out(i.operation)]
    _require_undecomposed(program, kept, noisy, noise, is_own=is_own)
    level = options.default_level if options.level is None else options.level
    if level > 0 and options.optimization_level is not None:
        return
    if is_own:
        _require_no_more_noise(program, circuits, kept, device, noise)
    expected = Counter(
        key_of_errors(i.operation)
        for i in program.circuit.data
        if key_of_errors(i.operation) in noisy - _NEVER_LOST and (level == 0 or _is_written_for_its_noise(i.operation))
    )
    counts = [Counter(key_of_errors(i.operation) for i in circuit.data) for circuit in circuits]
    if lost := frozenset(name for count in counts for name in expected - count):
        raise ValueError(f"Gate(s) {_listed(lost)} of the circuit have noise {_how_it_was_lost(options)}")


def _how_it_was_lost(options: TranspilerOptions) -> str:
    """The rest of the sentence, and what to do."""
    if options.level is None:
        return (
            "where it runs, but the pass manager removes or replaces them, and their noise with them; use one that keeps "
            "them, or remove them from the circuit."
        )
    if options.level > 0:
        return (
            "on the device, but the transpiler optimises them "
            "away, and their noise with them; remove them, or set the level: AerBackend(device, optimization_level=0), "
            f"or SamplerBackend and EstimatorBackend alike, keeps all, and {options.level} does without them."
        )
    return (
        "in the simulator, but are replaced by gates that "
        "the simulator (or the noise model's basis_gates) knows, and would run without it. Write the circuit in those "
        "gates, or name theirs in noise_model.add_basis_gates([...])."
    )


def _require_undecomposed(
    program: Program, kept: Iterable[Operation], noisy: frozenset[str], noise: Any, *, is_own: bool
) -> None:
    """Checks that no instruction with noise was decomposed before it came to the transpiler."""
    # A device has errors for whatever it runs in place of a gate, but none for labels.
    written: Counter[str | None] = Counter()
    for (name, label), times in program.instructions.items():
        written.update({name: times if is_own else 0, label: times})
    counts_of_kept = Counter(word for operation in kept for word in (operation.name, getattr(operation, "label", None)))
    lost = frozenset(word for word in written - counts_of_kept if word in noisy - _NEVER_LOST)
    if "reset" in lost and not _disturbs_a_fresh_qubit(noise):
        lost -= {"reset"}
    if lost:
        left_out = " (a reset of a fresh qubit is left out)" if "reset" in lost else ""
        raise ValueError(
            f"Gate(s) {_listed(lost)} of the circuit have noise in the simulator, but are decomposed to be "
            f"differentiated or bound{left_out}, and would run without it. Decompose them in the circuit, and give noise to "
            "the gates that result."
        )


def _require_no_more_noise(
    program: Program, circuits: Iterable[QuantumCircuit], kept: Iterable[Operation], device: Any, noise: Any
) -> None:
    """Checks that no gate that the simulator runs without noise was decomposed into gates that have some."""
    noisy = {*noise.noise_instructions} - _NEVER_LOST
    names = {*noise.basis_gates} & {*device.operation_names} - noisy - _NEVER_LOST
    written: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for (name, label), times in program.instructions.items():
        written.update({name: times if name in names else 0})
        keys.update({label or name: times})
    # What the transpiler makes of them may be the same gate again; that it is not shows in noise that has been added.
    lost = frozenset(written - Counter(operation.name for operation in kept))
    for number, circuit in enumerate(circuits):
        bases = program.readout.groups[number].bases if circuit.num_clbits else ""  # an Estimator changes them itself
        changes = Counter(gate for basis in bases for gate in _BASIS_CHANGES[basis])
        run = Counter(key_of_errors(i.operation) for i in circuit.data)
        added = frozenset(key for key in run - keys - changes if key in noisy)
        if lost and added:
            raise ValueError(
                f"Gate(s) {_listed(lost)} of the circuit have no noise in the simulator, but are decomposed to be "
                f"differentiated or bound, and would run with that of {_listed(added)}. Remove them from the noise model's "
                "basis gates, or decompose them in the circuit."
            )


def require_separate_gates(circuits: Iterable[QuantumCircuit], noise: Any, name: str) -> None:
    """Refuses noise on gates of single qubits for a primitive that merges those into gates of its own.

    Raises:
        ValueError: If there is some.
    """
    keys = {key_of_errors(i.operation) for circuit in circuits for i in circuit.data if len(i.qubits) == 1}
    if changed := (keys & set(noise.noise_instructions)) - _NEVER_LOST:
        raise ValueError(
            f"backend: {name} merges gates on single qubits into others before it runs them, and the noise of "
            f"{_listed(changed)} would be lost or changed; use a Sampler, or the AerSimulator itself."
        )


def ignored_noise(noise: Any) -> str | None:
    """What to say of a noise model whose errors Aer applies in part only; None if it applies all."""
    if noise is None:
        return None
    shared = {*noise._local_readout_errors, *noise._local_quantum_errors.get("measure", ())}
    ignored = [
        f"errors of measurements that qubits {', '.join(map(str, q))} share" for q in sorted(shared) if len(q) > 1
    ]
    if "barrier" in noise.noise_instructions:
        ignored.append("errors of barriers")
    if not ignored:
        return None
    return (
        f"Aer ignores part of the noise model: {'; '.join(ignored)}. Measurements are of one qubit each, so give each qubit "
        "a readout error of its own; and give the errors of barriers to gates ('id')."
    )


def touched_qubits(circuits: Iterable[QuantumCircuit]) -> frozenset[int]:
    """The qubits that an instruction acts on; Aer leaves out the others."""
    return frozenset(
        circuit.find_bit(qubit).index
        for circuit in circuits
        for instruction in circuit.data
        if instruction.operation.name != "barrier"
        for qubit in instruction.qubits
    )


def slow_trajectories(method: Any, qubits: int, shots: int) -> str | None:
    """What to say of a method that simulates each shot with noise by itself where a density matrix is far faster."""
    if method not in _TRAJECTORIES or shots < max(_MANY_TRAJECTORIES, 8 * 2**qubits):
        return None
    return (
        f"Aer's method {method!r} simulates each shot of a noisy circuit by itself; for {shots} shots of {qubits} qubits, "
        "method='density_matrix' (or 'automatic') gives the same statistics many times faster."
    )


def cost_of_density_matrix(qubits: int, instructions: int, options: Any, remedy: str) -> str | None:
    """What to say of exact values with noise that take longer than a minute, by a rough guess.

    Raises:
        MemoryError: If the density matrix is larger than this machine's memory.
    """
    needed = (8 if getattr(options, "precision", "double") == "single" else 16) * 4**qubits
    there = psutil.virtual_memory().total
    if needed > there:
        raise MemoryError(
            f"The density matrix of {qubits} qubits with noise needs {in_gibibytes(needed)} of memory, and this "
            f"machine has {in_gibibytes(there)}; {remedy}"
        )
    minutes = _SECONDS_PER_ENTRY * 4**qubits * instructions / 60
    if minutes < 1:
        return None
    return (
        f"Exact values with noise of {qubits} qubits take density matrices of 4**{qubits} numbers, here some "
        f"{minutes:,.0f} minute(s) a call; a number of shots, for example shots=1000, takes far less."
    )


def truncation(options: Any) -> str | None:
    """What to say of matrix product states that are cut off: their values are exact only for the state that is left."""
    bond = getattr(options, "matrix_product_state_max_bond_dimension", None)
    threshold = getattr(options, "matrix_product_state_truncation_threshold", None) or 0.0
    if options.method != "matrix_product_state" or (bond is None and threshold <= _NEGLIGIBLE):
        return None
    return (
        "Aer's matrix product states are truncated by the simulator's options (matrix_product_state_max_bond_dimension "
        f"{bond}, ..._truncation_threshold {threshold}); values then differ from the exact ones by more than their standard "
        "errors say. Compare a few with those of a larger bond dimension."
    )


def _noisy_instructions(device: Any, noise: Any) -> frozenset[str]:
    """The names and labels that have errors, by the noise model or, for a device without one, by what it says itself."""
    if noise is not None:
        return frozenset(noise.noise_instructions)
    target = None if is_from("qiskit_aer", device) else getattr(device, "target", None)
    if target is None:
        return frozenset()
    errors = {name: target[name].values() for name in target.operation_names if target[name] is not None}
    return frozenset(
        name for name, of_qubits in errors.items() if any(getattr(one, "error", None) for one in of_qubits)
    )


def _is_spelled_out(operation: Operation) -> bool:
    return operation.name == "cp" and any(map(is_parameterised, operation.params))


def _is_written_for_its_noise(operation: Operation) -> bool:
    return operation.name in _WRITTEN_FOR_THEIR_NOISE or bool(getattr(operation, "label", None))


def _disturbs_a_fresh_qubit(noise: Any) -> bool:
    """Whether errors of resets change a qubit that is in its ground state anyway."""
    errors = [noise._default_quantum_errors.get("reset"), *noise._local_quantum_errors.get("reset", {}).values()]
    ground = DensityMatrix.from_label("0")
    return any(error is not None and error.num_qubits == 1 and ground.evolve(error) != ground for error in errors)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
