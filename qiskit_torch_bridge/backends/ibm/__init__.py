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

**What the noise model explains, and what not.** ``shadow="noisy"`` also simulates the circuits that are sent by the noise
model of the device's calibration, and splits the difference into shot noise, modelled noise, and the rest:

```python
backend = IBMBackend("fake_manila", shadow="noisy")
layer = QuantumLayer(circuit, inputs=x, weights=w, backend=backend, shots=2000, seed=1)
layer(features)
layer.last_run.shadow.summary()["values"]   # rms, shot_noise, device_bias = modelled_noise and rest, rest_z
layer.last_run.shadow.values.z_scores       # (measured - modelled) / standard error, of each output
```

The ledger has all numbers, and the model itself: the same program with the same seed, run again, reports the same split
even if the device has been calibrated anew. Of a fake device the rest is zero within its scatter (``rest_z`` seldom beyond
2); of a real one it is what calibrations do not tell. Some ten qubits are the most, whatever the device has; for more the
layer is refused before there is a job, and ``shadow=True`` does. :mod:`qiskit_torch_bridge.backends.ibm.modelled_noise`
says what the model leaves out and how mitigation is treated; :mod:`qiskit_torch_bridge.shots.shadow` has the formulas.
A :class:`qiskit_torch_bridge.Replay` has no shadow of either kind: a recording has no circuits.

**Recordings.** A run's ledger becomes a small file that :class:`qiskit_torch_bridge.Replay` plays in class or in CI,
without an account (:mod:`qiskit_torch_bridge.backends.ibm.recording`).

**From no account to a trained step**

1. ``qtb check fake_manila``: the whole way without an account.
2. Make an account at https://quantum.cloud.ibm.com (the open plan is free: 10 minutes in 28 days, no sessions), an instance
   and an API key.
3. Once, in Python: ``QiskitRuntimeService.save_account(channel="ibm_quantum_platform", token="...", instance="...")``.
4. ``qtb check``: account, plan, time left, devices and queues, quotes, layout test; says what is wrong and what to do.
5. ``qtb check --submit``: one small job, 2 to 3 s.
6. A training. Any fake device (``backend="ibm:fake_manila"``) goes the same way in this process, at no cost.
7. ``qtb jobs LEDGER``: what was sent, what it cost; ``--collect``, ``--cancel``, ``--forget``.
8. ``qtb record LEDGER FILE.npz``: anyone can measure the same again with ``backend=Replay("FILE.npz")``, shot by shot; where
   the model asks for something that was not recorded, the error says so.

**Side by side.** ``packing="auto"`` executes many rows at once, each on qubits of its own:

```python
backend = IBMBackend("ibm_fez", packing="auto")       # or a number of regions, or Packing(spacing=2, rotate="shots")
layer.last_run.passport.packing[0].layouts_of(3)      # the qubits that measured row 3
```

The transpiled circuit is copied to other qubits with couplers in the same places, the best first by the device's
calibration, with an idle qubit between neighbours (:mod:`qiskit_torch_bridge.backends.ibm.regions`). The executed circuit
has a copy in each region, and its results are cut apart again: values, error bars, recordings and replays are as before.
``circuits`` and ``shots`` of quotes, ledger and ``last_run`` remain those of rows; ``executions`` and seconds are those of
the executed circuit. Where there are fewer rows than regions, a Sampler's row takes its shots in equal pieces on several
regions, exactly as many as were asked for; an Estimator's rows stay whole, and what regions measure for no row is left out.
Regions are chosen once a circuit and kept in the ledger. A rehearsal on a fake device simulates them one by one.

Regions differ, and standard errors do not know it: they are right, or slightly too large, for the mean of the regions that
measured a row, and say nothing about its distance from the exact value. :class:`qiskit_torch_bridge.Packing` says how rows
are rotated over regions, and what that costs.

**What fits into the open plan's ten minutes**, by the quotes for an IBM Heron device (``fake_fez``): seconds of a step, and
steps in ten minutes, one row after the other and with ``packing="auto"``.

