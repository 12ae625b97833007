"""The simulator with noise against Qiskit's density matrices, and its rows, threads and stages against each other."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import psutil
import pytest
from qiskit.circuit.library import CCXGate, CXGate, CZGate, HGate, SdgGate, iSwapGate
from qiskit.quantum_info import (
    PTM,
    DensityMatrix,
    Operator,
    Pauli,
    SparsePauliOp,
    SuperOp,
    random_quantum_channel,
    random_unitary,
)
from scipy.stats import chi2

from qiskit_torch_bridge.program.channels import Channel, NoisyCircuit, NoisyOperation, Rotation
from qiskit_torch_bridge.program.readout import Expectation, MeasurementGroup, Probabilities, Readout
from qiskit_torch_bridge.simulator import density_engine, density_plan
from qiskit_torch_bridge.simulator.density_engine import DensitySimulator

VALUES, GRADIENTS = 1e-12, 1e-11
SEED = np.random.SeedSequence(3)
H, S_DAGGER, CX, CZ = (Operator(gate()) for gate in (HGate, SdgGate, CXGate, CZGate))


def channel(operator: Operator | SuperOp, *qubits: int) -> Channel:
    return Channel(qubits, np.round(PTM(operator).data.real, 15))


def depolarising(strength: float, *qubits: int) -> Channel:
    return Channel(qubits, np.diag([1.0, *[1.0 - strength] * (4 ** len(qubits) - 1)]))


def random_operations(n: int, size: int, rng: np.random.Generator) -> tuple[list[NoisyOperation], int]:
    """Operations of all kinds, and how many rotations are among them."""
    operations: list[NoisyOperation] = []
    rotations = 0
    for _ in range(size):
        kind = rng.integers(8)
        width = int(min(n, 1 + rng.integers(2) + (kind == 7)))
        qubits = tuple(rng.permutation(n)[:width].tolist())
        if kind < 4:
            operations.append(Rotation(qubits, "".join(rng.choice(list("XYZ"), width)), rotations))
            rotations += 1
        elif kind == 4:
            operations.append(channel(random_quantum_channel(2**width, seed=int(rng.integers(2**31))), *qubits))
        elif kind == 5:
            operations.append(depolarising(0.05, *qubits))
        elif kind == 6:
            gates = {1: H, 2: [CX, CZ, Operator(iSwapGate())][int(rng.integers(3))]}
            operations.append(channel(gates[width], *qubits))
        else:
            gate = Operator(CCXGate()) if width == 3 else random_unitary(2**width, seed=int(rng.integers(2**31)))
            operations.append(channel(gate, *qubits))
    return operations, rotations


def measured_circuits(readout: Readout, n: int, seed: int, size: int = 14) -> tuple[NoisyCircuit, ...]:
    """A circuit for each measurement, all with the same beginning; noise on basis changes, bits misread."""
    rng = np.random.default_rng(seed)
    operations, rotations = random_operations(n, size, rng)
    angles = max(1, rotations - 1)
    slopes = rng.permuted(np.eye(angles, rotations) * rng.uniform(0.5, 1.5), axis=1)
    offsets = rng.uniform(-1, 1, rotations)
    circuits = []
    for group in readout.groups:
        suffix = [
            one
            for qubit, basis in zip(group.qubits, group.bases, strict=True)
            for gate in {"X": [H], "Y": [S_DAGGER, H], "Z": []}[basis]
            for one in (channel(gate, qubit), depolarising(0.02, qubit))
        ]
        flips = rng.uniform(0.0, 0.1, (len(group.qubits), 2))
        misread = tuple(np.array([[1 - a, a], [b, 1 - b]]) if a > 0.02 else None for a, b in flips)
        circuits.append(
            NoisyCircuit(n, (*operations, *suffix), slopes, offsets, measured=group.qubits, readout=misread)
        )
    return tuple(circuits)


def outcomes(circuit: NoisyCircuit, angles: np.ndarray) -> np.ndarray:
    """The probabilities of what is read, by Qiskit's density matrices; of one row."""
    state = DensityMatrix.from_label("0" * circuit.num_qubits)
    (turns,) = circuit.rotation_angles(angles[None])
    for operation in circuit.operations:
        if isinstance(operation, Rotation):
            half, pauli = turns[operation.column] / 2, Operator(Pauli(operation.paulis[::-1]))
            map_: Operator | PTM = np.cos(half) * Operator(np.eye(pauli.dim[0])) - 1j * np.sin(half) * pauli
        else:
            map_ = PTM(operation.ptm)
        state = state.evolve(map_, list(operation.qubits))
    probabilities = state.probabilities(list(circuit.measured))
    for bit, error in enumerate(circuit.readout):
        if error is not None:
            pairs = probabilities.reshape(-1, 2, 1 << bit)
            probabilities = np.einsum("tr,atb->arb", error, pairs).ravel()
    return probabilities


