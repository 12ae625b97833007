"""Every backend gives the same answers: a conformance suite, then noise, layouts, chunks and words.

The reference is Qiskit's own ``Statevector`` (or ``DensityMatrix``) of the user's circuit with numbers in it, and central
differences of that; nothing of this package.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import (
    BackendEstimatorV2,
    BackendSamplerV2,
    StatevectorEstimator,
    StatevectorSampler,
)
from qiskit.providers import BackendV2
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import DensityMatrix, Kraus, Pauli, SparsePauliOp, Statevector, pauli_basis
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import (
    AerBackend,
    EstimatorBackend,
    QuantumLayer,
    SamplerBackend,
    StatevectorBackend,
)
from qiskit_torch_bridge.backends import aer as aer_module
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.simulator import engine as engine_module

X = ParameterVector("x", 2)
W = ParameterVector("w", 3)
FEATURES = torch.tensor([[0.3, 1.1], [-0.7, 0.4], [2.1, -1.3]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.8, -1.2, 0.5], dtype=torch.float64)
OBSERVABLES = ["ZII", Pauli("IXZ"), SparsePauliOp(["IYX", "ZZI", "III"], [0.5, -1.0, 0.25])]
UPSTREAM = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
SHOTS = 2000
LAYOUT_SHOTS = 1000

Readout = dict[str, Any]
EXPECTATION: Readout = {"observables": OBSERVABLES}
PROBABILITIES: Readout = {"probabilities": [2, 0]}


def model() -> QuantumCircuit:
    """Shared parameters, expressions, controlled rotations; its two-qubit gates do not fit on a line."""
    qc = QuantumCircuit(3)
    qc.ry(X[0], 0)
    qc.rx(X[1] + X[0], 1)
    qc.crx(W[0], 0, 1)
    qc.cx(1, 2)
    qc.ry(W[1] * X[0], 2)
    qc.rzz(W[2], 0, 2)
    qc.cp(X[0], 0, 1)
    qc.h(0)
    return qc


def small_model() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.rx(X[1] + X[0], 1)
    qc.crx(W[0], 0, 1)
    qc.ry(W[1], 1)
    qc.rzz(W[2] * X[1], 0, 1)
    qc.h(0)
    return qc


def aer(**options: Any) -> AerSimulator:
    """Aer's threads wait for each other on circuits this small when the machine is busy; one does not wait."""
    return AerSimulator(max_parallel_threads=1, **options)


def noiseless(device: Any) -> AerSimulator:
    """A device's coupling map and basis gates without its noise."""
    return AerSimulator.from_backend(device, noise_model=None, max_parallel_threads=1)


def runtime(module: str) -> Any:
    """A module of qiskit-ibm-runtime; a test that asks for it is skipped where the extra is not installed."""
    return pytest.importorskip(f"qiskit_ibm_runtime.{module}", reason="needs qiskit-ibm-runtime")


@cache
def fake(name: str) -> BackendV2:
    """A fake device, which is read from files; nobody changes it."""
    return getattr(runtime("fake_provider"), name)()


def manila() -> AerSimulator:
    return noiseless(fake("FakeManilaV2"))


def read(state: Statevector | DensityMatrix, readout: Readout) -> np.ndarray:
    if "observables" in readout:
        return np.array([state.expectation_value(SparsePauliOp(o)).real for o in readout["observables"]])
    return state.probabilities(readout["probabilities"])


def simulated(qc: QuantumCircuit, readout: Readout, values: Sequence[float]) -> np.ndarray:
    """Outputs at values of the inputs, then the weights."""
    parameters = [p for p in (*X, *W) if p in qc.parameters]
    return read(Statevector(qc.assign_parameters(dict(zip(parameters, values, strict=True)))), readout)


