"""Experiments on IBM hardware from the command line: on fake devices, and on a stand-in of IBM's service."""

import json
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ibm_cloud import TOKEN
from runs import assert_refused, assert_same_run, ctrl_c_at, metrics, one_line, parsed, result, start, weights
from torch.optim.optimizer import register_optimizer_step_post_hook

pytest.importorskip("qiskit_ibm_runtime")

from experiments.__main__ import main
from experiments.common.hardware import opened
from experiments.common.options import yaml_of
from experiments.common.settings import HardwareSettings
from experiments.mnist01 import EXPERIMENT
from experiments.record_lesson import DEVICE, RECORDING, lesson, losses_beside, record
from qiskit_torch_bridge import Ledger, Packing, Replay
from qiskit_torch_bridge.backends.ibm import sending
from qiskit_torch_bridge.commands import main as qtb

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--dataset", "digits", "--train-per-digit", "2", "--test-per-digit", "2", "--shots", "20", "--seed", "1"]
REHEARSAL = [*SMALL, "--epochs", "1", "--backend", "ibm:fake_manila"]
STEPS = 4
JOBS = STEPS + 1  # and the test


def run(*arguments: str) -> int:
    return main(["mnist01", *arguments])


def jobs_of(folder: Path) -> list[Any]:
    ledger = Ledger(folder / "jobs.sqlite")
    entries = ledger.entries()
    ledger.close()
    return entries


def assert_nothing_paid_twice(folder: Path) -> None:
    """Each job of the run is in the ledger once, with its result."""
    entries = jobs_of(folder)
    assert [entry.state for entry in entries] == ["done"] * JOBS
    assert len({entry.key for entry in entries}) == JOBS


@pytest.fixture(scope="session")
def undisturbed(made_once):
    def make(folder: Path) -> None:
        assert run(*REHEARSAL, "--run-dir", str(folder / "run")) == 0

    return made_once("undisturbed", make) / "run"


@pytest.fixture(scope="session")
def on_the_cloud(made_once, running_server):
    """The same run through IBM's client, with nothing in its way."""

    def make(folder: Path) -> None:
        with running_server.addressed():
            assert run(*SMALL, "--epochs", "1", "--backend", "ibm:ibm_manila", "--run-dir", str(folder / "run")) == 0

    return made_once("cloud", make) / "run"


# Options.


def test_options_of_hardware_are_settings(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump({"backend": "ibm:ibm_fez", "ibm": {"mode": "batch", "options": {"twirling": {}}}}))
    settings = parsed(EXPERIMENT, "--config", str(config), "--ibm.max_qpu_seconds", "60", "--data-root", str(tmp_path))
    assert settings.backend == "ibm:ibm_fez"
    assert settings.ibm == HardwareSettings(mode="batch", options={"twirling": {}}, max_qpu_seconds=60.0)
    written = yaml_of("mnist01", settings)
    assert yaml.safe_load(yaml.safe_dump(written)) == written
    config.write_text(yaml.safe_dump(written))
    assert parsed(EXPERIMENT, "--config", str(config)) == settings


@pytest.mark.parametrize(
    ("given", "packing"),
    [("auto", Packing()), ("2", Packing(2)), ('{"regions": 2, "rotate": "shots"}', Packing(2, rotate="shots"))],
)
def test_rows_side_by_side(tmp_path, given, packing):
    """And what a run writes down of it means the same again."""
    settings = parsed(EXPERIMENT, *REHEARSAL, "--ibm.packing", given, "--data-root", str(tmp_path))
    config = tmp_path / "options.yaml"
    config.write_text(yaml.safe_dump(yaml_of("mnist01", settings)))
    again = parsed(EXPERIMENT, "--config", str(config))
    for each in (settings, again):
        with opened(each, ":memory:") as device:
            assert device.packing == packing


