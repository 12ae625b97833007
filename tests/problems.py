"""Circuits that every rule and every backend is tried on, and what Qiskit itself says about them.

A :class:`Problem` is a circuit as a user would write it, with its columns and observables. Its *oracle* never sees the
package under test: values are those of :class:`qiskit.quantum_info.Statevector` on the user's original circuit, bound
by object, and derivatives are central differences of those values, extrapolated (Richardson) until only rounding is
left.

``PROBLEMS`` maps names to builders; ``problem(name)`` and ``oracle(name)`` build once.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ClassicalRegister, Gate, Parameter, ParameterExpression, ParameterVector, QuantumRegister
from qiskit.circuit import library as lib
from qiskit.circuit.exceptions import CircuitError
from qiskit.quantum_info import SparsePauliOp, Statevector, random_unitary
from qiskit.synthesis import SuzukiTrotter
from scipy.sparse import SparseEfficiencyWarning

from qiskit_torch_bridge import Program, QuantumLayer

ROWS = 2
"""Rows of the batch at which the oracle is tabulated."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A circuit, its columns and what to measure.

    Attributes:
        circuit: The user's circuit.
        observables: What the outputs are.
        inputs: The parameters of the features, in column order.
        weights: The trainable parameters in column order, or groups of them by name.
        reference: The circuit that the oracle runs, where it is not ``circuit`` (product formulas).
        closed_form: The outputs as a formula of one row of features and the weights, where there is one.
        low, high: Where inputs and weights are drawn from; within the domain of the circuit's expressions.
    """

    circuit: QuantumCircuit
    observables: tuple[SparsePauliOp, ...]
    inputs: tuple[Parameter, ...] = ()
    weights: tuple[Parameter, ...] | Mapping[str, tuple[Parameter, ...]] = ()
    reference: QuantumCircuit | None = None
    closed_form: Callable[[np.ndarray, np.ndarray], list[float]] | None = None
    low: float = -3.0
    high: float = 3.0

    @cached_property
    def program(self) -> Program:
        """What a layer compiles; once, whatever rules and backends the circuit is then tried with."""
        observables = list(self.observables)
        return QuantumLayer(self.circuit, inputs=self.inputs, weights=self.weights, observables=observables).program

    @property
    def groups(self) -> dict[str, tuple[Parameter, ...]]:
        """The weights as groups; a plain list is the one group ``weights``."""
        return dict(self.weights) if isinstance(self.weights, Mapping) else {"weights": self.weights}

    @property
    def flat_weights(self) -> tuple[Parameter, ...]:
        """All weights, group after group."""
        return tuple(parameter for group in self.groups.values() for parameter in group)

    def layer(self, weights: np.ndarray, **options: Any) -> QuantumLayer:
        """The layer of this problem with the given weights, in double precision."""
        init, position = {}, 0
        for name, group in self.groups.items():
            init[name] = torch.as_tensor(weights[position : position + len(group)], dtype=torch.float64)
            position += len(group)
        as_it_is = options.keys().isdisjoint(("observables", "probabilities"))
        options = {"observables": list(self.observables), **options}
        with patch.object(Program, "compile", return_value=self.program) if as_it_is else nullcontext():
            return QuantumLayer(self.circuit, inputs=self.inputs, weights=self.weights, init=init, **options)


@dataclass(frozen=True, eq=False)
class Oracle:
    """A problem at a point, by Qiskit alone.

    Attributes:
        inputs: Shape (N, I).
        weights: Shape (W,).
        values: Shape (N, M).
        by_inputs: Shape (N, M, I): the derivatives of each row's values by its own features.
        by_weights: Shape (N, M, W).
    """

    inputs: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    by_inputs: np.ndarray
    by_weights: np.ndarray

    def gradients(self, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vector-Jacobian products of shape (N, I) and (W,)."""
        return np.einsum("nm,nmi->ni", upstream, self.by_inputs), np.einsum("nm,nmw->w", upstream, self.by_weights)


