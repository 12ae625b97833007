"""The gradient rules, each a frozen value that makes a shift table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from ..program.compiled import Program
from ..shots.seeding import SeedStream
from .stencil import Stencil

__all__ = ["SPSA", "Adjoint", "FiniteDifference", "GradientRule", "ParameterShift", "resolve_gradient"]


class GradientRule(ABC):
    """A rule that turns a program and wanted angles into a shift table.

    Subclass it (a frozen dataclass serves well) to add a rule; pass an instance as ``gradient=``.
    """

    name: ClassVar[str]
    exact_only: ClassVar[bool] = False
    """Whether the rule needs a backend that simulates exactly and differentiates itself."""

    @abstractmethod
    def stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        """The shift table.

        Args:
            program: The compiled circuit.
            columns: The W wanted angles; the rows of the table's coefficients.
            rows: The number N of rows of the batch, for rules that draw shifts for each.
            shots: Shots a circuit; None for exact values.
            seeds: Randomness for rules that draw.
        """

    def checked_stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        """:meth:`stencil`, refused where its shapes do not fit.

        Raises:
            ValueError: If they do not.
        """
        stencil = self.stencil(program, columns, rows=rows, shots=shots, seeds=seeds)
        points = stencil.coefficients.shape[-1]
        shapes = stencil.shifts.shape, stencil.coefficients.shape
        table = (points, program.num_columns), (len(columns), points)
        if shapes not in (table, ((rows, *table[0]), (rows, *table[1]))):
            raise ValueError(
                f"stencil of {type(self).__name__}: got shifts of shape {shapes[0]} and coefficients of shape {shapes[1]}, "
                f"expected (K, A = {program.num_columns}) and (W = {len(columns)}, K), or N = {rows} of both."
            )
        return stencil

    def num_points(self, program: Program, columns: tuple[int, ...]) -> int:
        """Circuits a row of the batch."""
        return self.stencil(program, columns, rows=1, shots=None, seeds=SeedStream(0)).num_points


@dataclass(frozen=True)
class ParameterShift(GradientRule):
    r"""The two-term parameter-shift rule, exact for every angle of a canonical circuit.

    .. math:: \frac{\partial f}{\partial\theta} = \frac{f(\theta + s) - f(\theta - s)}{2 \sin s} .

    Args:
        shift: The shift :math:`s` in radians, not a multiple of pi. With shots, pi/2 gives the smallest variance.
    """

    shift: float = math.pi / 2

    name: ClassVar[str] = "parameter_shift"

    def __post_init__(self) -> None:
        finite = isinstance(self.shift, (int, float)) and math.isfinite(self.shift)
        if not finite or not abs(math.sin(self.shift)) > 1e-6:
            raise ValueError(
                f"shift: got {self.shift}, expected radians, no multiple of pi (the rule divides by the sine)."
            )

    def stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        return _two_term(program.num_columns, columns, self.shift)


@lru_cache(maxsize=8)
def _two_term(num_columns: int, columns: tuple[int, ...], shift: float) -> Stencil:
    rows = np.arange(len(columns))
    shifts = np.zeros((2 * len(columns), num_columns))
    shifts[2 * rows, columns] = shift
    shifts[2 * rows + 1, columns] = -shift
    coefficients = np.zeros((len(columns), 2 * len(columns)))
    coefficients[rows, 2 * rows] = 0.5 / math.sin(shift)
    coefficients[rows, 2 * rows + 1] = -0.5 / math.sin(shift)
    return Stencil(shifts, coefficients)


def _directions(program: Program, columns: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Directions that move tied angles together.

    Returns:
        Directions of shape (D, A), their largest entry 1; and coefficients of shape (W, D) that hand the derivative
        along each to one angle of its set. The chain rule only ever adds the angles of a set up, so the others' share
        can stay zero.
    """
    ties = program.angle_map.ties
    members: dict[int, list[tuple[int, int]]] = {}
    for row, column in enumerate(columns):
        members.setdefault(ties[column][0], []).append((row, column))
    directions = np.zeros((len(members), program.num_columns))
    shares = np.zeros((len(columns), len(members)))
    for d, group in enumerate(members.values()):
        fastest = max(group, key=lambda member: abs(ties[member[1]][1]))
        for _, column in group:
            directions[d, column] = ties[column][1] / ties[fastest[1]][1]
        shares[fastest[0], d] = 1.0
    return directions, shares


def _checked_step(step: float | None) -> None:
    if step is not None and not (isinstance(step, (int, float)) and math.isfinite(step) and step > 0):
        raise ValueError(f"step: got {step}, expected a positive number of radians, or None for the default.")


