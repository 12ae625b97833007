"""``shadow="noisy"``: what a device's noise model explains of its results, and what not."""

import pickle
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from problems import AmplitudeGate
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from ibm_training import ibm, layer_on, step
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from test_fake_devices import noiseless, textbook_layer

from qiskit_torch_bridge import DensityMatrixBackend, Deviation, IBMBackend, QuantumLayer, Shadow
from qiskit_torch_bridge.backends import StatevectorBackend
from qiskit_torch_bridge.backends.ibm import device_programs, service
from qiskit_torch_bridge.backends.ibm.device import LocalDevice, fake_device
from qiskit_torch_bridge.commands import main

X = torch.linspace(-3, 3, 4, dtype=torch.float64).reshape(-1, 1)
SHOTS = 10_000
PLAIN = {"primitive": "estimator", "options": {"resilience_level": 0}}
MITIGATED = {"primitive": "estimator", "options": {"resilience_level": 1}}
TWIRLED = {"options": {"twirling": {"enable_measure": True}}}
ASYMMETRIC = np.array([[0.97, 0.03], [0.15, 0.85]])


class Misjudged(LocalDevice):
    """Reads more bits wrongly than its calibration says."""

    def _mode(self) -> Any:
        noise = NoiseModel.from_backend(self.device)
        noise._local_readout_errors.clear()
        noise.add_all_qubit_readout_error(ReadoutError([[0.9, 0.1], [0.1, 0.9]]))
        return AerSimulator.from_backend(self.device, noise_model=noise)


def values_of(backend: Any, layer: QuantumLayer, rows: int = 5) -> np.ndarray:
    """What a backend gives at random angles of the layer's circuit."""
    angles = np.random.default_rng(2).uniform(-3, 3, (rows, len(layer.program.angles)))
    return backend.evaluate(layer.program, angles, shots=None, seed=np.random.SeedSequence(0)).values


def require_no_rest(deviations: Iterable[Deviation]) -> None:
    """The measured numbers scatter about the modelled ones by their standard errors."""
    for deviation in deviations:
        scores = deviation.z_scores[deviation.standard_errors > 1e-6]
        assert scores.size > 0.7 * deviation.measured.size
        assert abs(scores.mean()) < 4 / np.sqrt(scores.size)
        assert abs((scores**2).mean() - 1) < 4 * np.sqrt(2 / scores.size)  # chi-square
        assert abs(deviation.rest_z) < 4


def routed_layer(backend: Any, **options: Any) -> QuantumLayer:
    """Gates between all pairs, so that qubits end elsewhere than they began; one qubit that nothing touches."""
    w = ParameterVector("w", 4)
    circuit = QuantumCircuit(5)
    for qubit in range(4):
        circuit.ry(w[qubit], qubit)
        circuit.rx(0.3 * (qubit + 1), qubit)
    for first, second in ((0, 1), (0, 2), (0, 3), (1, 3), (1, 2), (2, 3), (0, 3)):
        circuit.cx(first, second)
        circuit.rz(0.4 + first, second)
        circuit.rx(w[first], second)
    options = {"observables": ["IIIIZ", "IXYII", "IZIZX", "IYIXI"], "shots": 10, **options}
    return QuantumLayer(circuit, weights=w, backend=backend, **options)


# --- the split --------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_device_that_is_as_its_model_says():
    backend = IBMBackend("fake_manila", shadow="noisy")
    layer = textbook_layer(backend, shots=SHOTS)
    layer(X).sum().backward()
    shadow = layer.last_run.shadow
    assert list(shadow.parts) == ["values", "gradients"]
    require_no_rest(shadow.parts.values())
    for deviation in shadow.parts.values():
        assert deviation.modelled_noise > deviation.shot_noise
        assert Deviation(deviation.measured, deviation.exact, deviation.standard_errors, deviation.exact).rest_z > 4
    (event,) = backend.ledger.events("shadow")
    assert event["data"]["summary"] == shadow.summary()
    assert event["data"]["values"] == shadow.values.numbers()
    assert event["data"]["left_out"] == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, TWIRLED], ids=["estimator", "twirled readout"])
def test_neither_is_with_other_primitives_and_options(settings):
    layer = textbook_layer(IBMBackend("fake_manila", shadow="noisy", **settings), shots=SHOTS)
    with torch.no_grad():
        layer(X)
    require_no_rest([layer.last_run.shadow.values])


def test_what_the_model_does_not_know_is_the_rest(monkeypatch):
    monkeypatch.setattr(service, "LocalDevice", Misjudged)
    layer = textbook_layer(IBMBackend("fake_manila", shadow="noisy"), shots=SHOTS)
    with torch.no_grad():
        layer(X)
    found = layer.last_run.shadow.values
    assert found.rest_z > 20
    assert found.rest > 2 * found.modelled_noise
    assert np.nanmean(found.z_scores**2) > 5


