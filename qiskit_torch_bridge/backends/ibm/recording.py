"""Recordings: what a run measured, in one file, to be measured again by anyone without an account.

A recording is a NumPy archive (no code in it): a list of evaluations in JSON, and for each its angles and what the
primitive returned, shot by shot. It holds neither account nor instance nor token.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...program import Program
from ..base import Backend, Charge, Estimate, ProgramCache, Request, check_shots
from ..passport import Passport
from ..settings import instance_of, number_from
from .archives import arrays_of
from .assembling import estimate_from_arrays
from .errors import NotRecorded
from .fingerprints import digest, fingerprint, seed_of
from .ledger import Ledger

__all__ = ["Replay", "write_recording"]

_FORMAT = "qiskit_torch_bridge recording 1"


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """One evaluation of a recording.

    Attributes:
        fingerprint: Of the program.
        shots: Shots a circuit.
        seed: The seed it was asked for with.
        angles: Shape (N, A).
        outputs: For each circuit, the outputs that an Estimator's values are; empty for a Sampler's bits.
        pubs: For each circuit, the arrays of its PUBs in the order of the rows.
        passport: Where it was measured.
        charge: What it cost.
    """

    fingerprint: str
    shots: int
    seed: list[list[int]]
    angles: np.ndarray
    outputs: list[list[int]]
    pubs: list[list[list[np.ndarray]]]
    passport: Passport
    charge: Charge


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
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another name, or remove it first.")
    done = {entry.key: entry for entry in ledger.entries() if entry.state == "done"}
    listed: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for description, angles in ledger.evaluations():
        keys = {key for part in description["parts"] for key, _ in part}
        if (run is not None and description["run"] != run) or not keys <= done.keys():
            continue
        asked = digest(*(description[name] for name in ("fingerprint", "shots", "seed")), arrays_of(angles)[0][0])
        if asked in seen:
            raise ValueError(
                f"{ledger!r} holds the same evaluation twice (measured with other options, on another device, or in another "
                "run), and a replay could not tell which is meant; record one run, or give each its own ledger."
            )
        seen.add(asked)
        number = len(listed)
        entries = [done[key] for key in sorted(keys, key=lambda key: done[key].number)]
        results = {key: arrays_of(ledger.result(done[key].number)) for key in keys}
        arrays[f"{number}/angles"] = arrays_of(angles)[0][0]
        shape = []
        for unit, part in enumerate(description["parts"]):
            shape.append([len(results[key][place]) for key, place in part])
            for pub, (key, place) in enumerate(part):
                for index, array in enumerate(results[key][place]):
                    arrays[f"{number}/{unit}/{pub}/{index}"] = array
        usage = [entry.usage_seconds for entry in entries if entry.usage_seconds is not None]
        listed.append(
            {
                **{name: description[name] for name in ("fingerprint", "shots", "seed", "outputs")},
                "arrays": shape,
                "passport": {
                    **description["passport"],
                    "calibrated": [entry.calibrated for entry in entries],
                    "job_ids": [entry.job_id for entry in entries],
                    "sessions": sorted({entry.session_id for entry in entries if entry.session_id}),
                    "usage_seconds": sum(usage) if usage else None,
                    "estimated_seconds": sum(entry.estimated_seconds for entry in entries),
                },
                "charge": [
                    len(entries),
                    sum(entry.executions for entry in entries),
                    sum(entry.estimated_seconds for entry in entries),
                ],
            }
        )
    if not listed:
        raise ValueError(f"{ledger!r} holds no evaluation{'' if run is None else f' of run {run!r}'} that is done.")
    manifest = np.frombuffer(json.dumps({"format": _FORMAT, "evaluations": listed}).encode(), dtype=np.uint8)
    with target.open("xb") as file:
        np.savez_compressed(file, manifest=manifest, **arrays)  # type: ignore[arg-type]
    return len(listed)


class Replay(Backend):
    """A recorded run as a backend: the same numbers, without an account.

    The model must ask for what was recorded: the same circuits, at the same angles (to a ten-thousandth of a radian, which
    no shot noise could tell apart: other processors round differently), with the same shots. An evaluation with the seed
    that it was recorded with is answered as often as it is asked for; with another seed, each recorded one is given out
    once, in its order, because the same shots twice would not be two samples.

    Args:
        path: The file, from ``python -m experiments jobs --record FILE`` or :func:`write_recording`.
        tolerance: How far angles may be from recorded ones, in radians.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError, ValueError: If it is not a recording, or ``tolerance`` is no number from 0.
    """

    queues = True

    def __init__(self, path: str | os.PathLike[str], *, tolerance: float = 1e-4) -> None:
        self.path = Path(instance_of("path", path, (str, os.PathLike), "a recording's path"))
        self.tolerance = number_from("tolerance", tolerance, also=" (radians)")
        self.name = f"replay:{self.path.name}"
        self._evaluations = _read(self.path)
        self._given_out: set[int] = set()
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
        request = Request(program, angles, seed)
        number = self._find(request, self.resolve_shots(shots))
        found = self._evaluations[number]
        self._given_out.add(number)
        return estimate_from_arrays(program, len(angles), found.pubs, found.outputs, found.shots, found.passport)

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        """What was paid when it was recorded; nothing is paid for now."""
        charges = []
        for program, rows in work:
            recorded = [self._evaluations[number] for number in self._of_program(program)]
            like = [e.charge for e in recorded if len(e.angles) == rows and e.shots == self.resolve_shots(shots)]
            charges.append(like[0] if like else super().charge([(program, rows)], shots=shots))
        return Charge(
            sum(charge.jobs for charge in charges),
            sum(charge.executions for charge in charges),
            sum(charge.qpu_seconds for charge in charges),
        )

    def _of_program(self, program: Program) -> list[int]:
        """The numbers of the program's evaluations."""
        cached = self._cache.of(program)
        if "numbers" not in cached:
            name = fingerprint(program)
            cached["numbers"] = [n for n, recorded in enumerate(self._evaluations) if recorded.fingerprint == name]
        numbers: list[int] = cached["numbers"]
        return numbers

    def _find(self, request: Request, shots: int) -> int:
        numbers = self._of_program(request.program)
        if not numbers:
            raise NotRecorded(
                f"{self.path} does not hold this circuit with this readout; replay the model that was recorded (the same "
                "circuit, observables and version of Qiskit), or record this one."
            )
        with_shots = [n for n in numbers if self._evaluations[n].shots == shots]
        if not with_shots:
            recorded = sorted({self._evaluations[n].shots for n in numbers})
            raise NotRecorded(
                f"{self.path} holds this circuit with {recorded} shots, but it was asked for with {shots}."
            )
        same_rows = [n for n in with_shots if len(self._evaluations[n].angles) == len(request.angles)]
        if not same_rows:
            recorded = sorted({len(self._evaluations[n].angles) for n in with_shots})
            raise NotRecorded(
                f"{self.path} holds this circuit at {recorded} sets of angles at once, but it was asked for "
                f"{len(request.angles)}; give the same batch, with the same weights frozen and the same gradient rule."
            )
        distance = {n: _distance(self._evaluations[n].angles, request.angles) for n in same_rows}
        near = [n for n in same_rows if distance[n] <= self.tolerance]
        if not near:
            raise NotRecorded(
                f"{self.path} holds this circuit, but not at these angles: the nearest differ by "
                f"{min(distance.values()):.3g} rad, expected at most {self.tolerance:g}; start from the same weights and "
                "data (the same seed)."
            )
        seed = seed_of(request)
        same_seed = [n for n in near if self._evaluations[n].seed == seed]
        if same_seed:
            return same_seed[0]
        fresh = [n for n in near if n not in self._given_out]
        if not fresh:
            raise NotRecorded(
                f"{self.path} holds {len(near)} measurement(s) of this, which have been given out: the same shots again "
                "would not be another sample. Call rewind() to begin again."
            )
        return fresh[0]

    def __repr__(self) -> str:
        return f"Replay({str(self.path)!r})"


def _distance(recorded: np.ndarray, asked: np.ndarray) -> float:
    if recorded.shape != asked.shape:
        return float("inf")
    return float(np.abs(recorded - asked).max(initial=0.0))


def _read(path: Path) -> list[_Evaluation]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such recording.")
    try:
        # NumPy leaves a file open that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            manifest = json.loads(bytes(archive["manifest"]))
            if manifest.get("format") != _FORMAT:
                raise ValueError("its format is another")
            return [_evaluation(archive, number, entry) for number, entry in enumerate(manifest["evaluations"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no recording ({error}); give a file that `jobs --record` has written.") from error


def _evaluation(archive: Mapping[str, np.ndarray], number: int, entry: Mapping[str, Any]) -> _Evaluation:
    return _Evaluation(
        entry["fingerprint"],
        entry["shots"],
        entry["seed"],
        archive[f"{number}/angles"],
        entry["outputs"],
        [
            [[archive[f"{number}/{unit}/{pub}/{i}"] for i in range(count)] for pub, count in enumerate(counts)]
            for unit, counts in enumerate(entry["arrays"])
        ],
        Passport.from_dict(entry["passport"]),
        Charge(*entry["charge"]),
    )
