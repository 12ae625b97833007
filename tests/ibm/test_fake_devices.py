"""``IBMBackend`` without a cloud: fake devices, and a device that measures exactly, through the code that hardware gets."""

import copy
import gc
import json
import pickle
import weakref
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch
from gradient_checks import EXACT, RULES, SUBSET, check_gradients
from problems import AmplitudeGate, oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_ibm_runtime import Batch, Session
from qiskit_ibm_runtime.executor_estimator.prepare import prepare as prepare_estimator
from qiskit_ibm_runtime.executor_sampler.prepare import prepare as prepare_sampler
from qiskit_ibm_runtime.fake_provider import FakeManilaV2, FakeMontrealV2
from qiskit_ibm_runtime.options_models import TwirlingOptions

from qiskit_torch_bridge import (
    BudgetExceeded,
    HardwareError,
    IBMBackend,
    Ledger,
    Limits,
    Program,
    QuantumLayer,
    Request,
)
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.backends.ibm import device_programs as device_programs_module
from qiskit_torch_bridge.backends.ibm import service
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.device_programs import DeviceCircuit
from qiskit_torch_bridge.backends.ibm.fingerprints import fingerprint
from qiskit_torch_bridge.backends.ibm.prices import USUAL_DURATION, price_of
from qiskit_torch_bridge.backends.ibm.primitive_options import checked_options
from qiskit_torch_bridge.backends.ibm.workload import Rows, packed
from qiskit_torch_bridge.backends.results import pubs_of

SHOTS = 1000
LINE = [[0, 1], [1, 2], [2, 3], [3, 4]]


def noiseless(qubits: int = 5, coupling=None) -> AerSimulator:
    """A device with connections and a basis of its own that makes no errors."""
    coupling = LINE if coupling is None else coupling
    device = GenericBackendV2(qubits, coupling_map=[*coupling, *(pair[::-1] for pair in coupling)], seed=1)
    return AerSimulator.from_backend(device, noise_model=None)


class ExactDevice(LocalDevice):
    """Estimates without any noise what it is given, in the gates and on the qubits that it is given."""

    def submit(self, primitive, pubs, *, shots, options, tag, seed):
        assert primitive == "estimator"
        job = StatevectorEstimator(default_precision=0.0).run(pubs)
        self._sent(job)
        return job.job_id(), None


@pytest.fixture
def exact(monkeypatch):
    """Makes an IBMBackend on a device that measures exactly; its jobs are small, so that most evaluations are cut up."""
    monkeypatch.setattr(service, "LocalDevice", ExactDevice)

    def make(**options) -> IBMBackend:
        limits = Limits(executions=7 * 4096)
        return IBMBackend(noiseless(), primitive="estimator", options={"resilience_level": 0}, limits=limits, **options)

    return make


def textbook_layer(backend, **options) -> QuantumLayer:
    x, w = ParameterVector("x", 1), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.cx(0, 1)
    circuit.rx(w[0], 0)
    circuit.ry(w[1], 1)
    options = {"observables": ["ZI", "XX", "IY"], "seed": 3, "init": torch.tensor([0.4, 1.1]), **options}
    return QuantumLayer(circuit, inputs=x, weights=w, backend=backend, **options)


# --- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SUBSET[1::2], "idle_and_bare_qubits", "constant_gates", "several_registers", "random_0"]
)
def test_every_kind_of_circuit(name, exact):
    """Those of the next test are others, with parameter shift by other angles."""
    check_gradients(problem(name), oracle(name), EXACT, backend=exact(), shots=4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"), list(zip(SUBSET[::2], cycle(["another_shift", "negative_shift", "central_step"])))
)
def test_every_rule(name, rule, exact):
    """Those with a step of their own: the others' are large for so few shots, whatever the values are."""
    gradient, tolerance = RULES[rule]
    check_gradients(problem(name), oracle(name), tolerance, backend=exact(), shots=4096, gradient=gradient)


