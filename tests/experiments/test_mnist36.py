"""The layerwise learning experiment from the command line: what it costs, writes, refuses, and that it continues."""

import re
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from runs import (
    CONFIGS,
    assert_refused,
    assert_same_run,
    interrupted,
    metrics,
    parsed,
    result,
    said_by_parser,
    spent_as_said,
    start,
)

from experiments.__main__ import main
from experiments.common import classifiers
from experiments.common.data import load_first_of
from experiments.common.rows import Rows
from experiments.common.runs import RunFolder
from experiments.experiment_settings import MNIST36Settings
from experiments.mnist36 import (
    EXPERIMENT,
    LEARNING,
    advice,
    few_numbers,
    logistic_regression,
    readout,
    rotations_of_last_qubit,
    rows_of,
)
from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import random_rotations

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--dataset", "digits", "--train-images", "12", "--batch-size", "6", "--seed", "3", "--init", "uniform"]
SHORT = [*SMALL, "--epochs", "1", "--partition-epochs", "1", "--steps", "2", "--layers-per-step", "1", "--sweeps", "1"]
PHASES = ["step 1", "step 2", "sweep 1 part 1", "sweep 1 part 2"]
settings_of = partial(parsed, EXPERIMENT)


def run(*arguments: str) -> int:
    return main(["mnist36", *arguments])


