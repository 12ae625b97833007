"""Noise that cannot be kept, or that a simulator leaves out, is named before anything runs."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conformance import fake
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import (
    CHGate,
    CRXGate,
    CU1Gate,
    RGate,
    RXGate,
    SXGate,
    U3Gate,
    get_standard_gate_name_mapping,
)
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorSampler
from qiskit.quantum_info import DensityMatrix, Pauli
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from test_noise_kept import FLIP, WEIGHTS, W, aer, noise_on

from qiskit_torch_bridge import (
    AerBackend,
    DensityMatrixBackend,
    EstimatorBackend,
    IBMBackend,
    QuantumLayer,
    SamplerBackend,
)

manila = partial(fake, "FakeManilaV2")


def with_readout_error(noise: NoiseModel) -> NoiseModel:
    noise.add_all_qubit_readout_error(ReadoutError([[0.9, 0.1], [0.1, 0.9]]))
    return noise


def rotated(*gates: str) -> QuantumCircuit:
    """Both qubits turned, and then these gates on the first."""
    qc = QuantumCircuit(2)
    qc.ry(W[0], 0)
    qc.ry(W[1], 1)
    for gate in gates:
        getattr(qc, gate)(0)
    return qc


def appended(operation: Any, qubits: list[int]) -> QuantumCircuit:
    qc = rotated()
    qc.append(operation, qubits)
    return qc


def layer_on(backend: Any, qc: QuantumCircuit | None = None, **options: Any) -> QuantumLayer:
    qc = rotated() if qc is None else qc
    defaults = {"observables": ["IZ"], "init": WEIGHTS, "seed": 5}
    return QuantumLayer(qc, weights=list(W), backend=backend, **defaults | options)


NOISY = {
    "aer": aer,
    "Aer's Sampler": lambda noise: AerSampler(options={"backend_options": {"noise_model": noise}}),
    "Aer's Estimator": lambda noise: AerEstimator(options={"run_options": {"noise_model": noise}}),
    "BackendSamplerV2": lambda noise: BackendSamplerV2(backend=aer(noise)),
    "BackendEstimatorV2": lambda noise: BackendEstimatorV2(backend=aer(noise)),
}
noisy = pytest.mark.parametrize("make", NOISY.values(), ids=NOISY)


def composite() -> Any:
    inner = QuantumCircuit(2, name="mine")
    inner.cx(0, 1)
    return inner.to_gate(label="block")


def begun_with_a_reset() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.reset(0)
    return qc.compose(rotated())


def labelled_twice(label: str) -> QuantumCircuit:
    return appended(RXGate(W[0], label=label), [0]).compose(appended(CRXGate(W[0], label=label), [0, 1]))


def initialized() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.initialize([1, 0], 0)
    return qc


@noisy
@pytest.mark.parametrize(
    ("qc", "name", "num_qubits"),
    [
        (lambda: appended(CRXGate(W[0]), [0, 1]), "crx", 2),
        (lambda: appended(CRXGate(W[0], label="slow"), [0, 1]), "slow", 2),
        (lambda: appended(composite(), [0, 1]), "block", 2),
        (lambda: appended(composite(), [0, 1]), "mine", 2),
        (begun_with_a_reset, "reset", 1),
        (lambda: initialized().compose(rotated()), "reset", 1),
        # The transpiler makes gates of that very name of another one.
        (lambda: appended(RGate(W[0], 0.3), [0]).compose(appended(CHGate(), [0, 1])), "r", 1),
        # One of two labelled gates survives.
        (lambda: labelled_twice("slow"), "slow", 1),
    ],
)
def test_what_is_decomposed_is_named(make, qc, name, num_qubits):
    noise = noise_on(name, error=FLIP if num_qubits == 1 else depolarizing_error(0.3, 2))
    with pytest.raises(ValueError, match=rf"Gate\(s\) {name} of the circuit have noise.*without it"):
        layer_on(make(noise), qc())


@pytest.mark.parametrize("noisy_gate", ["cp", "cx"])
@pytest.mark.parametrize("make", [make for name, make in NOISY.items() if name != "aer"])
def test_a_parameterised_controlled_phase_is_named(make, noisy_gate):
    """Primitives run it as two ``cx``, which have other noise; on Aer itself it keeps its own."""
    qc = rotated()
    qc.cp(W[0], 0, 1)
    with pytest.raises(ValueError, match=r"Gate\(s\) cp "):
        layer_on(make(noise_on(noisy_gate, error=depolarizing_error(0.3, 2), basis=["ry", "p", "cp", "cx"])), qc)


@pytest.mark.parametrize("kind", [AerBackend, lambda device: DensityMatrixBackend(device.options.noise_model)])
@pytest.mark.parametrize(
    ("gate", "noisy_gate"), [(U3Gate(W[0], 0.2, 0.3), "u"), (RGate(W[0], 0.2), "rz"), (CU1Gate(W[0]), "cx")]
)
def test_gates_without_noise_get_none_where_they_are_decomposed(kind, gate, noisy_gate):
    """Aer would run the user's gate, which its noise model names, without noise."""
    error = depolarizing_error(0.3, 2) if noisy_gate == "cx" else FLIP
    noise = noise_on(noisy_gate, error=error, basis=["ry", "rz", "p", "cx", gate.name])
    with pytest.raises(
        ValueError, match=rf"Gate\(s\) {gate.name} of the circuit have no noise .*with that of {noisy_gate}"
    ):
        layer_on(kind(aer(noise)), appended(gate, list(range(gate.num_qubits))))
    quiet = noise_on("x", basis=["ry", "rz", "p", "cx", gate.name])
    assert layer_on(kind(aer(quiet)), appended(gate, list(range(gate.num_qubits))))().isfinite().all()


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_that_is_asked_for_does_not_hide_what_was_decomposed(level):
    simulator = aer(noise_on("crx", error=depolarizing_error(0.3, 2)))
    sampler = BackendSamplerV2(backend=simulator)
    for kind, device in ((AerBackend, simulator), (SamplerBackend, sampler)):
        backend = kind(device, optimization_level=level)
        with pytest.raises(ValueError, match="crx"):
            layer_on(backend, appended(CRXGate(W[0]), [0, 1]))