@dataclass(frozen=True)
class FiniteDifference(GradientRule):
    r"""Finite differences: :math:`(f(\theta+h)-f(\theta-h))/2h` (central) or :math:`(f(\theta+h)-f(\theta))/h` (forward).

    Angles that belong to one parameter are moved together, so that a circuit that uses a parameter in many gates costs
    two circuits for it, not two for each gate; that is where the rule beats parameter shift.

    The default step minimises the mean squared error of a sinusoid of unit amplitude, whose values have a variance of
    at most 1/S from S shots (truncation error squared plus variance):

    * central: :math:`h^4/36 + 1/(2 S h^2)`, least at :math:`h = (9/S)^{1/6}`: 0.67 rad at 100 shots, 0.46 at 1000;
    * forward: :math:`h^2/4 + 2/(S h^2)`, least at :math:`h = (8/S)^{1/4}`: 0.53 rad at 100 shots, 0.30 at 1000;
    * exact values: rounding takes the place of shots, :math:`h = \epsilon^{1/3}` (central) or :math:`\epsilon^{1/2}`
      (forward) with the double precision :math:`\epsilon = 2.2 \cdot 10^{-16}`, times 10 for the rounding that a
      simulation gathers.

    It is divided by the sum of the speeds of the angles that move together, because their frequencies add up, and never
    above 1 rad.

    Args:
        step: The step h in radians of the fastest moving angle; None for the default.
        scheme: ``"central"`` or ``"forward"``.
    """

    step: float | None = None
    scheme: Literal["central", "forward"] = "central"

    name: ClassVar[str] = "finite_difference"

    def __post_init__(self) -> None:
        _checked_step(self.step)
        if self.scheme not in ("central", "forward"):
            raise ValueError(f"scheme: got {self.scheme!r}, expected 'central' or 'forward'.")

    def default_step(self, shots: int | None) -> float:
        """The default step in radians, for one angle that moves alone."""
        epsilon = float(np.finfo(np.float64).eps)
        if self.scheme == "central":
            return 10 * epsilon ** (1 / 3) if shots is None else min(1.0, (9 / shots) ** (1 / 6))
        return 10 * epsilon ** (1 / 2) if shots is None else min(1.0, (8 / shots) ** (1 / 4))

    def stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        directions, shares = _directions(program, columns)
        speeds = np.abs(directions).sum(axis=1)
        steps = np.full(len(directions), self.step) if self.step is not None else self.default_step(shots) / speeds
        moved = steps[:, None] * directions
        if self.scheme == "central":
            return Stencil(
                np.concatenate([moved, -moved]), np.concatenate([shares / (2 * steps), -shares / (2 * steps)], axis=1)
            )
        base = np.zeros((1, program.num_columns))
        return Stencil(
            np.concatenate([base, moved]),
            np.concatenate([-(shares / steps).sum(axis=1, keepdims=True), shares / steps], axis=1),
        )


@dataclass(frozen=True)
class SPSA(GradientRule):
    r"""Simultaneous perturbation: all wanted angles move at once, along random signs :math:`\Delta_d = \pm 1`.

    .. math:: \frac{\partial f}{\partial\theta_d} \approx
        \frac{f(\theta + c\Delta) - f(\theta - c\Delta)}{2 c}\,\Delta_d ,

    averaged over ``samples`` draws. Two circuits a sample and row, whatever the number of weights; unbiased up to the
    step, but noisy: each component carries the others' derivatives as variance. Every row of a batch draws its own
    signs, so that a batch averages the noise away as well (elements of ``torch.func.vmap`` share theirs). Angles of one
    parameter move together, as in :class:`FiniteDifference`.

    The default step is that of the central difference, for a function of D such directions at once whose third
    derivative along :math:`\Delta` has a size of :math:`D^{3/2}`: :math:`c = (9/S)^{1/6}/\sqrt{D}`, 10 times the cube
    root of the double precision over :math:`\sqrt{D}` for exact values. That is the careful choice, for values to which
    all angles contribute alike; where each output depends on few of them, a larger step has less noise.

    Args:
        step: The step c in radians; None for the default.
        samples: The number of draws a gradient is averaged over.
    """

    step: float | None = None
    samples: int = 1

    name: ClassVar[str] = "spsa"

    def __post_init__(self) -> None:
        _checked_step(self.step)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples: got {self.samples!r}, expected a positive integer.")

    def stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        directions, shares = _directions(program, columns)
        speeds = np.abs(directions).sum(axis=1)
        if self.step is not None:
            steps = np.full(len(directions), self.step)
        else:
            steps = FiniteDifference().default_step(shots) / (math.sqrt(len(directions)) * speeds)
        rng = np.random.default_rng(seeds.next())
        signs = rng.choice([-1.0, 1.0], size=(rows, self.samples, len(directions)))
        moved = (signs * steps) @ directions
        weights = np.swapaxes(signs / (2 * self.samples * steps), 1, 2)
        coefficients = shares @ weights
        return Stencil(np.concatenate([moved, -moved], axis=1), np.concatenate([coefficients, -coefficients], axis=2))


@dataclass(frozen=True)
class Adjoint(GradientRule):
    """Adjoint differentiation: one backward sweep through an exact simulation gives all derivatives at once.

    It needs a backend that simulates exactly and can differentiate itself (``statevector`` and ``noisy:NAME`` without
    shots). Its own derivative (second order) comes from the parameter-shift table, whose points are differentiated by
    sweeps in turn.
    """

    name: ClassVar[str] = "adjoint"
    exact_only: ClassVar[bool] = True

    def stencil(
        self, program: Program, columns: tuple[int, ...], *, rows: int, shots: int | None, seeds: SeedStream
    ) -> Stencil:
        """The table of the second order: :class:`ParameterShift`'s."""
        return ParameterShift().stencil(program, columns, rows=rows, shots=shots, seeds=seeds)

    def num_points(self, program: Program, columns: tuple[int, ...]) -> int:
        return 0


_RULES: dict[str, type[GradientRule]] = {rule.name: rule for rule in (Adjoint, ParameterShift, FiniteDifference, SPSA)}


def resolve_gradient(gradient: str | GradientRule | None) -> GradientRule | None:
    """The rule that a name stands for; rules and None (the best one for the backend) pass through.

    Raises:
        TypeError, ValueError: If it is neither a rule nor the name of one.
    """
    if gradient is None or isinstance(gradient, GradientRule):
        return gradient
    if isinstance(gradient, type) and issubclass(gradient, GradientRule):
        return gradient()
    if not isinstance(gradient, str):
        raise TypeError(
            f"gradient: got {gradient!r}, expected a rule such as ParameterShift(), or one of {sorted(_RULES)}."
        )
    if gradient not in _RULES:
        raise ValueError(f"gradient: got {gradient!r}, expected one of {sorted(_RULES)}.")
    return _RULES[gradient]()
