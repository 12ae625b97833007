"""The noise of circuits that run side by side on several regions of a device, as ``IBMBackend(packing=...)`` has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qiskit import QuantumCircuit

from qiskit_torch_bridge import Backend, DensityMatrixBackend, Estimate, Program

__all__ = ["Regions"]


class Regions(Backend):
    """Rows on several regions in turn, beginning at another one at each call; each region is simulated by itself.

    What regions do to each other is left out.

    Args:
        regions: Of each region the noise.
    """

    settings_may_change = False
    runs_variants = True

    def __init__(self, regions: Sequence[DensityMatrixBackend]) -> None:
        self._regions = tuple(regions)
        self.name = f"{len(self._regions)} regions of {self._regions[0].name}"

    def resolve_shots(self, shots: int | None) -> int | None:
        """As any of its regions."""
        return self._regions[0].resolve_shots(shots)

    def prepare(self, program: Program) -> None:
        """In all of its regions."""
        for region in self._regions:
            region.prepare(program)

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        """In the first region; they differ in their qubits alone."""
        return self._regions[0].circuits(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        """See :class:`~qiskit_torch_bridge.Backend`; the seed draws the region of the first row, too."""
        turn = int(np.random.default_rng(_child(seed, len(self._regions))).integers(len(self._regions)))
        places = (np.arange(len(angles)) + turn) % len(self._regions)
        parts = [
            (rows, region.evaluate(program, angles[rows], shots=shots, seed=_child(seed, number)))
            for number, region in enumerate(self._regions)
            if len(rows := np.flatnonzero(places == number))
        ]
        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        values, variances = (
            np.concatenate([getattr(part, name) for _, part in parts])[order] for name in ("values", "variances")
        )
        circuits, spent = (sum(getattr(part, name) for _, part in parts) for name in ("circuits", "shots"))
        return Estimate(values, variances, circuits, spent)


def _child(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A seed of its own for each region, the same whenever the evaluation is the same."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))
