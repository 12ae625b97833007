"""Options of the command line: what is refused, with what was meant, and how soon; and the YAML of earlier runs."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from runs import CHECKOUT, QUICK, assert_same_run, parsed, result, said_by_parser

from experiments.__main__ import main
from experiments.catalogue import COMMANDS, settings_of
from experiments.common.options import Options, flat, parse, saved_settings, yaml_of
from experiments.common.runs import RunFolder
from experiments.common.settings import HardwareSettings
from experiments.common.workplace import layer_options
from experiments.experiment_settings import MNIST01Settings
from experiments.mnist01 import EXPERIMENT

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--shot", "3"], "--shots"),
        (["--epoch", "3"], "--epochs"),
        (["--epoch=3"], "--epochs"),
        (["--bacth-size", "3"], "--batch-size"),
        (["--batch_size", "3"], "--batch-size"),
        (["--ibm.max_job", "3"], "--ibm.max_jobs"),
        (["--worker", "2"], "--workers"),
        (["--resum"], "--resume"),
    ],
)
def test_a_mistyped_or_abbreviated_option_is_refused(capsys, folder, arguments, meant):
    (line,) = said_by_parser(capsys, "mnist01", *arguments, "--run-dir", str(folder)).splitlines()
    assert line.startswith("python -m experiments mnist01: unrecognized arguments: ")
    assert line.endswith(f"; did you mean {meant}?; --help says what there is")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "meant"),
    [
        ("epoch: 3", "epochs"),
        ("bacth_size: 3", "batch_size"),
        ("ibm: {max_job: 3}", "ibm.max_jobs"),
        ("worker: 2", "workers"),
    ],
)
def test_so_is_a_key_of_a_file(tmp_path, capsys, content, meant):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    (line,) = said_by_parser(capsys, "mnist01", "--config", str(path)).splitlines()
    assert line.endswith(f"is not accepted; did you mean {meant}?; --help says what there is")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "which holds nothing"),
        ("- epochs", "which holds ['epochs']"),
        ("epochs: [1", "which cannot be read"),
        ("epochs: null", "epochs: got null, expected a value"),
        ("ibm: batch", "ibm: got 'batch', expected its options by their names"),
        ("ibm: [batch]", "ibm: got ['batch'], expected its options by their names"),
        ("noise: {depolarising: {cx: 0.1}}", "Option 'depolarising.cx' is not accepted"),
        ("noise: 0.2", "expected options by their names; got 0.2"),
        ("lr: .inf", "lr: got inf, expected a positive, finite number"),
        ("{seed: 4294967295, seeds: 2}", "--seeds: got 2 from --seed 4294967295 on"),
    ],
)
def test_a_file_of_anything_else_is_refused_in_a_line(tmp_path, capsys, folder, content, said):
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with suppress(SystemExit):
        assert main(["mnist01", "--dataset", "digits", "--config", str(path), "--run-dir", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "Union" not in line
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mnist01", ["--epochs", "-3"], "epochs: got -3, expected a positive integer"),
        ("mnist01", ["--epochs", "2.5"], "epochs: got 2.5, expected a positive integer"),
        ("mnist01", ["--shots", "many"], "shots: got many, expected a positive integer"),
        ("mnist01", ["--lr", "nan"], "lr: got nan, expected a positive, finite number"),
        ("mnist01", ["--seed", "4294967296"], "seed: got 4294967296, expected an integer from 0 to 4294967295"),
        ("mnist01", ["--workers", "-1"], "workers: got -1, expected an integer of at least 0"),
        ("mnist01", ["--ibm.max_qpu_seconds", "inf"], "ibm.max_qpu_seconds: got inf, expected a finite number of at"),
        ("mnist01", ["--ibm.shadow", "maybe"], "ibm.shadow: got maybe, expected a bool or 'noisy'"),
        ("mnist01", ["--ibm.mode", "x"], "ibm.mode: got x, expected one of 'job', 'batch', 'session'"),
        ("recipes", ["--dropout-rate", "1"], "dropout_rate: got 1, expected a number between 0 and 1"),
        ("shot-noise", ["--shots", "3", "-4"], "shots element 2: got -4, expected a positive integer"),
        ("compare", ["run", "--error-below", "x"], "error_below: got x, expected a value of type float"),
    ],
)
def test_values_are_refused_in_our_words(capsys, name, arguments, said):
    (line,) = said_by_parser(capsys, name, *arguments).splitlines()
    assert line.startswith(f"python -m experiments {name}: {said}")
    assert line.count("got") == 1


def test_an_empty_file_is_not_taken_for_no_noise(tmp_path, capsys):
    path = tmp_path / "noise.yaml"
    path.write_text("# depolarizing: {cx: 0.01}")
    assert "which holds nothing" in said_by_parser(capsys, "mnist01", "--noise", str(path))


@pytest.mark.parametrize(("name", "meant"), [("mnist10", "mnist01"), ("barren", "barren-plateau"), ("plt", "plot")])
def test_so_is_the_name_of_an_experiment(capsys, name, meant):
    assert main([name]) == 2
    assert capsys.readouterr().err == f"No experiment {name!r}; did you mean {meant}?\n"


def test_a_word_like_nothing_has_no_suggestion(capsys):
    assert "did you mean" not in said_by_parser(capsys, "mnist01", "--xyzzy")
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err == "No experiment 'xyzzy'; python -m experiments lists what there is\n"


LIGHT = """
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from experiments.__main__ import main

