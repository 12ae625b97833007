"""TensorBoard's files.

PyTorch's ``SummaryWriter``, and Fabric's logger, which drives it, write in a thread. On a full disk that thread dies with a
traceback of its own beside our one line; and files of one second are named in any order, so that what a run wrote before it
was killed and continued may hide what came after. This writes at once, raises at once, and is read in its order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter


@dataclass(frozen=True)
class Board:
    """An event file; between two epochs it is closed, and whole.

    Attributes:
        path: The file.
    """

    path: Path

    @classmethod
    def fresh(cls, folder: Path) -> Board:
        """A new file, which takes the place of all that are in its folder: TensorBoard drops what those say.

        Args:
            folder: Where; made if need be.

        Raises:
            OSError: If it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        board = cls(folder / f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}")
        board._append({"file_version": "brain.Event:2"}, {"session_log": {"status": "START"}, "step": 0})
        return board

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes the numbers of an epoch, by name, at the step ``row["epoch"]``.

        Raises:
            OSError: If they cannot be written.
        """
        numbers = [
            {"tag": name, "simple_value": number}
            for name, number in row.items()
            if isinstance(number, (int, float)) and name != "epoch"
        ]
        self._append({"summary": {"value": numbers}, "step": row["epoch"]})

    def _append(self, *events: Mapping[str, Any]) -> None:
        try:
            with self.path.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(Event(wall_time=time.time(), **event).SerializeToString())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} while TensorBoard's file {self.path} was written; the checkpoint is as it was. Free some "
                "space and continue with --resume.",
            ) from error
