"""Puts runs side by side: what they were set to where they differ, what they came to, and how they got there.

Trainings: a run of several seeds or variants counts as one entry for each variant, with the median and the quartiles of its
seeds. Studies of one kind: their tables row by row, with z, the difference of each number from that of the first run in
standard errors, by which one sees whether the runs agree: of such runs about 5 % are beyond 2, and more where the standard
errors come from few trainings, or are those at points that another seed changes (gradient-methods).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qiskit_torch_bridge.commands.printing import in_columns

from .catalogue import command_in
from .common.options import flat, named_parser, saved_settings
from .common.runs import RunFolder

if TYPE_CHECKING:
    from .common.comparison import Compared
    from .common.runner import Command
    from .common.studies import Study

_NOT_COMPARED = ("seed", "seeds", "data_root", "device", "download")


def main(arguments: Sequence[str]) -> int:
    """Prints the tables and draws the figures; returns the exit status."""
    parser = named_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", type=str, help="Folders of finished runs.")
    parser.add_argument(
        "--against",
        choices=["epoch", "seconds", "circuits", "total_shots", "shots"],
        default="epoch",
        help="What trainings are drawn against. epoch, seconds, circuits, total_shots (spent so far): loss and accuracy "
        "on their way. shots: the final test accuracy against the shots a circuit, one curve for the runs that differ in "
        "nothing but shots and seed; points are means over seeds, bars their standard errors. Exact runs are level lines; "
        "with a shot schedule, the shots a circuit are the mean of those that were spent.",
    )
    parser.add_argument(
        "--error-below", type=float | None, default=None, help="Adds the share of seeds with a test error below this."
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="Folder for tables and figures (default: a new one under runs/)."
    )
    options = parser.parse_args(list(arguments))
    folders = {
        name: RunFolder.existing(path) for path, name in _names([Path(run).resolve() for run in options.runs]).items()
    }
    from .common.studies import Study  # and PyTorch with it

    commands = {name: command_in(folder) for name, folder in folders.items()}
    studies = {name: command for name, command in commands.items() if isinstance(command, Study)}
    if studies:
        _require_one_kind(commands, options)
        write = _compare_studies(next(iter(studies.values())), folders)
    else:
        write = _compare_trainings(commands, folders, options)
    out = RunFolder.fresh(None, "compare") if options.out is None else RunFolder(Path(options.out))
    for name, content in write.items():
        (out.write_rows if name.endswith(".csv") else out.write_figure)(name, content)
    print(f"{', '.join(write)}: in {out.path.resolve()}")
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


def _require_one_kind(commands: Mapping[str, Any], options: Any) -> None:
    if len({command.name for command in commands.values()}) > 1:
        kinds = ", ".join(f"{name} ({command.name})" for name, command in commands.items())
        raise ValueError(f"Got {kinds}, expected runs of one study, or trainings only; compare them apart.")
    if options.against != "epoch" or options.error_below is not None:
        raise ValueError("--against, --error-below: got them for studies, expected trainings; leave them out.")


def _compare_studies(study: Study[Any], folders: Mapping[str, RunFolder]) -> dict[str, Any]:
    from .common.study_comparison import agreement, scores_figure, side_by_side

    settings = {name: saved_settings(study.name, study.settings, folder) for name, folder in folders.items()}
    findings = {name: study.findings(settings[name], folder) for name, folder in folders.items()}
    rows = [
        {"run": name}
        | {key: value for key, value in flat(settings[name]).items() if key != "data_root"}
        | {key: value for key, value in found.numbers.items() if not isinstance(value, (list, dict))}
        for name, found in findings.items()
    ]
    shown = {"run", *next(iter(findings.values())).numbers}
    rows = [{key: value for key, value in row.items() if key in shown or _differs(key, rows)} for row in rows]
    names = list(dict.fromkeys(key for row in rows for key in row if key != "run"))
    print(in_columns([{"": key} | {row["run"]: row.get(key, "") for row in rows} for key in names]))
    tables = {
        table: side_by_side({name: found.tables[table] for name, found in findings.items() if table in found.tables})
        for table in dict.fromkeys(table for found in findings.values() for table in found.tables)
    }
    for table, compared in tables.items():
        print(f"\n{table}\n{in_columns(compared.rows)}")
        rows += [{"run": row["run"], "table": table, **row} for row in compared.rows]
    if len(folders) == 1:
        return {"comparison.csv": _filled(rows)}
    print(f"\n{agreement(tables.values())}")
    return {"comparison.csv": _filled(rows), "comparison.png": scores_figure(tables, next(iter(folders)))}


def _compare_trainings(
    commands: Mapping[str, Command[Any]], folders: Mapping[str, RunFolder], options: Any
) -> dict[str, Any]:
    from .common.comparison import Compared, Curve, against_shots, comparison_figure, seeds_figure, shots_figure
    from .common.experiment import Experiment

    groups: dict[str, list[Compared]] = {}
    for run, folder in folders.items():
        command = commands[run]
        assert isinstance(command, Experiment)
        for variant, part, settings in command.trainings(folder):
            result = part.read_result()
            values = {key: value for key, value in flat(settings).items() if key not in _NOT_COMPARED}
            curve = Curve(part.read_rows(), result["test_accuracy"])
            name = run if variant in ("", command.name) else f"{run} {variant}"
            groups.setdefault(name, []).append(Compared({"experiment": command.name} | values, curve, result))
    rows = [_row(name, group, options.error_below) for name, group in groups.items()]
    rows = [{key: value for key, value in row.items() if _differs(key, rows)} for row in rows]
    print(in_columns(rows))
    write: dict[str, Any] = {"comparison.csv": _filled(rows)}
    if options.against == "shots":
        points = against_shots([each for group in groups.values() for each in group])
        print(f"\n{in_columns(points)}")
        write |= {"shots.csv": points, "comparison.png": shots_figure(points)}
    else:
        curves = {name: [each.curve for each in group] for name, group in groups.items()}
        write["comparison.png"] = comparison_figure(curves, against=options.against)
        if any(len(group) > 1 for group in curves.values()):
            write["seeds.png"] = seeds_figure(curves, {})
    return write


def _row(name: str, group: Sequence[Compared], threshold: float | None) -> dict[str, Any]:
    from .common.comparison import summarize

    accuracies = [each.curve.test_accuracy for each in group]
    numbers = summarize(accuracies)
    row: dict[str, Any] = {"run": name}
    row |= {"shots a circuit" if key == "shots" else key: value for key, value in group[0].settings.items()}
    row |= {"seeds": len(group), "test accuracy": numbers["median"]}
    if len(group) > 1:
        row |= {key: numbers[key] for key in ("lower_quartile", "upper_quartile", "min", "max")}
    if threshold is not None:
        low = sum(_error(accuracy) < threshold for accuracy in accuracies)
        row[f"error below {threshold:g}"] = low / len(accuracies)
    return row | {key: sum(each.result[key] for each in group) for key in ("seconds", "circuits", "shots")}


def _error(accuracy: float) -> float:
    """The share of errors; ``1 - 0.9`` is a little less than 0.1, which is no error below 0.1."""
    return round(1 - accuracy, 12)


def _differs(key: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether a column tells the runs apart; what they came to is always shown."""
    measured = {"run", "seeds", "test accuracy", "lower_quartile", "upper_quartile", "min", "max"}
    shown = measured | {"seconds", "circuits", "shots"}
    return key in shown or key.startswith("error below") or len({str(row.get(key)) for row in rows}) > 1


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the columns of all of them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key, "") for key in columns} for row in rows]
