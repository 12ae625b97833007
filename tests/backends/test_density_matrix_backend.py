"""Layers under noise on the package's own simulator: against Aer, and as layers on any other backend are."""

import pickle
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from conformance import FEATURES, READOUTS, WEIGHTS, fake, make_layer, model, runtime, small_model, step
from noisy_evolution import MODELS, with_readout
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error
from scipy.stats import chi2
from torch.autograd import gradcheck, gradgradcheck

from qiskit_torch_bridge import AerBackend, DensityMatrixBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.testing import shot_gradcheck

# Aer leaves out terms of errors that are improbable (below 1e-10).
VALUES, GRADIENTS = 2e-9, 1e-8


def aer_of(noise: NoiseModel) -> AerSimulator:
    return AerSimulator(noise_model=noise, method="density_matrix", max_parallel_threads=1)


def models_and_readouts() -> Iterator[Any]:
    """Each model with each readout; one of both is slow, in turn: noise and readout do not depend on each other."""
    for place, name in enumerate(MODELS):
        for number, readout in enumerate(READOUTS):
            marks = [] if number == place % len(READOUTS) else [pytest.mark.slow]
            yield pytest.param(name, readout, marks=marks)


@pytest.mark.parametrize(("name", "readout"), list(models_and_readouts()))
def test_values_and_gradients_are_those_of_aer(name, readout):
    """Ours by one sweep, Aer's by parameter shift."""
    noise = MODELS[name]()
    ours, aers = (
        make_layer(model(), backend=backend, **READOUTS[readout])
        for backend in (DensityMatrixBackend(noise), aer_of(noise))
    )
    for got, wanted, tolerance in zip(step(ours), step(aers), (VALUES, GRADIENTS, GRADIENTS), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)
    assert ours.last_run.standard_errors.max() == 0.0
    by_shift = make_layer(model(), backend=DensityMatrixBackend(noise), gradient="parameter_shift", **READOUTS[readout])
    for got, wanted in zip(step(ours), step(by_shift), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["depolarising", "Kraus", "named qubits"])
def test_counts_have_the_statistics_of_aers(name):
    """Bits that are misread and prepared with errors included: two samples of as many circuits, compared by chi-square."""
    noise, shots = with_readout(MODELS[name]()), 2000
    features = torch.from_numpy(np.random.default_rng(2).uniform(-3, 3, (40, 2)))
    counts = [
        make_layer(model(), backend=backend, shots=shots, probabilities=[2, 0, 1])(features).detach().numpy() * shots
        for backend in (DensityMatrixBackend(noise), aer_of(noise))
    ]
    both = counts[0] + counts[1]
    statistic = ((counts[0] - counts[1]) ** 2 / np.maximum(both, 1)).sum()
    assert chi2(40 * 7).cdf(statistic) == pytest.approx(0.5, abs=0.4999)


def test_exact_values_have_the_readout_errors():
    """Aer's have not, and are refused; the mean of many of its shots is the same."""
    noise = with_readout(MODELS["depolarising"]())
    exact, _, _ = step(make_layer(model(), backend=DensityMatrixBackend(noise), **READOUTS["expectation"]))
    sampled = make_layer(model(), backend=aer_of(noise), shots=20_000, **READOUTS["expectation"])
    values = sampled(FEATURES).detach()
    errors = torch.as_tensor(sampled.last_run.standard_errors)
    assert ((values - exact) / errors).abs().max() < 4.5


