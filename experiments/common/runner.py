"""How experiments and studies are run: cells that are done one by one, here or on Dask, in a folder that remembers them.

A cell is a training or a measurement. A command says which cells its settings come to, which of them a folder lacks, how
they are done, and what follows from all of them; the rest (dry runs, locks, interruptions, how to go on) is here.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qiskit_torch_bridge import BudgetExceeded, HardwareError

from .options import Options, parse, yaml_of
from .runs import RunFolder
from .settings import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qiskit_torch_bridge import IBMBackend

S = TypeVar("S", bound=Settings)


class Interrupted(Exception):  # noqa: N818 - an event, as KeyboardInterrupt
    """Ctrl-C was pressed; a checkpoint of the last finished step has been written."""


@dataclass(frozen=True, kw_only=True)
class Site(Generic[S]):
    """Where the cells of a run are done.

    Attributes:
        name: The command's.
        settings: The run's.
        options: How it is done.
        folder: The run's; only the first process writes there.
        fabric: Device and processes of trainings; None for measurements.
        device: The device of IBM's that was opened for the run; None without one.
    """

    name: str
    settings: S
    options: Options
    folder: RunFolder
    fabric: Fabric | None = None
    device: IBMBackend | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.fabric is None or self.fabric.is_global_zero

    def write_settings(self) -> None:
        """``config.yaml``: give it back with ``--config``."""
        self.folder.write_settings(yaml_of(self.name, self.settings))


@dataclass(frozen=True, kw_only=True)
class Command(ABC, Generic[S]):
    """An experiment or a study.

    Attributes:
        name: As on the command line.
        settings: The class of its settings.
        extendable: The settings that may grow when a run is continued.
    """

    name: str
    settings: type[S]
    extendable: Collection[str] = ()

    @abstractmethod
    def cells(self, settings: S) -> Mapping[str, Any]:
        """The cells by name; refuses settings that cannot be."""

    @abstractmethod
    def missing(self, cells: Mapping[str, Any], folder: RunFolder) -> list[str]:
        """Those that have not been done in a folder."""

    @abstractmethod
    def quote(self, settings: S, cells: Mapping[str, Any], missing: Sequence[str]) -> str:
        """What the missing cells would cost, in words, for ``--dry-run``."""

    @abstractmethod
    def perform(self, site: Site[S], cells: Mapping[str, Any], missing: Sequence[str]) -> list[str]:
        """Does the missing cells; returns those that failed."""

    @abstractmethod
    def conclude(self, site: Site[S], cells: Mapping[str, Any]) -> None:
        """Writes what follows from all cells."""

    @abstractmethod
    def draw(self, settings: S, folder: RunFolder) -> Any:
        """Draws the figures of a run anew from the files in its folder."""

    def completed(self, settings: S) -> S:
        """A new run's settings, with what they leave open settled; refuses what cannot be."""
        return settings

    @contextmanager
    def equipped(self, settings: S, options: Options) -> Iterator[Fabric | None]:
        """Within it, there is what the cells compute with."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"{self.name}: got several processes of torchrun, expected one; use --workers instead.")
        yield None

    @contextmanager
    def opened(self, site: Site[S]) -> Iterator[Site[S]]:
        """Within it, the site has the device that its settings name."""
        yield site


def run(command: Command[S], arguments: Sequence[str]) -> int:
    """Runs an experiment or a study; returns the exit status: 0 done, 1 with cells that failed, 130 interrupted.

    Raises:
        ValueError, OSError: If settings or files are refused.
    """
    options, settings = parse(command.name, command.settings, arguments, extendable=command.extendable)
    if not options.resume:
        settings = command.completed(settings)
    cells = command.cells(settings)
    folder = RunFolder.existing(options.path) if options.resume else None
    if options.dry_run:
        missing = [*cells] if folder is None else command.missing(cells, folder)
        print(command.quote(settings, cells, missing))
        return 0
    with command.equipped(settings, options) as fabric:
        folder = _shared(fabric, lambda: folder or RunFolder.fresh(options.path, command.name))
        site = Site(name=command.name, settings=settings, options=options, folder=folder, fabric=fabric)
        with _locked(site):  # only then is nobody else about to do what is missing
            return _run_in(site, command, cells, command.missing(cells, site.folder))


def _run_in(site: Site[S], command: Command[S], cells: Mapping[str, Any], missing: Sequence[str]) -> int:
    again = f"python -m experiments {command.name} --resume --run-dir {site.folder.path}"
    try:
        with command.opened(site) as site:
            failed = command.perform(site, cells, missing)
            if failed:
                how = f"try them again with: {again}" if _kept(site) else "nothing was written."
                print(f"{len(failed)} of {len(cells)} cells failed; {how}")
                return 1
            if site.is_first:
                command.conclude(site, cells)
    except (Exception, KeyboardInterrupt) as error:
        how = f"continue with: {again}" if _kept(site) else "nothing was written."
        if isinstance(error, (Interrupted, KeyboardInterrupt)):  # the latter before, between and after cells
            if site.is_first:
                print(f"\nInterrupted; {how}")
            return 130
        if not isinstance(error, HardwareError):
            raise
        # One process may meet it alone: torchrun then ends the others.
        print(f"{command.name}: {' '.join(str(error).split())}", file=sys.stderr)
        print(f"The run has stopped; {how}")
        if isinstance(error, BudgetExceeded):
            print("With a larger cap: --ibm.max_qpu_seconds, --ibm.max_shots, --ibm.max_jobs")
        return 1
    if site.is_first:
        print(f"Results and figures are in {site.folder.path}")
    return 0


def _kept(site: Site[S]) -> bool:
    """Whether a run that has stopped has come to something; the folder of a new one that has not is taken away."""
    if not site.options.resume and site.is_first:
        site.folder.discard_if_unused()
    return site.folder.path.exists()


@contextmanager
def _locked(site: Site[S]) -> Iterator[None]:
    if not site.is_first:
        yield
        return
    with site.folder.locked():
        yield


def _shared(fabric: Fabric | None, make: Any) -> RunFolder:
    """What the first process makes, in all processes; or its error, or the others would wait for ever."""
    made: RunFolder | OSError | None = None
    if fabric is None or fabric.is_global_zero:
        try:
            made = make()
        except OSError as error:
            made = error
    if fabric is not None:
        made = fabric.broadcast(made)
    if isinstance(made, OSError):
        raise made
    assert made is not None
    return made
