r"""Which frequencies the expectation values of a circuit have in each weight.

A rotation :math:`e^{-i\theta P/2}` makes them sinusoids of its angle, with the frequencies 0 and 1. A weight that sets
several angles, :math:`\theta_a = s_a w + \dots`, has the frequencies :math:`|\sum_a \epsilon_a s_a|` with each
:math:`\epsilon_a \in \{-1, 0, 1\}` (Schuld, Sweke and Meyer, Phys. Rev. A 103, 032430 (2021)): in R gates as it is
0, 1, ..., R; in a controlled rotation 0, 1/2 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from qiskit.circuit import ParameterExpression

from ..program.angles import AngleGroup
from ..program.compiled import Program

__all__ = ["frequencies_of", "speeds_of"]

_ALIKE = 1e-9


def speeds_of(program: Program, group: int, entry: int) -> list[float]:
    """How fast a weight moves each angle that it sets and that the readout can see.

    Args:
        program: The compiled circuit.
        group: The weight's group.
        entry: Its place there.

    Raises:
        ValueError: If an angle is no constant multiple of it, plus what does not depend on it.
    """
    source, parameter = (1 + group, entry), program.parameters[1 + group][entry]
    speeds = []
    for column, angles, place, expression in _angles(program):
        if not program.influential[column]:
            continue
        if place < len(angles.affine):
            speeds += [speed for term, speed in angles.affine[place].terms if term == source and speed]
        elif parameter in expression.parameters or (
            program.angle_map.encodes(column) and source in getattr(angles.translated, "columns", ())
        ):
            raise ValueError(
                f"weights ({program.group_names[group]}): entry {entry}, {parameter.name!r}, sets the angle "
                f"{program.describe_angle(column)}, which is no constant multiple of it: it has no fixed frequencies"
            )
    return speeds


def _angles(program: Program) -> Iterator[tuple[int, AngleGroup, int, ParameterExpression]]:
    """Each angle's column, group, place there, and expression."""
    angle_map = program.angle_map
    for angles, span in zip(angle_map.groups, angle_map.slices, strict=True):
        if not angles.fixed:
            for place, expression in enumerate(angles.expressions):
                yield span.start + place, angles, place, expression


def frequencies_of(program: Program, group: int, entry: int, most: int) -> tuple[float, ...]:
    """The positive frequencies of a weight, ascending; none if it does not matter.

    Args:
        program: The compiled circuit.
        group: The weight's group.
        entry: Its place there.
        most: How many there may be.

    Raises:
        ValueError: If there are more, or no fixed ones.
    """
    speeds = speeds_of(program, group, entry)
    frequencies = np.zeros(1)
    for speed in map(abs, speeds):
        sums = np.sort(np.abs(np.concatenate([frequencies, frequencies + speed, frequencies - speed])))
        kept = np.concatenate([[True], np.diff(sums) > _ALIKE * (1 + sums[-1])])
        frequencies = sums[kept]
        if len(frequencies) - 1 > most:
            name, parameter = program.group_names[group], program.parameters[1 + group][entry]
            raise ValueError(
                f"weights ({name}): entry {entry}, {parameter.name!r}, sets {len(speeds)} angles and has more than {most} "
                f"frequencies, which would take more than {2 * most + 1} evaluations of the loss"
            )
    return tuple(frequencies[1:].tolist())
