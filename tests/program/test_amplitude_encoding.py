"""Amplitude encoding: states, values and gradients against Qiskit's Statevector, with zeros and sign changes."""

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import AmplitudeGate, generic_observables
from qiskit import QuantumCircuit
from qiskit.circuit import AnnotatedOperation, ControlModifier, Instruction, Parameter, ParameterVector
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import Statevector
from torch.fx.experimental.proxy_tensor import make_fx
from torch_layers import forward_mode

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import amplitude_encoding
from qiskit_torch_bridge.program import amplitudes as module
from qiskit_torch_bridge.program.amplitudes import AmplitudeEncoding

SIZES = [
    pytest.param(n, is_complex, marks=[pytest.mark.slow] * (n == 6 or (n == 5 and not is_complex)))
    for is_complex in (False, True)
    for n in range(1, 7)
]
SMALL_SIZES = [(1, False), (2, False), (3, False), (1, True), (2, True)]
HARD_ROWS = {
    "a zero": [0.5, 0.0, -0.3, 0.2, 0.7, -0.1, 0.4, 0.9],
    "its neighbour negative": [-0.5, 0.0, -0.3, 0.2, 0.7, -0.1, 0.4, 0.9],
    "a negative zero": [-0.5, -0.0, -0.3, 0.2, 0.7, -0.1, 0.4, 0.9],
    "every other zero": [0.0, 0.5, -0.3, 0.0, 0.0, -0.1, 0.4, 0.0],
    "three of four": [0.0, 0.0, 0.0, 0.2, 0.7, -0.1, 0.4, 0.9],
    "half": [0.0, 0.0, 0.0, 0.0, 0.7, -0.1, 0.4, 0.9],
    "a small block": [0.5, 0.8, 0.7, -0.1, 1e-20, -3e-20, 0.3, 0.2],
    "a small block with zeros": [0.0, 0.0, 1e-12, 0.0, 0.7, -0.1, 0.4, 0.9],
    "a block that is just large enough": [0.5, 0.8, 0.7, -0.1, 4e-7, -1e-7, 0.3, 0.2],
    "all but one": [0.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0],
}


def made(num_qubits: int, *, is_complex: bool = False, **options: object) -> QuantumLayer:
    encoding, ansatz = amplitude_encoding(num_qubits, is_complex=is_complex), real_amplitudes(num_qubits, reps=1)
    weights = torch.linspace(0.3, 2.4, ansatz.num_parameters, dtype=torch.float64)
    options = {"observables": generic_observables(num_qubits), "init": weights, **options}
    return QuantumLayer(
        encoding.compose(ansatz), inputs=encoding.parameters, weights=ansatz.parameters, seed=3, **options
    )


def values_by_qiskit(layer: QuantumLayer, rows: np.ndarray) -> np.ndarray:
    """Shape (N, M), of rows that need not be normalised."""
    num_qubits = layer.program.circuit.num_qubits
    ansatz = real_amplitudes(num_qubits, reps=1).assign_parameters(layer.weights.detach().tolist())
    values = []
    for row in rows:
        amplitudes = row.view(complex) if len(row) > 2**num_qubits else row
        state = Statevector(amplitudes / np.linalg.norm(amplitudes)).evolve(ansatz)
        values.append([state.expectation_value(o).real for o in generic_observables(num_qubits)])
    return np.array(values)


