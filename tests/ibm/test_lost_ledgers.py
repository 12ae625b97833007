"""Runs whose ledger is damaged, lost or out of reach: no wrong number, nothing paid twice, and a way on that works."""

from pathlib import Path

import pytest
import torch
from ibm_cloud import CloudServer

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import ibm, layer_on, step
from test_ledger_damage import as_of_version_1, poke

from qiskit_torch_bridge.backends.ibm.errors import LedgerError
from qiskit_torch_bridge.commands import main


@pytest.fixture
def first(cloud, ledger):
    """A step whose job is done."""
    with ibm(ledger) as backend:
        return step(layer_on(backend))


def again(cloud: CloudServer, ledger: Path) -> tuple[torch.Tensor, int]:
    """The same step in a later process, and how many jobs it has sent."""
    before = len(cloud.requests("POST", "/jobs"))
    with ibm(ledger) as backend:
        found = step(layer_on(backend))
    return found, len(cloud.requests("POST", "/jobs")) - before


def assert_the_same_again(cloud: CloudServer, ledger: Path, first: torch.Tensor, *, sent: int = 0) -> None:
    found, now = again(cloud, ledger)
    assert torch.equal(found, first)
    assert now == sent


def test_a_ledger_of_an_earlier_version_goes_on(cloud, ledger, first):
    as_of_version_1(ledger)
    assert_the_same_again(cloud, ledger, first)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("damage", [b"", b"QISKIT and then nothing", b"\xff" * 200])
def test_damaged_circuits_are_transpiled_anew_and_no_job_is_sent(cloud, ledger, first, version, damage):
    """Jobs are known by what was asked for, not by the circuits' bytes."""
    if version == 1:
        as_of_version_1(ledger)
    poke(ledger, "UPDATE circuits SET circuits = ?", damage)
    for _ in range(2):
        assert_the_same_again(cloud, ledger, first)


@pytest.mark.parametrize("change", ["key = 'another'", "state = 'cancelled'", "number = 7"])
def test_a_damaged_job_is_not_sent_again_until_it_is_given_up(cloud, ledger, first, change, capsys):
    before = len(cloud.jobs())
    poke(ledger, f"UPDATE jobs SET {change}")
    for _ in range(2):
        with pytest.raises(LedgerError, match=rf"damaged in jobs .*qtb jobs {ledger} --discard-damaged"):
            again(cloud, ledger)
    assert len(cloud.jobs()) == before
    assert main(["jobs", str(ledger)]) == 0
    assert "damaged" in capsys.readouterr().out

    assert main(["jobs", str(ledger), "--discard-damaged"]) == 0
    printed = capsys.readouterr().out
    assert "Given up: jobs " in printed
    assert cloud.jobs()[-1]["id"] in printed
    assert_the_same_again(cloud, ledger, first, sent=1)


def test_an_emptied_ledger_sends_nothing(cloud, ledger, first, tmp_path):
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(ledger.read_bytes())
    ledger.write_bytes(b"")
    with pytest.raises(LedgerError, match=r"is an empty file.*put back a copy of it"):
        again(cloud, ledger)
    copy.replace(ledger)
    assert_the_same_again(cloud, ledger, first)


def test_a_ledger_that_is_removed_in_mid_run(cloud, ledger, first):
    with ibm(ledger) as backend:
        layer = layer_on(backend)
        assert torch.equal(step(layer), first)
        before = len(cloud.jobs())
        for file in ledger.parent.glob(f"{ledger.name}*"):
            file.unlink()
        with pytest.raises(LedgerError, match="removed, and was written anew"):
            step(layer)
        assert len(cloud.jobs()) == before
    assert_the_same_again(cloud, ledger, first)
