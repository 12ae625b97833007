"""Layers on IBM devices through the genuine client, against the stand-in of the service, whatever goes wrong there."""

import logging
import math
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from ibm_cloud import TOKEN, CloudServer, Watch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import FEATURES, PATIENCE, SHOTS, UPSTREAM, ibm, layer_on, step, watched
from qiskit_ibm_runtime import Batch, Session

from qiskit_torch_bridge import BudgetExceeded, HardwareError, Limits, Patience, QuantumLayer
from qiskit_torch_bridge.backends.ibm import service as service_module
from qiskit_torch_bridge.backends.ibm.errors import JobFailed, NotAuthorized, ServiceUnavailable
from qiskit_torch_bridge.backends.ibm.recording import write_recording

pytestmark = pytest.mark.usefixtures("short_pauses")
HASTY = Patience(retry_seconds=0.3, longest_pause_seconds=0.1, settle_seconds=0.05, poll_seconds=0.02)


def exact_step() -> torch.Tensor:
    return step(layer_on(None, shots=None))


def bounds(shots: int) -> torch.Tensor:
    """Five standard deviations of each entry of ``step``, at most: a value's variance is 1 / shots or less."""
    weights = UPSTREAM.abs().sum(1)
    gradients = torch.cat([weights.repeat_interleave(2), weights.norm().repeat(2)]) / math.sqrt(2 * shots)
    return 5 * torch.cat([torch.full((6,), shots**-0.5, dtype=torch.float64), gradients])


# Values, gradients, and what leaves for them --------------------------------------------------------------------------


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
@pytest.mark.parametrize("mode", ["job", "batch", "session"])
def test_a_step_is_one_job_and_agrees_with_exact_simulation(cloud, ledger, mode, primitive):
    shots = 4000
    options = {"resilience_level": 0} if primitive == "estimator" else {}
    with ibm(ledger, mode=mode, primitive=primitive, options=options) as backend:
        layer = layer_on(backend, shots=shots)
        watch = Watch(cloud)
        found, exact = step(layer), exact_step()
        (job,) = watch.jobs
        assert watch.posts == 1
        errors = torch.from_numpy(layer.last_run.standard_errors).ravel()
        assert torch.all(torch.abs(found - exact)[:6] < 5 * errors)
        assert torch.all(errors < shots**-0.5)
        assert torch.all(torch.abs(found - exact) < bounds(shots))
        passport = layer.last_run.passport
        assert (passport.backend, passport.job_ids) == ("ibm_manila", (job["id"],))
        assert passport.sessions == ((job["session_id"],) if job["session_id"] else ())
        assert (job["session_id"] is None) == (mode == "job")
        assert passport.usage_seconds == job["seconds"]

        with torch.no_grad():
            layer(FEATURES)
        assert watch.counts == (2, 2)


def test_only_what_needs_a_gradient_is_measured_for_it(cloud, ledger):
    with watched(cloud, ledger) as (_, layer, watch):
        expected = []
        step(layer)
        expected.append(layer.quote(3).circuits)
        layer(FEATURES).sum().backward()
        expected.append(layer.quote(3, inputs_require_grad=False).circuits)
        with torch.no_grad():
            layer(FEATURES)
            expected.append(layer.quote(3).circuits)
        layer.weights.requires_grad_(False)
        layer(FEATURES.clone().requires_grad_()).sum().backward()
        expected.append(layer.quote(3).circuits)
        layer(FEATURES)
        expected.append(layer.quote(3, inputs_require_grad=False).circuits)
    assert [job["parameter_sets"] for job in watch.jobs] == expected
    assert expected == [54, 30, 6, 30, 6]  # 3 rows in 2 bases, at 1 + 2 points for each angle


def test_work_above_the_limits_leaves_as_few_jobs_together(cloud, ledger):
    with watched(cloud, ledger, limits=Limits(executions=20 * SHOTS)) as (_, layer, watch):
        assert layer.quote(3).jobs == 3
        found = step(layer)
        assert torch.all(torch.abs(found - exact_step()) < bounds(SHOTS))
        assert [job["id"] for job in watch.jobs] == list(layer.last_run.passport.job_ids)
    jobs = [path for method, path, _ in watch.requests if method == "POST" or "results" in path]
    assert [path == "/jobs" for path in jobs] == [True] * 3 + [False] * 3
    assert sum(job["parameter_sets"] for job in watch.jobs) == 54
    assert max(job["parameter_sets"] for job in watch.jobs) == 20


