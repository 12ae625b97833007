"""The answers: a table of all networks, and a figure for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from qiskit_torch_bridge.commands.printing import in_columns

from ..common.comparison import grouped
from ..common.options import saved_settings
from ..common.panels import finish, marks
from ..common.runs import RunFolder
from .questions import QUESTIONS
from .recipe_settings import RecipeSettings

Training = tuple[Mapping[str, Any], Sequence[float]]
"""What a training came to, and the test accuracy after each epoch of its last stage."""


def draw_answers(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """Writes and prints ``answers.csv``, and draws a figure for each question, from the trainings' folders."""
    trainings = grouped(map(_training, parts.values()), lambda each: (each[0]["question"], each[0]["answer"]))
    rows = [_answer_row([result for result, _ in group]) for group in trainings.values()]
    folder.write_rows("answers.csv", rows)
    print(in_columns(rows))
    target = saved_settings("recipes", RecipeSettings, next(iter(parts.values()))).accuracy
    for question, keys in grouped(trainings, lambda key: key[0]).items():
        answers = {str(answer): trainings[question, answer] for _, answer in keys}
        folder.write_figure(f"{question}.png", _answer_figure(question, answers, target))


def _training(folder: RunFolder) -> Training:
    rows = folder.read_rows()
    return folder.read_result(), [row["test_accuracy"] for row in rows if row["stage"] == rows[-1]["stage"]]


def _answer_row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a network: over its seeds the median and the range of what it came to, and what it costs."""
    tests = [result["test_accuracy"] for result in results]
    epochs = [inf if result["epochs_to_accuracy"] is None else result["epochs_to_accuracy"] for result in results]
    return {
        "question": results[0]["question"],
        "answer": results[0]["answer"],
        "seeds": len(results),
        "test median": median(tests),
        "min": min(tests),
        "max": max(tests),
        "training median": median(result["train_accuracy"] for result in results),
        "epochs to accuracy": median(epochs),
        "reached by": len(epochs) - epochs.count(inf),
        "parameters": results[0]["parameters"],
        "circuits a step": results[0]["hardware_circuits_a_step"],
        "seconds": median(result["seconds"] for result in results),
    }


def _answer_figure(question: str, answers: Mapping[str, Sequence[Training]], target: float) -> Figure:
    """Each seed's accuracies after the last epoch, with medians; and how the median test accuracy gets to the target."""
    figure = Figure(figsize=(10.5, 2.3 + 0.5 * len(answers)), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = []
    for place, (mark, (answer, group)) in enumerate(zip(marks(answers).values(), answers.items(), strict=True)):
        for kind, height, face in (("train_accuracy", place + 0.18, "w"), ("test_accuracy", place - 0.12, "k")):
            values = [result[kind] for result, _ in group]
            left.plot(values, [height] * len(values), "o", color="k", markerfacecolor=face, markersize=5)
            left.vlines(median(values), height - 0.14, height + 0.14, color="k")
        circuits = group[0][0]["hardware_circuits_a_step"]
        labels.append(f"{answer}\n{circuits:,} circuits a step" if circuits else f"{answer}\nno circuits")
        medians = [median(values) for values in zip(*(accuracies for _, accuracies in group), strict=False)]
        style: dict[str, Any] = {"marker": mark.marker, "linestyle": mark.line, "color": mark.colour, "markersize": 4}
        right.plot(range(1, 1 + len(medians)), medians, label=answer, **style)
    left.set_yticks(range(len(answers)), labels)
    left.invert_yaxis()
    left.set_xlabel("accuracy after the last epoch\n(filled: test; open: training; bar: median)")
    right.axhline(target, color="k", linewidth=0.8, linestyle=":")
    with_layer = " with the quantum layer" if question == "quick-start" else ""
    right.set(xlabel=f"epoch{with_layer}", ylabel="median test accuracy")
    right.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(QUESTIONS[question].text)
    return finish(figure, columns=3)
