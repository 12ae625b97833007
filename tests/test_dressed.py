"""The dressed quantum net: the authors' trained head, gradients, shots, and that mistakes in it would be seen."""

import math

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from torch import nn

from qiskit_torch_bridge import DressedQuantumNet, QuantumLayer
from qiskit_torch_bridge.circuits import dressed


@pytest.fixture
def published(reference):
    """The paper's head: its arrays, 16 feature vectors, and what it made of them."""
    return reference("mari_ants_bees")


def head_of(published, **names: str) -> dict[str, np.ndarray]:
    """The arrays of the head alone, perhaps by other names."""
    arrays = ("q_params", "pre_net_weight", "pre_net_bias", "post_net_weight", "post_net_bias")
    return {names.get(name, name): published[name] for name in arrays}


def loaded(published) -> DressedQuantumNet:
    net = DressedQuantumNet(512, 2).double()
    net.load_published(head_of(published))
    return net


def random_head(num_features=3, num_outputs=2, num_qubits=4, depth=6, rows=15) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"pre_net.weight": (num_qubits, num_features), "pre_net.bias": num_qubits}
    shapes |= {"post_net.weight": (num_outputs, num_qubits), "post_net.bias": num_outputs}
    shapes |= {"q_params": rows * num_qubits}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


class TestPublishedHead:
    def test_outputs_and_logits(self, published):
        net, features = loaded(published), torch.tensor(published["features"])
        with torch.no_grad():
            q_out, logits = net.quantum_features(features), net(features)
        assert np.abs(q_out.numpy() - published["q_out"]).max() < 1e-12
        assert np.abs(logits.numpy() - published["logits"]).max() < 1e-12

    @pytest.mark.parametrize(
        ("backend", "dtype", "atol"), [(None, torch.float32, 1e-5), ("aer", torch.float64, 1e-6)], ids=["single", "aer"]
    )
    def test_in_single_precision_and_on_aer(self, published, backend, dtype, atol):
        net = DressedQuantumNet(512, 2, backend=backend).to(dtype)
        net.load_published(head_of(published))
        with torch.no_grad():
            logits = net(torch.tensor(published["features"], dtype=dtype))
        assert logits.dtype == dtype
        assert np.abs(logits.numpy() - published["logits"]).max() < atol

    @pytest.mark.parametrize("mistake", ["row too early", "row too late", "no tanh", "CNOT order", "no half turn"])
    def test_mistakes_would_be_seen(self, published, mistake):
        net, features = loaded(published), torch.tensor(published["features"])
        angles = torch.tanh(net.pre(features)) * (math.pi / 2)
        if mistake.startswith("row"):
            first = 0 if mistake == "row too early" else 2
            weights = published["q_params"].reshape(15, 4)[first : first + 6]
            net.quantum.load_state_dict({"weights": torch.tensor(weights).flatten()})
        elif mistake == "no tanh":
            angles = net.pre(features) * (math.pi / 2)
        elif mistake == "no half turn":
            angles = torch.tanh(net.pre(features))
        else:
            net.quantum, weights = QuantumLayer(**_swapped()).double(), net.quantum.state_dict()
            net.quantum.load_state_dict(weights)
        with torch.no_grad():
            logits = net.post(net.quantum(angles))
        assert np.abs(logits.numpy() - published["logits"]).max() > 1e-3

    @pytest.mark.parametrize(
        "rename",
        [
            lambda name: name.replace("net_", "net."),
            lambda name: f"fc.{name.replace('net_', 'net.')}",
            lambda name: f"module.fc.{name.replace('net_', 'net.')}",
            lambda name: f"classifier.{name}",
        ],
    )
    def test_names(self, rename):
        arrays = {name.replace("net.", "net_"): array for name, array in random_head().items()}
        net, other = DressedQuantumNet(3, 2), DressedQuantumNet(3, 2)
        net.load_published(arrays)
        other.load_published({"conv1.weight": "of the rest of the network"} | {rename(n): a for n, a in arrays.items()})
        torch.testing.assert_close(net.state_dict(), other.state_dict(), rtol=0, atol=0)
        assert torch.equal(net.pre.bias, torch.tensor(arrays["pre_net_bias"]).float())

    @pytest.mark.parametrize("rows", [7, 15])
    @pytest.mark.parametrize("flat", [True, False])
    def test_rows_of_q_params(self, rows, flat):
        arrays = random_head(rows=rows)
        if not flat:
            arrays["q_params"] = arrays["q_params"].reshape(rows, 4)
        net = DressedQuantumNet(3, 2)
        net.load_published(arrays)
        expected = torch.tensor(arrays["q_params"]).flatten()[4:28].float()
        assert torch.equal(net.quantum.weights.detach(), expected)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"q_params": np.zeros((6, 4))}, r"q_params: got shape \(20,\), expected \(24,\)"),
            ({"pre_net.weight": np.zeros((4, 4))}, r"pre_net.weight: got shape \(4, 4\), expected \(4, 3\)"),
            ({"post_net.bias": np.zeros(3)}, r"post_net.bias: got shape \(3,\), expected \(2,\)"),
            ({"post_net.bias": None}, "expected post_net.bias among them"),
            ({"q_params": None, "pre_net.bias": None}, "expected pre_net.bias, q_params among them"),
        ],
    )
    def test_other_heads_are_refused_and_nothing_changes(self, changes, said):
        arrays = {name: array for name, array in {**random_head(), **changes}.items() if array is not None}
        net = DressedQuantumNet(3, 2)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            net.load_published(arrays)
        torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)

    def test_empty_is_refused(self):
        with pytest.raises(ValueError, match="got none"):
            DressedQuantumNet(3, 2).load_published({})


