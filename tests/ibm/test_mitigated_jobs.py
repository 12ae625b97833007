"""Zero-noise extrapolation on IBM's devices: in one job with everything else, within caps, through crashes."""

from dataclasses import replace
from datetime import timedelta
from itertools import product

import numpy as np
import pytest
import torch
from qiskit.transpiler import InstructionProperties, generate_preset_pass_manager

pytest.importorskip("qiskit_ibm_runtime")

from ibm_training import FEATURES, INITIAL, INPUTS, WEIGHTS, ibm, step
from qiskit import QuantumCircuit
from qiskit_ibm_runtime.fake_provider import FakeFractionalBackend, FakeManilaV2

from qiskit_torch_bridge import (
    BudgetExceeded,
    EstimatorBackend,
    IBMBackend,
    QuantumLayer,
    ReadoutCorrection,
    TwirledReadout,
    ZeroNoiseExtrapolation,
)
from qiskit_torch_bridge.backends.ibm import device_programs as device_programs_module
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.mitigation.folding import Folding

SHOTS = 50
FACTORS = (1, 3, 5)
METHOD = ZeroNoiseExtrapolation(FACTORS)


def layer_on(backend, mitigation=(METHOD,), **options):
    circuit = QuantumCircuit(2)
    circuit.ry(INPUTS[0], 0)
    circuit.ry(INPUTS[1], 1)
    circuit.cx(0, 1)
    circuit.ry(WEIGHTS[0], 0)
    circuit.cx(0, 1)
    circuit.rx(WEIGHTS[1], 1)
    options = {"observables": ["ZI", "XX"], "init": INITIAL, "shots": SHOTS, "seed": 7} | options
    return QuantumLayer(circuit, inputs=INPUTS, weights=WEIGHTS, backend=backend, mitigation=mitigation, **options)


@pytest.mark.parametrize("primitive", ["sampler", pytest.param("estimator", marks=pytest.mark.slow)])
def test_a_step_is_one_job_and_the_quote_counts_it(primitive):
    backend = IBMBackend(FakeManilaV2(), primitive=primitive)
    layer, plain = layer_on(backend), layer_on(IBMBackend(FakeManilaV2(), primitive=primitive), ())
    quote, without = layer.quote(3), plain.quote(3)
    step(layer)
    (entry,) = backend.ledger.entries()
    assert (quote.jobs, quote.shots, quote.circuits) == (1, entry.shots, entry.circuits)
    assert quote.shots == 3 * without.shots
    assert quote.qpu_seconds == pytest.approx(entry.estimated_seconds)
    assert quote.qpu_seconds > 2 * (
        without.qpu_seconds - 1
    )  # folded circuits take longer, and a job some time by itself
    assert layer.last_run.passport.job_ids == (entry.job_id,)
    assert (layer.total_circuits, layer.total_shots) == (quote.circuits, quote.shots)


@pytest.mark.slow
def test_values_are_those_of_the_parts_by_hand():
    """Each factor's values from a backend of its own, which has the same seeds as the parts."""
    backend = IBMBackend(FakeManilaV2())
    layer = layer_on(backend, shots=4000)
    with torch.no_grad():
        values = layer(FEATURES).numpy()
    ideal = layer_on(None, (), shots=None)(FEATURES).detach().numpy()
    assert np.abs((values - ideal) / np.hypot(layer.last_run.standard_errors, 0.03)).max() < 4  # readout errors remain
    counts = [backend.circuits(layer.program.varied(Folding(f)) if f > 1 else layer.program) for f in (1.0, 3.0, 5.0)]
    gates = [[circuit.num_nonlocal_gates() for circuit in circuits] for circuits in counts]
    assert gates[1] == [3 * number for number in gates[0]]
    assert gates[2] == [5 * number for number in gates[0]]


def test_caps_hold_for_all_factors_together():
    backend = IBMBackend(FakeManilaV2(), max_shots=2 * 3 * 2 * SHOTS)  # of two factors, without a gradient
    layer = layer_on(backend)
    with torch.no_grad(), pytest.raises(BudgetExceeded):
        layer(FEATURES)
    assert backend.ledger.entries() == []
    layer.mitigation = [ZeroNoiseExtrapolation((1, 3))]
    with torch.no_grad():
        layer(FEATURES)
    assert backend.spent.shots == 2 * 3 * 2 * SHOTS


@pytest.mark.slow
def test_a_later_process_finds_what_was_measured(tmp_path, monkeypatch):
    """Also without factor 1, whose circuits nobody would have written down for its own sake."""
    method = ZeroNoiseExtrapolation((3, 5))

    def layer():
        return layer_on(IBMBackend(FakeManilaV2(), ledger=tmp_path / "jobs.sqlite"), [method])

    first = layer()
    expected = step(first)
    monkeypatch.setattr(device_programs_module, "circuits_for", None)  # it transpiles nothing
    second = layer()
    assert torch.equal(step(second), expected)
    assert second.last_run.passport.layouts == first.last_run.passport.layouts
    assert len(second.backend.ledger.entries()) == 1
    other = layer_on(IBMBackend(FakeManilaV2(), ledger=tmp_path / "jobs.sqlite"), [ZeroNoiseExtrapolation((3, 7))])
    assert not torch.equal(step(other), expected)
    assert len(other.backend.ledger.entries()) == 2


