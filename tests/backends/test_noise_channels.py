"""Noise as channels: what a noisy circuit gives by its definition is what Aer gives; what cannot be one is refused."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from conformance import fake
from noisy_evolution import BASIS, MODELS, outcome_probabilities, values_of, with_readout
from problems import PROBLEMS, Problem, problem
from qiskit import QuantumCircuit, generate_preset_pass_manager
from qiskit.circuit import Gate, Reset
from qiskit.circuit.library import CCXGate, CXGate, UnitaryGate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import PTM, Operator, PauliList, random_unitary
from qiskit.transpiler import PassManager, TransformationPass
from qiskit_aer import AerSimulator
from qiskit_aer.noise import (
    LocalNoisePass,
    NoiseModel,
    PauliLindbladError,
    QuantumError,
    amplitude_damping_error,
    depolarizing_error,
    pauli_error,
)
from scipy.stats import chi2
from test_noise_kept import BOTH, CASES, FLIP, OBSERVABLES, WEIGHTS, W, directly, noise_on, rotated

from qiskit_torch_bridge import AerBackend, Program
from qiskit_torch_bridge.backends.aer import noisy_simulator
from qiskit_torch_bridge.backends.noise_channels import noisy_circuits
from qiskit_torch_bridge.backends.simulated import circuits_on
from qiskit_torch_bridge.backends.transpiling import TranspilerOptions
from qiskit_torch_bridge.program.channels import Channel, NoisyCircuit, Rotation

SEED = np.random.SeedSequence(0)
FEW = ("random_1", "library_zz_feature_map", "gate_ccry", "gate_xx_plus_yy", "gate_cp", "expression_product")
ATOL = 1e-10


def aer(noise: NoiseModel | None, **options: Any) -> AerSimulator:
    return AerSimulator(noise_model=noise, max_parallel_threads=1, **options)


def channels(program: Program, simulator: AerSimulator, **options: Any) -> tuple[NoisyCircuit, ...]:
    return noisy_circuits(program, simulator, AerBackend(simulator, **options).transpiler)


def angles_of(program: Program, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(1).uniform(-3, 3, (rows, program.num_columns))


def outcomes(of: Problem) -> Program:
    """The problem's circuit, of which the outcomes of all qubits are read, in an order of their own."""
    qubits = list(np.random.default_rng(2).permutation(of.circuit.num_qubits).tolist())
    circuit = of.circuit.remove_final_measurements(inplace=False)
    return Program.compile(circuit, inputs=of.inputs, weights=of.flat_weights, probabilities=qubits)


