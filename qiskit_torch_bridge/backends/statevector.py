"""Exact simulation on this machine's cores, with adjoint differentiation and, on request, shots."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..program.compiled import Program
from ..program.readout import Expectation
from ..shots.covariance import Covariance
from .base import Backend, Estimate, ProgramCache, check_shots

if TYPE_CHECKING:
    from ..simulator.engine import Simulator
    from ..simulator.step import Step

__all__ = ["StatevectorBackend"]

_DTYPES = {"double": "float64", "single": "float32"}


class StatevectorBackend(Backend):
    """Exact simulation by compiled code, or shots drawn from exact probabilities; adjoint gradients.

    Qubits that no gate and no measurement touches are left out. A batch runs in parts that bound the memory, in as many
    threads as PyTorch would use (``torch.get_num_threads()``); results do not depend on either. All code is compiled
    the first time that a machine uses it (10 to 25 seconds; a note says so), and kept on disk.

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
        self._cache, self._steps = ProgramCache(), ProgramCache()

    def resolve_shots(self, shots: int | None) -> int | None:
        return check_shots(shots)

    def prepare(self, program: Program) -> None:
        self._simulator(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        return self._evaluate(program, angles, shots, seed)

    def evaluate_for_pullback(self, program: Program, angles: np.ndarray) -> Estimate:
        return self._evaluate(program, angles, None, None, keep=True)

    def pullback(
        self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any, selected: np.ndarray
    ) -> np.ndarray:
        return self._simulator(program).pullback(_contiguous(angles), _contiguous(upstream), state, selected)

    def step_of(self, program: Program) -> Step | None:
        # What a class of a user's own changes must not be passed by.
        if type(self) is not StatevectorBackend:
            return None
        try:
            return self._steps[program]
        except KeyError:
            return self._steps.setdefault(program, self._new_step(program))

    def _new_step(self, program: Program) -> Step | None:
        table = None if program.blocks else program.angle_map.table
        if table is None or not isinstance(program.readout, Expectation):
            return None
        simulator = self._simulator(program)
        if not simulator.plan.whole:
            return None
        from ..simulator.step import Step

        return Step(simulator, table, (program.num_inputs, sum(program.num_weights)))

    def _evaluate(
        self,
        program: Program,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        *,
        keep: bool = False,
    ) -> Estimate:
        """Exact values, unless there are shots and a seed for them; ``keep``: with the states for a gradient."""
        simulator, angles = self._simulator(program), _contiguous(angles)
        states = counts = None
        if shots is None or seed is None:
            values, states = simulator.values(angles, keep=keep)
            variances = np.zeros(values.shape)
        else:
            values, variances, counts = simulator.sampled(angles, shots, seed)
        circuits = len(angles) * len(program.readout.groups)
        # The covariance is seldom looked at; where counts were too many to keep, it then draws the same shots once more.
        of_one_shot = partial(simulator.variances_of_one_shot, angles, shots, seed, counts)
        covariance = Covariance(of_one_shot, math.inf if shots is None else shots, len(angles))
        return Estimate(values, variances, circuits, circuits * (shots or 0), state=states, covariance=covariance)

    def _simulator(self, program: Program) -> Simulator:
        simulator: Simulator | None = self._cache.get(program)
        if simulator is None:
            from ..simulator.engine import Simulator  # on first use: it loads the compiler

            simulator = self._cache[program] = Simulator(program, _DTYPES[self.precision])
        return simulator

    def __repr__(self) -> str:
        precision = "" if self.precision == "double" else f"precision={self.precision!r}"
        return f"StatevectorBackend({precision})"


def _contiguous(array: np.ndarray) -> np.ndarray:
    """As the compiled code wants its arrays: it is compiled anew for any other kind."""
    return array if array.flags.carray else np.array(array, order="C")
