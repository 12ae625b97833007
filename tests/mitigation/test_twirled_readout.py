"""``TwirledReadout`` on devices whose readout errors are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from qiskit.primitives import StatevectorEstimator
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import SamplerV2
from readout_problems import FEATURES, are_standard_normal, ideal, layer_of, misreading, repeated, standardised

from qiskit_torch_bridge import DensityMatrixBackend, Quote, TwirledReadout
from qiskit_torch_bridge.mitigation import twirled_readout
from qiskit_torch_bridge.mitigation.readout_circuits import Flipped


@pytest.mark.parametrize("randomizations", [2, 4, 8, 16])
def test_flips_are_balanced(randomizations):
    flips = np.array([Flipped(number, randomizations).flips(6) for number in range(randomizations)])
    signs = 1 - 2 * flips
    assert not flips[0].any()
    assert (signs.sum(axis=0) == 0).all()
    triples = np.einsum("ri,rj,rk->ijk", signs, signs, signs)
    assert (triples == 0).all()
    numbers = np.arange(6) % (randomizations // 2)
    np.testing.assert_array_equal(signs.T @ signs == 0, numbers[:, None] != numbers)


def test_exact_values_and_gradients_are_those_without_errors():
    upstream = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 3)))
    results = []
    for layer in (layer_of(), layer_of(DensityMatrixBackend(misreading()), mitigation=[TwirledReadout()])):
        features = FEATURES.clone().requires_grad_()
        values = layer(features)
        values.backward(upstream)
        results.append((values.detach().numpy(), features.grad.numpy()))
    for expected, corrected in zip(*results, strict=True):
        np.testing.assert_allclose(corrected, expected, atol=1e-12)


def test_bits_that_are_not_flipped_back_are_noticed(monkeypatch):
    genuine = twirled_readout._twirled_group
    never = [SimpleNamespace(flips=lambda size: np.zeros(size, int))] * 16
    monkeypatch.setattr(
        twirled_readout, "_twirled_group", lambda group, draws, *others: genuine(group, never[: len(draws)], *others)
    )
    layer = layer_of(DensityMatrixBackend(misreading()), mitigation=[TwirledReadout()])
    with pytest.raises(ValueError, match="nothing that could be corrected is left"):
        layer(FEATURES)


@pytest.mark.parametrize("backend", ["aer", "sampler"])
def test_backends_that_count_agree(backend):
    noise = misreading()
    device = AerSimulator(noise_model=noise)
    if backend == "sampler":
        device = SamplerV2(options={"backend_options": {"noise_model": noise}})
    layer = layer_of(device, shots=4000, seed=1, mitigation=[TwirledReadout(4)])
    values = layer(FEATURES).numpy()
    assert (np.abs(values - ideal()) < 4.5 * layer.last_run.standard_errors).all()
    assert layer.last_run.counts is None


def test_error_bars_cover_what_they_should():
    estimates = repeated(DensityMatrixBackend(misreading()), [TwirledReadout(4, calibration_rows=1)], 100, 800)
    upstream = np.random.default_rng(6).normal(size=estimates[0].values.shape)
    assert are_standard_normal(standardised(estimates, ideal()))
    assert are_standard_normal(standardised(estimates, ideal(), upstream))


def test_error_bars_without_those_of_the_calibration_are_noticed(monkeypatch):
    monkeypatch.setattr(twirled_readout._TwirledGroup, "variances_of_calibration", lambda *_: np.zeros((2, 3)))
    estimates = repeated(DensityMatrixBackend(misreading()), [TwirledReadout(4, calibration_rows=1)], 100, 800)
    assert not are_standard_normal(standardised(estimates, ideal()))


def test_shots_are_spread_and_randomizations_count_as_one_circuit():
    layer = layer_of(DensityMatrixBackend(misreading()), shots=1000, seed=1, mitigation=[TwirledReadout(16, 5)])
    num_groups = len(layer.program.readout.groups)
    quote = layer.quote(2)
    shots = 16 * 63  # 1000, rounded up
    assert quote.once == Quote(0, 5 * num_groups, 5 * num_groups * shots, 5 * num_groups * shots)
    assert quote.shots == quote.executions
    layer(FEATURES)
    run = layer.last_run
    assert (run.circuits, run.shots) == (2 * num_groups, 2 * num_groups * shots)
    assert layer.quote(2, inputs_require_grad=False).shots == run.shots
    np.testing.assert_allclose(run.predicted(4 * shots).standard_errors, run.standard_errors / 2)


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        (StatevectorEstimator(), {"shots": 100}, "Estimator gives values only"),
        (None, {}, "has no errors to mitigate"),
        (DensityMatrixBackend(misreading()), {"readout": "probabilities"}, "use ReadoutCorrection"),
    ],
)
def test_what_it_cannot_do_is_refused(backend, options, message):
    with pytest.raises(ValueError, match=message):
        layer_of(backend, mitigation=[TwirledReadout()], **options)


def test_bits_are_not_flipped_twice():
    sampler = SamplerV2()
    sampler._options = SimpleNamespace(
        **vars(sampler.options), twirling=SimpleNamespace(enable_measure=True, enable_gates=False)
    )
    with pytest.raises(ValueError, match=r"twirling\.enable_measure flips bits already"):
        layer_of(sampler, shots=100, mitigation=[TwirledReadout()])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"randomizations": 6}, ValueError),
        ({"randomizations": 1}, ValueError),
        ({"randomizations": 4.0}, TypeError),
        ({"calibration_rows": 0}, ValueError),
    ],
)
def test_numbers_are_checked(options, error):
    with pytest.raises(error, match=next(iter(options))):
        TwirledReadout(**options)
