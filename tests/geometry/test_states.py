"""States and what they say, against Qiskit's own: Statevector, DensityMatrix, partial traces and entropies."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from problems import PROBLEMS, oracle, problem
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import DensityMatrix, Statevector, entropy, mutual_information, partial_trace, state_fidelity
from qiskit.transpiler import CouplingMap
from torch.autograd.gradcheck import GradcheckError
from torch_layers import forward_mode

from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer, StatevectorBackend
from qiskit_torch_bridge.circuits import amplitude_encoding

# Kinds of circuits that differ in their gates, in real and complex amplitudes, in idle qubits, and in expressions.
CHOSEN = sorted(
    name
    for name in PROBLEMS
    if name.startswith(
        ("random_", "only_", "shared", "global", "nested", "constant", "idle", "several", "weight_groups")
    )
)


def circuit_of_all_kinds():
    """Gates with one and two qubits, shared weights, a product of weight and input, and a qubit that nothing acts on."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 5)
    circuit = QuantumCircuit(5)
    circuit.h(0)
    circuit.rx(x[0], 2)
    circuit.ry(w[0], 0)
    circuit.cp(w[1], 0, 2)
    circuit.rzz(w[2], 2, 0)
    circuit.rx(2 * w[3], 2)
    circuit.u(w[0], w[4], 0.3, 0)
    circuit.cry(w[1] * x[1], 0, 2)
    circuit.p(w[4], 2)
    circuit.cx(0, 3)
    return circuit, x, w


def layer_of_all_kinds(**options):
    circuit, x, w = circuit_of_all_kinds()
    return QuantumLayer(circuit, inputs=x, weights=w, seed=3, **options).double()


FEATURES = torch.tensor([[0.4, -1.1], [2.0, 0.3], [-0.7, 1.9]], dtype=torch.float64)


def qiskit_state(layer, row):
    return Statevector(layer.bind(row).remove_final_measurements(inplace=False))


def overlap(one, other):
    return abs(np.vdot(one, other))


def in_order(state, qubits):
    """Qiskit's density matrix of some qubits, the first of which is the least significant."""
    kept = sorted(qubits)
    reduced = partial_trace(state, [qubit for qubit in range(state.num_qubits) if qubit not in kept])
    order = [kept.index(qubit) for qubit in qubits]
    k = len(order)
    axes = [k - 1 - qubit for qubit in reversed(order)]
    split = reduced.data.reshape([2] * 2 * k).transpose(axes + [k + axis for axis in axes])
    return DensityMatrix(split.reshape(2**k, 2**k))


@pytest.mark.parametrize("name", CHOSEN)
def test_states_are_qiskits(name):
    given, expected = problem(name), oracle(name)
    layer = given.layer(expected.weights)
    rows = torch.as_tensor(expected.inputs) if given.inputs else None
    states = layer.state(rows).detach().numpy().reshape(-1, 2 ** len(layer.program.layout))
    for row, state in zip(expected.inputs if given.inputs else [None], states, strict=True):
        assert overlap(qiskit_state(layer, row).data, state) == pytest.approx(1, abs=1e-10)


