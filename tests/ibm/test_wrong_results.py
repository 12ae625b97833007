"""Results of IBM's service that are not what was asked for.

No number is made of them, nothing is paid for twice by itself, and what the error advises works.
"""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ibm_cloud import TOKEN, Watch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_training import SHOTS, ibm, layer_on, step, watched
from qiskit_ibm_runtime.api.client import RuntimeClient
from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
from test_service import HASTY, bounds, exact_step, leave_a_job

from qiskit_torch_bridge import HardwareError, IBMBackend, Ledger
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.errors import JobFailed, LedgerError
from qiskit_torch_bridge.commands import main

pytestmark = pytest.mark.usefixtures("short_pauses")
OPTIONS: dict[str, dict[str, Any]] = {
    "sampler": {},
    "twirled": {"options": {"twirling": {"enable_gates": True, "enable_measure": True}}},
    "estimator": {"primitive": "estimator", "options": {"resilience_level": 0}},
    "mitigated": {"primitive": "estimator"},
}


@pytest.fixture(scope="module")
def right(server, tmp_path_factory):
    """A step with each of the Samplers, when nothing goes wrong."""
    steps = {}
    for name in ("sampler", "twirled"):
        with ibm(tmp_path_factory.mktemp("right") / "ledger.sqlite", **OPTIONS[name]) as backend:
            steps[name] = step(layer_on(backend))
    return steps


def is_right(found: torch.Tensor, right: dict[str, torch.Tensor], kind: str) -> bool:
    """Whether it is the step undisturbed; the stand-in draws anew for each job of an Estimator, so within 5 sigma there."""
    if kind in right:
        return torch.equal(found, right[kind])
    return bool(torch.all(torch.abs(found - exact_step()) < bounds(SHOTS)))


class Wrong:
    """What comes of the results that the service hands over.

    Attributes:
        change: From the body that it sends to the one that arrives; None: they arrive as they are.
        fetched: How often a result was fetched.
    """

    change: Callable[[str], Any] | None = None
    fetched = 0


@pytest.fixture
def wrong(monkeypatch):
    genuine, wrong = RuntimeClient.job_results, Wrong()

    def job_results(client: RuntimeClient, job_id: str) -> Any:
        body = genuine(client, job_id)
        wrong.fetched += 1
        return body if wrong.change is None else wrong.change(body)

    monkeypatch.setattr(RuntimeClient, "job_results", job_results)
    return wrong


