"""Error mitigation: methods that measure more, or correct what was measured, so that values have less bias.

A method is a frozen dataclass with one method of its own, :meth:`Mitigation.plan`, which says what is measured in place of a
program and what its values are made of. Gradient rules know nothing of it, and it knows nothing of gradients: every point of
a shift table is evaluated with the same mitigation, and has its own standard error.

:class:`qiskit_torch_bridge.ZeroNoiseExtrapolation` extrapolates values that were measured with folded gates to no noise.
"""
