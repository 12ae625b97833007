"""The transpiler's choices are checked where they are given, alike for every backend that transpiles."""

import numpy as np
import pytest
from qiskit.primitives import StatevectorEstimator, StatevectorSampler

from qiskit_torch_bridge import AerBackend, EstimatorBackend, SamplerBackend

MAKERS = {
    "aer": AerBackend,
    "sampler": lambda **options: SamplerBackend(StatevectorSampler(), **options),
    "estimator": lambda **options: EstimatorBackend(StatevectorEstimator(), **options),
}
backends = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@backends
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initial_layout": {0, 1}}, TypeError, r"initial_layout: got \{0, 1\} \(set\), expected a list"),
        ({"initial_layout": frozenset([1])}, TypeError, "initial_layout: got frozenset"),
        ({"initial_layout": {0: 1}.keys()}, TypeError, "initial_layout: got dict_keys"),
        ({"initial_layout": {0: 1}}, TypeError, r"initial_layout: got .*\(dict\)"),
        ({"initial_layout": 1}, TypeError, r"initial_layout: got 1 \(int\), expected a list"),
        ({"initial_layout": "01"}, TypeError, "initial_layout: got '01'"),
        ({"initial_layout": [0, 0]}, ValueError, r"initial_layout: got \[0, 0\], expected .*different"),
        ({"initial_layout": [-1, 0]}, ValueError, "initial_layout"),
        ({"initial_layout": [True, 0]}, ValueError, "initial_layout"),
        ({"initial_layout": [0.0, 1.0]}, ValueError, "initial_layout"),
        ({"seed_transpiler": -1}, ValueError, "seed_transpiler: got -1, expected an integer from 0"),
        ({"seed_transpiler": 2**64}, ValueError, "seed_transpiler"),
        ({"seed_transpiler": 1.5}, TypeError, r"seed_transpiler: got 1.5 \(float\)"),
        ({"seed_transpiler": True}, TypeError, "seed_transpiler: got True"),
        ({"optimization_level": True}, ValueError, "optimization_level: got True"),
        ({"optimization_level": "2"}, ValueError, "optimization_level: got '2'"),
        ({"optimization_level": -1}, ValueError, "optimization_level: got -1"),
    ],
)
def test_bad_choices_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@backends
@pytest.mark.parametrize("layout", [[2, 0], (2, 0), np.array([2, 0])], ids=["list", "tuple", "array"])
def test_good_choices_become_plain_integers(make, layout):
    backend = make(initial_layout=layout, seed_transpiler=np.int64(3), optimization_level=np.int64(1))
    assert backend.initial_layout == (2, 0)
    choices = (*backend.initial_layout, backend.seed_transpiler, backend.optimization_level)
    assert {type(choice) for choice in choices} == {int}