@forward_mode
def test_gradients_of_any_order():
    layer = layer_of_all_kinds()

    def states(features, weights):
        return torch.func.functional_call(_State(layer), {"layer.weights": weights}, features)

    given = FEATURES[:1].clone().requires_grad_(), layer.weights.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(states, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(states, given)

    def phase_free(weights):
        return torch.view_as_real(states(FEATURES, weights)[:, ::3]).square().sum()

    hessian = torch.func.hessian(phase_free)(given[1].detach())
    assert torch.allclose(hessian, torch.autograd.functional.hessian(phase_free, given[1].detach()))
    assert hessian.abs().max() > 0.1
    mapped = torch.func.vmap(states, in_dims=(0, None))(FEATURES.unsqueeze(1), given[1].detach())
    assert torch.allclose(mapped.squeeze(1), layer.state(FEATURES))


class _State(torch.nn.Module):
    """A layer whose outputs are its states, for ``functional_call``."""

    def __init__(self, layer, method="state", *arguments):
        super().__init__()
        self.layer, self.method, self.arguments = layer, method, arguments

    def forward(self, features):
        return getattr(self.layer, self.method)(features, *self.arguments)


@forward_mode
def test_a_wrong_table_of_shifts_is_noticed(monkeypatch):
    """Were phases on part of the amplitudes taken for rotations, the second order would be wrong."""
    layer = layer_of_all_kinds()
    states = layer._source.pure
    monkeypatch.setitem(vars(states), "_are_phases", np.zeros(len(layer.program.angles), bool))
    weights = layer.weights.detach().clone().requires_grad_()

    def gradient(weights):
        function = torch.func.functional_call(_State(layer), {"layer.weights": weights}, FEATURES)
        return torch.autograd.grad(torch.view_as_real(function)[..., 0].square().sum(), weights, create_graph=True)[0]

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(gradient, (weights,))


@pytest.mark.parametrize("backend", [None, DensityMatrixBackend()], ids=["statevector", "density matrix"])
def test_density_matrices_entropies_and_fidelities_are_qiskits(backend):
    layer = layer_of_all_kinds(backend=backend)
    states = [qiskit_state(layer, row) for row in FEATURES]
    of_qubits = layer.density_matrix(FEATURES, [3, 0]).detach().numpy()
    purities = layer.purity(FEATURES, [3, 0]).tolist()
    entropies = layer.entropy(FEATURES, [2, 0, 1]).tolist()
    in_nats = layer.entropy(FEATURES, [0], base=math.e).tolist()
    renyi = layer.entropy(FEATURES, [3, 0], kind="renyi2").tolist()
    shared = layer.mutual_information(FEATURES, [0], [3]).tolist()
    fidelities = layer.fidelity(FEATURES, FEATURES.roll(1, 0)).tolist()
    for row, state in enumerate(states):
        expected = in_order(state, [3, 0])
        assert of_qubits[row] == pytest.approx(expected.data, abs=1e-10)
        assert purities[row] == pytest.approx(expected.purity().real, abs=1e-10)
        assert renyi[row] == pytest.approx(-math.log2(expected.purity().real), abs=1e-10)
        assert entropies[row] == pytest.approx(entropy(partial_trace(state, [3, 4])), abs=1e-8)
        assert in_nats[row] == pytest.approx(entropy(partial_trace(state, [1, 2, 3, 4]), base=math.e), abs=1e-8)
        assert shared[row] == pytest.approx(mutual_information(partial_trace(state, [1, 2, 4])), abs=1e-8)
        assert fidelities[row] == pytest.approx(state_fidelity(state, states[row - 1]), abs=1e-7)
    assert layer.density_matrix(FEATURES).detach()[0].numpy() == pytest.approx(DensityMatrix(states[0]).data, abs=1e-10)
    assert min(entropies) > 0.1


def noisy_layer():
    from qiskit_aer.noise import NoiseModel, amplitude_damping_error, depolarizing_error

    noise = NoiseModel(basis_gates=["rx", "ry", "rz", "cx", "h"])
    noise.add_all_qubit_quantum_error(amplitude_damping_error(0.05), ["rx", "ry"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.04, 2), ["cx"])
    x, w = ParameterVector("x", 1), ParameterVector("w", 3)
    circuit = QuantumCircuit(3)
    circuit.rx(x[0], 0)
    circuit.ry(w[0], 1)
    circuit.cx(0, 1)
    circuit.ry(w[1], 1)
    circuit.rx(w[2], 2)
    circuit.cx(1, 2)
    return QuantumLayer(circuit, inputs=x, weights=w, backend=DensityMatrixBackend(noise), seed=5).double(), noise


def test_mixed_states_are_aers():
    from qiskit_aer import AerSimulator

    layer, noise = noisy_layer()
    rows = torch.tensor([[0.4], [1.9]], dtype=torch.float64)
    ours = layer.density_matrix(rows).detach().numpy()
    simulator = AerSimulator(method="density_matrix", noise_model=noise)
    expected = []
    for row in rows:
        circuit = layer.bind(row)
        circuit.save_density_matrix()
        expected.append(DensityMatrix(simulator.run(circuit).result().data()["density_matrix"]))
    for row in range(2):
        assert ours[row] == pytest.approx(expected[row].data, abs=1e-8)
        assert layer.purity(rows)[row].item() == pytest.approx(expected[row].purity().real, abs=1e-8)
        assert layer.entropy(rows, [0, 2])[row].item() == pytest.approx(
            entropy(partial_trace(expected[row], [1])), abs=1e-7
        )
    both = layer.fidelity(rows[:1], rows[1:]).item()
    assert both == pytest.approx(state_fidelity(*expected), abs=1e-7)
    assert both < 0.9
    with pytest.raises(ValueError, match="its states are mixed"):
        layer.state(rows)


@forward_mode
@pytest.mark.parametrize("backend", ["pure", "mixed"])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [("entropy", ([1],)), ("purity", ([0, 2],)), ("mutual_information", ([0], [1])), ("density_matrix", ([2, 0],))],
)
def test_gradients_of_what_states_say(backend, method, arguments):
    layer, _ = noisy_layer()
    if backend == "pure":
        layer.backend = None
    weights = layer.weights.detach().clone().requires_grad_()
    rows = torch.tensor([[0.4], [1.9]], dtype=torch.float64, requires_grad=True)

    def function(rows, weights):
        return torch.func.functional_call(_State(layer, method, *arguments), {"layer.weights": weights}, rows)

    assert torch.autograd.gradcheck(function, (rows, weights), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (rows, weights))


