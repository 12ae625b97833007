"""The exact simulator: compiled loops over batches of states, with adjoint gradients and shots.

* :mod:`~.lowering`: a program's circuit as four kinds of gates.
* :mod:`~.plan`: gates fused to operations, operations put into passes over blocks that fit the processor's cache.
* :mod:`~.kernels`, :mod:`~.readout_kernels`, :mod:`~.sampling`: the compiled loops, on :mod:`~.vectors`.
* :mod:`~.engine`: batches in parts, parts in :mod:`~.threads`.
"""
