r"""A circuit compiled for differentiation: one free parameter per rotation.

A :class:`Program` holds the *canonical* form of a user's circuit: gates without parameters, and gates each argument of
which is an angle of its own with the property that every expectation value is a sinusoid of it,

.. math:: f(\theta) = a + b \cos\theta + c \sin\theta .

That holds for ``rx ry rz rxx ryy rzz rzx`` (generators with eigenvalues :math:`\pm 1/2`), for ``p`` and ``cp``
(eigenvalues 0 and 1) and for each of the three arguments of ``u``, which is ``rz(phi) ry(theta) rz(lambda)`` up to a
phase. Every other parameterised gate (``crx``, ``cu``, ``PauliEvolutionGate``, composite and controlled gates ...) is
decomposed by Qiskit's own transpiler passes, which keep the user's parameter expressions. How the angles follow from
the user's inputs and weights is the business of :mod:`qiskit_torch_bridge.program.angles`; what is measured, of
:mod:`qiskit_torch_bridge.program.readout`.

Gates of the user's own count as what they are made of, whatever their names: their definition, or the matrix of a gate
that has nothing else. A definition that does not have the parameters that its gate shows is refused. ``for_loop`` over
known values and ``box`` are unrolled (the duration of a box is lost); other control flow is refused.

Refused, when a layer is made, are also mid-circuit measurement and reset, parameters in no list or in two, and instructions
with neither a definition nor a matrix.

``PauliEvolutionGate`` stands for the product formula that it defines (as on hardware), not for the exact exponential.

An amplitude encoding (:func:`qiskit_torch_bridge.circuits.amplitude_encoding`, or ``raw_feature_vector`` of Qiskit Machine
Learning) becomes rotations, whose angles follow from the amplitudes (:mod:`qiskit_torch_bridge.program.amplitudes`).

Any other instruction that is only defined once its parameters are numbers has no gradient. If all its parameters are inputs
it is an *input block*: a program with such blocks is filled, for each distinct row of their inputs, to a program without,
and everything else about it can be differentiated.
"""

from __future__ import annotations

from .compiled import Program, Selection

__all__ = ["Program", "Selection"]