def _swapped():
    """The circuit with the CNOT gates of a layer in the other order: (1, 2) first, then (0, 1) and (2, 3)."""
    right, inputs, weights = dressed()
    swapped = QuantumCircuit(4)
    pending = []
    for instruction in right.data:
        qubits = [right.find_bit(qubit).index for qubit in instruction.qubits]
        if instruction.operation.name == "cx":
            pending.append(qubits)
            continue
        for pair in reversed(pending):
            swapped.cx(*pair)
        pending = []
        swapped.append(instruction.operation, qubits)
    return {"circuit": swapped, "inputs": inputs, "weights": weights}


class TestCircuit:
    def test_reference(self, reference):
        """The circuit's outputs and both gradients against an independent program."""
        ref = reference("dressed")
        circuit, inputs, weights = dressed()
        layer = QuantumLayer(circuit, inputs=inputs, weights=weights).double()
        layer.load_state_dict({"weights": torch.tensor(ref["weights"], dtype=torch.float64).flatten()})
        x = torch.tensor(ref["inputs"], dtype=torch.float64, requires_grad=True)
        y = layer(x)
        assert np.abs(y.detach().numpy() - np.array(ref["outputs"])).max() < 1e-12
        y.backward(torch.tensor(ref["upstream"], dtype=torch.float64))
        assert np.abs(x.grad.numpy() - np.array(ref["grad_inputs"])).max() < 1e-12
        assert np.abs(layer.weights.grad.numpy() - np.array(ref["grad_weights"]).flatten()).max() < 1e-12

    def test_gates_are_those_of_the_reference(self, reference):
        circuit, inputs, weights = dressed()
        names = {str(parameter): ["x", i] for i, parameter in enumerate(inputs)}
        names |= {str(parameter): ["w", i] for i, parameter in enumerate(weights)}
        found = []
        for gate in circuit.data:
            qubits = [circuit.find_bit(qubit).index for qubit in gate.qubits]
            found.append([gate.operation.name, *qubits, *(names[str(p)] for p in gate.operation.params)])
        assert found == reference("dressed")["operations"]

    @pytest.mark.parametrize(("qubits", "pairs"), [(1, []), (2, [(0, 1)]), (5, [(0, 1), (2, 3), (1, 2), (3, 4)])])
    def test_entanglers(self, qubits, pairs):
        circuit = dressed(qubits, 2).circuit
        gates = [gate for gate in circuit.data if gate.operation.name == "cx"]
        found = [tuple(circuit.find_bit(qubit).index for qubit in gate.qubits) for gate in gates]
        assert found == pairs * 2


