"""Exact simulation of noise on this machine's cores, with adjoint differentiation and, on request, shots."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qiskit import QuantumCircuit
from qiskit.transpiler import PassManager

from ..arguments import instance_of
from ..program.compiled import Program
from ..program.readout import Probabilities
from .aer import noisy_simulator
from .base import ProgramCache
from .noise_channels import channels_of, circuits_without_loss
from .simulated import check_method, default_level, ignored_noise, is_from, noise_model_of
from .simulating import SimulatingBackend, dtype_of
from .transpiling import TranspilerOptions, TranspilingBackend, varied

if TYPE_CHECKING:
    from ..simulator.density_engine import DensitySimulator
    from ..simulator.final_states import MixedStates
    from ..simulator.noisy_cones import NoisyConeSimulator

__all__ = ["DensityMatrixBackend"]


class DensityMatrixBackend(SimulatingBackend, TranspilingBackend):
    """Exact simulation of noise by compiled code, or shots drawn from exact probabilities; adjoint gradients.

    Of the noise, all is heeded that Aer would apply: circuits are transpiled as by :class:`AerBackend`, errors belong to
    labels, names and qubits as there, and readout errors are in exact values too. What has no matrix of its own is refused
    by name. Values agree with those of Aer's density matrices; shots have the same statistics as Aer's.

    A state of n qubits is up to 4**n numbers: time and memory grow fourfold with each qubit. What nothing that is read
    depends on is left out, and wide circuits are simulated by the light cones of what is read, so that shallow ones may have
    as many qubits as a device. A batch runs in as many threads as PyTorch would use (``torch.get_num_threads()``); results
    do not depend on them. The code is compiled the first time that a machine uses it, and kept on disk.

    ``shots=None`` gives exact values, noise and readout errors included. With shots, multinomial counts are drawn from the
    exact probabilities of the measured bits.

    There are many options because the last four are those of the transpiler.

    Args:
        noise: Aer's ``NoiseModel``, or what one is made from: a device with a target, its ``target``, its ``properties()``.
            None: the device's. The noise is as it is now: what is added to it later has no influence.
        device: What circuits are transpiled for: an ``AerSimulator`` or a fake device. None: they run as they are written.
        precision: ``"double"``; or ``"single"`` for half the memory, with errors of about 1e-6 in values and gradients of
            order 1.
        joint_shots: False: with shots, circuits that are simulated by their light cones are drawn cone by cone, as by
            :class:`StatevectorBackend`.
        optimization_level: This and the next three: as in :class:`AerBackend`.
        initial_layout: The device's qubits for the circuit's.
        seed_transpiler: Makes the transpiler's choices repeatable.
        pass_manager: A ``PassManager`` of yours in place of the preset one.

    Raises:
        TypeError, ValueError: If an argument is something else.
    """

    def __init__(
        self,
        noise: Any = None,
        device: Any = None,
        *,
        precision: str = "double",
        joint_shots: bool = True,
        optimization_level: int | None = None,
        initial_layout: Sequence[int] | None = None,
        seed_transpiler: int | None = 0,
        pass_manager: PassManager | None = None,
    ) -> None:
        check_method(device)
        self.precision, self._dtype = precision, dtype_of(precision)
        self.joint_shots = instance_of("joint_shots", joint_shots, bool, "True or False")
        own = deepcopy(device) if is_from("qiskit_aer", device) else device
        self.simulator = noisy_simulator(deepcopy(noise) if is_from("qiskit_aer", noise) else noise, own)
        self.name = "density_matrix" if device is None else f"density_matrix of {self.simulator.name}"
        self._states = ProgramCache()
        super().__init__(TranspilerOptions(optimization_level, initial_layout, seed_transpiler, pass_manager))
        self._circuits = ProgramCache()

    def on_qubits(self, initial_layout: Sequence[int]) -> DensityMatrixBackend:
        """A backend with the same device and noise, whose circuits are on other qubits of it; the noise is shared.

        Args:
            initial_layout: The device's qubits for the circuit's, in order.
        """
        other = copy(self)
        other._transpiler, other._cache = replace(self._transpiler, initial_layout=initial_layout), ProgramCache()
        return other

    @property
    def _default_level(self) -> int:
        return default_level(self.simulator)

    def _new_simulator(self, program: Program) -> DensitySimulator | NoisyConeSimulator:
        from ..simulator.noisy_cones import simulator_of  # on first use: it loads the compiler

        noise = noise_model_of(self.simulator)
        self._warn_once("ignored noise", ignored_noise(noise))
        circuits = channels_of(self.circuits(program), program, noise)
        return simulator_of(circuits, program.readout, self._dtype, joint_shots=self.joint_shots)

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        if program not in self._circuits:
            if program.base is None:
                circuits = circuits_without_loss(program, self.simulator, self.transpiler)
            else:
                circuits = varied(program, self.circuits(program.base), self.simulator)
            self._circuits[program] = circuits
        return self._circuits[program]

    def mixed_states_of(self, program: Program, qubits: tuple[int, ...]) -> MixedStates:
        from ..simulator.final_states import MixedStates  # on first use: it loads the compiler

        made = self._states.of(program)
        if qubits not in made:
            measured = replace(program, readout=Probabilities.of(qubits))
            noise = noise_model_of(self.simulator)
            self._warn_once("ignored noise", ignored_noise(noise))
            (circuit,) = channels_of(self.circuits(measured), measured, noise)
            made[qubits] = MixedStates(circuit, self._dtype)
        states: MixedStates = made[qubits]
        return states

    def __repr__(self) -> str:
        given = "" if self.precision == "double" else f", precision={self.precision!r}"
        given += "" if self.joint_shots else ", joint_shots=False"
        return f"DensityMatrixBackend({self.name!r}{given})"
