"""The split of a difference into shot noise, modelled noise and the rest, on numbers of which the parts are known."""

import json

import numpy as np
import pytest

from qiskit_torch_bridge import Deviation, Shadow

RNG = np.random.default_rng(5)
SHAPE = (400, 3)
EXACT = RNG.uniform(-1, 1, SHAPE)
ERRORS = RNG.uniform(0.01, 0.03, SHAPE)
MODELLED = EXACT - 0.05 * np.sign(EXACT)


def measured(rest: np.ndarray | float = 0.0) -> np.ndarray:
    return MODELLED + rest + ERRORS * RNG.standard_normal(SHAPE)


def test_the_rest_of_a_right_model_is_zero_within_its_scatter():
    scores = [Deviation(measured(), EXACT, ERRORS, MODELLED).rest_z for _ in range(200)]
    assert abs(np.mean(scores)) < 4 / np.sqrt(200)
    assert abs(np.var(scores) - 1) < 4 * np.sqrt(2 / 200)


def test_the_parts_add_up():
    rest = 0.04 * RNG.choice([-1.0, 1.0], SHAPE)
    deviation = Deviation(measured(rest), EXACT, ERRORS, MODELLED)
    found = deviation.summary()
    assert list(found) == ["rms", "shot_noise", "device_bias", "modelled_noise", "rest", "rest_z"]
    assert found["modelled_noise"] == pytest.approx(0.05)
    assert found["rest"] == pytest.approx(0.04, rel=0.05)
    assert found["rest_z"] > 10
    mixed = np.mean((deviation.measured - MODELLED) * (MODELLED - EXACT))
    parts = found["shot_noise"] ** 2 + found["modelled_noise"] ** 2 + found["rest"] ** 2
    assert found["rms"] ** 2 == pytest.approx(parts + 2 * mixed, abs=1e-12)
    assert deviation.z_scores == pytest.approx((deviation.measured - MODELLED) / ERRORS)


def test_what_shots_explain_is_no_rest():
    deviation = Deviation(MODELLED, EXACT, ERRORS, MODELLED)
    assert deviation.rest == 0.0
    assert deviation.rest_z < -10


def test_without_a_model_there_is_no_split():
    deviation = Deviation(measured(), EXACT, ERRORS)
    assert list(deviation.summary()) == ["rms", "shot_noise", "device_bias"]
    assert np.isnan([deviation.modelled_noise, deviation.rest, deviation.rest_z]).all()
    assert deviation.z_scores == pytest.approx((deviation.measured - EXACT) / ERRORS)
    assert set(deviation.numbers()) == {"measured", "exact", "standard_errors"}


def test_outputs_that_do_not_scatter_have_no_score():
    errors = np.array([[0.0, np.nan, 0.1]])
    deviation = Deviation(np.zeros((1, 3)), np.ones((1, 3)), errors, np.ones((1, 3)))
    assert deviation.z_scores == pytest.approx(np.array([[np.nan, np.nan, -10.0]]), nan_ok=True)
    assert np.isnan(deviation.rest)
    exactly = Deviation(np.zeros((1, 3)), np.ones((1, 3)), np.zeros((1, 3)), np.ones((1, 3)))
    assert exactly.rest == 1.0
    assert np.isnan(exactly.rest_z)


def test_numbers_are_plain():
    values = Deviation(measured(), EXACT, ERRORS, MODELLED)
    assert list(Shadow(values, None).parts) == ["values"]
    assert json.loads(json.dumps(values.numbers()))["modelled"] == MODELLED.tolist()
