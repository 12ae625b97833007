"""IBM hardware in a run: its options, the device that is opened once, and what its jobs came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from qiskit_torch_bridge import Backend, Ledger, Passport
from qiskit_torch_bridge.backends.passport import costs_by_passports, costs_of_jobs

from .runs import RunFolder

if TYPE_CHECKING:
    from qiskit_torch_bridge import IBMBackend

LEDGER = "jobs.sqlite"
IN_MEMORY = ":memory:"
CAPS = ("ibm.max_qpu_seconds", "ibm.max_shots", "ibm.max_jobs")
_BACKENDS = (
    "statevector (exact), aer, fake:NAME (a device's noise, fake:manila), ibm:NAME (a device of IBM's, every step a paid "
    "job; ibm:fake_manila rehearses that at no cost), replay:FILE (a recorded run)."
)


_OPTIONS: Mapping[str, tuple[Any, Any, str]] = {
    "account": (str | None, None, "The name that the account was saved under; null: the default one."),
    "instance": (str | None, None, "The instance's name or CRN; null: the account's."),
    "mode": (
        Literal["job", "batch", "session"],
        "job",
        "Each job by itself, a batch, or a session (billed between jobs too; not in the open plan).",
    ),
    "max_time": (PositiveInt | None, None, "Seconds that a session or batch may be open; null: the service's."),
    "primitive": (Literal["sampler", "estimator"], "sampler", "IBM's primitive; an estimator can mitigate errors."),
    "options": (
        dict[str, Any] | None,
        None,
        "The primitive's options by IBM's names, such as '{\"dynamical_decoupling\": {\"enable\": true}}'.",
    ),
    "optimization_level": (Literal[0, 1, 2, 3], 2, "The transpiler's."),
    "seed_transpiler": (NonNegativeInt | None, 0, "Makes the transpiler's choices repeatable."),
    "max_qpu_seconds": (
        NonNegativeFloat | None,
        None,
        "Stop before the job with which the run would pass so many seconds of QPU time.",
    ),
    "max_shots": (NonNegativeInt | None, None, "Stop before the job with which it would pass so many shots."),
    "max_jobs": (NonNegativeInt | None, None, "Stop before it would send more jobs than this."),
    "shadow": (bool, False, "Simulate each job without noise too, and log what the device adds."),
}
"""What :class:`~qiskit_torch_bridge.IBMBackend` can be told on the command line, by its own names: type, default, help."""


def add_hardware_options(parser: Any, *, backend: str) -> None:
    """Adds ``--backend`` and, for hardware, ``--ibm.NAME`` for each option of :class:`~qiskit_torch_bridge.IBMBackend`."""
    parser.add_argument("--backend", type=str, default=backend, help=_BACKENDS)
    for name, (kind, default, text) in _OPTIONS.items():
        parser.add_argument(f"--ibm.{name}", type=kind, default=default, help=text)


def is_hardware(word: Any) -> bool:
    """Whether a backend's word means a device of IBM's, be it for a rehearsal."""
    return isinstance(word, str) and word.startswith("ibm:") and word != "ibm:"


def word_of(setting: Any) -> Any:
    """What a setting is called in files: a backend that was opened for the run has its word as name."""
    return setting.name if isinstance(setting, Backend) else setting


def simulated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on a simulator with shots, if they are for hardware: enough to see whether a layer can be made."""
    return {**settings, "backend": "aer"} if is_hardware(settings["backend"]) else dict(settings)


