"""Recordings: what a run measured, in one file, to be measured again by anyone without an account.

A recording is a NumPy archive (no code in it): a list of evaluations in JSON, and for each its angles and what the
primitive returned, shot by shot. It holds neither account nor instance nor token.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ...arguments import instance_of, number_from
from ...program.compiled import Program
from ..base import Backend, Charge, Estimate, ProgramCache, Request, check_shots
from ..passport import Passport
from ..results import Arrays, Asked, WrongResult, arrays_of, check_arrays, read_archive
from .errors import LedgerError, NotRecorded
from .fingerprints import fingerprint
from .ledger import Entry, Ledger, digest, said_by_jobs
from .workload import apart, estimate_from_arrays, seed_of

__all__ = ["Recording", "Replay", "write_recording"]

_FORMAT = "qiskit_torch_bridge recording 1"
_DESCRIBED = ("fingerprint", "shots", "seed", "outputs")  # of an evaluation, by the ledger and by the manifest alike
_WAY_OUT = (
    "Give a file that `qtb record LEDGER FILE` has written: another copy of this one, or one that is recorded anew from its "
    "ledger."
)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Evaluation:
    """One evaluation of a recording.

    Attributes:
        fingerprint: Of the program.
        shots: Shots a circuit.
        seed: The seed it was asked for with.
        outputs: For each circuit, the outputs that an Estimator's values are; empty for a Sampler's bits.
        angles: Shape (N, A).
        pubs: For each circuit, the arrays of its PUBs in the order of the rows.
        passport: Where it was measured.
        charge: What it cost.
    """

    fingerprint: str
    shots: int
    seed: list[list[int]]
    outputs: list[list[int]]
    angles: np.ndarray
    pubs: list[Arrays]
    passport: Passport
    charge: Charge

    @classmethod
    def from_entry(cls, number: int, entry: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> _Evaluation:
        """From its entry in the manifest, and from the recording's arrays by name."""
        return cls(
            **{name: entry[name] for name in _DESCRIBED},
            angles=arrays[f"{number}/angles"],
            pubs=[
                [[arrays[f"{number}/{circuit}/{pub}/{i}"] for i in range(count)] for pub, count in enumerate(counts)]
                for circuit, counts in enumerate(entry["arrays"])
            ],
            passport=Passport.from_dict(entry["passport"]),
            charge=Charge(*entry["charge"]),
        )

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            **{name: getattr(self, name) for name in _DESCRIBED},
            "arrays": [[len(group) for group in groups] for groups in self.pubs],
            "passport": self.passport.as_dict(),
            "charge": astuple(self.charge),
        }

    def arrays(self, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Its arrays, each with its name in a recording where this evaluation has that number."""
        yield f"{number}/angles", self.angles
        for circuit, groups in enumerate(self.pubs):
            for pub, group in enumerate(groups):
                for i, array in enumerate(group):
                    yield f"{number}/{circuit}/{pub}/{i}", array

    def check(self, where: str) -> _Evaluation:
        """Itself, if its arrays are what it says.

        Raises:
            WrongResult: If they are not.
        """
        angles, shots = self.angles, self.shots
        if angles.dtype != np.float64 or angles.ndim != 2 or not np.isfinite(angles).all():
            raise WrongResult(f"{where}: got angles of {angles.dtype} and shape {angles.shape}, expected finite (N, A)")
        if check_shots(shots) is None or len(self.outputs) != len(self.pubs):
            raise WrongResult(f"{where}: got {shots} shots and {len(self.outputs)} circuits, expected {len(self.pubs)}")
        twirling = (self.passport.options or {}).get("twirling") or {}
        rounded_up = any(twirling.get(name) for name in ("enable_gates", "enable_measure"))
        for circuit, (groups, outputs) in enumerate(zip(self.pubs, self.outputs, strict=True)):
            asked = [_asked_by(group, len(outputs), shots, at_least=rounded_up) for group in groups]
            try:
                check_arrays(groups, asked)
            except WrongResult as error:
                raise WrongResult(f"{where}, circuit {circuit}, {error}") from None
            rows = sum(each.shape[-1] if each.shape else 1 for each in asked)
            if rows != len(angles):
                raise WrongResult(
                    f"{where}, circuit {circuit}: got results of {rows} sets of angles, expected {len(angles)}"
                )
        return self


@dataclass(frozen=True, eq=False)
class Recording:
    """What a run measured.

    Attributes:
        evaluations: In the order in which they were asked for.
    """

    evaluations: tuple[_Evaluation, ...]

    @classmethod
    def from_ledger(cls, ledger: Ledger, *, run: str | None = None) -> Recording:
        """All evaluations of a ledger whose jobs are done; arguments and errors are those of :func:`write_recording`."""
        evaluations = tuple(_evaluations_of(ledger, run))
        if not evaluations:
            raise ValueError(f"{ledger!r} holds no evaluation{'' if run is None else f' of run {run!r}'} that is done.")
        for number, evaluation in enumerate(evaluations):
            try:
                evaluation.check(f"evaluation {number}")
            except WrongResult as error:
                raise LedgerError(
                    f"A result in {ledger!r} is not what was asked for ({error}); the jobs of this evaluation are "
                    f"{', '.join(evaluation.passport.job_ids)}. Nothing was written. Run the same again, which finds the "
                    "wrong one and says what can be done; or record another run."
                ) from None
        return cls(evaluations)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recording:
        """A recording that was written into a file, which is checked as a whole.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a recording, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such recording.")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}); make it readable, or give another file.") from error
        try:
            return cls(tuple(_evaluations_in(read_archive(io.BytesIO(content)))))
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError, WrongResult) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is no recording, or a damaged one ({said}). {_WAY_OUT}") from error

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes it into a file, by custom with the ending ``.npz``.

        Raises:
            FileExistsError: If there is such a file.
        """
        listed = [evaluation.entry() for evaluation in self.evaluations]
        arrays = dict(chain(*(evaluation.arrays(number) for number, evaluation in enumerate(self.evaluations))))
        content = {"format": _FORMAT, "evaluations": listed, "checksum": digest(listed, arrays)}
        manifest = np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)
        with Path(path).open("xb") as file:
            np.savez_compressed(file, manifest=manifest, **arrays)  # type: ignore[arg-type]


def write_recording(ledger: Ledger, path: str | os.PathLike[str], *, run: str | None = None) -> int:
    """Writes all evaluations of a ledger whose jobs are done into a file.

    Args:
        ledger: Where they are.
        path: The file, by custom with the ending ``.npz``; it must not exist.
        run: Only those of this run; None: all.

    Returns:
        How many evaluations were written.

    Raises:
        FileExistsError: If there is such a file.
        ValueError: If there is nothing to record, or one evaluation was measured twice.
        LedgerError: If a result in the ledger is damaged.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another name, or remove it first.")
    recording = Recording.from_ledger(ledger, run=run)
    recording.to_file(target)
    return len(recording.evaluations)


