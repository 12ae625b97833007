"""The experiment that experiments/README.md shows: as long as it says, and run as it says."""

import re
import sys
from pathlib import Path

import pytest
import torch
from runs import CHECKOUT, assert_same_run, metrics, result

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
    return "moons"


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
    (file,) = tmp_path.glob("code/*.py")
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    sys.modules.pop("experiments.moons", None)
    options = ["--points", "20", "--shots", "50", "--epochs", "1", "--run-dir", str(tmp_path / "run")]
    assert main([moons, *options]) == 1
    assert said in capsys.readouterr().err
    sys.modules.pop("experiments.moons", None)


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


@pytest.mark.parametrize("labels", [torch.zeros(9).long(), torch.zeros(10, 1).long()])
def test_labels_that_do_not_go_with_the_inputs_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels: got shape .*, expected \(10,\), one for each row"):
        Rows(torch.zeros(10, 2), labels)
