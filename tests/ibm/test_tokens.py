"""Keys, access tokens and passwords are nowhere, even where the service or a proxy echoes what it was sent."""

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import pytest
from ibm_cloud import TOKEN

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import ibm, layer_on, step

from qiskit_torch_bridge import HardwareError, Patience
from qiskit_torch_bridge.backends.ibm.faults import masked
from qiskit_torch_bridge.backends.ibm.recording import write_recording

pytestmark = pytest.mark.usefixtures("short_pauses")
PATIENCE = Patience(retry_seconds=0.2, longest_pause_seconds=0.1, settle_seconds=0.05, poll_seconds=0.02)


class Heard(logging.Handler):
    """All that is logged, by us and by IBM's client."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage() + repr(record.__dict__))


@contextmanager
def heard() -> Iterator[list[str]]:
    """What is logged and warned of within it; of the client what it logs by default."""
    handler = Heard()
    loggers = {name: logging.getLogger(name) for name in ("qiskit_torch_bridge", "qiskit_ibm_runtime")}
    levels = {name: logger.level for name, logger in loggers.items()}
    loggers["qiskit_torch_bridge"].setLevel(logging.DEBUG)
    for logger in loggers.values():
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield handler.texts
        handler.texts += [str(warning.message) for warning in caught]
    finally:
        for name, logger in loggers.items():
            logger.removeHandler(handler)
            logger.setLevel(levels[name])


def held_by(error: BaseException) -> Iterator[str]:
    """All that hangs on an exception: those that it hides, too, and what the frames of its traceback hold."""
    seen: list[BaseException] = []
    open_ones: list[BaseException | None] = [error]
    while open_ones:
        each = open_ones.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        open_ones += [each.__cause__, each.__context__]
        yield f"{each} {each!r} {vars(each)}"
        trace: TracebackType | None = each.__traceback__
        while trace is not None:
            if "qiskit_torch_bridge" in trace.tb_frame.f_code.co_filename:
                yield repr(trace.tb_frame.f_locals)
            trace = trace.tb_next


PLACES = [
    ("/identity/token", 400),
    ("/identity/token", 503),
    ("/v3/resources/search", 401),
    ("/backends", 500),
    ("/backends/[^/]+/configuration", 401),
    ("/backends/[^/]+/properties", 500),
    ("/instances/usage", 401),
    ("/jobs", 400),
    ("/jobs", 401),
    ("/jobs/[^/]+", 500),
    ("/jobs/[^/]+/results", 403),
]


@pytest.mark.parametrize(("path", "status"), PLACES)
@pytest.mark.parametrize("when", ["connecting", "later"])
def test_what_is_echoed_is_nowhere(cloud, tmp_path, ledger, path, status, when):
    errors: list[BaseException] = []
    with heard() as texts:
        backend = ibm(ledger, patience=PATIENCE)
        if when == "later":
            step(layer_on(backend))
        cloud.inject("echo", count=None, path=path, status=status)
        try:
            step(layer_on(backend, seed=8))
        except (HardwareError, ValueError) as error:
            errors.append(error)
        cloud.clear()
        step(layer_on(backend))
        device: Any = backend.connection
        clients = list(device.service._api_clients.values())
        secrets = [TOKEN, *(client._session.auth.manager.access_token for client in clients)]
        texts += [f"{thing!r} {vars(thing)}" for thing in (backend, backend.ledger, device)]
        texts += [repr(pickle.dumps(backend))]
        write_recording(backend.ledger, tmp_path / "recording.npz")
        backend.close()
    if when == "connecting" and path != "/instances/usage":
        assert errors
    assert all(secret not in text for error in errors for text in held_by(error) for secret in secrets)
    assert all(secret not in text for text in texts for secret in secrets)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {"ledger.sqlite", "recording.npz"} <= files.keys()
    assert all(secret.encode() not in content for content in files.values() for secret in secrets)
    for text in (*texts, *(text for error in errors for text in held_by(error))):
        assert "Bearer ey" not in text  # nor those of before


def test_a_key_in_words_before_there_is_a_service(server, tmp_path, monkeypatch):
    key = "wrong-key-that-has-no-name-before-it"
    monkeypatch.setenv("QISKIT_IBM_TOKEN", key)
    server.inject("iam_outage", count=None, status=400, says=f"I do not know {key}, sorry.")
    with pytest.raises(HardwareError, match=r"I do not know \*\*\*, sorry"):
        _ = ibm(tmp_path / "ledger.sqlite", patience=PATIENCE).connection
    server.clear()


def test_forms_of_secrets():
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    for text in (
        f"Authorization: Bearer {jwt}",
        f"{{'Authorization': 'apikey {TOKEN}'}}",
        f'{{"access_token": "{jwt}"}}',
        f"apikey={TOKEN}&grant_type=x",
        f"key {TOKEN} in words",
        "ProxyError('http://name:pass-word@proxy:3128')",
        "sent a%2Fb%3Dc",
    ):
        hidden = masked(text, [TOKEN, "a/b=c"])
        assert "***" in hidden
        assert not any(secret in hidden for secret in (jwt, TOKEN, "pass-word", "a%2Fb"))
    plain = "Bearer of bad news: https://quantum.cloud.ibm.com/jobs/abc@x, a basic gate and 3 tokens."
    assert masked(plain, [TOKEN]) == plain
