"""Noise that the user gives to an instruction is in the values, on Aer and through every primitive on it, or is refused.

The reference is Aer itself, on the user's own circuit with numbers in it: a density matrix, exact.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import CPhaseGate, RXGate, UnitaryGate
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2
from qiskit.quantum_info import Pauli, random_unitary
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error, pauli_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import AerBackend, DensityMatrixBackend, QuantumLayer

W = ParameterVector("w", 2)
WEIGHTS = torch.tensor([0.7, 2.1], dtype=torch.float64)
OBSERVABLES = ["IZ", "ZI", "ZZ"]
SHOTS = 4000
FLIP = pauli_error([("X", 0.3), ("I", 0.7)])
BOTH = depolarizing_error(0.4, 2)
RX = RXGate(0.4).to_matrix()
BASIS = ["id", "rz", "sx", "ry", "cx"]


def noise_on(
    *names: str, error: Any = FLIP, qubits: list[int] | None = None, basis: list[str] | None = None
) -> NoiseModel:
    noise = NoiseModel(basis)
    if qubits is None:
        noise.add_all_qubit_quantum_error(error, list(names))
    else:
        noise.add_quantum_error(error, list(names), qubits)
    return noise


def rotated(change: Callable[[QuantumCircuit], Any]) -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(W[0], 0)
    qc.ry(W[1], 1)
    change(qc)
    return qc


def composite() -> QuantumCircuit:
    inner = QuantumCircuit(2, name="mine")
    inner.append(RXGate(W[0], label="slow"), [1])
    inner.x(0)
    return rotated(lambda qc: qc.append(inner.to_gate(), [0, 1]))


def labelled_and_plain(qc: QuantumCircuit) -> None:
    """The label's noise, and none of the name's: so Aer has it."""
    qc.append(RXGate(W[0], label="slow"), [0])
    qc.rx(W[1], 1)


CASES: dict[str, tuple[QuantumCircuit, NoiseModel]] = {
    "id": (rotated(lambda qc: qc.id(0)), noise_on("id")),
    "folded x": (rotated(lambda qc: [qc.x(0), qc.x(0)]), noise_on("x")),
    "folded cx": (rotated(lambda qc: [qc.cx(0, 1), qc.cx(0, 1)]), noise_on("cx", error=BOTH)),
    "swap": (rotated(lambda qc: qc.swap(0, 1)), noise_on("swap", error=BOTH)),
    "delay": (rotated(lambda qc: qc.delay(100, 1, "dt")), noise_on("delay")),
    "labelled rx": (rotated(lambda qc: qc.append(RXGate(W[0], label="slow"), [0])), noise_on("slow")),
    "labelled unitary": (rotated(lambda qc: qc.append(UnitaryGate(RX, label="flip"), [0])), noise_on("flip")),
    "unitary": (rotated(lambda qc: qc.append(UnitaryGate(RX), [0])), noise_on("unitary")),
    "label and name": (rotated(labelled_and_plain), noise_on("slow", "rx", basis=BASIS)),
    "label without noise": (rotated(labelled_and_plain), noise_on("rx", basis=BASIS)),
    "u": (rotated(lambda qc: qc.u(W[0], 0.3, W[1], 0)), noise_on("u", basis=BASIS)),
    "constant controlled phase": (rotated(lambda qc: [qc.h(0), qc.cz(0, 1), qc.h(0)]), noise_on("cz", error=BOTH)),
    "composite": (composite(), noise_on("slow", "x")),
    "one qubit only": (rotated(lambda qc: [qc.id(0), qc.id(1)]), noise_on("id", qubits=[1])),
    "reset": (rotated(lambda qc: None), noise_on("ry", "reset")),
}
cases = pytest.mark.parametrize(("qc", "noise"), CASES.values(), ids=CASES)


def directly(qc: QuantumCircuit, noise: NoiseModel, weights: torch.Tensor = WEIGHTS) -> torch.Tensor:
    bound = qc.assign_parameters({p: w for p, w in zip(W, weights.tolist(), strict=True) if p in qc.parameters})
    bound = bound.decompose(["mine"])
    for observable in OBSERVABLES:
        bound.save_expectation_value(Pauli(observable), [0, 1], label=observable)
    run = AerSimulator(method="density_matrix", noise_model=noise, max_parallel_threads=1).run(bound).result()
    return torch.tensor([run.data(0)[observable] for observable in OBSERVABLES], dtype=torch.float64)


def layer_on(backend: Any, qc: QuantumCircuit, **options: Any) -> QuantumLayer:
    defaults = {"observables": OBSERVABLES, "init": WEIGHTS, "seed": 5}
    return QuantumLayer(qc, weights=list(W), backend=backend, **defaults | options)


def aer(noise: NoiseModel, **options: Any) -> AerSimulator:
    return AerSimulator(noise_model=noise, max_parallel_threads=1, **options)


EXACT = {
    "aer": aer,
    "aer's density matrix": lambda noise: aer(noise, method="density_matrix"),
    "Aer's Estimator": lambda noise: AerEstimator(options={"backend_options": {"noise_model": noise}}),
    "Aer's Estimator of a simulator": lambda noise: AerEstimator.from_backend(aer(noise)),
    "Aer's Estimator at a run": lambda noise: AerEstimator(options={"run_options": {"noise_model": noise}}),
}
SAMPLED = {
    "aer": aer,
    "Aer's Sampler": lambda noise: AerSampler(options={"backend_options": {"noise_model": noise}}),
    "Aer's Sampler of a simulator": lambda noise: AerSampler.from_backend(aer(noise)),
    "Aer's Sampler at a run": lambda noise: AerSampler(options={"run_options": {"noise_model": noise}}),
    "BackendSamplerV2": lambda noise: BackendSamplerV2(backend=aer(noise)),
    "BackendEstimatorV2": lambda noise: BackendEstimatorV2(backend=aer(noise)),
}


@cases
def test_the_reference_sees_the_noise(qc, noise):
    noiseless = directly(qc, NoiseModel())
    assert (directly(qc, noise) - noiseless).abs().max() > 0.15


@cache
def expected_of(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of a case by Aer itself, and the derivatives of the last by the weights."""
    qc, noise = CASES[case]
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    differences = [(directly(qc, noise, WEIGHTS + s) - directly(qc, noise, WEIGHTS - s))[2] / 2e-5 for s in step]
    return directly(qc, noise), torch.stack(differences)


