"""The command of an experiment: options, run folders, seeds and variants, results, figures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from qiskit_torch_bridge import BudgetExceeded, HardwareError
from qiskit_torch_bridge.backends.passport import costs_of_jobs
from qiskit_torch_bridge.commands.printing import in_columns

from .comparison import Curve, comparison_figure, grouped, seeds_figure, summarize
from .hardware import CAPS, IN_MEMORY, LEDGER, discard_unused_ledger, ledger_of, opened, require_one_session
from .options import FREE, Settings, flat, folder_path, parse, saved_settings
from .runs import RunFolder
from .trainer import Interrupted
from .workplace import Workplace, open_fabric

if TYPE_CHECKING:
    from qiskit_torch_bridge import IBMBackend


class Training(NamedTuple):
    """One training of a run: the name of its folder within the run's (empty if it is the only one), variant, settings."""

    name: str
    variant: str
    settings: Settings


@dataclass(frozen=True)
class Experiment:
    """What an experiment is made of; :func:`run_command` does the rest.

    A run is one training, or one for each variant (a circuit and its classical twin) and each seed; those have folders of
    their own within the run's, each of which is a run that can be continued, drawn and compared.

    Attributes:
        name: As on the command line.
        parser: Makes the parser of its options.
        train: Trains what the settings say, in a workplace; returns what goes to ``result.json``, with at least
            ``test_accuracy``, ``seconds``, ``circuits`` and ``shots``.
        draw: Draws the figures of such a run from the files in its folder.
        cost: What a run would cost, in words, for ``--dry-run``.
        complete: Settles what a new run's settings leave open, and refuses what cannot be.
        variants: From settings to the settings of each training by name.
        draw_all: Draws further figures of a run with several trainings, from their folders by name.
        extendable: The settings that may grow when a finished run is continued.
        published: The published test accuracy for given settings, where there is one, for figures.
    """

    name: str
    parser: Callable[[], Any]
    train: Callable[[Settings, Workplace], Mapping[str, Any]]
    draw: Callable[[RunFolder], None]
    _: KW_ONLY
    cost: Callable[[Settings], str]
    complete: Callable[[Settings], Settings] = lambda settings: settings
    variants: Callable[[Settings], Mapping[str, Settings]] = lambda settings: {"": settings}
    draw_all: Callable[[RunFolder, Mapping[str, RunFolder]], None] = lambda folder, parts: None
    extendable: Collection[str] = ("epochs",)
    published: Callable[[Settings], float | None] = lambda settings: None


def run_command(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit status."""
    options, settings = parse(
        experiment.parser(), arguments, complete=experiment.complete, extendable=experiment.extendable
    )
    trainings = _trainings(experiment, settings)
    if options.dry_run:
        _print_cost(experiment, trainings, settings)
        return 0
    fabric = open_fabric(settings["device"])
    require_one_session(settings, fabric.world_size)
    folder = _open_folder(options, experiment.name, fabric)
    work = Workplace(folder, fabric, options.resume)
    try:
        with opened(settings, ledger_of(folder) if options.resume else folder.file(LEDGER)) as device:
            _train_all(experiment, trainings, settings, work, device)
    except (Exception, KeyboardInterrupt) as error:
        _discard_if_unused(work)
        if isinstance(error, (Interrupted, KeyboardInterrupt)):  # the latter before, between and after trainings
            if fabric.is_global_zero:
                print(f"\nInterrupted; {_how_to_go_on(experiment, folder)}")
            return 130
        if not isinstance(error, HardwareError):
            raise
        # One process may meet it alone: torchrun then ends the others.
        print(f"{experiment.name}: {' '.join(str(error).split())}", file=sys.stderr)
        print(f"The run has stopped; {_how_to_go_on(experiment, folder)}")
        if isinstance(error, BudgetExceeded):
            print(f"With a larger cap: --{', --'.join(CAPS)}")
        return 1
    if fabric.is_global_zero:
        print(f"Results and figures are in {folder.path}")
    return 0


def draw(folder: RunFolder) -> None:
    """Draws a run's figures anew from its files; of a run with several trainings, those of the finished ones.

    Raises:
        ValueError: If the folder is not that of a run, or holds nothing to draw yet.
    """
    experiment, settings = experiment_of(folder)
    parts = _parts(experiment, settings, folder)
    if not parts:
        experiment.draw(folder)
        return
    missing = _unfinished(parts)
    for training, part in parts:
        if training.name not in missing:
            experiment.draw(part)
    if missing:
        raise ValueError(
            f"{folder.path} has not finished ({', '.join(missing)} to come), so the figures of all its trainings were not "
            "drawn; finish it with --resume."
        )
    _draw_all(experiment, settings, folder, parts)


def trainings_of(folder: RunFolder) -> list[tuple[str, RunFolder]]:
    """The trainings of a run, each with the name of its variant (empty where the run is a single training).

    Raises:
        ValueError: If one of them has not finished.
    """
    parts = _parts(*experiment_of(folder), folder)
    missing = _unfinished(parts)
    if missing:
        raise ValueError(f"{folder.path} has not finished ({', '.join(missing)} to come); finish it with --resume.")
    if not parts:
        folder.read_result()
    return [(training.variant, part) for training, part in parts] or [("", folder)]


def experiment_of(folder: RunFolder) -> tuple[Experiment, Settings]:
    """The experiment that a run is of, and the run's settings.

    Raises:
        ValueError: If the folder is not that of a run.
    """
    try:
        experiment = _experiment_named(folder.read_settings().get("experiment"))
    except ValueError as error:
        raise ValueError(f"{folder.file('config.yaml')}: {error}") from error
    return experiment, saved_settings(experiment.parser(), folder)


def _experiment_named(name: Any) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: If there is none with runs.
    """
    module = f"experiments.{name}"
    try:
        experiment = import_module(module).EXPERIMENT
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError) and error.name != module:
            raise  # of a package that the experiment needs
        raise ValueError(f"experiment: got {name!r}, expected one that trains; give the folder of a run.") from error
    assert isinstance(experiment, Experiment)
    return experiment


