"""What a device's own noise model says of the circuits that are sent to it: ``IBMBackend(..., shadow="noisy")``.

The model is the one that Aer makes from the device's calibration (``NoiseModel.from_backend``: a depolarising error and
relaxation with each gate, a readout error of each qubit), or a simulator's own. It is put to the circuits that are sent, on
the device's qubits; the qubits that no result depends on are left out.

**Readout.** Where a primitive twirls measurements, both values of a bit are misread with the mean of their probabilities.
Where an Estimator mitigates measurement errors (TREX; IBM's default), there are no readout errors in the mean, and none in
the model. An Estimator's change of basis is taken to have no errors: IBM's client merges it into the last gates.

**What the model leaves out**, so that it is in the rest: decoherence of qubits that wait (circuits are sent without delays),
crosstalk, leakage, drift since the calibration, errors of the preparation; and of the options ``twirling.enable_gates`` and
``dynamical_decoupling``, which change what errors do. Zero-noise extrapolation is refused: its results are not those of the
circuits that are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...program.channels import NoisyCircuit
from ...program.compiled import Program
from ..base import Backend, Estimate
from ..noise_channels import NotChannelsError, parameters_with_folds, with_noise
from ..results import BoundCircuit
from ..simulated import noise_model_of

if TYPE_CHECKING:
    from ...simulator.density_engine import DensitySimulator

__all__ = ["ModelledDevice", "ModelledNoise", "SentCircuits", "noise_of", "simulator_of"]

_REMEDY = "use shadow=True, which simulates without noise"


@dataclass(frozen=True)
class ModelledNoise:
    """How noise is modelled with a primitive's options.

    Attributes:
        twirls_readout: Whether measurements are twirled.
        mitigates_readout: Whether readout errors are mitigated.
        left_out: The options that change what errors do, and that the model knows nothing of.
    """

    twirls_readout: bool
    mitigates_readout: bool
    left_out: tuple[str, ...]

    @classmethod
    def with_options(cls, options: Any) -> ModelledNoise:
        """As it is with a primitive's finalized options.

        Raises:
            ValueError: If the results with them are not those of the circuits that are sent.
        """
        resilience = getattr(options, "resilience", None)
        if resilience is not None and resilience.zne_mitigation:
            raise ValueError(
                "shadow: got 'noisy' with zero-noise extrapolation (resilience_level=2 or zne_mitigation), whose results "
                f"are not those of the circuits that are sent; {_REMEDY}, or mitigate less."
            )
        enabled = {
            "twirling.enable_gates": options.twirling.enable_gates,
            "dynamical_decoupling": options.dynamical_decoupling.enable,
        }
        return cls(
            bool(options.twirling.enable_measure),
            resilience is not None and bool(resilience.measure_mitigation),
            tuple(name for name, is_on in enabled.items() if is_on),
        )

    def circuits(self, measured: Sequence[BoundCircuit], noise: Any) -> tuple[NoisyCircuit, ...]:
        """Measured circuits in the device's gates with a noise model, or with None.

        Raises:
            ValueError: If the noise cannot be written as channels.
        """
        try:
            noisy = with_noise(measured, noise)
        except NotChannelsError as error:
            raise ValueError(f"shadow: got 'noisy', but {error.reason}; {_REMEDY}.") from error
        return tuple(replace(one, readout=tuple(map(self._misread, one.readout))) for one in noisy)

    def _misread(self, probabilities: np.ndarray | None) -> np.ndarray | None:
        if probabilities is None or self.mitigates_readout:
            return None
        return (probabilities + probabilities[::-1, ::-1]) / 2 if self.twirls_readout else probabilities


@dataclass(frozen=True, eq=False)
class SentCircuits:
    """A program's circuits as they are sent, simulated with noise.

    Attributes:
        simulator: Simulates them.
        circuits: The circuits, measured, without noise.
    """

    simulator: DensitySimulator
    circuits: Sequence[BoundCircuit]

    def values(self, angles: np.ndarray) -> np.ndarray:
        """Shape (N, M): the values at the program's angles, shape (N, A)."""
        values, _ = self.simulator.values(np.ascontiguousarray(parameters_with_folds(self.circuits, angles)))
        return values


class ModelledDevice(Backend):
    """Exact values of what is sent to a device, by its noise model.

    Args:
        simulator: Simulates a program as it is sent.
    """

    name = "noise model"

    def __init__(self, simulator: Callable[[Program], SentCircuits]) -> None:
        self._simulator = simulator

    def resolve_shots(self, shots: int | None) -> None:
        if shots is not None:
            raise ValueError(
                f"shots: got {shots}, but a noise model beside a device gives exact values; expected None."
            )

    def prepare(self, program: Program) -> None:
        self._simulator(program)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        values = self._simulator(program).values(angles)
        return Estimate(values, np.zeros(values.shape), len(angles) * self.circuits_per_row(program), 0)


def noise_of(device: Any) -> Any:
    """A device's noise model by its present calibration, or a simulator's own; None where it makes no errors."""
    from ..aer import noisy_simulator  # on first use: most jobs do without

    return noise_model_of(noisy_simulator(device=device))


def simulator_of(program: Program, circuits: Sequence[NoisyCircuit], measured: Sequence[BoundCircuit]) -> SentCircuits:
    """What simulates a program's circuits with noise.

    Args:
        program: The program.
        circuits: Its circuits with noise.
        measured: The same without.

    Raises:
        MemoryError: If they have too many qubits.
    """
    from ...simulator.density_engine import DensitySimulator  # on first use: it loads the compiler

    try:
        return SentCircuits(DensitySimulator(circuits, program.readout), measured)
    except MemoryError as error:
        width = max(circuit.num_qubits for circuit in circuits)
        raise MemoryError(
            f"shadow: got 'noisy' for a circuit that takes {width} qubits of the device, whose states with noise (of up to "
            f"4**{width} numbers) do not fit into this machine's memory; {_REMEDY}, or a smaller circuit."
        ) from error
