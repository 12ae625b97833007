"""Layerwise learning: schedules, circuits that grow, what freezing costs, and that a run can be continued."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector

from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase, QuantumLayer, complete_depth_schedule, layerwise_schedule
from qiskit_torch_bridge.circuits import LayeredCircuit, random_rotations, ring_layers, rotation_layers

FAMILIES = {"random": partial(random_rotations, 3, seed=5), "ring": partial(ring_layers, 3)}


def everything(depth: int) -> Phase:
    return Phase("all", depth, tuple(range(depth)), 1)


def newest(depth: int) -> Phase:
    return Phase("newest", depth, (depth - 1,), 1)


def names(circuit: QuantumCircuit) -> list[tuple[str, tuple[int, ...]]]:
    return [(step.operation.name, tuple(circuit.find_bit(q).index for q in step.qubits)) for step in circuit.data]


def z_values(built: LayeredCircuit, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """``<Z>`` on each qubit, by Qiskit."""
    values = dict(zip(built.inputs, x, strict=True))
    for name, vector in built.weights.items():
        values |= dict(zip(vector, weights[name], strict=True))
    state = Statevector(built.circuit.assign_parameters(values))
    return np.array([state.expectation_value(SparsePauliOp("Z"), [q]).real for q in range(built.circuit.num_qubits)])


def numbers(layer: LayerwiseQuantumLayer) -> dict[str, np.ndarray]:
    return {name: weights.detach().double().numpy() for name, weights in layer.groups.items()}


class TestSchedule:
    def test_published_phases(self):
        phases = layerwise_schedule(steps=3, layers_per_step=2, epochs=5, partitions=2, sweeps=2, partition_epochs=4)
        steps = [Phase(f"step {n}", 2 * n, (2 * n - 2, 2 * n - 1), 5) for n in (1, 2, 3)]
        parts = (("part 1", (0, 1, 2)), ("part 2", (3, 4, 5)))
        sweeps = [Phase(f"sweep {n} {name}", 6, layers, 4) for n in (1, 2) for name, layers in parts]
        assert phases == (*steps, *sweeps)

    @pytest.mark.parametrize(
        ("freeze_after", "trainable"),
        [(1, [(0,), (1,), (2,)]), (2, [(0,), (0, 1), (1, 2)]), (None, [(0,), (0, 1), (0, 1, 2)])],
    )
    def test_freezing(self, freeze_after, trainable):
        phases = layerwise_schedule(steps=3, layers_per_step=1, epochs=1, freeze_after=freeze_after)
        assert [phase.trainable for phase in phases] == trainable

    def test_uneven_parts_cover_the_circuit_once(self):
        phases = layerwise_schedule(steps=7, layers_per_step=1, epochs=2, partitions=3, sweeps=1)[7:]
        assert [phase.trainable for phase in phases] == [(0, 1, 2), (3, 4), (5, 6)]
        assert {phase.epochs for phase in phases} == {2}

    def test_complete_depth(self):
        assert complete_depth_schedule(3, 8) == (Phase("complete depth", 3, (0, 1, 2), 8),)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"steps": 0}, "steps: got 0"),
            ({"layers_per_step": 0}, "layers_per_step: got 0"),
            ({"epochs": 0}, "epochs: got 0"),
            ({"freeze_after": 0}, "freeze_after: got 0"),
            ({"partitions": 0}, "partitions: got 0"),
            ({"partitions": 7}, "expected at most the 6 layers"),
            ({"sweeps": -1}, "sweeps: got -1"),
            ({"partition_epochs": 0}, "partition_epochs: got 0"),
        ],
    )
    def test_errors(self, changed, said):
        with pytest.raises(ValueError, match=said):
            layerwise_schedule(**({"steps": 3, "layers_per_step": 2, "epochs": 5, "sweeps": 1} | changed))

    @pytest.mark.parametrize("trainable", [(), (2,), (-1,)])
    def test_phase_without_such_layers(self, trainable):
        with pytest.raises(ValueError, match="from 0 to 1"):
            Phase("wrong", 2, trainable, 1)

    def test_complete_depth_errors(self):
        with pytest.raises(ValueError, match="depth: got 0"):
            complete_depth_schedule(0, 1)


class TestCircuits:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_first_layers_do_not_depend_on_the_depth(self, family):
        shallow, deep = FAMILIES[family](2), FAMILIES[family](5)
        assert names(deep.circuit)[: len(shallow.circuit.data)] == names(shallow.circuit)
        assert list(deep.weights)[:2] == list(shallow.weights) == ["layer0", "layer1"]

    def test_rotations_are_drawn(self):
        def drawn(seed: int, depth: int = 200) -> list[str]:
            return [name for name, _ in names(random_rotations(3, depth, seed=seed).circuit)[3:] if name != "cz"]

        counts = np.unique(drawn(1), return_counts=True)[1]
        assert len(counts) == 3
        assert (np.abs(counts - 200) < 5 * math.sqrt(600 * (1 / 3) * (2 / 3))).all()
        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)
        by_layer = np.array(drawn(1)).reshape(200, 3)
        assert len({tuple(layer) for layer in by_layer}) == 27  # layers differ, and qubits within them

    def test_random_rotations_gates(self):
        circuit = random_rotations(4, 2, seed=0).circuit
        layer = ["r", "r", "r", "r", "cz01", "cz12", "cz23"]
        found = ["r" if name != "cz" else f"cz{qubits[0]}{qubits[1]}" for name, qubits in names(circuit)]
        assert found == ["r"] * 4 + layer * 2
        assert names(circuit)[:4] == [("rx", (qubit,)) for qubit in range(4)]

    def test_ring_layers_gates(self):
        built = ring_layers(3, 1)
        x, w = built.inputs, built.weights["layer0"]
        expected = QuantumCircuit(3)
        for q in range(3):
            expected.ry(math.pi * x[q], q)
        for q in range(3):
            expected.rz(w[q], q)
            expected.rx(w[3 + q], q)
        for pair in ((0, 1), (1, 2), (2, 0)):
            expected.cz(*pair)
        assert built.circuit == expected

    @pytest.mark.parametrize(("num_qubits", "pairs"), [(1, 0), (2, 1), (3, 3), (9, 9)])
    def test_ring_closes(self, num_qubits, pairs):
        assert ring_layers(num_qubits, 2).circuit.count_ops().get("cz", 0) == 2 * pairs

    def test_reference_numbers(self, reference):
        """Another library's outputs and gradients of six layers, grown two at a time."""
        given = reference("layerwise")
        count = given["n_qubits"]
        rotations = np.array([gate for gate, *rest in given["operations"] if isinstance(rest[-1], list)])[count:]
        depth = len(rotations) // count
        table = rotations.reshape(depth, count).tolist()
        layer = LayerwiseQuantumLayer(
            lambda d: rotation_layers(table[:d]),
            2,
            observables=["".join("Z" if q in given["observables_z_on"] else "I" for q in reversed(range(count)))],
        ).double()
        for d in (4, depth):
            layer.enter(everything(d))
        assert [gate for gate, _ in names(rotation_layers(table).circuit)] == [gate for gate, *_ in given["operations"]]
        with torch.no_grad():
            for name, values in zip(layer.groups, np.reshape(given["weights"], (depth, count)), strict=True):
                layer.groups[name].copy_(torch.tensor(values))
        inputs = torch.tensor(given["inputs"], dtype=torch.float64, requires_grad=True)
        values = layer(inputs)
        values.backward(torch.tensor(given["upstream"], dtype=torch.float64))
        gradients = torch.cat([weights.grad for weights in layer.groups.values()])
        np.testing.assert_allclose(values.detach(), given["outputs"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(inputs.grad, given["grad_inputs"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(gradients, given["grad_weights"], rtol=0, atol=1e-9)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: random_rotations(0, 1, seed=0), "num_qubits: got 0"),
            (lambda: random_rotations(2, 0, seed=0), "depth: got 0"),
            (lambda: random_rotations(2, 1, seed=-1), "seed: got -1"),
            (lambda: ring_layers(0, 1), "num_qubits: got 0"),
            (lambda: ring_layers(2, 0), "depth: got 0"),
            (lambda: rotation_layers([]), "at least one layer"),
            (lambda: rotation_layers([[]]), "at least one layer"),
            (lambda: rotation_layers([["rx"], ["rx", "ry"]]), "all of one length"),
            (lambda: rotation_layers([["rx", "h"]]), r"got \['h'\]"),
        ],
    )
    def test_errors(self, make, said):
        with pytest.raises(ValueError, match=said):
            make()


class TestGrowing:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_outputs_are_those_of_the_grown_circuit(self, family):
        layer = LayerwiseQuantumLayer(FAMILIES[family], 1, init="uniform", grown="uniform", seed=1)
        layer.enter(everything(3))
        x = torch.rand(2, 3)
        expected = [z_values(FAMILIES[family](3), row.double().numpy(), numbers(layer)) for row in x]
        np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-6)

    def test_zero_layers_of_the_ring_change_nothing(self):
        """CZ commutes with Z, so a layer at zero leaves every readout of Z as it was."""
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 2, init="uniform", seed=1)
        x = torch.rand(4, 3)
        before = layer(x)
        layer.enter(everything(4))
        assert layer.depth == 4
        torch.testing.assert_close(layer(x), before)
        torch.testing.assert_close(layer(x), torch.tensor(self.by_qiskit(layer, x, depth=2)), check_dtype=False)

    @staticmethod
    def by_qiskit(layer: LayerwiseQuantumLayer, x: torch.Tensor, depth: int) -> np.ndarray:
        return np.array([z_values(FAMILIES["ring"](depth), row.double().numpy(), numbers(layer)) for row in x])

    def test_layers_that_are_not_zero_change_the_function(self):
        """So that the test before can fail."""
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 2, init="uniform", grown="uniform", seed=1)
        x = torch.rand(4, 3)
        before = layer(x)
        layer.enter(everything(4))
        assert (layer(x) - before).abs().max() > 0.1

    def test_earlier_parameters_stay(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 2, init="uniform", seed=1)
        before = dict(layer.groups.items())
        copies = {name: weights.detach().clone() for name, weights in before.items()}
        layer.enter(newest(3))
        assert all(layer.groups[name] is weights for name, weights in before.items())
        assert all(torch.equal(layer.groups[name], copy) for name, copy in copies.items())
        assert not layer.groups["layer2"].any()

    def test_entering_again_changes_nothing(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", seed=1)
        layer.enter(newest(2))
        quantum, weights = layer.quantum, dict(layer.groups.items())
        layer.enter(newest(2))
        assert layer.quantum is quantum
        assert all(layer.groups[name] is parameter for name, parameter in weights.items())

    @pytest.mark.parametrize("kind", ["zeros", "normal", "uniform"])
    def test_the_way_to_a_depth_does_not_matter(self, kind):
        slow, fast = (LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", grown=kind, seed=1) for _ in range(2))
        for depth in (2, 3, 4):
            slow.enter(everything(depth))
        fast.enter(everything(4))
        assert all(torch.equal(slow.groups[name], fast.groups[name]) for name in slow.groups)

    def test_random_layers_differ_from_each_other_and_by_seed(self):
        def drawn(seed: int) -> list[torch.Tensor]:
            layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", grown="uniform", seed=seed)
            for depth in (2, 3):
                layer.enter(everything(depth))
            return [weights.detach() for weights in layer.groups.values()]

        found = drawn(1) + drawn(2)
        assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])

    def test_dtype_and_mode_are_kept(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1).double().eval()
        layer.enter(everything(2))
        assert {weights.dtype for weights in layer.groups.values()} == {torch.float64}
        assert not layer.quantum.training

    def test_counts_go_on(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, shots=10, seed=1)
        layer(torch.rand(2, 3))
        layer.enter(everything(2))
        layer(torch.rand(2, 3))
        assert (layer.quantum.total_circuits, layer.quantum.total_shots) == (4, 40)

    def test_shot_noise_goes_on(self):
        """After growing by layers that change nothing in distribution, the noise is fresh, not that of the first call."""
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", shots=1000, seed=1)
        again = LayerwiseQuantumLayer(FAMILIES["ring"], 2, init="zeros", shots=1000, seed=1)
        with torch.no_grad():
            again.groups["layer0"].copy_(layer.groups["layer0"])
        x = torch.rand(4, 3)
        first = layer(x)
        layer.enter(everything(2))
        second = layer(x)
        fresh, other = again(x), again(x)
        assert torch.equal(second, other)
        assert not torch.equal(second, first)
        assert not torch.equal(second, fresh)

    @pytest.mark.parametrize("shots", [None, 100])
    def test_layer_without_a_seed_follows_torch(self, shots):
        def run() -> torch.Tensor:
            torch.manual_seed(3)
            layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", grown="uniform", shots=shots)
            layer.enter(everything(2))
            return layer(torch.full((2, 3), 0.3))

        assert torch.equal(run(), run())

    def test_shrinking_is_refused(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 3)
        with pytest.raises(ValueError, match="got depth 2, expected at least 3"):
            layer.enter(everything(2))
        assert layer.depth == 3

    def test_first_layers_that_change_are_refused(self):
        def renamed(depth: int) -> LayeredCircuit:
            circuit, inputs, weights = ring_layers(2, depth)
            return LayeredCircuit(circuit, inputs, {f"{name}of{depth}": group for name, group in weights.items()})

        layer = LayerwiseQuantumLayer(renamed, 1)
        with pytest.raises(ValueError, match="first layers must not depend on the depth"):
            layer.enter(everything(2))
        assert layer.depth == 1

    def test_groups_that_are_not_layers_are_refused(self):
        def single(depth: int) -> LayeredCircuit:
            weights = ParameterVector("w", depth)
            circuit = QuantumCircuit(1)
            for angle in weights:
                circuit.ry(angle, 0)
            return LayeredCircuit(circuit, ParameterVector("x", 0), {"all": weights})

        with pytest.raises(ValueError, match="expected 2, one for each layer"):
            LayerwiseQuantumLayer(single, 2)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"depth": 0}, "depth: got 0"),
            ({"init": "ones"}, "expected 'uniform', 'zeros', 'normal'"),
            ({"gradient": "adjoint", "shots": 10}, "needs exact simulation"),
        ],
    )
    def test_bad_options_are_refused(self, options, said):
        with pytest.raises(ValueError, match=said):
            LayerwiseQuantumLayer(**({"make_circuit": FAMILIES["ring"], "depth": 1} | options))


