"""Fixtures of the tests of IBM devices."""

import time
from pathlib import Path

import pytest
import torch
from ibm_cloud import CloudServer


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger's file, which is not there yet."""
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where a ledger would be made."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("QTB_LEDGER", raising=False)
    return empty


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts, which grow to half a minute, are cut short."""
    genuine = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: genuine(min(seconds, 0.01)))


@pytest.fixture(scope="module")
def undisturbed(server: CloudServer, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The first step of every layer of ``ibm_training``, when nothing goes wrong."""
    from ibm_training import ibm, layer_on, step

    with ibm(tmp_path_factory.mktemp("undisturbed") / "ledger.sqlite") as backend:
        return step(layer_on(backend))
