"""A small layer on the stand-in of IBM's service, and processes that train it, which may be killed.

``Nursery`` starts one process that has imported and loaded everything; each training is forked from it, so that a killed one
costs less than a second.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from ibm_cloud import CloudServer, Watch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qiskit_torch_bridge import IBMBackend, Patience, QuantumLayer

INPUTS, WEIGHTS = ParameterVector("x", 2), ParameterVector("w", 2)
# The stand-in lists a job as soon as it has it.
PATIENCE = Patience(retry_seconds=90.0, longest_pause_seconds=0.5, settle_seconds=0.05, poll_seconds=0.02)
FEATURES = torch.tensor([[0.3, 1.1], [0.8, 0.5], [1.3, -0.7]], dtype=torch.float64)
UPSTREAM = torch.tensor([[0.7, -0.4], [-1.2, 0.3], [0.5, 0.9]], dtype=torch.float64)
INITIAL = torch.tensor([0.4, 0.9], dtype=torch.float64)
SHOTS = 200
LEARNING_RATE = 0.1

IMPORTED_BEFORE = [
    "qiskit.qpy",
    "qiskit_ibm_runtime.executor_estimator",
    "qiskit_ibm_runtime.executor_sampler.finalize_options",
    "qiskit_ibm_runtime.fake_provider",
    "qiskit_ibm_runtime.transpiler.plugin",
    "qiskit_ibm_runtime.utils",
    "qiskit_torch_bridge.backends.aer",
    "qiskit_torch_bridge.simulator.engine",
    "tenacity",
    "torch._dynamo",
    "torch.utils.serialization.config",
]
"""What a training imports besides what is imported above."""


def layer_on(backend: Any, *, shots: int | None = SHOTS, seed: int = 7) -> QuantumLayer:
    """Two qubits, two features, two weights, two outputs that are measured in two bases."""
    circuit = QuantumCircuit(2)
    circuit.ry(INPUTS[0], 0)
    circuit.ry(INPUTS[1], 1)
    circuit.ry(WEIGHTS[0], 0)
    circuit.cx(0, 1)
    circuit.rx(WEIGHTS[1], 1)
    options = {"observables": ["ZI", "XX"], "init": INITIAL, "backend": backend, "shots": shots, "seed": seed}
    return QuantumLayer(circuit, inputs=INPUTS, weights=WEIGHTS, **options)


def ibm(ledger: Path | None, backend: Any = "ibm_manila", patience: Patience = PATIENCE, **options: Any) -> IBMBackend:
    """Our backend on the stand-in's device."""
    return IBMBackend(backend, ledger=ledger, patience=patience, **options)


def step(layer: QuantumLayer) -> torch.Tensor:
    """Values, gradients by the features and by the weights of one step, as one vector."""
    features = FEATURES.clone().requires_grad_()
    layer.zero_grad()
    values = layer(features)
    values.backward(UPSTREAM)
    parts = [values.detach(), features.grad, layer.weights.grad]
    return torch.cat([part.ravel() for part in parts if part is not None])


@contextmanager
def watched(cloud: CloudServer, ledger: Path, **options: Any) -> Iterator[tuple[IBMBackend, QuantumLayer, Watch]]:
    """A backend on the stand-in, a layer on it, and what happens at the stand-in from now on."""
    with ibm(ledger, **options) as backend:
        layer = layer_on(backend)
        yield backend, layer, Watch(cloud)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Within it, this process cannot make any file larger than ``path`` is now."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def train(folder: Path, steps: int, patience: Patience, ready: Callable[[], None], packing: Any = None) -> None:
    """Trains with a checkpoint after each step, going on from the last one; calls ``ready`` before the first step."""
    with ibm(folder / "ledger.sqlite", patience=patience, packing=packing) as backend:
        layer = layer_on(backend)
        optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE, momentum=0.5)
        checkpoint = folder / "checkpoint.pt"
        done = 0
        if checkpoint.exists():
            saved = torch.load(checkpoint)
            layer.load_state_dict(saved["layer"])
            optimizer.load_state_dict(saved["optimizer"])
            layer.set_rng_state(saved["rng"])
            done = saved["done"]
        ready()
        for number in range(done, steps):
            optimizer.zero_grad()
            (layer(FEATURES) * UPSTREAM).sum().backward()
            optimizer.step()
            state = {"layer": layer.state_dict(), "optimizer": optimizer.state_dict(), "rng": layer.get_rng_state()}
            torch.save(state | {"done": number + 1}, folder / "unfinished.pt")
            (folder / "unfinished.pt").replace(checkpoint)


