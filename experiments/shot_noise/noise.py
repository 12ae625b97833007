r"""Noisy simulators: the error of a value and of a derivative, and the bias that is left at any number of shots.

The circuit is RY(a) on qubit 0, a chain of CX from qubit to qubit, RY(b) on the last one, and what is measured is Z on
that: :math:`\cos a \cos b` without noise, whatever the number of qubits n. The derivative is by a, by parameter shift.

A depolarising channel :math:`\rho \mapsto (1-p)\rho + p\,\mathrm{Tr}[\rho]\,1/d` shrinks every Pauli that it acts on by
:math:`1-p`. Two RY and n - 1 CX act on Z on its way back through this circuit, so a probability :math:`p_1` after each RY
and :math:`p_2` after each CX make it :math:`(1-p_1)^2 (1-p_2)^{n-1} \cos a \cos b`. Readout that takes 0 for 1 with
probability :math:`e_0` and 1 for 0 with :math:`e_1` makes z into :math:`(1-e_0-e_1)\,z + e_1 - e_0`. Where there is no
closed form (fake devices), the expectation is the exact one of the same simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit

from qiskit_torch_bridge import Backend, DensityMatrixBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend

from ..common.cells import Cell
from ..common.lines import MeanSquare
from ..common.noise_models import ExactNoisyBackend
from ..common.noise_settings import NoiseSettings

QUANTITIES = ("value", "derivative")
IDEAL = "none"

_A, _B = 0.7, 0.5


@dataclass(frozen=True, kw_only=True)
class Noise(NoiseSettings):
    """What is wrong with a simulator.

    Attributes:
        device: The fake device whose noise it is, in place of all else.
        line: Its qubits for the circuit's, each connected to the next; empty: there is no device, and no limit.
    """

    device: str | None = None
    line: tuple[int, ...] = ()


NOISES: Mapping[str, Noise] = {
    IDEAL: Noise(),
    "depolarising, 1 qubit": Noise(depolarizing={"ry": 0.05}),
    "depolarising, 2 qubits": Noise(depolarizing={"cx": 0.05}),
    "readout error": Noise(zero_as_one=0.02, one_as_zero=0.06),
    "fake Manila": Noise(device="manila", line=(0, 1, 2, 3, 4)),
    "fake Nairobi": Noise(device="nairobi", line=(0, 1, 3, 5, 4)),
}
"""By their names in the study."""


def ideal() -> np.ndarray:
    """Value and derivative without noise."""
    return np.cos(_B) * np.array([np.cos(_A), -np.sin(_A)])


def closed_form(noise: Noise, qubits: int) -> np.ndarray | None:
    """Value and derivative in the mean over infinitely many shots; None for a device."""
    if noise.device is not None:
        return None
    shrunk = (1 - noise.depolarizing_of("ry")) ** 2 * (1 - noise.depolarizing_of("cx")) ** (qubits - 1) * ideal()
    lost, offset = noise.zero_as_one + noise.one_as_zero, noise.one_as_zero - noise.zero_as_one
    return (1 - lost) * shrunk + np.array([offset, 0.0])


def one_shot() -> np.ndarray:
    """The variances of value and derivative without noise at one shot a circuit."""
    value, _ = ideal()
    return np.array([1 - value**2, (1 - (np.sin(_A) * np.cos(_B)) ** 2) / 2])


@lru_cache(maxsize=16)  # every cell of a circuit asks for the same
def expectation(name: str, qubits: int) -> tuple[float, float]:
    """Value and derivative in the mean over infinitely many shots: exact, by one sweep."""
    angle = torch.tensor([[_A]], dtype=torch.float64, requires_grad=True)
    value = layer_of(qubits, _backend(name, qubits))(angle)
    value.sum().backward()
    assert angle.grad is not None
    return value.item(), angle.grad.item()


def measure_noise(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    """The mean squared error of value and derivative over the cell's repeats, from what they are without noise.

    Args:
        cell: With ``noise`` (a name of :data:`NOISES`), ``qubits``, ``shots`` (a circuit) and ``repeats``.
        seed: Draws the shots.
    """
    options = {"shots": cell["shots"], "gradient": "parameter_shift", "seed": seed.generate_state(4).tolist()}
    layer = layer_of(cell["qubits"], _backend(cell["noise"], cell["qubits"]), **options)
    angles = torch.full((cell["repeats"], 1), _A, dtype=torch.float64, requires_grad=True)
    values = layer(angles)
    (derivatives,) = torch.autograd.grad(values.sum(), angles)
    expected = expectation(cell["noise"], cell["qubits"])
    rows = []
    for quantity, estimates, exact, biased in zip(
        QUANTITIES, (values.detach(), derivatives), ideal().tolist(), expected, strict=True
    ):
        square = MeanSquare.of((estimates.numpy()[:, 0] - exact) ** 2)
        rows.append(
            {
                "quantity": quantity,
                "mean_squared_error": square.value,
                "mean_squared_error_error": square.error,
                "exact_bias": round(biased - exact, 12),  # without rounding errors of doubles
                "shots_spent": layer.total_shots,
            }
        )
    return rows


def layer_of(qubits: int, backend: Backend, **options: Any) -> QuantumLayer:
    """Z on the last qubit of the circuit, by the angle a."""
    angle = Parameter("a")
    circuit = QuantumCircuit(qubits)
    circuit.ry(angle, 0)
    for qubit in range(qubits - 1):
        circuit.cx(qubit, qubit + 1)
    circuit.ry(_B, qubits - 1)
    return QuantumLayer(circuit, inputs=[angle], observables="Z" + "I" * (qubits - 1), backend=backend, **options)


@lru_cache(maxsize=16)  # a device's noise model takes as long as a cell
def _backend(name: str, qubits: int) -> DensityMatrixBackend:
    noise = NOISES[name]
    if noise.device is None:
        return ExactNoisyBackend(noise)
    device = resolve_backend(f"noisy:{noise.device}")
    assert isinstance(device, DensityMatrixBackend)
    return DensityMatrixBackend(device=device.simulator, initial_layout=noise.line[:qubits])
