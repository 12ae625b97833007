"""Machine code is compiled once, and kept on disk where there is room."""

import gc
import logging
import os
import subprocess
import sys
from typing import Any

import numba
import pytest
from numba import types

from qiskit_torch_bridge.simulator import machine_code

COMPILE_ALL = """
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit_torch_bridge import QuantumLayer
x = ParameterVector("x", 2)
circuit = QuantumCircuit(2)
circuit.ry(x[0], 0)
circuit.cx(0, 1)
circuit.rx(x[1], 1)
for options in ({"observables": ["ZZ", "XI"]}, {"probabilities": [1]}):
    layer = QuantumLayer(circuit, inputs=x, seed=1, **options)
    rows = torch.tensor([[0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    values = layer(rows)
    print(values.tolist(), torch.autograd.grad(values.sum(), rows)[0].tolist(), layer(rows, shots=10).tolist())
"""


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = {"env": {**os.environ, **environment}, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], check=True, timeout=500, **options)


COMPILE_LITTLE = """
import numpy as np
from qiskit_torch_bridge.simulator import outcome_kernels
for kind in (np.uint64, np.uint32):
    print(outcome_kernels.random_words(np.zeros(4, kind), np.zeros(2, kind)))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(capsys):
    """Of all that a layer calls; this process, and the tests before, have compiled what was not on disk."""
    exec(COMPILE_ALL, {})
    second = run_python(COMPILE_ALL)
    assert "Compiling" not in second.stderr
    assert second.stdout == capsys.readouterr().out


@pytest.mark.slow
def test_compiling_is_announced_once_and_kept_on_disk(tmp_path):
    """For the smallest function, because compiling all of them from nothing takes a minute."""
    first, second = (run_python(COMPILE_LITTLE, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.stderr.count("Compiling the simulator") == 1
    assert "Compiling" not in second.stderr
    assert first.stdout == second.stdout
    assert any(tmp_path.rglob("*.nbc"))


def test_entries_are_called_with_the_types_that_they_declare():
    """Else they would be compiled ahead for nothing, and again when they are called."""
    exec(COMPILE_ALL, {})
    for kernel, (signatures, _) in machine_code._entries.items():
        declared = {machine_code._types(one, real) for one in signatures for real in (types.float64, types.float32)}
        assert not signatures or set(kernel.signatures) <= declared, kernel


def add(n: int, x: float) -> float:
    return n + x


def subtract(n: int, x: float) -> float:
    return n - x


def test_compiling_one_entry_compiles_all(monkeypatch, tmp_path, caplog):
    """For a plane's type, within the first call, with one note."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(machine_code, "_entries", {})
    monkeypatch.setattr(machine_code._FirstUse, "said", False)
    kernels = [machine_code.entry("int64, real")(function) for function in (add, subtract)]
    with caplog.at_level(logging.WARNING):
        assert kernels[0](1, 2.0) == 3.0
    assert [kernel.signatures for kernel in kernels] == [[(types.int64, types.float64)]] * 2
    assert kernels[1](1, 2.0) == -1.0
    assert caplog.text.count("Compiling the simulator") == 1


def increment(number: int) -> int:
    return number + 1


def test_functions_work_where_nothing_can_be_written(monkeypatch, caplog):
    """Numba asks one place after the other, and gives up before it compiles."""

    def nowhere(cls: Any, function: Any, file: Any) -> None:
        return None

    from numba.core import caching

    for locator in caching.CacheImpl._locator_classes:
        monkeypatch.setattr(locator, "from_function", classmethod(nowhere))
    monkeypatch.setattr(machine_code, "_entries", dict(machine_code._entries))
    with caplog.at_level(logging.WARNING):
        function = machine_code.entry()(increment)
    assert function(1) == 2
    assert "cannot be kept on disk" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_a_folder_that_cannot_be_written_is_passed_over(monkeypatch, tmp_path, caplog):
    """There is another; without a warning."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(machine_code, "_entries", dict(machine_code._entries))
    with caplog.at_level(logging.WARNING):
        assert machine_code.entry()(increment)(1) == 2
    assert "cannot be kept" not in caplog.text


def test_garbage_is_looked_for_seldom_while_it_compiles_and_then_as_before(monkeypatch):
    before, within = gc.get_threshold(), []

    class Failing:
        def compile(self, arguments: Any) -> None:
            within.append(gc.get_threshold())
            raise MemoryError

    monkeypatch.setattr(machine_code, "_entries", {Failing(): (("int64",), machine_code.Use.SMALL)})
    with pytest.raises(MemoryError):
        machine_code.compile_for(machine_code.Use.SMALL, types.float64)
    assert within[0][0] > before[0]
    assert gc.get_threshold() == before
