"""A layer whose parts are replaced, or that a tracer looks at: the right numbers, or one clear error."""

import importlib
import math
import sys

import pytest
import torch
from child_processes import forks, in_child
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError
from torch.fx.experimental.proxy_tensor import make_fx
from torch_layers import forward_mode

from qiskit_torch_bridge import QuantumLayer, evaluate

ANGLE = 0.7


def layer(**options) -> QuantumLayer:
    """One qubit, whose <Z> is the cosine of the weight."""
    angle = Parameter("w")
    circuit = QuantumCircuit(1)
    circuit.ry(angle, 0)
    return QuantumLayer(circuit, weights=[angle], init=torch.tensor([ANGLE], dtype=torch.float64), **options)


class TestBackend:
    @pytest.mark.parametrize("backend", [AerSimulator(), "aer", StatevectorSampler(default_shots=1024)])
    def test_may_be_replaced_by_whatever_the_argument_takes(self, backend):
        replaced = layer(seed=1)
        replaced.backend = backend
        values = replaced()
        values.sum().backward()
        shots = replaced.last_run.shots
        tolerance = 4 / math.sqrt(shots) if shots else 1e-9
        assert abs(float(values.detach()) - math.cos(ANGLE)) <= tolerance
        assert abs(float(replaced.weights.grad) + math.sin(ANGLE)) <= tolerance
        assert replaced.gradient.name == "parameter_shift"
        assert replaced.quote().circuits == 3
        assert replaced.backend.name in repr(replaced)

    @pytest.mark.parametrize(
        ("options", "backend", "message"),
        [
            ({"probabilities": [0]}, StatevectorEstimator(), "expectation values only"),
            ({"gradient": "adjoint"}, "aer", "needs exact simulation"),
            ({"allocation": "sensitivity", "shots": 10}, "ibm:fake_manila", "one job with the values"),
            ({}, StatevectorSampler, "expected one of"),
        ],
    )
    def test_one_that_does_not_fit_is_refused_and_the_layer_stays_as_it_was(self, options, backend, message):
        if str(backend).startswith("ibm:"):
            pytest.importorskip("qiskit_ibm_runtime")
        kept = layer(**options)
        before = kept.backend
        with pytest.raises((TypeError, ValueError), match=message):
            kept.backend = backend
        assert kept.backend is before
        kept()


class TestSettings:
    """What the user changes in a primitive or simulator of theirs holds from the next call on."""

    def test_default_shots_of_a_sampler(self):
        sampler = StatevectorSampler(default_shots=10)
        changed = layer(backend=sampler)
        changed()
        sampler._default_shots = 70  # the reference primitive has no public way; vendors' have options
        changed()
        assert changed.last_run.shots == 70
        assert changed.quote().shots == 3 * 70

    def test_default_precision_of_an_estimator(self):
        estimator = StatevectorEstimator(default_precision=0.1)
        changed = layer(backend=estimator)
        changed()
        estimator._default_precision = 0.0
        assert abs(float(changed().detach()) - math.cos(ANGLE)) < 1e-12
        assert changed.last_run.shots == 0

    def test_noise_that_a_simulator_gets(self):
        simulator = AerSimulator()
        changed = layer(backend=simulator)
        changed()
        noise = NoiseModel()
        noise.add_all_qubit_readout_error(ReadoutError([[0.9, 0.1], [0.2, 0.8]]))
        simulator.set_options(noise_model=noise)
        with pytest.raises(ValueError, match="has readout errors, which exact values would leave out"):
            changed()


def refusal_without_the_extra() -> str:
    """Changes this process for good: of what the extra brings, and what needs it, nothing has been imported."""
    needed = ("tenacity", "pydantic", "qiskit_ibm_runtime")
    for name in [*sys.modules]:
        if name.startswith((*needed, "qiskit_torch_bridge")):
            del sys.modules[name]
    sys.modules.update(dict.fromkeys(needed))
    with pytest.raises(ImportError) as refused:
        importlib.import_module("qiskit_torch_bridge.backends").resolve_backend("ibm:ibm_fez")
    return str(refused.value)


@forks
def test_without_the_extra_an_ibm_device_names_it():
    assert "install the extra" in in_child("fork", refusal_without_the_extra)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_outputs_are_never_cast_to_what_holds_no_real_numbers(dtype):
    with pytest.raises(TypeError, match="expected a floating point dtype"):
        torch.func.functional_call(layer(), {"weights": torch.ones(1, dtype=dtype)}, ())


class TestTracing:
    """A trace would keep the values of one call as constants, where the layer is no operator in it."""

    @forward_mode
    @pytest.mark.parametrize("shots", [None, 10])
    @pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.jacfwd])
    def test_transforms_within_one_are_refused(self, transform, shots):
        angle = Parameter("x")
        circuit = QuantumCircuit(1)
        circuit.rx(angle, 0)
        model = QuantumLayer(circuit, inputs=[angle], shots=shots)
        with pytest.raises(RuntimeError, match="within a trace"):
            make_fx(transform(lambda x: model(x).sum()))(torch.tensor([[0.5]]))
        model(torch.tensor([[0.5]]))  # as before, outside

    def test_evaluate_is_refused(self):
        program = layer().program
        with pytest.raises(RuntimeError, match="use a QuantumLayer"):
            make_fx(lambda w: evaluate(program, None, [w], seed=0))(torch.tensor([0.5]))
