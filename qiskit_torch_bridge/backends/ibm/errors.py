"""What can go wrong between a program and a quantum computer far away."""

from __future__ import annotations

__all__ = [
    "EXTRA_IS_MISSING",
    "BudgetExceeded",
    "HardwareError",
    "JobFailed",
    "LedgerError",
    "NotAuthorized",
    "NotRecorded",
    "ServiceUnavailable",
]

EXTRA_IS_MISSING = (
    "needs qiskit-ibm-runtime, which is not installed; install the extra: pip install 'qiskit-torch-bridge[ibm]'."
)


class HardwareError(RuntimeError):
    """Hardware, the service before it, or the record of it failed; the message says what was kept and how to go on."""


class BudgetExceeded(HardwareError):  # noqa: N818 - the name that other people's scripts know
    """The next submission would pass a cap; nothing was submitted."""


class JobFailed(HardwareError):  # noqa: N818 - as Qiskit says it
    """A job ended without a result: it failed, was cancelled, ran over its time, or what came is not what was asked for."""


class ServiceUnavailable(HardwareError):  # noqa: N818
    """The service could not be reached for longer than is waited for."""


class NotAuthorized(HardwareError):  # noqa: N818
    """The service does not accept the account."""


class LedgerError(HardwareError):
    """The ledger cannot be read or written."""


class NotRecorded(HardwareError):  # noqa: N818
    """A recording was asked for something that is not in it."""