@forward_mode
@pytest.mark.parametrize("backend", ["pure", "mixed"])
def test_gradients_of_fidelities(backend):
    layer, _ = noisy_layer()
    if backend == "pure":
        layer.backend = None
    rows = torch.tensor([[0.4], [1.9]], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([[0.1], [0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.fidelity, (rows, others), check_forward_ad=True)
    if backend == "pure":
        assert torch.autograd.gradgradcheck(layer.fidelity, (rows, others))


def bell_layer():
    w = ParameterVector("w", 1)
    circuit = QuantumCircuit(3)
    circuit.ry(w[0], 0)
    circuit.cx(0, 1)
    return QuantumLayer(circuit, weights=w).double()


@pytest.mark.parametrize(("angle", "bits"), [(0.0, 0.0), (math.pi / 2, 1.0), (math.pi, 0.0)])
def test_entropies_are_differentiable_where_the_spectrum_is_degenerate(angle, bits):
    """At a product state (eigenvalues 0 and 1, another pair of zeros) and at a Bell state (1/2 and 1/2)."""
    layer = bell_layer()
    with torch.no_grad():
        layer.weights[0] = angle
    for qubits in ([0], [0, 2], [0, 1]):
        layer.weights.grad = None
        value = layer.entropy(None, qubits)
        value.backward()
        assert value.item() == pytest.approx(0.0 if qubits == [0, 1] else bits, abs=1e-12)
        assert layer.weights.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_the_entropy_of_an_entangled_pair_in_closed_form():
    layer, angles = bell_layer(), torch.linspace(0.2, 2.9, 7, dtype=torch.float64)
    for angle in angles:
        with torch.no_grad():
            layer.weights[0] = angle
        value = layer.entropy(None, [1])
        (slope,) = torch.autograd.grad(value, layer.weights)
        p = math.cos(angle / 2) ** 2
        assert value.item() == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))
        assert slope.item() == pytest.approx(math.sin(angle) / 2 * math.log2(p / (1 - p)))


@pytest.mark.slow
def test_transpiled_circuits_keep_the_users_qubits():
    plain, x, w = circuit_of_all_kinds()
    moved = transpile(
        plain, basis_gates=["rz", "sx", "cx"], coupling_map=CouplingMap.from_line(7), initial_layout=[4, 1, 6, 0, 2],
        seed_transpiler=1, optimization_level=1,
    )  # fmt: skip
    options = {"inputs": x, "weights": w, "seed": 3}
    ours, expected = QuantumLayer(moved, **options), QuantumLayer(plain, **options)
    assert ours.program.layout != tuple(range(5))
    assert ours.program.circuit.num_qubits == 7
    states = ours.state(FEATURES), expected.state(FEATURES)
    assert (states[0].conj() * states[1]).sum(dim=-1).abs().tolist() == pytest.approx([1, 1, 1])
    assert torch.allclose(ours.density_matrix(FEATURES, [2, 3]), expected.density_matrix(FEATURES, [2, 3]))
    assert torch.allclose(ours.metric_tensor(FEATURES), expected.metric_tensor(FEATURES), atol=1e-10)


def test_an_entangled_ancilla_is_refused():
    plain, x, w = circuit_of_all_kinds()
    moved = transpile(plain, coupling_map=CouplingMap.from_line(7), initial_layout=[0, 1, 2, 3, 4], seed_transpiler=1)
    moved.h(6)
    moved.cx(6, 5)
    with pytest.raises(ValueError, match="does not end in 0"):
        QuantumLayer(moved, inputs=x, weights=w).state(FEATURES)


@pytest.mark.parametrize("is_complex", [False, True])
def test_amplitude_encodings_are_states_of_their_features(is_complex):
    encoding = amplitude_encoding(2, is_complex=is_complex)
    layer = QuantumLayer(encoding, inputs=encoding.parameters)
    features = torch.randn(4, 8 if is_complex else 4, dtype=torch.float64, requires_grad=True)
    amplitudes = torch.view_as_complex(features.reshape(4, 4, 2)) if is_complex else features.to(torch.complex128)
    amplitudes = amplitudes / torch.linalg.vector_norm(amplitudes, dim=1, keepdim=True)
    assert (layer.state(features).conj() * amplitudes).sum(dim=1).abs().tolist() == pytest.approx([1] * 4)
    ours = torch.autograd.grad(layer.fidelity(features[:2], features[2:]).sum(), features)[0]
    overlaps = (amplitudes[:2].conj() * amplitudes[2:]).sum(dim=1)
    assert torch.allclose(ours, torch.autograd.grad(overlaps.abs().square().sum(), features)[0])


def test_inputs_that_are_only_defined_as_numbers_have_no_gradient():
    from problems import only_defined_for_numbers

    circuit, inputs, weights = only_defined_for_numbers()
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, seed=1).double()
    row = torch.rand(len(inputs), dtype=torch.float64)
    row = row / torch.linalg.vector_norm(row)
    rows = torch.stack([row, row.flip(0), row])
    states = layer.state(rows)
    for given, state in zip(rows, states.detach().numpy(), strict=True):
        assert overlap(qiskit_state(layer, given).data, state) == pytest.approx(1)
    torch.view_as_real(states)[..., 0].sum().backward()
    assert layer.weights.grad.abs().max() > 0
    assert torch.allclose(layer.metric_tensor(rows)[0], layer.metric_tensor(rows)[2])
    with pytest.raises(ValueError, match="only defined for numbers"):
        layer.state(rows.requires_grad_())