def test_simulators_have_no_options_of_hardware(tmp_path, capsys):
    assert "ibm" not in yaml_of("mnist01", parsed(EXPERIMENT, "--backend", "aer", "--data-root", str(tmp_path)))
    line = one_line(capsys, "mnist01", *SMALL, "--backend", "aer", "--ibm.max_jobs", "3", "--ibm.mode", "batch")
    assert "--ibm.mode, --ibm.max_jobs: got --backend aer, expected ibm:NAME" in line


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--ibm.options", '{"twirlling": {}}'], "twirlling"),
        (["--backend", "ibm:fake_nowhere"], "fake_nowhere"),
        (["--ibm.packing", '{"regionz": 2}'], "--ibm.packing: got ['regionz'], expected names among"),
        (["--ibm.fractional_gates", "true"], "'fake_manila' has no rx and rzz"),
        (["--workers", "2"], "--workers, --scheduler: got them for a run under torchrun or on hardware"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--workers, --scheduler: got them for"),
        (
            ["--backend", "ibm:"],
            "expected one of 'statevector', 'aer', 'pauli', 'noisy:NAME', 'fake:NAME', 'ibm:NAME', 'replay:FILE'",
        ),
    ],
)
def test_refuses_what_cannot_be_before_anything_is_written(folder, capsys, option, says):
    assert_refused(capsys, folder, says, "mnist01", *REHEARSAL, *option)


def test_help_names_the_words_and_the_options(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("fake:NAME", "ibm:NAME", "replay:FILE", "--ibm.max_qpu_seconds"))


@pytest.mark.parametrize(
    "experiment",
    [
        ["spirals", "--head", "quantum", "--depth", "1", "--backend", "ibm:fake_manila"],
        ["recipes", "--dataset", "digits", "--question", "dropout", "--backend", "ibm:fake_guadalupe"],
        ["pretrain", "--dataset", "digits", "--network", "quantum", "--backend", "ibm:fake_guadalupe"],
    ],
)
def test_dry_run_says_jobs_and_seconds_and_writes_nothing(tmp_path, monkeypatch, capsys, experiment):
    monkeypatch.chdir(tmp_path)
    assert main([*experiment, "--shots", "10", "--dry-run"]) == 0
    assert "s of QPU time." in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


# A run, and what is left of it.


def test_a_step_is_a_job(undisturbed):
    assert_nothing_paid_twice(undisturbed)
    came_to = result(undisturbed)
    assert (came_to["backend"], came_to["jobs"], came_to["qpu_seconds"]) == ("ibm:fake_manila", JOBS, None)
    estimated = sum(entry.estimated_seconds for entry in jobs_of(undisturbed))
    assert came_to["qpu_seconds_estimated"] == pytest.approx(estimated, abs=1e-3)
    (measured,) = came_to["measured"]
    assert measured["backend"] == "fake_manila"
    assert measured["calibrated"] == sorted({entry.calibrated for entry in jobs_of(undisturbed)})
    assert "qiskit" in measured["versions"]
    assert all(0 <= qubit < 5 for layout in measured["layouts"] for qubit in layout)


def test_settings_hold_the_word(undisturbed):
    settings = yaml.safe_load((undisturbed / "config.yaml").read_text())
    assert settings["backend"] == "ibm:fake_manila"
    assert settings["ibm"]["mode"] == "job"
    assert torch.load(undisturbed / "checkpoint.pt", weights_only=True)["settings"] == settings


def test_dry_run_says_what_the_run_then_costs(undisturbed, capsys):
    assert run(*REHEARSAL, "--dry-run") == 0
    assert f"{JOBS} jobs, {round(result(undisturbed)['qpu_seconds_estimated'])} s" in capsys.readouterr().out


def test_fake_devices_without_jobs_train(folder):
    assert run(*SMALL, "--epochs", "1", "--backend", "fake:manila", "--run-dir", str(folder)) == 0
    assert "jobs" not in result(folder)
    assert not (folder / "jobs.sqlite").exists()


# Stopped, and continued.


@pytest.mark.slow
def test_a_budget_stops_a_run_and_a_larger_one_continues_it(folder, capsys, undisturbed):
    capsys.readouterr()
    assert run(*REHEARSAL, "--ibm.max_jobs", "2", "--run-dir", str(folder)) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("mnist01: max_jobs: ")
    assert f"continue with: python -m experiments mnist01 --resume --run-dir {folder}" in printed.out
    assert "--ibm.max_jobs" in printed.out
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    assert run("--resume", "--run-dir", str(folder)) == 1
    assert run("--resume", "--ibm.max_jobs", "9", "--run-dir", str(folder)) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["ibm"]["max_jobs"] == 9
    assert_same_run(folder, undisturbed)
    assert_nothing_paid_twice(folder)


