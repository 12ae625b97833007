r"""Gradient rules: how the derivatives of a circuit follow from values of the same circuit.

| rule | circuits a row | bias | needs |
|---|---|---|---|
| :class:`ParameterShift` | 2 W | none | nothing |
| :class:`FiniteDifference` | 2 D (central), D + 1 (forward) | the step's | nothing |
| :class:`SPSA` | 2 a sample | the step's; the directions scatter | nothing |
| :class:`Adjoint` | none, one backward sweep | none | exact simulation |

W counts the angles whose gradient is wanted, D the sets of them that move together (angles of one parameter).

**Every rule but one is a table.** A circuit is compiled to rotations each of which has an angle of its own
(:mod:`qiskit_torch_bridge.program`). A rule is a frozen value that says at which K shifted points the circuit is to be
evaluated, and with which coefficients the values there add up to derivatives (:class:`qiskit_torch_bridge.Stencil`):

.. math:: \frac{\partial f}{\partial\theta_a} \approx \sum_k C_{ak}\, f(\theta + S_k) .

It never runs a circuit. All points of a batch go to the backend in one call, and what the weights and inputs get follows
from the angles' derivatives by torch's chain rule, so that ``2 * w``, ``x * w`` and one weight in many gates need no rule.

**Parameter shift.** A rotation :math:`e^{-i\theta P/2}` with :math:`P^2 = 1` makes every expectation value a sinusoid of
its angle, :math:`f(\theta) = a + b\cos\theta + c\sin\theta`. The derivative of a sinusoid is a difference of two of its
values, at any distance:

.. math:: f'(\theta) = \frac{f(\theta + s) - f(\theta - s)}{2\sin s}

exactly (Mitarai et al., Phys. Rev. A 98, 032309 (2018), eq. 8; Schuld et al., Phys. Rev. A 99, 032331 (2019); for other
distances Mari, Bromley and Killoran, Phys. Rev. A 103, 012405 (2021)). With S shots a circuit its variance is

.. math:: \frac{\sigma^2(\theta + s) + \sigma^2(\theta - s)}{4 S \sin^2 s},

at most :math:`1/2S` for a Pauli observable at :math:`s = \pi/2`, the default. Gates whose generator has more than one
frequency (``crx``, ``cu``, ``PauliEvolutionGate``) are decomposed first, so that two terms do.

**Finite differences** ask for a step h. The truncation error of the central difference is :math:`h^2 f^{(3)}/6`, the
variance of its shot noise :math:`\sigma^2 / 2 S h^2`: a step of 1e-6 with 100 shots has an error of some 1e5. The default
step balances the two (:class:`FiniteDifference`), so it depends on the shots. It pays where one parameter is in many gates.

**SPSA** moves all angles at once along random signs (Spall, IEEE Trans. Autom. Control 37, 332 (1992)): two circuits
whatever the number of weights, with the other derivatives as noise.

**Adjoint** differentiation goes back through an exact simulation once and finds all derivatives on the way (Jones and
Gacon, arXiv:2009.02823). It is the default where there are no shots.

**Higher orders and transforms.** Backward is made of the same differentiable function at shifted points, so second
derivatives, ``torch.func.grad``, ``vmap``, ``jacrev``, ``jacfwd`` and ``hessian`` work, with shots too.

**Light cone.** Angles that cannot influence what is measured cost no circuits, nor do those of frozen weights or plain
data.

Angles are in radians. How far to trust a gradient that was measured: :mod:`qiskit_torch_bridge.shots`. A rule of your own:
:mod:`qiskit_torch_bridge.testing`.
"""

from __future__ import annotations

from .rules import SPSA, Adjoint, FiniteDifference, GradientRule, ParameterShift
from .stencil import Stencil

__all__ = ["SPSA", "Adjoint", "FiniteDifference", "GradientRule", "ParameterShift", "Stencil"]
