"""Which circuits are measured in which systems, and the ratios to reach."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from .gate_lists import Depolarising, Problem, brickwork, dressed, entangling, layerwise, textbook

if TYPE_CHECKING:
    from .benchmark_settings import BenchmarkSettings


@dataclass(frozen=True)
class System:
    """A library, in the best way that its documentation has for training with torch.

    Attributes:
        title: How figures and tables name it.
        adapter: ``module:function``, imported in the worker. The function takes a :class:`.gate_lists.Problem`, shots (None:
            exact) and a seed, and gives a :class:`.gate_lists.Step`.
        note: What must be known to read its times.
        ours: Whether it is this project.
        layer: Whether it is a PyTorch layer for circuits; the fastest peer of a line is one of these.
        noise: Whether it simulates noise; only then may it be among the systems of a case with noise.
        values_only: Whether its step is forward alone, because it has no gradients, or none in a time that could be waited
            for; it is then no PyTorch layer to be compared with.
        tolerance: How far its exact values and gradients may be from the reference, in units of the largest of them (or
            of 1 where that is larger).
    """

    title: str
    adapter: str
    note: str = ""
    _: KW_ONLY
    ours: bool = False
    layer: bool = True
    noise: bool = False
    values_only: bool = False
    tolerance: float = 1e-6


SYSTEMS = {
    "ours": System(
        "ours",
        f"{__package__}.ours:build",
        "QuantumLayer on its statevector backend, with noise on DensityMatrixBackend: adjoint rule; with shots parameter "
        "shift from exact multinomial counts.",
        ours=True,
        noise=True,
    ),
    "ours-compiled": System(
        "ours, torch.compile",
        f"{__package__}.ours:build_compiled",
        "As 'ours', under torch.compile(layer, fullgraph=True).",
        ours=True,
    ),
    "ours-aer": System(
        "ours on Aer",
        f"{__package__}.ours:build_on_aer",
        "QuantumLayer with backend='aer', with noise an AerSimulator with the noise model: parameter shift from Aer's "
        "counts, or from its exact density matrices.",
        ours=True,
        noise=True,
    ),
    "ours-stopwatch": System(
        "ours, with a stopwatch",
        f"{__package__}.ours:build_with_stopwatch",
        "As 'ours', with the time inside the backend counted: what is left is the layer's own.",
        ours=True,
    ),
    "ours-values": System(
        "ours, values only",
        f"{__package__}.ours:build_values",
        "As 'ours', forward alone, beside others that have no gradients.",
        ours=True,
        values_only=True,
    ),
    "aer-mps-values": System(
        "ours on Aer's MPS, values only",
        f"{__package__}.ours:build_values_on_mps",
        "QuantumLayer on AerSimulator(method='matrix_product_state'), forward alone: a gradient by parameter shift would be "
        "some hundreds of these.",
        layer=False,
        values_only=True,
    ),
    "pennylane-tensor-values": System(
        "PennyLane default.tensor, values only",
        f"{__package__}.peers_pennylane:build_tensor_values",
        "Matrix product states of quimb, without truncation, row by row; the device has no gradients but by parameter "
        "shift.",
        layer=False,
        values_only=True,
    ),
    "pennylane-default": System(
        "PennyLane default.qubit",
        f"{__package__}.peers_pennylane:build_default",
        "Backpropagation over a broadcast batch; with shots parameter shift. With shots a broadcast batch whose "
        "inputs need gradients raises NotImplementedError (PennyLane issue 4462), so its rows run one by one there.",
    ),
    "pennylane-lightning": System(
        "PennyLane lightning.qubit",
        f"{__package__}.peers_pennylane:build_lightning",
        "Adjoint rule, the batch expanded by PennyLane; with shots parameter shift, row by row where inputs need "
        "gradients, as above.",
    ),
    "pennylane-qiskit": System(
        "PennyLane qiskit.aer",
        f"{__package__}.peers_pennylane:build_on_aer",
        "PennyLane-Qiskit's device: Aer's counts and parameter shift, row by row where inputs need gradients.",
    ),
    "pennylane-mixed": System(
        "PennyLane default.mixed",
        f"{__package__}.peers_pennylane:build_mixed",
        "For noise, its own one-qubit channel and Kraus operators on two qubits: backpropagation over a broadcast batch; "
        "with shots parameter shift, row by row where inputs need gradients, as above.",
        noise=True,
    ),
    "qiskit-machine-learning": System(
        "Qiskit Machine Learning",
        f"{__package__}.peers_qiskit:build",
        "TorchConnector(EstimatorQNN), parameter shift; computes in float32 between the circuit and torch. With "
        "shots: Aer's EstimatorV2 with precision 1/sqrt(shots), which adds Gaussian noise to exact values and runs no "
        "shots.",
        tolerance=1e-5,
    ),
    "tensorcircuit-jax": System(
        "TensorCircuit-NG on JAX",
        f"{__package__}.peers_tensorcircuit:build_on_jax",
        "No PyTorch: the whole step, forward and backward, is one program that JAX compiles for the circuit and the batch "
        "(jit of vmap of value_and_grad), in double precision; with noise of its DMCircuit.",
        layer=False,
        noise=True,
    ),
    "tensorcircuit-torch": System(
        "TensorCircuit-NG, torch interface",
        f"{__package__}.peers_tensorcircuit:build_on_torch",
        "Its torch_interface with jit and DLPack over vmap: two calls of what JAX has compiled, and copies between.",
    ),
    "tensorcircuit-cones": System(
        "TensorCircuit-NG on JAX, light cones",
        f"{__package__}.peers_tensorcircuit:build_cones_on_jax",
        "As on JAX, with its enable_lightcone=True: each output is a tensor network of its light cone.",
        layer=False,
    ),
    "pyqtorch": System(
        "pyqtorch",
        f"{__package__}.peers_pyqtorch:build",
        "Backpropagation through torch operators, batched, complex128.",
    ),
    "torch-eager": System(
        "plain torch",
        f"{__package__}.peers_torch:build",
        "A simulator written by hand from public operators, for this benchmark.",
    ),
    "torch-compiled": System(
        "plain torch, torch.compile",
        f"{__package__}.peers_torch:build_compiled",
        "The same as one graph of torch.compile.",
    ),
    "floor-function": System(
        "floor: trivial autograd.Function",
        f"{__package__}.peers_torch:build_function",
        "No simulator: the cosine that the textbook's circuit gives, through NumPy. What a custom function costs at least.",
        layer=False,
    ),
    "floor-cosine": System(
        "floor: torch.cos", f"{__package__}.peers_torch:build_cosine", "The same through torch.cos.", layer=False
    ),
}
"""The systems that are measured, by name.

