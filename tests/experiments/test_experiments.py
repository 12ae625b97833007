"""The experiments from the command line: what they write, what they refuse, and that they can be interrupted."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import runs
import torch
import yaml
from runs import (
    CONFIGS,
    assert_refused,
    assert_same_run,
    ctrl_c_at,
    figures_not_rendered,
    metrics,
    one_line,
    parsed,
    result,
    said_by_parser,
    spent_as_said,
)

from experiments.__main__ import main
from experiments.catalogue import COMMANDS, TOOLS, settings_of
from experiments.common.data import load_digits_of
from experiments.common.options import flat, parse
from experiments.common.runs import RunFolder
from experiments.mnist01 import EXPERIMENT

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL, QUICK = [*runs.SMALL, "--seed", "3"], [*runs.QUICK, "--seed", "3"]


def command_of_file(path: Path) -> str:
    """The experiment or study that a YAML file is for."""
    return yaml.safe_load(path.read_text()).get("experiment", path.stem.split("-")[0])


def run(*arguments: str) -> int:
    return main(["mnist01", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, apart from its lock."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs the quick settings for some epochs, once, and copies the run to where it may be changed."""
    place = tmp_path_factory.mktemp("finished")

    def copied(epochs: int, to: Path) -> Path:
        folder = place / str(epochs)
        if not folder.exists():
            with figures_not_rendered():
                assert run(*QUICK, "--epochs", str(epochs), "--run-dir", str(folder)) == 0
        return Path(shutil.copytree(folder, to))

    return copied


def test_lists_experiments(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*COMMANDS, *TOOLS])


def test_unknown_experiment(capsys):
    assert main(["mnist99"]) == 2
    assert "mnist99" in capsys.readouterr().err


def test_dry_run_prints_the_cost_and_writes_nothing(folder, capsys):
    assert run("--dry-run", "--run-dir", str(folder)) == 0
    printed = capsys.readouterr().out
    assert "A step of 1 example(s): 3 circuits, 300 shots, 2 backend calls." in printed
    assert "The run of 20 epochs: 14,000 circuits, 1,400,000 shots, 8,020 backend calls." in printed
    assert not folder.exists()


def test_dry_run_says_what_a_run_then_costs(folder, capsys):
    spent, _ = spent_as_said(capsys, folder, "The run of 1 epochs", "mnist01", *QUICK, "--epochs", "1")
    assert spent["circuits"] == 12 * 3 + 10


@pytest.mark.figures
@pytest.mark.parametrize("head", ["quantum", "classical"])
def test_run_folder(folder, head):
    assert run(*QUICK, "--epochs", "2", "--head", head, "--run-dir", str(folder)) == 0
    numbers = {"config.yaml", "metrics.csv", "result.json", "checkpoint.pt", "predictions.csv", "shown.npz"}
    expected = numbers | {"loss.png", "predictions.png", "confusion.png"}
    if head == "quantum":
        expected.add("circuit.png")
    found = set(contents(folder))
    (events,) = (name for name in found if name.startswith("tensorboard/events.out.tfevents."))
    assert found - {events} == expected
    assert len(metrics(folder)) == 2
    came_to = result(folder)
    assert {"test_accuracy", "seconds", "circuits", "shots"} <= came_to.keys()
    assert came_to["test_accuracy"] == float(metrics(folder)[-1]["test_accuracy"])
    assert (came_to["circuits"] > 0) == (head == "quantum")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["batch_size"], settings["seed"], settings["head"]) == (4, 3, head)


@pytest.mark.parametrize(
    "backend", [["--backend", "aer", "--shots", "20"], ["--backend", "statevector", "--shots", "null"]]
)
def test_backends_from_the_command_line(folder, backend):
    assert run(*SMALL, *backend, "--epochs", "1", "--run-dir", str(folder)) == 0
    assert (result(folder)["shots"] > 0) == (backend[1] == "aer")


def test_config_file_and_overrides(tmp_path, folder):
    config = tmp_path / "settings.yaml"
    config.write_text("{epochs: 5, lr: 0.01, backend: statevector, shots: null, dataset: digits}")
    assert run("--config", str(config), "--epochs", "1", *SMALL, "--run-dir", str(folder)) == 0
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["epochs"], settings["lr"], settings["shots"]) == (1, 0.01, None)
    again = tmp_path / "again"
    assert run("--config", str(folder / "config.yaml"), "--run-dir", str(again)) == 0
    assert_same_run(folder, again)


