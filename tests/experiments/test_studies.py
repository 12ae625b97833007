"""Studies: cells measured side by side, kept as they finish, continued, and the same wherever they are measured."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import toy_study
from runs import assert_refused, heard_in_a_session, one_line, result, said_by_parser, start
from toy_study import LOG, STUDY, ToySettings, cells, infinite, measure, toy_process

from experiments.__main__ import main
from experiments.barren_plateau.plateau_study import STUDY as BARREN_PLATEAU
from experiments.common import runner
from experiments.common.cells import Cell, Journal, key_of, measured, seed_of
from experiments.common.runs import RunFolder
from experiments.common.studies import Findings, Study, Tables
from experiments.gradient_methods.method_study import STUDY as GRADIENT_METHODS

pytestmark = pytest.mark.usefixtures("no_pictures")


class Log:
    """What the cells of the toy study have said, and what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tell(self, word: str, number: int) -> None:
        (self.folder / f"{word}-{number}").touch()

    def untell(self, word: str, number: int) -> None:
        (self.folder / f"{word}-{number}").unlink()

    @property
    def started(self) -> list[tuple[int, int, int]]:
        """(cell's number, process, torch's threads) for each start."""
        path = self.folder / "started"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    @property
    def numbers(self) -> list[int]:
        return sorted(number for number, _, _ in self.started)


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    (tmp_path / "log").mkdir()
    return Log(tmp_path / "log")


def run(folder: Path, *arguments: str, study: Study[ToySettings] = STUDY) -> int:
    return runner.run(study, ["--run-dir", str(folder), *arguments])


def eventually(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(folder: Path) -> list[str]:
    return (folder / "cells.jsonl").read_text().splitlines()


def without_seconds(folder: Path) -> list[Any]:
    return sorted(json.dumps(json.loads(line) | {"seconds": 0}) for line in lines(folder))


def test_results_are_files(folder, log, capsys):
    assert run(folder, "--workers", "0", "--numbers", "3", "1", "2") == 0
    rows = RunFolder(folder).read_rows("measurements.csv")
    found = [(row["number"], row["draws"], row["square"]) for row in rows]
    assert found == [(3, 2, 9), (3, 2, 9), (1, 2, 1), (1, 2, 1), (2, 2, 4), (2, 2, 4)]
    found = result(folder)
    assert found == {"experiment": "toy", "seconds": found["seconds"], "cells": 3, "sum": 28}
    assert RunFolder(folder).read_rows("summary.csv") == [{"rows": 6}]
    assert (folder / "empty.png").exists()
    printed = capsys.readouterr().out
    assert "[3/3] number=2 draws=2" in printed


def test_each_table_has_its_file(tmp_path, log):
    def find_two(settings: ToySettings, tables: Tables) -> Findings:
        return Findings({name: len(rows) for name, rows in tables.items()}, {}, {})

    def cells_of_two(settings: ToySettings) -> list[Cell]:
        return [{**cell, "part": "odd" if cell["number"] % 2 else "even"} for cell in cells(settings)]

    study = replace(STUDY, make_cells=cells_of_two, find=find_two)
    assert run(tmp_path / "run", "--workers", "0", study=study) == 0
    assert [row["number"] for row in RunFolder(tmp_path / "run").read_rows("odd.csv")] == [1, 1, 3, 3]
    assert result(tmp_path / "run")["even"] == 2


def test_a_cells_rows_depend_on_the_seed_and_its_content_alone(tmp_path, log):
    assert run(tmp_path / "one", "--workers", "0", "--numbers", "1", "2", "3") == 0
    assert run(tmp_path / "two", "--workers", "0", "--numbers", "5", "3", "1") == 0
    assert run(tmp_path / "three", "--workers", "0", "--numbers", "1", "--seed", "1") == 0
    one, two, three = (set(without_seconds(tmp_path / name)) for name in ("one", "two", "three"))
    assert len(one & two) == 2
    assert not one & three
    draws = [row["draw"] for line in lines(tmp_path / "one") for row in json.loads(line)["rows"]]
    assert len(set(draws)) == len(draws)


def test_seeds_follow_content_not_order():
    one, other = {"a": 1, "b": "x"}, {"b": "x", "a": 1}
    assert key_of(one) == key_of(other)
    assert seed_of(0, one).entropy == seed_of(0, other).entropy
    assert seed_of(0, one).entropy != seed_of(1, one).entropy
    assert seed_of(0, one).entropy != seed_of(0, {"a": 2, "b": "x"}).entropy


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_rows_are_the_same_wherever_they_are_measured(tmp_path, log):
    from distributed import LocalCluster

    numbers = ["--numbers", *map(str, range(6))]
    assert run(tmp_path / "here", "--workers", "0", *numbers) == 0
    assert run(tmp_path / "one", "--workers", "1", *numbers) == 0
    assert run(tmp_path / "two", "--workers", "2", *numbers) == 0
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as cluster:
        assert run(tmp_path / "elsewhere", "--scheduler", cluster.scheduler_address, *numbers) == 0
    for name in ("one", "two", "elsewhere"):
        assert without_seconds(tmp_path / name) == without_seconds(tmp_path / "here")
        tables = [(tmp_path / each / "measurements.csv").read_bytes() for each in (name, "here")]
        assert tables[0] == tables[1]
    assert os.getpid() not in {process for _, process, _ in log.started[6:]}
    assert {threads for _, _, threads in log.started} == {1}


def test_torch_has_its_threads_back(log):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measured(measure, {"number": 1, "draws": 1}, 0).value is not None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert log.started[0][2] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_killed_worker_costs_only_the_cell_it_was_at(tmp_path, log):
    log.tell("wait", 3)
    killed = []

    def kill() -> None:
        eventually(lambda: (tmp_path / "run" / "cells.jsonl").exists() and len(lines(tmp_path / "run")) == 5)
        (victim,) = [process for number, process, _ in log.started if number == 3]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
        eventually(lambda: log.numbers.count(3) == 2)
        log.untell("wait", 3)

    killer = Thread(target=kill)
    killer.start()
    assert run(tmp_path / "run", "--workers", "2", "--numbers", *map(str, range(6))) == 0
    killer.join()
    assert log.numbers == [0, 1, 2, 3, 3, 4, 5]
    assert len({process for number, process, _ in log.started if number == 3}) == 2
    assert killed
    assert run(tmp_path / "whole", "--workers", "0", "--numbers", *map(str, range(6))) == 0
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "whole")


