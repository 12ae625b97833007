"""The hardware path as one value: how many rooms it passes, and circuits that a pass manager of the user's own makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import CXGate
from qiskit.transpiler import PassManager, generate_preset_pass_manager
from qiskit.transpiler.basepasses import TransformationPass
from qiskit_aer.noise import NoiseModel
from qiskit_ibm_runtime.fake_provider import FakeManilaV2
from test_fake_devices import textbook_layer

import qiskit_torch_bridge
from qiskit_torch_bridge import IBMBackend, Limits, QuantumLayer
from qiskit_torch_bridge.backends.ibm.device import LocalDevice

X = torch.tensor([[0.3], [1.1]])


@pytest.mark.parametrize("primitive", ["sampler", "estimator"])
@pytest.mark.parametrize("backward", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_warm_call_passes_half_the_rooms_that_it_once_did(primitive, backward, monkeypatch):
    """Rooms are files of the library; there were 15."""
    library = f"{Path(qiskit_torch_bridge.__file__).parent}{os.sep}"
    rooms: set[str] = set()
    evaluate_all = IBMBackend.evaluate_all

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(library):
            rooms.add(frame.f_code.co_filename.removeprefix(library))

    def watched(self, requests, *, shots):
        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            return evaluate_all(self, requests, shots=shots)
        finally:
            sys.setprofile(before)

    layer = textbook_layer(IBMBackend("fake_manila", primitive=primitive), shots=50)
    layer(X).sum().backward()
    monkeypatch.setattr(IBMBackend, "evaluate_all", watched)
    with torch.set_grad_enabled(backward):
        values = layer(X)
    if backward:
        values.sum().backward()
    assert 0 < len(rooms) <= 7, sorted(rooms)


def on_qubits(*layout: int) -> PassManager:
    return generate_preset_pass_manager(1, backend=FakeManilaV2(), initial_layout=list(layout), seed_transpiler=0)


@pytest.mark.parametrize("primitive", ["sampler", pytest.param("estimator", marks=pytest.mark.slow)])
def test_jobs_of_a_pass_manager_go_by_the_circuits_that_it_makes(primitive, tmp_path):
    """It has no name of its own: results are found again by whoever makes the same circuits, and by nobody else."""

    def measured(passes: PassManager | None):
        backend = IBMBackend(FakeManilaV2(), primitive=primitive, pass_manager=passes, ledger=tmp_path / "jobs.sqlite")
        layer = textbook_layer(backend, shots=50)
        with torch.no_grad():
            values = layer(X)
        return values, layer.last_run.passport, len(layer.backend.ledger.entries())

    values, passport, jobs = measured(on_qubits(3, 4))
    assert set(passport.layouts) == {(3, 4)}
    assert passport.optimization_level is None
    again, _, jobs_again = measured(on_qubits(3, 4))
    assert torch.equal(again, values)
    assert jobs_again == jobs
    _, elsewhere, more = measured(on_qubits(1, 0))
    assert set(elsewhere.layouts) == {(1, 0)}
    assert more == 2 * jobs
    assert measured(None)[2] == 3 * jobs


class WithoutEntanglers(TransformationPass):
    """Drops what a transpiler has to keep."""

    def run(self, dag):
        for node in dag.op_nodes(CXGate):
            dag.remove_op_node(node)
        return dag


def test_a_pass_manager_that_changes_the_circuit_costs_nothing_and_leaves_no_file(tmp_path: Path):
    passes = on_qubits(0, 1)
    passes.scheduling = PassManager([WithoutEntanglers()])
    layer = textbook_layer(IBMBackend(FakeManilaV2(), pass_manager=passes, ledger=tmp_path / "jobs.sqlite"), shots=50)
    with pytest.raises(ValueError, match=r"answers.*Nothing was submitted\. Check the pass manager"):
        layer(X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"options": {"default_shots": 30}}, ["b6e0ee3a5b086b24", "824c02105e3f6ce2"]),
        ({"primitive": "estimator", "options": {"resilience_level": 0}}, ["f4c24c436e384923", "419631235a5faab1"]),
    ],
    ids=["sampler", "estimator"],
)
def test_jobs_have_the_keys_that_they_had_in_version_0_1(options, keys, monkeypatch):
    """With others, what is in the ledgers of users would not be found again, and be paid for once more."""
    monkeypatch.setattr(LocalDevice, "identity", "a device")
    x, w = ParameterVector("x", 1), ParameterVector("w", 2)
    circuit = QuantumCircuit(2)
    circuit.ry(x[0], 0)
    circuit.rx(w[0], 1)
    circuit.cx(0, 1)
    circuit.ry(w[1], 1)
    backend = IBMBackend("fake_manila", run="monday", limits=Limits(executions=200), **options)
    init = torch.tensor([0.25, -0.5]).double()
    parts = {"inputs": x, "weights": w, "observables": ["ZZ", "IX"], "init": init}
    layer = QuantumLayer(circuit, **parts, backend=backend, shots=20, seed=5)
    layer(torch.tensor([[0.5], [0.75]]).double()).sum().backward()
    assert [entry.key[:16] for entry in backend.ledger.entries()] == keys
    assert backend.ledger.evaluations()[0][0]["fingerprint"].startswith("6d9c010b")


def test_a_rehearsal_makes_the_model_of_noise_once(monkeypatch):
    """IBM's client has Aer make it for whatever it simulates, unless it is handed a simulator that has one."""
    made, genuine = [], NoiseModel.from_backend.__func__

    def counted(cls, *args, **options):
        made.append(args)
        return genuine(cls, *args, **options)

    monkeypatch.setattr(NoiseModel, "from_backend", classmethod(counted))
    layer = textbook_layer(IBMBackend("fake_manila"), shots=20)
    for _ in range(2):
        layer(X).sum().backward()
    assert len(layer.backend.ledger.entries()) == 2
    assert len(made) == 1