def dry_run(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert run(*arguments, "--dry-run") == 0
    return str(capsys.readouterr().out)


class TestCost:
    def test_phases_of_the_published_protocol(self, tmp_path, capsys):
        printed = dry_run(capsys, "--dataset", "digits", "--train-images", "200", "--run-dir", str(tmp_path / "run"))
        lines = [line.split() for line in printed.splitlines() if line.startswith(("step", "sweep"))]
        columns = [tuple(map(int, line[-6:-2])) for line in lines]  # layers, epochs, parameters, trained ones
        assert columns == [(2, 5, 18, 18), (4, 5, 36, 18), (6, 5, 54, 18)] + 4 * [(6, 5, 54, 27)]
        assert not (tmp_path / "run").exists()

    def test_without_freezing_all_are_trained(self, capsys):
        unfrozen = ["--train-images", "200", "--freeze-after", "null", "--sweeps", "0"]
        printed = dry_run(capsys, "--dataset", "digits", *unfrozen)
        trained = [line.split()[-3] for line in printed.splitlines() if line.startswith("step")]
        assert trained == ["18", "36", "54"]

    def test_is_what_a_run_then_costs(self, tmp_path, capsys):
        options = [*SHORT, "--shots", "10", "--gradient", "parameter_shift"]
        spent, _ = spent_as_said(capsys, tmp_path / "run", "a test after each epoch", "mnist36", *options)
        tests = 4 * (364 - 12)
        assert spent["circuits"] == tests + 12 * 4 * (1 + 2 * 9)

    def test_layerwise_and_complete_depth_spend_the_same_shots(self, capsys):
        def shots(name: str) -> int:
            printed = dry_run(capsys, "--config", str(CONFIGS / f"mnist36-shots-{name}.yaml"), "--dataset", "digits")
            found = re.search(r"Training: [\d,]+ circuits, ([\d,]+) shots", printed)
            return int(found[1].replace(",", ""))

        assert shots("layerwise") == 29_280_000
        assert shots("complete") == pytest.approx(shots("layerwise"), rel=0.01)

    def test_fewer_qubits_have_fewer_weights(self, folder):
        assert run(*SHORT, "--qubits", "4", "--circuit", "ring", "--run-dir", str(folder)) == 0
        assert [phase["parameters"] for phase in result(folder)["phases"]] == [8, 16, 16, 16]

    def test_published_settings_are_the_defaults(self):
        chosen = ["--dataset", "mnist", "--data-root", "anywhere"]
        by_default = settings_of(*chosen)
        assert settings_of("--config", str(CONFIGS / "mnist36-published.yaml"), *chosen) == by_default
        assert EXPERIMENT.published(by_default) == 0.767
        for changed in (["--lr", "0.02"], ["--steps", "4"], ["--training", "complete"], ["--shots", "100"]):
            assert EXPERIMENT.published(settings_of(*chosen, *changed)) is None
        assert EXPERIMENT.published(settings_of("--dataset", "digits")) is None


class TestRun:
    @pytest.mark.figures
    def test_run_folder(self, folder):
        assert run(*SHORT, "--run-dir", str(folder)) == 0
        expected = {"config.yaml", "metrics.csv", "result.json", "checkpoint.pt", "predictions.csv", "shown.npz"}
        figures = {f"{name}.png" for name in ("loss", "phases", "predictions", "confusion", "circuit")}
        assert expected | figures <= {path.name for path in folder.iterdir()}
        rows = metrics(folder)
        assert [row["stage"] for row in rows] == PHASES
        assert [row["trained_parameters"] for row in rows] == ["9"] * 4
        found = result(folder)
        assert [phase["name"] for phase in found["phases"]] == PHASES
        assert [phase["parameters"] for phase in found["phases"]] == [9, 18, 18, 18]
        assert found["test_accuracy"] == float(rows[-1]["test_accuracy"])
        assert 0.5 < found["logistic_regression"] < 1  # from twelve images

    @pytest.mark.slow
    def test_frozen_layers_stay(self, tmp_path):
        """What step 1 has trained is left alone by step 2, unless nothing is frozen."""
        options = {"one": ["--steps", "1"], "two": [], "unfrozen": ["--freeze-after", "null"]}
        first = {}
        for name, its_options in options.items():
            assert run(*SHORT, "--sweeps", "0", *its_options, "--run-dir", str(tmp_path / name)) == 0
            first[name] = RunFolder(tmp_path / name).read_checkpoint()["model"]["quantum.quantum.weights.layer0"]
        assert torch.equal(first["two"], first["one"])
        assert not torch.equal(first["unfrozen"], first["one"])

    @pytest.mark.parametrize(
        "options", [["--training", "complete"], ["--circuit", "ring", "--readout", "sum", "--scale-and-bias", "true"]]
    )
    def test_other_models(self, folder, options):
        assert run(*SHORT, *options, "--run-dir", str(folder)) == 0
        model = RunFolder(folder).read_checkpoint()["model"]
        if "complete" in options:
            assert [row["stage"] for row in metrics(folder)] == ["complete depth"]
            assert result(folder)["phases"][0]["trained_parameters"] == 18
        else:
            assert [phase["trained_parameters"] for phase in result(folder)["phases"]] == [20] * 4
            assert (model["scale"].item(), model["bias"].item()) != (1.0, 0.0)

    @pytest.mark.slow
    def test_resumes_within_a_phase_to_the_last_bit(self, tmp_path):
        """An epoch is two steps and a test: in the first step of the third phase."""
        options = ["mnist36", *SHORT, "--shots", "20", "--gradient", "parameter_shift", "--scale-and-bias", "true"]
        state = interrupted(tmp_path, options, 7, "binary_cross_entropy_with_logits")
        assert (state["stage"], state["epoch"], state["step"]) == (2, 2, 1)
        assert_same_run(tmp_path / "straight", tmp_path / "broken")
        assert result(tmp_path / "straight")["shots"] == result(tmp_path / "broken")["shots"]

    @pytest.mark.figures
    @pytest.mark.usefixtures("one_picture_of_each")
    @pytest.mark.slow
    def test_seeds(self, folder):
        assert run(*SHORT, "--sweeps", "0", "--seeds", "2", "--run-dir", str(folder)) == 0
        assert {"seed3", "seed4", "seeds.png", "phases.png", "summary.csv"} <= {path.name for path in folder.iterdir()}
        gates = [RunFolder(folder / name).read_checkpoint()["model"] for name in ("seed3", "seed4")]
        assert not torch.equal(gates[0]["quantum.quantum.weights.layer0"], gates[1]["quantum.quantum.weights.layer0"])

    @pytest.mark.slow
    def test_a_killed_run_goes_on_in_its_second_phase(self, tmp_path):
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        options = [*SHORT, "--epochs", "20", "--sweeps", "0", "--shots", "20", "--gradient", "parameter_shift"]
        assert run(*options, "--run-dir", str(straight)) == 0
        process, written = start("mnist36", *options, "--run-dir", str(broken)), broken / "metrics.csv"
        while process.is_alive() and not (written.is_file() and "step 2" in written.read_text()):
            time.sleep(0.001)
        process.kill()
        process.join()
        state = RunFolder(broken).read_checkpoint()
        assert state["stage"] == 1
        assert 20 < state["epoch"] < 40
        assert run("--resume", "--run-dir", str(broken)) == 0
        assert_same_run(straight, broken)
        assert result(straight)["phases"] == result(broken)["phases"]

    @pytest.mark.slow
    def test_improved_classifier_on_the_embedded_digits(self, folder):
        config = ["--config", str(CONFIGS / "mnist36-improved.yaml"), "--dataset", "digits", "--train-images", "240"]
        assert run(*config, "--run-dir", str(folder)) == 0
        assert result(folder)["test_accuracy"] >= 0.97

    @pytest.mark.slow
    def test_improved_classifier_beats_logistic_regression(self, folder, data_root):
        config = str(CONFIGS / "mnist36-improved.yaml")
        assert run("--config", config, "--data-root", str(data_root), "--run-dir", str(folder)) == 0
        assert result(folder)["test_accuracy"] > result(folder)["logistic_regression"] > 0.98


class TestAdvice:
    """What is said to a run that has not learnt."""

    @pytest.mark.parametrize(
        ("options", "advised"),
        [
            ([], "--circuit ring --readout sum --scale-and-bias true --init uniform --batch-size 50 --lr 0.02."),
            (
                ["--init", "uniform", "--lr", "0.02", "--scale-and-bias"],
                "--circuit ring --readout sum --batch-size 50.",
            ),
        ],
    )
    def test_names_what_the_run_has_not_had(self, options, advised):
        said = advice(settings_of("--dataset", "digits", *options))
        assert said.endswith(f"Try {advised}")
        followed = said.partition("Try ")[2].removesuffix(".").split()
        again = advice(settings_of("--dataset", "digits", *options, *followed))
        assert "more --epochs" in again
        assert ("more --shots" in again) == ("--shots" in options)
        assert not any(f"--{name.replace('_', '-')} " in again for name in LEARNING)

    def test_is_of_a_configuration_that_learns(self):
        improved = settings_of("--config", str(CONFIGS / "mnist36-improved.yaml"), "--data-root", "anywhere")
        assert {name: getattr(improved, name) for name in LEARNING} == LEARNING

    def test_comes_at_the_end_of_a_run(self, folder, capsys, monkeypatch):
        monkeypatch.setattr(classifiers, "decisions", lambda scores: torch.full((len(scores),), 2))  # which no label is
        assert run(*SHORT, "--sweeps", "0", "--run-dir", str(folder)) == 0
        assert "This run has not learnt. Most seeds" in capsys.readouterr().out


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--partitions", "3"], "partitions: got 3, expected at most the 2 layers"),
            (["--train-images", "364"], "expected at most 364 together"),
            (["--backend", "quantum"], "expected one of 'statevector'"),
            (["--gradient", "adjoint", "--shots", "10"], "needs exact simulation"),
            (["--dataset", "mnist", "--data-root", "nowhere"], "nowhere"),
        ],
    )
    def test_before_anything_is_written(self, folder, capsys, arguments, said):
        assert_refused(capsys, folder, said, "mnist36", *SHORT, *arguments)

    @pytest.mark.parametrize(
        "arguments", [["--steps", "0"], ["--sweeps", "-1"], ["--circuit", "other"], ["--freeze-after", "0"]]
    )
    def test_bad_values(self, arguments, capsys):
        assert arguments[0].strip("-").replace("-", "_") in said_by_parser(capsys, "mnist36", *arguments)

    def test_a_schedule_cannot_be_stretched(self, folder, capsys):
        """More epochs of each phase would be another training, not the same one continued."""
        assert run(*SHORT, "--training", "complete", "--run-dir", str(folder)) == 0
        assert run("--resume", "--run-dir", str(folder), "--epochs", "2") == 1
        assert "epochs: got 2, expected 1" in capsys.readouterr().err


