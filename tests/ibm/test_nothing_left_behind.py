"""What fails before a job is sent leaves no file and says in one sentence what was meant or what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.providers.fake_provider import GenericBackendV2

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from ibm_training import PATIENCE
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeArmonkV2, FakeManilaV2, FakeSherbrooke

import qiskit_torch_bridge
from qiskit_torch_bridge import BudgetExceeded, IBMBackend, Ledger, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.backends.ibm import device_programs as device_programs_module
from qiskit_torch_bridge.backends.ibm.device_programs import circuits_for, to_qpy
from qiskit_torch_bridge.backends.ibm.ledger import digest
from qiskit_torch_bridge.backends.transpiling import TranspilerOptions

pytestmark = pytest.mark.usefixtures("folder")


def layer_on(backend, qubits: int = 2, **options) -> QuantumLayer:
    x, w = ParameterVector("x", 1), ParameterVector("w", 1)
    circuit = QuantumCircuit(qubits)
    circuit.ry(x[0], 0)
    if qubits > 1:
        circuit.cx(0, qubits - 1)
    circuit.rx(w[0], qubits - 1)
    options = {"observables": ["Z" + "I" * (qubits - 1)], "shots": 20, "seed": 1, **options}
    return QuantumLayer(circuit, inputs=x, weights=w, backend=backend, **options)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_device_without_an_account_leaves_no_file(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("qiskit_ibm_runtime.accounts.management._DEFAULT_ACCOUNT_CONFIG_JSON_FILE", f"{tmp_path}/no")
    for name in ("TOKEN", "INSTANCE", "URL", "CHANNEL"):
        monkeypatch.delenv(f"QISKIT_IBM_{name}", raising=False)
    with pytest.raises(ValueError, match="There is no account to use"):
        layer_on("ibm:ibm_fez")
    assert not list(folder.iterdir())


def test_looking_and_quoting_leave_no_file(cloud, folder):
    with IBMBackend("ibm_manila", patience=PATIENCE) as backend:
        layer = layer_on(backend)
        quote = layer.quote(3)
        assert (quote.jobs, backend.spent.jobs) == (1, 0)
        assert "ibm_manila" in repr(layer) + repr(backend)
        backend.self_test(layer.program)
        backend.settle_bills()
        assert not list(folder.iterdir())
        layer(torch.zeros(1, 1))
        assert (folder / "qtb-jobs.sqlite").is_file()
        assert backend.spent.jobs == 1
    with IBMBackend("ibm_manila", patience=PATIENCE) as again:
        assert again.spent.jobs == 1  # read from the file that is there


def test_unknown_devices_are_guessed_and_leave_no_file(cloud, folder):
    with pytest.raises(ValueError, match=r"got 'ibm_manilla', but the devices .*; did you mean 'ibm_manila'"):
        layer_on("ibm:ibm_manilla")
    assert not list(folder.iterdir())


def test_a_circuit_that_does_not_fit_leaves_no_file(folder):
    backend = IBMBackend("fake_manila", ledger="jobs.sqlite")
    with pytest.raises(ValueError, match="cannot be transpiled"):
        layer_on(backend, qubits=6)
    backend.close()
    assert not list(folder.iterdir())


def test_circuits_are_kept_from_the_first_job_on(folder):
    """Those of a quote are not lost: the job is sent with them."""
    backend = IBMBackend("fake_manila", ledger="jobs.sqlite")
    layer = layer_on(backend)
    layer.quote(1)
    layer(torch.zeros(1, 1))
    with backend.ledger._file.transaction() as db:
        assert db.execute("SELECT COUNT(*) FROM circuits").fetchone() == (1,)


def test_circuits_of_another_process_are_used_if_it_was_first(folder):
    """Two processes that begin at once must send the same jobs, and test what they send."""
    ours, theirs = (IBMBackend("fake_manila", ledger="jobs.sqlite") for _ in range(2))
    layer, other = layer_on(ours), layer_on(theirs)  # both have transpiled before either has written anything
    choices = TranspilerOptions(optimization_level=1, initial_layout=[4, 3])
    circuits = circuits_for(other.program, theirs.device, "sampler", choices)
    key = digest(*theirs._ready(other.program).circumstances)
    theirs._programs._unkept[key] = to_qpy(circuits)
    theirs._programs.forget()
    for each in (other, layer):
        each(torch.zeros(1, 1))
        assert each.last_run.passport.layouts == ((4, 3),)
    assert len(ours.ledger.events("self-test")) == 2


def test_layers_of_one_circuit_are_transpiled_once(monkeypatch):
    """Their jobs have one name, and so must have one circuit, also where the transpiler has no seed."""
    backend = IBMBackend("fake_manila", ledger="jobs.sqlite", seed_transpiler=None)
    layer = layer_on(backend)
    monkeypatch.setattr(device_programs_module, "circuits_for", None)
    other = layer_on(backend)
    assert backend._ready(other.program).circuits[0].layout == backend._ready(layer.program).circuits[0].layout


def test_an_open_session_of_an_earlier_process_is_found(folder):
    ledger = Ledger("jobs.sqlite")
    ledger.session_opened("s1", "", "fake_manila", "batch")
    backend = IBMBackend("fake_manila", ledger="jobs.sqlite", mode="batch")
    assert backend.ledger.open_session("", backend.connection.name, "batch") == "s1"


def test_a_cap_of_zero_costs_nothing():
    backend = IBMBackend("fake_manila", max_jobs=0)
    with pytest.raises(BudgetExceeded):
        layer_on(backend)(torch.zeros(1, 1))
    assert backend.ledger.entries() == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("fake:manilla", "'manila'"),
        ("fake:FakeSherbrookV2", "'sherbrooke'"),
        ("statevectr", "'statevector'"),
        ("Aer", "'aer'"),
        ("fake", "'fake:NAME'"),
        ("ibm:", "'ibm:NAME'"),
        ("reply:lesson.npz", "'replay:FILE'"),
        ("fake_manila", "'fake:fake_manila'"),
        ("ibm_fez", "'ibm:ibm_fez'"),
        ("ibm:fake_manilla", "'manila'"),
        ("ibm:fake:manila", "'fake_manila'"),
        ("ibm:ibm:ibm_fez", "'ibm_fez'"),
    ],
)
def test_misspelt_backends_are_guessed(word, guess):
    with pytest.raises(ValueError, match=rf"^backend: got .*; did you mean {guess}\?$") as caught:
        layer_on(resolve_backend(word))
    assert len(str(caught.value)) < 200


# --- the package on the path, without an installation ------------------------------------------------------------------

WITHOUT_METADATA = """
import importlib.metadata as metadata
original = metadata.version
def version(name):
    if "bridge" in name:
        raise metadata.PackageNotFoundError(name)
    return original(name)
