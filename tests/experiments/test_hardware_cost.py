"""The study of what hardware costs: what is counted, its price, what the time is spent on, and what is made of it all."""

import json
import math
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub
from runs import CONFIGS, assert_refused, one_line, result

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from qiskit_ibm_runtime.fake_provider.local_service import QiskitRuntimeLocalService

from experiments.__main__ import main
from experiments.benchmark.exact_answers import LARGEST_Z_SCORE, exact_answer
from experiments.benchmark.gate_lists import Step, quantum_circuit
from experiments.common.cells import seed_of
from experiments.common.options import parse
from experiments.common.runs import RunFolder
from experiments.hardware_cost import counting, step_costs, ten_minutes
from experiments.hardware_cost.cost_findings import find
from experiments.hardware_cost.cost_settings import WAYS, HardwareCostSettings
from experiments.hardware_cost.cost_study import cells, measure
from experiments.hardware_cost.counting import Counts, Pub, counts_of_step, of_estimator, of_sampler
from experiments.hardware_cost.side_by_side import Regions
from experiments.hardware_cost.step_costs import price, seconds_of
from experiments.hardware_cost.steps import MODELS, PEERS, SHOTS, SYSTEMS, System
from qiskit_torch_bridge import DensityMatrixBackend, IBMBackend, QuantumLayer
from qiskit_torch_bridge.backends.ibm.prices import Price

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = CONFIGS / "hardware-cost-small.yaml"
TINY = [
    "--config",
    str(SMALL),
    "--ways",
    "plain",
    "SPSA",
    "--seconds",
    "9",
    "--tuning-seeds",
    "0",
    "--qubits",
    "2",
    "--depth",
    "1",
    "--workers",
    "0",
]


@pytest.fixture(scope="module")
def device():
    return counting.fake_device()


@pytest.fixture(scope="module")
def small_device():
    """For trainings: a device of five qubits, whose noise is made in a moment; 156 qubits take seconds."""
    made = (ten_minutes._on_noisy_device, ten_minutes._noise_on, ten_minutes._layouts, ten_minutes._quote)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ten_minutes, "DEVICE", "fake_manila")
        patch.setattr(ten_minutes, "fake_device", FakeManilaV2)
        for function in made:
            function.cache_clear()
        yield
    for function in made:
        function.cache_clear()


def settings_of(*arguments: str) -> HardwareCostSettings:
    return parse("hardware-cost", HardwareCostSettings, arguments)[1]


def trainings(*arguments: str):
    return [cell for cell in cells(settings_of(*TINY, *arguments)) if cell["part"] == "training"]


def on_device(device, gates: int) -> QuantumCircuit:
    """A circuit in the device's gates with two parameters, of so many CZ gates on qubits 3 and 4."""
    angles = ParameterVector("a", 2)
    circuit = QuantumCircuit(device.num_qubits)
    for qubit, angle in zip((3, 4), angles, strict=True):
        circuit.sx(qubit)
        circuit.rz(angle, qubit)
    for _ in range(gates):
        circuit.cz(3, 4)
    return circuit


def label(device, **letters: str) -> str:
    """A Pauli string of the device's width, such as ``q3="X"``."""
    return "".join(letters.get(f"q{qubit}", "I") for qubit in reversed(range(device.num_qubits)))


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observables", "sets", "bases"),
    [
        ([{"q3": "Z"}], (), 1),
        ([{"q3": "Z"}, {"q4": "Z"}], (), 1),  # one measurement gives both
        ([{"q3": "Z"}, {"q3": "X"}], (), 2),
        ([{"q3": "Z"}, {"q4": "X"}, {"q3": "Y"}], (), 2),
        ([[{"q3": "Z"}], [{"q3": "X"}]], (5,), 10),  # each observable at each set
        ([{"q3": "Z"}, {"q3": "X"}], (2,), 2),  # one observable at one set, the other at the other
    ],
)
def test_circuits_of_an_estimator(device, observables, sets, bases):
    labels = [
        [label(device, **each) for each in row] if isinstance(row, list) else label(device, **row)
        for row in observables
    ]
    pub = EstimatorPub.coerce((on_device(device, 1), labels, np.zeros((*sets, 2)), 0.1))
    assert of_estimator(pub, None, device.target).circuits == bases


