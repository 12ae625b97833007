"""Puts runs side by side: what they were set to where they differ, what they came to, and how they got there.

Trainings: a run of several seeds or variants counts as one entry for each variant, with the median and the quartiles of its
seeds. Studies of one kind: their tables row by row, with z, the difference of each number from that of the first run in
standard errors, by which one sees whether the runs agree: of such runs about 5 % are beyond 2, and more where the standard
errors come from few trainings, or are those at points that another seed changes (gradient-methods). A number that cannot be
negative, such as a plateau of shot-noise, is 0 where its fit came out below: two such numbers have z = 0, however far below
0 they were; beside a number above 0, the error of the one at 0 is taken from the upper end of its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from qiskit_torch_bridge.commands.printing import in_columns

from .catalogue import command_in
from .common.options import flat, named_parser, saved_settings
from .common.runs import RunFolder

if TYPE_CHECKING:
    from .common.comparison import Compared

_NOT_COMPARED = ("seed", "seeds", "data_root", "device", "download", "gradient_variances")


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
        "nothing but shots and seed; points are means over seeds, bars their standard errors; a seed that comes "
        "several times counts once. Exact runs are level lines; "
        "with a shot schedule, the shots a circuit are the mean of those that were spent.",
    )
    parser.add_argument(
        "--error-below", type=float | None, default=None, help="Adds the share of seeds with a test error below this."
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="Folder for tables and figures (default: a new one under runs/)."
    )
    options = parser.parse_args(list(arguments))
    paths = _by_name([Path(run).resolve() for run in options.runs])
    folders = {name: RunFolder.existing(path) for name, path in paths.items()}
    from .common.studies import Study  # and PyTorch with it

    commands = {name: command_in(folder) for name, folder in folders.items()}
    is_study = any(isinstance(command, Study) for command in commands.values())
    write = (_compare_studies if is_study else _compare_trainings)(commands, folders, options)
    out = RunFolder.fresh(None, "compare") if options.out is None else RunFolder(Path(options.out))
    for name, content in write.items():
        if name.endswith(".csv"):
            empty = {column: "" for row in content for column in row}
            out.write_rows(name, [empty | row for row in content])
        else:
            out.write_figure(name, content)
    print(f"{', '.join(write)}: in {out.path.resolve()}")
    return 0


def _by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """The folders by their names, with as many folders above them as it takes to tell them apart.

    Raises:
        ValueError: If a folder comes twice.
    """
    named = {}
    for path in paths:
        others, depth = [other for other in paths if other != path], 1
        if len(others) < len(paths) - 1:
            raise ValueError(f"Got {path} twice, expected different runs.")
        while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        named[str(Path(*path.parts[-depth:]))] = path
    return named


def _compare_studies(commands: Mapping[str, Any], folders: Mapping[str, RunFolder], options: Any) -> dict[str, Any]:
    from .common.study_comparison import agreement, scores_figure, side_by_side

    study, *others = commands.values()
    if any(other.name != study.name for other in others):
        kinds = ", ".join(f"{name} ({command.name})" for name, command in commands.items())
        raise ValueError(f"Got {kinds}, expected runs of one study, or trainings only; compare them apart.")
    if options.against != "epoch" or options.error_below is not None:
        raise ValueError("--against, --error-below: got them for studies, expected trainings; leave them out.")
    settings = {name: saved_settings(study.name, study.settings, folder) for name, folder in folders.items()}
    findings = {name: study.findings(settings[name], folder) for name, folder in folders.items()}
    rows: list[dict[str, Any]] = []
    for told, (name, found) in zip(_different(map(flat, settings.values())), findings.items(), strict=True):
        numbers = {key: value for key, value in found.numbers.items() if not isinstance(value, (list, dict))}
        rows.append({"run": name, **told, **numbers})
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "run"]
    print(in_columns([{"": key} | {row["run"]: row.get(key, "") for row in rows} for key in names]))
    tables = {
        table: side_by_side({name: found.tables[table] for name, found in findings.items() if table in found.tables})
        for table in dict.fromkeys(table for found in findings.values() for table in found.tables)
    }
    for table, compared in tables.items():
        print(f"\n{table}\n{in_columns(compared.rows)}")
        rows += [{"run": row["run"], "table": table, **row} for row in compared.rows]
    if len(folders) == 1:
        return {"comparison.csv": rows}
    print(f"\n{agreement(tables.values())}")
    return {"comparison.csv": rows, "comparison.png": scores_figure(tables, next(iter(folders)))}


def _compare_trainings(commands: Mapping[str, Any], folders: Mapping[str, RunFolder], options: Any) -> dict[str, Any]:
    from .common.comparison import Compared, against_shots, comparison_figure, seeds_figure, shots_figure

    groups: dict[str, list[Compared]] = {}
    for run, command in commands.items():
        for variant, part, settings in command.trainings(folders[run]):
            name = run if variant in ("", command.name) else f"{run} {variant}"
            result, values = part.read_result(), {"experiment": command.name, **flat(settings)}
            values = {key: value for key, value in values.items() if key not in _NOT_COMPARED}
            training = Compared(part.read_rows(), result["test_accuracy"], values, result, settings.seed)
            groups.setdefault(name, []).append(training)
    rows: list[dict[str, Any]] = []
    different = _different(group[0].settings for group in groups.values())
    for told, (name, group) in zip(different, groups.items(), strict=True):
        told = {"shots a circuit" if key == "shots" else key: value for key, value in told.items()}
        rows.append({"run": name, **told, **_measured(group, options.error_below)})
    print(in_columns(rows))
    if options.against == "shots":
        points = against_shots([each for group in groups.values() for each in group])
        print(f"\n{in_columns(points)}")
        return {"comparison.csv": rows, "shots.csv": points, "comparison.png": shots_figure(points)}
    write = {"comparison.csv": rows, "comparison.png": comparison_figure(groups, against=options.against)}
    if any(len(group) > 1 for group in groups.values()):
        write["seeds.png"] = seeds_figure(groups, {})
    return write


def _different(settings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings of each run that tell it from another one."""
    rows = list(settings)
    same = {key for row in rows for key in row if len({str(each.get(key)) for each in rows}) == 1} | {"data_root"}
    return [{key: value for key, value in row.items() if key not in same} for row in rows]


def _measured(group: Sequence[Compared], threshold: float | None) -> dict[str, Any]:
    """What a run's seeds came to, and cost together."""
    from .common.comparison import summarize

    accuracies = [each.test_accuracy for each in group]
    numbers = summarize(accuracies)
    row = {"seeds": len(group), "median test accuracy": numbers["median"]}
    if len(group) > 1:
        row |= {key: numbers[key] for key in ("lower_quartile", "upper_quartile", "min", "max")}
    if threshold is not None:  # rounded, because 1 - 0.9 is a little less than 0.1, which is no error below 0.1
        row[f"error below {threshold:g}"] = fmean(round(1 - accuracy, 12) < threshold for accuracy in accuracies)
    return row | {key: sum(each.result[key] for each in group) for key in ("seconds", "circuits", "shots")}
