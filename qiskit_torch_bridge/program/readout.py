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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from qiskit.quantum_info import PauliList, SparsePauliOp

from .observables import ObservablesLike, sparse_pauli_ops
from .outcomes import outputs_of_outcomes

__all__ = [
    "MOST_TABULATED_QUBITS",
    "Expectation",
    "MeasurementGroup",
    "OutcomeGroup",
    "PauliGroup",
    "Probabilities",
    "Readout",
    "Samples",
    "bits_of",
    "outcomes_of_rows",
    "stitched_outcomes",
]

MOST_TABULATED_QUBITS = 12
"""Up to so many measured qubits, the scores of all outcomes are kept as one table."""


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

    def of_rows(self, rows: slice) -> Samples:
        """Those of some of the circuits."""
        number = np.full(self.num_rows, -1)
        kept = range(self.num_rows)[rows]
        number[rows] = np.arange(len(kept))
        entries = number[self.rows] >= 0
        return Samples(number[self.rows[entries]], self.bits[entries], self.counts[entries], len(kept))

    @cached_property
    def frequencies(self) -> np.ndarray:
        """Shape (E,): the share of the circuit's shots that gave these bits."""
        return self.counts / self.shots[self.rows]


def bits_of(outcomes: np.ndarray, num_bits: int) -> np.ndarray:
    """The bits of outcomes, shape (..., k): bit j in column j."""
    return ((outcomes[..., None] >> np.arange(num_bits)) & 1).astype(np.uint8)


def outcomes_of_rows(measured: np.ndarray | Samples, rows: slice) -> np.ndarray | Samples:
    """What some of the circuits of a batch have measured: frequencies of shape (N, 2**k), or bit strings."""
    return measured.of_rows(rows) if isinstance(measured, Samples) else measured[rows]


