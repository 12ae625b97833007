r"""Noisy simulators: the error of a value and of a derivative, and the bias that is left at any number of shots.

The circuit is RY(a) on qubit 0, CX, RY(b) on qubit 1, and what is measured is Z on qubit 1: :math:`\cos a \cos b` without
noise. The derivative is by a, by parameter shift.

A depolarising channel :math:`\rho \mapsto (1-p)\rho + p\,\mathrm{Tr}[\rho]\,1/d` shrinks every Pauli that it acts on by
:math:`1-p`. Three gates act on Z on its way back through this circuit, so a probability :math:`p_1` after each RY and
:math:`p_2` after CX make it :math:`(1-p_1)^2 (1-p_2) \cos a \cos b`. Readout that takes 0 for 1 with probability
:math:`e_0` and 1 for 0 with :math:`e_1` makes z into :math:`(1-e_0-e_1)\,z + e_1 - e_0`. Where there is no closed form
(fake devices), the expectation is that of the density matrix behind the gates' noise, with the readout errors of the
measured qubits applied to its probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit_aer.noise import NoiseModel

from qiskit_torch_bridge import AerBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend

from ..common.cells import Cell
from ..common.lines import MeanSquare
from ..common.noise_models import NoisyBackend
from ..common.noise_settings import NoiseSettings

QUANTITIES = ("value", "derivative")
IDEAL = "none"

_A, _B = 0.7, 0.5
_QUBITS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Noise(NoiseSettings):
    """What is wrong with a simulator.

    Attributes:
        device: The fake device whose noise it is, in place of all else.
    """

    device: str | None = None


NOISES: Mapping[str, Noise] = {
    IDEAL: Noise(),
    "depolarising, 1 qubit": Noise(depolarizing={"ry": 0.05}),
    "depolarising, 2 qubits": Noise(depolarizing={"cx": 0.05}),
    "readout error": Noise(zero_as_one=0.02, one_as_zero=0.06),
    "fake Manila": Noise(device="manila"),
    "fake Nairobi": Noise(device="nairobi"),
}
"""By their names in the study."""


def ideal() -> np.ndarray:
    """Value and derivative without noise."""
    return np.cos(_B) * np.array([np.cos(_A), -np.sin(_A)])


def closed_form(noise: Noise) -> np.ndarray | None:
    """Value and derivative in the mean over infinitely many shots; None for a device."""
    if noise.device is not None:
        return None
    shrunk = (1 - noise.depolarizing_of("ry")) ** 2 * (1 - noise.depolarizing_of("cx")) * ideal()
    lost, offset = noise.zero_as_one + noise.one_as_zero, noise.one_as_zero - noise.zero_as_one
    return (1 - lost) * shrunk + np.array([offset, 0.0])


def one_shot() -> np.ndarray:
    """The variances of value and derivative without noise at one shot a circuit."""
    value, _ = ideal()
    return np.array([1 - value**2, (1 - (np.sin(_A) * np.cos(_B)) ** 2) / 2])


@lru_cache(maxsize=16)  # every cell of a noise model asks for the same
def expectation(name: str) -> tuple[float, float]:
    """Value and derivative in the mean over infinitely many shots, by density matrix and readout errors."""
    layer = _layer(_backend(NOISES[name], readout=False), probabilities=list(_QUBITS), seed=0)
    points = torch.tensor([[_A], [_A + np.pi / 2], [_A - np.pi / 2]], dtype=torch.float64)
    with torch.no_grad():
        outcomes = layer(points).numpy()  # qubit 0 is the least significant bit
    model = _backend(NOISES[name], readout=True).simulator.options.noise_model
    flips = [_assignment_of(model, qubit) for qubit in _QUBITS]
    z = outcomes @ np.kron(flips[1], flips[0]).T @ np.array([1.0, 1.0, -1.0, -1.0])
    return float(z[0]), float((z[1] - z[2]) / 2)


def measure_noise(cell: Cell, seed: np.random.SeedSequence) -> list[dict[str, Any]]:
    """The mean squared error of value and derivative over the cell's repeats, from what they are without noise.

    Args:
        cell: With ``noise`` (a name of :data:`NOISES`), ``shots`` (a circuit) and ``repeats``.
        seed: Draws the shots, and Aer's noise.
    """
    options = {"observables": "ZI", "shots": cell["shots"], "gradient": "parameter_shift"}
    backend = _backend(NOISES[cell["noise"]], readout=True)
    layer = _layer(backend, **options, seed=seed.generate_state(4).tolist())
    angles = torch.full((cell["repeats"], 1), _A, dtype=torch.float64, requires_grad=True)
    values = layer(angles)
    (derivatives,) = torch.autograd.grad(values.sum(), angles)
    rows = []
    for quantity, estimates, exact, expected in zip(
        QUANTITIES, (values.detach(), derivatives), ideal().tolist(), expectation(cell["noise"]), strict=True
    ):
        square = MeanSquare.of((estimates.numpy()[:, 0] - exact) ** 2)
        rows.append(
            {
                "quantity": quantity,
                "mean_squared_error": square.value,
                "mean_squared_error_error": square.error,
                "exact_bias": round(expected - exact, 12),  # without rounding errors of doubles
                "shots_spent": layer.total_shots,
            }
        )
    return rows


def _backend(noise: Noise, *, readout: bool) -> AerBackend:
    """A simulator with the noise, which samples from density matrices; its readout errors may be left out."""
    if noise.device is None:
        told = noise if readout else replace(noise, zero_as_one=0.0, one_as_zero=0.0)
        return NoisyBackend(told, method="density_matrix")
    device = resolve_backend(f"fake:{noise.device}")
    assert isinstance(device, AerBackend)
    device.simulator.set_options(method="density_matrix")
    if not readout:
        model = NoiseModel.from_backend(device.simulator, readout_error=False)
        device.simulator.set_options(noise_model=model)
    return AerBackend(device.simulator, initial_layout=_QUBITS)


def _layer(backend: AerBackend, **options: Any) -> QuantumLayer:
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cx(0, 1)
    circuit.ry(_B, 1)
    return QuantumLayer(circuit, inputs=[angle], backend=backend, **options)


def _assignment_of(model: NoiseModel, qubit: int) -> np.ndarray:
    for error in model.to_dict()["errors"]:
        if error["type"] == "roerror" and (qubit,) in map(tuple, error.get("gate_qubits", [(qubit,)])):
            return np.array(error["probabilities"]).T
    return np.eye(2)
