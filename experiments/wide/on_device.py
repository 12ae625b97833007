"""A trained circuit on the device: what its noise makes of the outputs, and what a step of training would cost there.

A noisy circuit of 127 qubits is no state that could be kept. An output depends on the gates behind which it stands, though,
and on their noise. Where gates of a layer commute without noise, and cancel, they do not quite with it, so that with noise
more qubits have an influence: for two kicks up to four couplings away, but the further the less. Those that are nearest are
simulated, as a density matrix, for each output by itself.
"""

from __future__ import annotations

import torch
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import SparsePauliOp

from qiskit_torch_bridge import DensityMatrixBackend, IBMBackend, QuantumLayer, Quote

from .chips import Chip
from .kicked_ising import kicked_ising, layer_of


def noisy_magnetisations(
    chip: Chip, layers: int, weights: torch.Tensor, states: torch.Tensor, *, most: int
) -> torch.Tensor:
    """Z of each qubit with the noise of the device, its readout errors included.

    Args:
        chip: Whose noise it is.
        layers: Kicks.
        weights: Couplings, then fields.
        states: Shape (N, 2 qubits).
        most: Qubits that are simulated for an output.

    Returns:
        Shape (N, qubits).
    """
    from qiskit_aer.noise import NoiseModel

    circuit, inputs, names = kicked_ising(chip, layers)
    on_device = transpile(circuit, chip.device, initial_layout=chip.physical, optimization_level=1, seed_transpiler=0)
    backend = DensityMatrixBackend(NoiseModel.from_backend(chip.device))
    outputs = []
    for qubit in chip.physical:
        part = _around(on_device, qubit, most)
        used_inputs, used_weights = (
            [i for i, parameter in enumerate(parameters) if parameter in part.parameters]
            for parameters in (inputs, names)
        )
        layer = QuantumLayer(
            part,
            inputs=[inputs[i] for i in used_inputs],
            weights=[names[i] for i in used_weights],
            init=weights[used_weights],
            observables=[SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0)], part.num_qubits)],
            backend=backend,
        )
        with torch.no_grad():
            outputs.append(layer(states[:, used_inputs]))
    return torch.cat(outputs, dim=1)


def _around(circuit: QuantumCircuit, qubit: int, most: int) -> QuantumCircuit:
    """The gates that act on no other than the qubits that reach one first, when gates are gone back from the end."""
    pairs = [
        tuple(circuit.find_bit(bit).index for bit in instruction.qubits)
        for instruction in circuit.data
        if len(instruction.qubits) == 2
    ]
    away = {qubit: 0}
    for a, b in reversed(pairs):
        for one, other in ((a, b), (b, a)):
            if one in away:
                away[other] = min(away.get(other, away[one] + 1), away[one] + 1)
    kept = set(sorted(away, key=lambda each: (away[each], each))[:most])
    part = circuit.copy_empty_like()
    for instruction in circuit.data:
        if kept.issuperset(circuit.find_bit(bit).index for bit in instruction.qubits):
            part.append(instruction)
    return part


def quote_of_step(chip: Chip, layers: int, *, rows: int, shots: int) -> Quote:
    """What a step of training would cost on the device: its circuits by parameter shift, its time.

    Args:
        chip: Of the device.
        layers: Kicks.
        rows: States.
        shots: Of each circuit.
    """
    with IBMBackend(chip.device.name, ledger=":memory:") as backend:
        return layer_of(chip, layers, {"backend": backend, "shots": shots}).quote(rows)
