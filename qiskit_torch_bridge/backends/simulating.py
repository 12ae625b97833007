"""What backends on this package's own simulators have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..program.compiled import Program
from ..shots.covariance import Covariance
from .base import Backend, Estimate, ProgramCache, check_shots

if TYPE_CHECKING:
    from ..simulator.cone_engine import ConeSimulator
    from ..simulator.density_engine import DensitySimulator
    from ..simulator.engine import Simulator
    from ..simulator.noisy_cones import NoisyConeSimulator
    from ..simulator.propagation_engine import PropagationSimulator

__all__ = ["SimulatingBackend", "contiguous", "dtype_of"]

_DTYPES = {"double": "float64", "single": "float32"}


def dtype_of(precision: str) -> str:
    """The type of a precision's numbers.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in _DTYPES:
        raise ValueError(f"precision: got {precision!r}, expected 'double' or 'single'.")
    return _DTYPES[precision]


class SimulatingBackend(Backend):
    """Exact values, adjoint gradients, and shots drawn from exact probabilities, by a simulator of this package."""

    differentiates = True
    settings_may_change = False

    _cache: ProgramCache

    @abstractmethod
    def _new_simulator(
        self, program: Program
    ) -> Simulator | ConeSimulator | DensitySimulator | NoisyConeSimulator | PropagationSimulator:
        """A simulator of the program."""

    def _simulator(self, program: Program) -> Any:
        """The program's simulator, made once."""
        simulator = self._cache.get(program)
        if simulator is None:
            simulator = self._cache[program] = self._new_simulator(program)
        return simulator

    def resolve_shots(self, shots: int | None) -> int | None:
        return check_shots(shots)

    def describe(self, program: Program) -> str:
        description: str = self._simulator(program.example()).description
        return description

    def prepare(self, program: Program) -> None:
        self._simulator(program)

    def gives_outcomes(self, program: Program) -> bool:
        """Not where parts of the circuit are simulated by themselves."""
        joint: bool = self._simulator(program).measures_jointly
        return joint

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        return self._evaluate(program, angles, shots, seed)

    def evaluate_for_pullback(self, program: Program, angles: np.ndarray) -> Estimate:
        return self._evaluate(program, angles, None, None, keep=True)

    def pullback(
        self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any, selected: np.ndarray
    ) -> np.ndarray:
        return self._simulator(program).pullback(contiguous(angles), contiguous(upstream), state, selected)

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
        simulator, angles = self._simulator(program), contiguous(angles)
        states: Any = None  # of a kind that only the simulator knows
        counts: Any = None
        if shots is None or seed is None:
            values, states = simulator.values(angles, keep=keep)
            variances = np.zeros(values.shape)
        else:
            values, variances, counts = simulator.sampled(angles, shots, seed)
        circuits = len(angles) * len(program.readout.groups)
        # The covariance is seldom looked at; where counts were too many to keep, it then draws the same shots once more.
        of_one_shot = partial(simulator.variances_of_one_shot, angles, shots, seed, counts)
        covariance = Covariance(of_one_shot, math.inf if shots is None else shots, len(angles))
        outcomes = None
        if simulator.measures_jointly:
            outcomes = partial(simulator.outcomes, angles, shots, seed, counts)
        return Estimate(
            values, variances, circuits, circuits * (shots or 0), state=states, covariance=covariance, outcomes=outcomes
        )


def contiguous(array: np.ndarray) -> np.ndarray:
    """As the compiled code wants its arrays: it is compiled anew for any other kind."""
    return array if array.flags.carray else np.array(array, order="C")
