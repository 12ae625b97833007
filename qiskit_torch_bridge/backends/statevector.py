"""Exact simulation on this machine's cores, with adjoint differentiation and, on request, shots."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..program.compiled import Program
from ..shots.covariance import Covariance
from .base import Backend, Estimate, ProgramCache, check_shots, estimate_from_moments

if TYPE_CHECKING:
    from ..simulator.engine import Simulator

__all__ = ["StatevectorBackend"]

_DTYPES = {"double": "float64", "single": "float32"}


class StatevectorBackend(Backend):
    """Exact simulation by compiled code, or shots drawn from exact probabilities; adjoint gradients.

    Qubits that no gate and no measurement touches are left out. A batch runs in parts that bound the memory, in as many
    threads as PyTorch would use (``torch.get_num_threads()``); results do not depend on either. The code is compiled
    the first time that a machine uses it (some seconds; a note says so), and kept on disk.

    ``shots=None`` gives exact values. With shots, the probabilities of the measured qubits' outcomes are computed
    exactly and multinomial counts drawn from them: the same statistics as running each circuit ``shots`` times without
    noise.

    Args:
        precision: ``"double"``; or ``"single"`` for half the memory, with errors of about 1e-6 in values and gradients of
            order 1.
    """

    differentiates = True
    settings_may_change = False
    name = "statevector"

    def __init__(self, *, precision: str = "double") -> None:
        if precision not in _DTYPES:
            raise ValueError(f"precision: got {precision!r}, expected 'double' or 'single'.")
        self.precision = precision
        self._cache = ProgramCache()

    def resolve_shots(self, shots: int | None) -> int | None:
        return check_shots(shots)

    def prepare(self, program: Program) -> None:
        self._simulator(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        if shots is None:
            return self._exact(program, angles, keep=False)
        moments = self._simulator(program).sampled_moments(_contiguous(angles), shots, seed)
        return estimate_from_moments(
            program, moments, len(angles), shots, self._covariance(program, angles, shots, seed)
        )

    def evaluate_for_pullback(self, program: Program, angles: np.ndarray) -> Estimate:
        return self._exact(program, angles, keep=True)

    def pullback(
        self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any, wanted: np.ndarray
    ) -> np.ndarray:
        return self._simulator(program).pullback(_contiguous(angles), _contiguous(upstream), state, wanted)

    def _exact(self, program: Program, angles: np.ndarray, *, keep: bool) -> Estimate:
        values, states = self._simulator(program).values(_contiguous(angles), keep=keep)
        circuits = len(angles) * len(program.readout.groups)
        covariance = self._covariance(program, angles, None, None)
        return Estimate(values, np.zeros(values.shape), circuits, 0, states, covariance=covariance)

    def _covariance(
        self, program: Program, angles: np.ndarray, shots: int | None, seed: np.random.SeedSequence | None
    ) -> Covariance:
        """The covariance of the outputs; by drawing the same shots once more, if anyone asks for it."""

        def of_one_shot(upstream: np.ndarray) -> np.ndarray:
            return self._simulator(program).variances_of_one_shot(_contiguous(angles), upstream, shots, seed)

        return Covariance(of_one_shot, math.inf if shots is None else shots, len(angles))

    def _simulator(self, program: Program) -> Simulator:
        cached = self._cache.of(program)
        if "simulator" not in cached:
            from ..simulator.engine import Simulator  # on first use: it loads the compiler

            cached["simulator"] = Simulator(program, _DTYPES[self.precision])
        simulator: Simulator = cached["simulator"]
        return simulator

    def __repr__(self) -> str:
        return (
            "StatevectorBackend()"
            if self.precision == "double"
            else f"StatevectorBackend(precision={self.precision!r})"
        )


def _contiguous(array: np.ndarray) -> np.ndarray:
    """As the compiled code wants its arrays: it is compiled anew for any other kind."""
    return array if array.flags.carray else np.array(array, order="C")