def test_a_cell_that_fails_is_named_and_tried_again(folder, log, capsys):
    log.tell("fail", 2)
    assert run(folder, "--workers", "0") == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("toy: number=2 draws=2 failed: RuntimeError: no square of 2 (toy_study.py, line ")
    assert f"python -m experiments toy --resume --run-dir {folder}" in printed.out
    assert len(lines(folder)) == 2
    assert not (folder / "result.json").exists()
    log.untell("fail", 2)
    assert run(folder, "--workers", "0", "--resume") == 0
    assert log.numbers == [1, 2, 2, 3]
    assert result(folder)["sum"] == 28


@pytest.mark.slow
@pytest.mark.usefixtures("forked_workers")
def test_a_cell_that_fails_on_a_worker_is_named(tmp_path, log, capsys):
    log.tell("fail", 2)
    assert run(tmp_path / "run", "--workers", "1") == 1
    assert "toy: number=2 draws=2 failed: RuntimeError: no square of 2" in capsys.readouterr().err
    assert len(lines(tmp_path / "run")) == 2


def test_numbers_that_are_none_fail_their_cell(tmp_path, capsys):
    study = replace(STUDY, measure=infinite)
    assert run(tmp_path / "run", "--workers", "0", "--numbers", "1", study=study) == 1
    assert "number=1 draws=2 failed: ValueError" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_study_goes_on_with_what_is_missing(tmp_path, folder, log):
    log.tell("wait", 3)
    options = ("--run-dir", str(folder), "--workers", "0")
    process = start(*options, program=toy_process)
    eventually(lambda: 3 in log.numbers)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(lines(folder)) == 2
    log.untell("wait", 3)
    assert run(folder, "--workers", "0", "--resume") == 0
    assert log.numbers == [1, 2, 3, 3]
    assert run(tmp_path / "whole", "--workers", "0") == 0
    for name in ("measurements.csv", "summary.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.99])
def test_a_torn_last_line_does_not_count(folder, log, kept):
    assert run(folder, "--workers", "0") == 0
    whole = (folder / "cells.jsonl").read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    torn = third[: kept if isinstance(kept, int) else int(kept * len(third))]
    (folder / "cells.jsonl").write_bytes(first + second + torn)
    (folder / "result.json").unlink()
    assert run(folder, "--workers", "0", "--resume") == 0
    assert log.numbers == [1, 2, 3, 3]
    assert len(lines(folder)) == 3
    assert [json.loads(line)["cell"]["number"] for line in lines(folder)] == [1, 2, 3]


def test_a_damaged_line_is_refused(folder, log):
    assert run(folder, "--workers", "0") == 0
    content = lines(folder)
    (folder / "cells.jsonl").write_text("\n".join([content[0], "[]", content[2]]) + "\n")
    with pytest.raises(ValueError, match=r"cells\.jsonl is damaged \(line 2: .*take that line out"):
        run(folder, "--workers", "0", "--resume")


def test_a_finished_run_is_drawn_again_without_measuring(folder, log):
    assert run(folder, "--workers", "0") == 0
    (folder / "measurements.csv").unlink()
    assert run(folder, "--resume") == 0
    assert log.numbers == [1, 2, 3]
    assert len(RunFolder(folder).read_rows("measurements.csv")) == 6


def test_other_settings_are_refused(tmp_path, folder, log):
    assert run(folder, "--workers", "0") == 0
    with pytest.raises(ValueError, match=r"--resume: the run in .* has other settings \(draws: got 3, expected 2"):
        run(folder, "--workers", "0", "--resume", "--draws", "3")
    with pytest.raises(FileExistsError, match="--run-dir"):
        run(folder, "--workers", "0")
    with pytest.raises(ValueError, match="--draws: got 0"):
        run(tmp_path / "new", "--workers", "0", "--draws", "0")
    with pytest.raises(ValueError, match=r"--workers: got 2 with --scheduler"):
        run(tmp_path / "new", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="got 2 cells, 1 of them different"):
        run(tmp_path / "new", "--numbers", "1", "1")
    assert not (tmp_path / "new").exists()


def test_a_run_may_grow_where_the_study_says_so(tmp_path, log):
    def up_to(settings: ToySettings) -> Sequence[Cell]:
        return [{"number": number, "draws": 1} for number in range(settings.draws)]

    study = replace(STUDY, make_cells=up_to, extendable=("draws",))
    assert run(tmp_path / "run", "--workers", "0", study=study) == 0
    assert run(tmp_path / "run", "--workers", "0", "--resume", "--draws", "4", study=study) == 0
    assert log.numbers == [0, 1, 2, 3]
    assert result(tmp_path / "run")["cells"] == 4


def test_dry_run_lists_what_is_missing(folder, log, capsys):
    assert run(folder, "--dry-run") == 0
    missing = [f"  number={number} draws=2" for number in (1, 2, 3)]
    assert capsys.readouterr().out.splitlines() == ["3 cells, 3 to be measured:", *missing]
    assert not folder.exists()
    log.tell("fail", 2)
    assert run(folder, "--workers", "0") == 1
    capsys.readouterr()
    assert run(folder, "--resume", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == ["3 cells, 1 to be measured:", "  number=2 draws=2"]


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_refused(tmp_path, log, monkeypatch):
    monkeypatch.setattr("experiments.common.cluster._SECONDS_TO_ANSWER", 1)
    with pytest.raises(OSError, match=r"--scheduler: got 'tcp://127\.0\.0\.1:1', where no Dask scheduler answers"):
        run(tmp_path / "run", "--scheduler", "tcp://127.0.0.1:1")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path, folder, log):
    """As a terminal does it: to the process and to all that it has started."""
    log.tell("wait", 3)
    options = ["--run-dir", str(folder), "--workers", "2"]
    process = start(*options, program=partial(heard_in_a_session, str(tmp_path), toy_process), warnings_are_errors=True)
    try:
        eventually(lambda: (folder / "cells.jsonl").exists() and len(lines(folder)) == 2 and 3 in log.numbers)
        os.killpg(process.pid, signal.SIGINT)
        process.join(240)
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # if it has not come to have a group
        process.join()
    printed, errors = ((tmp_path / name).read_text() for name in ("out", "err"))
    assert process.exitcode == 130, errors
    assert not errors
    command = f"python -m experiments toy --resume --run-dir {folder}"
    assert printed.splitlines()[-1] == f"Interrupted; continue with: {command}"
    log.untell("wait", 3)
    assert run(folder, "--workers", "0", "--resume") == 0
    assert log.numbers == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("study", "options"),
    [
        ("barren-plateau", ["--qubits", "1", "4", "6"]),
        ("barren-plateau", ["--qubits", "2", "4"]),
        ("barren-plateau", ["--deep", "1", "--shallow", "4"]),
        ("barren-plateau", ["--train-steps", "7"]),
        ("barren-plateau", ["--profile-qubits", "1"]),
        ("gradient-methods", ["--step-circuits", "mine"]),
        ("gradient-methods", ["--steps", "5"]),
        ("gradient-methods", ["--points", "3"]),
        ("gradient-methods", ["--budget-repeats", "1"]),
        ("gradient-methods", ["--smallest-step", "3"]),
    ],
)
def test_settings_of_studies_that_cannot_be_are_refused(study, options, folder, capsys):
    assert_refused(capsys, folder, f"{study}: {options[0]}: got", study, *options)


