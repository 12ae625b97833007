"""Rows side by side on a device: right answers, right errors, what it costs, and what is written down of it."""

import copy
import json
import pickle
import warnings
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pytest
import torch
from gradient_checks import EXACT, check_gradients
from problems import oracle, problem
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.providers.fake_provider import GenericBackendV2

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_ibm_runtime.executor_estimator.prepare import prepare as prepare_estimator
from qiskit_ibm_runtime.executor_sampler.prepare import prepare as prepare_sampler
from qiskit_ibm_runtime.fake_provider import FakeGuadalupeV2, FakeManilaV2, FakeMontrealV2
from test_fake_devices import textbook_layer

from qiskit_torch_bridge import IBMBackend, Limits, Packing, Passport, QuantumLayer, Replay, Request
from qiskit_torch_bridge.backends.ibm import packed_programs, service
from qiskit_torch_bridge.backends.ibm import packing as packing_module
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.packing import pieces_of_rows
from qiskit_torch_bridge.backends.ibm.part_of_device import PartOfDevice
from qiskit_torch_bridge.backends.ibm.primitive_options import checked_options
from qiskit_torch_bridge.backends.ibm.recording import write_recording
from qiskit_torch_bridge.backends.ibm.regions import Region
from qiskit_torch_bridge.backends.passport import PackedRows
from qiskit_torch_bridge.program.variants import Variant

SHOTS = 1000
X = torch.tensor([[0.3], [1.9], [-0.8]], dtype=torch.float64)


def line_of(qubits: int, noise=None) -> AerSimulator:
    """A device whose qubits are in a line, with this noise or none."""
    coupling = [[qubit, qubit + 1] for qubit in range(qubits - 1)]
    device = GenericBackendV2(qubits, coupling_map=[*coupling, *(pair[::-1] for pair in coupling)], seed=1)
    return AerSimulator.from_backend(device, noise_model=noise)


