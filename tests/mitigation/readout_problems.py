"""Circuits on devices whose readout errors are known, and repetitions of their evaluation."""

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, ParameterVector
from qiskit_aer.noise import NoiseModel, ReadoutError
from scipy.stats import chi2

from qiskit_torch_bridge import Estimate, MitigatedBackend, Program, QuantumLayer

RATES = [(0.02, 0.08), (0.05, 0.01), (0.1, 0.03)]  # of each qubit: 1 is read for 0, and 0 for 1
INPUTS = ParameterVector("x", 3)
FEATURES = torch.tensor([[0.3, 0.9, 1.4], [2.0, 0.5, 0.1]], dtype=torch.float64)
OBSERVABLES = ["ZZI", "XIX", {"ZII": 0.5, "IZZ": 2.0, "III": 0.3}]
READOUTS = {
    "observables": {"observables": OBSERVABLES},
    "probabilities": {"probabilities": [2, 0]},
    "classes": {"probabilities": [0, 1, 2], "interpret": lambda outcome: outcome.bit_count() % 2},
    "not all classes": {"probabilities": [0, 1, 2], "interpret": lambda outcome: 3 * (outcome > 4)},
}


class NumbersOnly(Gate):
    """A rotation that is only defined for numbers."""

    def __init__(self, angle):
        super().__init__("numbers_only", 1, [angle])

    def _define(self):
        definition = QuantumCircuit(1)
        definition.ry(float(self.params[0]), 0)
        self.definition = definition


def misreading(rates=RATES) -> NoiseModel:
    """No errors but those of readout."""
    noise = NoiseModel()
    for qubit, (first, second) in enumerate(rates):
        noise.add_readout_error(ReadoutError([[1 - first, first], [second, 1 - second]]), [qubit])
    return noise


def circuit() -> QuantumCircuit:
    entangled = QuantumCircuit(3)
    for qubit in range(3):
        entangled.ry(INPUTS[qubit], qubit)
    entangled.cx(0, 1)
    entangled.cx(1, 2)
    return entangled


def layer_of(backend=None, readout="observables", **options) -> QuantumLayer:
    return QuantumLayer(circuit(), inputs=INPUTS, backend=backend, **READOUTS[readout], **options)


def ideal(readout="observables") -> np.ndarray:
    return layer_of(readout=readout)(FEATURES).numpy()


def repeated(backend, methods, repetitions: int, shots: int, readout="observables") -> list[Estimate]:
    """Evaluations of the circuit, each with a calibration of its own."""
    program = Program.compile(circuit(), inputs=INPUTS, **READOUTS[readout])
    seeds = np.random.SeedSequence(5).spawn(repetitions)
    # A calibration belongs to a stream of seeds: the entropy, of which each repetition has another.
    streams = [np.random.SeedSequence(int(seed.generate_state(1)[0]), spawn_key=(0,)) for seed in seeds]
    backends = [MitigatedBackend(backend, methods) for _ in streams]
    angles = FEATURES.numpy()
    return [one.evaluate(program, angles, shots=shots, seed=seed) for one, seed in zip(backends, streams, strict=True)]


def standardised(estimates, expected, upstream=None) -> np.ndarray:
    """Shape (repetitions, ...): errors of the values, or of their sums along ``upstream``, in standard errors."""
    if upstream is None:
        return np.array([(each.values - expected) / np.sqrt(each.variances) for each in estimates])
    errors = [((each.values - expected) * upstream).sum(axis=1) for each in estimates]
    variances = [each.covariance.along(upstream) for each in estimates]
    return np.array(errors) / np.sqrt(variances)


def are_standard_normal(scores: np.ndarray) -> bool:
    """Whether means and squares of each column could be those of standard normal numbers (p > 1e-5 for all together)."""
    repetitions = len(scores)
    columns = scores.reshape(repetitions, -1)
    level = 1e-5 / columns.shape[1] / 2
    squares = (columns**2).sum(axis=0)
    means = columns.sum(axis=0) ** 2 / repetitions
    within = chi2.ppf(level, repetitions) < squares
    return bool((within & (squares < chi2.isf(level, repetitions)) & (means < chi2.isf(level, 1))).all())