def test_durations_by_the_gate_times(device):
    """The longest chain of gates, and the measurements; what an observable does not read is not measured."""
    times = {name: device.target[name] for name in ("sx", "cz", "measure")}
    until_measured = times["sx"][(3,)].duration + 4 * times["cz"][(3, 4)].duration
    pub = EstimatorPub.coerce((on_device(device, 4), label(device, q3="Z"), [0.1, 0.2], 0.1))
    taken = of_estimator(pub, None, device.target).duration
    assert taken == pytest.approx(until_measured + times["measure"][(3,)].duration, rel=1e-9)
    circuit = on_device(device, 4)
    circuit.measure_all()
    pub = SamplerPub.coerce((circuit, np.zeros((7, 2))))
    longest = max(each.duration for each in times["measure"].values())
    assert of_sampler(pub, 50, device.target) == (7, 50, pytest.approx(until_measured + longest, rel=1e-9))


@pytest.mark.parametrize("shots", [1, 7, 100, 1000, 4096])
def test_shots_of_a_precision(device, shots):
    circuit, observable = on_device(device, 1), label(device, q3="Z")
    named = EstimatorPub.coerce((circuit, observable, [0.1, 0.2], shots**-0.5))
    assert of_estimator(named, 0.9, device.target).shots == shots
    silent = EstimatorPub.coerce((circuit, observable, [0.1, 0.2]))
    assert of_estimator(silent, shots**-0.5, device.target).shots == shots
    with pytest.raises(ValueError, match="precision: got none"):
        of_estimator(silent, None, device.target)


def test_sums_over_jobs():
    counts = Counts()
    counts.add([Pub(3, 10, 1e-6), Pub(1, 100, 2e-6)])
    counts.add([Pub(2, 10, 1e-6)])
    assert asdict(counts) == {
        **{"jobs": 2, "pubs": 3, "circuits": 6, "executions": 150, "executions_of_largest_job": 130},
        "circuit_seconds": pytest.approx(30e-6 + 200e-6 + 20e-6),
    }


def test_estimators_jobs_are_counted_and_answered_without_noise(device):
    """Through IBM's own client, as the peers use it; afterwards the client is as it was."""
    from qiskit_ibm_runtime import EstimatorV2

    genuine = QiskitRuntimeLocalService._run_backend_primitive_v2
    circuit = on_device(device, 0)
    circuit.sx(3)
    angles = np.array([[0.4, 0.0], [1.9, 0.0]])
    with pytest.warns(DeprecationWarning, match="EstimatorV2"):
        estimator = EstimatorV2(mode=device, options={"default_precision": 0.01})
    with counting.counted_estimator(5) as counts:
        answers = estimator.run([(circuit, label(device, q3="Z"), angles)]).result()[0].data.evs
        estimator.run([(circuit, label(device, q3="Z"), angles[:1])], precision=0.1).result()
    assert (counts.jobs, counts.pubs, counts.circuits, counts.executions) == (2, 2, 3, 2 * 10_000 + 100)
    assert np.abs(answers + np.cos(angles[:, 0])).max() < 5 * 0.01
    assert QiskitRuntimeLocalService._run_backend_primitive_v2 is genuine


@pytest.mark.slow
def test_our_step_costs_what_its_quote_says():
    """What IBM's client is given, counted there, beside what the layer says of itself."""
    model, circuits = "dressed", 4 * (1 + 2 * 28)
    counts, backend = counts_of_step("ours", model, SHOTS), IBMBackend("fake_fez", ledger=":memory:")
    problem = MODELS[model].make(seed=0)
    circuit, inputs, weights = quantum_circuit(problem)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, backend=backend, shots=SHOTS)
    quote = layer.quote(problem.batch, inputs_require_grad=True)
    assert (counts["jobs"], counts["circuits"], counts["executions"]) == (1, circuits, circuits * SHOTS)
    assert (quote.jobs, quote.circuits, quote.executions) == (1, circuits, circuits * SHOTS)
    assert seconds_of(counts, price()) == pytest.approx(quote.qpu_seconds, rel=1e-9)


def wrong(problem, shots, seed, device):
    """A gradient without its factor 1/2, as in the textbook."""
    answer = exact_answer(problem)
    return Step(lambda: (answer.values, 2 * answer.input_gradients, None))


