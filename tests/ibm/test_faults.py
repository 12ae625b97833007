"""Every refusal of every request: one job at the service, one in the ledger, the true cause, and a way on that works."""

import http.server
import logging
import pickle
import ssl
import threading
from typing import Any

import pytest
import requests
import torch
from ibm_cloud import TOKEN, CloudServer, Watch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import ibm, layer_on, step, watched

from qiskit_torch_bridge import HardwareError, Patience
from qiskit_torch_bridge.backends.ibm.errors import JobFailed, NotAuthorized, ServiceUnavailable
from qiskit_torch_bridge.backends.ibm.faults import Fault, ServiceFault, meaning_of
from qiskit_torch_bridge.backends.ibm.service import CloudDevice

pytestmark = pytest.mark.usefixtures("short_pauses")
PATIENCE = Patience(retry_seconds=60.0, longest_pause_seconds=0.1, settle_seconds=0.05, poll_seconds=0.02)
HASTY = Patience(retry_seconds=0.3, longest_pause_seconds=0.1, settle_seconds=0.05, poll_seconds=0.02)
STATUSES = (400, 401, 403, 404, 407, 408, 409, 410, 413, 422, 423, 425, 429, 500, 503, 524)
PASSING = (408, 425, 429, 500, 503, 524)
# One of each meaning that an answer may have; the others of the same meaning are slow.
OFTEN = (400, 401, 403, 404, 407, 429, 503)
EACH_STATUS = [pytest.param(status, marks=[] if status in OFTEN else pytest.mark.slow) for status in STATUSES]


# After the job was taken ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*EACH_STATUS, 200, "page 403"])
def test_whatever_is_answered_after_a_job_was_taken_it_is_not_sent_again(cloud, ledger, undisturbed, status):
    with watched(cloud, ledger, patience=PATIENCE) as (backend, layer, watch):
        if isinstance(status, int) and status != 200:
            cloud.inject("post_5xx_after", status=status)
        else:
            cloud.inject("page_after", path="/jobs", status=200 if status == 200 else 403)
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (1, 1)
        (entry,) = backend.ledger.entries()
        assert (entry.state, entry.job_id) == ("done", cloud.jobs()[-1]["id"])
        assert backend.spent.jobs == 1
        assert len(backend.ledger.events("recovered")) == 1


@pytest.mark.parametrize("status", EACH_STATUS)
def test_what_is_refused_before_it_was_taken_is_no_job(cloud, ledger, undisturbed, status):
    with watched(cloud, ledger, patience=PATIENCE) as (backend, layer, watch):
        cloud.inject("post_5xx", status=status)
        if status not in (*PASSING, 401, 404):
            with pytest.raises(JobFailed, match=str(ledger)):
                step(layer)
            # Looked for, and not found: it was not taken, and does not count.
            assert watch.counts == (0, 1)
            assert backend.spent.jobs == 0
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (1, 2)
        assert backend.spent.jobs == 1


def test_one_that_is_listed_too_late_is_cancelled_and_counted(cloud, ledger, undisturbed, monkeypatch):
    """The list of jobs lags longer than is waited for: two jobs at the service, and two in the ledger."""
    genuine = CloudDevice.find
    with watched(cloud, ledger, patience=PATIENCE) as (backend, layer, watch):
        monkeypatch.setattr(CloudDevice, "find", lambda self, tag: genuine(self, tag) if watch.posts > 1 else [])
        cloud.inject("post_drop_after")
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (2, 2)
        first, second = (job["id"] for job in cloud.jobs()[-2:])
        assert [(e.state, e.job_id) for e in backend.ledger.entries()] == [("done", second), ("cancelled", first)]
        assert backend.spent.jobs == 2
        backend.settle_bills()
        assert backend.spent.qpu_seconds == sum(job["seconds"] for job in cloud.jobs()[-2:])
        step(layer)  # the next one is not disturbed
        assert watch.counts == (3, 3)


def test_a_fault_can_leave_its_process() -> None:
    fault = ServiceFault(Fault.MISSING, "not found", certain=True, remedy="Look again.", tries=2)
    copy = pickle.loads(pickle.dumps(fault))
    assert (type(copy), str(copy), vars(copy)) == (ServiceFault, "not found", vars(fault))


# The true cause ---------------------------------------------------------------------------------------------------------

