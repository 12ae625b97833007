"""Rows side by side through IBM's genuine client, on the stand-in's devices of 5 and 133 qubits, whatever goes wrong."""

import math

import pytest
import torch
from ibm_cloud import Watch

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import FEATURES, SHOTS, UPSTREAM, ibm, layer_on, step
from test_service import bounds, exact_step

from qiskit_torch_bridge import BudgetExceeded, HardwareError, Limits, Packing, Replay
from qiskit_torch_bridge.backends.ibm.recording import write_recording

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize(
    ("primitive", "device", "packing"),
    [
        ("sampler", "ibm_manila", "auto"),
        ("sampler", "ibm_torino", 12),
        ("sampler", "ibm_torino", Packing(9, rotate="shots")),
        ("estimator", "ibm_manila", "auto"),
    ],
)
def test_a_step_is_one_job_and_agrees_with_exact_simulation(cloud, ledger, primitive, device, packing):
    shots = 2000
    options = {"resilience_level": 0} if primitive == "estimator" else {}
    with ibm(ledger, device, primitive=primitive, options=options, packing=packing) as backend:
        layer = layer_on(backend, shots=shots)
        watch, quote = Watch(cloud), layer.quote(3)
        measured, exact = step(layer), exact_step()
        (job,) = watch.jobs
        assert watch.posts == 1
        errors = torch.from_numpy(layer.last_run.standard_errors).ravel()
        assert torch.all(torch.abs(measured - exact)[:6] < 5 * errors)
        assert torch.all(torch.abs(measured - exact) < bounds(shots))
        passport = layer.last_run.passport
        regions = len(passport.packing[0].layouts)
        assert regions == (2 if device == "ibm_manila" else packing if isinstance(packing, int) else 9)
        bases = 2 if primitive == "estimator" else 1
        assert job["parameter_sets"] == bases * sum(rows.num_sets for rows in passport.packing)
        assert quote.executions == job["parameter_sets"] * -(-shots // passport.packing[0].pieces)
        assert quote.circuits == 54
        (entry,) = backend.ledger.entries()
        assert (entry.circuits, entry.executions) == (quote.circuits, quote.executions)


@pytest.mark.parametrize("fault", ["post_drop_after", "post_5xx", "results_cut", "list_lag", "unauthorized"])
def test_faults(cloud, ledger, fault):
    """Whatever happens, the step is that of an undisturbed run, and one job."""
    results = []
    for path, disturbed in ((ledger, True), (ledger.with_name("undisturbed.sqlite"), False)):
        with ibm(path, packing="auto") as backend:
            layer, watch = layer_on(backend), Watch(cloud)
            if disturbed:
                cloud.inject(fault)
            try:
                results.append(step(layer))
            except HardwareError:
                assert fault == "unauthorized"
                results.append(step(layer_on(backend)))
            assert len(watch.jobs) == 1
        cloud.clear()
    assert torch.equal(*results)


def test_jobs_in_pieces_are_found_again_and_recorded(cloud, ledger):
    options = {"packing": Packing(2, rotate="shots"), "limits": Limits(executions=10 * SHOTS)}
    with ibm(ledger, **options) as backend:
        layer, watch = layer_on(backend), Watch(cloud)
        expected, quote = step(layer), layer.quote(3)
        assert len(watch.jobs) == quote.jobs == math.ceil(54 / 20)
        write_recording(backend.ledger, ledger.with_name("run.npz"))
    with ibm(ledger, **options) as backend:
        assert torch.equal(step(layer_on(backend)), expected)
        assert len(watch.jobs) == quote.jobs
    assert torch.equal(step(layer_on(Replay(ledger.with_name("run.npz")))), expected)


def test_caps_count_what_is_executed(cloud, ledger):
    alone = layer_on(ibm(ledger.with_name("alone.sqlite"))).quote(3).qpu_seconds
    with ibm(ledger, packing="auto", max_qpu_seconds=alone - 0.1) as backend:
        assert layer_on(backend).quote(3).qpu_seconds < alone - 0.1
        step(layer_on(backend))
        with pytest.raises(BudgetExceeded, match="max_qpu_seconds"):
            (layer_on(backend, seed=8)(FEATURES) * UPSTREAM).sum().backward()
