"""``qtb check``: whether IBM hardware can be used from here, step by step, and what a training step would cost."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from ..backends.ibm.errors import HardwareError
from ..backends.ibm.faults import masked
from ..backends.passport import costs_of_jobs
from ..circuits import textbook
from ..dressed import DressedQuantumNet
from ..layer import QuantumLayer
from .printing import in_columns

if TYPE_CHECKING:
    from ..backends.ibm.backend import IBMBackend

__all__ = ["main"]

_LABEL = "ibm-check"  # in ledgers; a job that an earlier version left behind is found by it
_OPEN_PLAN_SECONDS = 600.0
_BATCH = 4
_ANGLE = 0.7
_SHOTS = 100
_INSTALL = "pip install 'qiskit-torch-bridge[ibm]'"
_SAVE = (
    "make an API key on https://quantum.cloud.ibm.com and save it once with QiskitRuntimeService.save_account(token=..., "
    "instance=..., set_as_default=True), or set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE."
)
_LATER = "try again later; https://quantum.cloud.ibm.com says when the service has trouble."


class _Wrong(Exception):  # noqa: N818 - a finding
    """A step's finding: what is wrong, and its remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def _textbook(**options: Any) -> QuantumLayer:
    circuit, inputs, _ = textbook()
    return QuantumLayer(circuit, inputs=inputs, probabilities=True, **options)


def _dressed(**options: Any) -> QuantumLayer:
    return DressedQuantumNet(4, 2, **options).quantum


_LAYERS: dict[str, Callable[..., QuantumLayer]] = {"textbook, 1 qubit": _textbook, "dressed, 4 qubits": _dressed}


def main(options: Namespace) -> int:
    """Checks what the options say; returns 0 if all of it is fine."""
    try:
        _check(options)
    except _Wrong as wrong:
        print(f"WRONG  {wrong}\n       What to do: {wrong.remedy}")
        return 1
    return 0


def _check(options: Namespace) -> None:
    _ok("packages", _packages())
    is_simulated = options.device is not None and options.device.startswith("fake_")
    chosen = options.device if is_simulated else _device(options)
    from ..backends.ibm.backend import IBMBackend  # which needs the packages

    with _explained("connection", _LATER):
        ledger = options.ledger if options.submit else ":memory:"
        device = IBMBackend(chosen, account=options.account, instance=options.instance, ledger=ledger, run=_LABEL)
        _ = device.connection
    with device:
        seconds = _OPEN_PLAN_SECONDS
        if is_simulated:
            _ok(
                "device",
                f"{device.name}, {device.device.num_qubits} qubits, simulated in this process: nothing is paid",
            )
        else:
            seconds = _plan(device)
        with _explained("quote", "take another device."):
            rows = _quotes(device, seconds)
        _ok("quote", f"a training step on a batch of {_BATCH} (estimated, by IBM's formula):")
        print(in_columns(rows))
        for name, make in _LAYERS.items():
            with _explained("layout", "take another device or version of Qiskit, and report this."):
                _ok("layout", f"{name}: {device.self_test(make(backend=device, shots=_SHOTS).program)}")
        _submit(device, submit=options.submit)


def _ok(step: str, finding: str) -> None:
    print(f"OK     {step}: {finding}")


@contextmanager
def _explained(step: str, remedy: str) -> Iterator[None]:
    """Turns whatever goes wrong within it into a finding, without the account's token.

    IBM's client raises anything; what this package raises says itself what to do.
    """
    try:
        yield
    except _Wrong:
        raise
    except (HardwareError, ValueError, ImportError) as error:
        raise _Wrong(f"{step}: {_without_tokens(str(error))}", remedy) from None
    except Exception as error:
        raise _Wrong(f"{step}: {type(error).__name__}: {_without_tokens(str(error))}", remedy) from None


