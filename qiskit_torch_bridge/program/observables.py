"""What the user gives as observables, in any form that Qiskit's primitives take: operators on the circuit's qubits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Complex
from typing import Any, TypeAlias

import numpy as np
import torch
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.quantum_info import Pauli, PauliList, SparseObservable, SparsePauliOp

from ..arguments import refuse_unordered

__all__ = ["ObservableLike", "ObservablesLike", "sparse_pauli_ops"]

ObservableLike: TypeAlias = str | Pauli | SparsePauliOp | SparseObservable | Mapping[str, float] | Mapping[Pauli, float]
"""One observable, as Qiskit's primitives take it; a mapping gives each Pauli its coefficient."""
ObservablesLike: TypeAlias = ObservableLike | PauliList | ObservablesArray | np.ndarray | Sequence[Any]
"""One or several."""

_ONE_OBSERVABLE = (str, Pauli, SparsePauliOp, SparseObservable, Mapping)
_OBSERVABLES = (
    "a Pauli label such as 'ZZ', a Pauli, a SparsePauliOp, a SparseObservable or a mapping such as {'ZZ': 0.5, 'XX': 2.0}, "
    "or a list of them; SparsePauliOp.from_operator makes one of a matrix"
)
_MOST_TERMS = 2**14


def sparse_pauli_ops(observables: ObservablesLike, layout: Sequence[int], num_qubits: int) -> list[SparsePauliOp]:
    """The observables as operators on a circuit's qubits.

    Args:
        observables: Hermitian operators, one or several; of nested lists and arrays the outputs are in row-major order.
        layout: For each qubit that they speak of, which are those of the circuit as the user wrote it, its index in the
            circuit.
        num_qubits: The circuit's number of qubits, larger if it has been transpiled for a larger device.

    Raises:
        TypeError: If an entry is no observable.
        ValueError: If there are none, or one is not Hermitian or has a wrong number of qubits.
    """
    single = isinstance(observables, _ONE_OBSERVABLE)
    _, flat = _flattened([observables] if single else observables, "observables")
    if not flat:
        raise ValueError("observables: got an empty list, expected at least one observable.")
    return [_place(_as_sparse_pauli_op(observable, name), name, layout, num_qubits) for name, observable in flat]


def _flattened(given: Any, name: str) -> tuple[tuple[int, ...], list[tuple[str, ObservableLike]]]:
    """The shape of nested observables, and in row-major order each with its name for messages."""
    if isinstance(given, ObservablesArray) or (isinstance(given, np.ndarray) and given.dtype.kind in "OU"):
        given = given.tolist()
    if isinstance(given, _ONE_OBSERVABLE):
        return (), [(name, given)]
    refuse_unordered(name, given)
    if not isinstance(given, (Iterable, PauliList)) or isinstance(given, (bytes, np.ndarray, torch.Tensor)):
        raise TypeError(f"{name}: got {type(given).__name__}, expected {_OBSERVABLES}.")
    parts = [_flattened(entry, f"{name}[{index}]") for index, entry in enumerate(given)]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: got entries of the shapes {sorted(shapes)}, expected all alike; give one flat list of observables, or "
            "as a mapping, {'ZZ': 0.5, 'XX': 2.0}, what is one observable."
        )
    return (len(parts), *(shapes.pop() if shapes else ())), [entry for _, entries in parts for entry in entries]


def _as_sparse_pauli_op(observable: ObservableLike, name: str) -> SparsePauliOp:
    if isinstance(observable, str) and set(observable) <= set("IXYZ"):
        return SparsePauliOp(observable)  # nothing of what follows applies to one Pauli, as most observables are
    if isinstance(observable, Mapping):
        operator = _sum_of(observable, name)
    elif isinstance(observable, str):
        operator = _expanded(_from_label(observable, name), name)
    elif isinstance(observable, SparseObservable):
        operator = _expanded(observable, name)
    else:
        operator = SparsePauliOp(observable)
    if operator.coeffs.dtype == object:
        raise ValueError(
            f"{name}: its coefficients have parameters, expected numbers; multiply the outputs by weights instead."
        )
    if not np.isfinite(operator.coeffs).all():
        raise ValueError(f"{name}: got coefficients {operator.coeffs}, expected finite numbers.")
    operator = operator.simplify(atol=0.0, rtol=0.0)
    if np.abs(operator.coeffs.imag).max() > 1e-12 * max(1.0, float(np.abs(operator.coeffs).max())):
        raise ValueError(f"{name}: got complex coefficients {operator.coeffs}, expected a Hermitian operator.")
    return operator


def _sum_of(terms: Mapping[Any, Any], name: str) -> SparsePauliOp:
    """The operator that a mapping of Paulis to coefficients stands for."""
    if not terms:
        raise ValueError(f"{name}: got an empty mapping, expected at least one Pauli and its coefficient.")
    summands = []
    for pauli, coefficient in terms.items():
        if not isinstance(pauli, (str, Pauli)) or not isinstance(coefficient, Complex):
            raise TypeError(
                f"{name}: got {pauli!r}: {coefficient!r} in a mapping, expected labels or Paulis and their coefficients, "
                "numbers (to train one, multiply an output by a weight)."
            )
        if not np.isfinite(complex(coefficient)):
            raise ValueError(f"{name}: got {pauli!r}: {coefficient} in a mapping, expected finite numbers.")
        summands.append(coefficient * _as_sparse_pauli_op(pauli, f"{name}[{pauli!r}]"))
    if len(widths := sorted({summand.num_qubits for summand in summands})) > 1:
        raise ValueError(f"{name}: got terms on {widths} qubits in one mapping, expected one Pauli letter a qubit.")
    return SparsePauliOp.sum(summands)


def _from_label(label: str, name: str) -> SparseObservable:
    try:
        return SparseObservable.from_label(label)
    except ValueError:
        raise ValueError(
            f"{name}: {label!r} is no label of a Hermitian operator: expected a letter a qubit, of I X Y Z, or 0 1 + - r l "
            "for the projector onto that state; give a factor in a mapping, {'ZZ': -1.0}."
        ) from None


def _expanded(observable: SparseObservable, name: str) -> SparsePauliOp:
    """The observable in Paulis: two for each projector of a term."""
    projectors = np.array([letter.label not in "XYZ" for letter in observable.bit_terms], dtype=bool)
    size = sum(2 ** int(projectors[start:stop].sum()) for start, stop in pairwise(observable.boundaries))
    if size > _MOST_TERMS:
        raise ValueError(
            f"{name}: its projectors are {size} Pauli terms, expected at most {_MOST_TERMS}; use probabilities=[qubits] "
            "(with interpret=) instead, which measures the states themselves."
        )
    return SparsePauliOp.from_sparse_observable(observable)


def _place(operator: SparsePauliOp, name: str, layout: Sequence[int], num_qubits: int) -> SparsePauliOp:
    """The operator on the circuit's qubits."""
    if operator.num_qubits == num_qubits and list(layout) == list(range(num_qubits)):
        return operator
    if operator.num_qubits == len(layout):
        return operator.apply_layout(list(layout), num_qubits=num_qubits)
    if operator.num_qubits == num_qubits:
        return operator
    transpiled = "" if num_qubits == len(layout) else f" (or on all {num_qubits} of the transpiled circuit)"
    raise ValueError(
        f"{name}: it acts on {operator.num_qubits} qubits, expected {len(layout)}{transpiled}; give one letter a qubit, "
        "qubit 0 last (a factor is given in a mapping, {'ZZ': -1.0}; + and - are states)."
    )
