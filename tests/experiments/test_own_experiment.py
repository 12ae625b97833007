"""The experiment that experiments/README.md shows: as long as it says, and run as it says."""

import re
import sys
from pathlib import Path

import pytest
import torch
from runs import CHECKOUT, assert_same_run, metrics, one_line, result

import experiments
from experiments.__main__ import main
from experiments.common.rows import Rows

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def moons(tmp_path, monkeypatch):
    """The name of the experiment, in a folder beside the others."""
    page = (CHECKOUT / "experiments" / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "Experiment(" in block)
    assert len(code.splitlines()) <= 60
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "moons.py").write_text(code)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "experiments.moons", raising=False)  # that of another test
    return "moons"


def edit(right: str, wrong: str) -> None:
    """Puts something else into the file of the experiment."""
    file = Path(experiments.__path__[-1]) / "moons.py"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))


@pytest.mark.slow
def test_the_example_runs_resumes_and_is_compared(moons, tmp_path, capsys):
    few, more, at_once = (str(tmp_path / name) for name in ("few", "more", "at-once"))
    options = [moons, "--points", "20", "--shots", "50"]
    assert main([*options, "--dry-run"]) == 0
    promised = capsys.readouterr().out
    assert main([*options, "--epochs", "1", "--run-dir", few]) == 0
    assert main([moons, "--resume", "--run-dir", few, "--epochs", "10"]) == 0
    assert main([*options, "--run-dir", at_once]) == 0
    assert_same_run(tmp_path / "few", tmp_path / "at-once")
    spent = result(tmp_path / "few")
    assert f"The run of 10 epochs: {spent['circuits']:,} circuits, {spent['shots']:,} shots" in promised
    assert main([*options, "--epochs", "1", "--seeds", "2", "--run-dir", more]) == 0
    assert metrics(tmp_path / "more" / "seed0") == metrics(tmp_path / "few")[:1]
    assert main(["plot", more]) == 0
    assert main(["compare", few, more, "--out", str(tmp_path / "compared")]) == 0


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("network(settings, work.layer_options())", "network(settings, {})", "expected the 50 of the settings"),
        ("return work.result()", "work.result()", "end it with: return work.result()"),
    ],
)
def test_what_a_beginner_forgets_is_said(moons, tmp_path, capsys, right, wrong, said):
    edit(right, wrong)
    options = ["--points", "20", "--shots", "50", "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert said in one_line(capsys, moons, *options)


def test_its_options_are_refused_like_all_others(moons, capsys):
    with pytest.raises(SystemExit) as refused:
        main([moons, "--qubit", "2"])
    assert refused.value.code == 2
    assert "did you mean --qubits?" in capsys.readouterr().err


def test_an_option_without_a_description_is_an_option(moons, capsys):
    file = Path(experiments.__path__[-1]) / "moons.py"
    file.write_text(re.sub(r"\n    Attributes:.*?\"\"\"", '"""', file.read_text(), count=1, flags=re.DOTALL))
    assert main([moons, "--qubits", "2", "--dry-run"]) == 0
    assert "qubits=2" in capsys.readouterr().out


def test_its_own_options_come_first(moons, capsys):
    with pytest.raises(SystemExit):
        main([moons, "--help"])
    said = capsys.readouterr().out
    own, common, last = (said.index(f"\n  {option} ") for option in ("--points", "--epochs", "--run-dir"))
    assert own < common < last


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("qubits: int = 3", "qubits = 3", "MoonsSettings.qubits: got 3 without a type, expected an attribute with one"),
        ("@dataclass(frozen=True, kw_only=True)\n", "", "MoonsSettings: got a plain class, expected a dataclass"),
        ("EXPERIMENT = ", "MOONS = ", "moons.py: got neither EXPERIMENT nor STUDY, expected one of them; end the file"),
        ("import Rows", "import Row", "moons.py:10: got ImportError: cannot import name 'Row'"),
        ("EXPERIMENT = ", "EXPERIMENT = 1 = ", "moons.py: got SyntaxError: "),
    ],
)
def test_what_is_wrong_with_its_file_is_said(moons, capsys, right, wrong, said):
    edit(right, wrong)
    assert said in one_line(capsys, moons, "--dry-run")


def test_its_name_is_suggested_too(moons, capsys):
    assert main(["mons"]) == 2
    assert capsys.readouterr().err == f"No experiment 'mons'; did you mean {moons}?\n"


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (", dtype=torch.float32", "", "train: got inputs of torch.float64, expected torch.float32 as the"),
        ("dtype=torch.float32", "dtype=torch.int64", "train: got inputs of torch.int64, expected torch.float32 as the"),
        ("torch.tensor(labels)", "labels", "labels: got ndarray, expected a tensor; make one: torch.tensor(labels, "),
        ("torch.tensor(labels)", "torch.tensor(labels).float()", "labels: got torch.float32, expected torch.int64"),
        ("return Rows(", "return (", "train: got tuple, expected examples; make them: Rows(inputs, labels)"),
    ],
)
def test_examples_of_another_type_are_refused(moons, tmp_path, capsys, right, wrong, said):
    edit(right, wrong)
    options = ["--points", "20", "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert said in one_line(capsys, moons, *options)


@pytest.mark.parametrize("labels", [torch.zeros(9).long(), torch.zeros(10, 1).long()])
def test_labels_that_do_not_go_with_the_inputs_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels: got shape .*, expected \(10,\), one for each row"):
        Rows(torch.zeros(10, 2), labels)
