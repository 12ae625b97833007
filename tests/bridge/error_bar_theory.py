"""Standard errors of gradients by Qiskit's operator algebra, term by term, for the tests of error bars."""

from functools import cache
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.quantum_info import SparsePauliOp, Statevector

from qiskit_torch_bridge import SPSA, FiniteDifference, LayerResult, ParameterShift, QuantumLayer
from qiskit_torch_bridge.program.readout import PauliGroup

SHOTS = 200
CIRCUITS = [
    "cosine",
    "entangled_pair",
    "only_weights",
    "only_inputs",
    "shared_parameters",
    "global_phases",
    "many_parameters",
    "columns_in_any_order",
    "weight_groups",
    "angles_outside_the_light_cone",
    "expression_input_times_weight_plus_bias",
    "gate_cu",
    "random_0",
    "random_1",
    "library_zz_feature_map",
]
RULES = {
    "parameter_shift": ParameterShift(),
    "another_shift": ParameterShift(shift=0.7),
    "central": FiniteDifference(),
    "forward": FiniteDifference(step=0.4, scheme="forward"),
    "spsa": SPSA(samples=2),
}


# --- theory -----------------------------------------------------------------------------------------------------------


def operators(layer: QuantumLayer) -> list[list[SparsePauliOp]]:
    """For each measurement the part of every observable that it measures, on all qubits."""
    program = layer.program
    parts = []
    for group in program.readout.groups:
        assert isinstance(group, PauliGroup)
        labels = []
        for support in group.supports:
            label = ["I"] * program.circuit.num_qubits
            for qubit, basis, acts in zip(group.qubits, group.bases, support, strict=True):
                label[-1 - qubit] = basis if acts else "I"
            labels.append("".join(label))
        parts.append([SparsePauliOp(labels, column) for column in group.coefficients.T])
    return parts


def one_shot_variances(layer: QuantumLayer, angles: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """By Qiskit: the variance of ``upstream @ outputs`` from shot to shot, summed over the measurements, for each row."""
    program, parts, found = layer.program, operators(layer), []

    @cache
    def measured(*u: float) -> list[tuple[SparsePauliOp, SparsePauliOp]]:
        """What is measured at once, and its square."""
        sums = [sum((w * part for w, part in zip(u, those, strict=True)), start=0 * those[0]) for those in parts]
        return [(operator, (operator @ operator).simplify()) for operator in sums]

    for row, u in zip(angles, upstream, strict=True):
        state = Statevector(program.circuit.assign_parameters(dict(zip(program.angles, row.tolist(), strict=True))))
        moments = [[state.expectation_value(part).real for part in both] for both in measured(*u.tolist())]
        found.append(sum(square - mean**2 for mean, square in moments))
    return np.array(found)


def weights_of(layer: QuantumLayer) -> list[torch.Tensor]:
    if isinstance(layer.weights, torch.nn.ParameterDict):
        return [layer.weights[name].detach() for name in layer.program.group_names]
    return [torch.zeros(0, dtype=torch.float64) if layer.weights is None else layer.weights.detach()]


def angles_of(layer: QuantumLayer, inputs: torch.Tensor | None, weights: list[torch.Tensor]) -> torch.Tensor:
    groups = layer.program.evaluate_angles(inputs, weights)
    rows = max(len(group) for group in groups)
    return torch.cat([group.expand(rows, -1) for group in groups], dim=1)


def theory(
    layer: QuantumLayer, inputs: torch.Tensor | None, upstream: np.ndarray, stencil: Any
) -> tuple[np.ndarray | None, np.ndarray]:
    """Standard errors of the gradients by inputs and weights with ``SHOTS`` shots, from the formula, term by term."""
    weights = weights_of(layer)
    angles = angles_of(layer, inputs, weights).detach().numpy()
    by_weights = torch.autograd.functional.jacobian(lambda *w: angles_of(layer, inputs, list(w)), tuple(weights))
    slopes = np.concatenate([part.numpy() for part in by_weights], axis=-1)
    by_inputs = None if inputs is None else np.zeros(inputs.shape)
    total = np.zeros(slopes.shape[-1])
    columns = np.flatnonzero(layer.program.influential)
    for n in range(len(angles)):
        row = None if inputs is None else inputs[n : n + 1].detach()
        input_slopes = (
            None
            if row is None
            else torch.autograd.functional.jacobian(lambda x: angles_of(layer, x, weights), row).numpy()[0, :, 0]
        )
        shifts = stencil.shifts if stencil.shifts.ndim == 2 else stencil.shifts[n]
        coefficients = stencil.coefficients if stencil.coefficients.ndim == 2 else stencil.coefficients[n]
        variances = one_shot_variances(layer, angles[n] + shifts, np.tile(upstream[n], (len(shifts), 1))) / SHOTS
        for k, variance in enumerate(variances):
            total += (coefficients[:, k] @ slopes[n][columns]) ** 2 * variance
            if by_inputs is not None:
                by_inputs[n] += (coefficients[:, k] @ input_slopes[columns]) ** 2 * variance
    return None if by_inputs is None else np.sqrt(by_inputs), np.sqrt(total)


def backward(
    layer: QuantumLayer, inputs: torch.Tensor | None, seed: int = 7, upstream: np.ndarray | None = None
) -> tuple[LayerResult, np.ndarray]:
    values = layer() if inputs is None else layer(inputs)
    if upstream is None:
        rows = max(1, values.numel() // layer.num_outputs)
        upstream = np.random.default_rng(seed).normal(size=(rows, layer.num_outputs))
    values.backward(torch.tensor(upstream, dtype=values.dtype).reshape(values.shape))
    return layer.last_run, upstream


def flat(numbers: Any) -> np.ndarray:
    if isinstance(numbers, dict):
        return np.concatenate([*numbers.values()])
    return np.zeros(0) if numbers is None else numbers


def gradients(layer: QuantumLayer) -> np.ndarray:
    return np.concatenate([p.grad.numpy() for p in layer.parameters()] or [np.zeros(0)])


def entangled(**options: Any) -> tuple[QuantumLayer, torch.Tensor, np.ndarray]:
    """Inputs, products of inputs and weights, a shared weight, three outputs in two measurements."""
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.ry(x[0], 0)
    circuit.ry(x[1] * w[2], 1)
    circuit.cx(0, 1)
    circuit.rx(w[0], 0)
    circuit.ry(2 * w[1] + w[0], 1)
    circuit.cx(1, 0)
    generator = np.random.default_rng(2)
    options = {"init": torch.tensor(generator.uniform(0, 6, 3)), **options}
    observables = ["IZ", SparsePauliOp(["ZI", "XX"], [0.7, 0.5]), "ZZ"]
    layer = QuantumLayer(circuit, inputs=x, weights=w, observables=observables, **options)
    return layer, torch.tensor(generator.uniform(-1, 1, (3, 2))), generator.normal(size=(3, 3))
