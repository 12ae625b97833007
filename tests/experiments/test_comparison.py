"""Figures from saved files, and runs side by side."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import QUICK, one_line, said_by_parser

from experiments import catalogue
from experiments.__main__ import main
from experiments.common.comparison import Compared, against_shots, shots_figure
from experiments.common.experiment import Experiment
from experiments.common.plots import learning_curves
from experiments.common.runner import run
from experiments.common.runs import RunFolder
from experiments.common.settings import TrainingSettings
from experiments.common.work import Work


@pytest.fixture(scope="session")
def finished(made_once):
    """A run of one training, ``single``, and one of two seeds and two variants, ``study``; leave them as they are."""

    def make(folder: Path) -> None:
        quick = ["mnist01", *QUICK, "--epochs", "2", "--run-dir"]
        assert main([*quick, str(folder / "single")]) == 0
        assert main([*quick, str(folder / "study"), "--seeds", "2", "--head", "both"]) == 0

    folder = made_once("finished", make)
    return {name: folder / name for name in ("single", "study")}


@pytest.fixture
def copy(finished, tmp_path):
    """Copies one of those runs to where it may be changed."""

    def copied(name: str, to: str | None = None) -> Path:
        return Path(shutil.copytree(finished[name], tmp_path / (to or name)))

    return copied


def figures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def accuracies(folder: Path) -> list[float]:
    return [RunFolder(path.parent).read_result()["test_accuracy"] for path in sorted(folder.glob("*/result.json"))]


class TestPlot:
    @pytest.mark.parametrize("name", ["single", "study"])
    @pytest.mark.slow
    def test_draws_the_same_figures_from_the_files(self, copy, monkeypatch, name):
        """Without data, and without training anything."""
        folder = copy(name)
        before = figures(folder)
        assert {"single": "predictions.png", "study": "seeds.png"}[name] in before
        for figure in before:
            (folder / figure).unlink()
        others = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

        def gone(*arguments: Any, **options: Any) -> None:
            raise AssertionError("the data are gone")

        monkeypatch.setattr("experiments.mnist01.load_digits_of", gone)
        monkeypatch.setattr(Work, "steps", gone)
        assert main(["plot", str(folder)]) == 0
        assert figures(folder) == before
        assert {path: path.stat().st_mtime_ns for path in others} == others

    @pytest.mark.usefixtures("no_pictures")
    def test_draws_what_has_finished_and_names_the_rest(self, copy, capsys):
        folder = copy("study")
        shutil.rmtree(folder / "classical-seed1")
        for figure in figures(folder):
            (folder / figure).unlink()
        assert "has not finished (classical-seed1 to come)" in one_line(capsys, "plot", str(folder))
        assert (folder / "quantum-seed0" / "loss.png").exists()
        assert not (folder / "comparison.png").exists()

    @pytest.mark.usefixtures("no_pictures")
    def test_a_run_that_cannot_be_drawn_does_not_keep_others_from_it(self, copy, tmp_path, capsys):
        folder = copy("single")
        (folder / "loss.png").unlink()
        assert "nowhere has no config.yaml" in one_line(capsys, "plot", str(tmp_path / "nowhere"), str(folder))
        assert (folder / "loss.png").exists()

    @pytest.mark.usefixtures("no_pictures")
    def test_settings_that_an_old_run_lacks_are_as_by_default(self, copy, tmp_path):
        """Of a run from before there was such a setting."""
        folder = copy("single", "old")
        lines = (folder / "config.yaml").read_text().splitlines()
        (folder / "config.yaml").write_text("\n".join(line for line in lines if not line.startswith("gradient:")))
        assert main(["plot", str(folder)]) == 0
        assert main(["compare", str(folder), str(copy("single")), "--out", str(tmp_path / "out")]) == 0
        assert "gradient" not in RunFolder(tmp_path / "out").read_rows("comparison.csv")[0]  # the same in both

    def test_run_without_an_epoch_and_folders_that_are_no_run(self, copy, tmp_path, capsys):
        folder = copy("single")
        (folder / "metrics.csv").unlink()
        assert "the run has not come so far" in one_line(capsys, "plot", str(folder))
        for other in (tmp_path, tmp_path / "nowhere"):
            assert "has no config.yaml" in one_line(capsys, "plot", str(other))

    def test_stages_are_told_apart(self):
        rows = [
            {"epoch": epoch, "stage": stage, "train_loss": 1, "train_accuracy": 1, "test_loss": 1, "test_accuracy": 1}
            for epoch, stage in enumerate(["a", "a", "b", "c"], start=1)
        ]
        for axes in learning_curves(rows, title="t").axes:
            dotted = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
            assert dotted == [2.5, 3.5]


DAMAGES = {
    "metrics.csv": [
        *(b"", b"epoch,stage\n", b"epoch,stage\n1,a\n", b"epoch,stage\n1\n"),
        *(b"\xff\xfe\x00\x81", b"a,b\n1,\x00\n"),
    ],
    "result.json": [b"", b"{", b"[1, 2]", b"{}", b'{"test_accuracy": "high"}', b"\xff\xfe\x81"],
    "config.yaml": [
        *(b"", b"a: [1\nb: 2\n", b"- 1\n", b"lr: 0.1\n"),
        *(b"experiment: nosuch\n", b"experiment: plot\n", b"\xff\xfe\x81"),
        *(b"experiment: mnist01\nepochs: many\n", b"experiment: mnist01\nepochz: 1\n"),
    ],
    "shown.npz": [b"", b"PK", b"no archive at all"],
    "predictions.csv": [b"", b"row,label\n1,2,3\n"],
}


def damages(*not_read: str) -> pytest.MarkDecorator:
    """All of them, but of files that are not read only the first and the last: no bytes, and others than were written."""
    return pytest.mark.parametrize(
        ("name", "content"),
        [
            (name, content)
            for name, contents in DAMAGES.items()
            for content in (dict.fromkeys((contents[0], contents[-1])) if name in not_read else contents)
        ],
    )


@pytest.mark.usefixtures("no_pictures")
class TestDamagedFiles:
    """One line that names the file."""

    @damages("result.json")
    def test_plot(self, copy, capsys, name, content):
        folder = copy("single")
        (folder / name).write_bytes(content)
        if name == "result.json":  # nothing that is drawn
            assert main(["plot", str(folder)]) == 0
        else:
            assert name in one_line(capsys, "plot", str(folder))

    @damages("shown.npz", "predictions.csv")
    def test_compare(self, copy, capsys, tmp_path, name, content):
        folder, out = copy("single"), tmp_path / "out"
        (folder / name).write_bytes(content)
        if name in ("shown.npz", "predictions.csv"):
            assert main(["compare", str(folder), "--out", str(out)]) == 0
        else:
            assert name in one_line(capsys, "compare", str(folder), "--out", str(out))
            assert not out.exists()

    @damages("metrics.csv", "result.json", "shown.npz", "predictions.csv")
    def test_resume(self, copy, capsys, name, content):
        """What follows from the checkpoint is written anew."""
        folder = copy("single")
        (folder / name).write_bytes(content)
        if name == "config.yaml":
            assert str(folder) in one_line(capsys, "mnist01", "--resume", "--run-dir", str(folder))
        else:
            assert main(["mnist01", "--resume", "--run-dir", str(folder)]) == 0
            assert len(RunFolder(folder).read_rows()) == 2
            assert RunFolder(folder).read_result()["epochs"] == 2


class TestCompare:
    def test_single_runs_and_studies(self, finished, tmp_path, capsys):
        study = accuracies(finished["study"])  # classical-seed0, classical-seed1, quantum-seed0, quantum-seed1
        assert main(["compare", *map(str, finished.values()), "--out", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        rows = RunFolder(tmp_path).read_rows("comparison.csv")
        assert [row["run"] for row in rows] == ["single", "study quantum", "study classical"]
        assert all(row["run"] in printed for row in rows)
        assert [row["seeds"] for row in rows] == [1, 2, 2]
        assert [row["head"] for row in rows] == ["quantum", "quantum", "classical"]
        assert rows[1]["median test accuracy"] == pytest.approx(sum(study[2:]) / 2)
        assert (rows[2]["min"], rows[2]["max"]) == (min(study[:2]), max(study[:2]))
        single = RunFolder(finished["single"]).read_result()
        assert rows[0]["median test accuracy"] == single["test_accuracy"]
        assert rows[1]["shots"] == 2 * single["shots"]
        assert "lr" not in rows[0]  # the same in all of them
        assert {"comparison.png", "seeds.png"} <= figures(tmp_path).keys()

    @pytest.mark.usefixtures("no_pictures")
    def test_same_name_in_different_places(self, copy, tmp_path):
        one, other = copy("single", "here/run"), copy("study", "there/run")
        assert main(["compare", str(one), str(other), "--out", str(tmp_path / "out")]) == 0
        rows = RunFolder(tmp_path / "out").read_rows("comparison.csv")
        assert [row["run"] for row in rows] == ["here/run", "there/run quantum", "there/run classical"]

    def test_same_run_twice_is_refused(self, finished, tmp_path, capsys):
        run = finished["single"]
        again = run / ".." / run.name
        assert "twice" in one_line(capsys, "compare", str(run), str(again), "--out", str(tmp_path / "out"))

    def test_unfinished_runs_are_named(self, finished, copy, tmp_path, capsys):
        out = ["--out", str(tmp_path / "out")]
        single, study = copy("single"), copy("study")
        (single / "result.json").unlink()
        said = one_line(capsys, "compare", str(finished["study"]), str(single), *out)
        assert f"{single} has not finished" in said
        (study / "quantum-seed1" / "result.json").unlink()
        shutil.rmtree(study / "classical-seed0")
        said = one_line(capsys, "compare", str(finished["single"]), str(study), *out)
        assert f"{study} has not finished (classical-seed0, quantum-seed1 to come)" in said
        assert not (tmp_path / "out").exists()

    @pytest.mark.usefixtures("no_pictures")
    def test_error_below(self, copy, tmp_path):
        """Of seeds with 0.9 and 1.0, both have an error below 0.11 and one has an error below 0.1."""
        study = copy("study")
        for seed, accuracy in ((0, 0.9), (1, 1.0)):
            part = RunFolder(study / f"quantum-seed{seed}")
            part.write_result({**part.read_result(), "test_accuracy": accuracy})
        for threshold, share in (("0.1", 0.5), ("0.11", 1.0), ("0.0", 0.0)):
            assert main(["compare", str(study), "--error-below", threshold, "--out", str(tmp_path)]) == 0
            row = RunFolder(tmp_path).read_rows("comparison.csv")[0]
            assert row[f"error below {float(threshold):g}"] == share

    @pytest.mark.parametrize(
        ("against", "column", "words"),
        [
            *(("epoch", "epoch", "epoch"), ("seconds", "seconds", "seconds")),
            *(("circuits", "circuits", "circuits so far"), ("total_shots", "shots", "shots spent so far")),
        ],
    )
    def test_against(self, finished, tmp_path, monkeypatch, against, column, words):
        drawn = {}
        monkeypatch.setattr(RunFolder, "write_figure", lambda folder, name, figure: drawn.update({name: figure}))
        assert main(["compare", str(finished["single"]), "--against", against, "--out", str(tmp_path)]) == 0
        rows = RunFolder(finished["single"]).read_rows()
        for axes, quantity in zip(drawn["comparison.png"].axes, ("test_loss", "test_accuracy"), strict=True):
            assert axes.get_xlabel() == words
            (line,) = axes.lines
            assert list(line.get_xdata()) == [row[column] for row in rows]
            assert list(line.get_ydata()) == [row[quantity] for row in rows]

    def test_typing_errors(self, capsys):
        assert "did you mean --against?" in said_by_parser(capsys, "compare", "--agains", "shots", "run")

    @pytest.mark.usefixtures("no_pictures")
    def test_different_experiments(self, finished, tmp_path, toy):
        assert main(["compare", str(finished["single"]), str(toy), "--out", str(tmp_path)]) == 0
        one, other = RunFolder(tmp_path).read_rows("comparison.csv")
        assert (one["experiment"], other["experiment"]) == ("mnist01", "toy")
        assert (one["head"], other["head"]) == ("quantum", "")
        assert (one["colour"], other["colour"]) == ("", "green")


@dataclass(frozen=True, kw_only=True)
class ToySettings(TrainingSettings):
    """A toy.

    Attributes:
        colour: An option of its own.
    """

    colour: str = "green"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The run of an experiment with an option of its own, and no training worth the name."""

    def train(settings: ToySettings, work: Work) -> dict[str, Any]:
        numbers = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "circuits", "shots")
        row = {"epoch": 1, "stage": "one"} | dict.fromkeys(numbers, 0.5)
        work.folder.write_rows("metrics.csv", [row])
        return row

    experiment = Experiment(
        name="toy", settings=ToySettings, train=train, figures=lambda folder, settings: None, cost=lambda *_: ""
    )
    genuine = catalogue.command_of
    monkeypatch.setattr(catalogue, "command_of", lambda name: experiment if name == "toy" else genuine(name))
    assert run(experiment, ["--run-dir", str(tmp_path / "toy-1")]) == 0
    return tmp_path / "toy-1"