Another peer is a function in the file of its family (such as ``peers_pennylane.py``), an entry here, and its name among the
systems of the cases below that it is to be measured in.
"""


class Target(NamedTuple):
    """A ratio to reach.

    Attributes:
        ratio: How many times faster; 1 means ahead, NaN that the ratio is shown without an aim.
        ours: Which of our systems.
        peer: Than which system; None: than the fastest PyTorch layer of the run.
        seconds: How long a step may take at most besides; NaN for no such aim.
    """

    ratio: float
    ours: str = "ours"
    peer: str | None = None
    seconds: float = math.nan


@dataclass(frozen=True)
class Case:
    """One problem in several systems.

    Attributes:
        name: How the command line calls it.
        title: How the table calls it.
        make: Makes the problem from a seed.
        systems: In the order in which they take turns.
        targets: The ratios to reach.
        shots: Shots a circuit; None: exact.
        noise: What follows each gate; None: nothing.
        series: The axis of the figure that it is a point of: ``"qubits"``, ``"batch"``, ``"weights"``,
            ``"noisy-qubits"`` or ``"wide-qubits"``; or None.

    Raises:
        ValueError: If there is noise, and one of the systems cannot simulate it.
    """

    name: str
    title: str
    make: partial[Problem]
    systems: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    _: KW_ONLY
    shots: int | None = None
    noise: Depolarising | None = None
    series: str | None = None

    def __post_init__(self) -> None:
        noiseless = [name for name in self.systems if not SYSTEMS[name].noise]
        if self.noise is not None and noiseless:
            raise ValueError(
                f"systems: got {', '.join(noiseless)}, expected of {self.name} only some that simulate noise."
            )

    @cached_property
    def size(self) -> dict[str, int]:
        """Qubits, batch, weights and gates."""
        problem = self.make(seed=0)
        numbers = {"batch": problem.batch, "weights": len(problem.weights), "gates": len(problem.gates)}
        return {"qubits": problem.num_qubits, **numbers}

    @property
    def place(self) -> int:
        """Where it is on the axis of its series."""
        assert self.series is not None
        return self.size[self.series.removeprefix("noisy-").removeprefix("wide-")]


_QISKIT, _PENNYLANE, _JAX = "qiskit-machine-learning", "pennylane-default", "tensorcircuit-jax"
_WITHOUT_QISKIT = ("ours", _PENNYLANE, "pennylane-lightning")
_EXACT = (*_WITHOUT_QISKIT, _QISKIT)
_COMPILING = (_JAX, "tensorcircuit-torch", "torch-compiled")
# Those that compile take one to two minutes for 12 qubits, and more beyond; the others keep every state, gigabytes of them.
_UP_TO_12_QUBITS = ("ours-compiled", *_COMPILING, "pyqtorch", "torch-eager")
_FLOORS = ("floor-function", "floor-cosine")
_WITH_NOISE = ("ours", "ours-aer", "pennylane-mixed")
_OF_SHOTS = ("ours", "ours-aer", "pennylane-default", "pennylane-lightning")

# What TensorCircuit-NG compiles took one minute for 20 qubits and six for 50.
_CONES = "tensorcircuit-cones"
_WIDE = ("ours", "ours-values", "aer-mps-values", "pennylane-tensor-values")
_WIDE_QUBITS = (25, 50, 100, 200)

_ENTANGLED = "strongly entangling, 4 layers"
_ENTANGLING = partial(entangling, layers=4)
_DRESSED = "dressed, 4 qubits, depth 6"
_BATCH_16 = "dressed, 4 qubits, batch 16"
_DRESSED_4 = partial(dressed, depth=6, batch=4)
_DRESSED_64 = partial(dressed, depth=6, batch=64)
_LAYERWISE = "layerwise, 9 qubits, 6 layers, batch 128"
_LAYERWISE_128 = partial(layerwise, num_qubits=9, layers=6, batch=128)

_NOISE = Depolarising(0.01, 0.03)
_NOISY = "noise 1 % and 3 %"
# A ring of CNOT, so that every output depends on every qubit, and no simulator can leave some out. With 10 qubits,
# PyTorch would keep gigabytes for the way back, and Aer would run for minutes.
_NOISY_QUBITS = {4: _WITH_NOISE, 6: _WITH_NOISE, 8: _WITH_NOISE, 10: ("ours",)}


def _against_noisy(aer: float, mixed: float) -> tuple[Target, ...]:
    """Ratios to reach with noise: to this project's layer on Aer, and to PennyLane's density matrices."""
    return Target(aer, peer="ours-aer"), Target(mixed, peer="pennylane-mixed")


def _against(pennylane: float, jax: float) -> tuple[Target, ...]:
    """Ratios to reach: to PennyLane's fastest simulator, and to a whole step compiled by JAX."""
    return Target(pennylane, peer=_PENNYLANE), Target(jax, peer=_JAX)


