"""``qtb check``: whether IBM hardware can be used, on a fake device and on a stand-in of IBM's service."""

from __future__ import annotations

import pytest
from ibm_cloud import TOKEN, Watch

pytest.importorskip("qiskit_ibm_runtime")

from experiments.__main__ import main as experiments_main
from qiskit_torch_bridge.commands import main


def test_no_account_is_needed_for_a_fake_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "fake_manila"]) == 0
    printed = capsys.readouterr().out
    assert "OK     layout: dressed, 4 qubits" in printed
    assert "parameter_shift  1,000  1     228,000" in printed
    assert "nothing was sent" in printed
    assert not any(tmp_path.iterdir())
    assert experiments_main(["ibm-check", "fake_manila"]) == 0
    assert capsys.readouterr() == (printed, "python -m experiments ibm-check is deprecated; it is now: qtb check\n")


def test_submits_only_if_asked(cloud, tmp_path, capsys):
    ledger, watch = ["--ledger", str(tmp_path / "check.sqlite")], Watch(cloud)
    assert main(["check", *ledger]) == 0
    printed = capsys.readouterr().out
    assert "OK     account: from the environment" in printed
    assert "OK     plan: premium" in printed
    assert "no (internal)" in printed
    assert watch.jobs == []
    assert not (tmp_path / "check.sqlite").exists()
    for count in (1, 2):  # another time, another job
        assert main(["check", "ibm_lagos", "--submit", *ledger]) == 0
        printed = capsys.readouterr().out
        assert "OK     job: P(1) = " in printed
        assert "s billed" in printed
        assert len(watch.jobs) == count
    assert TOKEN not in printed


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, ["ibm_fez"], "device: got 'ibm_fez', but this account has "),
        ({}, ["ibm_lima"], "device: ibm_lima takes no jobs at the moment"),
        ({}, ["--account", "nobody"], "account: there is none of the name 'nobody'"),
        ({"plan": "open", "used_seconds": 600}, ["ibm_manila"], "ten minutes in 28 days; its time is used up (600 s)"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(cloud, capsys, settings, arguments, says):
    cloud.set_up(**settings)
    assert main(["check", *arguments]) == 1
    *_, wrong, remedy = capsys.readouterr().out.splitlines()
    assert wrong.startswith("WRONG")
    assert says in wrong
    assert "What to do: " in remedy


def test_the_open_plan(cloud, capsys):
    cloud.set_up(plan="open", used_seconds=100)
    assert main(["check", "ibm_manila"]) == 0
    printed = capsys.readouterr().out
    assert "plan: open; no sessions, ten minutes in 28 days; 100 s used, 500 s left" in printed
    assert "steps in 500 s" in printed


def test_the_token_of_an_account_that_is_refused_is_hidden(cloud, capsys):
    cloud.inject("unauthorized", None)
    assert main(["check", "ibm_manila"]) == 1
    printed = capsys.readouterr()
    assert "WRONG  service: " in printed.out
    assert TOKEN not in printed.out + printed.err
