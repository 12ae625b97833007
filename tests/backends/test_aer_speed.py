"""What keeps Aer fast, and must not change what it gives: one run, no copies, threads, noise that is written out once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import XGate
from qiskit.result import Counts
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error, pauli_error

from qiskit_torch_bridge import AerBackend, Estimate, QuantumLayer
from qiskit_torch_bridge.backends import aer as aer_module
from qiskit_torch_bridge.backends import simulated

SHOTS = 100
OBSERVABLES = ["ZII", "IXZ", "YIX"]
THREADS = ("max_parallel_threads", "max_parallel_experiments", "max_parallel_shots")


def circuit(num_qubits: int = 3) -> QuantumCircuit:
    angles = ParameterVector("angle", num_qubits)
    qc = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        qc.ry(angles[qubit], qubit)
    for qubit in range(1, num_qubits):
        qc.cx(qubit - 1, qubit)
    return qc


def layer_of(qc: QuantumCircuit, backend: Any, **options: Any) -> QuantumLayer:
    return QuantumLayer(qc, inputs=list(qc.parameters), backend=backend, **({"shots": SHOTS, "seed": 1} | options))


def rows_of(layer: QuantumLayer, rows: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(-3, 3, (rows, len(layer.program.angles)))


def evaluate(layer: QuantumLayer, angles: np.ndarray, shots: int | None = SHOTS) -> Estimate:
    return layer.backend.evaluate(layer.program, angles, shots=shots, seed=np.random.SeedSequence(3))


def depolarising(strength: float = 0.1) -> NoiseModel:
    noise = NoiseModel(basis_gates=["h", "sdg", "ry", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(strength, 1), ["ry"])
    return noise


def fake_manila() -> Any:
    fake_provider = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    return fake_provider.FakeManilaV2()


class Runs:
    """Records the runs of every Aer simulator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[tuple[list[QuantumCircuit], dict[str, Any]]] = []
        self.results: list[Any] = []
        self.run = AerSimulator.run

        def recorded(simulator: AerSimulator, circuits: Any, **options: Any) -> Any:
            self.runs.append((list(circuits), options))
            job = self.run(simulator, circuits, **options)
            self.results.append(job.result())
            return job

        monkeypatch.setattr(AerSimulator, "run", recorded)


@pytest.fixture
def recorded(monkeypatch):
    return Runs(monkeypatch)


# ------------------------------------------------------------------------------------------------- one run, no copies

SIMULATORS: dict[str, Callable[[], Any]] = {
    "ideal": lambda: "aer",
    "noise": lambda: AerSimulator(noise_model=depolarising()),
    "noise by trajectories": lambda: AerSimulator(noise_model=depolarising(), method="statevector"),
    "fake device": fake_manila,
}


@pytest.mark.parametrize("name", SIMULATORS)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_batch_is_one_run_and_builds_no_counts(monkeypatch, recorded, name, rows):
    layer = layer_of(circuit(), SIMULATORS[name](), observables=OBSERVABLES)
    for place, name in ((Counts, "__init__"), (simulated, "transpiled"), (QuantumCircuit, "assign_parameters")):
        monkeypatch.setattr(place, name, None)  # what would be built at every call
    estimate = evaluate(layer, rows_of(layer, rows))
    evaluate(layer, rows_of(layer, rows))
    groups = len(layer.program.readout.groups)
    (first, _), (second, _) = recorded.runs
    assert len(first) == groups, "one circuit a group, whatever the rows"
    assert all(a is b for a, b in zip(first, second, strict=True)), "the same circuits, not copies"
    assert (estimate.circuits, estimate.shots) == (groups * rows, groups * rows * SHOTS)