def test_other_options_are_the_run_s(tmp_path, capsys, undisturbed):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    line = one_line(capsys, "mnist01", "--resume", "--ibm.optimization_level", "3", "--run-dir", str(folder))
    assert "ibm.optimization_level: got 3, expected 2" in line


@pytest.mark.slow
def test_ctrl_c_before_the_first_checkpoint(folder, capsys, undisturbed):
    with ctrl_c_at(1, "nll_loss"):
        assert run(*REHEARSAL, "--run-dir", str(folder)) == 130
    assert "--resume --run-dir" in capsys.readouterr().out
    assert not (folder / "checkpoint.pt").exists()
    assert len(jobs_of(folder)) == 1
    assert run("--resume", "--run-dir", str(folder)) == 0
    assert_same_run(folder, undisturbed)
    assert_nothing_paid_twice(folder)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 4])
def test_killed(folder, undisturbed, jobs):
    process = start("mnist01", *REHEARSAL, "--run-dir", str(folder))
    while not ((folder / "jobs.sqlite").is_file() and len(jobs_of(folder)) >= jobs):
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert run("--resume", "--run-dir", str(folder)) == 0
    assert_same_run(folder, undisturbed)
    done = [entry.key for entry in jobs_of(folder) if entry.state == "done"]
    assert len(done) == len(set(done)) == JOBS


@pytest.mark.slow
def test_seeds_share_the_ledger_and_the_caps(folder, capsys):
    two = [*REHEARSAL, "--seeds", "2", "--ibm.max_jobs", str(2 * JOBS - 1), "--run-dir", str(folder)]
    assert run(*two) == 1
    assert run("--resume", "--ibm.max_jobs", str(2 * JOBS), "--run-dir", str(folder)) == 0
    assert f"ibm:fake_manila: {2 * JOBS} jobs" in capsys.readouterr().out
    assert result(folder)["jobs"] == len(jobs_of(folder)) == 2 * JOBS
    parts = [folder / "quantum-seed1", folder / "quantum-seed2"]
    assert [result(part)["jobs"] for part in parts] == [JOBS, JOBS]
    assert not any((part / "jobs.sqlite").exists() for part in parts)
    assert run("--resume", "--epochs", "2", "--ibm.max_jobs", "99", "--run-dir", str(parts[0])) == 0
    assert result(parts[0])["jobs"] == 2 * JOBS
    assert len(jobs_of(folder)) == 3 * JOBS


# Recorded and replayed.


def test_a_recorded_run_is_replayed(tmp_path, undisturbed, capsys):
    recording = tmp_path / "run.npz"
    assert main(["jobs", str(undisturbed), "--record", str(recording)]) == 0
    printed = capsys.readouterr()
    assert f'"replay:{recording}"' in printed.out
    assert printed.err == "python -m experiments jobs is deprecated; it is now: qtb jobs, and qtb record for --record\n"
    again = tmp_path / "again"
    assert run(*SMALL, "--epochs", "1", "--backend", f"replay:{recording}", "--run-dir", str(again)) == 0
    assert metrics(again) == metrics(undisturbed)
    assert all(torch.equal(weights(again)[name], weight) for name, weight in weights(undisturbed).items())
    mine, recorded = result(again), result(undisturbed)
    assert mine["measured"] == recorded["measured"]
    assert {key: mine[key] for key in ("jobs", "qpu_seconds")} == {"jobs": JOBS, "qpu_seconds": None}
    assert mine["qpu_seconds_estimated"] == pytest.approx(recorded["qpu_seconds_estimated"], abs=2e-3)


def test_a_recording_is_not_written_over(tmp_path, capsys):
    file = tmp_path / "there.npz"
    file.write_bytes(b"something else")
    assert "exists" in one_line(capsys, "record-lesson", str(file))
    assert file.read_bytes() == b"something else"
    file.rename(losses_beside(file))
    assert f"{file.name}.json exists" in one_line(capsys, "record-lesson", str(file))
    assert not file.exists()


