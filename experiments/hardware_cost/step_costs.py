"""What one training step of a library costs: counted in a process of its own, or as it was counted before; and its price."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qiskit_torch_bridge.backends.ibm.prices import Price, price_of
from qiskit_torch_bridge.backends.ibm.primitive_options import finalized_options

from ..common.cells import Cell, Row
from .counting import fake_device
from .steps import PEERS, SHOTS

RECORDED = Path(__file__).with_name("peer_counts.json")
"""What the peers were found to submit: the ``result.json`` of a run of this part."""
_CHECKOUT = Path(__file__).parents[2]


def require_counted(cell: Cell) -> None:
    """Refuses a peer's step that was not counted before and is not to be counted now.

    Raises:
        ValueError: If it is one.
    """
    if cell["python"] is None and cell["system"] in PEERS and (cell["system"], cell["model"]) not in _records():
        raise ValueError(
            f"--peer-python: got none for {cell['system']}, expected one: {RECORDED.name} has no step of {cell['model']}."
        )


def measure_step(cell: Cell) -> Row:
    """What the cell's library submits for a step of its model, and what that costs.

    Raises:
        RuntimeError: If it cannot be counted.
    """
    if cell["python"] is None and cell["system"] in PEERS:
        counts = dict(_records()[cell["system"], cell["model"]])
    else:
        counts = _counted(cell)
    return {**counts, "qpu_seconds": seconds_of(counts, price())}


def _counted(cell: Cell) -> dict[str, Any]:
    command = [cell["python"] or sys.executable, "-W", "ignore", "-m", f"{__package__}.counting"]
    path = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    try:
        arguments = [cell["system"], cell["model"], str(SHOTS)]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=True)
    except OSError as error:
        raise RuntimeError(f"{cell['system']}: {command[0]} does not start ({error}).") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"{cell['system']}: {command[0]} could not count; its last words: {last}") from error
    return dict(json.loads(done.stdout))


@cache
def _records() -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(RECORDED.read_text())["counts"]
    return {(row.pop("system"), row.pop("model")): row for row in rows}


@cache
def price() -> Price:
    """The price of a circuit with the options that IBM's Sampler has by default.

    What an Estimator adds by default, to calibrate and to twirl, is left out: all libraries are charged alike.
    """
    return price_of(finalized_options("sampler", {}), SHOTS, rep_delay=fake_device().default_rep_delay)


def seconds_of(counts: Mapping[str, Any], price: Price) -> float:
    """The estimated seconds of the quantum processor that are billed for what was counted."""
    jobs, executions, running = (counts[name] for name in ("jobs", "executions", "circuit_seconds"))
    return float(jobs * price.seconds_of_job + executions * price.delay + running)