DEVICES = {
    "5 qubits in a line": {"backend": "fake_manila"},
    "another layout": {"backend": "fake_manila", "initial_layout": [4, 3]},
    "7 qubits": {"backend": "fake_jakarta"},
    "27 qubits": {"backend": "fake_montreal"},
    "127 qubits": {"backend": "fake_sherbrooke"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "primitive"), [*((name, "sampler") for name in DEVICES), ("another layout", "estimator")]
)
def test_fake_devices_of_many_sizes(device, primitive):
    backend = IBMBackend(**DEVICES[device], primitive=primitive)
    layer, exact = textbook_layer(backend, shots=300), textbook_layer(None)
    x = torch.tensor([[0.3]], dtype=torch.float64)
    values = layer(x)
    values.sum().backward()
    exact(x).sum().backward()
    # Devices make errors: near the exact values, far from those of swapped qubits.
    torch.testing.assert_close(values.detach(), exact(x).detach(), rtol=0, atol=0.35)
    torch.testing.assert_close(layer.weights.grad, exact.weights.grad, rtol=0, atol=0.6)
    assert [entry.state for entry in backend.ledger.entries()] == ["done"]


@pytest.mark.parametrize(
    ("primitive", "layout"), [("sampler", None), ("sampler", [4, 3]), ("estimator", [4, 3]), ("estimator", [2, 1])]
)
def test_statistics_without_device_errors(primitive, layout):
    """Values and gradients scatter about the exact ones by the standard errors that are reported, on any qubits."""
    options = {"resilience_level": 0} if primitive == "estimator" else None
    backend = IBMBackend(noiseless(), primitive=primitive, initial_layout=layout, options=options, shadow=True)
    layer = textbook_layer(backend, shots=SHOTS)
    x = torch.linspace(-3, 3, 8, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    layer(x).sum().backward()
    for deviation in (layer.last_run.shadow.values, layer.last_run.shadow.gradients):
        informative = deviation.standard_errors > 1e-6
        scores = ((deviation.measured - deviation.exact) / deviation.standard_errors)[informative]
        assert informative.mean() > 0.7
        assert abs(scores.mean()) < 4 / np.sqrt(scores.size)
        assert abs((scores**2).mean() - 1) < 4 * np.sqrt(2 / scores.size)  # chi-square
    exact = textbook_layer(None)
    same = x.detach().requires_grad_()
    exact(same).sum().backward()
    torch.testing.assert_close(x.grad, same.grad, rtol=0, atol=0.3)
    np.testing.assert_allclose(layer.last_run.shadow.values.exact, exact(same).detach(), atol=1e-10)


def test_probabilities():
    backend = IBMBackend(noiseless())
    options = {"observables": None, "probabilities": [1, 0], "interpret": int.bit_count}
    layer, exact = textbook_layer(backend, shots=SHOTS, **options), textbook_layer(None, **options)
    x = torch.tensor([[0.3], [1.9]], dtype=torch.float64)
    scores = (layer(x).detach() - exact(x).detach()).numpy() / layer.last_run.standard_errors
    assert np.abs(scores).max() < 5


def test_amplitude_encodings_go_in_one_job():
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.append(AmplitudeGate(*x), [0])
    circuit.ry(w[0], 0)
    backend = IBMBackend(noiseless())
    options = {"inputs": x, "weights": w, "observables": ["Z"], "init": torch.tensor([0.4])}
    layer, exact = QuantumLayer(circuit, backend=backend, shots=SHOTS, **options), QuantumLayer(circuit, **options)
    rows = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.9, 0.9]])
    values = layer(rows)
    values.sum().backward()
    scores = (values.detach() - exact(rows).detach()).numpy() / layer.last_run.standard_errors
    assert np.abs(scores).max() < 5
    assert len(backend.ledger.entries()) == 1
    assert layer.quote(3, inputs_require_grad=False).jobs == 1


def test_a_circuit_without_parameters():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    for primitive in ("sampler", "estimator"):
        backend = IBMBackend(noiseless(), primitive=primitive)
        layer = QuantumLayer(circuit, observables=["ZZ", "XX", "ZI"], shots=SHOTS, backend=backend)
        np.testing.assert_allclose(layer().detach(), [1.0, 1.0, 0.0], atol=0.15)


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_an_observable_that_is_a_constant_needs_no_job(primitive):
    backend = IBMBackend(noiseless(), primitive=primitive)
    layer = textbook_layer(backend, observables=["II"], shots=10)
    assert layer(torch.zeros(1, 1)).tolist() == [[1.0]]
    assert backend.ledger.entries() == []


