"""What the user names as probabilities: the qubits to measure, and the output that each outcome counts towards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from qiskit.circuit import QuantumCircuit, QuantumRegister, Qubit
from qiskit.circuit.exceptions import CircuitError

from ..arguments import refuse_unordered

__all__ = ["QubitsLike", "outputs_of_outcomes", "qubit_indices"]

QubitsLike: TypeAlias = Qubit | QuantumRegister | slice | Sequence[int | Qubit | QuantumRegister | slice | range]
"""Qubits as Qiskit's circuits name them, an index alone excepted."""

_MOST_QUBITS = 20
_MOST_CLASSES = 2**_MOST_QUBITS


def qubit_indices(circuit: QuantumCircuit, given: Any, num_qubits: int, name: str = "probabilities") -> list[int]:
    """The qubits as indices below ``num_qubits``, the number that the circuit had as the user wrote it.

    Args:
        circuit: The circuit, whose qubits and registers they may be.
        given: What the user names.
        num_qubits: The number of qubits.
        name: The argument that names them, for messages.

    Raises:
        TypeError: If something else is among them.
        ValueError: If one is not in the circuit, or named twice.
    """
    refuse_unordered(name, given)
    if isinstance(given, (Qubit, QuantumRegister, slice)):
        given = [given]
    if isinstance(given, Mapping):
        raise TypeError(
            f"{name}: got a mapping, whose values would be lost, expected a list of qubits; multiply the outputs by numbers "
            "instead."
        )
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        lists = "a list of qubits or a QuantumRegister"
        if name == "probabilities":
            lists = "a list of qubits, a QuantumRegister, or True for the measured qubits"
        raise TypeError(f"{name}: got {given!r}, expected {lists}.")
    indices: list[int] = []
    for entry in given:
        if isinstance(entry, slice):
            indices += range(*entry.indices(num_qubits))
        else:
            qubits = entry if isinstance(entry, (QuantumRegister, range)) else [entry]
            indices += [_qubit_index(circuit, qubit, num_qubits, name) for qubit in qubits]
    if len(set(indices)) < len(indices):
        raise ValueError(f"{name}: got {indices}, expected each qubit once.")
    return indices


def _qubit_index(circuit: QuantumCircuit, qubit: Any, num_qubits: int, name: str) -> int:
    if isinstance(qubit, Qubit) and circuit.layout is None:
        try:
            return circuit.find_bit(qubit).index
        except CircuitError:
            raise ValueError(f"{name}: got {qubit!r}, which is no qubit of the circuit.") from None
    if isinstance(qubit, bool) or not isinstance(qubit, (int, np.integer)):
        transpiled = " (the circuit has been transpiled)" if isinstance(qubit, Qubit) else ""
        raise TypeError(f"{name}: got {qubit!r} ({type(qubit).__name__}), expected a qubit's index{transpiled}.")
    if not 0 <= qubit < num_qubits:
        raise ValueError(f"{name}: got qubit {qubit}, expected 0 to {num_qubits - 1}.")
    return int(qubit)


def outputs_of_outcomes(num_qubits: int, interpret: Callable[[int], int] | None) -> np.ndarray:
    """Shape (2**k,): the output that each outcome of k qubits counts towards.

    Args:
        num_qubits: The number k.
        interpret: Maps an outcome (an integer below 2**k) to a class (an integer from 0), its output; None: each is its own.

    Raises:
        TypeError: If ``interpret`` is no function.
        ValueError: If there are too many qubits to list all outcomes, or ``interpret`` gives no class.
    """
    if not 0 < num_qubits <= _MOST_QUBITS:
        raise ValueError(
            f"probabilities: got {num_qubits} qubits, expected 1 to {_MOST_QUBITS} (there are 2**k "
            "outcomes); name fewer qubits, or ask for observables."
        )
    if interpret is None:
        return np.arange(2**num_qubits)
    if not callable(interpret):
        raise TypeError(
            f"interpret: got {interpret!r}, expected a function of an outcome; of a table, give its __getitem__ method."
        )
    try:
        classes = [interpret(outcome) for outcome in range(2**num_qubits)]
    except Exception as error:
        raise ValueError(
            f"interpret: failed with {error!r}; it gets an outcome as an integer (not as a string of bits), for example "
            "lambda outcome: outcome.bit_count() % 2."
        ) from error
    for outcome, label in enumerate(classes):
        if not isinstance(label, (bool, int, np.bool_, np.integer)) or not 0 <= label < _MOST_CLASSES:
            raise ValueError(
                f"interpret({outcome}): got {label!r}, expected the outcome's class, an integer from 0 to "
                f"{_MOST_CLASSES - 1}."
            )
    return np.array(classes, dtype=np.int64)
