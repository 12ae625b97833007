"""Every backend gives the same answers, in one call or in chunks, and avoids the known traps of others."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conformance import (
    ALL,
    EXACT,
    EXACT_ATOL,
    EXACT_ESTIMATORS,
    EXPECTATION,
    FEATURES,
    READOUTS,
    REFERENCES,
    SAMPLERS,
    SHOT_ESTIMATORS,
    SHOTS,
    WEIGHTS,
    WITH_SHOTS,
    Calls,
    X,
    aer,
    assert_step,
    backends,
    further_off,
    make_layer,
    model,
    one_qubit_layer,
    shots_atol,
    step,
)
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.backends import aer as aer_module
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.bridge import transforms
from qiskit_torch_bridge.simulator import engine as engine_module


@backends(EXACT)
@pytest.mark.parametrize("readout", READOUTS)
def test_exact_values_and_gradients(make, readout):
    layer = make_layer(model(), backend=make(), **READOUTS[readout])
    assert_step(layer, REFERENCES[readout], atol=EXACT_ATOL)
    assert layer.total_shots == 0
    assert np.all(layer.last_run.standard_errors == 0.0)


@backends(WITH_SHOTS)
def test_error_bars_are_those_of_the_counts(make):
    """A single Pauli string in S shots has the unbiased variance (1 - value**2) / (S - 1)."""
    layer = make_layer(model(), backend=make(), shots=SHOTS, observables=["ZIZ", "IXX"])
    layer(FEATURES)
    run = layer.last_run
    np.testing.assert_allclose(run.standard_errors**2, (1 - run.values**2) / (SHOTS - 1), rtol=1e-9)


@backends(EXACT_ESTIMATORS)
def test_exact_estimators(make):
    assert_step(make_layer(model(), backend=make(), **EXPECTATION), REFERENCES["expectation"], atol=EXACT_ATOL)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(
    "mistake",
    [
        lambda values, by_inputs, by_weights: (values, -by_inputs, -by_weights),
        lambda values, by_inputs, by_weights: (values, 2 * by_inputs, 2 * by_weights),
        lambda values, by_inputs, by_weights: (values, by_inputs / 2, by_weights / 2),
        lambda values, by_inputs, by_weights: (values, by_inputs.flip(1), by_weights.roll(1)),
        lambda values, by_inputs, by_weights: (values.roll(1, 0), by_inputs.roll(1, 0), by_weights),
    ],
    ids=["sign", "twice", "half", "columns", "rows"],
)
def test_mistakes_are_further_off_than_shots_allow(mistake, readout):
    """By as much again as 2.5 standard errors."""
    expected = REFERENCES[readout]
    assert further_off(mistake(*expected), expected, 1.5 * np.array(shots_atol(READOUTS[readout])))


TWO_BASES = ["ZII", "IXZ", "ZIX"]


def sampled_readouts() -> Iterator[Any]:
    """Each backend with one readout, in turn, so that samplers meet both with a device and without one."""
    slow = ("aer matrix product state", "StatevectorSampler with a device", "IBM Sampler of aer")
    for place, (name, make) in enumerate(WITH_SHOTS.items()):
        marks = [pytest.mark.slow] * (name in slow)
        for readout in READOUTS if name in ("statevector", "aer") else [list(READOUTS)[(place + place // 2) % 2]]:
            yield pytest.param(make, readout, id=f"{name}-{readout}", marks=marks)


@pytest.mark.parametrize(("make", "readout"), list(sampled_readouts()))
def test_values_and_gradients_with_shots(make, readout):
    layer = make_layer(model(), backend=make(), shots=SHOTS, **READOUTS[readout])
    assert_step(layer, REFERENCES[readout], atol=shots_atol(READOUTS[readout]))
    assert layer.gradient.name == "parameter_shift"
    assert layer.last_run.circuits == 3 * len(layer.program.readout.groups)
    assert layer.last_run.shots == SHOTS * layer.last_run.circuits
    assert layer.total_shots == SHOTS * layer.total_circuits
    assert layer.last_run.standard_errors.shape == (3, layer.num_outputs)


# IBM's Estimator takes seconds, and is the same one with a device and without.
@backends(
    {name: make for name, make in SHOT_ESTIMATORS.items() if name != "IBM Estimator of aer"},
    slow=["IBM Estimator of manila"],
)
def test_estimators_with_shots(make):
    layer = make_layer(model(), backend=make(), shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))
    assert layer.last_run.shots == SHOTS * layer.last_run.circuits


@backends(SAMPLERS, {name: SHOT_ESTIMATORS[name] for name in SHOT_ESTIMATORS if name not in EXACT_ESTIMATORS})
def test_default_shots_are_the_primitives(make):
    layer = make_layer(model(), backend=make(), observables=TWO_BASES)
    layer(FEATURES)
    assert layer.shots is None
    assert layer.last_run.shots == layer.last_run.circuits * layer.backend.resolve_shots(None)
    assert layer.backend.resolve_shots(None) in (1024, 4096)


def bell() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.h(0)
    qc.cx(0, 1)
    return qc


@backends(ALL)
def test_circuit_without_parameters(make):
    """In one row, and in rows without inputs."""
    layer = QuantumLayer(bell(), backend=make(), observables=["ZZ", "XX", "YY", "II"], seed=1)
    assert layer.weights is None
    expected = torch.tensor([1.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(layer(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(layer(torch.zeros(3, 2, 0)), expected.expand(3, 2, 4), rtol=0, atol=0.05)


@backends(ALL)
def test_constant_observables_cost_nothing(make):
    observables = [SparsePauliOp("III", 2.5), SparsePauliOp("ZZZ", 0.0)]
    layer = make_layer(model(), backend=make(), shots=10, observables=observables)
    features = FEATURES.clone().requires_grad_()
    values = layer(features)
    values.sum().backward()
    assert values.tolist() == [[2.5, 0.0]] * 3
    assert torch.equal(features.grad, torch.zeros_like(features))
    assert torch.equal(layer.weights.grad, torch.zeros_like(WEIGHTS))
    assert layer.total_circuits == layer.total_shots == 0


@backends(ALL)
def test_parameters_that_cancel_and_mixed_circuits(make):
    """A device's transpiler removes the rz before Z is measured, but not before X: only one circuit has a parameter."""
    theta = Parameter("theta")
    qc = QuantumCircuit(1)
    qc.h(0)
    qc.rz(theta, 0)
    for observables, values, gradient in ((["X", "Z"], [np.cos(0.3), 0.0], -np.sin(0.3)), (["Z"], [0.0], 0.0)):
        options = {"observables": observables, "init": torch.tensor([0.3]).double()}
        layer = QuantumLayer(qc, weights=[theta], backend=make(), seed=1, **options)
        outputs = layer()
        outputs.sum().backward()
        assert outputs.tolist() == pytest.approx(values, abs=0.16)  # 5 standard errors of the default 1024 shots
        assert layer.weights.grad.item() == pytest.approx(gradient, abs=0.16)