def assert_as_aer(program: Program, backend: AerBackend, name: str) -> None:
    angles = angles_of(program)
    expected = backend.evaluate(program, angles, shots=None, seed=SEED).values
    values = values_of(program, channels(program, backend.simulator), angles)
    np.testing.assert_allclose(values, expected, rtol=0, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_values_are_those_of_aer(kind):
    """Each model on every other circuit."""
    backend = AerBackend(aer(MODELS[kind]()))
    for name in FEW[list(MODELS).index(kind) % 2 :: 2]:
        assert_as_aer(problem(name).program, backend, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_values_of_every_circuit_are_those_of_aer(kind):
    """Where one refuses, so does the other, with the same words. Each circuit meets one model, in turn."""
    backend = AerBackend(aer(MODELS[kind]()))
    for name in list(PROBLEMS)[list(MODELS).index(kind) :: len(MODELS)]:
        try:
            backend.prepare(problem(name).program)
        except ValueError as error:
            with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
                channels(problem(name).program, backend.simulator)
        else:
            assert_as_aer(problem(name).program, backend, name)


# ----------------------------------------------------------------------------------- instructions, labels, qubits


def also(noise: NoiseModel, name: str, error: QuantumError, qubits: list[int] | None = None) -> NoiseModel:
    if qubits is None:
        noise.add_all_qubit_quantum_error(error, name, warnings=False)
    else:
        noise.add_quantum_error(error, name, qubits, warnings=False)
    return noise


def wide(num_qubits: int, operation: Gate) -> QuantumCircuit:
    """Both turned qubits, others, and an operation on all of them, from qubit 1 on."""
    qc = QuantumCircuit(num_qubits)
    for qubit in range(2, num_qubits):
        qc.h(qubit)
    qc.compose(rotated(lambda qc: None), [0, 1], inplace=True)
    qc.append(operation, [1, 0, *range(2, num_qubits)])
    return qc


def relaxing(dt: float | None) -> NoiseModel:
    """Relaxation during delays, by a device's own times, and an error of delays beside it."""
    noise = noise_on("delay", error=FLIP, basis=BASIS)
    device = NoiseModel.from_backend_properties(fake("FakeManilaV2").properties(), dt=dt)
    noise._custom_noise_passes += device._custom_noise_passes
    return noise


HALF = amplitude_damping_error(0.3)


def delayed(unit: str) -> QuantumCircuit:
    """In units of 2 ns, or in nanoseconds."""
    times = (20_000, 5_000) if unit == "dt" else (40_000, 10_000)
    return rotated(lambda qc: [(qc.h(q), qc.delay(time, q, unit), qc.h(q)) for q, time in enumerate(times)])


FURTHER: dict[str, tuple[QuantumCircuit, NoiseModel]] = {
    "free controlled phase": (
        rotated(lambda qc: [qc.h([0, 1]), qc.cp(W[0], 0, 1), qc.cx(0, 1), qc.h([0, 1])]),
        also(noise_on("cp", error=HALF.tensor(FLIP), basis=[*BASIS, "cp"]), "cx", BOTH),
    ),
    "free rotations of two qubits": (
        rotated(lambda qc: [qc.h([0, 1]), qc.rzz(W[0], 0, 1), qc.rzx(W[1], 1, 0), qc.ryy(W[0] + W[1], 0, 1)]),
        noise_on("rzz", "rzx", "ryy", error=HALF.tensor(FLIP), basis=[*BASIS, "rzx", "ryy"]),
    ),
    "an error of fewer qubits": (
        rotated(lambda qc: qc.append(CXGate(label="far"), [1, 0])),
        noise_on("far", error=HALF, basis=BASIS),
    ),
    "some qubits instead of all": (
        rotated(lambda qc: [qc.x(0), qc.x(1)]),
        also(noise_on("x", error=FLIP), "x", HALF, [1]),
    ),
    "three qubits": (wide(3, CCXGate()), noise_on("ccx", error=depolarizing_error(0.4, 3), basis=[*BASIS, "ccx"])),
    "a matrix on four qubits": (
        wide(4, UnitaryGate(random_unitary(16, seed=4), label="flip")),
        noise_on("flip", error=HALF.tensor(FLIP), basis=BASIS),
    ),
    "relaxation": (delayed("dt"), relaxing(2e-9)),
}


@pytest.mark.parametrize(("qc", "noise"), [*CASES.values(), *FURTHER.values()], ids=[*CASES, *FURTHER])
def test_what_an_error_belongs_to_is_as_in_aer(qc, noise):
    observables = ["I" * (qc.num_qubits - 2) + observable for observable in OBSERVABLES]
    program = Program.compile(qc, weights=list(W), observables=observables)
    angles = np.empty((1, program.num_columns))
    for columns, group in zip(program.angle_map.slices, program.evaluate_angles(None, [WEIGHTS]), strict=True):
        angles[:, columns] = group.numpy()
    values = values_of(program, channels(program, aer(noise)), angles)
    expected = directly(qc, noise)
    assert (expected - directly(qc, NoiseModel())).abs().max() > 0.05, "the noise must be visible"
    np.testing.assert_allclose(values[0], expected, rtol=0, atol=ATOL)


def test_delays_in_seconds_relax_as_those_in_dt():
    programs = [Program.compile(qc, weights=list(W)) for qc in (delayed("dt"), delayed("ns"))]
    angles, (_, noise) = angles_of(programs[0]), FURTHER["relaxation"]
    of_dt, of_seconds = (values_of(one, channels(one, aer(noise)), angles) for one in programs)
    np.testing.assert_allclose(of_dt, of_seconds, rtol=0, atol=ATOL)


# --------------------------------------------------------------------------------------------- what is made of it


@pytest.mark.parametrize(
    "gate", [CXGate(), CCXGate(), UnitaryGate(random_unitary(8, seed=3))], ids=["cx", "ccx", "any"]
)
def test_transfer_matrices_are_qiskit_s(gate):
    """Of the gate's qubits the first has the least significant digit: so Qiskit numbers Pauli strings."""
    program = Program.compile(wide(gate.num_qubits, gate), weights=list(W), probabilities=range(gate.num_qubits))
    (circuit,) = channels(program, aer(None))
    last = circuit.operations[-1]
    assert isinstance(last, Channel)
    assert last.qubits == (1, 0, 2)[: gate.num_qubits]
    np.testing.assert_allclose(last.ptm, PTM(Operator(gate)).data.real, rtol=0, atol=1e-13)
    assert not last.ptm.flags.writeable
    assert gate.name != "cx" or set(np.unique(last.ptm)) == {-1.0, 0.0, 1.0}


def test_what_no_measured_bit_depends_on_is_left_out():
    """Later gates on other qubits, and qubits that only those touch; also their angles."""
    qc = QuantumCircuit(4)
    qc.ry(W[0], 3)
    qc.cx(3, 1)
    qc.ry(W[1], 3)
    qc.cx(3, 0)
    noise = noise_on("cx", error=BOTH, basis=BASIS)
    (circuit,) = channels(Program.compile(qc, weights=list(W), observables=["IIZI"]), aer(noise))
    turn, gate, error = circuit.operations
    assert (circuit.num_qubits, circuit.measured, circuit.readout) == (2, (0,), (None,))
    assert turn == Rotation((1,), "Y", 0)
    assert gate.qubits == error.qubits == (1, 0)
    np.testing.assert_array_equal(circuit.slopes, [[1.0], [0.0]])


def test_equal_channels_are_one_object():
    program = Program.compile(rotated(lambda qc: [qc.cx(0, 1)] * 2), weights=list(W), observables=["XX", "ZZ"])
    noise = noise_on("cx", error=BOTH, basis=BASIS)
    both = channels(program, aer(noise))
    entanglers = {step for circuit in both for step in circuit.operations if len(step.qubits) == 2}
    assert len(both) == 2
    assert len(entanglers) == 2, "the gate and its error"


# ------------------------------------------------------------------------------------------------------- devices


@cache
def device(name: str, *, readout: bool = False) -> AerSimulator:
    noise = NoiseModel.from_backend(fake(name), readout_error=readout)
    return noisy_simulator(noise, AerSimulator.from_backend(fake(name), noise_model=None, max_parallel_threads=1))


SIZES = {
    "FakeManilaV2": ["random_0", "library_zz_feature_map", "gate_ccry"],
    "FakeMontrealV2": ["random_0", "gate_ccry"],
    "FakeSherbrooke": ["library_zz_feature_map", "gate_ccry"],
}
"""Which circuits meet a device: on one with the same gates as a smaller one they differ in their place alone."""
OFTEN_THE_SMALL_ONE = ["FakeManilaV2", pytest.param("FakeMontrealV2", marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(
            pytest.param(kind, "FakeManilaV2", marks=[] if place % 2 == 0 else pytest.mark.slow)
            for place, kind in enumerate(MODELS)
        ),
        *((kind, "FakeMontrealV2") for kind in list(MODELS)[::5]),
        pytest.param(next(iter(MODELS)), "FakeSherbrooke", marks=pytest.mark.slow),
    ],
)
def test_models_of_one_s_own_on_a_device_are_those_of_aer(kind, name):
    """Of the device are the gates and connections alone."""
    simulator = noisy_simulator(MODELS[kind](), device(name))
    program = problem("library_zz_feature_map").program
    angles = angles_of(program)
    expected = AerBackend(simulator).evaluate(program, angles, shots=None, seed=SEED).values
    np.testing.assert_allclose(values_of(program, channels(program, simulator), angles), expected, rtol=0, atol=ATOL)


def assert_probabilities(ours: np.ndarray, aers: np.ndarray) -> None:
    """Aer leaves out terms of errors below 1e-10: what it may be wrong by is the trace that it lost."""
    lost = 1 - aers.sum(axis=1, keepdims=True)
    assert lost.max() < 1e-7
    assert (np.abs(ours - aers) <= ATOL + np.abs(lost)).all()


@pytest.mark.parametrize(
    ("name", "circuit"),
    [
        pytest.param(name, circuit, marks=[pytest.mark.slow] * (name == "FakeSherbrooke"))
        for name, circuits in SIZES.items()
        for circuit in circuits
    ],
)
def test_devices_are_those_of_aer(name, circuit):
    program = outcomes(problem(circuit))
    angles = angles_of(program)
    expected = AerBackend(device(name)).evaluate(program, angles, shots=None, seed=SEED).values
    (noisy,) = channels(program, device(name))
    assert noisy.num_qubits <= program.circuit.num_qubits + 1, "idle qubits are left out"
    assert_probabilities(outcome_probabilities(noisy, angles), expected)


def saved(circuit: QuantumCircuit) -> QuantumCircuit:
    """Probabilities in place of measurements, and no delays of qubits that do nothing else."""
    active = {q for i in circuit.data if i.operation.name not in ("delay", "barrier", "measure") for q in i.qubits}
    saving = circuit.copy_empty_like()
    measured = {}
    for instruction in circuit.data:
        if instruction.operation.name == "measure":
            measured[circuit.find_bit(instruction.clbits[0]).index] = instruction.qubits[0]
        elif active.issuperset(instruction.qubits):
            saving.append(instruction)
    saving.save_probabilities([measured[bit] for bit in sorted(measured)])
    return saving


@pytest.mark.parametrize("name", OFTEN_THE_SMALL_ONE)
def test_scheduled_circuits_relax_while_they_wait(name):
    """Delays are on all the device's qubits; those that are not measured cost nothing here, and no memory."""
    program, simulator = outcomes(problem("library_zz_feature_map")), device(name)
    options = {"backend": fake(name), "seed_transpiler": 0}
    scheduled, plain = (
        TranspilerOptions(pass_manager=generate_preset_pass_manager(1, scheduling_method=method, **options))
        for method in ("alap", None)
    )
    angles = angles_of(program)
    (circuit,) = circuits_on(program, simulator, simulator.options.noise_model, scheduled)
    assert circuit.count_ops()["delay"] > 5
    bound = [saved(circuit.assign_parameters(dict(zip(program.angles, row, strict=True)))) for row in angles]
    result = simulator.run(bound, method="density_matrix", shots=1).result()
    (noisy,) = noisy_circuits(program, simulator, scheduled)
    ours = outcome_probabilities(noisy, angles)
    assert noisy.num_qubits <= 4
    assert_probabilities(ours, np.array([result.data(row)["probabilities"] for row in range(len(angles))]))
    (without,) = noisy_circuits(program, simulator, plain)
    assert np.abs(ours - outcome_probabilities(without, angles)).max() > 1e-3, "the delays must be visible"


# ------------------------------------------------------------------------------------------------------- readout


def chi_square(program: Program, simulator: AerSimulator, shots: int = 20_000) -> tuple[float, int]:
    """The chi-square of Aer's counts, and its degrees of freedom."""
    angles = angles_of(program)
    (noisy,) = channels(program, simulator)
    expected = shots * outcome_probabilities(noisy, angles)
    counts = shots * AerBackend(simulator).evaluate(program, angles, shots=shots, seed=SEED).values
    assert expected.min() > 5
    return float(((counts - expected) ** 2 / expected).sum()), len(angles) * (expected.shape[1] - 1)


def assert_likely(tests: list[tuple[float, int]]) -> None:
    total, freedom = np.sum(tests, axis=0)
    assert chi2.sf(total, freedom) > 1e-3
    assert chi2.cdf(total, freedom) > 1e-3


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if place % 3 == 0 else pytest.mark.slow) for place, kind in enumerate(MODELS)]
)
def test_counts_of_misread_bits_are_those_of_aer(kind):
    """Bits are misread, differently from 0 and from 1, one qubit otherwise than the others; and flipped before.

    Each model on every other circuit, of two, three and four qubits: readout and gates do not depend on each other.
    """
    simulator = aer(with_readout(MODELS[kind]()))
    names = FEW[list(MODELS).index(kind) % 2 :: 2]
    assert_likely([chi_square(outcomes(problem(name)), simulator) for name in names])