def test_a_level_that_is_asked_for_optimises():
    backend = AerBackend(aer(noise_on("id")), optimization_level=2)
    assert layer_on(backend, rotated("id"))().item() == pytest.approx(np.cos(0.7), abs=1e-10)


def test_labels_that_the_transpiler_replaces_are_named():
    """On a simulator with connections, gates are its own only."""
    noise = noise_on("slow")
    simulator = AerSimulator.from_backend(manila(), noise_model=noise)
    with pytest.raises(ValueError, match=r"Gate\(s\) slow .*optimization_level=0"):
        layer_on(simulator, appended(RXGate(0.4, label="slow"), [0]))
    with pytest.raises(ValueError, match=r"Gate\(s\) slow .*basis_gates"):
        layer_on(AerBackend(simulator, optimization_level=0), appended(RXGate(0.4, label="slow"), [0]))
    layer = layer_on(AerBackend(simulator, optimization_level=0), appended(SXGate(label="slow"), [0]))
    state = DensityMatrix.from_instruction(appended(SXGate(), [0]).assign_parameters({W[0]: 0.7, W[1]: 2.1}))
    assert layer().item() == pytest.approx(0.4 * state.expectation_value(Pauli("IZ")).real, abs=1e-10)


# ------------------------------------------------------------------------------------------------- devices


DEVICES = {
    "fake device": (lambda: manila(), AerBackend),
    "Aer's Sampler": (lambda: AerSampler.from_backend(manila()), SamplerBackend),
    "BackendSamplerV2": (lambda: BackendSamplerV2(backend=manila()), SamplerBackend),
    "BackendEstimatorV2": (lambda: BackendEstimatorV2(backend=manila()), EstimatorBackend),
}
devices = pytest.mark.parametrize(("make", "kind"), DEVICES.values(), ids=DEVICES)


