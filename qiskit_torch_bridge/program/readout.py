r"""What is read from a circuit: expectation values of observables, or probabilities of outcomes.

Both come down to the same thing, a list of *measurement groups*. A group names the qubits to measure, the Pauli basis
of each, and a *score*: the contribution of one measured bit string to every output. The expectation value of a Pauli
term is the mean of the parity of the measured bits; the probability of an outcome is the mean of an indicator. So every
backend that can measure, or knows the probabilities of what it would measure, can give every readout, and the mean and
the variance of the scores over the shots are the value and the squared standard error, covariances of terms that were
measured in the same shots included.

Qubit order is Qiskit's (little-endian): the last character of a label acts on qubit 0, and bit j of an outcome belongs
to the j-th measured qubit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Complex
from typing import Any, TypeAlias

import numpy as np
import torch
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.quantum_info import Pauli, PauliList, SparseObservable, SparsePauliOp

from ..arguments import refuse_unordered

__all__ = [
    "MOST_TABULATED_QUBITS",
    "Expectation",
    "MeasurementGroup",
    "ObservableLike",
    "ObservablesLike",
    "OutcomeGroup",
    "PauliGroup",
    "Probabilities",
    "Readout",
    "Samples",
    "bits_of",
]

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
_MOST_PROBABILITY_QUBITS = 20
MOST_TABULATED_QUBITS = 12
"""Up to so many measured qubits, the scores of all outcomes are kept as one table."""
_MOST_CLASSES = 2**_MOST_PROBABILITY_QUBITS


@dataclass(frozen=True, eq=False)
class Samples:
    """Measured bit strings of a batch of circuits, as a list of (row, bits, count).

    Attributes:
        rows: Shape (E,): the circuit of the batch that an entry belongs to.
        bits: Shape (E, k), 0 or 1; column j belongs to the group's j-th qubit.
        counts: Shape (E,): how often the circuit gave these bits.
        num_rows: The number N of circuits.
    """

    rows: np.ndarray
    bits: np.ndarray
    counts: np.ndarray
    num_rows: int

    @cached_property
    def shots(self) -> np.ndarray:
        """Shape (N,): the shots of each circuit."""
        return np.bincount(self.rows, weights=self.counts, minlength=self.num_rows)


def bits_of(outcomes: np.ndarray, num_bits: int) -> np.ndarray:
    """The bits of outcomes, shape (..., k): bit j in column j."""
    return ((outcomes[..., None] >> np.arange(num_bits)) & 1).astype(np.uint8)


def _row_by_row(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Their product, to the same bits for a row whatever others there are (BLAS adds in another order for more)."""
    product: np.ndarray = (left[:, None] @ right)[:, 0]
    return product


