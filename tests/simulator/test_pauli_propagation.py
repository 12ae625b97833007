"""Pauli propagation against whole states where nothing is dropped, its bounds where much is, and wide circuits."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import Clifford, Pauli, SparsePauliOp, StabilizerState
from qiskit_aer import AerSimulator
from simulator_cases import SEED, Case, pauli, random_circuit, random_strings, some_observables

from qiskit_torch_bridge import AerBackend, PauliBackend, StatevectorBackend
from qiskit_torch_bridge.program.light_cones import CircuitGates
from qiskit_torch_bridge.simulator import propagation_engine, propagation_kernels
from qiskit_torch_bridge.simulator.propagation_engine import PropagationSimulator
from qiskit_torch_bridge.simulator.propagation_plan import propagations_of

EXACT = (1e-10, 1e-10)
TRUNCATES = pytest.mark.filterwarnings("ignore:Pauli propagation has dropped:UserWarning")


@dataclass(frozen=True, eq=False)
class PropagatedCase(Case):
    tolerance: float = 0.0
    max_terms: int = 10**6

    @cached_property
    def backend(self) -> Any:
        return PauliBackend(tolerance=self.tolerance, max_terms=self.max_terms)

    def estimate(self, points: np.ndarray) -> Any:
        return self.backend.evaluate(self.program, self.angles(points), shots=None, seed=SEED)


def entangling_circuit(n: int, layers: int, seed: int = 0) -> QuantumCircuit:
    """Rotations about two axes with a parameter each, and CZ on random pairs."""
    rng, circuit = np.random.default_rng(seed), QuantumCircuit(n)
    weights = ParameterVector("x", 2 * n * layers)
    for layer in range(layers):
        for qubit in range(n):
            circuit.ry(weights[2 * (layer * n + qubit)], qubit)
            circuit.rz(weights[2 * (layer * n + qubit) + 1], qubit)
        for a, b in rng.permutation(n)[: n // 2 * 2].reshape(-1, 2).tolist():
            circuit.cz(a, b)
    return circuit


# ------------------------------------------------------------------------------------------------- nothing dropped


@pytest.mark.parametrize(
    ("n", "size"),
    [
        *((1, 20), (2, 50), (6, 20)),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((3, 45), (4, 45), (5, 30))),
    ],
)
def test_values_and_gradients_are_those_of_states(n, size):
    """Gates of all kinds, observables with many strings; the gradient kept from the values, and computed anew."""
    for seed in range(2):
        case = PropagatedCase(random_circuit(n, seed + 10 * n, size), observables=some_observables(n, seed))
        case.check(2, atol=EXACT)
        case.check(1, keep=False, atol=EXACT)
        assert not case.estimate(case.points(2)).truncation_bounds.any()


def test_values_and_gradients_of_ten_qubits():
    case = PropagatedCase(entangling_circuit(10, 2), observables=[pauli(10, Z=3), pauli(10, X=1, Y=7)])
    case.check(1, atol=EXACT)
    assert not case.estimate(case.points(1)).truncation_bounds.any()


def test_fixed_angles_near_quarter_turns():
    """What is a Clifford gate up to a millionth is none."""
    circuit = QuantumCircuit(2)
    circuit.ry(Parameter("a"), 0)
    for angle in (np.pi / 2 + 1e-6, -np.pi, 1e-6, 3 * np.pi / 2 - 1e-7):
        circuit.rx(angle, 0)
        circuit.rzz(angle, 0, 1)
        circuit.u(angle, Parameter(f"b{len(circuit.parameters)}"), angle, 1)
        circuit.cp(angle, 0, 1)
    case = PropagatedCase(circuit, observables=["ZI", "XY", "YX", "IZ"])
    case.check(2, atol=(1e-12, 1e-12))


def test_strings_with_the_same_hash_are_told_apart():
    """Which happens to nobody: so all hashes are the same here."""
    case = PropagatedCase(random_circuit(4, 1, 40), observables=some_observables(4))
    propagations = propagations_of(CircuitGates(case.program), case.program.readout)
    alike = [replace(one, hashes=0 * one.hashes, hashes_of_masks=0 * one.hashes_of_masks) for one in propagations]
    constants, angles = case.program.readout.constants, case.angles(case.points(1))
    expected, values = (
        PropagationSimulator(each, constants, tolerance=0.0, max_terms=10**6).values(angles).values
        for each in (propagations, alike)
    )
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_only_asked_for_angles_have_gradients():
    case = PropagatedCase(random_circuit(4, 3, 40), observables=some_observables(4))
    angles, upstream = case.angles(case.points(2)), case.upstream(2)
    selected = np.arange(angles.shape[1]) % 3 == 0
    everything = case.backend.pullback(case.program, angles, upstream, None, np.ones(len(selected), bool))
    some = case.backend.pullback(case.program, angles, upstream, None, selected)
    np.testing.assert_array_equal(some, np.where(selected, everything, 0.0))


def test_what_was_kept_of_another_number_of_rows_is_not_used():
    case = PropagatedCase(random_circuit(4, 3, 40), observables=some_observables(4))
    angles, upstream = case.angles(case.points(2)), case.upstream(2)
    kept = case.backend.evaluate_for_pullback(case.program, angles[:1]).state
    everything = np.ones(angles.shape[1], bool)
    expected = case.backend.pullback(case.program, angles, upstream, None, everything)
    np.testing.assert_array_equal(case.backend.pullback(case.program, angles, upstream, kept, everything), expected)


def test_outputs_without_upstream_gradient_are_not_propagated(monkeypatch):
    """Nor those that no selected angle has a part in."""
    case = PropagatedCase(entangling_circuit(4, 1), observables=["IIIZ", "IIZI", "IZII", "ZIII"])
    propagated, inner = [], propagation_engine.propagate
    monkeypatch.setattr(propagation_engine, "propagate", lambda *args: propagated.append(args) or inner(*args))
    upstream = np.array([[1.0, 0.0, 2.0, 0.0]])
    everything = np.ones(len(case.parameters), bool)
    case.backend.pullback(case.program, case.angles(case.points(1)), upstream, None, everything)
    assert len(propagated) == 2
    case.backend.pullback(case.program, case.angles(case.points(1)), upstream, None, ~everything)
    assert len(propagated) == 2


@TRUNCATES
def test_threads_make_no_difference(busy_threads, num_threads):
    case = PropagatedCase(entangling_circuit(6, 3), observables=some_observables(6), tolerance=1e-2)
    points, upstream = case.points(5), case.upstream(5)
    results = []
    for threads in (1, 4):
        num_threads(threads)
        results.append((case.estimate(points), case.pullback(points, upstream)))
    assert busy_threads.tasks > 0
    np.testing.assert_array_equal(results[0][0].values, results[1][0].values)
    np.testing.assert_array_equal(results[0][1], results[1][1])


# ------------------------------------------------------------------------------------------------- much dropped


@TRUNCATES
@pytest.mark.parametrize(("tolerance", "max_terms"), [(3e-2, 10**6), (5e-3, 10**6), (0.0, 60), (0.0, 1), (1e-2, 200)])
def test_no_value_is_further_off_than_its_bound(tolerance, max_terms):
    """At 12 and 14 qubits; without the cap by the output's size it would say little here."""
    errors, bounds = [], []
    for seed, n in enumerate([12, 12, 14]):
        labels = [pauli(n, Z=seed), *random_strings(n, 2, seed)]
        observables = [*labels, SparsePauliOp(labels, [0.5, -1.0, 2.0])]
        case = PropagatedCase(
            entangling_circuit(n, 3, seed), observables=observables, tolerance=tolerance, max_terms=max_terms
        )
        points = case.points(2, seed) / 8
        exact = StatevectorBackend().evaluate(case.program, case.angles(points), shots=None, seed=SEED)
        estimate = case.estimate(points)
        errors.append(np.abs(estimate.values - exact.values))
        bounds.append(estimate.truncation_bounds)
    errors, bounds = np.array(errors), np.array(bounds)
    assert (errors <= bounds + 1e-12).all()
    assert errors.max() > 1e-4
    assert np.median(errors / bounds) < 0.5  # signs cancel


