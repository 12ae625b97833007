"""Counts are drawn from the right distributions.

Random checks have fixed seeds. ``FAMILY`` is the probability with which a test of correct code would fail if its seeds
were drawn afresh: each of its k comparisons fails with a probability of ``FAMILY / k``.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector
from scipy import stats
from simulator_cases import FAMILY, SEED, Case, pauli, random_circuit

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.simulator import outcome_kernels


def assert_plausible(pvalues: Sequence[float]) -> None:
    """None of them is too small for as many as there are."""
    pvalues = np.ravel(pvalues)
    assert np.isfinite(pvalues).all()
    assert pvalues.min() > FAMILY / len(pvalues), f"p = {pvalues.min():.2g}, the least of {len(pvalues)}"


def normal_pvalue(z: Any) -> np.ndarray:
    return 2 * stats.norm.sf(np.abs(z))


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """The probability of counts as far from their expectations; rare outcomes count together."""
    seen, due = [0.0], [0.0]
    for outcome in np.argsort(expected).tolist():
        if due[-1] >= 5:
            seen.append(0.0)
            due.append(0.0)
        seen[-1] += observed[outcome]
        due[-1] += expected[outcome]
    seen, due = np.array(seen), np.array(due)
    if len(due) == 1:
        return 1.0 if seen[0] == pytest.approx(due[0]) else 0.0
    return float(stats.chi2.sf(np.sum((seen - due) ** 2 / due), len(due) - 1))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter, key, answer):
    """The known answers of Random123 for Philox4x32-10."""
    words = [np.array([int(word, 16) for word in text.split()], np.uint64) for text in (counter, key)]
    assert " ".join(f"{word:08x}" for word in outcome_kernels.random_words(*words)) == answer


def key_of(seed: int) -> np.ndarray:
    return np.random.SeedSequence(seed).generate_state(2, np.uint32).astype(np.uint64)


DRAWS = 100_000
BINOMIALS = (
    *((1, 0.3), (1, 0.5), (1, 1e-3), (1, 0.999), (2, 0.5), (3, 0.7), (5, 0.9), (10, 0.5), (19, 0.5)),
    # The product of both is 10 where inversion gives way to rejection.
    *((20, 0.4999999), (20, 0.5), (20, 0.5000001), (21, 0.5), (25, 0.4), (25, 0.39), (25, 0.6), (25, 0.61)),
    *((99, 0.1), (100, 0.0999), (100, 0.1), (101, 0.1), (100, 0.9), (100, 0.901), (100, 0.5), (100, 0.03)),
    *((1000, 0.0099), (1000, 0.01), (1000, 0.0101), (1000, 0.99), (1000, 0.5), (1000, 0.3), (1000, 1e-4)),
    *((10**6, 1e-7), (10**6, 9.99e-6), (10**6, 1.001e-5), (10**6, 0.3), (10**6, 1 - 1e-5), (10**6, 0.75)),
    *((2**31 - 1, 1e-9), (2**31 - 1, 4e-9), (2**31 - 1, 5e-9), (2**31 - 1, 1e-7), (2**31 - 1, 1 - 1e-8)),
    *((2**31 - 1, 0.001), (2**31 - 1, 0.5), (2**31 - 1, 0.7)),
)


def ours(n: int, p: float, rng: np.random.Generator) -> np.ndarray:
    draws = np.empty(DRAWS, np.int64)
    outcome_kernels.binomials(n, p, key_of(int(rng.integers(2**31))), draws)
    return draws


@cache
def binomial(n: int, p: float) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Some quantiles; the probabilities before, between and behind them; mean, variance and kurtosis."""
    truth = stats.binom(n, p)
    edges = np.unique(truth.ppf(np.linspace(0, 1, 65)[1:-1]))
    mean, variance, kurtosis = (float(moment) for moment in truth.stats("mvk"))
    return edges, np.diff([0.0, *truth.cdf(edges), 1.0]), (mean, variance, kurtosis)


def assert_not_yet_impossible(pvalues: Sequence[float], at_most: int) -> None:
    """No value of which :func:`assert_plausible` will say so, of at most so many: then the rest need not be drawn."""
    assert min(pvalues) > FAMILY / at_most, f"p = {min(pvalues):.2g}"