@pytest.mark.parametrize("name", OFTEN_THE_SMALL_ONE)
def test_counts_of_devices_are_those_of_aer(name):
    names = ("gate_ccry", "library_zz_feature_map")
    assert_likely([chi_square(outcomes(problem(one)), device(name, readout=True)) for one in names])


def test_readout_errors_that_qubits_share_are_left_out_as_by_aer():
    noise = NoiseModel()
    noise.add_readout_error(np.eye(4)[::-1], [0, 1])
    program = outcomes(problem("gate_ccry"))
    (circuit,) = channels(program, aer(noise))
    assert circuit.readout == (None, None, None)
    with pytest.warns(UserWarning, match="Aer ignores part of the noise model"):
        assert_likely([chi_square(program, aer(noise))])


# ------------------------------------------------------------------------------------- sources of noise, refusals


@cache
def channels_from(source: Callable[[Any], Any]) -> NoisyCircuit:
    """Those of one circuit on a device, with the noise that is made of what the source gives of it."""
    simulator = noisy_simulator(source(fake("FakeManilaV2")), fake("FakeManilaV2"))
    (circuit,) = channels(outcomes(problem("gate_ccry")), simulator)
    return circuit


def nothing(device: Any) -> None:
    return None


@pytest.mark.parametrize(
    "source", [lambda d: d, lambda d: d.target, lambda d: d.properties(), NoiseModel.from_backend], ids=range(4)
)
def test_a_device_s_noise_is_the_same_from_all_that_describes_it(source):
    """Only properties say how differently 0 and 1 are misread; a target has the mean."""
    program = outcomes(problem("gate_ccry"))
    own, same = channels_from(nothing), channels_from(source)
    values = [outcome_probabilities(one, angles_of(program), misread=False) for one in (own, same)]
    np.testing.assert_allclose(*values, rtol=0, atol=ATOL)
    missed = [[1 - error.trace() / 2 for error in one.readout] for one in (own, same)]
    np.testing.assert_allclose(*missed, rtol=0, atol=1e-4)