def expected(readout: Readout, circuits: Sequence[NoisyCircuit], angles: np.ndarray) -> np.ndarray:
    pairs: list[tuple[MeasurementGroup, NoisyCircuit]] = list(zip(readout.groups, circuits, strict=True))
    parts = [[group.moments(outcomes(one, row)[None])[0][0] for row in angles] for group, one in pairs]
    return readout.constants + np.sum(parts, axis=0)


def readouts(n: int) -> list[Readout]:
    mixed = SparsePauliOp(["Y" * n, "X" * n, "I" * n, "I" * (n - 1) + "Z"], [0.3, -0.7, 0.2, 1.0])
    return [
        Expectation.of(["Z" * n, mixed, "X" + "I" * (n - 1)], range(n), n),
        Probabilities.of(list(range(n))[::-1]),
        Probabilities.of([n - 1], lambda outcome: 1 - outcome),
    ]


def random_angles(circuits: Sequence[NoisyCircuit], rows: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-3, 3, (rows, len(circuits[0].slopes)))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_values_and_gradients(n, seed):
    for readout in readouts(n):
        circuits = measured_circuits(readout, n, seed)
        simulator = DensitySimulator(circuits, readout)
        angles = random_angles(circuits, 9)
        values, _ = simulator.values(angles)
        np.testing.assert_allclose(values[:2], expected(readout, circuits, angles[:2]), rtol=0, atol=VALUES)
        upstream = np.random.default_rng(seed).normal(size=values.shape)
        selected = np.random.default_rng(seed).random(angles.shape[1]) < 0.7
        gradients = simulator.pullback(angles, upstream, None, selected)
        np.testing.assert_allclose(gradients, shifted(simulator, angles, upstream) * selected, rtol=0, atol=GRADIENTS)