def check_binomials(draw: Callable[[int, float, np.random.Generator], np.ndarray]) -> None:
    """Frequencies between quantiles, means and variances (where there is one to speak of) of all the distributions."""
    pvalues = []
    for number, (n, p) in enumerate(BINOMIALS):
        draws = draw(n, p, np.random.default_rng(number))
        assert draws.min() >= 0
        assert draws.max() <= n
        edges, probabilities, (mean, variance, kurtosis) = binomial(n, p)
        observed = np.bincount(np.searchsorted(edges, draws), minlength=len(probabilities))
        pvalues.append(chi_square(observed, DRAWS * probabilities))
        pvalues.append(float(normal_pvalue((draws.mean() - mean) / (variance / DRAWS) ** 0.5)))
        if variance > 1:
            spread = np.mean((draws - mean) ** 2)
            pvalues.append(float(normal_pvalue((spread / variance - 1) / ((kurtosis + 2) / DRAWS) ** 0.5)))
        assert_not_yet_impossible(pvalues, 3 * len(BINOMIALS))
    assert_plausible(pvalues)


def test_binomial_draws():
    check_binomials(ours)


@pytest.mark.parametrize("n", [1, 10, 1000, 2**31 - 1])
def test_sure_binomial_draws(n):
    draws = np.empty(1000, np.int64)
    for p, expected in [(0.0, 0), (1.0, n), (1e-300, 0)]:
        outcome_kernels.binomials(n, p, key_of(0), draws)
        assert (draws == expected).all()


WRONG_BINOMIALS: dict[str, Callable[[int, float, np.random.Generator], np.ndarray]] = {
    "biased": lambda n, p, rng: rng.binomial(n, min(1.0, 1.01 * p), DRAWS),
    "one more": lambda n, p, rng: np.minimum(rng.binomial(n, p, DRAWS) + 1, n),
    "never zero": lambda n, p, rng: np.maximum(rng.binomial(n, p, DRAWS), 1),
    "normal": lambda n, p, rng: np.clip(np.rint(rng.normal(n * p, (n * p * (1 - p)) ** 0.5, DRAWS)), 0, n).astype(int),
    "overdispersed": lambda n, p, rng: rng.binomial(
        n, np.clip(rng.normal(p, 0.3 * (p * (1 - p) / n) ** 0.5, DRAWS), 0, 1)
    ),
    "mirrored": lambda n, p, rng: rng.binomial(n, min(p, 1 - p), DRAWS),
}


@pytest.mark.parametrize("wrong", WRONG_BINOMIALS.values(), ids=WRONG_BINOMIALS.keys())
def test_wrong_binomial_draws_fail_the_check(wrong):
    with pytest.raises(AssertionError):
        check_binomials(wrong)


def test_right_binomial_draws_of_another_library_pass_the_check():
    check_binomials(lambda n, p, rng: rng.binomial(n, p, DRAWS))


def drawn(probabilities: np.ndarray, shots: int, seed: int = 0, group: int = 0, first_row: int = 0) -> np.ndarray:
    counts = np.full(probabilities.shape, -1, np.int64)
    outcome_kernels.draw_counts(probabilities, shots, key_of(seed), group, first_row, counts, 0, len(counts))
    return counts


