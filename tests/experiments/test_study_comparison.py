"""Runs of a study side by side: do they agree?"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from runs import one_line, result

from experiments import catalogue, compare
from experiments.__main__ import main
from experiments.common.cells import Cell
from experiments.common.kinds import PositiveInt
from experiments.common.runner import run
from experiments.common.runs import RunFolder
from experiments.common.settings import StudySettings
from experiments.common.studies import Findings, Study, Tables
from experiments.common.study_comparison import agreement, scores_figure, side_by_side


@dataclass(frozen=True, kw_only=True)
class CoinSettings(StudySettings):
    """Coins.

    Attributes:
        tosses: Of each coin.
    """

    tosses: PositiveInt = 1000


def cells(settings: CoinSettings) -> list[Cell]:
    return [{"coin": coin, "tosses": settings.tosses} for coin in ("fair", "bent")]


def measure(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    heads = np.random.default_rng(seed).binomial(cell["tosses"], {"fair": 0.5, "bent": 0.2}[cell["coin"]])
    return [{"share": heads / cell["tosses"]}]


def find(settings: CoinSettings, tables: Tables) -> Findings:
    rows = tables["measurements"]
    errors = [math.sqrt(row["share"] * (1 - row["share"]) / row["tosses"]) for row in rows]
    shares = [
        {"coin": row["coin"], "share": row["share"], "its standard error": error, "sides": 2}
        for row, error in zip(rows, errors, strict=True)
    ]
    largest = max(row["share"] for row in rows)
    return Findings({"largest": largest, "by name": {"a": 1}}, {"shares": shares}, {"empty.png": Figure()})


COINS = Study(name="coins", settings=CoinSettings, make_cells=cells, measure=measure, find=find)


@pytest.fixture
def coins(tmp_path, monkeypatch):
    """Two runs of the study, of different seeds."""
    genuine = catalogue.command_of
    monkeypatch.setattr(catalogue, "command_of", lambda name: COINS if name == "coins" else genuine(name))
    folders = [str(tmp_path / f"seed{seed}") for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        assert run(COINS, ["--seed", str(seed), "--workers", "0", "--run-dir", folder]) == 0
    return folders


class TestCompare:
    def test_tables_are_side_by_side(self, coins, tmp_path, capsys):
        out = RunFolder(tmp_path / "out")
        capsys.readouterr()
        assert main(["compare", *coins, "--out", str(out.path)]) == 0
        printed = capsys.readouterr().out
        rows = out.read_rows("comparison.csv")
        assert [row["run"] for row in rows] == ["seed0", "seed1"] * 3
        assert [row["seed"] for row in rows[:2]] == [0, 1]
        assert "tosses" not in rows[0]  # the same in both
        one, other = (row for row in rows if row["table"] == "shares" and row["coin"] == "bent")
        error = math.hypot(one["its standard error"], other["its standard error"])
        assert one["z of share"] == ""
        assert other["z of share"] == pytest.approx((other["share"] - one["share"]) / error)
        results = [result(tmp_path / name) for name in ("seed0", "seed1")]
        assert [row["largest"] for row in rows[:2]] == [each["largest"] for each in results]
        assert "0 of 2 numbers differ" in printed
        assert (out.path / "comparison.png").exists()

    @pytest.mark.usefixtures("no_pictures")
    def test_a_run_alone_has_nothing_to_differ_from(self, coins, tmp_path):
        out = RunFolder(tmp_path / "out")
        assert main(["compare", coins[0], "--out", str(out.path)]) == 0
        assert "z of share" not in out.read_rows("comparison.csv")[0]

    @pytest.mark.usefixtures("no_pictures")
    def test_what_cannot_be_compared_is_refused(self, coins, tmp_path, capsys):
        out = ["--out", str(tmp_path / "out")]
        assert "expected trainings" in one_line(capsys, "compare", *coins, "--against", "shots", *out)
        journal = tmp_path / "seed1" / "cells.jsonl"
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:1]))
        said = one_line(capsys, "compare", *coins, *out)
        assert "seed1 has not finished (1 of 2 cells to come); finish it with --resume" in said
        training = tmp_path / "training"
        training.mkdir()
        (training / "config.yaml").write_text("experiment: mnist01\n")
        said = one_line(capsys, "compare", *coins, str(training), *out)
        assert "training (mnist01), expected runs of one study, or trainings only; compare them apart" in said
        assert not (tmp_path / "out").exists()


def row(name: str, value: float, error: float | str = 0.1, **others: Any) -> dict[str, Any]:
    return {"name": name, **others, "value": value, "value, standard error": error}


def scores(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[Any]:
    """The z of the other run's rows."""
    table = side_by_side({"one": one, "other": other})
    return [row["z of value"] for row in table.rows if row["run"] == "other"]


class TestSideBySide:
    def test_rows_that_are_about_the_same_follow_each_other(self):
        table = side_by_side({"one": [row("a", 1), row("b", 2)], "other": [row("b", 2.5), row("c", 3)]})
        assert [(each["run"], each["name"]) for each in table.rows] == [
            *(("one", "a"), ("one", "b"), ("other", "b"), ("other", "c"))
        ]
        assert next(iter(table.rows[0])) == "run"
        assert [each["z of value"] for each in table.rows] == ["", "", pytest.approx(0.5 / math.hypot(0.1, 0.1)), ""]

    def test_numbers_before_the_first_with_an_error_say_what_a_row_is_about(self):
        """Not how often it was measured."""
        assert scores([row("a", 1, shots=100)], [row("a", 1, shots=1000)]) == [""]
        assert scores([row("a", 1, trainings=2)], [row("a", 1, trainings=8)]) == [0]

    def test_without_an_error_there_is_no_z(self):
        assert scores([row("a", 1, "")], [row("a", 2)]) == [""]
        assert scores([row("a", 1, 0.0)], [row("a", 1, 0.0)]) == [0]
        assert scores([row("a", 1, 0.0)], [row("a", 0.9, 0.0)]) == [-math.inf]

    def test_of_an_interval_the_side_that_faces_the_other_run_counts(self):
        """A number that cannot be negative has no error downwards at zero."""
        width = 1.959964

        def interval(value: float, low: float, high: float) -> dict[str, Any]:
            return {"name": "a", "value": value, "95 % from": low, "to": high}

        at_zero, above = interval(0.0, 0.0, 3 * width), interval(10.0, 10 - 4 * width, 10 + 100 * width)
        assert "two such numbers have z = 0" in str(compare.__doc__)  # which --help says
        assert scores([at_zero], [interval(0.0, 0.0, width)]) == [0]
        assert scores([at_zero], [above]) == [pytest.approx(10 / 5, rel=1e-6)]
        assert scores([above], [at_zero]) == [pytest.approx(-10 / 5, rel=1e-6)]

    def test_runs_that_agree_and_runs_that_do_not(self):
        """In units of standard errors the differences of equal runs have a variance of 1; a shift of all is seen."""
        draws = np.random.default_rng(0).standard_normal((2, 400))
        one, other = ([row(str(number), value, 1.0) for number, value in enumerate(each)] for each in draws)
        z = np.array(scores(one, other))
        assert z.std() == pytest.approx(1, abs=4 / math.sqrt(2 * 400))
        assert 5 <= (abs(z) > 2).sum() <= 35  # about 18
        shifted = [row(each["name"], each["value"] + 3, 1.0) for each in other]
        table = side_by_side({"one": one, "other": shifted})
        assert int(agreement([table]).split()[0]) > 200
        (axes,) = scores_figure({"table": table}, "one").axes
        assert sum(len(line.get_xdata()) for line in axes.lines[1:]) == 400
