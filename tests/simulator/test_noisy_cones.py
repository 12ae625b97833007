"""Circuits with noise that are simulated by their light cones: the same numbers, where both can be had."""

import math
import pickle
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer.noise import (
    NoiseModel,
    ReadoutError,
    amplitude_damping_error,
    depolarizing_error,
    pauli_error,
    thermal_relaxation_error,
)
from scipy import stats

from qiskit_torch_bridge import DensityMatrixBackend, Program, QuantumLayer
from qiskit_torch_bridge.backends.noise_channels import noisy_circuits
from qiskit_torch_bridge.simulator import noisy_cones
from qiskit_torch_bridge.simulator.density_engine import DensitySimulator
from qiskit_torch_bridge.simulator.noisy_cones import NoisyConeSimulator

SHOTS = 4000


def depolarising() -> NoiseModel:
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.02, 1), ["rx", "ry", "rz", "h"])
    model.add_all_qubit_quantum_error(depolarizing_error(0.05, 2), ["cx", "cz", "rzz", "rxx"])
    model.add_all_qubit_readout_error(ReadoutError([[0.97, 0.03], [0.08, 0.92]]))
    return model


def damping() -> NoiseModel:
    model = NoiseModel()
    model.add_all_qubit_quantum_error(amplitude_damping_error(0.1), ["rx", "ry", "h"])
    model.add_quantum_error(pauli_error([("XZ", 0.1), ("II", 0.9)]), ["cx"], [0, 1])
    return model


def relaxation() -> NoiseModel:
    model = NoiseModel()
    model.add_all_qubit_quantum_error(thermal_relaxation_error(50, 60, 5), ["rx", "h"])
    model.add_all_qubit_readout_error(ReadoutError([[0.9, 0.1], [0.02, 0.98]]))
    return model


MODELS = [depolarising, damping, relaxation]


@pytest.fixture
def by_cones(monkeypatch):
    """Every circuit, whatever it costs."""
    monkeypatch.setattr(noisy_cones, "_LEAST_QUBITS", 1)
    monkeypatch.setattr(noisy_cones, "_GAIN", math.inf)


def random_program(seed: int) -> Program:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    circuit, free = QuantumCircuit(n), iter([Parameter(f"p{i:02d}") for i in range(40)])
    circuit.rx(next(free), 0)
    for _ in range(int(rng.integers(2, 4 * n))):
        a, b = rng.permutation(n)[:2].tolist()
        name = str(rng.choice(["rx", "ry", "rz", "rzz", "rxx", "cx", "cz", "cx", "h", "h"]))
        angle = [next(free)] if name.startswith("r") else []
        getattr(circuit, name)(*angle, *([a, b] if len(name) == 3 or name[0] == "c" else [a]))
    readout: dict[str, Any] = {"probabilities": rng.permutation(n)[:2].tolist()}
    if seed % 4:
        labels = [["".join(rng.choice(list("IIXYZ"), n)) for _ in range(2)] for _ in range(3)]
        readout = {"observables": [SparsePauliOp(two, rng.normal(size=2)) for two in labels]}
    return Program.compile(circuit, weights=list(circuit.parameters), **readout)


def numbers_of(simulator: DensitySimulator | NoisyConeSimulator, program: Program, seed: int) -> list[np.ndarray]:
    """Values, gradients by some angles, and variances."""
    rng = np.random.default_rng(seed)
    angles, upstream = rng.normal(size=(3, program.num_columns)), rng.normal(size=(3, program.num_outputs))
    gradients = simulator.pullback(angles, upstream, None, rng.random(program.num_columns) < 0.8)
    variances = simulator.variances_of_one_shot(angles, None, None, None, upstream)
    return [simulator.values(angles)[0], gradients, variances]


def check(
    program: Program,
    model: NoiseModel,
    *,
    seed: int = 0,
    most_outcomes: Sequence[int] = (noisy_cones._MOST_QUBITS_OF_OUTCOMES,),
) -> None:
    """By light cones, for each number of qubits whose outcomes are tabulated, as by the whole density matrix."""
    backend = DensityMatrixBackend(model)
    circuits = noisy_circuits(program, backend.simulator, backend.transpiler)
    whole = numbers_of(DensitySimulator(circuits, program.readout), program, seed)
    for most in most_outcomes:
        with patch.object(noisy_cones, "_MOST_QUBITS_OF_OUTCOMES", most):
            cones = noisy_cones.simulator_of(circuits, program.readout, np.float64)
            assert isinstance(cones, NoisyConeSimulator)
            found = numbers_of(cones, program, seed)
        for name, got, wanted in zip(("values", "gradients", "variances"), found, whole, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-12, err_msg=f"{name} with outcomes of {most} qubits")