def trained(folder: Path) -> torch.Tensor:
    """The weights that a training has come to."""
    weights: torch.Tensor = torch.load(folder / "checkpoint.pt")["layer"]["weights"]
    return weights


class Nursery:
    """Starts trainings in processes of their own, forked from one that has all imports behind it; a context manager.

    Args:
        environment: Of the server, added to this process's.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> Nursery:
        command, pipe = [sys.executable, "-W", "ignore", __file__], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self._environment)
        assert self._line() == "warm"
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(
        self,
        folder: Path,
        steps: int,
        *,
        die_at: int | None = None,
        ready: bool = False,
        settle_seconds: float = PATIENCE.settle_seconds,
        packing: Any = None,
    ) -> int:
        """Starts a training.

        Args:
            folder: Where ledger and checkpoint are.
            steps: How many steps it has.
            die_at: It ends, as if killed, after this step into the outside world (writes of the ledger, requests), counted
                from 1 after the layer is made; None: not.
            ready: Whether to wait until its layer is made.
            settle_seconds: Of its patience.
            packing: Of its backend.

        Returns:
            The number of the process.
        """
        order = {"folder": str(folder), "steps": steps, "die_at": die_at, "ready": ready, "packing": packing}
        self._ask(order | {"settle_seconds": settle_seconds})
        process = int(self._line())
        if ready:
            assert self._line() == "ready"
        return process

    def end_of(self, process: int) -> int:
        """Waits for a training; returns its exit code, negative for a signal."""
        self._ask({"wait": process})
        return int(self._line())

    def _ask(self, order: Mapping[str, Any]) -> None:
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def _line(self) -> str:
        return self._process.stdout.readline().strip()


def _die_at(count: int) -> None:
    """Ends this process when the count-th of what it does to the ledger or the network is done."""
    from requests.adapters import HTTPAdapter

    from qiskit_torch_bridge.backends.ibm.ledger import Ledger

    happened = 0

    def tick() -> None:
        nonlocal happened
        happened += 1
        if happened == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: type, name: str) -> None:
        genuine = getattr(owner, name)

        def dangerous(*arguments: Any, **options: Any) -> Any:
            answer = genuine(*arguments, **options)
            tick()
            return answer

        setattr(owner, name, dangerous)

    for name in ("claim", "submitted", "finished", "note_evaluation", "note", "release"):
        around(Ledger, name)
    around(HTTPAdapter, "send")


def _main() -> None:
    # Nothing that starts threads, as a backward pass does: they would not come along into forked processes.
    for module in IMPORTED_BEFORE:
        import_module(module)
    with torch.no_grad():  # reads the compiled simulator from the disk, which takes longer than a step
        layer_on("statevector", shots=None)(FEATURES)
    assert psutil.Process().num_threads() == 1
    print("warm", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        code = 1
        try:
            patience = replace(PATIENCE, settle_seconds=order["settle_seconds"])
            train(Path(order["folder"]), order["steps"], patience, partial(_get_ready, order), order["packing"])
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def _get_ready(order: Mapping[str, Any]) -> None:
    if order["die_at"] is not None:
        _die_at(order["die_at"])
    if order["ready"]:
        print("ready", flush=True)


if __name__ == "__main__":
    _main()