TWO_FACTORS = {"noise_factors": [1, 3], "extrapolator": "linear"}


@pytest.mark.parametrize(
    ("primitive", "options"),
    [
        ("sampler", {}),
        ("sampler", {"twirling": {"enable_measure": True, "num_randomizations": 7}}),
        ("sampler", {"twirling": {"enable_gates": True, "enable_measure": True}}),
        ("estimator", {}),
        ("estimator", {"resilience_level": 0}),
        ("estimator", {"resilience_level": 2}),
        ("estimator", {"resilience": {"zne_mitigation": True, "zne": TWO_FACTORS}}),
    ],
)
def test_the_quote_is_what_the_service_gets(cloud, ledger, primitive, options):
    with ibm(ledger, primitive=primitive, options=options) as backend:
        # So many that no value comes out the same in all randomisations, which IBM's extrapolation warns of.
        layer, watch = layer_on(backend, shots=5000), Watch(cloud)
        quote = layer.quote(3)
        step(layer)
        (job,) = watch.jobs
        assert quote.executions == job["parameter_sets"] * job["shots"]
        assert quote.executions == backend.ledger.entries()[0].executions
        assert backend.spent.qpu_seconds == job["seconds"]


# Faults that pass -----------------------------------------------------------------------------------------------------

PASSING: list[tuple[str, dict[str, Any], int]] = [  # kind, details, POSTs
    ("post_5xx", {}, 2),
    ("post_5xx", {"status": 503, "count": 3}, 4),
    ("post_5xx_after", {}, 1),
    ("post_5xx_after", {"status": 502}, 1),
    ("post_429", {}, 2),
    ("post_429", {"retry_after": 0}, 2),
    ("post_429", {"count": 12}, 13),
    ("post_drop", {}, 2),
    ("post_drop_after", {}, 1),
    ("post_stall_after", {"seconds": 60}, 0),  # it is listed when it ends
    ("get_5xx", {"count": 4}, 1),
    ("get_429", {}, 1),
    ("get_429", {"retry_after": 0}, 1),
    ("get_drop", {"count": 2}, 1),
    ("get_stall", {"seconds": 60}, 1),
    ("job_404", {"count": 2}, 1),
    ("results_5xx", {}, 1),
    ("results_cut", {}, 1),
    ("results_garbled", {"count": 2}, 1),
    ("unauthorized", {}, 1),
    ("unauthorized", {"path": "/jobs"}, 2),
    ("unauthorized", {"path": "/jobs/.*"}, 1),
    ("slow_queue", {"seconds": 0.5}, 1),
    ("slow", {"seconds": 0.1, "count": 5}, 1),
]


def named(rows: list[tuple[str, dict[str, Any], Any]]) -> list[str]:
    return ["-".join([kind, *map(str, details.values())]) for kind, details, *_ in rows]


# In the other mode than its neighbours, because a session only adds what is asked of it before the first job; what happens
# to the submission itself is tried in both.
IN_MODES = [
    pytest.param(mode, *fault, id=f"{mode}-{name}", marks=[pytest.mark.slow] * ((place + number) % 2))
    for number, mode in enumerate(["job", "session"])
    for place, (fault, name) in enumerate(zip(PASSING, named(PASSING), strict=True))
    if (place + number) % 2 == 0 or fault[0] in ("unauthorized", "slow") or "post" in fault[0]
]


@pytest.mark.parametrize(("mode", "kind", "details", "posts"), IN_MODES)
def test_a_fault_that_passes_changes_nothing(cloud, ledger, undisturbed, monkeypatch, mode, kind, details, posts):
    if "stall" in kind:
        monkeypatch.setattr(service_module, "_READ_SECONDS", 0.4)
    with watched(cloud, ledger, mode=mode) as (backend, layer, watch):
        cloud.inject(kind, **details)
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (1, posts)
        (entry,) = backend.ledger.entries()
        assert (entry.state, entry.job_id) == ("done", watch.jobs[0]["id"])
        assert backend.spent.jobs == 1


def test_a_job_that_the_listing_does_not_show_at_once_is_not_sent_again(cloud, ledger, undisturbed):
    with watched(cloud, ledger, patience=replace(PATIENCE, settle_seconds=0.5)) as (backend, layer, watch):
        cloud.inject("list_lag", count=3)
        cloud.inject("post_drop_after")
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (1, 1)
        (event,) = backend.ledger.events("recovered")
        assert watch.jobs[0]["id"] in event["message"]