@devices
def test_idle_gates_on_a_device_stay_or_are_named(make, kind):
    """Three hundred of them relax the qubit, which is excited, by some 0.2."""
    qc = rotated(*["id"] * 300)
    options = {"init": torch.tensor([3.1, 0.0]).double(), "shots": 4000}
    with pytest.raises(ValueError, match=r"Gate\(s\) id .*AerBackend\(device, optimization_level=0\)"):
        layer_on(make(), qc, **options)
    without = layer_on(kind(make(), optimization_level=2), qc, **options)().item()
    kept = layer_on(kind(make(), optimization_level=0), qc, **options)().item()
    assert kept - without > 5 * (2 / 4000) ** 0.5


def test_idle_gates_without_noise_are_nobody_s_business():
    noiseless = AerSimulator.from_backend(manila(), noise_model=None)
    samplers = BackendSamplerV2(backend=noiseless), SamplerBackend(StatevectorSampler(), device=manila())
    for backend in (noiseless, *samplers):
        assert layer_on(backend, rotated("id"), shots=4000)().item() == pytest.approx(np.cos(0.7), abs=5 / 4000**0.5)


def test_a_device_s_optimisation_stays_as_it_was():
    assert AerBackend(manila()).optimization_level == 2
    assert SamplerBackend(BackendSamplerV2(backend=manila())).optimization_level == 2
    assert SamplerBackend(BackendSamplerV2(backend=AerSimulator())).optimization_level == 2
    assert AerBackend(AerSimulator(coupling_map=[[0, 1]])).optimization_level == 2


def test_resets_of_a_device_change_nothing_on_fresh_qubits():
    """They relax to the ground state, where the qubit is."""
    assert "reset" in NoiseModel.from_backend(manila()).noise_instructions
    layer_on(manila(), begun_with_a_reset(), shots=10)()


def test_a_coupling_map_does_not_lose_the_user_s_noise():
    layer = layer_on(aer(noise_on("x"), coupling_map=[[0, 1], [1, 0]]), rotated("x", "x"))
    assert layer().item() == pytest.approx(0.16 * np.cos(0.7), abs=1e-10)


def test_noise_that_comes_later_counts():
    simulator = AerSimulator(max_parallel_threads=1)
    layer = layer_on(BackendSamplerV2(backend=simulator), rotated("id"), shots=4000)
    before = layer().item()
    simulator.set_options(noise_model=noise_on("id"))
    assert before == pytest.approx(np.cos(0.7), abs=5 / 4000**0.5)
    assert layer().item() == pytest.approx(0.4 * np.cos(0.7), abs=5 / 4000**0.5)


def test_ibms_estimator_refuses_noise_that_it_would_change():
    """It merges the gates on single qubits into templates of its own; two x become nothing, without their noise."""
    estimator = pytest.importorskip("qiskit_ibm_runtime.executor_estimator").Estimator
    qc = rotated("x")
    with pytest.raises(ValueError, match=r"Estimator merges gates on single qubits.*noise of x .*Sampler"):
        layer_on(estimator(mode=aer(noise_on("x"))), qc)
    qc.cz(0, 1)
    layer = layer_on(estimator(mode=aer(noise_on("cz", error=depolarizing_error(0.4, 2)))), qc, shots=4000)
    assert layer().item() == pytest.approx(-0.6 * np.cos(0.7), abs=5 / 4000**0.5)