def test_a_step_goes_on_after_a_crash_between_submission_and_result(cloud, ledger, monkeypatch):
    before = len(cloud.jobs())
    with ibm(ledger) as backend:
        layer = layer_on(backend)
        with monkeypatch.context() as patch:
            patch.setattr(type(backend._sender), "_ended", lambda *_, **__: 1 / 0, raising=False)
            patch.setattr(type(backend.connection), "result", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                step(layer)
    assert len(cloud.jobs()) == before + 1
    with ibm(ledger) as backend:
        step(layer_on(backend))
        (entry,) = backend.ledger.entries()
        assert entry.state == "done"
    assert len(cloud.jobs()) == before + 1


class Recalibrated(FakeManilaV2):
    """The same device after calibrations, whose best qubits are others."""

    def __init__(self, times=0):
        super().__init__()
        self._times = times
        best = {0, 1} if times else {2, 3}
        for name in ("cx", "measure"):
            for qubits in self.target[name]:
                properties = InstructionProperties(error=1e-3 if best.issuperset(qubits) else 0.3, duration=1e-7)
                self.target.update_instruction_properties(name, qubits, properties)

    def properties(self):
        properties = super().properties()
        properties.last_update_date += timedelta(days=self._times)
        return properties


def qubits_of(circuit):
    return {circuit.find_bit(q).index for i in circuit.data if i.operation.name == "cx" for q in i.qubits}


def test_variants_run_on_the_qubits_of_their_base_also_after_a_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalDevice, "identity", "one device")  # as of a real one, whose errors have no part in it
    places = []
    for times in (0, 2):
        fresh = layer_on(IBMBackend(Recalibrated(times)))
        places.append([qubits_of(circuit) for circuit in fresh.backend.circuits(fresh.program)])
    assert places[0] != places[1]  # transpiled anew, it would run elsewhere

    ledger = tmp_path / "jobs.sqlite"
    with torch.no_grad():
        layer_on(IBMBackend(Recalibrated(0), ledger=ledger), ())(FEATURES)  # the base alone, before
    backend = IBMBackend(Recalibrated(2), ledger=ledger)
    # The same run goes on after the calibration, and only now takes to mitigation.
    for circuits in (backend.circuits(layer_on(backend).program.varied(Folding(f))) for f in (3.0, 5.0)):
        assert [qubits_of(circuit) for circuit in circuits] == places[0]


@pytest.mark.parametrize("kind", ["ibm", "primitive"])
def test_a_pass_manager_that_draws_lots_is_asked_once(kind):
    """Else each factor would run on qubits of its own."""
    device = FakeManilaV2()
    passes = generate_preset_pass_manager(1, target=device.target, layout_method="sabre", seed_transpiler=None)
    calls = []

    def counted(circuits, *args, **kwargs):
        calls.append(circuits)
        return genuine(circuits, *args, **kwargs)

    genuine, passes.run = passes.run, counted
    backend = IBMBackend(device)
    backend._programs.transpiler = replace(backend._programs.transpiler, pass_manager=passes)
    if kind == "primitive":
        from qiskit.primitives import BackendSamplerV2

        from qiskit_torch_bridge import SamplerBackend

        backend = SamplerBackend(BackendSamplerV2(backend=device), device=device)
        backend._transpiler = replace(backend._transpiler, pass_manager=passes)
    layer = layer_on(backend)
    groups = len(layer.program.readout.groups)
    assert len(calls) == groups
    base = [qubits_of(circuit) for circuit in backend.circuits(layer.program)]
    assert [qubits_of(c) for c in backend.circuits(layer.program.varied(Folding(3.0)))] == base


def test_ibms_own_extrapolation_is_not_extrapolated_again():
    resilience = {"resilience": {"zne_mitigation": True}}
    message = "whose Estimator extrapolates to no noise itself"
    with pytest.raises(ValueError, match=message):
        layer_on(IBMBackend(FakeManilaV2(), primitive="estimator", options=resilience))
    with pytest.raises(ValueError, match=message):
        layer_on(IBMBackend(FakeManilaV2(), primitive="estimator", options={"resilience_level": 2}))
    switched_off = {"resilience_level": 2, "resilience": {"zne_mitigation": False}}
    assert layer_on(IBMBackend(FakeManilaV2(), primitive="estimator", options=switched_off)).mitigation == (METHOD,)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"resilience": {"zne_mitigation": True}}, True),
        ({"resilience_level": 2}, True),
        ({"resilience_level": 2, "resilience": {"zne_mitigation": False}}, False),
        ({}, False),
    ],
)
def test_nor_is_that_of_ibms_estimator_as_a_primitive(options, refused):
    from qiskit_ibm_runtime.executor_estimator import Estimator

    backend = EstimatorBackend(Estimator(mode=FakeManilaV2(), options=options))
    assert backend.extrapolates is refused
    if refused:
        with pytest.raises(ValueError, match="extrapolates to no noise itself"):
            layer_on(backend)