def shifted(simulator: DensitySimulator, angles: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """By the shift rule, for each of the rotations that an angle turns; slopes are multiples of one number."""
    gradients = np.zeros(angles.shape)
    slope = max(1e-9, *(branch.circuit.slopes.max(initial=0.0) for branch in simulator._branches))
    for column, step in enumerate(np.eye(angles.shape[1]) * np.pi / 2 / slope):
        difference = simulator.values(angles + step)[0] - simulator.values(angles - step)[0]
        gradients[:, column] = slope * (difference * upstream).sum(axis=1) / 2
    return gradients


def test_plans_of_many_qubits(monkeypatch):
    """Which fuse less, because their maps are large."""
    readout = readouts(3)[0]
    circuits = measured_circuits(readout, 3, 5, 30)
    angles, selected = random_angles(circuits, 5), np.ones(len(circuits[0].slopes), bool)
    results = []
    for most in (8, 0):
        monkeypatch.setattr(density_plan, "_MOST_QUBITS_FUSED_FREELY", most)
        simulator = DensitySimulator(circuits, readout)
        results.append((simulator.values(angles)[0], simulator.pullback(angles, np.ones((5, 3)), None, selected)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=GRADIENTS)


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_a_row_is_the_same_to_the_last_bit_whatever_is_with_it(rows, monkeypatch, busy_threads, num_threads):
    """Alone, in a batch, in threads, in stages that rows share, and between checkpoints."""
    readout = readouts(4)[0]
    circuits = measured_circuits(readout, 4, 1, 30)
    simulator = DensitySimulator(circuits, readout)
    angles = random_angles(circuits, rows)
    angles[1:, ::2] = angles[0, ::2]
    upstream, selected = np.ones((rows, 3)), np.ones(angles.shape[1], bool)

    def results(part: slice) -> list[np.ndarray]:
        sampled = simulator.sampled(angles[part], 50, SEED)[:2]
        return [
            simulator.values(angles[part])[0],
            simulator.pullback(angles[part], upstream[part], None, selected),
            *sampled,
        ]

    num_threads(1)
    together = results(slice(None))
    alone = [results(slice(row, row + 1))[:2] for row in range(rows)]
    num_threads(3)
    assert_same(results(slice(None)), together)
    monkeypatch.setattr(density_engine, "_SECONDS_WORTH_SHARING", 0.0)
    monkeypatch.setattr(density_engine, "_BYTES_OF_KEPT_STATES", 0)
    assert_same(results(slice(None)), together)
    for number in range(2):
        np.testing.assert_array_equal(np.concatenate([one[number] for one in alone]), together[number])


@pytest.mark.parametrize("examples", [5, 8, 16])
def test_shifted_rows_go_on_from_the_states_of_their_examples(examples, monkeypatch):
    """Rows of one example after the other: with eight examples, the states they begin with lie side by side."""
    readout = readouts(4)[0]
    circuits = measured_circuits(readout, 4, 1, 30)
    simulator = DensitySimulator(circuits, readout)
    angles = random_angles(circuits, examples)[:, None] + np.zeros((1, 9, 1))
    for point in range(8):
        angles[:, 1 + point, -1 - point // 2] += [1.5, -1.5][point % 2]
    angles = angles.reshape(9 * examples, -1)
    calls = []
    begun = density_engine._spread
    monkeypatch.setattr(
        density_engine, "_spread", lambda kernel, arguments, *rest, **sweeps: (
            calls.append(arguments[1].size), begun(kernel, arguments, *rest, **sweeps)
        )
    )  # fmt: skip
    apart = simulator.values(angles)[0]
    monkeypatch.setattr(density_engine, "_SECONDS_WORTH_SHARING", 0.0)
    together = simulator.values(angles)[0]
    assert calls[0] == 0 < calls[-1], "one stage, then some"
    np.testing.assert_array_equal(together, apart)


def assert_same(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_single_precision():
    """Slow, because its machine code has to be compiled; that a backend of single precision takes it, is not."""
    readout = readouts(3)[0]
    circuits = measured_circuits(readout, 3, 2)
    angles, upstream, selected = random_angles(circuits, 9), np.ones((9, 3)), np.ones(len(circuits[0].slopes), bool)
    (one, by_one), (two, by_two) = (
        (simulator.values(angles)[0], simulator.pullback(angles, upstream, None, selected))
        for simulator in (DensitySimulator(circuits, readout, dtype) for dtype in (np.float32, np.float64))
    )
    assert 0 < np.abs(one - two).max() < 1e-5
    assert 0 < np.abs(by_one - by_two).max() < 1e-5


def test_shots_have_the_statistics_of_the_probabilities():
    """A chi-square test of many rows together, and of variances and covariances."""
    readout = Probabilities.of([2, 0, 1])
    circuits = measured_circuits(readout, 3, 4, 20)
    simulator = DensitySimulator(circuits, readout)
    angles, shots = random_angles(circuits, 200), 400
    values, variances, kept = simulator.sampled(angles, shots, SEED)
    exact, _ = simulator.values(angles)
    statistic = (shots * (values - exact) ** 2 / exact).sum()
    assert chi2(200 * 7).cdf(statistic) == pytest.approx(0.5, abs=0.4999)
    np.testing.assert_allclose(variances, values * (1 - values) / (shots - 1))
    upstream = np.random.default_rng(1).normal(size=exact.shape)
    theory = (exact * upstream**2).sum(axis=1) - (exact * upstream).sum(axis=1) ** 2
    np.testing.assert_allclose(simulator.variances_of_one_shot(angles, None, None, None, upstream), theory, atol=1e-12)
    estimated = [simulator.variances_of_one_shot(angles, shots, SEED, counts, upstream) for counts in (kept, None)]
    np.testing.assert_array_equal(*estimated)
    assert (estimated[0] / theory).mean() == pytest.approx(1.0, abs=0.03)


def test_what_does_not_matter_has_no_room():
    """Of a chain of three qubits with Pauli noise, whose gates are real, read on the first."""
    chain = [Rotation((q,), "Y", q) for q in range(3)]
    for pair in ((0, 1), (1, 2)):
        chain += [channel(CX, *pair), depolarising(0.1, *pair), depolarising(0.1, pair[0])]
    ends = Rotation((0,), "Y", 3), Rotation((2,), "Y", 4)
    circuit = NoisyCircuit(3, (*chain, *ends), np.eye(5), np.zeros(5), measured=(0,), readout=(None,))
    readout = Probabilities.of([0])
    (branch,) = DensitySimulator([circuit], readout)._branches
    part = branch.exact_plan(np.dtype(float)).whole
    assert part.num_operations == 4  # two qubits alone have influence; what has no angle is one operation
    assert part.size == 6  # of 64
    two = DensitySimulator([circuit, circuit], Expectation.of(["IIZ", "IIX"], range(3), 3))
    assert len(two._branches) == 1


def test_other_angles_are_simulated_apart():
    """Circuits of two measurements that a transpiler has laid out in different ways."""
    readout = Expectation.of(["ZI", "XX"], range(2), 2)
    one, other = measured_circuits(readout, 2, 8)
    flipped = [replace(operation, qubits=tuple(1 - q for q in operation.qubits)) for operation in other.operations]
    moved = replace(other, operations=tuple(flipped), measured=tuple(1 - q for q in other.measured))
    angles = random_angles([one], 5)
    simulators = [DensitySimulator(circuits, readout) for circuits in ((one, other), (one, moved))]
    assert [len(simulator._branches) for simulator in simulators] == [1, 2]
    values = [simulator.values(angles)[0] for simulator in simulators]
    np.testing.assert_allclose(*values, rtol=0, atol=VALUES)
    pulled = [s.pullback(angles, np.ones((5, 2)), None, np.ones(angles.shape[1], bool)) for s in simulators]
    np.testing.assert_allclose(*pulled, rtol=0, atol=GRADIENTS)


def test_too_many_qubits_are_refused_with_a_number(monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(density_engine.psutil, "virtual_memory", lambda: memory._replace(total=2**30))
    readout = Probabilities.of([0])
    circuit = NoisyCircuit(11, (Rotation((0,), "X", 0),), np.eye(1), np.zeros(1), measured=(0,), readout=(None,))
    with pytest.raises(
        MemoryError, match=r"11 qubits with noise needs some 6\.2 GiB .*use fewer qubits; or Aer.*Pauli"
    ):
        DensitySimulator([circuit], readout)