# --- which row runs where ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_piece_of_every_row_runs_once(seed):
    rng = np.random.default_rng(seed)
    regions = int(rng.integers(1, 12))
    rows = PackedRows(
        rows=int(rng.integers(1, 30)),
        pieces=int(rng.integers(1, regions + 1)),
        shots=10,
        bits=1,
        first=int(rng.integers(regions)),
        layouts=tuple((10 * region,) for region in range(regions)),
    )
    table = rows.rows_of_sets()
    assert table.shape == (rows.num_sets, regions)
    counts = np.bincount(table[table >= 0], minlength=rows.rows)
    assert (counts == rows.pieces).all()
    assert (table < 0).sum() < regions
    for row in range(rows.rows):
        layouts = rows.layouts_of(row)
        assert len(set(layouts)) == rows.pieces  # no region twice
        assert {qubit // 10 for (qubit,) in layouts} == set(np.nonzero(table == row)[1].tolist())
        assert rows.starts[row] == np.nonzero(table == row)[0].min()
    assert table[0, rows.first] == 0


def test_pieces_fill_regions_and_no_more():
    def pieces(rows: int, regions: int, shots: int = SHOTS, rotate=None, executions_of=lambda shots: shots) -> int:
        return pieces_of_rows([(rows, regions, 1)], shots, executions_of, rotate=rotate)

    assert pieces(100, 20) == 1
    assert pieces(4, 38) == 19  # 76 pieces in two sets, twice 53 executions; the least is 105.3
    assert pieces(1, 38) == 36  # 28 shots each: hardly more than the 27 of 38 pieces
    assert pieces(1, 38, shots=3) == 3
    assert pieces(100, 20, rotate="shots") == 20
    assert pieces(4, 38, executions_of=lambda shots: 64 * -(-shots // 64)) == 8  # whole randomisations
    assert pieces_of_rows([], SHOTS, lambda shots: shots, rotate="shots") == 1


# --- right answers ----------------------------------------------------------------------------------------------------


class ExactDevice(LocalDevice):
    """Estimates without any noise what it is given, all copies at once."""

    def submit(self, primitive, pubs, *, shots, options, tag, seed):
        job = StatevectorEstimator(default_precision=0.0).run(pubs)
        self._sent(job)
        return job.job_id(), None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spacing"), [("several_registers", 0), ("constant_gates", 1), ("idle_and_bare_qubits", 0)]
)
def test_values_and_gradients_are_exact_where_the_device_is(name, spacing, monkeypatch):
    monkeypatch.setattr(service, "LocalDevice", ExactDevice)
    options = {"resilience_level": 0}
    packing = Packing(3, spacing=spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer may fit
        backend = IBMBackend(
            line_of(11), primitive="estimator", options=options, packing=packing, limits=Limits(executions=5 * 4096)
        )
        check_gradients(problem(name), oracle(name), EXACT, backend=backend, shots=4096)
    assert backend.ledger.evaluations()


@pytest.mark.parametrize(
    ("primitive", "packing", "options"),
    [
        ("sampler", "auto", {}),
        ("sampler", 3, {}),
        ("sampler", Packing(rotate="shots"), {}),
        ("sampler", Packing(spacing=0, rotate=None), {}),
        pytest.param(
            *("sampler", "auto", {"twirling": {"enable_gates": True, "enable_measure": True}}), marks=pytest.mark.slow
        ),
        ("estimator", "auto", {"resilience_level": 0}),
    ],
)
def test_statistics_without_device_errors(primitive, packing, options):
    """Values and gradients scatter about the exact ones by the standard errors that are reported."""
    backend = IBMBackend(line_of(11), primitive=primitive, options=options, packing=packing, shadow=True)
    layer = textbook_layer(backend, shots=SHOTS)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    layer(x).sum().backward()
    assert len(layer.last_run.passport.packing[0].layouts) >= 3
    for deviation in (layer.last_run.shadow.values, layer.last_run.shadow.gradients):
        informative = deviation.standard_errors > 1e-6
        scores = ((deviation.measured - deviation.exact) / deviation.standard_errors)[informative]
        assert informative.mean() > 0.7
        assert abs(scores.mean()) < 4 / np.sqrt(scores.size)
        assert abs((scores**2).mean() - 1) < 4 * np.sqrt(2 / scores.size)  # chi-square
    assert len(backend.ledger.entries()) == 1


def test_copies_have_noise_of_their_own():
    """Equal rows on several regions are several samples, not the same one."""
    backend = IBMBackend(line_of(11), packing=Packing(rotate=None))
    with torch.no_grad():
        values = textbook_layer(backend, shots=501, observables=["XX"])(torch.full((8, 1), 0.9))
    assert len(set(values[:, 0].tolist())) > 4


@pytest.mark.parametrize(("rows", "shots"), [(1, 1), (1, 3), (1, 100), (2, 3), (5, 1), (5, 100)])
def test_shots_are_exactly_those_that_were_asked_for(rows, shots):
    backend = IBMBackend(line_of(11), packing="auto")
    layer = textbook_layer(backend, shots=shots, observables=None, probabilities=[0, 1])
    with torch.no_grad():
        probabilities = layer(X[:1].expand(rows, 1)).numpy()
    assert layer.last_run.shots == rows * shots
    np.testing.assert_allclose(probabilities * shots, np.round(probabilities * shots), atol=1e-9)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    (entry,) = backend.ledger.entries()
    assert (entry.circuits, entry.shots) == (rows, rows * shots)
    assert shots <= entry.executions * len(layer.last_run.passport.packing[0].layouts)


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_a_circuit_without_parameters(primitive):
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    backend = IBMBackend(line_of(8), primitive=primitive, packing="auto")
    layer = QuantumLayer(circuit, observables=["ZZ", "XX", "ZI"], shots=SHOTS, backend=backend)
    np.testing.assert_allclose(layer().detach(), [1.0, 1.0, 0.0], atol=0.15)


def test_a_constant_needs_no_region():
    backend = IBMBackend(line_of(8), packing="auto")
    assert textbook_layer(backend, observables=["II"], shots=10)(torch.zeros(1, 1)).tolist() == [[1.0]]
    assert backend.ledger.entries() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("fake_montreal", {"dynamical_decoupling": {"enable": True}, "twirling": {"enable_gates": True}}),
        ("fake_sherbrooke", {}),
    ],
)
def test_rehearsals_on_fake_devices(device, options):
    """On 27 qubits, and on 127 whose gates have directions, which no simulation of all regions at once could hold."""
    backend = IBMBackend(device, packing=Packing(6), options=options)
    layer, exact = textbook_layer(backend, shots=300), textbook_layer(None)
    values = layer(X)
    values.sum().backward()
    exact(X).sum().backward()
    torch.testing.assert_close(values.detach(), exact(X).detach(), rtol=0, atol=0.35)
    torch.testing.assert_close(layer.weights.grad, exact.weights.grad, rtol=0, atol=0.9)
    (rows, *_) = layer.last_run.passport.packing
    gates = {frozenset(edge) for edge in backend.device.coupling_map.get_edges()}
    assert len(rows.layouts) > 5
    assert all(frozenset(layout) in gates for layout in rows.layouts)


@pytest.mark.slow
def test_a_part_of_a_device_has_its_noise():
    device, qubits = FakeMontrealV2(), (4, 7, 10)
    whole = NoiseModel.from_backend(device)
    part = NoiseModel.from_backend(PartOfDevice(device, qubits, {"cx"}))
    compared = 0
    for name, errors in part._local_quantum_errors.items():
        for places, error in errors.items():
            there = tuple(qubits[place] for place in places)
            assert error.to_quantumchannel() == whole._local_quantum_errors[name][there].to_quantumchannel()
            compared += len(there) == 2
    assert compared == 4  # two couplers, two directions
    for (place,), error in part._local_readout_errors.items():
        assert error == whole._local_readout_errors[qubits[place],]
    with pytest.raises(NotImplementedError, match="simulated by Aer"):
        PartOfDevice(device, qubits, ()).run(QuantumCircuit(1))


# --- a region that is worse than the others ---------------------------------------------------------------------------


def with_a_bad_region(rotate, steps: int, *, shots: int = 300, misread: float = 0.5) -> np.ndarray:
    """Values of <Z> = 1 of each row and step where a qubit misreads every other shot, which its target does not say."""
    noise = NoiseModel()
    noise.add_readout_error(ReadoutError([[1 - misread, misread], [misread, 1 - misread]]), [4])
    circuit, x = QuantumCircuit(1), ParameterVector("x", 1)
    circuit.rz(x[0], 0)
    backend = IBMBackend(line_of(5, noise), packing=Packing(rotate=rotate))
    layer = QuantumLayer(circuit, inputs=x, observables=["Z"], backend=backend, shots=shots, seed=2)
    with torch.no_grad():
        values = np.stack([layer(torch.zeros(3, 1))[:, 0].numpy() for _ in range(steps)])
    (rows,) = layer.last_run.passport.packing
    assert sorted(rows.layouts) == [(0,), (2,), (4,)]
    return values


def test_without_rotation_one_row_has_the_whole_bias():
    values = with_a_bad_region(None, 3)
    assert sorted((values < 0.5).sum(axis=0).tolist()) == [0, 0, 3]


def test_rotation_between_steps_hands_the_bias_round():
    values = with_a_bad_region("steps", 24)
    hit = values < 0.5
    assert (hit.sum(axis=1) == 1).all()  # one row a step
    # Each row in 8 of 24 steps; a binomial number is from 1 to 17 with probability 1 - 6e-5.
    assert ((hit.sum(axis=0) >= 1) & (hit.sum(axis=0) <= 17)).all()


def test_rotation_between_shots_gives_every_row_the_same_bias():
    values = with_a_bad_region("shots", 6)
    # A third of the shots are misread half the time: <Z> = 2/3, with a standard error of sqrt(1/6 * 5/6 * 4 / 300).
    scores = (values - 2 / 3) / np.sqrt(4 * 1 / 6 * 5 / 6 / 300)
    assert np.abs(scores).max() < 5


def test_shots_left_over_are_left_out_of_all_regions_alike():
    """Of 3 pieces of 2 shots 4 are taken: from the region that always misreads 1 or 2, and never none."""
    values = with_a_bad_region("shots", 8, shots=4, misread=1.0)
    assert sorted({*values.flatten().tolist()}) == [0.0, 0.5]


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [([16, 15], [15, 15]), ([16, 2], [16, 2]), ([3, 2], [2, 2]), ([7, 4, 4], [4, 4, 4]), ([5], [5]), ([], [])],
)
def test_a_rows_pieces_go_to_all_regions_of_a_circuit_alike(sizes, counts):
    regions = [[Region({0: place}, 0.9) for place in range(size)] for size in sizes]
    shares = packed_programs._in_equal_shares(regions)
    assert list(map(len, shares)) == counts
    assert all(share == own[: len(share)] for share, own in zip(shares, regions, strict=True))