@pytest.mark.slow
def test_costs_of_wrong_answers_are_refused(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "ours", System("wrong", f"{__name__}:wrong", ()))
    with pytest.raises(ValueError, match="ours: textbook-50: its input gradients are off by"):
        counts_of_step("ours", "textbook-50", 100_000)


# --- prices and records -----------------------------------------------------------------------------------------------


def test_price_by_hand(device):
    """Two seconds a job, and for each execution the device's delay and the circuit's duration."""
    counts = {"jobs": 3, "executions": 1000, "circuit_seconds": 0.5}
    assert seconds_of(counts, Price(1, 0.01, 0, 2.0)) == pytest.approx(3 * 2.0 + 1000 * 0.01 + 0.5)
    assert price().delay == device.default_rep_delay
    assert (price().seconds_of_job, price().executions_of_job) == (2.0, 0)


def test_every_peer_was_counted_with_every_model():
    records = json.loads(step_costs.RECORDED.read_text())["counts"]
    counted = {(row["system"], row["model"]) for row in records}
    assert counted >= {
        (peer, name) for peer in PEERS for name, model in MODELS.items() if peer not in model.too_long_for
    }
    for row in records:
        assert row["executions"] == SHOTS * row["circuits"]
        assert row["executions_of_largest_job"] * row["jobs"] >= row["executions"]
        assert row["pubs"] <= row["circuits"]
        assert 0 < row["deviation"] < LARGEST_Z_SCORE
        assert row["versions"].keys() == set(SYSTEMS[row["system"]].packages)
        # No step has fewer than the values and two shifted points of each input or weight.
        problem = MODELS[row["model"]].make(seed=0)
        angles = problem.inputs.shape[1] * problem.wants_input_gradients + len(problem.weights)
        assert row["circuits"] >= problem.batch * (1 + 2 * angles)


def test_recorded_counts_are_priced_and_not_repeated():
    cell = {"part": "step", "system": PEERS[0], "model": "textbook", "python": None}
    row = step_costs.measure_step(cell)
    assert row["qpu_seconds"] == seconds_of(row, price())
    assert row == step_costs.measure_step(cell)


@pytest.mark.parametrize(
    ("python", "says"),
    [("/no/such/python", "does not start"), (sys.executable, "could not count; its last words: KeyError: 'no such'")],
)
def test_a_system_that_cannot_be_counted_says_why(python, says):
    cell = {"part": "step", "system": "no such", "model": "textbook", "python": python}
    with pytest.raises(RuntimeError, match=says):
        step_costs.measure_step(cell)


def test_peers_are_counted_anew_by_the_interpreters_that_are_named():
    made = cells(
        settings_of("--parts", "step", "--peer-python", f"peers={sys.executable}", f"{PEERS[0]}=/usr/bin/python")
    )
    pythons = {cell["system"]: cell["python"] for cell in made}
    assert pythons == {"ours": None, PEERS[0]: "/usr/bin/python", PEERS[1]: sys.executable}
    assert len(made) == len(MODELS) * len(SYSTEMS) - 1


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_device")
def test_a_training_takes_the_steps_that_there_is_time_for():
    first, *_ = cells = trainings("--seeds", "1")
    rows = [measure(cell, seed_of(0, cell)) for cell in cells]
    assert measure(first, seed_of(0, first)) == rows[0]
    images = len(ten_minutes.examples()[1])
    for (row,) in rows:
        assert row["steps"] == math.floor(9 / row["seconds_of_step"]) > 0
        for name in ("accuracy", "accuracy_of_weights"):
            assert row[name] * images == pytest.approx(round(row[name] * images), abs=1e-9)


@pytest.mark.usefixtures("small_device")
def test_more_time_is_more_steps_and_spsa_has_cheaper_ones():
    for cell in trainings("--seeds", "1"):
        assert ten_minutes.steps_of({**cell, "seconds": 90.0}) >= 10 * ten_minutes.steps_of(cell)
    plain, spsa = (ten_minutes.quote_of(cell) for cell in trainings("--seeds", "1", "--qubits", "4", "--depth", "6"))
    assert (plain.circuits, spsa.circuits) == (4 * 57, 4 * 3)
    assert (plain.jobs, spsa.jobs) == (1, 1)


