"""``ReadoutCorrection`` on devices whose readout errors are known."""

import copy
import pickle
from functools import cached_property

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2
from readout_problems import (
    FEATURES,
    RATES,
    READOUTS,
    NumbersOnly,
    are_standard_normal,
    ideal,
    layer_of,
    misreading,
    repeated,
    standardised,
)

from qiskit_torch_bridge import (
    DensityMatrixBackend,
    Mitigation,
    MitigationPlan,
    QuantumLayer,
    Quote,
    ReadoutCorrection,
    TwirledReadout,
    ZeroNoiseExtrapolation,
)
from qiskit_torch_bridge.mitigation.confusion import Confusion, corrected_group
from qiskit_torch_bridge.program.readout import Expectation, Probabilities, Samples, bits_of


class Unchanged(Mitigation):
    """A method that reads values, and leaves them as they are."""

    def plan(self, program, backend):
        return MitigationPlan((program,), lambda estimates, _: estimates[0])


def groups():
    paulis = Expectation.of(["ZZIZ", {"XIXX": 0.7, "IXII": -2.0}, "IIIZ"], range(4), 4).groups
    outcomes = [
        Probabilities.of([2, 0, 1], interpret).groups[0]
        for interpret in (None, lambda outcome: outcome.bit_count() % 2, lambda outcome: outcome**2 % 7)
    ]
    return [*paulis, *outcomes]


GROUPS = groups()


def confusion_of(group, seed=3) -> Confusion:
    rng = np.random.default_rng(seed)
    size = len(group.qubits)
    spread = rng.normal(size=(2, size, size))
    return Confusion(rng.uniform(0.01, 0.2, (2, size)), spread @ spread.swapaxes(1, 2))


def some_samples(group, seed=4) -> Samples:
    """Of three rows with 50 shots each, not sorted by row."""
    rng = np.random.default_rng(seed)
    size = len(group.qubits)
    return Samples(np.tile(np.arange(3), 50), rng.integers(0, 2, (150, size)).astype(np.uint8), np.ones(150, int), 3)


def table_of(samples: Samples) -> np.ndarray:
    size = samples.bits.shape[1]
    table = np.zeros((samples.num_rows, 2**size))
    np.add.at(table, (samples.rows, samples.bits @ (1 << np.arange(size))), samples.frequencies)
    return table


# What scores are, by plain linear algebra -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_scores_undo_the_confusion_of_all_bits(group):
    confusion = confusion_of(group)
    matrix = np.ones((1, 1))
    for first, second in confusion.rates.T:
        matrix = np.kron(np.array([[1 - first, second], [first, 1 - second]]), matrix)
    all_bits = bits_of(np.arange(len(matrix)), len(group.qubits))
    expected = np.linalg.inv(matrix).T @ group.scores(all_bits)
    corrected = corrected_group(group, confusion)
    np.testing.assert_allclose(corrected.scores(all_bits), expected, atol=1e-12)

    samples = some_samples(group)
    table, upstream = table_of(samples), np.random.default_rng(8).normal(size=(3, expected.shape[1]))
    for got in (corrected.moments(table), corrected.sample_moments(samples)):
        np.testing.assert_allclose(got, (table @ expected, table @ expected**2), atol=1e-12)
    along = upstream @ expected.T
    for got in (corrected.moments_along(table, upstream), corrected.sample_moments_along(samples, upstream)):
        np.testing.assert_allclose(got, ((table * along).sum(axis=1), (table * along**2).sum(axis=1)), atol=1e-12)


