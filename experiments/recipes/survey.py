"""Questions about hybrid networks, each answered with several networks, several seeds and numbers.

The questions are those of a thread in PennyLane's forum: where a quantum layer goes, whether classical pre-training gives a
quick start, whether quantum layers in a row are data re-uploading, what dropout beside a quantum layer does. The networks
tell eight handwritten digits (0 to 7) apart. Each is a row of blocks of eight numbers in and eight numbers out; a quantum
block (eight qubits, angle embedding, three strongly entangling layers) has as many weights as a dense one (72).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import Quote

from ..common.data import add_digit_options, data_folder, load_first_of, with_digits
from ..common.experiment import Experiment
from ..common.options import Settings, add_option, experiment_parser
from ..common.plots import learning_curves
from ..common.rows import Rows
from ..common.runs import RunFolder
from ..common.trainer import Stage, Trainer, cross_entropy
from ..common.training_costs import quote_of_epoch, words
from ..common.workplace import Workplace
from .answers import draw_answers
from .blocks import WIDTH, quantum_layers_with_gradients
from .questions import QUESTIONS, stages_of

DIGITS = tuple(range(WIDTH))
SHOTS_OF_QUOTE = 1000  # any number: circuits are counted, for a step on hardware


def parser() -> Any:
    """The experiment's options."""
    parser = experiment_parser("recipes", __doc__ or "", epochs=10, batch_size=20, lr=0.02)
    add = partial(add_option, parser)
    parser.set_defaults({"seeds": 3})
    add("--question", [*QUESTIONS, "all"], "all", "Which question to answer.")
    add("--answer", str, "all", "One of the networks that answer the question, by name; or all.")
    add("--accuracy", OpenUnitInterval, 0.85, "Test accuracy, the epochs up to which are counted.")
    add("--pretrain-epochs", PositiveInt, 6, "Classical epochs of a quick start, before --epochs.")
    add("--dropout-rate", OpenUnitInterval, 0.2, "The part of the numbers that is dropped.")
    add("--train", PositiveInt, 600, "Training images.")
    add("--test", PositiveInt, 400, "Test images.")
    add_digit_options(parser)
    return parser


def complete(settings: Settings) -> Settings:
    """Settles where the data come from; refuses an answer to another question.

    Raises:
        ValueError: If the question has no such answer, or MNIST is asked for and there is no data root.
    """
    question, answer = settings["question"], settings["answer"]
    if answer != "all":
        known = [] if question == "all" else list(QUESTIONS[question].answers)
        if answer not in known:
            raise ValueError(
                f"--answer: got {answer!r} with --question {question}, expected "
                f"{'one of ' + ', '.join(known) if known else 'all, or one question to go with it'}."
            )
    return with_digits(settings)


def variants(settings: Settings) -> Mapping[str, Settings]:
    """The networks that are asked for."""
    questions = list(QUESTIONS) if settings["question"] == "all" else [settings["question"]]
    return {
        f"{question}-{answer}": {**settings, "question": question, "answer": answer}
        for question in questions
        for answer in QUESTIONS[question].answers
        if settings["answer"] in ("all", answer)
    }


def network(settings: Settings) -> nn.Module:
    """The network that is the answer; from shape (N, rows times columns of the question's grid) to scores (N, 8)."""
    question = QUESTIONS[settings["question"]]
    rows, columns = question.grid
    return question.answers[settings["answer"]](rows * columns, settings)


def load(settings: Settings) -> tuple[Rows, Rows]:
    """Training and test images, averaged over the question's grid; each number from -1 to 1 in training.

    Raises:
        ValueError: If there are too few images.
        FileNotFoundError: If MNIST is not where the settings say.
    """
    where = {"data_root": data_folder(settings), "download": settings["download"]}
    data = load_first_of(DIGITS, train=settings["train"], test=settings["test"], **where)
    grid = QUESTIONS[settings["question"]].grid
    training, testing = (F.adaptive_avg_pool2d(part.inputs, grid).flatten(1) for part in (data.train, data.test))
    lowest, highest = training.amin(dim=0), training.amax(dim=0)
    middle, half = (highest + lowest) / 2, (highest - lowest) / 2
    half = torch.where(half > 0, half, 1)  # a pixel that is always blank says nothing
    return Rows((training - middle) / half, data.train.labels), Rows((testing - middle) / half, data.test.labels)


def train(settings: Settings, work: Workplace) -> dict[str, Any]:
    """Trains one network; returns what it came to."""
    torch.manual_seed(settings["seed"])
    with work.fabric.rank_zero_first():  # only one process downloads
        training, testing = load(settings)
    model, stages = network(settings), stages_of(settings)
    on_hardware, _ = quotes(settings)
    trainer = Trainer(model, cross_entropy, settings, work, stages=stages)
    trainer.fit(training, testing)
    last = [row for row in trainer.rows if row["stage"] == stages[-1].name]
    reached = [number for number, row in enumerate(last, 1) if row["test_accuracy"] >= settings["accuracy"]]
    return {
        "question": settings["question"],
        "answer": settings["answer"],
        "dataset": settings["dataset"],
        "parameters": last[-1]["trained_parameters"],
        "epochs_to_accuracy": reached[0] if reached else None,
        "hardware_circuits_a_step": on_hardware.circuits,
        **trainer.result(),
    }


def quotes(settings: Settings) -> tuple[Quote, Quote]:
    """The cost of a step by parameter shift, as on hardware, in the last stage; and of all epochs, as the settings say."""
    stage = stages_of(settings)[-1]
    shifting = {**settings, "backend": "statevector", "shots": SHOTS_OF_QUOTE, "gradient": "parameter_shift"}
    steps = [
        layer.quote(settings["batch_size"], inputs_require_grad=trained_before)
        for layer, trained_before in quantum_layers_with_gradients(_prepared(shifting, stage))
    ]
    sizes = {name: settings[name] for name in ("train", "test", "batch_size")}
    epochs = [
        quote_of_epoch(layer, **sizes, inputs_require_grad=trained_before)
        for layer, trained_before in quantum_layers_with_gradients(_prepared(settings, stage))
    ]
    return sum(steps, Quote()), stage.epochs * sum(epochs, Quote())


def _prepared(settings: Settings, stage: Stage) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # which weights it has does not matter, and the run's are to come
        model = network(settings)
    stage.prepare(model)
    return model


def cost(settings: Settings) -> str:
    """What a step on hardware costs, and the whole run as it is set."""
    step, whole = quotes(settings)
    if not whole.circuits:
        return "No circuits: the network is classical."
    return (
        f"A step of {settings['batch_size']} example(s) by parameter shift: {step.circuits:,} circuits.\n"
        f"The run of {settings['epochs']} epochs: {words(whole)}"
    )


def draw(folder: RunFolder) -> None:
    """The figure of one training."""
    settings = folder.read_settings()
    title = f"{settings['question']}: {settings['answer']}"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))


EXPERIMENT = Experiment(
    "recipes", parser, train, draw, cost=cost, complete=complete, variants=variants, draw_all=draw_answers
)
