"""Strongly entangling layers and data re-uploading: against matrices made by hand, closed forms and derivatives."""

from functools import reduce

import numpy as np
import pytest
import torch
from qiskit.quantum_info import Statevector

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import ParameterizedCircuit, dressed, reuploading, strongly_entangling

PAULIS = {"x": [[0, 1], [1, 0]], "y": [[0, -1j], [1j, 0]], "z": [[1, 0], [0, -1]]}


def rotation(axis: str, angle: float) -> np.ndarray:
    return np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * np.array(PAULIS[axis])


def on_qubit(gate: np.ndarray, qubit: int, num_qubits: int) -> np.ndarray:
    """Qubit 0 is the last factor, as in Qiskit."""
    return reduce(np.kron, [gate if q == qubit else np.eye(2) for q in reversed(range(num_qubits))])


def cnot(control: int, target: int, num_qubits: int) -> np.ndarray:
    matrix = np.zeros((2**num_qubits, 2**num_qubits))
    for column in range(2**num_qubits):
        matrix[column ^ ((column >> control & 1) << target), column] = 1
    return matrix


def state_by_hand(x: np.ndarray, weights: np.ndarray, depth: int) -> np.ndarray:
    """The state after layers of weights of shape (layers, qubits, 3), with an embedding before every ``depth``-th."""
    layers, n, _ = weights.shape
    state = np.eye(2**n)[0].astype(complex)
    for layer in range(layers):
        for qubit in range(n):
            if layer % depth == 0:
                state = on_qubit(rotation("x", x[qubit]), qubit, n) @ state
            for axis, angle in zip("zyz", weights[layer, qubit], strict=True):
                state = on_qubit(rotation(axis, angle), qubit, n) @ state
        for qubit in range(n if n > 1 else 0):
            state = cnot(qubit, (qubit + 1 + layer % (n - 1)) % n, n) @ state
    return state


def z_values(state: np.ndarray) -> np.ndarray:
    n = len(state).bit_length() - 1
    signs = 1 - 2 * (np.arange(len(state)) >> np.arange(n)[:, None] & 1)
    return signs @ abs(state) ** 2


def layer_of(made: ParameterizedCircuit, **options: object) -> QuantumLayer:
    return QuantumLayer(made.circuit, inputs=made.inputs, weights=made.weights, **options)


