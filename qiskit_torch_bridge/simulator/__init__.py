r"""Performance: the exact simulator, and what a training step costs.

A step on ``statevector`` is one forward simulation of the batch and one sweep back. What makes it fast:

* **Fusion.** Rotations that follow each other on a qubit are one unit quaternion; CNOT, CZ, SWAP and Toffoli gates in a row
  one signed permutation; a circuit of real gates has no imaginary parts (:mod:`qiskit_torch_bridge.simulator.lowering`,
  :mod:`qiskit_torch_bridge.simulator.plan`).
* **Cache.** Gates are gathered into passes over blocks of 13 qubits' amplitudes, each of which stays in the processor's
  cache while all its gates are applied. Of small circuits, eight rows of the batch lie side by side in a vector.
* **One call.** A batch of small states goes from features and weights to values in one call of compiled code, and back in
  another (:mod:`qiskit_torch_bridge.simulator.step`); no array changes hands in between.
* **Explicit vectors.** The loops are compiled by numba with instructions of the processor at hand
  (:mod:`qiskit_torch_bridge.simulator.kernels`, :mod:`qiskit_torch_bridge.simulator.vectors`): once on a machine, 10 to
  25 seconds; later processes read the machine code.
* **Sharing.** Coefficients are computed only where an angle differs from the row before; the shifted circuits of a shift
  rule begin at the state that they share with the one before.
* **One sweep.** The adjoint gradient costs one backward pass whatever the number of weights and outputs, and stops at the
  first angle whose gradient is wanted. Frozen weights and plain data shorten it.
* **Readout.** Observables with the same flips are read by one Walsh-Hadamard transform; shots are multinomial draws
  (:mod:`qiskit_torch_bridge.simulator.outcome_kernels`), not repetitions.

Batches run in parts that bound the memory, parts in as many threads as ``torch.get_num_threads()`` says
(:mod:`qiskit_torch_bridge.simulator.engine`, :mod:`qiskit_torch_bridge.simulator.threads`); results depend on neither.

**Light cones.** What is measured on one qubit of a shallow circuit depends on a few gates and qubits, its light cone
(:mod:`qiskit_torch_bridge.program.light_cones`). From ten qubits on, each Pauli string is simulated on its own, strings
together where that is less work, and the whole state is taken where it is the least. Cones that are alike are rows of one
batch (:mod:`qiskit_torch_bridge.simulator.cone_plan`), so time and memory grow linearly with the number of qubits: two
layers on 100 qubits take a few milliseconds a step. ``layer.plan()`` says what is simulated. Shots of outputs whose cones
share a qubit are drawn from the joint state of all of them, as on hardware. Where that is too wide,
``StatevectorBackend(joint_shots=False)`` draws each cone by itself: right for each string, without covariance between
cones. What is too wide in any case is refused with the string, the number of its cone's qubits, and the ways out.

**Noise.** A state with noise is the vector of the expectation values of its Pauli strings, up to 4**n real numbers: gates
with their noise are few sparse maps of it, and strings that nothing depends on are left out
(:mod:`qiskit_torch_bridge.simulator.density_plan`, :mod:`qiskit_torch_bridge.simulator.density_kernels`). Gradients are one
sweep here too; circuits that begin alike (shifted ones do) are simulated once as far as they do. Four qubits cost a fifth of
a millisecond a step, nine a twentieth of a second, each further one four to five times more. The same step without noise is
four times as fast at two qubits and fifteen times at ten; on Aer it takes a hundred times as long at two qubits, and
thousands of times at six. Memory is the limit: up to 1.6 GiB at ten qubits and 6 GiB at eleven; more than there is, is
refused. Here too, wide circuits are simulated by light cones (:mod:`qiskit_torch_bridge.simulator.noisy_cones`): two layers
on all couplings of a device of 127 qubits, with its calibrated noise, take some hundredths of a second a step. Where cones
are too wide, there are Aer's trajectories (2**n numbers, and a simulation for every shot).

**Wide circuits.** Where light cones have too many qubits for states, Pauli strings are taken back through the circuit
(:class:`qiskit_torch_bridge.PauliBackend`; :mod:`qiskit_torch_bridge.simulator.propagation_plan`,
:mod:`qiskit_torch_bridge.simulator.propagation_kernels`). A gradient by all angles costs about as much again as the value.

**Rules of thumb.** Small circuits cost a twentieth of a millisecond, mostly PyTorch's autograd: give them larger batches.
From some 14 entangled qubits on, time doubles with each. Parameter shift costs 2 W simulations, adjoint one sweep: leave the
choice to the layer. Error bars are computed when they are looked at, and cost a second simulation then. On Aer the time is
Aer's: for ideal shots use ``statevector``. On hardware a job costs two seconds whatever is in it, so the number of
jobs is what counts. Several processes on one machine want one thread each (``torch.set_num_threads(1)``).

The benchmark in this project's repository measures all this beside other libraries.
"""
