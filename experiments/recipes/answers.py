"""The answers: a table of all networks, and a figure for each question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from qiskit_torch_bridge.commands.printing import in_columns

from ..common.comparison import MARKERS, STYLES, grouped
from ..common.options import saved_settings
from ..common.runs import RunFolder
from .questions import QUESTIONS
from .recipe_settings import RecipeSettings


def draw_answers(folder: RunFolder, parts: Mapping[str, RunFolder]) -> None:
    """Writes and prints ``answers.csv``, and draws a figure for each question, from the trainings' folders."""
    groups = {
        question: grouped(group, lambda part: str(part.read_result()["answer"]))
        for question, group in grouped(parts.values(), lambda part: part.read_result()["question"]).items()
    }
    rows = [
        _answer_row(question, answer, [part.read_result() for part in group])
        for question, answers in groups.items()
        for answer, group in answers.items()
    ]
    folder.write_rows("answers.csv", rows)
    print(in_columns(rows))
    for question, answers in groups.items():
        folder.write_figure(f"{question}.png", answer_figure(question, answers))


def _answer_row(question: str, answer: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tests = [result["test_accuracy"] for result in results]
    epochs = [result["epochs_to_accuracy"] for result in results]
    return {
        "question": question,
        "answer": answer,
        "seeds": len(results),
        "test median": median(tests),
        "min": min(tests),
        "max": max(tests),
        "training median": median(result["train_accuracy"] for result in results),
        "epochs to accuracy": median([math.inf if number is None else number for number in epochs]),
        "reached by": sum(number is not None for number in epochs),
        "parameters": results[0]["parameters"],
        "circuits a step": results[0]["hardware_circuits_a_step"],
        "seconds": median(result["seconds"] for result in results),
    }


def answer_figure(question: str, answers: Mapping[str, Sequence[RunFolder]]) -> Figure:
    """Each seed's accuracies after the last epoch, with medians; and how the median test accuracy gets there.

    Args:
        question: Its name.
        answers: The finished trainings of each network.
    """
    figure = Figure(figsize=(10.5, 1.9 + 0.5 * len(answers)), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = []
    for place, (answer, group) in enumerate(answers.items()):
        results = [part.read_result() for part in group]
        for kind, offset, face in (("train_accuracy", 0.18, "w"), ("test_accuracy", -0.12, "k")):
            values = [result[kind] for result in results]
            left.plot(values, [place + offset] * len(values), "o", color="k", markerfacecolor=face, markersize=5)
            left.plot([median(values)] * 2, [place + offset - 0.14, place + offset + 0.14], "k-", linewidth=1.5)
        circuits = results[0]["hardware_circuits_a_step"]
        labels.append(f"{answer}\n{circuits:,} circuits a step" if circuits else f"{answer}\nno circuits")
    left.set_yticks(range(len(answers)), labels)
    left.invert_yaxis()
    left.set_xlabel("accuracy after the last epoch\n(filled: test; open: training; bar: median)")
    for number, (answer, group, style) in enumerate(zip(answers, answers.values(), cycle(STYLES), strict=False)):
        curves = [_last_stage(part.read_rows()) for part in group]
        right.plot(
            range(1, 1 + min(map(len, curves))),
            [median(values) for values in zip(*curves, strict=False)],
            style,
            marker=MARKERS[number % len(MARKERS)],
            color=f"C{number}",
            markersize=4,
            label=answer,
        )
    settings = saved_settings("recipes", RecipeSettings, next(iter(answers.values()))[0])
    right.axhline(settings.accuracy, color="k", linewidth=0.8, linestyle=":")
    right.set(
        xlabel="epoch" + (" with the quantum layer" if question == "quick-start" else ""), ylabel="median test accuracy"
    )
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(QUESTIONS[question].text)
    return figure


def _last_stage(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["test_accuracy"] for row in rows if row["stage"] == rows[-1]["stage"]]