def _evaluations_of(ledger: Ledger, run: str | None) -> Iterator[_Evaluation]:
    """The evaluations of a ledger, not checked, in the order in which they were asked for."""
    done = {entry.key: entry for entry in ledger.entries() if entry.state == "done"}
    asked = ledger.asked_of_jobs()
    seen: set[str] = set()
    for description, kept_angles in ledger.evaluations():
        keys = {key for part in description["parts"] for key, _ in part}
        if (run is not None and description["run"] != run) or not keys <= done.keys():
            continue
        angles = _angles(ledger, kept_angles)
        name = digest(*(description[each] for each in ("fingerprint", "shots", "seed")), angles)
        if name in seen:
            raise ValueError(
                f"{ledger!r} holds the same evaluation twice (measured with other options, on another device, or in another "
                "run), and a replay could not tell which is meant; record one run, or give each its own ledger."
            )
        seen.add(name)
        entries = sorted((done[key] for key in keys), key=lambda entry: entry.number)
        said = said_by_jobs(entries)
        passport = Passport.from_dict({**description["passport"], **said, "sessions": sorted(said["sessions"])})
        yield _Evaluation(
            **{name: description[name] for name in _DESCRIBED},
            angles=angles,
            pubs=apart(_pubs(ledger, description["parts"], done, asked), passport.packing, description["shots"]),
            passport=passport,
            charge=Charge(len(entries), sum(entry.executions for entry in entries), said["estimated_seconds"]),
        )


