"""Layouts, the layer's and the user's own, move qubits and never values."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from conformance import (
    EXACT_ATOL,
    EXPECTATION,
    FEATURES,
    LAYOUT_SHOTS,
    WEIGHTS,
    W,
    X,
    aer,
    assert_step,
    expected_step,
    further_off,
    make_layer,
    manila,
    model,
    noiseless,
    reference,
    shots_atol,
    simulated,
    small_model,
)
from qiskit import QuantumCircuit, transpile
from qiskit.primitives import BackendSamplerV2
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import AerBackend, EstimatorBackend, QuantumLayer, SamplerBackend

LINE_LAYOUTS = {2: ([1, 0], [3, 4], [4, 3]), 3: ([1, 0, 2], [4, 3, 2], [0, 2, 4])}
MODELS = {2: small_model, 3: model}
LAYOUT_CASES = [(n, layout) for n, layouts in LINE_LAYOUTS.items() for layout in layouts]
layouts = pytest.mark.parametrize(("n", "layout"), LAYOUT_CASES, ids=[str(layout) for _, layout in LAYOUT_CASES])
KINDS = ["expectation", "probabilities"]
MEASURED = ["before", "after", "never", "not transpiled"]

LAYOUT_OBSERVABLES = {2: {"observables": ["ZI", "IX", SparsePauliOp(["ZZ", "YX"], [0.5, -1.0])]}, 3: EXPECTATION}
LAYOUT_READOUTS = {
    "expectation": LAYOUT_OBSERVABLES,
    "probabilities": {n: {"probabilities": [0, 1]} for n in LAYOUT_OBSERVABLES},
}


def on_manila(qc: QuantumCircuit, layout: Sequence[int]) -> QuantumCircuit:
    return transpile(qc, manila(), initial_layout=list(layout), optimization_level=3, seed_transpiler=5)


def transpiled_by_user(n: int, layout: Sequence[int], measured: str) -> QuantumCircuit:
    qc = MODELS[n]()
    if measured == "before":
        qc.measure_all()
    ready = on_manila(qc, layout)
    if measured == "after":
        physical = ready.layout.final_index_layout(filter_ancillas=True)
        whole = QuantumCircuit(ready.num_qubits, n)
        whole.compose(ready, inplace=True)
        ready.add_register(whole.cregs[0])
        for qubit in range(n):
            ready.measure(physical[qubit], qubit)
    return ready


@cache
def ready_for(n: int, layout: tuple[int, ...], measured: str) -> QuantumCircuit:
    """One of :func:`transpiled_by_user`, which nobody changes."""
    return transpiled_by_user(n, layout, measured)


@cache
def expected_of(n: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return expected_step(*reference(partial(simulated, MODELS[n](), LAYOUT_READOUTS[kind][n])))


@cache
def outcomes_of(n: int) -> torch.Tensor:
    """Shape (N, 2**n): the probabilities of all outcomes."""
    points = np.hstack([FEATURES.numpy(), np.tile(WEIGHTS.numpy(), (len(FEATURES), 1))])
    return torch.from_numpy(np.array([simulated(MODELS[n](), {"probabilities": list(range(n))}, p) for p in points]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", MODELS)
def test_permuted_qubits_are_further_off_than_shots_allow(n, kind):
    """So whatever the noise, a wrong layout fails."""
    readout, expected = LAYOUT_READOUTS[kind][n], expected_of(n, kind)
    for order in list(permutations(range(n)))[1:]:
        permuted = QuantumCircuit(n).compose(MODELS[n](), order)
        wrong = expected_step(*reference(partial(simulated, permuted, readout)))
        assert further_off(wrong, expected, 2 * np.array(shots_atol(readout, LAYOUT_SHOTS))), order


@pytest.mark.parametrize(
    ("case", "kind", "measured"),
    [
        (case, KINDS[(place + measured) % 2], measured)
        for place, case in enumerate(LAYOUT_CASES)
        for measured in (False, True)
    ],
)
def test_the_layer_transpiles_for_a_layout(case, kind, measured):
    n, layout = case
    readout = LAYOUT_READOUTS[kind][n]
    qc = MODELS[n]()
    if measured:
        qc.measure_all()
    backend = AerBackend(manila(), optimization_level=3, initial_layout=layout)
    assert_step(make_layer(qc, backend=backend, **readout), expected_of(n, kind), atol=EXACT_ATOL)


USERS_BACKENDS = {"statevector": lambda: "statevector", "manila": manila, "aer": aer}
# Of layouts, kinds, measurements and backends each meets each of the others.
USERS_CASES = [
    (case, KINDS[(place // 3 + number) % 2], MEASURED[(place + number) % 3], backend)
    for place, case in enumerate(LAYOUT_CASES)
    for number, backend in enumerate(USERS_BACKENDS)
]


@pytest.mark.parametrize(("case", "kind", "measured", "backend"), USERS_CASES)
def test_circuits_that_the_user_has_transpiled(case, kind, measured, backend):
    n, layout = case
    readout = LAYOUT_READOUTS[kind][n]
    layer = make_layer(ready_for(n, tuple(layout), measured), backend=USERS_BACKENDS[backend](), **readout)
    assert_step(layer, expected_of(n, kind), atol=EXACT_ATOL)


@layouts
@pytest.mark.parametrize("measured", ["before", "after"])
@pytest.mark.parametrize("make", [lambda: "statevector", manila], ids=["statevector", "manila"])
def test_measurements_of_a_transpiled_circuit_are_read(n, layout, measured, make):
    """probabilities=True follows the classical bits; here bit j holds qubit j of the circuit before transpiling."""
    layer = make_layer(ready_for(n, tuple(layout), measured), backend=make(), probabilities=True)
    torch.testing.assert_close(layer(FEATURES), outcomes_of(n), rtol=0, atol=1e-10)


# Each layout with two ways to measure, so that each way meets layouts of both sizes, and each kind of reading.
SAMPLED_CASES = [
    (case, KINDS[(place // 3 + number) % 2], measured)
    for place, case in enumerate(LAYOUT_CASES)
    for number, measured in enumerate(MEASURED)
    if number % 2 == (place + number // 2) % 2
] + [((3, [0, 2, 4]), KINDS[0], "not transpiled")]  # these qubits cannot do without swaps


@pytest.mark.parametrize(("case", "kind", "measured"), SAMPLED_CASES)
def test_samplers_on_a_device_know_the_layout(case, kind, measured):
    n, layout = case
    readout = LAYOUT_READOUTS[kind][n]
    if measured == "not transpiled":
        sampler = BackendSamplerV2(backend=manila())
        qc, backend = MODELS[n](), SamplerBackend(sampler, initial_layout=layout, optimization_level=3)
    else:
        qc, backend = ready_for(n, tuple(layout), measured), AerSampler.from_backend(manila())
    layer = make_layer(qc, backend=backend, shots=LAYOUT_SHOTS, **readout)
    assert_step(layer, expected_of(n, kind), atol=shots_atol(readout, LAYOUT_SHOTS))


@pytest.mark.parametrize(("case", "measured"), [(case, measured) for case, _, measured in SAMPLED_CASES])
def test_estimators_on_a_device_know_the_layout(case, measured):
    n, layout = case
    readout = LAYOUT_OBSERVABLES[n]
    if measured == "not transpiled":
        qc, options = MODELS[n](), {"initial_layout": layout, "optimization_level": 3}
    else:
        qc, options = ready_for(n, tuple(layout), measured), {}
    backend = EstimatorBackend(AerEstimator.from_backend(manila()), **options)
    assert_step(make_layer(qc, backend=backend, **readout), expected_of(n, "expectation"), atol=EXACT_ATOL)


@layouts
@pytest.mark.parametrize("make", [lambda: "statevector", manila, lambda: AerEstimator.from_backend(manila())])
def test_observables_that_have_the_layout_already(n, layout, make):
    ready = ready_for(n, tuple(layout), "never")
    readout = LAYOUT_OBSERVABLES[n]
    placed = [SparsePauliOp(o).apply_layout(ready.layout) for o in readout["observables"]]
    layer = make_layer(ready, backend=make(), observables=placed)
    assert_step(layer, expected_of(n, "expectation"), atol=EXACT_ATOL)


def test_a_permuted_circuit_as_wide_as_before_is_ambiguous_and_warns():
    device = noiseless(GenericBackendV2(2, seed=1))
    ready = transpile(small_model(), device, initial_layout=[1, 0], optimization_level=3, seed_transpiler=1)
    readout = LAYOUT_OBSERVABLES[2]
    with pytest.warns(UserWarning, match=r"transpiled.*before transpiling") as caught:
        layer = QuantumLayer(ready, inputs=X, weights=W, init=WEIGHTS, **readout)
    assert caught[0].filename == __file__, "the warning points at the user's line"
    assert_step(layer, expected_of(2, "expectation"), atol=EXACT_ATOL)
    # Probabilities and the default observables cannot be meant otherwise: no warning (warnings are errors here).
    make_layer(ready, probabilities=[0, 1])
    make_layer(ready)


def test_a_transpiled_circuit_keeps_its_place_on_the_device(monkeypatch):
    jobs = []
    run = AerSimulator.run

    def recorded(this: AerSimulator, circuits: Any, **options: Any) -> Any:
        jobs.extend(circuits)
        return run(this, circuits, **options)

    monkeypatch.setattr(AerSimulator, "run", recorded)
    layer = make_layer(transpiled_by_user(2, [3, 4], "never"), backend=manila(), observables=["ZZ"])
    layer(FEATURES)
    (circuit,) = jobs
    assert {circuit.find_bit(qubit).index for item in circuit.data for qubit in item.qubits} == {3, 4}


@pytest.mark.parametrize("make", [manila, lambda: BackendSamplerV2(backend=manila())])
def test_a_circuit_wider_than_the_device_is_refused(make):
    qc = QuantumCircuit(6)
    qc.ry(X[0], 0)
    with pytest.raises(ValueError, match=r"6 qubits.*fake_manila.*5 qubits"):
        QuantumLayer(qc, inputs=[X[0]], backend=make())


@pytest.mark.parametrize("layout", [[1], [0, 1, 2], [1, 1], [3, 5], [-1, 0], ["a", "b"]], ids=str)
def test_layouts_that_do_not_fit_are_refused(layout):
    with pytest.raises(ValueError, match=r"layout"):
        make_layer(small_model(), backend=AerBackend(manila(), initial_layout=layout), observables=["ZZ"])


def test_a_layout_for_a_circuit_that_has_one_is_refused():
    backend = AerBackend(manila(), initial_layout=[1, 0])
    with pytest.raises(ValueError, match="layout"):
        make_layer(transpiled_by_user(2, [3, 4], "never"), backend=backend, observables=["ZZ"])
