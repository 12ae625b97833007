"""Settings of the study of expressibility; the defaults are the full setting."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.kinds import PositiveInt
from ..common.settings import StudySettings

CIRCUITS_OF_SIM = 19
LEAST_DATA = 19  # from which on the effective dimension is defined


@dataclass(frozen=True, kw_only=True)
class ExpressibilitySettings(StudySettings):
    """Expressibility, entangling capability and effective dimension, beside published values.

    The nineteen circuits of Sim et al., Adv. Quantum Technol. 2, 1900070 (2019), and those of qiskit_torch_bridge.circuits,
    on four qubits; and the three models of Abbas et al., Nat. Comput. Sci. 1, 403 (2021), with two circuits of this
    library. All is simulated exactly at random weights.

    Attributes:
        seed: Makes every cell repeatable; the draws of weights and inputs that Abbas et al. published are those of seed 0.
        circuits: The circuits of Sim et al., by their numbers.
        layers: How often each circuit is repeated.
        samples: Fidelities for each expressibility, and states for each entangling capability.
        weight_samples: Draws of weights for each effective dimension; 100 were published.
        input_samples: Inputs for each effective dimension; 100 were published.
        data: Numbers of data that the effective dimension is for.
    """

    circuits: tuple[PositiveInt, ...] = tuple(range(1, CIRCUITS_OF_SIM + 1))
    layers: tuple[PositiveInt, ...] = (1, 3)
    samples: PositiveInt = 100_000
    weight_samples: PositiveInt = 100
    input_samples: PositiveInt = 100
    data: tuple[PositiveInt, ...] = (1000, 2000, 8000, 10000, 40000, 60000, 100000, 150000, 200000, 500000, 1000000)

    def __post_init__(self) -> None:
        if not self.circuits or max(self.circuits) > CIRCUITS_OF_SIM:
            raise ValueError(f"--circuits: got {list(self.circuits)}, expected numbers from 1 to {CIRCUITS_OF_SIM}.")
        if not self.layers:
            raise ValueError("--layers: got none, expected at least one number.")
        if self.samples < 2:
            raise ValueError(f"--samples: got {self.samples}, expected at least 2.")
        if self.weight_samples < 2:
            raise ValueError(f"--weight-samples: got {self.weight_samples}, expected at least 2, for standard errors.")
        if not self.data or min(self.data) < LEAST_DATA:
            raise ValueError(f"--data: got {list(self.data)}, expected numbers from {LEAST_DATA} on.")
