"""The stand-in of IBM's service, seen through the genuine client."""

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ibm_cloud import INSTANCE, TOKEN, Watch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import generate_preset_pass_manager

pytest.importorskip("qiskit_ibm_runtime")

from ibm_cloud_jobs import ExecutorJob
from qiskit_ibm_runtime import Batch, Session
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.decoders.executor.decoder import ExecutorResultDecoder
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    IBMRuntimeError,
    RuntimeInvalidStateError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
    RuntimeJobNotFound,
    RuntimeJobTimeoutError,
)
from qiskit_ibm_runtime.executor_estimator import Estimator
from qiskit_ibm_runtime.executor_sampler import Sampler
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS

ROWS = np.random.default_rng(5).uniform(0, np.pi, (4, 3))


def logical() -> QuantumCircuit:
    angles = ParameterVector("angle", 3)
    circuit = QuantumCircuit(3)
    for qubit, angle in enumerate(angles):
        circuit.ry(angle, qubit)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    return circuit


def isa(circuit: QuantumCircuit, backend: Any, *, measured: bool = False) -> QuantumCircuit:
    circuit = circuit.copy()
    if measured:
        circuit.measure_all()
    return generate_preset_pass_manager(optimization_level=1, backend=backend, seed_transpiler=1).run(circuit)


@pytest.fixture(scope="module")
def backend(server):
    return server.service().backend("ibm_manila")


@pytest.fixture(scope="module")
def sampler_pub(backend):
    return isa(logical(), backend, measured=True), ROWS


@pytest.mark.parametrize("mode", [None, Session, Batch])
def test_values_are_those_of_exact_simulation(backend, cloud, mode):
    opened = mode and mode(backend)
    shots = 4000
    states = [Statevector(logical().assign_parameters(row)) for row in ROWS]

    job = Sampler(opened or backend).run([(isa(logical(), backend, measured=True), ROWS)], shots=shots)
    bits = job.result()[0].data.meas
    for row, state in enumerate(states):
        exact = state.probabilities()
        found = np.array([bits[row].get_int_counts().get(outcome, 0) for outcome in range(8)])
        deviation = (found - shots * exact) / np.sqrt(shots * exact * (1 - exact) + 1e-9)
        assert np.abs(deviation).max() < 5

    circuit = isa(logical(), backend)
    observables = [SparsePauliOp("ZZZ"), SparsePauliOp(["IXI", "IIZ"], [0.5, 2.0])]
    pub = (circuit, [[op.apply_layout(circuit.layout)] for op in observables], ROWS)
    values = Estimator(opened or backend, options={"resilience_level": 0}).run([pub], precision=0.02).result()[0].data
    exact = np.array([[state.expectation_value(op).real for state in states] for op in observables])
    assert np.abs((values.evs - exact) / (values.stds + 1e-9)).max() < 5

    latest = cloud.jobs()[-2:]
    assert [job["program"] for job in latest] == ["sampler_v2", "estimator_v2"]
    assert {job["session_id"] for job in latest} == {opened.session_id if opened else None}
    assert (latest[0]["circuits"], latest[0]["parameter_sets"], latest[0]["shots"]) == (1, 4, shots)
    if opened:
        opened.close()
        assert opened.status() == "Closed"


def test_jobs_are_found_by_tag(backend, sampler_pub):
    def submitted(*tags: str) -> str:
        return Sampler(backend, {"environment": {"job_tags": list(tags)}}).run([sampler_pub], shots=10).job_id()

    first, second = submitted("step", "step-1"), submitted("step", "step-2")
    service = backend.service

    def found(**filters: Any) -> list[str]:
        return [job.job_id() for job in service.jobs(**filters)]

    assert found(job_tags=["step"]) == [second, first]
    assert found(job_tags=["step"], descending=False) == [first, second]
    assert found(job_tags=["step"], limit=1) == [second]
    assert found(job_tags=["step"], limit=1, skip=1) == [first]
    assert found(job_tags=["step", "step-1"]) == [first]
    assert found(job_tags=["step"], pending=True) == []
    assert found(job_tags=["step"], pending=False, limit=None) == [second, first]
    assert service.job(first).tags == ["step", "step-1"]


