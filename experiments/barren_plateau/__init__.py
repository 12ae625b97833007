"""Barren plateaus: how fast gradients vanish as circuits grow, and what their start and their depth change.

The circuits of McClean et al., Nat. Commun. 9, 4812 (2018): RY(pi/4) on each qubit, then layers of a rotation on each
qubit about an axis drawn from X, Y and Z, and CZ gates between neighbours. What is measured is the variance of the
derivative by the first angle, over circuits; each sample is another circuit with other angles.
"""

from .plateau_study import STUDY

__all__ = ["STUDY"]
