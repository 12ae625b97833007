r"""The standard error of a value and of its gradient, at so many shots.

The gradient by all six angles of a circuit of three qubits; the observable's terms are measured in two bases, two of them in
the same shots. Repetitions are rows of one batch. The **scatter** over repetitions has all that is random in it. What the
library **reports** for each repetition is the part that the shots cause. The two differ for SPSA alone: its random
directions :math:`\Delta` scatter too, by

.. math:: \mathrm{Var}_\Delta\left[\frac{f(\theta + c\Delta) - f(\theta - c\Delta)}{2c}\,\Delta_w\right],

which shots do not lessen. In theory both follow from exact values at the points of the rule; for SPSA at those of all
:math:`2^6` directions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from qiskit.quantum_info import SparsePauliOp

from qiskit_torch_bridge import SPSA, FiniteDifference, GradientRule, ParameterShift, QuantumLayer
from qiskit_torch_bridge.circuits import dressed

from ..common.cells import Cell
from ..common.lines import MeanSquare

RULES: Mapping[str, GradientRule] = {
    "parameter shift": ParameterShift(),
    "finite difference, h = 0.3": FiniteDifference(step=0.3),
    "finite difference, default h": FiniteDifference(),
    "SPSA, c = 0.1": SPSA(step=0.1),
    "SPSA, default c": SPSA(),
}
"""Rules by their names in the study; steps in radians."""

VALUE = "value"
"""What stands in the place of a rule where the value itself is measured."""

EXPONENTS = {VALUE: -1 / 2} | {name: -1 / 3 if "default" in name else -1 / 2 for name in RULES}
"""The power of the shots with which the shots' part goes down: a default step goes down as S**(-1/6) itself."""

ANGLES = np.array([0.5, -0.9, 1.3, 0.8, -0.4, 1.1])
"""Where the gradient is taken, in radians."""

_OBSERVABLE = SparsePauliOp(["IZZ", "ZII", "XXI"], [1.0, 1.0, 0.5])


def theory(quantity: str, shots: int) -> tuple[float, float]:
    """The variances of a value (:data:`VALUE`) or of the gradient by a rule, in the mean over the angles.

    Returns:
        What the shots cause, and what random directions cause.
    """
    layer, rule = measured_layer(), RULES.get(quantity)
    if isinstance(rule, SPSA):
        return _theory_of_spsa(layer, rule, shots)
    layer(torch.from_numpy(ANGLES[None]).requires_grad_()).sum().backward()
    run = _last_run(layer).predicted(shots, gradient=rule)
    errors = run.standard_errors if rule is None else run.input_gradient_standard_errors
    return float((errors**2).mean()), 0.0


def measure_scaling(cell: Cell, seed: np.random.SeedSequence) -> dict[str, Any]:
    """Scatter and reported errors over the cell's repeats, beside the theory; all as variances.

    Args:
        cell: With ``quantity`` (:data:`VALUE` or a rule's name), ``shots`` (a circuit) and ``repeats``.
        seed: Draws the shots, and SPSA's directions.
    """
    quantity, shots, repeats = cell["quantity"], cell["shots"], cell["repeats"]
    layer = measured_layer(shots=shots, gradient=RULES.get(quantity), seed=seed.generate_state(4).tolist())
    angles = torch.from_numpy(np.tile(ANGLES, (repeats, 1)))
    if quantity == VALUE:
        estimates, reported = layer(angles).numpy(), _last_run(layer).standard_errors
    else:
        layer(angles.requires_grad_()).sum().backward()
        assert angles.grad is not None
        estimates, reported = angles.grad.numpy(), _last_run(layer).input_gradient_standard_errors
    squares = (estimates - estimates.mean(axis=0)) ** 2 * repeats / (repeats - 1)
    scatter, told = MeanSquare.of(squares.mean(axis=1)), MeanSquare.of((reported**2).mean(axis=1))
    of_shots, of_directions = theory(quantity, shots)
    return {
        "scatter_variance": scatter.value,
        "scatter_variance_error": scatter.error,
        "reported_variance": told.value,
        "reported_variance_error": told.error,
        "theory_variance_of_shots": of_shots,
        "theory_variance_of_directions": of_directions,
        "shots_spent": layer.total_shots,
    }


def measured_layer(**options: Any) -> QuantumLayer:
    """The circuit with its observable, all angles as inputs; exact unless the options say otherwise."""
    circuit, inputs, weights = dressed(3, 1)
    return QuantumLayer(circuit, inputs=[inputs, weights], observables=_OBSERVABLE, **{"seed": 0} | options)


def _last_run(layer: QuantumLayer) -> Any:
    assert layer.last_run is not None
    return layer.last_run


def _theory_of_spsa(layer: QuantumLayer, rule: SPSA, shots: int) -> tuple[float, float]:
    directions = np.array(list(itertools.product((-1.0, 1.0), repeat=len(ANGLES))))
    step = rule.step or FiniteDifference().default_step(shots) / math.sqrt(len(ANGLES))
    points = np.concatenate([ANGLES + step * directions, ANGLES - step * directions])
    with torch.no_grad():
        values = layer(torch.from_numpy(points)).numpy().reshape(2, -1)
    variances = _last_run(layer).predicted(shots).standard_errors.reshape(2, -1) ** 2
    estimates = ((values[0] - values[1]) / (2 * step))[:, None] * directions
    return float(variances.sum(axis=0).mean() / (4 * step**2)), float(estimates.var(axis=0).mean())