def our_counts(p: np.ndarray, shots: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    return drawn(np.tile(p, (rows, 1)), shots, int(rng.integers(2**31)))


MULTINOMIALS = [
    *((2, shots, 20_000) for shots in (1, 7, 1000)),
    *((4, shots, 20_000) for shots in (1, 3, 30, 10_000)),
    *((16, shots, 20_000) for shots in (2, 50, 100_000)),
    *((1024, shots, 2000) for shots in (10, 5000, 10**7)),
]
"""Numbers of outcomes, shots and rows."""


def check_multinomials(draw: Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]) -> None:
    """All rows together, Pearson's statistic of each of them, and the covariances of pairs of outcomes.

    The statistic of one row has the mean K - 1 and the variance 2 (K - 1) + (sum of 1/p - K^2 - 2 K + 2) / shots,
    exactly.
    """
    pvalues = []
    for number, (outcomes, shots, rows) in enumerate(MULTINOMIALS):
        rng = np.random.default_rng(number)
        p = rng.uniform(0.2, 1.8, outcomes)
        p /= p.sum()
        counts = draw(p, shots, rows, rng)
        assert (counts.sum(axis=1) == shots).all()
        assert counts.min() >= 0
        pvalues.append(chi_square(counts.sum(axis=0), rows * shots * p))
        deviations = counts - shots * p
        if shots > 1:
            statistic = np.sum(deviations**2 / (shots * p), axis=1)
            variance = 2 * (outcomes - 1) + (np.sum(1 / p) - outcomes**2 - 2 * outcomes + 2) / shots
            if variance > 1e-9:
                pvalues.append(float(normal_pvalue((statistic.mean() - outcomes + 1) / (variance / rows) ** 0.5)))
        pairs = [(0, 1), (0, outcomes - 1), (outcomes // 2 - 1, outcomes // 2), (outcomes - 2, outcomes - 1), (0, 0)]
        for i, j in pairs if shots > 1 else ():
            products = deviations[:, i] * deviations[:, j]
            covariance = shots * (p[i] * (i == j) - p[i] * p[j])
            pvalues.append(float(normal_pvalue((products.mean() - covariance) / max(products.std() / rows**0.5, 1e-9))))
        assert_not_yet_impossible(pvalues, 7 * len(MULTINOMIALS))
    assert_plausible(pvalues)


def test_counts_are_multinomial():
    check_multinomials(our_counts)


def halves(p: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """A little more for the first half of the outcomes."""
    biased = p * np.where(np.arange(len(p)) < len(p) // 2, 1 + strength, 1.0)
    return biased / biased.sum()


WRONG_COUNTS: dict[str, Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray]] = {
    "biased": lambda p, shots, rows, rng: rng.multinomial(shots, halves(p, rng, 0.02), rows),
    "one shot astray": lambda p, shots, rows, rng: rng.multinomial(shots - 1, p, rows) + (np.arange(len(p)) == 0),
    "off by one": lambda p, shots, rows, rng: np.roll(rng.multinomial(shots, p, rows), 1, axis=1),
    "in pairs": lambda p, n, rows, rng: 2 * rng.multinomial(n // 2, p, rows) + (n % 2) * rng.multinomial(1, p, rows),
    "rounded": lambda p, shots, rows, rng: np.tile(largest_remainders(p, shots), (rows, 1)),
    "too few": lambda p, shots, rows, rng: rng.multinomial(shots - 1, p, rows),
}


def largest_remainders(p: np.ndarray, shots: int) -> np.ndarray:
    counts = np.floor(shots * p).astype(int)
    counts[np.argsort(counts - shots * p)[: shots - counts.sum()]] += 1
    return counts


@pytest.mark.parametrize("wrong", WRONG_COUNTS.values(), ids=WRONG_COUNTS.keys())
def test_wrong_counts_fail_the_check(wrong):
    with pytest.raises(AssertionError):
        check_multinomials(wrong)


def test_right_counts_of_another_library_pass_the_check():
    check_multinomials(lambda p, shots, rows, rng: rng.multinomial(shots, p, rows))


@pytest.mark.parametrize("shots", [1, 5, 1000, 2**31 - 1])
@pytest.mark.parametrize("outcomes", [2, 4, 16, 1024])
def test_outcomes_of_probability_zero_never_occur(outcomes, shots):
    rng = np.random.default_rng(outcomes)
    p = rng.random((300, outcomes)) * (rng.random((300, outcomes)) < 0.4)
    p[np.arange(300), rng.integers(0, outcomes, 300)] += 0.1
    p[0] = np.arange(outcomes) == outcomes - 1
    p[1] = np.arange(outcomes) == 0
    p[2] = np.where(np.arange(outcomes) == 1, 1.0, 1e-310)
    p[3:] /= p[3:].sum(axis=1, keepdims=True) * (1 + 1e-13)
    counts = drawn(p, shots, 1)
    assert (counts.sum(axis=1) == shots).all()
    assert counts.min() >= 0
    assert (counts[p == 0] == 0).all()
    assert counts[2, 1] == shots


def test_rows_seeds_and_groups_are_independent():
    p = np.tile(np.random.default_rng(0).dirichlet(np.ones(8)), (20_000, 1))
    counts = drawn(p, 50)
    others = [drawn(p, 50, seed=1), drawn(p, 50, group=1), drawn(p, 50, group=2**15 - 1), drawn(p, 50, first_row=20000)]
    others += [np.roll(counts, by, axis=0) for by in (1, 2, 7)]
    pvalues = []
    for other in others:
        assert (counts != other).any(axis=1).mean() > 0.9
        for i in range(8):
            for j in range(8):
                r = np.corrcoef(counts[:, i], other[:, j])[0, 1]
                pvalues.append(float(normal_pvalue(r * len(counts) ** 0.5)))
    assert_plausible(pvalues)


def test_a_seed_repeats_its_counts_and_rows_do_not_see_each_other():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(16), 30)
    counts = drawn(p, 200)
    np.testing.assert_array_equal(counts, drawn(p, 200))
    alone = np.concatenate([drawn(p[row : row + 1], 200, first_row=row) for row in range(30)])
    np.testing.assert_array_equal(counts, alone)
    other = p.copy()
    other[::2] = rng.dirichlet(np.ones(16), 15)
    np.testing.assert_array_equal(counts[1::2], drawn(other, 200)[1::2])
    part = np.full((30, 16), -1, np.int64)
    outcome_kernels.draw_counts(p, 200, key_of(0), 0, 0, part, 10, 20)
    np.testing.assert_array_equal(part[10:20], counts[10:20])
    assert (part[:10] == -1).all()
    assert (part[20:] == -1).all()
    far = drawn(np.tile(p[:1], (2, 1)), 200, first_row=2**32)
    assert (far != drawn(np.tile(p[:1], (2, 1)), 200)).any(axis=1).all(), "rows beyond 32 bits have their own streams"


# ------------------------------------------------------------------------------------------------- shots

SHOTS = 20_000


@pytest.mark.parametrize("block", [13, 5])
def test_shots_of_strings_in_every_basis(small_blocks, block):
    """Each output is one string: its shots are +1 or -1."""
    small_blocks(block, 3)
    n = 8
    strings = [pauli(n, X=0, Z=7), pauli(n, Y=[7, 1]), pauli(n, X=[7, 6, 5]), pauli(n, Y=6, X=0), pauli(n, Z=[0, 7])]
    case = Case(random_circuit(n, 8, 40, free=5), [*strings, pauli(n, X=7, Y=5, Z=2), "I" * n])
    points = case.points(40)
    truth = case.expected(points)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=SHOTS, seed=SEED)
    np.testing.assert_array_equal(estimate.values[:, -1], 1)
    z = (estimate.values - truth)[:, :-1] / ((1 - truth[:, :-1] ** 2) / SHOTS) ** 0.5
    assert_plausible(normal_pvalue(z))
    assert_plausible([stats.chi2.sf((z**2).sum(), z.size), stats.chi2.cdf((z**2).sum(), z.size)])
    np.testing.assert_allclose(estimate.variances[:, :-1], (1 - estimate.values[:, :-1] ** 2) / (SHOTS - 1), atol=1e-15)


def test_shots_of_more_qubits_than_are_tabulated():
    n = 14
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(Parameter(f"x{qubit:02d}"), qubit)
    case = Case(circuit, [pauli(n, Z=range(n)), pauli(n, Z=range(13)), pauli(n, Z=13)])
    assert len(case.program.readout.groups[0].qubits) > 12
    points = np.random.default_rng(0).uniform(-0.6, 0.6, (30, n))
    truth = np.stack([np.cos(points).prod(axis=1), np.cos(points[:, :13]).prod(axis=1), np.cos(points[:, 13])], axis=1)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=1000, seed=SEED)
    z = (estimate.values - truth) / ((1 - truth**2) / 1000) ** 0.5
    assert_plausible(normal_pvalue(z))
    np.testing.assert_allclose(estimate.variances, (1 - estimate.values**2) / 999, atol=1e-15)


@pytest.mark.parametrize("basis", ["X", "Y", "Z"])
def test_counts_are_those_of_aer(basis):
    """Two samples of one distribution. All strings of a basis give the frequencies of its outcomes."""
    circuit = random_circuit(3, 2, 30, free=0)
    masks = range(1, 8)
    strings = [pauli(3, **{basis: [q for q in range(3) if mask >> q & 1]}) for mask in masks]
    signs = np.array([[(-1) ** (mask & outcome).bit_count() for mask in range(8)] for outcome in range(8)])
    counts = []
    for backend in (None, "aer"):
        layer = QuantumLayer(circuit, observables=strings, backend=backend, shots=SHOTS, seed=1)
        assert len(layer.program.readout.groups) == 1
        means = np.concatenate([[1.0], layer().numpy().astype(float).ravel()])
        frequencies = SHOTS * (signs @ means) / 8
        np.testing.assert_allclose(frequencies, np.rint(frequencies), atol=0.05)
        counts.append(np.rint(frequencies))
    seen = np.array(counts)
    due = seen.sum(axis=0) / 2
    assert due.min() > 10
    assert stats.chi2.sf(np.sum((seen - due) ** 2 / due), 7) > FAMILY
    state = circuit.copy()
    for qubit in range(3):
        if basis == "Y":
            state.sdg(qubit)
        if basis != "Z":
            state.h(qubit)
    truth = Statevector(state).probabilities()
    assert_plausible([chi_square(counts[0], SHOTS * truth), chi_square(counts[1], SHOTS * truth)])


def test_strings_in_several_bases_have_the_same_shots_as_aer():
    circuit = random_circuit(3, 2, 30, free=0)
    strings = ["ZZZ", "XXX", "YYY", "XYZ", "ZXY"]
    plus = []
    for backend in (None, "aer"):
        layer = QuantumLayer(circuit, observables=strings, backend=backend, shots=SHOTS, seed=2)
        assert len(layer.program.readout.groups) == 5
        plus.append(SHOTS * (1 + layer().numpy().astype(float).ravel()) / 2)
    share = (plus[0] + plus[1]) / (2 * SHOTS)
    assert_plausible(normal_pvalue((plus[0] - plus[1]) / (2 * SHOTS * share * (1 - share)) ** 0.5))


def test_shots_in_single_precision():
    case = Case(random_circuit(5, 5, 40, free=6), ["ZIIII", "IXIIZ", "YYIII"], precision="single")
    points = case.points(50)
    truth = case.expected(points)
    estimate = case.backend.evaluate(case.program, case.angles(points), shots=SHOTS, seed=SEED)
    assert_plausible(normal_pvalue((estimate.values - truth) / ((1 - truth**2) / SHOTS) ** 0.5))


@pytest.mark.parametrize("n", [2, 5, 13, 14])
@pytest.mark.parametrize("letters", ["XX", "YY", "ZZ", "XY", "YZ", "ZYY"])
def test_shots_of_real_circuits_in_every_basis(n, letters):
    """A real circuit has one plane, and a measurement of Y needs a second."""
    if len(letters) > n:
        pytest.skip("more letters than qubits")
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.ry(0.7 + 0.4 * qubit, qubit)
    for qubit in range(n - 1):
        circuit.cx(qubit, qubit + 1)
    label = "I" * (n - len(letters)) + letters
    shots = 20_000
    layer = QuantumLayer(circuit, observables=label, shots=shots, seed=3)
    expected = float(np.real(Statevector(circuit).expectation_value(SparsePauliOp(label))))
    for _ in range(2):
        assert abs(float(layer()) - expected) < 5 * np.sqrt(max(1 - expected**2, 1 / shots) / shots)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_not_finite_end_the_draws(bad):
    counts = np.zeros((2, 4), np.int64)
    probabilities = np.full((2, 4), 0.25)
    probabilities[1, 2] = bad
    outcome_kernels.draw_counts(probabilities, 100, np.array([1, 2], np.uint64), 0, 0, counts, 0, 2)
    assert counts[0].sum() == 100
    assert (counts[1] == -1).all()