@pytest.mark.slow
def test_large_states_and_their_gradients():
    """From 14 qubits on a state is worked on in several passes."""
    ansatz = real_amplitudes(14, reps=1)
    layer = QuantumLayer(
        ansatz, weights=ansatz.parameters, observables=["I" * 13 + "Z", "ZZ" + "I" * 12], seed=0
    ).double()
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    outcomes = torch.arange(2**14)
    first = signs[outcomes & 1]
    pair = signs[((outcomes >> 13) ^ (outcomes >> 12)) & 1]
    probabilities = torch.view_as_real(layer.state()).square().sum(dim=-1)
    by_state = torch.stack([probabilities @ first, probabilities @ pair])
    by_readout = layer()
    assert by_state.tolist() == pytest.approx(by_readout.tolist())
    upstream = torch.tensor([0.7, -1.3], dtype=torch.float64)
    ours, expected = (torch.autograd.grad(out, layer.weights, upstream)[0] for out in (by_state, by_readout))
    assert torch.allclose(ours, expected)


def test_shapes_precisions_and_batches():
    layer = layer_of_all_kinds()
    features = FEATURES.reshape(3, 1, 2)
    assert layer.state(features).shape == (3, 1, 32)
    assert layer.state(FEATURES[0]).shape == (32,)
    assert layer.density_matrix(features, [1]).shape == (3, 1, 2, 2)
    assert layer.entropy(FEATURES[0], [1]).shape == ()
    assert layer.fidelity(features, FEATURES).shape == (3, 3)
    assert layer.state(FEATURES[:0]).shape == (0, 32)
    assert layer.entropy(FEATURES[:0], [0]).shape == (0,)
    assert layer.metric_tensor(FEATURES[:0]).shape == (0, 5, 5)
    single = layer.state(FEATURES.float())
    assert single.dtype == torch.complex64
    assert torch.allclose(single, layer.state(FEATURES).to(torch.complex64), atol=1e-6)
    assert layer.purity(FEATURES.float(), [0]).dtype == torch.float32


@pytest.mark.slow
def test_backends_in_single_precision():
    single, double = layer_of_all_kinds(backend=StatevectorBackend(precision="single")), layer_of_all_kinds()
    assert torch.allclose(single.state(FEATURES), double.state(FEATURES), atol=1e-6)
    assert single.state(FEATURES).dtype == torch.complex128
    slopes = [torch.autograd.grad(layer.entropy(FEATURES, [0]).sum(), layer.weights)[0] for layer in (single, double)]
    assert torch.allclose(*slopes, atol=1e-5)