class TestData:
    def test_first_of_mnist(self, data_root):
        data = load_first_of((3, 6), train=1000, data_root=data_root)
        assert data.train.inputs.shape == (1000, 1, 28, 28)
        assert data.test.labels.bincount().tolist() == [1010, 958]  # MNIST's test set
        assert data.train.labels[:6].tolist() == [0, 0, 0, 1, 1, 0]  # 3 3 3 6 6 3: the order of the file

    def test_first_of_the_embedded_digits(self):
        data = load_first_of((3, 6), train=240)
        assert (len(data.train.labels), len(data.test.labels)) == (240, 124)
        train = {image.numpy().tobytes() for image in data.train.inputs}
        assert not any(image.numpy().tobytes() in train for image in data.test.inputs)
        assert load_first_of((3, 6), train=240, test=10).test.labels.tolist() == data.test.labels[:10].tolist()

    def test_order_of_the_digits_is_that_of_the_labels(self):
        one, other = load_first_of((3, 6), train=50), load_first_of((6, 3), train=50)
        assert torch.equal(one.train.labels, 1 - other.train.labels)
        assert torch.equal(one.train.inputs, other.train.inputs)

    @pytest.mark.parametrize(("train", "test"), [(364, None), (360, 5)])
    def test_too_few_embedded_digits(self, train, test):
        with pytest.raises(ValueError, match="expected at most 364 together"):
            load_first_of((3, 6), train=train, test=test)

    def test_too_few_of_mnist(self, data_root):
        with pytest.raises(ValueError, match="Got 20000 images of the digits"):
            load_first_of((3, 6), train=20000, data_root=data_root)

    def test_nine_numbers(self):
        images = torch.zeros(2, 1, 28, 28)
        images[0, 0, 5:23, 5:23] = 1  # the middle 18 x 18 pixels
        images[1, 0, 5:11, 5:11] = 1  # a ninth of them, the first
        numbers = few_numbers(images, "MNIST")
        np.testing.assert_allclose(numbers[0], np.ones(9), atol=1e-6)
        assert numbers[1].argmax() == 0
        assert numbers[1, 0] > 0.7
        assert numbers[1, [2, 5, 6, 7, 8]].abs().max() < 1e-6
        assert few_numbers(images, "MNIST", 6).shape == (2, 6)
        np.testing.assert_allclose(few_numbers(images, "MNIST", 4)[0], np.ones(4), atol=1e-6)
        assert few_numbers(images, "MNIST", 6)[1].argmax() == 0
        border = torch.ones(1, 1, 28, 28)
        border[0, 0, 5:23, 5:23] = 0
        assert few_numbers(border, "MNIST").max() == 0
        assert few_numbers(border, "scikit-learn digits").max() > 0.3

    def test_logistic_regression_on_the_few_numbers(self, data_root):
        """Known: 0.984. With another crop or another order of the labels it would differ."""
        data = load_first_of((3, 6), train=1000, data_root=data_root)
        train, test = rows_of(data)
        assert logistic_regression(train, test) == pytest.approx(0.984, abs=1e-3)
        assert logistic_regression(train, Rows(test.inputs, 1 - test.labels)) < 0.1