def without_unused_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without options of hardware, if they are for something else.

    Raises:
        ValueError: If such options are given then.
    """
    if "ibm" not in settings or is_hardware(settings["backend"]):  # the benchmark's runs have no such options
        return dict(settings)
    given = [f"--ibm.{name}" for name, value in settings["ibm"].items() if value != _OPTIONS[name][1]]
    if given:
        raise ValueError(
            f"{', '.join(given)}: got --backend {settings['backend']}, expected ibm:NAME, which these options are for; "
            "leave them out, or name a device (ibm:fake_manila for a rehearsal)."
        )
    return {name: value for name, value in settings.items() if name != "ibm"}


def require_one_session(settings: Mapping[str, Any], processes: int) -> None:
    """Refuses sessions and batches for several processes, each of which would open and pay for one.

    Raises:
        ValueError: If it comes to that.
    """
    mode = settings.get("ibm", {}).get("mode", "job")
    if processes > 1 and mode != "job":
        raise ValueError(
            f"--ibm.mode: got {mode!r} for {processes} processes, expected 'job': each process would open one of its own."
        )


def ledger_of(folder: RunFolder) -> Path:
    """The ledger of a run that is there: its own, or that of the run which it is a part of."""
    own, whole = folder.file(LEDGER), folder.path.resolve().parent / LEDGER
    return whole if whole.is_file() and not own.is_file() else own


def connected(name: str, options: Mapping[str, Any], ledger: Path | str) -> IBMBackend:
    """The device of that name, with options of its own by their names."""
    from qiskit_torch_bridge import IBMBackend  # which needs a package that other runs do not

    return IBMBackend(name, ledger=ledger, **options)


@contextmanager
def opened(settings: Mapping[str, Any], ledger: Path | str) -> Iterator[IBMBackend | None]:
    """The device that the settings name, closed in the end; None if they name none."""
    if not is_hardware(settings["backend"]):
        yield None
        return
    with connected(settings["backend"].removeprefix("ibm:"), settings["ibm"], ledger) as device:
        yield device


def discard_unused_ledger(folder: RunFolder) -> None:
    """Removes a run's ledger if no job was written down in it; it must be closed."""
    path = folder.file(LEDGER)
    if path.is_file():
        ledger = Ledger(path)
        unused = not ledger.entries()
        ledger.close()
        if unused:
            for file in folder.path.glob(f"{LEDGER}*"):  # and what SQLite keeps beside it
                file.unlink()


class Measured:
    """Where a training's results were measured: what its passports say, each thing once.

    Args:
        state: From :meth:`state`.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        given = state or {"jobs": [], "circumstances": []}
        self._jobs = {tuple(ids): (usage, estimate) for ids, usage, estimate in given["jobs"]}
        self._circumstances: list[dict[str, Any]] = [dict(each) for each in given["circumstances"]]

    def note(self, passport: Passport) -> None:
        """A result has come with this passport."""
        self._jobs[passport.job_ids] = (passport.usage_seconds, passport.estimated_seconds)
        self._add(
            {
                "backend": passport.backend,
                "calibrated": sorted(set(passport.calibrated) - {""}),
                "layouts": [list(layout) for layout in passport.layouts],
                "primitive": passport.primitive,
                "options": dict(passport.options),
                "optimization_level": passport.optimization_level,
                "seed_transpiler": passport.seed_transpiler,
                "versions": dict(passport.versions),
            }
        )

    def _add(self, circumstances: dict[str, Any]) -> None:
        if circumstances not in self._circumstances:
            self._circumstances.append(circumstances)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        jobs = [[list(ids), usage, estimate] for ids, (usage, estimate) in self._jobs.items()]
        return {"jobs": jobs, "circumstances": self._circumstances}

    @classmethod
    def together(cls, states: Sequence[Mapping[str, Any]]) -> Measured:
        """What several processes have measured."""
        all_of_them = cls({"jobs": [job for state in states for job in state["jobs"]], "circumstances": []})
        for state in states:
            for each in state["circumstances"]:
                all_of_them._add(dict(each))
        return all_of_them

    def result(self, backend: Any) -> dict[str, Any]:
        """For ``result.json``: jobs and their costs, and where they ran; nothing if nothing came with a passport.

        Args:
            backend: Where they were measured.
        """
        if not self._jobs:
            return {}
        costs = self._costs_in(backend) if is_hardware(word_of(backend)) else costs_by_passports(self._jobs)
        return {"backend": word_of(backend), **costs, "measured": self._circumstances}

    def _costs_in(self, backend: IBMBackend) -> dict[str, Any]:
        job_ids = {job_id for ids in self._jobs for job_id in ids}
        backend.settle_bills()
        return costs_of_jobs([entry for entry in backend.ledger.entries() if entry.job_id in job_ids])