@pytest.mark.usefixtures("small_device")
def test_all_ways_of_a_seed_begin_with_the_same_classical_weights():
    """The circuit's, which are close to zero, are drawn with the shots."""
    starts = {0: [], 1: []}
    for number, cell in enumerate(trainings("--seeds", "2")):
        model = ten_minutes.begun(cell, np.random.SeedSequence(number))
        parts = (*model.pre.parameters(), *model.post.parameters())
        starts[cell["seed"]].append(torch.cat([each.detach().ravel() for each in parts]))
        assert 0 < model.quantum.weights.abs().max() < 0.1
    for ways in starts.values():
        assert len(ways) == 2
        assert torch.equal(*ways)
    assert not torch.equal(starts[0][0], starts[1][0])


@pytest.mark.usefixtures("small_device")
def test_the_noise_is_that_of_the_device_and_weights_are_tested_without():
    (cell, _) = trainings("--seeds", "1")
    model = ten_minutes.begun(cell, np.random.SeedSequence(1))
    exact, features = ten_minutes.without_noise(model, cell), ten_minutes.examples()[1].inputs[:20]
    shots = 1_000_000
    with torch.no_grad():
        angles = torch.tanh(model.pre(features)) * (math.pi / 2)
        deviations = model.quantum(angles, shots=shots) - exact.quantum(angles)
    assert deviations.abs().max() > 6 / math.sqrt(shots)  # readout errors move values by some per cent
    assert deviations.abs().max() < 0.2


def readout_error(flipped: float) -> DensityMatrixBackend:
    """A machine without other errors than that outcomes are flipped with this probability."""
    noise = NoiseModel()
    noise.add_all_qubit_readout_error(ReadoutError([[1 - flipped, flipped], [flipped, 1 - flipped]]))
    return DensityMatrixBackend(noise)


def test_rows_go_to_the_regions_in_turn_and_begin_at_another_one_each_time():
    """Values tell where a row was: <Z> of |0> is 1 - 2 p with a readout error of probability p."""
    errors = (0.0, 0.1, 0.25)
    backend, angle = Regions([readout_error(each) for each in errors]), Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.rz(angle, 0)
    layer = QuantumLayer(circuit, inputs=[angle], observables="Z", backend=backend, shots=100_000, seed=3)
    starts = set()
    for _ in range(12):
        values = layer(torch.zeros(7, 1, dtype=torch.float64))[:, 0]
        places = [min(range(3), key=lambda place, value=value: abs(value - 1 + 2 * errors[place])) for value in values]
        starts.add(places[0])
        assert places == [(places[0] + row) % 3 for row in range(7)]
        assert torch.allclose(values, torch.tensor([1 - 2 * errors[place] for place in places]).double(), atol=0.02)
    assert starts == {0, 1, 2}
    assert (layer.last_run.circuits, layer.last_run.shots) == (7, 700_000)


