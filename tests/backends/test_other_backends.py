"""Backends that Qiskit and Aer have beside ``AerSimulator``: right values, gradients and shots, or one clear sentence."""

import warnings
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2
from qiskit.providers.basic_provider import BasicSimulator
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer import Aer, AerSimulator, QasmSimulator
from qiskit_aer.noise import NoiseModel, pauli_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import AerBackend, QuantumLayer, SamplerBackend, StatevectorBackend
from qiskit_torch_bridge.backends import base, resolve_backend, results

W = ParameterVector("w", 2)
WEIGHTS = torch.tensor([0.7, 2.1], dtype=torch.float64)
SHOTS = 4000


def model() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(W[0], 0)
    qc.crx(W[1], 0, 1)
    qc.cx(0, 1)
    return qc


def older(kind: Any, **options: Any) -> Any:
    """Aer says that its older simulators will be deprecated one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return Aer.get_backend(kind) if isinstance(kind, str) else kind(**options)


def generic(**options: Any) -> Any:
    return GenericBackendV2(3, seed=1, **options)


def quiet(make: Any) -> Any:
    """Aer says that such a device has no qubit properties."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no QubitProperties")
        return make()


def step(backend: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    layer = QuantumLayer(model(), weights=W, init=WEIGHTS, backend=backend, seed=3, **options)
    values = layer()
    return values.detach(), torch.autograd.grad(values.sum(), layer.weights)[0]


EXACT = {
    "qasm_simulator": lambda: older("qasm_simulator"),
    "statevector_simulator": lambda: older("statevector_simulator"),
    "QasmSimulator": lambda: older(QasmSimulator, method="density_matrix"),
    "device without noise": lambda: quiet(lambda: resolve_backend(generic(noise_info=False))),
    "Aer's of one": lambda: quiet(lambda: AerEstimator.from_backend(generic(noise_info=False))),
}
SAMPLED = {
    "qasm_simulator": EXACT["qasm_simulator"],
    "statevector_simulator": EXACT["statevector_simulator"],
    "Sampler of qasm_simulator": lambda: BackendSamplerV2(backend=older("qasm_simulator")),
    "Estimator of statevector_simulator": lambda: BackendEstimatorV2(backend=older("statevector_simulator")),
    "BasicSimulator": BasicSimulator,
    "Sampler of BasicSimulator": lambda: BackendSamplerV2(backend=BasicSimulator()),
    "Estimator of BasicSimulator": lambda: BackendEstimatorV2(backend=BasicSimulator()),
    "BasicSimulator with a layout": lambda: SamplerBackend(
        BackendSamplerV2(backend=BasicSimulator()), initial_layout=[1, 0]
    ),
}
NOISY = {
    "device": lambda: generic(control_flow=True),
    "Aer's of a device": lambda: AerSimulator.from_backend(generic()),
    "Sampler of a device": lambda: BackendSamplerV2(backend=generic()),
    "Estimator of a device": lambda: BackendEstimatorV2(backend=generic(control_flow=True)),
    "Aer's Sampler of a device": lambda: AerSampler.from_backend(generic()),
}


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
def test_exact_values_and_gradients(make):
    torch.testing.assert_close(step(make()), step(StatevectorBackend()), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("make", "atol"), [*((m, 0) for m in SAMPLED.values()), *((m, 0.06) for m in NOISY.values())])
def test_shots(make, atol):
    """Two angles a weight: no gradient's standard error is above 2 / sqrt(2 shots). A device's noise takes hundredths."""
    atol += 5 * 2**0.5 / SHOTS**0.5
    torch.testing.assert_close(step(make(), shots=SHOTS), step(StatevectorBackend()), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "make",
    [
        lambda: older("unitary_simulator"),
        lambda: AerSimulator(method="unitary"),
        lambda: AerSimulator(method="superop"),
        lambda: AerSampler.from_backend(AerSimulator(method="superop")),
        lambda: BackendEstimatorV2(backend=older("unitary_simulator")),
    ],
)
def test_simulators_of_matrices_are_refused(make):
    with pytest.raises(ValueError, match=r"the matrix of a circuit and measures nothing; use AerSimulator\(\)"):
        resolve_backend(make())


def test_options_of_an_older_simulator_come_along():
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(pauli_error([("X", 0.3), ("I", 0.7)]), "id")
    backend = AerBackend(older(QasmSimulator, noise_model=noise, method="density_matrix", precision="single"))
    options = backend.simulator.options
    assert (options.noise_model, options.method, options.precision) == (noise, "density_matrix", "single")
    qc = QuantumCircuit(1)
    qc.ry(W[0], 0)
    qc.id(0)
    layer = QuantumLayer(qc, weights=[W[0]], init=torch.tensor([0.7]).double(), backend=backend)
    assert layer().item() == pytest.approx(0.4 * torch.tensor(0.7).double().cos().item(), abs=1e-6)


def test_methods_say_what_they_cannot_do():
    with pytest.raises(ValueError, match="'stabilizer' rotates by multiples of pi/2 only"):
        step(AerSimulator(method="stabilizer"))
    with pytest.raises(ValueError, match="'extended_stabilizer' has no exact values; use another one"):
        step(AerSimulator(method="extended_stabilizer"))
    with pytest.raises(ValueError, match="'extended_stabilizer' rotates by multiples of pi/2 only"):
        step(AerSimulator(method="extended_stabilizer"), shots=10)
    with pytest.raises(ValueError, match="'extended_stabilizer', which has no expectation values"):
        step(AerEstimator(options={"backend_options": {"method": "extended_stabilizer"}}))


def test_an_exhausted_extended_stabilizer_is_out_of_memory():
    qc = QuantumCircuit(40)
    for _ in range(3):
        qc.h(range(40))
        qc.t(range(40))
        qc.cx(range(39), range(1, 40))
    layer = QuantumLayer(qc, backend=AerSimulator(method="extended_stabilizer"), shots=10)
    with pytest.raises(MemoryError, match=r"'extended_stabilizer'\) has too little memory.*matrix_product_state"):
        layer()


@pytest.mark.parametrize("kind", [lambda s: s, AerEstimator.from_backend], ids=["simulator", "estimator"])
def test_truncated_states_are_announced(kind):
    simulator = AerSimulator(method="matrix_product_state", matrix_product_state_max_bond_dimension=2)
    with pytest.warns(UserWarning, match="truncated.*max_bond_dimension 2"):
        layer = QuantumLayer(model(), weights=W, backend=kind(simulator))
    layer()
    layer.shots = 10


@pytest.mark.parametrize(
    ("qubits", "expected"),
    [
        (33, r"needs 128.0 GiB of memory, and this machine has 100.0 GiB .*precision='single'.*matrix_product_state"),
        (34, r"34 of the circuit's 34 qubits.* at least 128.0 GiB .*precision='single'.*matrix_product_state"),
        (35, r"35 of the circuit's 35 qubits.* at least 256.0 GiB .*depend on fewer qubits, backend='pauli'"),
        (
            100,
            r"100 of the circuit's 100 qubits.* at least some 10\*\*21 GiB of memory.*matrix_product_state.*hardware",
        ),
    ],
)
def test_what_does_not_fit_names_the_ways_out(qubits, expected, monkeypatch):
    memory = type("Memory", (), {"total": 100 * 2**30, "available": 100 * 2**30})()
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    weights = ParameterVector("w", qubits)
    qc = QuantumCircuit(qubits)
    for qubit in range(qubits):
        qc.rx(weights[qubit], qubit)
        qc.ry(0.1, qubit)
    with pytest.raises(MemoryError, match=expected):
        QuantumLayer(qc, weights=weights, observables=["Z" * qubits])


def test_the_old_place_of_estimates_from_samples():
    with pytest.warns(
        DeprecationWarning, match=r"is now qiskit_torch_bridge\.backends\.results\.estimate_from_samples"
    ):
        assert base.estimate_from_samples is results.estimate_from_samples