def test_the_bound_is_attained():
    """By strings that are dropped, and are 1 in the initial state: by their weight, or as one of too many."""
    circuit = QuantumCircuit(2)
    circuit.ry(0.05, 0)
    case = PropagatedCase(circuit, observables=["IX"], tolerance=0.06)
    with pytest.warns(
        UserWarning, match=r"may be off by up to 0\.05, where it is at most 1; lower tolerance \(0\.06\)"
    ):
        estimate = case.estimate(np.zeros((1, 0)))
    assert estimate.values[0, 0] == 0.0
    assert estimate.truncation_bounds[0, 0] == pytest.approx(np.sin(0.05), abs=1e-15)
    case = PropagatedCase(circuit, observables=[SparsePauliOp(["IZ", "ZI", "II"], [2.0, 0.5, 0.25])], max_terms=1)
    with pytest.warns(UserWarning, match=r"raise max_terms \(1\)"):
        estimate = case.estimate(np.zeros((1, 0)))
    dropped = 0.5 + 2 * np.sin(0.05)
    assert estimate.truncation_bounds[0, 0] == pytest.approx(dropped, abs=1e-15)
    assert estimate.values[0, 0] == pytest.approx(0.25 + 2 * np.cos(0.05), abs=1e-15)


@TRUNCATES
@pytest.mark.parametrize(("tolerance", "max_terms"), [(3e-2, 10**6), (0.0, 40), (1e-2, 100)])
def test_gradients_are_those_of_the_truncated_values(tolerance, max_terms):
    """By central differences, wherever the same strings are dropped on both sides, as the bounds there tell."""
    compared, changed = 0, 0
    for seed in range(3):
        case = PropagatedCase(
            entangling_circuit(6, 3, seed),
            observables=some_observables(6, seed),
            tolerance=tolerance,
            max_terms=max_terms,
        )
        point, step = case.points(1, seed), 1e-6
        width = point.shape[1]
        shifts = step * np.concatenate([np.eye(width), -np.eye(width)])
        estimate = case.estimate(point + shifts)
        forward, backward = np.split(estimate.values, 2)
        before, behind = np.split(estimate.truncation_bounds, 2)
        for output in range(case.program.num_outputs):
            upstream = np.zeros((1, case.program.num_outputs))
            upstream[0, output] = 1.0
            gradients = case.pullback(point, upstream, keep=bool(output % 2))[0]
            same = np.abs(before - behind)[:, output] < 1e-3 * max(tolerance, 1e-2)
            differences = ((forward - backward) / (2 * step))[:, output]
            np.testing.assert_allclose(gradients[same], differences[same], atol=1e-8)
            compared, changed = compared + same.sum(), changed + (~same).sum()
    assert compared > 20 * changed
    assert estimate.truncation_bounds.min() > 0