# status, what the answer says, error, what is said to the user, what is not
CAUSES = [
    (400, "Circuit is not valid.", JobFailed, "change the circuit, the options or the device", "save_account"),
    (400, "Reached maximum number of pending jobs (3).", ServiceUnavailable, "only so many jobs at once", "account"),
    (403, "This instance has met its usage limit.", JobFailed, "of its instance is used up.*name another", "save_"),
    (403, "You have exceeded your monthly quota. 4317", JobFailed, "until the plan's time is renewed", "save_account"),
    (403, "Not authorized to run a program.", JobFailed, "The key is accepted, but not for this", "save_account"),
    (407, "", JobFailed, "log in to it .HTTPS_PROXY", "save_account"),
    (413, "", JobFailed, "Send less in one job", "save_account"),
    (423, "", JobFailed, "account or instance is locked", "save_account"),
    (429, "Too many requests.", ServiceUnavailable, "for 0.3 s .*nothing is sent twice", "save_account"),
    (503, "", ServiceUnavailable, "for 0.3 s .*nothing is sent twice", "save_account"),
]


@pytest.mark.parametrize(
    ("status", "says", "error", "remedy", "absent"), CAUSES, ids=[f"{c[0]} {c[1]}" for c in CAUSES]
)
def test_a_refused_submission_says_what_helps(cloud, ledger, status, says, error, remedy, absent):
    with watched(cloud, ledger, patience=HASTY) as (_, layer, watch):
        cloud.inject("post_5xx", count=None, status=status, says=says)
        with pytest.raises(error, match=remedy) as caught:
            step(layer)
        assert absent not in str(caught.value)
        assert str(status) in str(caught.value)
        assert says in str(caught.value)
        assert len(watch.jobs) == 0


def deleted(cloud: CloudServer, **details: Any) -> None:
    """The API key is deleted: the service refuses its tokens, and the identity service the key."""
    cloud.inject("unauthorized", count=None, **details)
    cloud.inject("iam_outage", count=None, status=400, says="BXNIM0415E: Provided API key could not be found.")


@pytest.mark.parametrize("path", ["/(jobs|sessions|backends|instances).*", "/jobs", "/jobs/.*", "/instances/usage"])
def test_a_key_that_is_deleted_in_mid_run_is_told_at_once(cloud, ledger, path):
    with ibm(ledger, patience=Patience(retry_seconds=600, settle_seconds=600, poll_seconds=0.02)) as backend:
        layer, before = layer_on(backend), len(cloud.requests())
        deleted(cloud, path=path)
        with pytest.raises(NotAuthorized, match=r"BXNIM0415E.*Make a new API key.*run the same again") as caught:
            step(layer)
        assert "No backend matches" not in str(caught.value)
        refused = [request for request in cloud.requests()[before:] if request[2] == 401]
        asked = [request for request in cloud.requests()[before:] if request[1] == "/identity/token"]
        assert len(refused) == len(asked) == 1


def test_a_token_that_was_revoked_is_renewed(cloud, ledger, undisturbed):
    """The key is valid: a token of an hour ago need not be."""
    with watched(cloud, ledger, patience=PATIENCE) as (backend, layer, watch):
        device: Any = backend.connection
        for client in device.service._api_clients.values():
            client._session.auth.manager.access_token = "revoked"
        assert torch.equal(step(layer), undisturbed)
        assert watch.counts == (1, 1)


def test_an_identity_service_out_of_order_is_waited_for(cloud, ledger, caplog):
    """Without a token nothing is sent, least of all the account's key; and nobody is told that the key is wrong."""
    cloud.set_up(token_seconds=5)
    with watched(cloud, ledger, patience=PATIENCE) as (_, layer, watch):
        cloud.inject("iam_outage", count=2)
        step(layer)
    assert "Trying again to" in caplog.text
    assert "for 60 s at most" in caplog.text
    with ibm(ledger, patience=HASTY) as backend:
        layer = layer_on(backend, seed=8)
        cloud.inject("iam_outage", count=None)
        with pytest.raises(ServiceUnavailable, match=r"Status code: 503.*nothing is sent twice") as caught:
            step(layer)
    assert "API key" not in str(caught.value)
    assert [request for request in watch.requests if request[2] == 401] == []
    assert len(watch.jobs) == 1


# While connecting -----------------------------------------------------------------------------------------------------