@pytest.mark.parametrize("study", [BARREN_PLATEAU, GRADIENT_METHODS], ids=["barren", "gradients"])
def test_cells_of_studies_are_different(study):
    every = study.make_cells(study.settings())
    assert len({key_of(cell) for cell in every}) == len(every)


def test_journal_of_nothing_is_empty(tmp_path):
    assert Journal(tmp_path / "cells.jsonl").read() == {}


# ------------------------------------------------------------------------------------------------- the engine


@pytest.mark.slow
def test_of_two_processes_that_resume_a_study_one_is_refused(folder, log):
    log.tell("fail", 2)
    assert run(folder, "--workers", "0") == 1
    log.untell("fail", 2)
    log.tell("wait", 2)
    options = ("--run-dir", str(folder), "--workers", "0", "--resume")
    process = start(*options, program=toy_process)
    eventually(lambda: log.numbers.count(2) == 2)
    with pytest.raises(BlockingIOError, match=r"^[^\n]*another process is at work in this run[^\n]*$"):
        run(folder, "--workers", "0", "--resume")
    log.untell("wait", 2)
    process.join()
    assert process.exitcode == 0
    assert log.numbers == [1, 2, 2, 3]
    assert result(folder)["sum"] == 28


def test_what_another_process_has_measured_until_the_lock_is_ours_is_not_measured_again(folder, log, monkeypatch):
    log.tell("fail", 2)
    assert run(folder, "--workers", "0") == 1
    log.untell("fail", 2)
    genuine = RunFolder.locked

    @contextmanager
    def locked_late(late: RunFolder) -> Iterator[None]:
        monkeypatch.setattr(RunFolder, "locked", genuine)
        assert run(folder, "--workers", "0", "--resume") == 0
        with genuine(late):
            yield

    monkeypatch.setattr(RunFolder, "locked", locked_late)
    assert run(folder, "--workers", "0", "--resume") == 0
    assert log.numbers == [1, 2, 2, 3]
    assert len(lines(folder)) == 3


def test_plot_draws_a_study_from_its_cells(folder, log, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "experiments.toy", toy_study)
    log.tell("fail", 2)
    assert main(["toy", "--run-dir", str(folder), "--workers", "0"]) == 1
    assert "(1 of 3 cells to come); finish it with --resume" in one_line(capsys, "plot", str(folder))
    log.untell("fail", 2)
    assert main(["toy", "--run-dir", str(folder), "--workers", "0", "--resume"]) == 0
    drawn = {name: (folder / name).read_bytes() for name in ("measurements.csv", "summary.csv", "empty.png")}
    for name in drawn:
        (folder / name).unlink()
    assert main(["plot", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in drawn} == drawn
    assert log.numbers == [1, 2, 2, 3]


def test_mistyped_options_of_a_study_are_refused(folder, capsys):
    options = ("--run-dir", str(folder))
    assert "did you mean --profile-qubits?" in said_by_parser(
        capsys, "barren-plateau", "--profil-qubits", "4", *options
    )
    assert "did you mean --points?" in said_by_parser(capsys, "gradient-methods", "--point", "2", *options)
    assert "fake Manila" in said_by_parser(capsys, "shot-noise", "--noises", "fake Manilla", *options)
    assert not folder.exists()