def test_shadow_true_has_no_model():
    layer = textbook_layer(IBMBackend("fake_manila", shadow=True), shots=10)
    assert layer.backend.modelled is None
    layer(X[:1])
    assert layer.last_run.shadow.values.modelled is None


def test_the_split_is_listed(tmp_path, capsys):
    path = tmp_path / "jobs.sqlite"
    with IBMBackend("fake_manila", shadow="noisy", ledger=path) as backend, torch.no_grad():
        textbook_layer(backend, shots=50)(X[:2])
    assert main(["jobs", str(path), "--events"]) == 0
    printed = capsys.readouterr().out
    assert "shadow: beside the exact simulation and the noise model (values rms " in printed
    assert ", of which modelled noise 0.0" in printed
    assert "(z = " in printed


# --- the circuits that are sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, PLAIN], ids=["sampler", "estimator"])
def test_without_errors_the_model_is_exact(settings):
    """Wherever qubits are sent and end, in every basis."""
    for device in (noiseless(), AerSimulator()):
        layer = routed_layer(IBMBackend(device, shadow="noisy", **settings))
        np.testing.assert_allclose(
            values_of(layer.backend.modelled, layer), values_of(StatevectorBackend(), layer), atol=1e-10
        )
        assert layer.backend.ledger.entries() == []


def test_probabilities_and_circuits_without_free_angles():
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    for options in ({"observables": ["ZZ", "II", "YX"]}, {"probabilities": [1, 0]}):
        layer = QuantumLayer(circuit, shots=10, backend=IBMBackend(noiseless(), shadow="noisy"), **options)
        with torch.no_grad():
            layer()
        deviation = layer.last_run.shadow.values
        np.testing.assert_allclose(deviation.modelled, deviation.exact, atol=1e-12)


def test_amplitude_encodings():
    x, w = ParameterVector("x", 2), ParameterVector("w", 1)
    circuit = QuantumCircuit(1)
    circuit.append(AmplitudeGate(*x), [0])
    circuit.ry(w[0], 0)
    backend = IBMBackend(noiseless(), shadow="noisy")
    layer = QuantumLayer(circuit, inputs=x, weights=w, observables=["Z"], backend=backend, shots=10)
    layer(torch.tensor([[1.0, 0.5], [0.2, -1.0]])).sum().backward()
    for deviation in layer.last_run.shadow.parts.values():
        np.testing.assert_allclose(deviation.modelled, deviation.exact, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("manila", [3, 2]),
        pytest.param("montreal", [14, 13], marks=pytest.mark.slow),
        pytest.param("sherbrooke", [14, 0], marks=pytest.mark.slow),
    ],
    ids=["5 qubits", "27 qubits", "127 qubits"],
)
def test_the_model_is_that_of_the_noisy_simulation_of_these_circuits(name, layout, monkeypatch):
    """On devices of all sizes, on the qubits that the circuits are sent to."""
    device, noise = fake_device(name), cache(device_programs.noise_of)
    monkeypatch.setattr(device_programs, "noise_of", noise)  # it takes seconds to make one of a large device
    layer = textbook_layer(IBMBackend(device, shadow="noisy", initial_layout=layout), shots=10)
    expected = values_of(DensityMatrixBackend(noise(device), device, initial_layout=layout), layer)
    found = values_of(layer.backend.modelled, layer)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert np.abs(found - values_of(StatevectorBackend(), layer)).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "factor", "offset"),
    [({}, 0.82, 0.12), (PLAIN, 0.82, 0.12), (TWIRLED, 0.82, 0.0), (MITIGATED, 1.0, 0.0)],
    ids=["as it is", "estimator", "twirled", "mitigated"],
)
def test_readout_errors_are_those_of_the_primitives_options(settings, factor, offset):
    noise = NoiseModel(["cz", "rz", "sx", "x"])
    noise.add_all_qubit_readout_error(ReadoutError(ASYMMETRIC))
    device = AerSimulator(noise_model=noise)
    layer = textbook_layer(IBMBackend(device, shadow="noisy", **settings), observables=["ZI"], shots=10)
    exact = values_of(StatevectorBackend(), layer)
    # <Z> is p(0 read) - p(1 read), by the definition of the probabilities above.
    np.testing.assert_allclose(values_of(layer.backend.modelled, layer), factor * exact + offset, atol=1e-12)


# --- what is refused or left out --------------------------------------------------------------------------------------


def test_too_wide_a_circuit_is_refused_before_any_job(folder):
    circuit = QuantumCircuit(18)
    circuit.h(range(18))
    backend = IBMBackend(AerSimulator(), shadow="noisy", ledger="jobs.sqlite")
    with pytest.raises(MemoryError, match=r"shadow: got 'noisy' for a circuit that takes 18 qubits.*use shadow=True"):
        QuantumLayer(circuit, observables=["Z" * 18], backend=backend, shots=10)
    assert not list(folder.iterdir())