def test_angles_of_zero_have_gradients():
    """Where trainings begin. Rotations by 0 lead nowhere, but what they would lead to has derivatives."""
    n = 5
    case = PropagatedCase(
        entangling_circuit(n, 3),
        observables=[pauli(n, X=1), pauli(n, X=0, Z=2), pauli(n, Y=3), pauli(n, X=4)],
        tolerance=1e-2,
    )
    for point in (np.zeros((1, len(case.parameters))), case.points(1) * 1e-3):
        expected = case.expected_pullback(point, case.upstream(1))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(case.pullback(point, case.upstream(1)), expected, atol=1e-2)


@TRUNCATES
def test_there_are_never_many_more_strings_than_allowed():
    """A rotation can double them; then they are swept at once. Equal ones too, of which some must go."""
    n = 12
    observable = SparsePauliOp(random_strings(n, 50, 1), np.ones(50))
    case = PropagatedCase(entangling_circuit(n, 4), observables=[observable], max_terms=100)
    simulator = case.backend._simulator(case.program)
    points = case.angles(case.points(1))
    results, _ = simulator._propagated(points, np.ones((1, 1), bool), with_gradients=False)
    assert 100 < results[0, 0, propagation_kernels.STRINGS] <= 200
    case = PropagatedCase(entangling_circuit(n, 4), observables=[observable], max_terms=10)
    estimate = case.estimate(np.zeros((1, len(case.parameters))))
    assert 0 < estimate.truncation_bounds[0, 0] <= 50 + abs(estimate.values[0, 0])


def test_a_gradient_that_needs_too_much_memory_is_refused(monkeypatch):
    monkeypatch.setattr(propagation_engine, "_SHARE_OF_MEMORY", 1e-7)
    case = PropagatedCase(entangling_circuit(8, 4), observables=["Z" * 8])
    with pytest.raises(MemoryError, match=r"lower max_terms, raise tolerance, or use gradient='parameter_shift'"):
        case.pullback(case.points(1), case.upstream(1))
    case.values(case.points(1))  # which remember nothing


