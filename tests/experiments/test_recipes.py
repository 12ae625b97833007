"""The recipes: the networks that answer the questions, and the experiment from the command line."""

import re
from functools import partial
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
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
)
from torch import nn

from experiments.__main__ import main
from experiments.common.classifiers import quantum_layers
from experiments.common.options import flat
from experiments.common.runs import RunFolder
from experiments.common.workplace import layer_options
from experiments.recipes.blocks import quantum_layers_with_gradients
from experiments.recipes.questions import QUESTIONS, enter, network, stages_of
from experiments.recipes.recipe_settings import RecipeSettings
from experiments.recipes.survey import EXPERIMENT, circuits_of_step, load

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--dataset", "digits", "--train", "12", "--test", "5", "--batch-size", "6", "--seed", "3", "--seeds", "1"]
SHORT = [*SMALL, "--epochs", "2", "--pretrain-epochs", "1"]
ANSWERS = [(question, answer) for question in QUESTIONS for answer in QUESTIONS[question].answers]
QUANTUM = [(question, answer) for question, answer in ANSWERS if not answer.startswith("classical")]
settings_of = partial(parsed, EXPERIMENT)


def network_of(*options: str) -> nn.Module:
    settings = settings_of(*options)
    return network(settings, layer_options(settings))


def run(*arguments: str) -> int:
    return main(["recipes", *arguments])


def of(question: str, answer: str) -> list[str]:
    return ["--question", question, "--answer", answer]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def trained_parts(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestNetworks:
    @pytest.mark.parametrize(("question", "answer"), ANSWERS)
    def test_scores_of_eight_classes(self, question, answer):
        settings = settings_of(*SMALL, *of(question, answer))
        rows = load(settings)[0]
        scores = network(settings, layer_options(settings))(rows.inputs)
        assert rows.inputs.shape == (12, np.prod(QUESTIONS[question].grid))
        assert scores.shape == (12, 8)
        assert torch.isfinite(scores).all()

    @pytest.mark.parametrize(("question", "count"), [("position", 216), ("reuploading", 144), ("dropout", 664)])
    def test_all_answers_have_as_many_weights(self, question, count):
        counts = {a: parameters(network_of(*SMALL, *of(question, a))) for a in QUESTIONS[question].answers}
        assert {counts.pop("last-scaled", count + 1)} == {count + 1}
        assert set(counts.values()) == {count}

    def test_scores_of_a_last_circuit_are_bounded_and_a_scale_unbinds_them(self):
        inputs = torch.randn(50, 8)
        bounded, scaled = (network_of(*SMALL, *of("position", answer)) for answer in ("last", "last-scaled"))
        assert bounded(inputs).abs().max() <= 1 + 1e-6
        scaled.load_state_dict({**bounded.state_dict(), "3.factor": torch.tensor(7.0)})
        torch.testing.assert_close(scaled(inputs), 7 * bounded(inputs))

    def test_one_circuit_is_not_layers_in_a_row(self):
        """With the same weights; and the latter are their circuits one after the other."""
        inputs = torch.rand(4, 8) * 2 - 1
        one, row = (network_of(*SMALL, *of("reuploading", answer)) for answer in ("one-circuit", "in-a-row"))
        weights = quantum_layers(one)[0].weights.detach()
        layers = quantum_layers(row)
        with torch.no_grad():
            row[-1].load_state_dict(one[-1].state_dict())
            for layer, part in zip(layers, weights.chunk(3), strict=True):
                layer.weights.copy_(part)
            values = inputs
            for layer in layers:
                values = layer(values * np.pi / 2)
            torch.testing.assert_close(row(inputs), row[-1](values))
            assert (one(inputs) - row(inputs)).abs().max() > 1e-2

    def test_layers_in_a_row_have_shot_noise_of_their_own(self):
        row = network_of(*SMALL, *of("reuploading", "in-a-row"), "--shots", "50")
        layers = quantum_layers(row)
        with torch.no_grad():
            for layer in layers:
                layer.weights.copy_(layers[0].weights)
            angles = torch.rand(1, 8)
            first, second, third = (layer(angles) for layer in layers)
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)

    def test_the_dressed_circuit_hands_signs_on_at_first_and_the_other_does_not(self):
        signs = torch.tensor([[1.0] * 8, [-1.0] * 8])
        nets = [network_of(*SMALL, *of("quick-start", answer)) for answer in ("dressed-frozen", "frozen")]
        first, other = (net.quantum for net in nets)
        assert sum(p.numel() for p in first.parameters()) == sum(p.numel() for p in other.parameters()) == 72
        with torch.no_grad():
            assert first(signs).abs().max() > 0.9
            assert other(signs).abs().max() < 0.9

    @pytest.mark.parametrize("kind", ["quantum", "classical"])
    def test_dropout_is_where_it_is_said_to_be(self, kind):
        """The modules in a row: dropout comes before the middle block, or after it, or nowhere."""
        for answer, place in (("none", None), ("before", 1), ("after", 2)):
            model = network_of(*SMALL, *of("dropout", f"{kind}-{answer}"), "--dropout-rate", "0.3")
            places = [number for number, module in enumerate(model) if isinstance(module, nn.Dropout)]
            assert places == ([] if place is None else [place])
            assert all(model[number].p == 0.3 for number in places)
            assert bool(quantum_layers(model)) == (kind == "quantum")

    @pytest.mark.parametrize("answer", ["from-scratch", "frozen", "dressed-frozen"])
    def test_quick_start_stages(self, answer):
        settings = settings_of(*SMALL, *of("quick-start", answer))
        model, stages = network(settings, layer_options(settings)), stages_of(settings)
        inputs = torch.randn(3, 64)
        assert stages == ({} if answer == "from-scratch" else {"classical": 6}) | {"hybrid": 10}
        if answer != "from-scratch":
            enter("classical", model)
            assert trained_parts(model) == {"first", "classical_scores"}
            torch.testing.assert_close(model(inputs), model.classical_scores(model.first(inputs)))
        enter("hybrid", model)
        assert trained_parts(model) - {"first"} == {"quantum", "hybrid_scores"}
        assert ("first" in trained_parts(model)) == (answer == "from-scratch")
        torch.testing.assert_close(model(inputs), model.hybrid_scores(model.quantum(model.first(inputs))))


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("position", "first", [False]),
        ("position", "last", [True]),
        ("reuploading", "in-a-row", [False, True, True]),
        ("reuploading", "one-circuit", [False]),
        ("dropout", "quantum-before", [True]),
    ],
)
def test_which_circuits_have_something_trained_before_them(question, answer, expected):
    model = network_of(*SMALL, *of(question, answer))
    assert [wanted for _, wanted in quantum_layers_with_gradients(model)] == expected


