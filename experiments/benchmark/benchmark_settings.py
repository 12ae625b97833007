"""What the benchmark can be told; without PyTorch, so that help and typing errors are there at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.kinds import PositiveFloat, PositiveInt
from ..common.settings import Settings
from .cases import PARTS, SYSTEMS

_PEERS = "peers"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings(Settings):
    """Speed against other libraries: one training step of the same circuits, each library in a process of its own.

    A step is forward and backward. All systems get the same gate list, inputs, weights and upstream gradient, and their
    values and gradients must agree with an independent reference before any of their times is reported. Ours and the
    peers then take turns, so that whatever else the machine does hits all of them. Times are medians; speed is a ratio
    within one run. The first call in a new process is timed too, with all that is compiled for the circuit.

    The peers are optional (pip install -r requirements.txt -e '.[peers]'); those that are absent are named as absent.

    Attributes:
        cases: What to measure (default: all): textbook, dressed-4, dressed-64, layerwise-128, entangling-12,
            entangling-16, entangling-20, dressed-4-shots, layerwise-128-shots, dressed-4-noise, dressed-4-noise-shots,
            layerwise-6-noise, wide-20-2, wide-50-2, wide-100-2, wide-100-3, layerwise-9-noise-shots,
            layerwise-9-noise-shots-all, qubits, batch, weights, noisy-qubits, wide-qubits, overhead, fresh.
        systems: Only these (default: all): ours, ours-compiled, ours-aer, ours-stopwatch, ours-values, aer-mps-values,
            pennylane-tensor-values, pennylane-default, pennylane-lightning, pennylane-qiskit, pennylane-mixed,
            qiskit-machine-learning, tensorcircuit-jax, tensorcircuit-torch, tensorcircuit-cones, pyqtorch, torch-eager,
            torch-compiled, floor-function, floor-cosine.
        repetitions: Timings of each system in each case (default: 7; small: 3); fewer where they would take over half a
            minute together.
        threads: Threads of every system's numerical libraries (default: the cores that there are), by the environment
            variables that each of them reads.
        small: Only the quick cases, with fewer repetitions and without the peers that compile each circuit.
        largest_qubits: Where the series by qubits ends, for example 24.
        timeout: Seconds that a system may take to answer.
        peer_python: SYSTEM=PYTHON ...: interpreters of other environments, for peers that do not fit into this one;
            peers=PYTHON is for all that are not named.
        seed: Draws inputs, weights, upstream gradients and shots.
    """

    cases: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    repetitions: PositiveInt | None = None
    threads: PositiveInt | None = None
    small: bool = False
    largest_qubits: PositiveInt = 20
    timeout: PositiveFloat = 300.0
    peer_python: tuple[str, ...] = ()

    without: ClassVar = ("resume", "scheduler", "workers")

    def __post_init__(self) -> None:
        for option, names, known in (("--cases", self.cases, PARTS), ("--systems", self.systems, tuple(SYSTEMS))):
            if strange := sorted(set(names) - set(known)):
                raise ValueError(f"{option}: got {', '.join(strange)}, expected some of {', '.join(known)}.")
        for pair in self.peer_python:
            name, _, python = pair.partition("=")
            if not python or name not in (_PEERS, *SYSTEMS):
                raise ValueError(
                    f"--peer-python: got {pair!r}, expected SYSTEM=PYTHON, the system {_PEERS} or one of "
                    f"{', '.join(SYSTEMS)}."
                )

    @property
    def pythons(self) -> dict[str, str]:
        """The interpreters of the systems that have one of their own."""
        named = dict(pair.split("=", 1) for pair in self.peer_python)
        of_peers = named.pop(_PEERS, None)
        peers = [] if of_peers is None else [name for name, system in SYSTEMS.items() if not system.ours]
        return {**dict.fromkeys(peers, of_peers or ""), **named}
