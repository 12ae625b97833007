"""Shot noise: how far it goes down with the shots, what it costs in training, and what more shots do not cure.

Three parts. ``scaling``: the standard error of a value and of its gradient by each rule against the shots, as it is seen in
repetitions, as the library reports it and as theory has it. ``training``: accuracy against the shots spent, with constant,
growing and adaptive shots, shared out evenly or by sensitivity. ``noise``: the error of a noisy simulator against the
shots, which stops at the bias.
"""

from .shot_study import STUDY

__all__ = ["STUDY"]
