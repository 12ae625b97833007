"""Exact simulation on this machine's cores, with adjoint differentiation and, on request, shots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import instance_of
from ..program.compiled import Program
from ..program.readout import Expectation
from .base import ProgramCache
from .simulating import SimulatingBackend, dtype_of

if TYPE_CHECKING:
    from ..simulator.cone_engine import ConeSimulator
    from ..simulator.engine import Simulator
    from ..simulator.final_states import PureStates
    from ..simulator.step import Step

__all__ = ["StatevectorBackend"]


class StatevectorBackend(SimulatingBackend):
    """Exact simulation by compiled code, or shots drawn from exact probabilities; adjoint gradients.

    Qubits that no gate and no measurement touches are left out. A batch runs in parts that bound the memory, in as many
    threads as PyTorch would use (``torch.get_num_threads()``); results do not depend on either. All code is compiled
    the first time that a machine uses it (10 to 25 seconds; a note says so), and kept on disk.

    ``shots=None`` gives exact values. With shots, the probabilities of the measured qubits' outcomes are computed
    exactly and multinomial counts drawn from them: the same statistics as running each circuit ``shots`` times without
    noise.

    Args:
        precision: ``"double"``; or ``"single"`` for half the memory, with errors of about 1e-6 in values and gradients of
            order 1.
        joint_shots: False: with shots, circuits that are simulated by their light cones are drawn cone by cone. Each Pauli
            string has the right statistics, and there is no covariance between strings of different cones. A joint draw
            takes a state of all qubits whose cones are connected, with its memory and its time: from some 20 qubits on
            that is slow.
    """

    name = "statevector"

    def __init__(self, *, precision: str = "double", joint_shots: bool = True) -> None:
        self.precision, self._dtype = precision, dtype_of(precision)
        self.joint_shots = instance_of("joint_shots", joint_shots, bool, "True or False")
        self._cache, self._steps, self._states = ProgramCache(), ProgramCache(), ProgramCache()

    def num_amplitudes(self, program: Program) -> float:
        """How many amplitudes an exact simulation of the program has, those of all its light cones together.

        The memory and the time of a row are in proportion to it.
        """
        from ..simulator.cone_engine import num_amplitudes

        return num_amplitudes(program)

    def step_of(self, program: Program) -> Step | None:
        # What a class of a user's own changes must not be passed by.
        if type(self) is not StatevectorBackend:
            return None
        try:
            return self._steps[program]
        except KeyError:
            return self._steps.setdefault(program, self._new_step(program))

    def pure_states_of(self, program: Program) -> PureStates:
        from ..simulator.final_states import PureStates  # on first use: it loads the compiler

        if program not in self._states:
            self._states[program] = PureStates(program, self._dtype)
        states: PureStates = self._states[program]
        return states

    def _new_step(self, program: Program) -> Step | None:
        table = None if program.blocks else program.angle_map.table
        if table is None or not isinstance(program.readout, Expectation):
            return None
        simulator = self._simulator(program)
        from ..simulator.engine import Simulator
        from ..simulator.step import Step

        if not isinstance(simulator, Simulator) or not simulator.plan.whole:
            return None

        return Step(simulator, table, (program.num_inputs, sum(program.num_weights)))

    def _new_simulator(self, program: Program) -> Simulator | ConeSimulator:
        from ..simulator.cone_engine import simulator_of  # on first use: it loads the compiler

        return simulator_of(program, self._dtype, joint_shots=self.joint_shots)

    def __repr__(self) -> str:
        given = [] if self.precision == "double" else [f"precision={self.precision!r}"]
        given += [] if self.joint_shots else ["joint_shots=False"]
        return f"StatevectorBackend({', '.join(given)})"
