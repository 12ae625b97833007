r"""Optimizers that know the circuit: natural gradient, sequential minimisation, shots by what they are worth.

Each is a ``torch.optim.Optimizer`` of the weights of a model's quantum layers, with a parameter group for each layer:
PyTorch's learning rate schedulers and ``state_dict()`` work. Other parameters are for an ordinary optimizer beside it.

| optimizer | a step | needs |
|---|---|---|
| :class:`qiskit_torch_bridge.QuantumNaturalGradient` | the gradient, and the metric of the states | |
| the same with ``approximation="spsa"`` | the gradient, and four fidelities a row | |
| :class:`qiskit_torch_bridge.Rotosolve` | 2R + 1 losses a weight of R frequencies | a loss linear in the outputs |
| :class:`qiskit_torch_bridge.CANS` | the gradient; sets the shots of the next | shots, a Lipschitz constant |

    optimizer = QuantumNaturalGradient(layer, lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        layer().sum().backward()
        optimizer.step()

**What a step costs**, before it is taken: ``layer.quote(batch_size)`` for the gradient,
:meth:`qiskit_torch_bridge.QuantumNaturalGradient.quote` for the metrics, :meth:`qiskit_torch_bridge.Rotosolve.quote`
for a whole sweep. What was spent is in ``layer.total_circuits`` and ``layer.total_shots``.

Ordinary optimizers (Adam, SGD) with ``gradient="spsa"`` make Spall's SPSA; shots by a fixed plan or a target of the
signal-to-noise ratio: :mod:`qiskit_torch_bridge.schedules`.
"""

from __future__ import annotations

from .cans import CANS
from .natural_gradient import QuantumNaturalGradient
from .rotosolve import Rotosolve

__all__ = ["CANS", "QuantumNaturalGradient", "Rotosolve"]