@pytest.mark.parametrize("group", GROUPS)
def test_slopes_are_those_of_finite_differences(group):
    confusion, samples, step = confusion_of(group), some_samples(group), 1e-6
    table = table_of(samples)
    slopes = corrected_group(group, confusion).slopes(table)
    np.testing.assert_allclose(corrected_group(group, confusion).slopes(samples), slopes, atol=1e-12)
    for place in np.ndindex(confusion.rates.shape):
        moved = []
        for sign in (1, -1):
            rates = confusion.rates.copy()
            rates[place] += sign * step
            moved.append(corrected_group(group, Confusion(rates, confusion.covariances)).moments(table)[0])
        np.testing.assert_allclose(slopes[:, :, place[0], place[1]], (moved[0] - moved[1]) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("group", GROUPS)
def test_variances_of_the_calibration_do_not_depend_on_blocks(group, monkeypatch):
    corrected, samples = corrected_group(group, confusion_of(group)), some_samples(group)
    upstream = np.random.default_rng(1).normal(size=(3, len(group.scales)))
    slopes = corrected.slopes(samples)
    expected = np.einsum("nmsi,sij,nmsj->nm", slopes, corrected.confusion.covariances, slopes)
    along = np.einsum("nm,nmsi,sij,nlsj,nl->n", upstream, slopes, corrected.confusion.covariances, slopes, upstream)
    for most in (2**22, 1):
        monkeypatch.setattr("qiskit_torch_bridge.mitigation.confusion._MOST_NUMBERS_AT_ONCE", most)
        for measured in (samples, table_of(samples)):
            np.testing.assert_allclose(corrected.variances_of_calibration(measured), expected)
            np.testing.assert_allclose(corrected.variances_of_calibration(measured, upstream), along)
        np.testing.assert_allclose(corrected.sample_moments(samples)[1], corrected.moments(table_of(samples))[1])


# Values and gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", READOUTS)
def test_exact_values_and_gradients_are_those_without_errors(readout):
    layers = [
        layer_of(readout=readout),
        layer_of(DensityMatrixBackend(misreading()), readout, mitigation=[ReadoutCorrection()]),
        layer_of(DensityMatrixBackend(misreading()), readout),
    ]
    upstream = torch.from_numpy(np.random.default_rng(2).normal(size=(2, layers[0].num_outputs)))
    results = []
    for layer in layers:
        features = FEATURES.clone().requires_grad_()
        values = layer(features)
        values.backward(upstream)
        results.append((values.detach().numpy(), features.grad.numpy()))
    for expected, corrected, raw in zip(*results, strict=True):
        np.testing.assert_allclose(corrected, expected, atol=1e-12)
        assert np.abs(raw - expected).max() > 0.02


def test_a_transposed_confusion_matrix_is_noticed(monkeypatch):
    """The test above would fail, did it take the probabilities of true bits given measured ones."""
    genuine = Confusion.inverses.func
    transposed = cached_property(lambda self: genuine(self).swapaxes(1, 2))
    transposed.__set_name__(Confusion, "inverses")
    monkeypatch.setattr(Confusion, "inverses", transposed)
    values = layer_of(DensityMatrixBackend(misreading()), mitigation=[ReadoutCorrection()])(FEATURES)
    assert np.abs(values.numpy() - ideal()).max() > 0.02


@pytest.mark.parametrize("backend", [AerSimulator(noise_model=misreading()), "sampler"], ids=["aer", "sampler"])
@pytest.mark.parametrize("readout", READOUTS)
def test_backends_that_count_agree(backend, readout):
    if backend == "sampler":
        backend = SamplerV2(options={"backend_options": {"noise_model": misreading()}})
    layer = layer_of(backend, readout, shots=4000, seed=1, mitigation=[ReadoutCorrection()])
    values, expected, run = layer(FEATURES).numpy(), ideal(readout), layer.last_run
    known = run.standard_errors > 0  # a class that no outcome is mapped to has none
    assert (np.abs(values - expected)[known] < 4.5 * run.standard_errors[known]).all()
    assert (values[~known] == expected[~known]).all()
    assert values.sum() == pytest.approx(expected.sum(), abs=0.3)


def test_probabilities_add_up_and_may_be_negative():
    layer = QuantumLayer(
        QuantumCircuit(2), probabilities=[0, 1], backend=AerSimulator(noise_model=misreading()), shots=50, seed=1,
        mitigation=[ReadoutCorrection()],
    )  # fmt: skip
    drawn = torch.stack([layer() for _ in range(20)])
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(20))
    assert drawn.min() < 0