def _print_cost(experiment: Experiment, trainings: Sequence[Training], settings: Settings) -> None:
    with opened(settings, IN_MEMORY) as device:
        for training in trainings:
            if training.settings["seed"] == settings["seed"]:
                cost = experiment.cost(_on(device, training.settings))
                print(f"{training.name}:\n{cost}" if training.name else cost)
    if settings["seeds"] > 1:
        print(f"That for each of {settings['seeds']} seeds.")


def _train_all(
    experiment: Experiment,
    trainings: Sequence[Training],
    settings: Settings,
    work: Workplace,
    device: IBMBackend | None,
) -> None:
    single = len(trainings) == 1
    if not single and work.resume:
        _require_none_ahead(experiment, trainings, work.folder)
    if work.fabric.is_global_zero and (device is not None or not single):
        work.folder.write_settings(settings)  # before anything is paid for, because nobody could continue without them
    if single:
        _train(experiment, trainings[0].settings, work, device)
    else:
        for training in trainings:
            _train_part(experiment, training, work, device)
        if work.fabric.is_global_zero:
            _summarize(experiment, settings, work.folder, device)
    if work.fabric.is_global_zero and device is not None:
        print(_bill(device))


def _on(device: IBMBackend | None, settings: Settings) -> Settings:
    """The settings with the device itself in place of its word."""
    return settings if device is None else {**settings, "backend": device}


def _costs(device: IBMBackend | None) -> dict[str, Any]:
    """What all jobs of the run came to, those without a result included; nothing where there are none."""
    if device is None:
        return {}
    device.settle_bills()
    return {"backend": device.name, **costs_of_jobs(device.ledger.entries())}


def _bill(device: IBMBackend) -> str:
    costs = _costs(device)
    billed = "not billed (yet)" if costs["qpu_seconds"] is None else f"{costs['qpu_seconds']:,.1f} s billed"
    return f"{device.name}: {costs['jobs']:,} jobs, {costs['qpu_seconds_estimated']:,.1f} s of QPU time estimated, {billed}"


def _discard_if_unused(work: Workplace) -> None:
    """Removes what a new run has made and not used; in the first process."""
    if work.resume or not work.fabric.is_global_zero:
        return
    if work.fabric.world_size == 1:  # else another process may be sending a job in this moment
        discard_unused_ledger(work.folder)
    work.folder.discard_if_unused()


def _how_to_go_on(experiment: Experiment, folder: RunFolder) -> str:
    command = f"python -m experiments {experiment.name} --resume --run-dir {folder.path}"
    return f"continue with: {command}" if folder.path.exists() else "nothing was written."


def _trainings(experiment: Experiment, settings: Settings) -> list[Training]:
    variants = experiment.variants(settings)
    if len(variants) == settings["seeds"] == 1:
        return [Training("", *item) for item in variants.items()]
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    return [
        Training(
            "-".join(filter(None, [variant, f"seed{seed}" if len(seeds) > 1 else ""])),
            variant or experiment.name,
            {**chosen, "seed": seed, "seeds": 1},
        )
        for seed in seeds
        for variant, chosen in variants.items()
    ]


