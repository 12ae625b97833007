"""``layer.last_run.counts``, and what estimates say of what was measured."""

import copy
import pickle

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator, StatevectorSampler
from qiskit_aer import AerSimulator
from readout_problems import FEATURES, INPUTS, NumbersOnly, circuit, layer_of, misreading

from qiskit_torch_bridge import DensityMatrixBackend, Program, QuantumLayer, ReadoutCorrection
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.bridge import functional, result
from qiskit_torch_bridge.program.readout import Samples

BACKENDS = {
    "statevector": lambda: "statevector",
    "density matrix": lambda: DensityMatrixBackend(),
    "aer": AerSimulator,
    "sampler": StatevectorSampler,
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_little_endian_and_add_up(backend):
    """Qubit 0 is in 1, qubit 1 in 0, and qubit 2 is turned."""
    x = ParameterVector("x", 1)
    basis = QuantumCircuit(3)
    basis.x(0)
    basis.ry(x[0], 2)
    layer = QuantumLayer(
        basis, inputs=x, observables=["IIZ", "IZI", "ZII", "XXX"], backend=BACKENDS[backend](), shots=70
    )
    layer(torch.tensor([[0.0], [torch.pi], [1.0]]))
    counts = layer.last_run.counts
    bases = [group.bases for group in layer.program.readout.groups]
    in_z = bases.index("ZZZ")
    assert counts[0][in_z] == {"001": 70}
    assert counts[1][in_z] == {"101": 70}
    assert set(counts[2][in_z]) == {"001", "101"}
    for row in counts:
        assert [sum(of_group.values()) for of_group in row] == [70] * len(bases)
        assert all(type(number) is int for of_group in row for number in of_group.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_give_the_values(backend):
    layer = layer_of(BACKENDS[backend](), "probabilities", shots=300, seed=2)
    values = layer(FEATURES)
    frequencies = [
        [of_group.get(f"{outcome:02b}", 0) / 300 for outcome in range(4)] for (of_group,) in layer.last_run.counts
    ]
    np.testing.assert_allclose(values, frequencies, atol=1e-12)


@pytest.mark.parametrize("backend", ["statevector", "density matrix"])
def test_what_was_not_kept_is_drawn_once_more(backend, monkeypatch):
    kept = layer_of(BACKENDS[backend](), shots=300, seed=2)
    kept(FEATURES)
    monkeypatch.setattr("qiskit_torch_bridge.simulator.engine._MOST_COUNTS_KEPT", 0)
    again = layer_of(BACKENDS[backend](), shots=300, seed=2)
    again(FEATURES)
    assert again.last_run.counts == kept.last_run.counts


def test_aer_takes_the_same_shots_once_more(monkeypatch):
    kept = layer_of(AerSimulator(), shots=300, seed=2)
    kept(FEATURES)
    monkeypatch.setattr("qiskit_torch_bridge.backends.aer._MOST_NUMBERS_KEPT", 0)
    monkeypatch.setattr("qiskit_torch_bridge.backends.aer._MOST_EXPERIMENTS_A_CALL", 1)
    parts, whole = layer_of(AerSimulator(), shots=300, seed=2), layer_of(AerSimulator(), shots=300, seed=2)
    parts(FEATURES)
    assert parts.last_run.counts == parts.last_run.counts
    assert [[sum(group.values()) for group in row] for row in parts.last_run.counts] == [[300] * 2] * 2
    whole(FEATURES)
    assert whole.last_run.counts == parts.last_run.counts


@pytest.mark.parametrize(
    ("backend", "shots"),
    [("statevector", None), (StatevectorEstimator(), 100), (DensityMatrixBackend(), None)],
    ids=["exact", "estimator", "exact with noise"],
)
def test_there_are_none_without_bits(backend, shots):
    layer = layer_of(backend, shots=shots)
    assert layer.last_run is None
    layer(FEATURES)
    assert layer.last_run.counts is None


def test_many_shots_are_not_kept(monkeypatch):
    assert result.MOST_SHOTS_COUNTED == 4_194_304  # as the docstring says
    monkeypatch.setattr(functional, "MOST_SHOTS_COUNTED", 2 * 2 * 100)
    layer = layer_of(AerSimulator(), shots=100)
    layer(FEATURES)
    assert layer.last_run.counts is not None
    layer(FEATURES, shots=101)
    assert layer.last_run.counts is None


def test_counts_are_raw_and_travel():
    backend = DensityMatrixBackend(misreading())
    layer = layer_of(backend, shots=100, seed=1, mitigation=[ReadoutCorrection()])
    layer(FEATURES.clone().requires_grad_()).sum().backward()
    run = layer.last_run
    assert [[sum(group.values()) for group in row] for row in run.counts] == [[100] * 2] * 2
    assert pickle.loads(pickle.dumps(run)).counts == run.counts
    assert pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(run)))).counts == run.counts
    assert copy.deepcopy(layer).last_run.counts == run.counts
    assert run.predicted(1000).counts is None


def test_inputs_of_blocks_are_stitched():
    x = ParameterVector("x", 2)
    program = QuantumCircuit(2)
    program.ry(x[0], 0)
    program.append(NumbersOnly(x[1]), [1])
    for backend in (AerSimulator(), StatevectorSampler()):
        layer = QuantumLayer(program, inputs=x, probabilities=[0, 1], backend=backend, shots=100, seed=1)
        with torch.no_grad():
            values = layer(torch.tensor([[0.0, torch.pi], [torch.pi, 0.0], [0.0, torch.pi]]))
        counts = [row[0] for row in layer.last_run.counts]
        assert counts == [{"10": 100}, {"01": 100}, {"10": 100}]
        assert values.argmax(dim=1).tolist() == [2, 1, 2]


@pytest.mark.parametrize("backend", ["aer", "sampler", "density matrix", "statevector"])
@pytest.mark.parametrize("shots", [None, 50])
def test_estimates_say_what_was_measured(backend, shots):
    if backend == "sampler" and shots is None:
        pytest.skip("a Sampler takes shots")
    program = Program.compile(circuit(), inputs=INPUTS, observables=["ZZI", "XIX"])
    made = resolve_backend(BACKENDS[backend]())
    made.prepare(program)
    assert made.gives_outcomes(program)
    estimate = made.evaluate(program, FEATURES.numpy(), shots=shots, seed=np.random.SeedSequence(1))
    assert estimate.measured is estimate.measured
    values = np.zeros((2, 2))
    for group, measured in zip(program.readout.groups, estimate.measured, strict=True):
        first, _ = group.sample_moments(measured) if isinstance(measured, Samples) else group.moments(measured)
        values += first
    np.testing.assert_allclose(values, estimate.values, atol=1e-12)
    part = estimate.of_rows(slice(1, None)).measured
    assert [len(each.shots) if isinstance(each, Samples) else len(each) for each in part] == [1, 1]
