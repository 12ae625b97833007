"""Error mitigation: methods that measure more, or correct what was measured, so that values have less bias.

A method is a frozen dataclass with one method of its own, :meth:`Mitigation.plan`, which says what is measured in place of a
program and what its values are made of. Gradient rules know nothing of it, and it knows nothing of gradients: every point of
a shift table is evaluated with the same mitigation, and has its own standard error.

What goes with which primitive, and what it costs. Options are IBM's (``IBMBackend(..., options=...)``), which this package
hands on; the rest is ``mitigation=[...]``, where methods that read bits come first. "Executions" is the factor of a step.

| | Samplers | IBM's Estimator | other Estimators | Aer, noisy simulator | executions |
|---|---|---|---|---|---|
| ``ReadoutCorrection`` | yes | refused: it gives no bits | refused | yes | 1 + once |
| ``TwirledReadout`` | expectation values | refused, likewise | refused | expectation values | 1 + once |
| option ``resilience.measure_mitigation`` | no | yes, with ``ZeroNoiseExtrapolation`` | no | no | 1 + IBM's learning |
| ``ZeroNoiseExtrapolation`` | yes | yes, unless its own is on | yes | yes | number of factors |
| option ``resilience.zne_mitigation`` | no | yes, alone | no | no | number of its noise factors |
| option ``twirling.enable_measure`` | IBM's, without ``TwirledReadout`` | yes | no | no | 1, rounded up |
| option ``twirling.enable_gates`` | IBM's, with all methods | yes, with all methods | no | no | 1, rounded up |
| option ``dynamical_decoupling`` | IBM's, with all methods | yes, with all methods | no | no | 1 |
| fractional gates | IBM's, with all methods | yes, not with its own extrapolation | no | no | 1 |

"Once" is what is measured once a calibration of the device (:attr:`qiskit_torch_bridge.Quote.once`). With gate twirling and
with IBM's own extrapolation, free angles do not go through fractional gates. Folded gates are all there under twirling and
decoupling: IBM's client adds to circuits and merges no gates of two qubits. Decoupling fills idle times, of which global
folding makes others than the circuit alone has. On simulators without idle noise it would do nothing.

A method of one's own takes some thirty lines: the tests have examples, and so have the project's recipes for researchers.
"""
