"""Devices whose ``rzz`` takes angles from 0 to pi / 2 only: no angle of a training is refused, and all values are right."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Parameter, ParameterVector
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorEstimator
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import InstructionProperties

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from ibm_training import ibm
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_ibm_runtime import QiskitRuntimeService
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.fake_provider import FakeFractionalBackend
from qiskit_ibm_runtime.utils import validate_isa_circuits, validate_rzz_pubs

from qiskit_torch_bridge import IBMBackend, QuantumLayer
from qiskit_torch_bridge.backends.folds import Folds
from qiskit_torch_bridge.backends.free_rzz import has_free_rzz
from qiskit_torch_bridge.backends.ibm import service
from qiskit_torch_bridge.backends.ibm import workload as workload_module
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.device_programs import _measured, to_qpy
from qiskit_torch_bridge.backends.results import BoundCircuit
from qiskit_torch_bridge.program.readout import Samples

OBSERVABLES = ["ZII", "IXX", "YZI", "IIZ"]
CONSTANTS = [-2.1, 0.4, math.pi / 2, 2.6, -0.7, 5.1]


def entangled(constant: float = -2.1) -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """A dressed circuit's layers with every free rotation of two qubits, one with a constant angle, and free ``rx``."""
    x, w = ParameterVector("x", 3), ParameterVector("w", 5)
    circuit = QuantumCircuit(3)
    for qubit in range(3):
        circuit.h(qubit)
        circuit.ry(x[qubit], qubit)
    circuit.rzz(w[0], 0, 1)
    circuit.rzz(constant, 1, 2)
    circuit.rxx(w[1], 1, 2)
    circuit.ryy(w[2], 0, 2)
    circuit.rzx(w[3], 2, 0)
    circuit.rx(w[4], 1)
    return circuit, x, w


def layer_on(backend: object, constant: float = -2.1, **options: object) -> QuantumLayer:
    circuit, x, w = entangled(constant)
    options = {"observables": OBSERVABLES, "seed": 5, **options}
    return QuantumLayer(circuit, inputs=x, weights=w, backend=backend, **options)


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Angles from all over (-4 pi, 4 pi)."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(-4 * np.pi, 4 * np.pi, (rows, columns)))


class ExactDevice(LocalDevice):
    """Has IBM's own validators look at every job, and measures exactly what they let pass."""

    def submit(self, primitive, pubs, *, shots, options, tag, seed):
        validate_isa_circuits([pub[0] for pub in pubs], self.device.target)
        validate_rzz_pubs([EstimatorPub.coerce(pub) for pub in pubs])
        job = StatevectorEstimator(default_precision=0.0).run(pubs)
        self._sent(job)
        return job.job_id(), None


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(service, "LocalDevice", ExactDevice)
    return IBMBackend(FakeFractionalBackend(), primitive="estimator", options={"resilience_level": 0})


@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_exact_at_angles_from_everywhere(exact, seed):
    features, weights = drawn(2, 3, seed), drawn(1, 5, 100 + seed)[0]
    found, expected = (
        layer_on(backend, CONSTANTS[seed], shots=shots, init=weights, gradient="parameter_shift")
        for backend, shots in ((exact, 100), (None, None))
    )
    upstream = drawn(2, len(OBSERVABLES), 200 + seed)
    results = []
    for layer in (found, expected):
        x = features.clone().requires_grad_()
        values = layer(x)
        (values * upstream).sum().backward()
        results.append([values.detach(), x.grad, layer.weights.grad])
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)
    assert exact.ledger.entries()


def test_values_are_those_of_qiskit(exact):
    circuit, x, w = entangled(2.6)
    features, weights = drawn(1, 3, 7)[0], drawn(1, 5, 8)[0]
    layer = layer_on(exact, 2.6, shots=100, init=weights)
    bound = circuit.assign_parameters({**dict(zip(x, features, strict=True)), **dict(zip(w, weights, strict=True))})
    state = Statevector(bound)
    expected = [state.expectation_value(SparsePauliOp(label)).real for label in OBSERVABLES]
    np.testing.assert_allclose(layer(features[None]).detach()[0], expected, atol=1e-9)