def test_circuits_a_step_by_parameter_shift():
    """A row costs its value, two shifts for each weight that matters, and two for each embedding where that is trained."""

    def circuits(question: str, answer: str) -> int:
        settings = settings_of(*SMALL, *of(question, answer))
        return circuits_of_step(settings, layer_options(settings))

    assert circuits("reuploading", "one-circuit") <= 6 * (1 + 2 * 72)
    assert circuits("reuploading", "in-a-row") > circuits("reuploading", "one-circuit") / 2
    assert circuits("quick-start", "from-scratch") - circuits("quick-start", "frozen") == 6 * 2 * 8


class TestData:
    def test_training_numbers_fill_the_range(self):
        training, testing = load(settings_of("--dataset", "digits", *of("position", "first")))
        assert (len(training), len(testing)) == (600, 400)
        torch.testing.assert_close(training.inputs.amin(dim=0), -torch.ones(8))
        torch.testing.assert_close(training.inputs.amax(dim=0), torch.ones(8))
        assert sorted(training.labels.unique().tolist()) == list(range(8))

    def test_pixels_that_never_change_are_zero(self):
        """Of one training image none does."""
        training, testing = load(settings_of(*SMALL, *of("dropout", "quantum-none"), "--train", "1"))
        assert (training.inputs == 0).all()
        assert torch.isfinite(testing.inputs).all()
        assert (testing.inputs != 0).any()


@pytest.mark.parametrize(
    ("question", "answer"), [("position", "middle"), ("reuploading", "in-a-row"), ("quick-start", "frozen")]
)
def test_dry_run_says_what_a_run_then_costs(tmp_path, capsys, question, answer):
    options = [*SHORT, *of(question, answer), "--shots", "3"]
    spent, printed = spent_as_said(capsys, tmp_path / "run", "The run of 2 epochs", "recipes", *options)
    step = re.search(r"A step of 6 example\(s\) by parameter shift: ([\d,]+) circuits", printed)
    assert int(step[1].replace(",", "")) == spent["hardware_circuits_a_step"]
    layers = quantum_layers(network_of(*options))
    assert spent["circuits"] == 2 * (2 * spent["hardware_circuits_a_step"] + 5 * len(layers))