DEVICE = "/backends/ibm_manila"
REQUESTS = {  # a path, and what is asked there
    "/identity/token": "token",
    "/v3/resources/search": "instances",
    "/backends": "devices",
    f"{DEVICE}/configuration": "configuration",
    f"{DEVICE}/properties": "properties",
    f"{DEVICE}/status": "status",
    "/instances/usage": "usage",
    "/sessions": "session",
    "/jobs": "jobs",
    "/jobs/[^/]+": "job",
    "/jobs/[^/]+/results": "results",
}
ANSWERS = {401: NotAuthorized, 403: HardwareError, 407: HardwareError, 429: ServiceUnavailable, 503: ServiceUnavailable}


# Three of the answers to each, so that each answer is given to several.
ASKED = [(path, status) for i, path in enumerate(REQUESTS) for status in (401, "page", (403, 407, 429, 503)[i % 4])]


@pytest.mark.parametrize(("path", "status"), ASKED, ids=[f"{REQUESTS[path]}-{status}" for path, status in ASKED])
def test_any_request_may_be_refused(cloud, ledger, path, status):
    """Never a raw error of the client's, a device that is and is not there, or advice to save an account that is valid."""
    watch = Watch(cloud)
    if status == "page":
        cloud.inject("page", count=None, path=path)
    else:
        cloud.inject("echo", count=None, path=path, status=status)
    expected = ANSWERS.get(status, HardwareError)
    with ibm(ledger, patience=HASTY, mode="batch") as backend:
        try:
            step(layer_on(backend))
        except expected as error:
            said = str(error)
            assert "the devices of this account" not in said
            assert "There is no account" not in said
            assert TOKEN not in said
            assert ("save_account" in said) == (status == 401 and path in ("/identity/token", "/v3/resources/search"))
            if status == 407:
                assert "HTTPS_PROXY" in said
            assert "<html" not in said
        else:
            pytest.fail(f"{path} is not asked for")
    assert len(watch.jobs) <= 1
    cloud.clear()
    with ibm(ledger, patience=HASTY, mode="batch", max_jobs=1) as backend:
        step(layer_on(backend))
    assert len(watch.jobs) == 1


def test_a_wrong_key_is_told_at_once(server, ledger, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "another-key-that-nobody-knows")
    for functions in ("", "1"):  # with "1" the client does not look for instances, and would wait for a minute
        monkeypatch.setenv("QISKIT_FUNCTIONS_EXPERIMENTAL", functions)
        before = len(server.requests())
        with pytest.raises(NotAuthorized, match=r"BXNIM0415E.*Make a new API key") as caught:
            layer_on(ibm(ledger, patience=HASTY))
        assert "another-key" not in str(caught.value)
        assert len(server.requests()) - before < 9


# What never reaches the service ---------------------------------------------------------------------------------------


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        self.send_error(407, "Proxy Authentication Required")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def proxy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:password-of-proxy@127.0.0.1:{server.server_port}"
        server.shutdown()


def error_of(url: str, **options: Any) -> Exception:
    with requests.Session() as session:
        session.trust_env = False
        try:
            session.get(url, timeout=5, **options)
        except requests.RequestException as error:
            return error
    raise AssertionError(url)


def test_a_proxy_that_wants_a_login(proxy):
    meaning = meaning_of(error_of("https://quantum.invalid/api", proxies={"https": proxy}))
    assert (meaning.fault, meaning.tries) == (Fault.REFUSED, None)
    assert "HTTPS_PROXY" in meaning.remedy


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://no-such-host.invalid/"])
def test_no_way_to_the_service(url):
    meaning = meaning_of(error_of(url))
    assert meaning.fault is Fault.TRANSIENT
    assert "online" in meaning.remedy


def test_a_lost_connection_is_no_closed_session():
    lost = requests.exceptions.ConnectionError("url: /sessions/1 (Remote end closed connection without response)")
    assert meaning_of(lost).fault is Fault.TRANSIENT


def test_a_certificate_that_is_not_trusted():
    error = requests.exceptions.SSLError(ssl.SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"))
    assert meaning_of(error).fault is Fault.REFUSED
    assert "REQUESTS_CA_BUNDLE" in meaning_of(error).remedy
    assert meaning_of(requests.exceptions.SSLError("EOF occurred")).fault is Fault.TRANSIENT


def test_connecting_says_what_is_waited_for(cloud, ledger, caplog):
    caplog.set_level(logging.INFO, logger="qiskit_torch_bridge")
    with ibm(ledger) as backend:
        _ = backend.connection
    assert "Connecting with IBM's service" in caplog.text
