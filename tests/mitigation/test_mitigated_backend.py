"""Methods of mitigation in front of a backend: what is measured, in which order it is combined, what it costs."""

import copy
import gc
import pickle
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, ParameterVector
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error

from qiskit_torch_bridge import (
    AerBackend,
    Backend,
    DensityMatrixBackend,
    DressedQuantumNet,
    Estimate,
    LayerwiseQuantumLayer,
    MitigatedBackend,
    Mitigation,
    MitigationPlan,
    Phase,
    QuantumLayer,
    SamplerBackend,
    Variant,
    ZeroNoiseExtrapolation,
    evaluate,
)
from qiskit_torch_bridge.circuits import random_rotations
from qiskit_torch_bridge.mitigation.combining import combined

X, W = ParameterVector("x", 2), ParameterVector("w", 2)
FEATURES = torch.tensor([[0.3, 1.1], [0.8, 0.5], [1.3, -0.7]], dtype=torch.float64)


@dataclass(frozen=True)
class Turned(Variant):
    """Adds a rotation to the first qubit that is measured."""

    angle: float

    keeps_values = False

    def apply(self, circuit):
        turned = circuit.copy_empty_like()
        first = next((i.qubits[0] for i in circuit.data if i.operation.name == "measure"), circuit.qubits[0])
        for instruction in circuit.data:
            if instruction.operation.name == "measure" and instruction.qubits[0] == first:
                turned.rx(self.angle, first)
            turned.append(instruction)
        return turned


@dataclass(frozen=True)
class Times(Mitigation):
    factor: float

    def plan(self, program, backend):
        return MitigationPlan((program,), lambda estimates, _: combined(estimates, [self.factor]))


@dataclass(frozen=True)
class Plus(Mitigation):
    number: float

    def plan(self, program, backend):
        def combine(estimates, _):
            return replace(estimates[0], values=estimates[0].values + self.number)

        return MitigationPlan((program,), combine)


@dataclass(frozen=True)
class Differences(Mitigation):
    """Of values that were measured with two turns, and as they are."""

    turns: tuple[float, ...] = (0.4, 0.9)

    def plan(self, program, backend):
        programs = (program, *(program.varied(Turned(angle)) for angle in self.turns))
        return MitigationPlan(programs, lambda estimates, _: combined(estimates, [1.0, 2.0, -3.0]))


class Recorded(Backend):
    """Passes everything on, and writes it down."""

    name, runs_variants, settings_may_change = "recorded", True, False

    def __init__(self, backend, queues=False):
        self.inner, self.prepared, self.calls = backend, [], []
        self._queues = queues

    @property
    def queues(self):
        return self._queues

    def resolve_shots(self, shots):
        return self.inner.resolve_shots(shots)

    def prepare(self, program):
        self.prepared.append(program.variants)
        self.inner.prepare(program)

    def circuits(self, program):
        return self.inner.circuits(program)

    def evaluate(self, program, angles, *, shots, seed):
        return self.inner.evaluate(program, angles, shots=shots, seed=seed)

    def evaluate_all(self, requests, *, shots):
        self.calls.append(list(requests))
        return super().evaluate_all(requests, shots=shots)


def depolarising():
    noise = NoiseModel(basis_gates=["rx", "ry", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.05, 2), ["cx"])
    return noise


def circuit_of_two():
    circuit = QuantumCircuit(2)
    for qubit in range(2):
        circuit.ry(X[qubit], qubit)
        circuit.cx(0, 1)
        circuit.rx(W[qubit], qubit)
    return circuit


def layer_with(mitigation=(), backend=None, **options):
    backend = DensityMatrixBackend(depolarising()) if backend is None else backend
    init = torch.tensor([0.4, -0.9])
    options = {"observables": ["ZI", "XX"], "init": init, "seed": 5} | options
    return QuantumLayer(
        circuit_of_two(), inputs=X, weights=W, backend=backend, mitigation=mitigation, **options
    ).double()


def numbers(layer, features=FEATURES):
    features = features.clone().requires_grad_()
    layer.zero_grad()
    values = layer(features)
    values.backward(torch.linspace(-1, 1, values.numel(), dtype=values.dtype).reshape(values.shape))
    return torch.cat([values.detach().flatten(), features.grad.flatten(), layer.weights.grad])


# --- order, and what is measured --------------------------------------------------------------------------------------


