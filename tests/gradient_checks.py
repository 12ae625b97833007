"""Rules and their tolerances, and the check that their gradients are the oracle's."""

import numpy as np
import torch
from problems import Oracle, Problem, features

from qiskit_torch_bridge import FiniteDifference, ParameterShift, QuantumLayer

EXACT = 1e-7
DIFFERENCES = 1e-4


RULES = {
    "adjoint": ("adjoint", EXACT),
    "parameter_shift": ("parameter_shift", EXACT),
    "another_shift": (ParameterShift(shift=0.4), EXACT),
    "negative_shift": (ParameterShift(shift=-2.0), EXACT),
    "central": ("finite_difference", DIFFERENCES),
    "forward": (FiniteDifference(scheme="forward"), DIFFERENCES),
    "central_step": (FiniteDifference(step=1e-3), DIFFERENCES),
}
SUBSET = [
    "gate_cu",
    "gate_xx_plus_yy",
    "expression_input_times_weight_plus_bias",
    "only_weights",
    "shared_parameters",
    "global_phases",
    "nested_instructions",
    "weight_groups",
    "columns_in_any_order",
    "evolution_by_product_formula",
    "library_zz_feature_map",
]


def weight_gradients(layer: QuantumLayer) -> np.ndarray:
    """The gradients of all weights, group after group."""
    if isinstance(layer.weights, torch.nn.ParameterDict):
        return np.concatenate([layer.weights[name].grad for name in layer.program.group_names])
    return np.zeros(0) if layer.weights is None else layer.weights.grad.numpy()


def check_gradients(checked: Problem, expected: Oracle, tolerance: float, **options) -> None:
    """Compares the gradients by inputs and weights, for a random upstream gradient, with the oracle's."""
    layer = checked.layer(expected.weights, **options)
    inputs = features(expected, requires_grad=True)
    values = layer(inputs)
    upstream = np.random.default_rng(7).normal(size=expected.values.shape)
    values.backward(torch.tensor(upstream).reshape(values.shape))
    by_inputs, by_weights = expected.gradients(upstream)
    how = f"with {options}"
    if inputs is not None:
        np.testing.assert_allclose(inputs.grad, by_inputs, rtol=0, atol=tolerance, err_msg=f"by inputs {how}")
    np.testing.assert_allclose(weight_gradients(layer), by_weights, rtol=0, atol=tolerance, err_msg=f"by weights {how}")