def _pubs(
    ledger: Ledger,
    parts: Sequence[Sequence[tuple[str, int]]],
    done: Mapping[str, Entry],
    asked: Mapping[str, Sequence[Asked]],
) -> list[Arrays]:
    """For each circuit of an evaluation, the arrays of its PUBs: of those jobs, at those places in them."""
    keys = {key for key, _ in chain(*parts)}
    results = {key: ledger.arrays(done[key].number, asked.get(key)) for key in keys}
    for key, place in chain(*parts):
        if place >= len(results[key]):  # an earlier version may have kept it
            number = done[key].number
            raise LedgerError(f"The result of job {number} in {ledger!r} lacks a PUB. {ledger.way_to_forget(number)}")
    return [[results[key][place] for key, place in part] for part in parts]


def _evaluations_in(arrays: dict[str, np.ndarray]) -> list[_Evaluation]:
    """The evaluations of a file, from all arrays in it.

    Raises:
        Exception: Of many kinds, if the file is not a recording or damaged.
    """
    manifest = json.loads(arrays.pop("manifest").tobytes())
    if manifest.get("format") != _FORMAT:
        raise ValueError("its format is another")
    listed = manifest["evaluations"]
    if manifest.get("checksum") not in (None, digest(listed, arrays)):
        raise ValueError("its checksum is another than that of its content")
    evaluations = [
        _Evaluation.from_entry(number, entry, arrays).check(f"evaluation {number}")
        for number, entry in enumerate(listed)
    ]
    more = len(arrays) - sum(1 + sum(map(len, chain(*each.pubs))) for each in evaluations)
    if more:
        raise ValueError(f"it holds {more} array(s) more than it lists")
    return evaluations


def _angles(ledger: Ledger, kept: bytes) -> np.ndarray:
    try:
        ((angles,),) = arrays_of(kept)
    except ValueError as error:
        raise LedgerError(
            f"The angles of an evaluation in {ledger!r} are damaged ({error}); record another run (--run NAME), or run the "
            "same again, which writes them anew at no cost."
        ) from None
    return angles