def test_the_first_method_is_applied_to_what_is_measured():
    plain = layer_with()(FEATURES)
    torch.testing.assert_close(layer_with([Times(2), Plus(1)])(FEATURES), 2 * plain + 1)
    torch.testing.assert_close(layer_with([Plus(1), Times(2)])(FEATURES), 2 * (plain + 1))


@pytest.mark.parametrize("inside", [True, False])
def test_methods_that_measure_several_programs_are_nested(inside):
    """Each program of the outer one is measured as the inner one says: by hand, from the three turns."""
    plain = {}
    for angle in (0.0, 0.4, 0.9):
        layer = layer_with()
        program = layer.program.varied(Turned(angle)) if angle else layer.program
        plain[angle] = evaluate(program, FEATURES, [layer.weights.detach().double()], backend=layer.backend)
    difference = plain[0.0] + 2 * plain[0.4] - 3 * plain[0.9]
    methods = [Plus(1), Differences()] if inside else [Differences(), Plus(1)]
    # 1 + 2 - 3 = 0: what is added to each of the programs cancels.
    torch.testing.assert_close(layer_with(methods)(FEATURES), difference + (0 if inside else 1))


def test_everything_leaves_in_one_call_and_is_prepared_before():
    backend = Recorded(DensityMatrixBackend(depolarising()))
    layer = layer_with([Differences()], backend=backend, shots=100)
    variants = [(), (Turned(0.4),), (Turned(0.9),)]
    assert backend.prepared == variants
    layer(FEATURES).sum().backward()
    values, gradient = backend.calls
    assert [request.program.variants for request in values] == variants
    assert {len(request.angles) for request in values} == {3}
    assert {len(request.angles) for request in gradient} == {3 * 2 * 2}  # of two weights
    assert len(backend.prepared) == 3


def test_where_there_is_a_queue_values_and_gradients_leave_together():
    backend = Recorded(DensityMatrixBackend(depolarising()), queues=True)
    layer = layer_with([Differences()], backend=backend, shots=100)
    features = FEATURES.clone().requires_grad_()
    layer(features).sum().backward()
    (call,) = backend.calls
    assert [len(request.angles) for request in call] == [3 * (1 + 8)] * 3
    assert layer.last_run.gradient_shots == 100 * 2 * 3 * 3 * 8
    assert layer.quote(3).calls == 1


def test_parts_have_seeds_of_their_own_which_are_the_same_again():
    backend = Recorded(DensityMatrixBackend(depolarising()))
    for _ in range(2):
        layer_with([Differences()], backend=backend, shots=100)(FEATURES)
    layer_with([Differences()], backend=backend, shots=100, seed=6)(FEATURES)
    states = [[tuple(r.seed.generate_state(4)) for r in call] for call in backend.calls]
    assert states[0] == states[1] != states[2]
    assert len(set(states[0])) == 3
    assert not set(states[0]) & set(states[2])
    one = layer_with([Differences()], shots=100)
    assert torch.equal(numbers(one), numbers(layer_with([Differences()], shots=100)))
    assert not torch.equal(numbers(one), numbers(layer_with([Differences()], shots=100, seed=6)))


def test_parts_are_independent_of_each_other():
    """Equal programs in a sum: with the same seed its variance would be 4, not 2, times that of one."""

    @dataclass(frozen=True)
    class Doubled(Mitigation):
        def plan(self, program, backend):
            programs = (program.varied(Turned(0.0)), program.varied(Turned(2 * np.pi)))
            return MitigationPlan(programs, lambda estimates, _: combined(estimates, [1.0, 1.0]))

    layer = layer_with([Doubled()], shots=400)
    with torch.no_grad():
        values = layer(FEATURES[:1].repeat(1500, 1)).numpy()
    assert np.mean(layer.last_run.standard_errors**2, axis=0) == pytest.approx(values.var(axis=0), rel=0.15)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_quotes_count_what_is_measured():
    plain, layer = layer_with(shots=50), layer_with([Differences()], shots=50)
    before, after = plain.quote(3), layer.quote(3)
    assert (after.circuits, after.shots, after.executions) == tuple(
        3 * number for number in (before.circuits, before.shots, before.executions)
    )
    assert after.calls == before.calls
    numbers(layer)
    assert (layer.total_circuits, layer.total_shots) == (after.circuits, after.shots)
    assert "Mitigated by Differences(turns=(0.4, 0.9))." in layer.plan()