metadata.version = version

import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
import qiskit_torch_bridge as bridge

x = Parameter("x")
circuit = QuantumCircuit(1)
circuit.ry(x, 0)
layer = bridge.QuantumLayer(circuit, inputs=[x], backend="ibm:fake_manila", shots=10, seed=1)
layer(torch.zeros(1, 1))
assert layer.last_run.passport.versions["qiskit-torch-bridge"] == bridge.__version__
"""


@pytest.mark.slow
def test_a_checkout_on_the_path_alone_reaches_the_hardware_path():
    root = Path(qiskit_torch_bridge.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", WITHOUT_METADATA], env=environment, check=True)


# --- odd devices ------------------------------------------------------------------------------------------------------


def without_a_qubit(number: int) -> FakeManilaV2:
    """A device one qubit of which is out of order, which its target still shows, as after a calibration."""
    device = FakeManilaV2()
    properties = device.properties()
    qubits = properties.to_dict()["qubits"]
    qubits[number].append({"date": "2026-01-01T00:00:00", "name": "operational", "unit": "", "value": 0})
    broken = type(properties).from_dict({**properties.to_dict(), "qubits": qubits})
    device.properties = lambda: broken
    return device


OTHER_GATES = GenericBackendV2(2, ["u", "cz"], seed=1)
DECOUPLED = {"dynamical_decoupling": {"enable": True}}
ODD = {
    "too wide": ({"backend": FakeManilaV2()}, 6, r"on 6 qubits, cannot be transpiled for 'fake_manila' \(5 qubits\)"),
    "one qubit": ({"backend": FakeArmonkV2()}, 2, r"on 2 qubits, cannot be transpiled for 'fake_armonk' \(1 qubits\)"),
    "faulty": ({"backend": without_a_qubit(1), "initial_layout": [0, 1]}, 2, "out of order .*faulty qubit 1"),
    "no durations": (
        {"backend": AerSimulator(), "options": DECOUPLED},
        2,
        r"IBM's Sampler cannot prepare .*'dynamical_decoupling'.*Duration .* not found.*take other options",
    ),
    "no x": ({"backend": OTHER_GATES, "options": DECOUPLED}, 2, "cannot prepare.*not supported"),
    "not ibm's gates": ({"backend": OTHER_GATES, "primitive": "estimator"}, 2, "IBM's Estimator cannot prepare"),
}


@pytest.mark.parametrize(("arguments", "qubits", "message"), ODD.values(), ids=ODD)
def test_devices_that_do_not_fit_are_refused_when_the_layer_is_made(arguments, qubits, message, folder):
    backend = IBMBackend(**arguments, ledger="jobs.sqlite")
    with pytest.raises(ValueError, match=message):
        layer_on(backend, qubits)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("device", "qubits"),
    [
        (FakeArmonkV2, 1),
        (lambda: AerSimulator.from_backend(GenericBackendV2(2, ["rx", "rz", "rzz"], seed=1), noise_model=None), 2),
        (lambda: GenericBackendV2(3, ["u", "cz"], seed=1), 2),
        pytest.param(lambda: AerSimulator.from_backend(FakeSherbrooke(), noise_model=None), 3, marks=pytest.mark.slow),
    ],
    ids=["one qubit", "rzz of any angle", "u", "127 qubits on aer"],
)
def test_odd_devices_that_fit_work(device, qubits):
    values = layer_on(IBMBackend(device()), qubits, shots=200, init=torch.zeros(1))(torch.zeros(1, 1))
    assert values.item() > 0.3  # exactly 1
