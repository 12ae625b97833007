"""Noise models and readout errors are in the values, or are refused."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from conformance import (
    EXACT_ATOL,
    EXPECTATION,
    FEATURES,
    REFERENCES,
    SHOTS,
    Readout,
    W,
    X,
    aer,
    assert_step,
    expected_step,
    fake,
    make_layer,
    model,
    one_qubit_layer,
    read,
    reference,
    runtime,
    shots_atol,
    simulated,
)
from qiskit import QuantumCircuit
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import DensityMatrix, Kraus, SparsePauliOp, pauli_basis
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import AerBackend, QuantumLayer


def noisy_model() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.ry(X[1], 1)
    qc.cx(0, 1)
    qc.rz(W[0], 1)
    qc.ry(W[1], 0)
    qc.cx(1, 0)
    qc.ry(W[2] * X[0], 1)
    return qc


STRENGTHS = {"ry": 0.06, "cx": 0.13}


def depolarising_model() -> NoiseModel:
    noise = NoiseModel(basis_gates=["h", "sdg", "ry", "rz", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(STRENGTHS["ry"], 1), ["ry"])
    noise.add_all_qubit_quantum_error(depolarizing_error(STRENGTHS["cx"], 2), ["cx"])
    return noise


def depolarising(strength: float, num_qubits: int) -> Kraus:
    """Takes rho to (1 - p) rho + p 1 / 2**n: the identity with p / 4**n of each Pauli mixed in."""
    weights = np.full(4**num_qubits, strength / 4**num_qubits)
    weights[0] += 1 - strength
    return Kraus([np.sqrt(w) * p for w, p in zip(weights, pauli_basis(num_qubits).to_matrix(), strict=True)])


def noisy_values(readout: Readout, values: Sequence[float]) -> np.ndarray:
    qc = noisy_model()
    bound = qc.assign_parameters(dict(zip((*X, *W), values, strict=True)))
    state = DensityMatrix.from_label("00")
    for instruction in bound.data:
        qubits = [bound.find_bit(qubit).index for qubit in instruction.qubits]
        state = state.evolve(instruction.operation, qubits)
        if instruction.operation.name in STRENGTHS:
            state = state.evolve(depolarising(STRENGTHS[instruction.operation.name], len(qubits)), qubits)
    return read(state, readout)


NOISY_READOUTS = {
    "expectation": {"observables": ["ZI", "IX", SparsePauliOp(["ZZ", "YX"], [0.5, -1.0])]},
    "probabilities": {"probabilities": [1, 0]},
}


@pytest.mark.parametrize("readout", NOISY_READOUTS)
@pytest.mark.parametrize("method", ["automatic", "density_matrix"])
def test_depolarising_noise_is_exact_without_shots(readout, method):
    backend = aer(noise_model=depolarising_model(), method=method)
    layer = make_layer(noisy_model(), backend=backend, **NOISY_READOUTS[readout])
    expected = expected_step(*reference(partial(noisy_values, NOISY_READOUTS[readout])))
    noiseless_values = expected_step(*reference(partial(simulated, noisy_model(), NOISY_READOUTS[readout])))[0]
    assert (expected[0] - noiseless_values).abs().max() > 0.05, "the noise must be visible"
    assert_step(layer, expected, atol=EXACT_ATOL)


def test_depolarising_noise_with_shots():
    backend = aer(noise_model=depolarising_model())
    layer = make_layer(noisy_model(), backend=backend, shots=SHOTS, **NOISY_READOUTS["expectation"])
    expected = expected_step(*reference(partial(noisy_values, NOISY_READOUTS["expectation"])))
    assert_step(layer, expected, atol=shots_atol(EXPECTATION))


def test_depolarising_noise_by_trajectories():
    backend = aer(noise_model=depolarising_model(), method="statevector")
    layer = make_layer(noisy_model(), backend=backend, shots=SHOTS, **NOISY_READOUTS["expectation"])
    expected, _ = reference(partial(noisy_values, NOISY_READOUTS["expectation"]))
    with pytest.warns(UserWarning, match="each shot.*method='density_matrix'"):
        values = layer(FEATURES).detach()
    torch.testing.assert_close(values, expected, rtol=0, atol=shots_atol(EXPECTATION)[0])


def test_noise_by_trajectories_is_not_exact_and_refused_without_shots():
    backend = aer(noise_model=depolarising_model(), method="statevector")
    with pytest.raises(ValueError, match=r"shots: got None.*density_matrix"):
        make_layer(noisy_model(), backend=backend, **EXPECTATION | {"observables": ["ZI"]})


def noise_on(gate: str, num_qubits: int) -> AerSimulator:
    noise = NoiseModel(basis_gates=["h", "sdg", "rx", "ry", "rz", "cx", gate])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.3, num_qubits), [gate])
    return aer(noise_model=noise)


@pytest.mark.parametrize("gate", ["cry", "crx"])
def test_noise_on_a_gate_that_does_not_survive_is_refused(gate):
    """The noise belongs to the gate; a circuit that spells the gate out would run without it, and nobody would know."""
    qc = QuantumCircuit(2)
    qc.h([0, 1])
    getattr(qc, gate)(W[0], 0, 1)
    with pytest.raises(ValueError, match=gate):
        QuantumLayer(qc, weights=[W[0]], backend=noise_on(gate, 2), observables=["XX"])


FLIP_0_TO_1, FLIP_1_TO_0 = 0.05, 0.2


def readout_error() -> AerSimulator:
    noise = NoiseModel()
    error = ReadoutError([[1 - FLIP_0_TO_1, FLIP_0_TO_1], [FLIP_1_TO_0, 1 - FLIP_1_TO_0]])
    noise.add_all_qubit_readout_error(error)
    return aer(noise_model=noise)


def test_readout_error_needs_shots():
    with pytest.raises(ValueError, match=r"shots: got None.*readout errors.*shots=1000"):
        one_qubit_layer(backend=readout_error())
    layer = one_qubit_layer(backend=readout_error(), shots=10)
    with pytest.raises(ValueError, match="readout errors"):
        layer.shots = None
    assert layer.shots == 10


@pytest.mark.parametrize("make", [readout_error, lambda: AerSampler.from_backend(readout_error())])
def test_readout_error_flips_bits(make):
    """With flips 0 -> 1 of probability a and 1 -> 0 of b: z' = (1 - a - b) z + b - a."""
    angles = torch.tensor([[0.4], [1.3], [2.9]], dtype=torch.float64, requires_grad=True)
    layer = one_qubit_layer(backend=make(), shots=40_000, seed=1)
    values = layer(angles)
    (gradient,) = torch.autograd.grad(values.sum(), angles)
    contrast = 1 - FLIP_0_TO_1 - FLIP_1_TO_0
    expected = contrast * torch.cos(angles.detach()) + FLIP_1_TO_0 - FLIP_0_TO_1
    torch.testing.assert_close(values.detach(), expected, rtol=0, atol=5 / 200)
    torch.testing.assert_close(gradient, -contrast * torch.sin(angles.detach()), rtol=0, atol=5 / 200)


def test_an_ideal_noise_model_is_no_noise():
    layer = one_qubit_layer(backend=aer(noise_model=NoiseModel(), method="statevector"))
    assert layer(torch.tensor([0.3]).double()).item() == pytest.approx(np.cos(0.3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fake("FakeManilaV2"),
        lambda: GenericBackendV2(4, seed=1),
        lambda: runtime("fake_provider") and "fake:manila",
    ],
)
def test_fake_devices_are_simulated_with_their_noise(make):
    with pytest.raises(ValueError, match="readout errors"):
        make_layer(model(), backend=make(), **EXPECTATION)
    layer = make_layer(model(), backend=make(), shots=4000, **EXPECTATION)
    assert isinstance(layer.backend, AerBackend)
    values = layer(FEATURES)
    error = (values - REFERENCES["expectation"][0]).abs().max()
    assert 0.005 < error < 0.25, "noisy, but the same circuit"
