"""Command-line options that experiments share, from a YAML file or the command line (which wins)."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type

from .hardware import CAPS, add_hardware_options, without_unused_options
from .runs import RunFolder, brief

Settings = dict[str, Any]

Seed: Any = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what torch takes, times a million

_NOT_SETTINGS = ("config", "run_dir", "resume", "dry_run", "scheduler", "workers")
FREE = frozenset({"device", *CAPS})
"""What may be another when a run is continued, by the names of :func:`flat`: its results do not depend on it."""


def shared_parser(name: str, description: str, *, resume: str, dry_run: str, data_root: bool = False) -> Any:
    """A parser with the options that experiments and studies share; ``resume`` and ``dry_run`` say what these two do."""
    parser = ArgumentParser(prog=f"python -m experiments {name}", description=description)
    add = parser.add_argument
    add("--experiment", choices=[name], default=name, help=SUPPRESS)  # so that config.yaml says it
    add("--config", action="config", help="YAML file with options, by their names below; options after it win.")
    if data_root:
        add("--data-root", type=str | None, default=None, help="Folder of data sets (default: QTB_DATA).")
    add("--run-dir", type=str | None, default=None, help="Folder of the run (default: a new one under runs/).")
    add("--resume", action="store_true", help=resume)
    add("--dry-run", action="store_true", help=dry_run)
    return parser


def experiment_parser(name: str, description: str, **defaults: Any) -> Any:
    """A parser with the options of trainings.

    Args:
        name: The experiment's.
        description: What ``--help`` says.
        defaults: Of ``epochs``, ``batch_size`` and ``lr``; of ``backend``, ``shots`` and ``gradient`` too, unless exact
            simulation is the default.
    """
    defaults = {"backend": "statevector", "shots": None, "gradient": None, **defaults}
    parser = shared_parser(
        name,
        description,
        resume="Continue the run in --run-dir from its checkpoint.",
        dry_run="Print what the run would cost, and stop.",
        data_root=True,
    )
    add_hardware_options(parser, backend=defaults["backend"])
    add = partial(add_option, parser)
    for option, kind, text in (
        ("shots", PositiveInt | None, "Shots a circuit; null for exact values."),
        ("gradient", str | None, "adjoint, parameter_shift, finite_difference, spsa; null: the best for the backend."),
        ("epochs", PositiveInt, "Passes through the training images."),
        ("batch_size", PositiveInt, "Images a step."),
        ("lr", PositiveFloat, "Learning rate."),
    ):
        add(flag(option), kind, defaults[option], text)
    add("--seed", Seed, 0, "Makes runs repeatable, on one machine to the last bit.")
    add("--seeds", PositiveInt, 1, "Runs of as many seeds, from --seed on, and their distribution.")
    add("--device", str, "cpu", "Where torch computes: cpu, cuda, ...")
    return parser


def add_option(parser: Any, name: str, kind: Any, default: Any, text: str) -> None:
    """Adds an option of a type, or of a list of choices; one that takes several values where its default is a list."""
    accepted = {"choices": kind} if isinstance(kind, (list, tuple)) else {"type": kind}
    several = {"nargs": "+"} if isinstance(default, list) else {}
    parser.add_argument(name, **several, **accepted, default=default, help=text)


def flag(name: str) -> str:
    """The option of a setting on the command line."""
    return "--" + name.replace("_", "-")


def parse(
    parser: Any,
    arguments: Sequence[str],
    *,
    complete: Callable[[Settings], Settings] = lambda settings: settings,
    extendable: Collection[str] = ("epochs",),
) -> tuple[Namespace, Settings]:
    """Parses the command line; for a run to be continued, on top of that run's own settings.

    Args:
        parser: From :func:`experiment_parser`.
        arguments: The command line.
        complete: Settles what a new run's settings leave open (where its data come from).
        extendable: The settings that may grow when a run is continued.

    Returns:
        The options, and the settings that define the run.

    Raises:
        ValueError: If options contradict the run that is to be continued.
    """
    options = parser.parse_args(list(arguments))
    if not options.resume:
        return options, complete(settings_of(options))
    folder = RunFolder.existing(folder_path(options))
    saved_settings(parser, folder)
    saved = folder.read_settings()
    options = parser.parse_args(["--config", str(folder.file("config.yaml")), *arguments])
    settings = settings_of(options)
    given, expected = flat(settings), flat(saved)
    differing = {key for key in given | expected if given.get(key) != expected.get(key)} - FREE
    changed = sorted(differing - (set(extendable) & saved.keys()))
    if changed:
        differences = ", ".join(f"{key}: got {given.get(key)!r}, expected {expected.get(key)!r}" for key in changed)
        raise ValueError(
            f"--resume: the run in {folder.path} has other settings ({differences}); leave them out or start anew."
        )
    for key in sorted(differing):
        if settings[key] < saved[key]:
            raise ValueError(f"--{key}: got {settings[key]}, expected at least {saved[key]}: the run goes that far.")
    return options, settings


def saved_settings(parser: Any, folder: RunFolder) -> Settings:
    """The settings of a run; what its ``config.yaml`` does not name is as the parser's defaults say.

    Raises:
        ValueError: If the file cannot be read, or the parser does not accept what it says.
    """
    settings, before = folder.read_settings(), parser.exit_on_error
    parser.exit_on_error = False
    try:
        return settings_of(parser.parse_object(settings))
    except ArgumentError as error:
        raise ValueError(
            f"{folder.file('config.yaml')} does not hold the settings of a run ({brief(error)}); put them right, or start "
            "the run anew in another folder."
        ) from error
    finally:
        parser.exit_on_error = before


def folder_path(options: Namespace) -> Path | None:
    """The folder that ``--run-dir`` names."""
    return None if options.run_dir is None else Path(options.run_dir)


def settings_of(options: Namespace) -> Settings:
    """The options that define the run, as YAML knows them.

    Raises:
        ValueError: If there are options of hardware, but the backend is none.
    """
    settings = {key: _plain(value) for key, value in vars(options).items() if key not in _NOT_SETTINGS}
    return without_unused_options(settings)


def flat(settings: Settings) -> Settings:
    """The settings with the names of the command line: ``ibm.mode`` in place of ``mode`` within ``ibm``."""
    within = {f"ibm.{key}": value for key, value in settings.get("ibm", {}).items()}
    return {key: value for key, value in settings.items() if key != "ibm"} | within


def _plain(value: Any) -> Any:
    """Without the parser's own types, which YAML does not know."""
    if isinstance(value, Namespace):
        return {key: _plain(part) for key, part in vars(value).items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