def test_a_generic_device_and_a_simulator_with_connections_keep_their_own():
    generic = GenericBackendV2(4, seed=1)
    program = Program.compile(rotated(lambda qc: qc.cx(0, 1)), weights=list(W))
    angles, (own,) = angles_of(program), channels(program, noisy_simulator(device=generic))
    simulator = AerSimulator.from_backend(generic)
    (same,) = channels(program, noisy_simulator(generic.target, simulator))
    np.testing.assert_allclose(*(outcome_probabilities(one, angles) for one in (own, same)), rtol=0, atol=ATOL)
    assert noisy_simulator(NoiseModel(), simulator).options.noise_model is not simulator.options.noise_model


@pytest.mark.parametrize("noise", [0.01, "manila", AerSimulator()])
def test_other_sources_are_named(noise):
    with pytest.raises(TypeError, match=r"noise: got .* expected a NoiseModel"):
        noisy_simulator(noise)


def own_pass() -> NoiseModel:
    noise = NoiseModel()
    noise._custom_noise_passes.append(LocalNoisePass(lambda operation, qubits: None))
    return noise


REFUSED: dict[str, tuple[NoiseModel, str]] = {
    "a pass of one's own": (own_pass(), "the noise model has the pass LocalNoisePass, of which nothing is known"),
    "more qubits than the gate": (
        noise_on("far", error=depolarizing_error(0.1, 3), basis=BASIS),
        r"the error of 'far' on qubits \[0, 1\] is one of 3 qubits, expected at most 2",
    ),
    "no physical channel": (
        noise_on("far", error=PauliLindbladError(PauliList(["XX"]), [-0.1]), basis=BASIS),
        "the error of 'far' .* is no physical channel",
    ),
}


