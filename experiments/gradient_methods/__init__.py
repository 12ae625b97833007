"""Gradient rules side by side on circuits with shots: what each gets wrong, and what its shots buy.

Finite differences, over the step: the bias of exact values, the spread from shots, their sum; the step that is best, and
the rule's default. Then parameter shift, finite differences and SPSA at equal total shots: the error of the whole
gradient, and the angle between it and the exact one.
"""

from .method_study import STUDY

__all__ = ["STUDY"]