def test_copies_and_pickles_say_the_same():
    layer = layer_of_all_kinds()
    states = layer.state(FEATURES)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.state(FEATURES), states)
    assert list(layer.state_dict()) == ["weights"]


def test_the_backend_may_change():
    layer = layer_of_all_kinds()
    pure = layer.entropy(FEATURES, [0])
    layer.backend = DensityMatrixBackend()
    assert torch.allclose(layer.entropy(FEATURES, [0]), pure)
    layer.backend = "aer"
    with pytest.raises(ValueError, match="shows no states"):
        layer.entropy(FEATURES, [0])


def test_bound_circuits_are_the_users():
    layer = layer_of_all_kinds()
    circuit = layer.bind(FEATURES[1])
    assert not circuit.parameters
    assert circuit.count_ops() == layer._circuit.count_ops()
    for row in (None, FEATURES, FEATURES[0, :1], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="row: got"):
            layer.bind(row)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer: layer.state(), ValueError, "features: got none"),
        (lambda layer: layer.state(FEATURES[:, :1]), ValueError, "features: got shape"),
        (lambda layer: layer.state(FEATURES * math.nan), ValueError, "column 0 is nan in row 0"),
        (lambda layer: layer.state(FEATURES.numpy()), TypeError, "expected a torch.Tensor"),
        (lambda layer: layer.purity(FEATURES, 0), TypeError, "qubits: got 0"),
        (lambda layer: layer.purity(FEATURES, []), ValueError, "qubits: got no qubits"),
        (lambda layer: layer.purity(FEATURES, [5]), ValueError, "qubits: got qubit 5, expected 0 to 4"),
        (lambda layer: layer.purity(FEATURES, [1, 1]), ValueError, "expected each qubit once"),
        (lambda layer: layer.entropy(FEATURES, [0], kind="renyi3"), ValueError, "kind: got 'renyi3'"),
        (lambda layer: layer.fidelity(FEATURES, FEATURES[:2]), ValueError, "expected leading dimensions"),
        (lambda layer: layer.entropy(FEATURES, [0], base=1), ValueError, "base: got 1"),
        (lambda layer: layer.mutual_information(FEATURES, [0, 1], [1]), ValueError, r"share \[1\]"),
        (lambda layer: layer.metric_tensor(FEATURES, approximation="block"), ValueError, "approximation: got 'block'"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(layer_of_all_kinds())


def test_compiled_models_leave_states_out_of_their_graphs():
    layer = layer_of_all_kinds()

    def function(features):
        return layer.purity(features, [0]) + features.sum(dim=-1)

    compiled = torch.compile(function, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(FEATURES), function(FEATURES))


@forward_mode
def test_nested_forward_mode_is_refused():
    layer = layer_of_all_kinds()
    function = torch.func.jacfwd(torch.func.jacfwd(lambda features: torch.view_as_real(layer.state(features))))
    with pytest.raises(NotImplementedError, match="Forward mode within forward mode"):
        function(FEATURES)


def test_orders_that_do_not_exist_are_refused():
    """A gradient that left a part of itself out would be worse than none."""
    layer = bell_layer()
    with torch.no_grad():
        layer.weights[0] = 0.7

    def derivative(value):
        return torch.autograd.grad(value.sum(), layer.weights, create_graph=True)[0]

    second = derivative(derivative(layer.entropy(None, [0])))
    with pytest.raises(NotImplementedError, match="differentiable twice"):
        derivative(second)
    assert derivative(derivative(derivative(layer.entropy(None, [0], kind="renyi2")))).isfinite().all()
    noisy, _ = noisy_layer()
    rows = torch.tensor([[0.4], [1.9]], dtype=torch.float64)
    slope = torch.autograd.grad(noisy.fidelity(rows[:1], rows[1:]).sum(), noisy.weights, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="mixed states once"):
        torch.autograd.grad(slope.sum(), noisy.weights)


def test_traces_are_refused():
    layer = layer_of_all_kinds()

    class Model(torch.nn.Module):
        def forward(self, features):
            return layer.purity(features, [0])

    with pytest.raises(RuntimeError, match="purity was called within a trace"):
        torch.export.export(Model(), (FEATURES,), strict=False)
