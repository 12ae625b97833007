"""Fidelity kernels: exact, measured, trained, and within scikit-learn."""

import copy
import pickle

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes, zz_feature_map
from qiskit.quantum_info import Statevector
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from qiskit_torch_bridge import DensityMatrixBackend, FidelityKernel, IBMBackend, Quote
from qiskit_torch_bridge.circuits import amplitude_encoding

ROWS = torch.tensor([[0.4, -1.1], [2.0, 0.3], [-0.7, 1.9], [0.1, 0.2], [1.0, 1.4]], dtype=torch.float64)


def feature_kernel(num_qubits=2, **options):
    encoding = zz_feature_map(num_qubits)
    return FidelityKernel(encoding, inputs=encoding.parameters, **options)


def trainable_kernel(**options):
    encoding, ansatz = zz_feature_map(2, reps=1), real_amplitudes(2, reps=1)
    circuit = ansatz.compose(encoding)
    init = torch.tensor([0.3, -0.8, 1.1, 0.6], dtype=torch.float64)
    return FidelityKernel(circuit, inputs=encoding.parameters, weights=ansatz.parameters, init=init, **options)


def by_qiskit(rows, columns, num_qubits=2):
    encoding = zz_feature_map(num_qubits)
    sides = [[Statevector(encoding.assign_parameters(row)).data for row in side.tolist()] for side in (rows, columns)]
    return np.abs(np.array(sides[0]).conj() @ np.array(sides[1]).T) ** 2


def test_exact_kernels_are_qiskits():
    kernel = feature_kernel()
    assert kernel(ROWS, ROWS[:2]).numpy() == pytest.approx(by_qiskit(ROWS, ROWS[:2]))
    assert kernel.last_run.circuits == 7
    assert kernel(ROWS).numpy() == pytest.approx(by_qiskit(ROWS, ROWS))
    assert kernel.last_run.circuits == 5
    assert kernel.quote(5) == Quote()
    wide = feature_kernel(6)
    rows = torch.randn(3, 6, dtype=torch.float64)
    assert wide(rows).numpy() == pytest.approx(by_qiskit(rows, rows, 6))


@pytest.mark.parametrize("backend", ["statevector", "aer"])
def test_measured_kernels_are_unbiased_with_right_error_bars(backend):
    kernel, expected = feature_kernel(backend=backend, shots=300, seed=3), by_qiskit(ROWS, ROWS)
    quote = kernel.quote(5, 200)
    values = kernel(ROWS, ROWS.repeat(40, 1))
    result = kernel.last_run
    assert (result.circuits, result.shots) == (quote.circuits, quote.shots) == (1000, 300_000)
    tiled = np.tile(expected, (1, 40))
    true = np.sqrt(tiled * (1 - tiled).clip(min=0) / 300)
    apart = true > 0.01
    scores = (values.numpy() - tiled)[apart] / true[apart]
    assert abs(scores.mean()) < 4 / len(scores) ** 0.5
    assert abs(scores.var() - 1) < 5 * (2.2 / len(scores)) ** 0.5
    assert np.abs(values.numpy() - tiled)[tiled > 1 - 1e-9].max() < 1e-12
    assert result.standard_errors[apart] == pytest.approx(true[apart], rel=0.7)


def test_symmetric_kernels_measure_each_pair_once():
    kernel = feature_kernel(shots=100, seed=1)
    for values in (kernel(ROWS), kernel(ROWS, ROWS)):
        assert torch.equal(values, values.T)
        assert torch.equal(torch.diagonal(values), torch.ones(5, dtype=torch.float64))
        assert (kernel.last_run.circuits, kernel.last_run.shots) == (10, 1000)
        assert not np.diagonal(kernel.last_run.standard_errors).any()
    assert kernel.quote(5).circuits == 10
    assert kernel.quote(5, 5).circuits == 25
    kernel(ROWS, ROWS.clone())
    assert kernel.last_run.circuits == 25


def test_gradients_agree_on_all_ways():
    upstream = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for backend in (None, DensityMatrixBackend(), "aer"):
        kernel, rows = trainable_kernel(backend=backend), ROWS.clone().requires_grad_()
        kernel(rows, ROWS[:3]).backward(upstream)
        gradients.append((kernel.weights.grad, rows.grad))
    for others in gradients[1:]:
        for ours, expected in zip(others, gradients[0], strict=True):
            assert torch.allclose(ours, expected)
    kernel = trainable_kernel()

    def function(rows, weights):
        return torch.func.functional_call(kernel, {"layer.weights": weights}, (rows,))

    given = ROWS[:2].clone().requires_grad_(), kernel.weights.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_only_angles_of_weights_are_shifted_where_features_need_no_gradient():
    kernel = trainable_kernel(backend="aer", shots=20, seed=2)
    quote = kernel.quote(3)
    kernel(ROWS[:3]).sum().backward()
    assert kernel.layer.total_circuits == quote.circuits == 3 * (1 + 2 * 8)
    with torch.no_grad():
        assert kernel.quote(3).circuits == 3
    assert kernel.quote(3, inputs_require_grad=True).circuits > quote.circuits