# --- one job a step, and what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_one_job_a_step(primitive):
    backend = IBMBackend(noiseless(), primitive=primitive)
    layer = textbook_layer(backend, shots=100)
    x = torch.zeros(2, 1, dtype=torch.float64)
    quote = layer.quote(2, inputs_require_grad=False)
    layer(x).sum().backward()
    (entry,) = backend.ledger.entries()
    assert (quote.calls, quote.jobs) == (1, 1)
    assert (quote.circuits, quote.shots, quote.executions) == (entry.circuits, entry.shots, entry.executions)
    assert quote.qpu_seconds == pytest.approx(entry.estimated_seconds)
    assert entry.circuits == layer.total_circuits
    with torch.no_grad():
        layer(x)
    assert backend.ledger.entries()[1].circuits == layer.last_run.circuits < entry.circuits


TWO_FACTORS = {"noise_factors": [1, 3], "extrapolator": "linear"}
OPTIONS = {
    "plain sampler": ("sampler", {}),
    "twirled sampler": ("sampler", {"twirling": {"enable_gates": True}}),
    "twirling by randomizations": ("sampler", {"twirling": {"enable_measure": True, "num_randomizations": 7}}),
    "twirling by shots": ("sampler", {"twirling": {"enable_gates": True, "shots_per_randomization": 30}}),
    "decoupled sampler": ("sampler", {"dynamical_decoupling": {"enable": True}}),
    "estimator": ("estimator", {"resilience_level": 0}),
    "measurement mitigation": ("estimator", {"resilience_level": 1}),
    "extrapolation": ("estimator", {"resilience_level": 2}),
    "learning": ("estimator", {"resilience": {"measure_noise_learning": {"num_randomizations": 5}}}),
    "two factors": ("estimator", {"resilience": {"zne_mitigation": True, "zne": TWO_FACTORS}}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_executions_are_those_that_ibm_prepares(name):
    """The price is worked out from the options; here is what IBM's own code makes of them."""
    primitive, options = OPTIONS[name]
    backend = IBMBackend(FakeManilaV2(), primitive=primitive, options=options)
    layer = textbook_layer(backend, shots=1000)
    program = layer.program
    angles = np.zeros((6, len(program.angles)))
    circuits = backend._ready(program).circuits
    pubs = [pub for circuit in circuits for pub in pubs_of(circuit.bound, angles, circuit.observables)]
    options = checked_options(primitive, options)
    if primitive == "sampler":
        prepared, _ = prepare_sampler(pubs, options, 1000, backend=backend.device)
    else:
        prepared, _ = prepare_estimator(pubs, options, (1000 * (1 - 1e-9)) ** -0.5, backend=backend.device)
    executions = prepared.shots * sum(int(np.prod(item.shape)) for item in prepared.items)
    assert backend.charge([(program, 6)], shots=1000).executions == executions


def test_seconds_follow_ibms_formula():
    device = FakeManilaV2()
    price = price_of(checked_options("sampler", {"execution": {"rep_delay": 1e-4}}), 300, rep_delay=2.5e-4)
    assert (price.delay, price.seconds_of_job) == (1e-4, 2.0)
    price = price_of(checked_options("sampler", {}), 300, rep_delay=2.5e-4)
    assert 1000 * (price.delay + USUAL_DURATION) == pytest.approx(0.35)  # "2 + 0.00035 x executions", the 2 for the job
    circuit = QuantumCircuit(1)
    circuit.x(0)
    backend = IBMBackend(device, optimization_level=0, initial_layout=[0])
    layer = QuantumLayer(circuit, observables=["Z"], backend=backend, shots=10_000)
    gates = device.target["x"][(0,)].duration + device.target["measure"][(0,)].duration
    assert layer.quote(1).qpu_seconds == pytest.approx(2 + 10_000 * (2.5e-4 + gates))


def test_work_above_the_limits_is_cut_into_the_fewest_jobs():
    backend = IBMBackend(noiseless(), limits=Limits(executions=1000))
    layer = textbook_layer(backend, shots=90)  # 11 circuits fit into a job
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    quote = layer.quote(9, inputs_require_grad=False)
    layer(x).sum().backward()
    entries = backend.ledger.entries()
    assert len(entries) == quote.jobs == -(-quote.circuits // 11)
    assert all(entry.executions <= 1000 for entry in entries)
    assert sum(entry.circuits for entry in entries) == quote.circuits


def test_a_circuit_that_no_job_can_hold_is_refused_before_anything():
    backend = IBMBackend(noiseless(), limits=Limits(executions=1000))
    layer = textbook_layer(backend, shots=1001)
    with pytest.raises(ValueError, match=r"1,001 executions.*at most 1,000.*fewer shots.*Nothing was submitted"):
        layer(torch.zeros(1, 1))
    assert backend.ledger.entries() == []
    with pytest.raises(ValueError, match=r"two-qubit gates, expected at most 0"):
        textbook_layer(IBMBackend(noiseless(), limits=Limits(two_qubit_gates=0)), shots=10)


@pytest.mark.parametrize("seed", range(20))
def test_packing(seed):
    rng = np.random.default_rng(seed)
    limits = Limits(executions=int(rng.integers(50, 500)), qpu_seconds=10.0, megabytes=0.001)
    circuits = [
        Rows(
            measurement,  # type: ignore[arg-type]  # one is as good as another
            number,
            0,
            int(rng.integers(1, 40)),
            executions=(executions := int(rng.integers(1, 40))),
            seconds=float(rng.uniform(0, 1)) / executions,
            bytes=int(rng.integers(0, 200)),
        )
        for measurement in range(3)
        for number in range(int(rng.integers(1, 4)))
    ]
    jobs = packed(circuits, limits, executions_of_job=5, seconds_of_job=2.0)
    rows = [(r.measurement, r.number, row) for job in jobs for r in job for row in range(r.start, r.stop)]
    assert rows == [(c.measurement, c.number, row) for c in circuits for row in range(len(c))]

    def one_row(r: Rows) -> np.ndarray:
        return np.array([r.executions, r.executions * r.seconds, r.bytes])

    total = [sum(len(r) * one_row(r) for r in job) for job in jobs]
    most = np.array([limits.executions - 5, limits.qpu_seconds - 2.0, 1000])
    assert (np.array(total) <= most + 1e-9).all()
    for before, job in zip(total, jobs[1:], strict=False):  # no job was closed while its next row would have fitted
        assert (before + one_row(job[0]) > most).any()


CAPS = {"max_jobs": 2, "max_shots": 2 * 15 * 100, "max_qpu_seconds": 6.0}


@pytest.mark.parametrize("cap", CAPS)
def test_caps_stop_before_the_submission_that_would_pass_them(cap, tmp_path):
    ledger = tmp_path / "jobs.sqlite"
    backend = IBMBackend(noiseless(), ledger=ledger, **{cap: CAPS[cap]})
    layer = textbook_layer(backend, shots=100, observables=["ZI", "XX", "IY"])
    x = torch.zeros(1, 1)

    def steps():
        while True:
            layer(x).sum().backward()

    with pytest.raises(BudgetExceeded, match=rf"{cap}.*spent.*Nothing was submitted; raise {cap}"):
        steps()
    assert len(backend.ledger.entries()) >= 1
    assert all(entry.state == "done" for entry in backend.ledger.entries())
    again = IBMBackend(noiseless(), ledger=ledger, **{cap: CAPS[cap]})  # what earlier processes have spent counts too
    with pytest.raises(BudgetExceeded):
        textbook_layer(again, shots=100, seed=99)(x).sum().backward()
    other_run = IBMBackend(noiseless(), ledger=ledger, run="another", **{cap: CAPS[cap]})
    textbook_layer(other_run, shots=100, seed=99)(x).sum().backward()
    assert other_run.spent.jobs == 1


# --- the ledger as memory ---------------------------------------------------------------------------------------------


def test_the_same_run_again_pays_nothing(tmp_path):
    results = []
    for _ in range(2):
        backend = IBMBackend(noiseless(), ledger=tmp_path / "jobs.sqlite")
        layer = textbook_layer(backend, shots=100)
        losses = []
        for step in range(3):
            layer.zero_grad()
            loss = layer(torch.full((2, 1), 0.1 * step)).square().sum()
            loss.backward()
            losses.append((loss.item(), layer.weights.grad.tolist()))
        results.append((losses, layer.last_run.passport.job_ids))
        backend.close()
    assert results[0] == results[1]
    assert len(Ledger(tmp_path / "jobs.sqlite").entries()) == 3


@pytest.mark.parametrize("change", [{"seed": 4}, {"shots": 101}, {"run": "b"}, {"optimization_level": 1}])
def test_another_run_is_measured_anew(change, tmp_path):
    ledger = tmp_path / "jobs.sqlite"
    ours = {name: change.pop(name) for name in ("run", "optimization_level") if name in change}
    for options, mine in (({}, {}), (change, ours)):
        textbook_layer(IBMBackend(noiseless(), ledger=ledger, **mine), **{"shots": 100, **options})(torch.zeros(1, 1))
    assert len(Ledger(ledger).entries()) == 2


def test_options_that_measure_nothing_else_pay_nothing(tmp_path):
    for options in ({}, {"max_execution_time": 300}, {"environment": {"log_level": "DEBUG"}}):
        backend = IBMBackend(noiseless(), ledger=tmp_path / "jobs.sqlite", options=options)
        textbook_layer(backend, shots=50)(torch.zeros(1, 1))
    assert len(backend.ledger.entries()) == 1


def test_devices_of_one_name_are_not_one_device(tmp_path):
    noise = NoiseModel()
    noise.add_all_qubit_readout_error(ReadoutError([[0.7, 0.3], [0.3, 0.7]]))
    values = []
    for simulator in (AerSimulator(), AerSimulator(noise_model=noise)):
        backend = IBMBackend(simulator, ledger=tmp_path / "jobs.sqlite")
        values.append(textbook_layer(backend, shots=400, observables=["IZ"])(torch.zeros(1, 1)).item())
    assert len(backend.ledger.entries()) == 2
    assert values[0] - values[1] > 0.1


def test_pieces_of_an_evaluation_have_noise_of_their_own():
    backend = IBMBackend(noiseless(), limits=Limits(executions=1000))
    with torch.no_grad():
        values = textbook_layer(backend, shots=500, observables=["XX"])(torch.full((8, 1), 0.9))
    assert len(backend.ledger.entries()) == 4
    assert len(set(values[:, 0].tolist())) > 4


def test_a_failing_shadow_loses_nothing(monkeypatch):
    backend = IBMBackend(noiseless(), shadow=True)
    layer = textbook_layer(backend, shots=50)
    with monkeypatch.context() as broken:
        broken.setattr(backend, "note_shadow", lambda shadow: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            layer(torch.zeros(1, 1))
    layer(torch.zeros(1, 1))
    assert len(backend.ledger.entries()) == 1


def test_a_backend_that_is_let_go_of_is_gone():
    backend = IBMBackend(noiseless())
    textbook_layer(backend, shots=10)(torch.zeros(1, 1))
    reference = weakref.ref(backend)
    del backend
    gc.collect()
    assert reference() is None


def test_options_as_ibms_own_objects():
    backend = IBMBackend("fake_manila", options={"twirling": TwirlingOptions(enable_gates=True)})
    textbook_layer(backend, shots=10)(torch.zeros(1, 1))
    assert backend.options == {"twirling": {"enable_gates": True}}


def test_the_same_evaluation_twice_is_two_samples():
    backend = IBMBackend(noiseless())
    layer = textbook_layer(backend, shots=100)
    assert not torch.equal(layer(torch.zeros(1, 1)), layer(torch.zeros(1, 1)))
    assert len(backend.ledger.entries()) == 2


def test_a_later_process_uses_the_circuits_of_the_first(tmp_path, monkeypatch):
    """Or a device that has been calibrated anew would be transpiled for differently, and the run would be another."""
    first = textbook_layer(IBMBackend(FakeManilaV2(), ledger=tmp_path / "jobs.sqlite"), shots=50)
    first(torch.zeros(1, 1))
    monkeypatch.setattr(device_programs_module, "circuits_for", None)
    second = textbook_layer(IBMBackend(FakeManilaV2(), ledger=tmp_path / "jobs.sqlite"), shots=50)
    second(torch.zeros(1, 1))
    assert second.last_run.passport.layouts == first.last_run.passport.layouts
    assert torch.equal(torch.tensor(second.last_run.values), torch.tensor(first.last_run.values))


def test_passport():
    backend = IBMBackend("fake_manila", seed_transpiler=11, optimization_level=3, options={"default_shots": 70})
    layer = textbook_layer(backend)
    layer(torch.zeros(1, 1))
    passport = layer.last_run.passport
    assert (passport.backend, passport.seed_transpiler, passport.optimization_level) == ("fake_manila", 11, 3)
    assert (passport.shots, passport.options, passport.primitive) == (70, {"default_shots": 70}, "sampler")
    assert passport.calibrated == (backend.connection.calibrated(),)
    assert all(len(set(layout)) == 2 and max(layout) < 5 for layout in passport.layouts)
    assert len(passport.layouts) == len(layer.program.readout.groups)
    assert passport.job_ids == tuple(entry.job_id for entry in backend.ledger.entries())
    assert {"qiskit", "qiskit-ibm-runtime", "torch"} <= passport.versions.keys()
    assert type(passport).from_dict(json.loads(json.dumps(passport.as_dict()))) == passport


# --- the layout's self-test -------------------------------------------------------------------------------------------


def spoilt(circuits: tuple[DeviceCircuit, ...], how: str) -> tuple[DeviceCircuit, ...]:
    """Circuits that are wrong, without an error anywhere."""
    first = circuits[0]
    circuit = first.bound.circuit.copy()
    if how == "measured bits swapped":
        circuit.data = [
            i.replace(clbits=[circuit.clbits[1 - circuit.find_bit(i.clbits[0]).index]])
            if i.operation.name == "measure"
            else i
            for i in circuit.data
        ]
    elif how == "another qubit measured":
        idle = next(q for q in circuit.qubits if all(q not in i.qubits for i in circuit.data))
        circuit.data = [
            i.replace(qubits=[idle]) if i.operation.name == "measure" and i.clbits[0] == circuit.clbits[0] else i
            for i in circuit.data
        ]
    elif how == "slopes of another angle":
        return replace(first, bound=replace(first.bound, slopes=first.bound.slopes[::-1])), *circuits[1:]
    elif how == "observables on other qubits":
        return (replace(first, observables=tuple(o.apply_layout([4, 3, 2, 1, 0], 5) for o in first.observables)),)
    return replace(first, bound=replace(first.bound, circuit=circuit)), *circuits[1:]


@pytest.mark.parametrize(
    ("how", "primitive"),
    [
        ("measured bits swapped", "sampler"),
        ("another qubit measured", "sampler"),
        ("slopes of another angle", "sampler"),
        ("slopes of another angle", "estimator"),
        ("observables on other qubits", "estimator"),
    ],
)
def test_a_wrong_circuit_never_costs_a_job(how, primitive, monkeypatch):
    honest = device_programs_module.device_circuits
    monkeypatch.setattr(
        device_programs_module,
        "device_circuits",
        lambda *arguments, **options: spoilt(honest(*arguments, **options), how),
    )
    backend = IBMBackend(noiseless(), primitive=primitive, initial_layout=[0, 1])
    layer = textbook_layer(backend, shots=100, observables=["ZI", "IZ", "IY"])
    with pytest.raises(ValueError, match=r"does not give the circuit's answers.*Nothing was submitted"):
        layer(torch.zeros(1, 1))
    assert backend.ledger.entries() == []


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
@pytest.mark.parametrize("name", SUBSET)
def test_right_circuits_pass(name, primitive):
    backend = IBMBackend(noiseless(), primitive=primitive)
    layer = problem(name).layer(oracle(name).weights, backend=backend, shots=10)
    assert "agrees with the logical one" in backend.self_test(layer.program)


def test_circuits_too_large_to_simulate_say_so():
    circuit = QuantumCircuit(22)
    for qubit in range(21):
        circuit.cx(qubit, qubit + 1)
        circuit.rx(0.3, qubit + 1)
    backend = IBMBackend("fake_montreal")
    layer = QuantumLayer(circuit, observables=["Z" * 22], backend=backend, shots=10)
    assert "too many to simulate" in backend.self_test(layer.program)


def test_wide_circuits_are_tested_by_their_light_cones():
    """On all 27 qubits of a device: the whole state would have too many amplitudes."""
    device = FakeMontrealV2()
    backend = IBMBackend(device, initial_layout=[*range(27)])
    edges = sorted({tuple(sorted(edge)) for edge in device.coupling_map.get_edges()})
    angles = ParameterVector("a", 54)
    circuit = QuantumCircuit(27)
    for first in (0, 27):
        for qubit in range(27):
            circuit.ry(angles[first + qubit], qubit)
        for edge in edges:
            circuit.cz(*edge)
    layer = QuantumLayer(circuit, inputs=angles, backend=backend, shots=10)
    assert "agrees with the logical one" in backend.self_test(layer.program)


# --- shadow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shadow_tells_shot_noise_from_the_devices_bias():
    """More shots cure the one and not the other."""
    x = torch.linspace(-3, 3, 4, dtype=torch.float64).reshape(-1, 1)
    found = {}
    for shots in (100, 10_000):
        backend = IBMBackend("fake_manila", shadow=True)
        layer = textbook_layer(backend, shots=shots)
        layer(x).sum().backward()
        found[shots] = layer.last_run.shadow.values
        assert backend.ledger.events("shadow")[0]["data"]["summary"] == layer.last_run.shadow.summary()
        assert layer.last_run.shadow.gradients.measured.shape == (4, 2, 3)
    assert found[100].shot_noise == pytest.approx(10 * found[10_000].shot_noise, rel=0.1)
    assert found[10_000].device_bias > found[10_000].shot_noise
    assert found[10_000].rms ** 2 == pytest.approx(found[10_000].device_bias ** 2 + found[10_000].shot_noise ** 2)
    textbook_layer(IBMBackend("fake_manila"), shots=10)(x)  # without it nothing is compared


# --- fingerprints -----------------------------------------------------------------------------------------------------


def program_of(change: str = "") -> Program:
    x, w = ParameterVector("x", 1), ParameterVector("w", 2)
    circuit = QuantumCircuit(3)
    circuit.ry(x[0], 0)
    circuit.rz(0.5 + 1e-3 * (change == "constant"), 1)
    circuit.cx(*((1, 0) if change == "direction" else (0, 1)))
    circuit.rx(w[1 if change == "parameter" else 0], 0)
    circuit.ry(w[0 if change == "parameter" else 1], 2 if change == "qubit" else 1)
    circuit.unitary([[0, 1], [1, 0]] if change != "matrix" else [[1, 0], [0, -1]], [2])
    factor = 0.7 if change == "coefficient" else 0.5
    observables = [SparsePauliOp(["ZZI", "IXX"], [factor, 1.0]), "IIY" if change != "observable" else "IIX"]
    return Program.compile(circuit, inputs=x, weights=w, observables=observables)


def test_the_same_circuit_has_one_fingerprint():
    same = pickle.loads(pickle.dumps(program_of()))
    assert fingerprint(program_of()) == fingerprint(program_of()) == fingerprint(same)


@pytest.mark.parametrize("change", ["constant", "direction", "qubit", "matrix", "coefficient", "observable"])
def test_another_circuit_has_another(change):
    assert fingerprint(program_of(change)) != fingerprint(program_of())


# --- arguments --------------------------------------------------------------------------------------------------------

ESTIMATOR = {"primitive": "estimator"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"options": {"shoots": 3}}, ValueError, r"shoots: .*expected options of IBM's Sampler: default_shots"),
        ({"options": {"resilience_level": 1}}, ValueError, r"resilience_level.*Sampler"),
        ({"options": {"resilience_level": 7}, **ESTIMATOR}, ValueError, r"resilience_level"),
        ({"options": {"dynamical_decoupling": {"sequence_type": "ABBA"}}}, ValueError, "decoupling.sequence_type"),
        ({"backend": 3}, TypeError, r"backend: got 3 \(int\)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        IBMBackend(**{"backend": "fake_manila", **arguments})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"backend": "fake_nowhere"}, {}, r"fake:fake_nowhere.*manila"),
        ({"initial_layout": [0, 9]}, {}, r"initial_layout: got \[0, 9\].*'fake_manila'"),
        (ESTIMATOR, {"observables": None, "probabilities": [0]}, "expectation values only.*primitive='sampler'"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_layer_is_made(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        textbook_layer(IBMBackend(**{"backend": "fake_manila", **arguments}), shots=10, **options)


def test_default_shots():
    assert IBMBackend("fake_manila").resolve_shots(None) == 4096
    assert IBMBackend("fake_manila", options={"default_shots": 9}).resolve_shots(None) == 9
    assert IBMBackend("fake_manila", **ESTIMATOR).resolve_shots(None) == 4096
    assert IBMBackend("fake_manila", **ESTIMATOR, options={"default_precision": 0.1}).resolve_shots(None) == 100


def test_ways_to_name_a_backend():
    device = FakeManilaV2()
    for backend in ("ibm:fake_manila", IBMBackend(device)):
        resolved = resolve_backend(backend)
        assert isinstance(resolved, IBMBackend)
        assert resolved.name == "ibm:fake_manila"
    for mode in (Session(backend=device), Batch(backend=device)):
        resolved = resolve_backend(mode)
        assert isinstance(resolved, IBMBackend)
        assert resolved.device is device


def test_copies_and_pickles():
    backend = IBMBackend("fake_manila", max_jobs=3)
    layer = textbook_layer(backend, shots=20)
    layer(torch.zeros(1, 1))
    assert copy.deepcopy(layer).backend is backend
    again = pickle.loads(pickle.dumps(backend))
    assert (repr(again), again.caps) == (repr(backend), backend.caps)
    assert textbook_layer(again, shots=20)(torch.zeros(1, 1)).shape == (1, 3)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qiskit_ibm_runtime", None)
    with pytest.raises(ImportError, match=r"pip install 'qiskit-torch-bridge\[ibm\]'"):
        textbook_layer("ibm:fake_manila", shots=10)


def test_errors_are_one_family():
    assert issubclass(BudgetExceeded, HardwareError)
    assert issubclass(HardwareError, RuntimeError)


@pytest.mark.parametrize("primitive", ["sampler", pytest.param("estimator", marks=pytest.mark.slow)])
def test_circuits_of_a_job_have_noise_of_their_own(primitive):
    """IBM's client gives each PUB the seed of the job: equal ones would give equal counts, similar ones similar errors."""
    circuit, x = QuantumCircuit(2), ParameterVector("x", 1)
    circuit.ry(x[0], 0)
    circuit.cx(0, 1)
    # Without errors, which cost seconds here, and are drawn from the same seeds.
    backend = IBMBackend(noiseless(), primitive=primitive)
    programs = [Program.compile(circuit, inputs=x, observables=[label]) for label in ("IZ", "ZI")]
    seeds = np.random.SeedSequence(3).spawn(2)
    requests = [Request(one, np.full((100, 1), 1.3), seed) for one, seed in zip(programs, seeds, strict=True)]
    first, second = (each.values[:, 0] for each in backend.evaluate_all(requests, shots=300))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.45  # 4.5 standard errors
    constant = Program.compile(circuit.assign_parameters({x[0]: 1.3}), observables=["IZ"])
    rows = backend.evaluate(constant, np.empty((6, 0)), shots=300, seed=seeds[0]).values
    assert len(np.unique(rows)) > 1