| a training step | circuits | 100 shots | packed | 1000 shots | packed |
|---|---|---|---|---|---|
| textbook's qubit, batch 1 | 3 | 2.1 s: 289 | 2.0 s: 299 | 2.8 s: 217 | 2.0 s: 298 |
| the same, batch 50 | 150 | 5.8 s: 103 | 2.0 s: 293 | 40 s: 15 | 2.4 s: 245 |
| dressed: 4 qubits, 8 weights, batch 4, behind trainable layers | 100 | 4.5 s: 132 | 2.1 s: 279 | 27 s: 22 | 3.4 s: 174 |
| the same on plain data (or a frozen network before it) | 68 | 3.7 s: 161 | 2.1 s: 286 | 19 s: 31 | 3.0 s: 202 |
| the same, first half of the weights frozen | 36 | 2.9 s: 206 | 2.1 s: 292 | 11 s: 54 | 2.5 s: 239 |
| behind trainable layers, ``gradient="spsa"`` | 12 | 2.3 s: 260 | 2.0 s: 297 | 5.0 s: 119 | 2.2 s: 276 |

Below some thousand executions a job costs its two seconds, whatever is in it: a larger batch is nearly free there. Shots
that share a twirl are not independent, which standard errors do not know.

**Fractional gates.** ``IBMBackend("ibm_fez", fractional_gates=True)`` opens the device with ``rx`` of any angle and with
``rzz``. Free rotations of two qubits (``rzz``, ``rxx``, ``ryy``, ``rzx``, ``cp``, in controlled rotations and feature maps)
are one ``rzz`` then in place of two ``cz``, if the estimated fidelity is higher. It takes 0 to pi / 2: each row's angle is
folded into that range, and what makes up for it becomes part of the rotations beside it
(:mod:`qiskit_torch_bridge.backends.fractional`). This is ``fake_fez``, without fractional gates and with them; a step is
four rows of 1000 shots. (The fake device has none; they were added with the errors of ``sx`` and ``cz``, as IBM has them.)

| circuit (4 qubits) | gates of two qubits | microseconds | estimated fidelity | seconds of a step |
|---|---|---|---|---|
| layerwise learning, 4 layers | 12, 12 | 2.53, 2.44 | 0.933, 0.935 | 43.42, 43.40 |
| dressed circuit, 2 layers | 6, 6 | 1.98, 1.98 | 0.955, 0.954 | 17.12, 17.12 |
| kicked Ising, 2 layers | 12, 6 | 2.35, 1.88 | 0.936, 0.957 | 25.22, 25.17 |
| ``zz_feature_map``, 2 repetitions | 12, 6 | 2.83, 2.05 | 0.928, 0.954 | 31.33, 31.24 |

So they make fewer errors where rotations of two qubits have free angles, but no step cheaper: the delay between repetitions
is a hundred times a circuit. Two options do not go with them: IBM's zero-noise extrapolation does not amplify the noise of
``rzz``, and gate twirling takes it with ``group="local_pauli"`` only. With those, free rotations use other gates, and
``fractional_gates=True`` is refused. (IBM's documentation excludes PEC and PEA too, which are refused anyway.)
SamplerBackend and EstimatorBackend fold angles likewise; AerBackend and DensityMatrixBackend use other gates for free ones.

**What was tested.** The real cloud: never; there was no account. IBM's own client (qiskit-ibm-runtime 0.51) was tested
against a server that imitates the service, in job, batch and session mode, with faults of every kind; processes were killed
at every step of a submission. If the real service behaves otherwise, tell us.

**Known limits.** Sessions are billed by wall-clock time, which no quote knows. An evaluation too large for one job is cut by
limits and gate times; if a device is calibrated anew between a crash and the resumption of just such an evaluation, its
pieces may be other ones, and are paid for again. Two processes that share a ledger and a run share a session, and the first
to end closes it (the other opens a new one). In a model of several quantum layers, a step that fails in the second measures
the first anew when it is repeated without going back to a checkpoint. Fake devices with a ledger on disk are for one process
at a time.
"""