def in_turn(makers: dict[str, Any]) -> pytest.MarkDecorator:
    """Each case with Aer's simulator, and with two of the others: they differ in where the model of noise is found."""
    first, *others = makers
    return pytest.mark.parametrize(
        ("make", "case"),
        [
            pytest.param(makers[name], case, id=f"{name}-{case}")
            for place, case in enumerate(CASES)
            for name in (first, others[place % len(others)], others[(place + 1) % len(others)])
        ],
    )


@in_turn(EXACT)
def test_exact_values_and_gradients_are_those_of_aer_itself(make, case):
    qc, noise = CASES[case]
    layer, (expected, derivatives) = layer_on(make(noise), qc), expected_of(case)
    values = layer()
    values[2].backward()
    torch.testing.assert_close(values.detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.weights.grad, derivatives, rtol=0, atol=1e-8)


@in_turn(SAMPLED)
def test_shots_are_those_of_aer_itself(make, case):
    qc, noise = CASES[case]
    layer = layer_on(make(noise), qc, shots=SHOTS)
    expected, _ = expected_of(case)
    errors = ((1 - expected**2) / SHOTS).sqrt()
    assert ((layer().detach() - expected) / errors).abs().max() < 5


LOPSIDED = depolarizing_error(0.1, 1).tensor(FLIP)
CONTROLLED: dict[str, NoiseModel] = {
    "others": noise_on("p", basis=[*BASIS, "h", "p", "cp"]),
    "its own": noise_on("cp", error=LOPSIDED, qubits=[1, 0], basis=[*BASIS, "h", "p"]),
    "its label's": noise_on("slow", error=LOPSIDED, qubits=[1, 0], basis=[*BASIS, "h", "p", "cp"]),
    "of what it is translated into": noise_on("rz", basis=[*BASIS, "h"]),
}
for _noise in CONTROLLED.values():
    _noise.add_all_qubit_quantum_error(BOTH, "cx")


@pytest.mark.parametrize("shots", [None, SHOTS])
@pytest.mark.parametrize("label", [None, "slow"])
@pytest.mark.parametrize("noise", CONTROLLED.values(), ids=CONTROLLED)
def test_a_controlled_phase_has_its_own_noise(noise, label, shots):
    """Though Aer's backend has to spell it out to bind it."""
    qc = rotated(lambda qc: [qc.h([0, 1]), qc.append(CPhaseGate(W[0], label=label), [1, 0]), qc.h([0, 1])])
    ours = [layer_on(kind, qc, shots=shots) for kind in (AerBackend(aer(noise)), DensityMatrixBackend(noise))]
    if "cp" in noise.basis_gates:
        expected = directly(qc, noise)
    else:
        expected = ours[1]().detach() if shots is None else layer_on(DensityMatrixBackend(noise), qc)().detach()
    for layer in ours:
        tolerance = 1e-10 if shots is None else 5 * ((1 - expected**2) / SHOTS).sqrt().max().item()
        torch.testing.assert_close(layer().detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("entangler", ["ecr", "cz"])
def test_a_matrix_has_one_decomposition_whatever_the_choice(entangler):
    """The simulator knows CNOT, which is without noise, and another entangling gate: Qiskit takes either at random."""
    qc = rotated(lambda qc: (qc.unitary(random_unitary(4, seed=1), [0, 1]), getattr(qc, entangler)(0, 1)))
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.3, 2), entangler)
    expected = directly(qc, noise)
    for _ in range(6):
        torch.testing.assert_close(layer_on(aer(noise), qc)(), expected, atol=1e-9, rtol=0)