@pytest.mark.parametrize("constant", CONSTANTS)
def test_constant_angles_use_the_fractional_gate_in_its_range(constant, exact):
    layer = layer_on(exact, constant, shots=100)
    circuit = exact._ready(layer.program).circuits[0].bound.circuit
    angles = [instruction.operation.params[0] for instruction in circuit.data if instruction.operation.name == "rzz"]
    (angle,) = (angle for angle in angles if not isinstance(angle, Parameter))
    assert len(angles) > 1
    assert 0 <= angle <= math.pi / 2 + 1e-10
    assert "rx" in circuit.count_ops()  # which takes any angle


def circuits_of(backend: IBMBackend, layer: QuantumLayer) -> list[QuantumCircuit]:
    return [each.bound.circuit for each in backend._ready(layer.program).circuits]


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {"fractional_gates": False},
        {"options": {"twirling": {"enable_gates": True, "group": "pauli"}}},
        {"primitive": "estimator", "options": {"resilience": {"zne_mitigation": True}}},
    ],
    ids=["unwanted", "twirled", "extrapolated"],
)
def test_free_angles_go_through_other_gates_where_they_have_to(level, options):
    """At no level of optimisation does Qiskit bring them back."""
    backend = IBMBackend(FakeFractionalBackend(), optimization_level=level, **options)
    constant = math.pi / 2  # which is a Clifford gate: else twirling would not take it either
    assert not any(map(has_free_rzz, circuits_of(backend, layer_on(backend, constant, shots=10))))


@pytest.mark.parametrize(("level", "fractional"), [(0, True), (1, None), (2, True), (3, None), (3, True)])
def test_every_level_of_optimization_folds(level, fractional, monkeypatch):
    monkeypatch.setattr(service, "LocalDevice", ExactDevice)
    options = {"primitive": "estimator", "options": {"resilience_level": 0}, "fractional_gates": fractional}
    backend = IBMBackend(FakeFractionalBackend(), optimization_level=level, **options)
    features, weights = drawn(2, 3, 31), drawn(1, 5, 32)[0]
    layer = layer_on(backend, shots=10, init=weights)
    (circuit,) = circuits_of(backend, layer)
    assert sum(i.operation.name == "rzz" and not is_constant(i) for i in circuit.data) == 4
    torch.testing.assert_close(layer(features), layer_on(None, init=weights)(features), rtol=0, atol=1e-9)


def is_constant(instruction: CircuitInstruction) -> bool:
    return not isinstance(instruction.operation.params[0], Parameter)


def test_what_does_not_go_with_fractional_gates_is_said():
    for options, message in (
        ({"primitive": "estimator", "options": {"resilience_level": 2}}, "zero-noise extrapolation amplifies.*rzz not"),
        ({"options": {"twirling": {"enable_gates": True}}}, "twirling.enable_gates with group='pauli'.*'local_pauli'"),
    ):
        with pytest.raises(ValueError, match=f"^fractional_gates: got True, but {message}"):
            IBMBackend(FakeFractionalBackend(), fractional_gates=True, **options)
    with pytest.raises(ValueError, match=r"^fractional_gates: got True, but 'fake_manila' has no rx and rzz"):
        _ = IBMBackend("fake_manila", fractional_gates=True).device
    with pytest.raises(TypeError, match=r"^fractional_gates: got 'yes' \(str\), expected True, False or None"):
        IBMBackend("fake_manila", fractional_gates="yes")


def test_local_twirling_takes_them():
    backend = IBMBackend(
        FakeFractionalBackend(),
        fractional_gates=True,
        options={"twirling": {"enable_gates": True, "group": "local_pauli"}},
    )
    layer = layer_on(backend, shots=200)
    assert all(map(has_free_rzz, circuits_of(backend, layer)))
    with torch.no_grad():
        exact = layer_on(None, init=layer.weights.detach())(features := drawn(2, 3, 5).float())
        assert (layer(features) - exact).abs().max() < 0.4