@pytest.mark.parametrize("rows", [7, 8, 9, 17])
def test_there_is_one_run_up_to_the_largest_number_of_experiments(monkeypatch, recorded, rows):
    layer = layer_of(circuit(), "aer", observables=["ZZZ", "XXX"])
    monkeypatch.setattr(aer_module, "_MOST_EXPERIMENTS_A_CALL", 16)
    evaluate(layer, rows_of(layer, rows))
    assert len(recorded.runs) == -(-rows // 8), "two groups, so eight rows a run"


@pytest.mark.parametrize(
    ("shots", "rows_a_run"), [(10, 6), (None, 4), (1000, 4)], ids=["few shots", "exact", "more shots than outcomes"]
)
def test_runs_are_bounded_by_what_aer_returns(monkeypatch, recorded, shots, rows_a_run):
    """Of four qubits at most 16 outcomes a row, and at most as many as shots."""
    layer = layer_of(circuit(4), "aer", probabilities=[0, 1, 2, 3], shots=shots)
    monkeypatch.setattr(aer_module, "_MOST_ENTRIES_A_CALL", 64)
    values = evaluate(layer, rows_of(layer, 12), shots).values
    assert len(recorded.runs) == 12 // rows_a_run
    assert np.allclose(values.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("options", "shots", "rows_a_run"),
    [
        ({}, SHOTS, 4),
        ({}, None, 4),
        ({"noise_model": depolarising()}, None, 1),
        ({"noise_model": depolarising()}, 4, 4),
        ({"method": "matrix_product_state"}, SHOTS, 12),
    ],
    ids=["states", "exact states", "density matrices", "trajectories", "nothing of that size"],
)
def test_runs_are_bounded_by_the_states(monkeypatch, recorded, options, shots, rows_a_run):
    layer = layer_of(circuit(), AerSimulator(**options), observables=["ZZZ"], shots=shots)
    monkeypatch.setattr(aer_module, "_MOST_AMPLITUDES_A_CALL", 4 * 2**3)
    evaluate(layer, rows_of(layer, 12), shots)
    assert len(recorded.runs) == 12 // rows_a_run


def test_runs_are_bounded_by_the_circuits_that_are_bound_before(monkeypatch, recorded):
    layer = layer_of(circuit(), AerSimulator(noise_model=depolarising()), observables=["ZZZ"])
    monkeypatch.setattr(aer_module, "_MOST_BOUND_INSTRUCTIONS_A_CALL", 3 * 8)  # three ry, two cx, three measurements
    evaluate(layer, rows_of(layer, 9))
    assert len(recorded.runs) == 3


def test_tables_and_lists_of_counts_give_the_same(monkeypatch):
    for readout in ({"observables": OBSERVABLES}, {"probabilities": [2, 0, 1]}):
        layer = layer_of(circuit(), "aer", **readout)
        tables = evaluate(layer, rows_of(layer, 20))
        with monkeypatch.context() as patch:
            patch.setattr(aer_module, "_MOST_TABULATED_BITS", 0)
            lists = evaluate(layer, rows_of(layer, 20))
        np.testing.assert_allclose(tables.values, lists.values, rtol=0, atol=1e-14)
        np.testing.assert_allclose(tables.variances, lists.variances, rtol=0, atol=1e-16)


@pytest.mark.parametrize("num_qubits", [3, 9, 64], ids=["table", "list", "beyond 64-bit integers"])
def test_keys_are_read_bit_by_bit(num_qubits):
    """Every other qubit is flipped with certainty: wrong bits, or a wrong order, show without a tolerance."""
    qc = QuantumCircuit(num_qubits)
    angles = ParameterVector("angle", num_qubits)
    for qubit in range(num_qubits):
        qc.ry(angles[qubit], qubit)
    simulator = AerSimulator(method="matrix_product_state")
    layer = layer_of(qc, simulator, observables=None)
    flips = np.random.default_rng(1).integers(0, 2, (5, num_qubits))
    values = layer(torch.from_numpy(flips * np.pi))
    np.testing.assert_array_equal(values.detach().numpy(), 1.0 - 2.0 * flips)


def test_shots_that_are_missing_are_not_overlooked(monkeypatch, recorded):
    layer = layer_of(circuit(), "aer", observables=["ZZZ"])
    run = AerSimulator.run

    def forgetful(simulator: AerSimulator, circuits: Any, **options: Any) -> Any:
        job = run(simulator, circuits, **options)
        counts = job.result().results[1].data.counts
        counts[next(iter(counts))] -= 1
        return job

    monkeypatch.setattr(AerSimulator, "run", forgetful)
    with pytest.raises(RuntimeError, match=r"counts of 99 shots.*expected 100"):
        evaluate(layer, rows_of(layer, 3))


# ------------------------------------------------------------------------------------------------- threads


def thread_options(recorded: Runs) -> dict[str, Any]:
    ((_, options),) = recorded.runs
    return {name: options[name] for name in THREADS if name in options}


@pytest.mark.parametrize("name", THREADS)
@pytest.mark.parametrize("value", [0, 1, 2])
@pytest.mark.parametrize("noise_model", [None, depolarising()], ids=["ideal", "noise"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_users_threads_are_left_alone(recorded, name, value, noise_model, rows):
    layer = layer_of(circuit(), AerSimulator(noise_model=noise_model, **{name: value}), observables=["ZZZ"])
    evaluate(layer, rows_of(layer, rows))
    assert thread_options(recorded) == {}
    assert layer.backend.simulator.options[name] == value


@pytest.mark.parametrize(
    ("options", "qubits", "rows", "shots", "is_apart"),
    [
        ({}, 3, 5, SHOTS, False),
        ({}, 3, 1, SHOTS, True),
        ({}, 14, 1, SHOTS, True),
        ({}, 15, 1, SHOTS, False),
        ({}, 3, 1, 2**15 + 1, False),
        ({}, 3, 5, None, False),
        ({"noise_model": depolarising()}, 3, 5, SHOTS, True),
        ({"noise_model": depolarising(), "method": "density_matrix"}, 3, 5, 4, True),
        ({"noise_model": depolarising()}, 3, 5, 4, False),
        ({"noise_model": depolarising(), "method": "statevector"}, 3, 1, SHOTS, False),
        ({"method": "density_matrix"}, 3, 5, SHOTS, True),
        ({"method": "density_matrix"}, 8, 2, SHOTS, False),
    ],
)
def test_small_circuits_that_aer_takes_one_by_one_get_a_thread_each(recorded, options, qubits, rows, shots, is_apart):
    layer = layer_of(circuit(qubits), AerSimulator(**options), observables=["Z" * qubits], shots=shots)
    evaluate(layer, rows_of(layer, rows), shots)
    expected = {"max_parallel_threads": rows, "max_parallel_experiments": rows} if is_apart else {}
    assert thread_options(recorded) == expected
    assert recorded.runs[0][1]["runtime_parameter_bind_enable"] is not is_apart
    if is_apart:
        assert {result.metadata["parallel_state_update"] for result in recorded.results[0].results} == {1}


@pytest.mark.parametrize("method", ["automatic", "density_matrix"])
def test_which_state_aer_takes_is_foreseen(recorded, method):
    """The threads follow from it; Aer says afterwards which one it took."""
    simulator = AerSimulator(noise_model=depolarising(), method=method)
    for shots in (7, 8, 9, 10):
        layer = layer_of(circuit(), simulator, observables=["ZZZ"], shots=shots)
        evaluate(layer, rows_of(layer, 2), shots)
        (_, options), result = recorded.runs[-1], recorded.results[-1]
        is_mixed = result.results[0].metadata["method"] == "density_matrix"
        assert ("max_parallel_threads" in options) == is_mixed


def test_rows_of_a_circuit_without_parameters_get_a_thread_each(recorded):
    qc = QuantumCircuit(2)
    qc.h(0)
    qc.cx(0, 1)
    layer = QuantumLayer(qc, backend="aer", observables=["ZI", "ZZ"], shots=SHOTS, seed=1)
    values = layer(torch.zeros(50, 0))
    assert thread_options(recorded) == {"max_parallel_threads": 50, "max_parallel_experiments": 50}
    assert len(set(values[:, 0].tolist())) > 5, "draws of their own"
    assert torch.equal(values[:, 1], torch.ones(50))


# ------------------------------------------------------------------------------------------------- noise


def labelled() -> QuantumCircuit:
    """A gate with a label has the label's noise."""
    qc = circuit()
    qc.h(1)
    qc.append(XGate(label="worn"), [2])
    return qc


def local_noise() -> NoiseModel:
    noise = NoiseModel(basis_gates=["ry", "cx", "h", "x", "sdg"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.2, 1), ["h"])
    noise.add_quantum_error(pauli_error([("X", 0.3), ("I", 0.7)]), ["ry"], [1])
    noise.add_quantum_error(depolarizing_error(0.3, 2), ["cx"], [0, 1])
    noise.add_quantum_error(depolarizing_error(0.4, 2), ["cx"], [1, 0])
    noise.add_quantum_error(depolarizing_error(0.5, 1), ["ry"], [5])
    noise.add_all_qubit_readout_error(ReadoutError([[0.95, 0.05], [0.05, 0.95]]))
    noise.add_readout_error(ReadoutError([[0.9, 0.1], [0.2, 0.8]]), [2], warnings=False)
    noise.add_quantum_error(pauli_error([("Y", 1.0)]), ["worn"], [2])
    return noise


def delayed() -> QuantumCircuit:
    """Aer adds the relaxation during a delay to a copy of the noise model."""
    qc = circuit()
    qc.delay(50_000, 1, unit="ns")
    return qc


@pytest.mark.parametrize(
    ("qc", "simulator"),
    [
        (circuit, lambda: AerSimulator(noise_model=local_noise())),
        (labelled, lambda: AerSimulator(noise_model=local_noise())),
        (circuit, lambda: AerSimulator(noise_model=local_noise(), method="statevector")),
        (circuit, lambda: AerSimulator.from_backend(fake_manila())),
        (delayed, lambda: AerSimulator(noise_model=NoiseModel.from_backend(fake_manila()))),
    ],
    ids=["local", "labels", "trajectories", "fake device", "delays"],
)
def test_the_noise_that_is_written_out_gives_the_shots_of_all_of_it(recorded, qc, simulator):
    layer = layer_of(qc(), AerBackend(simulator(), optimization_level=1), observables=OBSERVABLES)
    evaluate(layer, rows_of(layer, 5))
    ((circuits, options),) = recorded.runs
    written = options.pop("noise_model")
    whole = layer.backend.simulator.options.noise_model
    assert len(written.to_dict(serializable=True)["errors"]) < len(whole.to_dict()["errors"])
    recorded.run(layer.backend.simulator, circuits, **options)
    again = recorded.run(layer.backend.simulator, circuits, **options).result()
    for one, other in zip(recorded.results[0].results, again.results, strict=True):
        assert one.data.counts == other.data.counts


def flips(layer: QuantumLayer) -> float:
    return layer(torch.zeros(len(layer.program.angles), dtype=torch.float64)).item()


def test_noise_that_is_added_later_is_noise():
    noise = NoiseModel(basis_gates=["ry"])
    noise.add_all_qubit_quantum_error(pauli_error([("X", 1.0)]), ["ry"])
    backend = AerBackend(AerSimulator(noise_model=noise))
    layer = layer_of(circuit(1), backend, observables=["Z"])
    assert flips(layer) == -1.0
    noise.add_all_qubit_readout_error(ReadoutError([[0, 1], [1, 0]]))
    assert flips(layer) == 1.0
    noise.add_all_qubit_quantum_error(pauli_error([("X", 1.0)]), ["ry"], warnings=False)
    assert flips(layer) == -1.0
    backend.simulator.set_options(noise_model=None)
    assert flips(layer) == 1.0


def test_unchanged_noise_is_written_out_once(monkeypatch):
    noise = depolarising()
    layer = layer_of(circuit(), AerSimulator(noise_model=noise), observables=["ZZZ"])
    monkeypatch.setattr(NoiseModel, "to_dict", None)
    evaluate(layer, rows_of(layer, 3))


@pytest.mark.parametrize("threads", [None, 1], ids=["a circuit a row", "bound at runtime"])
def test_noisy_shots_of_many_rows_are_right(threads):
    """Means, spread and reported errors of rows that are alike: (1 - p) cos(angle), and the binomial variance of that."""
    simulator = AerSimulator(noise_model=depolarising(0.2), max_parallel_threads=threads)
    layer = layer_of(circuit(1), simulator, observables=["Z"])
    rows, mean = 2000, 0.8 * np.cos(0.7)
    estimate = evaluate(layer, np.full((rows, 1), 0.7))
    variance = (1 - mean**2) / SHOTS
    values = estimate.values[:, 0]
    assert abs(values.mean() - mean) < 5 * (variance / rows) ** 0.5
    assert abs(values.var() / variance - 1) < 5 * (2 / rows) ** 0.5
    assert abs(estimate.variances.mean() / variance - 1) < 0.02
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / rows**0.5