def statevector_values(problem: Problem, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shape (N, M): the outputs by Qiskit's simulator; parameters are bound by object, not by name or order."""
    circuit = problem.circuit if problem.reference is None else problem.reference
    circuit = circuit.remove_final_measurements(inplace=False) if circuit.clbits else circuit
    values = []
    for row in inputs:
        bound = {**dict(zip(problem.inputs, row, strict=True)), **dict(zip(problem.flat_weights, weights, strict=True))}
        with warnings.catch_warnings():
            # SciPy comments on how Qiskit computes the exponential of a PauliEvolutionGate.
            warnings.simplefilter("ignore", SparseEfficiencyWarning)
            state = Statevector(circuit.assign_parameters({p: float(v) for p, v in bound.items()}))
        values.append([state.expectation_value(observable).real for observable in problem.observables])
    return np.array(values)


def derivatives(function: Callable[[np.ndarray], np.ndarray], point: np.ndarray, step: float = 3e-4) -> np.ndarray:
    """Derivatives by each entry of ``point``, along a new last axis.

    Two central differences cancel the error of order step**2, which leaves some 1e-11 of truncation and rounding.
    """

    def central(entry: int, h: float) -> np.ndarray:
        shift = np.zeros_like(point)
        shift[entry] = h
        return (function(point + shift) - function(point - shift)) / (2 * h)

    columns = [(4 * central(entry, step / 2) - central(entry, step)) / 3 for entry in range(len(point))]
    return np.stack(columns, axis=-1) if columns else np.zeros((*function(point).shape, 0))


def oracle_at(problem: Problem, inputs: np.ndarray, weights: np.ndarray) -> Oracle:
    """Values and derivatives at a point."""
    by_inputs = [derivatives(lambda row: statevector_values(problem, row[None], weights)[0], row) for row in inputs]
    return Oracle(
        inputs,
        weights,
        statevector_values(problem, inputs, weights),
        np.stack(by_inputs),
        derivatives(lambda w: statevector_values(problem, inputs, w), weights),
    )


def point(problem: Problem, rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random point: inputs of shape (rows, I), or one row where there are none, and weights of shape (W,)."""
    rng = np.random.default_rng(seed)
    rows = rows if problem.inputs else 1
    inputs = rng.uniform(problem.low, problem.high, (rows, len(problem.inputs)))
    return inputs, rng.uniform(problem.low, problem.high, len(problem.flat_weights))


def features(oracle: Oracle, **options: Any) -> torch.Tensor | None:
    """The oracle's inputs as a tensor; None where the circuit has none."""
    return torch.tensor(oracle.inputs, **options) if oracle.inputs.shape[1] else None


PROBLEMS: dict[str, Callable[[], Problem]] = {}


@cache
def problem(name: str) -> Problem:
    """The problem of that name."""
    return PROBLEMS[name]()


@cache
def oracle(name: str) -> Oracle:
    """The oracle of the problem of that name, at a fixed random point."""
    return oracle_at(problem(name), *point(problem(name)))


def register(builder: Callable[[], Problem]) -> Callable[[], Problem]:
    PROBLEMS[builder.__name__] = builder
    return builder


def z(num_qubits: int, *qubits: int) -> SparsePauliOp:
    """Z on the named qubits."""
    return SparsePauliOp("".join("Z" if qubit in qubits else "I" for qubit in reversed(range(num_qubits))))


def generic_observables(num_qubits: int) -> tuple[SparsePauliOp, ...]:
    """One that measures one qubit, one in other bases, and a sum of terms that do not all commute."""
    rng = np.random.default_rng(num_qubits)
    labels = ["".join(rng.choice(list("IXYZ"), num_qubits)) for _ in range(4)]
    return (
        z(num_qubits, 0),
        SparsePauliOp("".join(rng.choice(list("XYZ"), num_qubits))),
        SparsePauliOp([*labels, "I" * num_qubits], rng.normal(size=5)),
    )


def mix(circuit: QuantumCircuit, seed: int) -> None:
    """Fixed gates that leave no qubit in an eigenstate of anything, so that no wrong angle goes unseen."""
    rng = np.random.default_rng(seed)
    for qubit in range(circuit.num_qubits):
        circuit.u(*rng.uniform(0.3, 2.8, 3), qubit)
    for qubit in range(circuit.num_qubits - 1):
        circuit.cx(qubit, qubit + 1)


def mixed(num_qubits: int, *parts: Callable[[QuantumCircuit], Any]) -> QuantumCircuit:
    """The parts, with fixed mixing gates before, between and after them."""
    circuit = QuantumCircuit(num_qubits)
    mix(circuit, 0)
    for seed, part in enumerate(parts, start=1):
        part(circuit)
        mix(circuit, seed)
    return circuit


# --- every parameterised gate -----------------------------------------------------------------------------------------

STANDARD_GATES: dict[str, tuple[Callable[..., Gate], int]] = {
    name: (type(gate), len(gate.params))
    for name, gate in lib.get_standard_gate_name_mapping().items()
    if gate.params and name not in ("delay", "global_phase")
}
"""All of Qiskit's standard gates with parameters, those of later versions included: (gate, number of arguments)."""

OTHER_GATES: dict[str, tuple[Callable[..., Gate], int]] = {
    "mcp": (lambda angle: lib.MCPhaseGate(angle, 2), 1),
    "ccry": (lambda angle: lib.RYGate(angle).control(2, annotated=False), 1),
    "ccrx_annotated": (lambda angle: lib.RXGate(angle).control(2, annotated=True), 1),
    "ccrx_half_open": (lambda angle: lib.RXGate(angle).control(2, ctrl_state=1, annotated=False), 1),
    "crz_open": (lambda angle: lib.CRZGate(angle, ctrl_state=0), 1),
    "cp_open": (lambda angle: lib.CPhaseGate(angle, ctrl_state=0), 1),
    "cu_open": (lambda *angles: lib.CUGate(*angles, ctrl_state=0), 4),
    "crzz": (lambda angle: lib.RZZGate(angle).control(1, annotated=False), 1),
    "controlled_global_phase": (lambda angle: lib.GlobalPhaseGate(angle).control(1), 1),
    "inverse": (lambda *angles: lib.UGate(*angles).inverse(), 3),
    "power": (lambda angle: lib.RXXGate(angle).power(3), 1),
}


def _gate_problem(make: Callable[..., Gate], num_arguments: int) -> Problem:
    """The gate with inputs on the first qubits, and again with weights on the last ones in reverse order."""
    x, t = ParameterVector("x", num_arguments), ParameterVector("t", num_arguments)
    width = make(*x).num_qubits
    n = max(2, width)
    circuit = mixed(
        n, lambda c: c.append(make(*x), range(width)), lambda c: c.append(make(*t), range(n - 1, n - 1 - width, -1))
    )
    return Problem(circuit, generic_observables(n), tuple(x), tuple(t))


PROBLEMS.update(
    {f"gate_{name}": partial(_gate_problem, *gate) for name, gate in {**STANDARD_GATES, **OTHER_GATES}.items()}
)


# --- parameter expressions --------------------------------------------------------------------------------------------

EXPRESSIONS: dict[str, Callable[..., ParameterExpression]] = {
    "multiple": lambda x, a, b: 2 * a,
    "negative": lambda x, a, b: -b,
    "affine": lambda x, a, b: (x - 2 * a) / 3 + 0.4 * b + 0.3,
    "product": lambda x, a, b: a * b,
    "input_times_weight": lambda x, a, b: x * a,
    "input_times_weight_plus_bias": lambda x, a, b: x * a + b,
    "sin": lambda x, a, b: b.sin() + x / 2,
    "cos": lambda x, a, b: (a * x).cos() - b / 3,
    "tan": lambda x, a, b: (x / 4).tan(),
    "arctan": lambda x, a, b: (a - x).arctan(),
    "exp": lambda x, a, b: (b / 2).exp(),
    "exponential_base": lambda x, a, b: 2**a,
    "exponential_base_nested": lambda x, a, b: (2 ** (a - x)).sin() * b,
    "square": lambda x, a, b: a**2,
    "feature_map": lambda x, a, b: (math.pi - x) * (math.pi - a),
    "quotient": lambda x, a, b: a / (2 + b**2),
    "abs": lambda x, a, b: abs(a - x),
    "sign": lambda x, a, b: (x - 1).sign() * a,
    "conjugate": lambda x, a, b: a.conjugate() * x,
}
POSITIVE_EXPRESSIONS: dict[str, Callable[..., ParameterExpression]] = {
    "log": lambda x, a, b: a.log(),
    "root": lambda x, a, b: x**0.5,
    "power": lambda x, a, b: x**a,
    "arcsin": lambda x, a, b: a.arcsin(),
    "arccos": lambda x, a, b: (a * x).arccos(),
}
"""Those whose domain is not the whole line."""


def _expression_problem(expression: Callable[..., ParameterExpression], low: float, high: float) -> Problem:
    x, a, b = (Parameter(name) for name in "xab")
    circuit = mixed(
        2,
        lambda c: (c.rx(x, 0), c.ry(a, 1), c.rz(b, 0)),
        lambda c: (c.ry(expression(x, a, b), 0), c.rzz(expression(x, a, b) / 2 + a, 0, 1)),
    )
    return Problem(circuit, generic_observables(2), (x,), (a, b), low=low, high=high)


PROBLEMS.update(
    {f"expression_{name}": partial(_expression_problem, e, -2.0, 2.0) for name, e in EXPRESSIONS.items()}
    | {f"expression_{name}": partial(_expression_problem, e, 0.2, 0.8) for name, e in POSITIVE_EXPRESSIONS.items()}
)


# --- ways to build a circuit ------------------------------------------------------------------------------------------


@register
def cosine() -> Problem:
    x = Parameter("x")
    circuit = QuantumCircuit(1)
    circuit.ry(x, 0)
    return Problem(circuit, (z(1, 0),), inputs=(x,), closed_form=lambda row, w: [math.cos(row[0])])


@register
def textbook() -> Problem:
    """Hadamard, then a rotation by the input: <Z> = -sin(x)."""
    x = Parameter("x")
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.ry(x, 0)
    return Problem(circuit, (z(1, 0),), inputs=(x,), closed_form=lambda row, w: [-math.sin(row[0])])


@register
def entangled_pair() -> Problem:
    """An input and a weight behind an entangling gate: <Z0> = cos x, <Z1> = cos x cos w, and their product."""
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.ry(w, 1)
    circuit.cx(0, 1)
    return Problem(
        circuit,
        (z(2, 0), z(2, 1), z(2, 0, 1)),
        inputs=(x,),
        weights=(w,),
        closed_form=lambda row, w: [math.cos(row[0]), math.cos(row[0]) * math.cos(w[0]), math.cos(w[0])],
    )


def _problem_of_only(kind: str) -> Problem:
    v = ParameterVector("v", 3)
    circuit = mixed(2, lambda c: (c.rx(v[0], 0), c.ryy(v[1], 0, 1)), lambda c: c.rz(v[2], 1))
    return Problem(circuit, generic_observables(2), **{kind: tuple(v)})


PROBLEMS.update({f"only_{kind}": partial(_problem_of_only, kind) for kind in ("weights", "inputs")})


@register
def shared_parameters() -> Problem:
    """One weight in seven gates, at different speeds, and one input in three (re-uploading)."""
    x, t = Parameter("x"), Parameter("t")
    circuit = mixed(
        3,
        lambda c: [c.ry(t, q) for q in range(3)] + [c.rx(x, q) for q in range(2)],
        lambda c: (c.rzz(t, 0, 2), c.rz(-2 * t, 1), c.crx(t / 2, 2, 0), c.p(x * t, 1)),
        lambda c: c.rx(x, 2),
    )
    return Problem(circuit, generic_observables(3), (x,), (t,))


@register
def global_phases() -> Problem:
    """Parameters that only, and that also, appear in a global phase; behind a control the phase is seen."""
    a, b, x = Parameter("a"), Parameter("b"), Parameter("x")
    phased = QuantumCircuit(1, global_phase=a + x)
    phased.rx(x, 0)
    circuit = mixed(2, lambda c: c.append(phased.to_gate().control(1, annotated=False), [0, 1]), lambda c: c.ry(x, 1))
    circuit.global_phase += a * x + b
    return Problem(circuit, generic_observables(2), (x,), (a, b))


@register
def global_phase_gate() -> Problem:
    a, x = Parameter("a"), Parameter("x")
    circuit = mixed(2, lambda c: (c.rx(x, 0), c.ry(a, 1)))
    circuit.append(lib.GlobalPhaseGate(a), [])
    circuit.append(lib.GlobalPhaseGate(a * x), [])
    return Problem(circuit, generic_observables(2), (x,), (a,))


@register
def nested_instructions() -> Problem:
    """Gates within gates within an instruction, with parameters renamed, inverted, controlled and repeated."""
    inner_angle, x, t = Parameter("inner"), Parameter("x"), ParameterVector("t", 2)
    inner = QuantumCircuit(2, name="inner")
    inner.ry(inner_angle, 0)
    inner.crz(2 * inner_angle, 0, 1)
    middle = QuantumCircuit(3, name="middle", global_phase=x / 2)
    middle.append(inner.to_gate({inner_angle: t[0]}), [2, 0])
    middle.append(inner.to_gate({inner_angle: x}).inverse(), [1, 2])
    middle.append(inner.to_gate({inner_angle: x * t[1]}).control(1, annotated=False), [0, 2, 1])
    circuit = mixed(3, lambda c: c.append(middle.to_instruction(), [1, 2, 0]))
    circuit.compose(inner.assign_parameters({inner_angle: t[1]}).repeat(2), [0, 2], inplace=True)
    return Problem(circuit, generic_observables(3), (x,), tuple(t))


@register
def constant_gates() -> Problem:
    """Everything that has no parameter, around two rotations."""
    x, t = Parameter("x"), Parameter("t")

    def standard(c: QuantumCircuit) -> None:
        c.ccx(0, 1, 2)
        c.swap(0, 2)
        c.ecr(1, 0)
        c.iswap(0, 1)
        c.dcx(1, 2)
        c.ccz(0, 1, 2)
        c.cswap(2, 0, 1)
        c.rccx(0, 1, 2)
        c.csx(2, 1)
        c.barrier()
        c.sxdg(1)
        c.id(0)
        c.delay(100, 2)
        c.mcx([0, 1], 2)
        c.append(lib.PermutationGate([2, 0, 1]), range(3))
        c.pauli("XYZ", range(3))
        c.rx(0.7, 0)
        c.u(0.1, 0.2, 0.3, 1)
        c.cu(0.1, 0.2, 0.3, 0.4, 2, 0)

    def matrices(c: QuantumCircuit) -> None:
        c.unitary(random_unitary(4, seed=1), [2, 0])
        c.unitary(random_unitary(8, seed=2), [1, 0, 2])
        c.append(lib.UnitaryGate(random_unitary(2, seed=3)).control(1, annotated=False), [2, 1])
        c.append(lib.DiagonalGate([1, -1, 1j, -1j]), [0, 2])
        c.barrier(0, 2)

    circuit = mixed(3, standard, lambda c: (c.ry(x, 1), c.rzx(t, 2, 0)), matrices)
    return Problem(circuit, generic_observables(3), (x,), (t,))


@register
def initialized() -> Problem:
    x, t = Parameter("x"), Parameter("t")
    circuit = QuantumCircuit(3)
    circuit.initialize(np.array([1, 2j, -1, 0.5]) / 2.5, [0, 2])
    circuit.reset(1)
    circuit.barrier()
    mix(circuit, 1)
    circuit.rx(x, 0)
    circuit.cry(t, 0, 2)
    mix(circuit, 2)
    return Problem(circuit, generic_observables(3), (x,), (t,))


@register
def state_preparation() -> Problem:
    """A prepared state; unlike ``initialize`` it may stand anywhere, because it is a gate."""
    x, t = Parameter("x"), Parameter("t")
    circuit = mixed(
        2, lambda c: (c.prepare_state([0.6, 0.8j], 0), c.ry(x, 1)), lambda c: (c.prepare_state("+-"), c.rzz(t, 0, 1))
    )
    return Problem(circuit, generic_observables(2), (x,), (t,))


@register
def idle_and_bare_qubits() -> Problem:
    """Qubit 1 has fixed gates only, qubit 3 none at all."""
    x, t = Parameter("x"), Parameter("t")
    circuit = QuantumCircuit(4)
    circuit.h(1)
    circuit.ry(x, 0)
    circuit.rx(t, 2)
    circuit.cx(1, 2)
    circuit.cz(0, 1)
    return Problem(circuit, (*generic_observables(4), z(4, 3)), (x,), (t,))


@register
def several_registers() -> Problem:
    x, t = Parameter("x"), Parameter("t")
    circuit = QuantumCircuit(QuantumRegister(1, "a"), QuantumRegister(2, "b"), ClassicalRegister(2, "c"))
    mix(circuit, 0)
    circuit.ry(x, circuit.qregs[1][1])
    circuit.crx(t, circuit.qregs[1][0], circuit.qregs[0][0])
    mix(circuit, 1)
    return Problem(circuit, generic_observables(3), (x,), (t,))


@register
def many_parameters() -> Problem:
    """Eleven and more: in order of their names ``t10`` comes before ``t2``, and columns would be permuted."""
    x = [Parameter(f"x{i}") for i in range(12)]
    t = [Parameter(f"t{i}") for i in range(13)]
    circuit = mixed(
        2,
        lambda c: [c.ry(p, i % 2) for i, p in enumerate(x)] + [c.cx(0, 1)],
        lambda c: [(c.rx, c.ry, c.rz)[i % 3](p, i % 2) for i, p in enumerate(t)],
    )
    return Problem(circuit, generic_observables(2), tuple(x), tuple(t))


@register
def columns_in_any_order() -> Problem:
    """The order of the lists is the order of the columns, whatever the circuit or a vector says."""
    v, b, a = ParameterVector("v", 4), Parameter("b"), Parameter("a")
    circuit = mixed(
        2, lambda c: (c.ry(a, 0), c.rx(v[0], 1), c.ry(v[3], 0)), lambda c: (c.rz(v[1], 1), c.rxx(b, 0, 1), c.p(v[2], 0))
    )
    return Problem(circuit, generic_observables(2), (v[2], b, v[0]), (v[3], a, v[1]))


@register
def weight_groups() -> Problem:
    """Weights in named groups, one of which shares angles with the inputs and another group."""
    x, a, b = ParameterVector("x", 2), ParameterVector("a", 2), ParameterVector("b", 3)
    circuit = mixed(
        2,
        lambda c: (c.ry(x[0], 0), c.rx(a[0] + x[1], 1)),
        lambda c: (c.crz(a[1] * b[0], 0, 1), c.ry(b[1], 0), c.rx(b[2] * x[0], 1)),
    )
    return Problem(circuit, generic_observables(2), tuple(x), {"second": tuple(b), "first": tuple(a)})


@register
def angles_outside_the_light_cone() -> Problem:
    """Only qubit 0 is measured, and qubits 2 and 3 never meet it."""
    x, t = ParameterVector("x", 2), ParameterVector("t", 3)
    circuit = QuantumCircuit(4)
    circuit.ry(x[0], 0)
    circuit.ry(x[1], 2)
    circuit.rx(t[0], 1)
    circuit.cx(1, 0)
    circuit.crx(t[1], 2, 3)
    circuit.rz(t[2], 1)
    return Problem(circuit, (z(4, 0),), tuple(x), tuple(t))


# --- evolutions -------------------------------------------------------------------------------------------------------


def _evolution_problem(hamiltonian: SparsePauliOp, *, by_definition: bool, synthesis: Any = None) -> Problem:
    """``by_definition``: the gate stands for its product formula, while Statevector takes the exact exponential."""
    x, t = Parameter("x"), Parameter("t")
    circuits = [QuantumCircuit(hamiltonian.num_qubits) for _ in range(2)]
    for circuit, spell_out in zip(circuits, (False, by_definition), strict=True):
        mix(circuit, 0)
        for time in (x, 2 * t):
            gate = lib.PauliEvolutionGate(hamiltonian, time, synthesis=synthesis)
            if spell_out:
                circuit.compose(gate.definition, inplace=True)
            else:
                circuit.append(gate, circuit.qubits)
            mix(circuit, 1)
    return Problem(circuits[0], generic_observables(hamiltonian.num_qubits), (x,), (t,), reference=circuits[1])


_COMMUTING = SparsePauliOp(["XXI", "ZZI", "IIZ", "III"], [0.5, -0.3, 0.7, 0.2])
_NOT_COMMUTING = SparsePauliOp(["XX", "ZI", "YZ"], [0.5, -0.3, 0.7])
PROBLEMS["evolution_of_commuting_terms"] = partial(_evolution_problem, _COMMUTING, by_definition=False)
PROBLEMS["evolution_by_product_formula"] = partial(_evolution_problem, _NOT_COMMUTING, by_definition=True)
PROBLEMS["evolution_by_suzuki_formula"] = partial(
    _evolution_problem, _NOT_COMMUTING, by_definition=True, synthesis=SuzukiTrotter(order=2, reps=2)
)


# --- Qiskit's circuit library -----------------------------------------------------------------------------------------

_ISING = SparsePauliOp(["ZZI", "IZZ", "XII"], [1.0, -0.5, 0.3])

ANSAETZE: dict[str, Callable[[], QuantumCircuit]] = {
    "real_amplitudes": lambda: lib.real_amplitudes(3, reps=1),
    "efficient_su2": lambda: lib.efficient_su2(2, reps=1, insert_barriers=True),
    "n_local": lambda: lib.n_local(3, ["ry", "rx"], "crz", entanglement="linear", reps=1),
    "pauli_two_design": lambda: lib.pauli_two_design(3, reps=2, seed=5),
    "excitation_preserving": lambda: lib.excitation_preserving(2, reps=1),
    "qaoa_ansatz": lambda: lib.qaoa_ansatz(_ISING, reps=2),
    "hamiltonian_variational_ansatz": lambda: lib.hamiltonian_variational_ansatz(_ISING, reps=1),
    "evolved_operator_ansatz": lambda: lib.evolved_operator_ansatz(_ISING, reps=2),
    "RealAmplitudes": lambda: lib.RealAmplitudes(3, reps=1),
    "EfficientSU2": lambda: lib.EfficientSU2(2, reps=1),
    "TwoLocal": lambda: lib.TwoLocal(2, ["ry", "rz"], "cp", reps=1),
    "NLocal": lambda: lib.NLocal(2, lib.RXGate(Parameter("a")), lib.CRYGate(Parameter("b")), reps=1),
    "ExcitationPreserving": lambda: lib.ExcitationPreserving(2, reps=1, mode="fsim"),
    "QAOAAnsatz": lambda: lib.QAOAAnsatz(SparsePauliOp(["ZZI", "IZZ"], [1.0, -0.5]), reps=2),
}
FEATURE_MAPS: dict[str, Callable[[], QuantumCircuit]] = {
    "z_feature_map": lambda: lib.z_feature_map(2),
    "zz_feature_map": lambda: lib.zz_feature_map(3, reps=1),
    "pauli_feature_map": lambda: lib.pauli_feature_map(2, paulis=["X", "ZY"], alpha=0.7),
    "ZZFeatureMap": lambda: lib.ZZFeatureMap(3, reps=1),
    "PauliFeatureMap": lambda: lib.PauliFeatureMap(2, paulis=["Z", "XY"]),
}


def _library_problem(ansatz: Callable[[], QuantumCircuit], feature_map: Callable[[], QuantumCircuit] | None) -> Problem:
    with warnings.catch_warnings():
        # The older classes are deprecated, but they are what most tutorials use.
        warnings.simplefilter("ignore", DeprecationWarning)
        body, head = ansatz(), feature_map() if feature_map else None
        circuit = QuantumCircuit(body.num_qubits)
        mix(circuit, 0)
        if head is not None:
            circuit.compose(head, range(head.num_qubits), inplace=True)
        circuit.compose(body, inplace=True)
        mix(circuit, 1)
        inputs = tuple(head.parameters) if head else ()
        return Problem(circuit, generic_observables(body.num_qubits), inputs, tuple(body.parameters))


PROBLEMS.update({f"library_{name}": partial(_library_problem, ansatz, None) for name, ansatz in ANSAETZE.items()})
_BEHIND = partial(lib.real_amplitudes, 3, reps=1)
PROBLEMS.update({f"library_{name}": partial(_library_problem, _BEHIND, head) for name, head in FEATURE_MAPS.items()})


# --- random circuits --------------------------------------------------------------------------------------------------


def _random_problem(seed: int) -> Problem:
    """Any gates on any qubits, with expressions of a few shared parameters for arguments."""
    rng = np.random.default_rng(seed)
    x, t = ParameterVector("x", 2), ParameterVector("t", 3)
    parameters = [*x, *t]
    plain = [g for g in lib.get_standard_gate_name_mapping().values() if isinstance(g, Gate) and not g.params]
    rotations = list({**STANDARD_GATES, **OTHER_GATES}.values())

    def argument() -> ParameterExpression | float:
        a, b = (parameters[i] for i in rng.integers(len(parameters), size=2))
        return (a, 2 * a - b + 0.3, a * b, a.sin() - b / 2, 0.4)[rng.integers(5)]

    circuit = QuantumCircuit(4)
    for i, parameter in enumerate(parameters):
        circuit.ry(parameter, i % 4)
    for _ in range(8):
        make, num_arguments = rotations[rng.integers(len(rotations))]
        for gate in (plain[rng.integers(len(plain))], make(*(argument() for _ in range(num_arguments)))):
            if gate.num_qubits <= circuit.num_qubits:
                circuit.append(gate, rng.permutation(circuit.num_qubits)[: gate.num_qubits].tolist())
    return Problem(circuit, generic_observables(4), tuple(x), tuple(t))


PROBLEMS.update({f"random_{seed}": partial(_random_problem, seed) for seed in range(8)})


class AmplitudeGate(Gate):
    """Amplitudes as parameters, up to their norm: its definition can only be computed from numbers."""

    def __init__(self, *amplitudes):
        super().__init__("amplitudes", 1, list(amplitudes))

    def _define(self):
        if any(getattr(amplitude, "parameters", ()) for amplitude in self.params):
            raise CircuitError("amplitudes must be numbers")
        amplitudes = np.array([float(amplitude) for amplitude in self.params])
        self.definition = QuantumCircuit(1)
        self.definition.prepare_state(amplitudes / np.linalg.norm(amplitudes), 0)


def only_defined_for_numbers() -> tuple[QuantumCircuit, ParameterVector, ParameterVector]:
    """A circuit whose inputs enter a gate without parameters of its own to shift: each row is a circuit by itself.

    Returns:
        The circuit, its two inputs, and its weight.
    """
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.append(lib.RVGate(x[0], x[1], 0.2), [0])
    circuit.ry(w[0], 0)
    return circuit, x, w