def test_a_gate_of_many_errors_is_not_used():
    device = FakeFractionalBackend()
    for pair in device.target["rzz"]:
        worse = InstructionProperties(device.target["rzz"][pair].duration, 0.2)
        device.target.update_instruction_properties("rzz", pair, worse)
    backend = IBMBackend(device)
    assert not any(map(has_free_rzz, circuits_of(backend, layer_on(backend, 0.0, shots=10))))
    other = IBMBackend("fake_fractional")
    assert all(map(has_free_rzz, circuits_of(other, layer_on(other, 0.0, shots=10))))


def test_ibms_client_prepares_as_many_layers_as_there_are():
    """It keeps a part of each in the process, and was full after 13 of a kind."""
    circuit, w = QuantumCircuit(2), ParameterVector("w", 2)
    circuit.rx(w[0], [0, 1])
    circuit.rzz(w[1], 0, 1)
    circuit.h([0, 1])
    backend = IBMBackend(FakeFractionalBackend(), primitive="estimator", options={"resilience_level": 0})
    layers = [QuantumLayer(circuit, weights=w, observables=["ZZ"], backend=backend, shots=10) for _ in range(15)]
    assert all(map(has_free_rzz, circuits_of(backend, layers[-1])))


@pytest.mark.parametrize(
    "make",
    [
        lambda: IBMBackend(FakeFractionalBackend()),
        lambda: IBMBackend(FakeFractionalBackend(), primitive="estimator"),
        lambda: IBMBackend(AerSimulator.from_backend(FakeFractionalBackend())),
        lambda: Sampler(mode=FakeFractionalBackend()),
        lambda: BackendSamplerV2(backend=FakeFractionalBackend()),
        lambda: BackendEstimatorV2(backend=FakeFractionalBackend()),
        lambda: "fake:fractional",
    ],
    ids=["ibm", "ibm estimator", "ibm on aer", "plain sampler", "backend sampler", "backend estimator", "fake:"],
)
def test_what_every_backend_runs_is_what_the_device_takes(make, monkeypatch):
    """Measured with the device's noise, and so a little off; the circuits are looked at by IBM's validators."""
    ran: list[QuantumCircuit] = []
    values = BoundCircuit.values

    def watched(self, angles):
        ran.append(self.circuit)
        parameters = values(self, angles)
        validate_isa_circuits([self.circuit], FakeFractionalBackend().target)
        validate_rzz_pubs([SamplerPub.coerce((self.circuit, parameters), 1)])
        return parameters

    layer, exact = layer_on(make(), shots=400), layer_on(None)
    features = drawn(1, 3, 3).to(torch.float32)
    with torch.no_grad():
        exact.weights.copy_(layer.weights)
        expected = exact(features)
    monkeypatch.setattr(BoundCircuit, "values", watched)
    found = layer(features)
    found.sum().backward()
    assert ran
    assert (found.detach() - expected).abs().max() < 0.4


def test_a_free_angle_that_the_device_limits_is_refused_before_any_job(monkeypatch):
    """Whoever makes the circuits: here the step that spells free rotations out is missing."""
    monkeypatch.setattr("qiskit_torch_bridge.backends.transpiling._without_free_entanglers", lambda circuit: circuit)
    with pytest.raises(ValueError, match=r"free angle .* in 'rzz'.*use_fractional_gates=False"):
        layer_on(IBMBackend(FakeFractionalBackend(), fractional_gates=False), shots=10)