class TestNet:
    @pytest.mark.parametrize(("qubits", "depth", "expected"), [(4, 6, 2086), (5, 5, 2602), (1, 1, 518)])
    def test_parameters(self, qubits, depth, expected):
        net = DressedQuantumNet(512, 2, num_qubits=qubits, depth=depth)
        assert sum(parameter.numel() for parameter in net.parameters()) == expected
        assert expected == 513 * qubits + qubits * depth + 2 * (qubits + 1)
        assert set(net.state_dict()) == {*("pre.weight", "pre.bias", "post.weight", "post.bias"), "quantum.weights"}

    @pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3)])
    def test_shapes(self, shape):
        net = DressedQuantumNet(3, 2)
        assert net(torch.randn(shape)).shape == (*shape[:-1], 2)
        assert net.quantum_features(torch.randn(shape)).shape == (*shape[:-1], 4)

    def test_gradients_against_finite_differences(self):
        net = DressedQuantumNet(3, 2, depth=2, weight_spread=1.0).double()
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        names, values = zip(*net.named_parameters(), strict=True)

        def outputs(x, *values):
            return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(outputs, (x, *values))

    def test_all_parameters_learn(self):
        net = DressedQuantumNet(3, 2, weight_spread=1.0)
        net(torch.randn(8, 3)).square().sum().backward()
        assert all(parameter.grad.abs().min() > 0 for parameter in net.parameters())

    @pytest.mark.parametrize(("backend", "repeats"), [("statevector", 100), ("aer", 49)])  # Aer takes ten times as long
    def test_shots_agree_with_exact_values(self, backend, repeats):
        """Means of repeated values and gradients lie within their standard errors of the exact ones."""
        exact = DressedQuantumNet(3, 2, num_qubits=2, depth=1, weight_spread=1.0, seed=1).double()
        noisy = DressedQuantumNet(3, 2, num_qubits=2, depth=1, backend=backend, shots=200, seed=2).double()
        noisy.load_state_dict(exact.state_dict())
        x = torch.randn(3, 3, dtype=torch.float64)

        def sample(net):
            net.zero_grad()
            y = net(x)
            y.sum().backward()
            return torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in net.parameters())])

        expected = sample(exact)
        samples = torch.stack([sample(noisy) for _ in range(repeats)])
        spread = samples.std(dim=0)
        random = spread > 1e-9  # the last bias's gradient is exact
        z = ((samples.mean(dim=0) - expected) / (spread / repeats**0.5))[random]
        assert random.sum() >= len(expected) - 2
        assert z.abs().max() < 4.5
        assert 0.3 < z.square().mean() < 3
        assert torch.allclose(samples[:, ~random], expected[~random])

    def test_weight_spread(self):
        weights = DressedQuantumNet(1, 1, num_qubits=10, depth=200, weight_spread=0.3).quantum.weights.detach()
        assert abs(weights.std().item() / 0.3 - 1) < 4.5 / math.sqrt(2 * 2000)
        assert abs(weights.mean().item()) < 4.5 * 0.3 / math.sqrt(2000)
        assert not DressedQuantumNet(1, 1, weight_spread=0.0).quantum.weights.any()

    def test_seed_makes_the_initial_weights(self):
        one, two, three = (DressedQuantumNet(1, 1, seed=seed).quantum.weights for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, three)

    def test_state_dict_round_trip(self, tmp_path):
        net, other = DressedQuantumNet(3, 2), DressedQuantumNet(3, 2)
        torch.save(net.state_dict(), tmp_path / "net.pt")
        other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        x = torch.randn(5, 3)
        assert torch.equal(net(x), other(x))

    def test_trains_within_a_larger_model(self):
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), DressedQuantumNet(8, 2, num_qubits=3, depth=2))
        x = torch.rand(32, 2) - 0.5
        labels = (x.prod(dim=1) > 0).long()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.6 * losses[0]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"num_features": 0}, "num_features: got 0"),
            ({"num_outputs": 0}, "num_outputs: got 0"),
            ({"num_qubits": 0}, "num_qubits: got 0"),
            ({"depth": 0}, "depth: got 0"),
            ({"weight_spread": -1.0}, "weight_spread: got -1.0"),
            ({"weight_spread": math.nan}, "weight_spread: got nan"),
            ({"backend": "nosuch"}, "expected one of"),
            ({"gradient": "adjoint", "shots": 10}, "needs exact simulation"),
        ],
    )
    def test_refused(self, options, said):
        with pytest.raises(ValueError, match=said):
            DressedQuantumNet(**{"num_features": 3, "num_outputs": 2, **options})
