"""Copies of a circuit side by side on a device: what is executed for many rows at once, and each row's result again.

One executed circuit has R copies with R * P parameters, and one register ``outcome`` of R * k bits, those of the first copy
first. Which rows its copies are is said by :class:`qiskit_torch_bridge.backends.passport.PackedRows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import BitArray
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.quantum_info import PauliList, SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager

from ...arguments import number_from, one_of
from ..passport import PackedRows
from ..results import Arrays, BoundCircuit, WrongResult
from .regions import Places, Region

if TYPE_CHECKING:
    from .device_programs import DeviceCircuit

__all__ = ["PackedCircuit", "PackedPub", "Packing", "Part", "moved", "packing_from", "pieces_of_rows", "rows_apart"]

_IDLE = frozenset({"barrier", "delay"})
_USUAL_LOSS = 0.05
_NEARLY = 1.05  # as cheap as the cheapest: fewer pieces are then preferred, which are fewer parameter values to send


@dataclass(frozen=True)
class Packing:
    """How rows are executed side by side: the details of ``IBMBackend(packing=...)``.

    Attributes:
        regions: How many there may be, or ``"auto"``: as many as are nearly as good as the best.
        spacing: How many qubits are idle between two regions at least. With 1 no coupler connects two regions; with 0 more
            of them fit, with crosstalk between neighbours.
        loss: How much less the estimated fidelity of a region may be than that of the best. None: 0.05 for ``"auto"``, any
            for a number of regions. An expectation value loses about its region's infidelity, so that with 0.05 rows lose
            some 0.025 more on average than in the best region, which is about the shot noise of 1000 shots. Measured on
            ``fake_sherbrooke``, whose regions differ much (a dressed circuit of 4 qubits, 2000 shots, six steps): the root
            mean square error of gradients, shot noise included, was 0.028 in the best region alone (27 s of the processor's
            time a step), 0.042 with a loss of 0.05 (5.8 s), 0.059 with 0.1 (4.0 s).
        rotate: ``"steps"``: at each call the rows begin at another region, by the seed, so that a region's bias is a
            different row's each time. It costs nothing, but within a step the shifted points of one derivative are
            measured with different biases, which is noise that standard errors do not know. (The folded circuits of
            an extrapolation are measured where their row is.) ``"shots"`` (for Samplers): each row's shots are spread
            over all regions alike, to a shot, so that all rows of a step have the same bias, the mean one, and a
            derivative that is zero stays zero. (Of the measurement groups' regions, some may be left out for that.)
            It costs as many executions, rounded up to whole shots of each piece (and to whole randomisations, 64
            shots each, where circuits are twirled), and as many times the parameter values to send as there are
            regions. In the measurement above gradients were as good either way. Mitigation by calibration circuits
            needs it, and corrects the mean of the regions. None: rows begin at the best region.

    Raises:
        ValueError: If one is something else.
    """

    regions: int | Literal["auto"] = "auto"
    _: KW_ONLY
    spacing: int = 1
    loss: float | None = None
    rotate: Literal["steps", "shots"] | None = "steps"

    def __post_init__(self) -> None:
        if self.regions != "auto":
            regions = number_from("packing: regions", self.regions, least=1, whole=True, also=", or 'auto'")
            object.__setattr__(self, "regions", regions)
        object.__setattr__(self, "spacing", number_from("packing: spacing", self.spacing, whole=True))
        if self.loss is not None:
            number_from("packing: loss", self.loss, also=", or None")
        if self.rotate is not None:
            one_of("packing: rotate", self.rotate, ("steps", "shots"))

    @property
    def most(self) -> float:
        """How many regions there may be."""
        return math.inf if self.regions == "auto" else self.regions

    @property
    def largest_loss(self) -> float:
        """Of fidelity, beside the best region."""
        if self.loss is not None:
            return self.loss
        return _USUAL_LOSS if self.regions == "auto" else math.inf


def packing_from(packing: Any) -> Packing | None:
    """What users write, as a ``Packing``.

    Raises:
        TypeError, ValueError: If it is something else.
    """
    if packing is None or isinstance(packing, Packing):
        return packing
    if isinstance(packing, str):
        one_of("packing", packing, ("auto",))
        return Packing()
    if isinstance(packing, bool) or not isinstance(packing, (int, np.integer)):
        raise TypeError(
            f"packing: got {packing!r} ({type(packing).__name__}), expected None, a number of regions, 'auto', or a Packing."
        )
    return Packing(int(packing))


@dataclass(frozen=True, eq=False)
class PackedCircuit:
    """Copies of a circuit on regions of a device.

    Attributes:
        bound: The circuit that they are copies of.
        copies: Each alone, on the device's qubits and with the parameters of ``bound``.
        regions: Where they are.
        layouts: For each region, the device's qubit for each of the logical circuit's; -1 for those that it does not use.
        circuit: All of them.
        parameters: Its parameters, R * P, those of the first copy first.
        observables: For an Estimator: those of each copy.
    """

    bound: BoundCircuit
    copies: tuple[QuantumCircuit, ...]
    regions: tuple[Region, ...]
    layouts: tuple[tuple[int, ...], ...]
    _: KW_ONLY
    circuit: QuantumCircuit
    parameters: tuple[Parameter, ...]
    observables: tuple[tuple[SparsePauliOp, ...], ...]

    @classmethod
    def of(cls, circuit: DeviceCircuit, regions: Sequence[Region], target: Any) -> PackedCircuit:
        """The circuit and its observables, copied to the regions."""
        bound, observables = circuit.bound, circuit.observables
        copies = tuple(moved(bound.circuit, region.places, target) for region in regions)
        width, bits = bound.circuit.num_qubits, bound.circuit.num_clbits
        registers = [ClassicalRegister(bits * len(copies), "outcome")] if bits else []
        together = _empty(width, registers)
        parameters = tuple(ParameterVector("bound", len(copies) * len(bound.parameters)))
        for number, copy in enumerate(copies):
            own = parameters[number * len(bound.parameters) : (number + 1) * len(bound.parameters)]
            own_copy = copy.assign_parameters(dict(zip(bound.parameters, own, strict=True)))
            own_bits = range(number * bits, (number + 1) * bits)
            together.compose(own_copy, range(width), own_bits, inplace=True, copy=False)
        elsewhere = tuple(tuple(_moved_observable(o, region.places) for o in observables) for region in regions)
        layouts = tuple(tuple(region.places.get(qubit, -1) for qubit in circuit.layout) for region in regions)
        return cls(
            bound, copies, tuple(regions), layouts, circuit=together, parameters=parameters, observables=elsewhere
        )

    def copy_of(self, number: int) -> BoundCircuit:
        """One of the copies, cut out of what is executed.

        Raises:
            ValueError: If another has a part in it.
        """
        places, bits = set(self.regions[number].places.values()), self.bound.circuit.num_clbits
        size = len(self.bound.parameters)
        copy = QuantumCircuit(self.circuit.num_qubits, bits)
        for instruction in self.circuit.data:
            qubits = [self.circuit.find_bit(qubit).index for qubit in instruction.qubits]
            clbits = [self.circuit.find_bit(bit).index - number * bits for bit in instruction.clbits]
            inside = places.intersection(qubits)
            if not inside:
                continue
            if len(inside) < len(qubits) or not all(0 <= bit < bits for bit in clbits):
                raise ValueError(f"The copies of a circuit are not apart: {instruction.name} on qubits {qubits}.")
            copy.append(instruction.operation, qubits, clbits, copy=False)
        return replace(self.bound, circuit=copy, parameters=self.parameters[number * size : (number + 1) * size])

    def example_pub(self, angles: np.ndarray) -> PackedPub:
        """A PUB of all copies at a single row of angles."""
        values = np.repeat(self.bound.values(angles)[:, None], len(self.regions), axis=1)
        return PackedPub.of(self, values if self.parameters else None)

    def pubs(self, angles: np.ndarray, rows: PackedRows, start: int, stop: int) -> list[PackedPub]:
        """What is executed for the rows' sets from ``start`` to ``stop``.

        One PUB or, where there are no parameters, one for each set, as :func:`qiskit_torch_bridge.backends.results.pubs_of`
        has it. Regions that measure no row measure some other's once more.
        """
        if not self.parameters:
            return [PackedPub.of(self, None)] * (stop - start)
        table = rows.rows_of_sets()[start:stop]
        values = self.bound.values(angles)[np.where(table < 0, rows.rows - 1, table)]  # (sets, regions, P)
        return [PackedPub.of(self, values)]


@dataclass(frozen=True, eq=False)
class Part:
    """A PUB, or one copy of a PUB of copies, by itself.

    Attributes:
        pub: On the device's qubits.
        compact: The same on those qubits alone that it acts on,
        qubits: which are these.
    """

    pub: tuple[Any, ...]
    compact: tuple[Any, ...]
    qubits: tuple[int, ...]

    @classmethod
    def of(cls, pub: tuple[Any, ...]) -> Part:
        """From a PUB on the device's qubits, as :func:`qiskit_torch_bridge.backends.results.pubs_of` makes them."""
        circuit, *rest = pub
        used = {circuit.find_bit(q).index for i in circuit.data if i.operation.name not in _IDLE for q in i.qubits}
        if not rest or isinstance(rest[0], BindingsArray):
            qubits = tuple(sorted(used)) or (0,)
            return cls(pub, (compacted(circuit, qubits), *rest), qubits)
        observables, *values = rest
        for (observable,) in observables:
            used.update(np.flatnonzero((observable.paulis.x | observable.paulis.z).any(axis=0)).tolist())
        qubits = tuple(sorted(used)) or (0,)
        kept = [[_restricted(observable, qubits)] for (observable,) in observables]
        return cls(pub, (compacted(circuit, qubits), kept, *values), qubits)


class PackedPub(tuple[Any, ...]):
    """A PUB whose circuit has copies that do not touch each other: they can be simulated one by one."""

    packed: PackedCircuit
    values: np.ndarray | None

    @classmethod
    def of(cls, packed: PackedCircuit, values: np.ndarray | None) -> PackedPub:
        """From the copies' parameters, shape (sets, regions, P); None if they have none."""
        parts: list[Any] = [packed.circuit]
        if any(packed.observables):
            parts.append([[observable] for own in packed.observables for observable in own])
        if values is not None:
            parts.append(BindingsArray({packed.parameters: values.reshape(len(values), -1)}))
        pub = cls(parts)
        pub.packed, pub.values = packed, values
        return pub

    def parts(self) -> Iterator[Part]:
        """Each copy as a PUB of its own."""
        for number, (copy, region) in enumerate(zip(self.packed.copies, self.packed.regions, strict=True)):
            observables = self.packed.observables[number]
            qubits = tuple(sorted(region.places.values()))
            rest: list[Any] = []
            if self.values is not None:
                rest = [BindingsArray({self.packed.bound.parameters: self.values[:, number]})]
            kept = [_restricted(observable, qubits) for observable in observables]
            yield Part(
                (copy, *([[[o] for o in observables]] if observables else []), *rest),
                (compacted(copy, qubits), *([[[o] for o in kept]] if kept else []), *rest),
                qubits,
            )

    def merged(self, parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """The arrays of this PUB, from those of its parts."""
        if any(self.packed.observables):
            return [np.concatenate([part[place] for part in parts]) for place in (0, 1)]
        bits = self.packed.bound.circuit.num_clbits
        together = np.concatenate([_unpacked(part[0], bits) for part in parts], axis=-1)
        return [_packed_bits(together)]


def moved(circuit: QuantumCircuit, places: Places, target: Any) -> QuantumCircuit:
    """A circuit in a device's gates on other qubits of the device.

    Where a coupler has its gate in the other direction only, Qiskit's transpiler turns it, without any optimisation; nothing
    is routed.
    """
    copy = _empty(circuit.num_qubits, circuit.cregs)
    for instruction in circuit.data:
        qubits = [places.get(circuit.find_bit(qubit).index) for qubit in instruction.qubits]
        if instruction.operation.name == "barrier":
            if kept := [qubit for qubit in qubits if qubit is not None]:
                copy.barrier(kept)
        elif None not in qubits:
            copy.append(instruction.operation, qubits, instruction.clbits, copy=False)
        elif instruction.operation.name != "delay":
            raise ValueError(
                f"packing: got a circuit with {instruction.operation.name!r} outside its region; report this."
            )
    if all(_is_supported(copy, instruction, target) for instruction in copy.data):
        return copy
    in_place = range(circuit.num_qubits)
    turned = generate_preset_pass_manager(0, target=target, initial_layout=list(in_place), seed_transpiler=0).run(copy)
    turned.global_phase = 0.0
    return turned


def _empty(width: int, registers: Sequence[ClassicalRegister]) -> QuantumCircuit:
    circuit = QuantumCircuit(width)
    circuit.add_register(*registers)
    return circuit


def compacted(circuit: QuantumCircuit, qubits: Sequence[int]) -> QuantumCircuit:
    """The circuit on some of its qubits, in that order, which are all that it acts on."""
    place = {qubit: number for number, qubit in enumerate(qubits)}
    compact = _empty(len(place), circuit.cregs)
    for instruction in circuit.data:
        kept = [place[index] for q in instruction.qubits if (index := circuit.find_bit(q).index) in place]
        if len(kept) == len(instruction.qubits):
            compact.append(instruction.operation, kept, instruction.clbits, copy=False)
        elif kept:
            compact.barrier(kept)
    return compact


def pieces_of_rows(
    circuits: Sequence[tuple[int, int, int]], shots: int, executions_of: Callable[[int], int], *, rotate: str | None
) -> int:
    """In how many pieces each row's shots are taken, so that few regions are idle.

    Args:
        circuits: Of each circuit its rows, its regions and its measurement bases.
        shots: Of each row.
        executions_of: How often a circuit is executed for so many shots.
        rotate: As in :class:`Packing`.
    """
    most = min(shots, max((regions for _, regions, _ in circuits), default=1))
    if rotate == "shots":
        return most

    def executions(pieces: int) -> int:
        sets = sum(bases * -(-rows * pieces // regions) for rows, regions, bases in circuits)
        return sets * executions_of(-(-shots // pieces))

    costs = {pieces: executions(pieces) for pieces in range(1, most + 1)}
    return next(pieces for pieces, cost in costs.items() if cost <= _NEARLY * min(costs.values()))


def rows_apart(pubs: Sequence[Sequence[np.ndarray]], rows: PackedRows, shots: int) -> Arrays:
    """The results of rows, as if each had been measured alone: the arrays of one PUB, from those of the PUBs of its sets.

    Args:
        pubs: The arrays of each, in the order of the sets.
        rows: Which rows they are.
        shots: That were asked for of each row. Pieces of equal size may have more in all, by less than one for each piece:
            these are left out, of each piece one at most. What twirling has added stays.

    Raises:
        WrongResult: If they are those of other rows.
    """
    regions = len(rows.layouts)
    sets, places = rows.places()
    if not rows.bits:
        tables = [_by_region(arrays, regions, rows.num_sets) for arrays in zip(*pubs, strict=True)]
        return [[table[places[:, 0], :, sets[:, 0]].T for table in tables]]
    together = np.concatenate([_unpacked(array, rows.bits * regions) for (array,) in pubs])
    if len(together) != rows.num_sets:
        raise WrongResult(f"got {len(together)} sets of copies, expected {rows.num_sets}.")
    taken = together.reshape(rows.num_sets, -1, regions, rows.bits)
    pieces = taken[sets, :, places]  # (rows, pieces, shots, bits)
    surplus = rows.pieces * rows.shots - shots
    whole = pieces.swapaxes(1, 2).reshape(rows.rows, -1, rows.bits)
    return [[_packed_bits(whole[:, : whole.shape[1] - surplus])]]


def _by_region(arrays: Sequence[np.ndarray], regions: int, num_sets: int) -> np.ndarray:
    """Shape (regions, outputs, sets)."""
    whole = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    if whole.shape[1] != num_sets or len(whole) % regions:
        raise WrongResult(f"got values of shape {whole.shape}, expected those of {regions} copies and {num_sets} sets.")
    return whole.reshape(regions, -1, num_sets)


def _unpacked(array: np.ndarray, bits: int) -> np.ndarray:
    """Shape (sets, shots, bits), from bytes of shape (..., shots, bytes); bit 0 comes first."""
    if array.shape[-1] != math.ceil(bits / 8):
        raise WrongResult(f"got {array.shape[-1]} bytes a shot, expected those of {bits} bit(s).")
    flat = array.reshape(-1, *array.shape[-2:])
    return np.unpackbits(flat, axis=-1, bitorder="big")[..., ::-1][..., :bits]


def _packed_bits(bits: np.ndarray) -> np.ndarray:
    return np.asarray(BitArray.from_bool_array(bits.astype(bool), order="little").array)


def _is_supported(circuit: QuantumCircuit, instruction: Any, target: Any) -> bool:
    name = instruction.operation.name
    qubits = tuple(circuit.find_bit(qubit).index for qubit in instruction.qubits)
    return name in ("barrier", "delay") or bool(target.instruction_supported(name, qubits))


def _moved_observable(observable: SparsePauliOp, places: Mapping[int, int]) -> SparsePauliOp:
    x, z = (np.zeros_like(observable.paulis.x) for _ in range(2))
    acted_on = sorted(places)
    elsewhere = [places[qubit] for qubit in acted_on]
    x[:, elsewhere], z[:, elsewhere] = observable.paulis.x[:, acted_on], observable.paulis.z[:, acted_on]
    return SparsePauliOp(PauliList.from_symplectic(z, x), observable.coeffs)


def _restricted(observable: SparsePauliOp, qubits: Sequence[int]) -> SparsePauliOp:
    kept = list(qubits)
    return SparsePauliOp(
        PauliList.from_symplectic(observable.paulis.z[:, kept], observable.paulis.x[:, kept]), observable.coeffs
    )