# --- copies and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", ["density", "aer"])
def test_copies(how, kind):
    backend = None if kind == "density" else AerBackend(AerSimulator(noise_model=depolarising()))
    layer = layer_with([ZeroNoiseExtrapolation((1, 2, 3))], shots=100, backend=backend)
    layer(FEATURES)
    other = pickle.loads(pickle.dumps(layer)) if how == "pickle" else copy.deepcopy(layer)
    assert other.mitigation == layer.mitigation
    assert torch.equal(numbers(other), numbers(layer))
    assert "MitigatedBackend(" in repr(other.method().backend)


def test_mitigation_can_be_set_and_taken_away():
    layer, plain = layer_with(), layer_with()
    backend = layer.backend
    expected = layer_with([ZeroNoiseExtrapolation()])(FEATURES)
    layer.mitigation = [ZeroNoiseExtrapolation()]
    assert layer.backend is backend
    assert isinstance(layer.method().backend, MitigatedBackend)
    torch.testing.assert_close(layer(FEATURES), expected)
    layer.mitigation = ()
    assert layer.method().backend is backend
    torch.testing.assert_close(layer(FEATURES), plain(FEATURES))
    assert layer.gradient.name == "adjoint"


def test_what_cannot_be_set_changes_nothing():
    layer = layer_with([ZeroNoiseExtrapolation()])
    method = layer.method()
    for wrong, error in (([3], TypeError), (ZeroNoiseExtrapolation((1, 1.01)), ValueError), ("zne", TypeError)):
        with pytest.raises(error):
            layer.mitigation = wrong
        assert layer.mitigation == (ZeroNoiseExtrapolation(),)
        assert layer.method() is method
    with pytest.raises(ValueError, match="runs no transpiled circuits and has no errors to mitigate"):
        layer.backend = "statevector"
    assert layer.method() is method


def test_the_backend_can_be_set_and_is_mitigated_too():
    layer = layer_with([Times(2)], shots=100)
    simulator = AerSimulator(noise_model=depolarising())
    layer.backend = simulator
    assert isinstance(layer.backend, AerBackend)
    assert layer.backend.simulator is simulator
    assert isinstance(layer.method().backend, MitigatedBackend)


def test_shots_and_allocation_go_on_with_the_same_backend():
    """Which has the calibrations, and the plans."""
    layer = layer_with([Differences()], shots=100)
    mitigated = layer.method().backend
    layer.shots = 300
    layer.allocation = "sensitivity"
    assert layer.method().backend is mitigated
    assert layer.method(17).backend is mitigated
    numbers(layer)
    assert layer.last_run.shots == 3 * 2 * 3 * 300
    layer(FEATURES, shots=17)
    assert layer.last_run.shots == 3 * 2 * 3 * 17


def test_a_mitigated_backend_can_be_given_as_a_backend():
    given = MitigatedBackend(DensityMatrixBackend(depolarising()), [Times(2)])
    layer = layer_with(backend=given)
    assert layer.backend is given
    assert layer.mitigation == ()
    torch.testing.assert_close(layer(FEATURES), 2 * layer_with()(FEATURES))


def test_several_layers_share_a_backend_with_methods_of_their_own():
    backend = DensityMatrixBackend(depolarising())
    layers = [layer_with(methods, backend=backend) for methods in ([], [Times(2)], [ZeroNoiseExtrapolation()])]
    values = [layer(FEATURES) for layer in layers]
    torch.testing.assert_close(values[1], 2 * values[0])
    assert not torch.allclose(values[2], values[0])


def test_plans_do_not_keep_programs_without_end():
    """Each distinct row of an input block is a program of its own."""
    mitigated = MitigatedBackend(DensityMatrixBackend(depolarising()), [Times(2)])
    layer = layer_with()
    references = []
    for _ in range(1100):
        program = replace(layer.program)
        mitigated._plans[program] = mitigated.plan(layer.program)
        del mitigated._plans[program]
        mitigated.plan(program)
        references.append(weakref.ref(program))
        del program
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 1024


# --- input blocks, and the other models -------------------------------------------------------------------------------