def test_wide_circuits_take_no_table():
    """A table of 2**40 outcomes fits nowhere."""
    x = ParameterVector("x", 40)
    wide = QuantumCircuit(40)
    for qubit in range(40):
        wide.ry(x[qubit], qubit)
    observables = ["Z" * 3 + "I" * 37, {"I" * 37 + "ZZZ": 1.0, "Z" + "I" * 39: -0.5}]
    noise = misreading([RATES[qubit % 3] for qubit in range(40)])
    backend = AerSimulator(method="matrix_product_state", noise_model=noise)
    layer = QuantumLayer(
        wide, inputs=x, observables=observables, backend=backend, shots=1000, seed=3, mitigation=[ReadoutCorrection(2)]
    )
    features = torch.linspace(0.1, 1.0, 40, dtype=torch.float64)[None]
    cosines = torch.cos(features[0])
    expected = torch.stack([cosines[37:].prod(), cosines[:3].prod() - 0.5 * cosines[39]])
    values = layer(features)[0]
    assert (np.abs((values - expected).numpy()) < 4.5 * layer.last_run.standard_errors[0]).all()


# Error bars -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["observables", "probabilities", "classes"])
def test_error_bars_cover_what_they_should(readout):
    estimates = repeated(DensityMatrixBackend(misreading()), [ReadoutCorrection(1)], 150, 600, readout)
    upstream = np.random.default_rng(6).normal(size=estimates[0].values.shape)
    assert are_standard_normal(standardised(estimates, ideal(readout)))
    assert are_standard_normal(standardised(estimates, ideal(readout), upstream))


def test_error_bars_without_those_of_the_calibration_are_noticed(monkeypatch):
    monkeypatch.setattr(Confusion, "variances", lambda self, slopes: np.zeros(slopes.shape[:-2]))
    backend = DensityMatrixBackend(misreading())
    estimates = repeated(backend, [ReadoutCorrection(1)], 150, 600)
    assert not are_standard_normal(standardised(estimates, ideal()))


def test_a_calibration_with_more_rows_says_more():
    backend = DensityMatrixBackend(misreading())
    few, many = (repeated(backend, [ReadoutCorrection(rows)], 1, 200)[0] for rows in (1, 1000))
    assert (many.variances < 0.95 * few.variances).any()
    alone = repeated(backend, [ReadoutCorrection(1000)], 1, 200)[0]
    np.testing.assert_array_equal(alone.values, many.values)


def test_predictions_scale_as_the_shots():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=500, seed=1, mitigation=[ReadoutCorrection()])
    layer(FEATURES)
    run = layer.last_run
    np.testing.assert_allclose(run.predicted(2000).standard_errors, run.standard_errors / 2)


def test_predictions_from_exact_values_are_those_of_the_corrected_scores():
    layer = layer_of(DensityMatrixBackend(noise=misreading()), "probabilities", mitigation=[ReadoutCorrection()])
    layer(FEATURES)
    confusions = [np.array([[1 - first, second], [first, 1 - second]]) for first, second in (RATES[0], RATES[2])]
    inverse = np.linalg.inv(np.kron(*confusions))  # the first qubit that is asked for is the last bit
    true = ideal("probabilities")
    misread = true @ np.kron(*confusions).T
    variances = (misread @ inverse.T**2 - true**2) / 1000
    assert layer.last_run.predicted(1000).standard_errors == pytest.approx(np.sqrt(variances), rel=1e-6)


def test_one_shot_says_nothing_about_its_error():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=1, seed=1, mitigation=[ReadoutCorrection()])
    layer(FEATURES)
    assert np.isnan(layer.last_run.standard_errors).all()


# Beside mthree --------------------------------------------------------------------------------------------------------

# What mthree 3.0.0 (single precision) gave for the rates above, by M3Mitigation.apply_correction(counts, [0, 1, 2],
# method="direct") with single_qubit_cals set to the confusion matrices; and its expectation values of ZZZ.
ALL_STRINGS = {"000": 402, "001": 61, "010": 35, "011": 22, "100": 87, "101": 18, "110": 30, "111": 345}
FEW_STRINGS = {"000": 480, "001": 20, "110": 30, "111": 470}
QUASI_BY_MTHREE = [0.47259769, 0.06672728, 0.01422217, 0.00967120, 0.04610200, 0.00818999, -0.00625527, 0.38874483]
ZZZ_OF_ALL_BY_MTHREE, ZZZ_OF_FEW_BY_MTHREE = -0.03159264, -0.0444445