CASES = (
    Case(
        "textbook",
        "textbook, 1 qubit, batch 1",
        partial(textbook, batch=1),
        (*_EXACT, *_UP_TO_12_QUBITS, *_FLOORS),
        (*_against(8, math.nan), Target(0.5, peer=_FLOORS[0]), Target(math.nan, peer=_FLOORS[1])),
    ),
    Case(
        "dressed-4",
        f"{_DRESSED}, batch 4",
        _DRESSED_4,
        (*_EXACT, *_UP_TO_12_QUBITS),
        (*_against(40, 1.5), Target(1000, peer=_QISKIT)),
    ),
    Case("dressed-64", f"{_DRESSED}, batch 64", _DRESSED_64, (*_WITHOUT_QISKIT, *_UP_TO_12_QUBITS), _against(30, 3)),
    Case("layerwise-128", _LAYERWISE, _LAYERWISE_128, (*_WITHOUT_QISKIT, *_UP_TO_12_QUBITS), _against(10, 4)),
    *(
        Case(
            f"entangling-{qubits}",
            f"strongly entangling, {qubits} qubits, 4 layers, batch {batch}",
            partial(_ENTANGLING, num_qubits=qubits, batch=batch),
            (*_WITHOUT_QISKIT, *peers),
            targets,
        )
        for qubits, batch, peers, targets in (
            (12, 16, _UP_TO_12_QUBITS, _against(12, math.nan)),
            (16, 4, (), (Target(10),)),
            (20, 1, (), (Target(1),)),
        )
    ),
    Case(
        "dressed-4-shots",
        f"{_DRESSED}, batch 4, 1000 shots",
        _DRESSED_4,
        (*_OF_SHOTS, "pennylane-qiskit", _QISKIT),
        (Target(15, ours="ours-aer", peer=_QISKIT), Target(300, peer=_QISKIT)),
        shots=1000,
    ),
    Case(
        "layerwise-128-shots",
        f"{_LAYERWISE}, 1000 shots",
        _LAYERWISE_128,
        _OF_SHOTS,
        (Target(15, peer="pennylane-default"),),
        shots=1000,
    ),
    Case(
        "dressed-4-noise",
        f"{_DRESSED}, batch 4, {_NOISY}",
        _DRESSED_4,
        (*_WITH_NOISE, _JAX),
        (*_against_noisy(100, 100), Target(math.nan, peer=_JAX)),
        noise=_NOISE,
    ),
    Case(
        "dressed-4-noise-shots",
        f"{_DRESSED}, batch 4, {_NOISY}, 1000 shots",
        _DRESSED_4,
        _WITH_NOISE,
        _against_noisy(100, 100),
        shots=1000,
        noise=_NOISE,
    ),
    Case(
        "layerwise-6-noise",
        f"layerwise, 6 qubits, 18 weights, batch 8, {_NOISY}",
        partial(layerwise, num_qubits=6, layers=3, batch=8, outputs=6),
        (*_WITH_NOISE, _JAX),
        (*_against_noisy(math.nan, 10), Target(math.nan, peer=_JAX)),
        noise=_NOISE,
    ),
    *(
        Case(
            f"wide-{qubits}-{layers}",
            f"brickwork, {qubits} qubits, {layers} layers, batch 4",
            partial(brickwork, num_qubits=qubits, layers=layers, batch=4),
            systems,
            targets,
        )
        for qubits, layers, systems, targets in (
            (20, 2, ("ours", "pennylane-lightning", _CONES), (Target(math.nan), Target(math.nan, peer=_CONES))),
            (50, 2, (*_WIDE, _CONES), (Target(math.nan, peer=_CONES),)),
            (100, 2, _WIDE, (Target(math.nan, seconds=0.1),)),
            (100, 3, _WIDE, (Target(math.nan, seconds=1.0),)),
        )
    ),
    # As MNIST 3/6 is trained layer by layer: five layers are as they are, and 9 weights make 304 circuits by parameter
    # shift. PennyLane would take hours. The published readout is the last qubit's, on which others have little influence;
    # so that nothing can be left out, all are read too.
    *(
        Case(
            f"layerwise-9-noise-shots{name}",
            f"layerwise, 9 qubits, 6 layers, 9 weights, {outputs}, batch 16, {_NOISY}, 1000 shots",
            partial(layerwise, num_qubits=9, layers=6, batch=16, outputs=number, trained=1),
            ("ours", "ours-aer"),
            (Target(math.nan, peer="ours-aer", seconds=seconds),),
            shots=1000,
            noise=_NOISE,
        )
        for name, outputs, number, seconds in (("", "last output", 1, 0.1), ("-all", "all outputs", 9, math.nan))
    ),
)