def test_same_seed_same_run_and_other_seed_another(tmp_path, finished):
    one = finished(1, tmp_path / "one")
    for name, seed in (("two", "3"), ("three", "4")):
        assert run(*QUICK, "--seed", seed, "--epochs", "1", "--run-dir", str(tmp_path / name)) == 0
    assert_same_run(one, tmp_path / "two")
    assert metrics(one) != metrics(tmp_path / "three")


def test_interrupted_run_resumes_to_the_last_bit(tmp_path, capsys, finished):
    straight, broken = finished(3, tmp_path / "straight"), tmp_path / "broken"
    with ctrl_c_at(6, "nll_loss"):  # in the middle of the second epoch of three steps and a test
        assert run(*QUICK, "--epochs", "3", "--run-dir", str(broken)) == 130
    state = RunFolder(broken).read_checkpoint()
    assert (state["epoch"], state["step"]) == (1, 2)
    assert "--resume" in capsys.readouterr().out
    assert run("--resume", "--run-dir", str(broken)) == 0
    assert_same_run(straight, broken)


def test_ctrl_c_during_the_last_test_stops_too(tmp_path):
    """Or a run of several trainings would go on with the next."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(*QUICK, "--epochs", "1", "--head", "classical", "--run-dir", str(straight)) == 0
    with ctrl_c_at(4, "nll_loss") as calls:  # three steps and a test
        assert run(*QUICK, "--epochs", "1", "--head", "classical", "--run-dir", str(broken)) == 130
    assert len(calls) == 4
    assert not (broken / "result.json").exists()
    assert run("--resume", "--run-dir", str(broken)) == 0
    assert_same_run(straight, broken)
    assert (broken / "loss.png").exists()


@pytest.mark.parametrize("trainings", [[], ["--seeds", "2"]])
def test_ctrl_c_before_the_training_leaves_nothing(tmp_path, monkeypatch, capsys, trainings):
    def pressing_ctrl_c(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.mnist01.load_digits_of", pressing_ctrl_c)
    assert run(*QUICK, *trainings, "--run-dir", str(tmp_path / "run")) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_killed_before_the_figures_of_a_training(folder):
    assert main(["mnist01", *QUICK, "--epochs", "1", "--head", "both", "--run-dir", str(folder)]) == 0
    figures = {path.relative_to(folder) for path in folder.rglob("*.png")}
    for path in [*(folder / "classical").glob("*.png"), folder / "result.json"]:
        path.unlink()
    assert main(["mnist01", "--resume", "--run-dir", str(folder)]) == 0
    assert {path.relative_to(folder) for path in folder.rglob("*.png")} == figures


def test_more_epochs_continue_a_finished_run(tmp_path, finished):
    straight, extended = finished(3, tmp_path / "straight"), finished(2, tmp_path / "extended")
    assert run("--resume", "--run-dir", str(extended), "--epochs", "3") == 0
    assert_same_run(straight, extended)


def refusal(capsys, *arguments: str) -> str:
    return one_line(capsys, "mnist01", *arguments)


def assert_left_alone(capsys, folder: Path, said: str, *arguments: str) -> None:
    """The run in the folder is refused with these words, and stays as it is."""
    before = contents(folder)
    assert said in refusal(capsys, *arguments, "--run-dir", str(folder))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("epochs", "arguments", "said"),
    [
        (1, [*QUICK, "--epochs", "1"], "--resume"),
        (1, ["--resume", "--lr", "0.5"], "lr: got 0.5, expected 0.001"),
        (2, ["--resume", "--epochs", "1"], "expected at least 2"),
    ],
)
def test_another_run_in_a_used_folder_is_refused(tmp_path, capsys, finished, epochs, arguments, said):
    assert_left_alone(capsys, finished(epochs, tmp_path / "run"), said, *arguments)


def test_runs_that_start_together_take_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.fresh(None, "mnist01").path, range(20)))
    assert len(set(folders)) == 20


@pytest.mark.parametrize("seed", [-1, 2**32, 2**62])
def test_seed_that_torch_does_not_take_is_refused(tmp_path, capsys, seed):
    said = said_by_parser(capsys, "mnist01", *QUICK, "--seed", str(seed), "--run-dir", str(tmp_path / "run"))
    assert "seed" in said
    assert not (tmp_path / "run").exists()


def test_place_for_runs_that_leads_nowhere_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(tmp_path / "gone")
    assert "'runs'" in refusal(capsys, *QUICK, "--epochs", "1")


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert "no config.yaml" in refusal(capsys, "--resume", "--run-dir", str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert "--run-dir" in refusal(capsys, "--resume")


def test_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, finished):
    straight, killed = finished(2, tmp_path / "straight"), tmp_path / "killed"
    killed.mkdir()
    (killed / "config.yaml").write_bytes((straight / "config.yaml").read_bytes())
    assert run("--resume", "--run-dir", str(killed)) == 0
    assert_same_run(straight, killed)


def test_checkpoint_of_another_model_is_refused(tmp_path, capsys, finished):
    folder = finished(1, tmp_path / "run")
    state = RunFolder(folder).read_checkpoint()
    state["model"]["0.weight"] = torch.zeros(3, 1, 5, 5)
    RunFolder(folder).write_checkpoint(state)
    assert_left_alone(capsys, folder, "model (it differs in 0.weight)", "--resume", "--epochs", "2")


@pytest.mark.parametrize("keep", [0, 1000])
def test_damaged_checkpoint_is_refused(tmp_path, capsys, keep, finished):
    folder = finished(1, tmp_path / "run")
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    assert_left_alone(capsys, folder, "no checkpoint that can be read", "--resume", "--epochs", "2")


SEVERAL = [["--seeds", "2"], ["--head", "both"], ["--seeds", "2", "--head", "both"]]
REFUSED = [
    (["--backend", "quantum"], "expected one of 'statevector', 'aer', 'pauli', 'noisy:NAME', 'fake:NAME'"),
    (["--gradient", "guess"], "expected one of"),
    (["--gradient", "adjoint"], "needs exact simulation"),
    (["--backend", "fake:nosuch"], "expected one of"),
    (["--data-root", "nowhere", "--dataset", "mnist"], "nowhere"),
    (["--train-per-digit", "174"], "expected at most 178"),
    (["--device", "nosuch"], "--device: got 'nosuch'"),
]


# One training and several; how there come to be several is another with each.
@pytest.mark.parametrize(
    ("arguments", "said", "trainings"),
    [(*refused, trainings) for place, refused in enumerate(REFUSED) for trainings in ([], SEVERAL[place % 3])],
)
def test_bad_options_are_refused_before_anything_is_written(folder, capsys, arguments, said, trainings):
    if "fake:nosuch" in arguments:
        pytest.importorskip("qiskit_ibm_runtime")
    assert_refused(capsys, folder, said, "mnist01", *SMALL, *arguments, *trainings)


@pytest.mark.parametrize(
    "arguments", [["--shots", "0"], ["--lr", "-1"], ["--batch-size", "0"], ["--train-per-digit", "0"]]
)
def test_bad_numbers_are_refused(arguments, capsys):
    key = arguments[0].removeprefix("--").replace("-", "_")
    assert f" {key}: got {arguments[1]}, expected" in said_by_parser(capsys, "mnist01", *arguments)


class TestData:
    def test_embedded_digits(self):
        data = load_digits_of((0, 1), train_per_digit=100, test_per_digit=50)
        assert data.train.inputs.shape == (200, 1, 28, 28)
        assert data.test.inputs.shape == (100, 1, 28, 28)
        assert data.train.labels.bincount().tolist() == [100, 100]
        assert data.test.labels.bincount().tolist() == [50, 50]
        assert data.train.inputs.min() >= 0
        assert data.train.inputs.max() <= 1
        train = {image.numpy().tobytes() for image in data.train.inputs}
        assert not any(image.numpy().tobytes() in train for image in data.test.inputs)

    @pytest.mark.parametrize(("where", "ones"), [(None, 0.95), ("data_root", 0.85)], ids=["embedded", "mnist"])
    def test_zeros_are_hollow_and_ones_are_not(self, request, where, ones):
        """The labels belong to the images: the centre of a zero is empty."""
        root = where and request.getfixturevalue(where)
        data = load_digits_of((0, 1), train_per_digit=100, test_per_digit=50, data_root=root)
        assert data.train.inputs.shape == (200, 1, 28, 28)
        centre = data.train.inputs[:, 0, 12:16, 12:16].mean(dim=(1, 2))
        assert (centre[data.train.labels == 0] < 0.5).float().mean() > 0.95
        assert (centre[data.train.labels == 1] > 0.5).float().mean() > ones

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
            load_digits_of((0, 1), train_per_digit=1, test_per_digit=1, data_root=tmp_path)

    @pytest.mark.parametrize("keep", [0, 3, 10, 5000])
    def test_truncated_file(self, tmp_path, data_root, keep):
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for path in (data_root / "MNIST" / "raw").iterdir():
            (raw / path.name).symlink_to(path)
        damaged = raw / "t10k-labels-idx1-ubyte"
        content = damaged.read_bytes()
        damaged.unlink()
        damaged.write_bytes(content[:keep])
        for download in (False, True):
            with pytest.raises(ValueError, match=f"t10k-labels-idx1-ubyte is damaged: got {keep} bytes"):
                load_digits_of((0, 1), train_per_digit=1, test_per_digit=1, data_root=tmp_path, download=download)
        assert damaged.stat().st_size == keep

    def test_environment_names_the_data_root(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("QTB_DATA", str(tmp_path / "elsewhere"))
        assert run("--run-dir", str(tmp_path / "run")) == 1
        assert "elsewhere" in capsys.readouterr().err


PRICED_ELSEWHERE = ("wide-complete", "recipes-default", "hardware-cost-small", "optimizers-small", "transfer-digits")
"""Those that tests of their experiments price too."""


class TestConfigurations:
    """The YAML files that come with the experiments."""

    @pytest.mark.parametrize(
        "path",
        [
            pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in PRICED_ELSEWHERE))
            for path in sorted(CONFIGS.glob("*.yaml"))
        ],
    )
    @pytest.mark.usefixtures("data_root")
    def test_parses_and_says_what_it_costs(self, path, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main([command_of_file(path), "--config", str(path), "--dry-run"]) == 0
        assert capsys.readouterr().out.strip()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_parses_into_what_it_says(self, path):
        name, said = command_of_file(path), yaml.safe_load(path.read_text())
        settings = flat(parse(name, settings_of(name), ["--config", str(path)])[1])
        found = {
            key: list(settings[key]) if isinstance(settings[key], tuple) else settings[key]
            for key in said.keys() - {"experiment"}
        }
        assert found == {key: said[key] for key in found}

    def test_mnist01_published(self, tmp_path, capsys):
        """The published settings are the experiment's defaults."""
        for arguments in ([], ["--config", str(CONFIGS / "mnist01-published.yaml")]):
            assert run(*arguments, "--dataset", "digits", "--dry-run") == 0
        first, second = (capsys.readouterr().out.split("Data:"))[1:]
        assert first == second
        assert "The run of 20 epochs: 14,000 circuits, 1,400,000 shots" in first
        settings = parsed(EXPERIMENT, "--dataset", "mnist", "--data-root", str(tmp_path))
        assert EXPERIMENT.published(settings) == 1.0
        for changed in ({"dataset": "digits"}, {"head": "classical"}, {"shots": None}, {"epochs": 1}):
            assert EXPERIMENT.published(replace(settings, **changed)) is None

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("experiment: spirals\n", "'spirals' not among choices ['mnist01']"),
            ("epochz: 3\n", "'epochz' is not "),
            ("epochs: many\n", "epochs"),
        ],
    )
    def test_bad_file_is_refused(self, tmp_path, capsys, content, said):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        assert said in said_by_parser(capsys, "mnist01", "--config", str(path), "--run-dir", str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mnist_reaches_the_published_accuracy(folder, data_root):
    """Published: 100 % of 100 test images, with 100 shots a circuit and 20 epochs, of which a fifth will do."""
    options = ("--data-root", str(data_root), "--dataset", "mnist", "--epochs", "4", "--run-dir", str(folder))
    assert run(*options) == 0
    assert result(folder)["test_accuracy"] >= 0.99


def test_figures_of_an_earlier_result_are_not_those_of_the_new_one(tmp_path):
    """A training that was made longer, and killed before its figures were drawn."""
    folder = RunFolder(tmp_path)
    for name, seconds in (("loss.png", 1), ("result.json", 2), ("phases.png", 3)):
        folder.write(name, b"")
        os.utime(folder.file(name), (seconds, seconds))
        if name == "result.json":
            assert not folder.is_drawn
    assert folder.is_drawn
