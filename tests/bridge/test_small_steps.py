"""One training step passes few rooms: a feature that is spread over many is slow, and hard to follow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import qiskit_torch_bridge
from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import dressed

ROOT = Path(qiskit_torch_bridge.__file__).parent


@contextmanager
def calls_within_the_library() -> Iterator[list[str]]:
    """The file of each Python function of the library that is called meanwhile, in their order."""
    files: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.append(str(Path(frame.f_code.co_filename).relative_to(ROOT)))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)


def step(layer: QuantumLayer, features: torch.Tensor) -> None:
    layer(features).sum().backward()


@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="what stands in for a missing part is one more file")
@pytest.mark.parametrize(("shots", "most_files", "most_calls"), [(None, 8, 50), (100, 12, 120)], ids=["exact", "shots"])
def test_a_training_step_passes_few_rooms(shots, most_files, most_calls):
    circuit, inputs, weights = dressed(2, 2)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, shots=shots, seed=1)
    features = torch.rand(4, 2, dtype=torch.float64)
    step(layer, features)  # what is made once is made now
    with calls_within_the_library() as files:
        step(layer, features)
    assert "layer.py" in files
    assert len(set(files)) <= most_files, sorted(set(files))
    assert len(files) <= most_calls