PARTS = (
    *(case.name for case in CASES),
    *("qubits", "batch", "weights", "noisy-qubits", "wide-qubits", "overhead", "fresh"),
)
"""What can be selected: cases, series by size, the layer's own share, and the first call and memory in new processes."""

_SMALL = ("textbook", "dressed-4", "dressed-64", "layerwise-128", "entangling-12", "dressed-4-shots", "dressed-4-noise")


def _noisy_point(qubits: int) -> Case:
    """A point of the series by qubits under noise, batch 1."""
    make = partial(entangling, num_qubits=qubits, layers=2, batch=1)
    title, systems = f"strongly entangling, 2 layers, {_NOISY}, batch 1: {qubits} qubits", _NOISY_QUBITS[qubits]
    return Case(f"noisy-qubits-{qubits}", title, make, systems, noise=_NOISE, series="noisy-qubits")


def _wide_point(qubits: int) -> Case:
    """A point of the series by qubits at fixed depth: what is compiled for each circuit is left out."""
    title = f"brickwork, 2 layers, batch 4: {qubits} qubits"
    make = partial(brickwork, num_qubits=qubits, layers=2, batch=4)
    return Case(f"wide-qubits-{qubits}", title, make, ("ours",), series="wide-qubits")


def plan(settings: BenchmarkSettings, systems: Container[str] = SYSTEMS) -> tuple[list[Case], list[Case]]:
    """The cases of the selected parts and systems: those to time, and those to run in fresh processes.

    Each has the targets that its systems can reach.

    Args:
        settings: Select them. Small ones leave out the systems that take seconds for a step that others do at once, and
            the peers that compile each circuit.
        systems: Those that there are.

    Raises:
        ValueError: If nothing is left.
    """
    small, parts = settings.small, settings.cases or PARTS
    qubits = (4, 8, 12) if small else range(4, settings.largest_qubits + 1, 2)
    batches = (1, 16, 256, 1024) if small else (1, 4, 16, 64, 256, 1024, 4096)
    depths = (1, 6, 24) if small else (1, 3, 6, 12, 24, 48)
    series = [
        *(
            ("qubits", x, f"{_ENTANGLED}, batch 1: {x} qubits", partial(_ENTANGLING, num_qubits=x, batch=1))
            for x in qubits
        ),
        *(("batch", x, f"{_DRESSED}: batch {x}", partial(dressed, depth=6, batch=x)) for x in batches),
        *(("weights", 4 * x, f"{_BATCH_16}: depth {x}", partial(dressed, depth=x, batch=16)) for x in depths),
    ]
    cases = [case for case in CASES if case.name in parts and (not small or case.name in _SMALL)]
    cases += [Case(f"{axis}-{x}", title, make, _EXACT, series=axis) for axis, x, title, make in series if axis in parts]
    if "noisy-qubits" in parts:
        cases += [_noisy_point(x) for x in _NOISY_QUBITS if x in (4, 6) or not small]
    if "wide-qubits" in parts:
        cases += [_wide_point(x) for x in _WIDE_QUBITS if x <= 50 or not small]
    if "overhead" in parts:
        cases += [Case(f"overhead-{case.name}", case.title, case.make, ("ours-stopwatch",)) for case in CASES[:3]]
    fresh_names = ("dressed-4",) if small else ("dressed-4", "entangling-16", "entangling-20")
    fresh = [case for case in CASES if case.name in fresh_names and "fresh" in parts]

    def chosen(case: Case) -> Case:
        slow = (*_COMPILING, "pennylane-qiskit" if case.series is None else _QISKIT) if small else ()
        wanted = [name for name in settings.systems or SYSTEMS if name in systems and name not in slow]
        kept = tuple(name for name in case.systems if name in wanted)
        targets = tuple(each for each in case.targets if {each.ours, each.peer or each.ours} <= set(kept))
        return replace(case, systems=kept, targets=targets)

    cases, fresh = ([kept for case in each if (kept := chosen(case)).systems] for each in (cases, fresh))
    if not cases and not fresh:
        raise ValueError("--cases, --systems: got nothing to measure, expected at least one case with one system.")
    return cases, fresh