def of_counts(counts) -> Samples:
    bits = np.array([[int(character) for character in word[::-1]] for word in counts], np.uint8)
    return Samples(np.zeros(len(counts), int), bits, np.array(list(counts.values())), 1)


def test_mthree_gives_the_same_where_all_strings_were_observed():
    confusion = Confusion(np.array(RATES).T, np.zeros((2, 3, 3)))
    (outcomes,), (parity,) = Probabilities.of([0, 1, 2]).groups, Expectation.of(["ZZZ"], range(3), 3).groups
    quasi, _ = corrected_group(outcomes, confusion).sample_moments(of_counts(ALL_STRINGS))
    np.testing.assert_allclose(quasi[0], QUASI_BY_MTHREE, atol=1e-7)
    value, _ = corrected_group(parity, confusion).sample_moments(of_counts(ALL_STRINGS))
    assert value.item() == pytest.approx(ZZZ_OF_ALL_BY_MTHREE, abs=1e-7)


def test_mthree_leaves_out_strings_that_were_not_observed():
    """Which no error bar says; the complete inverse of these counts is 0.080, by solving with all 8 x 8 entries."""
    confusion = Confusion(np.array(RATES).T, np.zeros((2, 3, 3)))
    (parity,) = Expectation.of(["ZZZ"], range(3), 3).groups
    value, _ = corrected_group(parity, confusion).sample_moments(of_counts(FEW_STRINGS))
    assert value.item() == pytest.approx(0.08000869541588518, abs=1e-12)
    assert abs(value.item() - ZZZ_OF_FEW_BY_MTHREE) > 0.1


# Costs ----------------------------------------------------------------------------------------------------------------


def test_a_quote_counts_the_calibration_once():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=100, seed=1, mitigation=[ReadoutCorrection(5)])
    quote = layer.quote(2)
    num_groups = len(layer.program.readout.groups)
    calibration = 2 * 5 * num_groups
    step = 2 * num_groups * (1 + 2 * 3)
    assert quote.once == Quote(0, calibration, 100 * calibration, 100 * calibration)
    assert (quote.circuits, quote.shots, quote.executions) == (step + calibration, *[100 * (step + calibration)] * 2)
    assert (quote * 7).circuits == (7 * quote).circuits == 7 * step + calibration
    assert (quote + quote).circuits == (2 * quote).circuits
    assert (quote + quote).once == quote.once
    assert quote * 0 == Quote()
    other = layer_of(DensityMatrixBackend(misreading()), shots=100, mitigation=[ReadoutCorrection(5)]).quote(2)
    assert (quote + other).circuits == 2 * (step + calibration)

    layer(FEATURES.clone().requires_grad_()).sum().backward()
    assert layer.quote(2).once == Quote()
    assert layer.quote(2).circuits == step == layer.total_circuits


@pytest.mark.parametrize("method", [ReadoutCorrection(1), TwirledReadout(8, calibration_rows=1)])
def test_circuits_of_an_extrapolation_share_a_calibration(method):
    methods = [method, ZeroNoiseExtrapolation()]
    alone, extrapolated = (
        layer_of(DensityMatrixBackend(misreading()), shots=100, mitigation=each) for each in ([method], methods)
    )
    assert extrapolated.quote(2).once == alone.quote(2).once
    assert extrapolated.quote(2).circuits > alone.quote(2).circuits
    exact = layer_of(DensityMatrixBackend(misreading()), mitigation=methods)
    np.testing.assert_allclose(exact(FEATURES).numpy(), ideal(), atol=1e-9)


def test_a_calibration_is_measured_again_for_more_shots():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=100, seed=1, mitigation=[ReadoutCorrection()])
    layer(FEATURES)
    layer.shots = 50
    assert layer.quote(2).once == Quote()
    layer.shots = 101
    assert layer.quote(2).once != Quote()


# As users hold it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [DensityMatrixBackend(misreading()), AerSimulator(noise_model=misreading())])
def test_layers_go_on_in_another_process_as_they_were(backend):
    """Although a calibration does not travel with them."""
    layer = layer_of(backend, shots=100, seed=3, mitigation=[ReadoutCorrection()])
    layer(FEATURES)
    travelled, copied = pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)
    following = layer(FEATURES)
    assert torch.equal(travelled(FEATURES), following)
    assert torch.equal(copied(FEATURES), following)
    fresh = layer_of(backend, shots=100, seed=3, mitigation=[ReadoutCorrection()])
    state = layer.get_rng_state()
    fresh.set_rng_state(state)
    assert torch.equal(fresh(FEATURES), layer(FEATURES))


