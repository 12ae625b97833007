r"""How well a device is likely to run a circuit, by its own figures.

The estimate is a product: of :math:`1 - \epsilon` for each instruction with its error, measurements included, and for the
time t that a qubit waits between its first instruction and the circuit's end, of relaxation's average fidelity,

.. math:: F = \frac{3 + e^{-t / T_1} + 2 e^{-t / T_2}}{6} .

What a device does not say counts as perfect. The estimate is for comparing circuits on one device; crosstalk and coherent
errors are not in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from qiskit import QuantumCircuit

__all__ = ["estimated_fidelity"]


def estimated_fidelity(circuit: QuantumCircuit, target: Any) -> float:
    """The estimate for a circuit in a target's gates, from 0 to 1; 0 where the target does not have one of them there."""
    fidelity = 1.0
    starts = np.full(circuit.num_qubits, np.inf)
    ends, busy = np.zeros(circuit.num_qubits), np.zeros(circuit.num_qubits)
    for instruction in circuit.data:
        name, qubits = instruction.operation.name, [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        begin, length = ends[qubits].max(initial=0.0), 0.0
        if name != "barrier":
            if not target.instruction_supported(name, tuple(qubits)):
                return 0.0
            known = (target[name] or {}).get(tuple(qubits))
            fidelity *= 1 - (getattr(known, "error", None) or 0.0)
            length = getattr(known, "duration", None) or 0.0
            starts[qubits] = np.minimum(starts[qubits], begin)
        ends[qubits] = begin + length
        busy[qubits] += length
    for qubit in np.flatnonzero(np.isfinite(starts)).tolist():
        fidelity *= _fidelity_of_waiting(ends.max() - starts[qubit] - busy[qubit], target, qubit)
    return fidelity


def _fidelity_of_waiting(seconds: float, target: Any, qubit: int) -> float:
    properties = target.qubit_properties
    known = properties[qubit] if properties else None
    kept = [1.0 if not (time := getattr(known, name, None)) else math.exp(-seconds / time) for name in ("t1", "t2")]
    return (3 + kept[0] + 2 * kept[1]) / 6