@pytest.mark.parametrize(("noise", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_channel_is_refused_by_name(noise, words):
    program = Program.compile(rotated(lambda qc: qc.append(CXGate(label="far"), [0, 1])), weights=list(W))
    with pytest.raises(ValueError, match=rf"Noise as channels: {words}.*; run .* AerBackend"):
        channels(program, aer(noise))


def test_an_error_of_many_qubits_is_refused_by_name():
    flips = pauli_error([("X" * 6, 0.1), ("I" * 6, 0.9)])
    qc = wide(6, UnitaryGate(np.eye(64), label="far"))
    with pytest.raises(
        ValueError, match=r"'far' on qubits \[1, 0, .* is one of 6 qubits, expected at most 5; run .*AerBackend"
    ):
        channels(Program.compile(qc, weights=list(W)), aer(noise_on("far", error=flips, basis=BASIS)))


def test_relaxation_without_a_time_unit_says_so():
    program = Program.compile(delayed("dt"), weights=list(W))
    with pytest.raises(ValueError, match=r"relaxation during delays cannot be computed.*with the device's dt"):
        channels(program, aer(relaxing(None)))


class WithReset(TransformationPass):
    def run(self, dag):
        dag.apply_operation_front(Reset(), [dag.qubits[0]])
        return dag


def test_an_instruction_that_is_no_gate_is_refused_by_name():
    program = Program.compile(rotated(lambda qc: None), weights=list(W))
    with pytest.raises(ValueError, match=r"Noise as channels: 'reset' on qubits \[0\] is no gate"):
        channels(program, aer(noise_on("ry", basis=BASIS)), pass_manager=PassManager([WithReset()]))


def test_noise_that_gets_lost_is_refused_as_on_aer():
    qc = rotated(lambda qc: qc.crx(W[0], 0, 1))
    with pytest.raises(ValueError, match="crx of the circuit have noise in the simulator, but are decomposed"):
        channels(Program.compile(qc, weights=list(W)), aer(noise_on("crx", error=BOTH)))
