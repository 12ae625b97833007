"""From the user's noise to a simulator with that noise: this package's own, or Qiskit Aer's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from qiskit_torch_bridge import AerBackend, Backend, DensityMatrixBackend, Program

from .noise_settings import OWN_SIMULATION, NoiseSettings

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel

NANOSECONDS = 1e-3  # in microseconds


class NoisyBackend(AerBackend):
    """Aer with the user's noise: circuits are translated into the machine's gates, and none of those is merged.

    Args:
        noise: The noise.
        method: Aer's; ``"density_matrix"`` samples outcomes also where trajectories would be thought faster.
    """

    def __init__(self, noise: NoiseSettings, *, method: str = "automatic") -> None:
        from qiskit_aer import AerSimulator  # which takes a moment

        super().__init__(AerSimulator(noise_model=_noise_model(noise), method=method))
        self._named = noise.named

    def prepare(self, program: Program) -> None:
        """Translates a program's circuits.

        Raises:
            ValueError: If the machine's gates do not suffice, or noise would be lost.
        """
        with _explained(program, self._named):
            super().prepare(program)


class ExactNoisyBackend(DensityMatrixBackend):
    """The same noise in this package's own simulation: readout errors in exact values too, and adjoint gradients.

    Args:
        noise: The noise.
    """

    def __init__(self, noise: NoiseSettings) -> None:
        super().__init__(_noise_model(noise))
        self._named = noise.named

    def prepare(self, program: Program) -> None:
        """See :meth:`NoisyBackend.prepare`."""
        with _explained(program, self._named):
            super().prepare(program)


@contextmanager
def _explained(program: Program, named: Collection[str]) -> Iterator[None]:
    """Says which gates are missing where circuits cannot be translated into those that are named."""
    try:
        yield
    except ValueError as error:
        if "Unable to translate" not in str(error):
            raise
        written = sorted(program.circuit.count_ops().keys() - {"barrier"})
        raise ValueError(
            f"noise: got the gates {', '.join(sorted(named))}, expected some that the circuit's can be translated into "
            f"({', '.join(written)}; h and sdg before measurements of X and Y); name more gates, with 0 where they have "
            "no noise, or all of one or two qubits by 1q or 2q."
        ) from error


SIMULATIONS: Mapping[str, Callable[[NoiseSettings], Backend]] = {OWN_SIMULATION: ExactNoisyBackend, "aer": NoisyBackend}
"""What simulates noise of the user's own, by the backend's word."""


def assignment(noise: NoiseSettings) -> np.ndarray:
    """Shape (2, 2): from the probabilities of what there is to those of what is read."""
    zero_as_one, one_as_zero = noise.zero_as_one, noise.one_as_zero
    return np.array([[1 - zero_as_one, one_as_zero], [zero_as_one, 1 - one_as_zero]])


def _noise_model(noise: NoiseSettings) -> NoiseModel:
    """After a gate its depolarising channel, then each qubit's thermal relaxation; readout errors before the outcome."""
    from qiskit_aer.noise import NoiseModel, QuantumError, ReadoutError, depolarizing_error, thermal_relaxation_error

    model = NoiseModel(basis_gates=[*noise.gates(1), *noise.gates(2)])
    for qubits in (1, 2):
        for gate in noise.gates(qubits):
            channels = []
            if probability := noise.depolarizing_of(gate):
                channels.append(depolarizing_error(probability, qubits))
            if duration := noise.duration_of(gate):
                one = thermal_relaxation_error(*noise.relaxation_times, duration * NANOSECONDS)
                channels.append(one if qubits == 1 else one.tensor(one))
            if channels:
                model.add_all_qubit_quantum_error(reduce(QuantumError.compose, channels), [gate])
    if noise.zero_as_one or noise.one_as_zero:
        model.add_all_qubit_readout_error(ReadoutError(assignment(noise).T))  # of rows for what there is
    return model
