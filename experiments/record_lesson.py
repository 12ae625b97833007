"""Trains a small circuit on a simulated device of IBM's through all that a real one needs, and records what it measured.

Anyone can replay the recording, without an account and without a simulator: ``lesson("replay:FILE")`` gives the same
shots, and so the same losses as those in ``FILE.json`` beside it: to the last bit on the machine that recorded them, to
single precision on any other. ``experiments/recordings/fake-manila.npz`` was made so. On another processor a *new* recording
holds other shots: the optimiser's steps round in another way there, and the seed of a rehearsed job follows from its angles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import dressed
from qiskit_torch_bridge.commands.printing import in_columns

from .common.hardware import IN_MEMORY, connected
from .common.options import named_parser
from .common.settings import HardwareSettings

DEVICE = "fake_manila"
RECORDING = Path(__file__).parent / "recordings" / "fake-manila.npz"

_STEPS = 8
_SHOTS = 200


class Lesson(NamedTuple):
    """What the training came to.

    Attributes:
        losses: The loss of each step.
        scores: After it, shape (4, 1): positive where the two numbers differ.
    """

    losses: list[float]
    scores: torch.Tensor


def lesson(backend: Any) -> Lesson:
    """Trains two qubits to tell whether two numbers differ in sign (exclusive or), each step one job.

    Args:
        backend: What a layer takes; one with shots.
    """
    points = torch.pi / 2 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    targets = torch.tensor([[-1.0], [1.0], [1.0], [-1.0]])
    circuit, inputs, weights = dressed(2, 2)
    layer = QuantumLayer(
        circuit,
        inputs=inputs,
        weights=weights,
        observables="ZI",
        backend=backend,
        shots=_SHOTS,
        gradient="parameter_shift",
        seed=3,
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    losses = []
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(points), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        return Lesson(losses, layer(points))


def losses_beside(path: Path) -> Path:
    """The file with the losses that a recording comes to."""
    return path.with_name(f"{path.name}.json")


def record(path: Path) -> Lesson:
    """Gives the lesson on the simulated device and writes it to a file, and its losses beside it; neither may exist."""
    from qiskit_torch_bridge.backends.ibm.recording import write_recording

    for file in (path, losses_beside(path)):
        if file.exists():
            raise FileExistsError(f"{file} exists; give another name, or remove it first.")
    with connected(DEVICE, HardwareSettings(), IN_MEMORY) as device:
        came_to = lesson(device)
        write_recording(device.ledger, path)
    losses_beside(path).write_text(json.dumps({"losses": came_to.losses}) + "\n")
    return came_to


def main(arguments: Sequence[str]) -> int:
    """Records the lesson where the command line says; returns the exit status."""
    parser = named_parser("record-lesson", __doc__)
    parser.add_argument("file", type=str, help="The file to write (.npz).")
    path = Path(parser.parse_args(list(arguments)).file)
    came_to = record(path)
    print(in_columns([{"step": step, "loss": loss} for step, loss in enumerate(came_to.losses, 1)]))
    print(f"{path} holds it ({path.stat().st_size / 1000:.0f} kB).")
    return 0
