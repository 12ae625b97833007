"""Puts runs side by side: what they were set to where they differ, what they came to, and how they got there.

A run of several seeds or variants counts as one entry for each variant, with the median and the quartiles of its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from .common.command import trainings_of
from .common.comparison import Curve, comparison_figure, seeds_figure, summarize, table
from .common.runs import RunFolder

_NOT_COMPARED = ("experiment", "seed", "seeds", "data_root", "device", "download")


def main(arguments: Sequence[str]) -> int:
    """Prints the table and draws the figures; returns the exit status."""
    parser = ArgumentParser(prog="python -m experiments compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=str, help="Folders of finished runs.")
    parser.add_argument(
        "--against",
        choices=["epoch", "seconds", "circuits", "shots"],
        default="epoch",
        help="What the curves are drawn against.",
    )
    parser.add_argument(
        "--error-below", type=float | None, default=None, help="Adds the share of seeds with a test error below this."
    )
    parser.add_argument("--out", type=str, default=".", help="Folder for comparison.csv, comparison.png, seeds.png.")
    options = parser.parse_args(list(arguments))

    groups: dict[str, list[tuple[dict[str, Any], Curve, dict[str, Any]]]] = {}
    for run in options.runs:
        folder = RunFolder.existing(Path(run))
        for variant, part in trainings_of(folder):
            result = part.read_result()
            curve = Curve(part.read_rows(), result["test_accuracy"])
            name = _name(run, variant)
            groups.setdefault(name, []).append((part.read_settings(), curve, result))
    rows = [_row(name, group, options.error_below) for name, group in groups.items()]
    rows = [{key: value for key, value in row.items() if _differs(key, rows)} for row in rows]
    print(table(rows))
    out = RunFolder(Path(options.out))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out.write_rows("comparison.csv", [{key: row.get(key, "") for key in columns} for row in rows])
    curves = {name: [curve for _, curve, _ in group] for name, group in groups.items()}
    out.write_figure("comparison.png", comparison_figure(curves, against=options.against))
    if any(len(group) > 1 for group in curves.values()):
        out.write_figure("seeds.png", seeds_figure(curves, {}))
    print(f"comparison.csv and figures are in {out.path.resolve()}")
    return 0


def _name(run: str, variant: str) -> str:
    name = Path(run).resolve().name
    return f"{name} {variant}" if variant else name


def _row(name: str, group: Sequence[tuple[dict[str, Any], Curve, dict[str, Any]]], threshold: float | None) -> Any:
    settings = group[0][0]
    accuracies = [curve.test_accuracy for _, curve, _ in group]
    numbers = summarize(accuracies)
    row = {"run": name} | {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
    row |= {"experiment": settings["experiment"], "seeds": len(group), "test accuracy": numbers["median"]}
    if len(group) > 1:
        row |= {key: numbers[key] for key in ("lower_quartile", "upper_quartile", "min", "max")}
    if threshold is not None:
        row[f"error below {threshold:g}"] = sum(1 - accuracy < threshold for accuracy in accuracies) / len(accuracies)
    for key in ("seconds", "circuits", "shots"):
        row[key] = sum(result[key] for _, _, result in group)
    return row


def _differs(key: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a column tells the runs apart; what they came to is always shown."""
    measured = {"run", "seeds", "test accuracy", "lower_quartile", "upper_quartile", "min", "max"}
    shown = measured | {"seconds", "circuits", "shots"}
    return key in shown or key.startswith("error below") or len({str(row.get(key)) for row in rows}) > 1