def test_dry_run_of_everything(tmp_path, capsys):
    assert run("--dry-run", "--run-dir", str(tmp_path / "run")) == 0
    printed = capsys.readouterr().out
    assert all(f"{question}-{answer}-seed0:" in printed for question, answer in ANSWERS)
    assert printed.count("No circuits") == len(ANSWERS) - len(QUANTUM)
    assert not (tmp_path / "run").exists()


@pytest.mark.figures
@pytest.mark.usefixtures("one_picture_of_each")
@pytest.mark.slow
def test_run_folder_and_table(folder, capsys):
    options = ["--question", "quick-start", "--epochs", "2", "--seeds", "2", "--accuracy", "0.01"]
    assert run(*SHORT, *options, "--run-dir", str(folder)) == 0
    written = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "result.json", "summary.csv", "answers.csv", "quick-start.png", "seeds.png"} <= written
    rows = RunFolder(folder).read_rows("answers.csv")
    assert [row["answer"] for row in rows] == list(QUESTIONS["quick-start"].answers)
    printed = capsys.readouterr().out
    for row in rows:
        accuracies = [result(folder / f"quick-start-{row['answer']}-seed{seed}")["test_accuracy"] for seed in (3, 4)]
        assert row["test median"] == pytest.approx(np.median(accuracies))
        assert (row["min"], row["max"], row["seeds"]) == (min(accuracies), max(accuracies), 2)
        assert row["answer"] in printed
    part = folder / "quick-start-frozen-seed3"
    assert [row["stage"] for row in metrics(part)] == ["classical", "hybrid", "hybrid"]
    assert metrics(part)[0]["circuits"] == "0"
    assert len(RunFolder(folder).read_rows("summary.csv")) == 2 * 6


@pytest.mark.parametrize(("accuracy", "expected"), [("0.999", None), ("0.0001", 1)])
def test_epochs_to_accuracy_count_the_epochs_with_the_circuit(tmp_path, accuracy, expected):
    options = [*SHORT, *of("quick-start", "fine-tuned"), "--accuracy", accuracy, "--test", "100"]
    assert run(*options, "--run-dir", str(tmp_path / "run")) == 0
    rows = [float(row["test_accuracy"]) for row in metrics(tmp_path / "run")][1:]
    reached = [number for number, value in enumerate(rows, 1) if value >= float(accuracy)]
    assert result(tmp_path / "run")["epochs_to_accuracy"] == (reached[0] if reached else None) == expected


@pytest.mark.parametrize(
    ("question", "answer", "after"),
    [("quick-start", "frozen", 2), ("quick-start", "frozen", 5), ("dropout", "quantum-after", 5)],
)
def test_interrupted_run_resumes_to_the_last_bit(tmp_path, question, answer, after):
    """Within the classical stage, within the hybrid one, and with dropout and shots."""
    interrupted(tmp_path, ["recipes", *SHORT, *of(question, answer), "--shots", "3"], after, "cross_entropy")
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--answer", "middle"], "got 'middle' with --question all, expected all"),
        (["--question", "position", "--answer", "frozen"], "expected one of first, middle, last"),
        (["--question", "position", "--gradient", "adjoint", "--shots", "10"], "needs exact simulation"),
        (["--question", "dropout", "--train", "1500"], "expected at most"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(folder, capsys, arguments, said):
    assert_refused(capsys, folder, said, "recipes", *SMALL, *arguments)


@pytest.mark.parametrize("rate", ["0", "1", "1.5"])
def test_bad_rates_are_refused(rate, capsys):
    assert "rate" in said_by_parser(capsys, "recipes", "--dropout-rate", rate)


def test_configuration_is_the_default():
    file = CONFIGS / "recipes-default.yaml"
    settings = settings_of("--config", str(file))
    assert yaml.safe_load(file.read_text()).items() <= flat(settings).items()
    assert set(get_args(get_type_hints(RecipeSettings)["question"])) == {*QUESTIONS, "all"}
    assert settings == settings_of("--dataset", "digits")
    assert list(EXPERIMENT.variants(settings)) == [f"{question}-{answer}" for question, answer in ANSWERS]


@pytest.mark.slow
def test_a_bounded_end_learns_worse_than_a_circuit_in_the_middle(tmp_path):
    """Scores between -1 and 1 cannot be sure: the clearest answer of all, at the default settings."""
    accuracies = {}
    for answer in ("middle", "last"):
        options = ["--dataset", "digits", "--seeds", "1", *of("position", answer)]
        assert run(*options, "--run-dir", str(tmp_path / answer)) == 0
        accuracies[answer] = result(tmp_path / answer)["test_accuracy"]
    assert accuracies["middle"] > accuracies["last"] + 0.05