def gradients_by_qiskit(layer: QuantumLayer, rows: np.ndarray, upstream: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradients = np.zeros(rows.shape)
    for column in range(rows.shape[1]):
        shift = step * np.eye(rows.shape[1])[column]
        difference = values_by_qiskit(layer, rows + shift) - values_by_qiskit(layer, rows - shift)
        gradients[:, column] = (difference * upstream).sum(axis=1) / (2 * step)
    return gradients


def check(layer: QuantumLayer, rows: np.ndarray, expected: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Compares values and the gradient by the rows; ``expected`` makes the latter of that by Qiskit and the rows."""
    features = torch.tensor(rows, requires_grad=True)
    values = layer(features)
    np.testing.assert_allclose(values.detach(), values_by_qiskit(layer, rows), rtol=0, atol=1e-12)
    upstream = np.random.default_rng(5).normal(size=values.shape)
    values.backward(torch.tensor(upstream))
    by_qiskit = gradients_by_qiskit(layer, rows, upstream)
    np.testing.assert_allclose(features.grad, expected(by_qiskit, rows), rtol=0, atol=1e-7)


def same(gradients: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return gradients


def along_small_blocks(gradients: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What is documented: in small aligned blocks only what changes the norm; of zeros the mean."""
    gradients = gradients.copy()
    for row, gradient in zip(rows, gradients, strict=True):
        size = len(row)
        while (size := size // 2) > 1:
            for start in range(0, len(row), size):
                block = slice(start, start + size)
                if np.linalg.norm(row[block]) < 1e-8 * np.linalg.norm(row):
                    direction = row[block] if row[block].any() else np.ones(size)
                    gradient[block] = direction * (direction @ gradient[block]) / (direction @ direction)
    return gradients


@pytest.mark.parametrize(("num_qubits", "is_complex"), SIZES)
def test_the_bound_circuit_makes_the_state(num_qubits, is_complex, rng):
    row = rng.normal(size=2 ** (num_qubits + is_complex))
    row[1::3] = 0
    circuit = amplitude_encoding(num_qubits, is_complex=is_complex)
    state = Statevector(circuit.assign_parameters(row)).data
    expected = row.view(complex) if is_complex else row
    np.testing.assert_allclose(state, expected / np.linalg.norm(row), rtol=0, atol=1e-14)
    counts = circuit.assign_parameters(row).decompose().count_ops()
    rotations, connections = 2**num_qubits - 1, 2**num_qubits - 2
    assert [counts.get(name, 0) for name in ("ry", "rz", "cx")] == [
        rotations,
        rotations * is_complex,
        connections * (1 + is_complex),
    ]


@pytest.mark.parametrize(("num_qubits", "is_complex"), SIZES)
def test_values_and_gradients_are_those_of_the_normalised_state(num_qubits, is_complex, rng):
    rows = rng.normal(size=(3, 2 ** (num_qubits + is_complex)))
    check(made(num_qubits, is_complex=is_complex), rows, same)


@pytest.mark.parametrize("options", [{}, {"gradient": "parameter_shift"}, {"backend": "aer"}])
@pytest.mark.parametrize("case", HARD_ROWS)
def test_zeros_and_signs(case, options):
    check(made(3, **options), np.array([HARD_ROWS[case]]), along_small_blocks)


@pytest.mark.parametrize("case", HARD_ROWS)
def test_zeros_and_signs_of_complex_amplitudes(case):
    check(made(2, is_complex=True), np.array([HARD_ROWS[case]]), along_small_blocks)


@pytest.mark.parametrize("is_complex", [False, True])
def test_values_are_continuous_where_amplitudes_change_their_signs(is_complex, rng):
    layer = made(2 - is_complex, is_complex=is_complex)
    for place in range(4):
        row = rng.normal(size=4)
        pair = np.array([row, row])
        pair[:, place] = 1e-12, -1e-12
        plus, minus = layer(torch.tensor(pair)).detach().numpy()
        np.testing.assert_allclose(plus, minus, rtol=0, atol=1e-11)


def _wrong_controls(circuit, rotation, target, controls, angles):
    module_multiplex(circuit, rotation, target, list(controls)[::-1], angles)


module_multiplex = module._multiplex
module_pulled_back = module._pulled_back
WRONG = {
    "no transform": ("_transformed", lambda angles, of: angles),
    "controls in the other order": ("_multiplex", _wrong_controls),
    "gradient of norms left out": (
        "_pulled_back",
        lambda radii, upstream: module_pulled_back(radii, upstream * (np.arange(upstream.shape[1]) > 2)),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_checks_tell_wrong_encodings_apart(case, rng, monkeypatch):
    monkeypatch.setattr(module, *WRONG[case])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(made(3), rng.normal(size=(3, 8)), same)


@forward_mode
@pytest.mark.parametrize(("num_qubits", "is_complex"), SMALL_SIZES)
def test_gradcheck_to_the_second_order(num_qubits, is_complex, rng):
    layer = made(num_qubits, is_complex=is_complex)
    features = torch.tensor(rng.normal(size=(2, 2 ** (num_qubits + is_complex))), requires_grad=True)
    assert torch.autograd.gradcheck(layer, features, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(layer, features)


@pytest.mark.parametrize("case", HARD_ROWS)
def test_the_second_order_at_zeros_and_signs(case, rng):
    """Along directions in which small blocks move as documented."""
    layer, step = made(3), 1e-4
    row = np.array([HARD_ROWS[case]])
    direction = along_small_blocks(rng.normal(size=(1, 8)), row)
    hessian = torch.autograd.functional.hessian(lambda x: layer(x).sum(), torch.tensor(row[0]))
    points = values_by_qiskit(layer, row + step * np.array([[-1], [0], [1]]) * direction).sum(axis=1)
    expected = points @ [1, -2, 1] / step**2
    np.testing.assert_allclose(direction[0] @ hessian.numpy() @ direction[0], expected, rtol=1e-4, atol=1e-5)
    assert hessian.abs().max() < 1e4


def test_both_ways_to_the_angles_are_one(rng):
    """Levels enough that their transforms are no longer one matrix, and numbers whose squares are 0."""
    for features in (2, 64, 128, 1024):
        nothing = torch.zeros((0, features), dtype=torch.float64, requires_grad=True)
        module.angles_of(nothing).sum().backward()
        assert nothing.grad.shape == (0, features)
        rows = rng.normal(size=(3, features))
        rows[1, : features // 2] = rows[2, 1:] = 0
        rows[2, features // 2 :] = 10.0 ** -np.linspace(5, 300, features // 2)
        amplitudes = torch.tensor(rows, requires_grad=True)
        fast, general = module.angles_of(amplitudes), module._by_torch(amplitudes)
        torch.testing.assert_close(fast, general, rtol=0, atol=1e-10)
        upstream = torch.tensor(rng.normal(size=fast.shape))
        pulled = [torch.autograd.grad(angles, amplitudes, upstream)[0] for angles in (fast, general)]
        torch.testing.assert_close(*pulled, rtol=1e-8, atol=1e-12)


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(lambda t: f(t).sin().sum())(x),
    "a gradient of each row": lambda f, x: torch.func.vmap(torch.func.grad(lambda t: f(t).sin().sum()))(x),
    "jacrev": lambda f, x: torch.func.jacrev(lambda t: f(t).sin().sum())(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(lambda t: f(t).sin().sum())(x),
}


@forward_mode
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(name, rng):
    layer = made(3).requires_grad_(False)
    rows = torch.tensor(rng.normal(size=(4, 8)))
    rows[0, :4] = 0
    features = rows.clone().requires_grad_()
    layer(features).sin().sum().backward()
    torch.testing.assert_close(TRANSFORMS[name](layer, rows), features.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traces_do_not_take_angles_for_constants(mode, rng):
    traced, other = torch.tensor(rng.normal(size=(2, 3, 8)))
    graph = make_fx(module.angles_of, tracing_mode=mode)(traced)
    torch.testing.assert_close(graph(other), module.angles_of(other), rtol=0, atol=1e-14)


def test_a_batch_is_one_call_and_a_step_two(counting):
    layer = made(3, backend=counting("aer"), shots=100)
    quote = layer.quote(5)
    layer(torch.rand(5, 8, requires_grad=True)).sum().backward()
    assert layer.backend.calls[0] == (5, 100)
    assert (len(layer.backend.calls), layer.total_circuits) == (2, quote.circuits)
    assert quote.calls == 2
    assert layer.quote(5, inputs_require_grad=False).circuits < quote.circuits


@pytest.mark.slow
def test_shots_have_the_right_statistics_at_zeros_too():
    """Standard errors of the gradient by the features, against exact gradients, over many equal rows."""
    row = [[0.5, -0.7, 0.3, 0.6, 0.0, 0.0, -0.4, 0.0]]
    exact = torch.tensor(row, requires_grad=True)
    made(3)(exact).sum().backward()
    layer, features = made(3, backend="aer", shots=200), torch.tensor(row * 75, requires_grad=True)
    layer(features).sum().backward()
    run = layer.last_run
    np.testing.assert_allclose(run.input_gradients, features.grad, rtol=1e-5)
    scores = (run.input_gradients - exact.grad.numpy()) / run.input_gradient_standard_errors
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=5 / len(scores) ** 0.5)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=0.3)


@pytest.mark.parametrize(("number", "words"), [(0.0, "amplitudes of row 1 .* all 0"), (np.inf, "column 2 is inf")])
def test_rows_that_are_no_state_are_refused_before_anything_runs(number, words, counting):
    layer = made(2, backend=counting())
    rows = torch.ones(3, 4)
    rows[1] = 0
    rows[1, 2] = number
    with pytest.raises(ValueError, match=words + r".* No circuit was run"):
        layer(rows)
    with pytest.raises(ValueError, match=r"row 1"):
        torch.func.vmap(layer)(rows)
    assert layer.backend.calls == []


def test_the_norm_of_a_row_makes_no_difference(rng):
    layer, rows = made(3), torch.tensor(rng.normal(size=(2, 8)))
    for scale in (1e-150, 1e150):
        torch.testing.assert_close(layer(scale * rows), layer(rows), rtol=0, atol=1e-14)
    assert layer(rows.float()).dtype == torch.float32
    torch.testing.assert_close(layer(rows.float()).double(), layer(rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_give_the_same(copied, rng):
    layer, rows = made(3), torch.tensor(rng.normal(size=(2, 8)))
    assert torch.equal(copied(layer)(rows), layer(rows))


# --- where it stands in a circuit, and what it is made of -------------------------------------------------------------


def test_an_inverse_makes_a_fidelity_kernel(rng):
    one, other = amplitude_encoding(2), amplitude_encoding(2)
    y = ParameterVector("y", 4)
    other = other.assign_parameters(dict(zip(other.parameters, y, strict=True)))
    layer = QuantumLayer(one.compose(other.inverse()), inputs=[*one.parameters, y], probabilities=[0, 1])
    pairs = torch.tensor(rng.normal(size=(3, 8)), requires_grad=True)
    overlaps = torch.cosine_similarity(pairs[:, :4], pairs[:, 4:]) ** 2
    (expected,) = torch.autograd.grad(overlaps.sum(), pairs)
    fidelities = layer(pairs)[:, 0]
    torch.testing.assert_close(fidelities, overlaps)
    torch.testing.assert_close(torch.autograd.grad(fidelities.sum(), pairs)[0], expected)


@pytest.mark.parametrize("is_complex", [False, True])
def test_it_can_be_controlled(is_complex, rng):
    encoding = amplitude_encoding(2, is_complex=is_complex)
    circuit = QuantumCircuit(3)
    circuit.h(2)
    gate = encoding.data[0].operation
    circuit.append(AnnotatedOperation(gate, ControlModifier(1)), [2, 0, 1])
    row = rng.normal(size=encoding.num_parameters)
    state = Statevector(circuit.assign_parameters(dict(zip(encoding.parameters, row, strict=True))))
    layer = QuantumLayer(circuit, inputs=encoding.parameters, observables=generic_observables(3))
    expected = [state.expectation_value(o).real for o in generic_observables(3)]
    np.testing.assert_allclose(layer(torch.tensor(row)), expected, rtol=0, atol=1e-12)


def test_it_can_stand_within_gates_twice(rng):
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    block = QuantumCircuit(1)
    block.append(AmplitudeEncoding(x), [0])
    block.rz(w[0], 0)
    outer = QuantumCircuit(2)
    outer.append(block.to_gate(), [1])
    outer.append(AmplitudeEncoding([x[1], x[0]]), [0])
    circuit = QuantumCircuit(2)
    circuit.append(outer.to_gate(), [0, 1])
    layer = QuantumLayer(circuit, inputs=x, weights=w, observables=["ZI", "IZ"])
    row = torch.tensor(rng.normal(size=(1, 2)))
    slope = (row[0, 0] ** 2 - row[0, 1] ** 2) / (row**2).sum()
    torch.testing.assert_close(layer(row)[0], torch.stack([slope, -slope]))


def test_a_gate_may_hold_what_is_only_defined_for_numbers_too(rng):
    x, y = ParameterVector("x", 2), ParameterVector("y", 2)
    block = QuantumCircuit(2)
    block.append(AmplitudeEncoding(x), [0])
    block.append(AmplitudeGate(*y), [1])
    circuit = QuantumCircuit(2)
    circuit.append(block.to_gate(), [0, 1])
    layer = QuantumLayer(circuit, inputs=[x, y], observables=["IZ", "ZI"])
    rows = torch.tensor(rng.normal(size=(3, 4)))
    squares = (rows**2).reshape(3, 2, 2)
    torch.testing.assert_close(layer(rows), (squares[:, :, 0] - squares[:, :, 1]) / squares.sum(dim=2))


def test_amplitudes_may_be_expressions_weights_and_numbers():
    t, u = Parameter("t"), Parameter("u")
    circuit = amplitude_encoding(2)
    circuit = circuit.assign_parameters([t.exp(), 2 * u, 0.25, t * u])
    weights = torch.tensor([0.7], dtype=torch.float64)
    layer = QuantumLayer(circuit, inputs=[t], weights=[u], observables=generic_observables(2), init=weights)
    rows = torch.tensor([[0.3], [-0.2]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, rows)
    plain = amplitude_encoding(2)
    twin = QuantumLayer(plain, inputs=plain.parameters, observables=generic_observables(2))
    weight = weights.clone().requires_grad_()
    amplitudes = torch.cat([rows.exp(), 2 * weight.expand(2, 1), torch.full((2, 1), 0.25), rows * weight], dim=1)
    twin(amplitudes).sum().backward()
    expected = rows.grad.clone(), weight.grad
    rows.grad = None
    layer(rows).sum().backward()
    torch.testing.assert_close((rows.grad, layer.weights.grad), expected)
    np.testing.assert_allclose(layer.last_run.input_gradients, rows.grad)
    np.testing.assert_allclose(layer.last_run.gradients, layer.weights.grad)


class ParameterizedInitialize(Instruction):
    """What Qiskit Machine Learning's ``raw_feature_vector`` is made of."""

    def __init__(self, amplitudes):
        super().__init__("ParameterizedInitialize", len(amplitudes).bit_length() - 1, 0, amplitudes)

    def _define(self):
        amplitudes = np.array([complex(amplitude) for amplitude in self.params])
        self.definition = QuantumCircuit(self.num_qubits)
        self.definition.initialize(amplitudes / np.linalg.norm(amplitudes))


def test_raw_feature_vectors_take_the_same_way(rng, counting, monkeypatch):
    monkeypatch.setattr(ParameterizedInitialize, "__module__", "qiskit_machine_learning.circuit.library")
    x, ansatz = ParameterVector("x", 4), real_amplitudes(2, reps=1)
    circuit = QuantumCircuit(2)
    circuit.append(ParameterizedInitialize(x[:]), [0, 1])
    twin = made(2)
    options = {"inputs": x, "weights": ansatz.parameters, "observables": generic_observables(2)}
    layer = QuantumLayer(circuit.compose(ansatz), **options, backend=counting(), init=twin.weights.detach())
    check(layer, rng.normal(size=(3, 4)), same)
    assert [rows for rows, _ in layer.backend.calls] == [3]
    with pytest.raises(ValueError, match="reset a qubit in mid-circuit"):
        QuantumLayer(ansatz.compose(circuit), **options)


def test_wrong_numbers_of_amplitudes_are_refused():
    with pytest.raises(ValueError, match="amplitudes: got 3 of them, expected 2, 4, 8"):
        AmplitudeEncoding(ParameterVector("x", 3))
    with pytest.raises(ValueError, match="amplitudes: got 2 of them, expected 4, 8, 16"):
        AmplitudeEncoding(ParameterVector("x", 2), is_complex=True)
    with pytest.raises(ValueError, match="num_qubits"):
        amplitude_encoding(0)
