"""Run folders: settings, metrics, results and checkpoints, each file written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

__all__ = ["RunFolder"]


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
            FileExistsError: If ``path`` holds files already.
        """
        if path is None:
            return cls(_first_free(Path("runs"), experiment))
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
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
            FileNotFoundError: If there is no checkpoint in it.
        """
        if path is None:
            raise FileNotFoundError(
                "--resume: got no run folder; name it with --run-dir, for example --run-dir runs/NAME-1."
            )
        if not (path / "checkpoint.pt").is_file():
            raise FileNotFoundError(f"--resume: {path} has no checkpoint.pt; name the folder of a run with --run-dir.")
        return cls(path)

    def file(self, name: str) -> Path:
        """The path of a file of the run."""
        return self.path / name

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file so that a crash leaves the old one or the new one, never half of it."""
        target = self.file(name)
        partial = target.with_name(f".{name}.{os.getpid()}.partial")
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
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
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read ({error}); start the run anew in another folder.") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path} holds no settings, expected those of the run; start it anew in another folder.")
        return settings

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """``metrics.csv``: one line a row, all of them."""
        self.write_rows("metrics.csv", rows)

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A CSV file: one line a row, all with the columns of the first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(name, text.getvalue().encode())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """``result.json``: what the run came to."""
        self.write("result.json", (json.dumps(dict(result), indent=2) + "\n").encode())

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """``checkpoint.pt``: all that is needed to continue."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.write("checkpoint.pt", buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, its tensors on the CPU.

        Raises:
            ValueError: If the file is no checkpoint.
        """
        path = self.file("checkpoint.pt")
        try:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(
                f"{path} is no checkpoint that can be read ({error}); start the run anew in another folder."
            ) from error

    def write_figure(self, name: str, figure: Any) -> None:
        """A matplotlib figure as a PNG file."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        self.write(name, buffer.getvalue())


def _first_free(parent: Path, experiment: str) -> Path:
    for number in count(1):
        path = parent / f"{experiment}-{number}"
        with suppress(FileExistsError):  # another run may have taken the number in this moment
            path.mkdir(parents=True)
            break
    return path
