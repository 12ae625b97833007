"""The cells of the study, and what is measured in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from qiskit_torch_bridge import QuantumLayer, entangling_capability, expressibility
from qiskit_torch_bridge.circuits import dressed, random_rotations, reuploading, ring_layers, strongly_entangling

from ..common.cells import Cell, Row
from ..common.studies import Study
from .capacity_models import CLASSICAL, QUANTUM_MODELS, RANGES, dimension
from .expressibility_findings import find
from .expressibility_settings import ExpressibilitySettings
from .published_values import PUBLISHED_BINS, PUBLISHED_SAMPLES
from .sim_circuits import sim_circuit

_QUBITS = 4
_FEATURES = (0.2, 0.4, 0.6, 0.8)
_REPEATS = 400  # of drawing as many fidelities as were published, which takes milliseconds
LIBRARY: Mapping[str, Callable[[int], Any]] = {
    "dressed": lambda layers: dressed(_QUBITS, layers),
    "ring_layers": lambda layers: ring_layers(_QUBITS, layers),
    "random_rotations": lambda layers: random_rotations(_QUBITS, layers, seed=0),
    "strongly_entangling": lambda layers: strongly_entangling(_QUBITS, layers),
    "reuploading": lambda layers: reuploading(_QUBITS, layers),
}
"""Circuits of :mod:`qiskit_torch_bridge.circuits` that have weights, from their layers."""


def cells(settings: ExpressibilitySettings) -> list[Cell]:
    """The cells of all parts: circuits of Sim et al., those of this library, and effective dimensions."""
    states = {"samples": settings.samples}
    sim = product(settings.circuits, settings.layers)
    library = product(LIBRARY, settings.layers)
    draws = {"weight_samples": settings.weight_samples, "input_samples": settings.input_samples, "draws": settings.seed}
    return [
        *({"part": "sim", "circuit": number, "layers": layers, **states} for number, layers in sim),
        *({"part": "library", "circuit": name, "layers": layers, **states} for name, layers in library),
        *(
            {"part": "capacity", "model": model, "weights": weights, "numbers_of_data": list(settings.data), **draws}
            for model, weights in product([*QUANTUM_MODELS, CLASSICAL], RANGES)
            if (model, weights) != (CLASSICAL, "0 to 2 pi")  # its weights are no angles
        ),
    ]


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row of a circuit's states; or one for each number of data."""
    if cell["part"] == "capacity":
        return _dimensions(cell)
    if cell["part"] == "sim":
        circuit = sim_circuit(cell["circuit"], cell["layers"], _QUBITS)
        return [_states(circuit, None, len(circuit.parameters), cell["samples"], seed)]
    circuit, inputs, weights = LIBRARY[cell["circuit"]](cell["layers"])
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, seed=0)
    count = sum(weight.numel() for weight in layer.parameters())
    return [_states(layer, _FEATURES, count, cell["samples"], seed)]


def _states(
    circuit: Any, features: Sequence[float] | None, weights: int, samples: int, seed: np.random.SeedSequence
) -> Row:
    fidelities, states, repeats = (int(child.generate_state(1)[0]) for child in seed.spawn(3))
    spread = expressibility(circuit, features, samples=samples, bins=PUBLISHED_BINS, seed=fidelities)
    entanglement = entangling_capability(circuit, features, samples=samples, seed=states)
    few = _of_few(spread.counts, np.random.default_rng(repeats))
    return {
        "weights": weights,
        "expressibility": spread.corrected,
        "its_standard_error": spread.standard_error,
        "of_published_samples": float(few.mean()),
        "scatter_of_published_samples": float(few.std(ddof=1)),
        "entangling_capability": entanglement.value,
        "its_error": entanglement.standard_error,
    }


def _of_few(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expressibilities of as many fidelities as were published, with their bias: drawn from the many; shape (repeats,)."""
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    haar = -np.diff((1.0 - edges) ** (2**_QUBITS - 1))
    shares = rng.multinomial(PUBLISHED_SAMPLES, counts / counts.sum(), size=_REPEATS) / PUBLISHED_SAMPLES
    divergences: np.ndarray = np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300) / haar), 0.0).sum(axis=1)
    return divergences


def _dimensions(cell: Cell) -> list[Row]:
    options = {name: cell[name] for name in ("weight_samples", "input_samples")}
    data = cell["numbers_of_data"]
    result = dimension(cell["model"], data=data, highest=RANGES[cell["weights"]], seed=cell["draws"], **options)
    errors = result.standard_errors / result.fisher.shape[1]
    return [
        {"data": size, "dimension": float(value), "its_standard_error": float(error)}
        for size, value, error in zip(data, result.normalized, errors, strict=True)
    ]


STUDY = Study(name="expressibility", settings=ExpressibilitySettings, make_cells=cells, measure=measure, find=find)