def _open_folder(options: Any, name: str, fabric: Any) -> RunFolder:
    """The run's folder, made by the first process."""
    path = folder_path(options)
    if options.resume:
        return RunFolder.existing(path)
    made: RunFolder | OSError | None = None
    if fabric.is_global_zero:
        try:
            made = RunFolder.fresh(path, name)
        except OSError as error:  # for all processes to see, or the others would wait for ever
            made = error
    made = fabric.broadcast(made)
    if isinstance(made, OSError):
        raise made
    assert made is not None
    return made


def _require_none_ahead(experiment: Experiment, trainings: Sequence[Training], folder: RunFolder) -> None:
    """Refuses a run one of whose trainings was continued by itself, before its results are given up."""
    for training in trainings:
        part = folder.within(training.name)
        before = part.read_settings() if part.file("config.yaml").is_file() else {}
        for key in sorted(experiment.extendable & before.keys()):
            if before[key] > training.settings[key]:
                raise ValueError(
                    f"--{key}: got {training.settings[key]}, expected at least {before[key]}, because {part.path} was "
                    f"continued by itself; continue them all with --{key} {before[key]}."
                )


def _train_part(experiment: Experiment, training: Training, work: Workplace, device: IBMBackend | None) -> None:
    part = replace(work, folder=work.folder.within(training.name))
    if part.resume and part.folder.is_finished:
        before, now = flat(part.folder.read_settings()), flat(training.settings)
        if all(before.get(key) == now.get(key) for key in (before | now).keys() - FREE):
            return
    if part.fabric.is_global_zero:
        work.folder.reopen()
        print(f"-- {training.name}")
    _train(experiment, training.settings, part, device)


def _train(experiment: Experiment, settings: Settings, work: Workplace, device: IBMBackend | None) -> None:
    result = experiment.train(_on(device, settings), work)
    if work.fabric.is_global_zero:
        if device is not None and device.ledger.path == work.folder.file(LEDGER):
            result = {**result, **_costs(device)}
        work.folder.write_result({"experiment": experiment.name, **result})
        experiment.draw(work.folder)
        print(
            f"Test accuracy {result['test_accuracy']:.3f}, {result['seconds']:.1f} s, {result['circuits']:,} circuits, "
            f"{result['shots']:,} shots"
        )


def _parts(experiment: Experiment, settings: Settings, folder: RunFolder) -> list[tuple[Training, RunFolder]]:
    """A run's trainings with their folders; none if the run is itself a training."""
    trainings = _trainings(experiment, settings)
    return [(training, folder.within(training.name)) for training in trainings if training.name]


def _unfinished(parts: Sequence[tuple[Training, RunFolder]]) -> list[str]:
    return [training.name for training, part in parts if not part.is_finished]


def _summarize(experiment: Experiment, settings: Settings, folder: RunFolder, device: IBMBackend | None) -> None:
    finished = _parts(experiment, settings, folder)
    rows = [{"run": training.name, **part.read_result()} for training, part in finished]
    columns = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], (list, dict))))
    folder.write_rows("summary.csv", [{key: row.get(key, "") for key in columns} for row in rows])
    variants = grouped(zip(finished, rows, strict=True), lambda item: item[0][0].variant)
    summary = {variant: summarize([row["test_accuracy"] for _, row in items]) for variant, items in variants.items()}
    folder.write_result(
        {
            "experiment": experiment.name,
            "test_accuracy": next(iter(summary.values()))["median"],
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "circuits": sum(row["circuits"] for row in rows),
            "shots": sum(row["shots"] for row in rows),
            **_costs(device),
            "variants": summary,
        }
    )
    print(in_columns([{"test accuracy of": variant, **numbers} for variant, numbers in summary.items()]))
    _draw_all(experiment, settings, folder, finished)


def _draw_all(
    experiment: Experiment, settings: Settings, folder: RunFolder, finished: Sequence[tuple[Training, RunFolder]]
) -> None:
    curves = {
        variant: [Curve(part.read_rows(), part.read_result()["test_accuracy"]) for _, part in items]
        for variant, items in grouped(finished, lambda item: item[0].variant).items()
    }
    published = {training.variant: experiment.published(training.settings) for training, _ in finished}
    folder.write_figure("comparison.png", comparison_figure(curves))
    if settings["seeds"] > 1:
        folder.write_figure("seeds.png", seeds_figure(curves, published))
    experiment.draw_all(folder, {training.name: part for training, part in finished})