@contextmanager
def rounding_in_another_way() -> Iterator[None]:
    """Within it, the last digit of every weight is another after each step, as it may be on another processor."""

    def nudge(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in optimizer.param_groups[0]["params"]:
            weight.data.mul_(1 + torch.finfo(weight.dtype).eps)

    hook = register_optimizer_step_post_hook(nudge)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
def test_the_lesson_that_comes_with_the_project(tmp_path):
    again = tmp_path / "again.npz"
    measured, replayed = record(again), lesson(f"replay:{again}")
    assert replayed.losses == measured.losses == json.loads(losses_beside(again).read_text())["losses"]
    assert torch.equal(replayed.scores, measured.scores)
    with rounding_in_another_way():
        kept = lesson(f"replay:{RECORDING}")
        elsewhere = record(tmp_path / "elsewhere.npz")
        assert lesson(f"replay:{tmp_path / 'elsewhere.npz'}").losses == elsewhere.losses != measured.losses
    recorded = json.loads(losses_beside(RECORDING).read_text())["losses"]
    assert kept.losses == pytest.approx(recorded, rel=1e-5)
    assert lesson(f"replay:{RECORDING}").losses == pytest.approx(recorded, rel=1e-5)
    for came_to in (replayed, kept, elsewhere):
        assert came_to.losses[-1] < 0.1 < came_to.losses[0]
        assert (came_to.scores[:, 0] > 0).tolist() == [False, True, True, False]
    assert RECORDING.stat().st_size < 200_000
    assert {passport.backend for passport in Replay(RECORDING).passports} == {DEVICE}


# The list of jobs.


def test_jobs_are_listed_without_an_account(undisturbed, capsys):
    assert qtb(["jobs", str(undisturbed), "--events"]) == 0
    by_folder = capsys.readouterr().out
    assert f"{JOBS} jobs, 16 circuits, 320 shots" in by_folder
    assert all(entry.job_id in by_folder for entry in jobs_of(undisturbed))
    assert "self-test: " in by_folder
    assert main(["jobs", str(undisturbed), "--events"]) == 0
    assert capsys.readouterr().out == by_folder


def test_the_account_of_the_run_is_used(tmp_path, monkeypatch, undisturbed):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["ibm"].update(account="teaching", instance="open")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    accounts = []

    def note_account(options: Namespace) -> int:
        accounts.append((options.account, options.instance, options.cancel))
        return 0

    monkeypatch.setattr("experiments.earlier_names.ledgers.main", note_account)
    for options in ([], ["--collect"], ["--cancel", "1", "--account", "research"]):
        assert main(["jobs", str(folder), *options]) == 0
    assert accounts == [(None, None, None), ("teaching", "open", None), ("research", "open", "1")]


# Through IBM's own client.


def test_bills_are_shown_beside_the_estimate(on_the_cloud):
    assert_nothing_paid_twice(on_the_cloud)
    came_to = result(on_the_cloud)
    assert came_to["qpu_seconds"] == sum(entry.usage_seconds for entry in jobs_of(on_the_cloud)) > 0
    assert not any(TOKEN.encode() in path.read_bytes() for path in on_the_cloud.rglob("*") if path.is_file())


def test_jobs_are_collected_while_nobody_trains(folder, monkeypatch, capsys, on_the_cloud, cloud):
    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    before = len(cloud.jobs())
    cloud.set_device("ibm_manila", "paused")
    with monkeypatch.context() as patch:
        patch.setattr(sending.time, "sleep", press)
        assert run(*SMALL, "--epochs", "1", "--backend", "ibm:ibm_manila", "--run-dir", str(folder)) == 130
    assert [entry.state for entry in jobs_of(folder)] == ["submitted"]
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "")
    assert main(["jobs", str(folder)]) == 0
    assert "submitted" in capsys.readouterr().out
    monkeypatch.setenv("QISKIT_IBM_TOKEN", TOKEN)
    cloud.set_device("ibm_manila", "online")
    assert main(["jobs", str(folder), "--collect"]) == 0
    assert [entry.state for entry in jobs_of(folder)] == ["done"]
    assert run("--resume", "--run-dir", str(folder)) == 0
    assert len(cloud.jobs()) == before + JOBS
    assert_same_run(folder, on_the_cloud)
    assert_nothing_paid_twice(folder)


def test_no_way_to_the_service(tmp_path, folder, monkeypatch, capsys, cloud):
    monkeypatch.delenv("QISKIT_IBM_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_refused(capsys, folder, "save_account", "mnist01", *SMALL, "--backend", "ibm:ibm_manila")