def stitched_outcomes(
    places: Sequence[slice | np.ndarray], parts: Sequence[np.ndarray | Samples], num_rows: int
) -> np.ndarray | Samples:
    """What one measurement gave for several sets of rows, as one batch; nothing for rows in no set.

    Args:
        places: The rows of each set.
        parts: What they gave: frequencies of shape (n, 2**k) in all sets, or bit strings in all.
        num_rows: The number N of all rows.
    """
    if not isinstance(parts[0], Samples):
        frequencies = np.zeros((num_rows, *parts[0].shape[1:]))
        for rows, part in zip(places, parts, strict=True):
            frequencies[rows] = part
        return frequencies
    samples = [part for part in parts if isinstance(part, Samples)]
    numbers = [np.arange(num_rows)[rows][part.rows] for rows, part in zip(places, samples, strict=True)]
    bits, counts = (np.concatenate([getattr(part, name) for part in samples]) for name in ("bits", "counts"))
    return Samples(np.concatenate(numbers), bits, counts, num_rows)


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
    def _all_scores(self) -> np.ndarray:
        return self.scores(bits_of(np.arange(2 ** len(self.qubits)), len(self.qubits)))

    def score_blocks(self) -> Iterable[tuple[slice, np.ndarray]]:
        """The scores of all 2**k outcomes, in blocks that bound the memory: (outcomes, scores of shape (block, M))."""
        k, size = len(self.qubits), 2**MOST_TABULATED_QUBITS
        if k <= MOST_TABULATED_QUBITS:
            return [(slice(0, 2**k), self._all_scores)]
        blocks = (slice(start, start + size) for start in range(0, 2**k, size))
        return ((block, self.scores(bits_of(np.arange(block.start, block.stop), k))) for block in blocks)

    def moments(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of the scores.

        Args:
            frequencies: Shape (N, 2**k): the probability, or the relative frequency, of each outcome.

        Returns:
            Two arrays of shape (N, M).
        """
        first = second = np.zeros(())
        for block, scores in self.score_blocks():
            rows = frequencies[:, None, block]  # each a product of its own: BLAS adds in another order for more rows
            first = first + (rows @ scores)[:, 0]
            second = second + (rows @ scores**2)[:, 0]
        return first, second

    def sample_moments(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of the scores over measured bit strings: two arrays of shape (N, M)."""
        scores = self.scores(samples.bits)
        order = np.argsort(samples.rows, kind="stable")
        edges = np.searchsorted(samples.rows[order], np.arange(samples.num_rows))
        weighted = (samples.frequencies[:, None] * scores)[order]
        return np.add.reduceat(weighted, edges, axis=0), np.add.reduceat(weighted * scores[order], edges, axis=0)

    def moments_along(self, frequencies: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments of ``sum_m u_m score_m``: two arrays of shape (N,).

        Args:
            frequencies: As in :meth:`moments`.
            upstream: Shape (N, M): ``u``.
        """
        first = second = np.zeros(len(frequencies))
        for block, scores in self.score_blocks():
            along = upstream @ scores.T
            first = first + (frequencies[:, block] * along).sum(axis=1)
            second = second + (frequencies[:, block] * along**2).sum(axis=1)
        return first, second

    def sample_moments_along(self, samples: Samples, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same over measured bit strings."""
        rows, frequencies, along = samples.rows, samples.frequencies, self._along(samples, upstream)
        first, second = (np.bincount(rows, frequencies * power, samples.num_rows) for power in (along, along**2))
        return first, second

    def _along(self, samples: Samples, upstream: np.ndarray) -> np.ndarray:
        """Shape (E,): ``sum_m u_m score_m`` of each bit string."""
        return (self.scores(samples.bits) * upstream[samples.rows]).sum(axis=1)


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
        return ((1.0 - 2.0 * parities)[:, None] @ self.coefficients)[:, 0]  # row by row, as in moments


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

    def moments(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        num_rows = len(frequencies)
        first = self._totals(np.arange(num_rows)[:, None], self.outputs, frequencies, num_rows=num_rows)
        return first, first

    def sample_moments(self, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        outputs = self._outputs_of(samples.bits)
        first = self._totals(samples.rows, outputs, samples.frequencies, num_rows=samples.num_rows)
        return first, first

    def moments_along(self, frequencies: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the base class says."""
        along = upstream[:, self.outputs]
        return (frequencies * along).sum(axis=1), (frequencies * along**2).sum(axis=1)

    def _along(self, samples: Samples, upstream: np.ndarray) -> np.ndarray:
        return upstream[samples.rows, self._outputs_of(samples.bits)]

    def _outputs_of(self, bits: np.ndarray) -> np.ndarray:
        return self.outputs[bits.astype(np.int64) @ (1 << np.arange(len(self.qubits), dtype=np.int64))]

    def _totals(self, rows: np.ndarray, outputs: np.ndarray, frequencies: np.ndarray, *, num_rows: int) -> np.ndarray:
        """Shape (N, M): the frequencies, summed by row and output."""
        places = rows * self.num_outputs + outputs
        totals = np.bincount(places.ravel(), frequencies.ravel(), num_rows * self.num_outputs)
        return totals.reshape(num_rows, self.num_outputs)


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
    def of(cls, observables: ObservablesLike, layout: Sequence[int], num_qubits: int) -> Expectation:
        """Arguments and errors are those of :func:`qiskit_torch_bridge.program.observables.sparse_pauli_ops`."""
        operators = sparse_pauli_ops(observables, layout, num_qubits)
        constants = np.zeros(len(operators))
        coefficients: dict[str, np.ndarray] = {}
        for output, operator in enumerate(operators):
            trivial = ~(operator.paulis.x | operator.paulis.z).any(axis=1)
            constants[output] = operator.coeffs[trivial].real.sum()
            essential = ~trivial & (operator.coeffs != 0)
            if not essential.any():
                operators[output] = SparsePauliOp("I" * num_qubits, [0.0])
                continue
            if not essential.all():
                operators[output] = operator = operator[essential]
            for label, coefficient in zip(operator.paulis.to_labels(), operator.coeffs.real, strict=True):
                coefficients.setdefault(label, np.zeros(len(operators)))[output] += coefficient
        groups = tuple(
            _pauli_group(members, np.array([coefficients[label] for label in members.to_labels()]))
            for members in (PauliList(sorted(coefficients)).group_commuting(qubit_wise=True) if coefficients else ())
        )
        return cls(len(operators), groups, constants, tuple(operators))


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
        """Of measured qubits, as positions in the circuit; bit j of an outcome belongs to the j-th.

        ``interpret`` and the errors are those of :func:`qiskit_torch_bridge.program.outcomes.outputs_of_outcomes`.
        """
        outputs = outputs_of_outcomes(len(qubits), interpret)
        num_outputs = int(outputs.max()) + 1
        return cls(num_outputs, (OutcomeGroup(tuple(qubits), outputs, num_outputs),), np.zeros(num_outputs))
