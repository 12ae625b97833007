"""Experiments: a training for each variant and each seed, with results and figures of each and of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from qiskit_torch_bridge.backends.passport import costs_of_jobs
from qiskit_torch_bridge.commands.printing import in_columns

from .cells import Outcome, failure
from .cluster import outcomes_of
from .comparison import Curve, comparison_figure, grouped, seeds_figure, summarize
from .hardware import IN_MEMORY, LEDGER, discard_unused_ledger, ledger_of, opened, require_one_session
from .options import Options, flat, saved_settings
from .runner import Command, Site
from .runs import RunFolder
from .settings import FREE, TrainingSettings
from .work import Work
from .workplace import layer_options, open_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qiskit_torch_bridge import IBMBackend

S = TypeVar("S", bound=TrainingSettings)


class Training(NamedTuple):
    """One training of a run: the name of its folder within the run's (empty if it is the only one), variant, settings."""

    name: str
    variant: str
    settings: Any


@dataclass(frozen=True, kw_only=True)
class Experiment(Command[S]):
    """What an experiment is made of; :func:`~experiments.common.runner.run` does the rest.

    A run is one training, or one for each variant (a circuit and its classical twin) and each seed; those have folders of
    their own within the run's, each of which is a run that can be continued, drawn and compared.

    Attributes:
        train: Trains what the settings say; returns what goes to ``result.json``, with at least ``test_accuracy``,
            ``seconds``, ``circuits`` and ``shots`` (see :meth:`~experiments.common.work.Work.result`).
        figures: Draws the figures of such a training from the files in its folder.
        cost: What a training would cost, in words, from its settings and the options of its quantum layers.
        complete: Settles what a new run's settings leave open, and refuses what cannot be.
        variants: From settings to the settings of each training by name.
        draw_all: Draws further figures of a run with several trainings, from their folders by name.
        extendable: The settings that may grow when a finished run is continued.
        published: The published test accuracy for given settings, where there is one, for figures.
    """

    train: Callable[[S, Work], Mapping[str, Any]]
    figures: Callable[[RunFolder, S], None]
    cost: Callable[[S, Mapping[str, Any]], str]
    complete: Callable[[S], S] = lambda settings: settings
    variants: Callable[[S], Mapping[str, S]] = lambda settings: {"": settings}
    draw_all: Callable[[RunFolder, Mapping[str, RunFolder]], None] = lambda folder, parts: None
    extendable: Collection[str] = ("epochs",)
    published: Callable[[S], float | None] = lambda settings: None

    def completed(self, settings: S) -> S:
        """See :class:`~experiments.common.runner.Command`."""
        return self.complete(settings)

    def cells(self, settings: S) -> dict[str, Training]:
        """The trainings by the names of their folders."""
        variants = self.variants(settings)
        if len(variants) == settings.seeds == 1:
            return {"": Training("", *next(iter(variants.items())))}
        seeds = range(settings.seed, settings.seed + settings.seeds)
        trainings = [
            Training(
                "-".join(filter(None, [variant, f"seed{seed}" if len(seeds) > 1 else ""])),
                variant or self.name,
                replace(chosen, seed=seed, seeds=1),
            )
            for seed in seeds
            for variant, chosen in variants.items()
        ]
        return {training.name: training for training in trainings}

    def missing(self, cells: Mapping[str, Training], folder: RunFolder) -> list[str]:
        """Those that have not finished with these settings.

        Raises:
            ValueError: If one of several was continued by itself, further than the settings go: its results would be lost.
        """
        if "" in cells:  # the training itself finds out how far it is
            return [""]
        before = {name: self._settings_in(folder.within(name)) for name in cells}
        for name, training in cells.items():
            for key in sorted(self.extendable):
                reached = getattr(before[name] or training.settings, key)
                if reached > getattr(training.settings, key):
                    raise ValueError(
                        f"--{key}: got {getattr(training.settings, key)}, expected at least {reached}, because "
                        f"{folder.within(name).path} was continued by itself; continue them all with --{key} {reached}."
                    )
        return [
            name
            for name, training in cells.items()
            if not (folder.within(name).is_finished and _same(before[name], training.settings))
        ]

    def quote(self, settings: S, cells: Mapping[str, Training], missing: Sequence[str]) -> str:
        """What each of the missing variants would cost."""
        lines = []
        with opened(settings, IN_MEMORY) as device:
            for _, names in grouped(missing, lambda name: cells[name].variant).items():
                name = names[0]
                cost = self.cost(cells[name].settings, layer_options(cells[name].settings, device))
                lines.append(f"{name}:\n{cost}" if name else cost)
                if len(names) > 1:
                    lines.append(f"That for each of {len(names)} seeds.")
        return "\n".join(lines or ["All trainings are there."])

    @contextmanager
    def equipped(self, settings: S, options: Options) -> Iterator[Fabric]:
        """Within it, there are a device of torch's and processes to compute with."""
        fabric = open_fabric(settings.device)
        require_one_session(settings, fabric.world_size)
        if (options.workers or options.scheduler) and (fabric.world_size > 1 or settings.is_for_hardware):
            raise ValueError(
                "--workers, --scheduler: got them for a run under torchrun or on hardware, whose trainings share processes "
                "or a ledger, expected neither; leave them out."
            )
        yield fabric

    @contextmanager
    def opened(self, site: Site[S]) -> Iterator[Site[S]]:
        """Within it, the site has the device that its settings name."""
        ledger = ledger_of(site.folder) if site.options.resume else site.folder.file(LEDGER)
        try:
            with opened(site.settings, ledger) as device:
                yield replace(site, device=device)
        finally:
            if not site.options.resume and site.fabric is not None and site.fabric.world_size == 1:
                discard_unused_ledger(site.folder)  # of several processes, another may be sending a job in this moment

    def perform(self, site: Site[S], cells: Mapping[str, Training], missing: Sequence[str]) -> list[str]:
        """Trains what is missing, one after the other in this process unless the options say otherwise.

        In this process an error ends the run; on workers it costs one training.
        """
        failed = []
        if site.is_first and ("" not in cells or not site.options.resume):
            site.write_settings()  # before anything is paid for, because nobody could continue without them
        for name in cells.keys() - missing if site.is_first else ():
            if not site.folder.within(name).is_drawn:  # killed between its result and its figures
                self.figures(site.folder.within(name), cells[name].settings)
        elsewhere = bool(site.options.scheduler or site.options.workers)
        do = partial(_attempted, self, replace(site, fabric=None)) if elsewhere else partial(_trained, self, site)
        with closing(outcomes_of(do, [cells[name] for name in missing], site.options, workers=0)) as outcomes:
            for training, result, error in outcomes:
                if error:
                    failed.append(training.name)
                    print(f"{self.name}: {training.name} failed: {error}", file=sys.stderr, flush=True)
                elif site.is_first:
                    self.figures(site.folder.within(training.name), training.settings)
                    name = f"{training.name}: test" if elsewhere else "Test"
                    print(
                        f"{name} accuracy {result['test_accuracy']:.3f}, {result['seconds']:.1f} s, "
                        f"{result['circuits']:,} circuits, {result['shots']:,} shots",
                        flush=True,
                    )
        return failed

    def conclude(self, site: Site[S], cells: Mapping[str, Training]) -> None:
        """Writes and prints what several trainings come to; and what all their jobs did."""
        if "" not in cells:
            self._summarize(site, cells)
        if site.device is not None:
            print(_bill(site.device))

    def draw(self, settings: S, folder: RunFolder) -> None:
        """Draws a run's figures anew from its files; of a run with several trainings, those of the finished ones.

        Raises:
            ValueError: If it holds nothing to draw yet.
        """
        cells = self.cells(settings)
        finished = [name for name in cells if folder.within(name).is_finished]
        for name in finished or [""]:
            self.figures(folder.within(name), cells[name].settings if name else settings)
        if "" not in cells:
            _require_finished(folder, cells)
            self._draw_all(settings, folder, cells)

    def trainings(self, folder: RunFolder) -> list[tuple[str, RunFolder, S]]:
        """The trainings of a run: variant (empty where the run is a single training), folder, settings.

        Raises:
            ValueError: If one of them has not finished.
        """
        settings = saved_settings(self.name, self.settings, folder)
        cells = self.cells(settings)
        if "" in cells:
            folder.read_result()
            return [("", folder, settings)]
        _require_finished(folder, cells)
        return [(training.variant, folder.within(name), training.settings) for name, training in cells.items()]

    def _settings_in(self, folder: RunFolder) -> S | None:
        if not folder.file("config.yaml").is_file():
            return None
        return saved_settings(self.name, self.settings, folder)

    def _summarize(self, site: Site[S], cells: Mapping[str, Training]) -> None:
        rows = [{"run": name, **site.folder.within(name).read_result()} for name in cells]
        columns = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], (list, dict))))
        site.folder.write_rows("summary.csv", [{key: row.get(key, "") for key in columns} for row in rows])
        variants = grouped(rows, lambda row: cells[row["run"]].variant)
        summary = {variant: summarize([row["test_accuracy"] for row in group]) for variant, group in variants.items()}
        site.folder.write_result(
            {
                "experiment": self.name,
                "test_accuracy": next(iter(summary.values()))["median"],
                "seconds": round(sum(row["seconds"] for row in rows), 3),
                "circuits": sum(row["circuits"] for row in rows),
                "shots": sum(row["shots"] for row in rows),
                **_costs(site.device),
                "variants": summary,
            }
        )
        print(in_columns([{"test accuracy of": variant, **numbers} for variant, numbers in summary.items()]))
        self._draw_all(site.settings, site.folder, cells)

    def _draw_all(self, settings: S, folder: RunFolder, cells: Mapping[str, Training]) -> None:
        parts = {name: folder.within(name) for name in cells}
        curves = {
            variant: [Curve(parts[name].read_rows(), parts[name].read_result()["test_accuracy"]) for name in names]
            for variant, names in grouped(cells, lambda name: cells[name].variant).items()
        }
        published = {training.variant: self.published(training.settings) for training in cells.values()}
        folder.write_figure("comparison.png", comparison_figure(curves))
        if settings.seeds > 1:
            folder.write_figure("seeds.png", seeds_figure(curves, published))
        self.draw_all(folder, parts)