def test_angles_that_are_not_folded_are_refused_before_any_job(monkeypatch):
    """Here the folds get lost."""
    backend = IBMBackend(FakeFractionalBackend())
    layer = layer_on(backend, shots=10)
    monkeypatch.setattr(Folds, "values", lambda self, unfolded: unfolded)
    with pytest.raises(ValueError, match=r"rzz is supported only for angles in the range \[0, pi/2\]"):
        layer(drawn(2, 3, 3).float())
    assert backend.ledger.entries() == []


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_ibms_validators_see_the_angles_before_anything_is_written_down(primitive, monkeypatch):
    backend = IBMBackend(FakeFractionalBackend(), primitive=primitive)
    circuit, x, w = QuantumCircuit(1), ParameterVector("x", 1), ParameterVector("w", 1)
    circuit.ry(x[0] + w[0], 0)
    layer = QuantumLayer(circuit, inputs=x, weights=w, backend=backend, shots=10, seed=1)
    stale = QuantumCircuit(5, 1)
    stale.rzz(ParameterVector("bound", 1)[0], 0, 1)

    def pubs(bound, angles, observables):
        return [(stale, [[SparsePauliOp("IIIIZ")]], [[4.0]]) if primitive == "estimator" else (stale, [[4.0]])]

    monkeypatch.setattr(workload_module, "pubs_of", pubs)
    with pytest.raises(ValueError, match=r"rzz is supported only for angles in the range \[0, pi/2\]"):
        layer(torch.zeros(1, 1))
    assert backend.ledger.entries() == []
    assert backend.ledger.evaluations() == []


def test_circuits_with_free_angles_that_are_not_folded_are_transpiled_anew(tmp_path):
    """A ledger may hold some of an earlier version."""
    path = tmp_path / "jobs.sqlite"
    first = IBMBackend(FakeFractionalBackend(), ledger=path, fractional_gates=False)
    layer_on(first, shots=10)(torch.zeros(1, 3))
    stale = QuantumCircuit(5, 3)
    stale.rzz(ParameterVector("angle", 9)[0], 0, 1)
    with first.ledger._file.transaction() as db:
        db.execute("UPDATE circuits SET circuits = ?", (to_qpy([stale] * 3),))
    first.close()
    second = IBMBackend(FakeFractionalBackend(), ledger=path, fractional_gates=False)
    layer_on(second, shots=10, seed=6)(torch.zeros(1, 3))
    assert [event["kind"] for event in second.ledger.events("transpiled-anew")] == ["transpiled-anew"]


def test_a_simulators_rzz_takes_any_angle():
    """As IBM's client has it too: only devices limit it."""
    with torch.no_grad():
        exact = layer_on(None)
        rehearsed = layer_on(IBMBackend(AerSimulator()), shots=4000, init=exact.weights.detach())
        features = drawn(2, 3, 3).to(torch.float32)
        errors = rehearsed(features) - exact(features)
        scores = errors.numpy() / np.maximum(rehearsed.last_run.standard_errors, 1e-3)
    assert np.abs(scores).max() < 5


def test_twirling_that_does_not_take_fractional_gates_is_refused_when_the_layer_is_made():
    circuit, x = QuantumCircuit(2), ParameterVector("x", 1)
    circuit.ry(x[0], 0)
    circuit.h(1)
    circuit.rzz(0.7, 0, 1)
    circuit.rx(0.3, 0)

    def layer(**options):
        backend = IBMBackend(FakeFractionalBackend(), **options)
        return QuantumLayer(circuit, inputs=x, observables=["IZ"], backend=backend, shots=64, seed=1)

    with pytest.raises(ValueError, match=r"IBM's Sampler cannot prepare.*LOCAL_PAULI.*use_fractional_gates=False"):
        layer(options={"twirling": {"enable_gates": True}})
    with pytest.raises(ValueError, match=r"IBM's Estimator cannot prepare.*LOCAL_PAULI"):
        layer(primitive="estimator", options={"resilience_level": 2})
    assert layer(options={"twirling": {"enable_gates": True, "group": "local_pauli"}})(torch.zeros(1, 1)).numel() == 1


def test_a_device_with_and_without_fractional_gates_is_not_one_device(cloud, tmp_path):
    """Or a run with them would be answered by the results of one without."""
    backends = []
    for fractional in (False, True):
        device = QiskitRuntimeService().backend("ibm_manila")
        device.options.use_fractional_gates = fractional
        backends.append(ibm(tmp_path / "jobs.sqlite", device))
    plain, with_them = (backend.connection.identity for backend in backends)
    assert plain == "ibm_manila"  # as it always was: ledgers of earlier versions stay valid
    assert with_them != plain


