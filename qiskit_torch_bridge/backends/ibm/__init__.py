r"""IBM hardware: every circuit costs queue time and money, so nothing paid for is lost, and nothing is paid twice.

```python
backend = IBMBackend("ibm_fez", max_qpu_seconds=60)   # needs a saved account; "fake_fez" rehearses without one
layer = QuantumLayer(circuit, inputs=x, weights=w, backend=backend, shots=200, seed=1)
layer.quote(batch_size=4)                             # jobs, executions, estimated seconds on the processor
```

**One job a training step.** The values and all shifted points of the gradient are the same circuit at many angles: one
broadcast PUB a measurement basis. Forward sends the gradient's points along, and backward finds them answered. What needs
no gradient belongs under ``torch.no_grad()``. :mod:`qiskit_torch_bridge.backends.ibm.workload` cuts what is too large for
one job.

**A price before, a cap throughout.** :mod:`qiskit_torch_bridge.backends.ibm.prices` estimates what IBM bills (some 2 s a
job, then each execution's circuit and repetition delay), and ``max_qpu_seconds``, ``max_shots`` and ``max_jobs`` stop
before the submission that would pass them, with :class:`qiskit_torch_bridge.BudgetExceeded`.

**A ledger.** Every job is on disk before it is sent, its id as soon as there is one, its result when it comes
(:mod:`qiskit_torch_bridge.backends.ibm.ledger`). The same program with the same seed, run again after whatever stopped it,
reads finished jobs, waits for queued ones and finds, by its tag, one whose submission was cut off
(:mod:`qiskit_torch_bridge.backends.ibm.sending`). A new run needs a new seed, ``run`` or ledger.

**A test before the first job.** The transpiled circuits are simulated here and must give the logical circuit's answers
(:mod:`qiskit_torch_bridge.backends.selftest`): swapped bits and wrong layouts cost nothing.

**Faults.** Passing ones (network, overload, maintenance) are retried within a stated time
(:class:`qiskit_torch_bridge.Patience`); others say at once what to do (:mod:`qiskit_torch_bridge.backends.ibm.faults`,
:mod:`qiskit_torch_bridge.backends.ibm.errors`). No message, log or file holds a key or a token.

**A passport** (:class:`qiskit_torch_bridge.Passport`) in every result says where and how it was measured: calibration,
layout, jobs, seconds, versions. ``shadow=True`` simulates everything exactly as well, and tells shot noise from the
device's bias.

**Recordings.** A run's ledger becomes a small file that :class:`qiskit_torch_bridge.Replay` plays in class or in CI,
without an account (:mod:`qiskit_torch_bridge.backends.ibm.recording`).

None of this has met a real device: it was tested against IBM's own client with a server that imitates the service, and on
fake devices. Sessions bill the time between jobs, which no estimate here knows.
"""