@pytest.mark.parametrize("seed", range(24))
def test_random_circuits(by_cones, seed):
    program = random_program(seed)
    if not program.readout.groups:
        pytest.skip("nothing is measured")
    check(program, MODELS[seed % 3](), seed=seed, most_outcomes=(noisy_cones._MOST_QUBITS_OF_OUTCOMES, 0))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("before_map", lambda ptm, behind: None),
        ("before_rotation", lambda letters, behind: behind),
        ("IDENTITY", 1 | 1 << 3),
    ],
    ids=["channels do nothing", "rotations leave letters", "Z is nothing"],
)
def test_cones_that_are_too_small_are_noticed(by_cones, monkeypatch, name, wrong):
    monkeypatch.setattr(noisy_cones, name, wrong)
    with pytest.raises(AssertionError):
        check_several()


def check_several() -> None:
    for seed in range(1, 24):
        if random_program(seed).readout.groups:
            check(random_program(seed), MODELS[seed % 3](), seed=seed)


# ------------------------------------------------------------------------------------------------- wide


def chain(n: int, layers: int = 2) -> tuple[QuantumCircuit, ParameterVector]:
    """Rotations and a ladder of CZ, which are diagonal: a layer reaches one neighbour on each side."""
    weights = ParameterVector("w", 2 * n * layers)
    circuit, free = QuantumCircuit(n), iter(weights)
    for _ in range(layers):
        for qubit in range(n):
            circuit.ry(next(free), qubit)
            circuit.rx(next(free), qubit)
        for qubit in range(n - 1):
            circuit.cz(qubit, qubit + 1)
    return circuit, weights


def layer_of(n: int, layers: int = 2, **options: Any) -> QuantumLayer:
    circuit, weights = chain(n, layers)
    options = {"backend": DensityMatrixBackend(depolarising()), "seed": 2, **options}
    return QuantumLayer(circuit, inputs=weights, **options).to(torch.float64)


def points(rows: int, layer: QuantumLayer) -> torch.Tensor:
    return 0.2 + 1.2 * torch.rand(rows, layer.program.num_inputs, dtype=torch.float64)


def simulator_of(layer: QuantumLayer) -> NoisyConeSimulator:
    simulator = layer.backend._simulator(layer.program)
    assert isinstance(simulator, NoisyConeSimulator)
    return simulator


def test_eight_qubits_beside_the_whole_density_matrix():
    layer = layer_of(8)
    simulator_of(layer)
    check(layer.program, depolarising())


