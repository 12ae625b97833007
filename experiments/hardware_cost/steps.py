"""The training steps whose costs are compared, and the libraries that take them; without Qiskit and PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..benchmark.gate_lists import Problem, dressed, layerwise, textbook

DEVICE = "fake_fez"
"""The fake device for which all circuits are compiled: a Heron processor of 156 qubits."""
SHOTS = 1000
"""Of a circuit, in the steps that are compared."""


@dataclass(frozen=True)
class Model:
    """A training step of one of the published models.

    Attributes:
        title: How tables name it.
        make: From a seed to the step.
        too_long_for: Systems that would take too long to be counted with it.
    """

    title: str
    make: partial[Problem]
    too_long_for: tuple[str, ...] = ()


MODELS: Mapping[str, Model] = {
    "textbook": Model("textbook's qubit, batch 1", partial(textbook, batch=1)),
    "textbook-50": Model("textbook's qubit, batch 50", partial(textbook, batch=50)),
    "dressed": Model("dressed circuit, 4 qubits, batch 4", partial(dressed, depth=6, batch=4)),
    "layerwise-8": Model("layerwise, 9 qubits, 2 layers, batch 8", partial(layerwise, num_qubits=9, layers=2, batch=8)),
    "layerwise": Model(
        "layerwise, 9 qubits, 2 layers, batch 128",
        partial(layerwise, num_qubits=9, layers=2, batch=128),
        # It transpiles each of 4736 circuits; what it submits grows with the batch, and a smaller one is counted too.
        too_long_for=("pennylane-qiskit",),
    ),
}
"""By name. The batches are those that were published, and others besides."""


@dataclass(frozen=True)
class System:
    """A library, as its users write a training step with it.

    Attributes:
        title: How tables name it.
        adapter: ``module:function``: from a problem, shots, a seed and a device to a
            :class:`~experiments.benchmark.gate_lists.Step`.
        packages: What its costs depend on.
    """

    title: str
    adapter: str
    packages: tuple[str, ...]


_OF_ALL = ("qiskit", "qiskit-ibm-runtime", "torch")
SYSTEMS: Mapping[str, System] = {
    "ours": System("this library", f"{__package__}.submit_ours:build", _OF_ALL),
    "qiskit-machine-learning": System(
        "Qiskit Machine Learning", f"{__package__}.submit_qiskit:build", ("qiskit-machine-learning", *_OF_ALL)
    ),
    "pennylane-qiskit": System(
        "PennyLane-Qiskit", f"{__package__}.submit_pennylane:build", ("pennylane", "pennylane-qiskit", *_OF_ALL)
    ),
}
"""By name."""
PEERS = tuple(name for name in SYSTEMS if name != "ours")
