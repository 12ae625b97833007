"""A pass manager of the user's own in place of the preset one: right where it is, refused by name where it is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conformance import (
    EXACT_ATOL,
    EXPECTATION,
    FEATURES,
    LAYOUT_SHOTS,
    READOUTS,
    REFERENCES,
    aer,
    assert_step,
    make_layer,
    manila,
    model,
    runtime,
    shots_atol,
)
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import IGate, RZGate, RZZGate
from qiskit.converters import circuit_to_dag
from qiskit.dagcircuit import DAGCircuit
from qiskit.primitives import BackendSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.transpiler import CouplingMap, PassManager, generate_preset_pass_manager
from qiskit.transpiler.basepasses import TransformationPass
from qiskit.transpiler.passes import RemoveFinalMeasurements, RemoveIdentityEquivalent, SetLayout
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator

from qiskit_torch_bridge import AerBackend, EstimatorBackend, IBMBackend, QuantumLayer, SamplerBackend

GATES = ["cx", "rz", "sx", "x"]
STRANGER = Parameter("stranger")


class Replaced(TransformationPass):
    """Has each gate of a name replaced by the circuit that is made of its first argument, or dropped."""

    def __init__(self, name: str, make: Callable[[Any], QuantumCircuit] | None = None) -> None:
        super().__init__()
        self.name_of_gate, self.make = name, make

    def run(self, dag: DAGCircuit) -> DAGCircuit:
        for node in dag.op_nodes():
            if node.name != self.name_of_gate:
                continue
            if self.make is None:
                dag.remove_op_node(node)
            else:
                dag.substitute_node_with_dag(node, circuit_to_dag(self.make(*node.op.params)))
        return dag


def preset(**options: Any) -> PassManager:
    return generate_preset_pass_manager(
        **{"optimization_level": 1, "backend": manila(), "initial_layout": [4, 2, 1], "seed_transpiler": 3} | options
    )


def with_last(*passes: TransformationPass, **options: Any) -> PassManager:
    """The preset passes for a line of qubits, and then these."""
    whole = preset(**options)
    whole.post_optimization = PassManager(list(passes))
    return whole


def routed() -> PassManager:
    """Qubits are swapped on their way, and single ones are not where they began."""
    return preset(initial_layout=[0, 2, 4], routing_method="basic", optimization_level=2)


BACKENDS = {
    "aer": lambda passes: AerBackend(manila(), pass_manager=passes),
    "sampler": lambda passes: SamplerBackend(BackendSamplerV2(backend=manila()), pass_manager=passes),
    "sampler for": lambda passes: SamplerBackend(StatevectorSampler(), device=manila(), pass_manager=passes),
    "estimator": lambda passes: EstimatorBackend(AerEstimator.from_backend(manila()), pass_manager=passes),
    "estimator for": lambda passes: EstimatorBackend(StatevectorEstimator(), device=manila(), pass_manager=passes),
    "ibm sampler": lambda passes: IBMBackend(manila(), pass_manager=passes),
    "ibm estimator": lambda passes: IBMBackend(
        manila(), pass_manager=passes, primitive="estimator", options={"resilience_level": 0}
    ),
}
backends = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


@pytest.mark.parametrize(
    ("kind", "readout", "passes"),
    [
        (kind, "expectation" if "estimator" in kind or (place + number) % 2 else "probabilities", passes)
        for place, kind in enumerate(BACKENDS)
        for number, passes in enumerate((preset, routed))
    ],
)
def test_layouts_of_a_pass_manager_never_move_values(kind, readout, passes):
    backend = BACKENDS[kind](passes())
    shots = LAYOUT_SHOTS if "sampler" in kind or "ibm" in kind else None
    options = READOUTS[readout]
    layer = make_layer(model(), backend=backend, shots=shots, **options)
    assert_step(layer, REFERENCES[readout], atol=EXACT_ATOL if shots is None else shots_atol(options, shots))


def test_a_pass_manager_does_what_the_preset_one_would_do_with_the_same_choices():
    options = {"initial_layout": [4, 2, 1], "optimization_level": 1, "seed_transpiler": 3}
    own, preset_one = (
        make_layer(model(), backend=AerBackend(manila(), **choices), shots=100, **EXPECTATION)(FEATURES)
        for choices in ({"pass_manager": preset()}, options)
    )
    assert torch.equal(own, preset_one)


def without_layout(**options: Any) -> PassManager:
    """For the device's gates, as if every qubit reached every other."""
    return preset(backend=None, basis_gates=GATES, initial_layout=None, **options)