def test_a_job_takes_its_time_and_can_be_cancelled(backend, cloud, sampler_pub):
    cloud.inject("slow_queue", seconds=3600)
    job = Sampler(backend).run([sampler_pub], shots=10)
    assert job.status() == "QUEUED"
    assert job.usage() == 0
    assert job.job_id() in {pending.job_id() for pending in backend.service.jobs(pending=True)}
    with pytest.raises(RuntimeJobTimeoutError):
        job.result(timeout=0.1, poll_interval=0.1)
    job.cancel()
    with pytest.raises(RuntimeInvalidStateError):
        backend.service.job(job.job_id()).cancel()


def test_usage_is_billed(backend, sampler_pub):
    before = backend.service.usage()["usage_consumed_seconds"]
    job = Sampler(backend).run([sampler_pub], shots=10)
    assert job.usage() == job.metrics()["usage"]["quantum_seconds"] == 3
    assert job.usage_estimation["quantum_seconds"] == 3
    assert backend.service.usage()["usage_consumed_seconds"] == before + 3


def test_an_operation_off_target_fails_the_job(backend):
    circuit = QuantumCircuit(5)
    circuit.cx(0, 4)
    circuit.measure_all()
    job = Sampler(backend).run([circuit], shots=10)
    with pytest.raises(RuntimeJobFailureError, match=r"1517; The instruction cx on qubits \(0, 4\)"):
        job.result()


def test_a_large_device_answers_too(backend):
    large = backend.service.backend("ibm_algiers")
    circuit = isa(logical(), large)
    pub = (circuit, SparsePauliOp("ZZZ").apply_layout(circuit.layout), ROWS)
    values = Estimator(large).run([pub], precision=0.02).result()[0].data
    exact = [Statevector(logical().assign_parameters(row)).expectation_value(SparsePauliOp("ZZZ")).real for row in ROWS]
    assert np.abs((values.evs - exact) / (values.stds + 1e-9)).max() < 5


def test_circuits_beyond_exact_simulation_go_to_aer(backend):
    circuit = QuantumCircuit(1, 2)
    circuit.x(0)
    circuit.measure(0, 0)
    circuit.x(0)
    circuit.measure(0, 1)
    counts = Sampler(backend).run([circuit], shots=50).result()[0].data.c.get_counts()
    assert counts == {"01": 50}


def test_noise_of_the_device_is_on_request(backend):
    circuit = QuantumCircuit(5)
    circuit.measure_all()
    job = Sampler(backend).run([circuit], shots=5000)
    assert job.result()[0].data.meas.get_counts() == {"00000": 5000}
    encode = QUANTUM_PROGRAM_PARAMS_CONVERTERS["v2.0"].encoder
    params = encode(job.inputs["quantum_program"], job.inputs["options"]).model_dump(mode="json")
    noisy = ExecutorJob(params).run(FakeManilaV2(), noise=True).result
    bits = ExecutorResultDecoder.decode(noisy)[0]["meas"]
    error_of_readout = np.mean([FakeManilaV2().properties().readout_error(qubit) for qubit in range(5)])
    assert bits.shape == (5000, 5)
    assert 0.2 * error_of_readout < bits.mean() < 5 * error_of_readout


def submit(backend: Any, pub: Any) -> Any:
    return Sampler(backend).run([pub], shots=10)


