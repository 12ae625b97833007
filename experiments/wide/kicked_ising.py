r"""The kicked Ising model on a chip, as a circuit and as layers.

Each qubit begins in a state of its own, :math:`R_Z(\varphi) R_Y(\theta) |0\rangle`. A kick is
:math:`\prod_i e^{-i h_i X_i / 2} \prod_{(i, j)} e^{-i J_{ij} Z_i Z_j / 2}`, over the qubits and the couplings of the chip;
all kicks have the same couplings J and fields h. What is read is Z of each qubit.

After L kicks it depends on the qubits that are up to L couplings away, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector

from qiskit_torch_bridge import QuantumLayer

from .chips import Chip

LEAST, MOST = 0.3, 1.2
"""Couplings and fields of a hidden model are between these, in radians."""


def kicked_ising(
    chip: Chip, layers: int, *, coupled: bool = True
) -> tuple[QuantumCircuit, list[Parameter], list[Parameter]]:
    """The circuit, its inputs and its weights.

    Args:
        chip: Its qubits are those of the circuit.
        layers: Kicks.
        coupled: Whether there are couplings.

    Returns:
        The circuit; theta and phi of each qubit; the couplings, if there are any, then the fields.
    """
    couplings = chip.couplings if coupled else ()
    n = chip.num_qubits
    state, strengths, fields = (
        ParameterVector("x", 2 * n),
        ParameterVector("J", len(couplings)),
        ParameterVector("h", n),
    )
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(state[2 * qubit], qubit)
        circuit.rz(state[2 * qubit + 1], qubit)
    for _ in range(layers):
        for strength, pair in zip(strengths, couplings, strict=True):
            circuit.rzz(strength, *pair)
        for qubit in range(n):
            circuit.rx(fields[qubit], qubit)
    return circuit, [*state], [*strengths, *fields]


def layer_of(chip: Chip, layers: int, options: Mapping[str, Any], *, coupled: bool = True) -> QuantumLayer:
    """A layer whose weights, unless the options give others, are all in the middle of where they may be."""
    circuit, inputs, weights = kicked_ising(chip, layers, coupled=coupled)
    start = torch.full((len(weights),), (LEAST + MOST) / 2)
    return QuantumLayer(circuit, inputs=inputs, weights=weights, **{"init": start, **options})


def hidden_weights(chip: Chip, generator: torch.Generator) -> torch.Tensor:
    """Couplings, then fields, all uniform."""
    return LEAST + (MOST - LEAST) * torch.rand(len(chip.couplings) + chip.num_qubits, generator=generator)


def product_states(rows: int, chip: Chip, generator: torch.Generator) -> torch.Tensor:
    """Angles of states, each qubit's uniform on its sphere; shape (rows, 2 qubits)."""
    uniform = torch.rand(rows, chip.num_qubits, 2, generator=generator, dtype=torch.float64)
    polar, azimuth = torch.acos(1 - 2 * uniform[..., 0]), 2 * torch.pi * uniform[..., 1]
    return torch.stack([polar, azimuth], dim=-1).flatten(1).float()