def test_every_passing_fault_at_once(cloud, ledger, undisturbed):
    with watched(cloud, ledger) as (_, layer, watch):
        gets = ("get_5xx", "get_429", "get_drop", "job_404", "results_5xx", "results_cut", "results_garbled")
        for kind in ("post_5xx", "post_429", "post_drop", "post_drop_after", *gets):
            cloud.inject(kind)
        assert torch.equal(step(layer), undisturbed)
        assert len(watch.jobs) == 1


# Faults that last -----------------------------------------------------------------------------------------------------

# kind, details, error, what it says, jobs made before it is over, and after the same program has gone on
LASTING: list[tuple[str, dict[str, Any], type[HardwareError], str, int, int]] = [
    ("unauthorized", {"count": None}, NotAuthorized, "The key is valid, so it is not that", 0, 1),
    ("unauthorized", {"count": None, "path": "/jobs/.*"}, NotAuthorized, "The key is valid, so it is not that", 1, 1),
    ("post_5xx", {"count": None}, ServiceUnavailable, "nothing is sent twice", 0, 1),
    ("post_5xx_after", {"count": 1}, ServiceUnavailable, "nothing is sent twice", 1, 1),
    ("post_429", {"count": None}, ServiceUnavailable, "nothing is sent twice", 0, 1),
    ("post_drop", {"count": None}, ServiceUnavailable, "nothing is sent twice", 0, 1),
    ("get_5xx", {"count": None, "path": "/jobs/.*"}, ServiceUnavailable, "nothing is sent twice", 1, 1),
    ("job_404", {"count": None}, JobFailed, "does not know it", 1, 1),
    ("results_garbled", {"count": None}, JobFailed, "its result is not what was asked for", 1, 1),
    ("post_5xx", {"status": 400}, JobFailed, "Could not submit a job .* change the circuit", 0, 1),
    ("job_failed", {}, JobFailed, "the test ordered it", 1, 2),
    ("job_over_time", {}, JobFailed, "ran longer than maximum execution time", 1, 2),
    ("job_cancelled", {}, JobFailed, "was cancelled", 1, 2),
]


@pytest.mark.parametrize(
    ("kind", "details", "error", "says", "before", "after"), LASTING, ids=named([row[:3] for row in LASTING])
)
def test_a_fault_that_lasts_ends_with_an_error_and_the_same_program_goes_on(
    cloud, ledger, undisturbed, kind, details, error, says, before, after
):
    with watched(cloud, ledger, patience=HASTY) as (backend, layer, watch):
        cloud.inject(kind, **details)
        if kind == "post_5xx_after":
            cloud.inject("get_5xx", count=None, path="/jobs")
        with pytest.raises(error, match=says) as caught:
            step(layer)
        assert str(ledger) in str(caught.value)
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert len(watch.jobs) == before
    cloud.clear()
    with ibm(ledger, max_jobs=after) as backend:  # what never got to the service is not counted
        assert torch.equal(step(layer_on(backend)), undisturbed)
        assert len(watch.jobs) == after
        assert [entry.state for entry in backend.ledger.entries()][-1] == "done"
        assert torch.equal(step(layer_on(backend)), undisturbed)
        assert len(watch.jobs) == after


def leave_a_job(cloud: CloudServer, layer: QuantumLayer) -> None:
    """A step that is submitted, but whose result does not come."""
    cloud.inject("get_5xx", count=None, path="/jobs/.*")
    with pytest.raises(ServiceUnavailable):
        step(layer)
    cloud.clear()


def test_a_step_that_failed_can_be_called_again(cloud, ledger, undisturbed):
    with watched(cloud, ledger, patience=HASTY) as (_, layer, watch):
        leave_a_job(cloud, layer)
        assert torch.equal(step(layer), undisturbed)
        assert len(watch.jobs) == 1


def test_an_interrupted_wait_goes_on(cloud, ledger, undisturbed, monkeypatch):
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with watched(cloud, ledger) as (backend, layer, watch):
        with monkeypatch.context() as patch:
            patch.setattr(service_module.CloudDevice, "_sent", interrupted)
            with pytest.raises(KeyboardInterrupt):
                step(layer)
        assert len(watch.jobs) == 1
        assert torch.equal(step(layer_on(backend)), undisturbed)
        assert len(watch.jobs) == 1


