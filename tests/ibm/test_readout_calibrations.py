"""Calibrations of the readout on IBM devices: one job with the first circuits, in the ledger, within caps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qiskit_torch_bridge import (
    BudgetExceeded,
    IBMBackend,
    Patience,
    QuantumLayer,
    ReadoutCorrection,
    Replay,
    TwirledReadout,
)
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.recording import write_recording

SHOTS = 1000
FEATURES = torch.tensor([[0.3, 0.9], [2.0, 0.5]], dtype=torch.float64)
METHODS = [ReadoutCorrection(1), TwirledReadout(2, calibration_rows=1)]
OFTEN_THE_FIRST = [METHODS[0], pytest.param(METHODS[1], marks=pytest.mark.slow)]


def layer_on(backend, method, seed=1) -> QuantumLayer:
    x = ParameterVector("x", 2)
    circuit = QuantumCircuit(2)
    for qubit in range(2):
        circuit.ry(x[qubit], qubit)
    circuit.cx(0, 1)
    mitigation = [] if method is None else [method]
    return QuantumLayer(circuit, inputs=x, backend=backend, shots=SHOTS, seed=seed, mitigation=mitigation)


def rehearsal(ledger, **options) -> IBMBackend:
    return IBMBackend("fake_manila", ledger=ledger, **options)


def step(layer) -> np.ndarray:
    features = FEATURES.clone().requires_grad_()
    values = layer(features)
    values.sum().backward()
    return np.concatenate([values.detach().numpy(), features.grad.numpy()])


@pytest.mark.parametrize("method", OFTEN_THE_FIRST, ids=["correction", "twirled"])
def test_a_calibration_leaves_along_and_is_measured_once(ledger, method):
    """A later run with the same ledger finds it, whatever its seed; the same run finds everything."""
    with rehearsal(ledger) as backend:
        layer = layer_on(backend, method)
        quote = layer.quote(2)
        assert not ledger.exists()
        assert quote.once.shots > 0
        assert quote.once.jobs == 0
        first = step(layer)
        assert backend.spent.jobs == quote.jobs == 1
        assert backend.spent.shots == quote.shots
        assert backend.spent.qpu_seconds == pytest.approx(quote.qpu_seconds)
        step(layer)
        assert backend.spent.shots == (2 * quote).shots
        assert layer.quote(2).shots == quote.shots - quote.once.shots
    with rehearsal(ledger) as backend:
        assert np.array_equal(step(layer_on(backend, method)), first)
        assert backend.spent.jobs == 2
    for _ in range(2):  # the second of them goes on with what the first has sent
        with rehearsal(ledger) as backend:
            other = step(layer_on(backend, method, seed=2))
            assert backend.spent.jobs == 3
            assert backend.spent.shots == (3 * quote).shots
    assert not np.array_equal(other, first)


@pytest.mark.slow
def test_values_are_closer_to_the_exact_ones(ledger):
    exact = layer_on(None, None)
    exact.shots = None
    scores = {}
    for method in (None, *METHODS):
        with rehearsal(ledger) as backend:
            layer = layer_on(backend, method)
            errors = layer(FEATURES, shots=40_000) - exact(FEATURES)
            scores[type(method)] = np.abs(errors.numpy() / layer.last_run.standard_errors).max()
    assert scores[type(None)] > 6
    assert max(scores[ReadoutCorrection], scores[TwirledReadout]) < 4.5


@pytest.mark.parametrize("method", OFTEN_THE_FIRST, ids=["correction", "twirled"])
def test_a_device_that_is_calibrated_anew_is_measured_anew(ledger, method, monkeypatch):
    date = ["monday"]
    monkeypatch.setattr(LocalDevice, "calibrated", lambda self: date[0])
    with rehearsal(ledger, patience=replace(Patience(), recheck_seconds=0)) as backend:
        layer = layer_on(backend, method)
        quote = layer.quote(2)
        first = step(layer)
        date[0] = "tuesday"
        step(layer)
        assert backend.spent.shots == 2 * quote.shots
        step(layer)
        assert backend.spent.shots == 3 * quote.shots - quote.once.shots
    with rehearsal(
        ledger
    ) as backend:  # only the calibration is new to the ledger, or nothing: what was measured is kept
        before = backend.spent.shots
        again = step(layer_on(backend, method))
        assert backend.spent.shots == before
    assert again.shape == first.shape


@pytest.mark.slow
def test_results_of_before_a_recalibration_are_not_paid_again(ledger, monkeypatch):
    date = ["monday"]
    monkeypatch.setattr(LocalDevice, "calibrated", lambda self: date[0])
    with rehearsal(ledger) as backend:
        layer = layer_on(backend, METHODS[0])
        quote = layer.quote(2)
        step(layer)
    date[0] = "tuesday"
    with rehearsal(ledger) as backend:
        step(layer_on(backend, METHODS[0]))
        assert backend.spent.shots == quote.shots + quote.once.shots


def test_caps_count_calibrations(ledger):
    with rehearsal(ledger) as backend:
        quote = layer_on(backend, METHODS[0]).quote(2)
    with rehearsal(ledger, max_shots=quote.shots - 1) as backend:
        with pytest.raises(BudgetExceeded):
            step(layer_on(backend, METHODS[0]))
        assert backend.spent.jobs == 0
    with rehearsal(ledger, max_shots=quote.shots) as backend:
        step(layer_on(backend, METHODS[0]))


@pytest.mark.slow
def test_a_damaged_calibration_is_measured_anew(ledger, monkeypatch):
    from qiskit_torch_bridge import Ledger
    from qiskit_torch_bridge.backends.ibm.errors import LedgerError

    with rehearsal(ledger) as backend:
        quote = layer_on(backend, METHODS[0]).quote(2)
        step(layer_on(backend, METHODS[0]))

    def damaged(*_):
        raise LedgerError("damaged")

    with rehearsal(ledger) as backend:
        layer = layer_on(backend, METHODS[0], seed=2)
        genuine, calls = Ledger.arrays, []

        def at_first(self, *arguments):
            calls.append(arguments)
            return damaged() if len(calls) <= 2 else genuine(self, *arguments)

        monkeypatch.setattr(Ledger, "arrays", at_first)
        step(layer)
        assert backend.spent.shots == 2 * quote.shots


def test_options_that_do_not_go_with_it(ledger):
    with pytest.raises(ValueError, match=r"measure_mitigation"):
        layer_on(rehearsal(ledger, primitive="estimator"), METHODS[0])
    twirling = {"twirling": {"enable_measure": True}}
    with pytest.raises(ValueError, match=r"flips bits already"):
        layer_on(rehearsal(ledger, options=twirling), METHODS[1])
    layer_on(rehearsal(ledger, options=twirling), METHODS[0])


def test_a_model_of_the_noise_does_not_go_with_it(ledger):
    with pytest.raises(ValueError, match="give shadow=True"):
        layer_on(rehearsal(ledger, shadow="noisy"), METHODS[0])
    layer = layer_on(rehearsal(ledger, shadow=True), METHODS[0])
    layer(FEATURES)
    errors = layer.last_run.values - layer.last_run.shadow.values.exact
    assert (np.abs(errors) < 6 * layer.last_run.standard_errors).all()


def test_a_recording_is_refused_by_name(ledger, tmp_path):
    """Its backend runs no circuits; the run that it was made of was mitigated where it was measured."""
    with rehearsal(ledger) as backend:
        step(layer_on(backend, METHODS[0]))
        write_recording(backend.ledger, tmp_path / "run.npz")
    with pytest.raises(ValueError, match="runs no transpiled circuits"):
        layer_on(Replay(tmp_path / "run.npz"), METHODS[0])
