r"""What the variance of the first derivative is in theory.

For a rotation :math:`e^{-i\theta P/2}` on the state :math:`\rho`, behind which a circuit takes the traceless part of the
observable to :math:`O`, the derivative is :math:`\mathrm{Tr}(O A)` with :math:`A = i[\rho, P]/2`, and
:math:`\mathrm{Tr}(A^2) = (1 - \langle P\rangle^2)/2`. If the circuit is a 2-design on dimension :math:`d = 2^n`, then
:math:`E[O\otimes O] = \mathrm{Tr}(O^2)\,(\mathrm{SWAP} - 1/d)/(d^2-1)`, whence

.. math:: \mathrm{Var} = \frac{\mathrm{Tr}(O^2)\,(1 - \langle P\rangle^2)}{2\,(d^2-1)} .

That is the case "U+ is a 2-design" of McClean et al., Nat. Commun. 9, 4812 (2018). Before the first layer stands
RY(pi/4), so that :math:`1 - \langle P\rangle^2` is 1/2, 1 and 1/2 for X, Y and Z, 2/3 in the mean. A Pauli observable has
:math:`\mathrm{Tr}(O^2) = d`, be it local or global: the variance halves with each qubit. The projector on one state has
:math:`1 - 1/d`: it falls by a factor of four.

Two new layers at zero, behind random ones, are the identity (CZ undoes itself), and the *state* before them is the
2-design: :math:`\mathrm{Var} = \mathrm{Tr}(B^2)/(d(d+1))` with :math:`B = i[P, O]/2`, which is zero for P = Z and has
:math:`\mathrm{Tr}(B^2)` = d (Pauli) or 1/2 (projector) for X and Y.

An even number of layers at zero is the identity too. Then only P = Y changes what is measured, and the derivative is that
of a product state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .ensemble import START, Start

SLOPES = {
    ("uniform", "Z0 Z1"): -math.log(2),
    ("uniform", "Z...Z"): -math.log(2),
    ("uniform", "projector"): -2 * math.log(2),
    ("grown", "Z0 Z1"): -math.log(2),
    ("grown", "Z...Z"): -math.log(2),
    ("grown", "projector"): -2 * math.log(2),
    ("zeros", "Z0 Z1"): 0.0,
    ("zeros", "Z...Z"): -math.log(2),
    ("zeros", "projector"): 4 * math.log(math.cos(START / 2)),
}
"""The slope of the logarithm of the variance, a qubit, for many qubits and layers, by start and observable."""

_MEAN_SPREAD = 2 / 3  # of 1 - <P>**2 over the axes
_AXES_THAT_CHANGE_Z = 2 / 3
# Paulis I, X, Y, Z: squared weights after a rotation about a random axis by a random angle, as rows to columns.
_ROTATED = np.array([[6, 0, 0, 0], [0, 4, 1, 1], [0, 1, 4, 1], [0, 1, 1, 4]]) / 6
# The same for the derivative by the angle, which an axis along the Pauli does not change.
_DIFFERENTIATED = np.array([[0, 0, 0, 0], [0, 2, 1, 1], [0, 1, 2, 1], [0, 1, 1, 2]]) / 6
# The squares of the Paulis' expectation values after RY(pi/4).
_SQUARED_AT_START = np.array([1.0, 0.5, 0.0, 0.5])


def deep_variance(observable: str, num_qubits: int, start: Start = "uniform") -> float:
    """The variance of the derivative in circuits of many layers, an even number of them.

    Args:
        observable: One of :data:`~experiments.barren_plateau.ensemble.OBSERVABLES`.
        num_qubits: Qubits.
        start: The angles; see :data:`~experiments.barren_plateau.ensemble.Start`.
    """
    dimension = 2.0**num_qubits
    if start == "uniform":
        trace = 1 - 1 / dimension if observable == "projector" else dimension
        return trace * _MEAN_SPREAD / (2 * (dimension**2 - 1))
    if start == "grown":
        trace = 1 / 2 if observable == "projector" else dimension
        return trace * _AXES_THAT_CHANGE_Z / (dimension * (dimension + 1))
    cosine, sine = math.cos(START), math.sin(START)
    derivative = {
        "Z0 Z1": sine * cosine,
        "Z...Z": sine * cosine ** (num_qubits - 1),
        "projector": sine / 2 * math.cos(START / 2) ** (2 * (num_qubits - 1)),
    }[observable]
    return derivative**2 / 3


def variance_of_pauli(pauli: Sequence[int], layers: int) -> float:
    """The exact variance at any depth, for an observable that is a Pauli string.

    A rotation about a random axis by a random angle spreads the square of a Pauli's weight over the Paulis of its qubit;
    averages of products of two different strings vanish, and CZ takes a string to a string. So the squares of the weights
    go back through the circuit as the probabilities of a Markov chain on all 4**n strings.

    Args:
        pauli: The observable: 0, 1, 2, 3 for I, X, Y, Z on each qubit.
        layers: Layers of the circuit.
    """
    num_qubits = len(pauli)
    weights = np.zeros((4,) * num_qubits)
    weights[tuple(pauli)] = 1.0
    for layer in reversed(range(layers)):
        for qubit in range(num_qubits - 1):
            weights = _through_cz(weights, qubit)
        for qubit in range(num_qubits):
            matrix = _DIFFERENTIATED if (layer, qubit) == (0, 0) else _ROTATED
            weights = np.moveaxis(np.tensordot(weights, matrix, axes=(qubit, 0)), -1, qubit)
    for _ in range(num_qubits):
        weights = np.tensordot(_SQUARED_AT_START, weights, axes=(0, 0))
    return float(weights)


def _through_cz(weights: np.ndarray, qubit: int) -> np.ndarray:
    """CZ on a qubit and the next: X and Y gain a Z on the other one, where I and Z, X and Y change places."""
    pair = np.moveaxis(weights, (qubit, qubit + 1), (0, 1))
    first, second = np.indices((4, 4))
    one, two = (
        np.where((other == 1) | (other == 2), 3 - own, own) for own, other in ((first, second), (second, first))
    )
    return np.moveaxis(pair[one, two], (0, 1), (qubit, qubit + 1))  # CZ undoes itself
