"""Runs whose ledger is damaged, lost or out of reach: no wrong number, nothing paid twice, and a way on that works."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from ibm_cloud import CloudServer

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import full_disk, ibm, layer_on, step

from experiments.__main__ import main
from qiskit_torch_bridge.backends.ibm.errors import LedgerError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def first(cloud, path):
    """A step whose job is done."""
    with ibm(path) as backend:
        return step(layer_on(backend))


def poke(path: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(statement, values).rowcount == 1
        db.commit()


def as_of_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        for table in ("jobs", "circuits", "evaluations", "sessions", "events"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN seal")
        db.execute("ALTER TABLE jobs DROP COLUMN result_seal")
        db.execute("PRAGMA user_version = 1")
        db.commit()


def again(cloud: CloudServer, path: Path) -> tuple[torch.Tensor, int]:
    """The same step in a later process, and how many jobs it has sent."""
    before = len(cloud.requests("POST", "/jobs"))
    with ibm(path) as backend:
        found = step(layer_on(backend))
    return found, len(cloud.requests("POST", "/jobs")) - before


def test_a_ledger_of_an_earlier_version_goes_on(cloud, path, first):
    as_of_version_1(path)
    found, sent = again(cloud, path)
    assert torch.equal(found, first)
    assert sent == 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("damage", [b"", b"QISKIT and then nothing", b"\xff" * 200])
def test_damaged_circuits_are_transpiled_anew_and_no_job_is_sent(cloud, path, first, version, damage):
    """Jobs are known by what was asked for, not by the circuits' bytes."""
    if version == 1:
        as_of_version_1(path)
    poke(path, "UPDATE circuits SET circuits = ?", damage)
    for _ in range(2):
        found, sent = again(cloud, path)
        assert torch.equal(found, first)
        assert sent == 0


@pytest.mark.parametrize("change", ["key = 'another'", "state = 'cancelled'", "number = 7"])
def test_a_damaged_job_is_not_sent_again_until_it_is_given_up(cloud, path, first, change, capsys):
    before = len(cloud.jobs())
    poke(path, f"UPDATE jobs SET {change}")
    for _ in range(2):
        with pytest.raises(
            LedgerError, match=rf"damaged in jobs .*python -m experiments jobs {path} --discard-damaged"
        ):
            again(cloud, path)
    assert len(cloud.jobs()) == before
    assert main(["jobs", str(path)]) == 0
    assert "damaged" in capsys.readouterr().out

    assert main(["jobs", str(path), "--discard-damaged"]) == 0
    printed = capsys.readouterr().out
    assert "Given up: jobs " in printed
    assert cloud.jobs()[-1]["id"] in printed
    found, sent = again(cloud, path)
    assert torch.equal(found, first)
    assert sent == 1


def test_an_emptied_ledger_sends_nothing(cloud, path, first, tmp_path):
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match=r"is an empty file.*put back a copy of it"):
        again(cloud, path)
    copy.replace(path)
    found, sent = again(cloud, path)
    assert torch.equal(found, first)
    assert sent == 0


def test_a_ledger_that_is_removed_in_mid_run(cloud, path, first):
    with ibm(path) as backend:
        layer = layer_on(backend)
        assert torch.equal(step(layer), first)
        before = len(cloud.jobs())
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        with pytest.raises(LedgerError, match="removed, and was written anew"):
            step(layer)
        assert len(cloud.jobs()) == before
    found, sent = again(cloud, path)
    assert torch.equal(found, first)
    assert sent == 0


def test_a_full_disk_in_mid_run(cloud, path):
    before = len(cloud.jobs())
    with ibm(path) as backend:
        layer, _ = layer_on(backend), backend.ledger  # which makes the file
        with full_disk(path), pytest.raises(LedgerError, match=rf"{path} cannot be used.*make room"):
            step(layer)
        step(layer)
    assert len(cloud.jobs()) == before + 1