def test_a_hundred_qubits_are_rows_of_a_few_circuits():
    """The inner qubits of a chain see as much of it as those of a short one, with the same noise."""
    short, long = layer_of(9), layer_of(100)
    assert len(simulator_of(long)._exact.parts) == len(simulator_of(short)._exact.parts) <= 4
    x = points(1, long).requires_grad_()
    values = long(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    few = x.detach().reshape(1, 2, 100, 2)[:, :, 50:59].reshape(1, -1).requires_grad_()
    torch.testing.assert_close(short(few)[:, 3:6], values[:, 53:56], atol=1e-12, rtol=0)
    assert gradient.count_nonzero() > 300


def test_the_plan_says_what_is_simulated():
    assert layer_of(40).plan().splitlines() == [
        "Noisy light cones in place of a density matrix of 40 qubits; those that are alike are one circuit:",
        "  36 x 4 qubits, 8 angles: outputs 2, 3, 4, 5, 6, 7, ..., 37",
        "  1 x 4 qubits, 10 angles: outputs 38, 39",
        "  1 x 3 qubits, 10 angles: outputs 0, 1",
    ]
    assert layer_of(3).plan() == "1 circuit with noise, 3 qubits: up to 64 numbers for each row."


@pytest.mark.parametrize("joint", [True, False])
def test_shots(joint):
    """Joint draws of parts that nothing connects; or one cone at a time."""
    n = 24
    circuit = QuantumCircuit(n)
    angles = ParameterVector("a", n)
    for qubit in range(n):
        circuit.ry(angles[qubit], qubit)
    for start in range(0, n, 3):
        circuit.cx(start, start + 1)
        circuit.cz(start + 1, start + 2)
        circuit.rx(0.7, [start, start + 1, start + 2])
    options = {"backend": DensityMatrixBackend(depolarising(), joint_shots=joint)}
    layer = QuantumLayer(circuit, inputs=angles, shots=SHOTS, seed=0, **options)
    exact = QuantumLayer(circuit, inputs=angles, **options)
    simulator_of(layer)
    x = points(20, layer)
    with torch.no_grad():
        known, measured = exact(x).numpy(), layer(x).numpy()
    errors = np.sqrt((1 - known**2) / SHOTS)
    np.testing.assert_allclose(layer.last_run.standard_errors, errors, atol=8 / SHOTS)
    z = (measured - known) / errors
    assert 1e-3 < stats.chi2.cdf((z**2).sum(), z.size) < 1 - 1e-3
    with torch.no_grad():
        repeated = layer(x[:1].expand(1000, n))[:, :2].numpy()
        exact(x[:1])
        of_one_shot = exact.last_run._covariance.of_one_shot
    along = [of_one_shot(np.eye(n)[which].sum(axis=0)[None])[0] for which in ([0, 1], [0], [1])]
    correlation = (along[0] - along[1] - along[2]) / 2 / np.sqrt(along[1] * along[2])
    assert abs(correlation) > 0.15, "the two have one cone, and are drawn together in either case"
    assert abs(np.corrcoef(repeated.T)[0, 1] - correlation) < 4 / 1000**0.5


def test_shots_that_must_be_drawn_together_and_do_not_fit():
    layer = layer_of(40)
    x = points(1, layer)
    with pytest.raises(MemoryError, match=r"drawn together.* of 40 qubits.*joint_shots=False.*shots=None"):
        layer(x, shots=100)
    layer(x)
    assert np.isfinite(layer.last_run.predicted(1000).standard_errors).all(), "from products of strings"
    alone = layer_of(40, backend=DensityMatrixBackend(depolarising(), joint_shots=False))
    assert np.isfinite(alone(x, shots=100).numpy()).all()


def test_cones_that_are_too_wide():
    n = 30
    circuit = QuantumCircuit(n)
    circuit.rx(Parameter("a"), 0)
    for qubit in range(n - 1):
        circuit.cx(qubit, qubit + 1)
        circuit.rx(0.3, qubit + 1)
    backend = DensityMatrixBackend(depolarising())
    with pytest.raises(MemoryError, match=r"30 qubits with noise needs .* GiB"):
        QuantumLayer(circuit, weights=list(circuit.parameters), observables=["Z" * n], backend=backend)


def test_backends_with_the_option_are_pickled_and_printed():
    backend = DensityMatrixBackend(depolarising(), joint_shots=False)
    assert "joint_shots=False" in repr(backend)
    assert pickle.loads(pickle.dumps(backend)).joint_shots is False
    with pytest.raises(TypeError, match=r"joint_shots: got 1 .*expected True or False"):
        DensityMatrixBackend(joint_shots=1)


@pytest.mark.slow
def test_a_layer_on_all_couplings_of_a_device():
    """The noise of each gate where it is: a qubit with three neighbours, beside a simulation of those four alone."""
    device = pytest.importorskip("qiskit_ibm_runtime.fake_provider").FakeMontrealV2()
    n = device.num_qubits
    edges = sorted({tuple(sorted(edge)) for edge in device.coupling_map.get_edges()})
    centre = max(range(n), key=lambda qubit: sum(qubit in edge for edge in edges))
    near = [centre, *sorted({*sum((edge for edge in edges if centre in edge), ())} - {centre})]
    assert len(near) == 4
    angles = ParameterVector("a", 2 * n)

    def circuit(qubits: list[int]) -> QuantumCircuit:
        one = QuantumCircuit(len(qubits))
        for i, qubit in enumerate(qubits):
            one.ry(angles[2 * qubit], i)
            one.rx(angles[2 * qubit + 1], i)
        for edge in edges:
            if set(edge) <= set(qubits):
                one.cz(*map(qubits.index, edge))
        one.rx(0.6, range(len(qubits)))
        return one

    def layer(qubits: list[int], **options: Any) -> QuantumLayer:
        own = [angles[2 * qubit + part] for qubit in qubits for part in (0, 1)]
        return QuantumLayer(circuit(qubits), inputs=own, **options)

    def placed(qubits: list[int]) -> DensityMatrixBackend:
        return DensityMatrixBackend(device=device, initial_layout=qubits, optimization_level=1)

    everywhere = layer([*range(n)], backend=placed([*range(n)]))
    simulator_of(everywhere)
    x = points(3, everywhere)
    few = x.reshape(3, n, 2)[:, near].reshape(3, 8)
    values, alone = everywhere(x)[:, centre], layer(near, backend=placed(near))(few)[:, 0]
    difference = (values - alone).abs().max()
    assert difference < 0.02, "the neighbours' other gates are noisy too, which reaches this qubit through them"
    assert (values - layer([*range(n)])(x)[:, centre]).abs().min() > 2 * difference