class MeasurementGroup(ABC):
    """Qubits measured together, each in a Pauli basis, and what a measured bit string contributes to the outputs.

    Attributes:
        qubits: The measured qubits; bit j of an outcome is the j-th of them.
        bases: One of ``X``, ``Y``, ``Z`` for each of them.
    """

    qubits: tuple[int, ...]
    bases: str

    @property
    @abstractmethod
    def scales(self) -> np.ndarray:
        """Shape (M,): the size of the scores, as the root mean square over all outcomes (1 for outcomes themselves)."""

    @abstractmethod
    def scores(self, bits: np.ndarray) -> np.ndarray:
        """Shape (E, M): what each bit string of ``bits``, of shape (E, k), contributes to each output."""

    @cached_property
    def _table(self) -> np.ndarray:
        return self.scores(bits_of(np.arange(2 ** len(self.qubits)), len(self.qubits)))

    def score_blocks(self) -> Iterable[tuple[slice, np.ndarray]]:
        """The scores of all 2**k outcomes, in blocks that bound the memory: (outcomes, scores of shape (block, M))."""
        k = len(self.qubits)
        if k <= MOST_TABULATED_QUBITS:
            yield slice(0, 2**k), self._table
            return
        for start in range(0, 2**k, 2**MOST_TABULATED_QUBITS):
            block = slice(start, start + 2**MOST_TABULATED_QUBITS)
            yield block, self.scores(bits_of(np.arange(block.start, block.stop), k))

    def moments(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of the scores.

        Args:
            weights: Shape (N, 2**k): the probability, or the relative frequency, of each outcome.

        Returns:
            Two arrays of shape (N, M).
        """
        first = second = np.zeros(())
        for block, scores in self.score_blocks():
            first = first + _row_by_row(weights[:, block], scores)
            second = second + _row_by_row(weights[:, block], scores**2)
        return first, second

    def sample_moments(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of the scores over measured bit strings: two arrays of shape (N, M)."""
        scores = self.scores(samples.bits)
        shares = samples.counts / samples.shots[samples.rows]
        order = np.argsort(samples.rows, kind="stable")
        edges = np.searchsorted(samples.rows[order], np.arange(samples.num_rows))
        weighted = (shares[:, None] * scores)[order]
        return np.add.reduceat(weighted, edges, axis=0), np.add.reduceat(weighted * scores[order], edges, axis=0)

    def moments_along(self, weights: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of ``sum_m u_m score_m``: two arrays of shape (N,).

        Args:
            weights: As in :meth:`moments`.
            upstream: Shape (N, M): ``u``.
        """
        first = second = np.zeros(len(weights))
        for block, scores in self.score_blocks():
            along = upstream @ scores.T
            first = first + (weights[:, block] * along).sum(axis=1)
            second = second + (weights[:, block] * along**2).sum(axis=1)
        return first, second

    def sample_moments_along(self, samples: Samples, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same over measured bit strings."""
        along = (self.scores(samples.bits) * upstream[samples.rows]).sum(axis=1)
        shares = samples.counts / samples.shots[samples.rows]
        first, second = (np.bincount(samples.rows, shares * power, samples.num_rows) for power in (along, along**2))
        return first, second


@dataclass(frozen=True, eq=False)
class PauliGroup(MeasurementGroup):
    """Qubit-wise commuting Pauli terms.

    Attributes:
        supports: Shape (T, k): 1 where a term acts on a measured qubit.
        coefficients: Shape (T, M): each term's coefficient in each observable.
    """

    qubits: tuple[int, ...]
    bases: str
    supports: np.ndarray
    coefficients: np.ndarray

    @cached_property
    def operators(self) -> tuple[SparsePauliOp, ...]:
        """What each output gets from this group, as an operator on the measured qubits after the basis changes."""
        labels = ["".join("Z" if acts else "I" for acts in support[::-1]) for support in self.supports]
        return tuple(SparsePauliOp(labels, column) for column in self.coefficients.T)

    @property
    def scales(self) -> np.ndarray:
        """Parities are orthogonal to each other, so their coefficients' squares add up."""
        return np.sqrt((self.coefficients**2).sum(axis=0))

    def scores(self, bits: np.ndarray) -> np.ndarray:
        """The parity of the bits that each term acts on, as +1 or -1, times its coefficients."""
        parities = (bits.astype(np.float64) @ self.supports.T.astype(np.float64)) % 2
        return _row_by_row(1.0 - 2.0 * parities, self.coefficients)


@dataclass(frozen=True, eq=False)
class OutcomeGroup(MeasurementGroup):
    """Outcomes of qubits measured in the computational basis.

    Attributes:
        outputs: Shape (2**k,): the output that each outcome counts towards.
        num_outputs: The number M of outputs.
    """

    qubits: tuple[int, ...]
    outputs: np.ndarray
    num_outputs: int

    @property
    def bases(self) -> str:  # type: ignore[override]
        """Z for each measured qubit."""
        return "Z" * len(self.qubits)

    @property
    def scales(self) -> np.ndarray:
        """All the same."""
        return np.ones(self.num_outputs)

    def scores(self, bits: np.ndarray) -> np.ndarray:
        """1 for the output that each outcome counts towards."""
        return (self._outputs_of(bits)[:, None] == np.arange(self.num_outputs)).astype(np.float64)

    # An indicator is its own square, and of the one-hot scores only the ones need be touched.

    def moments(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        rows = np.arange(len(weights))[:, None]
        first = self._summed(
            np.broadcast_to(rows, weights.shape), np.broadcast_to(self.outputs, weights.shape), weights
        )
        return first, first

    def sample_moments(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        shares = samples.counts / samples.shots[samples.rows]
        first = self._summed(samples.rows, self._outputs_of(samples.bits), shares, samples.num_rows)
        return first, first

    def moments_along(self, weights: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        along = upstream[:, self.outputs]
        return (weights * along).sum(axis=1), (weights * along**2).sum(axis=1)

    def sample_moments_along(self, samples: Samples, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        along = upstream[samples.rows, self._outputs_of(samples.bits)]
        shares = samples.counts / samples.shots[samples.rows]
        first, second = (np.bincount(samples.rows, shares * power, samples.num_rows) for power in (along, along**2))
        return first, second

    def _outputs_of(self, bits: np.ndarray) -> np.ndarray:
        return self.outputs[bits.astype(np.int64) @ (1 << np.arange(len(self.qubits), dtype=np.int64))]

    def _summed(
        self, rows: np.ndarray, outputs: np.ndarray, shares: np.ndarray, num_rows: int | None = None
    ) -> np.ndarray:
        num_rows = len(shares) if num_rows is None else num_rows
        flat = np.bincount((rows * self.num_outputs + outputs).ravel(), shares.ravel(), num_rows * self.num_outputs)
        return flat.reshape(num_rows, self.num_outputs)


@dataclass(frozen=True, eq=False)
class Readout:
    """What is read from a circuit.

    Attributes:
        num_outputs: The number M of outputs.
        groups: The measurements that give them; empty when every output is a constant.
        constants: Shape (M,): what is added to the groups' contributions (identity terms).
    """

    num_outputs: int
    groups: tuple[MeasurementGroup, ...]
    constants: np.ndarray

    @cached_property
    def scales(self) -> np.ndarray:
        """Shape (M,): how far the outputs can be expected to scatter from shot to shot, relative to each other."""
        squares = [group.scales**2 for group in self.groups]
        return np.sqrt(np.sum(squares, axis=0)) if squares else np.zeros(self.num_outputs)

    @cached_property
    def qubits(self) -> tuple[int, ...]:
        """All measured qubits, ascending."""
        return tuple(sorted({qubit for group in self.groups for qubit in group.qubits}))


@dataclass(frozen=True, eq=False)
class Expectation(Readout):
    """Expectation values of observables.

    Attributes:
        observables: One operator an output, on all the circuit's qubits, without identity and zero terms.
    """

    observables: tuple[SparsePauliOp, ...] = ()

    @classmethod
    def of(
        cls,
        observables: ObservablesLike,
        *,
        num_qubits: int,
        width: int,
        positions: Sequence[int],
    ) -> Expectation:
        """Reads the user's observables.

        Args:
            observables: Hermitian operators, as Qiskit's primitives take them, one or several; of nested lists and arrays
                the outputs are in row-major order.
            num_qubits: The number of qubits that they speak of: the circuit's as the user wrote it.
            width: The circuit's number of qubits, larger if it has been transpiled for a larger device.
            positions: For each of the ``num_qubits`` its place among the ``width``.

        Raises:
            TypeError: If an entry is no observable.
            ValueError: If one is not Hermitian or has a wrong number of qubits.
        """
        single = isinstance(observables, _ONE_OBSERVABLE)
        _, listed = _spelled_out([observables] if single else observables, "observables")
        if not listed:
            raise ValueError("observables: got an empty list, expected at least one observable.")
        placed = [
            _place(_as_sparse_pauli_op(observable, name), name, num_qubits, width, positions)
            for name, observable in listed
        ]
        constants = np.zeros(len(placed))
        kept = []
        for output, operator in enumerate(placed):
            trivial = ~(operator.paulis.x.any(axis=1) | operator.paulis.z.any(axis=1))
            constants[output] = operator.coeffs[trivial].real.sum()
            zero = operator.coeffs == 0
            kept.append(operator[~trivial & ~zero] if bool((~trivial & ~zero).any()) else None)
        terms = sorted({label for operator in kept if operator is not None for label in operator.paulis.to_labels()})
        coefficients = {label: np.zeros(len(placed)) for label in terms}
        for output, operator in enumerate(kept):
            if operator is not None:
                for label, coefficient in zip(operator.paulis.to_labels(), operator.coeffs.real, strict=True):
                    coefficients[label][output] += coefficient
        groups = tuple(
            _pauli_group(members, np.array([coefficients[label] for label in members.to_labels()]))
            for members in (PauliList(terms).group_commuting(qubit_wise=True) if terms else ())
        )
        zero = SparsePauliOp("I" * width, [0.0])
        return cls(len(placed), groups, constants, tuple(zero if operator is None else operator for operator in kept))


def _spelled_out(given: Any, name: str) -> tuple[tuple[int, ...], list[tuple[str, ObservableLike]]]:
    """The shape of nested observables, and in row-major order each with its name for messages."""
    if isinstance(given, ObservablesArray) or (isinstance(given, np.ndarray) and given.dtype.kind in "OU"):
        given = given.tolist()
    if isinstance(given, _ONE_OBSERVABLE):
        return (), [(name, given)]
    refuse_unordered(name, given)
    if not isinstance(given, (Iterable, PauliList)) or isinstance(given, (bytes, np.ndarray, torch.Tensor)):
        raise TypeError(f"{name}: got {type(given).__name__}, expected {_OBSERVABLES}.")
    parts = [_spelled_out(entry, f"{name}[{index}]") for index, entry in enumerate(given)]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: got entries of the shapes {sorted(shapes)}, expected all alike; give one flat list of observables, or "
            "as a mapping, {'ZZ': 0.5, 'XX': 2.0}, what is one observable."
        )
    return (len(parts), *(shapes.pop() if shapes else ())), [entry for _, entries in parts for entry in entries]


def _as_sparse_pauli_op(observable: ObservableLike, name: str) -> SparsePauliOp:
    if isinstance(observable, Mapping):
        operator = _summed(observable, name)
    elif isinstance(observable, str) and not set(observable) <= set("IXYZ"):
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


def _summed(terms: Mapping[Any, Any], name: str) -> SparsePauliOp:
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


def _place(operator: SparsePauliOp, name: str, num_qubits: int, width: int, positions: Sequence[int]) -> SparsePauliOp:
    """The operator on the circuit's qubits."""
    if operator.num_qubits == num_qubits:
        return operator.apply_layout(list(positions), num_qubits=width)
    if operator.num_qubits == width:
        return operator
    transpiled = "" if width == num_qubits else f" (or on all {width} of the transpiled circuit)"
    raise ValueError(
        f"{name}: it acts on {operator.num_qubits} qubits, expected {num_qubits}{transpiled}; give one letter a qubit, "
        "qubit 0 last (a factor is given in a mapping, {'ZZ': -1.0}; + and - are states)."
    )


def _pauli_group(terms: PauliList, coefficients: np.ndarray) -> PauliGroup:
    x, z = terms.x.any(axis=0), terms.z.any(axis=0)
    qubits = np.flatnonzero(x | z)
    bases = "".join("Y" if x[q] and z[q] else "X" if x[q] else "Z" for q in qubits)
    supports = (terms.x | terms.z)[:, qubits].astype(np.uint8)
    return PauliGroup(tuple(qubits.tolist()), bases, supports, coefficients)


@dataclass(frozen=True, eq=False)
class Probabilities(Readout):
    """Probabilities of the outcomes of named qubits, or of the classes that ``interpret`` maps them to."""

    @classmethod
    def of(cls, qubits: Sequence[int], interpret: Callable[[int], int] | None = None) -> Probabilities:
        """Reads the user's choice.

        Args:
            qubits: The measured qubits, as positions in the circuit; bit j of an outcome belongs to the j-th.
            interpret: Maps an outcome (an integer below 2**k) to a class (an integer from 0); the outputs are then the
                classes' probabilities, and there are as many as the largest class says.

        Raises:
            ValueError: If there are too many qubits to list all outcomes, or ``interpret`` gives something else.
        """
        if not 0 < len(qubits) <= _MOST_PROBABILITY_QUBITS:
            raise ValueError(
                f"probabilities: got {len(qubits)} qubits, expected 1 to {_MOST_PROBABILITY_QUBITS} (there are 2**k "
                "outcomes); name fewer qubits, or ask for observables."
            )
        outputs = np.arange(2 ** len(qubits))
        if interpret is not None:
            classes = _classes(interpret, len(outputs))
            for outcome, label in enumerate(classes):
                if not isinstance(label, (bool, int, np.bool_, np.integer)) or not 0 <= label < _MOST_CLASSES:
                    raise ValueError(
                        f"interpret({outcome}): got {label!r}, expected the outcome's class, an integer from 0 to "
                        f"{_MOST_CLASSES - 1}."
                    )
            outputs = np.array(classes, dtype=np.int64)
        num_outputs = int(outputs.max()) + 1
        return cls(num_outputs, (OutcomeGroup(tuple(qubits), outputs, num_outputs),), np.zeros(num_outputs))


def _classes(interpret: Callable[[int], int], num_outcomes: int) -> list[int]:
    if not callable(interpret):
        raise TypeError(
            f"interpret: got {interpret!r}, expected a function of an outcome; of a table, give its __getitem__ method."
        )
    try:
        return [interpret(outcome) for outcome in range(num_outcomes)]
    except Exception as error:
        raise ValueError(
            f"interpret: failed with {error!r}; it gets an outcome as an integer (not as a string of bits), for example "
            "lambda outcome: outcome.bit_count() % 2."
        ) from error
