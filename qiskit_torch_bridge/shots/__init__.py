r"""Shots and statistics: what a call measured, with standard errors, and what other shots would give.

**Values.** What is measured is a list of groups of qubit-wise commuting Pauli terms, or of outcomes. A measured bit string
b contributes a score :math:`s_m(b)` to output m; the output is the mean of the score over S shots (summed over the groups),
its standard error :math:`\sigma / \sqrt{S}` with the unbiased sample variance :math:`\sigma^2` of the same scores. Terms
that were measured in the same shots are correlated, and this counts their covariances.

```python
layer = QuantumLayer(circuit, inputs=x, weights=w, shots=1000)
layer(features).sum().backward()
result = layer.last_run
result.standard_errors           # of every output, shape (N, M)
result.gradient_standard_errors  # of every weight's gradient, shape (W,)
result.signal_to_noise           # how many standard errors a gradient is long: below 1 it is mostly noise
```

**Gradients.** The gradient by weight w is a sum over the rows n of the batch and the points k of the shift table
(:mod:`qiskit_torch_bridge.gradients`),

.. math:: g_w = \sum_{n,k} c_{nkw} \sum_m u_{nm} f_m(\theta_n + S_k), \qquad
    c_{nkw} = \sum_a C_{ak} \frac{\partial\theta_{na}}{\partial w},

with the upstream gradient u. Every row and point is a measurement of its own, and independent; the outputs m of one are
not, because they come from the same shots. So

.. math:: \mathrm{Var}[g_w] = \sum_{n,k} c_{nkw}^2\, \mathrm{Var}\Big[\sum_m u_{nm} f_m(\theta_n + S_k)\Big] ,

with all covariances (:mod:`qiskit_torch_bridge.shots.covariance`), estimated from the counts of the gradient itself. What
shots do not cause is not in it: the bias of a finite difference's step, the scatter of SPSA's random directions, the
errors of a device, and the noise of the measured values in the upstream gradient. Backends that give counts have it all;
an Estimator gives variances only, and its outputs are taken as independent.

**Prediction.** After exact simulation, :meth:`qiskit_torch_bridge.LayerResult.predicted` gives what so many shots would: the
expectations, with standard errors from the exact probabilities. A study can be planned before it costs anything.

**Bias of losses.** Values and parameter-shift gradients are unbiased with any number of shots. A loss that is not linear
in the outputs is not, because :math:`E[\ell(f)] \ne \ell(E[f])`; its bias falls as :math:`1/S`.

**Randomness.** One ``seed`` makes a run repeatable to the last bit, and every call still draws fresh shots
(:mod:`qiskit_torch_bridge.shots.seeding`). Qiskit's and Aer's own primitives are reseeded at every call, because an integer
seed makes them repeat their noise. Shots from ``statevector`` are exact multinomial draws from exact probabilities.
*To the last bit* means on the same kind of processor, with the same versions and as many threads: others add and multiply
in another order, so that the last digits differ. Exact values then agree to rounding. Shots are the same but for rare
ones, except on a rehearsal of IBM hardware, where one digit of one angle makes another job with a seed of its own.

**Fewer shots.** :mod:`qiskit_torch_bridge.schedules` changes them during training,
:mod:`qiskit_torch_bridge.shots.allocation` gives them to the rows that matter; :mod:`qiskit_torch_bridge.testing` checks
gradients that have shot noise.
"""