def angle_of(value: Any) -> QuantumCircuit:
    made = QuantumCircuit(1)
    made.rz(value, 0)
    return made


WRONG = {
    "no gate translated": (PassManager, r"'r[xy]' on qubits \[\d\], which '.*' cannot run"),
    "no connection heeded": (without_layout, r"'cx' on qubits \[\d, \d\], where .* does not have it"),
    "a gate dropped": (lambda: with_last(Replaced("sx")), "does not give the circuit's answers.*may drop no gate"),
    "an angle dropped": (lambda: with_last(Replaced("rz")), "does not give the circuit's answers"),
    "an angle scaled": (
        lambda: with_last(Replaced("rz", lambda value: angle_of(1.001 * value))),
        "does not give the circuit's answers",
    ),
    "an angle squared": (
        lambda: with_last(Replaced("rz", lambda value: angle_of(value * value))),
        r"made the angle .*\).*\*.*\(.*, expected an affine function",
    ),
    "an angle of its own": (
        lambda: with_last(Replaced("sx", lambda: angle_of(STRANGER))),
        "made the angle stranger, expected an affine function of the circuit's own angles",
    ),
}


# Every other pair: each mistake is made with samplers and with estimators, and each backend meets three or four of them.
@pytest.mark.parametrize(
    ("make", "passes", "message"),
    [
        pytest.param(make, passes, message, id=f"{how}-{name}")
        for i, (name, make) in enumerate(BACKENDS.items())
        for j, (how, (passes, message)) in enumerate(WRONG.items())
        if (i + j) % 2 == 0
    ],
)
def test_what_a_pass_manager_does_wrong_is_refused_before_anything_runs(make, passes, message):
    with pytest.raises(ValueError, match=message):
        make_layer(model(), backend=make(passes()), **EXPECTATION, shots=10)(FEATURES)


@pytest.mark.parametrize("kind", ["aer", "sampler", "sampler for", "ibm sampler"])
def test_measurements_have_to_stay(kind):
    for passes in (with_last(RemoveFinalMeasurements()), with_last(Replaced("measure"))):
        with pytest.raises(ValueError, match=r"measured bits .*expected \(\[\('outcome', 3\)\], \[0, 1, 2\]\)"):
            make_layer(model(), backend=BACKENDS[kind](passes), **EXPECTATION, shots=10)


def test_a_layout_has_to_be_applied_where_it_is_set():
    backend = EstimatorBackend(AerEstimator(), pass_manager=PassManager([SetLayout([1, 0, 2])]))
    with pytest.raises(ValueError, match=r"does not give the circuit's answers.*set a layout if it moves qubits"):
        make_layer(model(), backend=backend, **EXPECTATION)


def test_connections_of_a_simulator_hold_for_all_of_its_gates():
    line = CouplingMap.from_line(3)
    simulator = AerSimulator(coupling_map=list(line.get_edges()))
    with pytest.raises(ValueError, match=r"'cx' on qubits \[\d, \d\], where 'aer_simulator' does not have it"):
        make_layer(model(), backend=AerBackend(simulator, pass_manager=without_layout()), **EXPECTATION)
    passes = generate_preset_pass_manager(1, coupling_map=line, basis_gates=GATES)
    layer = make_layer(model(), backend=AerBackend(simulator, pass_manager=passes), **EXPECTATION)
    expected = REFERENCES["expectation"][0]
    torch.testing.assert_close(layer(FEATURES), expected, rtol=0, atol=1e-10)


def test_without_connections_only_the_gates_count():
    layer = make_layer(model(), backend=AerBackend(aer(), pass_manager=PassManager()), **EXPECTATION)
    expected = REFERENCES["expectation"][0]
    torch.testing.assert_close(layer(FEATURES), expected, rtol=0, atol=1e-10)