def test_noise_that_cannot_be_written_as_channels_is_refused(folder):
    noise = NoiseModel.from_backend(FakeManilaV2())
    noise._custom_noise_passes.append(object())
    backend = IBMBackend(AerSimulator(noise_model=noise), shadow="noisy", ledger="jobs.sqlite")
    with pytest.raises(ValueError, match=r"shadow: got 'noisy', but the noise model has the pass object.*shadow=True"):
        textbook_layer(backend, shots=10)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("resilience", [{"resilience_level": 2}, {"resilience": {"zne_mitigation": True}}], ids=str)
def test_extrapolated_values_are_none_of_the_model(resilience):
    options = {"resilience": {"zne": {"amplifier": "gate_folding"}}}
    options = {**options, **resilience, "resilience": {**options["resilience"], **resilience.get("resilience", {})}}
    IBMBackend("fake_manila", shadow=True, primitive="estimator", options=options)
    with pytest.raises(ValueError, match=r"shadow: got 'noisy' with zero-noise extrapolation.*use shadow=True"):
        IBMBackend("fake_manila", shadow="noisy", primitive="estimator", options=options)


def test_what_the_model_leaves_out_is_written_down():
    options = {"twirling": {"enable_gates": True}, "dynamical_decoupling": {"enable": True}}
    left_out = ["twirling.enable_gates", "dynamical_decoupling"]
    backend = IBMBackend("fake_manila", shadow="noisy", options=options)
    backend.note_shadow(Shadow(Deviation(*np.ones((4, 1, 1))), None))
    (event,) = backend.ledger.events("shadow")
    assert event["data"]["left_out"] == left_out


def test_shots_are_not_simulated():
    layer = textbook_layer(IBMBackend(noiseless(), shadow="noisy"), shots=10)
    with pytest.raises(ValueError, match=r"shots: got 5.*expected None"):
        layer.backend.modelled.resolve_shots(5)


# --- a run that goes on -----------------------------------------------------------------------------------------------


def again(path: Any, **options: Any) -> tuple[IBMBackend, dict[str, Any]]:
    """One evaluation of a run, and its split."""
    with IBMBackend(FakeManilaV2(), ledger=path, shadow="noisy", **options) as backend:
        layer = textbook_layer(backend, shots=50)
        layer(X[:1]).sum().backward()
        shadow = layer.last_run.shadow
        return backend, {name: part.numbers() for name, part in shadow.parts.items()}


def test_a_later_process_reports_the_same_split(tmp_path, monkeypatch):
    """By the model that the first has left, although the device has been calibrated anew since."""
    path = tmp_path / "jobs.sqlite"
    _, first = again(path)
    _, once_more = again(path)
    monkeypatch.setattr(device_programs, "noise_of", lambda device: None)
    backend, later = again(path)
    assert first == once_more == later
    assert len(backend.ledger.entries()) == 1
    _, elsewhere = again(tmp_path / "another.sqlite")
    assert elsewhere["values"]["modelled"] != first["values"]["modelled"]


def test_a_model_that_cannot_be_read_is_made_anew(tmp_path, caplog, monkeypatch):
    path = tmp_path / "jobs.sqlite"
    _, first = again(path)
    honest = device_programs.from_bytes
    monkeypatch.setattr(device_programs, "from_bytes", lambda data: honest(data[:-9]))
    _, later = again(path)
    assert later == first
    assert "Modelling the noise anew" in caplog.text
    monkeypatch.setattr(device_programs, "from_bytes", honest)
    monkeypatch.setattr(device_programs, "noise_of", None)
    assert again(path)[1] == first


def test_where_another_process_was_first_its_model_is_used(tmp_path, monkeypatch):
    path = tmp_path / "jobs.sqlite"
    with monkeypatch.context() as drifted:
        drifted.setattr(device_programs, "noise_of", lambda device: None)
        late = IBMBackend(FakeManilaV2(), ledger=path, shadow="noisy")
        layer = textbook_layer(late, shots=50)
    _, first = again(path)
    layer(X[:1]).sum().backward()
    assert layer.last_run.shadow.values.numbers() == first["values"]


def test_a_pickled_backend_models_on():
    backend = pickle.loads(pickle.dumps(IBMBackend("fake_manila", shadow="noisy")))
    layer = textbook_layer(backend, shots=10)
    assert np.abs(values_of(backend.modelled, layer) - values_of(StatevectorBackend(), layer)).max() > 1e-3


def test_the_cloud(cloud, ledger):
    """A device with noise behind IBM's service: nothing is left, and a run that goes on sends nothing."""
    cloud.set_up(noise="device")
    summaries = []
    for _ in range(2):
        with ibm(ledger, shadow="noisy") as backend:
            layer = layer_on(backend, shots=SHOTS)
            step(layer)
            require_no_rest(layer.last_run.shadow.parts.values())
            summaries.append(layer.last_run.shadow.summary())
            assert len(backend.ledger.entries()) == 1
    assert summaries[0] == summaries[1]
    assert summaries[0]["gradients"]["modelled_noise"] > 0.005
