"""A noisy simulator of Aer's with connections is as wide as its memory lets it guess; only the qubits in use count."""

from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error
from qiskit_aer.primitives import EstimatorV2, SamplerV2

from qiskit_torch_bridge import QuantumLayer

W = Parameter("w")
WEIGHT = torch.tensor([0.7], dtype=torch.float64)
LINE = [[0, 1], [1, 0], [1, 2], [2, 1]]


def noisy(**options: Any) -> dict[str, Any]:
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.1, 2), ["cx"])
    return {"noise_model": noise, **options}


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(W, 0)
    qc.cx(0, 1)
    return qc


def test_aers_estimator_gives_exact_values_and_gradients_where_the_simulator_is_wider_than_memory():
    options = noisy(coupling_map=LINE, n_qubits=60)
    layer = QuantumLayer(circuit(), weights=[W], init=WEIGHT, backend=EstimatorV2(options={"backend_options": options}))
    values = layer()
    values[1].backward()
    # Depolarised, both Z shrink by 1 - 0.1; without connections Aer needs no such width.
    expected = 0.9 * torch.cos(WEIGHT)
    assert torch.allclose(values.detach(), expected.expand(2), atol=1e-12)
    assert torch.allclose(layer.weights.grad, -0.9 * torch.sin(WEIGHT), atol=1e-12)


def test_a_density_matrix_of_the_qubits_in_use_is_still_refused_where_there_is_no_room():
    wide = QuantumCircuit(25)
    wide.ry(W, range(25))
    wide.cx(0, 1)
    backend = EstimatorV2(options={"backend_options": noisy()})
    layer = QuantumLayer(wide, weights=[W], init=WEIGHT, backend=backend, observables=["Z" * 25])
    with pytest.raises(MemoryError, match="density matrix of 25 qubits"):
        layer()


def test_a_sampler_by_trajectories_counts_the_qubits_in_use_too():
    options = noisy(coupling_map=LINE, method="statevector")
    assert AerSimulator(**options).num_qubits > 10
    backend = SamplerV2(options={"backend_options": options})
    layer = QuantumLayer(circuit(), weights=[W], init=WEIGHT, shots=2000, backend=backend)
    with pytest.warns(UserWarning, match="of 2 qubits"):
        layer()
