"""Command-line options that experiments share, from a YAML file or the command line (which wins)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from .runs import RunFolder

__all__ = ["experiment_parser", "open_folder", "parse", "settings_of"]

_NOT_SETTINGS = ("config", "run_dir", "resume", "dry_run")


def experiment_parser(
    name: str,
    description: str,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    shots: int | None,
    backend: str,
    gradient: str | None,
) -> Any:
    """A parser with the shared options; the keyword arguments are the experiment's defaults."""
    parser = ArgumentParser(prog=f"python -m experiments {name}", description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file with options, by their names below; options after it win."
    )
    parser.add_argument("--data-root", type=str | None, default=None, help="Folder of data sets (default: QTB_DATA).")
    parser.add_argument(
        "--run-dir", type=str | None, default=None, help="Folder of the run (default: a new one under runs/)."
    )
    parser.add_argument("--resume", action="store_true", help="Continue the run in --run-dir from its checkpoint.")
    parser.add_argument("--dry-run", action="store_true", help="Print what the run would cost, and stop.")
    parser.add_argument("--backend", type=str, default=backend, help="statevector, aer, fake:NAME.")
    parser.add_argument(
        "--shots", type=PositiveInt | None, default=shots, help="Shots a circuit; null for exact values."
    )
    parser.add_argument(
        "--gradient",
        type=str | None,
        default=gradient,
        help="adjoint, parameter_shift, finite_difference, spsa; null: the best for the backend.",
    )
    parser.add_argument("--epochs", type=PositiveInt, default=epochs, help="Passes through the training images.")
    parser.add_argument("--batch-size", type=PositiveInt, default=batch_size, help="Images a step.")
    parser.add_argument("--lr", type=PositiveFloat, default=lr, help="Learning rate.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Makes the run repeatable to the last bit.")
    parser.add_argument("--device", type=str, default="cpu", help="Where torch computes: cpu, cuda, ...")
    return parser


Settings = dict[str, Any]


def parse(
    parser: Any, arguments: Sequence[str], *, complete: Callable[[Settings], Settings]
) -> tuple[Namespace, Settings]:
    """Parses the command line; for a run to be continued, on top of that run's own settings.

    Args:
        parser: From :func:`experiment_parser`.
        arguments: The command line.
        complete: Settles what a new run's settings leave open (where its data come from).

    Returns:
        The options, and the settings that define the run.

    Raises:
        ValueError: If options contradict the run that is to be continued (only more epochs and another device may).
    """
    options = parser.parse_args(list(arguments))
    if not options.resume:
        settings = complete(settings_of(options))
        _check_device(settings["device"])
        return options, settings
    folder = RunFolder.existing(_path(options.run_dir))
    saved = folder.read_settings()
    options = parser.parse_args(["--config", str(folder.file("config.yaml")), *arguments])
    settings = settings_of(options)
    changed = {key for key in settings | saved if settings.get(key) != saved.get(key)} - {"epochs", "device"}
    if changed:
        differences = ", ".join(
            f"{key}: got {settings.get(key)!r}, expected {saved.get(key)!r}" for key in sorted(changed)
        )
        raise ValueError(
            f"--resume: the run in {folder.path} has other settings ({differences}); leave them out or start anew."
        )
    if settings["epochs"] < saved["epochs"]:
        raise ValueError(
            f"--epochs: got {settings['epochs']}, expected at least {saved['epochs']}: the run goes that far."
        )
    _check_device(settings["device"])
    return options, settings


def open_folder(options: Namespace, experiment: str) -> RunFolder:
    """The run's folder: made, for a new run; with a checkpoint in it, for one to be continued.

    Raises:
        OSError: If a new run's folder is in use, or there is nothing to continue.
    """
    path = _path(options.run_dir)
    return RunFolder.existing(path) if options.resume else RunFolder.fresh(path, experiment)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"--device: got {device!r}, which torch cannot use here ({first_line}); try cpu.") from error


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def settings_of(options: Namespace) -> Settings:
    """The options that define the run, as YAML knows them."""
    return {key: _plain(value) for key, value in vars(options).items() if key not in _NOT_SETTINGS}


def _plain(value: Any) -> Any:
    """Without the parser's restricted number types, which YAML does not know."""
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