def _trained(experiment: Experiment[S], site: Site[S], training: Training) -> Outcome:
    """Trains, and writes the result."""
    folder = site.folder.within(training.name)
    assert site.fabric is not None
    alone = site.is_first and bool(training.name)  # else the run's own lock is that of the training
    progress = not (site.options.workers or site.options.scheduler)
    with folder.locked() if alone else nullcontext():
        if alone:
            site.folder.reopen()
            if progress:
                print(f"-- {training.name}")
        with Work(
            experiment.name, training.settings, folder, site.fabric, device=site.device, progress=progress
        ) as work:
            numbers: Any = experiment.train(training.settings, work)
            if not isinstance(numbers, Mapping):
                raise TypeError(
                    f"train: got {numbers!r}, expected what work.result() gives; end it with: return work.result()"
                )
            result = {"experiment": experiment.name, **numbers}
        if site.is_first:
            if site.device is not None and site.device.ledger.path == folder.file(LEDGER):
                result |= _costs(site.device)
            folder.write_result(result)
    return Outcome(training, result)


def _attempted(experiment: Experiment[S], site: Site[S], training: Training) -> Outcome:
    """The same on a worker; an error becomes part of the outcome."""
    try:
        if not site.folder.path.is_dir():
            raise FileNotFoundError(
                f"Got the folder {site.folder.path}, expected one that the worker shares with the run."
            )
        return _trained(experiment, replace(site, fabric=open_fabric(training.settings.device)), training)
    except Exception as error:
        return Outcome(training, None, failure(error))


def _same(before: TrainingSettings | None, now: TrainingSettings) -> bool:
    """Whether results of the one are results of the other."""
    if before is None:
        return False
    values, others = flat(before), flat(now)
    return all(values.get(key) == others.get(key) for key in (values | others).keys() - FREE)


def _require_finished(folder: RunFolder, cells: Mapping[str, Training]) -> None:
    missing = [name for name in cells if not folder.within(name).is_finished]
    if missing:
        raise ValueError(f"{folder.path} has not finished ({', '.join(missing)} to come); finish it with --resume.")


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