def training(accuracy: float, *, seed: int = 0, circuits: int = 10, spent: int = 0, **settings: Any) -> Compared:
    """A training that came to an accuracy."""
    result = {"circuits": circuits, "shots": spent}
    return Compared([], accuracy, {"experiment": "toy", "head": "quantum", **settings}, result, seed)


class TestAgainstShots:
    """Trainings that differ in nothing but shots and seed are a curve."""

    def test_points_are_means_over_seeds_with_standard_errors(self):
        seeds = [training(accuracy, seed=seed, shots=100) for seed, accuracy in enumerate((0.7, 0.8, 0.9))]
        rows = against_shots([training(0.9, shots=1000), *seeds])
        assert [row["shots a circuit"] for row in rows] == [100, 1000]
        assert (rows[0]["seeds"], rows[0]["mean test accuracy"]) == (3, pytest.approx(0.8))
        assert rows[0]["standard error"] == pytest.approx(0.1 / 3**0.5)
        assert rows[1]["standard error"] == ""  # of a single seed nothing is known
        (axes,) = shots_figure(rows).axes
        (drawn,) = axes.containers
        assert axes.get_xscale() == "log"
        assert list(drawn.lines[0].get_xdata()) == [100, 1000]
        first, second = drawn.lines[2][0].get_segments()
        assert first[:, 1] == pytest.approx([0.8 - 0.1 / 3**0.5, 0.8 + 0.1 / 3**0.5])
        assert len(second) == 0 or not (second == second).all()

    def test_a_seed_that_comes_twice_counts_once(self):
        once = [training(0.7, seed=0, shots=100), training(0.9, seed=1, shots=100)]
        assert against_shots([*once, once[0]]) == against_shots(once)

    def test_other_settings_are_other_curves(self):
        """Means over different learning rates would be of nothing."""
        rows = against_shots([training(0.5, shots=100, lr=0.1), training(0.9, shots=100, lr=0.2)])
        assert [(row["curve"], row["seeds"]) for row in rows] == [("lr 0.1", 1), ("lr 0.2", 1)]

    def test_exact_values_are_a_level_line(self):
        exact, classical = training(0.9, shots=None), training(0.7, shots=100, circuits=0, head="classical")
        rows = against_shots([training(0.8, shots=100), exact, classical])
        assert [(row["curve"], row["shots are"]) for row in rows] == [
            *(("head quantum", "set"), ("head quantum", "exact"), ("head classical", "exact"))
        ]
        (axes,) = shots_figure(rows).axes
        levels = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert [line.get_ydata()[0] for line in levels] == [0.9, 0.7]
        assert all(line.get_label().endswith("(exact)") for line in levels)

    def test_of_a_schedule_the_shots_are_those_spent(self):
        growing = {"shots": 10, "shot_schedule": "growing", "last_shots": 90}
        rows = against_shots([training(0.8, spent=400, **growing), training(0.9, seed=1, spent=600, **growing)])
        assert [(row["shots a circuit"], row["shots are"], row["seeds"]) for row in rows] == [(50, "spent", 2)]
        (axes,) = shots_figure(rows).axes
        assert axes.lines[0].get_markerfacecolor() == "w"
        assert "shots spent" in axes.containers[0].get_label()

    def test_runs(self, finished, copy, tmp_path):
        """Of another number of shots, beside those that the run had; what it writes besides makes no other curve."""
        more, out = copy("study", "more"), tmp_path / "out"
        for config in (more / "config.yaml", *more.glob("*/config.yaml")):
            text = config.read_text().replace("shots: 50\n", "shots: 500\n")
            config.write_text(text.replace("gradient_variances: false\n", "gradient_variances: true\n"))
        assert main(["compare", str(finished["study"]), str(more), "--against", "shots", "--out", str(out)]) == 0
        rows = RunFolder(out).read_rows("shots.csv")
        assert [(row["curve"], row["shots a circuit"], row["seeds"]) for row in rows] == [
            *(("head quantum", 50, 2), ("head quantum", 500, 2), ("head classical", "", 2))
        ]
        assert rows[0]["mean test accuracy"] == pytest.approx(sum(accuracies(finished["study"])[2:]) / 2)
        assert (out / "comparison.png").exists()
        assert {row["shots a circuit"] for row in RunFolder(out).read_rows("comparison.csv")} == {50, 500}
