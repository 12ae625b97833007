"""Circuits with more qubits than they use, on simulators whose number of qubits is only a guess at their memory."""

from functools import cache

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error
from qiskit_aer.primitives import EstimatorV2, SamplerV2

from qiskit_torch_bridge import AerBackend, QuantumLayer
from qiskit_torch_bridge.backends.primitives import EstimatorBackend

W = ParameterVector("w", 4)
WEIGHTS = torch.tensor([0.3, -0.8, 1.1, 0.5], dtype=torch.float64)
SHOTS = 20_000
FIVE_SIGMA = 5 / SHOTS**0.5


def small_circuit() -> QuantumCircuit:
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        circuit.ry(W[qubit], qubit)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    circuit.rx(W[3], 2)
    return circuit


def wide_circuit() -> QuantumCircuit:
    """The same, transpiled for 127 qubits."""
    device = pytest.importorskip("qiskit_ibm_runtime.fake_provider").FakeSherbrooke()
    passes = generate_preset_pass_manager(1, backend=device, initial_layout=[112, 126, 125], seed_transpiler=1)
    return passes.run(small_circuit())


def layer(circuit: QuantumCircuit, backend, shots: int | None = None) -> QuantumLayer:
    options = {"backend": backend, "shots": shots, "init": WEIGHTS, "seed": 1}
    return QuantumLayer(circuit, weights=W, observables=["IIZ", "XZI"], **options)


@cache
def expected() -> torch.Tensor:
    return layer(small_circuit(), None)()


def local_noise() -> AerSimulator:
    """Depolarising noise on one qubit that the circuit does not use."""
    noise = NoiseModel()
    noise.add_quantum_error(depolarizing_error(0.5, 1), ["sx"], [3])
    return AerSimulator(noise_model=noise)


BACKENDS = {
    "statevector": (lambda: None, None),
    "aer": (lambda: "aer", None),
    "aer shots": (lambda: "aer", SHOTS),
    "local noise": (local_noise, SHOTS),
    "SamplerV2": (SamplerV2, SHOTS),
    "BackendSampler": (lambda: BackendSamplerV2(backend=AerSimulator()), SHOTS),
    "EstimatorV2": (EstimatorV2, SHOTS),
    "BackendEstimator": (lambda: BackendEstimatorV2(backend=AerSimulator()), SHOTS),
}


@pytest.mark.parametrize(("backend", "shots"), BACKENDS.values(), ids=BACKENDS)
def test_127_qubits_of_which_three_are_used(backend, shots):
    values = layer(wide_circuit(), backend(), shots)()
    assert torch.allclose(values, expected(), atol=1e-9 if shots is None else FIVE_SIGMA)


def test_noise_of_one_qubit_stays_with_it():
    """Qubit 112 is qubit 0 of the small circuit; half of its angle's effect is lost with the noise."""
    noise = NoiseModel()
    noise.add_quantum_error(depolarizing_error(1.0, 1), ["sx"], [112])
    noisy = layer(wide_circuit(), AerSimulator(noise_model=noise), SHOTS)()
    assert abs(noisy[0].item()) < FIVE_SIGMA
    assert abs(expected()[0].item()) > 0.5


@pytest.mark.parametrize("shots", [None, SHOTS])
def test_a_layout_that_moves_an_idle_qubit(shots):
    circuit = QuantumCircuit(3)
    circuit.ry(W[0], 0)
    circuit.cx(0, 1)
    options = {"backend": AerBackend(AerSimulator(), initial_layout=[2, 1, 0]), "shots": shots, "seed": 1}
    moved = QuantumLayer(circuit, weights=[W[0]], observables=["IZZ", "IIZ"], init=WEIGHTS[:1], **options)
    moved_values = torch.tensor([1.0, torch.cos(WEIGHTS[0])], dtype=torch.float64)
    assert torch.allclose(moved(), moved_values, atol=1e-9 if shots is None else FIVE_SIGMA)


def test_noise_on_a_gate_within_a_gate_is_not_lost():
    inner = QuantumCircuit(1, name="inner")
    inner.r(W[0], 0.3, 0)
    circuit = QuantumCircuit(1)
    circuit.append(inner.to_gate(), [0])
    noise = NoiseModel(basis_gates=["rz", "rx", "ry", "r", "sx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.5, 1), ["r"])
    with pytest.raises(ValueError, match=r"Gate\(s\) r of the circuit have noise"):
        QuantumLayer(circuit, weights=[W[0]], backend=AerSimulator(noise_model=noise))


@pytest.mark.parametrize("shots", [1, 2, 7, 8, 15, 100, 4096, 10_007])
def test_an_estimators_default_precision_stands_for_its_shots(shots):
    backend = EstimatorBackend(BackendEstimatorV2(backend=AerSimulator(), options={"default_precision": shots**-0.5}))
    assert backend.resolve_shots(None) == shots
