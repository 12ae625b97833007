"""What names a backend, and what does not."""

import sys
from functools import partial

import pytest
import torch
from conformance import (
    EXPECTATION,
    FEATURES,
    PROBABILITIES,
    REFERENCES,
    SHOT_ESTIMATORS,
    SHOTS,
    assert_step,
    backends,
    make_layer,
    manila,
    model,
    one_qubit_layer,
    runtime,
    shots_atol,
)
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.providers import BackendV2
from qiskit_aer import AerSimulator

from qiskit_torch_bridge import AerBackend, Backend, EstimatorBackend, SamplerBackend, StatevectorBackend
from qiskit_torch_bridge.backends import resolve_backend


@pytest.mark.parametrize("word", ["fake:manila", "fake:fake_manila", "fake:FakeManilaV2", "fake:Manila"])
def test_fake_words(word):
    runtime("fake_provider")
    backend = resolve_backend(word)
    assert isinstance(backend, AerBackend)
    assert "manila" in backend.name


def test_objects_become_backends():
    assert isinstance(resolve_backend(None), StatevectorBackend)
    assert isinstance(resolve_backend("statevector"), StatevectorBackend)
    assert isinstance(resolve_backend("aer"), AerBackend)
    simulator = AerSimulator()
    assert resolve_backend(simulator).simulator is simulator, "as the user configured it"
    assert isinstance(resolve_backend(StatevectorSampler()), SamplerBackend)
    assert isinstance(resolve_backend(StatevectorEstimator()), EstimatorBackend)
    mine = StatevectorBackend()
    assert resolve_backend(mine) is mine


class SomeDevice(BackendV2):
    """A vendor's device: no simulator, no fake."""

    def __init__(self) -> None:
        super().__init__(name="some_device")
        self._inner = manila()

    @property
    def target(self):
        return self._inner.target

    @property
    def max_circuits(self):
        return None

    @classmethod
    def _default_options(cls):
        return AerSimulator().options

    def run(self, run_input, **options):
        return self._inner.run(run_input, **options)


def test_any_other_device_is_sampled():
    backend = resolve_backend(SomeDevice())
    assert isinstance(backend, SamplerBackend)
    layer = make_layer(model(), backend=backend, shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))


class RealDevice(SomeDevice):
    pass


RealDevice.__module__ = "qiskit_ibm_runtime.ibm_backend"


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("fake:nowhere", ValueError, r"expected one of .*manila.* after the colon"),
        (3, TypeError, r"got 3 \(int\).*AerSimulator"),
        (StatevectorSampler, TypeError, r"V2 Sampler or Estimator"),
    ],
)
def test_what_is_no_backend(backend, error, message):
    if backend == "fake:nowhere":
        runtime("fake_provider")
    with pytest.raises(error, match=message):
        one_qubit_layer(backend=backend)


def test_an_ibm_device_itself_takes_the_way_of_hardware():
    """A stand-in that is no fake device by its class: what a service hands out takes the same way."""
    runtime("fake_provider")
    from qiskit_torch_bridge import IBMBackend  # needs the extra

    device = RealDevice()
    layer = make_layer(model(), backend=device, shots=SHOTS, **EXPECTATION)
    assert isinstance(layer.backend, IBMBackend)
    assert layer.backend.device is device
    # IBM's local mode makes a noise model of the device's error rates, so only near the noiseless values.
    assert torch.allclose(layer(FEATURES).detach(), REFERENCES["expectation"][0], atol=0.4)


def test_fake_words_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime", None)
    with pytest.raises(ImportError, match=r"pip install 'qiskit-torch-bridge\[ibm\]'"):
        resolve_backend("fake:manila")


@backends(SHOT_ESTIMATORS)
def test_estimators_have_no_probabilities(make):
    with pytest.raises(ValueError, match=r"Estimator.*probabilities.*use a Sampler"):
        make_layer(model(), backend=make(), **PROBABILITIES)


@pytest.mark.parametrize("make", [AerBackend, partial(SamplerBackend, StatevectorSampler())], ids=["aer", "sampler"])
def test_bad_optimization_level(make):
    with pytest.raises(ValueError, match="optimization_level: got 4"):
        make(optimization_level=4)


def test_primitives_of_the_wrong_kind():
    with pytest.raises(TypeError, match="got StatevectorEstimator, expected a V2 Sampler"):
        SamplerBackend(StatevectorEstimator())
    with pytest.raises(TypeError, match="got StatevectorSampler, expected a V2 Estimator"):
        EstimatorBackend(StatevectorSampler())


class Unfinished(Backend):
    """A backend of one's own, by someone who forgot to give it a name and to return what it has measured."""

    def resolve_shots(self, shots):
        return shots or 100

    def prepare(self, program):
        pass

    def evaluate(self, program, angles, *, shots, seed):
        pass


def test_what_is_missing_in_a_backend_of_ones_own_is_said():
    with pytest.raises(
        TypeError, match=r"got the class Unfinished, expected one of its objects .*; write Unfinished\("
    ):
        one_qubit_layer(backend=Unfinished)
    backend = Unfinished()
    with pytest.raises(TypeError, match=r"got a Unfinished without a name, expected .*; write name = "):
        one_qubit_layer(backend=backend)
    backend.name = "unfinished"
    layer = one_qubit_layer(backend=backend)
    with pytest.raises(TypeError, match=r"Unfinished\.evaluate: got None \(NoneType\), expected an Estimate; return"):
        layer(torch.zeros(1, 1))