def test_batches_of_one_and_of_none():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=100, seed=3, mitigation=[ReadoutCorrection()])
    assert layer(FEATURES[:0]).shape == (0, 3)
    assert layer.last_run is None
    assert layer(FEATURES[0]).shape == (3,)
    assert layer.last_run.standard_errors.shape == (1, 3)


def test_second_derivatives_and_vmap():
    layer = layer_of(DensityMatrixBackend(misreading()), mitigation=[ReadoutCorrection()])
    expected = torch.func.jacrev(torch.func.jacrev(layer_of()))(FEATURES[0])
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(layer))(FEATURES[0]), expected)
    torch.testing.assert_close(torch.func.vmap(layer)(FEATURES), layer_of()(FEATURES))


def test_constants_need_no_calibration():
    layer = QuantumLayer(
        QuantumCircuit(1), observables=["I"], backend=AerSimulator(noise_model=misreading()), shots=10,
        mitigation=[ReadoutCorrection()],
    )  # fmt: skip
    assert layer().tolist() == [1.0]


def test_inputs_of_blocks():
    """Of instructions that are only defined for numbers: each filling is a circuit of its own, and so is its calibration."""
    x = ParameterVector("x", 2)
    numbers = QuantumCircuit(2)
    numbers.ry(x[0], 0)
    numbers.append(NumbersOnly(x[1]), [1])
    layer = QuantumLayer(
        numbers, inputs=x, backend=DensityMatrixBackend(misreading()), mitigation=[ReadoutCorrection()]
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(FEATURES[:, :2]), torch.cos(FEATURES[:, :2]))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_bits_that_say_nothing_are_refused():
    noise = misreading([(0.02, 0.08), (0.5, 0.45), (0.1, 0.03)])
    layer = layer_of(DensityMatrixBackend(noise), shots=1000, mitigation=[ReadoutCorrection()], seed=1)
    with pytest.raises(ValueError, match=r"qubit 1 .*reads 1 for 0 with probability 0\.5.*cannot be corrected"):
        layer(FEATURES)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (StatevectorEstimator(), "Estimator gives values only.*measure_mitigation"),
        (None, "has no errors to mitigate"),
        ("pauli", "has no errors to mitigate"),
    ],
)
def test_backends_without_bits_are_refused(backend, message):
    with pytest.raises(ValueError, match=message):
        layer_of(backend, shots=None if isinstance(backend, str) else 100, mitigation=[ReadoutCorrection()])


def test_circuits_that_are_simulated_in_parts_are_refused():
    x = ParameterVector("x", 30)
    wide = QuantumCircuit(30)
    for qubit in range(30):
        wide.ry(x[qubit], qubit)
    with pytest.raises(ValueError, match="light cones"):
        QuantumLayer(wide, inputs=x, backend=DensityMatrixBackend(misreading()), mitigation=[ReadoutCorrection()])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([ReadoutCorrection(), TwirledReadout()], "correct the same errors; give one"),
        ([Unchanged(), ReadoutCorrection()], "after Unchanged.*put ReadoutCorrection first"),
        ([Unchanged(), TwirledReadout()], "put TwirledReadout first"),
        ([ReadoutCorrection(), ReadoutCorrection(3)], "more than once"),
    ],
)
def test_orders_that_cannot_be_are_refused(methods, message):
    with pytest.raises(ValueError, match=message):
        layer_of(DensityMatrixBackend(misreading()), mitigation=methods)


def test_other_methods_go_behind_it():
    backend = DensityMatrixBackend(misreading())
    values = layer_of(backend, mitigation=[ReadoutCorrection(), Unchanged()])(FEATURES)
    np.testing.assert_allclose(values.numpy(), ideal(), atol=1e-12)


@pytest.mark.parametrize(("rows", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_rows_are_a_positive_integer(rows, error):
    with pytest.raises(error, match="calibration_rows"):
        ReadoutCorrection(rows)
