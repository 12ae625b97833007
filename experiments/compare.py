"""Puts runs side by side: what they were set to where they differ, what they came to, and how they got there.

A run of several seeds or variants counts as one entry for each variant, with the median and the quartiles of its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from qiskit_torch_bridge.commands.printing import in_columns

from .common.comparison import Curve, comparison_figure, seeds_figure, summarize
from .common.experiment import trainings_of
from .common.options import flat
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
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Folder for comparison.csv, comparison.png, seeds.png (default: a new one under runs/).",
    )
    options = parser.parse_args(list(arguments))

    groups: dict[str, list[tuple[dict[str, Any], Curve, dict[str, Any]]]] = {}
    for path, run in _names([Path(run).resolve() for run in options.runs]).items():
        for variant, part in trainings_of(RunFolder.existing(path)):
            result = part.read_result()
            curve = Curve(part.read_rows(), result["test_accuracy"])
            settings = part.read_settings()
            name = run if variant in ("", settings["experiment"]) else f"{run} {variant}"
            groups.setdefault(name, []).append((settings, curve, result))
    rows = [_row(name, group, options.error_below) for name, group in groups.items()]
    rows = [{key: value for key, value in row.items() if _differs(key, rows)} for row in rows]
    print(in_columns(rows))
    out = RunFolder.fresh(None, "compare") if options.out is None else RunFolder(Path(options.out))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out.write_rows("comparison.csv", [{key: row.get(key, "") for key in columns} for row in rows])
    curves = {name: [curve for _, curve, _ in group] for name, group in groups.items()}
    out.write_figure("comparison.png", comparison_figure(curves, against=options.against))
    if any(len(group) > 1 for group in curves.values()):
        out.write_figure("seeds.png", seeds_figure(curves, {}))
    print(f"comparison.csv and figures are in {out.path.resolve()}")
    return 0


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """The folders' names, with as many folders above them as it takes to tell them apart.

    Raises:
        ValueError: If a folder comes twice.
    """
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"Got {path} twice, expected different runs.")
    return {path: _name(path, [other for other in paths if other != path]) for path in paths}


def _name(path: Path, others: Sequence[Path]) -> str:
    depth = 1
    while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
        depth += 1
    return str(Path(*path.parts[-depth:]))


def _row(name: str, group: Sequence[tuple[dict[str, Any], Curve, dict[str, Any]]], threshold: float | None) -> Any:
    settings = group[0][0]
    accuracies = [curve.test_accuracy for _, curve, _ in group]
    numbers = summarize(accuracies)
    row = {"run": name} | {key: value for key, value in flat(settings).items() if key not in _NOT_COMPARED}
    row |= {"experiment": settings["experiment"], "seeds": len(group), "test accuracy": numbers["median"]}
    if len(group) > 1:
        row |= {key: numbers[key] for key in ("lower_quartile", "upper_quartile", "min", "max")}
    if threshold is not None:
        low = sum(_error(accuracy) < threshold for accuracy in accuracies)
        row[f"error below {threshold:g}"] = low / len(accuracies)
    for key in ("seconds", "circuits", "shots"):
        row[key] = sum(result[key] for _, _, result in group)
    return row


def _error(accuracy: float) -> float:
    """The share of errors; ``1 - 0.9`` is a little less than 0.1, which is no error below 0.1."""
    return round(1 - accuracy, 12)


def _differs(key: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a column tells the runs apart; what they came to is always shown."""
    measured = {"run", "seeds", "test accuracy", "lower_quartile", "upper_quartile", "min", "max"}
    shown = measured | {"seconds", "circuits", "shots"}
    return key in shown or key.startswith("error below") or len({str(row.get(key)) for row in rows}) > 1