# ------------------------------------------------------------------------------------------------- wide circuits


@pytest.mark.slow
def test_a_hundred_qubits_at_clifford_angles():
    """Ten layers; strings that the state has as stabilisers, a product of two, and others. The first have 1 or -1.

    Derivatives against circuits with shifted angles, which are Clifford circuits too.
    """
    n, rng = 100, np.random.default_rng(4)
    circuit = entangling_circuit(n, 10)
    angles = rng.integers(4, size=2 * n * 10) * np.pi / 2

    def fixed(angles: np.ndarray) -> QuantumCircuit:
        return circuit.assign_parameters(dict(zip(circuit.parameters, angles.tolist(), strict=True)))

    stabilizers = [Pauli(label) for label in Clifford(fixed(angles)).to_labels(mode="S")]
    strings = [stabilizers[3], -stabilizers[70], stabilizers[3] @ stabilizers[41], *map(Pauli, random_strings(n, 2, 3))]

    def values(angles: np.ndarray, *, shifted: int | None = None, by: float = np.pi / 2) -> np.ndarray:
        point = angles.copy()
        if shifted is not None:
            point[shifted] += by
        state = StabilizerState(fixed(point))
        return np.array([state.expectation_value(string).real for string in strings])

    # One angle further the first string's value is 0, and it has derivatives.
    column = next(k for k in range(len(angles) - 1, 0, -1) if values(angles, shifted=k)[0] == 0)
    moved = angles.copy()
    moved[column] += np.pi / 2
    case = PropagatedCase(circuit, observables=list(map(SparsePauliOp, strings)), tolerance=1e-4)
    order = [circuit.parameters.data.index(parameter) for parameter in case.parameters]

    for point in (angles, moved):
        expected, estimate = values(point), case.estimate(point[None, order])
        assert np.abs(expected).sum() == (3 if point is angles else 0)
        np.testing.assert_allclose(estimate.values[0], expected, atol=1e-10)
        assert estimate.truncation_bounds.max() < 1e-10

    upstream = np.array([[1.0, 2.0, 4.0, 8.0, 16.0]])
    gradients = np.empty(angles.shape)
    gradients[order] = case.pullback(moved[None, order], upstream)[0]
    for number in (column, 1200):
        difference = values(moved, shifted=number) - values(moved, shifted=number, by=-np.pi / 2)
        assert gradients[number] == pytest.approx(upstream[0] @ difference / 2, abs=1e-10)
    assert abs(gradients[column]) >= 1


@pytest.mark.slow
@TRUNCATES
def test_forty_qubits_as_matrix_product_states():
    """Of a chain, which those represent exactly; a gradient by their parameter shift."""
    n, layers = 40, 3
    circuit, weights = QuantumCircuit(n), ParameterVector("x", n * layers)
    for layer in range(layers):
        for qubit in range(n):
            (circuit.rx if layer % 2 else circuit.ry)(weights[layer * n + qubit], qubit)
        for qubit in range(layer % 2, n - 1, 2):
            circuit.cx(qubit, qubit + 1)
    observables = [pauli(n, Z=[19, 20]), SparsePauliOp([pauli(n, X=7), pauli(n, Y=8, Z=30)], [1.0, -0.5])]
    case = PropagatedCase(circuit, observables=observables, tolerance=1e-8)
    points = case.points(1)
    aer = AerBackend(AerSimulator(method="matrix_product_state", max_parallel_threads=1))
    angles = case.angles(points)
    columns = [int(np.flatnonzero(case.order == parameter)[0]) for parameter in range(0, n * layers, 13)]
    shifts = np.zeros((2 * len(columns), angles.shape[1]))
    for k, column in enumerate(columns):
        shifts[2 * k, column], shifts[2 * k + 1, column] = np.pi / 2, -np.pi / 2
    everything = aer.evaluate(case.program, np.concatenate([angles, angles + shifts]), shots=None, seed=SEED).values
    np.testing.assert_allclose(case.estimate(points).values[0], everything[0], atol=1e-6)
    upstream = case.upstream(1)
    gradients = case.backend.pullback(case.program, angles, upstream, None, np.ones(angles.shape[1], bool))
    expected = (everything[1::2] - everything[2::2]) @ upstream[0] / 2
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(gradients[0, columns], expected, atol=1e-6)
