"""Simulates wide circuits by their light cones: values, gradients and shots of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import psutil

from ..arguments import in_gibibytes
from ..program.compiled import Program
from ..program.light_cones import CircuitGates, Cone, amplitudes, work
from ..program.readout import Expectation, PauliGroup
from .cone_plan import (
    LEAST_QUBITS,
    Fragment,
    Shape,
    String,
    exact_fragments,
    pays,
    products_of,
    shapes_of,
    shot_fragments,
    strings_of,
)
from .engine import HALF_PRECISION, Simulator, States
from .lowering import lowered
from .plan import Measurement
from .shots import Measured

__all__ = ["ConeSimulator", "simulator_of"]

_MOST_LISTED = 8
_MOST_QUBITS_OF_OUTCOMES = 14  # beyond, variances from products of strings are less work


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
        cones = [gates.cone([string.letters]) for string in strings_of(program.readout)]
        return min(whole, sum(amplitudes(len(cone.qubits)) for cone in cones))
    return min(
        whole, sum(amplitudes(len(fragment.qubits)) for fragment in shot_fragments(gates, program.readout, joint=True))
    )


def _by_cones(program: Program, dtype: np.dtype, joint_shots: bool) -> ConeSimulator | None:
    gates, active = CircuitGates(program), len(program.active_qubits)
    whole = work(active, len(gates.gates)) if active <= _most_qubits(dtype) else math.inf
    if isinstance(program.readout, Expectation):
        fragments = exact_fragments(gates, strings_of(program.readout), whole, partial(_check_cone, program, dtype))
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
        raise MemoryError(
            f"{what} has {width} of the circuit's {active} qubits: its exact state needs at least "
            f"{in_gibibytes(needed)} of memory, and this machine has {in_gibibytes(there)} altogether; use fewer layers, "
            f"observables that depend on fewer qubits, {HALF_PRECISION if dtype == np.float64 else ''}"
            "backend=AerSimulator(method='matrix_product_state'), which needs little where entanglement is low, or hardware."
        )


class _Cones:
    """Shapes with their simulators, as one map from angles to values.

    Args:
        fragments: What is simulated.
        constants: Shape (M,): what the outputs begin with.
        dtype: As for :class:`Simulator`.
    """

    def __init__(self, fragments: Sequence[Fragment], constants: np.ndarray, dtype: np.dtype) -> None:
        self.fragments, self.constants = fragments, constants
        self.parts = [(shape, Simulator(shape.circuit, dtype)) for shape in shapes_of(fragments)]

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, list[States | None]]:
        values = np.empty((len(angles), len(self.constants)))
        values[:] = self.constants
        kept = []
        for shape, simulator in self.parts:
            results, states = simulator.values(_angles_of(shape, angles), keep=keep)
            _add(values, shape.outputs, results)
            kept.append(states)
        return values, kept

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: Sequence[States | None] | None, selected: np.ndarray
    ) -> np.ndarray:
        gradients = np.zeros(angles.shape)
        for (shape, simulator), kept in zip(self.parts, states or [None] * len(self.parts), strict=True):
            selected_here = selected[shape.columns]
            if not selected_here.any():
                continue
            own = _angles_of(shape, angles), _of_fragments(upstream, shape.outputs)
            _add(gradients, shape.columns, simulator.pullback(*own, kept, selected_here.any(axis=0)))
        gradients[:, ~selected] = 0.0
        return gradients


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
        self._exact = _Cones(fragments, program.readout.constants, dtype)

    @property
    def fragments(self) -> Sequence[Fragment]:
        """What exact values come from."""
        return self._exact.fragments

    @property
    def description(self) -> str:
        """What is simulated, in words."""
        fragments, shapes = self.fragments, [shape for shape, _ in self._exact.parts]
        active = len(self._program.active_qubits)
        lines = [
            f"{len(fragments)} light cones in place of one state of {active} qubits; those that are alike are one circuit:"
        ]
        for shape in sorted(shapes, key=lambda shape: -shape.circuit.num_qubits):
            size = f"{shape.num_fragments} x {shape.circuit.num_qubits} qubits"
            lines.append(f"  {size}, {shape.columns.shape[1]} angles: outputs {_listed(shape.outputs)}")
        return "\n".join(lines)

    def values(self, angles: np.ndarray, *, keep: bool = False) -> tuple[np.ndarray, list[States | None]]:
        """Exact values, shape (N, M), and the states that are kept for a gradient."""
        return self._exact.values(angles, keep=keep)

    def pullback(
        self, angles: np.ndarray, upstream: np.ndarray, states: Sequence[States | None] | None, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product, shape (N, A); zero for angles that are not selected."""
        return self._exact.pullback(angles, upstream, states, selected)

    def sampled(
        self, angles: np.ndarray, shots: int, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray, list[Measured[Measurement] | None]]:
        """Values from ``shots`` shots of each measurement, their squared standard errors, and counts.

        Raises:
            MemoryError: If what must be drawn together does not fit into this machine's memory.
        """
        values = np.empty((len(angles), self._program.num_outputs))
        values[:] = self._program.readout.constants
        variances = np.zeros(values.shape)
        counts = []
        for number, (shape, simulator) in enumerate(self._drawn):
            first, squares, kept = simulator.sampled(_angles_of(shape, angles), shots, _seed_of(seed, number))
            _add(values, shape.outputs, first)
            _add(variances, shape.outputs, squares)
            counts.append(kept)
        return values, variances, counts

    def variances_of_one_shot(
        self,
        angles: np.ndarray,
        shots: int | None,
        seed: np.random.SeedSequence | None,
        kept: Sequence[Measured[Measurement] | None] | None,
        upstream: np.ndarray,
    ) -> np.ndarray:
        """The variance from shot to shot of ``upstream @ scores``, shape (N,), summed over the measurements."""
        if shots is None and self._by_products:
            return self._exact_variances(angles, upstream)
        variances = np.zeros(len(angles))
        for number, (shape, simulator) in enumerate(self._drawn):
            own = simulator.variances_of_one_shot(
                _angles_of(shape, angles),
                shots,
                None if seed is None else _seed_of(seed, number),
                None if kept is None else kept[number],
                _of_fragments(upstream, shape.outputs),
            )
            variances += own.reshape(len(angles), -1).sum(axis=1)
        return variances

    # Shots

    @cached_property
    def _shot_fragments(self) -> list[Fragment]:
        return shot_fragments(self._gates, self._program.readout, joint=self._joint_shots)

    @property
    def _widest(self) -> int:
        return max((len(fragment.qubits) for fragment in self._shot_fragments), default=0)

    @cached_property
    def _drawn(self) -> list[tuple[Shape, Simulator]]:
        widest, most, active = self._widest, _most_qubits(self._dtype), len(self._program.active_qubits)
        if widest > most:
            raise MemoryError(
                "Shots of outputs whose light cones share qubits are drawn together, which takes a state of "
                f"{widest} of the circuit's {active} qubits, and this machine's memory holds {most}; "
                "use StatevectorBackend(joint_shots=False), whose draws are right for each Pauli string and have no "
                "covariance between strings of different cones, or backend=AerSimulator(method='matrix_product_state'), or "
                "shots=None."
            )
        return [(shape, Simulator(shape.circuit, self._dtype)) for shape in shapes_of(self._shot_fragments)]

    # Exact variances of joint measurements that are too wide to simulate: from the products of Pauli strings

    @cached_property
    def _by_products(self) -> bool:
        is_expectation = isinstance(self._program.readout, Expectation)
        return is_expectation and self._joint_shots and self._widest > _MOST_QUBITS_OF_OUTCOMES

    @cached_property
    def _products(self) -> list[tuple[PauliGroup, np.ndarray, _Cones]]:
        results = []
        for group in self._program.readout.groups:
            assert isinstance(group, PauliGroup)
            products = products_of(self._gates, group)
            fragments = exact_fragments(
                self._gates, products.strings, math.inf, partial(_check_cone, self._program, self._dtype)
            )
            assert fragments is not None
            results.append((group, products.pairs, _Cones(fragments, np.zeros(len(products.strings)), self._dtype)))
        return results

    def _exact_variances(self, angles: np.ndarray, upstream: np.ndarray) -> np.ndarray:
        variances = np.zeros(len(angles))
        for group, pairs, cones in self._products:
            means, _ = cones.values(angles)
            first, second = pairs.T
            along = upstream @ group.coefficients.T
            covariances = means[:, len(along[0]) :] - means[:, first] * means[:, second]
            weights = np.where(first == second, 1.0, 2.0)
            variances += (along[:, first] * along[:, second] * covariances) @ weights
        return np.maximum(variances, 0.0)


def _listed(numbers: np.ndarray) -> str:
    """The distinct numbers, most of a long list left out."""
    words = [str(number) for number in np.unique(numbers).tolist()]
    return ", ".join(words if len(words) <= _MOST_LISTED else [*words[: _MOST_LISTED - 2], "...", words[-1]])


def _seed_of(seed: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """A seed for each shape; ``seed`` stays as it is."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))


def _angles_of(shape: Shape, angles: np.ndarray) -> np.ndarray:
    """The fragments' own angles, shape (N * K, A'), from all of shape (N, A)."""
    return _of_fragments(angles, shape.columns)


def _of_fragments(array: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The columns of K fragments, shape (N * K, C), from an array of shape (N, *)."""
    return np.ascontiguousarray(array[:, columns]).reshape(len(array) * len(columns), columns.shape[1])


def _add(totals: np.ndarray, columns: np.ndarray, parts: np.ndarray) -> None:
    """Adds the columns of K fragments, shape (N * K, C), to an array of shape (N, *); several may have the same one."""
    by_column = parts.reshape(len(totals), columns.size).T
    np.add.at(totals.T, columns.ravel(), by_column)