@backends(ALL)
def test_pickle_and_deepcopy(make):
    layer = make_layer(model(), backend=make(), observables=["ZII"])
    before = layer(FEATURES)
    backend = layer.backend
    assert copy.deepcopy(backend) is backend
    restored = make_layer(model(), backend=pickle.loads(pickle.dumps(backend)), observables=["ZII"])
    assert repr(restored.backend) == repr(backend)
    after = restored(FEATURES)
    seedless = type(getattr(backend, "primitive", None)).__module__.startswith("qiskit_ibm_runtime")
    atol = 2 * 5 / 4096**0.5 if seedless else 0.0
    torch.testing.assert_close(after, before, rtol=0, atol=atol)


# IBM's primitives take no seed in their local mode; all others repeat to the last bit.
@backends({name: make for name, make in ALL.items() if not name.startswith("IBM")})
def test_one_seed_repeats_to_the_last_bit(make):
    runs = [step(make_layer(model(), backend=make(), shots=50, observables=TWO_BASES)) for _ in range(2)]
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize("shots", [None, 20])
def test_aer_runs_once_forward_and_once_backward(monkeypatch, shots):
    calls = Calls(monkeypatch, AerSimulator)
    layer = make_layer(model(), backend=aer(), shots=shots, **EXPECTATION)
    assert calls.count == 0, "making a layer runs nothing"
    values = layer(FEATURES.clone().requires_grad_())
    assert calls.count == 1
    values.sum().backward()
    assert calls.count == 2


@backends(SAMPLERS, SHOT_ESTIMATORS)
def test_primitives_run_once_forward_and_once_backward(monkeypatch, make):
    backend = resolve_backend(make())
    layer = make_layer(model(), backend=backend, shots=20, observables=TWO_BASES)
    calls = Calls(monkeypatch, type(backend.primitive))
    values = layer(FEATURES.clone().requires_grad_())
    assert calls.count == 1
    values.sum().backward()
    assert calls.count == 2


@pytest.mark.parametrize("base", [StatevectorSampler, AerSampler, StatevectorEstimator, AerEstimator])
def test_a_users_own_subclass_of_a_primitive_is_the_one_that_runs(base):
    class Counting(base):
        jobs = 0

        def run(self, *args, **kwargs):
            type(self).jobs += 1
            return super().run(*args, **kwargs)

    layer = make_layer(model(), backend=Counting(), shots=10, observables=["ZII"])
    layer(FEATURES)
    assert Counting.jobs == 1


# ------------------------------------------------------------------------------------------------- chunks


def test_aer_in_chunks_gives_the_same_answers(monkeypatch):
    """Of single experiments; and of several, which end within a row's and within a measurement's."""
    options = {"backend": "aer", "observables": TWO_BASES}
    whole = step(make_layer(model(), **options))
    calls = Calls(monkeypatch, AerSimulator)
    for limit in (7, 4, 1):
        monkeypatch.setattr(aer_module, "_MOST_EXPERIMENTS_A_CALL", limit)
        calls.count = 0
        torch.testing.assert_close(step(make_layer(model(), **options)), whole, rtol=0, atol=1e-12)
        assert calls.count > 2, limit
    layer = make_layer(model(), backend="aer", shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))


