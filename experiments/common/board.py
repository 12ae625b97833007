"""TensorBoard's files.

PyTorch's ``SummaryWriter`` writes in a thread: what a killed process had not flushed is lost, and on a full disk the thread
dies with a traceback and the training learns of it an epoch later, or never. This writes at once and raises at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class Board:
    """A new event file, which takes the place of all that are in its folder: TensorBoard drops what those say.

    Args:
        folder: Where; made if need be.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # takes a moment
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}"
        self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START), step=0)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # everything is flushed, or an error has said that it could not be
            self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes the numbers of an epoch, by name, at the step ``row["epoch"]``.

        Raises:
            OSError: If they cannot be written.
        """
        value = self._summaries.Summary.Value
        numbers = [
            value(tag=name, simple_value=number)
            for name, number in row.items()
            if isinstance(number, (int, float)) and name != "epoch"
        ]
        self._write(summary=self._summaries.Summary(value=numbers), step=row["epoch"])

    def _write(self, **event: Any) -> None:
        try:
            self._records.write(self._events.Event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()
        except OSError as error:
            self.__exit__()
            raise OSError(
                error.errno,
                f"{error.strerror} while TensorBoard's file {self._path} was written; the checkpoint is as it was. Free "
                "some space and continue with --resume.",
            ) from error