# --- what it costs ----------------------------------------------------------------------------------------------------

OPTIONS = {
    "sampler": ("sampler", {}, "auto"),
    "spread over all regions": ("sampler", {}, Packing(rotate="shots")),
    "twirled": ("sampler", {"twirling": {"enable_gates": True}}, "auto"),
    "by randomizations": ("sampler", {"twirling": {"enable_measure": True, "num_randomizations": 7}}, "auto"),
    "estimator": ("estimator", {"resilience_level": 0}, "auto"),
    "measurement mitigation": ("estimator", {"resilience_level": 1}, 4),
}


@pytest.mark.parametrize(("name", "rows"), list(zip(OPTIONS, cycle([2, 23, 23, 2]))))
def test_executions_are_those_that_ibm_prepares(name, rows):
    primitive, options, packing = OPTIONS[name]
    backend = IBMBackend(FakeGuadalupeV2(), primitive=primitive, options=options, packing=packing)
    layer = textbook_layer(backend, shots=SHOTS)
    program = layer.program
    requests = [Request(program, np.zeros((rows, len(program.angles))), np.random.SeedSequence(5))]
    workload = backend._workload(requests, SHOTS, backend._ready)
    (task,) = workload.tasks
    options = checked_options(primitive, options)
    if primitive == "sampler":
        prepared, _ = prepare_sampler(task.pubs(), options, task.shots, backend=backend.device)
    else:
        precision = (task.shots * (1 - 1e-9)) ** -0.5
        prepared, _ = prepare_estimator(task.pubs(), options, precision, backend=backend.device)
    executions = prepared.shots * sum(int(np.prod(item.shape)) for item in prepared.items)
    charge = backend.charge([(program, rows)], shots=SHOTS)
    assert charge.executions == executions
    alone = IBMBackend(FakeGuadalupeV2(), primitive=primitive, options=options)
    assert executions < alone.charge([(program, rows)], shots=SHOTS).executions * 0.75
    assert charge.qpu_seconds < alone.charge([(program, rows)], shots=SHOTS).qpu_seconds


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
def test_the_quote_is_what_the_ledger_has(primitive):
    backend = IBMBackend(line_of(11), primitive=primitive, packing="auto")
    layer = textbook_layer(backend, shots=100)
    quote = layer.quote(3, inputs_require_grad=False)
    layer(X).sum().backward()
    (entry,) = backend.ledger.entries()
    assert (quote.circuits, quote.shots, quote.executions) == (entry.circuits, entry.shots, entry.executions)
    assert quote.qpu_seconds == pytest.approx(entry.estimated_seconds)
    assert entry.circuits == layer.total_circuits
    assert quote.executions < quote.shots / 2


