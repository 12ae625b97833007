"""Run folders: settings, metrics, results and checkpoints, each file written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import yaml
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import numpy as np

_LOCK = ".lock"

_NUMBERS_OF_A_RESULT = ("test_accuracy", "seconds", "circuits", "shots")
_NUMBERS_OF_AN_EPOCH = (
    *("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("seconds", "circuits", "shots"),
)


def brief(error: BaseException) -> str:
    """What an error says, on one line and without an end."""
    return " ".join(str(error).split()).rstrip(".")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def fresh(cls, path: Path | None, experiment: str) -> RunFolder:
        """Makes the folder of a new run: ``path``, or the first free one of ``runs/EXPERIMENT-1``, ``-2``, ...

        Raises:
            FileExistsError: If ``path`` holds files already, the lock of a process that was killed at once aside.
        """
        if path is None:
            return cls(_first_free(Path("runs"), experiment))
        if path.exists() and (not path.is_dir() or any(file.name != _LOCK for file in path.iterdir())):
            raise FileExistsError(
                f"--run-dir: got {str(path)!r}, which holds files already, expected a new folder; name another, or continue "
                "the run in it with --resume."
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def existing(cls, path: Path | None) -> RunFolder:
        """The folder of a run to continue.

        Raises:
            FileNotFoundError: If there is no run in it.
        """
        if path is None:
            raise FileNotFoundError(
                "--resume: got no run folder; name it with --run-dir, for example --run-dir runs/NAME-1."
            )
        if not (path / "config.yaml").is_file():
            raise FileNotFoundError(f"{path} has no config.yaml; name the folder of a run.")
        return cls(path)

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been written; a run that was killed before starts from its beginning."""
        return self.file("checkpoint.pt").is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its result."""
        return self.file("result.json").is_file()

    @property
    def is_drawn(self) -> bool:
        """Whether a figure is younger than the result."""
        result = self.file("result.json").stat().st_mtime_ns
        return any(figure.stat().st_mtime_ns >= result for figure in self.path.glob("*.png"))

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Within it, no other process is at work in the folder.

        Args:
            wait: Whether to wait for the end of one that is.

        Raises:
            BlockingIOError: If one is, and is not to be waited for.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file(_LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not wait:
                raise BlockingIOError(
                    f"{self.path}: another process is at work in this run; wait for its end, or interrupt it first."
                ) from error
            print(f"{self.path}: another process is at work in it; waiting for its end.", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def within(self, name: str) -> RunFolder:
        """A folder within this one, for a part of the run; made when something is written."""
        return RunFolder(self.path / name)

    def discard_if_unused(self) -> None:
        """Removes the folder of a run that has come to nothing: it and its parts hold their settings at most."""
        with suppress(OSError):  # why the run came to nothing matters more than that its folder is still there
            for part in filter(Path.is_dir, list(self.path.iterdir())):
                RunFolder(part).discard_if_unused()
            held = list(self.path.iterdir())
            if {path.name for path in held} <= {"config.yaml", _LOCK}:
                for path in held:
                    path.unlink()
                self.path.rmdir()

    def reopen(self) -> None:
        """Makes a run unfinished again, because it is trained further; drops what a killed process left half written."""
        self.file("result.json").unlink(missing_ok=True)
        for partial in self.path.glob(".*.partial"):
            partial.unlink()

    def file(self, name: str) -> Path:
        """The path of a file of the run."""
        return self.path / name

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file so that a crash or a full disk leaves the old one or the new one, never half of it."""
        target = self.file(name)
        partial = target.with_name(f".{name}.{os.getpid()}.partial")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise OSError(
                error.errno,
                f"{error.strerror} while {len(content)} bytes of {target} were written; what was there before is as it was. "
                "Free some space and continue with --resume.",
            ) from error
        return target

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """``config.yaml``: give it back with ``--config``."""
        self.write("config.yaml", yaml.safe_dump(dict(settings), sort_keys=False).encode())

    def read_settings(self) -> dict[str, Any]:
        """The settings that the run was started with.

        Raises:
            ValueError: If the file does not hold any.
        """
        path = self.file("config.yaml")
        try:
            settings = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(
                f"{path} cannot be read ({brief(error)}); start the run anew in another folder."
            ) from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path} holds no settings, expected those of the run; start it anew in another folder.")
        return settings

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A CSV file: one line a row, all with the columns of the first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(name, text.getvalue().encode())

    def read_rows(self, name: str = "metrics.csv") -> list[dict[str, Any]]:
        """What :meth:`write_rows` wrote; numbers are numbers again.

        Raises:
            ValueError: If the file is not there, holds nothing or is damaged.
        """
        path = self.file(name)
        try:
            with path.open(newline="") as file:
                header, *lines = [*csv.reader(file)] or [[]]
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}): the run has not come so far.") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(_damaged(path, brief(error))) from error
        if not lines:
            raise ValueError(f"{path} holds no rows yet: the run has not finished an epoch.")
        for number, line in enumerate(lines, start=2):
            if len(line) != len(header):
                raise ValueError(_damaged(path, f"line {number} has {len(line)} fields, expected {len(header)}"))
        rows = [dict(zip(header, map(_number, line), strict=True)) for line in lines]
        if name == "metrics.csv":
            _check_numbers(path, rows, _NUMBERS_OF_AN_EPOCH)
        return rows

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """An ``.npz`` file."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.write(name, buffer.getvalue())

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """What :meth:`write_arrays` wrote.

        Raises:
            ValueError: If the file is not there or is damaged.
        """
        import numpy as np

        path = self.file(name)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({brief(error)}): the run has not come so far.") from error
        except (ValueError, EOFError, zlib.error, BadZipFile) as error:
            raise ValueError(_damaged(path, brief(error))) from error

    def read_result(self) -> dict[str, Any]:
        """What the run came to.

        Raises:
            ValueError: If it has not come to an end, or the file is damaged.
        """
        path = self.file("result.json")
        try:
            result = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} has not finished; finish it with --resume.") from error
        except (OSError, ValueError) as error:
            raise ValueError(_damaged(path, brief(error))) from error
        if not isinstance(result, dict):
            raise ValueError(_damaged(path, f"it holds {result!r}, expected the result's numbers by name"))
        _check_numbers(path, [result], _NUMBERS_OF_A_RESULT)
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``: what the run came to."""
        self.write("result.json", (json.dumps(dict(result), indent=2) + "\n").encode())

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """``checkpoint.pt``: all that is needed to continue."""
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write("checkpoint.pt", buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, its tensors on the CPU.

        Raises:
            ValueError: If the file is no checkpoint.
        """
        import torch

        path = self.file("checkpoint.pt")
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(
                f"{path} is no checkpoint that can be read ({brief(error)}); start the run anew in another folder."
            ) from error

    def write_figure(self, name: str, figure: Any) -> None:
        """A matplotlib figure as a PNG file."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        self.write(name, buffer.getvalue())


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}); write it anew by continuing the run with --resume."


def _check_numbers(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        for row in rows:
            if name not in row:
                raise ValueError(_damaged(path, f"it has no {name}"))
            if not isinstance(row[name], (int, float)):
                raise ValueError(_damaged(path, f"{name} is {row[name]!r}, expected a number"))


def _number(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _first_free(parent: Path, experiment: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)  # which fails where a file has the name, or a link that leads nowhere
    for number in count(1):
        path = parent / f"{experiment}-{number}"
        with suppress(FileExistsError):  # another run may have taken the number in this moment
            path.mkdir()
            break
    return path