def edited(edit: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    """A change of the decoded body."""

    def change(body: str) -> str:
        decoded = json.loads(body)
        edit(decoded)
        return json.dumps(decoded)

    return change


def reshaped(change: Callable[[np.ndarray], np.ndarray], item: int = 0) -> Callable[[str], str]:
    """A change of the measured bits of one item, each array whole in itself."""

    def edit(decoded: dict[str, Any]) -> None:
        results = decoded["data"][item]["results"]
        for name in results:
            array = np.ascontiguousarray(change(CompressedTensorModel(**results[name]).to_numpy()))
            results[name] = CompressedTensorModel.from_numpy(array).model_dump()

    return edited(edit)


def of_registers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A change of arrays with more than one shot: not of twirling's flips."""
    return lambda array: change(array) if array.shape[-2] > 1 else array


def renamed(old: str, new: str) -> Callable[[str], str]:
    return lambda body: body.replace(f'"{old}"', f'"{new}"')


def without_flips(decoded: dict[str, Any]) -> None:
    for item in decoded["data"]:
        item["results"] = {name: value for name, value in item["results"].items() if "flips" not in name}


def swap_bases(decoded: dict[str, Any]) -> None:
    pairs = decoded["passthrough_data"]["qiskit_mitigation"][0]["param_basis_pairs"]
    pairs[0][1], pairs[1][1] = pairs[1][1], pairs[0][1]


SHAPES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "a bit fewer": ("sampler", reshaped(lambda a: a[..., :-1]), r"PUB 0: got \d bit\(s\) a shot, expected \d"),
    "half the shots": ("sampler", reshaped(lambda a: a[..., ::2, :]), r"PUB 0: got shape \(27, 100, 1\).*\(27, 200"),
    "half the rows": ("sampler", reshaped(lambda a: a[:13]), r"PUB 0: got shape \(13, 200, 1\).*\(27, 200, 1\)"),
    "a PUB fewer": ("sampler", edited(lambda d: d["data"].pop()), "cannot be decoded.*metadata items"),
    "a PUB more": ("sampler", edited(lambda d: d["data"].append(d["data"][0])), "cannot be decoded.*metadata items"),
    "no PUB": ("sampler", edited(lambda d: d["data"].clear()), r"got 0 PUB\(s\), expected 2"),
    "another register": ("sampler", renamed("outcome", "meas"), r"PUB 0: got \['meas'\], expected"),
    "other numbers": ("sampler", reshaped(lambda a: a + np.uint8(1)), "got uint8 other than 0 and 1, expected bits"),
    "another role": ("sampler", renamed("sampler_v2", "another"), "PUB 0: got QuantumProgramItemResult, expected"),
    "another's role": ("sampler", renamed("sampler_v2", "estimator_v2"), "cannot be decoded"),
    "twirled, fewer shots": ("twirled", reshaped(of_registers(lambda a: a[..., :32, :])), r"outcome: got \(4, 27, 32"),
    "twirled, fewer circuits": ("twirled", reshaped(lambda a: a[:3]), r"got \(3, 27, 64, 2\).* \(4, 27, 64, 2\)"),
    "twirled, without flips": ("twirled", edited(without_flips), r"item 0, measurement_flips.outcome: got nothing"),
    "estimator, fewer shots": ("estimator", reshaped(lambda a: a[..., ::2, :]), r"_meas: got \(1, 54, 100, 5\)"),
    "estimator, fewer rows": ("estimator", reshaped(lambda a: a[:, :27]), r"_meas: got \(1, 27, 200, 5\), expected"),
    "estimator, fewer bits": ("estimator", reshaped(lambda a: a[..., :-1]), r"_meas: got \(1, 54, 200, 4\), expected"),
    "estimator, another recipe": ("estimator", edited(swap_bases), "got a recipe.*not the one which was sent"),
    "mitigated, no calibration": ("mitigated", edited(lambda d: d["data"].pop()), r"got 1 item\(s\), expected 2"),
}
BODIES: dict[str, Any] = {
    "cut": lambda body: body[: len(body) // 2],
    "a web page": lambda body: "<html><body>It works!</body></html>",
    "an empty object": lambda body: "{}",
    "null": lambda body: "null",
    "nothing": lambda body: "",
    "a list": lambda body: "[]",
    "a number": lambda body: "3",
    "deep": lambda body: "[" * 100_000,
}
CASES = {**SHAPES, **{name: ("sampler", change, "") for name, change in BODIES.items()}}


@pytest.mark.parametrize("kind", OPTIONS)
def test_wrong_results_are_refused_and_the_right_one_can_be_fetched_later(cloud, ledger, right, wrong, kind):
    """The error comes after a few attempts, and says what was got and expected; nothing is stored as done."""
    cases = {what: case for what, case in CASES.items() if case[0] == kind}
    with watched(cloud, ledger, **OPTIONS[kind]) as (backend, layer, watch):
        for what in [*cases, *list(cases)[:1]]:  # the first one twice, since it may be tried again
            _, wrong.change, message = cases[what]
            wrong.fetched = 0
            with pytest.raises(JobFailed, match=f"paid for, but its result is not what was asked for: .*{message}"):
                step(layer)
            layer = layer_on(backend)
            assert wrong.fetched == 3, what
            (entry,) = backend.ledger.entries()
            assert entry.state == "submitted", what
        wrong.change = None
        assert is_right(found := step(layer), right, kind)
        assert torch.equal(step(layer_on(backend)), found)
        assert watch.posts == len(watch.jobs) == backend.spent.jobs == 1
        assert backend.ledger.entries()[0].state == "done"


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_wrong_result_is_forgotten_and_the_job_sent_once_more(cloud, ledger, right, wrong, caplog, kind):
    """To the end: the error, its advice, a warning about the money, the right numbers, two jobs in all."""
    wrong.change = reshaped(of_registers(lambda array: array[..., ::2, :]))
    with watched(cloud, ledger, **OPTIONS[kind]) as (backend, layer, watch):
        for refused in (lambda: step(layer), lambda: backend.collect(1), lambda: backend.cancel(1)):
            with pytest.raises(JobFailed, match=rf"IBMBackend.forget\(1\).*jobs {ledger} --forget 1"):
                refused()
        assert backend.ledger.entries()[0].state == "submitted"
        backend.forget(1)
        assert any("What it has cost is spent" in record.message for record in caplog.records)
        wrong.change = None
        assert is_right(found := step(layer_on(backend)), right, kind)
        assert torch.equal(step(layer_on(backend)), found)
        assert watch.posts == len(watch.jobs) == backend.spent.jobs == 2
        assert [entry.state for entry in backend.ledger.entries()] == ["failed", "done"]
        assert [event["data"]["job"] for event in backend.ledger.events("forgotten")] == [1]


def test_another_jobs_result_is_refused(cloud, ledger, right, wrong):
    """The results of two jobs may have the same shapes; what the service passes through says whose they are."""
    bodies: list[str] = []

    def first_one(body: str) -> str:
        bodies.append(body)
        return bodies[0]

    wrong.change = first_one
    with ibm(ledger) as backend:
        assert torch.equal(step(layer_on(backend)), right["sampler"])
        with pytest.raises(JobFailed, match=r"got the result of the job with the tag qtb-.*, expected qtb-"):
            step(layer_on(backend, seed=8))


def test_jobs_forgets_by_the_command_line(cloud, ledger, right, wrong, capsys):
    with ibm(ledger) as backend:
        wrong.change, watch = BODIES["a web page"], Watch(cloud)
        with pytest.raises(JobFailed, match="cannot be decoded"):
            step(layer_on(backend))
        wrong.change = None
        assert main(["jobs", str(ledger), "--forget", "1"]) == 0
        assert "What it has cost is spent" in capsys.readouterr().out
        assert torch.equal(step(layer_on(backend)), right["sampler"])
        assert main(["jobs", str(ledger), "--forget", "1"]) == 1  # it is failed already
        assert main(["jobs", str(ledger), "--forget", "7"]) == 1
        assert watch.counts == (2, 2)
        assert [entry.state for entry in backend.ledger.entries()] == ["failed", "done"]


def test_what_an_earlier_version_has_sent_is_checked_when_it_is_read(cloud, ledger, right, wrong, monkeypatch):
    """Its evaluations do not say what they asked for, so that collecting a job cannot tell."""
    monkeypatch.setattr(Ledger, "asked_of_jobs", lambda self: {})
    with ibm(ledger, patience=HASTY) as backend:
        watch = Watch(cloud)
        leave_a_job(cloud, layer_on(backend))
        wrong.change = reshaped(lambda array: array[..., ::2, :])
        backend.collect(1)
        assert backend.ledger.entries()[0].state == "done"
        with pytest.raises(LedgerError, match=r"job 1 .* not what was asked for: PUB 0: got shape \(27, 100, 1\)"):
            step(layer_on(backend))
        wrong.change = None
        assert torch.equal(step(layer_on(backend)), right["sampler"])
        assert watch.counts == (1, 1)


EXECUTOR = DEFAULT_DECODERS["executor"]
LAYOUTS = {"one decoder": EXECUTOR[0], "none": None, "another order": EXECUTOR[1:], "without roles": EXECUTOR[:1]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_client_that_decodes_otherwise_sends_no_job(cloud, ledger, monkeypatch, layout):
    """Or it would be paid for and not read."""
    monkeypatch.setitem(DEFAULT_DECODERS, "executor", LAYOUTS[layout])
    watch = Watch(cloud)
    said = r"qiskit-ibm-runtime: got version \d+\.\d+\.\d+, which decodes results in another way than 0\.51"
    with ibm(ledger) as backend, pytest.raises(HardwareError, match=said):
        step(layer_on(backend))
    assert watch.counts == (0, 0)
    assert not ledger.exists()


def test_a_job_of_before_waits_for_a_client_that_decodes_it(cloud, ledger, right, monkeypatch):
    with watched(cloud, ledger, patience=HASTY) as (backend, layer, watch):
        leave_a_job(cloud, layer)
        with monkeypatch.context() as patch:
            patch.setitem(DEFAULT_DECODERS, "executor", EXECUTOR[0])
            with pytest.raises(HardwareError, match="those that were sent are kept"):
                backend.collect(1)
        assert backend.ledger.entry(1).state == "submitted"
        assert torch.equal(step(layer_on(backend)), right["sampler"])
        assert watch.counts[1] == 1


def test_an_echoed_key_is_masked(cloud, ledger, wrong):
    wrong.change = edited(lambda decoded: decoded.update(data=f"You sent {TOKEN}."))
    with ibm(ledger) as backend, pytest.raises(JobFailed, match=r"cannot be decoded.*You sent \*\*\*") as caught:
        step(layer_on(backend))
    error: BaseException | None = caught.value
    while error is not None:
        assert TOKEN not in str(error)
        error = error.__cause__ or error.__context__


def test_a_wrong_simulation_is_not_kept(monkeypatch):
    """It was not paid for, so that the same run simulates it anew without being asked to."""
    genuine = LocalDevice.result
    backend = IBMBackend("fake_manila")
    monkeypatch.setattr(LocalDevice, "result", lambda device, job_id: list(genuine(device, job_id))[:1])
    with pytest.raises(JobFailed, match=r"got 1 PUB\(s\), expected 2.*simulate it anew"):
        step(layer_on(backend))
    monkeypatch.undo()
    found = step(layer_on(backend))
    assert torch.equal(step(layer_on(backend)), found)
    assert [entry.state for entry in backend.ledger.entries()] == ["failed", "done"]


def test_a_job_that_has_not_ended_is_not_forgotten(cloud, ledger):
    """It would be paid for unseen: it can be cancelled."""
    with ibm(ledger, patience=HASTY) as backend:
        cloud.inject("slow_queue", seconds=3600)
        leave_a_job(cloud, layer_on(backend))
        with pytest.raises(HardwareError, match="has not ended; cancel it"):
            backend.forget(1)
        backend.cancel(1)
        with pytest.raises(LedgerError, match="is cancelled, expected one that is submitted or done"):
            backend.forget(1)
        assert backend.ledger.entries()[0].state == "cancelled"


def damage_result(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes the result of job 1 in a ledger's file, unseen by the ledger."""
    with sqlite3.connect(path) as db:
        (blob,) = db.execute("SELECT result FROM jobs WHERE number = 1").fetchone()
        db.execute("UPDATE jobs SET result = ? WHERE number = 1", (change(blob),))
    db.close()


@pytest.fixture
def done(cloud, ledger, right):
    """A backend whose ledger holds one job that is done."""
    with ibm(ledger) as backend:
        assert torch.equal(step(layer_on(backend)), right["sampler"])
        yield backend


def test_a_damaged_result_in_the_ledger_is_fetched_once_more(cloud, ledger, right, wrong, done):
    """That costs nothing; only where the service has lost it too, it has to be given up and paid for again."""
    watch = Watch(cloud)
    damage_result(ledger, lambda blob: blob[:-100])
    assert torch.equal(step(layer_on(done)), right["sampler"])
    assert wrong.fetched == 2
    assert torch.equal(step(layer_on(done)), right["sampler"])
    assert wrong.fetched == 2

    damage_result(ledger, lambda blob: blob[:-100])
    wrong.change = BODIES["null"]
    with pytest.raises(LedgerError, match=r"job 1 .* is damaged.*It could not be fetched.*IBMBackend\.forget\(1\)"):
        step(layer_on(done))
    assert watch.posts == 0
    done.forget(1)
    wrong.change = None
    assert torch.equal(step(layer_on(done)), right["sampler"])
    assert watch.counts == (1, 1)