def reference(run: Callable[[Sequence[float]], np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (N, M), and Jacobians (N, M, P) by the columns of the inputs, then the weights, by central differences."""
    points = np.hstack([FEATURES.numpy(), np.tile(WEIGHTS.numpy(), (len(FEATURES), 1))])
    step = 1e-5 * np.eye(points.shape[1])
    jacobian = [np.stack([(run(p + s) - run(p - s)) / 2e-5 for s in step], axis=1) for p in points]
    return torch.from_numpy(np.array([run(p) for p in points])), torch.from_numpy(np.array(jacobian))


def make_layer(qc: QuantumCircuit, **options: Any) -> QuantumLayer:
    return QuantumLayer(qc, **{"inputs": X, "weights": W, "init": WEIGHTS, "seed": 7} | options)


def step(layer: QuantumLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, and the gradients of ``values @ UPSTREAM`` by the inputs (N, I) and by the weights (W,)."""
    features = FEATURES.clone().requires_grad_()
    values = layer(features)
    upstream = UPSTREAM if values.shape[1] == 3 else torch.tensor([1.0, -0.5, 0.25, 0.0], dtype=torch.float64)
    by_inputs, by_weights = torch.autograd.grad((values @ upstream).sum(), [features, layer.weights])
    return values.detach(), by_inputs, by_weights


def expected_step(values: torch.Tensor, jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    upstream = UPSTREAM if values.shape[1] == 3 else torch.tensor([1.0, -0.5, 0.25, 0.0], dtype=torch.float64)
    gradients = torch.einsum("m,nmp->np", upstream, jacobian)
    return values, gradients[:, :2], gradients[:, 2:].sum(dim=0)


def assert_step(layer: QuantumLayer, expected: Sequence[torch.Tensor], *, atol: Sequence[float]) -> None:
    for name, got, want, tolerance in zip(
        ("values", "by inputs", "by weights"), step(layer), expected, atol, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


EXACT_ATOL = (1e-10, 1e-7, 1e-7)


def shots_atol(readout: Readout, shots: int = SHOTS) -> tuple[float, float, float]:
    """Five standard errors of what :func:`step` returns.

    A value: its norm over the root of the shots. A gradient by one angle has a variance of at most norm**2 / (2 shots); the
    norms times the upstream add up to ``size``. An input moves at most 4 angles, squared slopes 4.5 in all; a weight moves
    angles with squared slopes of at most 5 over the three rows.
    """
    norm, size = (1.5, 1.9) if "observables" in readout else (0.5, 0.9)
    return 5 * norm / shots**0.5, 5 * size * (4.5 / 2 / shots) ** 0.5, 5 * size * (5 / 2 / shots) ** 0.5


REFERENCES = {
    name: expected_step(*reference(partial(simulated, model(), readout)))
    for name, readout in (("expectation", EXPECTATION), ("probabilities", PROBABILITIES))
}
READOUTS = {"expectation": EXPECTATION, "probabilities": PROBABILITIES}


def further_off(wrong: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], limits: Sequence[float]) -> bool:
    """Whether some number differs by more than the limit of its kind."""
    return any(
        bool((mine - theirs).abs().max() > limit) for mine, theirs, limit in zip(wrong, expected, limits, strict=True)
    )


EXACT: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "word statevector": lambda: "statevector",
    "statevector": StatevectorBackend,
    "word aer": lambda: "aer",
    "aer": aer,
    "aer statevector": lambda: aer(method="statevector"),
    "aer density matrix": lambda: aer(method="density_matrix"),
    "aer matrix product state": lambda: aer(method="matrix_product_state"),
    "aer of manila": manila,
    "aer of manila, level 3": lambda: AerBackend(manila(), optimization_level=3),
    "aer of a 127-qubit device": lambda: noiseless(fake("FakeSherbrooke")),
    "aer of a generic device": lambda: noiseless(GenericBackendV2(4, seed=1)),
}
EXACT_ESTIMATORS: dict[str, Callable[[], Any]] = {
    "StatevectorEstimator": StatevectorEstimator,
    "Aer EstimatorV2": AerEstimator,
    "StatevectorEstimator with a device": lambda: EstimatorBackend(StatevectorEstimator(), device=manila()),
}
SAMPLERS: dict[str, Callable[[], Any]] = {
    "StatevectorSampler": lambda: StatevectorSampler(seed=3),
    "StatevectorSampler with a device": lambda: SamplerBackend(StatevectorSampler(), device=manila()),
    "Aer SamplerV2": lambda: AerSampler.from_backend(aer()),
    "Aer SamplerV2 of manila": lambda: AerSampler.from_backend(manila()),
    "BackendSamplerV2 of aer": lambda: BackendSamplerV2(backend=aer()),
    "BackendSamplerV2 of manila": lambda: BackendSamplerV2(backend=manila()),
    "IBM Sampler of aer": lambda: runtime("executor_sampler").Sampler(mode=aer()),
    "IBM Sampler of manila": lambda: runtime("executor_sampler").Sampler(mode=manila()),
}
SHOT_ESTIMATORS: dict[str, Callable[[], Any]] = {
    **EXACT_ESTIMATORS,
    "BackendEstimatorV2 of manila": lambda: BackendEstimatorV2(backend=manila()),
    "IBM Estimator of aer": lambda: runtime("executor_estimator").Estimator(mode=aer()),
    "IBM Estimator of manila": lambda: runtime("executor_estimator").Estimator(mode=manila()),
}
WITH_SHOTS = {
    **{name: EXACT[name] for name in ("statevector", "aer", "aer matrix product state", "aer of manila")},
    **SAMPLERS,
}
ALL = EXACT | SAMPLERS | SHOT_ESTIMATORS


def backends(*families: dict[str, Callable[[], Any]]) -> pytest.MarkDecorator:
    merged = {name: make for family in families for name, make in family.items()}
    return pytest.mark.parametrize("make", merged.values(), ids=merged.keys())


# ------------------------------------------------------------------------------------------------- conformance


@backends(EXACT)
@pytest.mark.parametrize("readout", READOUTS)
def test_exact_values_and_gradients(make, readout):
    layer = make_layer(model(), backend=make(), **READOUTS[readout])
    assert_step(layer, REFERENCES[readout], atol=EXACT_ATOL)
    assert layer.total_shots == 0
    assert np.all(layer.last_run.standard_errors == 0.0)


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


@backends(WITH_SHOTS)
@pytest.mark.parametrize("readout", READOUTS)
def test_values_and_gradients_with_shots(make, readout):
    layer = make_layer(model(), backend=make(), shots=SHOTS, **READOUTS[readout])
    assert_step(layer, REFERENCES[readout], atol=shots_atol(READOUTS[readout]))
    assert layer.gradient.name == "parameter_shift"
    assert layer.last_run.circuits == 3 * len(layer.program.readout.groups)
    assert layer.last_run.shots == SHOTS * layer.last_run.circuits
    assert layer.total_shots == SHOTS * layer.total_circuits
    assert layer.last_run.standard_errors.shape == (3, layer.num_outputs)


@backends(SHOT_ESTIMATORS)
def test_estimators_with_shots(make):
    layer = make_layer(model(), backend=make(), shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))
    assert layer.last_run.shots == SHOTS * layer.last_run.circuits


@backends(SAMPLERS, {name: SHOT_ESTIMATORS[name] for name in SHOT_ESTIMATORS if name not in EXACT_ESTIMATORS})
def test_default_shots_are_the_primitives(make):
    layer = make_layer(model(), backend=make(), **EXPECTATION)
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
    layer = QuantumLayer(bell(), backend=make(), observables=["ZZ", "XX", "YY", "II"], seed=1)
    assert layer.weights is None
    assert layer().tolist() == pytest.approx([1.0, 1.0, -1.0, 1.0], abs=0.05)


@backends(ALL)
def test_rows_of_a_circuit_without_inputs(make):
    layer = QuantumLayer(bell(), backend=make(), observables=["ZZ"], seed=1)
    torch.testing.assert_close(layer(torch.zeros(3, 2, 0)), torch.ones(3, 2, 1), rtol=0, atol=0.05)


@backends(ALL)
def test_constant_observables_cost_nothing(make):
    layer = make_layer(
        model(), backend=make(), shots=10, observables=[SparsePauliOp("III", 2.5), SparsePauliOp("ZZZ", 0.0)]
    )
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
        layer = QuantumLayer(
            qc, weights=[theta], backend=make(), observables=observables, init=torch.tensor([0.3]).double(), seed=1
        )
        outputs = layer()
        outputs.sum().backward()
        assert outputs.tolist() == pytest.approx(values, abs=0.16)  # 5 standard errors of the default 1024 shots
        assert layer.weights.grad.item() == pytest.approx(gradient, abs=0.16)


@backends(ALL)
def test_pickle_and_deepcopy(make):
    layer = make_layer(model(), backend=make(), **EXPECTATION)
    before = layer(FEATURES)
    backend = layer.backend
    assert copy.deepcopy(backend) is backend
    restored = make_layer(model(), backend=pickle.loads(pickle.dumps(backend)), **EXPECTATION)
    assert repr(restored.backend) == repr(backend)
    after = restored(FEATURES)
    seedless = type(getattr(backend, "primitive", None)).__module__.startswith("qiskit_ibm_runtime")
    atol = 2 * 5 * 1.5 / 4096**0.5 if seedless else 0.0
    torch.testing.assert_close(after, before, rtol=0, atol=atol)


# IBM's primitives take no seed in their local mode; all others repeat to the last bit.
@backends({name: make for name, make in ALL.items() if not name.startswith("IBM")})
def test_one_seed_repeats_to_the_last_bit(make):
    runs = [step(make_layer(model(), backend=make(), shots=50, **EXPECTATION)) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


# ------------------------------------------------------------------------------------------------- one call


class Calls:
    """Counts the calls of a method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str = "run") -> None:
        self.count = 0
        method = getattr(owner, name)

        def counted(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


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
    layer = make_layer(model(), backend=backend, shots=20, **EXPECTATION)
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


# ------------------------------------------------------------------------------------------------- noise


def noisy_model() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(X[0], 0)
    qc.ry(X[1], 1)
    qc.cx(0, 1)
    qc.rz(W[0], 1)
    qc.ry(W[1], 0)
    qc.cx(1, 0)
    qc.ry(W[2] * X[0], 1)
    return qc


STRENGTHS = {"ry": 0.06, "cx": 0.13}


def depolarising_model() -> NoiseModel:
    noise = NoiseModel(basis_gates=["h", "sdg", "ry", "rz", "cx"])
    noise.add_all_qubit_quantum_error(depolarizing_error(STRENGTHS["ry"], 1), ["ry"])
    noise.add_all_qubit_quantum_error(depolarizing_error(STRENGTHS["cx"], 2), ["cx"])
    return noise


def depolarising(strength: float, num_qubits: int) -> Kraus:
    """Takes rho to (1 - p) rho + p 1 / 2**n: the identity with p / 4**n of each Pauli mixed in."""
    weights = np.full(4**num_qubits, strength / 4**num_qubits)
    weights[0] += 1 - strength
    return Kraus([np.sqrt(w) * p for w, p in zip(weights, pauli_basis(num_qubits).to_matrix(), strict=True)])


def noisy_values(readout: Readout, values: Sequence[float]) -> np.ndarray:
    qc = noisy_model()
    bound = qc.assign_parameters(dict(zip((*X, *W), values, strict=True)))
    state = DensityMatrix.from_label("00")
    for instruction in bound.data:
        qubits = [bound.find_bit(qubit).index for qubit in instruction.qubits]
        state = state.evolve(instruction.operation, qubits)
        if instruction.operation.name in STRENGTHS:
            state = state.evolve(depolarising(STRENGTHS[instruction.operation.name], len(qubits)), qubits)
    return read(state, readout)


NOISY_READOUTS = {
    "expectation": {"observables": ["ZI", "IX", SparsePauliOp(["ZZ", "YX"], [0.5, -1.0])]},
    "probabilities": {"probabilities": [1, 0]},
}


@pytest.mark.parametrize("readout", NOISY_READOUTS)
@pytest.mark.parametrize("method", ["automatic", "density_matrix"])
def test_depolarising_noise_is_exact_without_shots(readout, method):
    backend = aer(noise_model=depolarising_model(), method=method)
    layer = make_layer(noisy_model(), backend=backend, **NOISY_READOUTS[readout])
    expected = expected_step(*reference(partial(noisy_values, NOISY_READOUTS[readout])))
    noiseless_values = expected_step(*reference(partial(simulated, noisy_model(), NOISY_READOUTS[readout])))[0]
    assert (expected[0] - noiseless_values).abs().max() > 0.05, "the noise must be visible"
    assert_step(layer, expected, atol=EXACT_ATOL)


def test_depolarising_noise_with_shots():
    backend = aer(noise_model=depolarising_model())
    layer = make_layer(noisy_model(), backend=backend, shots=SHOTS, **NOISY_READOUTS["expectation"])
    expected = expected_step(*reference(partial(noisy_values, NOISY_READOUTS["expectation"])))
    assert_step(layer, expected, atol=shots_atol(EXPECTATION))


def test_depolarising_noise_by_trajectories():
    backend = aer(noise_model=depolarising_model(), method="statevector")
    layer = make_layer(noisy_model(), backend=backend, shots=SHOTS, **NOISY_READOUTS["expectation"])
    expected, _ = reference(partial(noisy_values, NOISY_READOUTS["expectation"]))
    with pytest.warns(UserWarning, match="each shot.*method='density_matrix'"):
        values = layer(FEATURES).detach()
    torch.testing.assert_close(values, expected, rtol=0, atol=shots_atol(EXPECTATION)[0])


def test_noise_by_trajectories_is_not_exact_and_refused_without_shots():
    backend = aer(noise_model=depolarising_model(), method="statevector")
    with pytest.raises(ValueError, match=r"shots: got None.*density_matrix"):
        make_layer(noisy_model(), backend=backend, **EXPECTATION | {"observables": ["ZI"]})


def noise_on(gate: str, num_qubits: int) -> AerSimulator:
    noise = NoiseModel(basis_gates=["h", "sdg", "rx", "ry", "rz", "cx", gate])
    noise.add_all_qubit_quantum_error(depolarizing_error(0.3, num_qubits), [gate])
    return aer(noise_model=noise)


@pytest.mark.parametrize("gate", ["cp", "crx"])
def test_noise_on_a_gate_that_does_not_survive_is_refused(gate):
    """The noise belongs to the gate; a circuit that spells the gate out would run without it, and nobody would know."""
    qc = QuantumCircuit(2)
    qc.h([0, 1])
    getattr(qc, gate)(W[0], 0, 1)
    with pytest.raises(ValueError, match=gate):
        QuantumLayer(qc, weights=[W[0]], backend=noise_on(gate, 2), observables=["XX"])


FLIP_0_TO_1, FLIP_1_TO_0 = 0.05, 0.2


def readout_error() -> AerSimulator:
    noise = NoiseModel()
    error = ReadoutError([[1 - FLIP_0_TO_1, FLIP_0_TO_1], [FLIP_1_TO_0, 1 - FLIP_1_TO_0]])
    noise.add_all_qubit_readout_error(error)
    return aer(noise_model=noise)


def one_qubit_layer(**options: Any) -> QuantumLayer:
    qc = QuantumCircuit(1)
    qc.ry(X[0], 0)
    return QuantumLayer(qc, inputs=[X[0]], **options)


def test_readout_error_needs_shots():
    with pytest.raises(ValueError, match=r"shots: got None.*readout errors.*shots=1000"):
        one_qubit_layer(backend=readout_error())
    layer = one_qubit_layer(backend=readout_error(), shots=10)
    with pytest.raises(ValueError, match="readout errors"):
        layer.shots = None
    assert layer.shots == 10


@pytest.mark.parametrize("make", [readout_error, lambda: AerSampler.from_backend(readout_error())])
def test_readout_error_flips_bits(make):
    """With flips 0 -> 1 of probability a and 1 -> 0 of b: z' = (1 - a - b) z + b - a."""
    angles = torch.tensor([[0.4], [1.3], [2.9]], dtype=torch.float64, requires_grad=True)
    layer = one_qubit_layer(backend=make(), shots=40_000, seed=1)
    values = layer(angles)
    (gradient,) = torch.autograd.grad(values.sum(), angles)
    contrast = 1 - FLIP_0_TO_1 - FLIP_1_TO_0
    expected = contrast * torch.cos(angles.detach()) + FLIP_1_TO_0 - FLIP_0_TO_1
    torch.testing.assert_close(values.detach(), expected, rtol=0, atol=5 / 200)
    torch.testing.assert_close(gradient, -contrast * torch.sin(angles.detach()), rtol=0, atol=5 / 200)


def test_an_ideal_noise_model_is_no_noise():
    layer = one_qubit_layer(backend=aer(noise_model=NoiseModel(), method="statevector"))
    assert layer(torch.tensor([0.3]).double()).item() == pytest.approx(np.cos(0.3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fake("FakeManilaV2"),
        lambda: GenericBackendV2(4, seed=1),
        lambda: runtime("fake_provider") and "fake:manila",
    ],
)
def test_fake_devices_are_simulated_with_their_noise(make):
    with pytest.raises(ValueError, match="readout errors"):
        make_layer(model(), backend=make(), **EXPECTATION)
    layer = make_layer(model(), backend=make(), shots=4000, **EXPECTATION)
    assert isinstance(layer.backend, AerBackend)
    values = layer(FEATURES)
    error = (values - REFERENCES["expectation"][0]).abs().max()
    assert 0.005 < error < 0.25, "noisy, but the same circuit"


# ------------------------------------------------------------------------------------------------- layouts

LINE_LAYOUTS = {2: ([1, 0], [3, 4], [4, 3]), 3: ([1, 0, 2], [4, 3, 2], [0, 2, 4])}
MODELS = {2: small_model, 3: model}
LAYOUT_CASES = [(n, layout) for n, layouts in LINE_LAYOUTS.items() for layout in layouts]
layouts = pytest.mark.parametrize(("n", "layout"), LAYOUT_CASES, ids=[str(layout) for _, layout in LAYOUT_CASES])

LAYOUT_OBSERVABLES = {
    2: {"observables": ["ZI", "IX", SparsePauliOp(["ZZ", "YX"], [0.5, -1.0])]},
    3: EXPECTATION,
}
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
def expected_of(n: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return expected_step(*reference(partial(simulated, MODELS[n](), LAYOUT_READOUTS[kind][n])))


@pytest.mark.parametrize("kind", LAYOUT_READOUTS)
@pytest.mark.parametrize("n", MODELS)
def test_permuted_qubits_are_further_off_than_shots_allow(n, kind):
    """So whatever the noise, a wrong layout fails."""
    readout, expected = LAYOUT_READOUTS[kind][n], expected_of(n, kind)
    for order in list(permutations(range(n)))[1:]:
        permuted = QuantumCircuit(n).compose(MODELS[n](), order)
        wrong = expected_step(*reference(partial(simulated, permuted, readout)))
        assert further_off(wrong, expected, 2 * np.array(shots_atol(readout, LAYOUT_SHOTS))), order


@layouts
@pytest.mark.parametrize("kind", LAYOUT_READOUTS)
@pytest.mark.parametrize("measured", [False, True])
def test_the_layer_transpiles_for_a_layout(n, layout, kind, measured):
    readout = LAYOUT_READOUTS[kind][n]
    qc = MODELS[n]()
    if measured:
        qc.measure_all()
    backend = AerBackend(manila(), optimization_level=3, initial_layout=layout)
    assert_step(make_layer(qc, backend=backend, **readout), expected_of(n, kind), atol=EXACT_ATOL)


@layouts
@pytest.mark.parametrize("kind", LAYOUT_READOUTS)
@pytest.mark.parametrize("measured", ["before", "after", "never"])
@pytest.mark.parametrize("make", [lambda: "statevector", manila, aer], ids=["statevector", "manila", "aer"])
def test_circuits_that_the_user_has_transpiled(n, layout, kind, measured, make):
    readout = LAYOUT_READOUTS[kind][n]
    layer = make_layer(transpiled_by_user(n, layout, measured), backend=make(), **readout)
    assert_step(layer, expected_of(n, kind), atol=EXACT_ATOL)


@layouts
@pytest.mark.parametrize("measured", ["before", "after"])
@pytest.mark.parametrize("make", [lambda: "statevector", manila], ids=["statevector", "manila"])
def test_measurements_of_a_transpiled_circuit_are_read(n, layout, measured, make):
    """probabilities=True follows the classical bits; here bit j holds qubit j of the circuit before transpiling."""
    layer = make_layer(transpiled_by_user(n, layout, measured), backend=make(), probabilities=True)
    values, _ = reference(partial(simulated, MODELS[n](), {"probabilities": list(range(n))}))
    torch.testing.assert_close(layer(FEATURES), values, rtol=0, atol=1e-10)


@layouts
@pytest.mark.parametrize("kind", LAYOUT_READOUTS)
@pytest.mark.parametrize("measured", ["before", "after", "never", "not transpiled"])
def test_samplers_on_a_device_know_the_layout(n, layout, kind, measured):
    readout = LAYOUT_READOUTS[kind][n]
    if measured == "not transpiled":
        sampler = BackendSamplerV2(backend=manila())
        qc, backend = MODELS[n](), SamplerBackend(sampler, initial_layout=layout, optimization_level=3)
    else:
        qc, backend = transpiled_by_user(n, layout, measured), AerSampler.from_backend(manila())
    layer = make_layer(qc, backend=backend, shots=LAYOUT_SHOTS, **readout)
    assert_step(layer, expected_of(n, kind), atol=shots_atol(readout, LAYOUT_SHOTS))


@layouts
@pytest.mark.parametrize("measured", ["before", "after", "never", "not transpiled"])
def test_estimators_on_a_device_know_the_layout(n, layout, measured):
    readout = LAYOUT_OBSERVABLES[n]
    if measured == "not transpiled":
        qc, options = MODELS[n](), {"initial_layout": layout, "optimization_level": 3}
    else:
        qc, options = transpiled_by_user(n, layout, measured), {}
    backend = EstimatorBackend(AerEstimator.from_backend(manila()), **options)
    assert_step(make_layer(qc, backend=backend, **readout), expected_of(n, "expectation"), atol=EXACT_ATOL)


@layouts
@pytest.mark.parametrize("make", [lambda: "statevector", manila, lambda: AerEstimator.from_backend(manila())])
def test_observables_that_have_the_layout_already(n, layout, make):
    ready = on_manila(MODELS[n](), layout)
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
    with pytest.raises(ValueError, match="layout"):
        make_layer(
            transpiled_by_user(2, [3, 4], "never"),
            backend=AerBackend(manila(), initial_layout=[1, 0]),
            observables=["ZZ"],
        )


# ------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("limit", [1, 4, 7])
def test_aer_in_chunks_gives_the_same_answers(monkeypatch, limit):
    whole = step(make_layer(model(), backend="aer", **EXPECTATION))
    monkeypatch.setattr(aer_module, "_MOST_EXPERIMENTS_A_RUN", limit)
    calls = Calls(monkeypatch, AerSimulator)
    for part, all_at_once in zip(step(make_layer(model(), backend="aer", **EXPECTATION)), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=0, atol=1e-12)
    assert calls.count > 2
    layer = make_layer(model(), backend="aer", shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))


def test_aer_chunks_have_seeds_of_their_own(monkeypatch):
    """Equal rows in different chunks, the same position in each, must not share their shots."""
    monkeypatch.setattr(aer_module, "_MOST_EXPERIMENTS_A_RUN", 1)
    layer = one_qubit_layer(backend="aer", shots=1000, seed=1)
    assert len(set(layer(torch.full((8, 1), 1.0)).flatten().tolist())) > 1


@pytest.mark.parametrize("shots", [None, 50])
@pytest.mark.parametrize("rows", [1, 2])
def test_statevector_in_chunks_gives_the_same_answers(monkeypatch, shots, rows):
    """With shots too: the draws do not depend on how the batch is cut."""
    sizes: list[int] = []
    simulate = engine_module.Simulator._simulate

    def counting(self: Any, angles: np.ndarray, *others: Any) -> np.ndarray:
        sizes.append(len(angles))
        return simulate(self, angles, *others)

    monkeypatch.setattr(engine_module.Simulator, "_simulate", counting)
    for name in ("_LEAST_ROWS_SIDE_BY_SIDE", "_ROWS_OF_LONG_BATCHES"):
        monkeypatch.setattr(engine_module, name, 10**6)  # so that a row is a unit, which is never cut
    whole = step(make_layer(model(), shots=shots, **EXPECTATION))
    assert max(sizes) > rows
    sizes.clear()
    monkeypatch.setattr(engine_module, "_BYTES_OF_A_SMALL_PART", rows * 16 * 2**3)
    for part, all_at_once in zip(step(make_layer(model(), shots=shots, **EXPECTATION)), whole, strict=True):
        torch.testing.assert_close(part, all_at_once, rtol=0, atol=1e-14)
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
    layer = QuantumLayer(
        qc,
        inputs=theta,
        observables=observables,
        backend=aer(method="matrix_product_state"),
        shots=shots,
        seed=1,
    )
    expected = expected if observables is None else expected[1:2]
    torch.testing.assert_close(layer(angles), expected, rtol=0, atol=1e-9 if shots is None else 5 / 20)


def test_forty_qubits_exactly_say_what_to_do():
    qc, theta = row_of_qubits(40)
    with pytest.raises(MemoryError, match=r"40 qubits needs 8,192.0 GiB.*matrix_product_state"):
        QuantumLayer(qc, inputs=theta)


# ------------------------------------------------------------------------------------------------- words and objects


@pytest.mark.parametrize("word", ["fake:manila", "fake:fake_manila", "fake:FakeManilaV2", "fake:Manila"])
def test_fake_words(word):
    runtime("fake_provider")
    backend = resolve_backend(word)
    assert isinstance(backend, AerBackend)
    assert "manila" in backend.name


def test_objects_become_backends():
    assert isinstance(resolve_backend(None), StatevectorBackend)
    assert isinstance(resolve_backend("statevector"), StatevectorBackend)
    assert isinstance(resolve_backend("aer"), AerBackend)
    simulator = AerSimulator()
    assert resolve_backend(simulator).simulator is simulator, "as the user configured it"
    assert isinstance(resolve_backend(StatevectorSampler()), SamplerBackend)
    assert isinstance(resolve_backend(StatevectorEstimator()), EstimatorBackend)
    mine = StatevectorBackend()
    assert resolve_backend(mine) is mine


class SomeDevice(BackendV2):
    """A vendor's device: no simulator, no fake."""

    def __init__(self) -> None:
        super().__init__(name="some_device")
        self._inner = manila()

    @property
    def target(self):
        return self._inner.target

    @property
    def max_circuits(self):
        return None

    @classmethod
    def _default_options(cls):
        return AerSimulator().options

    def run(self, run_input, **options):
        return self._inner.run(run_input, **options)


def test_any_other_device_is_sampled():
    backend = resolve_backend(SomeDevice())
    assert isinstance(backend, SamplerBackend)
    layer = make_layer(model(), backend=backend, shots=SHOTS, **EXPECTATION)
    assert_step(layer, REFERENCES["expectation"], atol=shots_atol(EXPECTATION))


class RealDevice(SomeDevice):
    pass


RealDevice.__module__ = "qiskit_ibm_runtime.ibm_backend"


@pytest.mark.parametrize(
    ("backend", "error", "message"),
    [
        ("arr", ValueError, r"got 'arr', expected one of 'statevector', 'aer', 'fake:NAME'"),
        ("fake:", ValueError, r"'fake:NAME'"),
        ("fake:nowhere", ValueError, r"expected one of .*manila.* after the colon"),
        (3, TypeError, r"got 3 \(int\).*AerSimulator"),
        (AerSimulator, TypeError, r"expected one of"),
        (StatevectorSampler, TypeError, r"V2 Sampler or Estimator"),
    ],
)
def test_what_is_no_backend(backend, error, message):
    if backend == "fake:nowhere":
        runtime("fake_provider")
    with pytest.raises(error, match=message):
        one_qubit_layer(backend=backend)


def test_an_ibm_device_itself_takes_the_way_of_hardware():
    """A stand-in that is no fake device by its class: what a service hands out takes the same way."""
    runtime("fake_provider")
    from qiskit_torch_bridge import IBMBackend  # needs the extra

    device = RealDevice()
    layer = make_layer(model(), backend=device, shots=SHOTS, **EXPECTATION)
    assert isinstance(layer.backend, IBMBackend)
    assert layer.backend.device is device
    # IBM's local mode makes a noise model of the device's error rates, so only near the noiseless values.
    assert torch.allclose(layer(FEATURES).detach(), REFERENCES["expectation"][0], atol=0.4)


def test_fake_words_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_ibm_runtime", None)
    with pytest.raises(ImportError, match=r"pip install 'qiskit-torch-bridge\[ibm\]'"):
        resolve_backend("fake:manila")


@backends(SHOT_ESTIMATORS)
def test_estimators_have_no_probabilities(make):
    with pytest.raises(ValueError, match=r"Estimator.*probabilities.*use a Sampler"):
        make_layer(model(), backend=make(), **PROBABILITIES)


@pytest.mark.parametrize(
    "make",
    [
        lambda level: AerBackend(optimization_level=level),
        lambda level: SamplerBackend(StatevectorSampler(), optimization_level=level),
    ],
)
def test_bad_optimization_level(make):
    with pytest.raises(ValueError, match="optimization_level: got 4"):
        make(4)


def test_primitives_of_the_wrong_kind():
    with pytest.raises(TypeError, match="got StatevectorEstimator, expected a V2 Sampler"):
        SamplerBackend(StatevectorEstimator())
    with pytest.raises(TypeError, match="got StatevectorSampler, expected a V2 Estimator"):
        EstimatorBackend(StatevectorSampler())