def test_work_above_the_limits_is_cut_between_sets():
    backend = IBMBackend(line_of(11), packing="auto", limits=Limits(executions=400))
    layer = textbook_layer(backend, shots=90, seed=5)
    quote = layer.quote(9, inputs_require_grad=False)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    whole = textbook_layer(IBMBackend(line_of(11), packing="auto"), shots=20_000, seed=5)
    values = layer(x)
    values.sum().backward()
    entries = backend.ledger.entries()
    assert len(entries) == quote.jobs > 2
    assert all(entry.executions <= 400 for entry in entries)
    assert sum(entry.circuits for entry in entries) == quote.circuits
    with torch.no_grad():
        scores = (values - whole(x)).numpy() / layer.last_run.standard_errors.clip(0.02)
    assert np.abs(scores).max() < 5


# --- what is written down ---------------------------------------------------------------------------------------------


def train(backend, *, seed=3, steps=2):
    layer = textbook_layer(backend, seed=seed, shots=60)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    numbers = []
    for _ in range(steps):
        optimizer.zero_grad()
        values = layer(X)
        values.square().sum().backward()
        optimizer.step()
        numbers.append((values.tolist(), layer.last_run.standard_errors.tolist(), layer.weights.grad.tolist()))
    return numbers, layer


@pytest.mark.parametrize(
    ("primitive", "executions"),
    [
        ("sampler", 150),
        pytest.param("sampler", 10**7, marks=pytest.mark.slow),
        pytest.param("estimator", 150, marks=pytest.mark.slow),
    ],
)
def test_the_same_run_again_pays_nothing_and_a_recording_gives_the_same(primitive, executions, tmp_path):
    def backend(**options):
        limits = Limits(executions=executions * (1 if primitive == "sampler" else 2))
        options = {"packing": "auto", **options}
        return IBMBackend(line_of(8), primitive=primitive, ledger=tmp_path / "jobs.sqlite", limits=limits, **options)

    with backend() as first:
        numbers, layer = train(first)
        passport, jobs = layer.last_run.passport, len(first.ledger.entries())
        write_recording(first.ledger, tmp_path / "run.npz")
    assert jobs > 2 if executions < 1000 else jobs == 2
    with backend() as second:
        assert train(second)[0] == numbers
        assert len(second.ledger.entries()) == jobs
    again, replayed = train(Replay(tmp_path / "run.npz"))
    assert again == numbers
    assert replayed.last_run.passport.packing == passport.packing
    for packing in (None, 2, Packing(rotate=None)):  # other circuits, or other places: other measurements
        with backend(packing=packing) as other:
            train(other, steps=1)
            assert len(other.ledger.entries()) > jobs
            jobs = len(other.ledger.entries())