def values(made: ParameterizedCircuit, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    layer = layer_of(made, init=torch.tensor(weights.ravel()))
    with torch.no_grad():
        return layer(torch.tensor(x)).numpy()


@pytest.mark.parametrize(("n", "uploads", "depth"), [(1, 1, 1), (1, 3, 1), (2, 2, 2), (3, 1, 3), (4, 3, 2), (5, 1, 6)])
def test_states_and_values_are_those_of_matrices_made_by_hand(n, uploads, depth, rng):
    made = reuploading(n, uploads, depth=depth)
    x, weights = rng.normal(size=n), rng.uniform(0, 6, size=(uploads * depth, n, 3))
    expected = state_by_hand(x, weights, depth)
    numbers = dict(zip([*made.inputs, *made.weights], [*x, *weights.ravel()], strict=True))
    bound = made.circuit.assign_parameters(numbers)
    np.testing.assert_allclose(Statevector(bound).data, expected, atol=1e-12)
    np.testing.assert_allclose(values(made, x, weights), z_values(expected), atol=1e-12)


@pytest.mark.parametrize("spoil", ["order of the weights", "distance of the CNOTs", "one embedding"])
def test_the_matrices_tell_wrong_circuits_apart(spoil, rng):
    n, uploads, depth = 3, 2, 1
    x, weights = rng.normal(size=n), rng.uniform(0, 6, size=(uploads * depth, n, 3))
    made, theirs = reuploading(n, uploads, depth=depth), weights
    if spoil == "order of the weights":
        theirs = weights[:, :, ::-1]
    elif spoil == "distance of the CNOTs":
        theirs = weights[::-1]
    else:
        made = strongly_entangling(n, uploads)
    right, wrong = z_values(state_by_hand(x, weights, depth)), values(made, x, theirs)
    assert abs(right - wrong).max() > 0.01


def test_one_qubit_in_closed_form(rng):
    """<Z> after RX(x), RZ(a), RY(b), RZ(c) is cos x cos b - sin x sin a sin b."""
    x, a, b, c = rng.uniform(-3, 3, size=4)
    expected = np.cos(x) * np.cos(b) - np.sin(x) * np.sin(a) * np.sin(b)
    assert values(strongly_entangling(1, 1), np.array([x]), np.array([a, b, c])) == pytest.approx(expected, abs=1e-12)


def test_zero_weights_multiply_cosines_along_the_ring(rng):
    """One layer carries parities around: qubit k > 0 has the product of the first k + 1, qubit 0 of all but itself."""
    x = rng.normal(size=4)
    expected = [np.cos(x[1:]).prod(), *np.cos(x).cumprod()[1:]]
    np.testing.assert_allclose(values(strongly_entangling(4, 1), x, np.zeros(12)), expected, atol=1e-12)


def test_one_upload_is_strongly_entangling(rng):
    numbers = rng.normal(size=4 + 36)
    once, same, thrice = (
        made.circuit.assign_parameters(dict(zip([*made.inputs, *made.weights], numbers, strict=True)))
        for made in (strongly_entangling(4, 3), reuploading(4, 1, depth=3), reuploading(4, 3))
    )
    assert once == same
    assert once != thrice


@pytest.mark.parametrize("uploads", [1, 2, 3])
def test_the_degree_in_an_input_is_the_number_of_uploads(uploads, rng):
    """Schuld et al., arXiv 2008.08605: the output is a trigonometric polynomial of that degree, whatever the depth."""
    weights = rng.uniform(0, 6, size=3 * 2 * uploads * 2)
    x = np.zeros((16, 2))
    x[:, 0] = np.arange(16) * 2 * np.pi / 16
    coefficients = abs(np.fft.rfft(values(reuploading(2, uploads, depth=2), x, weights), axis=0)) / 16
    assert coefficients[uploads].max() > 1e-3
    assert coefficients[uploads + 1 :].max() < 1e-12


@pytest.mark.parametrize("made", [strongly_entangling(3, 2), reuploading(3, 2)], ids=["once", "twice"])
def test_gradients_are_finite_differences(made, rng):
    """By adjoint differentiation and by parameter shift, of inputs that several gates share and of weights."""
    x, weights = rng.normal(size=3), rng.uniform(0, 6, size=18)
    point, upstream = np.concatenate([x, weights]), rng.normal(size=3)
    steps = 1e-5 * np.eye(len(point))
    differences = [(values(made, *np.split(point + s, [3])) - values(made, *np.split(point - s, [3]))) for s in steps]
    differences = np.array(differences) @ upstream
    for rule in ("adjoint", "parameter_shift"):
        layer, inputs = layer_of(made, init=torch.tensor(weights), gradient=rule), torch.tensor(x, requires_grad=True)
        (layer(inputs) @ torch.tensor(upstream)).backward()
        mine = torch.cat([inputs.grad, layer.weights.grad]).numpy()
        np.testing.assert_allclose(mine, differences / 2e-5, atol=1e-8)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 2)])
def test_sizes_that_are_not_positive_are_refused(sizes):
    with pytest.raises(ValueError, match=r"(num_qubits|depth): got (0|-1), expected at least 1"):
        strongly_entangling(*sizes)


def test_no_uploads_are_refused():
    with pytest.raises(ValueError, match="uploads: got 0, expected at least 1"):
        reuploading(2, 0)


@pytest.mark.parametrize("reupload", [False, True])
def test_dressed_circuits_by_hand(reupload):
    """On four qubits, three layers; with the inputs once, or before each layer."""
    circuit, inputs, weights = dressed(4, 3, reupload=reupload)
    x, w = np.random.default_rng(3).uniform(-2, 2, 4), np.random.default_rng(4).uniform(-2, 2, (3, 4))
    hadamard = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    gates = [on_qubit(hadamard, qubit, 4) for qubit in range(4)]
    for layer in range(3):
        if reupload or layer == 0:
            gates += [on_qubit(rotation("y", x[qubit]), qubit, 4) for qubit in range(4)]
        gates += [cnot(0, 1, 4), cnot(2, 3, 4), cnot(1, 2, 4)]
        gates += [on_qubit(rotation("y", w[layer, qubit]), qubit, 4) for qubit in range(4)]
    expected = reduce(lambda state, gate: gate @ state, gates, np.eye(16)[0])
    values = dict(zip([*inputs, *weights], [*x, *w.ravel()], strict=True))
    np.testing.assert_allclose(Statevector(circuit.assign_parameters(values)).data, expected, rtol=0, atol=1e-12)
