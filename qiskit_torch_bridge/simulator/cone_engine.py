"""Simulates wide circuits by their light cones: values, gradients and shots of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import psutil

from ..arguments import in_gibibytes
from ..program.compiled import Program
from ..program.light_cones import CircuitGates, Cone, amplitudes, work
from ..program.readout import Expectation, PauliGroup
from .assembly import Assembly, Part, variances_of_products
from .cone_plan import (
    LEAST_QUBITS,
    Fragment,
    String,
    exact_fragments,
    pays,
    products_of,
    shapes_of,
    shot_fragments,
    strings_of,
)
from .engine import HALF_PRECISION, Simulator
from .lowering import lowered

__all__ = ["ConeSimulator", "simulator_of"]

_MOST_QUBITS_OF_OUTCOMES = 14  # beyond, variances from products of strings are less work
_DRAWN_TOGETHER = "Shots of outputs whose light cones share qubits are drawn together, which takes"
_APART = (
    "use StatevectorBackend(joint_shots=False), whose draws are right for each Pauli string and have no covariance between "
    "strings of different cones"
)


def simulator_of(program: Program, dtype: Any, *, joint_shots: bool = True) -> Simulator | ConeSimulator:
    """The simulator that is the least work for a program: of the whole circuit, or of its light cones.

    Args:
        program: Without input blocks.
        dtype: Of the real and imaginary parts: float64 or float32.
        joint_shots: As for :class:`ConeSimulator`.

    Raises:
        MemoryError: If neither fits into this machine's memory.
    """
    if len(program.active_qubits) >= LEAST_QUBITS:
        cones = _by_cones(program, np.dtype(dtype), joint_shots)
        if cones is not None:
            return cones
    return Simulator(lowered(program), dtype)


def num_amplitudes(program: Program) -> float:
    """How many amplitudes are simulated for exact values: of the whole state, or if that is less of all light cones.

    Args:
        program: Without input blocks.
    """
    whole = amplitudes(len(program.active_qubits))
    if len(program.active_qubits) < LEAST_QUBITS:
        return whole
    gates = CircuitGates(program)
    if isinstance(program.readout, Expectation):
        cones = [gates.cone([string.letters]) for string in strings_of(program.readout.groups)]
        return min(whole, sum(amplitudes(len(cone.qubits)) for cone in cones))
    return min(
        whole, sum(amplitudes(len(fragment.qubits)) for fragment in shot_fragments(gates, program.readout, joint=True))
    )


def _by_cones(program: Program, dtype: np.dtype, joint_shots: bool) -> ConeSimulator | None:
    gates, active = CircuitGates(program), len(program.active_qubits)
    whole = work(active, len(gates.gates)) if active <= _most_qubits(dtype) else math.inf
    if isinstance(program.readout, Expectation):
        fragments = exact_fragments(
            gates, strings_of(program.readout.groups), whole, partial(_check_cone, program, dtype)
        )
    else:
        fragments = shot_fragments(gates, program.readout, joint=True)
        for fragment in fragments:
            _check_width("The light cone of the probabilities", len(fragment.qubits), active, dtype)
    if fragments is None or not pays(fragments, whole):
        return None
    return ConeSimulator(program, gates, fragments, dtype, joint_shots=joint_shots)


def _most_qubits(dtype: np.dtype) -> int:
    """The qubits of the largest real state that fits into this machine's memory."""
    return int(math.log2(psutil.virtual_memory().total / dtype.itemsize))


def _check_cone(program: Program, dtype: np.dtype, string: String, cone: Cone) -> None:
    _check_width(f"The light cone of {string}", len(cone.qubits), len(program.active_qubits), dtype)


def _check_width(what: str, width: int, active: int, dtype: np.dtype) -> None:
    """Refuses what is too wide.

    Raises:
        MemoryError: If a real state of so many qubits is larger than this machine's memory.
    """
    if width > _most_qubits(dtype):
        needed, there = dtype.itemsize << width, psutil.virtual_memory().total
        half = HALF_PRECISION if dtype == np.float64 and needed // 2 <= there else ""
        raise MemoryError(
            f"{what} has {width} of the circuit's {active} qubits: its exact state needs at least "
            f"{in_gibibytes(needed)} of memory, and this machine has {in_gibibytes(there)} altogether; use fewer layers, "
            f"observables that depend on fewer qubits, {half}"
            "backend='pauli' (expectation values by Pauli propagation, with a bound of what it leaves out), "
            "backend=AerSimulator(method='matrix_product_state'), which needs little where entanglement is low, or hardware."
        )


