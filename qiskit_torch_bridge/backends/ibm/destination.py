"""Where jobs go and where they are written down, as the user named it."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from ...arguments import instance_of, number_from
from .device import Device
from .faults import ServiceFault
from .ledger import Ledger
from .sending import explained
from .service import is_real, open_device

__all__ = ["DEFAULT_LEDGER", "Destination"]

DEFAULT_LEDGER = "qtb-jobs.sqlite"
_IN_MEMORY = ":memory:"


@dataclass(frozen=True, eq=False)
class Destination:
    """A device and a ledger, neither of which has been opened.

    Attributes:
        backend: A device's name, the device itself, a ``Session`` or a ``Batch``.
        account: The name of the account; None: the default.
        instance: The instance's; None: the account's.
        max_time: Of a session or batch of ours, in seconds; None: the service's.
        ledger: The ledger's file, or the word for memory; None: the default.

    Raises:
        TypeError, ValueError: If there can be no such account or file; :attr:`name` says so of a device.
    """

    backend: Any
    _: KW_ONLY
    account: str | None
    instance: str | None
    max_time: int | None
    ledger: Any

    def __post_init__(self) -> None:
        for name in ("account", "instance"):
            instance_of(name, getattr(self, name), (str, type(None)), "a name, or None for the default")
        if self.max_time is not None:
            also = " (seconds), or None for the service's"
            object.__setattr__(self, "max_time", number_from("max_time", self.max_time, least=1, whole=True, also=also))
        object.__setattr__(self, "ledger", _file("ledger", self.ledger))

    @property
    def name(self) -> str:
        """The device's name."""
        if isinstance(self.backend, str):
            kind, _, meant = self.backend.rpartition(":")
            if kind or not meant:  # a word for backend=, not a device's name
                guess = f"; did you mean {'fake_' * (kind == 'fake') + meant!r}?" if meant else "."
                raise ValueError(f"backend: got {self.backend!r}, expected a device's name, such as 'ibm_fez'{guess}")
            return self.backend
        device = self.backend if hasattr(self.backend, "target") else getattr(self.backend, "_backend", None)
        name = getattr(device, "name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"backend: got {self.backend!r} ({type(self.backend).__name__}), expected a device's name, a BackendV2, a "
                "Session or a Batch."
            )
        return name

    @property
    def is_rehearsal(self) -> bool:
        """Whether the device is a simulated one, in this process."""
        return self.backend.startswith("fake_") if isinstance(self.backend, str) else not is_real(self.backend)

    @property
    def kind_of_session(self) -> str | None:
        """``"session"`` or ``"batch"``, where the user gave one."""
        kind = type(self.backend).__name__.lower()
        return kind if kind in ("session", "batch") else None

    @property
    def path(self) -> Path | None:
        """The ledger's file; None for memory."""
        if self.ledger is None and not self.is_rehearsal:
            return _file("QTB_LEDGER", os.environ.get("QTB_LEDGER", DEFAULT_LEDGER))
        return None if self.ledger == _IN_MEMORY else self.ledger

    def without_objects(self) -> Destination:
        """The same by names: a device object knows the service, and the service a token."""
        if isinstance(self.backend, str) or self.is_rehearsal:
            return self
        named = copy(self)
        object.__setattr__(named, "backend", self.name)
        return named

    def open(self, *, mode: str, run: str) -> Device:
        """Connects with the device; a session of the run that an earlier process has left open goes on.

        Raises:
            NotAuthorized, ServiceUnavailable: If there is no way to the service.
        """
        path, left_open = self.path, None
        if path is not None and path.exists():
            ledger = Ledger(path)
            left_open = ledger.open_session(run, self.name, mode)
            ledger.close()
        try:
            return open_device(
                self.backend,
                account=self.account,
                instance=self.instance,
                mode=mode,
                max_time=self.max_time,
                session_id=left_open,
            )
        except ServiceFault as fault:
            raise explained(fault, f"connect with {self.name}", f"Ledger({str(path)!r})") from None


def _file(name: str, ledger: Any) -> Any:
    """The ledger's file as a path; None and the word for memory as they are.

    Raises:
        TypeError, ValueError: If there can be no such file.
    """
    if ledger is None or ledger == _IN_MEMORY:
        return ledger
    path = Path(instance_of(name, ledger, (str, os.PathLike), f"a file's path, {_IN_MEMORY!r}, or None"))
    if path.is_dir():
        raise ValueError(
            f"{name}: got {str(ledger)!r}, which is a folder; give a file in it, such as {DEFAULT_LEDGER!r}."
        )
    if not path.parent.is_dir():
        raise ValueError(f"{name}: got {str(ledger)!r}, expected a file in a folder that exists; make it first.")
    return path
