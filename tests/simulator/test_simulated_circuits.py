"""What the compiled simulator makes of circuits, against Qiskit's gate matrices and operators and closed forms."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import SparsePauliOp, Statevector, random_unitary
from simulator_cases import (
    GATES,
    GRADIENTS,
    ROTATIONS,
    VALUES,
    Case,
    oracle_states,
    pauli,
    random_circuit,
    random_strings,
    real_circuit,
    shifted,
    some_observables,
)

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.simulator import cone_engine, threads
from qiskit_torch_bridge.simulator.engine import Simulator


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_oracle_is_qiskits(n):
    case = Case(random_circuit(n, n, 60), some_observables(n))
    points = case.points(2)
    states = oracle_states(case.circuit, case.parameters, points)
    for point, state, values in zip(points, states, case.expected(points), strict=True):
        bound = dict(zip(case.parameters, point.tolist(), strict=True))
        truth = Statevector(case.circuit.assign_parameters(bound))
        np.testing.assert_allclose(state, truth.data, atol=1e-12)
        np.testing.assert_allclose(values, [truth.expectation_value(o).real for o in case.observables], atol=1e-12)


# ------------------------------------------------------------------------------------------------- all gates


ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 17, 40)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("seed", range(3))
def test_random_circuits_in_batches_of_all_sizes(n, seed):
    """Values and gradients of the first rows are those of the oracle, whatever comes after and beside them."""
    case = Case(random_circuit(n, 17 * seed, 45, free=12), some_observables(n, seed))
    assert len(case.parameters) >= 5
    points, upstream = case.points(max(ROWS)), case.upstream(max(ROWS))
    values, gradients = case.expected(points), case.expected_pullback(points, upstream)
    for rows in ROWS:
        np.testing.assert_allclose(case.values(points[:rows]), values[:rows], atol=VALUES)
        np.testing.assert_allclose(case.pullback(points[:rows], upstream[:rows]), gradients[:rows], atol=GRADIENTS)


@pytest.mark.parametrize("n", range(3, 10))
def test_rows_one_by_one_and_eight_side_by_side(monkeypatch, n):
    """Both layouts, whatever sizes each is chosen for."""
    case = Case(random_circuit(n, 3 * n, 45, free=6), some_observables(n))
    chosen = {case.simulator.lanes(rows) for rows in (1, 8, 1000)}
    assert chosen == {1, 8}
    for lanes in (1, 8):
        monkeypatch.setattr(Simulator, "lanes", lambda self, rows, lanes=lanes: lanes)
        case.check(1, 7, 8, 9)


@pytest.mark.parametrize("n", [10, 11, 12, 13])
def test_random_circuits_as_large_as_a_block(n):
    case = Case(random_circuit(n, n, 45, free=4), some_observables(n))
    points, upstream = case.points(9), case.upstream(9)
    values, gradients = case.expected(points), case.expected_pullback(points, upstream)
    for rows in (1, 2, 3, 9):
        np.testing.assert_allclose(case.values(points[:rows]), values[:rows], atol=VALUES)
        np.testing.assert_allclose(case.pullback(points[:rows], upstream[:rows]), gradients[:rows], atol=GRADIENTS)


@pytest.mark.parametrize(("n", "seed"), [(14, 3), (15, 26)])
def test_random_circuits_larger_than_a_block(n, seed):
    case = Case(random_circuit(n, seed, 45, free=4), some_observables(n))
    assert case.num_passes > 2
    case.check(3)


BLOCKS_AND_RUNS = [(3, 3), (4, 3), (5, 3), (6, 4), (7, 3)]


@pytest.mark.parametrize(
    ("block", "run", "seed", "keep"),
    [
        (*sizes, seed, (place + number) % 2 == 0)
        for place, sizes in enumerate(BLOCKS_AND_RUNS)
        for number, seed in enumerate([0, 11, 22])
    ],
)
def test_random_circuits_in_many_small_blocks(small_blocks, block, run, seed, keep):
    small_blocks(block, run)
    case = Case(random_circuit(8, seed, 60, free=8), some_observables(8, seed))
    assert case.num_passes > 3
    assert not case.simulator.plan.whole
    case.check(3, keep=keep)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_threads_share_the_blocks_of_several_rows(small_blocks, num_threads, monkeypatch, rows, count):
    """A thread may begin in the middle of a row, at blocks that are still zero."""
    small_blocks()
    monkeypatch.setattr(threads, "LEAST_SECONDS", 1e-15)
    num_threads(count)
    Case(random_circuit(8, 4, 40, free=5), some_observables(8)).check(rows)
    constant = Case(fixed(8), [pauli(8, X=7, Z=0)])
    points = np.zeros((rows, 0))
    np.testing.assert_allclose(constant.values(points), constant.expected(points), atol=VALUES)


def fixed(n: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(0.2 + 0.3 * qubit, qubit)
        circuit.cx(qubit, (qubit + max(1, n // 2)) % n)
    return circuit


@pytest.mark.parametrize("width", [6, 7, 8])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_gate_wider_than_a_block(small_blocks, width, where):
    """Its pass takes larger blocks, up to the whole state."""
    small_blocks()
    wide = UnitaryGate(random_unitary(2**width, seed=width))
    circuit = QuantumCircuit(8)
    if where == "first":
        circuit.append(wide, range(8 - width, 8))
    circuit.compose(random_circuit(8, 1, 15, free=4), inplace=True)
    if where == "middle":
        circuit.append(wide, range(8 - width, 8))
        for qubit in range(8):
            circuit.ry(Parameter(f"y{qubit}"), qubit)
        circuit.cx(0, 7)
        circuit.rx(Parameter("z"), 7)
    if where == "last":
        circuit.append(wide, range(8 - width, 8))
    case = Case(circuit, some_observables(8))
    assert any(one.num_qubits >= width for one in case.simulator.plan.passes)
    case.check(2)


@pytest.mark.slow
def test_a_unitary_on_ten_of_fourteen_qubits():
    """With the qubits of the runs its block is the whole state, in one pass of several."""
    circuit = fixed(14)
    circuit.rx(Parameter("a"), 9)
    circuit.append(UnitaryGate(random_unitary(2**10, seed=1)), range(4, 14))
    circuit.ry(Parameter("b"), 3)
    circuit.cx(3, 12)
    circuit.ry(Parameter("c"), 12)
    case = Case(circuit, [SparsePauliOp([pauli(14, Z=[0, 9, 12]), pauli(14, X=[12, 3])], [1.0, 2.0])])
    assert case.num_passes > 1
    assert any(len(one.outer_bits) == 0 for one in case.simulator.plan.passes)
    case.check(1)


# ------------------------------------------------------------------------------------------------- fusion


def test_one_qubit_gates_that_follow_each_other_are_one_operation():
    circuit = QuantumCircuit(1)
    for number, name in enumerate(["h", "rx", "s", "ry", "t", "rz", "x", "p", "sdg", "rx", "sx", "rz", "y"]):
        if name in ROTATIONS:
            circuit.append(GATES[name].base_class(Parameter(f"x{number:02d}")), [0])
        else:
            circuit.append(GATES[name], [0])
    case = Case(circuit, ["X", "Y", "Z"])
    assert case.simulator.plan.passes[0].num_operations == 1
    case.check(1, 2, 5, 9)


def test_permutations_that_follow_each_other_are_one_operation():
    circuit = QuantumCircuit(5)
    for qubit in range(5):
        circuit.ry(Parameter(f"a{qubit}"), qubit)
    for pair in [(0, 1), (1, 2), (4, 3), (2, 0), (3, 1)]:
        circuit.cx(*pair)
    circuit.cz(0, 4)
    circuit.swap(1, 3)
    circuit.ccx(0, 2, 4)
    circuit.ccz(4, 1, 0)
    circuit.cswap(1, 0, 3)
    circuit.dcx(2, 4)
    for qubit in range(5):
        circuit.rx(Parameter(f"b{qubit}"), qubit)
    case = Case(circuit, some_observables(5))
    assert case.simulator.plan.passes[0].num_operations == 11
    case.check(1, 3, 9)


def test_diagonals_on_a_pair_are_one_operation_in_either_order_of_the_qubits():
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.u(0.4 + qubit, 0.9, 1.3, qubit)
    gates = [("cp", (0, 3)), ("rzz", (3, 0)), ("cp", (3, 0)), ("cs", (3, 0)), ("csdg", (0, 3)), ("rzz", (0, 3))]
    for number, (name, pair) in enumerate(gates):
        gate = GATES[name].base_class(Parameter(f"x{number}")) if name in ROTATIONS else GATES[name]
        circuit.append(gate, pair)
    diagonal = np.exp(1j * np.array([0.1, 0.7, -0.4, 1.9]))
    circuit.append(UnitaryGate(np.diag(diagonal)), (3, 0))
    circuit.append(UnitaryGate(np.diag(diagonal)), (0, 3))
    case = Case(circuit, ["XIIX", "YIIX", "XIIZ", "IIIY"])
    assert case.simulator.plan.passes[0].num_operations == 5
    case.check(1, 2, 5, 9)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_layers_whose_gates_wait_for_each_other(n):
    """Ladders of entangling gates, from below, from above and in two colours, between rotations."""
    circuit = QuantumCircuit(n)
    count = 0
    for layer in range(3):
        for qubit in range(n):
            gate = GATES[["ry", "rx", "rz"][(layer + qubit) % 3]]
            circuit.append(gate.base_class(Parameter(f"x{count:02d}")), [qubit])
            count += 1
        ladder = [(q, q + 1) for q in range(n - 1)]
        order = [ladder, ladder[::-1], ladder[::2] + ladder[1::2]][layer]
        for pair in order:
            circuit.append(GATES[["cx", "cz", "iswap"][layer]], pair)
    Case(circuit, some_observables(n)).check(5)


# ------------------------------------------------------------------------------------------------- readout


def test_two_hundred_random_strings():
    strings = random_strings(6, 200, 1)
    rng = np.random.default_rng(2)
    observables = [SparsePauliOp(strings, rng.normal(size=200)), *[SparsePauliOp(s) for s in strings[:40]]]
    assert len({s.translate(str.maketrans("XYZI", "1100")) for s in strings}) > 30
    case = Case(random_circuit(6, 2, 30, free=6), observables)
    case.check(1, 3, 9)


LETTERS = ("Y", "YY", "YYY", "YYYY", "XY", "YZ", "XYZ", "ZZXX", "XYYZ")


@pytest.mark.parametrize(("n", "letters"), [(n, word) for n in (1, 2, 4, 5) for word in LETTERS if len(word) <= n])
def test_strings_of_every_kind(n, letters):
    labels = [letters.ljust(n, "I"), letters.rjust(n, "I"), letters[::-1].ljust(n, "Z")]
    Case(random_circuit(n, 3, 12, free=3), [SparsePauliOp(label) for label in labels]).check(1, 2, 4, 9)


@pytest.mark.parametrize("block", [3, 4, 5])
@pytest.mark.parametrize("rows", [1, 3])
def test_strings_across_blocks(small_blocks, block, rows):
    """Flips and signs on qubits within a block, on those that number the blocks, and on both."""
    small_blocks(block, 3)
    n = 8
    labels = [
        *(pauli(n, **{letter: qubit}) for letter in "XYZ" for qubit in range(n)),
        *(pauli(n, X=low, Y=high) for low, high in [(0, 7), (1, 6), (2, 5), (7, 0)]),
        *(pauli(n, Y=[low, high]) for low, high in [(0, 7), (6, 7), (0, 1)]),
        *(pauli(n, Z=[low, high], X=middle) for low, high, middle in [(0, 7, 6), (5, 7, 1), (5, 6, 7)]),
        *random_strings(n, 12, 7),
    ]
    case = Case(random_circuit(n, 6, 30, free=4), [SparsePauliOp(label) for label in labels])
    assert case.simulator.plan.observables.num_qubits == block
    case.check(rows)


def test_strings_across_blocks_of_a_large_state():
    n = 15
    labels = [pauli(n, X=14), pauli(n, Y=[13, 0]), pauli(n, Z=[14, 2], X=[13, 1]), pauli(n, Y=14), pauli(n, Z=[13, 14])]
    labels.append(pauli(n, Y=[14, 13, 12, 11], X=0))
    case = Case(random_circuit(n, 6, 10, free=2), [*map(SparsePauliOp, labels), SparsePauliOp(labels, range(-2, 4))])
    case.check(2)


@pytest.mark.parametrize("block", [13, 5])
@pytest.mark.parametrize("qubits", [[0], [4, 2], [5, 0, 3], [6, 5, 4, 3, 2, 1, 0], list(range(7))])
@pytest.mark.parametrize("interpreted", [False, True])
def test_probabilities(small_blocks, block, qubits, interpreted):
    small_blocks(block, 3)
    n = 7
    classes = [(3 * outcome + 1) % 5 for outcome in range(2 ** len(qubits))] if interpreted else None
    case = Case(random_circuit(n, 8, 40, free=5), None, qubits, classes)
    assert case.simulator.plan.whole == (block == 13)
    case.check(1, 2, 9)


def test_probabilities_of_a_large_state():
    Case(random_circuit(14, 9, 30, free=3), None, [13, 0, 12, 5]).check(2)


@pytest.mark.parametrize(("n", "seed"), [*((n, seed) for n in (1, 2, 4, 6) for seed in range(3)), (14, 0)])
def test_real_circuits_use_one_plane_and_give_the_same_as_two(n, seed, monkeypatch):
    monkeypatch.setattr(cone_engine, "LEAST_QUBITS", n + 2)  # whole states, however narrow their light cones are
    circuit = real_circuit(n, seed, 40 if n < 14 else 30)
    strings = [pauli(n, Z=0), pauli(n, X=n - 1)]
    strings += [pauli(n, Y=[0, n - 1]), pauli(n, Y=[0, 1], X=n - 1 if n > 2 else [])] if n > 1 else []
    wider = QuantumCircuit(n + 1)
    wider.compose(circuit, range(n), inplace=True)
    wider.rz(Parameter("z"), n)
    real, same = Case(circuit, strings), Case(wider, ["I" + string for string in strings])
    assert (real.simulator.plan.planes, same.simulator.plan.planes) == (1, 2)
    for rows in (1, 3, 9) if n < 14 else (2,):
        points, upstream = same.points(rows), same.upstream(rows)
        np.testing.assert_allclose(real.values(points[:, :-1]), same.values(points), atol=VALUES)
        gradients = same.pullback(points, upstream)
        np.testing.assert_allclose(real.pullback(points[:, :-1], upstream), gradients[:, :-1], atol=GRADIENTS)
        np.testing.assert_allclose(gradients[:, -1], 0, atol=GRADIENTS)
    if n < 14:
        real.check(4)


def test_a_real_circuit_needs_two_planes_for_one_y():
    """Of a real state a single Y is 0; its derivative by a rotation about y is 0 too, and not what lies beside it."""
    circuit = real_circuit(4, 0, 30)
    even, odd = Case(circuit, ["YIIY", "XIIZ"]), Case(circuit, ["YIII", "IXYI", "YYYI", "ZIIZ"])
    assert (even.simulator.plan.planes, odd.simulator.plan.planes) == (1, 2)
    even.check(3)
    odd.check(3)
    np.testing.assert_allclose(odd.values(odd.points(3))[:, :3], 0, atol=VALUES)


@pytest.mark.parametrize("name", ["rx", "rz", "s", "sx", "rxx", "rzz", "cp", "cs", "iswap", "csx", "cy", "rccx"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_complex_gate_in_a_real_circuit(name, place):
    gate = GATES[name].base_class(*[Parameter("z")] * len(GATES[name].params))
    circuit = real_circuit(4, 2, 20)
    circuit.append(gate, [2, 0, 1][: gate.num_qubits])
    for qubit in range(4) if place == "first" else ():
        circuit.ry(Parameter(f"y{qubit}"), qubit)
    case = Case(circuit, ["XIIX", "YYII", "ZIXZ", "IYYI", "IIIZ"])
    assert case.simulator.plan.planes == 2
    case.check(2)


def test_half_turns_between_rotations_stay_real():
    circuit = QuantumCircuit(2)
    for number, name in enumerate(["ry", "h", "ry", "x", "ry", "z", "h", "ry", "y", "ry", "h"]):
        gate = GATES["ry"].base_class(Parameter(f"x{number:02d}")) if name == "ry" else GATES[name]
        circuit.append(gate, [0])
    circuit.ry(Parameter("y"), 1)
    circuit.cx(1, 0)
    case = Case(circuit, ["ZZ", "IX", "IZ", "XX", "YY"])
    assert case.simulator.plan.planes == 1
    case.check(1, 2, 9)


# ------------------------------------------------------------------------------------------------- corner cases


def test_an_angle_that_no_operation_uses():
    case = Case(random_circuit(3, 1, 20, free=4), some_observables(3))
    spare = ParameterVector("spare", 2)
    wider = replace(case.program, angles=(*case.program.angles, *spare))
    points, upstream = case.points(5), case.upstream(5)
    angles = np.concatenate([case.angles(points), np.full((5, 2), 1e6)], axis=1)
    estimate = case.backend.evaluate_for_pullback(wider, angles)
    np.testing.assert_array_equal(estimate.values, case.values(points))
    gradients = case.backend.pullback(wider, angles, upstream, estimate.state, np.ones(6, bool))
    np.testing.assert_array_equal(gradients[:, 4:], 0)
    np.testing.assert_allclose(np.abs(gradients[:, :4]).sum(), np.abs(case.pullback(points, upstream)).sum())


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("n", [1, 2, 3, 14])
def test_circuits_without_gates_or_parameters(n, rows):
    points = np.zeros((rows, 0))
    labels = [pauli(n, Z=0), pauli(n, X=n - 1), pauli(n, Y=0), "I" * n]
    bare = Case(QuantumCircuit(n), labels)
    np.testing.assert_allclose(bare.values(points), np.tile([1.0, 0.0, 0.0, 1.0], (rows, 1)), atol=1e-15)
    assert bare.pullback(points, bare.upstream(rows)).shape == (rows, 0)
    constant = Case(fixed(n) if n > 1 else random_circuit(1, 0, 0), labels)
    np.testing.assert_allclose(constant.values(points), constant.expected(points), atol=VALUES)
    bits = Case(QuantumCircuit(n), None, [n - 1])
    np.testing.assert_allclose(bits.values(points), np.tile([1.0, 0.0], (rows, 1)), atol=1e-15)


def test_nothing_is_measured():
    """Without a qubit that a gate touches or that is measured, there are no qubits at all."""
    for circuit in (QuantumCircuit(3), fixed(3)):
        layer = QuantumLayer(circuit, observables=["III", SparsePauliOp("III", 2.5)])
        assert layer().tolist() == [1.0, 2.5]
        layer = QuantumLayer(circuit, observables=["III", SparsePauliOp("III", 2.5)], shots=7)
        assert layer().tolist() == [1.0, 2.5]


def test_idle_qubits_are_left_out():
    circuit = QuantumCircuit(40)
    circuit.ry(Parameter("a"), 3)
    circuit.cx(3, 31)
    circuit.rx(Parameter("b"), 31)
    circuit.rzx(Parameter("c"), 31, 17)
    small = QuantumCircuit(4)
    small.ry(Parameter("a"), 0)
    small.cx(0, 2)
    small.rx(Parameter("b"), 2)
    small.rzx(Parameter("c"), 2, 1)
    wide = Case(circuit, [pauli(40, Z=31), pauli(40, Y=[17, 3]), pauli(40, X=31, Z=39)])
    case = Case(small, [pauli(4, Z=2), pauli(4, Y=[1, 0]), pauli(4, X=2, Z=3)])
    assert wide.simulator.plan.num_qubits == 4
    points, upstream = case.points(3), case.upstream(3)
    np.testing.assert_allclose(wide.values(points), case.expected(points), atol=VALUES)
    gradients = case.expected_pullback(points, upstream)
    np.testing.assert_allclose(wide.pullback(points, upstream), gradients, atol=GRADIENTS)


def test_large_angles_and_special_ones():
    case = Case(random_circuit(4, 5, 30, free=6), some_observables(4))
    special = [0.0, -0.0, np.pi, -np.pi, np.pi / 2, 2 * np.pi, 1e-300, 1e4, -123456.0, 4 * np.pi]
    points = np.random.default_rng(0).choice(special, (40, 6))
    np.testing.assert_allclose(case.values(points), case.expected(points), atol=1e-10)
    upstream = case.upstream(40)
    np.testing.assert_allclose(case.pullback(points, upstream), case.expected_pullback(points, upstream), atol=1e-10)


@pytest.fixture
def one_row_a_unit(monkeypatch):
    """Every row is a unit of its own, so that it can share its beginning with the row before."""
    monkeypatch.setattr(Simulator, "lanes", lambda self, rows: 1)


def changes(pattern: str, width: int) -> list[tuple[int, ...]]:
    """Which columns each row changes from the one before."""
    rng = np.random.default_rng(3)
    patterns: dict[str, list[tuple[int, ...]]] = {
        "equal": [()] * 6,
        "forwards": [(column,) for column in range(width)],
        "backwards": [(column,) for column in reversed(range(width))],
        "first": [(0,)] * 6,
        "last": [(width - 1,)] * 6,
        "first_and_last": [(0,), (width - 1,), (), (0,), (), (width - 1,), (width - 1,), (0, width - 1)],
        "back_and_forth": [(c,) if c >= 0 else () for c in (5, 2, 7, 7, -1, 3, 8, 1, 9, -1, -1, 4, 4, 2, 6, 0, 9)],
        "anything": [tuple(rng.permutation(width)[: rng.integers(0, 3)].tolist()) for _ in range(80)],
    }
    return patterns[pattern]


def rows_that_change(start: np.ndarray, columns: Sequence[tuple[int, ...]]) -> np.ndarray:
    rng = np.random.default_rng(4)
    rows = [start]
    for changed in columns:
        row = rows[-1].copy()
        row[list(changed)] = rng.uniform(-3, 3, len(changed))
        rows.append(row)
    return np.array(rows)


PATTERNS = (*("equal", "forwards", "backwards", "first", "last"), *("first_and_last", "back_and_forth", "anything"))


def sequence_case() -> Case:
    """Ten angles in ten operations, one after the other."""
    circuit = QuantumCircuit(4)
    for number in range(10):
        qubit = number % 4
        circuit.append(GATES[("rx", "rz", "ry")[number % 3]].base_class(Parameter(f"x{number}")), [qubit])
        circuit.ch(qubit, (qubit + 1) % 4)
        circuit.ecr((qubit + 1) % 4, (qubit + 2) % 4)
    return Case(circuit, some_observables(4))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_that_share_a_beginning_give_what_each_gives_alone(one_row_a_unit, num_threads, pattern):
    num_threads(1)
    case = sequence_case()
    angles = rows_that_change(np.random.default_rng(0).uniform(-3, 3, 10), changes(pattern, 10))
    together = case.simulator.values(angles)[0]
    alone = np.concatenate([case.simulator.values(angles[i : i + 1])[0] for i in range(len(angles))])
    np.testing.assert_array_equal(together, alone)
    for order in (slice(None, None, -1), np.random.default_rng(1).permutation(len(angles))):
        np.testing.assert_array_equal(case.simulator.values(np.ascontiguousarray(angles[order]))[0], alone[order])


def test_a_beginning_one_operation_too_long_would_show(one_row_a_unit):
    """Each angle changes the values, so that a state from behind it, made for the row before, would be seen."""
    case = sequence_case()
    start = np.random.default_rng(0).uniform(-3, 3, 10)
    rows = rows_that_change(start, [(column,) for column in range(10)])
    values = case.simulator.values(rows)[0]
    assert np.abs(np.diff(values, axis=0)).max(axis=1).min() > 1e-2


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_shifted_points_in_units_of_several_rows(n):
    case = Case(random_circuit(n, 4, 40, free=10), some_observables(n))
    points = shifted(case.points(3)).transpose(2, 0, 1, 3).reshape(-1, len(case.parameters))
    np.testing.assert_allclose(case.values(points), case.expected(points), atol=VALUES)
    np.testing.assert_allclose(case.values(np.repeat(points, 9, axis=0))[::9], case.expected(points), atol=VALUES)
