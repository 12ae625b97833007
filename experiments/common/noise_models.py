"""From the user's noise to Qiskit Aer's simulator with that noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qiskit_torch_bridge import AerBackend, Program

from .noise_settings import NoiseSettings

if TYPE_CHECKING:
    from qiskit_aer.noise import NoiseModel, QuantumError

NANOSECONDS = 1e-3  # in microseconds


def noise_model(noise: NoiseSettings) -> NoiseModel:
    """The noise as Aer has it; its basis gates are the machine's gates.

    Returns:
        After a gate its depolarising channel, then each qubit's thermal relaxation; readout errors before the outcome.
    """
    from qiskit_aer.noise import NoiseModel, ReadoutError  # which takes a moment

    gates = {qubits: noise.gates(qubits) for qubits in (1, 2)}
    model = NoiseModel(basis_gates=[*gates[1], *gates[2]])
    for qubits, names in gates.items():
        for gate in names:
            if (error := _gate_error(noise, gate, qubits)) is not None:
                model.add_all_qubit_quantum_error(error, [gate])
    if noise.zero_as_one or noise.one_as_zero:
        model.add_all_qubit_readout_error(ReadoutError(assignment(noise).T))  # of rows for what there is
    return model


class NoisyBackend(AerBackend):
    """A simulator with the user's noise: circuits are translated into the machine's gates, and none of those is merged.

    Args:
        noise: The noise.
        method: Aer's; ``"density_matrix"`` samples outcomes also where trajectories would be thought faster.
    """

    def __init__(self, noise: NoiseSettings, *, method: str = "automatic") -> None:
        from qiskit_aer import AerSimulator

        super().__init__(AerSimulator(noise_model=noise_model(noise), method=method))
        self._named = sorted(noise.named)

    def prepare(self, program: Program) -> None:
        """Translates a program's circuits.

        Raises:
            ValueError: If the machine's gates do not suffice, or noise would be lost.
        """
        try:
            super().prepare(program)
        except ValueError as error:
            if "Unable to translate" not in str(error):
                raise
            written = sorted(program.circuit.count_ops().keys() - {"barrier"})
            raise ValueError(
                f"noise: got the gates {', '.join(self._named)}, expected some that the circuit's can be translated into "
                f"({', '.join(written)}; h and sdg before measurements of X and Y); name more gates, with 0 where they have "
                "no noise, or all of one or two qubits by 1q or 2q."
            ) from error


def assignment(noise: NoiseSettings) -> np.ndarray:
    """Shape (2, 2): from the probabilities of what there is to those of what is read."""
    zero_as_one, one_as_zero = noise.zero_as_one, noise.one_as_zero
    return np.array([[1 - zero_as_one, one_as_zero], [zero_as_one, 1 - one_as_zero]])


def _gate_error(noise: NoiseSettings, gate: str, qubits: int) -> QuantumError | None:
    from qiskit_aer.noise import depolarizing_error, thermal_relaxation_error

    probability, duration = noise.depolarizing_of(gate), noise.duration_of(gate) * NANOSECONDS
    error = depolarizing_error(probability, qubits) if probability else None
    if noise.relaxes and duration:
        relaxation = one = thermal_relaxation_error(*noise.relaxation_times, duration)
        for _ in range(qubits - 1):
            relaxation = relaxation.tensor(one)
        error = relaxation if error is None else error.compose(relaxation)
    return error