class Replay(Backend):
    """A recorded run as a backend: the same numbers, without an account.

    The model must ask for what was recorded: the same circuits, at the same angles (to a ten-thousandth of a radian, which
    no shot noise could tell apart: other processors round differently), with the same shots. An evaluation with the seed
    that it was recorded with is answered as often as it is asked for; with another seed, each recorded one is given out
    once, in its order, because the same shots twice would not be two samples.

    Args:
        path: The file, from ``qtb record LEDGER FILE`` or :func:`write_recording`.
        tolerance: How far angles may be from recorded ones, in radians.

    The file is checked as a whole when it is opened.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError, ValueError: If it is not a recording, or damaged, or ``tolerance`` is no number from 0.
    """

    queues = True

    def __init__(self, path: str | os.PathLike[str], *, tolerance: float = 1e-4) -> None:
        self.path = Path(instance_of("path", path, (str, os.PathLike), "a recording's path"))
        self.tolerance = number_from("tolerance", tolerance, also=" (radians)")
        self.name = f"replay:{self.path.name}"
        self._evaluations = Recording.from_file(self.path).evaluations
        self._given_out: set[_Evaluation] = set()
        self._cache = ProgramCache()

    def rewind(self) -> None:
        """Gives everything out once more, from the beginning."""
        self._given_out.clear()

    @property
    def passports(self) -> list[Passport]:
        """Where each recorded evaluation was measured."""
        return [evaluation.passport for evaluation in self._evaluations]

    def resolve_shots(self, shots: int | None) -> int:
        shots = check_shots(shots)
        if shots is not None:
            return shots
        recorded = sorted({evaluation.shots for evaluation in self._evaluations})
        if len(recorded) > 1:
            raise ValueError(f"shots: got None, but {self.path} holds evaluations with {recorded}; name one of them.")
        return recorded[0]

    def prepare(self, program: Program) -> None:
        """Nothing: an amplitude encoding shows only with its inputs whether it was recorded."""

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        recorded = self._find(Request(program, angles, seed), self.resolve_shots(shots))
        self._given_out.add(recorded)
        try:
            return estimate_from_arrays(
                program, len(angles), recorded.pubs, recorded.outputs, recorded.shots, recorded.passport
            )
        except (WrongResult, ValueError, IndexError) as error:  # a recording of old, which has no checksum
            raise ValueError(
                f"{self.path}: what is recorded does not fit the circuit that it is recorded for ({error}). {_WAY_OUT}"
            ) from None

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        """What was paid when it was recorded; nothing is paid for now."""
        charges = []
        for program, rows in work:
            recorded = self._of_program(program)
            like = [e.charge for e in recorded if len(e.angles) == rows and e.shots == self.resolve_shots(shots)]
            charges.append(like[0] if like else super().charge([(program, rows)], shots=shots))
        return Charge(*map(sum, zip(*map(astuple, charges), strict=True)))

    def _of_program(self, program: Program) -> list[_Evaluation]:
        """The program's evaluations."""
        cached = self._cache.of(program)
        if "evaluations" not in cached:
            name = fingerprint(program)
            cached["evaluations"] = [recorded for recorded in self._evaluations if recorded.fingerprint == name]
        evaluations: list[_Evaluation] = cached["evaluations"]
        return evaluations

    def _find(self, request: Request, shots: int) -> _Evaluation:
        of_program = self._of_program(request.program)
        if not of_program:
            raise NotRecorded(
                f"{self.path} does not hold this circuit with this readout; replay the model that was recorded (the same "
                "circuit, observables and version of Qiskit), or record this one."
            )
        with_shots = [recorded for recorded in of_program if recorded.shots == shots]
        if not with_shots:
            numbers = sorted({recorded.shots for recorded in of_program})
            raise NotRecorded(
                f"{self.path} holds this circuit with {numbers} shots, but it was asked for with {shots}."
            )
        same_rows = [recorded for recorded in with_shots if len(recorded.angles) == len(request.angles)]
        if not same_rows:
            numbers = sorted({len(recorded.angles) for recorded in with_shots})
            raise NotRecorded(
                f"{self.path} holds this circuit at {numbers} sets of angles at once, but it was asked for "
                f"{len(request.angles)}; give the same batch, with the same weights frozen and the same gradient rule."
            )
        distances = [_distance(recorded.angles, request.angles) for recorded in same_rows]
        near = [recorded for recorded, far in zip(same_rows, distances, strict=True) if far <= self.tolerance]
        if not near:
            raise NotRecorded(
                f"{self.path} holds this circuit, but not at these angles: the nearest differ by "
                f"{min(distances):.3g} rad, expected at most {self.tolerance:g}; start from the same weights and "
                "data (the same seed)."
            )
        seed = seed_of(request)
        same_seed = [recorded for recorded in near if recorded.seed == seed]
        fresh = [recorded for recorded in near if recorded not in self._given_out]
        if not same_seed and not fresh:
            raise NotRecorded(
                f"{self.path} holds {len(near)} measurement(s) of this, which have been given out: the same shots again "
                "would not be another sample. Call rewind() to begin again."
            )
        return (same_seed or fresh)[0]

    def __repr__(self) -> str:
        return f"Replay({str(self.path)!r})"


def _distance(recorded: np.ndarray, asked: np.ndarray) -> float:
    if recorded.shape != asked.shape:
        return float("inf")
    return float(np.abs(recorded - asked).max(initial=0.0))


def _asked_by(group: Sequence[np.ndarray], outputs: int, shots: int, *, at_least: bool) -> Asked:
    """What a PUB had asked for, as far as a recording says; how many rows of the angles were its, its arrays say."""
    shape = group[0].shape
    if outputs:
        return Asked((outputs, *(shape[1:2] or (0,))), extrapolates=True)
    return Asked(shape[:-2][:1], shots=shots, bits=8 * math.prod(shape[-1:]), at_least=at_least)
