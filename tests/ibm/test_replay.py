"""Recordings: the same numbers again, and an error for everything else."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from problems import AmplitudeGate
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

pytest.importorskip("qiskit_ibm_runtime", reason="something has to be recorded")
from test_fake_devices import noiseless, textbook_layer

from qiskit_torch_bridge import HardwareError, IBMBackend, Ledger, Limits, QuantumLayer, Replay, StatevectorBackend
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.backends.ibm.errors import NotRecorded
from qiskit_torch_bridge.backends.ibm.recording import write_recording

X = torch.tensor([[0.3], [1.9]], dtype=torch.float64)


def train(backend, *, seed=3, steps=3, **options):
    """The numbers of some steps of training, and the layer."""
    layer = textbook_layer(backend, seed=seed, **{"shots": 60, **options})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    numbers = []
    for _ in range(steps):
        optimizer.zero_grad()
        values = layer(X)
        values.square().sum().backward()
        optimizer.step()
        numbers.append((values.tolist(), layer.last_run.standard_errors.tolist(), layer.weights.grad.tolist()))
    return numbers, layer


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recording of three steps, and their numbers."""
    path = tmp_path_factory.mktemp("recording") / "run.npz"
    backend = IBMBackend(noiseless())
    numbers, _ = train(backend)
    assert write_recording(backend.ledger, path) == 3
    return path, numbers, backend.ledger


def test_the_same_numbers_as_often_as_one_likes(recorded):
    path, numbers, ledger = recorded
    replay = Replay(path)
    for _ in range(2):
        again, layer = train(replay)
        assert again == numbers
    assert layer.last_run.passport.job_ids == (ledger.entries()[-1].job_id,)
    assert [passport.backend for passport in replay.passports] == [ledger.entries()[0].backend] * 3
    assert isinstance(resolve_backend(f"replay:{path}"), Replay)


@pytest.mark.parametrize(("primitive", "executions"), [("estimator", 10**7), ("sampler", 200), ("estimator", 600)])
def test_estimators_and_jobs_in_pieces(primitive, executions, tmp_path):
    backend = IBMBackend(noiseless(), primitive=primitive, limits=Limits(executions=executions))
    numbers, _ = train(backend, steps=2)
    write_recording(backend.ledger, tmp_path / "run.npz")
    assert len(backend.ledger.entries()) > (2 if executions < 1000 else 1)
    assert train(Replay(tmp_path / "run.npz"), steps=2)[0] == numbers


def test_several_circuits_in_one_job(tmp_path):
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.append(AmplitudeGate(*x), [0])
    circuit.ry(w[0], 0)
    rows = torch.tensor([[1.0, 0.5], [0.2, -1.0]])
    results = []
    backend = IBMBackend(noiseless())
    for each in (backend, None):
        if each is None:
            write_recording(backend.ledger, tmp_path / "run.npz")
            each = Replay(tmp_path / "run.npz")
        layer = QuantumLayer(circuit, inputs=x, weights=w, observables=["Z"], backend=each, shots=40, seed=1)
        results.append(layer(rows).tolist())
    assert results[0] == results[1]


def test_other_seeds_get_each_measurement_once(recorded):
    path, numbers, _ = recorded
    replay = Replay(path)
    assert train(replay, seed=8, steps=1)[0] == numbers[:1]
    with pytest.raises(NotRecorded, match=r"1 measurement\(s\) of this, which have been given out.*rewind"):
        train(replay, seed=9, steps=1)
    replay.rewind()
    assert train(replay, seed=9, steps=1)[0] == numbers[:1]


ELSEWHERE = {
    "another circuit": ({"observables": ["ZZ"]}, r"does not hold this circuit with this readout"),
    "other shots": ({"shots": 61}, r"with \[60\] shots, but it was asked for with 61"),
    "other weights": ({"init": torch.tensor([0.4, 1.2])}, r"not at these angles: the nearest differ by 0\.1 rad"),
    "another rule": ({"gradient": "spsa"}, r"sets of angles at once.*the same gradient rule"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_what_was_not_recorded(what, recorded):
    options, message = ELSEWHERE[what]
    with pytest.raises(NotRecorded, match=message) as error:
        train(Replay(recorded[0]), **options)
    assert isinstance(error.value, HardwareError)


def test_angles_may_differ_by_rounding_only(recorded):
    path, numbers, _ = recorded
    near = torch.tensor([0.4 + 5e-5, 1.1])
    assert train(Replay(path), steps=1, init=near)[0] == numbers[:1]
    with pytest.raises(NotRecorded, match=r"expected at most 1e-06"):
        train(Replay(path, tolerance=1e-6), steps=1, init=near)


def test_default_shots_and_quotes_are_the_recorded_ones(recorded):
    path, _, ledger = recorded
    replay = Replay(path)
    layer = textbook_layer(replay)
    quote = layer.quote(2, inputs_require_grad=False)
    assert quote.shots == ledger.entries()[0].shots
    assert (quote.jobs, quote.qpu_seconds) == (1, pytest.approx(ledger.entries()[0].estimated_seconds))


def test_only_what_is_done_is_recorded(tmp_path):
    backend = IBMBackend(noiseless(), run="a", ledger=tmp_path / "jobs.sqlite")
    train(backend, steps=2)
    ledger = backend.ledger
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE jobs SET state = 'submitted' WHERE number = 2")
    db.close()
    assert write_recording(ledger, tmp_path / "one.npz", run="a") == 1
    with pytest.raises(ValueError, match=r"no evaluation of run 'b' that is done"):
        write_recording(ledger, tmp_path / "none.npz", run="b")
    assert not (tmp_path / "none.npz").exists()
    with pytest.raises(FileExistsError, match="exists; give another name"):
        write_recording(ledger, tmp_path / "one.npz")
    with pytest.raises(ValueError, match="holds no evaluation that is done"):
        write_recording(Ledger(None), tmp_path / "none.npz")


def test_one_evaluation_measured_twice_is_not_recorded(tmp_path):
    """By another device or with other options: a replay could not tell which of them is meant."""
    for options in ({}, {"twirling": {"enable_measure": True}}):
        backend = IBMBackend(noiseless(), ledger=tmp_path / "jobs.sqlite", options=options)
        train(backend, steps=1)
    assert len(backend.ledger.evaluations()) == len(backend.ledger.entries()) == 2
    with pytest.raises(ValueError, match="the same evaluation twice"):
        write_recording(backend.ledger, tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()


def test_no_recording(tmp_path, recorded):
    with pytest.raises(FileNotFoundError, match="there is no such recording"):
        Replay(tmp_path / "nowhere.npz")
    whole = recorded[0].read_bytes()
    for name, content in {"empty": b"", "text": b"not at all", "half": whole[: len(whole) // 2]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is no recording"):
            Replay(tmp_path / name)
    manifest = np.frombuffer(json.dumps({"format": "another", "evaluations": []}).encode(), dtype=np.uint8)
    np.savez(tmp_path / "foreign.npz", manifest=manifest)
    with pytest.raises(ValueError, match="its format is another"):
        Replay(tmp_path / "foreign.npz")


def test_a_replay_is_no_simulator(recorded):
    """Exact values, or adjoint gradients, are not to be had from it."""
    assert Replay(recorded[0]).differentiates is False
    with pytest.raises(ValueError, match="needs exact simulation"):
        textbook_layer(Replay(recorded[0]), gradient="adjoint")
    assert StatevectorBackend().queues is False