# kind, further details, what is called on the job (None: its submission alone), error, jobs created, POSTs
FAULTS: list[tuple[str, dict[str, Any], Callable[[Any], Any] | None, type[Exception] | None, int, int]] = [
    ("post_5xx", {}, None, None, 1, 2),
    ("post_5xx_after", {}, None, None, 2, 2),
    ("post_429", {}, None, IBMRuntimeError, 0, 1),
    ("post_429", {"retry_after": 0}, None, IBMRuntimeError, 0, 1),
    ("post_drop", {}, None, IBMRuntimeError, 0, 1),
    ("post_drop_after", {}, None, IBMRuntimeError, 1, 1),
    ("post_stall_after", {"seconds": 0.3}, None, IBMRuntimeError, 1, 1),
    ("get_5xx", {}, lambda job: job.status(), None, 1, 1),
    ("get_429", {}, lambda job: job.status(), RequestsApiError, 1, 1),
    ("get_429", {"retry_after": 0}, lambda job: job.status(), None, 1, 1),
    ("get_drop", {}, lambda job: job.status(), None, 1, 1),
    ("get_stall", {"seconds": 0.3}, lambda job: job.status(), None, 1, 1),
    ("job_404", {}, lambda job: job.status(), RequestsApiError, 1, 1),
    ("job_404", {}, lambda job: job.result(), RequestsApiError, 1, 1),
    ("job_404", {}, lambda job: job._service.job(job.job_id()), RuntimeJobNotFound, 1, 1),
    ("unauthorized", {"path": "/jobs/.*"}, lambda job: job.status(), IBMNotAuthorizedError, 1, 1),
    ("unauthorized", {"path": "/jobs"}, None, IBMNotAuthorizedError, 0, 1),
    ("job_failed", {}, lambda job: job.result(), RuntimeJobFailureError, 1, 1),
    ("job_over_time", {}, lambda job: job.result(), RuntimeJobMaxTimeoutError, 1, 1),
    ("job_cancelled", {}, lambda job: job.result(), RuntimeInvalidStateError, 1, 1),
    ("results_5xx", {}, lambda job: job.result(), None, 1, 1),
    ("results_cut", {}, lambda job: job.result(), RequestsApiError, 1, 1),
    ("results_garbled", {}, lambda job: job.result(), TypeError, 1, 1),
]


@pytest.mark.parametrize(("kind", "details", "call", "error", "created", "posted"), FAULTS)
def test_faults_reach_the_client(backend, cloud, sampler_pub, kind, details, call, error, created, posted):
    watch = Watch(cloud)
    cloud.inject(kind, **details)

    def act() -> None:
        job = submit(backend, sampler_pub)
        if call:
            call(job)

    if error:
        with pytest.raises(error) as caught:
            act()
        assert TOKEN not in str(caught.value)
    else:
        act()
    assert watch.counts == (created, posted)
    assert submit(backend, sampler_pub).result()[0].data.meas.shape == (len(ROWS),)


@pytest.mark.usefixtures("short_pauses")
def test_a_lasting_5xx_ends_the_submission(backend, cloud, sampler_pub):
    watch = Watch(cloud)
    cloud.inject("post_5xx", count=None)
    with pytest.raises(IBMRuntimeError):
        submit(backend, sampler_pub)
    assert watch.counts == (0, 6)


def test_a_fault_waits_and_counts(backend, cloud, sampler_pub):
    cloud.inject("post_429", count=2, after=1)
    statuses = []
    for _ in range(4):
        try:
            statuses.append(submit(backend, sampler_pub).status())
        except IBMRuntimeError:
            statuses.append("429")
    assert statuses == ["DONE", "429", "429", "DONE"]
    with pytest.raises(ValueError, match="got fault 'flood'"):
        cloud.inject("flood")


def test_a_stalled_request_is_released(backend, cloud, sampler_pub):
    job = submit(backend, sampler_pub)
    cloud.inject("get_stall", seconds=3600)
    threading.Timer(0.2, cloud.release).start()
    assert job.status() == "DONE"


def test_a_slow_service_can_fail_too(backend, cloud, sampler_pub):
    cloud.inject("slow", count=None, seconds=0.05)
    cloud.inject("post_429")
    with pytest.raises(IBMRuntimeError, match="429"):
        submit(backend, sampler_pub)
    assert submit(backend, sampler_pub).status() == "DONE"


def test_the_listing_lags(backend, cloud, sampler_pub):
    job = Sampler(backend, {"environment": {"job_tags": ["lagging"]}}).run([sampler_pub], shots=10)
    cloud.inject("list_lag")
    assert backend.service.jobs(job_tags=["lagging"]) == []
    assert [found.job_id() for found in backend.service.jobs(job_tags=["lagging"])] == [job.job_id()]