@pytest.mark.parametrize("entangler", ["cx", "ecr", "cz"])
def test_ibms_estimator_takes_the_gates_that_a_noise_model_knows(entangler):
    """Not all know ``cz``."""
    pytest.importorskip("qiskit_ibm_runtime")
    noise = noise_on(entangler, error=depolarizing_error(0.4, 2))
    qc = rotated("x")
    qc.append(get_standard_gate_name_mapping()[entangler], [0, 1])
    options = {"primitive": "estimator", "options": {"resilience_level": 0}}
    layer = layer_on(IBMBackend(aer(noise), **options), qc, shots=4000)
    exact = layer_on(None, qc)().item()
    assert layer().item() == pytest.approx(0.6 * exact, abs=5 / 4000**0.5)
    with pytest.raises(ValueError, match=r"IBM's Estimator merges gates on single qubits.*noise of sx .*Sampler"):
        layer_on(IBMBackend(aer(noise_on("sx")), **options), qc)


def test_noise_in_the_options_of_ibms_sampler():
    runtime = pytest.importorskip("qiskit_ibm_runtime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the class is on its way out
        sampler = runtime.SamplerV2(mode=aer(NoiseModel()), options={"simulator": {"noise_model": noise_on("id")}})
        value = layer_on(sampler, rotated("id"), shots=4000)().item()
    assert value == pytest.approx(0.4 * np.cos(0.7), abs=5 / 4000**0.5)


def test_noise_stays_on_its_qubit_beside_idle_ones():
    noise = NoiseModel()
    noise.add_quantum_error(FLIP, "id", [2])
    qc = QuantumCircuit(3)
    qc.ry(W[0], 2)
    qc.ry(W[1], 1)
    qc.id(2)
    for backend, atol in (
        (aer(noise), 1e-10),
        (AerEstimator.from_backend(aer(noise)), 1e-10),
        (AerSampler.from_backend(aer(noise)), 5 / 4000**0.5),
        (AerSampler(options={"run_options": {"noise_model": noise}}), 5 / 4000**0.5),
    ):
        layer = layer_on(backend, qc, observables=["ZII"], shots=None if atol < 0.01 else 4000)
        assert layer().item() == pytest.approx(0.4 * np.cos(0.7), abs=atol)


# ------------------------------------------------------------------------------------------------- what Aer leaves out


def test_aers_estimator_is_exact_with_noise():
    """Left to itself, Aer averages over as many runs as it has shots where these are few for the qubits."""
    options = {"backend_options": {"noise_model": noise_on("ry"), "shots": 4}}
    bound = rotated().assign_parameters({W[0]: 0.7, W[1]: 2.1})
    exact = 0.4 * np.cos(0.7)
    own = [float(AerEstimator(options=options).run([(bound, "IZ")]).result()[0].data.evs) for _ in range(3)]
    assert np.abs(np.array(own) - exact).min() > 0.01, "what is to be mended"
    layer = layer_on(AerEstimator(options=options))
    assert layer().item() == pytest.approx(exact, abs=1e-12)
    assert layer.last_run.standard_errors.item() == 0.0
    layer = layer_on(AerEstimator(options=options), shots=10_000)
    assert layer().item() == pytest.approx(exact, abs=5 / 100)
    assert layer.last_run.standard_errors.item() == pytest.approx(1 / 100)


@pytest.mark.parametrize("method", ["statevector", "matrix_product_state", "stabilizer"])
@pytest.mark.parametrize("place", ["backend_options", "run_options"])
def test_aers_estimator_refuses_averages_over_runs(method, place):
    options = {"backend_options": {"noise_model": noise_on("x")}}
    options.setdefault(place, {})["method"] = method
    for shots in (None, 1000):
        with pytest.raises(ValueError, match=rf"method '{method}'.*'method': 'density_matrix'"):
            layer_on(AerEstimator(options=options), shots=shots)


def test_aers_estimator_without_noise_takes_any_method():
    layer = layer_on(AerEstimator(options={"backend_options": {"method": "matrix_product_state"}}))
    assert layer().item() == pytest.approx(np.cos(0.7), abs=1e-10)


def test_aers_estimator_says_that_it_leaves_readout_errors_out():
    options = {"noise_model": with_readout_error(NoiseModel()), "method": "statevector"}
    estimator = AerEstimator(options={"backend_options": options})
    with pytest.warns(UserWarning, match="EstimatorV2 computes values without measuring.*readout errors"):
        layer = layer_on(estimator)
    layer.shots = 100  # and says it no more, for warnings are errors
    layer.shots = None
    assert layer().item() == pytest.approx(np.cos(0.7), abs=1e-10)


@pytest.mark.parametrize("make", [aer, lambda noise: AerSampler.from_backend(aer(noise))], ids=["aer", "sampler"])
def test_errors_before_a_measurement_are_in_the_counts(make):
    layer = layer_on(make(noise_on("measure")), shots=4000)
    assert layer().item() == pytest.approx(0.4 * np.cos(0.7), abs=5 / 4000**0.5)
    with pytest.raises(ValueError, match="readout errors"):
        layer_on(aer(noise_on("measure")))


def shared_readout_error() -> NoiseModel:
    noise = NoiseModel()
    noise.add_readout_error(ReadoutError(0.7 * np.eye(4) + 0.3 * np.eye(4)[::-1]), [0, 1])
    return noise


@pytest.mark.parametrize("make", [aer, lambda noise: AerSampler.from_backend(aer(noise))])
@pytest.mark.parametrize("noise", [shared_readout_error, lambda: noise_on("barrier")], ids=["readout", "barrier"])
def test_what_aer_ignores_is_said_once(make, noise):
    qc = rotated()
    qc.barrier()
    with pytest.warns(UserWarning, match="Aer ignores part of the noise model: errors of"):
        layer = layer_on(make(noise()), qc, shots=2000)
    assert layer().item() == pytest.approx(np.cos(0.7), abs=5 / 2000**0.5), "as Aer has it: without that noise"


# ------------------------------------------------------------------------------------------------- what it costs


def row(n: int) -> tuple[QuantumCircuit, ParameterVector]:
    weights = ParameterVector("w", n)
    qc = QuantumCircuit(n)
    for qubit in range(n):
        qc.ry(weights[qubit], qubit)
        qc.id(qubit)
    return qc, weights


@pytest.mark.parametrize(
    ("make", "shots", "remedy"),
    [
        (aer, None, r"22 qubits with noise needs 262,144.0 GiB.*shots=1000"),
        (
            lambda noise: AerEstimator(options={"backend_options": {"noise_model": noise}}),
            None,
            "262,144.0 .*shots=1000",
        ),
        (lambda noise: aer(noise, method="density_matrix"), 10, "method='automatic'"),
    ],
)
def test_density_matrices_that_do_not_fit_are_refused_before_they_run(make, shots, remedy, monkeypatch):
    monkeypatch.setattr(AerSimulator, "run", None)
    qc, weights = row(22)
    layer = QuantumLayer(qc, weights=weights, backend=make(noise_on("id")), shots=shots)
    with pytest.raises(MemoryError, match=remedy):
        layer()


def test_exact_values_that_take_minutes_are_announced(monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(AerSimulator, "run", stop)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 2**40})())
    qc, weights = row(15)
    layer = QuantumLayer(qc, weights=weights, backend=aer(noise_on("id")))
    with pytest.warns(UserWarning, match=r"15 qubits.*minute.*shots=1000"), pytest.raises(StoppedError):
        layer()


@pytest.mark.parametrize("make", [lambda s: s, lambda s: BackendSamplerV2(backend=s)], ids=["aer", "sampler"])
def test_trajectories_of_small_circuits_are_announced_once(make):
    layer = layer_on(make(aer(noise_on("ry"), method="statevector")), shots=1000)
    with pytest.warns(UserWarning, match="each shot .*method='density_matrix'"):
        layer()
    layer()
    for quiet in (
        layer_on(make(aer(noise_on("ry"), method="statevector")), shots=100),
        layer_on(make(aer(noise_on("ry"))), shots=1000),
        layer_on(make(aer(with_readout_error(NoiseModel()), method="statevector")), shots=1000),
    ):
        quiet()