# Sessions -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["session", "batch"])
@pytest.mark.parametrize("when", ["between steps", "at the submission"])
def test_a_session_that_closes_is_renewed(cloud, ledger, undisturbed, mode, when):
    with watched(cloud, ledger, mode=mode) as (backend, layer, watch):
        assert torch.equal(step(layer), undisturbed)
        first = watch.jobs[0]["session_id"]
        if when == "between steps":
            cloud.close_session(first)
        else:
            cloud.inject("session_closed")
        step(layer)
        second = watch.jobs[1]["session_id"]
        assert second not in (None, first)
        (event,) = backend.ledger.events("session-renewed")
        assert (event["data"]["old"], event["data"]["new"]) == (first, second)
        assert layer.last_run.passport.sessions == (second,)
        step(layer)
        assert [job["session_id"] for job in watch.jobs] == [first, second, second]


@pytest.mark.parametrize("kind", [Session, Batch])
def test_a_closed_session_of_the_users_own_is_an_error(cloud, ledger, kind):
    session = kind(cloud.service().backend("ibm_manila"))
    backend = ibm(ledger, session)
    layer, watch = layer_on(backend), Watch(cloud)
    step(layer)
    assert watch.jobs[0]["session_id"] == session.session_id
    cloud.close_session(session.session_id)
    with pytest.raises(HardwareError, match="takes no more jobs") as caught:
        step(layer)
    assert session.session_id in str(caught.value)
    assert len(watch.jobs) == 1
    backend.close()


def test_a_session_of_the_users_own_stays_open(cloud, ledger):
    session = Session(cloud.service().backend("ibm_manila"))
    with ibm(ledger, session) as backend:
        step(layer_on(backend))
    assert session.details()["accepting_jobs"]


def test_the_open_plan_has_batches_but_no_sessions(cloud, tmp_path):
    cloud.set_up(plan="open")
    watch = Watch(cloud)
    refused = tmp_path / "refused.sqlite"
    with pytest.raises(ValueError, match="mode='batch'"):
        layer_on(ibm(refused, mode="session"))
    assert "/sessions" not in [path for _, path, _ in watch.requests]
    assert watch.jobs == []
    with ibm(tmp_path / "ledger.sqlite", mode="batch") as backend:
        step(layer_on(backend))
    (job,) = watch.jobs
    assert job["session_id"] is not None


@pytest.mark.parametrize("mode", ["session", "batch"])
def test_a_session_left_open_is_taken_up_and_closed_at_last(cloud, ledger, mode):
    watch = Watch(cloud)
    lost = ibm(ledger, mode=mode)
    first = layer_on(lost)
    step(first)
    with ibm(ledger, mode=mode) as backend:  # as in a later process: the first one was never closed
        layer = layer_on(backend)
        layer.set_rng_state(first.get_rng_state())
        step(layer)
        opened = [request for request in watch.requests if request[:2] == ("POST", "/sessions")]
        assert len(opened) == 1
        one, other = (job["session_id"] for job in watch.jobs)
        assert one == other
    assert cloud.service()._active_api_client.session_details(one)["accepting_jobs"] is False
    with ibm(ledger, mode=mode) as backend:
        layer.backend = backend
        step(layer)
    assert watch.jobs[2]["session_id"] not in (None, one)


# Budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cap", "value"), [("max_jobs", 2), ("max_shots", 2 * 54 * SHOTS), ("max_qpu_seconds", 14.5)])
def test_a_cap_stops_before_the_submission(cloud, ledger, cap, value):
    watch = Watch(cloud)
    layers = []
    with ibm(ledger, **{cap: value}) as backend:  # an earlier process
        layers.append(layer_on(backend))
        step(layers[0])
    with ibm(ledger, **{cap: value}) as backend:
        layer = layer_on(backend)
        layer.set_rng_state(layers[0].get_rng_state())
        step(layer)
        spent = backend.spent
        requests = len(watch.requests)
        with pytest.raises(BudgetExceeded, match=cap):
            step(layer)
        assert len(watch.jobs) == watch.posts == spent.jobs == 2
        assert len(watch.requests) == requests
        estimate = layer.quote(3).qpu_seconds
        assert spent.qpu_seconds == sum(job["seconds"] for job in watch.jobs)
        # By the estimates alone a third would fit.
        assert 3 * estimate < 14.5 < spent.qpu_seconds + estimate
    with ibm(ledger) as backend:  # the cap raised
        layer.backend = backend
        step(layer)
    assert len(watch.jobs) == 3