class OnlyForNumbers(Gate):
    """A gate that has a definition once its parameter is a number."""

    def __init__(self, number):
        super().__init__("only_for_numbers", 1, [number])

    def _define(self):
        angle = float(self.params[0]) ** 2
        self.definition = QuantumCircuit(1)
        self.definition.ry(angle, 0)


def test_input_blocks():
    circuit = QuantumCircuit(2)
    circuit.append(OnlyForNumbers(X[0]), [0])
    circuit.cx(0, 1)
    circuit.rx(W[0], 1)
    options = {"inputs": [X[0]], "weights": [W[0]], "observables": ["ZI", "IZ"], "init": torch.tensor([0.3])}
    features = torch.tensor([[0.4], [1.1], [0.4]], dtype=torch.float64)
    ideal = QuantumLayer(circuit, **options).double()
    method = ZeroNoiseExtrapolation(fit="exponential")
    backend = Recorded(DensityMatrixBackend(depolarising()))
    layer = QuantumLayer(circuit, **options, backend=backend, mitigation=[method]).double()
    for one in (ideal, layer):
        one(features).sum().backward()
    torch.testing.assert_close(layer(features), ideal(features), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.weights.grad, ideal.weights.grad, atol=1e-6, rtol=0)
    assert [len(call) for call in backend.calls] == [2 * 3] * 3  # two fillings, three factors
    assert layer.quote(3).circuits == 3 * 3 * (1 + 2)


def test_empty_batches_measure_nothing():
    backend = Recorded(DensityMatrixBackend(depolarising()))
    layer = layer_with([Differences()], backend=backend, shots=10)
    assert layer(torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 2)
    assert backend.calls == []
    with pytest.raises(ValueError, match="not"):
        layer(torch.tensor([[np.nan, 0.0]], dtype=torch.float64))
    assert backend.calls == []


def test_layers_that_grow_keep_their_methods_and_plans_follow_the_circuit():
    method = ZeroNoiseExtrapolation((1, 3))
    options = {"backend": DensityMatrixBackend(depolarising()), "shots": 50, "seed": 1, "mitigation": [method]}
    layer = LayerwiseQuantumLayer(lambda depth: random_rotations(3, depth, seed=0), 1, **options)
    for depth in (1, 2):
        layer.enter(Phase("p", depth, (depth - 1,), 1))
        layer(torch.rand(2, layer.quantum.program.num_inputs) if layer.quantum.program.num_inputs else None)
        assert layer.quantum.mitigation == (method,)
        assert isinstance(layer.quantum.method().backend, MitigatedBackend)
    assert layer.quantum.last_run.shots == 50 * layer.quantum.last_run.circuits


def test_dressed_networks():
    method = ZeroNoiseExtrapolation((1, 3))
    net = DressedQuantumNet(
        3, 2, num_qubits=2, depth=1, backend=DensityMatrixBackend(depolarising()), mitigation=[method]
    )
    net(torch.rand(4, 3)).sum().backward()
    assert net.quantum.mitigation == (method,)
    assert net.quantum.last_run.circuits == 2 * 4
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("shots", [None, 200])
def test_compiled_and_mapped_layers(shots):
    layer = layer_with([ZeroNoiseExtrapolation((1, 3))], shots=shots)
    if shots is None:
        rows = torch.stack([layer(row) for row in FEATURES])
        torch.testing.assert_close(torch.vmap(layer, randomness="different")(FEATURES), rows)
        jacobian = torch.func.jacrev(lambda features: layer(features).sum(0))(FEATURES)
        torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(lambda f: layer(f).sum(0), FEATURES))
    again = layer_with([ZeroNoiseExtrapolation((1, 3))], shots=shots)
    assert torch.equal(
        torch.compile(again, backend="eager")(FEATURES), layer_with(layer.mitigation, shots=shots)(FEATURES)
    )


# --- what is refused --------------------------------------------------------------------------------------------------


class Own(Backend):
    name = "own"

    def resolve_shots(self, shots):
        return shots

    def prepare(self, program): ...

    def evaluate(self, program, angles, *, shots, seed):
        zeros = np.zeros((len(angles), program.num_outputs))
        return Estimate(zeros, zeros, 0, 0)