for line in sys.stdin.read().splitlines():
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            status = main(line.split())
        except SystemExit as ended:
            status = ended.code
    heavy = {"torch", "qiskit", "lightning_fabric", "matplotlib", "scipy", "distributed"} & sys.modules.keys()
    print(f"{line!r}: {status}, {sorted(heavy)}")
"""


def test_help_and_refusals_wait_for_no_library():
    lines = {"": 0, "list": 0, "--help": 0, "mnist10": 2, "compare --help": 0, "compare --agains shots run": 2}
    for name in COMMANDS:
        lines |= {f"{name} --help": 0, f"{name} --sed 3": 2, f"{name} --seed -3": 2}
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", LIGHT]
    done = subprocess.run(command, input="\n".join(lines), env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{line!r}: {status}, []" for line, status in lines.items()]


def test_settings_survive_their_yaml(tmp_path):
    settings = parsed(EXPERIMENT, *QUICK, "--lr", "1e-3", "--seeds", "2", "--shots", "null")
    folder = RunFolder(tmp_path)
    folder.write_settings(yaml_of("mnist01", settings))
    assert saved_settings("mnist01", MNIST01Settings, folder) == settings
    assert flat(settings)["ibm.mode"] == "job"


def test_how_a_run_is_done_is_no_setting_of_it(folder):
    assert main(["mnist01", *QUICK, "--epochs", "1", "--workers", "0", "--run-dir", str(folder)]) == 0
    written = (folder / "config.yaml").read_text()
    assert not any(f"{name}:" in written for name in vars(Options()))


def test_options_win_over_the_file_before_them(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("{epochs: 5, workers: 2, ibm: {max_jobs: 3}, backend: ibm:fake_manila}")
    options, settings = parse(
        "mnist01", MNIST01Settings, ["--config", str(path), "--epochs", "7", "--ibm.mode", "batch"]
    )
    assert (options.workers, settings.epochs) == (2, 7)
    assert settings.ibm == HardwareSettings(max_jobs=3, mode="batch")


def test_layers_have_the_options_of_the_run():
    settings = MNIST01Settings(seed=3, shots=7, backend="statevector")
    options = layer_options(settings)
    assert {name: options[name] for name in ("backend", "shots", "gradient", "seed")} == {
        **{"backend": "statevector", "shots": 7, "gradient": "parameter_shift", "seed": 3}
    }


EARLIER = """
experiment: mnist01
data_root: null
backend: {backend}
{ibm}shots: 20
gradient: parameter_shift
epochs: 1
batch_size: 4
lr: 0.001
seed: 1
seeds: 1
device: cpu
head: quantum
dataset: digits
download: false
train_per_digit: 2
test_per_digit: 2
"""
IBM = """ibm:
  account: null
  instance: null
  mode: job
  max_time: null
  primitive: sampler
  options: null
  optimization_level: 2
  seed_transpiler: 0
  max_qpu_seconds: null
  max_shots: null
  max_jobs: 2
  shadow: false
"""


def test_a_run_from_before_there_were_typed_settings_is_continued(tmp_path, folder):
    folder.mkdir()
    (folder / "config.yaml").write_text(EARLIER.format(backend="statevector", ibm=""))
    assert main(["mnist01", "--resume", "--run-dir", str(folder), "--epochs", "2"]) == 0
    options = ["--backend", "statevector", "--shots", "20", "--epochs", "2", "--batch-size", "4", "--seed", "1"]
    sizes = ["--dataset", "digits", "--train-per-digit", "2", "--test-per-digit", "2"]
    assert main(["mnist01", *options, *sizes, "--run-dir", str(tmp_path / "now")]) == 0
    assert_same_run(folder, tmp_path / "now")
    assert (folder / "config.yaml").read_text() == (tmp_path / "now" / "config.yaml").read_text()


def test_so_is_one_on_hardware(folder):
    pytest.importorskip("qiskit_ibm_runtime")
    folder.mkdir()
    (folder / "config.yaml").write_text(EARLIER.format(backend="ibm:fake_manila", ibm=IBM))
    saved = saved_settings("mnist01", MNIST01Settings, RunFolder(folder))
    assert saved.ibm == HardwareSettings(max_jobs=2)
    assert main(["mnist01", "--resume", "--run-dir", str(folder)]) == 0
    assert result(folder)["jobs"] == 2  # a step and the test


@pytest.mark.parametrize("name", COMMANDS)
def test_without_options_all_is_as_the_defaults_say(name):
    """The first command of README.md has none."""
    settings = settings_of(name)
    assert settings is not None
    assert parse(name, settings, [])[1] == settings()