class TestWhySeedsFail:
    """What experiments/mnist36.md says of the published protocol."""

    @staticmethod
    def layer_of(seed: int) -> tuple[Any, QuantumLayer]:
        circuit = random_rotations(9, 6, seed=seed)
        weights = {"all": [weight for vector in circuit.weights.values() for weight in vector]}
        options = {"weights": weights, "observables": readout("last"), "init": "zeros"}
        return circuit, QuantumLayer(circuit.circuit, inputs=circuit.inputs, **options)

    @staticmethod
    def axes(circuit: Any) -> torch.Tensor:
        """0, 1, 2 for the RX, RY, RZ of each weight."""
        names = {gate.params[0]: gate.operation.name for gate in circuit.circuit.data if gate.params}
        return torch.tensor([("rx", "ry", "rz").index(names[w]) for vector in circuit.weights.values() for w in vector])

    @pytest.mark.parametrize("seed", range(4))
    def test_ry_and_rz_have_no_gradient_at_zero(self, seed):
        circuit, layer = self.layer_of(seed)
        axes, x = self.axes(circuit), torch.rand(5, 9, dtype=torch.float64)
        weights = torch.rand(54, dtype=torch.float64) * 6

        def values(weights: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(layer, {"weights.all": weights}, (x,))

        mirrored = torch.where(axes == 0, weights, -weights)
        torch.testing.assert_close(values(mirrored), values(weights), rtol=0, atol=1e-12)
        assert (values(-weights) - values(weights)).abs().max() > 1e-3  # the sign of RX does matter
        only_rx = torch.where(axes == 0, weights, 0.0).requires_grad_()
        (gradient,) = torch.autograd.grad(values(only_rx).square().sum(), only_rx)
        assert gradient[axes != 0].abs().max() < 1e-12
        assert gradient[axes == 0].abs().max() > 1e-3

    def test_at_zero_only_the_last_pixel_is_seen(self):
        _, layer = self.layer_of(0)
        x = torch.rand(5, 9, dtype=torch.float64)
        torch.testing.assert_close(layer(x)[:, 0], x[:, 8].cos(), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("seed", range(8))
    def test_rx_on_the_last_qubit_in_every_second_layer_lets_the_neighbour_in(self, seed):
        circuit, layer = self.layer_of(seed)
        last = rotations_of_last_qubit(MNIST36Settings(seed=seed))
        axes = self.axes(circuit)
        weights = torch.zeros(54, dtype=torch.float64)
        weights[8::9] = torch.where(axes[8::9] == 0, 0.7, 0.0)
        x = torch.rand(5, 9, dtype=torch.float64, requires_grad=True)
        values = torch.func.functional_call(layer, {"weights.all": weights}, (x,))
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert last == "".join("xyz"[axis] for axis in axes[8::9])
        assert bool(gradient[:, 7].abs().max() > 1e-6) == ("x" in last[1::2])
        assert gradient[:, :7].abs().max() < 1e-12