def test_regions_are_those_of_the_process_that_chose_them(tmp_path, monkeypatch):
    path = tmp_path / "jobs.sqlite"
    with IBMBackend(FakeManilaV2(), packing="auto", ledger=path) as backend:
        expected = train(backend, steps=1)[1].last_run.passport.packing
    monkeypatch.setattr("qiskit_torch_bridge.backends.ibm.packed_programs.chosen_regions", lambda *a, **k: 1 / 0)
    with IBMBackend(FakeManilaV2(), packing="auto", ledger=path) as backend:
        assert train(backend, steps=1, seed=8)[1].last_run.passport.packing[0].layouts == expected[0].layouts


def test_damaged_regions_are_chosen_anew(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    with IBMBackend(FakeManilaV2(), packing="auto", ledger=path) as backend:
        numbers, layer = train(backend, steps=1)
        key = backend._ready(layer.program).keys[1]
        backend.ledger._file.change("UPDATE circuits SET circuits = ? WHERE key = ?", b"[[[[[0, 99]], 1]]]", key)
    with IBMBackend(FakeManilaV2(), packing="auto", ledger=path) as backend:
        assert train(backend, steps=1)[0] == numbers
    assert "the regions in the ledger cannot be used" in caplog.text


def test_the_passport_says_which_row_ran_where():
    backend = IBMBackend(line_of(8), packing="auto")
    _, layer = train(backend, steps=1)
    passport = layer.last_run.passport
    assert passport.layouts == tuple(rows.layouts[0] for rows in passport.packing)
    for rows in passport.packing:
        assert rows.rows * rows.pieces <= rows.num_sets * len(rows.layouts)
        assert all(len(rows.layouts_of(row)) == rows.pieces for row in range(rows.rows))
    assert Passport.from_dict(json.loads(json.dumps(passport.as_dict()))) == passport
    old = {name: value for name, value in passport.as_dict().items() if name != "packing"}
    assert Passport.from_dict(old).packing == ()


@dataclass(frozen=True)
class Folded(Variant):
    """Each two-qubit gate three times: the same values."""

    def apply(self, circuit):
        changed = circuit.copy_empty_like()
        for instruction in circuit.data:
            for _ in range(3 if len(instruction.qubits) == 2 else 1):
                changed.append(instruction)
        return changed


def test_variants_run_where_their_program_does(tmp_path):
    """Mitigation compares the two: other regions have other errors."""
    path, angles = tmp_path / "jobs.sqlite", np.array([[0.3, 0.4, 1.1], [1.9, 0.4, 1.1]])
    for _ in range(2):
        with IBMBackend(FakeGuadalupeV2(), packing="auto", ledger=path) as backend:
            program = textbook_layer(backend, shots=10).program
            folded = program.varied(Folded())
            plain_seed, folded_seed = np.random.SeedSequence(5).spawn(2)
            requests = [Request(program, angles, plain_seed), Request(folded, angles, folded_seed)]
            plain, changed = backend.evaluate_all(requests, shots=2000)
            assert changed.passport.packing == plain.passport.packing  # each row in the same region
            assert len(plain.passport.packing[0].layouts) > 2
            np.testing.assert_allclose(changed.values, plain.values, atol=0.3)
            assert (changed.values != plain.values).any()
            assert len(backend.ledger.entries()) == 1


@dataclass(frozen=True)
class Calibrating(Folded):
    keeps_values = False


def test_calibrations_of_some_regions_are_not_those_of_others():
    for packing in ("auto", Packing(rotate="shots")):
        backend = IBMBackend(line_of(8), packing=packing)
        program = textbook_layer(backend, shots=10).program.varied(Calibrating())
        if packing == "auto":
            with pytest.raises(ValueError, match=r"packing: got circuits that calibrate.*rotate='shots'"):
                backend.prepare(program)
        else:
            backend.prepare(program)


def test_copies_and_pickles():
    backend = IBMBackend(line_of(8), packing=Packing(2, rotate="shots"))
    layer = textbook_layer(backend, shots=20)
    assert copy.deepcopy(layer).backend.packing == backend.packing
    loaded = pickle.loads(pickle.dumps(IBMBackend("fake_manila", packing=Packing(2, rotate="shots"))))
    assert loaded.packing == Packing(2, rotate="shots")
    assert textbook_layer(loaded, shots=20)(X).shape == (3, 3)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": 0}, r"packing: regions: got 0, expected a whole number from 1, or 'auto'"),
        ({"packing": "many"}, r"packing: got 'many', expected one of 'auto'"),
        ({"packing": True}, r"packing: got True \(bool\), expected None, a number"),
        ({"packing": 1.5}, r"packing: got 1.5 \(float\), expected None, a number"),
        ({"packing": "auto", "shadow": "noisy"}, r"packing: got one together with shadow='noisy'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        IBMBackend("fake_manila", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": 2.5}, "packing: regions: got 2.5"),
        ({"spacing": -1}, "packing: spacing: got -1"),
        ({"loss": float("nan")}, "packing: loss: got nan"),
        ({"rotate": "rows"}, "packing: rotate: got 'rows'"),
    ],
)
def test_wrong_details(options, message):
    with pytest.raises(ValueError, match=message):
        Packing(**options)