@pytest.mark.slow
def test_models_of_noise_are_not_compared_with_mitigated_values():
    with pytest.raises(ValueError, match="shadow='noisy', which models the errors of values that are not mitigated"):
        layer_on(IBMBackend(FakeManilaV2(), shadow="noisy"))
    layer = layer_on(IBMBackend(FakeManilaV2(), shadow=True), shots=2000)
    layer(FEATURES)
    exact = layer_on(None, (), shots=None)(FEATURES).detach().numpy()
    assert layer.last_run.shadow.values.exact == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"dynamical_decoupling": {"enable": True}}, {"twirling": {"enable_gates": True}}]
)
def test_ibms_client_keeps_folded_gates(options):
    """What it prepares for the service has every one of them, with decoupling and twirling as well."""
    from qiskit_ibm_runtime.executor_sampler.prepare import prepare

    from qiskit_torch_bridge.backends.ibm.primitive_options import checked_options
    from qiskit_torch_bridge.backends.results import pubs_of

    device = FakeManilaV2()
    backend = IBMBackend(device, options=options)
    layer = layer_on(backend)
    angles = np.zeros((1, len(layer.program.angles)))
    for factor in (3.0, 5.0):
        ready = backend._ready(layer.program.varied(Folding(factor)))
        expected = [circuit.count_ops()["cx"] for circuit in backend.circuits(layer.program)]
        for one, number in zip(ready.circuits, expected, strict=True):
            program = prepare(pubs_of(one.bound, angles), checked_options("sampler", options), 1, True, device)
            (item,) = (program[0] if isinstance(program, tuple) else program).items
            assert entanglers(item.circuit) == factor * number


def entanglers(circuit):
    total = 0
    for instruction in circuit.data:
        blocks = getattr(instruction.operation, "blocks", ())
        total += sum(map(entanglers, blocks)) if blocks else instruction.operation.name in ("cx", "cz", "ecr")
    return total


def test_fractional_gates_are_folded_within_their_range(monkeypatch):
    """Free and constant angles, without noise: the values stay, and every rzz is there as often as the factor says."""
    circuit = QuantumCircuit(2)
    circuit.rx(INPUTS[0], 0)
    circuit.rx(INPUTS[1], 1)
    circuit.rzz(WEIGHTS[0], 0, 1)
    circuit.rx(WEIGHTS[1], 1)
    circuit.rzz(0.7, 0, 1)
    circuit.ry(0.3, 1)
    options = {"inputs": INPUTS, "weights": WEIGHTS, "init": INITIAL, "observables": ["ZI", "XX"]}
    backend = IBMBackend(FakeFractionalBackend())
    layer = QuantumLayer(circuit, **options, backend=backend, mitigation=[METHOD], shots=10)
    with torch.no_grad():
        layer(FEATURES)  # the self-test has compared them with the circuit
    for factor in (3.0, 5.0):
        for base, folded in zip(
            backend.circuits(layer.program),
            backend.circuits(layer.program.varied(Folding(factor, bounded=("rzz",)))),
            strict=True,
        ):
            assert folded.num_nonlocal_gates() == factor * base.num_nonlocal_gates() > 0
    events = backend.ledger.events("self-test")
    assert len(events) == 3
    assert all("agrees with the logical one" in event["message"] for event in events)


def combinations():
    """Each method with each of IBM's options, and why it is refused; those that are not, run for a second each."""
    methods = [ReadoutCorrection(1), TwirledReadout(2, calibration_rows=1), ZeroNoiseExtrapolation((1, 3))]
    options = ["dynamical_decoupling.enable", "twirling.enable_gates", "twirling.enable_measure"]
    for method, option, primitive in product(methods, options, ["sampler", "estimator"]):
        refused = None
        if not isinstance(method, ZeroNoiseExtrapolation) and primitive == "estimator":
            refused = "does not say what bits it measures"
        elif isinstance(method, TwirledReadout) and option == "twirling.enable_measure":
            refused = "flips bits already"
        marks = [] if refused else [pytest.mark.slow]
        yield pytest.param(
            method, option, primitive, refused, marks=marks, id=f"{type(method).__name__}-{option}-{primitive}"
        )


@pytest.mark.parametrize(("method", "option", "primitive", "refused"), list(combinations()))
def test_the_table_of_combinations(method, option, primitive, refused):
    """In the docstring of ``qiskit_torch_bridge.mitigation``."""
    name, value = option.split(".")
    backend = IBMBackend(FakeManilaV2(), primitive=primitive, options={name: {value: True}})
    if refused:
        with pytest.raises(ValueError, match=refused):
            layer_on(backend, [method])
        return
    layer = layer_on(backend, [method], shots=32, observables=["XX"])
    with torch.no_grad():
        layer(FEATURES[:1])
    assert len(backend.ledger.entries()) == 1
    assert np.isfinite(layer.last_run.standard_errors).all()