def _assembled(fragments: Iterable[Fragment], constants: np.ndarray, dtype: np.dtype) -> Assembly:
    shapes = shapes_of(fragments)
    parts = [Part(shape.columns, shape.outputs, Simulator(shape.circuit, dtype)) for shape in shapes]
    return Assembly(parts, constants)


class ConeSimulator:
    """Simulates one program by the light cones of what it reads.

    Its methods are those of :class:`qiskit_torch_bridge.simulator.engine.Simulator`.

    Args:
        program: Without input blocks.
        gates: Its gates.
        fragments: What exact values come from.
        dtype: Of the real and imaginary parts: float64 or float32.
        joint_shots: Whether shots of qubits whose light cones share a qubit are drawn together. Otherwise each part of a
            measurement is drawn by itself: values and standard errors of each Pauli string are right, and there is no
            covariance between parts.
    """

    measures_jointly = False

    def __init__(
        self,
        program: Program,
        gates: CircuitGates,
        fragments: Sequence[Fragment],
        dtype: np.dtype,
        *,
        joint_shots: bool,
    ) -> None:
        self._program, self._gates, self._dtype, self._joint_shots = program, gates, dtype, joint_shots
        self.fragments = fragments
        self._exact = _assembled(fragments, program.readout.constants, dtype)

    @property
    def description(self) -> str:
        """What is simulated, in words."""
        number, active = len(self.fragments), len(self._program.active_qubits)
        return self._exact.describe(
            f"{number} light cones in place of one state of {active} qubits",
            lambda simulator: int(simulator.plan.num_qubits),
        )

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, list[Any]]:
        """Exact values, shape (N, M), and the states that are kept for a gradient."""
        return self._exact.values(angles, keep=keep)

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: Sequence[Any] | None, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected."""
        return self._exact.pullback(angles, upstream, states, selected)

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, list[Any]]:
        """Values from ``shots`` shots of each measurement, their squared standard errors, and counts.

        Raises:
            MemoryError: If what must be drawn together does not fit into this machine's memory.
        """
        drawn = self._drawn
        try:
            return drawn.sampled(angles, shots, seed)
        except MemoryError as error:
            widest_exact = max((len(fragment.qubits) for fragment in self.fragments), default=0)
            if not self._joint_shots or self._widest <= widest_exact:
                raise
            raise MemoryError(f"{_DRAWN_TOGETHER} a state of {self._widest} qubits; {_APART}. {error}") from error

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Sequence[Any] | None,
        upstream: np.ndarray,
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements."""
        if shots is None and self._by_products:
            parts = [variances_of_products(*product, angles, upstream) for product in self._products]
            return np.sum(parts, axis=0) if parts else np.zeros(len(angles))
        return self._drawn.variances_of_one_shot(angles, shots, seed, kept, upstream)

    # Shots

    @cached_property
    def _shot_fragments(self) -> list[Fragment]:
        return shot_fragments(self._gates, self._program.readout, joint=self._joint_shots)

    @property
    def _widest(self) -> int:
        return max((len(fragment.qubits) for fragment in self._shot_fragments), default=0)

    @cached_property
    def _drawn(self) -> Assembly:
        widest, most, active = self._widest, _most_qubits(self._dtype), len(self._program.active_qubits)
        if widest > most:
            raise MemoryError(
                f"{_DRAWN_TOGETHER} a state of {widest} of the circuit's {active} qubits, and this machine's memory holds "
                f"{most}; {_APART}, or backend=AerSimulator(method='matrix_product_state'), or shots=None."
            )
        return _assembled(self._shot_fragments, self._program.readout.constants, self._dtype)

    # Exact variances of joint measurements that are too wide to simulate: from the products of Pauli strings

    @cached_property
    def _by_products(self) -> bool:
        is_expectation = isinstance(self._program.readout, Expectation)
        return is_expectation and self._joint_shots and self._widest > _MOST_QUBITS_OF_OUTCOMES

    @cached_property
    def _products(self) -> list[tuple[Assembly, np.ndarray, PauliGroup]]:
        assemblies = []
        for group in self._program.readout.groups:
            assert isinstance(group, PauliGroup)
            products, pairs = products_of(self._gates, group)
            check = partial(_check_cone, self._program, self._dtype)
            fragments = exact_fragments(self._gates, strings_of([products]), math.inf, check)
            assert fragments is not None
            assembly = _assembled(fragments, np.zeros(len(products.supports)), self._dtype)
            assemblies.append((assembly, pairs, group))
        return assemblies
