"""The systems that are measured, by name."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class System:
    """A library, in the best way that its documentation has for training with torch.

    Attributes:
        title: How figures and tables name it.
        adapter: ``module:function``, imported in the worker. The function takes a :class:`.gate_lists.Problem`, shots (None:
            exact) and a seed, and gives a :class:`.step.Step`.
        ours: Whether it is this project.
        tolerance: How far its exact values and gradients may be from the reference, in units of the largest of them (or
            of 1 where that is larger).
        note: What must be known to read its times.
    """

    title: str
    adapter: str
    _: KW_ONLY
    ours: bool = False
    tolerance: float = 1e-6
    note: str = ""


SYSTEMS = {
    "ours": System(
        "ours",
        f"{__package__}.ours:build",
        ours=True,
        note="QuantumLayer on its statevector backend: adjoint rule; with shots parameter shift from exact multinomial "
        "counts.",
    ),
    "ours-aer": System(
        "ours on Aer",
        f"{__package__}.ours:build_on_aer",
        ours=True,
        note="QuantumLayer with backend='aer': parameter shift from Aer's counts.",
    ),
    "ours-stopwatch": System(
        "ours, with a stopwatch",
        f"{__package__}.ours:build_with_stopwatch",
        ours=True,
        note="As 'ours', with the time inside the backend counted: what is left is the layer's own.",
    ),
    "pennylane-default": System(
        "PennyLane default.qubit",
        f"{__package__}.peers_pennylane:build_default",
        note="Backpropagation over a broadcast batch; with shots parameter shift. With shots a broadcast batch whose "
        "inputs need gradients raises NotImplementedError (PennyLane issue 4462), so its rows run one by one there.",
    ),
    "pennylane-lightning": System(
        "PennyLane lightning.qubit",
        f"{__package__}.peers_pennylane:build_lightning",
        note="Adjoint rule, the batch expanded by PennyLane; with shots parameter shift, row by row where inputs need "
        "gradients, as above.",
    ),
    "pennylane-qiskit": System(
        "PennyLane qiskit.aer",
        f"{__package__}.peers_pennylane:build_on_aer",
        note="PennyLane-Qiskit's device: Aer's counts and parameter shift, row by row where inputs need gradients.",
    ),
    "qiskit-machine-learning": System(
        "Qiskit Machine Learning",
        f"{__package__}.peers_qiskit:build",
        tolerance=1e-5,
        note="TorchConnector(EstimatorQNN), parameter shift; computes in float32 between the circuit and torch. With "
        "shots: Aer's EstimatorV2 with precision 1/sqrt(shots), which adds Gaussian noise to exact values and runs no "
        "shots.",
    ),
}
