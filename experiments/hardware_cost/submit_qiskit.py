"""A training step with Qiskit Machine Learning on IBM's Estimator: ``TorchConnector`` around an ``EstimatorQNN``."""

from __future__ import annotations

from typing import Any

import torch
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import EstimatorV2
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN

from ..benchmark.gate_lists import Problem, Step, quantum_circuit, torch_step, z_labels


def build(problem: Problem, shots: int, seed: int, device: Any) -> Step:
    """A circuit and observables that fit the device, as its documentation has it; parameter shift with the same shots.

    The network's own pass manager is not used: its gradient would transpile every shifted circuit anew.
    """
    circuit, inputs, weights = quantum_circuit(problem)
    transpiled = generate_preset_pass_manager(optimization_level=2, backend=device, seed_transpiler=seed).run(circuit)
    precision = shots**-0.5
    # The gradient runs at the estimator's own precision, whatever the network's is: both are set.
    estimator = EstimatorV2(mode=device, options={"default_precision": precision})
    network = EstimatorQNN(
        circuit=transpiled,
        observables=[SparsePauliOp(label).apply_layout(transpiled.layout) for label in z_labels(problem)],
        input_params=list(inputs),
        weight_params=list(weights),
        input_gradients=problem.wants_input_gradients,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
        default_precision=precision,
    )
    connector = TorchConnector(network, initial_weights=problem.weights if len(problem.weights) else None)

    def values(features: torch.Tensor) -> torch.Tensor:
        return connector(features.float())

    return torch_step(values, problem, connector.weight if len(problem.weights) else None)