def test_regions_repeat_an_evaluation_of_the_same_seed():
    backend, angle = Regions([readout_error(0.1), readout_error(0.3)]), Parameter("a")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    values = []
    for seed in (5, 5, 6):
        layer = QuantumLayer(circuit, inputs=[angle], observables="Z", backend=backend, shots=50, seed=seed)
        values.append(layer(torch.linspace(0, 1, 9)[:, None]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.usefixtures("small_device")
@pytest.mark.parametrize("way", ["packed", "mitigated"])
def test_other_ways_are_trained_too(way):
    """Packing has cheaper steps than plain training, mitigation dearer ones and a calibration before the first."""
    plain, other = trainings("--seeds", "1", "--ways", "plain", way, "--seconds", "60")
    (row,) = measure(other, seed_of(0, other))
    assert row == measure(other, seed_of(0, other))[0]
    seconds = ten_minutes.seconds_of_step(plain)
    assert (row["seconds_of_step"] < seconds) == (way == "packed")
    first = ten_minutes.quote_of(other).qpu_seconds
    assert first + (row["steps"] - 1) * row["seconds_of_step"] <= 60 < first + row["steps"] * row["seconds_of_step"]
    assert (first > row["seconds_of_step"]) == (way == "mitigated")


# --- what is made of it -----------------------------------------------------------------------------------------------


def a_training(way, shots, lr, seed, accuracy):
    return {
        **{"part": "training", "way": way, "shots": shots, "lr": lr, "seed": seed},
        **{"steps": 7, "seconds_of_step": 80.0, "accuracy": accuracy, "accuracy_of_weights": accuracy + 0.01},
    }


def test_learning_rates_are_chosen_by_other_seeds():
    settings = replace(settings_of(), seeds=3, tuning_seeds=2, ways=("plain", "SPSA"), shots=(100,), lrs=(0.1, 0.2))
    rows = [
        *(a_training("plain", 100, 0.1, seed, value) for seed, value in enumerate([0.5, 0.6, 0.9, 0.7, 0.8])),
        *(a_training("plain", 100, 0.2, seed, value) for seed, value in enumerate([1.0, 1.0, 1.0, 0.7, 0.7])),
        *(a_training("SPSA", 100, 0.1, seed, value) for seed, value in enumerate([0.1, 0.1, 0.1, 0.1, 0.1])),
        *(a_training("SPSA", 100, 0.2, seed, value) for seed, value in enumerate([0.2, 0.3, 0.1, 0.4, 0.4])),
    ]
    findings = find(settings, {"training": rows})
    plain, spsa = findings.tables["accuracies"]
    assert (plain["lr"], plain["accuracy"], plain["lowest"], plain["highest"]) == (0.1, 0.6, 0.5, 0.9)
    assert plain["of the weights without noise"] == pytest.approx(0.61)
    assert (plain["p"], plain["steps"], plain["seconds a step"]) == ("", 7, 80.0)
    assert (spsa["lr"], spsa["accuracy"]) == (0.2, 0.2)
    assert spsa["p"] == pytest.approx(2 / math.comb(6, 3))  # all of the one are below all of the other
    assert findings.numbers["trainings"] == 20
    assert findings.figures.keys() == {"accuracies.png"}


def test_costs_beside_each_other():
    counts = {"pubs": 1, "circuits": 4, "executions": 4000, "circuit_seconds": 0.1, "executions_of_largest_job": 4000}
    rows = [
        {"part": "step", "system": system, "model": "dressed", "python": None, "jobs": jobs, "qpu_seconds": seconds}
        | {**counts, "deviation": 1.0, "versions": {}}
        for system, jobs, seconds in (("ours", 1, 59.7), (PEERS[0], 2, 235.0), (PEERS[1], 228, 700.0))
    ]
    findings = find(settings_of(), {"step": rows})
    assert [row["steps in ten minutes"] for row in findings.tables["costs"]] == [10, 2, 0]
    assert [row["library"] for row in findings.tables["costs"]] == [SYSTEMS[name].title for name in SYSTEMS]
    assert [row["jobs"] for row in findings.numbers["counts"]] == [1, 2, 228]
    assert findings.figures.keys() == {"costs.png"}


@pytest.mark.usefixtures("small_device")
@pytest.mark.figures
def test_run_writes_tables_and_figures(folder, capsys):
    assert main(["hardware-cost", *TINY, "--seeds", "1", "--run-dir", str(folder)]) == 0
    assert (folder / "accuracies.png").read_bytes().startswith(b"\x89PNG")
    assert [row["way"] for row in RunFolder(folder).read_rows("accuracies.csv")] == ["plain", "SPSA"]
    assert result(folder)["trainings"] == 2
    capsys.readouterr()
    assert main(["hardware-cost", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{len(MODELS) * len(SYSTEMS) - 1 + len(WAYS) * 2 * 2 * 15} cells" in said
    assert "system=pennylane-qiskit" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seconds", "1"], "--seconds: got 1, expected at least"),
        (["--peer-python", "peers"], "--peer-python: got 'peers', expected SYSTEM=PYTHON"),
        (["--peer-python", "jax=python"], "expected SYSTEM=PYTHON"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, capsys, arguments, words):
    assert_refused(capsys, folder, words, "hardware-cost", "--parts", "training", *arguments)


def test_a_peer_that_was_not_counted_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(step_costs, "_records", dict)
    said = one_line(capsys, "hardware-cost", "--parts", "step", "--run-dir", str(tmp_path / "run"))
    assert "--peer-python: got none for qiskit-machine-learning" in said
