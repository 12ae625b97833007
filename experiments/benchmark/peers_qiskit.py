"""Adapter of Qiskit Machine Learning: ``TorchConnector`` around an ``EstimatorQNN``."""

from __future__ import annotations

from typing import Any

import torch
from qiskit.quantum_info import SparsePauliOp
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN

from .gate_lists import Problem, Step, quantum_circuit, torch_step, z_labels


def build(problem: Problem, shots: int | None, seed: int) -> Step:
    """Its default estimator for exact values, Aer's ``EstimatorV2`` for shots; parameter shift for both.

    ``EstimatorV2`` does not run shots: it adds Gaussian noise to exact values, whose size is asked for here as that of
    so many shots at worst.
    """
    circuit, inputs, weights = quantum_circuit(problem)
    options: dict[str, Any] = {}
    if shots is not None:
        from qiskit_aer.primitives import EstimatorV2

        precision = shots**-0.5
        estimator = EstimatorV2(options={"default_precision": precision, "backend_options": {"seed_simulator": seed}})
        # The gradient runs at the estimator's own default precision, whatever the network's is: both are set.
        options = {
            "estimator": estimator,
            "gradient": ParamShiftEstimatorGradient(estimator),
            "default_precision": precision,
        }
    network = EstimatorQNN(
        circuit=circuit,
        observables=[SparsePauliOp(label) for label in z_labels(problem)],
        input_params=list(inputs),
        weight_params=list(weights),
        input_gradients=problem.wants_input_gradients,
        **options,
    )
    connector = TorchConnector(network, initial_weights=problem.weights)
    # It starts from float32 whatever it is given; the comparison is about the circuit, not about rounded weights.
    connector.weight.data = torch.tensor(problem.weights)
    return torch_step(connector, problem, connector.weight)
