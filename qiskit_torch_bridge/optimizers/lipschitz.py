r"""A bound of how fast the gradient of an expectation value changes.

Along a direction v the angles of a circuit move by :math:`u = J v`, and each rotation has a generator of norm 1/2, so
that the second derivative of :math:`\langle H\rangle` is at most :math:`\|H\| (\sum_a |u_a|)^2 \le \|H\|\,|v|^2 \sum_w
s_w^2`, where :math:`s_w = \sum_a |\partial\theta_a/\partial w|`. A constant in H does not count.
"""

from __future__ import annotations

import numpy as np

from ..layer import QuantumLayer
from ..program.readout import Expectation
from .frequencies import speeds_of

__all__ = ["lipschitz_bound"]


def lipschitz_bound(layer: QuantumLayer) -> float:
    """An upper bound of the Lipschitz constant of the gradient of a layer's one output, or of its mean over rows.

    Args:
        layer: With a single output.

    Raises:
        ValueError: If it has several outputs, of which no loss is known, or an angle is no multiple of a weight.
    """
    program = layer.program
    if program.num_outputs != 1:
        raise ValueError(f"the layer has {program.num_outputs} outputs, and nothing says what the loss makes of them")
    speeds = [
        sum(map(abs, speeds_of(program, group, entry)))
        for group, width in enumerate(program.num_weights)
        for entry in range(width)
    ]
    read = program.readout
    norm = np.abs(read.observables[0].coeffs).sum() if isinstance(read, Expectation) else 0.5  # a projector, less half
    return float(norm * np.square(speeds).sum())