def test_angles_stay_where_the_device_takes_them():
    """A free angle in a gate that takes some angles only would leave them when it is shifted."""
    device = runtime("fake_provider").FakeFractionalBackend()

    class Entangled(TransformationPass):
        def run(self, dag: DAGCircuit) -> DAGCircuit:
            (free,) = [node.op.params[0] for node in dag.op_nodes() if node.name == "rx"]
            dag.apply_operation_back(RZZGate(free), dag.qubits[:2])
            return dag

    w = Parameter("w")
    qc = QuantumCircuit(2)
    qc.rx(w, 0)
    with pytest.raises(ValueError, match=r"free angle .* in 'rzz'"):
        QuantumLayer(
            qc,
            weights=[w],
            observables=["ZI", "IZ"],
            backend=AerBackend(device, pass_manager=PassManager([Entangled()])),
            shots=10,
        )


@pytest.mark.parametrize(
    "kind", [AerBackend, lambda device, **o: SamplerBackend(BackendSamplerV2(backend=device), **o)]
)
def test_noise_is_kept_or_refused(kind):
    noise = NoiseModel()
    noise.add_all_qubit_quantum_error(depolarizing_error(0.2, 1), ["id", "rz"])
    w = Parameter("w")
    qc = QuantumCircuit(1)
    qc.rz(w, 0)
    qc.append(IGate(), [0])
    qc.append(RZGate(0.3), [0])
    options = {"weights": [w], "observables": ["Z"], "shots": 1000, "seed": 1, "init": torch.tensor([0.4]).double()}

    def layer(passes: PassManager | None) -> QuantumLayer:
        return QuantumLayer(qc, backend=kind(aer(noise_model=noise), pass_manager=passes), **options)

    with pytest.raises(ValueError, match=r"Gate\(s\) id of the circuit have noise where it runs, but the pass manager"):
        layer(PassManager([RemoveIdentityEquivalent()]))
    assert torch.equal(layer(PassManager())(), layer(None)())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pass_manager": 2}, TypeError, r"pass_manager: got 2 \(int\), expected a PassManager"),
        ({"pass_manager": PassManager}, TypeError, "pass_manager: got .*expected a PassManager"),
        ({"pass_manager": SetLayout([0])}, TypeError, "pass_manager: got .*expected a PassManager"),
        ({"pass_manager": PassManager(), "optimization_level": 2}, ValueError, "together with optimization_level"),
        ({"pass_manager": PassManager(), "initial_layout": [1, 0]}, ValueError, "together with initial_layout"),
        ({"pass_manager": PassManager(), "seed_transpiler": 1}, ValueError, "together with seed_transpiler"),
        (
            {"pass_manager": PassManager(), "optimization_level": 0, "initial_layout": [0]},
            ValueError,
            "together with optimization_level and initial_layout, which only the preset pass manager heeds; leave them out",
        ),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        partial(AerBackend, None),
        partial(SamplerBackend, BackendSamplerV2(backend=aer())),
        partial(EstimatorBackend, AerEstimator()),
    ],
)
def test_a_pass_manager_comes_alone(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_a_pass_manager_needs_a_device():
    with pytest.raises(ValueError, match=r"StatevectorSampler, which has no device .*device="):
        SamplerBackend(StatevectorSampler(), pass_manager=PassManager())


@backends
def test_choices_are_readable(make):
    passes = preset()
    backend = make(passes)
    assert backend.transpiler.pass_manager is passes
    assert (backend.optimization_level, backend.initial_layout, backend.seed_transpiler) == (None, None, None)


@pytest.mark.parametrize("passes", [preset, lambda: with_last(Replaced("never"))], ids=["preset", "own"])
def test_pickles(passes):
    backend = AerBackend(manila(), pass_manager=passes())
    restored = pickle.loads(pickle.dumps(backend))
    values, again = (make_layer(model(), backend=b, **EXPECTATION)(FEATURES) for b in (backend, restored))
    assert torch.equal(values, again)