class TestFreezing:
    def test_frozen_layers_get_no_gradient(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", seed=1)
        layer(torch.rand(2, 3)).sum().backward()
        assert layer.groups["layer0"].grad is not None
        layer.enter(newest(2))
        assert layer.groups["layer0"].grad is None  # nothing that an optimiser could go on using
        layer(torch.rand(2, 3)).sum().backward()
        assert layer.groups["layer0"].grad is None
        assert layer.groups["layer1"].grad.abs().max() > 0

    def test_frozen_layers_are_thawed(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", seed=1)
        layer.enter(newest(2))
        layer.enter(Phase("other part", 2, (0,), 1))
        assert [weights.requires_grad for weights in layer.groups.values()] == [True, False]

    @pytest.mark.parametrize(("trainable", "trained"), [((2,), 6), ((0, 1), 12), ((0, 1, 2), 18)])
    def test_frozen_layers_cost_no_circuits(self, counting, trainable, trained):
        backend = counting()
        options = {"backend": backend, "gradient": "parameter_shift", "seed": 1}
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", **options)
        layer.enter(Phase("part", 3, trainable, 1))
        layer(torch.rand(4, 3)).sum().backward()
        assert [rows for rows, _ in backend.calls] == [4, 4 * 2 * trained]
        assert layer.quantum.quote(4, inputs_require_grad=False).circuits == 4 * (1 + 2 * trained)
        assert layer.quantum.total_circuits == 4 * (1 + 2 * trained)

    def test_unfrozen_layers_do_cost(self, counting):
        """The variant that grows but forgets to freeze: the counts above would notice."""
        backend = counting()
        options = {"backend": backend, "gradient": "parameter_shift", "seed": 1}
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", **options)
        layer.enter(newest(3))
        for weights in layer.groups.values():
            weights.requires_grad_(True)
        layer(torch.rand(4, 3)).sum().backward()
        assert [rows for rows, _ in backend.calls] == [4, 4 * 2 * 18]

    def test_only_trained_layers_move(self):
        layer = LayerwiseQuantumLayer(FAMILIES["ring"], 1, init="uniform", seed=1)
        before = None
        for phase in layerwise_schedule(steps=3, layers_per_step=1, epochs=1, partitions=3, sweeps=1):
            layer.enter(phase)
            before = {name: weights.detach().clone() for name, weights in layer.groups.items()}
            optimizer = torch.optim.Adam([w for w in layer.parameters() if w.requires_grad], lr=0.1)
            layer(torch.rand(4, 3)).sum().backward()
            optimizer.step()
            moved = [n for n, (name, old) in enumerate(before.items()) if not torch.equal(layer.groups[name], old)]
            assert tuple(moved) == phase.trainable


class TestContinuing:
    def test_a_fresh_layer_in_the_same_phase_loads_the_state(self):
        phase = Phase("step 3", 3, (2,), 1)
        trained = LayerwiseQuantumLayer(FAMILIES["random"], 1, init="uniform", shots=50, seed=1)
        for depth in (2, 3):
            trained.enter(newest(depth))
            trained(torch.rand(2, 3))
        with torch.no_grad():
            for weights in trained.groups.values():
                weights.add_(torch.rand(len(weights)))
        fresh = LayerwiseQuantumLayer(FAMILIES["random"], 1, init="uniform", shots=50, seed=1)
        for layer in (trained, fresh):
            layer.enter(phase)
        fresh.load_state_dict(trained.state_dict())
        fresh.quantum.set_rng_state(trained.quantum.get_rng_state())
        assert [w.requires_grad for w in fresh.parameters()] == [w.requires_grad for w in trained.parameters()]
        x = torch.rand(4, 3)
        assert torch.equal(fresh(x), trained(x))

    def test_state_of_another_depth_is_refused(self):
        deep, shallow = (LayerwiseQuantumLayer(FAMILIES["ring"], depth) for depth in (3, 2))
        with pytest.raises(RuntimeError, match="layer2"):
            shallow.load_state_dict(deep.state_dict())

    def test_same_as_a_quantum_layer(self):
        """Apart from growing it is one: gradients by weights and inputs are the same."""
        layer = LayerwiseQuantumLayer(FAMILIES["random"], 1, init="uniform", grown="uniform", seed=1)
        layer.enter(everything(3))
        built = FAMILIES["random"](3)
        plain = QuantumLayer(built.circuit, inputs=built.inputs, weights=built.weights, init=dict(layer.groups.items()))
        x = torch.rand(2, 3, requires_grad=True)
        mine = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
        theirs = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
        torch.testing.assert_close(mine, theirs)