@pytest.mark.parametrize("backend", ["statevector", "pauli", Own()], ids=["statevector", "pauli", "own"])
def test_backends_that_run_no_circuits_are_refused(backend):
    with pytest.raises(ValueError, match=r"mitigation: got \[Times\(factor=2\)\].*which runs no transpiled circuits"):
        layer_with([Times(2)], backend=backend)
    with pytest.raises(ValueError, match="runs no transpiled circuits"):
        evaluate(layer_with().program, FEATURES, [torch.zeros(2)], backend=backend, mitigation=[Times(2)])


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ("zne", TypeError, "mitigation: got str, expected a list of methods"),
        ([ZeroNoiseExtrapolation], TypeError, "mitigation: got"),
        ([None], TypeError, "mitigation: got None"),
        ({Times(2)}, TypeError, "got set"),
        ([Times(2), Times(3)], ValueError, r"got \['Times'\] more than once"),
    ],
)
def test_what_is_no_list_of_methods(methods, error, message):
    with pytest.raises(error, match=message):
        layer_with(methods)


def test_a_single_method_is_a_list_of_one():
    assert layer_with(Times(2)).mitigation == (Times(2),)


@dataclass(frozen=True)
class Wrong(Mitigation):
    """Wrong on purpose."""

    how: str

    def plan(self, program, backend):
        if self.how == "no plan":
            return program
        if self.how == "another program":
            return MitigationPlan((layer_with(observables="ZZ").program,), lambda estimates, _: estimates[0])

        def combine(estimates, _):
            (estimate,) = estimates
            wrong = {
                "nothing": None,
                "another shape": replace(estimate, values=estimate.values[:, :1], variances=estimate.variances[:, :1]),
                "values alone": estimate.values,
            }
            return wrong[self.how]

        return MitigationPlan((program,), combine)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no plan", r"(?s)Wrong.plan: got Program.*, expected a MitigationPlan"),
        ("another program", r"Wrong\(how='another program'\): got a program with 1 output\(s\) .* expected 2"),
        ("nothing", r"Wrong\(how='nothing'\): got None.*, expected an Estimate"),
        ("another shape", r"values of shape \(3, 1\) and variances of shape \(3, 1\), expected \(3, 2\)"),
        ("values alone", "expected an Estimate"),
    ],
)
def test_methods_that_are_wrong_say_so(how, message):
    with pytest.raises((TypeError, ValueError), match=message):
        layer_with([Wrong(how)])(FEATURES)


@dataclass(frozen=True)
class Spoilt(Variant):
    how: str

    def apply(self, circuit):
        spoilt = circuit.copy_empty_like()
        for instruction in circuit.data:
            if instruction.operation.name == "measure" and self.how == "no measurements":
                continue
            operation = instruction.operation
            if self.how == "another angle" and operation.name == "rx" and operation.params[0] != 0.2:
                operation = operation.copy()
                operation.params = [operation.params[0] ** 2]
            spoilt.append(operation, instruction.qubits, instruction.clbits)
        if self.how == "another gate":
            spoilt.ccx(0, 1, 2)
        return spoilt


@dataclass(frozen=True)
class Applied(Mitigation):
    variant: Variant

    def plan(self, program, backend):
        return MitigationPlan((program.varied(self.variant),), lambda estimates, _: estimates[0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no measurements", r"Spoilt\(how='no measurements'\) made a circuit with the registers and measured bits"),
        ("another angle", r"Spoilt\(how='another angle'\) made the angle .*, expected an affine function"),
    ],
)
@pytest.mark.parametrize("kind", ["density", "aer", "sampler"])
def test_variants_that_spoil_a_circuit_are_refused_before_anything_runs(how, message, kind):
    from qiskit.primitives import StatevectorSampler

    backend = {
        "density": DensityMatrixBackend(depolarising()),
        "aer": AerBackend(AerSimulator(noise_model=depolarising())),
        "sampler": SamplerBackend(StatevectorSampler()),
    }[kind]
    with pytest.raises(ValueError, match=message):
        layer_with([Applied(Spoilt(how))], backend=backend, shots=10)


def test_gates_that_the_device_does_not_have_are_refused():
    from qiskit.primitives import BackendSamplerV2
    from qiskit.providers.fake_provider import GenericBackendV2

    backend = BackendSamplerV2(backend=GenericBackendV2(3, basis_gates=["rz", "sx", "x", "cx"], seed=1))
    with pytest.raises(ValueError, match=r"Spoilt\(how='another gate'\) made a circuit with ccx, which .* cannot run"):
        layer_with([Applied(Spoilt("another gate"))], backend=backend, shots=10)