def test_aer_chunks_have_seeds_of_their_own(monkeypatch):
    """Equal rows in different chunks, the same position in each, must not share their shots."""
    monkeypatch.setattr(aer_module, "_MOST_EXPERIMENTS_A_CALL", 1)
    layer = one_qubit_layer(backend="aer", shots=1000, seed=1)
    assert len(set(layer(torch.full((8, 1), 1.0)).flatten().tolist())) > 1


@pytest.mark.parametrize("shots", [None, 50])
@pytest.mark.parametrize("rows", [1, 2])
def test_statevector_in_chunks_gives_the_same_answers(monkeypatch, shots, rows):
    """With shots too: the draws do not depend on how the batch is cut."""
    sizes: list[int] = []
    in_parts = engine_module.Simulator.in_parts

    def counting(self: Any, rows: int, lanes: int, work: Any, **options: Any) -> None:
        def counted(part: slice, slabs: slice, spread: bool) -> None:
            sizes.append(part.stop - part.start)
            work(part, slabs, spread)

        in_parts(self, rows, lanes, counted, **options)

    monkeypatch.setattr(engine_module.Simulator, "in_parts", counting)
    monkeypatch.setattr(transforms, "somebody_looks", lambda: True)  # plain calls know their parts otherwise
    for name in ("_LEAST_ROWS_SIDE_BY_SIDE", "_ROWS_OF_LONG_BATCHES"):
        monkeypatch.setattr(engine_module, name, 10**6)  # so that a row is a unit, which is never cut
    whole = step(make_layer(model(), shots=shots, **EXPECTATION))
    assert max(sizes) > rows
    sizes.clear()
    monkeypatch.setattr(engine_module, "_BYTES_OF_A_SMALL_PART", rows * 16 * 2**3)
    torch.testing.assert_close(step(make_layer(model(), shots=shots, **EXPECTATION)), whole, rtol=0, atol=1e-14)
    assert max(sizes) == rows


# ------------------------------------------------------------------------------------------------- known traps of others


@pytest.mark.parametrize("shots", [None, SHOTS])
def test_controlled_phase_is_bound_on_aer(shots):
    """Aer does not bind parameters of controlled gates: https://github.com/Qiskit/qiskit-aer/issues/2403."""
    qc = QuantumCircuit(2)
    qc.h([0, 1])
    qc.cp(X[0], 0, 1)
    layer = QuantumLayer(qc, inputs=[X[0]], backend=aer(), shots=shots, observables=["XI", "XX"], seed=1)
    angles = torch.tensor([[0.0], [0.7], [2.5]], dtype=torch.float64)
    expected = torch.cat([(1 + torch.cos(angles)) / 2, (1 + torch.cos(angles)) / 2], dim=1)
    torch.testing.assert_close(layer(angles), expected, rtol=0, atol=1e-12 if shots is None else 5 / SHOTS**0.5)


@backends(ALL)
def test_eleven_parameters_are_bound_by_object(make):
    """Sorted by name, theta[10] comes before theta[2]."""
    theta = ParameterVector("theta", 11)
    names = [Parameter(name) for name in ("b", "a", *(f"p{i}" for i in range(9)))]
    for parameters in (list(theta), names):
        qc = QuantumCircuit(1)
        for parameter in parameters:
            qc.ry(parameter, 0)
        values = torch.zeros(11, dtype=torch.float64)
        values[2], values[10] = 0.5, 0.4
        layer = QuantumLayer(qc, inputs=parameters, backend=make(), shots=None, gradient="parameter_shift", seed=1)
        assert layer(values).item() == pytest.approx(np.cos(0.9), abs=0.16)


def row_of_qubits(n: int) -> tuple[QuantumCircuit, ParameterVector]:
    theta = ParameterVector("theta", n)
    qc = QuantumCircuit(n)
    for qubit in range(n):
        qc.ry(theta[qubit], qubit)
    for qubit in range(1, n):
        qc.cx(qubit - 1, qubit)
    return qc, theta


@pytest.mark.parametrize("shots", [None, 400])
@pytest.mark.parametrize("observables", [["I" * 38 + "ZI"], None], ids=["one qubit", "Z on each qubit"])
def test_forty_qubits_as_a_matrix_product_state(shots, observables):
    """<Z_k> is the product of the first cosines. Z on each of 40 qubits needs 40 numbers, not 2**40 probabilities."""
    qc, theta = row_of_qubits(40)
    angles = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    expected = torch.cos(angles).cumprod(0)
    options = {"backend": aer(method="matrix_product_state"), "shots": shots, "seed": 1}
    layer = QuantumLayer(qc, inputs=theta, observables=observables, **options)
    expected = expected if observables is None else expected[1:2]
    torch.testing.assert_close(layer(angles), expected, rtol=0, atol=1e-9 if shots is None else 5 / 20)


def test_forty_qubits_exactly_say_what_to_do():
    qc, theta = row_of_qubits(40)
    with pytest.raises(
        MemoryError, match=r"cone of Z_\d+ has \d\d of the circuit's 40 qubits.* GiB.*matrix_product_state"
    ):
        QuantumLayer(qc, inputs=theta)