def test_a_device_goes_offline_and_comes_back(backend, cloud, sampler_pub):
    cloud.inject("offline")
    waiting = backend.status().pending_jobs
    job = submit(backend, sampler_pub)
    assert job.status() == "QUEUED"
    assert not backend.status().operational
    assert backend.status().pending_jobs == waiting + 1
    cloud.set_device("ibm_manila", "online")
    assert job.status() == "DONE"
    paused = backend.service.backend("ibm_lima").status()
    assert (paused.operational, paused.status_msg) == (True, "internal")


def test_a_recalibration_is_seen_on_refresh(backend, cloud):
    before = backend.properties().last_update_date
    cloud.recalibrate("ibm_manila")
    assert backend.properties().last_update_date == before
    assert backend.properties(refresh=True).last_update_date > before


def test_sessions_end(backend, cloud, sampler_pub):
    session = Session(backend, max_time=3600)
    assert session.status() == "Pending"
    assert submit(session, sampler_pub).status() == "DONE"
    assert session.status() == "In progress, accepting new jobs"
    assert session.details()["max_time"] == 3600
    cloud.expire_session(session.session_id)
    assert session.status() == "Pending"
    assert submit(session, sampler_pub).status() == "DONE"
    cloud.inject("session_closed")
    with pytest.raises(IBMRuntimeError, match="1217"):
        submit(session, sampler_pub)
    assert session.status() == "Closed"

    batch = Batch(backend)
    cloud.close_session(batch.session_id)
    with pytest.raises(IBMRuntimeError, match="1217"):
        submit(batch, sampler_pub)
    short = Session(backend, max_time=1)
    submit(short, sampler_pub)
    time.sleep(1.1)
    with pytest.raises(IBMRuntimeError, match="1217"):
        submit(short, sampler_pub)


def test_the_open_plan_has_no_sessions(cloud):
    cloud.set_up(plan="open", token_seconds=5, used_seconds=590)
    service = cloud.service()
    assert [(i["plan"], i["pricing_type"], i["crn"]) for i in service.instances()] == [("open", "free", INSTANCE)]
    assert service.usage()["usage_remaining_seconds"] == 10
    backend = service.backend("ibm_manila")
    with pytest.raises(RequestsApiError, match="1352"):
        Session(backend)
    pub = (isa(logical(), backend, measured=True), ROWS)
    assert submit(Batch(backend), pub).status() == "DONE"

    cloud.inject("iam_outage", count=None)
    with pytest.warns(UserWarning, match="Unable to retrieve"), pytest.raises(IBMNotAuthorizedError):
        service.usage()
    wrong = {"token": "another", "instance": INSTANCE, "url": os.environ["QISKIT_IBM_URL"]}
    with pytest.raises(Exception, match="valid API token"):
        cloud.service(**wrong)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime import QiskitRuntimeService
from test_stand_in import ROWS, Estimator, Sampler, isa, logical

backend = QiskitRuntimeService().backend("ibm_manila")
circuit, measured = isa(logical(), backend), isa(logical(), backend, measured=True)
pub = (circuit, SparsePauliOp("ZXZ").apply_layout(circuit.layout), ROWS)
environment = {"job_tags": [sys.argv[2]]}
twirling = {"enable_gates": True, "enable_measure": True}
for options in ({}, {"twirling": twirling}):
    job = Sampler(backend, {"environment": environment, **options}).run([(measured, ROWS)], shots=200)
    print(job.result()[0].data.meas.array.tolist())
for level in (0, 1):
    job = Estimator(backend, options={"resilience_level": level, "environment": environment}).run([pub], precision=0.05)
    print(job.result()[0].data.evs.tolist())
"""


@pytest.mark.slow
def test_results_follow_from_the_content_alone(cloud):
    def results(seed: int) -> str:
        environment = os.environ | cloud.environment | {"PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parent), f"run-{seed}"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert results(1) == results(2)
    assert not (Path(cloud.environment["HOME"]) / ".qiskit").exists()


def test_the_server_ends_with_its_parent():
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from ibm_cloud import CloudServer\n"
        "server = CloudServer(); server.start(); print(server.url, server._process.pid, flush=True); os._exit(0)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    url = printed.split()[0]
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/_control/jobs", timeout=30).close()
        except (urllib.error.URLError, ConnectionError):
            return
        time.sleep(0.1)
    pytest.fail(f"{url} still answers")