def _packages() -> str:
    versions = []
    for package in ("qiskit", "qiskit-ibm-runtime", "tenacity"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            raise _Wrong(f"packages: {package} is not installed", _INSTALL) from None
    return ", ".join(versions)


def _device(options: Namespace) -> Any:
    """The device of the service that is asked for, or the one with the shortest queue."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    with _explained("account", _SAVE):
        _ok("account", _account(options.account))
    with _explained("service", f"if the account is refused, {_SAVE} Else {_LATER}"):
        service = QiskitRuntimeService(name=options.account, instance=options.instance)
        devices = {device.name: device for device in service.backends()}
        if not devices:  # which is also what IBM's client makes of an account or instance that is refused
            raise _Wrong(
                "service: it shows no devices: the account or the instance is not accepted, or has none", _SAVE
            )
        _ok("service", f"the account is accepted; {len(devices)} device(s)")
        rows = [_row(device) for device in devices.values()]
    print(in_columns(rows))
    takes_jobs = [row for row in rows if row["takes jobs"] == "yes"]
    if options.device is None:
        if not takes_jobs:
            raise _Wrong("device: none takes jobs at the moment", _LATER)
        return devices[min(takes_jobs, key=lambda row: int(row["queue"]))["device"]]
    if options.device not in devices:
        raise _Wrong(
            f"device: got {options.device!r}, but this account has {', '.join(devices) or 'none'}", "name another."
        )
    if options.device not in [row["device"] for row in takes_jobs]:
        raise _Wrong(f"device: {options.device} takes no jobs at the moment", "take another, or wait.")
    return devices[options.device]


def _account(name: str | None) -> str:
    from qiskit_ibm_runtime import QiskitRuntimeService

    if name is None and os.environ.get("QISKIT_IBM_TOKEN"):
        return "from the environment (QISKIT_IBM_TOKEN), which goes before saved ones"
    saved = QiskitRuntimeService.saved_accounts()
    if not saved or name not in (None, *saved):
        raise _Wrong(f"account: {'there is none' if name is None else f'there is none of the name {name!r}'}", _SAVE)
    return f"saved as {name}" if name else f"saved: {', '.join(saved)}"


def _row(device: Any) -> dict[str, Any]:
    status = device.status()
    takes_jobs = status.operational and status.status_msg == "active"
    return {
        "device": device.name,
        "qubits": device.num_qubits,
        "takes jobs": "yes" if takes_jobs else f"no ({status.status_msg})",
        "queue": status.pending_jobs,
    }


def _plan(device: IBMBackend) -> float:
    """Shows the plan; returns the seconds on quantum processors that are left, where the service says so."""
    connection: Any = device.connection
    with _explained("plan", _LATER):
        usage = connection.account_usage()
    plan = connection.plan or "unknown"
    limits = "; no sessions, ten minutes in 28 days" if plan == "open" else ""
    used = usage.get("usage_consumed_seconds", 0)
    left = usage.get("usage_remaining_seconds")
    if usage.get("usage_limit_reached") or left == 0:
        raise _Wrong(f"plan: {plan}{limits}; its time is used up ({used:,} s)", "wait for the next 28 days, or pay.")
    _ok("plan", f"{plan}{limits}; {used:,} s used{'' if left is None else f', {left:,} s left'}")
    _ok("device", f"{device.name}, {device.device.num_qubits} qubits, calibrated {connection.calibrated()}")
    return _OPEN_PLAN_SECONDS if left is None else float(left)


def _quotes(device: IBMBackend, seconds: float) -> list[dict[str, Any]]:
    """What a training step costs, a row for each layer, gradient rule and number of shots."""
    rows = []
    for name, make in _LAYERS.items():
        for gradient in ("parameter_shift", "spsa"):
            for shots in (100, 1000):
                quote = make(backend=device, shots=shots, gradient=gradient).quote(_BATCH)
                rows.append(
                    {
                        "layer": name,
                        "gradient": gradient,
                        "shots": shots,
                        "jobs": quote.jobs,
                        "executions": quote.executions,
                        "QPU s": quote.qpu_seconds,
                        f"steps in {seconds:,.0f} s": math.floor(seconds / quote.qpu_seconds),
                    }
                )
    return rows


def _submit(device: IBMBackend, *, submit: bool) -> None:
    """Submits one circuit at one angle, or says that it would."""
    jobs = [entry for entry in device.ledger.entries() if entry.run == _LABEL]
    # A job that was left behind is asked for again, with its seed; after one that is done it is another's turn.
    layer = _textbook(backend=device, shots=_SHOTS, seed=sum(entry.state == "done" for entry in jobs))
    with torch.no_grad():
        quote = layer.quote(1)
        what = f"{quote.jobs} job with {quote.circuits} circuit and {quote.shots} shots, {quote.qpu_seconds:.1f} s estimated"
        if not submit:
            _ok("job", f"--submit would send {what}; nothing was sent")
            return
        with _explained("job", "see above; `qtb jobs LEDGER` lists what was sent."):
            probability = layer(torch.tensor([[_ANGLE]]))[0, 1].item()
    measured = layer.last_run
    assert measured is not None
    assert measured.passport is not None
    device.settle_bills()
    costs = costs_of_jobs([entry for entry in device.ledger.entries() if entry.job_id in measured.passport.job_ids])
    billed = "not billed (yet)" if costs["qpu_seconds"] is None else f"{costs['qpu_seconds']:.1f} s billed"
    _ok(
        "job",
        f"P(1) = {probability:.3f} +- {measured.standard_errors[0, 1]:.3f}, exactly {(1 + math.sin(_ANGLE)) / 2:.3f}; "
        f"{what}, {billed}; in {device.ledger!r}",
    )


def _without_tokens(text: str) -> str:
    """What IBM's client says may hold the account's token."""
    from qiskit_ibm_runtime import QiskitRuntimeService

    saved = [account.get("token") for account in QiskitRuntimeService.saved_accounts().values()]
    return " ".join(masked(text, filter(None, [os.environ.get("QISKIT_IBM_TOKEN"), *saved])).split())
