"""The bridge itself: a ``torch.autograd.Function`` that runs a circuit forward, and at shifted angles backward.

PyTorch cannot see into a circuit that runs in a simulator or on hardware, so this Function stands for it in the graph.
Its design:

* It knows angles only. The map from inputs and weights to angles is ordinary torch
  (:mod:`qiskit_torch_bridge.program.angles`), so chain rules for shared parameters and expressions are torch's business.
* Backward calls the *same* Function at all shifted points of the batch in one go. So it is itself differentiable, to
  any order, with shots too, and ``torch.func`` transforms pass through.
* Angles come in groups by what they depend on, each a tensor of its own; ``ctx.needs_input_grad`` then says which
  groups are worth circuits; angles outside the light cone of what is measured cost none either.
  (``Tensor.requires_grad`` would not do: it reads False inside ``torch.func.grad(torch.vmap(...))``.)
* ``vmap`` is written by hand: a mapped axis is folded into the batch, so that it costs one backend call, not one an
  element.
* Plain calls, exact values of ordinary tensors, take a shorter way (:mod:`qiskit_torch_bridge.bridge.plain`): one call of
  compiled code forward and one backward, so that a small circuit costs about what a custom Function costs anyway.
* In graphs that PyTorch traces or compiles a layer is an operator (:mod:`qiskit_torch_bridge.bridge.operators`).
* Where calls wait in a queue, the points of the gradient leave with the values
  (:class:`qiskit_torch_bridge.bridge.evaluation.LookAhead`), and backward finds them answered: a training step waits
  once.
"""
