"""IBM hardware in a run: the device that is opened once, and what its jobs came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qiskit_torch_bridge import Backend, Ledger, Passport
from qiskit_torch_bridge.backends.passport import costs_by_passports, costs_of_jobs

from .runs import RunFolder
from .settings import HardwareSettings, TrainingSettings, is_hardware

if TYPE_CHECKING:
    from qiskit_torch_bridge import IBMBackend

LEDGER = "jobs.sqlite"
IN_MEMORY = ":memory:"


def require_one_session(settings: TrainingSettings, processes: int) -> None:
    """Refuses sessions and batches for several processes, each of which would open and pay for one.

    Raises:
        ValueError: If it comes to that.
    """
    mode = settings.ibm.mode
    if processes > 1 and mode != "job":
        raise ValueError(
            f"--ibm.mode: got {mode!r} for {processes} processes, expected 'job': each process would open one of its own."
        )


def ledger_of(folder: RunFolder) -> Path:
    """The ledger of a run that is there: its own, or that of the run which it is a part of."""
    own, whole = folder.file(LEDGER), folder.path.resolve().parent / LEDGER
    return whole if whole.is_file() and not own.is_file() else own


def connected(name: str, options: HardwareSettings, ledger: Path | str) -> IBMBackend:
    """The device of that name."""
    from qiskit_torch_bridge import IBMBackend, Packing  # which need a package that other runs do not

    packing: Any = options.packing
    if isinstance(packing, dict):
        names = {field.name for field in fields(Packing) if field.init}
        if unknown := packing.keys() - names:
            raise ValueError(f"--ibm.packing: got {sorted(unknown)}, expected names among {sorted(names)}.")
        packing = Packing(**packing)
    return IBMBackend(name, ledger=ledger, **{**vars(options), "packing": packing})


@contextmanager
def opened(settings: TrainingSettings, ledger: Path | str) -> Iterator[IBMBackend | None]:
    """The device that the settings name, closed in the end; None if they name none."""
    if not settings.is_for_hardware:
        yield None
        return
    with connected(settings.backend.removeprefix("ibm:"), settings.ibm, ledger) as device:
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

    def result(self, backend: Backend) -> dict[str, Any]:
        """For ``result.json``: jobs and their costs, and where they ran; nothing if nothing came with a passport.

        Args:
            backend: Where they were measured.
        """
        if not self._jobs:
            return {}
        costs = self._costs_in(backend) if is_hardware(backend.name) else costs_by_passports(self._jobs)
        return {"backend": backend.name, **costs, "measured": self._circumstances}

    def _costs_in(self, backend: Any) -> dict[str, Any]:
        job_ids = {job_id for ids in self._jobs for job_id in ids}
        backend.settle_bills()
        return costs_of_jobs([entry for entry in backend.ledger.entries() if entry.job_id in job_ids])