def test_the_same_run_again_finds_its_results(tmp_path):
    """And neither a run without folds nor one of other options does."""
    path, features = tmp_path / "jobs.sqlite", drawn(2, 3, 9).float()
    values = []
    for fractional in (None, True, False, None):
        with IBMBackend(FakeFractionalBackend(), ledger=path, fractional_gates=fractional) as backend:
            values.append(layer_on(backend, shots=50)(features).detach())
            jobs = len(backend.ledger.entries())
        assert jobs == (1 if fractional is not False and len(values) < 3 else 2)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[3])
    assert not torch.equal(values[0], values[2])


def test_copies_and_pickles():
    backend = IBMBackend("fake_fractional", fractional_gates=True)
    features = drawn(2, 3, 9).float()
    layer = layer_on(backend, shots=50)
    expected = layer(features).detach()
    for other in (pickle.loads(pickle.dumps(backend)), copy.deepcopy(backend)):
        assert torch.equal(layer_on(other, shots=50, init=layer.weights.detach())(features).detach(), expected)
    (bound,) = {each.bound for each in backend._ready(layer.program).circuits[:1]}
    again = pickle.loads(pickle.dumps(bound))
    angles = drawn(4, len(layer.program.angles), 3).numpy()
    np.testing.assert_array_equal(again.values(angles), bound.values(angles))
    assert again.values(angles[:0]).shape == (0, len(bound.parameters))


@pytest.mark.slow
@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_the_noise_model_is_that_of_the_folded_circuits(primitive):
    """Against Aer's density matrices of the circuits that are sent, angle by angle."""
    options = {"resilience_level": 0} if primitive == "estimator" else {}
    backend = IBMBackend(FakeFractionalBackend(), primitive=primitive, options=options, shadow="noisy")
    layer = layer_on(backend, shots=10)
    angles = drawn(3, len(layer.program.angles), 12).numpy()
    found = backend.modelled.evaluate(layer.program, angles, shots=None, seed=np.random.SeedSequence(0)).values
    noise = NoiseModel.from_backend(FakeFractionalBackend())
    simulator = AerSimulator(noise_model=noise, method="density_matrix")
    ready = backend._ready(layer.program)
    expected = np.zeros((3, len(OBSERVABLES)))
    for group, one in zip(layer.program.readout.groups, _measured(ready.circuits, layer.program), strict=True):
        for row, values in enumerate(one.values(angles)):
            circuit = one.circuit.assign_parameters(dict(zip(one.parameters, values, strict=True)))
            counts = simulator.run(circuit, shots=100_000, seed_simulator=1).result().get_counts()
            bits = np.array([[int(bit) for bit in reversed(outcome)] for outcome in counts], dtype=np.uint8)
            shots = np.array(list(counts.values()))
            samples = Samples(np.full(len(bits), 0), bits, shots, 1)
            expected[row] += group.sample_moments(samples)[0][0]
    np.testing.assert_allclose(found, expected, atol=5 / 100_000**0.5)


def test_a_device_of_the_cloud_is_opened_with_them(monkeypatch):
    asked = []

    class Service:
        def __init__(self, **account):
            pass

        def backend(self, name, **options):
            asked.append((name, options))
            return name

    monkeypatch.setattr("qiskit_ibm_runtime.QiskitRuntimeService", Service)
    for fractional in (True, False):
        assert service._real_device("ibm_fez", None, None, fractional_gates=fractional) == "ibm_fez"
    assert asked == [("ibm_fez", {"use_fractional_gates": True}), ("ibm_fez", {"use_fractional_gates": False})]


def test_a_device_of_the_cloud_without_them(cloud, ledger):
    with pytest.raises(ValueError, match=r"^fractional_gates: got True, but 'ibm_manila' has none; leave it out"):
        _ = ibm(ledger, fractional_gates=True).device
    device = QiskitRuntimeService().backend("ibm_manila")
    with pytest.raises(
        ValueError, match=r"^fractional_gates: got True, but 'ibm_manila' has no rx and rzz.*open it by"
    ):
        _ = ibm(ledger, device, fractional_gates=True).device
    device.options.use_fractional_gates = True
    assert pickle.loads(pickle.dumps(ibm(ledger, device)))._destination.fractional_gates is True