def test_bills_that_come_late_are_settled(cloud, ledger):
    with ibm(ledger) as backend:
        layer = layer_on(backend)
        cloud.inject("get_5xx", path="/jobs/[^/]+/metrics")
        step(layer)
        estimate = layer.quote(3).qpu_seconds
        assert backend.spent.qpu_seconds == pytest.approx(estimate)
        backend.settle_bills()
        assert backend.spent.qpu_seconds == cloud.jobs()[-1]["seconds"] != estimate


# Recalibration, cancelling, secrets -----------------------------------------------------------------------------------


def test_a_recalibration_is_logged_once(cloud, ledger, caplog):
    patience = replace(PATIENCE, recheck_seconds=0)
    passports = []
    with ibm(ledger, patience=patience) as backend:
        layer = layer_on(backend)
        for number in range(4):
            if number == 2:
                cloud.recalibrate("ibm_manila")
            step(layer)
            passports.append(layer.last_run.passport)
        (event,) = backend.ledger.events("recalibration")
    calibrated = [passport.calibrated[0] for passport in passports if passport is not None]
    assert calibrated[0] == calibrated[1] != calibrated[2] == calibrated[3]
    assert (event["data"]["before"], event["data"]["after"]) == (calibrated[1], calibrated[2])
    assert sum("calibrated anew" in record.message for record in caplog.records) == 1


def test_jobs_are_collected_and_cancelled(cloud, ledger, undisturbed):
    with watched(cloud, ledger, patience=HASTY) as (backend, layer, watch):
        leave_a_job(cloud, layer)
        backend.collect(backend.ledger.entries()[0].number)
        assert backend.ledger.entries()[0].state == "done"
        assert torch.equal(step(layer), undisturbed)
        assert len(watch.jobs) == 1

        cloud.inject("slow_queue", seconds=3600)
        leave_a_job(cloud, layer)
        backend.cancel(backend.ledger.entries()[-1].number)
        assert [job["state"] for job in watch.jobs] == ["Completed", "Cancelled"]
        assert backend.ledger.entries()[-1].state == "cancelled"


def errors_of(layer: QuantumLayer, cloud: CloudServer) -> Iterator[BaseException]:
    """What faults of every kind end with."""
    for number, (kind, details, *_) in enumerate(LASTING, start=100):
        layer.set_rng_state(layer.get_rng_state() | {"position": number})  # each a step of its own
        cloud.inject(kind, **details)
        try:
            step(layer)
        except HardwareError as error:
            yield error
        cloud.clear()


def test_the_token_is_nowhere(cloud, tmp_path, ledger, caplog):
    caplog.set_level(logging.DEBUG, logger="qiskit_torch_bridge")
    patience = Patience(retry_seconds=0.3, settle_seconds=0.1, poll_seconds=0.02)
    with ibm(ledger, mode="session", patience=patience) as backend:
        layer = layer_on(backend)
        step(layer)
        errors = list(errors_of(layer, cloud))
        assert len(errors) == len(LASTING) - 1  # one lasts only together with another
        texts = ["".join(traceback.format_exception(error)) for error in errors]
        texts += [repr(thing) for thing in (backend, backend.ledger, layer, layer.last_run, backend.connection, errors)]
        texts += [record.getMessage() + repr(record.__dict__) for record in caplog.records]
        assert any("Trying again" in text for text in texts)
        torch.save(layer, tmp_path / "layer.pt")
        checkpoint = {"layer": layer.state_dict(), "rng": layer.get_rng_state()}
        torch.save(checkpoint, tmp_path / "checkpoint.pt")
        (tmp_path / "backend.pickle").write_bytes(pickle.dumps(backend))
        write_recording(backend.ledger, tmp_path / "recording.npz")
        # The write-ahead log is there while the ledger is open.
        contents = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    names = {"ledger.sqlite", "ledger.sqlite-wal", "layer.pt", "checkpoint.pt", "backend.pickle", "recording.npz"}
    assert names <= contents.keys()
    assert b"qtb-" in contents["ledger.sqlite"] + contents["ledger.sqlite-wal"]
    contents["ledger.sqlite again"] = ledger.read_bytes()
    assert [name for name, content in contents.items() if TOKEN.encode() in content] == []
    assert [text for text in texts if TOKEN in text] == []