def alignment(values, labels):
    return (values * labels[:, None] * labels).sum() / (len(labels) * torch.linalg.matrix_norm(values))


@pytest.mark.parametrize("shots", [None, 500])
def test_kernel_alignment_trains_it(shots):
    """Two clusters at 0 and 3: a bandwidth near 1 tells them apart, which the first one, 0.2, does not."""
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.ry(w[0] * x[0], 0)
    init = torch.tensor([0.2], dtype=torch.float64)
    kernel = FidelityKernel(circuit, inputs=x, weights=w, init=init, shots=shots, seed=5)
    rows = torch.tensor([[0.0], [0.2], [2.9], [3.1]], dtype=torch.float64)
    labels = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    assert alignment(kernel(rows), labels).item() < 0.2
    optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        (-alignment(kernel(rows), labels)).backward()
        optimizer.step()
    kernel.shots = None
    assert alignment(kernel(rows), labels).item() > 0.55  # 0.71 at best


def test_it_works_in_scikit_learn():
    points, labels = make_moons(60, noise=0.1, random_state=0)
    points, kernel = 0.3 * points, feature_kernel()
    classifier = SVC(kernel=kernel, C=10).fit(points[:40], labels[:40])
    precomputed = SVC(kernel="precomputed", C=10).fit(by_qiskit(points[:40], points[:40]), labels[:40])
    expected = precomputed.predict(by_qiskit(points[40:], points[:40]))
    assert np.array_equal(classifier.predict(points[40:]), expected)
    assert classifier.score(points[40:], labels[40:]) > 0.9
    search = GridSearchCV(SVC(kernel=kernel), {"C": [1, 10]}, cv=2).fit(points, labels)
    assert search.best_score_ > 0.8
    values = kernel(points[:3], points[:2])
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float64


def test_a_fake_device_sends_one_job_and_keeps_it_in_its_ledger(tmp_path):
    backend = IBMBackend("fake_manila", ledger=tmp_path / "ledger.sqlite")
    kernel = feature_kernel(backend=backend, shots=200, seed=1)
    quote = kernel.quote(3)
    assert (quote.jobs, quote.circuits) == (1, 3)
    values = kernel(ROWS[:3])
    assert kernel.last_run.passport is not None
    assert np.abs(values.numpy() - by_qiskit(ROWS[:3], ROWS[:3])).max() < 0.3
    again = feature_kernel(backend=IBMBackend("fake_manila", ledger=tmp_path / "ledger.sqlite"), shots=200, seed=1)
    assert torch.equal(again(ROWS[:3]), values)  # what was paid for is taken from the ledger


def test_amplitude_encodings_have_kernels():
    encoding = amplitude_encoding(2)
    rows = torch.randn(3, 4, dtype=torch.float64)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    for backend in (None, "aer"):
        kernel = FidelityKernel(encoding, inputs=encoding.parameters, backend=backend)
        assert torch.allclose(kernel(rows), (unit @ unit.T).square())


def test_copies_empty_batches_and_settings():
    kernel = feature_kernel(shots=50, seed=1)
    values = kernel(ROWS)
    copies = copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))
    assert all(np.array_equal(other.last_run.values, values.numpy()) for other in copies)
    following = kernel(ROWS)
    assert all(torch.equal(other(ROWS), following) for other in copies)
    assert kernel(ROWS[:0]).shape == (0, 0)
    assert kernel(ROWS[:0], ROWS).shape == (0, 5)
    assert kernel(ROWS[:1]).tolist() == [[1.0]]
    assert kernel(ROWS.float(), ROWS[:2].float()).dtype == torch.float32
    kernel.shots = None
    assert kernel(ROWS).numpy() == pytest.approx(by_qiskit(ROWS, ROWS))
    kernel.backend = "aer"
    assert kernel(ROWS).numpy() == pytest.approx(by_qiskit(ROWS, ROWS))
    assert list(trainable_kernel().state_dict()) == ["layer.weights"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: feature_kernel()(ROWS[0]), ValueError, r"rows: got shape \(2,\), expected \(N, 2\)"),
        (lambda: feature_kernel()(ROWS, ROWS[0]), ValueError, "columns: got shape"),
        (lambda: feature_kernel()(ROWS[:, :1]), ValueError, "features: got shape"),
        (lambda: feature_kernel()(ROWS * torch.nan), ValueError, "column 0 is nan in row 0"),
        (lambda: feature_kernel(shots=5)(ROWS * torch.nan), ValueError, "column 0 is nan in row 0"),
        (lambda: feature_kernel()([[0.1, 0.2]]), TypeError, "expected a torch.Tensor"),
        (lambda: feature_kernel().quote(-1), ValueError, "num_rows: got -1"),
        (
            lambda: FidelityKernel(real_amplitudes(2), inputs=[], weights=real_amplitudes(2).parameters),
            ValueError,
            "inputs",
        ),
        (lambda: feature_kernel(feature_map=1), TypeError, "unknown argument feature_map="),
        (lambda: feature_kernel(21, backend="aer"), ValueError, "expected 1 to 20"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