def test_derivatives_of_first_and_second_order():
    layer = make_layer(
        small_model(), backend=DensityMatrixBackend(MODELS["thermal relaxation"]()), observables=["ZZ", "XI"]
    )
    features = FEATURES[:2].clone().requires_grad_()
    weights = WEIGHTS.clone().requires_grad_()

    def values(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weights": weights}, (features,))

    assert gradcheck(values, (features, weights))
    assert gradgradcheck(values, (features, weights))


def test_shots_as_on_any_backend():
    """Error bars, seeds, covariances, quotes."""
    noise = with_readout(MODELS["amplitude damping"]())
    layer, again = (
        make_layer(model(), backend=DensityMatrixBackend(noise), shots=300, **READOUTS["expectation"]) for _ in "12"
    )
    first, second = step(layer), step(again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (layer.last_run.standard_errors > 0).all()
    assert layer.total_shots == layer.quote(len(FEATURES)).shots
    assert shot_gradcheck(layer, FEATURES, reference=DensityMatrixBackend(noise))


def test_a_step_costs_what_the_quote_says(counting):
    """Exact: one call, and a sweep that runs no circuits. With shots: two more circuits for each angle and row."""
    for shots, circuits, calls in ((None, 3, 1), (300, 3 * (1 + 2 * 6), 2)):
        backend = counting(DensityMatrixBackend(MODELS["depolarising"]()))
        layer = make_layer(small_model(), backend=backend, shots=shots, observables=["ZZ"])
        quote = layer.quote(len(FEATURES))
        layer(FEATURES.clone().requires_grad_()).sum().backward()
        assert (quote.circuits, quote.shots, quote.calls) == (circuits, circuits * (shots or 0), calls)
        assert len(backend.calls) == calls
        assert (layer.total_circuits, layer.total_shots) == (quote.circuits, quote.shots)


def trained(layer: QuantumLayer, steps: int, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """So many steps of Adam, from a saved state on; what is to be saved after them."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    if saved is not None:
        layer.load_state_dict(saved["layer"])
        optimizer.load_state_dict(saved["optimizer"])
        layer.set_rng_state(saved["rng"])
    for _ in range(steps):
        optimizer.zero_grad()
        layer(FEATURES).square().mean().backward()
        optimizer.step()
    return deepcopy({"layer": layer.state_dict(), "optimizer": optimizer.state_dict(), "rng": layer.get_rng_state()})


@pytest.mark.parametrize("shots", [None, 50])
def test_a_run_is_resumed_to_the_last_bit(shots):
    noise = with_readout(MODELS["thermal relaxation"]())

    def layer(seed: int = 7) -> QuantumLayer:
        return make_layer(model(), backend=DensityMatrixBackend(noise), shots=shots, seed=seed)

    whole = trained(layer(), 6)["layer"]["weights"]
    saved = pickle.loads(pickle.dumps(trained(layer(), 3)))
    assert torch.equal(trained(layer(seed=8), 3, saved)["layer"]["weights"], whole)
    other = trained(layer(seed=8), 6)["layer"]["weights"]
    assert torch.equal(other, whole) == (shots is None)


def test_a_device_as_a_word():
    """Transpiled for it, with its noise."""
    runtime("fake_provider")
    device = fake("FakeManilaV2")
    ours = make_layer(model(), backend="noisy:manila", **READOUTS["probabilities"])
    values = ours(FEATURES).detach()
    theirs = AerBackend(device)
    sampled = make_layer(model(), backend=theirs, shots=40_000, **READOUTS["probabilities"])
    again = sampled(FEATURES).detach()
    errors = torch.as_tensor(sampled.last_run.standard_errors)
    assert ((again - values) / errors).abs().max() < 4.5
    assert ours.last_run.shots == 0
    with pytest.raises(ValueError, match="got 'noisy:manilla', expected the name of a fake device"):
        resolve_backend("noisy:manilla")


def test_other_qubits_of_the_same_device():
    """As by a backend made for them; the noise is not read from the device again."""
    device = fake("FakeManilaV2")
    first = DensityMatrixBackend(device=device, initial_layout=[0, 1])
    second = first.on_qubits([3, 4])
    values = []
    for backend in (first, second, DensityMatrixBackend(device=device, initial_layout=[3, 4])):
        circuit, w = QuantumCircuit(2), ParameterVector("w", 2)
        circuit.ry(w[0], 0)
        circuit.cx(0, 1)
        circuit.rx(w[1], 1)
        layer = QuantumLayer(circuit, weights=w, backend=backend, init=torch.tensor([0.7, 0.4]))
        values.append(layer().detach().numpy())
    np.testing.assert_array_equal(values[1], values[2])
    assert np.abs(values[0] - values[1]).max() > 1e-3
    assert second.simulator is first.simulator


def test_what_is_added_to_the_noise_later_has_no_influence():
    noise = MODELS["depolarising"]()
    backend = DensityMatrixBackend(noise)
    noise.add_all_qubit_quantum_error(depolarizing_error(0.5, 1), "h")
    before = make_layer(model(), backend=DensityMatrixBackend(MODELS["depolarising"]()))
    after = make_layer(model(), backend=pickle.loads(pickle.dumps(backend)))
    for one, other in zip(step(before), step(after), strict=True):
        assert torch.equal(one, other)


def test_no_noise_is_the_statevector():
    for readout in READOUTS.values():
        ours, exact = (make_layer(model(), backend=backend, **readout) for backend in (DensityMatrixBackend(), None))
        for got, wanted in zip(step(ours), step(exact), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_single_precision_and_its_name():
    backend = DensityMatrixBackend(MODELS["depolarising"](), precision="single")
    assert repr(backend) == "DensityMatrixBackend('density_matrix', precision='single')"
    layer = make_layer(model(), backend=backend)
    assert layer.backend._simulator(layer.program)._dtype == np.float32
    with pytest.raises(ValueError, match="precision: got 'half', expected 'double' or 'single'"):
        DensityMatrixBackend(precision="half")


@pytest.mark.slow
def test_values_in_single_precision():
    """Slow, because it is the machine code of these alone that has to be compiled."""
    noise = MODELS["depolarising"]()
    layer = make_layer(model(), backend=DensityMatrixBackend(noise, precision="single"))
    double = make_layer(model(), backend=DensityMatrixBackend(noise))
    for got, wanted in zip(step(layer), step(double), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_what_cannot_be_represented_is_refused_with_a_remedy():
    with pytest.raises(TypeError, match=r"noise: got 0\.1"):
        DensityMatrixBackend(0.1)
    noise = MODELS["depolarising"]()
    noise._custom_noise_passes.append(object())
    with pytest.raises(ValueError, match="run the circuit on the same simulator with AerBackend"):
        make_layer(small_model(), backend=DensityMatrixBackend(noise))
