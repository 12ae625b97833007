r"""States and their geometry: amplitudes, density matrices, entropies, fidelities, metrics and Fisher information.

These are methods of :class:`qiskit_torch_bridge.QuantumLayer`.

    layer = QuantumLayer(circuit, inputs=x, weights=w)
    layer.state(features)  # (..., 2**n) amplitudes; density_matrix(features, qubits), purity, entropy, mutual_information
    layer.fidelity(features, others)
    layer.metric_tensor(features)  # (..., W, W): quantum_fisher(features) is four times it
    layer.classical_fisher(features)  # of a layer that reads probabilities
    layer.bind(features[0])  # a QuantumCircuit

**What they are computed from.** States are exact: the adjoint simulator's, whatever ``layer.shots`` is, on the backend
``"statevector"``; on a ``DensityMatrixBackend`` (or ``"noisy:NAME"``) density matrices with its noise. Other backends show
no states, and say so. Everything is differentiable by features and weights: the first order takes one sweep back, as
expectation values do, and higher orders are made of states at shifted angles
(:mod:`qiskit_torch_bridge.geometry.state_function`).

**What shots can measure** are fidelities, by a circuit and its inverse, on any backend: the metric tensor
(:mod:`qiskit_torch_bridge.geometry.measured_metric`) and kernels (:class:`qiskit_torch_bridge.FidelityKernel`), with
standard errors, and a quote before.

**Qubits** are numbered as in Qiskit, little-endian, and as the circuit had them before transpiling. Qubits that nothing acts
on are in 0, and are part of the state.

**The phase.** A state is known up to a global phase, which may depend on the parameters.
"""
