"""The networks that answer a question about hybrid networks, trained and counted.

They tell eight handwritten digits (0 to 7) apart. Each is a row of blocks of eight numbers in and eight numbers out; a
quantum block (eight qubits, angle embedding, three strongly entangling layers) has as many weights as a dense one (72).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..common.classifiers import cross_entropy
from ..common.data import load_first_of
from ..common.data_settings import with_digits
from ..common.experiment import Experiment
from ..common.plots import learning_curves
from ..common.rows import Rows
from ..common.runs import RunFolder
from ..common.training_costs import between, quote_of_stage
from ..common.work import Work
from .answers import draw_answers
from .blocks import WIDTH, quantum_layers_with_gradients
from .questions import QUESTIONS, enter, network, stages_of
from .recipe_settings import RecipeSettings

DIGITS = tuple(range(WIDTH))
SHOTS_OF_QUOTE = 1000  # any number: circuits are counted, for a step on hardware


def complete(settings: RecipeSettings) -> RecipeSettings:
    """Settles where the data come from; refuses an answer to another question.

    Raises:
        ValueError: If the question has no such answer, or MNIST is asked for and there is no data root.
    """
    question, answer = settings.question, settings.answer
    known = [] if question == "all" else list(QUESTIONS[question].answers)
    if answer not in ("all", *known):
        raise ValueError(
            f"--answer: got {answer!r} with --question {question}, expected "
            f"{'one of ' + ', '.join(known) if known else 'all, or one question to go with it'}."
        )
    return with_digits(settings)


def variants(settings: RecipeSettings) -> Mapping[str, RecipeSettings]:
    """The networks that are asked for."""
    questions: Any = list(QUESTIONS) if settings.question == "all" else [settings.question]
    return {
        f"{question}-{answer}": replace(settings, question=question, answer=answer)
        for question in questions
        for answer in QUESTIONS[question].answers
        if settings.answer in ("all", answer)
    }


def load(settings: RecipeSettings) -> tuple[Rows, Rows]:
    """Training and test images, averaged over the question's grid; each number from -1 to 1 in training.

    Raises:
        ValueError: If there are too few images.
        FileNotFoundError: If MNIST is not where the settings say.
    """
    where: dict[str, Any] = {"data_root": settings.data_folder, "download": settings.download}
    data = load_first_of(DIGITS, train=settings.train, test=settings.test, **where)
    grid = QUESTIONS[settings.question].grid
    training, testing = (F.adaptive_avg_pool2d(part.inputs, grid).flatten(1) for part in (data.train, data.test))
    lowest, highest = training.amin(dim=0), training.amax(dim=0)
    middle, half = (highest + lowest) / 2, (highest - lowest) / 2
    half = torch.where(half > 0, half, 1)  # a pixel that is always blank says nothing
    return Rows((training - middle) / half, data.train.labels), Rows((testing - middle) / half, data.test.labels)


def train(settings: RecipeSettings, work: Work) -> dict[str, Any]:
    """Trains one network; returns what it came to."""
    torch.manual_seed(settings.seed)
    with work.fabric.rank_zero_first():  # only one process downloads
        training, testing = load(settings)
    model, stages = network(settings, work.layer_options()), stages_of(settings)
    total = sum(stages.values())
    for stage, epochs in stages.items():
        enter(stage, model)
        for batch in work.steps(
            model, cross_entropy, training, testing, stage=stage, epochs=epochs, total_epochs=total
        ):
            scores = model(batch.inputs)
            batch.learn(cross_entropy(scores, batch.labels), scores)
    last = [row for row in work.rows if row["stage"] == stage]
    reached = [number for number, row in enumerate(last, 1) if row["test_accuracy"] >= settings.accuracy]
    return {
        "question": settings.question,
        "answer": settings.answer,
        "dataset": settings.dataset,
        "parameters": last[-1]["trained_parameters"],
        "epochs_to_accuracy": reached[0] if reached else None,
        "hardware_circuits_a_step": circuits_of_step(settings, work.layer_options()),
        **work.result(),
    }


def circuits_of_step(settings: RecipeSettings, options: Mapping[str, Any]) -> int:
    """The circuits of a step by parameter shift, as on hardware, in the last stage."""
    shifting = {**options, "backend": "statevector", "shots": SHOTS_OF_QUOTE, "gradient": "parameter_shift"}
    layers = quantum_layers_with_gradients(_in_last_stage(settings, shifting))
    return sum(layer.quote(settings.batch_size, inputs_require_grad=before).circuits for layer, before in layers)


def _in_last_stage(settings: RecipeSettings, options: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # which weights it has does not matter, and the run's are to come
        model = network(settings, options)
    enter([*stages_of(settings)][-1], model)
    return model


def cost(settings: RecipeSettings, options: Mapping[str, Any]) -> str:
    """What a step on hardware costs, and the whole run as it is set."""
    total = sum(stages_of(settings).values())
    whole = quote_of_stage(
        quantum_layers_with_gradients(_in_last_stage(settings, options)),
        settings,
        epochs=settings.epochs,
        total_epochs=total,
        epochs_before=total - settings.epochs,
        train=settings.train,
        test=settings.test,
    )
    if not whole[1].circuits:
        return "No circuits: the network is classical."
    step = circuits_of_step(settings, options)
    return (
        f"A step of {settings.batch_size} example(s) by parameter shift: {step:,} circuits.\n"
        f"The run of {settings.epochs} epochs: {between(*whole)}"
    )


def draw(folder: RunFolder, settings: RecipeSettings) -> None:
    """The figure of one training."""
    title = f"{settings.question}: {settings.answer}"
    folder.write_figure("loss.png", learning_curves(folder.read_rows(), title=title, loss_label="cross entropy"))


EXPERIMENT = Experiment(
    name="recipes",
    settings=RecipeSettings,
    train=train,
    figures=draw,
    cost=cost,
    complete=complete,
    variants=variants,
    draw_all=draw_answers,
)