def test_an_estimators_rows_stay_whole():
    with pytest.raises(ValueError, match="rotate='shots' with primitive='estimator'"):
        IBMBackend("fake_manila", primitive="estimator", packing=Packing(rotate="shots"))


def test_fewer_regions_than_were_asked_for():
    with pytest.warns(UserWarning, match="packing: got 40 regions, but 2 fit on fake_manila for this circuit"):
        textbook_layer(IBMBackend("fake_manila", packing=40), shots=10)


def test_a_simulator_without_connections_has_no_regions():
    with pytest.raises(ValueError, match="packing: got a simulator without connections"):
        textbook_layer(IBMBackend(AerSimulator(), packing="auto"), shots=10)


def test_a_copy_with_swapped_bits_is_found_before_there_is_a_job(monkeypatch, tmp_path):
    genuine = packing_module.moved

    def swapped(circuit, places, target):
        right = genuine(circuit, places, target)
        if min(places.values()) < 6:
            return right
        wrong = right.copy_empty_like()
        for instruction in right.data:
            wrong.append(
                instruction.operation,
                instruction.qubits,
                [right.clbits[not right.find_bit(bit).index] for bit in instruction.clbits],
            )
        return wrong

    monkeypatch.setattr(packing_module, "moved", swapped)
    backend = IBMBackend(line_of(8), packing="auto", ledger=tmp_path / "jobs.sqlite")
    layer = textbook_layer(backend, shots=10)
    assert {tuple(sorted(layout)) for layout in backend._ready(layer.program).circuits[0].layouts} >= {(6, 7)}
    with pytest.raises(ValueError, match=r"does not give the circuit's answers.*Nothing was submitted"):
        layer(X)
    assert not list(tmp_path.iterdir())


def test_copies_that_touch_are_found():
    backend = IBMBackend(line_of(8), packing="auto")
    (first, *_) = backend._ready(textbook_layer(backend, shots=10).program).circuits
    one, other = (next(iter(region.places.values())) for region in first.packed.regions[:2])
    first.packed.circuit.cx(one, other)
    with pytest.raises(ValueError, match="not apart: cx on qubits"):
        first.packed.copy_of(0)


def test_a_layout_of_the_users_is_the_first_region():
    backend = IBMBackend(line_of(8), packing="auto", initial_layout=[4, 3])
    _, layer = train(backend, steps=1)
    assert layer.last_run.passport.packing[0].layouts[0] == (4, 3)
    assert len(layer.last_run.passport.packing[0].layouts) > 1
