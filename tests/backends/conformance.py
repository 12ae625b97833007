"""A circuit with its values and derivatives by Qiskit, and one backend of each kind, for the tests of backends.

The reference is Qiskit's own ``Statevector`` (or ``DensityMatrix``) of the user's circuit with numbers in it, and central
differences of that; nothing of this package.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorEstimator, StatevectorSampler
from qiskit.providers import BackendV2
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import DensityMatrix, Pauli, SparsePauliOp, Statevector
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

from qiskit_torch_bridge import AerBackend, EstimatorBackend, QuantumLayer, SamplerBackend, StatevectorBackend

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


@cache
def manila() -> AerSimulator:
    """The connections and gates of a small device; nobody changes it."""
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
    return any(bool((a - b).abs().max() > limit) for a, b, limit in zip(wrong, expected, limits, strict=True))


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


def backends(*families: dict[str, Callable[[], Any]], slow: Sequence[str] = ()) -> pytest.MarkDecorator:
    """One test a backend; those named are slow: others are the same to what is tested."""
    merged = {name: make for family in families for name, make in family.items()}
    cases = [pytest.param(make, id=name, marks=[pytest.mark.slow] * (name in slow)) for name, make in merged.items()]
    return pytest.mark.parametrize("make", cases)


# ------------------------------------------------------------------------------------------------- conformance


class Calls:
    """Counts the calls of a method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str = "run") -> None:
        self.count = 0
        method = getattr(owner, name)

        def counted(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


def one_qubit_layer(**options: Any) -> QuantumLayer:
    qc = QuantumCircuit(1)
    qc.ry(X[0], 0)
    return QuantumLayer(qc, inputs=[X[0]], **options)
